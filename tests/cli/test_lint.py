"""`converter lint`: findings, repairs that touch nothing else, and how fast."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from converter.language.codes import CODES
from converter.language.fix import repair
from converter.language.lint import lint
from converter.language.load import shipped, shipped_names
from tests.cli.checkpoints import listing

HEAD = "mapping: 1\nabout: x\n"
COVERED = "rules:\n" + "".join(f"  {line}\n" for line in CODES["MAP133"].bad.splitlines())
RULE = "rules:\n  - source: a\n    target: b\n"


def findings(text, tmp_path):
    return [(each.code, each.line, each.column, each.severity) for each in found(text, tmp_path)]


def found(text, tmp_path):
    return lint(text, tmp_path / "m.yaml")


# ── what it says ─────────────────────────────────────────────────────────────────────────────


def test_the_shipped_mappings_are_clean(converter):
    result = converter("lint", *shipped_names(), shipped())
    assert (result.code, result.out) == (0, "")
    assert "no findings" in result.err


STYLE = {
    "no about": ("mapping: 1\n" + RULE, "MAP130", 1, 1),
    "a size of the file": (HEAD + "sizes: {h: 7}\n" + RULE, "MAP131", 3, 9),
    "a size of a rule": (HEAD + RULE + "    sizes: {h: 7}\n", "MAP131", 6, 13),
    "a size that a rule overrides, and names nowhere": (
        HEAD + "sizes: {h: 7}\n" + RULE + "    sizes: {h: 8}\n    ops: [rearrange: h w -> w h]\n",
        None,
        0,
        0,
    ),
    "a size that an op names": (
        HEAD + "sizes: {h: 7}\n" + RULE + "    ops: [rearrange: (h w) i -> i w h]\n",
        None,
        0,
        0,
    ),
    "a size that a constant names": (
        HEAD + "sizes: {h: 7}\n" + RULE + "make: [{target: c, shape: [h]}]\n",
        None,
        0,
        0,
    ),
    "a table": (HEAD + "tables: {t: {1: a}}\n" + RULE, "MAP132", 3, 10),
    "a table in use": (
        HEAD + "tables: {t: {1: a}}\nrules: [{source: 'x{i}', target: '{t[i]}'}]\n",
        None,
        0,
        0,
    ),
    "one way": (HEAD + RULE + "    ops: [cast: float16]\n", "MAP120", 4, 13),
    "one way, and said why": (
        HEAD + RULE + "    about: small on purpose\n    ops: [cast: float16]\n",
        None,
        0,
        0,
    ),
    "a rule that another covers": (HEAD + COVERED, "MAP133", 7, 13),
    "a rule that does something else": (
        HEAD + COVERED + "    ops: [transpose: [0]]\n",
        None,
        0,
        0,
    ),
    "a rule that makes another name": (
        HEAD + COVERED.replace("conv1.bias", "conv1.b"),
        None,
        0,
        0,
    ),
}


@pytest.mark.parametrize(("text", "code", "line", "column"), STYLE.values(), ids=STYLE)
def test_style(text, code, line, column, tmp_path):
    expected = [(code, line, column, "warning")] if code else []
    assert findings(text, tmp_path) == expected


def test_style_waits_for_what_is_wrong(tmp_path):
    text = "mapping: 1\nsizes: {h: 7}\n" + RULE + "    ops: [transpoze: [1, 0]]\n"
    assert [code for code, *_ in findings(text, tmp_path)] == ["MAP102"]


def test_warnings_alone_are_fine(converter, folder):
    (folder / "m.yaml").write_text("mapping: 1\n" + RULE)
    result = converter("lint", "m.yaml")
    assert result.code == 0
    assert result.out.startswith("m.yaml:1:1: warning[MAP130]: the mapping has no `about`\n")
    assert result.out.endswith("1 warning\n")


def test_several_files_and_folders_each_once(converter, folder):
    (folder / "maps" / "deep").mkdir(parents=True)
    for name in ("maps/a.yaml", "maps/deep/b.yml"):
        (folder / name).write_text("mapping: 2\n")
    result = converter("lint", "maps", "maps/a.yaml", "--output-format", "json")
    assert result.code == 1
    assert json.loads(result.out)["files"] == ["maps/a.yaml", "maps/deep/b.yml"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["missing.yaml"], 3, "no mapping 'missing.yaml'"),
        (["vgg16/slim-torchvison"], 3, "did you mean vgg16/slim-torchvision"),
        (["slim.pt"], 1, "MAP001"),
        ([], 2, "Missing argument"),
        (["slim.pt", "--diff", "--output-format", "json"], 2, "--diff prints a patch"),
        (["slim.pt", "--output-format", "xml"], 2, "Invalid value"),
    ],
    ids=str,
)
def test_what_is_no_mapping(arguments, code, says, converter):
    result = converter("lint", *arguments)
    assert result.code == code
    assert says in result.out + result.err


# ── repairs ──────────────────────────────────────────────────────────────────────────────────

MESS = """\
# first comment, with trailing spaces   
mapping: 1   # the version
abuot:    "spacing   stays"

ruels:   # é ünïcode
  - source: a
    traget: b
    ops: [ transpoze : [1,0],   'revrse': 0 ]   # quoted
  - {"sorce": c, target: d}
