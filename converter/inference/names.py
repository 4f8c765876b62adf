"""Pairs of names → rules: numbers that vary become holes, offsets or tables, words choices."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from converter.inference.match import Match
from converter.language import names as templates
from converter.symmetry import Op

_NUMBER = re.compile(r"(?<![0-9])(0|[1-9][0-9]{0,8})(?![0-9])")
MOST_CHOICES = 12

Table = dict[tuple[int, ...], int]


@dataclass(frozen=True)
class Draft:
    """A rule on its way to a file: templates, ops, and the pairs that it stands for."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    ops: tuple[Op, ...]
    note: str
    matches: tuple[Match, ...]
    exclude: tuple[str, ...] = ()


@dataclass
class Tables:
    """The tables of a mapping, by name; tables that agree are shared."""

    entries: dict[str, Table] = field(default_factory=dict)

    def name(self, hint: str, table: Table) -> str:
        """The name of a table with these entries, new or grown."""
        base = re.sub(r"[^A-Za-z_]", "", hint) or "table"
        for name in itertools.chain([base], (f"{base}_{k}" for k in itertools.count(2))):
            known = self.entries.get(name, {})
            union = known | table
            width = {len(key) for key in union}
            agrees = all(known.get(key, value) == value for key, value in table.items())
            if agrees and len(width) == 1 and len(set(union.values())) == len(union):
                self.entries[name] = union
                return name
        raise AssertionError  # pragma: no cover - names never end


