r"""NumPy: `.npz`, a zip of `.npy` files; and a single `.npy`, also one with a pickled dictionary.

https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html

    ┌──────────┬─────────┬────────┬───────────────────────────────┬──────────┐
    │ 93 NUMPY │ version │ length │ {'descr': '<f4',              │ elements │
    │ 6 bytes  │ 2 bytes │ u16/32 │  'fortran_order': False,      │ in C or  │
    │          │         │        │  'shape': (3, 4), }   … \n    │ F order  │
    └──────────┴─────────┴────────┴───────────────────────────────┴──────────┘
    w.npz      a zip with a member `NAME.npy` for the tensor NAME, stored or deflated
    w.npy      one array, here the tensor `array`; or, with descr '|O', a pickle of containers,
               whose keys and indices joined by "/" are the names: `conv1_1/0`, `fc6/weights`

A header is matched, never evaluated.  Pickles are read by `_pickle`, which runs nothing, and only
where they are the whole file.  bfloat16 and its like have no name here: NumPy writes them as bytes
(`<V2`), which says nothing, so they are listed as unsupported and not written.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from converter.errors import (
    ChecksumError,
    ConverterError,
    CorruptFileError,
    LimitError,
    SourceError,
    TargetError,
    UnrepresentableError,
    UnsupportedError,
    context,
)
from converter.files import BLOCK, File, Place, Publication, Region, crc32
from converter.formats import Probe
from converter.formats._names import name_problem, shown
from converter.formats._nested import ONLY, Nested
from converter.formats._pages import paged
from converter.formats._pickle import CONTAINERS, StubObject, Table, Unpickler
from converter.formats._pickle_numpy import NUMPY, NumpyArray
from converter.formats._zip import (
    MAX_RATIO,
    STORED,
    Member,
    ZipLayout,
    ZipWriter,
    first_name,
    members,
)
from converter.layout import Storage, View
from converter.tensors import Checkpoint, LazyTensors, Tensor, TensorSpec, dtype_name

MAGIC = b"\x93NUMPY"
MAX_HEADER = 1 << 16  # bytes
USUAL_HEADER = 128  # bytes, as NumPy writes it for an array of few axes
MAX_PICKLE = 8 << 30  # bytes
MAX_RANK = 32
MAX_SIZE = 1 << 60  # elements
MAX_NAMES = 2_000_000
FREE_BYTES = 4 << 30  # bytes that any file may inflate to …
SMALL = 64 << 20  # … and a single member; beyond that, MAX_RATIO times what is stored
ALIGNMENT = 64  # of the elements in the file, as NumPy writes them

_DTYPES = {np.dtype(code) for code in ("?", *"bBhHiIqQefdFD")}
_SIZE = r"[0-9]{1,19}L?\ *"
_VALUE = rf"'[^'\\]*' | True | False | \(\ *(?:{_SIZE}(?:,\ *{_SIZE})*(?:,\ *)?)?\) | \[.*\]"
_ITEM = re.compile(
    rf"\ *'(descr|fortran_order|shape)'\ *:\ *({_VALUE})\ *(?:,\ *|(?=\}}))", re.VERBOSE
)


class _Header(NamedTuple):
    """What precedes the elements: `nbytes` of it, whose checksum is `crc`."""

    descr: str
    fortran: bool
    shape: tuple[int, ...]
    nbytes: int
    crc: int

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """The dtype of the elements as they are stored, None when they are not numbers."""
        return _dtype(self.descr)


@lru_cache  # a file has many arrays, and few dtypes
def _dtype(descr: str) -> np.dtype[Any] | None:
    if not re.fullmatch(r"[<>|][biufc][0-9]{1,2}", descr):
        return None
    try:
        dtype = np.dtype(descr)
    except TypeError:
        return None
    return dtype if dtype.newbyteorder("<") in _DTYPES else None


# ── reading a header ─────────────────────────────────────────────────────────────────────────────


def _header_of(start: bytes, offset: int) -> _Header:
    """The header in the first bytes of a `.npy`; `offset` is where they are in the file."""
    try:
        return _parse(start[: _length(start)])
    except ConverterError as error:
        error.offset = offset
        raise


def _length(start: bytes) -> int:
    """How many bytes the header has, as the first 12 of them say."""
    text_at = 10 if start[6:7] == b"\1" else 12
    return text_at + int.from_bytes(start[8:text_at], "little")


@lru_cache  # of many arrays, few have a header of their own
def _parse(raw: bytes) -> _Header:
    major, minor = raw[6:8].ljust(2, b"\0")
    if not raw.startswith(MAGIC) or (major, minor) not in {(1, 0), (2, 0), (3, 0)}:
        raise CorruptFileError("not the start of a .npy file", found=raw[:8])
    nbytes, text_at = _length(raw), 10 if major == 1 else 12
    if nbytes - text_at > MAX_HEADER:
        raise LimitError(
            "the .npy header is too long", expected=f"<= {MAX_HEADER}", found=nbytes - text_at
        )
    if len(raw) != nbytes:
        raise CorruptFileError("the .npy header is cut off")
    text = raw[text_at:]
    items = _items(text.decode("utf-8" if major > 2 else "latin-1", "replace"))  # noqa: PLR2004
    if items is None:
        raise CorruptFileError("the .npy header is not that of an array", found=repr(text[:100]))
    shape = tuple(int(n) for n in re.findall("[0-9]+", items["shape"]))
    if len(shape) > MAX_RANK or math.prod(n or 1 for n in shape) >= MAX_SIZE:
        raise LimitError("the shape is out of bounds", found=list(shape))
    fortran = items["fortran_order"] == "True"
    return _Header(items["descr"].strip("'"), fortran, shape, nbytes, crc32(raw))


def _items(text: str) -> Mapping[str, str] | None:
    """The three items of the dictionary, as text; None when it is not one."""
    body = text.rstrip(" \n")
    at, items = 1, {}
    while match := _ITEM.match(body, at):
        items[match[1]] = match[2]
        at = match.end()
    good = body[:1] == "{" and body[at:].strip(" ") == "}" and len(items) == 3  # noqa: PLR2004
    good = good and items["shape"][0] == "(" and items["fortran_order"] in {"True", "False"}
    return items if good and items["descr"][0] in "'[" else None


def _unreadable(header: _Header) -> str:
    """Why there is no tensor for this dtype."""
    if re.fullmatch(r"[<>|]V[12]", header.descr):
        return f"dtype '{header.descr}': bytes, perhaps of bfloat16, but the file does not say so"
    return f"dtype {shown(repr(header.descr))} is not one of numbers"


def _shaped(storage: Storage, header: _Header) -> View:
    """The elements as a view in C order, whatever order and byte order they are stored in."""
    shape = header.shape
    view = View.over(storage, shape[::-1] if header.fortran else shape)
    if header.fortran:
        view = view.transpose(range(len(shape))[::-1])
    return view.astype(storage.dtype.newbyteorder("="))


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


def recognise(probe: Probe) -> bool:
    """Whether this is a `.npy`, or a zip with one."""
    if probe.head.startswith((MAGIC, b"PK\x05\x06")):  # the second is an empty zip
        return True
    first = first_name(probe.head)
    if not first or first.endswith(b".npy"):  # spare a long directory
        return bool(first)
    try:
        file = File(probe.path)
        try:
            return any(name.endswith(".npy") for name in members(file))
        finally:
            file.close()
    except ConverterError:  # broken: `open` says how, if it was one of ours
        return b".npy" in probe.head + probe.tail


def open(path: Path) -> Checkpoint:  # noqa: A001 - the name every format has
    """The arrays of a `.npz` or `.npy`; reads their headers only, but all of a pickle.

    Raises `CorruptFileError`, `UnsupportedError`, `LimitError` or `UnsafeContentError`.
    """
    file = File(path)
    spool = _Spool()

    def close() -> None:
        spool.close()
        file.close()

    try:
        with context(path=path):
            if file.read(0, min(file.size, len(MAGIC))) == MAGIC:
                found = _open_npy(file)
            else:
                found = _open_npz(file, spool)
    except BaseException:
        close()
        raise
    return replace(found, format="npz", path=path, on_close=close)


def _open_npz(file: File, spool: _Spool) -> Checkpoint:
    arrays: dict[str, _Array] = {}
    unsupported: dict[str, str] = {}
    inflated = 0
    read = paged(file, 0, file.size)
    for member in members(file).values():
        name = member.name.removesuffix(".npy")
        with context(tensor=shown(name)):
            if trouble := name_problem(name):
                raise CorruptFileError(f"its name {trouble}")
            if name in arrays or name in unsupported:
                raise CorruptFileError("two zip members mean this tensor")
            if member.method != STORED:
                inflated += member.size
                _check_expansion(file, member, inflated)
            found = _array(file, read, member, name)
        if isinstance(found, str):
            unsupported[name] = found
        else:
            arrays[name] = found
    tensors = LazyTensors(
        {name: array.spec for name, array in arrays.items()},
        cache(lambda name: arrays[name].view(file, spool, name)),
    )
    return Checkpoint(tensors, unsupported=unsupported)


def _check_expansion(file: File, member: Member, inflated: int) -> None:
    """Few bytes must not become many: `inflated` is the sum of all members so far."""
    most = max(SMALL, MAX_RATIO * member.stored)
    if member.size > most or inflated > max(FREE_BYTES, MAX_RATIO * file.size):
        raise LimitError(
            "the archive inflates to far more than it stores",
            offset=member.offset,
            expected=f"at most {MAX_RATIO} times its size",
            found=f"{member.size} bytes from {member.stored}, {inflated} so far",
        )


class _Array(NamedTuple):
    """An array in a member, with elements that are stored as `dtype`."""

    member: Member
    header: _Header
    dtype: np.dtype[Any]

    @property
    def spec(self) -> TensorSpec:
        """Shape and dtype in memory."""
        return TensorSpec(self.header.shape, self.dtype.newbyteorder("="))

    def view(self, file: File, spool: _Spool, name: str) -> View:
        """The elements, as the tensor of that name."""
        member, header = self.member, self.header
        if member.method != STORED:
            inflated = _Inflated(file, member, spool, header.nbytes, self.dtype, name)
            return _shaped(inflated, header)
        checksum, offset = member.checksum, member.offset + header.nbytes
        if checksum:
            nbytes = member.size - header.nbytes
            checksum = checksum._replace(offset=offset, nbytes=nbytes, initial=header.crc)
        size = math.prod(header.shape)
        return _shaped(
            Region(file, offset, self.dtype, size, tensor=name, checksum=checksum), header
        )


def _array(
    file: File, read: Callable[[int, int], bytes], member: Member, name: str
) -> _Array | str:
    """The array in a member, or why there is none."""
    start = _start(read, member)
    if not start.startswith(MAGIC) and not member.name.endswith(".npy"):
        return "not an array: the zip member is not a .npy file"
    header = _header_of(start, member.offset)
    dtype = header.dtype
    if dtype is None:
        _verify(file, member, name)  # it may be damage that made it strange
        return _unreadable(header)
    _check_size(header, math.prod(header.shape) * dtype.itemsize, member.size, member.offset)
    return _Array(member, header, dtype)


def _verify(file: File, member: Member, name: str) -> None:
    if member.checksum:
        member.checksum.verify(file, name)
    elif member.method != STORED:
        for _ in _inflated(file, member):
            pass


def _check_size(header: _Header, nbytes: int, stored: int, offset: int) -> None:
    if header.nbytes + nbytes != stored:
        raise CorruptFileError(
            "shape and dtype do not give the size of the data",
            offset=offset,
            expected=f"{nbytes} bytes for {header.descr} {list(header.shape)}",
            found=f"{stored - header.nbytes} bytes",
        )


def _start(read: Callable[[int, int], bytes], member: Member) -> bytes:
    """The first bytes of a member: at least its header, where it has one of a lawful size."""
    if member.method == STORED:
        start = read(member.offset, min(member.size, USUAL_HEADER))
        length = _length(start)
        if not start.startswith(MAGIC) or not USUAL_HEADER < length <= 12 + MAX_HEADER:
            return start
        return read(member.offset, min(member.size, length))
    stored = read(member.offset, min(member.stored, MAX_HEADER + 1024))
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(stored, MAX_HEADER + 12)
    except zlib.error as error:
        raise CorruptFileError(f"does not inflate: {error}", offset=member.offset) from error


class _Spool:
    """An unnamed temporary file for what was inflated: read at random, but never in memory."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._end = 0
        self._turn = threading.Lock()

    def add(self, blocks: Iterable[bytes], nbytes: int) -> int:
        """Write at most `nbytes` in blocks, as several threads may at once; where they start."""
        try:
            with self._turn:
                self._file = self._file or tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - see close
                place = start = self._end
                self._end += nbytes
            for block in blocks:
                rest = memoryview(block)
                while rest:
                    done = os.pwrite(self._file.fileno(), rest, place)
                    rest, place = rest[done:], place + done
        except OSError as error:
            raise SourceError(f"inflating into a temporary file failed: {error}") from error
        return start

    def read(self, offset: int, view: memoryview) -> None:
        """Fill the view from `offset`."""
        if self._file is None:
            raise SourceError("reading failed: the checkpoint is closed")
        if os.preadv(self._file.fileno(), [view], offset) != len(view):
            raise SourceError("the temporary file became shorter")

    def close(self) -> None:
        """Give the space back; harmless when repeated."""
        if self._file is not None:
            self._file.close()
            self._file = None


