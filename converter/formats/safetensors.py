"""safetensors: a JSON header, then the bytes of every tensor, without gaps.

https://github.com/huggingface/safetensors (README.md, safetensors/src/tensor.rs)

    ┌────────┬────────────────┬──────────────┬──────────────┬───┐
    │ N: u64 │ header: N bytes │ tensor       │ tensor       │ … │
    └────────┴────────────────┴──────────────┴──────────────┴───┘
    header     a JSON object in UTF-8, at most 100 MB, padded with spaces
    an entry   "name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}
    offsets    half-open, from the end of the header; together the entries tile what follows it:
               no hole, no overlap, so two names cannot share bytes
    bytes      little-endian, C order; 4-bit elements two a byte, the first in the low half
    metadata   under "__metadata__", strings to strings

Readers must not rely on alignment.  Files written here have it: to 64 bytes where the tensors
start, and from there to each tensor's element size, since larger ones come first.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from converter.errors import (
    ConverterError,
    CorruptFileError,
    LimitError,
    TargetError,
    UnrepresentableError,
    context,
)
from converter.files import File, Place, Region, StagedFile
from converter.formats import Probe
from converter.formats._names import name_problem, shown
from converter.formats._sink import FileSink
from converter.layout import View
from converter.tensors import Checkpoint, LazyTensors, TensorSpec, dtype_name

MAX_HEADER = 100_000_000  # bytes
MAX_RANK = 32
MAX_SIZE = 1 << 60  # elements
ALIGNMENT = 64
METADATA = "__metadata__"


class _Element(NamedTuple):
    bits: int
    dtype: np.dtype[Any] | None  # None: it is known, but there is no array of it


_F4 = np.dtype(ml_dtypes.float4_e2m1fn)
_ELEMENTS = {  # in the reference's order, by which a writer sorts
    "BOOL": _Element(8, np.dtype(np.bool_)),
    "F4": _Element(4, _F4),
    "F6_E2M3": _Element(6, None),
    "F6_E3M2": _Element(6, None),
    "U8": _Element(8, np.dtype(np.uint8)),
    "I8": _Element(8, np.dtype(np.int8)),
    "F8_E5M2": _Element(8, np.dtype(ml_dtypes.float8_e5m2)),
    "F8_E4M3": _Element(8, np.dtype(ml_dtypes.float8_e4m3fn)),
    "F8_E8M0": _Element(8, np.dtype(ml_dtypes.float8_e8m0fnu)),
    "F8_E4M3FNUZ": _Element(8, np.dtype(ml_dtypes.float8_e4m3fnuz)),
    "F8_E5M2FNUZ": _Element(8, np.dtype(ml_dtypes.float8_e5m2fnuz)),
    "I16": _Element(16, np.dtype("<i2")),
    "U16": _Element(16, np.dtype("<u2")),
    "F16": _Element(16, np.dtype("<f2")),
    "BF16": _Element(16, np.dtype(ml_dtypes.bfloat16)),
    "I32": _Element(32, np.dtype("<i4")),
    "U32": _Element(32, np.dtype("<u4")),
    "F32": _Element(32, np.dtype("<f4")),
    "C64": _Element(64, np.dtype("<c8")),
    "F64": _Element(64, np.dtype("<f8")),
    "I64": _Element(64, np.dtype("<i8")),
    "U64": _Element(64, np.dtype("<u8")),
}
_CODES = {element.dtype: code for code, element in _ELEMENTS.items() if element.dtype}
_READABLE = frozenset(_CODES.values())
_RANKS = {code: rank for rank, code in enumerate(_ELEMENTS)}


# ── reading ──────────────────────────────────────────────────────────────────────────────────


def recognise(probe: Probe) -> bool:
    """Whether a JSON object starts where a header does."""
    return re.match(rb'\{\s*["}]', probe.head[8:]) is not None


def open(path: Path) -> Checkpoint:  # noqa: A001 - the contract of a format
    """The checkpoint in one file; reads its header only.

    Raises `CorruptFileError` when it breaks a rule of the format, `LimitError` when it is
    larger in some respect than anything real.
    """
    file = File(path)
    try:
        with context(path=path):
            start, header = _read_header(file)
            metadata = _read_metadata(header.pop(METADATA, None))
            entries = _check_entries(header)
            _check_tiling(entries, start, file.size - start)
            unsupported = _take_unsupported(entries)
    except BaseException:
        file.close()
        raise
    specs = {
        name: TensorSpec(shape, dtype)
        for name, (code, shape, _, _) in entries.items()
        if (dtype := _ELEMENTS[code].dtype) is not None
    }
    return Checkpoint(
        LazyTensors(specs, lambda name: _view(file, start, entries[name], name)),
        format="safetensors",
        path=path,
        metadata=metadata,
        unsupported=unsupported,
        on_close=file.close,
    )


_Entry = tuple[str, tuple[int, ...], int, int]  # dtype, shape, [begin, end) after the header


def _view(file: File, start: int, entry: _Entry, name: str) -> View:
    code, shape, begin, end = entry
    dtype = _ELEMENTS[code].dtype
    if dtype is None:
        raise ValueError("a tensor without a dtype has no view")
    region = partial(Region, file, start + begin, tensor=name)
    if code == "F4":
        return View.over(_Halves(region(np.dtype(np.uint8), end - begin)), shape)
    return View.over(region(dtype, math.prod(shape)), shape)


class _Halves:
    """A Storage of 4-bit elements, two a byte."""

    def __init__(self, packed: Region) -> None:
        self._packed = packed
        self.dtype: np.dtype[Any] = _F4
        self.size = 2 * packed.size

    def read(self, start: int, out: NDArray[Any]) -> None:
        first, end = start // 2, (start + out.size + 1) // 2
        pairs = np.empty((end - first, 2), np.uint8)
        low, high = pairs[:, 0], pairs[:, 1]
        packed = np.empty(end - first, np.uint8)
        self._packed.read(first, packed)
        np.bitwise_and(packed, 15, out=low)
        np.right_shift(packed, 4, out=high)
        out.view(np.uint8)[...] = pairs.reshape(-1)[start - 2 * first :][: out.size]


def _read_header(file: File) -> tuple[int, dict[str, Any]]:
    """Where the tensors start, and the header."""
    nbytes = int.from_bytes(file.read(0, 8), "little")
    if nbytes > MAX_HEADER:
        raise LimitError("the header is too long", expected=f"<= {MAX_HEADER}", found=nbytes)
    raw = file.read(8, nbytes)
    if not raw.startswith(b"{"):
        raise CorruptFileError("the header does not start with '{'", offset=8, found=raw[:16])
    try:
        header = json.loads(raw.decode(), object_pairs_hook=_object, parse_constant=_refuse)
    except RecursionError as error:
        raise LimitError("the header is nested too deeply", offset=8) from error
    except ValueError as error:  # of UTF-8, of JSON, or of an integer with thousands of digits
        raise CorruptFileError(f"the header is not JSON: {error}", offset=8) from error
    if not isinstance(header, dict):
        raise CorruptFileError("the header is an entry, not a mapping of names to entries")
    return 8 + nbytes, header


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _Entry:
    """Make a JSON object; an entry becomes a tuple, of which nothing is checked yet."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise CorruptFileError("the header has a key twice", found=repr(twice))
    shape, offsets = fields.get("shape"), fields.get("data_offsets")
    if type(shape) is list and type(offsets) is list and len(offsets) == 2:  # noqa: PLR2004
        return fields.get("dtype"), tuple(shape), *offsets
    return fields


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON value")


