"""The spec of a registry.yaml that was found right before, without reading YAML: a third of what a run would import.

Kept under code/.theory/registry/, one file for each ref, with a digest of the bytes and the rules it was read by.
Whatever is missing, damaged or of another time there is read again: nothing has to keep it up to date.
"""

import hashlib
import json
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from apps.errors import StorageFailed
from apps.processors import spec
from apps.processors.reference import ProcessorRef
from apps.processors.spec import ProcessorSpec

MAX_FILE_BYTES: Final = 1024 * 1024
RULES: Final = ("marked_yaml.py", "registry.py", "registry.schema.json", "schemas.py", "spec.py")


def load(root: Path, ref: ProcessorRef, *, folder: Path) -> ProcessorSpec:
    """As `registry.load`; what it found right is kept below `folder`, where that is possible."""
    path = root / "registry" / ref.namespace / ref.name / str(ref.version) / "registry.yaml"
    place = folder / "registry" / f"{ref.slug}.json"
    key = _key(path)
    if key is not None and (kept := _kept(place, key, path)) is not None:
        return kept
    from apps.processors import registry

    found = registry.load(root, ref)
    if key is not None and key == _key(path):  # it may have been replaced meanwhile
        _keep(place, key, found)
    return found


def _key(path: Path) -> str | None:
    """Of the file's bytes and of the code that judges them; None where it is for `registry` to say what is wrong."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
            return None
        rules = [(each.st_mtime_ns, each.st_size) for each in map(Path.stat, map(Path(__file__).with_name, RULES))]
        return hashlib.sha256(repr((str(path), rules)).encode() + path.read_bytes()).hexdigest()
    except (OSError, ValueError):
        return None


def _kept(place: Path, key: str, path: Path) -> ProcessorSpec | None:
    try:
        document = json.loads(place.read_bytes())
        return spec.of(document["spec"], file=path) if document["key"] == key else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _keep(place: Path, key: str, found: ProcessorSpec) -> None:
    from apps.processors.atomic import write_text

    with suppress(OSError, StorageFailed):  # a checkout that can't be written: it is read anew each time
        place.parent.mkdir(parents=True, exist_ok=True)
        write_text(place, json.dumps({"key": key, "spec": spec.data_of(found)}))
