"""Mapping files: text → model → compiled rules, every problem with its place, all in one run."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from converter.errors import Diagnostic, MappingError, NotFoundError
from converter.language import names, yaml
from converter.language.groups import GROUPS
from converter.language.model import (
    DropModel,
    ExampleModel,
    MakeModel,
    MappingModel,
    RuleModel,
    listed,
    op_names,
)
from converter.language.rules import Drop, Make, Place, Rule, Rules
from converter.ops import OPS, Op
from converter.ops.pieces import Split

SUFFIXES = (".yaml", ".yml")
Entry = TypeVar("Entry")
_STAND_INS: dict[str, dict[str, Any]] = {  # for entries that the schema refuses
    "rules": {"source": "", "target": ""},
    "drop": {"source": "", "because": "-"},
    "make": {"target": ""},
    "tests": {"rule": 0, "in": 0, "out": 0},
}
SURE = 0.8  # likeness of a word to the one that `lint --fix` puts in its place


def shipped() -> Path:
    """The folder of the mappings that come with the package."""
    package = Path(__file__).parents[1]
    inside = package / "_mappings"  # in a wheel; in a checkout they lie beside the package
    return inside if inside.is_dir() else package.parent / "mappings"


def shipped_names() -> list[str]:
    """The names that `load` knows, sorted: `family/source-target`."""
    root = shipped()
    return sorted(
        path.relative_to(root).with_suffix("").as_posix() for path in root.glob("*/*.yaml")
    )


def find(name: str | Path) -> Path:
    """The file of a shipped name or a path; `NotFoundError` with the nearest names."""
    path = Path(name)
    if path.is_file():
        return path
    known = shipped_names()
    if str(name) in known:
        return shipped() / f"{name}.yaml"
    near = difflib.get_close_matches(str(name), known, 3)
    raise NotFoundError(
        f"no mapping '{name}': neither a shipped name nor a file",
        hint=f"did you mean {' or '.join(near)}?" if near else "see `converter mappings ls`",
    )


def load(name: str | Path, sizes: Mapping[str, int] | None = None) -> Rules:
    """The compiled rules of a shipped mapping or a file; `sizes` override the file's.

    Raises `MappingError` with every problem of the file, `NotFoundError` when there is none.
    """
    path = find(name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MappingError(
            [Place(path, 1, 1, 1).diagnostic("MAP001", f"cannot be read: {error}")]
        ) from error
    return loads(text, path, sizes)


def loads(text: str, path: Path | None = None, sizes: Mapping[str, int] | None = None) -> Rules:
    """`load` for a text; `path` is what diagnostics name."""
    rules, problems = examine(read(text, path), path, sizes)
    if problems:
        raise MappingError(problems)
    return rules


def examine(
    document: yaml.Document, path: Path | None, sizes: Mapping[str, int] | None = None
) -> tuple[Rules, list[Diagnostic]]:
    """The rules of a document, as far as they can be read, and every problem, by place."""
    compiler = _Compiler(path, document)
    rules = compiler.compile(sizes or {})
    return rules, sorted(compiler.problems, key=lambda d: (d.line, d.column))


def read(text: str, path: Path | None) -> yaml.Document:
    """The document; `MappingError` when it is no YAML."""
    try:
        return yaml.load(text)
    except yaml.YamlError as error:
        span = error.span
        place = Place(path, span.line, span.column, span.end)
        raise MappingError([place.diagnostic("MAP001", str(error), hint=error.hint)]) from error


class _Compiler:
    """Turns a document into rules and collects what is wrong with it."""

    def __init__(self, path: Path | None, document: yaml.Document) -> None:
        self.path = path
        self.document = document
        self.problems: list[Diagnostic] = []
        self.tables: dict[str, names.Table] = {}
        self.sizes: dict[str, int] = {}
        self.refused: set[tuple[str | int, ...]] = set()  # entries that the schema refuses

    def place(self, *path: str | int, key: bool = False, offset: int = 0) -> Place:
        """The place of what is at a path of the document, `offset` characters into it."""
        span = self.document.span(path, key=key)
        column = span.column + (offset + span.text_offset if offset else 0)
        column = min(column, max(span.end - 1, span.column))  # of a text over lines, its start
        return Place(self.path, span.line, column, max(span.end, column + 1))

    def problem(self, code: str, message: str, place: Place, **facts: Any) -> None:
        """Note a problem; the run goes on."""
        self.problems.append(place.diagnostic(code, message, **facts))

    def compile(self, sizes: Mapping[str, int]) -> Rules:
        """The rules, as far as they can be read."""
        model = self.model()
        if model is None:
            return Rules(())
        for name, size in sorted(sizes.items()):
            known = ", ".join(sorted(model.sizes)) or "none"
            where = self.place("sizes", name)
            if name not in model.sizes:
                self.problem("MAP107", f"there is no size '{name}'", where, expected=known)
            elif size < 1:
                self.problem("MAP107", f"size '{name}' is {size}, and no axis is", where)
        self.sizes = {**model.sizes, **sizes}
        self.read_tables(model.tables)
        rules = [self.rule(*entry) for entry in self.sound("rules", model.rules)]
        drops = [self.drops(*entry) for entry in self.sound("drop", model.drop)]
        makes = [self.make(*entry) for entry in self.sound("make", model.make)]
        return Rules(
            tuple(rule for rule in rules if rule),
            tuple(drop for source, _ in drops for drop in source),
            tuple(drop for _, target in drops for drop in target),
            tuple(make for make in makes if make),
            model.name or (self.path.stem if self.path else ""),
            model.about,
            self.path,
            model.source.model,
            model.target.model,
            model.source.contract,
            model.target.contract,
        )

    def model(self) -> MappingModel | None:
        """The validated model, without the entries that were noted; None when little is left."""
        data = self.document.data
        try:
            return MappingModel.model_validate(data)
        except ValidationError as error:
            details = error.errors()
        for detail in details:
            self.schema_problem(detail)
        self.refused = {tuple(detail["loc"][:2]) for detail in details}
        if all(len(path) > 1 and path[0] in _STAND_INS for path in self.refused):
            for name, index in self.refused:
                data[name][index] = _STAND_INS[str(name)]
            return MappingModel.model_validate(data)
        return None

    def sound(self, name: str, entries: Sequence[Entry]) -> list[tuple[int, Entry]]:
        """The entries of a list that the schema accepts, with their index."""
        return [
            (index, entry)
            for index, entry in enumerate(entries)
            if (name, index) not in self.refused
        ]

    def schema_problem(self, detail: Any) -> None:
        """Note one of pydantic's findings in our words, at its place."""
        path = tuple(part for part in detail["loc"] if part not in ("str", "list[str]"))
        kind, hint, expected, fix = detail["type"], "", "", None
        message = detail["msg"].removeprefix("Value error, ")
        if kind == "extra_forbidden":
            message = f"unknown key '{path[-1]}'"
            known = _fields_at(path[:-1])
            hint = _nearest(str(path[-1]), known)
            fix = self.fix(path, known)
            expected = ", ".join(known)
        elif kind == "missing":
            message, path = f"'{path[-1]}' is missing", path[:-1]
        elif kind in ("model_type", "dict_type"):
            message = "expected words and values, as in `key: value`"
        place = self.place(*path, key=kind == "extra_forbidden")
        if kind == "missing" or not self.noted("MAP002", place):
            self.problem("MAP002", message, place, hint=hint, expected=expected, fix=fix)

    def fix(self, path: tuple[str | int, ...], known: Iterable[str]) -> str | None:
        """The one key that is meant, when there is no doubt and it does not stand there already."""
        near = difflib.get_close_matches(str(path[-1]), list(known), 2, SURE)
        taken = len(near) == 1 and (*path[:-1], near[0]) in self.document.keys
        return near[0] if len(near) == 1 and not taken else None

    def noted(self, code: str, place: Place) -> bool:
        """Was this said of that place?  Each branch of a union says it."""
        where = (code, place.line, place.column)
        return any((d.code, d.line, d.column) == where for d in self.problems)

    def read_tables(self, tables: Mapping[str, Mapping[str, str | int]]) -> None:
        """Check that each table is a bijection with keys of one width."""
        for name, entries in tables.items():
            seen: dict[str, str] = {}
            table: dict[tuple[str, ...], str] = {}
            for key, value in entries.items():
                place = self.place("tables", name, key)
                if str(value) in seen:
                    self.problem(
                        "MAP105",
                        f"table '{name}' has {value!r} twice, for {seen[str(value)]} and {key}: "
                        "it cannot be read backward",
                        place,
                    )
                seen[str(value)] = key
                parts = tuple(part.strip() for part in key.split(","))
                if table and len(parts) != len(next(iter(table))):
                    self.problem("MAP105", f"table '{name}': keys differ in length", place)
                    continue
                if parts in table:
                    shown = ", ".join(parts)
                    self.problem("MAP105", f"table '{name}' has the key {shown} twice", place)
                table[parts] = str(value)
            if table:
                self.tables[name] = names.Table(name, table)
            else:
                self.problem("MAP105", f"table '{name}' is empty", self.place("tables", name))

    def templates(
        self, texts: list[str], place: Callable[[int, int], Place]
    ) -> list[names.Template] | None:
        """Parse the templates of one rule; None after noting what is wrong."""
        try:
            return names.parse(texts, self.tables)
        except names.TemplateError as error:
            where = place(getattr(error, "template", 0), error.offset)
            self.problem("MAP101", str(error), where, hint=error.hint)
            return None

    def selectors(self, texts: Iterable[str], *path: str | int) -> tuple[names.Selector, ...]:
        """Parse selectors, noting what is wrong."""
        found = []
        for index, text in enumerate(texts):
            try:
                found.append(names.parse_selector(text))
            except names.TemplateError as error:
                place = self.place(*path, index, offset=error.offset)
                self.problem("MAP101", str(error), place, hint=error.hint)
        return tuple(found)

    def rule(self, index: int, model: RuleModel) -> Rule | None:
        """Compile one rule."""
        sources, targets = listed(model.source), listed(model.target)

        def where(text: int, offset: int) -> Place:
            side, nth = ("source", text) if text < len(sources) else ("target", text - len(sources))
            several = isinstance(getattr(model, side), list)
            return self.place("rules", index, side, *([nth] if several else []), offset=offset)

        sizes = {**self.sizes, **model.sizes}
        ops = [self.op(entry, sizes, index, nth) for nth, entry in enumerate(model.ops)]
        excluded = self.selectors(model.exclude, "rules", index, "except")
        templates = self.templates(sources + targets, where)
        if templates is None or None in ops:
            return None
        rule = Rule(
            tuple(templates[: len(sources)]),
            tuple(templates[len(sources) :]),
            tuple(op for op in ops if op),
            excluded,
            excluded,
            model.optional,
            model.about,
            self.place("rules", index, "source"),
            tuple(
                self.place("rules", index, "ops", nth, *entry, key=True)
                for nth, entry in enumerate(model.ops)
            ),
        )
        self.check_shape(rule, index)
        return rule

    def check_shape(self, rule: Rule, index: int) -> None:
        """Holes and numbers of tensors on the two sides must go together."""
        place = self.place("rules", index, "target")
        ops = {op.name for op in rule.ops}
        if rule.gathered and not ops & {"stack", "concat"}:
            self.problem(
                "MAP104",
                f"hole '{rule.gathered[0]}' of the source is not in the target, so names would "
                "collide",
                place,
                hint="gather the sources: `stack` or `concat`",
            )
        elif rule.scattered and not ops & {"unstack", "split"}:
            self.problem(
                "MAP104",
                f"hole '{rule.scattered[0]}' of the target is in no source, so nothing gives its "
                "value",
                place,
                hint="scatter the source: `unstack` or `split`",
            )
        else:
            self.check_counted(rule, place)
        if len(rule.sources) > 1 and not ops & {"stack", "concat"}:
            self.problem("MAP106", "several sources are joined by `concat` or `stack`", place)
        if len(rule.targets) > 1 and not ops & {"unstack", "split"}:
            self.problem("MAP106", "several targets are cut by `split` or `unstack`", place)

    def check_counted(self, rule: Rule, place: Place) -> None:
        """A hole of one side alone counts tensors: it is one, and a number."""
        for holes, side in ((rule.gathered, rule.sources), (rule.scattered, rule.targets)):
            kinds = {hole: t.kinds[hole] for t in side for hole in holes if hole in t.kinds}
            words = [hole for hole, kind in kinds.items() if kind in ("word", "path")]
            if words:
                self.problem(
                    "MAP104", f"hole '{words[0]}' counts tensors, so it is a number", place
                )
            if len(holes) > 1:
                both = " and ".join(f"'{hole}'" for hole in holes)
                self.problem("MAP104", f"{both} cannot count at once", place, hint="keep one hole")
        if rule.scattered and len(rule.targets) > 1:
            self.problem("MAP106", "numbered targets are one template", place)
        if rule.scattered and any(isinstance(op, Split) and op.sizes is None for op in rule.ops):
            self.problem(
                "MAP106",
                f"split does not know how many '{rule.scattered[0]}' there are",
                place,
                hint="give its `sizes`, or unstack",
            )

    def op(
        self, entry: Mapping[str, Any], sizes: Mapping[str, int], index: int, nth: int
    ) -> Op | None:
        """Compile one op; None after noting what is wrong."""
        ((word, value),) = entry.items()
        path = ("rules", index, "ops", nth, word)
        if word not in OPS:
            hint = _nearest(word, op_names())
            self.problem(
                "MAP102",
                f"unknown op '{word}'",
                self.place(*path, key=True),
                expected=", ".join(op_names()),
                hint=hint,
                fix=self.fix(path, op_names()),
            )
            return None
        try:
            return OPS[word].model_validate(value).bind(sizes)
        except ValidationError as error:
            for detail in error.errors():
                self.op_problem(word, detail, path)
        return None

    def op_problem(self, word: str, detail: Any, path: tuple[str | int, ...]) -> None:
        """Note what is wrong with an op's value."""
        cause = detail.get("ctx", {}).get("error")
        nested = isinstance(self.document_at(path), dict)  # else it is the short form, of one field
        where = (*path, *detail["loc"]) if nested else (*path, *detail["loc"][1:])
        message, hint, fix = detail["msg"].removeprefix("Value error, "), "", None
        place = self.place(*where, offset=getattr(cause, "offset", 0))
        if detail["type"] == "extra_forbidden":
            message, place = f"unknown key '{where[-1]}'", self.place(*where, key=True)
            fields = OPS[word].model_fields
            known = [info.alias or name for name, info in fields.items()]
            hint = _nearest(str(where[-1]), known)
            fix = self.fix(where, known)
        elif detail["type"] == "missing":
            message, place = f"'{where[-1]}' is missing", self.place(*path)
        if detail["type"] == "missing" or not self.noted("MAP103", place):
            expected = OPS[word].about
            text = f"{word}: {message}"
            self.problem("MAP103", text, place, expected=expected, hint=hint, fix=fix)

    def document_at(self, path: tuple[str | int, ...]) -> Any:
        """The data at a path."""
        data = self.document.data
        for part in path:
            data = data[part]
        return data

    def drops(self, index: int, model: DropModel) -> tuple[list[Drop], list[Drop]]:
        """Compile a drop: what it says of the source's names, and of the target's."""
        place = self.place("drop", index)
        if model.group:
            because, patterns = GROUPS[model.group]
            reason = model.because or because
            found = [Drop(names.parse_selector(text), reason, place) for text in patterns]
            return found, found
        side = "source" if model.source is not None else "target"
        text = model.source if model.source is not None else model.target
        try:
            drop = Drop(names.parse_selector(text or ""), model.because, place)
        except names.TemplateError as error:
            where = self.place("drop", index, side, offset=error.offset)
            self.problem("MAP101", str(error), where, hint=error.hint)
            return [], []
        return ([drop], []) if side == "source" else ([], [drop])

    def make(self, index: int, model: MakeModel) -> Make | None:
        """Compile a constant."""
        texts = [model.target] + ([model.each] if model.each else [])

        def where(text: int, offset: int) -> Place:
            return self.place("make", index, ("target", "each")[text], offset=offset)

        templates = self.templates(texts, where)
        if templates is None:
            return None
        each = templates[1] if model.each else None
        unknown = sorted(templates[0].holes - (each.holes if each else frozenset()))
        if unknown:
            self.problem(
                "MAP104",
                f"nothing gives a value to hole '{unknown[0]}'",
                where(0, 0),
                hint="name the sources that have it: `each: ...`",
            )
        shape: tuple[int, ...] | None = None if each is not None else ()
        if model.shape is not None:
            known = [self.sizes.get(n, n) if isinstance(n, str) else n for n in model.shape]
            if any(not isinstance(n, int) or n < 0 for n in known):
                self.problem("MAP107", "a size is not known", self.place("make", index, "shape"))
                return None
            shape = tuple(int(n) for n in known)
        place = self.place("make", index)
        return Make(templates[0], model.dtype, shape, model.fill, model.because, each, place)


def _nearest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), 1)
    return f"did you mean '{near[0]}'?" if near else ""


def _fields_at(path: tuple[str | int, ...]) -> list[str]:
    """The keys that may stand at a path of the document."""
    models: dict[str, Any] = {
        "rules": RuleModel,
        "drop": DropModel,
        "make": MakeModel,
        "tests": ExampleModel,
    }
    top = path[0] if path else ""
    if top in ("source", "target"):
        return ["model", "contract"]
    fields = models.get(str(top), MappingModel).model_fields
    return [str(info.alias or name) for name, info in fields.items()]
