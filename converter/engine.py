"""Any checkpoint → a file: order, threads, the memory window, progress.

Threads read, check and permute pieces in buffers of a small pool, and write and checksum them where
they belong; pieces that have no place yet are handed to the caller's thread, which writes these.
All spend their time in calls that release the interpreter lock, so the cores are used, and memory
is the pool whatever the sizes of the tensors.

A permuted tensor is first loaded into memory, in the order of its source, and then permuted from
there, both by all threads.  A large one is loaded in columns: cut across the order of the target,
so that its source is read once whatever the room.  The rows of a column go to their places, and the
target's checksum is joined from theirs.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from converter import formats
from converter.errors import LimitError, TargetError, UnrepresentableError, context
from converter.files import Pieces, Place
from converter.layout import READ_MOST, Array, Box, View
from converter.tensors import STRING, Checkpoint, TensorSpec

READERS = 2  # threads that do the work: so many cores are kept busy, and more wait for the lock
BUFFERS = READERS + 1  # one for each of them, and one for the caller
WINDOW = 36 << 20  # bytes of all buffers together, unless told
AHEAD = 208 << 20  # bytes of permuted tensors in memory, unless told
LOAD = 8 << 20  # bytes of them that a thread loads at a time
LOADED = READERS + 1  # columns at most that are loaded before a part is permuted
ASIDE = 1 << 20  # bytes of a permuted tensor that is not worth to be loaded ahead of its time
PIECE = 4 << 20  # bytes that are checksummed and written while they are in the cache
SMALL = 128 << 10  # bytes of a tensor that takes less time than a change of threads
BASE = 50 << 20  # bytes of the interpreter and the libraries, as measured
ALIGNED = 64  # bytes; where a column starts
SHARE = 16  # a buffer is this part of what a limit leaves
LEAST = 64 << 20  # bytes that a limit must leave

Progress = Callable[[str, int], None]


class Saved(NamedTuple):
    """What was written: the files, and the bytes of all tensors.

    `resumed` tensors of them were there from a run that was stopped.
    """

    files: tuple[Path, ...]
    format: str
    tensors: int
    nbytes: int
    resumed: int = 0


class Memory(NamedTuple):
    """Bytes to work with: each buffer, and permuted tensors in memory together."""

    buffer: int
    ahead: int


def memory(limit: int | None) -> Memory:
    """What a memory limit leaves to work with; `LimitError` when that is too little."""
    room = Memory(WINDOW // BUFFERS, AHEAD)
    if limit is None or limit >= _peak(room):
        return room
    if limit < LEAST:
        raise LimitError(
            "the memory limit is too small",
            expected=f"at least {LEAST >> 20} MiB",
            found=f"{limit >> 20} MiB",
        )
    room = Memory(min((limit - BASE) // SHARE, room.buffer), 0)
    return room._replace(ahead=min(limit - _peak(room), AHEAD))


def _peak(room: Memory) -> int:
    each = room.buffer + READ_MOST + min(ASIDE, room.ahead)  # the copy kernel takes a buffer's size
    return BASE + BUFFERS * room.buffer + READERS * each + room.ahead


def peak_memory(specs: Mapping[str, TensorSpec], limit: int | None = None) -> int:
    """The estimated peak of a conversion in bytes; buffers are never larger than needed."""
    room, largest = memory(limit), max((spec.nbytes for spec in specs.values()), default=0)
    return _peak(Memory(min(room.buffer, largest), min(room.ahead, LOADED * largest)))


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
        homes = {name: _home(sink, name, spec) for name in sink.order for spec in [specs[name]]}
        with _Readers(checkpoint, homes, room) as readers:
            for tensor in readers.order:
                with context(tensor=tensor.name):
                    pieces = readers.pieces(tensor, progress)
                    if tensor.home:
                        deque(pieces, 0)  # none, but this waits until all are written
                        sink.placed(tensor.name, tensor.home.crc)
                    else:
                        sink.write(tensor.name, pieces)
        sink.commit()
    except BaseException:
        sink.abort()
        raise
    nbytes = sum(spec.nbytes for spec in specs.values())
    resumed = getattr(sink, "resumed", 0)  # those of one file begin anew
    return Saved(tuple(sink.files), row.name, len(specs), nbytes, resumed)


class _Home:
    """A tensor's place in a file, where readers write it themselves."""

    def __init__(self, place: Place, spec: TensorSpec) -> None:
        self._spec = spec
        self._file, self._offset, function, initial = place
        self._pieces = Pieces(function, self._offset, initial) if function else None

    def write(self, box: Box, array: Array) -> None:
        """Write a piece, whose rows may lie apart."""
        offset = self._offset + box.start * array.itemsize
        rows, pitch = array.reshape(box.rows, -1), box.pitch * array.itemsize
        self._file.write_rows(offset, rows, pitch, self._pieces)

    @property
    def crc(self) -> int:
        """The checksum of all that was written, if one is wanted."""
        if self._pieces is None:
            return 0
        crc = self._pieces.joined(self._spec.nbytes)
        if crc is None:
            raise TargetError("the pieces of a tensor do not add up", expected=self._spec)
        return crc


