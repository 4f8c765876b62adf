"""Language models: the authors' own code on one side, transformers on the other.

TensorFlow builds each model small, with random weights, runs it and saves it; our mapping converts
the file; transformers' class takes every weight of it, and no other, and says the same.  What
transformers' own loaders of TensorFlow's checkpoints made, up to 4.x, is the same bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

import converter
from tests import manifests, oracles

MISSING = oracles.missing("tensorflow", "tf_keras", "tf_slim", "torch", "transformers")
if not oracles.LEGACY.is_dir():
    MISSING.append(str(oracles.LEGACY))
pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]

Array = NDArray[Any]
TOLERANCE = 1e-4
VOCABULARY = 23
REAL = Path(__file__).resolve().parents[2] / "shared" / "real"

# 12 is three heads of 4, and unlike every other size here, so that no transposition hides.
BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 16,
    "max_position_embeddings": 10,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.02,
}
ALBERT = {
    **BERT,
    "embedding_size": 8,
    "num_hidden_groups": 2,
    "inner_group_num": 2,
    "num_hidden_layers": 4,
    "down_scale_factor": 1,
}
SMALLER = {"hidden_size": 4, "num_attention_heads": 1, "intermediate_size": 8}
ELECTRA = {**BERT, "embedding_size": 8}
GPT2 = {"vocab_size": VOCABULARY, "n_ctx": 10, "n_embd": 12, "n_head": 3, "n_layer": 2}
T5 = {"vocab_size": VOCABULARY, "d_model": 12, "num_heads": 3, "d_kv": 5, "d_ff": 16}
NEW_GELU = {"hidden_act": "gelu_new"}
GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}


class Source(NamedTuple):
    """A model of Google or OpenAI."""

    family: str
    config: Mapping[str, Any]


class Case(NamedTuple):
    """What becomes of a source: the mapping, the class, and where its outputs are."""

    source: str
    mapping: str
    model: str
    config: Mapping[str, Any]
    outputs: Mapping[str, str]  # of the source, to those of transformers
    loader: str = ""
    options: Mapping[str, str] = {}


SOURCES = {
    "bert": Source("bert", BERT),
    "classifier": Source("bert_classifier", BERT),
    "squad": Source("bert_squad", BERT),
    "albert": Source("albert", ALBERT),
    "albert-classifier": Source("albert_classifier", {**ALBERT, "classes": 3}),
    "albert-choice": Source("albert_classifier", {**ALBERT, "classes": 1}),
    "albert-squad": Source("albert_squad", ALBERT),
    "electra-task": Source("electra_task", {**ELECTRA, "task": "mnli"}),
    "electra-squad": Source("electra_squad", ELECTRA),
    "electra": Source("electra", {**ELECTRA, "generator": SMALLER}),
    "gpt2": Source("gpt2", GPT2),
    "t5": Source("t5", {**T5, "num_layers": 2}),
    "t5-1.1": Source("t5", {**T5, "num_layers": 2, "v1_1": True}),
}
CASES = {
    "bert": Case(
        "bert",
        "bert/google-transformers",
        "BertForPreTraining",
        BERT | NEW_GELU,
        {"words": "prediction_logits", "sentence": "seq_relationship_logits"},
        "bert",
    ),
    "classifier": Case(
        "classifier",
        "bert/google-transformers",
        "BertForSequenceClassification",
        BERT | NEW_GELU | {"num_labels": 3},
        {"logits": "logits"},
    ),
    "squad": Case(
        "squad",
        "bert/google-squad",
        "BertForQuestionAnswering",
        BERT | NEW_GELU,
        {"start": "start_logits", "end": "end_logits"},
    ),
    "albert": Case(
        "albert",
        "albert/google-transformers",
        "AlbertForPreTraining",
        ALBERT | NEW_GELU,
        {"words": "prediction_logits", "sentence": "sop_logits"},
        "albert",
    ),
    "albert-classifier": Case(
        "albert-classifier",
        "albert/google-transformers",
        "AlbertForSequenceClassification",
        ALBERT | NEW_GELU | {"num_labels": 3},
        {"logits": "logits"},
    ),
    "albert-choice": Case(
        "albert-choice",
        "albert/google-transformers",
        "AlbertForMultipleChoice",
        ALBERT | NEW_GELU,
        {"logits": "logits"},
    ),
    "albert-squad": Case(
        "albert-squad",
        "albert/google-squad",
        "AlbertForQuestionAnswering",
        ALBERT | NEW_GELU,
        {"start": "start_logits", "end": "end_logits"},
    ),
    "electra-task": Case(
        "electra-task",
        "electra/google-classifier",
        "ElectraForTokenClassification",
        ELECTRA | {"num_labels": 3},
        {"tokens": "logits", "text": "logits"},
    ),
    "electra-squad": Case(
        "electra-squad",
        "electra/google-squad",
        "ElectraForQuestionAnswering",
        ELECTRA,
        {"start": "start_logits", "end": "end_logits"},
    ),
    "discriminator": Case(
        "electra",
        "electra/google-discriminator",
        "ElectraForPreTraining",
        ELECTRA,
        {"fake": "logits"},
        "electra",
    ),
    "generator": Case(
        "electra",
        "electra/google-generator",
        "ElectraForMaskedLM",
        ELECTRA | SMALLER,
        {"words": "logits"},
        "electra",
        {"discriminator_or_generator": "generator"},
    ),
    "gpt2": Case(
        "gpt2",
        "gpt2/openai-transformers",
        "GPT2LMHeadModel",
        GPT2 | {"n_positions": 10},
        {"logits": "logits"},
        "gpt2",
    ),
    "t5": Case(
        "t5",
        "t5/mesh-transformers",
        "T5ForConditionalGeneration",
        T5 | {"num_layers": 2},
        {"logits": "logits"},
        "t5",
    ),
    "t5-1.1": Case(
        "t5-1.1",
        "t5/mesh11-transformers",
        "T5ForConditionalGeneration",
        T5 | GATED | {"num_layers": 2},
        {"logits": "logits"},
        "t5",
    ),
}
LOADED = [name for name, case in CASES.items() if case.loader]

# Toys that others made, with the slots of an optimizer.
TOYS = {
    "toy-bert": (CASES["bert"], "toy-bert/bert_model.ckpt", "toy-bert/bert_config.json"),
    "toy-gpt-2": (CASES["gpt2"], "toy-gpt-2/model.ckpt", "toy-gpt-2/hparams.json"),
}


def log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("text")


def run(module: str, folder: Path, jobs: list[dict[str, Any]]) -> None:
    path = folder / f"{module}.json"
    path.write_text(json.dumps(jobs), "utf-8")
    oracles.run(module, path)


@pytest.fixture(scope="module")
def batch(folder) -> Path:
    """Ids, a mask and segments, and ids for a decoder."""
    rng = np.random.default_rng(0)
    shape = (2, 7)
    mask = np.ones(shape, np.int32)
    mask[1, -2:] = 0
    segments = (np.arange(7) >= 4).astype(np.int32) * np.ones_like(mask)
    ids, decoder_ids = (rng.integers(1, VOCABULARY, shape).astype(np.int32) for _ in range(2))
    arrays = {"ids": ids, "mask": mask, "segments": segments, "decoder_ids": decoder_ids}
    oracles.save_arrays(folder / "inputs.npz", arrays)
    return folder / "inputs.npz"


@pytest.fixture(scope="module")
def sources(folder, batch) -> dict[str, Path]:
    """Checkpoints by TensorFlow, and beside each what the model says."""
    paths = {name: folder / f"{name}.ckpt" for name in SOURCES}
    jobs = [
        {
            "family": source.family,
            "config": {**source.config, "inputs": str(batch)},
            "checkpoint": str(paths[name]),
            "out": str(folder / f"{name}.npz"),
        }
        for name, source in SOURCES.items()
    ]
    run("google_text", folder, jobs)
    return paths


def converted(source: Path, mapping: str, target: Path) -> Path:
    with converter.open(source) as checkpoint:
        converter.save(converter.mapping(mapping)(checkpoint), target)
    return target


@pytest.fixture(scope="module")
def files(folder, sources) -> dict[str, Path]:
    """What our mappings make of them."""
    return {
        name: converted(sources[case.source], case.mapping, folder / f"{name}.safetensors")
        for name, case in CASES.items()
    }


@pytest.fixture(scope="module")
def said(folder, batch, files) -> dict[str, dict[str, Array]]:
    """What transformers' classes say with these files; each file gives every weight, strictly."""
    outs = {name: folder / f"transformers-{name}.npz" for name in CASES}
    jobs = [
        {
            "model": case.model,
            "config": dict(case.config),
            "file": str(files[name]),
            "inputs": str(batch),
            "out": str(outs[name]),
        }
        for name, case in CASES.items()
    ]
    run("transformers_text", folder, jobs)
    return {name: oracles.load_arrays(out) for name, out in outs.items()}


