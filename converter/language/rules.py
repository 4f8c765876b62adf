"""A mapping, compiled: templates, ops with their sizes bound, and where in the file each stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

from converter.errors import Diagnostic, IrreversibleError, MappingError, Severity
from converter.language.names import Bindings, Scope, Selector, Template, TemplateError
from converter.ops import Op
from converter.ops.pieces import Concat


class Place(NamedTuple):
    """Where something stands; lines and columns count from 1, 0 is unknown.

    `via` is the place of the include that brought it.
    """

    path: Path | None = None
    line: int = 0
    column: int = 0
    end_column: int = 0
    via: Place | None = None

    def diagnostic(
        self, code: str, message: str, *, severity: Severity = "error", **facts: Any
    ) -> Diagnostic:
        """A finding at this place; `facts` are `Diagnostic`'s other fields."""
        return Diagnostic(
            code,
            f"{message} (included at {self.via})" if self.via else message,
            severity,
            path=self.path,
            line=self.line,
            column=self.column,
            end_column=self.end_column,
            **facts,
        )

    def included(self, at: Place) -> Place:
        """The same place, in a file that is included at another."""
        return self._replace(via=self.via.included(at) if self.via else at)

    def __str__(self) -> str:
        here = f"{self.path}:{self.line}" if self.path else f"line {self.line}"
        return f"{here}, included at {self.via}" if self.via else here


NOWHERE = Place()
REMARKS = frozenset({"architecture", "rounding"})  # of a contract: for people, never compared


@dataclass(frozen=True)
class Rule:
    """Sources that become targets.

    `place` is where its sources stand, `op_places` where each op does, in the order of `ops`.
    """

    sources: tuple[Template, ...]
    targets: tuple[Template, ...]
    ops: tuple[Op, ...] = ()
    source_except: tuple[Selector | Template, ...] = ()
    target_except: tuple[Selector | Template, ...] = ()
    optional: bool = False
    about: str = ""
    place: Place = NOWHERE
    op_places: tuple[Place, ...] = ()
    target_place: Place = NOWHERE

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

    @cached_property
    def one_to_one(self) -> bool:
        """Does each source become targets by itself, with no hole that counts?"""
        return len(self.sources) == 1 and not self.gathered and not self.scattered

    def leaves(self, name: str, bindings: Bindings) -> bool:
        """Does the rule leave this source, or a target of it, to others?"""
        return _left(name, bindings, self.source_except, self.targets, self.target_except)

    def leaves_target(self, name: str, bindings: Bindings) -> bool:
        """Does the rule leave this target, or a source of it, to others?"""
        return _left(name, bindings, self.target_except, self.sources, self.source_except)

    def within(
        self, source: Scope, target: Scope, place: Place, exclude: tuple[Selector, ...]
    ) -> Rule:
        """The rule as it is included at a place, with more names that it leaves to others."""
        return replace(
            self,
            sources=tuple(template.within(source) for template in self.sources),
            targets=tuple(template.within(target) for template in self.targets),
            source_except=(*(s.within(source) for s in self.source_except), *exclude),
            target_except=(*(s.within(target) for s in self.target_except), *exclude),
            place=self.place.included(place),
            op_places=tuple(op.included(place) for op in self.op_places),
            target_place=self.target_place.included(place),
        )

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


def _left(
    name: str,
    bindings: Bindings,
    own: tuple[Selector | Template, ...],
    others: tuple[Template, ...],
    theirs: tuple[Selector | Template, ...],
) -> bool:
    """Is a name of one side among those left, or a name of the other side that goes with it?"""
    if not own and not theirs:  # as most rules have it, and there may be 100,000 names
        return False
    if any(selector(name) for selector in own):
        return True
    for template in others if theirs else ():
        if template.holes <= bindings.keys():
            try:
                other = template.format(bindings)
            except TemplateError:
                continue
            if any(selector(other) for selector in theirs):
                return True
    return False


class Drop(NamedTuple):
    """Names that go nowhere, and why; those of a `group` are no rule's."""

    matches: Selector | Template
    because: str
    place: Place = NOWHERE
    group: bool = False

    def scoped(self, scope: str) -> Drop:
        """The same under a prefix."""
        return self._replace(matches=self.matches.scoped(scope))

    def within(self, scope: Scope, place: Place) -> Drop:
        """The same as it is included at a place."""
        matches = self.matches.within(scope)
        return self._replace(matches=matches, place=self.place.included(place))


class Make(NamedTuple):
    """Targets that have no source: constants, one for each match of `each`, or one."""

    target: Template
    dtype: str
    shape: tuple[int, ...] | None
    fill: float | int
    because: str
    each: Template | None = None
    place: Place = NOWHERE
    optional: bool = False

    def scoped(self, source: str, target: str) -> Make:
        """The same under a prefix on either side."""
        each = self.each.scoped(source) if self.each else None
        return self._replace(target=self.target.scoped(target), each=each)

    def within(self, source: Scope, target: Scope, place: Place) -> Make:
        """The same as it is included at a place."""
        return self._replace(
            target=self.target.within(target),
            each=self.each.within(source) if self.each else None,
            place=self.place.included(place),
        )


class Probe(NamedTuple):
    """A layer whose weights `rules`, those of one file, map: a proof of what they do.

    `source` and `target` are conventions of `converter.layers`; `sizes` are those of the file and
    of the probe; `place` is where it stands, and through which includes it came.
    """

    layer: str
    source: str
    target: str
    rules: Rules
    source_scope: str = ""
    target_scope: str = ""
    sizes: Mapping[str, int] = {}
    place: Place = NOWHERE

    def __str__(self) -> str:
        return f"{self.layer}, {self.source} to {self.target}"


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
    probes: tuple[Probe, ...] = ()
    undone: Rules | None = None  # what this is the inverse of
    texts: Mapping[Path, str] = field(default_factory=dict)  # of the file, then of its includes

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

    def included(
        self,
        source: Scope,
        target: Scope,
        place: Place,
        exclude: tuple[Selector, ...] = (),
        *,
        optional: bool = False,
    ) -> Self:
        """The mapping as it is included at a place; `TemplateError` when names become ambiguous."""
        rules = (rule.within(source, target, place, exclude) for rule in self.rules)
        makes = (make.within(source, target, place) for make in self.makes)
        return replace(
            self,
            rules=tuple(replace(r, optional=True) if optional else r for r in rules),
            drops=tuple(drop.within(source, place) for drop in self.drops),
            target_drops=tuple(drop.within(target, place) for drop in self.target_drops),
            probes=tuple(p._replace(place=p.place.included(place)) for p in self.probes),
            makes=tuple(make._replace(optional=make.optional or optional) for make in makes),
            undone=None,
        )

    def selecting(self, only: Callable[[str], bool]) -> Self:
        """The mapping for the targets or sources that are chosen; the rest is left alone."""
        return replace(self, only=only, undone=None)
