"""(specs, rules) → plan: every step, every problem, before any value is read.

A plan is a ledger.  Every source tensor is mapped, dropped for a stated reason, or a problem; every
target is made exactly once, or a problem.  Ops are applied to views without data, so what a plan
says of shapes is what the engine will do.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from converter.errors import Diagnostic, MappingError, OpError
from converter.language.load import load
from converter.language.names import Bindings, Selector, Template, TemplateError, parse, split
from converter.language.rules import REMARKS, Drop, Make, Place, Rule, Rules
from converter.layout import Array, Computed, View
from converter.ops import SHIPPED
from converter.ops.base import On
from converter.ops.values import CastFloats
from converter.tensors import Checkpoint, Tensor, TensorSpec, dtype_of, no_collections

CONTRACT = "converter.contract"  # the metadata key under which an output carries its contract
NEAR = 3  # names suggested for one that did not match
MAX_SUGGESTED = 50  # unmatched names for which suggestions are looked up


class _Nothing:
    """A storage without data, for inferring shapes."""

    def __init__(self, spec: TensorSpec) -> None:
        self.dtype = spec.dtype
        self.size = spec.size

    def read(self, start: int, out: Array) -> None:
        """Plans read nothing."""
        raise AssertionError("a plan never reads values")


class Step(NamedTuple):
    """What makes one target: its sources, and the rule whose ops turn them into it.

    `piece` is which of the rule's results it is; `doubts` is what no shape can confirm.
    """

    target: str
    spec: TensorSpec
    sources: tuple[str, ...]
    rule: Rule | Make
    piece: int = 0
    pieces: int = 1
    doubts: tuple[str, ...] = ()

    def view(self, sources: Mapping[str, Tensor]) -> View:
        """The target's values, not yet computed."""
        if isinstance(self.rule, Make):
            return _constant(self.spec, self.rule.fill)
        views = [sources[name].view for name in self.sources]
        return _apply(self.rule, views, self.pieces)[self.piece]

    @property
    def exactness(self) -> str:
        """`exact`, `rounding` or `lossy`: the worst of its ops."""
        if isinstance(self.rule, Make):
            return "exact"
        kinds = {op.exactness for op in self.rule.ops}
        return next((kind for kind in ("lossy", "rounding") if kind in kinds), "exact")


