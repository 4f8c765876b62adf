"""What every format must do.  A format's tests are a subclass of `FormatConformance`.

    class TestMyFormat(FormatConformance):
        format = "my-format"                       # its name in `formats.FORMATS`
        target = "model.mine"
        checksums = True                           # every flipped bit of a file is noticed

What the format holds is declared in `dtypes.py`.  The library that it belongs to is a function of
`witnesses.py`, or is asked in the process of the tests:

        def oracle_read(self, path): ...           # names to arrays
        def oracle_write(self, path, arrays): ...

A format that is only read subclasses `ReadingConformance` of `reading.py`.

Values are random bytes, compared bit by bit: NaNs with payloads and negative zeros included.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from converter import files, formats
from converter.errors import (
    ConverterError,
    SourceError,
    TargetError,
    TargetExistsError,
    UnrepresentableError,
    UnsupportedError,
)
from converter.layout import View
from converter.tensors import STRING, TensorSpec, dtype_of
from tests.formats.dtypes import ALL_DTYPES, HELD, Held
from tests.formats.witnesses import witness

Array = NDArray[Any]
Arrays = Mapping[str, Array]

SHAPES = ((), (0,), (0, 3), (2, 0, 4), (1,), (7,), (8,), (2, 3), (3, 5, 7), (2, 1, 3, 4), (513,))
NAMES = (
    "a",
    "A",
    "block/conv_1/weights",
    "features.0.weight",
    "../../escape",
    "/etc/passwd",
    "with space, comma; and 'quotes' \"\\",
    "{b}[0]*",
    "größe/重み/🧱",
    "x" * 300,
    "constructor",
    "0",
)
PART_BITS = {"int4": 4, "uint4": 4, "int2": 2, "uint2": 2, "float4_e2m1fn": 4}
PART_BITS |= {"float6_e2m3fn": 6, "float6_e3m2fn": 6}
SMALL = {"w": ("float32", (5, 3)), "b": ("int64", (4,)), "n": ("float32", ())}


def make(dtype: str, shape: tuple[int, ...], seed: object = 0) -> Array:
    """An array of any bits that are a value of the dtype."""
    rng = np.random.default_rng(zlib.crc32(repr((dtype, shape, seed)).encode()))
    count = int(np.prod(shape))
    if dtype == "string":
        strings = np.empty(count, object)
        strings[:] = [rng.bytes(n) for n in rng.integers(0, 300, count)]
        return strings.reshape(shape)
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(np.bool_)
    kind = dtype_of(dtype)
    raw = np.frombuffer(rng.bytes(count * kind.itemsize), np.uint8)
    if dtype in PART_BITS:
        raw = raw % (1 << PART_BITS[dtype])
    return raw.view(kind).reshape(shape)


def same(found: Array, expected: Array) -> bool:
    """Equal in dtype, shape and every bit."""
    if (found.dtype, found.shape) != (expected.dtype, expected.shape):
        return False
    if found.dtype == STRING:
        return found.tolist() == expected.tolist()
    return found.tobytes() == expected.tobytes()


def differences(found: Arrays, expected: Arrays) -> list[str]:
    """Names that are not in both, or not the same."""
    return [
        name
        for name in sorted(found.keys() | expected.keys())
        if name not in found or name not in expected or not same(found[name], expected[name])
    ]


def pieces(view: View, limit: int) -> Iterator[Array]:
    """A view's elements as the engine passes them: in a buffer that is used again."""
    buffer = np.empty(limit, view.dtype)
    for start in range(0, view.size, limit):
        part = buffer[: min(limit, view.size - start)]
        view.read(start, part)
        yield part
    if buffer.dtype != STRING:
        buffer.view(np.uint8)[...] = 0xA5


def read(path: Path) -> dict[str, Array]:
    """Everything in a checkpoint, and its files closed."""
    with formats.open_checkpoint(path) as checkpoint:
        return {name: tensor.numpy().copy() for name, tensor in checkpoint.items()}


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class CountingSystem(files.System):
    """Counts the bytes that are read, and notes the files that are opened."""

    nbytes = 0

    def __init__(self) -> None:
        self.opened: set[Path] = set()

    def open(self, path: Path, flags: int) -> int:
        fd = super().open(path, flags)
        self.opened.add(path)
        return fd

    def read(self, fd: int, buffer: memoryview, offset: int) -> int:
        count = super().read(fd, buffer, offset)
        self.nbytes += count
        return count


