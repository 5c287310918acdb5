import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.errors import InvalidRegistry, RefNotFound, StorageFailed
from apps.processors import registry
from apps.processors.reference import AMD64, ARM64, PLATFORMS, ImageReference, Platform, ProcessorRef
from tests.places import small_disk
from tests.shell import PROJECT

REF = ProcessorRef("llm", "echo", 3)
OLD, NEW, OTHER = (ImageReference("ghcr.io/org/llm-echo", "sha256:" + digit * 64) for digit in "123")
HEAD = "schema: 1\nref: llm/echo@3\nimage:\n  repository: ghcr.io/org/llm-echo\n"
TAIL = """\
build: {context: code, dockerfile: code/processors/llm/echo/3/Dockerfile}
runtime: {port: 8000, cpu: 1, memory_gb: 1, scratch_gb: 1, timeout_s: 60, concurrency: 1, gpu: null}
secrets: {}
inputs: {type: object, title: é, examples: [{}]}
outputs:
  - {path: text/echo.txt, mime: text/plain}
"""


def place(root: Path) -> Path:
    return root / "registry/llm/echo/3/registry.yaml"


def write(root: Path, text: str) -> Path:
    path = place(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def pinned(root: Path, text: str, platform: Platform = AMD64, image: ImageReference = NEW) -> str:
    """What becomes of `text`."""
    path = write(root, text)
    registry.pin(root, REF, platform, image)
    return path.read_bytes().decode()


def block(*lines: str) -> str:
    return f"{HEAD}  platforms:\n" + "".join(f"    {line}\n" for line in lines) + TAIL


# one line is changed or added


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("amd64:", f"amd64: {NEW}"),
        ("amd64:  # written by pin", f"amd64: {NEW}  # written by pin"),
        ("amd64: null", f"amd64: {NEW}"),
        ("amd64: ~ # none", f"amd64: {NEW} # none"),
        (f"amd64: {OLD}", f"amd64: {NEW}"),
        (f"amd64 :   {OLD}   # é", f"amd64 :   {NEW}   # é"),
        (f"'amd64': '{OLD}'", f"'amd64': '{NEW}'"),
        (f'"amd64": "{OLD}"', f'"amd64": "{NEW}"'),
        (f"amd64:\n      {OLD}", f"amd64:\n      {NEW}"),
        (f"? amd64\n    : {OLD}", f"? amd64\n    : {NEW}"),
        (f"amd64: &one {OLD}", f"amd64: {NEW}"),
    ],
)
def test_a_value_takes_the_place_of_the_one_that_stood(tmp_path: Path, before: str, after: str) -> None:
    assert pinned(tmp_path, block(before, f"arm64: {OTHER}")) == block(after, f"arm64: {OTHER}")


@pytest.mark.parametrize("above", ["arm64:", f"arm64: {OLD}", f"arm64: {OLD}  # é", f"arm64:\n      {OLD}"])
def test_a_platform_without_a_line_gets_one_below_the_other(tmp_path: Path, above: str) -> None:
    text = f"{HEAD}  platforms:\n    {above}\n  pull_secret: ghcr\n{TAIL}"

    added = f"{HEAD}  platforms:\n    {above}\n    amd64: {NEW}\n  pull_secret: ghcr\n{TAIL}"

    assert pinned(tmp_path, text) == added


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("{amd64: , arm64: }", f'{{amd64:  "{NEW}", arm64: }}'),
        ("{amd64: null}", f'{{amd64: "{NEW}"}}'),
        (f"{{amd64: {OLD}}}", f'{{amd64: "{NEW}"}}'),
        (f"{{ arm64: '{OTHER}' }}", f'{{"amd64": "{NEW}",  arm64: \'{OTHER}\' }}'),
        ("{}", f'{{"amd64": "{NEW}"}}'),
        ("{ }", f'{{"amd64": "{NEW}" }}'),
    ],
)
def test_braces_are_edited_inside(tmp_path: Path, before: str, after: str) -> None:
    text = pinned(tmp_path, f"{HEAD}  platforms: {before}\n{TAIL}")

    assert " ".join(text.split()) == " ".join(f"{HEAD}  platforms: {after}\n{TAIL}".split())
    assert registry.load(tmp_path, REF).pins[AMD64] == NEW


def test_json_stays_json(tmp_path: Path) -> None:
    write(tmp_path, block("amd64:"))
    spec = registry.load(tmp_path, REF)
    build = {"context": spec.build.context, "dockerfile": spec.build.dockerfile}
    image = {"repository": spec.repository, "platforms": {"arm64": None}}
    text = json.dumps({"schema": 1, **spec.document, "image": image, "build": build}, indent=1)

    image["platforms"] = {"amd64": str(NEW), "arm64": None}

    assert json.loads(pinned(tmp_path, text))["image"] == image


