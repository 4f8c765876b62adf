"""TF-Slim's own vgg_16, restored from checkpoints: its logits for a batch of images.

python -m tests.oracles.tf_slim_vgg16 IMAGES.npz CHECKPOINT=OUT.npz...

IMAGES.npz holds `images`, N H W C with the mean subtracted; OUT.npz gets `logits`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf
from numpy.typing import NDArray
from tf_slim.nets import vgg

from tests import oracles

tf1 = tf.compat.v1


def logits(checkpoints: Iterable[str], images: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Build the network, restore all of its variables, run it as in evaluation."""
    tf1.disable_eager_execution()
    with tf1.Session(graph=tf.Graph()) as session, session.graph.as_default():
        pixels = tf1.placeholder(tf.float32, images.shape)
        output, _ = vgg.vgg_16(pixels, is_training=False)
        saver = tf1.train.Saver(tf1.global_variables("vgg_16"))
        for checkpoint in checkpoints:
            saver.restore(session, checkpoint)
            yield session.run(output, {pixels: images})


def main() -> None:
    batch = oracles.load_arrays(Path(sys.argv[1]))["images"]
    pairs = dict(pair.split("=", 1) for pair in sys.argv[2:])
    for out, result in zip(pairs.values(), logits(pairs, batch), strict=True):
        oracles.save_arrays(Path(out), {"logits": result})


if __name__ == "__main__":
    main()
