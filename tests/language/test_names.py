"""Templates: what they match and write, that both invert, and that no name has two readings."""

from __future__ import annotations

import math
import re
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.language.names import (
    MAX_NAME,
    Hole,
    Lookup,
    Table,
    Template,
    TemplateError,
    Text,
    parse,
)

TABLES = {
    "feature": Table("feature", {("1", "1"): "0", ("1", "2"): "2", ("2", "1"): "5"}),
    "part": Table("part", {("weights",): "kernel", ("biases",): "bias"}),
    "fc": Table("fc", {("6",): "0", ("7",): "3"}),
}

MATCHES = [
    ("global_step", "global_step", {}),
    ("global_step", "global_step2", None),
    ("conv{b}/conv{b}_{k}/w", "conv3/conv3_10/w", {"b": 3, "k": 10}),
    ("conv{b}/conv{b}_{k}/w", "conv3/conv4_1/w", None),
    ("conv{b}/w", "conv3/ww", None),
    ("conv{b}/w", "xconv3/w", None),
    ("conv{b}", "conv03", None),
    ("conv{b}", "conv0", {"b": 0}),
    ("conv{b}", "conv", None),
    ("conv{b}", "conv-1", None),
    ("conv{b}", "conv\u0661", None),  # a digit, but not one of ours
    ("unit_{u+1}", "unit_1", {"u": 0}),
    ("unit_{u+1}", "unit_0", None),
    ("unit_{u-2}", "unit_3", {"u": 5}),
    ("layer_{n:02}", "layer_07", {"n": 7}),
    ("layer_{n:02}", "layer_7", None),
    ("layer_{n:02}", "layer_123", {"n": 123}),
    ("layer_{n:02}", "layer_007", None),
    ("{x:word}/w", "a-b_c/w", {"x": "a-b_c"}),
    ("{x:word}/w", "a.b/w", None),
    ("{x:word}/w", "/w", None),
    ("{x:path}/w", "a/b.c/w/w", {"x": "a/b.c/w"}),
    ("{x:path}", "line\nbreak", {"x": "line\nbreak"}),
    ("{p:gamma|beta}", "beta", {"p": 1}),
    ("{p:gamma|beta}", "bet", None),
    ("x{p:a|ab}/{p}", "xab/ab", {"p": 1}),
    ("x{p:a|ab}/{p}", "xab/a", None),
    ("f.{feature[b,k]}.w", "f.5.w", {"b": 2, "k": 1}),
    ("f.{feature[b,k]}.w", "f.7.w", None),
    ("f.{feature[b, k]}/{b}", "f.5/2", {"b": 2, "k": 1}),
    ("f.{feature[b,k]}/{b}", "f.5/1", None),
    ("a{{{i}}}b", "a{3}b", {"i": 3}),
    ("a.b{i}", "aXb1", None),  # a dot is a dot
    ("(a|b)[{i}]", "(a|b)[7]", {"i": 7}),
    ("é{i}", "é1", {"i": 1}),
]

BAD = [
    ("a{b", "a brace is not closed", 1),
    ("a}b", "a closing brace without an opening one", 1),
    ("a{}", "`{}` is not a hole", 2),
    ("ab{1x}", "`{1x}` is not a hole", 3),
    ("{a b}", "`{a b}` is not a hole", 1),
    ("{a+}", "`{a+}` is not a hole", 1),
    ("{a[]}", "`{a[]}` is not a hole", 1),
    ("{a:}", "`{a:}` is not a hole", 1),
    ("{i:float}", "'float' is not a type of holes", 3),
    ("{i:0}", "'0' is not a type of holes", 3),
    ("x{i:00}", "'00' is not a type of holes", 4),
    ("{p:a|}", "'a|' is not a type of holes", 3),
    ("{p:a|b|a}", "'a|b|a' is not a type of holes", 3),
    ("{p:a}", "'a' is not a type of holes", 3),
    ("a/*", "`*` captures nothing", 2),
    ("x.{nothing[i]}", "there is no table 'nothing'", 3),
    ("x.{feature[b]}", "table 'feature' is looked up by 2 values", 3),
    ("x.{part[p]}", "'weights' in table 'part' is no int, as 'p' is", 3),
    ("{fc[n]}/{n:word}/{n}{n}", "two holes need a text between them", 21),
    ("{p:a|b}/{fc[p]}", "'6' in table 'fc' is no choice, as 'p' is", 9),
    ("{x:word}/{x:path}", "hole 'x' is path here and word elsewhere", 10),
    ("{x:word}{y:word}", "two holes need a text between them", 9),
    ("{i}{k}", "two holes need a text between them", 4),
    ("{i}1{k}", "two holes need a text between them", 5),
    ("{a:path}/{b:path}", "two holes need a text between them", 10),
    ("{a:word}_{b:word}", "two holes need a text between them", 10),
    ("{a:word}-{b}-{c:word}", "'a' and 'c' share a text in several ways", 14),
    ("{a:path}/{b}/{c:path}", "'a' and 'c' share a text in several ways", 14),
    # Each neighbour tells, but the first only from the end, and the second only from the start.
    ("{a:word}-{b}-{c:1|1-2-1}", "'a' and 'c' share a text in several ways", 14),
    ("{a:word}y{b:x|xx}y{c:z|zyxyz}", "'a' and 'c' share a text in several ways", 19),
]

