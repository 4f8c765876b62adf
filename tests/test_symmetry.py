"""Seeded wrong ports, over all kinds of layers: the very mistake is to be named."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.compare import diff
from converter.inference.match import known
from converter.layout import View
from converter.ops import OPS
from converter.symmetry import Search, explained
from converter.tensors import from_arrays

SEEDS = range(4)


def blocks(count, order, axis):
    def change(a):
        pieces = np.split(a, count, axis)
        return np.concatenate([pieces[k] for k in order], axis)

    return change


def add_to_block(count, block, axis, value):
    def change(a):
        a = a.copy()
        np.split(a, count, axis)[block][...] += np.float32(value)
        return a

    return change


def flatten(h, w, c, order):
    """The rows of a dense layer after a flatten, in another order of height, width, channel."""

    def change(a):
        return a.reshape(h, w, c, -1).transpose(*order, 3).reshape(h * w * c, -1)

    return change


def heads(n, parts):
    """Query, key and value one after the other → interleaved head by head."""

    def change(a):
        return a.reshape(parts, n, -1, a.shape[-1]).transpose(1, 0, 2, 3).reshape(a.shape)

    return change


REVERSED_IN = (r"reversing axis 1\b", lambda a: a[:, ::-1])
HALF = (r"rounding to bfloat16", lambda a: View.of(a).astype("bfloat16").astype("f4").numpy())
NEGATED = (r"negating", np.negative)
TURNED = (r"`o i h w -> ", lambda a: a.transpose(0, 1, 3, 2))
SQUARE = (r"`(i o -> o i|o i -> i o)`", lambda a: np.ascontiguousarray(a.T))
ZEROS = (r"filling it with 0", np.zeros_like)

# layer: its name, the shape of the right port, positive or not, and the mistakes
LAYERS = {
    "conv": (
        "conv.weight",
        (12, 8, 3, 3),
        [
            REVERSED_IN,
            TURNED,
            NEGATED,
            HALF,
            ZEROS,
            (r"reversing axis 2\b", lambda a: a[:, :, ::-1]),
            (r"reversing axis 2 and reversing axis 3", lambda a: a[:, :, ::-1, ::-1]),
            (r"`o i h w -> h w i o`", lambda a: a.transpose(2, 3, 1, 0)),
            (r"reshaping \[12, 8, 3, 3\] to \[8, 12, 3, 3\]", lambda a: a.reshape(8, 12, 3, 3)),
            (r"scaling by 0.0078", lambda a: a / np.float32(127.5)),
            (r"`o i h w -> i o h w`", lambda a: a.transpose(1, 0, 2, 3)),
            (r"2 blocks of axis 0 in the order 1, 0", blocks(2, (1, 0), 0)),
            (r"scaling every index of axis 1", lambda a: a * SCALES[:8, None, None]),
        ],
    ),
    "square conv": (
        "conv.weight",
        (16, 16, 3, 3),
        [
            (r"`o i h w -> i o h w`", lambda a: a.transpose(1, 0, 2, 3)),
            (r"`o i h w -> o i w h`", lambda a: a.transpose(0, 1, 3, 2)),
            (r"`o i h w -> i o w h`", lambda a: a.transpose(1, 0, 3, 2)),
            REVERSED_IN,
        ],
    ),
    "depthwise": (
        "dw.weight",
        (24, 1, 3, 3),
        [
            (r"-> 1 o h w`", lambda a: a.transpose(1, 0, 2, 3)),
            (r"`o 1 h w -> h w o 1`", lambda a: a.transpose(2, 3, 0, 1)),
            (r"`o 1 h w -> o 1 w h`", lambda a: a.transpose(0, 1, 3, 2)),
            (
                r"\(o1 o2\) 1 h w -> \(o2 o1\) 1 h w",
                lambda a: a.reshape(12, 2, 1, 3, 3).transpose(1, 0, 2, 3, 4).reshape(a.shape),
            ),
            (r"reversing axis 3\b", lambda a: a[..., ::-1]),
        ],
    ),
    "dense": (
        "fc.kernel",
        (24, 10),
        [
            (r"`i o -> o i`", lambda a: a.T),
            (r"reshaping \[24, 10\] to \[10, 24\]", lambda a: a.reshape(10, 24)),
            (r"reversing axis 0", lambda a: a[::-1]),
            (r"adding 0.5", lambda a: a + np.float32(0.5)),
            NEGATED,
            HALF,
            (r"\[0, 9\) of axis 1 \(10\)", lambda a: a[:, :9]),
            (r"\[1, 11\) of its axis 1 \(11\) is the other", lambda a: np.pad(a, ((0, 0), (1, 0)))),
            (r"swapping the bytes", lambda a: a.byteswap()),
        ],
    ),
    "square dense": ("fc7.weight", (20, 20), [SQUARE, NEGATED, ZEROS, REVERSED_IN]),
    "dense after flatten": (
        "fc6.kernel",
        (7 * 7 * 6, 10),
        [
            (r"`\(h w i\) o -> \(i h w\) o` \(h = 7, w = 7\)", flatten(7, 7, 6, (2, 0, 1))),
            (r"-> \(i3 i2 i1\) o|-> \(i3 i2|-> \(.*\) o", flatten(7, 7, 6, (2, 1, 0))),
            (r"-> \(i2 i1 i3\) o", flatten(7, 7, 6, (1, 0, 2))),
            (r"reversing axis 0", lambda a: a[::-1]),
            (r"-> o \(i h w\)`", lambda a: flatten(7, 7, 6, (2, 0, 1))(a).T),
            (r"`i o -> o i`", lambda a: a.T),
        ],
    ),
    "bn variance": (
        "bn.running_var",
        (16,),
        [
            (r"adding 0.00099", lambda a: a + np.float32(1e-3 - 1e-5)),
            (r"adding 0.001\b", lambda a: a + np.float32(1e-3)),
            (r"square root", np.sqrt),
            (r"squaring", np.square),
            (r"1/sqrt\(x \+ 0.001\)", lambda a: (1 / np.sqrt(a + 1e-3)).astype("f4")),
            (r"reversing axis 0", lambda a: a[::-1]),
        ],
    ),
    "lstm kernel": (
        "lstm.kernel",
        (10, 4 * 6),
        [
            (r"4 blocks of axis 1 in the order 0, 2, 1, 3", blocks(4, (0, 2, 1, 3), 1)),
            (r"4 blocks of axis 1 in the order 0, 3, 1, 2", blocks(4, (0, 3, 1, 2), 1)),
            (r"4 blocks of axis 1 in the order 0, 1, 3, 2", blocks(4, (0, 1, 3, 2), 1)),
            (
                r"4 blocks of axis 1 in the order 0, 2, 1, 3 and `i o -> o i`",
                lambda a: blocks(4, (0, 2, 1, 3), 1)(a).T,
            ),
            (
                r"`i \(o1 o2\) -> i \(o2 o1\)` \(o1 = 4\)",
                lambda a: a.reshape(10, 4, 6).transpose(0, 2, 1).reshape(10, 24),
            ),
            (r"`i o -> o i`", lambda a: a.T),
        ],
    ),
    "lstm bias": (
        "lstm.bias",
        (4 * 6,),
        [
            (r"adding 1 in block 1 of 4 along axis 0", add_to_block(4, 1, 0, 1.0)),
            (r"adding 1 in block 2 of 4 along axis 0", add_to_block(4, 2, 0, 1.0)),
            (r"adding -1 in block 1 of 4 along axis 0", add_to_block(4, 1, 0, -1.0)),
            (r"4 blocks of axis 0 in the order 0, 2, 1, 3", blocks(4, (0, 2, 1, 3), 0)),
            (r"scaling by 0.5", lambda a: a * np.float32(0.5)),
            (r"scaling by 2\b", lambda a: a + a),
        ],
    ),
    "gru": (
        "gru.kernel",
        (9, 3 * 5),
        [
            (r"3 blocks of axis 1 in the order 1, 0, 2", blocks(3, (1, 0, 2), 1)),
            (r"3 blocks of axis 1 in the order 2, 1, 0", blocks(3, (2, 1, 0), 1)),
        ],
    ),
    "embedding": (
        "embed.weight",
        (32, 6),
        [
            (r"`o i -> i o`", lambda a: a.T),
            (r"\[0, 30\) of axis 0 \(32\)", lambda a: a[:30]),
            (r"\[2, 32\) of axis 0 \(32\)", lambda a: a[2:]),
            (r"scaling by 2.44948974|scaling by 2.4494", lambda a: a * np.float32(np.sqrt(6))),
            (r"reversing axis 1", lambda a: a[:, ::-1]),
        ],
    ),
    "qkv": (
        "attn.c_attn.kernel",
        (12, 36),
        [
            (r"3 blocks of axis 1 in the order 2, 1, 0", blocks(3, (2, 1, 0), 1)),
            (r"3 blocks of axis 1 in the order 0, 2, 1", blocks(3, (0, 2, 1), 1)),
            (r"`i \(o1 o2 o3\) -> i \(o2 o1 o3\)`", lambda a: heads(4, 3)(a.T).T),
            (r"-> \(o2 o1 o3\) i`", lambda a: heads(4, 3)(a.T)),
            (r"`i o -> o i`", lambda a: a.T),
        ],
    ),
    "rotary": (
        "q.weight",
        (4 * 8, 12),
        [
            (
                r"`\(o1 o2 o3\) i -> \(o1 o3 o2\) i`",
                lambda a: a.reshape(4, 2, 4, 12).transpose(0, 2, 1, 3).reshape(a.shape),
            ),
            (
                r"2 blocks of axis 0 within each of its 4 parts in the order 1, 0",
                lambda a: a.reshape(4, 2, 4, 12)[:, ::-1].reshape(a.shape),
            ),
        ],
    ),
}
SCALES = np.linspace(0.7, 1.9, 16, dtype="f4") ** 3
CASES = [
    pytest.param(name, shape, seed, pattern, wrong, id=f"{layer}-{number}-{seed}")
    for layer, (name, shape, mistakes) in LAYERS.items()
    for number, (pattern, wrong) in enumerate(mistakes)
    for seed in SEEDS
]


def right(name, shape, seed):
    values = np.random.default_rng(seed).standard_normal(shape, dtype="f4")
    return np.abs(values) + np.float32(0.01) if "var" in name else values


@pytest.mark.parametrize(("name", "shape", "seed", "pattern", "wrong"), CASES)
def test_the_very_mistake_is_named(name, shape, seed, pattern, wrong):
    before = right(name, shape, seed)
    after = np.ascontiguousarray(wrong(before))
    first, second = from_arrays({name: before}), from_arrays({name: after})
    (row,) = explained(list(diff(first, second)), first, second)
    assert not row.equal
    assert row.explanation is not None
    assert re.search(pattern, row.explanation.text), row.explanation.text


def explain(first, second, name="a.kernel"):
    return Search().explain(View.of(np.asarray(first)), View.of(np.asarray(second)), name)


def applied(ops, array):
    """What the ops of the mapping language make of an array; None when one is not among them."""
    views = [View.of(array)]
    for op in ops:
        ((word, value),) = op.items()
        if not known([op]):
            return None
        views = OPS[word].read(value).apply(views, 1)
    return views[0].numpy()


@pytest.mark.parametrize(("name", "shape", "seed", "pattern", "wrong"), CASES[::4])
def test_the_ops_of_an_exact_explanation_make_the_first_the_second(
    name, shape, seed, pattern, wrong
):
    before = right(name, shape, seed)
    after = np.ascontiguousarray(wrong(before))
    found = explain(before, after, name)
    made = applied(found.ops, before) if found.exact and found.ops else None
    if made is not None:
        assert made.dtype.itemsize <= after.dtype.itemsize
        assert np.array_equal(made.astype(after.dtype), after)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_permutation_with_reversals_is_always_found(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    order = data.draw(st.permutations(range(len(shape))))
    flips = data.draw(st.lists(st.sampled_from(range(len(shape))), unique=True))
    first = np.random.default_rng(data.draw(st.integers(0, 99))).standard_normal(shape)
    second = np.flip(first.transpose(order), flips)
    found = explain(first, second)
    assert found is not None
    assert found.exact
    if all("reverse" in op or "rearrange" in op for op in found.ops):
        assert np.array_equal(applied(found.ops, first), second)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.sampled_from(["f4", "f8", "i4", "u1"]))
def test_equal_is_equal_and_one_bit_is_not(seed, dtype):
    random = np.random.default_rng(seed)
    shape = tuple(random.integers(1, 9, random.integers(1, 4)))
    first = (random.standard_normal(shape) * 99).astype(dtype)
    second = first.copy()
    ours = from_arrays({"x": first})
    assert [row.equal for row in diff(ours, from_arrays({"x": second}))] == [True]
    flat = second.reshape(-1).view("u1")
    flat[random.integers(flat.size)] ^= 1 << random.integers(8)
    (row,) = diff(ours, from_arrays({"x": second}))
    assert row.count == 1
    assert first[row.index].tobytes() != second[row.index].tobytes()


def test_unrelated_values_are_not_explained():
    random = np.random.default_rng(0)
    first, second = random.standard_normal((2, 12, 12))
    assert explain(first, second) is None


def test_two_names_exchanged():
    random = np.random.default_rng(0)
    arrays = {name: random.standard_normal((6, 6)) for name in ("q", "k", "v")}
    first = from_arrays(arrays)
    second = from_arrays({"q": arrays["k"], "k": arrays["q"].T, "v": arrays["v"]})
    rows = {row.name: row for row in explained(list(diff(first, second)), first, second)}
    assert rows["q"].explanation.text == "equal to the second's 'k', after `i o -> o i`"
    assert rows["k"].explanation.text == "equal to the second's 'q'"
    assert rows["v"].explanation is None


def test_a_missing_name_is_found_under_another():
    value = np.arange(6.0)
    first, second = from_arrays({"a/w": value}), from_arrays({"a/weight": value})
    rows = list(explained(list(diff(first, second)), first, second))
    assert rows[0].explanation.others == ("a/weight",)


def test_a_part_of_another_tensor():
    random = np.random.default_rng(0)
    arrays = {name: random.standard_normal((8, 6)) for name in ("ih", "hh")}
    wrong = arrays["ih"].copy()
    wrong[2:4] = arrays["hh"][2:4]
    first = from_arrays(arrays)
    second = from_arrays(arrays | {"ih": wrong})
    rows = list(explained(list(diff(first, second)), first, second))
    # only what differs is looked at, so 'hh' must differ for its rows to be known
    assert [row.status for row in rows] == ["values", "equal"]
    both = from_arrays({"ih": wrong, "hh": arrays["hh"][::-1]})
    rows = list(explained(list(diff(first, both)), first, both))
    text = "equal but for [2, 4) of axis 0, which holds [2, 4) of axis 0 of 'hh'"
    assert rows[0].explanation.text == text
    assert str(rows[0].explanation) == text


def test_a_vector_of_one_element_becomes_a_scalar():
    """As scores of a class, of which a model may have one, are stacked."""
    assert str(explain(np.ones(1, "f4"), np.ones((), "f4"))) == "equal after reshaping [1] to []"