# last, and no newline"""  # noqa: W291
TIDY = """\
# first comment, with trailing spaces   
mapping: 1   # the version
about:    "spacing   stays"

rules:   # é ünïcode
  - source: a
    target: b
    ops: [ transpose : [1,0],   reverse: 0 ]   # quoted
  - {source: c, target: d}
# last, and no newline"""  # noqa: W291


@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "bom"])
def test_fix_changes_the_words_alone(newline, mark, converter, folder):
    (folder / "m.yaml").write_bytes((mark + MESS.replace("\n", newline)).encode())
    result = converter("lint", "m.yaml", "--fix")
    assert (folder / "m.yaml").read_bytes().decode() == mark + TIDY.replace("\n", newline)
    assert (result.code, result.out) == (0, "")
    assert "m.yaml: repaired " in result.err
    assert converter("lint", "m.yaml", "--fix").err == "1 file: no findings\n"


NOT_SURE = {
    "far from every word": (RULE + "    colour: red\n", "unknown key 'colour'"),
    "near to two": (RULE + "    ops: [nstack: 0]\n", "unknown op 'nstack'"),
    "there already": (RULE + "    targett: c\n", "unknown key 'targett'"),
    "a key twice": (RULE + "    target: c\n", "'target' stands twice"),
    "a template": ("rules: [{source: 'a{', target: b}]\n", "a brace is not closed"),
}


@pytest.mark.parametrize(("text", "says"), NOT_SURE.values(), ids=NOT_SURE)
def test_fix_leaves_alone_what_may_mean_something_else(text, says, converter, folder):
    (folder / "m.yaml").write_text(HEAD + text)
    before = listing(folder)
    result = converter("lint", "m.yaml", "--fix")
    assert result.code == 1
    assert says in result.out
    assert listing(folder) == before


def test_fix_repairs_what_it_can_and_reports_the_rest(converter, folder):
    (folder / "m.yaml").write_text(HEAD + RULE + "    opps: [transpoze: [1, 1]]\n")
    result = converter("lint", "m.yaml", "--fix")
    assert result.code == 1
    assert "ops: [transpose: [1, 1]]" in (folder / "m.yaml").read_text()
    assert result.out.count("error[") == 1
    assert "[1, 1] is not a permutation" in result.out


def test_diff_shows_the_patch_and_changes_nothing(converter, folder):
    text = HEAD + RULE + "    ops: [transpoze: [1, 1]]\n"
    (folder / "m.yaml").write_text(text)
    before = listing(folder)
    result = converter("lint", "m.yaml", "--diff")
    assert listing(folder) == before
    assert result.code == 1
    assert "is not a permutation" in result.err
    done = subprocess.run(
        ["patch", "-p1"], input=result.out, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done
    assert (folder / "m.yaml").read_text() == text.replace("poze", "pose")


def test_diff_of_warnings_is_fine(converter, folder):
    converter("schema", "-o", "schema.json")
    (folder / "m.yaml").write_text(HEAD + RULE)
    result = converter("lint", "m.yaml", "--diff")
    assert result.code == 0
    assert "+# yaml-language-server: $schema=schema.json\n mapping: 1\n" in result.out


def test_editors_are_led_to_the_schema(converter, folder):
    converter("schema", "-o", "schema.json")
    (folder / "family").mkdir()
    (folder / "family" / "m.yaml").write_text(HEAD + RULE)
    assert "warning[MAP134]" in converter("lint", "family/m.yaml").out
    assert converter("lint", "--fix", "family").code == 0
    text = "# yaml-language-server: $schema=../schema.json\n" + HEAD + RULE
    assert (folder / "family" / "m.yaml").read_text() == text


@pytest.mark.parametrize("content", ["{}", "[]", "\xff", ""], ids=repr)
def test_another_schema_is_none_of_ours(content, converter, folder):
    (folder / "schema.json").write_bytes(content.encode("latin-1"))
    (folder / "m.yaml").write_text(HEAD + RULE)
    assert converter("lint", "m.yaml").out == ""


def test_a_file_that_cannot_be_written(converter, folder, monkeypatch):
    (folder / "m.yaml").write_text(HEAD + RULE.replace("target", "traget"))
    monkeypatch.setattr("pathlib.Path.write_bytes", refuse)
    result = converter("lint", "m.yaml", "--fix")
    assert result.code == 3
    assert "cannot be repaired: read-only" in result.err


def refuse(path, data):
    raise OSError(30, "read-only")


def test_repairs_come_to_an_end(tmp_path):
    text = HEAD + "ruels:\n  - {sorce: a, traget: b, opps: [transpoze: {ordr: [0]}]}\n"
    better, left = repair(text, tmp_path / "m.yaml", lint)
    assert left == []
    assert "{source: a, target: b, ops: [transpose: {order: [0]}]}" in better


def test_it_needs_no_network_and_no_framework(tmp_path):
    (tmp_path / "m.yaml").write_text(HEAD + RULE)
    script = """
import socket, sys
socket.socket = socket.create_connection = None
for name in ("torch", "tensorflow", "keras", "jax", "safetensors", "jsonschema", "rich"):
    sys.modules[name] = None
from converter import cli
sys.exit(cli.run(["lint", "m.yaml", "vgg16/slim-torchvision"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "2 files: no findings\n")
