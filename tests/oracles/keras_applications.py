"""The models of `keras.applications`: their headers, and narrow ones with random values.

python -m tests.oracles.keras_applications write JOBS.json
python -m tests.oracles.keras_applications read JOBS.json

JOBS is `{"folder": …, "jobs": {NAME: {"app": "ResNet50", "narrow": 8, "image": 64}, …}}`, and
`options` of the app, if there are any.  `write` saves FOLDER/NAME.h5 and NAME.weights.h5, and to
NAME.npz `images-64` and `logits-64`.  `read` loads FOLDER/NAME-back.h5 by the names of layers, and
writes `logits-64` to NAME-back.npz.

`narrow` divides the number of channels of every layer while the real function makes its model: the
graph, and every name, stay what they are.  All is float64, so that rounding does not hide errors.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import re
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras.src.applications import resnet
from keras.src.applications.convnext import LayerScale
from keras.src.backend.common import global_state

from tests import oracles

CLASSES = 16
IMAGES = 2
MEAN, VARIANCE = [0.485, 0.456, 0.406], [0.229**2, 0.224**2, 0.225**2]  # of ImageNet, in 0..1


def headers(app: str) -> dict[str, tuple[str, list[int]]]:
    """Paths, dtypes and shapes of the variables of a model at full size; one without a name counts.

    Without values: nothing is allocated.
    """
    keras.backend.clear_session()  # numbers in names start again
    with keras.StatelessScope():
        weights = application(app)(weights=None).weights
        found = {re.sub("/variable_[0-9]+$", "/variable", w.path): w for w in weights}
        assert len(found) == len(weights)
        global_state.set_global_attribute("uninitialized_variables", [])
    return {path: (weight.dtype, list(weight.shape)) for path, weight in found.items()}


def application(name: str) -> Any:
    """`ResNet50`, or the function of a family, such as `resnet.ResNet`."""
    module, _, function = name.rpartition(".")
    return (
        getattr(importlib.import_module(f"keras.src.applications.{module}"), function)
        if module
        else getattr(keras.applications, function)
    )


def stacked(version: int, blocks: list[int]) -> Any:
    """The stages of a ResNet, with fewer blocks."""
    stack = getattr(resnet, f"stack_residual_blocks_v{version}")
    strides = [1, 2, 2, 2] if version == 1 else [2, 2, 2, 1]

    def stages(x: Any) -> Any:
        for stage, (count, stride) in enumerate(zip(blocks, strides, strict=True)):
            x = stack(x, 64 << stage, count, stride1=stride, name=f"conv{stage + 2}")
        return x

    return stages


def build(job: dict[str, Any]) -> Any:
    """The real model, with fewer channels."""
    keras.backend.clear_session()
    shape = (job["image"], job["image"], 3)
    facts = {"weights": None, "classifier_activation": None, **job.get("options", {})}
    if "stack" in job:
        facts["stack_fn"] = stacked(*job["stack"])
    app = application(job["app"])
    with narrowed(job["narrow"]):
        return app(classes=CLASSES * job["narrow"], input_shape=shape, **facts)


WIDTHS: dict[type[Any], tuple[str, ...]] = {
    keras.layers.Conv2D: ("filters", "groups"),
    keras.layers.SeparableConv2D: ("filters",),
    keras.layers.Dense: ("units",),
    keras.layers.Reshape: ("target_shape",),
    LayerScale: ("projection_dim",),
}


@contextmanager
def narrowed(by: int) -> Iterator[None]:
    """Layers that are made meanwhile get their numbers of channels divided."""
    before = {kind: kind.__init__ for kind in WIDTHS}
    for kind, widths in WIDTHS.items():
        kind.__init__ = _narrow(kind.__init__, widths, by)
    try:
        yield
    finally:
        for kind, made in before.items():
            kind.__init__ = made


def _narrow(made: Any, widths: tuple[str, ...], by: int) -> Any:
    signature = inspect.signature(made)

    @functools.wraps(made)
    def init(*arguments: Any, **options: Any) -> None:
        bound = signature.bind(*arguments, **options)
        for width in widths:
            value = bound.arguments.get(width, 1)
            if isinstance(value, tuple):
                bound.arguments[width] = (*value[:-1], max(1, value[-1] // by))
            else:
                bound.arguments[width] = max(1, value // by)
        made(*bound.args, **bound.kwargs)

    init.__signature__ = signature  # type: ignore[attr-defined] # Keras reads the names
    return init


def fill(model: Any) -> None:
    """Random values that keep activations sane, random batch-norm statistics among them."""
    for weight in model.weights:
        rng = np.random.default_rng(zlib.crc32(weight.path.encode()))
        kind = weight.path.rpartition("/")[2]
        if kind == "count":
            continue
        if "normalization/" in weight.path and kind in {"mean", "variance"}:  # of the input
            weight.assign(MEAN if kind == "mean" else VARIANCE)
            continue
        if kind in {"gamma", "moving_variance", "variance"}:
            value = rng.uniform(0.5, 1.5, weight.shape)
        elif "kernel" in kind:
            depthwise = kind == "depthwise_kernel" or weight.shape[-1] == 1
            inputs = weight.shape[:2] if depthwise else weight.shape[:-1]
            value = rng.normal(0, np.sqrt(2 / np.prod(inputs)), weight.shape)
        else:
            value = rng.normal(0, 0.2, weight.shape)
        weight.assign(value)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # takes what was assigned


def normalised(model: Any, images: Any) -> Any:
    """What the model makes of its input at first, with constants that it keeps as float32."""
    kinds = (keras.layers.Normalization, keras.layers.Rescaling)
    last = [layer for layer in model.layers if isinstance(layer, kinds)][-1]
    return np.asarray(keras.Model(model.inputs, last.output)(images))


def write(folder: Path, name: str, job: dict[str, Any]) -> None:
    model = build(job)
    fill(model)
    model.save(folder / f"{name}.h5")
    model.save_weights(folder / f"{name}.weights.h5")
    size = job["image"]
    images = np.random.default_rng(size).uniform(0, 255, (IMAGES, size, size, 3))
    images[1, : size // 2] /= 16  # unlike the other as a whole, too: logits are of averages
    images[1, :, :, 0] /= 4
    if job.get("inside"):
        ours = {"mean": (images / 255 - MEAN) / np.sqrt(VARIANCE), "range": images / 127.5 - 1}
        seen = normalised(model, images)
        np.testing.assert_allclose(seen, ours[job["inside"]], atol=1e-6)
    else:
        seen = images = images / 127.5 - 1
    logits = np.asarray(model(images, training=False))
    arrays = {f"images-{size}": seen, f"logits-{size}": logits, "given": images}
    oracles.save_arrays(folder / f"{name}.npz", arrays)


def read(folder: Path, name: str, job: dict[str, Any]) -> None:
    model = build(job)
    for weight in model.weights:
        weight.assign(np.full(weight.shape, np.nan if weight.dtype == "float64" else 0))
    model.load_weights(folder / f"{name}-back.h5", by_name=True)
    images = oracles.load_arrays(folder / f"{name}.npz")["given"]
    logits = np.asarray(model(images, training=False))
    oracles.save_arrays(folder / f"{name}-back.npz", {f"logits-{job['image']}": logits})


def main() -> None:
    command, jobs = sys.argv[1], json.loads(Path(sys.argv[2]).read_text("utf-8"))
    keras.config.set_floatx("float64")
    run = {"write": write, "read": read}[command]
    for name, job in jobs["jobs"].items():
        run(Path(jobs["folder"]), name, job)


if __name__ == "__main__":
    main()
