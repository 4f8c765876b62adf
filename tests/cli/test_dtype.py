"""`--dtype`: floating-point numbers are cast at the end, everything else stays."""

from __future__ import annotations

import numpy as np
import pytest

from tests.cli import checkpoints
from tests.cli.checkpoints import MAPPING


def test_floats_are_cast_and_counters_are_not(converter, folder):
    assert converter("convert", "slim.ckpt", "half.npz", "--dtype", "float16").code == 0
    source, found = checkpoints.slim(), np.load("half.npz")
    assert {found[name].dtype for name in found} == {np.dtype("float16"), np.dtype("int64")}
    for name, values in source.items():
        kept = values.astype(np.float16) if values.dtype == np.float32 else values
        np.testing.assert_array_equal(found[name], kept)


def test_it_goes_with_a_mapping_and_its_way_back(converter, folder):
    assert converter("convert", "slim.ckpt", "a.pt", "-m", MAPPING, "--dtype", "bfloat16").code == 0
    there = ("verify", "slim.ckpt", "a.pt", "-m", MAPPING, "--dtype", "bfloat16")
    assert converter(*there).code == 0
    assert converter(*there[:-2]).code == 1
    back = converter("convert", "a.pt", "b.ckpt", "-m", MAPPING, "--reverse", "--dtype", "float32")
    assert back.code == 0, back


@pytest.mark.parametrize("dtype", ["int8", "complex64", "string", "float31", "f4"])
def test_other_dtypes_are_a_usage_error(dtype, converter):
    result = converter("plan", "slim.ckpt", "--dtype", dtype)
    assert result.code == 2
    assert f"--dtype {dtype}" in result.err
