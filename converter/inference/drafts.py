"""Rules on their way to a mapping file."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from converter.inference.match import Match
from converter.language import names as templates
from converter.symmetry import Op

RULE = 60  # characters that a rule takes in a file besides its names
ROW = 20  # and a row of a table, which is read elsewhere

CHOICES = re.compile(r"\{(\w+):([^{}]*)\}")  # a hole with its words, or a number's digits

Table = dict[tuple[int, ...], int | str]


@dataclass(frozen=True)
class Draft:
    """A rule: templates, ops, and the pairs that it stands for."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    ops: tuple[Op, ...]
    note: str
    matches: tuple[Match, ...]
    exclude: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """The templates of both sides."""
        return (*self.sources, *self.targets)


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


def literal(matches: Iterable[Match]) -> list[Draft]:
    """A rule for each match."""
    return [
        Draft(
            tuple(map(escaped, match.sources)),
            tuple(map(escaped, match.targets)),
            match.ops,
            match.note,
            (match,),
        )
        for match in matches
    ]


def escaped(name: str) -> str:
    """The template of one name."""
    return name.replace("{", "{{").replace("}", "}}")


def compiled(draft: Draft, tables: Tables) -> list[templates.Template] | None:
    """The draft's templates; None when the language refuses them."""
    known = {
        name: templates.Table(
            name, {tuple(map(str, key)): str(value) for key, value in entries.items()}
        )
        for name, entries in tables.entries.items()
        if any(f"{{{name}[" in text for text in draft.texts)
    }
    try:
        return templates.parse(draft.texts, known)
    except templates.TemplateError:
        return None


def sound(draft: Draft, tables: Tables) -> bool:
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


def once(texts: Sequence[str]) -> list[str]:
    """Templates of one rule, with the choices of a hole given once where others are the same."""
    first: dict[str, str] = {}
    done: list[str] = []
    for text in texts:
        given = dict.fromkeys(CHOICES.findall(text))
        often = Counter(hole for hole, _ in given)
        for hole, words in given:
            if often[hole] > 1:
                continue  # each says its own
            head, typed, rest = text.partition(f"{{{hole}:{words}}}")
            known = first.setdefault(hole, words) == words and done
            plain = f"{{{hole}}}"
            text = head + (plain if known else typed) + rest.replace(typed, plain)  # noqa: PLW2901
        done.append(text)
    return done


def length(drafts: Iterable[Draft], tables: Tables) -> int:
    """About how many characters rules take in a file, with their tables."""
    drafts = list(drafts)
    texts = [text for draft in drafts for text in (*draft.texts, *draft.exclude)]
    used = {name for text in texts for name in re.findall(r"\{(\w+)\[", text)}
    rows = sum(len(tables.entries[name]) for name in used)
    return RULE * len(drafts) + sum(map(len, texts)) + ROW * rows
