"""Any checkpoint → a file: order, threads, the memory window, progress.

Threads read, check and permute pieces into buffers of a small pool; the caller's thread checksums
and writes them.  All spend their time in calls that release the interpreter lock, so the cores are
used, and memory is the pool whatever the sizes of the tensors.

A large permuted tensor is cut across the order of the target, so that its source is read once; the
pieces go to their places at once, and the target is checksummed from there when all are written.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from converter import formats
from converter.errors import LimitError, UnrepresentableError, context
from converter.files import StagedFile
from converter.layout import KERNEL, Array, Box
from converter.tensors import STRING, Checkpoint, Tensor, TensorSpec

READERS = 2  # threads that read; the caller writes, which leaves it time to spare
BUFFERS = 2  # one for each of them
WINDOW = 96 << 20  # bytes of all buffers together, unless told
WHOLE = 448 << 20  # bytes of permuted tensors that are put together in memory, unless told
PIECE = 4 << 20  # bytes that are checksummed and written while they are in the cache
BASE = 74 << 20  # bytes of the interpreter and the libraries, h5py among them, as measured
SCRATCH = 6 << 20  # what is written is read again and checksummed through these
SMALLEST_WINDOW = 4 << 20

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
    """Bytes to work with: for the buffers together, and for permuted tensors put together."""

    window: int
    whole: int


def memory(limit: int | None) -> Memory:
    """What a memory limit leaves to work with; `LimitError` when that is too little."""
    if limit is None:
        return Memory(WINDOW, WHOLE)
    room = limit - BASE - SCRATCH
    # A thread's copy kernel takes as much as its buffer, to a certain size.
    window = max(room // 2, room - BUFFERS * KERNEL)
    if window < SMALLEST_WINDOW:
        raise LimitError(
            "the memory limit is too small",
            expected=f"at least {(BASE + SCRATCH + 2 * SMALLEST_WINDOW) >> 20} MiB",
            found=f"{limit >> 20} MiB",
        )
    return Memory(min(window, WINDOW), min(max(0, window - WINDOW), WHOLE))


def peak_memory(specs: Mapping[str, TensorSpec], limit: int | None = None) -> int:
    """The estimated peak of a conversion in bytes; buffers are never larger than needed."""
    window, whole = memory(limit)
    largest = max((spec.nbytes for spec in specs.values()), default=0)
    together = largest if window // BUFFERS < largest <= whole else 0
    buffers = BUFFERS * min(window // BUFFERS, largest)
    return BASE + SCRATCH + buffers + min(buffers, BUFFERS * KERNEL) + together


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
            for name in sink.order:
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


class _Work(NamedTuple):
    """A piece to read.  Strings have no box, since no buffer holds references.

    `whole` is where the pieces of a tensor come together, if they do.
    """

    name: str
    tensor: Tensor
    place: Place | None
    box: Box | None
    whole: Array | None = None


class _Piece(NamedTuple):
    """What was read: so many elements, and the array if they are to be written from it."""

    size: int
    array: Array | None
    buffer: Array
    whole: Array | None


_Promise = queue.SimpleQueue[_Piece | BaseException]  # of one item


def _write(
    sink: formats.Sink, name: str, place: Place | None, spec: TensorSpec, pieces: Iterator[_Piece]
) -> None:
    """Give a tensor to a sink: piece by piece, or when all pieces are where they belong."""
    first = next(pieces, None)
    if first is None:
        sink.write(name, ())
    elif first.array is not None:
        arrays = (piece.array for piece in itertools.chain([first], pieces))
        sink.write(name, (part for array in arrays for part in _parts(array)))
    else:
        for _ in pieces:
            pass
        if first.whole is not None:
            sink.write(name, _parts(first.whole))
        elif place is not None:
            sink.write(name, _read_back(*place, spec), placed=True)


def _parts(array: Array | None) -> Iterator[Array]:
    assert array is not None  # noqa: S101 - the pieces of a tensor are all of one kind
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
    """The tensors of a checkpoint in pieces, read ahead by threads, handed out in order.

    A thread takes a buffer first and the next piece then, so the piece that is waited for always
    has a buffer.  Use as a context manager; leaving it stops the threads, whatever happened.
    """

    def __init__(
        self, checkpoint: Checkpoint, places: Mapping[str, Place | None], room: Memory
    ) -> None:
        tensors = [(name, checkpoint[name], place) for name, place in places.items()]
        largest = max((tensor.spec.nbytes for _, tensor, _ in tensors), default=0)
        self._nbytes = max(16, min(room.window // BUFFERS, largest))
        self._whole = room.whole
        self._work = self._pieces(tensors)
        self._turn = threading.Lock()
        self._free: queue.SimpleQueue[Array | None] = queue.SimpleQueue()
        self._ahead: queue.SimpleQueue[_Promise] = queue.SimpleQueue()
        for _ in range(BUFFERS):
            self._free.put(np.empty(self._nbytes, np.uint8))
        self._threads = [
            threading.Thread(target=self._read_all, name=f"converter-read-{number}", daemon=True)
            for number in range(READERS)
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
        """The pieces of the next tensor; tensors come in the order given at the start."""
        done = 0
        while done < spec.size:
            piece = self._ahead.get().get()
            if isinstance(piece, BaseException):
                raise piece
            yield piece
            done += piece.size
            self._free.put(piece.buffer)
            if progress is not None:
                progress(name, piece.size * spec.dtype.itemsize)

    def _pieces(self, tensors: Iterable[tuple[str, Tensor, Place | None]]) -> Iterator[_Work]:
        for name, tensor, place in tensors:
            view, nbytes = tensor.view, tensor.spec.nbytes
            if not view.size:  # nobody waits for a piece of it
                continue
            if view.dtype == STRING:
                yield _Work(name, tensor, place, None)
                continue
            boxes, whole = view.boxes(self._nbytes), None
            if boxes and boxes[0].pitch and nbytes <= self._whole:
                # The best that can be done with a permuted tensor, if there is room: its source
                # is read once, and it is written in one go.
                whole = np.empty(view.size, view.dtype)
                self._whole -= nbytes
            elif place is None:
                boxes = view.boxes(self._nbytes, ordered=True)
            for box in boxes:
                yield _Work(name, tensor, place, box, whole)

    def _read_all(self) -> None:
        while (buffer := self._free.get()) is not None:
            promise: _Promise = queue.SimpleQueue()
            with self._turn:
                work = next(self._work, None)
                if work is None:
                    break
                self._ahead.put(promise)
            try:
                with context(tensor=work.name):
                    promise.put(_read(work, buffer))
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                promise.put(error)
        self._free.put(None)  # for the other threads


def _read(work: _Work, buffer: Array) -> _Piece:
    """Read a piece; write it, too, if neither a whole nor consecutive pieces wait for it."""
    box, dtype = work.box, work.tensor.spec.dtype
    if box is None:
        array = work.tensor.numpy().reshape(-1)
        return _Piece(array.size, array, buffer, None)
    if work.whole is not None:
        box.read_into(work.whole)
        return _Piece(box.size, None, buffer, work.whole)
    array = buffer[: box.size * dtype.itemsize].view(dtype)
    box.read(array)
    if not box.pitch or work.place is None:
        return _Piece(box.size, array, buffer, None)
    file, offset = work.place
    width = dtype.itemsize
    rows = array.reshape(box.rows, box.length)
    file.write_rows(offset + box.start * width, rows, box.pitch * width)
    return _Piece(box.size, None, buffer, None)
