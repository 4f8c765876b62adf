"""Orbax' folders as the library that it stores arrays with writes them, and folders that lie."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conformance import Arrays, differences, make, read, same
from reading import ReadingConformance

import converter
from converter import formats
from converter.errors import ConverterError, TargetError, UnsafeContentError, UnsupportedError
from tests.oracles import missing

WRITE = """
import sys, numpy as np, tensorstore as ts, ml_dtypes
base = "file://" + sys.argv[1] + "/"
with np.load(sys.argv[2]) as arrays:
    for key in arrays.files:
        dtype, _, name = key.partition("|")
        array = arrays[key].view(getattr(ml_dtypes, dtype, None) or np.dtype(dtype))
        metadata = {"shape": array.shape, "chunks": [max(1, n // 2) for n in array.shape],
                    "dtype": dtype if dtype == "bfloat16" else array.dtype.str,
                    "compressor": {"id": "zstd"}}
        kv = {"driver": "ocdbt", "base": base, "path": name + "/"}
        spec = {"driver": "zarr", "kvstore": kv, "metadata": metadata}
        ts.open(spec, create=True).result().write(array).result()
"""


class TestOrbax(ReadingConformance):
    format = "orbax"
    target = "checkpoint"
    names = ("A", "a", "features.0.weight", "with space", "x" * 200)  # it sorts them
    # Each reading starts a process: the tests below take one file for all dtypes and damages.
    test_every_shape = test_any_range = None
    test_truncation_is_an_error = test_a_flipped_bit_is_an_error_of_ours_or_harmless = None

    def holds(self, name: str, dtype: str, shape: tuple[int, ...] = (2,)) -> bool:
        return math.prod(shape) > 0


DTYPES = ("float32", "float64", "float16", "bfloat16", "int8", "int32", "int64", "uint8", "bool")


def save(folder: Path, arrays: Arrays) -> None:
    if missing("tensorstore"):
        pytest.skip("needs tensorstore")
    plain = {
        f"{a.dtype.name}|{n}": a.view(np.uint16) if a.dtype.name == "bfloat16" else a
        for n, a in arrays.items()
    }
    np.savez(folder.parent / "a.npz", **plain)
    command = [sys.executable, "-c", WRITE, str(folder), str(folder.parent / "a.npz")]
    subprocess.run(command, check=True)


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    found = {f"params.{name}.kernel": make(name, (7, 5)) for name in DTYPES}
    return found | {"step": make("int32", ()), "empty": make("float32", (0, 2))}


@pytest.fixture(scope="module")
def saved(arrays: Arrays, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("orbax") / "1" / "default"
    folder.mkdir(parents=True)
    save(folder, arrays)
    return folder


@pytest.mark.oracle
def test_every_dtype(saved: Path, arrays: Arrays) -> None:
    for place in (saved, saved.parent):
        assert differences(read(place), arrays) == []
    with converter.open(saved) as checkpoint:
        assert checkpoint.format == "orbax"
        array = arrays["params.float32.kernel"]
        view = checkpoint["params.float32.kernel"].view
        assert same(view.take(0, 2, 5).numpy(), array[2:5])
        assert same(view.take(1, 1, 3).numpy(), np.ascontiguousarray(array[:, 1:3]))
    with pytest.raises(ConverterError, match="closed"):
        view.numpy()


@pytest.mark.oracle
def test_links_are_refused(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "c")
    (tmp_path / "c" / "d" / "link").symlink_to("/etc/hostname")
    with pytest.raises(UnsafeContentError, match="a link or special file"):
        converter.open(tmp_path / "c")


@pytest.mark.oracle
def test_damage_is_an_error_of_ours(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "c")
    outcomes = set()
    for path in [tmp_path / "c" / "manifest.ocdbt", *sorted((tmp_path / "c" / "d").iterdir())[:2]]:
        data = path.read_bytes()
        for cut in (0, 10, len(data) // 2, len(data) - 1):
            path.write_bytes(data[:cut])
            try:
                read(tmp_path / "c")
            except ConverterError:
                outcomes.add("error")
            else:
                outcomes.add("harmless")  # an older file of the store
        path.write_bytes(data)
    assert "error" in outcomes


def test_parts_that_were_not_merged(tmp_path: Path) -> None:
    (tmp_path / "ocdbt.process_0").mkdir()
    with pytest.raises(UnsupportedError, match="were not merged"):
        converter.open(tmp_path)


def test_it_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="is only read, not written"):
        formats.create(tmp_path / "x", formats.named("orbax"), {})
