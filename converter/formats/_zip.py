"""Zip archives: a strict directory of members read in place, and a writer that knows its layout.

https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT (sections 4.3 to 4.5)

    ┌ for each member ──────────────────────────────────────────────┐
    │ PK 3 4  flags method crc sizes │ name │ extra (padding) │ data │   local header, 30 bytes + …
    └────────────────────────────────────────────────────────────────┘
    PK 1 2  flags method crc sizes … offset │ name │ extra │ comment     central directory, 46 + …
    PK 6 6  counts, size and offset in 64 bits                           zip64 end record, 56
    PK 6 7  where the zip64 end record is                                zip64 locator, 20
    PK 5 6  counts, size and offset of the central directory             end record, 22 + comment

Two readers that disagree about an archive are how scanners are fooled, so wherever readers could
differ (a name or flag that differs between the two headers, duplicates, overlaps, something after
the end) the archive is refused.
"""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise, repeat
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from converter.errors import CorruptFileError, LimitError, TargetError, UnsupportedError
from converter.files import Checksum, File, StagedFile, crc32

MAX_MEMBERS = 300_000  # a checkpoint may have a hundred thousand tensors
MAX_DIRECTORY = 100_000_000  # bytes, as safetensors bounds its header
MAX_INFLATED = 64 << 20  # bytes of one compressed member
MAX_RATIO = 1000  # of a compressed member's size to its stored size
ALIGNMENT = 64  # bytes; what a reader that maps the file expects of tensor data

STORED, DEFLATED = 0, 8
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_END = struct.Struct("<4s4H2IH")
_FIELD = struct.Struct("<2H")  # the head of an extra field
_ENTRY = np.dtype(  # what is read of `_CENTRAL` in bulk …
    {
        "names": ["flags", "method", "facts", "name", "extra", "comment", "disk", "offset"],
        "formats": ["<u2", "<u2", "(3,)<u4", "<u2", "<u2", "<u2", "<u2", "<u4"],
        "offsets": [8, 10, 16, 28, 30, 32, 34, 42],
        "itemsize": _CENTRAL.size,
    }
)
_HEADER = np.dtype(  # … and of `_LOCAL`; facts: crc, stored and inflated size
    {
        "names": ["signature", "flags", "method", "facts", "name", "extra"],
        "formats": ["<u4", "<u2", "<u2", "(3,)<u4", "<u2", "<u2"],
        "offsets": [0, 6, 8, 14, 26, 28],
        "itemsize": _LOCAL.size,
    }
)
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF  # "see the zip64 record"
_ENCRYPTED, _DESCRIPTOR, _UTF8 = 0x2041, 0x0008, 0x0800
_ZIP64, _PADDING = 0x0001, 0x4246  # ids of extra fields; the second reads "FB", as torch pads
_AHEAD = 64 << 10  # bytes of one read of local headers, at most …
_FEW = 64  # … when it gets so many of them
_TAIL = 1000  # bytes at the end in which the end record mostly is
_DATE = 0x0021  # 1980-01-01: the same input must give the same bytes


class Member(NamedTuple):
    """A file in the archive: its data lie in [offset, offset + stored) of the archive's file."""

    name: str
    method: int
    offset: int
    stored: int
    size: int
    crc: int  # of the uncompressed data; 0 may also mean that it was not computed
    header: int  # offset of the local header

    @property
    def checksum(self) -> Checksum | None:
        """What proves the data, where they are not compressed and a checksum is known."""
        if self.method != STORED or not self.crc:
            return None
        return Checksum("zip crc32", crc32, self.crc, self.offset, self.stored)


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


def first_name(head: bytes) -> bytes:
    """The name of the first member of the zip that begins so, which often tells what it is for.

    b"" where this is not the beginning of a zip with members.
    """
    if not head.startswith(b"PK\x03\x04"):
        return b""
    return head[_LOCAL.size :][: int.from_bytes(head[26:28], "little")]


class _End(NamedTuple):
    """What the end records say; `limit` is where the central directory has to end."""

    members: int
    nbytes: int
    offset: int
    limit: int


