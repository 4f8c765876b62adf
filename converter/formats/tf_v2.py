"""TensorFlow V2 checkpoints (TensorBundle).

https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/util/tensor_bundle/tensor_bundle.h

    PREFIX.index                   a sorted string table (see _sstable.py)
        ""                         BundleHeaderProto: number of shards, byte order, version
        name                       BundleEntryProto: dtype, shape, shard, offset, size, crc32c …
                                   … or dtype, full shape and slices
        ordered code (see _tf.py)  BundleEntryProto of one slice
    PREFIX.data-SSSSS-of-NNNNN     values in C order, unaligned, wherever the entries say

    strings                        varint lengths; masked crc32c of them; bytes back to back

A stored crc32c is masked, and is of the bytes as they are stored.

A name is the key, and nothing else, unless other names are asked for. An object-based checkpoint
also has a graph of its objects (see _tf_objects.py): no tensor, but kept as metadata.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from converter.errors import (
    ChecksumError,
    CorruptFileError,
    NotFoundError,
    RefusedError,
    SourceError,
    TargetError,
    UnrepresentableError,
    context,
)
from converter.files import Checksum, File, Interim, Place, Publication, Region, crc32c
from converter.formats import Probe, _tf, _tf_objects
from converter.formats._protobuf import (
    FIXED32,
    LENGTH,
    VARINT,
    fields,
    message,
    number,
    read_varint,
    signed,
    varint,
)
from converter.formats._sstable import Table, mask, table_bytes, unmask
from converter.formats._tf import (
    DTYPES,
    NUMBERS,
    Part,
    Slice,
    assembled,
    box_of,
    check_complete,
    check_held,
    check_room,
    check_strings,
    check_version,
    decoded_name,
    in_memory_order,
    is_slice_key,
    read_shape,
    read_slice,
    shape_bytes,
    slice_key,
    unheld,
)
from converter.formats._tf_objects import GRAPH, MARK, MAX_GRAPH, MAX_TEXTS, VALUE, Facts, Objects
from converter.formats._tf_paths import claims, located
from converter.layout import Computed, Elementwise, View
from converter.tensors import STRING, Checkpoint, LazyTensors, Templated, TensorSpec

Array = NDArray[Any]
ByteOrder = Literal["little", "big"]
BIG_ENDIAN = 1
NAMES = ("key", "full_name", "object")
DAMAGED = "the data is damaged, or of another step than the index; get both again"


def recognise(probe: Probe) -> bool:
    """Whether the path is, or belongs to, a V2 checkpoint."""
    return claims(probe.path, 2)


def open(path: Path, *, names: str = "key") -> Checkpoint:  # noqa: A001 - the contract of a format
    """Read the index; values are read from the shards when asked for.

    `names` are those of the index, or of the graph where a tensor has one that no other has:
    "full_name" is what the variable was called, "object" a path to it.

    Raises `NotFoundError`, `CorruptFileError`, `ChecksumError`, `UnsupportedError`, `LimitError`.
    """
    checkpoint, objects = _open(path)
    if objects is None or names == "key":
        return checkpoint
    try:
        return _renamed(checkpoint, objects, names)
    except BaseException:
        checkpoint.close()
        raise


def _open(path: Path) -> tuple[Checkpoint, Objects | None]:
    """A checkpoint with the names of its index, and its graph when it has one."""
    index = located(path).paths[0]
    bundle = _Bundle(index)
    specs: dict[str, TensorSpec] = {}
    unsupported: dict[str, str] = {}
    tensors = LazyTensors(specs, functools.cache(bundle.view))
    try:
        with context(path=index):
            for name, entry in bundle.named(unsupported):
                with context(tensor=name):
                    bundle.check(name, entry)
                specs[name] = TensorSpec(entry.shape, DTYPES[entry.dtype])
        graph, metadata = _without_texts(tensors, specs, unsupported)
    except BaseException:
        bundle.close()
        raise
    objects = Objects(graph, specs, bundle.facts) if graph else None
    checkpoint = Checkpoint(
        tensors,
        "tf-v2",
        index.with_suffix(""),
        metadata,
        unsupported=unsupported,
        aliases=_tf_objects.Aliases(objects) if objects else {},
        files=(index, *bundle.data()),
        on_close=bundle.close,
    )
    return checkpoint, objects


def _without_texts(
    tensors: LazyTensors, specs: dict[str, TensorSpec], unsupported: dict[str, str]
) -> tuple[bytes, dict[str, str]]:
    """The graph, and metadata with all that is no tensor but describes objects: it is taken out."""
    text = TensorSpec((), STRING)
    if specs.get(GRAPH) != text:
        return b"", {}
    graph, room = b"", MAX_TEXTS
    kept: dict[str, str] = {}
    for name in [name for name, spec in specs.items() if spec == text and _describes(name)]:
        what, limit = ("the graph of TensorFlow's objects", MAX_GRAPH)
        if name != GRAPH:
            what, limit = ("a text that describes an object", room)
        found = _text(tensors[name].view, limit)
        del specs[name]
        if found is None:
            unsupported[name] = f"{what}; too large to be kept"
            continue
        unsupported[name] = f"{what}; kept as metadata"
        if name == GRAPH:
            graph = found
        else:
            room -= len(found)
            try:
                kept[name] = found.decode()
            except UnicodeDecodeError:
                unsupported[name] = f"{what}; not kept, since it is not valid UTF-8"
    return graph, _tf_objects.packed(graph, kept) if graph else {}


def _describes(name: str) -> bool:
    """Whether a string of that name is text about an object, and no variable's value."""
    _, mark, attribute = name.rpartition(MARK)
    return name == GRAPH or (bool(mark) and attribute != VALUE)


