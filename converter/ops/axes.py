"""The axis notation: `h w i o -> o (i h w)` (einops' words) and `h w [i] o` (one axis marked).

Naming axes makes a line of a mapping document the layout by itself, and swapping the two sides of
an arrow is the inverse.  `1` is an axis of size one, `...` any axes that keep their order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

from converter.errors import OpError
from converter.ops.base import join

ELLIPSIS = "..."
_TOKEN = re.compile(r"\s*(\.\.\.|[A-Za-z0-9_]+|\S)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Group = tuple[str, ...]  # the axes merged into one; () is an axis of size one


class NotationError(ValueError):
    """A pattern that cannot be read; `offset` is the character where, from 0."""

    def __init__(self, message: str, offset: int = 0) -> None:
        super().__init__(message)
        self.offset = offset


class Pattern(NamedTuple):
    """A parsed `left -> right`."""

    left: tuple[Group, ...]
    right: tuple[Group, ...]

    @property
    def axes(self) -> set[str]:
        """The names of all axes."""
        return {axis for group in self.left for axis in group}

    def swapped(self) -> Pattern:
        """The pattern of the way back."""
        return Pattern(self.right, self.left)

    def __str__(self) -> str:
        return f"{_side(self.left)} -> {_side(self.right)}"

    def unsolvable(self, sizes: Mapping[str, int]) -> Group | None:
        """A group of the left side whose sizes a shape cannot give, or None."""
        for group in self.left:
            if sum(axis not in sizes for axis in group) > 1:
                return group
        return None


def _side(groups: Sequence[Group]) -> str:
    return " ".join(
        group[0] if len(group) == 1 else f"({' '.join(group)})" if group else "1"
        for group in groups
    )


@lru_cache(maxsize=4096)
def parse(text: str) -> Pattern:
    """Read `left -> right`; `NotationError` says what is wrong and where."""
    halves = text.split("->")
    if len(halves) != 2:  # noqa: PLR2004 - an arrow has two sides
        raise NotationError("expected one arrow, as in `h w i o -> o i h w`")
    offset = len(halves[0]) + 2
    left, right = _groups(halves[0], 0), _groups(halves[1], offset)
    names = [{axis for group in side for axis in group} for side in (left, right)]
    for side, other, half, start in ((1, 0, halves[1], offset), (0, 1, halves[0], 0)):
        for match in _TOKEN.finditer(half):
            if match[1] in names[side] - names[other]:
                where = f"on the {('left', 'right')[side]} side only"
                raise NotationError(f"axis '{match[1]}' stands {where}", start + match.start(1))
    return Pattern(left, right)


def _groups(text: str, offset: int) -> tuple[Group, ...]:  # noqa: C901 - a case a token
    groups: list[Group] = []
    seen: set[str] = set()
    inside: list[str] | None = None
    for match in _TOKEN.finditer(text):
        token, where = match[1], offset + match.start(1)
        if token == "(" and inside is None:
            inside = []
        elif token == ")" and inside is not None:
            groups.append(tuple(inside))
            inside = None
        elif token == "1":
            groups += [()] if inside is None else []
        elif (token == ELLIPSIS and inside is None) or _NAME.fullmatch(token):
            if token in seen:
                raise NotationError(f"axis '{token}' stands twice on one side", where)
            seen.add(token)
            if inside is None:
                groups.append((token,))
            else:
                inside.append(token)
        else:
            raise NotationError(f"'{token}' does not belong here", where)
    if inside is not None:
        raise NotationError("a parenthesis is not closed", offset + text.rindex("("))
    return tuple(groups)


class Solved(NamedTuple):
    """A pattern with every size known: split to `split`, permute by `order`, merge to `merged`."""

    axes: tuple[str, ...]
    split: tuple[int, ...]
    order: tuple[int, ...]
    merged: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]  # positions in `split` of the axes of each merged group


@lru_cache(maxsize=65536)
def solve(pattern: Pattern, shape: tuple[int, ...], sizes: tuple[tuple[str, int], ...]) -> Solved:
    """Work a pattern out for a shape; `OpError` when it does not fit."""
    known = dict(sizes)
    left, right = _expand(pattern, len(shape), shape)
    for group, size in zip(left, shape, strict=True):
        _solve_group(group, size, known, pattern, shape)
    axes = tuple(axis for group in left for axis in group)
    position = {axis: index for index, axis in enumerate(axes)}
    return Solved(
        axes,
        tuple(known[axis] for axis in axes),
        tuple(position[axis] for group in right for axis in group),
        tuple(prod(known[axis] for axis in group) for group in right),
        tuple(tuple(position[axis] for axis in group) for group in (*left, *right)),
    )


def _expand(
    pattern: Pattern, rank: int, shape: tuple[int, ...]
) -> tuple[tuple[Group, ...], tuple[Group, ...]]:
    extra = rank - len(pattern.left)
    dots = (ELLIPSIS,) in pattern.left
    if (extra != 0 and not dots) or extra < -1:
        raise OpError(
            f"`{pattern}` does not fit the number of axes",
            expected=f"{len(pattern.left)} axes ({_side(pattern.left)})",
            found=f"{rank} axes: {join(shape)}",
        )
    run = tuple((f"...{k}",) for k in range(extra + 1))

    def expand(groups: tuple[Group, ...]) -> tuple[Group, ...]:
        return tuple(g for group in groups for g in (run if group == (ELLIPSIS,) else (group,)))

    return expand(pattern.left), expand(pattern.right)


def _solve_group(
    group: Group, size: int, known: dict[str, int], pattern: Pattern, shape: tuple[int, ...]
) -> None:
    unknown = [axis for axis in group if axis not in known]
    rest = prod(known[axis] for axis in group if axis in known)
    if len(unknown) > 1:
        raise OpError(
            f"`{pattern}` cannot be solved: {' and '.join(unknown)} are not known",
            found=join(shape),
            hint=f"give all but one of them: `sizes: {{{unknown[0]}: ...}}`",
        )
    if unknown:
        if rest == 0 or size % rest:
            raise OpError(
                f"`{pattern}`: an axis of {size} cannot be divided by {rest}",
                expected=f"a multiple of {rest} for ({' '.join(group)})",
                found=join(shape),
            )
        known[unknown[0]] = size // rest
    elif rest != size:
        raise OpError(
            f"`{pattern}`: sizes do not fit",
            expected=f"{rest} for {'(' + ' '.join(group) + ')' if group else 'an axis of 1'}",
            found=f"{size} in {join(shape)}",
        )


class Marked(NamedTuple):
    """A parsed `h w [i] o`: axis names and which of them are marked."""

    axes: tuple[str, ...]
    marks: tuple[int, ...]

    def positions(self, rank: int, shape: Sequence[int]) -> tuple[int, ...]:
        """The marked axes' positions in a tensor of that rank; `OpError` when the rank differs."""
        dots = self.axes.index(ELLIPSIS) if ELLIPSIS in self.axes else len(self.axes)
        extra = rank - len(self.axes)
        if extra < (-1 if ELLIPSIS in self.axes else 0) or (extra > 0 and dots == len(self.axes)):
            raise OpError(
                f"`{self}` does not fit the number of axes",
                expected=f"{len(self.axes)} axes",
                found=f"{rank} axes: {join(shape)}",
            )
        for index, axis in enumerate(self.axes):
            size = shape[index + extra if index > dots else index] if axis == "1" else 1
            if size != 1:
                raise OpError(
                    f"`{self}` does not fit",
                    expected="an axis of 1",
                    found=f"{size} in {join(shape)}",
                )
        return tuple(mark + extra if mark > dots else mark for mark in self.marks)

    def __str__(self) -> str:
        return " ".join(
            f"[{axis}]" if index in self.marks else axis for index, axis in enumerate(self.axes)
        )


@lru_cache(maxsize=4096)
def parse_marked(text: str) -> Marked:
    """Read `h w [i] o`; at least one axis is marked."""
    axes: list[str] = []
    marks: list[int] = []
    inside = False
    for match in _TOKEN.finditer(text):
        token, where = match[1], match.start(1)
        if token in "[]" and inside == (token == "]"):
            inside = not inside
        elif (token in (ELLIPSIS, "1") and not inside) or _NAME.fullmatch(token):
            if token in axes and token != "1":
                raise NotationError(f"axis '{token}' stands twice", where)
            marks += [len(axes)] if inside else []
            axes.append(token)
        else:
            raise NotationError(f"'{token}' does not belong here", where)
    if inside or not marks:
        raise NotationError("mark the axis that is meant with brackets, as in `h w [i] o`")
    return Marked(tuple(axes), tuple(marks))


def one_axis(axis: Any) -> Any:
    """An axis as a file gives it; ValueError when a pattern marks more than one."""
    if isinstance(axis, str) and len(parse_marked(axis).marks) != 1:
        raise ValueError("exactly one axis is marked")
    return axis
