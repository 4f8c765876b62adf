"""Mappings → proofs: layers computed in NumPy from the source's weights and from the mapped ones.

    weights at random ──► the source's convention ──────────────────► outputs ┐
            └──► the rules ──► mapped weights ──► the target's convention ────┴─► equal?

A step whose ops no shape can confirm is proved by a probe that went through its rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np

from converter.errors import Diagnostic, MappingError
from converter.language.load import examine, read
from converter.language.rules import Place, Probe, Rules
from converter.layers import LAYERS, Convention, weights_of
from converter.layout import Array
from converter.plan import Plan, plan
from converter.tensors import Checkpoint, TensorSpec, from_arrays

TOLERANCE = 1e-5  # of the largest output: a scale, an epsilon or a cast may round
SEED = 0
STAND_INS = (2, 3, 5, 7, 11, 13)  # for sizes that a file leaves open; two must not be alike

Proved = tuple[Place, int, int]  # where a rule stands, the axes of a source and of a target of it


class Outcome(NamedTuple):
    """What came of a probe: the rules that it went through, or what is wrong."""

    probe: Probe
    proved: frozenset[Proved] = frozenset()
    problem: Diagnostic | None = None

    @property
    def agrees(self) -> bool:
        """Are both sides' outputs the same?"""
        return self.problem is None


class _Disagreement(Exception):  # noqa: N818 - no error of ours: it becomes a finding
    """What a probe found wrong."""

    def __init__(self, message: str, expected: object = "", found: object = "") -> None:
        super().__init__(message)
        self.expected = str(expected)
        self.found = str(found)


def run(probe: Probe) -> Outcome:
    """Compute the probe's layer from the weights of both sides."""
    try:
        return Outcome(probe, _proved(probe))
    except _Disagreement as error:
        problem = probe.place.diagnostic(
            "MAP142", f"{probe}: {error}", expected=error.expected, found=error.found
        )
        return Outcome(probe, problem=problem)


def outcomes(rules: Rules) -> list[Outcome]:
    """What comes of each probe of a mapping; one that several includes bring is run once."""
    known: dict[object, Outcome] = {}
    found = []
    for probe in rules.probes:
        key = (id(probe.rules), probe.place._replace(via=None))
        if key not in known:
            known[key] = run(probe)
        via = probe.place.via
        proved = {(p.included(via) if via else p, a, b) for p, a, b in known[key].proved}
        found.append(known[key]._replace(probe=probe, proved=frozenset(proved)))
    return found


def checked(plans: Sequence[Plan]) -> list[list[Outcome]]:
    """What comes of the probes of each plan's mapping; `MappingError` where a layer is wrong."""
    found = [outcomes(plan.rules) for plan in plans]
    problems = [each.problem for ran in found for each in ran if each.problem]
    if problems:
        raise MappingError(problems)
    return found


def proofs(plan: Plan, ran: Sequence[Outcome]) -> dict[str, Probe]:
    """Target → the probe that proves its step, there or back, where no shape confirms it."""
    probes = {key: outcome.probe for outcome in ran for key in outcome.proved}
    found = {}
    for step in plan.steps:
        if step.doubts:
            source, target = len(plan.sources[step.sources[0]].shape), len(step.spec.shape)
            here = step.rule.place
            probe = probes.get((here, source, target)) or probes.get((here, target, source))
            if probe:
                found[step.target] = probe
    return found


def findings(text: str, path: Path) -> tuple[int, list[Diagnostic]]:
    """How many probes a mapping file has, and what is wrong with them; or with the file."""
    try:
        document = read(text, path)
    except MappingError as error:
        return 0, list(error.diagnostics)
    declared = document.data.get("sizes") if isinstance(document.data, dict) else None
    unknown = [n for n, size in declared.items() if size is None] if declared else []
    rules, problems = examine(document, path, dict(zip(unknown, STAND_INS, strict=False)))
    found = [] if problems else outcomes(rules)
    return len(found), problems + [each.problem for each in found if each.problem]


def _proved(probe: Probe) -> frozenset[Proved]:
    """The rules that a layer's weights went through; `_Disagreement` where it comes out wrong."""
    layer = LAYERS[probe.layer]
    source, target = (layer.conventions[side] for side in (probe.source, probe.target))
    sizes = {name: probe.sizes.get(name, size) for name, size in layer.sizes.items()}
    random = Random(SEED)
    weights = weights_of(source, random, sizes)
    x = layer.input(random, sizes)
    steps = _planned(probe, weights, source)
    taken = {name for step in steps.steps for name in step.sources}
    given = {_under(probe.source_scope, name): name for name in weights}
    tensors = from_arrays({name: weights[given[name]] for name in given if name in taken})
    mapped = steps.apply(tensors)
    made = _made(probe, mapped, target, target.shapes(sizes))
    used = {given[name]: array for name, array in tensors.items()}
    _compare(source({n: t.numpy() for n, t in used.items()}, x, sizes), target(made, x, sizes))
    return frozenset(
        (step.rule.place, len(steps.sources[step.sources[0]].shape), len(step.spec.shape))
        for step in steps.steps
        if step.sources
    )


def _under(scope: str, name: str) -> str:
    return scope.replace("{}", name) if "{}" in scope else scope + name


def _planned(probe: Probe, weights: Mapping[str, Array], source: Convention) -> Plan:
    """The plan for a layer's weights, but for those that it may be without and no rule takes."""
    rules = [replace(rule, optional=True) for rule in probe.rules.rules]
    alone = replace(probe.rules, rules=tuple(rules))
    specs = {
        _under(probe.source_scope, name): TensorSpec(array.shape, array.dtype)
        for name, array in weights.items()
    }
    spare = {_under(probe.source_scope, name) for name in source.defaults}
    found = plan(alone, specs)
    idle = {problem.tensor for problem in found.problems if problem.code == "PLN201"}
    if idle and idle <= spare:
        found = plan(alone, {name: spec for name, spec in specs.items() if name not in idle})
    if found.errors:
        first = found.errors[0]
        raise _Disagreement(first.message, first.expected, first.found)
    return found


def _made(
    probe: Probe,
    mapped: Checkpoint,
    target: Convention,
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, Array]:
    """The mapped weights under the names of the target's layer, of which none may be missing."""
    made = {}
    for name, shape in shapes.items():
        full = _under(probe.target_scope, name)
        if full in mapped:
            made[name] = mapped[full].numpy()
            if made[name].shape != shape:
                raise _Disagreement(
                    f"'{full}' has another shape", list(shape), list(made[name].shape)
                )
        elif name not in target.defaults:
            raise _Disagreement(f"no rule makes '{full}'", full, ", ".join(mapped))
    return made


def _compare(first: Array, second: Array) -> None:
    """Outputs must agree; the largest gap is said otherwise."""
    if first.shape != second.shape:
        raise _Disagreement("outputs differ in shape", list(first.shape), list(second.shape))
    most, gap = float(np.max(np.abs(first))), float(np.max(np.abs(first - second)))
    if not gap <= TOLERANCE * most:  # a NaN is no agreement
        raise _Disagreement(
            f"outputs of up to {most:.3g} differ by up to {gap:.3g}",
            "the same outputs from the weights of both sides",
            "a layer that computes something else",
        )
