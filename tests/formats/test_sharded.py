"""Sets of shards against what the hub's library writes and reads, and indices that lie."""

from __future__ import annotations

import json
import os
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import test_safetensors
import test_torch
from conformance import (
    Array,
    Arrays,
    CountingSystem,
    FormatConformance,
    content,
    differences,
    make,
    read,
)

from converter import files, formats
from converter.errors import (
    ConverterError,
    CorruptFileError,
    LimitError,
    NotFoundError,
    RefusedError,
    SourceError,
    TargetError,
    UnsafeContentError,
    UnsupportedError,
)
from converter.formats import safetensors, sharded
from converter.tensors import TensorSpec, dtype_of
from tests.formats.dtypes import HELD

INDEX = "model.safetensors.index.json"


class Sharded(FormatConformance):
    format = "sharded"
    whole: FormatConformance  # of one shard
    test_what_is_not_held = None  # of a shard alone

    def create(self, path: Path, arrays: Any, **options: Any) -> Any:
        specs = {n: TensorSpec(tuple(a.shape), a.dtype) for n, a in arrays.items()}
        options.setdefault("shard_nbytes", 50)  # several shards in every test
        return formats.create(path, self.row, specs, **options)

    def library_holds(self, dtype: str, shape: tuple[int, ...]) -> bool:
        return self.whole.library_holds(dtype, shape)

    def oracle_read(self, path: Path) -> dict[str, Array]:
        places = json.loads(path.read_text())["weight_map"]
        loaded = {name: self.whole.oracle_read(path.with_name(name)) for name in {*places.values()}}
        return {name: loaded[shard][name] for name, shard in places.items()}

    def oracle_write(self, path: Path, arrays: Arrays) -> None:
        """An index as the hub's library writes it, of two shards that are the library's."""
        kind = path.name.removesuffix(".index.json")
        stem, _, suffix = kind.rpartition(".")
        halves = [dict(list(arrays.items())[i::2]) for i in range(2)]
        places = {}
        for number, half in enumerate(halves, 1):
            shard = f"{stem}-{number:05}-of-00002.{suffix}"
            self.whole.oracle_write(path.with_name(shard), half)
            places |= dict.fromkeys(half, shard)
        total = sum(array.nbytes for array in arrays.values())
        text = {"metadata": {"total_size": total}, "weight_map": places}
        path.write_text(json.dumps(text))


class TestSafetensorsShards(Sharded):
    target = INDEX
    whole = test_safetensors.TestSafetensors()
    metadata = MappingProxyType({"format": "pt"})


class TestTorchShards(Sharded):
    target = "pytorch_model.bin.index.json"
    metadata = MappingProxyType({})
    whole = test_torch.TestTorch()


@pytest.mark.oracle
@pytest.mark.parametrize("dtype", HELD["sharded"].only_read)
def test_what_shards_of_torch_hold_alone_is_read(dtype: str, tmp_path: Path) -> None:
    suite = TestTorchShards()
    arrays = suite.whole.of_library(dtype)
    suite.oracle_write(tmp_path / suite.target, arrays)
    assert differences(read(tmp_path / suite.target), arrays) == []


def small() -> dict[str, Array]:
    return {f"t{i}": make("float32", (4,), i) for i in range(5)}


def save(path: Path, arrays: Arrays, nbytes: int = 32, **options: Any) -> Any:
    return TestSafetensorsShards().write(path, arrays, shard_nbytes=nbytes, **options)


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """A set of three shards."""
    save(tmp_path / INDEX, small())
    return tmp_path / INDEX


# ── names and sizes ──────────────────────────────────────────────────────────────────────────────


