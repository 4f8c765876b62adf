"""Saving: every piece in its place whatever the memory, and nothing left behind when it fails."""

from __future__ import annotations

import errno
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import converter
from converter import engine, files, formats, layout
from converter.errors import CorruptFileError, LimitError, NoSpaceError, TargetExistsError
from converter.language import loads
from converter.layout import View
from converter.plan import Port
from converter.tensors import Checkpoint, Tensor, from_arrays

Array = NDArray[Any]

# The ways of the engine: bytes of its buffers, of what is loaded, written, left to the caller.
MEMORY = {  # window, ahead, load, aside, piece, small
    "all at once": (96 << 20, 448 << 20, 448 << 20, 16 << 20, 1 << 20, 0),
    "by the caller": (96 << 20, 448 << 20, 448 << 20, 16 << 20, 1 << 20, 1 << 20),
    "in pieces": (256, 0, 0, 0, 64, 0),
    "in tiny pieces": (64, 0, 0, 0, 16, 0),
    "read ahead": (256, 1 << 20, 1 << 20, 0, 64, 0),
    "read ahead by all": (256, 1 << 20, 100, 0, 64, 0),
    "some read ahead": (256, 600, 90, 100, 48, 100),
}
SIZES = ("WINDOW", "AHEAD", "LOAD", "ASIDE", "PIECE", "SMALL")
PORT = """
mapping: 1
rules:
  - {source: net/fc6, target: net/dense/w, ops: [rearrange: h w i o -> o (i h w)]}
  - {source: net/conv, target: net/conv/w, ops: [rearrange: h w i o -> o i h w]}
  - {source: net/rgb, target: net/rgb/w, ops: [reverse: 'h w [i] o']}
  - {source: 'net/layer{k}', target: net/layers/w, ops: [stack: 0, rearrange: k a b -> b k a]}
  - {source: net/half, target: net/wide/w, ops: [cast: float32, transpose: [1, 0]]}
  - {source: 'net/{x:plain|scalar|empty|flag|count}', target: 'net/{x}/w'}
make:
  - {target: net/made/w, shape: [5], fill: 0.5}
"""


def sources() -> dict[str, Array]:
    generator = np.random.default_rng(0)

    def values(*shape: int) -> Array:
        return generator.standard_normal(shape, np.float32)

    return {
        "net/fc6": values(3, 3, 4, 10),
        "net/conv": values(3, 3, 5, 7),
        "net/rgb": values(3, 3, 3, 4),
        **{f"net/layer{k}": values(4, 6) for k in range(3)},
        "net/half": values(9, 11).astype(ml_dtypes.bfloat16),
        "net/plain": values(13, 17),
        "net/scalar": np.float32(1.5).reshape(()),
        "net/empty": values(0, 3),
        "net/flag": np.array([True, False, True]),
        "net/count": np.arange(70, dtype=np.int64),
    }


def expected(arrays: dict[str, Array]) -> dict[str, Array]:
    layers = np.stack([arrays[f"net/layer{k}"] for k in range(3)])
    return {
        "net/dense/w": arrays["net/fc6"].transpose(3, 2, 0, 1).reshape(10, 36),
        "net/conv/w": arrays["net/conv"].transpose(3, 2, 0, 1),
        "net/rgb/w": arrays["net/rgb"][:, :, ::-1],
        "net/layers/w": layers.transpose(2, 0, 1),
        "net/wide/w": arrays["net/half"].astype(np.float32).T,
        **{f"net/{x}/w": arrays[f"net/{x}"] for x in ("plain", "scalar", "empty", "flag", "count")},
        "net/made/w": np.full(5, 0.5, np.float32),
    }


def port() -> Port:
    return Port(loads(PORT))


@pytest.fixture(params=MEMORY)
def memory(request, monkeypatch) -> str:
    for name, value in zip(SIZES, MEMORY[request.param], strict=True):
        monkeypatch.setattr(engine, name, value)
    return request.param


