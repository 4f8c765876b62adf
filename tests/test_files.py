"""Reading to the byte, and publishing through every fault, kill and power cut.

A publication's calls to the operating system are recorded; from the record follow the contents
that the disk may have when the process or the machine stops at any point, and each of them must
be the old checkpoint or the new one.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converter import files
from converter.errors import (
    ChecksumError,
    CorruptFileError,
    LimitError,
    NoSpaceError,
    NotFoundError,
    SourceError,
    TargetError,
    TargetExistsError,
)
from converter.files import Checksum, File, Interim, Publication, Region, StagedFile
from tests.faults.systems import Faulty, NoLinks, Recorder, Trickle, listing, restore

NEW, OLD = "new", "old"


def use(monkeypatch: pytest.MonkeyPatch, system: files.System) -> None:
    monkeypatch.setattr(files, "system", system)


# ── reading ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.write_bytes(bytes(range(256)) * 4)
    return path


def test_short_and_interrupted_reads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Trickle())
    assert File(path).read(3, 500) == path.read_bytes()[3:503]


@pytest.mark.parametrize(
    ("offset", "nbytes"), [(-1, 2), (0, 1025), (1024, 1), (0, -1), (1 << 70, 0)]
)
def test_a_read_outside_the_file(offset: int, nbytes: int, path: Path) -> None:
    with pytest.raises(CorruptFileError, match=r"(?s)points outside itself.*a file of 1024 bytes"):
        File(path).read(offset, nbytes)


def test_a_read_into_what_is_not_contiguous(path: Path) -> None:
    with pytest.raises(ValueError, match="not C-contiguous"):
        File(path).read_into(0, np.empty((4, 4), np.uint8)[:, ::2])


def test_what_is_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero", "."):
        with pytest.raises(NotFoundError, match="is not a regular file"):
            File(tmp_path / name)
    with pytest.raises(NotFoundError, match="cannot be opened: No such file"):
        File(tmp_path / "absent")


def test_a_read_that_fails(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = File(path)
    use(monkeypatch, Faulty(0, errno.EIO))
    with pytest.raises(SourceError, match=r"data: reading failed: .* \(byte offset 7\)"):
        file.read(7, 10)


def test_a_file_that_becomes_shorter(path: Path) -> None:
    file = File(path)
    os.truncate(path, 1000)
    with pytest.raises(CorruptFileError, match=r"(?s)became shorter.*byte offset 1000.*1000 bytes"):
        file.read(0, 1024)


def test_a_file_that_changes(path: Path) -> None:
    file = File(path)
    file.check_unchanged()
    with path.open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(SourceError, match=r"(?s)the file changed.*1024 bytes, last.*1025 bytes"):
        file.check_unchanged()
    with pytest.raises(SourceError, match="the file changed"):
        file.read(0, 4)
    file.close()
    file.close()


def checked(path: Path, offset: int, nbytes: int, flaw: int = 0) -> Checksum:
    data = path.read_bytes()[offset : offset + nbytes]
    return Checksum("crc-32", files.crc32, zlib.crc32(data) ^ flaw, offset, nbytes)


class Reads(files.System):
    """Where was read, and how much."""

    def __init__(self) -> None:
        self.log: list[tuple[int, int]] = []

    def read(self, fd: int, buffer: memoryview, offset: int) -> int:
        count = super().read(fd, buffer, offset)
        self.log.append((offset, count))
        return count


@pytest.mark.parametrize(
    ("start", "size", "log"),
    [
        (0, 100, [(8, 400)]),  # all of it: verified on the way
        (10, 5, [(8, 400), (48, 20)]),  # a part: all of it is verified before
        (0, 99, [(8, 400), (8, 396)]),
    ],
)
def test_a_checksum_is_verified_once(
    start: int, size: int, log: list[Any], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Reads()
    use(monkeypatch, reads)
    region = Region(File(path), 8, np.dtype("<u4"), 100, checksum=checked(path, 8, 400))
    out = np.empty(size, "<u4")
    region.read(start, out)
    assert reads.log == log
    assert out.tobytes() == path.read_bytes()[8 + 4 * start :][: 4 * size]
    reads.log.clear()
    region.read(3, out[:2])
    assert reads.log == [(20, 8)]


def test_a_checksum_over_more_than_the_elements(path: Path) -> None:
    region = Region(File(path), 8, np.dtype("u1"), 4, checksum=checked(path, 4, 20))
    out = np.empty(4, "u1")
    region.read(0, out)
    assert out.tolist() == [8, 9, 10, 11]


@pytest.mark.parametrize(("start", "size"), [(0, 100), (2, 3)])
def test_a_checksum_that_differs(start: int, size: int, path: Path) -> None:
    flawed = checked(path, 8, 400, flaw=1)
    region = Region(File(path), 8, np.dtype("<u4"), 100, tensor="t", checksum=flawed)
    for _ in range(2):
        with pytest.raises(ChecksumError, match=r"(?s)data: the crc-32 checksum.*'t'.*offset 8"):
            region.read(start, np.empty(size, "<u4"))


def test_a_long_region_is_verified_in_blocks(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(3 * files.BLOCK + 5)
    (tmp_path / "long").write_bytes(data)
    checksum = Checksum("crc32c", files.crc32c, files.crc32c(data), 0, len(data))
    region = Region(File(tmp_path / "long"), 0, np.dtype("u1"), len(data), checksum=checksum)
    out = np.empty(len(data), "u1")
    region.read(0, out)
    assert out.tobytes() == data


def test_rows_of_a_region(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Reads()
    use(monkeypatch, reads)
    region = Region(File(path), 8, np.dtype("<u4"), 100, checksum=checked(path, 8, 400))
    every = np.frombuffer(path.read_bytes()[8:408], "<u4")
    rows = np.empty((3, 5), "<u4")
    region.read_rows(2, rows, 30)
    assert rows.tolist() == [every[at : at + 5].tolist() for at in (2, 32, 62)]
    assert reads.log == [(8, 400), (16, 20), (136, 20), (256, 20)]  # verified, once, before
    with pytest.raises(LimitError, match="read outside a tensor's elements"):
        region.read_rows(36, rows, 30)
    flawed = Region(File(path), 8, np.dtype("<u4"), 100, checksum=checked(path, 8, 400, flaw=1))
    with pytest.raises(ChecksumError, match="the crc-32 checksum does not match"):
        flawed.read_rows(2, rows, 30)


def test_rows_that_do_not_come_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, rows, data = File(path), np.empty((2, 8), np.uint8), path.read_bytes()
    with pytest.raises(CorruptFileError, match="truncated, or points outside itself"):
        file.read_rows(3, rows, len(data) - 10)
    use(monkeypatch, Trickle())
    file.read_rows(3, rows, 20)
    assert rows.tobytes() == data[3:11] + data[23:31]

    class Broken(files.System):
        def read(self, fd: int, buffer: memoryview, offset: int) -> int:
            raise OSError(errno.EIO, "broken")

    use(monkeypatch, Broken())
    with pytest.raises(SourceError, match=r"data: reading failed: .* \(byte offset 3\)"):
        file.read_rows(3, rows, 20)
    use(monkeypatch, files.System())
    os.truncate(path, 25)
    with pytest.raises(CorruptFileError, match=r"became shorter.*byte offset 25"):
        file.read_rows(3, rows, 20)


@pytest.mark.parametrize(("start", "size"), [(-1, 2), (99, 2), (0, 101)])
def test_elements_outside_a_region(start: int, size: int, path: Path) -> None:
    region = Region(File(path), 0, np.dtype("<u4"), 100)
    with pytest.raises(LimitError, match="read outside a tensor's elements"):
        region.read(start, np.empty(size, "<u4"))


@given(
    st.lists(st.binary(min_size=1, max_size=300), max_size=6),
    st.binary(max_size=9),
    st.sampled_from(["crc32", "crc32c"]),
    st.randoms(use_true_random=False),
)
def test_checksums_of_pieces_of_any_order_are_joined(
    runs: list[bytes], before: bytes, name: str, random: Random
) -> None:
    crc, added = getattr(files, name), []
    pieces = files.Pieces(crc, 7, crc(before))
    for run in runs:
        added.append((7 + sum(len(run) for _, run in added), run))
    random.shuffle(added)
    for offset, run in added:
        pieces.add(offset, len(run), pieces.of(offset, np.frombuffer(run, np.uint8)))
    whole = b"".join(runs)
    assert pieces.joined(len(whole)) == crc(before + whole)
    assert pieces.joined(len(whole) + 1) is None


def test_pieces_that_are_not_in_a_row_have_no_checksum() -> None:
    for offset in (0, 1, 3, 5):  # there twice, over the other, with a hole, and right
        pieces = files.Pieces(files.crc32, 0)
        pieces.add(0, 5, zlib.crc32(bytes(5)))
        pieces.add(offset, 5, zlib.crc32(bytes(5)))
        assert (pieces.joined(10) is not None) == (offset == 5)


def test_checksums_of_long_pieces_are_joined() -> None:
    mebibyte, head = bytes(range(256)) * 4096, zlib.crc32(b"head")
    pieces = files.Pieces(files.crc32, 0, head)
    first, crc = zlib.crc32(mebibyte, head), zlib.crc32(mebibyte)
    pieces.add(1 << 20, 1 << 20, crc, crc, pitch=2 << 20)
    pieces.add(0, 1 << 20, first, crc, crc, pitch=2 << 20)
    assert pieces.joined(5 << 20) == zlib.crc32(5 * mebibyte, head)


PIECES = [[(0, 100)], [(60, 40), (0, 30), (30, 30)], [(0, 50), (40, 60)], [(0, 50), (0, 50)]]


@pytest.mark.parametrize("pieces", PIECES)
@pytest.mark.parametrize("crc", [files.crc32, files.crc32c])
def test_pieces_of_any_order_are_verified_by_the_last(
    pieces: list[tuple[int, int]], crc: files.Crc, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = path.read_bytes()
    right = crc(data[3:412])
    reads = Reads()
    use(monkeypatch, reads)
    for expected in (right, right ^ 1):
        # The checksum covers 5 bytes before the elements and 4 after them, too.
        checksum = Checksum("part", crc, expected, 8, 400, crc(data[3:8]), data[408:412])
        region = Region(File(path), 8, np.dtype("<u4"), 100, tensor="t", checksum=checksum)
        storage = region.in_pieces()
        reads.log.clear()
        for start, size in pieces[:-1]:
            out = np.empty(size, "<u4")
            storage.read(start, out)
            assert out.tobytes() == data[8 + 4 * start :][: 4 * size]
        start, size = pieces[-1]
        if expected == right:
            storage.read(start, np.empty(size, "<u4"))
            if pieces in PIECES[:2]:  # nothing is read twice
                assert sorted(reads.log) == [(8 + 4 * at, 4 * n) for at, n in sorted(pieces)]
        else:
            with pytest.raises(ChecksumError, match=r"the part checksum does not match.*'t'"):
                storage.read(start, np.empty(size, "<u4"))


def test_pieces_of_what_has_no_such_checksum(path: Path) -> None:
    plain = Region(File(path), 8, np.dtype("<u4"), 100)
    assert plain.in_pieces() is plain
    wider = Region(File(path), 8, np.dtype("u1"), 4, checksum=checked(path, 4, 20))
    assert wider.in_pieces() is wider
    checksum = Checksum("crc32c", files.crc32c, 0, 0, 400)
    region = Region(File(path), 0, np.dtype("<u4"), 100, checksum=checksum)
    with pytest.raises(LimitError, match="read outside a tensor's elements"):
        region.in_pieces().read(99, np.empty(2, "<u4"))


def test_checksums_of_any_dtype() -> None:
    array = np.arange(100).astype(ml_dtypes.bfloat16)
    assert files.crc32(array) == zlib.crc32(array.tobytes())
    assert files.crc32c(b"123456789") == 0xE3069283  # the check value of the standard
    assert files.crc32c(array[50:], files.crc32c(array[:50])) == files.crc32c(array.tobytes())


def test_checksums_are_the_same_without_the_extra_that_makes_them_fast() -> None:
    script = """