def _text(view: View, limit: int) -> bytes | None:
    """A single string; None when it is longer than `limit`."""
    if not isinstance(view.storage, _Strings) or view.storage.nbytes > limit:
        return None
    return bytes(view.numpy()[()])


def _renamed(checkpoint: Checkpoint, objects: Objects, scheme: str) -> Checkpoint:
    """The checkpoint with names of a scheme; what Keras 3 stored twice is there once."""
    names = objects.names(scheme)
    copies = objects.copies if scheme == "full_name" else {}
    unsupported = {
        name: f"stored a second time; the first is '{first}'" for name, first in copies.items()
    }
    keys = {names.get(name, name): name for name in checkpoint if name not in copies}
    specs = checkpoint.specs
    return replace(
        checkpoint,
        tensors=LazyTensors(
            {name: specs[key] for name, key in keys.items()},
            lambda name: checkpoint[keys[name]].view,
        ),
        unsupported={**checkpoint.unsupported, **unsupported},
        aliases={
            names.get(name, name): tuple(dict.fromkeys((name, *aliases)))
            for name, aliases in objects.aliases.items()
            if name not in copies
        },
    )


# ── the index ────────────────────────────────────────────────────────────────────────────────────


class _Entry(NamedTuple):
    """A BundleEntryProto."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int
    slices: tuple[Slice, ...]


def _read_entry(data: bytes) -> _Entry:
    numbers = dict.fromkeys((1, 3, 4, 5), 0)
    shape: tuple[int, ...] = ()
    crc = 0
    slices: list[Slice] = []
    for tag, value, start, stop in fields(data, 0, len(data)):
        field, wire = tag >> 3, tag & 7
        if wire == VARINT and field in numbers:
            numbers[field] = signed(value)
        elif tag == 2 << 3 | LENGTH:
            shape = read_shape(data, start, stop)
        elif tag == 6 << 3 | FIXED32:
            crc = unmask(value)
        elif tag == 7 << 3 | LENGTH:
            slices.append(read_slice(data, start, stop))
    return _Entry(numbers[1], shape, numbers[3], numbers[4], numbers[5], crc, tuple(slices))


class _Shard(File):
    """A data file whose size is known at once, and that is opened by its first read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1
        self._closed = False
        try:
            self._stat = path.stat()
        except OSError as error:
            raise NotFoundError(
                f"a data file of the checkpoint is missing: {error.strerror}",
                path=path,
                hint="the index and all data files belong together",
            ) from error
        self.size = self._stat.st_size

    def read_into(self, offset: int, buffer: Array) -> None:
        if self._fd < 0 and not self._closed:
            known = self._stat
            super().__init__(self.path)
            self._stat = known
            self.check_unchanged()
        super().read_into(offset, buffer)

    def check_unchanged(self) -> None:
        if self._fd >= 0:
            super().check_unchanged()

    def close(self) -> None:
        self._closed = True
        super().close()


