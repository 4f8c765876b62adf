"""SIGKILL from outside at random moments, and at every single call to the operating system."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from converter import engine, files, plan
from converter.formats import FORMATS
from tests.cli.checkpoints import listing
from tests.faults import Figure, chance, folder
from tests.faults.systems import Faulty
from tests.faults.writers import Writer, child, chosen, clear, ended, prepare, reference

ROUNDS = 200  # of each writer
LENGTH = 40_000  # elements of a tensor: a conversion of 1 MB


class Killed(Faulty):
    """Ends the process right after its k-th call."""

    def counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            result = call(*arguments)
            self.left -= 1
            if self.left == -1:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return run


def kills(scale: float, only: Sequence[str]) -> Iterator[Figure]:
    """Each writer: killed while it makes a first target, and while it replaces one."""
    assert engine, plan  # imported once, before the processes part
    for row in FORMATS:
        row.load()
    for writer in chosen(only):
        with folder() as place:
            yield from _killed(prepare(place, writer, LENGTH), place, max(2, int(ROUNDS * scale)))
        with folder() as place:
            yield _at_each_call(prepare(place, writer, 60), place, 1 if scale >= 1 else 31)


def _killed(writer: Writer, place: Path, rounds: int) -> Iterator[Figure]:
    same = reference(place, writer)
    started = time.perf_counter()
    ended(child(place, writer.command("new")))
    longest = 1.3 * (time.perf_counter() - started)
    moments = chance(writer)
    target = Figure(f"kill -9, {writer.target}: a partial target")
    stray = Figure(f"kill -9, {writer.target}: not the same bytes, or a stray file, afterwards")
    hit = 0
    for number in range(rounds):
        clear(place)
        before = "old" if number % 2 else "absent"
        if number % 2:
            assert ended(child(place, writer.command("old"))) == 0
        killed = child(place, writer.command("new"))
        time.sleep(moments.uniform(0, longest))
        os.kill(killed, signal.SIGKILL)
        hit += ended(killed) < 0
        found = writer.judge(place)
        target.check("" if found in (before, "new") else f"{before} became {found}")
        code = ended(child(place, writer.command("new")))
        stray.check("" if (code, listing(place / "out")) == (0, same) else _other(place, same))
    target.facts = f"{hit} before they were done"
    yield target
    yield stray


def _at_each_call(writer: Writer, place: Path, step: int) -> Figure:
    """Killed right after the k-th call, for every k; resumed or done again each time."""
    figure = Figure(f"kill -9 after each call, {writer.target}")
    same = reference(place, writer)
    for before in ("absent", "old"):
        for k in itertools.count(0, step):
            clear(place)
            if before == "old":
                assert ended(child(place, writer.command("old"))) == 0
            code = ended(child(place, writer.command("new"), lambda k=k: _use(Killed(k, 0))))
            if code == 0:
                break
            found = writer.judge(place)
            again = ended(child(place, writer.command("new")))
            wrong = "" if found in (before, "new") else f"{before} became {found} at call {k}"
            if not wrong and (again, listing(place / "out")) != (0, same):
                wrong = f"call {k}: {_other(place, same)}"
            figure.check(wrong)
    return figure


def _use(system: files.System) -> None:
    files.system = system


def _other(place: Path, same: dict[str, str]) -> str:
    found = listing(place / "out")
    changed = [name for name in found if name in same and found[name] != same[name]]
    return f"more: {found.keys() - same.keys()}, fewer: {same.keys() - found.keys()}, {changed}"