def _home(sink: formats.Sink, name: str, spec: TensorSpec) -> _Home | None:
    """Make a tensor's home, if readers may write it."""
    place = None if spec.dtype == STRING else sink.place(name)
    return place and _Home(place, spec)


class _Tensor(NamedTuple):
    """A tensor to be saved; the caller does the small ones, which are not worth a thread's turn."""

    name: str
    view: View
    home: _Home | None
    small: bool

    @classmethod
    def of(cls, name: str, view: View, home: _Home | None) -> Self:
        """The facts of a tensor, found once: there may be 100,000."""
        plain = view.dtype != STRING and view.contiguous
        return cls(name, view, home, plain and view.nbytes <= SMALL)


class _Stopped(Exception):  # noqa: N818 - nothing is wrong
    """A column is not wanted any more."""


class _Column:
    """A part of a permuted tensor that is loaded and then permuted, both by all threads.

    Its source is read once, so that a checksum costs no second read.  Columns share their memory:
    there is room for one when those `before` it are done with.
    """

    def __init__(self, tensor: _Tensor, box: Box, nbytes: int) -> None:
        self.name = tensor.name
        self.nbytes = box.view.load_nbytes
        self.parts = [_Work(tensor, part, self) for part in box.cut(nbytes)]
        self.start = 0  # in the memory
        self.before: Sequence[_Column] = ()
        self.done = threading.Event()
        self._view = box.view
        self._error: BaseException | None = _Stopped()  # until all of it is there
        self._loading = 0  # parts that are not there yet
        self._left = len(self.parts)
        self._ready = threading.Event()
        self._turn = threading.Lock()

    @property
    def end(self) -> int:
        """Where it ends in the memory; the next one may start there."""
        return -(-(self.start + self.nbytes) // ALIGNED) * ALIGNED

    def overlaps(self, other: _Column) -> bool:
        """Whether they share memory."""
        return self.start < other.end and other.start < self.end

    def loads(self, memory: Array) -> list[_Load]:
        """What is to be done before a part is read, in this order or any other."""
        place = memory[self.start : self.start + self.nbytes]
        self._view, loads = self._view.loading(place, LOAD)
        self._loading = len(loads)
        return [_Load(self, load) for load in loads]

    def load(self, load: Callable[[], None]) -> None:
        """Do it as soon as there is room; what goes wrong is for those who want the parts."""
        for column in self.before:
            column.done.wait()
        failed: BaseException | None = None
        try:
            with context(tensor=self.name):
                load()
        except BaseException as error:  # noqa: BLE001 - raised again by those
            failed = error
        with self._turn:
            self._error = failed or self._error
            self._loading -= 1
            if not self._loading:
                self.before = ()  # or each would keep all that were before it
                if isinstance(self._error, _Stopped):
                    self._error = None
                self._ready.set()

    def read(self, part: Box, out: Array) -> None:
        """Fill `out` with a part; the last one to be read, or to fail, leaves the memory."""
        self._ready.wait()
        try:
            if self._error:
                raise self._error
            part._replace(view=self._view).read(out)
        finally:
            with self._turn:
                self._left -= 1
                if not self._left:
                    self.stop()

    def stop(self) -> None:
        """Let nobody wait for it."""
        self._ready.set()
        self.done.set()


class _Load(NamedTuple):
    """A call that brings a part of a column to its place in memory."""

    column: _Column
    call: Callable[[], None]


class _Work(NamedTuple):
    """A piece to read: from a column, or from the file, `loaded` first when it is permuted.

    Without a box it is all of a tensor of strings, into no buffer, which holds no references.
    """

    tensor: _Tensor
    box: Box | None
    column: _Column | None = None
    loaded: bool = False


Cuts = Iterator[_Work | _Column]
Stages = Iterator[_Work | _Load]
Waiting = deque[tuple[_Column, list[_Work]]]  # columns not yet permuted, and the pieces after each


class _Piece(NamedTuple):
    """What was read, and the buffer that it is in."""

    array: Array
    buffer: Array

    @property
    def parts(self) -> Iterator[Array]:
        """It in parts that are checksummed and written while they are in the cache."""
        size = PIECE // self.array.itemsize
        for start in range(0, self.array.size, size):
            yield self.array[start : start + size]


_Promise = queue.SimpleQueue[_Piece | int | BaseException]  # of one: an `int` of bytes is written


class _Readers:
    """The tensors of a checkpoint in pieces, read ahead by threads, in `order`.

    They write the pieces of those that have a home, and hand out the others.  A thread takes a
    buffer first and the next piece then, so the piece that is waited for always has one.  Use as a
    context manager; leaving it stops the threads, whatever happened.
    """

    def __init__(
        self, checkpoint: Checkpoint, homes: Mapping[str, _Home | None], room: Memory
    ) -> None:
        tensors = [_Tensor.of(name, checkpoint[name].view, home) for name, home in homes.items()]
        largest = max((tensor.view.nbytes for tensor in tensors), default=0)
        self._nbytes = max(16, min(room.buffer, largest))
        self._room = room
        self._columns: list[_Column] = []
        self._stopped = False
        self.order = tuple(tensors)
        large = (tensor for tensor in tensors if not tensor.small)
        self._work = self._scheduled(itertools.chain.from_iterable(map(self._cut, large)))
        self._own = np.empty(SMALL, np.uint8)
        self._turn = threading.Lock()
        self._free: queue.SimpleQueue[Array | None] = queue.SimpleQueue()
        self._ahead: queue.SimpleQueue[_Promise] = queue.SimpleQueue()
        for _ in range(BUFFERS):
            self._free.put(np.empty(self._nbytes, np.uint8))
        self._memory = np.empty(room.ahead, np.uint8)  # which costs nothing until it is used
        self._threads = [
            threading.Thread(target=self._read_all, name=f"converter-read-{number}", daemon=True)
            for number in range(READERS)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        with self._turn:
            self._stopped = True
            for column in self._columns:
                column.stop()
        self._free.put(None)
        for thread in self._threads:
            thread.join()

    def pieces(self, tensor: _Tensor, progress: Progress | None) -> Iterator[Array]:
        """The next tensor in consecutive pieces, each only valid until the next.

        There are none of one with a home, which is complete at the end.
        """
        view, done = tensor.view, 0
        nbytes = view.nbytes
        while done < nbytes:
            found: _Piece | int | BaseException
            if tensor.small:
                found = _done(_Work(tensor, Box(0, 1, view.size, 0, view, 0)), self._own)
            else:
                found = self._ahead.get().get()
            if isinstance(found, BaseException):
                raise found
            if isinstance(found, _Piece):
                yield from found.parts
                if not tensor.small:
                    self._free.put(found.buffer)
                found = found.array.nbytes
            done += found
            if progress is not None:
                progress(tensor.name, found)

    def _scheduled(self, cuts: Cuts) -> Stages:
        """All pieces in order, and columns that are to be loaded, as early as there is room.

        So a thread that waits for room waits for pieces that others have, and never for itself.
        """
        waiting: Waiting = deque()
        for each in cuts:
            if isinstance(each, _Column):
                while not self._is_placed(each, waiting):
                    yield from _handed_out(waiting)
                yield from each.loads(self._memory)
                waiting.append((each, []))
            elif waiting:
                waiting[-1][1].append(each)
            else:
                yield each
        while waiting:
            yield from _handed_out(waiting)

    def _is_placed(self, column: _Column, waiting: Waiting) -> bool:
        """Find it a place in the memory that none of the others has."""
        others = [other for other, _ in waiting]
        if len(others) == LOADED:
            return False
        for column.start in (0, *(other.end for other in others)):
            fits = column.start + column.nbytes <= self._room.ahead
            if fits and not any(map(column.overlaps, others)):
                self._columns = [other for other in self._columns if not other.done.is_set()]
                column.before = [other for other in self._columns if column.overlaps(other)]
                self._columns.append(column)
                return True
        return False

    def _cut(self, tensor: _Tensor) -> Cuts:
        view, ordered = tensor.view, tensor.home is None
        if not view.size:  # nobody waits for a piece of it
            return
        if view.dtype == STRING:
            yield _Work(tensor, None)
            return
        columns = self._cut_columns(view, ordered=ordered) if _is_permuted(view) else []
        if len(columns) == 1 and view.load_nbytes <= ASIDE and view.nbytes <= self._nbytes:
            yield _Work(tensor, columns[0], loaded=True)
            return
        for box in columns:
            yield _Column(tensor, box, self._nbytes)
        if not columns:
            nbytes = min(self._nbytes, PIECE) if view.in_order else self._nbytes
            boxes = view.boxes(nbytes, ordered=ordered)
            if len(boxes) > 1 and (view.in_order or boxes[0].pitch):  # each part is read once
                boxes = view.in_pieces().boxes(nbytes, ordered=ordered)
            for box in boxes:
                yield _Work(tensor, box)

    def _cut_columns(self, view: View, *, ordered: bool) -> list[Box]:
        """The columns of a permuted view; none where there is no room for good ones."""
        room = self._room.ahead
        nbytes = min(room, room * view.nbytes // view.load_nbytes)
        boxes = view.in_pieces().boxes(nbytes, ordered=ordered)
        good = all(box.size == box.view.size and box.view.load_nbytes <= room for box in boxes)
        return boxes if good else []

    def _read_all(self) -> None:
        while (buffer := self._free.get()) is not None:
            promise: _Promise = queue.SimpleQueue()
            try:
                with self._turn:
                    work = None if self._stopped else next(self._work, None)
                    if isinstance(work, _Work):
                        self._ahead.put(promise)
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                promise.put(error)
                self._ahead.put(promise)
                break
            if work is None:
                break
            if isinstance(work, _Load):
                self._free.put(buffer)  # which others can use meanwhile
                work.column.load(work.call)
                continue
            try:
                with context(tensor=work.tensor.name):
                    found = _done(work, buffer)
                if isinstance(found, int):
                    self._free.put(buffer)
                promise.put(found)
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                promise.put(error)
        self._free.put(None)  # for the other threads


def _handed_out(waiting: Waiting) -> Iterator[_Work]:
    """The parts of the next column, and the pieces up to the one after it."""
    column, pieces = waiting.popleft()
    yield from column.parts
    yield from pieces


def _is_permuted(view: View) -> bool:
    """Whether it is worth to be loaded before it is permuted."""
    return not (view.in_order or view.in_memory)


def _done(work: _Work, buffer: Array) -> _Piece | int:
    """Read a piece, and write it if it has a home; how many bytes that were, or the piece."""
    array = _read(work, buffer)
    if work.box is None or work.tensor.home is None:
        return _Piece(array, buffer)
    work.tensor.home.write(work.box, array)
    return array.nbytes


def _read(work: _Work, buffer: Array) -> Array:
    box = work.box
    if box is None:
        return work.tensor.view.numpy().reshape(-1)
    dtype = box.view.dtype
    array = buffer[: box.size * dtype.itemsize].view(dtype)
    if work.column:
        work.column.read(box, array)
    elif work.loaded:
        box._replace(view=box.view.loaded()).read(array)
    else:
        box.read(array)
    return array
