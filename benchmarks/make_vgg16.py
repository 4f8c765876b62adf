"""Write a checkpoint of VGG-16 with this package's own writers; no framework is needed.

python -m benchmarks.make_vgg16 TARGET [--format tf-v1|tf-v2] [--shrink N] [--seed N]

The names and shapes are those of TF-Slim's `vgg_16.ckpt` (138,357,544 weights, 553 MB); the
values are seeded random numbers.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from converter import formats
from converter.tensors import TensorSpec
from tests import vgg16


def make(target: Path, format_name: str, shrink: int, seed: int) -> None:
    table = vgg16.slim(shrink)
    specs = {name: TensorSpec(shape, np.dtype(dtype)) for name, (shape, dtype) in table.items()}
    sink = formats.create(target, formats.named(format_name), specs, overwrite=True)
    try:
        for name, array in vgg16.arrays(table, seed):
            sink.write(name, [array.reshape(-1)])
        sink.commit()
    finally:
        sink.abort()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("target", type=Path)
    parser.add_argument("--format", default="tf-v1", choices=["tf-v1", "tf-v2"])
    parser.add_argument("--shrink", type=int, default=vgg16.FULL)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.target.parent.mkdir(parents=True, exist_ok=True)
    make(options.target, options.format, options.shrink, options.seed)


if __name__ == "__main__":
    main()
