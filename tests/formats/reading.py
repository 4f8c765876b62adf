"""What every format that is only read must do: the reading half of `conformance`.

class TestMyFormat(ReadingConformance):
    format = "my-format"
    target = "model.mine"

    def make(self, path, arrays): ...          # writes a file by hand, not by the library
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conformance import (
    Array,
    Arrays,
    Conformance,
    CountingSystem,
    check_files,
    content,
    differences,
    make,
    read,
    same,
)

from converter import formats
from converter.errors import ConverterError, SourceError, TargetError
from converter.tensors import TensorSpec

SMALL = {"w": ("float32", (5, 3)), "b": ("int64", (4,)), "n": ("float32", ())}
SECONDS, NBYTES = 2.0, 256 << 20  # that a hostile file may take


def small() -> Arrays:
    return {name: make(*facts) for name, facts in SMALL.items()}


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    digits = [value >> shift & 0x7F for shift in range(0, 70, 7)]
    while len(digits) > 1 and digits[-1] == 0:
        digits.pop()
    return bytes([*(digit | 0x80 for digit in digits[:-1]), digits[-1]])


def message(number: int, content: bytes | str) -> bytes:
    data = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(data)) + data


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def attack(path: Path, match: str) -> None:
    """Refused by a child within the limits, and for the reason that is expected."""
    code = (
        "import resource, sys, time; from pathlib import Path; import converter\n"
        "from converter.errors import ConverterError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "start = time.process_time()\n"
        "try:\n"
        "    with converter.open(Path(sys.argv[1])) as found:\n"
        "        for tensor in found.values(): tensor.numpy()\n"
        "except ConverterError as error:\n"
        "    print(error)\n"
        "else:\n"
        "    sys.exit('it was read')\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(time.process_time() - start, (peak - before) << 10)\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    *said, figures = done.stdout.strip().splitlines()
    assert re.search(match, "\n".join(said)), said
    seconds, nbytes = map(float, figures.split())
    assert seconds <= SECONDS
    assert nbytes <= NBYTES


class ReadingConformance(Conformance):
    suffix = ""  # what the format puts after each name
    shortest = 0  # shorter files may be of another format
    prefixes = False  # a file that is cut between two tensors is a sound one

    cuts, flips = 150, 1200  # lengths, and changed bits, that are tried of each file

    def make(self, path: Path, arrays: Arrays) -> None:
        self.oracle_write(path, arrays)

    def read(self, path: Path) -> dict[str, Array]:
        found = read(path)
        assert all(name.endswith(self.suffix) for name in found)
        return {name.removesuffix(self.suffix): array for name, array in found.items()}

    def small(self) -> Arrays:
        return {n: a for n, a in small().items() if a.dtype.name in self.held().dtypes}

    def test_every_shape(self, dtype: str, tmp_path: Path) -> None:
        arrays = self.of_dtype(dtype)
        self.make(tmp_path / self.target, arrays)
        assert differences(self.read(tmp_path / self.target), arrays) == []

    def test_any_range(self, dtype: str, tmp_path: Path) -> None:
        array = make(dtype, (7, 12))
        self.make(tmp_path / self.target, {"t": array})
        with formats.open_checkpoint(tmp_path / self.target) as checkpoint:
            view = checkpoint["t" + self.suffix].view
            for start, stop in ((0, 1), (1, 30), (33, 84), (5, 5), (83, 84)):
                part = view.reshape((84,)).take(0, start, stop).numpy()
                assert same(part, array.reshape(-1)[start:stop])
            assert same(view.transpose((1, 0)).numpy(), np.ascontiguousarray(array.T))

    def test_names(self, tmp_path: Path) -> None:
        arrays = {name: make("float32", (2,), name) for name in self.names}
        self.make(tmp_path / self.target, arrays)
        found = self.read(tmp_path / self.target)
        assert differences(found, arrays) == []
        assert list(found) == list(arrays)

    @pytest.mark.parametrize("name", ["nul\0", "line\nfeed", "x" * 5000])
    def test_hostile_names(self, name: str, tmp_path: Path) -> None:
        self.make(tmp_path / self.target, {name: make("float32", (2,))})
        with pytest.raises(ConverterError, match=r"name|too long"):
            formats.open_checkpoint(tmp_path / self.target)

    def test_it_says_what_it_is(self, tmp_path: Path) -> None:
        path = tmp_path / self.target
        self.make(path, self.small())
        assert formats.recognise(path).name == self.format
        with formats.open_checkpoint(path) as checkpoint:
            assert (checkpoint.format, checkpoint.path) == (self.format, path)
            assert {n: str(s) for n, s in checkpoint.specs.items()} == {
                n + self.suffix: str(TensorSpec(a.shape, a.dtype)) for n, a in self.small().items()
            }

    def test_it_knows_its_files(self, tmp_path: Path, counted: CountingSystem) -> None:
        self.make(tmp_path / self.target, self.small())
        check_files(tmp_path / self.target, tmp_path, counted)

    def test_extents_are_the_bytes(self, tmp_path: Path) -> None:
        self.make(tmp_path / self.target, self.small())
        with formats.open_checkpoint(tmp_path / self.target) as checkpoint:
            for name, tensor in checkpoint.items():
                if tensor.extent is not None:
                    path, offset, nbytes = tensor.extent
                    assert (
                        path.read_bytes()[offset : offset + nbytes]
                        == self.small()[name.removesuffix(self.suffix)].tobytes()
                    )

    def test_opening_reads_headers_only(self, tmp_path: Path, counted: CountingSystem) -> None:
        array = make("float32", (2000, 1000))
        self.make(tmp_path / self.target, {"t": array, "u": array})
        counted.nbytes = 0
        with formats.open_checkpoint(tmp_path / self.target) as checkpoint:
            assert counted.nbytes < 200_000
            view = checkpoint["t" + self.suffix].view
            if self.checksums:
                view.take(0, 0, 1).numpy()  # all of it is verified now, and only now
            counted.nbytes = 0
            assert same(view.take(0, 10, 30).numpy(), array[10:30])
            assert counted.nbytes <= 20 * 1000 * 4

    def test_no_descriptor_is_left_open(self, tmp_path: Path) -> None:
        before = len(list(Path("/proc/self/fd").iterdir()))
        self.make(tmp_path / self.target, self.small())
        first = formats.open_checkpoint(tmp_path / self.target)
        second = formats.open_checkpoint(tmp_path / self.target)
        first.close()
        first.close()
        assert same(second["w" + self.suffix].numpy(), self.small()["w"])
        second.close()
        assert len(list(Path("/proc/self/fd").iterdir())) == before
        with pytest.raises(SourceError, match=r"closed|reading failed"):
            second["w" + self.suffix].view.take(0, 1, 2).numpy()

    def damaged(self, folder: Path, change: Callable[[bytes], Iterator[bytes]]) -> Iterator[str]:
        """Read after each change of each file: "error", "same", "fewer" or "other"."""
        expected = self.small()
        self.make(folder / self.target, expected)
        before = len(list(Path("/proc/self/fd").iterdir()))
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            data = path.read_bytes()
            for changed in change(data):
                path.write_bytes(changed)
                started = time.process_time()
                try:
                    found = self.read(folder / self.target)
                except ConverterError:
                    yield "error"
                else:
                    wrong = differences(found, expected)
                    fewer = all(n not in found for n in wrong)
                    yield ("fewer" if fewer else "other") if wrong else "same"
                assert time.process_time() - started < SECONDS
            path.write_bytes(data)
        assert len(list(Path("/proc/self/fd").iterdir())) == before

    def test_truncation_is_an_error(self, tmp_path: Path) -> None:
        def cuts(data: bytes) -> Iterator[bytes]:
            ends = range(min(20, self.cuts))
            step = max(1, len(data) // self.cuts)
            lengths = {*range(0, len(data), step), *ends, *(len(data) - 1 - n for n in ends)}
            yield from (data[:n] for n in sorted(lengths) if self.shortest <= n < len(data))

        allowed = {"error", "fewer"} if self.prefixes else {"error"}
        assert set(self.damaged(tmp_path, cuts)) <= allowed

    def test_a_flipped_bit_is_an_error_of_ours_or_harmless(self, tmp_path: Path) -> None:
        def flips(data: bytes) -> Iterator[bytes]:
            bits = 8 * len(data)
            for bit in range(0, bits, max(1, bits // self.flips)):
                changed = bytearray(data)
                changed[bit // 8] ^= 1 << bit % 8
                yield bytes(changed)

        assert "error" in set(self.damaged(tmp_path, flips))

    def test_it_is_not_written(self, tmp_path: Path) -> None:
        row = self.row
        for act in (
            lambda: formats.create(tmp_path / "x", row, {}),
            *(lambda s=s: formats.for_target(tmp_path / f"x{s}") for s in row.only_read),
        ):
            with pytest.raises(TargetError, match=r"is only read, not written"):
                act()
        assert "x" not in content(tmp_path)
