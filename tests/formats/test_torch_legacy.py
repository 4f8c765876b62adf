"""The PyTorch format before 1.6 against torch itself, and files that lie."""

import io
import pickle
import struct

import numpy as np
import pytest
from conformance import CountingSystem
from reading import ReadingConformance
from test_torch import SAME, Special, bits, pairs

from converter import files, formats
from converter.errors import (
    ConverterError,
    CorruptFileError,
    LimitError,
    UnsafeContentError,
    UnsupportedError,
)
from converter.formats import torch_legacy
from converter.formats._pickle import Pickler
from tests.formats.witnesses import torch_array


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def save(torch, saved, path, **options):
    torch.save(saved, path, _use_new_zipfile_serialization=False, **options)


def load(path):
    with formats.open_checkpoint(path) as checkpoint:
        assert checkpoint.format == "torch-legacy"
        arrays = {name: tensor.numpy() for name, tensor in checkpoint.items()}
        return arrays, checkpoint.ties, checkpoint.unsupported


def check(torch, path, expected):
    arrays, ties, unsupported = load(path)
    assert list(arrays) == list(expected)
    for name, tensor in expected.items():
        wanted = torch_array(torch, tensor)
        assert (arrays[name].dtype, arrays[name].shape) == (wanted.dtype, wanted.shape), name
        assert bits(arrays[name]) == bits(wanted), name
    return ties, unsupported


class TestTorchLegacy(ReadingConformance):
    format = "torch-legacy"
    target = "model.pth"
    test_every_shape = None  # which the library writes anyhow
    shortest = 2  # one byte 80 is an empty map of Flax

    def holds(self, name, dtype, shape=(2,)):
        return pairs(dtype, shape)


# ── torch writes, we read ────────────────────────────────────────────────────────────────────────


@pytest.mark.oracle
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_every_dtype(torch, tmp_path, protocol):
    noise = torch.randint(0, 256, (1024,), dtype=torch.uint8, generator=torch.manual_seed(0))
    tensors = {"bool": noise > 100}
    for name in SAME:
        if name != "bool" and not name.startswith(("float8", "uint16", "uint32", "uint64")):
            tensors[name] = noise.clone().view(getattr(torch, name))
    save(torch, tensors, tmp_path / "x.pth", pickle_protocol=protocol)
    assert check(torch, tmp_path / "x.pth", tensors) == ((), {})


