"""A journal of finished files, from which a run that was stopped is resumed.

It is a temporary file of the marker, and so locked by the run that writes it, and removed by the
next run for the same target unless that one resumes it:

    .model.safetensors.index.json.<16 hex>.tmp
        {"key": "…"}                                          what is made of what
        {"target": "model-00001-of-00002.safetensors",        one line for each file that is
         "file": ".model-00001-….<16 hex>.tmp", "sha256": …}  complete and on the disk

Another temporary file of the marker remembers what a set that is replaced leaves over, since a run
may be stopped after the new set is published and before the last of the old files is removed:

        {"obsolete": ["model-00001-of-00003.safetensors", …]}

A line is no proof by itself.  A file counts when the run before had the same key, is dead, and
every byte of the file gives the digest.  Publication is as ever: all files, or none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from converter.files import StagedFile, take_back, temporaries

MAX_JOURNAL = 64 << 20  # bytes
BLOCK = 1 << 20


class Obsolete:
    """Names of files that are of no use as soon as the marker is replaced.

    `names` are those that runs before have noted, and may not have removed.
    """

    def __init__(self, marker: Path) -> None:
        self.names: set[str] = set()
        self._marker = marker
        self._notes: list[StagedFile] = []
        for staged in _left(marker):
            names = next(iter(_lines(staged)), {}).get("obsolete")
            if isinstance(names, list):
                self.names |= {name for name in names if isinstance(name, str)}
                self._notes.append(staged)
            else:
                staged.discard()

    def note(self, names: Sequence[str]) -> None:
        """Write them down, before they are of no use."""
        staged = StagedFile(self._marker)
        self._notes.append(staged)
        staged.append(json.dumps({"obsolete": list(names)}).encode())
        staged.seal()

    def close(self, *, removed: bool = False) -> None:
        """Forget them when they are removed; harmless when repeated."""
        for staged in self._notes:
            staged.kept &= not removed
            staged.discard()


class Journal:
    """What a run has finished; `adopted` is what a run before it had."""

    def __init__(self, targets: Sequence[Path], key: str) -> None:
        self.adopted: dict[Path, StagedFile] = {}
        self._marker, self._key = targets[-1], key
        self._staged: StagedFile | None = None
        for staged in _left(self._marker):
            first, *lines = _lines(staged) or [{}]
            if first.get("key") != key:
                staged.discard()  # it is kept here, and removed with all else that is of no use
                continue
            self._staged = staged
            for line in lines:
                self._adopt(targets, line)
            break

    def _adopt(self, targets: Sequence[Path], line: dict[str, Any]) -> None:
        target = next((t for t in targets[:-1] if t.name == line.get("target")), None)
        found = target and [p for p in temporaries(target) if p.name == line.get("file")]
        if not target or not found or target in self.adopted:
            return
        try:
            staged = StagedFile(target, found[0])
        except OSError:
            return
        if digest(staged) == line.get("sha256"):
            take_back(target, staged.path, self._marker)
            self.adopted[target] = staged
        else:
            staged.discard()

    def prove(self, staged: StagedFile) -> None:
        """Write down that a file is complete, after it is on the disk."""
        staged.seal()
        if self._staged is None:
            self._staged = StagedFile(self._marker)
            self._append({"key": self._key})
        self._append(
            {
                "target": staged.target.name,
                "file": staged.path.name,
                "sha256": digest(staged),
            }
        )
        staged.kept = self._staged.kept = True

    def _append(self, line: dict[str, str]) -> None:
        assert self._staged is not None  # noqa: S101 - made by the caller
        # The break comes first, too: the line before may be torn.
        self._staged.append(f"\n{json.dumps(line)}\n".encode())
        self._staged.seal()

    def close(self, *, keep: bool) -> None:
        """Leave the journal to the next run, or remove it; harmless when repeated."""
        for staged in self.adopted.values():
            staged.kept = keep
            staged.discard()
        if self._staged is not None:
            self._staged.kept &= keep
            self._staged.discard()


def _left(marker: Path) -> Iterator[StagedFile]:
    """What runs that died have left for a marker; each is closed, and kept, by `discard`."""
    for path in temporaries(marker):
        try:
            yield StagedFile(marker, path)
        except OSError:
            continue


def digest(staged: StagedFile) -> str:
    """SHA-256 of all bytes of a file."""
    import hashlib  # loads OpenSSL, which most runs have no use for

    found, buffer = hashlib.sha256(), np.empty(min(BLOCK, staged.size), np.uint8)
    for start in range(0, staged.size, BLOCK):
        part = buffer[: staged.size - start]
        staged.read_into(start, part)
        found.update(part.data)
    return found.hexdigest()


def _lines(staged: StagedFile) -> list[dict[str, Any]]:
    """The lines that are whole; none if this is no journal."""
    buffer = np.empty(min(staged.size, MAX_JOURNAL), np.uint8)
    staged.read_into(0, buffer)
    return list(_parsed(buffer.tobytes()))


def _parsed(content: bytes) -> Iterator[dict[str, Any]]:
    for text in content.split(b"\n"):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict):
            yield line
