"""Networks of TF-Slim, tf-faster-rcnn and EfficientNet's authors."""

from __future__ import annotations

from tests.conversions import Conversion

PROOF = "tests/test_vision_oracles.py::test_both_models_compute_the_same"
START = "tests/test_vision_oracles.py::test_a_detector_starts_as_its_own_fix_variables_make_it"
RENAMED = "tests/test_vision_oracles.py::test_the_older_names_are_those_of_its_own_tool"
DEPTHS = (50, 101, 152)
UNFED = ("*/rpn_*", "*/cls_score/*", "*/bbox_pred/*", "*/Momentum", "Variable", "global_step")
ROUNDED = "variances are rounded when the epsilon is moved"
SLIM = [
    Conversion("vgg19/slim-torchvision", "slim-vgg_19", "torchvision-vgg19", PROOF),
    *(
        Conversion(
            "resnet/slim-torchvision",
            f"slim-resnet_v1_{n}",
            f"{package}-resnet{n}",
            PROOF,
            {"depth": n},
        )
        for n in DEPTHS
        for package in ("torchvision", "timm")
    ),
    *(
        Conversion(
            "resnetv2/slim-timm",
            f"slim-resnet_v2_{n}",
            f"timm-resnetv2_{n}-1001",
            PROOF,
            {"depth": n},
        )
        for n in DEPTHS
    ),
    *(
        Conversion(f"{family}/slim-{target.partition('-')[0]}", f"slim-{source}", target, PROOF)
        for family, source, target in (
            ("inception_v1", "inception_v1", "torchvision-googlenet-1001"),
            ("inception_v4", "inception_v4", "timm-inception_v4-1001"),
            ("inception_resnet_v2", "inception_resnet_v2", "timm-inception_resnet_v2-1001"),
            ("mobilenet_v1", "mobilenet_v1", "timm-mobilenetv1_100-1001"),
            ("mobilenet_v2", "mobilenet_v2", "timm-mobilenetv2_100-1001"),
            ("mobilenet_v2", "mobilenet_v2", "torchvision-mobilenet_v2-1001"),
        )
    ),
    *(
        Conversion("inception_v3/slim-torchvision", "slim-inception_v3", target, PROOF)
        for target in ("torchvision-inception_v3-1001", "timm-inception_v3-1001")
    ),
]
EFFICIENTNET = [
    Conversion(
        f"efficientnet/tf{ema}-timm",
        f"tf-efficientnet-b{b}{'' if ema else '-raw'}",
        f"timm-tf_efficientnet_b{b}",
        PROOF,
        {"b": b},
        note=note,
    )
    for ema, note in (("", "the raw weights"), ("-ema", "the moving averages"))
    for b in range(8)
]
RCNN = [
    *(
        Conversion(
            "resnet/slim-fasterrcnn",
            f"slim-resnet_v1_{n}",
            f"tf-faster-rcnn-res{n}-snapshot",
            START,
            {"depth": n},
            stays=UNFED,
        )
        for n in DEPTHS
    ),
    *(
        Conversion(
            "resnet/fasterrcnn-pytorch",
            f"tf-faster-rcnn-res{n}-snapshot",
            f"pytorch-faster-rcnn-res{n}",
            PROOF,
            {"depth": n},
        )
        for n in DEPTHS
    ),
    Conversion(
        "mobilenet_v1/slim-fasterrcnn",
        "slim-mobilenet_v1",
        "tf-faster-rcnn-mobile-snapshot",
        START,
        stays=UNFED,
        note="the first kernel is divided by 127.5, and rounded",
    ),
    Conversion(
        "mobilenet_v1/fasterrcnn-pytorch",
        "tf-faster-rcnn-mobile-snapshot",
        "pytorch-faster-rcnn-mobile",
        PROOF,
        note=ROUNDED,
    ),
    Conversion(
        "vgg16/default-fasterrcnn",
        "tf-faster-rcnn-vgg16_default-snapshot",
        "tf-faster-rcnn-vgg16-snapshot",
        RENAMED,
    ),
]
CONVERSIONS = SLIM + EFFICIENTNET + RCNN
