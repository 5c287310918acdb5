"""What the Docker engine does beyond the contract of engines: confinement, images, contexts, logins."""

import base64
import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from apps.errors import EngineFailed, ImageNotFound, ImagePullFailed, RuntimeFailed, Unauthorized
from apps.processors.adapters.base import Limits
from apps.processors.adapters.docker import DockerEngine
from apps.processors.adapters.docker_confinement import MEMORY_HEADROOM_BYTES
from apps.processors.reference import PLATFORMS, ImageReference
from tests.integration.oci import Registry, registry
from tests.integration.probe import MIB, Place, docker, docker_image, docker_place

pytestmark = pytest.mark.docker

STORES = ["default", pytest.param("classic", marks=pytest.mark.classic)]


@pytest.fixture(scope="session")
def probe_image() -> Iterator[str]:
    yield from docker_image({"DOCKER_HOST": os.environ.get("DOCKER_HOST", "")})


@pytest.fixture
def place(probe_image: str) -> Iterator[Place]:
    found = docker_place({"DOCKER_HOST": os.environ.get("DOCKER_HOST", "")}, probe_image)
    yield found
    found.clear()


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest) -> Iterator[Place]:
    """An engine by its image store, for tests of images; no probe is built for it."""
    classic = request.param == "classic"
    host = request.getfixturevalue("classic_host") if classic else os.environ.get("DOCKER_HOST", "")
    found = docker_place({"DOCKER_HOST": host}, "")
    yield found
    found.clear()


@pytest.fixture
def origin(store: Place) -> Iterator[Registry]:
    with registry(store.engine.platform().architecture) as found:
        yield found
        for name in (str(found.image), f"{found.address}/test/other:1"):
            subprocess.run(["docker", "image", "rm", "--force", name], capture_output=True, env=environment(store))


def environment(place: Place) -> dict[str, str]:
    return {**os.environ, **place.docker}


def inspect(place: Place, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(docker("inspect", name, environment=place.docker))[0]
    return found


# confinement


def test_the_process_has_no_root_no_capability_and_no_way_to_get_one(place: Place) -> None:
    facts = place.launch().facts()

    assert (facts["uid"], facts["gid"]) == (65532, 65532)
    assert (int(facts["status"]["CapEff"], 16), int(facts["status"]["CapBnd"], 16)) == (0, 0)
    assert facts["status"]["NoNewPrivs"] == "1"
    assert facts["status"]["Seccomp"] == "2"
    assert facts["core"] == 0


def test_files_can_be_written_to_tmp_and_scratch_alone(place: Place) -> None:
    probe = place.launch()
    scratch = probe.facts()["environment"]["THEORY_SCRATCH"]

    assert {path: probe.do("write", f"{path}/x") for path in ("", "/etc", "/var/tmp", "/home")} == {
        "": "OSError",
        "/etc": "OSError",
        "/var/tmp": "OSError",
        "/home": "OSError",
    }
    assert probe.do("write", "/tmp/x") == "written"
    assert probe.do("write", f"{scratch}/x") == "written"


def test_tmp_is_small_and_in_memory_scratch_is_on_disk(place: Place) -> None:
    probe = place.launch()
    mounts = {point: (kind, options.split(",")) for point, kind, options in probe.facts()["mounts"]}

    assert mounts["/tmp"][0] == "tmpfs"
    assert {"nosuid", "nodev"} <= set(mounts["/tmp"][1])
    assert "noexec" not in mounts["/tmp"][1]
    assert probe.do("space", "/tmp") == 64 * MIB
    assert mounts["/scratch"][0] not in ("tmpfs", "overlay")
    assert "ro" in mounts["/"][1]


def test_memory_cpu_and_processes_are_limited(place: Place) -> None:
    limits = Limits(cpu=0.5, memory_bytes=200 * MIB, scratch_bytes=MIB, gpu=None)

    probe = place.launch(limits=limits)

    memory_bytes = 200 * MIB + MEMORY_HEADROOM_BYTES
    assert probe.do("cgroup", "memory.max,memory/memory.limit_in_bytes") == str(memory_bytes)
    assert probe.do("cgroup", "memory.swap.max,memory/memory.memsw.limit_in_bytes") in ("0", str(memory_bytes))
    assert probe.do("cgroup", "pids.max,pids/pids.max") == "1024"
    assert probe.do("cgroup", "cpu.max,cpu/cpu.cfs_quota_us").split()[0] == "50000"


def test_more_cpu_than_the_machine_has_is_no_error(place: Place) -> None:
    limits = Limits(cpu=4096, memory_bytes=MIB, scratch_bytes=MIB, gpu=None)

    assert place.launch(limits=limits).facts()


def test_a_container_that_takes_too_much_memory_is_ended_and_says_so(place: Place) -> None:
    probe = place.launch(limits=Limits(cpu=1, memory_bytes=MIB, scratch_bytes=MIB, gpu=None))

    ended = probe.end("fill", MEMORY_HEADROOM_BYTES + 64 * MIB)

    assert (ended.state, ended.exit_status, ended.out_of_memory) == ("exited", -9, True)


def test_the_port_is_published_on_loopback_alone(place: Place) -> None:
    probe = place.launch()

    found = inspect(place, probe.container.id)["NetworkSettings"]["Ports"]

    assert found == {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(probe.container.host_port)}]}