@pytest.fixture
def tiny(monkeypatch) -> None:
    """Memory so small that every tensor of this file is cut."""
    for name, value in zip(SIZES, MEMORY["in tiny pieces"], strict=True):
        monkeypatch.setattr(engine, name, value)


@pytest.fixture(autouse=True)
def no_threads_are_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert not [t for t in set(threading.enumerate()) - before if "converter" in t.name]


def same(checkpoint: Checkpoint, arrays: dict[str, Array]) -> None:
    assert set(checkpoint) == set(arrays)
    for name, array in arrays.items():
        found = checkpoint[name].numpy()
        assert (found.shape, found.dtype) == (array.shape, array.dtype), name
        assert found.tobytes() == np.ascontiguousarray(array).tobytes(), name


WRITERS = [row.name for row in formats.FORMATS if row.writes]


def target(folder: Path, name: str) -> Path:
    row = formats.named(name)
    return folder / f"target{row.suffixes[0] if row.suffixes else '.v1'}"


@pytest.mark.parametrize("name", WRITERS)
def test_every_tensor_is_what_numpy_makes_of_it(name, memory, tmp_path):
    arrays = sources()
    path = target(tmp_path, name)
    seen: dict[str, int] = {}

    def progress(tensor: str, nbytes: int) -> None:
        seen[tensor] = seen.get(tensor, 0) + nbytes

    mapped = port()(from_arrays(arrays))
    saved = converter.save(mapped, path, format=name, progress=progress)
    wanted = expected(arrays)
    with converter.open(path) as found:
        same(found, wanted)
    assert (saved.format, saved.tensors) == (name, len(wanted))
    assert saved.nbytes == sum(array.nbytes for array in wanted.values())
    assert seen == {n: array.nbytes for n, array in wanted.items() if array.size}
    assert all(file.exists() for file in saved.files)


@pytest.mark.parametrize("name", WRITERS)
def test_files_are_read_in_pieces_as_well(name, memory, tmp_path):
    arrays = sources()
    if name in ("tf-v1", "npz", "keras-h5"):  # which have no bfloat16
        arrays["net/half"] = arrays["net/half"].astype(np.float16)
    source = target(tmp_path / "source", name)
    source.parent.mkdir()
    converter.save(from_arrays(arrays), source, format=name)
    with converter.open(source) as opened:
        converter.save(port()(opened), tmp_path / "target.safetensors")
    with converter.open(tmp_path / "target.safetensors") as found:
        same(found, expected(arrays))


@pytest.mark.parametrize("name", ["tf-v1", "tf-v2"])
def test_strings_are_saved_beside_others(name, memory, tmp_path):
    texts = np.array([[b"a", b""], [b"\0\xff", b"long" * 100]], object)
    arrays = {
        "a": np.array([b"one"], object),
        "b": np.arange(60, dtype="f4").reshape(3, 4, 5),
        "c": texts,
        "d": np.array(b"scalar", object).reshape(()),
        "e": np.arange(4, dtype="i8"),
    }
    mapped = Port(
        loads(
            "mapping: 1\nrules:\n  - {source: b, target: b, ops: [transpose: [2, 0, 1]]}\n"
            "  - {source: '{x:a|c|d|e}', target: '{x}'}"
        )
    )
    path = target(tmp_path, name)
    converter.save(mapped(from_arrays(arrays)), path, format=name)
    with converter.open(path) as found:
        assert set(found) == set(arrays)
        for key in "acde":
            np.testing.assert_array_equal(found[key].numpy(), arrays[key], strict=True)
        np.testing.assert_array_equal(found["b"].numpy(), arrays["b"].transpose(2, 0, 1))


def test_no_strings_are_saved_before_a_permuted_tensor(monkeypatch, tmp_path):
    monkeypatch.setattr(engine, "WINDOW", 256)
    arrays = {"a": np.empty(0, object), "b": np.arange(60, dtype="f4").reshape(3, 4, 5)}
    text = "  - {source: a, target: a}\n  - {source: b, target: b, ops: [transpose: [2, 0, 1]]}"
    mapped = Port(loads(f"mapping: 1\nrules:\n{text}"))(from_arrays(arrays))
    converter.save(mapped, tmp_path / "t", format="tf-v1")
    with converter.open(tmp_path / "t") as found:
        np.testing.assert_array_equal(found["b"].numpy(), arrays["b"].transpose(2, 0, 1))


