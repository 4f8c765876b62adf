"""Ops: arithmetic on views, one small frozen class an op, all of them in `OPS`."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from converter.errors import Diagnostic, MappingError
from converter.ops.base import Op

GROUP = "converter.ops"  # the entry points of ops that other packages bring

SHIPPED = {  # op → its class, in a module of this package that is imported when it is used
    "rearrange": "arrange.Rearrange",
    "transpose": "arrange.Transpose",
    "reshape": "arrange.Reshape",
    "reverse": "arrange.Reverse",
    "concat": "pieces.Concat",
    "split": "pieces.Split",
    "stack": "pieces.Stack",
    "unstack": "pieces.Unstack",
    "part": "pieces.Part",
    "reorder": "blocks.Reorder",
    "slice": "blocks.Slice",
    "pad": "blocks.Pad",
    "cast": "values.Cast",
    "scale": "arithmetic.Scale",
    "add": "arithmetic.Add",
    "negate": "arithmetic.Negate",
    "sum": "layers.Sum",
    "epsilon": "arithmetic.Epsilon",
    "fold_batchnorm": "layers.FoldBatchNorm",
    "dequantise": "layers.Dequantise",
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

            found: dict[str, type[Op]] = {}
            for point in entry_points(group=GROUP):
                found[point.name] = _brought(point, known=point.name in found)
            self._brought = found
        return self._brought

    def __getitem__(self, name: str) -> type[Op]:
        if name not in SHIPPED:
            return self.brought[name]
        module, _, kind = SHIPPED[name].partition(".")
        found: type[Op] = getattr(importlib.import_module(f"{__name__}.{module}"), kind)
        return found

    def __iter__(self) -> Iterator[str]:
        yield from SHIPPED
        yield from self.brought

    def __len__(self) -> int:
        return len(SHIPPED) + len(self.brought)


def _brought(point: Any, *, known: bool) -> type[Op]:
    """The op of another package, which is an op and stands for no other."""
    try:
        op = point.load()
    except Exception as error:  # noqa: BLE001 - the package's own code runs here
        wrong = f"cannot be imported: {type(error).__name__}: {error}"
    else:
        wrong = "is brought by another package, too" if known else ""
        if not (isinstance(op, type) and issubclass(op, Op)):
            wrong = "is no subclass of converter.ops.Op"
        elif getattr(op, "name", "") != point.name or point.name in SHIPPED:
            wrong = "needs a `name` that is the entry point's, and no op's of ours"
        elif not getattr(op, "about", ""):
            wrong = "does not say what it is `about`"
    if wrong:
        package = f"the package {point.dist.name}" if point.dist else "a package"
        message = f"the op '{point.name}', which {package} brings ({point.value}), {wrong}"
        hint = "repair the package, or remove it"
        raise MappingError([Diagnostic("MAP109", message, hint=hint)])
    return op  # type: ignore[no-any-return]


OPS = _Ops()

__all__ = ["OPS", "Op"]
