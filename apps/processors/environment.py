"""What of the caller's environment a processor gets: its declared secrets, proxies, CA settings. And redaction."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from apps.errors import ConfigurationError
from apps.processors.spec import Secrets

MIN_REDACTED_CHARACTERS: Final = 6  # as in the runtime: a shorter value would blank half of every message

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY")
_CA_PATHS = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


@dataclass(frozen=True, slots=True)
class SecretValues:
    """The declared secrets that the caller's environment has, and the required ones that it has not."""

    values: Mapping[str, str] = field(repr=False)
    missing: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Those present, as declared."""
        return tuple(self.values)


def secrets(declared: Secrets, environ: Mapping[str, str]) -> SecretValues:
    """The values of `declared` in `environ`. An empty variable counts as absent.

    Raises ConfigurationError for one that is not UTF-8: the Docker API takes text, and would get another value.
    """
    values = {name: environ[name] for name in declared.names if environ.get(name)}
    for name, value in values.items():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ConfigurationError(f"the value of {name} is not UTF-8", hint=f"export {name} anew") from None
    return SecretValues(values, tuple(name for name in declared.required if name not in values))


def passthrough(environ: Mapping[str, str], *, paths: bool) -> dict[str, str]:
    """Proxy and CA settings, the only other variables of the caller that a processor sees.

    `paths` says whether a path of this machine is the same file inside: without it, CA settings are left out.
    """
    names = [*_PROXIES, *map(str.lower, _PROXIES), *(_CA_PATHS if paths else ())]
    return {name: environ[name] for name in names if environ.get(name)}


def redact(text: str, values: Mapping[str, str]) -> str:
    """`text` with each of the secret `values` replaced by `***`, written plainly or inside a JSON string."""
    spellings = {spelling for value in values.values() for spelling in _spellings(value)}
    for spelling in sorted(spellings, key=len, reverse=True):  # the longest first: one may hold another
        text = text.replace(spelling, "***")
    return text


def _spellings(value: str) -> list[str]:
    """How a value shows up in text; a key of several lines line by line too, as logs have it."""
    found = [value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]]
    if "\n" in value.strip():
        found += (line.strip() for line in value.splitlines())
    return [spelling for spelling in found if len(spelling) >= MIN_REDACTED_CHARACTERS]
