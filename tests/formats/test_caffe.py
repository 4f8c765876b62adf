"""Caffe's nets, by hand as their specification says, and files that lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conformance import Array, Arrays, differences, make, read
from reading import ReadingConformance, attack, message, number, varint

import converter
from converter import formats
from converter.errors import ConverterError
from converter.formats import caffe


def blob(array: Array, *, old: bool = False) -> bytes:
    data = message(8 if array.dtype == np.float64 else 5, array.tobytes())
    if old:
        sizes = (1,) * (4 - array.ndim) + array.shape
        return b"".join(number(i, n) for i, n in enumerate(sizes, 1)) + data
    return data + message(7, message(1, b"".join(map(varint, array.shape))))


def layer(name: str, *arrays: Array) -> bytes:
    blobs = b"".join(message(7, blob(array)) for array in arrays)
    return message(100, message(1, name) + message(2, "Convolution") + message(3, "data") + blobs)


class TestCaffe(ReadingConformance):
    format = "caffe"
    target = "net.caffemodel"
    suffix = "/0"
    prefixes = True

    def make(self, path: Path, arrays: Arrays) -> None:
        """Each tensor is the only blob of its layer."""
        layers = [layer(name, array) for name, array in arrays.items()]
        path.write_bytes(message(1, "net") + b"".join(layers))

    def library_holds(self, dtype: str, shape: tuple[int, ...]) -> bool:
        return dtype == "float32" or 0 not in shape  # no element tells the dtype

    def of_library(self, dtype: str) -> dict[str, Array]:
        """Python's floats, which the library takes, do not keep a NaN's bits."""
        return {n: np.nan_to_num(array) for n, array in super().of_library(dtype).items()}


KERNEL, BIAS = make("float32", (4, 3, 2, 2)), make("float32", (4,))


def test_a_layer_has_several(tmp_path: Path) -> None:
    data = message(1, "VGG") + layer("data") + layer("conv1", KERNEL, BIAS)
    (tmp_path / "n").write_bytes(data + layer("bn/x", BIAS, BIAS.astype(np.float64)))
    expected = {"conv1/0": KERNEL, "conv1/1": BIAS, "bn/x/0": BIAS}
    expected["bn/x/1"] = BIAS.astype(np.float64)
    assert differences(read(tmp_path / "n"), expected) == []


def test_the_layers_before(tmp_path: Path) -> None:
    blobs = message(6, blob(KERNEL, old=True)) + message(6, blob(BIAS, old=True))
    v1 = message(2, message(2, "data") + message(4, "conv1") + number(5, 4) + blobs)
    blobs = message(50, blob(KERNEL, old=True)) + message(50, blob(BIAS, old=True))
    v0 = message(2, message(1, message(1, "conv2") + message(2, "conv") + blobs))
    (tmp_path / "n").write_bytes(message(1, "CaffeNet") + v1 + v0)
    flat = BIAS.reshape(1, 1, 1, 4)
    expected = {"conv1/0": KERNEL, "conv1/1": flat, "conv2/0": KERNEL, "conv2/1": flat}
    assert differences(read(tmp_path / "n"), expected) == []


def test_without_a_name(tmp_path: Path) -> None:
    (tmp_path / "n").write_bytes(layer("conv1", BIAS))
    assert differences(read(tmp_path / "n"), {"conv1/0": BIAS}) == []
    (tmp_path / "n").write_bytes(
        message(2, message(4, "conv1") + number(5, 4) + message(6, blob(BIAS)))
    )
    assert differences(read(tmp_path / "n"), {"conv1/0": BIAS}) == []


def test_floats_one_by_one_and_scalars(tmp_path: Path) -> None:
    raw = BIAS.tobytes()
    single = b"".join(varint(5 << 3 | 5) + raw[i : i + 4] for i in range(0, 16, 4))
    sizes = message(7, number(1, 2) + number(1, 2))
    scalar = message(7, b"") + message(5, raw[:4])
    content = message(1, "a") + message(7, single + sizes) + message(7, scalar)
    (tmp_path / "n").write_bytes(message(1, "net") + message(100, content))
    expected = {"a/0": BIAS.reshape(2, 2), "a/1": BIAS[0].reshape(())}
    assert differences(read(tmp_path / "n"), expected) == []


def test_what_is_listed(tmp_path: Path) -> None:
    half = message(7, message(1, b"\2")) + message(12, bytes(4))
    blobs = message(7, blob(BIAS) + message(6, BIAS.tobytes())) + message(7, half)
    blobs += message(7, message(7, message(1, b"\2")))
    (tmp_path / "n").write_bytes(message(1, "net") + message(100, message(1, "a") + blobs))
    with converter.open(tmp_path / "n") as checkpoint:
        assert list(checkpoint) == ["a/0"]
        assert checkpoint.unsupported == {
            "a/0/diff": "gradients of a solver's snapshot",
            "a/1": "raw data, as another version of Caffe writes it",
            "a/2": "a blob of shape [2] without elements",
        }


def bare(content: bytes) -> bytes:
    return message(100, message(1, "a") + message(7, content))


def dims(*sizes: int) -> bytes:
    return message(7, message(1, b"".join(map(varint, sizes))))


LIES = {
    "too long": (bare(dims(1) + message(5, bytes(8))), "does not fit the shape"),
    "too short": (bare(dims(3) + message(5, bytes(8))), "does not fit the shape"),
    "no shape": (bare(message(5, bytes(8))), "does not fit the shape"),
    "two forms": (bare(dims(1) + message(5, bytes(4)) + message(8, bytes(8))), "one form"),
    "pieces": (bare(dims(4) + message(5, bytes(4)) * 2), "does not fit the shape"),
    "cut": (bare(dims(2) + message(5, bytes(5)) + message(5, bytes(5))), "cut off"),
    "negative": (bare(dims(-1) + message(5, bytes(4))), "negative"),
    "huge": (bare(dims(1 << 40, 1 << 40) + message(5, bytes(4))), "out of bounds"),
    "axes": (bare(dims(*(1,) * 33) + message(5, bytes(4))), "too many axes"),
    "more axes": (bare(dims(*(1,) * 3300) + message(5, bytes(4))), "too many axes"),
    "twice": (bare(dims(1) + message(5, bytes(4))) * 2, "two tensors have this name"),
    "beyond": (bare(b"")[:-1] + b"\x7f", "does not fit into it"),
}


@pytest.mark.parametrize(("data", "match"), LIES.values(), ids=LIES)
def test_lies(data: bytes, match: str, tmp_path: Path) -> None:
    (tmp_path / "n").write_bytes(message(1, "net") + data)
    with pytest.raises(ConverterError, match=match) as caught:
        read(tmp_path / "n")
    assert caught.value.path == tmp_path / "n"


def test_attacks_are_cheap(tmp_path: Path) -> None:
    pieces = bare(dims(1 << 20) + (varint(45) + bytes(4) + varint(80) + b"\0") * (1 << 18))
    (tmp_path / "pieces").write_bytes(message(1, "net") + pieces)
    attack(tmp_path / "pieces", "pieces")
    (tmp_path / "sizes").write_bytes(message(1, "net") + bare(message(7, number(1, 1) * (1 << 18))))
    attack(tmp_path / "sizes", "too many axes")


@pytest.mark.parametrize(
    "data",
    [b"\x0a\x03abc", b"\x0a", b"", b"\x12\x05hello", b"\x0a\x07\x0a\x01a\x12\x02Op\x12\x00"],
)
def test_what_is_not_a_net(data: bytes) -> None:
    assert not caffe.recognise(formats.Probe(Path("x"), data, data))
