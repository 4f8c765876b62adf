"""Ops that compute, number by number: scale, add, negate, epsilon."""

from __future__ import annotations

import sys
from collections.abc import Callable
from math import frexp
from typing import Annotated, Any, ClassVar

import numpy as np

from converter.errors import OpError
from converter.layout import Array, Elementwise, View, concatenate
from converter.ops.arrange import axes_of
from converter.ops.axes import one_axis
from converter.ops.base import Exactness, UnaryOp
from converter.ops.blocks import scalar
from converter.ops.values import integers
from converter.record import AtLeast, Check, field
from converter.tensors import dtype_name

HALF = 0.5
LARGEST = sys.float_info.max


def elementwise(op: UnaryOp, view: View, function: Callable[[Array], Any]) -> View:
    """A view of the function's results, of the same dtype, in native byte order.

    Where the op undoes what made the view, it is the view before: bit for bit, without rounding
    twice.
    """
    dtype, made = view.dtype.newbyteorder("="), view.storage
    whole = view.contiguous and view.size == made.size
    if whole and isinstance(made, Elementwise) and made.maker == op.inverse():
        return made.view.reshape(view.shape).astype(dtype)

    def compute(block: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(function(block)).astype(dtype, copy=False)

    return View.over(Elementwise(view, compute, dtype, op), view.shape)


class Scale(UnaryOp):
    """Multiply by a factor, or divide by a divisor, in the tensor's own dtype.

    Dividing by 127.5 is not multiplying by 1/127.5: each rounds in its own way.  A power of two is
    exact, as long as no number leaves the range of the dtype.
    """

    name: ClassVar[str] = "scale"
    about: ClassVar[str] = "multiply by a factor or divide: `0.5`, or `{divisor: 127.5}`"

    factor: int | float | None = field(default=None, about="what to multiply by")
    divisor: int | float | None = field(default=None, about="what to divide by")

    @classmethod
    def long(cls, value: Any) -> Any:
        return {"factor": value} if isinstance(value, int | float) else value

    def check(self) -> None:
        if (self.factor is None) == (self.divisor is None):
            raise ValueError("give one of `factor` and `divisor`")
        if not 0 < abs(self.factor or self.divisor or 0) <= LARGEST:
            raise ValueError("a factor is a number, and not zero")

    @property
    def _number(self) -> float:
        return float(self.factor or self.divisor or 0)

    @property
    def exactness(self) -> Exactness:
        return "exact" if abs(frexp(self._number)[0]) == HALF else "rounding"

    def apply_one(self, view: View) -> View:
        if view.dtype.kind == "O" or integers(view.dtype):
            raise OpError(
                "scale needs floating point",
                expected="floating point",
                found=dtype_name(view.dtype),
                hint="cast before it",
            )
        number = scalar(self, self._number, view.dtype.newbyteorder("="))
        if not number:
            raise OpError(f"scale: {self._number} is no {dtype_name(view.dtype)} but zero")
        function = np.multiply if self.factor is not None else np.divide
        return elementwise(self, view, lambda block: function(block, number))

    def inverse(self) -> Scale:
        return Scale(factor=self.divisor, divisor=self.factor)

    def to_file(self) -> Any:
        return {"divisor": self.divisor} if self.factor is None else self.factor


class Add(UnaryOp):
    """Add a constant: everywhere, or to block `block` of `of` equal ones along an axis."""

    name: ClassVar[str] = "add"
    about: ClassVar[str] = "add a constant: `{value: 1.0, axis: '[g]', block: 1, of: 4}`"

    value: int | float = field(about="what is added")
    axis: Annotated[str | int | None, Check(one_axis)] = field(
        default=None, about="the axis of the blocks"
    )
    block: Annotated[int, AtLeast(0)] | None = field(
        default=None, about="which block, from 0; default: all"
    )
    of: Annotated[int, AtLeast(1)] | None = field(default=None, about="how many blocks there are")

    @classmethod
    def long(cls, value: Any) -> Any:
        return {"value": value} if isinstance(value, int | float) else value

    def check(self) -> None:
        if len({value is None for value in (self.axis, self.block, self.of)}) > 1:
            raise ValueError("`axis`, `block` and `of` go together")
        if self.block is not None and self.of is not None and self.block >= self.of:
            raise ValueError(f"block {self.block} of {self.of}: blocks count from 0")
        if not abs(self.value) <= LARGEST:
            raise ValueError("an infinity cannot be taken away again")

    @property
    def exactness(self) -> Exactness:
        return "rounding" if self.value else "exact"

    def apply_one(self, view: View) -> View:
        if integers(view.dtype) == range(2):
            raise OpError("add does not fit", expected="numbers", found="bool")
        number = scalar(self, abs(self.value), view.dtype.newbyteorder("="))
        function = np.add if self.value >= 0 else np.subtract

        def added(part: View) -> View:
            return elementwise(self, part, lambda block: function(block, number))

        if self.axis is None or self.block is None or self.of is None:
            return added(view)
        (axis,) = axes_of(self, self.axis, view)
        size = view.shape[axis]
        length, rest = divmod(size, self.of)
        if rest:
            raise OpError(f"add: an axis of {size} has no {self.of} equal blocks")
        start, stop = self.block * length, (self.block + 1) * length
        before, after = view.take(axis, 0, start), view.take(axis, stop, size)
        parts = [before, added(view.take(axis, start, stop)), after]
        return concatenate([_native(part) for part in parts], axis)

    def inverse(self) -> Add:
        return self.replaced(value=-self.value)

    def to_file(self) -> Any:
        return self.value if self.axis is None else super().to_file()


class Negate(UnaryOp):
    """Change the sign of every number.  Its own inverse."""

    name: ClassVar[str] = "negate"
    about: ClassVar[str] = "change the sign of every number: `{}`"

    def apply_one(self, view: View) -> View:
        span = integers(view.dtype)
        if view.dtype.kind == "O" or (span and span.start == 0):
            raise OpError(
                "negate needs numbers with a sign",
                expected="numbers with a sign",
                found=dtype_name(view.dtype),
            )
        return elementwise(self, view, np.negative)

    def inverse(self) -> Negate:
        return self


class Epsilon(UnaryOp):
    """Make a variance right for a layer with another epsilon: add `from` minus `to`."""

    name: ClassVar[str] = "epsilon"
    about: ClassVar[str] = "shift a variance for another epsilon: `{from: 1.0e-3, to: 1.0e-5}`"

    source: Annotated[float, AtLeast(0)] = field(
        key="from", about="the epsilon of the source's layer"
    )
    to: Annotated[float, AtLeast(0)] = field(about="the epsilon of the target's layer")

    @property
    def exactness(self) -> Exactness:
        return "exact" if self.source == self.to else "rounding"

    def apply_one(self, view: View) -> View:
        if view.dtype.kind == "O" or integers(view.dtype):
            raise OpError(
                "epsilon needs floating point",
                expected="floating point",
                found=dtype_name(view.dtype),
            )
        return Add(value=self.source - self.to).apply_one(view)

    def inverse(self) -> Epsilon:
        return Epsilon(source=self.to, to=self.source)


def _native(view: View) -> View:
    return view.astype(view.dtype.newbyteorder("="))
