"""What goes wrong on the way to a registry, and registries that lie: told in bounded time, or got over."""

import json
import time
from collections.abc import Callable, Iterator

import pytest

from apps.errors import ImageRegistryFailed, OperationError
from apps.processors.adapters.base import RemoteManifest
from apps.processors.adapters.oci_documents import INDEX, digest_of
from apps.processors.adapters.oci_http import Patience, follow
from apps.processors.adapters.oci_registry import OciRegistry
from tests.integration.middlemen import Answer, Asked, json_answer, line, middleman
from tests.integration.registries import Registry, free_port, own_address, registry

QUICK = Patience(connect_s=2, silence_s=1, call_s=6, backoff_s=0.05)
SLACK_S = 3.0  # for a busy machine; what is not bounded takes ten seconds and more
DOCUMENT = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}).encode()
DIGEST = digest_of(DOCUMENT)


@pytest.fixture(scope="module")
def plain() -> Iterator[Registry]:
    """With DOCUMENT under the tag 1 of org/image."""
    with registry() as made:
        OciRegistry({}).put_manifest(made.repository(), "1", DOCUMENT, media_type=INDEX)
        yield made


@pytest.fixture
def client() -> OciRegistry:
    return OciRegistry({}, QUICK)


def took_s(action: Callable[[], object]) -> float:
    started_s = time.monotonic()
    with pytest.raises(ImageRegistryFailed):
        action()
    return time.monotonic() - started_s


def test_a_connection_cut_once_is_got_over(client: OciRegistry, plain: Registry) -> None:
    with line(plain.address) as way:
        repository = f"{way.address}/org/image"
        client.manifest(repository, "1")
        way.fault("cut", upward=False, connections=1)

        found = client.manifest(repository, "1")

    assert found
    assert found.digest == DIGEST


def test_an_upload_cut_once_is_sent_again(client: OciRegistry, plain: Registry) -> None:
    data = b"data" * 100_000
    with line(plain.address) as way:
        repository = f"{way.address}/org/image"
        client.check_push(repository)
        way.fault("cut", after_bytes=200_000, connections=1)

        assert client.put_blob(repository, data) == digest_of(data)

    assert digest_of(data) in plain.blobs()


def test_a_connection_that_is_always_cut_is_given_up(client: OciRegistry, plain: Registry) -> None:
    with line(plain.address) as way:
        way.fault("cut", upward=False)

        with pytest.raises(ImageRegistryFailed, match=f"the connection to http://{way.address} broke off"):
            client.manifest(f"{way.address}/org/image", "1")


def test_a_registry_that_falls_silent_is_given_up(client: OciRegistry, plain: Registry) -> None:
    with line(plain.address) as way:
        repository = f"{way.address}/org/image"
        client.manifest(repository, "1")
        way.fault("stall", upward=False)

        assert took_s(lambda: client.manifest(repository, "1")) < QUICK.silence_s + SLACK_S


def test_a_registry_that_never_speaks_is_given_up(client: OciRegistry, plain: Registry) -> None:
    with line(plain.address) as way:
        way.fault("stall")

        assert took_s(lambda: client.manifest(f"{way.address}/org/image", "1")) < QUICK.call_s + SLACK_S


@pytest.mark.parametrize("part", ["head", "body"])
def test_a_registry_that_drips_is_given_up_all_the_same(part: str, plain: Registry) -> None:
    """No single wait is long: only the call as a whole is."""
    client = OciRegistry({}, Patience(silence_s=1, call_s=1.5, backoff_s=0.05))
    large = Answer(200, {"content-type": INDEX}, b" " * 100_000 + DOCUMENT)
    answer = {"manifests": large}.get
    with (
        middleman(plain.address, answer=lambda asked: answer(asked.path.split("/")[4])) as much,
        line(much.address) as way,
    ):
        client.check_push(f"{way.address}/org/image")
        way.rate_bytes_s, way.only_answers = (20 if part == "head" else 4000), True

        assert took_s(lambda: client.manifest(f"{way.address}/org/image", "1")) < 1.5 + SLACK_S


def test_an_upload_that_is_not_taken_is_given_up(plain: Registry) -> None:
    client = OciRegistry({}, Patience(connect_s=1, silence_s=1, call_s=2, backoff_s=0.05))
    with line(plain.address) as way:
        client.check_push(f"{way.address}/org/image")
        way.fault("stall", after_bytes=100_000)

        assert took_s(lambda: client.put_blob(f"{way.address}/org/image", b"x" * 30_000_000)) < 2 + SLACK_S


def test_a_registry_that_is_not_running_is_told_at_once(client: OciRegistry) -> None:
    address = f"127.0.0.1:{free_port()}"

    with pytest.raises(ImageRegistryFailed, match=f"nothing answers at https://{address}: Connection refused"):
        client.manifest(f"{address}/org/image", "1")


def test_a_host_that_is_not_there_is_told_at_once(client: OciRegistry) -> None:
    with pytest.raises(ImageRegistryFailed, match=r"there is no host 'registry\.invalid'"):
        client.manifest("registry.invalid/org/image", "1")


