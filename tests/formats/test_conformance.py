"""The formats whose own tests are about their own matters, held to what holds for all."""

from __future__ import annotations

from types import MappingProxyType

from conformance import NUMPY, FormatConformance

COMMON = (*NUMPY.split(), "complex64", "complex128")
PARTS = ("int2", "uint2", "int4", "uint4")
FLOAT8 = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")


class TestTorch(FormatConformance):
    format = "torch"
    target = "model.pt"
    dtypes = (*COMMON, "bfloat16", *FLOAT8, "float8_e8m0fnu", "float4_e2m1fn")
    checksums = True
    metadata = MappingProxyType({})


class TestTensorflow2(FormatConformance):
    format = "tf-v2"
    target = "model.ckpt"
    dtypes = (*COMMON, "bfloat16", *FLOAT8, "float8_e4m3b11fnuz", *PARTS, "float4_e2m1fn", "string")
    checksums = True


class TestTensorflow1(FormatConformance):
    format = "tf-v1"
    target = "model.ckpt"
    dtypes = (*(name for name in COMMON if name not in {"uint32", "uint64"}), "string")
    checksums = True


class TestNumpy(FormatConformance):
    format = "npz"
    target = "model.npz"
    dtypes = COMMON
    checksums = True
