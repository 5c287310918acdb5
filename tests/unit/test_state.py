"""LocalState: ports, tokens, containers and builds survive two terminals, damage and a closed eye."""

import json
import stat
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from apps.errors import ConfigurationError
from apps.processors.reference import ProcessorRef
from apps.processors.state import (
    FIRST_PORT,
    LAST_PORT,
    BuildRecord,
    ContainerRecord,
    LocalState,
    PushedImage,
    PushRecord,
)

REF = ProcessorRef.parse("llm/litellm@1")
OTHER = ProcessorRef.parse("image/thumbnail@1")
BUILD = BuildRecord(
    engine="docker",
    platform="linux/amd64",
    tag="1-0123456789ab",
    source_digest="sha256:" + "a" * 64,
    digest="sha256:" + "b" * 64,
    image="sha256:" + "b" * 64,
    image_id="sha256:" + "b" * 64,
    size_bytes=1,
    pin=None,
    built_at="2026-01-01T00:00:00.000Z",
)
CONTAINER = ContainerRecord(
    engine="docker",
    id="abc",
    name="processor-llm-litellm-v1-00000000",
    port=18042,
    image_digest="sha256:" + "b" * 64,
    spec_digest="sha256:" + "c" * 64,
    source="build",
    platform="linux/amd64",
    secrets=("OPENAI_API_KEY",),
    secrets_hmac="00",
)


@pytest.fixture
def state(tmp_path: Path) -> LocalState:
    return LocalState(tmp_path / ".theory")


def anywhere(port: int) -> bool:
    return True


def allocate(folder: Path, number: int) -> int:
    return LocalState(folder).allocate_port(ProcessorRef("ns", "name", number), usable=anywhere)


def test_a_port_is_kept_for_its_ref(state: LocalState) -> None:
    port = state.allocate_port(REF, usable=anywhere)

    assert state.allocate_port(REF, usable=anywhere) == port
    assert FIRST_PORT <= port <= LAST_PORT
    assert json.loads((state.folder / "local_ports.json").read_text()) == {"llm/litellm@1": port}


def test_a_replaced_port_is_another_one_and_is_kept(state: LocalState) -> None:
    port = state.allocate_port(REF, usable=anywhere)

    new = state.allocate_port(REF, usable=lambda each: each != port, replace=True)

    assert new != port
    assert state.port(REF) == new


def test_twenty_processes_that_allocate_at_once_get_twenty_ports_and_lose_none(state: LocalState) -> None:
    with ProcessPoolExecutor(8) as pool:
        ports = list(pool.map(allocate, [state.folder] * 20, range(1, 21)))

    assert len(set(ports)) == 20
    assert sorted(json.loads((state.folder / "local_ports.json").read_text()).values()) == sorted(ports)


def test_no_port_left_is_a_configuration_error(state: LocalState) -> None:
    with pytest.raises(ConfigurationError, match="no free port"):
        state.allocate_port(REF, usable=lambda port: False)


def test_tokens_and_the_key_are_for_the_owner_alone(state: LocalState) -> None:
    state.new_token(REF)
    state.secrets_hmac({"A": "b"})

    for name in ("run_tokens.json", "secrets.key"):
        assert stat.S_IMODE((state.folder / name).stat().st_mode) == 0o600


def test_every_start_gets_a_new_token(state: LocalState) -> None:
    first = state.new_token(REF)
    second = state.new_token(REF)

    assert first != second
    assert state.token(REF) == second


def test_the_fingerprint_tells_values_apart_and_hides_them(state: LocalState) -> None:
    one = state.secrets_hmac({"A": "b"})

    assert one == LocalState(state.folder).secrets_hmac({"A": "b"})
    assert one != state.secrets_hmac({"A": "c"})
    assert one != LocalState(state.folder / "elsewhere").secrets_hmac({"A": "b"})


def test_a_container_is_remembered_and_forgotten_with_its_token(state: LocalState) -> None:
    port = state.allocate_port(REF, usable=anywhere)
    state.new_token(REF)
    state.record_container(REF, CONTAINER)
    state.record_container(OTHER, CONTAINER)

    assert state.container(REF) == CONTAINER
    state.forget_container(REF)

    assert state.container(REF) is None
    assert state.token(REF) is None
    assert state.port(REF) == port
    assert state.containers() == {str(OTHER): CONTAINER}


def test_a_new_build_replaces_the_one_of_its_platform_only(state: LocalState) -> None:
    arm = replace(BUILD, platform="linux/arm64")
    state.record_builds(REF, [BUILD, arm])
    newer = replace(BUILD, tag="1-ffffffffffff")

    state.record_builds(REF, [newer])

    assert set(state.builds(REF)) == {newer, arm}