def test_a_registry_elsewhere_must_speak_tls(client: OciRegistry) -> None:
    with registry(host=own_address()) as made, pytest.raises(ImageRegistryFailed, match="not speak TLS") as caught:
        client.manifest(made.repository(), "1")

    assert caught.value.hint == "a registry without TLS works on localhost alone"


# Answers that pass, and answers that don't.


def ask(answers: list[Answer]) -> tuple[OperationError | RemoteManifest | None, list[str]]:
    """What `manifest` makes of a registry that gives `answers`, the last one for ever; and what that was asked."""
    left = list(answers)
    with middleman("", answer=lambda asked: left.pop(0) if len(left) > 1 else left[0]) as between:
        client = OciRegistry({}, QUICK)
        try:
            return client.manifest(between.repository(), "1"), between.methods()
        except OperationError as exc:
            return exc, between.methods()


GOOD = Answer(200, {"content-type": INDEX}, DOCUMENT)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_failure_that_passes_is_got_over(status: int) -> None:
    found, asked = ask([Answer(status), Answer(status), GOOD])

    assert isinstance(found, RemoteManifest)
    assert len(asked) == 3


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_failure_that_stays_is_told(status: int) -> None:
    found, asked = ask([Answer(status)])

    assert isinstance(found, ImageRegistryFailed)
    assert len(asked) == 1 + QUICK.repeats


@pytest.mark.parametrize("status", [400, 403, 405, 410, 418])
def test_a_refusal_is_not_asked_for_twice(status: int) -> None:
    found, asked = ask([Answer(status)])

    assert isinstance(found, OperationError)
    assert len(asked) == 1


def test_a_registry_is_asked_again_when_it_says() -> None:
    started_s = time.monotonic()
    found, _ = ask([Answer(429, {"retry-after": "1"}), GOOD])

    assert isinstance(found, RemoteManifest)
    assert time.monotonic() - started_s >= 1


def test_a_registry_that_puts_us_off_beyond_our_time_is_given_up() -> None:
    found, asked = ask([Answer(429, {"retry-after": "3600"}), GOOD])

    assert isinstance(found, ImageRegistryFailed)
    assert "limits how often it may be asked" in found.message
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<html>", "is not JSON"),
        (b"[]", "is no JSON object"),
        (b"[" * 200_000, "is not JSON"),
        (b'{"manifests": [], "layers": []}', "is both an index and an image"),
        (b" " * (4 * 1024**2) + DOCUMENT, "sends more than the 4194304 bytes"),
    ],
)
def test_nonsense_is_told(body: bytes, words: str) -> None:
    found, _ = ask([Answer(200, {"content-type": INDEX}, body)])

    assert isinstance(found, ImageRegistryFailed)
    assert words in found.message


def test_going_round_in_circles_ends() -> None:
    found, asked = ask([Answer(307, {"location": "/v2/"})])

    assert isinstance(found, ImageRegistryFailed)
    assert "round in circles" in found.message
    assert len(asked) == 5


def test_a_web_site_is_no_registry() -> None:
    found, _ = ask([Answer(404, {"content-type": "text/html"}, b"<html>not here</html>")])

    assert isinstance(found, ImageRegistryFailed)
    assert "is no image registry: its /v2/ gives status 404" in found.message


def test_a_registry_that_says_nothing_of_what_is_absent_is_one_all_the_same() -> None:
    assert ask([Answer(404), Answer(200)])[0] is None


@pytest.mark.parametrize(
    "location", ["http://registry.example.com/x", "ftp://registry.example.com/x", "https://[", "//a:0/x"]
)
def test_nobody_sends_us_away_from_tls_or_http(location: str) -> None:
    with pytest.raises(ImageRegistryFailed, match=r"https://ghcr\.io sends us to"):
        follow("https://ghcr.io/v2/", location)


# Lies.


def changed(body: bytes) -> Callable[[Asked, Answer], Answer]:
    """A registry that answers reads with `body` in place of what was asked for."""
    return lambda asked, answer: answer.but(body=body) if asked.method == "GET" and "/org/" in asked.path else answer


OTHER = DOCUMENT + b" "


def test_bytes_that_are_not_of_the_digest_asked_for_are_caught(client: OciRegistry, plain: Registry) -> None:
    with middleman(plain.address, alter=changed(OTHER)) as liar, pytest.raises(ImageRegistryFailed) as caught:
        client.manifest(liar.repository(), DIGEST)

    assert DIGEST in caught.value.message
    assert digest_of(OTHER) in caught.value.message


def test_bytes_that_are_not_of_the_digest_claimed_are_caught(client: OciRegistry, plain: Registry) -> None:
    with middleman(plain.address, alter=changed(OTHER)) as liar, pytest.raises(ImageRegistryFailed) as caught:
        client.manifest(liar.repository(), "1")

    assert DIGEST in caught.value.message
    assert digest_of(OTHER) in caught.value.message


