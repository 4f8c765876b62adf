"""What people see: sizes, tables, diagnostics with a caret, progress.

Data goes to stdout; progress, hints and errors to stderr.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import click

from converter.errors import Diagnostic

SHOWN = 20  # diagnostics of one kind that are written out in full
PLAIN_SECONDS = 5.0  # between progress lines where there is no terminal
BAR_SECONDS = 0.1
BAR = 28

_ASCII = str.maketrans({"→": "->", "·": "-", "…": "...", "█": "#", "░": "."})
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}
_CONTROL_BUT_LINES = {code: text for code, text in _CONTROL.items() if chr(code) not in "\n\t"}

format_option = click.option(
    "--format",
    "style",
    type=click.Choice(["human", "json"]),
    default="human",
    show_default=True,
    help="What is printed on stdout.",
)


def ascii_safe(text: str, stream: Any = None) -> str:
    """The text in characters that the stream can print, and that command no terminal.

    Names and metadata come from files that others wrote: an escape code in one must not act.
    """
    text = text.translate(_CONTROL_BUT_LINES)
    encoding = getattr(stream or sys.stderr, "encoding", None) or "ascii"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(_ASCII).encode(encoding, "replace").decode(encoding)
    return text


def say(text: str = "") -> None:
    """Print data."""
    _echo(ascii_safe(text, sys.stdout))


def hint(text: str) -> None:
    """Print what is not data."""
    _echo(ascii_safe(text), err=True)


def _echo(text: str, *, err: bool = False, nl: bool = True) -> None:
    try:
        click.echo(text, err=err, nl=nl)
    except BrokenPipeError:  # the reader has seen enough; the work and its verdict go on
        stream = sys.stderr if err else sys.stdout
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def say_json(data: Any) -> None:
    """Print one JSON document."""
    _echo(json_text(data))


def json_text(data: Any) -> str:
    """One JSON document; numbers that JSON has no word for are "NaN", "Infinity", "-Infinity"."""
    return json.dumps(finite(data), indent=2, allow_nan=False)


def finite(data: Any) -> Any:
    """The same data, its numbers that JSON has no word for as strings."""
    if isinstance(data, dict):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return "NaN" if math.isnan(data) else "Infinity" if data > 0 else "-Infinity"
    return data


@lru_cache  # of many tensors, few have a size of their own
def size(nbytes: float) -> str:
    """Bytes for people, in powers of 1000: `553.4 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 999.5:  # noqa: PLR2004 - the next would print as 1000
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} TB"


def count(number: int, noun: str) -> str:
    """`1 tensor`, `32 tensors`."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def table(rows: Iterable[Sequence[str]], *, right: Iterable[int] = (), indent: str = "") -> None:
    """Print columns, aligned; those in `right` to the right."""
    columns = []
    for index, column in enumerate(zip(*rows, strict=True)):
        cells = [cell if cell.isprintable() else cell.translate(_CONTROL) for cell in column]
        pad, width = str.rjust if index in right else str.ljust, max(map(len, cells))
        columns.append([pad(cell, width) for cell in cells])
    lines = [(indent + "  ".join(line)).rstrip() for line in zip(*columns, strict=True)]
    if lines:
        say("\n".join(lines))  # at once: there may be 100,000


def print_diagnostics(
    diagnostics: Sequence[Diagnostic], echo: Callable[[str], None] = hint
) -> None:
    """All of them, with the line they are about; many of one kind are listed by name only."""
    _lines.cache_clear()  # files may have changed since
    shown: dict[str, int] = {}
    rest: dict[str, list[Diagnostic]] = {}
    for diagnostic in diagnostics:
        shown[diagnostic.code] = shown.get(diagnostic.code, 0) + 1
        if shown[diagnostic.code] <= SHOWN:
            echo(f"{diagnostic}{_caret(diagnostic)}")
        else:
            rest.setdefault(diagnostic.code, []).append(diagnostic)
    for code, others in rest.items():
        echo(f"and {len(others)} more {code}:")
        for other in others:
            echo(f"  {other.tensor or other.message}")
    kinds = Counter(diagnostic.severity for diagnostic in diagnostics)
    if kinds:
        echo(", ".join(count(number, kind) for kind, number in sorted(kinds.items())))


def _caret(diagnostic: Diagnostic) -> str:
    if diagnostic.path is None or not diagnostic.line:
        return ""
    lines = _lines(diagnostic.path)
    if diagnostic.line > len(lines):
        return ""
    line = lines[diagnostic.line - 1]
    width = min(diagnostic.end_column, len(line) + 1) - diagnostic.column
    marker = " " * (diagnostic.column - 1) + "^" * max(1, width)
    gutter = " " * len(str(diagnostic.line))
    return f"\n  {diagnostic.line} | {line}\n  {gutter} | {marker}"


@lru_cache(maxsize=64)
def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []


class Progress:
    """Bytes done of a total: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, verb: str, total: int) -> None:
        self.verb = verb
        self.total = max(total, 1)
        self.done = 0
        self.bar = sys.stderr.isatty()
        self.next = time.monotonic() + (BAR_SECONDS if self.bar else PLAIN_SECONDS)

    def __call__(self, name: str, nbytes: int) -> None:
        """Note that `nbytes` of a tensor are done."""
        self.done += nbytes
        if time.monotonic() >= self.next:
            self.draw(name)
            self.next = time.monotonic() + (BAR_SECONDS if self.bar else PLAIN_SECONDS)

    def draw(self, name: str) -> None:
        """Show the state."""
        text = f"{self.verb} {100 * self.done // self.total:3d} %  {size(self.done)}"
        if not self.bar:
            hint(f"{text} of {size(self.total)}  {name}")
            return
        full = BAR * self.done // self.total
        bar = ascii_safe("█" * full + "░" * (BAR - full))
        _echo(f"\r{bar} {text}  {ascii_safe(name[:40]):40}", err=True, nl=False)

    def close(self) -> None:
        """Take the bar away."""
        if self.bar:
            _echo("\r" + " " * (BAR + 80) + "\r", err=True, nl=False)
