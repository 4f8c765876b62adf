"""Ops that join and cut: concat, split, stack, unstack, part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Self

from converter.errors import IrreversibleError, OpError
from converter.layout import View, concatenate
from converter.ops.arrange import axes_of
from converter.ops.axes import one_axis
from converter.ops.base import Exactness, Op, UnaryOp, join, only_one
from converter.record import AtLeast, Check, field


class AxisOp(Op):
    """An op along one axis, given by number or marked by name as in `[o] i`."""

    axis: Annotated[str | int, Check(one_axis)] = field(
        about="the axis: a number, or names with one in brackets"
    )

    @classmethod
    def long(cls, value: Any) -> Any:
        return value if isinstance(value, dict) else {"axis": value}

    def position(self, view: View) -> int:
        """The axis' position in a view."""
        return axes_of(self, self.axis, view)[0]

    def to_file(self) -> Any:
        fields = super().to_file()
        return self.axis if set(fields) == {"axis"} else fields


class SizedAxisOp(AxisOp):
    """An op along one axis whose pieces may have sizes of their own."""

    sizes: tuple[int | str, ...] | None = field(
        default=None, about="sizes of the pieces, one may be -1; default: equal pieces"
    )

    def bind(self, sizes: Mapping[str, int]) -> Self:
        if self.sizes is None:
            return self
        known = tuple(sizes.get(n, n) if isinstance(n, str) else n for n in self.sizes)
        return self.replaced(sizes=known)

    def lengths(self, total: int, pieces: int) -> list[int]:
        """The length of each piece of an axis of `total`."""
        if self.sizes is None:
            if pieces == 0 or total % pieces:
                raise OpError(
                    f"{self.name}: an axis of {total} cannot be cut into {pieces} equal pieces",
                    hint="give `sizes`",
                )
            return [total // pieces] * pieces
        unknown = [size for size in self.sizes if isinstance(size, str)]
        if unknown:
            raise OpError(f"{self.name} needs the size '{unknown[0]}'", hint="`sizes:` or --size")
        numbers = [int(size) for size in self.sizes]
        if numbers.count(-1) == 1:
            numbers[numbers.index(-1)] = total - sum(n for n in numbers if n >= 0)
        if len(numbers) != pieces or sum(numbers) != total or min(numbers, default=0) < 0:
            raise OpError(
                f"{self.name}: the sizes do not fit",
                expected=f"{pieces} pieces that sum to {total}",
                found=join(numbers),
            )
        return numbers


class Concat(SizedAxisOp):
    """Join the sources along an existing axis, in the order of the rule.

    Pieces that are not equal need `sizes`, by which the way back cuts them.
    """

    name: ClassVar[str] = "concat"
    about: ClassVar[str] = "join several sources along an axis: `[o] i`"
    joins: ClassVar[bool] = True

    def apply(self, views: Sequence[View], pieces: int) -> list[View]:
        axis = self.position(views[0])
        same(self, views, axis)
        found = [view.shape[axis] for view in views]
        if self.sizes is None and len(set(found)) > 1:
            raise OpError(
                "concat: the pieces are not equal, so the way back could not cut them",
                expected=f"pieces of {found[0]}",
                found=join(found),
                hint="give `sizes`",
            )
        if self.sizes is not None and self.lengths(sum(found), len(views)) != found:
            raise OpError("concat: the sizes do not fit", expected=self.sizes, found=join(found))
        return [concatenate(list(views), axis)]

    def inverse(self) -> Split:
        return Split(axis=self.axis, sizes=self.sizes)


class Split(SizedAxisOp):
    """Cut one source along an axis into the rule's targets, in their order."""

    name: ClassVar[str] = "split"
    about: ClassVar[str] = "cut a source along an axis into the targets: `[o] i`"
    cuts: ClassVar[bool] = True

    def apply(self, views: Sequence[View], pieces: int) -> list[View]:
        view = only_one(self, views)
        axis = self.position(view)
        cuts = [0]
        count = len(self.sizes) if self.sizes is not None else pieces
        for length in self.lengths(view.shape[axis], count):
            cuts.append(cuts[-1] + length)
        return [view.take(axis, start, stop) for start, stop in pairwise(cuts)]

    def inverse(self) -> Concat:
        return Concat(axis=self.axis, sizes=self.sizes)


class Stack(AxisOp):
    """Join the sources along a new axis, which stands at `axis` in the result."""

    name: ClassVar[str] = "stack"
    about: ClassVar[str] = "join several sources along a new axis: `[expert] i o`"
    joins: ClassVar[bool] = True

    def apply(self, views: Sequence[View], pieces: int) -> list[View]:
        same(self, views, None)
        shape = views[0].shape
        probe = views[0].reshape((1, *shape))
        axis = self.position(probe)
        raised = [view.reshape((*shape[:axis], 1, *shape[axis:])) for view in views]
        return [concatenate(raised, axis)]

    def inverse(self) -> Unstack:
        return Unstack(axis=self.axis)


class Unstack(AxisOp):
    """Cut one source along an axis into tensors without that axis: the inverse of `stack`."""

    name: ClassVar[str] = "unstack"
    about: ClassVar[str] = "cut a source along an axis that disappears: `[expert] i o`"
    cuts: ClassVar[bool] = True

    def apply(self, views: Sequence[View], pieces: int) -> list[View]:
        view = only_one(self, views)
        axis = self.position(view)
        if view.shape[axis] == 0:
            raise OpError("unstack: the axis has no elements", found=join(view.shape))
        shape = (*view.shape[:axis], *view.shape[axis + 1 :])
        return [view.take(axis, k, k + 1).reshape(shape) for k in range(view.shape[axis])]

    def inverse(self) -> Stack:
        return Stack(axis=self.axis)


class Part(UnaryOp, AxisOp):
    """Keep one of `of` equal pieces along an axis; the others are lost."""

    name: ClassVar[str] = "part"
    about: ClassVar[str] = "keep one of several equal pieces: `{axis: '[o] i', index: 0, of: 3}`"

    index: Annotated[int, AtLeast(0)] = field(about="which piece, from 0")
    of: Annotated[int, AtLeast(1)] = field(about="how many pieces there are")

    def check(self) -> None:
        if self.index >= self.of:
            raise ValueError(f"piece {self.index} of {self.of}: pieces count from 0")

    @property
    def exactness(self) -> Exactness:
        return "exact" if self.of == 1 else "lossy"

    def apply_one(self, view: View) -> View:
        axis = self.position(view)
        length, rest = divmod(view.shape[axis], self.of)
        if rest:
            raise OpError(f"part: an axis of {view.shape[axis]} has no {self.of} equal pieces")
        return view.take(axis, self.index * length, (self.index + 1) * length)

    def inverse(self) -> Op:
        if self.of == 1:
            return self
        raise IrreversibleError(
            f"part keeps 1 of {self.of} pieces", hint="use `split` and name every piece"
        )


def same(op: Op, views: Sequence[View], free: int | None) -> None:
    """Raise `OpError` unless all views agree in dtype and shape (but for the axis `free`)."""

    def kind(view: View) -> tuple[object, ...]:
        return (view.dtype, *(n for k, n in enumerate(view.shape) if k != free))

    for view in views[1:]:
        if kind(view) != kind(views[0]) or view.ndim != views[0].ndim:
            raise OpError(
                f"{op.name}: the tensors do not fit together",
                expected=f"{views[0].dtype} {join(views[0].shape)}",
                found=f"{view.dtype} {join(view.shape)}",
            )
