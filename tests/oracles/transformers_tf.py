"""The TensorFlow classes of Hugging Face's transformers, which were part of it up to 4.x.

    python -m tests.oracles.transformers_tf JOBS.json

Each job is `{model, config, inputs, folder, out, state}`: the model gets seeded random weights, is
saved into FOLDER, as `tf_model.h5`, and runs on the arrays of the file INPUTS; OUT.npz gets its
outputs.  STATE.npz gets the state dict of the PyTorch class as transformers itself loads it from
that folder.  transformers 4.46.3 lies in `oracles.LEGACY`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests import oracles
from tests.oracles.transformers_text import package

NAMES = {"ids": "input_ids", "mask": "attention_mask", "segments": "token_type_ids"}


def legacy() -> Any:
    if str(oracles.LEGACY) not in sys.path:
        sys.path.insert(0, str(oracles.LEGACY))
    return package()


def built(transformers: Any, model: str, config: Mapping[str, Any]) -> Any:
    """A model with all its variables."""
    kind = getattr(transformers, f"TF{model}")
    found = kind(kind.config_class(**config))
    found.build_in_name_scope()
    return found


def variables(model: str, config: Mapping[str, Any]) -> dict[str, tuple[str, list[int]]]:
    """Every variable, by the group of its layer in the file and its own name."""
    return {
        f"{layer.name}/{v.name.removesuffix(':0')}": (v.dtype.name, v.shape.as_list())
        for layer in built(legacy(), model, config).layers
        for v in layer.weights
    }


def run(job: Mapping[str, Any], transformers: Any) -> None:
    model = built(transformers, job["model"], job["config"])
    rng = np.random.default_rng(len(job["model"]))
    for variable in model.weights:
        values = rng.normal(size=variable.shape) * 0.4
        variable.assign(values + 1 if "gamma" in variable.name else values)
    model.save_pretrained(job["folder"])
    given = oracles.load_arrays(Path(job["inputs"]))
    choices = slice(None) if not job["model"].endswith("MultipleChoice") else None
    found = model({theirs: given[ours][choices] for ours, theirs in NAMES.items()})
    oracles.save_arrays(Path(job["out"]), {name: t.numpy() for name, t in found.items()})
    kind = getattr(transformers, job["model"])
    state = kind.from_pretrained(job["folder"], from_tf=True).state_dict()
    oracles.save_arrays(Path(job["state"]), {name: t.numpy() for name, t in state.items()})


def main(path: str) -> None:
    transformers = legacy()
    for job in json.loads(Path(path).read_text("utf-8")):
        run(job, transformers)


if __name__ == "__main__":
    main(*sys.argv[1:])