import sys
sys.modules["isal"] = None
from converter.files import crc32
print(crc32(b"6789", crc32(b"12345")) == 0xCBF43926, crc32.__globals__["_crc32"].__module__)
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert found.stdout.split() == [b"True", b"zlib"]


# ── a checkpoint to publish ──────────────────────────────────────────────────────────────────
#
# Data files hold a tag; the marker lists their names and checksums.


class Shape(NamedTuple):
    """How a checkpoint is published: its number of data files, and whether links work."""

    data: int
    links: bool = True


def names(first: int, count: int, shards: int) -> list[str]:
    return [f"m.data-{i}-of-{shards}" for i in range(first, first + count)]


def data_of(tag: str, number: int) -> bytes:
    return f"{tag}:{number}:".encode() * 10


def marker_of(tag: str, paths: list[str]) -> bytes:
    return json.dumps(
        {p: zlib.crc32(data_of(tag, i)) for i, p in enumerate(paths)} | {"": tag}
    ).encode()


def publish(  # noqa: PLR0913
    folder: Path,
    tag: str,
    count: int,
    *,
    overwrite: bool = True,
    known: bool = False,
    nbytes: int = 0,
) -> list[Path]:
    """Publish a checkpoint of `count` data files as two writes each.

    Left over is then all that looks like data, or what the old marker names, if that is `known`.
    """
    paths = [folder / name for name in names(0, count, count)]
    publication = Publication([*paths, folder / "m.index"], overwrite=overwrite, nbytes=nbytes)
    old = files_of(folder) if known else []
    try:
        for number, staged in enumerate(publication.files[:-1]):
            data = data_of(tag, number)
            staged.write(5, data[5:])
            staged.write(0, data[:5])
        publication.files[-1].append(marker_of(tag, [path.name for path in paths]))

        def interim(attempt: int) -> Interim:
            found = names(attempt, count, count + attempt)
            return Interim([folder / name for name in found], marker_of(tag, found))

        return publication.commit(interim=interim, obsolete=lambda: old or folder.glob("m.data-*"))
    finally:
        publication.abort()


