"""safetensors against the library, against literal bytes, and against hostile files."""

from __future__ import annotations

import errno
import gc
import json
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from conformance import Array, Arrays, FormatConformance, differences, make, read

from converter import files, formats
from converter.errors import (
    CorruptFileError,
    LimitError,
    NoSpaceError,
    SourceError,
    TargetError,
    UnknownFormatError,
    UnrepresentableError,
)
from converter.formats import safetensors
from converter.tensors import TensorSpec, dtype_of

CODES = {
    "bool": "BOOL",
    "float4_e2m1fn": "F4",
    "uint8": "U8",
    "int8": "I8",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "int16": "I16",
    "uint16": "U16",
    "float16": "F16",
    "bfloat16": "BF16",
    "int32": "I32",
    "uint32": "U32",
    "float32": "F32",
    "complex64": "C64",
    "float64": "F64",
    "int64": "I64",
    "uint64": "U64",
}


def packed(array: Array) -> Array:
    """4-bit elements as they lie in a file: two a byte, the first in the low half."""
    pairs = array.reshape(-1, 2).view(np.uint8)
    return pairs[:, 0] | pairs[:, 1] << 4


class TestSafetensors(FormatConformance):
    format = "safetensors"
    target = "model.safetensors"
    metadata = MappingProxyType({"format": "pt"})

    def oracle_read(self, path: Path) -> dict[str, Array]:
        # The layer below the front ends, which lack dtypes; it returns bytes.
        library = pytest.importorskip("safetensors")
        names = {code: name for name, code in CODES.items()}
        arrays = {}
        for name, fields in library.deserialize(path.read_bytes()):
            raw = np.frombuffer(bytes(fields["data"]), np.uint8)
            if fields["dtype"] == "F4":
                raw = np.stack([raw & 15, raw >> 4], axis=1).reshape(-1)
            arrays[name] = raw.view(dtype_of(names[fields["dtype"]])).reshape(fields["shape"])
        return arrays

    def oracle_write(self, path: Path, arrays: Arrays) -> None:
        library = pytest.importorskip("safetensors")
        specs, alive = {}, []
        for name, array in arrays.items():
            dtype, shape = array.dtype.name, list(array.shape)
            data = np.ascontiguousarray(array)
            if dtype == "float4_e2m1fn":  # the library counts pairs, along the last axis
                dtype, data = "float4_e2m1fn_x2", packed(data)
                shape[-1] //= 2
            alive.append(data)
            specs[name] = library.TensorSpec(
                dtype=dtype, shape=shape, data_ptr=data.ctypes.data, data_len=data.nbytes
            )
        path.write_bytes(bytes(library.serialize(specs, metadata={"format": "pt"})))

    def library_holds(self, dtype: str, shape: tuple[int, ...]) -> bool:
        return dtype != "float4_e2m1fn" or (bool(shape) and shape[-1] % 2 == 0)  # it counts pairs

    @pytest.mark.oracle
    def test_the_header_is_the_librarys(self, tmp_path: Path) -> None:
        """The same order, the same text: only our padding is longer."""
        arrays = {f"{d}.{n}": make(d, (n,)) for d in CODES for n in (2, 0, 6)}
        self.write(tmp_path / "ours", arrays)
        self.oracle_write(tmp_path / "library", arrays)
        ours, library = ((tmp_path / name).read_bytes() for name in ("ours", "library"))
        (a,), (b,) = (struct.unpack("<Q", data[:8]) for data in (ours, library))
        assert ours[8 : 8 + a].rstrip() == library[8 : 8 + b].rstrip()
        assert ours[8 + a :] == library[8 + b :]


# ── literal bytes ────────────────────────────────────────────────────────────────────────────


def raw(header: Any, data: bytes = b"") -> bytes:
    """A file with this header, given as text, bytes or JSON."""
    if not isinstance(header, str | bytes):
        header = json.dumps(header)
    encoded = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(encoded)) + encoded + data


