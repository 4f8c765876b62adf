"""What differs between two checkpoints: each status, every dtype, and the very first element."""

from __future__ import annotations

import math
import threading
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import converter
from converter import compare
from converter.compare import Difference, diff, diff_tensors
from converter.errors import CorruptFileError
from converter.layout import View
from converter.tensors import Checkpoint, Tensor, TensorSpec, from_arrays

Array = NDArray[Any]


def tensor(array: Any) -> Tensor:
    return Tensor(View.of(np.asarray(array)))


def compared(first: Any, second: Any, **tolerance: float) -> Difference:
    return diff_tensors("t", tensor(first), tensor(second), **tolerance)


def facts(found: Difference) -> tuple[Any, ...]:
    return found.status, found.count, found.max_abs, found.max_rel, found.index


@pytest.fixture(autouse=True)
def no_threads_are_left():
    before = set(threading.enumerate())
    yield
    assert not [t for t in set(threading.enumerate()) - before if "converter" in t.name]


@pytest.fixture
def tiny(monkeypatch):
    """Pieces of a few elements."""
    monkeypatch.setattr(compare, "PIECE", 64)
    monkeypatch.setattr(compare, "BLOCK", 16)


def test_every_name_of_either_has_its_status():
    one = np.ones((2, 3), "f4")
    first = from_arrays({"same": one, "gone": one, "shape": one, "dtype": one, "values": one})
    second = from_arrays(
        {"new": one, "values": one * 2, "dtype": one.astype("f8"), "shape": one.T, "same": one}
    )
    seen = []
    found = list(diff(first, second, progress=lambda name, nbytes: seen.append((name, nbytes))))
    assert [(d.name, d.status) for d in found] == [
        ("same", "equal"),
        ("gone", "missing"),
        ("shape", "shape"),
        ("dtype", "dtype"),
        ("values", "values"),
        ("new", "extra"),
    ]
    assert [d.equal for d in found] == [True, False, False, False, False, False]
    assert seen == [(name, 24) for name in ("same", "shape", "dtype", "values")]
    spec = TensorSpec((2, 3), np.dtype("f4"))
    assert [(d.first, d.second) for d in found if d.status in ("missing", "extra")] == [
        (spec, None),
        (None, spec),
    ]
    assert str(found[2].second) == "float32 [3, 2]"
    assert str(found[3].second) == "float64 [2, 3]"


@pytest.mark.parametrize(
    ("dtype", "x", "y"),
    [
        ("i8", 2**53, 2**53 + 1),
        ("i8", -(2**63), -(2**63) + 1),
        ("i8", -(2**63), 2**63 - 1),
        ("i8", 2**62 + 1, -(2**62)),
        ("u8", 2**64 - 1, 2**64 - 2),
        ("u8", 0, 2**64 - 1),
        ("i1", -128, 127),
        ("u1", 255, 0),
        ("i4", -(2**31), 2**31 - 1),
        ("?", True, False),
    ],
)
def test_integers_are_compared_as_integers(dtype, x, y):
    first, second = np.array([7, x, 1], dtype), np.array([7, y, 1], dtype)
    gap = abs(int(x) - int(y))
    for found, size in ((compared(first, second), x), (compared(second, first), y)):
        assert (found.status, found.count, found.index) == ("values", 1, (1,))
        assert found.max_abs == gap
        assert isinstance(found.max_abs, int)
        assert found.max_rel == (pytest.approx(gap / abs(int(size))) if size else math.inf)
    assert compared(first, second, atol=gap).equal
    assert not compared(first, second, atol=gap * 0.9).equal


def test_nothing_is_equal_to_nothing():
    assert list(diff(from_arrays({}), from_arrays({}))) == []
    assert compared(np.empty((0, 3)), np.empty((0, 3))).equal
    assert compared(np.empty((0, 3)), np.empty((3, 0))).status == "shape"


