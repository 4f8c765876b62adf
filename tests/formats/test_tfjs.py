"""TensorFlow.js' weights: files by hand, as its specification says, and files that lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conformance import Array, Arrays, differences, make, read, same
from reading import ReadingConformance, attack

import converter
from converter import formats
from converter.errors import ConverterError, NotFoundError, UnsafeContentError
from converter.formats import tfjs
from converter.tensors import STRING


def stored(array: Array) -> bytes:
    if array.dtype == STRING:
        return b"".join(len(text).to_bytes(4, "little") + text for text in array.reshape(-1))
    return array.tobytes()


def entry(name: str, array: Array, **more: Any) -> dict[str, Any]:
    dtype = "string" if array.dtype == STRING else array.dtype.name
    return {"name": name, "shape": list(array.shape), "dtype": dtype, **more}


def save(path: Path, weights: list[dict[str, Any]], data: bytes, *, shard: int = 1 << 22) -> None:
    cuts = range(0, len(data), shard)
    names = [f"group1-shard{i}of{len(cuts)}.bin" for i in range(1, len(cuts) + 1)]
    for name, start in zip(names, cuts, strict=True):
        (path.parent / name).write_bytes(data[start : start + shard])
    manifest = [{"paths": names, "weights": weights}]
    text = {"format": "layers-model", "modelTopology": {}, "weightsManifest": manifest}
    path.write_text(json.dumps(text))


class TestTfjs(ReadingConformance):
    format = "tfjs"
    target = "model.json"

    def make(self, path: Path, arrays: Arrays) -> None:
        weights = [entry(name, array) for name, array in arrays.items()]
        save(path, weights, b"".join(map(stored, arrays.values())))


@pytest.mark.parametrize("shard", [1, 3, 7, 64])
def test_tensors_across_shards(shard: int, tmp_path: Path) -> None:
    arrays = {
        "a": make("float32", (4, 5)),
        "s": make("string", (3,)),
        "b": make("uint8", (3,)),
        "e": make("float32", (0, 2)),
        "c": make("complex64", (5,)),
    }
    if shard < 7:
        arrays.pop("s")
    data = b"".join(map(stored, arrays.values()))
    save(tmp_path / "m.json", [entry(n, a) for n, a in arrays.items()], data, shard=shard)
    assert differences(read(tmp_path / "m.json"), arrays) == []
    with converter.open(tmp_path / "m.json") as checkpoint:
        assert same(checkpoint["a"].view.take(0, 1, 3).numpy(), arrays["a"][1:3])
        assert sorted(checkpoint.files) == sorted(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["uint8", "uint16"])
def test_quantised(kind: str, tmp_path: Path) -> None:
    small = np.array([0, 1, 2, 199, 200, 255], kind)
    facts = {"dtype": kind, "scale": 0.1, "min": -1.25}
    halves = {"dtype": kind, "scale": 0.5, "min": -1}
    zero = np.zeros((2, 3))
    weights = [
        entry("f", zero.astype(np.float32), quantization=facts),
        entry("i", zero.astype(np.int32), quantization=halves),
        entry("h", zero.astype(np.float32), quantization={"dtype": "float16"}),
    ]
    half = make("float16", (2, 3))
    with np.errstate(invalid="ignore"):
        wide = half.astype(np.float32)
    save(tmp_path / "m.json", weights, small.tobytes() * 2 + half.tobytes(), shard=5)
    found = read(tmp_path / "m.json")
    expected = (small.astype(np.float64) * 0.1 - 1.25).astype(np.float32).reshape(2, 3)
    assert same(found["f"], expected)
    assert found["i"].tolist() == [[-1, 0, 0], [99, 99, 127]]
    np.testing.assert_array_equal(found["h"], wide)


def test_groups_the_old_manifest_and_folders(tmp_path: Path) -> None:
    one, two = make("float32", (3,)), make("int32", (2,))
    (tmp_path / "a").write_bytes(one.tobytes())
    (tmp_path / "b").write_bytes(two.tobytes())
    groups = [
        {"paths": ["a"], "weights": [entry("one", one)]},
        {"paths": ["b"], "weights": [entry("two", two)]},
        {"paths": [], "weights": []},
    ]
    (tmp_path / "weights_manifest.json").write_text(json.dumps(groups))
    expected = {"one": one, "two": two}
    assert differences(read(tmp_path / "weights_manifest.json"), expected) == []
    large = {"modelTopology": {"x": "y" * 5000}, "weightsManifest": groups, "z": "y" * 5000}
    (tmp_path / "model.json").write_text(json.dumps({**large, "convertedBy": "me"}))
    assert differences(read(tmp_path), expected) == []
    with converter.open(tmp_path) as checkpoint:
        assert checkpoint.metadata == {"convertedBy": "me"}


W = np.arange(3, dtype=np.float32)
LIES: dict[str, tuple[Any, bytes, str]] = {
    "too short": ([entry("w", W)], bytes(11), "truncated"),
    "too long": ([entry("w", W)], bytes(13), "more than the manifest"),
    "twice": ([entry("w", W), entry("w", W)], bytes(24), "two tensors have this name"),
    "dtype": ([{**entry("w", W), "dtype": "int64"}], bytes(24), "of dtype int64"),
    "dtype that is none": ([{**entry("w", W), "dtype": [1]}], bytes(24), "of dtype"),
    "negative": ([{**entry("w", W), "shape": [-3]}], bytes(12), "negative"),
    "huge": ([{**entry("w", W), "shape": [1 << 60]}], bytes(12), "out of bounds"),
    "large": ([{**entry("w", W), "shape": [1 << 50]}], bytes(12), "truncated"),
    "text": ([{**entry("w", W), "shape": ["3"]}], bytes(12), "has no shape"),
    "truth": ([{**entry("w", W), "shape": [True]}], bytes(12), "has no shape"),
    "no shape": ([{"name": "w", "dtype": "float32"}], bytes(12), "has no shape"),
    "no name": ([{"shape": [3]}], bytes(12), "has no name"),
    "no entry": ([3], bytes(12), "has no name"),
    "quantised": ([entry("w", W, quantization={"dtype": "int4"})], bytes(3), "unknown way"),
    "quantised by": ([entry("w", W, quantization=3)], bytes(3), "unknown way"),
    "very large": (
        [entry("w", W, quantization={"dtype": "uint8", "min": 10**400, "scale": 1})],
        bytes(3),
        "no min",
    ),
    "no scale": ([entry("w", W, quantization={"dtype": "uint8", "min": 0})], bytes(3), "scale"),
    "nan": (
        [entry("w", W, quantization={"dtype": "uint8", "min": float("nan"), "scale": 1})],
        bytes(3),
        "no min",
    ),
    "string": ([{**entry("w", W), "dtype": "string"}], b"\xff" * 12, "truncated"),
    "strings": ([{**entry("w", W), "dtype": "string", "shape": [1 << 30]}], b"", "more than"),
}


@pytest.mark.parametrize(("weights", "data", "match"), LIES.values(), ids=LIES)
def test_lies(weights: Any, data: bytes, match: str, tmp_path: Path) -> None:
    save(tmp_path / "m.json", weights, data)
    with pytest.raises(ConverterError, match=match) as caught:
        converter.open(tmp_path / "m.json")
    assert caught.value.path == tmp_path / "m.json"


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/hostname", "sub/w", "", ".", "..", "a\\b", "http://x/y", "link"]
)
def test_shards_elsewhere(name: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "sub").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(bytes(12))
    (home / "sub" / "w").write_bytes(bytes(12))
    (home / "link").symlink_to("../secret")
    group = {"paths": [name], "weights": [entry("w", W)]}
    (home / "m.json").write_text(json.dumps({"weightsManifest": [group]}))
    with pytest.raises(UnsafeContentError, match=r"leads (out of|to something else)"):
        converter.open(home / "m.json")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"weightsManifest": 3}', "no list of weights"),
        ('{"weightsManifest": [3]}', "no list 'paths'"),
        ('{"weightsManifest": [{"paths": [3]}]}', "not a list of names"),
        ('{"weightsManifest": [{"paths": ["a", "a"]}]}', "names a file twice"),
        ('{"weightsManifest": [{"paths": []}]}', "no list 'weights'"),
        ('{"weightsManifest": ', "not JSON"),
        ('{"weightsManifest": "\\ud800', "not JSON"),
        ('{"weightsManifest": ' + "[" * 100_000, "nested too deeply"),
        ('{"weightsManifest": 1' + "1" * 10_000 + "}", "not JSON"),
        ('{"weightsManifest": [' + "0," * 2_000_000, "more than 2000000 values"),
    ],
)
def test_json_that_is_something_else(text: str, match: str, tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(text)
    attack(tmp_path / "m.json", match)


def test_a_shard_that_is_missing(tmp_path: Path) -> None:
    save(tmp_path / "m.json", [entry("w", W)], W.tobytes())
    (tmp_path / "group1-shard1of1.bin").unlink()
    with pytest.raises(NotFoundError, match="is missing"):
        converter.open(tmp_path / "m.json")


def test_other_json_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text('{"weights": []}')
    assert not tfjs.recognise(formats.probe(tmp_path / "m.json"))
    assert not tfjs.recognise(formats.probe(tmp_path))
