"""`--report`: what a command did, in a file: a JSON document, or a page for people.

It holds no time and no path but those that were given, so that the same inputs give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter import __version__
from converter.cli.output import finite, json_text
from converter.cli.reports import diagnostic_json

if TYPE_CHECKING:
    from converter.tensors import Checkpoint

PAGES = (".html", ".htm")
VOLATILE = ("seconds",)  # differs from run to run
MARK = "<!doctype html>\n<!-- a report of converter {command} -->\n"

report_option = click.option(
    "--report",
    "reports",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write what was done to FILE.json, or as a page to FILE.html; repeatable.",
)


@contextmanager
def recorded(record: dict[str, Any], reports: Sequence[Path]) -> Iterator[None]:
    """Fill the record of a command with how it ended, and write it, whatever happens inside.

    It is first written at the start: a place that cannot be written to is found before the work,
    and a run that was killed leaves a report that says `running`.
    """
    from converter.errors import ConverterError, MappingError

    facts = {"schema_version": 1, "converter": __version__, "status": "running"}
    rest = dict(record)
    record.clear()
    record.update(facts | rest)
    for path in reports:
        check_report(path, record)
    for path in reports:
        write_report(path, record)
    try:
        yield
    except BaseException as error:
        record |= {"status": "failed", "error": str(error) or type(error).__name__}
        if isinstance(error, ConverterError):
            record["code"] = error.code
        if isinstance(error, MappingError):
            record["diagnostics"] = [diagnostic_json(each) for each in error.diagnostics]
        raise
    finally:
        for path in reports:
            write_report(path, record)


@contextmanager
def digested(
    record: dict[str, Any], reports: Sequence[Path], *checkpoints: Checkpoint
) -> Iterator[None]:
    """Add the digests of all files behind a source and a target, as they were at the start."""
    if not reports:
        yield
        return
    from converter.report import Files  # slow to import

    files = [Files.of(each.files) for each in checkpoints]
    yield
    for key, each in zip(("inputs", "outputs"), files, strict=False):
        record[key] = each.digested()


def check_report(path: Path, record: dict[str, Any]) -> None:
    """Refuse to put the report where something else is, or will be, or another command's."""
    from converter.errors import TargetExistsError

    given = (record[key] for key in ("source", "target") if key in record)
    if path.resolve() in [Path(each).resolve() for each in given]:
        raise click.UsageError(f"--report {path} is what is read or written")
    if path.is_file() and path.stat().st_size and not _is_report(path, record["command"]):
        raise TargetExistsError(
            f"this is no report of `converter {record['command']}`, and is not replaced by one",
            path=path,
        )


def _is_report(path: Path, command: str) -> bool:
    if path.suffix in PAGES:
        mark = MARK.format(command=command).encode()
        with path.open("rb") as stream:
            return stream.read(len(mark)) == mark
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and "converter" in found and found.get("command") == command


def write_report(path: Path, record: dict[str, Any]) -> None:
    """Write the report, whole; to a pipe or a link as it is."""
    from converter.errors import TargetError
    from converter.files import Publication

    kept = {key: value for key, value in record.items() if key not in VOLATILE}
    if path.suffix in PAGES:
        from converter.cli.page import page

        text = MARK.format(command=record["command"]) + page(finite(kept))
    else:
        text = json_text(kept) + "\n"
    try:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
            return
    except OSError as error:
        raise TargetError(f"the report cannot be written: {error.strerror}", path=path) from error
    publication = Publication([path], overwrite=True)
    try:
        publication.files[0].write(0, text.encode(errors="backslashreplace"))
        publication.commit()
    finally:
        publication.abort()
