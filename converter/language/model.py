"""The shape of a mapping file, as pydantic models: what may stand where, and of which type."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from converter.ops import OPS
from converter.ops.values import constant, numeric

Size = Annotated[int, Field(ge=1)]
Number = Annotated[int, Field(ge=0)]  # a size that may stand in names, too: no axis is of size 0
Contract = dict[str, str | int | float | bool | list[str | int | float]]


def _empty() -> list[Any]:
    """An empty list; pydantic asks for the signature of its maker, and that of `list` is slow."""
    return []


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)  # "yes" is no boolean


class Side(_Model):
    """What is known of a side besides its weights."""

    model: str = Field(default="", description="framework and model, e.g. `tf-slim vgg_16`")
    contract: Contract = Field(
        default_factory=dict,
        description="facts that the weights depend on: channels, range, mean, epsilon, padding",
    )


def _single_keys(value: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for entry in value:
        if len(entry) != 1:
            raise ValueError("an op is one word and its value, as in `- transpose: [1, 0]`")
    return value


Ops = Annotated[list[dict[str, Any]], AfterValidator(_single_keys)]


class BranchModel(_Model):
    """One of several sources or targets, with ops of its own."""

    name: str = Field(description="a name template")
    ops: Ops = Field(
        default_factory=_empty, description="applied before a source is joined, or after a cut"
    )


Names = str | BranchModel | list[str | BranchModel]


class RuleModel(_Model):
    """Which source tensors become which target tensors."""

    source: Names = Field(description="a name template, or several; `{name, ops}` for ops of one")
    target: Names = Field(description="a name template, or several; `{name, ops}` for ops of one")
    ops: Ops = Field(default_factory=_empty, description="applied in this order")
    sizes: dict[str, Size] = Field(default_factory=dict, description="sizes of axes in this rule")
    exclude: list[str] = Field(
        default_factory=_empty, alias="except", description="names that the rule leaves to others"
    )
    optional: bool = Field(default=False, description="matching nothing is no error")
    lossy: bool = Field(default=False, description="an op may lose values: there is no way back")
    about: str = Field(default="", description="why, for the reader")

    @model_validator(mode="after")
    def _not_many_to_many(self) -> Self:
        if min(len(listed(self.source)), len(listed(self.target))) == 0:
            raise ValueError("a rule has at least one source and one target")
        return self


class IncludeModel(_Model):
    """Another mapping, under names of this one."""

    mapping: str = Field(description="a shipped name, or a path beside this file: `./block.yaml`")
    source: str = Field(default="", description="stands before its source names, or around `{}`")
    target: str = Field(default="", description="stands before its target names, or around `{}`")
    sizes: dict[str, Number | str] = Field(
        default_factory=dict, description="its sizes: numbers, or names of this mapping's"
    )
    exclude: list[str] = Field(
        default_factory=_empty, alias="except", description="names that it leaves to others"
    )
    optional: bool = Field(default=False, description="matching nothing is no error")
    reverse: bool = Field(default=False, description="its way back")
    about: str = Field(default="", description="why, for the reader")


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
    optional: bool = Field(default=False, description="that `each` matches nothing is no error")

    @field_validator("dtype")
    @classmethod
    def _known(cls, value: str) -> str:
        if numeric(value).kind == "O":
            raise ValueError("strings cannot be made")
        return value

    @field_validator("fill")
    @classmethod
    def _fits(cls, value: float, info: ValidationInfo) -> float:
        if "dtype" in info.data:  # else that is what is wrong
            constant(value, numeric(info.data["dtype"]))
        return value

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.optional and self.each is None:
            raise ValueError("`optional` goes with `each`")
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


def _list_layers(schema: dict[str, Any]) -> None:
    from converter.layers import LAYERS  # most mappings compute none

    schema["enum"] = sorted(LAYERS)


class ProbeModel(_Model):
    """A layer whose weights this file maps, to be computed from those of either side."""

    layer: str = Field(description="what is computed", json_schema_extra=_list_layers)
    source: str = Field(description="whose convention the source's weights follow, e.g. `keras`")
    target: str = Field(description="whose convention the target's weights follow, e.g. `torch`")
    source_scope: str = Field(
        default="", description="stands before the layer's source names, or around `{}`"
    )
    target_scope: str = Field(
        default="", description="stands before the layer's target names, or around `{}`"
    )
    sizes: dict[str, Size] = Field(
        default_factory=dict, description="sizes of the layer, where its rules have fixed ones"
    )
    about: str = Field(default="", description="why, for the reader")

    @model_validator(mode="after")
    def _known(self) -> Self:
        from converter.layers import LAYERS

        if self.layer not in LAYERS:
            raise ValueError(f"no layer is called '{self.layer}'; there are {', '.join(LAYERS)}")
        layer = LAYERS[self.layer]
        for side in (self.source, self.target):
            if side not in layer.conventions:
                known = ", ".join(layer.conventions)
                raise ValueError(f"'{side}' is no convention of {self.layer}, which has {known}")
        unknown = sorted(self.sizes.keys() - layer.sizes.keys())
        if unknown:
            known = ", ".join(layer.sizes)
            raise ValueError(f"'{unknown[0]}' is no size of {self.layer}, which has {known}")
        return self


def _number(value: Any) -> Any:
    """The value, unless it only equals a number: `true` is no 1."""
    if isinstance(value, bool | float):
        raise ValueError("Input should be 1")  # noqa: TRY004 - pydantic collects ValueErrors
    return value


class MappingModel(_Model):
    """A mapping file."""

    model_config = ConfigDict(
        json_schema_extra={
            "required": ["mapping"],
            "anyOf": [{"required": ["rules"]}, {"required": ["include"]}],
        }
    )

    mapping: Annotated[Literal[1], BeforeValidator(_number)] = Field(
        description="version of the language"
    )
    name: str = Field(default="", description="as in `mappings ls`: family/source-target")
    about: str = Field(default="", description="one sentence for people who choose")
    source: Side = Field(default_factory=Side)
    target: Side = Field(default_factory=Side)
    sizes: dict[str, Number | None] = Field(
        default_factory=dict,
        description="set from outside by --size, or by an include; without a number: not known yet",
    )
    tables: dict[str, dict[str, str | int]] = Field(
        default_factory=dict, description="bijections: `{feature[b,k]}` looks `feature` up"
    )
    include: list[IncludeModel] = Field(
        default_factory=_empty, description="mappings of parts, each under names of this one"
    )
    rules: list[RuleModel] = Field(description="their order means nothing")
    drop: list[DropModel] = Field(default_factory=_empty)
    make: list[MakeModel] = Field(default_factory=_empty)
    probes: list[ProbeModel] = Field(
        default_factory=_empty,
        description="layers that `plan` and `mappings test` compute from both sides' weights",
    )
    tests: list[ExampleModel] = Field(default_factory=_empty, description="run by `mappings test`")

    @model_validator(mode="before")
    @classmethod
    def _of_includes(cls, value: Any) -> Any:
        alone = isinstance(value, dict) and "include" in value and "rules" not in value
        return {**value, "rules": []} if alone else value


def branches(value: Names) -> list[BranchModel]:
    """One or several, as a list, each with its ops."""
    several = value if isinstance(value, list) else [value]
    return [BranchModel(name=each) if isinstance(each, str) else each for each in several]


def listed(value: Names) -> list[str]:
    """The templates of one or several, as a list."""
    return [branch.name for branch in branches(value)]


def op_names() -> list[str]:
    """The words an op may start with."""
    return sorted(OPS)
