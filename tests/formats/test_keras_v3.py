"""Keras 3's files against Keras itself and h5py, and against hostile archives and indexes."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from conformance import (
    NAMES,
    Array,
    FormatConformance,
    differences,
    make,
    read,
)
from test_keras_h5 import datasets, keras

import converter
from converter import formats
from converter.errors import (
    ChecksumError,
    ConverterError,
    CorruptFileError,
    NotFoundError,
    TargetExistsError,
    UnrepresentableError,
    UnsafeContentError,
    UnsupportedError,
)
from converter.formats import keras_v3

h5py = pytest.importorskip("h5py")
BARE = tuple(name for name in NAMES if not name.startswith("/"))
CONFIG = '{"class_name": "Sequential"}'


class TestWeights(FormatConformance):
    format = "keras-v3"
    target = "model.weights.h5"
    metadata = MappingProxyType({})
    names = BARE
    numbered = "layers/layer/vars/{}"


class TestKeras(TestWeights):
    target = "model.keras"
    checksums = True
    metadata = MappingProxyType({"config.json": CONFIG, "metadata.json": keras_v3._DEFAULT_ABOUT})

    def create(self, path: Path, arrays: Any, **options: Any) -> Any:
        metadata = {"config.json": CONFIG, **options.pop("metadata", {})}
        return super().create(path, arrays, metadata=metadata, **options)

    def oracle_read(self, path: Path) -> dict[str, Array]:
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
        return super().oracle_read(path)


MODEL = """
keras.utils.set_random_seed(1)
L = keras.layers
def build():
    inputs = keras.Input((8, 8, 3), name="pixels")
    x = L.Conv2D(4, 3, name="c1")(inputs)
    x = L.BatchNormalization(name="bn")(x)
    for k in range(12):
        x = L.Conv2D(4, 1, name=f"more{k}")(x)
    inner = keras.Sequential([keras.Input((6, 6, 4)), L.Conv2D(2, 1, name="in1")], name="inner")
    x = L.Reshape((36, 2), name="rows")(inner(x))
    x = L.Bidirectional(L.LSTM(3), name="both")(x)
    x = L.Dense(3, name="head", dtype="bfloat16")(x)
    model = keras.Model(inputs, x, name="net")
    model.compile("adam", keras.losses.MeanSquaredError(), run_eagerly=True)
    return model
def digest(model):
    import zlib
    return {str(i): zlib.crc32(np.asarray(w).tobytes()) for i, w in enumerate(model.get_weights())}
"""
SAVE = """
model = build()
model.fit(np.ones((2, 8, 8, 3)), np.ones((2, 3)), verbose=0)
model.save(f"{FOLDER}/m.keras")
model.save(f"{FOLDER}/folder", zipped=False)
model.save_weights(f"{FOLDER}/m.weights.h5")
model.save_weights(f"{FOLDER}/s.weights.json", max_shard_size=3e-6)
head = {v.path: str(v.dtype) for v in model.layers[-1].variables}
print(json.dumps({"digest": digest(model), "steps": int(model.optimizer.iterations), "head": head}))
"""
LOAD = """
found = {}
for name in ("m.weights.h5", "from_shards.weights.h5", "s.weights.json"):
    model = build()
    model.load_weights(f"{FOLDER}/{name}")
    found[name] = digest(model)
