"""What opens a deployment's URL: the proxy credentials of the environment, or those that `start` made and kept."""

from dataclasses import dataclass

from apps.errors import ConfigurationError, Unauthorized
from apps.processors.adapters.target import ProxyToken, Target
from apps.processors.answering import ask, refused
from apps.processors.modal_state import ModalState

VARIABLES = ("MODAL_PROXY_TOKEN_ID", "MODAL_PROXY_TOKEN_SECRET")


@dataclass(frozen=True, slots=True)
class Credentials:
    """Proxy credentials, and where they come from."""

    token: ProxyToken
    is_new: bool = False
    """Made just now: Modal's proxies may not know them yet."""

    def headers(self, run_token: str | None) -> dict[str, str]:
        """What every request to the URL carries."""
        headers = {"Modal-Key": self.token.id, "Modal-Secret": self.token.secret}
        return {**headers, "Authorization": f"Bearer {run_token}"} if run_token else headers


def given(token: tuple[str | None, str | None]) -> ProxyToken | None:
    """What the two variables say. Raises ConfigurationError when it is one alone."""
    id, secret = token
    if id and secret:
        return ProxyToken(id, secret)
    if id or secret:
        raise ConfigurationError(
            f"{VARIABLES[0] if id else VARIABLES[1]} is set, {VARIABLES[1] if id else VARIABLES[0]} is not",
            hint="set both, or neither",
        )
    return None


def known(token: tuple[str | None, str | None], state: ModalState) -> Credentials:
    """What the caller has. Raises Unauthorized when there are none."""
    found = given(token)
    if found is None and (kept := state.proxy_token()):
        found = ProxyToken(*kept)
    if found is None:
        raise Unauthorized(
            "there are no proxy credentials for the deployment's URL",
            hint=f"set {VARIABLES[0]} and {VARIABLES[1]}; modalctl start makes some where neither is set",
        )
    return Credentials(found)


def settled(
    token: tuple[str | None, str | None], state: ModalState, target: Target, *, label: str, url: str | None
) -> Credentials:
    """The credentials to deploy with, known to be good as far as it can be known; made where there are none.

    `url` is what is deployed now: it refuses bad ones. Raises Unauthorized naming the variables.
    """
    found = given(token)
    try:
        ids = target.proxy_token_ids()
    except Unauthorized:  # a login may be allowed to deploy and not to list credentials
        ids = None
    if found is None:
        kept = state.proxy_token()
        if kept is not None and (ids is None or kept[0] in ids):
            return Credentials(ProxyToken(*kept))
        made = target.new_proxy_token(label)
        state.keep_proxy_token(made.id, made.secret)
        return Credentials(made, is_new=True)
    credentials = Credentials(found)
    if ids is not None and found.id not in ids:
        raise refused()
    if url is not None and ask(f"{url}/healthz", credentials.headers(None)).status == 401:
        raise refused()
    return credentials
