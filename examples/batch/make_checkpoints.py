"""Write the checkpoints that `ports.yaml` converts: true names, seeded values, any width.

python make_checkpoints.py [FOLDER [DIVISOR]]        DIVISOR 1 is VGG-16's true size, 553 MB
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import converter

BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels and convolutions of each
DENSE = 4096
CLASSES = 1000


def vgg16(divisor: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of TF-Slim's vgg_16, its widths divided."""
    before = 3
    for block, (width, count) in enumerate(BLOCKS, 1):
        channels = max(1, width // divisor)
        for number in range(1, count + 1):
            yield f"conv{block}/conv{block}_{number}", (3, 3, before, channels)
            before = channels
    dense = max(1, DENSE // divisor)
    yield "fc6", (7, 7, before, dense)
    yield "fc7", (1, 1, dense, dense)
    yield "fc8", (1, 1, dense, max(1, CLASSES // divisor))


def main(folder: Path, divisor: int) -> None:
    """Write all of them; the same arguments give the same bytes."""
    random = np.random.default_rng(0)

    def values(shape: tuple[int, ...]) -> np.ndarray:
        return random.standard_normal(shape, np.float32)

    slim = {"global_step": np.array(0), "vgg_16/mean_rgb": values((3,))}
    for name, shape in vgg16(divisor):
        slim[f"vgg_16/{name}/weights"] = values(shape)
        slim[f"vgg_16/{name}/biases"] = values(shape[-1:])
    width = max(8, 2048 // divisor)
    head = {"head/kernel": values((width, width)), "head/bias": values((width,))}
    tables = [{"table": values((8 * width, width))} for _ in range(2)]
    folder.mkdir(parents=True, exist_ok=True)
    for file, arrays, form in (
        ("vgg_16.ckpt", slim, "tf-v1"),
        ("head.npz", head, "npz"),
        ("embedding-en.npz", tables[0], "npz"),
        ("embedding-de.npz", tables[1], "npz"),
    ):
        converter.save(converter.from_arrays(arrays), folder / file, format=form, overwrite=True)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(Path(arguments[0] if arguments else "checkpoints"), int((arguments[1:] or ["16"])[0]))