model = keras.models.load_model(f"{FOLDER}/m.keras")
print(json.dumps({**found, "m.keras": digest(model), "steps": int(model.optimizer.iterations)}))
"""


@pytest.mark.oracle
def test_keras_files_are_read_and_written_back(tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    ours.mkdir()
    told = keras(MODEL, f"FOLDER = {str(theirs)!r}", SAVE)
    assert len(list(theirs.glob("s_*.weights.h5"))) > 1
    expected = datasets(theirs / "m.weights.h5")
    assert {a.dtype.name for n, a in expected.items() if "layers/dense/" in n} == {"bfloat16"}
    for name in ("m.keras", "folder", "m.weights.h5", "s.weights.json"):
        assert differences(read(theirs / name), expected) == [], name
    with converter.open(theirs / "m.keras") as checkpoint:
        names = [name for name in checkpoint if name.startswith("layers/")]
        assert names.index("layers/conv2d_2/vars/0") < names.index("layers/conv2d_10/vars/0")
        layers = json.loads(checkpoint.metadata["layer_names"])
        assert layers["layers/conv2d"] == "c1"
        assert layers["layers/dense"] == "head"
        assert json.loads(checkpoint.metadata["config.json"])["config"]["name"] == "net"
        assert json.loads(checkpoint.metadata["metadata.json"])["keras_version"]
        converter.save(checkpoint, ours / "m.keras")
        converter.save(checkpoint, ours / "m.weights.h5")
    with converter.open(theirs / "s.weights.json") as checkpoint:
        converter.save(checkpoint, ours / "from_shards.weights.h5")
        converter.save(checkpoint, ours / "s.weights.h5", shard_nbytes=300)
    assert len(list(ours.glob("s_*.weights.h5"))) > 1
    assert not (ours / "s.weights.h5").exists()
    assert differences(read(ours / "s.weights.json"), expected) == []
    with h5py.File(ours / "m.weights.h5") as file:
        assert file["layers/conv2d_1/vars"].attrs["name"] == "more0"
    found = keras(MODEL, f"FOLDER = {str(ours)!r}", LOAD)
    assert found.pop("steps") == told["steps"]
    assert found == dict.fromkeys(found, told["digest"])


def test_a_real_file(shared: Path, tmp_path: Path) -> None:
    path = shared / "real/keras3/pre_pr22362_nested_container.keras"
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "folder")
    expected = datasets(tmp_path / "folder/model.weights.h5")
    assert differences(read(path), expected) == []
    assert differences(read(tmp_path / "folder"), expected) == []
    with converter.open(path) as checkpoint:
        layers = json.loads(checkpoint.metadata["layer_names"])
        assert layers == {
            "": "nested_dense_model",
            "layers/dense": "d_0",
            "layers/dense_1": "d_1",
            "layers/dense_2": "d_2",
            "layers/dense_3": "dense",
        }
        converter.save(checkpoint, tmp_path / "w.safetensors")
        converter.save(checkpoint, tmp_path / "w.keras")
    assert differences(read(tmp_path / "w.keras"), expected) == []
    with converter.open(tmp_path / "w.keras") as checkpoint:
        assert json.loads(checkpoint.metadata["layer_names"]) == layers


def test_old_paths_and_other_hdf5_files(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.weights.h5", "w") as file:
        for number in range(11):
            file[f"_layer_checkpoint_dependencies/dense/vars/{number}"] = float(number)
        file["any thing"] = 1
    names = list(read(tmp_path / "m.weights.h5"))
    assert names[0] == "any thing" or names[-1] == "any thing"
    values = [float(v) for n, v in read(tmp_path / "m.weights.h5").items() if n != "any thing"]
    assert values == sorted(values)


def test_layer_names_of_another_model(tmp_path: Path) -> None:
    for text in ('{"layers/x": "y"}', "[", "3", '{"a/b/vars/0": "x", "a": "z"}'):
        source = converter.from_arrays(
            {"a/vars/0": np.float32([1])}, metadata={"layer_names": text}
        )
        converter.save(source, tmp_path / "m.weights.h5", overwrite=True)
        with h5py.File(tmp_path / "m.weights.h5") as file:
            assert "layers" not in file


def test_a_keras_file_needs_a_config(tmp_path: Path) -> None:
    source = converter.from_arrays({"vars/0": np.float32([1])})
    with pytest.raises(UnrepresentableError, match=r"needs the model's config\.json"):
        converter.save(source, tmp_path / "m.keras")
    assert list(tmp_path.iterdir()) == []


# ── archives and indexes ─────────────────────────────────────────────────────────────────────


def archive(path: Path, method: int = zipfile.ZIP_STORED, **extra: bytes) -> Path:
    TestWeights().write(path.with_name("w"), {"vars/0": make("float32", (100,))})
    with zipfile.ZipFile(path, "w", method) as out:
        out.writestr("config.json", extra.pop("config", CONFIG.encode()))
        out.writestr("model.weights.h5", extra.pop("weights", path.with_name("w").read_bytes()))
        for name, data in extra.items():
            out.writestr(name, data)
    return path


def test_other_members_are_listed(tmp_path: Path) -> None:
    path = archive(tmp_path / "m.keras", **{"assets/words.txt": b"a b"})
    with converter.open(path) as checkpoint:
        assert checkpoint.unsupported == {"assets/words.txt": "a file of the model, not a tensor"}


@pytest.mark.parametrize(
    ("extra", "error", "reason"),
    [
        ({"method": zipfile.ZIP_DEFLATED}, UnsupportedError, "compressed inside"),
        ({"config": b"\xff"}, CorruptFileError, "not UTF-8"),
        ({"weights": b"PK"}, CorruptFileError, "not the start of an HDF5"),
        ({"assets/\x1b": b""}, CorruptFileError, "its name has a control"),
    ],
)
def test_a_wrong_archive(
    extra: dict[str, Any], error: type[ConverterError], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=reason):
        converter.open(archive(tmp_path / "m.keras", **extra))


def test_an_archive_with_npz(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as out:
        out.writestr("config.json", CONFIG)
        out.writestr("model.weights.npz", b"")
    with pytest.raises(UnsupportedError, match=r"without model\.weights\.h5"):
        converter.open(tmp_path / "m.keras")


def test_a_wrong_checksum(tmp_path: Path) -> None:
    path = archive(tmp_path / "m.keras")
    crc = zipfile.ZipFile(path).getinfo("model.weights.h5").CRC
    path.write_bytes(path.read_bytes().replace(crc.to_bytes(4, "little"), b"abcd"))
    with pytest.raises(ChecksumError, match="crc32 checksum does not match"):
        read(path)


@pytest.fixture
def index(tmp_path: Path) -> Path:
    TestWeights().write(tmp_path / "m_0.weights.h5", {"a/vars/0": make("float32", (3,))})
    TestWeights().write(tmp_path / "m_1.weights.h5", {"a/vars/1": make("float32", (4,))})
    return tmp_path / "m.weights.json"


def indexed(path: Path, weight_map: Any) -> None:
    path.write_text(json.dumps({"metadata": {"total_size": 28.0}, "weight_map": weight_map}))


def test_a_group_over_two_shards(index: Path) -> None:
    indexed(index, {"/a/vars": ["m_0.weights.h5", "m_1.weights.h5"]})
    assert list(read(index)) == ["a/vars/0", "a/vars/1"]
    with converter.open(index) as checkpoint:
        assert sorted(checkpoint.files) == sorted(index.parent.iterdir())
    indexed(index, {"/a/vars": "m_0.weights.h5"})
    assert list(read(index)) == ["a/vars/0"]


@pytest.mark.parametrize(
    "name",
    ["../x.weights.h5", "/etc/x.weights.h5", "a\\x.weights.h5", "..", "x\0.weights.h5", "x"],
)
def test_an_index_that_leads_elsewhere(name: str, index: Path) -> None:
    indexed(index, {"/a/vars": ["m_0.weights.h5", name]})
    with pytest.raises(UnsafeContentError, match="not one beside it"):
        converter.open(index)


def test_wrong_indexes(index: Path, tmp_path: Path) -> None:
    shutil.copy(tmp_path / "m_0.weights.h5", tmp_path / "m_2.weights.h5")
    (tmp_path / "m_3.weights.h5").symlink_to("/dev/zero")
    for weight_map, error, reason in (
        ({"/a/vars": ["m_9.weights.h5"]}, NotFoundError, "cannot be opened"),
        ({"/b/vars": ["m_0.weights.h5"]}, CorruptFileError, "/b/vars is not in m_0"),
        ({"/a/vars": ["m_0.weights.h5", "m_2.weights.h5"]}, CorruptFileError, "two shards"),
        ({"/a/vars": ["m_3.weights.h5"]}, UnsafeContentError, "a shard is a link"),
        ({"/a/vars": 3, "b": ".weights.h5"}, CorruptFileError, "not the index"),
        ([".weights.h5"], CorruptFileError, "not the index"),
    ):
        indexed(index, weight_map)
        with pytest.raises(error, match=reason):
            converter.open(index)


def test_a_folder(tmp_path: Path) -> None:
    path = archive(tmp_path / "m.keras")
    with zipfile.ZipFile(path) as out:
        out.extractall(tmp_path / "folder")
    assert differences(read(tmp_path / "folder"), read(path)) == []
    (tmp_path / "folder/config.json").unlink()
    with pytest.raises(ConverterError, match="folder without a known checkpoint"):
        formats.open_checkpoint(tmp_path / "folder")


def test_aliases_follow_from_names_and_classes_of_layers(tmp_path: Path) -> None:
    layers = {
        "layers/conv2d": ("c1", 2),
        "layers/conv2d_11": ("c12", 1),
        "layers/batch_normalization": ("bn", 4),
        "layers/batch_normalization_1": ("noscale", 3),
        "layers/batch_normalization_2": ("bare", 2),
        "layers/sequential": ("block", 0),
        "layers/sequential/layers/dense": ("inner", 2),
        "layers/somebodys_layer": ("own", 2),
        "layers/nameless": (None, 1),
    }
    with h5py.File(tmp_path / "w.weights.h5", "w") as file:
        for place, (name, count) in layers.items():
            group = file.create_group(f"{place}/vars")
            if name:
                group.attrs["name"] = name
            for number in range(count):
                group[str(number)] = np.ones(1)
    counted = ("moving_mean", "moving_variance")
    expected = {
        "c1": ("kernel", "bias"),
        "c12": ("kernel",),
        "bn": ("gamma", "beta", *counted),
        "noscale": ("beta", *counted),
        "bare": counted,
        "block/inner": ("kernel", "bias"),
        "own": ("variable", "variable_1"),
    }
    with converter.open(tmp_path / "w.weights.h5") as checkpoint:
        found = [alias for aliases in checkpoint.aliases.values() for alias in aliases]
        assert set(found) == {
            f"{layer}/{name}" for layer, known in expected.items() for name in known
        }
        assert checkpoint.aliases["layers/conv2d_11/vars/0"] == ("c12/kernel",)
        assert checkpoint.aliases["layers/sequential/layers/dense/vars/1"] == ("block/inner/bias",)


SHARDED = {f"layers/dense/vars/{n}": make("float32", (n + 2,)) for n in range(4)} | {
    "vars/0": make("int64", ())
}


def in_shards(path: Path, nbytes: int, **options: Any) -> list[str]:
    converter.save(converter.from_arrays(SHARDED), path, shard_nbytes=nbytes, **options)
    assert differences(read(path.with_name("m.weights.json")), SHARDED) == []
    return sorted(each.name for each in path.parent.iterdir())


def test_shards_are_as_keras_calls_them(tmp_path: Path) -> None:
    files = in_shards(tmp_path / "m.weights.h5", 24)
    shards = [f"m_{n:05}.weights.h5" for n in range(4)]
    assert files == ["m.weights.json", *shards]
    assert json.loads((tmp_path / "m.weights.json").read_text()) == {
        "metadata": {"total_size": 64},
        "weight_map": {"/layers/dense/vars": shards[:3], "/vars": shards[3:]},
    }
    with h5py.File(tmp_path / shards[0]) as file:
        assert [*file["layers/dense/vars"]] == ["0", "1"]
        assert [*file] == ["layers"]


def test_a_set_that_is_replaced_leaves_nothing_over(tmp_path: Path) -> None:
    path = tmp_path / "m.weights.json"
    assert len(in_shards(path, 24)) == 5
    with pytest.raises(TargetExistsError, match="exists"):
        in_shards(path, 40)
    assert len(in_shards(path, 40, overwrite=True)) == 3
    assert len(in_shards(path, 1000, overwrite=True)) == 2
    converter.save(converter.from_arrays(SHARDED), tmp_path / "one.weights.h5", shard_nbytes=1000)
    assert differences(read(tmp_path / "one.weights.h5"), SHARDED) == []


def test_layers_are_named_in_the_shard_that_has_them(tmp_path: Path) -> None:
    arrays = {f"layers/{layer}/vars/0": make("float32", (4,)) for layer in ("dense", "dense_1")}
    names = {"layers/dense": "first", "layers/dense_1": "second", "layers/dense_2": "none"}
    source = converter.from_arrays(arrays, metadata={"layer_names": json.dumps(names)})
    converter.save(source, tmp_path / "m.weights.h5", shard_nbytes=16)
    for n, (layer, name) in enumerate([("dense", "first"), ("dense_1", "second")]):
        with h5py.File(tmp_path / f"m_{n:05}.weights.h5") as file:
            assert [*file["layers"]] == [layer]
            assert file[f"layers/{layer}/vars"].attrs["name"] == name
