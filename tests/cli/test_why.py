"""`converter why`: the whole story of one name, from either side."""

from __future__ import annotations

import json

import numpy as np
import pytest

from converter.language.load import shipped
from tests.cli import checkpoints
from tests.cli.checkpoints import FC6, MAPPING

MINE = """\
mapping: 1
tables: {layer: {1: first, 2: second}}
rules:
  - source: conv{i}/{p:gamma|beta}
    target: "{layer[i]}.{p:weight|bias}"
  - source: [q, k, v]
    target: qkv
    about: torch fuses them
    ops:
      - rearrange: i o -> o i
      - concat: "[o] i"
  - source: expert_{e}
    target: experts
    ops: [stack: "[e] i"]
  - source: fused
    target: part.{n}
    ops:
      - unstack: "[n] i"
  - source: crooked
    target: straight
    ops:
      - rearrange: i o -> o i
      - transpose: [2, 1, 0]
drop:
  - {source: step, because: a counter}
make:
  - {target: version, dtype: int64, fill: 3, because: PyTorch asks for it}
"""


@pytest.fixture
def mine(folder):
    (folder / "mine.yaml").write_text(MINE)
    square = np.zeros((2, 3), np.float32)
    arrays = {"conv1/gamma": square[0], "conv2/beta": square[0], "q": square, "k": square}
    arrays |= {"v": square, "expert_0": square[0], "expert_1": square[0], "fused": square}
    arrays |= {"step": np.int64(1), "crooked": square, "nobodys": square}
    checkpoints.write(folder / "mine.npz", arrays)


def test_a_source(converter):
    result = converter("why", FC6, "slim.ckpt", "-m", MAPPING)
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0] == f"{FC6}  float32 [7, 7, 16, 128]"
    text = (shipped() / f"{MAPPING}.yaml").read_text().splitlines()
    line = text.index(f"  - source: {FC6}") + 1
    assert lines[1].endswith(f"slim-torchvision.yaml:{line}:13")
    assert lines[2] == f"  rule   {FC6} -> classifier.0.weight"
    assert lines[3].startswith("  about  slim convolves a 7x7 window")
    assert lines[4] == (
        "  rearrange: {pattern: h w i o -> o (i h w), sizes: {h: 7, w: 7}}  float32 [128, 784]"
    )
    assert lines[5] == "→ classifier.0.weight  float32 [128, 784]"
    assert "no shape shows the order of i, h, w" in lines[6]


def test_a_target_is_the_story_of_its_source(converter):
    assert (
        converter("why", "classifier.0.weight", "slim.ckpt", "-m", MAPPING).out
        == converter("why", FC6, "slim.ckpt", "-m", MAPPING).out
    )


STORIES = {
    "holes, a table and a choice": ("second.bias", ["holes  i=2  p=beta", "conv2/beta  float32"]),
    "a join, by one of its sources": (
        "k",
        [
            "q  float32 [2, 3]\nk  float32 [2, 3]\nv  float32 [2, 3]\n",
            "about  torch fuses them",
            "rearrange: i o -> o i  3 of float32 [3, 2]",
            'concat: "[o] i"        float32 [9, 2]',
            "→ qkv  float32 [9, 2]",
        ],
    ),
    "what is gathered": ("experts", ["holes  e=0,1", "→ experts  float32 [2, 3]"]),
    "what is scattered": ("fused", ["2 of float32 [3]", "→ part.0  float32 [3]\n→ part.1  "]),
    "one that is scattered": ("part.1", ["fused  float32 [2, 3]", "→ part.1  float32 [3]"]),
    "a constant": ("version", ["made   a constant, 3", "PyTorch asks for it", "→ version  int64"]),
    "a drop": ("step", ["step  int64 []", "at       mine.yaml:25:5", "dropped  a counter"]),
}


@pytest.mark.parametrize(("name", "says"), STORIES.values(), ids=STORIES)
def test_stories(name, says, converter, mine):
    result = converter("why", name, "mine.npz", "-m", "mine.yaml")
    assert (result.code, result.err) == (0, "")
    for text in says:
        assert text in result.out, result.out


def test_only_the_target_that_was_asked_for(converter, mine):
    assert "part.0" not in converter("why", "part.1", "mine.npz", "-m", "mine.yaml").out


def test_an_op_that_does_not_fit(converter, mine):
    result = converter("why", "crooked", "mine.npz", "-m", "mine.yaml")
    assert result.code == 1
    assert "rearrange: i o -> o i  float32 [3, 2]\n" in result.out
    assert "transpose: [2, 1, 0]   does not fit\n" in result.out
    assert "mine.yaml:23:9: error[PLN220]" in result.err


def test_a_tensor_that_no_rule_takes(converter, mine):
    result = converter("why", "nobodys", "mine.npz", "-m", "mine.yaml")
    assert result.code == 1
    assert "no rule takes 'nobodys'" in result.err


def test_a_name_that_nobody_knows(converter, mine):
    result = converter("why", "conv1/gama", "mine.npz", "-m", "mine.yaml")
    assert result.code == 3
    assert "did you mean conv1/gamma" in result.err


CHAIN = ("-m", "vgg16/slim-fasterrcnn", "-m", "vgg16/fasterrcnn-pytorch")


@pytest.mark.parametrize("name", [FC6, "vgg.classifier.0.weight"])
def test_through_a_chain(name, converter):
    steps = json.loads(converter("why", name, "slim.ckpt", *CHAIN, "--format", "json").out)["steps"]
    assert [list(step["targets"]) for step in steps] == [[FC6], ["vgg.classifier.0.weight"]]
    assert [step["ops"][-1]["gives"] for step in steps] == [
        ["float32 [784, 128]"],
        ["float32 [128, 784]"],
    ]


def test_backward_and_under_a_scope(converter, folder):
    converter("convert", "slim.ckpt", "net.pt", "-m", MAPPING, "--target-scope", "net.")
    way = ("-m", MAPPING, "--reverse", "--source-scope", "net.")
    result = converter("why", "net.classifier.0.weight", "net.pt", *way)
    assert result.code == 0
    assert "o (i h w) -> h w i o" in result.out
    assert f"→ {FC6}  float32 [7, 7, 16, 128]" in result.out


def test_what_is_left_alone(converter):
    result = converter("why", FC6, "slim.ckpt", "-m", MAPPING, "--only", "vgg_16/fc7/*")
    assert result.code == 0
    assert "left alone  outside the scope or the selection" in result.out
