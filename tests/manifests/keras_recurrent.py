"""Stacks of Keras' recurrent layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.conversions import recurrent
from tests.manifests import spec

PACKAGES = ("keras",)


def headers(job: Mapping[str, Any]) -> dict[str, str]:
    from tests.oracles import keras_recurrent

    model = keras_recurrent.stack(dict(job))
    return {weight.path: spec("float32", weight.shape) for weight in model.weights}


MODELS = {f"keras-{name}": lambda job=job: headers(job) for name, job in recurrent.MODELS.items()}
