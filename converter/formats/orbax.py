"""Orbax: a folder with a key-value store (OCDBT) of zarr arrays, read by the library tensorstore.

https://orbax.readthedocs.io/en/latest/guides/checkpoint/checkpoint_format.html

    step/_CHECKPOINT_METADATA, step/default/…      a step, and the item in it
    step/default/_METADATA                         the tree, in JSON
    step/default/manifest.ocdbt, d/…               the store:
        params.dense.kernel/.zarray                  shape, dtype, chunks, compression, in JSON
        params.dense.kernel/0.0, …                   chunks
    step/default/ocdbt.process_0/…                 the same of a process, to be merged into it

A tensor's name is its key.  Before the library is asked, the folder is looked through: links and
special files in it are refused.  The library runs in a process of its own, with limits.  Not read:
steps whose processes were not merged, and the older kind with a folder for each parameter.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.errors import (
    CorruptFileError,
    LimitError,
    UnsafeContentError,
    UnsupportedError,
    context,
)
from converter.formats import Probe
from converter.formats._names import shown
from converter.formats._tensorstore import Library
from converter.formats._typed_fields import Found, size_of
from converter.layout import View
from converter.tensors import Checkpoint, dtype_of

MANIFEST = "manifest.ocdbt"
ITEMS = ("", "default", "state", "params")  # folders in which a step has its item
MAX_FILES = 1_000_000
MAX_KEYS = 2_000_000
MAX_JSON = 1 << 20  # bytes of an array's metadata
_PROCESS = re.compile(r"ocdbt\.process_\d+")
_ARRAYS = {"/.zarray": "zarr", "/zarr.json": "zarr3"}


def recognise(probe: Probe) -> bool:
    """Whether this is a folder with such a store, or with a process's part of one."""
    return probe.path.is_dir() and (_item(probe.path) is not None or _is_unmerged(probe.path))


def _item(folder: Path) -> Path | None:
    return next((folder / i for i in ITEMS if (folder / i / MANIFEST).is_file()), None)


def _is_unmerged(folder: Path) -> bool:
    return any(_PROCESS.fullmatch(path.name) for path in folder.iterdir())


def open(path: Path) -> Checkpoint:  # noqa: A001 - the contract of a format
    """Open the arrays of a folder; reads the store's keys and the arrays' metadata.

    Raises `UnsupportedError`, `CorruptFileError`, `UnsafeContentError` or `LimitError`.
    """
    with context(path=path):
        folder = _item(path)
        if folder is None:
            raise UnsupportedError("the parts of the processes were not merged into one store")
        stored = _stored(folder)
        store = _Store(folder)
        found = Found()
        try:
            for key, driver in store.arrays():
                with context(tensor=shown(key)):
                    found.add(key, store.view(key, driver))
            found.check(stored)
            behind = sorted(place for place in folder.rglob("*") if place.is_file())
        except BaseException:
            store.close()
            raise
        return found.checkpoint("orbax", path, store.close, files=tuple(behind))


def _stored(folder: Path) -> int:
    """The bytes of all files; `UnsafeContentError` when one is not a plain file."""
    total = count = 0
    for parent, folders, names in os.walk(folder):
        count += len(names) + len(folders)
        if count > MAX_FILES:
            raise LimitError(f"the folder has more than {MAX_FILES} files")
        for name in (*folders, *names):
            place = Path(parent, name)
            facts = place.lstat()
            if not stat.S_ISREG(facts.st_mode) and not stat.S_ISDIR(facts.st_mode):
                raise UnsafeContentError("a link or special file in the folder", path=place)
            total += facts.st_size
    return total


class _Store:
    """The key-value store of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.library = Library(folder)

    def close(self) -> None:
        """Read no more."""
        self.library.close()

    def arrays(self) -> list[tuple[str, str]]:
        """The keys of arrays, each with the driver that reads it."""
        keys: list[str] = json.loads(self.library.ask(ask="keys")[1])
        if len(keys) > MAX_KEYS:
            raise LimitError(f"the store has more than {MAX_KEYS} keys")
        found = []
        for key in keys:
            for mark, driver in _ARRAYS.items():
                name = key.removesuffix(mark)
                if name != key:
                    found.append((name, driver))
        return found

    def view(self, key: str, driver: str) -> View | str:
        """The array of a key."""
        mark = next(mark for mark, name in _ARRAYS.items() if name == driver)
        data = self.library.ask(ask="value", key=key + mark)[1]
        if len(data) > MAX_JSON:
            raise LimitError("an array's metadata are too long", found=f"{len(data)} bytes")
        try:
            facts = json.loads(data)
            shape, text = list(facts["shape"]), facts.get("dtype", facts.get("data_type"))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CorruptFileError("an array's metadata are not those of zarr") from error
        if not all(type(n) is int for n in shape):
            raise CorruptFileError("an array has no shape", found=shown(str(shape)))
        try:
            plain = re.fullmatch(r"[<|][biufc]\d{1,2}", str(text))
            dtype = np.dtype(text) if plain else dtype_of(str(text))
        except (TypeError, ValueError):
            return f"elements of dtype {shown(str(text))}"
        storage = _Array(self, key, driver, dtype, shape)
        return View.over(storage, shape)


class _Array:
    """A storage of the elements of an array in the store; whole rows are read."""

    def __init__(
        self, store: _Store, key: str, driver: str, dtype: np.dtype[Any], shape: list[int]
    ) -> None:
        self.dtype = dtype
        self.size = size_of(shape)
        self._store = store
        self._key, self._driver, self._shape = key, driver, shape
        self._row = math.prod(shape[1:])

    def read(self, start: int, out: NDArray[Any]) -> None:
        """Fill `out` with [start, start + out.size)."""
        if not out.size:
            return
        with context(path=self._store.folder, tensor=self._key):
            first, last = start // self._row, -(-(start + out.size) // self._row)
            facts, data = self._store.library.ask(
                ask="rows", key=self._key, driver=self._driver, start=first, stop=last
            )
            expected = (last - first) * self._row * self.dtype.itemsize
            if (
                facts["shape"] != self._shape
                or facts["dtype"] != self.dtype.name
                or len(data) != expected
            ):
                raise CorruptFileError("the array is not what its metadata say")
            skip = start - first * self._row
            out[:] = np.frombuffer(data, self.dtype)[skip : skip + out.size]
