"""PyTorch files against torch itself, in both directions, and files that lie."""

import argparse
import collections
import contextlib
import io
import pickle
import struct
import time
import tracemalloc
import warnings
import zipfile
import zlib
from functools import partial
from pathlib import Path
from types import MappingProxyType

import ml_dtypes
import numpy as np
import pytest
from conformance import CountingSystem, FormatConformance
from hypothesis import given, settings
from hypothesis import strategies as st

from converter import files
from converter.errors import (
    ChecksumError,
    ConverterError,
    CorruptFileError,
    LimitError,
    TargetError,
    TargetExistsError,
    UnknownFormatError,
    UnrepresentableError,
    UnsafeContentError,
    UnsupportedError,
)
from converter.formats import _torch_write, _zip, open_checkpoint, recognise
from converter.formats import torch as format_torch
from converter.formats._pickle import Pickler
from converter.formats._zip import ZipLayout
from converter.tensors import TensorSpec, dtype_name, dtype_of
from tests.formats.witnesses import torch_array

SHARED = """
float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex128 complex64
uint16 uint32 uint64 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu
"""
SAME = SHARED.split()  # names of dtypes that torch and NumPy share


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def numbers(dtype, shape):
    """Every bit pattern of small dtypes, something of everything of the others."""
    count = int(np.prod(shape))
    if dtype in {"bool", "float4_e2m1fn"}:
        return (
            (np.arange(count) % (2 if dtype == "bool" else 16))
            .astype("u1")
            .view(dtype_of(dtype))
            .reshape(shape)
        )
    size = dtype_of(dtype).itemsize
    noise = np.random.default_rng(7).integers(0, 256, count * size, np.uint8)
    return noise.view(dtype_of(dtype)).reshape(shape)


def bits(array):
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).tobytes()


def write(path, arrays, *, metadata=None, ties=(), chunk=5):
    specs = {name: TensorSpec(a.shape, a.dtype) for name, a in arrays.items()}
    sink = format_torch.create(path, specs, metadata=metadata or {}, ties=ties, overwrite=False)
    for name in reversed(sink.order):
        flat = arrays[name].reshape(-1)
        sink.write(name, (flat[i : i + chunk] for i in range(0, flat.size, chunk)))
    sink.commit()
    return path


def load(path):
    """What `open_checkpoint` reads, all of it: (arrays, ties, unsupported)."""
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.format == "torch"
        arrays = {name: tensor.numpy() for name, tensor in checkpoint.items()}
        return arrays, checkpoint.ties, checkpoint.unsupported


def check(torch, path, expected):
    """The file reads as these torch tensors."""
    arrays, ties, unsupported = load(path)
    assert list(arrays) == list(expected)
    for name, tensor in expected.items():
        wanted = torch_array(torch, tensor)
        assert arrays[name].dtype == wanted.dtype, name
        assert arrays[name].shape == wanted.shape, name
        assert bits(arrays[name]) == bits(wanted), name
    return ties, unsupported


def pairs(dtype, shape):
    """Whether torch, which counts pairs of 4-bit elements along the last axis, has this shape."""
    return dtype != "float4_e2m1fn" or (bool(shape) and shape[-1] % 2 == 0)


class TestTorch(FormatConformance):
    format = "torch"
    target = "model.pt"
    checksums = True
    metadata = MappingProxyType({})

    def library_holds(self, dtype, shape):
        return pairs(dtype, shape)


# ── torch writes, we read ────────────────────────────────────────────────────────────────────────


@pytest.mark.oracle
def test_every_dtype_that_torch_writes(torch, tmp_path):
    noise = torch.randint(0, 256, (1024,), dtype=torch.uint8, generator=torch.manual_seed(0))
    tensors = {name: noise.clone().view(getattr(torch, name)) for name in SAME if name != "bool"}
    tensors["bool"] = noise > 100
    tensors["float4"] = noise.clone().view(torch.float4_e2m1fn_x2).reshape(32, 32)
    tensors["float4 transposed"] = tensors["float4"].t()
    tensors["float4 sliced"] = tensors["float4"][1:, 3:]
    torch.save(tensors, tmp_path / "x.pt")
    ties, unsupported = check(torch, tmp_path / "x.pt", tensors)
    assert ties == ()
    assert unsupported == {}


