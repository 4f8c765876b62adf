"""Self-attention: softmax(q kᵀ / sqrt(d)) v for every head, between projections.

Keras, Flax            kernels [i, heads, d] and, of the output, [heads, d, o]
PyTorch                weights [(heads d), i] and [o, (heads d)], apart or all three in one
Megatron               one weight [(groups (queries, key, value) d), i]: groups share key and value
TF (BERT)              kernels [i, (heads d)] and, of the output, [(heads d), o]
TF (GPT-2's c_attn)    one kernel [i, (q k v)]; its layer is the three projections alone
"""

from __future__ import annotations

import numpy as np

from converter.layers.base import Array, Convention, Layer, Sizes, Weights


def attend(q: Array, k: Array, v: Array) -> Array:
    """What each position takes from all: [n, t, heads, d] of each → [n, t, heads d]."""
    scores = np.einsum("nqhd,nkhd->nhqk", q, k) / np.sqrt(q.shape[-1])
    grown = np.exp(scores - scores.max(-1, keepdims=True))
    found: Array = np.einsum("nhqk,nkhd->nqhd", grown / grown.sum(-1, keepdims=True), v)
    return found.reshape(*found.shape[:2], -1)


def _kernels(output: str) -> Convention:
    """Kernels with an axis of heads."""
    names = ("query", "key", "value")
    weights = {f"{name}/kernel": "(heads d) heads d" for name in names}
    weights |= {f"{name}/bias": "heads d" for name in names}
    weights |= {f"{output}/kernel": "heads d (heads d)", f"{output}/bias": "(heads d)"}

    def compute(w: Weights, x: Array, _: Sizes) -> Array:
        qkv = (np.einsum("nti,ihd->nthd", x, w[f"{n}/kernel"]) + w[f"{n}/bias"] for n in names)
        q, k, v = qkv
        heads = attend(q, k, v).reshape(*q.shape)
        found: Array = np.einsum("nthd,hdo->nto", heads, w[f"{output}/kernel"])
        return found + w[f"{output}/bias"]

    return Convention(weights, compute, {name: 0 for name in weights if name.endswith("bias")})


def _split_heads(x: Array, heads: int) -> Array:
    return x.reshape(*x.shape[:2], heads, -1)


def _linear(w: Weights, name: str, x: Array) -> Array:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def _separate(w: Weights, x: Array, sizes: Sizes) -> Array:
    q, k, v = (_split_heads(_linear(w, f"{n}_proj", x), sizes["heads"]) for n in "qkv")
    return _linear(w, "out_proj", attend(q, k, v))


def _fused(w: Weights, x: Array, sizes: Sizes) -> Array:
    found = np.split(x @ w["in_proj_weight"].T + w["in_proj_bias"], 3, -1)
    q, k, v = (_split_heads(each, sizes["heads"]) for each in found)
    return _linear(w, "out_proj", attend(q, k, v))


def _bert(w: Weights, x: Array, sizes: Sizes) -> Array:
    qkv = (x @ w[f"self/{n}/kernel"] + w[f"self/{n}/bias"] for n in ("query", "key", "value"))
    found = attend(*(_split_heads(each, sizes["heads"]) for each in qkv))
    return found @ w["output/dense/kernel"] + w["output/dense/bias"]


def _grouped(w: Weights, x: Array, sizes: Sizes) -> Array:
    """The queries of a group meet its one key and value."""
    found = x @ w["linear_qkv.weight"].T + w["linear_qkv.bias"]
    found = found.reshape(*x.shape[:2], sizes["groups"], sizes["n"] + 2, sizes["d"])
    parts = [
        attend(found[:, :, g, :-2], *(found[:, :, g, [at] * sizes["n"]] for at in (-2, -1)))
        for g in range(sizes["groups"])
    ]
    return np.concatenate(parts, -1) @ w["linear_proj.weight"].T


def _repeated(w: Weights, x: Array, sizes: Sizes) -> Array:
    """Keys and values are repeated for the queries that share them, as transformers does."""
    groups, n = sizes["groups"], sizes["n"]
    q = _split_heads(_linear(w, "q_proj", x), groups * n)
    k, v = (np.repeat(_split_heads(_linear(w, f"{s}_proj", x), groups), n, 2) for s in "kv")
    return attend(q, k, v) @ w["o_proj.weight"].T


def _projections(weight: str, outputs: str) -> dict[str, str]:
    return {f"{n}_proj.{weight}": outputs for n in "qkv"}


INNER = "(heads d)"
SEPARATE = {
    **_projections("weight", f"{INNER} {INNER}"),
    **_projections("bias", INNER),
    "out_proj.weight": f"{INNER} {INNER}",
    "out_proj.bias": INNER,
}
BERT = {
    f"{name}/{part}": axes
    for name in ("self/query", "self/key", "self/value", "output/dense")
    for part, axes in (("kernel", f"{INNER} {INNER}"), ("bias", INNER))
}
FUSED = {
    "in_proj_weight": f"(3 heads d) {INNER}",
    "in_proj_bias": "(3 heads d)",
    "out_proj.weight": f"{INNER} {INNER}",
    "out_proj.bias": INNER,
}
SHARED = {
    "q_proj.weight": "(groups n d) i",
    "k_proj.weight": "(groups d) i",
    "v_proj.weight": "(groups d) i",
    "q_proj.bias": "(groups n d)",
    "k_proj.bias": "(groups d)",
    "v_proj.bias": "(groups d)",
    "o_proj.weight": "i (groups n d)",
}


def _without_bias(weights: dict[str, str]) -> dict[str, float]:
    return {name: 0 for name in weights if name.endswith("bias")}


LAYERS = {
    "attention": Layer(
        "self-attention of several heads",
        {"heads": 2, "d": 3},
        f"2 5 {INNER}",
        {
            "keras": _kernels("attention_output"),
            "flax": _kernels("out"),
            "tf": Convention(BERT, _bert, _without_bias(BERT)),
            "torch": Convention(SEPARATE, _separate, _without_bias(SEPARATE)),
            "torch-fused": Convention(FUSED, _fused, _without_bias(FUSED)),
        },
    ),
    "attention-grouped": Layer(
        "self-attention whose queries share keys and values in groups",
        {"groups": 2, "n": 3, "d": 4, "i": 5, "parts": 5},
        "2 6 i",
        {
            "megatron": Convention(
                {
                    "linear_qkv.weight": "(groups parts d) i",
                    "linear_qkv.bias": "(groups parts d)",
                    "linear_proj.weight": "i (groups n d)",
                },
                _grouped,
                {"linear_qkv.bias": 0},
            ),
            "torch": Convention(SHARED, _repeated, _without_bias(SHARED)),
        },
    ),
    "qkv": Layer(
        "the projections of attention to queries, keys and values",
        {"i": 4, "d": 5},
        "2 6 i",
        {
            "tf": Convention(
                {"w": "i (3 d)", "b": "(3 d)"},
                lambda w, x, _: x @ w["w"] + w["b"],
                {"b": 0},
            ),
            "torch": Convention(
                _projections("weight", "d i") | _projections("bias", "d"),
                lambda w, x, _: np.concatenate([_linear(w, f"{n}_proj", x) for n in "qkv"], -1),
                {f"{n}_proj.bias": 0 for n in "qkv"},
            ),
        },
    ),
}
