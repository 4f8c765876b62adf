"""Whole child processes: wall time and peak memory.

They run the package as it is when it was installed: with its bytecode, whatever the environment.

This module imports little on purpose: a child's peak starts at that of the process it was forked
from.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

MIB = 1 << 20
TOUCHED = 1536 * MIB


@dataclass
class Case:
    """A command, what it leaves behind, the goals it has, and what was measured.

    `times` is a goal in times of the floor: the command that all are compared with, `cp` or `cmp`.
    """

    name: str
    command: Sequence[str]
    target: str = ""
    times: float | None = None
    mib: float | None = None
    seconds_at_most: float | None = None
    repetitions: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)

    def run(self) -> None:
        """Once, its target removed before."""
        settle()
        if self.target and os.path.exists(self.target):  # noqa: PTH110 - pathlib is one more import
            os.unlink(self.target)  # noqa: PTH108
        seconds, peak = measure(self.command, self.environment)
        self.seconds.append(seconds)
        self.peaks.append(peak)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def facts(self, floor: Case) -> dict[str, object]:
        """One row of the result."""
        return {
            "case": self.name,
            "runs": len(self.seconds),
            "median_s": round(self.median, 3),
            "min_s": round(min(self.seconds), 3),
            "times": round(self.median / floor.median, 2),
            "peak_mib": round(max(self.peaks) / MIB),
            "goal": self.goal(floor),
            "met": self.met(floor),
        }

    def goal(self, floor: Case) -> str:
        parts = [f"{self.times:g} x {floor.name}"] if self.times else []
        parts += [f"{self.seconds_at_most:g} s"] if self.seconds_at_most else []
        parts += [f"{self.mib:g} MiB"] if self.mib else []
        return ", ".join(parts)

    def met(self, floor: Case) -> bool | None:
        """Whether every goal is met; None when there is none."""
        checks = []
        if self.times:
            checks.append(self.median <= self.times * floor.median)
        if self.seconds_at_most:
            checks.append(self.median <= self.seconds_at_most)
        if self.mib:
            checks.append(max(self.peaks) <= self.mib * MIB)
        return all(checks) if checks else None


def settle() -> None:
    """Touch more memory than any case needs, and give it back.

    Free memory of a virtual machine may lie with its host.  Whoever touches such a page first waits
    for it, five times as long as for one that is there, and that would be said of the command that
    needs more memory than the one before it.
    """
    subprocess.run([sys.executable, "-S", "-c", f"b'-' * {TOUCHED}"], check=True)


def measure(command: Sequence[str], environment: Mapping[str, str]) -> tuple[float, int]:
    """Seconds and peak bytes of a command; `SystemExit` with what it printed when it fails."""
    with tempfile.TemporaryFile() as printed:
        start = time.perf_counter()
        env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", **environment}
        process = subprocess.Popen(command, stdout=printed, stderr=printed, env=env)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            printed.seek(0)
            text = printed.read().decode(errors="replace")
            raise SystemExit(f"{' '.join(command)} exited with {process.returncode}\n{text}")
    return seconds, usage.ru_maxrss * 1024
