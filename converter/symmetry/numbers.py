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
LOADED = " (was the second ever loaded?)"
NARROW = 2  # bytes of a dtype in which a number is measured so badly that those beside it count
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
        for find in (_constant, _rounding, _uniform, _blockwise, _ranged, _function, _each):
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
    return f"filling it with {_number(float(b.flat[0]))}{LOADED}", {}, True


def _rounding(a: Array, b: Array, dtype: np.dtype[Any]) -> Found | None:
    """Nothing but the last places: the same numbers, computed in another way."""
    slack = ROUNDING * _spacing(np.maximum(np.abs(a), np.abs(b)), dtype)
    same = dtype.kind not in "iu" and a.size > 1 and np.all(np.abs(b - a) <= slack)
    return ("", {}, False) if same else None


def _uniform(a: Array, b: Array, dtype: np.dtype[Any]) -> Found | None:
    for word, number, op, exact in _shifts(a, b, dtype):
        return f"{word} {_number(number)}", op, exact
    return None


Shift = tuple[str, float, dict[str, Any], bool]  # in words, the number, the op, is it exact?


def _shifts(a: Array, b: Array, dtype: np.dtype[Any]) -> Iterator[Shift]:
    """One number added, or multiplied with, that turns one array into the other."""
    if a.size < 2:  # noqa: PLR2004 - two single numbers always differ by something
        return
    slack = ROUNDING * _spacing(np.maximum(np.abs(a), np.abs(b)), dtype)
    at = np.argmin(np.abs(a))  # where the sum was rounded least
    gap = float(b.flat[at] - a.flat[at])
    if np.all(np.abs(b - a - gap) <= 2 * slack) and not np.array_equal(a, b):
        yield "adding", *_nicest("add", gap, a, b, dtype, slack)
    if not a.any():
        return
    weights = a / np.max(np.abs(a))
    ratio = float(np.sum(weights * b) / np.sum(weights * a))
    if ratio not in (0.0, 1.0) and np.all(np.abs(b - a * ratio) <= 2 * slack):
        value, op, exact = _nicest("scale", ratio, a, b, dtype, slack)
        yield "scaling by", value, {} if dtype.kind in "iu" else op, exact  # no op scales integers


def _nicest(  # noqa: PLR0913 - a number, both arrays and what they allow
    op: str, value: float, a: Array, b: Array, dtype: np.dtype[Any], slack: Array
) -> tuple[float, dict[str, Any], bool]:
    """The roundest number near a value with which an op gives the second array; exactly, if any."""
    beside = (0, 1, -1) if dtype.itemsize <= NARROW else (0,)
    short = [_short(value, digits, k) for digits in DIGITS for k in beside]
    inverse = [1 / _short(1 / value, digits) for digits in DIGITS] if value else []
    few = 5 * len(beside)
    tried = [*short[:few], *inverse[:5], *short[few:], *inverse[5:], value]
    tried.append(float(dtype.type(value)))
    own = a.astype(dtype)
    for number in tried:
        for form in _forms(op, number):
            if np.array_equal(_done(own, op, form).astype(np.float64), b):
                return number, {op: form}, True
    for number in tried:
        if np.all(np.abs((a + number if op == "add" else a * number) - b) <= slack):
            return number, {op: _forms(op, number)[0]}, False
    return value, {op: value}, False


def _forms(op: str, number: float) -> list[float | dict[str, float]]:
    """How the language says a number: a scale by 1/255 is a division by 255."""
    divisor = float(f"{1 / number:.6g}") if op == "scale" and number else 0.0
    whole = divisor and 1 / divisor == number
    return [{"divisor": divisor}, number] if whole else [number]


def _done(own: Array, op: str, form: float | dict[str, float]) -> Array:
    """What the op makes of an array, computed in its own dtype."""
    number = np.asarray(form if isinstance(form, float) else form["divisor"]).astype(own.dtype)
    if op == "add":
        return np.asarray(own + number)
    return np.asarray((own * number if isinstance(form, float) else own / number).astype(own.dtype))


def _short(value: float, digits: int, beside: int = 0) -> float:
    """A number to some digits, or so many units of the last digit beside it."""
    unit = 10.0 ** (int(f"{value:e}".partition("e")[2]) - digits + 1)
    return float(f"{value + beside * unit:.{digits - 1}e}")


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
            if (
                len(changed) < count
                and found[0]
                and all(f and f[:3] == found[0][:3] for f in found)
            ):
                word, value, op, exact = found[0]
                which = ", ".join(map(str, changed))
                blocks = (
                    f"block{'s' if len(changed) > 1 else ''} {which} of {count} along axis {axis}"
                )
                one = {"value": value, "axis": axis, "block": changed[0], "of": count}
                op = {"add": one} if "add" in op and len(changed) == 1 else {}
                return f"{word} {_number(value)} in {blocks}", op, exact
    return None


def _ranged(a: Array, b: Array, dtype: np.dtype[Any]) -> Found | None:
    """A change of one range along an axis: of what was never loaded, for one."""
    differ = a != b
    for axis, n in enumerate(a.shape):
        rest = tuple(k for k in range(a.ndim) if k != axis)
        rows = np.flatnonzero(np.any(differ, rest))
        start, stop = int(rows[0]), int(rows[-1]) + 1
        if stop - start == n or (a.ndim == 1 and stop - start < 2):  # noqa: PLR2004
            continue
        cut = (*[slice(None)] * axis, slice(start, stop))
        found = _constant(a[cut], b[cut], dtype) or _uniform(a[cut], b[cut], dtype)
        if found:
            text = found[0].removesuffix(LOADED)
            return f"{text} in [{start}, {stop}) of axis {axis} ({n})", {}, found[2]
    return None


def _each(a: Array, b: Array, dtype: np.dtype[Any]) -> Found | None:
    """A factor, or a summand, of its own for every index of an axis."""
    if a.ndim < 2:  # noqa: PLR2004
        return None
    summed = 4 if dtype.itemsize == a.itemsize else 1  # the factors are no better than the values
    slack = 2 * summed * ROUNDING * _spacing(np.maximum(np.abs(a), np.abs(b)), dtype)
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
    fits: list[tuple[float, int, str]] = []
    for name, function in FUNCTIONS:
        result = function(a)
        if np.isfinite(result).all() and np.all(np.abs(result - b) <= slack):
            rounded = result.astype(dtype).astype(np.float64)
            fits.append((float(np.mean(np.abs(rounded - b))), len(fits), name))
    return (min(fits)[2], {}, False) if fits else None  # the nearest: epsilons are alike


def _spacing(values: Array, dtype: np.dtype[Any]) -> Array:
    """The distance to the next number of a dtype, for each value."""
    if dtype.kind in "iu":
        return np.zeros_like(values)
    info = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    return np.maximum(values, float(info.tiny)) * float(info.eps)


def _number(value: float) -> str:
    return f"{value:.9g}"
