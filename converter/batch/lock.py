"""The lock of a manifest: what each entry was made of and what came out, as digests.

    {"lock": 1, "entries": {"out/a.pt": {"converter": "0.1.0", "source": "in/a.ckpt",
        "target": "out/a.pt", "mappings": [...], "options": {...},
        "files": {"in/a.ckpt": "<sha256>", "converter:vgg16/slim-torchvision.yaml": "<sha256>"},
        "outputs": {"out/a.pt": "<sha256>"}}}}

Paths start at the manifest's folder, and nothing in it depends on the machine: it can be checked
in.  What a file was known by when it was hashed (size, times, inode) is kept in a folder of its own
beside the lock; a file that still looks so is not read again.  As in git's index, times that are
too near to the moment of hashing are not trusted.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from converter import __version__, digests, files
from converter.batch import quick
from converter.batch.manifest import Entry, Manifest
from converter.batch.quick import MAX_BYTES, Stamp, lock_of, memory_of
from converter.errors import (
    ConverterError,
    CorruptFileError,
    LimitError,
    NotFoundError,
    RefusedError,
)
from converter.language.include import shipped
from converter.language.load import find
from converter.report import in_parallel

RACY_NS = 20_000_000  # a clock tick of file systems, generously
SHIPPED = "converter:"  # before the names of mappings that come with the package

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Done(_Model):
    """What one entry was made of, and what came out."""

    converter: str
    source: str
    target: str
    mappings: list[str] = Field(default_factory=list)
    options: dict[str, Any] = Field(default_factory=dict)
    files: dict[str, Digest]  # all that was read: the checkpoint's, and the mappings'
    outputs: dict[str, Digest]


class _Lock(_Model):
    lock: Literal[1]
    entries: dict[str, Done]


class _Kept(_Model):
    version: Literal[1]
    started: list[str]
    seen: dict[str, tuple[int, int, int, int, int, Digest]]
    whole: dict[str, Any] | None = None


def asked(entry: Entry, manifest: Manifest) -> dict[str, Any]:
    """What an entry asks for, apart from the contents of files: the first fields of `Done`."""
    source = manifest.near(entry.source) + (f"#{entry.part}" if entry.part else "")
    return {
        "converter": __version__,
        "source": source,
        "target": manifest.near(entry.target),
        "mappings": [manifest.near_mapping(name) for name in entry.mappings],
        "options": entry.options.model_dump(exclude_defaults=True),
    }


class Lock:
    """A manifest's lock: read, compared with what is there, and written again."""

    def __init__(self, manifest_path: Path) -> None:
        self.path = lock_of(manifest_path)
        self.folder = manifest_path.parent
        self.entries: dict[str, Done] = {}
        self.text = ""
        document = _read(self.path, _Lock)
        if document is not None:
            self.entries = dict(document.entries)
            self.text = self.render()

    def made(self) -> list[Path]:
        """Every file that the entries made."""
        return [self.folder / name for done in self.entries.values() for name in done.outputs]

    def render(self) -> str:
        """The lock as text: the same for the same entries."""
        entries = {
            name: self.entries[name].model_dump(exclude_defaults=True)
            for name in sorted(self.entries)
        }
        return json.dumps({"lock": 1, "entries": entries}, indent=1, sort_keys=True) + "\n"

    def write(self) -> None:
        """Replace the file, if anything changed; it is complete at any time."""
        text = self.render()
        if text != self.text:
            _publish(self.path, text)
            self.text = text

    def resolve(self, name: str) -> Path:
        """The path of a name in `Done.files` or `Done.outputs`."""
        if name.startswith(SHIPPED):
            return shipped() / name.removeprefix(SHIPPED)
        return Path(os.path.normpath(self.folder / name))

    def name(self, path: Path) -> str:
        """What `resolve` turns into the path again."""
        full = Path(os.path.abspath(path))  # noqa: PTH100 - links are kept
        for root in (shipped(), shipped().resolve()):
            if full.is_relative_to(root) or path.is_relative_to(root):
                return (
                    SHIPPED
                    + (full if full.is_relative_to(root) else path).relative_to(root).as_posix()
                )
        return Path(os.path.relpath(path, self.folder)).as_posix()

    def changed(self, entry: Entry, manifest: Manifest, seen: Seen) -> str:
        """Why what the lock says of an entry does not hold any more; "" when it does."""
        done = self.entries.get(entry.name)
        if done is None:
            return "new"
        for key, value in asked(entry, manifest).items():
            if getattr(done, key) != value:
                return "other options" if key == "options" else f"another {key.removesuffix('s')}"
        for name in entry.mappings:
            if self.name(find(name)) not in done.files:
                return f"mapping {name} lies elsewhere"
        if entry.source.is_file() and self.name(entry.source) not in done.files:
            return "the source is another file"
        return self.differs(done.files, "changed", seen)

    def damaged(self, entry: Entry, seen: Seen) -> str:
        """Which output of an entry is not what was written; "" when all are."""
        return self.differs(self.entries[entry.name].outputs, "is not what was written", seen)

    def differs(self, wanted: Mapping[str, str], how: str, seen: Seen) -> str:
        """The first file that is not as it was, in words; "" when all are."""
        paths = {name: self.resolve(name) for name in wanted}
        missing = next((name for name, path in paths.items() if not path.is_file()), None)
        if missing is not None:
            return f"{missing} is missing"
        found = seen.digests(paths.values())
        return next((f"{n} {how}" for n, path in paths.items() if found[path] != wanted[n]), "")


