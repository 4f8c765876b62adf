"""Files: exact reads, verified regions, and targets that appear whole or not at all.

Every byte of a checkpoint that is read or written goes through this module.  Reads are `pread`
loops, never memory maps: a file that shrinks or a network that stalls is then an error and not
a SIGBUS, and the page cache is not charged to this process.

    File, Region, Checksum          reading
    StagedFile, Publication         writing
    System                          the operating system, as far as both need it
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import itertools
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from converter.errors import (
    ChecksumError,
    CorruptFileError,
    LimitError,
    NoSpaceError,
    NotFoundError,
    SourceError,
    TargetError,
    TargetExistsError,
)

try:
    from isal.isal_zlib import crc32 as _crc32  # the extra `fast`: ten times as fast
except ImportError:
    from zlib import crc32 as _crc32

Array = NDArray[Any]
Data = Array | bytes | memoryview
BLOCK = 1 << 18  # bytes; a buffer of this size, reused, stays in the L2 cache
LOCK_SECONDS = 60.0  # how long a publication waits for its turn in a folder

_SIZE = r"(?i)([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([KMGT]?)(iB|B|)"
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def size_of(text: str) -> int:
    """The bytes that `128MiB`, `2GB` or `4096` stand for; ValueError when it is no size."""
    found = re.fullmatch(_SIZE, text)
    if not found:
        raise ValueError(f"'{text}' is no size: write 128MiB or 2GB")
    table = _BINARY if found[3].lower() == "ib" else _UNITS
    return int(float(found[1]) * table[found[2].upper()])


class System:
    """The calls to the operating system, in one place.

    Tests put a subclass in `files.system` to count calls, to cut them short, to make the k-th
    one fail, and to record them.  Python itself repeats a call that a signal interrupted.
    """

    def open(self, path: Path, flags: int) -> int:
        """Open a file, or a folder; a new file's mode follows the umask."""
        return os.open(path, flags | os.O_CLOEXEC, 0o666)

    def close(self, fd: int) -> None:
        """Close a descriptor, and give up its lock."""
        os.close(fd)

    def read(self, fd: int, buffer: memoryview, offset: int) -> int:
        """Read at most as many bytes as the buffer takes."""
        return os.preadv(fd, [buffer], offset)

    def write(self, fd: int, data: memoryview, offset: int) -> int:
        """Write at most all of the data."""
        return os.pwrite(fd, data, offset)

    def sync(self, fd: int) -> None:
        """Bring a file's bytes, or a folder's names, to the disk."""
        os.fsync(fd)

    def lock(self, fd: int) -> bool:
        """Whether this descriptor now has the file's lock; true where there are no locks."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def rename(self, source: Path, target: Path) -> None:
        """Give a file another name; what had that name is gone."""
        source.replace(target)

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name; fails when that name is taken."""
        target.hardlink_to(source)

    def unlink(self, path: Path) -> None:
        """Take a name away."""
        path.unlink()

    def free(self, folder: Path) -> int | None:
        """Bytes that may still be written there; None where the file system does not say."""
        facts = os.statvfs(folder)
        return facts.f_bavail * facts.f_frsize if facts.f_blocks else None


system = System()


# ── reading ──────────────────────────────────────────────────────────────────────────────────


