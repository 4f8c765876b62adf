"""Writing what `torch.load(weights_only=True, mmap=True)` reads; see `torch` for the layout.

https://docs.pytorch.org/docs/stable/notes/serialization.html

    archive/data.pkl            an OrderedDict of names to `_rebuild_tensor_v2(…)`, protocol 2
    archive/byteorder           "little"
    archive/data/0, 1, …        the tensors, 64-byte aligned; tied ones once
    archive/version             "3"
    archive/extra/converter.json    metadata, when there are any

There is no `.format_version`: with it, torch may compute offsets instead of reading them.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.errors import TargetError, UnrepresentableError, context
from converter.files import Place, StagedFile, crc32
from converter.formats._names import name_problem
from converter.formats._pickle import Pickler
from converter.formats._sink import FileSink
from converter.formats._torch import (
    DTYPES,
    F4,
    FP4,
    FP4_PAIR,
    MAX_RANK,
    STORAGE_OF,
    UNTYPED,
)
from converter.formats._zip import ZipLayout, ZipWriter, raw
from converter.tensors import TensorSpec, dtype_name

METADATA = "extra/converter.json"
_ROOT = "archive/"


def problem(name: str, spec: TensorSpec) -> str:
    """Why torch cannot hold this tensor, "" when it can."""
    dtype = dtype_name(spec.dtype)
    if trouble := name_problem(name):
        return f"its name {trouble}"
    if dtype == FP4:
        paired = bool(spec.shape) and spec.shape[-1] % 2 == 0
        return "" if paired else f"torch packs {FP4} in pairs along the last axis"
    if len(spec.shape) > MAX_RANK:
        return f"it has more than {MAX_RANK} axes"
    if dtype not in DTYPES:
        return f"torch has no dtype {dtype}"
    return "" if spec.dtype.isnative else "its bytes are in foreign order"


class Body:
    """The content of an archive; every offset is known before the first tensor comes."""

    def __init__(
        self,
        specs: Mapping[str, TensorSpec],
        metadata: Mapping[str, str],
        ties: Sequence[Sequence[str]],
    ) -> None:
        self._specs = specs
        first = leaders(specs, ties)
        self.order: Sequence[str] = list(dict.fromkeys(first.values()))
        self.names: Iterable[str] = tuple(specs)
        keys = {name: str(number) for number, name in enumerate(self.order)}
        self._records = {name: f"{_ROOT}data/{keys[first[name]]}" for name in specs}
        pickled = _pickled(specs, {name: keys[first[name]] for name in specs})
        before = {"data.pkl": pickled, "byteorder": b"little"}
        after = {"version": b"3\n"}
        if metadata:
            after[METADATA] = json.dumps(dict(metadata), sort_keys=True).encode()
        self._small = {_ROOT + name: data for name, data in (before | after).items()}
        sizes = {_ROOT + name: len(data) for name, data in before.items()}
        sizes |= {self._records[name]: stored_nbytes(specs[name]) for name in self.order}
        sizes |= {_ROOT + name: len(data) for name, data in after.items()}
        self._layout = ZipLayout(sizes)
        self.nbytes = self._layout.nbytes

    def begin(self, staged: StagedFile) -> None:
        """Write the records that are not tensors."""
        self._staged = staged
        self._zip = ZipWriter(staged, self._layout)
        for name, data in self._small.items():
            self._zip.write(name, [data])

    def place(self, name: str) -> Place | None:
        """Where a tensor's elements lie; nowhere, where two of them share a byte."""
        if self._specs[name].dtype == F4:
            return None
        return Place(self._staged, self._zip.offset(self._records[name]), crc32)

    def placed(self, name: str, crc: int) -> None:
        """Take it that a tensor is at its place; of tied names, one is enough."""
        with context(tensor=name), self._tied(self._records[name]) as record:
            self._zip.placed(record, crc)

    def write(self, name: str, chunks: Iterable[NDArray[Any]]) -> None:
        """Take a tensor as consecutive 1-D C-order pieces; of tied names, one is enough."""
        dtype = self._specs[name].dtype
        pieces = _checked(chunks, dtype)
        with context(tensor=name), self._tied(self._records[name]) as record:
            self._zip.write(record, _paired(pieces) if dtype == F4 else pieces)

    @contextlib.contextmanager
    def _tied(self, record: str) -> Iterator[str]:
        """Raise `TargetError` when a record that was written before is another now."""
        before = self._zip.crcs.get(record)
        yield record
        if before not in (None, self._zip.crcs[record]):
            raise TargetError("tied tensors came with different values")

    def finish(self) -> None:
        """Write the directory."""
        self._zip.finish()


