"""The connection to the Docker Engine: made once, when first needed; every failure in our words."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Final

from apps.processors.adapters import docker_endpoint
from apps.processors.adapters.docker_errors import translate

TIMEOUT_S: Final = 120.0
"""For one answer: a busy engine takes seconds to create a container."""
_GREETING_TIMEOUT_S: Final = 10.0
_OLDEST_API: Final = "1.41"  # Docker Engine 20.10, podman 4: the first with all that we ask for


class DockerClient:
    """A lazy connection. Everything that uses `api` does so within `asking`."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    @cached_property
    def endpoint(self) -> docker_endpoint.Endpoint:
        return docker_endpoint.find(self._environment)

    @cached_property
    def version(self) -> Mapping[str, Any]:
        """The engine's answer to `GET /version`. Raises EngineFailed, ConfigurationError."""
        docker_endpoint.check(self.endpoint)
        with self.asking("say its version"):
            api = self._connect(_OLDEST_API, timeout_s=_GREETING_TIMEOUT_S)
            try:
                found: Mapping[str, Any] = api.version(api_version=False)
            finally:
                api.close()
        return found

    @cached_property
    def api(self) -> Any:
        """The SDK's low-level client, speaking the engine's own version of the API."""
        spoken = str(self.version.get("ApiVersion", _OLDEST_API))
        with self.asking("connect"):
            return self._connect(spoken, timeout_s=TIMEOUT_S)

    @contextmanager
    def asking(self, what: str) -> Iterator[None]:
        """Translate what the SDK raises. `what` is an infinitive and its object, for the message."""
        import docker.errors
        import requests.exceptions
        import urllib3.exceptions

        try:
            yield
        except (
            docker.errors.DockerException,
            requests.exceptions.RequestException,
            urllib3.exceptions.HTTPError,
        ) as exc:
            raise translate(exc, what, self.endpoint.url) from exc

    def stream(self, method: str, path: str, *, silence_s: float | None, **request: Any) -> Any:
        """Send a request whose answer comes bit by bit; a `requests.Response` to close.

        The SDK's own streams lose which of stdout and stderr it was, and wait for ever.
        """
        import docker.errors
        import requests.exceptions

        url = f"{self.api.base_url}/v{self.api.api_version}{path}"
        response = self.api.request(method, url, stream=True, timeout=(TIMEOUT_S, silence_s), **request)
        try:
            response.raise_for_status()
        except requests.exceptions.HTTPError as exc:
            with response:
                docker.errors.create_api_error_from_http_exception(exc)
        return response

    def _connect(self, version: str, *, timeout_s: float) -> Any:
        import docker

        endpoint = self.endpoint
        api = docker.APIClient(base_url=endpoint.url, version=version, timeout=timeout_s, tls=_tls(endpoint))
        # A proxy or a .netrc of the caller is not for an engine on this machine.
        api.trust_env = False
        api.reload_config(str(docker_endpoint.config_folder(self._environment) / "config.json"))
        return api


def _tls(endpoint: docker_endpoint.Endpoint) -> Any:
    import docker.tls

    if endpoint.certificates is None:
        return False
    ca, certificate, key = (str(endpoint.certificates / f"{name}.pem") for name in ("ca", "cert", "key"))
    return docker.tls.TLSConfig(client_cert=(certificate, key), ca_cert=ca, verify=endpoint.verify)
