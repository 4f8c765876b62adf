"""Language models of Google and OpenAI to transformers, at the sizes that they published.

Sizes are from the authors' README files and configurations: google-research/bert (BERT and the
smaller ones of "Well-Read Students"), google-research/albert (version 2), google-research/electra
(`configure_pretraining.py`, with the sizes of generators that its comments give), openai/gpt-2
(`hparams.json`) and the gin files of the package `t5`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.conversions import Conversion

PROOF = "tests/test_text_oracles.py::test_transformers_says_what_the_authors_code_says"
Model = tuple[str, Mapping[str, Any]]
SOURCES: dict[str, Model] = {}
TARGETS: dict[str, Model] = {}
CONVERSIONS: list[Conversion] = []


def add(mapping: str, source: tuple[str, Model], target: tuple[str, Model], **sizes: int) -> None:
    """A row, and what its manifests are made of."""
    SOURCES.update([source])
    TARGETS.update([target])
    CONVERSIONS.append(Conversion(mapping, source[0], target[0], PROOF, sizes))


def encoder(hidden: int, layers: int, vocabulary: int = 30522, **more: Any) -> dict[str, Any]:
    """Heads of 64, and four times the width between; 512 positions and two segments."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, hidden // 64),
        "intermediate_size": 4 * hidden,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        **more,
    }


BERT = {
    "tiny": encoder(128, 2),
    "mini": encoder(256, 4),
    "small": encoder(512, 4),
    "medium": encoder(512, 8),
    "base": encoder(768, 12),
    "large": encoder(1024, 24),
    "base-chinese": encoder(768, 12, 21128),
    "base-multilingual": encoder(768, 12, 119547),
}
for size, config in BERT.items():
    add(
        "bert/google-transformers",
        (f"google-bert-{size}", ("bert", config)),
        (f"transformers-bert-{size}", ("BertForPreTraining", config)),
    )
add(
    "bert/google-transformers",
    ("google-bert-base-classifier", ("bert_classifier", BERT["base"])),
    (
        "transformers-bert-base-classifier",
        ("BertForSequenceClassification", {**BERT["base"], "num_labels": 3}),
    ),
)
add(
    "bert/google-squad",
    ("google-bert-large-squad", ("bert_squad", BERT["large"])),
    ("transformers-bert-large-squad", ("BertForQuestionAnswering", BERT["large"])),
)

SHARED = {"embedding_size": 128, "num_hidden_groups": 1, "inner_group_num": 1}
ALBERT = {
    "base": encoder(768, 12, 30000, **SHARED),
    "large": encoder(1024, 24, 30000, **SHARED),
    "xlarge": encoder(2048, 24, 30000, **SHARED),
    "xxlarge": encoder(4096, 12, 30000, **SHARED),
}
for size, config in ALBERT.items():
    add(
        "albert/google-transformers",
        (f"google-albert-{size}", ("albert", {**config, "down_scale_factor": 1})),
        (f"transformers-albert-{size}", ("AlbertForPreTraining", config)),
    )

for head, family, mapping, model, labels in (
    ("classifier", "albert_classifier", "google-transformers", "ForSequenceClassification", 3),
    ("choice", "albert_classifier", "google-transformers", "ForMultipleChoice", 1),
    ("squad", "albert_squad", "google-squad", "ForQuestionAnswering", 2),
):
    config = ALBERT["base"]
    add(
        f"albert/{mapping}",
        (
            f"google-albert-base-{head}",
            (family, {**config, "down_scale_factor": 1, "classes": labels}),
        ),
        (
            f"transformers-albert-base-{head}",
            (f"Albert{model}", {**config, "num_labels": labels}),
        ),
    )

ELECTRA = {  # width, layers, embedding, width of the generator
    "small": (256, 12, 128, 64),
    "base": (768, 12, 768, 256),
    "large": (1024, 24, 1024, 256),
}
for size, (hidden, layers, embedding, generator) in ELECTRA.items():
    one = encoder(hidden, layers, embedding_size=embedding)
    other = encoder(generator, layers, embedding_size=embedding)
    source = f"google-electra-{size}", ("electra", {**one, "generator": other})
    add(
        "electra/google-discriminator",
        source,
        (f"transformers-electra-{size}-discriminator", ("ElectraForPreTraining", one)),
    )
    add(
        "electra/google-generator",
        source,
        (f"transformers-electra-{size}-generator", ("ElectraForMaskedLM", other)),
    )

HIDDEN, LAYERS, EMBEDDING, _ = ELECTRA["small"]
SMALL = encoder(HIDDEN, LAYERS, embedding_size=EMBEDDING)
for number, task in ((0, "mnli"), (8, "chunk")):
    add(
        "electra/google-classifier",
        (f"google-electra-small-{task}", ("electra_task", {**SMALL, "task": task})),
        (
            f"transformers-electra-small-{task}",
            ("ElectraForTokenClassification", {**SMALL, "num_labels": 3}),
        ),
        task=number,
    )
add(
    "electra/google-squad",
    ("google-electra-small-squad", ("electra_squad", SMALL)),
    ("transformers-electra-small-squad", ("ElectraForQuestionAnswering", SMALL)),
)

GPT2 = {"small": (768, 12), "medium": (1024, 24), "large": (1280, 36), "xl": (1600, 48)}
for size, (hidden, layers) in GPT2.items():
    shape = {
        "vocab_size": 50257,
        "n_embd": hidden,
        "n_head": hidden // 64,
        "n_layer": layers,
    }
    add(
        "gpt2/openai-transformers",
        (f"openai-gpt2-{size}", ("gpt2", {**shape, "n_ctx": 1024})),
        (f"transformers-gpt2-{size}", ("GPT2LMHeadModel", {**shape, "n_positions": 1024})),
    )

T5 = {  # width, between, heads, width of a head, layers
    "small": (512, 2048, 8, 64, 6),
    "base": (768, 3072, 12, 64, 12),
    "large": (1024, 4096, 16, 64, 24),
    "3b": (1024, 16384, 32, 128, 24),
    "11b": (1024, 65536, 128, 128, 24),
}
T5_1_1 = {
    "small": (512, 1024, 6, 64, 8),
    "base": (768, 2048, 12, 64, 12),
    "large": (1024, 2816, 16, 64, 24),
    "xl": (2048, 5120, 32, 64, 24),
    "xxl": (4096, 10240, 64, 64, 24),
}
GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
NAMES = ("d_model", "d_ff", "num_heads", "d_kv", "num_layers")
for size, numbers in T5.items():
    shape = dict(zip(NAMES, numbers, strict=True)) | {"vocab_size": 32128}
    add(
        "t5/mesh-transformers",
        (f"mesh-t5-{size}", ("t5", shape)),
        (f"transformers-t5-{size}", ("T5ForConditionalGeneration", shape)),
    )
for size, numbers in T5_1_1.items():
    shape = dict(zip(NAMES, numbers, strict=True)) | {"vocab_size": 32128}
    add(
        "t5/mesh11-transformers",
        (f"mesh-t5-v1_1-{size}", ("t5", {**shape, "v1_1": True})),
        (f"transformers-t5-v1_1-{size}", ("T5ForConditionalGeneration", {**shape, **GATED})),
    )
