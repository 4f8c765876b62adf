"""Ops that put elements elsewhere: rearrange, transpose, reshape, reverse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import prod
from typing import Annotated, Any, ClassVar

from converter.errors import IrreversibleError, OpError
from converter.layout import View
from converter.ops.axes import Pattern, parse, parse_marked, solve
from converter.ops.base import Op, UnaryOp, join
from converter.record import AtLeast, Check, field


def exchanged(shape: Sequence[int], order: Sequence[int], names: Sequence[str]) -> list[str]:
    """Pairs of equal axes whose order changes: the result has the same shape without the change."""
    return [
        f"{names[a]} and {names[b]} are both {shape[a]}: no shape shows that they change places"
        for a, b in combinations(range(len(shape)), 2)
        if shape[a] == shape[b] > 1 and order.index(a) > order.index(b)
    ]


def _pattern(value: str) -> str:
    parse(value)
    return value


class Rearrange(UnaryOp):
    """Split, permute and merge axes by name, in einops' notation.

    `h w i o -> o i h w` turns (3, 3, 64, 128) into (128, 64, 3, 3); `h w i o -> (h w i) o` turns
    (7, 7, 512, 4096) into (25088, 4096).  Sizes that a split needs and a shape does not give are
    named in `sizes` (of the op, the rule or the file); given, they are checked in both directions.
    """

    name: ClassVar[str] = "rearrange"
    about: ClassVar[str] = "split, permute and merge axes by name: `h w i o -> o (i h w)`"

    pattern: Annotated[str, Check(_pattern)] = field(
        about="einops notation, e.g. `h w i o -> o i h w`"
    )
    sizes: dict[str, Annotated[int, AtLeast(1)]] = field(
        default_factory=dict, about="sizes of named axes"
    )

    @classmethod
    def long(cls, value: Any) -> Any:
        return {"pattern": value} if isinstance(value, str) else value

    def check(self) -> None:
        unknown = sorted(self.sizes.keys() - self.parsed.axes)
        if unknown:
            raise ValueError(f"'{unknown[0]}' is no axis of the pattern")

    @property
    def parsed(self) -> Pattern:
        """The pattern, parsed."""
        return parse(self.pattern)

    def bind(self, sizes: Mapping[str, int]) -> Rearrange:
        known = {name: size for name, size in sizes.items() if name in self.parsed.axes}
        return self.replaced(sizes=known | self.sizes)

    def apply_one(self, view: View) -> View:
        solved = solve(self.parsed, view.shape, tuple(self.sizes.items()))
        return view.reshape(solved.split).transpose(solved.order).reshape(solved.merged)

    def inverse(self) -> Rearrange:
        back = self.parsed.swapped()
        group = back.unsolvable(self.sizes)
        if group:
            raise IrreversibleError(
                f"`{back}` cannot be solved: the sizes in ({' '.join(group)}) are not known",
                hint=f"give all but one of them, e.g. `sizes: {{{group[0]}: ...}}`",
            )
        return Rearrange(pattern=str(back), sizes=self.sizes)

    def doubts_one(self, view: View) -> list[str]:
        solved = solve(self.parsed, view.shape, tuple(self.sizes.items()))
        found = exchanged(solved.split, solved.order, solved.axes)
        for group in solved.groups:
            real = [solved.axes[index] for index in group if solved.split[index] > 1]
            if len(real) > 1 and solved.order != tuple(range(len(solved.order))):
                found.append(f"no shape shows the order of {', '.join(real)} within one axis")
        return found

    def to_file(self) -> Any:
        return super().to_file() if self.sizes else self.pattern


def _permutation(value: tuple[int, ...]) -> tuple[int, ...]:
    if sorted(value) != list(range(len(value))):
        raise ValueError(f"{list(value)} is not a permutation of {list(range(len(value)))}")
    return value


class Transpose(UnaryOp):
    """Permute axes by number: target axis k is source axis `order[k]`, as in `numpy.transpose`."""

    name: ClassVar[str] = "transpose"
    about: ClassVar[str] = "permute axes by number, as numpy.transpose does: `[1, 0]`"

    order: Annotated[tuple[int, ...], Check(_permutation)] = field(
        about="the source axis of each target axis"
    )

    @classmethod
    def long(cls, value: Any) -> Any:
        return {"order": value} if isinstance(value, list | tuple) else value

    def apply_one(self, view: View) -> View:
        if view.ndim != len(self.order):
            raise OpError(
                "transpose does not fit the number of axes",
                expected=f"{len(self.order)} axes",
                found=f"{view.ndim} axes: {join(view.shape)}",
            )
        return view.transpose(self.order)

    def inverse(self) -> Transpose:
        return Transpose(order=tuple(self.order.index(k) for k in range(len(self.order))))

    def doubts_one(self, view: View) -> list[str]:
        return exchanged(view.shape, self.order, [f"axis {k}" for k in range(view.ndim)])

    def to_file(self) -> Any:
        return list(self.order)


class Reshape(UnaryOp):
    """Give the elements, in C order, another shape; one entry may be -1, names are sizes.

    The way back needs `from`, since a shape does not tell what it was before.
    """

    name: ClassVar[str] = "reshape"
    about: ClassVar[str] = "another shape for the same C-order elements: `[25088, 4096]`"

    to: tuple[int | str, ...] = field(about="the new shape; one entry may be -1")
    source: tuple[int | str, ...] | None = field(
        default=None,
        key="from",
        about="the shape before: checked, and used on the way back",
    )

    @classmethod
    def long(cls, value: Any) -> Any:
        return {"to": value} if isinstance(value, list | tuple) else value

    def bind(self, sizes: Mapping[str, int]) -> Reshape:
        def known(shape: tuple[int | str, ...]) -> tuple[int | str, ...]:
            return tuple(sizes.get(n, n) if isinstance(n, str) else n for n in shape)

        source = known(self.source) if self.source is not None else None
        return self.replaced(to=known(self.to), source=source)

    def apply_one(self, view: View) -> View:
        if self.source is not None:
            self._resolve(self.source, view, exact=True)
        return view.reshape(self._resolve(self.to, view))

    def _resolve(
        self, wanted: tuple[int | str, ...], view: View, *, exact: bool = False
    ) -> tuple[int, ...]:
        unknown = [size for size in wanted if isinstance(size, str)]
        if unknown:
            raise OpError(
                f"reshape needs the size '{unknown[0]}'", hint=f"--size {unknown[0]}=N, or `sizes:`"
            )
        numbers = [int(size) for size in wanted]
        rest = prod(size for size in numbers if size >= 0)
        if numbers.count(-1) == 1 and rest and view.size % rest == 0:
            numbers[numbers.index(-1)] = view.size // rest
        shape = tuple(numbers)
        if prod(shape) != view.size or min(shape, default=0) < 0 or (exact and shape != view.shape):
            raise OpError(
                "reshape does not fit",
                expected=f"{join(list(wanted))}"  # type: ignore[arg-type]
                + ("" if exact else f", {abs(prod(numbers))} elements"),
                found=f"{join(view.shape)}, {view.size} elements",
            )
        return shape

    def inverse(self) -> Reshape:
        if self.source is None:
            raise IrreversibleError(
                "reshape does not know the shape before it",
                hint=f"write `reshape: {{from: [...], to: {list(self.to)}}}`, or use rearrange",
            )
        return Reshape(to=self.source, source=self.to)

    def to_file(self) -> Any:
        if self.source is None:
            return list(self.to)
        return {"from": list(self.source), "to": list(self.to)}


def _axes(value: str | int | tuple[int, ...]) -> str | int | tuple[int, ...]:
    if isinstance(value, str):
        parse_marked(value)
    if isinstance(value, tuple) and len(set(value)) < len(value):
        raise ValueError("an axis stands twice")
    return value


class Reverse(UnaryOp):
    """Reverse the order along the marked axes: `h w [i] o` makes BGR of RGB.  Its own inverse."""

    name: ClassVar[str] = "reverse"
    about: ClassVar[str] = "reverse the order along axes: `h w [i] o` (RGB to BGR)"

    axis: Annotated[str | int | tuple[int, ...], Check(_axes)] = field(
        about="axes, the reversed ones in brackets"
    )

    @classmethod
    def long(cls, value: Any) -> Any:
        return value if isinstance(value, dict) else {"axis": value}

    def apply_one(self, view: View) -> View:
        for axis in axes_of(self, self.axis, view):
            view = view.flip(axis)
        return view

    def inverse(self) -> Reverse:
        return self

    def doubts_one(self, view: View) -> list[str]:
        return [
            f"no shape shows that axis {axis} ({view.shape[axis]}) is reversed"
            for axis in axes_of(self, self.axis, view)
            if view.shape[axis] > 1
        ]

    def to_file(self) -> Any:
        return self.axis


def axes_of(op: Op, axis: str | int | tuple[int, ...], view: View) -> tuple[int, ...]:
    """The positions that an axis field means for a view; `OpError` when there is no such axis."""
    if isinstance(axis, str):
        return parse_marked(axis).positions(view.ndim, view.shape)
    axes = (axis,) if isinstance(axis, int) else axis
    for number in axes:
        if not -view.ndim <= number < view.ndim:
            raise OpError(
                f"{op.name}: there is no axis {number}",
                expected=f"an axis of {view.ndim}",
                found=join(view.shape),
            )
    return tuple(number % view.ndim for number in axes)
