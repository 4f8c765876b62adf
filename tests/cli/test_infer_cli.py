"""`converter infer`: a mapping on stdout or in a file, and how sure it is."""

from __future__ import annotations

import json

from tests.cli import checkpoints


def test_a_mapping_that_can_be_used(converter):
    converter("convert", "slim.ckpt", "tv.safetensors", "-m", checkpoints.MAPPING)
    result = converter("infer", "slim.ckpt", "tv.safetensors", "-o", "found.yaml")
    assert result.code == 0, result
    assert "they make the target, bit for bit" in result.err
    assert converter("plan", "slim.ckpt", "-m", "found.yaml").code == 0
    assert converter("diff", "slim.ckpt", "tv.safetensors", "-m", "found.yaml").code == 0
    again = converter("infer", "slim.ckpt", "tv.safetensors", "-o", "found.yaml")
    assert again.code == 4
    assert "--overwrite" in again.err
    printed = converter("infer", "slim.ckpt", "tv.safetensors")
    assert "rearrange: h w i o -> o i h w" in printed.out
    assert "sizes: {h: 7, w: 7}" in printed.out


def test_a_listing_is_enough_for_a_guess(converter, folder):
    converter("convert", "slim.ckpt", "tv.safetensors", "-m", checkpoints.MAPPING)
    listing = converter("inspect", "tv.safetensors", "--format", "json").out
    (folder / "tv.json").write_text(listing)
    result = converter("infer", "slim.ckpt", "tv.json", "--format", "json")
    found = json.loads(result.out)
    assert (result.code, found["guessed"], found["exact"], found["open"]) == (0, True, False, {})
    assert "# guessed" in found["mapping"]
    (folder / "found.yaml").write_text(found["mapping"])
    equal = converter("diff", "slim.ckpt", "tv.safetensors", "-m", "found.yaml", "--format", "json")
    rows = json.loads(equal.out)["tensors"]
    assert sum(row["status"] == "equal" for row in rows) >= 0.9 * len(rows)


def test_what_is_not_found(converter, folder):
    (folder / "broken.json").write_text('{"tensors": [{"name": 1}]}')
    result = converter("infer", "slim.ckpt", "broken.json")
    assert result.code == 3
    assert "no listing of tensors" in result.err
    result = converter("infer", "slim.ckpt", "trained.ckpt")
    assert result.code == 1
    assert "not found" in result.err
    assert "# Not found" in result.out
    assert converter("infer", "slim.ckpt", "slim.pt", "-o", "missing/x.yaml").code == 3
