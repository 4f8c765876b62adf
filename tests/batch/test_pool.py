"""Workers and the budget they share, with workers that do as they like."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from converter import cli
from converter.batch.pool import OWN, Budget, Pool
from converter.engine import BASE, LEAST
from converter.errors import LimitError

MIB = 1 << 20
ECHO = "import sys\nfor line in sys.stdin: print('{\"done\": ' + line.strip() + '}', flush=True)"
DIE = "import os, sys; sys.stdin.readline(); os.kill(os.getpid(), 9)"
LEAVE = "import sys; sys.stdin.readline(); sys.exit(7)"
BABBLE = "import sys\nfor line in sys.stdin: print('hello', flush=True)"
HALF = "import sys; sys.stdin.readline(); sys.stdout.write('{\"done\"'); sys.stdout.flush()"


def pool(script: str, folder: Path, workers: int = 2) -> Pool:
    return Pool([sys.executable, "-c", script], Budget(None, workers), folder)


def ask(script: str, folder: Path, tasks: int = 3) -> dict[str, dict[str, object]]:
    with pool(script, folder) as workers:
        for number in range(tasks):
            workers.submit(str(number), {"number": number})
        return dict(workers.wait() for _ in range(tasks))


def test_every_task_has_its_answer(tmp_path):
    assert ask(ECHO, tmp_path, 20) == {str(n): {"done": {"number": n}} for n in range(20)}


@pytest.mark.parametrize(
    ("script", "how"),
    [(DIE, "killed by signal 9"), (LEAVE, "ended with 7"), (BABBLE, "ended with 0"), (HALF, "")],
    ids=["killed", "left", "babbles", "half an answer"],
)
def test_a_worker_that_dies_takes_one_task_with_it(script, how, tmp_path):
    answers = ask(script, tmp_path)
    assert len(answers) == 3
    assert all(how in str(answer["died"]) for answer in answers.values())


def test_a_worker_that_cannot_be_started_fails_its_task(tmp_path):
    with Pool([str(tmp_path / "nothing")], Budget(None, 1), tmp_path) as workers:
        workers.submit("a", {})
        assert "FileNotFoundError" in workers.wait()[1]["died"]


def test_leaving_with_an_error_ends_the_workers(tmp_path):
    slow = "import time, sys; print('x' * 0); time.sleep(60)"
    begun = time.monotonic()

    def run() -> None:
        with pool(slow, tmp_path) as workers:
            workers.submit("a", {})
            while not workers._processes:
                time.sleep(0.01)
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        run()
    assert time.monotonic() - begun < 50  # it does not wait for the worker


def test_a_budget_is_never_exceeded():
    """Whatever is asked for: all grants and the idle bases together are within the limit."""
    limit, workers, used, most = OWN + 3 * LEAST + 50 * MIB, 3, 0, 0
    budget, lock = Budget(limit, workers), threading.Lock()

    def work(seed: int) -> int:
        nonlocal used, most
        moments = random.Random(seed)
        with budget.granted(moments.randrange(2 * limit)) as memory:
            assert memory is not None
            assert memory >= LEAST
            with lock:
                used += memory - BASE
                most = max(most, used)
            time.sleep(moments.random() / 200)
            with lock:
                used -= memory - BASE
        return memory

    with ThreadPoolExecutor(workers) as threads:
        grants = list(threads.map(work, range(100)))
    assert OWN + workers * BASE + most <= limit
    assert len(set(grants)) > 3


def test_one_alone_gets_what_it_can_use():
    budget = Budget(OWN + 2 * BASE + 500 * MIB, 2)
    with budget.granted(10 << 30) as memory:
        assert memory == BASE + 500 * MIB


def test_a_task_waits_for_all_that_it_can_use():
    budget = Budget(OWN + 2 * BASE + 500 * MIB, 2)
    granted: list[int | None] = []

    def large() -> None:
        with budget.granted(10 << 30) as memory:
            granted.append(memory)

    with budget.granted(BASE + 100 * MIB) as first, budget.granted(BASE + 400 * MIB) as second:
        assert (first, second) == (BASE + 100 * MIB, BASE + 400 * MIB)
        waiting = threading.Thread(target=large)
        waiting.start()
        waiting.join(0.05)
        assert not granted
    waiting.join()
    assert granted == [BASE + 500 * MIB]


def test_little_memory_means_few_workers():
    assert Budget(OWN + 5 * LEAST, 64).workers == 5
    with pytest.raises(LimitError, match="the memory limit is too small"):
        Budget(OWN + LEAST - 1, 2)


def test_no_limit_grants_everything():
    with Budget(None, 2).granted(1 << 60) as memory:
        assert memory is None


def test_a_killed_worker_fails_its_entry_and_no_other(sample, batch, monkeypatch):
    real = Pool._ask

    def ask_and_kill(pool: Pool, process: subprocess.Popen[str], task: dict[str, str]):
        if "head" in task["source"]:
            process.kill()
            process.wait()
        return real(pool, process, task)

    monkeypatch.setattr(Pool, "_ask", ask_and_kill)
    result = batch()
    assert result.code == 1
    assert [name for name, status in result.statuses.items() if status == "failed"] == ["head"]
    (found,) = json.loads(result.out)["diagnostics"]
    assert found["code"] == "CVT000"
    assert "the worker was killed by signal 9" in found["message"]


def test_two_runs_of_one_manifest_do_not_work_at_once(sample, monkeypatch, capfd):
    from converter.batch.lock import Seen

    with Seen(Path("ports.yaml")).held():
        assert cli.run(["batch", "ports.yaml"]) == 4
    assert "another run of this manifest is at work" in capfd.readouterr().err
