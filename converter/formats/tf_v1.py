"""TensorFlow V1 checkpoints: one file, or a set of shards that are each one.

https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/util/saved_tensor_slice.proto

    FILE                           a sorted string table (see _sstable.py)
        ""                         SavedTensorSlices {1: meta}
            meta                   every tensor {1: name, 2: shape, 3: dtype, 4: its slices}
        ordered code (see _tf.py)  SavedTensorSlices {2: data}, for each slice in this file
            data                   {1: name, 2: slice, 3: TensorProto}
            TensorProto            only a list of values in the field that fits the dtype

    lists of values                packed: floats as they are, integers and halves as varints

Large values are blocks of their own, and not compressed, so floats can be read in place.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from converter.errors import CorruptFileError, TargetError, UnrepresentableError, context
from converter.files import File, Publication, Region
from converter.formats import Probe, _tf
from converter.formats._protobuf import (
    FIXED32,
    FIXED64,
    LENGTH,
    VARINT,
    Buffer,
    decode_varints,
    encode_varints,
    fields,
    message,
    number,
    prefix,
)
from converter.formats._sstable import MAX_BLOCK, SNAPPY_RATIO, Block, Table, TableWriter
from converter.formats._tf import (
    DTYPES,
    NUMBERS,
    Part,
    Slice,
    assembled,
    box_of,
    check_complete,
    check_held,
    check_room,
    check_strings,
    check_version,
    decoded_name,
    in_memory_order,
    read_shape,
    read_slice,
    shape_bytes,
    slice_key,
    unheld,
)
from converter.formats._tf_paths import claims, located
from converter.layout import Computed, Memory, Storage, View
from converter.tensors import STRING, Checkpoint, LazyTensors, TensorSpec

Array = NDArray[Any]
WHOLE = -1  # the length of a slice's extent that covers an axis
MAX_VALUE = (1 << 31) - 1024  # bytes; TensorFlow keeps a kilobyte for the headers
CONTENT = 4 << 3 | LENGTH  # the tag of TensorProto.tensor_content: bytes as in memory


class _Field(NamedTuple):
    """Where TensorProto keeps values: the field, the wire type of one, its longest encoding."""

    number: int
    wire: int
    longest: int  # bytes an element


_INTEGERS = {
    np.dtype(name): _Field(7, VARINT, longest)
    for name, longest in {"int32": 10, "int16": 10, "int8": 10, "uint16": 3, "uint8": 2}.items()
}
_FIELDS: Mapping[np.dtype[Any], _Field] = {
    **_INTEGERS,
    np.dtype("float32"): _Field(5, FIXED32, 4),
    np.dtype("float64"): _Field(6, FIXED64, 8),
    STRING: _Field(8, LENGTH, 1),
    np.dtype("complex64"): _Field(9, FIXED32, 8),
    np.dtype("int64"): _Field(10, VARINT, 10),
    np.dtype("bool"): _Field(11, VARINT, 1),
    np.dtype("complex128"): _Field(12, FIXED64, 16),
    np.dtype("float16"): _Field(13, VARINT, 3),
}


def _is_fixed(dtype: np.dtype[Any]) -> bool:
    """Whether values are stored as they are in memory, so that their size is known."""
    return _FIELDS[dtype].wire in {FIXED32, FIXED64}


def recognise(probe: Probe) -> bool:
    """Whether the path is, or belongs to, a V1 checkpoint."""
    return claims(probe.path, 1)


def open(path: Path) -> Checkpoint:  # noqa: A001 - the contract of a format
    """Read the list of tensors; values are found and read when asked for.

    Raises `NotFoundError`, `CorruptFileError`, `ChecksumError`, `UnsupportedError`, `LimitError`.
    """
    paths = located(path).paths
    files: list[File] = []

    def close() -> None:
        for file in files:
            file.close()

    saved: dict[bytes, _Saved] = {}
    keys: dict[str, bytes] = {}
    specs: dict[str, TensorSpec] = {}
    unsupported: dict[str, str] = {}
    try:
        for place in paths:
            files.append(File(place))
            with context(path=place):
                _read_meta(Table(files[-1]), saved)
        with context(path=paths[0]):
            for key, tensor in saved.items():
                name, reason = decoded_name(key)
                if not reason and DTYPES.get(tensor.dtype) not in _FIELDS:
                    reason = unheld(tensor.dtype)
                if reason:
                    unsupported[name] = reason
                    continue
                with context(tensor=name):
                    tensor.check(name, key)
                keys[name], specs[name] = key, TensorSpec(tensor.shape, DTYPES[tensor.dtype])
    except BaseException:
        close()
        raise
    tensors = LazyTensors(specs, cache(lambda name: saved[keys[name]].view(name, keys[name])))
    return Checkpoint(
        tensors, "tf-v1", paths[0], unsupported=unsupported, files=paths, on_close=close
    )


# ── the list of tensors ──────────────────────────────────────────────────────────────────────────


class _Saved:
    """A SavedSliceMeta: a tensor and where its slices are."""

    def __init__(self, shape: tuple[int, ...], dtype: int) -> None:
        self.shape, self.dtype = shape, dtype
        self.slices: list[tuple[Table, Slice]] = []

    def check(self, name: str, key: bytes) -> None:
        """Raise `CorruptFileError` unless the slices make up the tensor, and can be there."""
        if len(self.slices) == 1 and self.slices[0][1] == _whole(self.shape):
            self._check_room(self.slices[0][0], self.shape)
        else:
            self.view(name, key)

    def view(self, name: str, key: bytes) -> View:
        """The tensor, assembled from its slices."""
        dtype = DTYPES[self.dtype]
        parts = []
        for table, cut in self.slices:
            box = box_of(cut, self.shape)
            shape = tuple(stop - start for start, stop in box)
            self._check_room(table, shape)
            size = TensorSpec(shape, dtype).size
            value = _Value(table, slice_key(key, cut), dtype, size, name)
            parts.append(Part(box, View.over(value.storage(), shape)))
        return assembled(self.shape, dtype, parts)

    def _check_room(self, table: Table, shape: tuple[int, ...]) -> None:
        """Every value takes some bytes, of which snappy may make one in SNAPPY_RATIO."""
        dtype = DTYPES[self.dtype]
        least = math.prod(shape) * (dtype.itemsize if _is_fixed(dtype) else 1)
        if least > SNAPPY_RATIO * table.file.size:
            raise CorruptFileError(
                "a slice has more elements than its file could hold",
                path=table.file.path,
                expected=f"at most {SNAPPY_RATIO * table.file.size} bytes",
                found=f"{least} bytes",
            )


def _read_meta(table: Table, saved: dict[bytes, _Saved]) -> None:
    """Add the tensors of one file to those of the others."""
    data = table.first()
    found = False
    room = 0
    for tag, _, start, end in fields(data, 0, len(data)):
        if tag == 1 << 3 | LENGTH:
            found = True
            for inner, _, first, stop in fields(data, start, end):
                if inner == 1 << 3 | LENGTH:
                    room += _read_tensor(data, first, stop, table, saved)
                elif inner == 2 << 3 | LENGTH:
                    check_version(data, first, stop)
    if not found:
        raise CorruptFileError("the file has no list of its tensors")
    table.largest = MAX_BLOCK + room


def _read_tensor(
    data: bytes, start: int, end: int, table: Table, saved: dict[bytes, _Saved]
) -> int:
    """Read a SavedSliceMeta; the bytes that its values may take at most."""
    name, dtype = b"", 0
    shape: tuple[int, ...] = ()
    slices = []
    for tag, value, first, stop in fields(data, start, end):
        if tag == 1 << 3 | LENGTH:
            name = data[first:stop]
        elif tag == 2 << 3 | LENGTH:
            shape = read_shape(data, first, stop)
        elif tag == 3 << 3 | VARINT:
            dtype = value
        elif tag == 4 << 3 | LENGTH:
            slices.append((table, read_slice(data, first, stop)))
    known = saved.setdefault(name, _Saved(shape, dtype))
    if (known.shape, known.dtype) != (shape, dtype):
        raise CorruptFileError(
            "the shards disagree about a tensor",
            tensor=name.decode(errors="backslashreplace"),
            expected=f"dtype {known.dtype}, shape {list(known.shape)}",
            found=f"dtype {dtype}, shape {list(shape)}",
        )
    known.slices += slices
    return 16 * TensorSpec(shape, STRING).size


def _whole(shape: Sequence[int]) -> Slice:
    return ((0, WHOLE),) * len(shape)


# ── values ───────────────────────────────────────────────────────────────────────────────────────


class _Value(NamedTuple):
    """A slice in a table, and how to get its elements."""

    table: Table
    key: bytes
    dtype: np.dtype[Any]
    size: int
    name: str

    def storage(self) -> Storage:
        """Its elements; nothing is looked for before they are read."""
        if _is_fixed(self.dtype):
            return _Floats(self)
        return Computed(self.size, self.dtype, self.array)

    def array(self) -> Array:
        """All elements, in memory."""
        with context(path=self.table.file.path, tensor=self.name):
            block, *place = self._found()
            block.verify(self.table.file)
            return self._decoded(block, *self._runs(block, *place))

    def region(self) -> Storage:
        """Floats in their place in the file, when they lie there in one run.

        A large block is verified by the first read of them, not before.
        """
        file = self.table.file
        with context(path=file.path, tensor=self.name):
            block, *place = self._found()
            try:
                runs, plain = self._runs(block, *place)
                if len(runs) == 1:
                    self._check_size(runs[0][1] - runs[0][0])
            except CorruptFileError:
                block.verify(file)  # which explains it, if it fails
                raise
            if len(runs) != 1 or block.base < 0:
                block.verify(file)
                return Memory(self._decoded(block, runs, plain))
            start, stop = runs[0]
            checksum = block.checksum(file, start, stop)
            if checksum is None:
                block.verify(file)
            offset = block.base + start
            return Region(file, offset, self.dtype, self.size, tensor=self.name, checksum=checksum)

    def _found(self) -> tuple[Block, int, int]:
        """The block with the slice, and where in its data the slice is."""
        found = self.table.find(self.key)
        if found is None:
            raise CorruptFileError("a slice of the tensor is not in the file")
        return found

    def _runs(self, block: Block, *place: int) -> tuple[list[tuple[int, int]], bool]:
        """Where the values lie in their block, and whether as they do in memory."""
        where = _FIELDS[self.dtype]
        lists = {where.number << 3 | LENGTH, where.number << 3 | where.wire}
        runs: list[tuple[int, int]] = []
        contents: list[tuple[int, int]] = []
        for tag, start, stop in _proto(block.data, *place):
            if tag in lists:
                runs.append((start, stop))
            elif tag == CONTENT:
                contents.append((start, stop))
        if contents and (runs or self.dtype == STRING):
            raise CorruptFileError("a tensor is stored twice, or in a form that it cannot have")
        return contents or runs, bool(contents)

    def _decoded(self, block: Block, runs: list[tuple[int, int]], plain: bool) -> Array:
        pieces = [block.data[start:stop] for start, stop in runs]
        if self.dtype == STRING:
            return self._strings(pieces)
        data = b"".join(pieces)
        if plain or _FIELDS[self.dtype].wire != VARINT:
            self._check_size(len(data))
            return np.frombuffer(data, self.dtype)
        return _narrowed(decode_varints(data, self.size), self.dtype)

    def _strings(self, strings: list[bytes]) -> Array:
        if len(strings) != self.size:
            raise CorruptFileError(
                "the number of strings does not fit the shape",
                expected=self.size,
                found=len(strings),
            )
        array = np.empty(self.size, STRING)
        array[:] = strings
        return array

    def _check_size(self, nbytes: int) -> None:
        expected = self.size * self.dtype.itemsize
        if nbytes != expected:
            raise CorruptFileError(
                "the stored size does not fit the shape",
                expected=f"{expected} bytes",
                found=f"{nbytes} bytes",
            )


class _Floats:
    """Floats that are looked for in the table when they are first read."""

    def __init__(self, value: _Value) -> None:
        self.dtype = value.dtype
        self.size = value.size
        self._value = value
        self._storage: Storage | None = None
        self._turn = threading.Lock()

    @property
    def storage(self) -> Storage:
        """Where they are."""
        with self._turn:  # tensors are read by several threads
            if self._storage is None:
                self._storage = self._value.region()
            return self._storage

    def read(self, start: int, out: Array) -> None:
        self.storage.read(start, out)

    def in_pieces(self) -> Storage:
        found = self.storage
        return found.in_pieces() if isinstance(found, Region) else found


def _proto(data: Buffer, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The fields of the TensorProto in a SavedTensorSlices."""
    for tag, _, first, stop in fields(data, start, end):
        if tag == 2 << 3 | LENGTH:
            for inner, _, low, high in fields(data, first, stop):
                if inner == 3 << 3 | LENGTH:
                    yield from ((key, at, to) for key, _, at, to in fields(data, low, high))


