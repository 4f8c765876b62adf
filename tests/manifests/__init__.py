"""Headers of real models at full size: `NAME.json` holds every name with its dtype and shape.

    python -m tests.manifests slim-vgg_16 torchvision-vgg16
    python -m tests.manifests --all

makes them anew from the real models.  Each module beside this one belongs to one framework, which
it imports only when a model is made; it has

* `MODELS`: name of the manifest to a function that gives `{tensor: spec(dtype, shape)}`, in the
  order of the model;
* `PACKAGES`: what the model comes from; the manifest notes their versions.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

from converter.tensors import TensorSpec, dtype_of

FOLDER = Path(__file__).parent
Maker = Callable[[], Mapping[str, str]]


def spec(dtype: object, shape: Iterable[int]) -> str:
    """`float32 [3, 3, 64]`, for the dtypes of NumPy, TensorFlow, Keras and PyTorch."""
    name = str(getattr(dtype, "name", dtype)).removeprefix("torch.").removesuffix("_ref")
    return f"{name} {[int(n) for n in shape]}"


def path(name: str) -> Path:
    """The file of a manifest."""
    return FOLDER / f"{name}.json"


@cache
def load(name: str) -> Mapping[str, TensorSpec]:
    """Every tensor of a model with its spec."""
    tensors = json.loads(path(name).read_text("utf-8"))["tensors"]
    return {tensor: _spec(text) for tensor, text in tensors.items()}


def _spec(text: str) -> TensorSpec:
    dtype, _, shape = text.partition(" ")
    return TensorSpec(tuple(json.loads(shape)), dtype_of(dtype))


def modules() -> list[ModuleType]:
    """The modules that make manifests."""
    names = sorted(m.name for m in pkgutil.iter_modules([str(FOLDER)]) if m.name != "__main__")
    return [importlib.import_module(f"{__name__}.{name}") for name in names]


def make(name: str) -> None:
    """Build the model and write its manifest."""
    module = next(module for module in modules() if name in module.MODELS)
    tensors = dict(module.MODELS[name]())
    packages = {package: version(package) for package in module.PACKAGES}
    found = {"model": name, "made with": packages, "tensors": tensors}
    text = json.dumps(found, indent=0, ensure_ascii=False)
    path(name).write_text(f"{text}\n", "utf-8")