def test_the_files_of_a_set(index: Path) -> None:
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert sorted(content(index.parent)) == [*names, INDEX]
    assert json.loads(index.read_text()) == {
        "metadata": {"total_size": 80},
        "weight_map": {f"t{i}": names[i // 2] for i in range(5)},
    }
    for where in (index, index.parent):
        assert differences(read(where), small()) == []
    with formats.open_checkpoint(index.parent) as checkpoint:
        assert checkpoint.path == index
        extent = checkpoint["t4"].extent
        assert extent is not None
        assert extent.path.name == names[2]


def test_one_file_where_it_is_enough(tmp_path: Path) -> None:
    row = formats.named("safetensors")
    specs = {n: TensorSpec(a.shape, a.dtype) for n, a in small().items()}
    for nbytes, expected in ((80, "model.safetensors"), (79, INDEX)):
        sink = formats.create(tmp_path / "model.safetensors", row, specs, shard_nbytes=nbytes)
        sink.abort()
        assert sink.files[-1].name == expected


@pytest.mark.parametrize("nbytes", [1, 16, 17, 40, 64, 100, 1 << 20])
@pytest.mark.oracle
def test_the_split_is_the_hubs(nbytes: int) -> None:
    torch = pytest.importorskip("torch")
    hub = pytest.importorskip("huggingface_hub")
    sizes = [4, 1, 10, 3, 0, 8, 30, 1, 1, 2, 16, 4]
    tensors = {f"t{i}": torch.zeros(size) for i, size in enumerate(sizes)}
    plan = hub.split_torch_state_dict_into_shards(tensors, max_shard_size=nbytes)
    specs = {n: TensorSpec(tuple(t.shape), dtype_of("float32")) for n, t in tensors.items()}
    groups = sharded.split(specs, (), safetensors, nbytes)
    assert groups == list(plan.filename_to_tensors.values())
    names = [path.name for path in sharded.Target.of(Path(INDEX)).shards(len(groups))]
    assert len(groups) == 1 or names == list(plan.filename_to_tensors)


@pytest.mark.oracle
def test_the_hubs_library_loads_it(index: Path) -> None:
    torch = pytest.importorskip("torch")
    hub = pytest.importorskip("huggingface_hub")
    model = torch.nn.Module()
    for name in small():
        model.register_buffer(name, torch.zeros(4))
    hub.load_torch_model(model, index.parent, strict=True)
    assert all(np.array_equal(getattr(model, n).numpy(), a, True) for n, a in small().items())


@pytest.mark.oracle
@pytest.mark.parametrize("safe", [True, False])
def test_what_the_hubs_library_writes(safe: bool, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    hub = pytest.importorskip("huggingface_hub")
    tensors = {f"t{i}": torch.arange(4.0) + i for i in range(5)}
    hub.save_torch_state_dict(tensors, tmp_path, max_shard_size=32, safe_serialization=safe)
    expected = {name: tensor.numpy() for name, tensor in tensors.items()}
    assert differences(read(tmp_path), expected) == []


def test_tied_names_share_a_shard_of_torch(tmp_path: Path) -> None:
    arrays = small()
    arrays["t4"] = arrays["t0"]
    path = tmp_path / "pytorch_model.bin.index.json"
    TestTorchShards().write(path, arrays, shard_nbytes=32, ties=(("t0", "t4"),))
    index = json.loads(path.read_text())
    assert index["weight_map"]["t4"] == index["weight_map"]["t0"]
    assert index["metadata"]["total_size"] == 64
    with formats.open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.ties == (("t0", "t4"),)
        assert differences({n: t.numpy() for n, t in checkpoint.items()}, arrays) == []


@pytest.mark.parametrize("name", ["model.npz", "model.npz.index.json", ".index.json"])
def test_a_name_that_does_not_tell_the_kind(name: str, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="does not tell the kind of shards"):
        save(tmp_path / name, small())


def test_a_size_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="must be positive"):
        save(tmp_path / INDEX, small(), 0)


def test_overwriting_removes_the_shards_of_the_old(index: Path) -> None:
    (index.parent / "mine.safetensors").write_bytes(b"mine")
    for nbytes in (16, 1000, 32):
        save(index, small(), nbytes, overwrite=True)
        assert len(list(index.parent.iterdir())) == 2 + -(-80 // nbytes)
        assert differences(read(index), small()) == []
    assert (index.parent / "mine.safetensors").read_bytes() == b"mine"


def test_a_set_that_is_replaced_while_it_is_opened(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards of two sets would be mixed."""
    opened = sharded._open_shard
    other = index.with_name("other")
    other.write_bytes(index.read_bytes())

    def replaced(index: Path, name: str) -> Any:
        if other.exists():
            other.replace(index)
        return opened(index, name)

    monkeypatch.setattr(sharded, "_open_shard", replaced)
    with pytest.raises(SourceError, match="the index was replaced while"):
        formats.open_checkpoint(index)


def test_overwriting_removes_nothing_that_is_no_shard(index: Path) -> None:
    (index.parent / "mine.safetensors").write_bytes(b"mine")
    index.write_text(json.dumps({"weight_map": {"t0": "mine.safetensors"}}))
    save(index, small(), overwrite=True)
    assert (index.parent / "mine.safetensors").read_bytes() == b"mine"


class DyingSystem(files.System):
    """Stops before the k-th change of a name, as if the process had been killed."""

    def __init__(self, left: int) -> None:
        self.left = left

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt

    def rename(self, source: Path, target: Path) -> None:
        self._count()
        super().rename(source, target)

    def link(self, source: Path, target: Path) -> None:
        self._count()
        super().link(source, target)

    def unlink(self, path: Path) -> None:
        if self.left < 0:
            return  # the dead do not tidy up
        super().unlink(path)


@pytest.mark.parametrize("steps", range(13))
def test_a_reader_gets_the_old_or_the_new(
    steps: int, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = {name: make("float32", (4,), f"new {name}") for name in small()}
    monkeypatch.setattr(files, "system", DyingSystem(steps))
    try:
        save(index, new, overwrite=True)
        died = False
    except KeyboardInterrupt:
        died = True
    monkeypatch.setattr(files, "system", files.System())
    found = read(index)
    assert not differences(found, new) or (died and not differences(found, small()))


# ── reading no more than is needed ───────────────────────────────────────────────────────────────


def test_ten_gigabytes_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight_map = {}
    for shard in range(1, 5):
        name = f"model-0000{shard}-of-00004.safetensors"
        size, header = 1 << 25, {}
        for i in range(80):
            header[f"{shard}.{i}"] = {
                "dtype": "F32",
                "shape": [size // 4],
                "data_offsets": [i * size, (i + 1) * size],
            }
            weight_map[f"{shard}.{i}"] = name
        text = json.dumps(header).encode()
        with (tmp_path / name).open("wb") as stream:
            stream.write(struct.pack("<Q", len(text)) + text)
            stream.truncate(8 + len(text) + 80 * size)  # sparse
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    system = CountingSystem()
    monkeypatch.setattr(files, "system", system)
    start = time.process_time()
    with formats.open_checkpoint(tmp_path) as checkpoint:
        assert time.process_time() - start < 2
        assert checkpoint.nbytes > 10_000_000_000
        assert system.nbytes < 100_000


# ── indices that lie ─────────────────────────────────────────────────────────────────────────────

A, B, C = (f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3))
MAP = {"t0": A, "t1": A, "t2": B, "t3": B, "t4": C}


def index_of(weight_map: Any = None, **names: Any) -> str:
    return json.dumps({"weight_map": MAP | names if weight_map is None else weight_map})


LIES: dict[str, tuple[str, type[ConverterError], str]] = {
    "idx_traversal": (index_of(t0=f"../{A}"), UnsafeContentError, "else than a file beside it"),
    "idx_up": (index_of(t0=".."), UnsafeContentError, "else than a file beside it"),
    "idx_absolute": (index_of(t0="/etc/passwd"), UnsafeContentError, "else than a file beside"),
    "idx_backslash": (index_of(t0=f"..\\{A}"), UnsafeContentError, "else than a file beside"),
    "idx_drive": (index_of(t0="C:x.safetensors"), UnsafeContentError, "else than a file beside"),
    "idx_folder": (index_of(t0=f"./{A}"), UnsafeContentError, "else than a file beside it"),
    "idx_nul": (index_of(t0=f"\0{A}"), UnsafeContentError, "else than a file beside it"),
    "idx_newline": (index_of(t0=f"{A}\n"), UnsafeContentError, "else than a file beside it"),
    "idx_hidden": (index_of(t0=".safetensors"), UnsafeContentError, "else than a file beside"),
    "idx_empty_name": (index_of(t0=""), UnsafeContentError, "else than a file beside it"),
    "idx_long_name": (index_of(t0="x" * 300 + A), UnsafeContentError, "else than a file beside"),
    "idx_url": (index_of(t0="https://h/x.safetensors"), UnsafeContentError, "else than a file"),
    "idx_suffix": (index_of(t0="model.pkl"), UnsafeContentError, "else than a file beside it"),
    "idx_itself": (index_of(t0=INDEX), UnsafeContentError, "else than a file beside it"),
    "idx_number": (index_of(t0=1), CorruptFileError, "name is not text"),
    "idx_list": (index_of([]), CorruptFileError, "no weight_map"),
    "idx_null": (index_of("x"), CorruptFileError, "no weight_map"),
    "idx_root": ('{"weight_map"', CorruptFileError, "is not JSON"),
    "idx_utf8": ('{"weight_map": "\udcff"}', CorruptFileError, "is not JSON"),
    "idx_deep": ('{"weight_map":' * 100_000, LimitError, "nested too deeply"),
    "idx_twice": ('{"weight_map":{"a":"b","a":"c"}}', CorruptFileError, "(?s)a key twice.*'a'"),
    "idx_two_maps": ('{"weight_map":{},"weight_map":{}}', CorruptFileError, "a key twice"),
    "idx_metadata": ('{"weight_map":{},"metadata":[1]}', CorruptFileError, "metadata of another"),
    "idx_missing_shard": (index_of(t0="x.safetensors"), NotFoundError, "a shard is missing"),
    "idx_absent_tensor": (index_of(t9=A), CorruptFileError, "not in its shard.*'t9'"),
    "idx_wrong_shard": (index_of(t0=B), CorruptFileError, "in another shard than.*'t0'"),
    "idx_extra_tensor": (
        index_of({n: s for n, s in MAP.items() if n != "t1"}),
        CorruptFileError,
        "in a shard, but not in the index.*'t1'",
    ),
    "idx_fewer_shards": (
        index_of({n: s for n, s in MAP.items() if s != C}),
        CorruptFileError,
        "(?s)not name every shard.*found: 2 of them",
    ),
    "idx_many": (
        index_of({str(i): f"{i}.safetensors" for i in range(10_001)}),
        LimitError,
        "too many shards",
    ),
}


@pytest.mark.parametrize(("text", "error", "message"), LIES.values(), ids=LIES)
def test_a_lie_is_refused(
    text: str, error: type[ConverterError], message: str, index: Path
) -> None:
    index.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(error, match=message) as caught:
        formats.open_checkpoint(index)
    assert caught.value.path is not None
    assert "\0" not in str(caught.value)


def replaced(index: Path, make: Callable[[Path], object]) -> Iterator[Path]:
    (index.parent / A).unlink()
    make(index.parent / A)
    yield index


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: p.symlink_to("/dev/zero"), UnsafeContentError, "leads out of the index's"),
        (lambda p: p.symlink_to("/etc/passwd"), UnsafeContentError, "leads out of the index's"),
        (lambda p: p.symlink_to("../x"), NotFoundError, "a shard is missing"),
        (lambda p: p.symlink_to(p.name), NotFoundError, "a shard is missing"),
        (lambda p: p.mkdir(), NotFoundError, "is not a regular file"),
        (os.mkfifo, NotFoundError, "is not a regular file"),
        (lambda p: p.write_bytes(b""), SourceError, "not a checkpoint"),
        (lambda p: p.write_bytes(b"\x93NUMPY"), SourceError, "of the format npz"),
        (lambda p: shutil.copy(p.parent / INDEX, p), SourceError, "of the format sharded"),
    ],
)
def test_a_shard_that_is_something_else(
    make: Callable[[Path], object], error: type[ConverterError], message: str, index: Path
) -> None:
    (index.parent / A).unlink()
    make(index.parent / A)
    with pytest.raises(error, match=message):
        formats.open_checkpoint(index)


def test_a_shard_that_is_left_over(index: Path) -> None:
    (index.parent / "model-00004-of-00003.safetensors").write_bytes(b"")
    with pytest.raises(CorruptFileError, match="a shard that the index does not name"):
        formats.open_checkpoint(index)


def test_the_hubs_cache_links_into_one_folder(index: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(index.parent.glob("model*"))):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    assert differences(read(snapshot), small()) == []


def test_two_sets_in_one_folder(index: Path) -> None:
    shutil.copy(index, index.with_name("other.safetensors.index.json"))
    with pytest.raises(UnsupportedError, match=r"(?s)2 indices in one folder.*name the one"):
        formats.open_checkpoint(index.parent)
    assert differences(read(index), small()) == []


def test_a_set_of_torch_beside_one_of_safetensors(index: Path) -> None:
    TestTorchShards().write(index.with_name("pytorch_model.bin.index.json"), small())
    with formats.open_checkpoint(index.parent) as checkpoint:
        assert checkpoint.path == index


def test_metadata_of_the_index(index: Path) -> None:
    text = json.loads(index.read_text())
    text["metadata"] |= {"total_size": "1e9", "note": "x", "n": 3}
    index.write_text(json.dumps(text))
    with formats.open_checkpoint(index) as checkpoint:
        assert checkpoint.metadata == {"note": "x", "n": "3", "format": "pt"}


def test_a_refusal_closes_what_was_open(index: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    (index.parent / C).write_bytes(b"{")
    with pytest.raises((SourceError, RefusedError), match="not a checkpoint"):
        formats.open_checkpoint(index)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
