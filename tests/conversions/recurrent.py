"""Stacks of recurrent layers, Keras to PyTorch and back: 128 inputs, 256 units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.conversions import Conversion

TESTS = "tests/test_recurrent_oracles.py"
SAME = f"{TESTS}::test_pytorch_computes_what_keras_does"
OTHER = f"{TESTS}::test_a_reset_before_the_product_is_no_layer_of_pytorch"
TRAINED = f"{TESTS}::test_keras_computes_what_pytorch_trained"
SUM = "of the two biases of PyTorch only the sum is kept"
INPUTS, UNITS = 128, 256
BEFORE = {"reset_after": False}

MODELS: dict[str, Mapping[str, Any]] = {}  # by the part of the name that both frameworks share
CONVERSIONS: list[Conversion] = []


def add(name: str, kind: str, layers: int, proof: str = SAME, **options: Any) -> None:
    """A stack, and the mapping of its kind."""
    model = f"{name}-{layers}"
    MODELS[model] = {
        "kind": kind,
        "layers": layers,
        "bidirectional": name.startswith("bidirectional"),
        "options": options,
        "inputs": INPUTS,
        "units": UNITS,
    }
    mapping = f"recurrent/{name}-keras-torch"
    CONVERSIONS.append(Conversion(mapping, f"keras-{model}", f"torch-{model}", proof))
    if kind == "LSTM":
        mapping = f"recurrent/{name}-torch-keras"
        row = Conversion(mapping, f"torch-{model}", f"keras-{model}", TRAINED, one_way=SUM)
        CONVERSIONS.append(row)


for count in (1, 2, 3):
    add("lstm", "LSTM", count)
    add("bidirectional-lstm", "LSTM", count)
    add("gru", "GRU", count)
    add("bidirectional-gru", "GRU", count)
add("gru-reset-before", "GRU", 1, OTHER, **BEFORE)
