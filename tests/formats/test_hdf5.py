"""The HDF5 reader against h5py: layouts, filters, kinds of datasets, and hostile files."""

from __future__ import annotations

import random
import resource
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conformance import Array, make, same

from converter.errors import (
    ChecksumError,
    ConverterError,
    CorruptFileError,
    LimitError,
    UnsafeContentError,
    UnsupportedError,
)
from converter.files import File
from converter.formats import _hdf5

h5py = pytest.importorskip("h5py")


def tree(path: Path) -> _hdf5.Group:
    return _hdf5.open_tree(File(path))


def read(path: Path) -> dict[str, Array | str]:
    found = tree(path).datasets()
    return {name: data.view().numpy() if data.view else data.problem for name, data in found}


@pytest.fixture(autouse=True)
def close_files(monkeypatch: pytest.MonkeyPatch) -> Any:
    opened: list[File] = []
    original = File.__init__

    def init(self: File, path: Path) -> None:
        original(self, path)
        opened.append(self)

    monkeypatch.setattr(File, "__init__", init)
    yield
    for file in opened:
        file.close()


FILTERS: tuple[dict[str, Any], ...] = (
    {},
    {"compression": "gzip"},
    {"compression": "gzip", "shuffle": True},
    {"compression": "gzip", "shuffle": True, "fletcher32": True},
    {"compression": "lzf", "shuffle": True},
    {"compression": "lzf"},
    {"shuffle": True},
    {"fletcher32": True},
)


@pytest.mark.parametrize("options", FILTERS)
@pytest.mark.parametrize("dtype", ["f4", ">f8", "i2", "u1", ">i4", "?", ">c8"])
def test_chunks_and_filters(options: dict[str, Any], dtype: str, tmp_path: Path) -> None:
    array = make(np.dtype(dtype).name, (23, 7, 11)).astype(dtype)
    array[3:9] = 1  # something to compress
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.create_dataset("auto", data=array, chunks=True, **options)
        file.create_dataset("odd", data=array, chunks=(4, 7, 3), **options)
        file.create_dataset("line", data=array.reshape(-1), chunks=(5,), **options)
        file.create_dataset("grows", data=array, chunks=(10, 7, 11), maxshape=(None, 7, 11))
    expected = array.astype(array.dtype.newbyteorder("="))
    for name, found in read(tmp_path / "m.h5").items():
        assert isinstance(found, np.ndarray)
        assert same(found.reshape(expected.shape), expected), name


@pytest.mark.parametrize("libver", ["earliest", "latest", ("v108", "v110")])
def test_versions_and_kinds(libver: Any, tmp_path: Path) -> None:
    arrays = {
        "plain": make("float32", (3, 4)),
        "big": make("int64", (5,)).astype(">i8"),
        "scalar": np.float64(2),
        "empty": np.zeros((0, 3), "i2"),
        "half": make("float16", (2,)),
        "complex": make("complex64", (2,)),
        "larger": make("complex128", (3,)).astype(">c16"),
        "flag": np.array([True, False]),
        "group/inner": np.arange(3),
        "größe": np.arange(2),
    }
    with h5py.File(tmp_path / "m.h5", "w", libver=libver) as file:
        for name, array in arrays.items():
            file[name] = array
        file.attrs["text"] = "ü" * 1000
        file.attrs["number"] = 3
        file.attrs["list"] = ["a", "bc"]
        file.attrs["fixed"] = np.array([b"x", b"yz"])
        file["plain"].attrs["other"] = np.zeros(2, [("a", "i4")])
    found = read(tmp_path / "m.h5")
    for name, array in arrays.items():
        expected = np.asarray(array)
        assert same(found[name], expected.astype(expected.dtype.newbyteorder("="))), name
    attributes = tree(tmp_path / "m.h5").attributes
    assert attributes == {
        "text": "ü" * 1000,
        "number": 3,
        "list": ["a", "bc"],
        "fixed": ["x", "yz"],
    }