def test_ports_are_chained_without_a_file_between(memory, tmp_path):
    arrays = sources()
    first = port()(from_arrays(arrays))
    rename = Port(loads("mapping: 1\nrules: [{source: 'net/{x:word}/w', target: '{x}'}]"))
    reverse = Port(
        loads(
            "mapping: 1\nrules:\n  - {source: dense, target: dense, ops: [rearrange: o i -> i o]}\n"
            "  - {source: '{x:word}', target: '{x}', except: [dense]}"
        )
    )
    path = tmp_path / "chained.npz"
    converter.save(reverse(rename(first)), path)
    wanted = {n.split("/")[1]: a for n, a in expected(arrays).items()}
    wanted["dense"] = wanted["dense"].T
    with converter.open(path) as found:
        same(found, wanted)


@pytest.mark.parametrize("name", WRITERS)
def test_the_same_is_written_twice(name, tiny, tmp_path):
    written = []
    for folder in ("one", "two"):
        path = target(tmp_path / folder, name)
        path.parent.mkdir()
        saved = converter.save(port()(from_arrays(sources())), path, format=name)
        written.append({file.name: file.read_bytes() for file in saved.files})
    assert written[0] == written[1]


def test_a_checkpoint_of_nothing_is_saved(tmp_path):
    saved = converter.save(from_arrays({}), tmp_path / "none.safetensors")
    assert (saved.tensors, saved.nbytes) == (0, 0)
    with converter.open(tmp_path / "none.safetensors") as found:
        assert not found


# Memory.


@pytest.mark.parametrize("mebibytes", [0, 1, 55, -5])
def test_a_memory_limit_that_is_too_small_is_refused(mebibytes, tmp_path):
    path = tmp_path / "t.safetensors"
    with pytest.raises(LimitError, match="the memory limit is too small") as caught:
        converter.save(from_arrays(sources()), path, max_memory=mebibytes << 20)
    assert caught.value.expected.startswith("at least")
    assert not list(tmp_path.iterdir())


def test_the_smallest_memory_limit_that_is_named_works(tmp_path):
    with pytest.raises(LimitError, match="the memory limit is too small") as caught:
        engine.memory(0)
    least = int(caught.value.expected.split()[2]) << 20
    path = tmp_path / "t.safetensors"
    arrays = sources()
    converter.save(port()(from_arrays(arrays)), path, max_memory=least)
    with converter.open(path) as found:
        same(found, expected(arrays))
    assert engine.peak_memory(from_arrays(arrays).specs, least) <= least
    with pytest.raises(LimitError, match="the memory limit is too small"):
        engine.memory(least - (1 << 20))


# Columns.


class Slow:
    """Elements in a file, as it were, whose reads take now this and now that long."""

    def __init__(self, array: Array, seed: int) -> None:
        self.array = array.reshape(-1)
        self.dtype, self.size = array.dtype, array.size
        self.random = random.Random(seed)
        self.seen = np.zeros(array.size, int)

    def read(self, start: int, out: Array) -> None:
        time.sleep(self.random.choice([0, 0, 0, 0.0005]))
        self.seen[start : start + out.size] += 1
        out[...] = self.array[start : start + out.size]


def permuted(seed: int) -> tuple[Checkpoint, dict[str, Array], list[Slow]]:
    """Tensors that are to be turned, of all sizes, and what they are."""
    choose = random.Random(seed)
    tensors, wanted, storages = {}, {}, []
    for number in range(12):
        shape = [choose.choice([1, 2, 7, 16, 24]) for _ in range(3)]
        order = choose.sample(range(3), 3)
        array = np.arange(np.prod(shape), dtype="f4").reshape(shape) + number
        storages.append(Slow(array, seed + number))
        tensors[f"t{number}"] = Tensor(View.over(storages[-1], shape).transpose(order))
        wanted[f"t{number}"] = array.transpose(order)
    return Checkpoint(tensors), wanted, storages


