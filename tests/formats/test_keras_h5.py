"""Keras' HDF5 by layer against Keras 3, tf_keras and h5py, and against literal layouts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conformance import Array, FormatConformance, differences, make, read, same

import converter
from converter import formats
from converter.errors import CorruptFileError, UnrepresentableError, UnsupportedError
from converter.formats import keras_h5
from converter.tensors import TensorSpec

h5py = pytest.importorskip("h5py")
ml_dtypes = pytest.importorskip("ml_dtypes")


def datasets(path: Path, prefix: str = "") -> dict[str, Array]:
    found = {}

    def take(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            array = np.asarray(item[()])
            bfloat16 = item.attrs.get("dtype") == "bfloat16"  # which h5py takes for opaque bytes
            found[prefix + name] = array.view(ml_dtypes.bfloat16) if bfloat16 else array

    with h5py.File(path) as file:
        file.visititems(take)
    return found


def texts(group: Any, key: str) -> list[str]:
    return [t.decode() if isinstance(t, bytes) else t for t in group.attrs[key].tolist()]


class TestKerasH5(FormatConformance):
    format = "keras-h5"
    target = "model.h5"
    metadata = keras_h5.DEFAULTS
    names = ("a", "A", "c/conv_1/kernel:0", "../../escape", 'with space, "\\', "{b}[0]*", "ü/重")
    numbered = "layer/layer/{}"


def keras(*lines: str, legacy: bool = False) -> dict[str, Any]:
    """Run a program with Keras in a process of its own; the JSON that it prints last."""
    pytest.importorskip("tf_keras" if legacy else "keras")
    head = "import json, sys, numpy as np\n"
    head += "import tf_keras as keras\n" if legacy else "import keras\n"
    env = os.environ | {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    env |= {"KERAS_BACKEND": "tensorflow", "TF_USE_LEGACY_KERAS": "1" if legacy else "0"}
    done = subprocess.run(
        [sys.executable, "-c", head + "\n".join(lines)],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


MODEL = """
keras.utils.set_random_seed(1)
L = keras.layers
def build():
    inputs = keras.Input((8, 8, 3), name="pixels")
    x = L.Conv2D(4, 3, name="c1")(inputs)
    x = L.BatchNormalization(name="bn")(x)
    x = L.SeparableConv2D(5, 3, name="sep")(x)
    inner = keras.Sequential([keras.Input((4, 4, 5)), L.Conv2D(2, 1, name="in1"),
                              L.BatchNormalization(name="in2")], name="inner")
    x = L.Reshape((16, 2), name="rows")(inner(x))
    x = L.Bidirectional(L.LSTM(3), name="both")(x)
    x = L.Dense(3, name="head")(x)
    model = keras.Model(inputs, x, name="net")
    model.compile("adam", keras.losses.MeanSquaredError())
    return model
def random(model, seed=5):
    rng = np.random.default_rng(seed)
    model.set_weights([rng.standard_normal(w.shape).astype(w.dtype) for w in model.get_weights()])
    return model
def digest(model):
    import zlib
    return {str(i): zlib.crc32(w.tobytes()) for i, w in enumerate(model.get_weights())}
"""
SAVE = """
model = random(build())
model.fit(np.ones((2, 8, 8, 3)), np.ones((2, 3)), verbose=0)
model.save_weights(WEIGHTS)
model.save(WHOLE)
print(json.dumps(digest(model)))
"""


@pytest.fixture(scope="module", params=["keras", "tf_keras"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(is legacy, weights file, model file, digests) of one trained model."""
    folder = tmp_path_factory.mktemp(request.param)
    legacy = request.param == "tf_keras"
    weights, whole = folder / "w.h5", folder / "m.h5"
    save = SAVE
    if not legacy:  # Keras 3 refuses this suffix for weights, but its code still writes them
        save = save.replace(
            "model.save_weights(WEIGHTS)",
            "import h5py\nfrom keras.src.legacy.saving import legacy_h5_format as old\n"
            "with h5py.File(WEIGHTS, 'w') as f: old.save_weights_to_hdf5_group(f, model)",
        )
    lines = (f"WEIGHTS, WHOLE = {str(weights)!r}, {str(whole)!r}", MODEL, save)
    return legacy, weights, whole, keras(*lines, legacy=legacy)


