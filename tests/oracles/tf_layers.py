"""Layers of TensorFlow 1: weights, an input and what they make of it, as `.npz`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["TF_USE_LEGACY_KERAS"] = "1"

import numpy as np
import tensorflow as tf

from tests.oracles import save_arrays

v1 = tf.compat.v1
SEQUENCE = (2, 7, 6)


def cell():
    return v1.nn.rnn_cell.BasicLSTMCell(5)


def both_ways(x):
    outputs, _ = v1.nn.bidirectional_dynamic_rnn(cell(), cell(), x, dtype=x.dtype)
    return tf.concat(outputs, -1)


CASES = {
    "lstm-tf-torch": (SEQUENCE, lambda x: v1.nn.dynamic_rnn(cell(), x, dtype=x.dtype)[0]),
    "bidirectional-lstm-tf-torch": (SEQUENCE, both_ways),
}


def main(folder: str) -> None:
    rng = np.random.default_rng(0)
    found = {}
    for name, (shape, build) in CASES.items():
        depth = 3 if name.startswith("bidirectional") else 1
        x = rng.normal(size=shape).astype("f4")
        with tf.Graph().as_default(), v1.Session() as session:
            given = v1.placeholder(tf.float32, shape)
            y = build(given)
            for variable in v1.global_variables():
                values = rng.normal(size=variable.shape).astype("f4") * np.float32(0.3)
                variable.load(values, session)
                key = "/".join(variable.op.name.split("/")[-depth:])
                found[f"{name}|{key}"] = values
            found[f"{name}|x"] = x
            found[f"{name}|y"] = session.run(y, {given: x})
    save_arrays(Path(folder) / "tf.npz", found)


if __name__ == "__main__":
    main(*sys.argv[1:])