ROOMS = {  # buffer, ahead
    "two columns": engine.Memory(512, 8 << 10),
    "one column": engine.Memory(512, 4 << 10),
    "much": engine.Memory(4096, 1 << 20),
    "short rows": engine.Memory(256, 600),
}


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("readers", [1, 2, 4])
@pytest.mark.parametrize("seed", range(2))
def test_columns_that_share_memory_do_not_disturb_each_other(
    seed, readers, room, tmp_path, monkeypatch
):
    monkeypatch.setattr(engine, "READERS", readers)
    monkeypatch.setattr(engine, "BUFFERS", readers + 1)
    monkeypatch.setattr(engine, "ASIDE", 64)
    monkeypatch.setattr(engine, "LOAD", 300)
    monkeypatch.setattr(engine, "SMALL", 0)
    monkeypatch.setattr(engine, "memory", lambda _: ROOMS[room])
    monkeypatch.setattr(layout, "GAP", 0)
    checkpoint, wanted, storages = permuted(seed)
    converter.save(checkpoint, tmp_path / "t.safetensors")
    with converter.open(tmp_path / "t.safetensors") as found:
        same(found, wanted)
    if room in ("two columns", "much"):
        assert all((storage.seen == 1).all() for storage in storages)


@pytest.mark.parametrize("after", range(0, 18, 2))
def test_a_column_that_cannot_be_read_ends_it_without_a_thread_that_waits(
    after, tmp_path, monkeypatch
):
    monkeypatch.setattr(engine, "ASIDE", 64)
    monkeypatch.setattr(engine, "LOAD", 300)
    monkeypatch.setattr(engine, "SMALL", 0)
    monkeypatch.setattr(engine, "memory", lambda _: ROOMS["one column"])
    checkpoint, _, storages = permuted(5)
    left = iter(range(after))

    def read(start: int, out: Array) -> None:
        if next(left, None) is None:
            raise CorruptFileError("truncated")

    for storage in storages:
        monkeypatch.setattr(storage, "read", read)
    with pytest.raises(CorruptFileError, match="truncated") as caught:
        converter.save(checkpoint, tmp_path / "t.safetensors")
    assert caught.value.tensor in checkpoint
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("at", [0, 1, 5, 20])
def test_an_interrupt_while_columns_wait_for_room(at, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "ASIDE", 64)
    monkeypatch.setattr(engine, "LOAD", 300)
    monkeypatch.setattr(engine, "SMALL", 0)
    monkeypatch.setattr(engine, "memory", lambda _: ROOMS["one column"])
    calls = iter(range(at))

    def progress(tensor: str, nbytes: int) -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        converter.save(permuted(7)[0], tmp_path / "t.safetensors", progress=progress)
    assert not list(tmp_path.iterdir())


