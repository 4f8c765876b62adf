"""What TensorFlow's two checkpoint formats share: dtypes, shapes, slices and their keys.

https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/util/saved_tensor_slice_util.cc

A variable may be stored in slices, cut on any axes. The key of a slice is an *ordered code*, whose
bytes sort as the values do:

    key        number 0, name, number of axes, (start, length) of every axis; length -1: whole axis
    number     1 byte count, then that many bytes, big-endian, without leading zeros
    name       its bytes, 00 as 00 ff, ff as ff 00; then 00 01
    start, …   signed, 7 n bits in n bytes, big-endian; the first n bits inverted
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from converter.errors import (
    CorruptFileError,
    LimitError,
    TargetError,
    UnrepresentableError,
    UnsupportedError,
)
from converter.formats._protobuf import LENGTH, VARINT, Buffer, fields, message, number, signed
from converter.layout import Memory, View, concatenate
from converter.tensors import STRING, TensorSpec, dtype_name

MAX_NAME = 4096  # bytes
MAX_RANK = 32
MAX_NESTING = 64  # levels at which slices may be cut again

_NAMES = {
    1: "float32",
    2: "float64",
    3: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    8: "complex64",
    9: "int64",
    10: "bool",
    17: "uint16",
    18: "complex128",
    19: "float16",
    22: "uint32",
    23: "uint64",
}
_ML_NAMES = {
    14: "bfloat16",
    24: "float8_e5m2",
    25: "float8_e4m3fn",
    26: "float8_e4m3fnuz",
    27: "float8_e4m3b11fnuz",
    28: "float8_e5m2fnuz",
    29: "int4",
    30: "uint4",
    31: "int2",
    32: "uint2",
    33: "float4_e2m1fn",
}
_QUANTIZED = {11: "int8", 12: "uint8", 13: "int32", 15: "int16", 16: "uint16"}
_OPAQUE = {20: "resource handles", 21: "variant values"}

_PLAIN: dict[int, np.dtype[Any]] = {
    7: STRING,
    **{number: np.dtype(name) for number, name in _NAMES.items()},
    **{number: np.dtype(getattr(ml_dtypes, name)) for number, name in _ML_NAMES.items()},
}
NUMBERS: Mapping[np.dtype[Any], int] = {dtype: number for number, dtype in _PLAIN.items()}
DTYPES: Mapping[int, np.dtype[Any]] = {
    **_PLAIN,
    **{number: np.dtype(name) for number, name in _QUANTIZED.items()},
}

_CONTROL = re.compile(r"[\0-\x1f\x7f]")

Slice = tuple[tuple[int, int], ...]  # (start, length) an axis, -1: the whole axis, as it is stored
Box = tuple[tuple[int, int], ...]  # [start, stop) an axis


def unheld(number: int) -> str:
    """Why tensors of a dtype cannot be read, or not from the format at hand."""
    if number in DTYPES:
        return f"the format has no place for {dtype_name(DTYPES[number])}"
    if number in _OPAQUE:
        return f"{_OPAQUE[number]} are not tensors of numbers"
    return f"TensorFlow's dtype {number} is not known"


def problem(name: str, spec: TensorSpec, held: Mapping[np.dtype[Any], Any]) -> str:
    """Why a TensorFlow checkpoint whose dtypes are `held` has no room for a tensor, or ""."""
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        return "the name is not valid Unicode"
    if not encoded or _CONTROL.search(name):
        return "the name is empty, or holds control characters"
    if len(encoded) > MAX_NAME:
        return f"the name is longer than {MAX_NAME} bytes"
    if len(spec.shape) > MAX_RANK:
        return f"it has more than {MAX_RANK} axes"
    if spec.dtype not in held:
        return f"the dtype {dtype_name(spec.dtype)} cannot be stored"
    return ""


def decoded_name(key: bytes) -> tuple[str, str]:
    """The name that a key stands for, and why it is no name for a tensor ("" when it is)."""
    if len(key) > MAX_NAME:
        raise LimitError("a name is too long", expected=f"at most {MAX_NAME} bytes", found=len(key))
    name = key.decode(errors="backslashreplace")
    shown = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", name)
    if name.encode() != key:
        return shown, "its name is not valid UTF-8"
    return shown, "" if shown == name else "its name holds control characters"


def check_held(
    path: Path, specs: Mapping[str, TensorSpec], problem: Callable[[str, TensorSpec], str]
) -> None:
    """Raise `UnrepresentableError` for the first tensor that a target has no room for."""
    for name, spec in specs.items():
        reason = problem(name, spec)
        if reason:
            raise UnrepresentableError(reason, path=path, tensor=name)


def in_memory_order(chunk: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[np.uint8]:
    """The little-endian bytes of a piece of a tensor; `TargetError` when it is of another dtype."""
    if chunk.dtype != dtype:
        raise TargetError(
            "a piece of the tensor has another dtype", expected=dtype, found=chunk.dtype
        )
    stored = dtype.newbyteorder("<") if dtype.kind in "iufc" else dtype
    return np.ascontiguousarray(chunk, stored).reshape(-1).view(np.uint8)


def check_strings(chunks: Iterable[NDArray[Any]], count: int) -> list[bytes]:
    """The strings of a tensor; `TargetError` when there are more or fewer, or one is not bytes."""
    strings = [string for chunk in chunks for string in chunk]
    if not all(isinstance(string, bytes) for string in strings):
        raise UnrepresentableError("an element of a string tensor is not bytes")
    check_complete(len(strings), count)
    return strings


def check_room(found: int, expected: int) -> None:
    """Raise `TargetError` before more is written than the tensor's spec says."""
    if found > expected:
        check_complete(found, expected)


