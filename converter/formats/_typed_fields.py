"""Tensors inside protocol buffer messages, in place in a file: what ONNX, GraphDef and Caffe share.

https://protobuf.dev/programming-guides/encoding/#packed

    message  ─►  fields: tag, value, … ; a payload is passed over, not read
    a field of numbers, packed      tag 22, length, 00 00 80 3f  00 00 00 40 …      1.0, 2.0
    the same, one by one            tag 25, 00 00 80 3f, tag 25, 00 00 00 40 …
    varints                         tag 2a, length, 01 ac 02 …                      1, 300
    bytes as in memory              tag 4a, length, elements

Fixed-size elements in one run are a `Region`: any range is read by itself.  Everything else is
decoded by its first read, into at most eight times the bytes that are stored.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from converter.errors import CorruptFileError, LimitError, context
from converter.files import File, Region
from converter.formats._names import name_problem, shown
from converter.formats._protobuf import (
    BITS,
    LENGTH,
    MORE,
    decode_varints,
    fields,
)
from converter.layout import Storage, View
from converter.tensors import STRING, Checkpoint, Tensor, dtype_name

Array = NDArray[Any]

PAGE = 4096  # bytes read at a time where headers are
MAX_FIELDS = 10_000_000  # of all messages that are looked into
MAX_RANK = 32
MAX_RUNS = 10_000  # pieces of one tensor
MAX_SIZE = 1 << 58  # elements
MAX_TENSORS = 2_000_000
FREE_NBYTES = 4 << 30  # that any file may mean …
MAX_RATIO = 1000  # … and beyond, as a multiple of what it stores


# ── walking ──────────────────────────────────────────────────────────────────────────────────────


class Pages:
    """A file as a buffer: what is near each other is read together, and only when asked for."""

    def __init__(self, file: File) -> None:
        self.file = file
        self._start = 0
        self._page = b""

    def __len__(self) -> int:
        return self.file.size

    @overload
    def __getitem__(self, key: int, /) -> int: ...
    @overload
    def __getitem__(self, key: slice, /) -> bytes: ...
    def __getitem__(self, key: int | slice, /) -> int | bytes:
        if isinstance(key, int):
            at = key - self._start
            if not 0 <= at < len(self._page):
                self._turn(key)
                at = 0
            return self._page[at]
        start, stop, _ = key.indices(self.file.size)
        if stop - start > PAGE:
            return self.file.read(start, stop - start)
        if not self._start <= start <= stop <= self._start + len(self._page):
            self._turn(start)
        return self._page[start - self._start : stop - self._start]

    def _turn(self, start: int) -> None:
        if not 0 <= start < self.file.size:
            raise IndexError(start)
        self._page = self.file.read(start, min(PAGE, self.file.size - start))
        self._start = start


class Field(NamedTuple):
    """A field of a message: it begins at `begin`, its value is [start, stop)."""

    tag: int
    value: int  # the number, or its size
    begin: int
    start: int
    stop: int


class Walk:
    """Goes through messages of one file, and counts."""

    def __init__(self, file: File) -> None:
        self.file = file
        self.data = Pages(file)
        self._left = MAX_FIELDS

    def fields(self, start: int, stop: int) -> Iterator[Field]:
        """The fields of the message in [start, stop)."""
        begin = start
        for tag, value, first, end in fields(self.data, start, stop):
            self._left -= 1
            if self._left < 0:
                raise LimitError(f"the file has more than {MAX_FIELDS} fields", offset=begin)
            yield Field(tag, value, begin, first, end)
            begin = end

    def text(self, one: Field, limit: int = PAGE) -> str:
        """A field as text, at most `limit` bytes; `CorruptFileError` when it is not UTF-8."""
        if one.value > limit:
            raise LimitError(
                "a text is too long", offset=one.begin, expected=f"<= {limit}", found=one.value
            )
        try:
            return self.data[one.start : one.stop].decode()
        except UnicodeDecodeError as error:
            raise CorruptFileError("a text is not UTF-8", offset=one.begin) from error


def size_of(shape: Sequence[int]) -> int:
    """The number of elements; `CorruptFileError` or `LimitError` when it is not a shape's."""
    if len(shape) > MAX_RANK:
        raise LimitError("a tensor has too many axes", expected=f"<= {MAX_RANK}", found=len(shape))
    if min(shape, default=0) < 0:
        raise CorruptFileError("a dimension is negative", found=list(shape))
    if math.prod(n or 1 for n in shape) >= MAX_SIZE:
        raise LimitError("a shape is out of bounds", found=list(shape))
    return math.prod(shape)


# ── values ───────────────────────────────────────────────────────────────────────────────────────


class Run(NamedTuple):
    """Numbers in a row: the packed contents [start, stop), or fields of this tag one by one."""

    tag: int
    start: int
    stop: int
    packed: bool

    @property
    def nbytes(self) -> int:
        """What it takes in the file."""
        return self.stop - self.start