def entry(shape: Any, begin: Any, end: Any, dtype: Any = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def text(*fields: tuple[str, Any]) -> str:
    """JSON that may have a key twice."""
    return "{" + ",".join(f"{json.dumps(name)}:{json.dumps(value)}" for name, value in fields) + "}"


def saved(path: Path, arrays: Mapping[str, Any], **options: Any) -> bytes:
    TestSafetensors().write(path, {n: np.asarray(a) for n, a in arrays.items()}, **options)
    return path.read_bytes()


def test_the_bytes_of_a_file(tmp_path: Path) -> None:
    data = saved(
        tmp_path / "m",
        {"b": np.float32(1), "a": np.array([[1, 2]], "u1"), "ü": np.array([-2], "<i8")},
        metadata={"z": "1", "a": 'q"\n'},
    )
    header = (
        '{"__metadata__":{"a":"q\\"\\n","format":"pt","z":"1"},'
        '"ü":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},'
        '"b":{"dtype":"F32","shape":[],"data_offsets":[8,12]},'
        '"a":{"dtype":"U8","shape":[1,2],"data_offsets":[12,14]}}'
    ).encode()
    assert len(data) == 256 + 14
    assert data[:8] == b"\xf8\0\0\0\0\0\0\0"
    assert data[8:256] == header.ljust(248, b" ")
    assert data[256:] == b"\xfe\xff\xff\xff\xff\xff\xff\xff" + b"\x00\x00\x80\x3f" + b"\x01\x02"


def test_four_bits_are_two_to_a_byte_low_half_first(tmp_path: Path) -> None:
    values = [0.5, 1, 1.5, 2, -6, 0]
    data = saved(tmp_path / "m", {"t": np.array(values, ml_dtypes.float4_e2m1fn)})
    assert data[-3:] == b"\x21\x43\x0f"
    assert read(tmp_path / "m")["t"].astype(np.float32).tolist() == values


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (1, 2), (1, 4), (3, 6), (5, 6), (2, 2)])
def test_a_range_of_four_bit_elements(start: int, stop: int, tmp_path: Path) -> None:
    array = make("float4_e2m1fn", (6,))
    saved(tmp_path / "m", {"t": array})
    with formats.open_checkpoint(tmp_path / "m") as checkpoint:
        part = checkpoint["t"].view.take(0, start, stop).numpy()
    assert part.tobytes() == array[start:stop].tobytes()


def test_an_unaligned_file(tmp_path: Path) -> None:
    header = {"a": entry([1], 0, 1), "b": entry([2], 1, 9, "F32")}
    for spaces in range(8):
        padded = json.dumps(header) + " " * spaces
        (tmp_path / "m").write_bytes(raw(padded, b"\x07" + struct.pack("<2f", 1.5, -2)))
        assert read(tmp_path / "m")["b"].tolist() == [1.5, -2.0]


def test_the_order_is_that_of_the_bytes(tmp_path: Path) -> None:
    header = {"b": entry([1], 1, 2), "none": entry([0], 1, 1), "a": entry([1], 0, 1)}
    (tmp_path / "m").write_bytes(raw(header, b"ab"))
    with formats.open_checkpoint(tmp_path / "m") as checkpoint:
        assert list(checkpoint) == ["a", "none", "b"]


