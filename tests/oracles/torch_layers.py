"""PyTorch's layers: given their state and an input, what they make of it.

    torch_layers IN.npz OUT.npz      IN: `layer|name` for each tensor of a state, and `layer|x`

Inputs and outputs have the channels last, as Keras and Flax have them.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch import nn

from tests.oracles import load_arrays, save_arrays


class Separable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(4, 8, (3, 2), groups=4, bias=False)
        self.pointwise = nn.Conv2d(8, 5, 1)

    def forward(self, x):
        return self.pointwise(self.depthwise(x))


class Separate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x):
        heads = [
            each(x).unflatten(-1, (3, 2)).transpose(1, 2)
            for each in (self.q_proj, self.k_proj, self.v_proj)
        ]
        found = nn.functional.scaled_dot_product_attention(*heads)
        return self.out_proj(found.transpose(1, 2).flatten(-2))


class Fused(nn.MultiheadAttention):
    def __init__(self) -> None:
        super().__init__(6, 3, batch_first=True)

    def forward(self, x):
        return super().forward(x, x, x)[0]


class First(nn.Module):
    """A recurrent layer without what it returns besides."""

    def __init__(self, layer) -> None:
        super().__init__()
        self.layer = layer

    def load_state_dict(self, *args, **kwargs):
        return self.layer.load_state_dict(*args, **kwargs)

    def forward(self, x):
        return self.layer(x)[0]


LAYERS = {
    "conv": lambda: nn.Conv2d(4, 5, (3, 2)),
    "conv1": lambda: nn.Conv1d(6, 5, 3),
    "depthwise": lambda: nn.Conv2d(4, 8, (3, 2), groups=4),
    "separable": Separable,
    "conv-transpose": lambda: nn.ConvTranspose2d(4, 5, (3, 2), 2),
    "dense": lambda: nn.Linear(4, 5),
    "dense-flatten": lambda: nn.Sequential(nn.Flatten(), nn.Linear(288, 5)),
    "batchnorm": lambda: nn.BatchNorm2d(4, eps=1e-3),
    "batchnorm-noscale": lambda: nn.BatchNorm2d(4, eps=1e-3),
    "layernorm": lambda: nn.LayerNorm(6, eps=1e-3),
    "groupnorm": lambda: nn.GroupNorm(2, 4, eps=1e-3),
    "embedding": lambda: nn.Embedding(11, 4),
    "lstm": lambda: First(nn.LSTM(6, 5, batch_first=True)),
    "gru": lambda: First(nn.GRU(6, 5, batch_first=True)),
    "bidirectional-lstm": lambda: First(nn.LSTM(6, 5, batch_first=True, bidirectional=True)),
    "bidirectional-gru": lambda: First(nn.GRU(6, 5, batch_first=True, bidirectional=True)),
    "attention": Separate,
    "attention-fused": Fused,
}
CHANNELS_FIRST = ("conv", "depthwise", "separable", "batchnorm", "groupnorm", "dense-flatten")


def main(source: str, target: str) -> None:
    cases: dict[str, dict[str, np.ndarray]] = {}
    for key, array in load_arrays(source).items():
        case, name = key.split("|")
        cases.setdefault(case, {})[name] = array
    found = {}
    for case, arrays in cases.items():
        kind = case.rsplit("-", 2)[0]
        x = torch.tensor(arrays.pop("x"))
        layer = LAYERS[kind]().eval()
        prefix = "1." if kind == "dense-flatten" else ""
        layer.load_state_dict({prefix + n: torch.tensor(a) for n, a in arrays.items()}, strict=True)
        moved = kind.startswith(CHANNELS_FIRST)
        with torch.no_grad():
            y = layer(x.movedim(-1, 1) if moved else x)
        back = moved and kind != "dense-flatten"
        found[case] = (y.movedim(1, -1) if back else y).numpy()
    save_arrays(target, found)


if __name__ == "__main__":
    main(*sys.argv[1:])
