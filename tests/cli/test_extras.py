"""A library that is not installed: exit code 2, and the extra that installs it."""

from __future__ import annotations

import struct
import sys
import tomllib
from pathlib import Path

import pytest

from converter.extras import EXTRAS

ROOT = Path(__file__).parents[2]
TENSOR = struct.pack("<Q1sIQQIQ", 1, b"w", 2, 32, 2, 8, 0)  # two blocks of the kind Q8_0
QUANTISED = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + TENSOR
FILES = {
    "quantised.gguf": QUANTISED + bytes(-len(QUANTISED) % 32 + 68),
    "compressed.pkl": b"\x04\x22\x4d\x18" + bytes(20),
    "orbax/manifest.ocdbt": b"x",
}
VERIFY = ("verify", "slim.ckpt", "slim.pt", "--with")


def test_every_extra_is_known():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = {*project["optional-dependencies"]} - {"fast"}  # without which all goes, slowly
    assert {*EXTRAS.values()} == extras


@pytest.mark.parametrize(
    ("library", "arguments"),
    [
        ("gguf", ("convert", "quantised.gguf", "out.npz")),
        ("gguf", ("show", "quantised.gguf", "w")),
        ("lz4", ("inspect", "compressed.pkl")),
        ("tensorstore", ("inspect", "orbax")),
        *((name, (*VERIFY, name)) for name in ("torch", "tensorflow", "safetensors", "keras")),
        ("torch", ("verify", "slim.pt", "--report", "r.json", "--with", "torch")),
    ],
)
def test_a_library_that_is_not_installed(library, arguments, converter, folder, monkeypatch):
    for name, data in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    monkeypatch.setitem(sys.modules, library, None)
    result = converter(*arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.count("error[SRC306]") == 1
    assert f"the library {library}, which is not installed here" in result.err
    assert f"help: pip install 'checkpoint-converter[{EXTRAS[library]}]'" in result.err


def test_headers_need_no_library(converter, folder, monkeypatch):
    (folder / "quantised.gguf").write_bytes(FILES["quantised.gguf"])
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert "float32  [2, 32]" in converter("inspect", "quantised.gguf").out


PARITY = (
    "parity",
    "slim.ckpt",
    "slim.pt",
    "--source-model",
    "slim:vgg_16",
    "--target-model",
    "m:c",
)


@pytest.mark.parametrize(
    ("library", "arguments"),
    [("tensorflow", PARITY), ("safetensors", (*VERIFY[:2], "slim.safetensors", "--with", "torch"))],
)
def test_a_library_that_a_child_does_not_find(library, arguments, converter, folder, monkeypatch):
    absent = f"raise ModuleNotFoundError(\"No module named '{library}'\", name='{library}')\n"
    for name, text in ((library, absent), ("torch", "")):
        (folder / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setattr("converter.extras.find_spec", lambda _: True)
    result = converter(*arguments)
    assert result.code == 2
    assert f"help: pip install 'checkpoint-converter[{EXTRAS[library]}]'" in result.err