class Seen:
    """Digests of files that were hashed before and look the same; kept in a folder beside a lock.

    `started` are targets that this manifest was about to make: they may be replaced even when a
    run was killed before it could lock them.
    """

    def __init__(self, manifest_path: Path, *, trust: bool = True) -> None:
        self.path = memory_of(manifest_path)
        self.folder = self.path.parent
        self.whole: dict[str, Any] | None = None
        self.known: dict[str, tuple[Stamp, str]] = {}
        self.started: set[str] = set()
        self.hashed = 0  # files that were read
        try:
            kept = _read(self.path, _Kept)
        except ConverterError:  # it is only a memory, and is made again
            kept = None
        if kept:
            self.started = set(kept.started)
            if trust:
                self.known = {key: (row[:5], row[5]) for key, row in kept.seen.items()}

    @contextmanager
    def held(self) -> Iterator[Self]:
        """Keep other runs of this manifest away; `RefusedError` when there is one."""
        self.folder.mkdir(exist_ok=True)
        ignore = self.folder / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n")
        fd = files.system.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT)
        try:
            if not files.system.lock(fd):
                raise RefusedError(
                    "another run of this manifest is at work", path=self.path.with_suffix(".lock")
                )
            yield self
        finally:
            files.system.close(fd)

    def digests(self, paths: Iterable[Path]) -> dict[Path, str]:
        """The SHA-256 of each file; only those are read that look different from before."""
        wanted = list(dict.fromkeys(paths))
        found: dict[Path, str] = {}
        stamps = {path: stamp_of(path) for path in wanted}
        for path, stamp in stamps.items():
            known = self.known.get(_key(path))
            if known and known[0] == stamp:
                found[path] = known[1]
        rest = [path for path in wanted if path not in found]
        self.hashed += len(rest)
        hashed = in_parallel([lambda path=path: digest_of(path) for path in rest]) if rest else []  # type: ignore[misc]
        for path, digest in zip(rest, hashed, strict=True):
            self.note(path, stamps[path], digest)
        return found | dict(zip(rest, hashed, strict=True))

    def note(self, path: Path, stamp: Stamp, digest: str) -> None:
        """Remember the digest of a file that looked like this before it was hashed."""
        if stamp == stamp_of(path):
            self.known[_key(path)] = stamp, digest

    def stamps(self, paths: Iterable[Path]) -> dict[str, Stamp] | None:
        """What files were known by when they were hashed; None when one was not, or has changed."""
        keys = [_key(path) for path in paths]
        if any(key not in self.known for key in keys):
            return None
        return {key: self.known[key][0] for key in keys}

    def write(self) -> None:
        """Replace the file."""
        seen = {key: [*stamp, digest] for key, (stamp, digest) in self.known.items()}
        kept = {
            "version": 1,
            "started": sorted(self.started),
            "seen": seen,
            "whole": self.whole,
        }
        _publish(self.path, json.dumps(kept))


def _key(path: Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - links are kept


def stamp_of(path: Path) -> Stamp:
    """What a file is known by; `NotFoundError` when it cannot be asked."""
    try:
        return quick.stamp_of(path)
    except OSError as error:
        raise NotFoundError(f"cannot be read: {error.strerror}", path=path) from error


def digest_of(path: Path) -> str:
    """The digest, begun so long after the last change that a later one shows in the times."""
    changed = max(stamp_of(path)[1:3])
    wait = changed + RACY_NS - time.time_ns()
    if 0 < wait <= RACY_NS:
        time.sleep(wait / 1e9)
    return digests.of_file(path)


def _read(path: Path, model: type[Any]) -> Any:
    """A JSON file of ours; None when there is none, `CorruptFileError` when it is another."""
    if not path.exists():
        return None
    file = files.File(path)
    try:
        if file.size > MAX_BYTES:
            raise LimitError("the lock is too long", path=path, expected=f"<= {MAX_BYTES} bytes")
        return model.model_validate_json(file.read(0, file.size))
    except (ValidationError, RecursionError) as error:
        first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else "nested deeply"
        raise CorruptFileError(
            f"this is no lock of a manifest: {first}",
            path=path,
            hint="restore it; or remove it, and convert everything again with --overwrite",
        ) from error
    finally:
        file.close()


def _publish(path: Path, text: str) -> None:
    publication = files.Publication([path], overwrite=True, nbytes=len(text))
    try:
        publication.files[0].append(text.encode())
        publication.commit()
    finally:
        publication.abort()
