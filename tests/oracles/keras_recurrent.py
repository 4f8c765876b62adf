"""Stacks of recurrent layers of Keras 3 or 2: files of them, an input, and what they make of it.

    python -m tests.oracles.keras_recurrent JOBS.json

Each job is `{package, kind, layers, bidirectional, options, units, file, given, x, out}`: PACKAGE
is `keras` or `tf_keras`; FILE gets the weights where there is one; GIVEN is an `.npz` of weights to
take by their paths, and X one of the input, in place of random ones; OUT.npz gets `x`, `y` and the
weights by their paths.  All is float64.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.pop("TF_USE_LEGACY_KERAS", None)

import numpy as np

from tests.oracles import load_arrays, save_arrays

INPUTS, STEPS = 6, 7


def stack(job: dict[str, Any]) -> Any:
    """A functional model of nothing but the layers, with the names that Keras gives them."""
    keras = importlib.import_module(job.get("package", "keras"))
    keras.backend.clear_session()  # numbers in names start again
    inputs, units = job.get("inputs", INPUTS), job["units"]
    found = given = keras.layers.Input((None, inputs), dtype="float64")
    for _ in range(job["layers"]):
        kind = getattr(keras.layers, job["kind"])
        layer = kind(units, return_sequences=True, dtype="float64", **job["options"])
        if job["bidirectional"]:
            layer = keras.layers.Bidirectional(layer, dtype="float64")
        found = layer(found)
    return keras.Model(given, found)


def path(variable: Any) -> str:
    """What Keras 3 calls a variable; in Keras 2 it is the name, less the number of the output."""
    return getattr(variable, "path", variable.name).removesuffix(":0")


def run(job: dict[str, Any], rng: np.random.Generator) -> None:
    model = stack(job)
    given = load_arrays(Path(job["given"])) if "given" in job else {}
    for variable in model.weights:
        values = rng.normal(size=variable.shape) * 0.5
        variable.assign(given[path(variable)] if given else values)
    if "file" in job:
        save = model.save_weights if job["file"].endswith(".weights.h5") else model.save
        save(job["file"])
    x = load_arrays(Path(job["x"]))["x"] if "x" in job else rng.normal(size=(2, STEPS, INPUTS))
    weights = {path(variable): np.asarray(variable) for variable in model.weights}
    save_arrays(Path(job["out"]), {"x": x, "y": np.asarray(model(x)), **weights})


def main(path: str) -> None:
    rng = np.random.default_rng(0)
    for job in json.loads(Path(path).read_text("utf-8")):
        run(job, rng)


if __name__ == "__main__":
    main(*sys.argv[1:])
