"""Lazy strided views of tensors, and the copy kernel that they all end in.

Layout operations never copy: they rewrite the strides of a `View` over a `Storage`. Reading a view
then permutes, reverses and casts in one pass from the storage into the caller's buffer.

    read(start, out) ─► boxes ─► down to the bottom storage ─► tiles ─► padded scratch ─► out

NumPy alone copies a permuted tensor at a tenth of the speed of memory: it walks the larger stride
without blocking, and rows a power of two apart fall into the same cache set. So the kernel fetches
a tile in long runs into a small scratch buffer, whose rows are padded and lie in the order in
which the target wants them, and copies it from there, transposed. A view that was `loaded` lies in
memory like that, and needs no scratch.
"""

from __future__ import annotations

import itertools
import math
import operator
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import DTypeLike, NDArray

__all__ = [
    "Box",
    "Computed",
    "Elementwise",
    "Joined",
    "Memory",
    "Storage",
    "View",
    "concatenate",
]

Array = NDArray[Any]
Function = Callable[[Array], Array]
Factors = tuple[tuple[int, int], ...]  # (size, stride in elements) each, outermost first

# Sizes of the kernel, in bytes. They were measured: see benchmarks/copy_kernel.py.
TILE = 768 << 10  # what is turned at once: it should stay in the second-level cache
RUN = 1536  # of a row of a tile, which leaves room for long columns
READ_RUN = 32 << 10  # a read costs a system call, so gather tiles until it is this long
KERNEL = 18 << 20  # scratch memory at most: tiles side by side until a read is long enough
READ_MOST = 2 << 20  # what is read before it is copied on: long calls leave others the lock
LINE = 64  # of a cache
GOOD_RUN = 8 << 10  # elements in a row that are as good as any number
GAP = 32 << 10  # reading through a hole of this size costs no more than a second read

USER_DEFINED = 2  # what `numpy.dtype.isbuiltin` is for ml_dtypes

# Counts, mostly of elements.
ROW = 128  # rows shorter than this take in another axis
PADDING = 16  # keeps rows that are a power of two apart out of one cache set
COLUMNS = 512  # that are turned at once: each has a line in the first-level cache
SHORT = 4  # lines; what is no longer is not worth to be padded


class Storage(Protocol):
    """Elements in a row: one-dimensional, of one dtype, readable in any range."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of every element, byte order included."""

    @property
    def size(self) -> int:
        """The number of elements."""

    def read(self, start: int, out: Array) -> None:
        """Fill `out`, one-dimensional, C-contiguous and of `dtype`, with [start, start + size)."""


class Rowwise(Storage, Protocol):
    """A storage that reads rows at one distance for less than the price of a read each."""

    def read_rows(self, start: int, rows: Array, pitch: int) -> None:
        """Fill a C-contiguous 2-D array: row k from the element `start + k * pitch` on."""


@runtime_checkable
class Piecewise(Storage, Protocol):
    """A storage that can do better for a reader that takes every element once."""

    def in_pieces(self) -> Storage:
        """The same elements, for such a reader."""


class Memory:
    """A storage over an array in memory, in C order; copies only when it is not C-contiguous."""

    def __init__(self, array: Array) -> None:
        self.array: Array = np.asarray(array, order="C").reshape(-1)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The array's dtype."""
        return self.array.dtype

    @property
    def size(self) -> int:
        """The number of elements."""
        return self.array.size

    def read(self, start: int, out: Array) -> None:
        """Fill `out` with [start, start + out.size)."""
        _move(out, self.array[start : start + out.size])


class Computed:
    """A storage whose array is computed by the first read, and kept.

    Reading raises ValueError when the array has another size or dtype than was announced.
    """

    def __init__(self, size: int, dtype: DTypeLike, compute: Callable[[], Array]) -> None:
        self.size = size
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self._compute = compute
        self._array: Array | None = None
        self._lock = threading.Lock()

    @property
    def array(self) -> Array:
        """All the elements, one-dimensional; computed when this is the first use."""
        with self._lock:
            if self._array is None:
                array = np.asarray(self._compute(), order="C").reshape(-1)
                _check_block(array, self.size, self.dtype)
                self._array = array
            return self._array

    def read(self, start: int, out: Array) -> None:
        """Fill `out` with [start, start + out.size)."""
        _move(out, self.array[start : start + out.size])