def check_files(path: Path, folder: Path, system: CountingSystem) -> None:
    """A checkpoint knows all files that it is read from, which here are all that there are."""
    system.opened.clear()
    with formats.open_checkpoint(path) as checkpoint:
        for tensor in checkpoint.values():
            tensor.numpy()
        known = set(checkpoint.files)
    assert len(known) == len(checkpoint.files)
    assert {each for each in system.opened if each.is_relative_to(folder)} <= known
    assert known == {each for each in folder.rglob("*") if each.is_file()}


class Conformance:
    """What formats that are written and formats that are only read have in common."""

    format: str
    target: str
    checksums = False
    names: tuple[str, ...] = NAMES
    numbered = "t{}"  # a name, where the library has its own

    @classmethod
    def held(cls) -> Held:
        return HELD[cls.format]

    @pytest.fixture
    def counted(self, monkeypatch: pytest.MonkeyPatch) -> CountingSystem:
        system = CountingSystem()
        monkeypatch.setattr(files, "system", system)
        return system

    @property
    def row(self) -> formats.Format:
        return formats.named(self.format)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        dtypes = metafunc.cls.held().dtypes
        if "dtype" in metafunc.fixturenames:
            metafunc.parametrize("dtype", dtypes)
        if "foreign" in metafunc.fixturenames:
            metafunc.parametrize("foreign", [d for d in ALL_DTYPES if d not in dtypes])

    def holds(self, name: str, dtype: str, shape: tuple[int, ...] = (2,)) -> bool:
        return True

    def of_dtype(self, dtype: str) -> dict[str, Array]:
        arrays = {self.numbered.format(i): make(dtype, shape) for i, shape in enumerate(SHAPES)}
        held = {n: a for n, a in arrays.items() if self.holds(n, dtype, a.shape)}
        assert len(held) >= 3
        return held

    def read(self, path: Path) -> dict[str, Array]:
        return read(path)

    # ── the library that the format belongs to ───────────────────────────────────────────────

    def oracle_read(self, path: Path) -> dict[str, Array]:
        return witness(self.format).read(path)

    def oracle_write(self, path: Path, arrays: Arrays) -> None:
        witness(self.format).write(path, arrays)

    def library_holds(self, dtype: str, shape: tuple[int, ...]) -> bool:
        """Whether the library can be asked for a dtype of its own in this shape."""
        return True

    def of_library(self, dtype: str) -> dict[str, Array]:
        arrays = self.of_dtype(dtype)
        return {n: a for n, a in arrays.items() if self.library_holds(dtype, a.shape)}

    @pytest.mark.oracle
    def test_it_reads_the_oracle(self, dtype: str, tmp_path: Path) -> None:
        arrays = self.of_library(dtype)
        self.oracle_write(tmp_path / self.target, arrays)
        assert differences(self.read(tmp_path / self.target), arrays) == []

    @pytest.mark.oracle
    def test_what_is_not_held(self, foreign: str, tmp_path: Path) -> None:
        """The library does not bring it back either, or it is refused as is declared."""
        path = tmp_path / self.target
        arrays = {self.numbered.format(0): make(foreign, (2, 4))}
        try:
            self.oracle_write(path, arrays)
            back = differences(self.oracle_read(path), arrays) == []
        except Exception:  # noqa: BLE001 - each library has its own
            back = False
        assert back == (foreign in self.held().refused)
        if back:
            with pytest.raises(UnsupportedError, match=self.held().refused[foreign]):
                opened(path)


def opened(path: Path) -> None:
    """Open a checkpoint; what it lists as unsupported is an error."""
    with formats.open_checkpoint(path) as checkpoint:
        for name, reason in checkpoint.unsupported.items():
            raise UnsupportedError(reason, path=path, tensor=name)


