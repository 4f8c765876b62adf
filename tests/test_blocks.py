"""The layer blocks: what the real layers compute is the same on both sides of the mapping.

Keras or Flax makes a layer with random weights and runs it; the block maps the weights; PyTorch
loads them, strictly, and runs its own layer on the same input.  Each framework has its own process.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

import converter
from converter.language import load, shipped_names
from converter.layers import LAYERS
from converter.plan import port
from converter.tensors import from_arrays
from tests import oracles

Array = NDArray[Any]

BLOCKS = [name.removeprefix("layers/") for name in shipped_names() if name.startswith("layers/")]
SIZES = {
    "depthwise-keras-torch": {"multiplier": 2},
    "separable-keras-torch": {"multiplier": 2},
    "depthwise-tf-torch": {"multiplier": 2},
    "separable-tf-torch": {"multiplier": 2},
    "lstm-tf-torch": {"i": 6},
    "bidirectional-lstm-tf-torch": {"i": 6},
    "dense-flatten-keras-torch": {"h": 9, "w": 8},
    "dense-flatten-flax-torch": {"h": 9, "w": 8},
    "dense-flatten-tf-torch": {"h": 9, "w": 8},
} | {name: {"heads": 3} for name in BLOCKS if re.match("attention-(fused-)?(keras|flax)", name)}
KERAS = [name for name in BLOCKS if name.endswith("-keras-torch")] + ["conv1-keras-torch"]
FLAX = [name for name in BLOCKS if name.endswith("-flax-torch") and "stats" not in name]
TF = ["lstm-tf-torch", "bidirectional-lstm-tf-torch"]


def block(name: str) -> converter.Port:
    name = name.replace("conv1-", "conv-")
    return port(f"layers/{name}", sizes=SIZES.get(name))


def mapped(name: str, weights: dict[str, Array]) -> dict[str, Array]:
    """What a block makes of a layer's weights, after a look at the way back."""
    stats = {n: a for n, a in weights.items() if n in ("mean", "var")}
    if name == "batchnorm-flax-torch":
        rest = {n: a for n, a in weights.items() if n not in stats}
        return mapped("", rest) | mapped("batchnorm-stats-flax-torch", stats)
    mapping = block(name or "batchnorm-flax-torch")
    target = mapping(from_arrays(weights))
    again = mapping.inverse()(target)
    assert set(again) == set(weights)
    for key, array in weights.items():
        np.testing.assert_array_equal(again[key].numpy(), array, strict=True)
    return {key: tensor.numpy() for key, tensor in target.items()}


class Ran(NamedTuple):
    """A layer that both frameworks ran: weights before and after the block, input, outputs."""

    source: dict[str, Array]
    target: dict[str, Array]
    x: Array
    expected: Array
    found: Array


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """For each block: what the source's layer computes, and what PyTorch's does."""
    needed = oracles.missing("keras", "tensorflow", "flax", "torch")
    if needed:
        pytest.skip(f"needs {', '.join(needed)}")
    folder = tmp_path_factory.mktemp("layers")
    cases: dict[str, dict[str, Array]] = {}
    for framework in ("keras", "flax", "tf"):
        oracles.run(f"{framework}_layers", folder)
        for key, array in oracles.load_arrays(folder / f"{framework}.npz").items():
            case, _, name = key.partition("|")
            cases.setdefault(case, {})[name] = array
    expected = {case: arrays.pop("y") for case, arrays in cases.items()}
    inputs = {case: arrays.pop("x") for case, arrays in cases.items()}
    flattened = "dense-flatten-flax-torch"  # Flax flattens nothing by itself
    inputs[flattened] = inputs[flattened].reshape(-1, 9, 8, 4)
    states = {case: mapped(case, arrays) for case, arrays in cases.items()}
    given = {
        f"{case}|{name}": array
        for case, state in states.items()
        for name, array in {**state, "x": inputs[case]}.items()
    }
    oracles.save_arrays(folder / "state.npz", given)
    oracles.run("torch_layers", folder / "state.npz", folder / "torch.npz")
    found = oracles.load_arrays(folder / "torch.npz")
    return {
        case: Ran(cases[case], states[case], inputs[case], expected[case], found[case])
        for case in cases
    }


@pytest.mark.oracle
@pytest.mark.parametrize("name", KERAS + FLAX + TF)
def test_the_layers_of_both_sides_compute_the_same(ran, name):
    layer = ran[name]
    assert layer.found.shape == layer.expected.shape
    np.testing.assert_allclose(layer.found, layer.expected, atol=1e-5, rtol=1e-5)


@pytest.mark.oracle
@pytest.mark.parametrize("name", KERAS + FLAX + TF)
def test_the_conventions_of_probes_are_those_of_the_real_layers(ran, name):
    """What NumPy computes of the weights of either side is what the framework's layer did."""
    real = ran[name]
    of_all = load(f"layers/{name.replace('conv1-', 'conv-')}").probes
    probes = [probe for probe in of_all if probe.place.via is None]  # none of what it includes
    rank = f"{real.x.ndim - 2}d"  # a convolution has a probe for each number of axes
    probe = next((probe for probe in probes if rank in probe.layer), probes[0])
    layer = LAYERS[probe.layer]
    sizes = {**layer.sizes, "u": 5, **SIZES.get(name, {})}
    sides = ((probe.source, real.source, real.expected), (probe.target, real.target, real.found))
    for convention, weights, output in sides:
        found = layer.conventions[convention](weights, real.x, sizes)
        assert found.shape == output.shape
        np.testing.assert_allclose(found, output, atol=1e-5, rtol=1e-5)


