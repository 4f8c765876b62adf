"""Names that come from files or go into them: data, which may be hostile, and never paths."""

from __future__ import annotations

import re

MAX_NAME = 4_096  # bytes
MAX_SHOWN = 200  # characters
_UNPRINTABLE = "[\x00-\x1f\x7f-\x9f\ud800-\udfff]"


def name_problem(name: str) -> str:
    """What is wrong with the name of a tensor, as the end of "its name …"; "" when nothing is."""
    if name.isascii() and name.isprintable() and 0 < len(name) <= MAX_NAME:
        return ""  # as nearly always
    if not name:
        return "is empty"
    if re.search(_UNPRINTABLE, name):
        return "has a control character, or is not Unicode"
    return f"is longer than {MAX_NAME} bytes" if len(name.encode()) > MAX_NAME else ""


def shown(text: str) -> str:
    """Text from a file, fit for a message."""
    text = text[:MAX_SHOWN]
    return repr(text)[1:-1] if re.search(_UNPRINTABLE, text) else text
