"""`converter plan`: what probes prove, and what remains unproved."""

from __future__ import annotations

import json

import numpy as np

from tests.cli import checkpoints

MAPPING = """\
mapping: 1
rules:
  - {source: "conv{n}/kernel", target: "conv.{n}.weight", ops: [rearrange: ... i o -> o i ...]}
probes:
  - {layer: conv2d, source: keras, target: torch, source_scope: conv7/, target_scope: conv.7.}
"""


def test_plan_says_what_is_proved_and_stops_at_what_is_not(converter, folder):
    checkpoints.write(folder / "a.safetensors", {"conv1/kernel": np.ones((3, 3, 4, 4), "f4")})
    (folder / "m.yaml").write_text(MAPPING)
    result = converter("plan", "a.safetensors", "-m", "m.yaml")
    assert (result.code, result.err) == (0, "")
    assert "no shape shows that they change places" in result.out
    assert "proved by conv2d, keras to torch" in result.out
    (folder / "m.yaml").write_text(MAPPING.partition("probes:")[0])
    assert "unproved" in converter("plan", "a.safetensors", "-m", "m.yaml").out
    (folder / "m.yaml").write_text(MAPPING.replace("-> o i ...", "-> i o ..."))
    result = converter("plan", "a.safetensors", "-m", "m.yaml")
    assert result.code == 1
    assert "m.yaml:5:5: error[MAP142]: conv2d, keras to torch" in result.err
    result = converter("plan", "a.safetensors", "-m", "m.yaml", "--format", "json")
    assert result.code == 1
    (ledger,) = json.loads(result.out)["plans"]
    assert ledger["probes"] == [
        {"probe": "conv2d, keras to torch", "at": "m.yaml:5", "agrees": False}
    ]
    assert ledger["steps"][0]["proved_by"] is None
