"""Frozen graphs against TensorFlow, against literal bytes, and against hostile files."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conformance import Array, Arrays, differences, read, same
from reading import ReadingConformance, attack, message, number, varint

import converter
from converter import formats
from converter.errors import ConverterError, LimitError
from converter.formats import graphdef
from converter.formats._tf import NUMBERS
from converter.layout import View
from converter.tensors import STRING, dtype_of
from tests.oracles import QUIET, missing


def shape_of(shape: tuple[int, ...]) -> bytes:
    return message(2, b"".join(message(2, number(1, n) if n else b"") for n in shape))


def const(name: str, dtype: int, shape: tuple[int, ...], rest: bytes, more: bytes = b"") -> bytes:
    tensor = number(1, dtype) + shape_of(shape) + rest
    value = message(5, message(1, "value") + message(2, message(8, tensor)))
    kind = message(5, message(1, "dtype") + message(2, number(6, dtype)))
    return message(1, name) + message(2, "Const") + kind + value + more


def whole(name: str, array: Array) -> bytes:
    code = NUMBERS[array.dtype]
    if array.dtype == STRING:
        rest = b"".join(message(8, text) for text in array.reshape(-1))
        if array.size and not any(array.reshape(-1)):
            rest = rest or message(8, b"")
        return const(name, code, array.shape, rest)
    return const(name, code, array.shape, message(4, array.tobytes()))


class TestGraphdef(ReadingConformance):
    format = "graphdef"
    target = "graph.pb"
    prefixes = True

    def make(self, path: Path, arrays: Arrays) -> None:
        path.write_bytes(b"".join(message(1, whole(n, a)) for n, a in arrays.items()))

    def library_holds(self, dtype: str, shape: tuple[int, ...]) -> bool:
        """Single values go through Python's, where some have no place."""
        return math.prod(shape) > 1 or not dtype.endswith("fnuz")

    def of_library(self, dtype: str) -> dict[str, Array]:
        """Complex numbers of two float32 go through Python's, which makes every NaN a quiet one."""
        arrays = super().of_library(dtype)
        return {n: quiet(a) for n, a in arrays.items()} if dtype == "complex64" else arrays


def quiet(array: Array) -> Array:
    """The same complex64 numbers, with the highest bit of every NaN's payload set."""
    parts = np.atleast_1d(array).copy().view("f4")
    bits = parts.view("u4") | (np.isnan(parts) * np.uint32(1 << 22))
    return bits.view("c8").reshape(array.shape)


FLOATS = np.array([1.5, -2], np.float32)


@pytest.mark.parametrize(
    ("dtype", "rest", "shape", "expected"),
    [
        ("float32", message(5, FLOATS.tobytes()), (2,), [1.5, -2]),
        ("float32", message(5, FLOATS.tobytes()), (2, 2), [1.5, -2, -2, -2]),
        ("float32", message(5, FLOATS.tobytes()[:4]), (1000, 1000), [1.5] * 1_000_000),
        ("float32", b"", (3,), [0, 0, 0]),
        (
            "float32",
            varint(45) + FLOATS.tobytes()[:4] + varint(45) + FLOATS.tobytes()[4:],
            (3,),
            [1.5, -2, -2],
        ),
        ("float64", message(6, np.array([0.1]).tobytes()), (2,), [0.1, 0.1]),
        ("int32", message(7, varint(-1) + varint(300)), (3,), [-1, 300, 300]),
        ("int32", number(7, 5) + number(7, 6), (3,), [5, 6, 6]),
        ("int8", message(7, varint(-128) + b"\x7f"), (2,), [-128, 127]),
        ("uint16", message(7, varint(65535)), (2,), [65535, 65535]),
        ("int4", message(7, varint(-8) + b"\7"), (3,), [-8, 7, 7]),
        ("uint2", message(7, b"\3"), (2,), [3, 3]),
        ("int64", message(10, varint(-(1 << 63))), (), [-(1 << 63)]),
        ("bool", message(11, b"\1\0"), (3,), [True, False, False]),
        ("float16", message(13, varint(0x3C00)), (2,), [1, 1]),
        ("bfloat16", message(13, varint(0x3F80) + varint(0xC000)), (3,), [1, -2, -2]),
        ("uint32", message(16, varint((1 << 32) - 1)), (1,), [(1 << 32) - 1]),
        ("uint64", message(17, varint((1 << 64) - 1)), (1,), [(1 << 64) - 1]),
        ("complex64", message(9, FLOATS.tobytes()), (2,), [1.5 - 2j, 1.5 - 2j]),
        ("complex128", message(12, np.array([1.0, 2]).tobytes()), (2,), [1 + 2j, 1 + 2j]),
        ("float8_e5m2", message(18, b"\x3c\x40"), (3,), [1, 2, 2]),
        ("string", message(8, b"a") + message(8, b""), (3,), [b"a", b"", b""]),
        ("float32", message(4, b""), (0,), []),
    ],
)
def test_typed_fields(dtype, rest, shape, expected, tmp_path: Path) -> None:
    kind = dtype_of(dtype)
    (tmp_path / "g").write_bytes(message(1, const("t", NUMBERS[kind], shape, rest)))
    with converter.open(tmp_path / "g") as checkpoint:
        found = checkpoint["t"].numpy()
        assert (found.dtype, found.shape) == (kind, shape)
        assert found.reshape(-1).tolist() == np.array(expected, kind).tolist()
        view: View = checkpoint["t"].view.reshape((found.size,))
        for start in range(min(found.size, 4)):
            part = view.take(0, start, min(start + 2, found.size)).numpy()
            assert same(part, found.reshape(-1)[start : start + 2])


