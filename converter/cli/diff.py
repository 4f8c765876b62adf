"""`converter diff`: what differs between two checkpoints, and what would make it equal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from converter.cli.differences import DIFF, as_json, finding, print_differences, ranked
from converter.cli.options import SOURCE, Request, mapping_options, target_names_option
from converter.cli.output import Progress, count, format_option, hint, say_json, size
from converter.cli.record import digested, recorded, report_option
from converter.cli.reports import judging, report


@click.command()
@click.argument("first", type=SOURCE, metavar="A")
@click.argument("second", type=SOURCE, metavar="B")
@mapping_options
@target_names_option
@click.option("--rtol", type=click.FloatRange(min=0), default=0.0, help="Relative tolerance.")
@click.option("--atol", type=click.FloatRange(min=0), default=0.0, help="Absolute tolerance.")
@click.option(
    "--explain/--no-explain",
    default=True,
    show_default=True,
    help="Search for the symmetry that would make two tensors equal.",
)
@report_option
@format_option
@judging
def diff(  # noqa: PLR0913 - one parameter an option
    first: Path,
    second: Path,
    target_names: str | None,
    rtol: float,
    atol: float,
    explain: bool,
    reports: Sequence[Path],
    style: str,
    output: str,
    **options: Any,
) -> int:
    """Compare A, through a mapping if one is given, with B: names, shapes, dtypes, every value.

    For a pair that differs, say what would make A's equal to B's: axes permuted or reversed, a
    flatten order, gates in another order, a number added, another name.
    """
    from converter import compare
    from converter.formats import open_checkpoint

    request = Request(**options)
    asked = {"target_names": target_names, "rtol": rtol, "atol": atol}
    record: dict[str, Any] = {
        "command": "diff",
        "source": str(first),
        "target": str(second),
        "options": request.given() | {key: value for key, value in asked.items() if value},
    }
    with (
        recorded(record, reports),
        request.open(first) as a,
        open_checkpoint(second, names=target_names) as b,
        digested(record, reports, a, b),
    ):
        # without a mapping there is nothing to plan, and what plans is slow to import
        mapped, plans = request.apply(a) if any(options.values()) else (a, [])
        progress = Progress("comparing", mapped.nbytes)
        try:
            found = compare.diff(mapped, b, rtol=rtol, atol=atol, progress=progress)
            rows = [row for row in found if row.status != "extra" or not request.leaves(row.name)]
        finally:
            progress.close()
        if explain and not all(row.equal for row in rows):
            from converter.symmetry import explained

            rows = list(explained(rows, mapped, b))
        rows = ranked(rows)
        wrong = [row for row in rows if not row.equal]
        told = {"equal": not wrong, "tensors": [as_json(row) for row in rows]}
        if reports:
            from converter.report import planned

            record |= {"status": "different" if wrong else "equal", **told, **planned(plans)}
    if output != "full":
        report([finding(row, second, DIFF) for row in wrong], output, [second])
    elif style == "json":
        say_json(told)
    elif wrong:
        print_differences(wrong, len(rows))
    else:
        within = "" if rtol or atol else ", bit for bit"
        hint(f"equal: {count(len(rows), 'tensor')}, {size(mapped.nbytes)}{within}")
    return 1 if wrong else 0
