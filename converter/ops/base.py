"""What an op is: a frozen value that turns views into views, and knows its way back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from converter.errors import IrreversibleError, OpError
from converter.layout import View
from converter.record import Record

Exactness = Literal["exact", "rounding", "lossy"]


class Op(Record):
    """One step of a rule, applied to the views that the rule's sources (or the step before) gave.

    `apply` is lazy: it rewrites strides or wraps a view and reads nothing.  Shapes and dtypes are
    therefore inferred by applying an op to views of no data, and inference can never disagree with
    application.
    """

    name: ClassVar[str]
    about: ClassVar[str]  # one sentence for `converter ops`
    joins: ClassVar[bool] = False  # makes one tensor of several
    cuts: ClassVar[bool] = False  # makes several tensors of one

    @property
    def exactness(self) -> Exactness:
        """Is every bit kept (`exact`), the value nearly (`rounding`), or is something lost?

        What is `lossy` must be asked for by its rule, and has no way back.
        """
        return "exact"

    def apply(self, views: Sequence[View], pieces: int) -> list[View]:
        """The views after this op; `pieces` is how many targets the rule has.

        Raises `OpError` when shapes or dtypes do not fit.
        """
        raise NotImplementedError

    def inverse(self) -> Op:
        """The op that undoes this one; `IrreversibleError` says why there is none."""
        raise IrreversibleError(f"{self.name} cannot be undone")

    def bind(self, sizes: Mapping[str, int]) -> Op:
        """This op with the sizes that it names and does not know yet."""
        return self

    def doubts(self, views: Sequence[View]) -> list[str]:
        """What this op does to these views that no shape can confirm, each as a phrase."""
        return []

    def to_file(self) -> Any:
        """The value that stands for this op in a mapping file, shortest form."""
        return self.written()


class UnaryOp(Op):
    """An op that treats every view alike and by itself."""

    def apply(self, views: Sequence[View], pieces: int) -> list[View]:
        return [self.apply_one(view) for view in views]

    def apply_one(self, view: View) -> View:
        """The view after this op."""
        raise NotImplementedError

    def doubts(self, views: Sequence[View]) -> list[str]:
        return list(dict.fromkeys(doubt for view in views for doubt in self.doubts_one(view)))

    def doubts_one(self, view: View) -> list[str]:
        """`doubts` for one view."""
        return []


class On(Op):
    """An op for one of several tensors: on a branch before they are joined, or after a cut."""

    name: ClassVar[str] = "on"
    about: ClassVar[str] = "an op for one of several tensors"

    branch: int
    op: Op

    @property
    def exactness(self) -> Exactness:
        return self.op.exactness

    def apply(self, views: Sequence[View], pieces: int) -> list[View]:
        at = self.branch
        return [*views[:at], *self.op.apply(views[at : at + 1], 1), *views[at + 1 :]]

    def inverse(self) -> On:
        return On(branch=self.branch, op=self.op.inverse())

    def doubts(self, views: Sequence[View]) -> list[str]:
        return self.op.doubts(views[self.branch : self.branch + 1])

    def to_file(self) -> Any:
        return {"branch": self.branch, self.op.name: self.op.to_file()}


def only_one(op: Op, views: Sequence[View]) -> View:
    """The single view that an op with one source needs."""
    if len(views) != 1:
        raise OpError(
            f"{op.name} takes one tensor",
            expected="1 tensor",
            found=f"{len(views)} tensors",
            hint="concat or stack them first",
        )
    return views[0]


def join(shape: Sequence[int]) -> str:
    """A shape as it is printed in messages: `[7, 7, 512, 4096]`."""
    return str(list(shape))
