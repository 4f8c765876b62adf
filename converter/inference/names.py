"""Pairs of names → rules: numbers that vary become holes, offsets or tables, words choices."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations

from converter.inference.choices import joined
from converter.inference.drafts import (
    Draft,
    Tables,
    compiled,
    escaped,
    length,
    literal,
    once,
    sound,
)
from converter.inference.match import Match
from converter.inference.numbers import folded
from converter.language import names as templates

ROUNDS = 2
EXCEPT = 2  # names that a rule may leave out, rather than that its numbers are listed

Names = tuple[Iterable[str], Iterable[str]]  # all of the sources, all of the targets


def generalise(
    matches: Sequence[Match],
    all_names: Names,
    tables: Tables,
    clashing: frozenset[str] = frozenset(),
    excepted: int = EXCEPT,
) -> list[Draft]:
    """As few rules as stand for all matches and for nothing else; what clashes is listed.

    Matches with the same ops are put together by their numbers first, or by their words only:
    whichever is shorter.
    """
    ways = [
        _by_key(_settled(drafts, all_names, tables, clashing, excepted))
        for drafts in (folded(matches, tables), literal(matches))
    ]
    return [
        draft
        for key in ways[0]
        for draft in min((way[key] for way in ways), key=lambda drafts: length(drafts, tables))
    ]


def _by_key(drafts: Iterable[Draft]) -> dict[str, list[Draft]]:
    found: dict[str, list[Draft]] = defaultdict(list)
    for draft in drafts:
        found[draft.matches[0].key].append(draft)
    return found


def _settled(
    drafts: list[Draft], all_names: Names, tables: Tables, clashing: frozenset[str], excepted: int
) -> list[Draft]:
    """Rules joined where they differ in words, none of which takes what is another's."""
    done: list[Draft] = []
    for _ in range(ROUNDS):  # what one rule would take too much for is put together anew
        tried = [(d, _fitted(d, all_names, tables, clashing, excepted)) for d in joined(drafts)]
        done += [fitted for _, fitted in tried if fitted]
        drafts = literal([m for draft, fitted in tried if not fitted for m in draft.matches])
    return done + drafts


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


def _fitted(
    draft: Draft, names: Names, tables: Tables, clashing: frozenset[str], excepted: int
) -> Draft | None:
    """The rule with what it would take too much left out, or with its numbers listed."""
    strays = _strays(draft, names, tables) if len(draft.matches) > 1 else []
    if strays is None:
        return None
    if clashing.isdisjoint(draft.texts) and len(strays) <= excepted:
        fitted = replace(draft, exclude=tuple(map(escaped, strays)))
        return fitted if strays else _opened(draft, names, tables, clashing)
    tried = (_listed(draft, holes, tables) for holes in _subsets(draft, tables))
    return next((d for d in tried if _fits(d, names, tables, clashing)), None)


def _fits(draft: Draft, names: Names, tables: Tables, clashing: frozenset[str]) -> bool:
    """Does a rule that was changed still stand for its own names, and for no others?"""
    right = clashing.isdisjoint(draft.texts) and sound(draft, tables)
    return right and _strays(draft, names, tables) == []


# ── numbers as choices, and back ─────────────────────────────────────────────────────────────────


def _subsets(draft: Draft, tables: Tables) -> list[dict[str, list[int]]]:
    """Some of the holes with the numbers that they stand for, few first.

    None of them is a key beside others: choices cannot be looked up.
    """
    numbers: dict[str, set[int]] = defaultdict(set)
    found = compiled(draft, tables) or []
    for match in draft.matches:
        for template, name in zip(found, (*match.sources, *match.targets), strict=True):
            for hole, value in (template.match(name) or {}).items():
                if template.kinds[hole] == "int":
                    numbers[hole].add(int(value))
    keys = (keys for text in draft.texts for keys in re.findall(r"\[(\w+(?:,\w+)+)\]", text))
    free = sorted(numbers.keys() - {hole for hole in keys for hole in hole.split(",")})
    some = (some for count in range(1, len(free) + 1) for some in combinations(free, count))
    return [{hole: sorted(numbers[hole]) for hole in holes} for holes in some]


def _listed(draft: Draft, holes: Mapping[str, Sequence[int]], tables: Tables) -> Draft:
    """The rule with the numbers of holes as choices."""
    texts: Sequence[str] = draft.texts
    for hole, numbers in holes.items():
        use = re.compile(rf"\{{(?:{hole}([+-]\d+)?|(\w+)\[{hole}\])\}}")
        texts = [use.sub(partial(_choices, hole, numbers, tables), text) for text in texts]
    texts, count = once(texts), len(draft.sources)
    return replace(draft, sources=tuple(texts[:count]), targets=tuple(texts[count:]))


def _choices(hole: str, numbers: Sequence[int], tables: Tables, use: re.Match[str]) -> str:
    """What a hole is for each number: itself, with an offset, or a table's text."""
    offset, name = use.groups()
    texts = (tables.entries[name][n,] if name else n + int(offset or 0) for n in numbers)
    return f"{{{hole}:{'|'.join(map(str, texts))}}}"


def _opened(draft: Draft, names: Names, tables: Tables, clashing: frozenset[str]) -> Draft:
    """The rule with choices that are numbers as holes for any number, where that fits no others."""
    if len(draft.sources) > 1 or len(draft.targets) > 1:
        return draft
    for hole, numbers in re.findall(r"\{(\w+):([0-9]+(?:\|[0-9]+)+)\}", draft.sources[0]):
        source, target = draft.sources[0], draft.targets[0]
        other = re.search(rf"\{{{hole}(?::([0-9|]+))?\}}", target)
        holes = _open_holes(hole, numbers, other[1] or numbers) if other else None
        if other is None or holes is None:
            continue
        source = source.replace(f"{{{hole}:{numbers}}}", holes[0])
        target = target.replace(other[0], holes[1])
        wider = replace(draft, sources=(source,), targets=(target,))
        if _fits(wider, names, tables, clashing):
            draft = wider
    return draft


def _open_holes(hole: str, ours: str, theirs: str) -> tuple[str, str] | None:
    """Holes for any number that stand for all of these choices, on both sides; None: none does."""
    rows = [text.split("|") for text in (ours, theirs)]
    widths = [min(map(len, row)) if any(n != str(int(n)) for n in row) else 0 for row in rows]
    gaps = {int(b) - int(a) for a, b in zip(*rows, strict=True)}
    if gaps == {0}:
        holes = (f"{{{hole}:0{width}}}" if width else f"{{{hole}}}" for width in widths)
        return next(holes), next(holes)
    if len(gaps) > 1 or any(widths):
        return None
    return f"{{{hole}}}", f"{{{hole}{gaps.pop():+d}}}"
