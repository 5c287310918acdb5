"""What of BuildKit's provenance may leave this machine: names, never values; equal bytes for equal builds."""

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote, urlencode

from apps.processors.withheld import PUBLIC, WITHHELD, Reference, Withheld, familiar

SLSA: Final = "https://slsa.dev/provenance/v0.2"
"""The one predicate that is known here."""

_STATEMENT: Final = "https://in-toto.io/Statement/v0.1"
_BUILDKIT: Final = "https://mobyproject.org/buildkit@v1"
_DIGEST: Final = re.compile(r"[0-9a-f]{64}|sha256:[0-9a-f]{64}")
_IMAGE: Final = "docker-image://"


def scrub(
    statement: Mapping[str, Any],
    *,
    name: str,
    digest: str,
    revision: str | None = None,
    secrets: Sequence[str] = (),
    paths: Sequence[str] = (),
) -> dict[str, Any]:
    """BuildKit's provenance of one image, without what it must not tell.

    Kept: the steps, the Dockerfile, base images by the name that the Dockerfile has for them, digests, the names of
    build arguments, variables, contexts and secrets, the values of labels (the image shows them) and of
    SOURCE_DATE_EPOCH. Not kept: any other value, the address of a mirror, folders of this machine, the git checkout
    (its remote, its newest commit), whatever is not known here; and what differs between two equal builds: times,
    the invocation's id, BuildKit's own digests of steps.

    Args:
        statement: an in-toto statement with SLSA provenance v0.2, BuildKit's mode=max or min.
        name: the subject, a package URL.
        digest: of the image's manifest.
        revision: of the last commit that touched what the image is made from.
        secrets: values that must not appear, even where the Dockerfile or a label holds one.
        paths: folders of this machine.

    Raises:
        ValueError: another predicate.

    Source: https://slsa.dev/spec/v0.2/provenance, https://docs.docker.com/build/metadata/attestations/slsa-definitions/
    """
    if statement.get("predicateType") != SLSA:
        raise ValueError(f"{statement.get('predicateType')} is no {SLSA}")
    arguments = statement["predicate"].get("invocation", {}).get("parameters", {}).get("args") or {}
    withheld = Withheld.of({str(key): str(value) for key, value in arguments.items()}, secrets, paths)
    predicate = _kept(withheld, statement["predicate"], _PREDICATE)
    _complete(predicate, revision)
    return {
        "_type": _STATEMENT,
        "predicateType": SLSA,
        "subject": [{"name": name, "digest": {"sha256": digest.removeprefix("sha256:")}}],
        "predicate": predicate,
    }


def write(statement: Mapping[str, Any]) -> bytes:
    """The bytes that are stored."""
    return json.dumps(statement, separators=(",", ":"), ensure_ascii=False).encode()


def _complete(predicate: dict[str, Any], revision: str | None) -> None:
    """Say what is missing now, and the revision."""
    arguments = predicate.get("invocation", {}).get("parameters", {}).get("args", {})
    metadata = predicate.setdefault("metadata", {})
    if WITHHELD in arguments.values():
        metadata.setdefault("completeness", {})["parameters"] = False
    if revision:
        metadata.setdefault(f"{_BUILDKIT}#metadata", {})["vcs"] = {"revision": revision}


# What is kept: a shape is a rule, [shape of each item], {key: shape of its value} or {"*": shape of every value}.

_Rule = Callable[[Withheld, Any], Any]


def _kept(withheld: Withheld, value: Any, shape: Any) -> Any:
    if callable(shape):
        return shape(withheld, value)
    if isinstance(shape, list):
        return [_kept(withheld, item, shape[0]) for item in value] if isinstance(value, list) else []
    if not isinstance(value, Mapping):
        return None
    if "*" in shape:
        return {withheld.clean(key): _kept(withheld, value[key], shape["*"]) for key in sorted(value)}
    return {key: _kept(withheld, value[key], inner) for key, inner in shape.items() if key in value}


def _plain(withheld: Withheld, value: Any) -> Any:
    if isinstance(value, str):
        return withheld.clean(value)
    return value if isinstance(value, int | float) else None


def _digest(withheld: Withheld, value: Any) -> Any:
    return value if isinstance(value, str) and _DIGEST.fullmatch(value) else None


def _variable(withheld: Withheld, value: Any) -> str:
    """NAME=value → NAME."""
    return withheld.clean(str(value).partition("=")[0])


def _arguments(withheld: Withheld, value: Any) -> dict[str, str]:
    return {
        withheld.clean(name): withheld.clean(str(value[name]))
        if name.startswith("label:") or name in PUBLIC
        else WITHHELD
        for name in sorted(value)
        if name != "frontend.caps"  # what BuildKit's parts agree on between themselves
    }


