"""Run a processor that is deployed on Modal: the same execution as on this machine, behind another door."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from processor_runtime import protocol

from apps.errors import ConnectionFailed, Drift, ExecutionLost, OperationError, TimedOut, Unauthorized
from apps.processors import deployments, proxying, runs
from apps.processors.answering import IDLE_S, session_header
from apps.processors.asking import Asked, Prepared, Ran, prepare, told
from apps.processors.deployments import Place
from apps.processors.door import Asleep, Door, Unreachable
from apps.processors.envelope import Meta
from apps.processors.modal_state import AppRecord, ModalState
from apps.processors.reference import AMD64
from apps.processors.spec import ProcessorSpec
from apps.settings import Settings
from apps.storage.base import StorageBackend
from apps.storage.public import is_public

if TYPE_CHECKING:
    from apps.processors.adapters.base import Progress
    from apps.processors.adapters.target import Target
    from apps.processors.fetching import Sources

COLD_S: Final = 300.0
"""How long a deployment that was scaled to zero may take to serve."""
_PAUSE_S: Final = 1.0
_SAY_S: Final = 10.0
_NO_SESSION: Final = (400, 401, 403, 404, 410)
"""What a request may get whose session is over: which of them, Modal says nowhere."""


def run(
    asked: Asked,
    env: str,
    *,
    settings_of: Callable[[], Settings],
    state_of: Callable[[Settings], ModalState],
    storage_of: Callable[[Settings], StorageBackend],
    target_of: "Callable[[str], Target]",
    on_event: runs.EventSink,
    progress: "Progress",
    warn: Callable[[str], None],
) -> Ran:
    """One execution in the ref's deployment; an execution that a complete prefix already names is given back.

    Raises OperationErrors that carry the error envelope: what can fail is made in here.
    """
    known = runs.Known(asked.id(), asked.ref, Meta(adapter="modal", engine="modal", mode=asked.mode))
    with told(known):
        settings = settings_of()
        ready = prepare(asked, known, settings, storage_of)
        if ready.before is not None:
            return ready.before
        state = state_of(settings)
        here = deployments.place(ready.spec.ref, env, branch=settings.git_branch, user=settings.git_user, state=state)
        # Elsewhere this machine's own names mean nothing: what is not public gets outputs over the connection.
        known.learn(transfer=ready.artifacts.reach(None) if is_public(settings.bucket) else "relay")
        visit = _Visit(ready, here, target_of(env), state, known, on_event, progress, warn)
        return visit.run(lambda: proxying.known(settings.modal_proxy_token, state).headers(settings.run_token))


class _Visit:
    """One execution at one deployment."""

    def __init__(
        self,
        ready: Prepared,
        here: Place,
        target: "Target",
        state: ModalState,
        known: runs.Known,
        on_event: runs.EventSink,
        progress: "Progress",
        warn: Callable[[str], None],
    ) -> None:
        self._ready, self._here, self._target, self._state = ready, here, target, state
        self._known, self._on_event, self._progress, self._warn = known, on_event, progress, warn
        self._sources: Sources | None = None

    def run(self, headers_of: Callable[[], dict[str, str]]) -> Ran:
        """`headers_of` is asked once it is sure that there is a deployment. Raises NotDeployed, Unauthorized."""
        url = deployments.endpoint(self._here, self._target).url
        headers = headers_of()
        self._sources = self._ready.supply()
        self._known.learn(isolation="container")
        kept = self._state.session(self._here.app, self._known.execution_id)
        if kept is not None:
            try:
                return self._visit(url, headers, kept)
            except OperationError as exc:
                if self._known.sent or exc.details.get("status") not in _NO_SESSION:
                    raise
        return self._visit(url, headers, self._new_session())

    def _visit(self, url: str, headers: dict[str, str], session: str | None) -> Ran:
        """The execution on the session's container; the session ends with it, and waits where its fate is unknown."""
        door = Door(
            url=f"ws{url.removeprefix('http')}{protocol.PATH}",
            headers={**headers, **session_header(session)},
            is_remote=not url.startswith("http://127."),
            hint=self._here.line("status"),
        )
        try:
            envelope = self._execute(door)
        except Unauthorized as exc:
            self._leave(session)
            raise _refused(self._here, exc) from exc
        except Unreachable as exc:
            raise self._lost(exc) from exc
        except ConnectionFailed:
            raise
        except OperationError:
            self._leave(session)
            raise
        self._leave(session)
        return Ran(envelope, self._ready.artifacts)

    def _new_session(self) -> str | None:
        """One on a container that serves, kept for whoever comes back for the execution."""
        deadline = time.monotonic() + COLD_S
        while True:
            try:
                token = self._target.open_session(self._here.app, idle_s=IDLE_S, timeout_s=_SAY_S)
                break
            except TimedOut:
                if time.monotonic() > deadline:
                    raise
                self._progress(f"waiting for a container of {self._here.app}")
        if token:
            self._state.keep_session(self._here.app, self._known.execution_id, token)
        return token

    def _leave(self, session: str | None) -> None:
        if session:
            self._target.close_session(self._here.app, session)
            self._state.keep_session(self._here.app, self._known.execution_id, None)

    def _execute(self, door: Door) -> dict[str, object]:
        """The execution, as soon as a container serves. Until then nothing was sent."""
        deadline, said = time.monotonic() + COLD_S, False
        while True:
            try:
                envelope = runs.execute(
                    self._ready.request,
                    door,
                    known=self._known,
                    artifacts=self._ready.artifacts,
                    sources=self._sources,
                    identify=self._identify,
                    on_event=self._on_event,
                    is_gone=self._is_gone,
                )
                return envelope.document()
            except Asleep:
                if self._known.sent or time.monotonic() > deadline:
                    raise
                if not said:
                    self._progress(f"waiting for a container of {self._here.app}")
                    said = True
                time.sleep(_PAUSE_S)

    def _is_gone(self) -> bool:
        """Whether the app was stopped; that is not known while Modal can't be asked."""
        try:
            app = self._target.find(self._here.app)
        except OperationError:
            return False
        return app is None or app.state != "deployed"

    def _identify(self, hello: protocol.Hello) -> None:
        spec = self._ready.spec
        if hello.ref != str(spec.ref):
            raise ConnectionFailed(
                f"{hello.ref} answers at the URL of {self._here.app}", hint=self._here.line("start", "--oci OCI")
            )
        _refuse_drift(hello, spec, self._here, self._state.app(spec.ref, self._here.env), self._warn)

    def _lost(self, lost: Unreachable) -> OperationError:
        if self._known.sent:
            return ExecutionLost(
                f"the connection to {self._here.app} was lost, and with it the execution's fate: {lost}",
                hint=self._here.line("logs"),
            )
        return ConnectionFailed(f"{self._here.app} can't be reached: {lost}", hint=self._here.line("status"))


