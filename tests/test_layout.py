"""The algebra of views and the copy kernel, with NumPy as the oracle."""

import math
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter import layout
from converter.layout import Computed, Elementwise, Joined, Memory, View, concatenate


class Reads:
    """A storage that only reads: it checks every request, and remembers it."""

    def __init__(self, array):
        self.array = np.ascontiguousarray(array).reshape(-1)
        self.dtype = self.array.dtype
        self.size = self.array.size
        self.requests = []

    def read(self, start, out):
        assert type(start) is int
        assert out.ndim == 1
        assert out.flags.c_contiguous
        assert out.flags.writeable
        assert out.dtype == self.dtype
        assert 0 <= start < start + out.size <= self.size
        self.requests.append((start, out.size))
        out[...] = self.array[start : start + out.size]


@pytest.fixture(params=["real", "tiny"], scope="module")
def tiles(request):
    """The kernel with its own sizes, and with ones that make a tile of a handful of elements."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "tiny":
            for name, value in {
                "TILE": 48,
                "READ_RUN": 16,
                "MEMORY_RUN": 12,
                "GAP": 8,
                "ROW": 3,
                "PADDING": 1,
            }.items():
                patch.setattr(layout, name, value)
        yield request.param


def negated(block):
    return np.asarray(np.negative(block), block.dtype)  # NumPy's own result is in native byte order


def storages(array):
    """The same elements in every kind of storage."""
    flat = array.reshape(-1)
    half = flat.size // 2
    return {
        "memory": Memory(flat),
        "reads": Reads(flat),
        "computed": Computed(flat.size, flat.dtype, lambda: flat),
        "joined": Joined(
            [View.of(flat[:half]), View.over(Reads(flat[half:]), (flat.size - half,))]
        ),
        "elementwise": Elementwise(View.over(Reads(flat), flat.shape), negated, flat.dtype),
        "view": View.over(Reads(flat[::-1]), flat.shape).flip(0),
    }


KINDS = list(storages(np.zeros(2)))
DTYPES = ["f4", "f2", "f8", ">f4", "i1", "u8", "c16", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]


def same(actual, expected):
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    assert actual.flags.c_contiguous
    assert actual.tobytes() == np.ascontiguousarray(expected).tobytes()


@st.composite
def tensors(draw):
    """(view, the array that it must equal, the storage, its elements)."""
    shape = draw(st.lists(st.integers(0, 5) | st.just(1), max_size=5).map(tuple))
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    array = (np.arange(math.prod(shape)) % 101).astype(dtype).reshape(shape)
    kind = draw(st.sampled_from(KINDS))
    storage = storages(array)[kind]
    expected = negated(array) if kind == "elementwise" else array
    view = View.over(storage, shape)
    for _ in range(draw(st.integers(0, 6))):
        view, expected = draw(step(view, expected))
    return view, expected


def factorings(size):
    """Shapes of a size, with ones strewn in."""
    if size == 0:
        return st.lists(st.integers(0, 3), min_size=1, max_size=4).map(
            lambda shape: tuple(shape) if 0 in shape else (*shape, 0)
        )
    divisors = [n for n in range(1, size + 1) if size % n == 0]
    cuts = st.lists(st.sampled_from(divisors), max_size=3).map(sorted)
    return cuts.map(lambda cuts: _chain([1, *cuts, size]))


def _chain(cuts):
    kept = [cuts[0]]
    kept.extend(cut for cut in cuts[1:] if cut % kept[-1] == 0)
    return tuple(b // a for a, b in pairwise(kept))


@st.composite
def step(draw, view, array):
    """One more operation, on the view and on its oracle."""
    name = draw(st.sampled_from(["transpose", "reshape", "flip", "take", "astype", "concatenate"]))
    if name == "reshape":
        shape = draw(factorings(array.size))
        return view.reshape(shape), array.reshape(shape)
    if name == "astype":
        dtype = np.dtype(draw(st.sampled_from(["f4", "f2", "f8", ml_dtypes.bfloat16])))
        if array.dtype == dtype or array.dtype.kind == "c":
            return view, array
        return view.astype(dtype), array.astype(dtype)
    if name == "transpose" or array.ndim == 0:
        order = draw(st.permutations(range(array.ndim)))
        return view.transpose(order), array.transpose(order)
    axis = draw(st.integers(0, array.ndim - 1))
    if name == "flip":
        return view.flip(axis), np.flip(array, axis)
    start, stop = sorted(draw(st.tuples(*[st.integers(0, array.shape[axis])] * 2)))
    part, expected = view.take(axis, start, stop), array.take(range(start, stop), axis)
    if name == "take" or array.size > 2000:
        return part, expected
    whole = np.concatenate([expected, array, expected], axis).astype(array.dtype)
    return concatenate([part, view, part], axis), whole


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_chain_of_operations_reads_as_in_numpy(tiles, data):
    view, expected = data.draw(tensors())
    assert (view.shape, view.dtype) == (expected.shape, expected.dtype)
    assert (view.size, view.ndim, view.nbytes) == (expected.size, expected.ndim, expected.nbytes)
    same(view.numpy(), expected)
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, expected.size)] * 2)))
    out = np.empty(stop - start, view.dtype)
    view.read(start, out)
    same(out, np.ascontiguousarray(expected).reshape(-1)[start:stop])
