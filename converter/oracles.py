"""The real frameworks as witnesses: load a file with one, in a process of its own, and compare.

The child prints a digest for each tensor as the framework has it; nothing of a framework is ever
imported in this process.  Run as a module, this file is that child:

    python -m converter.oracles torch vgg16.pt
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from converter.compare import Difference
from converter.digests import of_tensor
from converter.errors import SourceError, UnsupportedError
from converter.layout import Array, View
from converter.tensors import Checkpoint, Tensor, dtype_name

PACKAGES = {  # framework → package that is asked, and extra that installs it
    "torch": "torch",
    "tensorflow": "tensorflow",
    "safetensors": "safetensors",
    "keras": "keras",
}

Witness = dict[str, dict[str, Any]]  # name → dtype, shape, digest


def load_with(framework: str, path: Path, checkpoint: Checkpoint) -> list[Difference]:
    """What the framework finds in a file, compared with what we find there.

    Raises `UnsupportedError` when the framework is not installed, `SourceError` when it refuses.
    """
    command = [sys.executable, "-m", "converter.oracles", framework, str(path)]
    child = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if child.returncode:
        last = (child.stderr.strip().splitlines() or ["no message"])[-1]
        if "ModuleNotFoundError" in last:
            extra = PACKAGES[framework]
            raise UnsupportedError(
                f"{framework} is not installed here: {last}",
                hint=f"pip install 'checkpoint-converter[{extra}]'",
            )
        raise SourceError(f"{framework} cannot load it: {last}", path=path)
    witness: Witness = json.loads(child.stdout.splitlines()[-1])
    return list(_compare(checkpoint, witness, framework))


def _compare(checkpoint: Checkpoint, witness: Witness, framework: str) -> Iterator[Difference]:
    for name, tensor in checkpoint.items():
        shown = f"{name} (as {framework} reads it)"
        found = witness.get(name)
        if found is None:
            yield Difference(shown, "missing", tensor.spec)
        elif found["shape"] != list(tensor.spec.shape):
            yield Difference(shown, "shape", tensor.spec)
        elif found["dtype"] != dtype_name(tensor.spec.dtype):
            yield Difference(shown, "dtype", tensor.spec)
        elif found["digest"] != of_tensor(tensor):
            yield Difference(shown, "values", tensor.spec, tensor.spec, tensor.spec.size)
    for name in witness.keys() - checkpoint.keys():
        yield Difference(f"{name} (as {framework} reads it)", "extra")


# The child.


def _described(arrays: Iterator[tuple[str, Array, str]]) -> Witness:
    return {
        name: {
            "dtype": dtype,
            "shape": list(array.shape),
            "digest": of_tensor(Tensor(View.of(array))),
        }
        for name, array, dtype in arrays
    }


def _torch(path: Path) -> Witness:
    import torch

    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)

    def arrays() -> Iterator[tuple[str, Array, str]]:
        for name, value in state.items():
            plain = value.detach().contiguous()
            raw = plain.reshape(-1).view(torch.uint8).numpy()
            dtype = str(value.dtype).removeprefix("torch.")
            yield name, raw, dtype

    described = _described(arrays())
    for name, value in state.items():
        described[name]["shape"] = list(value.shape)
    return described


def _tensorflow(path: Path) -> Witness:
    import tensorflow as tf

    from converter.formats import open_checkpoint

    with open_checkpoint(path) as checkpoint:
        prefix = checkpoint.path or path
    reader = tf.train.load_checkpoint(str(prefix))
    names = sorted(reader.get_variable_to_shape_map())

    def arrays() -> Iterator[tuple[str, Array, str]]:
        for name in names:
            array = np.asarray(reader.get_tensor(name))
            yield name, array, dtype_name(array.dtype)

    return _described(arrays())


def _safetensors(path: Path) -> Witness:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as reader:
        names = list(reader.keys())

        def arrays() -> Iterator[tuple[str, Array, str]]:
            for name in names:
                array = reader.get_tensor(name)
                yield name, array, dtype_name(array.dtype)

        return _described(arrays())


WITNESSES: dict[str, Callable[[Path], Witness]] = {
    "torch": _torch,
    "tensorflow": _tensorflow,
    "safetensors": _safetensors,
}

if __name__ == "__main__":
    print(json.dumps(WITNESSES[sys.argv[1]](Path(sys.argv[2]))))  # noqa: T201 - to the parent
