"""A checkpoint to the shipped mappings that fit it, best first, from its headers alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from converter.errors import MappingError
from converter.language.catalogue import BLOCKS, Entry, entries
from converter.language.names import split
from converter.language.rules import Rules
from converter.plan import Plan, Port
from converter.tensors import Checkpoint

PROMISING = 0.5  # of the rules have names of which the checkpoint has every fixed segment
NEARLY = 0.8  # of the tensors are mapped or dropped
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
    found = (
        fit
        for entry in entries()
        if not entry.name.startswith(BLOCKS)
        for reverse in (False, True)
        if promising(entry.segments("target" if reverse else "source"), known)
        for fit in best(entry, checkpoint, names, reverse=reverse)
    )
    return sorted(found, key=lambda fit: fit.rank)


def promising(wanted: list[frozenset[str]], known: set[str]) -> bool:
    """Are the fixed segments of enough rules there?  This is what makes the search fast."""
    return sum(segments <= known for segments in wanted) >= PROMISING * len(wanted)


def best(
    entry: Entry, checkpoint: Checkpoint, names: Iterable[str], *, reverse: bool
) -> Iterator[Fit]:
    """The fit with the sizes that go best, if it is good enough."""
    seen = {size: entry.seen(size, names, reverse=reverse) for size in entry.sizes}
    choices = {size: numbers(entry, size, number) for size, number in seen.items()}
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
            for size, number in seen.items()
            if number is None
            and (len(choices[size]) == 1 or len({sizes[size] for sizes in equal}) > 1)
        )
        yield replace(first, assumed=assumed)


def numbers(entry: Entry, size: str, seen: int | None) -> list[int]:
    """The numbers that a size may have: what the names say, or a table, or the file."""
    if seen is not None:
        return [seen]
    return entry.tabled(size) or [entry.sizes[size] or 1]


def planned(
    entry: Entry, checkpoint: Checkpoint, sizes: Mapping[str, int], *, reverse: bool
) -> Plan | None:
    """The plan, if nearly every tensor is taken by its name."""
    rules = entry.rules(sizes)
    if rules is None:
        return None
    with suppress(MappingError):  # there is no way back
        rules = rules.inverse() if reverse else rules
        taken = sum(takes(rules, name, checkpoint.aliases.get(name, ())) for name in checkpoint)
        if taken >= NEARLY * len(checkpoint):
            plan = Port(rules).plan(checkpoint)
            return plan if any(step.sources for step in plan.steps) else None
    return None


def takes(rules: Rules, name: str, aliases: Iterable[str]) -> bool:
    """Does a rule or a drop fit the name of a tensor, or another name of it?"""
    templates = [template for rule in rules.rules for template in rule.sources]
    return any(
        any(template(called) for template in templates)
        or any(drop.matches(called) for drop in rules.drops)
        for called in (name, *aliases)
    )
