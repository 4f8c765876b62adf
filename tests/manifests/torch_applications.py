"""The models of torchvision and timm that take the weights of keras.applications."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.manifests import spec

PACKAGES = ("torch", "torchvision", "timm")
TORCHVISION: Mapping[str, Mapping[str, Any]] = {
    **{f"vgg{depth}": {} for depth in (19,)},
    **{f"resnet{depth}": {} for depth in (50, 101, 152)},
    **{f"densenet{depth}": {} for depth in (121, 169, 201)},
    **{f"convnext_{size}": {} for size in ("tiny", "small", "base", "large")},
    "inception_v3": {"aux_logits": False},
}
TIMM = (
    *("mobilenetv1_100", "mobilenetv2_100", "legacy_xception", "inception_v3"),
    *("tf_mobilenetv3_small_100", "tf_mobilenetv3_large_100"),
    *(f"tf_efficientnet_b{size}" for size in range(8)),
    *(f"convnext_{size}" for size in ("tiny", "small", "base", "large", "xlarge")),
)
RESNETV2 = {50: [3, 4, 6, 3], 101: [3, 4, 23, 3], 152: [3, 8, 36, 3]}


def headers(model: str, **options: Any) -> Mapping[str, str]:
    from tests.oracles import torch_applications

    return {
        name: spec(*facts) for name, facts in torch_applications.headers(model, **options).items()
    }


MODELS = {
    **{
        f"torchvision-{name}": lambda name=name, more=more: headers(
            "torchvision", name=name, **more
        )
        for name, more in TORCHVISION.items()
    },
    **{f"timm-{name}": lambda name=name: headers("timm", name=name) for name in TIMM},
    **{
        f"timm-resnetv2_{depth}-biased": lambda layers=layers: headers("resnetv2", layers=layers)
        for depth, layers in RESNETV2.items()
    },
}
