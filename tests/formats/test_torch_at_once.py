"""The opcodes of a tensor done at once, and one by one: values, memo and errors are the same."""

import collections
import io
import random
import re
import zipfile
from dataclasses import is_dataclass

import numpy as np
import pytest

from converter import from_arrays, save
from converter.errors import ConverterError, LimitError
from converter.formats import _pickle
from converter.formats._pickle import Stub, Unpickler
from converter.formats._torch import TABLE, stored

NEVER = re.compile(b"(?!)")


def pickled(file):
    with zipfile.ZipFile(file) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith("data.pkl")]
        return archive.read(name)


def ours(tmp_path):
    shapes = [(), (3,), (0, 2), (4, 4), (2, 300, 1), (2, 1, 70_000, 1), (1,) * 7]
    arrays = {
        f"layer.{k}.{dtype}": np.broadcast_to(np.zeros((), dtype), shape)
        for k, shape in enumerate(shapes)
        for dtype in ("float32", "int64")
    }
    save(from_arrays(arrays), tmp_path / "ours.pt")
    return {"ours": pickled(tmp_path / "ours.pt")}


def theirs():
    torch = pytest.importorskip("torch")
    many = {f"bn.{k}.{n}": torch.zeros(k % 5 + 1) for k in range(30) for n in ("weight", "bias")}
    many |= {f"bn.{k}.seen": torch.tensor(k) for k in range(30)}
    base = torch.arange(24.0).reshape(2, 3, 4)
    views = {"all": base, "t": base.mT, "part": base[1, :, ::2], "wide": base[:1].expand(9, 3, 4)}
    model = {f"w{k}": torch.nn.Parameter(torch.zeros(2, 1, 3, 3)) for k in range(30)}
    kinds = {
        f"{dtype}.{k}": torch.zeros(k, 2, dtype=getattr(torch, dtype))
        for dtype in ("bfloat16", "float16", "bool", "complex64", "uint16", "float8_e5m2")
        for k in range(4)
    }
    values = {
        "nested": {"epoch": 3, "model": collections.OrderedDict(many), "list": [base, {"x": base}]},
        "views": {**many, **views, "conj": torch.zeros(2, dtype=torch.complex64).conj()},
        "parameters": {**many, **model},
        "dtypes": {**many, **kinds},
    }
    found = {}
    for name, value in values.items():
        for protocol in (2, 4):
            buffer = io.BytesIO()
            torch.save(value, buffer, pickle_protocol=protocol)
            found[f"{name}-{protocol}"] = pickled(buffer)
    return found


def shape_of(value, seen):
    """A value as text that also tells which parts of it are one object, but for numbers' tuples."""
    plain = not isinstance(value, list | tuple | dict | set) and not is_dataclass(value)
    if plain or (isinstance(value, tuple) and all(type(part) is int for part in value)):
        return f"{type(value).__name__} {value!r}"
    if id(value) in seen:
        return f"<{seen[id(value)]}>"
    number = seen.setdefault(id(value), len(seen))
    if isinstance(value, dict):
        parts = [part for pair in value.items() for part in pair]
    elif isinstance(value, Stub):
        parts = [str(value)]
    elif is_dataclass(value):
        parts = [getattr(value, name) for name in value.__dataclass_fields__]
    else:
        parts = sorted(value, key=repr) if isinstance(value, set) else value
    kind = type(value).__name__
    return f"{kind} {number}: [{', '.join(shape_of(part, seen) for part in parts)}]"


def outcome(data):
    """All that can be seen of a run."""
    machine = Unpickler(data, TABLE, stored, where="data.pkl")
    try:
        value = machine.load()
    except ConverterError as error:
        return type(error), str(error)
    seen = {}
    state = (machine.position, machine.gaps, machine._copies, machine._odd_keys)
    return shape_of(value, seen), shape_of(machine.memo, seen), state


def at_once(data, monkeypatch):
    """How many tensors were done at once."""
    one, found = Unpickler._tensor, []
    with monkeypatch.context() as patch:
        patch.setattr(Unpickler, "_tensor", lambda *args: found.append(one(*args)) or found[-1])
        outcome(data)
    return sum(map(bool, found))


def both(data, monkeypatch):
    found = outcome(data)
    with monkeypatch.context() as patch:
        patch.setattr(_pickle, "_TENSOR", NEVER)
        assert outcome(data) == found
    return found


def mutant(data, dice):
    """Some bytes are others; a piece may be missing, or be there twice."""
    found = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 5))):
        at = dice.randrange(len(found))
        found[at] = dice.choice((dice.randrange(256), dice.choice(data), found[at] ^ 1))
    if dice.random() < 0.2:
        start = dice.randrange(len(found))
        piece = found[start : start + dice.randrange(60)]
        at = dice.randrange(len(found))
        found[at : at + dice.randrange(60)] = piece
    return bytes(found)


def compare(files, monkeypatch, mutants):
    for name, data in files.items():
        both(data, monkeypatch)
        assert at_once(data, monkeypatch) or name.endswith("-4")  # opcodes of newer protocols
        dice = random.Random(name)
        fails = 0
        for _ in range(mutants):
            fails += isinstance(both(mutant(data, dice), monkeypatch)[0], type)
        assert 0 < fails < mutants


@pytest.mark.parametrize("mutants", [60, pytest.param(3000, marks=pytest.mark.slow)])
def test_our_files(mutants, tmp_path, monkeypatch):
    compare(ours(tmp_path), monkeypatch, mutants)


@pytest.mark.parametrize("mutants", [30, pytest.param(2000, marks=pytest.mark.slow)])
def test_files_of_torch(mutants, monkeypatch):
    compare(theirs(), monkeypatch, mutants)


@pytest.mark.parametrize(
    ("limit", "values"),
    [
        ("MAX_OPCODES", range(0, 2700, 13)),
        ("MAX_MEMO", range(230, 700, 2)),
        ("MAX_DEPTH", range(6)),
        ("SPARE_COPIES", range(-30_000, -15_000, 400)),
    ],
)
def test_limits(limit, values, monkeypatch):
    data = theirs()["nested-2"]
    kinds = set()
    for value in values:
        monkeypatch.setattr(_pickle, limit, value)
        kinds.add(both(data, monkeypatch)[0] is LimitError)
    assert kinds == {True, False}