@pytest.mark.oracle
def test_dtypes_that_numpy_lacks_are_listed(torch, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated or experimental, but there are files
        half_complex = torch.zeros(3, dtype=torch.complex32)
        quantised = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    sparse = torch.eye(3).to_sparse()
    saved = {
        "half complex": half_complex,
        "quantised": quantised,
        "sparse": sparse,
        "meta": torch.zeros(3, device="meta"),
        "plain": torch.ones(2),
    }
    torch.save(saved, tmp_path / "x.pt")
    _, unsupported = check(torch, tmp_path / "x.pt", {"plain": saved["plain"]})
    assert unsupported == {
        "half complex": "complex32 [3]: no such dtype in NumPy",
        "quantised": "object of torch._utils._rebuild_qtensor",
        "sparse": "object of torch._utils._rebuild_sparse_tensor",
        "meta": "object of torch._utils._rebuild_meta_tensor_no_storage",
    }


@pytest.mark.oracle
def test_views(torch, tmp_path):
    base = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).reshape(2, 3, 4, 5)
    wave = torch.complex(torch.arange(6.0), torch.ones(6)).reshape(2, 3)
    views = {
        "base": base,
        "transposed": base.permute(3, 0, 2, 1),
        "channels_last": base.clone().to(memory_format=torch.channels_last),
        "sliced": base[1:, ::2, 1:3, 4],
        "diagonal": base[0, 0].diagonal(),
        "expanded": torch.ones(1).expand(4, 5),
        "partly expanded": base[0, 0, 0][:, None].expand(5, 3),
        "unfolded": torch.arange(10.0).unfold(0, 4, 2),
        "scalar": torch.tensor(2.5),
        "scalar of a slice": base[1, 2, 3, 4],
        "empty": torch.zeros(0, 3),
        "empty slice": base[:, 3:],
        "empty beyond": torch.arange(4.0).as_strided((0, 7), (100, 100), 4),
        "ones": torch.arange(3.0).as_strided((1, 3, 1), (77, 1, 99)),
        "conjugated": wave.conj(),
        "negated": wave.clone().conj().imag,
        "both": wave.conj().t()[1:],
        "real": wave.clone().real,
    }
    views["neither"] = torch._neg_view(wave).conj()
    assert views["conjugated"].is_conj()
    assert views["negated"].is_neg()
    torch.save(views, tmp_path / "x.pt")
    ties, unsupported = check(torch, tmp_path / "x.pt", views)
    assert ties == ()
    assert unsupported == {}


@pytest.mark.oracle
def test_ties_are_the_same_view_of_one_storage(torch, tmp_path):
    weight = torch.arange(12.0).reshape(3, 4)
    saved = {
        "encoder": weight,
        "decoder": weight.detach(),
        "transposed": weight.t(),
        "again": weight.t(),
        "copy": weight.clone(),
    }
    torch.save(saved, tmp_path / "x.pt")
    ties, _ = check(torch, tmp_path / "x.pt", saved)
    assert ties == (("encoder", "decoder"), ("transposed", "again"))


@pytest.mark.oracle
def test_a_module_and_its_state_dict(torch, tmp_path):
    nn = torch.nn
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.LSTM(4, 4))
    module.register_buffer("passing", torch.ones(2), persistent=False)
    torch.save(module.state_dict(), tmp_path / "state.pt")
    _, unsupported = check(torch, tmp_path / "state.pt", module.state_dict())
    assert unsupported == {}
    torch.save({"model": module, "epoch": 3}, tmp_path / "module.pt")
    arrays, _, unsupported = load(tmp_path / "module.pt")
    assert set(arrays) == {f"model.{name}" for name in module.state_dict()}
    assert unsupported == {
        "model": "object of torch.nn.modules.container.Sequential: "
        "its parameters and persistent buffers are read",
        "epoch": "int 3",
    }


@pytest.mark.oracle
def test_parameters_and_tensors_with_attributes(torch, tmp_path):
    parameter = torch.nn.Parameter(torch.arange(3.0), requires_grad=False)
    with_state = torch.nn.Parameter(torch.arange(4.0))
    with_state.note = "x"
    with_attribute = torch.arange(5.0)
    with_attribute.note = [1, 2]
    buffer = torch.nn.Buffer(torch.arange(6.0))
    saved = {"p": parameter, "s": with_state, "a": with_attribute, "b": buffer}
    torch.save(saved, tmp_path / "x.pt")
    _, unsupported = check(torch, tmp_path / "x.pt", saved)
    assert unsupported == {}


class Special:
    """Makes the subclass only when torch is there."""

    @staticmethod
    def of(torch):
        if "SpecialTensor" not in globals():
            globals()["SpecialTensor"] = type(
                "SpecialTensor", (torch.Tensor,), {"__module__": __name__}
            )
        return globals()["SpecialTensor"]


@pytest.mark.oracle
def test_a_subclass_is_listed(torch, tmp_path):
    special = torch.arange(3.0).as_subclass(Special.of(torch))
    torch.save({"special": special, "w": torch.ones(1)}, tmp_path / "x.pt")
    _, unsupported = check(torch, tmp_path / "x.pt", {"w": torch.ones(1)})
    assert unsupported == {"special": f"object of {__name__}.SpecialTensor"}