class _Bundle:
    """The index of a checkpoint in memory, and its data files."""

    def __init__(self, index: Path) -> None:
        self.index = index
        self.entries: dict[bytes, _Entry] = {}
        self.slices: set[bytes] = set()  # keys of entries that are slices of another
        self._files: dict[int, _Shard] = {}
        self.shards = 0
        self.order: Literal["<", ">"] = "<"
        file = File(index)
        try:
            with context(path=index):
                self._read(Table(file))
        finally:
            file.close()

    def _read(self, table: Table) -> None:
        header = False
        for key, value in table.entries():
            if not key:
                header = True
                self._read_header(value)
                continue
            with context(tensor=key.decode(errors="backslashreplace")):
                entry = self.entries[key] = _read_entry(value)
            self.slices.update(slice_key(key, cut) for cut in entry.slices)
        if not header:
            raise CorruptFileError("the index has no header entry")

    def _read_header(self, data: bytes) -> None:
        for tag, value, start, stop in fields(data, 0, len(data)):
            if tag == 1 << 3 | VARINT:
                self.shards = signed(value)
            elif tag == 2 << 3 | VARINT:
                self.order = ">" if value == BIG_ENDIAN else "<"
            elif tag == 3 << 3 | LENGTH:
                check_version(data, start, stop)

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def data(self) -> list[Path]:
        """The data files that entries lie in, as far as they are there."""
        used = sorted({entry.shard for entry in self.entries.values() if entry.size})
        paths = (self.index.with_suffix(_data_suffix(shard, self.shards)) for shard in used)
        return [path for path in paths if path.is_file()]

    def named(self, unsupported: dict[str, str]) -> Iterator[tuple[str, _Entry]]:
        """Every tensor's name and entry; the others go to `unsupported`, with the reason."""
        for key, entry in self.entries.items():
            if key in self.slices:
                continue
            name, reason = decoded_name(key)
            if is_slice_key(key):
                reason = "a slice of a tensor that is not in the index"
            if not reason and entry.dtype not in DTYPES:
                reason = unheld(entry.dtype)
            if reason:
                unsupported[name] = reason
            else:
                yield name, entry

    def facts(self, name: str) -> Facts | None:
        """What the index says of a tensor's values; None when they are in slices."""
        entry = self.entries[name.encode()]
        return None if entry.slices else Facts(entry.dtype, entry.shape, entry.size, entry.crc)

    def check(self, name: str, entry: _Entry) -> None:
        """Raise what `view` would."""
        if entry.slices:
            self.view(name)
        else:
            self._file(entry)

    def view(self, name: str) -> View:
        """A tensor, assembled when it is stored in slices."""
        key = name.encode()
        entry = self.entries[key]
        if not entry.slices:
            return self._stored(name, entry)
        parts = []
        for cut in entry.slices:
            box = box_of(cut, entry.shape)
            stored = self.entries.get(slice_key(key, cut))
            if stored is None:
                raise CorruptFileError("a slice of the tensor is not in the index", expected=box)
            expected = entry.dtype, tuple(stop - start for start, stop in box)
            if (stored.dtype, stored.shape) != expected or stored.slices:
                raise CorruptFileError(
                    "a slice differs from what its tensor says",
                    expected="dtype {}, shape {}".format(*expected),
                    found=f"dtype {stored.dtype}, shape {stored.shape}",
                )
            parts.append(Part(box, self._stored(name, stored)))
        return assembled(entry.shape, DTYPES[entry.dtype], parts)

    def _stored(self, name: str, entry: _Entry) -> View:
        """The tensor in one run of a data file."""
        file = self._file(entry)
        dtype = DTYPES[entry.dtype]
        spec = TensorSpec(entry.shape, dtype)
        if dtype == STRING:
            return View.over(self._strings(name, file, entry, spec.size), entry.shape)
        checksum = Checksum("tensor", crc32c, entry.crc, entry.offset, entry.size)
        bits = dtype if dtype.isbuiltin == 1 else np.dtype(f"u{dtype.itemsize}")
        stored = dtype if self.order == "<" else bits.newbyteorder(self.order)
        region = Region(file, entry.offset, stored, spec.size, tensor=name, checksum=checksum)
        view = View.over(region, entry.shape)
        if dtype in (stored, bits):
            return view.astype(dtype)
        # NumPy cannot swap bytes of dtypes that are not its own.
        swapped = Elementwise(view.astype(bits), lambda block: block.view(dtype), dtype)
        return View.over(swapped, entry.shape)

    def _file(self, entry: _Entry) -> _Shard:
        """The data file of an entry, checked to hold its range, and that to fit the shape."""
        file = self._files.get(entry.shard)
        if file is None:
            if not 0 <= entry.shard < self.shards:
                raise CorruptFileError(
                    "an entry lies in a data file that does not exist",
                    expected=f"one of {self.shards}",
                    found=entry.shard,
                )
            file = _Shard(self.index.with_suffix(_data_suffix(entry.shard, self.shards)))
            self._files[entry.shard] = file
        if min(entry.offset, entry.size) < 0 or entry.offset + entry.size > file.size:
            raise CorruptFileError(
                "the data file is shorter than the index says",
                path=file.path,
                offset=entry.offset,
                expected=f"at least {entry.offset + entry.size} bytes",
                found=f"{file.size} bytes",
                hint="a broken download is the usual cause",
            )
        dtype, count = DTYPES[entry.dtype], math.prod(entry.shape)
        least = count + 4 if dtype == STRING else count * dtype.itemsize
        if entry.size < least or (entry.size > least and dtype != STRING):
            raise CorruptFileError(
                "the stored size does not fit the shape",
                expected=f"{least} bytes{' or more' * (dtype == STRING)}"
                f" for {TensorSpec(entry.shape, dtype)}",
                found=f"{entry.size} bytes",
            )
        return file

    def _strings(self, name: str, file: File, entry: _Entry, count: int) -> _Strings:
        def compute() -> Array:
            with context(path=file.path, tensor=name):
                stored = file.read(entry.offset, entry.size)
                order: ByteOrder = "big" if self.order == ">" else "little"
                return _decode_strings(stored, count, entry, order)

        return _Strings(count, entry.size, compute)


