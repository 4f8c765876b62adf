"""What the shipped mappings say of themselves, read without compiling them: there are many."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from converter.language import names, yaml
from converter.language.include import shipped
from converter.language.load import compiled, read, shipped_names
from converter.language.rules import Rules

BLOCKS = "layers/"  # mappings of one layer, to be included; they fit parts of everything
_HOLE = re.compile(r"\{[^{}]*\}")
_PARTS = re.compile(r"\{[^{}]*\}|[^{]+").findall
_UNKNOWN = "\0"
_INNER = "{what_is_included:path}"
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

    def texts(self, side: str, *, optional: bool = True) -> Iterator[str]:
        """The templates of the rules; of includes, the scopes, with a hole for what they bring."""
        data = self.document.data
        for kind in ("rules", "include"):
            for entry in data.get(kind, ()):
                if optional or not entry.get("optional"):
                    for text in _templates(entry.get(side, "")):
                        yield text if kind == "rules" else _around(text)

    def needs(self, side: str) -> list[str]:
        """The templates that a checkpoint must have names for."""
        return list(self.texts(side, optional=False))

    @property
    def sizes(self) -> Mapping[str, int | None]:
        """Its sizes with the numbers that hold unless others are given."""
        return dict(self.document.data.get("sizes") or {})

    def tabled(self, size: str) -> list[int]:
        """The numbers that a size may have where a table is looked up by it, in includes too."""
        found: set[int] = set()
        for include in self.document.data.get("include", ()):
            for inner, given in (include.get("sizes") or {}).items():
                if given == size:
                    found.update(_entry(include["mapping"]).tabled(inner))
        for text in yaml.texts(self.document.data):
            for table, keys in _LOOKUP.findall(text):
                parts = [key.strip() for key in keys.split(",")]
                if size in parts:
                    entries = self.document.data["tables"].get(table, {})
                    column = (str(key).split(",")[parts.index(size)].strip() for key in entries)
                    found |= {int(value) for value in column if value.isdecimal()}
        return sorted(found)

    def seen(self, size: str, given: Iterable[str], side: str) -> list[int]:
        """The numbers that a size may have by the names of a checkpoint; none: they do not tell."""
        tables = {
            name: names.Table(name, {tuple(re.split(", *", str(k))): str(v) for k, v in t.items()})
            for name, t in (self.document.data.get("tables") or {}).items()
        }
        found: list[names.Template] = []
        for text in {text for text in self.texts(side) if size in text}:
            with suppress(names.TemplateError):  # where a type stands on the other side
                found += (t for t in names.parse([text], tables) if _tells(t, size))
        matches = (template.match(name) for name in given for template in found)
        return sorted({int(bindings[size]) for bindings in matches if bindings})

    def rules(self, sizes: Mapping[str, int]) -> Rules | None:
        """The compiled rules; None where these sizes do not go."""
        rules, problems = compiled(self.document, self.path, sizes)
        return None if problems else rules


@cache
def entries() -> list[Entry]:
    """Every shipped mapping, by name."""
    return [_entry(name) for name in shipped_names()]


def path_of(name: str) -> Path:
    """The file of a shipped name."""
    return shipped() / f"{name}.yaml"


@cache
def _entry(name: str) -> Entry:
    path = path_of(name)
    return Entry(name, read(path.read_text(encoding="utf-8"), path))


def _tells(template: names.Template, size: str) -> bool:
    """Does a match say what the size is?  A table of several keys may have a text twice."""
    return size in template.holes and not any(
        isinstance(token, names.Lookup) and size in token.keys and len(token.keys) > 1
        for token in template.variables
    )


def _around(scope: str) -> str:
    """A scope as a template."""
    return scope.replace("{}", _INNER) if "{}" in scope else scope + _INNER


def _templates(side: Any) -> Iterator[str]:
    for one in side if isinstance(side, list) else [side]:
        text = one.get("name") if isinstance(one, dict) else one
        if isinstance(text, str):
            yield text


def segments(template: str) -> frozenset[str]:
    """The whole segments of a template that have no hole: every name that fits has them."""
    parts = names.split(_HOLE.sub(_UNKNOWN, template))
    return frozenset(part for part in parts if part and _UNKNOWN not in part)


def finder(template: str) -> re.Pattern[str]:
    """What finds a line that may fit: each hole takes what stands there, or one of its choices."""
    parts = (_loose(part) if part[:1] == "{" else re.escape(part) for part in _PARTS(template))
    return re.compile(f"^{''.join(parts)}$", re.MULTILINE)


def _loose(hole: str) -> str:
    kind = hole[1:-1].partition(":")[2]
    if "|" in kind:
        return f"(?:{'|'.join(map(re.escape, kind.split('|')))})"
    return "[^\n]*" if "[" in hole else "[^\n]+"  # an entry of a table may be empty
