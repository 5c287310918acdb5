"""manage.py processorctl: the registry's processors and their images."""

from collections.abc import Iterable
from typing import Any

from apps.errors import InvalidRegistry
from apps.processors.management.commands._base import Parser, Result, SubcommandCommand


class Command(SubcommandCommand):
    help = "List, show and check processors, build and push their images."

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
            help="show one processor: its spec, pins, and what is stored of its images",
            examples=("{prog} show --ref llm/litellm@1", "{prog} show --ref llm/litellm@1 --remote --json"),
        )
        show.add_argument("--remote", action="store_true", help="ask the image registry what it has of the images")
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
        build.add_argument(
            "--check-reproducible",
            action="store_true",
            help="instead: build twice without cache, keep neither, and tell what differs",
        )
        push = self.subcommand(
            subparsers,
            self.push,
            help="push a processor's last builds and an index over them to its image registry",
            examples=(
                "{prog} push --ref llm/litellm@1",
                "{prog} push --ref llm/litellm@1 --platforms linux/amd64,linux/arm64 --json",
            ),
        )
        self._add_pin(subparsers)
        verify = self.subcommand(
            subparsers,
            self.verify,
            help="compare pins with their image registries, with the last builds and with what runs here",
            examples=("{prog} verify", "{prog} verify --ref llm/litellm@1 --json"),
        )
        verify.add_argument("--ref", metavar="REF", help="this processor alone (default: all)")
        for parser in (show, build, push):
            parser.add_argument("--ref", required=True, metavar="REF", help="processor ref, e.g. llm/litellm@1")
        for parser in (build, push):
            parser.add_argument(
                "--platforms",
                default="linux/amd64,linux/arm64",
                metavar="LIST",
                help="comma-separated platforms (default: %(default)s)",
            )

    def _add_pin(self, subparsers: Any) -> None:
        pin = self.subcommand(
            subparsers,
            self.pin,
            help="write an image's digest into registry.yaml, for one platform",
            examples=(
                "{prog} pin --ref llm/litellm@1 --platform amd64 --oci ghcr.io/org/image@sha256:abc...",
                "{prog} pin --ref llm/litellm@1 --platform amd64 --rollback --json",
            ),
        )
        pin.add_argument("--ref", required=True, metavar="REF", help="processor ref, e.g. llm/litellm@1")
        pin.add_argument("--platform", required=True, metavar="PLATFORM", help="amd64 or arm64")
        what = pin.add_mutually_exclusive_group(required=True)
        what.add_argument("--oci", metavar="IMAGE", help="the image: host/repository@sha256:<64 hex>")
        what.add_argument("--rollback", action="store_true", help="the pin before, from the history that git keeps")
        pin.add_argument(
            "--verify", action="store_true", help="ask the image registry first: is it there, and of that platform?"
        )

    def list(self, options: dict[str, Any]) -> Result:
        from apps.processors import catalog, wiring
        from apps.settings import Settings

        settings = Settings.read()
        document = catalog.listing(settings.root, state=wiring.state(settings)).document()
        return Result(document, lambda: self._listing(document))

    def show(self, options: dict[str, Any]) -> Result:
        from apps.processors import catalog, wiring
        from apps.processors.reference import ProcessorRef
        from apps.settings import Settings

        ref, settings = ProcessorRef.parse(options["ref"]), Settings.read()
        remote = wiring.image_registry(settings) if options["remote"] else None
        document = catalog.show(settings.root, ref, state=wiring.state(settings), remote=remote).document()
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

        if options["check_reproducible"]:
            return self._reproduced(options)
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

    def _reproduced(self, options: dict[str, Any]) -> Result:
        from apps.processors import registry, reproducing, wiring
        from apps.processors.reference import Platform, ProcessorRef
        from apps.settings import Settings

        ref, platforms = ProcessorRef.parse(options["ref"]), Platform.parse_list(options["platforms"])
        settings = Settings.read()
        found = reproducing.check(
            registry.load(settings.root, ref),
            platforms,
            settings=settings,
            builder=wiring.builder(settings),
            rebuilder=wiring.rebuilder(settings),
            progress=self.note,
        )
        answer = Result(found.document(), found.text())
        if (error := found.error()) is not None:
            if not options["json"]:
                self.emit(answer)
            raise error
        return answer

    def push(self, options: dict[str, Any]) -> Result:
        from apps.processors import images, publishing, registry, wiring
        from apps.processors.reference import Platform, ProcessorRef
        from apps.settings import Settings

        ref, platforms = ProcessorRef.parse(options["ref"]), Platform.parse_list(options["platforms"])
        settings = Settings.read()
        spec, place = registry.load(settings.root, ref), wiring.image_registry(settings)
        pushed = publishing.push(
            spec,
            platforms,
            repository=images.repository(spec, settings.repository_prefix),
            engine=wiring.engine(settings),
            registry=place,
            pusher=wiring.pusher(settings),
            prover=wiring.prover(settings, spec, place, progress=self.note, detail=self.detail),
            state=wiring.state(settings),
            progress=self.note,
        ).document()
        return Result(pushed, lambda: self._pushed(pushed))

    def pin(self, options: dict[str, Any]) -> Result:
        from apps.processors import pinning, wiring
        from apps.processors.reference import ImageReference, Platform, ProcessorRef
        from apps.settings import Settings

        ref, platform = ProcessorRef.parse(options["ref"]), Platform.parse(options["platform"])
        image = None if options["rollback"] else ImageReference.parse(options["oci"])
        settings = Settings.read()
        asked = (
            pinning.Asked(ref, platform, image)
            if image
            else pinning.previous(ref, platform, root=settings.root, environment=settings.environment)
        )
        pinned = pinning.pin(
            asked,
            root=settings.root,
            prefix=settings.repository_prefix,
            state=wiring.state(settings),
            images_at=wiring.image_registry(settings) if options["verify"] else None,
            warn=self.warn,
        )
        return Result(pinned.document(), pinned.text())

    def verify(self, options: dict[str, Any]) -> Result:
        from apps.processors import images, registry, verifying, wiring
        from apps.processors.reference import ProcessorRef
        from apps.settings import Settings

        only = ProcessorRef.parse(options["ref"]) if options["ref"] is not None else None
        settings = Settings.read()
        builder = wiring.builder(settings)
        verified = verifying.verify(
            [registry.load(settings.root, only)] if only else registry.load_all(settings.root),
            images_at=wiring.image_registry(settings),
            engines=wiring.engines(settings),
            state=wiring.state(settings),
            built_for=builder.engine,
            source_now=lambda spec: (
                images.request(spec, (), settings=settings, builder=builder, progress=self.detail).source_digest
            ),
        )
        answer = Result(verified.document(), lambda: self._verified(verified.document()))
        if (error := verified.error()) is not None:
            if not options["json"]:
                self.emit(answer)
            raise error
        return answer

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

    def _verified(self, document: dict[str, Any]) -> str:
        rows = [
            (
                row["ref"],
                row["platform"],
                (row["pin"] or "-").rpartition("@")[2][:19],
                "other platform" if row["platform_ok"] is False else row["registry"] or "-",
                row["build"] or "-",
                row["source"],
                row["local"],
            )
            for row in document["checked"]
        ]
        return self.table(("REF", "PLATFORM", "PIN", "REGISTRY", "LAST BUILD", "SOURCE", "RUNS HERE"), rows)

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

    def _pushed(self, document: dict[str, Any]) -> str:
        rows = [
            (
                image["platform"],
                image["oci"].partition("@")[2],
                _megabytes(image["size_bytes"]),
                _megabytes(image["uploaded_bytes"]),
                "yes" if image["provenance"] else "-",
                "yes" if image["sbom"] else "-",
            )
            for image in document["images"]
        ]
        heads = ("PLATFORM", "DIGEST", "SIZE", "UPLOADED", "PROVENANCE", "SBOM")
        place, took_s = f"{document['repository']}:{document['tag']}", document["duration_ms"] / 1000
        lines = [
            f"{document['ref']} is {place}, {took_s:.1f} s",
            self.table(heads, rows),
            f"index: {document['index']}",
            "to pin:",
            *(f"  {line}" for line in document["pin"]),
        ]
        return "\n".join(lines)


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"


def _platforms(names: Iterable[str]) -> str:
    return ",".join(dict.fromkeys(names)) or "-"
