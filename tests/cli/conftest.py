"""The command line in process, and a folder of checkpoints to start from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from converter import cli
from tests.cli import checkpoints


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    """One checkpoint of each format; nobody writes here."""
    folder = tmp_path_factory.mktemp("prepared")
    slim = checkpoints.slim()
    checkpoints.write(folder / "slim.ckpt", slim, "tf-v1")
    checkpoints.write(folder / "slim-v2.ckpt", slim)
    checkpoints.write(folder / "slim.pt", slim)
    checkpoints.write(folder / "slim.safetensors", slim)
    checkpoints.write(folder / "trained.ckpt", checkpoints.trained())
    return folder


@pytest.fixture
def folder(prepared, tmp_path, monkeypatch) -> Path:
    """A copy of the prepared checkpoints to work in."""
    place = tmp_path / "work"
    shutil.copytree(prepared, place)
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def converter(capsys, folder) -> Callable[..., Result]:
    """Run a command in process, in the folder."""

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        return Result(code, *capsys.readouterr())

    return run