@pytest.mark.parametrize("code", ["F6_E2M3", "F6_E3M2", "I2", "ä\n"])
def test_what_has_no_array_is_listed(code: str, tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(raw({"a": entry([4], 0, 3, code), "b": entry([1], 3, 4)}, b"1234"))
    with formats.open_checkpoint(tmp_path / "m") as checkpoint:
        assert list(checkpoint) == ["b"]
        shown = repr(code)[1:-1]
        assert checkpoint.unsupported == {"a": f"dtype {shown} is not supported"}


@pytest.mark.parametrize("header", ["{}", '{"__metadata__":{}}', '{"__metadata__":null}  \n'])
def test_an_empty_file(header: str, tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(raw(header))
    with formats.open_checkpoint(tmp_path / "m") as checkpoint:
        assert (dict(checkpoint), dict(checkpoint.metadata)) == ({}, {})


# ── the reference's rules ────────────────────────────────────────────────────────────────────

WRONG: dict[str, tuple[bytes, str]] = {
    "st_len_max": (b"\xff" * 8 + b'{"a":', "the header is too long"),
    "st_len_over_limit": (struct.pack("<Q", 100_000_001) + b"{}", "the header is too long"),
    "st_len_over_file": (struct.pack("<Q", 99) + b"{}", "truncated"),
    "st_dup_key": (
        raw(text(("a", entry([1], 0, 1)), ("a", entry([1], 1, 2))), b"12"),
        "(?s)a key twice.*'a'",
    ),
    "st_dup_field": (raw('{"a":{"dtype":"U8","dtype":"U8","shape":[]}}'), "a key twice"),
    "st_two_metadata": (raw('{"__metadata__":{},"__metadata__":{}}'), "a key twice"),
    "st_overlap": (raw({"a": entry([2], 0, 2), "b": entry([2], 1, 3)}, b"123"), "overlaps"),
    "st_same_bytes": (raw({"a": entry([2], 0, 2), "b": entry([2], 0, 2)}, b"12"), "overlaps"),
    "st_hole": (raw({"a": entry([1], 0, 1), "b": entry([1], 2, 3)}, b"123"), "leaves a hole"),
    "st_hole_at_start": (raw({"a": entry([1], 1, 2)}, b"12"), "leaves a hole"),
    "st_trailing": (raw({"a": entry([1], 0, 1)}, b"12"), "goes on after the last tensor"),
    "st_truncated": (raw({"a": entry([9], 0, 9)}, b"12345678"), "the file is truncated"),
    "st_empty_in_the_middle": (
        raw({"a": entry([4], 0, 4), "b": entry([0], 2, 2)}, b"1234"),
        "overlaps",
    ),
    "st_shape_bytes": (raw({"a": entry([3], 0, 2)}, b"12"), "(?s)size of the data.*3 bytes"),
    "st_shape_overflow": (raw({"a": entry([1 << 62, 4], 0, 0)}), "size of the data"),
    "st_shape_wrap": (raw({"a": entry([1 << 32, 1 << 32], 0, 0, "F32")}), "size of the data"),
    "st_shape_overflow_by_zero": (raw({"a": entry([1 << 40, 1 << 40, 0], 0, 0)}), "overflows"),
    "st_neg_offset": (raw({"a": entry([1], -1, 0)}), "not a natural number"),
    "st_back_offsets": (raw({"a": entry([1], 2, 1)}, b"12"), "size of the data"),
    "st_neg_shape": (raw({"a": entry([-1, -1], 0, 1)}, b"1"), "not a natural number"),
    "st_float_shape": (raw({"a": entry([1.0], 0, 1)}, b"1"), "not a natural number"),
    "st_bool_shape": (raw({"a": entry([True], 0, 1)}, b"1"), "not a natural number"),
    "st_string_shape": (raw({"a": entry("1", 0, 1)}, b"1"), "not an entry"),
    "st_null_shape": (raw({"a": entry(None, 0, 1)}, b"1"), "not an entry"),
    "st_exponent": (
        raw('{"a":{"dtype":"U8","shape":[1e0],"data_offsets":[0,1]}}', b"1"),
        "not a natural number",
    ),
    "st_big_int": (
        raw('{"a":{"dtype":"U8","shape":[' + "9" * 5000 + '],"data_offsets":[0,1]}}', b"1"),
        "not JSON",
    ),
    "st_three_offsets": (
        raw({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1, 1]}}, b"1"),
        "not an entry",
    ),
    "st_no_offsets": (raw({"a": {"dtype": "U8", "shape": [1]}}, b"1"), "not an entry"),
    "st_no_dtype": (raw({"a": {"shape": [0], "data_offsets": [0, 0]}}), "not an entry"),
    "st_dtype_number": (raw({"a": entry([1], 0, 1, 3)}, b"1"), "not an entry"),
    "st_root_is_entry": (raw(entry([1], 0, 1), b"1"), "not a mapping of names"),
    "st_odd_f4": (raw({"a": entry([3], 0, 2, "F4")}, b"12"), "(?s)size of the data.*1.5 bytes"),
    "st_deep_json": (raw('{"a":' + "[" * 200_000), "nested too deeply"),
    "st_deep_object": (raw('{"a":' * 200_000), "nested too deeply"),
    "st_meta_nonstring": (raw({"__metadata__": {"a": 1}}), "strings to strings"),
    "st_meta_nested": (raw({"__metadata__": {"a": {}}}), "strings to strings"),
    "st_meta_list": (raw({"__metadata__": []}), "strings to strings"),
    "st_meta_entry": (raw({"__metadata__": entry([], 0, 0)}), "strings to strings"),
    "st_bad_utf8": (raw(b'{"\xff":1}'), "not JSON"),
    "st_not_json": (raw("{]"), "not JSON"),
    "st_nan": (raw('{"a":NaN}'), "not JSON"),
    "st_two_objects": (raw("{}{}"), "not JSON"),
    "st_unfinished": (raw('{"a":'), "not JSON"),
    "st_raw_newline": (raw('{"a\n":1}'), "not JSON"),
}
STRICTER: dict[str, tuple[bytes, str]] = {  # what the library lets pass
    "st_empty_name": (raw({"": entry([1], 0, 1)}, b"1"), "its name is empty"),
    "st_leading_space": (raw(" " + text(("a", entry([1], 0, 1))), b"1"), "start with '{'"),
    "st_dup_same": (
        raw(text(("a", entry([1], 0, 1)), ("a", entry([1], 0, 1))), b"1"),
        "(?s)a key twice.*'a'",
    ),
    "st_entry_list": (raw({"a": ["U8", [1], [0, 1]]}, b"1"), "not an entry"),
    "st_dup_metadata": (raw('{"__metadata__":{"a":"1","a":"2"}}'), "a key twice"),
    "st_nul_name": (raw({"a\0b": entry([1], 0, 1)}, b"1"), "control character"),
    "st_escape_name": (raw({"\x1b[2J": entry([1], 0, 1)}, b"1"), "control character"),
    "st_c1_name": (raw({"a\x9b": entry([1], 0, 1)}, b"1"), "control character"),
    "st_long_name": (raw({"ä" * 2049: entry([1], 0, 1)}, b"1"), "longer than 4096 bytes"),
    "st_rank": (raw({"a": entry([1] * 33, 0, 1)}, b"1"), "too many dimensions"),
}


