"""Recurrent layers: Keras 3 or 2 on one side, `torch.nn` on the other, both in float64.

Keras saves a stack with random weights in its files, and runs it; our mapping converts the file;
PyTorch's layer takes the state strictly, and says the same.  Back again, bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

import converter
from converter.layers import LAYERS
from converter.tensors import from_arrays
from tests import oracles

MISSING = oracles.missing("h5py", "keras", "tensorflow", "tf_keras", "torch")
pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]

Array = NDArray[Any]
CLOSE = {"rtol": 1e-10, "atol": 1e-12}  # of float64
UNITS = 5


class Stack(NamedTuple):
    """Layers of a kind, the mapping, and the file that Keras writes."""

    kind: str
    mapping: str
    layers: int
    file: str
    bidirectional: bool = False
    options: Mapping[str, Any] = {}
    package: str = "keras"

    def job(self, **paths: Path | str) -> dict[str, Any]:
        places = {name: str(path) for name, path in paths.items()}
        fields = ("package", "kind", "layers", "bidirectional", "options")
        return {**{name: getattr(self, name) for name in fields}, "units": UNITS, **places}


BEFORE = {"reset_after": False}
KERAS_2 = {"file": "h5", "package": "tf_keras"}
STACKS = {
    "lstm": Stack("LSTM", "lstm", 1, "keras"),
    "lstm-3": Stack("LSTM", "lstm", 3, "weights.h5"),
    "bidirectional-lstm": Stack("LSTM", "bidirectional-lstm", 1, "h5", bidirectional=True),
    "bidirectional-lstm-3": Stack("LSTM", "bidirectional-lstm", 3, "keras", bidirectional=True),
    "gru": Stack("GRU", "gru", 1, "weights.h5"),
    "gru-3": Stack("GRU", "gru", 3, "h5"),
    "bidirectional-gru": Stack("GRU", "bidirectional-gru", 1, "keras", bidirectional=True),
    "bidirectional-gru-3": Stack("GRU", "bidirectional-gru", 3, "h5", bidirectional=True),
    "gru-reset-before": Stack("GRU", "gru-reset-before", 2, "keras", options=BEFORE),
    "keras-2-lstm": Stack("LSTM", "lstm", 2, **KERAS_2),
    "keras-2-bidirectional-lstm": Stack(
        "LSTM", "bidirectional-lstm", 2, bidirectional=True, **KERAS_2
    ),
    "keras-2-gru": Stack("GRU", "gru", 2, **KERAS_2),
    "keras-2-bidirectional-gru": Stack(
        "GRU", "bidirectional-gru", 2, bidirectional=True, **KERAS_2
    ),
    "keras-2-gru-reset-before": Stack("GRU", "gru-reset-before", 2, options=BEFORE, **KERAS_2),
}
SAME = [name for name, stack in STACKS.items() if stack.options != BEFORE]
RESET_BEFORE = [name for name, stack in STACKS.items() if stack.options == BEFORE]
FROM_TORCH = {
    name: stack
    for name, stack in STACKS.items()
    if stack.kind == "LSTM" and stack.package == "keras"
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("recurrent")


def run(module: str, folder: Path, jobs: list[dict[str, Any]]) -> None:
    path = folder / f"{module}.json"
    path.write_text(json.dumps(jobs), "utf-8")
    oracles.run(module, path)


@pytest.fixture(scope="module")
def keras(folder) -> dict[str, dict[str, Array]]:
    """Inputs, outputs and weights of Keras' stacks, and their files beside."""
    outs = {name: folder / f"{name}.npz" for name in STACKS}
    jobs = [
        stack.job(file=folder / f"{name}.{stack.file}", out=outs[name])
        for name, stack in STACKS.items()
    ]
    run("keras_recurrent", folder, jobs)
    return {name: oracles.load_arrays(out) for name, out in outs.items()}


@pytest.fixture(scope="module")
def states(folder, keras) -> dict[str, Path]:
    """What our mappings make of Keras' files."""
    paths = {name: folder / f"state-{name}.npz" for name in STACKS}
    for name, stack in STACKS.items():
        with converter.open(folder / f"{name}.{stack.file}") as source:
            mapped = converter.mapping(f"recurrent/{stack.mapping}-keras-torch")(source)
            oracles.save_arrays(paths[name], {n: tensor.numpy() for n, tensor in mapped.items()})
    return paths


@pytest.fixture(scope="module")
def torch(folder, states) -> dict[str, dict[str, Array]]:
    """What PyTorch makes of the same input with the converted states."""
    outs = {name: folder / f"torch-{name}.npz" for name in STACKS}
    jobs = [
        stack.job(x=folder / f"{name}.npz", state=states[name], out=outs[name])
        for name, stack in STACKS.items()
    ]
    run("torch_recurrent", folder, jobs)
    return {name: oracles.load_arrays(out) for name, out in outs.items()}


