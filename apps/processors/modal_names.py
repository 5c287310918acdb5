"""Names on Modal: an app's, a deployment's label, an app's tags. Pure; Modal allows few characters and short words."""

import base64
import hashlib
import re
from collections.abc import Mapping
from typing import Final

from apps.processors.reference import ImageReference, ProcessorRef
from apps.processors.spec import ProcessorSpec

LONGEST_NAME: Final = 64
_LABEL: Final = "sha256-"
_HALF: Final = 32  # hex digits: a tag holds 63 characters, and a digest has 64 digits


def app_name(env: str, ref: ProcessorRef, *, branch: str | None, user: str | None) -> str:
    """In dev `{branch}-{user}-{ref_slug}`, elsewhere `{ref_slug}`; a name that is too long is cut and told apart."""
    words = (branch or "", user or "", ref.slug) if env == "dev" else (ref.slug,)
    name = _word("-".join(words))
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[:55]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def has_word(text: str) -> bool:
    """Whether anything of `text` would be left in a name."""
    return bool(_word(text))


def _word(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def label_of(digest: str) -> str:
    """A digest as a deployment's label, which holds 50 characters."""
    return _LABEL + base64.urlsafe_b64encode(bytes.fromhex(digest.removeprefix("sha256:"))).decode().rstrip("=")


def digest_of(label: str) -> str | None:
    """The digest in a label of ours; None for any other."""
    if not label.startswith(_LABEL):
        return None
    try:
        digest = base64.urlsafe_b64decode(label.removeprefix(_LABEL) + "=")
    except ValueError:
        return None
    return f"sha256:{digest.hex()}" if len(digest) == 32 else None


def tags_of(spec: ProcessorSpec, image: ImageReference, revision: str | None) -> dict[str, str]:
    """What is recorded at an app when it is deployed."""
    tags = {"theory-ref": spec.ref.slug, **digest_tags(image.digest), **_split("theory-spec", spec.spec_digest)}
    return {**tags, "theory-revision": revision} if revision else tags


def digest_tags(digest: str) -> dict[str, str]:
    return _split("theory-digest", digest)


def recorded_digest(tags: Mapping[str, str]) -> str | None:
    """The image's manifest digest that `tags` record; None where they record none."""
    return _joined("theory-digest", tags)


def _split(name: str, digest: str) -> dict[str, str]:
    digits = digest.removeprefix("sha256:")
    return {f"{name}-a": digits[:_HALF], f"{name}-b": digits[_HALF:]}


def _joined(name: str, tags: Mapping[str, str]) -> str | None:
    digits = tags.get(f"{name}-a", "") + tags.get(f"{name}-b", "")
    return f"sha256:{digits}" if re.fullmatch("[0-9a-f]{64}", digits) else None
