"""GGUF against its library, by hand, and files that lie."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conformance import Array, Arrays, differences, make, read, same
from reading import ReadingConformance, attack

import converter
from converter.errors import ConverterError
from converter.formats import gguf
from converter.tensors import dtype_of
from tests.oracles import missing

KINDS = {name: kind for kind, name in gguf._PLAIN.items()}


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def header(tensors: int, keys: int, *, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


def entry(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
    return text(name) + sizes + struct.pack("<IQ", kind, offset)


def saved(arrays: Arrays, keys: bytes = b"", count: int = 0, alignment: int = 32) -> bytes:
    entries, data = b"", b""
    for name, array in arrays.items():
        data += bytes(-len(data) % alignment)
        entries += entry(name, array.shape, KINDS[array.dtype.name], len(data))
        data += array.tobytes()
    head = header(len(arrays), count) + keys + entries
    return head + bytes(-len(head) % alignment) + data


class TestGguf(ReadingConformance):
    format = "gguf"
    target = "model.gguf"

    def library_holds(self, dtype: str, shape: tuple[int, ...]) -> bool:
        return bool(shape) or dtype != "bfloat16"

    def make(self, path: Path, arrays: Arrays) -> None:
        path.write_bytes(saved(arrays))


W = make("float32", (2, 3))


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def array_of(kind: int, count: int, values: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + values


def test_keys(tmp_path: Path) -> None:
    keys = [
        key("general.alignment", 4, struct.pack("<I", 64)),
        key("general.name", 8, text("größe")),
        key("rate", 6, struct.pack("<f", 0.5)),
        key("flag", 7, b"\1"),
        key("tokens", 9, array_of(8, 2, text("a") + text("bc"))),
        key("scores", 9, array_of(6, 2, bytes(8))),
        key("long", 8, text("x" * 5000)),
    ]
    (tmp_path / "m").write_bytes(saved({"w": W}, b"".join(keys), len(keys), alignment=64))
    assert differences(read(tmp_path / "m"), {"w": W}) == []
    with converter.open(tmp_path / "m") as checkpoint:
        assert checkpoint.metadata == {
            "general.alignment": "64",
            "general.name": "größe",
            "rate": "0.5",
            "flag": "True",
        }


def one(shape: tuple[int, ...] = (2, 3), kind: int = 0, offset: int = 0, data: int = 24) -> bytes:
    head = header(1, 0) + entry("w", shape, kind, offset)
    return head + bytes(-len(head) % 32 + data)


LIES = {
    "version": (b"GGUF" + struct.pack("<I", 1), "version 1"),
    "big-endian": (b"GGUF" + struct.pack(">I", 3), "big-endian"),
    "outside": (one(offset=32), "outside of the file"),
    "far outside": (one(offset=1 << 63), "outside of the file"),
    "huge": (one((1 << 40, 1 << 40)), "out of bounds"),
    "large": (one((1 << 40,)), "outside of the file"),
    "axes": (one((1,) * 33), "too many axes"),
    "blocks": (one((31,), 2), "whole number of blocks"),
    "many keys": (header(0, 1 << 60), "too many keys"),
    "many tensors": (header(1 << 60, 0) + bytes(100), "too many|empty|truncated"),
    "long name": (header(1, 0) + struct.pack("<Q", 1 << 62), "too long"),
    "not text": (header(1, 0) + struct.pack("<Q", 1) + b"\xff", "not UTF-8"),
    "a value": (header(0, 1) + key("k", 99, bytes(8)), "unknown type"),
    "an array": (header(0, 1) + key("k", 9, array_of(99, 1, bytes(8))), "unknown type"),
    "arrays": (header(0, 1) + key("k", 9, array_of(9, 1, bytes(8))), "array of arrays"),
    "long array": (header(0, 1) + key("k", 9, array_of(6, 1 << 62, b"")), "truncated"),
    "many strings": (header(0, 1) + key("k", 9, array_of(8, 1 << 62, b"")), "strings among"),
    "long string": (header(0, 1) + key("k", 8, struct.pack("<Q", 1 << 62)), "truncated"),
    "alignment": (header(0, 1) + key("general.alignment", 4, bytes(4)), "power of two"),
}


@pytest.mark.parametrize(("data", "match"), LIES.values(), ids=LIES)
def test_lies(data: bytes, match: str, tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(data)
    with pytest.raises(ConverterError, match=match) as caught:
        converter.open(tmp_path / "m")
    assert caught.value.path == tmp_path / "m"


def test_an_unknown_type_is_listed(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(one(kind=77))
    with converter.open(tmp_path / "m") as checkpoint:
        assert checkpoint.unsupported == {"w": "elements of type 77, which is not known"}


def test_attacks_are_cheap(tmp_path: Path) -> None:
    many = array_of(8, 1_000_000, bytes(8 * 1_000_000))
    (tmp_path / "strings").write_bytes(header(1, 1) + key("k", 9, many))
    attack(tmp_path / "strings", "truncated")
    overlap = b"".join(entry(str(i), (1 << 20,), 0, 0) for i in range(3000))
    (tmp_path / "overlap").write_bytes(header(3000, 0) + overlap + bytes(32 + (1 << 22)))
    attack(tmp_path / "overlap", "far more bytes")


WRITE = """
import sys, numpy as np, gguf
writer = gguf.GGUFWriter(sys.argv[1], "llama")
writer.add_string("general.name", "test")
writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
rng = np.random.default_rng(0)
expected = {}
for kind in gguf.GGMLQuantizationType:
    if kind.name in {"F32", "F16", "F64", "I8", "I16", "I32", "I64"}:
        dtype = kind.name.lower().replace("f", "float").replace("i", "int")
        array = rng.integers(-100, 100, (3, 5)).astype(dtype)
        writer.add_tensor(kind.name, array)
        expected[kind.name] = array
        continue
    block, width = gguf.GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (6, 4 * width), dtype=np.uint8)
    try:
        values = gguf.quants.dequantize(raw, kind)
    except NotImplementedError:
        continue
    writer.add_tensor(kind.name, raw, raw_dtype=kind)
    expected[kind.name] = raw.view(np.uint16) if kind.name == "BF16" else values
writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_tensors_to_file()
writer.close()
np.savez(sys.argv[2], **expected)
"""


@pytest.mark.oracle
def test_the_library_writes(tmp_path: Path) -> None:
    if missing("gguf"):
        pytest.skip("needs gguf")
    command = [sys.executable, "-W", "ignore", "-c", WRITE, tmp_path / "m", tmp_path / "a.npz"]
    subprocess.run(command, check=True)
    with np.load(tmp_path / "a.npz") as arrays:
        expected: dict[str, Any] = {name: arrays[name] for name in arrays.files}
    expected["BF16"] = expected["BF16"].view(dtype_of("bfloat16"))
    found = read(tmp_path / "m")
    unknown = {name for name in expected if name not in found}
    assert unknown <= {"Q1_0"}
    assert len(found) > 20
    assert differences(found, {n: a for n, a in expected.items() if n in found}) == []
    with converter.open(tmp_path / "m") as checkpoint:
        view = checkpoint["Q4_K"].view.reshape((checkpoint["Q4_K"].view.size,))
        part: Array = view.take(0, 300, 900).numpy()
        assert same(part, expected["Q4_K"].reshape(-1)[300:900])
