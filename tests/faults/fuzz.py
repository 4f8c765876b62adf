"""Mutants of every kind of file that is read: typed errors only, within bounds of time and memory.

A child reads one mutant after the other, with a limit on its memory and an alarm.  What ends the
child, or takes it too long, counts against the mutant that it was given last.  Orbax' folders are
read by a library in a process of its own, which takes a second to start: they get fewer mutants,
more time, and the memory that the reader itself allows.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from converter import formats
from converter.errors import ConverterError
from tests.faults import Figure, chance, folder
from tests.faults.mutants import mutant, several
from tests.faults.seeds import seeds

MUTANTS = 10_600  # of all readers together; at least 10,000, for a slow one gets fewer
SECONDS = 2.0  # of the processor: a verdict must not depend on who else uses it
HANG = 20.0  # seconds of any kind
NBYTES = 256 << 20
SLOW = {"orbax": 30.0}  # seconds, where a process is started for each file


class Late(BaseException):
    """The alarm."""


def fuzz(scale: float, only: Sequence[str]) -> Iterator[Figure]:
    """Each reader: open a mutant, and read every value of it."""
    for row in formats.FORMATS:
        row.load()
    found = [seed for seed in seeds() if not only or seed[0].split()[0] in only]
    missing = {row.name for row in formats.FORMATS} - {name.split()[0] for name, _ in found}
    if missing and not only:
        print("not fuzzed, for want of a library:", *sorted(missing))  # noqa: T201
    share = max(3, int(MUTANTS * scale) // len(found) + 1)
    for name, make in found:
        with folder() as place:
            yield _fuzzed(name, make, place, share // 20 + 1 if name in SLOW else share)


def read_all(path: Path) -> None:
    """Everything that a command may read of a path."""
    if path.name == "m.yaml":
        from converter.language import load

        load(path)
    elif path.name == "batch.yaml":
        from converter.batch.manifest import load as load_manifest

        load_manifest(path)
    else:
        with formats.open_checkpoint(path) as checkpoint:
            for tensor in checkpoint.values():
                tensor.numpy()


def _fuzzed(name: str, make: Callable[[Path], Path], place: Path, count: int) -> Figure:
    figure = Figure(f"mutants, {name}")
    target = make(place)
    os.chdir(place)  # where mappings and manifests look for files
    read_all(target)  # the seed is sound, and what is imported late is there
    started = time.monotonic()
    outcomes: Counter[str] = Counter()
    worst, begin = 0.0, 0
    while begin < count:
        ended, facts = _child(name, target, place, begin, count)
        for number, (seconds, outcome) in facts.items():
            worst = max(worst, seconds)
            outcomes[outcome.partition(":")[0]] += 1
            wrong = outcome not in ("values", "error")
            figure.check(f"mutant {number}: {outcome}" if wrong else "")
        begin = max(facts, default=begin - 1) + 1
        if ended:
            figure.check(f"mutant {begin}: the process ended with {ended}")
            begin += 1
    figure.facts = (
        f"{outcomes['error']} errors, {outcomes['values']} read; "
        f"slowest {worst:.2f} s, all {time.monotonic() - started:.0f} s"
    )
    return figure


def _child(
    name: str, target: Path, place: Path, begin: int, count: int
) -> tuple[int, dict[int, tuple[float, str]]]:
    """How a process ended that was given mutants from `begin` on, and what it said of each."""
    out, into = os.pipe()
    number = os.fork()
    if not number:
        os.close(out)
        code = 70
        try:
            with os.fdopen(into, "w", buffering=1) as stream:
                _read_mutants(name, target, place, range(begin, count), stream)
            code = 0
        finally:
            os._exit(code)
    os.close(into)
    facts = {}
    with os.fdopen(out) as stream:
        for line in stream:
            each, seconds, outcome = line.rstrip("\n").split("\t", 2)
            facts[int(each)] = (float(seconds), outcome)
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]), facts


def _read_mutants(name: str, target: Path, place: Path, numbers: range, stream: Any) -> None:
    def late(*_: object) -> None:
        raise Late

    signal.signal(signal.SIGALRM, late)
    signal.signal(signal.SIGPROF, late)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    memory = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    if name not in SLOW:
        resource.setrlimit(resource.RLIMIT_AS, (memory + NBYTES, memory + NBYTES))
    for number in numbers:
        moments = chance(name, number)
        path = next(several(place, moments))
        data = path.read_bytes()
        path.write_bytes(mutant(data, path, moments))
        started = time.process_time()
        signal.setitimer(signal.ITIMER_REAL, SLOW.get(name, HANG))
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        outcome = _outcome(target)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        stream.write(f"{number}\t{time.process_time() - started}\t{outcome}\n")
        path.write_bytes(data)


def _outcome(target: Path) -> str:
    try:
        read_all(target)
    except ConverterError:
        return "error"
    except Late:
        return f"late: {_where()}"
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is told
        return f"{type(error).__name__}: {' '.join(str(error).split())[:120]} {_where()}"
    return "values"


def _where() -> str:
    frames = traceback.extract_tb(sys.exc_info()[2])
    return " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames[-4:]))
