"""Every shipped mapping: clean, complete, invertible, and for VGG-16 right in every tensor.

What the tensors should be is worked out here by hand, with NumPy and from the names, not through
any mapping.  Shapes are those of the real models; values are of a narrow variant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import converter
from converter.language import load, shipped_names
from converter.language.load import shipped
from converter.tensors import TensorSpec, from_arrays
from tests import vgg16

Array = NDArray[Any]
Arrays = Mapping[str, Array]


def hwio_to_oihw(kernel: Array) -> Array:
    return np.moveaxis(kernel, (3, 2), (0, 1))


def channels_first(rows: Array) -> Array:
    """Dense weights whose rows are flattened H W C, to columns flattened C H W: by counting."""
    count = rows.shape[0]
    channels = count // 49
    order = [
        (y * 7 + x) * channels + c for c in range(channels) for y in range(7) for x in range(7)
    ]
    return rows[order].T


def torch_convolutions(arrays: Arrays, scope: str) -> dict[str, Array]:
    """`conv3/conv3_1` and the other twelve, as the entries of torchvision's `features`."""
    layers = [
        f"conv{b}/conv{b}_{k}" for b, (_, n) in enumerate(vgg16.BLOCKS, 1) for k in range(1, n + 1)
    ]
    found = {}
    for feature, layer in zip(vgg16.FEATURES, layers, strict=True):
        found[f"{scope}.{feature}.weight"] = hwio_to_oihw(arrays[f"vgg_16/{layer}/weights"])
        found[f"{scope}.{feature}.bias"] = arrays[f"vgg_16/{layer}/biases"]
    return found


def slim_to_torchvision(arrays: Arrays) -> dict[str, Array]:
    found = torch_convolutions(arrays, "features")
    fc6, fc7, fc8 = (arrays[f"vgg_16/fc{n}/weights"] for n in (6, 7, 8))
    found["classifier.0.weight"] = channels_first(fc6.reshape(-1, fc6.shape[3]))
    found["classifier.3.weight"] = fc7[0, 0].T
    found["classifier.6.weight"] = fc8[0, 0].T
    for entry, n in ((0, 6), (3, 7), (6, 8)):
        found[f"classifier.{entry}.bias"] = arrays[f"vgg_16/fc{n}/biases"]
    return found


def slim_to_faster_rcnn(arrays: Arrays) -> dict[str, Array]:
    found = {
        name: array
        for name, array in arrays.items()
        if name.startswith("vgg_16/") and "fc8" not in name and "mean_rgb" not in name
    }
    found["vgg_16/conv1/conv1_1/weights"] = arrays["vgg_16/conv1/conv1_1/weights"][:, :, [2, 1, 0]]
    fc6, fc7 = arrays["vgg_16/fc6/weights"], arrays["vgg_16/fc7/weights"]
    found["vgg_16/fc6/weights"] = fc6.reshape(-1, fc6.shape[3])
    found["vgg_16/fc7/weights"] = fc7[0, 0]
    return found


def faster_rcnn_to_pytorch(arrays: Arrays) -> dict[str, Array]:
    found = torch_convolutions(arrays, "vgg.features")
    found["vgg.classifier.0.weight"] = channels_first(arrays["vgg_16/fc6/weights"])
    found["vgg.classifier.3.weight"] = arrays["vgg_16/fc7/weights"].T
    found["vgg.classifier.0.bias"] = arrays["vgg_16/fc6/biases"]
    found["vgg.classifier.3.bias"] = arrays["vgg_16/fc7/biases"]
    heads = {
        "rpn_conv/3x3": "rpn_net",
        "rpn_cls_score": "rpn_cls_score_net",
        "rpn_bbox_pred": "rpn_bbox_pred_net",
        "cls_score": "cls_score_net",
        "bbox_pred": "bbox_pred_net",
    }
    for head, net in heads.items():
        weights = arrays[f"vgg_16/{head}/weights"]
        found[f"{net}.weight"] = hwio_to_oihw(weights) if weights.ndim == 4 else weights.T
        found[f"{net}.bias"] = arrays[f"vgg_16/{head}/biases"]
    return found


def backbone(shrink: int = vgg16.FULL) -> vgg16.Table:
    """What slim has of a tf-faster-rcnn: all but the heads."""
    heads = ("rpn_", "cls_score", "bbox_pred")
    table = vgg16.faster_rcnn(shrink)
    return {n: e for n, e in table.items() if not n.removeprefix("vgg_16/").startswith(heads)}


def snapshot(shrink: int = vgg16.FULL) -> vgg16.Table:
    return vgg16.faster_rcnn(shrink) | vgg16.training_leftovers(shrink)


@dataclass(frozen=True)
class Case:
    """What a shipped mapping goes from and to, what it drops, and NumPy's way of doing it."""

    source: Callable[[int], vgg16.Table]
    target: Callable[[int], vgg16.Table]
    drops: frozenset[str]
    oracle: Callable[[Arrays], dict[str, Array]]


SLIM_ONLY = {"vgg_16/mean_rgb", "global_step"}
FC8 = {"vgg_16/fc8/weights", "vgg_16/fc8/biases"}
CASES = {
    "vgg16/slim-torchvision": Case(
        vgg16.slim, vgg16.torchvision, frozenset(SLIM_ONLY), slim_to_torchvision
    ),
    "vgg16/slim-fasterrcnn": Case(
        vgg16.slim, backbone, frozenset(SLIM_ONLY | FC8), slim_to_faster_rcnn
    ),
    "vgg16/fasterrcnn-pytorch": Case(
        snapshot,
        vgg16.pytorch_faster_rcnn,
        frozenset(vgg16.training_leftovers()),
        faster_rcnn_to_pytorch,
    ),
}


