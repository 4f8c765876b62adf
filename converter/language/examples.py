"""The examples in a mapping file: `tests:` with tiny arrays, forward and, where it goes, back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from converter.errors import Diagnostic, IrreversibleError, MappingError, OpError
from converter.language import yaml
from converter.language.load import examine, read
from converter.language.model import ExampleModel, MappingModel
from converter.language.names import TemplateError
from converter.language.rules import Place, Rule, Rules
from converter.layout import View
from converter.ops.values import numeric
from converter.tensors import dtype_name

Arrays = list[np.ndarray[Any, Any]]
SHOWN = 200  # characters of an array in a message


def run(text: str, path: Path) -> tuple[int, list[Diagnostic]]:
    """How many examples a mapping file has, and what is wrong with them; or with the file."""
    try:
        document = read(text, path)
    except MappingError as error:
        return 0, list(error.diagnostics)
    rules, problems = examine(document, path)
    if problems:
        return 0, problems
    examples = MappingModel.read(document.data).tests
    runner = _Runner(rules, document, path)
    return len(examples), [
        finding for nth, each in enumerate(examples) for finding in runner.findings(nth, each)
    ]


class _Unfit(Exception):  # noqa: N818 - no error of ours: it becomes a finding
    """An example that cannot be run; `key` is what is wrong with it."""

    def __init__(self, key: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.key = key
        self.hint = hint


class _Runner:
    """Runs the examples of one file."""

    def __init__(self, rules: Rules, document: yaml.Document, path: Path) -> None:
        self.rules = rules
        self.document = document
        self.path = path

    def place(self, nth: int, *keys: str) -> Place:
        """Where an example, or a key of it, stands."""
        span = self.document.span(("tests", nth, *keys))
        return Place(self.path, span.line, span.column, span.end)

    def findings(self, nth: int, example: ExampleModel) -> Iterator[Diagnostic]:
        """What is wrong with one example."""
        try:
            rule = self.rule(example)
            dtype = numeric(example.dtype)
            given = _arrays("in", example.given, dtype, len(rule.sources) > 1 or rule.gathered)
            expected = _arrays(
                "out", example.expected, None, len(rule.targets) > 1 or rule.scattered
            )
            made = _made(rule, given, len(expected))
        except _Unfit as error:
            place = self.place(nth, error.key)
            yield place.diagnostic("MAP141", str(error), hint=error.hint)
            return
        except OpError as error:
            yield self.unfit(nth, "the ops do not fit", error)
            return
        if not _same(made, expected):
            yield self.wrong(nth, "out", "the rule makes something else", expected, made)
        else:
            yield from self.back(nth, rule, given, made)

    def rule(self, example: ExampleModel) -> Rule:
        """The rule that an example is about."""
        if example.rule is not None:
            span = self.document.span(("rules", example.rule, "source"))
            at = (self.path, span.line, span.column)
            for rule in self.rules.rules:
                if (rule.place.path, rule.place.line, rule.place.column) == at:
                    return rule
            raise _Unfit("rule", f"there is no rule {example.rule}", "rules count from 0")
        name = example.source or ""
        for rule in self.rules.rules:
            if any(fits(name) for fits in rule.sources) and not any(
                selector(name) for selector in rule.source_except
            ):
                _check_target(rule, name, example.target)
                return rule
        raise _Unfit("source", f"no rule takes '{name}'")

    def back(self, nth: int, rule: Rule, given: Arrays, made: Arrays) -> Iterator[Diagnostic]:
        """The way back must give what was given, where there is one."""
        try:
            returned = _made(rule.inverse(), made, len(given))
        except IrreversibleError:
            return
        except OpError as error:
            yield self.unfit(nth, "the ops of the way back do not fit", error)
            return
        if not _same(returned, given):
            yield self.wrong(nth, "in", "the way back makes something else", given, returned)

    def unfit(self, nth: int, what: str, error: OpError) -> Diagnostic:
        """The finding of an op that does not take its arrays."""
        return self.place(nth, "in").diagnostic(
            "MAP140",
            f"{what}: {error.message}",
            expected=error.expected,
            found=error.found,
            hint=error.hint,
        )

    def wrong(
        self, nth: int, key: str, message: str, expected: Arrays, found: Arrays
    ) -> Diagnostic:
        """The finding of two lists of arrays that differ."""
        return self.place(nth, key).diagnostic(
            "MAP140", message, expected=_shown(expected), found=_shown(found)
        )


def _check_target(rule: Rule, name: str, wanted: str | list[str] | None) -> None:
    """The names that the rule makes of a source must be those that the example says."""
    if wanted is None:
        return
    bindings = next(found for t in rule.sources if (found := t.match(name)) is not None)
    try:
        made = [t.format(bindings) for t in rule.targets if t.holes <= bindings.keys()]
    except TemplateError as error:
        raise _Unfit("source", str(error)) from error
    if made != ([wanted] if isinstance(wanted, str) else wanted):
        raise _Unfit("target", f"the rule makes {', '.join(made) or 'names with numbers'}")


def _arrays(key: str, value: Any, dtype: np.dtype[Any] | None, several: object) -> Arrays:
    """The array of a key, or each of several; without a dtype, of whatever holds the numbers."""
    if several and not isinstance(value, list):
        raise _Unfit(key, "expected a list of arrays, one for each tensor")
    found = []
    for each in value if several else [value]:
        try:
            array = np.array(each, dtype)
        except (ValueError, TypeError, OverflowError) as error:
            raise _Unfit(key, f"no array: {error}") from error
        if array.dtype.kind not in "biufcV" and dtype is None:
            raise _Unfit(key, "no array of numbers")
        found.append(array)
    return found


def _made(rule: Rule, given: Arrays, pieces: int) -> Arrays:
    """What a rule's ops make of arrays."""
    views = [View.of(array) for array in given]
    for op in rule.ops:
        views = op.apply(views, pieces)
    return [view.numpy() for view in views]


def _same(found: Arrays, expected: Arrays) -> bool:
    """Are they equal in every element, as numbers of the dtype that was found?"""
    return len(found) == len(expected) and all(
        a.shape == b.shape and np.array_equal(a, b.astype(a.dtype), equal_nan=a.dtype.kind in "fc")
        for a, b in zip(found, expected, strict=True)
    )


def _shown(arrays: Arrays) -> str:
    text = ", ".join(f"{dtype_name(a.dtype)} {a.tolist()}" for a in arrays)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
