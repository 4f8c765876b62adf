"""ONNX against its library, against literal bytes, and against hostile files."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conformance import PART_BITS, Array, Arrays, differences, make, read, same
from reading import ReadingConformance, attack, message, number, varint

import converter
from converter import formats
from converter.errors import (
    ConverterError,
    CorruptFileError,
    LimitError,
    NotFoundError,
    UnsafeContentError,
    UnsupportedError,
)
from converter.formats import onnx
from converter.tensors import STRING
from tests.oracles import missing

CODES = {name: code for code, (name, _) in onnx._DTYPES.items()}


def packed(array: Array) -> bytes:
    """As in memory, small elements without gaps, the first in the low bits."""
    width = PART_BITS.get(array.dtype.name)
    if not width:
        return array.tobytes()
    total = sum(int(v) << width * i for i, v in enumerate(array.reshape(-1).view(np.uint8)))
    return total.to_bytes(-(-array.size * width // 8), "little")


def header(name: str, shape: tuple[int, ...], code: int) -> bytes:
    return b"".join(number(1, n) for n in shape) + number(2, code) + message(8, name)


def tensor(name: str, array: Array) -> bytes:
    if array.dtype == STRING:
        head = header(name, array.shape, 8)
        return head + b"".join(message(6, text) for text in array.reshape(-1))
    return header(name, array.shape, CODES[array.dtype.name]) + message(9, packed(array))


def model(graph: bytes, extra: bytes = b"") -> bytes:
    return number(1, 9) + message(2, "by hand") + message(7, graph) + extra


def graph_of(arrays: Arrays) -> bytes:
    return b"".join(message(5, tensor(name, array)) for name, array in arrays.items())


def node(op: str, output: str, attributes: bytes = b"", name: str = "") -> bytes:
    return message(1, message(2, output) + message(3, name) + message(4, op) + attributes)


def attribute(name: str, content: bytes) -> bytes:
    return message(5, message(1, name) + content)


class TestOnnx(ReadingConformance):
    format = "onnx"
    target = "model.onnx"

    def make(self, path: Path, arrays: Arrays) -> None:
        path.write_bytes(model(graph_of(arrays)))


def typed(array: Array, *, whole: bool) -> bytes:
    """The elements in the field of their type, packed or one by one."""
    name = array.dtype.name
    field = onnx._DTYPES[CODES[name]][1]
    flat = array.reshape(-1)
    if field in (4, 10):
        width, wire = (4, 5) if field == 4 else (8, 1)
        raw = flat.tobytes()
        one = [raw[at : at + width] for at in range(0, len(raw), width)]
    else:
        if name in PART_BITS and PART_BITS[name] < 6:
            numbers = np.frombuffer(packed(array), np.uint8)
        elif (array.dtype.kind in "iu" and name not in PART_BITS) or name == "bool":
            numbers = flat
        else:
            numbers = flat.view(f"u{array.dtype.itemsize}")
        one, wire = [varint(int(value)) for value in numbers], 0
    if whole:
        return message(field, b"".join(one))
    return b"".join(varint(field << 3 | wire) + value for value in one)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("dtype", [name for name in CODES if name != "string"])
def test_typed_fields(dtype: str, whole: bool, tmp_path: Path) -> None:
    array = make(dtype, (3, 5))
    data = header("t", array.shape, CODES[dtype]) + typed(array, whole=whole)
    (tmp_path / "m").write_bytes(model(message(5, data)))
    found = read(tmp_path / "m")["t"]
    assert same(found, array)


def test_pieces_of_a_typed_field(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.int64)
    pieces = message(7, bytes([0, 1])) + number(7, 2) + number(7, 3) + message(7, bytes([4, 5]))
    (tmp_path / "m").write_bytes(model(message(5, header("t", (6,), 7) + pieces)))
    assert differences(read(tmp_path / "m"), {"t": array}) == []


# ── where tensors are ────────────────────────────────────────────────────────────────────────────


def test_constants_and_branches(tmp_path: Path) -> None:
    one, two, three = (np.full(2, n, np.float32) for n in (1, 2, 3))
    floats = b"".join(varint(7 << 3 | 5) + struct.pack("<f", n) for n in (1, 2))
    then = graph_of({"w": one, "inner": two}) + node(
        "Constant", "c", attribute("value", message(5, tensor("", three)))
    )
    graph = b"".join(
        [
            node("Constant", "k", attribute("value", message(5, tensor("ignored", one)))),
            node("Constant", "f", attribute("value_floats", floats)),
            node("Constant", "g", attribute("value_floats", message(7, two.tobytes()))),
            node("Constant", "i", attribute("value_int", number(3, -7))),
            node("Constant", "n", attribute("value_ints", number(8, 5) + number(8, 6))),
            node("Constant", "p", attribute("value_ints", message(8, b"\x05\xac\x02"))),
            node("Constant", "s", attribute("value_string", message(4, b"a\0b"))),
            node("ConstantOfShape", "z", attribute("value", message(5, tensor("", three)))),
            node(
                "Many",
                "t",
                attribute("them", message(10, tensor("", one)) + message(10, tensor("", two))),
            ),
            node(
                "If",
                "y",
                attribute("then_branch", message(6, then))
                + attribute("else_branch", message(6, then)),
                "if1",
            ),
            graph_of({"w": two}),
        ]
    )
    (tmp_path / "m").write_bytes(model(graph))
    found = read(tmp_path / "m")
    string = np.empty((), object)
    string[()] = b"a\0b"
    assert (
        differences(
            found,
            {
                "k": one,
                "f": np.array([1, 2], np.float32),
                "g": two,
                "i": np.array(-7),
                "n": np.array([5, 6]),
                "p": np.array([5, 300]),
                "s": string,
                "z/value": three,
                "t/them/0": one,
                "t/them/1": two,
                "w": two,
                "if1/then_branch/w": one,
                "inner": two,
                "c": three,
                "if1/else_branch/w": one,
                "if1/else_branch/inner": two,
                "if1/else_branch/c": three,
            },
        )
        == []
    )


def test_functions_training_and_sparse(tmp_path: Path) -> None:
    one = np.ones(1, np.float32)
    constant = message(2, "c") + message(4, "Constant")
    constant += attribute("value", message(5, tensor("", one)))
    sparse = message(1, tensor("s", one)) + message(2, tensor("", one)) + number(3, 9)
    graph = graph_of({"c": one}) + message(15, sparse)
    extra = message(25, message(1, "Swish") + message(7, constant))
    extra += message(20, message(2, graph_of({"c": one, "lr": one})))
    extra += message(14, message(1, "author") + message(2, "größe\n"))
    (tmp_path / "m").write_bytes(model(graph, extra))
    with converter.open(tmp_path / "m") as checkpoint:
        assert sorted(checkpoint) == ["Swish/c", "c", "lr", "training/algorithm/c"]
        assert checkpoint.unsupported == {"s": "a sparse tensor"}
        assert checkpoint.metadata == {"author": "größe\n"}


def test_what_is_not_known_is_listed(tmp_path: Path) -> None:
    graph = message(5, header("u", (1,), 99) + message(9, b"1"))
    graph += message(5, header("s", (1,), 2) + message(3, number(1, 0)) + message(9, b"1"))
    (tmp_path / "m").write_bytes(model(graph))
    with converter.open(tmp_path / "m") as checkpoint:
        assert checkpoint.unsupported == {
            "u": "elements of an unknown type, 99",
            "s": "a segment of a tensor",
        }


# ── external data ────────────────────────────────────────────────────────────────────────────────


def external(name: str, array: Array, **facts: object) -> bytes:
    entries = b"".join(message(13, message(1, k) + message(2, str(v))) for k, v in facts.items())
    head = header(name, array.shape, CODES[array.dtype.name])
    return message(5, head + entries + number(14, 1))


def test_external_data(tmp_path: Path) -> None:
    a, b, c = make("float32", (3, 4)), make("int4", (5,)), make("bfloat16", (7,))
    (tmp_path / "sub").mkdir()
    (tmp_path / "w.bin").write_bytes(b"xx" + a.tobytes() + packed(b))
    (tmp_path / "sub" / "c").write_bytes(c.tobytes())
    graph = b"".join(
        [
            external("a", a, location="w.bin", offset=2, length=48),
            external("b", b, location="w.bin", offset=50, length=3),
            external("c", c, location="sub/c"),
            external("d", a, location="w.bin", offset=2),
        ]
    )
    (tmp_path / "m.onnx").write_bytes(model(graph))
    assert differences(read(tmp_path / "m.onnx"), {"a": a, "b": b, "c": c, "d": a}) == []
    with converter.open(tmp_path / "m.onnx") as checkpoint:
        assert checkpoint.ties == (("a", "d"),)
        assert checkpoint["a"].extent == (tmp_path / "w.bin", 2, 48)
        assert sorted(checkpoint.files) == sorted(p for p in tmp_path.rglob("*") if p.is_file())
        assert checkpoint.files[0] == tmp_path / "m.onnx"


def test_a_cache_of_links(tmp_path: Path) -> None:
    array = make("float32", (2,))
    for folder in ("blobs", "snapshot"):
        (tmp_path / folder).mkdir()
    (tmp_path / "blobs" / "1").write_bytes(model(external("a", array, location="m.data")))
    (tmp_path / "blobs" / "2").write_bytes(array.tobytes())
    (tmp_path / "snapshot" / "m.onnx").symlink_to("../blobs/1")
    (tmp_path / "snapshot" / "m.data").symlink_to("../blobs/2")
    assert differences(read(tmp_path / "snapshot" / "m.onnx"), {"a": array}) == []


ESCAPES = {
    "up": {"location": "../secret"},
    "up inside": {"location": "sub/../../secret"},
    "absolute": {"location": "/etc/hostname"},
    "empty": {"location": ""},
    "none": {},
    "backslash": {"location": "..\\secret"},
    "nul": {"location": "a\0b"},
    "url": {"location": "file:///etc/passwd"},
    "link": {"location": "link"},
    "link to a folder": {"location": "folder/secret"},
}


@pytest.mark.parametrize("facts", ESCAPES.values(), ids=ESCAPES)
def test_data_outside_of_the_folder(facts: dict[str, object], tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "sub").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(b"12345678")
    (home / "link").symlink_to(tmp_path / "secret")
    (home / "folder").symlink_to(tmp_path)
    (home / "m").write_bytes(model(external("a", make("float32", (2,)), **facts)))
    with pytest.raises(UnsafeContentError, match=r"leads (out of|to something else)") as caught:
        converter.open(home / "m")
    assert caught.value.tensor == "a"


@pytest.mark.parametrize(
    ("facts", "error", "match"),
    [
        ({"location": "absent"}, NotFoundError, "is missing"),
        ({"location": "folder"}, NotFoundError, "not a regular file"),
        ({"location": "pipe"}, NotFoundError, "not a regular file"),
        ({"location": "d", "offset": 1}, CorruptFileError, "outside of the file"),
        ({"location": "d", "offset": 1 << 62}, CorruptFileError, "outside of the file"),
        ({"location": "d", "offset": -1}, CorruptFileError, "not a number"),
        ({"location": "d", "length": "ten"}, CorruptFileError, "not a number"),
        ({"location": "d", "length": 4}, CorruptFileError, "does not fit the shape"),
        ({"location": "d", "length": "9" * 30}, CorruptFileError, "not a number"),
    ],
)
def test_external_data_that_is_not_there(facts, error, match, tmp_path: Path) -> None:
    (tmp_path / "d").write_bytes(b"12345678")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "m").write_bytes(model(external("a", make("float32", (2,)), **facts)))
    with pytest.raises(error, match=match):
        converter.open(tmp_path / "m")


def test_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "MAX_FILES", 2)
    array = make("float32", (1,))
    for name in "abc":
        (tmp_path / name).write_bytes(array.tobytes())
    graph = b"".join(external(name, array, location=name) for name in "abc")
    (tmp_path / "m").write_bytes(model(graph))
    with pytest.raises(UnsupportedError, match="more than 2 files"):
        converter.open(tmp_path / "m")


# ── lies ─────────────────────────────────────────────────────────────────────────────────────────


def nested(depth: int) -> bytes:
    graph = graph_of({"w": np.ones(1, np.float32)})
    for _ in range(depth):
        graph = node("If", "y", attribute("then_branch", message(6, graph)))
    return graph


def bare(shape: tuple[int, ...], rest: bytes, code: int = 1) -> bytes:
    return message(5, header("t", shape, code) + rest)


W = make("float32", (2,))
LIES = {
    "two raw data's worth": (bare((2,), message(9, b"1234" * 3)), "does not fit the shape"),
    "raw data and floats": (bare((1,), message(9, b"1234") + message(4, b"1234")), "one form"),
    "no elements": (bare((2,), b""), "no elements"),
    "too few": (bare((2,), message(4, b"1234")), "does not fit the shape"),
    "too few integers": (bare((9,), message(7, b"\1"), 7), "too few elements"),
    "too many integers": (bare((1,), message(7, b"\1\2"), 7), "does not fit the shape"),
    "cut floats": (bare((2,), message(4, b"123") + message(4, b"12345")), "cut off"),
    "half a complex": (bare((1,), (varint(37) + b"1234") * 3, 14), "end inside an element"),
    "another field": (bare((1,), message(5, b"\1")), "not where those of float32 are"),
    "not uint8": (bare((1,), number(5, 256), 2), "not one of uint8"),
    "raw strings": (bare((1,), message(9, b"1"), 8), "strings are given as bytes"),
    "negative": (bare((-2,), b""), "negative"),
    "huge": (bare((1 << 40, 1 << 40), b""), "out of bounds"),
    "wraps to zero": (bare((1 << 32, 1 << 32), b""), "out of bounds"),
    "huge integers": (bare((1 << 40,), message(7, b"\1"), 7), "too few elements"),
    "huge strings": (bare((1 << 40,), message(6, b"x"), 8), "too few elements"),
    "many axes": (bare((1,) * 33, message(9, b"1234")), "too many axes"),
    "very many axes": (bare((1,) * 3000, message(9, b"1234")), "too many axes"),
    "twice": (graph_of({"a": W}) + graph_of({"a": W}), "two tensors have this name"),
    "no name": (graph_of({"": W}), "its name is empty"),
    "not text": (message(5, message(8, b"\xff")), "not UTF-8"),
    "deep": (nested(70), "nested more than 64 deep"),
    "very deep": (nested(3000), "nested more than 64 deep"),
    "beyond the graph": (varint(42) + varint(1 << 40) + b"x", "does not fit into it"),
    "overlong varint": (b"\x2a" + b"\xff" * 11, "longer than 64 bits"),
    "a group": (b"\x0b\x0c", "unknown wire type"),
    "field zero": (b"\x02\x00", "does not fit"),
}


@pytest.mark.parametrize(("graph", "match"), LIES.values(), ids=LIES)
def test_lies(graph: bytes, match: str, tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(model(graph))
    with pytest.raises(ConverterError, match=match) as caught:
        read(tmp_path / "m")
    assert caught.value.path == tmp_path / "m"


def test_two_graphs(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(model(b"", message(7, b"")))
    with pytest.raises(CorruptFileError, match="has one graph"):
        read(tmp_path / "m")


def test_overlapping_external_data(tmp_path: Path) -> None:
    (tmp_path / "d").write_bytes(bytes(4 << 20))
    array = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (1 << 20,), (0,))
    entries = b"".join(external(f"t{i}", array, location="d") for i in range(5000))
    (tmp_path / "m").write_bytes(model(entries))
    with pytest.raises(LimitError, match="far more bytes than are stored"):
        converter.open(tmp_path / "m")


def test_attacks_are_cheap(tmp_path: Path) -> None:
    (tmp_path / "deep").write_bytes(model(nested(20_000)))
    attack(tmp_path / "deep", "nested more than")
    (tmp_path / "pieces").write_bytes(model(bare((1 << 20,), message(7, b"\1") * (1 << 20), 7)))
    attack(tmp_path / "pieces", "pieces")
    one = header("t", (1 << 21,), 7) + message(7, b"\1" * (1 << 21)) + message(7, b"\1")
    (tmp_path / "many").write_bytes(model(message(5, one)))
    attack(tmp_path / "many", "does not fit the shape")


def test_the_number_of_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converter.formats._typed_fields.MAX_FIELDS", 100)
    (tmp_path / "m").write_bytes(model(message(2, "g") + b"\x50\0" * 200))
    with pytest.raises(LimitError, match="more than 100 fields"):
        converter.open(tmp_path / "m")


@pytest.mark.parametrize(
    "data",
    [
        b"\x08\x01\x12\x90\x80\x01\x0a\x04",  # a SavedModel
        b"\x08\x04\x12\x0c\x0a\x0a\x0a\x03abc\x12\x03def",  # another model of protocol buffers
        b"\x08\x01",
        b"\x08",
        b"",
        b"\x0a\x03abc\x12\x02ab",
        b"\x12\x03\xff\xfe\xfd",
    ],
)
def test_what_is_not_a_model(data: bytes) -> None:
    assert not onnx.recognise(formats.Probe(Path("x"), data, data))


# ── witnesses ────────────────────────────────────────────────────────────────────────────────────


def test_a_real_network(shared: Path) -> None:
    """The LSTM gates in another order, as the exporter of Keras' weights left them."""
    h5py = pytest.importorskip("h5py")
    expected = json.loads((shared / "real/expected/dtln_keras-h5__onnx_1.json").read_text())
    with converter.open(shared / "real/dtln/onnx/model_1.onnx") as checkpoint:
        found = {name: checkpoint[name].numpy() for name in expected}
        assert not checkpoint.unsupported
    with h5py.File(shared / "real/dtln/keras/model.h5") as file:
        weights = file.get("model_weights", file)
        for name, rule in expected.items():
            sources = dict(zip("ab", (weights[src][()] for src in rule["src"]), strict=False))
            wanted = eval(rule["expr"], {"np": np, **sources})  # noqa: S307 - our own file
            assert same(found[name], np.ascontiguousarray(wanted)), name


