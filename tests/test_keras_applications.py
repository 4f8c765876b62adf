"""The models of keras.applications against those of torchvision and timm that take their weights.

Keras makes each model with random values, batch-norm statistics among them, and saves it; what the
mapping makes of the file is loaded into the real target class with `strict=True`.  Both run in
float64 on the same images.  Where the target as its package makes it computes something else, as
the mapping's contract says, that difference is asserted, and that it is gone in the target that
the contract names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import converter
from tests import oracles

pytestmark = pytest.mark.skipif(
    bool(oracles.missing("keras", "tensorflow", "torch", "torchvision", "timm")),
    reason="needs Keras, TensorFlow, PyTorch, torchvision and timm",
)
TOLERANCE = 1e-9  # relative to the largest logit, in float64
ROUNDED = 1e-7  # where Keras keeps mean and deviation of the input as float32
NARROW = 8


class Model(NamedTuple):
    """A model of Keras and the one that takes its weights; `match` and `matching` make it equal."""

    mapping: str
    keras: dict[str, Any]
    torch: dict[str, Any]
    sizes: Mapping[str, int] = {}
    tolerance: float = TOLERANCE

    @property
    def stock_differs(self) -> bool:
        return bool({"match", "matching"} & self.torch.keys())


CLASSES = {"num_classes": 16}


def tv(name: str, *match: str, **options: Any) -> dict[str, Any]:
    job = {"model": "torchvision", "name": name, "options": CLASSES | options}
    return job | {"match": match} if match else job


def timm(name: str, **more: Any) -> dict[str, Any]:
    return {"model": "timm", "name": name, "options": CLASSES, **more}


RESNET = ("early_strides", "keras_epsilon")
SAME = {"pad_type": "same", "bn_eps": 1e-3}
MODELS = {
    "vgg16": Model("vgg/keras-torchvision", {"app": "VGG16", "image": 224}, tv("vgg16")),
    "resnet": Model(
        "resnet/keras-torchvision",
        {"app": "resnet.ResNet", "stack": [1, [2, 1, 2, 1]], "options": {"preact": False, "use_bias": True}, "image": 64},
        tv("resnet", *RESNET, units=[2, 1, 2, 1]),
    ),
    "resnetv2": Model(
        "resnetv2/keras-timm",
        {"app": "resnet.ResNet", "stack": [2, [2, 3, 2, 2]], "options": {"preact": True, "use_bias": True}, "image": 64},
        {"model": "resnetv2", "options": CLASSES | {"layers": [2, 3, 2, 2]}, "match": ["late_strides"]},
    ),
    "inception_v3": Model(
        "inception_v3/keras-torchvision",
        {"app": "InceptionV3", "image": 107},
        tv("inception_v3", "unpadded_average", aux_logits=False),
    ),
    "xception": Model(
        "xception/keras-timm", {"app": "Xception", "image": 96}, timm("legacy_xception", match=["same_pools"])
    ),
    "xception-odd": Model("xception/keras-timm", {"app": "Xception", "image": 71}, timm("legacy_xception")),
    "densenet": Model(
        "densenet/keras-torchvision",
        {"app": "densenet.DenseNet", "options": {"blocks": [2, 1, 2, 1]}, "image": 64},
        {"model": "torchvision_family", "options": CLASSES | {"family": "DenseNet", "block_config": [2, 1, 2, 1]}, "match": ["keras_epsilon"]},
    ),
    "mobilenet_v1": Model(
        "mobilenet_v1/keras-timm", {"app": "MobileNet", "image": 64}, timm("mobilenetv1_100", matching=SAME)
    ),
    "mobilenet_v2": Model(
        "mobilenet_v2/keras-timm", {"app": "MobileNetV2", "image": 64}, timm("mobilenetv2_100", matching=SAME)
    ),
    "mobilenet_v3_small": Model(
        "mobilenet_v3/keras-timm",
        {"app": "MobileNetV3Small", "image": 64, "inside": "range"},
        timm("tf_mobilenetv3_small_100"),
    ),
    "efficientnet_b0": Model(
        "efficientnet/keras-timm",
        {"app": "EfficientNetB0", "image": 64, "inside": "mean"},
        timm("tf_efficientnet_b0"),
    ),
    "convnext": Model(
        "convnext/keras-torchvision",
        {"app": "convnext.ConvNeXt", "options": {"depths": [1, 2, 1, 1], "projection_dims": [96, 192, 384, 768], "name": "convnext_tiny"}, "image": 64, "inside": "mean"},
        {"model": "torchvision_family", "options": CLASSES | {"family": "ConvNeXt", "depths": [1, 2, 1, 1]}},
        tolerance=ROUNDED,
    ),
    "convnext-timm": Model(
        "convnext/keras-timm",
        {"same": "convnext"},
        timm("convnext_tiny", options=CLASSES | {"depths": [1, 2, 1, 1]}),
        tolerance=ROUNDED,
    ),
}
BACK = ("vgg16", "resnet", "mobilenet_v2", "convnext")  # what Keras itself loads again


def stem(name: str) -> str:
    """The name of the Keras model."""
    return str(MODELS[name].keras.get("same", name))


def port(name: str) -> Any:
    return converter.mapping(MODELS[name].mapping, sizes=MODELS[name].sizes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("applications")


def run(folder: Path, program: str, jobs: Mapping[str, Any], *command: str) -> None:
    path = folder / "jobs.json"
    path.write_text(json.dumps({"folder": str(folder), "jobs": jobs}), "utf-8")
    oracles.run(program, *command, path)


@pytest.fixture(scope="module")
def saved(folder) -> Path:
    """Files of every Keras model, `.h5` and `.weights.h5`, with its images and logits."""
    jobs = {
        name: {"narrow": NARROW, **model.keras}
        for name, model in MODELS.items()
        if "same" not in model.keras
    }
    run(folder, "keras_applications", jobs, "write")
    return folder


@pytest.fixture(scope="module")
def converted(saved) -> Path:
    """What the mappings make of them."""
    for name in MODELS:
        with converter.open(saved / f"{stem(name)}.h5") as source:
            converter.save(port(name)(source), saved / f"{name}.safetensors")
    return saved


@pytest.fixture(scope="module")
def computed(converted) -> dict[str, dict[str, Any]]:
    """What each target makes of the images."""
    jobs = {
        name: {"narrow": NARROW, "images": stem(name), **model.torch}
        for name, model in MODELS.items()
    }
    run(converted, "torch_applications", jobs)
    return {name: oracles.load_arrays(converted / f"{name}-torch.npz") for name in MODELS}


def logits(folder: Path, name: str) -> tuple[str, Any]:
    arrays = oracles.load_arrays(folder / f"{stem(name)}.npz")
    (key,) = (key for key in arrays if key.startswith("logits-"))
    return key, arrays[key]


def difference(found: Any, expected: Any) -> float:
    """The largest, relative to the largest logit of that image."""
    assert found.shape == expected.shape
    return float((np.abs(found - expected).max(axis=1) / np.abs(expected).max(axis=1)).max())


@pytest.mark.parametrize("name", MODELS)
def test_the_target_computes_what_keras_computes(name, computed, folder):
    key, expected = logits(folder, name)
    assert expected.dtype == np.float64
    assert difference(expected[:1], expected[1:]) > 0.01  # it depends on the image
    assert difference(computed[name][key], expected) < MODELS[name].tolerance


@pytest.mark.parametrize("name", [name for name in MODELS if MODELS[name].stock_differs])
def test_the_target_as_its_package_makes_it_differs_as_the_contract_says(name, computed, folder):
    key, expected = logits(folder, name)
    apart = difference(computed[name][f"stock-{key}"], expected)
    assert apart > TOLERANCE
    assert apart > 1000 * difference(computed[name][key], expected)


@pytest.mark.parametrize("name", MODELS)
def test_weights_by_path_give_the_same_as_weights_by_layer(name, converted):
    with (
        converter.open(converted / f"{stem(name)}.weights.h5") as source,
        converter.open(converted / f"{name}.safetensors") as target,
    ):
        assert source.format == "keras-v3"
        assert list(converter.diff(port(name)(source), target)) == []


@pytest.mark.parametrize("name", [name for name in MODELS if name != "resnet"])
def test_the_way_back_returns_every_bit(name, converted):
    """But for Xception's variances, into which an epsilon was put."""
    with (
        converter.open(converted / f"{stem(name)}.h5") as source,
        converter.open(converted / f"{name}.safetensors") as target,
    ):
        plan = port(name).plan(source)
        back = port(name).inverse()(target)
        named = {source.aliases[key][0]: key for key in source if key not in plan.dropped}
        assert back.keys() == named.keys()
        for path, key in named.items():
            found, expected = back[path].numpy(), source[key].numpy()
            if path.endswith("moving_variance") and name.startswith("xception"):
                np.testing.assert_allclose(found, expected, rtol=1e-15)
            else:
                assert found.tobytes() == expected.tobytes()


@pytest.fixture(scope="module")
def loaded(converted) -> Path:
    """The logits of Keras' models that loaded what came back from PyTorch's tensors."""
    for name in BACK:
        back = converter.mapping("resnet/torchvision-keras") if name == "resnet" else port(name).inverse()
        with converter.open(converted / f"{name}.safetensors") as source:
            # torchvision's ResNet has another contract, but these are the weights of Keras
            bare = replace(source, metadata={})
            converter.save(back(bare), converted / f"{name}-back.h5")
    run(converted, "keras_applications", {name: {"narrow": NARROW, **MODELS[name].keras} for name in BACK}, "read")
    return converted


@pytest.mark.parametrize("name", BACK)
def test_keras_loads_what_comes_back(name, loaded):
    key, expected = logits(loaded, name)
    found = oracles.load_arrays(loaded / f"{name}-back.npz")[key]
    assert difference(found, expected) < TOLERANCE
