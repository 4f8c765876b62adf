"""Keras 3 layers: their weights, an input and what they make of it, as `.npz`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.pop("TF_USE_LEGACY_KERAS", None)

import numpy as np

from tests.oracles import save_arrays


def cases(keras):
    layer = keras.layers
    image, sequence = (2, 9, 8, 4), (2, 7, 6)
    flat = keras.Sequential([layer.Input(image[1:]), layer.Flatten(), layer.Dense(5)])
    attention = layer.MultiHeadAttention(3, 2)
    return {
        "conv-keras-torch": (layer.Conv2D(5, (3, 2)), image),
        "conv1-keras-torch": (layer.Conv1D(5, 3), sequence),
        "depthwise-keras-torch": (layer.DepthwiseConv2D((3, 2), depth_multiplier=2), image),
        "separable-keras-torch": (layer.SeparableConv2D(5, (3, 2), depth_multiplier=2), image),
        "conv-transpose-keras-torch": (layer.Conv2DTranspose(5, (3, 2), strides=2), image),
        "dense-keras-torch": (layer.Dense(5), (2, 4)),
        "dense-flatten-keras-torch": (flat, image),
        "batchnorm-keras-torch": (layer.BatchNormalization(epsilon=1e-3), image),
        "batchnorm-noscale-keras-torch": (
            layer.BatchNormalization(epsilon=1e-3, scale=False),
            image,
        ),
        "layernorm-keras-torch": (layer.LayerNormalization(epsilon=1e-3), (2, 6)),
        "groupnorm-keras-torch": (layer.GroupNormalization(2, epsilon=1e-3), image),
        "embedding-keras-torch": (layer.Embedding(11, 4), (2, 3)),
        "lstm-keras-torch": (layer.LSTM(5, return_sequences=True), sequence),
        "gru-keras-torch": (layer.GRU(5, return_sequences=True), sequence),
        "bidirectional-lstm-keras-torch": (
            layer.Bidirectional(layer.LSTM(5, return_sequences=True, name="lstm")),
            sequence,
        ),
        "bidirectional-gru-keras-torch": (
            layer.Bidirectional(layer.GRU(5, return_sequences=True, name="gru")),
            sequence,
        ),
        "attention-keras-torch": (attention, sequence),
        "attention-fused-keras-torch": (attention, sequence),
    }


def main(folder: str) -> None:
    import keras

    rng = np.random.default_rng(0)
    found = {}
    for name, (layer, shape) in cases(keras).items():
        x = rng.normal(size=shape).astype("f4")
        if name.startswith("embedding"):
            x = rng.integers(0, 11, shape)
        inputs = (x, x) if name.startswith("attention") else (x,)
        layer(*inputs)
        for variable in layer.weights:
            values = rng.normal(size=variable.shape).astype("f4") * np.float32(0.3)
            variable.assign(np.abs(values) + 0.5 if "variance" in variable.path else values)
            found[f"{name}|{below(name, variable.path)}"] = np.asarray(variable)
        found[f"{name}|x"] = x
        found[f"{name}|y"] = np.asarray(layer(*inputs))
    save_arrays(Path(folder) / "keras.npz", found)


def below(name: str, path: str) -> str:
    """The name of a weight below its layer."""
    depth = 3 if name.startswith("bidirectional") else 2 if name.startswith("attention") else 1
    return "/".join(path.split("/")[-depth:])


if __name__ == "__main__":
    main(*sys.argv[1:])
