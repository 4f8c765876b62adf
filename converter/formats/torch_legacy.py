"""PyTorch files from before torch 1.6: pickles in a row, then the storages (.pth, .pth.tar).

https://github.com/pytorch/pytorch/blob/main/torch/serialization.py (_legacy_save)

    pickle    the number 0x1950a86a20f9469cfc6c
    pickle    the protocol: 1001
    pickle    {'protocol_version': 1001, 'little_endian': True, 'type_sizes': {…}}
    pickle    the saved object; a storage is the persistent id
              ('storage', torch.FloatStorage, key, location, elements, None or a view)
    pickle    the keys of the storages, sorted
    for each key: the number of elements, 64 bits, and the elements, without padding

Elements are little-endian wherever the file was written.  Before torch 1.4 the number before
them was in the order of the machine, which 'little_endian' tells.  There are no checksums.
The tar files from before torch 0.2 are recognised and refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from converter.errors import CorruptFileError, LimitError, UnsupportedError, context
from converter.files import File
from converter.formats import Probe
from converter.formats._pickle import CONTAINERS, EndsEarlyError, Stub, Table, Unpickler
from converter.formats._torch import (
    TABLE,
    Storages,
    Stored,
    checkpoint_of,
    naturals,
    stored,
)
from converter.tensors import Checkpoint

MAX_PICKLE = 256 << 20  # bytes of all pickles
FIRST_READ = 64 << 10  # bytes; four times as many while that is too little

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
_HEAD = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # the magic number, in the first pickle
_TAR_NAMES = (b"sys_info", b"pickle", b"tensors", b"storages")
_COUNT = 8  # bytes of the number before a storage


def recognise(probe: Probe) -> bool:
    """Whether this starts with the magic number, or is a tar of torch 0.1."""
    return _HEAD in probe.head[:32] or _is_tar(probe.head)


def _is_tar(head: bytes) -> bool:
    return head[257:262] == b"ustar" and head[:100].rstrip(b"\0") in _TAR_NAMES


def open(path: Path) -> Checkpoint:  # noqa: A001 - the name every format has
    """Open the tensors of such a file; nothing in it is run.

    Raises `CorruptFileError`, `UnsupportedError`, `LimitError` or `UnsafeContentError`.
    """
    file = File(path)
    try:
        with context(path=path):
            if _is_tar(file.read(0, min(file.size, 512))):
                raise UnsupportedError(  # noqa: TRY301 - it needs the context, too
                    "a torch file from before torch 0.2 (tar)",
                    hint="load it with torch, and torch.save its state_dict()",
                )
            return _open(file)
    except BaseException:
        file.close()
        raise


def _open(file: File) -> Checkpoint:
    pickles = _read_pickles(file)
    places = _places(file, pickles)
    return checkpoint_of(
        pickles.saved,
        Storages(file, lambda storage: places[storage.key]),
        format="torch-legacy",
        file=file,
        pickled=pickles.nbytes,
        metadata={},
        unsupported={},
    )


def _read_pickles(file: File) -> _Pickles:
    """Read as much as the pickles need, which nothing says."""
    size = FIRST_READ
    while True:
        data = file.read(0, min(size, file.size))
        try:
            return _Pickles(data)
        except EndsEarlyError:
            if len(data) == file.size:
                raise
        if size >= MAX_PICKLE:
            raise LimitError(f"the pickles are larger than {MAX_PICKLE} bytes")
        size *= 4


class _Pickles:
    """What the five pickles say."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.nbytes = 0
        self.storages: dict[str, Stored] = {}
        if self._next() != MAGIC or self._next() != PROTOCOL:
            raise CorruptFileError("another magic number, or another protocol, than torch's")
        info = self._next()
        self.little_endian = not isinstance(info, dict) or info.get("little_endian", True)
        self.saved = self._next(TABLE)
        self.keys = self._next()

    def _next(self, table: Table = CONTAINERS) -> Any:
        place = self.nbytes
        unpickler = Unpickler(self._data, table, self._persistent, position=place)
        value = unpickler.load()
        self.nbytes = unpickler.position
        return value

    def _persistent(self, key: Any) -> Any:
        """A storage, perhaps a part of one; or the class of a module, with its source code."""
        if key[0] == "module" and isinstance(key[1], Stub):
            return key[1]
        *facts, view = key
        whole = stored(facts)
        known = self.storages.setdefault(whole.key, whole)
        if (known.kind, known.numel) != (whole.kind, whole.numel):
            raise ValueError("one storage is described in two ways")
        if view is None:
            return whole
        _key, offset, size = view
        whole.offset, size = naturals((offset, size))
        if whole.offset + size > whole.numel:
            raise ValueError("a part of a storage reaches outside of it")
        return whole


class _Place(NamedTuple):
    """Where the bytes of a storage are; nothing proves them."""

    offset: int
    stored: int
    checksum: None = None


def _places(file: File, pickles: _Pickles) -> dict[str, _Place]:
    """Where the bytes of every storage are: they fill the rest of the file."""
    keys = pickles.keys
    named = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not named or sorted(keys) != sorted(pickles.storages):
        raise CorruptFileError("the list of storages is not that of the saved object")
    found = {}
    at = pickles.nbytes
    for key in keys:
        storage = pickles.storages[key]
        if not storage.itemsize:
            raise UnsupportedError(f"a storage of an unknown kind: {storage.kind[:80]}", offset=at)
        count = file.read(at, _COUNT)
        numbers = {int.from_bytes(count, "little")}
        if not pickles.little_endian:
            numbers.add(int.from_bytes(count, "big"))
        if storage.numel not in numbers:
            raise CorruptFileError(
                "a storage and its description differ in size",
                offset=at,
                expected=f"{storage.numel} elements",
                found=f"{min(numbers)} elements",
            )
        place = _Place(at + _COUNT, storage.numel * storage.itemsize)
        found[key] = place
        at = place.offset + place.stored
    if at != file.size:
        raise CorruptFileError(
            "the file is truncated" if at > file.size else "the file goes on after its storages",
            offset=min(at, file.size),
            expected=f"{at} bytes",
            found=f"{file.size} bytes",
            hint="compare its size with the original's; a broken download is the usual cause",
        )
    return found