class Joined:
    """A storage of the C-order elements of several views, one after the other.

    That is their concatenation along axis 0. Raises ValueError when the dtypes differ.
    """

    def __init__(self, views: Sequence[View]) -> None:
        dtypes = {view.dtype for view in views}
        if len(dtypes) != 1:
            names = ", ".join(sorted(map(str, dtypes))) or "no views"
            raise ValueError(f"joined views must have one dtype, got {names}")
        self.views = tuple(view for view in views if view.size)
        self.ends = tuple(itertools.accumulate(view.size for view in self.views))
        self.size = self.ends[-1] if self.ends else 0
        self.dtype: np.dtype[Any] = dtypes.pop()

    def piece(self, position: int) -> tuple[View, int, int]:
        """The view that holds the element at `position`, and where it starts and stops."""
        number = bisect_right(self.ends, position)
        view = self.views[number]
        return view, self.ends[number] - view.size, self.ends[number]

    def read(self, start: int, out: Array) -> None:
        """Fill `out` with [start, start + out.size)."""
        filled = 0
        while filled < out.size:
            view, begin, end = self.piece(start + filled)
            count = min(out.size - filled, end - start - filled)
            view.read(start + filled - begin, out[filled : filled + count])
            filled += count


class Elementwise:
    """A storage of `function(block)` over the C-order elements of a view, block by block.

    `function` takes a one-dimensional array of the view's dtype and returns one of the same size
    and of `dtype`. It is pure and elementwise: blocks come in any size and order, and their
    memory is used again after the call. Reading raises ValueError when the result is not that.
    `maker` is what computes so, for what undoes it to know.
    """

    def __init__(
        self, view: View, function: Function, dtype: DTypeLike, maker: object = None
    ) -> None:
        self.view = view
        self.function = function
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.maker = maker

    @property
    def size(self) -> int:
        """The number of elements."""
        return self.view.size

    def apply(self, block: Array) -> Array:
        """The checked result of the function: `(n,) → (n,)`."""
        result = self.function(block)
        _check_block(result, block.size, self.dtype)
        return result

    def read(self, start: int, out: Array) -> None:
        """Fill `out` with [start, start + out.size)."""
        _fill(self.view, start, out, (self.apply,))


