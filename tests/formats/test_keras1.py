"""Files of Keras 1, made by hand, through the mapping of the cookbook, against Keras 2 itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conformance import differences, make, read

import converter
from tests import oracles

h5py = pytest.importorskip("h5py")

COOKBOOK = Path(__file__).parents[2] / "docs" / "cookbook.md"
GATES = {"lstm_1": "icfo", "gru_1": "zrh"}  # in the order of the file
GATE = {"W": (4, 3), "U": (3, 3), "b": (3,)}
LAYERS = {
    "convolution2d_1": {"W": (6, 3, 2, 5), "b": (6,)},
    **{
        layer: {f"{x}_{gate}": shape for gate in gates for x, shape in GATE.items()}
        for layer, gates in GATES.items()
    },
    "dense_1": {"W": (4, 2), "b": (2,)},
}


@pytest.fixture
def old(tmp_path):
    """A file as Keras 1 saves it: without a version, by which Keras 2 tells it."""
    path = tmp_path / "keras1.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.encode() for layer in LAYERS]
        for layer, weights in LAYERS.items():
            group = file.create_group(layer)
            names = [f"{layer}_{name}:0" for name in weights]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for seed, (name, shape) in enumerate(zip(names, weights.values(), strict=True)):
                group[name] = make("float32", shape, seed=(layer, seed))
    return path


@pytest.fixture
def port(tmp_path):
    text = COOKBOOK.read_text(encoding="utf-8").split("```yaml\n# keras1.yaml\n")[1]
    (tmp_path / "keras1.yaml").write_text(text.split("```")[0])
    return converter.mapping(str(tmp_path / "keras1.yaml"))


def test_the_file_is_read_and_written_as_it_is(old, tmp_path):
    arrays = read(old)
    assert len(arrays) == 2 + 12 + 9 + 2
    with converter.open(old) as checkpoint:
        assert "keras_version" not in checkpoint.metadata
        converter.save(checkpoint, tmp_path / "copy.h5")
    with h5py.File(tmp_path / "copy.h5") as file:
        assert "keras_version" not in file.attrs
        assert [name.decode() for name in file.attrs["layer_names"]] == [*LAYERS]
    assert differences(read(tmp_path / "copy.h5"), arrays) == []


def test_before_keras_1_layers_had_numbers(tmp_path):
    with h5py.File(tmp_path / "old.h5", "w") as file:
        file.attrs["nb_layers"] = 1
        group = file.create_group("layer_0")
        group.attrs["nb_params"] = 2
        group["param_0"], group["param_1"] = np.ones((2, 3), "f4"), np.ones(3, "f4")
    assert {name: array.shape for name, array in read(tmp_path / "old.h5").items()} == {
        "layer_0/param_0": (2, 3),
        "layer_0/param_1": (3,),
    }


def test_there_and_back(old, port, tmp_path):
    with converter.open(old) as checkpoint:
        back = port.inverse()(port(checkpoint))
        assert differences({n: t.numpy() for n, t in back.items()}, read(old)) == []
        converter.save(port(checkpoint), tmp_path / "keras2.h5")
    with h5py.File(tmp_path / "keras2.h5") as file:  # Keras would convert it once more
        assert file.attrs["keras_version"].startswith("2.")


@pytest.mark.oracle
def test_it_is_what_keras_2_makes_of_it(old, port, tmp_path):
    if absent := oracles.missing("tf_keras"):
        pytest.skip(f"not installed: {absent[0]}")
    with converter.open(old) as checkpoint:
        converter.save(port(checkpoint), tmp_path / "keras2.h5")
    oracles.run("keras1", tmp_path)
    theirs, ours = (oracles.load_arrays(tmp_path / f"keras{n}.npz") for n in (1, 2))
    assert len(theirs) == 2 + 3 + 3 + 2
    assert differences(ours, theirs) == []