def files_of(folder: Path) -> list[Path]:
    """The data files of the checkpoint that is there."""
    marker = folder / "m.index"
    return (
        [folder / name for name in json.loads(marker.read_text()) if name]
        if marker.exists()
        else []
    )


def judge(disk: dict[str, bytes]) -> str:
    """The tag of the checkpoint there, "absent", or "torn"."""
    if "m.index" not in disk:
        return "absent"
    try:
        marker = json.loads(disk["m.index"])
    except ValueError:
        return "torn"
    tag = marker.pop("")
    sound = all(zlib.crc32(disk.get(name, b"")) == crc for name, crc in marker.items())
    return str(tag) if sound else "torn"


def complete(tag: str, count: int) -> dict[str, bytes]:
    """The folder after a publication that nothing disturbed."""
    paths = names(0, count, count)
    disk = {name: data_of(tag, number) for number, name in enumerate(paths)}
    return {**disk, "m.index": marker_of(tag, paths)}


# ── stopping at any point ────────────────────────────────────────────────────────────────────


def crash(
    folder: Path, monkeypatch: pytest.MonkeyPatch, old: Shape | None, new: Shape, **options: Any
) -> Recorder:
    """The record of a publication over an older one, if there is one."""
    folder.mkdir()
    if old:
        with monkeypatch.context() as patch:
            use(patch, files.System() if old.links else NoLinks())
            publish(folder, OLD, old.data, overwrite=old.data > 0)
            publish(folder, OLD, old.data)  # without links, this one stays at interim names
    recorder = Recorder(folder, links=new.links)
    with monkeypatch.context() as patch:
        use(patch, recorder)
        publish(folder, NEW, new.data, **options)
    assert judge(listing(folder)) == NEW
    return recorder


