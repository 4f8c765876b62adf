"""Two checkpoints → what differs, name by name, in one pass over both and in bounded memory.

Two views of one tensor may lie in their files in different orders.  They are compared box by box,
the boxes cut so that both sides are read in long runs and every element once:

    [7 7 512 4096] in the source's order ─┐
                                          ├─► boxes of (4096, 16, 49) ─► threads ─► bits compared
    [4096 25088]   in the target's order ─┘

Details are only worked out where the bits of a block differ.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from converter import layout
from converter.errors import context
from converter.layout import Array, View
from converter.tensors import STRING, Checkpoint, Tensor, TensorSpec

if TYPE_CHECKING:
    from converter.symmetry import Explanation

Status = Literal["equal", "missing", "extra", "shape", "dtype", "values"]
Progress = Callable[[str, int], None]

THREADS = 2
AHEAD = 16  # tensors whose comparison is under way
PIECE = 40 << 20  # bytes of a box of each side that is not read in order
RUNS = (64, 512, 1024, 2048, 4096, 16384, 65536)  # elements of a row that boxes are tried with
CALL = 3e-6  # seconds of a read, as measured,
BYTE = 0.25e-9  # and of each of its bytes
BLOCK = 2 << 20  # bytes of each side that are compared at once: two fit into a core's share of L3
WIDE = 8  # bytes of the widest integer


@dataclass(frozen=True, slots=True)
class Difference:
    """How one tensor of two checkpoints compares.

    `missing`: only the first has it; `extra`: only the second.  For `values`: how many elements
    differ, by how much at most (absolute and relative to the first's), and the C-order index of
    the first that does.  `explanation` is what would make them equal, where that was searched for.
    """

    name: str
    status: Status
    first: TensorSpec | None = None
    second: TensorSpec | None = None
    count: int = 0
    max_abs: float = 0.0
    max_rel: float = 0.0
    index: tuple[int, ...] | None = None
    explanation: Explanation | None = None

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
    progress: Progress | None = None,
) -> Iterator[Difference]:
    """One `Difference` for every name of either, in the first's order, then the second's.

    Without tolerances equal means bit for bit (NaNs included, -0.0 is not 0.0).
    """
    pending: deque[_Comparison] = deque()
    with ThreadPoolExecutor(THREADS, "converter-diff") as pool:
        try:
            for name in first:
                if name not in second:
                    pending.append(_Comparison(Difference(name, "missing", first[name].spec)))
                else:
                    pair = first[name], second[name]
                    pending.append(_started(pool, name, *pair, _Tolerance(rtol, atol)))
                if len(pending) > AHEAD:
                    yield pending.popleft().result(progress)
            while pending:
                yield pending.popleft().result(progress)
        finally:
            for comparison in pending:
                comparison.cancel()
    for name in second:
        if name not in first:
            yield Difference(name, "extra", None, second[name].spec)


def diff_tensors(
    name: str, first: Tensor, second: Tensor, *, rtol: float = 0.0, atol: float = 0.0
) -> Difference:
    """How two tensors compare; values are read only when the specs agree."""
    with ThreadPoolExecutor(THREADS, "converter-diff") as pool:
        return _started(pool, name, first, second, _Tolerance(rtol, atol)).result(None)


def same(first: View, second: View) -> bool:
    """Are two views of one shape and dtype equal bit for bit?  Stops where they are not."""
    pair = (first, second)
    return not any(_compare_box(pair, box, EXACT).count for box in boxes(pair, PIECE))


# ── what differs ─────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Tolerance:
    rtol: float
    atol: float


EXACT = _Tolerance(0.0, 0.0)


@dataclass(slots=True)
class _Found:
    """What differs in a part of two tensors; `first` is a C-order position, -1 for none."""

    count: int = 0
    max_abs: float = 0.0
    max_rel: float = 0.0
    first: int = -1

    def join(self, other: _Found) -> None:
        """Take in what differs in another part."""
        if other.count:
            self.first = other.first if self.first < 0 else min(self.first, other.first)
            self.count += other.count
            self.max_abs = max(self.max_abs, other.max_abs)
            self.max_rel = max(self.max_rel, other.max_rel)


@dataclass(frozen=True)
class _Comparison:
    """A comparison under way: what is known of it, and the parts that are being compared."""

    known: Difference
    parts: Sequence[Future[_Found]] = ()

    def result(self, progress: Progress | None) -> Difference:
        """The outcome, waited for."""
        found = _Found()
        try:
            with context(tensor=self.known.name):
                for part in self.parts:
                    found.join(part.result())
        finally:
            self.cancel()
        spec = self.known.first
        assert spec is not None  # noqa: S101 - only `extra` tensors have none
        if progress is not None and self.known.status != "missing":
            progress(self.known.name, spec.nbytes)
        if not found.count:
            return self.known
        index = tuple(int(k) for k in np.unravel_index(found.first, spec.shape))
        return replace(
            self.known,
            status="values",
            count=found.count,
            max_abs=found.max_abs,
            max_rel=found.max_rel,
            index=index,
        )

    def cancel(self) -> None:
        """Stop what has not begun."""
        for part in self.parts:
            part.cancel()


def _started(
    pool: ThreadPoolExecutor, name: str, first: Tensor, second: Tensor, tolerance: _Tolerance
) -> _Comparison:
    a, b = first.spec, second.spec
    if a.shape != b.shape:
        return _Comparison(Difference(name, "shape", a, b))
    if a.dtype != b.dtype:
        return _Comparison(Difference(name, "dtype", a, b))
    known = Difference(name, "equal", a, b)
    if a.dtype == STRING:
        return _Comparison(known, [pool.submit(_compare_strings, first, second)])
    pair = (first.view, second.view)
    parts = [pool.submit(_compare_box, pair, box, tolerance) for box in boxes(pair, PIECE)]
    return _Comparison(known, parts)


def _compare_strings(first: Tensor, second: Tensor) -> _Found:
    differ = np.flatnonzero(first.numpy().reshape(-1) != second.numpy().reshape(-1))
    return _Found(len(differ), 0.0, 0.0, int(differ[0])) if len(differ) else _Found()


def _compare_box(pair: Sequence[View], box: Box, tolerance: _Tolerance) -> _Found:
    """Compare one box of two views, block by block."""
    views = [box.of(view) for view in pair]
    step = min(view.chunk(BLOCK) for view in views)
    found, start = _Found(), 0
    for x, y in zip(*(_blocks(*each, step) for each in enumerate(views)), strict=True):
        if not np.array_equal(_words(x), _words(y)):
            found.join(_details(x, y, tolerance, box, start))
        start += x.size
    return found


def _blocks(slot: int, view: View, step: int) -> Iterator[Array]:
    """The elements of a view in C order, so many at once, in memory that is used again.

    One that lies in another order is read as a whole, and takes so much memory.
    """
    whole = not _is_straight(view)
    buffer = scratch(view.dtype, view.size if whole else min(step, view.size), slot)
    if whole:
        view.read(0, buffer)
    for start in range(0, view.size, step):
        if whole:
            yield buffer[start : start + step]
        else:
            block = buffer[: view.size - start]
            view.read(start, block)
            yield block


def _is_straight(view: View) -> bool:
    """Whether C order never goes back in the storage, so that blocks cost what the whole does."""
    return all(b > 0 and a >= n * b for (_, a), (n, b) in itertools.pairwise(view.factors))


def _details(a: Array, b: Array, tolerance: _Tolerance, box: Box, start: int) -> _Found:
    """What differs between two blocks that are not the same bytes."""
    differ = np.flatnonzero(bits(a) != bits(b))
    with np.errstate(all="ignore"):
        x, y = _widest(a[differ]), _widest(b[differ])
        gap, size = _gaps(x, y)
        relative = np.where(gap == 0, 0, gap / size)  # of 0 and -0, for one
        if tolerance != EXACT:
            # tolerances are wishes about numbers: equal infinities and two NaNs are close
            same = (x == y) | ((x != x) & (y != y))  # noqa: PLR0124
            far = ~(same | (gap <= tolerance.atol + tolerance.rtol * size))
            differ, gap, relative = differ[far], gap[far], relative[far]
    if not len(differ):
        return _Found()
    first = box.position(start + int(differ[0]))
    return _Found(len(differ), _largest(gap), _largest(relative), first)


def _widest(values: Array) -> Array:
    """The same numbers in the widest dtype of their kind, which holds each of them."""
    return values.astype({"c": "c16", "i": "i8", "u": "u8", "b": "u8"}.get(values.dtype.kind, "f8"))


def _gaps(x: Array, y: Array) -> tuple[Array, Array]:
    """How far numbers are apart, and the size of the first: of integers exactly, as uint64."""
    if x.dtype.kind not in "iu":
        return np.abs(x - y), np.abs(x)
    high, low = (pick(x, y).astype(np.uint64) for pick in (np.maximum, np.minimum))
    return high - low, np.abs(x).astype(np.uint64)  # modulo 2**64, which is right for both


def _largest(gaps: Array) -> float:
    """The largest of some gaps, as an int of integers; one that is no number is infinite."""
    most: float = np.max(
        np.where(np.isnan(gaps), np.inf, gaps) if gaps.dtype.kind == "f" else gaps
    ).item()
    return most


def _words(array: Array) -> Array:
    """The bytes as integers as wide as there are: nothing compares faster."""
    return array.view("u8" if array.nbytes % WIDE == 0 else "u1")


def bits(array: Array) -> Array:
    """The elements' bits, one value an element."""
    size = array.dtype.itemsize
    return array.view(f"V{size}" if size > WIDE else f"u{size}")


_local = threading.local()


def scratch(dtype: np.dtype[np.generic], size: int, slot: int) -> Array:
    """A buffer of this thread, used again by the next who asks for the slot."""
    memory: dict[int, Array] = _local.__dict__.setdefault("memory", {})
    if slot not in memory or memory[slot].nbytes < size * dtype.itemsize:
        memory[slot] = np.empty(size * dtype.itemsize, np.uint8)
    return memory[slot][: size * dtype.itemsize].view(dtype)


# ── boxes ────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Box:
    """A box of a tensor whose axes are cut into factors: `cut` is a range of each factor."""

    sizes: tuple[int, ...]
    cut: tuple[slice, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of the box in every factor."""
        return tuple(part.stop - part.start for part in self.cut)

    def of(self, view: View) -> View:
        """This box of a view."""
        view = view.reshape(self.sizes)
        for axis, part in enumerate(self.cut):
            if part != slice(0, self.sizes[axis]):
                view = view.take(axis, part.start, part.stop)
        return view

    def position(self, inside: int) -> int:
        """The C-order position in the tensor of one inside of the box."""
        if not self.sizes:
            return 0
        index = np.unravel_index(inside, self.shape)
        index = tuple(i + part.start for i, part in zip(index, self.cut, strict=True))
        return int(np.ravel_multi_index(index, self.sizes))


def boxes(views: Sequence[View], nbytes: int) -> Iterator[Box]:
    """Cut views of one shape into boxes of at most `nbytes`, good to read from each of them."""
    if views[0].size == 0:
        return
    sizes = tuple(itertools.chain.from_iterable(factors_of(views)))
    limit = max(1, nbytes // max(view.dtype.itemsize for view in views))
    most = _largest_box([view.reshape(sizes) for view in views], sizes, limit)
    axes = [
        [slice(at, min(at + part, n)) for at in range(0, n, part)]
        for n, part in zip(sizes, most, strict=True)
    ]
    yield from (Box(sizes, cut) for cut in itertools.product(*axes))


def factors_of(views: Sequence[View]) -> list[tuple[int, ...]]:
    """The sizes into which every axis is to be cut, so that it is plain strides in every view."""
    return [_common(axes) for axes in zip(*(view.axes for view in views), strict=True)]


def _common(axes: Sequence[tuple[tuple[int, int], ...]]) -> tuple[int, ...]:
    """The factors of one axis that fit all views of it; the whole axis when none do."""
    steps = {1}
    for factors in axes:
        steps |= set(itertools.accumulate((n for n, _ in reversed(factors)), int.__mul__))
    chain = sorted(steps)
    parts = [divmod(wide, narrow) for narrow, wide in itertools.pairwise(chain)]
    if any(rest for _, rest in parts):
        return (chain[-1],)
    return tuple(n for n, _ in reversed(parts))


def _largest_box(views: Sequence[View], sizes: Sequence[int], limit: int) -> list[int]:
    """The cheapest of a few boxes: each begins with a run of some length for one of the views."""
    if math.prod(sizes) <= limit:
        return list(sizes)
    inward = [sorted(range(len(sizes)), key=lambda axis: _stride(view, axis)) for view in views]
    tried = []
    for first, wanted in itertools.product(range(len(inward)), RUNS):
        box = [1] * len(sizes)
        for order, most in ((inward[first], wanted), *((order, limit) for order in inward)):
            while _run(order, box, sizes) < most and _grow(order, box, sizes, limit, most):
                pass
        cost = sum(_cost(*each, box, sizes) for each in zip(views, inward, strict=True))
        tried.append((cost, box))
    return min(tried)[1]


def _cost(view: View, order: Sequence[int], box: Sequence[int], sizes: Sequence[int]) -> float:
    """About how many seconds it takes to read all boxes of a view: calls and bytes."""
    size, span, covered = view.dtype.itemsize, 1, 1
    for axis in order:
        step = _stride(view, axis)
        if box[axis] > 1:
            if (step - span) * size > layout.GAP:
                break
            count = min(box[axis], max(1, (layout.READ_MOST // size - span) // step + 1))
            span, covered = span + (count - 1) * step, covered * count
            if count < box[axis]:
                break
    calls = math.prod(map(math.ceil, (n / part for n, part in zip(sizes, box, strict=True))))
    calls *= math.ceil(math.prod(box) / covered)
    return calls * (CALL + span * size * BYTE)


def _stride(view: View, axis: int) -> int:
    factors = view.axes[axis]
    return abs(factors[-1][1]) if factors else 0


def _run(order: Sequence[int], box: Sequence[int], sizes: Sequence[int]) -> int:
    """How many elements of a box lie in one row, for a view with its axes in this order."""
    run = 1
    for axis in order:
        run *= box[axis]
        if box[axis] < sizes[axis]:
            break
    return run


def _grow(
    order: Sequence[int], box: list[int], sizes: Sequence[int], limit: int, wanted: int
) -> bool:
    """Grow a box along the first axis where it can; False when there is no room left."""
    axis = next((axis for axis in order if box[axis] < sizes[axis]), None)
    if axis is None:
        return False
    room = limit // (math.prod(box) // box[axis])
    most = min(room, max(1, wanted // (_run(order, box, sizes) // box[axis])), sizes[axis])
    grown = -(-sizes[axis] // -(-sizes[axis] // most))  # parts of nearly one size
    if grown <= box[axis]:
        return False
    box[axis] = grown
    return True
