"""Tensors inside a pickle of torch: what its calls mean, their names, and views of their storages.

https://github.com/pytorch/pytorch/blob/main/torch/_utils.py

    _rebuild_tensor_v2(storage, offset, size, stride, …)            all in elements
    _rebuild_tensor_v3(storage of bytes, offset, …, dtype)          dtypes newer than typed storages
    storage      the persistent id ('storage', torch.FloatStorage, key, location, elements)
    _rebuild_parameter(tensor, …), _rebuild_from_type_v2(…)         wrappers
    torch.nn.…Linear, __torch__.Net                                 modules: stubs with a state

Tensors are views: several may lie in one storage, transposed, expanded (stride 0) or apart.
Names that view the same elements in the same way are ties.  Where the bytes of a storage are is
the container's matter: a zip, a file of the time before, or a part of a folder.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from converter.errors import ConverterError, CorruptFileError, LimitError, UnsupportedError
from converter.files import Checksum, File, Region
from converter.formats._names import name_problem, shown
from converter.formats._pickle import CONTAINERS, Stub, StubObject, Table
from converter.formats._pickle_numpy import NUMPY, NumpyArray, NumpyDtype
from converter.layout import Computed, Elementwise, Storage, View
from converter.tensors import Checkpoint, LazyTensors, TensorSpec, dtype_of

MAX_RANK = 32
MAX_NESTING = 200  # containers inside each other, on the way to a tensor
MAX_NAMES = 2_000_000
FREE_BYTES = 4 << 30  # logical bytes that any file may describe …
MAX_EXPANSION = 1000  # … and beyond that, this many times its size

STORAGES = {  # typed storages: the dtypes of `_rebuild_tensor_v2`
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
}
STORAGE_OF = {dtype: storage for storage, dtype in STORAGES.items()}
UNTYPED = "UntypedStorage"
FP4, FP4_PAIR = "float4_e2m1fn", "float4_e2m1fn_x2"
F4 = dtype_of(FP4)
_NEWER = (  # the dtypes of `_rebuild_tensor_v3`, by torch's name
    "uint16",
    "uint32",
    "uint64",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    FP4_PAIR,
)
DTYPES = {name: dtype_of(name) for name in (*STORAGE_OF, *_NEWER) if name != FP4_PAIR}
DTYPES[FP4_PAIR] = F4
_OTHER_STORAGES = {  # bytes of an element
    UNTYPED: 1,
    "QInt8Storage": 1,
    "QUInt8Storage": 1,
    "QInt32Storage": 4,
    "QUInt4x2Storage": 1,
    "QUInt2x4Storage": 1,
}


# ── what a pickle's calls and persistent ids mean ────────────────────────────────────────────────


@dataclass(eq=False, slots=True)
class Stored:
    """A storage, as its persistent id describes it; `kind` is the name of the storage's class.

    `offset` is where it starts in the stored one, in elements: not 0 in very old files only.
    """

    kind: str
    key: str
    numel: int
    offset: int = 0

    @property
    def itemsize(self) -> int:
        """Bytes of an element; 0 when the kind is not known."""
        if self.kind in STORAGES:
            return dtype_of(STORAGES[self.kind]).itemsize
        return _OTHER_STORAGES.get(self.kind, 0)


@dataclass(eq=False, slots=True)
class Strided:
    """A tensor as the pickle describes it: sizes, strides and offset count elements.

    `dtype` is torch's name, or "" for the one of the storage.
    """

    storage: Stored
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str = ""
    conj: bool = False
    neg: bool = False

    def build(self, _state: Any) -> None:
        """Take what torch up to 0.3 said of gradients here."""


def stored(key: Any) -> Stored:
    """The storage that a persistent id of torch describes."""
    kind, cls, name, _location, numel = key
    if kind != "storage" or not isinstance(name, str) or not isinstance(cls, Stub):
        raise TypeError("a persistent id that is not a storage")
    if type(numel) is not int or numel < 0:
        raise TypeError("a storage whose size is not a natural number")
    return Stored(cls.name.rpartition(".")[2].lstrip("_"), name, numel)


_UNNATURAL = "sizes, strides or offsets that are not natural numbers"


def naturals(values: Any) -> tuple[int, ...]:
    """Sizes, strides or offsets from a pickle."""
    found = tuple(values)
    for value in found:
        if type(value) is not int or value < 0:  # `type`: true is not a size
            raise TypeError(_UNNATURAL)
    return found


def _rebuild(storage: Any, offset: Any, size: Any, stride: Any) -> Strided:
    if not isinstance(storage, Stored):
        raise TypeError("a tensor without a storage")
    if type(offset) is not int or offset < 0:
        raise TypeError(_UNNATURAL)
    size, stride = naturals(size), naturals(stride)
    if len(size) != len(stride):
        raise ValueError("as many strides as sizes are needed")
    return Strided(storage, offset, size, stride)


def _rebuild_v2(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    _grad: Any = None,
    _hooks: Any = None,
    metadata: Any = None,
) -> Strided:
    tensor = _rebuild(storage, offset, size, stride)
    if metadata:
        tensor.conj, tensor.neg = bool(metadata.get("conj")), bool(metadata.get("neg"))
    return tensor


def _rebuild_v3(  # noqa: PLR0913 - torch's signature
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    grad: Any,
    hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> Strided:
    if not isinstance(dtype, Stub):
        raise TypeError("a dtype that is not one")
    tensor = _rebuild_v2(storage, offset, size, stride, grad, hooks, metadata)
    tensor.dtype = dtype.name
    return tensor


def _rebuild_parameter(data: Any, *_facts: Any) -> Any:
    """A parameter is its tensor; its gradient flag, hooks and attributes are not kept."""
    return data


def _jit_list(values: Any, *_type: Any) -> Any:
    return values


_TENSORS: Table = {
    "torch._utils._rebuild_tensor": _rebuild,
    "torch._utils._rebuild_tensor_v2": _rebuild_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
}
_PLAIN = ("torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter")


def _rebuild_from_type(function: Any, cls: Any, args: Any, _state: Any) -> Any:
    """A tensor with attributes, or of a subclass, whose elements may mean something else."""
    make = _TENSORS.get(str(function)) if str(cls) in _PLAIN else None
    if make is not None:
        return make(*args)
    if not isinstance(cls, Stub):
        raise TypeError("a type that is not one")
    return StubObject(cls, args)


TABLE: Table = {
    **CONTAINERS,
    **NUMPY,
    **_TENSORS,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.nn.parameter.Parameter": _rebuild_parameter,  # up to 0.3, as is the next
    "torch.autograd.variable.Variable": _rebuild_parameter,
    **{
        f"torch.jit._pickle.{name}": _jit_list
        for name in (
            "build_intlist",
            "build_tensorlist",
            "build_doublelist",
            "build_boollist",
            "restore_type_tag",
        )
    },
    "torch.Size": lambda values=(): tuple(values),
    "torch.device": None,
}


# ── from the saved object to names ───────────────────────────────────────────────────────────────


Leaf = Strided | NumpyArray


@dataclass(slots=True)
class Walk:
    """Finds the tensors in nested containers: keys and indices, joined by dots, name them.

    What holds no tensor is listed once, at the outermost name under which there is none.
    """

    most_names: int
    tensors: dict[str, Leaf] = field(default_factory=dict)
    unsupported: dict[str, str] = field(default_factory=dict)
    holds: dict[int, bool] = field(default_factory=dict)  # by id of a container

    def find(self, value: Any, name: str, depth: int = 0, *, in_module: bool = False) -> None:
        """Take a value in, under its name."""
        tensor = _is_tensor(value)
        if not tensor and not self._holds_tensors(value, depth):
            if (not in_module or _is_special(value)) and (name or value != {}):
                self._skip(name or "value", _reason(value))
            return
        if name and (problem := name_problem(name)):
            raise CorruptFileError(f"its name {problem}", tensor=shown(name))
        if tensor:
            self._add(name or "tensor", value)
            return
        _check_depth(depth)  # again: a container may be in itself
        if isinstance(value, StubObject):
            module = _is_module(value)
            if not in_module:
                parts = "parameters and persistent buffers" if module else "tensors"
                reason = f"object of {value.function}: its {parts} are read"
                self._skip(name or ("module" if module else "object"), reason)
            in_module = module or value.function.module.startswith("__torch__")
        for key, child in _children(value):
            self.find(child, f"{name}.{key}" if name else key, depth + 1, in_module=in_module)

    def _add(self, name: str, tensor: Leaf) -> None:
        self._count(name)
        if name in self.tensors or name in self.unsupported:
            raise UnsupportedError("two entries get this name", tensor=name)
        self.tensors[name] = tensor

    def _skip(self, name: str, reason: str) -> None:
        self._count(name)
        if name in self.tensors:
            raise UnsupportedError("two entries get this name", tensor=name)
        self.unsupported[shown(name)] = shown(reason)

    def _count(self, name: str) -> None:
        """Few bytes of pickle must not make many names, by way of shared containers."""
        self.most_names -= 1
        if self.most_names < 0:
            raise LimitError("more entries than a file of this size can mean", tensor=shown(name))

    def _holds_tensors(self, value: Any, depth: int) -> bool:
        if _is_tensor(value):
            return True
        known = self.holds.get(id(value))
        if known is not None:
            return known
        self.holds[id(value)] = False  # while we are inside: a container in itself adds nothing
        _check_depth(depth)
        found = any(self._holds_tensors(child, depth + 1) for _, child in _children(value))
        self.holds[id(value)] = found
        return found


def _check_depth(depth: int) -> None:
    if depth > MAX_NESTING:
        raise LimitError(f"containers are nested more than {MAX_NESTING} deep")


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Strided) or (
        isinstance(value, NumpyArray) and value.elements is not None
    )


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    """The named parts of a container; those of a pickled module are its state dict's."""
    if isinstance(value, dict):
        for index, (key, child) in enumerate(value.items()):
            plain = type(key) is str or isinstance(key, str | int | float) or key is None
            yield (str(key) if plain else f"#{index}"), child
    elif isinstance(value, list | tuple):
        yield from ((str(index), child) for index, child in enumerate(value))
    elif isinstance(value, StubObject):
        yield from _module_parts(value.state) if _is_module(value) else _object_parts(value)


