"""There and back in memory: which tensors come back bit for bit, and what loses the others.

    diff(c, mapping.inverse()(as_written(mapping(c))))

Everything stays lazy, so nothing is written and memory is that of a comparison.  An op and its
inverse would cancel, though, with nothing rounded; as through a file they do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from converter.compare import Difference, Progress, diff, same
from converter.errors import ConverterError
from converter.language.rules import Place, Rule
from converter.layout import View
from converter.ops import Op
from converter.plan import Plan, Port, Step
from converter.tensors import STRING, Checkpoint, LazyTensors


@dataclass(frozen=True, slots=True)
class Loss:
    """A source tensor that does not come back as it was, and what loses it, where that is known."""

    difference: Difference
    rule: str = ""
    place: Place | None = None
    op: Op | None = None


@dataclass(frozen=True)
class Roundtrip:
    """The way there and back, planned; `plans` are those of the way there."""

    source: Checkpoint
    plans: tuple[Plan, ...]
    back: Checkpoint

    @property
    def dropped(self) -> dict[str, str]:
        """Source names that do not travel, with the reason stated in the mapping."""
        return dict(self.plans[0].dropped)

    @property
    def travelling(self) -> Checkpoint:
        """The source tensors that a rule takes."""
        names = {name for step in self.plans[0].steps for name in step.sources}
        return Checkpoint({name: self.source[name] for name in self.source if name in names})

    def losses(self, progress: Progress | None = None) -> Iterator[Loss]:
        """What comes back otherwise, or not at all."""
        for row in diff(self.travelling, self.back, progress=progress):
            if not row.equal:
                yield self.loss(row)

    def loss(self, row: Difference) -> Loss:
        """Find the op that a tensor does not survive."""
        name, checkpoint = row.name, self.source
        for plan in self.plans:
            step = next((step for step in plan.steps if name in step.sources), None)
            if step is None or not isinstance(step.rule, Rule):
                break
            op = _culprit(step, step.rule, checkpoint)
            if op is not None:
                places = step.rule.op_places
                place = places[op] if op < len(places) else step.rule.place
                return Loss(row, str(step.rule), place, step.rule.ops[op])
            name, checkpoint = step.target, plan.apply(checkpoint)
        return Loss(row)


def roundtrip(source: Checkpoint, ports: Sequence[Port]) -> Roundtrip:
    """Plan the way there through all ports, and back; `MappingError` where there is no way."""
    mapped, plans = source, []
    for port in ports:
        plans.append(port.plan(mapped))
        mapped = plans[-1].apply(mapped)
    mapped = _as_written(mapped)
    for port in reversed(ports):
        mapped = port.inverse()(mapped)
    return Roundtrip(source, tuple(plans), mapped)


def _as_written(checkpoint: Checkpoint) -> Checkpoint:
    tensors = LazyTensors(checkpoint.specs, lambda name: _sealed(checkpoint[name].view))
    return replace(checkpoint, tensors=tensors)


def _sealed(view: View) -> View:
    """The same elements, of which no op can know what made them."""
    return View.over(view, view.shape)


def _culprit(step: Step, rule: Rule, source: Checkpoint) -> int | None:
    """Which op, undone at once, does not give back what it took."""
    views = [source[name].view for name in step.sources]
    if any(view.dtype == STRING for view in views):
        return None
    for index, op in enumerate(rule.ops):
        after = op.apply(views, step.pieces)
        try:
            back: list[Any] = op.inverse().apply([*map(_sealed, after)], len(views))
        except ConverterError:
            return index
        for view, other in zip(views, back, strict=True):
            if view.shape != other.shape or view.dtype != other.dtype or not same(view, other):
                return index
        views = after
    return None
