"""`converter ops`: the reference of ops is what their classes say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from converter.cli.ops import written
from converter.language import yaml
from converter.ops import OPS

ROOT = Path(__file__).parents[2]


def test_the_document_is_current(converter):
    """`converter ops --format markdown > docs/ops.md` makes it so."""
    text = (ROOT / "docs" / "ops.md").read_text(encoding="utf-8")
    assert converter("ops", "--format", "markdown").out == text


def test_the_list(converter):
    rows = json.loads(converter("ops", "--format", "json").out)
    assert [row["name"] for row in rows] == list(OPS)
    lines = converter("ops").out.splitlines()
    assert [line.split(" ")[0] for line in lines] == list(OPS)


@pytest.mark.parametrize("name", OPS)
def test_every_op_shows_an_example_that_is_read(name, converter):
    row = json.loads(converter("ops", name, "--format", "json").out)
    assert row["examples"], f"{name}.about ends with a value in backticks"
    for example in row["examples"]:
        ((word, value),) = yaml.load(example["op"]).data.items()
        assert word == name
        op = OPS[name].read(value)
        assert bool(example["inverse"]) != bool(example["no_way_back"])
        if example["inverse"]:
            ((word, value),) = yaml.load(example["inverse"]).data.items()
            assert OPS[word].read(value) == op.inverse()
    known = {field.key for field in OPS[name].fields.values()}
    assert {field["name"] for field in row["fields"]} == known
    assert all(field["description"] for field in row["fields"])


def test_one_for_people(converter):
    out = converter("ops", "part").out
    assert out.startswith("part (lossy)\n\nKeep one of `of` equal pieces")
    assert "  index: which piece, from 0 (whole number)\n" in out
    assert "      way back: none: part keeps 1 of 3 pieces" in out


def test_what_is_no_op(converter):
    result = converter("ops", "transpoze")
    assert result.code == 2
    assert "did you mean transpose?" in result.err
    assert "there are rearrange," in converter("ops", "zzz").err


@pytest.mark.parametrize(
    "value",
    ["[o] i", "a: b", "h w -> w h", "x #y", {"a": "[o]", "b": [1, -1, "x"]}, 1.5, True, [], {},
     None, "- a", {"a": "b, c"}, "1", "true", ""],
    ids=repr,
)  # fmt: skip
def test_what_is_written_is_what_is_read(value):
    assert yaml.load(written("op", value)).data == {"op": value}