def test_a_digest_that_a_push_told_stays_with_its_image_and_no_other(state: LocalState) -> None:
    untold = replace(BUILD, digest=None)
    state.record_builds(REF, [untold])
    state.record_digest(REF, untold, "sha256:" + "d" * 64)

    state.record_builds(REF, [replace(untold, built_at="2026-01-02T00:00:00.000Z")])
    (same,) = state.builds(REF)
    state.record_builds(REF, [replace(untold, image_id="sha256:" + "e" * 64)])
    (another,) = state.builds(REF)

    assert (same.digest, same.built_at[:10]) == ("sha256:" + "d" * 64, "2026-01-02")
    assert another.digest is None


def test_a_push_that_ends_after_a_newer_build_leaves_that_one_alone(state: LocalState) -> None:
    newer = replace(BUILD, digest=None, tag="1-ffffffffffff")
    state.record_builds(REF, [newer])

    state.record_digest(REF, replace(BUILD, digest=None), "sha256:" + "d" * 64)

    assert state.builds(REF) == (newer,)


def test_a_build_goes_by_its_digest_and_by_its_id() -> None:
    of_the_classic_store = replace(BUILD, digest=None)

    assert BUILD.identities == (BUILD.digest,)
    assert of_the_classic_store.identities == (BUILD.image_id,)
    assert replace(BUILD, digest="sha256:" + "d" * 64).identities == ("sha256:" + "d" * 64, BUILD.image_id)


def test_the_newest_push_of_a_ref_is_remembered(state: LocalState) -> None:
    image = PushedImage("linux/amd64", "sha256:" + "b" * 64, None, "sha256:" + "d" * 64, 4096)
    push = PushRecord("ghcr.io/org/x", "1-0123456789ab", "sha256:" + "e" * 64, (image,), "2026-01-01T00:00:00.000Z")
    state.record_push(REF, replace(push, tag="1-older"))
    state.record_push(OTHER, push)

    state.record_push(REF, push)

    assert (state.push(REF), state.push(OTHER)) == (push, push)
    assert state.push(ProcessorRef.parse("never/pushed@1")) is None


def test_a_container_of_an_earlier_version_was_not_forced(state: LocalState) -> None:
    document = CONTAINER.document()
    del document["forced"]

    assert ContainerRecord.read(document) == CONTAINER
    assert ContainerRecord.read(replace(CONTAINER, forced="pin").document()).forced == "pin"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 2}', "\0", "[" * 100_000])
def test_a_damaged_file_is_named_with_the_line_that_mends_it(state: LocalState, text: str) -> None:
    state.folder.mkdir(parents=True)
    (state.folder / "containers.json").write_text(text)

    with pytest.raises(ConfigurationError, match=r"containers\.json") as caught:
        state.container(REF)

    assert caught.value.hint.startswith("remove it: rm ")


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("containers.json", '{"containers": {"llm/litellm@1": {"engine": "docker"}}}'),
        ("containers.json", '{"containers": {"llm/litellm@1": 5}}'),
        ("builds.json", '{"builds": {"llm/litellm@1": [{"engine": "docker"}]}}'),
        ("builds.json", '{"builds": {"llm/litellm@1": 5}}'),
        ("pushes.json", '{"pushes": {"llm/litellm@1": {"tag": "1"}}}'),
    ],
)
def test_an_entry_of_another_shape_is_a_damaged_file_too(state: LocalState, name: str, entries: str) -> None:
    state.folder.mkdir(parents=True)
    (state.folder / name).write_text(entries)

    with pytest.raises(ConfigurationError, match=f"{name} is not a state file of this version"):
        _ = (state.container(REF), state.builds(REF), state.push(REF))


@pytest.mark.parametrize("port", ['"18042"', "true", "0", "70000", "[18042]"])
def test_what_is_no_port_is_not_kept_as_one(state: LocalState, port: str) -> None:
    state.folder.mkdir(parents=True)
    (state.folder / "local_ports.json").write_text(f'{{"{REF}": {port}, "{OTHER}": 18042}}')

    found = state.allocate_port(REF, usable=anywhere)

    assert FIRST_PORT <= found <= LAST_PORT
    assert json.loads((state.folder / "local_ports.json").read_text()) == {str(REF): found, str(OTHER): 18042}


def test_an_empty_key_is_made_anew(state: LocalState) -> None:
    state.folder.mkdir(parents=True)
    (state.folder / "secrets.key").touch()

    fingerprint = state.secrets_hmac({"A": "b"})

    assert len((state.folder / "secrets.key").read_bytes()) == 64
    assert fingerprint == LocalState(state.folder).secrets_hmac({"A": "b"})


def test_a_key_that_can_not_be_read_is_a_configuration_error(state: LocalState) -> None:
    (state.folder / "secrets.key").mkdir(parents=True)

    with pytest.raises(ConfigurationError, match=r"secrets\.key can't be read"):
        state.secrets_hmac({})


def test_a_change_that_changes_nothing_writes_nothing(state: LocalState) -> None:
    state.record_container(REF, CONTAINER)
    before = (state.folder / "containers.json").stat()

    state.record_container(REF, CONTAINER)

    assert (state.folder / "containers.json").stat().st_ino == before.st_ino
