"""Flax: one msgpack map of maps, with the arrays in it as extension types.

https://github.com/google/flax (flax/serialization.py), https://github.com/msgpack/msgpack (spec.md)

    81                          a map of one pair: 8x, de u16, df u32
      a6 'params'               its key: ax, d9 u8, da u16, db u32
      81 a6 'kernel'            its value: another map …
         c7 n 01                an extension (c7 u8, c8 u16, c9 u32; d4…d8) of n bytes and type 1
            93                    a list of three
              92 03 04              the shape
              a7 'float32'          the dtype's name: NumPy's, or ml_dtypes'
              c4 30 …               the elements, little-endian, in C order
    type 3                      the same for a scalar of NumPy; type 2 a complex number
    an array above 1 GiB        {"__msgpack_chunked_array__": true, "shape": {"0": …}, "chunks":
                                {"0": array, …}}: flat pieces

A tensor's name is its keys, joined by "/".  Only headers are read: the elements are skipped.
What is not an array (a step that is a plain integer, say) is listed as unsupported.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from converter.errors import (
    CorruptFileError,
    LimitError,
    TargetError,
    UnrepresentableError,
    UnsupportedError,
    context,
)
from converter.files import File, Place, Publication, Region
from converter.formats import Probe
from converter.formats._names import MAX_NAME, name_problem, shown
from converter.layout import Joined, View
from converter.tensors import STRING, Checkpoint, Tensor, TensorSpec, dtype_name, dtype_of

CHUNKED = "__msgpack_chunked_array__"
MAX_CHUNK = 1 << 30  # bytes of an array in one piece
MAX_DEPTH = 100
MAX_ENTRIES = 4_000_000  # of all maps and lists
MAX_RANK = 32
MAX_SIZE = 1 << 60  # elements
WINDOW = 1 << 14  # bytes read at a time

# ── reading ──────────────────────────────────────────────────────────────────────────────────────


class _Array(NamedTuple):
    """An array as its header describes it."""

    shape: tuple[int, ...]
    dtype: str
    offset: int
    nbytes: int


class _Other(NamedTuple):
    """A value that is not an array, in words."""

    text: str


_UINTS = {0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h"}
_NUMBERS = _UINTS | {0xD2: ">i", 0xD3: ">q", 0xCA: ">f", 0xCB: ">d"}
_CONSTANTS = {0xC0: _Other("nothing"), 0xC2: _Other("bool False"), 0xC3: _Other("bool True")}
_STRINGS = {0xD9: 1, 0xDA: 2, 0xDB: 4}  # and how many bytes say how long they are
_BINARIES = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_LISTS = {0xDC: 2, 0xDD: 4}
_MAPS = {0xDE: 2, 0xDF: 4}
_EXTENSIONS = {0xC7: 1, 0xC8: 2, 0xC9: 4}


class _Walker:
    """Reads values one after the other; elements of arrays are passed over."""

    def __init__(self, file: File) -> None:
        self.position = 0
        self._file = file
        self._window = b""
        self._start = 0  # of the window
        self._entries = MAX_ENTRIES

    def whole(self) -> dict[str, Any]:
        """All of the file."""
        root = self.value()
        if self.position != self._file.size:
            raise CorruptFileError("the file goes on after its end", offset=self.position)
        if not isinstance(root, dict):
            raise CorruptFileError("the file is not a map of names")
        return root

    def take(self, nbytes: int) -> bytes:
        """The next bytes."""
        at = self.position - self._start
        if at < 0 or at + nbytes > len(self._window):
            size = max(nbytes, min(WINDOW, self._file.size - self.position))
            self._window, self._start, at = self._file.read(self.position, size), self.position, 0
        self.position += nbytes
        return self._window[at : at + nbytes]

    def natural(self, nbytes: int) -> int:
        """The next unsigned number."""
        return int.from_bytes(self.take(nbytes), "big")

    def value(self, depth: int = 0) -> Any:  # noqa: PLR0911 - a return for each kind
        """The next value: a dict, a list, an `_Array`, an int, a str or an `_Other`."""
        if depth > MAX_DEPTH:
            raise LimitError(f"maps are nested more than {MAX_DEPTH} deep", offset=self.position)
        start = self.position
        code = self.natural(1)
        if code < 0x80 or code >= 0xE0:  # noqa: PLR2004 - ranges of the specification
            return code if code < 0x80 else code - 256  # noqa: PLR2004
        if code in _CONSTANTS:
            return _CONSTANTS[code]
        if code in _NUMBERS:
            (number,) = struct.unpack(_NUMBERS[code], self.take(struct.calcsize(_NUMBERS[code])))
            return number if isinstance(number, int) else _Other(f"float {number}")
        if code <= 0x8F or code in _MAPS:  # noqa: PLR2004
            return self._map(self._count(code, _MAPS), depth)
        if code <= 0x9F or code in _LISTS:  # noqa: PLR2004
            count = self._counted(self._count(code, _LISTS))
            return [self.value(depth + 1) for _ in range(count)]
        if code <= 0xBF or code in _STRINGS:  # noqa: PLR2004
            return self._string(code)
        return self._bytes(code, start)

    def _count(self, code: int, wide: Mapping[int, int]) -> int:
        return self.natural(wide[code]) if code in wide else code & 15

    def _counted(self, count: int) -> int:
        self._entries -= count
        if self._entries < 0:
            raise LimitError(f"more than {MAX_ENTRIES} entries", offset=self.position)
        return count

    def _map(self, count: int, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(self._counted(count)):
            key = self.value(depth + 1)
            if not isinstance(key, str | int):
                raise CorruptFileError("a key is not text", offset=self.position)
            if str(key) in found:
                raise CorruptFileError(f"the key {shown(str(key))!r} is there twice")
            found[str(key)] = self.value(depth + 1)
        return found

    def _string(self, code: int) -> str | _Other:
        nbytes = self.natural(_STRINGS[code]) if code in _STRINGS else code & 31
        if nbytes > MAX_NAME:
            self._skip(nbytes)
            return _Other(f"text of {nbytes} bytes")
        try:
            return self.take(nbytes).decode()
        except UnicodeDecodeError as error:
            raise CorruptFileError("a text is not UTF-8", offset=self.position - nbytes) from error

    def _bytes(self, code: int, start: int) -> Any:
        if code in _BINARIES:
            nbytes = self.natural(_BINARIES[code])
            self._skip(nbytes)
            return _Other(f"{nbytes} bytes")
        if code not in _EXTENSIONS and not 0xD4 <= code <= 0xD8:  # noqa: PLR2004
            raise CorruptFileError("not msgpack", offset=start, found=f"{code:#04x}")
        nbytes = self.natural(_EXTENSIONS[code]) if code in _EXTENSIONS else 1 << (code - 0xD4)
        kind = self.natural(1)
        end = self.position + nbytes
        found: Any = _Other("complex" if kind == 2 else f"extension type {kind}")  # noqa: PLR2004
        if kind in {1, 3}:
            found = self._array()
            if self.position != end:
                raise CorruptFileError("an array has another size than announced", offset=start)
        else:
            self._skip(nbytes)
        return found

    def _skip(self, nbytes: int) -> None:
        if self.position + nbytes > self._file.size:
            raise CorruptFileError(
                "the file is truncated",
                offset=self.position,
                expected=f"{nbytes} bytes",
                found=f"{self._file.size - self.position} bytes",
            )
        self.position += nbytes

    def _array(self) -> _Array:
        start = self.position
        head = self.take(1)
        shape, dtype, code = self.value(MAX_DEPTH - 1), self.value(MAX_DEPTH), self.natural(1)
        good = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)
        if head != b"\x93" or not good or not isinstance(dtype, str) or code not in _BINARIES:
            raise CorruptFileError("not the header of an array", offset=start)
        if len(shape) > MAX_RANK or math.prod(n or 1 for n in shape) >= MAX_SIZE:
            raise LimitError("the shape is out of bounds", offset=start, found=shape[:40])
        nbytes = self.natural(_BINARIES[code])
        offset = self.position
        self._skip(nbytes)
        return _Array(tuple(shape), dtype, offset, nbytes)


def recognise(probe: Probe) -> bool:
    """Whether a map starts here, with a key that is text; or is all there is, and empty."""
    head = probe.head
    at = {0xDE: 3, 0xDF: 5}.get(head[0], 1 if 0x80 < head[0] <= 0x8F else 0) if head else 0  # noqa: PLR2004
    if not at:
        return head == b"\x80"
    key = head[at : at + 2].ljust(2, b"\0")
    text = head[at + 1 :][: key[0] & 31] if 0xA0 < key[0] <= 0xBF else b"\0"  # noqa: PLR2004
    return key[0] in {0xD9, 0xDA} or (text.decode("utf-8", "ignore").isprintable() and text != b"")


def open(path: Path) -> Checkpoint:  # noqa: A001 - the name every format has
    """The arrays of one file; reads headers only.

    Raises `CorruptFileError`, `UnsupportedError` or `LimitError`.
    """
    file = File(path)
    try:
        with context(path=path):
            walker = _Walker(file)
            found = _Found(file)
            for name, value in walker.whole().items():
                found.take(value, name)
    except BaseException:
        file.close()
        raise
    return Checkpoint(
        found.tensors,
        format="flax",
        path=path,
        unsupported=found.unsupported,
        on_close=file.close,
    )


@dataclass(slots=True)
class _Found:
    file: File
    tensors: dict[str, Tensor] = field(default_factory=dict)
    unsupported: dict[str, str] = field(default_factory=dict)

    def take(self, value: Any, name: str) -> None:
        """Take a value in, under its name."""
        if isinstance(value, dict) and CHUNKED in value:
            self._add(name, self._joined(value, name))
        elif isinstance(value, dict | list) and value:
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            for key, child in pairs:
                self.take(child, f"{name}/{key}")
        elif isinstance(value, _Array):
            self._add(name, self._view(value, name))
        else:
            text = value.text if isinstance(value, _Other) else f"{type(value).__name__} {value}"
            self._add(name, shown(f"{text}, not an array"))

    def _add(self, name: str, view: View | str) -> None:
        if trouble := name_problem(name):
            raise CorruptFileError(f"its name {trouble}", tensor=shown(name))
        if name in self.tensors or name in self.unsupported:
            raise UnsupportedError("two entries get this name", tensor=name)
        if isinstance(view, str):
            self.unsupported[name] = view
        else:
            self.tensors[name] = Tensor(view)

    def _view(self, array: _Array, name: str) -> View | str:
        try:
            dtype = dtype_of(array.dtype)
        except ValueError:
            return f"dtype {shown(array.dtype)} is not supported"
        if dtype == STRING:
            return "an array of strings"
        size = math.prod(array.shape)
        if size * dtype.itemsize != array.nbytes:
            raise CorruptFileError(
                "shape and dtype do not give the size of the data",
                tensor=shown(name),
                offset=array.offset,
                expected=f"{size * dtype.itemsize} bytes for {array.dtype} {list(array.shape)}",
                found=f"{array.nbytes} bytes",
            )
        region = Region(self.file, array.offset, dtype, size, tensor=name)
        return View.over(region, array.shape)

    def _joined(self, value: dict[str, Any], name: str) -> View | str:
        """An array in pieces."""
        shape, pieces = (_in_order(value.get(key)) for key in ("shape", "chunks"))
        arrays = [piece for piece in pieces if isinstance(piece, _Array) and len(piece.shape) == 1]
        size = sum(array.shape[0] for array in arrays)
        sound = all(type(n) is int and n >= 0 for n in shape) and len(arrays) == len(pieces) > 0
        if not sound or len({a.dtype for a in arrays}) != 1 or math.prod(shape) != size:
            raise CorruptFileError("the pieces of an array do not fit", tensor=shown(name))
        if len(shape) > MAX_RANK:
            raise LimitError("the shape is out of bounds", tensor=shown(name))
        views = [self._view(array, name) for array in arrays]
        good = [view for view in views if isinstance(view, View)]
        return View.over(Joined(good), shape) if len(good) == len(views) else str(views[0])


def _in_order(value: Any) -> list[Any]:
    """The values of a map with the keys "0", "1", …; [None] when it is none."""
    if not isinstance(value, dict) or value.keys() != set(map(str, range(len(value)))):
        return [None]
    return [value[str(number)] for number in range(len(value))]


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


def problem(name: str, spec: TensorSpec) -> str:
    """Why Flax cannot hold this tensor, "" when it can."""
    if trouble := name_problem(name):
        return f"its name {trouble}"
    if name.count("/") >= MAX_DEPTH - 4:
        return "its name has too many parts"
    if CHUNKED in name.split("/"):
        return "its name has a part with a meaning of its own"
    if len(spec.shape) > MAX_RANK:
        return f"it has more than {MAX_RANK} axes"
    if spec.dtype == STRING:
        return "Flax has no arrays of strings"
    return "" if spec.dtype.isnative else "its bytes are in foreign order"


def create(
    path: Path,
    specs: Mapping[str, TensorSpec],
    *,
    metadata: Mapping[str, str],  # noqa: ARG001 - there is no place for it
    ties: Sequence[Sequence[str]],  # noqa: ARG001 - tied names are each written in full
    overwrite: bool,
) -> _Sink:
    """A sink for one file, as `flax.serialization.msgpack_restore` reads it.

    Raises `UnrepresentableError`, `TargetExistsError`, `NoSpaceError`, `TargetError`.
    """
    with context(path=path):
        tree: dict[str, Any] = {}
        for name, spec in specs.items():
            if trouble := problem(name, spec):
                raise UnrepresentableError(trouble, tensor=shown(name), found=spec)
            _plant(tree, name)
        layout = _Layout(specs)
        layout.put(tree)
    return _Sink(path, specs, layout, overwrite=overwrite)


def _plant(tree: dict[str, Any], name: str) -> None:
    *groups, leaf = name.split("/")
    for group in groups:
        tree = tree.setdefault(group, {})
        if not isinstance(tree, dict):
            break
    if not isinstance(tree, dict) or leaf in tree:
        raise UnrepresentableError(
            "its name makes a map of another tensor's, or the other way round", tensor=shown(name)
        )
    tree[leaf] = name


class _Place(NamedTuple):
    """Elements [start, stop) of a tensor belong at this offset."""

    offset: int
    start: int
    stop: int


class _Layout:
    """Everything but the elements, and where those go."""

    def __init__(self, specs: Mapping[str, TensorSpec]) -> None:
        self._specs = specs
        self.headers: list[tuple[int, bytes]] = []
        self.places: dict[str, list[_Place]] = {}
        self.nbytes = 0

    def put(self, value: Any) -> None:
        """Append a map of maps and of names of tensors, depth first."""
        if isinstance(value, dict):
            self._raw(_head(len(value), 0x80, 15, _MAPS))
            for key, child in value.items():
                self._raw(_text(key))
                self.put(child)
            return
        spec = self._specs[value]
        self.places[value] = []
        if spec.nbytes <= MAX_CHUNK:
            self._array(value, spec.shape, 0, spec.size)
            return
        self._raw(b"\x83" + _text(CHUNKED) + b"\xc3" + _text("shape"))
        self._raw(_head(len(spec.shape), 0x80, 15, _MAPS))
        for number, size in enumerate(spec.shape):
            self._raw(_text(str(number)) + _natural(size))
        step = max(1, MAX_CHUNK // spec.dtype.itemsize)
        starts = range(0, spec.size, step)
        self._raw(_text("chunks") + _head(len(starts), 0x80, 15, _MAPS))
        for number, start in enumerate(starts):
            self._raw(_text(str(number)))
            stop = min(start + step, spec.size)
            self._array(value, (stop - start,), start, stop)

    def _array(self, name: str, shape: tuple[int, ...], start: int, stop: int) -> None:
        dtype = self._specs[name].dtype
        nbytes = (stop - start) * dtype.itemsize
        head = b"\x93" + _head(len(shape), 0x90, 15, _LISTS) + b"".join(map(_natural, shape))
        head += _text(dtype_name(dtype)) + _head(nbytes, 0, -1, _BINARIES)
        total = len(head) + nbytes
        fixed = {16: b"\xd8"}  # the only such size that an array can have
        self._raw(fixed.get(total) or _head(total, 0, -1, _EXTENSIONS))
        self._raw(b"\1" + head)
        self.places[name].append(_Place(self.nbytes, start, stop))
        self.nbytes += nbytes

    def _raw(self, data: bytes) -> None:
        last, text = self.headers[-1] if self.headers else (0, b"")
        if self.headers and last + len(text) == self.nbytes and len(text) < WINDOW:
            self.headers[-1] = (last, text + data)
        else:
            self.headers.append((self.nbytes, data))
        self.nbytes += len(data)


def _head(count: int, code: int, small: int, wide: Mapping[int, int]) -> bytes:
    """The first bytes of something of a size: one byte, or a code and the size."""
    if count <= small:
        return bytes([code | count])
    for long, width in wide.items():
        if count < 1 << 8 * width:
            return bytes([long]) + count.to_bytes(width, "big")
    raise TargetError("too large for msgpack", found=count)


def _text(text: str) -> bytes:
    data = text.encode()
    return _head(len(data), 0xA0, 31, _STRINGS) + data


def _natural(number: int) -> bytes:
    return _head(number, 0, 127, {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8})


class _Sink:
    def __init__(
        self, path: Path, specs: Mapping[str, TensorSpec], layout: _Layout, *, overwrite: bool
    ) -> None:
        self.files = (path,)
        self.order = tuple(layout.places)
        self._specs = specs
        self._places = layout.places
        self._missing = set(specs)
        self._publication = Publication([path], overwrite=overwrite, nbytes=layout.nbytes)
        try:
            self._staged = self._publication.files[0]
            for offset, data in layout.headers:
                self._staged.write(offset, data)
        except BaseException:
            self.abort()
            raise

    def place(self, name: str) -> Place | None:
        """Where a tensor's elements lie; nowhere, when they are in several pieces."""
        places = self._places[name]
        return Place(self._staged, places[0].offset) if len(places) == 1 else None

    def placed(self, name: str, crc: int) -> None:
        """Take it that a tensor is at its place."""
        self._missing.discard(name)

    def write(self, name: str, chunks: Iterable[NDArray[Any]]) -> None:
        """Take a tensor as consecutive 1-D pieces, at its place in the file."""
        with context(path=self.files[0], tensor=name):
            self._write(self._specs[name], self._places[name], chunks)
        self._missing.discard(name)

    def _write(
        self, spec: TensorSpec, places: Sequence[_Place], chunks: Iterable[NDArray[Any]]
    ) -> None:
        done = 0
        for piece in chunks:
            if piece.dtype != spec.dtype:
                raise TargetError("a piece has another dtype", expected=spec, found=piece.dtype)
            for offset, part in _cut(piece, done, places, spec.dtype.itemsize):
                self._staged.write(offset, part)
            done += piece.size
        if done != spec.size:
            raise TargetError(
                "the pieces of a tensor do not add up",
                expected=f"{spec.size} elements",
                found=f"{done} elements",
            )

    def commit(self) -> None:
        """Publish; raises `TargetError` when a tensor was never written."""
        try:
            if self._missing:
                raise TargetError(
                    "tensors were not written", path=self.files[0], tensor=min(self._missing)
                )
            self._publication.commit()
        finally:
            self.abort()

    def abort(self) -> None:
        """Leave nothing behind; harmless after `commit`."""
        self._publication.abort()


def _cut(
    piece: NDArray[Any], start: int, places: Sequence[_Place], itemsize: int
) -> Iterator[tuple[int, NDArray[Any]]]:
    """The parts of a piece, which starts at an element, with the offsets where they belong."""
    stop = start + piece.size
    for place in places:
        first, last = max(start, place.start), min(stop, place.stop)
        if first < last:
            offset = place.offset + (first - place.start) * itemsize
            yield offset, np.ascontiguousarray(piece[first - start : last - start])
