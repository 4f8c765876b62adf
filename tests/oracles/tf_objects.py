"""Keras 2 and Keras 3, which save and restore live models, as programs: JSON lines in and out.

    python -m tests.oracles.tf_objects 2
    python -m tests.oracles.tf_objects 3

Values travel as `.npz`, by key ("/" as "|") or by the variable's own name. `Keras` is the side of
the tests; one process for each Keras serves all of them.
"""

from __future__ import annotations

import atexit
import functools
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.oracles import Child, missing, serve


@functools.cache
def keras(version: int) -> Keras:
    """The running Keras of that version; starts it, or skips the test where there is none."""
    absent = missing("tensorflow", "tf_keras" if version == 2 else "keras")
    if absent:
        pytest.skip(f"needs {', '.join(absent)}")
    found = Keras(version)
    atexit.register(found.close)
    return found


class Keras(Child):
    """A Keras in a process of its own. Failures come as `RuntimeError`."""

    def __init__(self, version):
        super().__init__("oracles.tf_objects", version)

    def _call(self, name, kind, path):
        self.ask(call=name, kind=kind, path=path)

    def save(self, kind: str, path: Path):
        """Save a model that has trained for a step; what its variables hold, by their names."""
        self._call("save", kind, path)
        return _loaded(path.with_name(f"{path.name}.values.npz"))

    def restore(self, kind: str, path: Path):
        """Restore a fresh model of that kind, and give what its variables hold, by their names."""
        self._call("restore", kind, path)
        return _loaded(path.with_name(f"{path.name}.values.npz"))

    def read(self, path: Path):
        """What TensorFlow's reader finds, by key; without strings."""
        self._call("read", "", path)
        return _loaded(path.with_name(f"{path.name}.values.npz"))


def _loaded(path):
    with np.load(path) as archive:
        return {name.replace("|", "/"): archive[name] for name in archive.files}


# ── the side of Keras ────────────────────────────────────────────────────────────────────────────


def _model(keras):
    source = keras.Input((6, 6, 3))
    x = keras.layers.Conv2D(4, 3, name="conv")(source)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Flatten(name="flat")(x)
    return keras.Model(source, keras.layers.Dense(2, name="dense")(x))


def _trained(keras, optimizer):
    model = _model(keras)
    model.compile(optimizer, "mse")
    rng = np.random.default_rng(0)
    model.fit(rng.normal(size=(4, 6, 6, 3)), rng.normal(size=(4, 2)), verbose=0)
    return model


def _variables(tf, keras, kind):
    """The model of a kind, what to save, and its variables by name."""
    if kind == "module":
        root = tf.Module()
        root.weight = tf.Variable([1.0, 2.0], name="w")
        root.twice = [root.weight, root]  # an alias, and a cycle
        setattr(root, "a.b", tf.Variable(3.0, name="dotted"))
        root.text = tf.Variable(["x", ""], name="text")
        root.table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)
        root.iterator = iter(tf.data.Dataset.range(4))
        return root, {"weight": root.weight, "a.b": getattr(root, "a.b")}
    optimizers = keras.optimizers
    optimizer = optimizers.legacy.Adam() if kind == "slots" else optimizers.Adam()
    model = _model(keras) if kind == "bare" else _trained(keras, optimizer)
    variables = {getattr(v, "path", v.name).removesuffix(":0"): v for v in model.variables}
    if kind not in {"weights", "bare", "folder"}:
        kept = optimizer.variables
        for variable in kept() if callable(kept) else kept:
            variables[getattr(variable, "path", variable.name).removesuffix(":0")] = variable
    return model, variables


def _save(tf, keras, kind, path):
    owner, variables = _variables(tf, keras, kind)
    if kind == "module":
        owner.table.insert(tf.constant(["p", "q"]), tf.constant([5, 6], tf.int64))
        tf.train.Checkpoint(owner).write(path)
    elif kind == "weights":
        owner.save_weights(path, save_format="tf")
    elif kind == "folder" and hasattr(keras.optimizers, "legacy") and keras.__version__ < "3":
        owner.save(path, save_format="tf")
    elif kind == "folder":
        owner.export(path, verbose=False)
    elif kind == "bare":
        tf.train.Checkpoint(model=owner).write(path)
    else:
        tf.train.Checkpoint(model=owner, optimizer=owner.optimizer).write(path)
    return variables


def _restore(tf, keras, kind, path):
    if kind == "folder" and keras.__version__ < "3":
        owner = keras.models.load_model(path)
        return {v.name.removesuffix(":0"): v for v in owner.variables}
    if kind == "folder":
        owner = tf.saved_model.load(path)
        return {v.name.removesuffix(":0"): v for v in owner.variables}
    owner, variables = _variables(tf, keras, kind)
    for variable in variables.values():  # so that what is not restored is noticed
        variable.assign(variable * 0)
    if kind == "module":
        tf.train.Checkpoint(owner).read(path).expect_partial()
        variables["table"] = owner.table.lookup(tf.constant(["p", "q", "r"]))
    elif kind == "weights":
        owner.load_weights(path).expect_partial()
    elif kind == "bare":
        tf.train.Checkpoint(model=owner).read(path).expect_partial()
    else:
        checkpoint = tf.train.Checkpoint(model=owner, optimizer=owner.optimizer)
        checkpoint.read(path).expect_partial()
    return variables


def _read(tf, keras, kind, path):
    reader = tf.train.load_checkpoint(path)
    dtypes = reader.get_variable_to_dtype_map()
    return {
        name: reader.get_tensor(name)
        for name in dtypes
        if dtypes[name] not in (tf.string, tf.variant)
    }


def main(version: str) -> None:
    def answer(call, **request):
        import tensorflow as tf

        if version == "2":
            import tf_keras as keras
        else:
            import keras
        found = {"save": _save, "restore": _restore, "read": _read}[call](tf, keras, **request)
        values = {name.replace("/", "|"): np.asarray(value) for name, value in found.items()}
        np.savez(request["path"] + ".values.npz", **values)
        return {}

    serve(answer)


if __name__ == "__main__":
    main(sys.argv[1])
