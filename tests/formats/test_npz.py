"""NumPy's files against NumPy, against literal bytes, and against hostile files."""

from __future__ import annotations

import io
import pickle
import resource
import struct
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conformance import Array, Arrays, FormatConformance, differences, make, read, same

from converter import formats
from converter.engine import save
from converter.errors import (
    ChecksumError,
    ConverterError,
    CorruptFileError,
    LimitError,
    SourceError,
    UnknownFormatError,
    UnrepresentableError,
    UnsafeContentError,
)
from converter.formats import npz
from converter.layout import View
from converter.tensors import Checkpoint, Tensor, TensorSpec, dtype_of


class TestNpz(FormatConformance):
    format = "npz"
    target = "model.npz"
    checksums = True

    def oracle_read(self, path: Path) -> dict[str, Array]:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}

    def oracle_write(self, path: Path, arrays: Arrays) -> None:
        np.savez(path, **arrays)


def npy(array: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def header(text: str, data: bytes = b"", version: int = 1) -> bytes:
    size = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + text.encode() + data


def archive(path: Path, entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as out:
        for name, data in entries.items():
            out.writestr(name, data)
    return path


# ── what NumPy writes ────────────────────────────────────────────────────────────────────────


def test_compressed(tmp_path: Path) -> None:
    arrays = {"a/b": make("float32", (300, 500)), "zero": np.zeros((1000, 1000)), "s": np.int8(3)}
    arrays["empty"] = np.zeros((0, 3), "u2")
    np.savez_compressed(tmp_path / "m.npz", **arrays)
    expected = {name: np.asarray(array) for name, array in arrays.items()}
    assert differences(read(tmp_path / "m.npz"), expected) == []
    with formats.open_checkpoint(tmp_path / "m.npz") as checkpoint:
        view = checkpoint["a/b"].view
        assert same(view.take(1, 7, 9).numpy(), expected["a/b"][:, 7:9])
        assert same(view.transpose((1, 0)).numpy(), np.ascontiguousarray(expected["a/b"].T))
        assert checkpoint["a/b"].extent is None
    with pytest.raises(SourceError, match="the checkpoint is closed"):
        view.numpy()


def test_compressed_arrays_are_read_by_several_threads(tmp_path: Path) -> None:
    arrays = {f"t{i}": np.arange(i, 300_000 + i, dtype=np.int32) for i in range(8)}
    np.savez_compressed(tmp_path / "m.npz", **arrays)
    with formats.open_checkpoint(tmp_path / "m.npz") as found, ThreadPoolExecutor(4) as pool:
        values = list(pool.map(lambda name: found[name].numpy(), found))
    assert differences(dict(zip(arrays, values, strict=True)), arrays) == []


@pytest.mark.parametrize("dtype", ["f4", "f2", "i8", "c8", "u2"])
@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_orders(dtype: str, order: Any, save: Callable[..., None], tmp_path: Path) -> None:
    array = make(np.dtype(dtype).name, (3, 4, 5))
    stored = np.asarray(array.astype(f">{dtype}"), order=order)
    save(tmp_path / "m.npz", big=stored, little=np.asarray(array, order=order))
    if dtype[0] in "fc":  # a cast may make a signalling NaN quiet; swapping bytes must not
        assert read(tmp_path / "m.npz")["big"].view("u1").size == array.nbytes
    assert differences(read(tmp_path / "m.npz"), {"big": array, "little": array}) == []


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_a_single_array(version: tuple[int, int], tmp_path: Path) -> None:
    array = make("float64", (3, 2))
    with (tmp_path / "m.npy").open("wb") as stream:
        np.lib.format.write_array(stream, array, version)
    assert differences(read(tmp_path / "m.npy"), {"array": array}) == []


def test_the_header_of_python_2(tmp_path: Path) -> None:
    text = "{'descr': '<i2', 'fortran_order': False, 'shape': (2L, 1L), }  \n"
    (tmp_path / "m.npy").write_bytes(header(text, b"\1\0\2\0"))
    assert read(tmp_path / "m.npy")["array"].tolist() == [[1], [2]]


def test_the_bytes_of_a_file(tmp_path: Path) -> None:
    TestNpz().write(tmp_path / "m.npz", {"w": np.array([1, 2], "<i2"), "ü": np.array(3, "u1")})
    data = (tmp_path / "m.npz").read_bytes()
    assert data[64 : 64 + 132] == npy(np.array([1, 2], "<i2"))
    assert data.index(npy(np.array(3, "u1"))) % 64 == 0
    with zipfile.ZipFile(tmp_path / "m.npz") as out:
        assert out.testzip() is None
        assert out.namelist() == ["w.npy", "ü.npy"]


def test_members_that_are_not_arrays_are_listed(tmp_path: Path) -> None:
    import ml_dtypes

    entries = {
        "a.npy": npy(np.arange(3)),
        "b": npy(np.arange(2)),
        "note.txt": b"hello",
        "text.npy": npy(np.array(["x"])),
        "record.npy": npy(np.zeros(2, [("x", "f4"), ("y", "i4")])),
        "date.npy": npy(np.zeros(2, "M8[s]")),
        "wide.npy": npy(np.zeros(2, np.longdouble)),
        "bf16.npy": npy(np.zeros(2, ml_dtypes.bfloat16)),
        "object.npy": npy(np.array([{}]), allow_pickle=True),
    }
    with formats.open_checkpoint(archive(tmp_path / "m.npz", entries)) as checkpoint:
        assert list(checkpoint) == ["a", "b"]
        reasons = checkpoint.unsupported
    assert set(reasons) == {"note.txt", "text", "record", "date", "wide", "bf16", "object"}
    assert "perhaps of bfloat16" in reasons["bf16"]
    assert "'|O' is not one of numbers" in reasons["object"]


def test_an_empty_archive(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz")
    assert read(tmp_path / "m.npz") == {}


def test_another_zip_is_not_ours(tmp_path: Path) -> None:
    archive(tmp_path / "m.npz", {"a.txt": b"1"})
    with pytest.raises(UnknownFormatError, match="not a checkpoint"):
        formats.open_checkpoint(tmp_path / "m.npz")


# ── pickled containers ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("order", "CF")
def test_vgg16_npy(protocol: int, order: Any, tmp_path: Path) -> None:
    kernel, bias = make("float32", (3, 3, 2, 4)), make("float32", (4,))
    kernel = np.asarray(kernel, order=order)
    tree = {"conv1_1": [kernel, bias], "fc6": {"weights": bias, "biases": bias.astype(">f4")}}
    body = pickle.dumps(np.array(tree, object), protocol)
    text = "{'descr': '|O', 'fortran_order': False, 'shape': (), }\n"
    (tmp_path / "m.npy").write_bytes(header(text, body))
    expected = {
        "conv1_1/0": kernel,
        "conv1_1/1": bias,
        "fc6/weights": bias,
        "fc6/biases": bias,
    }
    assert differences(read(tmp_path / "m.npy"), expected) == []
    with formats.open_checkpoint(tmp_path / "m.npy") as checkpoint:
        assert checkpoint.ties == (("conv1_1/1", "fc6/weights"),)


def test_what_python_2_pickled(tmp_path: Path) -> None:
    """{'conv': ['é', array([1.0, -0.25], '<f4')]}, as numpy 1.x wrote it under Python 2."""
    raw = struct.pack("<2f", 1, -0.25)
    body = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85"
        b"U\x01b\x87Rq\x03(K\x01)cnumpy\ndtype\nq\x04U\x02O8K\x00K\x01\x87R(K\x03U\x01|NNNJ"
        b"\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb\x89]}U\x04conv]("
        b"U\x01\xe9"
        b"h\x01h\x02K\x00\x85U\x01b\x87R(K\x01K\x02\x85h\x04U\x02f4K\x00K\x01\x87R(K\x03U\x01<"
        b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08" + raw + b"tbesatb."
    )
    text = "{'descr': '|O', 'fortran_order': False, 'shape': (), }\n"
    (tmp_path / "m.npy").write_bytes(header(text, body))
    known = np.load(tmp_path / "m.npy", allow_pickle=True, encoding="latin1").item()
    assert same(read(tmp_path / "m.npy")["conv/1"], known["conv"][1])
    with formats.open_checkpoint(tmp_path / "m.npy") as checkpoint:
        assert checkpoint.unsupported == {"conv/0": "bytes, not an array of numbers"}


def test_a_list_of_arrays(tmp_path: Path) -> None:
    arrays = np.empty(2, object)
    arrays[:] = [np.arange(3), {"b": np.float32(2) * np.ones(2, "f4")}]
    np.save(tmp_path / "m.npy", arrays, allow_pickle=True)
    expected = {"0": np.arange(3), "1/b": np.full(2, 2, "f4")}
    assert differences(read(tmp_path / "m.npy"), expected) == []


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("run",))


def test_nothing_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "m.npy", np.array({"w": Evil()}, object), allow_pickle=True)
    with pytest.raises(UnsafeContentError, match=r"asks to call builtins\.print"):
        formats.open_checkpoint(tmp_path / "m.npy")
    assert capsys.readouterr().out == ""


