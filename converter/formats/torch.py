"""Native PyTorch files: the zip that `torch.save` writes since 1.6 (.pt, .pth, .bin).

https://docs.pytorch.org/docs/stable/notes/serialization.html

    archive/data.pkl     pickle of the saved object; a tensor in it is
                         _rebuild_tensor_v2(storage, offset, size, stride, …), all in elements,
                         and a storage the persistent id
                         ('storage', torch.FloatStorage, key, location, number of elements)
    archive/byteorder    "little" or "big"; absent before 2.1
    archive/data/<key>   the bytes of a storage, uncompressed, 64-byte aligned
    archive/version      "3"
    archive/extra/converter.json    (ours) metadata, when there are any; torch does not look at it

Tensors are views: several may lie in one storage, transposed, expanded (stride 0) or apart.
Names that view the same elements in the same way are ties.  Dtypes newer than the typed storages
(uint16, float8, …) come as `_rebuild_tensor_v3` over bytes, with the dtype as an argument.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.errors import (
    ConverterError,
    CorruptFileError,
    LimitError,
    TargetError,
    UnrepresentableError,
    UnsupportedError,
    context,
)
from converter.files import File, Publication, Region, StagedFile
from converter.formats import Probe
from converter.formats._pickle import CONTAINERS, Pickler, Stub, StubObject, Table, Unpickler
from converter.formats._pickle_numpy import NUMPY, NumpyArray, NumpyDtype
from converter.formats._zip import STORED, Member, ZipLayout, ZipWriter, members, raw, read
from converter.layout import Computed, Elementwise, Storage, View
from converter.tensors import Checkpoint, Tensor, TensorSpec, dtype_name, dtype_of

MAX_PICKLE = 256 << 20  # bytes of data.pkl
MAX_SMALL = 1 << 20  # bytes of the other records that are read whole
MAX_RANK = 32
MAX_NESTING = 200  # containers inside each other, on the way to a tensor
MAX_NAMES = 2_000_000
MAX_NAME = 4096  # bytes
MAX_SHOWN = 200  # characters
FREE_BYTES = 4 << 30  # logical bytes that any file may describe …
MAX_EXPANSION = 1000  # … and beyond that, this many times its size

_METADATA = "extra/converter.json"
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

_STORAGES = {  # typed storages: the dtypes of `_rebuild_tensor_v2`
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
_STORAGE_OF = {dtype: storage for storage, dtype in _STORAGES.items()}
_UNTYPED = "UntypedStorage"
_FP4, _FP4_PAIR = "float4_e2m1fn", "float4_e2m1fn_x2"
_F4 = dtype_of(_FP4)
_NEWER = (  # the dtypes of `_rebuild_tensor_v3`, by torch's name
    "uint16",
    "uint32",
    "uint64",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    _FP4_PAIR,
)
_DTYPES = {name: dtype_of(name) for name in (*_STORAGE_OF, *_NEWER) if name != _FP4_PAIR}
_DTYPES[_FP4_PAIR] = _F4


# ── what a pickle's calls and persistent ids mean ────────────────────────────────────────────────


@dataclass(frozen=True, eq=False, slots=True)
class _Stored:
    """A storage, as its persistent id describes it; `kind` is the name of the storage's class."""

    kind: str
    key: str
    numel: int


@dataclass(frozen=True, eq=False, slots=True)
class _Strided:
    """A tensor as the pickle describes it: sizes, strides and offset count elements.

    `dtype` is torch's name, or "" for the one of the storage.
    """

    storage: _Stored
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str = ""
    conj: bool = False
    neg: bool = False


def _stored(key: Any) -> _Stored:
    kind, cls, name, _location, numel = key
    if kind != "storage" or not isinstance(name, str) or not isinstance(cls, Stub):
        raise TypeError("a persistent id that is not a storage")
    (numel,) = _naturals((numel,))
    return _Stored(cls.name.rpartition(".")[2].lstrip("_"), name, numel)


def _naturals(values: Any) -> tuple[int, ...]:
    found = tuple(values)
    if not all(type(value) is int and value >= 0 for value in found):
        raise TypeError("sizes, strides or offsets that are not natural numbers")
    return found


