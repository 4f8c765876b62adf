"""Wrong ports at random: a layer's weights as they should be, and with one mistake.

A mistake is ops of the mapping language where they can say it, so that an explanation can be held
against it: whatever words it takes, it must do the same to other values.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from converter.layout import View
from converter.ops import OPS

Array = NDArray[Any]
Random = np.random.Generator
Ops = tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Mistake:
    """What went wrong: as ops, or as a function that `says` describes in the explanation's words.

    `near` is a simpler mistake; where it comes to the same bits, nobody can tell which it was.
    """

    ops: Ops = ()
    function: Callable[[Array], Array] | None = None
    says: str = ""
    near: Callable[[Array], Array] = np.positive

    def __call__(self, array: Array) -> Array:
        if self.function is not None:
            return np.ascontiguousarray(self.function(array))
        return apply(self.ops, array)


@dataclass(frozen=True)
class Port:
    """One tensor of a port with a mistake."""

    layer: str
    kind: str
    name: str
    right: Array
    mistake: Mistake

    @property
    def wrong(self) -> Array:
        """The tensor as it came out."""
        return self.mistake(self.right)


def apply(ops: Ops, array: Array) -> Array:
    """What ops make of one array."""
    views = [View.of(array)]
    for op in ops:
        ((word, value),) = op.items()
        views = OPS[word].read(value).apply(views, 1)
    return views[0].numpy()


# ── the layers ───────────────────────────────────────────────────────────────────────────────


def _between(random: Random, low: int, high: int) -> int:
    return int(random.integers(low, high + 1))


def _conv(random: Random) -> tuple[str, tuple[int, ...]]:
    n = _between(random, 1, 3)
    window = [int(random.choice([1, 3, 5] if n < 3 else [2, 3])) for _ in range(n)]
    window[0] = max(window[0], 2)
    i, o = _between(random, 3, 20), _between(random, 3, 20)
    if random.random() < 0.3:
        o = i
    keras = random.random() < 0.5
    return ("conv/kernel", (*window, i, o)) if keras else ("conv.weight", (o, i, *window))


def _depthwise(random: Random) -> tuple[str, tuple[int, ...]]:
    c, m = _between(random, 3, 24), _between(random, 1, 3)
    keras = random.random() < 0.5
    return ("dw/kernel", (3, 3, c, m)) if keras else ("dw.weight", (c * m, 1, 3, 3))


def _dense(random: Random) -> tuple[str, tuple[int, ...]]:
    i, o = _between(random, 4, 40), _between(random, 4, 40)
    return str(random.choice(["fc.weight", "fc/kernel"])), (i, i if random.random() < 0.4 else o)


def _vector(random: Random) -> tuple[str, tuple[int, ...]]:
    return str(random.choice(["bn.weight", "ln/gamma", "bias"])), (_between(random, 6, 60),)


def _variance(random: Random) -> tuple[str, tuple[int, ...]]:
    return "bn/moving_variance", (_between(random, 6, 60),)


def _embedding(random: Random) -> tuple[str, tuple[int, ...]]:
    return "embed.weight", (_between(random, 20, 60), _between(random, 4, 16))


# ── mistakes of any layer ────────────────────────────────────────────────────────────────────


def permuted(random: Random, shape: tuple[int, ...]) -> Mistake:
    order = [*range(len(shape))]
    while [k for k in order if shape[k] > 1] == sorted(k for k in order if shape[k] > 1):
        order = [int(k) for k in random.permutation(len(shape))]
    return Mistake(({"transpose": order},))


def reversed_(random: Random, shape: tuple[int, ...]) -> Mistake:
    axes = [k for k, n in enumerate(shape) if n > 1]
    some = random.choice(axes, size=min(len(axes), _between(random, 1, 2)), replace=False)
    return Mistake(tuple({"reverse": int(axis)} for axis in some))


def turned(random: Random, shape: tuple[int, ...]) -> Mistake:
    return Mistake((*reversed_(random, shape).ops, *permuted(random, shape).ops))


def reshaped(random: Random, shape: tuple[int, ...]) -> Mistake:
    """A reshape to the transposed shape in place of the transposition."""
    to = [shape[k] for k in permuted(random, shape).ops[0]["transpose"]]
    while to == [*shape]:
        to = [shape[k] for k in random.permutation(len(shape))]
    return Mistake(({"reshape": to},))


def negated(_: Random, __: tuple[int, ...]) -> Mistake:
    return Mistake(({"negate": {}},))


def scaled(random: Random, shape: tuple[int, ...]) -> Mistake:
    factors = [1 / 255, 1 / 127.5, 255, 2, 0.5, math.sqrt(shape[-1]), 1 / math.sqrt(shape[-1]), 0.8]
    return Mistake(({"scale": float(random.choice([f for f in factors if f != 1]))},))


def shifted(random: Random, _: tuple[int, ...]) -> Mistake:
    return Mistake(({"add": float(random.choice([1, -1, 0.5, 1e-3, 1e-5 - 1e-3, -0.25]))},))


def rounded(random: Random, _: tuple[int, ...]) -> Mistake:
    name = str(random.choice(["bfloat16", "float16"]))
    dtype = ml_dtypes.bfloat16 if name == "bfloat16" else np.float16
    return Mistake((), lambda a: a.astype(dtype).astype(a.dtype), f"rounding to {name}")


def forgotten(random: Random, _: tuple[int, ...]) -> Mistake:
    value = int(random.integers(2))
    return Mistake((), lambda a: np.full_like(a, value), f"filling it with {value}")


def swapped_bytes(_: Random, __: tuple[int, ...]) -> Mistake:
    return Mistake((), lambda a: a.byteswap(), "swapping the bytes")


def cut(random: Random, shape: tuple[int, ...]) -> Mistake:
    axis = int(random.choice([k for k, n in enumerate(shape) if n > 2]))
    start = int(random.integers(2))
    stop = shape[axis] - (1 - start) * _between(random, 1, shape[axis] // 3)
    return Mistake(({"slice": {"axis": axis, "start": start, "stop": stop}},))


def grown(random: Random, shape: tuple[int, ...]) -> Mistake:
    axis = int(random.choice([k for k, n in enumerate(shape) if n > 1]))
    before = int(random.integers(2))
    around = [(before, 1 - before) if k == axis else (0, 0) for k in range(len(shape))]
    start, stop, whole = before, before + shape[axis], shape[axis] + 1
    return Mistake(
        (), lambda a: np.pad(a, around), rf"\[{start}, {stop}\) of its axis {axis} \({whole}\)"
    )


def per_channel(random: Random, shape: tuple[int, ...]) -> Mistake:
    axis = int(random.choice([k for k, n in enumerate(shape) if n > 1]))
    factors = random.uniform(0.5, 2, [n if k == axis else 1 for k, n in enumerate(shape)])
    return Mistake(
        (), lambda a: (a * factors).astype(a.dtype), f"scaling every index of axis {axis} by"
    )


def turned_and_scaled(random: Random, shape: tuple[int, ...]) -> Mistake:
    return Mistake((*permuted(random, shape).ops, *scaled(random, shape).ops))


def turned_and_rounded(random: Random, shape: tuple[int, ...]) -> Mistake:
    order = permuted(random, shape).ops[0]["transpose"]
    return Mistake(
        (),
        lambda a: a.transpose(order).astype(np.float16).astype(a.dtype),
        r"` and rounding to float16$",
        lambda a: a.transpose(order),
    )


MATRIX = {
    "permuted": permuted,
    "reversed": reversed_,
    "turned": turned,
    "reshaped": reshaped,
    "per channel": per_channel,
    "turned and scaled": turned_and_scaled,
    "turned and rounded": turned_and_rounded,
}
ANY = {
    "reversed": reversed_,
    "negated": negated,
    "scaled": scaled,
    "shifted": shifted,
    "rounded": rounded,
    "forgotten": forgotten,
    "bytes": swapped_bytes,
    "cut": cut,
    "grown": grown,
}


# ── mistakes of some layers ──────────────────────────────────────────────────────────────────

Made = tuple[str, tuple[int, ...], Mistake]


def _other(random: Random, n: int) -> tuple[int, ...]:
    orders = [*itertools.permutations(range(n))][1:]
    return orders[int(random.integers(len(orders)))]


def flattened(random: Random) -> Made:
    """Height, width and channel of a flatten in another order, transposed or not."""
    h, w, c = _between(random, 2, 7), _between(random, 2, 7), _between(random, 3, 9)
    if random.random() < 0.5:
        w = h
    o = _between(random, 3, 20)
    words = [*"hwc"]
    right = "".join(words[k] + " " for k in _other(random, 3)).strip()
    turn = random.random() < 0.5
    pattern = f"(h w c) o -> {'o ' if turn else ''}({right}){'' if turn else ' o'}"
    op = {"rearrange": {"pattern": pattern, "sizes": {"h": h, "w": w, "c": c}}}
    return "fc6.weight", (h * w * c, o), Mistake((op,))


def gates(random: Random) -> Made:
    """The gates of an LSTM or GRU in another order, transposed or not."""
    n, u, i = int(random.choice([3, 4])), _between(random, 3, 9), _between(random, 2, 12)
    ops: list[dict[str, Any]] = [{"reorder": {"axis": 1, "order": list(_other(random, n))}}]
    if random.random() < 0.5:
        ops.append({"transpose": [1, 0]})
    return "lstm/kernel", (i, n * u), Mistake(tuple(ops))


def gate_bias(random: Random) -> Made:
    """The forget bias added or missing, or the gates of a bias in another order."""
    n, u = int(random.choice([3, 4])), _between(random, 4, 12)
    if random.random() < 0.5:
        return (
            "rnn/bias",
            (n * u,),
            Mistake(({"reorder": {"axis": 0, "order": list(_other(random, n))}},)),
        )
    add = {
        "value": float(random.choice([1, -1])),
        "axis": 0,
        "block": int(random.integers(n)),
        "of": n,
    }
    return "rnn/bias", (n * u,), Mistake(({"add": add},))


def interleaved(random: Random) -> Made:
    """Blocks (gates; queries, keys and values) one after the other, or unit by unit."""
    n, u, i = int(random.choice([3, 4])), _between(random, 4, 9), _between(random, 2, 12)
    op = {"rearrange": {"pattern": "i (g u) -> i (u g)", "sizes": {"g": n, "u": u}}}
    return "lstm/kernel", (i, n * u), Mistake((op,))


def projections(random: Random) -> Made:
    """Query, key and value in another order, or head by head."""
    h, d, i = _between(random, 2, 6), _between(random, 2, 8), _between(random, 4, 12)
    shape = (3 * h * d, i)
    if random.random() < 0.5:
        return (
            "in_proj_weight",
            shape,
            Mistake(({"reorder": {"axis": 0, "order": list(_other(random, 3))}},)),
        )
    op = {"rearrange": {"pattern": "(q h d) i -> (h q d) i", "sizes": {"q": 3, "h": h, "d": d}}}
    return "in_proj_weight", shape, Mistake((op,))


def heads(random: Random) -> Made:
    """A kernel with an axis of heads, whose heads and their width change places."""
    h, d, i = _between(random, 2, 6), _between(random, 2, 8), _between(random, 4, 20)
    ends = ["(d h) i", "i (d h)", "(h d) i"]
    end = ends[int(random.integers(len(ends)))]
    op = {"rearrange": {"pattern": f"i h d -> {end}", "sizes": {}}}
    return "query/kernel", (i, h, d), Mistake((op,))


def merged_heads(random: Random) -> Made:
    """Heads and their width merged the other way round."""
    h, d, i = _between(random, 2, 6), _between(random, 2, 8), _between(random, 4, 20)
    op = {"rearrange": {"pattern": "(h d) i -> (d h) i", "sizes": {"h": h, "d": d}}}
    return "q_proj.weight", (h * d, i), Mistake((op,))


def rotary(random: Random) -> Made:
    """Rotary halves of every head as pairs, or exchanged."""
    h, d, i = _between(random, 2, 6), 2 * _between(random, 2, 6), _between(random, 4, 12)
    end = str(random.choice(["(h d two) i", "(h t d) i"]))
    if end == "(h d two) i":
        op = {"rearrange": {"pattern": f"(h two d) i -> {end}", "sizes": {"h": h, "two": 2}}}
        return "q_proj.weight", (h * d, i), Mistake((op,))

    def exchange(a: Array) -> Array:
        return a.reshape(h, 2, -1, i)[:, ::-1].reshape(a.shape)

    return "q_proj.weight", (h * d, i), Mistake((), exchange, r"blocks of axis 0")


def grouped(random: Random) -> Made:
    """Queries, key and value of each group, or all queries first."""
    g, n, d, i = (
        _between(random, 2, 4),
        _between(random, 2, 3),
        _between(random, 2, 5),
        _between(random, 4, 9),
    )
    op = {"rearrange": {"pattern": "(g n d) i -> (n g d) i", "sizes": {"g": g, "n": n + 2, "d": d}}}
    return "linear_qkv.weight", (g * (n + 2) * d, i), Mistake((op,))


def multiplied(random: Random) -> Made:
    """Channels and their multiples the other way round, from Keras' shape or within PyTorch's."""
    c, m = _between(random, 3, 12), _between(random, 2, 3)
    if random.random() < 0.5:
        op = {"rearrange": {"pattern": "h w c m -> (m c) 1 h w", "sizes": {}}}
        return "dw/kernel", (3, 3, c, m), Mistake((op,))
    op = {"rearrange": {"pattern": "(c m) 1 h w -> (m c) 1 h w", "sizes": {"c": c, "m": m}}}
    return "dw.weight", (c * m, 1, 3, 3), Mistake((op,))


def experts(random: Random) -> Made:
    """Experts of a stack in another order."""
    e, i, o = _between(random, 2, 5), _between(random, 3, 9), _between(random, 3, 9)
    op = {"reorder": {"axis": 0, "order": list(_other(random, e))}}
    return "experts/kernel", (e, i, o), Mistake((op,))


def epsilons(random: Random) -> Made:
    """A deviation for a variance, or the reverse; an epsilon inside."""
    name, shape = _variance(random)
    eps = float(random.choice([1e-3, 1e-5]))
    kinds: list[tuple[Callable[[Array], Array], str, Callable[[Array], Array]]] = [
        (np.sqrt, "square root", np.positive),
        (np.square, "squaring", np.positive),
        (lambda a: 1 / np.sqrt(a + eps), rf"1/sqrt\(x \+ {eps:g}\)", lambda a: 1 / np.sqrt(a)),
        (lambda a: np.sqrt(a + eps), rf"sqrt\(x \+ {eps:g}\)", np.sqrt),
    ]
    function, says, near = kinds[int(random.integers(len(kinds)))]

    def mistake(a: Array, function: Callable[[Array], Array] = function) -> Array:
        return function(a.astype("f8")).astype(a.dtype)

    return name, shape, Mistake((), mistake, says, lambda a: mistake(a, near))


# ── mistakes that are rarer ──────────────────────────────────────────────────────────────────


def _two(random: Random, layer: int = 0) -> tuple[str, tuple[int, ...]]:
    return (_dense, _conv, _embedding)[int(random.integers(3))](random)


def rolled(random: Random) -> Made:
    """Off by one along an axis: the class of the background is last, not first."""
    name, shape = _two(random)
    axis = int(random.choice([k for k, n in enumerate(shape) if n > 2]))
    by = int(random.choice([1, -1]))
    return name, shape, Mistake((), lambda a: np.roll(a, by, axis), "rolling axis|blocks of axis")


def exchanged(random: Random) -> Made:
    """Two indices of an axis: green and blue, or two classes."""
    name, shape = _two(random)
    axis = int(random.choice([k for k, n in enumerate(shape) if n > 2]))
    order = [*range(shape[axis])]
    a, b = (int(k) for k in random.choice(shape[axis], 2, replace=False))
    order[a], order[b] = order[b], order[a]
    return name, shape, Mistake(({"reorder": {"axis": axis, "order": order}},))


def half_loaded(random: Random) -> Made:
    """The rest of a tensor was never written."""
    name, shape = _two(random)
    n = max(shape)
    axis, at = shape.index(n), n // 2

    def lose(a: Array) -> Array:
        a = a.copy()
        np.moveaxis(a, axis, 0)[at:] = 0
        return a

    return name, shape, Mistake((), lose, rf"\[{at}, {n}\) of axis {axis}")


def scaled_gate(random: Random) -> Made:
    """One gate of an LSTM twice as large."""
    n, u, i = 4, _between(random, 4, 9), _between(random, 3, 12)
    which = int(random.integers(n))

    def grow(a: Array) -> Array:
        a = a.copy()
        a[:, which * u : (which + 1) * u] *= 2
        return a

    return (
        "lstm/kernel",
        (i, n * u),
        Mistake((), grow, f"scaling by 2 in block {which} of 4 along axis 1"),
    )


def negated_half(random: Random) -> Made:
    """One half of an axis with the other sign."""
    i, o = _between(random, 4, 20), 2 * _between(random, 4, 12)

    def negate(a: Array) -> Array:
        a = a.copy()
        a[:, o // 2 :] *= -1
        return a

    return (
        "fc/kernel",
        (i, o),
        Mistake((), negate, "(negating|scaling by -1) in block 1 of 2 along axis 1"),
    )


def sharded(random: Random) -> Made:
    """Two shards, joined along the other axis."""
    i, o = 2 * _between(random, 3, 12), _between(random, 4, 20)
    op = {"rearrange": {"pattern": "(two i) o -> i (two o)", "sizes": {"two": 2}}}
    return "fc.weight", (i, o), Mistake((op,))


def quarter_turn(random: Random) -> Made:
    """A window turned by 90 degrees."""
    n, i, o = int(random.choice([3, 5])), _between(random, 3, 12), _between(random, 3, 12)
    return "conv.weight", (o, i, n, n), Mistake(({"transpose": [0, 1, 3, 2]}, {"reverse": 2}))


# ── held out: kinds that nothing was tuned for ───────────────────────────────────────────────


def duplicated(random: Random) -> Made:
    """One expert holds what its neighbour holds."""
    e, i, o = _between(random, 3, 5), _between(random, 3, 9), _between(random, 3, 9)
    a, b = (int(k) for k in random.choice(e, 2, replace=False))

    def copy(array: Array) -> Array:
        array = array.copy()
        array[b] = array[a]
        return array

    says = rf"\[{b}, {b + 1}\) of axis 0, which holds \[{a}, {a + 1}\) of axis 0"
    return "experts/kernel", (e, i, o), Mistake((), copy, says)


def gates_and_bias(random: Random) -> Made:
    """Gates in another order, and the forget bias missing: two mistakes."""
    u = _between(random, 4, 12)
    reorder = {"reorder": {"axis": 0, "order": list(_other(random, 4))}}
    add = {"add": {"value": -1, "axis": 0, "block": int(random.integers(4)), "of": 4}}
    return "lstm/bias", (4 * u,), Mistake((reorder, add))


def turned_and_cut(random: Random) -> Made:
    """An embedding without its first or last row, transposed."""
    n, d = _between(random, 20, 60), _between(random, 4, 16)
    start = int(random.integers(2))
    op = {"slice": {"axis": 0, "start": start, "stop": n - 1 + start}}
    return "embed.weight", (n, d), Mistake((op, {"transpose": [1, 0]}))


def weight_norm(random: Random) -> Made:
    """A kernel without the lengths of weight normalisation."""
    name, shape = _conv(random)
    axis = 0 if name == "conv.weight" else len(shape) - 1
    rest = tuple(k for k in range(len(shape)) if k != axis)

    def divide(a: Array) -> Array:
        length = np.sqrt(np.sum(np.square(a.astype("f8")), rest, keepdims=True))
        return (a / length).astype(a.dtype)

    return name, shape, Mistake((), divide, f"scaling every index of axis {axis} by")


def standardised(random: Random) -> Made:
    """A kernel from whose every output the mean was taken."""
    i, o = _between(random, 4, 20), _between(random, 4, 20)
    return (
        "fc/kernel",
        (i, o),
        Mistake(
            (),
            lambda a: (a - a.mean(0, keepdims=True, dtype="f8")).astype(a.dtype),
            "adding to every index of axis 1 by",
        ),
    )


def column_major(random: Random) -> Made:
    """Fortran's order read as C's."""
    name, shape = _two(random)
    back = [*range(len(shape))][::-1]
    return name, shape, Mistake(({"reshape": [*shape[::-1]]}, {"transpose": back}))


def flipped_pixels(random: Random) -> Made:
    """Red and blue exchanged in every pixel of a flattened image."""
    n, o = _between(random, 4, 12) ** 2, _between(random, 4, 20)
    apart = {"rearrange": {"pattern": "(p c) o -> p c o", "sizes": {"c": 3}}}
    together = {"rearrange": "p c o -> (p c) o"}
    return "fc/kernel", (n * 3, o), Mistake((apart, {"reverse": 1}, together))


HELD_OUT: list[Callable[[Random], Made]] = [
    duplicated,
    gates_and_bias,
    turned_and_cut,
    weight_norm,
    standardised,
    column_major,
    flipped_pixels,
]

LAYERS: dict[str, tuple[Callable[[Random], tuple[str, tuple[int, ...]]], dict[str, Any]]] = {
    "conv": (_conv, MATRIX | ANY),
    "depthwise": (_depthwise, MATRIX | ANY),
    "dense": (_dense, MATRIX | ANY),
    "embedding": (_embedding, MATRIX | ANY),
    "norm": (_vector, ANY),
    "variance": (
        _variance,
        {k: ANY[k] for k in ("reversed", "scaled", "shifted", "cut", "rounded")},
    ),
}
OWN: dict[str, list[Callable[[Random], Made]]] = {
    "dense after flatten": [flattened],
    "recurrent": [gates, gates, interleaved],
    "recurrent bias": [gate_bias],
    "attention": [projections, heads, merged_heads, rotary, grouped],
    "depthwise multiplier": [multiplied],
    "experts": [experts],
    "variance and deviation": [epsilons],
    "rarer": [rolled, exchanged, half_loaded, scaled_gate, negated_half, sharded, quarter_turn],
}


def values(random: Random, name: str, shape: tuple[int, ...], dtype: str = "float32") -> Array:
    """Weights at random, as a layer has them."""
    found = random.standard_normal(shape) * 0.3
    found = np.abs(found) + 0.01 if "variance" in name else found
    return found.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def ports(
    seeds: range, dtypes: tuple[str, ...] = ("float32",), *, held_out: bool = False
) -> Iterator[Port]:
    """One wrong port a seed, every layer in its turn; none that changes nothing."""
    turn = itertools.cycle([*LAYERS, *OWN, *(["held out"] if held_out else [])])
    for seed in seeds:
        random = np.random.default_rng(seed)
        layer = next(turn)
        while True:
            port = _port(random, layer, str(random.choice(dtypes)))
            near = np.ascontiguousarray(port.mistake.near(port.right))
            if port.wrong.shape != near.shape or port.wrong.tobytes() != near.tobytes():
                yield port
                break


def _port(random: Random, layer: str, dtype: str) -> Port:
    makers = HELD_OUT if layer == "held out" else OWN.get(layer)
    if makers:
        maker = makers[int(random.integers(len(makers)))]
        name, shape, mistake = maker(random)
        return Port(layer, maker.__name__, name, values(random, name, shape, dtype), mistake)
    draw, mistakes = LAYERS[layer]
    kind = str(random.choice([*mistakes]))
    name, shape = draw(random)
    while (
        kind in ("permuted", "turned", "reshaped", "turned and scaled")
        and sum(n > 1 for n in shape) < 2
    ):
        name, shape = draw(random)
    while kind == "reshaped" and len(set(shape)) == 1:
        name, shape = draw(random)
    mistake = mistakes[kind](random, shape)
    return Port(layer, kind, name, values(random, name, shape, dtype), mistake)
