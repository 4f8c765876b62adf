"""Two real models side by side: right ports agree, a wrong one is named by its first layer.

The models are tiny, and everything is real: Keras and TF-Slim build and run theirs, PyTorch its
own, each in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import converter
from converter import cli
from converter.errors import SourceError
from converter.parity import _run, departure
from tests import oracles

pytestmark = pytest.mark.oracle

KERAS = """
import keras, numpy
L = keras.layers
model = keras.Sequential([L.Input((8, 8, 3)), L.Conv2D(4, 3, activation="relu", name="one"),
    L.BatchNormalization(name="norm"), L.Conv2D(4, 3, name="two"), L.ReLU(), L.MaxPooling2D(),
    L.Flatten(), L.Dense(4, activation="tanh", name="three"), L.Dense(4, name="four")])
random = numpy.random.default_rng(0)
for variable in model.weights:
    variable.assign(random.random(variable.shape) * numpy.where("variance" in variable.path, 1, -1)
        + numpy.where("variance" in variable.path, 0.5, 0.6))
model.save("m.keras")
if keras.backend.backend() == "tensorflow":
    model.export("exported", verbose=False)
"""

TORCH = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=1e-3)
        self.two, self.pool = nn.Conv2d(4, 4, 3), nn.MaxPool2d(2)
        self.three, self.four = nn.Linear(16, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = self.norm(self.one(x).relu())
        x = self.pool(self.two(x).relu())
        return self.four(self.three(x.flatten(1)).tanh())
"""

RULES = """\
mapping: 1
rules:
  - {source: 'layers/conv2d/vars/0', target: one.weight, ops: [rearrange: h w i o -> o i h w]}
  - {source: 'layers/conv2d/vars/1', target: one.bias}
  - {source: 'layers/batch_normalization/vars/0', target: norm.weight}
  - {source: 'layers/batch_normalization/vars/1', target: norm.bias}
  - {source: 'layers/batch_normalization/vars/2', target: norm.running_mean}
  - {source: 'layers/batch_normalization/vars/3', target: norm.running_var}
  - {source: 'layers/conv2d_1/vars/0', target: two.weight, ops: [rearrange: h w i o -> o i h w]}
  - {source: 'layers/conv2d_1/vars/1', target: two.bias}
  - source: 'layers/dense/vars/0'
    target: three.weight
    ops: [rearrange: {pattern: (h w c) o -> o (c h w), sizes: {h: 2, w: 2}}]
  - {source: 'layers/dense/vars/1', target: three.bias}
  - {source: 'layers/dense_1/vars/0', target: four.weight, ops: [transpose: [1, 0]]}
  - {source: 'layers/dense_1/vars/1', target: four.bias}
"""

SLIM = """
import tensorflow as tf, tf_slim as slim

def net(pixels, is_training=True):
    with tf.compat.v1.variable_scope("tiny", "tiny", [pixels]) as scope:
        ends = scope.original_name_scope + "_points"
        with slim.arg_scope([slim.conv2d, slim.max_pool2d], outputs_collections=ends):
            x = slim.repeat(pixels, 2, slim.conv2d, 4, [3, 3], scope="conv1")
            x = slim.max_pool2d(x, [2, 2], scope="pool1")
            x = slim.conv2d(x, 5, [4, 4], padding="VALID", scope="fc6")
            x = slim.conv2d(x, 3, [1, 1], activation_fn=None, scope="fc8")
        points = slim.utils.convert_collection_to_dict(ends)
        return tf.squeeze(x, [1, 2]), points

net.default_image_size = 8

if __name__ == "__main__":
    tf1 = tf.compat.v1
    tf1.disable_eager_execution()
    net(tf1.placeholder(tf.float32, (1, 8, 8, 3)))
    with tf1.Session() as session:
        session.run(tf1.global_variables_initializer())
        tf1.train.Saver(tf1.global_variables()).save(session, "./slim.ckpt")
"""

SLIM_TORCH = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 3))
"""

SLIM_RULES = """\
mapping: 1
tables: {place: {1: 0, 2: 2}}
rules:
  - source: tiny/conv1/conv1_{k}/weights
    target: '{place[k]}.weight'
    ops: [rearrange: h w i o -> o i h w]
  - {source: 'tiny/conv1/conv1_{k}/biases', target: '{place[k]}.bias'}
  - {source: tiny/fc6/weights, target: 6.weight, ops: [rearrange: h w i o -> o (i h w)]}
  - {source: tiny/fc6/biases, target: 6.bias}
  - {source: tiny/fc8/weights, target: 8.weight, ops: [rearrange: 1 1 i o -> o i]}
  - {source: tiny/fc8/biases, target: 8.bias}
