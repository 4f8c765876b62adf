"""A small sound file of every format that is read, as the formats' own tests make it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from converter import formats
from tests.oracles import missing

HERE = Path(__file__).parents[1] / "formats"
MAPPING = """\
mapping: 1
name: a/b
rules:
  - source: net/layer{k}/{x:kernel|bias}
    target: layers.{k}.{x}
    ops: [rearrange: h w i o -> o i h w]
  - {source: net/fc, target: fc.weight, sizes: {h: 7, w: 7}, ops: [rearrange: h w i o -> o (i h w)]}
  - {source: 'q{n}', target: qkv, ops: [stack: 0, cast: float32, transpose: [1, 0]]}
make:
  - {target: made, shape: [5], fill: 0.5}
drop:
  - {source: '**/Adam', because: a slot}
  - {group: counters}
"""
MANIFEST = """\
batch: 1
defaults: {shard_size: 256MiB}
entries:
  - source: 'batch*.yaml'
    mapping: vgg16/slim-torchvision
    target: out/${stem}-${dtype}.safetensors
    matrix: {dtype: [float32, float16]}
    options: {dtype: "${dtype}"}
  - {name: b, source: a.pt, target: b.pt, options: {only: ['layer{n}/*'], shard_size: 5GB}}
"""
Seed = tuple[str, Callable[[Path], Path]]


def seeds() -> Iterator[Seed]:
    """Names of readers, and what makes a file for one: it takes a folder, and gives the path."""
    sys.path.insert(0, str(HERE))
    for path in sorted(HERE.glob("test_*.py")):
        importlib.import_module(path.stem)
    conformance = importlib.import_module("conformance")
    reading = importlib.import_module("reading")
    for cls in _below(conformance.FormatConformance):
        if hasattr(cls, "target"):
            yield f"{cls.format} {cls.target}", lambda folder, cls=cls: _written(cls(), folder)
    for cls in _below(reading.ReadingConformance):
        yield f"{cls.format} {cls.target}", lambda folder, cls=cls: _made(cls(), folder)
    yield "torch-legacy", _legacy
    yield "dcp", _dcp
    if not missing("tensorstore"):
        yield "orbax", _orbax
    yield "mapping", lambda folder: _text(folder / "m.yaml", MAPPING)
    yield "manifest", lambda folder: _text(folder / "batch.yaml", MANIFEST)


def _below(cls: type[Any]) -> Iterator[type[Any]]:
    for each in cls.__subclasses__():
        yield each
        yield from _below(each)


def _written(suite: Any, folder: Path) -> Path:
    suite.write(folder / suite.target, suite.small())
    return Path(folder / suite.target)


def _made(suite: Any, folder: Path) -> Path:
    suite.make(folder / suite.target, suite.small())
    return Path(folder / suite.target)


def _legacy(folder: Path) -> Path:
    path = folder / "m.pth"
    path.write_bytes(importlib.import_module("test_torch_legacy").file_of())
    return path


def _dcp(folder: Path) -> Path:
    importlib.import_module("test_dcp").write(folder)
    return folder


def _orbax(folder: Path) -> Path:
    module = importlib.import_module("test_orbax")
    module.save(folder / "m", {"w": importlib.import_module("conformance").make("float32", (3, 2))})
    (folder / "a.npz").unlink()
    return folder / "m"


def _text(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def known() -> set[str]:
    """The formats of all seeds."""
    return {name.split()[0] for name, _ in seeds()} & {row.name for row in formats.FORMATS}