class File:
    """An open file of known size, read at exact positions.

    Raises `NotFoundError` when it cannot be opened, `CorruptFileError` when it ends early.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = system.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe must not block
        except OSError as error:
            raise NotFoundError(f"cannot be opened: {error.strerror}", path=path) from error
        self._stat = os.fstat(self._fd)
        if not stat.S_ISREG(self._stat.st_mode):
            self.close()
            raise NotFoundError("is not a regular file", path=path)
        self.size = self._stat.st_size

    def read(self, offset: int, nbytes: int) -> bytes:
        """`nbytes` bytes from `offset`; bounded by the file's size before anything is allocated."""
        self._bound(offset, nbytes)
        buffer = np.empty(nbytes, np.uint8)
        self.read_into(offset, buffer)
        return buffer.tobytes()

    def read_into(self, offset: int, buffer: Array) -> None:
        """Fill a C-contiguous array with the bytes from `offset`."""
        self._bound(offset, buffer.nbytes)
        view = _bytes_of(buffer).data
        try:
            done = _read_all(self._fd, view, offset)
            if 0 < done == len(view):  # what was read is from before any change
                self.check_unchanged()
        except OSError as error:
            reason = error.strerror if self._fd >= 0 else "the checkpoint is closed"
            raise SourceError(f"reading failed: {reason}", path=self.path, offset=offset) from error
        if done < len(view):
            raise CorruptFileError(
                "the file became shorter while it was read",
                path=self.path,
                offset=offset + done,
                expected=f"{self.size} bytes",
                found=f"{os.fstat(self._fd).st_size} bytes",
            )

    def read_rows(self, offset: int, rows: Array, pitch: int) -> None:
        """Fill the rows of a C-contiguous 2-D array, `pitch` bytes apart, from `offset` on."""
        data, width = _bytes_of(rows).data, rows.shape[1] * rows.itemsize
        self._bound(offset, (len(rows) - 1) * pitch + width)
        for number, start in enumerate(range(0, len(data), width)):
            row, place = data[start : start + width], offset + number * pitch
            try:
                done = system.read(self._fd, row, place)
            except OSError:
                done = 0
            if done < width:  # rare, and `read_into` knows what to do or to say
                self.read_into(place + done, np.frombuffer(row[done:], np.uint8))
        self.check_unchanged()

    def _bound(self, offset: int, nbytes: int) -> None:
        if offset < 0 or nbytes < 0 or offset + nbytes > self.size:
            raise CorruptFileError(
                "the file is truncated, or points outside itself",
                path=self.path,
                offset=offset,
                expected=f"{nbytes} bytes from offset {offset}",
                found=f"a file of {self.size} bytes",
                hint="compare its size with the original's; a broken download is the usual cause",
            )

    def check_unchanged(self) -> None:
        """Raise `SourceError` when the file was written to or cut since it was opened."""
        now, then = os.fstat(self._fd), self._stat
        if (now.st_size, now.st_mtime_ns) != (then.st_size, then.st_mtime_ns):
            raise SourceError(
                "the file changed while it was read",
                path=self.path,
                expected=f"{then.st_size} bytes, last written {_moment(then)}",
                found=f"{now.st_size} bytes, last written {_moment(now)}",
                hint="wait until nobody writes to it, and start again",
            )

    def close(self) -> None:
        """Close the descriptor; harmless when repeated."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            system.close(fd)


def _moment(facts: os.stat_result) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(facts.st_mtime))


def _read_all(fd: int, view: memoryview, offset: int) -> int:
    """Read until the buffer is full or the file ends; how much that was."""
    done = 0
    while done < len(view):
        try:
            count = system.read(fd, view[done:], offset + done)
        except InterruptedError:
            continue
        if count == 0:
            break
        done += count
    return done


def _bytes_of(array: Array) -> NDArray[np.uint8]:
    """The memory of a C-contiguous array, whatever its dtype."""
    if not array.flags.c_contiguous:
        raise ValueError("the array is not C-contiguous")
    return array.reshape(-1).view(np.uint8)


def _array_of(data: Data) -> Array:
    return data if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)


def crc32c(data: Data, crc: int = 0) -> int:
    """CRC-32C (Castagnoli) of bytes, continued from `crc`."""
    given = data if isinstance(data, bytes) else _bytes_of(_array_of(data))
    return int(google_crc32c.extend(crc, given))


def crc32(data: Data, crc: int = 0) -> int:
    """CRC-32 (zip's polynomial) of bytes, continued from `crc`."""
    return _crc32(_bytes_of(data).data if isinstance(data, np.ndarray) else data, crc)


Crc = Callable[[Data, int], int]
# Bit-reversed, without the leading one.
POLYNOMIALS: dict[Crc, int] = {crc32: 0xEDB88320, crc32c: 0x82F63B78}


class Pieces:
    """The checksum of bytes that come in pieces, in any order and by any thread.

    They start at `start`; `initial` is the checksum of what is before them.
    """

    def __init__(self, function: Crc, start: int, initial: int = 0) -> None:
        self._function = function
        self._start = start
        self._initial = initial
        self._found: list[tuple[int, int, int, NDArray[np.uint32]]] = []

    def of(self, offset: int, piece: Data) -> int:
        """The checksum of a piece, which goes on from `initial` if it is the first."""
        return self._function(piece, self._initial if offset == self._start else 0)

    def add(self, offset: int, nbytes: int, *crcs: int, pitch: int = 0) -> None:
        """Take what `of` says of pieces of `nbytes` each, `pitch` apart, the first at `offset`."""
        self._found.append((offset, nbytes, pitch, np.array(crcs, np.uint32)))

    def joined(self, nbytes: int) -> int | None:
        """The checksum of all of them; None unless they are so many bytes in a row.

        Bytes behind a piece multiply its checksum by x to the power of their bits, modulo the
        polynomial.
        """
        if not self._found:
            return None if nbytes else self._initial
        offset, size, _, crcs = self._found[0]
        if len(self._found) == len(crcs) == 1 and (offset, size) == (self._start, nbytes):
            return int(crcs[0])  # as of most tensors
        runs = [(at + pitch * np.arange(len(crcs)), n) for at, n, pitch, crcs in self._found]
        starts = np.concatenate([run for run, _ in runs])
        sizes = np.concatenate([np.full(len(run), n) for run, n in runs])
        crcs = np.concatenate([crcs for *_, crcs in self._found])
        order = np.argsort(starts)
        ends = np.cumsum(sizes[order])
        if ends[-1] != nbytes or (starts[order] != self._start + ends - sizes[order]).any():
            return None
        shifted = _shifted(crcs[order], nbytes - ends, self._function)
        return int(np.bitwise_xor.reduce(shifted))


def _shifted(crcs: NDArray[np.uint32], behind: NDArray[np.int64], function: Crc) -> Array:
    """Checksums as they are after so many zero bytes each."""
    for power in range(int(behind.max(initial=0)).bit_length()):
        chosen = behind >> power & 1 == 1
        if chosen.any():
            crcs[chosen] = _multiplied(crcs[chosen], _table(power, POLYNOMIALS[function]))
    return crcs


def _multiplied(crcs: NDArray[np.uint32], table: NDArray[np.uint32]) -> NDArray[np.uint32]:
    product = np.zeros_like(crcs)
    for byte in range(4):
        product ^= table[byte][crcs >> 8 * byte & 0xFF]
    return product


@functools.cache
def _table(power: int, polynomial: int) -> NDArray[np.uint32]:
    """What 2 ** power zero bytes make of each value of each byte of a checksum: `[4, 256]`."""
    bits = np.left_shift(np.uint32(1), np.arange(32, dtype=np.uint32))
    if power:
        before = _table(power - 1, polynomial)
        bits = _multiplied(_multiplied(bits, before), before)
    else:
        for _ in range(8):
            bits = bits >> 1 ^ np.where(bits & 1, np.uint32(polynomial), np.uint32(0))
    table = np.zeros((4, 256), np.uint32)
    for bit in range(8):  # a value with its highest bit is that bit and a value before
        table[:, 1 << bit : 2 << bit] = table[:, : 1 << bit] ^ bits.reshape(4, 8)[:, bit, None]
    return table


class Checksum(NamedTuple):
    """A stored checksum and the byte range of the file that it covers.

    `initial` is the checksum of what it covers before that range, `suffix` what it covers after it.
    """

    name: str
    function: Crc
    expected: int
    offset: int
    nbytes: int
    initial: int = 0
    suffix: bytes = b""

    def verify(self, file: File, tensor: str, into: Array | None = None) -> None:
        """Read the range once and compare; raise `ChecksumError` when it differs.

        The bytes stay in `into`, an array of `nbytes` bytes, when it is given.
        """
        buffer = np.empty(min(BLOCK, self.nbytes), np.uint8) if into is None else into
        crc = self.initial
        for start in range(0, self.nbytes, BLOCK):
            place = 0 if into is None else start
            block = buffer[place : place + min(BLOCK, self.nbytes - start)]
            file.read_into(self.offset + start, block)
            crc = self.function(block, crc)
        self.compare(crc, file, tensor)

    def compare(self, crc: int, file: File, tensor: str) -> None:
        """Raise `ChecksumError` unless the checksum of what comes before the suffix is right."""
        if self.suffix:
            crc = self.function(self.suffix, crc)
        if crc != self.expected:
            raise ChecksumError(
                f"the {self.name} checksum does not match",
                path=file.path,
                tensor=tensor,
                offset=self.offset,
                expected=f"{self.expected:#010x}",
                found=f"{crc:#010x}",
                hint="the file is damaged, or mixed from two checkpoints; get it again",
            )


class Region:
    """Elements in a row inside a file: the Storage of most tensors.

    The checksum, if there is one, is verified before the first element is handed out.
    """

    def __init__(  # noqa: PLR0913 - a place in a file, what lies there and what proves it
        self,
        file: File,
        offset: int,
        dtype: np.dtype[Any],
        size: int,
        *,
        tensor: str = "",
        checksum: Checksum | None = None,
    ) -> None:
        self.file = file
        self.offset = offset
        self.dtype = dtype
        self.size = size
        self.tensor = tensor
        self._unverified = checksum
        self._turn = threading.Lock()

    def read(self, start: int, out: Array) -> None:
        """Fill the 1-D array `out` with the elements from `start` on."""
        self.bound(start, out.size)
        if self._unverified is None:
            self.file.read_into(self.offset + start * self.dtype.itemsize, out)
            return
        with self._turn:  # tensors are read by several threads
            self._read_verified(start, out)

    def read_rows(self, start: int, rows: Array, pitch: int) -> None:
        """Fill the rows of a C-contiguous 2-D array, `pitch` elements apart, from `start` on."""
        if self._unverified:
            with self._turn:
                self._verify()
        width = self.dtype.itemsize
        self.bound(start, (len(rows) - 1) * pitch + rows.shape[1])
        self.file.read_rows(self.offset + start * width, rows, pitch * width)

    def bound(self, start: int, size: int) -> None:
        """Raise `LimitError` unless [start, start + size) are elements of this tensor."""
        if start < 0 or start + size > self.size:
            raise LimitError(
                "read outside a tensor's elements",
                path=self.file.path,
                tensor=self.tensor,
                expected=f"at most {self.size} elements",
                found=f"{size} elements from {start}",
            )

    def in_pieces(self) -> Region | _InPieces:
        """The same elements for a reader that takes each of them once, in pieces of any order.

        The checksum is verified by the last piece, not before the first, and nothing read twice.
        """
        checksum, nbytes = self._unverified, self.size * self.dtype.itemsize
        if checksum is None or (checksum.offset, checksum.nbytes) != (self.offset, nbytes):
            return self  # what proves more than these elements has no one function either
        return _InPieces(self, checksum) if checksum.function in POLYNOMIALS else self

    def _read_verified(self, start: int, out: Array) -> None:
        checksum = self._unverified
        if checksum and (checksum.offset, checksum.nbytes) == (self.offset, out.nbytes):
            # All of it is asked for: verified while it is still in the cache, read only once.
            checksum.verify(self.file, self.tensor, out.reshape(-1).view(np.uint8))
            self._unverified = None
        else:
            self._verify()
            self.file.read_into(self.offset + start * self.dtype.itemsize, out)

    def _verify(self) -> None:
        if self._unverified:
            self._unverified.verify(self.file, self.tensor)
            self._unverified = None


class _InPieces:
    """The elements of a region, each read once, in pieces of any order.

    The checksum is that of the pieces, joined when the last is there.
    """

    def __init__(self, region: Region, checksum: Checksum) -> None:
        self.dtype = region.dtype
        self.size = region.size
        self._region = region
        self._checksum = checksum
        self._pieces = Pieces(checksum.function, region.offset, checksum.initial)
        self._nbytes = 0  # that were read
        self._turn = threading.Lock()

    def read(self, start: int, out: Array) -> None:
        """Fill `out`; `ChecksumError` when it is the last piece, and they are not right."""
        self._region.bound(start, out.size)
        raw, offset = _bytes_of(out), self._region.offset + start * self.dtype.itemsize
        self._region.file.read_into(offset, raw)
        self._pieces.add(offset, raw.size, self._pieces.of(offset, raw))
        with self._turn:
            before, self._nbytes = self._nbytes, self._nbytes + raw.size
        if before < self._checksum.nbytes <= self._nbytes:
            self._verify()

    def _verify(self) -> None:
        file, tensor = self._region.file, self._region.tensor
        found = self._pieces.joined(self._checksum.nbytes)
        if found is None:  # something was read twice
            self._checksum.verify(file, tensor)
        else:
            self._checksum.compare(found, file, tensor)


# ── writing ──────────────────────────────────────────────────────────────────────────────────


class Place(NamedTuple):
    """Where bytes belong in a file that is written, and the checksum that is wanted of them.

    It goes on from `initial`, that of what is before them.
    """

    file: StagedFile
    offset: int
    checksum: Crc | None = None
    initial: int = 0


_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK}


