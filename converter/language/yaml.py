"""YAML 1.2 core with positions: plain data, and where in the text each piece of it stands.

PyYAML's event parser does the syntax.  The rest is ours because a mapping is a contract: scalars
follow the 1.2 core schema (`no`, `on` and `1:30` are strings, `012` is twelve), duplicate keys are
errors, and anchors, aliases and tags are refused, so that a small file stays small.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from typing import Any, NamedTuple

import yaml
from yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    DocumentStartEvent,
    Event,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceStartEvent,
)

Path = tuple[str | int, ...]

MAX_BYTES = 1 << 20
MAX_DEPTH = 32

MAX_DIGITS = 18  # of a whole number

_INT = re.compile(r"[-+]?[0-9]+")
_OTHER_INT = re.compile(r"0o([0-7]+)|0x([0-9a-fA-F]+)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_REFUSED = re.compile("[^\t\n\r -~\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}


class Span(NamedTuple):
    """A place in the text; `line` and `column` count from 1, `end` is the column after the last."""

    line: int
    column: int
    end: int
    text_offset: int = 0  # characters between `column` and the scalar's own first one (a quote)


class YamlError(ValueError):
    """Text that is not the YAML we read; `span` says where."""

    def __init__(self, message: str, span: Span, hint: str = "") -> None:
        super().__init__(message)
        self.span = span
        self.hint = hint


class Document(NamedTuple):
    """The text, its data, and the span of the value (and of the key) at each path into it."""

    text: str
    data: Any
    spans: dict[Path, Span]
    keys: dict[Path, Span]

    def span(self, path: Path, *, key: bool = False) -> Span:
        """The span at a path, or of the nearest thing around it."""
        while path:
            found = (self.keys if key else self.spans).get(path) or self.spans.get(path)
            if found:
                return found
            path = path[:-1]
        return self.spans.get((), Span(1, 1, 1))


def load(text: str) -> Document:
    """Read one document; `YamlError` when it is not well formed."""
    if refused := _REFUSED.search(text):
        place = _end_of(text[: refused.start()])
        raise YamlError(f"the character U+{ord(refused[0]):04X} is not allowed", place)
    if len(text.encode()) > MAX_BYTES:
        raise YamlError(f"larger than {MAX_BYTES} bytes", Span(1, 1, 1))
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return _Builder(_checked(yaml.parse(text, Loader=loader))).document(text)
    except yaml.MarkedYAMLError as error:
        mark, last = _mark(error), _end_of(text)
        place = Span(mark.line + 1, mark.column + 1, mark.column + 2) if mark else Span(1, 1, 1)
        message = error.problem or error.context or "not YAML"
        noticed = error.problem_mark
        hint = f"noticed in line {noticed.line + 1}" if noticed and mark is not noticed else ""
        raise YamlError(message, place if place.line <= last.line else last, hint) from error
    except yaml.YAMLError as error:
        raise YamlError(str(error).splitlines()[0], Span(1, 1, 1)) from error


def _mark(error: yaml.MarkedYAMLError) -> yaml.error.Mark | None:
    """Where the mistake is: of what is not ended, the beginning."""
    begun, noticed, what = error.context_mark, error.problem_mark, str(error.context)
    unended = what.endswith(("simple key", "quoted scalar", "alias", "anchor"))
    flow = "a flow " in what and noticed and begun and noticed.line > begun.line
    return begun if begun and (unended or flow) else noticed or begun


def _end_of(text: str) -> Span:
    """The place after the last character."""
    *lines, last = re.split("\r\n|[\n\r\x85\u2028\u2029]", text)
    return Span(len(lines) + 1, len(last) + 1, len(last) + 2)


def _checked(events: Iterator[Event]) -> Iterator[Event]:
    depth = documents = 0
    for event in events:
        if isinstance(event, AliasEvent) or getattr(event, "anchor", None):
            raise YamlError("anchors and aliases are not read", _span(event), "write it out")
        tag = getattr(event, "tag", None)
        if isinstance(event, NodeEvent) and tag:
            raise YamlError(f"tags are not read: {tag}", _span(event), "remove the tag")
        if isinstance(event, MappingStartEvent | SequenceStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise YamlError(f"nested deeper than {MAX_DEPTH} levels", _span(event))
        depth -= isinstance(event, CollectionEndEvent)
        documents += isinstance(event, DocumentStartEvent)
        if documents > 1:
            raise YamlError("more than one document", _span(event))
        yield event


class _Builder:
    """Builds data from events; depth is bounded by `_checked`, so recursion is."""

    def __init__(self, events: Iterator[Event]) -> None:
        self.events = events
        self.spans: dict[Path, Span] = {}
        self.keys: dict[Path, Span] = {}

    def document(self, text: str) -> Document:
        data = None
        for event in self.events:
            if isinstance(event, NodeEvent):
                data = self.node(event, ())
        return Document(text, data, self.spans, self.keys)

    def node(self, event: Event, path: Path) -> Any:
        self.spans[path] = _span(event)
        if isinstance(event, ScalarEvent):
            return _scalar(event)
        if isinstance(event, SequenceStartEvent):
            items: list[Any] = []
            while not isinstance(item := next(self.events), CollectionEndEvent):
                items.append(self.node(item, (*path, len(items))))
            return items
        return self.mapping(path)

    def mapping(self, path: Path) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        while not isinstance(event := next(self.events), CollectionEndEvent):
            if not isinstance(event, ScalarEvent):
                raise YamlError("a key must be a plain word", _span(event))
            key = str(event.value)
            if key in fields:
                first = self.keys[*path, key]
                raise YamlError(f"'{key}' stands twice, first in line {first.line}", _span(event))
            self.keys[*path, key] = _span(event)
            fields[key] = self.node(next(self.events), (*path, key))
        return fields


def _span(event: Event) -> Span:
    start, end = event.start_mark, event.end_mark
    assert start is not None  # noqa: S101 - a parsed event has both
    assert end is not None  # noqa: S101
    column = start.column + 1
    one_line = end.line == start.line and end.column > start.column
    quoted = isinstance(event, ScalarEvent) and event.style in ("'", '"')
    return Span(start.line + 1, column, end.column + 1 if one_line else column + 1, int(quoted))


def _scalar(event: ScalarEvent) -> Any:
    """The value by YAML 1.2's core schema; quoted scalars are strings."""
    text = str(event.value)
    if event.style in ("'", '"', "|", ">"):
        return text
    if text in _WORDS:
        return _WORDS[text]
    other = _OTHER_INT.fullmatch(text)
    if (other or _INT.fullmatch(text)) and len(text.lstrip("+-0ox")) > MAX_DIGITS:
        raise YamlError(
            f"a number of more than {MAX_DIGITS} digits", _span(event), "put it in quotes"
        )
    if _INT.fullmatch(text):
        return int(text)
    if other:
        return int(other[1], 8) if other[1] else int(other[2], 16)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def texts(data: Any) -> Iterator[str]:
    """Every text in plain data, keys too."""
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict):
        yield from map(str, data)
        yield from chain.from_iterable(map(texts, data.values()))
    elif isinstance(data, list):
        yield from chain.from_iterable(map(texts, data))