def members(file: File, start: int = 0, stop: int | None = None) -> dict[str, Member]:
    """List the members of the archive in [start, stop) of a file, in the order of its directory.

    Raises `CorruptFileError`, `UnsupportedError` (encrypted, several disks) or `LimitError`.
    """
    stop = file.size if stop is None else stop
    end = _end(file, start, stop)
    if end.members > MAX_MEMBERS or end.nbytes > MAX_DIRECTORY:
        raise LimitError(
            "too large a zip directory",
            path=file.path,
            expected=f"at most {MAX_MEMBERS} members in {MAX_DIRECTORY} bytes",
            found=f"{end.members} members in {end.nbytes} bytes",
        )
    if start + end.offset + end.nbytes != end.limit:
        raise _corrupt(
            file,
            end.limit,
            "the zip directory is not where its end record says",
            hint="bytes were cut out or put in; a broken download is the usual cause",
        )
    directory = file.read(start + end.offset, end.nbytes)
    plain = _plain_members(file, start, end, directory)
    if plain is not None:
        return plain
    entries = _directory(file, start, end, directory)
    names = [entry.name for entry in entries]
    if len(set(names)) < len(names):
        ((name, _),) = Counter(names).most_common(1)
        raise _corrupt(file, end.limit, f"two zip members are named {name.decode('cp437')!r}")
    found = {}
    in_file = sorted(entries, key=_header)
    for entry, head, at in _local_headers(file, in_file, end.limit):
        member = _member(file, entry, head, at)
        found[member.name] = member
    _check_apart(file, found.values(), start + end.offset)
    return found if in_file == entries else {name: found[name] for name in map(_name, entries)}


def read(file: File, member: Member, limit: int) -> bytes:
    """All of a small member, inflated and checked.  Raises `LimitError` above `limit` bytes."""
    limit = limit if member.method == STORED else min(limit, MAX_INFLATED)
    if member.size > limit or member.size > MAX_RATIO * max(member.stored, 1):
        raise LimitError(
            f"the zip member {member.name!r} is too large to be read at once",
            path=file.path,
            offset=member.offset,
            expected=f"at most {limit} bytes, and {MAX_RATIO} times its stored size",
            found=f"{member.size} bytes, {member.stored} of them stored",
        )
    data = file.read(member.offset, member.stored)
    if member.method == DEFLATED:
        data = _inflate(file, member, data)
    if member.crc and crc32(data) != member.crc:
        raise _corrupt(file, member.offset, f"the checksum of {member.name!r} does not match")
    return data


