"""Caffe (.caffemodel): the blobs of layers, of both generations.

https://github.com/BVLC/caffe/blob/master/src/caffe/proto/caffe.proto

    NetParameter          name 1, layer 100 (since 2014), layers 2 (before)
    LayerParameter        name 1, type 2 (text), blobs 7
    V1LayerParameter      name 4, type 5 (a number), blobs 6; or layer 1 {name 1, blobs 50} (2013)
    BlobProto             data 5 or double_data 8 (packed floats), diff 6 and 9 (gradients),
                          shape 7 {dim 1}, or num 1, channels 2, height 3, width 4

A tensor's name is its layer's and its number: `conv1/0` is the kernel (o, i, h, w), `conv1/1` the
bias.  Shapes are as they are stored: the older ones always have four axes, also for a bias
(1, 1, 1, n) and for a matrix (1, 1, o, i).  A BatchNorm layer's blobs are mean, variance and one
number by which both are to be divided.  Gradients are listed as unsupported.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from converter.errors import CorruptFileError, LimitError, context
from converter.files import File
from converter.formats import Probe
from converter.formats._names import name_problem, shown
from converter.formats._protobuf import FIXED32, FIXED64, VARINT, signed
from converter.formats._typed_fields import (
    MAX_RANK,
    Bytes,
    Decoded,
    Field,
    Found,
    Runs,
    Walk,
    first_fields,
    fixed,
    size_of,
    tag,
    varints,
    viewed,
)
from converter.layout import Storage, View
from converter.tensors import Checkpoint


class _Generation(NamedTuple):
    """Where a layer has its name and its blobs."""

    name: int
    blobs: int


_LAYER, _V1, _V0 = _Generation(1, 7), _Generation(4, 6), _Generation(1, 50)
_NET = {tag(1), tag(2), tag(3), tag(6), tag(8), tag(100)}
_NET |= {tag(4, VARINT), tag(5, VARINT), tag(7, VARINT), tag(4)}
_V1_PARTS = {tag(n) for n in (1, 2, 3, 4, 6)} | {tag(5, VARINT)}
_DTYPES: dict[int, np.dtype[Any]] = {5: np.dtype("<f4"), 8: np.dtype("<f8")}
_VALUES = {tag(5): 5, tag(5, FIXED32): 5, tag(8): 8, tag(8, FIXED64): 8}
_GRADIENTS = {tag(6), tag(6, FIXED32), tag(9), tag(9, FIXED64)}
_RAW = tag(12)  # of another version of Caffe, with halves
_AXES = {tag(number, VARINT): number - 1 for number in (1, 2, 3, 4)}


def recognise(probe: Probe) -> bool:
    """Whether this starts with the name of a net, and then a layer; or with a layer."""
    found = first_fields(probe.head)
    if not found or any(one not in _NET for one, _, _ in found):
        return False
    (one, value, data), *others = found
    if one == tag(1):
        text = data.decode("utf-8", "replace")
        whole = value == len(data) and (not text or not name_problem(text))
        return whole and bool(others)
    inner = first_fields(data)
    if one == tag(100):
        return inner is None or not inner or inner[0][0] == tag(1)
    return one == tag(2) and bool(inner) and inner[0][0] in _V1_PARTS if inner else False


def open(path: Path) -> Checkpoint:  # noqa: A001 - the contract of a format
    """Open the blobs of a net; no elements are read.

    Raises `CorruptFileError` or `LimitError`.
    """
    with ExitStack() as stack, context(path=path):
        file = File(path)
        stack.callback(file.close)
        net = _Net(Walk(file))
        for one in net.walk.fields(0, file.size):
            if one.tag == tag(100):
                net.layer(one, _LAYER)
            elif one.tag == tag(2):
                net.layer(one, _V1)
        return net.found.checkpoint("caffe", path, stack.pop_all().close)


@dataclass(slots=True)
class _Blob:
    """A BlobProto without its elements."""

    shape: list[int] = field(default_factory=list)
    axes: list[int] | None = None  # of the older shapes, which count where they are
    values: dict[int, Runs] = field(default_factory=dict)
    gradients: bool = False
    raw: bool = False


@dataclass(slots=True)
class _Net:
    """Reads a net; what it finds."""

    walk: Walk
    found: Found = field(default_factory=Found)

    def layer(self, layer: Field, generation: _Generation) -> None:
        """Take in the blobs of a layer."""
        name, blobs = "", []
        for one in self.walk.fields(layer.start, layer.stop):
            if one.tag == tag(1) and generation is _V1:
                self.layer(one, _V0)
            elif one.tag == tag(generation.name):
                name = self.walk.text(one)
            elif one.tag == tag(generation.blobs):
                blobs.append(one)
        for number, one in enumerate(blobs):
            self._add(f"{name}/{number}", one)

    def _add(self, name: str, message: Field) -> None:
        with context(tensor=shown(name)):
            blob = self._blob(message)
            self.found.add(name, self._view(name, blob))
            if blob.gradients:
                self.found.add(f"{name}/diff", "gradients of a solver's snapshot")

    def _blob(self, message: Field) -> _Blob:
        blob = _Blob()
        for one in self.walk.fields(message.start, message.stop):
            if one.tag in _VALUES:
                blob.values.setdefault(_VALUES[one.tag], Runs()).add(one)
            elif one.tag in _AXES:
                blob.axes = blob.axes or [0, 0, 0, 0]
                blob.axes[_AXES[one.tag]] = signed(one.value)
            elif one.tag == tag(7):
                blob.shape = self._shape(one)
            blob.gradients |= one.tag in _GRADIENTS and one.value > 0
            blob.raw |= one.tag == _RAW
        return blob

    def _shape(self, message: Field) -> list[int]:
        dims = Runs()
        for one in self.walk.fields(message.start, message.stop):
            if one.tag in {tag(1), tag(1, VARINT)}:
                dims.add(one)
        if dims.nbytes > 20 * MAX_RANK:  # bytes of the longest numbers, and their tags
            raise LimitError("a tensor has too many axes", expected=f"<= {MAX_RANK}")
        return [signed(int(n)) for run in dims for n in varints(self.walk.file, run)]

    def _view(self, name: str, blob: _Blob) -> View | str:
        shape = blob.shape if blob.axes is None else blob.axes
        size = size_of(shape)
        if blob.raw:
            return "raw data, as another version of Caffe writes it"
        if len(blob.values) > 1:
            raise CorruptFileError("the elements are given in more than one form")
        if not blob.values and size:
            return f"a blob of shape {shape} without elements"
        number, runs = next(iter(blob.values.items()), (5, Runs()))
        return View.over(self._storage(name, _DTYPES[number], runs, size), shape)

    def _storage(self, name: str, dtype: np.dtype[Any], runs: Runs, size: int) -> Storage:
        file = self.walk.file
        if not runs or (len(runs) == 1 and runs[0].packed):
            start = runs[0].start if runs else 0
            return Bytes(file, start, runs.nbytes).storage(dtype, size, tensor=name)
        if runs.nbytes < size * dtype.itemsize:
            raise CorruptFileError("the stored size does not fit the shape", expected=size)
        decode = fixed(dtype.itemsize)
        return Decoded(file, runs, decode, lambda raw: viewed(raw, dtype), dtype, size, tensor=name)
