"""Rules that differ in some words → one rule, in which a hole has these words as its choices.

Parts of names that stand in the same places are alternatives: where `5b` and `5c` are followed by
the same branches, they become choices of one hole in every rule that has them.  What is left is
joined where rules differ in one place.  Of all joins, those that make the text shortest come first.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from converter.inference.drafts import RULE, Draft, once
from converter.language import names as templates

MOST_CHOICES = 24

# While rules are joined, a hole holds pairs of words, so that rules that mean the same are equal.
_PAIR = "\0"  # between the source's word and the target's
_AGAIN = "\1"  # in place of a segment that is the one before

_TWICE = re.compile(r"(?<![^/.])([^/.]+)([/.])\1(?![^/.])")
_AGAINS = re.compile(rf"((?:\{{[^{{}}]*\}}|[^/.{{}}])+)([/.]){_AGAIN}")
_ATOM = re.compile(  # a hole, the letters of `branch1`, a word, a separator
    r"\{[^{}]*\}|[A-Za-z]+(?=[0-9]+(?![A-Za-z0-9]))|[A-Za-z0-9]+|."
)


class _Stage(NamedTuple):
    """Which joins are looked for."""

    across: bool  # parts may span several segments
    places: int  # in which the same parts stand, at least


# What stands in several places shows how a network is built; the rest is no more than a list.
_STAGES = (_Stage(False, 2), _Stage(False, 1), _Stage(True, 2), _Stage(True, 1))


class _Gap(NamedTuple):
    """A text with a part left out."""

    before: str
    part: str
    after: str


_Part = tuple[str, str]  # of the source, and of the target
_Parts = frozenset[_Part]
_Place = tuple[str, str, str, str, str]  # ops, then the texts around the parts of both sides
_Places = dict[_Place, dict[_Part, int]]  # which rule has a part at a place


@dataclass(frozen=True)
class _Form:
    """A rule with one source and one target."""

    key: str
    source: str
    target: str
    drafts: tuple[Draft, ...]


def joined(drafts: Iterable[Draft]) -> list[Draft]:
    """As few rules as say the same by choices."""
    forms: list[_Form] = []
    rest: list[Draft] = []
    for draft in drafts:
        single = len(draft.sources) == len(draft.targets) == 1
        if single and not any("{{" in text or "}}" in text for text in draft.texts):
            source, target = (_TWICE.sub(rf"\1\2{_AGAIN}", text) for text in draft.texts)
            forms.append(_Form(draft.matches[0].key, source, target, (draft,)))
        else:
            rest.append(draft)
    for stage in _STAGES:
        count = 0
        while len(forms) != count:
            count = len(forms)
            forms = _step(forms, stage)
    return rest + [_draft(form) for form in forms]


def _step(forms: Sequence[_Form], stage: _Stage) -> list[_Form]:
    """The rules after the joins that save most, each rule in one join at most."""
    places = _places(forms, stage)
    gone: set[int] = set()
    made: list[_Form] = []
    for parts, found in _candidates(forms, places, stage):
        rows = [(place, [places[place][part] for part in parts]) for place in sorted(found)]
        free = [(place, ids) for place, ids in rows if gone.isdisjoint(ids)]
        if len(free) < stage.places:
            continue
        for (key, *around), ids in free:
            source, target = (f"{a}{_hole(parts)}{b}" for a, b in (around[:2], around[2:]))
            drafts = tuple(draft for i in sorted(ids) for draft in forms[i].drafts)
            form = _Form(key, source, target, drafts)
            if gone.isdisjoint(ids) and _readable(form):
                made.append(form)
                gone |= set(ids)
    return [form for i, form in enumerate(forms) if i not in gone] + made


def _places(forms: Sequence[_Form], stage: _Stage) -> _Places:
    """The places with several parts, and which rule has each."""
    ours: dict[tuple[str, str, str], list[tuple[str, int]]] = defaultdict(list)
    for i, form in enumerate(forms):
        for before, part, after in _gaps(form.source, stage.across):
            ours[form.key, before, after].append((part, i))
    found: _Places = {}
    for around, rows in ours.items():
        if len(rows) == 1:
            continue
        theirs: dict[tuple[str, str], dict[_Part, int]] = defaultdict(dict)
        for part, i in rows:
            for before, other, after in _gaps(forms[i].target, stage.across):
                if part == other or "{" not in (part[0], other[0]):
                    theirs[before, after][part, other] = i
        found |= {(*around, *rest): parts for rest, parts in theirs.items() if len(parts) > 1}
    return found


@lru_cache(1 << 16)
def _gaps(text: str, across: bool) -> tuple[_Gap, ...]:
    """A text without some words that follow each other, or without a hole that has choices.

    Words of one segment, or of several up to the end of one.
    """
    atoms = list(_ATOM.finditer(text))
    found = []
    for i, first in enumerate(atoms):
        if _PAIR in first[0]:
            found.append(_Gap(text[: first.start()], first[0], text[first.end() :]))
        for last in atoms[i:] if first[0].isalnum() else ():
            part, after = text[first.start() : last.end()], text[last.end() :]
            if last[0][0] in f"{{{_AGAIN}" or (last[0] in "/." and not across):
                break
            inside = "/" not in part and "." not in part
            ends = after[:1] in {"", "/", "."} and after[1:2] != _AGAIN
            if last[0].isalnum() and (inside or ends):
                found.append(_Gap(text[: first.start()], part, after))
    return tuple(found)


def _candidates(
    forms: Sequence[_Form], places: _Places, stage: _Stage
) -> list[tuple[list[_Part], set[_Place]]]:
    """Parts that may be choices of one hole, with all places where they stand; best first."""
    holders: dict[_Part, set[_Place]] = defaultdict(set)
    for place, there in places.items():
        for part in there:
            holders[part].add(place)
    scored = []
    for parts in {frozenset(there) for there in places.values() if len(there) <= MOST_CHOICES}:
        found = set[_Place].intersection(*(holders[part] for part in parts))
        if len(found) >= stage.places and _paired(parts):
            length = RULE + len(_hole(parts))
            saved = sum(_cost(parts, place, places, forms) - length for place in found)
            scored.append((-saved, sorted(parts), found))
    best = sorted(scored, key=lambda row: row[:2])
    return [(parts, found) for loss, parts, found in best if loss < 0]


def _cost(parts: Collection[_Part], place: _Place, places: _Places, forms: Sequence[_Form]) -> int:
    """How much longer rules are than the text around the place where they differ."""
    rules = (forms[places[place][part]] for part in parts)
    before = sum(RULE + len(form.source) + len(form.target) for form in rules)
    return before - sum(map(len, place[1:]))


def _pairs(parts: Iterable[_Part]) -> list[_Part]:
    """The pairs of words that parts stand for, in their order."""
    pairs: set[_Part] = set()
    for part, other in parts:
        if _PAIR in part:
            rows = (row.split(_PAIR) for row in part[1:-1].split("|"))
            pairs |= {(ours, theirs) for ours, theirs in rows}
        else:
            pairs.add((part, other))
    return sorted(pairs, key=lambda pair: _natural(pair[0]))


def _natural(text: str) -> list[tuple[int, str]]:
    """A key that sorts 10 after 9."""
    return [(int(t) if t.isdecimal() else 0, t) for t in re.split("([0-9]+)", text)]


def _paired(parts: _Parts) -> bool:
    """Does each word belong to one of the other side, and are there few?"""
    pairs = _pairs(parts)
    sides = zip(*pairs, strict=True)
    return len(pairs) <= MOST_CHOICES and all(len(set(side)) == len(pairs) for side in sides)


def _hole(parts: Iterable[_Part]) -> str:
    return "{" + "|".join(_PAIR.join(pair) for pair in _pairs(parts)) + "}"


# ── written out ──────────────────────────────────────────────────────────────────────────────────


def _draft(form: _Form) -> Draft:
    """The rule with names for its holes."""
    source, target = _texts(form)
    matches = tuple(match for draft in form.drafts for match in draft.matches)
    return replace(form.drafts[0], sources=(source,), targets=(target,), matches=matches)


def _texts(form: _Form) -> list[str]:
    """The templates, with names for their holes."""
    source, target = form.source, form.target
    while _PAIR in source:
        hole = next(hole for hole in re.findall(r"\{[^{}]*\}", source) if _PAIR in hole)
        pairs = _pairs([(hole, hole)])
        before, _, after = source.partition(hole)
        name = _name(before, after, source + target)
        source = f"{before}{{{name}:{'|'.join(ours for ours, _ in pairs)}}}{after}"
        target = target.replace(hole, _counterpart(name, pairs), 1)
    texts = (source, target)
    return once([_AGAINS.sub(r"\1\2\1", t) if _AGAIN in t else t for t in texts])


def _name(before: str, after: str, taken: str) -> str:
    """A name for a hole: the first letter of the word before it in its segment, or what it is."""
    segment = re.sub(r"\{[^{}]*\}", "", re.split("[/.]", before)[-1].lower())
    letters: list[str] = [word[0] for word in re.findall("[a-z][a-z0-9]*", segment)[-1:]]
    used: set[str] = set(re.findall(rf"\{{(\w+)(?![^{{}}]*{_PAIR})", taken))
    names = (*letters, "layer" if after else "part", "layer", "kind", "name", "word")
    return next(name for name in names if name not in used)


def _counterpart(name: str, pairs: Sequence[_Part]) -> str:
    """The hole on the target's side, or around it what is the same in all words."""
    ours, theirs = pairs[0]
    before, after = theirs.split(ours, 1) if ours in theirs else ("", "")
    if all(word == f"{before}{own}{after}" for own, word in pairs):
        return f"{before}{{{name}}}{after}"
    return f"{{{name}:{'|'.join(word for _, word in pairs)}}}"


def _readable(form: _Form) -> bool:
    """Can the templates be read?  Tables are not known here; each stands for any number."""
    texts = [re.sub(r"\{\w+\[(\w+)[^{}]*\}", r"{\1}", text) for text in _texts(form)]
    try:
        templates.parse(texts, {})
    except templates.TemplateError:
        return False
    return True