@pytest.mark.oracle
def test_views_ties_and_several_storages(torch, tmp_path):
    base = torch.arange(24.0).reshape(2, 3, 4)
    other = torch.arange(6, dtype=torch.int64).reshape(2, 3)
    views = {
        "base": base,
        "again": base.detach(),
        "transposed": base.permute(2, 0, 1),
        "sliced": base[1:, ::2, 1:3],
        "other": other,
        "row": other[1],
        "expanded": torch.ones(1).expand(4, 5),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5),
        "conjugated": torch.complex(torch.arange(3.0), torch.ones(3)).conj(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    save(torch, {"epoch": 3, **views}, tmp_path / "x.pth.tar")
    ties, unsupported = check(torch, tmp_path / "x.pth.tar", views)
    assert ties == (("base", "again"),)
    assert unsupported == {"epoch": "int 3"}


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_a_whole_module(torch, tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    save(torch, module, tmp_path / "x.pth")
    _, unsupported = check(torch, tmp_path / "x.pth", module.state_dict())
    assert list(unsupported) == ["module"]


@pytest.mark.oracle
def test_a_subclass_is_listed(torch, tmp_path):
    special = torch.arange(3.0).as_subclass(Special.of(torch))
    save(torch, {"special": special, "w": torch.ones(1)}, tmp_path / "x.pth")
    _, unsupported = check(torch, tmp_path / "x.pth", {"w": torch.ones(1)})
    assert unsupported == {"special": "object of test_torch.SpecialTensor"}


@pytest.mark.oracle
def test_a_big_endian_machine_wrote_little_endian_elements(torch, tmp_path):
    tensors = {"w": torch.arange(6.0), "n": torch.arange(3)}
    save(torch, tensors, tmp_path / "x.pth")
    data = (tmp_path / "x.pth").read_bytes()
    at = data.index(b"little_endian") + len(b"little_endian") + 2  # BINPUT
    assert data[at : at + 1] == b"\x88"
    (tmp_path / "x.pth").write_bytes(data[:at] + b"\x89" + data[at + 1 :])
    assert torch.load(tmp_path / "x.pth", weights_only=True)["w"].tolist() == list(range(6))
    check(torch, tmp_path / "x.pth", tensors)


@pytest.mark.oracle
def test_opening_reads_no_storage(torch, tmp_path, monkeypatch):
    save(torch, {str(i): torch.zeros(100_000) for i in range(50)}, tmp_path / "x.pth")
    system = CountingSystem()
    monkeypatch.setattr(files, "system", system)
    with formats.open_checkpoint(tmp_path / "x.pth") as checkpoint:
        assert system.nbytes < 100_000
        assert checkpoint["7"].extent.nbytes == 400_000


@pytest.mark.oracle
def test_pickles_longer_than_the_first_read(torch, tmp_path, monkeypatch):
    monkeypatch.setattr(torch_legacy, "FIRST_READ", 100)
    tensors = {f"{i}" * 50: torch.ones(i) for i in range(5)}
    save(torch, tensors, tmp_path / "x.pth")
    check(torch, tmp_path / "x.pth", tensors)
    monkeypatch.setattr(torch_legacy, "MAX_PICKLE", 200)
    with pytest.raises(LimitError, match="larger than 200 bytes"):
        formats.open_checkpoint(tmp_path / "x.pth")


# ── files made by hand ───────────────────────────────────────────────────────────────────────────


def storage(key="0", numel=6, kind="FloatStorage", view=b"N"):
    """The opcodes of a persistent id."""
    pickler = Pickler()
    pickler.opcodes(b"(")
    pickler.value("storage")
    pickler.name("torch", kind)
    for fact in (key, "cpu", numel):
        pickler.value(fact)
    pickler.opcodes(view + b"tQ")
    return pickler.finish()[2:-1]


def tensor(stored=None, offset=0, size=(2, 3), stride=(3, 1)):
    pickler = Pickler()
    pickler.name("torch._utils", "_rebuild_tensor")
    pickler.opcodes(b"(" + (stored or storage()))
    for fact in (offset, size, stride):
        pickler.value(fact)
    pickler.opcodes(b"tR")
    return pickler.finish()[2:-1]


SIX = np.arange(6, dtype="<f4").tobytes()
MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def file_of(saved=None, keys=("0",), storages=((6, SIX),), **facts):
    """A file of this saved object."""
    facts = {"magic": MAGIC, "protocol": 1001, "little": True, "order": "<", "end": b""} | facts
    info = {"protocol_version": 1001, "little_endian": facts["little"], "type_sizes": {}}
    out = io.BytesIO()
    out.write(facts["magic"])
    for value in (facts["protocol"], info):
        pickle.dump(value, out, 2)
    out.write(b"\x80\x02" + (saved or tensor()) + b".")
    pickle.dump(list(keys) if isinstance(keys, tuple) else keys, out, 2)
    for numel, data in storages:
        out.write(struct.pack(facts["order"] + "q", numel) + data)
    return out.getvalue() + facts["end"]


@pytest.fixture
def opened(tmp_path):
    def read(data):
        (tmp_path / "x.pth").write_bytes(data)
        return load(tmp_path / "x.pth")[0]

    return read


def test_a_tensor_by_hand(opened):
    assert opened(file_of())["tensor"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_sizes_of_a_big_endian_machine(opened):
    assert opened(file_of(little=False, order=">"))["tensor"].tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(CorruptFileError, match=r"(?s)differ in size.*expected: 6 elements"):
        opened(file_of(little=True, order=">"))


def test_parts_of_a_storage(opened):
    part = storage(view=b"(X\x01\0\0\0aK\x02K\x04t")
    made = tensor(part, offset=1, size=(3,), stride=(1,))
    assert opened(file_of(made))["tensor"].tolist() == [3, 4, 5]
    with pytest.raises(CorruptFileError, match="outside its storage"):
        opened(file_of(tensor(part, offset=2, size=(3,), stride=(1,))))


def test_a_variable_of_torch_0_3(opened):
    wrapped = b"ctorch.nn.parameter\nParameter\n" + tensor() + b"\x85R(\x88\x89}tb"
    assert opened(file_of(wrapped))["tensor"].tolist() == [[0, 1, 2], [3, 4, 5]]


LIES = {
    "another magic": (file_of(protocol=1000), "another magic number, or another protocol"),
    "no such key": (file_of(keys=("1",)), "list of storages is not"),
    "a key too many": (file_of(keys=("0", "1")), "list of storages is not"),
    "a key twice": (file_of(keys=("0", "0")), "list of storages is not"),
    "no keys": (file_of(keys=()), "list of storages is not"),
    "keys that are none": (file_of(keys=3), "list of storages is not"),
    "keys of numbers": (file_of(keys=(0,)), "list of storages is not"),
    "another size": (file_of(storages=((5, SIX),)), "differ in size"),
    "negative size": (file_of(storages=((-6, SIX),)), "differ in size"),
    "cut short": (file_of(storages=((6, SIX[:-1]),)), "the file is truncated"),
    "cut in the size": (file_of(storages=())[:], "truncated"),
    "bytes at the end": (file_of(end=b"\0"), "goes on after its storages"),
    "huge": (
        file_of(tensor(storage(numel=1 << 60)), storages=((1 << 60, SIX),)),
        "the file is truncated",
    ),
    "two sizes": (
        file_of(b"]" + tensor() + b"a" + tensor(storage(numel=5)) + b"a"),
        "described in two ways",
    ),
    "two kinds": (
        file_of(b"]" + tensor() + b"a" + tensor(storage(kind="IntStorage")) + b"a"),
        "described in two ways",
    ),
    "part outside": (
        file_of(tensor(storage(view=b"(X\x01\0\0\0aK\x03K\x04t"))),
        "a part of a storage reaches outside",
    ),
    "part that is none": (file_of(tensor(storage(view=b"K\x01"))), "broken: TypeError"),
    "tensor outside": (file_of(tensor(offset=1)), "outside its storage"),
    "object cut": (file_of()[:60], "ends early|the file is truncated"),
}


@pytest.mark.parametrize(("data", "message"), LIES.values(), ids=LIES)
def test_lies_are_found_at_the_start(tmp_path, data, message):
    (tmp_path / "x.pth").write_bytes(data)
    with pytest.raises(CorruptFileError, match=message) as caught:
        formats.open_checkpoint(tmp_path / "x.pth")
    assert caught.value.path == tmp_path / "x.pth"


def test_an_unknown_storage(opened):
    with pytest.raises(UnsupportedError, match="unknown kind: NoStorage"):
        opened(file_of(tensor(storage(kind="NoStorage"))))


def test_a_wish_to_run_something(opened, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsafeContentError, match=r"asks to call os\.system"):
        opened(file_of(b"cos\nsystem\n(X\x0c\0\0\0touch canarytR"))
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


def test_a_tar_is_refused(tmp_path):
    tar = bytearray(1024)
    tar[: len(b"storages")] = b"storages"
    tar[257:262] = b"ustar"
    (tmp_path / "x.pth").write_bytes(tar)
    with pytest.raises(UnsupportedError, match=r"before torch 0\.2"):
        formats.open_checkpoint(tmp_path / "x.pth")


def test_every_truncation_is_an_error(tmp_path):
    whole = file_of()
    for size in range(20, len(whole)):
        (tmp_path / "x.pth").write_bytes(whole[:size])
        with pytest.raises(CorruptFileError, match=r"ends early|truncated|does not end"):
            formats.open_checkpoint(tmp_path / "x.pth")


def test_every_flip_is_an_error_of_ours_or_harmless(tmp_path):
    whole = file_of()
    errors = 0
    for bit in range(8 * (len(whole) - len(SIX))):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        (tmp_path / "x.pth").write_bytes(changed)
        try:
            with formats.open_checkpoint(tmp_path / "x.pth") as checkpoint:
                for one in checkpoint.values():
                    one.numpy()
        except ConverterError:
            errors += 1
    assert errors > 2 * len(whole)
