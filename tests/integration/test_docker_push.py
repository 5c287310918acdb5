"""The Docker Engine as a pusher, against real image registries: what it sends, and what goes wrong on the way."""

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from apps.errors import EngineFailed, ImageNotFound, ImageRegistryFailed, PushFailed, Unauthorized
from apps.processors.adapters.base import Sent
from apps.processors.adapters.docker_push import DockerPusher
from tests.integration.middlemen import Line, line
from tests.integration.registries import (
    Registry,
    docker_config,
    docker_config_of_helper,
    docker_config_of_identity,
    own_address,
    registry,
    small_disk,
    trusted_by_engines,
)

pytestmark = pytest.mark.docker

MIB = 2**20
LARGE_BYTES, SMALL_BYTES = 6 * MIB, 64 * 1024


@dataclass
class Store:
    """A Docker Engine by its image store, and an image of two layers that no registry has seen."""

    environment: dict[str, str]
    image: str = ""

    def docker(self, *words: str) -> str:
        environment = {**os.environ, **self.environment}
        return subprocess.run(
            ["docker", *words], env=environment, check=True, capture_output=True, text=True
        ).stdout.strip()

    def push(
        self,
        repository: str,
        *,
        image: str | None = None,
        said: list[str] | None = None,
        silence_s: float = 30,
        **environment: str,
    ) -> Sent:
        variables = {"HOME": "/nonexistent", **os.environ, **self.environment, **environment}
        pusher = DockerPusher(variables, silence_s=silence_s)
        heard = [] if said is None else said
        return pusher.push(image or self.image, repository, "1-tag-amd64", progress=heard.append)


@pytest.fixture(
    scope="module", params=["containerd", pytest.param("classic", marks=[pytest.mark.docker, pytest.mark.classic])]
)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    classic = request.param == "classic"
    found = Store({"DOCKER_HOST": request.getfixturevalue("classic_host")} if classic else {})
    folder = tmp_path_factory.mktemp("image")
    (folder / "large").write_bytes(os.urandom(LARGE_BYTES))
    (folder / "small").write_bytes(os.urandom(SMALL_BYTES))
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY large /\nCOPY small /\n")
    found.docker("build", "--quiet", "--provenance=false", "--tag=localhost/test-push:made", str(folder))
    found.image = found.docker("image", "inspect", "--format={{.Id}}", "localhost/test-push:made")
    yield found
    found.docker("image", "rm", "--force", found.image)


only_containerd = pytest.mark.parametrize("store", ["containerd"], indirect=True)


def uploads(made: Registry) -> list[str]:
    """Paths of the requests that carried bytes of blobs."""
    return [path for method, path, _ in made.requests() if method in ("PATCH", "PUT") and "/blobs/" in path]


def test_an_unseen_image_is_sent_whole(store: Store) -> None:
    with registry() as made:
        sent = store.push(made.repository())

        assert len(sent.layers) == 2
        assert sent.digest in made.blobs()
        assert made.tags() == {"1-tag-amd64"}


def test_what_is_there_is_not_sent_again(store: Store) -> None:
    with registry() as made:
        first = store.push(made.repository())
        before = uploads(made)

        again = store.push(made.repository())

        assert again.digest == first.digest
        assert again.layers == frozenset()
        assert uploads(made) == before


def test_the_containerd_store_pushes_the_digest_that_it_names_the_image_by(store: Store) -> None:
    with registry() as made:
        sent = store.push(made.repository())

    assert (sent.digest == store.image) == (not store.environment)


def test_progress_tells_how_far_it_is(store: Store) -> None:
    said: list[str] = []
    with registry() as made, line(made.address) as slow:
        slow.rate_bytes_s = 2 * MIB
        store.push(f"{slow.address}/org/image", said=said)

    assert said
    assert all(each.startswith("pushed ") and " of 6." in each for each in said)
    assert "MB/s" in said[-1]
    assert "s left" in said[-1]


def test_an_image_that_is_gone_is_not_found(store: Store) -> None:
    with registry() as made, pytest.raises(ImageNotFound):
        store.push(made.repository(), image="sha256:" + "0" * 64)


def test_no_engine_is_the_engines_failure(tmp_path: Path) -> None:
    store = Store({"DOCKER_HOST": f"unix://{tmp_path}/none.sock"}, "sha256:" + "0" * 64)

    with pytest.raises(EngineFailed):
        store.push("localhost:1/org/image")


def test_no_registry_is_the_registrys_failure(store: Store) -> None:
    with pytest.raises(ImageRegistryFailed) as caught:
        store.push("localhost:1/org/image")

    assert "is localhost:1 reachable from the engine" in caught.value.hint


def test_the_login_comes_from_dockers_own_configuration(store: Store, tmp_path: Path) -> None:
    with registry(login="password") as made:
        config = docker_config(tmp_path, made.address)

        assert store.push(made.repository(), DOCKER_CONFIG=str(config)).digest in made.blobs()


def test_the_login_comes_from_a_credential_helper(store: Store, tmp_path: Path) -> None:
    with registry(login="password") as made:
        script = """cat >/dev/null; echo '{"Username": "robot", "Secret": "open sesame"}'"""
        helped = docker_config_of_helper(tmp_path, made.address, script)

        sent = store.push(made.repository(), PATH=helped["PATH"], DOCKER_CONFIG=helped["DOCKER_CONFIG"])

        assert sent.digest in made.blobs()


@only_containerd  # an identity token is the same to both
def test_an_identity_token_is_a_login(store: Store, tmp_path: Path) -> None:
    with registry(login="token") as made:
        assert made.tokens
        made.tokens.identity_token = "one day"
        config = docker_config_of_identity(tmp_path, made.address, "one day")

        assert store.push(made.repository(), DOCKER_CONFIG=str(config)).digest in made.blobs()


