"""Language models of Google and OpenAI, at the sizes that they published."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tests.conversions import text
from tests.manifests import spec

PACKAGES = (
    "albert-tensorflow",
    "bert-tensorflow",
    "gpt-2-simple",
    "mesh-tensorflow",
    "tensorflow-cpu",
    "tf-slim",
)


def headers(family: str, config: Mapping[str, Any]) -> dict[str, str]:
    from tests.oracles import google_text

    google_text.tf1.disable_eager_execution()
    found = google_text.variables(family, config)
    return {name: spec(dtype, shape) for name, (dtype, shape) in found.items()}


def maker(family: str, config: Mapping[str, Any]) -> Callable[[], dict[str, str]]:
    return lambda: headers(family, config)


MODELS = {name: maker(*source) for name, source in text.SOURCES.items()}