def test_a_file_without_a_last_line_end_gets_none(tmp_path: Path) -> None:
    text = f"schema: 1\nref: llm/echo@3\n{TAIL}image:\n  repository: ghcr.io/org/llm-echo\n  platforms:\n    arm64:"

    assert pinned(tmp_path, text) == f"{text}\n    amd64: {NEW}"


COMMENTS = st.sampled_from(["", "  # é: ¼ {[", " #\t'"])
VALUES = st.sampled_from(["", " null", " ~", f" {OLD}", f" '{OLD}'", f' "{OLD}"', f"\n{' ' * 9}{OLD}"])
LINES = st.sampled_from(["", "# é: a comment\n", "\n", "   \n"])


@st.composite
def layouts(draw: st.DrawFn) -> str:
    """A good registry.yaml, as people and editors write it."""
    names = draw(st.sampled_from([["amd64", "arm64"], ["arm64", "amd64"], ["amd64"], ["arm64"]]))
    indent = " " * draw(st.integers(2, 7))
    entries = "".join(f"{draw(LINES)}{indent}{name}:{draw(VALUES)}{draw(COMMENTS)}\n" for name in names)
    parts = [
        f" repository: ghcr.io/org/llm-echo{draw(COMMENTS)}\n",
        f" platforms:{draw(COMMENTS)}\n{entries}",
        draw(st.sampled_from([" pull_secret: x\n", ""])),
    ]
    image = f"image:{draw(COMMENTS)}\n" + "".join(draw(st.permutations(parts)))
    start = draw(st.sampled_from(["", "# é\n", "%YAML 1.2\n---\n", "---\n"]))
    text = start + "".join(draw(st.permutations(["schema: 1\nref: llm/echo@3\n", image, TAIL])))
    text = text if draw(st.booleans()) else text.rstrip("\n \t")
    return draw(st.sampled_from(["\n", "\r\n"])).join(text.split("\n"))


@given(text=layouts(), platform=st.sampled_from(PLATFORMS))
def test_every_other_byte_stays_whatever_the_layout(
    tmp_path_factory: pytest.TempPathFactory, text: str, platform: Platform
) -> None:
    root = tmp_path_factory.getbasetemp() / "layouts"
    write(root, text)
    before = registry.load(root, REF)

    after = pinned(root, text, platform)

    assert registry.load(root, REF).pins == {**before.pins, platform: NEW}
    old, new = text.splitlines(keepends=True), after.splitlines(keepends=True)
    if len(old) == len(new):
        assert sum(one != other for one, other in zip(old, new, strict=True)) == 1
    else:
        (added,) = [line for line in new if str(NEW) in line]
        whole = "".join(line for line in new if line is not added)
        assert whole == text or (whole.rstrip("\r\n") == text and new[-1] is added)
        assert added.endswith("\r\n" if "\r\n" in text else "\n") or new[-1] is added


# what it says, and what it leaves alone


def test_the_pin_that_stood_is_told(tmp_path: Path) -> None:
    write(tmp_path, block(f"amd64: {OLD}"))

    assert [registry.pin(tmp_path, REF, each, NEW) for each in (AMD64, ARM64, AMD64)] == [OLD, None, NEW]


def test_a_pin_that_stands_already_leaves_the_file_untouched(tmp_path: Path) -> None:
    path = write(tmp_path, block(f"amd64: '{NEW}'"))
    before = path.stat()

    registry.pin(tmp_path, REF, AMD64, NEW)

    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("mode", [0o644, 0o664, 0o600, 0o755])
def test_the_mode_stays(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path, block("amd64:"))
    path.chmod(mode)

    registry.pin(tmp_path, REF, AMD64, NEW)

    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone may give a file away")
def test_the_owner_stays(tmp_path: Path) -> None:
    path = write(tmp_path, block("amd64:"))
    os.chown(path, 12345, 54321)

    registry.pin(tmp_path, REF, AMD64, NEW)

    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 54321)


def test_a_link_stays_a_link_and_what_it_leads_to_is_changed(tmp_path: Path) -> None:
    path = write(tmp_path, block("amd64:"))
    target = path.rename(path.with_name("real.yaml"))
    path.symlink_to("real.yaml")

    registry.pin(tmp_path, REF, AMD64, NEW)

    assert path.is_symlink()
    assert target.read_text() == block(f"amd64: {NEW}")