def _narrowed(values: NDArray[np.uint64], dtype: np.dtype[Any]) -> Array:
    """Numbers as they were before they became varints."""
    wide = values.view(np.int64)
    narrow: Array = wide.astype(np.uint16 if dtype.kind == "f" else dtype)
    if not np.array_equal(narrow, wide):
        raise CorruptFileError(f"a value is out of the range of {dtype}")
    restored: Array = narrow.view(dtype)
    return restored


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


def problem(name: str, spec: TensorSpec) -> str:
    """Why a tensor cannot be held, "" when it can."""
    reason = _tf.problem(name, spec, _FIELDS)
    if not reason and spec.size * _FIELDS[spec.dtype].longest > MAX_VALUE:
        reason = "a tensor may take at most 2 GiB"
    return reason


def create(
    path: Path,
    specs: Mapping[str, TensorSpec],
    *,
    metadata: Mapping[str, str],  # noqa: ARG001 - the format has no room for it
    ties: Sequence[Sequence[str]],  # noqa: ARG001 - likewise: every name is stored by itself
    overwrite: bool,
) -> _Sink:
    """A checkpoint of one file.

    Raises `UnrepresentableError`, `TargetExistsError`, `TargetError`.
    """
    check_held(path, specs, problem)
    return _Sink(path, specs, overwrite=overwrite)


