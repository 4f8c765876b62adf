"""Pairs of names → rules: numbers that vary become holes, offsets or tables, words choices."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from converter.inference.match import Match
from converter.language import names as templates
from converter.symmetry import Op

_NUMBER = re.compile(r"(?<![0-9])(0|[1-9][0-9]{0,8})(?![0-9])")
MOST_CHOICES = 24
MOST_FOLDED = 3  # rules in place of a table of texts
SPLITS = 2  # numbers by which names that follow no rule are told apart
ROUNDS = 2
EXCEPT = 2  # names that a rule may leave out, rather than that its numbers are listed

Table = dict[tuple[int, ...], int | str]
Names = tuple[Iterable[str], Iterable[str]]  # all of the sources, all of the targets


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
    matches: Sequence[Match], all_names: Names, tables: Tables, clashing: Collection[str] = ()
) -> list[Draft]:
    """As few rules as stand for all matches and for nothing else; what clashes is listed."""
    groups: dict[tuple[object, ...], dict[object, list[Match]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for match in matches:
        ours, theirs = (
            tuple(skeleton(name)[0] for name in side) for side in (match.sources, match.targets)
        )
        groups[match.key, ours][theirs].append(match)
    drafts: list[Draft] = []
    for family in groups.values():
        trial = Tables(dict(tables.entries))
        folded = [draft for group in family.values() for draft in _folds(group, trial)]
        tabled = _tabled([m for group in family.values() for m in group], tables)
        if tabled and len(folded) > MOST_FOLDED:
            folded = [tabled]
        else:
            tables.entries = trial.entries
        drafts += folded
    done: list[Draft] = []
    for _ in range(ROUNDS):  # what one rule would take too much for is put together anew
        tried = [(d, _fitted(d, all_names, tables, clashing)) for d in _with_choices(drafts)]
        done += [fitted for _, fitted in tried if fitted]
        drafts = literal([m for draft, fitted in tried if not fitted for m in draft.matches])
    return done + drafts


def literal(matches: Iterable[Match]) -> list[Draft]:
    """A rule for each match."""
    return [_literal(match) for match in matches]


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


def _folds(group: Sequence[Match], tables: Tables, depth: int = SPLITS) -> list[Draft]:
    """Few rules for matches whose names differ in numbers: apart where one number is another."""
    draft = _fold(group, tables)
    if draft or not depth:
        return [draft] if draft else [_literal(match) for match in group]
    rows = [_numbers(match) for match in group]
    best, best_tables = [_literal(match) for match in group], tables.entries
    for column in zip(*rows, strict=True):
        parts: dict[int, list[Match]] = defaultdict(list)
        for value, match in zip(column, group, strict=True):
            parts[value].append(match)
        if 1 < len(parts) < len(best):
            trial = Tables(dict(tables.entries))
            drafts = [d for part in parts.values() for d in _folds(part, trial, depth - 1)]
            if len(drafts) < len(best):
                best, best_tables = drafts, trial.entries
    tables.entries = best_tables
    return best


def _tabled(matches: Sequence[Match], tables: Tables) -> Draft | None:
    """One rule whose number is looked up in a table of texts; None when there are more numbers."""
    first = matches[0]
    found = _folded([match.sources for match in matches], 1, Tables())
    holes = set(re.findall(r"(?<!\{)\{([^{}]*)\}", found[0] if found else ""))
    if found is None or len(holes) != 1 or len(first.sources) > 1 or len(first.targets) > 1:
        return None
    (hole,) = holes
    template = templates.parse(found, {})[0]
    numbers = [(template.match(match.sources[0]) or {}).get(hole) for match in matches]
    targets = [_escaped(match.targets[0]) for match in matches]
    before, after = _common(targets)
    before = before[: 1 + max(map(before.rfind, "/."))]  # whole segments read best
    after = after[min((k for k in map(after.find, "/.:") if k >= 0), default=len(after)) :]
    words = [text[len(before) : len(text) - len(after)] for text in targets]
    table: Table = {
        (n,): word for n, word in zip(numbers, words, strict=True) if isinstance(n, int)
    }
    if len(set(table.values())) < len(matches) or any(set("{}") & set(word) for word in words):
        return None
    name = tables.name("layer", table)
    target = f"{before}{{{name}[{hole}]}}{after}"
    draft = Draft(found, (target,), first.ops, first.note, tuple(matches))
    return draft if _sound(draft, tables) else None


def _numbers(match: Match) -> tuple[int, ...]:
    """The numbers in all names of a match."""
    return tuple(n for name in (*match.sources, *match.targets) for n in skeleton(name)[1])


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
    """Rules that differ in one word on a side, made one."""
    while True:
        groups: dict[tuple[str, str, int, Gap], list[Draft]] = defaultdict(list)
        for draft in drafts:
            if len(draft.sources) == len(draft.targets) == 1:
                for side, text in enumerate((draft.sources[0], draft.targets[0])):
                    for gap in _gaps(text):
                        groups[repr(draft.ops), draft.note, side, gap].append(draft)
        large = sorted(
            ((key, group) for key, group in groups.items() if len(group) > 1),
            key=lambda pair: (-len(pair[1]), -len("".join(pair[0][3]))),
        )
        joined = ((group, _choice(group[:MOST_CHOICES], *key[2:])) for key, group in large)
        group, choice = next((pair for pair in joined if pair[1]), ([], None))
        if choice is None:
            return drafts
        gone = set(map(id, group[:MOST_CHOICES]))
        drafts = [draft for draft in drafts if id(draft) not in gone] + [choice]


Gap = tuple[str, str]  # the text before and after a word that is left out


def _gaps(template: str) -> list[Gap]:
    """A template with each of its words left out, in turn, and each segment; no holes."""
    texts = re.sub(r"\{[^{}]*\}", lambda hole: "{" * len(hole[0]), template)  # of the same length
    words = r"(?<![^/.])[^/.{}|]+(?![^/.])", r"(?<![A-Za-z])[A-Za-z]+(?![A-Za-z])"
    spans = {word.span() for pattern in words for word in re.finditer(pattern, texts)}
    return [(template[:start], template[stop:]) for start, stop in sorted(spans)]


def _choice(drafts: Sequence[Draft], side: int, gap: Gap) -> Draft | None:
    """One rule with a choice for rules that differ within a gap on a side."""
    texts = [[d.sources[0] for d in drafts], [d.targets[0] for d in drafts]]
    gaps = [gap, gap]
    gaps[1 - side] = _common(texts[1 - side])
    ours, theirs = (
        [text[len(before) : len(text) - len(after)] for text in side_texts]
        for side_texts, (before, after) in zip(texts, gaps, strict=True)
    )
    if len(set(ours)) < len(ours) or len(set(theirs)) < len(theirs):
        return None
    if any(not word or set("{}|") & set(word) for word in (*ours, *theirs)):
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


def _common(texts: Sequence[str]) -> Gap:
    """What texts begin and end with, all of them, in whole words and holes."""
    parts = [re.findall(r"\{[^{}]*\}|[A-Za-z]+|[0-9]+|.", text) for text in texts]
    least = min(map(len, parts))
    start = next((k for k in range(least) if len({row[k] for row in parts}) > 1), least)
    least -= start
    stop = next((k for k in range(least) if len({row[-1 - k] for row in parts}) > 1), least)
    if stop == least:  # one of them has nothing else
        start, stop = (start - 1, stop) if start else (start, stop - 1)
    first = parts[0]
    return "".join(first[:start]), "".join(first[len(first) - stop :] if stop else [])


def _parses(draft: Draft) -> bool:
    """Can the templates be read?  Tables are not known here; each stands for any number."""
    texts = (*draft.sources, *draft.targets)
    try:
        templates.parse([re.sub(r"\{\w+\[(\w+)[^{}]*\}", r"{\1}", text) for text in texts], {})
    except templates.TemplateError:
        return False
    return True


# ── no more than it stands for ───────────────────────────────────────────────────────────────────


def _strays(draft: Draft, names: Names, tables: Tables) -> list[str] | None:
    """Sources a rule takes besides its own, or makes others' targets of; None: it is no rule."""
    found = compiled(draft, tables)
    if found is None:
        return None
    count = len(draft.sources)
    mine = {name for match in draft.matches for name in match.sources}
    made = {name for match in draft.matches for name in match.targets}
    strays = {n: None for n in names[0] if n not in mine and any(t(n) for t in found[:count])}
    for name in names[1]:
        for template in found[count:] if name not in made else ():
            bindings = template.match(name)
            if bindings is None:
                continue
            try:
                strays |= {t.format(bindings): None for t in found[:count]}
            except (templates.TemplateError, KeyError):
                continue
    return list(strays)


