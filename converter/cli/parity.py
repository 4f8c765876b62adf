"""`converter parity`: do two real models make the same of the same inputs?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli.options import SOURCE, Request, mapping_options
from converter.cli.output import count, format_option, hint, say, say_json, table
from converter.cli.reports import judging, report
from converter.errors import Diagnostic

if TYPE_CHECKING:
    from converter.parity import Pair

OUTPUT = "(output)"


class Given(click.ParamType):  # type: ignore[type-arg] # generic in new releases only
    """`NAME=FILE.npy`, or `FILE.npy` for the only input."""

    name = "input"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, Path]:
        """Read the text."""
        if isinstance(value, tuple):
            return value
        name, equals, path = str(value).rpartition("=")
        if (equals and not name) or not path:
            self.fail(f"'{value}' is not NAME=FILE.npy", param, ctx)
        if not Path(path).is_file():
            self.fail(f"there is no file '{path}'", param, ctx)
        return name, Path(path)


@click.command()
@click.argument("source", type=SOURCE)
@click.argument("target", type=SOURCE)
@mapping_options
@click.option(
    "--source-model",
    required=True,
    metavar="KIND[:MODEL]",
    help="keras[:FILE], savedmodel[:FOLDER], or slim: with a network or a package.module:callable.",
)
@click.option(
    "--target-model",
    required=True,
    metavar="PACKAGE.MODULE:CALLABLE",
    help="What makes the torch module; this runs that code.",
)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    type=Given(),
    metavar="[NAME=]FILE.npy",
    help="An input; default: random numbers.  Repeatable.",
)
@click.option("--seed", default=0, show_default=True, help="Of the random numbers.")
@click.option(
    "--rtol",
    type=click.FloatRange(min=0),
    help="How far apart two outputs may be, relative to the largest value; default: 1e-3.",
)
@format_option
@judging
def parity(  # noqa: PLR0913 - one parameter an option
    source: Path,
    target: Path,
    source_model: str,
    target_model: str,
    inputs: Sequence[tuple[str, Path]],
    seed: int,
    rtol: float | None,
    style: str,
    output: str,
    **options: Any,
) -> int:
    """Run the real models of SOURCE and TARGET on the same inputs, and compare layer by layer.

    Each runs in a process of its own.  Layers are paired through the mapping, by their weights;
    the first whose outputs depart is named.
    """
    from converter.formats import open_checkpoint
    from converter.parity import KINDS, RTOL
    from converter.parity import parity as compare
    from converter.report import lineage

    kind, _, model = source_model.partition(":")
    if kind not in KINDS or (kind == "slim" and not model):
        raise click.UsageError(
            "--source-model: expected keras[:FILE], savedmodel[:FOLDER] or slim:NAME"
        )
    if not all(target_model.partition(":")):
        raise click.UsageError("--target-model: expected package.module:callable")
    request = Request(**options)
    with request.open(source) as checkpoint, open_checkpoint(target):
        _, plans = request.apply(checkpoint)
        rows = compare(
            checkpoint,
            (kind, model or str(source), target_model),
            target,
            lineage(plans),
            inputs=dict(inputs),
            seed=seed,
            rtol=RTOL if rtol is None else rtol,
        )
    agree = all(row.agrees for row in rows if not row.source)
    if output != "full":
        wrong = [] if agree else [row for row in rows if not row.agrees]
        report([finding(row, target) for row in wrong], output, [target])
    elif style == "json":
        say_json({"agree": agree, "layers": [as_json(row) for row in rows]})
    elif agree:
        layers = count(len(rows) - 1, "layer")
        hint(f"the models agree: {layers}, outputs within {rows[-1].departure:.2g}")
    else:
        print_layers(rows)
    return 0 if agree else 1


def print_layers(rows: Sequence[Pair]) -> None:
    """Every layer, and the first that departs."""
    table(
        [
            (row.source or OUTPUT, row.target or OUTPUT, f"{row.departure:.2g}", verdict(row))
            for row in rows
        ]
    )
    first = next(row for row in rows if not row.agrees)
    say(f"the first to depart: {first.source or OUTPUT} → {first.target or OUTPUT}")


def finding(row: Pair, target: Path) -> Diagnostic:
    """One pair whose outputs depart."""
    layers = f"{row.source or OUTPUT} → {row.target or OUTPUT}"
    return Diagnostic("VER500", f"{layers}: departs by {row.departure:.2g}", path=target)


def verdict(row: Pair) -> str:
    """Whether a layer agrees."""
    return "agrees" if row.agrees else "departs"


def as_json(row: Pair) -> dict[str, Any]:
    """One pair for machines."""
    return {
        "source": row.source,
        "target": row.target,
        "departure": row.departure,
        "agrees": row.agrees,
    }
