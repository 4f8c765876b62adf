"""Findings in the formats of build servers: each document is what its readers accept."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import jsonschema
import pytest
import xmlschema

from converter.cli.reports import report
from converter.errors import Diagnostic
from converter.language.codes import CODES
from converter.parity import Pair
from tests.cli.checkpoints import MAPPING

SCHEMAS = Path(__file__).parent / "schemas"
OTHER = "vgg16/fasterrcnn-pytorch"  # does not fit slim's checkpoint
FC8 = ("--only", "vgg_16/fc8/*")
STYLES = ["concise", "json", "github", "gitlab", "junit", "sarif"]
JUDGES = {
    "one mistake": ("lint", "wrong.yaml"),
    "a warning": ("lint", "bare.yaml"),
    "several files, one in a folder": ("lint", "wrong.yaml", "bare.yaml", "more"),
    "nothing to say": ("lint", MAPPING),
    "a plan with many problems": ("plan", "slim.ckpt", "-m", OTHER),
    "a plan without any": ("plan", "slim.ckpt", "-m", MAPPING),
    "a mapping that cannot be read": ("plan", "slim.ckpt", "-m", "wrong.yaml"),
    "nothing to convert": ("plan", "slim.ckpt", "--only", "nothing"),
    "values that differ": ("verify", "slim.ckpt", "trained.ckpt"),
    "values that do not": ("verify", "slim.ckpt", "slim.pt"),
    "an example that is wrong": ("mappings", "test", "example.yaml"),
    "a conversion that is refused": ("convert", "slim.ckpt", "x.pt", "-m", OTHER),
    "a conversion": ("convert", "slim.ckpt", "x.pt", "-m", MAPPING, "--overwrite"),
    "a difference": ("diff", "slim.ckpt", "trained.ckpt", "--only", "vgg_16/fc{n}/*"),
    "what does not come back": ("roundtrip", "slim.ckpt", "-m", "rounding.yaml", *FC8),
    "a tensor that does not fit": ("why", "global_step", "slim.ckpt", "-m", OTHER),
}
ROUNDING = """\
mapping: 1
rules:
  - source: "vgg_16/fc8/{part:word}"
    target: "fc8.{part}"
    ops: [scale: {divisor: 0.3}]
