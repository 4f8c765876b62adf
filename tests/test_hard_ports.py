"""Ports as hard as those of real networks: each a file of rules, exact to the bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import converter
from converter.plan import Port, port
from converter.tensors import Checkpoint, from_arrays

Array = NDArray[Any]
ROOT = Path(__file__).resolve().parents[1]
PORTS = ROOT / "tests" / "ports"
REAL = ROOT.parent / "shared" / "real"
DTLN = REAL / "dtln"
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


def same(found: Mapping[str, Any], expected: Mapping[str, Array]) -> None:
    """The names, and every bit."""
    assert set(found) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name].numpy(), array, strict=True)
        assert found[name].numpy().tobytes() == np.ascontiguousarray(array).tobytes()


def there_and_back(mapping: Port, source: Checkpoint) -> None:
    """The way back gives every bit that was mapped."""
    dropped = mapping.plan(source).dropped
    again = mapping.inverse()(mapping(source))
    same(again, {name: t.numpy() for name, t in source.items() if name not in dropped})


# DTLN: the same trained network in several forms.

FORMS = {
    "dtln/keras-torch": ("keras/model.h5", "keras-h5__lhwcv-pth", "torch/model.pth"),
    "dtln/savedmodel-keras": ("savedmodel", "savedmodel__keras-h5", "keras/model.h5"),
    "dtln/keras-onnx": ("keras/model.h5", "keras-h5__onnx_1", "onnx/model_1.onnx"),
}


@pytest.mark.skipif(not DTLN.is_dir(), reason="the real weights are not here")
@pytest.mark.parametrize("name", FORMS)
def test_dtln_is_what_its_authors_published(name):
    source, table, target = FORMS[name]
    mapping = port(name)
    with converter.open(DTLN / source) as before, converter.open(DTLN / target) as published:
        found = mapping(before)
        wanted = json.loads((REAL / "expected" / f"dtln_{table}.json").read_text("utf-8"))
        expected = {key: evaluated(entry, before) for key, entry in wanted.items()}
        same(found, expected)
        same(found, {key: published[key].numpy() for key in wanted})
        assert {k for k in published if "cropping" not in k} == set(found)
        there_and_back(mapping, before)


def evaluated(entry: Mapping[str, Any], source: Checkpoint) -> Array:
    """The expression that the table gives, of the tensors that it names."""
    arrays = [source[name if name in source else name + VALUE].numpy() for name in entry["src"]]
    names = dict(zip("abc", arrays, strict=False))
    found = eval(entry["expr"], {"np": np, **names})  # noqa: S307 - a table of the tests' own
    return np.asarray(found)


@pytest.mark.skipif(not DTLN.is_dir(), reason="the real weights are not here")
def test_dtln_travels_as_files_and_back(tmp_path):
    mapping = port("dtln/keras-torch")
    torch, keras = tmp_path / "model.pth", tmp_path / "model.h5"
    with converter.open(DTLN / "keras/model.h5") as before:
        converter.save(mapping(before), torch)
        with converter.open(torch) as middle:
            converter.save(mapping.inverse()(middle), keras)
        with converter.open(keras) as after:
            same(after, {name: tensor.numpy() for name, tensor in before.items()})


@pytest.mark.skipif(not DTLN.is_dir(), reason="the real weights are not here")
def test_a_savedmodel_becomes_torch_without_a_file_between():
    with (
        converter.open(DTLN / "savedmodel") as saved,
        converter.open(DTLN / "torch/model.pth") as published,
    ):
        chained = port("dtln/keras-torch")(port("dtln/savedmodel-keras")(saved))
        same(chained, {name: tensor.numpy() for name, tensor in published.items()})


# An LSTM language model.


def normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.normal(size=shape).astype(np.float32)


def language_model() -> tuple[dict[str, Array], dict[str, Array]]:
    """Its weights in TensorFlow, and what NumPy makes of them for PyTorch."""
    rng = np.random.default_rng(0)
    source, target = {}, {}
    for n, direction in enumerate(("forward", "backward")):
        for k in range(2):
            cell, layer = f"RNN_{n}/RNN/MultiRNNCell/Cell{k}/LSTMCell", f"{direction}_layer_{k}"
            w, b, p = normal(rng, 8, 16), normal(rng, 16), normal(rng, 4, 3)
            source |= {f"{cell}/W_0": w, f"{cell}/B": b, f"{cell}/W_P_0": p}
            i, j, f, o = np.split(w, 4, 1)
            gates = np.concatenate([i, f, j, o], 1).T
            target[f"{layer}.input_linearity.weight"] = gates[:, :5]
            target[f"{layer}.state_linearity.weight"] = gates[:, 5:]
            i, j, f, o = np.split(b, 4)
            bias = np.concatenate([i, f + np.float32(1), j, o])
            target[f"{layer}.state_linearity.bias"] = bias
            target[f"{layer}.state_projection.weight"] = p.T
    for k in range(2):
        high, layer = f"CNN_high_{k}", f"highways.layers.{k}"
        carry, transform = normal(rng, 6, 6), normal(rng, 6, 6)
        source |= {f"{high}/W_carry": carry, f"{high}/W_transform": transform}
        target[f"{layer}.weight"] = np.concatenate([transform.T, -carry.T])
        carry, transform = normal(rng, 6), normal(rng, 6)
        source |= {f"{high}/b_carry": carry, f"{high}/b_transform": transform}
        target[f"{layer}.bias"] = np.concatenate([transform, -carry])
    source["char_embed"] = normal(rng, 7, 3)
    target["char_embedding.weight"] = np.concatenate([np.zeros((1, 3), "f4"), source["char_embed"]])
    return source, target


def test_an_lstm_language_model_is_what_numpy_makes_of_it():
    source, expected = language_model()
    mapping = port(PORTS / "language-model.yaml")
    plan = mapping.plan(from_arrays(source))
    assert plan.problems == ()
    same(mapping(from_arrays(source)), expected)
    rounded = {step.target for step in plan.steps if step.exactness != "exact"}
    assert rounded == {name for name in expected if name.endswith("state_linearity.bias")}


def test_an_lstm_language_model_goes_back_but_for_the_forget_bias():
    source, target = language_model()
    again = port(PORTS / "language-model.yaml").inverse()(from_arrays(target))
    assert set(again) == set(source)
    for name, array in source.items():
        tolerance = 1e-6 if name.endswith("/B") else 0  # 1 was added, and rounded
        np.testing.assert_allclose(again[name].numpy(), array, atol=tolerance, rtol=0)


# Grouped-query attention: groups of queries, a key and a value, one after the other.


@pytest.mark.parametrize(("groups", "queries", "d"), [(2, 4, 3), (4, 1, 2), (1, 8, 5)])
def test_interleaved_attention_is_parted(groups, queries, d):
    rng = np.random.default_rng(0)
    width = groups * (queries + 2) * d
    weight, bias, out = normal(rng, width, 6), normal(rng, width), normal(rng, 6, groups * d)
    source = {"linear_qkv.weight": weight, "linear_qkv.bias": bias, "linear_proj.weight": out}
    expected = {"o_proj.weight": out}
    for kind, first, last in (("q", 0, queries), ("k", queries, -1), ("v", queries + 1, None)):
        for part, array in (("weight", weight), ("bias", bias)):
            heads = array.reshape(groups, queries + 2, d, -1)[:, first:last]
            expected[f"{kind}_proj.{part}"] = heads.reshape(-1, *array.shape[1:])
    mapping = port("layers/attention-grouped-megatron-torch", sizes={"groups": groups, "d": d})
    same(mapping(from_arrays(source)), expected)
    there_and_back(mapping, from_arrays(source))


def test_rotary_halves_become_pairs(tmp_path):
    path = tmp_path / "rotary.yaml"
    path.write_text(
        "mapping: 1\nsizes: {heads: 2, halves: 2}\nrules:\n  - source: q\n    target: q\n"
        "    ops: [rearrange: (heads halves d) i -> (heads d halves) i]\n"
    )
    q = normal(np.random.default_rng(0), 12, 4)
    expected = q.reshape(2, 2, 3, 4).swapaxes(1, 2).reshape(12, 4)
    same(port(path)(from_arrays({"q": q})), {"q": expected})
    there_and_back(port(path), from_arrays({"q": q}))


# A mixture of experts.


def test_experts_are_stacked_in_the_order_of_their_numbers():
    rng = np.random.default_rng(0)
    source, expected = {}, {}
    for i in range(2):
        for n, product, shape in ((1, "wi_0", (5, 3)), (2, "wo", (3, 5)), (3, "wi_1", (5, 3))):
            experts = [normal(rng, *shape) for _ in range(12)]
            named = {f"layers.{i}.experts.{e}.w{n}.weight": a for e, a in enumerate(experts)}
            source |= dict(sorted(named.items()))
            expected[f"layers_{i}/moe/{product}/kernel"] = np.stack([a.T for a in experts])
        gate = normal(rng, 12, 3)
        source[f"layers.{i}.gate.weight"] = gate
        expected[f"layers_{i}/moe/gate/kernel"] = gate.T
    mapping = port(PORTS / "experts.yaml")
    same(mapping(from_arrays(source)), expected)
    there_and_back(mapping, from_arrays(source))
