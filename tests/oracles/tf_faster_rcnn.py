"""tf-faster-rcnn's variables, filled in its own way, and from a file of ours.

python -m tests.oracles.tf_faster_rcnn SHRINK (fix|restore|default) CHECKPOINT OUT.json ...

`fix` takes a checkpoint of TF-Slim and starts a training as tf-faster-rcnn does: variables that the
checkpoint has under the same name are restored, and `fix_variables` brings over the three whose
layout differs.  `restore` takes any checkpoint with the backbone's variables and gives them to a
`Saver`, nothing else.  Both write the digests of the backbone's variables (the heads have nothing
to be restored from).  `default` writes a checkpoint under the names of the first generation, by
the steps of tools/convert_from_depre.py, with the digests of what it holds by the names of today.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from tests import oracles, vgg16

tf1 = tf.compat.v1
HEADS = ("rpn_conv", "rpn_cls_score", "rpn_bbox_pred", "cls_score", "bbox_pred")
FIXED = ("vgg_16/fc6/weights", "vgg_16/fc7/weights", "vgg_16/conv1/conv1_1/weights")

Variables = dict[str, Any]


def build(shrink: int) -> Variables:
    """The 40 variables of the model, under its own names; ones, to show what was not restored."""
    ones = tf1.ones_initializer()
    return {
        name: tf1.get_variable(name, shape, dtype, initializer=ones, use_resource=False)
        for name, (shape, dtype) in vgg16.faster_rcnn(shrink).items()
    }


def fix(session: Any, variables: Variables, checkpoint: str, shrink: int) -> None:
    """Restore by the intersection of names, then `fix_variables`, step by step."""
    in_file = tf1.train.NewCheckpointReader(checkpoint).get_variable_to_shape_map()
    by_name = [v for name, v in variables.items() if name in in_file and name not in FIXED]
    tf1.train.Saver(by_name).restore(session, checkpoint)

    fc6, fc7, conv1 = FIXED
    shapes = vgg16.slim(shrink)
    with tf1.variable_scope("Fix_VGG16", initializer=tf1.zeros_initializer()):
        fc6_conv = tf1.get_variable("fc6_conv", shapes[fc6][0], trainable=False, use_resource=False)
        fc7_conv = tf1.get_variable("fc7_conv", shapes[fc7][0], trainable=False, use_resource=False)
        conv1_rgb = tf1.get_variable(
            "conv1_rgb", shapes[conv1][0], trainable=False, use_resource=False
        )
    under_their_names = {fc6: fc6_conv, fc7: fc7_conv, conv1: conv1_rgb}
    tf1.train.Saver(under_their_names).restore(session, checkpoint)
    session.run(tf1.assign(variables[fc6], tf.reshape(fc6_conv, variables[fc6].shape)))
    session.run(tf1.assign(variables[fc7], tf.reshape(fc7_conv, variables[fc7].shape)))
    session.run(tf1.assign(variables[conv1], tf.reverse(conv1_rgb, [2])))


def restore(session: Any, variables: Variables, checkpoint: str) -> None:
    """One `Saver` over the backbone: every one of its variables must be in the file."""
    tf1.train.Saver(backbone(variables)).restore(session, checkpoint)


def default_name(name: str) -> str:
    """The name that the first generation had for a variable of today."""
    name = name.replace("vgg_16/", "vgg16_default/")
    name = name.replace("/biases", "/bias").replace("/weights", "/weight")
    for block in range(1, 6):
        name = name.replace(f"/conv{block}/", "/")
    return name


def default(session: Any, variables: Variables, checkpoint: str) -> None:
    """Random values, saved under the older names."""
    for name, variable in variables.items():
        random = np.random.default_rng(zlib.crc32(name.encode()))
        variable.load(random.standard_normal(variable.shape.as_list()).astype("float32"), session)
    older = {default_name(name): variable for name, variable in variables.items()}
    tf1.train.Saver(older).save(session, checkpoint, write_meta_graph=False)


def backbone(variables: Variables) -> Variables:
    return {name: v for name, v in variables.items() if name.split("/")[1] not in HEADS}


def values(session: Any, variables: Variables) -> Iterator[tuple[str, NDArray[Any]]]:
    for name, variable in variables.items():
        yield name, session.run(variable)


def run(command: str, checkpoint: str, shrink: int, out: Path) -> None:
    with tf1.Session(graph=tf.Graph()) as session, session.graph.as_default():
        variables = build(shrink)
        session.run(tf1.global_variables_initializer())
        if command == "default":
            default(session, variables, checkpoint)
            oracles.save_digests(out, values(session, variables))
            return
        if command == "fix":
            fix(session, variables, checkpoint, shrink)
        else:
            restore(session, variables, checkpoint)
        oracles.save_digests(out, values(session, backbone(variables)))


def main() -> None:
    tf1.disable_eager_execution()
    shrink, *rest = sys.argv[1:]
    for command, checkpoint, out in zip(rest[::3], rest[1::3], rest[2::3], strict=True):
        run(command, checkpoint, int(shrink), Path(out))


if __name__ == "__main__":
    main()