def _read_metadata(fields: Any) -> dict[str, str]:
    fields = {} if fields is None else fields
    if not isinstance(fields, dict) or not all(isinstance(v, str) for v in fields.values()):
        raise CorruptFileError(f"'{METADATA}' does not map strings to strings")
    return fields


def _check_entries(header: dict[str, Any]) -> dict[str, _Entry]:
    """Check every entry by itself, and bring them into the order of the file."""
    for name, entry in header.items():
        try:
            if trouble := name_problem(name):
                raise CorruptFileError(f"its name {trouble}")
            _check_entry(entry)
        except ConverterError as error:
            error.tensor = shown(name)
            raise
    return dict(sorted(header.items(), key=lambda item: item[1][2:]))


def _check_entry(entry: Any) -> None:
    if type(entry) is not tuple or type(entry[0]) is not str:
        raise CorruptFileError(
            "not an entry of a tensor",
            expected='{"dtype": string, "shape": [...], "data_offsets": [begin, end]}',
            found=repr(entry)[:200],
        )
    code, shape, begin, end = entry
    for n in (*shape, begin, end):  # `type`, not `isinstance`: true is not a size
        if type(n) is not int or n < 0:
            raise CorruptFileError("a size or an offset is not a natural number", found=repr(n))
    if len(shape) > MAX_RANK:
        raise LimitError("too many dimensions", expected=f"<= {MAX_RANK}", found=len(shape))
    size = math.prod(shape)
    known = _ELEMENTS.get(code)
    if known and size * known.bits != 8 * (end - begin):
        raise CorruptFileError(
            "shape and dtype do not give the size of the data",
            expected=f"{size * known.bits / 8:g} bytes for {code} {list(shape)}",
            found=f"[{begin}, {end})",
        )
    # A 0 hides a product that overflows in the arithmetic of others.
    if (size or math.prod([n or 1 for n in shape])) >= MAX_SIZE:
        raise CorruptFileError("the shape overflows", found=list(shape))