class _Sink:
    """Tensors are written in the order of their keys; one that comes early waits in memory."""

    def __init__(self, path: Path, specs: Mapping[str, TensorSpec], *, overwrite: bool) -> None:
        self.files = (path,)
        self._specs = specs
        self._keys = {name: slice_key(name.encode(), _whole(specs[name].shape)) for name in specs}
        self.order = sorted(specs, key=self._keys.__getitem__)
        self._waiting: dict[str, list[Array]] = {}
        self._done = 0  # tensors in the file
        nbytes = sum(spec.nbytes for spec in specs.values() if _is_fixed(spec.dtype))
        self._publication = Publication(self.files, overwrite=overwrite, nbytes=nbytes)
        self._table = TableWriter(self._publication.files[0].append)
        meta = _meta_bytes(specs)
        self._table.add(b"", [meta], len(meta))

    def place(self, name: str) -> None:
        """Nowhere: the values of a block come one after the other, for its checksum."""

    def placed(self, name: str, crc: int) -> None:
        """Never, since nothing has a place."""

    def write(self, name: str, chunks: Iterable[Array]) -> None:
        if name in self._waiting or name != self._next():
            self._waiting[name] = [chunk.copy() for chunk in chunks]
            return
        self._add(name, chunks)
        while self._next() in self._waiting:
            waited = self._next()
            self._add(waited, self._waiting.pop(waited))

    def commit(self) -> None:
        if self._done < len(self.order):
            raise TargetError(
                "the tensor was never written", path=self.files[0], tensor=self._next()
            )
        self._table.finish()
        self._publication.commit()

    def abort(self) -> None:
        self._publication.abort()

    def _next(self) -> str:
        return self.order[self._done] if self._done < len(self.order) else ""

    def _add(self, name: str, chunks: Iterable[Array]) -> None:
        """Write a SavedTensorSlices with one slice, its values in pieces."""
        spec = self._specs[name]
        where = _FIELDS[spec.dtype]
        with context(path=self.files[0], tensor=name):
            if _is_fixed(spec.dtype):
                nbytes, pieces = spec.nbytes, _checked(chunks, spec)
            else:
                payload = _encoded(chunks, spec)
                nbytes, pieces = len(payload), iter([payload])
            packed = prefix(where.number, nbytes) if nbytes and spec.dtype != STRING else b""
            head = message(1, name.encode()) + message(2, message(1, b"") * len(spec.shape))
            head += prefix(3, len(packed) + nbytes) + packed
            head = prefix(2, len(head) + nbytes) + head
            self._table.add(self._keys[name], chain([head], pieces), len(head) + nbytes)
        self._done += 1