@pytest.mark.oracle
def test_keras_files_are_read_and_written_back(saved: Any, tmp_path: Path) -> None:
    legacy, weights, whole, digests = saved
    expected = datasets(weights)
    assert len(expected) > 20
    with converter.open(weights) as checkpoint:
        assert checkpoint.format == "keras-h5"
        assert differences(read(weights), expected) == []
        order = [name for name in checkpoint if name.startswith("bn/")]
        leaves = [name.rpartition("/")[2].removesuffix(":0") for name in order]
        assert leaves == ["gamma", "beta", "moving_mean", "moving_variance"]
        converter.save(checkpoint, tmp_path / "w.h5")
        converter.save(checkpoint, tmp_path / "w.safetensors")
    with converter.open(tmp_path / "w.safetensors") as checkpoint:  # sorted, but order is metadata
        converter.save(checkpoint, tmp_path / "again.h5")
    for name in ("w.h5", "again.h5"):
        assert differences(datasets(tmp_path / name), expected) == []
        with h5py.File(tmp_path / name) as ours, h5py.File(weights) as theirs:
            assert texts(ours, "layer_names") == texts(theirs, "layer_names")

    names = read(whole)
    assert {n for n in names if not n.startswith("optimizer_weights/")} == expected.keys()
    assert sum(n.startswith("optimizer_weights/") for n in names) > 20
    with converter.open(whole) as checkpoint:
        assert json.loads(checkpoint.metadata["model_config"])["config"]["name"] == "net"
        converter.save(checkpoint, tmp_path / "m.h5")
    assert differences(datasets(tmp_path / "m.h5"), datasets(whole)) == []

    parents = [name.rpartition("/")[0] for name in read(weights)]
    by_layer = sorted(expected, key=lambda name: (parents.index(name.rpartition("/")[0]), name))
    assert by_layer != list(read(weights))  # bias, kernel
    converter.save(converter.from_arrays({n: expected[n] for n in by_layer}), tmp_path / "n.h5")

    found = keras(MODEL, f"FOLDER = {str(tmp_path)!r}", LOAD, legacy=legacy)
    assert found.pop("steps") == 1
    assert found == {"again.h5": digests, "m.h5": digests, "n.h5": digests}


SCALED = ("gamma", "beta", "moving_mean", "moving_variance")
ALIASES = {
    "c1": ("kernel", "bias"),
    "bn": SCALED,
    "head": ("kernel", "bias"),
    "inner/in1": ("kernel", "bias"),
    "inner/in2": SCALED,
    "sep": ("depthwise_kernel", "pointwise_kernel", "bias"),
}


@pytest.mark.oracle
def test_an_alias_is_the_path_of_the_variable_whichever_keras_wrote_the_file(saved: Any) -> None:
    _, weights, whole, _ = saved
    for path in (weights, whole):
        with converter.open(path) as checkpoint:
            names = [alias for (alias,) in checkpoint.aliases.values()]
            stored = [name for name in checkpoint.aliases if name.startswith("c1/")]
        assert {name for name in names if not name.startswith("both/")} == {
            f"{layer}/{name}" for layer, known in ALIASES.items() for name in known
        }
        assert sum(name.startswith("both/forward_lstm/lstm_cell/") for name in names) == 3
        assert [name.removesuffix(":0") for name in stored] == ["c1/c1/kernel", "c1/c1/bias"]


@pytest.mark.parametrize("others", [[], ["pointwise_kernel"]])
def test_the_kernel_of_a_depthwise_convolution_is_called_as_by_keras_3(
    others: list[str], tmp_path: Path
) -> None:
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.attrs["layer_names"] = ["c"]
        group = file.create_group("c")
        group.attrs["weight_names"] = [f"c/{n}:0" for n in ("depthwise_kernel", *others)]
        for name in ("depthwise_kernel", *others):
            group[f"c/{name}:0"] = np.ones(1)
    expected = ["depthwise_kernel", *others] if others else ["kernel"]
    with converter.open(tmp_path / "w.h5") as checkpoint:
        assert [*checkpoint.aliases.values()] == [(f"c/{name}",) for name in expected]


def test_variables_without_a_name_are_counted_in_their_layer(tmp_path: Path) -> None:
    layers = {"a": ["a/variable_7", "a/variable_9"], "b": ["b/variable_10", "b/x:0"], "c": ["x"]}
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.attrs["layer_names"] = [*layers]
        layers["top_level_model_weights"] = ["variable"]
        for layer, weights in layers.items():
            group = file.create_group(layer)
            group.attrs["weight_names"] = weights
            for name in weights:
                group[name] = np.ones(1)
    with converter.open(tmp_path / "w.h5") as checkpoint:
        assert dict(checkpoint.aliases) == {
            "a/a/variable_7": ("a/variable",),
            "a/a/variable_9": ("a/variable_1",),
            "b/b/variable_10": ("b/variable",),
            "b/b/x:0": ("b/x",),
        }