def test_the_host_can_be_reached_by_name(place: Place) -> None:
    hosts = place.launch().facts()["hosts"]

    assert hosts["host.docker.internal"] == hosts["minio.local"]
    assert hosts["minio.local"].count(".") == 3


def test_the_log_can_not_fill_the_disk_and_nothing_is_restarted(place: Place) -> None:
    found = inspect(place, place.launch().container.id)["HostConfig"]

    assert found["LogConfig"] == {"Type": "json-file", "Config": {"max-file": "2", "max-size": "10m"}}
    assert found["RestartPolicy"]["Name"] == "no"


def test_the_proxy_of_dockers_own_configuration_does_not_get_in(place: Place, tmp_path: Path) -> None:
    proxies = {"proxies": {"default": {"httpProxy": "http://user:password@proxy.example:3128"}}}
    (tmp_path / "config.json").write_text(json.dumps(proxies))
    place.make = lambda root_id: DockerEngine(root_id, environment={**place.docker, "DOCKER_CONFIG": str(tmp_path)})

    found = place.launch(engine=place.make(place.root_id)).facts()["environment"]

    assert not [name for name in found if "proxy" in name.lower()]


def test_a_gpu_that_is_not_there_is_said_and_leaves_nothing(place: Place) -> None:
    if Path("/dev/nvidia0").exists():
        pytest.skip("this machine has a GPU")

    with pytest.raises(EngineFailed) as caught:
        place.launch(limits=Limits(cpu=1, memory_bytes=MIB, scratch_bytes=MIB, gpu="T4:2"))

    assert "runtime.gpu" in caught.value.hint
    assert place.leftovers() == []


# what others do to our containers


def test_a_container_removed_by_hand_is_gone_and_its_scratch_is_not_used_again(place: Place) -> None:
    first = place.launch()
    file = f"{first.facts()['environment']['THEORY_SCRATCH']}/of-the-first"
    first.do("write", file)
    docker("rm", "--force", first.container.id, environment=place.docker)
    assert place.engine.containers() == []

    second = place.launch()

    assert second.do("exists", file) is False


def test_removing_a_container_that_was_removed_by_hand_takes_its_volume_along(place: Place) -> None:
    probe = place.launch()
    docker("rm", "--force", probe.container.id, environment=place.docker)
    assert place.volumes() == [f"{probe.container.name}-scratch"]

    place.engine.remove(probe.container)

    assert place.volumes() == []


def test_a_paused_container_runs_and_one_that_never_ran_is_dead(place: Place) -> None:
    paused = place.launch()
    docker("pause", paused.container.id, environment=place.docker)
    labels = ["--label", f"theory.root={place.root_id}", "--label", "theory.ref=test/probe@1"]
    docker("create", *labels, place.image, environment=place.docker)

    found = {each.id == paused.container.id: each for each in place.engine.containers()}

    assert found[True].state == "running"
    assert (found[False].state, found[False].started_at, found[False].exit_status) == ("dead", None, None)
    assert list(place.engine.logs(found[False], follow=False)) == []
    docker("unpause", paused.container.id, environment=place.docker)


# images


def test_launch_does_not_pull(store: Place, origin: Registry) -> None:
    with pytest.raises(ImageNotFound):
        store.launch(image=str(origin.image))

    assert origin.requests == []
    assert store.leftovers() == []


def test_a_pulled_image_is_found_by_its_digest(store: Place, origin: Registry) -> None:
    engine, image, own = store.engine, origin.image, store.engine.platform()
    said: list[str] = []
    assert engine.local_image(image.digest, repository=image.repository, platform=own) is None

    name = engine.pull(image, own, progress=said.append)

    assert said[0] == f"pulling {image}"
    assert engine.has_image(name)
    assert engine.local_image(image.digest, repository=image.repository, platform=own) == name


def test_a_pulled_image_is_known_by_its_manifests_digest_and_its_id(store: Place, origin: Registry) -> None:
    name = store.engine.pull(origin.image, store.engine.platform(), progress=lambda _: None)
    identifier = docker("image", "inspect", "--format", "{{.Id}}", name, environment=store.docker).strip()

    assert store.engine.image_names(identifier) == {identifier, origin.image.digest}


