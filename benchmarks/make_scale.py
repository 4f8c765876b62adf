"""The files of benchmarks/scale.py, and planning without a file; a process of its own.

python -m benchmarks.make_scale FOLDER | --plan N
"""

from __future__ import annotations

import argparse
import json
import struct
import time
from pathlib import Path

import numpy as np

import converter
from converter.language import loads
from converter.language.load import shipped
from converter.tensors import TensorSpec

RULES, TENSORS = 200, 100_000
GB = 10**9


def many(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """100,000 tensors of one value, which lie in memory once."""
    zero = np.broadcast_to(np.float32(0), shape)
    return {f"model.layers.{k // 100}.block_{k % 100}.weight": zero for k in range(TENSORS)}


def sharded(folder: Path, shards: int, nbytes: int) -> Path:
    """A set of safetensors of so many bytes each, of which only the headers were ever written."""
    folder.mkdir()
    weights: dict[str, str] = {}
    rows = nbytes // 64 // 4096
    for shard in range(shards):
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        header, at = {}, 0
        for k in range(64):
            key = f"model.layers.{shard}.part_{k}.weight"
            header[key] = {
                "dtype": "F32",
                "shape": [rows, 1024],
                "data_offsets": [at, at + rows * 4096],
            }
            at += rows * 4096
            weights[key] = name
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / name).open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + at)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    return index


def mappings(folder: Path) -> Path:
    """A hundred mapping files: those of VGG-16, each of another network."""
    folder.mkdir()
    texts = [path.read_text() for path in sorted((shipped() / "vgg16").glob("*.yaml"))]
    for k in range(100):
        text = texts[k % len(texts)].replace("vgg_16", f"vgg_{k}")
        (folder / f"{k:03}.yaml").write_text(text)
    return folder


def planning() -> float:
    """Seconds to plan 100,000 names through 200 rules."""
    rule = (
        "  - source: m/layer_{{i}}/sub_{k}/{{part:word}}/kernel\n"
        "    target: l.{{i}}.s{k}.{{part}}.weight\n"
        "    ops: [rearrange: i o -> o i]\n"
    )
    text = "mapping: 1\nrules:\n" + "".join(rule.format(k=k) for k in range(RULES))
    port = converter.Port(loads(text + "drop:\n  - {group: optimizer_slots}\n"))
    specs = {
        f"m/layer_{i}/sub_{k}/p{j}/kernel": TensorSpec((64, 64 + k), np.dtype("f4"))
        for i in range(TENSORS // RULES // 5)
        for k in range(RULES)
        for j in range(5)
    }
    start = time.perf_counter()
    plan = port.plan(specs)
    seconds = time.perf_counter() - start
    assert len(plan.steps) == TENSORS
    assert not plan.problems
    return seconds


def write(folder: Path) -> None:
    """All files."""
    mappings(folder / "mappings")
    small = converter.from_arrays(many((4, 4)))
    for suffix in (".safetensors", ".pt"):
        converter.save(small, folder / f"many{suffix}")
    sharded(folder / "shards", 20, GB // 2)
    large = np.broadcast_to(np.float32(0), (2048, 2048))
    converter.save(
        converter.from_arrays({f"layer.{k}": large for k in range(90)}), folder / "large.pt"
    )
    random = np.random.default_rng(0).random((4096, 1024), np.float32)
    whole = converter.from_arrays({f"layer.{k}.weight": random for k in range(33)})
    for suffix in (".safetensors", ".pt"):
        converter.save(whole, folder / f"553{suffix}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--plan", type=int, default=0, metavar="N")
    options = parser.parse_args()
    if options.folder:
        write(options.folder)
    for _ in range(options.plan):
        print(planning())


if __name__ == "__main__":
    main()
