"""`converter inspect`: what is in a file, from its headers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli.options import SOURCE, Request, names_option
from converter.cli.output import count, format_option, hint, say, say_json, size, table

if TYPE_CHECKING:
    from converter.layout import View
    from converter.tensors import Checkpoint, TensorSpec

PIECE = 16 << 20  # bytes whose statistics are taken at a time

NUMBERS = ("min", "max", "mean", "std")
LONG = 200  # characters of metadata that people are shown; --format json has all


@click.command()
@click.argument("source", type=SOURCE)
@click.option("--match", multiple=True, metavar="PATTERN", help="Only names that fit.")
@click.option("--tree", is_flag=True, help="Group names by their segments.")
@names_option
@click.option("--aliases", is_flag=True, help="Show the other names of tensors, too.")
@click.option("--stats", is_flag=True, help="Read the values too: min, max, mean, deviation.")
@format_option
def inspect(  # noqa: PLR0913 - one parameter an option
    source: Path,
    match: tuple[str, ...],
    tree: bool,
    names: str | None,
    aliases: bool,
    stats: bool,
    style: str,
) -> None:
    """List the tensors of SOURCE: name, dtype, shape, bytes; reads headers only."""
    from converter.formats import open_checkpoint
    from converter.tensors import no_collections

    chosen = Request.selectors(match)
    with no_collections(), open_checkpoint(source, names=names) as checkpoint:
        found = [n for n in checkpoint if not chosen or any(fits(n) for fits in chosen)]
        rows = described(checkpoint, found)
        for row in rows if aliases else ():
            row["aliases"] = list(checkpoint.aliases.get(row["name"], ()))
        for row in rows if stats else ():
            row.update(statistics(checkpoint[row["name"]].view))
        if style == "json":
            say_json(
                {
                    "format": checkpoint.format,
                    "metadata": dict(checkpoint.metadata),
                    "tensors": rows,
                    "ties": [list(group) for group in checkpoint.ties],
                    "unsupported": dict(checkpoint.unsupported),
                }
            )
            return
        print_human(checkpoint, rows, tree=tree)
    if match and not found:
        hint("no name fits")


def described(checkpoint: Checkpoint, names: Iterable[str]) -> list[dict[str, Any]]:
    """Some tensors, each as in the JSON."""
    from converter.tensors import dtype_name

    specs, rows = checkpoint.specs, []
    known: dict[TensorSpec, dict[str, Any]] = {}  # of many tensors, few have a spec of their own
    for name in names:
        spec = specs[name]
        facts = known.get(spec)
        if facts is None:
            dtype, shape = dtype_name(spec.dtype), list(spec.shape)
            facts = known[spec] = {"dtype": dtype, "shape": shape, "nbytes": spec.nbytes}
        rows.append({"name": name, **facts})
    return rows


def statistics(view: View) -> dict[str, float]:
    """Minimum, maximum, mean and standard deviation; nothing for strings and empty tensors.

    In pieces, so that memory does not grow with the tensor.
    """
    import numpy as np

    from converter.tensors import STRING

    if view.dtype == STRING or view.size == 0 or view.dtype.kind == "c":
        return {}
    step = view.chunk(PIECE)
    buffer = np.empty(min(step, view.size), view.dtype)
    low, high, mean, squares = np.inf, -np.inf, 0.0, 0.0
    with np.errstate(all="ignore"):  # infinities and NaNs are facts here
        for start in range(0, view.size, step):
            piece = buffer[: min(step, view.size - start)]
            view.read(start, piece)
            values = piece.astype(np.float64)
            low, high = np.minimum(low, values.min()), np.maximum(high, values.max())
            gap = values.mean() - mean  # two parts' means and squares, joined
            squares += values.var() * values.size
            squares += gap * gap * start * values.size / (start + values.size)
            mean += gap * values.size / (start + values.size)
        deviation = np.sqrt(squares / view.size)
    return {"min": float(low), "max": float(high), "mean": float(mean), "std": float(deviation)}


def print_human(checkpoint: Checkpoint, rows: list[dict[str, Any]], *, tree: bool) -> None:
    """The listing for people."""
    numbers = NUMBERS if any("min" in row for row in rows) else ()
    cells = [
        [
            row["name"],
            row["dtype"],
            str(row["shape"]),
            size(row["nbytes"]),
            *[f"{row[key]:.4g}" if key in row else "" for key in numbers],
        ]
        for row in rows
    ]
    heads = ["name", "dtype", "shape", "bytes", *numbers]
    right = range(3, len(heads))
    if any("aliases" in row for row in rows):
        heads.append("also")
        for cell, row in zip(cells, rows, strict=True):
            cell.append(", ".join(row["aliases"]))
    if tree:
        cells = list(branches(cells))
    table([heads, *cells] if cells else [], right=right)
    total = sum(row["nbytes"] for row in rows)
    say(f"{checkpoint.format}: {count(len(rows), 'tensor')}, {size(total)}")
    for key, value in checkpoint.metadata.items():
        shown = value if len(value) <= LONG else f"{value[:LONG]}… ({len(value)} characters)"
        say(f"metadata {key}: {shown}")
    for group in checkpoint.ties:
        say(f"tied: {', '.join(group)}")
    for name, reason in checkpoint.unsupported.items():
        say(f"not a tensor: {name}: {reason}")


def branches(rows: list[list[str]]) -> Iterator[list[str]]:
    """The rows under a line for each group of names, indented by depth."""
    import re

    shown: list[str] = []
    for row in sorted(rows):
        parts = re.split(r"(?<=[/.])", row[0])
        depth = 0
        while depth < len(parts) - 1 and depth < len(shown) and shown[depth] == parts[depth]:
            depth += 1
        for level in range(depth, len(parts) - 1):
            yield ["  " * level + parts[level], *[""] * (len(row) - 1)]
        shown = parts[:-1]
        yield ["  " * (len(parts) - 1) + parts[-1], *row[1:]]
