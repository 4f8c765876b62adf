"""The shape of a mapping file, as pydantic models: what may stand where, and of which type."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from converter.ops import OPS
from converter.ops.values import constant, numeric

Size = Annotated[int, Field(ge=1)]
Contract = dict[str, str | int | float | bool | list[str | int | float]]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)  # "yes" is no boolean


class Side(_Model):
    """What is known of a side besides its weights."""

    model: str = Field(default="", description="framework and model, e.g. `tf-slim vgg_16`")
    contract: Contract = Field(
        default_factory=dict,
        description="facts that the weights depend on: channels, range, mean, epsilon, padding",
    )


class RuleModel(_Model):
    """Which source tensors become which target tensors."""

    source: str | list[str] = Field(description="a name template, or several")
    target: str | list[str] = Field(description="a name template, or several")
    ops: list[dict[str, Any]] = Field(default_factory=list, description="applied in this order")
    sizes: dict[str, Size] = Field(default_factory=dict, description="sizes of axes in this rule")
    exclude: list[str] = Field(
        default_factory=list, alias="except", description="names that the rule leaves to others"
    )
    optional: bool = Field(default=False, description="matching nothing is no error")
    about: str = Field(default="", description="why, for the reader")

    @field_validator("ops")
    @classmethod
    def _single_keys(cls, value: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for entry in value:
            if len(entry) != 1:
                raise ValueError("an op is one word and its value, as in `- transpose: [1, 0]`")
        return value

    @model_validator(mode="after")
    def _not_many_to_many(self) -> Self:
        if min(len(listed(self.source)), len(listed(self.target))) == 0:
            raise ValueError("a rule has at least one source and one target")
        return self


class DropModel(_Model):
    """Tensors that go nowhere, for a stated reason."""

    source: str | None = Field(default=None, description="names on the source side")
    target: str | None = Field(default=None, description="names on the target side (way back)")
    group: Literal["optimizer_slots", "counters", "ema"] | None = Field(
        default=None, description="a shipped group of names"
    )
    because: str = Field(default="", description="the reason, printed in the plan")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(x is not None for x in (self.source, self.target, self.group)) != 1:
            raise ValueError("give one of `source`, `target` and `group`")
        if self.group is None and not self.because:
            raise ValueError("say why: `because: ...`")
        return self


class MakeModel(_Model):
    """A target that has no source: a constant."""

    target: str = Field(description="a name template")
    each: str | None = Field(default=None, description="one for each source that this matches")
    dtype: str = Field(default="float32", description="NumPy name")
    shape: list[int | str] | None = Field(
        default=None, description="default: the shape of `each`, or a scalar"
    )
    fill: float | int | bool = Field(default=0, description="the value of every element")
    because: str = Field(default="", description="why it is made")

    @field_validator("dtype")
    @classmethod
    def _known(cls, value: str) -> str:
        if numeric(value).kind == "O":
            raise ValueError("strings cannot be made")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        constant(self.fill, numeric(self.dtype))
        return self


class ExampleModel(_Model):
    """What a rule makes of small arrays, for `mappings test`."""

    rule: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="which rule of this file, from 0"
    )
    source: str | None = Field(default=None, description="or: a name that the rule takes")
    target: str | list[str] | None = Field(
        default=None, description="the names that it makes of `source`"
    )
    given: Any = Field(alias="in", description="the array; several, in a list, for several sources")
    expected: Any = Field(alias="out", description="the array; several, in a list, for several")
    dtype: str = Field(default="float32", description="NumPy name")
    about: str = Field(default="", description="what it shows")

    @field_validator("dtype")
    @classmethod
    def _known(cls, value: str) -> str:
        if numeric(value).kind == "O":
            raise ValueError("strings are not mapped")
        return value

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.rule is None) == (self.source is None):
            raise ValueError("give one of `rule` and `source`")
        if self.target is not None and self.source is None:
            raise ValueError("`target` goes with `source`")
        return self


class MappingModel(_Model):
    """A mapping file."""

    mapping: Literal[1] = Field(description="version of the language")
    name: str = Field(default="", description="as in `mappings ls`: family/source-target")
    about: str = Field(default="", description="one sentence for people who choose")
    source: Side = Field(default_factory=Side)
    target: Side = Field(default_factory=Side)
    sizes: dict[str, Size] = Field(default_factory=dict, description="set from outside by --size")
    tables: dict[str, dict[str, str | int]] = Field(
        default_factory=dict, description="bijections: `{feature[b,k]}` looks `feature` up"
    )
    rules: list[RuleModel] = Field(description="their order means nothing")
    drop: list[DropModel] = Field(default_factory=list)
    make: list[MakeModel] = Field(default_factory=list)
    tests: list[ExampleModel] = Field(default_factory=list, description="run by `mappings test`")


def listed(value: str | list[str]) -> list[str]:
    """One or several, as a list."""
    return [value] if isinstance(value, str) else value


def op_names() -> list[str]:
    """The words an op may start with."""
    return sorted(OPS)
