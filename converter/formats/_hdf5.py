r"""HDF5, the part of it that weights are kept in: groups, text attributes, arrays of numbers.

https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html (version 3 of the format)

    superblock ──► object header of the root group      "\x89HDF\r\n\x1a\n", sizes, end of file
    object header  a list of messages: (type, size, flags, body), continued elsewhere
      of a group   symbol table ─► B-tree "TREE" ─► "SNOD": (offset of a name, object header), …
                                └► local heap "HEAP": the names       or: one link message a member
      of a dataset dataspace (shape) · datatype · layout (where) · filters (deflate, shuffle, …)
      of either    attributes: name, datatype, dataspace, value; long text is in "GCOL" heaps
    layout         contiguous: offset and size │ compact: in the message │ chunked: "TREE" of chunks

Reading is done here and not by the C library, which a broken file can crash or send round in
circles, and which follows links into other files.  Whatever reaches outside the file (soft and
external links, external storage, virtual datasets) is refused.  What is not an array of numbers,
or is stored in a way that only `libver="latest"` makes, is reported as unsupported.

Writing lets the library lay an empty file out, and puts the values where it reserved room.
"""

from __future__ import annotations

import itertools
import math
import operator
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from io import SEEK_END
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from converter.errors import (
    ChecksumError,
    CorruptFileError,
    LimitError,
    TargetError,
    UnrepresentableError,
    UnsafeContentError,
    UnsupportedError,
    context,
)
from converter.files import Checksum, File, Place, Region, StagedFile
from converter.formats._names import name_problem, shown
from converter.formats._pages import paged
from converter.layout import Computed, View
from converter.tensors import TensorSpec, dtype_name

SIGNATURE = b"\x89HDF\r\n\x1a\n"
SHORTEST = 48  # bytes of the shortest superblock
UNDEFINED = (1 << 64) - 1  # an address of nothing
MAX_DEPTH = 100  # of groups
MAX_RANK = 32
MAX_SIZE = 1 << 60  # elements
MAX_BLOCK = 64 << 20  # bytes of one header, heap or list of names, and of one chunk
FREE_HEADERS = 16 << 20  # bytes of headers that any file may have …
FREE_BYTES = 4 << 30  # and of values that it may describe; beyond that …
MAX_RATIO = 1000  # … times what is stored

Value = str | complex | list[Any]  # of an attribute


class Dataset(NamedTuple):
    """An array of the file, and what makes its view; neither, when there is a `problem`."""

    attributes: Mapping[str, Value]
    spec: TensorSpec | None = None
    view: Callable[[], View] | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """Members by name, in the order of the file, which is usually that of the alphabet."""

    attributes: Mapping[str, Value]
    members: Mapping[str, Group | Dataset] = field(default_factory=dict)

    def find(self, path: str) -> Group | Dataset | None:
        """The member at a path, None when there is none."""
        found: Group | Dataset | None = self
        for name in path.split("/"):
            found = found.members.get(name) if isinstance(found, Group) else None
        return found

    def texts(self, name: str) -> list[str]:
        """The texts of a list, which Keras splits into `name0`, `name1`, … when it is long."""
        parts = [self.attributes.get(name)]
        if parts[0] is None:
            numbered = (self.attributes.get(f"{name}{n}") for n in itertools.count())
            parts = list(itertools.takewhile(lambda part: part is not None, numbered))
        texts = [text for part in parts if isinstance(part, list) for text in part]
        if not all(isinstance(text, str) for text in texts):
            raise CorruptFileError(f"the attribute {name} is not a list of texts")
        return texts

    def datasets(self, path: str = "") -> Iterator[tuple[str, Dataset]]:
        """All datasets inside, with their paths."""
        for name, member in self.members.items():
            if isinstance(member, Dataset):
                yield path + name, member
            else:
                yield from member.datasets(f"{path}{name}/")


def open_tree(
    file: File, start: int = 0, stop: int | None = None, *, checksum: Checksum | None = None
) -> Group:
    """The root group of the HDF5 file in [start, stop) of a file; reads headers only.

    `checksum` is verified before the first value is handed out.

    Raises `CorruptFileError`, `UnsafeContentError`, `UnsupportedError` or `LimitError`.
    """
    with context(path=file.path):
        return _Reader(file, start, file.size if stop is None else stop, checksum).root()


def root_attributes(file: File) -> Mapping[str, Value]:
    """The attributes of the root group."""
    with context(path=file.path):
        return _Reader(file, 0, file.size).root_header(links=False)[0]


def root_names(file: File) -> Sequence[str]:
    """The names of the members of the root group."""
    with context(path=file.path):
        return [name for name, _ in _Reader(file, 0, file.size).root_header()[1]]


# ── messages ─────────────────────────────────────────────────────────────────────────────────────


class _Type(NamedTuple):
    """A datatype: `dtype` of numbers, `text` of strings ("fixed", "varying"), or neither."""

    size: int
    dtype: np.dtype[Any] | None = None
    text: str = ""
    problem: str = ""
    opaque: bool = False


_CLASSES = {
    2: "times",
    3: "text",
    4: "bit fields",
    5: "opaque bytes",
    6: "records (a compound type)",
    7: "references",
    8: "an enumeration",
    9: "lists of varying length",
    10: "arrays",
    11: "complex numbers",
}
_FLOATS = {  # size, precision, exponent at and bits, mantissa at and bits, bias, sign at
    (2, 16, 10, 5, 0, 10, 15, 15): np.dtype("<f2"),
    (2, 16, 7, 8, 0, 7, 127, 15): np.dtype(ml_dtypes.bfloat16),
    (4, 32, 23, 8, 0, 23, 127, 31): np.dtype("<f4"),
    (8, 64, 52, 11, 0, 52, 1023, 63): np.dtype("<f8"),
}
_MEMBERS = {  # of records, by the version of the message: name, offset, no axes, type
    1: struct.Struct("<8sI28x20s"),
    **dict.fromkeys((3, 4), struct.Struct("<2sB20s")),
}
_BOOLS = (b"FALSE\0\0\0TRUE\0\0\0\0\0\1", b"FALSE\0TRUE\0\0\1")  # of enumerations, old and new


