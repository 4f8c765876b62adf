"""VGG-16 as its homes know it: names, shapes and seeded values.

Four tables of `name -> (shape, dtype name)`, in the order of the network:

* `slim`: the 34 tensors of TF-Slim's ImageNet checkpoint;
* `faster_rcnn`: the 40 model variables of tf-faster-rcnn; a snapshot holds its
  `training_leftovers` as well;
* `torchvision`: the state dict of `torchvision.models.vgg16`;
* `pytorch_faster_rcnn`: the state dict of pytorch-faster-rcnn's VGG-16.

`shrink` divides every width, so that the same mapping files apply to files of a few hundred
kilobytes.  Needs NumPy and nothing else: `make run` uses it on a machine without frameworks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Table = dict[str, tuple[tuple[int, ...], str]]

FULL = 1
TINY = 32  # widths 2, 4, 8, 16 and 128: no axis of length one that would hide a transposition
BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
FEATURES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # torchvision's convolutions
FC = 4096
CLASSES = 1000  # ImageNet
DETECTION_CLASSES = 21  # Pascal VOC, with background
ANCHORS = 9
MEAN_RGB = (123.68, 116.779, 103.939)
FLOAT = "float32"


def slim(shrink: int = FULL) -> Table:
    """`vgg_16.ckpt` of TF-Slim: kernels are H W I O, the dense layers are convolutions."""
    fc, last = FC // shrink, 512 // shrink
    table = _slim_convolutions(shrink)
    table |= _slim_pair("vgg_16/fc6", (7, 7, last, fc))
    table |= _slim_pair("vgg_16/fc7", (1, 1, fc, fc))
    table |= _slim_pair("vgg_16/fc8", (1, 1, fc, CLASSES // shrink))
    table["vgg_16/mean_rgb"] = ((3,), FLOAT)
    table["global_step"] = ((), "int64")
    return table


def faster_rcnn(shrink: int = FULL) -> Table:
    """The model variables of tf-faster-rcnn: dense layers are matrices, flattened as H W C."""
    fc, last = FC // shrink, 512 // shrink
    table = _slim_convolutions(shrink)
    table |= _slim_pair("vgg_16/fc6", (7 * 7 * last, fc))
    table |= _slim_pair("vgg_16/fc7", (fc, fc))
    table |= _slim_pair("vgg_16/rpn_conv/3x3", (3, 3, last, last))
    table |= _slim_pair("vgg_16/rpn_cls_score", (1, 1, last, 2 * ANCHORS))
    table |= _slim_pair("vgg_16/rpn_bbox_pred", (1, 1, last, 4 * ANCHORS))
    table |= _slim_pair("vgg_16/cls_score", (fc, DETECTION_CLASSES))
    table |= _slim_pair("vgg_16/bbox_pred", (fc, 4 * DETECTION_CLASSES))
    return table


def training_leftovers(shrink: int = FULL) -> Table:
    """What a training snapshot of tf-faster-rcnn holds beside the model: 33 tensors.

    `Variable` is the learning rate, which its code leaves unnamed; the first two blocks are
    frozen and have no momentum.
    """
    trained = {
        f"{name}/Momentum": entry
        for name, entry in faster_rcnn(shrink).items()
        if not name.startswith(("vgg_16/conv1/", "vgg_16/conv2/"))
    }
    return {"Variable": ((), FLOAT), **trained}


def torchvision(shrink: int = FULL) -> Table:
    """`torchvision.models.vgg16().state_dict()`: kernels are O I H W, flattened as C H W."""
    fc, last = FC // shrink, 512 // shrink
    table = _torch_convolutions("features", shrink)
    table |= _torch_pair("classifier.0", (fc, last * 7 * 7))
    table |= _torch_pair("classifier.3", (fc, fc))
    table |= _torch_pair("classifier.6", (CLASSES // shrink, fc))
    return table


def pytorch_faster_rcnn(shrink: int = FULL) -> Table:
    """The state dict of pytorch-faster-rcnn's VGG-16: 40 tensors."""
    fc, last = FC // shrink, 512 // shrink
    table = _torch_convolutions("vgg.features", shrink)
    table |= _torch_pair("vgg.classifier.0", (fc, last * 7 * 7))
    table |= _torch_pair("vgg.classifier.3", (fc, fc))
    table |= _torch_pair("rpn_net", (last, last, 3, 3))
    table |= _torch_pair("rpn_cls_score_net", (2 * ANCHORS, last, 1, 1))
    table |= _torch_pair("rpn_bbox_pred_net", (4 * ANCHORS, last, 1, 1))
    table |= _torch_pair("cls_score_net", (DETECTION_CLASSES, fc))
    table |= _torch_pair("bbox_pred_net", (4 * DETECTION_CLASSES, fc))
    return table


def _convolutions(shrink: int) -> Iterator[tuple[str, int, int]]:
    """(`conv3/conv3_1`, channels in, channels out) of the thirteen convolutions."""
    channels = 3
    for block, (width, count) in enumerate(BLOCKS, 1):
        for layer in range(1, count + 1):
            yield f"conv{block}/conv{block}_{layer}", channels, width // shrink
            channels = width // shrink


def _slim_convolutions(shrink: int) -> Table:
    table: Table = {}
    for name, inputs, outputs in _convolutions(shrink):
        table |= _slim_pair(f"vgg_16/{name}", (3, 3, inputs, outputs))
    return table


def _torch_convolutions(scope: str, shrink: int) -> Table:
    table: Table = {}
    for feature, (_, inputs, outputs) in zip(FEATURES, _convolutions(shrink), strict=True):
        table |= _torch_pair(f"{scope}.{feature}", (outputs, inputs, 3, 3))
    return table


def _slim_pair(name: str, shape: tuple[int, ...]) -> Table:
    return {f"{name}/weights": (shape, FLOAT), f"{name}/biases": (shape[-1:], FLOAT)}


def _torch_pair(name: str, shape: tuple[int, ...]) -> Table:
    return {f"{name}.weight": (shape, FLOAT), f"{name}.bias": (shape[:1], FLOAT)}


def arrays(
    table: Mapping[str, tuple[tuple[int, ...], str]], seed: int = 0
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Seeded values for a table in TensorFlow's layout, one tensor at a time.

    Weights are scaled by their fan-in (He), so that activations stay near one through all layers.
    """
    for index, (name, (shape, dtype)) in enumerate(table.items()):
        generator = np.random.Generator(np.random.PCG64([seed, index]))
        yield name, _values(name, shape, dtype, generator)


def _values(
    name: str, shape: tuple[int, ...], dtype: str, generator: np.random.Generator
) -> NDArray[Any]:
    if name.endswith("mean_rgb"):
        return np.array(MEAN_RGB, dtype)
    if dtype == "int64":
        return np.array(generator.integers(1, 1 << 40), dtype)
    values = generator.standard_normal(shape, dtype)
    if len(shape) > 1:
        values *= np.float32(math.sqrt(2 / math.prod(shape[:-1])))
    return np.asarray(values, dtype)


def images(count: int, seed: int = 0) -> NDArray[Any]:
    """A batch for the real networks: N H W C, RGB, 0..255 with the mean subtracted."""
    generator = np.random.Generator(np.random.PCG64(seed))
    coarse = generator.integers(0, 256, (count, 14, 14, 3)).repeat(16, 1).repeat(16, 2)
    noise = generator.integers(-20, 21, (count, 224, 224, 3))
    pixels = np.clip(coarse + noise, 0, 255).astype(FLOAT)
    return np.asarray(pixels - np.array(MEAN_RGB, FLOAT))
