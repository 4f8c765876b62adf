"""Networks of TF-Slim, tf-faster-rcnn and the TPU EfficientNets, with random values.

python -m tests.oracles.tf_vision JOBS.json

JOBS is `{"folder": …, "jobs": {NAME: {"model": …, "options": {…}, "sizes": [65, 64]}, …}}`.  Each
model is built for images of those heights and widths, every variable gets a random value (moving
variances, too), and a Saver writes FOLDER/NAME.ckpt; FOLDER/NAME.npz gets `images-SIZE` and
`OUTPUT-SIZE` for every output.  Where a model keeps moving averages of its variables, what those
compute is in FOLDER/NAME-averages.npz.  With `fix`, the name of another job that ran before, the
variables are filled from its checkpoint as tf-faster-rcnn does, and written to FOLDER/NAME.json as
digests.

`narrow` divides the number of channels of all convolutions while the real function builds its
graph; the networks themselves, and every name, stay what they are.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import tensorflow as tf
import tf_slim as slim
from numpy.typing import NDArray
from tf_keras.src.legacy_tf_layers import normalization
from tf_slim.layers import layers as slim_layers
from tf_slim.nets import inception, resnet_utils, resnet_v1, resnet_v2, vgg

from tests import oracles

sys.modules["tf_keras.legacy_tf_layers.normalization"] = normalization  # where TensorFlow seeks it
tf1 = tf.compat.v1
tf1.disable_eager_execution()
tf1.disable_v2_tensorshape()
Outputs = dict[str, Any]
IMAGES = 2
MEAN_RGB = (123.68, 116.779, 103.939)  # in slim's vgg_16 and resnet_v1_50, as a variable


def research(name: str) -> Any:
    """A network of TF-Slim that only models/research has: `nets/NAME.py`, with its own imports."""
    spec = importlib.util.find_spec("object_detection")
    assert spec is not None
    assert spec.origin is not None
    folder = str(Path(spec.origin).parent)
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(f"nets.{name}")


# TF-Slim's zoo.


def slim_vgg(images: Any, depth: int, classes: int = 1000) -> Outputs:
    """`vgg_16` and `vgg_19`."""
    with slim.arg_scope(vgg.vgg_arg_scope()):
        network = getattr(vgg, f"vgg_{depth}")
        logits, _ = network(images, num_classes=classes, is_training=False)
    constant("mean_rgb", MEAN_RGB, f"vgg_{depth}")
    return {"logits": logits}


def slim_resnet(
    images: Any, version: int, depth: int, classes: int, units: list[int] | None = None
) -> Outputs:
    """`resnet_v1_50`, `resnet_v2_50` and deeper; `units` per block in place of the paper's."""
    name, module = f"resnet_v{version}_{depth}", (resnet_v1, resnet_v2)[version - 1]
    with slim.arg_scope(resnet_scope()):
        if units is None:
            logits, _ = getattr(module, name)(images, num_classes=classes, is_training=False)
        else:
            block = getattr(module, f"resnet_v{version}_block")
            blocks = [
                block(f"block{k + 1}", 64 << k, number, 2 if k < len(units) - 1 else 1)
                for k, number in enumerate(units)
            ]
            logits, _ = getattr(module, f"resnet_v{version}")(
                images, blocks, num_classes=classes, is_training=False, scope=name
            )
    if version == 1:
        constant("mean_rgb", MEAN_RGB, name)
    return {"logits": tf.squeeze(logits, [1, 2])}


def resnet_scope() -> Any:
    """Scale and an epsilon of 1e-5 in every normalisation, as slim trained."""
    return research("resnet_utils").resnet_arg_scope()


def slim_inception(images: Any, version: str, classes: int = 1001, *, aux: bool = False) -> Outputs:
    """`inception_v1` to `v4` and `inception_resnet_v2`; with `aux`, what the second head says."""
    known = hasattr(inception, f"inception_{version}")
    module = inception if known else research(f"inception_{version}")
    network = getattr(module, f"inception_{version}")
    scope = getattr(module, f"inception_{version}_arg_scope")
    with slim.arg_scope(scope()):
        logits, ends = network(images, num_classes=classes, is_training=False)
    return {"logits": logits} | ({"aux": ends["AuxLogits"]} if aux else {})


def slim_mobilenet(images: Any, version: int, classes: int = 1001) -> Outputs:
    """`mobilenet_v1` and `mobilenet_v2`, 1.0."""
    module = research(f"mobilenet{'/mobilenet' * (version == 2)}_v{version}".replace("/", "."))
    if version == 1:
        with slim.arg_scope(module.mobilenet_v1_arg_scope(is_training=False)):
            logits, _ = module.mobilenet_v1(images, classes, is_training=False)
    else:
        with slim.arg_scope(module.training_scope(is_training=False)):
            logits, _ = module.mobilenet(images, classes)
    return {"logits": logits}


