"""The real frameworks, one a process, to compare with.

Each module here is a program: `run("tf_saver", "write", ...)` starts it as `python -m
tests.oracles.tf_saver write ...` and waits.  Values travel as `.npz`; where equality to the bit is
the question and the files are large, digests travel as JSON instead.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[2]
LEGACY = Path(sys.prefix) / "legacy"  # what quarrels with newer packages; see the Makefile
QUIET = {
    "CUDA_VISIBLE_DEVICES": "",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_ENABLE_ONEDNN_OPTS": "0",  # plain float32 kernels, the ones to compare with
    "TF_USE_LEGACY_KERAS": "1",  # TF-Slim needs Keras 2
}


def missing(*packages: str) -> list[str]:
    """Those of the packages that are not installed; imports none of them."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


def run(module: str, *arguments: object) -> None:
    """Run an oracle to its end; `RuntimeError` with what it printed when it fails."""
    command = [sys.executable, "-m", f"tests.oracles.{module}", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | QUIET, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{module} exited with {done.returncode}\n{done.stdout}{done.stderr}")


class Child:
    """An oracle that goes on: JSON lines in and out. Failures come as `RuntimeError`."""

    def __init__(self, module: str, *arguments: object) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"tests.{module}", *map(str, arguments)],
            cwd=ROOT,
            env=os.environ | QUIET,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def close(self) -> None:
        self._process.communicate()

    def ask(self, **request: Any) -> Any:
        self._process.stdin.write(json.dumps(request, default=str) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if isinstance(answer, dict) and "error" in answer:
            raise RuntimeError(answer["error"])
        return answer


def pack(array: Any) -> dict[str, Any]:
    """An array as JSON: dtype name, shape and hexadecimal bytes, or a list of such for strings."""
    array = np.asarray(array, object if isinstance(array, bytes) else None)
    if array.dtype == object:
        data: Any = [string.hex() for string in array.reshape(-1)]
        return {"dtype": "string", "shape": array.shape, "data": data}
    return {"dtype": array.dtype.name, "shape": array.shape, "data": array.tobytes().hex()}


def unpack(packed: Mapping[str, Any]) -> NDArray[Any]:
    """The array that `pack` took."""
    shape = packed["shape"]
    if packed["dtype"] == "string":
        array = np.empty(len(packed["data"]), object)
        array[:] = [bytes.fromhex(string) for string in packed["data"]]
        return array.reshape(shape)
    dtype = np.dtype(getattr(ml_dtypes, packed["dtype"], packed["dtype"]))
    return np.frombuffer(bytes.fromhex(packed["data"]), dtype).reshape(shape)


def serve(answer: Callable[..., Any]) -> None:
    """The other side of `Child`: answer each request, and say what fails."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a framework prints is no answer
    for line in sys.stdin:
        try:
            found = answer(**json.loads(line))
        except Exception as error:  # noqa: BLE001 - whatever it is, the test is to know
            found = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(found) + "\n")
        answers.flush()


def digest(array: NDArray[Any]) -> str:
    """dtype, shape and SHA-256 of the C-order bytes: equal texts mean equal to the bit."""
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return f"{array.dtype.name} {list(array.shape)} {hashlib.sha256(flat).hexdigest()}"


def save_digests(path: Path, arrays: Iterable[tuple[str, NDArray[Any]]]) -> None:
    """Write `{name: digest}`, taking one array at a time."""
    path.write_text(json.dumps({name: digest(array) for name, array in arrays}), "utf-8")


def load_digests(path: Path) -> dict[str, str]:
    """Read what `save_digests` wrote."""
    return dict(json.loads(path.read_text("utf-8")))


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write an `.npz`; the names may contain slashes."""
    np.savez(path, **dict(arrays))


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read a whole `.npz`."""
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}