def _rebuild(storage: Any, offset: Any, size: Any, stride: Any) -> _Strided:
    if not isinstance(storage, _Stored):
        raise TypeError("a tensor without a storage")
    size, stride = _naturals(size), _naturals(stride)
    if len(size) != len(stride):
        raise ValueError("as many strides as sizes are needed")
    return _Strided(storage, _naturals((offset,))[0], size, stride)


def _rebuild_v2(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    _grad: Any = None,
    _hooks: Any = None,
    metadata: Any = None,
) -> _Strided:
    flags = metadata or {}
    tensor = _rebuild(storage, offset, size, stride)
    return replace(tensor, conj=bool(flags.get("conj")), neg=bool(flags.get("neg")))


def _rebuild_v3(  # noqa: PLR0913 - torch's signature
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    grad: Any,
    hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> _Strided:
    if not isinstance(dtype, Stub):
        raise TypeError("a dtype that is not one")
    tensor = _rebuild_v2(storage, offset, size, stride, grad, hooks, metadata)
    return replace(tensor, dtype=dtype.name)


def _rebuild_parameter(data: Any, *_facts: Any) -> Any:
    """A parameter is its tensor; its gradient flag, hooks and attributes are not kept."""
    return data


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
    "torch.Size": lambda values=(): tuple(values),
    "torch.device": None,
}


# ── from the saved object to names ───────────────────────────────────────────────────────────────


_Leaf = _Strided | NumpyArray


@dataclass(slots=True)
class _Walk:
    """Finds the tensors in nested containers: keys and indices, joined by dots, name them.

    What holds no tensor is listed once, at the outermost name under which there is none.
    """

    most_names: int
    tensors: dict[str, _Leaf] = field(default_factory=dict)
    unsupported: dict[str, str] = field(default_factory=dict)
    holds: dict[int, bool] = field(default_factory=dict)  # by id of a container

    def find(self, value: Any, name: str, depth: int = 0, *, in_module: bool = False) -> None:
        """Take a value in, under its name."""
        if not self._holds_tensors(value, depth):
            if not in_module and (name or value != {}):
                self._skip(name or "value", _reason(value))
            return
        if problem := _name_problem(name):
            raise CorruptFileError(f"its name {problem}", tensor=_shown(name))
        if _is_tensor(value):
            self._add(name or "tensor", value)
            return
        _check_depth(depth)  # again: a container may be in itself
        module = isinstance(value, StubObject)
        if module and not in_module:
            reason = f"object of {value.function}: its parameters and persistent buffers are read"
            self._skip(name or "module", reason)
        for key, child in _children(value):
            self.find(child, f"{name}.{key}" if name else key, depth + 1, in_module=module)

    def _add(self, name: str, tensor: _Leaf) -> None:
        self._count(name)
        if name in self.tensors or name in self.unsupported:
            raise UnsupportedError("two entries get this name", tensor=name)
        self.tensors[name] = tensor

    def _skip(self, name: str, reason: str) -> None:
        self._count(name)
        if name in self.tensors:
            raise UnsupportedError("two entries get this name", tensor=name)
        self.unsupported[_shown(name)] = _shown(reason)

    def _count(self, name: str) -> None:
        """Few bytes of pickle must not make many names, by way of shared containers."""
        self.most_names -= 1
        if self.most_names < 0:
            raise LimitError("more entries than a file of this size can mean", tensor=_shown(name))

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
    if isinstance(value, NumpyArray):
        return value.elements is not None
    return isinstance(value, _Strided)


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    """The named parts of a container; those of a pickled module are its state dict's."""
    if isinstance(value, dict):
        for index, (key, child) in enumerate(value.items()):
            plain = isinstance(key, str | int | float) or key is None
            yield (str(key) if plain else f"#{index}"), child
    elif isinstance(value, list | tuple):
        yield from ((str(index), child) for index, child in enumerate(value))
    elif isinstance(value, StubObject) and isinstance(value.state, dict):
        passing = value.state.get("_non_persistent_buffers_set")
        passing = passing if isinstance(passing, set) else set()
        for part in ("_parameters", "_buffers", "_modules"):
            group = value.state.get(part)
            if isinstance(group, dict):
                named = ((str(key), child) for key, child in group.items())
                yield from (pair for pair in named if part != "_buffers" or pair[0] not in passing)


