"""What the shipped mappings say of themselves, read without compiling them: there are many."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from converter.errors import MappingError
from converter.language import names, yaml
from converter.language.include import shipped
from converter.language.load import examine, loads, read, shipped_names
from converter.language.rules import Rules

BLOCKS = "layers/"  # mappings of one layer, to be included; they fit parts of everything
_HOLE = re.compile(r"\{[^{}]*\}")
_UNKNOWN = "\0"
_LOOKUP = re.compile(r"\{(\w+)\[([^\[\]]+)\]\}")


@dataclass(frozen=True)
class Entry:
    """A shipped mapping, as its file has it."""

    name: str
    document: yaml.Document

    @property
    def path(self) -> Path:
        """The file."""
        return path_of(self.name)

    @property
    def about(self) -> str:
        """One sentence for people who choose."""
        return str(self.document.data.get("about", ""))

    def model(self, side: str) -> str:
        """The model of the `source` or the `target`."""
        return str((self.document.data.get(side) or {}).get("model", ""))

    def says(self, text: str) -> bool:
        """Is this in its name, its sentence or its models?  Case does not matter."""
        words = (self.name, self.about, self.model("source"), self.model("target"))
        return any(text.casefold() in word.casefold() for word in words)

    def segments(self, side: str) -> list[frozenset[str]]:
        """For each rule and include that is not optional, what its names must have of segments."""
        data = self.document.data
        entries = [*data.get("rules", ()), *data.get("include", ())]
        found = (
            _literal(text)
            for entry in entries
            if not entry.get("optional")
            for text in _templates(entry.get(side))
        )
        return [segments for segments in found if segments]

    @property
    def sizes(self) -> Mapping[str, int | None]:
        """Its sizes with the numbers that hold unless others are given."""
        return dict(self.document.data.get("sizes") or {})

    def tabled(self, size: str) -> list[int]:
        """The numbers that a size may have where a table is looked up by it."""
        found: set[int] = set()
        for text in yaml.texts(self.document.data):
            for table, keys in _LOOKUP.findall(text):
                parts = [key.strip() for key in keys.split(",")]
                if size in parts:
                    entries = self.document.data["tables"].get(table, {})
                    column = (str(key).split(",")[parts.index(size)].strip() for key in entries)
                    found |= {int(value) for value in column if value.isdecimal()}
        return sorted(found)

    def seen(self, size: str, given: Iterable[str], *, reverse: bool) -> int | None:
        """The number that a size has in the names of a checkpoint; None when they do not tell."""
        data = {k: v for k, v in self.document.data.items() if k not in ("sizes", "tests")}
        loose, _ = examine(replace(self.document, data=data), self.path)
        templates = [
            template
            for rule in loose.rules
            for template in (rule.targets if reverse else rule.sources)
            if size in template.holes and _tells(template, size)
        ]
        for name in given:
            for template in templates:
                bindings = template.match(name)
                if bindings is not None:
                    return int(bindings[size])
        return None

    def rules(self, sizes: Mapping[str, int]) -> Rules | None:
        """The compiled rules; None where these sizes do not go."""
        try:
            return loads(self.document.text, self.path, sizes)
        except MappingError:
            return None


@cache
def entries() -> list[Entry]:
    """Every shipped mapping, by name."""
    return [Entry(name, _read(name)) for name in shipped_names()]


def path_of(name: str) -> Path:
    """The file of a shipped name."""
    return shipped() / f"{name}.yaml"


def _read(name: str) -> yaml.Document:
    path = path_of(name)
    return read(path.read_text(encoding="utf-8"), path)


def _tells(template: names.Template, size: str) -> bool:
    """Does a match say what the size is?  A table of several keys may have a text twice."""
    return not any(
        isinstance(token, names.Lookup) and size in token.keys and len(token.keys) > 1
        for token in template.variables
    )


def _templates(side: Any) -> Iterator[str]:
    for one in side if isinstance(side, list) else [side]:
        text = one.get("name") if isinstance(one, dict) else one
        if isinstance(text, str):
            yield text


def _literal(text: str) -> frozenset[str]:
    """The whole segments of a template, or of a scope, that have no hole."""
    segments = names.split(_HOLE.sub(_UNKNOWN, text))
    return frozenset(part for part in segments if part and _UNKNOWN not in part)
