"""`converter convert`: source, mapping, target."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from converter import __version__
from converter.cli.options import SOURCE, Bytes, FormatName, Request, mapping_options
from converter.cli.output import Progress, count, format_option, hint, json_text, say_json, size
from converter.cli.plan import as_json, unrepresentable
from converter.cli.reports import diagnostic_json


@click.command()
@click.argument("source", type=SOURCE)
@click.argument("target", type=click.Path(path_type=Path))
@mapping_options
@click.option("--to", type=FormatName(), help="The target's format; default: by its suffix.")
@click.option("--overwrite", is_flag=True, help="Replace the target if it exists.")
@click.option("--max-memory", type=Bytes(), help="Stay below this, e.g. 128MiB.")
@click.option(
    "--shard-size",
    "shard_nbytes",
    type=Bytes(),
    help="Cut the target into files of at most this size, and an index.",
)
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
    shard_nbytes: int | None,
    report: Path | None,
    style: str,
    **options: Any,
) -> None:
    """Convert SOURCE to TARGET through a mapping; without one, only the format changes."""
    from converter.engine import peak_memory, save
    from converter.errors import MappingError
    from converter.formats import open_checkpoint

    name = to or format_of(target)
    started = time.monotonic()
    outcome: dict[str, Any] = {"source": str(source), "target": str(target)}
    with reported(outcome, report, style), open_checkpoint(source) as checkpoint:
        mapped, plans = Request(**options).apply(checkpoint)
        problems = unrepresentable(mapped.specs, name)
        if problems:
            raise MappingError(problems)
        notes = [note for plan in plans for note in plan.problems]
        outcome |= as_json(plans, notes, peak_memory(mapped.specs, max_memory))
        progress = Progress("converting", mapped.nbytes)
        try:
            saved = save(
                mapped,
                target,
                format=name,
                overwrite=overwrite,
                max_memory=max_memory,
                shard_nbytes=shard_nbytes,
                progress=progress,
            )
        finally:
            progress.close()
        outcome |= {
            "status": "converted",
            "format": saved.format,
            "files": [str(path) for path in saved.files],
            "tensors": saved.tensors,
            "nbytes": saved.nbytes,
            "seconds": round(time.monotonic() - started, 3),
        }
    for entry, reason in checkpoint.unsupported.items():
        hint(f"not a tensor, not converted: {entry}: {reason}")
    doubtful = sum(bool(step.doubts) for plan in plans for step in plan.steps)
    hint(
        f"wrote {target}: {count(saved.tensors, 'tensor')}, {size(saved.nbytes)}, "
        f"{outcome['seconds']:.2f} s"
        + (f"; shapes cannot confirm {doubtful} of them: `converter verify`" if doubtful else "")
    )


def format_of(target: Path) -> str:
    """The format that the target's suffix stands for; a usage error when it stands for none."""
    from converter.errors import TargetError
    from converter.formats import for_target

    try:
        return str(for_target(target).name)
    except TargetError as error:
        raise click.UsageError(str(error)) from error


@contextmanager
def reported(outcome: dict[str, Any], report: Path | None, style: str) -> Iterator[None]:
    """Say as JSON how it went, whatever happens inside.

    The report is first written at the start: a place that cannot be written to is found before
    the work, and a run that was killed leaves a report that says `running`.
    """
    from converter.errors import ConverterError, MappingError

    outcome |= {"schema_version": 1, "converter": __version__, "status": "running"}
    if report:
        check_report(report, outcome)
        write_report(report, outcome)
    try:
        yield
    except BaseException as error:
        outcome |= {"status": "failed", "error": str(error) or type(error).__name__}
        if isinstance(error, ConverterError):
            outcome["code"] = error.code
        if isinstance(error, MappingError):
            outcome["diagnostics"] = [diagnostic_json(each) for each in error.diagnostics]
        raise
    finally:
        if report:
            write_report(report, outcome)
        if style == "json":
            say_json(outcome)


def check_report(path: Path, outcome: dict[str, Any]) -> None:
    """Refuse to put the report where something else is, or will be."""
    from converter.errors import TargetExistsError

    if str(path) in (outcome["source"], outcome["target"]):
        raise click.UsageError("--report names the source or the target")
    if path.is_file():
        with path.open("rb") as stream:
            if stream.read(1) not in (b"", b"{"):
                raise TargetExistsError("this is no report, and is not replaced by one", path=path)


def write_report(path: Path, outcome: dict[str, Any]) -> None:
    """Write the report."""
    from converter.errors import TargetError

    try:
        path.write_text(json_text(outcome) + "\n", encoding="utf-8")
    except OSError as error:
        raise TargetError(f"the report cannot be written: {error.strerror}", path=path) from error
