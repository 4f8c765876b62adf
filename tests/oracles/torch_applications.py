"""Models of torchvision and timm with the weights of `keras.applications`.

python -m tests.oracles.torch_applications JOBS.json

JOBS is `{"folder": …, "jobs": {NAME: {"model": "timm", "name": …, "options": {…}}, …}}`, as for
`torch_vision`.  Each loads FOLDER/NAME.safetensors with `strict=True` into the real class and runs
in float64 on the images of NAME.npz; NAME-torch.npz gets the outputs under the same keys.  Where
`match` (changes of the model, by name) or `matching` (other options) say how the target computes
the same as Keras, the outputs of the model as its package makes it are there too, as `stock-…`.

Where `narrow` is set, tensors of the real class get the shapes that are in the file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests import oracles
from tests.oracles import torch_vision
from tests.oracles.torch_vgg16 import load, torchvision_models

KERAS_EPSILON = 1.001e-5


def resnetv2(layers: list[int], **options: Any) -> nn.Module:
    """timm's ResNetV2 with biases, and zeros around the pooling of its stem."""
    torchvision_models()  # which timm imports
    from timm.layers import BatchNormAct2d, create_conv2d
    from timm.models.resnetv2 import ResNetV2

    biased = partial(create_conv2d, bias=True)
    norm = partial(BatchNormAct2d, eps=KERAS_EPSILON)
    return ResNetV2(layers, conv_layer=biased, norm_layer=norm, stem_type="fixed", **options)


def torchvision_family(family: str, **options: Any) -> nn.Module:
    """A class of torchvision by itself, for models with fewer layers."""
    models = torchvision_models()
    if family == "ConvNeXt":
        widths = [96, 192, 384, 768, None]
        blocks = zip(widths, widths[1:], options.pop("depths"), strict=False)
        options["block_setting"] = [models.convnext.CNBlockConfig(*each) for each in blocks]
    return getattr(models, family)(**options)


MODELS: dict[str, Callable[..., nn.Module]] = {
    **torch_vision.MODELS,
    "resnetv2": resnetv2,
    "torchvision_family": torchvision_family,
}


def late_strides(model: Any) -> None:
    """Strides in the last block of a stage, whose shortcut takes every second pixel."""
    for stage, following in pairwise(model.stages):
        first, last = following.blocks[0], stage.blocks[-1]
        first.conv2.stride = first.downsample.conv.stride = (1, 1)
        last.conv2.stride = (2, 2)
        last.forward = partial(_strided, last)


def _strided(block: Any, x: torch.Tensor) -> torch.Tensor:
    """`PreActBottleneck.forward`, with another shortcut."""
    inner = block.conv2(block.norm2(block.conv1(block.norm1(x))))
    found: torch.Tensor = block.conv3(block.norm3(inner)) + x[:, :, ::2, ::2]
    return found


def keras_epsilon(model: nn.Module) -> None:
    """The epsilon of ResNet and DenseNet."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = KERAS_EPSILON


def same_pools(model: nn.Module) -> None:
    """Max pooling that pads an even size only at the end."""
    from timm.layers.pool2d_same import MaxPool2dSame

    for block in model.modules():
        for name, module in block.named_children():
            if isinstance(module, nn.MaxPool2d):
                setattr(block, name, MaxPool2dSame(module.kernel_size, module.stride))


MATCHES: dict[str, Callable[[Any], None]] = {
    **torch_vision.MATCHES,
    **{made.__name__: made for made in (late_strides, keras_epsilon, same_pools)},
}


def headers(model: str, **options: Any) -> dict[str, tuple[Any, list[int]]]:
    """Names, dtypes and shapes of the state dict; nothing is allocated."""
    with torch.device("meta"):
        state = MODELS[model](**options).state_dict()
    return {name: (tensor.dtype, list(tensor.shape)) for name, tensor in state.items()}


def narrowed(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """The tensors get the shapes that they have in a state, where they have as many axes."""
    for path, module in model.named_modules():
        for kept in (module._parameters, module._buffers):
            for name, tensor in kept.items():
                found = state.get(f"{path}.{name}".lstrip("."))
                if found is not None and tensor is not None and found.dim() == tensor.dim():
                    wide = torch.empty(found.shape, device="meta", dtype=tensor.dtype)
                    kept[name] = nn.Parameter(wide) if kept is module._parameters else wide
        if isinstance(module, nn.Conv2d) and module.groups > 1:  # depthwise, all of them
            module.groups = module.weight.shape[0]
        if isinstance(module, nn.LayerNorm):
            module.normalized_shape = tuple(module.weight.shape)


def build(
    job: Mapping[str, Any], state: Mapping[str, torch.Tensor], *, matching: bool
) -> nn.Module:
    """The real class with these weights, all of them."""
    options = {**job.get("options", {}), **(job.get("matching", {}) if matching else {})}
    if "name" in job:
        options["name"] = job["name"]
    with torch.device("meta"):
        model = MODELS[job["model"]](**options)
    if job.get("narrow", 1) > 1:
        narrowed(model, state)
    model.load_state_dict(state, strict=True, assign=True)
    for change in job.get("match", ()) if matching else ():
        MATCHES[change](model)
    return model.double().eval()


def run(folder: Path, name: str, job: Mapping[str, Any]) -> None:
    state = load(folder / f"{name}.safetensors")
    arrays = oracles.load_arrays(folder / f"{job.get('images', name)}.npz")
    found = {}
    for prefix in ("stock-", "") if {"match", "matching"} & job.keys() else ("",):
        model = build(job, state, matching=not prefix)
        for key, array in arrays.items():
            if key.startswith("images-"):
                with torch.inference_mode():
                    made = torch_vision.outputs(model, torch.from_numpy(array).double())
                size = key.removeprefix("images-")
                found |= {f"{prefix}{output}-{size}": values for output, values in made.items()}
        sys.modules[type(model).__module__].F = nn.functional  # type: ignore[attr-defined]
    oracles.save_arrays(folder / f"{name}-torch.npz", found)


def main() -> None:
    jobs = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    for name, job in jobs["jobs"].items():
        run(Path(jobs["folder"]), name, job)


if __name__ == "__main__":
    main()
