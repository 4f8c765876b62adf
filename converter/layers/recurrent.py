"""LSTM and GRU, one way and both ways; they return what they give out at every step.

LSTM  the blocks of gates: Keras i f c o; PyTorch i f g o; ONNX i o f c; TF's BasicLSTMCell i j f o,
      of one kernel for input and state, with 1 added to f; Flax has a kernel each
GRU   Keras z r h; PyTorch r z n; Flax has a kernel each; all of them apply the reset gate after the
      product, but for Keras with reset_after=False, which has one bias and applies it before
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from converter.layers.base import Array, Convention, Layer, Sizes, Weights

Gates = Callable[[Weights, Array, Array], list[Array]]  # of an input and a state: blocks


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def _lstm(weights: dict[str, str], gates: Gates) -> Convention:
    """An LSTM; `gates` gives the input, forget, cell and output gate."""

    def compute(w: Weights, x: Array, sizes: Sizes) -> Array:
        state = cell = np.zeros((len(x), sizes["u"]))
        out = []
        for each in np.moveaxis(x, 1, 0):
            i, f, g, o = gates(w, each, state)
            cell = _sigmoid(f) * cell + _sigmoid(i) * np.tanh(g)
            state = _sigmoid(o) * np.tanh(cell)
            out.append(state)
        return np.stack(out, 1)

    return Convention(weights, compute)


def _gru(weights: dict[str, str], gates: Gates, *, reset_before: bool = False) -> Convention:
    """A GRU; `gates` gives reset, update and candidate, of the input and then of the state.

    It resets what the candidate makes of the state, or with `reset_before` the state itself.
    """

    def compute(w: Weights, x: Array, sizes: Sizes) -> Array:
        state = np.zeros((len(x), sizes["u"]))
        out = []
        for each in np.moveaxis(x, 1, 0):
            r, z, n, of_r, of_z, of_n = gates(w, each, state)
            reset, update = _sigmoid(r + of_r), _sigmoid(z + of_z)
            of_n = gates(w, each, reset * state)[-1] if reset_before else reset * of_n
            state = update * state + (1 - update) * np.tanh(n + of_n)
            out.append(state)
        return np.stack(out, 1)

    return Convention(weights, compute)


def _both_ways(one: Convention, forward: str, backward: str) -> Convention:
    """Two layers, the second of which reads from the end; `{}` is a weight's name in one."""

    def compute(w: Weights, x: Array, sizes: Sizes) -> Array:
        there, back = (
            {name: w[form.format(name)] for name in one.weights} for form in (forward, backward)
        )
        turned = one.compute(back, x[:, ::-1], sizes)[:, ::-1]
        return np.concatenate([one.compute(there, x, sizes), turned], -1)

    forms = (forward, backward)
    weights = {form.format(name): axes for form in forms for name, axes in one.weights.items()}
    return Convention(weights, compute)


def _lstm_keras(w: Weights, x: Array, state: Array) -> list[Array]:
    blocks = x @ w["kernel"] + state @ w["recurrent_kernel"] + w["bias"]
    return np.split(blocks, 4, -1)


def _lstm_torch(w: Weights, x: Array, state: Array) -> list[Array]:
    blocks = w["weight_ih_l0"] @ x.T + w["weight_hh_l0"] @ state.T
    return np.split(blocks.T + w["bias_ih_l0"] + w["bias_hh_l0"], 4, -1)


def _lstm_flax(w: Weights, x: Array, state: Array) -> list[Array]:
    return [x @ w[f"i{g}/kernel"] + state @ w[f"h{g}/kernel"] + w[f"h{g}/bias"] for g in "ifgo"]


def _lstm_tf(w: Weights, x: Array, state: Array) -> list[Array]:
    blocks = np.concatenate([x, state], -1) @ w["kernel"] + w["bias"]
    i, g, f, o = np.split(blocks, 4, -1)
    return [i, f + 1, g, o]


def _lstm_onnx(w: Weights, x: Array, state: Array) -> list[Array]:
    of_input, of_state = np.split(w["B"][0], 2)
    blocks = x @ w["W"][0].T + state @ w["R"][0].T + of_input + of_state
    i, o, f, c = np.split(blocks, 4, -1)
    return [i, f, c, o]


