"""Flipped bits and cut files, in what is read and in what was written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from converter.cli import run
from converter.errors import ConverterError
from tests.cli.checkpoints import equal, read
from tests.faults import Figure, chance, folder, silent
from tests.faults.writers import WRITERS, Writer, convert, prepare, wanted

CHECKSUMMED = ("m.pt", "m.v1", "m.ckpt", "m.npz", "m.bin.index.json")
FLIPS = 1000  # of each of these
OUTPUTS = 1000  # of all writers together
CUTS = 200  # of each of eight formats


def flips(scale: float, only: Sequence[str]) -> Iterator[Figure]:
    """Inputs with checksums: no flipped bit gives other values without an error."""
    for writer in _named(CHECKSUMMED, only):
        with folder() as place:
            ready, paths = _written(place, writer)
            figure = Figure(f"flipped bits, read from {writer.target}")
            errors = 0
            for path, bit in _bits(paths, int(FLIPS * scale), writer):
                with _changed(path, bit):
                    found = ready.judge(place)
                errors += found.startswith("torn")
                wrong = "" if found == "new" or found.startswith("torn") else found
                figure.check(wrong and f"bit {bit} of {path.name}: {found}")
            figure.facts = f"{errors} errors, the rest harmless"
            yield figure


def outputs(scale: float, only: Sequence[str]) -> Iterator[Figure]:
    """What was written: `verify` without the source, by the report, finds every flipped bit."""
    writers = [writer for writer in WRITERS if not only or writer.name in only]
    for number, writer in enumerate(writers):
        share = int(OUTPUTS * scale) * (number + 1) // len(writers)
        share -= int(OUTPUTS * scale) * number // len(writers)
        with folder() as place:
            ready, paths = _written(place, writer, "--report", "report.json")
            target = str(place / "out" / ready.target)
            verify = ["verify", target, "--report", str(place / "report.json")]
            with silent() as said:
                assert run(verify) == 0, said.read_text()
            figure = Figure(f"flipped bits, found by verify in {writer.target}")
            for path, bit in _bits(paths, share, writer):
                with _changed(path, bit), silent() as said:
                    code = run(verify)
                    text = said.read_text()
                found = code in (1, 3, 4) and "internal error" not in text
                figure.check("" if found else f"bit {bit} of {path.name}: exit code {code}")
            yield figure


def cuts(scale: float, only: Sequence[str]) -> Iterator[Figure]:
    """Truncated inputs: refused, with the file, the offset, what was expected and found."""
    targets = [writer.target for writer in WRITERS if writer.target != "m.bin.index.json"]
    targets.remove("m.safetensors.index.json")
    for writer in _named(targets, only):
        with folder() as place:
            ready, paths = _written(place, writer)
            figure = Figure(f"truncated, {writer.target}")
            moments = chance(writer, "cuts")
            for number in range(max(8, int(CUTS * scale))):
                path = paths[number % len(paths)]
                data = path.read_bytes()
                length = _length(number // len(paths), len(data), moments)
                os.truncate(path, length)
                figure.check(_refusal(place / "out" / ready.target, length))
                path.write_bytes(data)
            yield figure


def _named(targets: Sequence[str], only: Sequence[str]) -> list[Writer]:
    writers = [writer for writer in WRITERS if writer.target in targets]
    return [writer for writer in writers if not only or writer.name in only]


def _written(place: Path, writer: Writer, *more: str) -> tuple[Writer, list[Path]]:
    ready = prepare(place, writer, 40)
    assert convert(place, ready.command("new", *more)) == 0
    assert equal(read(place / "out" / ready.target), wanted(place, "new"))
    return ready, sorted((place / "out").iterdir())


def _bits(paths: list[Path], count: int, writer: Writer) -> Iterator[tuple[Path, int]]:
    """Files and bits, the same ones in every run, in the proportion of their sizes."""
    moments = chance(writer)
    sizes = [path.stat().st_size for path in paths]
    for _ in range(count):
        at = moments.randrange(8 * sum(sizes))
        for path, size in zip(paths, sizes, strict=True):
            if at < 8 * size:
                yield path, at
                break
            at -= 8 * size


class _changed:  # noqa: N801 - a context manager that is a word
    """One bit is another one."""

    def __init__(self, path: Path, bit: int) -> None:
        self.path, self.bit = path, bit

    def __enter__(self) -> None:
        self.data = self.path.read_bytes()
        changed = bytearray(self.data)
        changed[self.bit // 8] ^= 1 << self.bit % 8
        self.path.write_bytes(changed)

    def __exit__(self, *exc: object) -> None:
        self.path.write_bytes(self.data)


def _length(number: int, size: int, moments: object) -> int:
    """Near either end at first, anywhere then."""
    ends = [0, 1, 7, 8, 9, 16, size - 1, size - 2, size - 8, size - 22, size - 48]
    return ends[number] if number < len(ends) else moments.randrange(size)


def _refusal(target: Path, length: int) -> str:
    """What is missing in the refusal of a file of that length."""
    try:
        read(target)
    except ConverterError as error:
        facts = {
            "file": error.path,
            "offset": error.offset is not None,
            "expected": error.expected,
            "found": error.found,
        }
        absent = [name for name, fact in facts.items() if not fact]
        return f"cut to {length}: no {', '.join(absent)}: {error}" if absent else ""
    return f"cut to {length}: it was read"