WRITE = """
import sys, onnx, numpy as np, ml_dtypes
from onnx import TensorProto, helper, numpy_helper
arrays = {name: array for name, array in np.load(sys.argv[1]).items()}
typed = sys.argv[3] == "typed"
tensors = []
for name, array in arrays.items():
    dtype, _, label = name.partition(" ")
    array = array.view(getattr(ml_dtypes, dtype, None) or np.dtype(dtype))
    if typed:
        code = helper.np_dtype_to_tensor_dtype(array.dtype)
        tensors.append(helper.make_tensor(name, code, array.shape, array.flatten().tolist()))
    else:
        tensors.append(numpy_helper.from_array(array, name))
graph = helper.make_graph([], "g", [], [], tensors)
options = {}
if sys.argv[3] == "external":
    options = dict(save_as_external_data=True, location="weights.bin", size_threshold=0)
onnx.save_model(helper.make_model(graph), sys.argv[2], **options)
"""


@pytest.mark.oracle
@pytest.mark.parametrize("how", ["raw", "typed", "external"])
def test_the_library_writes(how: str, tmp_path: Path) -> None:
    if missing("onnx"):
        pytest.skip("needs onnx")
    arrays = {}
    for dtype in CODES:
        if dtype != "string" and not (how == "typed" and dtype.startswith(("float6", "float4"))):
            for shape in ((), (0,), (3,), (2, 5)):
                array = make(dtype, shape)
                if how == "typed" and array.dtype.kind not in "biu":
                    array = np.arange(array.size).reshape(shape).astype(array.dtype)
                arrays[f"{dtype} {shape}"] = array
    plain = {
        n: a if a.dtype.kind in "biufc" and a.dtype.isbuiltin == 1 else a.view(f"u{a.itemsize}")
        for n, a in arrays.items()
    }
    np.savez(tmp_path / "a.npz", **plain)
    subprocess.run(
        [sys.executable, "-c", WRITE, tmp_path / "a.npz", tmp_path / "m.onnx", how], check=True
    )
    assert differences(read(tmp_path / "m.onnx"), arrays) == []
