"""Files: exact reads, verified regions, and targets that appear whole or not at all.

Every byte of a checkpoint that is read or written goes through this module.  Reads are `pread`
loops, never memory maps: a file that shrinks or a network that stalls is then an error and not
a SIGBUS, and the page cache is not charged to this process.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

Array = NDArray[Any]
BLOCK = 1 << 18  # bytes; a buffer of this size, reused, stays in the L2 cache


class File:
    """An open file of known size, read at exact positions.

    Raises `NotFoundError` when it cannot be opened, `CorruptFileError` when it ends early.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise NotFoundError(f"cannot be opened: {error.strerror}", path=path) from error
        self._stat = os.fstat(self._fd)
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
        view = memoryview(buffer.reshape(-1).view(np.uint8))
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self._fd, [view[done:]], offset + done)
            except OSError as error:
                raise SourceError(
                    f"reading failed: {error.strerror}", path=self.path, offset=offset + done
                ) from error
            if count == 0:
                raise CorruptFileError(
                    "the file became shorter while it was read",
                    path=self.path,
                    offset=offset + done,
                    expected=f"{self.size} bytes",
                    found=f"{os.fstat(self._fd).st_size} bytes",
                )
            done += count

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
        now = os.fstat(self._fd)
        if (now.st_size, now.st_mtime_ns) != (self._stat.st_size, self._stat.st_mtime_ns):
            raise SourceError("the file changed while it was read", path=self.path)

    def close(self) -> None:
        """Close the descriptor; harmless when repeated."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def crc32c(data: Array | bytes, crc: int = 0) -> int:
    """CRC-32C (Castagnoli) of bytes, continued from `crc`."""
    return int(google_crc32c.extend(crc, data))


def crc32(data: Array | bytes, crc: int = 0) -> int:
    """CRC-32 (zip's polynomial) of bytes, continued from `crc`."""
    return zlib.crc32(data, crc)


@dataclass(frozen=True, slots=True)
class Checksum:
    """A stored checksum and the byte range of the file that it covers."""

    name: str
    function: Callable[[Array | bytes, int], int]
    expected: int
    offset: int
    nbytes: int

    def verify(self, file: File, tensor: str) -> None:
        """Read the range once and compare; raise `ChecksumError` when it differs."""
        buffer = np.empty(min(BLOCK, self.nbytes), np.uint8)
        crc = 0
        for start in range(0, self.nbytes, BLOCK):
            block = buffer[: min(BLOCK, self.nbytes - start)]
            file.read_into(self.offset + start, block)
            crc = self.function(block, crc)
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

    def read(self, start: int, out: Array) -> None:
        """Fill the 1-D array `out` with the elements from `start` on."""
        if self._unverified is not None:
            self._unverified.verify(self.file, self.tensor)
            self._unverified = None
        if start < 0 or start + out.size > self.size:
            raise LimitError(
                "read outside a tensor's elements",
                path=self.file.path,
                tensor=self.tensor,
                expected=f"at most {self.size} elements",
                found=f"{out.size} elements from {start}",
            )
        self.file.read_into(self.offset + start * self.dtype.itemsize, out)


class StagedFile:
    """A file being written under a temporary name, in the folder of its target."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(f".{target.name[:200]}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise TargetError(f"cannot be created: {error.strerror}", path=target) from error
        self.size = 0

    def append(self, data: Array | bytes) -> int:
        """Write at the end; the offset at which the data now starts."""
        start = self.size
        self.write(start, data)
        return start

    def write(self, offset: int, data: Array | bytes) -> None:
        """Write C-contiguous data at `offset`."""
        array = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data
        view = memoryview(array.reshape(-1).view(np.uint8))
        done = 0
        while done < len(view):
            try:
                done += os.pwrite(self._fd, view[done:], offset + done)
            except OSError as error:
                raise write_error(error, self.target) from error
        self.size = max(self.size, offset + done)

    def seal(self) -> None:
        """Bring the bytes to the disk and close.  A failed fsync is final: it is never retried."""
        fd, self._fd = self._fd, -1
        try:
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise write_error(error, self.target) from error

    def discard(self) -> None:
        """Remove the temporary file; harmless when it is gone."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)
        with contextlib.suppress(OSError):
            self.path.unlink()


def write_error(error: OSError, path: Path) -> TargetError:
    """The typed error for an operating system's refusal to write."""
    import errno

    kind = NoSpaceError if error.errno in {errno.ENOSPC, errno.EDQUOT} else TargetError
    return kind(f"writing failed: {error.strerror}", path=path)


class Publication:
    """Files that replace their targets together: all staged, all synced, then renamed in order.

    The last target is the one that makes the others visible (an index); it is renamed last.
    Raises `TargetExistsError` at once when a target exists and `overwrite` is false.
    """

    def __init__(self, targets: Sequence[Path], *, overwrite: bool = False) -> None:
        self._overwrite = overwrite
        for target in targets:
            if not overwrite and target.exists():
                raise TargetExistsError(
                    "the target exists", path=target, hint="choose another name, or --overwrite"
                )
        self.files: list[StagedFile] = []
        try:
            for target in targets:
                self.files.append(StagedFile(target))
        except TargetError:
            self.abort()
            raise

    def commit(self) -> None:
        """Sync every file and its folder, then rename; afterwards the targets are durable."""
        for staged in self.files:
            staged.seal()
        for staged in self.files:
            try:
                staged.path.replace(staged.target)
            except OSError as error:
                raise write_error(error, staged.target) from error
        for folder in {staged.target.parent for staged in self.files}:
            sync_folder(folder)
        self.files = []

    def abort(self) -> None:
        """Leave nothing behind."""
        for staged in self.files:
            staged.discard()
        self.files = []


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        raise write_error(error, folder) from error
    finally:
        os.close(fd)
