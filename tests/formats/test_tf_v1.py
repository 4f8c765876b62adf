"""TensorFlow V1 checkpoints, against TensorFlow, real files and bytes made by hand."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from converter import formats
from converter.errors import (
    ChecksumError,
    CorruptFileError,
    LimitError,
    TargetError,
    UnrepresentableError,
    UnsupportedError,
)
from converter.formats import _sstable, tf_v1
from converter.formats._protobuf import message, number, varint
from converter.formats._tf import NUMBERS, slice_key
from converter.tensors import TensorSpec, dtype_name
from tests.formats import tf_bytes
from tests.formats.conformance import (
    CountingSystem,
    FormatConformance,
    differences,
    make,
    read,
    same,
)
from tests.formats.dtypes import HELD
from tests.formats.tf_oracle import tensorflow

DTYPES = HELD["tf-v1"].dtypes

# What TensorFlow 2.21 wrote for a = int64 -7, b = float32 [[0 1 2] [3 4 5]], e = float32 of
# shape (0, 3) and s = ["x", ""].
FILE = bytes.fromhex(
    "00004e0a4c"
    "0a090a01611200180922000a150a016212081202080212020803180122040a000a00"
    "0a130a01651206120012020803180122040a000a000a0f0a0173120412020802180722020a0012020801"
    "000515006100010012130a016112001a0c520af9ffffffffffffffff01"
    "0109276200010102807f807f12250a016212040a000a00"
    "1a1a2a18000000000000803f0000004000004040000080400000a040"
    "01090d6500010102807f807f120b0a016512040a000a001a00"
    "0107107300010101807f120e0a017312020a001a054201784200"
    "0000000001000000004a614a63"
    "000000000100000000c0f2a1b0"
    "00010301" + "00dc01" + "000000000100000000193d655a"
    "e10108ee010f" + "00" * 34 + "57fb808b247547db"
)


def strings(*values, shape=None):
    array = np.empty(len(values), object)
    array[:] = values
    return array.reshape(len(values) if shape is None else shape)


SMALL = {
    "a": np.array(-7),
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "e": np.zeros((0, 3), np.float32),
    "s": strings(b"x", b""),
}


def write(path, arrays, order=list):
    specs = {name: TensorSpec(array.shape, array.dtype) for name, array in arrays.items()}
    sink = formats.create(path, formats.named("tf-v1"), specs)
    for name in order(list(sink.order)):
        sink.write(name, [arrays[name].reshape(-1)])
    sink.commit()
    return sink


# ── files by hand ────────────────────────────────────────────────────────────────────────────────


def extents(*pairs):
    return b"".join(message(1, number(1, start) + number(2, length)) for start, length in pairs)


def meta(*tensors, version=b"\x08\x01"):
    """A header of (name, dtype, shape, slices); a slice is ((start, length), …), 0: the whole."""
    listed = b""
    for name, dtype, shape, cuts in tensors:
        dims = b"".join(message(2, number(1, n)) for n in shape)
        slices = b"".join(message(4, extents(*cut)) for cut in cuts)
        tensor = message(1, name) + message(2, dims) + number(3, dtype) + slices
        listed += message(1, tensor)
    return message(1, listed + message(2, version))


def data(name, cut, proto):
    """The entry of one slice."""
    stored = tuple((start, length or -1) for start, length in cut)
    saved = message(1, name) + message(2, extents(*cut)) + message(3, proto)
    return slice_key(name, stored), message(2, saved)


def one(path, dtype, shape, proto, **options):
    """A file of one tensor `t`."""
    cut = ((0, 0),) * len(shape)
    entries = [(b"", meta((b"t", dtype, shape, [cut]))), data(b"t", cut, proto)]
    path.write_bytes(tf_bytes.table(entries, **options))
    return path


def test_bytes_of_tensorflow(tmp_path):
    (tmp_path / "x").write_bytes(FILE)
    assert differences(read(tmp_path / "x"), SMALL) == []
    write(tmp_path / "y", SMALL)
    assert (tmp_path / "y").read_bytes() == FILE


BITS = np.array([0x3C00, 0xC100, 0x7E01, 0x0001], np.uint16)
PROTOS = {
    "packed floats": (1, message(5, np.array([1, 2], "<f4").tobytes()), np.array([1, 2], "f4")),
    "single floats": (1, b"\x2d\0\0\x80\x3f" + b"\x2d\0\0\0\x40", np.array([1, 2], "f4")),
    "floats in two runs": (
        1,
        message(5, bytes(4)) + message(5, b"\0\0\0\x40"),
        np.array([0, 2], "f4"),
    ),
    "floats as content": (1, message(4, np.array([1, 2], "<f4").tobytes()), np.array([1, 2], "f4")),
    "single doubles": (2, b"\x31" + np.array([3.0]).tobytes(), np.array([3.0])),
    "complex": (8, message(9, np.array([1 + 2j], "c8").tobytes()), np.array([1 + 2j], "c8")),
    "single complex": (8, b"\x4d\0\0\x80\x3f" + b"\x4d\0\0\0\x40", np.array([1 + 2j], "c8")),
    "wide complex": (18, message(12, np.array([1 - 2j]).tobytes()), np.array([1 - 2j])),
    "negative bytes": (
        6,
        message(7, varint(-1) + varint(-128) + b"\x7f"),
        np.array([-1, -128, 127], "i1"),
    ),
    "single integers": (3, b"\x38\x05" + b"\x38" + varint(-5), np.array([5, -5], "i4")),
    "long integers": (
        9,
        message(10, varint(-(2**63)) + varint(2**63 - 1)),
        np.array([-(2**63), 2**63 - 1]),
    ),
    "integers as content": (9, message(4, np.array([-3]).tobytes()), np.array([-3])),
    "truth": (10, message(11, b"\1\0\1"), np.array([True, False, True])),
    "halves": (19, message(13, b"".join(varint(int(b)) for b in BITS)), BITS.view("f2")),
    "halves as content": (19, message(4, BITS.tobytes()), BITS.view("f2")),
    "quantized": (12, message(7, b"\xff\x01"), np.array([255], "u1")),
    "strings": (7, message(8, b"") + message(8, b"a\0b"), strings(b"", b"a\0b")),
    "unknown fields": (1, number(3, 1) + message(5, bytes(4)) + number(99, 7), np.zeros(1, "f4")),
}


@pytest.mark.parametrize(("dtype", "proto", "array"), PROTOS.values(), ids=PROTOS)
@pytest.mark.parametrize("snappy", [False, True])
def test_every_form_of_values(tmp_path, dtype, proto, array, snappy):
    path = one(tmp_path / "x", dtype, array.shape, proto, snappy=snappy)
    assert same(read(path)["t"], array)


@pytest.mark.parametrize(
    ("dtype", "shape", "proto", "text"),
    [
        (1, (2,), message(5, bytes(4)), "stored size does not fit"),
        (1, (2,), message(5, bytes(12)), "stored size does not fit"),
        (1, (2,), b"", "stored size does not fit"),
        (1, (1,), message(5, bytes(4)) + message(4, bytes(4)), "stored twice"),
        (3, (2,), message(7, b"\1"), "wrong count"),
        (3, (2,), message(7, b"\1\2\3"), "wrong count"),
        (3, (1,), message(7, b"\x80"), "wrong count"),
        (6, (1,), message(7, varint(128)), "out of the range of int8"),
        (19, (1,), message(13, varint(65536)), "out of the range of float16"),
        (10, (1,), message(11, b"\x02"), "out of the range of bool"),
        (7, (2,), message(8, b"x"), "number of strings does not fit"),
        (7, (1,), message(4, b"x"), "form that it cannot have"),
        (9, (2,), message(4, bytes(8)), "stored size does not fit"),
    ],
)
def test_values_that_do_not_fit(tmp_path, dtype, shape, proto, text):
    for snappy in (False, True):
        path = one(tmp_path / "x", dtype, shape, proto, snappy=snappy)
        with pytest.raises(CorruptFileError, match=rf"{text}.* \(tensor 't'") as raised:
            read(path)
        assert raised.value.path == path


# ── slices and shards ────────────────────────────────────────────────────────────────────────────

GRID = [((0, 1), (0, 2)), ((0, 1), (2, 3)), ((1, 2), (0, 2)), ((1, 2), (2, 3))]


def parts(array, cuts):
    for cut in cuts:
        part = array[tuple(slice(start, start + length) for start, length in cut)]
        yield data(b"w", cut, message(4, part.tobytes()))


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8", "complex64"])
def test_slices_on_any_axes(tmp_path, dtype):
    array = make(dtype, (3, 5))
    header = meta((b"w", NUMBERS[array.dtype], (3, 5), GRID))
    (tmp_path / "x").write_bytes(tf_bytes.table([(b"", header), *parts(array, GRID)]))
    assert differences(read(tmp_path / "x"), {"w": array}) == []


def shards(folder, array, *sets, shapes=None):
    """A set of files with so many slices each."""
    for n, cuts in enumerate(sets):
        shape = (shapes or {}).get(n, array.shape)
        header = meta((b"w", NUMBERS[array.dtype], shape, cuts))
        content = tf_bytes.table([(b"", header), *parts(array, cuts)])
        (folder / f"m-{n:05}-of-{len(sets):05}").write_bytes(content)
    return folder / "m"


def test_slices_in_several_shards(tmp_path):
    array = make("float32", (3, 5))
    path = shards(tmp_path, array, GRID[:1], [], GRID[1:])
    with formats.open_checkpoint(path) as checkpoint:
        assert checkpoint.path == tmp_path / "m-00000-of-00003"
        assert same(checkpoint["w"].numpy(), array)


@pytest.mark.parametrize(
    ("sets", "shapes", "message"),
    [
        ([GRID, GRID[:1]], {}, "overlap"),
        ([GRID[:1], GRID[2:]], {}, "not covered"),
        ([GRID, []], {1: (3, 4)}, "shards disagree"),
    ],
)
def test_shards_that_do_not_fit(tmp_path, sets, shapes, message):
    path = shards(tmp_path, make("float32", (3, 5)), *sets, shapes=shapes)
    with pytest.raises(CorruptFileError, match=rf"{message}.* \(tensor 'w'\)"):
        formats.open_checkpoint(path)


def test_a_slice_that_is_not_there(tmp_path):
    array = make("float32", (3, 5))
    header = meta((b"w", 1, (3, 5), GRID))
    (tmp_path / "x").write_bytes(tf_bytes.table([(b"", header), *parts(array, GRID[:3])]))
    with (
        formats.open_checkpoint(tmp_path / "x") as checkpoint,
        pytest.raises(CorruptFileError, match="slice of the tensor is not in the file"),
    ):
        checkpoint["w"].numpy()


# ── blocks ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("snappy", [False, True])
@pytest.mark.parametrize("whole", [20, 1 << 20])
@pytest.mark.parametrize("per_block", [1, 2, 100])
def test_blocks_of_any_size(tmp_path, monkeypatch, per_block, whole, snappy):
    monkeypatch.setattr(_sstable, "WHOLE", whole)
    arrays = {f"v{n}": make("float32" if n % 2 else "int64", (n, 7), n) for n in range(9)}
    header = meta(
        *((n.encode(), NUMBERS[a.dtype], a.shape, [((0, 0),) * 2]) for n, a in arrays.items())
    )
    entries = [data(n.encode(), ((0, 0),) * 2, message(4, a.tobytes())) for n, a in arrays.items()]
    table = tf_bytes.table([(b"", header), *entries], per_block=per_block, snappy=snappy)
    (tmp_path / "x").write_bytes(table)
    assert differences(read(tmp_path / "x"), arrays) == []


def test_opening_reads_no_values(tmp_path, monkeypatch):
    arrays = {f"v{n}": make("float32", (600, 300)) for n in range(8)}
    arrays |= {f"b{n}": make("float32", (100,)) for n in range(500)}
    write(tmp_path / "x", arrays)
    counted = CountingSystem()
    monkeypatch.setattr("converter.files.system", counted)
    with formats.open_checkpoint(tmp_path / "x") as checkpoint:
        assert counted.nbytes < 1_200_000  # two times the first block: the header, and small values
        counted.nbytes = 0
        assert same(checkpoint["v3"].numpy(), arrays["v3"])
        assert counted.nbytes < 2.02 * arrays["v3"].nbytes
        checkpoint["b7"].numpy()
        counted.nbytes = 0
        checkpoint["b8"].numpy()
        assert counted.nbytes == 400


def test_a_flip_in_a_large_block(tmp_path):
    array = np.zeros((600, 600), np.float32)
    write(tmp_path / "x", {"v": array})
    content = bytearray((tmp_path / "x").read_bytes())
    content[len(content) // 2] ^= 4
    (tmp_path / "x").write_bytes(content)
    with formats.open_checkpoint(tmp_path / "x") as checkpoint:
        for _ in range(2):
            with pytest.raises(ChecksumError, match=r"block checksum .*tensor 'v'") as raised:
                checkpoint["v"].view.take(0, 0, 1).numpy()
            assert raised.value.path == tmp_path / "x"


# ── what is not read, hostile files ──────────────────────────────────────────────────────────────


def test_what_is_no_array_is_listed(tmp_path):
    header = meta(
        (b"new", 99, (), [()]),
        (b"brain", 14, (), [()]),
        (b"name \xff", 1, (), [()]),
        (b"line\nfeed", 1, (), [()]),
    )
    (tmp_path / "x").write_bytes(tf_bytes.table([(b"", header)]))
    with formats.open_checkpoint(tmp_path / "x") as checkpoint:
        assert not checkpoint
        assert checkpoint.unsupported == {
            "new": "TensorFlow's dtype 99 is not known",
            "brain": "the format has no place for bfloat16",
            "name \\xff": "its name is not valid UTF-8",
            "line\\x0afeed": "its name holds control characters",
        }


WHOLE = [((0, 0),)]


@pytest.mark.parametrize(
    ("header", "error", "text"),
    [
        (meta((b"t", 1, (2**50,), WHOLE)), CorruptFileError, "more elements than its file"),
        (meta((b"t", 1, (2**40, 2**40), [((0, 0),) * 2])), LimitError, "out of bounds"),
        (meta((b"t", 1, (-1,), WHOLE)), CorruptFileError, "negative"),
        (meta((b"t", 1, (1,), [])), CorruptFileError, "not covered"),
        (meta((b"t", 1, (1,), WHOLE * 2)), CorruptFileError, "overlap"),
        (meta((b"t", 1, (1,), WHOLE), (b"t", 3, (1,), WHOLE)), CorruptFileError, "disagree"),
        (meta((b"t", 1, (1,), [((1, 1),)])), CorruptFileError, "does not lie inside"),
        (meta((b"t", 1, (1,), [((0, 2),)])), CorruptFileError, "does not lie inside"),
        (meta((b"t" * 4097, 1, (1,), WHOLE)), LimitError, "name is too long"),
        (meta(version=b"\x10\x02"), UnsupportedError, "newer reader"),
        (b"\x0a\x05\x0a\x04ab", CorruptFileError, "does not fit"),
    ],
)
def test_hostile_headers(tmp_path, header, error, text):
    (tmp_path / "x").write_bytes(tf_bytes.table([(b"", header)]))
    with pytest.raises(error, match=text) as raised:
        formats.open_checkpoint(tmp_path / "x")
    assert raised.value.path == tmp_path / "x"


def test_a_file_without_its_list(tmp_path):
    (tmp_path / "x").write_bytes(tf_bytes.table([(b"", message(3, b"")), (b"k", b"")]))
    with pytest.raises(CorruptFileError, match="no list of its tensors"):
        tf_v1._read_meta(_sstable.Table(formats.tf_v1.File(tmp_path / "x")), {})


def test_a_compressed_block_is_bounded_by_what_its_values_need(tmp_path, monkeypatch):
    monkeypatch.setattr(tf_v1, "MAX_BLOCK", 100)
    path = one(tmp_path / "x", 7, (1,), message(8, bytes(5000)), snappy=True, per_block=1)
    with pytest.raises(LimitError, match="compressed block is too large"):
        read(path)
    path = one(tmp_path / "y", 1, (1250,), message(5, bytes(5000)), snappy=True, per_block=1)
    assert not read(path)["t"].any()


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("order", [list, reversed, sorted, lambda names: names[1::2] + names[::2]])
def test_tensors_may_come_in_any_order(tmp_path, order):
    arrays = {f"n{n}": make("float32" if n % 2 else "int16", (n, 400), n) for n in range(9)}
    arrays["large"] = make("float64", (300, 300))
    write(tmp_path / "x", arrays, order)
    write(tmp_path / "y", arrays)
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
    assert differences(read(tmp_path / "x"), arrays) == []


def test_a_large_tensor_is_not_gathered(tmp_path):
    nbytes = []
    specs = {"v": TensorSpec((1 << 20,), np.dtype(np.float32))}
    sink = formats.create(tmp_path / "x", formats.named("tf-v1"), specs)

    def pieces():
        for n in range(16):
            yield np.full(1 << 16, n, np.float32)
            nbytes.append(sink._publication.files[0].size)

    sink.write("v", pieces())
    sink.commit()
    assert nbytes == sorted(set(nbytes))
    assert nbytes[0] >= 1 << 18
    assert read(tmp_path / "x")["v"].sum() == sum(range(16)) * (1 << 16)


def test_what_was_not_written_is_named(tmp_path):
    specs = {name: TensorSpec((), np.dtype(np.float32)) for name in "ab"}
    sink = formats.create(tmp_path / "x", formats.named("tf-v1"), specs)
    sink.write("b", [np.zeros(1, np.float32)])
    with pytest.raises(TargetError, match=r"never written \(tensor 'a'\)"):
        sink.commit()
    sink.abort()


def test_strings_beyond_the_limit(tmp_path, monkeypatch):
    specs = {"s": TensorSpec((1,), np.dtype(object))}
    sink = formats.create(tmp_path / "x", formats.named("tf-v1"), specs)
    monkeypatch.setattr(tf_v1, "MAX_VALUE", 10)
    with pytest.raises(UnrepresentableError, match="2 GiB"):
        sink.write("s", [strings(b"12345678901")])
    sink.abort()


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ((2,), "bfloat16", "dtype bfloat16 cannot be stored"),
        ((2,), "float8_e5m2", "dtype float8_e5m2 cannot be stored"),
        ((2,), "uint32", "dtype uint32 cannot be stored"),
        ((2,), "uint64", "dtype uint64 cannot be stored"),
        ((1 << 29,), "float32", "2 GiB"),
        ((1 << 28,), "int32", "2 GiB"),
        (((1 << 29) - 256,), "float32", ""),
        ((1 << 30,), "bool", ""),
    ],
)
def test_what_cannot_be_held(shape, dtype, reason):
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    found = tf_v1.problem("w", TensorSpec(shape, kind))
    assert reason in found
    assert bool(reason) == bool(found)


# ── real checkpoints ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("folder", "reading"), {"srcnn-v1": "srcnn_v1", "serving/v1-sharded": "serving_v1"}.items()
)
def test_real_checkpoints(shared, tmp_path, folder, reading):
    found = read(shared / "real" / folder)
    with np.load(shared / "real" / "expected" / f"{reading}.npz") as archive:
        expected = {name.replace("|", "/"): archive[name] for name in archive.files}
    assert differences(found, expected) == []
    write(tmp_path / "again", found)
    assert differences(read(tmp_path / "again"), expected) == []


# ── TensorFlow ───────────────────────────────────────────────────────────────────────────────────


class TestV1(FormatConformance):
    format = "tf-v1"
    target = "model.v1"
    checksums = True

    def oracle_read(self, path):
        with formats.open_checkpoint(path) as checkpoint:
            dtypes = {name: dtype_name(spec.dtype) for name, spec in checkpoint.specs.items()}
        shapes = {name: shape for name, (_, shape) in tensorflow().inventory(path).items()}
        assert shapes == {name: list(spec.shape) for name, spec in checkpoint.specs.items()}
        return tensorflow().read(1, path, dtypes)

    def oracle_write(self, path, arrays):
        tensorflow().save(1, path, arrays)


def test_the_dtypes_are_all():
    assert {dtype_name(dtype) for dtype in tf_v1._FIELDS} == set(DTYPES)


@pytest.mark.oracle
def test_the_file_is_that_of_tensorflow_to_the_byte(tmp_path):
    arrays = {f"block/{n}/v": make(DTYPES[n % 13], (n % 5, 3), n) for n in range(500)}
    arrays |= {"large": make("float32", (400, 500)), "medium": make("int64", (200, 100))}
    tensorflow().save(1, tmp_path / "theirs", arrays)
    write(tmp_path / "ours", arrays)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert differences(read(tmp_path / "theirs"), arrays) == []


PARTITIONS = {
    "rows": ["0,2:0,6", "2,3:0,6", "5,1:0,6"],
    "whole columns": ["0,2:-", "2,4:-"],
    "columns": ["-:0,1", "-:1,5"],
    "grid": ["0,3:0,2", "0,3:2,4", "3,3:0,2", "3,3:2,4"],
}


def cut(place):
    """The slices that TensorFlow's text for extents means."""
    pairs = [None if text == "-" else text.split(",") for text in place.split(":")]
    return tuple(
        slice(None) if pair is None else slice(int(pair[0]), int(pair[0]) + int(pair[1]))
        for pair in pairs
    )


@pytest.mark.oracle
@pytest.mark.parametrize("places", PARTITIONS.values(), ids=PARTITIONS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "string"])
def test_partitioned_variables(tmp_path, dtype, places):
    array = make(dtype, (6, 6))
    slices = [("w", f"6 6 {place}", array[cut(place)]) for place in places]
    tensorflow().save_slices(1, tmp_path / "x", slices)
    assert differences(read(tmp_path / "x"), {"w": array}) == []


@pytest.mark.oracle
def test_shards_of_tensorflow(tmp_path):
    array = make("float32", (6, 6))
    for n, place in enumerate(PARTITIONS["grid"]):
        tensors = [("w", f"6 6 {place}", array[cut(place)]), (f"v{n}", "", array[:n])]
        tensorflow().save_slices(1, tmp_path / f"m-{n:05}-of-00004", tensors)
    found = read(tmp_path / "m")
    assert differences(found, {"w": array, **{f"v{n}": array[:n] for n in range(4)}}) == []
    again = tensorflow().read(1, tmp_path / "m-?????-of-00004", {"w": "float32"})
    assert same(again["w"], array)
