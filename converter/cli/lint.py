"""`converter lint`: is a mapping file right, and could it be better?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from converter.cli.output import count, hint, say
from converter.cli.reports import judging, report, uri, verdict
from converter.errors import Diagnostic

SUFFIXES = ("*.yaml", "*.yml")


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--fix", is_flag=True, help="Repair what has only one answer.")
@click.option("--diff", "show_patch", is_flag=True, help="Print the repairs, and make none.")
@judging
def lint(files: Sequence[str], fix: bool, show_patch: bool, output: str) -> int:
    """Check mapping files: FILE is a file, a folder of them, or a shipped name."""
    if show_patch and output not in ("full", "concise"):
        raise click.UsageError("--diff prints a patch, which goes with no --output-format for it")
    paths = list(listed(files))
    found: list[Diagnostic] = []
    broken = 0
    for path in paths:
        before, after = checked(path, fix=fix, show_patch=show_patch)
        found += after
        broken += any(each.severity == "error" for each in before)
    report(found, output, paths, hint if show_patch else say)
    code = verdict(found, count(len(paths), "file"))
    return int(broken > 0) if show_patch else code


def listed(names: Sequence[str]) -> Iterator[Path]:
    """Every mapping file that is meant, each once."""
    from converter.language.load import find

    seen: set[Path] = set()
    for name in names:
        folder = Path(name)
        below = sorted(each for suffix in SUFFIXES for each in folder.rglob(suffix))
        for path in below if folder.is_dir() else [find(name)]:
            if path not in seen:
                seen.add(path)
                yield path


def checked(
    path: Path, *, fix: bool, show_patch: bool
) -> tuple[list[Diagnostic], list[Diagnostic]]:
    """The findings about a file before and after repairs, which are made or printed."""
    from converter.language.fix import patch, repair
    from converter.language.lint import lint as findings

    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        unread = Diagnostic("MAP001", f"cannot be read: {error}", path=path, line=1, column=1)
        return [unread], [unread]
    before = findings(text, path)
    if not (fix or show_patch):
        return before, before
    better, after = repair(text, path, findings)
    if better != text and show_patch:
        say(patch(text, better, uri(path)).rstrip("\n"))
    elif better != text:
        write(path, better)
        hint(f"{path}: repaired {count(len(before) - len(after), 'finding')}")
    return before, after


def write(path: Path, text: str) -> None:
    """Replace the file's text."""
    from converter.errors import TargetError

    try:
        path.write_bytes(text.encode())
    except OSError as error:
        raise TargetError(f"cannot be repaired: {error.strerror}", path=path) from error
