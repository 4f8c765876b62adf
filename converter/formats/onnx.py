"""ONNX: the tensors of a graph, in its protocol buffer or in files beside it.

https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, …/docs/ExternalData.md

    ModelProto     ir_version 1, graph 7, metadata_props 14 {key 1, value 2}, functions 25
    GraphProto     node 1, initializer 5, sparse_initializer 15
    NodeProto      output 2, name 3, op_type 4, attribute 5
    AttributeProto name 1, f 2, i 3, s 4, t 5, g 6, floats 7, ints 8, strings 9, tensors 10,
                   graphs 11
    TensorProto    dims 1, data_type 2, name 8, and the elements in one of
                   raw_data 9 (as in memory; 2, 4 and 6 bits packed, the low ones first),
                   float_data 4, int32_data 5, string_data 6, int64_data 7, double_data 10,
                   uint64_data 11, or data_location 14 = 1 and
                   external_data 13: {location, offset, length} in another file

Names are those of the graph: of an initialiser, or of the output of a `Constant` node.  A tensor in
a branch (`If`, `Loop`, `Scan`) whose name is taken is `NODE/ATTRIBUTE/NAME`; one in a function is
`FUNCTION/NAME`; one that is an attribute of another node is `OUTPUT/ATTRIBUTE`.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from converter.errors import (
    CorruptFileError,
    LimitError,
    UnsupportedError,
    context,
)
from converter.files import File
from converter.formats import Probe
from converter.formats._beside import beside
from converter.formats._names import name_problem, shown
from converter.formats._protobuf import FIXED32, LENGTH, VARINT, signed
from converter.formats._typed_fields import (
    MAX_RANK,
    Bytes,
    Decoded,
    Field,
    Found,
    Packed,
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
from converter.layout import Memory, Storage, View
from converter.tensors import STRING, Checkpoint, dtype_of

MAX_DEPTH = 64  # of branches inside branches
MAX_FILES = 512  # beside the model
MAX_TEXT = 1 << 20  # bytes of a metadata's value

_FLOAT, _INT32, _STRING, _INT64, _DOUBLE, _UINT64 = 4, 5, 6, 7, 10, 11  # fields of TensorProto
_DTYPES = {
    1: ("float32", _FLOAT),
    2: ("uint8", _INT32),
    3: ("int8", _INT32),
    4: ("uint16", _INT32),
    5: ("int16", _INT32),
    6: ("int32", _INT32),
    7: ("int64", _INT64),
    8: ("string", _STRING),
    9: ("bool", _INT32),
    10: ("float16", _INT32),
    11: ("float64", _DOUBLE),
    12: ("uint32", _UINT64),
    13: ("uint64", _UINT64),
    14: ("complex64", _FLOAT),
    15: ("complex128", _DOUBLE),
    16: ("bfloat16", _INT32),
    17: ("float8_e4m3fn", _INT32),
    18: ("float8_e4m3fnuz", _INT32),
    19: ("float8_e5m2", _INT32),
    20: ("float8_e5m2fnuz", _INT32),
    21: ("uint4", _INT32),
    22: ("int4", _INT32),
    23: ("float4_e2m1fn", _INT32),
    24: ("float8_e8m0fnu", _INT32),
    25: ("uint2", _INT32),
    26: ("int2", _INT32),
    27: ("float6_e2m3fn", _INT32),
    28: ("float6_e3m2fn", _INT32),
}
_BITS = {21: 4, 22: 4, 23: 4, 25: 2, 26: 2, 27: 6, 28: 6}
_FLOAT6 = {27, 28}
_WIDTHS = {_FLOAT: 4, _DOUBLE: 8}


# ── recognising ──────────────────────────────────────────────────────────────────────────────────

_MODEL_TEXTS = {tag(n) for n in (2, 3, 4, 6)}
_MODEL_PARTS = {tag(n) for n in (7, 8, 14, 20, 25, 26)}
_GRAPH_PARTS = {tag(n) for n in (1, 2, 5, 10, 11, 12, 13, 14, 15, 16)}


def recognise(probe: Probe) -> bool:
    """Whether this starts as a model does: a version, texts, and then a graph or an opset."""
    found = first_fields(probe.head)
    if not found or found[0][0] not in {tag(1, VARINT), tag(7), tag(8)} | _MODEL_TEXTS:
        return False
    for one, value, data in found:
        if one in _MODEL_TEXTS:
            if value > len(data) or not _is_text(data):
                return False
        elif one == tag(7):
            inner = first_fields(data)
            return not inner or inner[0][0] in _GRAPH_PARTS
        elif one in _MODEL_PARTS:
            return one == tag(8) or len(found) > 1
        elif one not in {tag(1, VARINT), tag(5, VARINT)}:
            return False
    return len(found) > 1


def _is_text(data: bytes) -> bool:
    try:
        return not data or not name_problem(data.decode())
    except UnicodeDecodeError:
        return False


# ── opening ──────────────────────────────────────────────────────────────────────────────────────


def open(path: Path) -> Checkpoint:  # noqa: A001 - the contract of a format
    """Open the tensors of a model; no elements are read.

    Raises `CorruptFileError`, `LimitError`, `UnsafeContentError` or `NotFoundError`.
    """
    with ExitStack() as stack:
        file = File(path)
        stack.callback(file.close)
        with context(path=path):
            model = _Model(file, stack)
            model.read()
            model.found.check(file.size + sum(other.size for other in model.files.values()))
        ties = tuple(tuple(names) for names in model.places.values() if len(names) > 1)
        facts = {"metadata": model.metadata, "ties": ties}
        behind = (path, *(other.path for other in model.files.values()))
        close = stack.pop_all().close
        return model.found.checkpoint("onnx", path, close, files=behind, **facts)


class _Graph(NamedTuple):
    """A graph that is still to be looked into: where it is, and on which way it was found."""

    start: int
    stop: int
    scope: tuple[str, ...]
    function: str = ""


class _Tensor:
    """A TensorProto, or values of an attribute, without the elements."""

    def __init__(self, data_type: int = 0) -> None:
        self.data_type = data_type
        self.shape: list[int] = []
        self.name = ""
        self.raw: Field | None = None
        self.values: dict[int, Runs] = {}
        self.external: dict[str, str] = {}
        self.beside = False
        self.segment = False

    def fact(self, one: Field) -> None:
        """Take in a field that says one thing."""
        if one.tag == tag(2, VARINT):
            self.data_type = one.value
        elif one.tag == tag(3):
            self.segment = True
        elif one.tag == tag(9):
            self.raw = one
        elif one.tag == tag(14, VARINT):
            self.beside = one.value == 1

    def value(self, number: int, one: Field, *, packed: bool | None = None) -> None:
        """Take in a field of elements."""
        self.values.setdefault(number, Runs()).add(one, packed=packed)


_VALUES = {  # tag → the field it belongs to
    **{tag(number): number for number in (_FLOAT, _INT32, _STRING, _INT64, _DOUBLE, _UINT64)},
    **{tag(number, VARINT): number for number in (_INT32, _INT64, _UINT64)},
    tag(_FLOAT, FIXED32): _FLOAT,
    tag(_DOUBLE, 1): _DOUBLE,
}


@dataclass(slots=True)
class _Model:
    """Reads a model; what it finds."""

    file: File
    stack: ExitStack
    found: Found = field(default_factory=Found)
    metadata: dict[str, str] = field(default_factory=dict)
    files: dict[str, File] = field(default_factory=dict)  # by location
    places: dict[tuple[Any, ...], list[str]] = field(default_factory=dict)  # of external data
    walk: Walk = field(init=False)
    todo: deque[_Graph] = field(default_factory=deque)

    def read(self) -> None:
        """Look into the graph, then into its branches: names of the outer ones come first."""
        self.walk = Walk(self.file)
        graphs = 0
        for one in self.walk.fields(0, self.file.size):
            if one.tag == tag(7):
                graphs += 1
                self.todo.appendleft(_Graph(one.start, one.stop, ()))
            elif one.tag == tag(14):
                self._property(one)
            elif one.tag == tag(20):
                self._training(one)
            elif one.tag == tag(25):
                self._function(one)
        if graphs != 1:
            raise CorruptFileError("a model has one graph", expected=1, found=graphs)
        while self.todo:
            self._graph(self.todo.popleft())

    def _property(self, one: Field) -> None:
        texts = {1: "", 2: ""}
        for part in self.walk.fields(one.start, one.stop):
            if part.tag in {tag(1), tag(2)}:
                texts[part.tag >> 3] = self.walk.text(part, MAX_TEXT)
        self.metadata[texts[1]] = texts[2]

    def _training(self, one: Field) -> None:
        names = {tag(1): "initialization", tag(2): "algorithm"}
        for part in self.walk.fields(one.start, one.stop):
            if part.tag in names:
                scope = ("training", names[part.tag])
                self.todo.append(_Graph(part.start, part.stop, scope))

    def _function(self, one: Field) -> None:
        """A function's nodes are field 7, where a graph's are field 1."""
        parts = [p for p in self.walk.fields(one.start, one.stop) if p.tag in {tag(1), tag(7)}]
        name = next((self.walk.text(part) for part in parts if part.tag == tag(1)), "function")
        for part in parts:
            if part.tag == tag(7):
                self._node(part, _Graph(part.start, part.stop, (), name))

    def _graph(self, graph: _Graph) -> None:
        if len(graph.scope) > 2 * MAX_DEPTH:
            raise LimitError(f"branches are nested more than {MAX_DEPTH} deep", offset=graph.start)
        for one in self.walk.fields(graph.start, graph.stop):
            if one.tag == tag(5):
                tensor = self._tensor(one)
                self._add(tensor.name, tensor, graph)
            elif one.tag == tag(1):
                self._node(one, graph)
            elif one.tag == tag(15):
                self._sparse(one, "", graph)

    def _node(self, node: Field, graph: _Graph) -> None:
        texts: dict[int, str] = {}
        attributes = []
        for one in self.walk.fields(node.start, node.stop):
            if one.tag in {tag(2), tag(3), tag(4)}:
                if one.tag >> 3 not in texts:
                    texts[one.tag >> 3] = self.walk.text(one)
            elif one.tag == tag(5):
                attributes.append(one)
        label = texts.get(2) or texts.get(3) or texts.get(4) or "node"
        constant = texts.get(4) == "Constant"
        for one in attributes:
            self._attribute(one, label, texts.get(3) or label, graph, constant=constant)

    def _attribute(
        self, attribute: Field, label: str, node: str, graph: _Graph, *, constant: bool
    ) -> None:
        name = ""
        values = _Tensor()
        parts = []
        for one in self.walk.fields(attribute.start, attribute.stop):
            if one.tag == tag(1):
                name = self.walk.text(one)
            elif one.tag in _ATTRIBUTES and constant:
                _take(self.file, values, one)
            elif one.tag in _PARTS:
                parts.append(one)
        place = label if constant else f"{label}/{name}"
        if values.data_type:
            self._add(place, values, graph)
        many = sum(one.tag == tag(10) for one in parts) > 1
        for number, one in enumerate(parts):
            inside = _Graph(one.start, one.stop, (*graph.scope, node, name), graph.function)
            self._part(one, f"{place}/{number}" if many else place, graph, inside)

    def _part(self, one: Field, name: str, graph: _Graph, inside: _Graph) -> None:
        """A graph, a tensor or a sparse one."""
        if one.tag in {tag(6), tag(11)}:
            self.todo.append(inside)
        elif one.tag in {tag(22), tag(23)}:
            self._sparse(one, name, graph)
        else:
            self._add(name, self._tensor(one), graph)

    def _sparse(self, one: Field, name: str, graph: _Graph) -> None:
        for part in self.walk.fields(one.start, one.stop):
            if part.tag == tag(1):
                name = name or self._tensor(part).name
        self.found.add(self._name(name, graph), "a sparse tensor")

    def _name(self, name: str, graph: _Graph) -> str:
        """The name of a tensor: its own where that is free."""
        if graph.function:
            name = f"{graph.function}/{name}"
        if graph.scope and name in self.found:
            return "/".join((*graph.scope, name))
        return name

    def _tensor(self, message: Field) -> _Tensor:
        made = _Tensor()
        dims = Runs()
        for one in self.walk.fields(message.start, message.stop):
            if one.tag in _VALUES:
                made.value(_VALUES[one.tag], one, packed=False if one.tag == tag(6) else None)
            elif one.tag in {tag(1), tag(1, VARINT)}:
                dims.add(one)
            elif one.tag == tag(8):
                made.name = self.walk.text(one)
            elif one.tag == tag(13):
                self._external(one, made)
            else:
                made.fact(one)
        made.shape = _shape(self.file, dims)
        return made

    def _external(self, one: Field, made: _Tensor) -> None:
        texts = {1: "", 2: ""}
        for part in self.walk.fields(one.start, one.stop):
            if part.tag in {tag(1), tag(2)}:
                texts[part.tag >> 3] = self.walk.text(part)
        made.external[texts[1]] = texts[2]

    def _add(self, name: str, tensor: _Tensor, graph: _Graph) -> None:
        name = self._name(name, graph)
        with context(tensor=shown(name)):
            self.found.add(name, self._view(name, tensor))

    def _view(self, name: str, tensor: _Tensor) -> View | str:
        if tensor.data_type not in _DTYPES:
            return f"elements of an unknown type, {tensor.data_type}"
        if tensor.segment:
            return "a segment of a tensor"
        size = size_of(tensor.shape)
        forms = len(tensor.values) + (tensor.raw is not None) + tensor.beside
        if forms > 1:
            raise CorruptFileError("the elements are given in more than one form")
        return View.over(self._storage(name, tensor, size), tensor.shape)

    def _storage(self, name: str, tensor: _Tensor, size: int) -> Storage:
        text, number = _DTYPES[tensor.data_type]
        dtype, bits = dtype_of(text), _BITS.get(tensor.data_type, 0)
        if tensor.beside or tensor.raw is not None:
            if dtype == STRING:
                raise CorruptFileError("strings are given as bytes")
            place = self._place(tensor, -(-size * (bits or 8 * dtype.itemsize) // 8))
            if tensor.beside:
                key = (place, dtype, tuple(tensor.shape))
                self.places.setdefault(key if size else (name,), []).append(name)
            return place.storage(dtype, size, bits=bits, tensor=name)
        runs = tensor.values.get(number, Runs())
        if tensor.values and not runs:
            raise CorruptFileError(f"the elements are not where those of {text} are")
        return _typed(self.file, runs, tensor.data_type, size, name)

    def _place(self, tensor: _Tensor, nbytes: int) -> Bytes:
        if not tensor.beside and tensor.raw:
            return Bytes(self.file, tensor.raw.start, tensor.raw.value)
        facts = tensor.external
        numbers = {key: facts.get(key, "0") for key in ("offset", "length")}
        if not all(re.fullmatch("[0-9]{1,19}", text) for text in numbers.values()):
            raise CorruptFileError("offset or length is not a number", found=shown(str(numbers)))
        offset, length = map(int, numbers.values())
        length = length if "length" in facts else nbytes
        file = self._beside(facts.get("location", ""))
        if offset + length > file.size:
            raise CorruptFileError(
                "the tensor lies outside of the file beside the model",
                path=file.path,
                offset=offset,
                expected=f"{length} bytes",
                found=f"a file of {file.size} bytes",
            )
        return Bytes(file, offset, length)

    def _beside(self, location: str) -> File:
        if location not in self.files:
            if len(self.files) >= MAX_FILES:
                raise UnsupportedError(
                    f"the tensors are in more than {MAX_FILES} files",
                    hint="save the model with all of its tensors in one file",
                )
            file = File(beside(self.file.path, location, below=True))
            self.stack.callback(file.close)
            self.files[location] = file
        return self.files[location]


def _shape(file: File, dims: Runs) -> list[int]:
    if dims.nbytes > 20 * MAX_RANK:  # bytes of the longest numbers, and their tags
        raise LimitError("a tensor has too many axes", expected=f"<= {MAX_RANK}")
    return [signed(int(n)) for run in dims for n in varints(file, run)]


# ── attributes of Constant ───────────────────────────────────────────────────────────────────────

_ATTRIBUTES = {  # tag → data type, field of TensorProto that is written alike, a list?
    tag(2, FIXED32): (1, _FLOAT, False),
    tag(3, VARINT): (7, _INT64, False),
    tag(4): (8, _STRING, False),
    tag(7, FIXED32): (1, _FLOAT, True),
    tag(7): (1, _FLOAT, True),
    tag(8, VARINT): (7, _INT64, True),
    tag(8): (7, _INT64, True),
    tag(9): (8, _STRING, True),
}
_PARTS = {tag(n) for n in (5, 6, 10, 11, 22, 23)}  # tensors, graphs, sparse tensors


def _take(file: File, values: _Tensor, one: Field) -> None:
    """A `Constant`'s number, string, or list of them; its shape is that of what came so far."""
    values.data_type, number, many = _ATTRIBUTES[one.tag]
    packed = many and one.tag & 7 == LENGTH and number != _STRING
    values.value(number, one, packed=packed)
    count = 1
    if packed:
        run = Run(one.tag, one.start, one.stop, packed=True)
        count = one.value // 4 if number == _FLOAT else varints(file, run).size
    values.shape = [(values.shape or [0])[0] + count] if many else []


