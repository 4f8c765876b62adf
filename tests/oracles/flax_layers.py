"""Flax layers: their weights, an input and what they make of it, as `.npz`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from tests.oracles import save_arrays


def separable(nn):
    class Separable(nn.Module):
        @nn.compact
        def __call__(self, x):
            options = {"padding": "VALID", "feature_group_count": 4, "use_bias": False}
            return nn.Conv(5, (1, 1), name="pointwise")(
                nn.Conv(8, (3, 2), name="depthwise", **options)(x)
            )

    return Separable()


def cases(nn):
    image, sequence = (2, 9, 8, 4), (2, 7, 6)
    attention = nn.MultiHeadDotProductAttention(3, qkv_features=6)
    return {
        "conv-flax-torch": (nn.Conv(5, (3, 2), padding="VALID"), image),
        "conv-transpose-flax-torch": (
            nn.ConvTranspose(5, (3, 2), (2, 2), padding="VALID"),
            image,
        ),
        "dense-flax-torch": (nn.Dense(5), (2, 4)),
        "dense-flatten-flax-torch": (nn.Dense(5), (2, 9 * 8 * 4)),
        "batchnorm-flax-torch": (nn.BatchNorm(use_running_average=True, epsilon=1e-3), image),
        "layernorm-flax-torch": (nn.LayerNorm(epsilon=1e-3), (2, 6)),
        "groupnorm-flax-torch": (nn.GroupNorm(2, epsilon=1e-3), image),
        "embedding-flax-torch": (nn.Embed(11, 4), (2, 3)),
        "depthwise-flax-torch": (
            nn.Conv(8, (3, 2), padding="VALID", feature_group_count=4),
            image,
        ),
        "separable-flax-torch": (separable(nn), image),
        "lstm-flax-torch": (nn.RNN(nn.OptimizedLSTMCell(5)), sequence),
        "gru-flax-torch": (nn.RNN(nn.GRUCell(5)), sequence),
        "bidirectional-lstm-flax-torch": (
            nn.Bidirectional(nn.RNN(nn.OptimizedLSTMCell(5)), nn.RNN(nn.OptimizedLSTMCell(5))),
            sequence,
        ),
        "bidirectional-gru-flax-torch": (
            nn.Bidirectional(nn.RNN(nn.GRUCell(5)), nn.RNN(nn.GRUCell(5))),
            sequence,
        ),
        "attention-flax-torch": (attention, sequence),
        "attention-fused-flax-torch": (attention, sequence),
    }


def main(folder: str) -> None:
    import jax
    from flax import linen as nn
    from flax.traverse_util import flatten_dict, unflatten_dict

    rng = np.random.default_rng(0)
    found = {}
    for name, (layer, shape) in cases(nn).items():
        x = rng.normal(size=shape).astype("f4")
        if name.startswith("embedding"):
            x = rng.integers(0, 11, shape)
        flat = flatten_dict(layer.init(jax.random.key(0), x), sep="/")
        values = {
            k: rng.normal(size=v.shape).astype("f4") * np.float32(0.3) for k, v in flat.items()
        }
        values = {
            k: np.abs(v) + np.float32(0.5) if k.endswith("var") else v for k, v in values.items()
        }
        for key, value in values.items():
            kept = key.split("/")[1:]
            found[f"{name}|{'/'.join(kept[1:] if name.startswith(('lstm', 'gru')) else kept)}"] = (
                value
            )
        found[f"{name}|x"] = x
        found[f"{name}|y"] = np.asarray(layer.apply(unflatten_dict(values, sep="/"), x))
    save_arrays(Path(folder) / "flax.npz", found)


if __name__ == "__main__":
    main(*sys.argv[1:])
