"""Native PyTorch files: the zip that `torch.save` writes since 1.6 (.pt, .pth, .bin).

https://docs.pytorch.org/docs/stable/notes/serialization.html

    archive/data.pkl     pickle of the saved object; a tensor in it is
                         _rebuild_tensor_v2(storage, offset, size, stride, …), all in elements,
                         and a storage the persistent id
                         ('storage', torch.FloatStorage, key, location, number of elements)
    archive/byteorder    "little" or "big"; absent before 2.1
    archive/data/<key>   the bytes of a storage, uncompressed, 64-byte aligned
    archive/version      "3"
    archive/extra/converter.json    (ours) metadata, when there are any; torch does not look at it

What the pickle means is `_torch`'s matter, writing `_torch_write`'s.  A TorchScript archive
(`torch.jit.save`) is such a zip, too: its data.pkl has modules, whose code lies in archive/code/.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from converter.errors import ConverterError, CorruptFileError, UnsupportedError, context
from converter.files import File
from converter.formats import Probe
from converter.formats._pickle import Unpickler
from converter.formats._torch import TABLE, Place, Storages, Stored, checkpoint_of, stored
from converter.formats._torch_write import METADATA, create, problem
from converter.formats._zip import STORED, Member, first_name, members, read
from converter.tensors import Checkpoint

__all__ = ["create", "open", "open_archive", "problem", "recognise"]

MAX_PICKLE = 256 << 20  # bytes of data.pkl
MAX_SMALL = 1 << 20  # bytes of the other records that are read whole

_PROGRAM = ("archive_format", "serialized_exported_program.json")


def recognise(probe: Probe) -> bool:
    """Whether this is a zip of `torch.save`, `torch.jit.save` or `torch.export.save`."""
    first = first_name(probe.head)
    if not first or first.endswith((b"/data.pkl", b".npy")):  # spare a long directory
        return first.endswith(b".pkl")
    try:
        file = File(probe.path)
        try:
            names = members(file)
        finally:
            file.close()
    except ConverterError:  # broken, or too strange: `open` says how, if it was one of ours
        return b"data.pkl" in probe.head + probe.tail
    return any(_base(name) in {"data.pkl", *_PROGRAM} for name in names)


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def open(path: Path) -> Checkpoint:  # noqa: A001 - the name every format has
    """Open the tensors of a file that `torch.save` wrote; nothing in it is run.

    Raises `CorruptFileError`, `UnsupportedError`, `LimitError` or `UnsafeContentError`.
    """
    file = File(path)
    try:
        with context(path=path):
            return open_archive(file)
    except BaseException:
        file.close()
        raise


def open_archive(file: File, start: int = 0, stop: int | None = None) -> Checkpoint:
    """The tensors of the archive in [start, stop) of a file."""
    archive = _Archive(file, members(file, start, stop))
    data = archive.small("data.pkl", MAX_PICKLE) or b""
    unpickler = Unpickler(data, TABLE, stored, where="data.pkl")
    saved = unpickler.load()
    if unpickler.position != len(data):
        raise CorruptFileError("data.pkl goes on after its end", offset=unpickler.position)
    return checkpoint_of(
        saved,
        Storages(file, archive.place, swap=archive.is_big_endian()),
        format="torch",
        file=file,
        pickled=len(data),
        metadata=archive.metadata(),
        unsupported=archive.program(),
    )


class _Archive:
    """The records of one saved object."""

    def __init__(self, file: File, records: Mapping[str, Member]) -> None:
        special = [name for name in records if name.endswith(("data.pkl", *_PROGRAM))]
        if any(_base(name) in _PROGRAM for name in special):
            raise UnsupportedError(
                "a program of torch.export (.pt2)",
                hint="load it with torch, and torch.save its state_dict",
            )
        depth = 2  # deeper ones are not torch's
        pickles = [n for n in special if _base(n) == "data.pkl" and n.count("/") < depth]
        if len(pickles) != 1:
            raise CorruptFileError(f"{len(pickles)} records named data.pkl", expected="one")
        self._file = file
        self._records = records
        self._root = pickles[0].removesuffix("data.pkl")

    def small(self, name: str, limit: int = MAX_SMALL) -> bytes | None:
        """A whole record, None when it is absent."""
        member = self._records.get(self._root + name)
        return read(self._file, member, limit) if member else None

    def place(self, storage: Stored) -> Place:
        """Where the bytes of a storage are."""
        member = self._records.get(f"{self._root}data/{storage.key}")
        if member is None:
            raise CorruptFileError(f"there is no record data/{storage.key}")
        if member.method != STORED:
            raise UnsupportedError("the record of a tensor is compressed")
        return member

    def is_big_endian(self) -> bool:
        """Whether the storages are in that order; files that do not say are taken for little."""
        order = self.small("byteorder") or b"little"
        if order not in (b"little", b"big"):
            raise CorruptFileError("an unknown byte order", found=order[:20])
        return order == b"big"

    def program(self) -> dict[str, str]:
        """What else is in a TorchScript archive."""
        found = {}
        code, constant = f"{self._root}code/", f"{self._root}constants/"
        parts = [name for name in self._records if name.startswith((code, constant))]
        if any(name.startswith(code) for name in parts):
            found["code/"] = "a TorchScript program: its parameters and buffers are read"
        constants = sum(name.startswith(constant) for name in parts)
        if constants:
            found["constants/"] = f"{constants} tensors that are constants of the program"
        return found

    def metadata(self) -> dict[str, str]:
        """What we wrote beside the tensors."""
        text = self.small(METADATA)
        if text is None:
            return {}
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CorruptFileError(f"{METADATA} is not JSON") from error
        if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
            raise CorruptFileError(f"{METADATA} is not a dictionary of texts")
        return found