"""
RULE = "mapping: 1\nrules:\n  - source: a\n    target: b\n"


@pytest.fixture
def mappings(folder):
    (folder / "wrong.yaml").write_text(RULE + "    ops: [transpoze: [1, 0]]\n")
    (folder / "bare.yaml").write_text(RULE)
    (folder / "more").mkdir()
    (folder / "more" / "a b,c:%.yaml").write_text(RULE.replace("target", "tarrget"))
    (folder / "rounding.yaml").write_text(ROUNDING)
    (folder / "example.yaml").write_text(RULE + "tests: [{rule: 0, in: 1, out: 2}]\n")


@pytest.fixture(params=JUDGES.values(), ids=JUDGES)
def judge(request, mappings, converter):
    """Run a command that judges; what it printed, which must not depend on the format."""

    def run(style):
        result = converter(*request.param, "--output-format", style)
        assert result.code in (0, 1), result
        assert result.code == converter(*request.param).code
        return result

    return run


def schema(name):
    return json.loads((SCHEMAS / name).read_text())


def parsed(text):
    return ET.fromstring(text)  # noqa: S314 - our own


def valid(document, name):
    wanted = schema(name)
    jsonschema.validators.validator_for(wanted).check_schema(wanted)
    jsonschema.validate(document, wanted)


def test_json(judge):
    result = judge("json")
    document = json.loads(result.out)
    valid(document, "findings.json")
    assert (document["errors"] > 0) == (result.code == 1)


def test_gitlab(judge):
    rows = json.loads(judge("gitlab").out)
    valid(rows, "gitlab-code-quality.json")
    assert len({row["fingerprint"] for row in rows}) == len(rows)


def test_sarif(judge):
    document = json.loads(judge("sarif").out)
    valid(document, "sarif-2.1.0.json")
    (run,) = document["runs"]
    for result in run["results"]:
        assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
        for place in result.get("locations", ()):
            assert "\\" not in place["physicalLocation"]["artifactLocation"]["uri"]


def test_junit(judge):
    result = judge("junit")
    xmlschema.XMLSchema(SCHEMAS / "junit.xsd").validate(parsed(result.out))
    root = parsed(result.out)
    for group in (root, *root):
        assert int(group.get("tests")) == len(list(group.iter("testcase")))
        assert int(group.get("failures")) == len(list(group.iter("failure")))
    assert (int(root.get("failures")) > 0) == (result.code == 1)


def test_concise_is_one_line_a_finding(judge):
    result = judge("concise")
    lines = [line for line in result.out.splitlines() if "[" in line]
    assert len(lines) == json.loads(judge("json").out)["diagnostics"].__len__()


def test_github_annotates_ten_of_a_kind_and_logs_everything(converter, folder):
    (folder / "few.yaml").write_text(RULE.replace("source: a", "source: vgg_16/mean_rgb"))
    plan = ("plan", "slim.ckpt", "-m", "few.yaml", "--output-format")
    result = converter(*plan, "github")
    lines = result.out.splitlines()
    assert [line.split(" ", 1)[0] for line in lines] == ["::error"] * 10 + ["::notice"]
    assert lines[10] == "::notice title=converter::23 more errors: see the log"
    for each in json.loads(converter(*plan, "json").out)["diagnostics"]:
        assert each["tensor"] in result.err


def test_a_finding_stands_where_its_rule_is(mappings, converter):
    command = ("roundtrip", "slim.ckpt", "-m", "rounding.yaml", *FC8)
    result = converter(*command, "--output-format", "json")
    rows = json.loads(result.out)["diagnostics"]
    assert {row["tensor"] for row in rows} == {"vgg_16/fc8/biases", "vgg_16/fc8/weights"}
    for row in rows:
        assert (row["file"], row["line"], row["code"]) == ("rounding.yaml", 5, "VER500")
        assert row["hint"] == "lost by `scale: {divisor: 0.3}`"


def test_an_explanation_is_the_help_of_a_difference(converter, folder):
    compared = ("diff", "slim.ckpt", "trained.ckpt", "--only", "vgg_16/fc6/weights")
    (row,) = json.loads(converter(*compared, "--output-format", "json").out)["diagnostics"]
    (told,) = json.loads(converter(*compared, "--format", "json").out)["tensors"]
    assert row["tensor"] == "vgg_16/fc6/weights"
    assert row["hint"] == (told["explanation"] or {"text": ""})["text"]


def test_layers_that_depart_are_findings(converter, monkeypatch):
    rows = [
        Pair("conv1", "features.0", 0.0, agrees=True),
        Pair("fc6", "classifier.0", 0.5, agrees=False),
        Pair("", "", 0.25, agrees=False),
    ]
    monkeypatch.setattr("converter.parity.parity", lambda *_, **__: rows)
    models = ("--source-model", "slim:vgg_16", "--target-model", "torchvision.models:vgg16")
    command = ("parity", "slim.ckpt", "slim.pt", *models, "--output-format", "json")
    result = converter(*command)
    assert result.code == 1
    assert [row["message"] for row in json.loads(result.out)["diagnostics"]] == [
        "fc6 → classifier.0: departs by 0.5",
        "(output) → (output): departs by 0.25",
    ]
    rows[2] = Pair("", "", 0.0, agrees=True)
    result = converter(*command)
    assert (result.code, json.loads(result.out)["diagnostics"]) == (0, [])


def test_github_counts_each_kind(capsys, monkeypatch):
    kinds = [("error", 12), ("warning", 11), ("note", 2)]
    findings = [Diagnostic("MAP101", f"{k} {n}", k) for k, count in kinds for n in range(count)]
    report(findings, "github")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 21
    assert lines[-1] == (
        "::notice title=converter::2 more errors and 1 more warnings and 2 notes: see the log"
    )


def test_github_escapes_what_is_special(converter, mappings):
    out = converter("lint", "more", "--output-format", "github").out
    assert "file=more/a b%2Cc%3A%25.yaml,line=4,col=5,endColumn=11::" in out
    assert "%0Ahelp: did you mean 'target'?" in out
    assert len(out.splitlines()) == 1


@pytest.mark.parametrize("style", STYLES)
def test_paths_are_those_of_the_repository(style, converter, mappings, folder, monkeypatch):
    (folder / ".git").mkdir()
    monkeypatch.chdir(folder / "more")
    out = converter("lint", folder / "wrong.yaml", "../bare.yaml", "--output-format", style).out
    if style != "concise":  # which is for people, who are in this folder
        assert str(folder) not in out
        assert ".." not in out.replace("0..255", "")
    assert "wrong.yaml" in out


def test_a_path_outside_the_repository_is_whole(converter, mappings, folder, tmp_path):
    outside = tmp_path / "outside.yaml"
    outside.write_text("mapping: 1")
    document = json.loads(converter("lint", outside, "--output-format", "sarif").out)
    valid(document, "sarif-2.1.0.json")
    assert outside.as_uri() in json.dumps(document)


@pytest.mark.parametrize("style", STYLES)
def test_names_that_nobody_expects(style, capsys):
    findings = [
        Diagnostic("PLN201", f"no rule takes {name!r}", path=Path("m.yaml"), tensor=name)
        for name in ("\x1b[31m", "a\x00b", "\ud800", "é→", "]]>", "&lt;", "a\nb")
    ]
    report(findings, style)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    if style == "junit":
        xmlschema.XMLSchema(SCHEMAS / "junit.xsd").validate(parsed(out))
    elif style not in ("concise", "github"):
        assert json.loads(out)


def test_sarif_knows_every_code(capsys):
    report([Diagnostic(code, "x") for code in CODES], "sarif")
    valid(json.loads(capsys.readouterr().out), "sarif-2.1.0.json")


def test_a_thousand_tensors_of_one_rule_are_one_case(capsys):
    found = [
        Diagnostic("PLN220", "x", path=Path("m.yaml"), line=3, tensor=str(n)) for n in range(1000)
    ]
    report(found, "junit")
    assert len(list(parsed(capsys.readouterr().out).iter("testcase"))) == 1