def check_complete(found: int, expected: int) -> None:
    """Raise `TargetError` when a tensor came with more or less than its spec says."""
    if found != expected:
        raise TargetError("the tensor is not what was announced", expected=expected, found=found)


# ── messages ─────────────────────────────────────────────────────────────────────────────────────


def read_shape(data: Buffer, start: int, end: int) -> tuple[int, ...]:
    """The shape in a TensorShapeProto. A dimension of size 0 is an empty message: it counts."""
    shape: list[int] = []
    for tag, value, first, stop in fields(data, start, end):
        if tag == 2 << 3 | LENGTH:
            sizes = [0, *(n for t, n, _, _ in fields(data, first, stop) if t == 1 << 3 | VARINT)]
            shape.append(signed(sizes[-1]))
        elif tag == 3 << 3 | VARINT and value:
            raise CorruptFileError("a stored tensor has no shape")
        if len(shape) > MAX_RANK:
            raise LimitError("a tensor has too many axes", expected=f"at most {MAX_RANK}")
    if min(shape, default=0) < 0:
        raise CorruptFileError("a dimension is negative", found=shape)
    if math.prod(n for n in shape if n) >> 58:  # in elements; no array of NumPy's is larger
        raise LimitError("a shape is out of bounds", found=shape)
    return tuple(shape)


def shape_bytes(shape: Sequence[int]) -> bytes:
    """A TensorShapeProto."""
    return b"".join(message(2, number(1, n)) for n in shape)


def read_slice(data: Buffer, start: int, end: int) -> Slice:
    """The extents in a TensorSliceProto, as they are stored."""
    extents: list[tuple[int, int]] = []
    for tag, _, first, stop in fields(data, start, end):
        if tag == 1 << 3 | LENGTH:
            known = {t: signed(n) for t, n, _, _ in fields(data, first, stop)}
            extents.append((known.get(1 << 3 | VARINT, 0), known.get(2 << 3 | VARINT, -1)))
        if len(extents) > MAX_RANK:
            raise LimitError("a slice has too many axes", expected=f"at most {MAX_RANK}")
    return tuple(extents)


def box_of(cut: Slice, shape: Sequence[int]) -> Box:
    """A slice as half-open ranges inside `shape`; `CorruptFileError` when it is not."""
    box = tuple(
        (start, start + length) if length >= 0 else (0, n)
        for (start, length), n in zip(cut, shape, strict=False)
    )
    whole = all(length >= 0 or (start, length) == (0, -1) for start, length in cut)
    inside = all(0 <= start <= stop <= n for (start, stop), n in zip(box, shape, strict=False))
    if len(cut) != len(shape) or not whole or not inside:
        raise CorruptFileError(
            "a slice does not lie inside its tensor",
            expected=f"a part of {list(shape)}",
            found=f"(start, length) of {list(cut)}",
        )
    return box


