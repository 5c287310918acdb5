"""manage.py processorctl: the registry's processors and their images."""

from collections.abc import Iterable
from typing import Any

from apps.errors import InvalidRegistry
from apps.processors.management.commands._base import Parser, Result, SubcommandCommand


class Command(SubcommandCommand):
    help = "List, show and check processors, and build their images."

    def add_arguments(self, parser: Parser) -> None:
        subparsers = self.subparsers(parser)
        self.subcommand(
            subparsers,
            self.list,
            help="list all processors with their pins and builds",
            examples=("{prog} list", "{prog} list --json"),
        )
        show = self.subcommand(
            subparsers,
            self.show,
            help="show one processor: its spec, digest and image",
            examples=("{prog} show --ref llm/litellm@1", "{prog} show --ref llm/litellm@1 --json"),
        )
        self.subcommand(
            subparsers,
            self.validate,
            help="check every registry.yaml",
            examples=("{prog} validate", "{prog} validate --json"),
        )
        build = self.subcommand(
            subparsers,
            self.build,
            help="build a processor's image on this machine",
            examples=(
                "{prog} build --ref llm/litellm@1 --platforms linux/amd64",
                "{prog} build --ref llm/litellm@1 --platforms linux/amd64,linux/arm64 --json",
            ),
        )
        for parser in (show, build):
            parser.add_argument("--ref", required=True, metavar="REF", help="processor ref, e.g. llm/litellm@1")
        build.add_argument(
            "--platforms",
            default="linux/amd64,linux/arm64",
            metavar="LIST",
            help="comma-separated platforms (default: %(default)s)",
        )

    def list(self, options: dict[str, Any]) -> Result:
        from apps.processors import catalog, wiring
        from apps.settings import Settings

        settings = Settings.read()
        document = catalog.listing(settings.root, state=wiring.state(settings)).document()
        return Result(document, lambda: self._listing(document))

    def show(self, options: dict[str, Any]) -> Result:
        from apps.processors import catalog
        from apps.processors.reference import ProcessorRef
        from apps.settings import Settings

        document = catalog.show(Settings.read().root, ProcessorRef.parse(options["ref"])).document()
        return Result(document, lambda: self.outline({key: document[key] for key in document if key != "status"}))

    def validate(self, options: dict[str, Any]) -> Result:
        from apps.processors import registry
        from apps.settings import Settings

        try:
            checked = registry.check(Settings.read().root)
        except InvalidRegistry as exc:
            for finding in exc.details["findings"]:
                self.note("{file}:{line}:{column}: {message}".format(**finding))
            raise
        return Result({"status": "success", "checked": checked}, f"{checked} checked, all well")

    def build(self, options: dict[str, Any]) -> Result:
        from apps.processors import images, registry, wiring
        from apps.processors.reference import Platform, ProcessorRef
        from apps.settings import Settings

        ref, platforms = ProcessorRef.parse(options["ref"]), Platform.parse_list(options["platforms"])
        settings = Settings.read()
        built = images.build(
            registry.load(settings.root, ref),
            platforms,
            settings=settings,
            builder=wiring.builder(settings),
            state=wiring.state(settings),
            progress=self.note,
        ).document()
        return Result(built, lambda: self._built(built))

    def _listing(self, document: dict[str, Any]) -> str:
        rows = [
            (
                processor["ref"],
                _platforms(name for name, pin in processor["pins"].items() if pin),
                _platforms(build["platform"] for build in processor["builds"]),
                max((build["built_at"] for build in processor["builds"]), default="-"),
            )
            for processor in document["processors"]
        ]
        return self.table(("REF", "PINNED", "BUILT", "BUILT AT"), rows)

    def _built(self, document: dict[str, Any]) -> str:
        rows = [
            (image["platform"], image["digest"] or image["image_id"], f"{image['size_bytes'] / 1e6:.1f} MB")
            for image in document["images"]
        ]
        lines = [
            f"{document['ref']} {document['tag']} for {document['engine']}, {document['duration_ms'] / 1000:.1f} s"
        ]
        lines += [self.table(("PLATFORM", "IMAGE", "SIZE"), rows)] if rows else []
        lines += [f"skipped: {', '.join(document['skipped'])}"] if document["skipped"] else []
        return "\n".join(lines)


def _platforms(names: Iterable[str]) -> str:
    return ",".join(dict.fromkeys(names)) or "-"
