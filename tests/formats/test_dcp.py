"""Folders of torch.distributed.checkpoint: torch writes them, hands change them, we read."""

import io
import pickle
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from conformance import CountingSystem
from reading import ReadingConformance
from test_torch import pairs

from converter import files, formats
from converter.errors import (
    ConverterError,
    CorruptFileError,
    LimitError,
    NotFoundError,
    UnsafeContentError,
)

MODULE = "torch.distributed.checkpoint.metadata"


def load(path):
    with formats.open_checkpoint(path) as checkpoint:
        assert checkpoint.format == "dcp"
        return {name: tensor.numpy() for name, tensor in checkpoint.items()}


class TestDcp(ReadingConformance):
    format = "dcp"
    target = "checkpoint"
    test_every_shape = None  # which the library writes anyhow
    flips = 300
    checksums = True

    def holds(self, name, dtype, shape=(2,)):
        return pairs(dtype, shape)


# ── torch writes ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def save(torch, saved, folder):
    import torch.distributed.checkpoint as library

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process only
        library.save(saved, checkpoint_id=folder)


@pytest.mark.oracle
def test_what_torch_writes(torch, tmp_path):
    weight = torch.arange(12.0).reshape(3, 4)
    expected = {
        "model.w": weight,
        "model.t": weight.t(),
        "model.part": weight[1:, ::2],
        "model.half": torch.ones(2, dtype=torch.bfloat16),
        "model.f8": torch.ones(3).to(torch.float8_e4m3fn),
        "model.n": torch.tensor(7),
        "model.empty": torch.zeros(0, 3),
        "opt.0": torch.ones(1, dtype=torch.bool),
    }
    model = {name.removeprefix("model."): t for name, t in expected.items() if "model" in name}
    save(torch, {"model": model, "epoch": 3, "opt": [expected["opt.0"]]}, tmp_path / "x")
    for path in (tmp_path / "x", tmp_path / "x" / ".metadata"):
        found = load(path)
        assert set(found) == set(expected)
        for name, tensor in expected.items():
            assert found[name].astype(np.float32).tolist() == tensor.float().tolist()
    with formats.open_checkpoint(tmp_path / "x") as checkpoint:
        assert checkpoint.unsupported == {"epoch": "a pickled object, not a tensor"}
        assert sorted(checkpoint.under("model")) == sorted(model)


@pytest.mark.oracle
def test_opening_reads_the_index_only(torch, tmp_path, monkeypatch):
    save(torch, {str(i): torch.zeros(250_000) for i in range(10)}, tmp_path / "x")
    system = CountingSystem()
    monkeypatch.setattr(files, "system", system)
    with formats.open_checkpoint(tmp_path / "x") as checkpoint:
        assert system.nbytes < 20_000
        checkpoint["3"].numpy()
        assert system.nbytes < 1_100_000


# ── folders made by hand ─────────────────────────────────────────────────────────────────────────


class Made:
    """An object that pickles as one of torch's classes."""

    def __init__(self, kind, **state):
        self.kind = kind
        self.state = state

    def __reduce__(self):
        return _Class(self.kind), (), self.state


class _Class:
    """Pickles as a global of that name."""

    def __init__(self, name):
        self.name = name

    def __reduce__(self):
        raise AssertionError


class Writer(pickle._Pickler):
    """Python's own, which lets the globals be written that are not there."""

    def save(self, obj, *args, **options):
        if isinstance(obj, _Class):
            self.save_str(MODULE if "." not in obj.name else "torch")
            self.save_str(obj.name.rpartition(".")[2])
            self.write(pickle.STACK_GLOBAL)
        else:
            super().save(obj, *args, **options)

    def save_reduce(self, func, args, state=None, *rest, obj=None):
        self.save(func)
        self.save(args)
        self.write(pickle.NEWOBJ)
        if state is not None:
            self.save(state)
            self.write(pickle.BUILD)


