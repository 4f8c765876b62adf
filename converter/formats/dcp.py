"""Folders of torch.distributed.checkpoint (DCP), read only: tensors in chunks, by several ranks.

https://github.com/pytorch/pytorch/blob/main/torch/distributed/checkpoint/metadata.py

    .metadata       pickle, protocol 4: Metadata with
        state_dict_metadata   name → TensorStorageMetadata(properties, size,
                              chunks [ChunkStorageMetadata(offsets, sizes), …])
                              or BytesStorageMetadata: some pickled object
        storage_data          MetadataIndex(name, offsets, …)
                              → _StorageInfo(relative_path, offset, length)
    __0_0.distcp    for each chunk, in [offset, offset + length), a whole zip of `torch.save`
    __1_0.distcp    what another rank wrote

Nested dictionaries were flattened by the writer: names are their paths.  Opening reads .metadata
only; the zip of a chunk is opened, and held against it, when its values are read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.errors import (
    CorruptFileError,
    LimitError,
    NotFoundError,
    UnsafeContentError,
    UnsupportedError,
    context,
)
from converter.files import File
from converter.formats import Probe
from converter.formats._names import name_problem, shown
from converter.formats._pickle import Stub, StubObject, Unpickler
from converter.formats._tf import Part, assembled
from converter.formats._torch import (
    DTYPES,
    F4,
    FREE_BYTES,
    MAX_EXPANSION,
    MAX_RANK,
    TABLE,
    naturals,
)
from converter.formats.torch import open_archive
from converter.layout import View
from converter.tensors import Checkpoint, Tensor, TensorSpec

METADATA = ".metadata"
MAX_METADATA = 256 << 20  # bytes
MAX_FILES = 10_000
_MODULE = b"torch.distributed.checkpoint"


def recognise(probe: Probe) -> bool:
    """Whether this is such a folder, or its .metadata."""
    if probe.path.name == METADATA:
        return _MODULE in probe.head
    path = probe.path / METADATA
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return _MODULE in stream.read(len(probe.head) or 512)


def open(path: Path) -> Checkpoint:  # noqa: A001 - the name every format has
    """Open the tensors of a folder, by its .metadata; nothing in it is run.

    Raises `CorruptFileError`, `LimitError`, `NotFoundError` or `UnsafeContentError`.
    """
    index = path if path.name == METADATA else path / METADATA
    with ExitStack() as stack:
        with context(path=index):
            folder = _Folder(index, stack)
            tensors = {}
            unsupported = {}
            for name, facts in folder.entries.items():
                with context(tensor=shown(str(name))):
                    made = folder.tensor(name, facts)
                if isinstance(made, str):
                    unsupported[shown(name)] = made
                else:
                    tensors[name] = Tensor(made)
        return Checkpoint(
            tensors,
            format="dcp",
            path=path,
            unsupported=unsupported,
            files=(index, *(file.path for file in folder.files.values())),
            on_close=stack.pop_all().close,
        )


class _Folder:
    """What .metadata says, and the files that it names."""

    def __init__(self, index: Path, stack: ExitStack) -> None:
        self._index = index
        self._stack = stack
        self.files: dict[str, File] = {}
        self._described = 0  # bytes of all tensors
        metadata = _fields(_unpickled(index), "Metadata")
        self.entries: dict[str, Any] = _dictionary(metadata.get("state_dict_metadata"))
        self._stored: dict[tuple[str, tuple[int, ...]], dict[str, Any]] = {}
        for key, value in _dictionary(metadata.get("storage_data")).items():
            place = _fields(key, "MetadataIndex")
            if place.get("offset") is not None:
                stored = str(place.get("fqn")), _naturals(place["offset"])
                if stored in self._stored:
                    raise CorruptFileError("a chunk is stored twice", tensor=shown(stored[0]))
                self._stored[stored] = _fields(value, "_StorageInfo")

    def tensor(self, name: str, entry: Any) -> View | str:
        """A tensor put together from its chunks; or why there is none."""
        if not isinstance(name, str) or (trouble := name_problem(name)):
            raise CorruptFileError(f"its name {trouble if isinstance(name, str) else 'is no text'}")
        if _kind(entry) == "BytesStorageMetadata":
            return "a pickled object, not a tensor"
        facts = _fields(entry, "TensorStorageMetadata")
        dtype, text = _dtype(facts.get("properties"))
        if dtype is None:
            return f"{text}: no such dtype in NumPy"
        shape = _elements(dtype, _shape(facts.get("size")))
        self._account(math.prod(shape) * dtype.itemsize)
        parts = []
        chunks = facts.get("chunks")
        for chunk in chunks if isinstance(chunks, list) else ():
            made = self._part(name, _fields(chunk, "ChunkStorageMetadata"), dtype)
            if isinstance(made, str):
                return made
            parts.append(made)
        if any(len(part.box) != len(shape) for part in parts):
            raise CorruptFileError("a chunk has another number of axes than its tensor")
        return assembled(shape, dtype, parts)

    def _part(self, name: str, chunk: Mapping[str, Any], dtype: np.dtype[Any]) -> Part | str:
        offsets, sizes = _naturals(chunk.get("offsets")), _shape(chunk.get("sizes"))
        if len(offsets) != len(sizes):
            raise CorruptFileError("a chunk has as many offsets as sizes, or is none")
        stored = self._stored.get((name, offsets))
        if stored is None:
            raise CorruptFileError("a chunk is not stored anywhere", found=list(offsets))
        if stored.get("transform_descriptors"):
            return "stored in a transformed (compressed) way"
        file = self._file(stored.get("relative_path"))
        start, nbytes = _naturals((stored.get("offset"), stored.get("length")))
        if start + nbytes > file.size:
            raise CorruptFileError(
                "the file of a chunk is shorter than .metadata says",
                path=file.path,
                offset=start,
                expected=f"at least {start + nbytes} bytes",
                found=f"{file.size} bytes",
                hint="a broken download is the usual cause",
            )
        offsets, sizes = _elements(dtype, offsets), _elements(dtype, sizes)
        storage = _Chunk(file, (start, start + nbytes), TensorSpec(sizes, dtype), name)
        box = tuple((low, low + n) for low, n in zip(offsets, sizes, strict=True))
        return Part(box, View.over(storage, sizes))

    def _file(self, name: Any) -> File:
        known = self.files.get(name) if isinstance(name, str) else None
        if known is None:
            if len(self.files) >= MAX_FILES:
                raise LimitError("too many files", expected=f"<= {MAX_FILES}")
            known = File(_beside(self._index, name))
            self._stack.callback(known.close)
            self.files[name] = known
        return known

    def _account(self, nbytes: int) -> None:
        """A short .metadata must not describe more than anything real."""
        self._described += nbytes
        if self._described > FREE_BYTES:
            stored = sum(path.lstat().st_size for path in self._index.parent.iterdir())
            if self._described > MAX_EXPANSION * stored:
                raise LimitError(
                    "the folder describes far more than it stores",
                    expected=f"at most {MAX_EXPANSION} times its {stored} bytes",
                    found=f"{self._described} bytes",
                )


class _Chunk:
    """A Storage of the elements of one chunk, whose zip is opened when they are read."""

    def __init__(self, file: File, place: tuple[int, int], spec: TensorSpec, name: str) -> None:
        self.dtype = spec.dtype
        self.size = spec.size
        self._file = file
        self._place = place
        self._spec = spec
        self._name = name
        self._view: View | None = None

    def read(self, start: int, out: NDArray[Any]) -> None:
        """Fill `out` with the elements from `start` on."""
        if self._view is None:
            with context(path=self._file.path, tensor=self._name):
                self._view = self._open()
        self._view.read(start, out)

    def _open(self) -> View:
        found = open_archive(self._file, *self._place)
        specs = list(found.specs.values())
        if specs != [self._spec]:
            raise CorruptFileError(
                "a chunk is not what .metadata says",
                offset=self._place[0],
                expected=self._spec,
                found=", ".join(map(str, specs[:3])) or "no tensor",
            )
        return next(iter(found.values())).view


# ── the pickle ───────────────────────────────────────────────────────────────────────────────────


def _unpickled(path: Path) -> Any:
    file = File(path)
    try:
        if file.size > MAX_METADATA:
            raise LimitError("too long", expected=f"<= {MAX_METADATA} bytes", found=file.size)
        data = file.read(0, file.size)
    finally:
        file.close()
    unpickler = Unpickler(data, TABLE, where=METADATA)
    saved = unpickler.load()
    if unpickler.position != len(data):
        raise CorruptFileError(".metadata goes on after its end", offset=unpickler.position)
    return saved


def _kind(value: Any) -> str:
    return value.function.name if isinstance(value, StubObject) else ""


def _fields(value: Any, kind: str) -> dict[str, Any]:
    """The attributes of an object of this class."""
    if _kind(value) != kind or not isinstance(value.state, dict):
        raise CorruptFileError(f".metadata has something else where {kind} should be")
    return value.state


def _dictionary(value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise CorruptFileError(".metadata has something else where a dictionary should be")
    return value


def _naturals(values: Any) -> tuple[int, ...]:
    try:
        return naturals(values)
    except TypeError as error:
        raise CorruptFileError(f".metadata has {error}", found=shown(repr(values)[:80])) from error


def _shape(values: Any) -> tuple[int, ...]:
    shape = _naturals(values)
    if len(shape) > MAX_RANK:
        raise LimitError(f"more than {MAX_RANK} axes")
    return shape


def _elements(dtype: np.dtype[Any], sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The same in elements: of 4-bit ones, torch counts pairs along the last axis."""
    return (*sizes[:-1], 2 * sizes[-1]) if dtype == F4 and sizes else sizes


