import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.errors import InvalidRegistry, RefNotFound
from apps.processors import registry
from apps.processors.adapters.base import Limits
from apps.processors.reference import AMD64, ARM64, ImageReference, ProcessorRef

REF = ProcessorRef("llm", "echo", 3)
PIN = "ghcr.io/org/llm-echo@sha256:" + "1" * 64
GOOD = f"""\
schema: 1
ref: llm/echo@3
image:
  repository: ghcr.io/org/llm-echo
  platforms:
    amd64: {PIN}
    arm64:
build:
  context: code
  dockerfile: code/processors/llm/echo/3/Dockerfile
runtime: {{port: 8000, cpu: 0.5, memory_gb: 1.5, scratch_gb: 4, timeout_s: 600, concurrency: 8, gpu: null}}
secrets: {{required: [ECHO_KEY], optional: [ECHO_URL]}}
inputs: {{type: object, properties: {{n: {{type: integer}}}}, examples: [{{n: 1}}]}}
outputs:
  - {{path: text/echo.txt, mime: text/plain}}
  - {{path: frames/*.png}}
"""


def write(root: Path, content: str | bytes, ref: ProcessorRef = REF) -> Path:
    path = root / "registry" / ref.namespace / ref.name / str(ref.version) / "registry.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def findings(root: Path) -> list[dict[str, Any]]:
    with pytest.raises(InvalidRegistry) as caught:
        registry.load(root, REF)
    found: list[dict[str, Any]] = caught.value.details["findings"]
    assert found
    assert all(list(each) == ["file", "line", "column", "path", "expected", "found", "message"] for each in found)
    return found


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """A hang fails the test instead of hanging it."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"not done in {seconds} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


# what a good file says


def test_a_good_file_becomes_a_spec(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)

    spec = registry.load(tmp_path, REF)

    assert (spec.ref, spec.file, spec.repository) == (REF, path, "ghcr.io/org/llm-echo")
    assert spec.pins == {AMD64: ImageReference.parse(PIN), ARM64: None}
    assert spec.runtime.limits() == Limits(0.5, 1536 * 1024**2, 4 * 1024**3, None)
    assert (spec.secrets.names, spec.pull_secret) == (("ECHO_KEY", "ECHO_URL"), None)
    assert [(rule.path, rule.mime) for rule in spec.outputs] == [
        ("text/echo.txt", "text/plain"),
        ("frames/*.png", None),
    ]


def test_the_spec_document_has_five_keys_and_numbers_as_written(tmp_path: Path) -> None:
    write(tmp_path, GOOD)

    document = registry.load(tmp_path, REF).document

    assert list(document) == ["ref", "runtime", "secrets", "inputs", "outputs"]
    assert json.dumps(document["runtime"]["memory_gb"]) == "1.5"
    assert json.dumps(document["runtime"]["scratch_gb"]) == "4"


def test_a_pin_changes_no_spec_digest(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    before = registry.load(tmp_path, REF).spec_digest

    write(tmp_path, GOOD.replace(PIN, ""))

    assert registry.load(tmp_path, REF).spec_digest == before


def test_an_output_changes_the_spec_digest(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    before = registry.load(tmp_path, REF).spec_digest

    write(tmp_path, GOOD.replace("text/echo.txt", "text/other.txt"))

    assert registry.load(tmp_path, REF).spec_digest != before


def test_the_canonical_text_is_what_the_digest_is_of(tmp_path: Path) -> None:
    write(tmp_path, GOOD)

    spec = registry.load(tmp_path, REF)

    assert json.loads(spec.spec_json) == spec.document
    assert spec.spec_json.startswith('{"inputs":{"examples":[{"n":1}],')


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("gpu: null", "gpu: A100:2"),
        (", gpu: null", ""),
        ("port: 8000,", "port: 8000.0,"),
        ("secrets: {required: [ECHO_KEY], optional: [ECHO_URL]}", "secrets: {}"),
        ("    arm64:\n", ""),
        ("  platforms:\n", "  pull_secret: ghcr-pull\n  platforms:\n"),
        ("schema: 1", "# a comment\n---\nschema: 1"),
        ("{n: 1}", "&one {n: 1}, *one"),
        ("{n: {type: integer}}", "{n: {type: integer, title: no}, '<<': true, '12': true}"),
        ("{n: {type: integer}}", "{n: {type: integer, default: 2026-01-01}}"),
        ("frames/*.png", "'frames/[0-9]?é.png'"),
    ],
)
def test_what_else_is_good(tmp_path: Path, old: str, new: str) -> None:
    assert old in GOOD
    write(tmp_path, GOOD.replace(old, new, 1))

    assert registry.load(tmp_path, REF).ref == REF


def test_words_mean_what_yaml_1_2_says(tmp_path: Path) -> None:
    words = "{a: no, b: 1:30, c: 2026-01-01, d: 0x1F, e: 1e3, f: ~, g: 1_000, h: TRUE}"
    write(tmp_path, GOOD.replace("type: object", f"type: object, default: {words}"))

    default = registry.load(tmp_path, REF).inputs["default"]

    assert default == {"a": "no", "b": "1:30", "c": "2026-01-01", "d": 31, "e": 1e3, "f": None, "g": "1_000", "h": True}


def test_the_shipped_processor_is_good() -> None:
    root = Path(__file__).parents[2]

    spec = registry.load(root, ProcessorRef("llm", "litellm", 1))

    assert registry.check(root) >= 1
    assert spec.inputs["properties"]["params"]["required"] == ["messages"]


# what is wrong, and where: replaced, replacement, line, column, path, expected, found

WRONG = [
    ("cpu: 0.5", "cpu: half", 11, 28, "$.runtime.cpu", "a number of processor cores, above 0", '"half"'),
    ("cpu: 0.5", "cpu: 0", 11, 28, "$.runtime.cpu", "above 0", "0"),
    ("cpu: 0.5", "cpu: -1", 11, 28, "$.runtime.cpu", "above 0", "-1"),
    ("cpu: 0.5", "cpu: .inf", 11, 28, "$.runtime.cpu", "a finite number", ".inf"),
    ("cpu: 0.5", "cpu: .nan", 11, 28, "$.runtime.cpu", "a finite number", ".nan"),
    ("cpu: 0.5", "cpu: 1e999", 11, 28, "$.runtime.cpu", "a finite number", "1e999"),
    ("cpu: 0.5", "cpu: 9007199254740992", 11, 28, "$.runtime.cpu", "at most 9007199254740991", "a larger one"),
    ("cpu: 0.5", "cpu: " + "9" * 9000, 11, 28, "$.runtime.cpu", "at most 9007199254740991", "a larger one"),
    ("cpu: 0.5", "cpu: 010", 11, 28, "$.runtime.cpu", "without a leading zero", "010"),
    ("port: 8000", "port: 80.5", 11, 17, "$.runtime.port", "a whole number", "80.5"),
    ("port: 8000", "port: 65536", 11, 17, "$.runtime.port", "from 1 to 65535", "65536"),
    ("port: 8000", "port: true", 11, 17, "$.runtime.port", "a whole number", "true"),
    ("concurrency: 8", "concurrency: 0", 11, 93, "$.runtime.concurrency", "from 1 to 1024", "0"),
    (", concurrency: 8", "", 11, 10, "$.runtime.concurrency", "this key", "nothing"),
    ("port: 8000", "prot: 1, port: 8000", 11, 11, "$.runtime.prot", "one of port, cpu", "an unknown key"),
    ("port: 8000", "port: 1, port: 8000", 11, 20, "$.runtime.port", "each key once", "'port' again"),
    ("schema: 1", "schema: 2", 1, 9, "$.schema", "1", "2"),
    ("schema: 1\n", "", 1, 1, "$.schema", "this key", "nothing"),
    ("schema: 1\n", "schema: 1\nextra: 1\n", 2, 1, "$.extra", "one of schema, ref", "an unknown key"),
    ("ref: llm/echo@3", "ref: llm/echo@2", 2, 6, "$.ref", "llm/echo@3, after the folder", "llm/echo@2"),
    ("ref: llm/echo@3", "ref: [llm]", 2, 6, "$.ref", "a processor ref", '["llm"]'),
    ("repository: ghcr.io/org/llm-echo", "repository: Org", 4, 15, "$.image.repository", "host/repository", '"Org"'),
    (
        "repository: ghcr.io/org/llm-echo",
        "repository: g.io/a:1",
        4,
        15,
        "$.image.repository",
        "without tag",
        "g.io/a:1",
    ),
    (PIN, "ghcr.io/org/llm-echo:latest", 6, 12, "$.image.platforms.amd64", "@sha256:<64 hex>", "latest"),
    ("    arm64:", "    riscv64:", 7, 5, "$.image.platforms.riscv64", "one of amd64, arm64", "an unknown key"),
    ("context: code", "context: ../code", 9, 12, "$.build.context", "without '..'", "../code"),
    ("context: code", "context: /code", 9, 12, "$.build.context", "a relative path", "/code"),
    ("context: code", "context: registry/llm", 9, 12, "$.build.context", "outside registry/", "registry/llm"),
    ("context: code", "context: code/.theory", 9, 12, "$.build.context", "outside registry/", "code/.theory"),
    ("[ECHO_KEY]", "[echo-key]", 12, 22, "$.secrets.required[0]", "a variable's name", '"echo-key"'),
    ("[ECHO_KEY]", "[ECHO_URL]", 12, 44, "$.secrets.optional[0]", "not among the required", "ECHO_URL"),
    ("[ECHO_KEY]", "[A, A]", 12, 21, "$.secrets.required", "each once", '["A", "A"]'),
    ("[ECHO_KEY]", "[PORT]", 12, 22, "$.secrets.required[0]", "not kept for the engine", "PORT"),
    ("[ECHO_KEY]", "[THEORY_SPEC]", 12, 22, "$.secrets.required[0]", "not kept for the engine", "THEORY_SPEC"),
    ("[ECHO_KEY]", "[AWS_SECRET_ACCESS_KEY]", 12, 22, "$.secrets.required[0]", "not kept for the engine", "AWS_SEC"),
    ("[ECHO_KEY]", "[HTTPS_PROXY]", 12, 22, "$.secrets.required[0]", "not kept for the engine", "HTTPS_PROXY"),
    ("{type: integer}", "{type: integr}", 13, 47, "$.inputs.properties.n.type", "JSON Schema 2020-12", '"integr"'),
    ("{type: integer}", "{$ref: '#/nope'}", 13, 9, "$.inputs", "JSON Schema 2020-12", "'/nope' does not exist"),
    ("{type: integer}", "{$ref: 'http://localhost:1/x'}", 13, 9, "$.inputs", "JSON Schema", "another document"),
    ("{type: integer}", "{pattern: '('}", 13, 50, "$.inputs.properties.n.pattern", "JSON Schema", "regex"),
    (
        "type: object",
        "$schema: 'http://json-schema.org/draft-07/schema#'",
        13,
        19,
        "$.inputs['$schema']",
        "JSON",
        "2020-12",
    ),
    ("[{n: 1}]", "[{n: one}]", 13, 73, "$.inputs.examples[0].n", "an example that fits", '"one" is not of type'),
    ("[{n: 1}]", "[1]", 13, 69, "$.inputs.examples[0]", "an inputs document", "1"),
    ("text/echo.txt", "../echo.txt", 15, 12, "$.outputs[0].path", "without '..'", "../echo.txt"),
    ("text/echo.txt", "/echo.txt", 15, 12, "$.outputs[0].path", "a relative path", "/echo.txt"),
    ("text/echo.txt", "a//b", 15, 12, "$.outputs[0].path", "empty parts", "a//b"),
    ("text/echo.txt", "'a\\b'", 15, 12, "$.outputs[0].path", "a relative path", "a"),
    ("text/echo.txt", '"a\\u0001b"', 15, 12, "$.outputs[0].path", "control characters", "a"),
    ("text/echo.txt", "outputs.json", 15, 12, "$.outputs[0].path", "not kept for index", "outputs.json"),
    ("text/echo.txt", "Receipt.JSON", 15, 12, "$.outputs[0].path", "not kept for index", "Receipt.JSON"),
    ("text/echo.txt", "frames/*.png", 16, 12, "$.outputs[1].path", "each path once", "frames/*.png again"),
    ("mime: text/plain", "mime: text", 15, 33, "$.outputs[0].mime", "a media type", '"text"'),
    ("[ECHO_KEY]", "*nothing", 12, 21, "$.secrets.required", "an alias of something above", "*nothing"),
    ("[ECHO_KEY]", "&a [*a]", 12, 25, "$.secrets.required[0]", "an alias of something above", "*a"),
    ("[ECHO_KEY]", "!!set {A}", 12, 21, "$.secrets.required", "no tag", "the tag tag:yaml.org,2002:set"),
    ("[ECHO_KEY]", "!!python/object/apply:os.system [ls]", 12, 21, "$.secrets.required", "no tag", "os.system"),
    ("ref: llm/echo@3", "ref: !!str llm/echo@3", 2, 6, "$.ref", "no tag", "tag:yaml.org,2002:str"),
    ("schema: 1\n", "schema: 1\n1: 2\n", 2, 1, "$", "a word as a key", "'1'"),
    ("schema: 1\n", "schema: 1\n? [a]\n: 2\n", 2, 3, "$", "a key", "a mapping or a sequence"),
    ("{n: {type: integer}}", "{<<: {a: true}}", 13, 37, "$.inputs.properties", "a key", "the merge key <<"),
    ("schema: 1\n", "schema: 1\n\tref: 1\n", 2, 1, "$", "well-formed YAML", "tab"),
    ("schema: 1\n", "%YAML 1.1\n---\nschema: 1\n", 1, 1, "$", "without directives", "another directive"),
    ("outputs:\n", "...\n---\noutputs:\n", 15, 1, "$", "one document", "a second one"),
    ("schema: 1\n", "schema: 1 # \x07\n", 1, 13, "$", "printable text", "U+0007"),
    ("schema: 1\n", "schema: 1 # \0\n", 1, 13, "$", "printable text", "U+0000"),
    ("schema: 1\n", "\ufeffschema: 1\n", 1, 1, "$", "printable text", "U+FEFF"),
]


@pytest.mark.parametrize(("old", "new", "line", "column", "path", "expected", "found"), WRONG)
def test_an_error_names_place_path_expected_and_found(
    tmp_path: Path, old: str, new: str, line: int, column: int, path: str, expected: str, found: str
) -> None:
    assert old in GOOD
    write(tmp_path, GOOD.replace(old, new, 1))

    [finding] = findings(tmp_path)

    assert (finding["file"], finding["line"], finding["column"]) == ("registry/llm/echo/3/registry.yaml", line, column)
    assert finding["path"] == path
    assert expected in finding["expected"]
    assert found in finding["found"]


def test_the_message_names_the_first_finding_and_counts_the_rest(tmp_path: Path) -> None:
    write(tmp_path, GOOD.replace("cpu: 0.5", "cpu: 0").replace("port: 8000", "port: 0").replace("llm/echo@3", "a/b@1"))

    with pytest.raises(InvalidRegistry) as caught:
        registry.load(tmp_path, REF)

    first = 'registry/llm/echo/3/registry.yaml:2:6: $.ref: expected llm/echo@3, after the folder, found "a/b@1"'
    assert caught.value.message == f"{first} (and 2 more)"
    assert [each["path"] for each in caught.value.details["findings"]] == ["$.ref", "$.runtime.port", "$.runtime.cpu"]


@pytest.mark.parametrize(("text", "found"), [("", "an empty file"), ("- 1\n", "[1]"), ("---\n", "nothing"), ("{}", "")])
def test_a_file_that_is_no_mapping_with_our_keys_is_an_error(tmp_path: Path, text: str, found: str) -> None:
    write(tmp_path, text)

    assert found in findings(tmp_path)[0]["found"]


# hostile files: an error, soon


def _bomb(levels: int = 12, width: int = 10) -> str:
    lines = ["a0: &a0 [" + ",".join(["x"] * width) + "]"]
    lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines)


def _ladder() -> str:
    """Aliases that nest deeper than any one line shows."""
    lines = ["a0: &a0 " + "[" * 40 + "]" * 40]
    lines += [f"a{n}: &a{n} " + "[" * 40 + f"*a{n - 1}" + "]" * 40 for n in range(1, 500)]
    return "\n".join(lines)


HOSTILE: dict[str, tuple[str | bytes, str]] = {
    "alias bomb": (_bomb(), "aliases counted as what they repeat"),
    "alias ladder": (_ladder(), "at most 64 levels"),
    "deep flow": ("[" * 500_000, "at most 64 levels"),
    "deep block": ("\n".join(" " * n + "a:" for n in range(1000)), "at most 64 levels"),
    "wide": ("[" + "1," * 400_000, "at most 50000 values"),
    "50 MB": ("# " + "x" * 50_000_000, "at most 1048576 bytes"),
    "UTF-16": (GOOD.encode("utf-16"), "UTF-8"),
    "UTF-16 without a mark": (GOOD.encode("utf-16-le"), "printable text"),
    "UTF-32": (GOOD.encode("utf-32"), "UTF-8"),
    "Latin-1": (GOOD.replace("schema: 1\n", "schema: 1 # é\n").encode("latin-1"), "UTF-8"),
    "many anchors": ("[" + "&a 1," * 60_000, "at most 50000 values"),
    "long key": ("a" * 900_000 + ": 1", "well-formed YAML"),
    "unclosed quote": ("a: '" + "x\n" * 400_000, "well-formed YAML"),
    "half a surrogate pair": ('a: "\\ud800"', "well-formed YAML"),
    "large spec": (GOOD.replace("[{n: 1}]", f"[{{n: 1, x: {'y' * 98_304}}}]"), "at most 98304 bytes of canonical JSON"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_soon(tmp_path: Path, name: str) -> None:
    content, expected = HOSTILE[name]
    write(tmp_path, content)

    with at_most(5):
        [finding] = findings(tmp_path)

    assert expected in finding["expected"]
    assert len(finding["message"]) < 1000


def test_wrong_encoding_names_the_byte_and_its_place(tmp_path: Path) -> None:
    write(tmp_path, b"schema: 1\nref: \xe4\xf6\n")

    [finding] = findings(tmp_path)

    assert (finding["line"], finding["column"], finding["found"]) == (2, 6, "the byte 0xe4")


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    outside = path.rename(tmp_path / "outside.yaml")
    path.symlink_to(outside)

    assert findings(tmp_path)[0]["found"] == "a link that leads out of it"


def test_a_folder_that_is_a_link_out_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    (tmp_path / "registry" / "llm").rename(tmp_path / "llm")
    (tmp_path / "registry" / "llm").symlink_to(tmp_path / "llm")

    assert findings(tmp_path)[0]["found"] == "a link that leads out of it"
    with pytest.raises(InvalidRegistry, match=r"registry/llm:1:1: .* found a link that leads out of it"):
        registry.check(tmp_path)
    assert path.exists()


def test_a_link_inside_the_folder_is_followed(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    path.rename(path.with_name("real.yaml"))
    path.symlink_to("real.yaml")

    assert registry.load(tmp_path, REF).ref == REF


def _link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, _link_to_itself], ids=["fifo", "folder", "loop"])
def test_what_is_no_regular_file_is_refused(tmp_path: Path, make: Any) -> None:
    path = write(tmp_path, "")
    path.unlink()
    make(path)

    with at_most(5):
        [finding] = findings(tmp_path)

    assert finding["expected"] in ("a regular file", "a readable file")


def test_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "")
    path.unlink()
    path.symlink_to("absent.yaml")

    assert "No such file" in findings(tmp_path)[0]["found"]


# several files


def test_an_unknown_ref_is_not_found(tmp_path: Path) -> None:
    write(tmp_path, GOOD)

    with pytest.raises(RefNotFound, match="no processor llm/echo@4") as caught:
        registry.load(tmp_path, ProcessorRef("llm", "echo", 4))

    assert caught.value.hint == "list them: processorctl list"


def test_all_processors_are_sorted_by_ref(tmp_path: Path) -> None:
    refs = [ProcessorRef("llm", "echo", 10), REF, ProcessorRef("audio", "speak", 1)]
    for ref in refs:
        write(tmp_path, GOOD.replace("llm/echo@3", str(ref)), ref)

    assert [spec.ref for spec in registry.load_all(tmp_path)] == [refs[2], refs[1], refs[0]]
    assert registry.check(tmp_path) == 3


def test_check_tells_the_findings_of_all_files(tmp_path: Path) -> None:
    other = ProcessorRef("llm", "other", 1)
    write(tmp_path, GOOD.replace("cpu: 0.5", "cpu: 0"))
    write(tmp_path, "][", other)

    with pytest.raises(InvalidRegistry) as caught:
        registry.check(tmp_path)

    files = [finding["file"] for finding in caught.value.details["findings"]]
    assert files == ["registry/llm/echo/3/registry.yaml", "registry/llm/other/1/registry.yaml"]


@pytest.mark.parametrize("folder", ["llm/echo", "llm/echo/3/deep", "llm/Echo/1", "llm/echo/latest", "."])
def test_a_misplaced_file_is_an_error(tmp_path: Path, folder: str) -> None:
    path = tmp_path / "registry" / folder / "registry.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(GOOD)

    with pytest.raises(InvalidRegistry, match=r"expected a file registry/<namespace>/<name>/<version>/registry.yaml"):
        registry.check(tmp_path)


def test_hidden_folders_and_other_files_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    (tmp_path / "registry" / ".cache" / "a" / "1").mkdir(parents=True)
    (tmp_path / "registry" / ".cache" / "a" / "1" / "registry.yaml").write_text("][")
    (tmp_path / "registry" / "README.md").write_text("processors")

    assert registry.check(tmp_path) == 1


def test_no_registry_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidRegistry, match="expected a folder, found nothing"):
        registry.check(tmp_path)


# whatever it is: a spec or InvalidRegistry

SYNTAX = ["&a ", "*a ", "!!x ", "<<: ", "? ", "- ", "[", "{", "}", "]", ": ", "'", '"', "|\n", "#", "---\n", "...\n"]
WORDS = ["0777", "1e999", "~", "\n", "  ", "\t", "%YAML 1.1\n", "\x00", "\u2028", "é", "\r"]
FRAGMENTS = st.sampled_from([*GOOD.splitlines(keepends=True), *SYNTAX, *WORDS])


@given(parts=st.lists(FRAGMENTS | st.text(max_size=8), max_size=40))
def test_any_text_is_a_spec_or_invalid(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    root = tmp_path_factory.getbasetemp() / "fragments"
    write(root, "".join(parts).encode("utf-8", "surrogatepass"))

    _load_or_refuse(root)


@given(content=st.binary(max_size=400))
def test_any_bytes_are_a_spec_or_invalid(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    root = tmp_path_factory.getbasetemp() / "bytes"
    write(root, content)

    _load_or_refuse(root)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(key=st.sampled_from(["schema", "ref", "image", "build", "runtime", "secrets", "inputs", "outputs"]), value=PLAIN)
def test_any_value_of_any_key_is_a_spec_or_invalid(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: object
) -> None:
    root = tmp_path_factory.getbasetemp() / "values"
    section = "\n".join(line for line in GOOD.splitlines() if not line.startswith(f"{key}:"))
    write(root, f"{section}\n{key}: {json.dumps(value)}\n")

    _load_or_refuse(root)


def _load_or_refuse(root: Path) -> None:
    with suppress(InvalidRegistry):
        assert registry.load(root, REF).ref == REF


def test_the_example_of_the_page_is_good(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "guides" / "registry.md").read_text()
    example = page.split("```yaml\n")[1].split("```")[0]

    write(tmp_path, example, ProcessorRef("llm", "litellm", 1))

    assert registry.check(tmp_path) == 1
