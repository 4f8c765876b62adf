"""`converter mappings`: which there are and fit, copies, and the examples in a mapping."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest

from converter.language.load import shipped, shipped_names
from tests.cli.checkpoints import MAPPING

ROOT = Path(__file__).parents[2]

# ── ls and for ───────────────────────────────────────────────────────────────────────────────


def test_ls_finds_by_framework_and_model(converter):
    rows = json.loads(converter("mappings", "ls", "--match", "ELECTRA", "--format", "json").out)
    assert [row["name"] for row in rows] == [
        "electra/google-classifier",
        "electra/google-discriminator",
        "electra/google-generator",
        "electra/google-squad",
        "electra/tf-transformers",
    ]
    both = converter("mappings", "ls", "--match", "slim", "--match", "torchvision").out
    assert "vgg16/slim-torchvision" in both
    assert "vgg16/slim-fasterrcnn" not in both
    assert converter("mappings", "ls", "--match", "no such model").out == ""


def test_for_says_what_to_run(converter, folder):
    out = converter("mappings", "for", "slim.ckpt").out.splitlines()
    assert out[0].split("  ")[0] == f"-m {MAPPING}"
    assert "maps 32 of 34, drops 2" in out[0]
    assert out[-1] == f"converter convert slim.ckpt TARGET -m {MAPPING}"
    assert converter(*out[-1].replace("TARGET", "new.pt").split()[1:]).code == 0


def test_for_finds_the_way_back(converter, folder):
    converter("convert", "slim.ckpt", "new.pt", "-m", MAPPING)
    rows = json.loads(converter("mappings", "for", "new.pt", "--format", "json").out)
    options = {row["options"]: row["problems"] for row in rows}
    assert options[f"-m {MAPPING} --reverse"] == 0


def test_for_says_when_nothing_fits(converter, folder):
    converter("convert", "slim.ckpt", "one.pt", "--only", "global_step")
    result = converter("mappings", "for", "one.pt")
    assert (result.code, result.out) == (1, "")
    assert "no shipped mapping takes these names" in result.err


# ── cp ───────────────────────────────────────────────────────────────────────────────────────


def test_cp_copies_into_the_folder(converter, folder):
    result = converter("mappings", "cp", MAPPING)
    assert result.err == "wrote slim-torchvision.yaml\n"
    text = (shipped() / f"{MAPPING}.yaml").read_text()
    first, rest = text.split("\n", 1)
    assert first == "# yaml-language-server: $schema=../schema.json"
    assert (folder / "slim-torchvision.yaml").read_text() == rest
    assert converter("lint", "slim-torchvision.yaml").out == ""
    assert converter("mappings", "cp", MAPPING).code == 4
    assert converter("mappings", "cp", MAPPING, "--overwrite").code == 0


@pytest.mark.parametrize(
    ("target", "written"), [("a.yaml", "a.yaml"), (".", "slim-torchvision.yaml")]
)
def test_cp_takes_a_name(target, written, converter, folder):
    assert converter("mappings", "cp", MAPPING, target).code == 0
    assert (folder / written).is_file()


def test_cp_refuses(converter):
    assert converter("mappings", "cp", MAPPING, "no/such/folder.yaml").code == 3
    assert converter("mappings", "cp", "slim.pt").code == 2
    assert "did you mean" in converter("mappings", "cp", "vgg16/slim-torchvison").err


# ── test ─────────────────────────────────────────────────────────────────────────────────────

RULES = """\
mapping: 1
rules:
  - source: dense{i}/kernel
    target: dense.{i}.weight
    ops: [transpose: [1, 0]]
  - source: [q, k]
    target: qk
    ops: [concat: "[o] i"]
  - source: fused
    target: part.{n}
    ops: [unstack: "[n] i"]
  - source: half
    target: small
    ops: [cast: float16]
  - source: merged
    target: rows
    sizes: {h: 2}
    ops: [rearrange: h w c -> (h w) c]
