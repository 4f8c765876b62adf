"""Mapping files: every problem in one run, with its code, its place and what would be right."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.errors import MappingError, NotFoundError
from converter.language import Rules, load, loads, shipped_names, yaml
from converter.language import load as loading
from converter.language.load import find
from tests.conversions import conversions

HEAD = "mapping: 1\nrules:\n"

# What is wrong: text, and (code, line, column, message) of each finding.
WRONG = {
    "nothing": ("", [("MAP002", 1, 1, "expected words and values")]),
    "a list": ("- 1", [("MAP002", 1, 1, "expected words and values")]),
    "no yaml": ("a: [", [("MAP001", 1, 5, "did not find expected node content")]),
    "a key twice": (
        "mapping: 1\nmapping: 1",
        [("MAP001", 2, 1, "'mapping' stands twice, first in line 1")],
    ),
    "both keys missing": (
        "about: x",
        [("MAP002", 1, 1, "'mapping' is missing"), ("MAP002", 1, 1, "'rules' is missing")],
    ),
    "another version": ("mapping: 2\nrules: []", [("MAP002", 1, 10, "Input should be 1")]),
    "a version that is none": ("mapping: yes\nrules: []", [("MAP002", 1, 10, "should be 1")]),
    "rules that are no list": (
        "mapping: 1\nrules: {a: b}",
        [("MAP002", 2, 8, "should be a valid list")],
    ),
    "unknown at the top": (
        "mapping: 1\nruels: []\nrules: []",
        [("MAP002", 2, 1, "unknown key 'ruels'")],
    ),
    "unknown in a side": (
        "mapping: 1\nsource: {modle: x}\nrules: []",
        [("MAP002", 2, 10, "unknown key 'modle'")],
    ),
    "unknown in a rule": (
        HEAD + "  - {source: a, target: b, opps: []}",
        [("MAP002", 3, 28, "unknown key 'opps'")],
    ),
    "unknown in a drop": (
        HEAD + "  []\ndrop:\n  - {source: a, becuase: b}",
        [("MAP002", 5, 17, "unknown key 'becuase'")],
    ),
    "unknown in a make": (
        HEAD + "  []\nmake:\n  - {target: a, fil: 1}",
        [("MAP002", 5, 17, "unknown key 'fil'")],
    ),
    "a rule of nothing": (
        HEAD + "  - {about: x}",
        [("MAP002", 3, 5, "'source' is missing"), ("MAP002", 3, 5, "'target' is missing")],
    ),
    "no sources": (
        HEAD + "  - {source: [], target: b}",
        [("MAP002", 3, 5, "a rule has at least one source and one target")],
    ),
    "a source that is a number": (
        HEAD + "  - {source: 12, target: b}",
        [("MAP002", 3, 14, "valid string")],
    ),
    "two words in one op": (
        HEAD + "  - source: a\n    target: b\n    ops: [{cast: float16, reverse: 0}]",
        [("MAP002", 5, 10, "an op is one word and its value")],
    ),
    "yes is no boolean": (
        HEAD + "  - {source: a, target: b, optional: yes}",
        [("MAP002", 3, 38, "valid boolean")],
    ),
    "a size of zero": (
        HEAD + "  - {source: a, target: b, sizes: {h: 0}}",
        [("MAP002", 3, 39, "greater than or equal to 1")],
    ),
    "a drop without a reason": (
        HEAD + "  []\ndrop:\n  - source: a",
        [("MAP002", 5, 5, "say why: `because: ...`")],
    ),
    "a drop of two sides": (
        HEAD + "  []\ndrop:\n  - {source: a, target: b, because: c}",
        [("MAP002", 5, 5, "give one of `source`, `target` and `group`")],
    ),
    "a group that is none": (
        HEAD + "  []\ndrop:\n  - group: emma",
        [("MAP002", 5, 12, "'optimizer_slots', 'counters' or 'ema'")],
    ),
    "strings that are made": (
        HEAD + "  []\nmake:\n  - {target: a, dtype: string}",
        [("MAP002", 5, 24, "strings cannot be made")],
    ),
    "a dtype that is none": (
        HEAD + "  []\nmake:\n  - {target: a, dtype: 'f4,('}",
        [("MAP002", 5, 24, "'f4,(' is not a dtype")],
    ),
    "a fill that is no number of the dtype": (
        HEAD + "  []\nmake:\n  - {target: a, dtype: uint8, fill: 300}",
        [("MAP002", 5, 37, "300 is no uint8")],
    ),
    "a template": (
        HEAD + "  - source: 'a{!}'\n    target: b",
        [("MAP101", 3, 16, "`{!}` is not a hole")],
    ),
    "a template in a list": (
        HEAD + "  - source: a\n    target: [b, 'b{!}']\n    ops: [split: 0]",
        [("MAP101", 4, 20, "`{!}` is not a hole")],
    ),
    "a template over lines": (
        HEAD + "  - source: >\n      a\n      b{!}\n    target: b",
        [("MAP101", 3, 13, "`{!}` is not a hole")],
    ),
    "a selector in except": (
        HEAD + "  - {source: a, target: b, except: [c, 'd{!}']}",
        [("MAP101", 3, 43, "`{!}` is not a hole")],
    ),
    "a selector in drop": (
        HEAD + "  []\ndrop: [{target: 'd{!}', because: x}]",
        [("MAP101", 4, 20, "`{!}` is not a hole")],
    ),
    "a template in make": (
        HEAD + "  []\nmake: [{target: a, each: 'd{!}'}]",
        [("MAP101", 4, 29, "`{!}` is not a hole")],
    ),
    "a table that is none": (
        HEAD + "  - {source: 'a{i}', target: 'b{feature[i]}'}",
        [("MAP101", 3, 33, "there is no table 'feature'")],
    ),
    "a table of words, looked up by a number": (
        HEAD + "  - {source: 'a{i}', target: 'b{t[i]}'}\ntables: {t: {x: 1}}",
        [("MAP101", 3, 33, "'x' in table 't' is no int, as 'i' is")],
    ),
    "a branch without a name": (
        HEAD + "  - {source: [{nam: a}, b], target: c, ops: [concat: 0]}",
        [("MAP002", 3, 16, "unknown key 'nam'")],
    ),
    "a template of a branch": (
        HEAD + "  - {source: [{name: 'a{!}'}, b], target: c, ops: [concat: 0]}",
        [("MAP101", 3, 25, "`{!}` is not a hole")],
    ),
    "an op of a branch that is none": (
        HEAD + "  - {source: [{name: a, ops: [negat: {}]}, b], target: c, ops: [concat: 0]}",
        [("MAP102", 3, 31, "unknown op 'negat'")],
    ),
    "an op of a branch that joins": (
        HEAD + "  - {source: [{name: a, ops: [concat: 0]}, b], target: c, ops: [concat: 0]}",
        [("MAP106", 3, 31, "concat is no op for one tensor")],
    ),
    "an op of a branch that gathers": (
        HEAD + "  - {source: [{name: 'a{i}', ops: [negate: {}]}, b], target: c, ops: [concat: 0]}",
        [("MAP106", 3, 62, "ops of one source do not go with a hole that gathers")],
    ),
    "a loss that is not asked for": (
        HEAD + "  - {source: a, target: b, ops: [negate: {}, slice: {axis: 0, start: 1}]}",
        [("MAP108", 3, 46, "slice loses values, so there is no way back")],
    ),
    "an include of nothing": (
        "mapping: 1\ninclude:\n  - {mapping: layers/none}",
        [("MAP110", 3, 15, "there is no mapping 'layers/none'")],
    ),
    "an include with an unknown key": (
        "mapping: 1\ninclude:\n  - {mapping: layers/none, scope: a}",
        [("MAP002", 3, 28, "unknown key 'scope'")],
    ),
    "two rules for one source": (
        HEAD + "  - {source: 'a{i}/w', target: 'b{i}'}\n  - {source: '{x:path}w', target: '{x}'}",
        [("MAP111", 4, 14, "this rule and the one at some/file.yaml:3 take one name, e.g. 'a9/w'")],
    ),
    "two rules for one target": (
        HEAD + "  - {source: a, target: c}\n  - {source: b, target: c}",
        [("MAP111", 4, 25, "this rule and the one at some/file.yaml:3 make one name, e.g. 'c'")],
    ),
    "two templates for one source": (
        HEAD + "  - {source: ['a{i}', a1], target: c, ops: [concat: 0]}",
        [("MAP111", 3, 14, "two templates of the rule take one name, e.g. 'a1'")],
    ),
    "an op that is none": (
        HEAD + "  - source: a\n    target: b\n    ops:\n      - trnspose: [1, 0]",
        [("MAP102", 6, 9, "unknown op 'trnspose'")],
    ),
    "a pattern": (
        HEAD + "  - source: a\n    target: b\n    ops:\n      - rearrange: h w -> h",
        [("MAP103", 6, 22, "rearrange: axis 'w' stands on the left side only")],
    ),
    "a quoted pattern": (
        HEAD + "  - source: a\n    target: b\n    ops:\n      - rearrange: 'h w -> h'",
        [("MAP103", 6, 23, "axis 'w' stands on the left side only")],
    ),
    "a pattern in the long form": (
        HEAD + "  - {source: a, target: b, ops: [rearrange: {pattern: h 2 -> h}]}",
        [("MAP103", 3, 57, "rearrange: '2' does not belong here")],
    ),
    "an element of an op's value": (
        HEAD + "  - {source: a, target: b, ops: [transpose: [1, x]]}",
        [("MAP103", 3, 49, "transpose: Input should be a valid integer")],
    ),
    "unknown in an op": (
        HEAD + "  - {source: a, target: b, ops: [split: {axes: 0, sizes: [1]}]}",
        [
            ("MAP103", 3, 41, "split: 'axis' is missing"),
            ("MAP103", 3, 42, "split: unknown key 'axes'"),
        ],
    ),
    "an op without a value": (
        HEAD + "  - source: a\n    target: b\n    ops:\n      - reverse:",
        [("MAP103", 6, 17, "reverse: Input should be a valid")],
    ),
    "a hole that is lost": (
        HEAD + "  - source: 'a{i}'\n    target: b",
        [("MAP104", 4, 13, "hole 'i' of the source is not in the target, so names would coll")],
    ),
    "a hole from nowhere": (
        HEAD + "  - source: a\n    target: 'b{i}'",
        [("MAP104", 4, 13, "hole 'i' of the target is in no source, so nothing gives its value")],
    ),
    "a hole of make from nowhere": (
        HEAD + "  []\nmake: [{target: 'a{i}', each: b}]",
        [("MAP104", 4, 17, "nothing gives a value to hole 'i'")],
    ),
    "a constant for each that would collide": (
        HEAD + "  []\nmake:\n  - {target: a, each: 'a{i}'}",
        [("MAP104", 5, 23, "hole 'i' is not in the target, so names would collide")],
    ),
    "words that count": (
        HEAD + "  - {source: 'a/{w:word}', target: b, ops: [stack: 0]}",
        [("MAP104", 3, 36, "hole 'w' counts tensors, so it is a number")],
    ),
    "two holes that count": (
        HEAD + "  - {source: 'a{i}_{k}', target: b, ops: [stack: 0]}",
        [("MAP104", 3, 34, "'i' and 'k' cannot count at once")],
    ),
    "a table with a value twice": (
        HEAD + "  []\ntables:\n  t: {1: a, 2: a}",
        [("MAP105", 5, 16, "table 't' has 'a' twice, for 1 and 2")],
    ),
    "a table with a key twice": (
        HEAD + "  []\ntables:\n  t: {'1,2': a, '1, 2': b}",
        [("MAP105", 5, 25, "table 't' has the key 1, 2 twice")],
    ),
    "a table of keys of two lengths": (
        HEAD + "  []\ntables:\n  t: {1: a, '2,3': b}",
        [("MAP105", 5, 20, "table 't': keys differ in length")],
    ),
    "a table of nothing": (
        HEAD + "  []\ntables:\n  t: {}",
        [("MAP105", 5, 6, "table 't' is empty")],
    ),
    "a table of truths": (
        HEAD + "  []\ntables:\n  t: {1: true}",
        [("MAP002", 5, 10, "valid string")],
    ),
    "sources that nothing joins": (
        HEAD + "  - source: [a, b]\n    target: c",
        [("MAP106", 4, 13, "several sources are joined by `concat` or `stack`")],
    ),
    "targets that nothing cuts": (
        HEAD + "  - source: a\n    target: [b, c]",
        [("MAP106", 4, 13, "several targets are cut by `split` or `unstack`")],
    ),
    "numbered targets of several templates": (
        HEAD + "  - source: a\n    target: ['b{i}', 'c{i}']\n    ops: [unstack: 0]",
        [("MAP106", 4, 13, "numbered targets are one template")],
    ),
    "numbered targets of a split that does not know how many": (
        HEAD + "  - source: a\n    target: 'b{i}'\n    ops: [split: 0]",
        [("MAP106", 4, 13, "split does not know how many 'i' there are")],
    ),
    "a size of make that is not known": (
        HEAD + "  []\nmake: [{target: a, shape: [n]}]",
        [("MAP107", 4, 27, "a size is not known")],
    ),
    "problems of all kinds, by their place": (
        HEAD
        + "  - {source: 'a{', target: b}\n"
        + "  - {source: a, target: b, opps: []}\n"
        + "  - source: c\n    target: d\n    ops:\n      - spilt: 0\n      - transpose: [0, 0]\n"
        + "drop:\n  - {source: e}\n  - {source: '}', because: x}\n"
        + "make:\n  - {target: f, each: '{'}\n",
        [
            ("MAP101", 3, 16, "a brace is not closed"),
            ("MAP002", 4, 28, "unknown key 'opps'"),
            ("MAP102", 8, 9, "unknown op 'spilt'"),
            ("MAP103", 9, 20, "is not a permutation"),
            ("MAP002", 11, 5, "say why"),
            ("MAP101", 12, 14, "a closing brace without an opening one"),
            ("MAP101", 14, 23, "a brace is not closed"),
        ],
    ),
}

# Words that are nearly right: text, and what the hint says.
NEARLY = [
    ("mapping: 1\nruels: []\nrules: []", "did you mean 'rules'?"),
    ("mapping: 1\nsource: {modle: x}\nrules: []", "did you mean 'model'?"),
    (HEAD + "  - {source: a, target: b, exept: []}", "did you mean 'except'?"),
    (HEAD + "  []\ndrop: [{source: a, because: b, gruop: c}]", "did you mean 'group'?"),
    (HEAD + "  []\nmake: [{target: a, shpae: []}]", "did you mean 'shape'?"),
    (HEAD + "  - {source: a, target: b, ops: [rearange: a -> a]}", "did you mean 'rearrange'?"),
    (
        HEAD + "  - {source: a, target: b, ops: [split: {axis: 0, size: [1]}]}",
        "did you mean 'sizes'?",
    ),
    (HEAD + "  - {source: a, target: b, ops: [cast: {to: int8, form: int8}]}", "'from'?"),
]


def problems(text: str, sizes: dict[str, int] | None = None) -> MappingError:
    with pytest.raises(MappingError, match=r"error\[MAP") as caught:
        loads(text, Path("some/file.yaml"), sizes)
    return caught.value


@pytest.mark.parametrize("name", WRONG)
def test_every_problem_has_its_code_and_place(name):
    text, expected = WRONG[name]
    found = problems(text).diagnostics
    assert [(d.code, d.line, d.column) for d in found] == [row[:3] for row in expected]
    for diagnostic, (*_, message) in zip(found, expected, strict=True):
        assert message in diagnostic.message
        assert diagnostic.severity == "error"
        assert diagnostic.position == f"some/file.yaml:{diagnostic.line}:{diagnostic.column}"


def test_every_code_has_a_case():
    text = Path(loading.__code__.co_filename).read_text("utf-8")
    assert set(re.findall('"(MAP[0-9]+)"', text)) | {"MAP111"} == {"MAP112"} | {
        row[0] for _, rows in WRONG.values() for row in rows
    }


@pytest.mark.parametrize(("text", "hint"), NEARLY)
def test_words_that_are_nearly_right_get_a_hint(text, hint):
    assert hint in problems(text).diagnostics[-1].hint


def test_sizes_from_outside_replace_those_of_the_file():
    text = HEAD + "  - {source: a, target: b, ops: [rearrange: (h w) -> h w]}\nsizes: {h: 2}"
    assert loads(text, sizes={"h": 3}).rules[0].ops[0].sizes == {"h": 3}


SIZED = """mapping: 1
sizes: {depth: 50, b: 0}
tables:
  block: {"0,1": 1.0x, "1,1": 0.1x, "1,2": 1.0x}
