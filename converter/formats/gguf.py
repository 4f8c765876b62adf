"""GGUF, llama.cpp's format: named tensors, most of them quantised in blocks.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

    GGUF  version u32 (2 or 3)  number of tensors u64  number of keys u64
    each key       length u64, text, type u32, value; a string is a length u64 and its bytes,
                   an array a type u32, a count u64 and that many values
    each tensor    length u64, name, number of axes u32, sizes u64 (the last axis first),
                   type u32, offset u64 from where the data start
    padding        to a multiple of `general.alignment`, 32 when it is absent
    data           the tensors

Version 3 may be big-endian; then the version is, too, and the file is refused.  Floats and integers
are read as they are.  Quantised tensors are float32, as the library `gguf` dequantises them, which
is needed only when their values are read.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from converter import extras
from converter.errors import CorruptFileError, LimitError, UnsupportedError, context
from converter.files import BLOCK, File, Region
from converter.formats import Probe
from converter.formats._names import MAX_NAME, shown
from converter.formats._typed_fields import Found, Pages, size_of
from converter.layout import View
from converter.tensors import Checkpoint, dtype_of

MAGIC = b"GGUF"
MAX_AXES = 4  # of llama.cpp; more are read
MAX_KEYS = 100_000
MAX_TEXT = 4096  # bytes of a text that is kept as metadata
MAX_VALUES = 1_200_000  # strings in arrays: a vocabulary
PIECE = 1 << 16  # elements that are dequantised at a time, at least a block

_PLAIN = {
    0: "float32",
    1: "float16",
    24: "int8",
    25: "int16",
    26: "int32",
    27: "int64",
    28: "float64",
    30: "bfloat16",
}
_BLOCKS = {  # elements and bytes of a block
    2: (32, 18),
    3: (32, 20),
    6: (32, 22),
    7: (32, 24),
    8: (32, 34),
    9: (32, 40),
    10: (256, 84),
    11: (256, 110),
    12: (256, 144),
    13: (256, 176),
    14: (256, 210),
    15: (256, 292),
    16: (256, 66),
    17: (256, 74),
    18: (256, 98),
    19: (256, 50),
    20: (32, 18),
    21: (256, 110),
    22: (256, 82),
    23: (256, 136),
    29: (256, 56),
    34: (256, 54),
    35: (256, 66),
    39: (32, 17),
    40: (64, 36),
}
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # of values
_NUMBERS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?"}
_NUMBERS |= {10: "<u8", 11: "<i8", 12: "<f8"}
_STRING, _ARRAY = 8, 9


def recognise(probe: Probe) -> bool:
    """Whether this starts with the format's four letters."""
    return probe.head.startswith(MAGIC)


