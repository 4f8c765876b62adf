"""Digests of files, tensors and mappings: the same content gives the same digest, anywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from converter.files import File
from converter.tensors import STRING, Tensor

PIECE = 1 << 20  # bytes read at a time: what is hashed is still in the cache


def of_file(path: Path) -> str:
    """The SHA-256 of a file, as `sha256sum` prints it.  Raises `SourceError`."""
    total = hashlib.sha256()
    file = File(path)
    try:
        buffer = np.empty(min(PIECE, file.size), np.uint8)
        for start in range(0, file.size, PIECE):
            part = buffer[: file.size - start]
            file.read_into(start, part)
            total.update(part.data)
        file.check_unchanged()
    finally:
        file.close()
    return total.hexdigest()


def of_tensor(tensor: Tensor) -> str:
    """The SHA-256 of a tensor's values in C order, little-endian; of strings, with their lengths.

    Raises `SourceError` when they cannot be read.
    """
    total = hashlib.sha256()
    view = tensor.view
    if view.dtype == STRING:
        for text in tensor.numpy().reshape(-1):
            total.update(len(text).to_bytes(8, "little") + text)
        return total.hexdigest()
    step = view.chunk(PIECE)
    buffer = np.empty(min(step, view.size), view.dtype)
    for start in range(0, view.size, step):
        piece = buffer[: min(step, view.size - start)]
        view.read(start, piece)
        total.update(piece.view(np.uint8).data)
    return total.hexdigest()


def of_texts(texts: Iterable[str]) -> str:
    """One digest of several texts in their order: the SHA-256 of their digests."""
    return of_text("".join(map(of_text, texts)))


def of_text(text: str) -> str:
    """The SHA-256 of a text in UTF-8, lines ended by a line feed whatever the file has."""
    return hashlib.sha256(text.encode()).hexdigest()