@lru_cache  # a file has many datasets, and few types
def _datatype(raw: bytes) -> _Type:
    head, size = struct.unpack_from("<II", raw)
    kind, bits = head & 15, head >> 8
    dtype = None
    if kind == 0 and size in {1, 2, 4, 8} and struct.unpack_from("<HH", raw, 8) == (0, 8 * size):
        dtype = np.dtype(f"{'>' if bits & 1 else '<'}{'i' if bits & 8 else 'u'}{size}")
    elif kind == 1 and bits & 0x70 in {0x20, 0x60}:
        dtype = _float(raw, size, bits)
    elif kind == 3:  # noqa: PLR2004 - classes of the specification
        return _Type(size, text="fixed", problem=_CLASSES[3])
    elif kind == 6:  # noqa: PLR2004
        dtype = _complex(raw, size, bits)
    elif kind == 8 and raw[20:].startswith(_BOOLS):  # noqa: PLR2004
        dtype = np.dtype(np.bool_) if _datatype(raw[8:]).dtype == np.int8 else None
    elif kind == 9 and bits & 15 == 1:  # noqa: PLR2004
        return _Type(size, text="varying", problem=_CLASSES[3])
    problem = "" if dtype else _CLASSES.get(kind, "numbers of an unusual kind")
    return _Type(size, dtype, problem=problem, opaque=kind == 5)  # noqa: PLR2004


def _float(raw: bytes, size: int, bits: int) -> np.dtype[Any] | None:
    start, *layout = struct.unpack_from("<HHBBBBI", raw, 8)
    dtype = _FLOATS.get((size, *layout, bits >> 8 & 0xFF)) if start == 0 else None
    big = bits & 0x41
    if dtype is None or big not in {0, 1} or (big and dtype.kind != "f"):
        return None
    swapped: np.dtype[Any] = dtype.newbyteorder(">") if big else dtype
    return swapped