UNAMBIGUOUS = [
    "{scope:path}/block{b}/unit_{u}/{part:word}",
    "{a:path}/{b}x{c:word}",
    "{a:word}x{b}.{c:path}",
    "{i}_{a:path}_{k}",
    "{a:word}.{b:word}/{c:word}",
    "{a:word}-{b}",
    "{p:q|k|v}/{x:word}",
    "conv{b}_{k}/{part:w|b}",
]


def one(text: str) -> Template:
    return parse([text], TABLES)[0]


@pytest.mark.parametrize(("text", "name", "bindings"), MATCHES)
def test_matches_whole_names(text, name, bindings):
    template = one(text)
    assert template.match(name) == bindings
    assert template(name) == (bindings is not None)
    if bindings is not None:
        assert template.format(bindings) == name
        assert template.holes == bindings.keys()


@pytest.mark.parametrize(("text", "message", "offset"), BAD)
def test_refuses_bad_templates_at_the_character(text, message, offset):
    with pytest.raises(TemplateError, match=re.escape(message)) as caught:
        one(text)
    assert caught.value.offset == offset
    assert caught.value.template == 0


@pytest.mark.parametrize("text", UNAMBIGUOUS)
def test_what_can_be_told_apart_is_read(text):
    assert one(text).text == text


def test_errors_say_which_template_of_the_rule():
    with pytest.raises(TemplateError, match="is not a hole") as caught:
        parse(["a", "b", "c{!}"], {})
    assert caught.value.template == 2
    with pytest.raises(TemplateError, match="hole 'x' is path here and word elsewhere") as caught:
        parse(["{x:word}", "{x:path}"], {})
    assert caught.value.template == 1


def test_a_type_given_once_holds_in_the_whole_rule():
    source, target = parse(["a/{x}/{n:02}", "{x:word}.{n}"], {})
    assert target.format(source.match("a/b/07")) == "b.7"
    assert source.format(target.match("b.7")) == "a/b/07"


def test_an_offset_is_solved_backward():
    source, target = parse(["unit_{u+1}", "{u}"], {})
    assert target.format(source.match("unit_3")) == "2"
    assert source.format(target.match("2")) == "unit_3"


def test_alternatives_pair_up_in_order():
    source, target = parse(["x/{p:gamma|beta}", "y.{p:weight|bias}"], {})
    assert target.format(source.match("x/beta")) == "y.bias"
    assert source.format(target.match("y.weight")) == "x/gamma"
    with pytest.raises(TemplateError, match="2 alternatives here and 3 elsewhere") as caught:
        parse(["{p:a|b|c}", "{p:d|e}"], {})
    assert (caught.value.template, caught.value.offset) == (1, 1)


def test_a_hole_without_alternatives_has_those_of_its_own_name():
    rule = ["{b:1|2}_conv/{b}_conv/kernel", "{b:3|4}.{b}.weight"]
    for source, target in (parse(rule, {}), reversed(parse(rule[::-1], {}))):
        bindings = source.match("2_conv/2_conv/kernel")
        assert bindings == {"b": 1}
        assert target.format(bindings) == "4.4.weight"


def test_tables_are_looked_up_and_backward():
    source, target = parse(["conv{b}_{k}", "features.{feature[b,k]}"], TABLES)
    assert target.format(source.match("conv1_2")) == "features.2"
    assert source.format(target.match("features.5")) == "conv2_1"


def test_tables_of_words_need_holes_that_are_words():
    source, target = parse(["a/{p:word}", "b.{part[p]}"], TABLES)
    assert target.format(source.match("a/weights")) == "b.kernel"
    assert source.format(target.match("b.bias")) == "a/biases"


@pytest.mark.parametrize(
    ("texts", "name", "message"),
    [
        (["conv{b}_{k}", "f.{feature[b,k]}"], "conv9_9", r"`f.\{feature\[b,k\]\}` has no name for"),
        (["a{i}", "b{i-5}"], "a3", "has no name for i=3"),
    ],
)
def test_a_name_that_cannot_be_written_is_an_error(texts, name, message):
    source, target = parse(texts, TABLES)
    with pytest.raises(TemplateError, match=message):
        target.format(source.match(name))


def test_an_alternative_that_does_not_exist_is_an_error():
    with pytest.raises(TemplateError, match="has no name for p=2"):
        one("{p:a|b}").format({"p": 2})


def test_a_scope_goes_before_everything():
    template = one("conv{b}/w").scoped("my/").scoped("{our}/")
    assert template.match("{our}/my/conv3/w") == {"b": 3}
    assert template.match("conv3/w") is None
    assert template.format({"b": 3}) == "{our}/my/conv3/w"


