"""terraform/ as data: its resources, and its policies rendered as Terraform would."""

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from string import Template
from typing import Any

import hcl2
from hcl2.utils import SerializationOptions

from tests.architecture.sources import PROJECT

FOLDER = PROJECT / "terraform"
OPTIONS = SerializationOptions(strip_string_quotes=True, explicit_blocks=False, with_comments=False)
TEMPLATEFILE = re.compile(r'\$\{templatefile\("\$\{path\.module\}/(?P<file>[^"]+)", \{(?P<values>.*)\}\)\}', re.DOTALL)
VALUE = re.compile(r"(\w+)\s*[=:]")


class Policy:
    """A policy that a resource names: the file that `templatefile` reads, and the values that it is given."""

    def __init__(self, folder: Path, attribute: str) -> None:
        call = TEMPLATEFILE.fullmatch(attribute)
        assert call, f"a policy is a templatefile() of JSON, so that tests read its very text: {attribute}"
        self.path = folder / call["file"]
        self.given = set(VALUE.findall(call["values"]))

    def statements(self, values: Mapping[str, str]) -> list[dict[str, Any]]:
        return json.loads(self.text(values))["Statement"]

    def text(self, values: Mapping[str, str]) -> str:
        """The policy with `values` in the place of `${name}`. A value that Terraform does not give is a KeyError."""
        template = self.path.read_text()
        assert "%{" not in template, "more than values in a template is more than these tests can render"
        return Template(template).substitute({name: values[name] for name in self.given})


def resources(folder: Path = FOLDER) -> dict[str, dict[str, Any]]:
    """Every resource by its address: `aws_s3_bucket.artifacts`."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.tf")):
        for block in _parse(path.read_text()).get("resource", []):
            for kind, named in block.items():
                found |= {f"{kind}.{name}": body for name, body in named.items()}
    return found


@cache  # a tenth of a second each
def _parse(text: str) -> dict[str, Any]:
    return hcl2.loads(text, serialization_options=OPTIONS)


def policy(address: str, attribute: str = "policy", folder: Path = FOLDER) -> Policy:
    """The policy of the resource at `address`."""
    return Policy(folder, resources(folder)[address][attribute])
