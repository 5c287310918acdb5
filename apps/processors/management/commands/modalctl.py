"""modalctl: processors on Modal."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from apps.errors import UsageError
from apps.processors.management.commands._base import Parser, Result, SubcommandCommand
from apps.processors.management.commands._modal_arguments import add_subcommands
from apps.processors.management.commands._running import asked, event_result, ran_text, short

if TYPE_CHECKING:
    from apps.processors.deployments import Place
    from apps.settings import Settings


class Command(SubcommandCommand):
    help = "Deploy, run, inspect and stop processors on Modal."

    def add_arguments(self, parser: Parser) -> None:
        add_subcommands(self, parser)

    def start(self, options: dict[str, Any]) -> Result:
        from apps.processors import deploying, git, registry, wiring
        from apps.processors.reference import ImageReference

        _amd64(options["platform"])
        image = ImageReference.parse(options["oci"])
        settings, here = _place(options, of_state=False)
        spec = registry.load(settings.root, here.ref)
        starting = deploying.Starting(
            spec=spec,
            here=here,
            image=image,
            proxy_token=settings.modal_proxy_token,
            run_token=settings.run_token,
            root=settings.root,
            revision=git.revision(settings.root, environment=settings.environment),
            timeout_s=options["timeout"],
            allow_drift=options["allow_drift"],
        )
        if options["dry_run"]:
            planned = deploying.dry_run(starting, self.warn)
            return Result(planned.document())
        state = wiring.modal_state(settings)
        with state.deploying(here.env, here.app):
            started = deploying.start(
                starting, target=wiring.target(here.env), state=state, progress=self.note, warn=self.warn
            )
        text = (
            f"{here.ref} serves in {here.env} at {started.url} ({here.app}, version {started.version}, {image.digest})"
        )
        return Result(started.document(), text)

    def sync_secrets(self, options: dict[str, Any]) -> Result:
        from apps.processors import registry, syncing, wiring

        settings, here = _place(options)
        asked_for = syncing.Syncing(
            spec=registry.load(settings.root, here.ref),
            here=here,
            environ=settings.environment,
            fail_on_missing=options["fail_on_missing"],
            dry_run=options["dry_run"],
            prune=options["prune"],
        )
        synced = syncing.sync(asked_for, target=wiring.target(here.env), progress=self.note)
        return Result(synced.document(), synced.text())

    def run(self, options: dict[str, Any]) -> Result:
        from apps.processors import remote, wiring
        from apps.settings import Settings

        _amd64(options["platform"])
        ran = remote.run(
            asked(options),
            options["env"],
            settings_of=Settings.read,
            state_of=wiring.modal_state,
            storage_of=wiring.storage,
            target_of=wiring.target,
            on_event=lambda event: self.emit(event_result(event)) if options["stream"] else None,
            progress=self.note,
            warn=self.warn,
        )
        return Result(ran.envelope, lambda: ran_text(ran, said=options["stream"]))

    def stop(self, options: dict[str, Any]) -> Result:
        from apps.processors import deployments, wiring

        _, here = _place(options)
        document = deployments.stop(here, wiring.target(here.env))
        how = "is stopped" if document["stopped"] else "was not deployed"
        return Result(document, f"{here.ref} {how} in {here.env} ({here.app})")

    def status(self, options: dict[str, Any]) -> Result:
        from apps.processors import deployments, wiring

        _, here = _place(options)
        row = deployments.status(here, wiring.target(here.env))
        heads = ("REF", "ENV", "APP", "STATE", "VERSION", "IMAGE", "DEPLOYED", "URL")
        cells = (row["ref"], row["env"], row["app"], row["state"], row["version"] or "-", short(row["digest"]))
        return Result(row, lambda: self.table(heads, [(*cells, row["deployed_at"] or "-", row["url"] or "-")]))

    def logs(self, options: dict[str, Any]) -> Iterator[Result]:
        from apps.processors import deployments, wiring
        from apps.processors.management.commands import _moments

        since = _moments.moment(options["since"]) if options["since"] is not None else None
        _, here = _place(options)
        lines = deployments.logs(
            here, wiring.target(here.env), follow=options["follow"], tail=options["tail"], since=since
        )
        for line in lines:
            document = {"ts": line.ts, "stream": line.stream, "line": line.line}
            yield Result(document, line.line, stderr=line.stream == "stderr")

    def verify_digest(self, options: dict[str, Any]) -> Result:
        from apps.processors import evidence, proxying, registry, wiring
        from apps.processors.reference import AMD64, ImageReference

        image = ImageReference.parse(options["oci"]) if options["oci"] is not None else None
        settings, here = _place(options)
        image = image or registry.load(settings.root, here.ref).pins.get(AMD64)
        if image is None:
            raise UsageError(f"{here.ref} has no pin for {AMD64}: --oci says which digest to expect")
        state = wiring.modal_state(settings)
        verified = evidence.verify(
            here,
            image.digest,
            target=wiring.target(here.env),
            headers_of=lambda: proxying.known(settings.modal_proxy_token, state).headers(None),
            timeout_s=options["timeout"],
        )
        return Result(verified.document(), verified.text())

    def history(self, options: dict[str, Any]) -> Result:
        from apps.processors import deployments, wiring

        _, here = _place(options)
        document = deployments.history_document(here, wiring.target(here.env))
        return Result(document, lambda: self._history_text(document["deployments"]))

    def rollback(self, options: dict[str, Any]) -> Result:
        from apps.processors import proxying, registry, reverting, wiring

        to = reverting.wanted(options["to"]) if options["to"] is not None else None
        settings, here = _place(options)
        state = wiring.modal_state(settings)
        with state.deploying(here.env, here.app):
            rolled = reverting.roll_back(
                registry.load(settings.root, here.ref),
                here,
                to,
                target=wiring.target(here.env),
                state=state,
                credentials_of=lambda: proxying.known(settings.modal_proxy_token, state),
                timeout_s=options["timeout"],
                progress=self.note,
                warn=self.warn,
            )
        document = rolled.document()
        text = f"{here.app} is {document['digest']} again, as in version {rolled.of}; now version {rolled.version}"
        return Result(document, text)

    def outputs(self, options: dict[str, Any]) -> Result:
        from apps.processors.management.commands import _outputs

        return _outputs.answer(self, options)

    def _history_text(self, rows: list[Mapping[str, Any]]) -> str:
        heads = ("VERSION", "IMAGE", "REVISION", "DEPLOYED", "BY", "")
        cells = [
            (
                row["version"],
                short(row["digest"]),
                (row["revision"] or "-")[:12],
                row["deployed_at"] or "-",
                row["deployed_by"] or "-",
                " ".join(
                    (["live"] if row["live"] else [])
                    + ([f"rollback to {row['rollback_of']}"] if row["rollback_of"] else [])
                ),
            )
            for row in rows
        ]
        return self.table(heads, cells)


def _place(options: Mapping[str, Any], *, of_state: bool = True) -> "tuple[Settings, Place]":
    """The caller's settings, and the app that is meant; `of_state`: the last start may have said so."""
    from apps.processors import deployments, wiring
    from apps.processors.reference import ProcessorRef
    from apps.settings import Settings

    ref = ProcessorRef.parse(options["ref"])
    settings = Settings.read()
    state = wiring.modal_state(settings) if of_state else None
    return settings, deployments.place(
        ref, options["env"], branch=settings.git_branch, user=settings.git_user, state=state
    )


def _amd64(platform: str | None) -> None:
    from apps.processors.reference import AMD64, Platform

    if platform is not None and Platform.parse(platform) != AMD64:
        raise UsageError(f"Modal runs {AMD64} alone, not {platform!r}", hint="leave --platform out, or amd64")
