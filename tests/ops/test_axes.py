"""The axis notation: what it reads, what it refuses and where, and the sizes that it works out."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.errors import OpError
from converter.layout import View
from converter.ops import OPS
from converter.ops.axes import Marked, NotationError, Pattern, parse, parse_marked, solve

GOOD = {
    "h w i o -> o i h w": "h w i o -> o i h w",
    "h w i o->(h w i)o": "h w i o -> (h w i) o",
    "  a   b -> b a ": "a b -> b a",
    "a 1 -> 1 a": "a 1 -> 1 a",
    "a () -> (a)": "a 1 -> a",
    "a -> (a 1)": "a -> a",
    "... a -> a ...": "... a -> a ...",
    "a -> a": "a -> a",
    "->": " -> ",
    "1 ->": "1 -> ",
    "Aa _b c1 -> c1 _b Aa": "Aa _b c1 -> c1 _b Aa",
}
BAD = [
    ("a b", "expected one arrow", 0),
    ("a -> b -> c", "expected one arrow", 0),
    ("a b -> a", "axis 'b' stands on the left side only", 2),
    ("ba a -> ba", "axis 'a' stands on the left side only", 3),
    ("ba -> ba a", "axis 'a' stands on the right side only", 9),
    ("a ... -> a", "axis '...' stands on the left side only", 2),
    ("a a -> a", "axis 'a' stands twice on one side", 2),
    ("a b -> (a b) a", "axis 'a' stands twice on one side", 13),
    ("a -> (a", "a parenthesis is not closed", 5),
    ("a) -> a", "')' does not belong here", 1),
    ("((a)) -> a", "'(' does not belong here", 1),
    ("a 2 -> a", "'2' does not belong here", 2),
    ("1a -> a", "'1a' does not belong here", 0),
    ("11 a -> a", "'11' does not belong here", 0),
    ("a [b] -> a b", "'[' does not belong here", 2),
    ("(... a) -> ... a", "'...' does not belong here", 1),
    ("a .. -> a ..", "'.' does not belong here", 2),
    ("é -> é", "'é' does not belong here", 0),
]
GOOD_MARKS = {
    "h w [i] o": ("h w [i] o", (2,)),
    "[h w] i": ("[h] [w] i", (0, 1)),
    "... [o]": ("... [o]", (1,)),
    "1 [i]": ("1 [i]", (1,)),
}
BAD_MARKS = [
    ("h w", "mark the axis that is meant", 0),
    ("[]", "mark the axis that is meant", 0),
    ("[h w", "mark the axis that is meant", 0),
    ("h] w", "']' does not belong here", 1),
    ("[[h]]", "'[' does not belong here", 1),
    ("[h] h", "axis 'h' stands twice", 4),
    ("[...] h", "'...' does not belong here", 1),
    ("[1] h", "'1' does not belong here", 1),
    ("[h] 3", "'3' does not belong here", 4),
    ("[i] -> o", "'-' does not belong here", 4),
]
# The examples of einops' documentation, with a batch of 4 images of 6 by 8 pixels of 3 channels.
EINOPS = [
    ("b h w c -> b h w c", {}, (4, 6, 8, 3)),
    ("b h w c -> (b h) w c", {}, (24, 8, 3)),
    ("b h w c -> h (b w) c", {}, (6, 32, 3)),
    ("b h w c -> b c h w", {}, (4, 3, 6, 8)),
    ("b h w c -> b (c h w)", {}, (4, 144)),
    ("b (h1 h) (w1 w) c -> (b h1 w1) h w c", {"h1": 2, "w1": 2}, (16, 3, 4, 3)),
    ("b (h h1) (w w1) c -> b h w (c h1 w1)", {"h1": 2, "w1": 2}, (4, 3, 4, 12)),
    ("(b1 b2) h w c -> (b1 h) (b2 w) c", {"b1": 2}, (12, 16, 3)),
    ("b h w c -> 1 b 1 h 1 w 1 c", {}, (1, 4, 1, 6, 1, 8, 1, 3)),
    ("b ... c -> c ... b", {}, (3, 6, 8, 4)),
]
EINOPS_ORACLES = {
    "b (h1 h) (w1 w) c -> (b h1 w1) h w c": lambda a: (
        a.reshape(4, 2, 3, 2, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(16, 3, 4, 3)
    ),
    "b (h h1) (w w1) c -> b h w (c h1 w1)": lambda a: (
        a.reshape(4, 3, 2, 4, 2, 3).transpose(0, 1, 3, 5, 2, 4).reshape(4, 3, 4, 12)
    ),
    "b h w c -> h (b w) c": lambda a: np.concatenate(list(a), axis=1),
    "b h w c -> (b h) w c": lambda a: np.concatenate(list(a), axis=0),
}
UNSOLVABLE = [
    ("a b -> b a", (2, 3, 4), {}, "does not fit the number of axes", "2 axes", "3 axes"),
    ("a b ... -> b a ...", (2,), {}, "does not fit the number of axes", "3 axes", "1 axes"),
    ("(a b) -> a b", (6,), {}, "cannot be solved: a and b are not known", "", r"\[6\]"),
    ("(a b) -> a b", (6,), {"a": 4}, "cannot be divided by 4", "a multiple of 4", r"\[6\]"),
    ("(a b) -> a b", (6,), {"a": 2, "b": 2}, "sizes do not fit", r"4 for \(a b\)", "6 in"),
    ("a b -> b a", (2, 3), {"a": 3}, "sizes do not fit", r"3 for \(a\)", "2 in"),
    ("a 1 -> a", (2, 3), {}, "sizes do not fit", "1 for an axis of 1", "3 in"),
]


@pytest.mark.parametrize(("text", "shown"), GOOD.items())
def test_reads_patterns(text, shown):
    assert str(parse(text)) == shown
    assert parse(shown) == parse(text)


@pytest.mark.parametrize(("text", "message", "offset"), BAD)
def test_refuses_bad_patterns_at_the_character(text, message, offset):
    with pytest.raises(NotationError, match=re.escape(message)) as caught:
        parse(text)
    assert caught.value.offset == offset


@pytest.mark.parametrize(("text", "expected"), GOOD_MARKS.items())
def test_reads_marked_axes(text, expected):
    marked = parse_marked(text)
    assert (str(marked), marked.marks) == expected
    assert parse_marked(str(marked)) == marked


@pytest.mark.parametrize(("text", "message", "offset"), BAD_MARKS)
def test_refuses_bad_marks_at_the_character(text, message, offset):
    with pytest.raises(NotationError, match=re.escape(message)) as caught:
        parse_marked(text)
    assert caught.value.offset == offset


@pytest.mark.parametrize(("pattern", "sizes", "shape"), EINOPS)
def test_agrees_with_the_examples_of_einops(pattern, sizes, shape):
    images = np.arange(4 * 6 * 8 * 3).reshape(4, 6, 8, 3)
    op = OPS["rearrange"].read({"pattern": pattern, "sizes": sizes})
    (view,) = op.apply([View.of(images)], 1)
    assert view.shape == shape
    if pattern in EINOPS_ORACLES:
        np.testing.assert_array_equal(view.numpy(), EINOPS_ORACLES[pattern](images))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("a b c d e -> (a b) c d e", "a b ... -> (a b) ..."),
        ("a b c d e -> a b c (d e)", "... d e -> ... (d e)"),
        ("a b c d e -> e b c d a", "a ... e -> e ... a"),
        ("a b c d e -> a (b) (c) d e", "... -> ..."),
        ("a b c d e -> a b c d e", "a b c ... e -> a b c ... e"),
    ],
)
def test_an_ellipsis_stands_for_the_axes_between(left, right):
    solved = [solve(parse(text), (2, 3, 4, 5, 6), ()) for text in (left, right)]
    assert solved[0].merged == solved[1].merged
    assert solved[0].order == solved[1].order


@pytest.mark.parametrize(("pattern", "shape", "sizes", "message", "expected", "found"), UNSOLVABLE)
def test_says_what_was_expected_and_found(  # noqa: PLR0913 - the columns of the table
    pattern, shape, sizes, message, expected, found
):
    with pytest.raises(OpError, match=message) as caught:
        solve(parse(pattern), shape, tuple(sizes.items()))
    assert re.match(expected, caught.value.expected)
    assert re.match(found, caught.value.found)


@pytest.mark.parametrize(
    ("text", "rank", "positions"),
    [
        ("h w [i] o", 4, (2,)),
        ("... [o]", 1, (0,)),
        ("... [o]", 4, (3,)),
        ("[a] ... [b]", 2, (0, 1)),
    ],
)
def test_marks_count_over_an_ellipsis(text, rank, positions):
    assert parse_marked(text).positions(rank, (1,) * rank) == positions


@pytest.mark.parametrize(("text", "rank"), [("[i] o", 3), ("[i] o", 1), ("a [b] ...", 1)])
def test_marks_of_another_rank_are_errors(text, rank):
    with pytest.raises(OpError, match="does not fit the number of axes"):
        parse_marked(text).positions(rank, (2,) * rank)


def test_a_one_among_marks_is_an_axis_of_one():
    with pytest.raises(OpError, match="does not fit") as caught:
        parse_marked("1 [i]").positions(2, (5, 3))
    assert caught.value.expected == "an axis of 1"


AXES = st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=6)


@st.composite
def sides(draw, axes: list[str]) -> tuple[tuple[str, ...], ...]:
    """The axes in some groups, with some axes of one between them."""
    groups: list[tuple[str, ...]] = []
    rest = list(axes)
    while rest or draw(st.booleans()):
        count = draw(st.integers(0, len(rest)))
        groups.append(tuple(rest[:count]))
        rest = rest[count:]
    return tuple(groups)


@st.composite
def patterns(draw) -> Pattern:
    axes = draw(AXES)
    return Pattern(draw(sides(axes)), draw(sides(draw(st.permutations(axes)))))


@given(patterns())
@settings(deadline=None)
def test_what_is_printed_reads_the_same(pattern):
    assert parse(str(pattern)) == pattern
    assert pattern.swapped().swapped() == pattern


@given(AXES.filter(bool), st.data())
@settings(deadline=None)
def test_what_is_printed_of_marks_reads_the_same(axes, data):
    marks = data.draw(st.lists(st.sampled_from(range(len(axes))), min_size=1, unique=True))
    marked = Marked(tuple(axes), tuple(sorted(marks)))
    assert parse_marked(str(marked)) == marked


@given(st.text(st.sampled_from("ab1 ()[].->\n2é"), max_size=12))
@settings(deadline=None)
def test_any_text_is_read_or_refused_inside_it(text):
    assert 0 <= offset_of_error(parse, text) <= len(text)
    assert 0 <= offset_of_error(parse_marked, text) <= len(text)


def offset_of_error(read, text) -> int:
    try:
        read(text)
    except NotationError as error:
        return error.offset
    return 0
