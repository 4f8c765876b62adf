"""The models of keras.applications."""

from __future__ import annotations

from tests.conversions import Conversion

TESTS = "tests/test_keras_applications.py"
PROOF = f"{TESTS}::test_the_target_computes_what_keras_computes"
BACK = f"{TESTS}::test_keras_loads_what_comes_back"
FOLDED = "torchvision's convolutions have no bias: it becomes part of the mean"
VARIANTS = ("Tiny", "Small", "Base", "Large", "XLarge")
CONVERSIONS = [
    *(
        Conversion(
            "vgg/keras-torchvision",
            f"keras-VGG{depth}",
            f"torchvision-vgg{depth}",
            PROOF,
            {"depth": depth},
        )
        for depth in (16, 19)
    ),
    *(
        Conversion(
            "resnet/keras-torchvision",
            f"keras-ResNet{depth}",
            f"torchvision-resnet{depth}",
            PROOF,
            one_way=FOLDED,
        )
        for depth in (50, 101, 152)
    ),
    *(
        Conversion(
            "resnet/torchvision-keras",
            f"torchvision-resnet{depth}",
            f"keras-ResNet{depth}",
            BACK,
        )
        for depth in (50, 101, 152)
    ),
    *(
        Conversion(
            "resnetv2/keras-timm",
            f"keras-ResNet{depth}V2",
            f"timm-resnetv2_{depth}-biased",
            PROOF,
        )
        for depth in (50, 101, 152)
    ),
    Conversion(
        "inception_v3/keras-torchvision", "keras-InceptionV3", "torchvision-inception_v3", PROOF
    ),
    Conversion("inception_v3/keras-torchvision", "keras-InceptionV3", "timm-inception_v3", PROOF),
    Conversion("xception/keras-timm", "keras-Xception", "timm-legacy_xception", PROOF),
    *(
        Conversion(
            "densenet/keras-torchvision",
            f"keras-DenseNet{depth}",
            f"torchvision-densenet{depth}",
            PROOF,
        )
        for depth in (121, 169, 201)
    ),
    Conversion("mobilenet_v1/keras-timm", "keras-MobileNet", "timm-mobilenetv1_100", PROOF),
    Conversion("mobilenet_v2/keras-timm", "keras-MobileNetV2", "timm-mobilenetv2_100", PROOF),
    *(
        Conversion(
            "mobilenet_v3/keras-timm",
            f"keras-MobileNetV3{size}",
            f"timm-tf_mobilenetv3_{size.lower()}_100",
            PROOF,
            {"blocks": blocks},
        )
        for size, blocks in (("Small", 11), ("Large", 15))
    ),
    *(
        Conversion(
            "efficientnet/keras-timm",
            f"keras-EfficientNetB{size}",
            f"timm-tf_efficientnet_b{size}",
            PROOF,
        )
        for size in range(8)
    ),
    *(
        Conversion(
            f"convnext/keras-{package}",
            f"keras-ConvNeXt{size}",
            f"{package}-convnext_{size.lower()}",
            PROOF,
            {"variant": variant},
        )
        for package, sizes in (("torchvision", VARIANTS[:4]), ("timm", VARIANTS))
        for variant, size in enumerate(sizes)
    ),
]
