"""The disk full at any size, every call failing or moving little, and every state of a crash."""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from converter import files
from converter.errors import ConverterError
from tests.cli.checkpoints import listing
from tests.faults import Figure, folder, silent
from tests.faults.systems import Faulty, Recorder, State, Trickle, restore
from tests.faults.writers import Writer, chosen, clear, convert, prepare

SIZES = 30
FAULTS = (errno.ENOSPC, errno.EIO, errno.EINTR)
HARMLESS = {"close", "unlink"}  # calls whose failure may leave a complete target
STATES = 1000  # of each writer, at least


class Full(files.System):
    """A disk with room for so many bytes; it takes a part of what does not fit, as disks do."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.turn = threading.Lock()  # several threads write

    def write(self, fd: int, data: memoryview, offset: int) -> int:
        with self.turn:
            if self.room == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            done = super().write(fd, data[: self.room], offset)
            self.room -= done
            return done


def under(system: files.System, place: Path, writer: Writer, tag: str = "new") -> tuple[int, str]:
    """Convert with that system; the exit code and what was said."""
    before, files.system = files.system, system
    os.chdir(place)
    try:
        with silent() as said:
            from converter.cli import run

            code = run(writer.command(tag))
            text = said.read_text()
    finally:
        files.system = before
    return code, text


def fresh(place: Path, writer: Writer) -> dict[str, str]:
    """Empty the folder but for the old target; its files."""
    clear(place)
    assert convert(place, writer.command("old")) == 0
    return listing(place / "out")


def space(scale: float, only: Sequence[str]) -> Iterator[Figure]:
    """Each writer, at 30 sizes of a disk: counted, and really full where a mount is allowed."""
    for writer in chosen(only):
        with folder() as place:
            ready = prepare(place, writer, 2000)
            yield _counted(ready, place, max(4, int(SIZES * scale)))
        if os.geteuid() == 0 and scale >= 1:
            with folder() as place:
                ready = prepare(place, writer, 40_000)
                yield _mounted(ready, place)


def _counted(writer: Writer, place: Path, sizes: int) -> Figure:
    figure = Figure(f"disk full, {writer.target}")
    before = fresh(place, writer)
    assert convert(place, writer.command("new")) == 0
    needed = sum(path.stat().st_size for path in (place / "out").iterdir())
    for number in range(sizes):
        before = fresh(place, writer)
        code, said = under(Full(needed * number // sizes), place, writer)
        figure.check(_refused(code, said, place, before, resumes="--resume" in writer.options))
    return figure


def _mounted(writer: Writer, place: Path) -> Figure:
    """The same on a tmpfs of each size."""
    figure = Figure(f"a full tmpfs, {writer.target}")
    before = fresh(place, writer)
    old = sum(path.stat().st_size for path in (place / "out").iterdir())
    keep = place / "keep"
    shutil.copytree(place / "out", keep)
    for number in range(SIZES):
        room = f"size={(old >> 10) + 40 + (number << 4)}k"
        subprocess.run(["mount", "-t", "tmpfs", "-o", room, "none", place / "out"], check=True)
        try:
            shutil.copytree(keep, place / "out", dirs_exist_ok=True)
            code, said = under(files.System(), place, writer)
            if code == 0:
                figure.check("" if writer.judge(place) == "new" else "done, and not there")
            else:
                figure.check(_refused(code, said, place, before, resumes=False))
        finally:
            subprocess.run(["umount", place / "out"], check=True)
    return figure


def _refused(code: int, said: str, place: Path, before: dict[str, str], *, resumes: bool) -> str:
    """What is wrong after a conversion for which there was no room."""
    found = listing(place / "out")
    if resumes:  # what is finished waits for the next run
        found = {name: digest for name, digest in found.items() if not name.endswith(".tmp")}
    if found != before:
        return f"the old target changed, or there is more: {sorted(found)}"
    if code != 3 or len(re.findall(r"error\[DST402\]", said)) != 1 or "Traceback" in said:
        return f"exit code {code}: {said}"
    return ""


def calls(scale: float, only: Sequence[str]) -> Iterator[Figure]:
    """Each writer: the k-th call fails, for every k; and all calls move a few bytes at once."""
    for writer in chosen(only):
        with folder() as place:
            ready = prepare(place, writer, 30)
            for number in FAULTS:
                yield _each_call(ready, place, number, 1 if scale >= 1 else 11)
            yield _short(ready, place)


def _each_call(writer: Writer, place: Path, number: int, step: int) -> Figure:
    figure = Figure(f"{errno.errorcode[number]} at each call, {writer.target}")
    for k in itertools.count(0, step):
        before = fresh(place, writer)
        system = Faulty(k, number)
        code, said = under(system, place, writer)
        if not system.failed:
            break
        figure.check(_outcome(system, code, said, place, before, writer))
    return figure


def _outcome(  # noqa: PLR0913 - all that is known of one run
    system: Faulty, code: int, said: str, place: Path, before: dict[str, str], writer: Writer
) -> str:
    found = listing(place / "out")
    kept = [n for n in found if n.endswith(".tmp") and "--resume" not in writer.options]
    where = f"{system.failed} {errno.errorcode[system.number]}: "
    if kept and system.failed != "unlink":
        return f"{where}left {kept}"
    if "internal error" in said or "Traceback" in said:
        return where + said
    judged = writer.judge(place)
    if code == 0:
        return "" if judged == "new" else f"{where}reported as done, but {judged}"
    late = {*HARMLESS, "sync", "open"} | ({"rename"} if writer.marker else set())
    if judged == "old" or (judged == "new" and system.failed in late):
        visible = {n: d for n, d in found.items() if not n.endswith(".tmp")}
        same = judged == "new" or visible == before or system.failed == "unlink"
        return "" if same else f"{where}the old target is not what it was: {sorted(visible)}"
    return f"{where}exit code {code}, and then {judged}: {said}"


def _short(writer: Writer, place: Path) -> Figure:
    figure = Figure(f"short and interrupted reads and writes, {writer.target}")
    fresh(place, writer)
    convert(place, writer.command("new"))
    same = listing(place / "out")
    fresh(place, writer)
    code, said = under(Trickle(), place, writer)
    figure.check("" if (code, listing(place / "out")) == (0, same) else f"{code}: {said}")
    return figure


# ── every state that a crash may leave ───────────────────────────────────────────────────────────


def crashes(scale: float, only: Sequence[str]) -> Iterator[Figure]:
    """Each writer: all prefixes of its calls, without any part of what was not synced."""
    most = 10**9 if scale >= 1 else 300
    for writer in chosen(only):
        figure = Figure(f"states of a crash, {writer.target}")
        for length in (30, 50):
            with folder() as place:
                _states(prepare(place, writer, length), place, most, figure)
        if most > STATES and figure.tried < STATES:
            figure.check(f"fewer than {STATES} states")
        yield figure


def _states(writer: Writer, place: Path, most: int, figure: Figure) -> None:
    known: dict[str, str] = {}
    for before in ("absent", "old"):
        clear(place)
        if before == "old":
            fresh(place, writer)
        recorder = Recorder(place / "out", links=True)
        code, said = under(recorder, place, writer)
        assert code == 0, said
        states = itertools.chain(recorder.kills(), recorder.power_cuts())
        for number, state in enumerate(itertools.islice(states, most)):
            verdict = _verdict(state, place, writer, known)
            wrong = verdict not in (before, "new")
            figure.check(f"{before} became {verdict} in state {number}" if wrong else "")
        last = _verdict(recorder.replay(recorder.log), place, writer, known)
        figure.check("" if last == "new" else f"reported as done, and then {last}")
    figure.facts = f"{len(known)} different targets"


def _verdict(state: State, place: Path, writer: Writer, known: dict[str, str]) -> str:
    visible = {name: file for name, file in state.items() if not name.startswith(".")}
    key = repr(sorted((name, data) for name, (_, data) in visible.items()))
    if key not in known:
        clear(place)
        (place / "out").rmdir()
        restore(place / "out", visible)
        try:
            known[key] = writer.judge(place)
        except ConverterError as error:
            known[key] = f"torn: {error}"
    return known[key]
