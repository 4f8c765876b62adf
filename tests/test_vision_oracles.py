"""Networks of TF-Slim, tf-faster-rcnn and EfficientNet, and the PyTorch models they become.

Each case builds the real source model with random weights and random statistics, lets TensorFlow
write its checkpoint, converts that, loads it with `strict=True` into the real target class, and
compares what both make of the same images.  Where the stock target computes something else, that is
asserted, too, and that the difference is gone when it is configured as the mapping's contract says.

The quick cases have fewer units or channels, by configuration; the slow ones are the real sizes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import converter
from converter.plan import Port, port
from tests import oracles, vgg16
from tests.conversions import NO_SIZES

MISSING = oracles.missing(
    "deeplabcut", "object_detection", "tensorflow", "tf_keras", "tf_slim", "timm", "torchvision"
)
pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]

TOLERANCE = 1e-4
Job = dict[str, Any]


class Case(NamedTuple):
    """A source and a target; `match` is what makes the stock target compute the same."""

    mapping: str
    source: Job
    target: Job
    match: tuple[str, ...] = ()
    size: Mapping[str, int] = NO_SIZES
    rounds: frozenset[str] = frozenset()  # sources whose way back is nearly, not bit for bit
    of: str = ""  # the case whose checkpoint it takes
    computed: str = ""  # what that case's source computed: its moving averages' outputs, maybe
    image: int = 0  # only images of this height and width

    @property
    def port(self) -> Port:
        return port(self.mapping, sizes=self.size)


FEW = [2, 1, 2, 1]  # units of the blocks


STRIDES, POOL = "early_strides", "same_pool"


def resnet(depth: int, sizes: list[int], match: tuple[str, ...], **few: Any) -> Case:
    return Case(
        "resnet/slim-torchvision",
        {"model": "resnet_v1", "options": {"depth": depth, **few}, "sizes": sizes},
        {"model": "torchvision", "name": f"resnet{depth}", "options": dict(few)},
        match,
        {"depth": depth},
        image=sizes[0],
    )


def rcnn_resnet(depth: int, size: int, **few: Any) -> Case:
    job = {"model": "rcnn_resnet", "options": {"depth": depth, **few}}
    return Case("resnet/fasterrcnn-pytorch", job | {"sizes": [size]}, job, (), {"depth": depth})


def resnet_v2(depth: int, sizes: list[int], **few: Any) -> Case:
    layers = {"layers": few["units"]} if few else {}
    return Case(
        "resnetv2/slim-timm",
        {"model": "resnet_v2", "options": {"depth": depth, **few}, "sizes": sizes},
        {
            "model": "timm",
            "name": f"resnetv2_{depth}",
            "options": {"biased": True, "num_classes": CLASSES, **layers},
        },
        (STRIDES, POOL),
        {"depth": depth},
    )


def efficientnet(b: int) -> Case:
    return Case(
        "efficientnet/tf-timm",
        {"model": "efficientnet", "options": {"b": b}, "sizes": [64]},
        {"model": "timm", "name": f"tf_efficientnet_b{b}"},
        (),
        {"b": b},
    )


def averages(of: str, case: Case) -> Case:
    return case._replace(mapping="efficientnet/tf-ema-timm", of=of, computed=f"{of}-averages")


def inception(version: str, package: str, name: str, narrow: int = 1) -> Case:
    """For images of 299, as the auxiliary heads need them; channels divided by `narrow`."""
    classes = {"num_classes": CLASSES * narrow}
    dense = version in ("v4", "resnet_v2")  # their last layer is no convolution
    third = version == "v3"
    extra = {"aux_logits": True} if third else {}
    return Case(
        f"inception_{version}/slim-{'torchvision' if third else 'timm'}",
        {
            "model": "inception",
            "options": {
                "version": version,
                "classes": CLASSES * (1 if dense else narrow),
                "aux": third,
            },
            "sizes": [299],
            "narrow": narrow,
        },
        {"model": package, "name": name, "options": classes | extra, "narrow": narrow},
        ("unpadded_average",) if third else (),
    )


CLASSES = 1001  # of slim: the first is background
SAME = ("same_padding", "larger_epsilon")
GOOGLENET = {"num_classes": CLASSES, "aux_logits": False}
VARIANCES = frozenset({"moving_variance"})
RESNET = resnet(50, [65, 64], (STRIDES,), units=FEW)
INCEPTION_V1 = Case(
    "inception_v1/slim-torchvision",
    {"model": "inception", "options": {"version": "v1"}, "sizes": [224, 223]},
    {"model": "torchvision", "name": "googlenet", "options": GOOGLENET},
    ("same_stem",),
    image=224,
)
MOBILENET_V2 = Case(
    "mobilenet_v2/slim-timm",
    {"model": "mobilenet", "options": {"version": 2}, "sizes": [96]},
    {"model": "timm", "name": "mobilenetv2_100", "options": {"num_classes": CLASSES}},
    SAME,
)
INCEPTION_V3 = inception("v3", "torchvision", "inception_v3", 8)
QUICK = {
    "rcnn-resnet": rcnn_resnet(101, 113, units=FEW),
    "rcnn-mobilenet": Case(
        "mobilenet_v1/fasterrcnn-pytorch",
        {"model": "rcnn_mobilenet", "sizes": [112]},
        {"model": "rcnn_mobilenet"},
        rounds=VARIANCES,
    ),
    "resnet-v1": RESNET,
    "resnet-v1-even": RESNET._replace(match=(STRIDES, POOL), of="resnet-v1", image=64),
    "resnet-v1-timm": RESNET._replace(
        target={"model": "timm", "name": "resnet50", "options": {"layers": FEW}}, of="resnet-v1"
    ),
    "resnet-v2": resnet_v2(50, [64], units=FEW),
    "mobilenet-v1": Case(
        "mobilenet_v1/slim-timm",
        {"model": "mobilenet", "options": {"version": 1}, "sizes": [96]},
        {"model": "timm", "name": "mobilenetv1_100", "options": {"num_classes": CLASSES}},
        SAME,
    ),
    "mobilenet-v2": MOBILENET_V2,
    "mobilenet-v2-torchvision": MOBILENET_V2._replace(
        mapping="mobilenet_v2/slim-torchvision",
        target={
            "model": "torchvision",
            "name": "mobilenet_v2",
            "options": {"num_classes": CLASSES},
        },
        of="mobilenet-v2",
    ),
    "inception-v1": INCEPTION_V1,
    "inception-v1-odd": INCEPTION_V1._replace(match=(), of="inception-v1", image=223),
    "inception-v3": INCEPTION_V3,
    "inception-v4": inception("v4", "timm", "inception_v4", 8),
    "inception-resnet-v2": inception("resnet_v2", "timm", "inception_resnet_v2", 8),
    "inception-v3-timm": INCEPTION_V3._replace(
        target=INCEPTION_V3.target | {"model": "timm"}, of="inception-v3"
    ),
    "efficientnet": efficientnet(0),
    "efficientnet-averages": averages("efficientnet", efficientnet(0)),
    "vgg19": Case(
        "vgg19/slim-torchvision",
        {"model": "vgg", "options": {"depth": 19}, "narrow": 16, "sizes": [224]},
        {"model": "torchvision", "name": "vgg19", "narrow": 16},
    ),
}
FULL = {
    "inception-v3-full": inception("v3", "torchvision", "inception_v3"),
    "inception-v4-full": inception("v4", "timm", "inception_v4"),
    "inception-resnet-v2-full": inception("resnet_v2", "timm", "inception_resnet_v2"),
    **{f"resnet-v1-{depth}": resnet(depth, [224], (STRIDES, POOL)) for depth in (50, 101, 152)},
    **{f"resnet-v2-{depth}": resnet_v2(depth, [224]) for depth in (50, 101, 152)},
    **{f"rcnn-resnet-{depth}": rcnn_resnet(depth, 224) for depth in (50, 101, 152)},
    **{f"efficientnet-b{b}": efficientnet(b) for b in range(8)},
}
# What starts a training of tf-faster-rcnn: from which case, into which model, by which mapping.
STARTS = {
    "fix-mobilenet": (
        "mobilenet-v1",
        {"model": "rcnn_mobilenet", "sizes": [112]},
        "mobilenet_v1/slim-fasterrcnn",
    ),
    "fix-resnet": (
        "resnet-v1",
        {"model": "rcnn_resnet", "options": {"depth": 50, "units": FEW}, "sizes": [113]},
        "resnet/slim-fasterrcnn",
    ),
}


def run(folder: Path, cases: Mapping[str, Case], starts: Iterable[str] = ()) -> None:
    """Source models and checkpoints, conversions, target models: two child processes in all."""
    jobs = {name: case.source for name, case in cases.items() if not case.of}
    for name in starts:
        source, job, _ = STARTS[name]
        jobs[name] = job | {"fix": source}
    children(folder, "tf_vision", jobs)
    for name, case in cases.items():
        with converter.open(folder / f"{case.of or name}.ckpt") as source:
            converter.save(case.port(source), folder / f"{name}.safetensors")
    targets = {
        name: case.target | {"match": case.match, "images": computed(name, case)}
        for name, case in cases.items()
    }
    children(folder, "torch_vision", targets)


def computed(name: str, case: Case) -> str:
    """The file of the images, and of what the source computes of them."""
    return case.computed or case.of or name


def children(folder: Path, module: str, jobs: Mapping[str, Job]) -> None:
    file = folder / f"{module}.json"
    file.write_text(json.dumps({"folder": str(folder), "jobs": jobs}), "utf-8")
    oracles.run(module, file)


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vision")
    run(folder, QUICK, STARTS)
    return folder


@pytest.fixture(params=QUICK)
def name(request) -> str:
    return request.param


def apart(folder: Path, name: str, case: Case, prefix: str = "") -> float:
    """The largest difference of any output, relative to its largest value."""
    theirs = oracles.load_arrays(folder / f"{computed(name, case)}.npz")
    ours = oracles.load_arrays(folder / f"{name}-torch.npz")
    keys = [key for key in theirs if not key.startswith("images-")]
    keys = [key for key in keys if key.endswith(f"-{case.image or ''}") or not case.image]
    assert keys
    found = 0.0
    for key in keys:
        a, b = theirs[key], ours[prefix + key]
        assert a.shape == b.shape
        assert np.abs(a).max() > 1e-3  # sane
        assert np.ptp(a, axis=0).max() > 1e-3  # of what it sees
        found = max(found, float(np.abs(a - b).max() / np.abs(a).max()))
    return found


def same(folder: Path, name: str, case: Case) -> None:
    """Both models compute the same; stock, they do just when nothing had to be changed."""
    assert apart(folder, name, case) < TOLERANCE
    assert (apart(folder, name, case, "stock-") < TOLERANCE) == (not case.match)


def back(folder: Path, name: str, case: Case) -> None:
    """The way back gives what TensorFlow wrote, bit for bit, but for what is rounded."""
    with (
        converter.open(folder / f"{case.of or name}.ckpt") as source,
        converter.open(folder / f"{name}.safetensors") as target,
    ):
        dropped = case.port.plan(source.specs).dropped
        again = case.port.inverse()(target)
        assert set(again) == set(source) - set(dropped)
        for key in again:
            ours, theirs = again[key].numpy(), source[key].numpy()
            if key.rpartition("/")[2] in case.rounds:
                np.testing.assert_allclose(ours, theirs, rtol=1e-6)
            else:
                assert ours.tobytes() == theirs.tobytes(), key


def test_both_models_compute_the_same(quick, name):
    same(quick, name, QUICK[name])


def test_the_way_back_returns_every_bit(quick, name):
    back(quick, name, QUICK[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_both_models_compute_the_same_at_full_size(tmp_path, name):
    cases = {name: FULL[name]}
    if FULL[name].mapping.startswith("efficientnet/"):
        cases["averages"] = averages(name, FULL[name])
    run(tmp_path, cases)
    for each, case in cases.items():
        same(tmp_path, each, case)
        back(tmp_path, each, case)


@pytest.mark.parametrize("start", STARTS)
def test_a_detector_starts_as_its_own_fix_variables_make_it(quick, start):
    case, _, mapping = STARTS[start]
    expected = oracles.load_digests(quick / f"{start}.json")
    made = port(mapping, sizes=QUICK[case].size)
    with converter.open(quick / f"{case}.ckpt") as source:
        found = {key: oracles.digest(tensor.numpy()) for key, tensor in made(source).items()}
    heads = ("rpn_conv", "rpn_cls_score", "rpn_bbox_pred", "cls_score", "bbox_pred")
    backbone = {n for n in expected if n.split("/")[0] != "Fix" and n.split("/")[1:2]}
    backbone = {n for n in backbone if n.split("/")[1] not in heads}
    assert set(found) == backbone
    assert found == {key: expected[key] for key in backbone}


def test_the_older_names_are_those_of_its_own_tool(tmp_path):
    file, out = tmp_path / "default.ckpt", tmp_path / "default.json"
    oracles.run("tf_faster_rcnn", vgg16.TINY, "default", file, out)
    with converter.open(file) as older:
        found = port("vgg16/default-fasterrcnn")(older)
        digests = {name: oracles.digest(tensor.numpy()) for name, tensor in found.items()}
        assert all(name.startswith("vgg16_default/") for name in older)
    assert digests == oracles.load_digests(out)


def test_there_is_no_class_for_slims_inception_v2():
    """As the catalogue says; timm's `inception_next` is another network."""
    code = """
from tests.oracles.torch_vgg16 import torchvision_models
models = torchvision_models().list_models()
import timm
print(*models, *timm.list_models())
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = (name.removeprefix("quantized_") for name in ran.stdout.split())
    known = {n for n in names if "inception" in n or "googlenet" in n}
    assert {n for n in known if not n.startswith("inception_next")} == {
        "googlenet",
        "inception_v3",
        "inception_v4",
        "inception_resnet_v2",
    }
