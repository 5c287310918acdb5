"""The line to Modal's control plane: looked at before it is used, each call with a deadline, failures in our words."""

import asyncio
import importlib.util
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from apps.errors import ConfigurationError, ModalFailed, TimedOut, Unauthorized
from apps.processors.adapters.target import Unavailable

T = TypeVar("T")

CONTROL_S: Final = 30.0
"""What a call to the control plane may take."""
CONNECT_S: Final = 3.0
"""What a connection to it may take. The SDK itself would try for a minute and say nothing."""

LOGIN_HINT: Final = "modal token new, or set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET"


class Line:
    """Calls about one environment."""

    def __init__(self, environment: str) -> None:
        self.environment = environment
        self._looked = False

    def ask(self, question: Callable[[], Awaitable[T]], *, timeout_s: float = CONTROL_S, doing: str) -> T:
        """What `question` (of the SDK, imported in it) answers. `doing` ends the sentence "Modal did not …".

        What is not there is a ModalFailed, unless it is the environment.
        """
        with translated(doing):
            self.look()
            try:
                # In a loop of ours: a wait that is given up leaves nothing behind that the interpreter would wait for.
                return asyncio.run(asyncio.wait_for(self._of_environment(question), timeout_s))
            except TimeoutError as exc:
                raise TimedOut(f"Modal did not {doing} within {timeout_s:g} s", hint="try again") from exc
            except BaseException:
                self._looked = False  # it may have gone: the next call looks again
                raise

    def find(self, question: Callable[[], Awaitable[T]], *, timeout_s: float = CONTROL_S, doing: str) -> T | None:
        """As `ask`; None where what is asked for is not there."""

        async def or_none() -> T | None:
            from modal.exception import NotFoundError

            try:
                return await question()
            except NotFoundError:
                await self.exists()
                return None

        return self.ask(or_none, timeout_s=timeout_s, doing=doing)

    async def _of_environment(self, question: Callable[[], Awaitable[T]]) -> T:
        """Where something is not there, it may be the environment. Which of the two, only Modal's prose would tell."""
        from modal.exception import InvalidError, NotFoundError

        try:
            return await question()
        except (NotFoundError, InvalidError):
            await self.exists()
            raise

    async def exists(self) -> None:
        """Raises ConfigurationError when there is no such environment."""
        import modal
        from modal.exception import InvalidError, NotFoundError

        try:
            await modal.Environment.from_name(self.environment).hydrate.aio()
        except (NotFoundError, InvalidError) as exc:
            raise ConfigurationError(
                f"Modal has no environment {self.environment!r}", hint=f"modal environment create {self.environment}"
            ) from exc

    def look(self, *, again: bool = False) -> None:
        """Return when there is a login, and something answers where the control plane should be."""
        if self._looked and not again:
            return
        # The SDK's event loop ends with the process, in a thread: what Ctrl-C cut off there is told to nobody.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        config = _config()
        if not (config.get("token_id") and config.get("token_secret")) and not config.get("oauth_refresh_token"):
            raise Unauthorized("there is no login for Modal", hint=LOGIN_HINT)
        failures = []
        for url in str(config.get("server_url")).split(","):
            try:
                socket.create_connection(_where(url.strip()), CONNECT_S).close()
                self._looked = True
                return
            except OSError as exc:
                failures.append(f"{urlsplit(url.strip()).netloc or url}: {exc}")
        raise ModalFailed(
            f"Modal can't be reached: {'; '.join(failures)}", hint="look at the network, and at MODAL_SERVER_URL if set"
        )


def _config() -> Any:
    from modal.config import config

    return config


def _where(url: str) -> tuple[str, int]:
    """What to connect to for `url`: its own host, or the caller's proxy, which the SDK would use."""
    parts = urlsplit(url)
    host, tls = parts.hostname or "", parts.scheme == "https"
    proxy = _proxy(host, tls=tls)
    if proxy is None:
        return host, parts.port or (443 if tls else 80)
    if importlib.util.find_spec("python_socks") is None:
        raise ConfigurationError(
            "a proxy is set in the environment, and Modal's SDK lacks what it needs to use one",
            hint="pip install 'modal[api-proxy-support]', or go without: MODAL_DISABLE_API_PROXY=1",
        )
    there = urlsplit(proxy)
    return there.hostname or "", there.port or 80


def _proxy(host: str, *, tls: bool) -> str | None:
    try:
        from modal._utils.proxy_support import get_proxy_url
    except ImportError:  # another version of the SDK: it will find out by itself
        return None
    return get_proxy_url(host, use_ssl=tls)


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """The SDK's exceptions, and those of the libraries below it, in our words."""
    from grpclib.exceptions import GRPCError, StreamTerminatedError
    from modal import exception

    try:
        yield
    except exception.AuthError as exc:
        raise Unauthorized(f"Modal refused the login: {words(exc)}", hint=LOGIN_HINT) from exc
    except exception.PermissionDeniedError as exc:
        raise Unauthorized(
            f"Modal does not let this login {doing}: {words(exc)}", hint="ask whoever owns the workspace"
        ) from exc
    except exception.UnimplementedError as exc:
        raise Unavailable(words(exc)) from exc
    except exception.VersionError as exc:
        raise ConfigurationError(f"Modal: {words(exc)}", hint="pip install --upgrade modal") from exc
    except exception.TimeoutError as exc:
        raise TimedOut(f"Modal did not {doing} in time: {words(exc)}", hint="try again") from exc
    except (exception.Error, GRPCError, StreamTerminatedError, OSError) as exc:
        raise ModalFailed(f"Modal did not {doing}: {words(exc)}", hint="try again") from exc


def words(exc: BaseException) -> str:
    """What an exception says, on one line."""
    return " ".join(str(exc).split())[:500] or type(exc).__name__
