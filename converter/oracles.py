"""The real frameworks as witnesses: load a file with one, in a process of its own, and compare.

The child prints a digest for each tensor as the framework has it; nothing of a framework is ever
imported in this process.  Run as a module, this file is that child:

    python -m converter.oracles torch vgg16.pt
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from converter import extras
from converter.compare import Difference
from converter.digests import of_tensor
from converter.errors import SourceError
from converter.formats import open_checkpoint
from converter.layout import Array, View
from converter.tensors import Checkpoint, Tensor, dtype_name

Witness = dict[str, dict[str, Any]]  # name → dtype, shape, digest


def load_with(framework: str, path: Path) -> list[Difference]:
    """What the framework finds in a file, compared with what we find there.

    Raises `MissingExtraError` when the framework is not installed, `SourceError` when it refuses.
    """
    command = [sys.executable, "-P", "-m", "converter.oracles", framework, str(path)]
    child = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if child.returncode:
        last = (child.stderr.strip().splitlines() or ["no message"])[-1]
        extras.check_child(last)
        raise SourceError(f"{framework} cannot load it: {last}", path=path)
    witness: Witness = json.loads(child.stdout.splitlines()[-1])
    with open_checkpoint(path) as checkpoint:
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


def _keras(path: Path) -> Witness:
    """Keras' own readers; a file that holds a model is loaded as one, too."""
    if find_spec("jax"):  # which that backend asks for; it starts at once, and loads anything
        os.environ.setdefault("KERAS_BACKEND", "numpy")
    import h5py
    import keras

    if path.suffix == ".keras":
        model = keras.saving.load_model(path, compile=False)
        with tempfile.TemporaryDirectory() as folder:
            saved = Path(folder, "model.weights.h5")
            model.save_weights(saved)
            with zipfile.ZipFile(path) as archive:
                stored = Path(archive.extract("model.weights.h5", folder + "/stored"))
            # What the model does not load without its optimizer is as it is stored.
            return _keras_stored(stored) | _keras_stored(saved)
    with h5py.File(path) as file:
        weights = file.get("model_weights", file)
        if "layer_names" not in weights.attrs and "layer_names0" not in weights.attrs:
            return _keras_stored(path)
        if "model_config" in file.attrs:
            keras.saving.load_model(path, compile=False)
        return _described(_keras_layers(file, weights))


def _keras_stored(path: Path) -> Witness:
    """Everything in a `.weights.h5`, as the store of Keras 3 hands it out."""
    import h5py
    from keras.src.saving.saving_lib import H5IOStore

    with h5py.File(path) as file:
        found: list[str] = []
        file.visititems(
            lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None
        )
        store = H5IOStore(path)

        def arrays() -> Iterator[tuple[str, Array, str]]:
            for name in found:
                group, _, key = name.rpartition("/")
                owner, _, last = group.rpartition("/")
                array = np.asarray(store.get(owner)[key] if last == "vars" else file[name])
                yield name, array, dtype_name(array.dtype)

        described = _described(arrays())
        store.close()
        return described


def _keras_layers(file: Any, weights: Any) -> Iterator[tuple[str, Array, str]]:
    """The weights of an `.h5` by layer, as Keras reads the lists and their arrays."""
    from keras.src.legacy.saving import legacy_h5_format as legacy

    layers = legacy.load_attributes_from_hdf5_group(weights, "layer_names")
    groups = [(name, weights[name]) for name in layers]
    groups += [
        (name, parent[name])
        for parent, name in ((weights, "top_level_model_weights"), (file, "optimizer_weights"))
        if name in parent
    ]
    for layer, group in groups:
        names = legacy.load_attributes_from_hdf5_group(group, "weight_names")
        arrays = legacy.load_subset_weights_from_hdf5_group(group)
        for name, array in zip(names, arrays, strict=True):
            yield f"{layer}/{name}", array, dtype_name(array.dtype)


WITNESSES: dict[str, Callable[[Path], Witness]] = {
    "torch": _torch,
    "tensorflow": _tensorflow,
    "safetensors": _safetensors,
    "keras": _keras,
}

if __name__ == "__main__":
    print(json.dumps(WITNESSES[sys.argv[1]](Path(sys.argv[2]))))  # noqa: T201 - to the parent
