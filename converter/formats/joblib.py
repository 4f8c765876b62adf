"""joblib's files, and other pickles of arrays; compressed ones, too.

https://github.com/joblib/joblib/blob/main/joblib/numpy_pickle.py (NumpyArrayWrapper)

    80 04 …                     a pickle; each array in it is an object of NumpyArrayWrapper
      BUILD {subclass, shape, order 'C' or 'F', dtype, numpy_array_alignment_bytes …}
    nn ff … ff                  its padding: how much, and that (since joblib 1.2)
    elements                    in the midst of the pickle, which goes on after them
    …
    78 … 1f 8b … BZh fd 37 …    the same, compressed by zlib, gzip, bzip2, xz, lzma, or
    5d 00 … 04 22 4d 18 …       lz4 (by the library of that name)

Nothing in the pickle is run.  Elements between its opcodes are passed over; those of plain NumPy
arrays are part of the pickle and are read with it.  Names are keys and indices, joined by "/"; an
object of any class counts as the dictionary of its attributes.  A compressed file is inflated into
an unnamed temporary file, within bounds, when it is opened.
"""

from __future__ import annotations

import bz2
import importlib
import lzma
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from converter import extras
from converter.errors import (
    CorruptFileError,
    LimitError,
    UnsupportedError,
    context,
)
from converter.files import BLOCK, File, Region
from converter.formats import Probe
from converter.formats._names import shown
from converter.formats._nested import Nested
from converter.formats._pickle import CONTAINERS, Stub, StubObject, Table, Unpickler
from converter.formats._pickle_numpy import NUMPY, NumpyArray, NumpyDtype
from converter.formats._typed_fields import PAGE, Found, Pages, size_of
from converter.layout import Storage, View
from converter.tensors import Checkpoint

FIRST = 1 << 20  # bytes that are inflated to recognise a file
FREE_NBYTES = 128 << 20  # that any file may inflate to …
MAX_RATIO = 100  # … and beyond, as a multiple of what it stores
MAX_NAMES = 1_000_000
MAX_PLAIN = 8 << 30  # bytes of a value inside the pickle

_WRAPPER = "joblib.numpy_pickle.NumpyArrayWrapper"
_OLD = ("joblib.numpy_pickle.NDArrayWrapper", "joblib.numpy_pickle.ZNDArrayWrapper")
_PROTOCOLS = range(2, 6)
_PLAIN_TYPES = {"numpy.ndarray", "numpy.memmap", "numpy.core.memmap.memmap", "numpy.matrix"}


# ── compression ──────────────────────────────────────────────────────────────────────────────────


class _Inflater:
    """A decompressor of any library, bounded: `inflate(data, limit) → at most limit bytes`."""

    def __init__(self, made: Any) -> None:
        self._made = made
        self._rest = b""

    @property
    def eof(self) -> bool:
        """Whether the end of the compressed data was seen."""
        return bool(self._made.eof)

    def blocks(self, data: bytes) -> Iterator[bytes]:
        """What the data inflates to."""
        zlibs = hasattr(self._made, "unconsumed_tail")
        data = self._rest + data
        while not self.eof:
            block = self._made.decompress(data, BLOCK)
            data = self._made.unconsumed_tail if zlibs else b""
            if block:
                yield block
            if not (data if zlibs else not self._made.needs_input and block):
                return


def _lz4() -> Any:
    extras.require("lz4")
    return importlib.import_module("lz4.frame").LZ4FrameDecompressor()


_COMPRESSIONS: dict[bytes, Callable[[], Any]] = {
    b"\x78\x01": zlib.decompressobj,
    b"\x78\x5e": zlib.decompressobj,
    b"\x78\x9c": zlib.decompressobj,
    b"\x78\xda": zlib.decompressobj,
    b"\x1f\x8b\x08": lambda: zlib.decompressobj(16 + zlib.MAX_WBITS),
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\0": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=128 << 20),
    b"\x5d\0\0": lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=128 << 20),
    b"\x04\x22\x4d\x18": _lz4,
}
_ERRORS = (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, RuntimeError)


def _compression(head: bytes) -> Callable[[], Any] | None:
    return next((make for mark, make in _COMPRESSIONS.items() if head.startswith(mark)), None)


