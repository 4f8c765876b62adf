"""The models of torchvision, timm and pytorch-faster-rcnn that take weights of TF-Slim's networks.

`torch_applications` has those of the usual 1000 classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.manifests import spec

PACKAGES = ("torch", "torchvision", "timm")
DEPTHS = (50, 101, 152)


def headers(model: str, **options: Any) -> Mapping[str, str]:
    from tests.oracles import torch_vision

    return {name: spec(*facts) for name, facts in torch_vision.headers(model, **options).items()}


CLASSES = 1001  # of TF-Slim: the first is background
ZOO: dict[str, dict[str, Any]] = {
    "torchvision-googlenet": {"aux_logits": False},
    "torchvision-inception_v3": {"aux_logits": True},
    "timm-inception_v3": {"aux_logits": True},
    "timm-inception_v4": {},
    "timm-inception_resnet_v2": {},
    "timm-mobilenetv1_100": {},
    "timm-mobilenetv2_100": {},
    "torchvision-mobilenet_v2": {},
    **{f"timm-resnetv2_{n}": {"biased": True} for n in DEPTHS},
}


def of_slim(model: str, **options: Any) -> Mapping[str, str]:
    """With TF-Slim's number of classes."""
    package, _, name = model.partition("-")
    return headers(package, name=name, num_classes=CLASSES, **options)


MODELS = {
    **{f"{name}-1001": lambda n=name, o=options: of_slim(n, **o) for name, options in ZOO.items()},
    **{f"timm-resnet{n}": lambda n=n: headers("timm", name=f"resnet{n}") for n in DEPTHS},
    **{f"pytorch-faster-rcnn-res{n}": lambda n=n: headers("rcnn_resnet", depth=n) for n in DEPTHS},
    "pytorch-faster-rcnn-mobile": lambda: headers("rcnn_mobilenet"),
}
