"""Tensors of several names, and targets in the form of a template, from the command line."""

from __future__ import annotations

import json

import click
import numpy as np
import pytest

from converter import cli
from converter.cli import options
from converter.formats import tf_v2
from tests.cli import checkpoints

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
KERNEL, BIAS = f"layer-1/kernel{VALUE}", f"layer-1/bias{VALUE}"
STEP = f"optimizer/iterations{VALUE}"
FULL = {"layer-1/kernel", "layer-1/bias", "optimizer/iterations"}
MAPPING = """\
mapping: 1
rules:
  - {source: layer-1/kernel, target: dense.weight, ops: [transpose: [1, 0]]}
  - {source: layer-1/bias, target: dense.bias}
drop: [{source: "optimizer/**", because: training}]
"""


def live(factor: int = 1) -> dict[str, np.ndarray]:
    """What a model of one layer saves."""
    kernel = np.arange(6, dtype="f4").reshape(2, 3) * factor
    return {KERNEL: kernel, BIAS: kernel[0] + 7 * factor, STEP: np.int64(5 * factor)}


@pytest.fixture
def objects(folder):
    """The folder with an object-based checkpoint, a mapping of its full names, and the ported."""
    checkpoints.write(folder / "live.ckpt", live())
    (folder / "names.yaml").write_text(MAPPING)
    ported = {"dense.weight": live(2)[KERNEL].T, "dense.bias": live(2)[BIAS]}
    checkpoints.write(folder / "ported.safetensors", ported)
    return folder


def test_the_choice_is_that_of_the_format():
    assert tuple(options.NAMES.choices) == tf_v2.NAMES


@pytest.mark.parametrize(
    "command",
    ["inspect", "show", "plan", "why", "convert", "verify", "diff", "roundtrip", "infer", "parity"],
)
def test_every_command_that_reads_a_source_has_the_choice(command):
    known = cli.cli.get_command(click.Context(cli.cli), command)
    assert "names" in {each.name for each in known.params}


def test_inspect_by_full_name(converter, objects):
    told = json.loads(
        converter("inspect", "live.ckpt", "--names", "full_name", "--format=json").out
    )
    assert {row["name"] for row in told["tensors"]} == FULL
    assert not any("aliases" in row for row in told["tensors"])
    assert "layer-1/kernel  float32" in converter(
        "show", "live.ckpt", "layer-1/kernel", "--names", "full_name"
    ).out.replace(VALUE, "(key)")


@pytest.mark.parametrize("tree", [(), ("--tree",)])
def test_inspect_shows_aliases(tree, converter, objects):
    lines = converter("inspect", "live.ckpt", "--aliases", *tree).out.splitlines()
    assert lines[0].split() == ["name", "dtype", "shape", "bytes", "also"]
    assert [line.split()[-1] for line in lines if "float32" in line or "int64" in line] == [
        "layer-1/bias",
        "layer-1/kernel",
        "optimizer/iterations",
    ]
    told = json.loads(converter("inspect", "live.ckpt", "--aliases", "--format", "json").out)
    assert told["tensors"][0] == {
        "name": BIAS,
        "dtype": "float32",
        "shape": [3],
        "nbytes": 12,
        "aliases": ["layer-1/bias"],
    }
    plain = json.loads(converter("inspect", "slim.pt", "--aliases", "--format", "json").out)
    assert plain["tensors"][0]["aliases"] == []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("inspect", "live.ckpt", "--names", "full"), 2, "'full' is not one of"),
        (("inspect", "slim.pt", "--names", "key"), 3, "the format has no such names: 'key'"),
        (("diff", "slim.pt", "slim.pt", "--target-names", "key"), 3, "a tensor has one name"),
    ],
)
def test_names_that_there_are_not(arguments, code, message, converter, objects):
    result = converter(*arguments)
    assert result.code == code
    assert message in result.err


