"""The libraries that formats belong to, each in a process of its own: JSON lines in and out.

    python -m tests.formats.witnesses onnx

Here a library is `write(path, arrays)` and `read(path)`, made by a function of its name.  What it
does not hold it refuses, by whatever exception it has.  `witness` is the side of the tests.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import sys
import types
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.oracles import LEGACY, Child, missing, pack, serve, unpack

Array = NDArray[Any]
Arrays = Mapping[str, Array]
NEEDS = {"caffe": LEGACY / "proto", "tfjs": LEGACY / "tensorflowjs"}  # or packages:
NEEDS |= {"graphdef": "tensorflow", "torch-legacy": "torch", "dcp": "torch", "orbax": "orbax"}
NEEDS |= {"keras-v3": "keras", "keras-h5": "keras"}


@functools.cache
def witness(name: str) -> Witness:
    """The running library; starts it, or skips the test where there is none."""
    needed = NEEDS.get(name, name)
    if not needed.exists() if isinstance(needed, Path) else missing(needed):
        pytest.skip(f"needs {needed}")
    found = Witness("formats.witnesses", name)
    atexit.register(found.close)
    return found


class Witness(Child):
    """A library in a process of its own.  Failures come as `RuntimeError`."""

    def write(self, path: Path, arrays: Arrays) -> None:
        """Save the arrays by these names."""
        self.ask(call="write", path=path, arrays={n: pack(array) for n, array in arrays.items()})

    def read(self, path: Path) -> dict[str, Array]:
        """All arrays of a checkpoint by name."""
        return {name: unpack(found) for name, found in self.ask(call="read", path=path).items()}


# ── in the process of a library ──────────────────────────────────────────────────────────────────


class Library(NamedTuple):
    write: Callable[[str, Arrays], object]
    read: Callable[[str], Arrays]


def torch_arrays(torch: Any, arrays: Arrays) -> dict[str, Any]:
    """The same as torch's tensors, in storages of their own."""
    found = {}
    for name, array in arrays.items():
        dtype, shape = array.dtype.name, array.shape
        if dtype in {"int2", "int4", "uint2", "uint4"}:
            raise TypeError(f"{dtype}: only a name in torch; saving it ends the process")
        raw = array.reshape(-1).view(np.uint8)
        if dtype == "float4_e2m1fn":  # torch counts pairs, along the last axis
            dtype, shape = "float4_e2m1fn_x2", (*shape[:-1], shape[-1] // 2)
            raw = raw[::2] | raw[1::2] << 4
        found[name] = torch.empty(shape, dtype=getattr(torch, dtype))
        found[name].reshape(-1).view(torch.uint8).copy_(torch.tensor(raw, dtype=torch.uint8))
    return found


def torch_array(torch: Any, tensor: Any) -> Array:
    """The values of a torch tensor, resolved and contiguous, with their bits."""
    tensor = tensor.detach().resolve_conj().resolve_neg().contiguous().cpu()
    name = str(tensor.dtype).removeprefix("torch.")
    shape = tuple(tensor.shape)
    if name == "float4_e2m1fn_x2":
        packed = tensor.view(torch.uint8).numpy()
        pairs = np.stack([packed & 15, packed >> 4], axis=-1)
        return pairs.view(ml_dtypes.float4_e2m1fn).reshape(*shape[:-1], 2 * shape[-1])
    storage = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
    start = tensor.storage_offset() * tensor.element_size()
    raw = storage.numpy()[start : start + tensor.numel() * tensor.element_size()]
    return raw.copy().view(np.dtype(getattr(ml_dtypes, name, name))).reshape(shape)


def torch(**options: Any) -> Library:
    import torch

    def write(path: str, arrays: Arrays) -> None:
        torch.save(torch_arrays(torch, arrays), path, **options)

    def read(path: str) -> Arrays:
        loaded = torch.load(path, weights_only=True)
        return {name: torch_array(torch, tensor) for name, tensor in loaded.items()}

    return Library(write, read)


def torch_legacy() -> Library:
    return torch(_use_new_zipfile_serialization=False)


def dcp() -> Library:
    import torch
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint import state_dict_loader as loader
    from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner

    def write(path: str, arrays: Arrays) -> None:
        checkpoint.save(torch_arrays(torch, arrays), checkpoint_id=path)

    def read(path: str) -> Arrays:
        loaded: dict[str, Any] = {}
        loader._load_state_dict(
            loaded,
            storage_reader=checkpoint.FileSystemReader(path),
            planner=_EmptyStateDictLoadPlanner(),
            no_dist=True,
        )
        return {name: torch_array(torch, tensor) for name, tensor in loaded.items()}

    return Library(write, read)


def graphdef() -> Library:
    import tensorflow as tf

    def write(path: str, arrays: Arrays) -> None:
        with tf.Graph().as_default() as graph:
            for name, array in arrays.items():
                kind = tf.string if array.dtype == object else tf.dtypes.as_dtype(array.dtype)
                tf.constant(array, kind, array.shape, name)
        Path(path).write_bytes(graph.as_graph_def().SerializeToString())

    def read(path: str) -> Arrays:
        graph = tf.compat.v1.GraphDef.FromString(Path(path).read_bytes())
        return {node.name: tf.make_ndarray(node.attr["value"].tensor) for node in graph.node}

    return Library(write, read)


def onnx() -> Library:
    import onnx
    from onnx import helper, numpy_helper

    def write(path: str, arrays: Arrays) -> None:
        tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
        graph = helper.make_graph([], "g", [], [], tensors)
        onnx.save_model(helper.make_model(graph), path)

    def read(path: str) -> Arrays:
        graph = onnx.load(path).graph
        return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}

    return Library(write, read)