def _refuse_drift(
    hello: protocol.Hello, spec: ProcessorSpec, here: Place, record: AppRecord | None, warn: Callable[[str], None]
) -> None:
    """Raises Drift when image or spec is not what `start` would take now; without a pin, the image is not compared."""
    pin = spec.pins.get(AMD64)
    image, spec_digest = pin.digest if pin else None, spec.spec_digest
    if record is not None and record.forced and record.app == here.app:
        warn(f"{spec.ref}: {record.image_digest} was chosen when it was deployed, which counts until the next start")
        image, spec_digest = record.image_digest, record.spec_digest
    elif image is None:
        warn(f"{spec.ref} has no pin for {AMD64}: nothing says that {hello.image_digest} is the right image")
    for of, running, selected in (("image", hello.image_digest, image), ("spec", hello.spec_digest, spec_digest)):
        if selected and running != selected:
            raise Drift(
                f"the deployed {of} of {spec.ref} is {running}, {selected} would be deployed to {here.env}",
                hint=here.line("start", "--oci", str(pin) if pin else "OCI"),
                details={"of": of, "running": running, "selected": selected},
            )


def _refused(here: Place, error: Unauthorized) -> Unauthorized:
    return Unauthorized(
        f"the URL of {here.app} refused us",
        hint="set MODAL_PROXY_TOKEN_ID and MODAL_PROXY_TOKEN_SECRET to good proxy credentials, and THEORY_RUN_TOKEN "
        "to what it was at modalctl start",
        details=error.details,
    )