class Runs(list[Run]):
    """All values of one repeated field, in their order."""

    def add(self, one: Field, *, packed: bool | None = None) -> None:
        """Take a field in; `packed` says whether its contents are one value or many."""
        whole = one.tag & 7 == LENGTH if packed is None else packed
        last = self[-1] if self else None
        if whole:
            self.append(Run(one.tag, one.start, one.stop, packed=True))
        elif last and not last.packed and (last.tag, last.stop) == (one.tag, one.begin):
            self[-1] = last._replace(stop=one.stop)
        else:
            self.append(Run(one.tag, one.begin, one.stop, packed=False))
        if len(self) > MAX_RUNS:
            raise LimitError(f"a tensor is in more than {MAX_RUNS} pieces", offset=one.begin)

    @property
    def nbytes(self) -> int:
        """What all of them take in the file."""
        return sum(run.nbytes for run in self)


def fixed(width: int) -> Callable[[File, Run], Array]:
    """Decodes numbers of `width` bytes: `Run → (n, width)` bytes."""

    def decode(file: File, run: Run) -> Array:
        raw = np.frombuffer(file.read(run.start, run.nbytes), np.uint8)
        before = 0 if run.packed else _varint_size(raw)
        if raw.size % (before + width):
            raise CorruptFileError("a list of numbers is cut off", offset=run.start)
        rows = raw.reshape(-1, before + width)
        if not run.packed and (rows[:, :before] != rows[0, :before]).any():
            raise CorruptFileError("a list of numbers is written in two ways", offset=run.start)
        return np.ascontiguousarray(rows[:, before:]).reshape(-1)

    return decode


def _varint_size(raw: NDArray[np.uint8]) -> int:
    return int(np.argmax(raw < MORE)) + 1


def varints(file: File, run: Run) -> Array:
    """Decodes varints: `Run → (n,)` of uint64."""
    data = file.read(run.start, run.nbytes)
    count = int(np.count_nonzero(np.frombuffer(data, np.uint8) <= BITS))
    numbers = decode_varints(data, count)
    if run.packed:
        return numbers
    if (numbers[::2] != run.tag).any() or count % 2:
        raise CorruptFileError("a list of numbers is not one", offset=run.start)
    return np.ascontiguousarray(numbers[1::2])


def strings(file: File, run: Run) -> Array:
    """Decodes strings, each a field."""
    data = file.read(run.start, run.nbytes)
    found = [data[start:stop] for _, _, start, stop in fields(data, 0, len(data))]
    array = np.empty(len(found), STRING)
    array[:] = found
    return array


def integers(dtype: np.dtype[Any]) -> Callable[[Array], Array]:
    """What narrows uint64 of varints to an integer dtype, or to bool; nothing may be lost."""

    def narrow(numbers: Array) -> Array:
        if dtype == np.bool_:
            return np.not_equal(numbers, 0)
        wide = numbers if dtype == np.uint64 else numbers.view(np.int64)
        narrowed = wide.astype(dtype)
        if (narrowed.astype(wide.dtype) != wide).any():
            raise CorruptFileError(f"a number is not one of {dtype_name(dtype)}")
        return narrowed

    return narrow


def bit_patterns(dtype: np.dtype[Any]) -> Callable[[Array], Array]:
    """What takes integers for the bits of a float16, bfloat16, float8 …"""
    bits = integers(np.dtype(f"u{dtype.itemsize}"))

    def view(numbers: Array) -> Array:
        array: Array = bits(numbers).view(dtype)
        return array

    return view


def viewed(raw: Array, dtype: np.dtype[Any]) -> Array:
    """Bytes as elements; `CorruptFileError` when they end inside one, as inside a complex."""
    if raw.size % dtype.itemsize:
        raise CorruptFileError(f"the bytes end inside an element of {dtype_name(dtype)}")
    array: Array = raw.view(dtype)
    return array


class Decoded:
    """A storage of numbers that are decoded by the first read, and kept.

    `repeat`: when there are too few of them the last one stands for the rest, zeros when there
    is none at all.
    """

    def __init__(  # noqa: PLR0913 - a place, what lies there and how
        self,
        file: File,
        runs: Sequence[Run],
        decode: Callable[[File, Run], Array],
        finish: Callable[[Array], Array],
        dtype: np.dtype[Any],
        size: int,
        *,
        tensor: str,
        repeat: bool = False,
    ) -> None:
        self.dtype = dtype
        self.size = size
        self._file, self._runs, self._tensor = file, runs, tensor
        self._decode, self._finish = decode, finish
        self._repeat = repeat
        self._array: Array | None = None
        self._lock = threading.Lock()

    def read(self, start: int, out: Array) -> None:
        """Fill `out` with [start, start + out.size)."""
        with self._lock, context(path=self._file.path, tensor=self._tensor):
            if self._array is None:
                self._array = self._values()
        there = self._array[start : start + out.size]
        out[: there.size] = there
        if there.size < out.size:
            out[there.size :] = self._array[-1] if self._array.size else np.zeros((), self.dtype)

    def _values(self) -> Array:
        parts = [self._decode(self._file, run) for run in self._runs]
        joined = np.concatenate(parts) if parts else np.empty(0, np.uint64)
        array = self._finish(joined) if parts else np.empty(0, self.dtype)
        enough = array.size <= self.size if self._repeat else array.size == self.size
        if not enough:
            raise CorruptFileError(
                "the number of elements does not fit the shape",
                expected=self.size,
                found=array.size,
            )
        return array


