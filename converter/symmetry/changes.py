"""Single steps of an explanation: in words, on a view, and as ops of the mapping language."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from converter.layout import Array, Elementwise, View, concatenate
from converter.tensors import dtype_name, dtype_of

Op = dict[str, Any]
TWO = 2
SHOWN = 8  # indices of a new order


@dataclass(frozen=True)
class Change:
    """One step.  `op` is given the words for the axes."""

    text: str
    apply: Callable[[View], View]
    op: Callable[[Sequence[str]], Op]


def reverse(axis: int) -> Change:
    """One axis the other way round."""
    return Change(
        f"reversing axis {axis}",
        lambda view: view.flip(axis),
        lambda names: {"reverse": marked(names, axis)},
    )


def reorder(axis: int, order: tuple[int, ...], parts: int = 1) -> Change:
    """Equal blocks of an axis in another order, within each of `parts`."""
    blocks = ", ".join(map(str, order))
    each = f" within each of its {parts} parts" if parts > 1 else ""
    text = f"putting the {len(order)} blocks of axis {axis}{each} in the order {blocks}"

    def apply(view: View) -> View:
        shape = view.shape
        width = shape[axis] // parts // len(order)
        split = view.reshape((*shape[:axis], parts, len(order), width, *shape[axis + 1 :]))
        pieces = [split.take(axis + 1, k, k + 1) for k in order]
        return concatenate(pieces, axis + 1).reshape(shape)

    def op(names: Sequence[str]) -> Op:
        blocks = [part * len(order) + k for part in range(parts) for k in order]
        return {"reorder": {"axis": marked(names, axis), "order": blocks}}

    return Change(text, apply, op)


def shuffle(axis: int, order: tuple[int, ...]) -> Change:
    """The indices of an axis in any other order."""
    n, starts = len(order), [k for k, i in enumerate(order) if k == 0 or i != order[k - 1] + 1]
    runs = [(order[a], order[b - 1] + 1) for a, b in itertools.pairwise([*starts, n])]
    moved = [k for k, i in enumerate(order) if k != i]
    if len(runs) == TWO:
        text = f"rolling axis {axis} ({n}) by {runs[0][1] - runs[0][0]}"
    elif len(moved) == TWO:
        text = f"exchanging {moved[0]} and {moved[1]} of axis {axis} ({n})"
    else:
        some = "".join(f"{i}, " for i in order[:SHOWN])
        text = f"putting the indices of axis {axis} ({n}) in the order {some}..."

    def apply(view: View) -> View:
        return concatenate([view.take(axis, *run) for run in runs], axis)

    return Change(
        text, apply, lambda names: {"reorder": {"axis": marked(names, axis), "order": [*order]}}
    )


def marked(names: Sequence[str], axis: int) -> str | int:
    """An axis as the mapping language marks it: `h w [i] o`."""
    return " ".join(f"[{word}]" if k == axis else word for k, word in enumerate(names))


def cast(dtype: np.dtype[Any]) -> Change:
    """Every element in another dtype."""
    name = dtype_name(dtype)
    return Change(f"casting to {name}", lambda view: view.astype(dtype), lambda _: {"cast": name})


def roundings(dtype: np.dtype[Any]) -> Iterator[Change]:
    """Through a dtype that holds less, and back."""
    for name in ("float16", "bfloat16", "float32"):
        narrow = dtype_of(name)
        if narrow.itemsize <= dtype.itemsize and narrow != dtype:
            yield Change(
                f"rounding to {name}",
                lambda view, narrow=narrow: view.astype(narrow).astype(view.dtype),  # type: ignore[misc]
                lambda _, name=name: {"cast": name},  # type: ignore[misc]
            )


def elementwise(view: View, function: Callable[[Array], Array]) -> View:
    """A view of a function of the elements."""
    return View.over(Elementwise(view, function, view.dtype), view.shape)


def negate() -> Change:
    """Every element with the other sign."""

    def apply(view: View) -> View:
        return elementwise(view, np.negative)

    return Change("negating", apply, lambda _: {"negate": {}})


def swapped_bytes(dtype: np.dtype[Any]) -> Change:
    """Every element read in the other byte order."""

    def swap(block: Array) -> Array:
        return block.view(f"u{block.itemsize}").byteswap().view(block.dtype)

    return Change(
        "swapping the bytes of every element",
        lambda view: elementwise(view, swap) if dtype.itemsize <= 8 else view,  # noqa: PLR2004
        lambda _: {},
    )
