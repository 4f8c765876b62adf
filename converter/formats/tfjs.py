"""TensorFlow.js: a JSON file that says which weights lie in which shards beside it.

https://github.com/tensorflow/tfjs/blob/master/tfjs-core/src/io/types.ts (WeightsManifestEntry)

    model.json          {"format": …, "modelTopology": …, "weightsManifest": [
                           {"paths": ["group1-shard1of2.bin", "group1-shard2of2.bin"],
                            "weights": [
                              {"name": "conv/kernel", "shape": [3, 3], "dtype": "float32"},
                              {"name": "conv/bias", …, "quantization":
                                 {"dtype": "uint8", "scale": 0.01, "min": -1.2}}]}]}
    group1-shard1of2.bin   the weights of the group in their order, without padding: the shards
    group1-shard2of2.bin   are cut anywhere, also inside a tensor, also inside an element

    quantised           uint8 or uint16 q: q · scale + min, in float64, then rounded to the dtype
                        (an int32 to the nearest, halves up); float16: widened
    string              a length, 4 bytes, and that many bytes, for each element

The manifest of older versions (`weights_manifest.json`) is the list by itself.  A folder with a
`model.json` is read, too.  Shards are siblings of the JSON file.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.errors import CorruptFileError, LimitError, UnsupportedError, context
from converter.files import File, Region
from converter.formats import Probe
from converter.formats._beside import beside
from converter.formats._names import shown
from converter.formats._typed_fields import Found, size_of
from converter.layout import Computed, Elementwise, Storage, View
from converter.tensors import STRING, Checkpoint, dtype_of

MAX_JSON = 100_000_000  # bytes
MAX_VALUES = 2_000_000  # in the JSON
MAX_FILES = 512
MAX_STRINGS = 1_000_000  # in a tensor
LARGEST = 1e38  # of scale and min
MODEL = "model.json"

_DTYPES = (
    *("bool", "uint8", "uint16", "int8", "int16", "int32"),
    *("float16", "float32", "float64", "complex64", "string"),
)
_QUANTISED = ("uint8", "uint16", "float16")
_KEY = b'"weightsManifest"'
_LENGTH = 4  # bytes before a string


def recognise(probe: Probe) -> bool:
    """Whether this is a JSON file with a manifest, or a folder with one."""
    if probe.path.is_dir():
        return (probe.path / MODEL).is_file()
    head = probe.head.lstrip()
    if head.startswith(b"["):
        return b'"paths"' in probe.head + probe.tail and b'"weights"' in probe.head + probe.tail
    if not head.startswith(b"{"):
        return False
    if _KEY in probe.head + probe.tail:
        return True
    with probe.path.open("rb") as stream:
        return _KEY in stream.read(MAX_JSON)


def open(path: Path) -> Checkpoint:  # noqa: A001 - the contract of a format
    """Open the weights of a model; no values are read, but the lengths of strings are.

    Raises `CorruptFileError`, `UnsupportedError`, `LimitError`, `UnsafeContentError` or
    `NotFoundError`.
    """
    path = path / MODEL if path.is_dir() else path
    with ExitStack() as stack, context(path=path):
        root, metadata = _manifest(path)
        found = Found()
        stored = 0
        files: dict[str, File] = {}
        for group in root:
            shards = _Shards([_shard(path, name, files, stack) for name in _texts(group, "paths")])
            stored += shards.nbytes
            _Group(shards, found).read(_list(group, "weights"))
        found.check(stored)
        behind = (path, *(file.path for file in files.values()))
        close = stack.pop_all().close
        return found.checkpoint("tfjs", path, close, metadata=metadata, files=behind)


# ── the manifest ─────────────────────────────────────────────────────────────────────────────────


def _manifest(path: Path) -> tuple[list[Any], dict[str, str]]:
    file = File(path)
    try:
        if file.size > MAX_JSON:
            raise LimitError("the JSON is too long", expected=f"<= {MAX_JSON}", found=file.size)
        data = file.read(0, file.size)
    finally:
        file.close()
    if sum(map(data.count, (b"[", b"{", b","))) > MAX_VALUES:
        raise LimitError(f"the JSON has more than {MAX_VALUES} values")
    try:
        root = json.loads(data.decode())
    except RecursionError as error:
        raise LimitError("the JSON is nested too deeply") from error
    except ValueError as error:
        raise CorruptFileError(f"the file is not JSON: {error}") from error
    metadata = {}
    if isinstance(root, dict):
        keys = ("format", "generatedBy", "convertedBy")
        metadata = {key: root[key] for key in keys if isinstance(root.get(key), str)}
        root = root.get("weightsManifest")
    if not isinstance(root, list):
        raise CorruptFileError("the JSON has no list of weights")
    return root, metadata


def _list(holder: Any, key: str) -> list[Any]:
    found = holder.get(key) if isinstance(holder, dict) else None
    if not isinstance(found, list):
        raise CorruptFileError(f"a group of weights has no list '{key}'")
    return found


def _texts(holder: Any, key: str) -> list[str]:
    found = _list(holder, key)
    if not all(isinstance(text, str) for text in found):
        raise CorruptFileError(f"'{key}' is not a list of names")
    if len(set(found)) != len(found):
        raise CorruptFileError(f"'{key}' names a file twice")
    return found


def _shard(path: Path, name: str, files: dict[str, File], stack: ExitStack) -> File:
    if name not in files:
        if len(files) >= MAX_FILES:
            raise LimitError(f"more than {MAX_FILES} shards")
        file = files[name] = File(beside(path, name))
        stack.callback(file.close)
    return files[name]


# ── shards ───────────────────────────────────────────────────────────────────────────────────────


class _Shards:
    """Files as if they were one."""

    def __init__(self, files: Sequence[File]) -> None:
        self.files = [file for file in files if file.size]
        self.starts = [0]
        for file in self.files:
            self.starts.append(self.starts[-1] + file.size)
        self.nbytes = self.starts[-1]

    def at(self, offset: int) -> tuple[File, int]:
        """The file that holds a byte, and where it does."""
        number = bisect_right(self.starts, offset) - 1
        return self.files[number], offset - self.starts[number]

    def read_into(self, offset: int, raw: NDArray[np.uint8]) -> None:
        """Fill `raw` with the bytes from `offset`, all of which exist."""
        done = 0
        while done < raw.size:
            file, place = self.at(offset + done)
            count = min(raw.size - done, file.size - place)
            file.read_into(place, raw[done : done + count])
            done += count

    def storage(self, offset: int, dtype: np.dtype[Any], size: int, tensor: str) -> Storage:
        """Elements: a `Region` where one file holds them all."""
        if size:
            file, place = self.at(offset)
            if place + size * dtype.itemsize <= file.size:
                return Region(file, place, dtype, size, tensor=tensor)
        return _Straddling(self, offset, dtype, size)


class _Straddling:
    """A storage of elements in several files, cut anywhere."""

    def __init__(self, shards: _Shards, offset: int, dtype: np.dtype[Any], size: int) -> None:
        self.dtype = dtype
        self.size = size
        self._shards = shards
        self._offset = offset

    def read(self, start: int, out: NDArray[Any]) -> None:
        """Fill `out` with [start, start + out.size)."""
        offset = self._offset + start * self.dtype.itemsize
        self._shards.read_into(offset, out.reshape(-1).view(np.uint8))


class _Group:
    """Reads the weights of a group, each after the one before."""

    def __init__(self, shards: _Shards, found: Found) -> None:
        self._shards = shards
        self._found = found
        self._offset = 0

    def read(self, weights: list[Any]) -> None:
        """All of them; they must be all that the shards hold."""
        for entry in weights:
            name = entry.get("name") if isinstance(entry, dict) else None
            if not isinstance(name, str):
                raise CorruptFileError("a weight has no name")
            with context(tensor=shown(name)):
                self._found.add(name, self._view(name, entry))
        if self._offset != self._shards.nbytes:
            raise CorruptFileError(
                "the shards hold more than the manifest says",
                expected=f"{self._offset} bytes",
                found=f"{self._shards.nbytes} bytes",
            )

    def _view(self, name: str, entry: dict[str, Any]) -> View:
        shape, text = entry.get("shape"), entry.get("dtype")
        if not isinstance(shape, list) or not all(type(n) is int for n in shape):
            raise CorruptFileError("a weight has no shape", found=shown(str(shape)))
        if text not in _DTYPES:
            raise UnsupportedError(f"a weight of dtype {shown(str(text))}")
        size, dtype = size_of(shape), dtype_of(text)
        quantisation = entry.get("quantization")
        if dtype == STRING:
            return View.over(self._strings(name, size), shape)
        if quantisation is None:
            return View.over(self._elements(name, dtype, size), shape)
        if not isinstance(quantisation, dict) or quantisation.get("dtype") not in _QUANTISED:
            raise UnsupportedError("a weight is quantised in an unknown way")
        if text not in {"float32", "int32"}:
            raise UnsupportedError(f"a quantised weight of dtype {text}")
        stored = self._elements(name, dtype_of(quantisation["dtype"]), size)
        function = _dequantiser(quantisation, dtype)
        return View.over(Elementwise(View.over(stored, (size,)), function, dtype), shape)

    def _elements(self, name: str, dtype: np.dtype[Any], size: int) -> Storage:
        start = self._take(size * dtype.itemsize)
        return self._shards.storage(start, dtype, size, name)

    def _take(self, nbytes: int) -> int:
        start, left = self._offset, self._shards.nbytes - self._offset
        if nbytes > left:
            raise CorruptFileError(
                "the shards are truncated",
                expected=f"{nbytes} bytes more",
                found=f"{left} bytes",
                hint="compare their sizes with the originals'",
            )
        self._offset += nbytes
        return start

    def _strings(self, name: str, size: int) -> Storage:
        if size > MAX_STRINGS:
            raise LimitError(f"a tensor of more than {MAX_STRINGS} strings")
        places = []
        raw = np.empty(_LENGTH, np.uint8)
        for _ in range(size):
            self._shards.read_into(self._take(_LENGTH), raw)
            nbytes = int.from_bytes(raw.tobytes(), "little")
            places.append((self._take(nbytes), nbytes))
        shards = self._shards

        def compute() -> NDArray[Any]:
            with context(tensor=name):
                array = np.empty(size, STRING)
                for number, (start, nbytes) in enumerate(places):
                    text = np.empty(nbytes, np.uint8)
                    shards.read_into(start, text)
                    array[number] = text.tobytes()
                return array

        return Computed(size, STRING, compute)


def _dequantiser(
    quantisation: dict[str, Any], dtype: np.dtype[Any]
) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """What gives the values that quantised ones stand for."""
    if quantisation["dtype"] == "float16":
        return lambda block: block.astype(dtype)
    scale, least = _number(quantisation, "scale"), _number(quantisation, "min")

    def dequantise(block: NDArray[Any]) -> NDArray[Any]:
        values: NDArray[Any] = block.astype(np.float64) * scale + least
        values = np.floor(values + 0.5) if dtype.kind == "i" else values
        return values.astype(dtype)

    return dequantise


def _number(quantisation: dict[str, Any], key: str) -> float:
    """A finite number that float32 can hold, or nearly."""
    value = quantisation.get(key)
    if isinstance(value, int | float) and abs(value) < LARGEST:
        return value
    raise CorruptFileError(f"a quantised weight has no {key}", found=shown(str(value)))
