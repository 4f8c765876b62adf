"""`converter diff`: verdicts, words and JSON."""

from __future__ import annotations

import json

import numpy as np

from tests.cli import checkpoints


def test_a_checkpoint_equals_itself_in_another_format(converter):
    result = converter("diff", "slim.ckpt", "slim.safetensors")
    assert result.code == 0
    assert "equal: 34 tensors" in result.err
    assert "bit for bit" in result.err


def test_through_a_mapping(converter):
    converter("convert", "slim.ckpt", "tv.safetensors", "-m", checkpoints.MAPPING)
    assert converter("diff", "slim.ckpt", "tv.safetensors", "-m", checkpoints.MAPPING).code == 0
    back = converter("diff", "tv.safetensors", "slim.ckpt", "-m", checkpoints.MAPPING, "--reverse")
    assert back.code == 1
    assert "vgg_16/mean_rgb" in back.out
    assert "only in B" in back.out


def test_fc6_and_fc7_of_a_trained_detector(converter, folder):
    """The article's question: 4-D against 2-D, in one command."""
    slim = checkpoints.slim()
    trained = {name: value for name, value in slim.items() if "/fc6/" in name or "/fc7/" in name}
    for name in ("vgg_16/fc6/weights", "vgg_16/fc7/weights"):
        trained[name] = trained[name].reshape(-1, trained[name].shape[-1])
    checkpoints.write(folder / "fc.ckpt", trained)
    result = converter(
        "diff", "slim.ckpt", "fc.ckpt", "--only", "vgg_16/fc6/*", "--only", "**/fc7/*"
    )
    assert result.code == 1
    assert "2 of 4 tensors differ" in result.out
    assert "equal after `h w i o -> (h w i) o` (h = 7, w = 7)" in result.out
    assert "equal after `1 1 i o -> i o`" in result.out
    mapped = ("-m", "vgg16/slim-fasterrcnn", "--only", "vgg_16/fc6/*", "--only", "vgg_16/fc7/*")
    assert converter("diff", "slim.ckpt", "fc.ckpt", *mapped).code == 0


def test_json_names_the_reversal(converter, folder):
    slim = checkpoints.slim()
    name = "vgg_16/conv1/conv1_1/weights"
    slim[name] = slim[name][:, :, ::-1]
    checkpoints.write(folder / "bgr.npz", slim)
    result = converter("diff", "slim.ckpt", "bgr.npz", "--format", "json")
    found = json.loads(result.out)
    assert (result.code, found["equal"], len(found["tensors"])) == (1, False, 34)
    worst = found["tensors"][0]
    assert (worst["name"], worst["status"]) == (name, "values")
    assert worst["count"] > 0
    assert len(worst["index"]) == 4
    assert worst["explanation"] == {
        "text": "equal after reversing axis 2",
        "ops": [{"reverse": "h w [i] o"}],
        "exact": True,
        "names": [],
    }
    assert {row["status"] for row in found["tensors"][1:]} == {"equal"}
    plain = converter("diff", "slim.ckpt", "bgr.npz", "--format", "json", "--no-explain")
    assert json.loads(plain.out)["tensors"][0]["explanation"] is None


def test_tolerances_missing_and_extra(converter, folder):
    values = {"a": np.ones(3, "f4"), "b": np.zeros(2, "f4"), "d": np.zeros(2, "i4")}
    checkpoints.write(folder / "one.npz", values)
    other = {"a": values["a"] * np.float32(1.001), "c": np.full(2, 7, "f4"), "d": np.zeros(2, "i8")}
    checkpoints.write(folder / "two.npz", other)
    result = converter("diff", "one.npz", "two.npz", "--rtol", "0.01")
    assert result.code == 1
    assert [line.split()[:2] for line in result.out.splitlines() if line[0] != " "] == [
        ["b", "missing"],
        ["c", "extra"],
        ["d", "dtype"],
        ["3", "of"],
    ]
    only = converter("diff", "one.npz", "two.npz", "--rtol", "0.01", "--only", "a")
    assert only.code == 0
    assert "bit for bit" not in only.err