def test_where_constants_are(tmp_path: Path) -> None:
    one = np.ones(2, np.float32)
    other = message(1, "add") + message(2, "Add") + message(3, "w")
    function = message(1, message(1, "f")) + message(3, whole("w", one)) + message(3, other)
    resource = const("r", 20, (1,), b"")
    ref = const("q", 12, (1,), message(4, b"\7"))
    pieces = [message(1, part) for part in (other, whole("w", one), resource, ref)]
    data = b"".join(pieces) + message(4, number(1, 9)) + message(2, message(1, function))
    (tmp_path / "g").write_bytes(data)
    expected = {"w": one, "f/w": one, "q": np.array([7], np.uint8)}
    assert differences(read(tmp_path / "g"), expected) == []
    with converter.open(tmp_path / "g") as checkpoint:
        assert checkpoint.unsupported == {"r": "resource handles are not tensors of numbers"}


LIES = {
    "too long": (const("t", 1, (1,), message(4, bytes(8))), "does not fit the shape"),
    "too short": (const("t", 1, (2,), message(4, bytes(4))), "does not fit the shape"),
    "too many": (const("t", 1, (1,), message(5, bytes(8))), "does not fit the shape"),
    "two forms": (const("t", 1, (1,), message(4, bytes(4)) + message(5, bytes(4))), "one form"),
    "another field": (const("t", 1, (1,), message(7, b"\1")), "not where those of float32 are"),
    "cut": (const("t", 1, (3,), message(5, bytes(5))), "cut off"),
    "half a complex": (const("t", 8, (3,), message(9, bytes(4))), "end inside an element"),
    "not int8": (const("t", 6, (1,), number(7, 128)), "not one of int8"),
    "not int4": (const("t", 29, (1,), number(7, 8)), "not one of int4"),
    "not half": (const("t", 19, (1,), number(13, 1 << 16)), "not one of uint16"),
    "negative": (const("t", 1, (-1,), b""), "negative"),
    "huge": (const("t", 1, (1 << 40, 1 << 40), b""), "out of bounds"),
    "bomb": (const("t", 1, (1 << 40,), message(5, bytes(4))), "far more bytes than are stored"),
    "axes": (const("t", 1, (1,) * 33, b""), "too many axes"),
    "no value": (message(1, "t") + message(2, "Const"), "has one value"),
    "twice": (const("t", 1, (), b"") + const("t", 1, (), b""), "has one value"),
}


@pytest.mark.parametrize(("node", "match"), LIES.values(), ids=LIES)
def test_lies(node: bytes, match: str, tmp_path: Path) -> None:
    (tmp_path / "g").write_bytes(message(1, node))
    with pytest.raises(ConverterError, match=match) as caught:
        read(tmp_path / "g")
    assert (caught.value.path, caught.value.tensor) in {(tmp_path / "g", "t"), (tmp_path / "g", "")}


