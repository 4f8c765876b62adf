"""Orbax: a folder with a key-value store (OCDBT) of zarr arrays, read by the library tensorstore.

https://orbax.readthedocs.io/en/latest/guides/checkpoint/checkpoint_format.html

    step/_CHECKPOINT_METADATA, step/default/…      a step, and the item in it
    step/default/_METADATA                         the tree, in JSON
    step/default/manifest.ocdbt, d/…               the store:
        params.dense.kernel/.zarray                  shape, dtype, chunks, compression, in JSON
        params.dense.kernel/0.0, …                   chunks
    step/default/ocdbt.process_0/…                 the same of a process, to be merged into it

A tensor's name is its key.  Before the library is asked, the folder is looked through: links and
special files in it are refused.  The library runs in this process.  Not read: steps whose processes
were not merged, and the older kind with a folder for each parameter.
"""

from __future__ import annotations

import importlib
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
    SourceError,
    UnsafeContentError,
    UnsupportedError,
    context,
)
from converter.formats import Probe
from converter.formats._names import shown
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
        for key, driver in store.arrays():
            with context(tensor=shown(key)):
                found.add(key, store.view(key, driver))
        found.check(stored)
        behind = sorted(place for place in folder.rglob("*") if place.is_file())
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


def _library() -> Any:
    try:
        return importlib.import_module("tensorstore")
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            "this is Orbax' format, and the library tensorstore is not installed here",
            hint="pip install 'checkpoint-converter[orbax]'",
        ) from error


class _Store:
    """The key-value store of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.closed = False
        self._library = _library()
        self._kv = {"driver": "ocdbt", "base": f"{folder.resolve().as_uri()}/"}
        self._keys = self._ask(lambda: self._library.KvStore.open(self._kv).result())

    def close(self) -> None:
        """Read no more."""
        self.closed = True

    def _ask(self, act: Any) -> Any:
        """What the library answers; its errors as ours."""
        try:
            return act()
        except (ValueError, OSError, RuntimeError, TypeError, KeyError) as error:
            text = shown(str(error).split(" [")[0])
            raise CorruptFileError(f"the store cannot be read: {text}", path=self.folder) from error

    def arrays(self) -> list[tuple[str, str]]:
        """The keys of arrays, each with the driver that reads it."""
        keys = self._ask(lambda: self._keys.list().result())
        if len(keys) > MAX_KEYS:
            raise LimitError(f"the store has more than {MAX_KEYS} keys")
        found = []
        for raw in keys:
            key = raw.decode("utf-8", "backslashreplace")
            for mark, driver in _ARRAYS.items():
                name = key.removesuffix(mark)
                if name != key:
                    found.append((name, driver))
        return found

    def view(self, key: str, driver: str) -> View | str:
        """The array of a key."""
        mark = next(mark for mark, name in _ARRAYS.items() if name == driver)
        data = self._ask(lambda: bytes(self._keys.read(key + mark).result().value))
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

    def open(self, key: str, driver: str) -> Any:
        """The library's array, which knows its chunks."""
        if self.closed:
            raise SourceError("reading failed: the checkpoint is closed")
        spec = {"driver": driver, "kvstore": {**self._kv, "path": f"{key}/"}}
        return self._ask(lambda: self._library.open(spec, open=True, read=True).result())

    def read(self, array: Any, start: int, stop: int) -> NDArray[Any]:
        """Rows of an array."""
        rows = array[start:stop] if array.ndim else array
        values: NDArray[Any] = self._ask(lambda: np.asarray(rows.read().result()))
        return values


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
            array = self._store.open(self._key, self._driver)
            if list(array.shape) != self._shape or array.dtype.numpy_dtype != self.dtype:
                raise CorruptFileError("the array is not what its metadata say")
            first, last = start // self._row, -(-(start + out.size) // self._row)
            values = self._store.read(array, first, last).reshape(-1)
            skip = start - first * self._row
            out[:] = values[skip : skip + out.size]
