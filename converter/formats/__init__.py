"""Formats: one module each, one row each in `FORMATS`.

A format module offers

* `recognise(probe) -> bool`: is this path (by content) one of mine?
* `open(path) -> Checkpoint`: from its headers; values are read later.  `Checkpoint.files` are to be
  told where they are more than the path.
* `NAMES` (where tensors have several names): what `open(path, names=...)` takes, the default first.
* `problem(name, spec) -> str`: why this tensor cannot be held, "" when it can (formats that write).
* `create(path, specs, *, metadata, ties, overwrite) -> Sink` (formats that write).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

from numpy.typing import NDArray

from converter.errors import NotFoundError, TargetError, UnknownFormatError, UnsupportedError
from converter.files import File, Place
from converter.tensors import Checkpoint, TensorSpec, no_collections


class Sink(Protocol):
    """A target that was told every spec before its first byte; takes tensors in any order.

    Iterating `order` gives the names in the order that makes its writes sequential.
    """

    order: Sequence[str]
    files: Sequence[Path]

    def place(self, name: str) -> Place | None:
        """Where anybody may write a tensor's elements, in any order; None where nobody may."""
        ...

    def placed(self, name: str, crc: int) -> None:
        """Take it that all of a tensor is at its place; `crc` is the checksum wanted there."""
        ...

    def write(self, name: str, chunks: Iterable[NDArray[Any]]) -> None:
        """Take a tensor as consecutive 1-D C-order pieces; a piece is only valid until the next."""
        ...

    def commit(self) -> None:
        """Publish: afterwards the target is complete and durable."""
        ...

    def abort(self) -> None:
        """Leave nothing behind; harmless after `commit`."""
        ...


class Probe(NamedTuple):
    """What sniffing may look at: the path and the two ends of the file (empty for a folder)."""

    path: Path
    head: bytes
    tail: bytes


class Format(NamedTuple):
    """A row of the table: where a format's code is and what it is for.

    `marks` are bytes at offsets of which a file of the format has at least one, so that most
    formats need not be imported to see that a file is none of theirs; () means ask.
    """

    name: str
    title: str
    suffixes: tuple[str, ...]
    module: str
    writes: bool = True
    marks: tuple[tuple[int, bytes], ...] = ()
    only_read: tuple[str, ...] = ()  # suffixes by which a target is refused, with the reason

    def may_be(self, looked: Probe) -> bool:
        """Whether the module should be asked."""
        return not self.marks or any(
            looked.head.startswith(mark, offset) for offset, mark in self.marks
        )

    def load(self) -> Any:
        """The module; imported on first use."""
        return importlib.import_module(self.module)


FORMATS = (
    Format(
        "safetensors",
        "safetensors",
        (".safetensors",),
        "converter.formats.safetensors",
        marks=((8, b"{"),),
    ),
    Format(
        "torch",
        "PyTorch zip (torch.save)",
        (".pt", ".pth", ".bin"),
        "converter.formats.torch",
        marks=((0, b"PK"),),
    ),
    Format(
        "torch-legacy",
        "PyTorch before 1.6 (pickles, not a zip)",
        (),
        "converter.formats.torch_legacy",
        writes=False,
        marks=((0, b"\x80"), (257, b"ustar")),
    ),
    Format("tf-v2", "TensorFlow V2 (TensorBundle)", (".ckpt",), "converter.formats.tf_v2"),
    Format("tf-v1", "TensorFlow V1 (single file)", (), "converter.formats.tf_v1"),
    Format("dcp", "PyTorch DCP folder", (), "converter.formats.dcp", writes=False),
    Format(
        "sharded",
        "safetensors, PyTorch or Keras shards with an index",
        (".safetensors.index.json", ".bin.index.json", ".weights.json"),
        "converter.formats.sharded",
    ),
    Format(
        "keras-v3",
        "Keras 3 (.weights.h5, .keras)",
        (".weights.h5", ".keras"),
        "converter.formats.keras_v3",
    ),
    Format(
        "keras-h5",
        "Keras weights by layer (HDF5)",
        (".h5",),
        "converter.formats.keras_h5",
        marks=((0, b"\x89HDF"),),
    ),
    Format("flax", "Flax msgpack", (".msgpack",), "converter.formats.flax"),
    Format(
        "npz",
        "NumPy (.npz; .npy to read)",
        (".npz",),
        "converter.formats.npz",
        marks=((0, b"PK"), (0, b"\x93NUMPY")),
    ),
    Format(
        "onnx",
        "ONNX",
        (),
        "converter.formats.onnx",
        writes=False,
        marks=((0, b"\x08"), (0, b"\x12"), (0, b"\x3a"), (0, b"\x42")),
        only_read=(".onnx",),
    ),
    Format(
        "tfjs",
        "TensorFlow.js (model.json and shards)",
        (),
        "converter.formats.tfjs",
        writes=False,
        only_read=(".json",),
    ),
    Format(
        "graphdef",
        "TensorFlow frozen graph (GraphDef)",
        (),
        "converter.formats.graphdef",
        writes=False,
        marks=((0, b"\x0a"),),
        only_read=(".pb",),
    ),
    Format(
        "caffe",
        "Caffe (.caffemodel)",
        (),
        "converter.formats.caffe",
        writes=False,
        marks=((0, b"\x0a"), (0, b"\x12"), (0, b"\xa2\x06")),
        only_read=(".caffemodel",),
    ),
    Format(
        "joblib",
        "joblib and other pickles of arrays",
        (),
        "converter.formats.joblib",
        writes=False,
        only_read=(".joblib", ".pkl", ".pickle"),
    ),
    Format(
        "gguf",
        "GGUF (llama.cpp)",
        (),
        "converter.formats.gguf",
        writes=False,
        marks=((0, b"GGUF"),),
        only_read=(".gguf",),
    ),
    Format(
        "orbax",
        "Orbax (by the tensorstore library)",
        (),
        "converter.formats.orbax",
        writes=False,
    ),
)

