"""The library tensorstore in a process of its own, which a broken file may bring down.

    parent ── {"ask": "keys"} ──────────────────────────────► child, with a limit on its memory
           ◄── {"nbytes": 17}, and so many bytes ────────────
           ── {"ask": "rows", "key": …, "start": 0, "stop": 9} ►

Run as a module, this file is that child.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from converter import extras
from converter.errors import CorruptFileError, LimitError, SourceError

SECONDS = 60.0  # that an answer may take
ROOM = 1 << 30  # bytes that the child may take, beyond what the library takes
MAX_ANSWER = 1 << 30  # bytes

Answer = tuple[dict[str, Any], bytes]


class Library:
    """The child for one folder; usable by several threads."""

    def __init__(self, folder: Path) -> None:
        extras.require("tensorstore")
        self._folder = folder
        self._turn = threading.Lock()
        self._closed = False
        # -P: a module of the same name in the working folder must not be imported instead.
        command = [sys.executable, "-P", "-m", __name__, str(folder)]
        self._child = subprocess.Popen(  # noqa: S603 - this interpreter and this module
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def ask(self, **question: Any) -> Answer:
        """What the library says, and the bytes with it.

        Raises `CorruptFileError` when it refuses, dies or takes too long.
        """
        with self._turn:
            if self._closed:
                raise SourceError("reading failed: the checkpoint is closed")
            watch = threading.Timer(SECONDS, self._child.kill)
            watch.start()
            try:
                facts, data = self._exchange(question)
            except (OSError, ValueError) as error:
                self._child.kill()
                raise CorruptFileError(
                    "the store cannot be read: the library tensorstore failed on it",
                    path=self._folder,
                    expected=f"an answer within {SECONDS:.0f} s and {ROOM >> 20} MiB",
                    found=f"it ended with {self._child.wait()}",
                ) from error
            finally:
                watch.cancel()
        if "error" in facts:
            raise CorruptFileError(f"the store cannot be read: {facts['error']}", path=self._folder)
        return facts, data

    def _exchange(self, question: Mapping[str, Any]) -> Answer:
        assert self._child.stdin is not None  # noqa: S101 - both are pipes
        assert self._child.stdout is not None  # noqa: S101
        self._child.stdin.write(json.dumps(question).encode() + b"\n")
        self._child.stdin.flush()
        facts = json.loads(self._child.stdout.readline(1 << 20))
        nbytes = facts["nbytes"]
        if nbytes > MAX_ANSWER:
            raise LimitError("an answer of the library is too long", found=f"{nbytes} bytes")
        data = self._child.stdout.read(nbytes)
        if len(data) < nbytes:
            raise OSError("the answer ends early")
        return facts, data

    def close(self) -> None:
        """End the child; harmless when repeated."""
        with self._turn:
            self._closed = True
            self._child.kill()
            self._child.wait()
            for pipe in (self._child.stdin, self._child.stdout):
                with suppress(OSError):
                    pipe.close()  # type: ignore[union-attr] # both are pipes


# The child.


class _Store:
    """The key-value store of a folder, as the library has it."""

    def __init__(self, folder: Path) -> None:
        import tensorstore

        self._library: Any = tensorstore
        self._kv = {"driver": "ocdbt", "base": f"{folder.resolve().as_uri()}/"}
        self._keys: Any = None
        used = int(Path("/proc/self/statm").read_text("ascii").split()[0])
        limit = used * resource.getpagesize() + ROOM
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    def keys(self, **_: Any) -> Answer:
        """All keys, in JSON."""
        found = [key.decode("utf-8", "backslashreplace") for key in self._store().list().result()]
        return {}, json.dumps(found).encode()

    def value(self, *, key: str, **_: Any) -> Answer:
        """The bytes of a key."""
        return {}, bytes(self._store().read(key).result().value)

    def rows(self, *, key: str, driver: str, start: int, stop: int, **_: Any) -> Answer:
        """Rows of an array in C order, its dtype and its shape."""
        import numpy as np

        spec = {"driver": driver, "kvstore": {**self._kv, "path": f"{key}/"}}
        array = self._library.open(spec, open=True, read=True).result()
        values = np.asarray((array[start:stop] if array.ndim else array).read().result())
        dtype = array.dtype.numpy_dtype.name
        return {"dtype": dtype, "shape": list(array.shape)}, values.tobytes()

    def _store(self) -> Any:
        self._keys = self._keys or self._library.KvStore.open(self._kv).result()
        return self._keys


def _serve(folder: Path) -> None:
    store = _Store(folder)
    answers: dict[str, Callable[..., Answer]] = {
        "keys": store.keys,
        "value": store.value,
        "rows": store.rows,
    }
    with os.fdopen(0, "rb") as questions, os.fdopen(1, "wb") as out:
        for line in questions:
            question = json.loads(line)
            try:
                facts, data = answers[question["ask"]](**question)
            except (ValueError, OSError, RuntimeError, TypeError, KeyError, MemoryError) as error:
                facts, data = {"error": str(error).split(" [")[0][:500]}, b""
            out.write(json.dumps({**facts, "nbytes": len(data)}).encode() + b"\n" + data)
            out.flush()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