@pytest.mark.parametrize("login", ["password", "token"])
def test_a_wrong_password_asks_for_a_login(store: Store, tmp_path: Path, login: str) -> None:
    with registry(login=login) as made:
        config = docker_config(tmp_path, made.address, password="wrong")

        with pytest.raises(Unauthorized) as caught:
            store.push(made.repository(), DOCKER_CONFIG=str(config))

        assert caught.value.hint == f"docker login {made.address}"
        assert made.tags() == set()


def test_no_login_asks_for_one(store: Store, tmp_path: Path) -> None:
    with registry(login="password") as made:
        (tmp_path / "config.json").write_text(json.dumps({}))

        with pytest.raises(Unauthorized) as caught:
            store.push(made.repository(), DOCKER_CONFIG=str(tmp_path))

        assert caught.value.hint == f"docker login {made.address}"


def test_a_login_that_may_not_push_is_unauthorized(store: Store, tmp_path: Path) -> None:
    with registry(login="token") as made:
        assert made.tokens
        made.tokens.actions = {"pull"}
        config = docker_config(tmp_path, made.address)

        with pytest.raises(Unauthorized):
            store.push(made.repository(), DOCKER_CONFIG=str(config))


@only_containerd  # the classic store takes no token for shorter-lived than a minute
def test_a_token_that_expires_on_the_way_is_renewed(store: Store, tmp_path: Path) -> None:
    with registry(login="token") as made, line(made.address) as slow:
        assert made.tokens
        made.tokens.lifetime_s = -58  # the registry grants 60 s more: it is good for 2 s
        slow.rate_bytes_s = 1.5 * MIB
        config = docker_config(tmp_path, slow.address)

        assert store.push(f"{slow.address}/org/image", DOCKER_CONFIG=str(config)).digest in made.blobs()


@only_containerd  # the classic store tries five times more, with ever longer pauses: 50 s
def test_a_read_only_registry_takes_no_push(store: Store) -> None:
    with registry(read_only=True) as made, pytest.raises(PushFailed) as caught:
        store.push(made.repository())

    assert "takes no pushes" in caught.value.hint


@only_containerd
def test_a_full_registry_takes_no_push(store: Store, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 2 * MIB) as disk, registry(storage=disk) as made:
        with pytest.raises(PushFailed) as caught:
            store.push(made.repository())

        assert f"has {made.address} room left?" in caught.value.hint
        assert made.tags() == set()


def test_a_certificate_that_nobody_knows_is_told_with_the_file_to_write(store: Store) -> None:
    with registry(host=own_address(), tls=True) as made, pytest.raises(ImageRegistryFailed) as caught:
        store.push(made.repository())

    assert caught.value.hint == f"give the engine the registry's CA: /etc/docker/certs.d/{made.address}/ca.crt"


def test_a_certificate_of_a_known_authority_is_taken(store: Store) -> None:
    with registry(host=own_address(), tls=True) as made, trusted_by_engines(made):
        assert store.push(made.repository()).digest in made.blobs()


def test_a_plain_registry_elsewhere_is_told_with_the_setting_to_change(store: Store) -> None:
    with registry(host=own_address()) as made, pytest.raises(ImageRegistryFailed) as caught:
        store.push(made.repository())

    assert "insecure-registries" in caught.value.hint


@only_containerd
def test_a_line_that_breaks_is_the_registrys_failure(store: Store) -> None:
    with registry() as made, line(made.address) as broken:
        broken.fault("cut", after_bytes=MIB)

        with pytest.raises(ImageRegistryFailed) as caught:
            store.push(f"{broken.address}/org/image")

        assert "the same command again sends only what is missing" in caught.value.hint
        assert made.tags() == set()


def test_a_line_that_stalls_ends_in_bounded_time(store: Store) -> None:
    with registry() as made, line(made.address) as stalling:
        stalling.fault("stall", after_bytes=MIB)
        began_s = time.monotonic()

        with pytest.raises(PushFailed, match="stood still for 2 s"):
            store.push(f"{stalling.address}/org/image", silence_s=2)

        assert time.monotonic() - began_s < 10
        assert made.tags() == set()


@only_containerd  # the classic store clings to the connection until it breaks
def test_after_a_stall_the_engine_has_given_up_and_can_push_again(store: Store) -> None:
    with registry() as made, line(made.address) as stalling:
        stalling.fault("stall", after_bytes=MIB)
        with pytest.raises(PushFailed):
            store.push(f"{stalling.address}/org/image", silence_s=2)
        stalling.repair()

        assert store.push(f"{stalling.address}/org/image", silence_s=10).digest in made.blobs()


@contextmanager
def killed_once(made: Registry, on: Line, *, after_bytes: int) -> Iterator[None]:
    """The registry dies when so many bytes have come."""
    done = threading.Event()

    def watch() -> None:
        while on.upward_bytes < after_bytes and not done.is_set():
            time.sleep(0.01)
        made.kill()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


@only_containerd
def test_layers_that_were_complete_when_the_registry_died_are_not_sent_again(store: Store) -> None:
    with registry() as made, line(made.address) as slow:
        slow.rate_bytes_s = 3 * MIB
        with killed_once(made, slow, after_bytes=3 * MIB), pytest.raises(ImageRegistryFailed):
            store.push(f"{slow.address}/org/image")
        complete = made.blobs()
        made.start()
        slow.rate_bytes_s = None

        sent = store.push(f"{slow.address}/org/image")

        assert len(complete) >= 1
        assert len(sent.layers) == 1
        assert sent.digest in made.blobs()
