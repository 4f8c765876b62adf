"""Networks of TF-Slim, tf-faster-rcnn and EfficientNet's authors, as TensorFlow's Saver names them.

Those of TF-Slim have `global_step`, and the detectors what training leaves, as their files do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests import manifests
from tests.manifests import spec

PACKAGES = ("tensorflow-cpu", "tf-slim", "tf-models-research-object-detection", "deeplabcut")
DEPTHS = (50, 101, 152)


def headers(
    model: str, size: int = 224, *, trained: bool = False, **options: Any
) -> Mapping[str, str]:
    from tests.oracles import tf_vision

    found = tf_vision.headers(model, size, trained=trained, **options)
    return {name: spec(dtype, shape) for name, (dtype, shape) in found.items()}


def without_averages(b: int) -> Mapping[str, str]:
    """EfficientNet's variables in a checkpoint of a training that kept no moving averages."""
    kept = manifests.load(f"tf-efficientnet-b{b}")
    return {
        name: spec(s.dtype, s.shape)
        for name, s in kept.items()
        if not name.endswith("/ExponentialMovingAverage")
    }


def default_names() -> Mapping[str, str]:
    """VGG-16's snapshot under the older names, by the steps of tools/convert_from_depre.py."""
    from tests.oracles import tf_faster_rcnn

    snapshot = manifests.load("tf-faster-rcnn-vgg16-snapshot")
    return {
        tf_faster_rcnn.default_name(name): spec(s.dtype, s.shape) for name, s in snapshot.items()
    }


MODELS = {
    "slim-vgg_19": lambda: headers("vgg", depth=19),
    **{f"slim-resnet_v1_{n}": lambda n=n: headers("resnet_v1", depth=n) for n in DEPTHS},
    **{f"slim-resnet_v2_{n}": lambda n=n: headers("resnet_v2", depth=n) for n in DEPTHS},
    **{f"slim-mobilenet_v{n}": lambda n=n: headers("mobilenet", version=n) for n in (1, 2)},
    **{
        f"slim-inception_{v}": lambda v=v: headers(
            "inception", 224 if v == "v1" else 299, version=v
        )
        for v in ("v1", "v3", "v4", "resnet_v2")
    },
    **{f"tf-efficientnet-b{b}": lambda b=b: headers("efficientnet", b=b) for b in range(8)},
    **{f"tf-efficientnet-b{b}-raw": lambda b=b: without_averages(b) for b in range(8)},
    **{
        f"tf-faster-rcnn-res{n}-snapshot": lambda n=n: headers("rcnn_resnet", depth=n, trained=True)
        for n in DEPTHS
    },
    "tf-faster-rcnn-mobile-snapshot": lambda: headers("rcnn_mobilenet", trained=True),
    "tf-faster-rcnn-vgg16_default-snapshot": default_names,
}