class StagedFile:
    """A file being written under a temporary name, in the folder of its target.

    It is locked as long as it has that name: a temporary file that can be locked is a dead one.
    One that is `kept` outlives its process, so that a later run can adopt it.
    """

    def __init__(self, target: Path, left: Path | None = None) -> None:
        """Make one; or take over what a run that died left, `OSError` when it lives."""
        self.target = target
        self.kept = left is not None
        try:
            self.path, self._fd = (left, _claim(left)) if left else self._create()
        except OSError as error:
            if left:
                raise
            raise write_error(error, target, "cannot be created") from error
        self.size = os.fstat(self._fd).st_size
        self._turn, self._rows = threading.Lock(), threading.Lock()

    def _create(self) -> tuple[Path, int]:
        while True:
            path = self.target.with_name(f"{_stem(self.target)}{os.urandom(8).hex()}.tmp")
            fd = system.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            # Another run may take it for a dead one, and away, until it is locked.
            if system.lock(fd) and os.fstat(fd).st_nlink:
                return path, fd
            system.close(fd)

    def append(self, data: Data) -> int:
        """Write at the end; the offset at which the data now starts."""
        start = self.size
        self.write(start, data)
        return start

    def write(self, offset: int, data: Data) -> None:
        """Write at `offset`; several threads may, each in its own range."""
        view = _bytes_of(np.ascontiguousarray(_array_of(data))).data
        done = 0
        while done < len(view):
            try:
                count = system.write(self._fd, view[done:], offset + done)
            except InterruptedError:
                continue
            except OSError as error:
                raise write_error(error, self.target) from error
            if not count:  # or this would go on for ever
                raise TargetError("writing failed: no byte was taken", path=self.target)
            done += count
        self._grow(offset + done)

    def write_rows(
        self, offset: int, rows: Array, pitch: int, pieces: Pieces | None = None
    ) -> None:
        """Write the rows of a C-contiguous 2-D array `pitch` bytes apart, the first at `offset`.

        Several threads may, each its own rows; `pieces` takes them, too.  They take turns: a file
        takes one write at a time, and a thread that waits for each of many keeps a core busy.
        """
        data, width = _bytes_of(rows).data, rows.shape[1] * rows.itemsize
        parts = [
            (offset + number * pitch, data[start : start + width])
            for number, start in enumerate(range(0, len(data), width))
        ]
        crcs = [pieces.of(place, row) for place, row in parts] if pieces else []
        with self._rows:
            for place, row in parts:
                try:
                    done = system.write(self._fd, row, place)
                except OSError:
                    done = 0
                if done < width:  # rare, and `write` knows what to do or to say
                    self.write(place + done, row[done:])
        self._grow(offset + (len(rows) - 1) * pitch + width)
        if pieces:
            pieces.add(offset, width, *crcs, pitch=pitch)

    def _grow(self, size: int) -> None:
        with self._turn:
            self.size = max(self.size, size)

    def read_into(self, offset: int, buffer: Array) -> None:
        """Fill a C-contiguous array with bytes that were written before."""
        with _writing(self.target):
            done = _read_all(self._fd, _bytes_of(buffer).data, offset)
        if done < buffer.nbytes:
            raise TargetError("what was written is not there", path=self.target, offset=offset)

    def seal(self) -> None:
        """Bring the bytes to the disk.  A failed fsync is final: it is never repeated."""
        with _writing(self.target):
            system.sync(self._fd)

    def put(self, path: Path) -> bool:
        """Give it a name that must be free; whether it still has the temporary name, too.

        Raises `TargetExistsError` when the name is taken.
        """
        try:
            system.link(self.path, path)
        except FileExistsError as error:
            raise _exists(path) from error
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if os.path.lexists(path):  # the best that can be had without links
                raise _exists(path) from error
            system.rename(self.path, path)
            return False
        return True

    def replace(self, path: Path) -> None:
        """Give it this name instead of the temporary one, whoever has it."""
        system.rename(self.path, path)

    def is_at(self, path: Path) -> bool:
        """Whether that name is this file."""
        try:
            return os.path.samestat(path.lstat(), os.fstat(self._fd))
        except OSError:
            return False

    def discard(self) -> None:
        """Remove the temporary name, unless it is kept, and close; harmless when repeated."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            if not self.kept:
                _remove(self.path)
            with contextlib.suppress(OSError):
                system.close(fd)


class Interim(NamedTuple):
    """Where new data may lie while the names of the old data are still needed.

    `data` are paths that no checkpoint uses, one for each data target; `marker` is the content
    of a marker that refers to them.
    """

    data: Sequence[Path]
    marker: bytes


class Publication:
    """Files that replace their targets together, after all of them are on the disk.

    The last target is the marker, which makes the others count (an index); the others are data.
    All are in one folder.  Raises, before it makes a file, `TargetExistsError` when a target
    exists and `overwrite` is false, and `NoSpaceError` when `nbytes` do not fit.

    A process or a machine may stop at any point; a reader then finds all of the old files or
    all of the new ones.  With new names that is a matter of order: data, then marker.  Data
    that must take the names of the old data needs `Interim`, since two renames are not one:

        step, each with fsync of the folder        names afterwards               a reader gets
        1  link new data to the interim names      data old · marker old          old
        2  rename the interim marker: the commit   data old · marker → interim    new
        3  rename new data over the old            data new · marker → interim    new
        4  rename the marker                       data new · marker → data       new
        5  remove the interim names                data new · marker → data       new

    Without hard links it stops at 2, which is as good a checkpoint under other names.

    Nothing is replaced unless `overwrite` is true, not even a target that appears meanwhile.
    Temporary files of runs that died are removed when their targets are next written to, and so
    are those of `related` targets.  `adopted` files are complete already.
    """

    def __init__(
        self,
        targets: Sequence[Path],
        *,
        overwrite: bool = False,
        nbytes: int = 0,
        adopted: Mapping[Path, StagedFile] = MappingProxyType({}),
        related: Iterable[Path] = (),
    ) -> None:
        self._overwrite = overwrite
        self._made: list[tuple[StagedFile, Path]] = []  # names to take back when it fails
        self.files: list[StagedFile] = []
        _sweep([*related, *targets])
        for target in targets:
            _check_target(target, overwrite=overwrite)
        _check_space(targets[0], nbytes)
        try:
            for target in targets:
                self.files.append(adopted.get(target) or StagedFile(target))
        except BaseException:
            self.abort()
            raise

    def commit(
        self,
        *,
        interim: Callable[[int], Interim] | None = None,
        obsolete: Callable[[], Iterable[Path]] = tuple,
    ) -> list[Path]:
        """Publish; the paths of the new files, which are durable now.

        `interim(1)`, `interim(2)`, ... offer places until one is free.  `obsolete` is asked, when
        it is this publication's turn, which files of the checkpoint there will be left over.
        """
        if not self.files:
            return []
        marker = self.files[-1].target
        try:
            with _writing(marker):
                for staged in self.files:
                    staged.seal()
                with _turn(marker.parent) as folder:
                    paths = self._publish(folder, interim, obsolete)
            for staged in self.files:
                staged.kept = False
            return paths
        finally:
            self.abort()

    def abort(self) -> None:
        """Leave nothing behind; harmless after `commit`."""
        for staged, path in reversed(self._made):
            if staged.is_at(path):
                _remove(path)
        for staged in self.files:
            staged.discard()
        self._made, self.files = [], []

    def _publish(
        self,
        folder: int,
        interim: Callable[[int], Interim] | None,
        obsolete: Callable[[], Iterable[Path]],
    ) -> list[Path]:
        *data, marker = self.files
        paths = [staged.target for staged in data]
        left = list(obsolete()) if self._overwrite else []
        taken = any(os.path.lexists(path) for path in paths)
        if interim and self._overwrite and taken:
            paths = self._detour(folder, interim)
        else:
            self._place(folder, data)
            self._place(folder, [marker])
        self._made = []
        for path in left:
            if path not in {*paths, marker.target}:
                _remove(path)
        return [*paths, marker.target]

    def _place(self, folder: int, files: Sequence[StagedFile]) -> None:
        """Give files the names of their targets, for good."""
        for staged in files:
            if not self._overwrite:
                self._made.append((staged, staged.target))
                staged.put(staged.target)
            elif staged is self.files[-1]:
                self._replace_marker(staged)
            else:
                if not os.path.lexists(staged.target):
                    self._made.append((staged, staged.target))
                staged.replace(staged.target)
        if files:
            _sync_names(folder)

    def _detour(self, folder: int, offer: Callable[[int], Interim]) -> list[Path]:
        """Steps 1 to 5; the paths of the data."""
        *data, marker = self.files
        used: list[Path] = []  # by the old checkpoint, or by a run that died: of no use soon
        for attempt in itertools.count(1):
            interim = offer(attempt)
            if not any(os.path.lexists(path) for path in interim.data):
                break
            used += interim.data
        staged = StagedFile(marker.target)
        self.files.append(staged)
        staged.write(0, interim.marker)
        staged.seal()
        links = True
        for new, path in zip(data, interim.data, strict=True):
            self._made.append((new, path))
            links &= new.put(path)
        _sync_names(folder)
        self._replace_marker(staged)
        _sync_names(folder)
        paths = [new.target for new in data]
        if links:
            for new in data:
                new.replace(new.target)
            _sync_names(folder)
            marker.replace(marker.target)
            _sync_names(folder)
            used += interim.data
        else:
            used, paths = used + paths, list(interim.data)
        for path in used:
            _remove(path)
        return paths

    def _replace_marker(self, staged: StagedFile) -> None:
        """From here on the data that was put in place is in use, whatever happens."""
        made, self._made = self._made, []  # before the rename: a signal may come right after it
        try:
            staged.replace(staged.target)
        except OSError:
            self._made = made
            raise


def write_error(error: OSError, path: Path, what: str = "writing failed") -> TargetError:
    """The typed error for an operating system's refusal to write."""
    kind = NoSpaceError if error.errno in {errno.ENOSPC, errno.EDQUOT} else TargetError
    return kind(f"{what}: {error.strerror}", path=path)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise write_error(error, path) from error


