"""Move trained weights between frameworks by declarative mapping files.

    slim = converter.open("vgg_16.ckpt")                    # headers only; a Mapping[str, Tensor]
    slim["vgg_16/fc7/weights"].numpy()                      # read one variable, nothing else
    port = converter.mapping("vgg16/slim-torchvision")      # a shipped name, or a path
    converter.save(port(slim), "vgg16.safetensors")         # streams; the port itself is lazy
    converter.save(port.inverse()(converter.open("vgg16.safetensors")), "back.ckpt")

Names are imported when they are first used, so that `converter --help` starts at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from converter.compare import diff
    from converter.engine import save
    from converter.errors import ConverterError, Diagnostic, MappingError
    from converter.formats import open_checkpoint as open
    from converter.inference import infer
    from converter.plan import Plan, Port
    from converter.plan import port as mapping
    from converter.tensors import Checkpoint, Tensor, TensorSpec, from_arrays

__version__ = "0.1.0"

_HOMES = {
    "Checkpoint": "converter.tensors",
    "ConverterError": "converter.errors",
    "Diagnostic": "converter.errors",
    "MappingError": "converter.errors",
    "Plan": "converter.plan",
    "Port": "converter.plan",
    "Tensor": "converter.tensors",
    "TensorSpec": "converter.tensors",
    "diff": "converter.compare",
    "from_arrays": "converter.tensors",
    "infer": "converter.inference",
    "mapping": "converter.plan:port",
    "open": "converter.formats:open_checkpoint",
    "save": "converter.engine",
}

__all__ = [
    "Checkpoint",
    "ConverterError",
    "Diagnostic",
    "MappingError",
    "Plan",
    "Port",
    "Tensor",
    "TensorSpec",
    "diff",
    "from_arrays",
    "infer",
    "mapping",
    "open",
    "save",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'converter' has no attribute '{name}'")
    module, _, attribute = _HOMES[name].partition(":")
    value = getattr(importlib.import_module(module), attribute or name)
    globals()[name] = value
    return value
