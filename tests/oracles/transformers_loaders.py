"""Hugging Face's own TensorFlow loaders, which were part of transformers up to 4.x.

    python -m tests.oracles.transformers_loaders JOBS.json

Each job is `{loader, model, config, options, checkpoint, out}`: OUT.npz gets the state dict of the
model, with tied tensors under each of their names.  transformers 4.46.3 lies in `oracles.LEGACY`.
"""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

from tests import oracles
from tests.oracles.transformers_text import package


def main(path: str) -> None:
    sys.path.insert(0, str(oracles.LEGACY))
    transformers = package()
    for job in json.loads(Path(path).read_text("utf-8")):
        kind = getattr(transformers, job["model"])
        config = kind.config_class(**job["config"])
        model = kind(config)
        loader = getattr(transformers, f"load_tf_weights_in_{job['loader']}")
        with redirect_stdout(io.StringIO()):
            loader(model, config, job["checkpoint"], **job.get("options", {}))
        model.tie_weights()
        arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
        oracles.save_arrays(Path(job["out"]), arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
