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
from tests import manifests, oracles
from tests.conversions.keras_applications import CONVERSIONS, VARIANTS

pytestmark = pytest.mark.skipif(
    bool(oracles.missing("keras", "tensorflow", "torch", "torchvision", "timm")),
    reason="needs Keras, TensorFlow, PyTorch, torchvision and timm",
)
TOLERANCE = 1e-9  # relative to the largest logit, in float64
ROUNDED = 1e-7  # where layers of Keras keep constants as float32, or a hundred of them round


class Model(NamedTuple):
    """A model of Keras and the one that takes its weights; `match` and `matching` make it equal.

    `keras` and `torch` are jobs of the two programs that build them.
    """

    mapping: str
    keras: dict[str, Any]
    torch: dict[str, Any]
    sizes: Mapping[str, int] = {}
    tolerance: float = TOLERANCE

    @property
    def stock_differs(self) -> bool:
        return bool({"match", "matching"} & self.torch.keys())

    @property
    def port(self) -> Any:
        return converter.mapping(self.mapping, sizes=self.sizes)


CLASSES = {"num_classes": 16}


def keras(app: str, image: int = 64, *, narrow: int = 8, **more: Any) -> dict[str, Any]:
    return {"app": app, "image": image, "narrow": narrow, **more}


def tv(name: str, *match: str, **options: Any) -> dict[str, Any]:
    job = {"model": "torchvision", "name": name, "options": CLASSES | options}
    return job | {"match": match} if match else job


def family(name: str, *match: str, **options: Any) -> dict[str, Any]:
    job = {"model": "torchvision_family", "options": CLASSES | {"family": name} | options}
    return job | {"match": match} if match else job


def timm(name: str, **more: Any) -> dict[str, Any]:
    return {"model": "timm", "name": name, "options": CLASSES, **more}


def resnetv2(layers: list[int]) -> dict[str, Any]:
    options = CLASSES | {"layers": layers}
    return {"model": "resnetv2", "options": options, "match": ["late_strides"]}


STRIDES = ("early_strides", "keras_epsilon")
SAME = {"pad_type": "same", "bn_eps": 1e-3}
DEPTHS = [1, 2, 1, 1]
TINY = {"depths": DEPTHS, "projection_dims": [96, 192, 384, 768], "name": "convnext_tiny"}
CONVNEXT = keras("convnext.ConvNeXt", options=TINY, inside="mean")
MODELS = {
    "vgg16": Model("vgg/keras-torchvision", keras("VGG16", 224), tv("vgg16"), {"depth": 16}),
    "resnet": Model(
        "resnet/keras-torchvision",
        keras(
            "resnet.ResNet", stack=[1, [2, 1, 2, 1]], options={"preact": False, "use_bias": True}
        ),
        tv("resnet", *STRIDES, units=[2, 1, 2, 1]),
    ),
    "resnetv2": Model(
        "resnetv2/keras-timm",
        keras("resnet.ResNet", stack=[2, [2, 3, 2, 2]], options={"preact": True, "use_bias": True}),
        resnetv2([2, 3, 2, 2]),
    ),
    "inception_v3": Model(
        "inception_v3/keras-torchvision",
        keras("InceptionV3", 107),
        tv("inception_v3", "unpadded_average", aux_logits=False),
    ),
    "xception": Model(
        "xception/keras-timm", keras("Xception", 96), timm("legacy_xception", match=["same_pools"])
    ),
    "densenet": Model(
        "densenet/keras-torchvision",
        keras("densenet.DenseNet", options={"blocks": [2, 1, 2, 1]}),
        family("DenseNet", "keras_epsilon", block_config=[2, 1, 2, 1]),
    ),
    "mobilenet_v1": Model(
        "mobilenet_v1/keras-timm", keras("MobileNet"), timm("mobilenetv1_100", matching=SAME)
    ),
    "mobilenet_v2": Model(  # its shortcuts depend on widths
        "mobilenet_v2/keras-timm",
        keras("MobileNetV2", narrow=1),
        timm("mobilenetv2_100", matching=SAME),
    ),
    "mobilenet_v3_small": Model(
        "mobilenet_v3/keras-timm",
        keras("MobileNetV3Small", narrow=1, inside="range"),
        timm("tf_mobilenetv3_small_100"),
        {"blocks": 11},
    ),
    "efficientnet_b0": Model(
        "efficientnet/keras-timm",
        keras("EfficientNetB0", inside="mean"),
        timm("tf_efficientnet_b0"),
    ),
    "convnext": Model(
        "convnext/keras-torchvision",
        CONVNEXT,
        family("ConvNeXt", depths=DEPTHS),
        tolerance=ROUNDED,
    ),
    "convnext-timm": Model(
        "convnext/keras-timm",
        CONVNEXT,
        timm("convnext_tiny", options=CLASSES | {"depths": DEPTHS}),
        tolerance=ROUNDED,
    ),
}
BACK = ("vgg16", "resnet", "mobilenet_v2", "convnext")  # what Keras itself loads again


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("applications")


