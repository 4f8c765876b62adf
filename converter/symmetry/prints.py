"""Fingerprints of tensors: sums of hashed elements, which no order of the elements changes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from converter.compare import Box, bits, boxes, factors_of, scratch
from converter.layout import Array, View

PIECE = 2 << 20  # bytes that are hashed at once


def hashes(values: Array) -> Array:
    """A number for every element, by its bits; equal bits have equal numbers."""
    words = bits(values)
    if words.dtype.kind == "V":  # complex128
        halves = values.view("u8").reshape(*values.shape, 2)
        return hashes(halves[..., 0]) * np.uint64(3) + hashes(halves[..., 1])
    mixed = words.astype(np.uint64)
    mixed += np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return mixed


@dataclass(frozen=True)
class Prints:
    """Sums of the hashes of a view's elements: for each index of each axis, and of all."""

    view: View
    axes: tuple[Array, ...]

    @cached_property
    def total(self) -> int:
        """The sum over all elements."""
        return (
            int(self.axes[0].sum()) if self.axes else int(hashes(self.view.numpy().reshape(1))[0])
        )

    @cached_property
    def ordered(self) -> tuple[bytes, ...]:
        """Each axis' sums without their order."""
        return tuple(np.sort(axis).tobytes() for axis in self.axes)


def prints(view: View) -> Prints:
    """The fingerprints of a view, in one pass."""
    return Prints(view, tuple(sums(view, [(k,) for k in range(view.ndim)])))


def sums(view: View, groups: Sequence[tuple[int, ...]]) -> list[Array]:
    """The hashes summed to each group of axes, as arrays of these axes' sizes in C order."""
    parts = factors_of([view])
    ends = list(itertools.accumulate(map(len, parts), initial=0))
    factors = [[f for k in group for f in range(ends[k], ends[k + 1])] for group in groups]
    sizes = [n for part in parts for n in part]
    sums = [np.zeros([sizes[f] for f in group] or [1], np.uint64) for group in factors]
    for box in boxes([view], PIECE):
        hashed = _hashed(view, box)
        for group, total in zip(factors, sums, strict=True):
            rest = tuple(k for k in range(len(sizes)) if k not in group)
            total[tuple(box.cut[f] for f in group)] += hashed.sum(axis=rest, dtype=np.uint64)
    return [total.reshape(-1) for total in sums]


def _hashed(view: View, box: Box) -> Array:
    part = box.of(view)
    buffer = scratch(part.dtype, part.size, 2)
    part.read(0, buffer)
    return hashes(buffer).reshape(box.shape)