def test_an_image_that_is_gone_keeps_its_one_name(store: Place) -> None:
    assert store.engine.image_names("sha256:" + "0" * 64) == {"sha256:" + "0" * 64}


def test_an_image_is_found_whatever_repository_it_came_from(store: Place, origin: Registry) -> None:
    store.engine.pull(origin.image, store.engine.platform(), progress=lambda _: None)

    found = store.engine.local_image(
        origin.image.digest, repository="registry.example/else", platform=store.engine.platform()
    )

    assert found is not None
    assert store.engine.has_image(found)


def test_an_image_of_another_platform_is_not_taken_for_the_one_that_was_asked_for(
    store: Place, origin: Registry
) -> None:
    own = store.engine.platform()
    (foreign,) = set(PLATFORMS) - {own}
    name = store.engine.pull(origin.image, own, progress=lambda _: None)

    digest, repository = origin.image.digest, origin.image.repository
    assert store.engine.local_image(digest, repository=repository, platform=foreign) is None
    with pytest.raises(ImageNotFound):
        store.launch(image=name, platform=foreign)
    assert store.leftovers() == []


def test_an_image_whose_command_is_absent_fails_and_leaves_nothing(store: Place, origin: Registry) -> None:
    name = store.engine.pull(origin.image, store.engine.platform(), progress=lambda _: None)

    with pytest.raises(RuntimeFailed, match="/absent"):
        store.launch(image=name)

    assert store.leftovers() == []


def test_a_digest_that_the_registry_does_not_have_is_not_found(store: Place, origin: Registry) -> None:
    with pytest.raises(ImageNotFound, match="sha256:0000"):
        store.engine.pull(origin.absent, store.engine.platform(), progress=lambda _: None)


@pytest.mark.parametrize(
    ("refusal", "error"),
    [(401, Unauthorized), (403, Unauthorized), (500, ImagePullFailed), (429, ImagePullFailed)],
)
def test_a_registry_that_refuses_is_told_from_one_that_breaks(
    store: Place, origin: Registry, refusal: int, error: type[Exception]
) -> None:
    origin.refusal = refusal

    with pytest.raises(error) as caught:
        store.engine.pull(origin.image, store.engine.platform(), progress=lambda _: None)

    assert origin.address in caught.value.hint  # type: ignore[attr-defined]


def test_a_registry_that_does_not_answer_fails_the_pull(store: Place) -> None:
    image = ImageReference("localhost:1/nobody/listens", "sha256:" + "0" * 64)

    with pytest.raises(ImagePullFailed) as caught:
        store.engine.pull(image, store.engine.platform(), progress=lambda _: None)

    assert caught.value.hint == f"is localhost:1 reachable from here? try: docker pull {image}"


def test_a_pull_shows_the_login_that_docker_keeps_for_the_registry(
    store: Place, origin: Registry, tmp_path: Path
) -> None:
    login = base64.b64encode(b"me:secret").decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {origin.address: {"auth": login}}}))
    engine = DockerEngine(store.root_id, environment={**store.docker, "DOCKER_CONFIG": str(tmp_path)})
    origin.refusal = 401

    with pytest.raises(Unauthorized) as caught:
        engine.pull(origin.image, engine.platform(), progress=lambda _: None)

    assert f"Basic {login}" in [authorization for _, _, authorization in origin.requests]
    assert "secret" not in str(caught.value)


# which engine


def test_the_current_docker_context_is_honoured(place: Place, tmp_path: Path) -> None:
    host = place.docker["DOCKER_HOST"] or "unix:///var/run/docker.sock"
    context(tmp_path, "here", host)
    (tmp_path / "config.json").write_text(json.dumps({"currentContext": "here"}))
    context(tmp_path, "elsewhere", "tcp://192.0.2.1:2375")

    current = DockerEngine(place.root_id, environment={"DOCKER_CONFIG": str(tmp_path)})
    named = DockerEngine(place.root_id, environment={"DOCKER_CONFIG": str(tmp_path), "DOCKER_CONTEXT": "here"})

    assert current.platform() == named.platform() == place.engine.platform()


def context(folder: Path, name: str, host: str) -> None:
    """A docker context, as `docker context create` lays it down."""
    meta = folder / "contexts" / "meta" / hashlib.sha256(name.encode()).hexdigest()
    meta.mkdir(parents=True)
    endpoint = {"Host": host, "SkipTLSVerify": False}
    (meta / "meta.json").write_text(json.dumps({"Name": name, "Metadata": {}, "Endpoints": {"docker": endpoint}}))
