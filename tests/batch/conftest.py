"""The sample of ten ports, its checkpoints generated once, and the command in process."""

from __future__ import annotations

import json
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from converter import cli

EXAMPLE = Path(__file__).parents[2] / "examples" / "batch"


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def statuses(self) -> dict[str, str]:
        """What became of each entry, by its name; of a run with `--output-format json`."""
        return {row["name"]: row["status"] for row in json.loads(self.out)["entries"]}


@pytest.fixture(scope="session")
def fresh(tmp_path_factory) -> Path:
    """The sample as it is checked out, with its checkpoints; nobody writes here."""
    folder = tmp_path_factory.mktemp("sample") / "sample"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    runpy.run_path(str(folder / "make_checkpoints.py"))["main"](folder / "checkpoints", 32)
    return folder


@pytest.fixture(scope="session")
def done(fresh, tmp_path_factory) -> Path:
    """The sample after one undisturbed run; nobody writes here."""
    folder = tmp_path_factory.mktemp("done") / "sample"
    shutil.copytree(fresh, folder)
    assert cli.run(["batch", str(folder / "ports.yaml")]) == 0
    return folder


@pytest.fixture
def sample(fresh, tmp_path, monkeypatch) -> Path:
    """A copy of the fresh sample to work in."""
    return _copy(fresh, tmp_path, monkeypatch)


@pytest.fixture
def ported(done, tmp_path, monkeypatch) -> Path:
    """A copy of the sample after a run, as another machine has it: no memory of times."""
    folder = _copy(done, tmp_path, monkeypatch)
    shutil.rmtree(folder / ".converter_cache")
    return folder


def _copy(source: Path, tmp_path: Path, monkeypatch) -> Path:
    folder = tmp_path / "work"
    shutil.copytree(source, folder)
    monkeypatch.chdir(folder)
    for name in ("GITHUB_STEP_SUMMARY", "CONVERTER_BATCH_JOBS"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def batch(capfd) -> Callable[..., Result]:
    """Run `converter batch ports.yaml` with these options in process; its workers are real."""

    def run(*arguments: object, manifest: str = "ports.yaml", style: str = "json") -> Result:
        capfd.readouterr()
        words = [str(argument) for argument in arguments]
        code = cli.run(["batch", manifest, "--output-format", style, *words])
        return Result(code, *capfd.readouterr())

    return run


def files(folder: Path) -> dict[str, bytes]:
    """Every file that a run of the sample makes, with its bytes."""
    found = [folder / "ports.lock.json", *sorted((folder / "ported").rglob("*"))]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def manifest_of(*entries: dict[str, Any], **more: Any) -> str:
    """A manifest as text; JSON is YAML."""
    return json.dumps({"batch": 1, "entries": list(entries), **more})
