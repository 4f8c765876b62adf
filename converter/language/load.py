"""Mapping files: text → model → compiled rules, every problem with its place, all in one run."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from converter.errors import Diagnostic, MappingError, NotFoundError
from converter.language import names, yaml
from converter.language.groups import GROUPS
from converter.language.include import Chain, IncludeError, shipped
from converter.language.model import (
    DropModel,
    ExampleModel,
    IncludeModel,
    MakeModel,
    MappingModel,
    ProbeModel,
    RuleModel,
    branches,
    listed,
    op_names,
)
from converter.language.overlap import overlaps
from converter.language.rules import REMARKS, Drop, Make, Place, Probe, Rule, Rules
from converter.ops import OPS, Op
from converter.ops.base import On, UnaryOp
from converter.ops.pieces import Split
from converter.record import FieldError, Refused

SUFFIXES = (".yaml", ".yml")
Entry = TypeVar("Entry")
_STAND_INS: dict[str, dict[str, Any]] = {  # for entries that the schema refuses
    "rules": {"source": "", "target": ""},
    "drop": {"source": "", "because": "-"},
    "make": {"target": ""},
    "probes": {"layer": "dense", "source": "keras", "target": "torch"},
    "tests": {"rule": 0, "in": 0, "out": 0},
    "include": {"mapping": ""},
}
SURE = 0.8  # likeness of a word to the one that `lint --fix` puts in its place


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
    return loads(_text(path), path, sizes)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MappingError(
            [Place(path, 1, 1, 1).diagnostic("MAP001", f"cannot be read: {error}")]
        ) from error


def loads(text: str, path: Path | None = None, sizes: Mapping[str, int] | None = None) -> Rules:
    """`load` for a text; `path` is what diagnostics name."""
    rules, problems = examine(read(text, path), path, sizes)
    if problems:
        raise MappingError(problems)
    return rules


def examine(
    document: yaml.Document,
    path: Path | None,
    sizes: Mapping[str, int] | None = None,
) -> tuple[Rules, list[Diagnostic]]:
    """The rules of a document, as far as they can be read, and every problem, by place."""
    rules, problems = compiled(document, path, sizes)
    problems = [*problems, *overlaps(rules)]
    return rules, sorted(problems, key=lambda d: (d.path != path, str(d.path), d.line, d.column))


def compiled(
    document: yaml.Document, path: Path | None, sizes: Mapping[str, int] | None = None
) -> tuple[Rules, list[Diagnostic]]:
    """`examine` without the search for rules that overlap, which takes as long again."""
    compiler = _Compiler(path, document, Chain(path))
    return compiler.compile(sizes or {}), compiler.problems


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

    def __init__(self, path: Path | None, document: yaml.Document, chain: Chain) -> None:
        self.path = path
        self.chain = chain
        self.document = document
        self.problems: list[Diagnostic] = []
        self.tables: dict[str, names.Table] = {}
        self.sizes: dict[str, int] = {}
        self.named: names.Sizes = {}  # as they may stand in names: those without a number, too
        self.refused: set[tuple[str | int, ...]] = set()  # entries that the schema refuses
        self.misspelt: set[tuple[str | int, ...]] = set()  # keys that are there as another word

    def place(self, *path: str | int, key: bool = False, offset: int = 0) -> Place:
        """The place of what is at a path of the document, `offset` characters into it."""
        span = self.document.span(path, key=key)
        column = span.column + (offset + span.text_offset if offset else 0)
        column = min(column, max(span.end - 1, span.column))  # of a text over lines, its start
        return Place(self.path, span.line, column, max(span.end, column + 1))

    def problem(self, code: str, message: str, place: Place, **facts: Any) -> None:
        """Note a problem; the run goes on."""
        self.problems.append(place.diagnostic(code, message, **facts))

    def compile(self, sizes: names.Sizes) -> Rules:
        """The rules, as far as they can be read."""
        self.chain.texts.setdefault(self.path or Path(), self.document.text)
        model = self.model()
        if model is None:
            return Rules(())
        self.check_sizes(sizes, model.sizes)
        self.named = {**model.sizes, **sizes}
        self.sizes = {name: size for name, size in self.named.items() if size is not None}
        self.read_tables(model.tables)
        rules = [self.rule(*entry) for entry in self.sound("rules", model.rules)]
        drops = [self.drops(*entry) for entry in self.sound("drop", model.drop)]
        makes = [self.make(*entry) for entry in self.sound("make", model.make)]
        parts = [self.include(*entry) for entry in enumerate(model.include)]
        found = Rules(
            (*filter(None, rules), *(rule for part in parts for rule in part.rules)),
            tuple(drop for source, _ in drops for drop in source)
            + tuple(drop for part in parts for drop in part.drops),
            tuple(drop for _, target in drops for drop in target)
            + tuple(drop for part in parts for drop in part.target_drops),
            (*filter(None, makes), *(make for part in parts for make in part.makes)),
            model.name or (self.path.stem if self.path else ""),
            model.about,
            self.path,
            model.source.model,
            model.target.model,
            self.contract("source", parts, model.source.contract),
            self.contract("target", parts, model.target.contract),
            texts=self.chain.texts,
        )
        own = tuple(self.probe(found, *entry) for entry in self.sound("probes", model.probes))
        return replace(found, probes=(*own, *(probe for part in parts for probe in part.probes)))

    def probe(self, rules: Rules, index: int, model: ProbeModel) -> Probe:
        """A probe of this file's rules, with the sizes that they have."""
        source, target = model.source_scope, model.target_scope
        for name, size in self.sizes.items():
            source, target = (scope.replace(f"{{{name}}}", str(size)) for scope in (source, target))
        return Probe(
            model.layer,
            model.source,
            model.target,
            rules,
            source,
            target,
            {**self.sizes, **model.sizes},
            self.place("probes", index),
        )

    def contract(self, side: str, parts: Sequence[Rules], own: Mapping[str, Any]) -> dict[str, Any]:
        """The contract of a side: what this file says, and what its parts say without it."""
        found: dict[str, tuple[Any, Rules]] = {}
        for index, part in enumerate(parts):
            for key, value in getattr(part, f"{side}_contract").items():
                said, other = found.setdefault(key, (value, part))
                if said != value and key not in own and key not in REMARKS:
                    self.problem(
                        "MAP112",
                        f"{part.name} and {other.name} contradict each other: the {side}'s {key}",
                        self.place("include", index, "mapping"),
                        expected=f"{key}: {said}",
                        found=f"{key}: {value}",
                        hint=f"say which holds, in the `contract` of this mapping's {side}",
                    )
        return {key: value for key, (value, _) in found.items()} | dict(own)

    def check_sizes(self, sizes: names.Sizes, declared: names.Sizes) -> None:
        """Sizes from outside must be of this mapping; only in names may they be 0."""
        in_names = names.words_in_braces(self.document.data)
        for name, size in sorted(sizes.items()):
            known = ", ".join(sorted(declared)) or "none"
            where = self.place("sizes", name)
            if name not in declared:
                self.problem("MAP107", f"there is no size '{name}'", where, expected=known)
            elif size is not None and size < 1 and name not in in_names:
                self.problem("MAP107", f"size '{name}' is {size}, and no axis is", where)
        for name, number in declared.items():
            if number == 0 and name not in in_names:
                text = "Input should be greater than or equal to 1, as axes are"
                self.problem("MAP002", text, self.place("sizes", name))

    def include(self, index: int, model: IncludeModel) -> Rules:
        """The rules of another mapping under names of this one; none after noting what is wrong."""
        if ("include", index) in self.refused:
            return Rules(())
        place = self.place("include", index)
        exclude = self.selectors(model.exclude, "include", index, "except")
        try:
            rules = self.included(index, model)
            source, target = names.parse_scopes(
                [model.source, model.target], self.tables, self.named
            )
            self.check_scopes(rules, source, target, index)
            return rules.included(source, target, place, exclude, optional=model.optional)
        except IncludeError as error:
            self.problem("MAP110", str(error), self.place("include", index, "mapping"))
        except names.TemplateError as error:
            side = ("source", "target")[getattr(error, "template", 0)]
            where = self.place("include", index, side, offset=error.offset)
            self.problem("MAP101", str(error), where, hint=error.hint)
        return Rules(())

    def included(self, index: int, model: IncludeModel) -> Rules:
        """The rules of another file, compiled with these sizes; its problems become ours."""
        sizes: dict[str, int | None] = {}  # None: to be given from outside, here as there
        for name, size in model.sizes.items():
            sizes[name] = self.named.get(size) if isinstance(size, str) else size
            if isinstance(size, str) and size not in self.named:
                where = self.place("include", index, "sizes", name)
                self.problem("MAP107", f"a size '{size}' is not known", where)
        path = self.chain.find(model.mapping)
        with self.chain.enter(path):
            rules, problems = self.chain.compiled(path, sizes, _compile)
        if model.reverse:
            try:
                rules = rules.inverse()
            except MappingError as error:
                problems = (*problems, *error.diagnostics)
        place = self.place("include", index)
        self.problems += [
            p._replace(message=f"{p.message} (included at {place})") for p in problems
        ]
        return rules

    def check_scopes(
        self, rules: Rules, source: names.Scope, target: names.Scope, index: int
    ) -> None:
        """Holes stand in both scopes, since each name of one side has one of the other."""
        only = sorted(source.holes ^ target.holes)
        unmade = [make for make in rules.makes if make.each is None and target.holes]
        where = self.place("include", index)
        if only:
            self.problem("MAP104", f"hole '{only[0]}' stands on one side only", where)
        elif unmade:
            text = f"`{unmade[0].target.text}` is made once, but the include has holes"
            self.problem("MAP104", text, where)

    def model(self) -> MappingModel | None:
        """The validated model, without the entries that were noted; None when little is left."""
        data = self.document.data
        try:
            return MappingModel.read(data)
        except Refused as error:
            details = [d for d in error.details if not self.of_another_form(d)]
        for detail in sorted(details, key=lambda detail: detail["type"] == "missing"):
            self.schema_problem(detail)
        self.refused = {tuple(detail["loc"][:2]) for detail in details}
        if all(len(path) > 1 and path[0] in _STAND_INS for path in self.refused):
            data = copy.deepcopy(data)
            for name, index in self.refused:
                data[name][index] = _STAND_INS[str(name)]
            return MappingModel.read(data)
        return None

    def sound(self, name: str, entries: Sequence[Entry]) -> list[tuple[int, Entry]]:
        """The entries of a list that the schema accepts, with their index."""
        return [
            (index, entry)
            for index, entry in enumerate(entries)
            if (name, index) not in self.refused
        ]

    def of_another_form(self, detail: Any) -> bool:
        """Is this about a form of names (text, branch, list) that the author did not choose?"""
        wanted = {"string_type": str, "list_type": list, "model_type": dict}.get(detail["type"])
        path = _without_forms(detail["loc"])
        if wanted is None or path == detail["loc"]:
            return False
        found = self.document_at(path)
        return isinstance(found, str | list | dict) and not isinstance(found, wanted)

    def schema_problem(self, detail: Any) -> None:
        """Note one of pydantic's findings in our words, at its place."""
        cause = detail.get("ctx", {}).get("error")
        path = _without_forms(detail["loc"])
        if isinstance(cause, FieldError):
            path = (*path, cause.field)
        kind, hint, expected, fix = detail["type"], "", "", None
        message = detail["msg"].removeprefix("Value error, ")
        if kind == "extra_forbidden":
            message = f"unknown key '{path[-1]}'"
            known = _fields_at(path[:-1])
            hint = _nearest(str(path[-1]), known)
            fix = self.fix(path, known)
            self.misspelt.add((*path[:-1], str(fix)))
            expected = ", ".join(known)
        elif kind == "missing":
            if path in self.misspelt:
                return
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
            seen: dict[tuple[str, ...], str] = {}
            table: dict[tuple[str, ...], str] = {}
            sized = self.sized(name)
            for key, value in entries.items():
                place = self.place("tables", name, key)
                parts = tuple(part.strip() for part in key.split(","))
                once = (str(value), *(part for k, part in enumerate(parts) if k in sized))
                if once in seen:
                    self.problem(
                        "MAP105",
                        f"table '{name}' has {value!r} twice, for {seen[once]} and {key}: "
                        "it cannot be read backward",
                        place,
                    )
                seen[once] = key
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

    def sized(self, table: str) -> set[int]:
        """Which parts of a table's keys are sizes, wherever it is looked up."""
        lookups = (
            [key.strip() for key in keys.split(",")]
            for text in yaml.texts(self.document.data)
            for name, keys in re.findall(r"\{(\w+)\[([^\[\]]*)\]\}", text)
            if name == table
        )
        places = [{k for k, key in enumerate(keys) if key in self.named} for keys in lookups]
        return set.intersection(*places) if places else set()

    def templates(
        self, texts: list[str], place: Callable[[int, int], Place]
    ) -> list[names.Template] | None:
        """Parse the templates of one rule; None after noting what is wrong."""
        try:
            return names.parse(texts, self.tables, self.named)
        except names.TemplateError as error:
            where = place(getattr(error, "template", 0), error.offset)
            self.problem("MAP101", str(error), where, hint=error.hint)
            return None

    def selectors(self, texts: Iterable[str], *path: str | int) -> tuple[names.Selector, ...]:
        """Parse selectors, noting what is wrong."""
        found = []
        for index, text in enumerate(texts):
            try:
                found.append(names.parse_selector(text, self.named))
            except names.TemplateError as error:
                place = self.place(*path, index, offset=error.offset)
                self.problem("MAP101", str(error), place, hint=error.hint)
        return tuple(found)

    def rule(self, index: int, model: RuleModel) -> Rule | None:
        """Compile one rule."""
        sources, targets = listed(model.source), listed(model.target)

        def where(text: int, offset: int) -> Place:
            side, nth = ("source", text) if text < len(sources) else ("target", text - len(sources))
            path = self.branch(index, model, side, nth)
            inside = self.document_at(path)
            name = ["name"] if isinstance(inside, dict) else []
            return self.place(*path, *name, offset=offset)

        ops = self.rule_ops(index, model)
        excluded = self.selectors(model.exclude, "rules", index, "except")
        templates = self.templates(sources + targets, where)
        if templates is None or ops is None:
            return None
        rule = Rule(
            tuple(templates[: len(sources)]),
            tuple(templates[len(sources) :]),
            tuple(op for op, _ in ops),
            excluded,
            excluded,
            model.optional,
            model.about,
            self.place("rules", index, "source"),
            tuple(place for _, place in ops),
            self.place("rules", index, "target"),
        )
        self.check_shape(rule, index)
        self.check_lossy(rule, model)
        return rule

    def branch(self, index: int, model: RuleModel, side: str, nth: int) -> tuple[str | int, ...]:
        """The path of one of the names of a side."""
        several = isinstance(getattr(model, side), list)
        return ("rules", index, side, *([nth] if several else []))

    def rule_ops(self, index: int, model: RuleModel) -> list[tuple[Op, Place]] | None:
        """The ops of a rule and their places, those of branches first and last; None if wrong."""
        axes = {name: size for name, size in self.sizes.items() if size}  # 0 is for names only
        sizes = {**axes, **model.sizes}
        own = ("rules", index, "ops")
        found = [
            *self.branch_ops(index, model, "source", sizes),
            *(self.op(entry, sizes, (*own, nth)) for nth, entry in enumerate(model.ops)),
            *self.branch_ops(index, model, "target", sizes),
        ]
        ops = [each for each in found if each is not None]
        return ops if len(ops) == len(found) else None

    def branch_ops(
        self, index: int, model: RuleModel, side: str, sizes: Mapping[str, int]
    ) -> Iterator[tuple[Op, Place] | None]:
        """The ops of each of several sources, before they are joined, or targets, after a cut."""
        several = branches(getattr(model, side))
        for nth, branch in enumerate(several):
            for k, entry in enumerate(branch.ops):
                path = (*self.branch(index, model, side, nth), "ops", k)
                found = self.op(entry, sizes, path)
                if found and not isinstance(found[0], UnaryOp):
                    self.problem("MAP106", f"{found[0].name} is no op for one tensor", found[1])
                elif found and len(several) > 1:
                    found = On(branch=nth, op=found[0]), found[1]
                yield found

    def check_lossy(self, rule: Rule, model: RuleModel) -> None:
        """What loses values must be asked for."""
        for op, place in zip(rule.ops, rule.op_places, strict=True):
            if op.exactness == "lossy" and not model.lossy:
                name = op.op.name if isinstance(op, On) else op.name
                self.problem(
                    "MAP108",
                    f"{name} loses values, so there is no way back",
                    place,
                    hint="if that is meant, write `lossy: true` in the rule",
                )

    def check_shape(self, rule: Rule, index: int) -> None:
        """Holes and numbers of tensors on the two sides must go together."""
        place = self.place("rules", index, "target")
        joins = any(op.joins for op in rule.ops)
        cuts = any(op.cuts for op in rule.ops)
        if rule.gathered and not joins:
            self.problem(
                "MAP104",
                f"hole '{rule.gathered[0]}' of the source is not in the target, so names would "
                "collide",
                place,
                hint="gather the sources: `stack` or `concat`",
            )
        elif rule.scattered and not cuts:
            self.problem(
                "MAP104",
                f"hole '{rule.scattered[0]}' of the target is in no source, so nothing gives its "
                "value",
                place,
                hint="scatter the source: `unstack` or `split`",
            )
        else:
            self.check_counted(rule, place)
        if len(rule.sources) > 1 and not joins:
            self.problem("MAP106", "several sources are joined by `concat` or `stack`", place)
        if len(rule.targets) > 1 and not cuts:
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
        if rule.gathered and len(rule.sources) > 1 and any(isinstance(op, On) for op in rule.ops):
            self.problem("MAP106", "ops of one source do not go with a hole that gathers", place)
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
        self, entry: Mapping[str, Any], sizes: Mapping[str, int], path: tuple[str | int, ...]
    ) -> tuple[Op, Place] | None:
        """Compile one op, and say where it stands; None after noting what is wrong."""
        ((word, value),) = entry.items()
        path = (*path, word)
        place = self.place(*path, key=True)
        try:
            if word in OPS:
                return OPS[word].read(value).bind(sizes), place
            known = op_names()
            self.problem(
                "MAP102",
                f"unknown op '{word}'",
                place,
                expected=", ".join(known),
                hint=_nearest(word, known),
                fix=self.fix(path, known),
            )
        except MappingError as error:  # of a package that brings ops
            for finding in error.diagnostics:
                self.problem(finding.code, finding.message, place)
        except Refused as error:
            for detail in error.details:
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
            known = [field.key for field in OPS[word].fields.values()]
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
            try:
                data = data[part]
            except (KeyError, IndexError, TypeError):
                return None
        return data

    def drops(self, index: int, model: DropModel) -> tuple[list[Drop], list[Drop]]:
        """Compile a drop: what it says of the source's names, and of the target's."""
        place = self.place("drop", index)
        if model.group:
            because, patterns = GROUPS[model.group]
            reason = model.because or because
            found = [
                Drop(names.parse_selector(text), reason, place, group=True) for text in patterns
            ]
            return found, found
        side = "source" if model.source is not None else "target"
        text = model.source if model.source is not None else model.target
        try:
            drop = Drop(names.parse_selector(text or "", self.named), model.because, place)
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
        elif each and each.holes - templates[0].holes:
            hole = min(each.holes - templates[0].holes)
            text = f"hole '{hole}' is not in the target, so names would collide"
            self.problem("MAP104", text, where(1, 0))
        shape: tuple[int, ...] | None = None if each is not None else ()
        if model.shape is not None:
            known = [self.sizes.get(n, n) if isinstance(n, str) else n for n in model.shape]
            if any(not isinstance(n, int) or n < 0 for n in known):
                self.problem("MAP107", "a size is not known", self.place("make", index, "shape"))
                return None
            shape = tuple(int(n) for n in known)
        place = self.place("make", index)
        return Make(
            templates[0],
            model.dtype,
            shape,
            model.fill,
            model.because,
            each,
            place,
            model.optional,
        )


