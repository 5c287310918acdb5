"""YAML text → plain data, and the line and column of every part of it. The only reader of YAML syntax.

It reads events, not objects: no tag constructs anything, depth and size are known before anything is built,
and plain words mean what YAML 1.2's core schema says (`no` is a word, 2026-01-01 too).
"""

import re
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

Path = tuple[str | int, ...]
Place = tuple[int, int]
"""Line and column, from 1."""
Span = tuple[int, int]
"""Where a part begins and ends in the text, in characters from 0; an empty value has no length."""

MAX_DEPTH: Final = 64
MAX_NODES: Final = 50_000  # aliases count as what they stand for
MAX_INTEGER: Final = 2**53 - 1  # beyond it JSON readers disagree (RFC 8785)

_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_INTEGER = re.compile(r"[-+]?[0-9]+")
_OTHER_BASE = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_WORDS: Final = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


class Unreadable(Exception):
    """What stands at `place` is not what may stand there."""

    def __init__(self, expected: str, found: str, place: Place, path: Path = ()) -> None:
        super().__init__(f"expected {expected}, found {found}")
        self.expected, self.found, self.place, self.path = expected, found, place, path


@dataclass(frozen=True, slots=True)
class Marked:
    """A document and where its parts stand."""

    data: Any
    values: dict[Path, Place]
    keys: dict[Path, Place]

    def place(self, path: Path, *, key: bool = False) -> Place:
        """Where the value at `path` (or its key) begins; inside an alias or for what is absent, what holds it."""
        if key and path in self.keys:
            return self.keys[path]
        while path not in self.values and path:
            path = path[:-1]
        return self.values.get(path, (1, 1))


def read(text: str) -> Marked:
    """The one document in `text`. Raises Unreadable."""
    if bad := _UNPRINTABLE.search(text):
        raise Unreadable("printable text", f"character U+{ord(bad[0]):04X}", _place_of(text, bad.start()))
    reader = _Reader()
    try:
        for event in yaml.parse(text, Loader=yaml.CSafeLoader):
            reader.take(event)
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark
        problem = f"an error {exc.context or ''}".rstrip() + f": {exc.problem}"
        raise Unreadable("well-formed YAML", problem, (mark.line + 1, mark.column + 1) if mark else (1, 1)) from exc
    if not reader.documents:
        raise Unreadable("a document", "an empty file", (1, 1))
    return Marked(reader.root, reader.values, reader.keys)


def spans(text: str) -> "Spans":
    """Where every part of `text`, which `read` takes, begins and ends."""
    found = Spans()
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        found.take(event)
    return found


@dataclass(frozen=True, slots=True)
class _Node:
    """A finished value, with what it counts for when an alias repeats it."""

    value: Any
    nodes: int = 1
    height: int = 0


@dataclass(slots=True)
class _Frame:
    """A mapping or a sequence on its way in."""

    container: dict[str, Any] | list[Any]
    path: Path
    anchor: str | None
    nodes: int = 1
    height: int = 1
    key: str | None = None


