"""`python -m tests.formats.dtypes > docs/dtypes.md`: which dtypes each format holds.

`HELD` is what the conformance suite proves, with the library that a format belongs to, and what the
page is made of.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from converter.formats import FORMATS
from converter.tensors import _ML_DTYPES

NUMPY = (
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
)
COMPLEX = ("complex64", "complex128")
ALL_DTYPES = (*NUMPY, *COMPLEX, *_ML_DTYPES, "string")
NUMBERS = ALL_DTYPES[:-1]
PARTS = ("int2", "int4", "uint2", "uint4")  # of a byte
FLOAT8 = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")
TORCH = (*NUMPY, *COMPLEX, "bfloat16", *FLOAT8, "float8_e8m0fnu", "float4_e2m1fn")
SAFETENSORS = tuple(name for name in TORCH if name != "complex128")
TENSORFLOW = (*NUMPY, *COMPLEX, "bfloat16", *FLOAT8, "float8_e4m3b11fnuz", "float4_e2m1fn")
TENSORFLOW += (*PARTS, "string")


class Held(NamedTuple):
    """What a format holds: every dtype in every shape, read, and written where it is written."""

    library: str  # that reads what we write, and writes what we read
    dtypes: tuple[str, ...]
    only_read: tuple[str, ...] = ()  # though others are written
    refused: Mapping[str, str] = MappingProxyType({})  # though the library has it: our words


HELD = {
    "safetensors": Held("safetensors", SAFETENSORS),
    "torch": Held("PyTorch", TORCH),
    "torch-legacy": Held("PyTorch", TORCH),
    "tf-v2": Held("TensorFlow", TENSORFLOW),
    "tf-v1": Held(
        "TensorFlow",
        (*(d for d in (*NUMPY, *COMPLEX) if d not in {"uint32", "uint64"}), "string"),
    ),
    "dcp": Held("PyTorch", TORCH),
    "sharded": Held("safetensors, PyTorch", SAFETENSORS, ("complex128",)),
    "keras-v3": Held("Keras 3", (*NUMPY, *COMPLEX, "bfloat16")),
    "keras-h5": Held("Keras 3", (*NUMPY, *COMPLEX)),
    "flax": Held("Flax", NUMBERS),
    "npz": Held("NumPy", (*NUMPY, *COMPLEX)),
    "onnx": Held(
        "onnx",
        (
            *(d for d in TENSORFLOW if d != "float8_e4m3b11fnuz"),
            "float8_e8m0fnu",
            "float6_e2m3fn",
            "float6_e3m2fn",
        ),
    ),
    "tfjs": Held(
        "tensorflowjs",
        ("bool", "int32", "uint8", "uint16", "float32", "complex64", "string"),
    ),
    "graphdef": Held("TensorFlow", TENSORFLOW),
    "caffe": Held("Caffe's protocol buffers", ("float32", "float64")),
    "joblib": Held("joblib", NUMBERS, refused={"string": "an array of dtype O8"}),
    "gguf": Held(
        "gguf",
        (
            *("int8", "int16", "int32", "int64"),
            *("float16", "float32", "float64", "bfloat16"),
        ),
    ),
    "orbax": Held(
        "Orbax",
        tuple(
            d
            for d in NUMBERS
            if d not in {"float8_e4m3", "float6_e2m3fn", "float6_e3m2fn", "uint2", "uint4"}
        ),
    ),
}


HEAD = """\
# Dtypes

What every format holds, as the conformance suite proves it with the library that the format belongs
to.  Values are random bits and are compared bit by bit, in every shape that both can say: scalars,
empty tensors, one to four axes, odd sizes.

* **both**: the library reads what we write, and we read what it writes.
* **read**: we read what the library writes.  Sets of shards are written with what both kinds hold.
* **refused**: the library has it, we do not.  A tensor like that is an error, or is listed as
  unsupported, before anything is written.
* An empty cell: the library itself cannot save it and load it again; written, it is refused.

The names are those of NumPy and ml_dtypes.  Elements that these have no dtype for, such as
PyTorch's complex32 and quantised tensors, are listed as unsupported, but for the quantised tensors
of GGUF and TensorFlow.js, which become float32.

This page is made by `python -m tests.formats.dtypes`; a test keeps it current.
"""


def page() -> str:
    """The page: a table of the formats that are written, one of those that are only read."""
    written = [row.name for row in FORMATS if row.writes]
    read = [row.name for row in FORMATS if not row.writes]
    parts = [HEAD, "## Read and written\n", *table(written, "both")]
    parts += ["\n## Only read\n", *table(read, "read")]
    return "\n".join(parts) + "\n"


def table(names: list[str], word: str) -> Iterator[str]:
    """A row for each dtype that one of the formats has, after one for the libraries."""
    yield f"| | {' | '.join(f'`{name}`' for name in names)} |"
    yield "|---" * (len(names) + 1) + "|"
    yield f"| library | {' | '.join(HELD[name].library for name in names)} |"
    for dtype in ALL_DTYPES:
        cells = [cell(HELD[name], dtype, word) for name in names]
        if any(cells):
            yield f"| {dtype} | {' | '.join(cells)} |"


def cell(held: Held, dtype: str, word: str) -> str:
    """What holds of a dtype in a format."""
    if dtype in held.dtypes:
        return word
    return "read" if dtype in held.only_read else "refused" if dtype in held.refused else ""


if __name__ == "__main__":
    print(page(), end="")  # noqa: T201 - it is what it is for
