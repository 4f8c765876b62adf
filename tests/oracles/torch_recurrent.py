"""`torch.nn.LSTM` and `torch.nn.GRU`, in float64: what they make of an input.

    python -m tests.oracles.torch_recurrent JOBS.json

Each job is `{kind, layers, bidirectional, units, x, state, out}`: STATE is an `.npz` of a
state dict, which the layer takes strictly, or is made of random values where there is no such file.
OUT.npz gets `y`, and for a GRU of one direction also `y-reset-before`: the same weights in a GRU
that resets before the product, step by step.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.oracles import load_arrays, save_arrays


def layer(job: dict[str, Any], inputs: int) -> Any:
    """All layers in one module, as PyTorch has them."""
    return getattr(nn, job["kind"])(
        inputs,
        job["units"],
        job["layers"],
        batch_first=True,
        bidirectional=job["bidirectional"],
        dtype=torch.float64,
    )


def reset_before(state: dict[str, Tensor], x: Tensor, layers: int) -> Tensor:
    """A stack of GRU layers that reset before the product."""
    for k in range(layers):
        w, u = state[f"weight_ih_l{k}"].chunk(3), state[f"weight_hh_l{k}"].chunk(3)
        b = (state[f"bias_ih_l{k}"] + state[f"bias_hh_l{k}"]).chunk(3)
        h = torch.zeros(x.shape[0], u[0].shape[0], dtype=x.dtype)
        steps = []
        for now in x.unbind(1):
            r = torch.sigmoid(now @ w[0].T + b[0] + h @ u[0].T)
            z = torch.sigmoid(now @ w[1].T + b[1] + h @ u[1].T)
            n = torch.tanh(now @ w[2].T + b[2] + (r * h) @ u[2].T)
            h = (1 - z) * n + z * h
            steps.append(h)
        x = torch.stack(steps, 1)
    return x


def run(job: dict[str, Any]) -> None:
    x = torch.tensor(load_arrays(Path(job["x"]))["x"])
    module = layer(job, x.shape[2])
    path = Path(job["state"])
    if path.is_file():
        state = {name: torch.tensor(array) for name, array in load_arrays(path).items()}
        module.load_state_dict(state, strict=True)
    else:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.normal_(0, 0.5)
        state = module.state_dict()
        save_arrays(path, {name: tensor.numpy() for name, tensor in state.items()})
    with torch.no_grad():
        found = {"y": module(x)[0].numpy()}
        if job["kind"] == "GRU" and not job["bidirectional"]:
            found["y-reset-before"] = reset_before(state, x, job["layers"]).numpy()
    save_arrays(Path(job["out"]), found)


def main(path: str) -> None:
    torch.manual_seed(0)
    for job in json.loads(Path(path).read_text("utf-8")):
        run(job)


if __name__ == "__main__":
    main(*sys.argv[1:])