CASES = [
    (old, Shape(data, links))
    for old in (None, Shape(0), Shape(1), Shape(2), Shape(3), Shape(1, links=False))
    for data in (0, 1, 2)
    for links in (True, False)
]


def test_any_stop_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = 0
    for number, (old, new) in enumerate(CASES):
        for overwrite in (True, False) if old is None else (True,):
            folder = tmp_path / f"{number}-{overwrite}"
            recorder = crash(folder, monkeypatch, old, new, overwrite=overwrite)
            before = OLD if old else "absent"
            for state in itertools.chain(recorder.kills(), recorder.power_cuts()):
                states += 1
                verdict = judge({name: data for name, (_, data) in state.items()})
                assert verdict in {before, NEW}, (old, new, overwrite, sorted(state))
            assert verdict == NEW  # the last one: it was reported as done, so it is durable
    assert states > 10_000


def test_the_judge_sees_what_a_careless_writer_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without fsync, or without interim names, the same enumeration finds torn states."""

    def careless(self: Publication, folder: int, _: object) -> list[Path]:
        self._place(folder, self.files)
        return [staged.target for staged in self.files]

    monkeypatch.setattr(Publication, "_detour", careless)
    recorder = crash(tmp_path / "rename", monkeypatch, Shape(1), Shape(1))
    kills = [judge({n: data for n, (_, data) in state.items()}) for state in recorder.kills()]
    assert "torn" in kills
    monkeypatch.setattr(StagedFile, "seal", lambda self: None)
    recorder = crash(tmp_path / "sync", monkeypatch, None, Shape(0))
    cuts = [judge({n: data for n, (_, data) in state.items()}) for state in recorder.power_cuts()]
    assert "torn" in cuts


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize(("old", "known"), [(1, False), (2, False), (2, True)])
def test_the_next_run_leaves_nothing_else(
    old: int, known: bool, links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = crash(tmp_path / "first", monkeypatch, Shape(old), Shape(2, links))
    for number, state in enumerate(recorder.kills()):
        folder = tmp_path / str(number)
        restore(folder, state)
        publish(folder, "third", 2, known=known)
        assert listing(folder) == complete("third", 2)


def test_a_first_run_that_died_is_simply_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data without a marker are known to be ours by the temporary name that they still have."""
    recorder = crash(tmp_path / "first", monkeypatch, None, Shape(2), overwrite=False)
    for number, state in enumerate(recorder.kills()):
        folder = tmp_path / str(number)
        restore(folder, state)
        if "m.index" in state:
            with pytest.raises(TargetExistsError, match="the target exists"):
                publish(folder, "third", 2, overwrite=False)
            assert listing(folder) == complete(NEW, 2)
        else:
            publish(folder, "third", 2, overwrite=False)
            assert listing(folder) == complete("third", 2)