def _inflated(file: File, make: Callable[[], Any], stack: ExitStack) -> File:
    """The file inflated into one without a name."""
    inflater = _Inflater(make())
    most = max(FREE_NBYTES, MAX_RATIO * file.size)
    done = 0
    with tempfile.NamedTemporaryFile() as spool:
        try:
            for start in range(0, file.size, BLOCK):
                for block in inflater.blocks(file.read(start, min(BLOCK, file.size - start))):
                    done += len(block)
                    if done > most:
                        raise LimitError(
                            "the file inflates to far more than it stores",
                            expected=f"at most {most} bytes from {file.size}",
                        )
                    spool.write(block)
            spool.flush()
        except _ERRORS as error:
            raise CorruptFileError(f"the file does not inflate: {error}") from error
        if not inflater.eof:
            raise CorruptFileError("the file is truncated: its compressed data do not end")
        found = File(Path(spool.name))
    stack.callback(found.close)
    found.path = file.path
    return found


class _Spooled:
    """A storage of elements in a temporary file, which is no place to tell others."""

    def __init__(self, region: Region) -> None:
        self.dtype = region.dtype
        self.size = region.size
        self.read = region.read


# ── recognising and opening ──────────────────────────────────────────────────────────────────────


def recognise(probe: Probe) -> bool:
    """Whether this starts as a pickle, or inflates to one."""
    head = probe.head
    make = _compression(head)
    if make is _lz4:
        return True
    if make is not None:
        try:
            head = next(_Inflater(make()).blocks(head), b"") or _start(probe.path, make)
        except _ERRORS:
            return False
        if not head:  # it is cut off, which `open` says
            return True
    return head[:1] == b"\x80" and len(head) > 1 and head[1] in _PROTOCOLS


def _start(path: Path, make: Callable[[], Any]) -> bytes:
    """The first bytes that a file inflates to; bzip2 has large blocks."""
    with path.open("rb") as stream:
        return next(_Inflater(make()).blocks(stream.read(FIRST)), b"")