def _reason(value: Any) -> str:
    """What an entry without tensors is, in a few words."""
    text = type(value).__name__
    if isinstance(value, str):
        text = f"str {value[:MAX_SHOWN]!r}"
    elif isinstance(value, int | float | complex):
        text += f" {value}"
    elif isinstance(value, StubObject):
        text = f"object of {value.function}"
    elif isinstance(value, Stub):
        text = f"global {value}"
    elif isinstance(value, NumpyArray | NumpyDtype):
        text = value.text
    elif isinstance(value, _Stored):
        text = f"a bare {value.kind}"
    elif isinstance(value, dict | list | tuple | set | frozenset | bytes):
        text += f" of {len(value)}"
    return text


def _shown(text: str) -> str:
    """Text from a file that may be hostile, fit to be printed."""
    text = text[:MAX_SHOWN]
    return repr(text)[1:-1] if _UNPRINTABLE.search(text) else text


def _name_problem(name: str) -> str:
    if _UNPRINTABLE.search(name):
        return "has a control character, or is not Unicode"
    return f"is longer than {MAX_NAME} bytes" if len(name.encode()) > MAX_NAME else ""


# ── from descriptions to views ───────────────────────────────────────────────────────────────────


class _Pairs:
    """Bytes of two 4-bit elements each, the low half first, as twice as many elements."""

    dtype = _F4

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


@dataclass(slots=True)
class _Archive:
    """The records of one saved object, and the storages seen so far."""

    file: File
    members: Mapping[str, Member]
    root: str
    swap: bool = False
    described: int = 0  # logical bytes of all tensors
    storages: dict[tuple[str, np.dtype[Any]], Storage] = field(default_factory=dict)

    def small(self, name: str, limit: int = MAX_SMALL) -> bytes | None:
        """A whole record, None when it is absent."""
        member = self.members.get(self.root + name)
        return read(self.file, member, limit) if member else None

    def view(self, leaf: _Leaf, name: str) -> View | str:
        """A description as a view, or why there is none."""
        if isinstance(leaf, NumpyArray):
            elements: NDArray[Any] = np.asarray(leaf.elements)
            self._account(elements.nbytes, name)
            return _view_of(elements)
        dtype = _dtype(leaf)
        if dtype is None:
            return f"{leaf.dtype or leaf.storage.kind} {list(leaf.size)}: no such dtype in NumPy"
        self._check(leaf, dtype, name)
        view = self._strided(leaf, dtype, name)
        for wanted, function in ((leaf.conj, np.conjugate), (leaf.neg, np.negative)):
            if wanted:
                view = View.over(Elementwise(view, function, dtype), view.shape)
        return view

    def _strided(self, tensor: _Strided, dtype: np.dtype[Any], name: str) -> View:
        offset, axes = tensor.offset, list(zip(tensor.size, tensor.stride, strict=True))
        storage = self._storage(tensor, dtype, name)
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
        self.described += nbytes
        if self.described > max(FREE_BYTES, MAX_EXPANSION * self.file.size):
            raise LimitError(
                "the file describes far more than it stores",
                tensor=name,
                expected=f"at most {MAX_EXPANSION} times its {self.file.size} bytes",
                found=f"{self.described} bytes",
            )

    def _check(self, tensor: _Strided, dtype: np.dtype[Any], name: str) -> None:
        if len(tensor.size) > MAX_RANK:
            raise LimitError(f"more than {MAX_RANK} axes", tensor=name)
        self._account(math.prod(tensor.size) * dtype.itemsize, name)
        stored = tensor.storage
        size = stored.numel if stored.kind != _UNTYPED else stored.numel // dtype.itemsize
        axes = zip(tensor.size, tensor.stride, strict=True)
        last = tensor.offset + sum((n - 1) * step for n, step in axes)
        if 0 not in tensor.size and last >= size:
            raise CorruptFileError(
                "the tensor reaches outside its storage",
                tensor=name,
                expected=f"an index below {size}",
                found=last,
            )

    def _storage(self, tensor: _Strided, dtype: np.dtype[Any], name: str) -> Storage:
        """One storage per record and dtype, so that its checksum is verified once."""
        stored = tensor.storage
        known = self.storages.get((stored.key, dtype))
        if known is None:
            known = self._open(stored, dtype, name)
            self.storages[stored.key, dtype] = known
        return known

    def _open(self, stored: _Stored, dtype: np.dtype[Any], name: str) -> Storage:
        packed = dtype == _F4
        raw_dtype = np.dtype(np.uint8) if packed else dtype
        nbytes = stored.numel * (1 if stored.kind == _UNTYPED else dtype.itemsize)
        member = self.members.get(f"{self.root}data/{stored.key}")
        if member is None:
            raise CorruptFileError(f"there is no record data/{stored.key}", tensor=name)
        if member.method != STORED:
            raise UnsupportedError("the record of a tensor is compressed", tensor=name)
        if member.size != nbytes:
            raise CorruptFileError(
                "a storage and its record differ in size",
                tensor=name,
                offset=member.offset,
                expected=f"{nbytes} bytes",
                found=f"{member.size} bytes",
            )
        size = nbytes // raw_dtype.itemsize
        region = Region(
            self.file, member.offset, raw_dtype, size, tensor=name, checksum=member.checksum
        )
        if packed:
            return _Pairs(region)
        if self.swap and dtype.itemsize > 1:
            return Elementwise(View.over(region, (size,)), _swapped, dtype)
        return region