def test_data_of_somebody_else_without_a_marker_stay(tmp_path: Path) -> None:
    (tmp_path / names(0, 1, 2)[0]).write_bytes(b"being downloaded")
    with pytest.raises(TargetExistsError, match="the target exists"):
        publish(tmp_path, NEW, 2, overwrite=False)
    assert listing(tmp_path) == {names(0, 1, 2)[0]: b"being downloaded"}


@pytest.mark.slow
def test_killed_for_real(tmp_path: Path) -> None:
    """kill -9 at 200 random moments of a process that overwrites without end."""
    script = (
        "import sys; sys.path[:0] = sys.argv[2:]\nfrom pathlib import Path\nimport test_files\n"
    )
    script += "for i in range(10**9): test_files.publish(Path(sys.argv[1]), f'run-{i}', 2)"
    here = Path(__file__).parent
    rng = np.random.default_rng()
    publish(tmp_path, OLD, 2)
    for _ in range(200):
        child = subprocess.Popen([sys.executable, "-c", script, tmp_path, here, here.parent])
        deadline = time.monotonic() + 30
        while judge(listing_while_it_changes(tmp_path)) == OLD and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.05))
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert judge(listing(tmp_path)).startswith("run-")
        publish(tmp_path, OLD, 2)
        assert listing(tmp_path) == complete(OLD, 2)


def listing_while_it_changes(folder: Path) -> dict[str, bytes]:
    try:
        return listing(folder)
    except FileNotFoundError:
        return complete(OLD, 2)


