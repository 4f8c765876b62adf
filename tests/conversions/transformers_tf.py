"""transformers' classes of TensorFlow to those of PyTorch: every head, the smallest real size."""

from __future__ import annotations

from tests.conversions import Conversion
from tests.conversions.text import ALBERT, BERT, SMALL, Model

PROOF = "tests/test_transformers_tf.py::test_pytorchs_class_says_what_tensorflows_says"
# The heads of a family in the order of its mapping's table.
HEADS = (
    "Model",
    "ForPreTraining",
    "ForMaskedLM",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
)
FAMILIES = {
    "Bert": (*HEADS, "ForNextSentencePrediction"),
    "Albert": HEADS,
    "Electra": HEADS,
}
SMALLEST = {
    "Bert": ("tiny", BERT["tiny"]),
    "Albert": ("base", ALBERT["base"]),
    "Electra": ("small", SMALL),
}
SOURCES: dict[str, Model] = {}
TARGETS: dict[str, Model] = {}
CONVERSIONS: list[Conversion] = []
for family, heads in FAMILIES.items():
    size, config = SMALLEST[family]
    for number, head in enumerate(heads):
        model = f"{family}{head}"
        source, target = f"tf-{model}-{size}", f"transformers-{model}-{size}"
        SOURCES[source] = TARGETS[target] = model, config
        mapping = f"{family.lower()}/tf-transformers"
        CONVERSIONS.append(Conversion(mapping, source, target, PROOF, {"head": number}))