class FormatConformance(Conformance):
    metadata: Mapping[str, str] | None = None  # what is always there; None: nothing can be kept

    # ── helpers ──────────────────────────────────────────────────────────────────────────────

    def holds(self, name: str, dtype: str, shape: tuple[int, ...] = (2,)) -> bool:
        return not self.row.load().problem(name, TensorSpec(shape, dtype_of(dtype)))

    def create(self, path: Path, arrays: Mapping[str, Array | View], **options: Any) -> Any:
        specs = {n: TensorSpec(tuple(a.shape), a.dtype) for n, a in arrays.items()}
        return formats.create(path, self.row, specs, **options)

    def write(
        self,
        path: Path,
        arrays: Mapping[str, Array | View],
        *,
        limit: int = 1000,
        order: Callable[[list[str]], Iterable[str]] = list,
        **options: Any,
    ) -> Any:
        sink = self.create(path, arrays, **options)
        try:
            for name in order(list(sink.order)):
                array = arrays[name]
                view = array if isinstance(array, View) else View.of(array)
                sink.write(name, pieces(view, limit))
            sink.commit()
        except BaseException:
            sink.abort()
            raise
        return sink

    def small(self, seed: object = 0) -> dict[str, Array]:
        return {name: make(*facts, seed) for name, facts in SMALL.items()}

    # ── values ───────────────────────────────────────────────────────────────────────────────

    @pytest.mark.oracle
    def test_the_oracle_reads_it(self, dtype: str, tmp_path: Path) -> None:
        arrays = self.of_library(dtype)
        self.write(tmp_path / self.target, arrays)
        assert differences(self.oracle_read(tmp_path / self.target), arrays) == []

    def test_round_trip(self, dtype: str, tmp_path: Path) -> None:
        arrays = self.of_dtype(dtype)
        self.write(tmp_path / self.target, arrays)
        assert differences(read(tmp_path / self.target), arrays) == []

    @pytest.mark.parametrize("limit", [1, 3, 64])
    def test_pieces_may_end_anywhere(self, dtype: str, limit: int, tmp_path: Path) -> None:
        arrays = {n: a for n, a in self.of_dtype(dtype).items() if a.size < 200}
        self.write(tmp_path / self.target, arrays, limit=limit)
        assert differences(read(tmp_path / self.target), arrays) == []

    def test_views_that_are_not_contiguous(self, tmp_path: Path) -> None:
        array = make("float32", (6, 5, 4))
        view = View.of(array)
        views = {
            "transposed": view.transpose((2, 0, 1)),
            "reversed": view.flip(1),
            "part": view.take(0, 1, 4).take(2, 1, 3),
            "fortran": View.of(np.asfortranarray(array)),
            "strided": View.of(array[::2, :, ::-1]),
            "broadcast": View.of(np.broadcast_to(array[:1], (3, 5, 4))),
        }
        expected = {
            "transposed": array.transpose(2, 0, 1),
            "reversed": array[:, ::-1],
            "part": array[1:4, :, 1:3],
            "fortran": array,
            "strided": array[::2, :, ::-1],
            "broadcast": np.broadcast_to(array[:1], (3, 5, 4)),
        }
        self.write(tmp_path / self.target, views, limit=7)
        assert differences(read(tmp_path / self.target), expected) == []

    def test_elements_that_are_written_at_their_place(self, dtype: str, tmp_path: Path) -> None:
        arrays = self.of_dtype(dtype)
        self.write(tmp_path / self.target, arrays)
        expected = content(tmp_path)
        sink = self.create(tmp_path / self.target, arrays, overwrite=True)
        for name in sink.order:
            flat, place = arrays[name].reshape(-1), None
            if flat.dtype != STRING:
                place = sink.place(name)
            if place is None:
                sink.write(name, [flat])
                continue
            half = flat.size // 2
            place.file.write(place.offset + half * flat.itemsize, flat[half:])
            place.file.write(place.offset, flat[:half])
            wanted = place.checksum or (lambda *_: 0)
            sink.placed(name, wanted(flat, place.initial))
        sink.commit()
        assert content(tmp_path) == expected

    def test_no_tensors_at_all(self, tmp_path: Path) -> None:
        self.write(tmp_path / self.target, {})
        assert read(tmp_path / self.target) == {}

    def test_names(self, tmp_path: Path) -> None:
        arrays = {name: make("float32", (2,), name) for name in self.names}
        self.write(tmp_path / self.target, arrays)
        assert differences(read(tmp_path / self.target), arrays) == []

    @pytest.mark.parametrize("name", ["", "nul\0", "\ud800", "x" * 70_000])
    def test_a_name_is_kept_or_refused(self, name: str, tmp_path: Path) -> None:
        arrays = {name: make("float32", (2,))}
        if self.holds(name, "float32"):
            self.write(tmp_path / self.target, arrays)
            assert differences(read(tmp_path / self.target), arrays) == []
        else:
            with pytest.raises(UnrepresentableError, match="name"):
                self.create(tmp_path / self.target, arrays)
            assert content(tmp_path) == {}

    def test_metadata(self, tmp_path: Path) -> None:
        metadata = {"contract": '{"channels": "RGB"}', "größe": "x\ny"}
        self.write(tmp_path / self.target, self.small(), metadata=metadata)
        with formats.open_checkpoint(tmp_path / self.target) as checkpoint:
            found = dict(checkpoint.metadata)
        assert found == ({} if self.metadata is None else {**self.metadata, **metadata})

    def test_foreign_dtypes_are_refused_before_a_file_is_made(
        self, foreign: str, tmp_path: Path
    ) -> None:
        assert not self.holds("t", foreign)
        arrays = {**self.small(), "t": make(foreign, (2,))}
        with pytest.raises(UnrepresentableError, match=r"(?s)tensor 't'"):
            self.create(tmp_path / self.target, arrays)
        assert content(tmp_path) == {}

    def test_the_checkpoint_says_what_it_is(self, tmp_path: Path) -> None:
        self.write(tmp_path / self.target, self.small())
        with formats.open_checkpoint(tmp_path / self.target) as checkpoint:
            assert checkpoint.format == self.format
            assert checkpoint.path == tmp_path / self.target
            assert not checkpoint.unsupported
            assert {n: str(spec) for n, spec in checkpoint.specs.items()} == {
                name: f"{dtype} {list(shape)}" for name, (dtype, shape) in SMALL.items()
            }

    def test_extents_are_the_bytes(self, tmp_path: Path) -> None:
        arrays = self.small()
        self.write(tmp_path / self.target, arrays)
        with formats.open_checkpoint(tmp_path / self.target) as checkpoint:
            for name, tensor in checkpoint.items():
                if tensor.extent is not None:
                    path, offset, nbytes = tensor.extent
                    data = path.read_bytes()[offset : offset + nbytes]
                    assert data == arrays[name].tobytes()

    # ── reading no more than is needed ───────────────────────────────────────────────────────

    def test_it_knows_its_files(self, tmp_path: Path, counted: CountingSystem) -> None:
        arrays = {n: make("float32", (3, 5), n) for n in ("a", "b")}
        self.write(tmp_path / self.target, arrays)
        check_files(tmp_path / self.target, tmp_path, counted)

    def test_opening_reads_headers_only(self, tmp_path: Path, counted: CountingSystem) -> None:
        array = make("float32", (2000, 1000))
        self.write(tmp_path / self.target, {"t": array}, limit=100_000)
        counted.nbytes = 0
        with formats.open_checkpoint(tmp_path / self.target):
            # Every format that may be in a zip looks at 64 KB of both its ends.
            assert counted.nbytes < array.nbytes // 8

    def test_a_slice_reads_no_more(self, tmp_path: Path, counted: CountingSystem) -> None:
        array = make("float32", (1000, 500))
        self.write(tmp_path / self.target, {"t": array, "u": array})
        with formats.open_checkpoint(tmp_path / self.target) as checkpoint:
            view = checkpoint["t"].view
            view.take(0, 0, 1).numpy()  # a checksum over all of it is verified now, and only now
            counted.nbytes = 0
            assert same(view.take(0, 10, 30).numpy(), array[10:30])
            assert counted.nbytes <= 20 * 500 * 4

    def test_no_descriptor_is_left_open(self, tmp_path: Path) -> None:
        before = len(list(Path("/proc/self/fd").iterdir()))
        self.write(tmp_path / self.target, self.small())
        self.create(tmp_path / f"2{self.target}", self.small()).abort()
        first = formats.open_checkpoint(tmp_path / self.target)
        second = formats.open_checkpoint(tmp_path / self.target)
        first.close()
        first.close()
        assert same(second["w"].numpy(), self.small()["w"])
        second.close()
        assert len(list(Path("/proc/self/fd").iterdir())) == before
        with contextlib.suppress(SourceError):  # or it was in memory
            assert same(second["b"].numpy(), self.small()["b"])

    # ── writing all or nothing ───────────────────────────────────────────────────────────────

    def test_the_bytes_depend_on_the_tensors_only(self, tmp_path: Path) -> None:
        arrays = self.small()
        folders = [tmp_path / str(i) for i in range(3)]
        for folder, order, limit in zip(folders, (list, reversed, sorted), (1, 2, 9), strict=True):
            folder.mkdir()
            self.write(folder / self.target, arrays, order=order, limit=limit)
        assert content(folders[0]) == content(folders[1]) == content(folders[2])

    def test_only_its_files_are_there(self, tmp_path: Path) -> None:
        umask = os.umask(0o027)
        try:
            sink = self.write(tmp_path / self.target, self.small())
        finally:
            os.umask(umask)
        assert {path.stat().st_mode & 0o777 for path in sink.files} == {0o640}
        assert sorted(sink.files) == sorted(tmp_path.iterdir())
        sink.abort()
        assert sorted(sink.files) == sorted(tmp_path.iterdir())

    def test_order_has_every_name_once(self, tmp_path: Path) -> None:
        sink = self.create(tmp_path / self.target, self.small())
        assert sorted(sink.order) == sorted(SMALL)
        sink.abort()

    def test_a_target_that_exists_is_refused(self, tmp_path: Path) -> None:
        self.write(tmp_path / self.target, self.small())
        before = content(tmp_path)
        with pytest.raises(TargetExistsError, match="the target exists"):
            self.create(tmp_path / self.target, self.small())
        assert content(tmp_path) == before

    def test_overwriting_leaves_the_new_only(self, tmp_path: Path) -> None:
        (tmp_path / "fresh").mkdir()
        self.write(tmp_path / "fresh" / self.target, self.small(1))
        (tmp_path / "again").mkdir()
        for seed in (0, 2, 1):
            self.write(tmp_path / "again" / self.target, self.small(seed), overwrite=True)
        assert content(tmp_path / "again") == content(tmp_path / "fresh")

    @pytest.mark.parametrize(
        ("fault", "error"),
        [
            ("few", TargetError),
            ("many", TargetError),
            ("dtype", TargetError),
            ("raise", ZeroDivisionError),
            ("absent", TargetError),
        ],
    )
    def test_what_fails_leaves_the_old(
        self, fault: str, error: type[Exception], tmp_path: Path
    ) -> None:
        self.write(tmp_path / self.target, self.small())
        before = content(tmp_path)
        sink = self.create(tmp_path / self.target, self.small(1), overwrite=True)
        flat = self.small(1)["w"].reshape(-1)
        wrong = {
            "few": [flat[:-1]],
            "many": [flat, flat[:1]],
            "dtype": [flat.view(np.int32)],
            "raise": (flat[: 1 // n] for n in (1, 0)),
        }

        def write_all() -> None:
            for name in sink.order:
                if name != "w":
                    sink.write(name, [self.small(1)[name].reshape(-1)])
                elif fault in wrong:
                    sink.write(name, wrong[fault])
            sink.commit()

        with pytest.raises(error, match=r"zero|dtype|tensor|piece"):
            write_all()
        sink.abort()
        assert content(tmp_path) == before

    @pytest.mark.parametrize("count", [0, 3, 5])
    def test_elements_are_counted(self, dtype: str, count: int, tmp_path: Path) -> None:
        sink = self.create(tmp_path / self.target, {"t": make(dtype, (4,))})

        def write_all() -> None:
            sink.write("t", [make(dtype, (count,))])
            sink.commit()

        with pytest.raises(TargetError, match=r"tensor|piece"):
            write_all()
        sink.abort()
        assert content(tmp_path) == {}

    def test_aborting_leaves_the_old(self, tmp_path: Path) -> None:
        self.write(tmp_path / self.target, self.small())
        before = content(tmp_path)
        sink = self.create(tmp_path / self.target, self.small(1), overwrite=True)
        sink.write(sink.order[0], pieces(View.of(self.small(1)[sink.order[0]]), 2))
        sink.abort()
        sink.abort()
        assert content(tmp_path) == before

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(TargetError, match=r"cannot be created: No such file"):
            self.create(tmp_path / "absent" / self.target, self.small())
        assert content(tmp_path) == {}

    # ── damage ───────────────────────────────────────────────────────────────────────────────

    def damaged(self, folder: Path, change: Callable[[bytes], Iterator[bytes]]) -> Iterator[str]:
        """Read after each change of each file: "error", "same" or what is wrong."""
        expected = self.small()
        sink = self.write(folder / self.target, expected)
        for path in sink.files:
            data = path.read_bytes()
            for number, changed in enumerate(change(data)):
                path.write_bytes(changed)
                try:
                    found = read(folder / self.target)
                except ConverterError:
                    yield "error"
                else:
                    wrong = differences(found, expected)
                    yield f"{path.name}, change {number}: {wrong}" if wrong else "same"
            path.write_bytes(data)

    def test_truncation_is_an_error(self, tmp_path: Path) -> None:
        def cuts(data: bytes) -> Iterator[bytes]:
            step = max(1, len(data) // 150)
            lengths = {*range(0, len(data), step), *range(20), *range(len(data) - 20, len(data))}
            yield from (data[:n] for n in sorted(lengths) if 0 <= n < len(data))

        assert set(self.damaged(tmp_path, cuts)) == {"error"}

    def test_a_flipped_bit_is_noticed_or_harmless(self, tmp_path: Path) -> None:
        def flips(data: bytes) -> Iterator[bytes]:
            bits = 8 * len(data)
            for bit in range(0, bits, max(1, bits // 400)):
                changed = bytearray(data)
                changed[bit // 8] ^= 1 << bit % 8
                yield bytes(changed)

        outcomes = set(self.damaged(tmp_path, flips))
        assert "error" in outcomes
        if self.checksums:
            assert outcomes <= {"error", "same"}
