"""How the numbers of one array became those of another: added to, scaled, or through a function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np

from converter.layout import Array, View
from converter.symmetry.changes import Change

BLOCKS = 16
ROUNDING = 3.0  # units in the last place that a few operations may be off
EPSILONS = (0.0, 1e-3, 1e-5, 1e-6, 1e-7, 1e-12)
DIGITS = range(1, 10)
WHOLE = 1 << 53  # float64 holds every integer up to here


def _unlazy(view: View) -> View:
    raise NotImplementedError


def change_of(first: Array, second: Array) -> tuple[Change, bool] | None:
    """The change of numbers between two arrays of one shape, and whether it is exact."""
    if first.dtype.kind in "iu" and not _narrow(first, second):
        return _shifted(first, second)
    with np.errstate(all="ignore"):
        a, b = first.astype(np.float64), second.astype(np.float64)
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            return None
        for find in (_constant, _uniform, _blockwise, _function, _each):
            found = find(a, b, first.dtype)
            if found:
                text, op, exact = found
                return Change(text, _unlazy, lambda _, op=op: op), exact  # type: ignore[misc]
    return None


def _narrow(*integers: Array) -> bool:
    """Does float64 hold each of them?"""
    return all(int(each.min()) > -WHOLE and int(each.max()) < WHOLE for each in integers)


def _shifted(first: Array, second: Array) -> tuple[Change, bool] | None:
    """One number added to integers that float64 does not hold."""
    a, b = int(first.flat[0]), int(second.flat[0])
    gap = second - first  # modulo 2**64
    if first.size < 2 or a == b or not np.all(gap == gap.flat[0]):  # noqa: PLR2004
        return None
    return Change(f"adding {b - a}", _unlazy, lambda _: {"add": b - a}), True


Found = tuple[str, dict[str, Any], bool]


def _constant(a: Array, b: Array, _: np.dtype[Any]) -> Found | None:
    """The second holds one value everywhere."""
    if b.size < 2 or b.min() != b.max() or a.min() == a.max():  # noqa: PLR2004
        return None
    return f"filling it with {_number(float(b.flat[0]))} (was the second ever loaded?)", {}, True


def _uniform(a: Array, b: Array, dtype: np.dtype[Any]) -> Found | None:
    for word, op, value, exact in _shifts(a, b, dtype):
        divisor = float(f"{1 / value:.6g}") if op == "scale" else 0.0
        whole = divisor and 1 / divisor == value
        return f"{word} {_number(value)}", {op: {"divisor": divisor} if whole else value}, exact
    return None


def _shifts(a: Array, b: Array, dtype: np.dtype[Any]) -> Iterator[tuple[str, str, float, bool]]:
    """One number added, or multiplied with, that turns one array into the other."""
    if a.size < 2:  # noqa: PLR2004 - two single numbers always differ by something
        return
    slack = ROUNDING * _spacing(np.maximum(np.abs(a), np.abs(b)), dtype)
    at = np.argmin(np.abs(a))
    gap = float(b.flat[at] - a.flat[at])
    if np.all(np.abs(b - a - gap) <= 2 * slack) and not np.array_equal(a, b):
        value, exact = _nicest(gap, lambda c: a + c, b, dtype, slack)
        yield "adding", "add", value, exact
    at = np.argmax(np.abs(a))
    if a.flat[at] == 0:
        return
    ratio = float(b.flat[at] / a.flat[at])
    if ratio not in (0.0, 1.0) and np.all(np.abs(b - a * ratio) <= 2 * slack):
        value, exact = _nicest(ratio, lambda c: a * c, b, dtype, slack)
        yield "scaling by", "scale", value, exact


def _nicest(
    value: float, function: Callable[[float], Array], b: Array, dtype: np.dtype[Any], slack: Array
) -> tuple[float, bool]:
    """The roundest number near a value that gives the second array; exactly, if one does."""
    short = [float(f"{value:.{digits - 1}e}") for digits in DIGITS]
    inverse = [1 / float(f"{1 / value:.{digits - 1}e}") for digits in DIGITS] if value else []
    tried = [*short[:5], *inverse[:5], *short[5:], *inverse[5:], value, float(dtype.type(value))]
    for number in tried:
        if np.array_equal(function(number).astype(dtype).astype(np.float64), b):
            return number, True
        rounded = function(float(np.asarray(number).astype(dtype))).astype(dtype)
        if np.array_equal(rounded.astype(np.float64), b):
            return number, True
    for number in tried:
        if np.all(np.abs(function(number) - b) <= slack):
            return number, False
    return value, False


def _blockwise(a: Array, b: Array, dtype: np.dtype[Any]) -> Found | None:
    """A number for some of the equal blocks along an axis: a forget gate's one."""
    for axis in range(a.ndim):
        n = a.shape[axis]
        for count in range(2, min(BLOCKS, n) + 1):
            if n % count or (a.ndim == 1 and n // count < 2):  # noqa: PLR2004
                continue
            pairs = list(zip(np.split(a, count, axis), np.split(b, count, axis), strict=True))
            changed = [k for k, (x, y) in enumerate(pairs) if not np.array_equal(x, y)]
            found = [next(_shifts(*pairs[k], dtype), None) for k in changed]
            if len(changed) < count and len({f and f[:3] for f in found}) == 1 and found[0]:
                word, op, value, exact = found[0]
                which = ", ".join(map(str, changed))
                blocks = (
                    f"block{'s' if len(changed) > 1 else ''} {which} of {count} along axis {axis}"
                )
                one = {"value": value, "axis": axis, "block": changed[0], "of": count}
                value_op = {op: one} if op == "add" and len(changed) == 1 else {}
                return f"{word} {_number(value)} in {blocks}", value_op, exact
    return None


def _each(a: Array, b: Array, dtype: np.dtype[Any]) -> Found | None:
    """A factor, or a summand, of its own for every index of an axis."""
    if a.ndim < 2:  # noqa: PLR2004
        return None
    slack = 2 * ROUNDING * _spacing(np.maximum(np.abs(a), np.abs(b)), dtype)
    for axis in range(a.ndim):
        rest = tuple(k for k in range(a.ndim) if k != axis)
        if a.size // a.shape[axis] < 2:  # noqa: PLR2004
            continue
        ratio = np.sum(a * b, rest, keepdims=True) / np.sum(a * a, rest, keepdims=True)
        gap = np.mean(b - a, rest, keepdims=True)
        for word, guess, values in (("scaling", a * ratio, ratio), ("adding to", a + gap, gap)):
            if np.all(np.abs(guess - b) <= slack):
                some = ", ".join(_number(float(v)) for v in values.reshape(-1)[:3])
                what = "a factor" if word == "scaling" else "a number"
                return (
                    f"{word} every index of axis {axis} by {what} of its own ({some}, ...)",
                    {},
                    False,
                )
    return None


FUNCTIONS: tuple[tuple[str, Callable[[Array], Array]], ...] = (
    ("the square root (a deviation for a variance?)", np.sqrt),
    ("squaring (a variance for a deviation?)", np.square),
    ("1/x", np.reciprocal),
    ("exp", np.exp),
    ("log", np.log),
    *((f"1/sqrt(x + {eps:g})", lambda x, eps=eps: 1 / np.sqrt(x + eps)) for eps in EPSILONS),
    *((f"sqrt(x + {eps:g})", lambda x, eps=eps: np.sqrt(x + eps)) for eps in EPSILONS[1:]),
)


def _function(a: Array, b: Array, dtype: np.dtype[Any]) -> Found | None:
    if dtype.kind in "iu" or a.size < 2:  # noqa: PLR2004
        return None
    slack = 2 * ROUNDING * _spacing(np.abs(b), dtype)
    for name, function in FUNCTIONS:
        result = function(a)
        if np.isfinite(result).all() and np.all(np.abs(result - b) <= slack):
            return name, {}, False
    return None


def _spacing(values: Array, dtype: np.dtype[Any]) -> Array:
    """The distance to the next number of a dtype, for each value."""
    if dtype.kind in "iu":
        return np.zeros_like(values)
    info = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    return np.maximum(values, float(info.tiny)) * float(info.eps)


def _number(value: float) -> str:
    return f"{value:.9g}"