def _uri(withheld: Withheld, value: Any) -> str:
    """Of a material: an image's package URL, or an address without its query, which may hold a token."""
    text, _, query = str(value).partition("?")
    if not text.startswith("pkg:docker/"):
        return withheld.clean(text)
    repository, _, tag = text.removeprefix("pkg:docker/").partition("@")
    more = dict(parse_qsl(query))
    used = Reference(familiar(unquote(repository)), unquote(tag), more.pop("digest", ""))
    name = withheld.name(used) or used
    more = {"platform": more["platform"]} if "platform" in more else {}
    if name.digest:
        more = {"digest": name.digest, **more}
    version = f"@{quote(name.tag)}" if name.tag else ""
    return withheld.clean(f"pkg:docker/{quote(name.repository)}{version}{'?' if more else ''}{urlencode(more)}")


def _source(withheld: Withheld, value: Any) -> str:
    """Of a step: where BuildKit takes something from."""
    text = str(value)
    if not text.startswith(_IMAGE):
        return withheld.clean(text.partition("?")[0])
    used = Reference.parse(text.removeprefix(_IMAGE))
    name = withheld.name(used) or used
    return _IMAGE + withheld.clean(str(Reference(name.repository, name.tag, name.digest or used.digest)))


def _file(withheld: Withheld, value: Any) -> str:
    """A Dockerfile's text, in base64."""
    try:
        text = base64.b64decode(str(value), validate=True).decode("utf-8", errors="replace")
    except (binascii.Error, ValueError):
        return ""
    return base64.b64encode(withheld.clean(text).encode()).decode()


def _keys(text: str, shape: Any = _plain) -> dict[str, Any]:
    return dict.fromkeys(text.split(), shape)


_PLATFORM: Final = _keys("Architecture OS Variant")
_COPY: Final = _keys(
    "src dest owner mode modeStr followSymlink dirCopyContents attemptUnpackDockerCompatibility createDestPath"
    " allowWildcard allowEmptyWildcard timestamp alwaysReplaceExistingDestPaths"
) | {"includePatterns": [_plain], "excludePatterns": [_plain]}
_ACTION: Final = {
    "copy": _COPY,
    "mkfile": _keys("path mode timestamp"),  # its data has the values of build arguments
    "mkdir": _keys("path mode makeParents timestamp"),
    "rm": _keys("path allowNotFound allowWildcard"),
    "symlink": _keys("oldpath newpath timestamp"),
}
_MOUNT: Final = _keys("input selector dest output readonly mountType") | {
    "cacheOpt": _keys("ID sharing"),
    "secretOpt": _keys("ID uid gid mode optional"),
    "SSHOpt": _keys("ID uid gid mode optional"),
    "TmpfsOpt": _keys("size"),
}
_EXEC: Final = _keys("network security") | {
    "meta": _keys("cwd user hostname removeMountStubsRecursive") | {"args": [_plain], "env": [_variable]},
    "mounts": [_MOUNT],
    "secretenv": [_keys("ID name optional")],
}
_ATTRIBUTES: Final = _keys("local.followpaths local.includepatterns local.excludepatterns http.checksum http.filename")
_OPERATION: Final = {
    "source": {"identifier": _source, "attrs": _ATTRIBUTES},
    "exec": _EXEC,
    "file": {"actions": [_keys("input secondaryInput output") | {"Action": _ACTION}]},
    "merge": {"inputs": [_keys("input")]},
    "diff": {"lower": _keys("input"), "upper": _keys("input")},
}
_STEP: Final = {"id": _plain, "op": {"Op": _OPERATION, "platform": _PLATFORM}, "inputs": [_plain]}
_RANGE: Final = {"start": _keys("line character"), "end": _keys("line character")}
_PREDICATE: Final = {
    "builder": {"id": _plain},
    "buildType": _plain,
    "materials": [{"uri": _uri, "digest": {"*": _digest}}],
    "invocation": {
        "configSource": {"entryPoint": _plain},
        "parameters": {
            "frontend": _plain,
            "args": _arguments,
            "secrets": [_keys("id optional")],
            "ssh": [_keys("id optional")],
            "locals": [_keys("name")],
        },
        "environment": {"platform": _plain},
    },
    "buildConfig": {"llbDefinition": [_STEP]},
    "metadata": {
        "completeness": _keys("parameters environment materials"),
        "reproducible": _plain,
        f"{_BUILDKIT}#hermetic": _plain,
        f"{_BUILDKIT}#metadata": {
            "source": {
                "locations": {"*": {"locations": [{"sourceIndex": _plain, "ranges": [_RANGE]}]}},
                "infos": [{"filename": _plain, "language": _plain, "data": _file}],
            },
            "layers": {"*": [[{"mediaType": _plain, "digest": _digest, "size": _plain}]]},
        },
    },
}
