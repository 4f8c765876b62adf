"""SIGKILL at any moment of a conversion: the target is the old one or the new one, complete.

A child overwrites one target again and again, from two sources in turn, and is killed after a
random time.  Whatever lies there must be one of the two sources; the next run leaves no temporary
file.  (Every single system call is tried in tests/test_files.py; here it is the whole command.)
"""

from __future__ import annotations

import random
import subprocess
import sys
import time

import pytest

from tests.cli import checkpoints

KILLS = 7  # of each format
LONGEST = 0.25  # seconds: several conversions of these small files

CHILD = """
import sys
from converter.cli import run
first, second, target = sys.argv[1:]
assert run(["convert", first, target]) == 0
print("ready", flush=True)
while True:
    for source in (second, first):
        assert run(["convert", source, target, "--overwrite"]) == 0
"""


@pytest.mark.parametrize("target", ["out.safetensors", "out.pt", "out.ckpt"])
def test_a_kill_leaves_the_old_target_or_the_new_one(target, folder, converter):
    other = checkpoints.slim(seed=1)
    checkpoints.write(folder / "other.safetensors", other)
    whole = [checkpoints.slim(), other]
    moments = random.Random(target)
    for _ in range(KILLS):
        for path in folder.glob("out.*"):
            path.unlink()
        command = [sys.executable, "-c", CHILD, "slim.safetensors", "other.safetensors", target]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as running:
            assert running.stdout.readline() == b"ready\n"
            time.sleep(moments.uniform(0, LONGEST))
            running.kill()
        found = checkpoints.read(folder / target)
        which = [index for index, arrays in enumerate(whole) if checkpoints.equal(found, arrays)]
        assert len(which) == 1, "neither the old checkpoint nor the new one"
        assert converter("convert", "slim.pt", target, "--overwrite").code == 0
        assert converter("verify", "slim.pt", target).code == 0
        assert not [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]
        left = {path.name for path in folder.glob("out.*")}
        data = {"out.ckpt.index", f"out.ckpt{checkpoints.DATA}"}
        assert left == (data if target == "out.ckpt" else {target})


def test_a_kill_before_the_first_target_leaves_none(folder, converter):
    """Nothing was there before: nothing, or all of it, is there afterwards."""
    moments = random.Random(0)
    for number in range(4):
        target = f"new-{number}.pt"
        script = "import sys; from converter.cli import run; sys.exit(run(sys.argv[1:]))"
        script = f"import converter.engine; print('ready', flush=True); {script}"
        command = [sys.executable, "-c", script, "convert", "slim.safetensors", target]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as running:
            assert running.stdout.readline() == b"ready\n"
            time.sleep(moments.uniform(0, LONGEST / 4))
            running.kill()
        if (folder / target).exists():
            assert checkpoints.equal(checkpoints.read(folder / target), checkpoints.slim())
        assert converter("convert", "slim.ckpt", target, "--overwrite").code == 0
        assert not [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]