# tf-faster-rcnn: lib/nets/resnet_v1.py, lib/nets/mobilenet_v1.py and the heads of network.py.

ANCHORS = 9
RPN_CHANNELS = 512
UNITS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
MOBILENET = (  # stride and depth; the detector's 13th layer does not stride
    *((2, 32), (1, 64), (2, 128), (1, 128), (2, 256), (1, 256), (2, 512)),
    *((1, 512), (1, 512), (1, 512), (1, 512), (1, 512), (1, 1024), (1, 1024)),
)
POOLED = 7


def rcnn_resnet(
    images: Any, depth: int, classes: int = 21, units: list[int] | None = None
) -> Outputs:
    """The detector on ResNet; a corner of the feature map stands for what RoI pooling gives."""
    scope = f"resnet_v1_{depth}"
    strides = (2, 2, 1, 1)
    numbers = units or UNITS[depth]
    blocks = [
        resnet_v1.resnet_v1_block(f"block{k + 1}", 64 << k, number, stride)
        for k, (number, stride) in enumerate(zip(numbers, strides, strict=True))
    ]

    def stacked(inputs: Any, part: list[Any]) -> Any:
        net, _ = resnet_v1.resnet_v1(
            inputs,
            part,
            is_training=False,
            global_pool=False,
            include_root_block=False,
            scope=scope,
        )
        return net

    frozen = slim.arg_scope([slim.batch_norm], is_training=False)
    with slim.arg_scope(resnet_scope()), frozen:
        with tf1.variable_scope(scope, scope):
            net = resnet_utils.conv2d_same(images, 64, 7, stride=2, scope="conv1")
            net = tf.pad(net, [[0, 0], [1, 1], [1, 1], [0, 0]])
            net = slim.max_pool2d(net, [3, 3], stride=2, padding="VALID", scope="pool1")
        features = stacked(net, blocks[:-1])
        tail = stacked(features[:, :POOLED, :POOLED], blocks[-1:])
    return rcnn_heads(features, tf.reduce_mean(tail, [1, 2]), scope, classes)


def rcnn_mobilenet(images: Any, classes: int = 21) -> Outputs:
    """The detector on MobileNet: 12 layers before RoI pooling, two after it."""
    norm = {"is_training": False, "center": True, "scale": True, "epsilon": 0.001}
    with (
        slim.arg_scope(
            [slim.conv2d, slim.separable_conv2d],
            activation_fn=tf.nn.relu6,
            normalizer_fn=slim.batch_norm,
            padding="SAME",
        ),
        slim.arg_scope([slim.batch_norm], **norm),
    ):
        features = mobilenet_layers(images, range(12))
        tail = mobilenet_layers(features[:, :POOLED, :POOLED], range(12, 14))
    return rcnn_heads(features, tf.reduce_mean(tail, [1, 2]), "MobilenetV1", classes)


def mobilenet_layers(net: Any, numbers: range) -> Any:
    """Layers of the detector's MobileNet: padded alike on all sides where they stride."""
    with tf1.variable_scope("MobilenetV1", "MobilenetV1"):
        for number in numbers:
            stride, depth = MOBILENET[number]
            name = f"Conv2d_{number}"
            if number == 0:
                net = resnet_utils.conv2d_same(net, depth, 3, stride=stride, scope=name)
                continue
            padding = "SAME" if stride == 1 else "VALID"
            if stride > 1:
                net = tf.pad(net, [[0, 0], [1, 1], [1, 1], [0, 0]])
            net = slim.separable_conv2d(
                net, None, 3, 1, stride, padding=padding, scope=f"{name}_depthwise"
            )
            net = slim.conv2d(net, depth, [1, 1], scope=f"{name}_pointwise")
    return net


def rcnn_heads(features: Any, fc7: Any, scope: str, classes: int) -> Outputs:
    """The region proposals' layers, and the two of the classification."""
    with tf1.variable_scope(scope, scope):
        rpn = slim.conv2d(features, RPN_CHANNELS, [3, 3], scope="rpn_conv/3x3")
        plain = {"padding": "VALID", "activation_fn": None}
        score = slim.conv2d(rpn, 2 * ANCHORS, [1, 1], scope="rpn_cls_score", **plain)
        boxes = slim.conv2d(rpn, 4 * ANCHORS, [1, 1], scope="rpn_bbox_pred", **plain)
        cls = slim.fully_connected(fc7, classes, activation_fn=None, scope="cls_score")
        bbox = slim.fully_connected(fc7, 4 * classes, activation_fn=None, scope="bbox_pred")
    return {"rpn_cls": score, "rpn_bbox": boxes, "cls": cls, "bbox": bbox}