rules:
  - source: net_{depth}/{i}
    target: net{depth-50}.{block[b,i]}
    except: ["net_{depth}/7"]
drop:
  - {source: "net_{depth}/7", because: seven}
"""


@pytest.mark.parametrize(
    ("sizes", "source", "target"),
    [
        ({}, "net_50/1", "net0.1.0x"),
        ({"b": 1}, "net_50/1", "net0.0.1x"),
        ({"b": 1, "depth": 152}, "net_152/2", "net102.1.0x"),
    ],
)
def test_a_size_in_a_name_is_its_number(sizes, source, target):
    rules = loads(SIZED, sizes=sizes)
    (rule,) = rules.rules
    bindings = rule.sources[0].match(source)
    assert rule.targets[0].format(bindings) == target
    assert rule.targets[0].match(target) == bindings
    scope = source[:-1]
    assert rules.drops[0].matches(f"{scope}7")
    assert rule.source_except[0](f"{scope}7")
    assert not rule.source_except[0]("net_{depth}/7")


@pytest.mark.parametrize(("sizes", "name"), [({}, "a_x"), ({"keras": 2}, "a/x")])
def test_an_entry_that_sizes_alone_look_up_is_text(sizes, name):
    text = """
mapping: 1
sizes: {keras: 3}
tables:
  of: {"2": /, "3": _}
