"""Manifests: text → entries, each with its place; every problem in one run.

    batch: 1
    entries:
      - source: in/*.ckpt                     # one entry for each file that is there
        mapping: vgg16/slim-torchvision
        target: out/${stem}-${dtype}.safetensors
        matrix: {dtype: [float32, float16]}   # and for each of these
        options: {dtype: "${dtype}"}

A glob sees the files that are there and the targets of entries above it, but nothing that this
manifest makes elsewhere: what was converted yesterday is no source today.
"""

from __future__ import annotations

import difflib
import fnmatch
import graphlib
import itertools
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from converter.batch.model import (
    VARIABLE,
    EntryModel,
    ManifestModel,
    OptionsModel,
    SourceModel,
)
from converter.batch.quick import found
from converter.errors import Diagnostic, MappingError
from converter.formats import FORMATS
from converter.language import yaml
from converter.language.load import SUFFIXES
from converter.language.rules import Place

MAX_ENTRIES = 10_000
MAX_NAME = 200  # characters
MAX_DEEP = 2  # `**` in a glob, which each look through all folders
MAX_PARTS = 64  # folders in a glob

_VARIABLE = re.compile(VARIABLE)
_GLOB = re.compile(r"[*?\[]")
_OF_PATHS = ("stem", "file", "folder")
_BESIDE = (".index", ".index.json", ".data-00000-of-00001")  # files of a target, besides itself


@dataclass(frozen=True)
class Entry:
    """One conversion.  Paths are as seen from the working folder; `needs` are other entries."""

    name: str
    source: Path
    mappings: tuple[str, ...]
    target: Path
    options: OptionsModel
    needs: tuple[str, ...]
    place: Place
    at: Mapping[str, Place]  # of its keys
    part: str = ""  # of the source: what stands behind `#`

    @property
    def opens(self) -> Path:
        """The source with the part of it that is meant."""
        return Path(f"{self.source}#{self.part}") if self.part else self.source


@dataclass(frozen=True)
class Manifest:
    """A file of entries, in an order in which what one makes comes before who reads it."""

    path: Path
    entries: tuple[Entry, ...]
    globs: Mapping[str, list[str]] = field(default_factory=dict)  # and what they found

    @property
    def folder(self) -> Path:
        """Where paths start."""
        return self.path.parent

    def near(self, path: Path) -> str:
        """A path as the lock names it: from the manifest's folder, with `/`."""
        return Path(os.path.relpath(path, self.folder)).as_posix()

    def near_mapping(self, name: str) -> str:
        """A mapping as the lock names it: a path likewise, or a shipped name."""
        return self.near(Path(name)) if name.endswith(SUFFIXES) else name


def load(path: Path, made: Iterable[Path] = ()) -> Manifest:
    """Read a manifest; `made` are files that it made before, which no glob sees.

    Raises `MappingError` with every problem.
    """
    try:
        text = path.read_bytes()[: yaml.MAX_BYTES + 1].decode()
    except (OSError, UnicodeDecodeError) as error:
        wrong = Diagnostic("MAP001", f"cannot be read: {error}", path=path, line=1, column=1)
        raise MappingError([wrong]) from error
    return loads(text, path, made)


def loads(text: str, path: Path, made: Iterable[Path] = ()) -> Manifest:
    """`load` for a text; `path` says where it lies."""
    try:
        document = yaml.load(text)
    except yaml.YamlError as error:
        span = error.span
        place = Place(path, span.line, span.column, span.end)
        raise MappingError([place.diagnostic("MAP001", str(error), hint=error.hint)]) from error
    reader = _Reader(path, document, {os.path.abspath(each) for each in made})
    entries = reader.read()
    if reader.problems:
        unique = dict.fromkeys(reader.problems)  # each point of a matrix says it
        raise MappingError(sorted(unique, key=lambda each: (each.line, each.column)))
    return Manifest(path, tuple(entries), reader.globs)