@pytest.mark.parametrize("name", CASES)
def test_transformers_says_what_the_authors_code_says(name, said, folder):
    case = CASES[name]
    expected = oracles.load_arrays(folder / f"{case.source}.npz")
    for ours, theirs in case.outputs.items():
        found = said[name][theirs].astype(np.float64)
        wanted = expected[ours].astype(np.float64)
        if {"words", "sentence"} == expected.keys():  # the authors give logarithms
            found = log_softmax(found)
        if ours == "text":  # as the mapping's contract says: the first token's
            found = found[:, 0]
        found = found.reshape(wanted.shape)
        assert np.abs(wanted).max() > 0.1
        assert np.abs(found - wanted).max() <= TOLERANCE * np.abs(wanted).max()


def test_transformers_classifier_of_texts_has_a_layer_that_electras_has_not():
    """As the contract of `electra/google-classifier` says, and why the target is another class."""
    ours = manifests.load("transformers-electra-small-mnli")
    theirs = manifests.load("transformers-ElectraForSequenceClassification-small")
    heads = [{n for n in found if n.startswith("classifier.")} for found in (ours, theirs)]
    assert heads[0] == {"classifier.weight", "classifier.bias"}
    assert heads[1] == {
        f"classifier.{part}.{n}" for part in ("dense", "out_proj") for n in ("weight", "bias")
    }