# ── any call may fail ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EINTR], ids=errno.errorcode.get)
@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("links", [True, False])
def test_every_call_fails_once(
    number: int, overwrite: bool, links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = files.System if links else NoLinks
    system_class = type("System", (Faulty, base), {})
    seen = set()
    for k in itertools.count():
        folder = tmp_path / str(k)
        folder.mkdir()
        if overwrite:
            publish(folder, OLD, 1)
        before = listing(folder)
        system = system_class(k, number)
        with monkeypatch.context() as patch:
            use(patch, system)
            error = outcome(folder, overwrite=overwrite)
        seen.add(system.failed)
        if not system.failed:
            break
        check_fault(system, error, before, listing(folder))
    assert error is None
    assert k > 15
    assert seen >= {"open", "close", "write", "sync", "rename" if overwrite else "link"} - (
        set() if links else {"link"}
    )


def outcome(folder: Path, *, overwrite: bool) -> TargetError | None:
    try:
        publish(folder, NEW, 1, overwrite=overwrite, nbytes=100)
    except TargetError as error:
        return error
    return None


def check_fault(
    system: Faulty, error: TargetError | None, before: dict[str, bytes], after: dict[str, bytes]
) -> None:
    verdict = judge(after)
    if error is None:  # repeated, or without meaning: such as removing what is left over
        assert verdict == NEW
        assert system.number == errno.EINTR or system.failed in {"unlink", "close"}
        return
    assert isinstance(error, NoSpaceError) == (system.number == errno.ENOSPC)
    assert verdict in {judge(before), NEW}
    if verdict != NEW and system.failed != "unlink":
        assert after == before
    assert not [name for name in after if name.endswith(".tmp")]


def test_short_and_interrupted_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Trickle())
    publish(tmp_path, NEW, 2)
    assert listing(tmp_path) == complete(NEW, 2)


@pytest.mark.parametrize("trickle", [True, False])
def test_rows_and_what_was_written(
    trickle: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Trickle() if trickle else files.System())
    publication = Publication([tmp_path / "m"])
    staged = publication.files[0]
    rows = np.arange(12, dtype="<u2").reshape(3, 4)
    staged.write(0, bytes(30))
    staged.write_rows(2, rows, 10)
    again = np.empty((3, 5), "<u2")
    staged.read_into(0, again)
    assert again[:, 1:].tolist() == rows.tolist()
    assert staged.size == 30
    publication.commit()
    assert (tmp_path / "m").read_bytes() == again.tobytes()


