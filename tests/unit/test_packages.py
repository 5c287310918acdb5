"""What package databases say: real forms of METADATA, dpkg's status and os-release."""

import pytest

from apps.processors.adapters import packages
from apps.processors.adapters.packages import Package

STATUS = b"""\
Package: libc6
Status: install ok installed
Architecture: amd64
Multi-Arch: same
Source: glibc
Version: 2.41-12
Description: GNU C Library: Shared libraries
 Contains the standard libraries.
 Version: this is no field

Package: removed
Status: deinstall ok config-files
Architecture: amd64
Version: 1.0

Package: tzdata
Status: install ok installed
Architecture: all
Version: 2025b-4+deb13u1
"""


def metadata(*lines: str) -> dict[str, bytes]:
    return {
        "deps/x-1.dist-info/METADATA": "\n".join(["Metadata-Version: 2.4", "Name: x", "Version: 1", *lines]).encode()
    }


def test_a_python_distribution_is_found_by_its_metadata() -> None:
    assert packages.installed(metadata()) == [Package("pypi", "x", "1", place="deps/x-1.dist-info/METADATA")]


def test_a_description_is_not_read_as_headers() -> None:
    (found,) = packages.installed(metadata("", "Name: y", "Version: 2", "License: GPL"))

    assert (found.name, found.version, found.licences) == ("x", "1", ())


@pytest.mark.parametrize(
    ("lines", "licences"),
    [
        (
            ["License-Expression: MIT AND BSD-3-Clause", "Classifier: License :: OSI Approved"],
            ("MIT AND BSD-3-Clause",),
        ),
        (["License: MIT", "Classifier: License :: OSI Approved :: MIT License"], ("MIT License",)),
        (["Classifier: License :: OSI Approved", "License: Apache-2.0"], ("Apache-2.0",)),
        (["Classifier: Programming Language :: Python", "License: UNKNOWN"], ()),
        (["License: Copyright", "        Permission is granted", "        to all"], ()),
        ([], ()),
    ],
)
def test_a_licence_is_what_the_distribution_says_best(lines: list[str], licences: tuple[str, ...]) -> None:
    (found,) = packages.installed(metadata(*lines))

    assert found.licences == licences


def test_metadata_without_a_version_is_no_distribution() -> None:
    assert packages.installed({"x.dist-info/METADATA": b"Name: x\n"}) == []


def test_packages_that_dpkg_has_installed_are_found() -> None:
    found = packages.installed({"var/lib/dpkg/status": STATUS})

    assert [(each.kind, each.name, each.version, each.architecture) for each in found] == [
        ("deb", "libc6", "2.41-12", "amd64"),
        ("deb", "tzdata", "2025b-4+deb13u1", "all"),
    ]


def test_packages_of_an_image_without_dpkg_are_found() -> None:
    files = {
        "var/lib/dpkg/status.d/base": b"Package: base-files\nVersion: 13.8\nArchitecture: amd64\n",
        "var/lib/dpkg/status.d/base.md5sums": b"0123  etc/x\n",
    }

    assert [each.name for each in packages.installed(files)] == ["base-files"]


def test_an_empty_database_has_no_packages() -> None:
    assert packages.installed({"var/lib/dpkg/status": b""}) == []


@pytest.mark.parametrize(
    "path",
    [
        "deps/x-1.dist-info/METADATA",
        "x.egg-info/PKG-INFO",
        "var/lib/dpkg/status",
        "var/lib/dpkg/status.d/libc6",
        "etc/os-release",
    ],
)
def test_what_tells_of_packages_is_wanted(path: str) -> None:
    assert packages.wanted(path) > 0


@pytest.mark.parametrize(
    "path", ["deps/x-1.dist-info/RECORD", "METADATA", "var/lib/dpkg/status-old", "app/handler.py", ""]
)
def test_nothing_else_is_wanted(path: str) -> None:
    assert packages.wanted(path) == 0


def test_the_system_is_what_os_release_says() -> None:
    text = b'ID=debian\nVERSION_ID="13"\n# a comment\nPRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nBROKEN="x\n'

    assert packages.system({"usr/lib/os-release": text}) == {
        "ID": "debian",
        "VERSION_ID": "13",
        "PRETTY_NAME": "Debian GNU/Linux 13 (trixie)",
        "BROKEN": '"x',
    }


def test_an_image_that_names_no_system_has_none() -> None:
    assert packages.system({}) == {}
