"""Sorted string tables by hand, with what TensorFlow's writer does not do: any block, snappy.

Independent of the package's own writer, and as simple as the format allows: keys are whole, and
the index has the last key of each block.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cramjam
import google_crc32c

MAGIC = 0xDB4775248B80FB57


def varint(value: int) -> bytes:
    digits = [value >> shift & 0x7F for shift in range(0, 70, 7)]
    while len(digits) > 1 and digits[-1] == 0:
        digits.pop()
    return bytes([*(digit | 0x80 for digit in digits[:-1]), digits[-1]])


def masked(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) % (1 << 32)).to_bytes(4, "little")


def contents(entries: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A block without its trailer."""
    parts = []
    starts = []
    at = 0
    for key, value in entries:
        starts.append(at)
        parts.append(varint(0) + varint(len(key)) + varint(len(value)) + key + value)
        at += len(parts[-1])
    starts = starts or [0]
    return b"".join([*parts, *(n.to_bytes(4, "little") for n in (*starts, len(starts)))])


def sealed(data: bytes, kind: int = 0) -> bytes:
    """A block with its trailer."""
    return data + bytes([kind]) + masked(data + bytes([kind]))


def table(
    entries: Iterable[tuple[bytes, bytes]], *, per_block: int = 1000, snappy: bool = False
) -> bytes:
    """A table with so many entries a block."""
    entries = sorted(entries)
    blocks = [entries[at : at + per_block] for at in range(0, len(entries), per_block)]
    return of_blocks([(block[-1][0], contents(block)) for block in blocks], snappy=snappy)


def of_blocks(blocks: Sequence[tuple[bytes, bytes]], *, snappy: bool = False) -> bytes:
    """A table of (index key, contents) of blocks."""
    file = b""
    index = []
    for key, data in blocks:
        stored = bytes(cramjam.snappy.compress_raw(data)) if snappy else data
        index.append((key, varint(len(file)) + varint(len(stored))))
        file += sealed(stored, int(snappy))
    return finished(file, contents(index))


def finished(file: bytes, index: bytes) -> bytes:
    """A table of its blocks and the contents of its index."""
    empty = contents([])
    handles = varint(len(file)) + varint(len(empty))
    file += sealed(empty)
    handles += varint(len(file)) + varint(len(index))
    return file + sealed(index) + handles.ljust(40, b"\0") + MAGIC.to_bytes(8, "little")