@pytest.mark.parametrize(
    ("first", "second", "count", "max_abs", "max_rel", "index"),
    [
        ([1.0, 2.0, 4.0], [1.0, 2.5, 3.0], 2, 1.0, 0.25, (1,)),
        ([[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0], [3.0, 5.0]], 1, 1.0, 0.25, (1, 1)),
        (1.0, 2.0, 1, 1.0, 1.0, ()),
        ([0.0], [2.0], 1, 2.0, math.inf, (0,)),
        ([0.0], [-0.0], 1, 0.0, 0.0, (0,)),
        ([math.nan], [1.0], 1, math.inf, math.inf, (0,)),
        ([1.0], [math.nan], 1, math.inf, math.inf, (0,)),
        ([math.inf], [-math.inf], 1, math.inf, math.inf, (0,)),
        ([math.inf], [1.0], 1, math.inf, math.inf, (0,)),
        (np.array([3 + 4j], "c8"), np.array([0j], "c8"), 1, 5.0, 1.0, (0,)),
        (
            np.array([1j, 2j], "c16"),
            np.array([1j, 1], "c16"),
            1,
            math.sqrt(5),
            math.sqrt(5) / 2,
            (1,),
        ),
        (np.array([0, 255], "u1"), np.array([255, 255], "u1"), 1, 255.0, math.inf, (0,)),
        (np.array([-128], "i1"), np.array([127], "i1"), 1, 255.0, 255 / 128, (0,)),
        (np.array([1 << 60]), np.array([(1 << 60) + (1 << 10)]), 1, 1024.0, 2.0**-50, (0,)),
        ([True, False], [True, True], 1, 1.0, math.inf, (1,)),
        (
            np.array([1, 2], ml_dtypes.bfloat16),
            np.array([1, 3], ml_dtypes.bfloat16),
            1,
            1.0,
            0.5,
            (1,),
        ),
        (
            np.array([1, 2], ml_dtypes.float8_e4m3fn),
            np.array([1.125, 2], ml_dtypes.float8_e4m3fn),
            1,
            0.125,
            0.125,
            (0,),
        ),
        (
            np.array([-8, 7], ml_dtypes.int4),
            np.array([7, 7], ml_dtypes.int4),
            1,
            15.0,
            15 / 8,
            (0,),
        ),
    ],
)
def test_values_differ_by_so_much_and_first_here(  # noqa: PLR0913 - the columns
    first, second, count, max_abs, max_rel, index
):
    assert facts(compared(first, second)) == ("values", count, max_abs, max_rel, index)


def float32(*bits: int) -> Array:
    return np.array(bits, "u4").view("f4")


def test_equal_means_bit_for_bit():
    quiet, other, signalling = 0x7FC00000, 0x7FC00001, 0x7F800001
    assert compared(float32(quiet, other, signalling), float32(quiet, other, signalling)).equal
    assert compared(float32(quiet), float32(other)).count == 1
    assert compared(float32(signalling), float32(quiet)).count == 1
    assert compared([0.0], [-0.0]).count == 1
    assert compared([math.inf, -math.inf], [math.inf, -math.inf]).equal


@pytest.mark.parametrize(
    ("first", "second", "tolerance", "equal"),
    [
        (1.0, 1.5, {"atol": 0.5}, True),
        (1.0, 1.5, {"atol": 0.49}, False),
        (4.0, 5.0, {"rtol": 0.25}, True),
        (5.0, 4.0, {"rtol": 0.19}, False),
        (4.0, 5.5, {"rtol": 0.25, "atol": 0.5}, True),
        (0.0, 1e-9, {"rtol": 0.5}, False),
        (0.0, -0.0, {"rtol": 1e-9}, True),
        (math.nan, math.nan, {"atol": 1.0}, True),
        (math.nan, 1.0, {"atol": math.inf}, False),
        (math.inf, math.inf, {"atol": 1.0}, True),
        (math.inf, -math.inf, {"atol": 1.0}, False),
        (3 + 4j, 3 + 4.5j, {"atol": 0.5}, True),
        (3 + 4j, 3 + 4.5j, {"atol": 0.25}, False),
    ],
)
def test_tolerances_are_about_numbers(first, second, tolerance, equal):
    assert compared(first, second, **tolerance).equal is equal


def test_tolerances_reach_every_tensor():
    first, second = from_arrays({"a": [1.0], "b": [1.0]}), from_arrays({"a": [1.1], "b": [3.0]})
    assert [d.status for d in diff(first, second, atol=0.5)] == ["equal", "values"]
    assert [d.status for d in diff(first, second, rtol=2.0)] == ["equal", "equal"]


def test_nans_of_other_bits_are_close_but_not_equal():
    assert compared(float32(0x7FC00001), float32(0xFFC00002), atol=1e-9).equal


def test_only_what_is_too_far_is_counted():
    found = compared([1.0, 2.0, 3.0], [1.1, 2.6, 3.7], atol=0.5)
    assert (found.count, found.index) == (2, (1,))
    assert found.max_abs == pytest.approx(0.7)


