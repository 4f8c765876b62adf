"""Any checkpoint → a file: order, threads, the memory window, progress.

One thread reads, checks and permutes into buffers of a small pool; the other, the caller's,
checksums and writes them.  Both spend their time in calls that release the interpreter lock, so two
cores are used, and memory is the pool whatever the sizes of the tensors.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from converter import formats
from converter.errors import LimitError, UnrepresentableError, context
from converter.files import StagedFile
from converter.layout import Array, Box
from converter.tensors import STRING, Checkpoint, Tensor, TensorSpec

BUFFERS = 2  # one is filled while the other is written
WINDOW = 96 << 20  # bytes of all buffers together, unless told
BASE = 96 << 20  # bytes of the interpreter and the libraries, as measured; part of --max-memory
SMALLEST_WINDOW = 6 << 20
READ_BACK = 1 << 20  # bytes read at a time for the checksum of what was written out of order
SCRATCH = 16 << 20  # the copy kernel's and the checksum's buffers, generously

Progress = Callable[[str, int], None]


@dataclass(frozen=True, slots=True)
class Saved:
    """What was written: the files, and the bytes of all tensors."""

    files: tuple[Path, ...]
    format: str
    tensors: int
    nbytes: int


def window(max_memory: int | None) -> int:
    """Bytes for buffers under a memory limit; `LimitError` when the limit leaves too few."""
    if max_memory is None:
        return WINDOW
    room = max_memory - BASE - SCRATCH
    if room < SMALLEST_WINDOW:
        raise LimitError(
            "the memory limit is too small",
            expected=f"at least {(BASE + SCRATCH + SMALLEST_WINDOW) >> 20} MiB",
            found=f"{max_memory >> 20} MiB",
        )
    return min(room, WINDOW)


def peak_memory(specs: Mapping[str, TensorSpec], max_memory: int | None = None) -> int:
    """The estimated peak of a conversion in bytes; buffers are never larger than needed."""
    largest = max((spec.nbytes for spec in specs.values()), default=0)
    return BASE + SCRATCH + min(window(max_memory), BUFFERS * largest)


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
    progress: Progress | None = None,
) -> Saved:
    """Write a checkpoint; the target appears complete and durable, or not at all.

    The format is that of the suffix unless given.  `progress(name, nbytes)` is called after each
    piece.  Raises `TargetError`, `RefusedError`, or what reading the source raises.
    """
    path = Path(target)
    row = formats.named(format) if format else formats.for_target(path)
    nbytes = window(max_memory)
    specs = checkpoint.specs
    sink = formats.create(
        path,
        row,
        specs,
        metadata=checkpoint.metadata,
        ties=checkpoint.ties,
        overwrite=overwrite,
    )
    try:
        places = {name: sink.place(name) for name in sink.order}
        with _Reader(checkpoint, places, nbytes // BUFFERS) as reader:
            for name in sink.order:
                with context(tensor=name):
                    pieces = reader.pieces(name, specs[name].size, progress)
                    _write(sink, name, places[name], pieces)
        sink.commit()
    except BaseException:
        sink.abort()
        raise
    return Saved(
        tuple(sink.files), row.name, len(specs), sum(spec.nbytes for spec in specs.values())
    )


Place = tuple[StagedFile, int]
Piece = tuple[Box | None, Array]  # strings come in one piece, without a box


def _write(sink: formats.Sink, name: str, place: Place | None, pieces: Iterator[Piece]) -> None:
    """Give a tensor to a sink: piece by piece, or the pieces to their places and then the sum."""
    first = next(pieces, None)
    if first is None:
        sink.write(name, ())
        return
    box, array = first
    if box is None or not box.pitch or place is None:
        sink.write(name, itertools.chain([array], (piece for _, piece in pieces)))
        return
    file, offset = place
    size = 0
    for box, array in itertools.chain([first], pieces):
        assert box is not None  # noqa: S101 - only strings have none, and they have no place
        width, size = array.itemsize, size + array.size
        rows = array.reshape(box.rows, box.length)
        file.write_rows(offset + box.start * width, rows, box.pitch * width)
    sink.write(name, _read_back(file, offset, size, array.dtype), placed=True)


def _read_back(file: StagedFile, offset: int, size: int, dtype: np.dtype[Any]) -> Iterator[Array]:
    buffer = np.empty(READ_BACK // dtype.itemsize, dtype)
    for start in range(0, size, buffer.size):
        piece = buffer[: size - start]
        file.read_into(offset + start * dtype.itemsize, piece)
        yield piece


class _Reader:
    """The tensors of a checkpoint in pieces, read ahead by a thread.

    Use as a context manager; leaving it stops the thread, whatever happened.
    """

    def __init__(
        self, checkpoint: Checkpoint, places: Mapping[str, Place | None], nbytes: int
    ) -> None:
        self._tensors = [(name, checkpoint[name], place is None) for name, place in places.items()]
        largest = max((tensor.spec.nbytes for _, tensor, _ in self._tensors), default=0)
        self._nbytes = max(16, min(nbytes, largest))
        self._free: queue.Queue[Array | None] = queue.Queue()
        self._full: queue.Queue[tuple[Piece, Array | None] | BaseException] = queue.Queue()
        for _ in range(BUFFERS):
            self._free.put(np.empty(self._nbytes, np.uint8))
        self._thread = threading.Thread(target=self._read_all, name="converter-read", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._free.put(None)  # asks the reader to stop
        self._thread.join()

    def pieces(self, name: str, size: int, progress: Progress | None) -> Iterator[Piece]:
        """The pieces of the next tensor; tensors come in the order given at the start."""
        done = 0
        while done < size:
            item = self._full.get()
            if isinstance(item, BaseException):
                raise item
            piece, buffer = item
            yield piece
            done += piece[1].size
            if buffer is not None:
                self._free.put(buffer)
            if progress is not None:
                progress(name, piece[1].nbytes)

    def _read_all(self) -> None:
        try:
            for name, tensor, ordered in self._tensors:
                with context(tensor=name):
                    if not self._read(tensor, ordered=ordered):
                        return
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            self._full.put(error)

    def _read(self, tensor: Tensor, *, ordered: bool) -> bool:
        """Read one tensor; False when asked to stop."""
        view = tensor.view
        if view.dtype == STRING:  # references: no buffer holds them
            self._full.put(((None, tensor.numpy().reshape(-1)), None))
            return True
        for box in view.boxes(self._nbytes, ordered=ordered):
            buffer = self._free.get()
            if buffer is None:
                return False
            piece = buffer[: box.size * view.dtype.itemsize].view(view.dtype)
            box.read(piece)
            self._full.put(((box, piece), buffer))
        return True