@pytest.mark.parametrize("attack", WRONG | STRICTER)
def test_an_attack_is_refused(attack: str, tmp_path: Path) -> None:
    data, reason = (WRONG | STRICTER)[attack]
    (tmp_path / "m").write_bytes(data)
    start = time.process_time()
    with pytest.raises((CorruptFileError, LimitError), match=reason) as caught:
        safetensors.open(tmp_path / "m")
    assert time.process_time() - start < 2
    assert caught.value.path == tmp_path / "m"
    assert len(str(caught.value)) < 2000
    assert str(caught.value).isprintable() or "\n" in str(caught.value)
    assert "\0" not in str(caught.value)


@pytest.mark.oracle
@pytest.mark.parametrize("attack", WRONG)
def test_the_library_refuses_the_same(attack: str) -> None:
    library = pytest.importorskip("safetensors")
    with pytest.raises(
        library.SafetensorError, match=r"(?i)header|metadata|invalid|overflow|slice"
    ):
        library.deserialize(WRONG[attack][0])


@pytest.mark.oracle
@pytest.mark.parametrize("attack", STRICTER)
def test_the_library_would_take_it(attack: str) -> None:
    library = pytest.importorskip("safetensors")
    assert len(library.deserialize(STRICTER[attack][0])) <= 1


