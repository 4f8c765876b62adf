"""A checkpoint to the shipped mappings that fit it, best first, from its headers alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from converter.errors import MappingError
from converter.language.catalogue import BLOCKS, Entry, entries, finder, segments
from converter.language.names import split
from converter.language.rules import Rules
from converter.plan import Plan, Port
from converter.tensors import Checkpoint

NEARLY = 0.8  # of a mapping's rules have names, and of the tensors are mapped or dropped
MOST_SIZES = 32  # combinations of sizes that are tried for one mapping


@dataclass(frozen=True)
class Fit:
    """A mapping with a direction and sizes, and what it would do; `assumed` sizes are guesses."""

    name: str
    reverse: bool
    sizes: Mapping[str, int]
    plan: Plan
    assumed: tuple[str, ...] = ()

    @property
    def mapped(self) -> int:
        """How many source tensors become something."""
        return len({name for step in self.plan.steps for name in step.sources})

    @property
    def rank(self) -> tuple[int, int, bool, str]:
        """Smaller is better: fewer problems, more mapped, not the way back."""
        return len(self.plan.errors), -self.mapped, self.reverse, self.name


def suggest(checkpoint: Checkpoint) -> list[Fit]:
    """The mappings whose plan is clean or nearly so, best first."""
    names = {*checkpoint, *itertools.chain.from_iterable(checkpoint.aliases.values())}
    known = {segment for name in names for segment in split(name)}
    lines = "\n".join(sorted(names))
    found = (
        fit
        for entry in entries()
        if not entry.name.startswith(BLOCKS)
        for reverse in (False, True)
        if promising(entry.needs("target" if reverse else "source"), known, lines)
        for fit in best(entry, checkpoint, names, reverse=reverse)
    )
    return sorted(found, key=lambda fit: fit.rank)


def promising(templates: list[str], known: set[str], lines: str) -> bool:
    """Are there names for nearly all templates?  First by segments, then by a search of the lines.

    A mapping is compiled only then: that takes longer than all of this.
    """
    wanted = NEARLY * len(templates)
    likely = [text for text in templates if segments(text) <= known]
    return len(likely) >= wanted and sum(bool(finder(t).search(lines)) for t in likely) >= wanted


def best(
    entry: Entry, checkpoint: Checkpoint, names: Iterable[str], *, reverse: bool
) -> Iterator[Fit]:
    """The fit with the sizes that go best, if it is good enough."""
    side = "target" if reverse else "source"
    seen = {size: entry.seen(size, names, side) for size in entry.sizes}
    choices = {size: numbers(entry, size, found) for size, found in seen.items()}
    fits = []
    for chosen in itertools.islice(itertools.product(*choices.values()), MOST_SIZES):
        sizes = dict(zip(choices, chosen, strict=True))
        plan = planned(entry, checkpoint, sizes, reverse=reverse)
        if plan is not None:
            fits.append(Fit(entry.name, reverse, sizes, plan))
    if fits:
        first = min(fits, key=lambda fit: fit.rank)
        equal = [fit.sizes for fit in fits if fit.rank == first.rank]
        assumed = tuple(
            size
            for size, found in seen.items()
            if len({sizes[size] for sizes in equal}) > 1 or not (found or len(choices[size]) > 1)
        )
        yield replace(first, assumed=assumed)


def numbers(entry: Entry, size: str, seen: list[int]) -> list[int]:
    """What a size may be, by names or tables; the file's own number first, as that of most."""
    given = entry.sizes[size]
    default = 1 if given is None else given
    found = seen or entry.tabled(size) or [default]
    return sorted(found, key=lambda number: (number != default, number))


def planned(
    entry: Entry, checkpoint: Checkpoint, sizes: Mapping[str, int], *, reverse: bool
) -> Plan | None:
    """The plan, if nearly every tensor is taken by its name."""
    rules = entry.rules(sizes)
    if rules is None:
        return None
    with suppress(MappingError):  # there is no way back
        rules = rules.inverse() if reverse else rules
        if taken(rules, checkpoint):
            plan = Port(rules).plan(checkpoint)
            return plan if any(step.sources for step in plan.steps) else None
    return None


def taken(rules: Rules, checkpoint: Checkpoint) -> bool:
    """Are nearly all tensors taken by a rule or a drop, by one of their names?"""
    fits = [
        *(template.match for rule in rules.rules for template in rule.sources),
        *(drop.matches for drop in rules.drops),
    ]
    spare = (1 - NEARLY) * len(checkpoint)
    for name in checkpoint:
        called = (name, *checkpoint.aliases.get(name, ()))
        if not any(fit(each) not in (None, False) for each in called for fit in fits):
            spare -= 1
            if spare < 0:
                return False
    return True