@dataclass(slots=True)
class _Reader:
    """Builds data from events with a stack of its own, so that no nesting can exhaust Python's or C's."""

    root: Any = None
    documents: int = 0
    nodes: int = 0
    values: dict[Path, Place] = field(default_factory=dict)
    keys: dict[Path, Place] = field(default_factory=dict)
    stack: list[_Frame] = field(default_factory=list)
    anchors: dict[str, _Node] = field(default_factory=dict)

    def take(self, event: yaml.Event) -> None:
        match event:
            case yaml.DocumentStartEvent():
                self._begin_document(event)
            case yaml.AliasEvent():
                self._alias(event)
            case yaml.ScalarEvent():
                self._scalar(event)
            case yaml.MappingStartEvent():
                self._open(event, {})
            case yaml.SequenceStartEvent():
                self._open(event, [])
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                self._close(event)

    def _begin_document(self, event: Any) -> None:
        self.documents += 1
        if self.documents > 1:
            raise self._wrong(event, "one document", "a second one")
        if event.version not in (None, (1, 2)) or event.tags:
            raise self._wrong(event, "YAML 1.2 without directives", "another directive")

    def _alias(self, event: Any) -> None:
        node = self.anchors.get(event.anchor)
        if self._awaits_key():
            raise self._wrong(event, "a key", f"the alias *{event.anchor}")
        if node is None:  # libyaml lets both through: an alias of nothing, and one inside of what it names
            raise self._wrong(event, "an alias of something above", f"*{event.anchor}")
        self._add(event, node)

    def _scalar(self, event: Any) -> None:
        if event.tag is not None:
            raise self._wrong(event, "no tag", f"the tag {event.tag}")
        value = self._resolve(event) if event.implicit[0] else event.value
        node = _Node(value)
        if self._awaits_key():
            self._key(event, value)
        else:
            self._add(event, node)
        if event.anchor is not None:
            self.anchors[event.anchor] = node

    def _open(self, event: Any, container: dict[str, Any] | list[Any]) -> None:
        if event.tag is not None:
            raise self._wrong(event, "no tag", f"the tag {event.tag}")
        if self._awaits_key():
            raise self._wrong(event, "a key", "a mapping or a sequence as a key")
        if len(self.stack) >= MAX_DEPTH:
            raise self._wrong(event, f"at most {MAX_DEPTH} levels", "more")
        self._count(event, 1)
        path = self._path()
        self.values[path] = _place(event)
        if event.anchor is not None:
            self.anchors.pop(event.anchor, None)  # not to be had before it is finished
        self.stack.append(_Frame(container, path, event.anchor))

    def _close(self, event: yaml.Event) -> None:
        frame = self.stack.pop()
        node = _Node(frame.container, frame.nodes, frame.height)
        if frame.anchor is not None:
            self.anchors[frame.anchor] = node
        self._place_in_parent(node)

    def _add(self, event: yaml.Event, node: _Node) -> None:
        self._count(event, node.nodes)
        if len(self.stack) + node.height > MAX_DEPTH:
            raise self._wrong(event, f"at most {MAX_DEPTH} levels", "more")
        self.values[self._path()] = _place(event)
        self._place_in_parent(node)

    def _place_in_parent(self, node: _Node) -> None:
        if not self.stack:
            self.root = node.value
            return
        frame = self.stack[-1]
        frame.nodes += node.nodes
        frame.height = max(frame.height, node.height + 1)
        if isinstance(frame.container, list):
            frame.container.append(node.value)
        elif frame.key is not None:
            frame.container[frame.key] = node.value
            frame.key = None

    def _key(self, event: Any, key: Any) -> None:
        frame = self.stack[-1]
        if not isinstance(key, str):
            raise self._wrong(event, "a word as a key (quote it)", repr(event.value))
        if key == "<<" and event.implicit[0]:
            raise self._wrong(event, "a key", "the merge key <<")
        path = (*frame.path, key)
        if key in frame.container:
            first = self.keys[path]
            raise Unreadable("each key once", f"{key!r} again (first on line {first[0]})", _place(event), path)
        self.keys[path] = _place(event)
        frame.key = key

    def _resolve(self, event: Any) -> Any:
        """The value of a plain word."""
        text: str = event.value
        if text in _WORDS:
            return _WORDS[text]
        if _INTEGER.fullmatch(text):
            return self._integer(event, text)
        if _OTHER_BASE.fullmatch(text):
            return self._bounded(event, int(text, 0))
        if _NOT_FINITE.fullmatch(text):
            raise self._wrong(event, "a finite number", text)
        if _FLOAT.fullmatch(text):
            return self._finite(event, text)
        return text

    def _integer(self, event: yaml.Event, text: str) -> int:
        digits = text.lstrip("+-")
        if len(digits) > 1 and digits[0] == "0":
            # YAML 1.1 reads it in base 8, YAML 1.2 in base 10
            raise self._wrong(event, "a number without a leading zero (or a quoted word)", text[:40])
        return self._bounded(event, int(text[:20]))

    def _bounded(self, event: yaml.Event, number: int) -> int:
        if abs(number) > MAX_INTEGER:
            raise self._wrong(event, f"a whole number of at most {MAX_INTEGER}", "a larger one")
        return number

    def _finite(self, event: yaml.Event, text: str) -> float:
        number = float(text)
        if number in (float("inf"), float("-inf")):
            raise self._wrong(event, "a finite number", text[:40])
        return number

    def _count(self, event: yaml.Event, nodes: int) -> None:
        self.nodes += nodes
        if self.nodes > MAX_NODES:
            raise self._wrong(event, f"at most {MAX_NODES} values, aliases counted as what they repeat", "more")

    def _awaits_key(self) -> bool:
        return bool(self.stack) and isinstance(self.stack[-1].container, dict) and self.stack[-1].key is None

    def _path(self) -> Path:
        if not self.stack:
            return ()
        frame = self.stack[-1]
        step = len(frame.container) if isinstance(frame.container, list) else frame.key
        return (*frame.path, step if step is not None else "")

    def _wrong(self, event: yaml.Event, expected: str, found: str) -> Unreadable:
        return Unreadable(expected, found, _place(event), self.stack[-1].path if self._awaits_key() else self._path())


@dataclass(slots=True)
class Spans(_Reader):
    """The spans of words and aliases; of a mapping or a sequence, that of its beginning."""

    value_spans: dict[Path, Span] = field(default_factory=dict)
    key_spans: dict[Path, Span] = field(default_factory=dict)

    def take(self, event: Any) -> None:
        awaits_key, path = self._awaits_key(), self._path()
        _Reader.take(self, event)
        if not isinstance(event, yaml.NodeEvent):
            return
        start, end = event.start_mark, event.end_mark
        span = (start.index if start else 0, end.index if end else 0)
        if awaits_key and isinstance(event, yaml.ScalarEvent):
            self.key_spans[(*path[:-1], event.value)] = span
        else:
            self.value_spans[path] = span


def _place(event: yaml.Event) -> Place:
    mark = event.start_mark
    return (mark.line + 1, mark.column + 1) if mark else (1, 1)


def _place_of(text: str, index: int) -> Place:
    return text.count("\n", 0, index) + 1, index - (text.rfind("\n", 0, index) + 1) + 1
