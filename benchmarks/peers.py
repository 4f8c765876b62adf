"""What people do without this package, as whole programs to be timed.

python -m benchmarks.peers frameworks CHECKPOINT TARGET.pt
python -m benchmarks.peers numpy EXTENTS.json TARGET.safetensors

`frameworks` is the script everybody writes: TensorFlow's reader, NumPy's transpose, `torch.save`.
`numpy` uses no framework: a memory map of the data file of a V2 checkpoint, whose index somebody
has read already (EXTENTS: name -> [file, offset, shape]), `ascontiguousarray`, and a file written
front to back.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

FEATURES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
LAYERS = (2, 2, 3, 3, 3)


def names() -> Iterator[tuple[str, str]]:
    convolutions = [f"conv{b}/conv{b}_{k + 1}" for b, n in enumerate(LAYERS, 1) for k in range(n)]
    for feature, name in zip(FEATURES, convolutions, strict=True):
        yield f"vgg_16/{name}", f"features.{feature}"
    for theirs, name in zip((0, 3, 6), ("fc6", "fc7", "fc8"), strict=True):
        yield f"vgg_16/{name}", f"classifier.{theirs}"


def transposed(kernel, target):
    kernel = kernel.transpose(3, 2, 0, 1)
    if target.startswith("classifier"):
        kernel = kernel.reshape(len(kernel), -1)
    return np.ascontiguousarray(kernel)


def with_frameworks(checkpoint: str, target: str) -> None:
    import tensorflow as tf
    import torch

    reader = tf.train.load_checkpoint(checkpoint)
    state = {}
    for source, name in names():
        kernel = transposed(reader.get_tensor(f"{source}/weights"), name)
        state[f"{name}.weight"] = torch.from_numpy(kernel)
        state[f"{name}.bias"] = torch.from_numpy(reader.get_tensor(f"{source}/biases"))
    torch.save(state, target)


def with_numpy(extents: str, target: str) -> None:
    table = json.loads(Path(extents).read_text("utf-8"))

    def read(name):
        path, offset, shape = table[name]
        return np.memmap(path, np.float32, "r", offset, tuple(shape))

    state = {}
    for source, name in names():
        state[f"{name}.weight"] = transposed(read(f"{source}/weights"), name)
        state[f"{name}.bias"] = read(f"{source}/biases")
    header, end = {}, 0
    for name, array in state.items():
        offsets = [end, end := end + array.nbytes]
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": offsets}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with Path(target).open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for array in state.values():
            stream.write(memoryview(array))


if __name__ == "__main__":
    {"frameworks": with_frameworks, "numpy": with_numpy}[sys.argv[1]](sys.argv[2], sys.argv[3])
