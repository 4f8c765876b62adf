"""TensorFlow's raw checkpoint kernels as a program: JSON lines in, JSON lines out.

One process serves all tests, because importing TensorFlow takes seconds, and because it
must not be imported where PyTorch is. `Oracle` is the side of the tests.

    python -m tests.formats.tf_oracle

Tensors travel as (dtype name, shape, hexadecimal bytes), strings as a list of hexadecimal bytes.
"""

from __future__ import annotations

import atexit
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import pytest

from tests.oracles import Child, missing, pack, serve, unpack


@functools.cache
def tensorflow() -> Oracle:
    """The running TensorFlow of this process; starts it, or skips the test where there is none."""
    if missing("tensorflow"):
        pytest.skip("needs tensorflow")
    oracle = Oracle()
    atexit.register(oracle.close)
    return oracle


class Oracle(Child):
    """TensorFlow in a process of its own. Failures come as `RuntimeError`."""

    def __init__(self):
        super().__init__("formats.tf_oracle")

    def save(self, version: int, path: Path, tensors: Mapping[str, Any]) -> None:
        """Save whole tensors."""
        self.save_slices(version, path, [(name, "", array) for name, array in tensors.items()])

    def save_slices(self, version: int, path: Path, slices: Sequence[tuple[str, str, Any]]) -> None:
        """Save (name, "full shape, then extents" as TensorFlow writes them, values)."""
        packed = [(name, where, pack(array)) for name, where, array in slices]
        self.ask(call="save", version=version, path=path, slices=packed)

    def merge(self, parts: Sequence[Path], target: Path) -> None:
        """Make one V2 checkpoint of several, each a shard of it."""
        self.ask(call="merge", parts=list(parts), target=target)

    def read(self, version: int, path: Path, dtypes: Mapping[str, str]) -> dict[str, Any]:
        """The values of tensors, restored as dtypes of these names."""
        packed = self.ask(call="read", version=version, path=path, dtypes=dict(dtypes))
        return {name: unpack(array) for name, array in packed.items()}

    def inventory(self, path: Path) -> dict[str, tuple[str, list[int]]]:
        """(dtype name, shape) of every tensor, by TensorFlow's reader of checkpoints."""
        return {name: tuple(spec) for name, spec in self.ask(call="inventory", path=path).items()}


# ── the side of TensorFlow ───────────────────────────────────────────────────────────────────────


def _dtype(tf, name):
    return tf.string if name == "string" else tf.dtypes.as_dtype(getattr(ml_dtypes, name, name))


def _save(tf, version, path, slices):
    names = [name for name, _, _ in slices]
    places = [place for _, place, _ in slices]
    values = [unpack(packed) for _, _, packed in slices]
    tensors = [
        tf.constant(value, _dtype(tf, packed["dtype"]), value.shape)
        for value, (_, _, packed) in zip(values, slices, strict=True)
    ]
    if version == 1:
        tf.raw_ops.SaveSlices(
            filename=path, tensor_names=names, shapes_and_slices=places, data=tensors
        )
    else:
        tf.raw_ops.SaveV2(prefix=path, tensor_names=names, shape_and_slices=places, tensors=tensors)


def _merge(tf, parts, target):
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=target)


def _read(tf, version, path, dtypes):
    kinds = [_dtype(tf, name) for name in dtypes.values()]
    if version == 1:
        values = [
            tf.raw_ops.Restore(file_pattern=path, tensor_name=name, dt=kind)
            for name, kind in zip(dtypes, kinds, strict=True)
        ]
    else:
        values = tf.raw_ops.RestoreV2(
            prefix=path, tensor_names=list(dtypes), shape_and_slices=[""] * len(kinds), dtypes=kinds
        )
    return {name: pack(value.numpy()) for name, value in zip(dtypes, values, strict=True)}


def _inventory(tf, path):
    reader = tf.compat.v1.train.NewCheckpointReader(path)
    dtypes = reader.get_variable_to_dtype_map()
    shapes = reader.get_variable_to_shape_map()
    return {name: (dtypes[name].name, shape) for name, shape in shapes.items()}


def _answer(call, **request):
    import tensorflow as tf

    calls = {"save": _save, "merge": _merge, "read": _read, "inventory": _inventory}
    return calls[call](tf, **request)


if __name__ == "__main__":
    serve(_answer)
