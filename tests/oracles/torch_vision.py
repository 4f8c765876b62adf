"""Models of torchvision, timm and pytorch-faster-rcnn, loaded from converted files.

python -m tests.oracles.torch_vision JOBS.json

JOBS is `{"folder": …, "jobs": {NAME: {"model": …, "options": {…}, "match": […]}, …}}`.
Each loads FOLDER/NAME.safetensors with `strict=True`, runs in float64 on the images of
FOLDER/NAME.npz, and
writes its outputs under the same keys to FOLDER/NAME-torch.npz: of the model as its package makes
it under `stock-…`, and of the model with every change that `match` names.

`narrow` divides the number of channels of all layers while the real class builds the model.
"""

from __future__ import annotations

import json
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from tests import oracles
from tests.oracles.torch_vgg16 import load, torchvision_models

ANCHORS = 9
POOLED = 7
BASE = 3  # channels of an image


def torchvision(name: str, **options: Any) -> nn.Module:
    """A model of torchvision; `units` per layer in place of the paper's."""
    models = torchvision_models()
    if "units" in options:
        resnet = models.resnet
        return resnet.ResNet(resnet.Bottleneck, options.pop("units"), **options)
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    return getattr(models, name)(weights=None, **options)


def timm(name: str, **options: Any) -> nn.Module:
    """A model of timm; `biased` gives every convolution a bias."""
    torchvision_models()  # which timm imports
    import timm as package
    from timm.layers import create_conv2d

    if options.pop("biased", False):
        options["conv_layer"] = partial(create_conv2d, bias=True)
    return package.create_model(name, **options)


class Detector(nn.Module):
    """pytorch-faster-rcnn's modules; a corner of the feature map stands for RoI pooling."""

    def heads(self, features: int, fc7: int, classes: int) -> None:
        """Its lib/nets/network.py."""
        self.rpn_net = nn.Conv2d(features, 512, 3, padding=1)
        self.rpn_cls_score_net = nn.Conv2d(512, 2 * ANCHORS, 1)
        self.rpn_bbox_pred_net = nn.Conv2d(512, 4 * ANCHORS, 1)
        self.cls_score_net = nn.Linear(fc7, classes)
        self.bbox_pred_net = nn.Linear(fc7, 4 * classes)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.head(images)
        rpn = self.rpn_net(features).relu()
        fc7 = self.tail(features[:, :, :POOLED, :POOLED]).mean(3).mean(2)
        return {
            "rpn_cls": self.rpn_cls_score_net(rpn).permute(0, 2, 3, 1),
            "rpn_bbox": self.rpn_bbox_pred_net(rpn).permute(0, 2, 3, 1),
            "cls": self.cls_score_net(fc7),
            "bbox": self.bbox_pred_net(fc7),
        }


class RcnnResNet(Detector):
    """Its lib/nets/resnet_v1.py: torchvision's ResNet with other strides."""

    def __init__(self, depth: int, classes: int = 21, **options: Any) -> None:
        super().__init__()
        net = torchvision(f"resnet{depth}", **options)
        for layer in (net.layer2, net.layer3):
            layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
        net.layer4[0].conv2.stride = net.layer4[0].downsample[0].stride = (1, 1)
        del net.avgpool, net.fc
        self.resnet = net
        self.heads(1024, 2048, classes)

    def head(self, images: torch.Tensor) -> torch.Tensor:
        net = self.resnet
        parts = (net.conv1, net.bn1, net.relu, net.maxpool, net.layer1, net.layer2, net.layer3)
        return nn.Sequential(*parts)(images)

    def tail(self, pooled: torch.Tensor) -> torch.Tensor:
        return self.resnet.layer4(pooled)


