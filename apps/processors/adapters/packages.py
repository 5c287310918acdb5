"""What package databases inside an image say: Python distributions, Debian packages, the operating system."""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser
from typing import Final

_DISTRIBUTION: Final = re.compile(r"(.*/)?[^/]+(\.dist-info/METADATA|\.egg-info/PKG-INFO)")
_DPKG: Final = "var/lib/dpkg/status"
_RELEASES: Final = ("etc/os-release", "usr/lib/os-release")

_HEADER_BYTES: Final = 256 * 1024  # what follows them is the project's description
_DATABASE_BYTES: Final = 64 * 1024**2


@dataclass(frozen=True, slots=True, order=True)
class Package:
    """Something that was installed by a package manager."""

    kind: str
    """pypi or deb, as in a package URL."""
    name: str
    version: str
    licences: tuple[str, ...] = ()
    """SPDX where the package says it so, else as it calls them; one of several applies."""
    architecture: str = ""
    place: str = ""
    """The file that tells of it."""


def wanted(path: str) -> int:
    """How many bytes of the file are needed to know what is installed."""
    if path == _DPKG or path.startswith(f"{_DPKG}.d/"):
        return _DATABASE_BYTES
    if path in _RELEASES or _DISTRIBUTION.fullmatch(path):
        return _HEADER_BYTES
    return 0


def installed(files: Mapping[str, bytes]) -> list[Package]:
    """All packages, in order. One that is there twice is named twice, by its places."""
    found = [*_python(files), *_debian(files)]
    return sorted(found)


def system(files: Mapping[str, bytes]) -> Mapping[str, str]:
    """os-release's words, e.g. ID, VERSION_ID; none when the image does not say.

    Source: https://www.freedesktop.org/software/systemd/man/latest/os-release.html
    """
    text = next((files[path] for path in _RELEASES if path in files), b"").decode("utf-8", errors="replace")
    words = (line.partition("=") for line in text.splitlines() if re.match(r"[A-Z0-9_]+=", line))
    return {name: "".join(_unquoted(value)) for name, _, value in words}


def _unquoted(value: str) -> list[str]:
    try:
        return shlex.split(value)[:1]
    except ValueError:  # an open quote
        return [value]


def _python(files: Mapping[str, bytes]) -> Iterator[Package]:
    """Source: https://packaging.python.org/en/latest/specifications/core-metadata/"""
    for path, data in files.items():
        if _DISTRIBUTION.fullmatch(path):
            headers = HeaderParser().parsestr(data.decode("utf-8", errors="replace"))
            name, version = str(headers["Name"] or ""), str(headers["Version"] or "")
            if name and version:
                yield Package("pypi", name, version, tuple(_licences(headers)), place=path)


def _licences(headers: Message) -> list[str]:
    if expression := headers["License-Expression"]:
        return [str(expression)]
    classifiers = (str(each).split(" :: ") for each in headers.get_all("Classifier", ()))
    named = sorted({words[-1] for words in classifiers if words[0] == "License" and len(words) > 2})
    words = str(headers["License"] or "").strip()
    # The field was made for a word, and many put the whole text there.
    return named or ([words] if words and len(words) <= 100 and "\n" not in words and words != "UNKNOWN" else [])


def _debian(files: Mapping[str, bytes]) -> Iterator[Package]:
    """Of dpkg's one file, or of one file a package, as images without dpkg have them.

    Source: deb-control(5), and dpkg-query(1) for Status
    """
    for path, data in files.items():
        if not path.startswith(_DPKG) or path.endswith(".md5sums"):
            continue
        for stanza in re.split(r"\n\s*\n", data.decode("utf-8", errors="replace")):
            fields = dict(re.findall(r"^([A-Za-z-]+):[ \t]*(.*)$", stanza, flags=re.MULTILINE))
            state = fields.get("Status", "install ok installed").split()
            if fields.get("Package") and fields.get("Version") and state[-1] == "installed":
                yield Package(
                    "deb",
                    fields["Package"].strip(),
                    fields["Version"].strip(),
                    architecture=fields.get("Architecture", "").strip(),
                    place=path,
                )