def check_version(data: Buffer, start: int, end: int) -> None:
    """Raise `UnsupportedError` when a VersionDef asks for readers newer than version 1."""
    for tag, value, _, _ in fields(data, start, end):
        if tag == 2 << 3 | VARINT and value > 1:
            raise UnsupportedError(
                "the checkpoint asks for a newer reader", expected="version 1", found=value
            )


# ── ordered code ─────────────────────────────────────────────────────────────────────────────────


def ordered_number(value: int) -> bytes:
    """An unsigned number as an ordered code."""
    nbytes = (value.bit_length() + 7) // 8
    return bytes([nbytes]) + value.to_bytes(nbytes, "big")


def ordered_bytes(value: bytes) -> bytes:
    """A string as an ordered code."""
    return (
        re.sub(rb"[\0\xff]", lambda found: bytes([found[0][0], ~found[0][0] & 0xFF]), value)
        + b"\0\1"
    )


def ordered_signed(value: int) -> bytes:
    """A signed number as an ordered code."""
    magnitude = value if value >= 0 else ~value
    nbytes = magnitude.bit_length() // 7 + 1
    inverted = ((1 << nbytes) - 1) << (7 * nbytes)
    return (value & ((1 << 8 * nbytes) - 1) ^ inverted).to_bytes(nbytes, "big")


def slice_key(name: bytes, cut: Slice) -> bytes:
    """The key under which a slice is stored."""
    extents = (ordered_signed(number) for extent in cut for number in extent)
    return b"".join((ordered_number(0), ordered_bytes(name), ordered_number(len(cut)), *extents))


def is_slice_key(key: bytes) -> bool:
    """Whether a key is an ordered code: names do not start with a NUL."""
    return key.startswith(b"\0")


# ── slices ───────────────────────────────────────────────────────────────────────────────────────


class Part(NamedTuple):
    """A stored slice of a tensor: where it belongs, and its values in that shape."""

    box: Box
    view: View


def assembled(shape: Sequence[int], dtype: np.dtype[Any], parts: Iterable[Part]) -> View:
    """The tensor that consists of the parts, without a copy.

    Raises `CorruptFileError` unless they cover it exactly once. (Slices that interlock, so that no
    straight cut separates them, are taken for overlapping; partitioners make grids.)
    """
    if 0 in shape:
        return View.over(Memory(np.empty(0, dtype)), shape)
    filled = [part for part in parts if all(start < stop for start, stop in part.box)]
    return _assembled(tuple((0, n) for n in shape), filled, MAX_NESTING)


def _assembled(box: Box, parts: list[Part], levels: int) -> View:
    if len(parts) == 1 and parts[0].box == box:
        return parts[0].view
    if not parts or not levels:
        raise CorruptFileError("a tensor is not covered by its slices", expected=list(box))
    for axis, (low, high) in enumerate(box):
        groups = _separated(parts, axis)
        edges = [edge for start, stop, _ in groups for edge in (start, stop)]
        if edges[1:-1:2] != edges[2::2] or (edges[0], edges[-1]) != (low, high):
            raise CorruptFileError(
                f"a tensor is not covered by its slices on axis {axis}",
                expected=f"[{low}, {high})",
                found=", ".join(f"[{start}, {stop})" for start, stop, _ in groups[:8]),
            )
        if len(groups) > 1:
            return concatenate(
                [
                    _assembled((*box[:axis], (start, stop), *box[axis + 1 :]), group, levels - 1)
                    for start, stop, group in groups
                ],
                axis,
            )
    raise CorruptFileError(
        "the slices of a tensor overlap",
        found=", ".join(str(list(part.box)) for part in parts[:8]),
        hint="two checkpoints may lie under one name",
    )


def _separated(parts: list[Part], axis: int) -> list[tuple[int, int, list[Part]]]:
    """Parts grouped by straight cuts across an axis, each group with its range on that axis."""
    groups: list[tuple[int, int, list[Part]]] = []
    for part in sorted(parts, key=lambda part: part.box[axis]):
        start, stop = part.box[axis]
        if groups and start < groups[-1][1]:
            first, last, group = groups[-1]
            group.append(part)
            groups[-1] = (first, max(last, stop), group)
        else:
            groups.append((start, stop, [part]))
    return groups