def test_containers_in_themselves(tmp_path: Path) -> None:
    loop: list[Any] = []
    loop.append(loop)
    text = "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n"
    array = np.empty(1, object)
    array[0] = loop
    body = pickle.dumps(array)
    (tmp_path / "m.npy").write_bytes(header(text, body))
    with pytest.raises(LimitError, match="nested more than 200 deep"):
        formats.open_checkpoint(tmp_path / "m.npy")


# ── hostile files ────────────────────────────────────────────────────────────────────────────

GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n"
DATA = bytes(8)
WRONG: dict[str, tuple[bytes, str]] = {
    "npz_header_4g": (b"\x93NUMPY\2\0\xff\xff\xff\xff{" + bytes(300), "header is too long"),
    "npz_header_over": (header(GOOD, DATA)[:60], "header is cut off"),
    "npz_version": (b"\x93NUMPY\4\0" + bytes(300), "not the start of a .npy"),
    "npz_neg_shape": (header(GOOD.replace("2,", "-2,"), DATA), "not that of an array"),
    "npz_float_shape": (header(GOOD.replace("2,", "2.0,"), DATA), "not that of an array"),
    "npz_huge_shape": (header(GOOD.replace("2,", "9" * 19 + ","), DATA), "out of bounds"),
    "npz_4_exabytes": (header(GOOD.replace("2,", "9" * 18 + ","), DATA), "do not give the size"),
    "npz_digits": (header(GOOD.replace("2,", "1" * 60_000), DATA), "not that of an array"),
    "npz_spaces": (header(GOOD.replace("2,", " " * 60_000), DATA), "do not give the size"),
    "npz_open": (header(GOOD.replace("2,)", "1" + " " * 60_000), DATA), "not that of an array"),
    "npz_commas": (header(GOOD.replace("2,", "1, " * 20_000 + ","), DATA), "not that of an array"),
    "npz_wrap_shape": (header(GOOD.replace("2,", f"{1 << 62}, 4"), DATA), "out of bounds"),
    "npz_zero_shape": (header(GOOD.replace("2,", f"0, {1 << 62}"), DATA), "out of bounds"),
    "npz_rank": (header(GOOD.replace("2,", "1," * 33), DATA), "out of bounds"),
    "npz_call": (header(GOOD.replace("(2,)", "exit()"), DATA), "not that of an array"),
    "npz_extra_key": (header(GOOD.replace("{", "{'x': 1, "), DATA), "not that of an array"),
    "npz_dup_key": (header(GOOD.replace("descr", "shape"), DATA), "not that of an array"),
    "npz_two_headers": (header(GOOD + GOOD, DATA), "not that of an array"),
    "npz_short": (header(GOOD, DATA[:-1]), "do not give the size"),
    "npz_long": (header(GOOD, DATA + b"\0"), "do not give the size"),
    "npz_deep": (header("{'descr': " + "[" * 50_000), "not that of an array"),
}


