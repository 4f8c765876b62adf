"""The files of `hostile`, each with the rule that holds for it."""

from __future__ import annotations

import io
import json
import os
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from tests.formats import tf_bytes

RULES = {
    "run": "Nothing of a file is run: a pickle that asks for a function outside a fixed list is"
    " refused, and so is a tag of YAML; objects that are no tensors are listed and left alone.",
    "outside": "Nothing outside the file's folder is read: links, external and virtual storage,"
    " and paths in an index or manifest that lead elsewhere are refused.",
    "bounds": "Every offset, size and count lies inside the file, and no two tensors share bytes"
    " but views of one storage; what does not is refused.",
    "bombs": "What is described is in proportion to what is stored; nothing is allocated before.",
    "depth": "Nesting, recursion, names and documents have bounds; beyond them a file is refused.",
    "doubt": "What two readers could read in two ways is refused: a name twice, members that"
    " overlap, headers that disagree.",
    "names": "Names of tensors are data and never paths; one with control characters, or of more"
    " than 4,096 bytes, is refused.",
    "kind": "What is no checkpoint, or no plain file, is refused by what it is.",
}


class Case(NamedTuple):
    """A file, its rule, and whether it is refused or read."""

    name: str
    rule: str
    make: Callable[[Path], Path]
    outcome: str = "refused"


def data(content: bytes, name: str = "m.bin") -> Callable[[Path], Path]:
    def make(place: Path) -> Path:
        (place / name).write_bytes(content)
        return place / name

    return make


# ── safetensors ──────────────────────────────────────────────────────────────────────────────────


def st(header: Any, values: bytes = b"", length: int | None = None) -> Callable[[Path], Path]:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return data(struct.pack("<Q", len(text) if length is None else length) + text + values)


