"""Tiny checkpoints for the command line: every width of VGG-16 divided by `vgg16.TINY`."""

from __future__ import annotations

import hashlib
import json
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import converter
from tests import vgg16

MAPPING = "vgg16/slim-torchvision"
FC6 = "vgg_16/fc6/weights"
DATA = ".data-00000-of-00001"


def slim(seed: int = 0) -> dict[str, Any]:
    return dict(vgg16.arrays(vgg16.slim(vgg16.TINY), seed))


def trained(seed: int = 7) -> dict[str, Any]:
    table = vgg16.faster_rcnn(vgg16.TINY) | vgg16.training_leftovers(vgg16.TINY)
    return dict(vgg16.arrays(table, seed))


def write(path: Path, arrays: Mapping[str, Any], style: str | None = None) -> Path:
    converter.save(converter.from_arrays(arrays), path, format=style, overwrite=True)
    return path


def read(path: Path) -> dict[str, Any]:
    with converter.open(path) as checkpoint:
        return {name: tensor.numpy() for name, tensor in checkpoint.items()}


def flip(path: Path, values: Any) -> int:
    """Flip one bit in the middle of a tensor's values; the offset of its first byte."""
    content = bytearray(path.read_bytes())
    plain = np.ascontiguousarray(values).tobytes()
    offset = content.index(plain)
    content[offset + len(plain) // 2] ^= 1
    path.write_bytes(content)
    return offset


def listing(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones too, with its digest."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def equal(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    return first.keys() == second.keys() and all(
        np.array_equal(first[name], second[name]) for name in first
    )


def safetensors_by_hand(
    path: Path, tensors: Mapping[str, tuple[str, list[int], bytes]], metadata: Mapping[str, str]
) -> Path:
    """A file that our writer would refuse to make, in the bytes of the specification."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    data = b""
    for name, (dtype, shape, values) in tensors.items():
        offsets = [len(data), len(data) + len(values)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        data += values
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def evil_pickle(path: Path, command: str) -> Path:
    """A `.pt` whose pickle asks for `os.system(command)`."""
    text = command.encode()
    pickle = b"\x80\x02cposix\nsystem\nX" + struct.pack("<I", len(text)) + text + b"\x85R."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle)
        archive.writestr("archive/version", "3\n")
    return path
