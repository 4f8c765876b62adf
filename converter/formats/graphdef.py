"""TensorFlow's frozen graphs (.pb): the values of `Const` nodes.

https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/framework/graph.proto

    GraphDef       node 1, library 2 {function 1 {signature 1 {name 1}, node_def 3}}
    NodeDef        name 1, op 2 = "Const", attr 5 {key 1 = "value", value 2 {tensor 8}}
    TensorProto    dtype 1, tensor_shape 2 {dim 2 {size 1}}, and the elements either as in memory,
                   tensor_content 4, or in the field of their dtype: float_val 5, double_val 6,
                   int_val 7 (all small integers), string_val 8, scomplex_val 9, int64_val 10,
                   bool_val 11, dcomplex_val 12, half_val 13 (bits), uint32_val 16, uint64_val 17,
                   float8_val 18

Where such a field has fewer elements than the shape, the last one stands for the rest; none at all
means zeros.  A tensor's name is its node's; one in the library is `FUNCTION/NODE`.  What a file
may mean by repetition is bounded.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.errors import CorruptFileError, context
from converter.files import File
from converter.formats import Probe
from converter.formats._names import name_problem, shown
from converter.formats._protobuf import FIXED32, FIXED64, VARINT
from converter.formats._tf import DTYPES, read_shape, unheld
from converter.formats._typed_fields import (
    Bytes,
    Decoded,
    Field,
    Found,
    Run,
    Runs,
    Walk,
    bit_patterns,
    first_fields,
    fixed,
    integers,
    size_of,
    strings,
    tag,
    varints,
    viewed,
)
from converter.layout import Storage, View
from converter.tensors import STRING, Checkpoint

_CONTENT = tag(4)
_FLOAT8 = 18
_FIELDS = {  # name of a dtype → its field of TensorProto
    "float32": 5,
    "float64": 6,
    **dict.fromkeys(("int32", "int16", "int8", "uint16", "uint8", "int4", "uint4"), 7),
    **dict.fromkeys(("int2", "uint2"), 7),
    "complex64": 9,
    "int64": 10,
    "bool": 11,
    "complex128": 12,
    **dict.fromkeys(("float16", "bfloat16"), 13),
    "uint32": 16,
    "uint64": 17,
}
_WIDTHS = {5: 4, 9: 4, 6: 8, 12: 8}  # bytes of a number
_VALUES = {  # tag → the field it belongs to
    **{tag(n): n for n in (*range(5, 14), 16, 17, _FLOAT8)},
    **{tag(n, VARINT): n for n in (7, 10, 11, 13, 16, 17)},
    **{tag(n, FIXED32): n for n in (5, 9)},
    **{tag(n, FIXED64): n for n in (6, 12)},
}
_OPS = {tag(n) for n in (1, 2, 3, 4, 5, 6, 7)}


def recognise(probe: Probe) -> bool:
    """Whether this starts with a node: a name and an op."""
    found = first_fields(probe.head)
    if not found or found[0][0] != tag(1):
        return False
    node = first_fields(found[0][2])
    if not node or [one for one, _, _ in node[:2]] != [tag(1), tag(2)]:
        return False
    texts = [data.decode("utf-8", "replace") for _, _, data in node[:2]]
    whole = all(value == len(data) for _, value, data in node[:2])
    return whole and not any(map(name_problem, texts)) and all(one in _OPS for one, _, _ in node)


def open(path: Path) -> Checkpoint:  # noqa: A001 - the contract of a format
    """Open the constants of a graph; no elements are read.

    Raises `CorruptFileError` or `LimitError`.
    """
    with ExitStack() as stack, context(path=path):
        file = File(path)
        stack.callback(file.close)
        graph = _Graph(Walk(file))
        graph.read(0, file.size)
        graph.found.check(file.size)
        return graph.found.checkpoint("graphdef", path, stack.pop_all().close)


@dataclass(slots=True)
class _Tensor:
    """A TensorProto without its elements."""

    dtype: int = 0
    shape: tuple[int, ...] = ()
    content: Field | None = None
    values: dict[int, Runs] = field(default_factory=dict)


@dataclass(slots=True)
class _Graph:
    """Reads a graph; what it finds."""

    walk: Walk
    found: Found = field(default_factory=Found)

    def read(self, start: int, stop: int) -> None:
        """All nodes, and those of the functions in the library."""
        for one in self.walk.fields(start, stop):
            if one.tag == tag(1):
                self._node(one, "")
            elif one.tag == tag(2):
                for function in self.walk.fields(one.start, one.stop):
                    if function.tag == tag(1):
                        self._function(function)

    def _function(self, function: Field) -> None:
        name, nodes = "", []
        for one in self.walk.fields(function.start, function.stop):
            if one.tag == tag(1):
                texts = self.walk.fields(one.start, one.stop)
                name = next((self.walk.text(text) for text in texts if text.tag == tag(1)), "")
            elif one.tag == tag(3):
                nodes.append(one)
        for node in nodes:
            self._node(node, f"{name}/")

    def _node(self, node: Field, scope: str) -> None:
        texts = {1: "", 2: ""}
        attributes = []
        for one in self.walk.fields(node.start, node.stop):
            if one.tag in {tag(1), tag(2)}:
                texts[one.tag >> 3] = self.walk.text(one)
            elif one.tag == tag(5):
                attributes.append(one)
        if texts[2] != "Const":
            return
        name = scope + texts[1]
        with context(tensor=shown(name)):
            tensors = [one for attr in attributes for one in self._tensors(attr)]
            if len(tensors) != 1:
                raise CorruptFileError("a Const has one value", expected=1, found=len(tensors))
            self.found.add(name, self._view(name, self._tensor(tensors[0])))

    def _tensors(self, attribute: Field) -> list[Field]:
        """The tensor in an attribute, when that is the value."""
        key, found = "", []
        for one in self.walk.fields(attribute.start, attribute.stop):
            if one.tag == tag(1):
                key = self.walk.text(one)
            elif one.tag == tag(2):
                found += [p for p in self.walk.fields(one.start, one.stop) if p.tag == tag(8)]
        return found if key == "value" else []

    def _tensor(self, message: Field) -> _Tensor:
        made = _Tensor()
        for one in self.walk.fields(message.start, message.stop):
            if one.tag == tag(1, VARINT):
                made.dtype = one.value
            elif one.tag == tag(2):
                made.shape = read_shape(self.walk.data, one.start, one.stop)
            elif one.tag == _CONTENT:
                made.content = one if one.value else made.content
            elif one.tag in _VALUES:
                number = _VALUES[one.tag]
                packed = False if one.tag == tag(8) else None
                made.values.setdefault(number, Runs()).add(one, packed=packed)
        return made

    def _view(self, name: str, tensor: _Tensor) -> View | str:
        dtype = DTYPES.get(tensor.dtype)
        if dtype is None:
            return unheld(tensor.dtype)
        size = size_of(tensor.shape)
        if tensor.content and tensor.values:
            raise CorruptFileError("the elements are given in more than one form")
        if tensor.content is None:
            return View.over(self._typed(name, tensor, dtype, size), tensor.shape)
        if dtype == STRING:
            return "strings in one piece"
        place = Bytes(self.walk.file, tensor.content.start, tensor.content.value)
        return View.over(place.storage(dtype, size, tensor=name), tensor.shape)

    def _typed(self, name: str, tensor: _Tensor, dtype: np.dtype[Any], size: int) -> Storage:
        number = 8 if dtype == STRING else _FIELDS.get(dtype.name, _FLOAT8)
        runs = tensor.values.get(number, Runs())
        if tensor.values and not runs:
            raise CorruptFileError(f"the elements are not where those of {dtype} are")
        file, width = self.walk.file, 1 if number == _FLOAT8 else _WIDTHS.get(number, 0)
        whole = len(runs) == 1 and runs[0].packed and runs.nbytes == size * dtype.itemsize
        if width and whole:
            return Bytes(file, runs[0].start, runs.nbytes).storage(dtype, size, tensor=name)
        decode: Callable[[File, Run], NDArray[Any]] = strings if dtype == STRING else varints
        decode = fixed(width) if width else decode
        finish = _finish(dtype, number)
        return Decoded(file, runs, decode, finish, dtype, size, tensor=name, repeat=True)


def _finish(dtype: np.dtype[Any], number: int) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """From what is decoded to the dtype."""
    if dtype == STRING:
        return lambda found: found
    if number in _WIDTHS or number == _FLOAT8:
        return lambda raw: viewed(raw, dtype)
    if dtype.kind in "iub":
        return integers(dtype)
    return bit_patterns(dtype) if number == _FIELDS["float16"] else _small(dtype)


def _small(dtype: np.dtype[Any]) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """From 64-bit integers to those of 2 and 4 bits."""

    def narrow(numbers: NDArray[Any]) -> NDArray[Any]:
        wide = numbers.view(np.int64)
        narrowed = wide.astype(np.int8).astype(dtype)
        if (narrowed.astype(np.int64) != wide).any():
            raise CorruptFileError(f"a number is not one of {dtype.name}")
        return narrowed

    return narrow
