"""A contract travels in the file: a reversal that is done twice is caught, end to end."""

from __future__ import annotations

import numpy as np
import pytest

from tests.cli import checkpoints

MAPPING = """\
mapping: 1
source: {contract: {channels: RGB}}
target: {contract: {channels: BGR}}
rules:
  - {source: w, target: w, ops: [reverse: "h w [i] o"]}
"""
KERNEL = np.arange(2 * 2 * 3 * 4, dtype="f4").reshape(2, 2, 3, 4)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_double_reversal_is_caught(suffix, converter, folder):
    (folder / "bgr.yaml").write_text(MAPPING)
    checkpoints.write(folder / "rgb.ckpt", {"w": KERNEL})
    once, twice = f"once{suffix}", f"twice{suffix}"
    assert converter("convert", "rgb.ckpt", once, "-m", "bgr.yaml").code == 0
    result = converter("convert", once, twice, "-m", "bgr.yaml")
    assert result.code == 1
    assert "error[PLN210]: the source's contract says another channels" in result.err
    assert "expected: channels: RGB" in result.err
    assert "found: channels: BGR" in result.err
    assert not (folder / twice).exists()
    chained = converter("convert", "rgb.ckpt", twice, "-m", "bgr.yaml", "-m", "bgr.yaml")
    assert chained.code == 1
    assert "PLN210" in chained.err
    assert converter("convert", once, "back.pt", "-m", "bgr.yaml", "--reverse").code == 0
    np.testing.assert_array_equal(checkpoints.read(folder / "back.pt")["w"], KERNEL)
