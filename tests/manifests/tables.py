"""VGG-16 from its tables, which `test_vgg16_oracles` holds against the real models."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tests import vgg16
from tests.manifests import spec

PACKAGES = ("tf-slim", "torchvision")


def table(made: Callable[[], vgg16.Table], without: tuple[str, ...] = ()) -> Mapping[str, str]:
    return {
        name: spec(dtype, shape)
        for name, (shape, dtype) in made().items()
        if not name.startswith(without)
    }


HEADS = tuple(f"vgg_16/{head}" for head in ("rpn_", "cls_score", "bbox_pred"))
MODELS = {
    "slim-vgg_16": lambda: table(vgg16.slim),
    "torchvision-vgg16": lambda: table(vgg16.torchvision),
    "tf-faster-rcnn-vgg16-backbone": lambda: table(vgg16.faster_rcnn, without=HEADS),
    "tf-faster-rcnn-vgg16-snapshot": lambda: (
        table(vgg16.faster_rcnn) | table(vgg16.training_leftovers)
    ),
    "pytorch-faster-rcnn-vgg16": lambda: table(vgg16.pytorch_faster_rcnn),
}
