"""Several writers of one target at once, and a source that somebody else changes."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from converter import files
from converter.formats import FORMATS
from tests.cli.checkpoints import listing
from tests.faults import Figure, chance, folder
from tests.faults.calls import fresh, under
from tests.faults.writers import WRITERS, Writer, child, chosen, clear, ended, prepare

ROUNDS = 200
CHANGES = 20  # of each kind


class NoLocks(files.System):
    """A network file system on which every lock succeeds."""

    def lock(self, fd: int) -> bool:
        return True


def together(scale: float, only: Sequence[str]) -> Iterator[Figure]:
    """2 to 8 processes that write one target: always one whole checkpoint of one of them."""
    for row in FORMATS:
        row.load()
    writers = chosen(only)
    figures = {writer: Figure(f"writers at once, {writer.target}") for writer in writers}
    without = Figure("writers at once where locks mean nothing, one file")
    rounds = max(len(writers), int(ROUNDS * scale))
    for number, writer in zip(range(rounds), itertools.cycle(writers), strict=False):
        with folder() as place:
            ready = prepare(place, writer, 4000)
            figures[writer].check(_race(ready, place, 2 + number % 7, None))
            if ready.options == () and ready.marker == "":
                clear(place)
                without.check(_race(ready, place, 2 + number % 7, NoLocks()))
    yield from figures.values()
    yield without


def _race(writer: Writer, place: Path, count: int, system: files.System | None) -> str:
    def before() -> None:
        if system:
            files.system = system
        time.sleep(max(0, start - time.time()))

    start = time.time() + 0.05
    running = [child(place, writer.command(("old", "new")[n % 2]), before) for n in range(count)]
    codes = [ended(number) for number in running]
    found = writer.judge(place)
    if found not in ("old", "new") or not set(codes) <= {0, 3, 4} or 0 not in codes:
        return f"{count} writers, exit codes {codes}: {found}"
    assert ended(child(place, writer.command("new"))) == 0
    names = set(listing(place / "out"))
    clear(place)
    assert ended(child(place, writer.command("new"))) == 0
    more = names - set(listing(place / "out"))
    return f"left after the next run: {sorted(more)}" if more else ""


# ── a source that changes ────────────────────────────────────────────────────────────────────────


class Meddler(files.System):
    """Changes a file at the k-th read of any."""

    def __init__(self, k: int, change: Callable[[], None]) -> None:
        self.left, self.change = k, change
        self.done = False

    def read(self, fd: int, buffer: memoryview, offset: int) -> int:
        self.left -= 1
        if self.left == -1:
            self.done = True
            self.change()
        return super().read(fd, buffer, offset)


def changes(scale: float, only: Sequence[str]) -> Iterator[Figure]:
    """Sources that are written to, cut or replaced while they are read: refused, or read whole."""
    writer = next(w for w in WRITERS if w.name == "safetensors")
    kinds = {"append": _append, "overwrite": _overwrite, "truncate": _truncate, "replace": _replace}
    for kind, change in kinds.items():
        with folder() as place:
            ready = prepare(place, writer, 3000)
            source = place / "new.safetensors"
            sound, other = source.read_bytes(), (place / "old.safetensors").read_bytes()
            figure = Figure(f"a source that changes: {kind}")
            moments = chance(kind)
            for _ in range(max(4, int(CHANGES * scale))):
                fresh(place, ready)
                source.unlink()
                source.write_bytes(sound)
                reads = Meddler(moments.randrange(8), lambda: change(source, other))  # noqa: B023
                code, said = under(reads, place, ready)
                source.unlink()
                source.write_bytes(sound)
                figure.check(_consistent(code, said, ready.judge(place), done=reads.done))
            yield figure


def _append(path: Path, other: bytes) -> None:
    with path.open("ab") as stream:
        stream.write(other[-100:])


def _overwrite(path: Path, other: bytes) -> None:
    with path.open("r+b") as stream:
        stream.seek(2000)
        stream.write(other[2000:])


def _truncate(path: Path, other: bytes) -> None:
    os.truncate(path, len(other) // 2)


def _replace(path: Path, other: bytes) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(other)
    new.replace(path)


def _consistent(code: int, said: str, judged: str, *, done: bool) -> str:
    if code == 0 and judged in ("new", "old"):  # "old" is what replaced it before it was opened
        return ""
    if done and code == 3 and judged == "old" and "error[SRC30" in said:
        return ""
    return f"exit code {code}, then {judged}: {said}"
