"""`converter roundtrip`: there and back; bit for bit, or what loses something."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli.ops import written
from converter.cli.options import SOURCE, Request, mapping_options
from converter.cli.output import Progress, count, format_option, hint, say, say_json, size, table
from converter.cli.reports import judging, report

if TYPE_CHECKING:
    from converter.errors import Diagnostic
    from converter.roundtrip import Loss


@click.command()
@click.argument("source", type=SOURCE)
@mapping_options
@format_option
@judging
def roundtrip(source: Path, style: str, output: str, **options: Any) -> int:
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
    if output != "full":
        report([finding(loss, source) for loss in losses], output)
    elif style == "json":
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


def finding(loss: Loss, source: Path) -> Diagnostic:
    """One loss, where its rule is."""
    from converter.cli.differences import in_words
    from converter.errors import Diagnostic

    text = f"'{loss.difference.name}' does not come back: {in_words(loss.difference)}"
    tensor = loss.difference.name
    if loss.place is None:
        return Diagnostic("VER500", text, path=source, tensor=tensor)
    by = f"lost by `{written(loss.op.name, loss.op.to_file())}`" if loss.op else ""
    return loss.place.diagnostic("VER500", text, hint=by, tensor=tensor)


def print_losses(losses: list[Loss]) -> None:
    """What does not come back, and why."""
    from converter.cli.differences import in_words

    for loss in losses:
        row = loss.difference
        table([(row.name, row.status, in_words(row))])
        if loss.op is not None:
            op = written(loss.op.name, loss.op.to_file())
            say(f"    lost by `{op}` at {loss.place} ({loss.rule})")
    say(f"{count(len(losses), 'tensor')} did not come back as they were")


def as_json(loss: Loss) -> dict[str, Any]:
    """One loss for machines."""
    from converter.cli.differences import as_json as difference_json

    return difference_json(loss.difference) | {
        "rule": loss.rule or None,
        "place": str(loss.place) if loss.place else None,
        "op": None if loss.op is None else {loss.op.name: loss.op.to_file()},
    }