def _inflate(file: File, member: Member, data: bytes) -> bytes:
    """One byte more than announced is enough to know that the announcement was wrong."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        out = inflater.decompress(data, member.size + 1)
    except zlib.error as error:
        raise _corrupt(file, member.offset, f"{member.name!r} does not inflate: {error}") from error
    if len(out) != member.size or not inflater.eof or inflater.unused_data:
        raise _corrupt(file, member.offset, f"{member.name!r} inflates to another size")
    return out


def _end(file: File, start: int, stop: int) -> _End:
    """Find the end record: the last one, which has to end exactly where the archive does."""
    for comment in (_TAIL, _FULL16):  # there hardly ever is one
        reach = max(start, stop - _END.size - comment)
        tail = file.read(reach, stop - reach)
        at = tail.rfind(b"PK\x05\x06")
        if at >= 0:
            break
    if at < 0 or len(tail) - at < _END.size:
        raise CorruptFileError(
            "the end of the zip archive is missing",
            path=file.path,
            offset=stop,
            expected="a zip archive, which ends in a list of its members",
            found=f"{stop - start} bytes without one",
            hint="the file was cut short",
        )
    _, disk, disk_start, here, count, nbytes, offset, comment = _END.unpack_from(tail, at)
    if at + _END.size + comment != len(tail):
        raise _corrupt(file, reach + at, "there are bytes after the end of the zip archive")
    if (disk, disk_start, here) != (0, 0, count):
        raise UnsupportedError("a zip archive in several pieces", path=file.path)
    plain = _End(count, nbytes, offset, reach + at)
    return _end64(file, start, plain) or plain


def _end64(file: File, start: int, plain: _End) -> _End | None:
    """Find the zip64 end record, if there is one; the plain one must agree with it."""
    locator = plain.limit - _LOCATOR.size
    if locator < start or file.read(locator, 4) != b"PK\x06\x07":
        return None
    _, disk, offset, disks = _LOCATOR.unpack(file.read(locator, _LOCATOR.size))
    limit = start + offset
    if limit + _END64.size > locator or file.read(limit, 4) != b"PK\x06\x06":
        raise _corrupt(file, locator, "the zip64 end record is not where its locator says")
    _, nbytes, _, _, *rest = _END64.unpack(file.read(limit, _END64.size))
    number, disk_start, here, count, directory, directory_offset = rest
    if limit + 12 + nbytes != locator:
        raise _corrupt(file, limit, "the zip64 end record has a wrong size")
    if (disk, number, disk_start, here) != (0, 0, 0, count) or disks > 1:
        raise UnsupportedError("a zip archive in several pieces", path=file.path)
    wide = _End(count, directory, directory_offset, limit)
    for low, high, full in zip(plain, wide, (_FULL16, _FULL32, _FULL32), strict=False):
        if low not in (high, full):
            raise _corrupt(file, plain.limit, "the two end records of the zip disagree")
    return wide


def _plain_members(file: File, start: int, end: _End, directory: bytes) -> dict[str, Member] | None:
    """The members of a plain archive, all at once; None where anything is unusual or wrong.

    In a plain one the directory is in the order of the file, sizes and offsets have 32 bits and
    names are ASCII.  What is wrong with another, the functions below say, entry by entry.
    """
    listed = _plain_entries(directory, end.members)
    if listed is None:
        return None
    entries, names = listed
    header = start + entries["offset"].astype(np.int64)
    data = header + _LOCAL.size + entries["name"]  # where they start, but for the extra fields
    following = np.append(header[1:], start + end.offset)
    crc, stored, size = entries["facts"].T
    if (data + stored > following).any():
        return None
    heads = _plain_headers(file, header, data, names)
    if heads is None:
        return None
    data += heads["extra"]
    later = (heads["flags"] & _DESCRIPTOR != 0) & ~heads["facts"].any(1)
    right = (later | (heads["facts"] == entries["facts"]).all(1)) & (data + stored <= following)
    for part in ("flags", "method", "name"):
        right &= heads[part] == entries[part]
    if not right.all() or (heads["signature"] != int.from_bytes(b"PK\x03\x04", "little")).any():
        return None
    columns = (part.tolist() for part in (entries["method"], data, stored, size, crc, header))
    rows = zip(names, *columns, strict=True)
    found = dict(zip(names, map(tuple.__new__, repeat(Member), rows), strict=True))
    return found if len(found) == len(names) else None


def _plain_entries(directory: bytes, count: int) -> tuple[NDArray[Any], list[str]] | None:
    """The entries of a plain directory, and their names; None where any is not plain."""
    pieces = directory.split(b"PK\x01\x02")
    sizes = np.fromiter(map(len, pieces[1:]), np.int64) + 4
    if not 0 < len(sizes) == count or pieces[0] or sizes.min() < _CENTRAL.size:
        return None
    at = np.cumsum(sizes) - sizes
    entries = _gathered(directory, at, _ENTRY)
    flags, method, facts = entries["flags"], entries["method"], entries["facts"]
    stop = at + _CENTRAL.size + entries["name"]
    right = (
        (stop + entries["extra"] + entries["comment"] == at + sizes)
        & (entries["name"] > 0)
        & (entries["disk"] == 0)
        & (entries["offset"] < _FULL32)
        & (facts[:, 1:] < _FULL32).all(1)
        & (flags & _ENCRYPTED == 0)
        & ((method == DEFLATED) | (method == STORED) & (facts[:, 1] == facts[:, 2]))
    )
    if not right.all():
        return None
    text = directory.decode("latin-1")
    starts = (at + _CENTRAL.size).tolist()
    names = [text[start:stop] for start, stop in zip(starts, stop.tolist(), strict=True)]
    together = "".join(names)
    return (entries, names) if together.isascii() and "\0" not in together else None


def _plain_headers(
    file: File, start: NDArray[np.int64], stop: NDArray[np.int64], names: Sequence[str]
) -> NDArray[Any] | None:
    """The local headers that start and, with their names, stop there; None for other names."""
    found = np.empty(len(names), _HEADER)
    near = np.searchsorted(start, start + _AHEAD).tolist()
    first = 0
    while first < len(names):
        last = near[first] if near[first] - first >= _FEW else first + 1
        base = int(start[first])
        data = file.read(base, int(stop[last - 1]) - base)
        at = start[first:last] - base
        found[first:last] = _gathered(data, at, _HEADER)
        names_at = (at + _LOCAL.size).tolist()
        if not all(map(data.decode("latin-1").startswith, names[first:last], names_at)):
            return None
        first = last
    return found


def _gathered(data: bytes, at: NDArray[np.int64], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Structures that lie anywhere in some bytes, as one array."""
    anywhere = np.ndarray(len(data) - dtype.itemsize + 1, dtype, data, strides=(1,))
    return anywhere[at]


