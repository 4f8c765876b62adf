"""The TensorFlow classes that transformers had, and the PyTorch classes of today, with every head.

TensorFlow builds each model small, with random weights, runs it and saves it as `tf_model.h5`; our
mapping converts the file; the PyTorch class takes every weight of it, and no other, and says the
same.  What transformers itself made of such files, up to 4.x, is the same bit for bit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import converter
from tests import oracles
from tests.conversions.transformers_tf import FAMILIES
from tests.test_text_oracles import ALBERT, BERT, ELECTRA, TOLERANCE, batch, pytestmark

__all__ = ["batch", "pytestmark"]

CONFIGS = {"Bert": BERT, "Albert": ALBERT, "Electra": ELECTRA}
CASES = {
    f"{family}{head}": (family, number)
    for family, heads in FAMILIES.items()
    for number, head in enumerate(heads)
}
Arrays = dict[str, NDArray[Any]]


def config(name: str) -> dict[str, Any]:
    """Three labels where the head asks for them; answers have a start and an end."""
    return CONFIGS[CASES[name][0]] | ({"num_labels": 3} if name.endswith("Classification") else {})


def mapping(name: str) -> Any:
    family, head = CASES[name]
    return converter.mapping(f"{family.lower()}/tf-transformers", sizes={"head": head})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("transformers-tf")


def run(module: str, folder: Path, jobs: list[dict[str, Any]]) -> None:
    path = folder / f"{module}.json"
    path.write_text(json.dumps(jobs), "utf-8")
    oracles.run(module, path)


@pytest.fixture(scope="module")
def sources(folder, batch) -> dict[str, Path]:
    """What TensorFlow's classes save; beside each what they say, and what transformers loads."""
    jobs = [
        {
            "model": name,
            "config": config(name),
            "inputs": str(batch),
            "folder": str(folder / name),
            "out": str(folder / f"{name}.npz"),
            "state": str(folder / f"{name}-state.npz"),
        }
        for name in CASES
    ]
    run("transformers_tf", folder, jobs)
    return {name: folder / name / "tf_model.h5" for name in CASES}


@pytest.fixture(scope="module")
def files(folder, sources) -> dict[str, Path]:
    """What our mappings make of them."""
    found = {name: folder / f"{name}.safetensors" for name in CASES}
    for name, target in found.items():
        with converter.open(sources[name]) as source:
            converter.save(mapping(name)(source), target)
    return found


@pytest.fixture(scope="module")
def said(folder, batch, files) -> dict[str, Arrays]:
    """What PyTorch's classes say; each file gives every weight, strictly."""
    jobs = [
        {
            "model": name,
            "config": config(name),
            "file": str(files[name]),
            "inputs": str(batch),
            "out": str(folder / f"{name}-torch.npz"),
        }
        for name in CASES
    ]
    run("transformers_text", folder, jobs)
    return {name: oracles.load_arrays(folder / f"{name}-torch.npz") for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_pytorchs_class_says_what_tensorflows_says(name, said, folder):
    expected = oracles.load_arrays(folder / f"{name}.npz")
    assert expected
    assert expected.keys() <= said[name].keys()
    for output, wanted in expected.items():
        assert np.abs(wanted).max() > 0.1
        found = said[name][output]
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() <= TOLERANCE * np.abs(wanted).max()


UNUSED = "predictions/tf_albert_{}/predictions/bias:0"


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_is_what_transformers_itself_loaded(name, sources, files, folder):
    """But for a bias of ALBERT: it loaded the one that its own TensorFlow class does not use."""
    expected = oracles.load_arrays(folder / f"{name}-state.npz")
    with converter.open(files[name]) as found:
        ours = {key: tensor.numpy() for key, tensor in found.items()}
    if name in ("AlbertForPreTraining", "AlbertForMaskedLM"):
        theirs, wanted = expected.pop("predictions.bias"), ours.pop("predictions.bias")
        np.testing.assert_array_equal(expected.pop("predictions.decoder.bias"), theirs)
        kind = "for_pre_training" if name.endswith("PreTraining") else "for_masked_lm"
        with converter.open(sources[name]) as source:
            np.testing.assert_array_equal(theirs, source[UNUSED.format(kind)].numpy())
        assert not np.array_equal(theirs, wanted)
    assert ours.keys() <= expected.keys()
    for key, array in ours.items():
        np.testing.assert_array_equal(array, expected[key], strict=True)
    tied = {array.tobytes() for array in ours.values()}
    for key in expected.keys() - ours.keys():
        assert expected[key].tobytes() in tied, key


@pytest.mark.parametrize("name", CASES)
def test_the_way_back_returns_every_bit(name, sources, files):
    with converter.open(sources[name]) as before, converter.open(files[name]) as there:
        dropped = mapping(name).plan(before).dropped
        again = mapping(name).inverse()(there)
        named = {before.aliases[key][0]: key for key in before if key not in dropped}
        assert again.keys() == named.keys()
        for path, key in named.items():
            assert again[path].numpy().tobytes() == before[key].numpy().tobytes(), path