LOAD = """
found = {}
for name in ("again.h5", "n.h5"):
    model = build()
    model.load_weights(f"{FOLDER}/{name}")
    found[name] = digest(model)
model = keras.models.load_model(f"{FOLDER}/m.h5")
print(json.dumps({**found, "m.h5": digest(model), "steps": int(model.optimizer.iterations)}))
"""


@pytest.mark.parametrize("name", ["DTLN_norm_40h.h5", "model.h5"])
def test_real_files(name: str, shared: Path, tmp_path: Path) -> None:
    path = shared / "real/dtln/keras" / name
    assert differences(read(path), datasets(path)) == []
    with converter.open(path) as checkpoint:
        assert next(iter(checkpoint)).endswith("kernel:0" if name == "model.h5" else "gamma:0")
        converter.save(checkpoint, tmp_path / "w.safetensors")
        converter.save(checkpoint, tmp_path / "w.h5")
    with h5py.File(path) as theirs, h5py.File(tmp_path / "w.h5") as ours:
        assert texts(ours, "layer_names") == texts(theirs, "layer_names")
        for layer in texts(ours, "layer_names"):
            assert texts(ours[layer], "weight_names") == texts(theirs[layer], "weight_names")
        versions = [file.attrs["keras_version"] for file in (ours, theirs)]
        assert len({v.decode() if isinstance(v, bytes) else v for v in versions}) == 1


def test_the_dtln_forms_agree(shared: Path) -> None:
    relations = json.loads((shared / "real/expected/dtln_savedmodel__keras-h5.json").read_text())
    found = read(shared / "real/dtln/keras/model.h5")
    source = np.load(shared / "real/expected/dtln_sm.npz")
    for name, relation in relations.items():
        values = [_find(source, key) for key in relation["src"]]
        expected = eval(relation["expr"], {"np": np, **dict(zip("abc", values, strict=False))})  # noqa: S307
        assert same(found[name], expected), name


def _find(source: Any, key: str) -> Array:
    plain = key.replace("/", "|")
    (name,) = (n for n in source.files if n in {plain, f"{plain}|.ATTRIBUTES|VARIABLE_VALUE"})
    return np.asarray(source[name])


# ── layouts ──────────────────────────────────────────────────────────────────────────────────────


def legacy(path: Path, layers: dict[str, dict[str, Array]], **attrs: Any) -> Path:
    with h5py.File(path, "w") as file:
        file.attrs.update(attrs)
        if "layer_names0" not in attrs:
            file.attrs["layer_names"] = [name.encode() for name in layers]
        for layer, weights in layers.items():
            group = file.create_group(layer)
            group.attrs["weight_names"] = [name.encode() for name in weights]
            for name, array in weights.items():
                group[name] = array
    return path


def test_lists_in_several_attributes(tmp_path: Path) -> None:
    layers = {f"layer_{i:05}_{'x' * 50}": {"w:0": np.float32([i])} for i in range(1500)}
    expected = {f"{layer}/w:0": w["w:0"] for layer, w in layers.items()}
    names = np.array([name.encode() for name in reversed(layers)])
    path = legacy(tmp_path / "m.h5", layers, layer_names0=names[:900], layer_names1=names[900:])
    with converter.open(path) as checkpoint:
        assert list(checkpoint) == list(reversed(expected))
        converter.save(checkpoint, tmp_path / "w.h5")
    with h5py.File(tmp_path / "w.h5") as file:
        assert "layer_names" not in file.attrs
        both = [*file.attrs["layer_names0"], *file.attrs["layer_names1"]]
        assert both == names.tolist()
    assert differences(read(tmp_path / "w.h5"), expected) == []