FIRST = {"rcnn_resnet": "conv1", "rcnn_mobilenet": "Conv2d_0"}


def fix(session: Any, model: str, checkpoint: str) -> None:
    """Restore by the intersection of names; then `fix_variables` brings over the first kernel."""
    first = [FIRST[model], "weights"]
    (kernel,) = [v for v in tf1.global_variables() if v.op.name.split("/")[1:] == first]
    in_file = tf1.train.NewCheckpointReader(checkpoint).get_variable_to_shape_map()
    rest = [v for v in tf1.global_variables() if v is not kernel and v.op.name in in_file]
    tf1.train.Saver(rest).restore(session, checkpoint)
    with tf1.variable_scope("Fix"):
        rgb = tf1.get_variable("rgb", kernel.shape, trainable=False, use_resource=False)
    tf1.train.Saver({kernel.op.name: rgb}).restore(session, checkpoint)
    scaled = rgb / (255.0 / 2.0) if model == "rcnn_mobilenet" else rgb
    session.run(tf1.assign(kernel, tf.reverse(scaled, [2])))


# EfficientNet, as the TPU models define it.


def tpu(name: str) -> Any:
    """A module of the TPU models, as deeplabcut carries them, without the rest of that package."""
    if "deeplabcut" not in sys.modules:
        spec = importlib.util.find_spec("deeplabcut")
        assert spec is not None
        assert spec.origin is not None
        for package in ("", *_TPU_PARTS):
            stand_in = ModuleType(f"deeplabcut{package}")
            stand_in.__path__ = [str(Path(spec.origin).parent.joinpath(*package.split(".")))]
            sys.modules[stand_in.__name__] = stand_in
        datasets = ModuleType("deeplabcut.pose_estimation_tensorflow.datasets")
        datasets.Batch = None  # type: ignore[attr-defined]
        sys.modules[datasets.__name__] = datasets
    return importlib.import_module(f"deeplabcut.pose_estimation_tensorflow.{name}")


_TPU_PARTS = (
    ".pose_estimation_tensorflow",
    ".pose_estimation_tensorflow.backbones",
    ".pose_estimation_tensorflow.nnets",
)


def efficientnet(images: Any, b: int, classes: int = 1000) -> Outputs:
    """`efficientnet-b0` to `b7`, and moving averages of its variables."""
    builder = tpu("backbones.efficientnet_builder")
    blocks, facts = builder.get_model_params(f"efficientnet-b{b}", {"num_classes": classes})
    blocks[5] = blocks[5]._replace(strides=[2, 2])  # which deeplabcut's copy took out
    with tf1.variable_scope(f"efficientnet-b{b}"):
        logits = builder.efficientnet_model.Model(blocks, facts)(images)
    averages = tf1.train.ExponentialMovingAverage(0.999)
    averages.apply(averaged())
    tf1.add_to_collection("averages", averages)
    return {"logits": logits}


def averaged() -> list[Any]:
    """What the TPU training keeps averages of: the trainable ones and the moving statistics."""
    known = [v for v in tf1.global_variables() if "ExponentialMovingAverage" not in v.name]
    moving = [v for v in known if "moving_" in v.name]
    return [*tf1.trainable_variables(), *moving]


MODELS: dict[str, Callable[..., Outputs]] = {
    "vgg": slim_vgg,
    "resnet_v1": partial(slim_resnet, version=1, classes=1000),
    "resnet_v2": partial(slim_resnet, version=2, classes=1001),
    "inception": slim_inception,
    "mobilenet": slim_mobilenet,
    "rcnn_resnet": rcnn_resnet,
    "rcnn_mobilenet": rcnn_mobilenet,
    "efficientnet": efficientnet,
}


# Jobs.


def constant(name: str, values: Any, scope: str) -> None:
    """A variable that the network does not use."""
    with tf1.variable_scope(scope, reuse=tf1.AUTO_REUSE, auxiliary_name_scope=False):
        tf1.get_variable(name, initializer=tf.constant(values), trainable=False, use_resource=False)


@contextmanager
def narrowed(by: int) -> Iterator[None]:
    """Convolutions that are made meanwhile get their numbers of channels divided.

    A number that is taken from a tensor is a `Dimension`, and divided already.
    """
    real = slim_layers.convolutional_layers.Convolution2D

    def narrow(filters: Any, *rest: Any, **options: Any) -> Any:
        filters = filters // by if isinstance(filters, int) else filters
        return real(filters, *rest, **options)

    slim_layers.convolutional_layers.Convolution2D = narrow
    try:
        yield
    finally:
        slim_layers.convolutional_layers.Convolution2D = real


