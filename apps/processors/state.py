"""LocalState over code/.theory/: ports, run tokens, containers, builds, pushes. One JSON file each, replaced whole.

State is the truth for `run`; `start`, `stop` and `status` ask the engine and repair it.
"""

import hashlib
import hmac
import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Self, TypeGuard, TypeVar

from apps.errors import ConfigurationError
from apps.processors.atomic import exclusive_lock, write_text
from apps.processors.reference import ProcessorRef

T = TypeVar("T")

FIRST_PORT: Final = 18000
LAST_PORT: Final = 28999
KEY_BYTES: Final = 32
"""Of the key of secrets' fingerprints; its file holds them as hex digits."""


@dataclass(frozen=True, slots=True)
class BuildRecord:
    """One platform of the newest build on one engine."""

    engine: str
    platform: str
    tag: str
    source_digest: str
    digest: str | None
    """Manifest digest; None where the image store does not know it, until a push has told."""
    image: str
    """What `Engine.launch` takes."""
    image_id: str
    size_bytes: int
    pin: str | None
    """The pin of this platform that stood when it was built."""
    built_at: str

    @property
    def identity(self) -> str:
        """The digest that a container of this build reports."""
        return self.digest or self.image_id

    @property
    def identities(self) -> tuple[str, ...]:
        """All that a container of this build may report: one that was started before the first push has the id."""
        return tuple(dict.fromkeys((self.identity, self.image_id)))


@dataclass(frozen=True, slots=True)
class PushedImage:
    """One platform of a push, as the image registry has it."""

    platform: str
    digest: str
    """Of its manifest."""
    provenance: str | None
    """Digest of the attestation's manifest; None without one."""
    sbom: str | None
    """Digest of the manifest that refers to the image; None without one."""
    size_bytes: int
    """What a machine fetches that has nothing of it: config and layers, compressed."""


@dataclass(frozen=True, slots=True)
class PushRecord:
    """The newest push of a ref."""

    repository: str
    tag: str
    index: str
    """Its digest."""
    images: tuple[PushedImage, ...]
    pushed_at: str

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Self:
        return cls(**{**document, "images": tuple(PushedImage(**each) for each in document["images"])})


@dataclass(frozen=True, slots=True)
class ContainerRecord:
    """What was started for a ref, so that `run` need not ask the engine."""

    engine: str
    id: str
    name: str
    port: int
    image_digest: str
    spec_digest: str
    source: str
    platform: str
    secrets: tuple[str, ...]
    secrets_hmac: str
    forced: str | None = None
    """A choice that `start` was told: build or pin (`--source`), or drift (`--allow-drift`)."""

    def document(self) -> dict[str, Any]:
        return {**asdict(self), "secrets": list(self.secrets)}

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Self:
        known = {field.name: document[field.name] for field in fields(cls) if field.name in document}
        return cls(**{**known, "secrets": tuple(document["secrets"])})