def _complex(raw: bytes, size: int, bits: int) -> np.dtype[Any] | None:
    """The dtype of records of two equal floats, r and i: h5py stores complex numbers so."""
    member = _MEMBERS.get(raw[0] >> 4)
    if member is None or bits != 2 or size not in {8, 16}:  # noqa: PLR2004 - members
        return None
    part = raw[member.size - 12 : member.size + 8]  # the type of the first
    both = member.pack(b"r", 0, part) + member.pack(b"i", size // 2, part)
    dtype = _datatype(part).dtype if raw[8:].startswith(both) else None
    if dtype is None or dtype.kind != "f" or 2 * dtype.itemsize != size:
        return None
    return np.dtype(f"{dtype.byteorder}c{size}")


@lru_cache
def _dataspace(raw: bytes) -> tuple[int, ...] | None:
    """The shape; None when there are no elements, not even an axis."""
    version, rank = raw[0], raw[1]
    if version not in {1, 2}:
        raise CorruptFileError("a dataspace of an unknown version", found=version)
    if version == 2 and raw[3] == 2:  # noqa: PLR2004
        return None
    if rank > MAX_RANK:
        raise LimitError("too many axes", expected=f"<= {MAX_RANK}", found=rank)
    shape = struct.unpack_from(f"<{rank}Q", raw, 8 if version == 1 else 4)
    if math.prod(n or 1 for n in shape) >= MAX_SIZE:
        raise LimitError("the shape is out of bounds", found=list(shape))
    return shape


class _Filter(NamedTuple):
    number: int
    values: tuple[int, ...]


_DEFLATE, _SHUFFLE, _FLETCHER, _LZF = 1, 2, 3, 32000
_FILTERS = (_DEFLATE, _SHUFFLE, _FLETCHER, _LZF)


def _pipeline(raw: bytes) -> list[_Filter]:
    version, count = raw[0], raw[1]
    at, found = 8 if version == 1 else 2, []
    for _ in range(count):
        (number,) = struct.unpack_from("<H", raw, at)
        named = version == 1 or number >= 256  # noqa: PLR2004
        sizes = struct.unpack_from("<HHH" if named else "<HH", raw, at + 2)
        length, values = sizes[0] if named else 0, sizes[-1]
        length += -length % 8 if version == 1 else 0
        at += 2 + 2 * len(sizes) + length
        found.append(_Filter(number, struct.unpack_from(f"<{values}I", raw, at)))
        at += 4 * (values + (values % 2 if version == 1 else 0))
    return found


class _Chunk(NamedTuple):
    offsets: tuple[int, ...]
    address: int
    nbytes: int
    skipped: int  # a bit for every filter that was not used


@dataclass(frozen=True, slots=True)
class _Chunked:
    """Where a dataset's chunks are found, and how they are decoded."""

    address: int
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: np.dtype[Any]
    filters: Sequence[_Filter]

    @property
    def nbytes(self) -> int:
        """Bytes of one chunk."""
        return math.prod(self.chunk) * self.dtype.itemsize


# ── the file ─────────────────────────────────────────────────────────────────────────────────────

_Messages = list[tuple[int, bytes]]
_GroupHeader = tuple[dict[str, Value], list[tuple[str, int]]]  # attributes; names and addresses
_MESSAGE_1, _MESSAGE_2 = struct.Struct("<HHB"), struct.Struct("<BHB")  # type, size and flags
_SPACE, _LINKS, _TYPE, _LINK, _EXTERNAL, _LAYOUT, _GROUP, _PIPELINE = 1, 2, 3, 6, 7, 8, 10, 11
_ATTRIBUTE, _CONTINUED, _SYMBOLS, _ATTRIBUTES = 12, 16, 17, 21


class _Reader:
    """One file; every block of it is bounded, and together they are, too."""

    def __init__(self, file: File, start: int, stop: int, checksum: Checksum | None = None) -> None:
        self._file = file
        self._checksum = checksum
        self._start = start
        self._size = stop - start
        self._paged = paged(file, start, stop)
        self._left = max(FREE_HEADERS, 2 * self._size)  # bytes of headers
        self._described = 0  # bytes of values
        self._groups: set[int] = set()
        self._datasets: dict[int, Dataset] = {}
        self._heaps: dict[int, dict[int, bytes]] = {}

    def root(self) -> Group:
        """Read everything but values."""
        found = self._object(self._superblock(), "", 0)
        if not isinstance(found, Group):
            raise CorruptFileError("the root of the HDF5 file is not a group")
        return found

    def root_header(self, *, links: bool = True) -> _GroupHeader:
        """Read the root group itself."""
        found = self._header(self._superblock(), "", links=links)
        return ({}, []) if isinstance(found, Dataset) else found

    def _superblock(self) -> int:
        """Where the root group is."""
        head = self._read(0, min(96, self._size)).ljust(96, b"\0")
        if not head.startswith(SIGNATURE):
            raise CorruptFileError("not the start of an HDF5 file", found=head[:8])
        if self._size < SHORTEST:
            raise CorruptFileError(
                "the HDF5 file is truncated",
                offset=self._start + self._size,
                expected=f"at least {SHORTEST} bytes",
                found=f"{self._size} bytes",
            )
        # By version: where the sizes of addresses are, the base address, the root's header.
        places = {0: (13, 24, 64), 1: (13, 28, 68), 2: (9, 12, 36), 3: (9, 12, 36)}
        sizes, addresses, root = places.get(head[8], (0, 0, 0))
        if head[sizes : sizes + 2] != b"\x08\x08":
            raise UnsupportedError("an unusual HDF5 superblock", found=head[8:16])
        base, _, end = struct.unpack_from("<3Q", head, addresses)
        if base or end > self._size:
            raise CorruptFileError(
                "the HDF5 file is truncated, or does not start where it should",
                offset=self._start + self._size,
                expected=f"{end} bytes from {base}",
                found=f"{self._size} bytes",
                hint="compare its size with the original's; a broken download is the usual cause",
            )
        return int.from_bytes(head[root : root + 8], "little")

    def _read(self, address: int, nbytes: int) -> bytes:
        """Some header; bounded before anything is allocated."""
        self._charge(nbytes)
        if nbytes > MAX_BLOCK or address + nbytes > self._size:
            raise CorruptFileError(
                "the HDF5 file points outside itself",
                offset=self._start + address if address <= self._size else None,
                expected=f"{nbytes} bytes from {address}",
                found=f"{self._size} bytes",
            )
        return self._paged(address, nbytes)

    def _charge(self, nbytes: int) -> None:
        self._left -= nbytes
        if self._left < 0:
            raise LimitError("the headers of the HDF5 file are larger than the file can mean")

    def _object(self, address: int, path: str, depth: int) -> Group | Dataset:
        """What an object header describes."""
        known = self._datasets.get(address)
        if known is not None:
            self._account(known.spec.nbytes if known.spec else 0)
            return known
        with context(tensor=shown(path)):
            if depth > MAX_DEPTH:
                raise LimitError(f"groups are nested more than {MAX_DEPTH} deep")
            found = self._header(address, path)
            if isinstance(found, Dataset):
                self._datasets[address] = found
                return found
            if address in self._groups:
                raise CorruptFileError("a group has two names, or is inside itself")
        self._groups.add(address)
        attributes, links = found
        members: dict[str, Group | Dataset] = {}
        for name, target in links:
            if name in members:
                raise CorruptFileError("two members of a group have this name", tensor=shown(name))
            members[name] = self._object(target, f"{path}/{name}" if path else name, depth + 1)
        return Group(attributes, members)

    def _header(self, address: int, path: str, *, links: bool = True) -> Dataset | _GroupHeader:
        """A dataset, or a group's attributes and, where they are asked for, links."""
        try:
            return self._described_by(self._messages(address), path, links=links)
        except (struct.error, IndexError, UnicodeDecodeError) as error:
            raise CorruptFileError(
                f"a header of the HDF5 file is broken: {error}",
                offset=self._start + min(address, self._size),
            ) from error

    def _described_by(
        self, messages: _Messages, path: str, *, links: bool
    ) -> Dataset | _GroupHeader:
        kinds = {kind for kind, _ in messages}
        if _EXTERNAL in kinds:
            raise UnsafeContentError("the values are kept in another file")
        attributes = dict(self._attributes(messages))
        if _LAYOUT in kinds:
            return self._dataset(dict(messages), attributes, path)
        if not kinds & {_LINKS, _LINK, _GROUP, _SYMBOLS}:
            return Dataset(attributes, problem="neither a group nor a dataset")
        return attributes, list(self._links(messages)) if links else []

    # ── object headers ───────────────────────────────────────────────────────────────────────────

    def _messages(self, address: int) -> _Messages:
        """All messages of an object, those of a version 2 header with their frames taken off."""
        head = self._read(address, 16)
        if head.startswith(b"OHDR"):
            return self._messages_2(address)
        version, left, size = head[0], *struct.unpack_from("<H4xI", head, 2)
        if version != 1:
            raise CorruptFileError(
                "not an object header", offset=self._start + address, found=head[:8]
            )
        found: _Messages = []
        blocks, seen = [(address + 16, size)], {address + 16}
        for start, nbytes in blocks:  # which grows meanwhile
            data = self._read(start, nbytes)
            at = 0
            while left and at + 8 <= len(data):
                kind, length, flags = _MESSAGE_1.unpack_from(data, at)
                self._message(found, (kind, flags), data[at + 8 : at + 8 + length], length)
                at, left = at + 8 + length, left - 1
                if kind == _CONTINUED:
                    self._continue(found, blocks, seen)
        return found

    def _messages_2(self, address: int) -> _Messages:
        head = self._read(address, min(34, self._size - address))
        flags = head[5]
        at = 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
        width = 1 << (flags & 3)
        nbytes = int.from_bytes(head[at : at + width], "little")
        found: _Messages = []
        blocks, seen = [(address + at + width, nbytes)], {address + at + width}
        for number, (start, size) in enumerate(blocks):
            data = self._read(start, size)
            if number:
                if not data.startswith(b"OCHK"):
                    raise CorruptFileError("an object header does not go on where it should")
                data = data[4:-4]
            at = 0
            while at + 4 <= len(data):
                kind, length, marks = _MESSAGE_2.unpack_from(data, at)
                at += 6 if flags & 4 else 4
                self._message(found, (kind, marks), data[at : at + length], length)
                at += length
                if kind == _CONTINUED:
                    self._continue(found, blocks, seen)
        return found

    @staticmethod
    def _message(found: _Messages, kind: tuple[int, int], body: bytes, nbytes: int) -> None:
        if len(body) != nbytes:
            raise CorruptFileError("a message of an object header is cut off")
        if kind[1] & 2 and kind[0] in {_SPACE, _TYPE, _LAYOUT, _PIPELINE, _ATTRIBUTE}:
            raise UnsupportedError("a datatype, or the like, that is shared between objects")
        if kind[0]:
            found.append((kind[0], body))

    @staticmethod
    def _continue(found: _Messages, blocks: list[tuple[int, int]], seen: set[int]) -> None:
        start, nbytes = struct.unpack_from("<QQ", found.pop()[1])
        if start in seen:
            raise CorruptFileError("an object header goes on in itself")
        seen.add(start)
        blocks.append((start, nbytes))

    # ── groups ───────────────────────────────────────────────────────────────────────────────────

    def _links(self, messages: _Messages) -> Iterator[tuple[str, int]]:
        """Names and addresses of a group's members."""
        for kind, body in messages:
            if kind == _SYMBOLS:
                tree, heap = struct.unpack_from("<QQ", body)
                yield from self._symbols(tree, heap)
            elif kind == _LINK:
                yield _link(body)
            elif kind == _LINKS:
                heap, tree = struct.unpack_from("<QQ", body, 10 if body[1] & 1 else 2)
                if heap != UNDEFINED:
                    yield from self._dense(heap, tree)

    def _symbols(self, tree: int, heap: int) -> Iterator[tuple[str, int]]:
        head = self._read(heap, 32)
        nbytes, _, start = struct.unpack_from("<3Q", head, 8)
        if not head.startswith(b"HEAP"):
            raise CorruptFileError("the names of a group are missing", offset=self._start + heap)
        names = self._read(start, nbytes)
        for node in self._tree(tree, 0, 8):
            head = self._read(node, 8)
            if not head.startswith(b"SNOD"):
                raise CorruptFileError("the members of a group are missing")
            count = int.from_bytes(head[6:8], "little")
            entries = self._read(node + 8, 40 * count)
            for name_at, address, cache in struct.iter_unpack("<QQI20x", entries):
                end = names.find(b"\0", name_at)
                if end < 0:
                    raise CorruptFileError("a name of a group's member is missing")
                name = names[name_at:end].decode()
                if cache == 2:  # noqa: PLR2004 - the entry is a path
                    raise _unsafe_link("soft", name)
                yield _checked_name(name), address

    # Many members with names that are not ASCII: link messages in a fractal heap, found through a
    # B-tree of version 2 whose records are a hash and the place in the heap.

    def _dense(self, heap: int, tree: int) -> Iterator[tuple[str, int]]:
        links = _Heap.of(self._read(heap, 142))
        blocks = [links.root]
        if links.rows:
            head = 13 + links.offset_bytes
            count = links.rows * links.width
            data = self._read(links.root + head, 8 * count)
            blocks = list(struct.unpack(f"<{count}Q", data))
        for record in self._records(tree):
            place = int.from_bytes(record[5 : 5 + links.offset_bytes], "little")
            size = int.from_bytes(record[5 + links.offset_bytes :], "little")
            number, inside = links.block(place)
            if record[4] or number >= len(blocks):
                raise UnsupportedError(_LATEST, hint=_LATEST_HINT)
            yield _link(self._read(blocks[number] + inside, size))

    def _records(self, address: int) -> Iterator[bytes]:
        """The records of a B-tree of version 2."""
        head = self._read(address, 34)
        node, width, depth = struct.unpack_from("<IHH", head, 6)
        root, count = struct.unpack_from("<QH", head, 16)
        if not head.startswith(b"BTHD") or not width or node > MAX_BLOCK:
            raise CorruptFileError("the index of a group is broken", found=head[:8])
        if count:
            yield from self._nodes(root, count, depth, _widths(node, width, depth), set())

    def _nodes(
        self, address: int, count: int, depth: int, widths: _Widths, seen: set[int]
    ) -> Iterator[bytes]:
        if address in seen:
            raise CorruptFileError("the index of a group is broken: it is inside itself")
        seen.add(address)
        head = self._read(address, 6)
        if not head.startswith(b"BTIN" if depth else b"BTLF"):
            raise CorruptFileError("the index of a group is broken", found=head)
        data = self._read(address + 6, count * widths.record)
        yield from (data[at : at + widths.record] for at in range(0, len(data), widths.record))
        if not depth:
            return
        few, all_of = widths.counts[depth - 1], widths.totals[depth - 1]
        size = 8 + few + all_of
        children = self._read(address + 6 + len(data), (count + 1) * size)
        for at in range(0, len(children), size):
            child = int.from_bytes(children[at : at + 8], "little")
            records = int.from_bytes(children[at + 8 : at + 8 + few], "little")
            yield from self._nodes(child, records, depth - 1, widths, seen)

    def _tree(self, address: int, kind: int, key: int) -> Iterator[Any]:
        """The leaves of a B-tree: addresses for groups, (key, address) for chunks."""
        todo: list[tuple[int, int | None]] = [(address, None)]
        seen = set()
        while todo:
            at, expected = todo.pop()
            head = self._read(at, 24)
            level, count = head[5], int.from_bytes(head[6:8], "little")
            wrong = expected is not None and level != expected
            if not head.startswith(b"TREE") or head[4] != kind or wrong or at in seen:
                raise CorruptFileError("a B-tree of the HDF5 file is broken", found=head[:8])
            seen.add(at)
            data = self._read(at + 24, count * (key + 8))
            pairs = [
                (data[place : place + key], int.from_bytes(data[place + key :][:8], "little"))
                for place in range(0, len(data), key + 8)
            ]
            if level:
                todo += [(child, level - 1) for _, child in reversed(pairs)]
                continue
            for pair in pairs:
                if pair[1] in seen:
                    raise CorruptFileError("a leaf of a B-tree of the HDF5 file is there twice")
                seen.add(pair[1])
                yield pair if kind else pair[1]

    # ── attributes ───────────────────────────────────────────────────────────────────────────────

    def _attributes(self, messages: _Messages) -> Iterator[tuple[str, Value]]:
        """Attributes of text and numbers; others mean nothing here."""
        for kind, body in messages:
            if kind == _ATTRIBUTES:
                heap = struct.unpack_from("<Q", body, 4 if body[1] & 1 else 2)[0]
                if heap != UNDEFINED:
                    raise UnsupportedError(_LATEST, hint=_LATEST_HINT)
            if kind != _ATTRIBUTE or (body[0] > 1 and body[1] & 3):
                continue
            version, *sizes = body[0], *struct.unpack_from("<3H", body, 2)
            at, parts = 9 if version > 2 else 8, []  # noqa: PLR2004
            for size in sizes:
                parts.append(body[at : at + size])
                at += size + (-size % 8 if version == 1 else 0)
            name = parts[0].partition(b"\0")[0].decode()
            value = self._value(_datatype(parts[1]), _dataspace(parts[2]), body[at:])
            if value is not None:
                yield name, value

    def _value(self, kind: _Type, shape: tuple[int, ...] | None, data: bytes) -> Value | None:
        count = 0 if shape is None else math.prod(shape)
        if not kind.size or not (kind.dtype or kind.text):
            return None
        if count * kind.size > len(data):
            raise CorruptFileError("the value of an attribute is cut off")
        if kind.dtype:
            array = np.frombuffer(data, kind.dtype, count)
            values = [] if array.dtype.kind == "V" else array.tolist()
        else:
            parts = [data[at : at + kind.size] for at in range(0, count * kind.size, kind.size)]
            if kind.text == "varying":
                parts = [self._from_heap(part) for part in parts]
            values = [part.rstrip(b"\0").decode() for part in parts]
        return values[0] if shape == () and values else values

    def _from_heap(self, reference: bytes) -> bytes:
        """Text of varying length, as a global heap has it."""
        length, address, index = struct.unpack("<IQI", reference)
        if not length:
            return b""
        if address not in self._heaps:
            self._heaps[address] = self._heap(address)
        found = self._heaps[address].get(index, b"")
        if len(found) < length:
            raise CorruptFileError("the text of an attribute is missing")
        self._charge(length)
        return found[:length]

    def _heap(self, address: int) -> dict[int, bytes]:
        head = self._read(address, 16)
        if not head.startswith(b"GCOL"):
            raise CorruptFileError("a heap of text is missing", offset=self._start + address)
        data = self._read(address, int.from_bytes(head[8:], "little"))
        at, found = 16, {}
        while at + 16 <= len(data):
            index, size = struct.unpack_from("<H6xQ", data, at)
            if not index:
                break
            found[index] = data[at + 16 : at + 16 + size]
            at += 16 + size + -size % 8
        return found

    # ── datasets ─────────────────────────────────────────────────────────────────────────────────

    def _dataset(
        self, messages: dict[int, bytes], attributes: dict[str, Value], path: str
    ) -> Dataset:
        if _SPACE not in messages or _TYPE not in messages:
            raise CorruptFileError("a dataset without a shape, or without a type")
        shape = _dataspace(messages[_SPACE])
        kind = _datatype(messages[_TYPE])
        if kind.opaque and kind.size == 2 and attributes.get("dtype") == "bfloat16":  # noqa: PLR2004
            kind = _Type(2, np.dtype(ml_dtypes.bfloat16))
        self._account(math.prod(shape or (0,)) * kind.size)
        layout = messages[_LAYOUT]
        if layout[1] == 3 and layout[0] > 3:  # noqa: PLR2004
            raise UnsafeContentError("a virtual dataset, whose values are in other files")
        if shape is None or kind.dtype is None:
            what = kind.problem if shape is not None else "nothing (a null dataspace)"
            return Dataset(attributes, problem=f"a dataset of {what}")
        filters = _pipeline(messages[_PIPELINE]) if _PIPELINE in messages else []
        found = self._placed(layout, shape, kind.dtype, filters, path)
        if isinstance(found, str):
            return Dataset(attributes, problem=found)
        spec = TensorSpec(shape, kind.dtype.newbyteorder("="))
        return Dataset(attributes, spec, partial(_native, found))

    def _account(self, nbytes: int) -> None:
        """Few stored bytes must not become many."""
        self._described += nbytes
        if self._described > max(FREE_BYTES, MAX_RATIO * self._size):
            raise LimitError(
                "the file describes far more than it stores",
                expected=f"at most {MAX_RATIO} times its {self._size} bytes",
                found=f"{self._described} bytes",
            )

    def _placed(
        self,
        layout: bytes,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        filters: Sequence[_Filter],
        path: str,
    ) -> Callable[[], View] | str:
        """What makes the values of a dataset, or why there are none."""
        version, kind = layout[0], layout[1]
        size = math.prod(shape)
        nbytes = size * dtype.itemsize
        if version < 3 or (kind == 2 and version > 3) or kind > 2:  # noqa: PLR2004
            return _LATEST
        if kind == 0:
            (length,) = struct.unpack_from("<H", layout, 2)
            if length != nbytes or len(layout) < 4 + length:
                raise CorruptFileError("the values of a dataset are cut off")
            return partial(View.of, np.frombuffer(layout, dtype, size, 4).reshape(shape))
        if not size:
            return partial(View.of, np.empty(shape, dtype))
        if kind == 2:  # noqa: PLR2004
            return self._chunked(layout, shape, dtype, filters, path)
        address, length = struct.unpack_from("<QQ", layout, 2)
        if address == UNDEFINED:
            return "its values were never written"
        if length != nbytes or address + nbytes > self._size:
            raise CorruptFileError(
                "the values of a dataset are not all there",
                expected=f"{nbytes} bytes for {dtype} {list(shape)}",
                found=f"{length} bytes at {address} of {self._size}",
            )
        return partial(
            _contiguous, self._file, self._start + address, shape, dtype, path, self._checksum
        )

    def _chunked(
        self,
        layout: bytes,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        filters: Sequence[_Filter],
        path: str,
    ) -> Callable[[], View] | str:
        address, *chunk = struct.unpack_from(f"<Q{layout[2]}I", layout, 3)
        whole = _Chunked(address, shape, tuple(chunk[:-1]), dtype, filters)
        unknown = [str(step.number) for step in filters if step.number not in _FILTERS]
        if unknown:
            return f"it is stored through filter {', '.join(unknown)}"
        if address == UNDEFINED:
            return "its values were never written"
        if len(chunk) != len(shape) + 1 or chunk[-1] != dtype.itemsize or 0 in chunk:
            raise CorruptFileError("the chunks of a dataset have another shape than it")
        if whole.nbytes > MAX_BLOCK:
            return f"its chunks are larger than {MAX_BLOCK} bytes"

        def compute() -> NDArray[Any]:
            with context(path=self._file.path, tensor=path):
                return self._assemble(whole)

        return partial(View.over, Computed(math.prod(shape), dtype, compute), shape)

    def _chunks(self, whole: _Chunked) -> list[_Chunk]:
        rank = len(whole.shape)
        self._left = max(FREE_HEADERS, 2 * self._size)
        found = []
        for key, address in self._tree(whole.address, 1, 8 + 8 * (rank + 1)):
            nbytes, skipped, *offsets = struct.unpack(f"<II{rank + 1}Q", key)
            found.append(_Chunk(tuple(offsets[:-1]), address, nbytes, skipped))
        grid = [range(0, n, step) for n, step in zip(whole.shape, whole.chunk, strict=True)]
        places = {c.offsets for c in found}
        good = len(places) == len(found) == math.prod(map(len, grid))
        if not good or not all(
            at in axis for place in places for at, axis in zip(place, grid, strict=True)
        ):
            raise CorruptFileError("chunks of a dataset are missing, or are there twice")
        return found

    def _assemble(self, whole: _Chunked) -> NDArray[Any]:
        """All the values of a chunked dataset."""
        chunks = self._chunks(whole)
        nbytes = math.prod(whole.shape) * whole.dtype.itemsize
        stored = sum(chunk.nbytes for chunk in chunks)
        if nbytes > max(MAX_BLOCK, MAX_RATIO * stored):
            raise LimitError(
                "the dataset inflates to far more than it stores",
                expected=f"at most {MAX_RATIO} times {stored} bytes",
                found=f"{nbytes} bytes",
            )
        out = np.empty(whole.shape, whole.dtype)
        for chunk in chunks:
            data = self._decoded(whole, chunk)
            block = np.frombuffer(data, whole.dtype).reshape(whole.chunk)
            stops = map(operator.add, chunk.offsets, whole.chunk)
            part = out[tuple(map(slice, chunk.offsets, stops))]
            part[...] = block[tuple(map(slice, part.shape))]
        return out

    def _decoded(self, whole: _Chunked, chunk: _Chunk) -> bytes:
        if chunk.nbytes > MAX_BLOCK or chunk.address + chunk.nbytes > self._size:
            raise CorruptFileError("a chunk of a dataset is not all there")
        data = self._file.read(self._start + chunk.address, chunk.nbytes)
        limit = whole.nbytes + 16  # room for checksums inside
        for number in reversed(range(len(whole.filters))):
            if not chunk.skipped >> number & 1:
                data = _undo(whole.filters[number], data, limit)
        if len(data) != whole.nbytes:
            raise CorruptFileError(
                "a chunk of a dataset has another size than it should",
                expected=f"{whole.nbytes} bytes",
                found=f"{len(data)} bytes",
            )
        return data


def _contiguous(  # noqa: PLR0913 - by partial, of which there may be 100,000: closures are larger
    file: File,
    offset: int,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    path: str,
    checksum: Checksum | None,
) -> View:
    """The values of a dataset that are in one place."""
    size = math.prod(shape)
    return View.over(Region(file, offset, dtype, size, tensor=path, checksum=checksum), shape)


def _native(make: Callable[[], View]) -> View:
    """The view, in the byte order of the machine."""
    view = make()
    return view.astype(view.dtype.newbyteorder("="))


class _Heap(NamedTuple):
    """A fractal heap: blocks in rows of `width`, of which each but the second is twice as large."""

    offset_bytes: int
    width: int
    first: int  # bytes of a block of the first row
    root: int
    rows: int  # 0: the root is the only block

    @classmethod
    def of(cls, head: bytes) -> _Heap:
        """The heap of a header; `UnsupportedError` when it is compressed or very large."""
        width, first, largest, bits = struct.unpack_from("<HQQH", head, 110)
        root, rows = struct.unpack_from("<QH", head, 132)
        if not head.startswith(b"FRHP") or not width or not first or first & (first - 1):
            raise CorruptFileError("the names of a group are missing", found=head[:8])
        if head[7:9] != b"\0\0" or (rows and first << max(0, rows - 2) > largest):
            raise UnsupportedError(_LATEST, hint=_LATEST_HINT)
        return cls((bits + 7) // 8, width, first, root, rows)

    def block(self, place: int) -> tuple[int, int]:
        """The number of the block, and the place in it."""
        if not self.rows:
            return 0, place
        row = (place // (self.width * self.first)).bit_length()
        size = self.first << max(0, row - 1)
        start = self.width * size if row else 0
        return row * self.width + (place - start) // size, (place - start) % size


class _Widths(NamedTuple):
    """Bytes of a record, and of the counts in pointers to nodes of each level."""

    record: int
    counts: list[int]
    totals: list[int]


def _widths(node: int, record: int, depth: int) -> _Widths:
    most = total = (node - 10) // record
    counts, totals = [_bytes_for(most)], [0]
    for _ in range(min(depth, 16) - 1):
        most = (node - 10 - (8 + counts[-1] + totals[-1])) // (record + 8 + counts[-1] + totals[-1])
        total = (most + 1) * total + most
        counts.append(_bytes_for(most))
        totals.append(_bytes_for(total))
    return _Widths(record, counts, totals)


def _bytes_for(number: int) -> int:
    return max(1, (max(number, 0).bit_length() + 7) // 8)


_LATEST = "it is stored in a way that other programs than Keras choose"
_LATEST_HINT = "write it again with h5py, without libver='latest' and without track_order"


def _link(body: bytes) -> tuple[str, int]:
    """A link message."""
    flags = body[1]
    at = 2
    kind = body[at] if flags & 8 else 0
    at += (1 if flags & 8 else 0) + (8 if flags & 4 else 0) + (1 if flags & 16 else 0)
    width = 1 << (flags & 3)
    length = int.from_bytes(body[at : at + width], "little")
    at += width
    name = body[at : at + length].decode()
    if kind:
        raise _unsafe_link({1: "soft", 64: "external"}.get(kind, "user-defined"), name)
    (address,) = struct.unpack_from("<Q", body, at + length)
    return _checked_name(name), address


def _unsafe_link(kind: str, name: str) -> UnsafeContentError:
    return UnsafeContentError(f"a {kind} link, which may lead anywhere", tensor=shown(name))


def _checked_name(name: str) -> str:
    trouble = "has a '/'" if "/" in name else name_problem(name)
    if trouble:
        raise CorruptFileError(f"its name {trouble}", tensor=shown(name))
    return name


# ── filters ──────────────────────────────────────────────────────────────────────────────────────


def _undo(step: _Filter, data: bytes, limit: int) -> bytes:
    """The bytes before a filter; at most `limit` of them are made."""
    if step.number == _DEFLATE:
        inflater = zlib.decompressobj()
        try:
            out = inflater.decompress(data, limit)
        except zlib.error as error:
            raise CorruptFileError(f"a chunk does not inflate: {error}") from error
        if not inflater.eof:
            raise CorruptFileError("a chunk inflates to more than it should")
        return out
    if step.number == _SHUFFLE:
        width = step.values[0] if step.values else 0
        if not 0 < width <= len(data):
            raise CorruptFileError("a chunk is shuffled by an unusual width")
        count = len(data) // width
        planes = np.frombuffer(data, np.uint8, count * width).reshape(width, count)
        return planes.T.tobytes() + data[count * width :]
    if step.number == _FLETCHER:
        return _checked(data)
    return _lzf(data, limit)


def _checked(data: bytes) -> bytes:
    """Bytes without the Fletcher-32 at their end, which must be right."""
    body, expected = data[:-4], int.from_bytes(data[-4:], "little")
    words = np.frombuffer(body + b"\0" * (len(body) % 2), ">u2").astype(np.uint64)
    low = high = 0
    for start in range(0, words.size, 1 << 16):
        block = words[start : start + (1 << 16)]
        weights = np.arange(block.size, 0, -1, dtype=np.uint64)
        high = (high + block.size * low + int((block * weights).sum())) % 65535
        low = (low + int(block.sum())) % 65535
    found = high << 16 | low
    # A sum that is a multiple of 65535 may be stored as 0 or as 65535.
    same = all((found >> n & 0xFFFF) % 65535 == (expected >> n & 0xFFFF) % 65535 for n in (0, 16))
    if len(data) < 4 or not same:  # noqa: PLR2004
        raise ChecksumError(
            "the fletcher32 checksum of a chunk does not match",
            expected=f"{expected:#010x}",
            found=f"{found:#010x}",
        )
    return body


def _lzf(data: bytes, limit: int) -> bytes:
    """LZF: runs of literal bytes, and copies of what came before."""
    out = bytearray()
    at = 0
    try:
        while at < len(data) and len(out) <= limit:
            control = data[at]
            at += 1
            if control < 32:  # noqa: PLR2004 - a run
                out += data[at : at + control + 1]
                at += control + 1
                continue
            length = control >> 5
            if length == 7:  # noqa: PLR2004 - one more byte says how long
                length += data[at]
                at += 1
            back = ((control & 31) << 8 | data[at]) + 1
            at += 1
            if back > len(out):
                raise CorruptFileError("a chunk does not decompress")
            for _ in range(length + 2):
                out.append(out[-back])
    except IndexError as error:
        raise CorruptFileError("a chunk does not decompress") from error
    return bytes(out)


# ── writing ──────────────────────────────────────────────────────────────────────────────────────

ALIGNMENT = 64
MAX_ATTRIBUTE = 64_512  # bytes of a list: Keras puts the rest into a second attribute
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_DTYPES = {np.dtype(code) for code in ("?", *"bBhHiIqQefdFD")} | {BFLOAT16}

Attributes = Mapping[str, str | Sequence[str]]


def problem(name: str, spec: TensorSpec) -> str:
    """Why there cannot be such a dataset, "" when there can."""
    if trouble := name_problem(name):
        return f"its name {trouble}"
    if any(part in {"", "."} for part in name.split("/")):
        return "its name has a part that is empty or '.', which HDF5 does not keep"
    if len(spec.shape) > MAX_RANK:
        return f"it has more than {MAX_RANK} axes"
    if spec.dtype not in _DTYPES:
        return f"Keras' HDF5 files have no {dtype_name(spec.dtype)}"
    return ""


def check(specs: Mapping[str, TensorSpec]) -> None:
    """Raise `UnrepresentableError` when a tensor's name is another one's group."""
    for name in specs:
        for parent in itertools.accumulate(name.split("/")[:-1], "{}/{}".format):
            if parent in specs:
                raise UnrepresentableError(
                    f"its name makes a group of '{shown(parent)}', which is a tensor, too",
                    tensor=shown(name),
                )


def lay_out(
    staged: StagedFile, specs: Mapping[str, TensorSpec], groups: Mapping[str, Attributes]
) -> dict[str, int]:
    """Write a file without values; where in it those of each dataset belong.

    `groups` are paths of groups, "" the root, with their attributes.  bfloat16 is stored as Keras
    stores it: two opaque bytes, and an attribute.
    """
    import h5py

    stream = _Stream(staged)
    try:
        with h5py.File(
            stream,
            "w",
            alignment_threshold=ALIGNMENT,
            alignment_interval=ALIGNMENT,
        ) as out:
            places = {name: _dataset(h5py, out, name, spec) for name, spec in specs.items()}
            for path, attributes in groups.items():
                group = out.require_group(path) if path else out
                for key, value in attributes.items():
                    _write_attribute(group.attrs, key, value)
            offsets = {name: place.id.get_offset() or 0 for name, place in places.items()}
    except (OSError, RuntimeError, ValueError) as error:
        if stream.error is None:
            raise TargetError(f"laying out the HDF5 file failed: {error}") from error
    if stream.error is not None:
        raise stream.error
    return offsets


class _Stream:
    """A staged file as the library wants to see it: all its writes are ours, too.

    Its calls never raise, which the library could not bear: the first `error` is kept.
    """

    def __init__(self, staged: StagedFile) -> None:
        self.error: TargetError | None = None
        self._staged = staged
        self._at = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to an offset, or to the end."""
        self._at = offset + (self._staged.size if whence == SEEK_END else 0)
        return self._at

    def tell(self) -> int:
        """Where the next byte is read or written."""
        return self._at

    def read(self, nbytes: int) -> bytes:
        """What was written."""
        buffer = np.empty(nbytes, np.uint8)
        self.readinto(buffer)
        return buffer.tobytes()

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer with what was written, and zeros beyond."""
        array = np.frombuffer(buffer, np.uint8)
        count = max(0, min(len(array), self._staged.size - self._at))
        array[count:] = 0
        self._kept(self._staged.read_into, self._at, array[:count])
        return len(array)

    def write(self, data: Any) -> int:
        """Write all of it."""
        array = np.frombuffer(data, np.uint8)
        self._kept(self._staged.write, self._at, array)
        return len(array)

    def truncate(self, size: int) -> int:
        """Reserve room: the file is as long as the library says."""
        if size > self._staged.size:
            self._kept(self._staged.write, size - 1, b"\0")
        return size

    def flush(self) -> None:
        """Nothing is held back."""

    def _kept(self, act: Callable[[int, Any], None], at: int, data: Any) -> None:
        try:
            act(at, data)
        except TargetError as error:
            self.error = self.error or error


def _dataset(h5py: Any, out: Any, name: str, spec: TensorSpec) -> Any:
    facts = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    facts.set_layout(h5py.h5d.CONTIGUOUS)
    facts.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    facts.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    facts.set_obj_track_times(False)
    parents = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    parents.set_create_intermediate_group(True)  # and no encoding: it would change the layout
    dtype = np.dtype("V2") if spec.dtype == BFLOAT16 else spec.dtype
    kind = h5py.h5t.py_create(dtype, logical=True)
    space = h5py.h5s.create_simple(spec.shape) if spec.shape else h5py.h5s.create(h5py.h5s.SCALAR)
    made = h5py.h5d.create(out.id, name.encode(), kind, space, dcpl=facts, lcpl=parents)
    dataset = h5py.Dataset(made)
    if spec.dtype == BFLOAT16:
        dataset.attrs["dtype"] = "bfloat16"
    return dataset


def _write_attribute(attributes: Any, key: str, value: str | Sequence[str]) -> None:
    if isinstance(value, str):
        attributes[key] = value
        return
    texts = [text.encode() for text in value]
    width = max(map(len, texts), default=1)
    step = max(1, MAX_ATTRIBUTE // width)
    if len(texts) <= step:
        attributes[key] = np.array(texts)  # of no texts, as of Keras: an array of no numbers
        return
    for number, start in enumerate(range(0, len(texts), step)):
        attributes[f"{key}{number}"] = np.array(texts[start : start + step])


class Values:
    """Writes the values of datasets to their places, in any order."""

    def __init__(
        self, staged: StagedFile, specs: Mapping[str, TensorSpec], offsets: Mapping[str, int]
    ) -> None:
        self._staged = staged
        self._specs = specs
        self._offsets = offsets
        self._missing = set(specs)
        self.order = tuple(sorted(specs, key=offsets.__getitem__))

    def place(self, name: str) -> Place:
        """Where a tensor's elements lie."""
        return Place(self._staged, self._offsets[name])

    def placed(self, name: str) -> None:
        """Take it that a tensor is at its place."""
        self._missing.discard(name)

    def write(self, name: str, chunks: Iterable[NDArray[Any]]) -> None:
        """Take a tensor as consecutive 1-D pieces."""
        spec = self._specs[name]
        offset = start = self._offsets[name]
        for piece in chunks:
            if piece.dtype != spec.dtype:
                raise TargetError(
                    "a piece has another dtype", tensor=name, expected=spec, found=piece.dtype
                )
            if offset + piece.nbytes <= start + spec.nbytes:
                self._staged.write(offset, piece)
            offset += piece.nbytes
        if offset != start + spec.nbytes:
            raise TargetError(
                "the pieces of a tensor do not add up",
                tensor=name,
                expected=f"{spec}, {spec.nbytes} bytes",
                found=f"{offset - start} bytes",
            )
        self._missing.discard(name)

    def finish(self) -> None:
        """Raise `TargetError` when a tensor was never written."""
        if self._missing:
            raise TargetError("tensors were not written", tensor=min(self._missing))
