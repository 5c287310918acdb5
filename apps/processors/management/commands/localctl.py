"""localctl: processors on this machine."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from apps.processors.management.commands._base import Result, SubcommandCommand
from apps.processors.management.commands._running import (
    REF_HELP,
    add_options,
    asked,
    count,
    event_result,
    ran_text,
    seconds,
    short,
)

if TYPE_CHECKING:
    from apps.processors import local


class Command(SubcommandCommand):
    help = "Start, run, inspect and stop processors on this machine."

    def add_arguments(self, parser: Any) -> None:
        from apps.processors.management.commands import _outputs

        subparsers = self.subparsers(parser)
        self._add_start(subparsers)
        self._add_run(subparsers)
        self._add_stop(subparsers)
        self._add_status(subparsers)
        self._add_logs(subparsers)
        _outputs.add_arguments(
            self.subcommand(subparsers, self.outputs, help=_outputs.HELP, examples=_outputs.EXAMPLES)
        )

    def _add_start(self, subparsers: Any) -> None:
        start = self.subcommand(
            subparsers,
            self.start,
            help="start a reusable container, secrets injected from the environment",
            examples=(
                "OPENAI_API_KEY=$OPENAI_API_KEY {prog} start --ref llm/litellm@1",
                "{prog} start --ref llm/litellm@1 --allow-missing-secrets --json",
            ),
        )
        start.add_argument("--ref", required=True, help=REF_HELP)
        start.add_argument("--platform", metavar="PLATFORM", help="amd64 or arm64 (default: the engine's own)")
        start.add_argument(
            "--timeout", type=seconds, default=120.0, metavar="SECONDS", help="to be ready within (default: 120)"
        )
        start.add_argument(
            "--allow-missing-secrets", action="store_true", help="start without them; real runs then end in an error"
        )
        start.add_argument(
            "--source", choices=("build", "pin"), help="take that one, whatever would be selected; until the next start"
        )
        start.add_argument(
            "--allow-drift", action="store_true", help="let what runs go on though another would be selected, likewise"
        )

    def _add_run(self, subparsers: Any) -> None:
        run = self.subcommand(
            subparsers,
            self.run,
            help="invoke a started processor",
            examples=(
                "{prog} run --ref llm/litellm@1 --mode mock --json",
                "{prog} run --ref llm/litellm@1 --inputs-file inputs.json --stream",
            ),
        )
        add_options(run, platform_help="amd64 or arm64: whose digest must be running")

    def _add_stop(self, subparsers: Any) -> None:
        stop = self.subcommand(
            subparsers,
            self.stop,
            help="stop a processor's container and keep its logs",
            examples=("{prog} stop --ref llm/litellm@1", "{prog} stop --all --json"),
        )
        which = stop.add_mutually_exclusive_group(required=True)
        which.add_argument("--ref", help=REF_HELP)
        which.add_argument("--all", action="store_true", help="every container of this checkout")

    def _add_status(self, subparsers: Any) -> None:
        status = self.subcommand(
            subparsers,
            self.status,
            help="list this checkout's containers",
            examples=("{prog} status", "{prog} status --ref llm/litellm@1 --json"),
        )
        status.add_argument("--ref", help=REF_HELP)

    def _add_logs(self, subparsers: Any) -> None:
        logs = self.subcommand(
            subparsers,
            self.logs,
            help="print a container's logs, also after it was stopped",
            examples=(
                "{prog} logs --ref llm/litellm@1 --follow",
                "{prog} logs --ref llm/litellm@1 --tail 20 --since 10m",
            ),
        )
        logs.add_argument("--ref", required=True, help=REF_HELP)
        logs.add_argument("--follow", action="store_true", help="go on until the container ends")
        logs.add_argument("--tail", type=count, metavar="N", help="the last N lines")
        logs.add_argument("--since", metavar="T", help="10m, 2h, 1d or an RFC 3339 time")

    def start(self, options: dict[str, Any]) -> Result:
        from apps.processors import local, registry, wiring
        from apps.processors.reference import Platform, ProcessorRef
        from apps.settings import Settings

        ref = ProcessorRef.parse(options["ref"])
        platform = Platform.parse(options["platform"]) if options["platform"] is not None else None
        settings = Settings.read()
        engine, *others = wiring.engines(settings)
        started = local.start(
            local.Starting(
                spec=registry.load(settings.root, ref),
                environ=settings.environment,
                platform=platform,
                timeout_s=options["timeout"],
                allow_missing_secrets=options["allow_missing_secrets"],
                source=options["source"],
                allow_drift=options["allow_drift"],
            ),
            engine=engine,
            others=others,
            state=wiring.state(settings),
            root_id=wiring.root_id(settings.root),
            progress=self.note,
            warn=self.warn,
        )
        return Result(started.document(), _started_text(started))

    def run(self, options: dict[str, Any]) -> Result:
        from apps.processors import running, wiring
        from apps.settings import Settings

        ran = running.run(
            asked(options),
            settings_of=Settings.read,
            state_of=wiring.state,
            storage_of=wiring.storage,
            engine_of=wiring.engine,
            on_event=lambda event: self.emit(event_result(event)) if options["stream"] else None,
            warn=self.warn,
        )
        return Result(ran.envelope, lambda: ran_text(ran, said=options["stream"]))

    def stop(self, options: dict[str, Any]) -> Result:
        from apps.processors import containers, registry, wiring
        from apps.processors.reference import ProcessorRef
        from apps.settings import Settings

        only = ProcessorRef.parse(options["ref"]) if options["ref"] is not None else None
        settings = Settings.read()
        stopped = containers.stop(
            only,
            engines=wiring.engines(settings),
            state=wiring.state(settings),
            spec_of=lambda ref: registry.load(settings.root, ref),
            progress=self.detail,
            warn=self.warn,
        )
        return Result(stopped.document(), stopped.text())

    def status(self, options: dict[str, Any]) -> Result:
        from apps.processors import containers, registry, wiring
        from apps.processors.reference import ProcessorRef
        from apps.settings import Settings

        only = ProcessorRef.parse(options["ref"]) if options["ref"] is not None else None
        settings = Settings.read()
        rows = containers.status(
            only,
            engines=wiring.engines(settings),
            state=wiring.state(settings),
            spec_of=lambda ref: registry.load(settings.root, ref),
            warn=self.warn,
        )
        return Result({"status": "success", "containers": rows}, lambda: self._status_text(rows))

    def logs(self, options: dict[str, Any]) -> Iterator[Result]:
        from apps.processors import containers, registry, wiring
        from apps.processors.management.commands import _moments
        from apps.processors.reference import ProcessorRef
        from apps.settings import Settings

        ref = ProcessorRef.parse(options["ref"])
        since = _moments.moment(options["since"]) if options["since"] is not None else None
        settings = Settings.read()
        lines = containers.logs(
            ref,
            engines=wiring.engines(settings),
            state=wiring.state(settings),
            spec_of=lambda ref: registry.load(settings.root, ref),
            follow=options["follow"],
            tail=options["tail"],
            since=since,
            warn=self.warn,
        )
        for line in lines:
            document = {"ts": line.ts, "stream": line.stream, "line": line.line}
            yield Result(document, line.line, stderr=line.stream == "stderr")

    def outputs(self, options: dict[str, Any]) -> Result:
        from apps.processors.management.commands import _outputs

        return _outputs.answer(self, options)

    def _status_text(self, rows: list[dict[str, Any]]) -> str:
        if not rows:
            return "nothing is started"
        heads = ("REF", "ENGINE", "STATE", "HEALTH", "PORT", "SOURCE", "IMAGE", "DRIFT")
        return self.table(
            heads,
            [
                (
                    row["ref"],
                    f"{row['engine']} ({row['isolation']})",
                    row["state"],
                    row["health"],
                    row["port"] or "-",
                    row["source"],
                    short(row["image_digest"]),
                    f"{row['drift']['of']}: {short(row['drift']['selected'])} selected" if row["drift"] else "-",
                )
                for row in rows
            ],
        )


def _started_text(started: "local.Started") -> str:
    image = f"{started.selection.source} {short(started.selection.digest)}, {started.selection.platform}"
    how = "runs already" if started.reused else "is ready"
    return f"{started.ref} {how} on {started.url} ({started.engine}, {image}) after {started.ready_ms} ms"
