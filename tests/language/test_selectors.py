"""Selectors say yes or no to a name, and never take long to."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.language.groups import GROUPS
from converter.language.names import MAX_NAME, TemplateError, parse_selector

FITS = [
    ("global_step", "global_step", True),
    ("global_step", "global_steps", False),
    ("a/*", "a/b", True),
    ("a/*", "a/", True),
    ("a/*", "a/b/c", False),
    ("a/*", "a/b.c", False),
    ("a/**", "a/b/c.d", True),
    ("**/w", "a/b/w", True),
    ("**/w", "w", False),
    ("**", "", True),
    ("*_power", "beta1_power", True),
    ("*/x*/w", "a/xy/w", True),
    ("**x**", "a/x", True),
    ("***", "a/b", True),
    ("conv{i}", "conv12", True),
    ("conv{i}", "conv007", True),
    ("conv{i}", "conv", False),
    ("conv{i}1", "conv111", True),
    ("conv{n:02}", "conv1", False),
    ("conv{n:02}", "conv01", True),
    ("{x:word}/w", "a/w", True),
    ("{x:word}/w", "/w", False),
    ("{x:path}/w", "a/b/w", True),
    ("{x:path}", "", False),
    ("{p:gamma|beta}", "beta", True),
    ("{p:gamma|beta}s", "gammas", True),
    ("{p:gamma|beta}", "alpha", False),
    ("a.b", "aXb", False),
    ("a{{*}}", "a{x}", True),
    ("line*", "line\nbreak", True),
]

BAD = [
    ("abc{!}", "`{!}` is not a hole", 4),
    ("**/a{b", "a brace is not closed", 4),
    ("*/}", "a closing brace without an opening one", 2),
    ("a{x*}", "a brace is not closed", 1),
    ("{t[i]}", "there is no table 't'", 1),
    ("*" * 17, "at most 8 stars and holes", 0),
    ("{a}" * 9, "at most 8 stars and holes", 0),
]

SLOW = ["**a" * 3 + "b" + "**a" * 4, "*a" * 3 + "b" + "*a" * 4, "{x:path}" * 4 + "b{x:path}a"]


@pytest.mark.parametrize(("text", "name", "fits"), FITS)
def test_fits_whole_names(text, name, fits):
    assert parse_selector(text)(name) is fits


@pytest.mark.parametrize(("text", "message", "offset"), BAD)
def test_refuses_bad_selectors_at_the_character(text, message, offset):
    with pytest.raises(TemplateError, match=re.escape(message)) as caught:
        parse_selector(text)
    assert caught.value.offset == offset


@pytest.mark.parametrize("text", SLOW)
def test_names_made_to_be_slow_are_answered(text):
    """Trying all ways, of which there are thousands to the power of seven, would not come back."""
    assert not parse_selector(text)("a" * MAX_NAME)
    assert parse_selector(text.replace("b", ""))("a" * MAX_NAME)


def test_names_without_end_fit_nothing():
    assert parse_selector("**")("a" * MAX_NAME)
    assert not parse_selector("**")("a" * (MAX_NAME + 1))


def test_a_scope_goes_before():
    selector = parse_selector("*/w").scoped("{my}*")
    assert selector("{my}*a/w")
    assert not selector("a/w")
    assert parse_selector("global_step").scoped("my").anchors == ((-1, "myglobal_step"),)


def test_every_shipped_group_is_read_and_has_a_reason():
    for because, patterns in GROUPS.values():
        assert because
        assert all(parse_selector(text).anchors or "**" in text for text in patterns)


def naive(text: str) -> re.Pattern[str]:
    """The same, as a regular expression that may take forever."""
    words = {"**": ".*", "*": "[^/.]*", "{i}": "[0-9]+", "{w:word}": "[^/.]+", "{p:path}": ".+"}
    parts = re.split(r"(\*\*|\*|\{[^{}]*\})", text)
    return re.compile("".join(words.get(part) or re.escape(part) for part in parts), re.DOTALL)


WORDS = st.sampled_from(["*", "**", "{i}", "{w:word}", "{p:path}"])


@given(
    st.lists(WORDS | st.text("a1/.", min_size=1, max_size=2), max_size=5).map("".join),
    st.text("a1/.", max_size=8),
)
@settings(deadline=None, max_examples=400)
def test_agrees_with_a_regular_expression(text, name):
    assert parse_selector(text)(name) == (naive(text).fullmatch(name) is not None)
