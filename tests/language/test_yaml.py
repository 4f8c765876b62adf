"""YAML 1.2 core, where each value stands, and everything that is refused."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.language.yaml import MAX_BYTES, MAX_DEPTH, YamlError, load

SCALARS = [
    ("no", "no"),
    ("yes", "yes"),
    ("on", "on"),
    ("off", "off"),
    ("n", "n"),
    ("true", True),
    ("True", True),
    ("TRUE", True),
    ("tRue", "tRue"),
    ("false", False),
    ("False", False),
    ("null", None),
    ("Null", None),
    ("~", None),
    ("", None),
    ('""', ""),
    ("''", ""),
    ("nULL", "nULL"),
    ("0", 0),
    ("12", 12),
    ("-12", -12),
    ("+12", 12),
    ("012", 12),
    ("1_000", "1_000"),
    ("0b11", "0b11"),
    ("0o17", 15),
    ("0o18", "0o18"),
    ("0x1F", 31),
    ("0xg", "0xg"),
    ("-0x1F", "-0x1F"),
    ("999999999999999999", 999999999999999999),
    ("1:30", "1:30"),
    ("2001-01-01", "2001-01-01"),
    ("1e3", 1000.0),
    ("1E-3", 0.001),
    (".5", 0.5),
    ("-.5", -0.5),
    ("1.", 1.0),
    ("1.5e+3", 1500.0),
    ("3.14159265358979323846", math.pi),
    (".", "."),
    ("e3", "e3"),
    ("1e", "1e"),
    (".inf", math.inf),
    ("-.INF", -math.inf),
    ("+.Inf", math.inf),
    ("inf", "inf"),
    ("nan", "nan"),
    ("'12'", "12"),
    ('"true"', "true"),
    ("'it''s'", "it's"),
    ('"a\\tb\\u00e9"', "a\tbé"),
    ("a b", "a b"),
    ("a#b", "a#b"),
    ("a # b", "a"),
    ("=", "="),
    ("<<", "<<"),
    ("[1, no]", [1, "no"]),
    ("{a: , 'b': 1}", {"a": None, "b": 1}),
    ("|\n  12\n  no\n", "12\nno\n"),
    (">-\n  a\n  b\n", "a b"),
]

# What is refused: text, message, line, column.
REFUSED = [
    ("a: 1\na: 2", "'a' stands twice, first in line 1", 2, 1),
    ("x:\n  - {b: 1, b: 2}", "'b' stands twice, first in line 2", 2, 12),
    ("1: a\n'1': b", "'1' stands twice", 2, 1),
    ("a: &x 1", "anchors and aliases are not read", 1, 4),
    ("&x a: 1", "anchors and aliases are not read", 1, 1),
    ("a: *x", "anchors and aliases are not read", 1, 4),
    ("a: &x [1]\nb: [*x, *x]", "anchors and aliases are not read", 1, 4),
    ("a: !!str 1", "tags are not read", 1, 4),
    ("a: ! 1", "tags are not read", 1, 4),
    ("!!python/object/apply:os.system [ls]", "tags are not read", 1, 1),
    ("a: !!python/object/apply:os.system [ls]", "tags are not read", 1, 4),
    ("a: !!binary aGk=", "tags are not read", 1, 4),
    ("? [a]\n: b", "a key must be a plain word", 1, 3),
    ("{[a]: b}", "a key must be a plain word", 1, 2),
    ("a: 1\n---\nb: 1", "more than one document", 2, 1),
    ("a: 1\n...\n---\nb", "more than one document", 3, 1),
    ("a:\n\t- b", "found character that cannot start any token", 2, 1),
    ("a: b: c", "mapping values are not allowed", 1, 5),
    ("a: [1", "did not find expected", 1, 4),
    ("a: 'b", "found unexpected end of stream", 1, 4),
    ("a: 1\n b: 2", "mapping values are not allowed", 2, 3),
    ("- a\nb: 1", "did not find expected", 2, 1),
    ("a: @b", "found character that cannot start any token", 1, 4),
    ("a: %b", "found character that cannot start any token", 1, 4),
    ("a: \x07", "the character U+0007 is not allowed", 1, 4),
    ("a\r\nb\n\x00", "the character U+0000 is not allowed", 3, 1),
    ("é: \ud800", "the character U+D800 is not allowed", 1, 4),
    ("a: 1234567890123456789", "a number of more than 18 digits", 1, 4),
    ("a: -" + "9" * 5000, "a number of more than 18 digits", 1, 4),
    ("a: 0x1234567890123456789", "a number of more than 18 digits", 1, 4),
    ("[" * 5000, "nested deeper than 32 levels", 1, MAX_DEPTH + 1),
    ("- " * 5000, "nested deeper than 32 levels", 1, 2 * MAX_DEPTH + 1),
    ("{a: " * 5000, "nested deeper than 32 levels", 1, 4 * MAX_DEPTH + 1),
    ("a: " + "b" * MAX_BYTES, "larger than 1048576 bytes", 1, 1),
    ("é" * (MAX_BYTES // 2 + 1), "larger than 1048576 bytes", 1, 1),
]

BOMB = "\n".join(
    f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10 if n else ['lol'])}]" for n in range(20)
)


def span(text: str, *path: str | int, key: bool = False) -> tuple[int, int, int]:
    found = load(text).span(path, key=key)
    return found.line, found.column, found.end


@pytest.mark.parametrize(("text", "value"), SCALARS)
def test_scalars_follow_the_core_schema(text, value):
    found = load(f"key: {text}").data["key"]
    assert (type(found), found) == (type(value), value)


def test_not_a_number_is_read():
    assert math.isnan(load("a: .NaN").data["a"])


def test_keys_stay_texts():
    assert list(load("1: a\nno: b\n~: c\n1,2: d\n012: e").data) == ["1", "no", "~", "1,2", "012"]


@pytest.mark.parametrize(
    ("text", "message", "line", "column"), REFUSED, ids=[row[1][:30] for row in REFUSED]
)
def test_refuses_with_the_place(text, message, line, column):
    with pytest.raises(YamlError, match=re.escape(message)) as caught:
        load(text)
    assert (caught.value.span.line, caught.value.span.column) == (line, column)


def test_a_bomb_of_aliases_does_not_expand():
    with pytest.raises(YamlError, match="anchors and aliases are not read"):
        load(BOMB)


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "---\n", "\ufeff"])
def test_a_text_of_nothing_is_no_value(text):
    assert load(text).data is None


def test_as_deep_as_allowed_is_read():
    data = load("[" * MAX_DEPTH + "]" * MAX_DEPTH).data
    for _ in range(MAX_DEPTH - 1):
        (data,) = data
    assert data == []


def test_every_value_and_key_has_its_place():
    text = "a: 12\nlist:\n  - 'quoted'\n  - {x: yes, é: 7}\n"
    assert span(text, "a") == (1, 4, 6)
    assert span(text, "a", key=True) == (1, 1, 2)
    assert span(text, "list", 0) == (3, 5, 13)
    assert span(text, "list", 1) == (4, 5, 6)
    assert span(text, "list", 1, "x") == (4, 9, 12)
    assert span(text, "list", 1, "é", key=True) == (4, 14, 15)
    assert span(text, "list", 1, "é") == (4, 17, 18)
    assert span(text) == (1, 1, 2)


def test_columns_count_characters():
    assert span("{é日本: ß, 😀: x}", "😀") == (1, 13, 14)


def test_a_value_over_lines_ends_behind_its_first_character():
    assert span('a: "b\n  c"', "a") == (1, 4, 5)
    assert span("a: |\n  b\n", "a") == (1, 4, 5)


def test_the_place_of_what_is_not_there_is_that_around_it():
    assert span("a: {b: 1}", "a", "c") == (1, 4, 5)
    assert span("a: {b: 1}", "a", "b", 3, key=True) == (1, 5, 6)
    assert span("a: 1", "z") == (1, 1, 2)


@given(
    st.text(max_size=40) | st.text(st.sampled_from("ab:- \n\t{}[],'\"#&*!|>?%@1~é"), max_size=40)
)
@settings(deadline=None, max_examples=300)
def test_any_text_is_read_or_refused_inside_it(text):
    try:
        load(text)
    except YamlError as error:
        place = error.span
    else:
        place = None
    lines = re.split("\r\n|[\r\n\x85\u2028\u2029]", text)
    assert place is None or 1 <= place.line <= len(lines)
    assert place is None or 1 <= place.column <= place.end <= len(text) + 3