def _meta_bytes(specs: Mapping[str, TensorSpec]) -> bytes:
    """The SavedTensorSlices that lists all tensors."""
    tensors = []
    for key, name in sorted((name.encode(), name) for name in specs):
        shape = message(2, shape_bytes(specs[name].shape))
        dtype = number(3, NUMBERS[specs[name].dtype])
        whole = message(4, message(1, b"") * len(specs[name].shape))
        tensors.append(message(1, message(1, key) + shape + dtype + whole))
    return message(1, b"".join(tensors) + message(2, number(1, 1)))


def _checked(chunks: Iterable[Array], spec: TensorSpec) -> Iterator[bytes | NDArray[Any]]:
    """The bytes of a tensor, piece by piece, as many as was announced."""
    done = 0
    for chunk in chunks:
        piece = in_memory_order(chunk, spec.dtype)
        done += piece.nbytes
        check_room(done, spec.nbytes)
        yield piece
    check_complete(done, spec.nbytes)


def _encoded(chunks: Iterable[Array], spec: TensorSpec) -> bytes:
    """The values of a tensor that are not stored at a fixed width."""
    if spec.dtype == STRING:
        field = _FIELDS[STRING].number
        strings = check_strings(chunks, spec.size)
        encoded = b"".join(message(field, string) for string in strings)
        if len(encoded) > MAX_VALUE:
            raise UnrepresentableError("a tensor may take at most 2 GiB")
        return encoded
    parts = []
    count = 0
    for chunk in chunks:
        bits = in_memory_order(chunk, spec.dtype).view(spec.dtype)
        count += bits.size
        wide = bits.view(np.uint16) if spec.dtype.kind == "f" else bits
        parts.append(encode_varints(wide.astype(np.int64).view(np.uint64)))
    check_complete(count, spec.size)
    return b"".join(parts)
