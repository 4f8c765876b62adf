"""Sorted string tables: the container of TensorFlow's V1 files and V2 indexes.

https://github.com/google/leveldb/blob/main/doc/table_format.md

    file      data block, …, metaindex block, index block, footer
    block     contents; type: 0 raw, 1 snappy; masked crc32c of contents and type (u32)
    contents  entry, …; offsets of entries that restart the keys (u32 each); their number (u32)
    entry     varints: bytes shared with the key before, further key bytes, value bytes; key; value
    index     one entry a data block: (a key ≥ its last and < the next block's first) → its handle
    handle    varints: offset, size of the contents
    footer    handles of metaindex and index, zeros up to 40 bytes, magic (u64)

Integers are little-endian; keys are bytes in strictly rising order.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from converter.errors import ChecksumError, CorruptFileError, LimitError
from converter.files import Checksum, File, crc32c
from converter.formats._protobuf import Buffer, read_varint, varint

MAGIC = bytes.fromhex("57fb808b247547db")
FOOTER = 48  # bytes
TRAILER = 5  # bytes: type and checksum
RAW, SNAPPY = 0, 1

MAX_ENTRIES = 2_000_000
MAX_KEY = 16 * 1024  # bytes: a name of 4,096, escaped, and 32 extents
MAX_BLOCK = 64 << 20  # bytes that a compressed block may claim, unless the reader knows better
MAX_HEADER = 256 << 20  # bytes
SNAPPY_RATIO = 22  # no snappy element stands for more than 64 bytes in 3
WHOLE = 1 << 20  # bytes: larger raw blocks stay in the file

BLOCK_SIZE = 256 * 1024  # bytes after which TensorFlow ends a block
RESTART_INTERVAL = 16
TOP = 0xFF  # the byte that has no next one


def mask(crc: int) -> int:
    """A checksum as it is stored: rotated and shifted, so that the crc of crcs is no crc."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def unmask(stored: int) -> int:
    """The inverse of `mask`."""
    rotated = (stored - 0xA282EAD8) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF


class Handle(NamedTuple):
    """The place of a block: its contents are [offset, offset + size)."""

    offset: int
    size: int


class Window:
    """A range of a file as a buffer: large blocks are walked without being read."""

    def __init__(self, file: File, offset: int, size: int) -> None:
        self._file = file
        self._offset = offset
        self._size = size
        self._page = (0, b"")

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, key: int, /) -> int: ...
    @overload
    def __getitem__(self, key: slice, /) -> bytes: ...
    def __getitem__(self, key: int | slice, /) -> int | bytes:
        if isinstance(key, slice):
            start, stop, _ = key.indices(self._size)
            return self._file.read(self._offset + start, max(0, stop - start))
        start, page = self._page
        if not start <= key < start + len(page):
            start, page = key, self[key : key + 4096]
            self._page = start, page
        return page[key - start]


class Block:
    """The contents of a block; `base` is their place in the file, -1 when compressed.

    `values` are where those of each key start and stop in the data; `pending` is the checksum of a
    large block, until it is verified.
    """

    def __init__(
        self,
        data: Buffer,
        base: int,
        values: dict[bytes, tuple[int, int]],
        pending: Checksum | None = None,
    ) -> None:
        self.data, self.base, self.values, self.pending = data, base, values, pending

    def verify(self, file: File) -> None:
        """Raise `ChecksumError` if the contents are not what was written."""
        if self.pending:
            self.pending.verify(file, "")
            self.pending = None

    def checksum(self, file: File, start: int, stop: int) -> Checksum | None:
        """The pending checksum, for a reader of [start, stop) of the data to verify.

        None when there is none, or what lies around that range is too much to hold.
        """
        whole = self.pending
        if whole is None or whole.nbytes - (stop - start) > WHOLE:
            return None
        before = file.read(whole.offset, start)
        after = file.read(whole.offset + stop, whole.nbytes - stop)
        return whole._replace(
            offset=whole.offset + start,
            nbytes=stop - start,
            initial=crc32c(before),
            suffix=after,
        )