def test_a_compact_dataset(tmp_path: Path) -> None:
    facts = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    facts.set_layout(h5py.h5d.COMPACT)
    with h5py.File(tmp_path / "m.h5", "w") as file:
        space = h5py.h5s.create_simple((3,))
        made = h5py.h5d.create(file.id, b"x", h5py.h5t.IEEE_F32LE, space, dcpl=facts)
        made.write(h5py.h5s.ALL, h5py.h5s.ALL, np.float32([1, 2, 3]))
    assert read(tmp_path / "m.h5")["x"].tolist() == [1, 2, 3]


def test_many_members(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as file:
        for number in range(3000):
            file[f"g/{number}"] = number
    found = read(tmp_path / "m.h5")
    assert {name: int(value) for name, value in found.items()} == {
        f"g/{number}": number for number in range(3000)
    }


def test_ties(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["a"] = 1.0
        file["g/b"] = file["a"]
    found = dict(tree(tmp_path / "m.h5").datasets())
    assert found["a"] is found["g/b"]


def unsupported(make_it: Callable[[Any], None], path: Path) -> str:
    with h5py.File(path, "w") as file:
        make_it(file)
    (found,) = read(path).values()
    assert isinstance(found, str)
    return found


def opaque(file: Any) -> None:
    file["x"] = np.zeros(3, "V2")


@pytest.mark.parametrize(
    ("make_it", "reason"),
    [
        (lambda f: f.create_dataset("x", data=["a"]), "a dataset of text"),  # vlen strings
        (lambda f: f.create_dataset("x", data=np.array([b"a"])), "a dataset of text"),
        (
            lambda f: f.create_dataset("x", (2,), h5py.vlen_dtype("i4")),
            "lists of varying length",
        ),
        (lambda f: f.create_dataset("x", (2,), h5py.ref_dtype), "references"),
        (lambda f: f.create_dataset("x", (2,), h5py.enum_dtype({"A": 1})), "an enumeration"),
        (lambda f: f.create_dataset("x", data=h5py.Empty("f4")), "nothing"),
        (opaque, "opaque bytes"),
        (lambda f: f.create_dataset("x", (2,), "f4"), "never written"),
        (lambda f: f.create_dataset("x", (2,), "f4", chunks=(1,)), "never written"),
        (lambda f: f.__setitem__("x", np.dtype("f4")), "neither a group nor a dataset"),
    ],
)
def test_what_is_not_numbers_is_listed(make_it: Any, reason: str, tmp_path: Path) -> None:
    assert reason in unsupported(make_it, tmp_path / "m.h5")


def pair(real: int, imaginary: int, nbytes: int) -> np.dtype[Any]:
    facts = {"names": ["r", "i"], "formats": ["f4"] * 2, "offsets": [real, imaginary]}
    return np.dtype({**facts, "itemsize": nbytes})


RECORDS: tuple[Any, ...] = (
    [("a", "i4")],
    [("a", "S600")],
    [("i", "f4"), ("r", "f4")],
    [("r", "f4"), ("j", "f4")],
    [("r", "f4"), ("i", "i4")],
    [("r", "<f4"), ("i", ">f4")],
    [("r", "f2"), ("i", "f2")],
    [("r", "i8"), ("i", "i8")],
    [("r", "f4", (1,)), ("i", "f4", (1,))],
    [("r", "f4"), ("i", "f4"), ("j", "f8")],
    pair(4, 0, 8),
    *(pair(0, start, 16) for start in (4, 8, 12)),
)


@pytest.mark.parametrize("libver", ["earliest", "v108", "latest"])
@pytest.mark.parametrize("kind", RECORDS, ids=str)
def test_records_that_are_no_complex_numbers_are_listed(
    kind: Any, libver: str, tmp_path: Path
) -> None:
    with h5py.File(tmp_path / "m.h5", "w", libver=libver) as file:
        file["x"] = np.zeros(2, kind)
    assert read(tmp_path / "m.h5") == {"x": "a dataset of records (a compound type)"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\x16\2\0\0", b"\x16\3\0\0"),  # three members, of which one is nowhere
        (b"\x16\2\0\0", b"\x26\2\0\0"),  # a version that has no place for axes
        (b"\x11\x20\x1f\0\4", b"\x10\x20\x1f\0\4"),  # integers, in as many bytes as floats
    ],
)
def test_records_that_are_almost_complex_numbers_are_listed(
    old: bytes, new: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.zeros(2, "<c8")
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))
    assert read(path) == {"x": "a dataset of records (a compound type)"}