def dumped(value):
    out = io.BytesIO()
    writer = Writer(out, 4)
    writer.fast = True  # no memo: it would need objects that stay
    writer.dump(value)
    return out.getvalue()


WHOLE = np.arange(24, dtype=np.float32).reshape(4, 6)
BOXES = (((0, 0), (2, 4)), ((0, 4), (2, 2)), ((2, 0), (2, 4)), ((2, 4), (2, 2)))


class Properties(Made):
    def __init__(self, dtype):
        super().__init__("TensorProperties")
        self.state = (_Class(f"torch.{dtype}"), 1, False)


def entry(size=(4, 6), boxes=BOXES, dtype="float32"):
    chunks = [Made("ChunkStorageMetadata", offsets=o, sizes=s) for o, s in boxes]
    properties = Properties(dtype)
    return Made("TensorStorageMetadata", properties=properties, size=size, chunks=chunks)


def write(folder, *, tensors=None, infos=None, change=lambda saved: saved):
    """A tensor in four chunks, in two files."""
    folder.mkdir(exist_ok=True)
    row = formats.named("torch")
    places, data = {}, [b"", b"junk"]
    for number, (offsets, sizes) in enumerate(BOXES):
        values = WHOLE[tuple(slice(o, o + n) for o, n in zip(offsets, sizes, strict=True))]
        path = folder / "chunk.pt"
        specs = {"tensor": formats.TensorSpec(values.shape, values.dtype)}
        sink = formats.create(path, row, specs)
        sink.write("tensor", [np.ascontiguousarray(values).reshape(-1)])
        sink.commit()
        zipped = path.read_bytes()
        path.unlink()
        rank = number % 2
        places[offsets] = {
            "relative_path": f"__{rank}_0.distcp",
            "offset": len(data[rank]),
            "length": len(zipped),
        }
        data[rank] += zipped
    for rank, content_ in enumerate(data):
        (folder / f"__{rank}_0.distcp").write_bytes(content_)
    storage = {
        Made("MetadataIndex", fqn="w", offset=offsets, index=None): Made(
            "_StorageInfo", **(place | (infos or {}))
        )
        for offsets, place in places.items()
    }
    saved = {
        "state_dict_metadata": tensors or {"w": entry()},
        "planner_data": None,
        "storage_data": storage,
    }
    (folder / ".metadata").write_bytes(dumped(Made("Metadata", **change(saved))))
    return folder


def test_chunks_of_several_files(tmp_path):
    assert np.array_equal(load(write(tmp_path / "x"))["w"], WHOLE)
    with formats.open_checkpoint(tmp_path / "x") as checkpoint:
        part = checkpoint["w"].view.transpose((1, 0)).take(0, 3, 5).numpy()
        assert sorted(checkpoint.files) == sorted((tmp_path / "x").iterdir())
        assert len(checkpoint.files) > 2
    assert np.array_equal(part, WHOLE.T[3:5])


def test_what_is_not_read_is_listed(tmp_path):
    tensors = {"w": entry(), "c": entry(dtype="complex32"), "b": Made("BytesStorageMetadata")}
    write(tmp_path / "x", tensors=tensors)
    with formats.open_checkpoint(tmp_path / "x") as checkpoint:
        assert list(checkpoint) == ["w"]
        assert checkpoint.unsupported == {
            "c": "complex32: no such dtype in NumPy",
            "b": "a pickled object, not a tensor",
        }
    write(tmp_path / "x", infos={"transform_descriptors": ["zstd"]})
    with formats.open_checkpoint(tmp_path / "x") as checkpoint:
        assert checkpoint.unsupported == {"w": "stored in a transformed (compressed) way"}


def entries(**tensors):
    return {"tensors": tensors}