class _Reader:
    """Turns a document into entries and collects what is wrong with it."""

    def __init__(self, path: Path, document: yaml.Document, made: set[str]) -> None:
        self.path = path
        self.document = document
        self.made = made
        self.problems: list[Diagnostic] = []
        self.entries: list[Entry] = []
        self.tries = 0  # points of all matrices
        self.globs: dict[str, list[str]] = {}  # what each found

    def place(self, *path: str | int, key: bool = False) -> Place:
        """The place of what is at a path of the document."""
        span = self.document.span(path, key=key)
        return Place(self.path, span.line, span.column, max(span.end, span.column + 1))

    def problem(self, code: str, message: str, place: Place, **facts: Any) -> None:
        """Note a problem; the run goes on."""
        self.problems.append(place.diagnostic(code, message, **facts))

    def read(self) -> list[Entry]:
        """All entries, in order; what cannot be read is left out and noted."""
        manifest = self.valid(ManifestModel, self.document.data, ())
        if manifest is None:
            return []
        defaults = self.valid(OptionsModel, manifest.defaults, ("defaults",))
        for index, data in enumerate(manifest.entries if defaults else ()):
            for entry in self.expanded(index, data, manifest.defaults):
                self.entries.append(entry)
            if max(len(self.entries), self.tries) > MAX_ENTRIES:
                text = f"more than {MAX_ENTRIES} entries"
                self.problem("BAT104", text, self.place("entries", index))
                return []
        self.check_targets()
        return self.ordered()

    # ── one entry of the file ────────────────────────────────────────────────────────────────

    def expanded(self, index: int, data: dict[str, Any], defaults: Any) -> Iterator[Entry]:
        """The entries that one of the file stands for."""
        here = ("entries", index)
        if "matrix" in data and not self.axes(data["matrix"], here):
            return
        axes = data.get("matrix", {})
        made: list[tuple[tuple[Any, ...], Entry]] = []
        for values in itertools.product(*axes.values()):
            self.tries += 1
            if self.tries > MAX_ENTRIES:
                break
            point = dict(zip(axes, values, strict=True))
            made += ((values, entry) for entry in self.at_point(data, point, here, defaults))
        often = Counter(entry.name for _, entry in made)
        for values, entry in made:
            shown = f" ({', '.join(map(str, values))})"  # the matrix tells them apart
            several = axes and often[entry.name] > 1
            yield replace(entry, name=entry.name + shown) if several else entry

    def axes(self, axes: Any, here: yaml.Path) -> bool:
        """Whether a matrix can be expanded."""
        if self.valid(EntryModel, {"source": "s", "target": "t", "matrix": axes}, here) is None:
            return False
        for name in axes:
            if name in _OF_PATHS or not _VARIABLE.fullmatch(f"${{{name}}}"):
                place = self.place(*here, "matrix", name, key=True)
                self.problem("BAT104", f"'{name}' is no name for an axis", place)
                return False
        if math.prod(map(len, axes.values())) > MAX_ENTRIES:
            place = self.place(*here, "matrix")
            self.problem("BAT104", f"more than {MAX_ENTRIES} combinations", place)
            return False
        return True

    def at_point(
        self, data: dict[str, Any], point: dict[str, Any], here: yaml.Path, defaults: Any
    ) -> Iterator[Entry]:
        """The entries at one point of the matrix: one, or one for each file of a glob."""
        source = self.filled(data.get("source"), point, (*here, "source"))
        rest = {key: value for key, value in data.items() if key not in ("source", "matrix")}
        given = {"source": source} if "source" in data else {}
        if self.valid(SourceModel, given, here) is None:
            return
        for path, part in self.sources(source, rest, point, here):
            known = point | _of(path)
            filled = self.filled(rest, known, here) | {"source": source}
            options = filled.get("options", {})
            if isinstance(options, dict) and isinstance(defaults, dict):
                filled["options"] = defaults | options
            model = self.valid(EntryModel, filled, here)
            if model is not None:
                yield self.entry(model, path, part, here)

    def entry(self, model: EntryModel, source: Path, part: str, here: yaml.Path) -> Entry:
        """An entry of what was read."""
        keys = ("source", "mapping", "target", "needs", "options")
        mappings = [model.mapping] if isinstance(model.mapping, str) else model.mapping
        name = model.name or model.target
        if len(name) > MAX_NAME:
            text = f"longer than {MAX_NAME} characters: give the entry another `name`"
            self.problem("BAT101", text, self.place(*here, "name"))
        return Entry(
            name,
            source,
            tuple(self.mapping(each) for each in mappings),
            self.beside(model.target),
            model.options,
            tuple(model.needs),
            self.place(*here),
            {key: self.place(*here, key) for key in keys},
            part,
        )

    def mapping(self, name: str) -> str:
        """A mapping's file beside the manifest, or the name as it is: a shipped one."""
        path = self.beside(name)
        return str(path) if os.path.isfile(path) or name.endswith(SUFFIXES) else name

    def beside(self, text: str) -> Path:
        """A path of the manifest, as seen from the working folder."""
        return Path(os.path.normpath(self.path.parent / text))

    def filled(self, data: Any, known: Mapping[str, Any], at: yaml.Path) -> Any:
        """The data with the variables in its texts replaced; a text that is one keeps the type."""
        if isinstance(data, dict):
            return {key: self.filled(value, known, (*at, key)) for key, value in data.items()}
        if isinstance(data, list):
            return [self.filled(value, known, (*at, i)) for i, value in enumerate(data)]
        if not isinstance(data, str):
            return data
        for text in _VARIABLE.findall(data):
            if text[2:-1] not in known:
                expected = ", ".join(f"${{{name}}}" for name in known)
                self.problem(
                    "BAT104", f"nothing gives a value to {text}", self.place(*at), expected=expected
                )
                return data
        if _VARIABLE.fullmatch(data):
            return known[data[2:-1]]
        return _filled(data, known)

    def sources(
        self, text: str, rest: dict[str, Any], point: dict[str, Any], here: yaml.Path
    ) -> Iterator[tuple[Path, str]]:
        """The files that a source stands for, each with the part of it that is meant."""
        plain, mark, part = text.rpartition("#")
        path, part = (plain, part) if mark else (text, "")
        if not _GLOB.search(path) or os.path.exists(self.beside(path)):
            yield self.beside(path), part
            return
        if path.split("/").count("**") > MAX_DEEP or path.count("/") > MAX_PARTS:
            text = f"a glob of more than {MAX_DEEP} `**`, or {MAX_PARTS} folders"
            self.problem("MAP002", text, self.place(*here, "source"))
            return
        paths = self.matches(path, rest, point)
        if not paths and rest.get("optional") is not True:
            text = f"no file is called '{path}'"
            hint = "if that is all right, mark the entry `optional: true`"
            self.problem("BAT103", text, self.place(*here, "source"), hint=hint)
        yield from ((each, part) for each in paths)

    def matches(self, pattern: str, rest: dict[str, Any], point: dict[str, Any]) -> list[Path]:
        """What fits: files, without those that this manifest makes; targets above."""
        if pattern not in self.globs:
            self.globs[pattern] = found(self.path, pattern, 10 * MAX_ENTRIES)
        paths = {self.beside(name) for name in self.globs[pattern]}
        there = {path for path in paths if os.path.abspath(path) not in self.made}
        there = {path for path in there if not os.path.isdir(path)}
        target = str(rest.get("target"))
        own = {self.beside(_filled(target, point | _of(path))) for path in there}
        parts = pattern.split("/")
        above = {e.target for e in self.entries if _fits(parts, self.near(e.target).split("/"))}
        return sorted((there - own) | above)

    def near(self, path: Path) -> str:
        """A path as seen from the manifest's folder."""
        return Path(os.path.relpath(path, self.path.parent)).as_posix()

    # ── what holds of all entries together ───────────────────────────────────────────────────

    def check_targets(self) -> None:
        """No two entries have one name or one target, and none replaces what another reads."""
        names: dict[str, Entry] = {}
        read = {_key(self.path): "the manifest"}
        for entry in self.entries:
            other = names.setdefault(entry.name, entry)
            if other is not entry:
                text = (
                    f"two entries are called '{entry.name}', the other in line {other.place.line}"
                )
                self.problem("BAT101", text, entry.place, hint="give one another `name`")
            for name in entry.mappings:
                read[_key(Path(name))] = f"the mapping of '{entry.name}'"
        targets: dict[str, Entry] = {}
        for entry in self.entries:
            key = _key(entry.target)
            other = targets.setdefault(key, entry)
            if other is not entry and other.name != entry.name:
                text = f"'{entry.target}' is made twice, also by '{other.name}'"
                self.problem("BAT101", text, entry.at["target"])
            elif key in read or key == _key(entry.source):
                text = f"the target is {read.get(key, 'the source')}"
                self.problem("BAT105", text, entry.at["target"])
            elif os.path.isdir(entry.target):
                self.problem("BAT105", "the target is a folder", entry.at["target"])

    def ordered(self) -> list[Entry]:
        """Every entry after those that it needs, and else as in the file; cycles are noted."""
        made = {
            os.path.abspath(f"{entry.target}{suffix}"): entry.name
            for entry in self.entries
            for suffix in ("", *_BESIDE)
        }
        names = {entry.name: entry for entry in self.entries}
        groups: dict[str, list[str]] = {}
        for entry in self.entries:
            groups.setdefault(entry.name.rpartition(" (")[0], []).append(entry.name)
        needs: dict[str, list[str]] = {}
        for entry in self.entries:
            wanted = [made[key] for key in [os.path.abspath(entry.source)] if key in made]
            for name in entry.needs:
                wanted += [name] if name in names else groups.get(name, ())
                if name not in names and name not in groups:
                    near = difflib.get_close_matches(name, names, 1)
                    hint = f"did you mean '{near[0]}'?" if near else ""
                    self.problem(
                        "BAT103", f"no entry is called '{name}'", entry.at["needs"], hint=hint
                    )
            needs[entry.name] = [name for name in dict.fromkeys(wanted) if name != entry.name]
        try:
            order = list(graphlib.TopologicalSorter(needs).static_order())
        except graphlib.CycleError as error:
            cycle = error.args[1]
            self.problem(
                "BAT102", f"entries wait for each other: {' ← '.join(cycle)}", names[cycle[0]].place
            )
            return []
        rank = _ranks(needs, order)
        stable = sorted(names, key=lambda name: rank[name])
        return [replace(names[name], needs=tuple(needs[name])) for name in stable]

    # ── pydantic's findings in our words ─────────────────────────────────────────────────────

    def valid(self, model: type[Any], data: Any, at: yaml.Path) -> Any:
        """The validated model; None after noting what is wrong."""
        try:
            return model.model_validate(data)
        except ValidationError as error:
            for detail in error.errors():
                self.schema_problem(detail, at, model)
            return None

    def schema_problem(self, detail: Any, at: yaml.Path, model: type[BaseModel]) -> None:
        """Note one finding at its place."""
        path = (*at, *(part for part in detail["loc"] if not _is_form(part)))
        kind, message, hint = detail["type"], detail["msg"].removeprefix("Value error, "), ""
        if kind == "extra_forbidden":
            message = f"unknown key '{path[-1]}'"
            known = [*(OptionsModel if "options" in detail["loc"] else model).model_fields]
            near = difflib.get_close_matches(str(path[-1]), known, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}"
        elif kind == "missing":
            message, path = f"'{path[-1]}' is missing", path[:-1]
        elif kind in ("model_type", "dict_type"):
            message = "expected words and values, as in `key: value`"
        elif isinstance(detail.get("input"), str | int | float | bool):
            message = f"{message}, found {str(detail['input'])[:100]!r}"
        place = self.place(*path, key=kind == "extra_forbidden")
        self.problem("MAP002", message, place, hint=hint)