def _directory(file: File, start: int, end: _End, data: bytes) -> list[_Central]:
    found = []
    at = 0
    for _ in range(end.members):
        if at + _CENTRAL.size > end.nbytes or not data.startswith(b"PK\x01\x02", at):
            raise _corrupt(file, start + end.offset + at, "the zip directory ends early")
        _, _, _, flags, method, _, _, crc, stored, size, *rest = _CENTRAL.unpack_from(data, at)
        name_size, extra_size, comment_size, disk, _, _, offset = rest
        name_at = at + _CENTRAL.size
        extra_at = name_at + name_size
        at = extra_at + extra_size + comment_size
        if at > end.nbytes:
            raise _corrupt(file, start + end.offset + name_at, "the zip directory ends early")
        if disk:
            raise UnsupportedError("a zip archive in several pieces", path=file.path)
        if _FULL32 in (size, stored, offset):
            extra = data[extra_at : extra_at + extra_size]
            size, stored, offset = _wide(file, extra, (size, stored, offset))
        name = data[name_at:extra_at]
        found.append(_Central(name, flags, method, crc, stored, size, start + offset))
    if at != end.nbytes:
        raise _corrupt(file, start + end.offset + at, "the zip directory has bytes too many")
    return found


def _local_headers(
    file: File, entries: Sequence[_Central], stop: int
) -> Iterator[tuple[_Central, bytes, int]]:
    """Each entry, and where its local header is in which bytes; many in a read, if they are close.

    The bytes may end within the name or the extra field.
    """
    data, base = b"", 0
    for number, entry in enumerate(entries):
        need = _LOCAL.size + len(entry.name) + 2 * ALIGNMENT
        if entry.header + need > base + len(data):
            later = entries[min(number + _FEW, len(entries) - 1)]
            span = later.header - entry.header
            size = need + span if span < _AHEAD else need
            base = entry.header
            data = file.read(base, max(_LOCAL.size, min(size, stop - base)))
        yield entry, data, entry.header - base


def _wide(file: File, extra: bytes, values: tuple[int, ...]) -> tuple[int, ...]:
    """Sizes and offset, those that say so taken from the zip64 extra field, in this order."""
    if _FULL32 not in values:
        return values
    field = b""
    at = 0
    while at + _FIELD.size <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, at)
        if kind == _ZIP64:
            field = extra[at + _FIELD.size : at + _FIELD.size + size]
            break
        at += _FIELD.size + size
    need = values.count(_FULL32)
    if len(field) < 8 * need:
        raise _corrupt(file, None, "a zip64 field is missing")
    numbers = iter(struct.unpack_from(f"<{need}Q", field))
    return tuple(next(numbers) if value == _FULL32 else value for value in values)


class _Central(NamedTuple):
    """An entry of the central directory."""

    name: bytes
    flags: int
    method: int
    crc: int
    stored: int
    size: int
    header: int


def _header(entry: _Central) -> int:
    return entry.header


