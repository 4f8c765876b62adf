"""Language models of Hugging Face's transformers, as `save_pretrained` writes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tests.conversions import text, transformers_tf
from tests.manifests import spec

PACKAGES = ("torch", "transformers")


def headers(model: str, config: Mapping[str, Any]) -> dict[str, str]:
    from tests.oracles import transformers_text

    found = transformers_text.saved(model, config)
    return {name: spec(dtype, shape) for name, (dtype, shape) in found.items()}


def maker(model: str, config: Mapping[str, Any]) -> Callable[[], dict[str, str]]:
    return lambda: headers(model, config)


TARGETS = text.TARGETS | transformers_tf.TARGETS
MODELS = {name: maker(*target) for name, target in TARGETS.items()}
