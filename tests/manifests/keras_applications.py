"""The models of keras.applications; names are the paths of variables."""

from __future__ import annotations

from collections.abc import Mapping

from tests.manifests import spec

PACKAGES = ("keras",)
SIZES = {
    "VGG": ("16", "19"),
    "ResNet": ("50", "101", "152", "50V2", "101V2", "152V2"),
    "DenseNet": ("121", "169", "201"),
    "MobileNet": ("", "V2", "V3Small", "V3Large"),
    "EfficientNet": tuple(f"B{size}" for size in range(8)),
    "ConvNeXt": ("Tiny", "Small", "Base", "Large", "XLarge"),
    "InceptionV3": ("",),
    "Xception": ("",),
}


def headers(app: str) -> Mapping[str, str]:
    from tests.oracles import keras_applications

    return {name: spec(*facts) for name, facts in keras_applications.headers(app).items()}


MODELS = {
    f"keras-{family}{size}": lambda app=f"{family}{size}": headers(app)
    for family, sizes in SIZES.items()
    for size in sizes
}