def _compile(path: Path, sizes: names.Sizes, chain: Chain) -> tuple[Rules, tuple[Diagnostic, ...]]:
    """The rules of an included file, and its problems."""
    try:
        document = read(_text(path), path)
    except MappingError as error:
        return Rules(()), error.diagnostics
    compiler = _Compiler(path, document, chain)
    return compiler.compile(sizes), tuple(compiler.problems)


def _without_forms(path: Sequence[str | int]) -> tuple[str | int, ...]:
    """A path of pydantic's without the names of the forms that a value may have."""
    forms = ("str", "BranchModel", "constrained-int")
    return tuple(
        part
        for part in path
        if part not in forms and not (isinstance(part, str) and part.startswith("list["))
    )


def _nearest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), 1)
    return f"did you mean '{near[0]}'?" if near else ""


def _fields_at(path: tuple[str | int, ...]) -> list[str]:
    """The keys that may stand at a path of the document."""
    models: dict[str, Any] = {
        "rules": RuleModel,
        "drop": DropModel,
        "make": MakeModel,
        "probes": ProbeModel,
        "tests": ExampleModel,
        "include": IncludeModel,
    }
    top = path[0] if path else ""
    if top in ("source", "target"):
        return ["model", "contract"]
    if len(path) > 2 and top == "rules":  # noqa: PLR2004 - within a source or target
        return ["name", "ops"]
    return [known.key for known in models.get(str(top), MappingModel).fields.values()]