@contextlib.contextmanager
def _turn(folder: Path) -> Iterator[int]:
    """A descriptor of the folder, locked: publications in one folder take turns."""
    fd = system.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while not system.lock(fd):
            if time.monotonic() > deadline:
                raise TargetError("another process does not stop publishing here", path=folder)
            time.sleep(0.01)
        yield fd
    finally:
        system.close(fd)


def _sync_names(folder: int) -> None:
    try:
        system.sync(folder)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot sync a folder
            raise


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        system.unlink(path)


def _exists(path: Path) -> TargetExistsError:
    return TargetExistsError(
        "the target exists", path=path, hint="choose another name, or --overwrite"
    )


def _check_target(path: Path, *, overwrite: bool) -> None:
    if path.is_dir():
        raise TargetExistsError("the target is a folder", path=path)
    if not overwrite and os.path.lexists(path):
        raise _exists(path)


def _check_space(target: Path, nbytes: int) -> None:
    """Raise `NoSpaceError` rather than find out after an hour of writing."""
    try:
        free = system.free(target.parent)
    except OSError as error:
        raise write_error(error, target, "cannot be created") from error
    if free is not None and nbytes > free:
        raise NoSpaceError(
            "there is not enough space on the disk",
            path=target,
            expected=f"{nbytes} bytes",
            found=f"{free} bytes",
        )


