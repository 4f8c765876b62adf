"""The nouns: a spec, a tensor, a checkpoint (names to tensors)."""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from converter.errors import NotFoundError
from converter.files import Region
from converter.layout import View

STRING = np.dtype(object)  # elements are `bytes`; printed as "string"

_NUMPY: dict[str, np.dtype[Any]] = {
    np.dtype(code).name: np.dtype(code) for code in ("?", *np.typecodes["AllInteger"], *"efdFD")
}
_ML_DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(getattr(ml_dtypes, name))
    for name in (
        "bfloat16",
        "float8_e3m4",
        "float8_e4m3",
        "float8_e4m3b11fnuz",
        "float8_e4m3fn",
        "float8_e4m3fnuz",
        "float8_e5m2",
        "float8_e5m2fnuz",
        "float8_e8m0fnu",
        "float6_e2m3fn",
        "float6_e3m2fn",
        "float4_e2m1fn",
        "int2",
        "int4",
        "uint2",
        "uint4",
    )
}


@lru_cache
def dtype_name(dtype: np.dtype[Any]) -> str:
    """The name that people read and write: NumPy's, ml_dtypes', or `string`."""
    return "string" if dtype == STRING else dtype.name


def dtype_of(name: str) -> np.dtype[Any]:
    """The dtype of a name as `dtype_name` prints it; `ValueError` when there is none."""
    known = {"string": STRING, **_NUMPY, **_ML_DTYPES}
    if name not in known:
        raise ValueError(f"'{name}' is not a dtype of tensors")
    return known[name]


class TensorSpec(NamedTuple):
    """What is known of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in memory: `size` times the item size."""
        return self.size * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{dtype_name(self.dtype)} {list(self.shape)}"


class Extent(NamedTuple):
    """Where a tensor's C-order, little-endian bytes lie in a file: [offset, offset + nbytes)."""

    path: Path
    offset: int
    nbytes: int


class Tensor(NamedTuple):
    """A tensor of a checkpoint: its spec at once, its values when asked."""

    view: View

    @property
    def spec(self) -> TensorSpec:
        """Shape and dtype; never reads values."""
        return TensorSpec(self.view.shape, self.view.dtype)

    @property
    def extent(self) -> Extent | None:
        """The bytes in the file, where the tensor is one plain run of them."""
        storage = self.view.storage
        if not isinstance(storage, Region) or not self.view.contiguous:
            return None
        offset = storage.offset + self.view.offset * storage.dtype.itemsize
        return Extent(storage.file.path, offset, self.view.nbytes)

    def numpy(self) -> NDArray[Any]:
        """The values as a C-contiguous array, checksums verified.

        Raises `SourceError` (truncated, damaged) when they cannot be read.
        """
        return self.view.numpy()


class LazyTensors(Mapping[str, Tensor]):
    """Tensors of known specs, each made when it is asked for: there may be 100,000 of them."""

    def __init__(self, specs: Mapping[str, TensorSpec], make: Callable[[str], View]) -> None:
        self.specs = specs
        self._make = make

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.specs:
            raise KeyError(name)
        return Tensor(self._make(name))

    def __contains__(self, name: object) -> bool:
        return name in self.specs

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)


@dataclass(frozen=True, eq=False)
class Checkpoint(Mapping[str, Tensor]):
    """A read-only mapping from names to tensors, in the order of the file.

    `ties` are groups of names that share one storage.  `unsupported` lists entries of the file
    that are not tensors this package can read, each with the reason: they are never dropped in
    silence.  `aliases` are other names of tensors, where the file has them.  `files` are all files
    that it was opened from.  Usable as a context manager; closing it closes its files.
    """

    tensors: Mapping[str, Tensor]
    format: str = "memory"
    path: Path | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    ties: tuple[tuple[str, ...], ...] = ()
    unsupported: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    on_close: Callable[[], None] | None = None

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self.tensors[name]
        except KeyError:
            raise NotFoundError("no such tensor", path=self.path, tensor=name) from None

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Every name with its spec."""
        if isinstance(self.tensors, LazyTensors):
            return MappingProxyType(self.tensors.specs)
        return MappingProxyType({name: tensor.spec for name, tensor in self.tensors.items()})

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, in memory."""
        return sum(spec.nbytes for spec in self.specs.values())

    def under(self, path: str) -> Self:
        """The part below a path: under `state_dict`, `state_dict.conv.weight` is `conv.weight`.

        A path ends at a dot or, where none follows it, at a slash. What is elsewhere is left out:
        it was not asked for. Raises `NotFoundError` when there is no tensor below the path.
        """
        for mark in "./":
            prefix = path.removesuffix(mark) + mark
            names = {name[len(prefix) :]: name for name in self if name.startswith(prefix)}
            names.pop("", None)
            if names:
                break
        else:
            tops = dict.fromkeys(name.partition(".")[0] for name in self if "." in name)
            raise NotFoundError(
                f"there is no tensor under '{path}'",
                path=self.path,
                expected=", ".join(list(tops)[:8]),
            )
        specs = self.specs
        short = {name: below for below, name in names.items()}
        ties = (tuple(short[name] for name in group if name in short) for group in self.ties)
        return replace(
            self,
            tensors=LazyTensors(
                {below: specs[name] for below, name in names.items()},
                lambda below: self.tensors[names[below]].view,
            ),
            ties=tuple(group for group in ties if len(group) > 1),
            unsupported={
                name[len(prefix) :]: reason
                for name, reason in self.unsupported.items()
                if name.startswith(prefix)
            },
            aliases={
                below: self.aliases[name] for below, name in names.items() if name in self.aliases
            },
        )

    def close(self) -> None:
        """Close the files behind it; tensors cannot be read afterwards."""
        if self.on_close is not None:
            self.on_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Templated(NamedTuple):
    """A checkpoint in the form of a template, whose files are its files.

    `keys` are the names of the source with those that their tensors have now; what is `kept` is
    still the template's.
    """

    checkpoint: Checkpoint
    keys: Mapping[str, str] = MappingProxyType({})
    kept: tuple[str, ...] = ()


def from_arrays(arrays: Mapping[str, Any], **facts: Any) -> Checkpoint:
    """A checkpoint of arrays in memory; `facts` are `Checkpoint`'s other fields."""
    return Checkpoint({n: Tensor(View.of(np.asarray(a))) for n, a in arrays.items()}, **facts)


@contextlib.contextmanager
def no_collections() -> Iterator[None]:
    """Spare what makes 100,000 tensors the garbage collector: it finds nothing, and takes time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
