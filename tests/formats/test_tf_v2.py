"""TensorFlow V2 checkpoints, against TensorFlow, real files and bytes made by hand."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from converter import formats
from converter.errors import (
    ChecksumError,
    CorruptFileError,
    LimitError,
    SourceError,
    UnrepresentableError,
    UnsupportedError,
)
from converter.formats import tf_v2
from converter.formats._protobuf import message, number
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
from tests.formats.tf_oracle import tensorflow

SHARD = ".data-00000-of-00001"

# What TensorFlow 2.21 wrote for a = int64 -7, b = float32 [[0 1 2] [3 4 5]], e = float32 of
# shape (0, 3) and s = ["x", ""], saved in the order b, a, s, e.
INDEX = bytes.fromhex(
    "00000608011a0208010001"
    "0d61080912002018280835dce04c0a"
    "00011362080112081202080212020803281835c0db3d17"
    "0001116508011206120012020803202735d8ea82a2"
    "0001117308071204120208022020280735b1760ba9"
    "000000000100000000906bd40a"
    "000000000100000000c0f2a1b0"
    "00010274006300000000010000000048491c4a"
    "6808750e000000000000000000000000000000000000000000000000000000000000000000000000"
    "57fb808b247547db"
)
DATA = bytes.fromhex(
    "000000000000803f0000004000004040000080400000a040" + "f9ffffffffffffff" + "010001" + "75de4178"
)


def strings(*values, shape=None):
    array = np.empty(len(values), object)
    array[:] = values
    return array.reshape(len(values) if shape is None else shape)


def names(arrays):
    return {name: dtype_name(array.dtype) for name, array in arrays.items()}


# ── bundles by hand ──────────────────────────────────────────────────────────────────────────────


def header(shards=1, order=0, version=b"\x08\x01"):
    return number(1, shards) + number(2, order) + message(3, version)


def entry(  # noqa: PLR0913 - a message has these fields
    data=b"", dtype=1, shape=(), *, shard=0, offset=0, size=None, crc=None, slices=()
):
    dims = b"".join(message(2, number(1, n)) for n in shape)
    masked = tf_bytes.masked(data) if crc is None else crc
    return (
        number(1, dtype)
        + message(2, dims)
        + number(3, shard)
        + number(4, offset)
        + number(5, len(data) if size is None else size)
        + b"\x35"
        + masked
        + b"".join(message(7, cut) for cut in slices)
    )


def extents(*pairs):
    return b"".join(message(1, number(1, start) + number(2, length)) for start, length in pairs)


@pytest.fixture
def bundle(tmp_path):
    """A function that writes a bundle of entries and a shard, and gives its prefix."""

    def make(entries, data=b"", head=None, **options):
        prefix = tmp_path / "hand.ckpt"
        content = {b"": header() if head is None else head, **entries}
        (tmp_path / "hand.ckpt.index").write_bytes(tf_bytes.table(content.items(), **options))
        (tmp_path / f"hand.ckpt{SHARD}").write_bytes(data)
        return prefix

    return make


def test_bytes_of_tensorflow(tmp_path):
    (tmp_path / "x.index").write_bytes(INDEX)
    (tmp_path / f"x{SHARD}").write_bytes(DATA)
    expected = {
        "a": np.array(-7),
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "e": np.zeros((0, 3), np.float32),
        "s": strings(b"x", b""),
    }
    assert differences(read(tmp_path / "x"), expected) == []


def test_the_smallest_bundle_to_the_byte(tmp_path):
    specs = {"f": TensorSpec((2,), np.dtype(np.float32))}
    sink = formats.create(tmp_path / "x.ckpt", formats.named("tf-v2"), specs)
    sink.write("f", [np.array([1, -2], np.float32)])
    sink.commit()
    data = bytes.fromhex("0000803f000000c0")
    assert (tmp_path / f"x.ckpt{SHARD}").read_bytes() == data
    block = (
        bytes.fromhex("000006" + "08011a020801" + "00010f" + "66" + "080112041202080228" + "0835")
        + tf_bytes.masked(data)
        + bytes.fromhex("0000000001000000")
    )
    index = bytes.fromhex("000102" + "67" + "00") + bytes([len(block)])
    index += bytes.fromhex("0000000001000000")
    empty = tf_bytes.sealed(bytes.fromhex("0000000001000000"))
    at = len(block) + 5
    expected = tf_bytes.sealed(block) + empty + tf_bytes.sealed(index)
    expected += bytes([at, 8, at + 13, len(index)]).ljust(40, b"\0")
    assert (tmp_path / "x.ckpt.index").read_bytes() == expected + bytes.fromhex("57fb808b247547db")


@pytest.mark.parametrize("snappy", [False, True])
@pytest.mark.parametrize("per_block", [1, 2, 100])
def test_blocks_of_any_size(bundle, per_block, snappy):
    values = {f"v{n}": np.full(3, n, np.float32) for n in range(9)}
    data = b"".join(array.tobytes() for array in values.values())
    entries = {
        name.encode(): entry(array.tobytes(), shape=(3,), offset=12 * n)
        for n, (name, array) in enumerate(values.items())
    }
    prefix = bundle(entries, data, per_block=per_block, snappy=snappy)
    assert differences(read(prefix), values) == []


@pytest.mark.parametrize(
    "dtype",
    ["int16", "uint16", "int64", "float16", "float32", "complex64", "bfloat16", "int8", "int4"],
)
@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
def test_big_endian(bundle, dtype, shape):
    array = make(dtype, shape)
    unit = array.dtype.itemsize // (2 if array.dtype.kind == "c" else 1)
    data = b"".join(array.tobytes()[at : at + unit][::-1] for at in range(0, array.nbytes, unit))
    stored = entry(b"?" + data, NUMBERS[array.dtype], shape, offset=1, size=len(data))
    stored = stored.replace(tf_bytes.masked(b"?" + data), tf_bytes.masked(data))
    prefix = bundle({b"t": stored}, b"?" + data, header(order=1))
    found = read(prefix)["t"]
    assert same(found, array)
    assert found.dtype.isnative
    with formats.open_checkpoint(prefix) as checkpoint:
        assert checkpoint["t"].extent is None or unit == 1
        if shape:
            assert same(checkpoint["t"].view.flip(0).numpy(), array[::-1])


def test_strings_by_hand(bundle):
    texts = strings(b"ab", b"", b"\0" * 300)
    lengths = b"\x02\x00\xac\x02"
    counted = bytes.fromhex("02000000" + "00000000" + "2c010000")
    crc = tf_bytes.masked(counted)
    tail = b"ab" + b"\0" * 300
    data = lengths + crc + tail
    stored = entry(dtype=7, shape=(3,), size=len(data), crc=tf_bytes.masked(counted + crc + tail))
    prefix = bundle({b"s": stored}, data)
    assert same(read(prefix)["s"], texts)

    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1
        (prefix.parent / f"hand.ckpt{SHARD}").write_bytes(changed)
        with pytest.raises(CorruptFileError, match="tensor 's'"):
            read(prefix)


# ── slices ───────────────────────────────────────────────────────────────────────────────────────


def sliced(array, cuts, *, dtype=None, shape=None):
    """Entries and data of a tensor `w` in slices, each as ((start, length), …)."""
    dtype = dtype or NUMBERS[array.dtype]
    shape = shape or array.shape
    entries = {b"w": entry(dtype=dtype, shape=shape, slices=[extents(*cut) for cut in cuts])}
    data = b""
    for cut in cuts:
        part = array[tuple(slice(start, start + length) for start, length in cut)]
        stored = entry(part.tobytes(), dtype, part.shape, offset=len(data))
        entries[slice_key(b"w", cut)] = stored
        data += part.tobytes()
    return entries, data


GRID = [((0, 1), (0, 2)), ((0, 1), (2, 3)), ((1, 2), (0, 2)), ((1, 2), (2, 3))]


@pytest.mark.parametrize("dtype", ["float16", "uint16", "float8_e5m2", "bfloat16", "float32"])
@pytest.mark.parametrize(
    "cuts", [[((0, 1), (0, 5)), ((1, 2), (0, 5))], [((0, 3), (4, 1)), ((0, 3), (0, 4))], GRID]
)
def test_slices_on_any_axes(bundle, dtype, cuts):
    array = make(dtype, (3, 5))
    prefix = bundle(*sliced(array, cuts))
    assert differences(read(prefix), {"w": array}) == []


def test_a_whole_axis_may_be_written_either_way(bundle):
    array = make("float32", (4, 3))
    first, second = array[:1].tobytes(), array[1:].tobytes()
    whole = message(1, number(2, 1)) + message(1, b"")
    rest = message(1, number(1, 1) + number(2, 3)) + message(1, number(2, 3))
    prefix = bundle(
        {
            b"w": entry(shape=(4, 3), slices=[whole, rest]),
            slice_key(b"w", ((0, 1), (0, -1))): entry(first, shape=(1, 3)),
            slice_key(b"w", ((1, 3), (0, 3))): entry(second, shape=(3, 3), offset=len(first)),
        },
        first + second,
    )
    assert differences(read(prefix), {"w": array}) == []


@pytest.mark.parametrize(
    ("cuts", "shape", "message"),
    [
        (GRID[:3], (3, 5), "not covered by its slices"),
        ([*GRID, ((0, 3), (0, 5))], (3, 5), "overlap"),
        (GRID, (4, 5), "not covered by its slices on axis 0"),
        (GRID, (3, 4), "does not lie inside"),
        (GRID, (3, 5, 1), "does not lie inside"),
    ],
)
def test_slices_that_do_not_fit(bundle, cuts, shape, message):
    prefix = bundle(*sliced(make("float32", (3, 5)), cuts, shape=shape))
    with pytest.raises(CorruptFileError, match=rf"{message}.* \(tensor 'w'\)"):
        formats.open_checkpoint(prefix)


def test_a_slice_that_is_not_there(bundle):
    entries, data = sliced(make("float32", (3, 5)), GRID)
    del entries[slice_key(b"w", GRID[2])]
    with pytest.raises(CorruptFileError, match=r"slice of the tensor is not in the index"):
        formats.open_checkpoint(bundle(entries, data))


@pytest.mark.parametrize("change", [{"dtype": 3}, {"shape": (2, 1)}, {"slices": [b""]}])
def test_a_slice_that_is_another(bundle, change):
    entries, data = sliced(make("float32", (3, 5)), GRID)
    facts = {"shape": (1, 2), "size": 8, **change}
    entries[slice_key(b"w", GRID[0])] = entry(data[:8], **facts)
    with pytest.raises(CorruptFileError, match="slice differs from what its tensor says"):
        formats.open_checkpoint(bundle(entries, data))


# ── what is not read ─────────────────────────────────────────────────────────────────────────────


def test_what_is_no_array_is_listed(bundle):
    prefix = bundle(
        {
            b"handle": entry(dtype=20),
            b"list": entry(b"12345", dtype=21),
            b"new": entry(dtype=99),
            b"ref": entry(dtype=101),
            b"name \xff": entry(b"1234"),
            b"line\nfeed": entry(b"1234"),
            slice_key(b"orphan", ((0, 1),)): entry(b"1234", shape=(1,)),
            b"w": entry(b"1234"),
        },
        b"1234",
    )
    with formats.open_checkpoint(prefix) as checkpoint:
        assert list(checkpoint) == ["w"]
        assert checkpoint.unsupported == {
            r"\x00orphan\x00\x01\x01\x01\x80\x81": "a slice of a tensor that is not in the index",
            "handle": "resource handles are not tensors of numbers",
            "line\\x0afeed": "its name holds control characters",
            "list": "variant values are not tensors of numbers",
            "name \\xff": "its name is not valid UTF-8",
            "new": "TensorFlow's dtype 99 is not known",
            "ref": "TensorFlow's dtype 101 is not known",
        }


def test_integers_of_quantized_dtypes(bundle):
    entries = {}
    for name, (dtype, array) in {
        "q8": (11, np.array([-1], np.int8)),
        "qu8": (12, np.array([255], np.uint8)),
        "q32": (13, np.array([-1], np.int32)),
        "q16": (15, np.array([-1], np.int16)),
        "qu16": (16, np.array([65535], np.uint16)),
    }.items():
        entries[name.encode()] = entry(array.tobytes(), dtype, (1,))
    found = read(bundle(entries, b"\xff" * 4))
    assert names(found) == {
        "q8": "int8",
        "qu8": "uint8",
        "q32": "int32",
        "q16": "int16",
        "qu16": "uint16",
    }
    assert [array.tolist() for array in found.values()] == [[-1], [-1], [-1], [65535], [255]]


# ── hostile, damaged, incomplete ─────────────────────────────────────────────────────────────────

BIG = 2**63 - 1


@pytest.mark.parametrize(
    ("stored", "error", "message"),
    [
        (entry(b"1234", shard=7), CorruptFileError, "data file that does not exist"),
        (entry(b"1234", shard=-1), CorruptFileError, "data file that does not exist"),
        (entry(b"1234", offset=1), CorruptFileError, "data file is shorter"),
        (entry(b"1234", offset=BIG), CorruptFileError, "data file is shorter"),
        (entry(b"1234", offset=-1), CorruptFileError, "data file is shorter"),
        (entry(b"1234", size=-4), CorruptFileError, "data file is shorter"),
        (entry(b"1234", size=BIG), CorruptFileError, "data file is shorter"),
        (entry(b"1234", size=3), CorruptFileError, "does not fit the shape"),
        (entry(b"1234", shape=(2,)), CorruptFileError, "does not fit the shape"),
        (entry(b"1234", dtype=7, shape=(1,)), CorruptFileError, "does not fit the shape"),
        (entry(b"1234", shape=(2**40, 2**40)), LimitError, "shape is out of bounds"),
        (entry(b"1234", shape=(1,) * 33), LimitError, "too many axes"),
        (entry(b"1234", shape=(-1,)), CorruptFileError, "negative"),
        (entry(b"1234")[:-1], CorruptFileError, "field does not fit"),
    ],
)
def test_hostile_entries(bundle, stored, error, message):
    with pytest.raises(error, match=rf"{message}(?s:.*)\(tensor 't'"):
        formats.open_checkpoint(bundle({b"t": stored}, b"1234"))


@pytest.mark.parametrize(
    ("head", "error", "message"),
    [
        (header(version=b"\x08\x02\x10\x02"), UnsupportedError, "newer reader"),
        (b"\x08", CorruptFileError, "number is cut off"),
        (header(shards=-1), CorruptFileError, "does not exist"),
    ],
)
def test_hostile_headers(bundle, head, error, message):
    with pytest.raises(error, match=message):
        formats.open_checkpoint(bundle({b"t": entry(b"1234")}, b"1234", head))


def test_a_bundle_without_its_header(tmp_path):
    (tmp_path / "x.index").write_bytes(tf_bytes.table([(b"t", entry(b"1234"))]))
    with pytest.raises(CorruptFileError, match="no header entry"):
        formats.open_checkpoint(tmp_path / "x")


def test_names_are_bounded(bundle):
    with pytest.raises(LimitError, match="name is too long"):
        formats.open_checkpoint(bundle({b"n" * 4097: entry(b"1234")}, b"1234"))


def test_a_string_longer_than_its_place(bundle):
    data = b"\x05" + tf_bytes.masked(b"\x05\0\0\0") + b"abcd"
    crc = tf_bytes.masked(b"\x05\0\0\0" + data[1:])
    prefix = bundle({b"t": entry(dtype=7, size=len(data), crc=crc)}, data)
    with pytest.raises(CorruptFileError, match="strings do not fill their place"):
        read(prefix)


def test_a_checksum_error_has_every_fact(bundle):
    prefix = bundle({b"t": entry(b"1234", offset=2)}, b"..1235")
    with pytest.raises(ChecksumError, match="tensor checksum does not match") as raised:
        read(prefix)
    error = raised.value
    assert error.path == prefix.with_name(f"hand.ckpt{SHARD}")
    assert (error.tensor, error.offset) == ("t", 2)
    assert error.expected != error.found
    assert "mixed from two checkpoints" in error.hint


def test_a_data_file_that_changes_after_opening(bundle):
    prefix = bundle({b"t": entry(b"1234")}, b"1234")
    with formats.open_checkpoint(prefix) as checkpoint:
        (prefix.parent / f"hand.ckpt{SHARD}").write_bytes(b"12345678")
        with pytest.raises(SourceError, match="file changed"):
            checkpoint["t"].numpy()


def test_shards_are_opened_when_they_are_read(bundle, monkeypatch):
    prefix = bundle({b"t": entry(b"1234")}, b"1234")
    opened = []

    class System(CountingSystem):
        def open(self, path, flags):
            opened.append(path.name)
            return super().open(path, flags)

    monkeypatch.setattr("converter.files.system", System())
    with formats.open_checkpoint(prefix) as checkpoint:
        assert set(opened) == {"hand.ckpt.index"}
        checkpoint["t"].numpy()
        assert opened[-1] == f"hand.ckpt{SHARD}"


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


def write(path, arrays, **options):
    specs = {name: TensorSpec(array.shape, array.dtype) for name, array in arrays.items()}
    sink = formats.create(path, formats.named("tf-v2"), specs, **options)
    for name in sink.order:
        sink.write(name, [arrays[name].reshape(-1)])
    sink.commit()
    return sink


def test_strings_lie_behind_the_numbers(tmp_path):
    arrays = {
        "a": strings(b"text"),
        "b": make("int64", (3,)),
        "c": strings(b"", b"\0"),
        "d": make("bool", (1,)),
    }
    sink = write(tmp_path / "x", arrays)
    assert list(sink.order) == ["b", "d", "a", "c"]
    assert (tmp_path / f"x{SHARD}").read_bytes()[:25] == arrays["b"].tobytes() + arrays[
        "d"
    ].tobytes()
    assert differences(read(tmp_path / "x"), arrays) == []


def test_text_is_no_string(tmp_path):
    sink = formats.create(
        tmp_path / "x", formats.named("tf-v2"), {"s": TensorSpec((1,), np.dtype(object))}
    )
    with pytest.raises(UnrepresentableError, match="not bytes"):
        sink.write("s", [strings("text")])
    sink.abort()


def test_overwriting_removes_the_shards_of_the_old(bundle):
    old = entry(b"1234", shard=1)
    prefix = bundle({b"t": old}, head=header(2))
    shard = prefix.with_name("hand.ckpt.data-00001-of-00002")
    shard.write_bytes(b"1234")
    other = prefix.with_name("hand.ckpt.data-00003-of-00009")
    other.write_bytes(b"of nobody")
    write(prefix, {"new": make("float32", (2,))}, overwrite=True)
    assert not shard.exists()
    assert other.exists()
    assert list(read(prefix)) == ["new"]


def test_an_interim_checkpoint_is_one(tmp_path):
    arrays = {"w": make("float32", (3,)), "s": strings(b"x")}
    sink = write(tmp_path / "x", arrays)
    interim = sink._interim(3)
    (data,) = interim.data
    assert data.name == "x.data-00003-of-00004"
    (tmp_path / f"x{SHARD}").rename(data)
    (tmp_path / "x.index").write_bytes(interim.marker)
    assert differences(read(tmp_path / "x"), arrays) == []


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "reason"),
    [
        ("w", (2,), "float8_e8m0fnu", "dtype float8_e8m0fnu cannot be stored"),
        ("w", (1,) * 33, "float32", "more than 32 axes"),
        ("w" * 4097, (), "float32", "longer than 4096 bytes"),
        ("\ud800", (), "float32", "not valid Unicode"),
        ("", (), "float32", "is empty"),
        ("a\0b", (), "float32", "control characters"),
        ("w", (2,), "float32", ""),
    ],
)
def test_what_cannot_be_held(name, shape, dtype, reason):
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    assert reason in tf_v2.problem(name, TensorSpec(shape, kind))


# ── real checkpoints ─────────────────────────────────────────────────────────────────────────────

REAL = {
    "serving/snappy-index": "serving_cpu_snappy",
    "serving/snappy-index-tf2": "serving_tf2_cpu_snappy",
    "tensor2tensor": "t2t",
    "toy-bert": "kbert",
    "toy-gpt-2": "kgpt2",
    "basic-pitch": "basic_pitch",
    "dtln/savedmodel": "dtln_sm",
    "dtln/savedmodel-2-shards": "dtln_40h_sm",
}


@pytest.mark.parametrize(("folder", "reading"), REAL.items())
def test_real_checkpoints(shared, folder, reading):
    found = read(shared / "real" / folder)
    with np.load(shared / "real" / "expected" / f"{reading}.npz") as archive:
        expected = {name.replace("|", "/"): archive[name] for name in archive.files}
    texts = {name for name, kind in names(found).items() if kind == "string"}
    assert texts <= {"_CHECKPOINTABLE_OBJECT_GRAPH"}
    numbers = {name: array for name, array in found.items() if name not in texts}
    assert differences(numbers, expected) == []


def test_a_real_checkpoint_written_again(shared, tmp_path):
    found = read(shared / "real" / "basic-pitch")
    write(tmp_path / "x", found)
    assert differences(read(tmp_path / "x"), found) == []


# ── TensorFlow ───────────────────────────────────────────────────────────────────────────────────


class TestV2(FormatConformance):
    format = "tf-v2"
    target = "model.ckpt"
    checksums = True

    def oracle_read(self, path):
        with formats.open_checkpoint(path) as checkpoint:
            dtypes = {name: dtype_name(spec.dtype) for name, spec in checkpoint.specs.items()}
        shapes = {name: shape for name, (_, shape) in tensorflow().inventory(path).items()}
        assert shapes == {name: list(spec.shape) for name, spec in checkpoint.specs.items()}
        return tensorflow().read(2, path, dtypes)

    def oracle_write(self, path, arrays):
        tensorflow().save(2, path, arrays)


@pytest.mark.oracle
def test_the_files_are_those_of_tensorflow_to_the_byte(tmp_path):
    arrays = {f"layer_{n:03}/kernel": make("float32", (n % 7, 5)) for n in range(500)}
    arrays |= {
        "a": make("bfloat16", ()),
        "large": make("float32", (400, 500)),
        "z": make("bool", (3,)),
    }
    tensorflow().save(2, tmp_path / "theirs", dict(sorted(arrays.items())))
    write(tmp_path / "ours", arrays)
    for suffix in (".index", SHARD):
        ours, theirs = ((tmp_path / f"{name}{suffix}").read_bytes() for name in ("ours", "theirs"))
        assert ours == theirs


@pytest.mark.oracle
def test_500_tensors_of_mixed_dtypes_at_odd_places(tmp_path):
    dtypes = ["bool", "float32", "string", "int64", "uint8", "complex128"]
    arrays = {f"block/{n}/v": make(dtypes[n % 6], (n % 5, 3), n) for n in range(500)}
    tensorflow().save(2, tmp_path / "theirs", arrays)
    assert differences(read(tmp_path / "theirs"), arrays) == []
    write(tmp_path / "ours", arrays)
    kinds = names(arrays)
    assert differences(tensorflow().read(2, tmp_path / "ours", kinds), arrays) == []


PARTITIONS = {
    "rows": ["0,2:0,6", "2,3:0,6", "5,1:0,6"],
    "whole columns": ["0,2:-", "2,4:-"],
    "columns": ["-:0,1", "-:1,5"],
    "grid": ["0,3:0,2", "0,3:2,4", "3,3:0,2", "3,3:2,4"],
}


@pytest.mark.oracle
@pytest.mark.parametrize("places", PARTITIONS.values(), ids=PARTITIONS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "string"])
def test_partitioned_variables(tmp_path, dtype, places):
    array = make(dtype, (6, 6))
    slices = [("w", f"6 6 {place}", array[cut(place)]) for place in places]
    tensorflow().save_slices(2, tmp_path / "x", slices)
    assert differences(read(tmp_path / "x"), {"w": array}) == []


def cut(place):
    """The slices that TensorFlow's text for extents means."""
    pairs = [None if text == "-" else text.split(",") for text in place.split(":")]
    return tuple(
        slice(None) if pair is None else slice(int(pair[0]), int(pair[0]) + int(pair[1]))
        for pair in pairs
    )


@pytest.mark.oracle
def test_slices_in_several_shards(tmp_path):
    array = make("float32", (6, 6))
    whole = {f"v{n}": make("float16", (n,)) for n in range(4)}
    parts = []
    for n, place in enumerate(PARTITIONS["grid"]):
        parts.append(tmp_path / f"part{n}")
        tensors = [("w", f"6 6 {place}", array[cut(place)]), (f"v{n}", "", whole[f"v{n}"])]
        tensorflow().save_slices(2, parts[-1], tensors)
    tensorflow().merge(parts, tmp_path / "x")
    assert (tmp_path / "x.data-00003-of-00004").exists()
    assert differences(read(tmp_path / "x"), {"w": array, **whole}) == []


@pytest.mark.oracle
def test_tensorflow_reads_an_interim_checkpoint(tmp_path):
    arrays = {"w": make("float32", (3,))}
    interim = write(tmp_path / "x", arrays)._interim(1)
    (tmp_path / f"x{SHARD}").rename(interim.data[0])
    (tmp_path / "x.index").write_bytes(interim.marker)
    assert differences(tensorflow().read(2, tmp_path / "x", names(arrays)), arrays) == []