@dataclass(slots=True)
class _Inflated:
    """A Storage of the elements of a deflated member; the first read inflates and checks it all."""

    file: File
    member: Member
    spool: _Spool
    skip: int  # bytes of the header
    dtype: np.dtype[Any]
    tensor: str
    start: int = -1  # in the spool
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def size(self) -> int:
        """The number of elements."""
        return (self.member.size - self.skip) // self.dtype.itemsize

    def read(self, start: int, out: NDArray[Any]) -> None:
        """Fill `out` with the elements from `start` on."""
        if not out.size:
            return
        with self.lock, context(path=self.file.path, tensor=self.tensor):
            if self.start < 0:
                self.start = self.spool.add(_inflated(self.file, self.member), self.member.size)
            offset = self.start + self.skip + start * self.dtype.itemsize
            self.spool.read(offset, out.view(np.uint8).data)


def _inflated(file: File, member: Member) -> Iterator[bytes]:
    """The blocks of a deflated member; `CorruptFileError` when size or checksum are wrong."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    size = crc = done = 0
    rest = b""
    try:
        while not inflater.eof and (rest or done < member.stored):
            if not rest:
                rest = file.read(member.offset + done, min(BLOCK, member.stored - done))
                done += len(rest)
            block = inflater.decompress(rest, BLOCK)
            rest = inflater.unconsumed_tail
            size, crc = size + len(block), crc32(block, crc)
            if size > member.size:
                break
            yield block
    except zlib.error as error:
        raise CorruptFileError(f"does not inflate: {error}", offset=member.offset) from error
    if size != member.size or not inflater.eof or inflater.unused_data or done < member.stored:
        raise CorruptFileError("the zip member inflates to another size", offset=member.offset)
    if crc != member.crc:
        raise ChecksumError(
            "the zip crc32 checksum does not match",
            offset=member.offset,
            expected=f"{member.crc:#010x}",
            found=f"{crc:#010x}",
        )


# ── a single .npy, and pickled containers ────────────────────────────────────────────────────────


def _open_npy(file: File) -> Checkpoint:
    header = _header_of(file.read(0, min(file.size, MAX_HEADER + 12)), 0)
    if header.descr == "|O":
        return _open_pickle(file, header)
    dtype = header.dtype
    if dtype is None:
        return Checkpoint({}, unsupported={ONLY: _unreadable(header)})
    size = math.prod(header.shape)
    _check_size(header, size * dtype.itemsize, file.size, 0)
    region = Region(file, header.nbytes, dtype, size, tensor=ONLY)
    return Checkpoint({ONLY: Tensor(_shaped(region, header))})


class _Objects(NumpyArray):
    """An array, whose elements may also be objects."""

    __slots__ = ("objects",)

    def fill(self, data: Any, dtype: Any, shape: Any, *, fortran: bool) -> None:
        """Take the elements."""
        NumpyArray.fill(self, data, dtype, shape, fortran=fortran)
        self.objects = data if isinstance(data, list) else []


def _reconstruct(cls: Any, _shape: Any, _code: Any) -> _Objects | StubObject:
    return _Objects() if str(cls) == "numpy.ndarray" else StubObject(cls, ())


_TABLE: Table = {
    **CONTAINERS,
    **NUMPY,
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray._reconstruct": _reconstruct,
}


def _open_pickle(file: File, header: _Header) -> Checkpoint:
    nbytes = file.size - header.nbytes
    if nbytes > MAX_PICKLE:
        raise LimitError("the pickle is too large", expected=f"<= {MAX_PICKLE}", found=nbytes)
    unpickler = Unpickler(file.read(header.nbytes, nbytes), _TABLE)
    root = unpickler.load()
    if unpickler.position != nbytes:
        raise CorruptFileError("the pickle goes on after its end", offset=unpickler.position)
    if not isinstance(root, _Objects) or root.elements is not None:
        raise CorruptFileError("the pickle is not that of an array of objects")
    single = header.shape == () and len(root.objects) == 1
    tensors: dict[str, Tensor] = {}
    unsupported: dict[str, str] = {}

    def leaf(value: Any, name: str) -> bool:
        if trouble := name_problem(name):
            raise CorruptFileError(f"its name {trouble}", tensor=shown(name))
        if name in tensors or name in unsupported:
            raise UnsupportedError("two entries get this name", tensor=name)
        elements = value.elements if isinstance(value, NumpyArray) else None
        if elements is None:
            kind = value.text if isinstance(value, NumpyArray) else type(value).__name__
            unsupported[name] = shown(f"{kind}, not an array of numbers")
        else:
            tensors[name] = Tensor(View.of(elements).astype(elements.dtype.newbyteorder("=")))
        return elements is not None

    nested = Nested(min(MAX_NAMES, 1000 + nbytes // 8), _inside, leaf)
    nested.find(root.objects[0] if single else root.objects)
    return Checkpoint(tensors, unsupported=unsupported, ties=nested.ties)


def _inside(value: Any) -> Iterator[tuple[str, Any]] | None:
    """What is in a container, None when it is none."""
    if isinstance(value, _Objects) and value.elements is None and value.objects:
        value = value.objects
    if isinstance(value, dict):
        return ((_key(key), child) for key, child in value.items())
    if isinstance(value, list | tuple):
        return ((str(index), child) for index, child in enumerate(value))
    return None


def _key(key: Any) -> str:
    """A key as a part of a name; Python 2's strings may be bytes."""
    if isinstance(key, bytes):
        return key.decode("latin-1")
    if not isinstance(key, str | int):
        raise UnsupportedError(f"a dictionary with keys of type {type(key).__name__}")
    return str(key)


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