def test_a_lone_surrogate(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(raw({"\ud800": entry([1], 0, 1)}, b"1"))
    with pytest.raises(CorruptFileError, match="not Unicode"):
        formats.open_checkpoint(tmp_path / "m")


def test_a_name_like_a_path_is_a_name(tmp_path: Path) -> None:  # st_path_name
    (tmp_path / "m").write_bytes(raw({"../../../../pwn": entry([1], 0, 1)}, b"1"))
    assert read(tmp_path / "m")["../../../../pwn"].tolist() == [ord("1")]
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_an_unknown_dtype_must_tile_too(tmp_path: Path) -> None:
    header = {"a": entry([2], 0, 2), "b": entry([1], 2, 1, "I2"), "c": entry([1], 1, 2)}
    (tmp_path / "m").write_bytes(raw(header, b"12"))
    with pytest.raises(CorruptFileError, match=r"not a range|overlaps"):
        formats.open_checkpoint(tmp_path / "m")
    (tmp_path / "m").write_bytes(raw({"b": entry([1], 0, -1, "I2")}))
    with pytest.raises(CorruptFileError, match="not a natural number"):
        formats.open_checkpoint(tmp_path / "m")
    (tmp_path / "m").write_bytes(raw({"a": entry([2], 0, 2), "b": entry([1], 2, 1, "I2")}, b"12"))
    with pytest.raises(CorruptFileError, match="not a range"):
        formats.open_checkpoint(tmp_path / "m")


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_is_left_as_it_was(enabled: bool, tmp_path: Path) -> None:
    saved(tmp_path / "m", {})
    (tmp_path / "wrong").write_bytes(WRONG["st_nan"][0])
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        formats.open_checkpoint(tmp_path / "m").close()
        assert gc.isenabled() == enabled
        with pytest.raises(CorruptFileError, match="not JSON"):
            formats.open_checkpoint(tmp_path / "wrong")
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()


def test_extra_fields_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(raw({"a": {**entry([1], 0, 1), "x": [{}]}}, b"1"))
    assert read(tmp_path / "m")["a"].tolist() == [ord("1")]


@pytest.mark.parametrize("head", [b"", b"{", b"\x02" + bytes(7), b"PK\x03\x04", raw("[]")])
def test_another_file_is_not_recognised(head: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(head)
    with pytest.raises(UnknownFormatError, match="not a checkpoint"):
        formats.open_checkpoint(tmp_path / "m.safetensors")


def test_a_file_cut_while_it_is_read(tmp_path: Path) -> None:
    saved(tmp_path / "m", {"t": make("float32", (1000,))})
    with formats.open_checkpoint(tmp_path / "m") as checkpoint:
        with (tmp_path / "m").open("r+b") as stream:
            stream.truncate(1000)
        with pytest.raises(SourceError, match=r"(?s)m: the file became shorter.*1000 bytes"):
            checkpoint["t"].numpy()


def test_reading_after_closing(tmp_path: Path) -> None:
    saved(tmp_path / "m", {"t": np.float32(1)})
    with formats.open_checkpoint(tmp_path / "m") as checkpoint:
        tensor = checkpoint["t"]
    with pytest.raises(SourceError, match="reading failed: the checkpoint is closed"):
        tensor.numpy()


def test_many_tensors_open_quickly(tmp_path: Path) -> None:  # st_million_empty, at 100,000
    header = json.dumps({f"model.layers.{i}.weight": entry([0, 3], 0, 0) for i in range(100_000)})
    (tmp_path / "m").write_bytes(raw(header))
    start = time.process_time()
    json.loads(header)
    parsed = time.process_time()
    with formats.open_checkpoint(tmp_path / "m") as checkpoint:
        opened = time.process_time()
        assert checkpoint["model.layers.77777.weight"].spec == TensorSpec((0, 3), np.dtype("u1"))
        assert len(checkpoint) == 100_000
        assert "model.layers.100000.weight" not in checkpoint
    assert opened - parsed < 6 * (parsed - start) + 0.2


# ── what cannot be written ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "reason"),
    [
        ("__metadata__", "float32", (1,), "the name is reserved"),
        ("a\0b", "float32", (1,), "control character"),
        ("ä" * 2049, "float32", (1,), "longer than 4096 bytes"),
        ("t", "float4_e2m1fn", (3,), "an odd number of 4-bit elements"),
        ("t", "float32", (1,) * 33, "more than 32 dimensions"),
        ("t", "string", (1,), "no string in safetensors"),
        ("t", "complex128", (1,), "no complex128 in safetensors"),
        ("t", "int4", (2,), "no int4 in safetensors"),
    ],
)
def test_a_problem_is_an_error(
    name: str, dtype: str, shape: tuple[int, ...], reason: str, tmp_path: Path
) -> None:
    spec = TensorSpec(shape, dtype_of(dtype))
    assert reason in safetensors.problem(name, spec)
    with pytest.raises(UnrepresentableError, match=reason):
        formats.create(tmp_path / "m", formats.named("safetensors"), {name: spec})
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_byte_order_is_a_problem() -> None:
    assert safetensors.problem("t", TensorSpec((1,), np.dtype(">f4")))
    assert not safetensors.problem("t", TensorSpec((1,), np.dtype("<f4")))


@pytest.mark.parametrize(
    ("metadata", "reason"), [({"a": 1}, "must be strings"), ({"a": "\ud800"}, "must be Unicode")]
)
def test_metadata_that_is_not_text(metadata: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=reason):
        saved(tmp_path / "m", {}, metadata=metadata)
    assert list(tmp_path.iterdir()) == []


def test_a_format_that_is_given_is_kept(tmp_path: Path) -> None:
    assert b'{"format":"tf"}' in saved(tmp_path / "m", {}, metadata={"format": "tf"})


def test_tied_names_are_each_written(tmp_path: Path) -> None:
    array = make("float32", (3,))
    saved(tmp_path / "m", {"a": array, "b": array}, ties=(("a", "b"),))
    assert differences(read(tmp_path / "m"), {"a": array, "b": array}) == []


def test_four_bit_pieces_that_do_not_add_up(tmp_path: Path) -> None:
    dtype = np.dtype(ml_dtypes.float4_e2m1fn)
    for count in (1, 2, 3, 5, 6):
        sink = formats.create(
            tmp_path / "m", formats.named("safetensors"), {"t": TensorSpec((4,), dtype)}
        )
        with pytest.raises(TargetError, match=r"do not add up.*'t'"):
            sink.write("t", [make("float4_e2m1fn", (count,))])
        sink.abort()
    assert list(tmp_path.iterdir()) == []


def test_too_many_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors, "MAX_HEADER", 2000)
    with pytest.raises(UnrepresentableError, match=r"do not fit into a header"):
        saved(tmp_path / "m", {str(i): np.float32(i) for i in range(50)})
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_at_the_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(files.System):
        def write(self, fd: int, data: memoryview, offset: int) -> int:
            raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(files, "system", Full())
    with pytest.raises(NoSpaceError, match="writing failed: full"):
        saved(tmp_path / "m", {})
    assert list(tmp_path.iterdir()) == []


def test_no_space(tmp_path: Path) -> None:
    specs = {"t": TensorSpec((1 << 50,), np.dtype(np.float32))}
    with pytest.raises(NoSpaceError, match=r"(?s)not enough space.*expected: 4503599627\d+ bytes"):
        formats.create(tmp_path / "m", formats.named("safetensors"), specs)
    assert list(tmp_path.iterdir()) == []