def test_a_foreign_filter_is_listed(tmp_path: Path) -> None:  # h5_unknown_filter
    def make_it(file: Any) -> None:
        facts = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        facts.set_chunk((2,))
        facts.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (3,))
        space = h5py.h5s.create_simple((2,))
        made = h5py.h5d.create(file.id, b"x", h5py.h5t.IEEE_F32LE, space, dcpl=facts)
        made.write(h5py.h5s.ALL, h5py.h5s.ALL, np.float32([1, 2]))

    assert "filter 32015" in unsupported(make_it, tmp_path / "m.h5")


@pytest.mark.parametrize("options", [{"libver": "latest"}, {"track_order": True}, {}])
@pytest.mark.parametrize("count", [9, 60, 600, 5000])
def test_many_members_by_another_index(options: dict[str, Any], count: int, tmp_path: Path) -> None:
    """A group with names that are not ASCII is stored in another way, once it has nine members."""
    with h5py.File(tmp_path / "m.h5", "w", **options) as file:
        for number in range(count):
            file[f"größe_{number}"] = number
        for number in range(0, count, 7):
            del file[f"größe_{number}"]
    expected = {f"größe_{n}": n for n in range(count) if n % 7}
    assert {name: int(value) for name, value in read(tmp_path / "m.h5").items()} == expected


