"""DTLN, whose authors published one training in several forms."""

from __future__ import annotations

from tests.conversions import Conversion

PROOF = "tests/test_hard_ports.py::test_dtln_is_what_its_authors_published"
CONVERSIONS = [
    Conversion("dtln/keras-torch", "keras-dtln", "torch-dtln", PROOF),
    Conversion("dtln/savedmodel-keras", "savedmodel-dtln", "keras-dtln", PROOF),
    Conversion("dtln/keras-onnx", "keras-dtln", "onnx-dtln-1", PROOF, stays=("*cropping*",)),
]
