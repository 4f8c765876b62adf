"""A report as one page for people."""

from __future__ import annotations

from html import escape
from typing import Any

from converter.cli.output import json_text


def page(record: dict[str, Any]) -> str:
    """The record as HTML, complete in itself."""
    return f"<pre>{escape(json_text(record))}</pre>"