def test_layouts_of_other_programs(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w", libver="latest") as file:
        for number in range(20):
            file.attrs[f"{number}"] = number
    with pytest.raises(UnsupportedError, match=r"(?s)other programs than Keras.*without libver"):
        tree(tmp_path / "m.h5")
    with h5py.File(tmp_path / "m.h5", "w", libver="latest") as file:
        file.create_dataset("x", data=np.arange(9), chunks=(2,))
    assert "other programs than Keras" in str(read(tmp_path / "m.h5")["x"])


# ── hostile files ────────────────────────────────────────────────────────────────────────────


def external_storage(file: Any) -> None:
    file.create_dataset("x", (4,), "u1", external=[("/etc/hostname", 0, 4)])


def virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((2,), "f4")
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", (2,))
    file.create_virtual_dataset("x", layout)


@pytest.mark.parametrize(
    ("make_it", "reason"),
    [
        (lambda f: f.__setitem__("x", h5py.ExternalLink("/etc/hostname", "/")), "external link"),
        (lambda f: f.__setitem__("x", h5py.SoftLink("/y")), "soft link"),
        (lambda f: f.__setitem__("g/x", h5py.SoftLink("/g/x")), "soft link"),
        (external_storage, "kept in another file"),
        (virtual, "a virtual dataset"),
    ],
)
@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_what_leads_elsewhere(make_it: Any, reason: str, libver: str, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w", libver=libver) as file:
        make_it(file)
    with pytest.raises(UnsafeContentError, match=reason):
        tree(tmp_path / "m.h5")


def refused(path: Path, reason: str) -> None:
    start = time.process_time()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((CorruptFileError, LimitError), match=reason) as caught:
        read(path)
    assert time.process_time() - start < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB
    assert caught.value.path == path


def test_h5_hard_link_cycle(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as file:
        inner = file.create_group("a/b")
        inner["c"] = file["a"]
    refused(tmp_path / "m.h5", "inside itself")


@pytest.mark.parametrize("count", [1, 16])
@pytest.mark.parametrize("options", [{}, {"chunks": (1 << 20,)}, {"dtype": "i8"}])
def test_h5_shape_bombs(count: int, options: dict[str, Any], tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as file:
        for number in range(count):
            file.create_dataset(f"{number}", ((16 << 30) // count,), **{"dtype": "u1", **options})
    refused(tmp_path / "m.h5", "describes far more than it stores")


def test_h5_deflate_bomb(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.create_dataset("x", data=np.zeros(96 << 20, "u1"), chunks=(32 << 20,), compression=9)
    refused(tmp_path / "m.h5", "inflates to far more")


def test_groups_nested_too_deeply(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.create_group("/".join("g" * 150))
    refused(tmp_path / "m.h5", "nested more than 100 deep")


@pytest.mark.parametrize("name", [b"a\x1b[2J", b"\xff\xfe"])
def test_a_wrong_name(name: bytes, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.create_group(name)
    refused(tmp_path / "m.h5", "its name|is broken")


@pytest.mark.parametrize(
    ("offset", "data", "reason"),
    [
        (0, b"\x88", "not the start"),
        (8, b"\x07", "unusual HDF5 superblock"),
        (13, b"\x04", "unusual HDF5 superblock"),
        (24, b"\x08", "does not start where it should"),
        (64, b"\xff" * 8, "points outside itself"),
        (64, b"\x08", "not an object header|broken|cut off"),
    ],
)
def test_a_wrong_superblock(offset: int, data: bytes, reason: str, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["x"] = 1
    raw = bytearray((tmp_path / "m.h5").read_bytes())
    raw[offset : offset + len(data)] = data
    (tmp_path / "m.h5").write_bytes(raw)
    with pytest.raises((CorruptFileError, UnsupportedError), match=reason):
        tree(tmp_path / "m.h5")


def test_a_tree_that_points_at_itself(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as file:
        for number in range(400):
            file[f"{number:04}"] = number
    raw = (tmp_path / "m.h5").read_bytes()
    at = raw.index(b"TREE\0\1")  # an inner node of a group
    for target in (at, struct.unpack_from("<Q", raw, at + 24 + 24)[0]):
        changed = raw[: at + 32] + struct.pack("<Q", target) + raw[at + 40 :]
        (tmp_path / "m.h5").write_bytes(changed)
        refused(tmp_path / "m.h5", "B-tree of the HDF5 file is broken")


def test_a_damaged_chunk(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.create_dataset("x", data=np.arange(100), chunks=(100,), fletcher32=True)
        place = file["x"].id.get_chunk_info(0).byte_offset
    raw = bytearray((tmp_path / "m.h5").read_bytes())
    raw[place + 9] ^= 4
    (tmp_path / "m.h5").write_bytes(raw)
    with pytest.raises(ChecksumError, match=r"(?s)fletcher32.*tensor 'x'|tensor 'x'.*fletcher32"):
        read(tmp_path / "m.h5")


def test_a_missing_chunk(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.create_dataset("x", (4, 4), "f4", chunks=(2, 2))[:2] = 1
    refused(tmp_path / "m.h5", "chunks of a dataset are missing")


def test_mutants(tmp_path: Path) -> None:
    """Whatever is changed, the outcome is values, or one of our own errors, soon."""
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["a/b/w:0"] = np.arange(12.0).reshape(3, 4)
        file["a"].attrs["weight_names"] = ["b/w:0", "ü"]
        file["a"].attrs["fixed"] = np.array([b"x", b"yz"])
        file.create_dataset("z", data=np.arange(900).reshape(30, 30), chunks=(7, 9), compression=4)
        file.create_dataset("l", data=np.ones((9, 9)), compression="lzf", fletcher32=True)
    with h5py.File(tmp_path / "v.h5", "w", libver="latest") as file:
        file["a/b/w:0"] = np.arange(12.0).reshape(3, 4)
        file.attrs["text"] = "abc"
        for number in range(60):
            file[f"ü/{number}"] = number
    rng = random.Random(7)
    counts = {"values": 0, "errors": 0}
    for name in ("m.h5", "v.h5"):
        raw = (tmp_path / name).read_bytes()
        for _ in range(700):
            changed = bytearray(raw)
            for _ in range(rng.choice((1, 1, 2, 8))):
                at = rng.randrange(min(len(raw), 6000))
                changed[at] = rng.choice((0, 1, 0x7F, 0xFF, changed[at] ^ 1 << rng.randrange(8)))
            (tmp_path / "x.h5").write_bytes(changed)
            start = time.process_time()
            try:
                read(tmp_path / "x.h5")
                counts["values"] += 1
            except ConverterError:
                counts["errors"] += 1
            assert time.process_time() - start < 2
    assert min(counts.values()) > 100
