"""Models whose only source is a published file, in `../shared/real`."""

from __future__ import annotations

from pathlib import Path

import converter
from tests.manifests import spec

PACKAGES = ()
REAL = Path(__file__).resolve().parents[3] / "shared" / "real"
FILES = {
    "keras-dtln": "dtln/keras/model.h5",
    "savedmodel-dtln": "dtln/savedmodel",
    "torch-dtln": "dtln/torch/model.pth",
    "onnx-dtln-1": "dtln/onnx/model_1.onnx",
}


def headers(file: str) -> dict[str, str]:
    with converter.open(REAL / file) as checkpoint:
        return {name: spec(s.dtype, s.shape) for name, s in checkpoint.specs.items()}


MODELS = {name: lambda file=file: headers(file) for name, file in FILES.items()}
