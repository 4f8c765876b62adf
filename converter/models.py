"""A real model, run in a process of its own: what each of its layers makes of an input.

`converter.parity` starts this file, once for each model; the folder that it is given holds the
request, and gets every output as `.npy`, with a list of them:

    python -m converter.models FOLDER          FOLDER/request.json → FOLDER/answer.json, 0.npy, …

Each framework records what its layers give: Keras by their calls, TF-Slim by its end points, a
SavedModel by the operations of its graph, PyTorch by hooks.  A layer's weights are told by their
names where those are the checkpoint's, and by the digests of their values where they are not.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from converter.digests import of_tensor
from converter.formats import open_checkpoint
from converter.layout import Array, View
from converter.tensors import Tensor

BATCH = 2
TOKENS = 8  # inputs of whole numbers are below this, which every table of embeddings has
OUTPUT = ""  # the layer that is the whole model


class Recorder:
    """Takes what layers give, and writes it down at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.inputs: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self._count = 0

    def input(self, name: str, array: Array) -> None:
        """Note an input of the model."""
        self.inputs.append({"name": name, "file": self._save(array)})

    def event(self, layer: str, kind: str, value: object, **facts: object) -> None:
        """Note what a layer takes (`in`) or gives (`out`), if that is an array of numbers."""
        array = np.asarray(value)
        if array.dtype.kind in "fiub" or array.dtype.name == "bfloat16":
            row = {"layer": layer, "kind": kind, "file": self._save(array.astype(np.float32))}
            self.events.append(row | facts)

    def _save(self, array: Array) -> str:
        name = f"{self._count}.npy"
        self._count += 1
        np.save(self.folder / name, array)
        return name

    def close(self) -> None:
        """Write the list."""
        text = json.dumps({"inputs": self.inputs, "events": self.events})
        (self.folder / "answer.json").write_text(text)


def made_up(request: dict[str, Any], name: str, shape: Sequence[int | None], dtype: str) -> Array:
    """The input of that name: the one that was given, or random numbers of its shape."""
    given = request["inputs"]
    path = given.get(name) or given.get("")
    if path:
        found: Array = np.load(path, allow_pickle=False)
        return found
    if any(n is None for n in shape[1:]):
        raise ValueError(f"input '{name}' has the shape {list(shape)}: give it by --input")
    random = np.random.default_rng(request["seed"])
    sizes = [shape[0] or BATCH, *(int(n or 0) for n in shape[1:])]
    if np.dtype(dtype).kind in "iu":
        return random.integers(0, TOKENS, sizes).astype(dtype)
    return random.standard_normal(sizes).astype(dtype)


def digests_of(arrays: Iterable[object]) -> list[str]:
    """The digests of some weights."""
    return [of_tensor(Tensor(View.of(np.ascontiguousarray(array)))) for array in arrays]


def called(place: str) -> Callable[..., Any]:
    """The callable at `package.module:name`, also of the working folder.

    That comes last: a file beside a checkpoint must not stand in for an installed package.
    """
    sys.path.append(str(Path.cwd()))
    module, _, name = place.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]


def first(value: Any) -> Any:
    """The first tensor of a nest of them."""
    while isinstance(value, list | tuple | dict) and value:
        value = next(iter(value.values())) if isinstance(value, dict) else value[0]
    return value