def _check_tiling(entries: Mapping[str, _Entry], start: int, nbytes: int) -> None:
    """Every one of the bytes after the header, from `start` on, belongs to exactly one tensor."""
    end = 0
    for name, (_, _, begin, stop) in entries.items():
        if begin != end:
            fault = "leaves a hole" if begin > end else "overlaps another tensor's"
            raise CorruptFileError(
                f"the data {fault}",
                tensor=shown(name),
                expected=f"begin {end}",
                found=f"begin {begin}",
            )
        if stop < begin:
            raise CorruptFileError(
                "data_offsets is not a range", tensor=shown(name), found=[begin, stop]
            )
        end = stop
    if end != nbytes:
        raise CorruptFileError(
            "the file is truncated" if end > nbytes else "the file goes on after the last tensor",
            offset=start + min(end, nbytes),
            expected=f"{end} bytes of tensors",
            found=f"{nbytes} bytes",
            hint="compare its size with the original's; a broken download is the usual cause",
        )


def _take_unsupported(entries: dict[str, _Entry]) -> dict[str, str]:
    """Remove the entries whose elements cannot be read, and say why."""
    codes = {name: entry[0] for name, entry in entries.items() if entry[0] not in _READABLE}
    for name in codes:
        del entries[name]
    return {name: f"dtype {shown(code)} is not supported" for name, code in codes.items()}


# ── writing ──────────────────────────────────────────────────────────────────────────────────


def problem(name: str, spec: TensorSpec) -> str:
    """Why a file cannot hold this tensor, "" when it can."""
    if name == METADATA:
        return "the name is reserved"
    if trouble := name_problem(name):
        return f"its name {trouble}"
    if spec.dtype not in _CODES:
        return f"there is no {dtype_name(spec.dtype)} in safetensors"
    if len(spec.shape) > MAX_RANK:
        return f"more than {MAX_RANK} dimensions"
    if spec.dtype == _F4 and spec.size % 2:
        return "an odd number of 4-bit elements does not end on a byte"
    return ""


def body(
    path: Path,
    specs: Mapping[str, TensorSpec],
    metadata: Mapping[str, str],
    ties: Sequence[Sequence[str]],  # noqa: ARG001 - see below
) -> Body:
    """What goes into the file `path`; raises `UnrepresentableError`.

    Names that were tied are each written in full: the format cannot say that two share bytes,
    and whoever reads the file may ask for any of them.
    """
    with context(path=path):
        for name, spec in specs.items():
            if trouble := problem(name, spec):
                raise UnrepresentableError(trouble, tensor=shown(name))
        return Body(*_lay_out(specs, metadata))


def create(
    path: Path,
    specs: Mapping[str, TensorSpec],
    *,
    metadata: Mapping[str, str],
    ties: Sequence[Sequence[str]],
    overwrite: bool,
) -> FileSink:
    """A sink for one file.

    Raises `UnrepresentableError`, `TargetExistsError`, `NoSpaceError`, `TargetError`.
    """
    return FileSink({path: body(path, specs, metadata, ties)}, overwrite=overwrite)


