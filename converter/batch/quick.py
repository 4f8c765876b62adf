"""Is everything still as the last run left it?  Answered from sizes and times alone, at once.

Nothing heavy is imported here: a run that has nothing to do takes about as long as `--help`.  When
in doubt the answer is no, and the long way is gone.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from converter import __version__

if TYPE_CHECKING:
    from converter.errors import Diagnostic

Stamp = tuple[int, int, int, int, int]
Status = Literal["converted", "up to date", "planned", "failed", "skipped"]

MAX_BYTES = 64 << 20


class Place(Protocol):
    """Where an entry stands."""

    @property
    def line(self) -> int:
        """Counted from 1."""
        ...


class Told(Protocol):
    """What is said of an entry when a run has ended."""

    @property
    def name(self) -> str: ...  # noqa: D102 - the fields of `Entry`
    @property
    def opens(self) -> Path: ...  # noqa: D102
    @property
    def target(self) -> Path: ...  # noqa: D102
    @property
    def needs(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def place(self) -> Place: ...  # noqa: D102


@dataclass(frozen=True)
class Outcome:
    """What became of an entry: why it was made, or what is wrong."""

    entry: Told
    status: Status
    why: str = ""
    diagnostics: tuple[Diagnostic, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)  # tensors, nbytes, seconds, ...


class Line(NamedTuple):
    """The line of an entry."""

    line: int


class Row(NamedTuple):
    """What is remembered of an entry; its paths are as seen from the manifest's folder."""

    name: str
    opens: Path
    target: Path
    needs: tuple[str, ...]
    place: Line


def stamp_of(path: Path | str) -> Stamp:
    """What a file is known by: size, time of change of content and of facts, device, inode."""
    facts = os.stat(path)
    return (facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_dev, facts.st_ino)


def lock_of(manifest: Path) -> Path:
    """Where the lock of a manifest lies."""
    return manifest.with_name(f"{manifest.stem}.lock.json")


def memory_of(manifest: Path) -> Path:
    """Where it is kept what files looked like."""
    return manifest.parent / ".converter_cache" / f"{manifest.stem}.json"


def whole(
    manifest: Path,
    entries: Iterable[Told],
    stamps: Mapping[str, Stamp],
    globs: Mapping[str, list[str]],
    absent: Iterable[str],
) -> dict[str, Any]:
    """What is remembered of a run after which everything was up to date.

    `stamps` are all files that count, `globs` what each found, `absent` what must not be there.
    """
    folder = manifest.parent
    rows = [
        [
            entry.name,
            os.path.relpath(entry.opens, folder),
            os.path.relpath(entry.target, folder),
            list(entry.needs),
            entry.place.line,
        ]
        for entry in entries
    ]
    return {
        "converter": __version__,
        "texts": [_digest(manifest), _digest(lock_of(manifest))],
        "stamps": dict(stamps),
        "globs": dict(globs),
        "absent": list(absent),
        "rows": rows,
    }


def unchanged(manifest: Path) -> list[Outcome] | None:
    """Every entry, up to date; None when that takes a closer look."""
    folder, path = manifest.parent, memory_of(manifest)
    try:
        kept = json.loads(path.read_bytes()) if path.stat().st_size <= MAX_BYTES else {}
        if not _holds(kept["whole"], manifest):
            return None
        return [
            Outcome(
                Row(name, folder / opens, folder / target, tuple(needs), Line(line)), "up to date"
            )
            for name, opens, target, needs, line in kept["whole"]["rows"]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _holds(kept: dict[str, Any], manifest: Path) -> bool:
    """Is what is remembered what is there?"""
    texts = [_digest(manifest), _digest(lock_of(manifest))]
    return (
        (kept["converter"], kept["texts"]) == (__version__, texts)
        and all(list(stamp_of(name)) == stamp for name, stamp in kept["stamps"].items())
        and not any(os.path.lexists(name) for name in kept["absent"])
        and all(found(manifest, each) == names for each, names in kept["globs"].items())
    )


def found(manifest: Path, pattern: str, most: int = 100_000) -> list[str]:
    """What a glob of a manifest finds, sorted."""
    names = glob.iglob(pattern, root_dir=manifest.parent, recursive=True)
    return sorted(name for _, name in zip(range(most), names, strict=False))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
