"""The only reader of the process's environment: environment → typed settings. Also Django's settings module.

Nothing here fails at import: `--help` must work whatever the environment holds. `read()` checks.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Self
from urllib.parse import urlsplit

from apps.errors import ConfigurationError

# Django's part: two apps, no database, no URLs, no logging of its own.
INSTALLED_APPS = ["apps.processors", "apps.storage"]
LOGGING_CONFIG = None
USE_TZ = True
USE_I18N = False

ENGINES: Final = ("docker", "process")
BACKENDS: Final = ("filesystem", "minio", "s3")
_CREDENTIALS: Final = {
    "minio": ("MINIO_STORAGE_ACCESS_KEY", "MINIO_STORAGE_SECRET_KEY"),
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
}
_BUCKET_NAME: Final = "3 to 63 of a-z, 0-9, . and -, beginning and ending with a letter or digit"


class BucketSettings(NamedTuple):
    """The bucket of minio or s3, and how it is reached."""

    name: str
    region: str
    endpoint: str | None = None
    """A URL; None is AWS's own."""
    container_endpoint: str | None = None
    """The same as a container sees it, where that is another."""
    access_key: str | None = None
    """With secret_key: of minio. None leaves it to the standard AWS credential chain."""
    secret_key: str | None = None
    profile: str | None = None
    """Of the AWS configuration."""
    ca_file: str | None = None
    """Whom to trust, where it is not the usual authorities."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the caller's environment says, checked. Paths are absolute."""

    root: Path
    """The checkout: the folder with registry/ and code/."""
    caller: Path
    """The folder that file arguments are relative to."""
    engine: str
    """docker or process."""
    storage_backend: str
    artifacts_root: Path
    repository_prefix: str | None
    """Replaces what is before the last slash of image.repository."""
    build_contexts: Mapping[str, str]
    """NAME → VALUE of --build-context."""
    build_secrets: tuple[str, ...]
    """`id=…,src=…` of --secret, as typed."""
    environment: Mapping[str, str]
    """The caller's variables that are not empty: where a processor's secrets come from."""
    bucket: BucketSettings | None = None
    """Of minio and s3."""

    @property
    def state(self) -> Path:
        """Where local state lives."""
        return self.root / "code" / ".theory"

    @property
    def git_branch(self) -> str | None:
        """With `git_user`, what an app on Modal is called after in dev."""
        return self.environment.get("GIT_BRANCH")

    @property
    def git_user(self) -> str | None:
        return self.environment.get("GIT_USER")

    @property
    def modal_proxy_token(self) -> tuple[str | None, str | None]:
        """Id and secret of what opens the URLs of deployments."""
        return self.environment.get("MODAL_PROXY_TOKEN_ID"), self.environment.get("MODAL_PROXY_TOKEN_SECRET")

    @property
    def run_token(self) -> str | None:
        """What a deployment asks for besides; on this machine each start makes its own."""
        return self.environment.get("THEORY_RUN_TOKEN")

    @classmethod
    def read(cls, environ: Mapping[str, str] | None = None, caller: Path | None = None) -> Self:
        """Settings from `environ` (default: the process's). An empty variable counts as absent.

        Raises ConfigurationError naming the variable.
        """
        present = {name: value for name, value in (environ or os.environ).items() if value}
        caller = (caller or _here()).absolute()
        root = _root(present.get("THEORY_ROOT"), caller)
        return cls(
            root=root,
            caller=caller,
            engine=_choice(present, "LOCAL_ENGINE", ENGINES),
            storage_backend=_choice(present, "STORAGE_BACKEND", BACKENDS),
            artifacts_root=caller / present.get("ARTIFACTS_ROOT", root / "code" / ".theory" / "artifacts"),
            repository_prefix=present.get("PROCESSOR_REPOSITORY_PREFIX"),
            build_contexts=_pairs(present, "PROCESSOR_BUILD_CONTEXTS"),
            build_secrets=tuple(present.get("PROCESSOR_BUILD_SECRETS", "").split()),
            environment=present,
            bucket=_bucket(present),
        )


def _here() -> Path:
    try:
        return Path.cwd()
    except OSError as exc:
        raise ConfigurationError(
            f"the current folder can't be had: {exc.strerror or exc}", hint="cd to a folder that is there"
        ) from exc


def _root(named: str | None, caller: Path) -> Path:
    if named:
        root = caller / named
        if not _is_root(root):
            raise ConfigurationError(
                f"THEORY_ROOT is {named!r}, which has no registry/ and code/", hint="name the checkout's root folder"
            )
        return root.resolve()
    for folder in (caller, *caller.parents):
        if _is_root(folder):
            return folder.resolve()
    return Path(__file__).resolve().parent.parent


def _is_root(folder: Path) -> bool:
    return (folder / "registry").is_dir() and (folder / "code").is_dir()


def _choice(present: Mapping[str, str], name: str, choices: tuple[str, ...]) -> str:
    value = present.get(name, choices[0])
    if value not in choices:
        raise ConfigurationError(f"{name} is {value!r}", hint=f"set {name} to one of: {', '.join(choices)}")
    return value


