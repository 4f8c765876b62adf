"""A part of `make faults`: every kind of fault on every writer and reader, a few times each."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import calls, hostile_files
from tests.faults.systems import Recorder

ROOT = Path(__file__).parents[1]
SCALES = {
    "kills": 0.001,
    "space": 0.1,
    "calls": 0.1,
    "crashes": 0.1,
    "flips": 0.05,
    "outputs": 0.05,
    "cuts": 0.1,
    "together": 0.01,
    "changes": 0.2,
    "fuzz": 0.02,
    "hostile": 0.34,
}


@pytest.mark.parametrize("part", SCALES)
def test_a_part_of_it(part: str) -> None:
    """In a process of its own: it forks, and has no threads then."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.faults", part]
    done = subprocess.run(
        [*command, "--scale", str(SCALES[part])],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^\d{2,} tried, 0 wrong$", done.stdout, re.MULTILINE), done.stdout


def test_the_rules_are_documented() -> None:
    document = " ".join((ROOT / "SECURITY.md").read_text("utf-8").split())
    for rule in hostile_files.RULES.values():
        assert rule in document
    names = [case.name for case in hostile_files.CASES]
    assert len(set(names)) == len(names) >= 60
    assert {case.rule for case in hostile_files.CASES} == hostile_files.RULES.keys()


# The harness sees what a careless writer does.


def test_states_without_syncing_are_torn(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unsynced(Recorder):
        def sync(self, fd: int) -> None:
            """Say that it is on the disk, which it is not."""

    monkeypatch.setattr(calls, "Recorder", Unsynced)
    (figure,) = calls.crashes(1, ["safetensors"])
    assert any("torn" in wrong for wrong in figure.wrong)