def problem(name: str, spec: TensorSpec) -> str:
    """Why a `.npz` cannot hold this tensor, "" when it can."""
    if trouble := name_problem(name):
        return f"its name {trouble}"
    if len(spec.shape) > MAX_RANK:
        return f"it has more than {MAX_RANK} axes"
    if spec.dtype not in _DTYPES:
        return f"NumPy's files have no name for {dtype_name(spec.dtype)}: cast it, or take another"
    return ""


def create(
    path: Path,
    specs: Mapping[str, TensorSpec],
    *,
    metadata: Mapping[str, str],  # noqa: ARG001 - an .npz is arrays and nothing else
    ties: Sequence[Sequence[str]],  # noqa: ARG001 - tied names are each written in full
    overwrite: bool,
) -> _Sink:
    """A sink for one `.npz`, uncompressed, its elements aligned to 64 bytes.

    `numpy.load(allow_pickle=False)` reads it.  There is no place for metadata.
    Raises `UnrepresentableError`, `TargetExistsError`, `NoSpaceError`, `TargetError`.
    """
    for name, spec in specs.items():
        if trouble := problem(name, spec):
            raise UnrepresentableError(trouble, path=path, tensor=shown(name), found=spec)
    return _Sink(path, specs, overwrite=overwrite)


def _header(spec: TensorSpec) -> bytes:
    text = f"{{'descr': '{spec.dtype.str}', 'fortran_order': False, 'shape': {spec.shape}, }}"
    text += " " * (-(len(text) + 11) % ALIGNMENT) + "\n"
    return MAGIC + b"\1\0" + len(text).to_bytes(2, "little") + text.encode()


