"""`converter verify`: is the target what the mapping makes of the source?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli.options import SOURCE, Request, mapping_options
from converter.cli.output import Progress, count, format_option, hint, say, say_json, size, table
from converter.cli.reports import judged, output_format_option, report
from converter.errors import Diagnostic

if TYPE_CHECKING:
    from converter.compare import Difference

FRAMEWORKS = ("torch", "tensorflow", "safetensors")


@click.command()
@click.argument("source", type=SOURCE)
@click.argument("target", type=SOURCE)
@mapping_options
@click.option(
    "--with",
    "framework",
    type=click.Choice(FRAMEWORKS),
    help="Also load the target with the real framework, in a process of its own.",
)
@format_option
@output_format_option
def verify(
    source: Path,
    target: Path,
    framework: str | None,
    style: str,
    output: str,
    **options: Any,
) -> int:
    """Read SOURCE and TARGET again and compare every value, bit for bit, through the mapping."""
    from importlib.util import find_spec

    from converter.compare import diff
    from converter.formats import open_checkpoint
    from converter.oracles import load_with

    if framework and find_spec(framework) is None:
        extra = f"pip install 'checkpoint-converter[{framework}]'"
        raise click.UsageError(f"{framework} is not installed here: {extra}")
    request = Request(**options)
    with judged(output), open_checkpoint(source) as first, open_checkpoint(target) as second:
        expected, _ = request.apply(first)
        progress = Progress("verifying", expected.nbytes)
        try:
            rows = list(diff(expected, second, progress=progress))
        finally:
            progress.close()
        rows = [row for row in rows if row.status != "extra" or not request.leaves(row.name)]
        if framework:
            rows += load_with(framework, target, second)
    wrong = [row for row in rows if not row.equal]
    if output != "full":
        report([finding(row, target) for row in wrong], output, [target])
    elif style == "json":
        say_json({"equal": not wrong, "tensors": [row_json(row) for row in rows]})
    elif wrong:
        print_differences(wrong)
    else:
        also = f", and as {framework} reads it" if framework else ""
        equal = count(len(expected), "tensor")
        hint(f"{target} is right: {equal}, {size(expected.nbytes)}, equal bit for bit{also}")
    return 1 if wrong else 0


def print_differences(rows: list[Difference]) -> None:
    """What differs, worst first."""
    ranked = sorted(rows, key=lambda row: (-row.max_abs, row.name))
    table([(row.name, row.status, explain(row)) for row in ranked])
    say(f"{count(len(rows), 'tensor')} differ")


def finding(row: Difference, target: Path) -> Diagnostic:
    """One difference as a finding about the target."""
    text = f"'{row.name}': {row.status}: {explain(row)}"
    return Diagnostic("VER500", text, path=target, tensor=row.name)


def explain(row: Difference) -> str:
    """One difference in words."""
    if row.status == "missing":
        return f"expected {row.first}, not in the target"
    if row.status == "extra":
        return f"{row.second}, which nothing makes"
    if row.status in ("shape", "dtype"):
        return f"expected {row.first}, found {row.second}"
    where = f"first at {list(row.index)}" if row.index is not None else ""
    return f"{row.count} values, by {row.max_abs:.3g} at most ({row.max_rel:.3g} relative), {where}"


def row_json(row: Difference) -> dict[str, Any]:
    """One difference for machines."""
    return {
        "name": row.name,
        "status": row.status,
        "expected": None if row.first is None else str(row.first),
        "found": None if row.second is None else str(row.second),
        "count": row.count,
        "max_abs": row.max_abs,
        "max_rel": row.max_rel,
        "index": None if row.index is None else list(row.index),
    }