def _dtype(tensor: _Strided) -> np.dtype[Any] | None:
    """The dtype of a tensor, None when NumPy has nothing like it."""
    name = tensor.dtype or _STORAGES.get(tensor.storage.kind, "")
    if name == _FP4_PAIR and not tensor.size:
        return None  # there is no axis along which a pair could lie
    return _DTYPES.get(name)


# ── opening ──────────────────────────────────────────────────────────────────────────────────────

_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # the first pickle of the format before zip
_TAR_NAMES = (b"sys_info", b"pickle", b"tensors", b"storages")
_PROGRAM = ("archive_format", "serialized_exported_program.json")
_SAVE_AGAIN = "load it with torch, and torch.save its state_dict()"


def recognise(probe: Probe) -> bool:
    """Whether this is a file of `torch.save`, of today or of earlier."""
    if not probe.head.startswith(b"PK\x03\x04"):
        return bool(_old_kind(probe.head))
    try:
        file = File(probe.path)
        try:
            names = members(file)
        finally:
            file.close()
    except ConverterError:  # broken, or too strange: `open` says how, if it was one of ours
        return b"data.pkl" in probe.head + probe.tail
    return any(_base(name) in {"data.pkl", *_PROGRAM} for name in names)


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _old_kind(head: bytes) -> str:
    if _LEGACY in head[:32]:
        return "a torch file of the format before torch 1.6 (pickles, not a zip)"
    if head[257:262] == b"ustar" and head[:100].rstrip(b"\0") in _TAR_NAMES:
        return "a torch file of the format before torch 0.2 (tar)"
    return ""


def open(path: Path) -> Checkpoint:  # noqa: A001 - the name every format has
    """Open the tensors of a file that `torch.save` wrote; nothing in it is run.

    Raises `CorruptFileError`, `UnsupportedError`, `LimitError` or `UnsafeContentError`.
    """
    file = File(path)
    try:
        with context(path=path):
            return _open(file)
    except BaseException:
        file.close()
        raise


