"""The containers of this checkout: find, probe, stop, list, read them. The engines' word, against the state's."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from apps.errors import ConfigurationError, EngineFailed, NotStarted, OperationError
from apps.processors.adapters.base import Container, Engine, LogLine, Progress
from apps.processors.atomic import write_text
from apps.processors.probing import probe
from apps.processors.reference import Platform, ProcessorRef
from apps.processors.selection import difference, standard
from apps.processors.spec import ProcessorSpec
from apps.processors.state import ContainerRecord, LocalState

GRACE_S: Final = 15.0
"""What a container gets to drain: the runtime itself ends handlers well within."""
LOG_TAIL: Final = 20
"""Lines of a dead container's log that go into its error."""

Warn = Callable[[str], None]


def of_ref(engine: Engine, ref: ProcessorRef) -> list[Container]:
    return [each for each in engine.containers() if each.labels.get("theory.ref") == str(ref)]


def retire(old: Container, ref: ProcessorRef, engine: Engine, state: LocalState, progress: Progress) -> None:
    """Stop and remove a container; its logs are kept."""
    if old.state == "running":
        progress(f"stopping {old.name}")
        engine.stop(old, grace_s=GRACE_S)
    keep_logs(engine, old, ref, state)
    engine.remove(old)
    state.forget_container(ref)


def last_words(container: Container, engine: Engine) -> dict[str, Any]:
    """exit_status, out_of_memory and the last log lines of a container."""
    return {
        "exit_status": container.exit_status,
        "out_of_memory": container.out_of_memory,
        "log": [line.line for line in engine.logs(container, tail=LOG_TAIL)],
    }


@dataclass(frozen=True, slots=True)
class Stopped:
    """What `stop` did: for one ref, or for all that were started."""

    refs: Mapping[ProcessorRef, bool]
    """Ref → whether there was a container to stop."""
    all: bool

    def document(self) -> dict[str, Any]:
        """The contract's `localctl stop` document; with --all, a list of such entries."""
        entries = [{"ref": str(ref), "stopped": stopped} for ref, stopped in self.refs.items()]
        return {"status": "success", **({"containers": entries} if self.all else entries[0])}

    def text(self) -> str:
        lines = [f"{ref} is stopped" if stopped else f"{ref} was not started" for ref, stopped in self.refs.items()]
        return "\n".join(lines) or "nothing is started"


def stop(
    only: ProcessorRef | None,
    *,
    engines: Sequence[Engine],
    state: LocalState,
    spec_of: Callable[[ProcessorRef], ProcessorSpec],
    progress: Progress,
    warn: Warn,
) -> Stopped:
    """Stop and remove a ref's container, or every one (`only` is None), whichever engine has it. Logs are kept.

    Raises RefNotFound when there is neither a container nor a processor of that name, EngineFailed.
    """
    if only is None:
        found = {_ref_of(container) for _, container in all_of(engines, warn)}
        stopped_all = {ref: _stop(ref, engines, state, progress, warn) for ref in sorted(found)}
        for ref in sorted(set(map(ProcessorRef.parse, state.containers())) - found):
            _stop(ref, engines, state, progress, warn)  # gone, or on an engine that does not answer: an error
        return Stopped(stopped_all, all=True)
    stopped = _stop(only, engines, state, progress, warn)
    if not stopped:
        spec_of(only)
    return Stopped({only: stopped}, all=False)


def _stop(ref: ProcessorRef, engines: Sequence[Engine], state: LocalState, progress: Progress, warn: Warn) -> bool:
    with state.changing(ref):
        record = state.container(ref)
        found = found_on(engines, ref, warn, must=record.engine if record else engines[0].name)
        for engine, container in found:
            retire(container, ref, engine, state, progress)
        state.forget_container(ref)
    return bool(found)


def _ref_of(container: Container) -> ProcessorRef:
    return ProcessorRef.parse(container.labels["theory.ref"])


def all_of(engines: Sequence[Engine], warn: Warn) -> list[tuple[Engine, Container]]:
    """Every container of this checkout on the engines that answer; the others are warned of."""
    found = []
    for engine in engines:
        try:
            found += [(engine, container) for container in engine.containers()]
        except (EngineFailed, ConfigurationError) as exc:
            warn(f"{engine.name}: {exc.message}")
    return found


def found_on(
    engines: Sequence[Engine], ref: ProcessorRef, warn: Warn, *, must: str | None
) -> list[tuple[Engine, Container]]:
    """The ref's containers on the engines that answer; the others are warned of.

    Raises EngineFailed or ConfigurationError when it is the engine `must` that does not: no guess about that one.
    """
    found = []
    for engine in engines:
        try:
            found += [(engine, container) for container in of_ref(engine, ref)]
        except (EngineFailed, ConfigurationError) as exc:
            if engine.name == must:
                raise
            warn(f"{engine.name}: {exc.message}")
    return found