@pytest.mark.parametrize("attack", WRONG)
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_wrong_header(attack: str, method: int, tmp_path: Path) -> None:
    data, reason = WRONG[attack]
    archive(tmp_path / "m.npz", {"w.npy": data}, method)
    refused(tmp_path / "m.npz", reason)


@pytest.mark.parametrize("attack", WRONG)
def test_a_wrong_header_of_a_single_array(attack: str, tmp_path: Path) -> None:
    data, reason = WRONG[attack]
    (tmp_path / "m.npy").write_bytes(data)
    refused(tmp_path / "m.npy", reason)


def refused(path: Path, reason: str) -> ConverterError:
    start = time.process_time()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((CorruptFileError, LimitError), match=reason) as caught:
        read(path)
    assert time.process_time() - start < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
    assert caught.value.path == path
    assert str(caught.value).isprintable() or "\n" in str(caught.value)
    return caught.value


def test_npz_deflate_bomb(tmp_path: Path) -> None:
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({(100 << 20) - 128},), }}"
    data = header(text.ljust(117) + "\n") + bytes((100 << 20) - 128)
    archive(tmp_path / "m.npz", {"w.npy": data}, zipfile.ZIP_DEFLATED)
    refused(tmp_path / "m.npz", "inflates to far more")


def test_many_members_below_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz, "FREE_BYTES", 1 << 20)
    data = npy(np.zeros(1 << 19, "u1"))
    entries = {f"{i}.npy": data for i in range(3)}
    archive(tmp_path / "m.npz", entries, zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(npz, "MAX_RATIO", 100)
    assert "so far" in str(refused(tmp_path / "m.npz", "inflates to far more"))


@pytest.mark.parametrize("size", [900, 1100])
def test_another_size_than_announced(size: int, tmp_path: Path) -> None:
    text = npy(np.zeros(size, "u1"))[:128]
    other = archive(tmp_path / "o.npz", {"w.npy": text + bytes(size)}, zipfile.ZIP_DEFLATED)
    wrong = other.read_bytes().replace((size + 128).to_bytes(4, "little"), bytes([104, 4, 0, 0]))
    assert wrong != other.read_bytes()
    other.write_bytes(wrong)
    refused(other, "do not give the size")


def test_npz_bad_crc(tmp_path: Path) -> None:
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        array = make("float32", (100,))
        path = archive(tmp_path / "m.npz", {"w.npy": npy(array)}, method)
        crc = zipfile.ZipFile(path).infolist()[0].CRC
        data = path.read_bytes()
        path.write_bytes(data.replace(crc.to_bytes(4, "little"), b"abcd"))
        with pytest.raises(ChecksumError, match=r"(?s)tensor 'w'.*0x64636261"):
            read(path)


def test_npz_dup_member(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as out:
        out.writestr("w.npy", npy(np.arange(3)))
        with pytest.warns(UserWarning, match="Duplicate name"):
            out.writestr("w.npy", npy(np.arange(2)))
    refused(tmp_path / "m.npz", "two zip members are named")
    archive(tmp_path / "n.npz", {"w.npy": npy(np.arange(3)), "w": npy(np.arange(3))})
    refused(tmp_path / "n.npz", "two zip members mean this tensor")


def test_npz_slip_name(tmp_path: Path) -> None:
    path = archive(tmp_path / "m.npz", {"../../../../pwn.npy": npy(np.arange(3))})
    assert same(read(path)["../../../../pwn"], np.arange(3))
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.npz"]


def test_npz_overlap(tmp_path: Path) -> None:
    path = archive(tmp_path / "m.npz", {"a.npy": npy(np.arange(3)), "b.npy": npy(np.arange(3))})
    data = bytearray(path.read_bytes())
    second = data.rindex(b"PK\x01\x02")
    data[second + 42 : second + 46] = bytes(4)
    path.write_bytes(data)
    refused(path, "two names|overlap|disagree")


@pytest.mark.parametrize("name", ["a\x1b[2J.npy", ".npy", "x" * 5000 + ".npy"])
def test_a_wrong_name(name: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "m.npz", {"ok.npy": npy(np.arange(2)), name: npy(np.arange(3))})
    refused(path, "its name")


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "int4", "string"])
def test_what_numpy_has_no_name_for(dtype: str, tmp_path: Path) -> None:
    spec = TensorSpec((2,), dtype_of(dtype))
    with pytest.raises(UnrepresentableError, match=f"no name for {dtype}"):
        formats.create(tmp_path / "m.npz", formats.named("npz"), {"t": spec})


def test_a_bit_flipped_in_a_compressed_archive(tmp_path: Path) -> None:
    array = make("int16", (40, 5))
    np.savez_compressed(tmp_path / "m.npz", w=array)
    data = (tmp_path / "m.npz").read_bytes()
    for bit in range(0, 8 * len(data), 11):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        (tmp_path / "m.npz").write_bytes(changed)
        try:
            found = read(tmp_path / "m.npz")
        except ConverterError:
            continue
        assert list(found) != ["w"] or same(found["w"], array)


@pytest.mark.parametrize("target", ["m.npz", "m.h5", "m.weights.h5", "m.keras", "m.msgpack"])
def test_a_tensor_written_out_of_order(target: str, tmp_path: Path) -> None:
    """The engine writes what is turned at its place, and then asks for the checksum."""
    array = make("float32", (300, 7, 500))
    view = View.of(array).transpose((2, 1, 0))
    source = Checkpoint({"l/w": Tensor(view)}, metadata={"config.json": "{}"})
    save(source, tmp_path / target, max_memory=122 << 20)
    assert differences(read(tmp_path / target), {"l/w": array.transpose(2, 1, 0)}) == []