def stem(path: Path) -> str:
    """A file's name without the suffix of its format, or without its last suffix."""
    suffixes = [suffix for row in FORMATS for suffix in (*row.suffixes, *row.only_read)]
    for suffix in sorted(suffixes, key=len, reverse=True):
        if path.name.endswith(suffix) and path.name != suffix:
            return path.name.removesuffix(suffix)
    return path.stem


def _of(path: Path) -> dict[str, str]:
    """The variables that a source gives values to."""
    return {"stem": stem(path), "file": path.name, "folder": path.parent.name}


def _filled(text: str, known: Mapping[str, Any]) -> str:
    return _VARIABLE.sub(lambda match: str(known.get(match[0][2:-1], "")), text)


def _fits(pattern: Sequence[str], name: Sequence[str]) -> bool:
    """Does a path fit a glob, segment by segment?  `**` is any number of segments."""
    if not pattern or not name:
        return not name and all(part == "**" for part in pattern)
    if pattern[0] == "**":
        return _fits(pattern[1:], name) or _fits(pattern, name[1:])
    return fnmatch.fnmatchcase(name[0], pattern[0]) and _fits(pattern[1:], name[1:])


def _is_form(part: str | int) -> bool:
    """A name of pydantic's for one of the forms that a value may have."""
    return isinstance(part, str) and (
        part in ("str", "int", "float", "bool")
        or part.startswith(("list[", "constrained", "function-"))
    )


def _key(path: Path) -> str:
    """What tells whether two paths are one file, also when there is none."""
    return os.path.realpath(path)


def _ranks(needs: Mapping[str, Sequence[str]], order: Sequence[str]) -> dict[str, int]:
    rank: dict[str, int] = {}
    for name in order:
        rank[name] = 1 + max((rank[other] for other in needs.get(name, ())), default=-1)
    return rank
