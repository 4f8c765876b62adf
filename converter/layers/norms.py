"""Normalisations: of a batch by its statistics, of a layer, of groups of channels.

y = scale * (x - mean) / sqrt(variance + epsilon) + shift, by channel, whoever computes it
"""

from __future__ import annotations

import numpy as np

from converter.layers.base import Array, Convention, Layer, Sizes, Weights

EPSILON = 1e-3
KERAS = {"gamma": 1, "beta": 0}
SLIM = {"moving_mean": 0, "moving_variance": 1}
FLAX = {"scale": 1, "bias": 0}
TORCH = {"weight": 1, "bias": 0}


def _normalised(x: Array, axes: tuple[int, ...]) -> Array:
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    found: Array = (x - mean) / np.sqrt(variance + EPSILON)
    return found


def _batch(names: dict[str, int]) -> Convention:
    scale, shift, mean, variance = names

    def compute(w: Weights, x: Array, _: Sizes) -> Array:
        found: Array = w[scale] * (x - w[mean]) / np.sqrt(w[variance] + EPSILON) + w[shift]
        return found

    return Convention(dict.fromkeys(names, "c"), compute, names)


def _layer(names: dict[str, int]) -> Convention:
    scale, shift = names

    def compute(w: Weights, x: Array, _: Sizes) -> Array:
        return w[scale] * _normalised(x, (-1,)) + w[shift]

    return Convention(dict.fromkeys(names, "c"), compute, names)


def _group(names: dict[str, int]) -> Convention:
    scale, shift = names

    def compute(w: Weights, x: Array, sizes: Sizes) -> Array:
        groups = x.reshape(*x.shape[:-1], sizes["groups"], -1)
        return w[scale] * _normalised(groups, (1, 2, 4)).reshape(x.shape) + w[shift]

    return Convention(dict.fromkeys(names, "c"), compute, names)


LAYERS = {
    "batchnorm": Layer(
        "batch normalisation, of a trained model",
        {"c": 4},
        "2 3 5 c",
        {
            "keras": _batch(KERAS | SLIM),
            "slim": _batch(KERAS | SLIM),
            "flax": _batch(FLAX | {"mean": 0, "var": 1}),
            "torch": _batch(TORCH | {"running_mean": 0, "running_var": 1}),
        },
    ),
    "layernorm": Layer(
        "layer normalisation, over the last axis",
        {"c": 4},
        "2 3 c",
        {"keras": _layer(KERAS), "flax": _layer(FLAX), "torch": _layer(TORCH)},
    ),
    "groupnorm": Layer(
        "group normalisation",
        {"c": 6, "groups": 2},
        "2 3 5 c",
        {"keras": _group(KERAS), "flax": _group(FLAX), "torch": _group(TORCH)},
    ),
}
