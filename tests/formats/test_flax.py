"""Flax's msgpack against Flax and msgpack, against literal bytes, and against hostile files."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conformance import (
    Array,
    Arrays,
    FormatConformance,
    differences,
    make,
    read,
    same,
)

import converter
from converter import formats
from converter.errors import (
    ConverterError,
    CorruptFileError,
    LimitError,
    UnrepresentableError,
    UnsupportedError,
)
from converter.formats import flax
from converter.tensors import TensorSpec


def nested(arrays: Arrays) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *groups, leaf = name.split("/")
        place = tree
        for group in groups:
            place = place.setdefault(group, {})
        place[leaf] = array
    return tree


def flat(tree: Any, name: str = "") -> dict[str, Array]:
    if not isinstance(tree, dict):
        return {name: np.asarray(tree)}
    pairs = (flat(child, f"{name}/{key}" if name else key) for key, child in tree.items())
    return {key: value for found in pairs for key, value in found.items()}


class TestFlax(FormatConformance):
    format = "flax"
    target = "model.msgpack"

    def oracle_read(self, path: Path) -> dict[str, Array]:
        serialization = pytest.importorskip("flax.serialization")
        return flat(serialization.msgpack_restore(path.read_bytes()))

    def oracle_write(self, path: Path, arrays: Arrays) -> None:
        serialization = pytest.importorskip("flax.serialization")
        path.write_bytes(serialization.msgpack_serialize(nested(arrays)))


def saved(path: Path, arrays: Arrays) -> bytes:
    TestFlax().write(path, arrays)
    return path.read_bytes()


@pytest.mark.oracle
def test_the_bytes_are_those_of_flax(tmp_path: Path) -> None:
    serialization = pytest.importorskip("flax.serialization")
    shapes = [(), (0,), (3,), (200,), (70_000,), (2, 3, 4), (1, 128, 0), (1,) * 17]
    arrays = {f"a/{'k' * n}/{n}": make("uint8", shape) for n, shape in enumerate(shapes, 1)}
    arrays |= {f"{'x' * 40}/{n}": make("float32", (n,)) for n in range(40)}
    arrays["sixteen/k"] = make("int8", (2, 2, 1))
    expected = serialization.msgpack_serialize(nested(arrays), in_place=True)
    assert saved(tmp_path / "m.msgpack", {n: arrays[n] for n in flat(nested(arrays))}) == expected


@pytest.mark.oracle
@pytest.mark.parametrize("limit", [16, 24, 100])
def test_arrays_in_pieces(limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serialization = pytest.importorskip("flax.serialization")
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", limit)
    monkeypatch.setattr(flax, "MAX_CHUNK", limit)
    arrays = {
        "a/w": make("float32", (5, 3)),
        "a/b": make("float64", (2,)),
        "h": make("int16", (9,)),
    }
    expected = serialization.msgpack_serialize(nested(arrays), in_place=True)
    (tmp_path / "f").write_bytes(expected)
    assert differences(read(tmp_path / "f"), arrays) == []
    for piece in (1, 4, 100):
        TestFlax().write(tmp_path / "m.msgpack", arrays, limit=piece, overwrite=True)
        assert (tmp_path / "m.msgpack").read_bytes() == expected
    with converter.open(tmp_path / "f") as checkpoint:
        part = checkpoint["a/w"].view.take(0, 1, 4).numpy()
    assert same(part, arrays["a/w"][1:4])


@pytest.mark.oracle
def test_a_training_state(tmp_path: Path) -> None:
    serialization = pytest.importorskip("flax.serialization")
    state = {
        "step": 3,
        "rate": 0.5,
        "done": False,
        "none": None,
        "name": "ü" * 20,
        "z": 1 + 2j,
        "scalar": np.float32(2),
        "params": {"Dense_0": {"kernel": make("float32", (3, 4))}},
        "opt_state": {"0": {}, "1": {"mu": np.arange(3)}},
        "list": [np.arange(2), 5],
        "raw": b"abc",
        "big": 1 << 40,
        "minus": -3,
    }
    (tmp_path / "m").write_bytes(serialization.msgpack_serialize(state))
    with converter.open(tmp_path / "m") as checkpoint:
        names = ["list/0", "opt_state/1/mu", "params/Dense_0/kernel", "scalar"]
        assert sorted(checkpoint) == names
        assert checkpoint["scalar"].spec == TensorSpec((), np.dtype("f4"))
        reasons = dict(checkpoint.unsupported)
    assert reasons == {
        "step": "int 3, not an array",
        "rate": "float 0.5, not an array",
        "done": "bool False, not an array",
        "none": "nothing, not an array",
        "name": f"str {'ü' * 20}, not an array",
        "z": "complex, not an array",
        "opt_state/0": "dict {}, not an array",
        "list/1": "int 5, not an array",
        "raw": "3 bytes, not an array",
        "big": f"int {1 << 40}, not an array",
        "minus": "int -3, not an array",
    }


def test_the_bytes_of_a_file(tmp_path: Path) -> None:
    data = saved(tmp_path / "m", {"p/w": np.array([[1, 2]], "<i2"), "p/b": np.float32(1)})
    assert data == (
        b"\x81\xa1p\x82"
        b"\xa1w\xc7\x10\x01\x93\x92\x01\x02\xa5int16\xc4\x04\x01\x00\x02\x00"
        b"\xa1b\xc7\x10\x01\x93\x90\xa7float32\xc4\x04\x00\x00\x80\x3f"
    ).replace(b"\xc7\x10", b"\xd8")


# ── hostile files ────────────────────────────────────────────────────────────────────────────


def array(shape: bytes = b"\x91\x02", dtype: bytes = b"\xa5uint8", data: bytes = b"\xc4\x02ab"):
    body = b"\x93" + shape + dtype + data
    return b"\xc7" + bytes([len(body), 1]) + body


PIECES = b"\x81\xa1w\x83\xd9\x19" + flax.CHUNKED.encode() + b"\xc3\xa5shape"
WRONG: dict[str, tuple[bytes, str]] = {
    "truncated": (b"\x81\xa1w" + array()[:-1], "truncated"),
    "trailing": (b"\x81\xa1w" + array() + b"\0", "goes on after its end"),
    "count": (b"\xdf\xff\xff\xff\xff\xa1w", "more than 4000000 entries"),
    "list_count": (b"\x81\xa1w\xdd\xff\xff\xff\xff", "more than 4000000 entries"),
    "length": (b"\x81\xa1w\xdb\xff\xff\xff\xff", "truncated"),
    "blob": (b"\x81\xa1w\xc6\xff\xff\xff\xff", "truncated"),
    "extension": (b"\x81\xa1w\xc9\xff\xff\xff\xff\x05", "truncated"),
    "deep": (b"\x81\xa1w" * 50_000, "nested more than 100 deep"),
    "deep_list": (b"\x81\xa1w" + b"\x91" * 50_000, "nested more than 100 deep"),
    "deep_shape": (b"\x81\xa1w" + array(b"\x91" * 20), "nested more than 100|not the header"),
    "twice": (b"\x82\xa1w" + array() + b"\xa1w" + array(), "there twice"),
    "one_and_text": (b"\x82\xa1" + b"1" + array() + b"\x01" + array(), "there twice"),
    "key": (b"\x82\xa1w\x01\xc0\x01", "a key is not text"),
    "utf8": (b"\x81\xa1w\xa1\xff", "not UTF-8"),
    "code": (b"\x81\xa1w\xc1", "not msgpack"),
    "size": (b"\x81\xa1w" + array(b"\x91\x03"), "do not give the size"),
    "huge": (b"\x81\xa1w" + array(b"\x91\xcf" + b"\xff" * 8), "out of bounds"),
    "wrap": (b"\x81\xa1w" + array(b"\x92" + b"\xcf\x20\0\0\0\0\0\0\0" * 2), "out of bounds"),
    "zero_wrap": (b"\x81\xa1w" + array(b"\x93\0" + b"\xcf\x20\0\0\0\0\0\0\0" * 2), "out of bounds"),
    "rank": (b"\x81\xa1w" + array(b"\xdc\0\x21" + b"\1" * 33), "out of bounds"),
    "negative": (b"\x81\xa1w" + array(b"\x91\xff"), "not the header of an array"),
    "float_shape": (b"\x81\xa1w" + array(b"\x91\xca\0\0\0\0"), "not the header of an array"),
    "shape_text": (b"\x81\xa1w" + array(b"\xa12"), "not the header of an array"),
    "no_data": (b"\x81\xa1w" + array(data=b"\x01"), "not the header of an array"),
    "two_sizes": (b"\x81\xa1w\xc7\x20" + array()[2:] + bytes(16), "another size than announced"),
    "control": (b"\x82\xa1w\x01\xa1\x1b" + array(), "its name has a control"),
    "empty_name": (b"\x82\xa1w\x01\xa0" + array(), "its name is empty"),
    "pieces_none": (PIECES + b"\x80\xa6chunks\x80", "pieces of an array do not fit"),
    "pieces_keys": (PIECES + b"\x81\xa11\x02\xa6chunks\x81\xa10" + array(), "do not fit"),
    "pieces_size": (PIECES + b"\x81\xa10\x03\xa6chunks\x81\xa10" + array(), "do not fit"),
    "pieces_text": (PIECES + b"\x81\xa10\xa1x\xa6chunks\x81\xa10" + array(), "do not fit"),
    "pieces_dtypes": (
        PIECES
        + b"\x81\xa10\x04\xa6chunks\x82\xa10"
        + array()
        + b"\xa11"
        + array(dtype=b"\xa4int8"),
        "do not fit",
    ),
}


@pytest.mark.parametrize("attack", WRONG)
def test_an_attack_is_refused(attack: str, tmp_path: Path) -> None:
    data, reason = WRONG[attack]
    (tmp_path / "m").write_bytes(data)
    start = time.process_time()
    with pytest.raises((CorruptFileError, LimitError), match=reason) as caught:
        formats.open_checkpoint(tmp_path / "m")
    assert time.process_time() - start < 2
    assert caught.value.path == tmp_path / "m"


def test_pieces_that_are_good(tmp_path: Path) -> None:
    chunks = b"\x82\xa10" + array() + b"\xa11" + array()
    (tmp_path / "m").write_bytes(PIECES + b"\x82\xa10\x02\xa11\x02\xa6chunks" + chunks)
    assert read(tmp_path / "m")["w"].tolist() == [[97, 98], [97, 98]]


def test_names_that_meet(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"\x82\xa3a/b" + array() + b"\xa1a\x81\xa1b" + array())
    with pytest.raises(UnsupportedError, match="two entries get this name"):
        formats.open_checkpoint(tmp_path / "m")


@pytest.mark.parametrize("dtype", [b"\xa3str", b"\xa6object", b"\xa6string", b"\xa4void"])
def test_a_dtype_that_has_no_array(dtype: bytes, tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"\x81\xa1w" + array(dtype=dtype))
    with formats.open_checkpoint(tmp_path / "m") as checkpoint:
        assert not checkpoint
        assert set(checkpoint.unsupported) == {"w"}


@pytest.mark.parametrize(
    "data",
    [b"\x80\x02}q\x00.", b"\x81\xa0", b"\x81\xa2\x00\x01", b"\xde", b"\x93\1\2\3", b"\x81\x05"],
)
def test_another_file_is_not_recognised(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.msgpack").write_bytes(data)
    assert not formats.named("flax").load().recognise(formats.probe(tmp_path / "m.msgpack"))


def test_what_cannot_be_written(tmp_path: Path) -> None:
    row, f4 = formats.named("flax"), np.dtype("f4")
    for specs, reason in (
        ({"a": TensorSpec((), f4), "a/b": TensorSpec((), f4)}, "a map of another tensor's"),
        ({"a/b": TensorSpec((), f4), "a": TensorSpec((), f4)}, "a map of another tensor's"),
        ({"/".join("a" * 120): TensorSpec((), f4)}, "too many parts"),
        ({f"a/{flax.CHUNKED}": TensorSpec((), f4)}, "a meaning of its own"),
        ({"a": TensorSpec((1,) * 33, f4)}, "more than 32 axes"),
        ({"a": TensorSpec((), np.dtype(">f4"))}, "foreign order"),
    ):
        with pytest.raises(UnrepresentableError, match=reason):
            formats.create(tmp_path / "m", row, specs)
    assert list(tmp_path.iterdir()) == []


def test_mutants(tmp_path: Path) -> None:
    raw = saved(tmp_path / "m", {"a/w": make("int16", (4, 2)), "a/b": make("bool", (3,))})
    for bit in range(8 * len(raw)):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        (tmp_path / "m").write_bytes(changed)
        try:
            read(tmp_path / "m")
        except ConverterError:
            continue


def test_many_tensors_open_quickly(tmp_path: Path) -> None:
    count = 30_000
    entries = (struct.pack(">BB6s", 0xA6, 0, b"")[:1] + b"%06d" % n + array() for n in range(count))
    (tmp_path / "m").write_bytes(b"\xdf" + struct.pack(">I", count) + b"".join(entries))
    start = time.process_time()
    with formats.open_checkpoint(tmp_path / "m") as checkpoint:
        assert len(checkpoint) == count
    assert time.process_time() - start < 2