class Table:
    """A table in a file. Only its footer, metaindex and index are read at first.

    Raises `CorruptFileError` (cut, damaged, inconsistent) and `LimitError`.
    """

    def __init__(self, file: File) -> None:
        self.file = file
        self.largest = MAX_BLOCK  # bytes that a compressed block may claim
        self._end = file.size - FOOTER
        self._kept: dict[int, Block] = {}
        self._turn = threading.Lock()
        footer = file.read(self._end, FOOTER) if self._end >= 0 else b""
        if footer[-len(MAGIC) :] != MAGIC:
            raise CorruptFileError(
                "the table's footer is missing: the file is truncated, or something else",
                path=file.path,
                offset=max(0, file.size - len(MAGIC)),
                expected=f"the magic number {MAGIC.hex()}",
                found=footer[-len(MAGIC) :].hex() or f"a file of {file.size} bytes",
            )
        metaindex, at = self._handle(footer, 0, FOOTER - len(MAGIC))
        index, _ = self._handle(footer, at, FOOTER - len(MAGIC))
        self._contents(metaindex)
        self.keys: list[bytes] = []
        self.handles: list[Handle] = []
        data, _ = self._contents(index)
        for key, start, stop in self._rising(index, data):
            self.keys.append(key)
            self.handles.append(self._handle(data, start, stop)[0])

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        """Every key with its value; reads block by block."""
        last: bytes | None = None
        count = 0
        for handle in self.handles:
            data, _ = self._contents(handle)
            for key, start, stop in self._rising(handle, data, last):
                yield key, data[start:stop]
                last, count = key, count + 1
                if count > MAX_ENTRIES:
                    raise LimitError(
                        "the table has too many entries",
                        path=self.file.path,
                        expected=f"at most {MAX_ENTRIES}",
                    )

    def first(self) -> bytes:
        """The value of the empty key, which sorts first: the header of a checkpoint."""
        found = self.find(b"")
        if found is None:
            raise CorruptFileError("the table has no header entry", path=self.file.path)
        block, start, stop = found
        if stop - start > MAX_HEADER:
            raise LimitError(
                "the header of the checkpoint is too large",
                path=self.file.path,
                expected=f"at most {MAX_HEADER} bytes",
                found=f"{stop - start} bytes",
            )
        return block.data[start:stop]

    def find(self, key: bytes) -> tuple[Block, int, int] | None:
        """The block that holds a key, and its value as [start, stop) of the block's data.

        A block is verified when it is first used, but for a large one that is not compressed: that
        stays in the file, and is to be verified by who uses it.
        """
        number = bisect_left(self.keys, key)
        if number == len(self.keys):
            return None
        with self._turn:  # tensors are read by several threads
            block = self._block(number)
            if key not in block.values:
                block.verify(self.file)
                return None
        return block, *block.values[key]

    def _block(self, number: int) -> Block:
        block = self._kept.get(number)
        if block is None:
            handle = self.handles[number]
            block = self._large(handle) or Block(*self._contents(handle), {})
            try:
                rising = self._rising(handle, block.data)
                block.values = {key: (start, stop) for key, start, stop in rising}
            except (CorruptFileError, LimitError):
                block.verify(self.file)  # which explains it, if it fails
                raise
            # Tables are mostly read in order, so one block in memory is enough.
            self._kept = {n: b for n, b in self._kept.items() if isinstance(b.data, Window)}
            self._kept[number] = block
        return block

    def _large(self, handle: Handle) -> Block | None:
        """A large raw block, not yet verified, that stays in the file."""
        offset, size = handle
        if size <= WHOLE or self.file.read(offset + size, 1)[0] != RAW:
            return None
        expected = unmask(int.from_bytes(self.file.read(offset + size + 1, 4), "little"))
        checksum = Checksum("block", crc32c, expected, offset, size + 1)
        return Block(Window(self.file, offset, size), offset, {}, checksum)

    def _contents(self, handle: Handle) -> tuple[bytes, int]:
        """A block in memory, verified and decompressed, and its place as `Block.base` has it."""
        offset, size = handle
        stored = self.file.read(offset, size + TRAILER)
        expected = unmask(int.from_bytes(stored[size + 1 :], "little"))
        found = crc32c(stored[: size + 1])
        if found != expected:
            raise ChecksumError(
                "the checksum of a block does not match",
                path=self.file.path,
                offset=offset,
                expected=f"{expected:#010x}",
                found=f"{found:#010x}",
                hint="the file is damaged, or mixed from two checkpoints; get it again",
            )
        kind, data = stored[size], stored[:size]
        if kind == RAW:
            return data, offset
        if kind == SNAPPY:
            return self._decompressed(handle, data), -1
        raise CorruptFileError(
            "a block has an unknown type",
            path=self.file.path,
            offset=offset + size,
            expected="0 (raw) or 1 (snappy)",
            found=kind,
        )

    def _decompressed(self, handle: Handle, data: bytes) -> bytes:
        where: dict[str, Any] = {"path": self.file.path, "offset": handle.offset}
        import cramjam  # most tables are not compressed

        try:
            claimed, _ = read_varint(data, 0, len(data))
            if claimed > SNAPPY_RATIO * len(data):
                raise CorruptFileError(
                    "a compressed block claims more than it can hold",
                    **where,
                    expected=f"at most {SNAPPY_RATIO * len(data)} bytes",
                    found=f"{claimed} bytes",
                )
            if claimed > self.largest:
                raise LimitError(
                    "a compressed block is too large",
                    **where,
                    expected=f"at most {self.largest} bytes",
                    found=f"{claimed} bytes",
                )
            content = bytes(cramjam.snappy.decompress_raw(data))
        except cramjam.DecompressionError as error:
            raise CorruptFileError(f"a block cannot be decompressed: {error}", **where) from error
        if len(content) != claimed:
            raise CorruptFileError(
                "a compressed block has the wrong size",
                **where,
                expected=claimed,
                found=len(content),
            )
        return content

    def _handle(self, data: Buffer, at: int, end: int) -> tuple[Handle, int]:
        offset, at = read_varint(data, at, end)
        size, at = read_varint(data, at, end)
        if offset + size + TRAILER > self._end:
            raise CorruptFileError(
                "a block lies outside the file",
                path=self.file.path,
                expected=f"at most {self._end} bytes of blocks",
                found=f"{size} bytes from offset {offset}",
            )
        return Handle(offset, size), at

    def _rising(
        self, handle: Handle, data: Buffer, last: bytes | None = None
    ) -> Iterator[tuple[bytes, int, int]]:
        """The entries of a block, keys checked to rise from `last` on."""
        count = 0
        try:
            for key, start, stop in entries(data):
                if last is not None and key <= last:
                    raise CorruptFileError("the keys of a table are not in order")  # noqa: TRY301 - gets its place below
                yield key, start, stop
                last, count = key, count + 1
                if count > MAX_ENTRIES:
                    raise LimitError("a block has too many entries", expected=MAX_ENTRIES)  # noqa: TRY301 - likewise
        except (CorruptFileError, LimitError) as error:
            error.path = error.path or self.file.path
            error.offset = handle.offset if error.offset is None else error.offset
            raise


