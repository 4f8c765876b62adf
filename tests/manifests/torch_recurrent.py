"""Stacks of PyTorch's recurrent layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.conversions import recurrent
from tests.manifests import spec

PACKAGES = ("torch",)


def headers(job: Mapping[str, Any]) -> dict[str, str]:
    from tests.oracles import torch_recurrent

    state = torch_recurrent.layer(dict(job), job["inputs"]).state_dict()
    return {name: spec("float32", tensor.shape) for name, tensor in state.items()}


MODELS = {f"torch-{name}": lambda job=job: headers(job) for name, job in recurrent.MODELS.items()}
