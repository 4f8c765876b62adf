"""Ops: arithmetic on views, one small frozen class an op, all of them in `OPS`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from converter.errors import Diagnostic, MappingError
from converter.ops.arithmetic import Add, Epsilon, Negate, Scale
from converter.ops.arrange import Rearrange, Reshape, Reverse, Transpose
from converter.ops.base import Op
from converter.ops.blocks import Pad, Reorder, Slice
from converter.ops.layers import Dequantise, FoldBatchNorm, Sum
from converter.ops.pieces import Concat, Part, Split, Stack, Unstack
from converter.ops.values import Cast

GROUP = "converter.ops"  # the entry points of ops that other packages bring

SHIPPED: dict[str, type[Op]] = {
    op.name: op
    for op in (
        Rearrange,
        Transpose,
        Reshape,
        Reverse,
        Concat,
        Split,
        Stack,
        Unstack,
        Part,
        Reorder,
        Slice,
        Pad,
        Cast,
        Scale,
        Add,
        Negate,
        Sum,
        Epsilon,
        FoldBatchNorm,
        Dequantise,
    )
}


class _Ops(Mapping[str, type[Op]]):
    """The ops by name: those shipped, and those that installed packages bring.

    Packages are asked when a name is not ours, or all are listed, because asking takes time.
    """

    def __init__(self) -> None:
        self._brought: dict[str, type[Op]] | None = None

    @property
    def brought(self) -> dict[str, type[Op]]:
        """The ops of other packages; `MappingError` when one of them cannot be used."""
        if self._brought is None:
            from importlib.metadata import entry_points

            self._brought = {point.name: _brought(point) for point in entry_points(group=GROUP)}
        return self._brought

    def __getitem__(self, name: str) -> type[Op]:
        return SHIPPED[name] if name in SHIPPED else self.brought[name]

    def __iter__(self) -> Iterator[str]:
        yield from SHIPPED
        yield from self.brought

    def __len__(self) -> int:
        return len(SHIPPED) + len(self.brought)


def _brought(point: Any) -> type[Op]:
    """The op of another package, which is an op and stands for no other."""
    wrong = ""
    try:
        op = point.load()
    except Exception as error:  # noqa: BLE001 - the package's own code runs here
        wrong = f"cannot be imported: {type(error).__name__}: {error}"
    else:
        if not (isinstance(op, type) and issubclass(op, Op)):
            wrong = "is no subclass of converter.ops.Op"
        elif getattr(op, "name", "") != point.name or point.name in SHIPPED:
            wrong = "needs a `name` that is the entry point's, and no op's of ours"
        elif not getattr(op, "about", ""):
            wrong = "does not say what it is `about`"
    if wrong:
        message = f"the op '{point.name}', which {point.value} brings, {wrong}"
        raise MappingError([Diagnostic("MAP109", message)])
    return op  # type: ignore[no-any-return]


OPS = _Ops()

__all__ = ["OPS", "Op"]
