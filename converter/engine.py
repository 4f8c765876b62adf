"""Any checkpoint → a file: order, threads, the memory window, progress.

Threads read, check and permute pieces into buffers of a small pool; the caller's thread checksums
and writes them.  All spend their time in calls that release the interpreter lock, so the cores are
used, and memory is the pool whatever the sizes of the tensors.

A large permuted tensor is read in one go, and permuted from memory.  Where there is no room for
that, it is cut across the order of the target, so that its source is read once; the rows of a piece
go to their places, and the target is checksummed from there when all are written.  That is many
short calls, between which two more threads would only wait for the interpreter lock; so one reads.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from converter import formats
from converter.errors import LimitError, UnrepresentableError, context
from converter.files import StagedFile
from converter.layout import KERNEL, Array, Box, View
from converter.tensors import STRING, Checkpoint, Tensor, TensorSpec

READERS = 2  # threads that read; the caller writes, which leaves it time to spare
WINDOW = 36 << 20  # bytes of all buffers together, unless told
AHEAD = 464 << 20  # bytes of large permuted tensors that are read in one go, unless told
ASIDE = 16 << 20  # bytes of a small one, likewise
MOST_UNUSED = 2  # a storage is read in one go if no more than half of it is not needed
PIECE = 4 << 20  # bytes that are checksummed and written while they are in the cache
BASE = 50 << 20  # bytes of the interpreter and the libraries, as measured
SCRATCH = 4 << 20  # what is written is read again and checksummed through these
SMALLEST_WINDOW = 4 << 20
LARGEST_WINDOW = 96 << 20  # with rows as long as these buffers give, longer ones gain nothing
LEAST = BASE + SCRATCH + 3 * SMALLEST_WINDOW // 2  # bytes that a limit must leave

Progress = Callable[[str, int], None]


@dataclass(frozen=True, slots=True)
class Saved:
    """What was written: the files, and the bytes of all tensors.

    `resumed` tensors of them were there from a run that was stopped.
    """

    files: tuple[Path, ...]
    format: str
    tensors: int
    nbytes: int
    resumed: int = 0


class Memory(NamedTuple):
    """Bytes to work with.

    `window` is for the buffers together, `ahead` for large permuted tensors that are read in one
    go, `aside` for a small one, in each of the threads that are `readers`.
    """

    window: int
    ahead: int
    aside: int
    readers: int

    @property
    def buffers(self) -> int:
        """One for each of the readers, and one for the caller."""
        return self.readers + 1


def memory(limit: int | None) -> Memory:
    """What a memory limit leaves to work with; `LimitError` when that is too little."""
    room = Memory(WINDOW, AHEAD, ASIDE, READERS)
    most = BASE + SCRATCH + room.window + room.ahead + room.readers * (room.aside + KERNEL)
    if limit is None or limit >= most:
        return room
    left = limit - BASE - SCRATCH
    # The copy kernel takes as much as one of the two buffers, to a certain size.
    window = min(max(2 * left // 3, left - KERNEL), LARGEST_WINDOW)
    if window < SMALLEST_WINDOW:
        raise LimitError(
            "the memory limit is too small",
            expected=f"at least {LEAST >> 20} MiB",
            found=f"{limit >> 20} MiB",
        )
    left = max(0, left - window - KERNEL)
    aside = min(left // 4, ASIDE)
    return Memory(window, left - aside, aside, 1)


def peak_memory(specs: Mapping[str, TensorSpec], limit: int | None = None) -> int:
    """The estimated peak of a conversion in bytes; buffers are never larger than needed."""
    room = memory(limit)
    largest = max((spec.nbytes for spec in specs.values()), default=0)
    whole = largest if room.aside < largest <= room.ahead else 0
    buffer = min(room.window // room.buffers, largest)
    each = min(buffer, KERNEL) + min(room.aside, largest)
    return BASE + SCRATCH + room.buffers * buffer + room.readers * each + whole


def check(specs: Mapping[str, TensorSpec], row: formats.Format) -> None:
    """Raise `UnrepresentableError` with the first tensor that a format cannot hold."""
    module = row.load()
    for name, spec in specs.items():
        problem = module.problem(name, spec)
        if problem:
            raise UnrepresentableError(problem, tensor=name, found=spec)


def save(  # noqa: PLR0913 - how a target is to be written, each by name
    checkpoint: Checkpoint,
    target: str | Path,
    *,
    format: str | None = None,  # noqa: A002 - the word that people use
    overwrite: bool = False,
    max_memory: int | None = None,
    shard_nbytes: int | None = None,
    resume: str | None = None,
    progress: Progress | None = None,
) -> Saved:
    """Write a checkpoint; the target appears complete and durable, or not at all.

    The format is that of the suffix unless given; with `shard_nbytes` it is cut into shards of at
    most that size, and an index.  With `resume`, a text that tells where the values are from,
    finished shards outlive a failure, and the next call with the same text takes them over.
    `progress(name, nbytes)` is called after each piece.  Raises `TargetError`, `RefusedError`, or
    what reading the source raises.
    """
    path = Path(target)
    row = formats.named(format) if format else formats.for_target(path)
    room = memory(max_memory)
    specs = checkpoint.specs
    sink = formats.create(
        path,
        row,
        specs,
        metadata=checkpoint.metadata,
        ties=checkpoint.ties,
        overwrite=overwrite,
        shard_nbytes=shard_nbytes,
        resume=resume,
    )
    try:
        places = {name: sink.place(name) for name in sink.order}
        with _Readers(checkpoint, places, room) as readers:
            for name in readers.order:
                with context(tensor=name):
                    pieces = readers.pieces(name, specs[name], progress)
                    _write(sink, name, places[name], specs[name], pieces)
        sink.commit()
    except BaseException:
        sink.abort()
        raise
    nbytes = sum(spec.nbytes for spec in specs.values())
    resumed = getattr(sink, "resumed", 0)  # those of one file begin anew
    return Saved(tuple(sink.files), row.name, len(specs), nbytes, resumed)


Place = tuple[StagedFile, int]
_Tensor = tuple[str, Tensor, Place | None]


class _Ahead:
    """A large permuted tensor: read in one go by the first thread that asks, then permuted.

    Its source is read once, and in order, which is when a checksum costs no second read.  `left`
    pieces are to be taken from it; its memory is needed until then.  There is no room for it
    until those `before` it are done, which never wait for it.
    """

    def __init__(self, view: View, left: int, before: Sequence[_Ahead]) -> None:
        self.done = threading.Event()
        self._view = view
        self._left = left
        self._before = before
        self._loaded: View | None = None
        self._turn = threading.Lock()

    def load(self) -> View:
        """The view over memory; waits until others have left the room that it takes."""
        with self._turn:
            if self._loaded is None:
                for other in self._before:
                    other.done.wait()
                self._loaded = self._view.loaded()
            return self._loaded

    def took(self) -> None:
        """Note that a piece is read, or has failed: the last one leaves the memory."""
        with self._turn:
            self._left -= 1
            if not self._left:
                self._loaded = None
                self.done.set()


class _Work(NamedTuple):
    """A piece to read.  Without a box: all of a tensor, into no buffer.

    Such are strings, since no buffer holds references, and what is only loaded `ahead`.
    """

    name: str
    tensor: Tensor
    box: Box | None
    ahead: _Ahead | None = None


class _Piece(NamedTuple):
    """What was read, and the box that it fills; strings fill none."""

    array: Array
    buffer: Array
    box: Box | None

    @property
    def scattered(self) -> bool:
        """Whether its rows are not consecutive in the target."""
        return self.box is not None and self.box.pitch > 0


_Promise = queue.SimpleQueue[_Piece | BaseException]  # of one item


def _write(
    sink: formats.Sink, name: str, place: Place | None, spec: TensorSpec, pieces: Iterator[_Piece]
) -> None:
    """Give a tensor to a sink: piece by piece, or when all rows are where they belong."""
    first = next(pieces, None)
    every = itertools.chain([first] if first else [], pieces)
    if first is None or place is None or not first.scattered:
        sink.write(name, (part for piece in every for part in _parts(piece.array)))
        return
    file, offset = place
    for piece in every:
        if piece.box is not None:
            rows, width = piece.array.reshape(piece.box.rows, -1), spec.dtype.itemsize
            file.write_rows(offset + piece.box.start * width, rows, piece.box.pitch * width)
    sink.write(name, _read_back(file, offset, spec), placed=True)


def _parts(array: Array) -> Iterator[Array]:
    size = PIECE // array.itemsize
    for start in range(0, array.size, size):
        yield array[start : start + size]


def _read_back(file: StagedFile, offset: int, spec: TensorSpec) -> Iterator[Array]:
    buffer = np.empty(PIECE // spec.dtype.itemsize, spec.dtype)
    for start in range(0, spec.size, buffer.size):
        part = buffer[: spec.size - start]
        file.read_into(offset + start * spec.dtype.itemsize, part)
        yield part


class _Readers:
    """The tensors of a checkpoint in pieces, read ahead by threads, handed out in `order`.

    A thread takes a buffer first and the next piece then, so the piece that is waited for always
    has a buffer.  Large permuted tensors come last: they are read while others are written.  Use
    as a context manager; leaving it stops the threads, whatever happened.
    """

    def __init__(
        self, checkpoint: Checkpoint, places: Mapping[str, Place | None], room: Memory
    ) -> None:
        tensors = [(name, checkpoint[name], place) for name, place in places.items()]
        largest = max((tensor.spec.nbytes for _, tensor, _ in tensors), default=0)
        self._nbytes = max(16, min(room.window // room.buffers, largest))
        self._room = room
        late: list[_Tensor] = []
        soon: list[_Tensor] = []
        for each in tensors:
            (late if self._is_late(each[1].view) else soon).append(each)
        self.order = [name for name, *_ in (*soon, *late)]
        self._work = self._pieces(soon, late)
        self._turn = threading.Lock()
        self._free: queue.SimpleQueue[Array | None] = queue.SimpleQueue()
        self._ahead: queue.SimpleQueue[_Promise] = queue.SimpleQueue()
        for _ in range(room.buffers):
            self._free.put(np.empty(self._nbytes, np.uint8))
        self._threads = [
            threading.Thread(target=self._read_all, name=f"converter-read-{number}", daemon=True)
            for number in range(room.readers)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._free.put(None)  # asks the threads to stop
        for thread in self._threads:
            thread.join()

    def pieces(self, name: str, spec: TensorSpec, progress: Progress | None) -> Iterator[_Piece]:
        """The pieces of the next tensor; tensors come in `order`."""
        done = 0
        while done < spec.size:
            piece = self._ahead.get().get()
            if isinstance(piece, BaseException):
                raise piece
            yield piece
            done += piece.array.size
            self._free.put(piece.buffer)
            if progress is not None:
                progress(name, piece.array.nbytes)

    def _is_small(self, view: View) -> bool:
        """Is it permuted, and small enough to be read in one go by the thread that permutes it?"""
        most = min(self._room.aside, MOST_UNUSED * view.nbytes)
        return view.load_nbytes <= most and not view.in_order

    def _is_late(self, view: View) -> bool:
        """Is it permuted, and worth to be read in one go ahead of its time?"""
        most = min(self._room.ahead, MOST_UNUSED * view.nbytes)
        return self._room.aside < view.load_nbytes <= most and not view.in_order

    def _pieces(self, soon: Sequence[_Tensor], late: Sequence[_Tensor]) -> Iterator[_Work]:
        """All pieces; a late tensor is loaded beside those before it, as far as there is room."""
        aheads: list[_Ahead] = []
        for index, (_, tensor, _) in enumerate(late):
            beside = index and self._fits(late[index - 1], late[index])
            left = len(tensor.view.boxes(self._nbytes, ordered=True))
            aheads.append(_Ahead(tensor.view, left, aheads[: index - beside]))
        if late:
            yield _Work(*late[0][:2], None, aheads[0])
        for name, tensor, place in soon:
            yield from self._cut(name, tensor, place)
        for index, (name, tensor, _) in enumerate(late):
            if late[index + 1 :] and self._fits(late[index], late[index + 1]):
                yield _Work(*late[index + 1][:2], None, aheads[index + 1])
            for box in tensor.view.boxes(self._nbytes, ordered=True):
                yield _Work(name, tensor, box, aheads[index])

    def _fits(self, one: _Tensor, other: _Tensor) -> bool:
        return one[1].view.load_nbytes + other[1].view.load_nbytes <= self._room.ahead

    def _cut(self, name: str, tensor: Tensor, place: Place | None) -> Iterator[_Work]:
        view = tensor.view
        if not view.size:  # nobody waits for a piece of it
            return
        if view.dtype == STRING:
            yield _Work(name, tensor, None)
            return
        boxes = view.boxes(self._nbytes, ordered=place is None)
        if len(boxes) > 1 and (view.in_order or boxes[0].pitch):  # each part is read once
            boxes = view.in_pieces().boxes(self._nbytes, ordered=place is None)
        for box in boxes:
            yield _Work(name, tensor, box)

    def _read_all(self) -> None:
        while (buffer := self._free.get()) is not None:
            promise: _Promise = queue.SimpleQueue()
            with self._turn:
                work = next(self._work, None)
                if work is None:
                    break
                loads = work.ahead if work.box is None else None
                if not loads:
                    self._ahead.put(promise)
            if loads:
                self._free.put(buffer)  # which others can use meanwhile
                with contextlib.suppress(Exception):  # the pieces will say what is wrong
                    loads.load()
                continue
            try:
                with context(tensor=work.name):
                    promise.put(self._read(work, buffer))
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                promise.put(error)
            finally:
                if work.ahead:
                    work.ahead.took()
        self._free.put(None)  # for the other threads

    def _read(self, work: _Work, buffer: Array) -> _Piece:
        box, view, dtype = work.box, work.tensor.view, work.tensor.spec.dtype
        if box is None:
            return _Piece(work.tensor.numpy().reshape(-1), buffer, None)
        array = buffer[: box.size * dtype.itemsize].view(dtype)
        if work.ahead:
            box = box._replace(view=work.ahead.load())
        elif box.size == view.size and self._is_small(view):
            box = box._replace(view=view.loaded())
        box.read(array)
        return _Piece(array, buffer, box)
