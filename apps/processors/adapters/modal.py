"""The Target over Modal's SDK, which is imported in here alone, and only when something is asked."""

from collections.abc import Iterator, Mapping

from apps.errors import OperationError
from apps.processors.adapters import modal_deploy, modal_logs, modal_rpc, modal_secrets
from apps.processors.adapters.base import LogLine, Progress
from apps.processors.adapters.modal_deploy import SERVER
from apps.processors.adapters.modal_line import Line
from apps.processors.adapters.target import App, Deployed, Endpoint, Plan, ProxyToken, Unavailable


class ModalTarget:
    """A `Target`: one environment of the workspace that the caller is logged in to."""

    def __init__(self, environment: str) -> None:
        self.environment = environment
        self._line = Line(environment)

    def check(self) -> None:
        self._line.ask(self._line.exists, doing="find the environment")

    # apps

    def find(self, app: str) -> App | None:
        try:
            return self._line.find(lambda: modal_rpc.find(app, self.environment), doing=f"look up {app}")
        except Unavailable:
            return self._find_deployed(app)

    def _find_deployed(self, app: str) -> App | None:
        """As `find`, by what is public: nothing is known of stopped apps."""

        async def ask() -> App:
            import modal

            found = await modal.App.lookup.aio(app, environment_name=self.environment)
            info = await found.info.aio(refresh=True)
            at = info.lifecycle.deployed_at
            moment = modal_rpc.moment(at.timestamp()) if at else None
            return App(info.app_id, "deployed", info.lifecycle.version, moment)

        return self._line.find(ask, doing=f"look up {app}")

    def endpoint(self, app: str) -> Endpoint | None:
        async def ask() -> Endpoint:
            import modal

            info = await modal.Server.from_name(app, SERVER, environment_name=self.environment).info.aio(refresh=True)
            return Endpoint(info.server_url.rstrip("/"), info.image_info.image_id or None, info.sessioned)

        return self._line.find(ask, doing=f"tell the URL of {app}")

    def deploy(self, plan: Plan, *, timeout_s: float, progress: Progress) -> None:
        modal_deploy.refuse_old_builder(self._line)
        modal_deploy.deploy(self._line, plan, timeout_s=timeout_s, progress=progress)

    def image_id(self, app: str, digest: str) -> str | None:
        async def ask() -> str:
            import modal

            # Published by `deploy`; looking it up builds nothing.
            image = modal.Image.from_name(modal_deploy.name_of(app, digest), environment_name=self.environment)
            deployed = await modal.App.lookup.aio(app, environment_name=self.environment)
            return str((await image.build.aio(deployed)).object_id)

        return self._line.find(ask, doing=f"tell the image of {app}")

    def tags(self, app: str) -> Mapping[str, str]:
        async def ask() -> dict[str, str]:
            import modal

            return dict(await (await modal.App.lookup.aio(app, environment_name=self.environment)).get_tags.aio())

        return self._line.ask(ask, doing=f"tell what is recorded of {app}")

    def record(self, app: str, tags: Mapping[str, str]) -> None:
        async def work() -> None:
            import modal

            await (await modal.App.lookup.aio(app, environment_name=self.environment)).set_tags.aio(dict(tags))

        self._line.ask(work, doing=f"record what {app} is")

    def history(self, app: App) -> tuple[Deployed, ...]:
        return self._line.ask(lambda: modal_rpc.history(app.id), doing="tell the history of the app")

    def roll_back(self, app: App, version: int) -> None:
        self._line.ask(lambda: modal_rpc.roll_back(app.id, version), doing=f"roll back to version {version}")

    def roll_over(self, app: App) -> None:
        self._line.ask(lambda: modal_rpc.roll_over(app.id), doing="replace the running containers")

    def containers(self, app: str) -> frozenset[str]:
        async def ask() -> frozenset[str]:
            import modal

            server = modal.Server.from_name(app, SERVER, environment_name=self.environment)
            listing = getattr(server, "_experimental_list_containers", None)
            if listing is None:
                raise Unavailable("this version of Modal's SDK lists no containers")
            return frozenset(each.container_id for each in await listing.aio())

        return self._line.ask(ask, doing=f"list the containers of {app}")

    def stop(self, app: App) -> None:
        async def work() -> None:
            import modal

            await (await modal.App.lookup.aio(app.id)).stop.aio()

        if app.state == "deployed":
            self._line.find(work, doing="stop the app")

    def logs(self, app: str, *, follow: bool, tail: int | None, since: str | None) -> Iterator[LogLine]:
        return modal_logs.logs(self._line, app, follow=follow, tail=tail, since=since)

    # secrets

    def secret_names(self, secret: str) -> frozenset[str] | None:
        return modal_secrets.names(self._line, secret)

    def has_secret(self, secret: str) -> bool:
        return modal_secrets.exists(self._line, secret)

    def write_secret(self, secret: str, values: Mapping[str, str]) -> None:
        modal_secrets.write(self._line, secret, values)

    def remove_from_secret(self, secret: str, names: frozenset[str]) -> None:
        modal_secrets.remove(self._line, secret, names)

    # the door

    def new_proxy_token(self, label: str) -> ProxyToken:
        async def work() -> ProxyToken:
            import modal

            made = await modal.Workspace.from_context().proxy_tokens.create.aio(name=label)
            return ProxyToken(made.token_id, made.token_secret)

        return self._line.ask(work, doing="make proxy credentials")

    def proxy_token_ids(self) -> frozenset[str]:
        async def ask() -> frozenset[str]:
            import modal

            return frozenset(each.token_id for each in await modal.Workspace.from_context().proxy_tokens.list.aio())

        return self._line.ask(ask, doing="list proxy credentials")

    def open_session(self, app: str, *, idle_s: int, timeout_s: float) -> str | None:
        async def work() -> str | None:
            import modal

            server = modal.Server.from_name(app, SERVER, environment_name=self.environment)
            await server.hydrate.aio()
            sessions = getattr(server, "sessions", None)
            if sessions is None or not (await server.info.aio()).sessioned:
                return None
            return str((await sessions.start.aio(idle_timeout=idle_s)).token)

        return self._line.ask(work, timeout_s=timeout_s, doing=f"bring up a container of {app}")

    def close_session(self, app: str, token: str) -> None:
        async def work() -> None:
            import modal

            server = modal.Server.from_name(app, SERVER, environment_name=self.environment)
            await server.sessions.terminate.aio(token)

        try:
            self._line.ask(work, timeout_s=5, doing="end the session")
        except OperationError:
            return  # it ends by itself when it was idle long enough