# ── strings ──────────────────────────────────────────────────────────────────────────────────────


class _Strings(Computed):
    """Strings that are read all at once, from `nbytes` bytes of the file."""

    def __init__(self, count: int, nbytes: int, compute: Callable[[], Array]) -> None:
        super().__init__(count, STRING, compute)
        self.nbytes = nbytes


def _counted(lengths: Iterable[int], order: ByteOrder = "little") -> bytes:
    """Lengths as they enter the checksum: 32 bits each, or 64 when they need it."""
    return b"".join(length.to_bytes(8 if length >> 32 else 4, order) for length in lengths)


def _decode_strings(stored: bytes, count: int, entry: _Entry, order: ByteOrder) -> Array:
    """The strings of an entry as an array of `bytes`; both checksums are verified."""
    lengths = []
    at = 0
    for _ in range(count):
        length, at = read_varint(stored, at, len(stored))
        lengths.append(length)
    crc = crc32c(_counted(lengths, order))
    _check("lengths", entry, mask(crc), int.from_bytes(stored[at : at + 4], order))
    _check("tensor", entry, crc32c(stored[at:], crc), entry.crc)
    start = at + 4
    if start + sum(lengths) != len(stored):
        raise CorruptFileError(
            "strings do not fill their place",
            offset=entry.offset,
            expected=f"{entry.size} bytes",
            found=f"{start + sum(lengths)} bytes",
        )
    array = np.empty(count, STRING)
    for position, length in enumerate(lengths):
        array[position] = stored[start : start + length]
        start += length
    return array


def _check(what: str, entry: _Entry, found: int, expected: int) -> None:
    if found != expected:
        raise ChecksumError(
            f"the {what} checksum does not match",
            offset=entry.offset,
            expected=f"{expected:#010x}",
            found=f"{found:#010x}",
            hint=DAMAGED,
        )


