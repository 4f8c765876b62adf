"""A mapping, compiled: templates, ops with their sizes bound, and where in the file each stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

from converter.errors import Diagnostic, IrreversibleError, MappingError, Severity
from converter.language.names import Selector, Template
from converter.ops import Op
from converter.ops.pieces import Concat


class Place(NamedTuple):
    """Where something stands; lines and columns count from 1, 0 is unknown."""

    path: Path | None = None
    line: int = 0
    column: int = 0
    end_column: int = 0

    def diagnostic(
        self, code: str, message: str, *, severity: Severity = "error", **facts: Any
    ) -> Diagnostic:
        """A finding at this place; `facts` are `Diagnostic`'s other fields."""
        return Diagnostic(
            code,
            message,
            severity,
            path=self.path,
            line=self.line,
            column=self.column,
            end_column=self.end_column,
            **facts,
        )

    def __str__(self) -> str:
        return f"{self.path}:{self.line}" if self.path else f"line {self.line}"


NOWHERE = Place()


@dataclass(frozen=True)
class Rule:
    """Sources that become targets.  `op_places` is where each op stands, in the order of `ops`."""

    sources: tuple[Template, ...]
    targets: tuple[Template, ...]
    ops: tuple[Op, ...] = ()
    source_except: tuple[Selector | Template, ...] = ()
    target_except: tuple[Selector | Template, ...] = ()
    optional: bool = False
    about: str = ""
    place: Place = NOWHERE
    op_places: tuple[Place, ...] = ()

    @cached_property
    def target_holes(self) -> frozenset[str]:
        """The holes of all targets."""
        return frozenset[str]().union(*(template.holes for template in self.targets))

    @cached_property
    def gathered(self) -> list[str]:
        """Holes of the sources alone: all that differ in them become one target."""
        holes = frozenset[str]().union(*(template.holes for template in self.sources))
        return sorted(holes - self.target_holes)

    @cached_property
    def scattered(self) -> list[str]:
        """Holes of the targets alone: they number what one source becomes."""
        return sorted(self.target_holes.difference(*(template.holes for template in self.sources)))

    def inverse(self) -> Rule:
        """The rule of the way back; `IrreversibleError` when it or an op has none."""
        if self.gathered and len(self.sources) > 1:
            raise IrreversibleError("several sources are gathered at once")
        if self.gathered and any(isinstance(op, Concat) and op.sizes is None for op in self.ops):
            raise IrreversibleError(
                "concat does not know how many sources it had", hint="give its `sizes`, or stack"
            )
        return replace(
            self,
            sources=self.targets,
            targets=self.sources,
            ops=tuple(op.inverse() for op in reversed(self.ops)),
            source_except=self.target_except,
            target_except=self.source_except,
            op_places=tuple(reversed(self.op_places)),
        )

    def scoped(self, source: str, target: str) -> Rule:
        """The rule under a prefix on either side."""
        return replace(
            self,
            sources=tuple(template.scoped(source) for template in self.sources),
            targets=tuple(template.scoped(target) for template in self.targets),
            source_except=tuple(selector.scoped(source) for selector in self.source_except),
            target_except=tuple(selector.scoped(target) for selector in self.target_except),
        )

    def __str__(self) -> str:
        sides = (" + ".join(t.text for t in side) for side in (self.sources, self.targets))
        return " -> ".join(sides)


class Drop(NamedTuple):
    """Names that go nowhere, and why."""

    matches: Selector | Template
    because: str
    place: Place = NOWHERE

    def scoped(self, scope: str) -> Drop:
        """The same under a prefix."""
        return self._replace(matches=self.matches.scoped(scope))


class Make(NamedTuple):
    """Targets that have no source: constants, one for each match of `each`, or one."""

    target: Template
    dtype: str
    shape: tuple[int, ...] | None
    fill: float | int
    because: str
    each: Template | None = None
    place: Place = NOWHERE

    def scoped(self, source: str, target: str) -> Make:
        """The same under a prefix on either side."""
        each = self.each.scoped(source) if self.each else None
        return self._replace(target=self.target.scoped(target), each=each)


@dataclass(frozen=True)
class Rules:
    """Everything a mapping file says, ready to plan with.

    `drops` are for the source's names; `target_drops` for the target's, on the way back.
    `within` is the scope that the source is looked at under: names outside it are left alone.
    """

    rules: tuple[Rule, ...]
    drops: tuple[Drop, ...] = ()
    target_drops: tuple[Drop, ...] = ()
    makes: tuple[Make, ...] = ()
    name: str = ""
    about: str = ""
    path: Path | None = None
    source_model: str = ""
    target_model: str = ""
    source_contract: Mapping[str, Any] = field(default_factory=dict)
    target_contract: Mapping[str, Any] = field(default_factory=dict)
    within: str = ""
    target_within: str = ""
    only: Callable[[str], bool] | None = None
    undone: Rules | None = None  # what this is the inverse of

    def inverse(self) -> Rules:
        """The way back; `MappingError` with every rule that has none, and why."""
        if self.undone is not None:
            return self.undone
        constants = tuple(make.target for make in self.makes)  # no rule made these
        rules: list[Rule] = []
        problems: list[Diagnostic] = []
        for rule in self.rules:
            try:
                back = rule.inverse()
                rules.append(replace(back, source_except=back.source_except + constants))
            except IrreversibleError as error:
                message = f"no way back: {error.message}"
                problems.append(rule.place.diagnostic(error.code, message, hint=error.hint))
        if problems:
            raise MappingError(problems)
        made = tuple(
            Drop(make.target, make.because or "made on the way there", make.place)
            for make in self.makes
        )
        return replace(
            self,
            rules=tuple(rules),
            drops=self.target_drops + made,
            target_drops=self.drops,
            makes=(),
            source_model=self.target_model,
            target_model=self.source_model,
            source_contract=self.target_contract,
            target_contract=self.source_contract,
            within=self.target_within,
            target_within=self.within,
            undone=self,
        )

    def scoped(self, source: str = "", target: str = "") -> Self:
        """The mapping under a prefix on either side; source names outside it are left alone."""
        return replace(
            self,
            rules=tuple(rule.scoped(source, target) for rule in self.rules),
            drops=tuple(drop.scoped(source) for drop in self.drops),
            target_drops=tuple(drop.scoped(target) for drop in self.target_drops),
            makes=tuple(make.scoped(source, target) for make in self.makes),
            within=source + self.within,
            target_within=target + self.target_within,
            undone=None,
        )

    def selecting(self, only: Callable[[str], bool]) -> Self:
        """The mapping for the targets or sources that are chosen; the rest is left alone."""
        return replace(self, only=only, undone=None)
