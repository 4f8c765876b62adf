"""Checkpoints that are changed under sound checksums: an error of this package, or values."""

from __future__ import annotations

import random

import pytest

from converter import formats
from converter.errors import ConverterError
from converter.files import File
from converter.formats._sstable import Table
from converter.tensors import TensorSpec
from tests.formats import tf_bytes
from tests.formats.conformance import make

SHARD = ".data-00000-of-00001"
SPLICES = (b"\xff" * 9 + b"\x01", b"\x80", b"\x12\x00", b"\x08" + tf_bytes.varint(2**63))


def written(folder, version):
    """The entries of a small checkpoint, and its data."""
    dtypes = ["float32", "int8", "string", "float16", "bool"]
    arrays = {dtype: make(dtype, (3, 2)) for dtype in dtypes}
    specs = {name: TensorSpec(array.shape, array.dtype) for name, array in arrays.items()}
    sink = formats.create(folder / "sound", formats.named(f"tf-v{version}"), specs)
    for name in sink.order:
        sink.write(name, [arrays[name].reshape(-1)])
    sink.commit()
    file = File(sink.files[-1])
    entries = dict(Table(file).entries())
    file.close()
    return entries, sink.files[0].read_bytes()


def mutated(data, chance):
    """One to three changes that protocol buffers are sensitive to."""
    content = bytearray(data or b"\x08\x01")
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(content) + 1)
        match chance.randrange(5):
            case 0 if at < len(content):
                content[at] ^= 1 << chance.randrange(8)
            case 1 if at < len(content):
                content[at] = chance.choice([0, 1, 0x7F, 0x80, 0xFF])
            case 2:
                del content[at : at + chance.randint(1, 4)]
            case 3:
                content[at:at] = chance.choice(SPLICES)
            case _:
                del content[at:]
    return bytes(content)


@pytest.mark.parametrize("version", [1, 2])
def test_mutants(tmp_path, version):
    entries, data = written(tmp_path, version)
    chance = random.Random(version)
    place = tmp_path / ("mutant" if version == 1 else "mutant.index")
    (tmp_path / f"mutant{SHARD}").write_bytes(data)
    outcomes = set()
    for _ in range(400):
        key = chance.choice(list(entries))
        mutant = {**entries, key: mutated(entries[key], chance)}
        if chance.random() < 0.1:
            mutant[mutated(key, chance)] = mutant.pop(key)
        snappy, per_block = chance.random() < 0.3, chance.choice([1, 2, 100])
        place.write_bytes(tf_bytes.table(mutant.items(), per_block=per_block, snappy=snappy))
        try:
            with formats.open_checkpoint(place) as checkpoint:
                for tensor in checkpoint.values():
                    assert tensor.numpy().shape == tensor.spec.shape
            outcomes.add("values")
        except ConverterError as error:
            outcomes.add(type(error).__name__)
    assert {"values", "CorruptFileError"} <= outcomes