PROBE_BYTES = 512


def probe(path: Path) -> Probe:
    """The two ends of a file; empty ones for a folder or for a TensorFlow prefix."""
    if not path.is_file():
        return Probe(path, b"", b"")
    file = File(path)
    try:
        size = min(PROBE_BYTES, file.size)
        return Probe(path, file.read(0, size), file.read(file.size - size, size))
    finally:
        file.close()


def recognise(path: Path) -> Format:
    """The format of what lies at `path`, by content.

    Raises `NotFoundError` when nothing is there, `UnknownFormatError` when nobody knows it.
    """
    looked = probe(path)
    for row in FORMATS:
        if row.may_be(looked) and row.load().recognise(looked):
            return row
    if not path.exists():
        raise NotFoundError("no such file, folder or TensorFlow prefix", path=path)
    raise UnknownFormatError(
        "not a checkpoint that any format recognises",
        path=path,
        offset=0 if path.is_file() else None,
        expected=", ".join(row.title for row in FORMATS),
        found=_describe(looked),
    )


def _describe(looked: Probe) -> str:
    head = looked.head.lstrip()
    if looked.path.is_dir():
        return "a folder without a known checkpoint"
    if head.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the file itself: run `git lfs pull`"
    if head[:15].lower().startswith((b"<!doctype html", b"<html")):
        return "an HTML page: the download gave a web page, not the file"
    if not looked.head:
        return "an empty file"
    return f"a file that starts with {looked.head[:16]!r}"


def open_checkpoint(path: str | Path, *, select: str = "", names: str | None = None) -> Checkpoint:
    """Open a checkpoint of any format, or the part of it below `select`; reads its headers only.

    A path may carry the selection itself, as in `model.pth#state_dict`.
    `names` is one of the format's `NAMES`: which of several names of a tensor is to be its name.
    Raises `SourceError` or `RefusedError`.
    """
    place = Path(path)
    if not select and "#" in place.name and not place.exists():
        file, _, part = str(place).rpartition("#")
        place, select = (Path(file), part) if Path(file).exists() else (place, select)
    row = recognise(place)
    module, options = row.load(), {"names": names} if names else {}
    known = getattr(module, "NAMES", ())
    if names and names not in known:
        raise UnsupportedError(
            f"the format has no such names: '{names}'",
            path=place,
            expected=", ".join(known) or f"none: in {row.title} a tensor has one name",
        )
    with no_collections():
        checkpoint = cast("Checkpoint", module.open(place, **options))
    if not checkpoint.files:
        checkpoint = replace(checkpoint, files=(place,))
    if not select:
        return checkpoint
    try:
        return checkpoint.under(select)
    except BaseException:
        checkpoint.close()
        raise


def named(name: str) -> Format:
    """The row of that name; `TargetError` lists the names when there is none."""
    for row in FORMATS:
        if row.name == name:
            return row
    known = ", ".join(row.name for row in FORMATS)
    raise TargetError(f"there is no format '{name}'", expected=known)


def for_target(path: Path) -> Format:
    """The format that a target's suffix stands for."""
    for row in FORMATS:
        if row.writes and path.name.endswith(row.suffixes):
            return row
    known = ", ".join(suffix for row in FORMATS if row.writes for suffix in row.suffixes)
    for row in FORMATS:
        if row.only_read and path.name.endswith(row.only_read):
            raise TargetError(f"{row.title} is only read, not written", path=path, expected=known)
    raise TargetError(
        "the suffix does not tell the format", path=path, expected=known, hint="or name it: --to"
    )


def create(  # noqa: PLR0913 - what a target must know before its first byte
    path: Path,
    row: Format,
    specs: Mapping[str, TensorSpec],
    *,
    metadata: Mapping[str, str] | None = None,
    ties: Sequence[Sequence[str]] = (),
    overwrite: bool = False,
    shard_nbytes: int | None = None,
    resume: str | None = None,
) -> Sink:
    """A sink of the given format; refuses before it makes any file.

    With `shard_nbytes`, a set of shards and an index where the tensors are more bytes than that.
    With `resume`, shards are kept when it fails, and taken over when it is called again so.

    Raises `UnrepresentableError`, `TargetExistsError`, `TargetError`.
    """
    if not row.writes:
        raise TargetError(f"{row.title} is only read, not written", path=path)
    options: dict[str, Any] = {"metadata": metadata or {}, "ties": ties, "overwrite": overwrite}
    if shard_nbytes is not None:
        row, options["shard_nbytes"] = named("sharded"), shard_nbytes
    if resume is not None:
        if row.name != "sharded":
            raise TargetError("only a target of several files can be resumed", path=path)
        options["resume"] = resume
    return cast("Sink", row.load().create(path, specs, **options))