def specs(table: vgg16.Table) -> dict[str, TensorSpec]:
    return {name: TensorSpec(shape, np.dtype(dtype)) for name, (shape, dtype) in table.items()}


@pytest.fixture(params=CASES)
def name(request) -> str:
    return request.param


@pytest.fixture
def case(name) -> Case:
    return CASES[name]


@pytest.fixture
def port(name) -> converter.Port:
    return converter.mapping(name)


RENAMES = {"vgg16/default-fasterrcnn"}  # nothing else; held against the code that did it before


def test_every_shipped_mapping_has_a_case():
    """Those of other folders have tests of their own: test_conversions and what it names."""
    names = {name for name in shipped_names() if name.startswith("vgg16/")}
    assert names - RENAMES == set(CASES)


@pytest.mark.parametrize("shipped_name", shipped_names())
def test_a_mapping_says_what_it_is(shipped_name):
    rules = load(shipped_name)
    assert rules.name == shipped_name
    assert rules.path == shipped() / f"{shipped_name}.yaml"
    assert rules.about
    assert rules.about[0].isupper()
    assert not rules.about.endswith(".")
    assert "\n" not in rules.about
    assert rules.source_model
    assert rules.target_model
    assert all(drop.because for drop in rules.drops)


def test_the_plan_is_clean_and_makes_the_real_target(port, case):
    plan = port.plan(specs(case.source(vgg16.FULL)))
    assert plan.problems == ()
    assert plan.specs == specs(case.target(vgg16.FULL))
    assert set(plan.dropped) == case.drops
    assert plan.left == ()


def test_the_way_back_makes_what_was_mapped(port, case):
    source, target = (specs(table(vgg16.FULL)) for table in (case.source, case.target))
    plan = port.inverse().plan(target)
    assert plan.problems == ()
    assert plan.specs == {n: spec for n, spec in source.items() if n not in case.drops}
    assert not plan.dropped


def test_every_tensor_is_what_numpy_makes_of_it(port, case):
    arrays = dict(vgg16.arrays(case.source(vgg16.TINY)))
    found = port(from_arrays(arrays))
    expected = case.oracle(arrays)
    assert set(found) == set(expected)
    for target, array in expected.items():
        np.testing.assert_array_equal(found[target].numpy(), array, strict=True)


def test_there_and_back_is_where_it_was(port, case):
    arrays = dict(vgg16.arrays(case.source(vgg16.TINY)))
    again = port.inverse()(port(from_arrays(arrays)))
    assert set(again) == set(arrays) - case.drops
    for source, tensor in again.items():
        assert tensor.numpy().tobytes() == arrays[source].tobytes()


def test_back_and_there_is_where_it_was(port, case):
    arrays = dict(vgg16.arrays(case.target(vgg16.TINY)))
    again = port(port.inverse()(from_arrays(arrays)))
    assert set(again) == set(arrays)
    for target, tensor in again.items():
        assert tensor.numpy().tobytes() == arrays[target].tobytes()


def test_contracts_differ_exactly_where_values_do(name, port):
    rules = port.rules
    reverses = any(op.name == "reverse" for rule in rules.rules for op in rule.ops)
    source, target = rules.source_contract, rules.target_contract
    assert source.keys() == target.keys() == {"channels", "range", "mean"}
    assert (source["channels"] != target["channels"]) == reverses


def test_only_what_shapes_cannot_confirm_is_doubted(name, port, case):
    """A transposed kernel of as many inputs as outputs, a flattened one, a reversal."""
    plan = port.plan(specs(case.source(vgg16.FULL)))
    doubted = {step.sources[0] for step in plan.steps if step.doubts}
    table = case.source(vgg16.FULL)
    square = {n for n, (shape, _) in table.items() if len(shape) > 1 and shape[-1] == shape[-2]}
    first, flat = "vgg_16/conv1/conv1_1/weights", "vgg_16/fc6/weights"  # the first is 3 by 3 by 3
    expected = {
        "vgg16/slim-torchvision": square | {first, flat},
        "vgg16/slim-fasterrcnn": {first},
        "vgg16/fasterrcnn-pytorch": square - case.drops | {first, flat},
    }[name]
    assert doubted == expected


def test_mappings_chain_without_a_file_between():
    """slim to tf-faster-rcnn's backbone to pytorch's names, heads aside."""
    arrays = dict(vgg16.arrays(vgg16.slim(vgg16.TINY)))
    first = converter.mapping("vgg16/slim-fasterrcnn")
    second = converter.mapping("vgg16/fasterrcnn-pytorch")
    chosen = second.only(lambda name: name.startswith("vgg."))
    chained = chosen(first(from_arrays(arrays)))
    expected = {f"vgg.{n}": a for n, a in slim_to_torchvision(arrays).items() if ".6." not in n}
    expected["vgg.features.0.weight"] = expected["vgg.features.0.weight"][:, ::-1]
    assert set(chained) == set(expected)
    for target, array in expected.items():
        np.testing.assert_array_equal(chained[target].numpy(), array, strict=True)