def entry(begin: int = 0, end: int = 4, shape: Any = (1,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


ONE = b"\0\0\x80?"
SAFETENSORS = (
    Case("st_len_max", "bounds", st({"a": entry()}, ONE, (1 << 64) - 1)),
    Case("st_len_over_file", "bounds", st({"a": entry()}, ONE, 1 << 20)),
    Case("st_overlap", "bounds", st({"a": entry(), "b": entry(2, 6)}, ONE * 2)),
    Case("st_same_bytes", "bounds", st({"a": entry(), "b": entry()}, ONE)),
    Case("st_hole", "bounds", st({"a": entry(), "b": entry(8, 12)}, ONE * 3)),
    Case("st_trailing", "bounds", st({"a": entry()}, ONE * 2)),
    Case("st_truncated", "bounds", st({"a": entry()}, ONE[:3])),
    Case("st_shape_overflow", "bounds", st({"a": entry(0, 0, [1 << 62, 1 << 62, 0])})),
    Case("st_neg_offset", "bounds", st({"a": entry(-4, 0)}, ONE)),
    Case("st_float_shape", "bounds", st({"a": entry(shape=[1.0])}, ONE)),
    Case("st_bool_shape", "bounds", st({"a": entry(shape=[True])}, ONE)),
    Case("st_meta_nonstring", "bounds", st({"__metadata__": {"a": 1}})),
    Case("st_bad_utf8", "bounds", st(b'{"\xff": 1}')),
    Case("st_dup_key", "doubt", st(b'{"a": %s, "a": %s}' % ((json.dumps(entry()).encode(),) * 2))),
    Case("st_deep_json", "depth", st(b'{"a":' + b"[" * 500_000)),
    Case("st_long_int", "depth", st(b'{"a":' + b"9" * 1_000_000 + b"}")),
    Case("st_rank", "depth", st({"a": entry(shape=[1] * 100)}, ONE)),
    Case("st_nul_name", "names", st({"a\0b": entry()}, ONE)),
    Case("st_line_name", "names", st({"a\nb": entry()}, ONE)),
    Case("st_long_name", "names", st({"a" * 100_000: entry()}, ONE)),
    Case("st_path_name", "names", st({"../../../../pwn": entry()}, ONE), "read"),
)

# ── PyTorch ──────────────────────────────────────────────────────────────────────────────────────


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(  # noqa: PLR0913 - the facts of a tensor
    key: str = "0",
    numel: int = 4,
    offset: int = 0,
    size: tuple[int, ...] = (4,),
    stride: tuple[int, ...] = (1,),
    rebuild: str = "_rebuild_tensor_v2",
) -> bytes:
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu")
    storage += number(numel) + b"tQ"
    facts = storage + number(offset) + numbers(*size) + numbers(*stride)
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n" + rebuild.encode() + b"\n(" + facts + hooks + b"tR"


def saved(value: bytes) -> bytes:
    return b"\x80\x02}(" + text("w") + value + b"u."


def pt(
    pickle: bytes, method: int = zipfile.ZIP_STORED, more: dict[str, bytes] | None = None
) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        members = {"data.pkl": pickle, "byteorder": b"little", "data/0": bytes(16)} | (more or {})
        for name, content in members.items():
            archive.writestr(f"archive/{name}", content)
        archive.writestr("archive/version", "3\n")
    return out.getvalue()


def touch(module: str, name: str) -> bytes:
    """A pickle that asks for a command to be run."""
    return f"\x80\x02c{module}\n{name}\n".encode("latin-1") + text("touch canary") + b"\x85R."


def twice(place: Path) -> Path:
    """Two members of one name."""
    content = pt(saved(tensor()), more={"data.pkx": b"\x80\x02N."})
    return data(content.replace(b"archive/data.pkx", b"archive/data.pkl"))(place)


def flagged() -> bytes:
    content = bytearray(pt(saved(tensor())))
    content[6] |= 1  # encrypted, says the local header alone
    return bytes(content)


def renamed() -> bytes:
    """The local header calls a member otherwise than the directory does."""
    content = pt(saved(tensor()))
    return content.replace(b"archive/data.pkl", b"archive/evil.pkl", 1)


NESTED = b"\x80\x02" + b"(" * 300_000 + b"t" * 300_000 + b"."
MEMO = b"\x80\x02]" + b"".join(b"r" + struct.pack("<I", n << 8) for n in range(200_000)) + b"."
DOUBLED = b"\x80\x02]q\x00" + b"(h\x00h\x00e" * 40 + b"."
PYTORCH = (
    Case("pt_os_system", "run", data(pt(touch("posix", "system")))),
    Case("pt_builtins_eval", "run", data(pt(touch("builtins", "eval")))),
    Case("pt_getattr_static", "run", data(pt(touch("inspect", "getattr_static")))),
    Case("pt_pip_main", "run", data(pt(touch("pip", "main")))),
    Case("pt_torch_load", "run", data(pt(touch("torch.serialization", "load")))),
    Case("pt_legacy_system", "run", data(touch("posix", "system"))),
    Case(
        "pt_legacy_after_magic",
        "run",
        data(
            b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03." + touch("posix", "system")
        ),
    ),
    Case("pt_extension_registry", "run", data(pt(b"\x80\x02\x82\x01."))),
    Case("pt_sparse", "run", data(pt(saved(tensor(rebuild="_rebuild_sparse_tensor")))), "read"),
    Case("pt_long_bomb", "bounds", data(pt(b"\x80\x02\x8b\xff\xff\xff\x7f."))),
    Case("pt_string_over_file", "bounds", data(pt(b"\x80\x02X\xff\xff\xff\x7fa."))),
    Case("pt_deep_nest", "depth", data(pt(NESTED))),
    Case("pt_memo_bomb", "depth", data(pt(MEMO))),
    Case("pt_holds_itself", "depth", data(pt(DOUBLED)), "read"),
    Case("pt_view_outside", "bounds", data(pt(saved(tensor(size=(1 << 30,)))))),
    Case("pt_neg_offset", "bounds", data(pt(saved(tensor(offset=-4))))),
    Case("pt_neg_stride", "bounds", data(pt(saved(tensor(stride=(-1,)))))),
    Case("pt_stride_alias", "bombs", data(pt(saved(tensor(size=(1 << 34,), stride=(0,)))))),
    Case(
        "pt_deflated_bomb",
        "bombs",
        data(
            pt(
                saved(tensor(numel=1 << 28, size=(1 << 28,))),
                zipfile.ZIP_DEFLATED,
                {"data/0": bytes(1 << 28)},
            )
        ),
    ),
    Case("pt_storage_path", "outside", data(pt(saved(tensor(key="../../../etc/hostname"))))),
    Case("pt_storage_absent", "bounds", data(pt(saved(tensor(key="7"))))),
    Case("pt_two_pickles", "doubt", twice),
    Case("pt_flagbit", "doubt", data(flagged())),
    Case("pt_renamed", "doubt", data(renamed())),
    Case("pt_is_7z", "kind", data(b"7z\xbc\xaf\x27\x1c" + bytes(100), "m.pt")),
    Case("pt_is_html", "kind", data(b"<!DOCTYPE html><html>sign in</html>", "m.pt")),
    Case("pt_is_lfs", "kind", data(b"version https://git-lfs.github.com/spec/v1\n", "m.pt")),
)

# ── NumPy ────────────────────────────────────────────────────────────────────────────────────────


def npy(header: str, values: bytes = b"", length: int | None = None) -> bytes:
    raw = header.encode("latin-1") + b"\n"
    size = struct.pack("<I", len(raw) if length is None else length)
    return b"\x93NUMPY\x02\x00" + size + raw + values


def described(shape: str, dtype: str = "<f4") -> str:
    return f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"


def npz(*members: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> Callable[[Path], Path]:
    out = io.BytesIO()
    import warnings

    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", method) as archive:
        warnings.simplefilter("ignore")  # a name twice
        for name, content in members:
            archive.writestr(name, content)
    return data(out.getvalue(), "m.npz")


def bad_crc(place: Path) -> Path:
    path = npz(("a.npy", npy(described("(1,)"), ONE)))(place)
    path.write_bytes(path.read_bytes().replace(ONE, b"\0\0\0@", 1))
    return path


def overlapping(place: Path) -> Path:
    """Two entries of the directory lead to one local header."""
    path = npz(("a.npy", npy(described("(1,)"), ONE)), ("b.npy", npy(described("(1,)"), ONE)))(
        place
    )
    content = bytearray(path.read_bytes())
    second = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 1)
    content[second + 42 : second + 46] = bytes(4)
    path.write_bytes(content)
    return path


BIG = npy(described("(268435456,)")) + bytes(1 << 28) * 4
NUMPY = (
    Case("npz_deflate_bomb", "bombs", npz(("a.npy", BIG), method=zipfile.ZIP_DEFLATED)),
    Case("npz_huge_shape", "bounds", npz(("a.npy", npy(described("(4611686018427387904,)"))))),
    Case("npz_header_4g", "bounds", npz(("a.npy", npy("{}", length=(1 << 32) - 1)))),
    Case("npz_long_header", "depth", npz(("a.npy", npy(" " * 300_000)))),
    Case("npz_neg_shape", "bounds", npz(("a.npy", npy(described("(-1,)"), ONE)))),
    Case("npz_code_header", "run", npz(("a.npy", npy("__import__('os').system('touch canary')")))),
    Case(
        "npz_object",
        "run",
        npz(("a.npy", npy(described("()", "|O"), touch("posix", "system")))),
        "read",
    ),
    Case("npy_object", "run", data(npy(described("()", "|O"), touch("posix", "system")), "m.npy")),
    Case("npz_bad_crc", "bounds", bad_crc),
    Case("npz_dup_member", "doubt", npz(*[("a.npy", npy(described("(1,)"), ONE))] * 2)),
    Case("npz_overlap", "doubt", overlapping),
    Case("npz_slip_name", "names", npz(("../../pwn.npy", npy(described("(1,)"), ONE))), "read"),
)
del BIG

# ── HDF5 ─────────────────────────────────────────────────────────────────────────────────────────


def h5(fill: Callable[[h5py.File], None]) -> Callable[[Path], Path]:
    def make(place: Path) -> Path:
        with h5py.File(place / "m.h5", "w") as file:
            group = file.create_group("dense/dense")
            group["kernel"] = np.ones((2, 2), np.float32)
            file.attrs["layer_names"] = [b"dense"]
            file["dense"].attrs["weight_names"] = [b"dense/kernel"]
            fill(file)
        return place / "m.h5"

    return make


def put(file: h5py.File, link: Any) -> None:
    del file["dense/dense/kernel"]
    file["dense/dense/kernel"] = link


def external_storage(file: h5py.File) -> None:
    del file["dense/dense/kernel"]
    places = [("/etc/hostname", 0, 4)]
    file.create_dataset("dense/dense/kernel", (1,), "f4", external=places)


def virtual(file: h5py.File) -> None:
    del file["dense/dense/kernel"]
    layout = h5py.VirtualLayout((2,), "f4")
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", (2,))
    file.create_virtual_dataset("dense/dense/kernel", layout)


def shapes(file: h5py.File, count: int, size: int) -> None:
    for n in range(count):
        file.create_dataset(f"dense/dense/b{n}", (size,), "f4", chunks=(1024,))
    names = [b"dense/kernel", *(f"dense/b{n}".encode() for n in range(count))]
    file["dense"].attrs["weight_names"] = names


def config(file: h5py.File) -> None:
    code = {"class_name": "Lambda", "config": {"function": ["4wEAAAAA", None, None]}}
    file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": [code]})


HDF5 = (
    Case(
        "h5_external_link",
        "outside",
        h5(lambda file: put(file, h5py.ExternalLink("/etc/hostname", "/x"))),
    ),
    Case("h5_external_storage", "outside", h5(external_storage)),
    Case("h5_virtual", "outside", h5(virtual)),
    Case(
        "h5_soft_link_loop",
        "outside",
        h5(lambda file: put(file, h5py.SoftLink("/dense/dense/kernel"))),
    ),
    Case(
        "h5_hard_link_cycle", "depth", h5(lambda file: file["dense"].__setitem__("up", file["/"]))
    ),
    Case("h5_shape_bomb", "bombs", h5(lambda file: shapes(file, 1, 1 << 40))),
    Case("h5_many_subfloor_bombs", "bombs", h5(lambda file: shapes(file, 16, 1 << 28))),
    Case("h5_lambda", "run", h5(config), "read"),
)

# ── TensorFlow ───────────────────────────────────────────────────────────────────────────────────


def bundle(rows: dict[bytes, bytes], **facts: Any) -> Callable[[Path], Path]:
    def make(place: Path) -> Path:
        (place / "m.data-00000-of-00001").write_bytes(bytes(16))
        (place / "m.index").write_bytes(tf_bytes.table(rows.items(), **facts))
        return place / "m.index"

    return make


HEADER = {b"": b"\x08\x01\x1a\x02\x08\x01"}
V = tf_bytes.varint
SHAPE = b"\x12\x04\x12\x02\x08\x04"


def stored(shard: int = 0, offset: int = 0, size: int = 16, shape: bytes = SHAPE) -> bytes:
    crc = b"\x35" + struct.pack("<I", 0)
    return b"\x08\x01" + shape + b"\x18" + V(shard) + b"\x20" + V(offset) + b"\x28" + V(size) + crc


def footer(place: Path) -> Path:
    """A handle that leads to itself, and one of 2^60 bytes."""
    path = bundle({**HEADER, b"w": stored()})(place)
    content = path.read_bytes()
    handles = V(1 << 60) + V(1 << 60) + V(len(content) - 48) + V(48)
    path.write_bytes(content[:-48] + handles.ljust(40, b"\0") + content[-8:])
    return path


TENSORFLOW = (
    Case("tf_size_2_63", "bounds", bundle({**HEADER, b"w": stored(size=1 << 63)})),
    Case("tf_offset_wraps", "bounds", bundle({**HEADER, b"w": stored(offset=(1 << 64) - 8)})),
    Case("tf_shard_7_of_1", "bounds", bundle({**HEADER, b"w": stored(shard=7)})),
    Case(
        "tf_shape_2_62",
        "bounds",
        bundle({**HEADER, b"w": stored(shape=b"\x12\x0c\x12\x0a\x08" + V(1 << 62))}),
    ),
    Case("tf_no_header", "bounds", bundle({b"w": stored()})),
    Case("tf_bad_crc", "bounds", bundle({**HEADER, b"w": stored()})),
    Case("tf_footer", "bounds", footer),
)

# ── indices, mappings and manifests ──────────────────────────────────────────────────────────────


def index(shard: Any, tensors: Any = ("a",), link: str = "") -> Callable[[Path], Path]:
    def make(place: Path) -> Path:
        st({"a": entry()}, ONE)(place).rename(place / "s.safetensors")
        st({"a": entry()}, ONE)(place).rename(place.parent / "s.safetensors")
        if link:
            (place / str(shard)).symlink_to(link)
        weights = dict.fromkeys(tensors, shard)
        path = place / "m.safetensors.index.json"
        path.write_text(json.dumps({"metadata": {}, "weight_map": weights}))
        return path

    return make


def link(place: Path) -> Path:
    (place / "m.pt").symlink_to("/dev/zero")
    return place / "m.pt"


def pipe(place: Path) -> Path:
    os.mkfifo(place / "m.pt")
    return place / "m.pt"


LAUGHS = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
)
MAP = "mapping: 1\nname: a/b\nrules:\n  - {source: a, target: b}\n"
DEEP = json.dumps({"weight_map": {}})[:-1] + ', "x": ' + "[" * 300_000
TEXTS = (
    Case("idx_traversal", "outside", index("../s.safetensors")),
    Case("idx_absolute", "outside", index("/etc/hostname.safetensors")),
    Case("idx_subfolder", "outside", index("x/s.safetensors")),
    Case("idx_url", "outside", index("http://127.0.0.1/s.safetensors")),
    Case("idx_hidden", "outside", index(".s.safetensors")),
    Case("idx_symlink_zero", "outside", index("z.safetensors", link="/dev/zero")),
    Case("idx_symlink_up", "outside", index("z.safetensors", link="../s.safetensors")),
    Case("idx_missing_shard", "bounds", index("t.safetensors")),
    Case("idx_absent_tensor", "bounds", index("s.safetensors", ("a", "b"))),
    Case("idx_not_listed", "bounds", index("s.safetensors", ("b",))),
    Case("idx_number", "bounds", index(7)),
    Case("idx_deep", "depth", data(DEEP.encode(), "m.safetensors.index.json")),
    Case("map_laughs", "depth", data(f"{MAP}{LAUGHS}\n".encode(), "m.yaml")),
    Case(
        "map_tag",
        "run",
        data(f"{MAP}x: !!python/object/apply:os.system ['touch canary']\n".encode(), "m.yaml"),
    ),
    Case("map_deep", "depth", data(f"{MAP}x: {'[' * 5000}\n".encode(), "m.yaml")),
    Case("map_digits", "depth", data(f"{MAP}x: {'9' * 100_000}\n".encode(), "m.yaml")),
    Case("map_long", "depth", data(f"{MAP}# {'x' * 3_000_000}\n".encode(), "m.yaml")),
    Case(
        "map_include",
        "outside",
        data(b"mapping: 1\nname: a\ninclude:\n  - {mapping: /etc/passwd}\nrules: []\n", "m.yaml"),
    ),
    Case("map_dup_key", "doubt", data(f"{MAP}name: c/d\n".encode(), "m.yaml")),
    Case(
        "manifest_laughs",
        "depth",
        data(f"batch: 1\nentries: []\n{LAUGHS}\n".encode(), "batch.yaml"),
    ),
    Case(
        "manifest_tag",
        "run",
        data(
            b"batch: 1\nentries: !!python/object/apply:os.system ['touch canary']\n", "batch.yaml"
        ),
    ),
    Case(
        "manifest_deep", "depth", data(f"batch: 1\nentries: {'[' * 5000}\n".encode(), "batch.yaml")
    ),
    Case("dev_zero", "kind", link),
    Case("fifo", "kind", pipe),
    Case("empty", "kind", data(b"", "m.pt")),
    Case("msgpack_deep", "depth", data(b"\x81\xa1a" + b"\x91" * 300_000 + b"\xc0", "m.msgpack")),
    Case("msgpack_long", "bounds", data(b"\x81\xa1a\xc9\xff\xff\xff\xff\x01", "m.msgpack")),
    Case(
        "gguf_counts",
        "bounds",
        data(b"GGUF" + struct.pack("<IQQ", 3, 1 << 62, 1 << 62) + bytes(64), "m.gguf"),
    ),
    Case("joblib_system", "run", data(touch("posix", "system"), "m.joblib")),
    Case("joblib_bomb", "bombs", data(zlib.compress(b"\x80\x02X" + bytes(1 << 28), 9), "m.pkl.z")),
)

CASES = (*SAFETENSORS, *PYTORCH, *NUMPY, *HDF5, *TENSORFLOW, *TEXTS)
assert sys.byteorder == "little"
