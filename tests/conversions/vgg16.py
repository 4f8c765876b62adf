"""VGG-16."""

from __future__ import annotations

from tests.conversions import Conversion

ORACLES = "tests/test_vgg16_oracles.py"
CONVERSIONS = [
    Conversion(
        "vgg16/slim-torchvision",
        "slim-vgg_16",
        "torchvision-vgg16",
        f"{ORACLES}::test_torchvision_gives_the_logits_of_tf_slim",
    ),
    Conversion(
        "vgg16/slim-fasterrcnn",
        "slim-vgg_16",
        "tf-faster-rcnn-vgg16-backbone",
        f"{ORACLES}::test_tf_faster_rcnn_restores_what_its_own_steps_give",
    ),
    Conversion(
        "vgg16/fasterrcnn-pytorch",
        "tf-faster-rcnn-vgg16-snapshot",
        "pytorch-faster-rcnn-vgg16",
        f"{ORACLES}::test_a_snapshot_becomes_what_pytorch_faster_rcnns_own_arithmetic_gives",
    ),
]
