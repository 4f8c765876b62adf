"""Language models of the TensorFlow side that transformers had, as `tf_model.h5` has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tests.conversions import transformers_tf
from tests.manifests import spec

PACKAGES = ("tensorflow-cpu", "tf-keras")


def headers(model: str, config: Mapping[str, Any]) -> dict[str, str]:
    from tests.oracles import transformers_tf as oracle

    found = oracle.variables(model, config)
    return {name: spec(dtype, shape) for name, (dtype, shape) in found.items()}


def maker(model: str, config: Mapping[str, Any]) -> Callable[[], dict[str, str]]:
    return lambda: headers(model, config)


MODELS = {name: maker(*source) for name, source in transformers_tf.SOURCES.items()}
