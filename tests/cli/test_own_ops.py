"""An op that an installed package brings, through every command that ours go through."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from converter.ops import OPS
from tests.cli import checkpoints

DOCUMENT = Path(__file__).parents[2] / "docs" / "language.md"
MAPPING = """\
mapping: 1
about: a table whose first row goes last
rules:
  - {{source: table, target: rolled, ops: [{op}]}}
tests:
  - {{source: table, target: rolled, in: [1, 2, 3], out: [2, 3, 1]}}
"""


def install(folder: Path, package: str, points: str, code: str) -> None:
    """What installing a package leaves behind: its module, and what is known of it."""
    facts = folder / f"{package}-1.0.dist-info"
    facts.mkdir(parents=True)
    (folder / f"{package}.py").write_text(code)
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(f"[converter.ops]\n{points}\n")


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A folder of packages that Python finds, and nothing that was found before."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(OPS, "_brought", None)
    importlib.invalidate_caches()
    yield folder
    for path in folder.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture
def roll(packages):
    """The package with the op that the documents show."""
    text = DOCUMENT.read_text(encoding="utf-8")
    code = text[text.index("from converter.layout import concatenate") :].split("```")[0]
    install(packages, "rolling", "roll = rolling:Roll", code)
    return packages


@pytest.fixture
def table(converter, folder):
    """A file of one table, and a mapping that rolls it."""
    checkpoints.write(folder / "table.pt", {"table": np.arange(5, dtype="f4")})
    (folder / "roll.yaml").write_text(MAPPING.format(op="roll: {by: 1}"))
    return folder


def test_it_is_listed(roll, converter):
    assert "move the first rows to the end" in converter("ops").out
    shown = converter("ops", "roll").out
    assert "- roll: {by: 1}" in shown
    assert "way back: roll: {by: -1}" in shown
    assert "by: " in shown
    assert "## roll" in converter("ops", "--format", "markdown").out
    schema = json.loads(converter("schema").out)
    assert "'roll'" in str(schema)
    assert "## roll" not in (DOCUMENT.parent / "ops.md").read_text(encoding="utf-8")


def test_it_is_planned_applied_and_undone(roll, converter, table):
    assert converter("plan", "table.pt", "-m", "roll.yaml").code == 0
    assert (
        "roll: {by: 1}  float32 [5]"
        in converter("why", "rolled", "table.pt", "-m", "roll.yaml").out
    )
    assert converter("convert", "table.pt", "rolled.pt", "-m", "roll.yaml").code == 0
    assert checkpoints.read(table / "rolled.pt")["rolled"].tolist() == [1, 2, 3, 4, 0]
    assert converter("convert", "rolled.pt", "back.pt", "-m", "roll.yaml", "--reverse").code == 0
    assert checkpoints.read(table / "back.pt")["table"].tolist() == [0, 1, 2, 3, 4]
    assert converter("roundtrip", "table.pt", "-m", "roll.yaml").code == 0
    assert converter("lint", "roll.yaml").code == 0
    assert converter("mappings", "test", "roll.yaml").code == 0


@pytest.mark.usefixtures("roll")
@pytest.mark.parametrize(
    ("op", "code", "message"),
    [
        ("rol: {by: 1}", "MAP102", "did you mean 'roll'"),
        ("roll: {bye: 1}", "MAP103", "unknown key 'bye'"),
        ("roll: {by: one}", "MAP103", "by"),
        ("roll: {}", "MAP103", "'by' is missing"),
    ],
)
def test_mistakes_are_those_of_any_op(op, code, message, converter, table):
    (table / "roll.yaml").write_text(MAPPING.format(op=op))
    result = converter("lint", "roll.yaml")
    assert result.code == 1
    assert f"error[{code}]" in result.out
    assert "roll.yaml:4:" in result.out
    assert message in result.out


def test_one_that_fails_is_said_to_fail(packages, converter, table):
    code = """
from converter.ops import Op

class Roll(Op):
    name = "roll"
    about = "fails"
    by: int

    def apply(self, views, pieces):
        return [views[self.by]]
"""
    install(packages, "rolling", "roll = rolling:Roll", code)
    result = converter("plan", "table.pt", "-m", "roll.yaml")
    assert result.code == 1
    assert "roll.yaml:4:" in result.out + result.err
    assert "roll fails: IndexError: list index out of range" in result.out + result.err


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(
    ("points", "code", "wrong"),
    [
        ("roll = broken:Roll", "import nothing_of_the_kind", "cannot be imported"),
        ("roll = broken:Rolls", "", "cannot be imported: AttributeError"),
        ("roll = broken:Roll", "Roll = 3", "is no subclass of converter.ops.Op"),
    ],
)
def test_a_broken_package_is_named(points, code, wrong, packages, converter):
    install(packages, "broken", points, code)
    for command in (("ops",), ("lint", "roll.yaml"), ("plan", "table.pt", "-m", "roll.yaml")):
        OPS._brought = None
        result = converter(*command)
        said = result.out + result.err
        assert result.code == 1, command
        assert said.count("error[MAP109]") == 1, command
        assert "the op 'roll', which the package broken brings (broken:Roll" in said
        assert wrong in said
    assert converter("ops", "cast").code == 0  # ours need nobody


def test_two_packages_with_one_op(roll, packages, converter):
    install(packages, "other", "roll = rolling:Roll", "")
    result = converter("ops")
    assert result.code == 1
    assert "brings (rolling:Roll), is brought by another package, too" in result.err


def test_a_fresh_process_finds_it(roll, table):
    command = [sys.executable, "-m", "converter", "convert", "table.pt", "x.pt", "-m", "roll.yaml"]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(roll)})
    assert checkpoints.read(table / "x.pt")["rolled"].tolist() == [1, 2, 3, 4, 0]