def flat(value: Any) -> list[Any]:
    """Every tensor of a nest of them."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [one for part in value for one in flat(part)]
    return [value]


# ── one function a framework ─────────────────────────────────────────────────────────────────


def run_torch(request: dict[str, Any], recorder: Recorder) -> None:
    """A module as a callable makes it, with the target's tensors."""
    import torch

    module = called(request["model"])().eval()
    with open_checkpoint(request["weights"]) as checkpoint:
        state = {name: torch.tensor(_plain(t.numpy())) for name, t in checkpoint.items()}
    wrong = module.load_state_dict(state, strict=False)
    missing = [name for name in wrong.missing_keys if not name.endswith("num_batches_tracked")]
    if missing or wrong.unexpected_keys:
        raise ValueError(
            f"the checkpoint is not the module's: missing {missing[:5]}, "
            f"unexpected {wrong.unexpected_keys[:5]}"
        )

    def record(name: str, kind: str, value: Any) -> None:
        value = first(value)
        if isinstance(value, torch.Tensor):
            recorder.event(name, kind, value.detach().float().numpy())

    for name, part in module.named_modules():
        if name:
            part.register_forward_pre_hook(lambda _, given, name=name: record(name, "in", given))
            part.register_forward_hook(lambda _, __, out, name=name: record(name, "out", out))
    arrays = [np.load(path, allow_pickle=False) for path in request["inputs"].values()]
    with torch.no_grad():
        outputs = module(*(torch.from_numpy(channels_first(array)) for array in arrays))
    for value in flat(outputs):
        record(OUTPUT, "out", value)


def _plain(array: Array) -> Array:
    """An array of a dtype that NumPy has itself."""
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def channels_first(array: Array) -> Array:
    """An image or a video with its channels before its sizes; anything else as it is."""
    images = (4, 5)
    if array.ndim in images and array.dtype.kind == "f":
        return np.ascontiguousarray(np.moveaxis(array, -1, 1))
    return array


def run_keras(request: dict[str, Any], recorder: Recorder) -> None:
    """A model from a file of Keras; layers within models count, what is within layers does not."""
    if find_spec("jax"):
        os.environ.setdefault("KERAS_BACKEND", "numpy")
    import keras

    model = keras.saving.load_model(request["model"], compile=False)
    if Path(request["weights"]) != Path(request["model"]):
        model.load_weights(request["weights"])
    around: list[Any] = []
    call = keras.Layer.__call__

    def recorded(layer: Any, *arguments: Any, **options: Any) -> Any:
        seen = all(isinstance(each, keras.Model) for each in around)
        around.append(layer)
        try:
            out = call(layer, *arguments, **options)
        finally:
            around.pop()
        value = first(out)
        if seen and around and not isinstance(value, keras.KerasTensor):
            path = "/".join(each.name for each in [*around[1:], layer])
            weights = [] if isinstance(layer, keras.Model) else layer.weights
            arrays = [keras.ops.convert_to_numpy(weight.value) for weight in weights]
            recorder.event(
                path, "out", keras.ops.convert_to_numpy(value), digests=digests_of(arrays)
            )
        return out

    keras.Layer.__call__ = recorded
    arrays = []
    for each in model.inputs:
        arrays.append(made_up(request, each.name, each.shape, each.dtype))
        recorder.input(each.name, arrays[-1])
    outputs = model(arrays if len(arrays) > 1 else arrays[0], training=False)
    for value in flat(outputs):
        recorder.event(OUTPUT, "out", keras.ops.convert_to_numpy(value))


def run_slim(request: dict[str, Any], recorder: Recorder) -> None:
    """A network of TF-Slim by its name, or a function like one; it gives output and end points."""
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # TF-Slim needs Keras 2
    import tensorflow as tf
    import tf_slim

    tf1 = tf.compat.v1
    network, scope = _network(request["model"])
    size = getattr(network, "default_image_size", None)
    array = made_up(request, "inputs", (BATCH, size, size, 3), "float32")
    recorder.input("inputs", array)
    tf1.disable_eager_execution()
    with tf1.Session(graph=tf.Graph()) as session, session.graph.as_default():
        pixels = tf1.placeholder(tf.float32, array.shape)
        with tf_slim.arg_scope(scope() if scope else {}):
            output, points = network(pixels, is_training=False)
        variables = tf1.global_variables()
        tf1.train.Saver(variables).restore(session, request["weights"])
        names = [variable.op.name for variable in variables]
        order = {op.name: nth for nth, op in enumerate(session.graph.get_operations())}
        found = sorted(points.items(), key=lambda point: order[point[1].op.name])
        values = session.run(dict(found) | {OUTPUT: output}, {pixels: array})
    owners = {name: _owner(name, points) for name in names}
    for key, _ in found:
        weights = [name for name, owner in owners.items() if owner == key]
        recorder.event(key, "out", values[key], weights=weights)
    recorder.event(OUTPUT, "out", values[OUTPUT])


