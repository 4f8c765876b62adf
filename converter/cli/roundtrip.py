"""`converter roundtrip`: there and back; bit for bit, or what loses something."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli.options import SOURCE, Request, mapping_options
from converter.cli.output import Progress, count, format_option, hint, say, say_json, size, table

if TYPE_CHECKING:
    from converter.roundtrip import Loss


@click.command()
@click.argument("source", type=SOURCE)
@mapping_options
@format_option
def roundtrip(source: Path, style: str, **options: Any) -> int:
    """Take SOURCE through the mapping and back, in memory: is every value what it was?

    Says which rule and op loses something.  Tensors that the mapping drops do not travel.
    """
    from converter.roundtrip import roundtrip as plan_both_ways

    if not options["mappings"]:
        raise click.UsageError("there is nothing to try without a mapping (-m)")
    request = Request(**options)
    with request.open(source) as checkpoint:
        both = plan_both_ways(checkpoint, request.ports(checkpoint))
        travelling = both.travelling
        progress = Progress("comparing", travelling.nbytes)
        try:
            losses = list(both.losses(progress))
        finally:
            progress.close()
    if style == "json":
        say_json(
            {
                "equal": not losses,
                "tensors": len(travelling),
                "dropped": both.dropped,
                "losses": [as_json(loss) for loss in losses],
            }
        )
    elif losses:
        print_losses(losses)
    else:
        dropped = f"; {len(both.dropped)} dropped by the mapping" if both.dropped else ""
        equal = count(len(travelling), "tensor")
        hint(f"there and back: {equal}, {size(travelling.nbytes)}, equal bit for bit{dropped}")
    return 1 if losses else 0


def print_losses(losses: list[Loss]) -> None:
    """What does not come back, and why."""
    from converter.cli.differences import in_words

    for loss in losses:
        row = loss.difference
        table([(row.name, row.status, in_words(row))])
        if loss.op is not None:
            say(f"    lost by `{loss.op.name}: {loss.op.to_file()}` at {loss.place} ({loss.rule})")
    say(f"{count(len(losses), 'tensor')} did not come back as they were")


def as_json(loss: Loss) -> dict[str, Any]:
    """One loss for machines."""
    from converter.cli.differences import as_json as difference_json

    return difference_json(loss.difference) | {
        "rule": loss.rule or None,
        "place": str(loss.place) if loss.place else None,
        "op": None if loss.op is None else {loss.op.name: loss.op.to_file()},
    }
