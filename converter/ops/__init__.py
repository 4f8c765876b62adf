"""Ops: arithmetic on views, one small frozen class an op, all of them in `OPS`."""

from __future__ import annotations

from converter.ops.arrange import Rearrange, Reshape, Reverse, Transpose
from converter.ops.base import Op
from converter.ops.pieces import Concat, Part, Split, Stack, Unstack
from converter.ops.values import Cast

OPS: dict[str, type[Op]] = {
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
        Cast,
    )
}

__all__ = ["OPS", "Op"]
