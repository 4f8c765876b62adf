"""Protocol buffers on the wire: messages walked without their schemas, and fields written.

https://protobuf.dev/programming-guides/encoding/

    message   field, field, …                     unknown fields are skipped
    field     tag, value                          tag = varint of number << 3 | wire type
    wire 0    varint: seven bits a byte, low ones first, the high bit says "more follows"
    wire 1    eight bytes, little-endian
    wire 2    varint length, then that many bytes: a string, a message, or packed numbers
    wire 5    four bytes, little-endian

Negative numbers of type int32 and int64 are varints of ten bytes: their 64-bit two's complement.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from converter.errors import CorruptFileError

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
_FIXED = {FIXED64: 8, FIXED32: 4}  # bytes
MORE, BITS = 0x80, 0x7F  # of a byte of a varint: whether another follows, and its part
LONGEST = 10  # bytes of a varint of 64 bits
_PIECE = 1 << 20  # bytes of packed varints that are decoded at a time


class Buffer(Protocol):
    """Bytes in memory, or a window on those of a file."""

    def __len__(self) -> int:
        """Number of bytes."""

    @overload
    def __getitem__(self, key: int, /) -> int: ...
    @overload
    def __getitem__(self, key: slice, /) -> bytes: ...


def read_varint(data: Buffer, at: int, end: int) -> tuple[int, int]:
    """The unsigned number at `at`, and where it ends; `CorruptFileError` past 64 bits or `end`."""
    if at < end:
        value = data[at]
        if value < MORE:  # most are this short
            return value, at + 1
        value &= BITS
        for count in range(1, min(LONGEST, end - at)):
            byte = data[at + count]
            value |= (byte & BITS) << (7 * count)
            if byte < MORE:
                if value >> 64:
                    break
                return value, at + count + 1
    raise CorruptFileError("a variable-length number is cut off, or longer than 64 bits")


def signed(value: int) -> int:
    """The int64 that an unsigned varint stands for."""
    return value - (1 << 64) if value >> 63 else value


def fields(data: Buffer, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """The fields of the message in [start, end): tag, number, and [start, stop) of the value.

    The number is that of the value, or its size when the wire type is `LENGTH`. Comparing whole
    tags makes a field of an unexpected wire type an unknown one, as it is for other readers.
    """
    at = start
    while at < end:
        tag, at = read_varint(data, at, end)
        wire = tag & 7
        first, value = at, 0
        if wire == VARINT:
            value, stop = read_varint(data, at, end)
        elif wire == LENGTH:
            value, first = read_varint(data, at, end)
            stop = first + value
        elif wire in _FIXED:
            stop = at + _FIXED[wire]
            value = int.from_bytes(data[at:stop], "little")
        else:
            raise CorruptFileError("a message has a field of an unknown wire type", found=wire)
        if stop > end or tag < 1 << 3:
            raise CorruptFileError("a message is not one: a field does not fit into it")
        yield tag, value, first, stop
        at = stop


def varint(value: int) -> bytes:
    """The bytes of a number; a negative one as its 64-bit two's complement."""
    value &= (1 << 64) - 1
    encoded = bytearray()
    while value > BITS:
        encoded.append(value & BITS | MORE)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def number(field: int, value: int) -> bytes:
    """A field of wire type `VARINT`; nothing for zero, which is what absence means."""
    return varint(field << 3 | VARINT) + varint(value) if value else b""


def prefix(field: int, nbytes: int) -> bytes:
    """What comes before the `nbytes` bytes of a field of wire type `LENGTH`."""
    return varint(field << 3 | LENGTH) + varint(nbytes)


def message(field: int, content: bytes) -> bytes:
    """A field of wire type `LENGTH`."""
    return prefix(field, len(content)) + content


def decode_varints(data: bytes, count: int) -> NDArray[np.uint64]:
    """Exactly `count` packed varints, without a Python loop over them.

    Raises `CorruptFileError` when there are more, fewer, or one beyond 64 bits.
    """
    values = np.empty(count, np.uint64)
    source = np.frombuffer(data, np.uint8)
    done = at = 0
    while at < source.size:
        piece = source[at : at + _PIECE]
        last = np.flatnonzero(piece < MORE)
        if not last.size or done + last.size > count:
            break
        values[done : done + last.size] = _decode(piece, last)
        done, at = done + last.size, at + int(last[-1]) + 1
    if done != count or at != source.size:
        raise CorruptFileError(
            "a list of variable-length numbers has the wrong count",
            expected=f"{count} numbers",
            found=f"{done} numbers in {at} of {source.size} bytes",
        )
    return values


def _decode(piece: NDArray[np.uint8], last: NDArray[Any]) -> NDArray[np.uint64]:
    """The numbers of a piece, given the position of the last byte of each."""
    first = np.empty_like(last)
    first[0] = 0
    first[1:] = last[:-1] + 1
    lengths = last - first + 1
    longest = int(lengths.max())
    if longest > LONGEST or (longest == LONGEST and (piece[last[lengths == LONGEST]] > 1).any()):
        raise CorruptFileError("a variable-length number is longer than 64 bits")
    values: NDArray[np.uint64] = (piece[first] & BITS).astype(np.uint64)
    for position in range(1, longest):
        (longer,) = np.nonzero(lengths > position)
        byte = piece[first[longer] + position] & BITS
        values[longer] |= byte.astype(np.uint64) << np.uint64(7 * position)
    return values


def encode_varints(values: NDArray[np.uint64]) -> bytes:
    """Numbers as packed varints, without a Python loop over them."""
    lengths = np.ones(values.shape, np.int64)
    for position in range(1, LONGEST):
        lengths += values >> np.uint64(7 * position) != 0
    ends = np.cumsum(lengths)
    encoded = np.empty(int(ends[-1]) if ends.size else 0, np.uint8)
    for position in range(int(lengths.max(initial=0))):
        (longer,) = np.nonzero(lengths > position)
        byte = (values[longer] >> np.uint64(7 * position)).astype(np.uint8) & np.uint8(BITS)
        more = (lengths[longer] > position + 1).astype(np.uint8) << np.uint8(7)
        encoded[ends[longer] - lengths[longer] + position] = byte | more
    return encoded.tobytes()