class RcnnMobileNet(Detector):
    """Its lib/nets/mobilenet_v1.py, whose normalisation has PyTorch's epsilon, not TF's."""

    DEPTHS = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
    STRIDES = (2, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 1, 1)

    def __init__(self, classes: int = 21) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        before = BASE
        for number, (depth, stride) in enumerate(zip(self.DEPTHS, self.STRIDES, strict=True)):
            if number == 0:
                layers["Conv2d_0"] = self.unit(before, depth, 3, stride)
            else:
                wise = self.unit(before, before, 3, stride, before)
                point = self.unit(before, depth, 1)
                parts = OrderedDict(depthwise=wise, pointwise=point)
                layers[f"Conv2d_{number}"] = nn.Sequential(parts)
            before = depth
        self.mobilenet = nn.Sequential(layers)
        self.heads(512, 1024, classes)

    def head(self, images: torch.Tensor) -> torch.Tensor:
        return self.mobilenet[:12](images)

    def tail(self, pooled: torch.Tensor) -> torch.Tensor:
        return self.mobilenet[12:](pooled)

    @staticmethod
    def unit(before: int, after: int, size: int, stride: int = 1, groups: int = 1) -> nn.Module:
        conv = nn.Conv2d(before, after, size, stride, size // 2, groups=groups, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU6())


MODELS: dict[str, Callable[..., nn.Module]] = {
    "torchvision": torchvision,
    "timm": timm,
    "rcnn_resnet": RcnnResNet,
    "rcnn_mobilenet": RcnnMobileNet,
}


# What makes a stock model compute as its source does.


def early_strides(model: nn.Module) -> None:
    """Stride in the first convolution of a bottleneck, as ResNet V1 has it, not V1.5."""
    stages = getattr(model, "stages", None) or [
        model.layer1,
        model.layer2,
        model.layer3,
        model.layer4,
    ]
    for stage in list(stages)[1:]:
        first = getattr(stage, "blocks", stage)[0]
        first.conv1.stride, first.conv2.stride = (2, 2), (1, 1)


def same_pool(model: nn.Module) -> None:
    """The first pooling pads only at the end, as TF's SAME does for even sizes."""
    pool = nn.Sequential(nn.ConstantPad2d((0, 1, 0, 1), -torch.inf), nn.MaxPool2d(3, 2))
    if hasattr(model, "stem"):
        model.stem.pool = pool
    else:
        model.maxpool = pool


def same_stem(model: nn.Module) -> None:
    """GoogLeNet's first convolution pads by 2 and 3, as TF's SAME does for even sizes."""
    model.conv1.conv.padding = (0, 0)
    model.conv1.conv = nn.Sequential(nn.ZeroPad2d((2, 3, 2, 3)), model.conv1.conv)


def unpadded_average(model: nn.Module) -> None:
    """Average pooling leaves out what is padded."""
    module = sys.modules[type(model).__module__]
    functions = vars(nn.functional) | {
        "avg_pool2d": partial(nn.functional.avg_pool2d, count_include_pad=False)
    }
    module.F = SimpleNamespace(**functions)


def larger_epsilon(model: nn.Module) -> None:
    """TF-Slim's epsilon in every normalisation."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3


def same_padding(model: nn.Module) -> None:
    """TF's SAME: where a convolution strides, an even size is padded at the end only."""
    for module in list(model.modules()):
        for name, conv in list(module.named_children()):
            if isinstance(conv, nn.Conv2d) and conv.stride[0] > 1 and conv.padding[0]:
                conv.padding = (0, 0)
                total = conv.kernel_size[0] - 2
                pad = nn.ZeroPad2d((total // 2, total - total // 2) * 2)
                setattr(module, name, nn.Sequential(pad, conv))


MATCHES: dict[str, Callable[[Any], None]] = {
    function.__name__: function
    for function in (
        early_strides,
        same_pool,
        same_stem,
        unpadded_average,
        larger_epsilon,
        same_padding,
    )
}


@contextmanager
def narrowed(by: int) -> Iterator[None]:
    """Layers that are made meanwhile get their numbers of channels divided."""
    real = {kind: kind.__init__ for kind in (nn.Conv2d, nn.BatchNorm2d, nn.Linear)}

    def narrow(init: Any) -> Any:
        def made(self: Any, *numbers: Any, **options: Any) -> None:
            count = 1 if isinstance(self, nn.BatchNorm2d) else 2
            fewer = [n if n == BASE else n // by for n in numbers[:count]]
            init(self, *fewer, *numbers[count:], **options)

        return made

    for kind, init in real.items():
        kind.__init__ = narrow(init)
    try:
        yield
    finally:
        for kind, init in real.items():
            kind.__init__ = init


def build(job: Mapping[str, Any]) -> nn.Module:
    """The model, as its package makes it."""
    options = dict(job.get("options", {}))
    if "name" in job:
        options["name"] = job["name"]
    with narrowed(job["narrow"]) if job.get("narrow", 1) > 1 else torch.device("cpu"):
        return MODELS[job["model"]](**options)


def headers(model: str, **options: Any) -> dict[str, tuple[Any, list[int]]]:
    """Names, dtypes and shapes of the state dict; nothing is allocated."""
    with torch.device("meta"):
        state = MODELS[model](**options).state_dict()
    return {name: (tensor.dtype, list(tensor.shape)) for name, tensor in state.items()}


def outputs(model: nn.Module, images: torch.Tensor) -> dict[str, Any]:
    """What the model makes of images, N H W C; the auxiliary head computes, too."""
    seen: dict[str, torch.Tensor] = {}
    aux = getattr(model, "AuxLogits", None)
    if aux is not None:
        hook = model.Mixed_6e.register_forward_hook(
            lambda _module, _inputs, output: seen.update(aux=aux(output))
        )
    found = model(images.permute(0, 3, 1, 2))
    if aux is not None:
        hook.remove()
    if isinstance(found, tuple):  # timm gives the auxiliary logits in evaluation, too
        found = found[0]
    named = found if isinstance(found, dict) else {"logits": found}
    return {name: tensor.numpy() for name, tensor in (named | seen).items()}


def run(folder: Path, name: str, job: Mapping[str, Any]) -> None:
    """One job: stock, then with what matches."""
    model = build(job)
    model.load_state_dict(load(folder / f"{name}.safetensors"), strict=True)
    model = model.double().eval()
    arrays = oracles.load_arrays(folder / f"{job.get('images', name)}.npz")
    batches = {
        int(key.removeprefix("images-")): torch.from_numpy(array).double()
        for key, array in arrays.items()
        if key.startswith("images-")
    }
    found = {}
    real = nn.functional
    with torch.inference_mode():
        for prefix, changes in (("stock-", ()), ("", job.get("match", ()))):
            for change in changes:
                MATCHES[change](model)
            for size, images in batches.items():
                made = outputs(model, images)
                found |= {f"{prefix}{key}-{size}": array for key, array in made.items()}
    sys.modules[type(model).__module__].F = real  # type: ignore[attr-defined]
    oracles.save_arrays(folder / f"{name}-torch.npz", found)


def main() -> None:
    torch.set_num_threads(1)  # others work beside it, and its threads wait by spinning
    jobs = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    for name, job in jobs["jobs"].items():
        run(Path(jobs["folder"]), name, job)


if __name__ == "__main__":
    main()