rules:
  - {source: "a{of[keras]}{part:x|y}", target: "{part:x|y}"}
"""
    (rule,) = loads(text, sizes=sizes).rules
    assert rule.sources[0].match(name) == {"part": 0}


@pytest.mark.parametrize(
    ("text", "sizes", "message"),
    [
        (SIZED, {"b": 2}, "table 'block' has nothing for b=2"),
        (SIZED.replace("depth: 50", "depth: null"), {}, "size 'depth' has no number"),
        (SIZED.replace("{depth-50}", "{other-50}"), {}, "hole 'other' of the target"),
        (SIZED.replace("1.0x}", "0.1x}"), {}, "has '0.1x' twice, for 1,1 and 1,2"),
        (SIZED.replace(", b: 0", ""), {}, "has '1.0x' twice, for 0,1 and 1,2"),
    ],
)
def test_a_size_in_a_name_has_a_number(text, sizes, message):
    with pytest.raises(MappingError, match=re.escape(message)):
        loads(text, sizes=sizes)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [({"k": 3}, "there is no size 'k'"), ({"h": 0}, "'h' is 0"), ({"h": -7}, "'h' is -7")],
)
def test_sizes_from_outside_are_checked(sizes, message):
    (found,) = problems(HEAD + "  []\nsizes: {h: 2}", sizes).diagnostics
    assert (found.code, found.line) == ("MAP107", 4)
    assert message in found.message


def test_a_file_says_everything_it_may_say():
    rules = loads(
        """