def test_a_mapping_of_full_names(converter, objects):
    by_name = ("-m", "names.yaml", "--names", "full_name")
    assert converter("plan", "live.ckpt", *by_name).code == 0
    assert "-> dense.bias" in converter("why", "dense.bias", "live.ckpt", *by_name).out
    assert converter("roundtrip", "live.ckpt", *by_name).code == 0
    done = converter("convert", "live.ckpt", "x.pt", *by_name, "--report", "r.json")
    assert done.code == 0
    assert json.loads((objects / "r.json").read_text())["options"]["names"] == "full_name"
    np.testing.assert_array_equal(
        checkpoints.read(objects / "x.pt")["dense.weight"], live()[KERNEL].T
    )
    assert converter("verify", "live.ckpt", "x.pt", *by_name).code == 0
    back = ("-m", "names.yaml", "--reverse", "--target-names", "full_name", "--only", "layer-1/**")
    assert converter("diff", "x.pt", "live.ckpt", *back).code == 0
    assert converter("verify", "x.pt", "live.ckpt", *back).code == 0
    inferred = converter("infer", "live.ckpt", "x.pt", "--names", "full_name")
    assert "source: layer-1/kernel" in inferred.out


def test_a_template_gives_what_the_source_lacks(converter, objects):
    arguments = ("-m", "names.yaml", "--reverse", "--template", "live.ckpt")
    result = converter("convert", "ported.safetensors", "new.ckpt", *arguments, "--report=r.json")
    assert result.code == 0
    assert f"still as in the template: 1 tensor: {STEP}" in result.err
    written = checkpoints.read(objects / "new.ckpt")
    assert checkpoints.equal(written, live(2) | {STEP: live()[STEP]})
    told = json.loads((objects / "r.json").read_text())
    assert told["kept"] == [STEP]
    assert {row["name"]: row["sources"] for row in told["lineage"]} == {
        KERNEL: ["dense.weight"],
        BIAS: ["dense.bias"],
    }
    assert {"live.ckpt.index", "ported.safetensors"} <= {row["name"] for row in told["inputs"]}
    assert converter("verify", "new.ckpt", "--report", "r.json").code == 0
    assert converter("verify", "ported.safetensors", "new.ckpt", *arguments).code == 0
    assert converter("verify", "ported.safetensors", "live.ckpt", *arguments).code == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("live.ckpt", "x.pt", "--template", "live.ckpt"), 2, "a target of the format tf-v2"),
        (("slim.pt", "x.ckpt", "--template", "live.ckpt"), 1, "the template has no such tensor"),
        (("live.ckpt", "x.ckpt", "--template", "missing.ckpt"), 3, "missing.ckpt"),
    ],
)
def test_templates_that_do_not_fit(arguments, code, message, converter, objects):
    before = checkpoints.listing(objects)
    result = converter("convert", *arguments)
    assert (result.code, checkpoints.listing(objects)) == (code, before)
    assert message in result.err


MANIFEST = """\
batch: 1
entries:
  - {source: live.ckpt, target: out/x.pt, mapping: names.yaml, options: {names: full_name}}
  - source: ported.safetensors
    target: out/new.ckpt
    mapping: names.yaml
    options: {reverse: true, template: live.ckpt}
"""


def test_names_and_templates_in_a_batch(converter, objects):
    (objects / "nested").mkdir()
    for path in [
        *objects.glob("live.ckpt*"),
        objects / "names.yaml",
        objects / "ported.safetensors",
    ]:
        path.rename(objects / "nested" / path.name)
    (objects / "nested" / "ports.yaml").write_text(MANIFEST)
    assert converter("batch", "nested/ports.yaml", "--plan").code == 0
    assert converter("batch", "nested/ports.yaml", "--verify").code == 0
    folder = objects / "nested"
    assert {*checkpoints.read(folder / "out/x.pt")} == {"dense.weight", "dense.bias"}
    written = checkpoints.read(folder / "out/new.ckpt")
    assert checkpoints.equal(written, live(2) | {STEP: live()[STEP]})
    checkpoints.write(folder / "live.ckpt", live(3))
    assert "2 entries: 2 converted" in converter("batch", "nested/ports.yaml").err
    assert checkpoints.read(folder / "out/new.ckpt")[STEP] == 15
