"""Dense layers, alone and after a flatten, and embeddings.

Keras, Flax, TF-Slim   y = x K + b, rows of K are inputs; a flatten runs height, width, channel
PyTorch                y = x Wᵀ + b, rows of W are outputs; a flatten runs channel, height, width
TF-Slim, as it builds VGG: a convolution whose window is the whole map
Mesh TensorFlow        a matrix is a variable without a name of its own below the layer's
"""

from __future__ import annotations

import math
from random import Random

import numpy as np

from converter.layers.base import Array, Convention, Layer, Sizes, Weights


def _times(kernel: str, bias: str, axes: str) -> Convention:
    def compute(w: Weights, x: Array, _: Sizes) -> Array:
        return x.reshape(len(x), -1) @ w[kernel] + w[bias]

    return Convention({kernel: axes, bias: "o"}, compute, {bias: 0})


def _window(w: Weights, x: Array, _: Sizes) -> Array:
    images = x if x.ndim > 2 else x[:, None, None]  # noqa: PLR2004 - one pixel each
    found: Array = np.einsum("nhwi,hwio->no", images, w["weights"]) + w["biases"]
    return found


def _linear(w: Weights, x: Array, _: Sizes) -> Array:
    flat = np.moveaxis(x, -1, 1).reshape(len(x), -1)
    return flat @ w["weight"].T + w["bias"]


def _conventions(axes: str, window: str, turned: str) -> dict[str, Convention]:
    return {
        "keras": _times("kernel", "bias", axes),
        "flax": _times("kernel", "bias", axes),
        "slim": _times("weights", "biases", axes),
        "slim-conv": Convention({"weights": window, "biases": "o"}, _window, {"biases": 0}),
        "torch": Convention({"weight": turned, "bias": "o"}, _linear, {"bias": 0}),
    }


def _ids(random: Random, shape: tuple[int, ...], sizes: Sizes) -> Array:
    ids = [random.randrange(sizes["v"]) for _ in range(math.prod(shape))]
    return np.array(ids).reshape(shape)


def _looked_up(name: str) -> Convention:
    return Convention({name: "v d"}, lambda w, x, _: w[name][x])


LAYERS = {
    "dense": Layer(
        "a dense layer",
        {"i": 4, "o": 5},
        "3 i",
        _conventions("i o", "1 1 i o", "o i")
        | {"mesh": Convention({"": "i o"}, lambda w, x, _: x @ w[""])},
    ),
    "dense-flatten": Layer(
        "a dense layer after a flattened feature map",
        {"h": 2, "w": 3, "c": 4, "o": 5},
        "3 h w c",
        _conventions("(h w c) o", "h w c o", "o (c h w)"),
    ),
    "embedding": Layer(
        "an embedding",
        {"v": 7, "d": 4},
        "3 5",
        {
            "keras": _looked_up("embeddings"),
            "flax": _looked_up("embedding"),
            "mesh": Convention({"": "d v"}, lambda w, x, _: np.moveaxis(w[""][:, x], 0, -1)),
            "torch": _looked_up("weight"),
        },
        _ids,
    ),
}
