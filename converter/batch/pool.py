"""Worker processes that share one memory budget.

Each has a thread here that talks to it in lines of JSON: a task, what it will need, what it gets,
how it ended.  A process that dies takes nothing with it but its task.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from converter.engine import BASE, LEAST
from converter.errors import LimitError

OWN = BASE  # bytes of this process, which holds no tensors
PATIENCE = 10.0  # seconds for a worker to end that was asked to

Message = dict[str, Any]


class Budget:
    """Bytes that workers may use: each has its base as long as it lives, and asks for the rest."""

    def __init__(self, limit: int | None, workers: int) -> None:
        self.workers = workers
        self._room: int | None = None
        if limit is not None:
            self.workers = min(workers, (limit - OWN) // LEAST)
            if self.workers < 1:
                raise LimitError(
                    "the memory limit is too small",
                    expected=f"at least {(OWN + LEAST) >> 20} MiB",
                    found=f"{limit >> 20} MiB",
                )
            self._room = limit - OWN - self.workers * BASE
        self._free = self._room or 0
        self._changed = threading.Condition()

    @contextmanager
    def granted(self, peak: int) -> Iterator[int | None]:
        """Wait for room; the bytes that a task with this estimated peak is to stay below, or None.

        It waits until all that it can use is free: cut small, it would take longer than that.
        """
        if self._room is None:
            yield None
            return
        wanted = min(max(peak, LEAST) - BASE, self._room)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= wanted)
            self._free -= wanted
        try:
            yield BASE + wanted
        finally:
            with self._changed:
                self._free += wanted
                self._changed.notify_all()


class Pool:
    """Workers in a folder, each started when it is needed; leave the context to end them."""

    def __init__(self, command: Sequence[str], budget: Budget, folder: Path) -> None:
        self.answers: queue.SimpleQueue[tuple[str, Message]] = queue.SimpleQueue()
        self._command = list(command)
        self._folder = folder
        self._budget = budget
        self._tasks: queue.SimpleQueue[tuple[str, Message] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._processes: set[subprocess.Popen[str]] = set()
        self._open = 0  # tasks that have no answer yet
        self._ending = threading.Lock()
        self._ended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *exc: object) -> None:
        for _ in self._threads:
            self._tasks.put(None)
        if kind is not None:
            with self._ending:
                self._ended = True
                for process in self._processes:
                    process.terminate()
        for thread in self._threads:
            thread.join()

    def submit(self, name: str, task: Message) -> None:
        """Have a task done; its answer comes to `answers`, whatever happens."""
        self._open += 1
        self._tasks.put((name, task))
        if len(self._threads) < min(self._open, self._budget.workers):
            thread = threading.Thread(target=self._serve, name="converter-batch", daemon=True)
            self._threads.append(thread)
            thread.start()

    def wait(self) -> tuple[str, Message]:
        """The next answer."""
        answer = self.answers.get()
        self._open -= 1
        return answer

    def _serve(self) -> None:
        process: subprocess.Popen[str] | None = None
        while (item := self._tasks.get()) is not None:
            name, task = item
            try:
                process = process or self._start()
                answer = self._ask(process, task)
            except (EOFError, OSError, ValueError) as error:
                answer = {"died": f"{type(error).__name__}: {error}"}
                if process is not None:
                    answer["died"] = _how(self._end(process))
                process = None
            self.answers.put((name, answer))
        if process is not None:
            self._end(process)

    def _start(self) -> subprocess.Popen[str]:
        with self._ending:
            if self._ended:
                raise InterruptedError("the run is ending")
            process = subprocess.Popen(  # noqa: S603 - this program itself
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                bufsize=1,
                cwd=self._folder,
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
            )
            self._processes.add(process)
            return process

    def _ask(self, process: subprocess.Popen[str], task: Message) -> Message:
        answer = _exchange(process, task)
        if "peak" not in answer:
            return answer
        with self._budget.granted(answer["peak"]) as memory:
            return _exchange(process, {"max_memory": memory})

    def _end(self, process: subprocess.Popen[str]) -> int:
        """Ask a worker to end by closing its input; kill it when it does not."""
        try:
            if process.stdin:
                process.stdin.close()
        except OSError:
            pass
        try:
            code = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if process.stdout:
            process.stdout.close()
        with self._ending:
            self._processes.discard(process)
        return code


def _exchange(process: subprocess.Popen[str], message: Message) -> Message:
    assert process.stdin is not None  # noqa: S101 - both are pipes
    assert process.stdout is not None  # noqa: S101
    process.stdin.write(json.dumps(message) + "\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line.endswith("\n"):
        raise EOFError("the worker ended")
    return dict(json.loads(line))


def _how(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"ended with {code}"
