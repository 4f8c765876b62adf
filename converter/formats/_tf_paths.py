"""What people pass when they mean a TensorFlow checkpoint, brought to the files that hold it.

https://www.tensorflow.org/guide/checkpoint

    V2   PREFIX.index, PREFIX.data-SSSSS-of-NNNNN; users write PREFIX, which is not a file
    V1   FILE, or PREFIX-SSSSS-of-NNNNN; the state file writes all shards as PREFIX-?????-of-NNNNN
    both PREFIX.meta: the graph, which is not needed here
    folder/checkpoint: state file, a text proto; `model_checkpoint_path: "model.ckpt-1"`
    folder/variables/variables.index: a SavedModel; its folder/saved_model.pb is the program

Where V1 and V2 lie under one name, V2 is meant, as in TensorFlow.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from converter.errors import CorruptFileError, NotFoundError, SourceError
from converter.files import File
from converter.formats._sstable import MAGIC, Table

V1, V2 = 1, 2
STATE = "checkpoint"  # the name of the state file
PROGRAM = "saved_model.pb"
MAX_STATE = 1 << 20  # bytes
MAX_FILES = 10_000  # looked at in a folder

_PART = re.compile(r"(?P<prefix>.+)\.(?P<suffix>index|meta|data-\d{5}-of-\d{5})")
_SHARD = r"(?P<prefix>.+)-(?:\d{5}|\?{5})-of-(?P<count>\d{5})"
_STATE_LINE = rb'(?m)^\s*model_checkpoint_path\s*:\s*"((?:[^"\\\n]|\\.)*)"'
_ESCAPE = rb"\\([0-7]{1,3}|.)"


class Place(NamedTuple):
    """A checkpoint: version 2 has its index as the one path, version 1 all of its shards."""

    version: int
    paths: tuple[Path, ...]


def locate(path: Path) -> Place | None:
    """The checkpoint that a path stands for; None when it is nothing of TensorFlow's.

    Raises `NotFoundError` for a part of a checkpoint whose rest is missing, and for a folder that
    holds several.
    """
    if path.is_dir():
        found = _in_folder(path)
        if found:
            return found
    return _named(path)


def claims(path: Path, version: int) -> bool:
    """Whether `locate` leads to that version; version 2 also claims what it has an error for."""
    try:
        place = locate(path)
    except SourceError:
        return version == V2
    return place is not None and place.version == version


def located(path: Path) -> Place:
    """The checkpoint that a path stands for; `NotFoundError` when there is none."""
    place = locate(path)
    if place is None:
        raise NotFoundError("no TensorFlow checkpoint", path=path)
    return place


def _named(path: Path) -> Place | None:
    """What lies under a file name or a prefix."""
    if path.name in {"", ".."}:
        return None
    index = path.with_name(path.name + ".index")
    if index.is_file():
        return Place(V2, (index,))
    if path.is_file():
        return _file(path)
    part = _PART.fullmatch(path.name)
    prefix = path.with_name(part["prefix"]) if part else path
    if part and _exists(prefix):
        return _named(prefix)
    shards = _shards(path)
    if shards:
        return Place(V1, shards)
    rest = next(_beside(prefix, r"\.(meta|data-\d{5}-of-\d{5})"), None)
    if rest:
        raise _without_index(rest, prefix)
    return None


def _file(path: Path) -> Place | None:
    """What a file is, or is a part of; the content decides before the name."""
    version = _version(path)
    part = _PART.fullmatch(path.name)
    suffix = part["suffix"] if part else ""
    if version == V1:
        return Place(V1, _shards(path) or (path,))
    if suffix == "index":
        known = version == V2 or next(_beside(path.with_suffix(""), r"\.data-\d{5}-of-\d{5}"), None)
        return Place(V2, (path,)) if known else None
    if version == V2:
        raise NotFoundError(
            "this is the index of a V2 checkpoint, but the data beside it cannot be found",
            path=path,
            hint="its name must end in '.index', and the data's in '.data-00000-of-00001'",
        )
    if path.name == STATE:
        return _from_state(path)
    if path.name == PROGRAM:
        return _saved_model(path.parent)
    return _sibling(path, part["prefix"]) if part else None


def _sibling(path: Path, prefix: str) -> Place:
    """The checkpoint of a `.meta` or `.data-…` file."""
    owner = path.with_name(prefix)
    place = None
    if _exists(owner):
        place = _named(owner)
    if place is None:
        raise _without_index(path, owner)
    return place


def _exists(prefix: Path) -> bool:
    index = prefix.with_name(prefix.name + ".index")
    return index.is_file() or prefix.is_file() or bool(_shards(prefix))


def _without_index(path: Path, prefix: Path) -> NotFoundError:
    return NotFoundError(
        f"the checkpoint's index is missing: this file holds no names ({path.name})",
        path=prefix.with_name(prefix.name + ".index"),
        hint="a V2 checkpoint is PREFIX.index and PREFIX.data-…; fetch or rename them together",
    )


def _shards(path: Path) -> tuple[Path, ...]:
    """All V1 shards of a set, given one of them, its glob or its prefix; none when it is no set."""
    shard = re.fullmatch(_SHARD, path.name)
    if shard:
        prefix, counts = shard["prefix"], {int(shard["count"])}
    else:
        found = (re.fullmatch(_SHARD, other.name) for other in _beside(path, r"-\d{5}-of-\d{5}"))
        prefix, counts = path.name, {int(other["count"]) for other in found if other}
    if len(counts) > 1:
        raise NotFoundError(
            "several checkpoints have this prefix",
            path=path,
            found=", ".join(f"{prefix}-?????-of-{count:05}" for count in sorted(counts)),
        )
    for count in counts:
        paths = [path.with_name(f"{prefix}-{n:05}-of-{count:05}") for n in range(count)]
        missing = [other for other in paths if not other.is_file()]
        if shard and len(missing) == count:
            return ()
        if missing:
            raise NotFoundError(f"a shard is missing: one of {count}", path=missing[0])
        return tuple(paths)
    return ()


def _beside(prefix: Path, rest: str) -> Iterator[Path]:
    """Files whose names are a prefix's and a pattern, sorted."""
    pattern = re.compile(re.escape(prefix.name) + rest)
    with contextlib.suppress(OSError):
        yield from sorted(p for p in prefix.parent.iterdir() if pattern.fullmatch(p.name))