# Names of TF-Slim, whose layers are those of Keras under other names.

SLIM = {
    "conv-tf-torch": {"weights": (3, 2, 4, 5), "biases": (5,)},
    "depthwise-tf-torch": {"depthwise_weights": (3, 2, 4, 2), "biases": (8,)},
    "separable-tf-torch": {
        "depthwise_weights": (3, 2, 4, 2),
        "pointwise_weights": (1, 1, 8, 5),
        "biases": (5,),
    },
    "conv-transpose-tf-torch": {"weights": (3, 2, 5, 4), "biases": (5,)},
    "dense-tf-torch": {"weights": (4, 5), "biases": (5,)},
    "dense-flatten-tf-torch": {"weights": (288, 5), "biases": (5,)},
    "batchnorm-tf-torch": dict.fromkeys(("gamma", "beta", "moving_mean", "moving_variance"), (4,)),
    "layernorm-tf-torch": {"gamma": (4,), "beta": (4,)},
    "groupnorm-tf-torch": {"gamma": (4,), "beta": (4,)},
    "embedding-tf-torch": {"embeddings": (7, 4)},
}
OTHER = {"weights": "kernel", "biases": "bias", "pointwise_weights": "pointwise_kernel"}


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype("f4") for name, shape in shapes.items()}


@pytest.mark.parametrize("name", SLIM)
def test_slim_names_are_keras_layers(name):
    arrays = weights(SLIM[name])
    keras = name.replace("-tf-", "-keras-")
    sizes = SIZES.get(name)
    depthwise = "depthwise_kernel" if "separable" in name else "kernel"
    found = port(f"layers/{name}", sizes=sizes)(from_arrays(arrays))
    other = OTHER | {"depthwise_weights": depthwise}
    renamed = {other.get(n, n): array for n, array in arrays.items()}
    expected = port(f"layers/{keras}", sizes=sizes)(from_arrays(renamed))
    assert {n: t.numpy().tobytes() for n, t in found.items()} == {
        n: t.numpy().tobytes() for n, t in expected.items()
    }


def test_without_gamma_the_weight_is_one():
    shapes = dict.fromkeys(("beta", "moving_mean", "moving_variance"), (4,))
    found = mapped("batchnorm-noscale-tf-torch", weights(shapes))
    assert found["weight"].tolist() == [1] * 4
    assert found["num_batches_tracked"].dtype == np.int64


def test_fused_projections_are_parted():
    arrays = weights({"w": (4, 12), "b": (12,)})
    found = mapped("qkv-tf-torch", arrays)
    for nth, each in enumerate("qkv"):
        part = slice(4 * nth, 4 * nth + 4)
        np.testing.assert_array_equal(found[f"{each}_proj.weight"], arrays["w"][:, part].T)
        np.testing.assert_array_equal(found[f"{each}_proj.bias"], arrays["b"][part])


@pytest.mark.parametrize("name", ["attention-tf-torch", "attention-fused-tf-torch"])
def test_projections_of_bert_are_turned(name):
    kinds = ("self/query", "self/key", "self/value", "output/dense")
    shapes = {
        f"{kind}/{part}": s for kind in kinds for part, s in (("kernel", (6, 6)), ("bias", 6))
    }
    arrays = weights(shapes)
    found = mapped(name, arrays)
    for nth, kind in enumerate(kinds):
        kernel, bias = arrays[f"{kind}/kernel"], arrays[f"{kind}/bias"]
        if nth == 3:
            each = found["out_proj.weight"], found["out_proj.bias"]
        elif "fused" in name:
            part = slice(6 * nth, 6 * nth + 6)
            each = found["in_proj_weight"][part], found["in_proj_bias"][part]
        else:
            each = found[f"{'qkv'[nth]}_proj.weight"], found[f"{'qkv'[nth]}_proj.bias"]
        np.testing.assert_array_equal(each[0], kernel.T)
        np.testing.assert_array_equal(each[1], bias)


def test_both_biases_of_an_lstm_are_kept_as_their_sum():
    shapes = {"weight_ih_l0": (20, 6), "weight_hh_l0": (20, 5), "bias_ih_l0": (20,)}
    arrays = weights(shapes | {"bias_hh_l0": (20,)})
    mapping = port("layers/lstm-torch-keras")
    found = mapping(from_arrays(arrays))
    np.testing.assert_array_equal(
        found["bias"].numpy(), arrays["bias_ih_l0"] + arrays["bias_hh_l0"], strict=True
    )
    with pytest.raises(converter.MappingError, match="sum cannot be undone"):
        mapping.inverse()


def test_every_block_is_proven():
    by_hand = {"batchnorm-noscale-tf-torch", "qkv-tf-torch", "lstm-torch-keras"}
    by_hand |= {"attention-tf-torch", "attention-fused-tf-torch"}
    by_hand.add("attention-grouped-megatron-torch")  # in test_hard_ports
    stats = {"batchnorm-stats-flax-torch"}
    assert {*KERAS, *FLAX, *TF, *SLIM, *by_hand, *stats} - {"conv1-keras-torch"} == set(BLOCKS)
    assert all(load(f"layers/{name}").about for name in BLOCKS)
