"""`python -m tests.conversions > docs/catalogue.md`: every conversion with contract and proof."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

from converter.language import load
from converter.language.rules import Rules
from converter.plan import port
from tests import manifests
from tests.conversions import Conversion, conversions

HEAD = """\
# Catalogue

Every conversion that is shipped.  A mapping serves all sizes of a model, and both directions where
it does not say otherwise.  The *contract* is what the weights depend on besides themselves; it is
written into the target.  The *proof* runs the real models of both sides, or says which step of
theirs it repeats.  The headers of every model here, at full size, are in `tests/manifests/`.

There and back, every tensor has the same bits again.  Only those that are called *rounded* do not,
when files are between: their numbers come back within one unit in the last place of the larger of
the two sides, and go there again to the very same bits.

TF-Slim's Inception V2 is not here: neither torchvision nor timm has a class that computes it.

This page is made by `python -m tests.conversions`; a test keeps it current.
"""


def catalogue() -> str:
    """The page."""
    rows = sorted(conversions(), key=lambda row: row.mapping)
    parts = [HEAD, *index(rows)]
    for mapping, group in groupby(rows, key=lambda row: row.mapping):
        parts += section(load(mapping), list(group))
    return "\n".join(parts)


def index(rows: Iterable[Conversion]) -> Iterator[str]:
    """From where to where each mapping leads."""
    yield "| mapping | from | to | models |"
    yield "|---|---|---|---|"
    for mapping, group in groupby(rows, key=lambda row: row.mapping):
        rules, count = load(mapping), len(list(group))
        anchor = mapping.replace("/", "").casefold()
        yield f"| [{mapping}](#{anchor}) | {rules.source_model} | {rules.target_model} | {count} |"
    yield ""


def section(rules: Rules, rows: list[Conversion]) -> Iterator[str]:
    """A mapping: its sentence, contract, models and proofs."""
    yield f"## {rules.name}\n"
    yield f"{rules.about}.\n"
    yield from contract(rules)
    yield "| source | target | tensors | options |"
    yield "|---|---|---|---|"
    for row in rows:
        tensors = f"{len(manifests.load(row.source))} → {len(manifests.load(row.target))}"
        sizes = " ".join(f"`--size {size}={number}`" for size, number in row.sizes.items())
        yield f"| {row.source} | {row.target} | {tensors} | {sizes} |"
    yield from inexact(rows[0])
    proofs = dict.fromkeys(map(proof, rows))
    yield f"\nProof: {', '.join(proofs)}.\n"
    notes = dict.fromkeys(row.note for row in rows if row.note)
    one_way = dict.fromkeys(f"No way back: {row.one_way}." for row in rows if row.one_way)
    for sentence in (*notes, *one_way):
        yield f"{sentence}\n"


def inexact(row: Conversion) -> Iterator[str]:
    """Which tensors of the target are not the source's bits in another order."""
    steps = port(row.mapping, sizes=row.sizes).plan(manifests.load(row.source)).steps
    for kind in ("rounding", "lossy"):
        names = [step.target for step in steps if step.exactness == kind]
        if names:
            ends = sorted({re.split("[./]", name)[-1] for name in names})
            called = (
                f"`{names[0]}`"
                if len(names) == 1
                else f"{len(names)}, each a `{'`, `'.join(ends)}`"
            )
            yield f"\n{'Rounded' if kind == 'rounding' else 'Lossy'}: {called}."


def contract(rules: Rules) -> Iterator[str]:
    """What the weights depend on, where the sides agree and where they do not."""
    source, target = rules.source_contract, rules.target_contract
    for key in dict.fromkeys((*source, *target)):
        if source.get(key) == target.get(key):
            yield f"* {key}: {shown(source[key])}"
        else:
            sides = (f"{side}: {shown(of[key])}" for side, of in sides_of(source, target, key))
            yield f"* {key} of the {'; of the '.join(sides)}"
    if source or target:
        yield ""


def sides_of(
    source: Mapping[str, Any], target: Mapping[str, Any], key: str
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The sides that have a key."""
    for name, side in (("source", source), ("target", target)):
        if key in side:
            yield name, side


def shown(value: Any) -> str:
    """A value of a contract."""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def proof(row: Conversion) -> str:
    """A link to the test."""
    file, _, name = row.proof.partition("::")
    return f"[{name}](../{file})"


if __name__ == "__main__":
    print(catalogue(), end="")  # noqa: T201 - it is what it is for