class View(NamedTuple):
    """A tensor as strides over a storage; it reads nothing until it is asked for elements.

    `offset` is the element of the storage at index (0, …, 0). An axis is the C-order product of
    its factors, so that an axis merged from permuted ones is still strides; `()` is an axis of
    size 1. Where `dtype` is not the storage's, reading casts. A view is itself a storage.
    """

    storage: Storage
    offset: int
    axes: tuple[Factors, ...]
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, array: Array) -> View:
        """The view of an array in memory."""
        return cls.over(Memory(array), np.shape(array))

    @classmethod
    def over(cls, storage: Storage, shape: Sequence[int]) -> View:
        """The whole storage in C order as `shape`; ValueError when their sizes differ."""
        if math.prod(shape) != storage.size or min(shape, default=0) < 0:
            raise ValueError(f"cannot view {storage.size} elements as shape {tuple(shape)}")
        axes = tuple(_merged(((n, step),)) for n, step in zip(shape, _steps(shape), strict=True))
        return cls(storage, 0, axes, storage.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of every axis."""
        return tuple(_size(axis) for axis in self.axes)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.axes)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of bytes of the result, which a cast changes."""
        return self.size * self.dtype.itemsize

    @property
    def factors(self) -> Factors:
        """The factors of all axes, merged where they can be: the view as one flat axis."""
        return _merged(tuple(itertools.chain.from_iterable(self.axes)))

    @property
    def contiguous(self) -> bool:
        """Whether this is a plain C-order run of the storage, [offset, offset + size), uncast."""
        kept = self.dtype == self.storage.dtype
        return kept and (self.size == 0 or self.factors in ((), ((self.size, 1),)))

    @property
    def in_order(self) -> bool:
        """Whether reading goes straight through the storages, whatever is computed on the way."""
        if self.size and self.factors not in ((), ((self.size, 1),)):
            return False
        storage = self.storage
        if isinstance(storage, Joined):
            return all(view.in_order for view in storage.views)
        inner = storage.view if isinstance(storage, Elementwise) else storage
        return not isinstance(inner, View) or inner.in_order

    def transpose(self, order: Sequence[int]) -> View:
        """Axes in a new order, as in `numpy.transpose`; ValueError when not a permutation."""
        if sorted(order) != list(range(self.ndim)):
            raise ValueError(f"{tuple(order)} is not an order of {self.ndim} axes")
        return self._replace(axes=tuple(self.axes[axis] for axis in order))

    def reshape(self, shape: Sequence[int]) -> View:
        """The same elements in C order as another shape; ValueError when the sizes differ.

        Where strides cannot say that, the result is a view over this one, as lazy but slower.
        """
        if math.prod(shape) != self.size or min(shape, default=0) < 0:
            raise ValueError(f"cannot reshape {self.shape} to {tuple(shape)}")
        if self.size:
            found = _through(self.factors, 0, zip(shape, _steps(shape), strict=True))
            if found:
                return self._replace(axes=tuple(_merged(axis) for axis in found[1]))
        return View.over(self, shape)

    def flip(self, axis: int) -> View:
        """One axis reversed; IndexError when there is no such axis."""
        factors = self._axis(axis)
        offset = self.offset + sum((n - 1) * stride for n, stride in factors)
        reverse = tuple((n, -stride) for n, stride in factors)
        return self._with(axis, reverse, offset)

    def take(self, axis: int, start: int, stop: int) -> View:
        """The range [start, stop) of one axis; IndexError when it is not inside the axis."""
        factors = self._axis(axis)
        if not 0 <= start <= stop <= _size(factors):
            raise IndexError(f"[{start}, {stop}) is outside of axis {axis} of {self.shape}")
        if start == stop:
            return self._with(axis, ((0, 1),), self.offset)
        pieces = [
            self._with(axis, _merged(box), self.offset + shift)
            for shift, box in _boxes(factors, start, stop)
        ]
        return pieces[0] if len(pieces) == 1 else concatenate(pieces, axis)

    def astype(self, dtype: DTypeLike) -> View:
        """The elements cast as in `numpy.ndarray.astype`; casts of casts round every time."""
        dtype = np.dtype(dtype)
        if dtype == self.dtype:
            return self
        first = self.dtype == self.storage.dtype
        return (self if first else View.over(self, self.shape))._replace(dtype=dtype)

    def numpy(self) -> Array:
        """The elements as a C-contiguous array; a read-only view where they lie in memory so."""
        if isinstance(self.storage, Memory | Computed) and self.contiguous:
            array = self.storage.array[self.offset : self.offset + self.size].reshape(self.shape)
            array.flags.writeable = False
            return array
        out = np.empty(self.size, self.dtype)
        self.read(0, out)
        return out.reshape(self.shape)

    def loaded(self) -> View:
        """The same view over memory, for a reader that takes its elements in order.

        They are read as they lie in the storage, once and in long runs.  Its rows, along the axis
        that is the storage's innermost, come in the order of this view and are padded to an odd
        number of cache lines, so that such a reader goes in equal steps, from one set of a cache
        to another.
        """
        memory = np.empty(self.load_nbytes, np.uint8)
        view, loads = self.loading(memory, memory.size)
        for load in loads:
            load()
        return view

    def loading(self, memory: Array, nbytes: int) -> tuple[View, list[Callable[[], None]]]:
        """What `loaded` gives, in `memory`, and the calls that bring it there.

        Any thread may make them, in any order, and all before the view is read.  Each is for a
        part of at most `nbytes` (an element at least); `memory` has `load_nbytes` bytes.
        """
        factors = self.factors
        steps, _ = _rows(factors, self.dtype.itemsize)
        whole = memory.view(self.dtype)
        axes = tuple(((n, step),) for (n, _), step in zip(factors, steps, strict=True))
        view = View(Memory(whole), 0, axes, self.dtype).reshape(self.shape)
        if not self.size:
            return view, []
        kept = [(n, stride) for n, stride in factors if stride]
        target = _strided(whole, [n for n, _ in kept], [step for step in steps if step])
        box = _box(self, 0, tuple(kept), (), target)
        return view, [partial(_copy, part) for part in _parts(box, nbytes)]

    def in_pieces(self) -> View:
        """The same view, for a reader that takes every element once, in pieces of any order."""
        storage = self.storage
        if self.size != storage.size or not isinstance(storage, Piecewise):
            return self
        return self._replace(storage=storage.in_pieces())

    @property
    def load_nbytes(self) -> int:
        """Bytes of memory that `loaded` takes."""
        return _rows(self.factors, self.dtype.itemsize)[1] * self.dtype.itemsize

    @property
    def in_memory(self) -> bool:
        """Whether nothing is left to be read from a file."""
        return _in_memory(self.storage)

    def read(self, start: int, out: Array) -> None:
        """Fill `out` with the elements [start, start + out.size) in C order.

        `out` is one-dimensional, C-contiguous and of `dtype`, else ValueError; IndexError when
        the range is outside of the view. Needs a few megabytes of memory, whatever the sizes.
        """
        if out.ndim != 1 or not out.flags.c_contiguous or out.dtype != self.dtype:
            raise ValueError(f"a read needs a contiguous one-dimensional array of {self.dtype}")
        if not 0 <= start <= start + out.size <= self.size:
            raise IndexError(f"[{start}, {start + out.size}) is outside of {self.size} elements")
        if out.size and self.contiguous:
            self.storage.read(self.offset + start, out)
        else:
            _fill(self, start, out, ())

    def chunk(self, nbytes: int) -> int:
        """A good number of elements for consecutive reads of at most `nbytes` (one at least)."""
        limit = max(1, nbytes // self.dtype.itemsize)
        if self.size <= limit:
            return max(1, self.size)
        sizes = [n for n, _ in self.factors]
        steps = zip(sizes, _steps(sizes), strict=True)
        n, inner = next((n, inner) for n, inner in steps if inner <= limit)
        return _even_part(n, limit // inner) * inner

    def boxes(self, nbytes: int, *, ordered: bool = False) -> list[Box]:
        """Boxes of at most `nbytes` that cover the view, and read the storage in long runs.

        They are consecutive ranges where that is good enough.  A permuted view is cut across the
        order of the target instead: then each part of the storage is read once, whatever the
        size of the boxes, at the price of writing many shorter rows.  Not so when they are wanted
        `ordered`.
        """
        if not self.size:
            return []
        limit = max(1, nbytes // self.dtype.itemsize)
        if self.size <= limit:
            return [Box(0, 1, self.size, 0, self, 0)]
        sizes = [n for n, _ in self.factors]
        steps = _steps(sizes)
        best, cut, part = 0, -1, 0
        for axis in range(1 if ordered else len(sizes)):
            most = limit * sizes[axis] // self.size
            if most:
                count = -(-sizes[axis] // -(-sizes[axis] // most))  # as few boxes, of one size
                run = self._run([*sizes[:axis], count, *sizes[axis + 1 :]])
                run = min(run, GOOD_RUN, count * steps[axis] if axis else GOOD_RUN)
                if run > 2 * best:
                    best, cut, part = run, axis, count
        if cut < 0:  # not even one index of the first axis
            step = self.chunk(nbytes)
            return [
                Box(start, 1, min(step, self.size - start), 0, self, start)
                for start in range(0, self.size, step)
            ]
        flat = self._replace(axes=tuple((factor,) for factor in self.factors))
        rows, inner, pitch = math.prod(sizes[:cut]), steps[cut], steps[cut - 1] if cut else 0
        return [
            Box(at * inner, rows, (stop - at) * inner, pitch, flat.take(cut, at, stop), 0)
            for at in range(0, sizes[cut], part)
            for stop in [min(at + part, sizes[cut])]
        ]

    def _run(self, sizes: Sequence[int]) -> int:
        """How many elements in a row a box of these sizes takes from the storage."""
        run = 1
        whole = (n for n, _ in self.factors)
        strides = (abs(stride) for _, stride in self.factors)
        for stride, size, n in sorted(zip(strides, sizes, whole, strict=True)):
            if stride != run:
                break
            run *= size
            if size < n:
                break
        return run

    def _axis(self, axis: int) -> Factors:
        if not 0 <= axis < self.ndim:
            raise IndexError(f"there is no axis {axis} in shape {self.shape}")
        return self.axes[axis]

    def _with(self, axis: int, factors: Factors, offset: int) -> View:
        axes = (*self.axes[:axis], factors, *self.axes[axis + 1 :])
        return self._replace(axes=axes, offset=offset)


class Box(NamedTuple):
    """A part of a whole view: `rows` rows of `length` elements in C order.

    Row r is the flat range [start + r * pitch, start + r * pitch + length) of the whole.  It is
    read from `view`, of which it is the flat range that starts at `at`.
    """

    start: int
    rows: int
    length: int
    pitch: int
    view: View
    at: int

    @property
    def size(self) -> int:
        """The number of elements."""
        return self.rows * self.length

    def read(self, out: Array) -> None:
        """Fill the 1-D array `out` of `size` elements with the rows, one after the other."""
        self.view.read(self.at, out)

    def cut(self, nbytes: int) -> list[Box]:
        """Parts of at most `nbytes` (one element at least), in the order of `view`."""
        most = max(1, nbytes // self.view.dtype.itemsize)
        if self.rows > 1 and self.length <= most:
            count = most // self.length
            return [
                self._part(row, 0)._replace(rows=min(count, self.rows - row))
                for row in range(0, self.rows, count)
            ]
        step = most if self.rows > 1 else self.view.chunk(nbytes)
        return [
            self._part(row, start)._replace(rows=1, length=min(step, self.length - start))
            for row in range(self.rows)
            for start in range(0, self.length, step)
        ]

    def _part(self, row: int, column: int) -> Box:
        start = self.start + row * self.pitch + column
        return self._replace(start=start, at=self.at + row * self.length + column)


def concatenate(views: Sequence[View], axis: int) -> View:
    """The views one after the other along `axis`, without a copy: `(2, 3), (2, 4) → (2, 7)`.

    ValueError when dtypes or the other axes differ, IndexError when there is no such axis.
    """
    fronts = []
    for view in views:
        view._axis(axis)  # noqa: SLF001 - the same module
        order = [axis, *(other for other in range(view.ndim) if other != axis)]
        fronts.append(view.transpose(order))
    if len({view.shape[1:] for view in fronts}) > 1:
        shapes = ", ".join(str(view.shape) for view in views)
        raise ValueError(f"cannot concatenate shapes {shapes} along axis {axis}")
    joined = Joined(fronts)
    shape = (sum(view.shape[0] for view in fronts), *fronts[0].shape[1:])
    back = [*range(1, axis + 1), 0, *range(axis + 1, len(shape))]
    return View.over(joined, shape).transpose(back)


# ── strides ──────────────────────────────────────────────────────────────────────────────────────


def _size(factors: Factors) -> int:
    return math.prod(n for n, _ in factors)


def _steps(shape: Sequence[int]) -> list[int]:
    """The C-order strides of a shape, in elements: `(2, 3, 4) → [12, 4, 1]`."""
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def _merged(factors: Factors) -> Factors:
    """Factors without those of size 1, and with neighbours that nest made one."""
    merged: list[tuple[int, int]] = []
    for n, stride in factors:
        if merged and merged[-1][1] == n * stride:
            merged[-1] = (merged[-1][0] * n, stride)
        elif n != 1:
            merged.append((n, stride))
    return tuple(merged)


def _even_part(n: int, limit: int) -> int:
    """A part of at most `limit` that cuts `n` evenly, or else into parts of nearly one size."""
    if n <= limit:
        return n
    least = -(-n // limit)
    for count in range(least, least + 16):
        if n % count == 0:
            return n // count
    even = -(-n // least)
    return min(limit, -(-even // 16) * 16)


def _boxes(factors: Factors, start: int, stop: int) -> Iterator[tuple[int, Factors]]:
    """Cut a flat C-order range into a few boxes, each as (shift of the offset, factors)."""
    if start == stop or not factors:
        yield from [(0, factors)] * (stop - start)
        return
    (_, stride), *rest = factors
    inner = tuple(rest)
    width = _size(inner)
    row, begin = divmod(start, width)
    if begin or stop - start < width:
        end = min(width, begin + stop - start)
        yield from ((row * stride + shift, box) for shift, box in _boxes(inner, begin, end))
        row, start = row + 1, start - begin + end
    whole, end = divmod(stop - start, width)
    if whole:
        yield row * stride, ((whole, stride), *inner)
        row += whole
    yield from ((row * stride + shift, box) for shift, box in _boxes(inner, 0, end))


def _rows(factors: Factors, itemsize: int) -> tuple[list[int], int]:
    """Steps that lay a view out in padded rows, and the size of that, in elements.

    A row goes along the axis that is the storage's innermost; an axis of stride 0 takes no step.
    """
    steps = [0] * len(factors)
    axes = [axis for axis, (_, stride) in enumerate(factors) if stride]
    if not axes:
        return steps, 1
    row = min(axes, key=lambda axis: abs(factors[axis][1]))
    size = factors[row][0]
    lines = -(-size * itemsize // LINE)
    if lines >= SHORT and not LINE % itemsize:
        size = (lines | 1) * LINE // itemsize
    steps[row] = 1
    for axis in reversed(axes):
        if axis != row:
            steps[axis] = size
            size *= factors[axis][0]
    return steps, size


def _in_memory(storage: Storage) -> bool:
    if isinstance(storage, View):
        return _in_memory(storage.storage)
    if isinstance(storage, Elementwise):
        return _in_memory(storage.view.storage)
    if isinstance(storage, Joined):
        return all(_in_memory(view.storage) for view in storage.views)
    return isinstance(storage, Memory | Computed) or not storage.size


def _through(
    factors: Factors, start: int, box: Iterable[tuple[int, int]]
) -> tuple[int, list[Factors]] | None:
    """Say a strided box over the flat C-order index of `factors` in their own strides.

    The box starts at the flat index `start`; its axes are (size, flat step). Returns the shift of
    the offset and the factors of every axis of the box, or None where that needs more than strides.
    """
    steps = _steps([n for n, _ in factors])
    index = [start // step % n for (n, _), step in zip(factors, steps, strict=True)]
    shift = sum(i * stride for i, (_, stride) in zip(index, factors, strict=True))
    found = []
    for axis_size, axis_step in box:
        size, step = axis_size, axis_step
        axis: list[tuple[int, int]] = []
        while size > 1:
            at = next(
                (k for k, (n, _) in enumerate(factors) if steps[k] <= step < steps[k] * n), -1
            )
            if at < 0 or step % steps[at]:
                return None
            stride, (n, unit) = step // steps[at], factors[at]
            part = size
            if index[at] + (size - 1) * stride >= n:  # it wraps into the axis further out
                part = n // stride
                if n % stride or size % part:
                    return None
            axis.insert(0, (part, stride * unit))
            index[at] += (part - 1) * stride
            size, step = size // part, step * part
        found.append(tuple(axis))
    inside = all(i < n for i, (n, _) in zip(index, factors, strict=True))
    return (shift, found) if inside else None


# ── the kernel ───────────────────────────────────────────────────────────────────────────────────


class _Box(NamedTuple):
    """A strided box of a storage, on its way through functions and casts into `target`.

    The axes are in the order of the source: positive strides, the largest first.
    """

    storage: Storage
    offset: int
    strides: tuple[int, ...]
    functions: tuple[Function, ...]
    target: Array


def _fill(view: View, start: int, out: Array, functions: tuple[Function, ...]) -> None:
    """Fill `out` with a flat range of a view, passed through functions and cast."""
    for shift, factors in _boxes(view.factors, start, start + out.size):
        count = _size(factors)
        _copy(_box(view, shift, factors, functions, out[:count]))
        out = out[count:]


def _box(
    view: View, shift: int, factors: Factors, functions: tuple[Function, ...], target: Array
) -> _Box:
    """Make the box of some factors of a view; they only split the axes of `target`."""
    if view.dtype != view.storage.dtype and (functions or view.dtype != target.dtype):
        functions = (partial(_cast, dtype=view.dtype), *functions)
    target = target.reshape([n for n, _ in factors])
    reverse = [slice(None, None, -1 if step < 0 else None) for _, step in factors]
    target = target[(..., *reverse)]  # the dots keep an array of no axes an array
    offset = view.offset + shift + sum((n - 1) * step for n, step in factors if step < 0)
    axes: list[tuple[int, int, int]] = []
    steps = (abs(step) for _, step in factors)
    target_steps = (stride // target.itemsize for stride in target.strides)
    box = zip(steps, target_steps, target.shape, strict=True)
    for step, stride, n in sorted(box, key=lambda axis: -axis[0]):
        if axes and axes[-1][:2] == (step * n, stride * n):
            axes[-1] = (step, stride, axes[-1][2] * n)
        elif n != 1:
            axes.append((step, stride, n))
    axes = axes or [(1, 1, 1)]
    target = _strided(target, [n for _, _, n in axes], [stride for _, stride, _ in axes])
    return _Box(view.storage, offset, tuple(step for step, _, _ in axes), functions, target)


def _parts(box: _Box, nbytes: int) -> Iterator[_Box]:
    """Cut a box along its outermost axes into parts of at most `nbytes`, or of one element."""
    target, (step, *inner) = box.target, box.strides
    count = nbytes * len(target) // target.nbytes
    if count or not inner:
        for at in range(0, len(target), max(1, count)):
            part = target[at : at + max(1, count)]
            yield box._replace(offset=box.offset + at * step, target=part)
        return
    for at, part in enumerate(target):
        yield from _parts(
            box._replace(offset=box.offset + at * step, strides=tuple(inner), target=part), nbytes
        )


def _copy(box: _Box) -> None:
    """Fill the target of a box from as far down as its strides can be followed."""
    storage = box.storage
    if box.strides[-1] == 0:
        _copy_expanded(box)
        return
    if isinstance(storage, Joined):
        _copy_joined(box, storage)
        return
    if isinstance(storage, View | Elementwise):
        apply = () if isinstance(storage, View) else (storage.apply,)
        view = storage if isinstance(storage, View) else storage.view
        found = _through(view.factors, box.offset, zip(box.target.shape, box.strides, strict=True))
        if found:
            factors = tuple(itertools.chain.from_iterable(found[1]))
            _copy(_box(view, found[0], factors, (*apply, *box.functions), box.target))
            return
    _copy_blocks(box)


def _copy_expanded(box: _Box) -> None:
    """Copy once what axes of stride 0 repeat, and repeat it inside the target."""
    kept = sum(map(bool, box.strides))
    repeats = len(box.strides) - kept
    first: tuple[Any, ...] = (..., *[slice(1)] * repeats)
    once = box.target[first]
    _copy(box._replace(strides=(*box.strides[:kept], *[1] * repeats), target=once))
    _move(box.target, once)


def _copy_joined(box: _Box, joined: Joined) -> None:
    """Cut a box along its outermost axis where one piece ends."""
    offset, target, (step, *inner) = box.offset, box.target, box.strides
    width = 1 + sum((n - 1) * step for n, step in zip(target.shape[1:], inner, strict=True))
    while len(target):
        view, start, end = joined.piece(offset)
        count = min(len(target), (end - width - offset) // step + 1)
        if count > 0:
            part = box._replace(storage=view, offset=offset - start, target=target[:count])
        else:  # the first index lies across the end: cut its inner axes
            count = 1
            part = box._replace(offset=offset, strides=tuple(inner), target=target[0])
        _copy(part)
        offset, target = offset + count * step, target[count:]


def _copy_blocks(box: _Box) -> None:
    """Gather a box, panel by panel, into scratch memory, and turn each panel tile by tile."""
    target, size = box.target, box.target.itemsize
    inward = sorted(range(target.ndim), key=lambda axis: -abs(target.strides[axis]))
    if inward[-1] == target.ndim - 1:  # the innermost axis of the source is the target's
        _copy_runs(box, inward)
        return
    storage = box.storage
    if isinstance(storage, Memory | Computed) and _is_spread(box.strides[inward[-1]] * size):
        _copy_spread(box, storage, inward)
        return
    outward = range(target.ndim - 1, -1, -1)
    limit = TILE // size
    tile = _tile(target.shape, (outward, RUN // size), (inward[::-1], limit), (outward, limit))
    panel = _panel(box, tile)
    scratch = _scratch(panel, tile, inward, target.dtype)
    buffer = np.empty(0, box.storage.dtype)
    for cut, offset in _cuts(box, panel, tile):
        part = target[cut]
        cell = tuple(map(min, part.shape, tile))
        counts = tuple(map(operator.floordiv, part.shape, cell))
        grid = scratch[tuple(map(slice, (*counts, *cell)))]
        strides = (*map(operator.mul, box.strides, cell), *box.strides)
        buffer = _gather(box._replace(offset=offset, strides=strides, target=grid), buffer)
        for at in itertools.product(*map(range, counts)):
            corner = (slice(i * n, i * n + n) for i, n in zip(at, cell, strict=True))
            _move(part[tuple(corner)], grid[at])


def _copy_runs(box: _Box, inward: Sequence[int]) -> None:
    """Bring a box whose innermost axis stays innermost straight to its place."""
    tile, size, target = box.target.shape, box.target.itemsize, box.target
    if _is_exact(box) and target.flags.c_contiguous and box.strides == (1,):
        box.storage.read(box.offset, target)
        return
    if box.functions and isinstance(box.storage, Memory | Computed):  # which take memory
        outward, limit = range(target.ndim - 1, -1, -1), TILE // size
        tile = _tile(tile, (outward, limit // 8), (inward[::-1], limit), (outward, limit))
    buffer = np.empty(0, box.storage.dtype)
    for cut, offset in _cuts(box, tile, tile):
        buffer = _gather(box._replace(offset=offset, target=target[cut]), buffer)


def _is_spread(stride: int) -> bool:
    """Whether lines at this distance, in bytes, fall into different sets of a cache."""
    return stride % (2 * LINE) != 0


def _copy_spread(box: _Box, storage: Memory | Computed, inward: Sequence[int]) -> None:
    """Bring a box straight from memory to its place, some columns of the target at a time."""
    target, innermost = box.target, box.target.ndim - 1
    columns = [axis for axis in inward[::-1] if axis != innermost]
    tile = _tile(target.shape, (columns, COLUMNS), ((innermost,), target.size))
    source = _strided(storage.array[box.offset :], target.shape, box.strides)
    for cut, _ in _cuts(box, tile, tile):
        _move(target[cut], _applied(box.functions, source[cut]))


def _gather(box: _Box, buffer: Array) -> Array:
    """Fill the target of a box as it is read; returns the buffer that reads went through."""
    order = sorted(range(len(box.strides)), key=lambda axis: -box.strides[axis])
    strides = tuple(box.strides[axis] for axis in order)
    target, storage = box.target.transpose(order), box.storage
    if isinstance(storage, Memory | Computed):
        block = _strided(storage.array[box.offset :], target.shape, strides)
        _move(target, _applied(box.functions, block))
        return buffer
    box = box._replace(strides=strides, target=target)
    run = _run(target.shape, strides, storage.dtype.itemsize)
    if hasattr(storage, "read_rows") and _is_rows(box, run):
        for cut, start in _cuts(box, (*run[:-2], *target.shape[-2:]), run):
            rows = target[cut].reshape(target.shape[-2:])
            storage.read_rows(start, rows, strides[-2])
        return buffer
    direct, span, block = False, 0, buffer[:0]
    for cut, start in _cuts(box, run, (1,) * len(run)):
        row = target[cut]
        if row.shape != block.shape:  # all but the last ones are alike
            span = 1 + sum((n - 1) * step for n, step in zip(row.shape, strides, strict=True))
            direct = _is_exact(box) and span == row.size and row.flags.c_contiguous
            if buffer.size < span:
                buffer = np.empty(span, storage.dtype)
            block = _strided(buffer, row.shape, strides)
        if direct:
            storage.read(start, row.reshape(-1))
        else:
            storage.read(start, buffer[:span])
            _move(row, _applied(box.functions, block))
    return buffer


def _cuts(
    box: _Box, panel: Sequence[int], tile: Sequence[int]
) -> Iterator[tuple[tuple[slice, ...], int]]:
    """Cut a box into panels of whole tiles, and what is left over: (slices, offset)."""
    axes = []
    for n, most, part in zip(box.target.shape, panel, tile, strict=True):
        whole = n - n % part
        cuts = [slice(at, min(at + most, whole)) for at in range(0, whole, most)]
        axes.append([*cuts, slice(whole, n)] if whole < n else cuts)
    for cut in itertools.product(*axes):
        starts = (at.start for at in cut)
        yield cut, box.offset + sum(map(operator.mul, starts, box.strides))


def _tile(shape: Sequence[int], *passes: tuple[Iterable[int], int]) -> tuple[int, ...]:
    """Grow a tile along some axes, one after the other, to at most so many elements; then again."""
    tile = [1] * len(shape)
    for axes, most in passes:
        for axis in axes:
            room = most // math.prod(tile)
            if room > 1 and tile[axis] < shape[axis]:
                tile[axis] = _even_part(shape[axis], tile[axis] * room)
            if tile[axis] < shape[axis]:
                break
    return tuple(tile)


def _panel(box: _Box, tile: tuple[int, ...]) -> tuple[int, ...]:
    """Put tiles side by side until one read is worth its system call."""
    panel, size, span = list(tile), box.storage.dtype.itemsize, 1
    if isinstance(box.storage, Memory | Computed):
        return tile
    for axis in range(len(tile) - 1, -1, -1):
        n, step = box.target.shape[axis], box.strides[axis]
        if span * size >= READ_RUN or (step - span) * size > GAP:
            break
        most = min(n, READ_RUN // (step * size))
        panel[axis] *= max(1, most // tile[axis])
        if panel[axis] < n:
            break
        span += (n - 1) * step
    return tuple(panel)


def _scratch(
    panel: Sequence[int], tile: Sequence[int], inward: Sequence[int], dtype: np.dtype[Any]
) -> Array:
    """Make an uninitialised panel: an array of (tiles along each axis…, a tile's own axes…).

    A tile is contiguous, in the order of the target, but for its rows: these are the innermost
    axes of the source, padded. So bringing it to the target is one long inner loop, over rows
    that are all at one distance.
    """
    strides = [0] * len(tile)
    length, columns = 1, list(inward)
    for axis in range(len(tile) - 1, -1, -1):
        if length >= ROW or axis == inward[-1]:
            break
        strides[axis] = length
        length *= tile[axis]
        columns.remove(axis)
    length += PADDING
    for axis in reversed(columns):
        strides[axis] = length
        length *= tile[axis]
    counts = tuple(map(operator.floordiv, panel, tile))
    memory = np.empty(length * math.prod(counts), dtype)
    return _strided(memory, (*counts, *tile), (*(n * length for n in _steps(counts)), *strides))


def _run(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Find how much of a box one read covers, in as many axes."""
    run, span = [1] * len(shape), 1
    for axis in range(len(shape) - 1, -1, -1):
        n, step = shape[axis], strides[axis]
        if n > 1 and (step - span) * itemsize <= GAP:
            run[axis] = min(n, max(1, (READ_MOST // itemsize - span) // step + 1))
        if run[axis] < n:
            break
        span += (n - 1) * step
    return tuple(run)


def _is_rows(box: _Box, run: Sequence[int]) -> bool:
    """Whether one read covers a row of the target's, and many of them follow each other there."""
    *outer, length = box.target.shape
    if not outer or tuple(run) != (*[1] * len(outer), length) or box.strides[-1] != 1:
        return False
    rows = box.target[(0,) * (len(outer) - 1)]
    return _is_exact(box) and rows.flags.c_contiguous


def _applied(functions: tuple[Function, ...], block: Array) -> Array:
    """The block through elementwise functions, one after the other."""
    if not functions:
        return block
    flat = block.reshape(-1)
    for function in functions:
        flat = function(flat)
    return flat.reshape(block.shape)


def _strided(array: Array, shape: Sequence[int], strides: Sequence[int]) -> Array:
    """View memory from the first element of an array on, with strides in elements."""
    strides = [step * array.itemsize for step in strides]
    if array.dtype.hasobject:
        return as_strided(array, shape, strides)
    # Not every dtype has a name that array interfaces understand, but bytes have.
    return as_strided(array.view(f"V{array.itemsize}"), shape, strides).view(array.dtype)


def _cast(block: Array, dtype: np.dtype[Any]) -> Array:
    out = np.empty(block.shape, dtype)
    _move(out, block)
    return out


def _move(target: Array, source: Array) -> None:
    """Copy, and cast where dtypes differ, as C does."""
    if target.dtype == source.dtype:
        np.copyto(_raw(target), _raw(source))
        return
    # Infinity and zero are what casting out of a float's range means. Out of an integer's range
    # there is no right result, so that keeps its warning.
    invalid: Any = "warn" if target.dtype.kind in "iu" else "ignore"
    with np.errstate(over="ignore", under="ignore", invalid=invalid):
        np.copyto(target, source, casting="unsafe")


def _raw(array: Array) -> Array:
    """The elements of a dtype that NumPy does not own as integers, which it moves much faster."""
    if array.dtype.isbuiltin == USER_DEFINED:
        return array.view(f"u{array.itemsize}")
    return array


def _is_exact(box: _Box) -> bool:
    """Whether the bytes of the storage are those of the target."""
    return not box.functions and box.storage.dtype == box.target.dtype


def _check_block(array: Array, size: int, dtype: np.dtype[Any]) -> None:
    if array.shape != (size,) or array.dtype != dtype:
        raise ValueError(
            f"expected {size} elements of {dtype}, computed {array.shape} of {array.dtype}"
        )