def body(
    path: Path,
    specs: Mapping[str, TensorSpec],
    metadata: Mapping[str, str],
    ties: Sequence[Sequence[str]],
) -> Body:
    """What goes into the file `path`; raises `UnrepresentableError`."""
    for name, spec in specs.items():
        if trouble := problem(name, spec):
            raise UnrepresentableError(trouble, path=path, tensor=name, found=spec)
    return Body(specs, metadata, ties)


def create(
    path: Path,
    specs: Mapping[str, TensorSpec],
    *,
    metadata: Mapping[str, str],
    ties: Sequence[Sequence[str]],
    overwrite: bool,
) -> FileSink:
    """A sink that writes what `torch.load(weights_only=True, mmap=True)` reads.

    Raises `UnrepresentableError`, `TargetExistsError` or `TargetError`.
    """
    return FileSink({path: body(path, specs, metadata, ties)}, overwrite=overwrite)


def leaders(specs: Mapping[str, TensorSpec], ties: Sequence[Sequence[str]]) -> dict[str, str]:
    """For every name the one whose storage it uses: its own, or that of the first it is tied to."""
    first = {name: name for name in specs}
    for group in ties:
        names = [name for name in group if name in specs]
        for name in names[1:]:
            if specs[name] == specs[names[0]]:
                first[name] = first[names[0]]
    return first


def stored_nbytes(spec: TensorSpec) -> int:
    """Bytes of a tensor in a file of torch."""
    return spec.nbytes // 2 if spec.dtype == F4 else spec.nbytes


def _checked(chunks: Iterable[NDArray[Any]], dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    for chunk in chunks:
        if chunk.dtype != dtype:
            raise TargetError("a piece has another dtype", expected=dtype, found=chunk.dtype)
        yield chunk


def _paired(chunks: Iterable[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    """Two 4-bit elements to a byte, the first in the low half; chunks may have odd sizes."""
    left = np.empty(0, np.uint8)
    for chunk in chunks:
        halves = np.concatenate([left, raw(chunk)])
        even = halves.size // 2 * 2
        yield halves[:even:2] & 0xF | halves[1:even:2] << 4
        left = halves[even:]
    if left.size:
        raise TargetError("the pieces of a tensor do not add up to whole bytes")


def _pickled(specs: Mapping[str, TensorSpec], keys: Mapping[str, str]) -> bytes:
    """An OrderedDict of tensors, as `state_dict()` gives it."""
    pickler = Pickler()
    pickler.name("collections", "OrderedDict")
    pickler.opcodes(b")R(")  # made empty, then all items under one mark
    for name, spec in specs.items():
        pickler.value(name)
        _pickle_tensor(pickler, spec, keys[name])
    pickler.opcodes(b"u")
    return pickler.finish()


def _pickle_tensor(pickler: Pickler, spec: TensorSpec, key: str) -> None:
    shape, dtype = spec.shape, dtype_name(spec.dtype)
    if dtype == FP4:
        shape, dtype = (*shape[:-1], shape[-1] // 2), FP4_PAIR
    typed = STORAGE_OF.get(dtype)
    pickler.name("torch._utils", "_rebuild_tensor_v2" if typed else "_rebuild_tensor_v3")
    pickler.opcodes(b"((")
    pickler.value("storage")
    pickler.name(*(("torch", typed) if typed else ("torch.storage", UNTYPED)))
    pickler.value(key)
    pickler.value("cpu")
    pickler.value(spec.size if typed else stored_nbytes(spec))
    pickler.opcodes(b"tQ")  # the persistent id of the storage
    pickler.value(0)
    pickler.value(shape)
    pickler.value(tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape))))
    pickler.value(value=False)  # requires_grad
    pickler.name("collections", "OrderedDict")
    pickler.opcodes(b")R")  # no hooks
    if not typed:
        pickler.name("torch", dtype)
    pickler.opcodes(b"tR")