def test_a_fault_in_the_plan_of_pieces_is_raised_and_nobody_waits(tmp_path, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("bug")

    monkeypatch.setattr(View, "boxes", broken)
    with pytest.raises(ZeroDivisionError, match="bug"):
        converter.save(permuted(1)[0], tmp_path / "t.safetensors")
    assert not list(tmp_path.iterdir())


# Failures.


class Failing:
    """Elements that can be read up to some call, and then raise."""

    def __init__(self, array: Array, error: BaseException, after: int) -> None:
        self.array = array.reshape(-1)
        self.dtype = array.dtype
        self.size = array.size
        self.error = error
        self.left = after

    def read(self, start: int, out: Array) -> None:
        if self.left == 0:
            raise self.error
        self.left -= 1
        out[...] = self.array[start : start + out.size]


def with_failing(error: BaseException, after: int) -> Checkpoint:
    arrays = {f"t{k}": np.arange(100, dtype="f4") for k in range(6)}
    tensors = dict(from_arrays(arrays).tensors)
    tensors["t3"] = Tensor(View.over(Failing(arrays["t3"], error, after), (100,)))
    return Checkpoint(tensors)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(params=["new", "over an old one"])
def place(request, tmp_path) -> Callable[[str], Path]:
    """A path for a target of a format, with or without an older one."""

    def placed(name: str) -> Path:
        path = target(tmp_path, name)
        if request.param != "new":
            converter.save(from_arrays({"old": np.arange(9.0)}), path, format=name)
        return path

    return placed


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("after", [0, 3])
def test_an_error_while_reading_names_the_tensor_and_leaves_nothing(name, after, place, tiny):
    path = place(name)
    before = everything(path.parent)
    error = CorruptFileError("truncated")
    with pytest.raises(CorruptFileError, match="truncated") as caught:
        converter.save(with_failing(error, after), path, format=name, overwrite=True)
    assert caught.value is error
    assert error.tensor == "t3"
    assert everything(path.parent) == before


@pytest.mark.parametrize(
    "error", [OSError("gone"), MemoryError("no room"), ZeroDivisionError("bug")]
)
def test_foreign_errors_while_reading_come_through_as_they_are(error, tiny, tmp_path):
    with pytest.raises(type(error), match=str(error)) as caught:
        converter.save(with_failing(error, 2), tmp_path / "t.npz")
    assert caught.value is error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("at", [1, 7])
def test_an_interrupt_leaves_nothing(name, at, place, tiny):
    path = place(name)
    before = everything(path.parent)
    calls = iter(range(at))

    def progress(tensor: str, nbytes: int) -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt

    checkpoint = port()(from_arrays(sources()))
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        converter.save(checkpoint, path, format=name, overwrite=True, progress=progress)
    assert everything(path.parent) == before
    converter.save(checkpoint, path, format=name, overwrite=True)
    with converter.open(path) as found:
        same(found, expected(sources()))


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_stops_the_readers(name, tiny, tmp_path, monkeypatch):
    class Full(files.System):
        """A disk that takes a few pieces."""

        left = 5

        def write(self, fd: int, data: memoryview, offset: int) -> int:
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.ENOSPC, "full")
            return super().write(fd, data, offset)

    monkeypatch.setattr(files, "system", Full())
    with pytest.raises(NoSpaceError, match="writing failed: full"):
        converter.save(port()(from_arrays(sources())), target(tmp_path, name), format=name)
    assert everything(tmp_path) == {}


def test_an_error_in_the_sink_stops_the_readers(tiny, tmp_path, monkeypatch):
    class Full:
        """A sink that takes a few tensors."""

        def __init__(self, inner: Any) -> None:
            self.inner = inner
            self.order = inner.order
            self.files = inner.files
            self.aborted = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def placed(self, name: str, crc: int) -> None:
            if name == "net/plain/w":
                raise NoSpaceError("the disk is full")
            self.inner.placed(name, crc)

        def abort(self) -> None:
            self.aborted += 1
            self.inner.abort()

    create, sinks = formats.create, []

    def full(*arguments: Any, **more: Any) -> Full:
        sinks.append(Full(create(*arguments, **more)))
        return sinks[0]

    monkeypatch.setattr(formats, "create", full)
    with pytest.raises(NoSpaceError, match="the disk is full") as caught:
        converter.save(port()(from_arrays(sources())), tmp_path / "t.safetensors")
    assert caught.value.tensor == "net/plain/w"
    assert sinks[0].aborted == 1
    assert not list(tmp_path.iterdir())


def test_an_existing_target_is_refused_before_anything_is_read(tmp_path):
    path = tmp_path / "t.safetensors"
    path.write_bytes(b"mine")
    checkpoint = with_failing(AssertionError("values were read"), 0)
    with pytest.raises(TargetExistsError, match="exists"):
        converter.save(checkpoint, path)
    assert everything(tmp_path) == {"t.safetensors": b"mine"}
