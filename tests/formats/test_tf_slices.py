"""Keys of slices, and tensors made of slices."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter.errors import CorruptFileError, LimitError
from converter.formats import _tf
from converter.formats._protobuf import message, number
from converter.formats._tf import (
    DTYPES,
    NUMBERS,
    Part,
    assembled,
    box_of,
    decoded_name,
    ordered_bytes,
    ordered_number,
    ordered_signed,
    read_shape,
    read_slice,
    shape_bytes,
    slice_key,
)
from converter.layout import View

S64 = st.integers(-(2**63), 2**63 - 1)
SIGNED = {
    0: "80",
    2: "82",
    63: "bf",
    64: "c040",
    8191: "dfff",
    8192: "e02000",
    2**62 - 1: "ffbfffffffffffffff",
    2**62: "ffc04000000000000000",
    2**63 - 1: "ffc07fffffffffffffff",
    -1: "7f",
    -64: "40",
    -65: "3fbf",
    -8193: "1fdfff",
    -(2**63): "003f8000000000000000",
}


# ── ordered code ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("value", "encoded"), SIGNED.items())
def test_signed_numbers(value, encoded):
    assert ordered_signed(value).hex() == encoded


@given(st.lists(S64, min_size=2))
def test_signed_numbers_sort_as_their_codes(values):
    values.sort()
    assert all(one <= other for one, other in pairwise(map(ordered_signed, values)))
    assert len(set(map(ordered_signed, values))) == len(set(values))


@pytest.mark.parametrize(
    ("value", "encoded"), {0: "00", 1: "0101", 4: "0104", 256: "020100"}.items()
)
def test_numbers(value, encoded):
    assert ordered_number(value).hex() == encoded


@given(st.lists(st.binary(max_size=8), min_size=2))
def test_bytes_sort_as_their_codes(values):
    values.sort()
    codes = [ordered_bytes(value) for value in values]
    assert codes == sorted(codes)
    assert len(set(codes)) == len(set(values))


def test_bytes():
    assert ordered_bytes(b"a\0b\xffc").hex() == "61" + "00ff" + "62" + "ff00" + "63" + "0001"


def test_keys_as_tensorflow_writes_them():
    assert slice_key(b"p_part", ((0, 2), (0, -1))).hex() == "00705f70617274000101028082807f"
    assert slice_key(b"a", ()).hex() == "0061000100"
    assert slice_key(b"w", ((0, 4),)).hex() == "007700010101" + "8084"


# ── messages ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("data", "shape"), [("", ()), ("1202080212020803", (2, 3)), ("120012020803", (0, 3))]
)
def test_shapes(data, shape):
    data = bytes.fromhex(data)
    assert read_shape(data, 0, len(data)) == shape
    assert shape_bytes(shape) == data


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (message(2, number(1, -1)), CorruptFileError, "negative"),
        (number(3, 1), CorruptFileError, "no shape"),
        (message(2, number(1, 1)) * 33, LimitError, "too many axes"),
        (message(2, number(1, 2**31)) * 3, LimitError, "out of bounds"),
        (message(2, number(1, 2**62)) + message(2, b""), LimitError, "out of bounds"),
    ],
)
def test_shapes_that_are_none(data, error, text):
    with pytest.raises(error, match=text):
        read_shape(data, 0, len(data))


def test_slices():
    data = bytes.fromhex("0a04080110020a0210030a00")
    assert read_slice(data, 0, len(data)) == ((1, 2), (0, 3), (0, -1))
    with pytest.raises(LimitError, match="too many axes"):
        read_slice(b"\x0a\0" * 33, 0, 66)


def test_slices_lie_inside_their_tensor():
    assert box_of(((1, 2), (0, -1)), (3, 4)) == ((1, 3), (0, 4))
    for cut in (
        ((0, 4),),
        ((0, 4), (0, 5)),
        ((-1, 2), (0, 4)),
        ((1, -1), (0, 4)),
        ((2, 2), (0, 4)),
    ):
        with pytest.raises(CorruptFileError, match="does not lie inside"):
            box_of(cut, (3, 4))


def test_names():
    assert decoded_name("größe/重み".encode()) == ("größe/重み", "")
    assert decoded_name(b"a\xff") == ("a\\xff", "its name is not valid UTF-8")
    assert decoded_name(b"a\nb") == ("a\\x0ab", "its name holds control characters")
    with pytest.raises(LimitError, match="name is too long"):
        decoded_name(b"n" * 4097)


def test_dtypes_are_a_table_both_ways():
    assert all(DTYPES[number] == dtype for dtype, number in NUMBERS.items())
    assert len(DTYPES) == 31
    assert DTYPES[12] == np.uint8
    assert NUMBERS[np.dtype(np.uint8)] == 4


# ── assembling ───────────────────────────────────────────────────────────────────────────────────

WHOLE = np.arange(4 * 6 * 3, dtype=np.int32).reshape(4, 6, 3)


def parts(*boxes):
    """Parts of `WHOLE`, given (start, stop) of each axis as a text: `01 06 03`."""
    for text in boxes:
        box = tuple((int(pair[0]), int(pair[1])) for pair in text.split())
        yield Part(box, View.of(WHOLE[tuple(slice(*pair) for pair in box)].copy()))


@pytest.mark.parametrize(
    "boxes",
    [
        ["04 06 03"],
        ["24 06 03", "02 06 03"],
        ["04 35 03", "04 56 03", "04 03 03"],
        ["04 06 12", "04 06 01", "04 06 23"],
        ["02 03 03", "24 03 03", "02 36 03", "24 36 03"],
        ["04 02 03", "02 26 03", "24 26 01", "24 26 13"],
        ["04 06 03", "22 06 03", "04 66 03"],
    ],
)
def test_slices_tile_their_tensor(boxes):
    view = assembled(WHOLE.shape, WHOLE.dtype, parts(*boxes))
    assert np.array_equal(view.numpy(), WHOLE)
    assert np.array_equal(
        view.transpose((2, 0, 1)).take(0, 1, 3).numpy(), WHOLE.transpose(2, 0, 1)[1:]
    )


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([], "not covered"),
        (["03 06 03"], "not covered by its slices on axis 0"),
        (["04 05 03"], "not covered by its slices on axis 1"),
        (["01 06 03", "24 06 03"], "not covered by its slices on axis 0"),
        (["02 03 03", "24 03 03", "02 36 03"], "not covered by its slices on axis 1"),
        (["02 06 03", "14 06 03"], "overlap"),
        (["04 06 03", "04 06 03"], "overlap"),
        (["02 03 03", "24 03 03", "02 36 03", "24 26 03"], "overlap"),
    ],
)
def test_slices_with_gaps_or_overlaps(boxes, message):
    with pytest.raises(CorruptFileError, match=message):
        assembled(WHOLE.shape, WHOLE.dtype, parts(*boxes))


def test_an_empty_tensor_needs_no_slices():
    view = assembled((0, 3), np.dtype(np.float32), [])
    assert view.numpy().shape == (0, 3)


@given(st.data())
def test_any_straight_cuts(data):
    boxes = [tuple((0, n) for n in WHOLE.shape)]
    for _ in range(data.draw(st.integers(0, 6))):
        box = boxes.pop(data.draw(st.integers(0, len(boxes) - 1)))
        axis = data.draw(st.integers(0, 2))
        cut = data.draw(st.integers(*box[axis]))
        boxes += [
            (*box[:axis], side, *box[axis + 1 :])
            for side in ((box[axis][0], cut), (cut, box[axis][1]))
        ]
    found = [Part(box, View.of(WHOLE[tuple(slice(*pair) for pair in box)])) for box in boxes]
    view = assembled(WHOLE.shape, WHOLE.dtype, data.draw(st.permutations(found)))
    assert np.array_equal(view.numpy(), WHOLE)


def test_nested_cuts_are_bounded(monkeypatch):
    monkeypatch.setattr(_tf, "MAX_NESTING", 1)
    grid = parts("02 03 03", "24 03 03", "02 36 03", "24 36 03")
    with pytest.raises(CorruptFileError, match="not covered"):
        assembled(WHOLE.shape, WHOLE.dtype, grid)
