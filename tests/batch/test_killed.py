"""SIGKILL at any moment of a run: the next one completes, and every file is that of no kill.

Either the parent alone is killed, whose workers then end by themselves, or all processes at once.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from converter import cli
from tests.batch.conftest import files

COMMAND = [sys.executable, "-m", "converter", "batch", "ports.yaml", "--jobs", "2"]


def start(folder: Path) -> subprocess.Popen[bytes]:
    quiet = subprocess.DEVNULL
    return subprocess.Popen(COMMAND, cwd=folder, stdout=quiet, stderr=quiet, start_new_session=True)


def survives(moments: random.Random, kills: int, fresh: Path, done: Path, folder: Path) -> None:
    wanted = files(done)
    shutil.copytree(fresh, folder)
    begun = time.monotonic()
    assert start(folder).wait() == 0
    whole = time.monotonic() - begun
    assert files(folder) == wanted
    cut = 0
    for number in range(kills):
        shutil.rmtree(folder)
        shutil.copytree(fresh, folder)
        with start(folder) as running:
            time.sleep(moments.uniform(0.2, 1) * whole)
            if number % 2:
                os.killpg(running.pid, signal.SIGKILL)
            else:
                running.kill()
        cut += running.returncode == -signal.SIGKILL
        assert cli.run(["batch", str(folder / "ports.yaml")]) == 0
        assert files(folder) == wanted
        assert not [path for path in folder.rglob("*") if path.name.endswith(".tmp")]
    assert cut >= kills // 2, "most runs had ended before they were to be killed"


def test_a_killed_run_is_completed_by_the_next(fresh, done, tmp_path):
    survives(random.Random(0), 6, fresh, done, tmp_path / "work")


@pytest.mark.slow
def test_fifty_killed_runs_are_completed_by_the_next(fresh, done, tmp_path):
    survives(random.Random(1), 50, fresh, done, tmp_path / "work")


def test_workers_end_with_their_parent(sample):
    with start(sample) as running:
        while not (sample / "ported").exists():
            assert running.poll() is None
            time.sleep(0.01)
        running.kill()
    deadline = time.monotonic() + 30
    while group_is_alive(running.pid):
        assert time.monotonic() < deadline, "a worker goes on without its parent"
        time.sleep(0.05)


def group_is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_end_takes_its_workers_along(sign, sample, done):
    with start(sample) as running:
        while not (sample / "ports.lock.json").exists():
            assert running.poll() is None
            time.sleep(0.01)
        running.send_signal(sign)
        code = running.wait(30)
    assert code in (0, 130 if sign == signal.SIGINT else 143)
    assert not group_is_alive(running.pid)
    assert not [path for path in sample.rglob("*") if path.name.endswith(".tmp")]
    assert cli.run(["batch", "ports.yaml"]) == 0
    assert files(sample) == files(done)
