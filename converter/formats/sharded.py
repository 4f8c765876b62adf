"""Sets of files with an index, as the Hugging Face hub has them: safetensors and PyTorch shards.

https://huggingface.co/docs/huggingface_hub/package_reference/serialization

    model.safetensors.index.json          {"metadata": {"total_size": 28}, "weight_map": {
                                              "a": "model-00001-of-00002.safetensors",
                                              "b": "model-00002-of-00002.safetensors"}}
    model-00001-of-00002.safetensors      a complete file of the shards' format
    model-00002-of-00002.safetensors
    pytorch_model.bin.index.json, pytorch_model-00001-of-00002.bin, …      the same

The index is checked against the shards: each tensor lies in the shard that it names and in no
other, and no shard of the set is left over.  A shard is a sibling of the index.  A symbolic link
must lead to where the index's own link leads to (the hub's cache links both into one folder).

Sets of Keras (`net.weights.json`) are written here, too, and read by keras_v3.py.

A set is written with the index last; the shards of an old one make way only then.  When it is to be
resumable, a journal remembers which shards are complete: see converter/journal.py.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from converter import __version__, formats
from converter.errors import (
    ConverterError,
    CorruptFileError,
    LimitError,
    NotFoundError,
    SourceError,
    TargetError,
    UnrepresentableError,
    UnsafeContentError,
    UnsupportedError,
    context,
)
from converter.files import File, Interim
from converter.formats import Probe, Sink, _torch_write, safetensors
from converter.formats._names import shown
from converter.formats._shards import INDEX, SHARD, SUFFIXES, Target
from converter.formats._sink import Body, FileSink
from converter.journal import Journal, Obsolete
from converter.layout import View
from converter.tensors import Checkpoint, LazyTensors, TensorSpec

MAX_INDEX = 100_000_000  # bytes
MAX_SHARDS = 10_000
SHARD_NBYTES = 5_000_000_000  # of one shard, unless told

_HOLDERS = ("safetensors", "torch", "torch-legacy")  # the formats of shards


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


def recognise(probe: Probe) -> bool:
    """Whether this is an index, or a folder with one."""
    if probe.path.is_dir():
        return bool(_indices(probe.path))
    is_json = probe.head.lstrip().startswith(b"{")
    if b".weights.h5" in probe.head:  # Keras' index, of another kind
        return False
    return is_json and (probe.path.name.endswith(INDEX) or b'"weight_map"' in probe.head)


def _indices(folder: Path) -> list[Path]:
    """The indices in a folder, those of the better format only."""
    for suffix in SUFFIXES:
        found = sorted(folder.glob(f"*{suffix}{INDEX}"))
        if found:
            return found
    return []


def open(path: Path) -> Checkpoint:  # noqa: A001 - the name every format has
    """Open all shards of an index, or of the only index in a folder; reads headers only.

    Raises `CorruptFileError`, `UnsafeContentError`, `NotFoundError` or what opening a shard does.
    """
    index = _only_index(path) if path.is_dir() else path
    with ExitStack() as stack:
        with context(path=index):
            before = _facts(index)
            metadata, weight_map = _read_index(index)
            names = sorted(set(weight_map.values()))
            _check_set(index, names)
            shards = {name: stack.enter_context(_open_shard(index, name)) for name in names}
            homes = _homes(weight_map, shards)
            if _facts(index) != before:  # shards of two sets may have been opened
                raise SourceError("the index was replaced while its shards were opened")
        return Checkpoint(
            _tensors(homes, shards.values()),
            format="sharded",
            path=index,
            metadata=_metadata(metadata, shards.values()),
            ties=tuple(group for shard in shards.values() for group in shard.ties),
            unsupported={n: r for shard in shards.values() for n, r in shard.unsupported.items()},
            files=(index, *map(index.with_name, names)),
            on_close=stack.pop_all().close,
        )


def _tensors(homes: Mapping[str, Checkpoint], shards: Iterable[Checkpoint]) -> LazyTensors:
    specs: dict[str, TensorSpec] = {}
    for shard in shards:
        specs |= shard.specs

    def view(name: str) -> View:
        return homes[name][name].view

    return LazyTensors(specs, view)


def _facts(index: Path) -> tuple[int, ...] | None:
    """What tells one file of this name from the next."""
    try:
        now = index.stat()
    except OSError:
        return None
    return now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns


def _only_index(folder: Path) -> Path:
    found = _indices(folder)
    if len(found) != 1:
        raise UnsupportedError(
            f"{len(found)} indices in one folder",
            path=folder,
            found=", ".join(path.name for path in found[:8]),
            hint="name the one that is meant",
        )
    return found[0]


def _parsed(path: Path) -> Any:
    file = File(path)
    try:
        if file.size > MAX_INDEX:
            raise LimitError("the index is too long", expected=f"<= {MAX_INDEX}", found=file.size)
        data = file.read(0, file.size)
    finally:
        file.close()
    try:
        return json.loads(data.decode(), object_pairs_hook=_object)
    except RecursionError as error:
        raise LimitError("the index is nested too deeply") from error
    except ValueError as error:
        raise CorruptFileError(f"the index is not JSON: {error}") from error


def _read_index(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    index = _parsed(path)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    metadata = (index.get("metadata") or {}) if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not isinstance(metadata, dict):
        raise CorruptFileError("the index has no weight_map, or metadata of another kind")
    for name, shard in weight_map.items():
        _check_shard_name(name, shard)
    return metadata, weight_map


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise CorruptFileError("the index has a key twice", found=repr(twice[:200]))
    return fields


def _check_shard_name(tensor: str, name: Any) -> None:
    """A shard is named by the name of a sibling, and of a kind that shards have."""
    if not isinstance(name, str):
        raise CorruptFileError("a shard's name is not text", tensor=shown(tensor))
    plain = re.fullmatch(r"[^/\\\0-\x1f\x7f:]{1,255}", name) and not name.startswith(".")
    if not plain or not name.endswith(SUFFIXES):
        raise UnsafeContentError(
            "the index leads to something else than a file beside it",
            tensor=shown(tensor),
            expected=f"a plain name that ends in {', '.join(SUFFIXES)}",
            found=shown(name),
        )


def _check_set(index: Path, names: Sequence[str]) -> None:
    """Where shards are numbered, the index names all of them, and the folder has no more."""
    if len(names) > MAX_SHARDS:
        raise LimitError("too many shards", expected=f"<= {MAX_SHARDS}", found=len(names))
    numbered = {(m["stem"], m["total"], m["suffix"]) for m in map(SHARD.fullmatch, names) if m}
    for stem, total, suffix in sorted(numbered):
        pattern = re.compile(
            rf"{re.escape(stem)}-(?P<number>\d{{5,}})-of-{total}{re.escape(suffix)}"
        )
        mine = {int(m["number"]) for m in map(pattern.fullmatch, names) if m}
        there = {m[0] for path in index.parent.iterdir() if (m := pattern.fullmatch(path.name))}
        extra = sorted(there - set(names))
        if len(mine) != int(total) or (min(mine), max(mine)) != (1, int(total)):
            raise CorruptFileError(
                "the index does not name every shard of its set",
                expected=f"{stem}-…-of-{total}{suffix}, {int(total)} of them",
                found=f"{len(mine)} of them",
            )
        if extra:
            raise CorruptFileError(
                "the folder has a shard that the index does not name", found=extra[0]
            )


def _open_shard(index: Path, name: str) -> Checkpoint:
    path = index.with_name(name)
    try:
        real, beside = path.resolve(strict=True), index.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise NotFoundError(
            "a shard is missing", path=path, hint="the download may not be complete"
        ) from error
    if real.parent != beside.parent:
        raise UnsafeContentError(
            "a shard is a link that leads out of the index's folder", path=path, found=real
        )
    if not real.is_file():
        raise NotFoundError("is not a regular file", path=path)
    row = formats.recognise(path)
    if row.name not in _HOLDERS:
        raise UnsupportedError(f"a shard is of the format {row.name}", path=path)
    shard: Checkpoint = row.load().open(path)
    return shard


def _homes(
    weight_map: Mapping[str, str], shards: Mapping[str, Checkpoint]
) -> dict[str, Checkpoint]:
    """The shard of every tensor; it lies in the one that the index names, and nowhere else."""
    homes = {}
    for file, shard in shards.items():
        for name in (*shard, *shard.unsupported):
            if weight_map.get(name) != file and (name in weight_map or name in shard):
                what = (
                    "in another shard than the index says"
                    if name in weight_map
                    else ("in a shard, but not in the index")
                )
                raise CorruptFileError(f"the tensor is {what}", path=shard.path, tensor=shown(name))
            homes[name] = shard
    for name, file in weight_map.items():
        if name not in homes:
            raise CorruptFileError(
                "the tensor is not in its shard", path=shards[file].path, tensor=shown(name)
            )
    return homes


def _metadata(index: Mapping[str, Any], shards: Iterable[Checkpoint]) -> dict[str, str]:
    """What index and shards say, the first word of each; sizes are known from the tensors."""
    merged: dict[str, str] = {}
    for facts in (index, *(shard.metadata for shard in shards)):
        for key, value in facts.items():
            if key not in {"total_size", "total_parameters"}:
                merged.setdefault(key, value if isinstance(value, str) else json.dumps(value))
    return merged


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


def problem(name: str, spec: TensorSpec) -> str:
    """Why not both kinds of shard can hold this tensor, "" when they can."""
    return safetensors.problem(name, spec) or _torch_write.problem(name, spec)


def create(  # noqa: PLR0913 - what a target must know
    path: Path,
    specs: Mapping[str, TensorSpec],
    *,
    metadata: Mapping[str, str],
    ties: Sequence[Sequence[str]],
    overwrite: bool,
    shard_nbytes: int = SHARD_NBYTES,
    resume: str | None = None,
) -> Sink:
    """A sink for a set of shards of at most `shard_nbytes` bytes each, or of one tensor.

    `path` is the index; or the file that is written, alone, when one is enough.  `resume` tells
    where the values are from: shards of a run that died with the same text, and would have written
    the same set, are taken over.

    Raises `UnrepresentableError`, `TargetExistsError`, `NoSpaceError`, `TargetError`.
    """
    target = Target.of(path)
    kind = target.kind
    for name, spec in specs.items():
        if trouble := problem(name, spec) or kind.problem(name, spec):
            raise UnrepresentableError(trouble, path=path, tensor=shown(name), found=spec)
    groups = split(specs, ties if kind is _torch_write else (), kind, shard_nbytes)
    if len(groups) == 1 and path != target.path:
        single: Sink = kind.create(path, specs, metadata=metadata, ties=ties, overwrite=overwrite)
        return single
    paths = target.shards(len(groups))
    bodies = {
        shard: kind.body(shard, {name: specs[name] for name in group}, metadata, ties)
        for shard, group in zip(paths, groups, strict=True)
    }
    journal = None
    if resume is not None:
        shards = {path.name: list(body.order) for path, body in bodies.items()}
        described = {name: str(spec) for name, spec in specs.items()}
        key = _key(resume, described, dict(metadata), ties, shards)
        journal = Journal([*paths, target.path], key)
    return _ShardedSink(target, bodies, specs, overwrite=overwrite, journal=journal)


def _key(*parts: Any) -> str:
    """A digest of all that the bytes of a set follow from."""
    text = json.dumps([__version__, *parts], default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def split(
    specs: Mapping[str, TensorSpec],
    ties: Sequence[Sequence[str]],
    kind: Any,
    nbytes: int,
) -> list[list[str]]:
    """The names of each shard: in order, as many as fit, tied ones together."""
    if nbytes <= 0:
        raise TargetError("the size of a shard must be positive", found=nbytes)
    leaders = _torch_write.leaders(specs, ties)
    together: dict[str, list[str]] = {}
    for name, leader in leaders.items():
        together.setdefault(leader, []).append(name)
    shards: list[list[str]] = []
    current: list[str] = []
    room = nbytes
    for group in together.values():
        size = kind.stored_nbytes(specs[group[0]])
        if size > nbytes:
            shards.append(group)
            continue
        if size > room:
            shards.append(current)
            current, room = [], nbytes
        current += group
        room -= size
    return [*shards, current] if current or not shards else shards


class _ShardedSink(FileSink):
    """Shards, and an index that is written when they are complete."""

    def __init__(
        self,
        target: Target,
        bodies: Mapping[Path, Body],
        specs: Mapping[str, TensorSpec],
        *,
        overwrite: bool,
        journal: Journal | None = None,
    ) -> None:
        self._target = target
        self._groups = [list(body.names) for body in bodies.values()]
        self._total = sum(
            target.kind.stored_nbytes(specs[name])
            for body in bodies.values()
            for name in body.order
        )
        self._obsolete = Obsolete(target.path)
        try:
            super().__init__(
                bodies,
                overwrite=overwrite,
                extra=[target.path],
                related=_begun(target),
                journal=journal,
            )
        except BaseException:
            self._obsolete.close()
            raise

    def _publish(self) -> None:
        paths = self._target.shards(len(self._groups))
        self._publication.files[-1].write(0, self._index(paths))
        self.files = self._publication.commit(interim=self._interim, obsolete=self._left_over)
        self._obsolete.close(removed=True)

    def _left_over(self) -> list[Path]:
        """What the set that is there, and those before it, will leave over; it is written down."""
        used = _old_shards(self._target)
        noted = self._target.owned(self._obsolete.names)
        new = self._target.shards(len(self._groups))
        left = [path for path in dict.fromkeys((*used, *noted)) if path not in new]
        if left:
            self._obsolete.note([path.name for path in left])
        return left

    def abort(self) -> None:
        """Leave nothing behind but what can be resumed; harmless after `commit`."""
        super().abort()
        self._obsolete.close()

    def _interim(self, attempt: int) -> Interim:
        paths = self._target.shards(len(self._groups), f".{attempt}")
        return Interim(paths, self._index(paths))

    def _index(self, paths: Sequence[Path]) -> bytes:
        pairs = zip(paths, self._groups, strict=True)
        homes = {name: path.name for path, group in pairs for name in group}
        return self._target.index(homes, self._total)


def _begun(target: Target) -> list[Path]:
    """Shards of this stem, of sets of any size, of which a temporary file is there."""
    pattern = re.compile(r"\.(.+)\.[0-9a-f]{16}\.tmp")
    try:
        found = [pattern.fullmatch(path.name) for path in target.path.parent.iterdir()]
    except OSError:
        return []
    return target.owned(m[1] for m in found if m)


def _old_shards(target: Target) -> list[Path]:
    """The numbered shards of a set that is to be replaced; none when its index is no index."""
    try:
        values = _parsed(target.path)["weight_map"].values()
    except (ConverterError, OSError, AttributeError, LookupError, TypeError):
        return []
    listed = (name for value in values for name in (value if isinstance(value, list) else [value]))
    return target.owned(sorted({name for name in listed if isinstance(name, str)}))
