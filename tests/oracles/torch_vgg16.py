"""PyTorch's reading of files, and torchvision's own vgg16 loaded from them.

python -m tests.oracles.torch_vgg16 digests FILE=OUT.json...
python -m tests.oracles.torch_vgg16 logits IMAGES.npz FILE=OUT.npz...
python -m tests.oracles.torch_vgg16 shapes OUT.json

FILE is read by `torch.load(weights_only=True)` or, with that suffix, by the safetensors package.
`logits` writes the digests of what it loaded as well, to OUT.json beside OUT.npz.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import torch

from tests import oracles

_declared: list[torch.library.Library] = []  # an operator lives as long as its library


def torchvision_models() -> Any:
    """`torchvision.models`, with or without torchvision's compiled part.

    Without it the Python side fails to refer to its operators; once their names are declared, all
    models build and run, for none of them calls an operator.
    """
    try:
        import torchvision.models
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        _declare_operators()
        import torchvision.models
    return torchvision.models


def _declare_operators() -> None:
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None
    assert spec.origin is not None
    text = Path(spec.origin).with_name("_meta_registrations.py").read_text("utf-8")
    library = torch.library.Library("torchvision", "DEF")
    pattern = r'(?:register_meta\("|register_fake\("torchvision::)(\w+)"'
    for name in sorted(set(re.findall(pattern, text))):
        library.define(f"{name}(Tensor x) -> Tensor")
    _declared.append(library)


def load(path: Path) -> dict[str, torch.Tensor]:
    """A state dict, by the package that the suffix belongs to."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return dict(load_file(path))
    state = torch.load(path, weights_only=True)
    assert isinstance(state, dict)
    return state


def logits(state: dict[str, torch.Tensor], images: Path, out: Path) -> None:
    """A strict load into `vgg16(weights=None)`, and one forward pass."""
    model = vgg16()
    model.load_state_dict(state, strict=True, assign=True)
    batch = torch.from_numpy(oracles.load_arrays(images)["images"].transpose(0, 3, 1, 2).copy())
    with torch.inference_mode():
        oracles.save_arrays(out, {"logits": model.eval()(batch).numpy()})


def vgg16() -> torch.nn.Module:
    """The model, its parameters not yet allocated."""
    with torch.device("meta"):
        model = torchvision_models().vgg16(weights=None)
    assert isinstance(model, torch.nn.Module)
    return model


def save_shapes(out: Path) -> None:
    shapes = {name: list(tensor.shape) for name, tensor in vgg16().state_dict().items()}
    out.write_text(json.dumps(shapes), "utf-8")


def main() -> None:
    command, *arguments = sys.argv[1:]
    if command == "shapes":
        save_shapes(Path(arguments[0]))
        return
    images = Path(arguments.pop(0)) if command == "logits" else None
    for pair in arguments:
        file, out = map(Path, pair.split("=", 1))
        state = load(file)
        named = ((name, tensor.numpy()) for name, tensor in state.items())
        oracles.save_digests(out.with_suffix(".json"), named)
        if images:
            logits(state, images, out)


if __name__ == "__main__":
    main()