"""


def child(code: str, folder: Path, **environment: str) -> None:
    clean = {k: v for k, v in (os.environ | oracles.QUIET).items() if k != "TF_USE_LEGACY_KERAS"}
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        cwd=folder,
        env=clean | environment,
    )


def ported(source: str, mapping: str, target: str = "right.safetensors") -> None:
    assert cli.run(["convert", source, target, "-m", mapping, "--overwrite"]) == 0


def spoil(name: str, change, target: str = "wrong.safetensors") -> None:
    """A copy of the right port with one tensor changed."""
    with converter.open("right.safetensors") as checkpoint:
        arrays = {key: tensor.numpy() for key, tensor in checkpoint.items()}
    arrays[name] = np.ascontiguousarray(change(arrays[name]))
    converter.save(converter.from_arrays(arrays), target, overwrite=True)


@pytest.fixture(scope="module")
def keras(tmp_path_factory):
    """A Keras model and its right port."""
    if oracles.missing("keras", "jax", "torch"):
        pytest.skip("keras (with jax, for its quickest backend) or torch is not installed")
    folder = tmp_path_factory.mktemp("keras")
    child(KERAS, folder, KERAS_BACKEND="numpy")
    (folder / "net.py").write_text(TORCH)
    (folder / "m.yaml").write_text(RULES)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ported("m.keras", "m.yaml")
    return folder


def run(capsys, *arguments: str) -> tuple[int, dict]:
    capsys.readouterr()
    code = cli.run(["parity", *arguments, "--format", "json"])
    out, err = capsys.readouterr()
    assert not err, err
    return code, json.loads(out)


KERAS_COMMAND = "-m", "m.yaml", "--source-model", "keras", "--target-model", "net:Net"


def test_a_right_port_of_keras_agrees(keras, monkeypatch, capsys):
    monkeypatch.chdir(keras)
    code, found = run(capsys, "m.keras", "right.safetensors", *KERAS_COMMAND)
    assert code == 0
    assert [(row["source"], row["target"]) for row in found["layers"]] == [
        ("one", "one"),
        ("norm", "norm"),
        ("two", "two"),
        ("three", "three"),
        ("four", "four"),
        ("", ""),
    ]
    assert all(row["agrees"] and row["departure"] < 1e-5 for row in found["layers"])


@pytest.mark.parametrize(
    ("tensor", "layer"),
    [("two.weight", "two"), pytest.param("four.weight", "four", marks=pytest.mark.slow)],
)
def test_a_transposed_kernel_is_named(tensor, layer, keras, monkeypatch, capsys):
    monkeypatch.chdir(keras)
    spoil(tensor, lambda array: array.swapaxes(0, 1))
    assert cli.run(["parity", "m.keras", "wrong.safetensors", *KERAS_COMMAND]) == 1
    assert capsys.readouterr().out.endswith(f"the first to depart: {layer} → {layer}\n")


@pytest.mark.slow
def test_without_a_mapping_outputs_are_found_in_their_order(keras, monkeypatch, capsys):
    monkeypatch.chdir(keras)
    command = "--source-model", "keras", "--target-model", "net:Net"
    code, found = run(capsys, "m.keras", "right.safetensors", *command)
    assert code == 0
    assert [row["source"] for row in found["layers"] if row["agrees"]][-2:] == ["four", ""]
    spoil("two.weight", lambda array: array.swapaxes(0, 1))
    code, found = run(capsys, "m.keras", "wrong.safetensors", *command)
    assert code == 1
    assert next(row["source"] for row in found["layers"] if not row["agrees"]) == "two"


@pytest.mark.slow
def test_another_epsilon_is_found_where_no_weight_shows_it(keras, monkeypatch, capsys):
    monkeypatch.chdir(keras)
    (keras / "other.py").write_text(TORCH.replace("eps=1e-3", "eps=0.3"))
    command = [*KERAS_COMMAND[:-1], "other:Net"]
    code, found = run(capsys, "m.keras", "right.safetensors", *command)
    assert code == 1
    assert next(row["source"] for row in found["layers"] if not row["agrees"]) == "norm"


@pytest.mark.slow
def test_a_flatten_order_and_an_input_of_ones_own(keras, monkeypatch, capsys):
    monkeypatch.chdir(keras)
    spoil("three.weight", lambda w: w.reshape(4, 4, 2, 2).transpose(0, 2, 3, 1).reshape(4, 16))
    np.save("x.npy", np.random.default_rng(1).random((3, 8, 8, 3), np.float32))
    arguments = "m.keras", "wrong.safetensors", *KERAS_COMMAND, "--input", "x.npy"
    code, found = run(capsys, *arguments)
    assert code == 1
    assert next(row["source"] for row in found["layers"] if not row["agrees"]) == "three"


SLOW = pytest.param("savedmodel", marks=pytest.mark.slow)


@pytest.mark.parametrize("name", ["tiny", SLOW])
def test_a_right_port_of_slim_and_of_a_savedmodel_agrees(name, tmp_path, monkeypatch, capsys):
    sources(name, tmp_path, monkeypatch, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "savedmodel"])
def test_a_wrong_port_of_slim_and_of_a_savedmodel(name, tmp_path, monkeypatch, capsys):
    command, spoilt = sources(name, tmp_path, monkeypatch, capsys)
    spoil(spoilt, lambda array: array.swapaxes(0, 1))
    code, found = run(capsys, command[0], "wrong.safetensors", *command[1:])
    assert code == 1
    first = next(row for row in found["layers"] if not row["agrees"])
    assert first["target"] == spoilt.partition(".")[0]


def sources(name, tmp_path, monkeypatch, capsys) -> tuple[list[str], str]:
    """A right port, which agrees; the command that compares, and a tensor to spoil."""
    if oracles.missing("tensorflow", "tf_slim", "torch"):
        pytest.skip("tensorflow, tf_slim or torch is not installed")
    monkeypatch.chdir(tmp_path)
    if name == "tiny":
        Path("tiny.py").write_text(SLIM)
        Path("net.py").write_text(SLIM_TORCH)
        Path("m.yaml").write_text(SLIM_RULES)
        child(Path("tiny.py").read_text(), tmp_path, TF_USE_LEGACY_KERAS="1")
        source, model, target = "slim.ckpt", "slim:tiny:net", "net:net"
        layers, spoilt = ["conv1/conv1_1", "conv1/conv1_2", "fc6", "fc8"], "2.weight"
    else:
        child(KERAS, tmp_path, KERAS_BACKEND="tensorflow")
        Path("net.py").write_text(TORCH)
        Path("m.yaml").write_text("")
        source, model, target = "exported", "savedmodel", "net:Net"
        layers, spoilt = [], "two.weight"
        write_savedmodel_rules(source)
    ported(source, "m.yaml")
    command = "-m", "m.yaml", "--source-model", model, "--target-model", target
    code, found = run(capsys, source, "right.safetensors", *command)
    assert code == 0, found
    assert all(row["agrees"] for row in found["layers"]), found
    named = [row["source"].removeprefix("tiny/") for row in found["layers"]]
    assert len(named) >= 5
    if layers:
        assert named == [*layers, ""]
    return [source, *command], spoilt


def write_savedmodel_rules(source: str) -> None:
    """The rules of the Keras model, for the names that the SavedModel has for the same values."""
    with converter.open("m.keras") as keras_file, converter.open(source) as exported:
        known = {tensor.numpy().tobytes(): name for name, tensor in exported.items()}
        text = RULES
        for name, tensor in keras_file.items():
            text = text.replace(f"'{name}'", f"'{known[tensor.numpy().tobytes()]}'")
        used = [name for name in exported if f"'{name}'" in text]
        text += "drop:\n" + "".join(
            f"  - {{source: '{name}', because: not a weight}}\n"
            for name in exported
            if name not in used
        )
    Path("m.yaml").write_text(text)


@pytest.mark.parametrize(
    ("model", "match"),
    [
        ("math:nothing", "cannot be run: AttributeError: module 'math' has no attribute 'nothing'"),
        ("nowhere:net", "cannot be run: ModuleNotFoundError: No module named 'nowhere'"),
    ],
)
def test_a_model_that_cannot_be_run(model, match, tmp_path):
    if oracles.missing("torch"):
        pytest.skip("torch is not installed")
    request = {"kind": "torch", "model": model, "weights": "", "seed": 0, "inputs": {}}
    with pytest.raises(SourceError, match=match):
        _run(tmp_path / "run", request, {})


# ── how far apart ────────────────────────────────────────────────────────────────────────────


def test_departure_reads_channels_last_and_first():
    random = np.random.default_rng(0)
    a = random.random((2, 5, 6, 3), np.float32)
    assert departure(a, np.moveaxis(a, -1, 1)) == 0
    assert departure(a, a) == 0
    assert departure(a[:, :1, :1], a[:, 0, 0]) == 0
    assert departure(a, np.moveaxis(a, 1, 2)) == float("inf")
    assert 0.05 < departure(a, np.moveaxis(a, -1, 1) + 0.1) < 0.2
    assert departure(a, a * np.nan) == float("inf")
    assert departure(a * 0, a * 0) == 0
