"""`converter diff`: what differs between two checkpoints, and what would make it equal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli.options import SOURCE, Request, mapping_options
from converter.cli.output import Progress, count, format_option, hint, say, say_json, size, table

if TYPE_CHECKING:
    from converter.compare import Difference

RANKS = ("missing", "extra", "shape", "dtype", "values")


@click.command()
@click.argument("first", type=SOURCE, metavar="A")
@click.argument("second", type=SOURCE, metavar="B")
@mapping_options
@click.option("--rtol", type=click.FloatRange(min=0), default=0.0, help="Relative tolerance.")
@click.option("--atol", type=click.FloatRange(min=0), default=0.0, help="Absolute tolerance.")
@click.option(
    "--explain/--no-explain",
    default=True,
    show_default=True,
    help="Search for the symmetry that would make two tensors equal.",
)
@format_option
def diff(  # noqa: PLR0913 - one parameter an option
    first: Path,
    second: Path,
    rtol: float,
    atol: float,
    explain: bool,
    style: str,
    **options: Any,
) -> int:
    """Compare A, through a mapping if one is given, with B: names, shapes, dtypes, every value.

    For a pair that differs, say what would make A's equal to B's: axes permuted or reversed, a
    flatten order, gates in another order, a number added, another name.
    """
    from converter import compare
    from converter.formats import open_checkpoint
    from converter.symmetry import explained

    request = Request(**options)
    with open_checkpoint(first) as a, open_checkpoint(second) as b:
        # without a mapping there is nothing to plan, and what plans is slow to import
        mapped = request.apply(a)[0] if any(options.values()) else a
        progress = Progress("comparing", mapped.nbytes)
        try:
            found = compare.diff(mapped, b, rtol=rtol, atol=atol, progress=progress)
            rows = [row for row in found if row.status != "extra" or not request.leaves(row.name)]
        finally:
            progress.close()
        if explain:
            rows = list(explained(rows, mapped, b))
    wrong = sorted((row for row in rows if not row.equal), key=rank)
    if style == "json":
        same = [row for row in rows if row.equal]
        say_json({"equal": not wrong, "tensors": [as_json(row) for row in [*wrong, *same]]})
    elif wrong:
        print_differences(wrong, len(rows))
    else:
        within = "" if rtol or atol else ", bit for bit"
        hint(f"equal: {count(len(rows), 'tensor')}, {size(mapped.nbytes)}{within}")
    return 1 if wrong else 0


def rank(row: Difference) -> tuple[int, float, str]:
    """What is missing first, then by how much the values differ."""
    return RANKS.index(row.status), -row.max_abs, row.name


def print_differences(rows: list[Difference], total: int) -> None:
    """What differs, a tensor a line and its explanation below."""
    for row in rows:
        table([(row.name, row.status, in_words(row))])
        if row.explanation is not None:
            say(f"    {row.explanation}")
    say(f"{len(rows)} of {count(total, 'tensor')} differ")


def in_words(row: Difference) -> str:
    """How a tensor differs."""
    if row.status == "missing":
        return f"{row.first}, only in A"
    if row.status == "extra":
        return f"{row.second}, only in B"
    if row.status in ("shape", "dtype"):
        return f"{row.first} in A, {row.second} in B"
    spec, index = row.first, list(row.index or ())
    share = f"{row.count} of {spec.size}" if spec else str(row.count)
    gap = f"by {row.max_abs:.3g} at most ({row.max_rel:.3g} relative)"
    return f"{share} values differ, {gap}, first at {index}"


def as_json(row: Difference) -> dict[str, Any]:
    """One tensor for machines."""
    found = row.explanation
    return {
        "name": row.name,
        "status": row.status,
        "first": None if row.first is None else str(row.first),
        "second": None if row.second is None else str(row.second),
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