def _member(file: File, entry: _Central, head: bytes, at: int) -> Member:
    """Check an entry of the directory against the local header that it points to."""
    if not head.startswith(b"PK\x03\x04", at) or at + _LOCAL.size > len(head):
        raise _corrupt(file, entry.header, "the zip directory points at something else")
    local = _LOCAL.unpack_from(head, at)
    _, _, flags, method, _, _, crc, stored, size, name_size, extra_size = local
    at += _LOCAL.size
    if at + name_size + extra_size > len(head):
        at, head = 0, file.read(entry.header + _LOCAL.size, name_size + extra_size)
    known = entry.name
    if name_size != len(known) or not head.startswith(known, at) or method != entry.method:
        raise _corrupt(file, entry.header, "a zip member has two names, or two methods")
    if _FULL32 in (stored, size):
        extra = head[at + name_size : at + name_size + extra_size]
        size, stored = _wide(file, extra, (size, stored))
    later = bool(flags & _DESCRIPTOR)
    if (crc, stored, size) != (0, 0, 0) or not later:
        _check_facts(file, entry, (crc, stored, size), later=later)
    _check_method(file, entry, flags)
    offset = entry.header + _LOCAL.size + name_size + extra_size
    name = _name(entry)
    if not name or "\0" in name:
        raise _corrupt(file, entry.header, "the name of a zip member is empty or has a NUL")
    return Member(name, method, offset, entry.stored, entry.size, entry.crc, entry.header)


def _check_facts(file: File, entry: _Central, facts: Sequence[int], *, later: bool) -> None:
    """Crc and sizes may be 0 in the local header when they follow the data."""
    if facts == entry[3:6]:
        return
    for here, there in zip(facts, entry[3:6], strict=True):
        if here != there and not (later and here == 0):
            raise _corrupt(file, entry.header, "the two headers of a zip member disagree")


def _check_method(file: File, entry: _Central, flags: int) -> None:
    if entry.method == STORED and entry.stored != entry.size:
        raise _corrupt(file, entry.header, "an uncompressed zip member has two sizes")
    problem = ""
    if (entry.flags | flags) & _ENCRYPTED:
        problem = "is marked as encrypted"
    elif entry.method not in (STORED, DEFLATED):
        problem = f"uses compression method {entry.method}"
    if problem:
        raise UnsupportedError(f"a zip member {problem}", path=file.path, offset=entry.header)


def _name(entry: _Central) -> str:
    if entry.name.isascii():  # as nearly all are, and either decoder would say the same
        return entry.name.decode("ascii")
    try:
        return entry.name.decode("utf-8" if entry.flags & _UTF8 else "cp437")
    except UnicodeDecodeError as error:
        raise CorruptFileError(
            "the name of a zip member is not UTF-8", offset=entry.header
        ) from error


def _check_apart(file: File, found: Iterable[Member], directory: int) -> None:
    """No two members may share a byte, nor reach into the directory."""
    ranges = [(member.header, member.offset + member.stored) for member in found]
    for (_, stop), (start, _) in pairwise([*sorted(ranges), (directory, directory)]):
        if stop > start:
            raise _corrupt(file, start, "zip members overlap")


def _corrupt(file: File, offset: int | None, message: str, *, hint: str = "") -> CorruptFileError:
    return CorruptFileError(message, path=file.path, offset=offset, hint=hint)


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


class _Slot(NamedTuple):
    """Where a member goes: its header, and its data."""

    name: bytes
    header: int
    offset: int
    nbytes: int
    wide: bool


class ZipLayout:
    """Where every member goes, known before the first byte.  Data are aligned to 64 bytes.

    `limit` is the first size or offset that needs zip64; tests make it small.
    """

    def __init__(self, sizes: Mapping[str, int], *, limit: int = _FULL32) -> None:
        self.limit = limit
        self.slots: dict[str, _Slot] = {}
        self.nbytes = 0  # of all members: where the directory starts
        for name, nbytes in sizes.items():
            slot = self._slot(name.encode(), nbytes)
            self.slots[name] = slot
            self.nbytes = slot.offset + nbytes

    def _slot(self, name: bytes, nbytes: int) -> _Slot:
        wide = nbytes >= self.limit
        unpadded = self.nbytes + _LOCAL.size + len(name) + (20 if wide else 0)
        padding = -unpadded % ALIGNMENT
        if 0 < padding < _FIELD.size:
            padding += ALIGNMENT
        return _Slot(name, self.nbytes, unpadded + padding, nbytes, wide)


