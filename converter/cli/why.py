"""`converter why`: what becomes of one tensor, or where it comes from, and through what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli.ops import written
from converter.cli.options import SOURCE, Request, mapping_options
from converter.cli.output import format_option, print_diagnostics, say, say_json, table
from converter.cli.reports import judging, report

if TYPE_CHECKING:
    from converter.errors import Diagnostic
    from converter.language.names import Template
    from converter.language.rules import Place, Rule
    from converter.plan import Plan, Step

Row = dict[str, Any]


@click.command()
@click.argument("tensor")
@click.argument("source", type=SOURCE)
@mapping_options
@format_option
@judging
def why(tensor: str, source: Path, style: str, output: str, **options: Any) -> int:
    """Explain TENSOR, a name of SOURCE or of what the mapping makes: rule, holes, shapes."""
    request = Request(**options)
    with request.open(source) as checkpoint:
        _, plans = request.apply(checkpoint, strict=False)
        rows, problems = story(tensor, plans)
    if output != "full":
        report(problems, output)
        return int(any(each.severity == "error" for each in problems))
    if style == "json":
        say_json({"tensor": tensor, "steps": rows, "problems": [str(each) for each in problems]})
    else:
        for row in rows:
            print_row(row)
    print_diagnostics(problems)
    return int(any(each.severity == "error" for each in problems))


def story(name: str, plans: Sequence[Plan]) -> tuple[list[Row], list[Diagnostic]]:
    """What every mapping of a chain does with a name; from its sources on, for a target."""
    first, names = _begin(name, plans)
    rows: list[Row] = []
    problems: list[Diagnostic] = []
    for plan in plans[first:]:
        found = [row for each in names for row in _rows(plan, each, name)]
        rows += found
        problems += _problems(plan, names)
        names = list(dict.fromkeys(target for row in found for target in row.get("targets", ())))
    return rows, problems


def _begin(name: str, plans: Sequence[Plan]) -> tuple[int, list[str]]:
    """The mapping to begin with and the names to follow from there; `NotFoundError`."""
    if name in plans[0].sources or _problems(plans[0], [name]):
        return 0, [name]
    last = next((nth for nth, plan in enumerate(plans) if name in plan.specs), None)
    if last is None:
        raise _unknown(name, plans)
    names = [name]
    for plan in reversed(plans[: last + 1]):
        sources = [s for step in plan.steps if step.target in names for s in step.sources]
        if not sources:  # a constant
            return plans.index(plan), names
        names = list(dict.fromkeys(sources))
    return 0, names


def _unknown(name: str, plans: Sequence[Plan]) -> Exception:
    import difflib

    from converter.errors import NotFoundError

    known = [*plans[0].sources, *(target for plan in plans for target in plan.specs)]
    near = difflib.get_close_matches(name, known, 3)
    names = f"did you mean {' or '.join(near)}?" if near else "see `converter plan --all`"
    return NotFoundError("no source and no target has this name", tensor=name, hint=names)


def _problems(plan: Plan, names: Sequence[str]) -> list[Diagnostic]:
    return [each for each in plan.problems if each.tensor in names]


def _rows(plan: Plan, name: str, asked: str) -> Iterator[Row]:
    """What one mapping does with one of its sources (or makes of nothing)."""
    spec = str(plan.sources.get(name, ""))
    if name in plan.dropped:
        place = next(_at(drop.place) for drop in plan.rules.drops if drop.matches(name))
        yield {"sources": {name: spec}, "place": place, "dropped": plan.dropped[name]}
    elif name in plan.left:
        yield {"sources": {name: spec}, "left": "outside the scope or the selection"}
    yield from _refused(plan, name)
    steps = [s for s in plan.steps if name in s.sources or (s.target == name and not s.sources)]
    if any(step.target == asked for step in steps):
        steps = [step for step in steps if step.target == asked]
    seen = set()
    for step in steps:
        key = (id(step.rule), step.sources)
        if key not in seen:
            seen.add(key)
            yield _step(plan, step, [s for s in steps if (id(s.rule), s.sources) == key])


def _refused(plan: Plan, name: str) -> Iterator[Row]:
    """The rule of one source whose op does not fit it, up to that op."""
    places = {(p.path, p.line, p.column) for p in _problems(plan, [name]) if p.code == "PLN220"}
    for rule in plan.rules.rules:
        here = any((op.path, op.line, op.column) in places for op in rule.op_places)
        if here and len(rule.sources) == 1 and rule.sources[0](name):
            yield _applied(plan, rule, [name], len(rule.targets))


def _step(plan: Plan, step: Step, all_: Sequence[Step]) -> Row:
    """One application of a rule, or one constant, and what it makes."""
    from converter.language.rules import Rule

    row: Row = {"place": _at(step.rule.place)}
    if isinstance(step.rule, Rule):
        row = _applied(plan, step.rule, step.sources, step.pieces)
    else:
        row["made"] = f"a constant, {step.rule.fill}"
        row["about"] = step.rule.because
    row["targets"] = {each.target: str(each.spec) for each in all_}
    return row | {"unconfirmed": list(step.doubts)}


def _applied(plan: Plan, rule: Rule, names: Sequence[str], pieces: int) -> Row:
    """A rule, what its holes hold, and the specs after each op as far as the ops fit."""
    from converter.errors import OpError
    from converter.plan import trace

    specs = [plan.sources[name] for name in names]
    row: Row = {
        "sources": {name: str(spec) for name, spec in zip(names, specs, strict=True)},
        "place": _at(rule.place),
        "rule": str(rule),
        "about": rule.about,
        "holes": _holes(rule, names),
        "ops": [],
        "targets": {},
    }
    after = trace(rule, specs, pieces)
    for op in rule.ops:
        step: Row = {"op": written(op.name, op.to_file())}
        row["ops"].append(step)
        try:
            step["gives"] = [str(spec) for spec in next(after)]
        except OpError as error:
            step |= {"gives": [], "error": error.message}
            break
    return row


def _holes(rule: Rule, names: Sequence[str]) -> Row:
    """What the holes of the sources hold, as text; several texts where sources are gathered."""
    found: dict[str, list[str]] = {}
    for template in rule.sources:
        for name in names:
            for hole, text in _texts(template, name).items():
                if text not in found.setdefault(hole, []):
                    found[hole].append(text)
    return {hole: texts[0] if len(texts) == 1 else texts for hole, texts in found.items()}


def _texts(template: Template, name: str) -> dict[str, str]:
    """The holes of one name; of a choice, the word and not its number."""
    found = template.match(name) or {}
    from converter.language.names import Hole

    choices = {hole.name: hole.choices for hole in template.variables if isinstance(hole, Hole)}
    return {
        hole: choices[hole][int(value)] if choices.get(hole) else str(value)
        for hole, value in found.items()
    }


def print_row(row: Row) -> None:
    """One step for people."""
    for name, spec in row.get("sources", {}).items():
        say(f"{name}  {spec}")
    heads = (("place", "at"), ("dropped", "dropped"), ("left", "left alone"), ("made", "made"))
    lines = [
        (head, row[key])
        for key, head in (*heads, ("rule", "rule"), ("about", "about"))
        if row.get(key)
    ]
    if row.get("holes"):
        lines.append(("holes", "  ".join(f"{k}={_listed(v)}" for k, v in row["holes"].items())))
    table(lines, indent="  ")
    table(
        [(each["op"], _specs(each["gives"]) or "does not fit") for each in row.get("ops", ())],
        indent="  ",
    )
    for name, spec in row.get("targets", {}).items():
        say(f"→ {name}  {spec}")
    for doubt in row.get("unconfirmed", ()):
        say(f"  shapes cannot confirm: {doubt}")


def _at(place: Place) -> str:
    """`file:line:col`, from the working folder."""
    return place.diagnostic("", "").position


def _listed(texts: str | Sequence[str]) -> str:
    return texts if isinstance(texts, str) else ",".join(texts)


def _specs(specs: Sequence[str]) -> str:
    if len(specs) > 1 and len(set(specs)) == 1:
        return f"{len(specs)} of {specs[0]}"
    return ", ".join(specs)
