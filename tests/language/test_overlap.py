"""Two rules that claim one name are found when they are loaded, with such a name."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from converter.errors import MappingError
from converter.language import loads
from converter.language.load import examine, read


def witness(*rules: str, tables: str = "") -> str | None:
    """The name that the finding shows; None when there is no finding."""
    text = f"mapping: 1\n{tables}rules:\n" + "".join(f"  - {rule}\n" for rule in rules)
    _, problems = examine(read(text, None), None)
    assert all(problem.code == "MAP111" for problem in problems), problems
    return re.findall("'(.*)'", problems[0].message)[0] if problems else None


OVERLAPS = [
    ("a", "a"),
    ("a{i}", "a7"),
    ("a{i}", "a{x:word}"),
    ("{x:word}/w", "{y:path}w"),
    ("conv{b}/conv{b}_{k}/w", "{x:path}/conv{n}_{n}/w"),
    ("a{i:02}", "a{i}"),
    ("{p:x|yz}/w", "y{r:path}"),
    ("a{i-1}", "a{i+1}"),
    ("{t[i]}", "{x:word}e"),
]


@pytest.mark.parametrize(("one", "other"), OVERLAPS)
def test_a_name_of_both_is_shown(one, other):
    tables = "tables: {t: {0: ace, 1: b}}\n"
    holes = [re.findall(r"\{t\[(.*?)\]\}|\{(\w+)", text) for text in (one, other)]
    targets = ["".join(f"/{{{a or b}}}" for a, b in dict.fromkeys(found)) for found in holes]
    rules = [
        f"{{source: '{text}', target: '{side}{target}'}}"
        for text, side, target in zip((one, other), "xy", targets, strict=True)
    ]
    name = witness(*rules, tables=tables)
    assert name is not None
    loaded, _ = examine(read(f"mapping: 1\n{tables}rules: [{', '.join(rules)}]", None), None)
    assert all(rule.sources[0](name) for rule in loaded.rules)


APART = [
    ("{source: 'a{i}', target: 'x{i}'}", "{source: 'b{i}', target: 'y{i}'}"),
    ("{source: 'a{i}', target: 'x{i}'}", "{source: 'a{x:word}w', target: 'y{x}'}"),
    ("{source: 'a{i}', target: 'x{i}', except: [a7]}", "{source: a7, target: y}"),
    (
        "{source: '{r:path}', target: 'x/{r}', except: ['*/fc{n}/w']}",
        "{source: '{x:word}/fc{n}/w', target: 'y/{x}/{n}'}",
    ),
    ("{source: 'a{i:02}', target: 'x{i}'}", "{source: a1, target: y}"),
    ("{source: 'a{i+5}', target: 'x{i}'}", "{source: a4, target: y}"),
    ("{source: 'a{i}', target: 'z.{t[i]}'}", "{source: b, target: z.2}"),
    ("{source: 'a{i}', target: 'z.{i}', except: [z.4]}", "{source: b, target: z.4}"),
    ("{source: 'a{t[i]}', target: 'z.{i}'}", "{source: b, target: z.4}"),
]


@pytest.mark.parametrize(("one", "other"), APART)
def test_what_no_name_can_be_of_both_is_no_problem(one, other):
    assert witness(one, other, tables="tables: {t: {0: 0, 1: 1}}\n") is None


def test_an_exception_that_is_too_narrow_does_not_resolve():
    one = "{source: '{r:path}', target: 'x/{r}', except: [fc8/w]}"
    assert witness(one, "{source: 'fc{n}/w', target: 'y{n}'}") == "fc9/w"


def test_targets_are_compared_too():
    rules = ("{source: 'a{i}', target: 'z.{i}.w'}", "{source: 'b{i}', target: 'z.{i}.w'}")
    assert witness(*rules) == "z.9.w"


CLASHES = {  # rules, then the clash: where, and with which name
    "a drop of what a rule takes": (
        "rules: [{source: 'a{i}', target: 'b{i}'}]\ndrop:\n  - {source: 'a*', because: x}\n",
        (4, 5, "this drop and the rule at m.yaml:2 claim one name, e.g. 'a9'"),
    ),
    "a drop of anything": (
        "rules: [{source: 'x/{i}/w', target: 'b{i}'}]\ndrop: [{source: '**/w', because: x}]",
        (3, 8, "claim one name, e.g. 'x/9/w'"),
    ),
    "a drop of one name": (
        "rules: [{source: '{r:path}', target: '{r}'}]\ndrop: [{source: step, because: x}]",
        (3, 8, "claim one name, e.g. 'step'"),
    ),
    "a dropped target that a rule makes": (
        "rules: [{source: a, target: b}]\ndrop: [{target: '*', because: x}]",
        (3, 8, "this drop and the rule at m.yaml:2 claim one name, e.g. 'b'"),
    ),
    "a constant that a rule makes": (
        "rules: [{source: 'a{i}', target: 'b.{i}'}]\nmake: [{target: b.3}]",
        (3, 8, "this constant and the rule at m.yaml:2 make one name, e.g. 'b.3'"),
    ),
    "constants for each that a rule makes": (
        "rules: [{source: a, target: b.0.w}]\nmake: [{target: '{p}.w', each: 'a/{p:path}'}]",
        (3, 8, "make one name, e.g. 'b.0.w'"),
    ),
    "two constants": (
        "rules: [{source: a, target: b}]\nmake:\n  - {target: c}\n  - {target: c}\n",
        (5, 5, "this constant and the one at m.yaml:4 make one name, e.g. 'c'"),
    ),
}


@pytest.mark.parametrize("name", CLASHES)
def test_drops_and_constants_are_compared_with_rules(name):
    text, (line, column, says) = CLASHES[name]
    (found,) = examine(read(f"mapping: 1\n{text}", None), Path("m.yaml"))[1]
    assert (found.code, found.line, found.column) == ("MAP111", line, column)
    assert says in found.message


PEACE = [
    "rules: [{source: 'a{i}', target: 'b{i}', except: [a1]}]\ndrop: [{source: a1, because: x}]",
    "rules: [{source: 'a{i}', target: 'b{i}'}]\ndrop: [{source: 'a*b', because: x}]",
    "rules: [{source: 'a/{x:word}', target: '{x}'}]\ndrop: [{source: 'a/*/*', because: x}]",
    "rules: [{source: 'a{i}', target: 'b{i}', except: [b1]}]\nmake: [{target: b1}]",
    "rules: []\ndrop: [{source: 'x*', because: x}, {source: '*y', because: y}]",
    "rules: [{source: '{r:path}', target: '{r}'}]\ndrop: [{group: optimizer_slots}]",
    "rules: [{source: a, target: b}]\nmake: [{target: global_step}]\ndrop: [{group: counters}]",
]


@pytest.mark.parametrize("text", PEACE)
def test_what_is_left_to_others_is_no_clash(text):
    assert examine(read(f"mapping: 1\n{text}", None), None)[1] == []


MOST_CALLS = 10_000  # for each rule, of functions


def test_all_pairs_are_told_at_once():
    with pytest.raises(MappingError, match="MAP111") as caught:
        loads("mapping: 1\nrules: [" + ", ".join(["{source: a, target: b}"] * 3) + "]")
    assert len(caught.value.diagnostics) == 3


@pytest.mark.parametrize(
    "pattern",
    [
        "m/{{i}}/block{k}/w",
        "m/{{x:word}}/block{k}/{{p:word}}",
        "{{x:path}}/block{k}_{{i}}/{{p:word}}",
        "{{x:path}}x{k}y/{{p:word}}/{{q:word}}",
    ],
)
def test_no_pattern_makes_it_slow(pattern):
    sources = [pattern.format(k=k) for k in range(200)]
    holes = re.findall(r"\{(\w+)", sources[0])
    lines = (
        f"  - {{source: '{text}', target: 't{k}{''.join('/{' + h + '}' for h in holes)}'}}"
        for k, text in enumerate(sources)
    )
    document = read("mapping: 1\nrules:\n" + "\n".join(lines), None)
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        found = examine(document, None)[1]
    finally:
        sys.setprofile(None)
    assert found == []
    assert calls < MOST_CALLS * len(sources)