def _is_module(value: StubObject) -> bool:
    """Whether this is a pickled `torch.nn.Module`."""
    return isinstance(value.state, dict) and "_parameters" in value.state


def _is_special(value: Any) -> bool:
    """Whether this is a tensor of a kind that is not read: sparse, quantised, …"""
    return isinstance(value, StubObject) and value.function.name.startswith("_rebuild_")


def _module_parts(state: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
    passing = state.get("_non_persistent_buffers_set")
    passing = passing if isinstance(passing, set) else set()
    for part in ("_parameters", "_buffers", "_modules"):
        group = state.get(part)
        if isinstance(group, dict):
            named = ((str(key), child) for key, child in group.items())
            yield from (pair for pair in named if part != "_buffers" or pair[0] not in passing)


def _object_parts(value: StubObject) -> Iterator[tuple[str, Any]]:
    """What was put into an object: items, elements, attributes; not what it was made from."""
    if _is_special(value):
        return
    for part in (value.items, value.elements, value.state):
        if isinstance(part, dict | list):
            yield from _children(part)


def _reason(value: Any) -> str:
    """What an entry without tensors is, in a few words."""
    text = type(value).__name__
    if isinstance(value, str):
        text = f"str {value[:200]!r}"
    elif isinstance(value, int | float | complex):
        text += f" {value}"
    elif isinstance(value, StubObject):
        text = f"object of {value.function}"
    elif isinstance(value, Stub):
        text = f"global {value}"
    elif isinstance(value, NumpyArray | NumpyDtype):
        text = value.text
    elif isinstance(value, Stored):
        text = f"a bare {value.kind}"
    elif isinstance(value, dict | list | tuple | set | frozenset | bytes):
        text += f" of {len(value)}"
    return text


# ── from descriptions to views ───────────────────────────────────────────────────────────────────


class _Pairs:
    """Bytes of two 4-bit elements each, the low half first, as twice as many elements."""

    dtype = F4

    def __init__(self, pairs: Storage) -> None:
        self._pairs = pairs
        self.size = 2 * pairs.size

    def read(self, start: int, out: NDArray[Any]) -> None:
        """Fill `out` with the elements from `start` on."""
        if not out.size:
            return
        first, last = start // 2, (start + out.size - 1) // 2
        pairs = np.empty(last + 1 - first, np.uint8)
        self._pairs.read(first, pairs)
        halves = np.stack([pairs & 0xF, pairs >> 4], axis=1).reshape(-1)
        out.view(np.uint8)[:] = halves[start % 2 :][: out.size]


def _swapped(block: NDArray[Any]) -> NDArray[Any]:
    """The other byte order; a complex number is two."""
    width = block.itemsize // (2 if block.dtype.kind == "c" else 1)
    return block.view(f"u{width}").byteswap().view(block.dtype)


def _view_of(array: NDArray[Any]) -> View:
    """An array of the pickle; made native and C-contiguous only when it is read."""
    if array.dtype.isnative and array.flags.c_contiguous:
        return View.of(array)
    dtype = array.dtype if array.dtype.isnative else array.dtype.newbyteorder("=")
    computed = Computed(array.size, dtype, lambda: np.asarray(array, dtype, order="C"))
    return View.over(computed, array.shape)


class Place(Protocol):
    """Where the bytes of a storage are in the file: [offset, offset + stored); a zip's member."""

    @property
    def offset(self) -> int:
        """Where they start."""

    @property
    def stored(self) -> int:
        """How many they are."""

    @property
    def checksum(self) -> Checksum | None:
        """What proves them; made when it is asked for."""


class Storages:
    """The storages of one saved object, and views of them.

    `place` finds the bytes of a storage, or raises an error; `swap` says that they are in the
    other byte order.
    """

    def __init__(self, file: File, place: Callable[[Stored], Place], *, swap: bool = False) -> None:
        self._file = file
        self._place = place
        self._swap = swap
        self._described = 0  # logical bytes of all tensors
        self._limit = max(FREE_BYTES, MAX_EXPANSION * file.size)
        self._storages: dict[tuple[str, np.dtype[Any]], Storage] = {}

    def check(self, leaf: Leaf, name: str) -> TensorSpec | str:
        """The spec of a tensor, all of whose elements are there; or why it cannot be read."""
        if isinstance(leaf, NumpyArray):
            elements: NDArray[Any] = np.asarray(leaf.elements)
            self._account(elements.nbytes, name)
            return TensorSpec(elements.shape, elements.dtype.newbyteorder("="))
        storage = leaf.storage
        facts = (storage.kind, leaf.dtype, leaf.size)
        if len(leaf.size) > MAX_RANK and _dtype(*facts) is not None:
            raise LimitError(f"more than {MAX_RANK} axes", tensor=name)
        known = _layout(*facts, leaf.stride)
        if known is None:
            return f"{leaf.dtype or storage.kind} {list(leaf.size)}: no such dtype in NumPy"
        spec, nbytes, itemsize, reach = known
        self._account(nbytes, name)
        size = self._size(storage, itemsize, name)
        last = storage.offset + leaf.offset + reach
        if last >= size and nbytes:
            raise CorruptFileError(
                "the tensor reaches outside its storage",
                tensor=name,
                expected=f"an index below {size}",
                found=last,
            )
        return spec

    def view(self, leaf: Leaf, name: str) -> View:
        """A description, checked before, as a view."""
        if isinstance(leaf, NumpyArray):
            return _view_of(np.asarray(leaf.elements))
        dtype = _dtype(leaf.storage.kind, leaf.dtype, leaf.size)
        if dtype is None:
            raise ValueError("a tensor without a dtype has no view")
        view = self._strided(leaf, dtype, name)
        for wanted, function in ((leaf.conj, np.conjugate), (leaf.neg, np.negative)):
            if wanted:
                view = View.over(Elementwise(view, function, dtype), view.shape)
        return view

    def _strided(self, tensor: Strided, dtype: np.dtype[Any], name: str) -> View:
        offset = tensor.storage.offset + tensor.offset
        axes = list(zip(tensor.size, tensor.stride, strict=True))
        storage = self._storage(tensor.storage, dtype, name)
        packed = isinstance(storage, _Pairs)
        if packed:
            offset, axes = 2 * offset, [(n, 2 * step) for n, step in axes]
        if 0 in tensor.size:  # strides of nothing say nothing, and may be anything
            offset, axes = 0, [(n, 1) for n in tensor.size]
        factors = [((n, step),) if n != 1 else () for n, step in axes]
        if packed:
            factors[-1] = (*factors[-1], (2, 1))
        return View(storage, offset, tuple(factors), dtype)

    def _account(self, nbytes: int, name: str) -> None:
        """Few stored bytes must not become many: by strides of 0, or by sharing."""
        self._described += nbytes
        if self._described > self._limit:
            raise LimitError(
                "the file describes far more than it stores",
                tensor=name,
                expected=f"at most {MAX_EXPANSION} times its {self._file.size} bytes",
                found=f"{self._described} bytes",
            )

    def _size(self, stored: Stored, itemsize: int, name: str) -> int:
        """The elements of a storage, of which there is enough in the file."""
        place = self._placed(stored, name)
        untyped = stored.kind == UNTYPED
        nbytes = stored.numel * (1 if untyped else itemsize)
        if place.stored != nbytes:
            raise CorruptFileError(
                "a storage and its record differ in size",
                tensor=name,
                offset=place.offset,
                expected=f"{nbytes} bytes",
                found=f"{place.stored} bytes",
            )
        return stored.numel // itemsize if untyped else stored.numel

    def _placed(self, stored: Stored, name: str) -> Place:
        try:
            return self._place(stored)
        except ConverterError as error:
            error.tensor = name
            raise

    def _storage(self, stored: Stored, dtype: np.dtype[Any], name: str) -> Storage:
        """One storage per record and dtype, so that its checksum is verified once."""
        known = self._storages.get((stored.key, dtype))
        if known is None:
            known = self._storages.setdefault(
                (stored.key, dtype), self._open(self._placed(stored, name), dtype, name)
            )
        return known

    def _open(self, place: Place, dtype: np.dtype[Any], name: str) -> Storage:
        packed = dtype == F4
        raw_dtype = np.dtype(np.uint8) if packed else dtype
        size = place.stored // raw_dtype.itemsize
        region = Region(
            self._file, place.offset, raw_dtype, size, tensor=name, checksum=place.checksum
        )
        if packed:
            return _Pairs(region)
        if self._swap and dtype.itemsize > 1:
            return Elementwise(View.over(region, (size,)), _swapped, dtype)
        return region


@lru_cache(512)
def _layout(
    kind: str, name: str, size: tuple[int, ...], stride: tuple[int, ...]
) -> tuple[TensorSpec, int, int, int] | None:
    """The spec of a tensor; bytes of all elements and of a stored one; how far the last one is.

    None when NumPy has no such dtype.  Many tensors agree.
    """
    dtype = _dtype(kind, name, size)
    if dtype is None:
        return None
    shape = (*size[:-1], 2 * size[-1]) if dtype == F4 else size
    reach = sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    return TensorSpec(shape, dtype), math.prod(size) * dtype.itemsize, dtype.itemsize, reach


def _dtype(kind: str, name: str, size: tuple[int, ...]) -> np.dtype[Any] | None:
    """The dtype of a tensor, by torch's name or else its storage's kind; None: NumPy has none."""
    name = name or STORAGES.get(kind, "")
    if name == FP4_PAIR and not size:
        return None  # there is no axis along which a pair could lie
    return DTYPES.get(name)


# ── the checkpoint ───────────────────────────────────────────────────────────────────────────────


def checkpoint_of(  # noqa: PLR0913 - a checkpoint's facts, each by name
    saved: Any,
    storages: Storages,
    *,
    format: str,  # noqa: A002 - the name of the field
    file: File,
    pickled: int,
    metadata: Mapping[str, str],
    unsupported: Mapping[str, str],
) -> Checkpoint:
    """The tensors in a saved object; `pickled` is the size of its pickle in bytes."""
    walk = Walk(min(MAX_NAMES, 1000 + pickled // 8))
    walk.find(saved, "")
    specs: dict[str, TensorSpec] = {}
    origins = [_origin(leaf) for leaf in walk.tensors.values()]
    uses = Counter(origins)
    same: dict[Any, list[str]] = {}
    for (name, leaf), origin in zip(walk.tensors.items(), origins, strict=True):
        spec = storages.check(leaf, name)
        if isinstance(spec, str):
            walk.unsupported[name] = spec
            continue
        specs[name] = spec
        if uses[origin] > 1:
            same.setdefault(_identity(leaf), []).append(name)
    return Checkpoint(
        LazyTensors(specs, lambda name: storages.view(walk.tensors[name], name)),
        format=format,
        path=file.path,
        metadata=metadata,
        ties=tuple(tuple(names) for names in same.values() if len(names) > 1),
        unsupported={**unsupported, **walk.unsupported},
        on_close=file.close,
    )


def _origin(tensor: Leaf) -> str | int:
    """Where a tensor's elements are: two without this in common are not one."""
    return id(tensor) if isinstance(tensor, NumpyArray) else tensor.storage.key


def _identity(tensor: Leaf) -> Any:
    """What two tensors have in common when they are one."""
    if isinstance(tensor, NumpyArray):
        return id(tensor)
    storage = tensor.storage
    facts = (storage.kind, storage.offset + tensor.offset, tensor.size, tensor.stride)
    return (storage.key, *facts, tensor.dtype, tensor.conj, tensor.neg)