def stored_nbytes(spec: TensorSpec) -> int:
    """Bytes of a tensor in a file."""
    return spec.size * _ELEMENTS[_CODES[spec.dtype]].bits // 8


class _Slot(NamedTuple):
    spec: TensorSpec
    begin: int  # from the start of the file
    end: int


class Body:
    """The content of a file: its header, and every tensor at its place."""

    def __init__(self, header: bytes, slots: dict[str, _Slot]) -> None:
        self.order: Sequence[str] = tuple(slots)
        self.names: Iterable[str] = self.order
        self.nbytes = max((slot.end for slot in slots.values()), default=len(header))
        self._header = header
        self._slots = slots
        self._missing = set(slots)

    def begin(self, staged: StagedFile) -> None:
        """Write the header."""
        self._staged = staged
        staged.write(0, self._header)

    def place(self, name: str) -> Place | None:
        """Where a tensor's elements lie; nowhere, where two of them share a byte."""
        spec, begin, _ = self._slots[name]
        return None if spec.dtype == _F4 else Place(self._staged, begin)

    def placed(self, name: str, crc: int) -> None:
        """Take it that a tensor is at its place."""
        self._missing.discard(name)

    def write(self, name: str, chunks: Iterable[NDArray[Any]]) -> None:
        """Take a tensor as consecutive 1-D pieces, at its place in the file."""
        spec, begin, end = self._slots[name]
        offset, path = begin, self._staged.target
        with context(path=path, tensor=name):
            for piece in _stored(spec.dtype, chunks):
                if offset + piece.nbytes <= end:
                    self._staged.write(offset, piece)
                offset += piece.nbytes
        if offset != end:
            raise TargetError(
                "the pieces of a tensor do not add up",
                path=path,
                tensor=name,
                expected=f"{spec}, {end - begin} bytes",
                found=f"{offset - begin} bytes",
            )
        self._missing.discard(name)

    def finish(self) -> None:
        """Raise `TargetError` when a tensor was never written."""
        if self._missing:
            path = self._staged.target
            raise TargetError("tensors were not written", path=path, tensor=min(self._missing))


def _lay_out(
    specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, _Slot]]:
    """The padded header, and each tensor's place, in the order of the file."""
    facts = {"format": "pt", **metadata}  # several libraries refuse a file without a format
    if not all(isinstance(text, str) for pair in facts.items() for text in pair):
        raise TargetError("metadata must be strings", found=repr(dict(metadata)))
    fields: dict[str, Any] = {METADATA: dict(sorted(facts.items()))}
    ends, end = {}, 0
    for name in sorted(specs, key=lambda name: (-_RANKS[_CODES[specs[name].dtype]], name)):
        spec = specs[name]
        code = _CODES[spec.dtype]
        begin, end = end, end + spec.size * _ELEMENTS[code].bits // 8
        fields[name] = {"dtype": code, "shape": spec.shape, "data_offsets": (begin, end)}
        ends[name] = (begin, end)
    header = _encode(fields)
    start = len(header)
    return header, {n: _Slot(specs[n], start + b, start + e) for n, (b, e) in ends.items()}


def _encode(fields: dict[str, Any]) -> bytes:
    try:
        text = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise TargetError("metadata must be Unicode", found=repr(fields[METADATA])) from error
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    if len(text) > MAX_HEADER:
        raise UnrepresentableError(
            "the names do not fit into a header", expected=f"<= {MAX_HEADER}", found=len(text)
        )
    return len(text).to_bytes(8, "little") + text


def _stored(dtype: np.dtype[Any], chunks: Iterable[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    """The pieces as they lie in the file."""
    rest = np.empty(0, np.uint8)
    for chunk in chunks:
        if chunk.dtype != dtype:
            raise TargetError("a piece has another dtype", expected=dtype, found=chunk.dtype)
        if dtype != _F4:
            yield chunk
            continue
        flat = np.concatenate([rest, chunk.reshape(-1).view(np.uint8)])
        even = flat.size // 2 * 2
        rest = flat[even:]  # a piece may end within a byte
        yield flat[0:even:2] & 15 | flat[1:even:2] << 4
    if rest.size:
        raise TargetError("the pieces of a tensor do not add up to whole bytes")
