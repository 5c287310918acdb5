"""The text of a registry.yaml with another pin: one line is changed or added, every other character stays."""

import re
from typing import Final

from apps.processors import marked_yaml
from apps.processors.marked_yaml import Path, Span, Spans

PLATFORMS: Final[Path] = ("image", "platforms")

_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")  # what ends a line of YAML 1.1, which libyaml reads


class CannotEdit(Exception):
    """The text is written so that one line can't do it."""

    def __init__(self, expected: str, found: str, path: Path) -> None:
        super().__init__(f"expected {expected}, found {found}")
        self.expected, self.found, self.path = expected, found, path


def with_pin(text: str, architecture: str, image: str) -> str:
    """`text`, a good registry.yaml, with `image` as the pin of the platform. Raises CannotEdit.

    The caller reads the outcome again: an anchor, say, can make it mean something else.
    """
    spans = marked_yaml.spans(text)
    path = (*PLATFORMS, architecture)
    flow = text[spans.value_spans[PLATFORMS][0]] == "{"
    if path in spans.value_spans:
        return _changed(text, spans.value_spans[path], image, path, flow=flow)
    if flow:
        return _added_within(text, spans.value_spans[PLATFORMS][0] + 1, architecture, image)
    return _added(text, spans, architecture, image)


def _changed(text: str, span: Span, image: str, path: Path, *, flow: bool) -> str:
    begin, end = span
    old = text[begin:end]
    if _BREAK.search(old):
        raise CannotEdit("a pin on one line", "one on several", path)
    quote = old[0] if old[:1] in ("'", '"') else '"' if flow else ""
    space = "" if old else " "  # nothing stands right behind the colon
    return f"{text[:begin]}{space}{quote}{image}{quote}{text[end:]}"


def _added_within(text: str, begin: int, architecture: str, image: str) -> str:
    """Into braces. With quotes, for JSON is YAML too."""
    comma = "" if text[begin:].lstrip().startswith("}") else ", "
    return f'{text[:begin]}"{architecture}": "{image}"{comma}{text[begin:]}'


def _added(text: str, spans: Spans, architecture: str, image: str) -> str:
    """On a line of its own after the last platform's."""
    entries = {path: span for path, span in spans.key_spans.items() if path[:-1] == PLATFORMS}
    if not entries:
        raise CannotEdit("one line a platform", "an alias", PLATFORMS)
    path, (begin, _) = max(entries.items(), key=lambda entry: entry[1])
    indent = text[max((each.end() for each in _BREAK.finditer(text, 0, begin)), default=0) : begin]
    if indent.strip(" "):
        raise CannotEdit("one line a platform", "something else on that line", path)
    line = f"{indent}{architecture}: {image}"
    if found := _BREAK.search(text, spans.value_spans[path][1]):
        return f"{text[: found.end()]}{line}{found[0]}{text[found.end() :]}"
    ending = _BREAK.search(text)
    return f"{text}{ending[0] if ending else ''}{line}"