def entries(data: Buffer) -> Iterator[tuple[bytes, int, int]]:
    """The entries in a block's contents: key, and value as [start, stop)."""
    size = len(data)
    restarts = int.from_bytes(data[max(0, size - 4) : size], "little")
    end = size - 4 - 4 * restarts
    if end < 0:
        raise CorruptFileError("a block is shorter than its own list of restarts")
    at = 0
    key = b""
    while at < end:
        shared, at = read_varint(data, at, end)
        unshared, at = read_varint(data, at, end)
        length, at = read_varint(data, at, end)
        start = at + unshared
        if shared > len(key) or start + length > end:
            raise CorruptFileError("an entry does not fit into its block")
        if shared + unshared > MAX_KEY:
            raise LimitError("a key is too long", expected=f"at most {MAX_KEY} bytes")
        key = key[:shared] + data[at:start]
        at = start + length
        yield key, start, at


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


class _Builder:
    """The contents of a block as they grow."""

    def __init__(self, interval: int) -> None:
        self._interval = interval
        self._data = bytearray()
        self._restarts = [0]
        self._since = 0
        self._last = b""

    @property
    def size(self) -> int:
        """Bytes of the contents if they ended here."""
        return len(self._data) + 4 * len(self._restarts) + 4

    def add(self, key: bytes, value: bytes) -> None:
        shared = 0
        if self._since < self._interval:
            shared = _shared(self._last, key)
        else:
            self._restarts.append(len(self._data))
            self._since = 0
        self._data += varint(shared) + varint(len(key) - shared) + varint(len(value))
        self._data += key[shared:] + value
        self._last = key
        self._since += 1

    def finish(self) -> bytes:
        return bytes(self._data) + _restarts(self._restarts)