class Bytes(NamedTuple):
    """Where the elements of a tensor lie as they do in memory."""

    file: File
    offset: int
    nbytes: int

    def storage(self, dtype: np.dtype[Any], size: int, *, bits: int = 0, tensor: str) -> Storage:
        """The elements, each of `bits` when those are fewer than its dtype's."""
        bits = bits or 8 * dtype.itemsize
        expected = -(-size * bits // 8)
        if self.nbytes != expected:
            raise CorruptFileError(
                "the stored size does not fit the shape",
                offset=self.offset,
                expected=f"{expected} bytes",
                found=f"{self.nbytes} bytes",
            )
        if bits == 8 * dtype.itemsize:
            return Region(self.file, self.offset, dtype, size, tensor=tensor)
        raw = Region(self.file, self.offset, np.dtype(np.uint8), self.nbytes, tensor=tensor)
        return Packed(raw, dtype, size, bits)


class Packed:
    """A storage of elements of 2, 4 or 6 bits, the first in the lowest bits."""

    def __init__(self, raw: Storage, dtype: np.dtype[Any], size: int, bits: int) -> None:
        self.dtype = dtype
        self.size = size
        self._raw = raw
        self._bits = bits

    def read(self, start: int, out: Array) -> None:
        """Fill `out` with [start, start + out.size)."""
        for done in range(0, out.size, PAGE):
            self._read(start + done, out[done : done + PAGE])

    def _read(self, start: int, out: Array) -> None:
        first = start * self._bits // 8
        last = -(-(start + out.size) * self._bits // 8)
        raw = np.empty(last - first, np.uint8)
        self._raw.read(first, raw)
        skip = start * self._bits - 8 * first
        bits = np.unpackbits(raw, bitorder="little")[skip : skip + out.size * self._bits]
        rows = bits.reshape(-1, self._bits)
        out.view(np.uint8)[:] = np.packbits(rows, axis=1, bitorder="little")[:, 0]


# ── the checkpoint ───────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Found:
    """Tensors as they are found."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    unsupported: dict[str, str] = field(default_factory=dict)
    nbytes: int = 0

    def __contains__(self, name: str) -> bool:
        return name in self.tensors or name in self.unsupported

    def add(self, name: str, view: View | str) -> None:
        """Take a tensor in, or the reason why there is none."""
        if trouble := name_problem(name):
            raise CorruptFileError(f"its name {trouble}", tensor=shown(name))
        if name in self:
            raise CorruptFileError("two tensors have this name", tensor=shown(name))
        if len(self.tensors) >= MAX_TENSORS or len(self.unsupported) >= MAX_TENSORS:
            raise LimitError(f"more than {MAX_TENSORS} tensors")
        if isinstance(view, str):
            self.unsupported[name] = view
        else:
            self.tensors[name] = Tensor(view)
            self.nbytes += view.nbytes

    def check(self, stored: int) -> None:
        """Few bytes must not mean many, by repeated values or by tensors that overlap."""
        most = max(FREE_NBYTES, MAX_RATIO * stored)
        if self.nbytes > most:
            raise LimitError(
                "the tensors mean far more bytes than are stored",
                expected=f"at most {most} bytes for {stored} stored",
                found=f"{self.nbytes} bytes",
            )

    def checkpoint(
        self, name: str, path: Path, close: Callable[[], None], **facts: Any
    ) -> Checkpoint:
        """All of it."""
        return Checkpoint(
            self.tensors,
            format=name,
            path=path,
            unsupported=self.unsupported,
            on_close=close,
            **facts,
        )


def tag(number: int, wire: int = LENGTH) -> int:
    """The tag of a field of this number and wire type."""
    return number << 3 | wire


def first_fields(head: bytes) -> list[tuple[int, int, bytes]] | None:
    """Tag, number or size, and the first bytes of the fields that begin here; None: no message."""
    found = []
    try:
        for one, value, start, stop in fields(head, 0, MAX_SIZE):
            found.append((one, value, head[start:stop]))
    except IndexError:  # the head ends
        return found
    except CorruptFileError:
        return None
    return found