class _Sink:
    def __init__(self, path: Path, specs: Mapping[str, TensorSpec], *, overwrite: bool) -> None:
        self.order = tuple(specs)
        self.files = (path,)
        self._specs = specs
        sizes = {f"{n}.npy": len(_header(spec)) + spec.nbytes for n, spec in specs.items()}
        layout = ZipLayout(sizes)
        self._publication = Publication([path], overwrite=overwrite, nbytes=layout.nbytes)
        self._staged = self._publication.files[0]
        self._zip = ZipWriter(self._staged, layout)

    def place(self, name: str) -> Place:
        """Where a tensor's elements lie: after its header."""
        header = _header(self._specs[name])
        offset = self._zip.offset(f"{name}.npy") + len(header)
        return Place(self._staged, offset, crc32, crc32(header))

    def placed(self, name: str, crc: int) -> None:
        """Take it that a tensor is at its place, and write its header."""
        member = f"{name}.npy"
        self._staged.write(self._zip.offset(member), _header(self._specs[name]))
        self._zip.placed(member, crc)

    def write(self, name: str, chunks: Iterable[NDArray[Any]]) -> None:
        """Take a tensor as consecutive 1-D pieces."""
        spec = self._specs[name]
        with context(tensor=name):
            header, pieces = _header(spec), _checked(chunks, spec.dtype)
            self._zip.write(f"{name}.npy", itertools.chain([header], pieces))

    def commit(self) -> None:
        """Publish; raises `TargetError` when a tensor was never written."""
        try:
            self._zip.finish()
            self._publication.commit()
        finally:
            self.abort()

    def abort(self) -> None:
        """Leave nothing behind; harmless after `commit`."""
        self._publication.abort()


def _checked(chunks: Iterable[NDArray[Any]], dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    for chunk in chunks:
        if chunk.dtype != dtype:
            raise TargetError("a piece has another dtype", expected=dtype, found=chunk.dtype)
        yield chunk