def skeleton(name: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """A name's texts between its numbers, and the numbers."""
    parts = _NUMBER.split(name.replace("{", "{{").replace("}", "}}"))
    return tuple(parts[::2]), tuple(map(int, parts[1::2]))


def generalise(
    matches: Sequence[Match], all_sources: Sequence[str], tables: Tables, *, fold: bool = True
) -> list[Draft]:
    """As few rules as stand for all matches and for nothing else; unless `fold`, one for each."""
    if not fold:
        return [_literal(match) for match in matches]
    groups: dict[tuple[object, ...], list[Match]] = defaultdict(list)
    for match in matches:
        texts = tuple(skeleton(name)[0] for name in (*match.sources, *match.targets))
        groups[match.key, texts].append(match)
    drafts: list[Draft] = []
    for group in groups.values():
        draft = _fold(group, tables)
        drafts += [draft] if draft else [_literal(match) for match in group]
    drafts = _apart(_with_choices(drafts), tables)
    return [done for draft in drafts for done in _fitted(draft, drafts, all_sources, tables)]


def _literal(match: Match) -> Draft:
    sources, targets = (tuple(map(_escaped, side)) for side in (match.sources, match.targets))
    return Draft(sources, targets, match.ops, match.note, (match,))


def _escaped(name: str) -> str:
    return name.replace("{", "{{").replace("}", "}}")


def _fold(group: Sequence[Match], tables: Tables) -> Draft | None:
    """One rule for matches whose names differ in numbers only; None when they follow no rule."""
    first = group[0]
    if len(group) == 1:
        return _literal(first)
    for back in (False, True):  # a table is looked up by the holes of the side with more of them
        trial = Tables(dict(tables.entries))
        sides = [(*m.targets, *m.sources) if back else (*m.sources, *m.targets) for m in group]
        count = len(first.targets if back else first.sources)
        texts = _folded(sides, count, trial)
        if texts is None:
            continue
        ours, theirs = texts[:count], texts[count:]
        sources, targets = (theirs, ours) if back else (ours, theirs)
        draft = Draft(sources, targets, first.ops, first.note, tuple(group))
        if _sound(draft, trial):
            tables.entries = trial.entries
            return draft
    return None


def _folded(sides: Sequence[tuple[str, ...]], count: int, tables: Tables) -> tuple[str, ...] | None:
    """The templates of names that differ in numbers; the first `count` introduce the holes."""
    rows = [[skeleton(name) for name in side] for side in sides]
    columns = [list(zip(*(row[k][1] for row in rows), strict=True)) for k in range(len(rows[0]))]
    holes: dict[str, tuple[int, ...]] = {}
    done: list[str] = []
    for nth, ((parts, _), numbers) in enumerate(zip(rows[0], columns, strict=True)):
        text = parts[0]
        for values, before, after in zip(numbers, parts, parts[1:], strict=False):
            known = None if len(set(values)) == 1 else _known(values, holes)
            if len(set(values)) == 1:
                text += f"{values[0]}{after}"
                continue
            if known is None and nth < count:
                known = _new_hole(before, holes)
                holes[known] = values
            known = known or _looked_up(values, before, holes, tables)
            if known is None:
                return None
            text += f"{{{known}}}{after}"
        done.append(text)
    return tuple(done)


def _known(values: tuple[int, ...], holes: Mapping[str, tuple[int, ...]]) -> str | None:
    """A hole with these values, or with an offset from them."""
    for hole, others in holes.items():
        gaps = {value - other for value, other in zip(values, others, strict=True)}
        if len(gaps) == 1:
            gap = gaps.pop()
            return f"{hole}{gap:+d}" if gap else hole
    return None


def _new_hole(before: str, holes: Mapping[str, object]) -> str:
    """A name for a hole: the first letter of the word before it, if that is free."""
    word = re.sub(r"[^a-z]", "", re.split("[/.]", before.lower())[-1] or before.lower())
    letters = [*word[:1], *"ijklmnabcdefg"]
    return next((str(letter) for letter in letters if letter not in holes), f"x{len(holes)}")


def _looked_up(
    values: tuple[int, ...], before: str, holes: Mapping[str, tuple[int, ...]], tables: Tables
) -> str | None:
    """A table from some of the holes to these values, one to one."""
    for width in (1, 2, 3):
        for keys in itertools.combinations(holes, width):
            table: Table = {}
            rows = list(zip(*(holes[key] for key in keys), strict=True))
            if all(table.setdefault(r, v) == v for r, v in zip(rows, values, strict=True)) and len(
                set(table.values())
            ) == len(table):
                words = re.findall("[A-Za-z]+", before)
                name = tables.name(words[-1].lower() if words else "table", table)
                return f"{name}[{','.join(keys)}]"
    return None


def compiled(draft: Draft, tables: Tables) -> list[templates.Template] | None:
    """The draft's templates; None when the language refuses them."""
    known = {
        name: templates.Table(
            name, {tuple(map(str, key)): str(value) for key, value in entries.items()}
        )
        for name, entries in tables.entries.items()
    }
    try:
        return templates.parse((*draft.sources, *draft.targets), known)
    except templates.TemplateError:
        return None


def _sound(draft: Draft, tables: Tables) -> bool:
    """Is every hole on both sides, and does the rule give the names that it stands for?"""
    found = compiled(draft, tables)
    if found is None:
        return False
    count = len(draft.sources)
    ours, theirs = (
        frozenset[str]().union(*(t.holes for t in side)) for side in (found[:count], found[count:])
    )
    if ours != theirs:
        return False
    for match in draft.matches:
        bindings: templates.Bindings = {}
        for template, name in zip(found[:count], match.sources, strict=True):
            bindings |= template.match(name) or {}
        if any(
            not template.holes <= bindings.keys() or template.format(bindings) != name
            for template, name in zip(found[count:], match.targets, strict=True)
        ):
            return False
    return True


# ── words ────────────────────────────────────────────────────────────────────────────────────────


def _with_choices(drafts: list[Draft]) -> list[Draft]:
    """Rules that differ in one word on each side, made one."""
    while True:
        groups: dict[tuple[str, str, tuple[Gap, Gap]], list[Draft]] = defaultdict(list)
        for draft in drafts:
            if len(draft.sources) == len(draft.targets) == 1:
                for key in itertools.product(_gaps(draft.sources[0]), _gaps(draft.targets[0])):
                    groups[repr(draft.ops), draft.note, key].append(draft)
        large = sorted((g for g in groups.items() if len(g[1]) > 1), key=lambda g: -len(g[1]))
        joined = ((group, _choice(group[:MOST_CHOICES], key[2])) for key, group in large)
        group, choice = next((pair for pair in joined if pair[1]), ([], None))
        if choice is None:
            return drafts
        gone = set(map(id, group[:MOST_CHOICES]))
        drafts = [draft for draft in drafts if id(draft) not in gone] + [choice]


Gap = tuple[str, str]  # the text before and after a word that is left out


def _gaps(template: str) -> list[Gap]:
    """A template with each of its segments left out, in turn; those with a hole stay."""
    return [
        (template[: word.start()], template[word.end() :])
        for word in re.finditer(r"(?<![^/.])[^/.{}|]+(?![^/.])", template)
    ]


def _choice(drafts: Sequence[Draft], gaps: tuple[Gap, Gap]) -> Draft | None:
    """One rule with a choice for rules that differ within gaps."""
    words = []
    for side, (before, after) in zip(("sources", "targets"), gaps, strict=True):
        texts = [getattr(d, side)[0] for d in drafts]
        words.append([t[len(before) : len(t) - len(after)] for t in texts])
    ours, theirs = words
    if len(set(ours)) < len(ours) or len(set(theirs)) < len(theirs):
        return None
    fixed = "".join(text for gap in gaps for text in gap)
    hole = next(hole for hole in ("part", "kind", "name", "word") if f"{{{hole}" not in fixed)
    source = f"{gaps[0][0]}{{{hole}:{'|'.join(ours)}}}{gaps[0][1]}"
    before, after = theirs[0].split(ours[0], 1) if ours[0] in theirs[0] else ("", "")
    if all(word == f"{before}{own}{after}" for own, word in zip(ours, theirs, strict=True)):
        target = f"{gaps[1][0]}{before}{{{hole}}}{after}{gaps[1][1]}"
    else:
        target = f"{gaps[1][0]}{{{hole}:{'|'.join(theirs)}}}{gaps[1][1]}"
    first = drafts[0]
    matches = tuple(match for draft in drafts for match in draft.matches)
    draft = Draft((source,), (target,), first.ops, first.note, matches)
    return draft if _parses(draft) else None


def _parses(draft: Draft) -> bool:
    """Can the templates be read?  Tables are not known here; each stands for any number."""
    texts = (*draft.sources, *draft.targets)
    try:
        templates.parse([re.sub(r"\{\w+\[(\w+)[^{}]*\}", r"{\1}", text) for text in texts], {})
    except templates.TemplateError:
        return False
    return True


def _mine(draft: Draft) -> set[str]:
    return {name for match in draft.matches for name in match.sources}


def _takes(draft: Draft, names: Iterable[str], tables: Tables) -> list[str]:
    """Which of these names the draft's templates fit."""
    found = (compiled(draft, tables) or [])[: len(draft.sources)]
    return [name for name in names if any(template(name) for template in found)]


def _apart(drafts: Sequence[Draft], tables: Tables) -> list[Draft]:
    """Rules of which no two fit each other's names: the one with fewer is written out."""
    kept: list[Draft] = []
    for draft in sorted(drafts, key=lambda draft: -len(draft.matches)):
        crossed = len(draft.matches) > 1 and any(
            _takes(draft, _mine(other), tables) and _takes(other, _mine(draft), tables)
            for other in kept
        )
        kept += [_literal(match) for match in draft.matches] if crossed else [draft]
    return kept


def _fitted(
    draft: Draft, drafts: Sequence[Draft], names: Sequence[str], tables: Tables
) -> list[Draft]:
    """The rule with what it would take too much left out; single rules where that is shorter."""
    mine = _mine(draft)
    others = dict.fromkeys(_takes(draft, (name for name in names if name not in mine), tables))
    exclude: list[str] = []
    for other in drafts:
        taken = others.keys() & _mine(other)
        if taken and len(other.sources) == 1 and "[" not in other.sources[0]:
            exclude.append(other.sources[0])
            others = {name: None for name in others if name not in taken}
    exclude += others
    if len(exclude) > max(2, len(draft.matches)):
        return [_literal(match) for match in draft.matches]
    return [replace(draft, exclude=tuple(exclude))]