class LocalState:
    """The files of one checkout. Every change is made under one lock, so two terminals lose nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def changing(self, ref: ProcessorRef) -> AbstractContextManager[None]:
        """The lock that `start` and `stop` of one ref hold from their first look to their last write."""
        return exclusive_lock(self.folder / "locks" / f"{ref.slug}.lock")

    # ports

    def port(self, ref: ProcessorRef) -> int | None:
        port = self._read("local_ports.json").get(str(ref))
        return port if _is_port(port) else None

    def allocate_port(self, ref: ProcessorRef, *, usable: Callable[[int], bool], replace: bool = False) -> int:
        """The ref's kept port, or a new one that no other ref has and `usable` accepts.

        With `replace` a new one in any case: something else took the kept one. Raises ConfigurationError
        when no port of the range is left.
        """
        with self._lock():
            ports = {name: port for name, port in self._read("local_ports.json").items() if _is_port(port)}
            kept = ports.get(str(ref))
            if _is_port(kept) and not replace:
                return kept
            taken = set(ports.values())
            # From a point of the ref's own: refs started together rarely try the same port.
            first = int.from_bytes(hashlib.sha256(str(ref).encode()).digest()[:4], "big")
            span = LAST_PORT - FIRST_PORT + 1
            for step in range(span):
                port = FIRST_PORT + (first + step) % span
                if port not in taken and usable(port):
                    self._write("local_ports.json", {**ports, str(ref): port})
                    return port
        raise ConfigurationError(f"no free port between {FIRST_PORT} and {LAST_PORT}", hint="localctl stop --all")

    # run tokens

    def token(self, ref: ProcessorRef) -> str | None:
        return _typed(self._entries("run_tokens.json", "tokens").get(str(ref)), str)

    def new_token(self, ref: ProcessorRef) -> str:
        """A fresh run token for a container about to start."""
        token = secrets.token_urlsafe(32)
        self._change("run_tokens.json", "tokens", lambda entries: {**entries, str(ref): token}, mode=0o600)
        return token

    # containers

    def container(self, ref: ProcessorRef) -> ContainerRecord | None:
        with self._shaped("containers.json"):
            found = self._entries("containers.json", "containers").get(str(ref))
            return ContainerRecord.read(found) if found else None

    def containers(self) -> dict[str, ContainerRecord]:
        """Ref → what was started."""
        with self._shaped("containers.json"):
            found = self._entries("containers.json", "containers")
            return {ref: ContainerRecord.read(record) for ref, record in found.items()}

    def record_container(self, ref: ProcessorRef, record: ContainerRecord) -> None:
        self._change("containers.json", "containers", lambda entries: {**entries, str(ref): record.document()})

    def forget_container(self, ref: ProcessorRef) -> None:
        """Drop the record and the run token; the port is kept for the next start."""
        without = _without(str(ref))
        self._change("containers.json", "containers", without)
        self._change("run_tokens.json", "tokens", without, mode=0o600)

    # builds

    def builds(self, ref: ProcessorRef) -> tuple[BuildRecord, ...]:
        """The newest build of each engine and platform."""
        with self._shaped("builds.json"):
            return tuple(BuildRecord(**found) for found in self._entries("builds.json", "builds").get(str(ref), []))

    def record_builds(self, ref: ProcessorRef, records: Iterable[BuildRecord]) -> None:
        """Put `records` in the place of older ones of the same engine and platform.

        A digest that a push told of the same image stays known.
        """
        new = {(record.engine, record.platform): asdict(record) for record in records}

        def change(entries: dict[str, Any]) -> dict[str, Any]:
            kept = []
            for old in entries.get(str(ref), []):
                record = new.get((old["engine"], old["platform"]))
                if record is None:
                    kept.append(old)
                elif record["image_id"] == old["image_id"]:
                    record["digest"] = record["digest"] or old["digest"]
            return {**entries, str(ref): [*kept, *new.values()]}

        self._change("builds.json", "builds", change)

    # pushes

    def push(self, ref: ProcessorRef) -> PushRecord | None:
        """The newest push of the ref from this checkout."""
        with self._shaped("pushes.json"):
            found = self._entries("pushes.json", "pushes").get(str(ref))
            return PushRecord.read(found) if found else None

    def record_push(self, ref: ProcessorRef, record: PushRecord) -> None:
        self._change("pushes.json", "pushes", lambda entries: {**entries, str(ref): asdict(record)})

    def record_digest(self, ref: ProcessorRef, record: BuildRecord, digest: str) -> None:
        """Remember the manifest digest that a push gave to the build `record`; a newer build is left alone."""
        old, new = asdict(record), asdict(replace(record, digest=digest))

        def change(entries: dict[str, Any]) -> dict[str, Any]:
            return {**entries, str(ref): [new if each == old else each for each in entries.get(str(ref), [])]}

        self._change("builds.json", "builds", change)

    # storage servers

    def proof(self, place: str) -> dict[str, Any] | None:
        """What the server of a bucket was seen to enforce; see apps/storage/enforcement.py."""
        return _typed(self._entries("storage_proofs.json", "proofs").get(place), dict)

    def record_proof(self, place: str, proof: Mapping[str, Any]) -> None:
        self._change("storage_proofs.json", "proofs", lambda entries: {**entries, place: dict(proof)}, mode=0o600)

    # secrets

    def secrets_hmac(self, values: Mapping[str, str]) -> str:
        """A fingerprint of secret values under this checkout's own key: equal exactly when they are."""
        document = json.dumps(dict(sorted(values.items()))).encode()
        return hmac.new(self._key(), document, hashlib.sha256).hexdigest()

    def _key(self) -> bytes:
        path = self.folder / "secrets.key"
        with self._lock():
            try:
                key = path.read_bytes() if path.exists() else b""
            except OSError as exc:
                raise ConfigurationError(f"{path} can't be read: {exc}", hint=f"remove it: rm {path}") from exc
            if len(key) < 2 * KEY_BYTES:  # with an empty key a fingerprint would be a plain hash
                key = secrets.token_hex(KEY_BYTES).encode()
                write_text(path, key.decode(), mode=0o600)
            return key

    # files

    def _lock(self) -> AbstractContextManager[None]:
        return exclusive_lock(self.folder / "locks" / "state.lock")

    def _entries(self, name: str, key: str) -> dict[str, Any]:
        found = self._read(name).get(key, {})
        return found if isinstance(found, dict) else {}

    def _change(
        self, name: str, key: str, change: Callable[[dict[str, Any]], dict[str, Any]], *, mode: int = 0o666
    ) -> None:
        with self._lock():
            before = self._entries(name, key)
            after = change(before)
            if after != before:
                self._write(name, {"schema": 1, key: after}, mode=mode)

    def _read(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        try:
            document = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as exc:
            raise ConfigurationError(f"{path} can't be read: {exc}", hint=f"remove it: rm {path}") from exc
        if not isinstance(document, dict) or document.get("schema", 1) != 1:
            raise self._another_version(name)
        return document

    @contextmanager
    def _shaped(self, name: str) -> Iterator[None]:
        """While records are made of the entries of `name`: of entries with another shape none can be."""
        try:
            yield
        except (AttributeError, KeyError, TypeError) as exc:
            raise self._another_version(name) from exc

    def _another_version(self, name: str) -> ConfigurationError:
        path = self.folder / name
        return ConfigurationError(f"{path} is not a state file of this version", hint=f"remove it: rm {path}")

    def _write(self, name: str, document: Mapping[str, Any], *, mode: int = 0o666) -> None:
        write_text(self.folder / name, json.dumps(document, indent=1) + "\n", mode=mode)


def _typed(value: object, kind: type[T]) -> T | None:
    return value if isinstance(value, kind) else None


def _is_port(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**16


def _without(key: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda entries: {name: value for name, value in entries.items() if name != key}