def tfjs() -> Library:
    sys.path.insert(0, str(LEGACY))
    package = types.ModuleType("tensorflowjs")  # its own __init__ imports its converters
    package.__path__ = [str(LEGACY / "tensorflowjs")]
    sys.modules["tensorflowjs"] = package
    from tensorflowjs import read_weights, write_weights

    def write(path: str, arrays: Arrays) -> None:
        folder = Path(path).parent
        weights = [{"name": name, "data": array} for name, array in arrays.items()]
        manifest = write_weights.write_weights([weights], str(folder), write_manifest=False)
        text = {"modelTopology": None, "weightsManifest": manifest}
        Path(path).write_text(json.dumps(text))

    def read(path: str) -> Arrays:
        manifest = json.loads(Path(path).read_text())["weightsManifest"]
        found = read_weights.read_weights(manifest, str(Path(path).parent), flatten=True)
        return {weight["name"]: weight["data"] for weight in found}

    return Library(write, read)


def caffe() -> Library:
    os.environ["PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"] = "python"  # which old code needs
    sys.path.insert(0, str(LEGACY))
    from proto import caffe_pb2

    fields = {"float32": "data", "float64": "double_data"}

    def write(path: str, arrays: Arrays) -> None:
        net = caffe_pb2.NetParameter(name="net")
        for name, array in arrays.items():
            blob = net.layer.add(name=name, type="Convolution").blobs.add()
            blob.shape.SetInParent()  # a scalar's too
            blob.shape.dim.extend(array.shape)
            getattr(blob, fields[array.dtype.name]).extend(array.reshape(-1).tolist())
        Path(path).write_bytes(net.SerializeToString())

    def read(path: str) -> Arrays:
        net = caffe_pb2.NetParameter.FromString(Path(path).read_bytes())
        found = {}
        for layer in net.layer:
            (blob,) = layer.blobs
            dtype = "float64" if blob.double_data else "float32"
            values = np.array(getattr(blob, fields[dtype]), dtype)
            found[layer.name] = values.reshape(tuple(blob.shape.dim))
        return found

    return Library(write, read)


def joblib() -> Library:
    import joblib

    return Library(lambda path, arrays: joblib.dump(dict(arrays), path), joblib.load)


def gguf() -> Library:
    import gguf

    def write(path: str, arrays: Arrays) -> None:
        writer = gguf.GGUFWriter(path, "llama")
        for name, array in arrays.items():
            if array.dtype == ml_dtypes.bfloat16:
                kind = gguf.GGMLQuantizationType.BF16
                writer.add_tensor(name, array.view(np.uint8), raw_dtype=kind)
            else:
                writer.add_tensor(name, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    def read(path: str) -> Arrays:
        found = {}
        for tensor in gguf.GGUFReader(path).tensors:
            bf16 = tensor.tensor_type == gguf.GGMLQuantizationType.BF16
            array = tensor.data.view(ml_dtypes.bfloat16) if bf16 else tensor.data
            found[tensor.name] = np.array(array)
        return found

    return Library(write, read)


def orbax() -> Library:
    from orbax import checkpoint

    library = checkpoint.PyTreeCheckpointer()
    return Library(lambda path, arrays: library.save(path, dict(arrays)), library.restore)


def keras_zeros(path: str) -> Arrays:
    """Zeros for each dataset of a file of Keras, in the order of their numbers, by h5py."""
    import h5py

    found = {}

    def take(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            dtype = item.attrs.get("dtype", item.dtype)  # an attribute for bfloat16 only
            found[name.removeprefix("model_weights/")] = np.zeros(item.shape, dtype)

    with contextlib.ExitStack() as files:
        source: Any = path
        if path.endswith(".keras"):
            archive = files.enter_context(zipfile.ZipFile(path))
            source = files.enter_context(archive.open("model.weights.h5"))
        files.enter_context(h5py.File(source)).visititems(take)
    return dict(sorted(found.items(), key=lambda pair: int(pair[0].rpartition("/")[2])))


def keras() -> Library:
    """Keras 3: the variables of one layer, known by number.  It loads into those that there are."""
    os.environ["KERAS_BACKEND"] = "numpy"
    sys.modules["tensorflow"] = None  # Keras would import it to save a model, and use nothing of it
    import keras

    def model(arrays: Arrays) -> Any:
        layer = keras.layers.Layer(name="layer")
        for number, array in enumerate(arrays.values()):
            dtype = array.dtype.name
            weight = layer.add_weight(array.shape, dtype=dtype, name=str(number), trainable=False)
            weight.assign(array)
        found = keras.Sequential([layer])
        layer.built = found.built = True  # there is no input to build it for
        return found

    def write(path: str, arrays: Arrays) -> None:
        made = model(arrays)
        (made.save_weights if path.endswith(".weights.h5") else made.save)(path)

    def read(path: str) -> Arrays:
        arrays = keras_zeros(path)
        made = model(arrays)
        made.load_weights(path)
        loaded = map(keras.ops.convert_to_numpy, made.weights)
        return dict(zip(arrays, loaded, strict=True))

    return Library(write, read)


keras_v3 = keras_h5 = keras


def main(name: str) -> None:
    warnings.simplefilter("ignore")
    library = functools.cache(globals()[name.replace("-", "_")])

    def answer(call: str, path: str, arrays: Mapping[str, Any] = types.MappingProxyType({})) -> Any:
        if call == "write":
            library().write(path, {n: unpack(packed) for n, packed in arrays.items()})
            return {}
        return {n: pack(array) for n, array in library().read(path).items()}

    serve(answer)


if __name__ == "__main__":
    main(sys.argv[1])
