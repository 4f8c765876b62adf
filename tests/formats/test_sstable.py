"""Tables, varints and protocol buffers, against bytes that were made by hand."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.errors import ChecksumError, CorruptFileError, LimitError
from converter.files import File
from converter.formats import _sstable
from converter.formats._protobuf import (
    FIXED32,
    FIXED64,
    LENGTH,
    VARINT,
    decode_varints,
    encode_varints,
    fields,
    message,
    number,
    read_varint,
    signed,
    varint,
)
from converter.formats._sstable import BLOCK_SIZE, Table, mask, table_bytes, unmask
from tests.formats import tf_bytes

U64 = st.integers(0, 2**64 - 1)
VARINTS = {
    0: "00",
    1: "01",
    127: "7f",
    128: "8001",
    300: "ac02",
    2**32 - 1: "ffffffff0f",
    2**63: "80808080808080808001",
    2**64 - 1: "ffffffffffffffffff01",
}


@pytest.fixture
def table(tmp_path):
    """A function from the bytes of a table to the open table."""
    opened = []

    def make(data: bytes) -> Table:
        path = tmp_path / f"{len(opened)}.table"
        path.write_bytes(data)
        opened.append(File(path))
        return Table(opened[-1])

    yield make
    for file in opened:
        file.close()


# ── varints and messages ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("value", "encoded"), VARINTS.items())
def test_varints(value, encoded):
    data = bytes.fromhex(encoded)
    assert varint(value) == data
    assert read_varint(b"\xff" + data, 1, len(data) + 1) == (value, len(data) + 1)
    assert decode_varints(data, 1).tolist() == [value]
    assert encode_varints(np.array([value], np.uint64)) == data


def test_a_negative_number_is_ten_bytes():
    assert varint(-7) == bytes.fromhex("f9ffffffffffffffff01")
    assert signed(read_varint(varint(-7), 0, 10)[0]) == -7


@pytest.mark.parametrize("data", ["", "80", "ff" * 9, "ff" * 10 + "01", "80" * 9 + "02"])
def test_a_varint_that_does_not_end(data):
    with pytest.raises(CorruptFileError, match="64 bits"):
        read_varint(bytes.fromhex(data), 0, len(data) // 2)
    with pytest.raises(CorruptFileError, match="number"):
        decode_varints(bytes.fromhex(data), 1)


@given(st.lists(U64, max_size=50))
def test_packed_varints_round_trip(values):
    encoded = encode_varints(np.array(values, np.uint64))
    assert encoded == b"".join(map(tf_bytes.varint, values))
    assert decode_varints(encoded, len(values)).tolist() == values
    with pytest.raises(CorruptFileError, match="count"):
        decode_varints(encoded, len(values) + 1)


def test_packed_varints_across_pieces(monkeypatch):
    values = np.arange(2**15 - 500, 2**15 + 500, dtype=np.uint64) ** np.uint64(3)
    encoded = encode_varints(values)
    monkeypatch.setattr("converter.formats._protobuf._PIECE", 13)
    assert np.array_equal(decode_varints(encoded, values.size), values)


def test_fields_of_every_wire_type():
    data = bytes.fromhex("0896013203616263" + "1d01020304" + "210102030405060708")
    assert list(fields(data, 0, len(data))) == [
        (1 << 3 | VARINT, 150, 1, 3),
        (6 << 3 | LENGTH, 3, 5, 8),
        (3 << 3 | FIXED32, 0x04030201, 9, 13),
        (4 << 3 | FIXED64, 0x0807060504030201, 14, 22),
    ]
    assert number(1, 150) + message(6, b"abc") == data[:8]
    assert number(1, 0) == b""


@pytest.mark.parametrize(
    "data", ["0a05ff", "1d0102", "0b", "0001", "0aff", "0affffffffffffffffff01"]
)
def test_a_message_that_is_none(data):
    with pytest.raises(CorruptFileError, match=r"message|number"):
        list(fields(bytes.fromhex(data), 0, len(data) // 2))


def test_masks():
    assert mask(0) == 0xA282EAD8
    assert all(unmask(mask(crc)) == crc for crc in (0, 1, 0x8000, 0xDEADBEEF, 0xFFFFFFFF))


# ── tables ───────────────────────────────────────────────────────────────────────────────────────


def test_an_empty_table_to_the_byte(table):
    empty = "0000000001000000" + "00" + "c0f2a1b0"
    footer = ("0008" + "0d08").ljust(80, "0") + "57fb808b247547db"
    data = bytes.fromhex(empty + empty + footer)
    assert table_bytes([]) == data
    assert list(table(data).entries()) == []


def test_prefixes_are_shared_between_restarts(table):
    keys = [f"layer/{n:02}".encode() for n in range(20)]
    data = table_bytes((key, b"v") for key in keys)
    assert data[:22] == b"\0\x08\x01layer/00v" + b"\x07\x01\x011v" + b"\x07\x01\x012v"
    assert data.index(b"\0\x08\x01layer/16v") == 12 + 14 * 5 + 6
    assert list(table(data).entries()) == [(key, b"v") for key in keys]


@given(
    st.dictionaries(st.binary(max_size=6), st.integers(0, 40).map(lambda n: b"v" * n), max_size=40)
)
def test_tables_round_trip(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("table") / "table"
    path.write_bytes(table_bytes(sorted(content.items())))
    file = File(path)
    try:
        found = Table(file)
        assert dict(found.entries()) == content
        for key, value in content.items():
            block, start, stop = found.find(key)
            assert block.data[start:stop] == value
        assert found.find(b"absent!") is None
    finally:
        file.close()


@pytest.mark.parametrize("snappy", [False, True])
@pytest.mark.parametrize("per_block", [1, 3, 100])
def test_tables_of_others(table, per_block, snappy):
    content = {f"key {n:03}".encode(): bytes([n]) * n for n in range(100)}
    made = table(tf_bytes.table(content.items(), per_block=per_block, snappy=snappy))
    assert dict(made.entries()) == content
    assert [made.find(key) is not None for key in (*content, b"", b"key", b"zzz")] == (
        [True] * 100 + [False] * 3
    )


def test_large_blocks_stay_in_the_file(table, monkeypatch):
    monkeypatch.setattr(_sstable, "WHOLE", 100)
    content = {b"a": b"1" * 5000, b"b": b"2" * 60, b"c": b"3" * 200}
    made = table(tf_bytes.table(content.items(), per_block=2))
    for key, value in content.items():
        block, start, stop = made.find(key)
        assert isinstance(block.data, _sstable.Window)
        assert block.data[start:stop] == value
        assert block.data[stop - 1] == value[0]
        assert len(block.data) > len(value)


def test_a_block_ends_where_tensorflow_ends_it(table):
    values = {b"a": BLOCK_SIZE, b"b": 10, b"c": 2 * BLOCK_SIZE, b"d": 10, b"e": BLOCK_SIZE - 99}
    data = table_bytes((key, b"v" * nbytes) for key, nbytes in values.items())
    assert [handle.size > BLOCK_SIZE for handle in table(data).handles] == [
        True,
        False,
        True,
        False,
    ]
    assert table(data).keys == [b"a", b"b", b"c", b"f"]


def test_index_keys_are_the_shortest(table):
    keys = [b"abcdef", b"abzz", b"b\xff", b"b\xff\xff", b"b\xff\xff\x01"]
    made = table(table_bytes((key, b"v" * BLOCK_SIZE) for key in keys))
    assert made.keys == [b"abd", b"abzz", b"b\xff", b"b\xff\xff", b"c"]
    assert all(low < high for low, high in pairwise(made.keys))
    assert table(table_bytes([(b"\xff\xff", b"")])).keys == [b"\xff\xff"]


# ── damage ───────────────────────────────────────────────────────────────────────────────────────

GOOD = tf_bytes.table([(b"key", b"value")])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "footer is missing"),
        (GOOD[:47], "footer is missing"),
        (GOOD[:-1], "footer is missing"),
        (GOOD[:-8] + b"00000000", "footer is missing"),
        (GOOD[:-48] + b"\xff" * 40 + GOOD[-8:], "64 bits"),
        (
            GOOD[:-48] + (b"\0" * 2 + b"\xff\x7f\x01").ljust(40, b"\0") + GOOD[-8:],
            "outside the file",
        ),
        (GOOD[1:], "outside|checksum"),
    ],
)
def test_a_table_that_cannot_be_opened(table, data, message):
    with pytest.raises(CorruptFileError, match=message):
        table(data)


def test_huge_handles_do_not_wrap(table):
    huge = tf_bytes.varint(2**63) + tf_bytes.varint(2**64 - 1)
    with pytest.raises(CorruptFileError, match="outside the file"):
        table(tf_bytes.finished(b"", tf_bytes.contents([(b"k", huge)])))
    with pytest.raises(CorruptFileError, match="outside the file"):
        table(GOOD[:-48] + huge.ljust(40, b"\0") + GOOD[-8:])


def test_every_flipped_byte_is_noticed(table):
    data = table_bytes([(b"", b"header"), (b"name", b"value" * 20)])
    for at in range(len(data) - 48 + 6):  # behind the handles there are only zeros
        changed = bytearray(data)
        changed[at] ^= 0x10
        with pytest.raises(CorruptFileError, match=r"checksum|footer|outside|64 bits|header|order"):
            list(table(bytes(changed)).entries())


def test_a_wrong_checksum_says_what_and_where(table):
    data = bytearray(GOOD)
    data[8] ^= 1
    with pytest.raises(ChecksumError, match="checksum of a block") as raised:
        list(table(bytes(data)).entries())
    assert raised.value.offset == 0
    assert raised.value.expected.startswith("0x")
    assert raised.value.expected != raised.value.found
    assert "damaged" in raised.value.hint


def test_a_large_block_is_verified_by_who_uses_it(table, monkeypatch):
    monkeypatch.setattr(_sstable, "WHOLE", 4)
    data = bytearray(GOOD)
    data[8] ^= 1
    found = table(bytes(data))
    block, *_ = found.find(b"key")
    with pytest.raises(ChecksumError, match="block checksum"):
        block.verify(found.file)


def test_a_key_is_only_missing_from_a_block_that_is_verified(table, monkeypatch):
    monkeypatch.setattr(_sstable, "WHOLE", 4)
    data = bytearray(GOOD)
    data[8] ^= 1
    with pytest.raises(ChecksumError, match="block checksum"):
        table(bytes(data)).find(b"a")


def test_the_checksum_of_a_large_block_can_be_verified_by_the_reader_of_a_part(table, monkeypatch):
    monkeypatch.setattr(_sstable, "WHOLE", 4)
    found = table(GOOD)
    block, start, stop = found.find(b"key")
    assert block.checksum(found.file, start, stop) is None  # what lies around is too much
    monkeypatch.setattr(_sstable, "WHOLE", 1 << 20)
    checksum = block.checksum(found.file, start, stop)
    assert (checksum.offset, checksum.nbytes) == (block.base + start, stop - start)
    checksum.verify(found.file, "")
    with pytest.raises(ChecksumError, match="block checksum"):
        checksum._replace(suffix=checksum.suffix[:-1] + b"?").verify(found.file, "")
    with pytest.raises(ChecksumError, match="block checksum"):
        checksum._replace(initial=checksum.initial ^ 1).verify(found.file, "")


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "shorter than its own"),
        (b"\xff\xff\xff\xff", "shorter than its own"),
        (b"\0\x03\x64key" + b"\0\0\0\0\1\0\0\0", "does not fit"),
        (b"\x01\x03\0key" + b"\0\0\0\0\1\0\0\0", "does not fit"),
        (b"\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\0" + b"\0\0\0\0\1\0\0\0", "does not fit"),
        (b"\0\1\0b" + b"\0\1\0a" + b"\0\0\0\0\1\0\0\0", "not in order"),
        (b"\0\1\0a" + b"\0\1\0a" + b"\0\0\0\0\1\0\0\0", "not in order"),
        (b"\0\x80" + b"\0\0\0\0\1\0\0\0", "64 bits"),
    ],
)
def test_a_sound_checksum_over_nonsense(table, contents, message):
    made = table(tf_bytes.of_blocks([(b"z", contents)]))
    with pytest.raises(CorruptFileError, match=message) as raised:
        list(made.entries())
    assert raised.value.offset == 0
    with pytest.raises(CorruptFileError, match=message):
        made.find(b"key")


def test_keys_rise_across_blocks(table):
    block = tf_bytes.contents([(b"a", b"")])
    with pytest.raises(CorruptFileError, match="not in order"):
        list(table(tf_bytes.of_blocks([(b"a", block), (b"b", block)])).entries())
    with pytest.raises(CorruptFileError, match="not in order"):
        table(tf_bytes.of_blocks([(b"b", block), (b"a", block)]))


@pytest.mark.parametrize(
    ("kind", "stored", "error", "message"),
    [
        (2, b"abc", CorruptFileError, "unknown type"),
        (1, b"", CorruptFileError, "64 bits"),
        (1, b"\x05\x10abc", CorruptFileError, "cannot be decompressed"),
        (1, tf_bytes.varint(1 << 32) + b"abc", CorruptFileError, "more than it can hold"),
        (1, tf_bytes.varint(65 << 20) + bytes(4 << 20), LimitError, "too large"),
    ],
)
def test_compressed_blocks_are_bounded(table, kind, stored, error, message):
    index = tf_bytes.contents([(b"z", b"\0" + tf_bytes.varint(len(stored)))])
    made = table(tf_bytes.finished(tf_bytes.sealed(stored, kind), index))
    with pytest.raises(error, match=message):
        list(made.entries())


def test_counts_are_bounded(table, monkeypatch):
    monkeypatch.setattr(_sstable, "MAX_ENTRIES", 9)
    data = tf_bytes.table([(f"{n:02}".encode(), b"") for n in range(10)], per_block=5)
    with pytest.raises(LimitError, match="too many entries"):
        list(table(data).entries())
    with pytest.raises(LimitError, match="too many entries"):
        table(tf_bytes.table([(f"{n:02}".encode(), b"") for n in range(10)], per_block=1))
    with pytest.raises(LimitError, match="key is too long"):
        list(table(tf_bytes.table([(b"k" * (_sstable.MAX_KEY + 1), b"")])).entries())


def test_a_header_is_bounded(table, monkeypatch):
    monkeypatch.setattr(_sstable, "MAX_HEADER", 10)
    with pytest.raises(LimitError, match="header of the checkpoint"):
        table(tf_bytes.table([(b"", b"v" * 11)])).first()
    with pytest.raises(CorruptFileError, match="no header"):
        table(GOOD).first()