class Plan(NamedTuple):
    """The ledger of one conversion: what is made, what is dropped, what is wrong."""

    rules: Rules
    sources: Mapping[str, TensorSpec]
    steps: tuple[Step, ...]
    dropped: Mapping[str, str]  # source name → reason
    left: tuple[str, ...]  # source names outside the scope or the selection
    problems: tuple[Diagnostic, ...]

    @property
    def errors(self) -> tuple[Diagnostic, ...]:
        """The problems that forbid to go on."""
        return tuple(problem for problem in self.problems if problem.severity == "error")

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Every target with its spec."""
        return {step.target: step.spec for step in self.steps}

    @property
    def made(self) -> tuple[Step, ...]:
        """The targets that have no source."""
        return tuple(step for step in self.steps if isinstance(step.rule, Make))

    @property
    def source_nbytes(self) -> int:
        """Bytes of the source tensors that are used."""
        used = {name for step in self.steps for name in step.sources}
        return sum(self.sources[name].nbytes for name in used)

    @property
    def target_nbytes(self) -> int:
        """Bytes of all targets."""
        return sum(step.spec.nbytes for step in self.steps)

    def check(self) -> Plan:
        """This plan; raises `MappingError` with all errors when there are any."""
        if self.errors:
            raise MappingError(self.errors)
        return self

    def apply(self, source: Checkpoint) -> Checkpoint:
        """The mapped checkpoint: a checkpoint like any other, nothing read yet."""
        self.check()
        tensors = {step.target: Tensor(step.view(source)) for step in self.steps}
        kept = dict(source.metadata)
        contract = self.rules.target_contract
        if contract:
            kept[CONTRACT] = json.dumps(dict(contract), sort_keys=True)
        return Checkpoint(
            tensors,
            source.format,
            source.path,
            kept,
            self._ties(source),
            source.unsupported,
            on_close=source.close,
        )

    def _ties(self, source: Checkpoint) -> tuple[tuple[str, ...], ...]:
        """Groups of targets that plain renames make of tied sources."""
        renamed = {
            step.sources[0]: step.target
            for step in self.steps
            if isinstance(step.rule, Rule) and not step.rule.ops
        }
        groups = (tuple(renamed[n] for n in group if n in renamed) for group in source.ties)
        return tuple(group for group in groups if len(group) > 1)


class Port(NamedTuple):
    """A mapping, ready to use: rules, and what can be done with them."""

    rules: Rules

    def plan(self, source: Checkpoint | Mapping[str, TensorSpec]) -> Plan:
        """The plan for a checkpoint (or its specs); never reads values.

        A tensor that no rule takes by its name is taken by an alias that one does take.
        """
        if isinstance(source, Checkpoint):
            return plan(self.rules, source.specs, source.metadata, source.aliases)
        return plan(self.rules, source, {})

    def __call__(self, source: Checkpoint) -> Checkpoint:
        """The mapped checkpoint, lazily; `MappingError` when the plan has errors."""
        return self.plan(source).apply(source)

    def inverse(self) -> Port:
        """The way back; `MappingError` when a rule has none."""
        return Port(self.rules.inverse())

    def scoped(self, source: str = "", target: str = "") -> Port:
        """The mapping under a prefix on either side; source names outside it are left alone."""
        return Port(self.rules.scoped(source, target))

    def only(self, chosen: Callable[[str], bool]) -> Port:
        """The mapping for the sources or targets that are chosen; the rest is left alone."""
        return Port(self.rules.selecting(chosen))


def port(name: str | Path, *, sizes: Mapping[str, int] | None = None) -> Port:
    """The mapping of a shipped name or a file, ready to use; `sizes` override the file's.

    Raises `MappingError` with every problem of the file, `NotFoundError` when there is none.
    """
    return Port(load(name, sizes))


def identity() -> Port:
    """The mapping that changes nothing: every tensor keeps its name."""
    source, target = parse(["{name:path}", "{name}"], {})
    return Port(Rules((Rule((source,), (target,)),)))


def casting(dtype: str) -> Port:
    """The mapping that casts floating-point numbers; every other tensor stays as it is.

    Raises ValueError when it is no dtype of floating-point numbers.
    """
    (rule,) = identity().rules.rules
    return Port(Rules((replace(rule, ops=(CastFloats.read(dtype),)),), name=f"cast to {dtype}"))


def plan(
    rules: Rules,
    specs: Mapping[str, TensorSpec],
    metadata: Mapping[str, str] | None = None,
    aliases: Mapping[str, Sequence[str]] | None = None,
) -> Plan:
    """Work out every step for these source tensors; problems are in the plan, never raised."""
    with no_collections():
        return _Planner(rules, specs, aliases or {}).plan(metadata or {})


Claim = TypeVar("Claim")


class _Group(NamedTuple):
    """The sources of one application of a rule: per source template, (extra holes, name)."""

    bindings: Bindings
    members: list[list[tuple[Bindings, str]]]


class _Index(Generic[Claim]):
    """Finds the rules and drops that may take a name by one literal segment of it, the rarest.

    A hundred thousand names through hundreds of rules must not mean as many matches as pairs.
    """

    def __init__(self, items: Iterable[tuple[Claim, Template | Selector]]) -> None:
        everything = [(item, pattern.anchors) for item, pattern in items]
        often = Counter(anchor for _, anchors in everything for anchor in anchors)
        self.anchored: dict[tuple[int, str], list[Claim]] = defaultdict(list)
        self.others: list[Claim] = []
        for item, anchors in everything:
            if anchors:
                self.anchored[min(anchors, key=lambda anchor: often[anchor])].append(item)
            else:
                self.others.append(item)
        self.positions = sorted({position for position, _ in self.anchored})

    def __call__(self, segments: Sequence[str]) -> list[Claim]:
        """The items whose pattern may fit the name of these segments."""
        found = list(self.others)
        for position in self.positions:
            if -len(segments) <= position < len(segments):
                found += self.anchored.get((position, segments[position]), ())
        return found


class _Planner:
    def __init__(
        self,
        rules: Rules,
        specs: Mapping[str, TensorSpec],
        aliases: Mapping[str, Sequence[str]],
    ) -> None:
        self.rules, self.specs, self.aliases = rules, specs, aliases
        self.called: dict[str, str] = {}  # names of which an alias was taken
        self.problems: list[Diagnostic] = []
        self.steps: list[Step] = []
        self.dropped: dict[str, str] = {}
        self.left: list[str] = []
        self.inferred: dict[Any, tuple[list[TensorSpec], tuple[str, ...]]] = {}

    def plan(self, metadata: Mapping[str, str]) -> Plan:
        self.check_contract(metadata)
        groups: dict[int, dict[tuple[Any, ...], _Group]] = defaultdict(dict)
        unmatched = self.claim_all(groups)
        for index, rule in enumerate(self.rules.rules):
            if index not in groups and not rule.optional and self.rules.only is None:
                self.unused(rule.place, "rule", *rule.sources)
            for group in groups[index].values():
                self.apply(rule, group)
        for make in self.rules.makes:
            self.make(make)
        if self.rules.only is not None:
            self.select()
        self.check_targets()
        self.report_unmatched(unmatched)
        if not self.steps and not self.problems:
            self.problems.append(Diagnostic("PLN211", "nothing would be converted"))
        return Plan(
            self.rules,
            self.specs,
            tuple(self.steps),
            self.dropped,
            tuple(self.left),
            tuple(self.problems),
        )

    def claim_all(self, groups: dict[int, dict[tuple[Any, ...], _Group]]) -> list[str]:
        """Give every source name to its rule or drop; the names that nothing takes."""
        rules = _Index(
            ((index, nth), template)
            for index, rule in enumerate(self.rules.rules)
            for nth, template in enumerate(rule.sources)
        )
        drops = _Index((drop, drop.matches) for drop in self.rules.drops)
        unmatched = []

        def claimed(name: str, called: str) -> bool:
            if not called.startswith(self.rules.within):
                return False
            segments = split(called)
            return self.claim(name, called, rules(segments), drops(segments), groups)

        for name in self.specs:
            if claimed(name, name):
                continue
            aliases = self.aliases.get(name, ())  # only now: they may have to be worked out
            alias = next((alias for alias in aliases if claimed(name, alias)), None)
            if alias is not None:
                self.called[name] = alias
            elif name.startswith(self.rules.within):
                unmatched.append(name)
            else:
                self.left.append(name)
        return unmatched

    def claim(
        self,
        name: str,
        called: str,
        candidates: Sequence[tuple[int, int]],
        drops: Sequence[Drop],
        groups: dict[int, dict[tuple[Any, ...], _Group]],
    ) -> bool:
        """Find the one rule or drop for a source that is so called; False when there is none."""
        fitting = [drop for drop in drops if drop.matches(called)]
        claims: list[Rule | Drop] = []
        for index, nth in () if any(drop.group for drop in fitting) else candidates:
            rule = self.rules.rules[index]
            bindings = rule.sources[nth].match(called)
            if bindings is not None and not rule.leaves(called, bindings):
                claims.append(rule)
                self.join(groups[index], rule, nth, bindings, name)
        if fitting:  # whatever their order in the file
            drop = min(fitting, key=lambda drop: (drop.group, drop.matches.text, drop.because))
            self.dropped[name] = drop.because
            claims.append(drop)
        if len(claims) > 1:
            self.claimed_twice(name, claims)
        return bool(claims)

    def join(
        self,
        groups: dict[tuple[Any, ...], _Group],
        rule: Rule,
        nth: int,
        bindings: Bindings,
        name: str,
    ) -> None:
        """Add a source to the application of a rule that its shared holes say."""
        if rule.one_to_one:
            groups[name,] = _Group(bindings, [[({}, name)]])
            return
        shared = rule.target_holes
        key = {hole: value for hole, value in bindings.items() if hole in shared}
        extra = {hole: value for hole, value in bindings.items() if hole not in shared}
        group = groups.setdefault(
            tuple(sorted(key.items())), _Group(key, [[] for _ in rule.sources])
        )
        group.members[nth].append((extra, name))

    def apply(self, rule: Rule, group: _Group) -> None:
        """Plan the targets of one application of a rule."""
        names = self.gathered(rule, group)
        if names is None:
            return
        try:
            specs, doubts = self.infer(rule, [self.specs[name] for name in names])
            targets = self.targets(rule, group.bindings, len(specs))
        except OpError as error:
            self.op_does_not_fit(rule, names, error)
            return
        except TemplateError as error:
            self.problems.append(
                rule.place.diagnostic("PLN206", str(error), tensor=names[0], found=names[0])
            )
            return
        for piece, (target, spec) in enumerate(zip(targets, specs, strict=True)):
            step = Step(target, spec, tuple(names), rule, piece, len(rule.targets), doubts)
            self.steps.append(step)

    def infer(
        self, rule: Rule, sources: list[TensorSpec]
    ) -> tuple[list[TensorSpec], tuple[str, ...]]:
        """The specs that a rule makes of these, and its doubts; layers repeat, so it is kept."""
        key = (id(rule), *sources)
        if key not in self.inferred:
            ghosts = [View.over(_Nothing(spec), spec.shape) for spec in sources]
            doubts: list[str] = []
            views = _apply(rule, ghosts, len(rule.targets), doubts)
            specs = [TensorSpec(view.shape, view.dtype) for view in views]
            self.inferred[key] = specs, tuple(doubts)
        return self.inferred[key]

    def gathered(self, rule: Rule, group: _Group) -> list[str] | None:
        """The group's source names in order; None after noting what is missing."""
        if rule.one_to_one:
            return [group.members[0][0][1]]
        names: list[str] = []
        for template, members in zip(rule.sources, group.members, strict=True):
            if not members:
                known = next(name for row in group.members for _, name in row)
                missing = _wanted(template, group.bindings)
                self.problems.append(
                    rule.place.diagnostic(
                        "PLN205",
                        f"'{missing}' is missing, which the rule needs beside '{known}'",
                        tensor=missing,
                        hint=_did_you_mean(missing, self.specs),
                    )
                )
                return None
            members.sort(key=lambda member: sorted(member[0].items()))
            names += [name for _, name in members]
            counted = [next(iter(extra.values())) for extra, _ in members if len(extra) == 1]
            numbers = [value for value in counted if isinstance(value, int)]
            if numbers and numbers != list(range(len(numbers))):
                gap = next(k for k, value in enumerate(numbers) if k != value)
                where = "between its first and last" if gap else f"before {numbers[0]}"
                self.problems.append(
                    rule.place.diagnostic(
                        "PLN205",
                        f"`{template.text}`: number {gap} is missing {where}",
                        tensor=names[-1],
                        found=", ".join(map(str, numbers)),
                        hint="numbers gather from 0 without gaps; write {i+1} where names count "
                        "from 1",
                    )
                )
                return None
        return names

    @staticmethod
    def targets(rule: Rule, bindings: Bindings, count: int) -> list[str]:
        """The names of the results: one for each target template, or numbered by its own hole."""
        first, new = rule.targets[0], rule.scattered
        if len(rule.targets) == 1 and len(new) == 1:
            return [first.format({**bindings, new[0]: number}) for number in range(count)]
        if len(rule.targets) != count:
            raise OpError(
                "the rule's ops do not give one tensor for each target",
                expected=f"{len(rule.targets)} tensors",
                found=f"{count} tensors",
            )
        return [template.format(bindings) for template in rule.targets]

    def make(self, make: Make) -> None:
        """Plan a constant's targets."""
        dtype = dtype_of(make.dtype)
        if make.each is None:
            spec = TensorSpec(make.shape or (), dtype)
            self.steps.append(Step(make.target.format({}), spec, (), make))
            return
        matched = False
        for name, spec in self.specs.items():
            bindings = make.each.match(self.called.get(name, name))
            if bindings is None:
                continue
            matched = True
            shape = spec.shape if make.shape is None else make.shape
            try:
                target = make.target.format(bindings)
            except TemplateError as error:
                self.problems.append(
                    make.place.diagnostic("PLN206", str(error), tensor=name, found=name)
                )
                continue
            self.steps.append(Step(target, TensorSpec(shape, dtype), (), make))
        if not (matched or make.optional or self.rules.only or self.takes(make.each)):
            self.unused(make.place, "constant", make.each)

    def takes(self, template: Template) -> bool:
        """Is this what a rule takes, so that it is the rule's to say that nothing fits?"""
        return any(template == each for rule in self.rules.rules for each in rule.sources)

    def select(self) -> None:
        """Keep the steps whose target, or a source, is chosen; leave the other sources alone."""
        chosen = self.rules.only or (lambda _: True)
        kept = [s for s in self.steps if chosen(s.target) or any(map(chosen, s.sources))]
        used = {name for step in kept for name in step.sources}
        mapped = {name for step in self.steps for name in step.sources}
        self.left += [name for name in self.specs if name in mapped - used]
        self.steps = kept

    # What can be wrong, each said once, with the place of the rule.

    def check_contract(self, metadata: Mapping[str, str]) -> None:
        """A checkpoint that carries a contract must carry the one that the mapping expects."""
        try:
            carried = json.loads(metadata.get(CONTRACT, "{}"))
        except (ValueError, RecursionError):
            carried = None
        if not isinstance(carried, dict):
            self.problems.append(Diagnostic("PLN210", "the source's contract cannot be read"))
            return
        for key, wanted in self.rules.source_contract.items():
            if key in carried and key not in REMARKS and carried[key] != wanted:
                self.problems.append(
                    Diagnostic(
                        "PLN210",
                        f"the source's contract says another {key}",
                        path=self.rules.path,
                        expected=f"{key}: {wanted}",
                        found=f"{key}: {carried[key]}",
                        hint="was it converted before? applied twice, a reversal undoes itself",
                    )
                )

    def unused(self, place: Place, what: str, *sources: Template) -> None:
        texts = ", ".join(f"`{template.text}`" for template in sources)
        near = _did_you_mean(sources[0].text, self.specs)
        self.problems.append(
            place.diagnostic(
                "PLN202",
                f"the {what} matches nothing: no tensor is called {texts}",
                hint=near or f"if that is all right, mark the {what} `optional: true`",
            )
        )

    def claimed_twice(self, name: str, claims: Sequence[Rule | Drop]) -> None:
        others = " and ".join(_claim_text(claim) for claim in claims)
        self.problems.append(
            claims[-1].place.diagnostic(
                "PLN203",
                f"'{name}' is claimed more than once: by {others}",
                tensor=name,
                hint="leave it to one of them with `except`",
            )
        )

    def op_does_not_fit(self, rule: Rule, names: Sequence[str], error: OpError) -> None:
        nth = getattr(error, "op_index", None)
        place = rule.place if nth is None else rule.op_places[nth]
        self.problems.append(
            place.diagnostic(
                error.code,
                f"{error.message} ({', '.join(names)})",
                tensor=names[0],
                expected=error.expected,
                found=error.found,
                hint=error.hint,
            )
        )

    def check_targets(self) -> None:
        """Every target must be made once."""
        makers: dict[str, Step] = {}
        for step in self.steps:
            other = makers.setdefault(step.target, step)
            if other is not step:
                first = f"{other.rule.place} (from {', '.join(other.sources) or 'a constant'})"
                self.problems.append(
                    step.rule.place.diagnostic(
                        "PLN204",
                        f"'{step.target}' is made twice: here from "
                        f"{', '.join(step.sources) or 'a constant'}, and by {first}",
                        tensor=step.target,
                    )
                )

    def report_unmatched(self, names: Sequence[str]) -> None:
        """A source tensor that nothing claims is an error: it is mapped or dropped, never lost."""
        only = self.rules.only
        for count, name in enumerate(names):
            if only is not None and not only(name):
                self.left.append(name)
                continue
            near = self.near_rules(name) if count < MAX_SUGGESTED else ""
            self.problems.append(
                Diagnostic(
                    "PLN201",
                    f"no rule takes '{name}' ({self.specs[name]})",
                    path=self.rules.path,
                    tensor=name,
                    hint=near or "add a rule, or drop it with a reason",
                )
            )

    def near_rules(self, name: str) -> str:
        texts = {t.text: rule for rule in self.rules.rules for t in rule.sources}
        near = difflib.get_close_matches(name, texts, 1)
        return f"the nearest rule is `{near[0]}` at {texts[near[0]].place}" if near else ""