@pytest.mark.parametrize("name", [name for name in STACKS if name.startswith("keras-2")])
def test_keras_2_has_names_of_its_own(name, folder, keras):
    with converter.open(folder / f"{name}.h5") as source:
        assert source.metadata["keras_version"].startswith("2.")
        expected = {f"{path.split('/')[0]}/{path}:0" for path in keras[name] if "/" in path}
        assert {*source} == expected


@pytest.mark.parametrize("name", SAME)
def test_pytorch_computes_what_keras_does(name, keras, torch):
    assert np.abs(keras[name]["y"]).max() > 0.1
    np.testing.assert_allclose(torch[name]["y"], keras[name]["y"], **CLOSE)


@pytest.mark.parametrize("name", RESET_BEFORE)
def test_a_reset_before_the_product_is_no_layer_of_pytorch(name, keras, torch):
    """As the mapping's contract says: torch.nn.GRU differs, and what it names is the same."""
    expected = keras[name]["y"]
    np.testing.assert_allclose(torch[name]["y-reset-before"], expected, **CLOSE)
    assert np.abs(torch[name]["y"] - expected).max() > 1e-2
    difference = np.abs(torch["gru-3"]["y-reset-before"] - keras["gru-3"]["y"]).max()
    assert difference > 1e-2  # nor does it go the other way


def reset_before(side: str, weights: dict[str, Array], x: Array) -> Array:
    """What the probes' convention of a side computes."""
    layer = LAYERS["gru-reset-before"]
    return layer.conventions[side](weights, x, {**layer.sizes, "u": UNITS})


@pytest.mark.parametrize("name", RESET_BEFORE)
def test_the_convention_of_a_reset_before_is_that_of_keras(name, keras):
    found = keras[name]["x"]
    for cell in ("gru", "gru_1"):
        scope = f"{cell}/gru_cell/"
        weights = {path.removeprefix(scope): array for path, array in keras[name].items()}
        found = reset_before("keras", weights, found)
    np.testing.assert_allclose(found, keras[name]["y"], **CLOSE)


def test_the_convention_of_a_reset_before_has_the_layout_of_pytorch(keras, states, torch):
    """A layer written by hand takes the state of a GRU, neither bias of which is zero."""
    state = oracles.load_arrays(states["gru"])
    assert all(state[name].all() for name in ("bias_ih_l0", "bias_hh_l0"))
    found = reset_before("torch", state, keras["gru"]["x"])
    np.testing.assert_allclose(found, torch["gru"]["y-reset-before"], **CLOSE)


@pytest.mark.parametrize("name", STACKS)
def test_the_way_back_is_keras_file(name, states, keras):
    stack = STACKS[name]
    mapping = converter.mapping(f"recurrent/{stack.mapping}-keras-torch")
    state = oracles.load_arrays(states[name])
    again = mapping.inverse()(from_arrays(state))
    paths = {path: array for path, array in keras[name].items() if path not in ("x", "y")}
    assert set(again) == set(paths)
    for path, array in paths.items():
        assert again[path].numpy().tobytes() == array.tobytes(), path


# What PyTorch trained: two biases that are not zero.


@pytest.fixture(scope="module")
def trained(folder, keras) -> dict[str, tuple[Array, Array]]:
    """Outputs of a random `torch.nn.LSTM`, and of Keras with our conversion of it."""
    jobs = {
        name: stack.job(
            x=folder / f"{name}.npz",
            state=folder / f"trained-{name}.npz",
            out=folder / f"trained-{name}-y.npz",
        )
        for name, stack in FROM_TORCH.items()
    }
    run("torch_recurrent", folder, list(jobs.values()))
    given = []
    for name, stack in FROM_TORCH.items():
        state = oracles.load_arrays(folder / f"trained-{name}.npz")
        mapped = converter.mapping(f"recurrent/{stack.mapping}-torch-keras")(from_arrays(state))
        weights = folder / f"given-{name}.npz"
        oracles.save_arrays(weights, {n: tensor.numpy() for n, tensor in mapped.items()})
        given.append(
            stack.job(given=weights, x=folder / f"{name}.npz", out=folder / f"{name}-2.npz")
        )
    run("keras_recurrent", folder, given)
    return {
        name: (
            oracles.load_arrays(folder / f"trained-{name}-y.npz")["y"],
            oracles.load_arrays(folder / f"{name}-2.npz")["y"],
        )
        for name in FROM_TORCH
    }


@pytest.mark.parametrize("name", FROM_TORCH)
def test_keras_computes_what_pytorch_trained(name, trained):
    expected, found = trained[name]
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, **CLOSE)