def run(folder: Path, program: str, jobs: Mapping[str, Any], *command: str) -> None:
    path = folder / "jobs.json"
    path.write_text(json.dumps({"folder": str(folder), "jobs": jobs}), "utf-8")
    oracles.run(program, *command, path)


def convert(folder: Path, name: str, model: Model) -> None:
    with converter.open(folder / f"{name}.h5") as source:
        converter.save(model.port(source), folder / f"{name}.safetensors")


def compute(folder: Path, models: Mapping[str, Model]) -> None:
    """What each target makes of the images of its Keras model."""
    jobs = {
        name: {"narrow": model.keras["narrow"], **model.torch} for name, model in models.items()
    }
    run(folder, "torch_applications", jobs)


@pytest.fixture(scope="module")
def converted(folder) -> Path:
    """Every Keras model, saved, with its images and logits; and what the mappings make of it."""
    run(folder, "keras_applications", {n: model.keras for n, model in MODELS.items()}, "write")
    for name, model in MODELS.items():
        convert(folder, name, model)
    return folder


@pytest.fixture(scope="module")
def computed(converted) -> Path:
    compute(converted, MODELS)
    return converted


def logits(folder: Path, name: str, image: int) -> Any:
    found = oracles.load_arrays(folder / f"{name}.npz")
    return found[f"logits-{image}"]


def difference(found: Any, expected: Any) -> float:
    """The largest, relative to the largest logit of that image."""
    assert found.shape == expected.shape
    return float((np.abs(found - expected).max(axis=1) / np.abs(expected).max(axis=1)).max())


def check(folder: Path, name: str, model: Model) -> None:
    """The target that matches computes the same; the one of its package only where it may."""
    image = model.keras["image"]
    expected = logits(folder, name, image)
    found = oracles.load_arrays(folder / f"{name}-torch.npz")
    assert expected.dtype == np.float64
    assert difference(expected[:1], expected[1:]) > 0.001  # it depends on the image
    rounding = difference(found[f"logits-{image}"], expected)
    assert rounding < model.tolerance
    if model.stock_differs:
        apart = difference(found[f"stock-logits-{image}"], expected)
        assert apart > max(TOLERANCE, 1000 * rounding)


@pytest.mark.parametrize("name", MODELS)
def test_the_target_computes_what_keras_computes(name, computed):
    """And as its package makes it, differs where the mapping's contract says so."""
    check(computed, name, MODELS[name])


@pytest.mark.parametrize("name", MODELS)
def test_weights_by_path_give_the_same_as_weights_by_layer(name, converted):
    with (
        converter.open(converted / f"{name}.weights.h5") as source,
        converter.open(converted / f"{name}.safetensors") as target,
    ):
        assert source.format == "keras-v3"
        found = list(converter.diff(MODELS[name].port(source), target))
        assert [each for each in found if each.status != "equal"] == []
        assert len(found) == len(target)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "resnet"])
def test_the_way_back_returns_every_bit(name, converted):
    """But for Xception's variances, into which an epsilon was put."""
    with (
        converter.open(converted / f"{name}.h5") as source,
        converter.open(converted / f"{name}.safetensors") as target,
    ):
        dropped = MODELS[name].port.plan(source).dropped
        back = MODELS[name].port.inverse()(target)
        named = {source.aliases[key][0]: key for key in source if key not in dropped}
        assert back.keys() == named.keys()
        for path, key in named.items():
            found, expected = back[path].numpy(), source[key].numpy()
            if path.endswith("moving_variance") and name == "xception":
                np.testing.assert_allclose(found, expected, rtol=1e-15)
            else:
                assert found.tobytes() == expected.tobytes()


@pytest.fixture(scope="module")
def loaded(converted) -> Path:
    """The logits of Keras' models that loaded what came back from PyTorch's tensors."""
    for name in BACK:
        port = MODELS[name].port.inverse() if name != "resnet" else None
        port = port or converter.mapping("resnet/torchvision-keras")
        with converter.open(converted / f"{name}.safetensors") as source:
            # torchvision's own ResNet has another contract, but these are Keras' weights
            bare = replace(source, metadata={})
            converter.save(port(bare), converted / f"{name}-back.h5")
    run(converted, "keras_applications", {name: MODELS[name].keras for name in BACK}, "read")
    return converted


