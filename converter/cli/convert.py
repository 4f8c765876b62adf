"""`converter convert`: source, mapping, target."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from converter.cli.options import SOURCE, Bytes, Request, mapping_options
from converter.cli.output import Progress, count, format_option, hint, say_json, size
from converter.cli.plan import as_json, unrepresentable


@click.command()
@click.argument("source", type=SOURCE)
@click.argument("target", type=click.Path(path_type=Path))
@mapping_options
@click.option("--to", "to", metavar="FORMAT", help="The target's format; default: by its suffix.")
@click.option("--overwrite", is_flag=True, help="Replace the target if it exists.")
@click.option("--max-memory", type=Bytes(), help="Stay below this, e.g. 128MiB.")
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write what was done as JSON, also when it failed.",
)
@format_option
def convert(  # noqa: PLR0913 - one parameter an option
    source: Path,
    target: Path,
    to: str | None,
    overwrite: bool,
    max_memory: int | None,
    report: Path | None,
    style: str,
    **options: Any,
) -> None:
    """Convert SOURCE to TARGET through a mapping; without one, only the format changes."""
    from converter import formats
    from converter.engine import Saved, peak_memory, save
    from converter.errors import ConverterError, MappingError
    from converter.formats import open_checkpoint

    started = time.monotonic()
    outcome: dict[str, Any] = {"source": str(source), "target": str(target)}
    row = formats.named(to) if to else formats.for_target(target)
    try:
        with open_checkpoint(source) as checkpoint:
            mapped, plans = Request(**options).apply(checkpoint)
            problems = unrepresentable(mapped.specs, row.name)
            if problems:
                raise MappingError(problems)
            notes = [note for plan in plans for note in plan.problems]
            outcome |= as_json(plans, notes, peak_memory(mapped.specs, max_memory))
            progress = Progress("converting", mapped.nbytes)
            try:
                saved: Saved = save(
                    mapped,
                    target,
                    format=row.name,
                    overwrite=overwrite,
                    max_memory=max_memory,
                    progress=progress,
                )
            finally:
                progress.close()
    except ConverterError as error:
        outcome |= {"status": "failed", "error": str(error), "code": error.code}
        raise
    else:
        outcome |= {
            "status": "converted",
            "format": saved.format,
            "files": [str(path) for path in saved.files],
            "tensors": saved.tensors,
            "nbytes": saved.nbytes,
            "seconds": round(time.monotonic() - started, 3),
        }
    finally:
        if report:
            write_report(report, outcome)
    for name, reason in checkpoint.unsupported.items():
        hint(f"not a tensor, not converted: {name}: {reason}")
    if style == "json":
        say_json(outcome)
        return
    doubtful = sum(bool(step.doubts) for plan in plans for step in plan.steps)
    hint(
        f"wrote {target}: {count(saved.tensors, 'tensor')}, {size(saved.nbytes)}, "
        f"{outcome['seconds']:.2f} s"
        + (f"; shapes cannot confirm {doubtful} of them: `converter verify`" if doubtful else "")
    )


def write_report(path: Path, outcome: dict[str, Any]) -> None:
    """Write the report; it is about files, so it never replaces the error that it reports."""
    import json

    path.write_text(json.dumps(outcome, indent=2) + "\n", encoding="utf-8")
