"""How fast permuted tensors are copied: beside NumPy and a plain copy, in one run.

    python benchmarks/copy_kernel.py [--folder /dev/shm] [--rounds 5] [NAME ...]

Gigabytes of tensor a second, best of all rounds; rounds take turns, since a busy machine slows
all columns alike. Columns: a plain copy; NumPy's permuted copy; the kernel from memory and from a
file by `pread`, as a whole and in chunks of 64 MiB; the kernel from the file against NumPy from
memory.
"""

import argparse
import itertools
import math
import os
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np

from converter.layout import Memory, View

HWIO_TO_OIHW, OIHW_TO_HWIO = (3, 2, 0, 1), (2, 3, 1, 0)
CASES = {
    "fc6 f4": ((7, 7, 512, 4096), HWIO_TO_OIHW, "f4"),
    "fc6 bf16": ((7, 7, 512, 4096), HWIO_TO_OIHW, ml_dtypes.bfloat16),
    "conv f4": ((3, 3, 512, 512), HWIO_TO_OIHW, "f4"),
    "conv f4 back": ((512, 512, 3, 3), OIHW_TO_HWIO, "f4"),
    "conv f4 big": ((3, 3, 2048, 2048), HWIO_TO_OIHW, "f4"),
    "2-D f4 4096": ((4096, 4096), (1, 0), "f4"),
    "2-D f4 8192": ((8192, 8192), (1, 0), "f4"),
    "2-D f4 odd": ((4099, 5003), (1, 0), "f4"),
    "2-D f2": ((8192, 8192), (1, 0), "f2"),
    "2-D bf16": ((8192, 8192), (1, 0), ml_dtypes.bfloat16),
    "2-D f8": ((4096, 4096), (1, 0), "f8"),
    "runs kept f4": ((64, 512, 1024), (1, 0, 2), "f4"),
}


class File:
    """A storage that reads a file by `pread`."""

    def __init__(self, path, dtype):
        self.file = os.open(path, os.O_RDONLY)
        self.dtype = np.dtype(dtype)
        self.size = path.stat().st_size // self.dtype.itemsize

    def read(self, start, out):
        memory = out.view("u1")
        done = os.preadv(self.file, [memory], start * self.dtype.itemsize)
        assert done == memory.size


def in_chunks(view, out, nbytes):
    """Read a view through a window of `out`, as a writer with little memory would."""
    chunk = view.chunk(nbytes)
    for start in range(0, view.size, chunk):
        view.read(start, out[: min(chunk, view.size - start)])


def measure(shape, order, dtype, path, rounds):
    """Seconds for every column."""
    dtype = np.dtype(dtype)
    count = math.prod(shape)
    bits = np.arange(count, dtype=f"u{dtype.itemsize}")
    bits.tofile(path)
    array, out = bits.view(dtype).reshape(shape), np.zeros(count, dtype)
    permuted = out.reshape([shape[axis] for axis in order])
    memory = View.over(Memory(array), shape).transpose(order)
    file = View.over(File(path, dtype), shape).transpose(order)
    columns = {
        "plain": lambda: np.copyto(out.view(bits.dtype), bits.reshape(-1)),
        "numpy": lambda: np.copyto(permuted, array.transpose(order)),
        "memory": lambda: memory.read(0, out),
        "memory 64": lambda: in_chunks(memory, out, 64 << 20),
        "file": lambda: file.read(0, out),
        "file 64": lambda: in_chunks(file, out, 64 << 20),
    }
    best = dict.fromkeys(columns, math.inf)
    for name, column in itertools.chain(*([*columns.items()] for _ in range(rounds))):
        start = time.perf_counter()
        column()
        best[name] = min(best[name], time.perf_counter() - start)
    file.read(0, out)
    assert np.array_equal(permuted.view(bits.dtype), bits.reshape(shape).transpose(order))
    os.close(file.storage.file)
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*CASES, []], metavar="NAME")
    parser.add_argument("--folder", default="/dev/shm", help="where to make the file")  # noqa: S108
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for name in arguments.names or CASES:
            shape, order, dtype = CASES[name]
            best = measure(shape, order, dtype, Path(folder, "tensor"), arguments.rounds)
            nbytes = math.prod(shape) * np.dtype(dtype).itemsize
            speeds = "  ".join(f"{key} {nbytes / took / 1e9:5.2f}" for key, took in best.items())
            print(f"{name:14s}  {speeds}  x numpy {best['numpy'] / best['file']:5.1f}", flush=True)


if __name__ == "__main__":
    main()
