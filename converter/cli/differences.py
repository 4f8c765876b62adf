"""How two tensors differ: in words, for machines, as findings; one description for all commands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from converter.cli.output import count, say, table
from converter.errors import Diagnostic

if TYPE_CHECKING:
    from converter.compare import Difference

RANKS = ("missing", "extra", "shape", "dtype", "values", "equal")


class Sides(NamedTuple):
    """What the two sides are called in a sentence, and their keys in JSON."""

    first: str
    second: str
    keys: tuple[str, str]


DIFF = Sides("A", "B", ("first", "second"))
VERIFY = Sides("the mapped source", "the target", ("expected", "found"))


def ranked(rows: Iterable[Difference]) -> list[Difference]:
    """What is missing first, then by how much the values differ; what is equal comes last."""
    return sorted(rows, key=lambda row: (RANKS.index(row.status), -row.max_abs, row.name))


def in_words(row: Difference, sides: Sides = DIFF) -> str:
    """How a tensor differs."""
    if row.status == "missing":
        return f"{row.first}, only in {sides.first}"
    if row.status == "extra":
        return f"{row.second}, only in {sides.second}" if row.second else f"only in {sides.second}"
    if row.status in ("shape", "dtype"):
        return f"{row.first} in {sides.first}, {row.second or 'another'} in {sides.second}"
    share = f"{row.count} of {row.first.size}" if row.first else str(row.count)
    if row.index is None:
        return f"{share} values differ"
    gap = f"by {row.max_abs:.3g} at most ({row.max_rel:.3g} relative)"
    return f"{share} values differ, {gap}, first at {list(row.index)}"


def print_differences(rows: Sequence[Difference], total: int, sides: Sides = DIFF) -> None:
    """What differs, a tensor a line and its explanation below."""
    for row in rows:
        table([(row.name, row.status, in_words(row, sides))])
        if row.explanation is not None:
            say(f"    {row.explanation}")
    say(f"{len(rows)} of {count(total, 'tensor')} differ")


def finding(row: Difference, path: Path, sides: Sides = VERIFY) -> Diagnostic:
    """One difference as a finding about a file."""
    text = f"'{row.name}': {row.status}: {in_words(row, sides)}"
    told = "" if row.explanation is None else str(row.explanation)
    return Diagnostic("VER500", text, path=path, tensor=row.name, hint=told)


def as_json(row: Difference, sides: Sides = DIFF) -> dict[str, Any]:
    """One tensor for machines."""
    found, (first, second) = row.explanation, sides.keys
    return {
        "name": row.name,
        "status": row.status,
        first: None if row.first is None else str(row.first),
        second: None if row.second is None else str(row.second),
        "count": row.count,
        "max_abs": row.max_abs,
        "max_rel": row.max_rel,
        "index": None if row.index is None else list(row.index),
        "explanation": None
        if found is None
        else {
            "text": found.text,
            "ops": list(found.ops),
            "exact": found.exact,
            "names": list(found.others),
        },
    }
