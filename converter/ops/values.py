"""Ops that change values: cast."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pydantic import Field, field_validator, model_validator

from converter.errors import IrreversibleError, OpError
from converter.layout import View
from converter.ops.base import Exactness, UnaryOp
from converter.tensors import dtype_name, dtype_of


class Cast(UnaryOp):
    """Convert to another dtype, rounding to nearest where it is narrower.

    With `from` the source's dtype is checked, and the way back casts to it: bit-exact when `to`
    holds every value of `from`.
    """

    name: ClassVar[str] = "cast"
    about: ClassVar[str] = "another dtype: `float16`, or `{from: bfloat16, to: float32}`"
    exactness: ClassVar[Exactness] = "rounding"

    to: str = Field(description="the dtype's NumPy name")
    source: str | None = Field(default=None, alias="from", description="the dtype before")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"to": value} if isinstance(value, str) else value

    @field_validator("to", "source")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None and dtype_of(value).kind == "O":
            raise ValueError("strings cannot be cast")
        return value

    def apply_one(self, view: View) -> View:
        found = dtype_name(view.dtype)
        if found == "string" or self.source not in (None, found):
            raise OpError("cast does not fit", expected=self.source or "numbers", found=found)
        return view.astype(dtype_of(self.to))

    def inverse(self) -> Cast:
        if self.source is None:
            raise IrreversibleError(
                "cast does not know the dtype before it",
                hint=f"write `cast: {{from: ..., to: {self.to}}}`",
            )
        if not np.can_cast(dtype_of(self.source), dtype_of(self.to), "safe"):
            raise IrreversibleError(f"casting {self.source} to {self.to} rounds")
        return Cast.model_validate({"to": self.source, "from": self.to})

    def to_file(self) -> Any:
        return self.to if self.source is None else {"from": self.source, "to": self.to}