def _apply(
    rule: Rule, views: Sequence[View], pieces: int, doubts: list[str] | None = None
) -> list[View]:
    """Run a rule's ops over views; notes doubts when a list is given for them."""
    result = list(views)
    for index, op in enumerate(rule.ops):
        try:
            if doubts is not None:
                doubts += [text for text in op.doubts(result) if text not in doubts]
            result = op.apply(result, pieces)
        except OpError as error:
            error.op_index = index  # type: ignore[attr-defined]
            raise
        except Exception as cause:
            if op.name in (*SHIPPED, On.name):  # our bug
                raise
            failure = OpError(f"{op.name} fails: {type(cause).__name__}: {cause}")
            failure.op_index = index  # type: ignore[attr-defined]
            raise failure from cause
    return result


def trace(rule: Rule, specs: Sequence[TensorSpec], pieces: int) -> Iterator[list[TensorSpec]]:
    """The specs after each op of a rule."""
    views = [View.over(_Nothing(spec), spec.shape) for spec in specs]
    for op in rule.ops:
        views = op.apply(views, pieces)
        yield [TensorSpec(view.shape, view.dtype) for view in views]


def _constant(spec: TensorSpec, fill: float) -> View:
    def compute() -> Array:
        return np.full(spec.shape, fill, spec.dtype)

    return View.over(Computed(spec.size, spec.dtype, compute), spec.shape)


def _wanted(template: Template, bindings: Bindings) -> str:
    try:
        return template.format(bindings)
    except (TemplateError, KeyError):
        return template.text


def _claim_text(claim: Rule | Drop) -> str:
    if isinstance(claim, Rule):
        return f"the rule `{claim}` ({claim.place})"
    return f"the drop `{claim.matches.text}` ({claim.place})"


def _did_you_mean(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, list(known)[:20000], NEAR, 0.6)
    return f"near names: {', '.join(near)}" if near else ""
