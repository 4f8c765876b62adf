"""Convolutions: plain, depthwise, separable and transposed, without padding.

Keras, Flax, TF-Slim   kernel [*window, i, o], channels last; depthwise [h, w, c, multiplier],
                       but in Flax [h, w, 1, c multiplier]
PyTorch                weight [o, i, *window], channels first; depthwise [c multiplier, 1, h, w]
transposed             Keras [*window, o, i] and PyTorch [i, o, *window] are the gradient of a
                       convolution; Flax [*window, i, o] correlates the spread-out input
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from converter.layers.base import Array, Compute, Convention, Layer, Sizes, Weights

STRIDE = 2  # of transposed convolutions


def _last(x: Array, kernel: Array) -> Array:
    """Channels last: x [n, *space, i] with kernel [*window, i, o]."""
    space = range(1, x.ndim - 1)
    windows = sliding_window_view(x, kernel.shape[:-2], tuple(space))  # [n, *out, i, *window]
    i = x.ndim - 1
    return np.tensordot(windows, kernel, ([*(i + k for k in space), i], range(kernel.ndim - 1)))


def _first(x: Array, weight: Array) -> Array:
    """Channels first: x [n, i, *space] with weight [o, i, *window] → [n, o, *out]."""
    space = range(2, x.ndim)
    windows = sliding_window_view(x, weight.shape[2:], tuple(space))  # [n, i, *out, *window]
    inner = [1, *(x.ndim + k for k in range(len(space)))]
    return np.moveaxis(np.tensordot(windows, weight, (inner, range(1, weight.ndim))), -1, 1)


def _channels_first(function: Callable[[Weights, Array], Array]) -> Compute:
    """A function of channels-first images as one of channels-last images."""
    return lambda w, x, _: np.moveaxis(function(w, np.moveaxis(x, -1, 1)), 1, -1)


def _biased(y: Array, bias: Array) -> Array:
    """A number added to each of the channels, which are first."""
    return y + bias.reshape(-1, *[1] * (y.ndim - 2))


def _spread(x: Array, space: range) -> Array:
    """Zeros between the elements of the axes of space."""
    shape = [STRIDE * n - STRIDE + 1 if k in space else n for k, n in enumerate(x.shape)]
    out = np.zeros(shape)
    out[tuple(slice(None, None, STRIDE if k in space else 1) for k in range(x.ndim))] = x
    return out


def _scattered(x: Array, kernel: Array) -> Array:
    """Each element of x [n, i, *space] adds its window: kernel [i, o, *window] → [n, o, *out]."""
    window = kernel.shape[2:]
    reach = [STRIDE * (n - 1) + k for n, k in zip(x.shape[2:], window, strict=True)]
    out = np.zeros((len(x), kernel.shape[1], *reach))
    flat = kernel.reshape(*kernel.shape[:2], -1)
    for nth, at in enumerate(itertools.product(*map(range, window))):
        part = np.einsum("ni...,io->no...", x, flat[..., nth])
        places = (
            slice(k, k + STRIDE * (n - 1) + 1, STRIDE) for k, n in zip(at, x.shape[2:], strict=True)
        )
        out[(slice(None), slice(None), *places)] += part
    return out


def _plain(kernel: str, bias: str, window: str, step: int = 1) -> Convention:
    def compute(w: Weights, x: Array, _: Sizes) -> Array:
        return _last(x[..., ::step], w[kernel]) + w[bias]

    return Convention({kernel: f"{window} i o", bias: "o"}, compute, {bias: 0})


def _conv(window: str, size: dict[str, int]) -> Layer:
    def torch(w: Weights, x: Array) -> Array:
        return _biased(_first(x, w["weight"]), w["bias"])

    return Layer(
        f"a convolution, {len(size)}-D",
        {**size, "i": 4, "o": 5},
        " ".join(["2", *"7657"[: len(size)], "i"]),
        {
            "keras": _plain("kernel", "bias", window),
            "flax": _plain("kernel", "bias", window),
            "slim": _plain("weights", "biases", window),
            "slim-bgr": _plain("weights", "biases", window, -1),  # fed images of channels reversed
            "torch": Convention(
                {"weight": f"o i {window}", "bias": "o"}, _channels_first(torch), {"bias": 0}
            ),
        },
    )


def _transposed(window: str, size: dict[str, int]) -> Layer:
    def keras(kernel: str, bias: str) -> Convention:
        def compute(w: Weights, x: Array, _: Sizes) -> Array:
            turned = np.moveaxis(w[kernel], (-1, -2), (0, 1))
            return np.moveaxis(_scattered(np.moveaxis(x, -1, 1), turned), 1, -1) + w[bias]

        return Convention({kernel: f"{window} o i", bias: "o"}, compute, {bias: 0})

    def flax(w: Weights, x: Array, _: Sizes) -> Array:
        around = [(0, 0), *((k - 1, k - 1) for k in w["kernel"].shape[:-2]), (0, 0)]
        spread = _spread(x, range(1, x.ndim - 1))
        return _last(np.pad(spread, around), w["kernel"]) + w["bias"]

    def torch(w: Weights, x: Array) -> Array:
        return _biased(_scattered(x, w["weight"]), w["bias"])

    return Layer(
        f"a transposed convolution, {len(size)}-D, of stride 2",
        {**size, "i": 4, "o": 5},
        " ".join(["2", *"434"[: len(size)], "i"]),
        {
            "keras": keras("kernel", "bias"),
            "slim": keras("weights", "biases"),
            "flax": Convention({"kernel": f"{window} i o", "bias": "o"}, flax, {"bias": 0}),
            "torch": Convention(
                {"weight": f"i o {window}", "bias": "o"}, _channels_first(torch), {"bias": 0}
            ),
        },
    )


def _each_last(x: Array, kernel: Array) -> Array:
    """Depthwise: x [n, h, w, c] with kernel [h, w, c, multiplier] → [n, h, w, c multiplier]."""
    windows = sliding_window_view(x, kernel.shape[:2], (1, 2))
    found: Array = np.einsum("nyxchw,hwcm->nyxcm", windows, kernel)
    return found.reshape(*found.shape[:3], -1)


def _grouped(x: Array, weight: Array) -> Array:
    """Of as many groups as channels: x [n, c, h, w] with weight [c multiplier, 1, h, w]."""
    many = len(weight) // x.shape[1]  # neighbouring outputs share an input
    outputs = [_first(x[:, [o // many]], weight[[o]]) for o in range(len(weight))]
    return np.concatenate(outputs, 1)


def _depthwise(kernel: str, bias: str) -> Convention:
    def compute(w: Weights, x: Array, _: Sizes) -> Array:
        return _each_last(x, w[kernel]) + w[bias]

    weights = {kernel: "h w c multiplier", bias: "(c multiplier)"}
    return Convention(weights, compute, {bias: 0})


def _separable(depthwise: str, pointwise: str, bias: str) -> Convention:
    def compute(w: Weights, x: Array, _: Sizes) -> Array:
        return _last(_each_last(x, w[depthwise]), w[pointwise]) + w[bias]

    weights = {
        depthwise: "h w c multiplier",
        pointwise: "1 1 (c multiplier) o",
        bias: "o",
    }
    return Convention(weights, compute, {bias: 0})


def _of_groups(x: Array, kernel: Array) -> Array:
    """Flax: x [n, h, w, c] with kernel [h, w, 1, (c multiplier)], an input to each group."""
    return _each_last(x, kernel.reshape(*kernel.shape[:2], x.shape[-1], -1))


FLAX_DEPTHWISE = Convention(
    {"kernel": "h w 1 (c multiplier)", "bias": "(c multiplier)"},
    lambda w, x, _: _of_groups(x, w["kernel"]) + w["bias"],
    {"bias": 0},
)
FLAX_SEPARABLE = Convention(
    {
        "depthwise/kernel": "h w 1 (c multiplier)",
        "depthwise/bias": "(c multiplier)",
        "pointwise/kernel": "1 1 (c multiplier) o",
        "pointwise/bias": "o",
    },
    lambda w, x, _: (
        _last(_of_groups(x, w["depthwise/kernel"]) + w["depthwise/bias"], w["pointwise/kernel"])
        + w["pointwise/bias"]
    ),
    {"depthwise/bias": 0, "pointwise/bias": 0},
)


def _two_convolutions(first: str, second: str) -> Convention:
    """A separable convolution as PyTorch has it: one of groups, then one of single pixels."""
    weights = {
        f"{first}.weight": "(c multiplier) 1 h w",
        f"{first}.bias": "(c multiplier)",
        f"{second}.weight": "o (c multiplier) 1 1",
        f"{second}.bias": "o",
    }

    def compute(w: Weights, x: Array) -> Array:
        inner = _biased(_grouped(x, w[f"{first}.weight"]), w[f"{first}.bias"])
        return _biased(_first(inner, w[f"{second}.weight"]), w[f"{second}.bias"])

    defaults = {f"{first}.bias": 0, f"{second}.bias": 0}
    return Convention(weights, _channels_first(compute), defaults)


WINDOWS: dict[str, dict[str, int]] = {
    "1d": {"w": 3},
    "2d": {"h": 3, "w": 2},
    "3d": {"t": 3, "h": 2, "w": 2},
}
LAYERS = {
    **{f"conv{n}": _conv(" ".join(size), size) for n, size in WINDOWS.items()},
    **{f"conv{n}-transpose": _transposed(" ".join(size), size) for n, size in WINDOWS.items()},
    "depthwise": Layer(
        "a depthwise convolution",
        {"h": 3, "w": 2, "c": 4, "multiplier": 2},
        "2 7 6 c",
        {
            "keras": _depthwise("kernel", "bias"),
            "slim": _depthwise("depthwise_weights", "biases"),
            "flax": FLAX_DEPTHWISE,
            "torch": Convention(
                {"weight": "(c multiplier) 1 h w", "bias": "(c multiplier)"},
                _channels_first(lambda w, x: _biased(_grouped(x, w["weight"]), w["bias"])),
                {"bias": 0},
            ),
        },
    ),
    "separable": Layer(
        "a depthwise convolution and one of single pixels",
        {"h": 3, "w": 2, "c": 4, "multiplier": 2, "o": 5},
        "2 7 6 c",
        {
            "keras": _separable("depthwise_kernel", "pointwise_kernel", "bias"),
            "slim": _separable("depthwise_weights", "pointwise_weights", "biases"),
            "flax": FLAX_SEPARABLE,
            "torch": _two_convolutions("depthwise", "pointwise"),
            "timm": _two_convolutions("conv1", "pointwise"),  # of legacy_xception
        },
    ),
}
