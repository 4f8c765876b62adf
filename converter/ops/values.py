"""Ops that change values: cast."""

from __future__ import annotations

import cmath
import math
import re
from functools import lru_cache
from typing import Annotated, Any, ClassVar

import ml_dtypes
import numpy as np

from converter.errors import IrreversibleError, OpError
from converter.layout import View
from converter.ops.base import Exactness, UnaryOp
from converter.record import Check, field
from converter.tensors import dtype_name, dtype_of

SMALL = 2  # bytes of a dtype of which every value can be tried


def numeric(name: str) -> np.dtype[Any]:
    """`dtype_of` for what a person wrote: NumPy would read codes, some of them as Python."""
    if not re.fullmatch("[a-z][a-z0-9_]+", name):
        raise ValueError(f"'{name}' is not a dtype")
    return dtype_of(name)


@lru_cache
def holds(wide: np.dtype[Any], narrow: np.dtype[Any]) -> bool:
    """Does a dtype hold every value of another?  A NaN is a NaN, whatever its other bits.

    NumPy alone cannot say: it calls 64-bit integers safe in a float64, and float8 in any float8.
    """
    if (narrow.kind == "c") != (wide.kind == "c"):
        return False
    span = integers(narrow)
    if span and narrow.itemsize > SMALL and not integers(wide):
        return narrow.itemsize == 4 and wide == np.float64  # noqa: PLR2004
    if (span and integers(wide)) or (not span and narrow.itemsize > SMALL):
        return bool(np.can_cast(narrow, wide, "safe"))
    if not np.can_cast(narrow, wide, "unsafe"):
        return False
    bits = f"u{narrow.itemsize}"
    with np.errstate(all="ignore"):
        if span:
            values = np.array(span)
        else:  # every one, by way of a float64, which clears the bits that are not used
            values = np.arange(1 << (8 * narrow.itemsize)).astype(bits).view(narrow).astype(float)
        before = values.astype(narrow)
        after = before.astype(wide).astype(narrow)
        nan = np.isnan(before.astype(float)) & np.isnan(after.astype(float))
    return bool(np.all(nan | (before.view(bits) == after.view(bits))))


def integers(dtype: np.dtype[Any]) -> range:
    """The values of an integer dtype; none of others."""
    if dtype.kind == "b":
        return range(2)
    try:
        info = ml_dtypes.iinfo(dtype)  # type: ignore[no-untyped-call]
    except ValueError:
        return range(0)
    return range(int(info.min), int(info.max) + 1)


def constant(fill: float, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """A number as a scalar of a dtype; ValueError when it is not one of its numbers."""
    try:
        with np.errstate(all="ignore"):
            value = np.full((), fill, dtype)
            number = int(value) if integers(dtype) else complex(value.astype(complex))
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{fill} is no {dtype_name(dtype)}") from error
    kept = number == fill if integers(dtype) else cmath.isfinite(number) == math.isfinite(fill)
    if not kept or (math.isnan(fill) and not cmath.isnan(number)):
        raise ValueError(f"{fill} is no {dtype_name(dtype)}")
    return value


def _of_numbers(value: str) -> str:
    if numeric(value).kind == "O":
        raise ValueError("strings cannot be cast")
    return value


def _of_floats(value: str) -> str:
    if not floating(dtype_of(value)):
        raise ValueError(f"'{value}' is no dtype of floating-point numbers")
    return value


Numbers = Annotated[str, Check(_of_numbers)]  # the name of a dtype of numbers


class Cast(UnaryOp):
    """Convert to another dtype, rounding to nearest where it is narrower.

    With `from` the source's dtype is checked, and the way back casts to it: bit-exact when `to`
    holds every value of `from`.
    """

    name: ClassVar[str] = "cast"
    about: ClassVar[str] = "another dtype: `float16`, or `{from: bfloat16, to: float32}`"

    to: Numbers = field(about="the dtype's NumPy name")
    source: Numbers | None = field(default=None, key="from", about="the dtype before")

    @classmethod
    def long(cls, value: Any) -> Any:
        return {"to": value} if isinstance(value, str) else value

    @property
    def exactness(self) -> Exactness:
        known = self.source is not None and holds(dtype_of(self.to), dtype_of(self.source))
        return "exact" if known else "rounding"

    def apply_one(self, view: View) -> View:
        found = dtype_name(view.dtype)
        if found == "string" or self.source not in (None, found):
            raise OpError("cast does not fit", expected=self.source or "numbers", found=found)
        to = dtype_of(self.to)
        if view.dtype.kind == "c" and to.kind != "c":
            raise OpError(
                "cast would discard the imaginary part", expected="complex64", found=self.to
            )
        if not np.can_cast(view.dtype, to, "unsafe"):
            raise OpError(f"there is no cast of {found} to {self.to}", hint="go over float32")
        return view.astype(to)

    def inverse(self) -> Cast:
        if self.source is None:
            raise IrreversibleError(
                "cast does not know the dtype before it",
                hint=f"write `cast: {{from: ..., to: {self.to}}}`",
            )
        if not holds(dtype_of(self.to), dtype_of(self.source)):
            raise IrreversibleError(f"casting {self.source} to {self.to} has no exact way back")
        return Cast(to=self.source, source=self.to)

    def to_file(self) -> Any:
        return self.to if self.source is None else {"from": self.source, "to": self.to}


class CastFloats(Cast):
    """A cast of floating-point numbers that leaves tensors of other kinds alone.

    Not in `OPS`: a mapping says which of its tensors it casts.
    """

    to: Annotated[Numbers, Check(_of_floats)] = field(about="the dtype's NumPy name")

    def apply_one(self, view: View) -> View:
        return super().apply_one(view) if floating(view.dtype) else view


def floating(dtype: np.dtype[Any]) -> bool:
    """Is it a dtype of real floating-point numbers, NumPy's or ml_dtypes'?"""
    try:
        ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    except ValueError:
        return False
    return dtype.kind != "c"
