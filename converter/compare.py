"""Two checkpoints → what differs, name by name, piece by piece, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from converter.layout import Array
from converter.tensors import STRING, Checkpoint, Tensor, TensorSpec

Status = Literal["equal", "missing", "extra", "shape", "dtype", "values"]

PIECE = 64 << 20  # bytes of each of the two buffers: a permuted tensor is read once a piece


@dataclass(frozen=True, slots=True)
class Difference:
    """How one tensor of two checkpoints compares.

    `missing`: only the first has it; `extra`: only the second.  For `values`: how many elements
    differ, by how much at most (absolute and relative to the first's), and the C-order index of
    the first that does.
    """

    name: str
    status: Status
    first: TensorSpec | None = None
    second: TensorSpec | None = None
    count: int = 0
    max_abs: float = 0.0
    max_rel: float = 0.0
    index: tuple[int, ...] | None = None

    @property
    def equal(self) -> bool:
        """Nothing differs."""
        return self.status == "equal"


def diff(
    first: Checkpoint,
    second: Checkpoint,
    *,
    rtol: float = 0.0,
    atol: float = 0.0,
    progress: Callable[[str, int], None] | None = None,
) -> Iterator[Difference]:
    """One `Difference` for every name of either, in the first's order, then the second's.

    Without tolerances equal means bit for bit (NaNs included, -0.0 is not 0.0).
    """
    for name in first:
        if name not in second:
            yield Difference(name, "missing", first[name].spec)
            continue
        yield diff_tensors(name, first[name], second[name], rtol=rtol, atol=atol)
        if progress is not None:
            progress(name, first[name].spec.nbytes)
    for name in second:
        if name not in first:
            yield Difference(name, "extra", None, second[name].spec)


def diff_tensors(
    name: str, first: Tensor, second: Tensor, *, rtol: float = 0.0, atol: float = 0.0
) -> Difference:
    """How two tensors compare; values are read only when the specs agree."""
    a, b = first.spec, second.spec
    if a.shape != b.shape:
        return Difference(name, "shape", a, b)
    if a.dtype != b.dtype:
        return Difference(name, "dtype", a, b)
    if a.dtype == STRING:
        differ = np.flatnonzero(first.numpy().reshape(-1) != second.numpy().reshape(-1))
        found = _Found(len(differ), 0.0, 0.0, int(differ[0]) if len(differ) else -1)
    else:
        found = _compare_values(first, second, rtol, atol)
    status: Status = "values" if found.count else "equal"
    index = _index(found.first, a.shape) if found.count else None
    return Difference(name, status, a, b, found.count, found.max_abs, found.max_rel, index)


@dataclass(slots=True)
class _Found:
    count: int = 0
    max_abs: float = 0.0
    max_rel: float = 0.0
    first: int = -1


def _compare_values(first: Tensor, second: Tensor, rtol: float, atol: float) -> _Found:
    size, dtype = first.spec.size, first.spec.dtype
    step = max(first.view.chunk(PIECE), 1)
    buffers = np.empty(min(step, size), dtype), np.empty(min(step, size), dtype)
    found = _Found()
    for start in range(0, size, step):
        a, b = (buffer[: min(step, size - start)] for buffer in buffers)
        first.view.read(start, a)
        second.view.read(start, b)
        _compare_pieces(a, b, start, found, rtol, atol)
    return found


def _compare_pieces(  # noqa: PLR0913 - two pieces, where they are, and what equal means
    a: Array, b: Array, start: int, found: _Found, rtol: float, atol: float
) -> None:
    bits = np.dtype(f"V{a.dtype.itemsize}") if a.dtype.itemsize > 8 else f"u{a.dtype.itemsize}"  # noqa: PLR2004
    differ = np.flatnonzero(a.view(bits) != b.view(bits))
    if not len(differ):
        return
    wide = np.complex128 if a.dtype.kind == "c" else np.float64
    x, y = a[differ].astype(wide), b[differ].astype(wide)
    with np.errstate(all="ignore"):
        gap = np.abs(x - y)
        relative = gap / np.abs(x)
        if rtol or atol:
            # tolerances are wishes about numbers: equal infinities and two NaNs are close
            same = (x == y) | ((x != x) & (y != y))  # noqa: PLR0124
            far = ~(same | (gap <= atol + rtol * np.abs(x)))
            differ, gap, relative = differ[far], gap[far], relative[far]
    if not len(differ):
        return
    found.first = start + int(differ[0]) if found.first < 0 else found.first
    found.count += len(differ)
    found.max_abs = max(found.max_abs, _largest(gap))
    found.max_rel = max(found.max_rel, _largest(relative))


def _largest(gaps: Array) -> float:
    """The largest of some gaps; one that is no number counts as infinite."""
    return float(np.max(np.where(np.isnan(gaps), np.inf, gaps)))


def _index(position: int, shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(k) for k in np.unravel_index(position, tuple(shape)))