def test_strings_are_compared_as_they_are():
    first = np.array([[b"a", b""], [b"c", b"d\0"]], object)
    second = np.array([[b"a", b""], [b"x", b"d"]], object)
    assert compared(first, first.copy()).equal
    assert facts(compared(first, second)) == ("values", 2, 0.0, 0.0, (1, 0))
    assert compared(np.empty(0, object), np.empty(0, object)).equal


@pytest.mark.parametrize("dtype", ["f4", "f8", "c16", "u1", "?", ml_dtypes.bfloat16])
def test_pieces_make_no_difference(dtype, tiny):
    """A tensor that is cut, and turned on one side, against one that is not."""
    generator = np.random.default_rng(0)
    first = generator.integers(0, 2, (7, 5, 11)).astype(dtype)
    second = first.copy()
    second[2, 3, 4:6] = np.logical_not(second[2, 3, 4:6].astype(bool)).astype(dtype)
    second[6, 4, 10] = np.logical_not(second[6, 4, 10].astype(bool)).astype(dtype)
    turned = View.of(np.ascontiguousarray(second.transpose(2, 0, 1))).transpose((1, 2, 0))
    for other in (View.of(second), turned, View.of(second[::-1]).flip(0)):
        found = diff_tensors("t", tensor(first), Tensor(other))
        assert (found.count, found.index) == (3, (2, 3, 4))
        assert diff_tensors("t", tensor(second), Tensor(other)).equal


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_agrees_with_numpy(data):
    """Any layout on either side, and pieces of any size."""
    shape = data.draw(st.lists(st.integers(1, 5), max_size=4).map(tuple))
    values = st.sampled_from([0.0, 1.0, -2.0, 3.5])
    first = np.array(
        data.draw(st.lists(values, min_size=math.prod(shape), max_size=math.prod(shape)))
    )
    first = first.reshape(shape).astype("f4")
    second = first.copy()
    for _ in range(data.draw(st.integers(0, 3))):
        second.reshape(-1)[data.draw(st.integers(0, first.size - 1))] += 1
    order = data.draw(st.permutations(range(len(shape))))
    back = [order.index(axis) for axis in range(len(shape))]
    view = View.of(np.array(second.transpose(order), order="C")).transpose(back)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "PIECE", data.draw(st.sampled_from([4, 8, 24, 4096])))
        patch.setattr(compare, "BLOCK", data.draw(st.sampled_from([4, 16, 4096])))
        found = diff_tensors("t", tensor(first), Tensor(view))
    gaps = np.abs(first - second)
    differ = np.argwhere(gaps)
    assert found.count == len(differ)
    assert found.index == (tuple(differ[0].tolist()) if len(differ) else None)
    assert found.max_abs == gaps.max(initial=0)


class Failing:
    """Elements that cannot be read."""

    dtype = np.dtype("f4")
    size = 100

    def read(self, start: int, out: Array) -> None:
        raise CorruptFileError("truncated")


def test_an_error_names_the_tensor():
    broken = Checkpoint(
        {"a": tensor(np.zeros(100, "f4")), "b": Tensor(View.over(Failing(), (100,)))}
    )
    whole = from_arrays({"a": np.zeros(100, "f4"), "b": np.zeros(100, "f4")})
    for pair in ((broken, whole), (whole, broken)):
        with pytest.raises(CorruptFileError, match="truncated") as caught:
            list(diff(*pair))
        assert caught.value.tensor == "b"


def test_values_are_not_read_where_specs_differ():
    broken = Checkpoint({"a": Tensor(View.over(Failing(), (100,)))})
    assert [d.status for d in diff(broken, from_arrays({"a": np.zeros(9)}))] == ["shape"]
    assert [d.status for d in diff(broken, from_arrays({"a": np.zeros(100)}))] == ["dtype"]
    assert [d.status for d in diff(broken, from_arrays({}))] == ["missing"]


def test_who_has_seen_enough_may_stop(tiny):
    many = from_arrays({f"t{k}": np.arange(1000, dtype="f4") for k in range(100)})
    found = converter.diff(many, many)
    assert next(found).equal
    found.close()


def test_a_checkpoint_is_equal_to_itself_through_any_number_of_pieces(tiny):
    many = from_arrays({f"t{k}": np.arange(k * 7, dtype="f4") for k in range(60)})
    found = list(diff(many, many))
    assert [d.name for d in found] == list(many)
    assert all(d.equal for d in found)
