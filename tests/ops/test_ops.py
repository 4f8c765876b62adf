"""Every op against NumPy: by a table of examples, and on generated shapes and dtypes.

What holds for all: inference agrees with application, the way back gives every bit back or says
why there is none, what stands in a file reads the same again, and no source is changed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, product
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from converter.errors import IrreversibleError, MappingError, OpError
from converter.language import loads
from converter.language.yaml import load
from converter.layout import View, concatenate
from converter.ops import OPS, Op
from converter.ops.base import On, UnaryOp
from converter.tensors import STRING, dtype_name, dtype_of

Array = NDArray[Any]
Shapes = list[tuple[int, ...]]

DTYPES = (
    *("bool", "int8", "uint16", "int32", "int64", "float16", "float32", "float64", "complex64"),
    *("complex128", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int4", "string"),
)
CASTABLE = [name for name in DTYPES if name != "string"]


@dataclass(frozen=True)
class Example:
    """A row: the op as it stands in a file, its sources, and what NumPy makes of them."""

    op: str
    value: Any
    shapes: Shapes
    oracle: Callable[..., Array | Sequence[Array]]
    pieces: int = 1
    dtype: str = "float32"
    irreversible: str = ""  # why there is no way back

    def __str__(self) -> str:
        return f"{self.op}: {self.value}"


def bgr(a):
    return a[:, :, ::-1]


EXAMPLES = [
    Example("rearrange", "h w i o -> o i h w", [(3, 3, 2, 4)], lambda a: a.transpose(3, 2, 0, 1)),
    Example("rearrange", "i o -> o i", [(4, 4)], lambda a: a.T),
    Example("rearrange", "1 1 i o -> o i", [(1, 1, 2, 3)], lambda a: a[0, 0].T),
    Example("rearrange", "-> 1", [()], lambda a: a.reshape(1), dtype="int64"),
    Example("rearrange", "... i o -> ... o i", [(2, 3, 4, 5)], lambda a: a.swapaxes(2, 3)),
    Example("rearrange", "a b -> b a", [(2, 3)], lambda a: a.T, dtype="string"),
    Example("rearrange", "a b -> b a", [(0, 3)], lambda a: a.T, dtype="bfloat16"),
    Example("rearrange", "a b -> b a", [(2, 3), (3, 2)], lambda a, b: [a.T, b.T], pieces=2),
    Example(
        "rearrange",
        {"pattern": "h w i o -> o (i h w)", "sizes": {"h": 7, "w": 7}},
        [(7, 7, 2, 3)],
        lambda a: a.transpose(3, 2, 0, 1).reshape(3, 98),
    ),
    Example(
        "rearrange",
        {"pattern": "(h w i) o -> o (i h w)", "sizes": {"h": 7, "w": 7}},
        [(98, 3)],
        lambda a: a.reshape(7, 7, 2, 3).transpose(3, 2, 0, 1).reshape(3, 98),
    ),
    Example(
        "rearrange",
        "h w o -> (h w) o",
        [(2, 3, 4)],
        lambda a: a.reshape(6, 4),
        irreversible=r"the sizes in \(h w\) are not known",
    ),
    Example("transpose", [1, 0], [(2, 3)], lambda a: a.T),
    Example("transpose", [2, 0, 1], [(2, 3, 4)], lambda a: a.transpose(2, 0, 1), dtype="int4"),
    Example("transpose", [], [()], lambda a: a),
    Example(
        "reshape",
        [-1, 4],
        [(2, 3, 4)],
        lambda a: a.reshape(6, 4),
        irreversible="does not know the shape before it",
    ),
    Example(
        "reshape",
        {"from": [2, 3, 4], "to": [6, 4]},
        [(2, 3, 4)],
        lambda a: a.reshape(6, 4),
    ),
    Example("reshape", {"from": [-1], "to": [2, -1]}, [(6,)], lambda a: a.reshape(2, 3)),
    Example("reverse", "h w [i] o", [(3, 3, 3, 2)], bgr),
    Example("reverse", "[h] ... [o]", [(3, 2, 4)], lambda a: a[::-1, :, ::-1]),
    Example("reverse", -1, [(2, 3)], lambda a: a[:, ::-1], dtype="complex64"),
    Example("reverse", [0, 1], [(2, 3)], lambda a: a[::-1, ::-1], dtype="string"),
    Example("concat", "[o] i", [(2, 3)] * 3, lambda *a: np.concatenate(a)),
    Example("concat", -1, [(2, 3)] * 2, lambda *a: np.concatenate(a, 1), dtype="float8_e4m3fn"),
    Example("concat", 0, [(2,)], lambda a: a),
    Example(
        "concat",
        {"axis": "o [i]", "sizes": [1, 4]},
        [(2, 1), (2, 4)],
        lambda *a: np.concatenate(a, 1),
    ),
    Example("split", "[o] i", [(6, 2)], lambda a: np.split(a, 3), pieces=3),
    Example("split", "... [i]", [(2, 6)], lambda a: np.split(a, 2, 1), pieces=2, dtype="bool"),
    Example(
        "split",
        {"axis": 0, "sizes": [1, -1, 2]},
        [(6, 2)],
        lambda a: np.split(a, [1, 4]),
        pieces=3,
    ),
    Example("split", {"axis": 0, "sizes": [0, 2]}, [(2,)], lambda a: np.split(a, [0]), pieces=2),
    Example("stack", "[e] i o", [(2, 3)] * 4, lambda *a: np.stack(a)),
    Example("stack", "i [e] o", [(2, 3)] * 2, lambda *a: np.stack(a, 1), dtype="bfloat16"),
    Example("stack", -1, [(2, 3)] * 2, lambda *a: np.stack(a, -1)),
    Example("stack", 0, [()] * 3, lambda *a: np.stack(a), dtype="string"),
    Example("unstack", "[e] i o", [(3, 2, 4)], list, pieces=3),
    Example("unstack", "i [e]", [(2, 3)], lambda a: list(a.T), pieces=3, dtype="int4"),
    Example(
        "part",
        {"axis": "[o] i", "index": 1, "of": 3},
        [(6, 2)],
        lambda a: a[2:4],
        irreversible="part keeps 1 of 3 pieces",
    ),
    Example(
        "reorder",
        {"axis": "[g] i", "order": [0, 2, 1, 3]},
        [(8, 3)],
        lambda a: a.reshape(4, 2, 3)[[0, 2, 1, 3]].reshape(8, 3),
    ),
    Example(
        "reorder",
        {"axis": "i [g]", "from": "i f c o", "to": "i o f c"},
        [(3, 8)],
        lambda a: a.reshape(3, 4, 2)[:, [0, 3, 1, 2]].reshape(3, 8),
        dtype="bfloat16",
    ),
    Example(
        "reorder",
        {"axis": 0, "from": "z r h", "to": "r z h"},
        [(6,), (6, 2)],
        lambda *both: [a[[2, 3, 0, 1, 4, 5]] for a in both],
        pieces=2,
        dtype="string",
    ),
    Example(
        "slice",
        {"axis": "[v] d", "start": 1},
        [(4, 2)],
        lambda a: a[1:],
        irreversible="slice keeps a part and loses the rest",
    ),
    Example(
        "slice",
        {"axis": 1, "start": 1, "stop": 3},
        [(2, 4)],
        lambda a: a[:, 1:3],
        irreversible="slice keeps a part and loses the rest",
    ),
    Example("pad", {"axis": "[v] d", "before": 1}, [(2, 3)], lambda a: np.pad(a, [(1, 0), (0, 0)])),
    Example(
        "pad",
        {"axis": "v [d]", "before": 2, "after": 1, "value": -0.5},
        [(2, 3)],
        lambda a: np.pad(a, [(0, 0), (2, 1)], constant_values=-0.5),
        dtype="float16",
    ),
    Example("pad", {"axis": 0}, [(2,)], lambda a: a, dtype="int4"),
    Example("negate", {}, [(2, 3)], np.negative),
    Example("negate", {}, [(5,)], np.negative, dtype="int64"),
    Example("scale", 0.25, [(0, 3)], lambda a: a * np.float32(0.25)),
    Example("add", 0, [(2, 3)], lambda a: a + 0, dtype="int32"),
    Example("add", -7, [(2, 3)], lambda a: a - 7, dtype="uint16"),
    Example(
        "add",
        {"value": 100, "axis": "[g] i", "block": 1, "of": 4},
        [(4, 2)],
        lambda a: a + np.array([[0], [100], [0], [0]], np.int8),
        dtype="int8",
    ),
    Example("epsilon", {"from": 1e-3, "to": 1e-5}, [(0,)], lambda a: a + np.float32(1e-3 - 1e-5)),
    Example(
        "sum",
        {},
        [(2, 3)] * 3,
        lambda *a: a[0] + a[1] + a[2],
        dtype="int64",
        irreversible="sum cannot be undone",
    ),
    Example(
        "fold_batchnorm",
        {"axis": "i [o]"},
        [(0, 0), (0,), (0,), (0,), (0,)],
        lambda k, g, b, m, v: [k, m],
        pieces=2,
        irreversible="fold_batchnorm cannot be undone",
    ),
    Example(
        "dequantise",
        {},
        [(2, 0), ()],
        lambda q, s: q,
        irreversible="dequantise cannot be undone",
    ),
    Example(
        "cast",
        "float16",
        [(2, 3)],
        lambda a: a.astype(np.float16),
        irreversible="does not know the dtype before it",
    ),
    Example(
        "cast",
        {"from": "float32", "to": "bfloat16"},
        [(2, 3)],
        lambda a: a.astype(ml_dtypes.bfloat16),
        irreversible="casting float32 to bfloat16 has no exact way back",
    ),
    Example(
        "cast",
        {"from": "bfloat16", "to": "float32"},
        [(2, 3)],
        lambda a: a.astype(np.float32),
        dtype="bfloat16",
    ),
    Example(
        "cast",
        {"from": "int64", "to": "float64"},
        [(3,)],
        lambda a: a.astype(np.float64),
        dtype="int64",
        irreversible="casting int64 to float64 has no exact way back",
    ),
]

# What does not fit: op, value, sources, message, expected, found.
MISFITS = [
    ("rearrange", "a b -> b a", [(2, 3, 4)], "does not fit the number of axes", "2 axes", "3 axes"),
    ("transpose", [1, 0], [(2, 3, 4)], "does not fit the number of axes", "2 axes", "3 axes"),
    ("reshape", [4, 4], [(2, 3)], "reshape does not fit", "[4, 4], 16 elements", "[2, 3], 6 el"),
    ("reshape", [4, -1], [(2, 3)], "reshape does not fit", "[4, -1], 4 elements", "[2, 3], 6 el"),
    ("reshape", [-1, -1], [(2, 3)], "reshape does not fit", "[-1, -1]", "[2, 3], 6 el"),
    ("reshape", [-2, -3], [(2, 3)], "reshape does not fit", "[-2, -3]", "[2, 3], 6 el"),
    ("reshape", [0, -1], [(0, 3)], "reshape does not fit", "[0, -1]", "[0, 3], 0 el"),
    ("reshape", ["n", 3], [(2, 3)], "reshape needs the size 'n'", "", ""),
    (
        "reshape",
        {"from": [3, 2], "to": [6]},
        [(2, 3)],
        "reshape does not fit",
        "[3, 2]",
        "[2, 3], 6 elements",
    ),
    ("reverse", "[i] o", [(2,)], "does not fit the number of axes", "2 axes", "1 axes: [2]"),
    ("reverse", 2, [(2, 3)], "reverse: there is no axis 2", "an axis of 2", "[2, 3]"),
    ("reverse", [0, -3], [(2, 3)], "reverse: there is no axis -3", "an axis of 2", "[2, 3]"),
    ("concat", 0, [()], "concat: there is no axis 0", "an axis of 0", "[]"),
    ("concat", 0, [(2, 3), (2, 4)], "do not fit together", "float32 [2, 3]", "float32 [2, 4]"),
    ("concat", 0, [(2, 3), (2,)], "do not fit together", "float32 [2, 3]", "float32 [2]"),
    ("concat", 0, [(2,), (3,)], "concat: the pieces are not equal", "pieces of 2", "[2, 3]"),
    (
        "concat",
        {"axis": 0, "sizes": [2, 2]},
        [(1,), (3,)],
        "concat: the sizes do not fit",
        "(2, 2)",
        "[1, 3]",
    ),
    ("split", 0, [(4,), (4,)], "split takes one tensor", "1 tensor", "2 tensors"),
    ("split", 0, [(5,)], "an axis of 5 cannot be cut into 2 equal pieces", "", ""),
    (
        "split",
        {"axis": 0, "sizes": [2, 2]},
        [(5,)],
        "split: the sizes do not fit",
        "2 pieces that sum to 5",
        "[2, 2]",
    ),
    ("split", {"axis": 0, "sizes": [-1, -1]}, [(5,)], "split: the sizes do not fit", "2 p", "[-1"),
    ("split", {"axis": 0, "sizes": [7, -1]}, [(5,)], "split: the sizes do not fit", "2 p", "[7"),
    ("split", {"axis": 0, "sizes": ["q", "k"]}, [(5,)], "split needs the size 'q'", "", ""),
    ("stack", 0, [(2,), (3,)], "do not fit together", "float32 [2]", "float32 [3]"),
    ("stack", 3, [(2,), (2,)], "stack: there is no axis 3", "an axis of 2", "[1, 2]"),
    ("unstack", 0, [(2,), (2,)], "unstack takes one tensor", "1 tensor", "2 tensors"),
    ("unstack", 1, [(2,)], "unstack: there is no axis 1", "an axis of 1", "[2]"),
    ("unstack", 0, [(0, 2)], "unstack: the axis has no elements", "", "[0, 2]"),
    (
        "part",
        {"axis": 0, "index": 0, "of": 3},
        [(4,)],
        "an axis of 4 has no 3 equal pieces",
        "",
        "",
    ),
    ("reorder", {"axis": 0, "order": [1, 0]}, [(3,)], "an axis of 3 has no 2 equal", "", "[3]"),
    ("reorder", {"axis": 0, "order": []}, [(3,)], "an axis of 3 has no 0 equal", "", "[3]"),
    ("slice", {"axis": 0, "start": 2, "stop": 1}, [(3,)], "not inside the axis", "0 <=", "[2, 1)"),
    ("slice", {"axis": 0, "stop": -4}, [(3,)], "not inside the axis", "0 <= start", "[0, -1)"),
    ("slice", {"axis": 0, "start": "n"}, [(3,)], "slice needs the size 'n'", "", ""),
    ("pad", {"axis": 0, "before": "n"}, [(3,)], "pad needs the size 'n'", "", ""),
    ("pad", {"axis": 0, "value": 1e60}, [(3,)], "pad: 1e\\+60 is no float32", "", ""),
    ("negate", {}, [np.zeros(2, bool)], "numbers with a sign", "numbers with a sign", "bool"),
    ("negate", {}, [np.zeros(2, "u1")], "numbers with a sign", "numbers with a sign", "uint8"),
    ("negate", {}, [np.zeros(2, object)], "numbers with a sign", "numbers with", "string"),
    ("scale", 2, [np.zeros(2, "i4")], "scale needs floating point", "floating point", "int32"),
    ("scale", 1e-60, [(2,)], "1e-60 is no float32 but zero", "", ""),
    ("scale", 1e60, [(2,)], "1e\\+60 is no float32", "", ""),
    ("add", 0.5, [np.zeros(2, "i4")], "add: 0.5 is no int32", "", ""),
    ("add", 1, [np.zeros(2, bool)], "add does not fit", "numbers", "bool"),
    ("add", 1, [np.zeros(2, object)], "add does not fit", "numbers", "string"),
    ("add", {"value": 1, "axis": 0, "block": 1, "of": 2}, [(3,)], "has no 2 equal blocks", "", ""),
    ("epsilon", {"from": 1, "to": 2}, [np.zeros(2, "i4")], "epsilon needs", "floating", "int32"),
    ("sum", {}, [(2,), (3,)], "do not fit together", "float32 [2]", "float32 [3]"),
    ("sum", {}, [np.zeros(2, bool)], "sum does not fit", "numbers", "bool"),
    ("fold_batchnorm", {"axis": 0}, [(2,), (2,)], "sources do not fit", "kernel, gam", "2 tensors"),
    (
        "fold_batchnorm",
        {"axis": 0, "of": ["kernel", "mean", "variance"]},
        [(2, 3), (2,), (3,)],
        "variance does not fit",
        "[2]",
        "float32 [3]",
    ),
    ("dequantise", {}, [(2,)], "dequantise takes q", "2 or 3 tensors", "1 tensors"),
    ("dequantise", {}, [(2,), np.zeros(2, "i4")], "dequantise does not", "numbers", "float32 and"),
    ("dequantise", {}, [(4, 4), (3, 4)], "the scale does not fit", "one number", "[3, 4]"),
    ("dequantise", {}, [(4, 4), (4,)], "the scale does not fit", "one number", "[4]"),
    (
        "cast",
        {"from": "float64", "to": "float32"},
        [(2,)],
        "cast does not fit",
        "float64",
        "float32",
    ),
]

# What no file may say: op, value, message.
MALFORMED = [
    ("rearrange", "a b -> a", "axis 'b' stands on the left side only"),
    ("rearrange", {"pattern": "a -> a", "sizes": {"a": 0}}, "greater than or equal to 1"),
    ("rearrange", {"pattern": "a -> a", "sizes": {"a": -7}}, "greater than or equal to 1"),
    ("rearrange", {"pattern": "a -> a", "sizes": {"b": 7}}, "'b' is no axis of the pattern"),
    ("rearrange", None, "valid dictionary"),
    ("transpose", [1, 1], r"\[1, 1\] is not a permutation of \[0, 1\]"),
    ("transpose", [-1, 0], "is not a permutation"),
    ("transpose", "a b", "valid dictionary"),
    ("reshape", {"from": [1]}, "Field required"),
    ("reshape", {"to": [1], "form": [1]}, "Extra inputs are not permitted"),
    ("reverse", "h w", "mark the axis that is meant"),
    ("reverse", [0, 0], "an axis stands twice"),
    ("concat", "[a] [b]", "exactly one axis is marked"),
    ("split", {"axis": "a"}, "mark the axis that is meant"),
    ("stack", None, "axis"),
    ("unstack", {}, "Field required"),
    ("part", {"axis": 0, "index": 3, "of": 3}, "piece 3 of 3: pieces count from 0"),
    ("part", {"axis": 0, "index": -1, "of": 3}, "greater than or equal to 0"),
    ("part", 0, "Field required"),
    ("reorder", {"axis": 0}, "give `order`, or both `from` and `to`"),
    ("reorder", {"axis": 0, "from": "a b"}, "give `order`, or both `from` and `to`"),
    ("reorder", {"axis": 0, "order": [0], "from": "a", "to": "a"}, "give `order`, or both"),
    ("reorder", {"axis": 0, "order": [0, 2]}, r"\[0, 2\] is not a permutation"),
    ("reorder", {"axis": 0, "from": "a b", "to": "a c"}, "'a c' does not name the blocks of 'a b'"),
    ("reorder", {"axis": 0, "from": "a a", "to": "a a"}, "does not name the blocks"),
    ("slice", {"axis": 0, "start": -1}, "greater than or equal to 0"),
    ("pad", {"axis": 0, "before": -1}, "greater than or equal to 0"),
    ("pad", {"before": 1}, "Field required"),
    ("scale", 0, "a factor is a number, and not zero"),
    ("scale", math.inf, "a factor is a number, and not zero"),
    ("scale", 10**400, "a factor is a number, and not zero"),
    ("scale", {"factor": 2, "divisor": 2}, "give one of `factor` and `divisor`"),
    ("scale", {}, "give one of `factor` and `divisor`"),
    ("add", {"value": 1, "axis": 0}, "`axis`, `block` and `of` go together"),
    ("add", {"value": 1, "axis": 0, "block": 2, "of": 2}, "block 2 of 2: blocks count from 0"),
    ("add", {"value": 1, "axis": "[a] [b]", "block": 0, "of": 2}, "exactly one axis is marked"),
    ("add", math.inf, "an infinity cannot be taken away"),
    ("add", -(10**400), "an infinity cannot be taken away"),
    ("negate", 1, "valid dictionary"),
    ("sum", 0, "valid dictionary"),
    ("epsilon", {"from": 1e-3}, "Field required"),
    ("epsilon", {"from": -1, "to": 0}, "greater than or equal to 0"),
    ("epsilon", {"from": math.nan, "to": 0}, "greater than or equal to 0"),
    ("epsilon", {"from": 10**400, "to": 0}, "should be a valid number"),
    ("fold_batchnorm", {"axis": 0, "of": ["kernel", "mean"]}, "name kernel, mean and variance"),
    ("fold_batchnorm", {"axis": 0, "of": ["kernel", "scale"]}, "'kernel', 'bias'"),
    ("dequantise", {"axis": "a b"}, "mark the axis that is meant"),
    ("dequantise", {"axis": "[a] [b]"}, "exactly one axis is marked"),
    ("cast", "string", "strings cannot be cast"),
    ("cast", "f4", "is not a dtype"),
    ("cast", "f4,(", "is not a dtype"),
    ("cast", "a", "is not a dtype"),
    ("cast", 16, "valid dictionary"),
]


def zeros(source: tuple[int, ...] | Array) -> Array:
    """Zeros of a shape, where it is not an array already."""
    return np.zeros(source, np.float32) if isinstance(source, tuple) else source


class Unreadable:
    """The elements of a tensor that must not be read."""

    def __init__(self, array: Array) -> None:
        self.dtype = array.dtype
        self.size = array.size

    def read(self, start: int, out: Array) -> None:
        raise AssertionError("values were read")


def filled(shape: tuple[int, ...], dtype: str, seed: int = 0) -> Array:
    """An array of random bits, NaNs and all (of values, where not all bits are values)."""
    size, found = math.prod(shape), dtype_of(dtype)
    generator = np.random.default_rng([seed, size])
    if found == STRING:
        texts = [bytes(generator.bytes(k % 4)) for k in range(size)]
        array = np.empty(size, object)
        array[:] = texts
        return array.reshape(shape)
    if dtype in ("bool", "int4"):
        return generator.integers(0, 2, shape).astype(found)
    return np.frombuffer(generator.bytes(size * found.itemsize), found).reshape(shape).copy()


def bits(array: Array) -> Any:
    """What two arrays that are the same have in common."""
    values = array.reshape(-1)
    flat = values.tolist() if array.dtype == STRING else values.tobytes()
    return array.shape, dtype_name(array.dtype), flat


def written(op: Op) -> Op:
    """The op that a file says, to which it was written."""
    text = yaml.safe_dump({op.name: op.to_file()})
    return OPS[op.name].read(load(text).data[op.name])


def check(op: Op, arrays: list[Array], expected: list[Array], pieces: int) -> Op | None:
    """All that holds for every op; returns the way back."""
    before = [bits(array) for array in arrays]
    views = op.apply([View.of(array) for array in arrays], pieces)
    assert [bits(view.numpy()) for view in views] == [bits(array) for array in expected]
    ghosts = [View.over(Unreadable(array), array.shape) for array in arrays]
    inferred = [(view.shape, view.dtype) for view in op.apply(ghosts, pieces)]
    assert inferred == [(array.shape, array.dtype) for array in expected]
    assert all(isinstance(text, str) for text in op.doubts(ghosts))
    assert written(op) == op
    assert [bits(array) for array in arrays] == before
    try:
        back = op.inverse()
    except IrreversibleError:
        return None
    again = back.apply([View.of(view.numpy()) for view in views], len(arrays))
    assert [bits(view.numpy()) for view in again] == before
    assert written(back) == back
    return back


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_examples_agree_with_numpy(example):
    op = OPS[example.op].read(example.value)
    arrays = [filled(shape, example.dtype, seed) for seed, shape in enumerate(example.shapes)]
    with np.errstate(all="ignore"):
        found = example.oracle(*arrays)
    expected = list(found) if isinstance(found, list | tuple) else [found]
    back = check(op, arrays, expected, example.pieces)
    assert (back is None) == bool(example.irreversible)


@pytest.mark.parametrize("example", [e for e in EXAMPLES if e.irreversible], ids=str)
def test_what_has_no_way_back_says_why(example):
    op = OPS[example.op].read(example.value)
    with pytest.raises(IrreversibleError, match=example.irreversible) as caught:
        op.inverse()
    assert caught.value.hint or op.name == "cast"


@pytest.mark.parametrize("name", OPS)
def test_every_op_has_examples_a_misfit_and_a_malformed_value(name):
    assert name in {example.op for example in EXAMPLES}
    assert name in {row[0] for row in MISFITS}
    assert name in {row[0] for row in MALFORMED}
    assert OPS[name].about
    assert OPS[name].name == name


@pytest.mark.parametrize(("name", "value", "shapes", "message", "expected", "found"), MISFITS)
def test_what_does_not_fit_says_what_was_expected_and_found(  # noqa: PLR0913 - the columns
    name, value, shapes, message, expected, found
):
    op = OPS[name].read(value)
    with pytest.raises(OpError, match=message) as caught:
        op.apply([View.of(zeros(shape)) for shape in shapes], 2)
    assert caught.value.expected.startswith(expected)
    assert caught.value.found.startswith(found)


@pytest.mark.parametrize(("name", "value", "message"), MALFORMED)
def test_malformed_values_are_refused(name, value, message):
    with pytest.raises(ValueError, match=message):
        OPS[name].read(value)


def test_tensors_of_several_dtypes_are_not_joined():
    views = [View.of(np.zeros(2, np.float32)), View.of(np.zeros(2, np.float64))]
    for name in ("concat", "stack"):
        with pytest.raises(OpError, match=f"{name}: the tensors do not fit together"):
            OPS[name].read(0).apply(views, 1)


def test_strings_are_not_cast():
    with pytest.raises(OpError, match="cast does not fit") as caught:
        OPS["cast"].read("float32").apply([View.of(filled((2,), "string"))], 1)
    assert (caught.value.expected, caught.value.found) == ("numbers", "string")


def test_sizes_of_the_file_are_bound_by_name():
    sizes = {"n": 2, "h": 3, "other": 9}
    view = View.of(np.arange(6))
    reshape = OPS["reshape"].read({"from": [6], "to": ["n", "h"]}).bind(sizes)
    split = OPS["split"].read({"axis": 0, "sizes": ["n", -1]}).bind(sizes)
    rearrange = OPS["rearrange"].read("(n h) -> h n").bind(sizes)
    assert reshape.apply([view], 1)[0].shape == (2, 3)
    assert [piece.shape for piece in split.apply([view], 2)] == [(2,), (4,)]
    assert rearrange.apply([view], 1)[0].shape == (3, 2)
    assert rearrange.inverse().apply([View.of(np.zeros((3, 2)))], 1)[0].shape == (6,)


def test_sizes_of_an_op_outrank_those_of_the_file():
    op = OPS["rearrange"].read({"pattern": "(a b) -> a b", "sizes": {"a": 2}})
    assert op.bind({"a": 3}).apply([View.of(np.zeros(6))], 1)[0].shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "value", "shape", "doubts"),
    [
        ("rearrange", "h w i o -> o i h w", (3, 3, 2, 4), []),
        ("rearrange", "i o -> o i", (4, 4), ["i and o are both 4"]),
        ("rearrange", "i o -> o i", (4, 5), []),
        ("rearrange", "i o -> o i", (1, 1), []),
        (
            "rearrange",
            "h w i o -> o (i h w)",
            (7, 7, 2, 3),
            ["the order of i, h, w within one axis"],
        ),
        ("rearrange", "h w i o -> (h w i) o", (7, 7, 2, 3), []),
        ("rearrange", "1 1 i o -> o i", (1, 1, 5, 5), ["i and o are both 5"]),
        ("transpose", [1, 0], (3, 3), ["axis 0 and axis 1 are both 3"]),
        ("transpose", [1, 0], (3, 2), []),
        ("transpose", [0, 1], (3, 3), []),
        ("reverse", "h w [i] o", (3, 3, 3, 4), [r"axis 2 \(3\) is reversed"]),
        ("reverse", 0, (1, 3), []),
        ("cast", "float16", (3, 3), []),
        (
            "reorder",
            {"axis": 0, "order": [1, 0]},
            (4,),
            [r"the order of the 2 blocks along axis 0"],
        ),
        ("reorder", {"axis": 0, "order": [0, 1]}, (4,), []),
        ("reshape", [9], (3, 3), []),
    ],
)
def test_doubts_are_what_no_shape_confirms(name, value, shape, doubts):
    found = OPS[name].read(value).doubts([View.of(np.zeros(shape))])
    assert len(found) == len(doubts)
    for text, pattern in zip(found, doubts, strict=True):
        assert re.search(pattern, text)


# Generated shapes and dtypes.

SHAPES = st.lists(st.integers(1, 4), max_size=4).map(tuple)
LAYOUT = settings(deadline=None, max_examples=60)


@st.composite
def tensors(draw, shapes=SHAPES) -> Array:
    return filled(draw(shapes), draw(st.sampled_from(DTYPES)), draw(st.integers(0, 9)))


def grouped(draw, axes: Sequence[str]) -> list[list[str]]:
    """The axes, some neighbours merged."""
    groups: list[list[str]] = []
    for axis in axes:
        if groups and draw(st.booleans()):
            groups[-1].append(axis)
        else:
            groups.append([axis])
    return groups


def side(groups: list[list[str]]) -> str:
    return " ".join(f"({' '.join(group)})" for group in groups)


@given(st.data())
@LAYOUT
def test_rearrange_is_reshape_transpose_reshape(data):
    split = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=5))
    axes = list("abcde"[: len(split)])
    order = data.draw(st.permutations(range(len(axes))))
    left, right = grouped(data.draw, axes), grouped(data.draw, [axes[k] for k in order])
    sizes = dict(zip(axes, split, strict=True))
    shape = tuple(math.prod(sizes[axis] for axis in group) for group in left)
    merged = tuple(math.prod(sizes[axis] for axis in group) for group in right)
    array = filled(shape, data.draw(st.sampled_from(DTYPES)))
    known = {axis: size for axis, size in sizes.items() if size}
    alone = {group[0] for group in left if len(group) == 1}
    if set(sizes) - set(known) - alone:
        return  # the size of an empty axis cannot be given
    pattern = f"{side(left)} -> {side(right)}"
    op = OPS["rearrange"].read({"pattern": pattern, "sizes": known})
    expected = array.reshape(split).transpose(order).reshape(merged)
    back = check(op, [array], [expected], 1)
    assert back is not None or split.count(0) > 1


@given(st.data())
@LAYOUT
def test_transpose_is_that_of_numpy(data):
    array = data.draw(tensors())
    order = data.draw(st.permutations(range(array.ndim)))
    op = OPS["transpose"].read(list(order))
    assert check(op, [array], [array.transpose(order)], 1) is not None


@given(st.data())
@LAYOUT
def test_reshape_is_that_of_numpy(data):
    array = data.draw(tensors())
    shape = list(data.draw(st.permutations(array.shape)))
    if shape and data.draw(st.booleans()):
        shape[data.draw(st.integers(0, len(shape) - 1))] = -1
    value = {"from": list(array.shape), "to": shape}
    assert check(OPS["reshape"].read(value), [array], [array.reshape(shape)], 1)


@given(st.data())
@LAYOUT
def test_reverse_is_flip(data):
    array = data.draw(tensors(SHAPES.filter(bool)))
    axes = data.draw(st.lists(st.integers(0, array.ndim - 1), min_size=1, unique=True))
    names = [f"[a{k}]" if k in axes else f"a{k}" for k in range(array.ndim)]
    for value in (axes, " ".join(names)):
        op = OPS["reverse"].read(value)
        assert check(op, [array], [np.flip(array, axes)], 1) == op


@st.composite
def cut_tensors(draw) -> tuple[Array, int, list[int]]:
    """A tensor, an axis of it, and the lengths of pieces that it may be cut into."""
    shape = list(draw(SHAPES.filter(bool)))
    axis = draw(st.integers(0, len(shape) - 1))
    equal = st.tuples(st.integers(1, 3), st.integers(1, 4)).map(lambda two: [two[0]] * two[1])
    lengths = draw(equal | st.lists(st.integers(0, 4), min_size=1, max_size=4))
    shape[axis] = sum(lengths)
    return draw(tensors(st.just(tuple(shape)))), axis, lengths


@given(cut_tensors(), st.booleans(), st.data())
@LAYOUT
def test_split_and_concat_undo_each_other(cut, negative, data):
    array, axis, lengths = cut
    place = axis - array.ndim if negative else axis
    sizes = list(lengths)
    if data.draw(st.booleans()):
        sizes[data.draw(st.integers(0, len(sizes) - 1))] = -1
    value = {"axis": place} if len(set(lengths)) == 1 else {"axis": place, "sizes": sizes}
    edges = [0, *accumulate(lengths)]
    pieces = [array.take(range(a, b), axis) for a, b in pairwise(edges)]
    concat = OPS["concat"].read(value)
    split = check(concat, pieces, [array], 1)
    assert split == OPS["split"].read(value)
    assert check(split, [array], pieces, len(pieces)) == concat


@given(tensors(), st.integers(1, 4), st.data())
@LAYOUT
def test_stack_and_unstack_undo_each_other(array, count, data):
    axis = data.draw(st.integers(-array.ndim - 1, array.ndim))
    layers = [filled(array.shape, dtype_name(array.dtype), seed) for seed in range(count)]
    stack = OPS["stack"].read(axis)
    unstack = check(stack, layers, [np.stack(layers, axis)], 1)
    assert unstack == OPS["unstack"].read(axis)
    assert check(unstack, [np.stack(layers, axis)], layers, count) == stack


@given(tensors(SHAPES.filter(bool)), st.data())
@LAYOUT
def test_part_is_one_of_the_pieces_of_numpy_split(array, data):
    axis = data.draw(st.integers(0, array.ndim - 1))
    of = data.draw(st.sampled_from([n for n in range(1, 5) if array.shape[axis] % n == 0]))
    index = data.draw(st.integers(0, of - 1))
    op = OPS["part"].read({"axis": axis, "index": index, "of": of})
    back = check(op, [array], [np.split(array, of, axis)[index]], 1)
    assert (back is None) == (of > 1)


def numbers(dtype: str) -> Array:
    """Every bit pattern of a small dtype, and the edges of a large one, as far as they are numbers.

    Not-a-numbers are left out: processors and ml_dtypes are free to make a NaN quiet.
    """
    found = dtype_of(dtype)
    if dtype in ("bool", "int4"):
        return np.arange(-8, 8).astype(found)
    if found.itemsize <= 2:
        values = np.arange(1 << (8 * found.itemsize)).astype(f"u{found.itemsize}").view(found)
    elif found.kind in "iu":
        info = np.iinfo(found)
        values = np.array([0, 1, info.min, info.max, info.max - 1, (1 << 24) + 1], found)
    else:
        edges = np.array([0, -0.0, 7, np.inf, -np.inf, np.finfo(found).max], found)
        values = np.concatenate([filled((200,), dtype), edges])
    with np.errstate(all="ignore"):
        return values[~np.isnan(values.astype(np.complex128))]


def is_complex(dtype: str) -> bool:
    return dtype.startswith("complex")


def is_integer(dtype: str) -> bool:
    return "int" in dtype


CASTS = [
    pair for pair in product(CASTABLE, CASTABLE) if is_complex(pair[1]) or not is_complex(pair[0])
]


@pytest.mark.parametrize(("source", "target"), CASTS)
def test_a_cast_has_a_way_back_when_the_target_holds_every_value(source, target):
    array = numbers(source)
    if is_integer(target) and not is_integer(source):  # out of range there is no right result
        array = array[(array >= array.dtype.type(0)) & (array < array.dtype.type(8))]
    op = OPS["cast"].read({"from": source, "to": target})
    with np.errstate(all="ignore"):
        expected = array.astype(dtype_of(target))
        again = (expected if is_complex(source) else expected.real).astype(array.dtype)
    check(op, [array], [expected], 1)
    if bits(again) != bits(array):
        with pytest.raises(
            IrreversibleError, match=f"casting {source} to {target} has no exact way back"
        ):
            op.inverse()


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("bfloat16", "float32"),
        ("float16", "float32"),
        ("float32", "float64"),
        ("int32", "float64"),
        ("uint16", "int32"),
        ("int8", "bfloat16"),
        ("float8_e4m3fn", "bfloat16"),
        ("float8_e5m2", "float16"),
        ("bool", "int4"),
    ],
)
def test_widening_casts_have_a_way_back(source, target):
    back = OPS["cast"].read({"from": source, "to": target}).inverse()
    assert back.to_file() == {"from": target, "to": source}


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("complex64", "float32", "cast would discard the imaginary part"),
        ("float8_e3m4", "float8_e8m0fnu", "there is no cast of float8_e3m4 to float8_e8m0fnu"),
    ],
)
def test_casts_that_do_not_exist_are_known_before_values_are_read(source, target, message):
    view = View.over(Unreadable(np.zeros(2, dtype_of(source))), (2,))
    with pytest.raises(OpError, match=message):
        OPS["cast"].read(target).apply([view], 1)


# Arithmetic.

FLOATS = [name for name in CASTABLE if "float" in name or "complex" in name]
SIGNED = [name for name in CASTABLE if name not in ("bool", "uint16")]


@pytest.mark.parametrize("dtype", SIGNED)
def test_negate_changes_every_sign_and_back(dtype):
    array = numbers(dtype)
    with np.errstate(all="ignore"):
        expected = np.negative(array).astype(array.dtype)
    op = OPS["negate"].read({})
    assert check(op, [array], [expected], 1) == op


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [127.5, 0.1, {"divisor": 127.5}, -2, {"divisor": 0.25}])
def test_scale_rounds_as_numpy_does(dtype, value):
    array = numbers(dtype)
    factor = array.dtype.type(value["divisor"] if isinstance(value, dict) else value)
    with np.errstate(all="ignore"):
        expected = array / factor if isinstance(value, dict) else array * factor
    op = OPS["scale"].read(value)
    (found,) = op.apply([View.of(array)], 1)
    assert bits(found.numpy()) == bits(expected.astype(array.dtype))
    assert written(op) == op
    assert op.inverse().inverse() == op


@given(st.integers(-10, 10), st.sampled_from([1, -1]), st.integers(0, 9))
@LAYOUT
def test_a_power_of_two_scales_exactly(exponent, sign, seed):
    array = np.random.default_rng(seed).normal(size=(3, 4)).astype(np.float32)
    factor = sign * 2.0**exponent
    op = OPS["scale"].read(factor)
    assert op.exactness == "exact"
    assert check(op, [array], [array * np.float32(factor)], 1) is not None


@given(tensors(SHAPES.filter(bool)), st.data())
@LAYOUT
def test_a_block_is_added_to_where_it_lies(array, data):
    if not np.issubdtype(array.dtype, np.integer):
        return
    axis = data.draw(st.integers(0, array.ndim - 1))
    of = data.draw(st.sampled_from([n for n in range(1, 5) if array.shape[axis] % n == 0]))
    block = data.draw(st.integers(0, of - 1))
    op = OPS["add"].read({"value": 7, "axis": axis, "block": block, "of": of})
    parts = np.split(array, of, axis)
    parts[block] = parts[block] + array.dtype.type(7)
    assert check(op, [array], [np.concatenate(parts, axis)], 1) is not None


def test_a_forget_bias_is_added_to_its_gate():
    op = OPS["add"].read({"value": 1.0, "axis": "[g]", "block": 1, "of": 4})
    (found,) = op.apply([View.of(np.zeros(8, np.float32))], 1)
    assert found.numpy().tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    assert op.inverse().apply([found], 1)[0].numpy().tolist() == [0] * 8


def test_bytes_of_the_other_order_are_computed_with():
    array = np.arange(4, dtype=">f4")
    value = {"value": 1, "axis": 0, "block": 0, "of": 2}
    for op, expected in (("negate", {}), ("add", value), ("scale", 3)):
        (view,) = OPS[op].read(expected).apply([View.of(array)], 1)
        assert view.numpy().dtype.isnative
    assert view.numpy().tolist() == [0, 3, 6, 9]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scale", {"divisor": 127.5}),
        ("add", 0.1),
        ("epsilon", {"from": 1e-3, "to": 1e-5}),
        ("negate", {}),
    ],
)
def test_an_op_and_its_inverse_cancel(name, value):
    """Without a file between, not even a bit is rounded, whatever is permuted on the way."""
    op = OPS[name].read(value)
    array = np.random.default_rng(0).uniform(0.5, 2, (40, 60)).astype("f4")
    (there,) = op.apply([View.of(array).transpose((1, 0))], 1)
    (back,) = op.inverse().apply([there.transpose((1, 0)).flip(0).flip(0).transpose((1, 0))], 1)
    assert bits(back.transpose((1, 0)).numpy()) == bits(array)
    through_memory = op.inverse().apply([View.of(there.numpy())], 1)[0].numpy().T
    assert (bits(through_memory) == bits(array)) == (op.exactness == "exact")
    part = op.inverse().apply([there.take(0, 1, 3)], 1)[0].numpy().T
    np.testing.assert_allclose(part, array[:, 1:3], rtol=1e-5, atol=1e-7)


def test_another_epsilon_shifts_the_variance():
    variance = np.array([0.5, 2], np.float32)
    op = OPS["epsilon"].read({"from": 1e-3, "to": 1e-5})
    found = op.apply([View.of(variance)], 1)[0].numpy()
    np.testing.assert_array_equal(found, variance + np.float32(1e-3 - 1e-5), strict=True)
    assert op.inverse() == OPS["epsilon"].read({"from": 1e-5, "to": 1e-3})


@given(tensors(SHAPES.filter(bool)), st.data())
@LAYOUT
def test_reorder_takes_blocks(array, data):
    axis = data.draw(st.integers(0, array.ndim - 1))
    count = data.draw(st.sampled_from([n for n in range(1, 5) if array.shape[axis] % n == 0]))
    order = data.draw(st.permutations(range(count)))
    blocks = np.split(array, count, axis)
    expected = np.concatenate([blocks[k] for k in order], axis)
    names = [f"b{k}" for k in range(count)]
    moved = " ".join(names[k] for k in order)
    for value in ({"order": order}, {"from": " ".join(names), "to": moved}):
        op = OPS["reorder"].read({"axis": axis, **value})
        assert check(op, [array], [expected], 1) is not None


@given(tensors(SHAPES.filter(bool)), st.integers(0, 3), st.integers(0, 3), st.data())
@LAYOUT
def test_pad_and_slice_undo_each_other(array, before, after, data):
    if array.dtype == STRING:
        return
    axis = data.draw(st.integers(0, array.ndim - 1))
    widths = [(before, after) if k == axis else (0, 0) for k in range(array.ndim)]
    expected = np.concatenate(
        [
            np.ones([before if k == axis else n for k, n in enumerate(array.shape)], array.dtype),
            array,
            np.ones([after if k == axis else n for k, n in enumerate(array.shape)], array.dtype),
        ],
        axis,
    )
    assert expected.shape == np.pad(np.zeros(array.shape), widths).shape
    pad = OPS["pad"].read({"axis": axis, "before": before, "after": after, "value": 1})
    back = check(pad, [array], [expected], 1)
    assert back is not None
    assert back.exactness == "exact"
    assert check(back, [expected], [array], 1) == pad


def test_nothing_but_the_constant_is_cut_off_by_the_way_back_of_pad():
    back = OPS["pad"].read({"axis": 0, "before": 1, "value": 2}).inverse()
    (found,) = back.apply([View.of(np.array([2.0, 3]))], 1)
    assert found.numpy().tolist() == [3]
    nan = OPS["slice"].read({"axis": 0, "start": 1, "pad": math.nan})
    assert nan.apply([View.of(np.array([np.nan, 3]))], 1)[0].numpy().tolist() == [3]
    (found,) = back.apply([View.of(np.array([2.5, 3]))], 1)
    with pytest.raises(OpError, match=r"what is cut off is not 2\.0 everywhere"):
        found.numpy()


def test_sizes_of_pads_and_slices_are_bound_by_name():
    pad = OPS["pad"].read({"axis": 0, "after": "n"}).bind({"n": 2})
    assert pad.apply([View.of(np.ones(1))], 1)[0].shape == (3,)
    cut = OPS["slice"].read({"axis": 0, "stop": "n"}).bind({"n": 2})
    assert cut.apply([View.of(np.ones(5))], 1)[0].shape == (2,)
    with pytest.raises(IrreversibleError, match="pad does not know the size 'n'"):
        OPS["pad"].read({"axis": 0, "after": "n"}).inverse()


# Model-level ops: values against NumPy in float64.


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def applied(name: str, value: Any, arrays: Sequence[Array]) -> list[Array]:
    op = OPS[name].read(value)
    assert op.exactness == "lossy"
    assert written(op) == op
    return [view.numpy() for view in op.apply([View.of(array) for array in arrays], 2)]


@pytest.mark.parametrize("biased", [False, True])
def test_a_folded_batch_norm_computes_the_same(biased):
    kernel, x = normal(5, 3), normal(7, 5)
    bias, gamma, beta, mean = (normal(3, seed=k) for k in range(1, 5))
    variance = normal(3, seed=5) ** 2
    roles = ["kernel", *(["bias"] if biased else []), "gamma", "beta", "mean", "variance"]
    sources = [kernel, *([bias] if biased else []), gamma, beta, mean, variance]
    value = {"axis": "i [o]", "epsilon": 1e-2, "of": roles}
    folded, shift = applied("fold_batchnorm", value, sources)
    y = x @ kernel.astype("f8") + (bias if biased else 0)
    expected = (y - mean) * gamma / np.sqrt(variance.astype("f8") + 1e-2) + beta
    np.testing.assert_allclose(x @ folded + shift, expected, atol=1e-5)
    assert folded.dtype == shift.dtype == np.float32


@pytest.mark.parametrize(
    ("value", "scale", "spread"),
    [
        ({}, (), (1, 1)),
        ({}, (1,), (1, 1)),
        ({"axis": "[o] i"}, (4,), (4, 1)),
        ({"axis": 1}, (6,), (1, 6)),
        ({}, (2, 6), (2, 6)),
        ({}, (4, 3), (4, 3)),
    ],
)
@pytest.mark.parametrize("pointed", [False, True])
def test_quantised_numbers_are_read(value, scale, spread, pointed):
    q = np.arange(-12, 12, dtype=np.int8).reshape(4, 6)
    scales = np.abs(normal(*scale)) + np.float32(0.5)
    points = np.full(scale, 3, np.int8)
    full = np.repeat(np.repeat(scales.reshape(spread), 4 // spread[0], 0), 6 // spread[1], 1)
    expected = (q.astype(np.float32) - (3 if pointed else 0)) * full
    (found,) = applied("dequantise", value, [q, scales, *([points] if pointed else [])])
    np.testing.assert_array_equal(found, expected, strict=True)


def test_summed_tensors_are_added():
    arrays = [normal(2, 3, seed=k) for k in range(3)]
    (found,) = applied("sum", {}, arrays)
    np.testing.assert_array_equal(found, arrays[0] + arrays[1] + arrays[2], strict=True)


@pytest.mark.parametrize(
    ("name", "value", "exactness"),
    [
        ("cast", "float64", "rounding"),
        ("cast", {"from": "float32", "to": "float64"}, "exact"),
        ("cast", {"from": "float64", "to": "float32"}, "rounding"),
        ("scale", 3, "rounding"),
        ("scale", {"divisor": 4}, "exact"),
        ("add", 1.0, "rounding"),
        ("add", 0, "exact"),
        ("negate", {}, "exact"),
        ("pad", {"axis": 0, "before": 1}, "exact"),
        ("slice", {"axis": 0, "start": 1}, "lossy"),
        ("slice", {"axis": 0, "start": 1, "pad": 0}, "exact"),
        ("slice", {"axis": 0, "stop": 5, "pad": 0}, "lossy"),
        ("part", {"axis": 0, "index": 0, "of": 1}, "exact"),
        ("part", {"axis": 0, "index": 0, "of": 2}, "lossy"),
        ("epsilon", {"from": 1, "to": 2}, "rounding"),
        ("epsilon", {"from": 1, "to": 1}, "exact"),
    ],
)
def test_an_op_says_how_exact_it_is(name, value, exactness):
    op = OPS[name].read(value)
    assert op.exactness == exactness
    if exactness == "lossy":
        with pytest.raises(IrreversibleError, match=name):
            op.inverse()


# One branch of several.


def test_an_op_on_one_branch_leaves_the_others():
    op = On(branch=1, op=OPS["transpose"].read([1, 0]))
    arrays = [normal(2, 3), normal(2, 3, seed=1), normal(2, 3, seed=2)]
    found = op.apply([View.of(array) for array in arrays], 1)
    assert [view.shape for view in found] == [(2, 3), (3, 2), (2, 3)]
    assert op.inverse() == op
    assert op.to_file() == {"branch": 1, "transpose": [1, 0]}
    assert (op.exactness, op.doubts(found)) == ("exact", [])


# Ops of other packages.


class Roll(UnaryOp):
    """Move the first element of an axis to its end."""

    name: ClassVar[str] = "roll"
    about: ClassVar[str] = "move elements around the end of the first axis: `{by: 1}`"

    by: int

    def apply_one(self, view: View) -> View:
        cut = self.by % view.shape[0]
        return concatenate([view.take(0, cut, view.shape[0]), view.take(0, 0, cut)], 0)

    def inverse(self) -> Op:
        return Roll(by=-self.by)


@dataclass
class Point:
    name: str
    brings: Any
    value: str = "other.package:thing"
    dist: Any = None

    def load(self) -> Any:
        if isinstance(self.brings, Exception):
            raise self.brings
        return self.brings


@pytest.fixture
def installed(monkeypatch):
    """Entry points that an installed package would have."""

    def install(*points: Point) -> None:
        monkeypatch.setattr(OPS, "_brought", None)
        monkeypatch.setattr("importlib.metadata.entry_points", lambda group: list(points))

    return install


def test_an_op_of_another_package_is_an_op_like_ours(installed):
    installed(Point("roll", Roll))
    assert list(OPS)[-1] == "roll"
    assert len(OPS) == len(list(OPS))
    rules = loads("mapping: 1\nrules: [{source: a, target: b, ops: [roll: {by: 1}]}]")
    op = rules.rules[0].ops[0]
    array = np.arange(4)
    check(op, [array], [np.roll(array, -1)], 1)
    with pytest.raises(MappingError, match=r"MAP103.*unknown key 'bye'"):
        loads("mapping: 1\nrules: [{source: a, target: b, ops: [roll: {by: 1, bye: 1}]}]")


def test_no_package_is_asked_for_ops_of_ours(monkeypatch):
    monkeypatch.setattr(OPS, "_brought", None)
    monkeypatch.setattr("importlib.metadata.entry_points", None)
    assert OPS["cast"].name == "cast"
    loads("mapping: 1\nrules: [{source: a, target: b, ops: [cast: float16]}]")


@pytest.mark.parametrize(
    ("name", "brings", "message"),
    [
        ("roll", ImportError("no module"), "cannot be imported: ImportError: no module"),
        ("roll", 3, "is no subclass of converter.ops.Op"),
        ("rolls", Roll, "needs a `name` that is the entry point's"),
        ("cast", OPS["cast"], "and no op's of ours"),
        ("roll", type("Silent", (Roll,), {"about": ""}), "does not say what it is `about`"),
    ],
)
def test_what_is_no_op_is_refused_where_it_is_named(installed, name, brings, message):
    installed(Point(name, brings))
    with pytest.raises(MappingError, match=f"(?s)MAP109.*'{name}'.*{message}"):
        loads("mapping: 1\nrules: [{source: a, target: b, ops: [rol: {by: 1}]}]")
