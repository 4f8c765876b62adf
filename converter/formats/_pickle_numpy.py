"""NumPy's arrays, scalars and dtypes inside a pickle, as constructors for `_pickle`.

https://github.com/numpy/numpy/blob/main/numpy/_core/src/multiarray/methods.c (array_reduce)

    numpy.dtype('f4', False, True)      BUILD (3, '<', None, None, None, -1, -1, 0)
    …multiarray._reconstruct(numpy.ndarray, (0,), b'b')
                                        BUILD (1, shape, dtype, Fortran order?, bytes)
    …multiarray.scalar(dtype, bytes)
    …numeric._frombuffer(bytes, dtype, shape, 'C' or 'F')               protocol 5

`…` is `numpy.core` up to NumPy 1 and `numpy._core` since 2.  Only arrays of numbers are made:
one of objects, records or dates stays without its elements.
"""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.formats._pickle import Stub, StubObject, Table
from converter.tensors import dtype_of

_KINDS = "biufc"  # and one digit or two: bytes


class NumpyDtype:
    """A dtype; `known` is None when its elements are not numbers."""

    __slots__ = ("known", "text")

    def __init__(self, text: Any, *_flags: Any) -> None:
        self.known: np.dtype[Any] | None = None
        if isinstance(text, Stub) and text.module.partition(".")[0] == "ml_dtypes":
            self.known = dtype_of(text.name)
            text = text.name
        elif isinstance(text, str) and text[:1] in _KINDS and text[1:].isdecimal():
            self.known = np.dtype(text)
        self.text = str(text)[:40]

    def build(self, state: Any) -> None:
        """Take the byte order; the rest describes dtypes that are not of numbers."""
        order = state[1]
        if self.known is not None and order in {"<", ">"}:
            self.known = self.known.newbyteorder(order)


class NumpyArray:
    """An array; `elements` is None when they are not numbers.  It never owns a copy."""

    __slots__ = ("elements", "text")

    def __init__(self) -> None:
        self.elements: NDArray[Any] | None = None
        self.text = "numpy array"

    def build(self, state: Any) -> None:
        """Take shape, dtype and bytes."""
        _version, shape, dtype, fortran, data = state
        self.fill(data, dtype, shape, fortran=bool(fortran))

    def fill(self, data: Any, dtype: Any, shape: Any, *, fortran: bool) -> None:
        """Look at the bytes as an array; ValueError when there are too many, or too few."""
        if not isinstance(dtype, NumpyDtype):
            raise TypeError("a dtype that is not one")
        self.text = f"numpy array of {dtype.text} {list(shape)}"[:80]
        if dtype.known is not None:
            flat = np.frombuffer(_raw(data), dtype.known) if math.prod(shape) else ()
            array = np.asarray(flat, dtype.known)
            self.elements = array.reshape(shape, order="F" if fortran else "C")


def _raw(data: Any) -> bytes:
    """The bytes of an array, which Python 2 says as text."""
    if isinstance(data, str):
        return data.encode("latin-1")
    if not isinstance(data, bytes):
        raise TypeError("an array without bytes")
    return data


def _reconstruct(cls: Any, _shape: Any, _code: Any) -> NumpyArray | StubObject:
    return NumpyArray() if str(cls) == "numpy.ndarray" else StubObject(cls, ())


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> NumpyArray:
    array = NumpyArray()
    array.fill(data, dtype, shape, fortran=order == "F")
    return array


def _scalar(dtype: Any, data: Any = b"") -> Any:
    """A number as Python's, anything else as the bytes."""
    if not isinstance(dtype, NumpyDtype):
        raise TypeError("a dtype that is not one")
    if dtype.known is None:
        return data
    (value,) = np.frombuffer(_raw(data), dtype.known)
    return value.item()


_MAKERS: Table = {
    "multiarray._reconstruct": _reconstruct,
    "multiarray.scalar": _scalar,
    "numeric._frombuffer": _from_buffer,
}
NUMPY: Table = MappingProxyType(
    {
        "numpy.dtype": NumpyDtype,
        **{f"numpy.core.{name}": make for name, make in _MAKERS.items()},
        **{f"numpy._core.{name}": make for name, make in _MAKERS.items()},
    }
)
