"""TensorFlow's own writer and reader of checkpoints.

python -m tests.oracles.tf_saver (--arrays NPZ | --slim SHRINK) --write VERSION=TARGET...
python -m tests.oracles.tf_saver --read CHECKPOINT=OUT...

Both in one go writes first.  OUT is an `.npz` for the values or a `.json` for their digests.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tests import oracles, vgg16

tf1 = tf.compat.v1


def write(arrays: Iterable[tuple[str, NDArray[Any]]], targets: Iterable[Sequence[str]]) -> None:
    """Save variables of these names and values with `Saver(write_version=...)`."""
    tf1.disable_eager_execution()
    with tf1.Session(graph=tf.Graph()) as session, session.graph.as_default():
        for name, array in arrays:
            value = tf1.placeholder(array.dtype, array.shape)
            variable = tf1.get_variable(name, initializer=value)
            session.run(variable.initializer, {value: array})
        for version, path in targets:
            saver = tf1.train.Saver(write_version=int(version))
            saver.save(session, path, write_meta_graph=False, write_state=False)


def read(checkpoint: str) -> Iterator[tuple[str, NDArray[Any]]]:
    """Everything that TensorFlow reads from a checkpoint."""
    reader = tf1.train.NewCheckpointReader(checkpoint)
    for name in sorted(reader.get_variable_to_shape_map()):
        yield name, np.asarray(reader.get_tensor(name))


def save_reading(checkpoint: str, out: Path) -> None:
    """Write what `read` gives: digests or values, as the suffix says."""
    if out.suffix == ".json":
        oracles.save_digests(out, read(checkpoint))
    else:
        oracles.save_arrays(out, dict(read(checkpoint)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--arrays", type=Path)
    parser.add_argument("--slim", type=int, metavar="SHRINK")
    parser.add_argument("--write", nargs="+", default=[], metavar="VERSION=TARGET")
    parser.add_argument("--read", nargs="+", default=[], metavar="CHECKPOINT=OUT")
    options = parser.parse_args()
    if options.arrays:
        write(oracles.load_arrays(options.arrays).items(), pairs(options.write))
    elif options.slim:
        write(vgg16.arrays(vgg16.slim(options.slim)), pairs(options.write))
    for checkpoint, out in pairs(options.read):
        save_reading(checkpoint, Path(out))


def pairs(texts: Iterable[str]) -> list[list[str]]:
    return [text.split("=", 1) for text in texts]


if __name__ == "__main__":
    main()