@pytest.mark.oracle
def test_nested_containers_and_what_is_no_tensor(torch, tmp_path):
    weight = torch.ones(2)
    saved = {
        "state_dict": collections.OrderedDict({"conv.weight": weight, "bias": weight * 2}),
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0)}},
            "param_groups": [{"lr": 0.1, "params": [0]}],
        },
        "list": [weight * 3, (weight * 4, None)],
        ("a", 1): weight * 5,
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1),
        "vocabulary": {f"\n{i}": i for i in range(1000)},
        "size": weight.shape,
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "storage": torch.ones(2).untyped_storage(),
        "text\n": "a\x1b[31m",
        "empty": {},
        "numpy": np.float64(1.5),
        "flag": np.bool_(1),
        "function": torch.nn.functional.relu,
        "array": np.arange(6, dtype=">i4").reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "plain": np.arange(3, dtype=np.uint16),
        "objects": np.array([None, {}], dtype=object),
        "texts": np.array(["a"]),
        "records": np.zeros(2, dtype=[("a", "i4")]),
    }
    torch.save(saved, tmp_path / "x.pt")
    arrays, ties, unsupported = load(tmp_path / "x.pt")
    wanted = {
        "state_dict.conv.weight": weight,
        "state_dict.bias": weight * 2,
        "optimizer.state.0.step": torch.tensor(3.0),
        "list.0": weight * 3,
        "list.1.0": weight * 4,
        "#3": weight * 5,
    }
    numpy = {
        "array": saved["array"].astype("<i4"),
        "fortran": saved["fortran"],
        "plain": saved["plain"],
    }
    assert list(arrays) == [*wanted, *numpy]
    for name, tensor in wanted.items():
        assert np.array_equal(arrays[name], tensor.numpy())
    for name, array in numpy.items():
        assert arrays[name].dtype == array.dtype
        assert np.array_equal(arrays[name], array)
    assert ties == ()
    assert unsupported == {
        "optimizer.param_groups": "list of 1",
        "list.1.1": "NoneType",
        "epoch": "int 3",
        "args": "object of argparse.Namespace",
        "vocabulary": "dict of 1000",
        "size": "tuple of 1",
        "device": "object of torch.device",
        "dtype": "global torch.float16",
        "storage": "a bare UntypedStorage",
        "text\\n": "str 'a\\x1b[31m'",
        "empty": "dict of 0",
        "numpy": "float 1.5",
        "flag": "bool True",
        "function": "global torch.nn.functional.relu",
        "objects": "numpy array of O8 [2]",
        "texts": "numpy array of U1 [1]",
        "records": "numpy array of V4 [2]",
    }


@pytest.mark.oracle
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_protocols(torch, tmp_path, protocol):
    saved = {
        "w": torch.ones(2, 3),
        "a": np.arange(3.0),
        "n": np.float32(2),
        "f8": torch.zeros(2, dtype=torch.float8_e5m2),
    }
    torch.save(saved, tmp_path / "x.pt", pickle_protocol=protocol)
    arrays, _, unsupported = load(tmp_path / "x.pt")
    assert list(arrays) == ["w", "a", "f8"]
    assert np.array_equal(arrays["a"], np.arange(3.0))
    assert unsupported == {"n": "float 2.0"}


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("saved", "names"),
    [
        (lambda torch: torch.ones(3), ["tensor"]),
        (lambda torch: [torch.ones(3), torch.ones(2)], ["0", "1"]),
        (lambda torch: {}, []),
        (lambda torch: {1: torch.ones(1), "": torch.ones(1)}, ["1", "tensor"]),
    ],
)
def test_other_roots(torch, tmp_path, saved, names):
    torch.save(saved(torch), tmp_path / "x.pt")
    arrays, _, unsupported = load(tmp_path / "x.pt")
    assert list(arrays) == names
    assert unsupported == {}


@pytest.mark.oracle
def test_a_file_without_checksums(torch, tmp_path):
    from torch.utils.serialization import config

    saved = {"w": torch.arange(100.0)}
    with config.patch({"save.compute_crc32": False}):
        torch.save(saved, tmp_path / "x.pt")
    check(torch, tmp_path / "x.pt", saved)


@pytest.mark.oracle
def test_the_directory_of_torch_is_read_at_once(torch, tmp_path, monkeypatch):
    path = tmp_path / "x.pt"
    torch.save({str(number): torch.zeros(3) for number in range(100)}, path)
    monkeypatch.setattr(_zip, "_directory", None)  # what goes entry by entry
    file = files.File(path)
    found = _zip.members(file)
    file.close()
    with zipfile.ZipFile(path) as archive:
        assert [(m.name, m.header, m.size, m.crc) for m in found.values()] == [
            (i.filename, i.header_offset, i.file_size, i.CRC) for i in archive.infolist()
        ]


