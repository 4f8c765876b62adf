"""`converter verify`: is the target what the mapping makes of the source, or what was written?"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from converter.cli.differences import VERIFY, as_json, finding, print_differences, ranked
from converter.cli.options import (
    SOURCE,
    Request,
    mapping_options,
    target_names_option,
    template_option,
    templated,
)
from converter.cli.output import Progress, count, format_option, hint, say_json, size
from converter.cli.record import digested, recorded, report_option
from converter.cli.reports import diagnostic_json, judging, report

FRAMEWORKS = ("torch", "tensorflow", "safetensors", "keras")


@click.command()
@click.argument("paths", type=SOURCE, nargs=-1, required=True, metavar="[SOURCE] TARGET")
@mapping_options
@target_names_option
@template_option
@click.option(
    "--with",
    "framework",
    type=click.Choice(FRAMEWORKS),
    help="Also load the target with the real framework, in a process of its own.",
)
@report_option
@format_option
@judging
def verify(  # noqa: PLR0913 - one parameter an option
    paths: Sequence[Path],
    target_names: str | None,
    template: Path | None,
    framework: str | None,
    reports: Sequence[Path],
    style: str,
    output: str,
    **options: Any,
) -> int:
    """Read SOURCE and TARGET again and compare every value, bit for bit, through the mapping.

    Without SOURCE, --report names what `convert --report` wrote, and every bit of TARGET is
    compared with that.
    """
    from converter import extras

    if framework:
        extras.require(framework)
    if len(paths) > 2:  # noqa: PLR2004 - SOURCE and TARGET
        raise click.UsageError("too many arguments: expected [SOURCE] TARGET")
    request = Request(**options)
    if len(paths) == 1:
        if request.given() or target_names or template or len(reports) != 1:
            raise click.UsageError(
                "without SOURCE, one --report and no mapping says what to expect"
            )
        return by_report(paths[0], reports[0], framework, style, output)
    return by_source(
        paths[0], paths[1], request, template, target_names, framework, reports, style, output
    )


def by_report(target: Path, path: Path, framework: str | None, style: str, output: str) -> int:
    """Compare a target with the record of the conversion that wrote it."""
    from converter.oracles import load_with
    from converter.report import check, read

    record = read(path)
    wrong = check(record, target)
    if framework and not wrong:
        wrong = [finding(row, target) for row in load_with(framework, target) if not row.equal]
    if style == "json" and output == "full":
        say_json({"equal": not wrong, "diagnostics": [diagnostic_json(each) for each in wrong]})
    elif wrong or output != "full":
        report(wrong, output, [target])
    else:
        nbytes = size(sum(row["nbytes"] for row in record["outputs"]))
        files = count(len(record["outputs"]), "file")
        also = f", and as {framework} reads it" if framework else ""
        hint(f"{target} is what was written: {files}, {nbytes}, equal bit for bit{also}")
    return 1 if wrong else 0


def by_source(  # noqa: PLR0913 - the options of the command
    source: Path,
    target: Path,
    request: Request,
    template: Path | None,
    target_names: str | None,
    framework: str | None,
    reports: Sequence[Path],
    style: str,
    output: str,
) -> int:
    """Compare a target with what the mapping makes of the source."""
    from converter.compare import diff
    from converter.formats import open_checkpoint
    from converter.oracles import load_with
    from converter.report import planned

    asked = {"target_names": target_names, "template": template, "with": framework}
    record: dict[str, Any] = {
        "command": "verify",
        "source": str(source),
        "target": str(target),
        "options": request.given() | {key: str(value) for key, value in asked.items() if value},
    }
    with (
        recorded(record, reports),
        request.open(source) as first,
        open_checkpoint(target, names=target_names) as second,
        digested(record, reports, first, second),
        ExitStack() as stack,
    ):
        mapped, plans = request.apply(first)
        expected = stack.enter_context(templated(mapped, template).checkpoint)
        progress = Progress("verifying", expected.nbytes)
        try:
            found = diff(expected, second, progress=progress)
            rows = [row for row in found if row.status != "extra" or not request.leaves(row.name)]
        finally:
            progress.close()
        if framework:
            rows += load_with(framework, target)
        rows = ranked(rows)
        wrong = [row for row in rows if not row.equal]
        told = {"equal": not wrong, "tensors": [as_json(row, VERIFY) for row in rows]}
        if reports:
            record |= {"status": "different" if wrong else "equal", **told, **planned(plans)}
    if output != "full":
        report([finding(row, target) for row in wrong], output, [target])
    elif style == "json":
        say_json(told)
    elif wrong:
        print_differences(wrong, len(rows), VERIFY)
    else:
        also = f", and as {framework} reads it" if framework else ""
        equal = count(len(expected), "tensor")
        hint(f"{target} is right: {equal}, {size(expected.nbytes)}, equal bit for bit{also}")
    return 1 if wrong else 0