def test_rows_of_two_pieces_are_not_written_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file takes one write at a time: threads that wait for each would only spin."""
    order = []

    class Slow(files.System):
        def write(self, fd: int, data: memoryview, offset: int) -> int:
            order.append(data[0])
            time.sleep(0.001)
            return super().write(fd, data, offset)

    publication = Publication([tmp_path / "m"])
    use(monkeypatch, Slow())
    pieces = [np.full((20, 3), number, np.uint8) for number in (1, 2, 3)]
    with ThreadPoolExecutor(3) as pool:
        for number, rows in enumerate(pieces):
            pool.submit(publication.files[0].write_rows, 3 * number, rows, 9)
    assert sorted(order) == [1] * 20 + [2] * 20 + [3] * 20
    assert sum(a != b for a, b in itertools.pairwise(order)) == 2
    publication.commit()
    assert (tmp_path / "m").read_bytes() == b"\1\1\1\2\2\2\3\3\3" * 20


def test_rows_and_rereading_that_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publication = Publication([tmp_path / "m"])
    staged = publication.files[0]
    staged.write(0, bytes(10))
    with pytest.raises(TargetError, match="what was written is not there"):
        staged.read_into(8, np.empty(4, np.uint8))

    class Broken(files.System):
        def read(self, fd: int, buffer: memoryview, offset: int) -> int:
            raise OSError(errno.EIO, "broken")

        def write(self, fd: int, data: memoryview, offset: int) -> int:
            raise OSError(errno.ENOSPC, "full")

    class Idle(files.System):
        def write(self, fd: int, data: memoryview, offset: int) -> int:
            return 0

    use(monkeypatch, Idle())
    with pytest.raises(TargetError, match="m: writing failed: no byte was taken"):
        staged.write(0, b"data")
    use(monkeypatch, Broken())
    with pytest.raises(TargetError, match="m: writing failed: broken"):
        staged.read_into(0, np.empty(4, np.uint8))
    with pytest.raises(NoSpaceError, match="m: writing failed: full"):
        staged.write_rows(0, np.zeros((2, 2), np.uint8), 3)
    publication.abort()


@pytest.mark.parametrize("old", [0, 1, 2, 3])
def test_a_signal_at_any_call(old: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """KeyboardInterrupt may come right after a call has done its work."""

    class Interrupted(Faulty):
        def counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
            def run(*arguments: Any) -> Any:
                self.left -= 1
                result = call(*arguments)
                if self.left == -1:
                    self.failed = name
                    raise KeyboardInterrupt
                return result

            return run

    for k in itertools.count():
        folder = tmp_path / str(k)
        folder.mkdir()
        publish(folder, OLD, old)
        system = Interrupted(k, 0)
        with monkeypatch.context() as patch:
            use(patch, system)
            try:
                publish(folder, NEW, 2)
            except KeyboardInterrupt:
                assert judge(listing(folder)) in {OLD, NEW}
        if not system.failed:
            break
        publish(folder, "third", 2)
        if system.failed != "open":  # the name of a file that was just made is not known yet
            assert listing(folder) == complete("third", 2)
    assert k > 15


def test_a_failed_sync_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoSync(files.System):
        calls = 0

        def sync(self, fd: int) -> None:
            self.calls += 1
            raise OSError(errno.EIO, "lost")

    system = NoSync()
    use(monkeypatch, system)
    publication = Publication([tmp_path / "m"])
    with pytest.raises(TargetError, match="m: writing failed: lost"):
        publication.commit()
    assert publication.commit() == []
    assert system.calls == 1
    assert listing(tmp_path) == {}


def test_a_folder_that_cannot_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoFolderSync(files.System):
        def sync(self, fd: int) -> None:
            if os.path.isdir(f"/proc/self/fd/{fd}"):  # noqa: PTH112 - a link to an open file
                raise OSError(errno.EINVAL, "not supported")

    use(monkeypatch, NoFolderSync())
    publish(tmp_path, NEW, 1)
    assert listing(tmp_path) == complete(NEW, 1)


# ── the target ───────────────────────────────────────────────────────────────────────────────


def test_space_is_asked_for_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(NoSpaceError, match=r"(?s)not enough space.*expected: \d{19} bytes.*found"):
        Publication([tmp_path / "m"], nbytes=1 << 60)
    assert listing(tmp_path) == {}


def test_a_disk_that_does_not_tell_its_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unknown(files.System):
        def free(self, folder: Path) -> int | None:
            return None

    use(monkeypatch, Unknown())
    Publication([tmp_path / "m"], nbytes=1 << 60).abort()
    assert listing(tmp_path) == {}


@pytest.mark.parametrize("links", [True, False])
def test_a_target_that_appears_meanwhile_stays(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, files.System() if links else NoLinks())
    for taken in range(3):
        folder = tmp_path / str(taken)
        folder.mkdir()
        targets = [folder / name for name in ("a", "b", "index")]
        publication = Publication(targets)
        targets[taken].write_bytes(b"somebody else's")
        with pytest.raises(TargetExistsError, match="the target exists"):
            publication.commit()
        assert listing(folder) == {targets[taken].name: b"somebody else's"}


def test_a_dangling_link_is_a_target(tmp_path: Path) -> None:
    (tmp_path / "m").symlink_to("nowhere")
    with pytest.raises(TargetExistsError, match="the target exists"):
        Publication([tmp_path / "m"])


def test_a_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    with pytest.raises(TargetExistsError, match="the target is a folder"):
        Publication([tmp_path / "m"], overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"blob")
    (tmp_path / "m").symlink_to("elsewhere")
    Publication([tmp_path / "m"], overwrite=True).commit()
    assert listing(tmp_path) == {"elsewhere": b"blob", "m": b""}
    assert not (tmp_path / "m").is_symlink()


@pytest.mark.parametrize(
    "name", ["x" * 255, "ä" * 127, b"\xff\xfe".decode(errors="surrogateescape")]
)
def test_any_name_a_file_may_have(name: str, tmp_path: Path) -> None:
    for overwrite in (False, True):
        publication = Publication([tmp_path / name], overwrite=overwrite)
        assert len(os.fsencode(publication.files[0].path.name)) <= 255
        publication.commit()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_mode_follows_the_umask(tmp_path: Path) -> None:
    umask = os.umask(0o007)
    try:
        Publication([tmp_path / "m"]).commit()
    finally:
        os.umask(umask)
    assert (tmp_path / "m").stat().st_mode & 0o777 == 0o660


# ── several at once ──────────────────────────────────────────────────────────────────────────


def die(publication: Publication) -> None:
    """What the end of a process does to its files."""
    for staged in publication.files:
        os.close(staged._fd)


def test_what_the_dead_left_is_removed_and_the_living_are_left_alone(tmp_path: Path) -> None:
    targets = [tmp_path / "m.data", tmp_path / "m.index"]
    living, dead, other = Publication(targets), Publication(targets), Publication([tmp_path / "n"])
    die(dead)
    die(other)
    (tmp_path / ".m.index.0123456789abcdef.tmp").write_bytes(b"also dead")
    (tmp_path / ".m.index.notes.tmp").write_bytes(b"not ours")
    Publication(targets).abort()
    expected = {s.path.name for s in (*living.files, *other.files)} | {".m.index.notes.tmp"}
    assert set(listing(tmp_path)) == expected
    living.commit()
    assert {"m.data", "m.index"} <= set(listing(tmp_path))


def test_without_locks_nobody_is_declared_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoLocks(files.System):
        def lock(self, fd: int) -> bool:
            return True

    use(monkeypatch, NoLocks())
    living = Publication([tmp_path / "m"])
    Publication([tmp_path / "m"]).commit()
    with pytest.raises(TargetExistsError, match="the target exists"):
        living.commit()
    assert listing(tmp_path) == {"m": b""}


@pytest.mark.parametrize("again", [True, False])
def test_a_temporary_file_published_while_it_is_looked_at(
    again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ".m.0123456789abcdef.tmp"
    path.write_bytes(b"published")

    class Published(files.System):
        def lock(self, fd: int) -> bool:
            if not (tmp_path / "m").exists():
                path.rename(tmp_path / "m")
                if again:
                    path.write_bytes(b"another")
            return super().lock(fd)

    use(monkeypatch, Published())
    files._sweep([tmp_path / "m"])
    assert listing(tmp_path) == {"m": b"published"} | ({path.name: b"another"} if again else {})


def test_locks_that_are_not_supported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(files.fcntl, "flock", flock)
    fd = os.open(path, os.O_RDONLY)
    assert files.system.lock(fd)
    os.close(fd)


def test_a_temporary_file_taken_away_before_it_was_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Swept(files.System):
        calls = 0

        def lock(self, fd: int) -> bool:
            self.calls += 1
            if self.calls == 1:
                next(tmp_path.iterdir()).unlink()
            return super().lock(fd)

    use(monkeypatch, Swept())
    Publication([tmp_path / "m"]).commit()
    assert listing(tmp_path) == {"m": b""}


def test_a_folder_that_stays_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.05)
    publication = Publication([tmp_path / "m"])
    fd = os.open(tmp_path, os.O_RDONLY)
    assert files.system.lock(fd)
    with pytest.raises(TargetError, match="another process does not stop publishing here"):
        publication.commit()
    os.close(fd)
    assert listing(tmp_path) == {}


def test_many_writers_of_one_target(tmp_path: Path) -> None:
    barrier = threading.Barrier(4)
    errors: list[Exception] = []

    def work(worker: int) -> None:
        try:
            for turn in range(8):
                publish(tmp_path, f"{worker}-{turn}", 1 + worker % 2)
                barrier.wait()
                if worker == 0:
                    verdicts.append(judge(listing(tmp_path)))
                barrier.wait()
        except Exception as error:  # noqa: BLE001 - it is raised in a thread, and shown in the other
            errors.append(error)
            barrier.abort()

    verdicts: list[str] = []
    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [verdict[1:] for verdict in verdicts] == [f"-{turn}" for turn in range(8)]
    assert len(listing(tmp_path)) in {2, 3}


def test_one_of_many_first_writers_wins(tmp_path: Path) -> None:
    publications = [Publication([tmp_path / "data", tmp_path / "index"]) for _ in range(4)]
    for number, publication in enumerate(publications):
        for staged in publication.files:
            staged.append(str(number).encode())
    publications[2].commit()
    for number in (0, 1, 3):
        with pytest.raises(TargetExistsError, match="the target exists"):
            publications[number].commit()
    assert listing(tmp_path) == {"data": b"2", "index": b"2"}
