"""The shape of a mapping file, as records: what may stand where, and of which type."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from converter.ops import OPS
from converter.ops.values import constant, numeric
from converter.record import AtLeast, Before, Check, FieldError, Record, field

Size = Annotated[int, AtLeast(1)]
Number = Annotated[int, AtLeast(0)]  # a size that may stand in names, too: no axis is of size 0
Contract = dict[str, str | int | float | bool | list[str | int | float]]


class _Model(Record):
    strict: ClassVar[bool] = True  # "yes" is no boolean


class Side(_Model):
    """What is known of a side besides its weights."""

    model: str = field(default="", about="framework and model, e.g. `tf-slim vgg_16`")
    contract: Contract = field(
        default_factory=dict,
        about="facts that the weights depend on: channels, range, mean, epsilon, padding",
    )


def _single_keys(value: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for entry in value:
        if len(entry) != 1:
            raise ValueError("an op is one word and its value, as in `- transpose: [1, 0]`")
    return value


Ops = Annotated[list[dict[str, Any]], Check(_single_keys)]


class BranchModel(_Model):
    """One of several sources or targets, with ops of its own."""

    name: str = field(about="a name template")
    ops: Ops = field(
        default_factory=list, about="applied before a source is joined, or after a cut"
    )


Names = str | BranchModel | list[str | BranchModel]


class RuleModel(_Model):
    """Which source tensors become which target tensors."""

    source: Names = field(about="a name template, or several; `{name, ops}` for ops of one")
    target: Names = field(about="a name template, or several; `{name, ops}` for ops of one")
    ops: Ops = field(default_factory=list, about="applied in this order")
    sizes: dict[str, Size] = field(default_factory=dict, about="sizes of axes in this rule")
    exclude: list[str] = field(
        default_factory=list, key="except", about="names that the rule leaves to others"
    )
    optional: bool = field(default=False, about="matching nothing is no error")
    lossy: bool = field(default=False, about="an op may lose values: there is no way back")
    about: str = field(default="", about="why, for the reader")

    def check(self) -> None:
        if min(len(listed(self.source)), len(listed(self.target))) == 0:
            raise ValueError("a rule has at least one source and one target")


class IncludeModel(_Model):
    """Another mapping, under names of this one."""

    mapping: str = field(about="a shipped name, or a path beside this file: `./block.yaml`")
    source: str = field(default="", about="stands before its source names, or around `{}`")
    target: str = field(default="", about="stands before its target names, or around `{}`")
    sizes: dict[str, Number | str] = field(
        default_factory=dict, about="its sizes: numbers, or names of this mapping's"
    )
    exclude: list[str] = field(
        default_factory=list, key="except", about="names that it leaves to others"
    )
    optional: bool = field(default=False, about="matching nothing is no error")
    reverse: bool = field(default=False, about="its way back")
    about: str = field(default="", about="why, for the reader")


class DropModel(_Model):
    """Tensors that go nowhere, for a stated reason."""

    source: str | None = field(default=None, about="names on the source side")
    target: str | None = field(default=None, about="names on the target side (way back)")
    group: Literal["optimizer_slots", "counters", "ema"] | None = field(
        default=None, about="a shipped group of names"
    )
    because: str = field(default="", about="the reason, printed in the plan")

    def check(self) -> None:
        if sum(x is not None for x in (self.source, self.target, self.group)) != 1:
            raise ValueError("give one of `source`, `target` and `group`")
        if self.group is None and not self.because:
            raise ValueError("say why: `because: ...`")


def _numbers(problem: str) -> Check:
    """Check that a dtype is one of numbers."""

    def checked(value: str) -> str:
        if numeric(value).kind == "O":
            raise ValueError(problem)
        return value

    return Check(checked)


class MakeModel(_Model):
    """A target that has no source: a constant."""

    target: str = field(about="a name template")
    each: str | None = field(default=None, about="one for each source that this matches")
    dtype: Annotated[str, _numbers("strings cannot be made")] = field(
        default="float32", about="NumPy name"
    )
    shape: list[int | str] | None = field(
        default=None, about="default: the shape of `each`, or a scalar"
    )
    fill: float | int | bool = field(default=0, about="the value of every element")
    because: str = field(default="", about="why it is made")
    optional: bool = field(default=False, about="that `each` matches nothing is no error")

    def check(self) -> None:
        try:
            constant(self.fill, numeric(self.dtype))
        except ValueError as error:
            raise FieldError(str(error), "fill") from error
        if self.optional and self.each is None:
            raise ValueError("`optional` goes with `each`")


class ExampleModel(_Model):
    """What a rule makes of small arrays, for `mappings test`."""

    rule: Annotated[int, AtLeast(0)] | None = field(
        default=None, about="which rule of this file, from 0"
    )
    source: str | None = field(default=None, about="or: a name that the rule takes")
    target: str | list[str] | None = field(
        default=None, about="the names that it makes of `source`"
    )
    given: Any = field(key="in", about="the array; several, in a list, for several sources")
    expected: Any = field(key="out", about="the array; several, in a list, for several")
    dtype: Annotated[str, _numbers("strings are not mapped")] = field(
        default="float32", about="NumPy name"
    )
    about: str = field(default="", about="what it shows")

    def check(self) -> None:
        if (self.rule is None) == (self.source is None):
            raise ValueError("give one of `rule` and `source`")
        if self.target is not None and self.source is None:
            raise ValueError("`target` goes with `source`")


class ProbeModel(_Model):
    """A layer whose weights this file maps, to be computed from those of either side."""

    layer: str = field(about="what is computed")
    source: str = field(about="whose convention the source's weights follow, e.g. `keras`")
    target: str = field(about="whose convention the target's weights follow, e.g. `torch`")
    source_scope: str = field(
        default="", about="stands before the layer's source names, or around `{}`"
    )
    target_scope: str = field(
        default="", about="stands before the layer's target names, or around `{}`"
    )
    sizes: dict[str, Size] = field(
        default_factory=dict, about="sizes of the layer, where its rules have fixed ones"
    )
    about: str = field(default="", about="why, for the reader")

    def check(self) -> None:
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


def _number(value: Any) -> Any:
    """The value, unless it only equals a number: `true` is no 1."""
    if isinstance(value, bool | float):
        raise ValueError("Input should be 1")  # noqa: TRY004 - pydantic collects ValueErrors
    return value


class MappingModel(_Model):
    """A mapping file."""

    mapping: Annotated[Literal[1], Before(_number)] = field(about="version of the language")
    name: str = field(default="", about="as in `mappings ls`: family/source-target")
    about: str = field(default="", about="one sentence for people who choose")
    source: Side = field(default_factory=Side)
    target: Side = field(default_factory=Side)
    sizes: dict[str, Number | None] = field(
        default_factory=dict,
        about="set from outside by --size, or by an include; without a number: not known yet",
    )
    tables: dict[str, dict[str, str | int]] = field(
        default_factory=dict, about="bijections: `{feature[b,k]}` looks `feature` up"
    )
    include: list[IncludeModel] = field(
        default_factory=list, about="mappings of parts, each under names of this one"
    )
    rules: list[RuleModel] = field(about="their order means nothing")
    drop: list[DropModel] = field(default_factory=list)
    make: list[MakeModel] = field(default_factory=list)
    probes: list[ProbeModel] = field(
        default_factory=list,
        about="layers that `plan` and `mappings test` compute from both sides' weights",
    )
    tests: list[ExampleModel] = field(default_factory=list, about="run by `mappings test`")

    @classmethod
    def long(cls, value: Any) -> Any:
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
