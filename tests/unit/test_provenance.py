"""What is left of BuildKit's provenance: buildkit_provenance.json is its own, of a small image on a mirror."""

import base64
import copy
import json
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.processors import provenance
from apps.processors.withheld import Reference, Withheld

REAL = json.loads(Path(__file__).with_name("buildkit_provenance.json").read_text("utf-8"))
NAME, DIGEST = "pkg:oci/x?arch=amd64", f"sha256:{'a' * 64}"
BASE = "8e49a5d8b94cefca0f989046f1d2db379a63c1c29bd0925ae9d08d911d03306c"
METADATA = "https://mobyproject.org/buildkit@v1#metadata"


def scrubbed(statement: Mapping[str, Any] = REAL, **more: Any) -> dict[str, Any]:
    return provenance.scrub(statement, name=NAME, digest=DIGEST, **more)


def told(statement: Mapping[str, Any]) -> str:
    """All that a reader can find in it: names, strings, and what is in base64."""
    found = json.dumps(statement, ensure_ascii=False)
    for info in statement["predicate"].get("metadata", {}).get(METADATA, {}).get("source", {}).get("infos", ()):
        found += base64.b64decode(info["data"]).decode()
    return found


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where strings are."""
    if isinstance(value, str):
        yield path
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def with_argument(name: str, value: str, statement: Mapping[str, Any] = REAL) -> dict[str, Any]:
    changed = copy.deepcopy(dict(statement))
    changed["predicate"]["invocation"]["parameters"]["args"][name] = value
    return changed


def arguments(statement: Mapping[str, Any]) -> dict[str, str]:
    return dict(statement["predicate"]["invocation"]["parameters"]["args"])


def on(host: str) -> dict[str, Any]:
    """The real one, had the mirror been at `host`."""
    text = json.dumps(REAL).replace("localhost:5000", host).replace("localhost%3A5000", host.replace(":", "%3A"))
    return dict(json.loads(text))


PLACES = sorted(places(REAL["predicate"]), key=str)
SECRETS = st.text(st.characters(categories=("L", "N", "P"), exclude_characters='"\\'), min_size=8, max_size=40).map(
    lambda text: f"s3cr3t{text}"
)


@given(
    secret=SECRETS, place=st.sampled_from(PLACES), around=st.sampled_from(["{}", "x={}", "--token {} y", "https://{}/"])
)
def test_a_secret_never_survives_wherever_it_stands(secret: str, place: tuple[Any, ...], around: str) -> None:
    planted = copy.deepcopy(REAL)
    at(planted["predicate"], place[:-1])[place[-1]] = around.format(secret)

    assert secret not in told(scrubbed(planted, secrets=[secret]))


@given(secret=SECRETS, place=st.sampled_from(PLACES))
def test_a_secret_never_survives_as_a_name(secret: str, place: tuple[Any, ...]) -> None:
    planted = copy.deepcopy(REAL)
    parent = at(planted["predicate"], place[:-1])
    if isinstance(parent, MutableMapping):
        parent[secret] = parent[place[-1]]

    assert secret not in told(scrubbed(planted, secrets=[secret]))


@given(secret=SECRETS, place=st.sampled_from(PLACES))
def test_the_value_of_a_build_argument_never_survives_though_nobody_says_that_it_is_secret(
    secret: str, place: tuple[Any, ...]
) -> None:
    planted = with_argument("build-arg:HTTPS_PROXY", secret)
    at(planted["predicate"], place[:-1])[place[-1]] = f"x {secret} y"

    assert secret not in told(scrubbed(planted))


HOSTS = st.builds(
    "{}.{}.example{}".format,
    st.text("abcdefghij", min_size=3, max_size=12),
    st.sampled_from(["mirror", "corp", "internal"]),
    st.sampled_from(["", ":5000", ":8443"]),
)


@given(host=HOSTS, place=st.sampled_from(PLACES))
def test_a_mirrors_address_never_survives(host: str, place: tuple[Any, ...]) -> None:
    planted = on(host)
    if place[-2:-1] != ("args",):
        at(planted["predicate"], place[:-1])[place[-1]] = f"see {host}/base/python"

    assert host.partition(":")[0] not in told(scrubbed(planted))


@given(host=HOSTS)
def test_where_the_mirror_is_changes_no_byte(host: str) -> None:
    assert provenance.write(scrubbed(on(host))) == provenance.write(scrubbed())


@given(
    path=st.builds("/{}/{}/checkout".format, st.sampled_from(["home", "srv"]), st.text("klmnop", min_size=4)),
    place=st.sampled_from(PLACES),
)
def test_a_folder_of_this_machine_never_survives(path: str, place: tuple[Any, ...]) -> None:
    planted = copy.deepcopy(REAL)
    at(planted["predicate"], place[:-1])[place[-1]] = f"{path}/code"

    assert path not in told(scrubbed(planted, paths=[path]))


@given(place=st.sampled_from(PLACES))
def test_what_is_not_known_is_not_kept(place: tuple[Any, ...]) -> None:
    planted = copy.deepcopy(REAL)
    parent = at(planted["predicate"], place[:-1])
    known = place[-2:-1] in (("args",), ("digest",), ("locations",), ("layers",))  # whose keys are names themselves
    if isinstance(parent, MutableMapping) and not known:
        parent["novelty"] = {"of": ["tomorrow's BuildKit"]}

    assert "tomorrow" not in told(scrubbed(planted))


def test_the_base_image_is_named_as_the_dockerfile_names_it() -> None:
    (material,) = scrubbed()["predicate"]["materials"]

    assert material == {"uri": "pkg:docker/python@3.13-slim?platform=linux%2Famd64", "digest": {"sha256": BASE}}


def test_a_mirror_that_is_named_by_digest_gives_the_same_material() -> None:
    pinned = on("localhost:5000")
    pinned["predicate"]["materials"][0]["uri"] = (
        f"pkg:docker/localhost%3A5000/base/python?digest=sha256:{BASE}&platform=linux%2Famd64"
    )
    pinned = with_argument(
        "context:python:3.13-slim", f"docker-image://localhost:5000/base/python@sha256:{BASE}", pinned
    )

    assert scrubbed(pinned)["predicate"]["materials"] == scrubbed()["predicate"]["materials"]


def test_without_a_mirror_the_material_is_the_same() -> None:
    text = json.dumps(REAL).replace("localhost:5000/base/python", "docker.io/library/python")
    direct = json.loads(text.replace("localhost%3A5000/base/python", "python"))

    assert scrubbed(direct)["predicate"]["materials"] == scrubbed()["predicate"]["materials"]


def test_a_base_image_that_no_context_replaces_keeps_its_name_and_registry() -> None:
    plain = copy.deepcopy(REAL)
    uri = "pkg:docker/ghcr.io/org/base@2?platform=linux%2Farm64"
    plain["predicate"]["materials"].append({"uri": uri, "digest": {"sha256": BASE}})

    assert scrubbed(plain)["predicate"]["materials"][1] == {"uri": uri, "digest": {"sha256": BASE}}


def test_a_step_takes_the_base_image_by_its_written_name() -> None:
    step = scrubbed()["predicate"]["buildConfig"]["llbDefinition"][0]

    assert step["op"]["Op"]["source"]["identifier"] == "docker-image://python:3.13-slim"


def test_an_address_loses_its_login_and_its_query() -> None:
    planted = copy.deepcopy(REAL)
    uri = "https://me:hunter2@files.example.org/model.bin?signature=abc"
    planted["predicate"]["materials"][0]["uri"] = uri
    planted["predicate"]["buildConfig"]["llbDefinition"][0]["op"]["Op"]["source"]["identifier"] = uri

    predicate = scrubbed(planted)["predicate"]

    found = predicate["materials"][0]["uri"], predicate["buildConfig"]["llbDefinition"][0]["op"]["Op"]["source"]
    assert found == (
        "https://***@files.example.org/model.bin",
        {"identifier": "https://***@files.example.org/model.bin"},
    )


def test_names_of_arguments_stay_and_their_values_do_not() -> None:
    found = arguments(scrubbed(with_argument("label:theory.ref", "llm/litellm@1")))

    assert found == {
        "build-arg:SOURCE_DATE_EPOCH": "5",
        "build-arg:TOKEN": "***",
        "context:python:3.13-slim": "***",
        "label:theory.ref": "llm/litellm@1",  # the image shows it to whoever has it
    }


def test_names_of_variables_and_secrets_stay() -> None:
    predicate = scrubbed()["predicate"]

    step = predicate["buildConfig"]["llbDefinition"][3]["op"]["Op"]["exec"]
    assert step["meta"]["env"] == ["PATH", "LANG", "SOURCE_DATE_EPOCH", "TOKEN"]
    assert [secret["id"] for secret in predicate["invocation"]["parameters"]["secrets"]] == ["ca", "pip_conf"]


def test_parameters_are_not_called_complete_once_values_are_gone() -> None:
    assert REAL["predicate"]["metadata"]["completeness"]["parameters"] is True
    assert scrubbed()["predicate"]["metadata"]["completeness"]["parameters"] is False


def test_the_dockerfile_can_still_be_read() -> None:
    (info,) = scrubbed()["predicate"]["metadata"][METADATA]["source"]["infos"]

    assert (
        base64.b64decode(info["data"]).decode().startswith("FROM --platform=$BUILDPLATFORM python:3.13-slim AS made\n")
    )


def test_equal_builds_give_equal_bytes() -> None:
    later = copy.deepcopy(REAL)
    later["predicate"]["metadata"] |= {
        "buildInvocationID": "another",
        "buildStartedOn": "2030-01-01T00:00:00Z",
        "buildFinishedOn": "2030-01-01T00:00:01Z",
    }
    later["predicate"]["metadata"][METADATA]["vcs"] = {"localdir:context": "../x", "revision": "f" * 40 + "-dirty"}

    assert provenance.write(scrubbed(later)) == provenance.write(scrubbed())


def test_the_revision_is_the_one_that_made_the_image() -> None:
    assert scrubbed(revision="b" * 40)["predicate"]["metadata"][METADATA]["vcs"] == {"revision": "b" * 40}


def test_the_statement_is_about_the_image() -> None:
    assert scrubbed()["subject"] == [{"name": NAME, "digest": {"sha256": "a" * 64}}]


def test_another_predicate_is_refused() -> None:
    with pytest.raises(ValueError, match="provenance/v1 is no"):
        scrubbed({**REAL, "predicateType": "https://slsa.dev/provenance/v1"})


def test_what_a_file_of_a_step_holds_is_not_kept() -> None:
    planted = copy.deepcopy(REAL)
    action = planted["predicate"]["buildConfig"]["llbDefinition"][2]["op"]["Op"]["file"]["actions"][0]
    action["Action"] = {"mkfile": {"path": "/app.ini", "mode": 420, "data": base64.b64encode(b"token").decode()}}

    step = scrubbed(planted)["predicate"]["buildConfig"]["llbDefinition"][2]["op"]["Op"]["file"]["actions"][0]

    assert step["Action"] == {"mkfile": {"path": "/app.ini", "mode": 420}}


@pytest.mark.parametrize(
    ("text", "repository", "tag", "host"),
    [
        ("python:3.13-slim", "python", "3.13-slim", ""),
        ("docker.io/library/python:3.13-slim", "python", "3.13-slim", ""),
        ("localhost:5000/base/python", "localhost:5000/base/python", "", "localhost:5000"),
        (f"ghcr.io/org/x:1@sha256:{BASE}", "ghcr.io/org/x", "1", "ghcr.io"),
        ("org/x", "org/x", "", ""),
    ],
)
def test_an_images_name_is_taken_apart(text: str, repository: str, tag: str, host: str) -> None:
    found = Reference.parse(text)

    assert (found.repository, found.tag, found.host) == (repository, tag, host)


def test_of_two_names_for_one_mirror_the_one_with_the_same_tag_is_meant() -> None:
    contexts = {
        "context:python:3.12": "docker-image://m.example/python:3.12",
        "context:python:3.13": "docker-image://m.example/python:3.13",
    }

    found = Withheld.of(contexts, (), ()).name(Reference.parse("m.example/python:3.13"))

    assert str(found) == "python:3.13"


def test_a_short_value_blacks_nothing_out() -> None:
    planted = with_argument("build-arg:DEBUG", "slim")

    assert scrubbed(planted)["predicate"]["materials"] == scrubbed()["predicate"]["materials"]