# ── elements ─────────────────────────────────────────────────────────────────────────────────────


def _typed(file: File, runs: Runs, data_type: int, size: int, name: str) -> Storage:
    """The elements in a typed field."""
    text, number = _DTYPES[data_type]
    dtype = dtype_of(text)
    if not runs:
        if size:
            raise CorruptFileError("a tensor has no elements", expected=f"{size} elements")
        return Memory(np.empty(0, dtype))
    if number in _WIDTHS and len(runs) == 1 and runs[0].packed:
        return Bytes(file, runs[0].start, runs[0].nbytes).storage(dtype, size, tensor=name)
    decode: Callable[[File, Run], NDArray[Any]]
    if number in _WIDTHS:
        decode, least = fixed(_WIDTHS[number]), size * dtype.itemsize
    elif number == _STRING:
        decode, least = strings, 2 * size
    else:
        decode, least = varints, size * _BITS.get(data_type, 8) // 8
    if runs.nbytes < least:
        raise CorruptFileError(
            "a tensor has too few elements",
            expected=f"{size} elements",
            found=f"{runs.nbytes} bytes",
        )
    return Decoded(file, runs, decode, _finish(data_type, dtype, size), dtype, size, tensor=name)


def _finish(data_type: int, dtype: np.dtype[Any], size: int) -> Callable[[NDArray[Any]], Any]:
    """From what is decoded to the dtype."""
    bits = _BITS.get(data_type, 0)
    if dtype == STRING:
        return lambda found: found
    if data_type in _FLOAT6:
        return lambda numbers: (integers(np.dtype(np.uint8))(numbers) & 0x3F).view(dtype)
    if bits:
        return lambda numbers: _unpacked(integers(np.dtype(np.uint8))(numbers), bits, dtype, size)
    if _DTYPES[data_type][1] in _WIDTHS:
        return lambda raw: viewed(raw, dtype)
    return integers(dtype) if dtype.kind in "iub" else bit_patterns(dtype)


def _unpacked(raw: NDArray[Any], bits: int, dtype: np.dtype[Any], size: int) -> NDArray[Any]:
    if raw.size != -(-size * bits // 8):
        raise CorruptFileError("the number of elements does not fit the shape", expected=size)
    storage = Packed(Memory(raw), dtype, size, bits)
    out = np.empty(size, dtype)
    storage.read(0, out)
    return out