def open(path: Path) -> Checkpoint:  # noqa: A001 - the contract of a format
    """Open the tensors of a file; reads its header only.

    Raises `CorruptFileError`, `UnsupportedError` or `LimitError`.
    """
    with ExitStack() as stack, context(path=path):
        file = File(path)
        stack.callback(file.close)
        header = _Header(file)
        entries = header.read()
        found = Found()
        start = -(-header.position // header.alignment) * header.alignment
        for entry in entries:
            with context(tensor=shown(entry.name)):
                found.add(entry.name, _view(file, start, entry))
        found.check(file.size)
        close = stack.pop_all().close
        return found.checkpoint("gguf", path, close, metadata=header.metadata)


class _Entry(NamedTuple):
    """A tensor as the header describes it."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(slots=True)
class _Header:
    """Reads what precedes the data."""

    file: File
    position: int = len(MAGIC)
    alignment: int = 32
    metadata: dict[str, str] = field(default_factory=dict)
    pages: Pages = field(init=False)
    strings: int = MAX_VALUES

    def read(self) -> list[_Entry]:
        """All of it; the tensors."""
        self.pages = Pages(self.file)
        version = self.natural(4)
        if version not in {2, 3}:
            swapped = version in {2 << 24, 3 << 24}
            raise UnsupportedError(
                "a big-endian file" if swapped else f"version {version} of the format"
            )
        tensors, keys = self.natural(8), self.natural(8)
        if keys > MAX_KEYS:
            raise LimitError("too many keys", expected=f"<= {MAX_KEYS}", found=keys)
        for _ in range(keys):
            self._pair()
        return [self._entry() for _ in range(tensors)]  # the file ends before memory does

    def take(self, nbytes: int) -> bytes:
        """The next bytes."""
        start = self.position
        self.skip(nbytes)
        return self.pages[start : self.position]

    def skip(self, nbytes: int) -> None:
        """Pass bytes over; `CorruptFileError` when there are not so many."""
        if nbytes > self.file.size - self.position:
            raise CorruptFileError(
                "the file is truncated", offset=self.position, expected=f"{nbytes} bytes more"
            )
        self.position += nbytes

    def natural(self, nbytes: int) -> int:
        """The next number."""
        return int.from_bytes(self.take(nbytes), "little")

    def text(self, limit: int = MAX_NAME) -> str:
        """The next string."""
        start, nbytes = self.position, self.natural(8)
        if nbytes > limit:
            raise LimitError("a name is too long", offset=start, found=f"{nbytes} bytes")
        try:
            return self.take(nbytes).decode()
        except UnicodeDecodeError as error:
            raise CorruptFileError("a name is not UTF-8", offset=start) from error

    def _pair(self) -> None:
        key, kind = self.text(), self.natural(4)
        if kind == _ARRAY:
            self._array()
        elif kind == _STRING:
            start, nbytes = self.position, self.natural(8)
            if nbytes <= MAX_TEXT:
                self.metadata[key] = self.take(nbytes).decode("utf-8", "replace")
            else:
                self.position = start + 8
                self.skip(nbytes)
        else:
            value = np.frombuffer(self.take(self._width(kind)), _NUMBERS[kind])[0]
            self.metadata[key] = str(value)
            if key == "general.alignment":
                self._align(int(value))

    def _width(self, kind: int) -> int:
        if kind not in _WIDTHS:
            raise CorruptFileError(
                "a value of an unknown type", offset=self.position - 4, found=kind
            )
        return _WIDTHS[kind]

    def _align(self, value: int) -> None:
        if not 0 < value <= 1 << 20 or value & (value - 1):
            raise CorruptFileError("the alignment is not a power of two", found=value)
        self.alignment = value

    def _array(self) -> None:
        kind, count = self.natural(4), self.natural(8)
        if kind == _ARRAY:
            raise UnsupportedError("an array of arrays among the keys", offset=self.position)
        if kind != _STRING:
            self.skip(count * self._width(kind))
            return
        self.strings -= count
        if self.strings < 0:
            raise LimitError(f"more than {MAX_VALUES} strings among the keys")
        self._pass(count)

    def _pass(self, count: int) -> None:
        """Go past strings; a vocabulary has a million, so it reads many at once."""
        page, start, at = b"", 0, self.position
        for _ in range(count):
            if at - start + 8 > len(page):
                self.position, start = at, at
                self.skip(8)
                page = self.file.read(at, min(BLOCK, self.file.size - at))
            at += 8 + int.from_bytes(page[at - start : at - start + 8], "little")
            if at > self.file.size:
                break
        self.skip(at - self.position)

    def _entry(self) -> _Entry:
        name, axes = self.text(), self.natural(4)
        if axes > 8 * MAX_AXES:
            raise LimitError("a tensor has too many axes", tensor=shown(name), found=axes)
        sizes = [self.natural(8) for _ in range(axes)]
        return _Entry(name, tuple(sizes[::-1]), self.natural(4), self.natural(8))


# ── values ───────────────────────────────────────────────────────────────────────────────────────


def _view(file: File, start: int, entry: _Entry) -> View | str:
    plain = entry.kind in _PLAIN
    if not plain and entry.kind not in _BLOCKS:
        return f"elements of type {entry.kind}, which is not known"
    size = size_of(entry.shape)
    dtype = dtype_of(_PLAIN[entry.kind]) if plain else np.dtype(np.uint8)
    elements, width = (1, dtype.itemsize) if plain else _BLOCKS[entry.kind]
    last = entry.shape[-1] if entry.shape else 1
    if last % elements:
        raise CorruptFileError("a row is not a whole number of blocks", found=list(entry.shape))
    nbytes = size // elements * width
    if start + entry.offset + nbytes > file.size:
        raise CorruptFileError(
            "the tensor lies outside of the file",
            offset=start + entry.offset,
            expected=f"{nbytes} bytes",
            found=f"a file of {file.size} bytes",
            hint="compare its size with the original's",
        )
    region = Region(file, start + entry.offset, dtype, nbytes // dtype.itemsize, tensor=entry.name)
    if plain:
        return View.over(region, entry.shape)
    return View.over(_Quantised(region, entry.kind, size, entry.name), entry.shape)


class _Quantised:
    """A storage of blocks, each dequantised when one of its elements is read."""

    dtype = np.dtype(np.float32)

    def __init__(self, blocks: Region, kind: int, size: int, tensor: str) -> None:
        self.size = size
        self._blocks = blocks
        self._kind = kind
        self._tensor = tensor

    def read(self, start: int, out: NDArray[Any]) -> None:
        """Fill `out` with [start, start + out.size)."""
        with context(path=self._blocks.file.path, tensor=self._tensor):
            function = _dequantiser(self._kind)
            for done in range(0, out.size, PIECE):
                self._read(start + done, out[done : done + PIECE], function)

    def _read(self, start: int, out: NDArray[Any], function: Callable[[Any], Any]) -> None:
        elements, width = _BLOCKS[self._kind]
        first, last = start // elements, math.ceil((start + out.size) / elements)
        raw = np.empty((last - first) * width, np.uint8)
        self._blocks.read(first * width, raw)
        with np.errstate(all="ignore"):  # scales may be any bits
            values = function(raw.reshape(-1, width)).reshape(-1)
        skip = start - first * elements
        out[:] = values[skip : skip + out.size]


def _dequantiser(kind: int) -> Callable[[Any], Any]:
    extras.require("gguf")
    library = importlib.import_module("gguf")
    kinds = library.GGMLQuantizationType

    def function(blocks: Any) -> Any:
        try:
            return library.quants.dequantize(blocks, kinds(kind))
        except (NotImplementedError, ValueError) as error:
            raise UnsupportedError(f"the library gguf cannot dequantise type {kind}") from error

    return function