@pytest.mark.parametrize("name", BACK)
def test_keras_loads_what_comes_back(name, loaded):
    image = MODELS[name].keras["image"]
    assert (
        difference(logits(loaded, f"{name}-back", image), logits(loaded, name, image)) < TOLERANCE
    )


# Every other size, and whole widths.

LARGE = {
    "vgg19": Model("vgg/keras-torchvision", keras("VGG19", 224), tv("vgg19"), {"depth": 19}),
    **{
        f"resnet{depth}": Model(
            "resnet/keras-torchvision",
            keras(f"ResNet{depth}", narrow=1 if depth == 50 else 8),
            tv(f"resnet{depth}", *STRIDES),
        )
        for depth in (50, 101, 152)
    },
    **{
        f"resnet{depth}v2": Model(
            "resnetv2/keras-timm", keras(f"ResNet{depth}V2"), resnetv2(layers)
        )
        for depth, layers in ((50, [3, 4, 6, 3]), (101, [3, 4, 23, 3]), (152, [3, 8, 36, 3]))
    },
    "inception_v3-timm": Model(
        "inception_v3/keras-torchvision",
        keras("InceptionV3", 139, narrow=1),
        timm("inception_v3", match=["unpadded_average"]),
    ),
    "xception-odd": Model(  # every half of it is odd
        "xception/keras-timm", keras("Xception", 71, narrow=1), timm("legacy_xception")
    ),
    **{
        f"densenet{depth}": Model(
            "densenet/keras-torchvision",
            keras(f"DenseNet{depth}"),
            tv(f"densenet{depth}", "keras_epsilon"),
        )
        for depth in (121, 169, 201)
    },
    "mobilenet_v1-whole": MODELS["mobilenet_v1"]._replace(keras=keras("MobileNet", narrow=1)),
    "mobilenet_v3_large": Model(
        "mobilenet_v3/keras-timm",
        keras("MobileNetV3Large", narrow=1, inside="range"),
        timm("tf_mobilenetv3_large_100"),
        {"blocks": 15},
    ),
    **{
        f"efficientnet_b{size}": Model(
            "efficientnet/keras-timm",
            keras(f"EfficientNetB{size}", narrow=1 if size == 1 else 8, inside="mean"),
            timm(f"tf_efficientnet_b{size}"),
            tolerance=ROUNDED,
        )
        for size in range(1, 8)
    },
    **{
        f"convnext_{size.lower()}-{package}": Model(
            f"convnext/keras-{package}",
            keras(f"ConvNeXt{size}", inside="mean", narrow=1 if size == "Tiny" else 8),
            (tv if package == "torchvision" else timm)(f"convnext_{size.lower()}"),
            {"variant": variant},
            ROUNDED,
        )
        for package, sizes in (("torchvision", VARIANTS[:4]), ("timm", VARIANTS))
        for variant, size in enumerate(sizes)
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_every_size_computes_what_keras_computes(name, tmp_path):
    model = LARGE[name]
    run(tmp_path, "keras_applications", {name: model.keras}, "write")
    convert(tmp_path, name, model)
    compute(tmp_path, {name: model})
    check(tmp_path, name, model)


OLDER = ("VGG19", "ResNet50", "ResNet50V2", "InceptionV3", "Xception", "DenseNet121", "MobileNet")
OLDER += ("MobileNetV2", "MobileNetV3Small", "EfficientNetB0", "ConvNeXtTiny")


@pytest.mark.slow
@pytest.mark.parametrize("app", OLDER)
def test_files_of_keras_2_are_taken_by_the_same_mapping(app, tmp_path):
    """The published weights are such files: `conv1_conv/conv1_conv/kernel:0`."""
    oracles.run("keras2_applications", tmp_path, app)
    row = next(row for row in CONVERSIONS if row.source == f"keras-{app}")
    older = {"keras": 2} if app.startswith(("ConvNeXt", "DenseNet", "MobileNetV3")) else {}
    with converter.open(tmp_path / f"{app}.h5") as source:
        assert all(name.endswith(":0") for name in source)
        plan = converter.mapping(row.mapping, sizes={**row.sizes, **older}).plan(source)
    assert plan.problems == ()
    assert plan.specs == manifests.load(row.target)


def test_every_mapping_and_its_sizes_are_among_these_models():
    models = (*MODELS.values(), *LARGE.values())
    proved = {(model.mapping, *model.sizes.values()) for model in models}
    rows = {(row.mapping, *row.sizes.values()) for row in CONVERSIONS}
    assert rows - proved == {("resnet/torchvision-keras",)}  # which is among those of `BACK`