class TableWriter:
    """Writes a table as TensorFlow does, byte for byte; keys must come in rising order."""

    def __init__(self, append: Callable[[bytes | NDArray[Any]], object]) -> None:
        self._append = append
        self._size = 0  # bytes written
        self._block = _Builder(RESTART_INTERVAL)
        self._index = _Builder(1)
        self._count = 0  # entries in the open block
        self._last = b""  # key
        self._pending: bytes | None = None  # handle of a block that is not in the index yet

    def add(self, key: bytes, value: Iterable[bytes | NDArray[Any]], nbytes: int) -> None:
        """Add a value that comes in pieces of `nbytes` bytes together; a large one is streamed."""
        large = len(key) + nbytes >= 2 * BLOCK_SIZE
        if large:
            self._flush()
        if self._pending is not None:
            self._index.add(_separator(self._last, key), self._pending)
            self._pending = None
        self._last = key
        if large:
            head = varint(0) + varint(len(key)) + varint(nbytes) + key
            self._pending = self._write([head], value, [_restarts([0])])
            return
        self._block.add(key, b"".join(map(_raw, value)))
        self._count += 1
        if self._block.size >= BLOCK_SIZE:
            self._flush()

    def finish(self) -> None:
        """Write what is open, the index and the footer."""
        self._flush()
        metaindex = self._write([_Builder(1).finish()])
        if self._pending is not None:
            self._index.add(_successor(self._last), self._pending)
        handles = metaindex + self._write([self._index.finish()])
        self._append(handles.ljust(FOOTER - len(MAGIC), b"\0") + MAGIC)

    def _flush(self) -> None:
        if self._count:
            self._pending = self._write([self._block.finish()])
            self._block = _Builder(RESTART_INTERVAL)
            self._count = 0

    def _write(self, *parts: Iterable[bytes | NDArray[Any]]) -> bytes:
        """Write a block that comes in pieces; its handle for the index."""
        size = crc = 0
        for part in (*parts, [bytes([RAW])]):
            for piece in part:
                crc = crc32c(piece, crc)
                self._append(piece)
                size += len(piece) if isinstance(piece, bytes) else piece.nbytes
        self._append(mask(crc).to_bytes(4, "little"))
        start = self._size
        self._size += size + 4
        return varint(start) + varint(size - 1)


def table_bytes(entries: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A whole table in memory, of keys in rising order and their values."""
    pieces: list[bytes | NDArray[Any]] = []
    table = TableWriter(pieces.append)
    for key, value in entries:
        table.add(key, [value], len(value))
    table.finish()
    return b"".join(map(_raw, pieces))


def _raw(piece: bytes | NDArray[Any]) -> bytes:
    return piece if isinstance(piece, bytes) else piece.tobytes()


def _restarts(offsets: list[int]) -> bytes:
    return np.array([*offsets, len(offsets)], "<u4").tobytes()


def _shared(first: bytes, second: bytes) -> int:
    """Length of the common prefix."""
    for position, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return position
    return min(len(first), len(second))


def _separator(low: bytes, high: bytes) -> bytes:
    """A short key in [low, high), as LevelDB picks it."""
    at = _shared(low, high)
    if at < min(len(low), len(high)) and low[at] < TOP and low[at] + 1 < high[at]:
        return low[:at] + bytes([low[at] + 1])
    return low


def _successor(key: bytes) -> bytes:
    """A short key that is not below `key`."""
    for position, byte in enumerate(key):
        if byte < TOP:
            return key[:position] + bytes([byte + 1])
    return key
