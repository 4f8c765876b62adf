"""Every format that is written, with a target to overwrite and a way to tell what lies there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import converter
from converter import formats
from converter.cli import run
from converter.errors import ConverterError
from tests.cli.checkpoints import equal, listing, read
from tests.faults import silent

TAGS = ("old", "new")


class Writer(NamedTuple):
    """A format, the target's name, and the options that it needs."""

    name: str
    target: str
    options: tuple[str, ...] = ()
    marker: str = ""  # the file without which there is no target

    def command(self, tag: str, *more: str) -> list[str]:
        """Convert the checkpoint of that tag; in the folder of both."""
        options = ("--to", self.name, "--overwrite", *self.options, *more)
        return ["convert", f"{tag}.safetensors", f"out/{self.target}", *options]

    def judge(self, place: Path) -> str:
        """The tag of the target in the folder `out`, "absent", or what is wrong with it."""
        target = place / "out" / self.target
        if not target.with_name(self.marker or self.target).exists():
            return "absent"
        try:
            found = read(target)
        except ConverterError as error:
            return f"torn: {error}"
        for tag in TAGS:
            if equal(found, wanted(place, tag)):
                return tag
        return "another checkpoint"


WRITERS = (
    Writer("safetensors", "m.safetensors"),
    Writer("torch", "m.pt"),
    Writer("tf-v1", "m.v1"),
    Writer("tf-v2", "m.ckpt", marker="m.ckpt.index"),
    Writer("sharded", "m.safetensors.index.json", ("--shard-size", "40%", "--resume")),
    Writer("sharded", "m.bin.index.json", ("--shard-size", "40%", "--resume")),
    Writer("keras-v3", "m.weights.h5"),
    Writer("keras-h5", "m.h5"),
    Writer("flax", "m.msgpack"),
    Writer("npz", "m.npz"),
)
assert {writer.name for writer in WRITERS} == {row.name for row in formats.FORMATS if row.writes}

_KNOWN: dict[tuple[Path, str], dict[str, Any]] = {}


def wanted(place: Path, tag: str) -> dict[str, Any]:
    """What the checkpoint of a tag holds."""
    if (place, tag) not in _KNOWN:
        _KNOWN[place, tag] = read(place / f"{tag}.safetensors")
    return _KNOWN[place, tag]


def prepare(place: Path, writer: Writer, length: int) -> Writer:
    """Make both checkpoints, of about five times `length` elements; the writer for them."""
    _KNOWN.clear()
    place.mkdir(exist_ok=True)
    (place / "out").mkdir()
    for number, tag in enumerate(TAGS):
        rng = np.random.default_rng(number)
        arrays = {
            f"layer_{i}/kernel": rng.standard_normal((length, 1 + i % 2), np.float32)
            for i in range(3 + number)
        }
        arrays["step"] = np.array(number, np.int64)
        converter.save(converter.from_arrays(arrays), place / f"{tag}.safetensors")
    shard = str(9 * length)
    return writer._replace(options=tuple(o.replace("40%", shard) for o in writer.options))


def convert(place: Path, command: list[str]) -> int:
    """Run a command in this process; its exit code."""
    os.chdir(place)
    with silent():
        return run(command)


def child(place: Path, command: list[str], before: Callable[[], None] | None = None) -> int:
    """Start a process that runs a command; its number."""
    number = os.fork()
    if number:
        return number
    code = 70
    try:
        os.chdir(place)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        if before:
            before()
        code = run(command)
    finally:
        os._exit(code)


def ended(number: int) -> int:
    """Wait for a child; its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def reference(place: Path, writer: Writer) -> dict[str, str]:
    """The files of an undisturbed conversion of the new checkpoint into an empty folder."""
    assert ended(child(place, writer.command("new"))) == 0
    found = listing(place / "out")
    clear(place)
    return found


def clear(place: Path) -> None:
    """Empty the folder of targets."""
    for path in (place / "out").iterdir():
        path.unlink()


def chosen(only: Iterable[str]) -> list[Writer]:
    """The writers of these names, or all."""
    return [writer for writer in WRITERS if not only or writer.name in only]
