"""`converter plan`: the ledger and every problem; reads no values and makes no file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli.options import SOURCE, Bytes, FormatName, Request, mapping_options
from converter.cli.output import (
    count,
    format_option,
    print_diagnostics,
    say,
    say_json,
    size,
    table,
)
from converter.cli.record import recorded, report_option
from converter.cli.reports import diagnostic_json, judging, report

if TYPE_CHECKING:
    from converter.plan import Plan, Step
    from converter.probes import Outcome

LISTED = 8  # rows of a list in the summary; --all shows the rest


@click.command()
@click.argument("source", type=SOURCE)
@mapping_options
@click.option("--all", "everything", is_flag=True, help="List every step, drop and doubt.")
@click.option("--to", "target", type=FormatName(), help="Also ask whether this format can hold it.")
@click.option("--max-memory", type=Bytes(), help="The limit to estimate for, e.g. 128MiB.")
@report_option
@format_option
@judging
def plan(  # noqa: C901, PLR0913 - one parameter an option, and one branch a style
    source: Path,
    everything: bool,
    target: str | None,
    max_memory: int | None,
    reports: Sequence[Path],
    style: str,
    output: str,
    **options: Any,
) -> int:
    """Work out a conversion of SOURCE from headers alone: steps, drops, problems, memory."""
    from converter.engine import peak_memory
    from converter.errors import MappingError
    from converter.probes import outcomes
    from converter.report import Files

    request = Request(**options)
    record: dict[str, Any] = {"command": "plan", "source": str(source), "options": request.given()}
    with recorded(record, reports), request.open(source) as checkpoint:
        _, plans = request.apply(checkpoint, strict=False)
        memory = peak_memory(plans[-1].specs, max_memory)
        problems = [problem for one in plans for problem in one.problems]
        ran = [outcomes(one.rules) for one in plans]
        problems += [each.problem for found in ran for each in found if each.problem]
        if target and not plans[-1].errors:
            problems += unrepresentable(plans[-1].specs, target)
        rejected = any(problem.severity == "error" for problem in problems)
        if reports:
            record |= as_json(plans, problems, memory)
            record |= {
                "status": "rejected" if rejected else "planned",
                "format": checkpoint.format,
                "inputs": Files.of(checkpoint.files).listed(),
            }
        if output != "full":
            report(problems, output)
        elif style == "json":
            say_json(as_json(plans, problems, memory))
        else:
            for one, found in zip(plans, ran, strict=True):
                print_plan(one, found, everything=everything)
            say(f"memory: about {memory / (1 << 20):.0f} MiB at the peak")
    if rejected:
        if style == "json" or output != "full":
            return 1
        raise MappingError(problems)
    if output == "full":
        print_diagnostics(problems)
    return 0


def unrepresentable(specs: Any, name: str) -> list[Any]:
    """A diagnostic for each tensor that a format cannot hold."""
    from converter import formats
    from converter.errors import Diagnostic

    module = formats.named(name).load()
    return [
        Diagnostic(
            "PLN230",
            f"{name} cannot hold '{tensor}': {problem}",
            tensor=tensor,
            found=str(spec),
            hint="drop it (--drop), or choose another format",
        )
        for tensor, spec in specs.items()
        if (problem := module.problem(tensor, spec))
    ]


def print_plan(plan: Plan, ran: Sequence[Outcome], *, everything: bool) -> None:
    """The ledger for people."""
    from converter.probes import proofs

    rules = plan.rules
    if rules.name:
        models = " → ".join(side for side in (rules.source_model, rules.target_model) if side)
        say(f"{rules.name}: {models}" if models else rules.name)
    nbytes = sum(spec.nbytes for spec in plan.sources.values())
    say(
        f"source: {count(len(plan.sources), 'tensor')}, {size(nbytes)}    "
        f"target: {count(len(plan.steps), 'tensor')}, {size(plan.target_nbytes)}"
    )
    mapped = len(plan.steps) - len(plan.made)
    wrong = f"  problems {len(plan.errors)}" if plan.errors else ""
    left = f"  left alone {len(plan.left)}" if plan.left else ""
    say(f"mapped {mapped}  dropped {len(plan.dropped)}  made {len(plan.made)}{left}{wrong}")
    if everything:
        print_rows("steps", [step_row(step) for step in plan.steps], everything=True)
        print_rows("left alone", [(name,) for name in plan.left], everything=True)
    print_rows("dropped", list(plan.dropped.items()), everything=everything)
    made = [(step.target, str(step.spec)) for step in plan.made]
    print_rows("made", made, everything=everything)
    changed = [(step.target, step.exactness) for step in plan.steps if step.exactness != "exact"]
    print_rows("not exact", changed, everything=everything)
    proved = {target: f"proved by {probe}" for target, probe in proofs(plan, ran).items()}
    doubts = [
        (step.target, "; ".join(step.doubts), proved.get(step.target, "unproved"))
        for step in sorted(plan.steps, key=lambda step: step.target in proved)
        if step.doubts
    ]
    print_rows("shapes cannot confirm", doubts, everything=everything)


def step_row(step: Step) -> tuple[str, ...]:
    """One step as a row: sources → target, its spec, its ops."""
    ops = " · ".join(f"{op.name} {op.to_file()}" for op in getattr(step.rule, "ops", ()))
    return " + ".join(step.sources) or "(constant)", "→", step.target, str(step.spec), ops


def print_rows(title: str, rows: Sequence[tuple[str, ...]], *, everything: bool) -> None:
    """A titled list, cut unless everything is wanted."""
    if not rows:
        return
    say(f"{title}: {len(rows)}")
    shown = rows if everything else rows[:LISTED]
    table(shown, indent="  ")
    if len(shown) < len(rows):
        say(f"  … and {len(rows) - len(shown)} more (--all)")


def as_json(plans: Sequence[Plan], problems: Sequence[Any], memory: int) -> dict[str, Any]:
    """The plan for machines."""
    from converter.report import planned

    return {
        "schema_version": 1,
        "peak_memory": memory,
        **planned(plans),
        "diagnostics": [diagnostic_json(problem) for problem in problems],
    }
