"""Mutants of a file: of its bytes; and of what is inside, with sound checksums around it."""

from __future__ import annotations

import io
import json
import random
import re
import struct
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from converter.errors import ConverterError
from converter.files import File
from converter.formats._sstable import Table
from tests.formats import tf_bytes

BYTES = (0, 1, 0x7F, 0x80, 0xFE, 0xFF)
NUMBERS = (0, 1, -1, 1 << 15, 1 << 31, (1 << 31) - 1, 1 << 32, 1 << 40, 1 << 62, (1 << 63) - 1)
TEXTS = (
    "",
    "-1",
    "1e999",
    "99999999999999999999",
    "..",
    "/etc/passwd",
    "{",
    "[" * 40,
    "\0",
    "null",
)


def mutant(data: bytes, path: Path, chance: random.Random) -> bytes:
    """The data of a file changed in one to four places."""
    if chance.random() < 0.6:
        inner = None
        with suppress(zipfile.BadZipFile, ConverterError, ValueError, KeyError, struct.error):
            inner = _inside(data, path, chance)
        if inner is not None:
            return inner
    return changed(data, chance)


def _inside(data: bytes, path: Path, chance: random.Random) -> bytes | None:
    """Change what a container holds, and put it into a sound container again."""
    if data.startswith(b"PK"):
        return _zip(data, chance)
    if path.name.endswith((".index", "model.ckpt")) and len(data) > 48:
        file = File(path)
        try:
            entries = dict(Table(file).entries())
        finally:
            file.close()
        key = chance.choice(list(entries))
        entries[key] = changed(entries[key] or b"\x08\x01", chance)
        return tf_bytes.table(
            entries.items(), per_block=chance.choice([1, 2, 100]), snappy=chance.random() < 0.3
        )
    if data[8:9] == b"{":
        stop = 8 + struct.unpack("<Q", data[:8])[0]
        header = changed(data[8:stop], chance)
        return struct.pack("<Q", len(header)) + header + data[stop:]
    return None


def _zip(data: bytes, chance: random.Random) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        infos = old.infolist()
        hit = chance.choice(infos).filename
        for info in infos:
            content = old.read(info)
            if info.filename == hit:
                content = changed(content, chance)
            new.writestr(zipfile.ZipInfo(info.filename), content)
    return out.getvalue()


def changed(data: bytes, chance: random.Random) -> bytes:
    """One to four changes that parsers are sensitive to."""
    content = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        _change(content, chance)
    return bytes(content)


def _change(content: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(content) + 1)
    length = min(chance.choice([1, 2, 4, 8, 30]), len(content) - at)
    kind = chance.randrange(9)
    if kind == 0 and at < len(content):
        content[at] ^= 1 << chance.randrange(8)
    elif kind == 1 and at < len(content):
        content[at] = chance.choice(BYTES)
    elif kind == 2:
        content[at : at + length] = b""
    elif kind == 3:
        content[at:at] = content[at : at + length] * chance.choice([1, 3])
    elif kind == 4:
        number = chance.choice((*NUMBERS, len(content), at)) & ((1 << 64) - 1)
        order = chance.choice(["little", "big"])
        width = chance.choice([2, 4, 8])
        content[at : at + width] = (number & ((1 << 8 * width) - 1)).to_bytes(width, order)
    elif kind == 5:
        other = chance.randrange(len(content) + 1)
        content[at : at + length] = content[other : other + length]
    elif kind == 6 and chance.random() < 0.3:
        content[at:] = b""
    else:
        _change_text(content, chance)


def _change_text(content: bytearray, chance: random.Random) -> None:
    """Replace a number, a word or a text by another one."""
    found = list(re.finditer(rb'[0-9]+|"[^"]*"|[A-Za-z_]{2,}', content))
    if found:
        match = chance.choice(found)
        text = chance.choice(TEXTS).encode()
        if chance.random() < 0.5:
            text = chance.choice(found)[0]
        elif match[0].startswith(b'"'):
            text = json.dumps(text.decode()).encode()
        content[match.start() : match.end()] = text


def several(folder: Path, chance: random.Random) -> Iterator[Path]:
    """The files of a seed, one after the other."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    while True:
        yield chance.choice(paths)