def test_nothing_but_the_file_is_in_its_folder_afterwards(tmp_path: Path) -> None:
    path = write(tmp_path, block("amd64:"))

    registry.pin(tmp_path, REF, AMD64, NEW)

    assert os.listdir(path.parent) == ["registry.yaml"]


# what it refuses, the file as it was


@pytest.mark.parametrize(
    ("platforms", "found"),
    [
        (f"\n    amd64: >-\n      {OLD}\n", "one on several"),
        (f'\n    amd64: "{str(OLD)[:20]}\\\n      {str(OLD)[20:]}"\n', "one on several"),
        (f"\n    amd64: &one {OLD}\n    arm64: *one\n", "an anchor or another form"),
        ("\n    ? arm64\n    : \n", "something else on that line"),
        (" &all {arm64: }\n", "something else on that line"),
    ],
)
def test_a_form_that_one_line_cannot_change_is_refused_with_its_place(
    tmp_path: Path, platforms: str, found: str
) -> None:
    text = f"{HEAD}  platforms:{platforms}{TAIL}"
    path = write(tmp_path, text)

    with pytest.raises(InvalidRegistry) as caught:
        registry.pin(tmp_path, REF, AMD64, NEW)

    (finding,) = caught.value.details["findings"]
    assert finding["found"] == found
    assert finding["path"].startswith("$.image.platforms")
    assert finding["file"] == "registry/llm/echo/3/registry.yaml"
    assert finding["line"] >= 5
    assert path.read_text() == text


def test_platforms_that_are_an_alias_get_no_line(tmp_path: Path) -> None:
    tail = TAIL.replace("examples: [{}]", "examples: [{}], default: &all {arm64: }")
    write(tmp_path, f"{tail}{HEAD}  platforms: *all\n")

    with pytest.raises(InvalidRegistry, match="one line a platform, found an alias"):
        registry.pin(tmp_path, REF, AMD64, NEW)


@pytest.mark.parametrize("platforms", ["", "  platforms:\n", "  platforms: []\n", "  platforms:\n    amd64: 1\n"])
def test_a_wrong_file_is_refused_as_everywhere(tmp_path: Path, platforms: str) -> None:
    path = write(tmp_path, f"{HEAD}{platforms}{TAIL}")

    with pytest.raises(InvalidRegistry, match="platforms"):
        registry.pin(tmp_path, REF, AMD64, NEW)

    assert path.read_text() == f"{HEAD}{platforms}{TAIL}"


def test_an_unknown_ref_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(RefNotFound, match="no processor llm/echo@3"):
        registry.pin(tmp_path, REF, AMD64, NEW)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    yield from small_disk(tmp_path / "disk", size="64k")


def test_a_full_disk_leaves_the_file_as_it_was(disk: Path) -> None:
    path = write(disk, block("amd64:"))
    filler = disk / "filler"
    with pytest.raises(OSError, match="No space"):
        filler.write_bytes(bytes(1024 * 1024))

    with pytest.raises(StorageFailed, match="can't be written: No space left on device"):
        registry.pin(disk, REF, AMD64, NEW)

    assert path.read_text() == block("amd64:")
    assert os.listdir(path.parent) == ["registry.yaml"]


# many at once

_PIN = """
import sys
from pathlib import Path
from apps.processors import pinning
from apps.processors.reference import ImageReference, Platform, ProcessorRef
from apps.processors.state import LocalState
root, ref, platform, image = sys.argv[1:]
asked = pinning.Asked(ProcessorRef.parse(ref), Platform.parse(platform), ImageReference.parse(image))
state = LocalState(Path(root, "code/.theory"))
pinning.pin(asked, root=Path(root), prefix=None, state=state, images_at=None, warn=print)
"""


def test_of_forty_pins_at_once_none_is_lost(tmp_path: Path) -> None:
    wanted = {}
    for number in range(20):
        ref = ProcessorRef("llm", f"n{number}", 1)
        path = tmp_path / f"registry/llm/{ref.name}/1/registry.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(block("amd64:").replace("llm/echo@3", str(ref)))
        for platform in PLATFORMS:
            digest = f"sha256:{number:02}{platform.architecture.encode().hex()}".ljust(71, "0")
            wanted[ref, platform] = ImageReference("ghcr.io/org/llm-echo", digest)

    pins = [
        subprocess.Popen([sys.executable, "-c", _PIN, *map(str, (tmp_path, ref, platform, image))], cwd=PROJECT)
        for (ref, platform), image in wanted.items()
    ]

    assert [each.wait(60) for each in pins] == [0] * 40
    assert {(ref, each): registry.load(tmp_path, ref).pins[each] for ref, each in wanted} == wanted