LIES = {
    "a hole": (entries(w=entry(boxes=BOXES[:3])), CorruptFileError, "overlap|not covered"),
    "twice": (entries(w=entry(boxes=BOXES * 2)), CorruptFileError, "overlap"),
    "another shape": (entries(w=entry(size=(5, 6))), CorruptFileError, "not covered"),
    "more axes": (entries(w=entry(size=(4, 6, 1))), CorruptFileError, "number of axes"),
    "not stored": (entries(v=entry()), CorruptFileError, "not stored anywhere"),
    "huge": (entries(w=entry(size=(1 << 40, 1 << 20))), LimitError, "far more than it stores"),
    "negative": (entries(w=entry(size=(-4, 6))), CorruptFileError, "natural numbers"),
    "rank": (entries(w=entry(size=(1,) * 33)), LimitError, "more than 32 axes"),
    "no tensor": (entries(w=3), CorruptFileError, "where TensorStorageMetadata should be"),
    "name": (entries(**{"a\x1b": entry()}), CorruptFileError, "control character"),
    "number as name": ({"tensors": {3: entry()}}, CorruptFileError, "is no text"),
    "upwards": ({"infos": {"relative_path": "../x"}}, UnsafeContentError, "else than a file"),
    "absolute": ({"infos": {"relative_path": "/etc/passwd"}}, UnsafeContentError, "else than"),
    "dots": ({"infos": {"relative_path": ".."}}, UnsafeContentError, "out of its folder"),
    "no path": ({"infos": {"relative_path": None}}, UnsafeContentError, "else than a file"),
    "missing": ({"infos": {"relative_path": "y"}}, NotFoundError, "is missing"),
    "beyond": ({"infos": {"offset": 1 << 40}}, CorruptFileError, "shorter than .metadata says"),
    "length": ({"infos": {"length": 1 << 62}}, CorruptFileError, "shorter than .metadata says"),
    "offset": ({"infos": {"offset": -1}}, CorruptFileError, "natural numbers"),
    "no storage": (
        {"change": lambda saved: saved | {"storage_data": 3}},
        CorruptFileError,
        "where a dictionary should be",
    ),
}


@pytest.mark.parametrize(("facts", "error", "message"), LIES.values(), ids=LIES)
def test_a_lie_is_refused_on_opening(facts, error, message, tmp_path):
    write(tmp_path / "x", **facts)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(error, match=message) as caught:
        formats.open_checkpoint(tmp_path / "x")
    assert caught.value.path is not None
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_chunk_that_is_another(tmp_path):
    write(tmp_path / "x", infos={"offset": 0, "relative_path": "__0_0.distcp"})
    with pytest.raises(ConverterError, match=r"a chunk is not what|end of the zip|directory"):
        load(tmp_path / "x")


def test_a_link_that_leads_out(tmp_path):
    write(tmp_path / "x")
    shutil.move(tmp_path / "x" / "__0_0.distcp", tmp_path / "y")
    (tmp_path / "x" / "__0_0.distcp").symlink_to(tmp_path / "y")
    with pytest.raises(UnsafeContentError, match="leads out of its folder"):
        formats.open_checkpoint(tmp_path / "x")


def test_a_wish_to_run_something(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "x")
    data = b"\x80\x04" + b"\x8c\x1ctorch.distributed.checkpoint0cos\nsystem\n\x8c\x05touch\x85R."
    (tmp_path / "x" / ".metadata").write_bytes(data)
    with pytest.raises(UnsafeContentError, match=r"asks to call os\.system"):
        formats.open_checkpoint(tmp_path / "x")


def test_truncation_and_flips(tmp_path):
    write(tmp_path / "x")
    for path in sorted((tmp_path / "x").iterdir()):
        whole = path.read_bytes()
        for at in range(0, len(whole), max(1, len(whole) // 150)):
            changed = bytearray(whole)
            changed[at] ^= 0x10
            for data in (whole[:at], bytes(changed)):
                path.write_bytes(data)
                try:
                    found = load(tmp_path / "x").get("w")
                except ConverterError:
                    continue
                assert found is None or len(data) == len(whole)
                if path.suffix and found is not None:
                    assert np.array_equal(found, WHOLE)  # its zips have checksums
        path.write_bytes(whole)
