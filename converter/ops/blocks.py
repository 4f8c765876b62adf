"""Ops on ranges along one axis: reorder, slice, pad."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Annotated, Any, ClassVar

import numpy as np

from converter.errors import IrreversibleError, OpError
from converter.layout import Array, Computed, View, concatenate
from converter.ops.base import Exactness, Op, UnaryOp, join
from converter.ops.pieces import AxisOp
from converter.ops.values import constant
from converter.record import AtLeast, field

Count = Annotated[int, AtLeast(0)] | str  # or the name of a size


class Reorder(UnaryOp, AxisOp):
    """Put equal blocks along an axis into another order, as gates of an LSTM or GRU.

    `order` says which block comes at each place.  `from` and `to` name the blocks instead, before
    and after: `from: i f c o` and `to: i o f c`.
    """

    name: ClassVar[str] = "reorder"
    about: ClassVar[str] = "equal blocks in another order: `{axis: '[g]', from: z r h, to: r z h}`"

    order: tuple[int, ...] | None = field(
        default=None, about="the block that comes at each place, from 0"
    )
    source: str | None = field(default=None, key="from", about="the blocks, by name")
    to: str | None = field(default=None, about="the same names as they stand afterwards")

    def check(self) -> None:
        by_name = self.source is not None and self.to is not None
        if (self.order is None) != by_name or (self.source is None) != (self.to is None):
            raise ValueError("give `order`, or both `from` and `to`")
        if self.order is not None and sorted(self.order) != list(range(len(self.order))):
            raise ValueError(f"{list(self.order)} is not a permutation of the blocks from 0")
        before, after = (self.source or "").split(), (self.to or "").split()
        if sorted(before) != sorted(after) or len(set(before)) < len(before):
            raise ValueError(f"'{self.to}' does not name the blocks of '{self.source}' once each")

    @property
    def places(self) -> tuple[int, ...]:
        """`order`, however it is given."""
        if self.order is not None:
            return self.order
        before = (self.source or "").split()
        return tuple(before.index(block) for block in (self.to or "").split())

    def apply_one(self, view: View) -> View:
        axis, places = self.position(view), self.places
        length, rest = divmod(view.shape[axis], max(1, len(places)))
        if rest or not places:
            raise OpError(
                f"reorder: an axis of {view.shape[axis]} has no {len(places)} equal blocks",
                found=join(view.shape),
            )
        blocks = [view.take(axis, k * length, (k + 1) * length) for k in places]
        return concatenate(blocks, axis)

    def inverse(self) -> Reorder:
        if self.order is None:
            return self.replaced(source=self.to, to=self.source)
        return self.replaced(order=tuple(self.order.index(k) for k in range(len(self.order))))

    def doubts_one(self, view: View) -> list[str]:
        axis = self.position(view)
        if self.places == tuple(range(len(self.places))) or view.shape[axis] == 0:
            return []
        return [f"no shape shows the order of the {len(self.places)} blocks along axis {axis}"]


class Slice(UnaryOp, AxisOp):
    """Keep the range [`start`, `stop`) along an axis; a negative `stop` counts from the end.

    What is cut off is lost, unless `pad` says that it is this constant everywhere: then the way
    back is to put it there again, and reading checks that it is so.
    """

    name: ClassVar[str] = "slice"
    about: ClassVar[str] = "keep a range along an axis: `{axis: '[v] d', start: 1}`"

    start: Count = field(default=0, about="the first that is kept, from 0")
    stop: int | str | None = field(
        default=None, about="the first that is not; counted from the end when negative"
    )
    pad: int | float | None = field(default=None, about="what every value cut off is")

    def bind(self, sizes: Mapping[str, int]) -> Slice:
        known = {
            field: sizes.get(value, value)
            for field, value in (("start", self.start), ("stop", self.stop))
            if isinstance(value, str)
        }
        return self.replaced(**known)

    @property
    def exactness(self) -> Exactness:
        return "lossy" if self._after is None else "exact"

    @property
    def _after(self) -> int | None:
        """How much is cut off at the end when the way back can know, and put it there."""
        if self.pad is None or isinstance(self.stop, str):
            return None
        stop = self.stop or 0
        return -stop if stop < 0 or self.stop is None else None

    def apply_one(self, view: View) -> View:
        axis = self.position(view)
        size = view.shape[axis]
        start = counted(self, self.start)
        stop = size if self.stop is None else counted(self, self.stop)
        stop += size if stop < 0 else 0
        if not start <= stop <= size:
            raise OpError(
                "slice: the range is not inside the axis",
                expected=f"0 <= start <= stop <= {size}",
                found=f"[{start}, {stop}) of {join(view.shape)}",
            )
        kept = view.take(axis, start, stop)
        cut = [view.take(axis, 0, start), view.take(axis, stop, size)]
        if self.pad is None or not any(part.size for part in cut):
            return kept
        fill = scalar(self, self.pad, view.dtype)
        return View.over(_Guarded(kept, [part for part in cut if part.size], fill), kept.shape)

    def inverse(self) -> Pad:
        if self._after is None:
            raise IrreversibleError(
                "slice keeps a part and loses the rest",
                hint="split, and name every piece; or say what is cut off: `pad: 0`, and a "
                "negative `stop` or none",
            )
        return Pad(axis=self.axis, before=self.start, after=self._after, value=self.pad or 0)


class Pad(UnaryOp, AxisOp):
    """Put a constant before and after what there is along an axis."""

    name: ClassVar[str] = "pad"
    about: ClassVar[str] = "a constant before and after: `{axis: '[v] d', before: 1}`"

    before: Count = field(default=0, about="how many come before")
    after: Count = field(default=0, about="how many come after")
    value: int | float = field(default=0, about="the constant")

    def bind(self, sizes: Mapping[str, int]) -> Pad:
        known = {
            field: sizes.get(value, value)
            for field, value in (("before", self.before), ("after", self.after))
            if isinstance(value, str)
        }
        return self.replaced(**known)

    def apply_one(self, view: View) -> View:
        axis = self.position(view)
        fill = scalar(self, self.value, view.dtype)

        def block(count: int) -> View:
            shape = (*view.shape[:axis], count, *view.shape[axis + 1 :])
            storage = Computed(prod(shape), view.dtype, lambda: np.full(shape, fill, view.dtype))
            return View.over(storage, shape)

        before, after = counted(self, self.before), counted(self, self.after)
        blocks = [block(before), view, block(after)]
        return concatenate([one for one in blocks if one is view or one.shape[axis]], axis)

    def inverse(self) -> Slice:
        if isinstance(self.after, str):
            raise IrreversibleError(
                f"pad does not know the size '{self.after}'", hint="`sizes:` or --size"
            )
        return Slice(axis=self.axis, start=self.before, stop=-self.after or None, pad=self.value)


class _Guarded:
    """The elements that a slice keeps; reading fails when those cut off are not the constant."""

    def __init__(self, kept: View, cut: list[View], fill: Array) -> None:
        self.kept, self.cut, self.fill = kept, cut, fill
        self.dtype, self.size = kept.dtype, kept.size
        self.checked = False

    def read(self, start: int, out: Array) -> None:
        if not self.checked:
            for part in self.cut:
                values = part.numpy()
                both_nan = (values != values) & (self.fill != self.fill)  # noqa: PLR0124
                if not np.all((values == self.fill) | both_nan):
                    raise OpError(
                        f"slice: what is cut off is not {self.fill} everywhere",
                        hint="without `pad` it is cut off all the same: `lossy: true`",
                    )
            self.checked = True
        self.kept.read(start, out)


def counted(op: Op, value: int | str) -> int:
    """The number; `OpError` when it is the name of a size that is not known."""
    if isinstance(value, str):
        raise OpError(f"{op.name} needs the size '{value}'", hint="`sizes:` or --size")
    return value


def scalar(op: Op, value: float, dtype: np.dtype[Any]) -> Array:
    """The number as one of a dtype; `OpError` when it is none."""
    if dtype.kind == "O":
        raise OpError(f"{op.name} does not fit", expected="numbers", found="string")
    try:
        return constant(value, dtype)
    except ValueError as error:
        raise OpError(f"{op.name}: {error}") from error