def status(
    only: ProcessorRef | None,
    *,
    engines: Sequence[Engine],
    state: LocalState,
    spec_of: Callable[[ProcessorRef], ProcessorSpec],
    warn: Warn,
) -> list[dict[str, Any]]:
    """One entry of the contract's `localctl status` document per container. Repairs what the state forgot."""
    rows = []
    for engine, container in all_of(engines, warn):
        ref = _ref_of(container)
        if only is None or ref == only:
            _remember(ref, engine, container, state)
            row = _row(ref, engine, container, _drift(ref, engine, container, state, spec_of, warn))
            rows.append({**row, "source": _source(container, state.container(ref))})
    if only is not None and not rows:
        spec_of(only)
    return sorted(rows, key=lambda row: str(row["ref"]))


def _remember(ref: ProcessorRef, engine: Engine, container: Container, state: LocalState) -> None:
    """A start that was killed between launch and record left a container that `run` does not know."""
    record = state.container(ref)
    if container.state != "running" or container.host_port is None or (record and record.id == container.id):
        return
    state.record_container(
        ref,
        ContainerRecord(
            engine=engine.name,
            id=container.id,
            name=container.name,
            port=container.host_port,
            image_digest=container.labels.get("theory.digest", ""),
            spec_digest=container.labels.get("theory.spec", ""),
            source=container.labels.get("theory.source", ""),
            platform=container.labels.get("theory.platform", ""),
            secrets=(),
            secrets_hmac="",  # unknown: the next start replaces it
        ),
    )


def _source(container: Container, record: ContainerRecord | None) -> str | None:
    """A build that was pinned since goes on as the pin: a later `start` found it so."""
    if record is not None and record.id == container.id:
        return record.source
    return container.labels.get("theory.source")


def _row(ref: ProcessorRef, engine: Engine, container: Container, drift: dict[str, str] | None) -> dict[str, Any]:
    word = "unknown"
    if container.state == "running" and container.host_port is not None:
        word = probe(container.host_port)
    starting = container.state == "running" and word == "starting"
    return {
        "ref": str(ref),
        "name": container.name,
        "id": container.id,
        "engine": engine.name,
        "isolation": engine.isolation,
        "state": "starting" if starting else container.state,
        "health": "unknown" if starting else word,
        "image_digest": container.labels.get("theory.digest"),
        "source": container.labels.get("theory.source"),
        "platform": container.labels.get("theory.platform"),
        "port": container.host_port,
        "started_at": container.started_at,
        "exit_status": container.exit_status,
        "drift": drift,
    }


def _drift(
    ref: ProcessorRef,
    engine: Engine,
    container: Container,
    state: LocalState,
    spec_of: Callable[[ProcessorRef], ProcessorSpec],
    warn: Warn,
) -> dict[str, str] | None:
    try:
        found = standard(
            spec_of(ref),
            Platform.parse(container.labels.get("theory.platform", "")),
            state.container(ref),
            builds=state.builds(ref),
            engine=engine.name,
            gives_digests=engine.gives_digests,
        )
        image, names = image_of(engine, container)
    except OperationError as exc:
        warn(f"{ref}: {exc.message}")
        return None
    if found.note:
        warn(found.note)
    return difference(
        image=image,
        spec=container.labels.get("theory.spec", ""),
        selection=found.selection,
        spec_now=found.spec_digest,
        known_as=names,
    )


def image_of(engine: Engine, container: Container) -> tuple[str, frozenset[str]]:
    """What the container was made from, by the engine's word and not its own: the digest to show, and all names."""
    label = container.labels.get("theory.digest", "")
    if container.image is None:
        return label, frozenset()
    names = engine.image_names(container.image)
    return (label if label in names else container.image), names


def log_file(state: LocalState, ref: ProcessorRef) -> Path:
    """Where `stop` keeps the logs: one LogLine a line, as JSON."""
    return state.folder / "logs" / f"{ref.slug}.log"


def keep_logs(engine: Engine, container: Container, ref: ProcessorRef, state: LocalState) -> None:
    lines = "".join(json.dumps(asdict(line)) + "\n" for line in engine.logs(container))
    path = log_file(state, ref)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, lines, mode=0o600)


def logs(
    ref: ProcessorRef,
    *,
    engines: Sequence[Engine],
    state: LocalState,
    spec_of: Callable[[ProcessorRef], ProcessorSpec],
    follow: bool,
    tail: int | None,
    since: str | None,
    warn: Warn,
) -> Iterator[LogLine]:
    """What the ref's container wrote; of one that was stopped, what `stop` kept.

    Raises NotStarted, RefNotFound, EngineFailed.
    """
    record = state.container(ref)
    for engine, container in found_on(engines, ref, warn, must=record.engine if record else None):
        return engine.logs(container, follow=follow, tail=tail, since=since)
    lines = _kept_lines(log_file(state, ref))
    if lines is None:
        spec_of(ref)
        raise NotStarted(f"{ref} has no logs: it was never started", hint=f"localctl start --ref {ref}")
    kept = [line for line in lines if since is None or line.ts >= since]
    return iter(kept[len(kept) - tail if tail is not None and tail < len(kept) else 0 :])


def _kept_lines(path: Path) -> list[LogLine] | None:
    """What `keep_logs` wrote; None when it wrote nothing. Raises ConfigurationError for what it did not write."""
    try:
        return [LogLine(**json.loads(line)) for line in path.read_text("utf-8").splitlines()]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as exc:
        raise ConfigurationError(f"{path} can't be read: {exc}", hint=f"remove it: rm {path}") from exc
