"""Ops that compute one tensor from several, and lose some: sum, fold_batchnorm, dequantise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from math import prod
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from converter.errors import IrreversibleError, OpError
from converter.layout import Array, Computed, View
from converter.ops.arrange import axes_of
from converter.ops.axes import one_axis
from converter.ops.base import Exactness, Op, join
from converter.ops.pieces import AxisOp, same
from converter.ops.values import integers
from converter.record import AtLeast, Check, field
from converter.tensors import dtype_name

Role = Literal["kernel", "bias", "gamma", "beta", "mean", "variance"]


def computed(shape: Sequence[int], dtype: np.dtype[Any], compute: Callable[[], Any]) -> View:
    """A view of what a function returns, converted to the dtype; it is called when it is read."""

    def result() -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(compute()).astype(dtype, copy=False)

    return View.over(Computed(prod(shape), dtype, result), shape)


class _Joining(Op):
    """An op of which the parts cannot be told apart afterwards."""

    joins: ClassVar[bool] = True

    @property
    def exactness(self) -> Exactness:
        return "lossy"

    def inverse(self) -> Op:
        raise IrreversibleError(
            f"{self.name} cannot be undone: nothing keeps its parts apart",
            hint="write the way back as a mapping of its own",
        )


class Sum(_Joining):
    """Add the sources, as where a layer has one bias and another two that it adds anyway."""

    name: ClassVar[str] = "sum"
    about: ClassVar[str] = "add several sources: `{}`"

    def apply(self, views: Sequence[View], pieces: int) -> list[View]:
        same(self, views, None)
        dtype = views[0].dtype.newbyteorder("=")
        if dtype.kind == "O" or integers(dtype) == range(2):
            raise OpError("sum does not fit", expected="numbers", found=dtype_name(dtype))
        arrays = tuple(views)
        return [
            computed(views[0].shape, dtype, lambda: reduce(np.add, [v.numpy() for v in arrays]))
        ]


def _complete(value: tuple[Role, ...]) -> tuple[Role, ...]:
    missing = {"kernel", "mean", "variance"} - set(value)
    if missing or len(set(value)) < len(value):
        raise ValueError("name kernel, mean and variance, and each source once")
    return value


class FoldBatchNorm(_Joining, AxisOp):
    """Fold a batch normalisation into the layer before it; gives its kernel and its bias.

        kernel * gamma / sqrt(variance + epsilon)
        (bias - mean) * gamma / sqrt(variance + epsilon) + beta

    `of` says what each source is; without gamma, beta or bias these are 1 and 0.  It is computed in
    float64 and rounded once.
    """

    name: ClassVar[str] = "fold_batchnorm"
    about: ClassVar[str] = "fold a batch norm into kernel and bias: `{axis: 'h w i [o]'}`"
    cuts: ClassVar[bool] = True

    epsilon: Annotated[float, AtLeast(0)] = field(
        default=1e-3, about="what the layer adds to the variance"
    )
    of: Annotated[tuple[Role, ...], Check(_complete)] = field(
        default=("kernel", "gamma", "beta", "mean", "variance"), about="what the sources are"
    )

    def apply(self, views: Sequence[View], pieces: int) -> list[View]:
        if len(views) != len(self.of):
            raise OpError(
                "fold_batchnorm: the sources do not fit",
                expected=", ".join(self.of),
                found=f"{len(views)} tensors",
                hint="say what they are: `of: [kernel, bias, ...]`",
            )
        found: dict[str, View] = dict(zip(self.of, views, strict=True))
        kernel = found["kernel"]
        axis = self.position(kernel)
        for role, view in found.items():
            count = kernel.shape[axis]
            if view.dtype.kind == "O" or (role != "kernel" and view.shape != (count,)):
                raise OpError(
                    f"fold_batchnorm: {role} does not fit",
                    expected=join([count]),
                    found=f"{dtype_name(view.dtype)} {join(view.shape)}",
                )
        dtype = kernel.dtype.newbyteorder("=")
        shape = [-1 if k == axis else 1 for k in range(kernel.ndim)]

        def values(role: str, default: float) -> Any:
            view = found.get(role)
            return default if view is None else view.numpy().astype(np.float64)

        def factor() -> Any:
            return values("gamma", 1) / np.sqrt(values("variance", 1) + self.epsilon)

        def folded() -> Any:
            return values("kernel", 0) * factor().reshape(shape)

        def bias() -> Any:
            return (values("bias", 0) - values("mean", 0)) * factor() + values("beta", 0)

        return [
            computed(kernel.shape, dtype, folded),
            computed((kernel.shape[axis],), dtype, bias),
        ]

    def to_file(self) -> Any:
        return Op.to_file(self)


class Dequantise(_Joining):
    """The real numbers of quantised ones: `(q - zero_point) * scale`, in the dtype of the scale.

    The sources are q, its scale and, if there are three, its zero point.  A scale is one number,
    one for each index of `axis`, or of as many axes as q, for blocks of it.
    """

    name: ClassVar[str] = "dequantise"
    about: ClassVar[str] = "(q - zero point) * scale: `{}`, or `{axis: '[o] i'}` for one a channel"

    axis: Annotated[str | int | None, Check(one_axis)] = field(
        default=None, about="the axis that each scale is for"
    )

    def apply(self, views: Sequence[View], pieces: int) -> list[View]:
        if len(views) not in (2, 3):
            raise OpError(
                "dequantise takes q, its scale and perhaps its zero point",
                expected="2 or 3 tensors",
                found=f"{len(views)} tensors",
            )
        q, scale = views[:2]
        dtype = scale.dtype.newbyteorder("=")
        if q.dtype.kind == "O" or dtype.kind == "O" or integers(dtype):
            raise OpError(
                "dequantise does not fit",
                expected="numbers, and a scale in floating point",
                found=f"{dtype_name(q.dtype)} and {dtype_name(dtype)}",
            )
        blocks = [self._blocks(q, view) for view in views[1:]]

        def compute() -> Any:
            values = [view.numpy().astype(np.float64) for view in views]
            spread = [_spread(a, s, q.shape) for a, s in zip(values[1:], blocks, strict=True)]
            return (values[0] - (spread[1] if len(spread) > 1 else 0)) * spread[0]

        return [computed(q.shape, dtype, compute)]

    def _blocks(self, q: View, scale: View) -> tuple[int, ...]:
        """The scale's shape with as many axes as q."""
        shape = scale.shape
        if scale.size == 1:
            return (1,) * q.ndim
        if len(shape) == 1 and self.axis is not None:
            (axis,) = axes_of(self, self.axis, q)
            shape = tuple(shape[0] if k == axis else 1 for k in range(q.ndim))
        if len(shape) != q.ndim or any(
            s == 0 or n % s for n, s in zip(q.shape, shape, strict=True)
        ):
            raise OpError(
                "dequantise: the scale does not fit",
                expected=f"one number, one for each of an `axis`, or blocks of {join(q.shape)}",
                found=join(scale.shape),
            )
        return shape


def _spread(values: Array, blocks: Sequence[int], shape: Sequence[int]) -> Array:
    """Each value repeated over its block."""
    found = values.reshape(blocks)
    for axis, (size, count) in enumerate(zip(shape, blocks, strict=True)):
        if count not in (1, size):
            found = np.repeat(found, size // count, axis)
    return found
