"""The table of dtypes is what the conformance suite proves, of every format that there is."""

from __future__ import annotations

import ast
from pathlib import Path

from converter.formats import FORMATS
from tests.formats.dtypes import HELD, page

HERE = Path(__file__).parent
SUITES = {"FormatConformance", "ReadingConformance"}


def proved() -> set[str]:
    """The formats whose tests are a subclass of a suite, or of such a class in the same file."""
    found = set()
    for path in HERE.glob("test_*.py"):
        known = set(SUITES)
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and {ast.unparse(b) for b in node.bases} & known:
                known.add(node.name)
                facts = {
                    ast.unparse(n.targets[0]): n for n in node.body if isinstance(n, ast.Assign)
                }
                if "format" in facts:
                    found.add(ast.literal_eval(facts["format"].value))
    return found


def test_every_format_is_declared_and_proved() -> None:
    assert set(HELD) == {row.name for row in FORMATS} == proved()


def test_the_page_is_current() -> None:
    """`python -m tests.formats.dtypes > docs/dtypes.md`"""
    assert (HERE.parents[1] / "docs" / "dtypes.md").read_text("utf-8") == page()