def _encode_strings(strings: Sequence[bytes]) -> tuple[bytes, int]:
    """The stored form of strings, and its checksum."""
    lengths = [len(string) for string in strings]
    crc = crc32c(_counted(lengths))
    rest = mask(crc).to_bytes(4, "little") + b"".join(strings)
    return b"".join(map(varint, lengths)) + rest, crc32c(rest, crc)


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


def problem(name: str, spec: TensorSpec) -> str:
    """Why a tensor cannot be held, "" when it can."""
    return _tf.problem(name, spec, NUMBERS)


def create(
    path: Path,
    specs: Mapping[str, TensorSpec],
    *,
    metadata: Mapping[str, str],
    ties: Sequence[Sequence[str]],  # noqa: ARG001 - likewise: every name is stored by itself
    overwrite: bool,
) -> _Sink:
    """A bundle of one shard under the prefix `path`.

    Names that are keys of objects' values get a graph: the one in the metadata when it has all of
    them, else one that is made of them. There is no room for other metadata.

    Raises `UnrepresentableError`, `TargetExistsError`, `TargetError`.
    """
    check_held(path, specs, problem)
    return _Sink(path, specs, _tf_objects.to_write(specs, metadata), overwrite=overwrite)


class _Sink:
    """Numbers go to the places that their specs give them, strings behind them at the end.

    So the bytes of the file do not depend on the order of writing. `texts` are strings that go
    beside the tensors.
    """

    def __init__(
        self,
        path: Path,
        specs: Mapping[str, TensorSpec],
        texts: Mapping[str, bytes],
        *,
        overwrite: bool,
    ) -> None:
        self._prefix = path.with_suffix("") if path.suffix == ".index" else path
        index = self._path(".index")
        self.files: tuple[Path, ...] = (self._path(_data_suffix(0, 1)), index)
        names = sorted(specs, key=str.encode)
        self.order = sorted(names, key=lambda name: specs[name].dtype == STRING)
        self._specs = {**specs, **dict.fromkeys(texts, TensorSpec((), STRING))}
        self._offsets: dict[str, int] = {}
        self._end = 0
        for name in self.order:
            if specs[name].dtype != STRING:
                self._offsets[name] = self._end
                self._end += specs[name].nbytes
        self._written: dict[str, tuple[int, int, int]] = {}  # offset, bytes and crc of each
        self._strings = {name: _encode_strings([texts[name]]) for name in sorted(texts)}
        self._texts = tuple(self._strings)
        self._replaced = _data_files(index) if overwrite else []
        self._publication = Publication(self.files, overwrite=overwrite, nbytes=self._end)

    def place(self, name: str) -> Place | None:
        """Where a tensor's elements lie; strings have no place before they are known."""
        offset = self._offsets.get(name)
        return None if offset is None else Place(self._publication.files[0], offset, crc32c)

    def placed(self, name: str, crc: int) -> None:
        """Take it that a tensor is at its place."""
        self._written[name] = self._offsets[name], self._specs[name].nbytes, crc

    def write(self, name: str, chunks: Iterable[Array]) -> None:
        """Take a tensor as consecutive 1-D C-order pieces."""
        spec = self._specs[name]
        with context(path=self.files[0], tensor=name):
            if spec.dtype == STRING:
                self._strings[name] = _encode_strings(check_strings(chunks, spec.size))
                return
            data = self._publication.files[0]
            offset, crc, done = self._offsets[name], 0, 0
            for chunk in chunks:
                stored = in_memory_order(chunk, spec.dtype)
                check_room(done + stored.nbytes, spec.nbytes)
                crc = crc32c(stored, crc)
                data.write(offset + done, stored)
                done += stored.nbytes
            check_complete(done, spec.nbytes)
            self._written[name] = offset, done, crc

    def commit(self) -> None:
        """Publish: afterwards the target is complete and durable."""
        data, index = self._publication.files
        for name in (*self.order, *self._texts):
            if name in self._strings:
                stored, crc = self._strings[name]
                data.write(self._end, stored)
                self._written[name] = self._end, len(stored), crc
                self._end += len(stored)
            elif name not in self._written:
                raise TargetError("the tensor was never written", path=self.files[0], tensor=name)
        index.write(0, self._index(0, 1))
        self.files = tuple(
            self._publication.commit(interim=self._interim, obsolete=lambda: self._replaced)
        )

    def abort(self) -> None:
        """Leave nothing behind; harmless after `commit`."""
        self._publication.abort()

    def _path(self, suffix: str) -> Path:
        return self._prefix.with_name(self._prefix.name + suffix)

    def _interim(self, attempt: int) -> Interim:
        """The data as the last of several shards, of which the others hold nothing."""
        shard, shards = attempt, attempt + 1
        return Interim([self._path(_data_suffix(shard, shards))], self._index(shard, shards))

    def _index(self, shard: int, shards: int) -> bytes:
        """The index, for data that lie in one shard of several."""
        header = number(1, shards) + message(3, number(1, 1))
        entries = {
            name.encode(): _entry_bytes(spec, shard, *self._written[name])
            for name, spec in self._specs.items()
        }
        return table_bytes([(b"", header), *sorted(entries.items())])