def test_a_name_that_is_not_ascii_and_a_buffer(torch, tmp_path):
    saved = {"gewöhnlich.重み": torch.ones(2)}
    torch.save(saved, tmp_path / "模型.pt")
    check(torch, tmp_path / "模型.pt", saved)
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    (tmp_path / "x.bin").write_bytes(buffer.getvalue())
    check(torch, tmp_path / "x.bin", saved)


def test_a_program_of_torch_export_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "exported.pt2", "w") as archive:
        archive.writestr("e/data/weights/weight_0", b"")
        archive.writestr("e/archive_format", b"pt2")
    with pytest.raises(UnsupportedError, match=r"torch\.export"):
        open_checkpoint(tmp_path / "exported.pt2")


# ── we write, torch reads ────────────────────────────────────────────────────────────────────────


def everything():
    arrays = {name: numbers(name, (3, 4)) for name in SAME}
    arrays |= {
        "float4": numbers("float4_e2m1fn", (3, 6)),
        "scalar": np.array(1.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "five axes": np.arange(48, dtype=np.int16).reshape(2, 1, 3, 2, 4),
        "gewöhnlich.重み": np.ones(70_000, np.float32),
        "x" * 300: np.ones(1, np.uint64),
    }
    return arrays


@pytest.mark.oracle
@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("zip64_from", [None, 1, 1000])
def test_torch_reads_what_we_write(torch, tmp_path, monkeypatch, mmap, zip64_from):
    arrays = everything()
    if zip64_from is not None:
        monkeypatch.setattr(_torch_write, "ZipLayout", partial(ZipLayout, limit=zip64_from))
    path = write(tmp_path / "x.pt", arrays, metadata={"made by": "“us”"})
    loaded = torch.load(path, weights_only=True, mmap=mmap)
    assert type(loaded) is collections.OrderedDict
    assert list(loaded) == list(arrays)
    for name, array in arrays.items():
        assert loaded[name].is_contiguous()
        assert loaded[name].data_ptr() % 64 == 0, name
        assert not loaded[name].requires_grad
        found = torch_array(torch, loaded[name])
        assert (found.dtype, found.shape, bits(found)) == (array.dtype, array.shape, bits(array))


@pytest.mark.oracle
def test_ties_share_storage_in_torch(torch, tmp_path):
    weight = np.arange(6.0).reshape(2, 3)
    arrays = {"a": weight, "b": weight, "c": weight, "d": weight.T.copy()}
    path = write(tmp_path / "x.pt", arrays, ties=[("c", "a"), ("b", "d"), ("gone", "b")])
    loaded = torch.load(path, weights_only=True)
    assert loaded["a"].data_ptr() == loaded["c"].data_ptr()
    assert len({tensor.data_ptr() for tensor in loaded.values()}) == 3
    assert load(path)[1] == (("a", "c"),)


@pytest.mark.oracle
def test_a_module_loads_what_we_write(torch, tmp_path):
    make = lambda: torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))  # noqa: E731
    module = make()
    torch.save(module.state_dict(), tmp_path / "theirs.pt")
    arrays, _, _ = load(tmp_path / "theirs.pt")
    other = make()
    other.load_state_dict(torch.load(write(tmp_path / "x.pt", arrays), weights_only=True))
    for one, two in zip(module.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.oracle
@pytest.mark.slow
def test_a_record_of_more_than_4_gib(torch, tmp_path):
    specs = {
        "big": TensorSpec((5 << 30,), np.dtype(np.uint8)),
        "w": TensorSpec((2,), dtype_of("float32")),
    }
    path = tmp_path / "big.pt"
    sink = format_torch.create(path, specs, metadata={}, ties=(), overwrite=False)
    piece = np.full(1 << 26, 7, np.uint8)
    sink.write("big", (piece for _ in range(80)))
    sink.write("w", [np.array([1, 2], np.float32)])
    sink.commit()
    loaded = torch.load(path, weights_only=True, mmap=True)
    assert loaded["big"].shape == (5 << 30,)
    assert loaded["big"][-1] == 7
    assert loaded["w"].tolist() == [1, 2]
    with open_checkpoint(path) as checkpoint:
        assert checkpoint["w"].numpy().tolist() == [1, 2]
    path.unlink()


# ── we write, we read ────────────────────────────────────────────────────────────────────────────


def test_we_read_what_we_write(tmp_path):
    arrays = everything()
    path = write(tmp_path / "x.pt", arrays, metadata={"made by": "“us”", "a": "\n"})
    found, ties, unsupported = load(path)
    assert (list(found), ties, unsupported) == (list(arrays), (), {})
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert bits(found[name]) == bits(array), name
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.metadata == {"made by": "“us”", "a": "\n"}
        extent = checkpoint["float32"].extent
        assert path.read_bytes()[extent.offset :][: extent.nbytes] == bits(arrays["float32"])
    again = write(tmp_path / "y.pt", arrays, metadata={"a": "\n", "made by": "“us”"}, chunk=3)
    assert again.read_bytes() == path.read_bytes()


def test_a_sink_is_strict(tmp_path):
    path = tmp_path / "x.pt"
    specs = {"a": TensorSpec((2,), dtype_of("float32")), "b": TensorSpec((2,), dtype_of("float32"))}
    create = lambda **facts: format_torch.create(  # noqa: E731
        path, specs, **{"metadata": {}, "ties": (), "overwrite": False} | facts
    )
    sink = create()
    with pytest.raises(TargetError, match="another dtype"):
        sink.write("a", [np.zeros(2)])
    with pytest.raises(TargetError, match=r"another size.*'a'"):
        sink.write("a", [np.zeros(3, np.float32)])
    sink.write("a", [np.zeros(2, np.float32)])
    with pytest.raises(TargetError, match="1 announced tensors were never written"):
        sink.commit()
    assert list(tmp_path.iterdir()) == []
    sink = create(ties=[("a", "b")])
    assert sink.order == ["a"]
    sink.write("b", [np.zeros(2, np.float32)])
    sink.write("a", [np.zeros(2, np.float32)])
    with pytest.raises(TargetError, match="different values"):
        sink.write("b", [np.ones(2, np.float32)])
    sink.abort()
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"mine")
    with pytest.raises(TargetExistsError, match="exists"):
        create()
    sink = create(overwrite=True)
    sink.abort()
    assert path.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "message"),
    [
        ("a", (1,), "string", "no dtype string"),
        ("a", (1,), "int4", "no dtype int4"),
        ("a", (1,), "float8_e4m3b11fnuz", "no dtype float8_e4m3b11fnuz"),
        ("a", (2, 3), "float4_e2m1fn", "in pairs"),
        ("a", (), "float4_e2m1fn", "in pairs"),
        ("a", (1,) * 33, "float32", "more than 32 axes"),
        ("a\0", (1,), "float32", "control character"),
        ("\ud800", (1,), "float32", "control character"),
        ("é" * 2049, (1,), "float32", "longer than 4096 bytes"),
    ],
)
def test_what_torch_cannot_hold(tmp_path, name, shape, dtype, message):
    specs = {name: TensorSpec(shape, dtype_of(dtype))}
    assert message in format_torch.problem(name, specs[name])
    with pytest.raises(UnrepresentableError, match=message):
        format_torch.create(tmp_path / "x", specs, metadata={}, ties=(), overwrite=False)
    assert list(tmp_path.iterdir()) == []


