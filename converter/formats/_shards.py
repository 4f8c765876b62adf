"""How the files of a set are called, and what its index says: the hub's way, and Keras'.

model.safetensors.index.json  {"metadata": {"total_size": 28}, "weight_map": {
"a": "model-00001-of-00002.safetensors", …}}
net.weights.json              {"metadata": {"total_size": 28}, "weight_map": {
"/layers/conv2d/vars": ["net_00000.weights.h5"], …}}
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from converter.errors import TargetError

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
INDEX = ".index.json"
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5,})-of-(?P<total>\d{5,})(?P<suffix>\.\w+)")


@dataclass(frozen=True)
class Target:
    """The names of a set: `model` and `.safetensors` for `model.safetensors.index.json`."""

    path: Path  # of the index
    stem: str
    suffix: str
    shard: ClassVar[re.Pattern[str]] = SHARD

    @classmethod
    def of(cls, path: Path) -> Target:
        """Take the path of an index, or of the file that would be the only one."""
        for end in KerasTarget.ENDS:
            stem = path.name.removesuffix(end)
            if stem not in ("", path.name):
                return KerasTarget(path.with_name(f"{stem}.weights.json"), stem, ".weights.h5")
        base = Path(path.name.removesuffix(INDEX))
        if base.suffix not in SUFFIXES or not base.stem:
            known = ", ".join((*(f"*{each}{INDEX}" for each in SUFFIXES), "*.weights.json"))
            raise TargetError(
                "the name does not tell the kind of shards", path=path, expected=known
            )
        return cls(path.with_name(base.name + INDEX), base.stem, base.suffix)

    @property
    def kind(self) -> Any:
        """The module that lays shards out."""
        name = "safetensors" if self.suffix == ".safetensors" else "_torch_write"
        return importlib.import_module(f"converter.formats.{name}")

    def shards(self, total: int, mark: str = "") -> list[Path]:
        """The paths of so many shards."""
        numbers = range(1, total + 1)
        names = (f"{self.stem}{mark}-{n:05}-of-{total:05}{self.suffix}" for n in numbers)
        return [self.path.with_name(name) for name in names]

    def owned(self, names: Iterable[str]) -> list[Path]:
        """The paths of those names that are numbered shards of this stem, in sets of any size."""
        matches = [m for m in map(self.shard.fullmatch, names) if m]
        ours = (m[0] for m in matches if (m["stem"], m["suffix"]) == (self.stem, self.suffix))
        return [self.path.with_name(name) for name in ours]

    def index(self, homes: Mapping[str, Any], total: int) -> bytes:
        """The index of tensors with the names of their shards."""
        index = {"metadata": {"total_size": total}, "weight_map": homes}
        return json.dumps(index, indent=2, sort_keys=True).encode()


class KerasTarget(Target):
    """The names of a set of Keras: `net_00000.weights.h5` for `net.weights.json`."""

    ENDS: ClassVar = (".weights.json", ".weights.h5")
    shard: ClassVar = re.compile(r"(?P<stem>.+)_(?P<number>\d{5,})(?P<suffix>\.weights\.h5)")

    @property
    def kind(self) -> Any:
        """The module that lays shards out."""
        return importlib.import_module("converter.formats.keras_v3")

    def shards(self, total: int, mark: str = "") -> list[Path]:
        """The paths of so many shards."""
        names = (f"{self.stem}{mark}_{n:05}{self.suffix}" for n in range(total))
        return [self.path.with_name(name) for name in names]

    def index(self, homes: Mapping[str, Any], total: int) -> bytes:
        """The index of groups with the names of all shards that have a part of them."""
        groups: dict[str, dict[str, None]] = {}
        for name, shard in homes.items():
            groups.setdefault(f"/{name.rpartition('/')[0]}", {})[shard] = None
        return super().index({group: [*shards] for group, shards in groups.items()}, total)