def _data_suffix(shard: int, shards: int) -> str:
    return f".data-{shard:05}-of-{shards:05}"


def _data_files(index: Path) -> list[Path]:
    """The data files of a checkpoint that is to be overwritten; none when it cannot be read."""
    if not index.exists():
        return []
    try:
        bundle = _Bundle(index)
    except (SourceError, RefusedError):
        return []
    used = {entry.shard for entry in bundle.entries.values()}
    return [index.with_suffix(_data_suffix(shard, bundle.shards)) for shard in sorted(used)]


def _entry_bytes(spec: TensorSpec, shard: int, offset: int, nbytes: int, crc: int) -> bytes:
    """A BundleEntryProto."""
    return b"".join(
        (
            number(1, NUMBERS[spec.dtype]),
            message(2, shape_bytes(spec.shape)),
            number(3, shard),
            number(4, offset),
            number(5, nbytes),
            varint(6 << 3 | FIXED32) + mask(crc).to_bytes(4, "little"),
        )
    )


# ── templates ────────────────────────────────────────────────────────────────────────────────────


def with_template(source: Checkpoint, template: Path) -> Templated:
    """The template with values of `source`: what loads the template loads this.

    A tensor of `source` is named by the template's key, or by an alias that is nobody else's. What
    it does not have, such as counters and an optimizer's state, stays the template's.

    Raises `UnrepresentableError` when a tensor is none of the template's, or has another spec,
    and what opening the template raises.
    """
    old, objects = _open(template)
    try:
        with context(path=template):
            keys = _placed(source, old, objects)
    except BaseException:
        old.close()
        raise

    def close() -> None:
        old.close()
        source.close()

    replaced = {key: source[name] for name, key in keys.items()}
    for copy, first in (objects.copies if objects else {}).items():
        if first in replaced:
            replaced.setdefault(copy, replaced[first])
    tensors = {key: replaced.get(key, tensor) for key, tensor in old.tensors.items()}
    checkpoint = Checkpoint(
        tensors,
        source.format,
        source.path,
        {**source.metadata, **old.metadata},
        files=old.files,
        on_close=close,
    )
    return Templated(checkpoint, keys, tuple(key for key in tensors if key not in replaced))


def _placed(source: Checkpoint, old: Checkpoint, objects: Objects | None) -> dict[str, str]:
    """The names of the source with the template's keys that its tensors are to have."""
    keys = _keys(old, objects.copies if objects else {})
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name, tensor in source.items():
        key = name if name in old else keys.get(name)
        if key is None or key in taken:
            raise UnrepresentableError(
                "two tensors are one of the template" if key else "the template has no such tensor",
                tensor=name,
                hint="name it by a key of the template, or by an alias: `inspect --aliases`",
            )
        if tensor.spec != old[key].spec:
            raise UnrepresentableError(
                f"the template has another tensor as '{key}'",
                tensor=name,
                expected=old[key].spec,
                found=tensor.spec,
            )
        found[name] = key
        taken.add(key)
    return found


def _keys(old: Checkpoint, copies: Mapping[str, str]) -> dict[str, str]:
    """The key of every alias that is nobody else's, a copy and its first counting as one."""
    owners: dict[str, set[str]] = {}
    for key, aliases in old.aliases.items():
        for alias in aliases:
            owners.setdefault(alias, set()).add(copies.get(key, key))
    return {alias: min(keys) for alias, keys in owners.items() if len(keys) == 1}