def _open(file: File) -> Checkpoint:
    if kind := _old_kind(file.read(0, min(file.size, 512))):
        raise UnsupportedError(kind, hint=_SAVE_AGAIN)
    archive = _archive(file)
    data = archive.small("data.pkl", MAX_PICKLE) or b""
    unpickler = Unpickler(data, TABLE, _stored, where="data.pkl")
    saved = unpickler.load()
    if unpickler.position != len(data):
        raise CorruptFileError("data.pkl goes on after its end", offset=unpickler.position)
    walk = _Walk(min(MAX_NAMES, 1000 + len(data) // 8))
    walk.find(saved, "")
    tensors = {}
    ties: dict[Any, list[str]] = {}
    for name, leaf in walk.tensors.items():
        view = archive.view(leaf, name)
        if isinstance(view, str):
            walk.unsupported[name] = view
            continue
        tensors[name] = Tensor(view)
        ties.setdefault(_identity(leaf), []).append(name)
    return Checkpoint(
        tensors,
        format="torch",
        path=file.path,
        metadata=_metadata(archive),
        ties=tuple(tuple(names) for names in ties.values() if len(names) > 1),
        unsupported=walk.unsupported,
        on_close=file.close,
    )


def _identity(tensor: _Leaf) -> Any:
    """What two tensors have in common when they are one."""
    if isinstance(tensor, NumpyArray):
        return id(tensor)
    facts = (tensor.storage.kind, tensor.offset, tensor.size, tensor.stride)
    return (tensor.storage.key, *facts, tensor.dtype, tensor.conj, tensor.neg)


def _archive(file: File) -> _Archive:
    found = members(file)
    if any(_base(name) in _PROGRAM for name in found):
        raise UnsupportedError("a program of torch.export (.pt2)", hint=_SAVE_AGAIN)
    pickles = [name for name in found if _base(name) == "data.pkl" and name.count("/") < 2]  # noqa: PLR2004
    roots = [name.removesuffix("data.pkl") for name in pickles]
    if len(roots) != 1:
        raise CorruptFileError(f"{len(roots)} records named data.pkl", expected="one")
    (root,) = roots
    if f"{root}constants.pkl" in found or any(n.startswith(f"{root}code/") for n in found):
        raise UnsupportedError("a TorchScript archive (torch.jit.save)", hint=_SAVE_AGAIN)
    archive = _Archive(file, found, root)
    order = archive.small("byteorder") or b"little"
    if order not in (b"little", b"big"):
        raise CorruptFileError("an unknown byte order", found=order[:20])
    archive.swap = order == b"big"
    return archive


def _metadata(archive: _Archive) -> dict[str, str]:
    text = archive.small(_METADATA)
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{_METADATA} is not JSON") from error
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise CorruptFileError(f"{_METADATA} is not a dictionary of texts")
    return found


# ── writing ──────────────────────────────────────────────────────────────────────────────────────

_ROOT = "archive/"


def problem(name: str, spec: TensorSpec) -> str:
    """Why torch cannot hold this tensor, "" when it can."""
    dtype = dtype_name(spec.dtype)
    if trouble := _name_problem(name) if name else "is empty":
        return f"its name {trouble}"
    if dtype == _FP4:
        paired = bool(spec.shape) and spec.shape[-1] % 2 == 0
        return "" if paired else f"torch packs {_FP4} in pairs along the last axis"
    if len(spec.shape) > MAX_RANK:
        return f"it has more than {MAX_RANK} axes"
    if dtype not in _DTYPES:
        return f"torch has no dtype {dtype}"
    return "" if spec.dtype.isnative else "its bytes are in foreign order"


class _TorchSink:
    """Writes the archive; every offset is known before the first tensor comes."""

    def __init__(
        self,
        path: Path,
        specs: Mapping[str, TensorSpec],
        metadata: Mapping[str, str],
        ties: Sequence[Sequence[str]],
        *,
        overwrite: bool,
    ) -> None:
        self.files = [path]
        self._specs = specs
        first = _leaders(specs, ties)
        self.order = list(dict.fromkeys(first.values()))
        keys = {name: str(number) for number, name in enumerate(self.order)}
        self._keys = {name: keys[first[name]] for name in specs}
        before = {"data.pkl": _pickled(specs, self._keys), "byteorder": b"little"}
        after = {"version": b"3\n"}
        if metadata:
            after[_METADATA] = json.dumps(dict(metadata), sort_keys=True).encode()
        sizes = {name: len(data) for name, data in before.items()}
        sizes |= {f"data/{keys[name]}": _stored_nbytes(specs[name]) for name in self.order}
        sizes |= {name: len(data) for name, data in after.items()}
        layout = ZipLayout({_ROOT + name: nbytes for name, nbytes in sizes.items()})
        self._publication = Publication([path], overwrite=overwrite, nbytes=layout.nbytes)
        try:
            self._zip = ZipWriter(self._publication.files[0], layout)
            for name, data in (before | after).items():
                self._zip.write(_ROOT + name, [data])
        except BaseException:
            self.abort()
            raise

    def place(self, name: str) -> tuple[StagedFile, int] | None:
        """Where a tensor's elements lie; nowhere, where two of them share a byte."""
        if self._specs[name].dtype == _F4:
            return None
        return self._publication.files[0], self._zip.offset(f"{_ROOT}data/{self._keys[name]}")

    def write(self, name: str, chunks: Iterable[NDArray[Any]], *, placed: bool = False) -> None:
        """Take a tensor as consecutive 1-D C-order pieces; of tied names, one is enough."""
        dtype = self._specs[name].dtype
        pieces = _checked(chunks, dtype)
        record = f"{_ROOT}data/{self._keys[name]}"
        before = self._zip.crcs.get(record)
        with context(tensor=name):
            stored = _paired(pieces) if dtype == _F4 else pieces
            self._zip.write(record, stored, placed=placed)
            if before not in (None, self._zip.crcs[record]):
                raise TargetError("tied tensors came with different values")

    def commit(self) -> None:
        """Publish: afterwards the target is complete and durable."""
        try:
            self._zip.finish()
            self._publication.commit()
        finally:
            self.abort()

    def abort(self) -> None:
        """Leave nothing behind; harmless after `commit`."""
        self._publication.abort()


def create(
    path: Path,
    specs: Mapping[str, TensorSpec],
    *,
    metadata: Mapping[str, str],
    ties: Sequence[Sequence[str]],
    overwrite: bool,
) -> _TorchSink:
    """A sink that writes what `torch.load(weights_only=True, mmap=True)` reads.

    Raises `UnrepresentableError`, `TargetExistsError` or `TargetError`.
    """
    for name, spec in specs.items():
        if trouble := problem(name, spec):
            raise UnrepresentableError(trouble, path=path, tensor=name, found=spec)
    return _TorchSink(path, specs, metadata, ties, overwrite=overwrite)


def _leaders(specs: Mapping[str, TensorSpec], ties: Sequence[Sequence[str]]) -> dict[str, str]:
    """For every name the one whose storage it uses: its own, or that of the first it is tied to."""
    first = {name: name for name in specs}
    for group in ties:
        names = [name for name in group if name in specs]
        for name in names[1:]:
            if specs[name] == specs[names[0]]:
                first[name] = first[names[0]]
    return first


def _stored_nbytes(spec: TensorSpec) -> int:
    return spec.nbytes // 2 if spec.dtype == _F4 else spec.nbytes


def _checked(chunks: Iterable[NDArray[Any]], dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    for chunk in chunks:
        if chunk.dtype != dtype:
            raise TargetError("a piece has another dtype", expected=dtype, found=chunk.dtype)
        yield chunk


def _paired(chunks: Iterable[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    """Two 4-bit elements to a byte, the first in the low half; chunks may have odd sizes."""
    left = np.empty(0, np.uint8)
    for chunk in chunks:
        halves = np.concatenate([left, raw(chunk)])
        even = halves.size // 2 * 2
        yield halves[:even:2] & 0xF | halves[1:even:2] << 4
        left = halves[even:]
    if left.size:
        raise TargetError("the pieces of a tensor do not add up to whole bytes")


def _pickled(specs: Mapping[str, TensorSpec], keys: Mapping[str, str]) -> bytes:
    """An OrderedDict of tensors, as `state_dict()` gives it."""
    pickler = Pickler()
    pickler.name("collections", "OrderedDict")
    pickler.opcodes(b")R(")  # made empty, then all items under one mark
    for name, spec in specs.items():
        pickler.value(name)
        _pickle_tensor(pickler, spec, keys[name])
    pickler.opcodes(b"u")
    return pickler.finish()


def _pickle_tensor(pickler: Pickler, spec: TensorSpec, key: str) -> None:
    shape, dtype = spec.shape, dtype_name(spec.dtype)
    if dtype == _FP4:
        shape, dtype = (*shape[:-1], shape[-1] // 2), _FP4_PAIR
    typed = _STORAGE_OF.get(dtype)
    pickler.name("torch._utils", "_rebuild_tensor_v2" if typed else "_rebuild_tensor_v3")
    pickler.opcodes(b"((")
    pickler.value("storage")
    pickler.name(*(("torch", typed) if typed else ("torch.storage", _UNTYPED)))
    pickler.value(key)
    pickler.value("cpu")
    pickler.value(spec.size if typed else _stored_nbytes(spec))
    pickler.opcodes(b"tQ")  # the persistent id of the storage
    pickler.value(0)
    pickler.value(shape)
    pickler.value(tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape))))
    pickler.value(value=False)  # requires_grad
    pickler.name("collections", "OrderedDict")
    pickler.opcodes(b")R")  # no hooks
    if not typed:
        pickler.name("torch", dtype)
    pickler.opcodes(b"tR")