def test_a_name_twice(tmp_path: Path) -> None:
    (tmp_path / "g").write_bytes(message(1, const("t", 1, (), b"")) * 2)
    with pytest.raises(ConverterError, match="two tensors have this name"):
        read(tmp_path / "g")


def test_attacks_are_cheap(tmp_path: Path) -> None:
    many = b"".join(message(1, const(f"t{i}", 1, (1 << 28,), b"")) for i in range(2000))
    (tmp_path / "bombs").write_bytes(many)
    attack(tmp_path / "bombs", "far more bytes than are stored")
    pieces = message(1, const("t", 3, (1 << 21,), message(7, b"\1") * (1 << 18)))
    (tmp_path / "pieces").write_bytes(pieces)
    attack(tmp_path / "pieces", "pieces")
    one = message(1, const("t", 3, (1 << 20,), message(7, b"\1" * (1 << 21))))
    (tmp_path / "many").write_bytes(one)
    attack(tmp_path / "many", "does not fit")


def test_the_number_of_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("converter.formats._typed_fields.MAX_FIELDS", 100)
    (tmp_path / "g").write_bytes(message(1, const("t", 1, (), b"")) + b"\x50\0" * 200)
    with pytest.raises(LimitError, match="more than 100 fields"):
        converter.open(tmp_path / "g")


@pytest.mark.parametrize("data", [b"\x0a\x05VGG16\x12\x02ab", b"\x0a", b"", b"\n\n\n", b"\x0a\x00"])
def test_what_is_not_a_graph(data: bytes) -> None:
    assert not graphdef.recognise(formats.Probe(Path("x"), data, data))


WRITE = """
import sys
import numpy as np
import tensorflow as tf
arrays = {}
with tf.Graph().as_default() as graph:
    rng = np.random.default_rng(0)
    for dtype in (tf.float32, tf.float64, tf.float16, tf.bfloat16, tf.int8, tf.uint8, tf.int16,
                  tf.uint16, tf.int32, tf.int64, tf.uint32, tf.uint64, tf.complex64,
                  tf.complex128, tf.bool):
        for shape in ((), (0,), (1,), (70,), (3, 4)):
            for kind in ("random", "same"):
                noise = rng.integers(0, 100, shape) if kind == "random" else np.full(shape, 7)
                array = noise.astype(dtype.as_numpy_dtype)
                name = f"{dtype.name}/{'x'.join(map(str, shape))}/{kind}"
                arrays[tf.constant(array, name=name).op.name] = array
        arrays[tf.fill([5, 5], tf.constant(array.dtype.type(1), name=f"{dtype.name}/one")).op
               .inputs[1].op.name] = np.ones((), array.dtype)
    for node in graph.as_graph_def().node:
        if node.op == "Const" and node.name not in arrays:
            arrays[node.name] = tf.make_ndarray(node.attr["value"].tensor)
    data = graph.as_graph_def().SerializeToString()
open(sys.argv[1], "wb").write(data)
plain = {f"{a.dtype.name}|{n}": a.view(f"u{a.itemsize}") for n, a in arrays.items()
         if a.itemsize <= 8}
plain |= {f"{a.dtype.name}|{n}": a for n, a in arrays.items() if a.itemsize > 8}
np.savez(sys.argv[2], **plain)
"""


@pytest.mark.oracle
def test_tensorflow_writes(tmp_path: Path) -> None:
    if missing("tensorflow"):
        pytest.skip("needs tensorflow")
    command = [sys.executable, "-c", WRITE, tmp_path / "g.pb", tmp_path / "a.npz"]
    done = subprocess.run(
        command, env=os.environ | QUIET, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    expected = {}
    with np.load(tmp_path / "a.npz") as arrays:
        for key in arrays.files:
            dtype, _, name = key.partition("|")
            expected[name] = arrays[key].view(dtype_of(dtype))
    assert len(expected) > 150
    assert differences(read(tmp_path / "g.pb"), expected) == []