def _pairs(present: Mapping[str, str], name: str) -> Mapping[str, str]:
    pairs = {}
    for word in present.get(name, "").split():
        key, equals, value = word.partition("=")
        if not (key and equals and value):
            raise ConfigurationError(f"{name} holds {word!r}", hint=f"{name} is NAME=VALUE, space-separated")
        pairs[key] = value
    return pairs


def _bucket(present: Mapping[str, str]) -> BucketSettings | None:
    kind = present.get("STORAGE_BACKEND")
    if kind not in ("minio", "s3"):
        return None
    for name in _CREDENTIALS[kind]:
        if not present.get(name, "").isprintable():  # a line's end that was copied with it, say
            raise ConfigurationError(
                f"{name} holds a control character", hint=f"set {name} again, without its line's end"
            )
    if kind == "minio":
        _require(present, "MINIO_STORAGE_ENDPOINT", "MINIO_STORAGE_ACCESS_KEY", "MINIO_STORAGE_SECRET_KEY")
        scheme = "https" if _flag(present, "MINIO_STORAGE_USE_HTTPS", default=True) else "http"
        place = BucketSettings(
            name=_bucket_name(present.get("ARTIFACTS_BUCKET", "theory-artifacts")),
            region=_region(present),
            endpoint=_address(present, "MINIO_STORAGE_ENDPOINT", scheme),
            access_key=present["MINIO_STORAGE_ACCESS_KEY"],
            secret_key=present["MINIO_STORAGE_SECRET_KEY"],
        )
    else:
        _require(present, "ARTIFACTS_BUCKET")
        named = "AWS_ENDPOINT_URL_S3" if "AWS_ENDPOINT_URL_S3" in present else "AWS_ENDPOINT_URL"
        place = BucketSettings(
            name=_bucket_name(present["ARTIFACTS_BUCKET"]),
            region=_region(present),
            endpoint=_url(present, named) if named in present else None,
            profile=present.get("AWS_PROFILE"),
        )
    authorities = ("AWS_CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
    return place._replace(
        container_endpoint=_container_endpoint(present, place.endpoint),
        ca_file=next((present[name] for name in authorities if name in present), None),
    )


def _require(present: Mapping[str, str], *names: str) -> None:
    if missing := [name for name in names if name not in present]:
        verb = "is" if len(missing) == 1 else "are"
        text = f"STORAGE_BACKEND is {present['STORAGE_BACKEND']}, and {', '.join(missing)} {verb} not set"
        raise ConfigurationError(text, hint=f"set {', '.join(missing)}; see docs/apps/storage.md")


def _flag(present: Mapping[str, str], name: str, *, default: bool) -> bool:
    value = present.get(name, str(default)).casefold()
    if value not in ("true", "false", "1", "0", "yes", "no", "on", "off"):
        raise ConfigurationError(f"{name} is {present[name]!r}", hint=f"set {name} to true or false")
    return value in ("true", "1", "yes", "on")


def _bucket_name(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", name):
        raise ConfigurationError(f"ARTIFACTS_BUCKET is {name!r}", hint=f"a bucket's name is {_BUCKET_NAME}")
    return name


def _region(present: Mapping[str, str]) -> str:
    name = present.get("ARTIFACTS_REGION", "us-east-1")
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,63}", name):
        raise ConfigurationError(f"ARTIFACTS_REGION is {name!r}", hint="set ARTIFACTS_REGION to one like us-east-1")
    return name


def _address(present: Mapping[str, str], name: str, scheme: str) -> str:
    """`host[:port]` as a URL."""
    if "://" in present[name]:
        raise ConfigurationError(
            f"{name} is {present[name]!r}", hint=f"set {name} to HOST:PORT; MINIO_STORAGE_USE_HTTPS says http or https"
        )
    return _checked_url(f"{scheme}://{present[name]}", name, present[name], "HOST:PORT")


def _url(present: Mapping[str, str], name: str) -> str:
    return _checked_url(present[name], name, present[name], "http://HOST:PORT or https://HOST")


def _container_endpoint(present: Mapping[str, str], endpoint: str | None) -> str | None:
    name = "ARTIFACTS_CONTAINER_ENDPOINT"
    if name not in present or "://" in present[name]:
        return _url(present, name) if name in present else None
    scheme = "http" if (endpoint or "").startswith("http:") else "https"
    return _address(present, name, scheme)


def _checked_url(url: str, name: str, value: str, shape: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    usable = usable and url.isprintable() and " " not in url
    if not usable or parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc:
        # A password in it is not shown.
        shown = value.rpartition("@")[2]
        raise ConfigurationError(f"{name} is {shown!r}", hint=f"set {name} to {shape}, without a path")
    return f"{parts.scheme}://{parts.netloc}"


def no_colour() -> bool:
    """Whether the environment asks for plain text: NO_COLOR (no-color.org), or a terminal that shows no colours."""
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