class ZipWriter:
    """An archive of uncompressed members, written in any order.

    A member's local header is written after its data, when the checksum is known.
    """

    def __init__(self, staged: StagedFile, layout: ZipLayout) -> None:
        self._staged = staged
        self._slots = layout.slots
        self._limit = layout.limit
        self._end = layout.nbytes
        self.crcs: dict[str, int] = {}  # of the members written so far

    def offset(self, name: str) -> int:
        """Where a member's data start."""
        return self._slots[name].offset

    def write(self, name: str, chunks: Iterable[NDArray[Any] | bytes]) -> None:
        """Write a member as consecutive chunks; `TargetError` when their sum is not its size."""
        slot = self._slots[name]
        crc = done = 0
        for chunk in chunks:
            data = raw(chunk)
            crc = crc32(data, crc)
            if done + data.nbytes <= slot.nbytes:
                self._staged.write(slot.offset + done, data)
            done += data.nbytes
        if done != slot.nbytes:
            raise TargetError(
                "a tensor came in another size than announced",
                path=self._staged.target,
                expected=f"{slot.nbytes} bytes",
                found=f"{done} bytes",
            )
        self.placed(name, crc)

    def placed(self, name: str, crc: int) -> None:
        """Take it that a member's data, with this checksum, are at their place."""
        slot = self._slots[name]
        self._staged.write(slot.header, self._local(slot, crc))
        self.crcs[name] = crc

    def finish(self) -> None:
        """Write the central directory; `TargetError` when a member was never written."""
        missing = [name for name in self._slots if name not in self.crcs]
        if missing:
            raise TargetError(
                f"{len(missing)} announced tensors were never written",
                path=self._staged.target,
                found=", ".join(missing[:5]),
            )
        entries = [self._central(slot, self.crcs[name]) for name, slot in self._slots.items()]
        directory = b"".join(entries)
        self._staged.write(self._end, directory + self._ends(len(entries), len(directory)))

    def _local(self, slot: _Slot, crc: int) -> bytes:
        extra = struct.pack("<HHQQ", _ZIP64, 16, slot.nbytes, slot.nbytes) if slot.wide else b""
        padding = slot.offset - slot.header - _LOCAL.size - len(slot.name) - len(extra)
        if padding:
            extra += _FIELD.pack(_PADDING, padding - _FIELD.size)
            extra += b"Z" * (padding - _FIELD.size)
        head = _LOCAL.pack(b"PK\x03\x04", *self._facts(slot, crc), len(slot.name), len(extra))
        return head + slot.name + extra

    def _central(self, slot: _Slot, crc: int) -> bytes:
        wide = [slot.nbytes] * 2 if slot.wide else []
        offset = slot.header
        if offset >= self._limit:
            wide, offset = [*wide, offset], _FULL32
        extra = struct.pack(f"<HH{len(wide)}Q", _ZIP64, 8 * len(wide), *wide) if wide else b""
        facts = self._facts(slot, crc, wide=bool(wide))
        sizes = (len(slot.name), len(extra), 0, 0, 0, 0, offset)
        return _CENTRAL.pack(b"PK\x01\x02", 45, *facts, *sizes) + slot.name + extra

    @staticmethod
    def _facts(slot: _Slot, crc: int, *, wide: bool = False) -> tuple[int, ...]:
        """List what both headers of a member say: version needed to sizes."""
        version = 45 if slot.wide or wide else 20
        nbytes = _FULL32 if slot.wide else slot.nbytes
        flags = 0 if slot.name.isascii() else _UTF8
        return (version, flags, STORED, 0, _DATE, crc, nbytes, nbytes)

    def _ends(self, count: int, nbytes: int) -> bytes:
        offset = self._end
        wide = count >= _FULL16 or max(nbytes, offset) >= self._limit
        plain = (min(count, _FULL16), min(nbytes, _FULL32), min(offset, _FULL32))
        end = _END.pack(b"PK\x05\x06", 0, 0, plain[0], *plain, 0)
        if not wide:
            return end
        records = _END64.pack(
            b"PK\x06\x06", _END64.size - 12, 45, 45, 0, 0, count, count, nbytes, offset
        )
        return records + _LOCATOR.pack(b"PK\x06\x07", 0, offset + nbytes, 1) + end


def raw(chunk: NDArray[Any] | bytes) -> NDArray[np.uint8]:
    """View the bytes of a C-contiguous chunk as an array that every buffer function takes."""
    if isinstance(chunk, bytes):
        return np.frombuffer(chunk, np.uint8)
    return chunk.reshape(-1).view(np.uint8)
