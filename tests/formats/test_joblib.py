"""joblib's files against joblib, against pickle, and against hostile files."""

from __future__ import annotations

import bz2
import gzip
import lzma
import pickle
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conformance import Array, Arrays, differences, make, read, same
from reading import ReadingConformance, attack

import converter
from converter import formats
from converter.errors import ConverterError, UnsafeContentError
from converter.formats import joblib as ours
from converter.formats._pickle import Pickler
from tests.oracles import missing

CODES = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"]


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def dtype_of(dtype: np.dtype[Any]) -> bytes:
    if dtype.isbuiltin != 1:
        return pickle.dumps(dtype, 2)[2:-1]  # without PROTO and STOP
    code = f"{dtype.kind}{dtype.itemsize}"
    order = "|" if code in {"b1", "i1", "u1"} else "<"
    state = b"(K\x03" + text(order) + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"
    return b"cnumpy\ndtype\n(" + text(code) + b"\x89\x88tR" + state + b"b"


def wrapped(
    array: Array, at: int = 0, *, align: bool = True, order: str = "C", **lies: Any
) -> bytes:
    """An array as joblib writes it; its elements begin at a multiple of 16 from `at`."""
    shape = Pickler()
    shape._parts = []
    for n in lies.get("shape", array.shape):
        shape._parts.append(b"\x8a\x08" + struct.pack("<q", n))
    pieces = {
        "subclass": b"cnumpy\nndarray\n",
        "shape": b"(" + b"".join(shape._parts) + b"t",
        "order": text(order),
        "dtype": lies.get("dtype", dtype_of(array.dtype)),
        "allow_mmap": b"\x88",
    }
    if align:
        pieces["numpy_array_alignment_bytes"] = b"K\x10"
    head = b"cjoblib.numpy_pickle\nNumpyArrayWrapper\n)\x81}("
    head += b"".join(text(key) + value for key, value in pieces.items()) + b"ub"
    padding = b""
    if align:
        count = 16 - (at + len(head) + 1) % 16
        padding = bytes([count]) + b"\xff" * count
    return head + padding + array.tobytes(order)


def saved(arrays: Arrays, **options: Any) -> bytes:
    data = b"\x80\x02}("
    for name, array in arrays.items():
        data += text(name)
        data += wrapped(array, len(data), **options)
    return data + b"u."


class TestJoblib(ReadingConformance):
    format = "joblib"
    target = "model.joblib"
    shortest = 2  # one byte 80 is an empty map of Flax

    def make(self, path: Path, arrays: Arrays) -> None:
        path.write_bytes(saved(arrays))


A, B = make("float32", (3, 4)), make("int64", (5,))
COMPRESSORS = {
    "zlib": zlib.compress,
    "gzip": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
}


