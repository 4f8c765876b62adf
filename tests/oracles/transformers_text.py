"""The language models of Hugging Face's `transformers`, loaded from converted files and run.

    python -m tests.oracles.transformers_text JOBS.json

Each job is `{model, config, file, inputs, out}`: `model` is a class, FILE a safetensors file and
INPUTS an `.npz` of `ids`, `mask`, `segments` and `decoder_ids`.  OUT.npz gets the outputs.  A file
that does not give every weight, or gives one that the model has not, is an error.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch

from tests import oracles


def package() -> Any:
    """transformers, which must not see torchvision: it is here without its compiled part."""
    sys.modules["torchvision"] = None  # type: ignore[assignment]
    import transformers

    transformers.logging.set_verbosity_error()
    return transformers


def built(model: str, config: Mapping[str, Any]) -> Any:
    """A model without values."""
    kind = getattr(package(), model)
    with torch.device("meta"):
        return kind(kind.config_class(**config))


def saved(model: str, config: Mapping[str, Any]) -> dict[str, tuple[str, list[int]]]:
    """What `save_pretrained` writes: the state without tied tensors."""
    found = built(model, config)
    tied = set(found.all_tied_weights_keys)
    if config.get("tie_word_embeddings") is False:  # T5 1.1, whose class ties what differs not
        tied.discard("lm_head.weight")
    return {
        name: (str(tensor.dtype).removeprefix("torch."), list(tensor.shape))
        for name, tensor in found.state_dict().items()
        if name not in tied
    }


def load(model: str, config: Mapping[str, Any], file: str) -> Any:
    """The model from a folder with this file in it, as users load it."""
    kind = getattr(package(), model)
    with tempfile.TemporaryDirectory() as folder:
        kind.config_class(**config).save_pretrained(folder)
        Path(folder, "model.safetensors").symlink_to(Path(file).resolve())
        found, told = kind.from_pretrained(
            folder, output_loading_info=True, attn_implementation="eager", dtype=torch.float32
        )
    wrong = {what: names for what, names in told.items() if names}
    if wrong:
        raise RuntimeError(f"{file}: {wrong}")
    return found.eval()


def outputs(model: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that it says, by its own names."""
    tensors = {name: torch.tensor(array, dtype=torch.long) for name, array in given.items()}
    names = {"ids": "input_ids", "mask": "attention_mask", "segments": "token_type_ids"}
    kind = model.config.model_type
    if kind == "gpt2":
        names = {"ids": "input_ids"}
    elif kind == "t5":
        names = {"ids": "input_ids", "decoder_ids": "decoder_input_ids"}
        ids = tensors["decoder_ids"]  # the source shifts its targets by itself
        tensors["decoder_ids"] = torch.cat([torch.zeros_like(ids[:, :1]), ids[:, :-1]], 1)
    if type(model).__name__.endswith("MultipleChoice"):  # the batch is one of choices
        tensors = {name: tensor[None] for name, tensor in tensors.items()}
    with torch.inference_mode():
        found = model(**{theirs: tensors[ours] for ours, theirs in names.items()})
    return {n: t.numpy() for n, t in found.items() if isinstance(t, torch.Tensor)}


def main(path: str) -> None:
    for job in json.loads(Path(path).read_text("utf-8")):
        model = load(job["model"], job["config"], job["file"])
        if "out" in job:
            found = outputs(model, oracles.load_arrays(Path(job["inputs"])))
            np.savez(job["out"], **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