def _fitted(draft: Draft, names: Names, tables: Tables, clashing: Collection[str]) -> Draft | None:
    """The rule with what it would take too much left out, or with its numbers listed."""
    clashes = not {*draft.sources, *draft.targets}.isdisjoint(clashing)
    strays = _strays(draft, names, tables) if len(draft.matches) > 1 else []
    if not clashes and strays is not None and len(strays) <= EXCEPT:
        return replace(draft, exclude=tuple(map(_escaped, strays)))
    listed = _listed(draft, tables)
    return listed if listed and _strays(listed, names, tables) == [] else None


def _listed(draft: Draft, tables: Tables) -> Draft | None:
    """The rule with its numbers as choices, which fit no others; None where tables need two."""
    found = compiled(draft, tables)
    if found is None or len(draft.sources) > 1 or len(draft.targets) > 1:
        return None
    rows = [found[0].match(match.sources[0]) or {} for match in draft.matches]
    source, target = draft.sources[0], draft.targets[0]
    for hole in dict.fromkeys(re.findall(r"\{([a-z]\w*)\}", source)):
        values = sorted({n for row in rows if isinstance(n := row.get(hole), int)})
        uses = set(re.findall(rf"\{{(?:{hole}(?:[+-]\d+)?|\w+\[{hole}\])\}}", target))
        if not values or len(uses) != 1 or f"{{{hole}:" in source:
            continue
        (use,) = uses
        made = [_number(use, hole, value, tables) for value in values]
        words = "|".join(map(str, values))
        source = source.replace(
            f"{{{hole}}}", f"{{{hole}:{words}}}"
        )  # each, so that none is in doubt
        if made != values:
            target = target.replace(use, f"{{{hole}:{'|'.join(map(str, made))}}}")
    return replace(draft, sources=(source,), targets=(target,))


def _number(use: str, hole: str, value: int, tables: Tables) -> int | str:
    """What a hole of a target is for a value: the number itself, an offset, or a table's."""
    name, table, _ = use[1:-1].partition("[")
    return tables.entries[name][value,] if table else value + int(name.removeprefix(hole) or 0)