def _version(path: Path) -> int:
    """1 or 2 for a table, by its first value: a V1 header starts with field 1 of a sub-message.

    0 for anything else. A file without the magic number at its end is still V1 when it starts like
    one: it is truncated, and opening it says so.
    """
    try:
        file = File(path)
    except NotFoundError:
        return 0
    try:
        if file.size < len(MAGIC):
            return 0
        if file.read(file.size - len(MAGIC), len(MAGIC)) != MAGIC:
            return V1 if _starts_as_v1(file.read(0, min(file.size, 32))) else 0
        try:
            value = Table(file).first()
        except SourceError:
            return V2 if path.suffix == ".index" else V1
        return V1 if value[:1] == b"\x0a" else V2
    finally:
        file.close()


def _starts_as_v1(head: bytes) -> bool:
    """Whether bytes are an entry with an empty key and a value that is one message in field 1."""
    from converter.formats._protobuf import read_varint

    try:
        nbytes, start = read_varint(head, 2, len(head))
        inner, at = read_varint(head, start + 1, len(head))
    except CorruptFileError:
        return False
    whole = at - start + inner == nbytes
    return head[:2] == b"\0\0" and head[start : start + 1] == b"\x0a" and whole


def _in_folder(folder: Path) -> Place | None:
    state = folder / STATE
    if state.is_file():
        found = _from_state(state)
        if found:
            return found
    try:
        files = [entry for entry in sorted(folder.iterdir())[:MAX_FILES] if entry.is_file()]
    except OSError:
        return None
    places = {
        Place(V2, (file,)) for file in files if file.suffix == ".index" and _version(file) == V2
    }
    if not places:
        saved_model = _saved_model(folder)
        if saved_model:
            return saved_model
        places = {Place(V1, _shards(file) or (file,)) for file in files if _version(file) == V1}
    if len(places) > 1:
        raise NotFoundError(
            "the folder holds several checkpoints, and no state file says which",
            path=folder,
            found=", ".join(sorted(place.paths[0].name for place in places)),
            hint="name one of them",
        )
    return next(iter(places), None)


def _saved_model(folder: Path) -> Place | None:
    index = folder / "variables" / "variables.index"
    return Place(V2, (index,)) if index.is_file() else None


def _from_state(state: Path) -> Place | None:
    """The latest checkpoint that a state file names; None when it names none.

    Paths are often those of the machine that trained, so the same name beside the state file
    counts. No path leads out of the folder: whoever made the file must not choose what is read.
    """
    if state.stat().st_size > MAX_STATE:
        return None
    line = re.search(_STATE_LINE, state.read_bytes())
    if line is None:
        return None
    written = os.fsdecode(re.sub(_ESCAPE, lambda found: _unescaped(found[1]), line[1]))
    target = Path(written)
    names = [re.split(r"[/\\]", written)[-1]]
    if not target.is_absolute() and ".." not in target.parts:
        names.insert(0, written)
    choices = [state.parent / name for name in names if Path(name).name]
    for choice in choices:
        place = _named(choice)
        if place:
            return place
    raise NotFoundError(
        "the checkpoint that the state file names is not beside it",
        path=state,
        expected=written,
        hint="name the checkpoint itself, or correct the state file",
    )


def _unescaped(code: bytes) -> bytes:
    if code[:1].isdigit():
        return bytes([int(code, 8) & 0xFF])
    return {b"n": b"\n", b"t": b"\t"}.get(code, code)