def _dtype(properties: Any) -> tuple[np.dtype[Any] | None, str]:
    """The dtype in TensorProperties, whose state is a tuple, or was a dictionary."""
    state = properties.state if isinstance(properties, StubObject) else None
    dtype = next(_values(state), None)
    text = dtype.name if isinstance(dtype, Stub) else "an unknown dtype"
    return DTYPES.get(text), shown(text)


def _values(state: Any) -> Iterator[Any]:
    if isinstance(state, dict | tuple):
        yield from (state.values() if isinstance(state, dict) else state)


def _beside(index: Path, name: Any) -> Path:
    """The path of a file that .metadata names: a plain one in its folder."""
    if not isinstance(name, str) or Path(name).name != name or "\0" in name or "\\" in name:
        raise UnsafeContentError(
            ".metadata leads to something else than a file beside it",
            expected="a plain name",
            found=shown(str(name)),
        )
    path = index.with_name(name)
    try:
        real, folder = path.resolve(strict=True), index.resolve(strict=True).parent
    except (OSError, RuntimeError) as error:
        raise NotFoundError("a file of the checkpoint is missing", path=path) from error
    if real.parent != folder:
        raise UnsafeContentError("a file is a link that leads out of its folder", path=path)
    if real == index.resolve():
        raise UnsupportedError("chunks inside .metadata", path=path)
    return path
