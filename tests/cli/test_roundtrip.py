"""`converter roundtrip`: bit for bit, or the rule and the op that lose something."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.cli import checkpoints

CASTS = """\
mapping: 1
rules:
  - source: "{x:word}"
    target: "{x}.weight"
    ops:
      - rearrange: i o -> o i
      - cast: {from: %s, to: %s}
"""


@pytest.mark.parametrize("mapping", ["vgg16/slim-torchvision", "vgg16/slim-fasterrcnn"])
def test_the_shipped_mappings_lose_nothing(converter, mapping):
    result = converter("roundtrip", "slim.ckpt", "-m", mapping)
    assert result.code == 0, result
    assert "equal bit for bit" in result.err
    assert "dropped by the mapping" in result.err


def test_a_chain(converter):
    chain = (
        "-m",
        "vgg16/slim-fasterrcnn",
        "-m",
        "vgg16/fasterrcnn-pytorch",
        "--only",
        "**/conv*/**",
    )
    result = converter("roundtrip", "slim.ckpt", *chain, "--format", "json")
    assert result.code == 0, result
    assert json.loads(result.out)["equal"]


def test_what_is_lost_names_the_op(converter, folder):
    """A signalling NaN does not survive the processor's casts: all else does."""
    values = {"kept": np.ones((2, 3), "f4"), "lost": np.full((2, 3), 0x7F800001, "u4").view("f4")}
    checkpoints.write(folder / "values.npz", values)
    (folder / "cast.yaml").write_text(CASTS % ("float32", "float64"))
    result = converter("roundtrip", "values.npz", "-m", "cast.yaml", "--format", "json")
    found = json.loads(result.out)
    assert result.code == 1
    (loss,) = found["losses"]
    assert loss["name"] == "lost"
    assert loss["place"] == "cast.yaml:7"
    assert loss["op"] == {"cast": {"from": "float32", "to": "float64"}}
    human = converter("roundtrip", "values.npz", "-m", "cast.yaml")
    assert "lost by `cast: " in human.out
    assert "at cast.yaml:7 ({x:word} -> {x}.weight)" in human.out


def test_what_is_rounded_is_lost_although_an_op_and_its_inverse_cancel(converter, folder):
    checkpoints.write(folder / "values.npz", {"x": np.linspace(1, 2, 1000, dtype="f4")})
    rule = '{source: "{x:word}", target: "{x}.weight", ops: [{scale: {divisor: 127.5}}]}'
    (folder / "scale.yaml").write_text(f"mapping: 1\nrules:\n  - {rule}\n")
    result = converter("roundtrip", "values.npz", "-m", "scale.yaml", "--format", "json")
    assert result.code == 1
    (loss,) = json.loads(result.out)["losses"]
    assert loss["op"] == {"scale": {"divisor": 127.5}}


def test_no_way_back_says_where(converter, folder):
    checkpoints.write(folder / "values.npz", {"x": np.ones((2, 3), "f4")})
    (folder / "cast.yaml").write_text(CASTS % ("float32", "bfloat16"))
    result = converter("roundtrip", "values.npz", "-m", "cast.yaml")
    assert result.code == 1
    assert "cast.yaml:3" in result.err
    assert "casting float32 to bfloat16 has no exact way back" in result.err
    assert converter("roundtrip", "slim.ckpt").code == 2