def test_names_without_end_match_nothing():
    assert one("{x:path}").match("a" * MAX_NAME) is not None
    assert one("{x:path}").match("a" * (MAX_NAME + 1)) is None


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("{s:path}/{a:word}/{b:word}/{c:word}/{d:word}!", "a/" * 2047),
        ("{s:path}/x{a}/y{b}/z{c}", "/x1/y1/z1!" * 409),
        ("{a:word}x" + "x".join(f"{{i{k}}}" for k in range(40)), "1x" * 2047),
        ("{a:word}/" + "/".join(f"{{w{k}:word}}" for k in range(40)), "1/" * 2047),
        ("{p:a|aa|aaa|aaaa}/{s:path}", "a" * 4096),
    ],
)
def test_names_made_to_be_slow_are_still_read(text, name):
    assert one(text).match(name) is None  # a search of all ways would not come back


# Generated templates, over an alphabet so small that texts meet.

CHOICES = st.lists(
    st.sampled_from(["1", "x", "x1", "-1", "1-1", "1x1", "1-1-1"]),
    min_size=2,
    max_size=3,
    unique=True,
).map("|".join)
KINDS = st.sampled_from(["", "+1", ":02", ":word", ":path"]) | CHOICES.map(":{}".format)
SMALL = st.tuples(
    KINDS.map("{{a{}}}".format),
    st.text("1x-/", max_size=2),
    KINDS.map("{{b{}}}".format),
    st.text("1x-/", max_size=2),
    KINDS.map("{{c{}}}".format) | st.just(""),
).map("".join)
SEGMENTS = {
    "word": ["".join(t) for n in (1, 2, 3) for t in product("1x-", repeat=n)],
    "path": ["".join(t) for n in (1, 2, 3) for t in product("1x/", repeat=n)],
}


def readable(texts: list[str]) -> list[Template]:
    """The templates, or none where they are refused."""
    try:
        return parse(texts, TABLES)
    except TemplateError:
        return []


def texts_of(token: Text | Hole | Lookup) -> list[str]:
    """Short texts that a token stands for, worked out without its regular expression."""
    if isinstance(token, Text):
        return [token.text]
    if isinstance(token, Lookup):
        return list(token.table.entries.values())
    if token.kind == "choice":
        return list(token.choices)
    if token.kind == "int":
        return ["00", "01", "10", "11", "111"] if token.width else ["0", "1", "10", "11"]
    return SEGMENTS[token.kind]


@given(SMALL)
@settings(deadline=None, max_examples=300)
def test_no_name_has_two_readings(text):
    for template in readable([text]):
        ways = [texts_of(token) for token in template.tokens]
        if math.prod(map(len, ways)) < 20_000:
            names = ["".join(way) for way in product(*ways)]
            assert len(set(names)) == len(names)


NAMES = st.sampled_from("abcd")


@st.composite
def rules(draw) -> tuple[list[str], dict[str, int | str]]:
    """A source and a target with the same holes, and values for these."""
    values: dict[str, int | str] = {}
    sides: list[list[str]] = [[], []]
    for name in draw(st.lists(NAMES, min_size=1, max_size=3, unique=True)):
        kind = draw(st.sampled_from(["int", "offset", "pad", "word", "path", "choice", "table"]))
        number = draw(st.integers(0, 120))
        text = draw(st.text("ab1-_é", min_size=1, max_size=3))
        holes, value = {
            "int": (["", ""], number),
            "offset": (["+3", "-0"], number),
            "pad": ([":02", ""], number),
            "word": ([":word", ""], text),
            "path": ([":path", ""], f"{text}/{text}"),
            "choice": ([":x|xy|z", ":z|y|x"], number % 3),
            "table": ([":int", "table"], number % 2 + 6),
        }[kind]
        values[name] = value
        for side, hole in zip(sides, holes, strict=True):
            side.append(f"{{fc[{name}]}}" if hole == "table" else f"{{{name}{hole}}}")
    if draw(st.booleans()):  # the same hole twice
        sides[0].append(sides[0][0])
    for side in sides:
        for index in range(1, len(side)):
            side[index] = draw(st.sampled_from(["/", ".", "/w.", "_q/", "{{/"])) + side[index]
    return ["".join(side) for side in sides], values


@given(rules())
@settings(deadline=None, max_examples=200)
def test_what_is_written_is_read_again(rule):
    texts, values = rule
    for template in readable(texts):
        assert template.match(template.format(values)) == values


@given(SMALL, st.text("1x-/", max_size=8))
@settings(deadline=None, max_examples=200)
def test_what_is_read_is_written_again(text, name):
    for template in readable([text]):
        bindings = template.match(name)
        assert bindings is None or template.format(bindings) == name


@given(st.text(st.sampled_from("{}[]|:+-*abi019,./ é"), max_size=14))
@settings(deadline=None, max_examples=300)
def test_any_text_is_a_template_or_an_error_inside_it(text):
    try:
        parse([text], TABLES)
    except TemplateError as error:
        offset = error.offset
    else:
        offset = 0
    assert 0 <= offset <= len(text)