tests:
"""
RIGHT = {
    "a rule by its number": "{rule: 0, in: [[1, 2], [3, 4]], out: [[1, 3], [2, 4]]}",
    "a rule by a name": "{source: dense3/kernel, target: dense.3.weight, in: [[1]], out: [[1]]}",
    "several sources": "{rule: 1, in: [[[1, 2]], [[3, 4]]], out: [[1, 2], [3, 4]]}",
    "several targets": "{rule: 2, in: [[1, 2], [3, 4]], out: [[1, 2], [3, 4]]}",
    "another dtype": "{rule: 0, dtype: int8, in: [[1, -2]], out: [[1], [-2]]}",
    "a rounded value, one way": "{rule: 3, in: [0.1], out: [0.1]}",
    "values that are none": "{rule: 0, in: [[.nan, .inf]], out: [[.nan], [.inf]]}",
    "nothing": "{rule: 3, in: [], out: []}",
    "the sizes of the rule": "{rule: 4, in: [[[1], [2]], [[3], [4]]], out: [[1], [2], [3], [4]]}",
}


@pytest.mark.parametrize("example", RIGHT.values(), ids=RIGHT)
def test_an_example_that_is_right(example, converter, folder):
    (folder / "m.yaml").write_text(f"{RULES}  - {example}\n")
    result = converter("mappings", "test", "m.yaml")
    assert (result.code, result.out) == (0, "")
    assert result.err == "1 example right\n"


WRONG = {
    "another value": (
        "{rule: 0, in: [[1, 2]], out: [[1], [3]]}",
        "m.yaml:20:34: error[MAP140]: the rule makes something else",
        "found: float32 [[1.0], [2.0]]",
    ),
    "another shape": ("{rule: 0, in: [[1, 2]], out: [[1, 2]]}", "20:34", "MAP140"),
    "one array too many": ("{rule: 2, in: [[1, 2]], out: [[1, 2], [1, 2]]}", "20:34", "MAP140"),
    "an array that the ops do not take": (
        "{rule: 0, in: [1], out: [1]}",
        "20:19: error[MAP140]: the ops do not fit: transpose",
        "expected: 2 axes",
    ),
    "a rule that is none": ("{rule: 9, in: 1, out: 1}", "20:12", "there is no rule 9"),
    "a name that nothing takes": (
        "{source: dense/kernel, in: 1, out: 1}",
        "20:14: error[MAP141]",
        "no rule takes 'dense/kernel'",
    ),
    "another target": (
        "{source: dense1/kernel, target: x, in: [[1]], out: [[1]]}",
        "20:37: error[MAP141]",
        "the rule makes dense.1.weight",
    ),
    "no array": ("{rule: 0, in: [[1], [2, 3]], out: 1}", "20:19: error[MAP141]", "no array"),
    "words": ("{rule: 0, in: [[1]], out: [[a]]}", "error[MAP141]", "no array of numbers"),
    "no list of arrays": ("{rule: 1, in: 1, out: 1}", "20:19", "expected a list of arrays"),
    "no rule": ("{in: 1, out: 1}", "error[MAP002]", "give one of `rule` and `source`"),
    "a target of a number": ("{rule: 0, target: x, in: 1, out: 1}", "MAP002", "goes with `source`"),
    "a dtype that is none": ("{rule: 0, dtype: float33, in: 1, out: 1}", "MAP002", "float33"),
    "strings": ("{rule: 0, dtype: string, in: 1, out: 1}", "MAP002", "strings are not mapped"),
    "an unknown key": ("{rule: 0, in: 1, outt: 1}", "MAP002", "did you mean 'out'?"),
}  # fmt: skip


@pytest.mark.parametrize(("example", "place", "says"), WRONG.values(), ids=WRONG)
def test_an_example_that_is_wrong(example, place, says, converter, folder):
    (folder / "m.yaml").write_text(f"{RULES}  - {example}\n")
    result = converter("mappings", "test", "m.yaml")
    assert result.code == 1
    assert place in result.out, result.out
    assert says in result.out, result.out
    assert "right" not in result.err


def test_the_way_back_is_run(converter, folder, monkeypatch):
    """A wrong inverse of an op would show."""
    from converter.ops import OPS

    kind = OPS["transpose"]
    monkeypatch.setattr(kind, "inverse", lambda self: kind(order=(0, 1)))
    (folder / "m.yaml").write_text(f"{RULES}  - {RIGHT['a rule by its number']}\n")
    result = converter("mappings", "test", "m.yaml")
    assert result.code == 1
    assert "error[MAP140]: the way back makes something else" in result.out


def test_no_examples_are_no_success(converter, folder):
    (folder / "m.yaml").write_text(RULES.partition("tests:")[0])
    result = converter("mappings", "test", "m.yaml")
    assert result.code == 1
    assert "error[MAP141]: there are no `tests:`" in result.out


def test_a_mapping_that_is_wrong(converter, folder):
    (folder / "m.yaml").write_text("mapping: 1\nrules: [{source: a}]\n")
    (folder / "n.yaml").write_text("a: [")
    result = converter("mappings", "test", "m.yaml", "n.yaml", "--output-format", "json")
    assert result.code == 1
    assert [d["code"] for d in json.loads(result.out)["diagnostics"]] == ["MAP002", "MAP001"]


@pytest.mark.parametrize("name", [name for name in shipped_names() if name.startswith("vgg16/")])
def test_the_examples_of_the_shipped_mappings(name, converter):
    assert converter("mappings", "test", name).code == 0


def test_the_hook_is_the_command():
    from converter import cli
    from converter.language import yaml

    (hook,) = yaml.load((ROOT / ".pre-commit-hooks.yaml").read_text()).data
    program, command = hook["entry"].split()
    assert (program, hook["id"]) == ("converter", "converter-lint")
    assert command in cli.cli.list_commands(click.Context(cli.cli))