@pytest.mark.parametrize("kind", COMPRESSORS)
@pytest.mark.parametrize("size", [4, 300_000])
def test_compressed(kind: str, size: int, tmp_path: Path) -> None:
    arrays = {"a": A, "f": make("float32", (size,)), "z": np.zeros(size)}
    data = COMPRESSORS[kind](saved(arrays))
    (tmp_path / "m.joblib").write_bytes(data)
    assert differences(read(tmp_path / "m.joblib"), arrays) == []
    with converter.open(tmp_path / "m.joblib") as checkpoint:
        assert checkpoint["a"].extent is None
        assert same(checkpoint["f"].view.take(0, 1, 3).numpy(), arrays["f"][1:3])
    for cut in (len(data) // 2, len(data) - 1):
        (tmp_path / "m.joblib").write_bytes(data[:cut])
        with pytest.raises(ConverterError, match=r"truncated|does not inflate"):
            converter.open(tmp_path / "m.joblib")


def test_a_bomb(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(zlib.compress(b"\x80\x02" + bytes(1 << 28)))
    attack(tmp_path / "m", "far more than it stores|broken|ends early")


@pytest.mark.parametrize("align", [True, False])
def test_orders(align: bool, tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(saved({"a": A}, align=align, order="F"))
    assert differences(read(tmp_path / "m"), {"a": A}) == []


def test_a_single_array(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"\x80\x04" + wrapped(A, 2) + b".")
    assert differences(read(tmp_path / "m"), {"array": A}) == []


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_pickles(protocol: int, tmp_path: Path) -> None:
    content = {
        "w": A,
        "again": A,
        "list": [B, 3, {"n": np.float32(2)}],
        7: (B,),
        "big": B.astype(">i8"),
    }
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(content, protocol))
    expected = {"w": A, "again": A, "list/0": B, "7/0": B, "big": B}
    assert differences(read(tmp_path / "m.pkl"), expected) == []
    with converter.open(tmp_path / "m.pkl") as checkpoint:
        assert set(checkpoint.unsupported) == {"list/1", "list/2/n"}
        assert set(checkpoint.ties) == {("w", "again"), ("list/0", "7/0")}


class Model:
    """An object of a class that is not there when it is read."""


def test_objects(tmp_path: Path) -> None:
    model = Model()
    model.coef_, model.name = A, "ridge"
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(model, 4))
    with converter.open(tmp_path / "m.pkl") as checkpoint:
        assert same(checkpoint["coef_"].numpy(), A)
        assert checkpoint.unsupported == {"name": "str, not an array of numbers"}


OLD = b"\x80\x02cjoblib.numpy_pickle\nNDArrayWrapper\n)\x81}b."
LIES = {
    "short": (saved({"a": A})[:-20], "ends early"),
    "more": (saved({"a": A}) + b"x", "goes on after its pickle"),
    "huge": (saved({"a": A}, shape=(1 << 50,)), "ends early"),
    "too huge": (saved({"a": A}, shape=(1 << 40, 1 << 40)), "out of bounds"),
    "negative": (saved({"a": A}, shape=(-1,)), "negative"),
    "axes": (saved({"a": A}, shape=(1,) * 40), "too many axes"),
    "order": (saved({"a": A}).replace(text("C"), text("K")), "an array without a shape"),
    "no dtype": (saved({"a": A}, dtype=b"N"), "an array without a dtype"),
    "objects": (saved({"a": A}, dtype=dtype_of(np.dtype(object))), "an array of dtype O8"),
    "old": (OLD, "before 0.10"),
    "twice": (
        b"\x80\x02}(" + text("1") + wrapped(A, 9) + b"K\1" + wrapped(A, 9, align=False) + b"u.",
        "ends early|two tensors|broken",
    ),
    "deep": (b"\x80\x02" + b"]" * 300 + b"a" * 299 + b".", "nested more than 200"),
    "a key": (b"\x80\x02}" + b"NK\1s.", "keys of type NoneType"),
    "line": (b"\x80\x02c" + b"x" * 100, "does not end"),
    "long": (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62), "ends early"),
}


@pytest.mark.parametrize(("data", "match"), LIES.values(), ids=LIES)
def test_lies(data: bytes, match: str, tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(data)
    with pytest.raises(ConverterError, match=match) as caught:
        converter.open(tmp_path / "m")
    assert caught.value.path == tmp_path / "m"


@pytest.mark.parametrize("squeeze", [bytes, zlib.compress])
def test_nothing_is_run(squeeze: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = b"\x80\x02cos\nsystem\n(" + text("touch canary") + b"tR."
    (tmp_path / "m").write_bytes(squeeze(data + b""))
    with pytest.raises(UnsafeContentError, match=r"asks to call os\.system"):
        converter.open(tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_shared_containers_are_bounded(tmp_path: Path) -> None:
    data = b"\x80\x02]q\0" + b"".join(
        b"]q" + bytes([i]) + (b"h" + bytes([i - 1])).join([b"", b"a", b"a"]) for i in range(1, 60)
    )
    (tmp_path / "m").write_bytes(data + b".")
    attack(tmp_path / "m", "more entries than|broken")


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x80\x07", b"x\x9c", b"x\x9cabc", b"BZhxyz"])
def test_what_is_no_pickle(data: bytes) -> None:
    assert not ours.recognise(formats.Probe(Path("x"), data, data))


WRITE = """
import sys, numpy as np, joblib
with np.load(sys.argv[1]) as arrays:
    saved = {name: arrays[name] for name in arrays.files}
nested = {"model": saved, "more": [np.asfortranarray(saved["float32"]), 3]}
method = sys.argv[3]
joblib.dump(nested, sys.argv[2], compress=0 if method == "no" else (method, 3),
            protocol=int(sys.argv[4]))
"""


@pytest.mark.oracle
@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("method", ["no", "zlib", "gzip", "bz2", "xz", "lzma", "lz4"])
def test_joblib_writes(method: str, protocol: int, tmp_path: Path) -> None:
    if missing("joblib", "lz4"):
        pytest.skip("needs joblib and lz4")
    arrays = {np.dtype(code).name: make(np.dtype(code).name, (5, 7)) for code in CODES}
    arrays |= {"empty": make("float32", (0, 2)), "scalar": make("float32", ())}
    np.savez(tmp_path / "a.npz", **arrays)
    command = [sys.executable, "-c", WRITE, tmp_path / "a.npz", tmp_path / "m", method]
    subprocess.run([*command, str(protocol)], check=True)
    expected = {f"model/{name}": array for name, array in arrays.items()}
    expected["more/0"] = arrays["float32"]
    assert differences(read(tmp_path / "m"), expected) == []