def open(path: Path) -> Checkpoint:  # noqa: A001 - the contract of a format
    """Open the arrays of a pickle; nothing in it is run.

    Raises `CorruptFileError`, `UnsupportedError`, `LimitError` or `UnsafeContentError`.
    """
    with ExitStack() as stack, context(path=path):
        file = File(path)
        stack.callback(file.close)
        make = _compression(file.read(0, min(file.size, 16)))
        source = _inflated(file, make, stack) if make else file
        machine = _Machine(source, spooled=make is not None)
        root = machine.load()
        if machine.position != source.size:
            raise CorruptFileError("the file goes on after its pickle", offset=machine.position)
        found = Found()

        def leaf(value: Any, name: str) -> bool:
            view = _view(value)
            found.add(name, view)
            return isinstance(view, View)

        nested = Nested(min(MAX_NAMES, 1000 + source.size // 8), _inside, leaf)
        nested.find(root)
        close = stack.pop_all().close
        return found.checkpoint("joblib", path, close, ties=nested.ties)


class _Lazy:
    """A file as the bytes that the interpreter reads."""

    def __init__(self, file: File) -> None:
        self._pages = Pages(file)
        self._size = file.size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, key: int | slice) -> int | bytes:
        if isinstance(key, int):
            return self._pages[key]
        start, stop, _ = key.indices(self._size)
        if stop - start > MAX_PLAIN:
            raise LimitError("a value in the pickle is too large", found=stop - start)
        return self._pages[start:stop] if start < stop else b""

    def find(self, mark: bytes, start: int, stop: int) -> int:
        """Where the mark is first, -1 when it is not."""
        for at in range(start, min(stop, self._size), PAGE):
            data = self._pages[at : min(at + PAGE, stop)]
            if mark in data:
                return at + data.index(mark)
        return -1


class _Wrapper:
    """An array whose elements follow its description."""

    __slots__ = ("text", "view")

    def __init__(self) -> None:
        self.view: View | None = None
        self.text = "array of joblib"

    def build(self, state: Any) -> None:
        """Never called: `_Machine.build` knows where the elements are."""


def _reconstruct(cls: Any, *args: Any) -> Any:
    """How protocols 0 and 1 make an object."""
    return _Wrapper() if str(cls) == _WRAPPER else StubObject(cls, args)


_TABLE: Table = {
    **CONTAINERS,
    **NUMPY,
    _WRAPPER: _Wrapper,
    "copy_reg._reconstructor": _reconstruct,
    "copyreg._reconstructor": _reconstruct,
}


class _Machine(Unpickler):
    """Interprets a pickle with arrays in its midst."""

    def __init__(self, file: File, *, spooled: bool) -> None:
        super().__init__(cast("bytes", _Lazy(file)), _TABLE)
        self._file = file
        self._spooled = spooled

    def build(self, target: Any, state: Any) -> None:
        """Give an object its state, and an array its place: right here."""
        if not isinstance(target, _Wrapper):
            if isinstance(target, StubObject) and str(target.function) in _OLD:
                raise UnsupportedError(
                    "arrays in files of their own, as joblib before 0.10 wrote them",
                    hint="load it with joblib, and dump it again",
                )
            super().build(target, state)
            return
        dtype, shape = state["dtype"], state["shape"]
        if not isinstance(dtype, NumpyDtype) or target.view is not None:
            raise ValueError("an array without a dtype, or one that is described twice")
        if dtype.known is None:
            raise UnsupportedError(f"an array of dtype {shown(dtype.text)} in the pickle's midst")
        if not all(type(n) is int for n in shape) or state["order"] not in {"C", "F"}:
            raise ValueError("an array without a shape, or an order")
        if str(state.get("subclass")) not in _PLAIN_TYPES:
            target.text = f"array of the class {shown(str(state.get('subclass')))}"
        if state.get("numpy_array_alignment_bytes") is not None:
            self.take(self.natural(1))
        target.view = self._view(dtype.known, tuple(shape), fortran=state["order"] == "F")

    def _view(self, dtype: np.dtype[Any], shape: tuple[int, ...], *, fortran: bool) -> View:
        size = size_of(shape)
        start, nbytes = self.position, size * dtype.itemsize
        if start + nbytes > self._file.size:
            raise self.short()
        self.position = start + nbytes
        region = Region(self._file, start, dtype, size)
        storage: Storage = _Spooled(region) if self._spooled else region
        view = View.over(storage, shape[::-1] if fortran else shape)
        if fortran:
            view = view.transpose(range(len(shape))[::-1])
        return view.astype(dtype.newbyteorder("="))


# ── names ────────────────────────────────────────────────────────────────────────────────────────


def _inside(value: Any) -> list[tuple[str, Any]] | None:
    """What is in a container, None when it is none."""
    if isinstance(value, StubObject):
        parts = [*value.items.items(), *enumerate(value.elements)]
        state = value.state
        if isinstance(state, dict):
            parts += state.items()
        elif state is not None:
            parts.append(("state", state))
        return [(_key(key), part) for key, part in parts] or None
    if isinstance(value, dict):
        return [(_key(key), part) for key, part in value.items()]
    if isinstance(value, list | tuple):
        return [(str(number), part) for number, part in enumerate(value)]
    return None


def _key(key: Any) -> str:
    """A key as a part of a name; Python 2's strings may be bytes."""
    if isinstance(key, bytes):
        return key.decode("latin-1") or "''"
    if isinstance(key, str):
        return key or "''"
    if isinstance(key, int | float | tuple):
        return str(key)[:200]
    raise UnsupportedError(f"a dictionary with keys of type {type(key).__name__}")


def _view(value: Any) -> View | str:
    if isinstance(value, _Wrapper):
        return value.view if value.view is not None else "an array without a description"
    if isinstance(value, NumpyArray):
        if value.elements is None:
            return shown(f"{value.text}, not an array of numbers")
        elements: NDArray[Any] = value.elements
        return View.of(elements).astype(elements.dtype.newbyteorder("="))
    kind = str(value.function) if isinstance(value, StubObject) else type(value).__name__
    if isinstance(value, Stub):
        kind = str(value)
    return shown(f"{kind}, not an array of numbers")
