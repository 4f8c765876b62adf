"""The operating system as it can be: calls that fail, move little, or are recorded.

Each is a `files.System` to be put into `files.system`.  From a record follow the contents that the
disk may have when the process or the machine stops at any point.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from converter import files

State = dict[str, tuple[int, bytes]]  # names with the files that they lead to, and their content


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def restore(folder: Path, state: State) -> None:
    """Make a folder of a recorded state, hard links included."""
    folder.mkdir()
    first: dict[int, Path] = {}
    for name, (file, data) in state.items():
        if file in first:
            (folder / name).hardlink_to(first[file])
        else:
            first[file] = folder / name
            first[file].write_bytes(data)


class Trickle(files.System):
    """Moves a byte or three at a time, and is interrupted in between."""

    def __init__(self) -> None:
        self.turn = itertools.cycle([1, 0, 3])

    def some(self, data: memoryview) -> memoryview:
        count = next(self.turn)
        if count == 0:
            raise InterruptedError(errno.EINTR, "interrupted")
        return data[:count]

    def read(self, fd: int, buffer: memoryview, offset: int) -> int:
        return super().read(fd, self.some(buffer), offset)

    def write(self, fd: int, data: memoryview, offset: int) -> int:
        return super().write(fd, self.some(data), offset)


class NoLinks(files.System):
    def link(self, source: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "no hard links here")


class Event(NamedTuple):
    """A change of names (folder entries) or of one file's bytes, or the sync of either."""

    kind: str  # "names", "write", "sync"
    file: int = 0  # a number; 0 is the folder
    entries: tuple[tuple[str, int], ...] = ()  # name to file; 0 removes it
    offset: int = 0
    data: bytes = b""


class Recorder(files.System):
    """Does what is asked, and keeps a record of it."""

    def __init__(self, folder: Path, *, links: bool) -> None:
        self.links = links
        self.log: list[Event] = []
        self.fds: dict[int, int] = {}
        self.names = {path.name: -number for number, path in enumerate(folder.iterdir(), 1)}
        self.before = dict(self.names)
        self.content = {self.names[name]: data for name, data in listing(folder).items()}

    def entries(self, *entries: tuple[str, int]) -> None:
        self.names |= dict(entries)
        self.log.append(Event("names", entries=entries))

    def open(self, path: Path, flags: int) -> int:
        fd = super().open(path, flags)
        self.fds[fd] = 0
        if flags & os.O_CREAT:
            self.fds[fd] = 1 + sum(event.kind == "names" for event in self.log)
            self.entries((path.name, self.fds[fd]))
        return fd

    def write(self, fd: int, data: memoryview, offset: int) -> int:
        self.log.append(Event("write", self.fds[fd], offset=offset, data=bytes(data)))
        return super().write(fd, data, offset)

    def sync(self, fd: int) -> None:
        super().sync(fd)
        self.log.append(Event("sync", self.fds[fd]))

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        self.entries((target.name, self.names[source.name]), (source.name, 0))

    def link(self, source: Path, target: Path) -> None:
        if not self.links:
            raise PermissionError(errno.EPERM, "no hard links here")
        super().link(source, target)
        self.entries((target.name, self.names[source.name]))

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        self.entries((path.name, 0))

    # ── what may be on the disk ──────────────────────────────────────────────────────────────

    def replay(self, events: list[Event]) -> State:
        """Names with the files and contents that they have after these events."""
        found, content = dict(self.before), dict(self.content)
        for event in events:
            found |= dict(event.entries)
            if event.kind == "write":
                old = content.get(event.file, b"")[: event.offset].ljust(event.offset, b"\0")
                rest = content.get(event.file, b"")[event.offset + len(event.data) :]
                content[event.file] = old + event.data + rest
        return {name: (file, content.get(file, b"")) for name, file in found.items() if file}

    def kills(self) -> Iterator[State]:
        """States after the process stops: everything up to some event has happened."""
        for end in range(len(self.log) + 1):
            yield self.replay(self.log[:end])

    def power_cuts(self) -> Iterator[State]:
        """States after the machine stops: of what was not synced, any part may be missing."""
        for end in range(len(self.log) + 1):
            past = self.log[:end]
            last = {event.file: at for at, event in enumerate(past) if event.kind == "sync"}
            loose = [
                at for at, e in enumerate(past) if e.kind != "sync" and at > last.get(e.file, -1)
            ]
            loose = loose[-8:]
            for count in range(len(loose) + 1):
                for lost in itertools.combinations(loose, count):
                    yield self.replay([e for at, e in enumerate(past) if at not in lost])


class Faulty(files.System):
    """Fails the k-th call that can fail."""

    CALLS = frozenset(
        {"open", "close", "read", "write", "sync", "rename", "link", "unlink", "free"}
    )

    def __init__(self, k: int, number: int) -> None:
        self.left = k
        self.number = number
        self.failed = ""

    def __getattribute__(self, name: str) -> Any:
        call = super().__getattribute__(name)
        return self.counted(name, call) if name in Faulty.CALLS else call

    def counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            self.left -= 1
            if self.left != -1:
                assert not (name == "sync" and self.failed == "sync"), "a failed sync is final"
                return call(*arguments)
            self.failed = name
            if name == "close":  # Linux closes even when it reports an error
                call(*arguments)
            raise OSError(self.number, os.strerror(self.number))

        return run