mapping: 1
name: family/one-two
about: One sentence.
source: {model: one, contract: {channels: RGB, mean: [1.5, 2, x], flag: true}}
target: {model: two}
sizes: {h: 2}
tables: {t: {1: a, 2: b}}
rules:
  - {source: x, target: y, optional: true, about: why}
  - {source: ["q{i}", "k{i}"], target: "qk{i}", ops: [concat: 0], except: ["q9"]}
drop:
  - {source: z, because: never used}
  - {target: w, because: made anew}
  - {group: ema}
make:
  - {target: n, dtype: int64, because: torch counts}
  - {target: "m{i}", each: "q{i}", shape: [h, 3], fill: 1.5}
""",
        Path("one.yaml"),
    )
    assert (rules.name, rules.about) == ("family/one-two", "One sentence.")
    assert rules.source_contract == {"channels": "RGB", "mean": [1.5, 2, "x"], "flag": True}
    assert [str(rule) for rule in rules.rules] == ["x -> y", "q{i} + k{i} -> qk{i}"]
    assert rules.rules[0].optional
    assert [(d.matches.text, d.because) for d in rules.drops] == [
        ("z", "never used"),
        ("**/ExponentialMovingAverage", "a moving average of a weight"),
    ]
    assert rules.target_drops[0].because == "made anew"
    assert rules.makes[1].shape == (2, 3)
    assert rules.makes[0].shape == ()
    assert rules.rules[1].place.line == 11
    assert str(rules.rules[1].place) == "one.yaml:11"


def test_a_file_without_a_name_is_called_after_its_file(tmp_path):
    path = tmp_path / "my-mapping.yaml"
    path.write_text(HEAD + "  []", "utf-8")
    assert load(path).name == "my-mapping"


def test_a_file_that_is_no_text_is_a_problem(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_bytes(b"mapping: \xff")
    with pytest.raises(MappingError, match=r"MAP001\]: cannot be read"):
        load(path)


def test_a_name_that_is_none_gets_near_ones():
    with pytest.raises(NotFoundError, match="no mapping 'vgg16/slim-torchvison'") as caught:
        find("vgg16/slim-torchvison")
    assert caught.value.hint.startswith("did you mean vgg16/slim-torchvision")
    with pytest.raises(NotFoundError, match="neither a shipped name nor a file") as caught:
        find("zzz")
    assert caught.value.hint == "see `converter mappings ls`"


# The way back.


@pytest.mark.parametrize(
    ("rule", "message", "hint"),
    [
        ("{source: A, target: B, ops: [cast: float16]}", "cast does not know", "from"),
        ("{source: A, target: B, ops: [reshape: [2, 3]]}", "reshape does not know", "from"),
        ("{source: A, target: B, ops: [rearrange: a b -> (a b)]}", "are not known", "sizes"),
        (
            "{source: A, target: B, lossy: true, ops: [part: {axis: 0, index: 0, of: 2}]}",
            "part keeps 1 of 2 pieces",
            "split",
        ),
        (
            "{source: 'A{i}', target: B, ops: [concat: 0]}",
            "concat does not know how many sources it had",
            "sizes",
        ),
        (
            "{source: ['A{i}', 'C{i}'], target: B, ops: [stack: 0]}",
            "several sources are gathered at once",
            "",
        ),
    ],
)
def test_what_has_no_way_back_is_named_with_its_place(rule, message, hint):
    rules = loads(
        f"{HEAD}  - {rule}\n  - {{source: c, target: d}}\n"
        f"  - {rule.replace('A', 'E').replace('B', 'F').replace('C', 'G')}"
    )
    with pytest.raises(MappingError, match="no way back") as caught:
        rules.inverse()
    assert [(d.code, d.line) for d in caught.value.diagnostics] == [("MAP120", 3), ("MAP120", 5)]
    assert message in caught.value.diagnostics[0].message
    assert hint in caught.value.diagnostics[0].hint


ONE_WAY = {"layers/lstm-torch-keras", *(row.mapping for row in conversions() if row.one_way)}


@pytest.mark.parametrize("name", sorted(set(shipped_names()) - ONE_WAY))
def test_the_way_back_of_the_way_back_is_the_way(name):
    open_sizes = {n: 2 for n, size in document(name).get("sizes", {}).items() if size is None}
    rules = load(name, open_sizes)
    assert rules.inverse().inverse() is rules
    assert rules.inverse() != rules


def document(name: str) -> dict[str, Any]:
    return dict(yaml.load(find(name).read_text("utf-8")).data)


# Anything else is a problem too, and never another error.


def check(text: str, path: Path | None = None) -> Rules | None:
    """The rules, or None when there are problems inside the text; anything else is raised."""
    try:
        return loads(text, path)
    except MappingError as error:
        found = [d for d in error.diagnostics if d.path == path]  # others: of included files
    lines = re.split("\r\n|[\r\n\x85\u2028\u2029]", text)
    assert all(1 <= d.line <= len(lines) for d in found)
    assert all(1 <= d.column <= len(lines[d.line - 1]) + 1 for d in found)
    return None


@given(st.text(st.sampled_from("mapping: 1\nrules[]{}-'\"&*!|>#, \t\ud800\0é"), max_size=60))
@settings(deadline=None, max_examples=150)
def test_any_text_is_read_or_a_problem_inside_it(text):
    check(text)
    check(HEAD + text)


VALUES = st.recursive(
    st.sampled_from(
        ["a", "'a{i}'", "b{t[i]}", "-1", "0", "7", "true", "", "1.5", "'*'", "h w -> w h"]
    )
    | st.sampled_from(["h [w]", "float16", "string", "[]", "{}", ".nan", "optimizer_slots"]),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda some: f"[{', '.join(some)}]")
        | st.dictionaries(
            st.sampled_from(
                ["source", "target", "axis", "sizes", "to", "from", "pattern", "of", "1,2"]
            ),
            inner,
            max_size=3,
        ).map(lambda some: "{" + ", ".join(f"{k}: {v}" for k, v in some.items()) + "}")
    ),
    max_leaves=4,
)
KEYS = st.sampled_from(
    [
        *(
            "mapping",
            "name",
            "about",
            "source",
            "target",
            "sizes",
            "tables",
            "rules",
            "drop",
            "make",
        ),
        *("rules:\n  - source: a\n    target: b\n    ops: [{op}]\n    about",),
        *("rules:\n  - source: 'a{i}'\n    target",),
        *("drop:\n  - because: x\n    source", "make:\n  - target: a\n    fill"),
        *("make:\n  - target: a\n    dtype", "make:\n  - target: a\n    shape"),
    ]
)
WORDS = st.sampled_from(["rearrange", "transpose", "reshape", "reverse", "concat", "split", "cast"])


@given(st.lists(st.tuples(KEYS, VALUES, WORDS, VALUES), min_size=1, max_size=3))
@settings(deadline=None, max_examples=250)
def test_values_of_any_type_are_read_or_problems(entries):
    lines = []
    for key, value, word, argument in entries:
        lines.append(key.replace("{op}", f"{word}: {argument}") + f": {value}\n")
    check("".join(lines))
    check("mapping: 1\n" + "".join(lines))
    check(HEAD + f"  - {{source: a, target: b, ops: [{{{entries[0][2]}: {entries[0][3]}}}]}}")


def mutated(text: str, generator: random.Random) -> str:
    """The text with one to three accidents."""
    for _ in range(generator.randint(1, 3)):
        lines = text.splitlines(keepends=True) or ["-"]
        text = text or "-"
        at = generator.randrange(len(lines))
        spot = generator.randrange(len(text))
        text = generator.choice(
            [
                lambda lines=lines, at=at: "".join(lines[:at] + lines[at + 1 :]),
                lambda lines=lines, at=at: "".join([*lines[:at], lines[at], *lines[at:]]),
                lambda lines=lines, at=at: "".join(lines[:at] + lines[at + 1 :] + [lines[at]]),
                lambda lines=lines, at=at: "".join(
                    [*lines[:at], lines[at].replace(":", "", 1), *lines[at + 1 :]]
                ),
                lambda lines=lines, at=at: "".join(
                    [*lines[:at], "  " + lines[at], *lines[at + 1 :]]
                ),
                lambda text=text, spot=spot: text[:spot] + text[spot + 1 :],
                lambda text=text, spot=spot: (
                    text[:spot] + generator.choice("{}[]:|-'\"*&!é1 \n\t") + text[spot:]
                ),
                lambda text=text, spot=spot: (
                    text[:spot] + text[spot : spot + 2][::-1] + text[spot + 2 :]
                ),
                lambda text=text, spot=spot: (
                    re.sub(r"\w+", "x", text[:spot], count=1) + text[spot:]
                ),
                lambda text=text, spot=spot: text[: spot + 1],
            ]
        )()
    return text


@pytest.mark.parametrize("name", shipped_names())
def test_accidents_to_shipped_mappings_are_problems_inside_them(name):
    path = find(name)
    text = path.read_text("utf-8")
    generator = random.Random(name)
    found = [check(mutated(text, generator), path) for _ in range(20)]
    assert None in found
    assert check(text, path)