def _gru_keras(w: Weights, x: Array, state: Array) -> list[Array]:
    z, r, n = np.split(x @ w["kernel"] + w["bias"][0], 3, -1)
    of_z, of_r, of_n = np.split(state @ w["recurrent_kernel"] + w["bias"][1], 3, -1)
    return [r, z, n, of_r, of_z, of_n]


def _gru_keras_one_bias(w: Weights, x: Array, state: Array) -> list[Array]:
    return _gru_keras({**w, "bias": np.stack([w["bias"], np.zeros_like(w["bias"])])}, x, state)


def _gru_torch(w: Weights, x: Array, state: Array) -> list[Array]:
    of_input = (w["weight_ih_l0"] @ x.T).T + w["bias_ih_l0"]
    of_state = (w["weight_hh_l0"] @ state.T).T + w["bias_hh_l0"]
    return [*np.split(of_input, 3, -1), *np.split(of_state, 3, -1)]


def _gru_flax(w: Weights, x: Array, state: Array) -> list[Array]:
    of_input = [x @ w[f"i{g}/kernel"] + w[f"i{g}/bias"] for g in "rzn"]
    r, z, n = (state @ w[f"h{g}/kernel"] for g in "rzn")
    return [*of_input, r, z, n + w["hn/bias"]]


def _torch_weights(gates: int) -> dict[str, str]:
    return {
        "weight_ih_l0": f"({gates} u) i",
        "weight_hh_l0": f"({gates} u) u",
        "bias_ih_l0": f"({gates} u)",
        "bias_hh_l0": f"({gates} u)",
    }


LSTM = {
    "keras": _lstm(
        {"kernel": "i (4 u)", "recurrent_kernel": "u (4 u)", "bias": "(4 u)"}, _lstm_keras
    ),
    "torch": _lstm(_torch_weights(4), _lstm_torch),
    "flax": _lstm(
        {f"i{g}/kernel": "i u" for g in "ifgo"}
        | {f"h{g}/kernel": "u u" for g in "ifgo"}
        | {f"h{g}/bias": "u" for g in "ifgo"},
        _lstm_flax,
    ),
    "tf": _lstm({"kernel": "i+u (4 u)", "bias": "(4 u)"}, _lstm_tf),
    "onnx": _lstm({"W": "1 (4 u) i", "R": "1 (4 u) u", "B": "1 (8 u)"}, _lstm_onnx),
}
GRU = {
    "keras": _gru(
        {"kernel": "i (3 u)", "recurrent_kernel": "u (3 u)", "bias": "2 (3 u)"}, _gru_keras
    ),
    "flax": _gru(
        {f"i{g}/kernel": "i u" for g in "rzn"}
        | {f"i{g}/bias": "u" for g in "rzn"}
        | {f"h{g}/kernel": "u u" for g in "rzn"}
        | {"hn/bias": "u"},
        _gru_flax,
    ),
    "torch": _gru(_torch_weights(3), _gru_torch),
}
GRU_RESET_BEFORE = {
    "keras": _gru(
        {"kernel": "i (3 u)", "recurrent_kernel": "u (3 u)", "bias": "(3 u)"},
        _gru_keras_one_bias,
        reset_before=True,
    ),
    "torch": _gru(_torch_weights(3), _gru_torch, reset_before=True),  # no layer of PyTorch
}
SIZES = {"i": 4, "u": 5}


def _bidirectional(about: str, word: str, one: dict[str, Convention]) -> Layer:
    forms = {
        "keras": (f"forward_{word}/{word}_cell/{{}}", f"backward_{word}/{word}_cell/{{}}"),
        "flax": ("forward_rnn/cell/{}", "backward_rnn/cell/{}"),
        "tf": ("fw/basic_lstm_cell/{}", "bw/basic_lstm_cell/{}"),
        "torch": ("{}", "{}_reverse"),
    }
    both = {name: _both_ways(one[name], *form) for name, form in forms.items() if name in one}
    return Layer(f"{about} in both directions", SIZES, "2 6 i", both)


LAYERS = {
    "lstm": Layer("an LSTM", SIZES, "2 6 i", LSTM),
    "gru": Layer("a GRU", SIZES, "2 6 i", GRU),
    "gru-reset-before": Layer(
        "a GRU that applies the reset gate before the product", SIZES, "2 6 i", GRU_RESET_BEFORE
    ),
    "bidirectional-lstm": _bidirectional("an LSTM", "lstm", LSTM),
    "bidirectional-gru": _bidirectional("a GRU", "gru", GRU),
}
