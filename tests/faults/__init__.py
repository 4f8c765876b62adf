"""Everything that can go wrong, done to every writer and every reader: `make faults`.

    python -m tests.faults [PART ...] [--scale 0.02] [--only WRITER]

Each part prints its figures, one line each, and the number of failures; the exit code is 1 when
there is one.  At scale 1 the figures are those of SECURITY.md; `tests/test_faults.py` runs a part
of the same.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Figure:
    """What was tried, how often, and what went wrong."""

    what: str
    tried: int = 0
    wrong: list[str] = field(default_factory=list)
    facts: str = ""

    def check(self, wrong: str) -> None:
        """Count one trial; `wrong` says what is wrong with it, if anything."""
        self.tried += 1
        if wrong:
            self.wrong.append(wrong)

    def __str__(self) -> str:
        facts = f"  ({self.facts})" if self.facts else ""
        text = f"{self.what:<58} {self.tried:>6} tried, {len(self.wrong)} wrong{facts}"
        shown = dict.fromkeys(self.wrong)
        return text + "".join(f"\n    {each[:400]}" for each in list(shown)[:8])


def chance(*seed: object) -> random.Random:
    """The same random numbers in every run."""
    return random.Random(repr(seed))


@contextmanager
def folder() -> Iterator[Path]:
    """A folder in memory where there is room, so that a disk does not slow a thousand runs."""
    memory = Path("/dev/shm")  # noqa: S108 - where Linux has it
    place = Path(tempfile.mkdtemp(prefix="faults-", dir=memory if memory.is_dir() else None))
    before = Path.cwd()
    try:
        yield place
    finally:
        os.chdir(before)
        shutil.rmtree(place)


@contextmanager
def silent() -> Iterator[Path]:
    """Send what the process prints to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.NamedTemporaryFile() as said:
        before = [os.dup(fd) for fd in (1, 2)]
        try:
            for fd in (1, 2):
                os.dup2(said.fileno(), fd)
            yield Path(said.name)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for fd, old in zip((1, 2), before, strict=True):
                os.dup2(old, fd)
                os.close(old)
