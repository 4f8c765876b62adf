"""Repairs of a mapping file: only what a finding is about is replaced, all else stays as it is."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from converter.errors import Diagnostic

ROUNDS = 4  # a repaired word may show what is wrong behind it
_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")  # as YAML counts lines


def repair(
    text: str, path: Path, lint: Callable[[str, Path], list[Diagnostic]]
) -> tuple[str, list[Diagnostic]]:
    """The repaired text, and what is left to say about it."""
    found = lint(text, path)
    for _ in range(ROUNDS):
        better = fixed(text, found)
        if better == text:
            break
        text, found = better, lint(better, path)
    return text, found


def fixed(text: str, found: Iterable[Diagnostic]) -> str:
    """The text with the fixes of these findings; of two for one place, the first."""
    mark = "\ufeff" if text.startswith("\ufeff") else ""  # a byte order mark stays first
    text = text.removeprefix(mark)
    starts = [0, *(match.end() for match in _BREAK.finditer(text))]
    newline = "\r\n" if "\r\n" in text else "\n"
    before = len(text)
    edits = {
        (starts[each.line - 1] + each.column - 1, each.end_column - each.column): each.fix
        for each in reversed(list(found))
        if each.fix is not None and 1 <= each.line <= len(starts)
    }
    for (start, length), new in sorted(edits.items(), reverse=True):
        if start + length <= before:
            text = text[:start] + new.replace("\n", newline) + text[start + length :]
            before = start
    return mark + text


def patch(before: str, after: str, name: str) -> str:
    """The difference as a patch that `patch -p1` and `git apply` take."""
    old, new = (re.findall("[^\n]*\n|[^\n]+", text) for text in (before, after))
    lines = difflib.unified_diff(old, new, f"a/{name}", f"b/{name}")
    end = "\n\\ No newline at end of file\n"
    return "".join(line if line.endswith("\n") else line + end for line in lines)
