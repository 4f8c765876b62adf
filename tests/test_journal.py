"""A run that was stopped is resumed: what is proved is taken over, all else is done again."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import converter
from converter import files
from converter.errors import NoSpaceError, TargetError, TargetExistsError
from tests.cli.checkpoints import listing

TARGET = "t.safetensors.index.json"


def arrays(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {f"w{i}": rng.standard_normal((32, 32), np.float32) for i in range(6)}


def save(folder: Path, seed: int = 0, *, resume: str | None = "same", **options: Any) -> Any:
    facts = {"shard_nbytes": 9000, "overwrite": True} | options
    source = converter.from_arrays(arrays(seed))
    return converter.save(source, folder / TARGET, resume=resume, **facts)


class Full(files.System):
    """A disk with room for so many bytes."""

    def __init__(self, room: int) -> None:
        self.room = room

    def write(self, fd: int, data: memoryview, offset: int) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "full")
        return super().write(fd, data, offset)


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which a run has finished two of three shards."""
    folder = tmp_path / "stopped"
    folder.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(files, "system", Full(22_000))
        with pytest.raises(NoSpaceError, match="full"):
            save(folder)
    assert len(list(folder.glob(".t-0000[12]-of-00003.safetensors.*.tmp"))) == 2
    assert len(list(folder.iterdir())) == 3
    return folder


@pytest.fixture
def fresh(tmp_path: Path) -> dict[str, str]:
    folder = tmp_path / "fresh"
    folder.mkdir()
    assert save(folder, resume=None).resumed == 0
    return listing(folder)


def test_finished_shards_are_taken_over(stopped, fresh):
    assert save(stopped).resumed == 4
    assert listing(stopped) == fresh
    assert save(stopped).resumed == 0
    assert listing(stopped) == fresh


def test_nothing_of_it_is_a_target_before_all_is(stopped, monkeypatch):
    for room in range(0, 8_000, 800):
        with monkeypatch.context() as patch:
            patch.setattr(files, "system", Full(room))
            with pytest.raises(NoSpaceError, match="full"):
                save(stopped)
        assert not [path for path in stopped.iterdir() if not path.name.startswith(".")]
    assert save(stopped).resumed == 4


@pytest.mark.parametrize(
    "changed",
    [
        {"resume": "another source, mapping or option"},
        {"shard_nbytes": 13_000},
        {"resume": None},
    ],
    ids=str,
)
def test_another_conversion_takes_nothing_over(changed, stopped, tmp_path):
    assert save(stopped, **changed).resumed == 0
    (tmp_path / "other").mkdir()
    save(tmp_path / "other", **changed | {"resume": None})
    assert listing(stopped) == listing(tmp_path / "other")


@pytest.mark.parametrize("harm", ["a flipped bit", "zeros", "shorter", "gone", "a link"])
def test_size_alone_proves_nothing(harm, stopped, fresh):
    shard = next(stopped.glob(".t-00001-*"))
    data = shard.read_bytes()
    match harm:
        case "a flipped bit":
            shard.write_bytes(bytes([data[0] ^ 1]) + data[1:])
        case "zeros":
            shard.write_bytes(bytes(len(data)))
        case "shorter":
            os.truncate(shard, len(data) - 1)
        case "gone":
            shard.unlink()
        case "a link":
            shard.rename(stopped.parent / "elsewhere")
            shard.symlink_to(stopped.parent / "elsewhere")
    assert save(stopped).resumed == 2
    found = listing(stopped)
    if harm == "a link":  # not ours, so not removed
        found.pop(shard.name)
    assert found == fresh


def test_a_torn_or_forged_line_is_no_proof(stopped, fresh):
    journal = next(stopped.glob(f".{TARGET}.*"))
    *whole, last = [line for line in journal.read_bytes().split(b"\n") if line]
    forged = json.dumps({"target": "../x", "file": "/etc/passwd", "sha256": "0"}).encode()
    journal.write_bytes(b"\n".join([*whole, forged, b"[]", b"\0\0", last[: len(last) // 2]]))
    assert save(stopped).resumed == 2
    assert listing(stopped) == fresh


def test_the_shards_of_a_live_run_are_left_alone(stopped):
    shard = next(stopped.glob(".t-00001-*"))
    fd = os.open(shard, os.O_RDWR)
    assert files.system.lock(fd)
    assert save(stopped).resumed == 2
    assert shard.exists()
    os.close(fd)
    save(stopped)
    assert not shard.exists()


def test_a_target_that_is_there_is_still_refused(stopped, fresh):
    (stopped / TARGET).write_bytes(b"{}")
    before = len(list(stopped.iterdir()))
    with pytest.raises(TargetExistsError, match="the target exists"):
        save(stopped, overwrite=False)
    assert len(list(stopped.iterdir())) == before
    assert save(stopped).resumed == 4
    assert listing(stopped) == fresh


def test_one_file_is_not_resumed(tmp_path):
    with pytest.raises(TargetError, match="only a target of several files"):
        converter.save(converter.from_arrays(arrays()), tmp_path / "t.pt", resume="x")
    assert not list(tmp_path.iterdir())


# The command.


def test_the_command_resumes(tmp_path, monkeypatch, capfd):
    from converter.cli import run

    converter.save(converter.from_arrays(arrays()), tmp_path / "s.safetensors")
    monkeypatch.chdir(tmp_path)
    command = ["convert", "s.safetensors", TARGET, "--shard-size", "9000", "--resume"]
    for harm in (None, "touched", "rescoped"):
        with monkeypatch.context() as patch:
            patch.setattr(files, "system", Full(22_000))
            assert run(command) == 3
        match harm:
            case "touched":
                os.utime("s.safetensors")
            case "rescoped":
                command += ["--target-scope", "net."]
        assert run(command) == 0
        said = capfd.readouterr().err
        assert ("4 of them from a run that was stopped" in said) == (harm is None)
        assert {p.name for p in tmp_path.iterdir()} == {
            "s.safetensors",
            TARGET,
            *(f"t-0000{n}-of-00003.safetensors" for n in (1, 2, 3)),
        }
        command += [] if "--overwrite" in command else ["--overwrite"]
    assert run(["convert", "s.safetensors", "t.pt", "--resume"]) == 2