def _network(name: str) -> tuple[Any, Any]:
    """A function that builds a network, and its argument scope."""
    if ":" in name:
        return called(name), None
    from pkgutil import iter_modules

    from tf_slim import nets

    for info in iter_modules(nets.__path__):
        if info.name.endswith("_test"):
            continue
        module = importlib.import_module(f"tf_slim.nets.{info.name}")
        if hasattr(module, name):
            parts = name.split("_")
            scopes = ("_".join([*parts[:end], "arg_scope"]) for end in range(len(parts), 0, -1))
            scope = next((getattr(module, each) for each in scopes if hasattr(module, each)), None)
            return getattr(module, name), scope
    raise ValueError(f"tf_slim.nets has no network '{name}'")


def _owner(variable: str, points: Iterable[str]) -> str | None:
    """The innermost end point around a variable."""
    around = [p for p in points if variable.startswith(f"{p}/") or f"/{p}/" in variable]
    return max(around, key=len, default=None)


def run_savedmodel(request: dict[str, Any], recorder: Recorder) -> None:
    """A SavedModel's `serving_default`, its variables made constants; each operation is a layer."""
    import tensorflow as tf
    from tensorflow.python.framework import convert_to_constants

    loaded = tf.saved_model.load(request["model"])
    signature = loaded.signatures["serving_default"]
    frozen = convert_to_constants.convert_variables_to_constants_v2(signature)
    feeds = []
    for tensor in frozen.inputs:
        name, dtype = tensor.op.name, tensor.dtype.as_numpy_dtype
        feeds.append(made_up(request, name, tensor.shape.as_list(), np.dtype(dtype).name))
        recorder.input(name, feeds[-1])
    layers = [op for op in frozen.graph.get_operations() if _is_layer(op)]
    outputs = list(frozen.outputs)
    everything = frozen.prune(frozen.inputs, [*(op.outputs[0] for op in layers), *outputs])
    values = everything(*map(tf.constant, feeds))
    for op, value in zip(layers, values, strict=False):
        recorder.event(op.name, "out", value.numpy(), digests=digests_of(_constants(op)))
    for value in values[len(layers) :]:
        recorder.event(OUTPUT, "out", value.numpy())


_CONSTANT = {"Const", "Placeholder", "Identity", "NoOp", "ReadVariableOp"}  # or no layer at all
_SAME = {"Identity", "ReadVariableOp", "Reshape", "ExpandDims"}  # the same values


def _is_layer(op: Any) -> bool:
    """Whether an operation makes an array of numbers of what is no constant."""
    if op.type in _CONSTANT or not op.outputs or not op.outputs[0].dtype.is_floating:
        return False
    return any(_origin(tensor).type != "Const" for tensor in op.inputs)


def _origin(tensor: Any) -> Any:
    """The operation that made a tensor's values."""
    while tensor.op.type in _SAME:
        tensor = tensor.op.inputs[0]
    return tensor.op


def _constants(op: Any) -> Iterator[Array]:
    """The constants that an operation takes."""
    import tensorflow as tf

    for tensor in op.inputs:
        origin = _origin(tensor)
        if origin.type == "Const":
            yield np.asarray(tf.make_ndarray(origin.get_attr("value")))


RUNS: dict[str, Callable[[dict[str, Any], Recorder], None]] = {
    "keras": run_keras,
    "savedmodel": run_savedmodel,
    "slim": run_slim,
    "torch": run_torch,
}

if __name__ == "__main__":
    place = Path(sys.argv[1])
    asked = json.loads((place / "request.json").read_text())
    taken = Recorder(place)
    RUNS[asked["kind"]](asked, taken)
    taken.close()
