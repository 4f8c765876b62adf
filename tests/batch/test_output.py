"""What build servers and programs are told is what they accept."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as ET

import jsonschema
import pytest
import xmlschema

from converter import cli
from converter.batch.manifest import loads
from converter.batch.model import schema as manifest_schema
from converter.batch.quick import Outcome
from converter.cli.summary import conclude
from tests.batch.conftest import EXAMPLE, Result, manifest_of
from tests.batch.test_sample import TEN, edit

SCHEMAS = Path(__file__).parents[1] / "cli" / "schemas"
ROOT = Path(__file__).parents[2]


class Annotation(NamedTuple):
    kind: str
    properties: dict[str, str]
    message: str


def annotations(log: str) -> list[Annotation]:
    """The workflow commands in a log, by GitHub's rules; fails when a line is almost one.

    `::name key=value,key=value::message`; %25, %0D and %0A stand for %, CR and LF, and in values
    %3A and %2C for `:` and `,` (actions/toolkit, packages/core/src/command.ts).
    """
    found = []
    for line in log.splitlines():
        if not line.startswith("::"):
            assert not re.match(r"\s+::|##\[", line), line
            continue
        match = re.fullmatch(r"::(error|warning|notice) ([^:\r\n]*)::(.*)", line)
        assert match, line
        pairs = dict(pair.split("=", 1) for pair in match[2].split(","))
        known = {"title", "file", "line", "col", "endLine", "endColumn"}
        assert pairs.keys() <= known, line
        assert not re.search(r"%(?!25|0D|0A)", match[3]), line
        for key in pairs.keys() & {"line", "col", "endLine", "endColumn"}:
            assert pairs[key].isdecimal(), line
        plain = {key: unescape(value) for key, value in pairs.items()}
        found.append(Annotation(match[1], plain, unescape(match[3])))
    return found


def unescape(text: str) -> str:
    for code, char in (("%3A", ":"), ("%2C", ","), ("%0D", "\r"), ("%0A", "\n"), ("%25", "%")):
        text = text.replace(code, char)
    return text


def schema(name: str) -> object:
    return json.loads((SCHEMAS / name).read_text())


KINDS = ["all right", "one fails", "locked", "planned", "odd names"]


@pytest.fixture(scope="module", params=KINDS)
def ended(request, fresh, tmp_path_factory):
    """A run of each kind: its folder, and what there is to say about it."""
    folder = tmp_path_factory.mktemp("ended") / "work"
    shutil.copytree(fresh, folder)
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        told: list[tuple[object, ...]] = []
        patch.setattr("converter.cli.batch.conclude", lambda *words: told.append(words[:-1]) or 0)
        if request.param == "one fails":
            edit("mappings/head.yaml", "source: head/bias", "source: head/biases")
            Path("checkpoints/embedding-de.npz").write_bytes(b"no checkpoint at all")
        if request.param == "odd names":
            entry = {"source": "checkpoints/head.npz", "target": "a,b:%25|`<x>`.npz"}
            other = entry | {"name": "\u2028é <&>", "target": "no/é.bin"}
            Path("ports.yaml").write_text(manifest_of(entry, other))
            Path("a,b:%25|`<x>`.npz").write_text("here already")
        words = {"locked": ["--locked"], "planned": ["--plan"]}.get(request.param, [])
        assert cli.run(["batch", "ports.yaml", *words]) == 0
    return folder, told[0]


@pytest.fixture
def run(ended, capfd, monkeypatch):
    """Say it in a style."""
    folder, told = ended
    monkeypatch.chdir(folder)

    def in_style(style: str) -> Result:
        capfd.readouterr()
        return Result(conclude(*told, style), *capfd.readouterr())

    return in_style


def test_json(run):
    result = run("json")
    document = json.loads(result.out)
    jsonschema.validate(document, schema("batch.json"))
    entries = document.pop("entries")
    jsonschema.validate(document, schema("findings.json"))
    wrong = [row for row in entries if row["status"] in ("failed", "skipped")]
    assert bool(wrong) == (result.code == 1)
    assert all(row["diagnostics"] for row in wrong if row["status"] == "failed")


def test_junit(run):
    result = run("junit")
    root = ET.fromstring(result.out)  # noqa: S314 - our own
    xmlschema.XMLSchema(SCHEMAS / "junit.xsd").validate(root)
    assert int(root.get("tests")) == len(list(root.iter("testcase")))
    assert int(root.get("failures")) == len(list(root.iter("failure")))
    assert bool(list(root.iter("failure"))) == (result.code == 1)


def test_sarif(run):
    document = json.loads(run("sarif").out)
    jsonschema.validate(document, schema("sarif-2.1.0.json"))


def test_gitlab(run):
    rows = json.loads(run("gitlab").out)
    jsonschema.validate(rows, schema("gitlab-code-quality.json"))


def test_github(run):
    result = run("github")
    found = annotations(result.out)
    assert len(found) == len(result.out.splitlines())
    assert any(each.kind == "error" for each in found) == (result.code == 1)
    for each in found:
        assert (Path.cwd() / each.properties["file"]).is_file()


def test_the_page_of_a_step_has_every_entry(batch, sample, monkeypatch, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    edit("mappings/head.yaml", "source: head/bias", "source: head/bi|as<b>*_`")
    batch()
    text = page.read_text()
    assert text.startswith(
        "before\n### converter batch ports.yaml\n\n10 entries: 9 converted, 1 failed"
    )
    rows = [line for line in text.splitlines() if line.startswith(("| ✅", "| ❌"))]
    assert len(rows) == TEN
    assert rows[0].startswith("| ❌ | head | failed |  |  |")
    assert all(len(re.split(r"(?<!\\)\|", row)) == 8 for row in rows)
    assert "<b>" not in text


def test_a_long_page_is_cut_where_github_stops_reading(sample, monkeypatch, tmp_path):
    page = tmp_path / "page.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    entry = {"source": "a", "target": "${n}-" + "x" * 90 + ".npz", "matrix": {"n": [*range(9000)]}}
    entries = loads(manifest_of(entry), Path("ports.yaml")).entries
    assert conclude(Path("ports.yaml"), [Outcome(e, "failed") for e in entries], [], "full")
    assert 1 << 18 < page.stat().st_size < 1 << 20


def test_a_page_that_cannot_be_written_is_no_failure(batch, ported, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "no/such/folder/page.md")
    result = batch()
    assert result.code == 0
    assert "cannot be written" in result.err


def test_nobody_is_asked_anything(sample):
    """With `CI` set and nobody at the keyboard; and no command knows how to ask."""
    done = subprocess.run(
        [sys.executable, "-m", "converter", "batch", "ports.yaml", "--entry", "head"],
        stdin=subprocess.DEVNULL,
        env={"CI": "true", "PATH": ""},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for path in Path(cli.__file__).parent.glob("*.py"):
        assert not re.search(
            r"\b(click\.(prompt|confirm|pause|getchar)|input|getpass)\(", path.read_text()
        )


# ── the schema of manifests ──────────────────────────────────────────────────────────────────


def test_the_schema_takes_the_sample_and_refuses_mistakes(sample):
    import yaml

    wanted = manifest_schema()
    jsonschema.Draft7Validator.check_schema(wanted)
    jsonschema.validate(yaml.safe_load(Path("ports.yaml").read_text()), wanted)
    entry = {"source": "a", "target": "b"}
    good = [
        entry | {"options": {"sizes": {"heads": "${h}"}, "reverse": "${r}"}, "matrix": {"h": [1]}},
        entry | {"mapping": ["a", "b"], "needs": ["x"], "optional": True},
    ]
    for each in good:
        jsonschema.validate({"batch": 1, "entries": [each]}, wanted)
    bad = [
        entry | {"sorce": "a"},
        {"source": "a"},
        entry | {"options": {"dtipe": "float16"}},
        entry | {"options": {"reverse": "yes"}},
        entry | {"matrix": {"a": []}},
    ]
    for each in bad:
        with pytest.raises(jsonschema.ValidationError, match=r"."):
            jsonschema.validate({"batch": 1, "entries": [each]}, wanted)


def test_the_schema_that_editors_find_is_current():
    """`converter schema --of manifest -o examples/batch/manifest.schema.json --overwrite`."""
    assert json.loads((EXAMPLE / "manifest.schema.json").read_text()) == manifest_schema()
    assert "$schema=manifest.schema.json" in (EXAMPLE / "ports.yaml").read_text().splitlines()[0]