@pytest.mark.parametrize("kind", ["fixed", "varying"])
def test_texts_of_either_kind(kind: str, tmp_path: Path) -> None:
    text: Any = h5py.string_dtype() if kind == "varying" else "S20"
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.attrs.create("layer_names", ["z/y", "a"], dtype=text)
        file.attrs["keras_version"] = "2.1.0" if kind == "varying" else np.bytes_(b"2.1.0")
        file.create_group("z/y").attrs.create("weight_names", ["k", "b"], dtype=text)
        file["z/y/k"], file["z/y/b"] = [1.0], [2.0]
        file.create_group("a").attrs["weight_names"] = []
    with converter.open(tmp_path / "m.h5") as checkpoint:
        assert list(checkpoint) == ["z/y/k", "z/y/b"]  # a layer's name may have a slash
        assert checkpoint.metadata["keras_version"] == "2.1.0"
        order = checkpoint.metadata["weight_order"]
        assert json.loads(order) == [["z/y", ["k", "b"]], ["a", []]]
        converter.save(checkpoint, tmp_path / "w.h5")
    with h5py.File(tmp_path / "w.h5") as file:
        assert file.attrs["layer_names"].tolist() == [b"z/y", b"a"]


def test_weights_that_are_tied_or_not_listed(tmp_path: Path) -> None:
    path = legacy(tmp_path / "m.h5", {"l": {"k": np.arange(3)}})
    with h5py.File(path, "a") as file:
        file["l/again"] = file["l/k"]
        file["extra"] = 1.5
    with converter.open(path) as checkpoint:
        assert list(checkpoint) == ["l/k", "extra", "l/again"]
        assert checkpoint.ties == (("l/k", "l/again"),)


def test_a_list_that_is_wrong(tmp_path: Path) -> None:
    path = legacy(tmp_path / "m.h5", {"l": {"k": np.arange(3)}})
    for names, reason in (([b"l", b"x"], "listed, but is not there"), ([b"l", b"l"], "twice")):
        with h5py.File(path, "a") as file:
            file.attrs["layer_names"] = names
        with pytest.raises(CorruptFileError, match=reason):
            converter.open(path)
    with h5py.File(path, "a") as file:
        file.attrs["layer_names"] = [1, 2]
    with pytest.raises(CorruptFileError, match="not a list of texts"):
        converter.open(path)


def test_two_datasets_of_one_name(tmp_path: Path) -> None:
    path = legacy(tmp_path / "m.h5", {})
    with h5py.File(path, "a") as file:
        file["model_weights/optimizer_weights/x"] = 1
        file["optimizer_weights/x"] = 1
    with pytest.raises(UnsupportedError, match="two datasets get this name"):
        converter.open(path)


@pytest.mark.parametrize("order", ["[", "3", '[["a"]]', '[["l", ["gone"]]]', "[[1,2,3]]"])
def test_an_order_that_is_somebody_elses(order: str, tmp_path: Path) -> None:
    arrays = {"l/beta:0": np.float32([1]), "l/gamma:0": np.float32([2])}
    source = converter.from_arrays(arrays, metadata={"weight_order": order, "model_config": "{}"})
    converter.save(source, tmp_path / "m.h5")
    with converter.open(tmp_path / "m.h5") as checkpoint:
        assert list(checkpoint) == ["l/gamma:0", "l/beta:0"]
        assert "model_config" not in checkpoint.metadata


def test_what_cannot_be_written(tmp_path: Path) -> None:
    row = formats.named("keras-h5")
    f4 = np.dtype("f4")
    for specs, reason in (
        ({"a": TensorSpec((), f4), "a/b": TensorSpec((), f4)}, "group of 'a', which is a tensor"),
        ({"a//b": TensorSpec((), f4)}, "a part that is empty"),
        ({"/a": TensorSpec((), f4)}, "a part that is empty"),
        ({"a/./b": TensorSpec((), f4)}, "a part that is empty or '.'"),
        ({"a": TensorSpec((), np.dtype(ml_dtypes.int4))}, "no int4"),
    ):
        with pytest.raises(UnrepresentableError, match=reason):
            formats.create(tmp_path / "m.h5", row, specs)
    with pytest.raises(UnrepresentableError, match=r"into \.weights\.h5"):
        formats.create(tmp_path / "m.h5", row, {"a": TensorSpec((), keras_h5._hdf5.BFLOAT16)})
    assert list(tmp_path.iterdir()) == []


def test_values_are_aligned(tmp_path: Path) -> None:
    arrays = {f"l/{n}": make("uint8", (n,)) for n in range(1, 70)}
    TestKerasH5().write(tmp_path / "m.h5", arrays)
    with converter.open(tmp_path / "m.h5") as checkpoint:
        extents = [tensor.extent for tensor in checkpoint.values()]
    assert all(extent and extent.offset % 64 == 0 for extent in extents if extent.nbytes >= 64)
