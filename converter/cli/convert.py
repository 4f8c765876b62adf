"""`converter convert`: source, mapping, target."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli.options import (
    SOURCE,
    Bytes,
    FormatName,
    Request,
    check_template,
    mapping_options,
    template_option,
    templated,
)
from converter.cli.output import (
    Progress,
    count,
    format_option,
    hint,
    json_text,
    say_json,
    size,
)
from converter.cli.plan import as_json, unrepresentable
from converter.cli.record import recorded, report_option
from converter.cli.reports import judging, report

if TYPE_CHECKING:
    from converter.plan import Plan
    from converter.tensors import Checkpoint, Templated

SHOWN = 3  # tensors that are still a template's; the report has all


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
    "--resume",
    is_flag=True,
    help="Keep finished shards when this run is stopped, and take over those that one before kept.",
)
@template_option
@report_option
@format_option
@judging
def convert(  # noqa: PLR0913 - one parameter an option
    source: Path,
    target: Path,
    to: str | None,
    overwrite: bool,
    max_memory: int | None,
    shard_nbytes: int | None,
    resume: bool,
    template: Path | None,
    reports: Sequence[Path],
    style: str,
    output: str,
    **options: Any,
) -> None:
    """Convert SOURCE to TARGET through a mapping; without one, only the format changes."""
    from converter.engine import peak_memory, save
    from converter.errors import MappingError

    name = to or format_of(target)
    check_template(template, name)
    check_resume(name, shard_nbytes, resume=resume)
    request = Request(**options)
    started = time.monotonic()
    told = {"to": name, "shard_size": shard_nbytes, "template": template and str(template)}
    record: dict[str, Any] = {
        "command": "convert",
        "source": str(source),
        "target": str(target),
        "options": request.given() | {key: value for key, value in told.items() if value},
    }
    with (
        said(record, style if output == "full" else "human"),
        recorded(record, reports),
        request.open(source) as checkpoint,
        ExitStack() as opened,
    ):
        finished = recorder(checkpoint) if reports else None
        told_all = reports or style == "json"
        mapped: Checkpoint = checkpoint
        plans: list[Plan] = []
        if told_all or request.given() or not checkpoint:  # else only the format changes
            mapped, plans = request.apply(checkpoint, strict=False)
        if told_all:
            notes = [note for plan in plans for note in plan.problems]
            record |= as_json(plans, notes, peak_memory(plans[-1].specs, max_memory))
        for plan in plans:
            plan.check()
        doubtful = unproved(plans)
        filled = templated(mapped, template)
        filling = opened.enter_context(filled.checkpoint)
        problems = unrepresentable(filling.specs, name)
        if problems:
            raise MappingError(problems)
        progress = Progress("converting", filling.nbytes)
        try:
            saved = save(
                filling,
                target,
                format=name,
                overwrite=overwrite,
                max_memory=max_memory,
                shard_nbytes=shard_nbytes,
                resume=origin(record, checkpoint, plans) if resume else None,
                progress=progress,
            )
        finally:
            progress.close()
        if finished:
            record |= finished(plans, filled, saved.files)
        record |= {
            "status": "converted",
            "format": saved.format,
            "files": [str(path) for path in saved.files],
            "tensors": saved.tensors,
            "nbytes": saved.nbytes,
            "resumed": saved.resumed,
            "kept": list(filled.kept),
            "seconds": round(time.monotonic() - started, 3),
        }
    say_rest(checkpoint, filled, plans, output)
    hint(
        f"wrote {target}: {count(saved.tensors, 'tensor')}, {size(saved.nbytes)}, "
        f"{record['seconds']:.2f} s"
        + (f"; {saved.resumed} of them from a run that was stopped" if saved.resumed else "")
        + (f"; nothing confirms the layout of {doubtful}: `converter verify`" if doubtful else "")
    )


def say_rest(checkpoint: Checkpoint, filled: Templated, plans: Sequence[Plan], output: str) -> None:
    """What was found, what of the source was not converted, and what is still a template's."""
    if output != "full":
        report([note for plan in plans for note in plan.problems], output)
    for entry, reason in checkpoint.unsupported.items():
        hint(f"not a tensor, not converted: {entry}: {reason}")
    if filled.kept:
        more = ", …" if filled.kept[SHOWN:] else ""
        names = ", ".join(filled.kept[:SHOWN])
        hint(f"still as in the template: {count(len(filled.kept), 'tensor')}: {names}{more}")


def check_resume(name: str, shard_nbytes: int | None, *, resume: bool) -> None:
    """A usage error when there is nothing that `--resume` could keep."""
    if resume and not shard_nbytes and name != "sharded":
        raise click.UsageError("--resume is for a target of several files: with --shard-size")


def unproved(plans: Sequence[Plan]) -> int:
    """How many steps neither shapes nor probes confirm; `MappingError` when a probe refuses."""
    if not plans:
        return 0
    from converter.probes import checked, proofs

    return sum(
        bool(step.doubts) and step.target not in proved
        for plan, ran in zip(plans, checked(plans), strict=True)
        for proved in [proofs(plan, ran)]
        for step in plan.steps
    )


def recorder(
    checkpoint: Checkpoint,
) -> Callable[[Sequence[Plan], Templated, Sequence[Path]], dict[str, Any]]:
    """What makes the record of a conversion that begins now, when it is done."""
    from converter.report import Files, converted

    inputs = Files.of(checkpoint.files)

    def finished(plans: Sequence[Plan], filled: Templated, files: Sequence[Path]) -> dict[str, Any]:
        return converted(inputs.also(filled.checkpoint.files), plans, files, filled.keys)

    return finished


def origin(record: dict[str, Any], checkpoint: Checkpoint, plans: Sequence[Plan]) -> str:
    """What the target's values follow from: the source's files as they are, mappings, options."""
    from converter.batch.quick import stamp_of
    from converter.report import mapping

    stamps = [(str(path.resolve()), *stamp_of(path)) for path in checkpoint.files]
    told = record["source"], record["options"], [mapping(plan.rules)["sha256"] for plan in plans]
    return json_text([stamps, *told])


def format_of(target: Path) -> str:
    """The format that the target's suffix stands for; a usage error when it stands for none."""
    from converter.errors import TargetError
    from converter.formats import for_target

    try:
        return str(for_target(target).name)
    except TargetError as error:
        raise click.UsageError(str(error)) from error


@contextmanager
def said(record: dict[str, Any], style: str) -> Iterator[None]:
    """Say the record as JSON when that is wanted, whatever happens inside."""
    try:
        yield
    finally:
        if style == "json":
            say_json(record)