def build(job: Mapping[str, Any], size: int) -> tuple[Any, Outputs]:
    """The placeholder of images and the outputs; variables are shared with other sizes."""
    images = tf1.placeholder(tf.float32, (IMAGES, size, size, 3))
    shared = tf1.variable_scope(tf1.get_variable_scope(), reuse=tf1.AUTO_REUSE)
    with narrowed(job.get("narrow", 1)), shared:
        return images, MODELS[job["model"]](images, **job.get("options", {}))


def fill(session: Any, values: Mapping[Any, Any]) -> None:
    """Give variables their values, in place of what their initializers would compute."""
    starts = {reference.deref().initializer: array for reference, array in values.items()}
    session.run(list(starts), {start.inputs[1]: array for start, array in starts.items()})


def value(variable: Any) -> NDArray[Any]:
    """A random value of a kind that keeps activations in bounds, the same for the same name."""
    name, shape = variable.op.name, tuple(variable.shape.as_list())
    random = np.random.default_rng(zlib.crc32(name.encode()))
    if variable.dtype.base_dtype != tf.float32:
        return np.zeros(shape, np.int64)
    deep = re.match(r"efficientnet-b([1-7])/.*normalization_2/gamma", name)
    if deep:  # 23 to 55 of them add up
        most = 0.6 if deep[1] in "67" else 0.9
        return random.uniform(most / 3, most, shape).astype(np.float32)
    if "moving_variance" in name or "gamma" in name:
        return random.uniform(0.5, 1.5, shape).astype(np.float32)
    if len(shape) > 1:
        inputs = int(np.prod(shape[: 2 if "depthwise" in name else -1]))
        return (random.standard_normal(shape) * (2 / inputs) ** 0.5).astype(np.float32)
    return (random.standard_normal(shape) * 0.2).astype(np.float32)


def headers(
    model: str, size: int, *, trained: bool = False, **options: Any
) -> dict[str, tuple[Any, list[int]]]:
    """Names of the variables with dtype and shape, in the order of the model.

    `trained` adds what tf-faster-rcnn's training leaves: an unnamed learning rate, and momenta of
    what is not frozen.
    """
    with tf1.Graph().as_default():
        _, made = build({"model": model, "options": options}, size)
        if trained:
            frozen = ("BatchNorm", "/block1/", f"/{FIRST[model]}/")
            free = [v for v in tf1.trainable_variables() if not any(f in v.name for f in frozen)]
            rate = tf1.Variable(0.001, trainable=False)
            loss = tf.add_n([tf.reduce_sum(output) for output in made.values()])
            tf1.train.MomentumOptimizer(rate, 0.9).minimize(loss, var_list=free)
        else:
            tf1.train.get_or_create_global_step()
        return {v.op.name: (v.dtype, v.shape.as_list()) for v in tf1.global_variables()}


def run(folder: Path, name: str, job: Mapping[str, Any]) -> None:
    """One job, in a graph and a session of its own."""
    plain = tf1.ConfigProto()  # a division stays one: folded, it would be by the reciprocal
    plain.graph_options.rewrite_options.disable_meta_optimizer = True
    with tf1.Graph().as_default(), tf1.Session(config=plain) as session:
        built = {size: build(job, size) for size in job["sizes"]}
        tf1.train.get_or_create_global_step()
        if "fix" in job:
            session.run(tf1.global_variables_initializer())
            fix(session, job["model"], str(folder / f"{job['fix']}.ckpt"))
            values = ((v.op.name, session.run(v)) for v in tf1.global_variables())
            oracles.save_digests(folder / f"{name}.json", values)
            return
        fill(session, {v.ref(): value(v) for v in tf1.global_variables()})
        tf1.train.Saver().save(session, str(folder / f"{name}.ckpt"), write_meta_graph=False)
        oracles.save_arrays(folder / f"{name}.npz", dict(outputs(session, name, built)))
        for averages in tf1.get_collection("averages"):
            fill(session, session.run({v.ref(): averages.average(v) for v in averaged()}))
            found = dict(outputs(session, name, built))
            oracles.save_arrays(folder / f"{name}-averages.npz", found)


def outputs(session: Any, name: str, built: Mapping[int, Any]) -> Iterator[tuple[str, Any]]:
    """The images of each size and what the network makes of them."""
    for size, (pixels, made) in built.items():
        random = np.random.default_rng(zlib.crc32(f"{name}-{size}".encode()))
        images = random.standard_normal(pixels.shape.as_list()).astype(np.float32)
        yield f"images-{size}", images
        for key, array in session.run(made, {pixels: images}).items():
            yield f"{key}-{size}", array


def main() -> None:
    jobs = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    for name, job in jobs["jobs"].items():
        run(Path(jobs["folder"]), name, job)


if __name__ == "__main__":
    main()