@pytest.fixture(scope="module")
def loaded(folder, sources) -> dict[str, dict[str, Array]]:
    """State dicts by Hugging Face's own loaders of TensorFlow's checkpoints."""
    cases = {name: (CASES[name], sources[CASES[name].source]) for name in LOADED}
    configs = {name: dict(CASES[name].config) for name in LOADED}
    if REAL.is_dir():
        for name, (case, checkpoint, config) in TOYS.items():
            cases[name] = case, REAL / checkpoint
            configs[name] = toy_config(REAL / config)
    outs = {name: folder / f"loaded-{name}.npz" for name in cases}
    jobs = [
        {
            "loader": case.loader,
            "model": "GPT2Model" if case.loader == "gpt2" else case.model,
            "config": configs[name],
            "options": dict(case.options),
            "checkpoint": str(checkpoint),
            "out": str(outs[name]),
        }
        for name, (case, checkpoint) in cases.items()
    ]
    run("transformers_loaders", folder, jobs)
    return {name: oracles.load_arrays(out) for name, out in outs.items()}


def toy_config(path: Path) -> dict[str, Any]:
    config = json.loads(path.read_text("utf-8"))
    if "n_vocab" in config:
        config |= {"vocab_size": config["n_vocab"], "n_positions": config["n_ctx"]}
    return config


def same(file: Path, case: Case, state: Mapping[str, Array]) -> None:
    """Equal in every bit; what the loader's model has besides is tied, so it is one of ours."""
    prefix = "transformer." if case.loader == "gpt2" else ""
    expected = {prefix + name: array for name, array in state.items()}
    with converter.open(file) as found:
        ours = {name: tensor.numpy() for name, tensor in found.items()}
    assert ours.keys() <= expected.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, expected[name], strict=True)
    tied = {array.tobytes() for array in ours.values()}
    for name in expected.keys() - ours.keys():
        if not name.endswith(("position_ids", "attn.bias", "attn.masked_bias")):  # buffers
            assert expected[name].tobytes() in tied, name


@pytest.mark.parametrize("name", LOADED)
def test_every_tensor_is_what_hugging_faces_loader_made(name, loaded, files):
    same(files[name], CASES[name], loaded[name])


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the folder ../shared with real checkpoints")
@pytest.mark.parametrize("name", TOYS)
def test_a_toy_of_others_is_what_hugging_faces_loader_makes(name, loaded, tmp_path):
    case, checkpoint, _ = TOYS[name]
    file = converted(REAL / checkpoint, case.mapping, tmp_path / "toy.safetensors")
    same(file, case, loaded[name])


@pytest.mark.parametrize("name", CASES)
def test_the_way_back_is_the_authors_checkpoint(name, sources, files):
    case = CASES[name]
    mapping = converter.mapping(case.mapping)
    with converter.open(sources[case.source]) as before, converter.open(files[name]) as there:
        dropped = mapping.plan(before).dropped
        again = mapping.inverse()(there)
        assert set(again) == set(before) - dropped.keys()
        for tensor in again:
            assert again[tensor].numpy().tobytes() == before[tensor].numpy().tobytes(), tensor