def _stem(target: Path) -> str:
    """What the names of a target's temporary files start with; 200 of the 255 bytes allowed."""
    return f".{os.fsdecode(os.fsencode(target.name)[:200])}."


def temporaries(target: Path) -> list[Path]:
    """The temporary files of a target, of the living and the dead."""
    pattern = re.compile(re.escape(_stem(target)) + r"[0-9a-f]{16}\.tmp")
    try:
        names = os.listdir(target.parent)  # noqa: PTH208 - names are all that is needed
    except OSError:
        return []
    return [target.with_name(name) for name in sorted(names) if pattern.fullmatch(name)]


def _sweep(targets: Sequence[Path]) -> None:
    """Remove what runs that died have left for these targets."""
    for target in targets:
        for path in temporaries(target):
            with contextlib.suppress(OSError):
                fd = _claim(path)
                try:
                    take_back(target, path, targets[-1])
                    system.unlink(path)
                finally:
                    system.close(fd)


def take_back(target: Path, path: Path, marker: Path) -> None:
    """Remove data that were linked to their place, but got no marker: the run died in between."""
    if not os.path.lexists(marker) and target.exists() and path.samefile(target):
        system.unlink(target)


def _claim(path: Path) -> int:
    """A locked descriptor of what a dead run left; `OSError` if it may be alive, or is gone."""
    fd = system.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        _check_dead(path, fd)
    except BaseException:
        system.close(fd)
        raise
    return fd


def _check_dead(path: Path, fd: int) -> None:
    locked = [system.lock(fd)]
    again = system.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        locked.append(system.lock(again))
    finally:
        system.close(again)
    # A second lock that succeeds, too, shows that this file system's locks mean nothing.
    if locked != [True, False]:
        raise BlockingIOError(errno.EWOULDBLOCK, "in use")
    if not os.path.samestat(os.fstat(fd), path.lstat()):
        raise FileNotFoundError(errno.ENOENT, "gone")