def test_a_blob_of_another_digest_is_caught(client: OciRegistry, plain: Registry) -> None:
    digest = client.put_blob(plain.repository(), b"true")

    with middleman(plain.address, alter=changed(b"lies")) as liar, pytest.raises(ImageRegistryFailed) as caught:
        client.blob(liar.repository(), digest, limit_bytes=100)

    assert digest in caught.value.message
    assert digest_of(b"lies") in caught.value.message


def stored_another(asked: Asked, answer: Answer) -> Answer:
    return answer.but(headers={"docker-content-digest": DIGEST}) if asked.method == "PUT" else answer


def test_a_registry_that_stored_another_blob_is_caught(client: OciRegistry, plain: Registry) -> None:
    with middleman(plain.address, alter=stored_another) as liar, pytest.raises(ImageRegistryFailed, match=DIGEST):
        client.put_blob(liar.repository(), b"something")


def test_a_registry_that_stored_another_manifest_is_caught(client: OciRegistry, plain: Registry) -> None:
    with middleman(plain.address, alter=stored_another) as liar, pytest.raises(ImageRegistryFailed, match=DIGEST):
        client.put_manifest(liar.repository(), "2", OTHER, media_type=INDEX)


def test_a_blob_said_to_be_there_in_another_size_is_sent_all_the_same(client: OciRegistry, plain: Registry) -> None:
    def answer(asked: Asked) -> Answer | None:
        return Answer(200, {"content-length": "7"}) if asked.method == "HEAD" else None

    with middleman(plain.address, answer=answer) as liar:
        digest = client.put_blob(liar.repository(), b"not of seven")

    assert digest in plain.blobs()


def test_an_upload_may_go_on_at_a_relative_address(client: OciRegistry, plain: Registry) -> None:
    def alter(asked: Asked, answer: Answer) -> Answer:
        location = answer.headers.get("location", "")
        return answer.but(headers={"location": location.replace(f"http://{asked.headers['host']}", "")})

    with middleman(plain.address, alter=alter) as between:
        digest = client.put_blob(between.repository(), b"relative")

    assert any(method.startswith("PUT /v2/org/image/blobs/uploads/") for method in between.methods())
    assert digest in plain.blobs()


def test_a_digest_of_a_kind_that_we_do_not_know_is_no_lie(client: OciRegistry, plain: Registry) -> None:
    def alter(asked: Asked, answer: Answer) -> Answer:
        return answer.but(headers={"docker-content-digest": "sha512:" + "0" * 128})

    with middleman(plain.address, alter=alter) as modern:
        assert client.manifest(modern.repository(), "1")


@pytest.mark.parametrize(
    "document",
    [
        {"manifests": None},
        {"manifests": [None]},
        {"manifests": [{"platform": {"os": "linux", "architecture": "amd64"}}]},
        {"manifests": [{"mediaType": INDEX, "digest": DIGEST, "size": 1, "platform": "linux/amd64"}]},
        {"manifests": [{"mediaType": INDEX, "digest": DIGEST, "size": 1, "annotations": ["x"]}]},
        {"manifests": [{"mediaType": INDEX, "digest": DIGEST, "size": "1"}]},
        {"config": None, "layers": []},
        {"config": {"mediaType": INDEX, "digest": 1, "size": 1}, "layers": []},
        {"config": {"mediaType": INDEX, "digest": DIGEST, "size": 1}, "layers": {}},
    ],
    ids=json.dumps,
)
def test_what_is_no_index_and_no_image_is_told(
    client: OciRegistry, plain: Registry, document: dict[str, object]
) -> None:
    odd = json.dumps(document).encode()
    with (
        middleman(plain.address, answer=lambda asked: Answer(200, {"content-type": INDEX}, odd)) as there,
        pytest.raises(
            ImageRegistryFailed, match=r"1 is no well-formed (index|image): see its (manifests|config|layers)"
        ),
    ):
        client.manifest(there.repository(), "1")


def test_what_others_list_as_referrers_is_not_believed_blindly(client: OciRegistry, plain: Registry) -> None:
    listed = [{"digest": "../../etc"}, "text", {"digest": DIGEST, "artifactType": "a/b"}, {"artifactType": "a/b"}]

    def answer(asked: Asked) -> Answer | None:
        return json_answer(200, {"manifests": listed}) if "/referrers/" in asked.path else None

    with middleman(plain.address, answer=answer) as odd:
        assert client.attached(odd.repository(), DIGEST, artifact_type="a/b") == [DIGEST]


def test_a_list_of_referrers_without_end_ends(client: OciRegistry, plain: Registry) -> None:
    def answer(asked: Asked) -> Answer | None:
        link = {"link": f'<{asked.path}>; rel="next"'}
        return json_answer(200, {"manifests": []}, **link) if "/referrers/" in asked.path else None

    with middleman(plain.address, answer=answer) as odd:
        assert client.attached(odd.repository(), DIGEST, artifact_type="a/b") == []