def test_foreign_byte_order_cannot_be_written():
    assert "foreign" in format_torch.problem("a", TensorSpec((1,), np.dtype(">f4")))
    assert dtype_name(np.dtype(">f4")) == "float32"


# ── files made by hand ───────────────────────────────────────────────────────────────────────────


def archive_of(pickled, storages=(), root="archive/", **records):
    """A torch file with this pickle."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(root + "data.pkl", pickled)
        for key, data in enumerate(storages):
            archive.writestr(f"{root}data/{key}", data)
        archive.writestr(root + "version", b"3\n")
        for name, data in records.items():
            archive.writestr(root + name, data)
    return stream.getvalue()


def tensor_of(  # noqa: PLR0913 - what there is to lie about
    numel=6, offset=0, size=(2, 3), stride=(3, 1), storage="FloatStorage", key="0", function="_v2"
):
    """The opcodes of one tensor."""
    pickler = Pickler()
    pickler.name("torch._utils", f"_rebuild_tensor{function}")
    pickler.opcodes(b"((")
    pickler.value("storage")
    pickler.name("torch", storage)
    for fact in (key, "cpu", numel):
        pickler.value(fact)
    pickler.opcodes(b"tQ")
    for fact in (offset, size, stride):
        if isinstance(fact, bytes):
            pickler.opcodes(fact)
        else:
            pickler.value(fact)
    pickler.opcodes(b"tR" if function == "" else b"\x89)tR")
    return pickler.finish()[2:-1]


def dict_of(**values):
    items = b"".join(b"X" + struct.pack("<I", len(k)) + k.encode() + v for k, v in values.items())
    return b"\x80\x02}(" + items + b"u."


SIX = np.arange(6, dtype="<f4").tobytes()


@pytest.fixture
def opened(tmp_path):
    def read(data):
        path = tmp_path / "x.pt"
        path.write_bytes(data)
        return load(path)[0]

    return read


def test_a_tensor_by_hand(opened):
    arrays = opened(archive_of(dict_of(w=tensor_of()), [SIX]))
    assert arrays["w"].tolist() == [[0, 1, 2], [3, 4, 5]]
    arrays = opened(archive_of(dict_of(w=tensor_of(function="")), [SIX], root=""))
    assert arrays["w"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("dtype", ["f4", "i8", "u1", "c8", "c16", "f2", "bfloat16"])
def test_big_endian(opened, dtype):
    kind = {
        "f4": "Float",
        "i8": "Long",
        "u1": "Byte",
        "c8": "ComplexFloat",
        "c16": "ComplexDouble",
        "f2": "Half",
        "bfloat16": "BFloat16",
    }[dtype]
    native = np.arange(6).astype(dtype if dtype != "bfloat16" else ml_dtypes.bfloat16)
    if dtype == "bfloat16":
        data = native.view("u2").astype(">u2").tobytes()
    else:
        data = native.astype(native.dtype.newbyteorder(">")).tobytes()
    pickled = dict_of(
        w=tensor_of(storage=f"{kind}Storage"),
        t=tensor_of(storage=f"{kind}Storage", size=(3, 2), stride=(1, 3)),
    )
    arrays = opened(archive_of(pickled, [data], byteorder=b"big"))
    assert bits(arrays["w"]) == bits(native)
    assert bits(arrays["t"]) == bits(native.reshape(2, 3).T)
    arrays = opened(archive_of(pickled, [native.tobytes()], byteorder=b"little"))
    assert bits(arrays["w"]) == bits(native)


THREE = {"size": (3,), "stride": (1,), "storage": "DoubleStorage"}


def test_one_storage_as_two_dtypes(opened):
    """Of as many bytes, and in either order."""
    for floats, doubles in ("vw", "wv"):
        values = {floats: tensor_of(), doubles: tensor_of(3, **THREE)}
        arrays = opened(archive_of(dict_of(**dict(sorted(values.items()))), [SIX]))
        assert arrays[floats].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert arrays[doubles].dtype == np.float64
        assert bits(arrays[doubles]) == SIX


HUGE = 1 << 62
LIES = {
    "storage longer than its record": (dict_of(w=tensor_of(7)), "differ in size"),
    "storage shorter than its record": (dict_of(w=tensor_of(5, size=(5,), stride=(1,))), "differ"),
    "storage of another dtype": (dict_of(w=tensor_of(storage="DoubleStorage")), "differ in size"),
    "storage of another dtype, too": (dict_of(v=tensor_of(), w=tensor_of(**THREE)), "differ in"),
    "the other first": (dict_of(v=tensor_of(**THREE), w=tensor_of()), "differ in size"),
    "no record": (dict_of(w=tensor_of(key="../0")), "no record"),
    "one beyond the end": (dict_of(w=tensor_of(offset=1)), "outside its storage"),
    "far beyond the end": (dict_of(w=tensor_of(stride=(HUGE, 1))), "outside its storage"),
    "huge offset": (dict_of(w=tensor_of(offset=HUGE)), "outside its storage"),
    "negative offset": (dict_of(w=tensor_of(offset=-1)), "not natural numbers"),
    "negative size": (dict_of(w=tensor_of(size=b"J\xff\xff\xff\xffK\x01\x86")), "not natural"),
    "negative stride": (dict_of(w=tensor_of(stride=b"J\xff\xff\xff\xffK\x01\x86")), "not natural"),
    "size that is a float": (dict_of(w=tensor_of(size=b"G" + bytes(8) + b"K\x01\x86")), "natural"),
    "size that is a bool": (dict_of(w=tensor_of(size=b"\x88K\x01\x86")), "not natural numbers"),
    "fewer strides": (dict_of(w=tensor_of(stride=(1,))), "as many strides as sizes"),
    "no storage": (b"\x80\x02ctorch._utils\n_rebuild_tensor\n(NK\0))tR.", "without a storage"),
    "no arguments": (b"\x80\x02ctorch._utils\n_rebuild_tensor\n)R.", "missing 4"),
    "persistent id of a module": (b"\x80\x02(X\x06\0\0\0moduleNNNNtQ.", "not a storage"),
    "name with NUL": (dict_of(**{"a\0b": tensor_of()}), "control character"),
    "name with an escape": (dict_of(**{"\x1b[31m": tensor_of()}), "control character"),
    "name without an end": (dict_of(**{"x" * 5000: tensor_of()}), "longer than 4096 bytes"),
    "more after the end": (dict_of(w=tensor_of()) + b"N.", "goes on after its end"),
    "not a pickle": (b"hello", "is broken|ends early"),
    "empty pickle": (b"", "ends early"),
}


@pytest.mark.parametrize(("pickled", "message"), LIES.values(), ids=LIES)
def test_lies_are_found_at_the_start(tmp_path, pickled, message):
    path = tmp_path / "x.pt"
    path.write_bytes(archive_of(pickled, [SIX]))
    with pytest.raises(CorruptFileError, match=message) as caught:
        open_checkpoint(path)
    assert caught.value.path == path


def test_colliding_names(opened):
    for first, second in (("a", "a.b"), ("a.b", "a")):
        values = {first: tensor_of(), second: tensor_of()}
        values["a"] = dict_of(b=tensor_of())[2:-1]
        with pytest.raises(UnsupportedError, match=r"two entries get this name.*'a\.b'"):
            opened(archive_of(dict_of(**values), [SIX]))
    pickled = dict_of(a=dict_of(b=b"N", c=tensor_of())[2:-1], **{"a.b": tensor_of()})
    with pytest.raises(UnsupportedError, match="two entries get this name"):
        opened(archive_of(pickled, [SIX]))


def nested(times, leaf):
    """A list in a list in a list."""
    return b"\x80\x02" + b"]" * times + leaf + b"a" * times + b"."


def doubled(times, leaf):
    """A tuple that contains the one before twice, with the tensor at the bottom."""
    return b"\x80\x02" + leaf + b"2\x86" * times + b"."


EXPENSIVE = {
    "stride 0": (dict_of(w=tensor_of(size=(HUGE, 2), stride=(0, 1))), "far more than it stores"),
    "stride 0 in parts": (
        dict_of(**{f"w{i}": tensor_of(size=(1 << 28,), stride=(0,)) for i in range(5)}),
        "far more than it stores",
    ),
    "33 axes": (dict_of(w=tensor_of(size=(1,) * 33, stride=(0,) * 33)), "more than 32 axes"),
    "deep": (nested(100_000, tensor_of()), "nested more than 200 deep"),
    "deep without a tensor": (nested(100_000, b"N"), "nested more than 200 deep"),
    "shared containers": (doubled(60, tensor_of()), "more entries than a file of this size"),
    "a tensor in itself": (b"\x80\x02]q\x09" + tensor_of() + b"ah\x09a.", "nested more than 200"),
}


@pytest.mark.parametrize(("pickled", "message"), EXPENSIVE.values(), ids=EXPENSIVE)
def test_little_that_means_much_is_refused_cheaply(tmp_path, pickled, message):
    path = tmp_path / "x.pt"
    path.write_bytes(archive_of(pickled, [SIX]))
    tracemalloc.start()
    try:
        with pytest.raises(LimitError, match=message):
            open_checkpoint(path)
        assert tracemalloc.get_traced_memory()[1] < 100_000_000
    finally:
        tracemalloc.stop()


def test_records_are_limited(opened, monkeypatch):
    monkeypatch.setattr(format_torch, "MAX_PICKLE", 50)
    with pytest.raises(LimitError, match="too large to be read at once"):
        opened(archive_of(dict_of(w=tensor_of()), [SIX]))


@pytest.mark.parametrize(
    ("records", "error", "message"),
    [
        ({"byteorder": b"middle"}, CorruptFileError, "unknown byte order"),
        ({"other/data.pkl": b"N."}, None, ""),
        ({"extra/converter.json": b"{"}, CorruptFileError, "not JSON"),
        ({"extra/converter.json": b"[" * 100_000}, CorruptFileError, "not JSON"),
        ({"extra/converter.json": b"[1]"}, CorruptFileError, "not a dictionary of texts"),
        ({"extra/converter.json": b'{"a": 1}'}, CorruptFileError, "not a dictionary of texts"),
    ],
)
def test_other_records(opened, records, error, message):
    data = archive_of(dict_of(w=tensor_of()), [SIX], **records)
    if error is None:
        assert list(opened(data)) == ["w"]
        return
    with pytest.raises(error, match=message):
        opened(data)


def test_two_roots_are_refused(tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(archive_of(b"N.", root="a/"))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("b/data.pkl", b"N.")
    with pytest.raises(CorruptFileError, match=r"2 records named data\.pkl"):
        open_checkpoint(path)


def test_compressed_tensors_are_unsupported(tmp_path):
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", dict_of(w=tensor_of(1000, size=(1000,), stride=(1,))))
        archive.writestr("a/data/0", bytes(4000))
    with pytest.raises(UnsupportedError, match="is compressed"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    "wish",
    [
        b"cos\nsystem\n(X\x0c\0\0\0touch canarytR",
        b"cposix\nsystem\n(X\x0c\0\0\0touch canarytR",
        b"cbuiltins\neval\n(X\x0d\0\0\0open('canary')tR",
        b"(X\x0c\0\0\0touch canaryios\nsystem\n",
        b"ctorch.storage\nload\n)R",
    ],
)
def test_a_pickle_that_wants_to_run_something(tmp_path, monkeypatch, wish):
    monkeypatch.chdir(tmp_path)
    path = Path("x.pt")
    path.write_bytes(archive_of(dict_of(a=tensor_of(), b=wish), [SIX]))
    with pytest.raises(UnsafeContentError, match=r"data\.pkl asks to call .*\(byte offset \d+\)"):
        open_checkpoint(path)
    assert [entry.name for entry in Path().iterdir()] == ["x.pt"]


def test_a_zip_that_is_no_torch_file(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.txt", b"")
    with pytest.raises(UnknownFormatError, match="not a checkpoint"):
        recognise(tmp_path / "x.zip")


# ── damage ───────────────────────────────────────────────────────────────────────────────────────


def test_every_flip_in_tensor_data_is_an_error(tmp_path):
    arrays = {"a": np.arange(40, dtype=np.float32), "b": np.arange(9, dtype=np.int8)}
    path = write(tmp_path / "x.pt", arrays)
    whole = path.read_bytes()
    with open_checkpoint(path) as checkpoint:
        extents = {name: tensor.extent for name, tensor in checkpoint.items()}
    for name, extent in extents.items():
        for at in range(extent.offset, extent.offset + extent.nbytes):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
            damaged = pytest.raises(ChecksumError, match=f"zip crc32.*'{name}'")
            with open_checkpoint(path) as checkpoint, damaged:
                checkpoint[name].numpy()


def test_every_truncation_is_named_as_one(tmp_path):
    path = write(tmp_path / "x.pt", {"a": np.arange(40, dtype=np.float32)})
    whole = path.read_bytes()
    for size in range(100, len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(CorruptFileError, match="end of the zip archive is missing") as caught:
            open_checkpoint(path)
        assert "cut short" in caught.value.hint


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damage_anywhere_is_an_error_of_ours_or_harmless(tmp_path_factory, data):
    pickled = dict_of(w=tensor_of(), v=tensor_of(size=(3, 2), stride=(1, 3)), n=b"K\x05")
    whole = bytearray(archive_of(pickled, [SIX]))
    start = whole.index(pickled)
    crc = struct.pack("<I", zlib.crc32(pickled))
    for _ in range(data.draw(st.integers(1, 3))):
        stop = start + len(pickled) if data.draw(st.booleans()) else len(whole)
        at = data.draw(st.integers(start if stop < len(whole) else 0, stop - 1))
        whole[at] = data.draw(st.integers(0, 255))
    fixed = bytes(whole).replace(
        crc, struct.pack("<I", zlib.crc32(whole[start : start + len(pickled)]))
    )
    path = tmp_path_factory.getbasetemp() / "damaged.pt"
    path.write_bytes(fixed)
    with contextlib.suppress(ConverterError):
        load(path)


def test_the_real_pickle_reads_our_pickle_the_same_way(tmp_path):
    path = write(tmp_path / "x.pt", {"a": np.ones((2, 3), np.float32)})
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [
            "archive/data.pkl",
            "archive/byteorder",
            "archive/data/0",
            "archive/version",
        ]
        data = archive.read("archive/data.pkl")

    class Recorder(pickle.Unpickler):
        def find_class(self, module, name):
            if name == "OrderedDict":
                return collections.OrderedDict
            return lambda *args: (f"{module}.{name}", *args)

        def persistent_load(self, pid):
            return pid[0], pid[2:]

    found = Recorder(io.BytesIO(data)).load()
    storage = ("storage", ("0", "cpu", 6))
    assert found == {
        "a": ("torch._utils._rebuild_tensor_v2", storage, 0, (2, 3), (3, 1), False, {})
    }


# ── much, and quickly ────────────────────────────────────────────────────────────────────────────


def sparse(path, specs):
    """A file whose tensors are holes, and have no checksums."""
    body = _torch_write.body(path, specs, {}, ())
    publication = files.Publication([path])
    body.begin(publication.files[0])
    for record in body._records.values():
        slot = body._layout.slots[record]
        publication.files[0].write(slot.header, body._zip._local(slot, 0))
        body._zip.crcs[record] = 0
    body.finish()
    publication.commit()


@pytest.mark.parametrize(("count", "size"), [(100, 4_000_000), (20_000, 10)])
def test_opening_reads_headers_only(tmp_path, monkeypatch, count, size):
    spec = TensorSpec((size,), dtype_of("float32"))
    sparse(tmp_path / "x.pt", {f"layer.{i}.weight": spec for i in range(count)})
    start = time.process_time()
    sum(range(10_000_000))
    unit = time.process_time() - start  # of this machine, as busy as it is
    system = CountingSystem()
    monkeypatch.setattr(files, "system", system)
    start = time.process_time()
    with open_checkpoint(tmp_path / "x.pt") as checkpoint:
        assert len(checkpoint.specs) == count
        assert time.process_time() - start < 10 * unit * (count / 20_000) + 0.5
        assert system.nbytes < 20_000 + 500 * count
        assert not checkpoint[f"layer.{count - 1}.weight"].numpy().any()
