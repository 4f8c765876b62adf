"""Files that lie, and the rule for each: refused with a typed error, or read as the rule says.

Every file is opened and read to its end by a process of its own with limits on time and memory; an
audit hook counts what it opens outside the file's folder, and what it runs.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import converter
from converter import formats
from converter.errors import ConverterError
from tests.faults import Figure, folder
from tests.faults.fuzz import HANG, NBYTES, SECONDS, Late, read_all
from tests.faults.hostile_files import CASES, RULES

RUN = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "ctypes.dlopen", "socket.")
OURS = (converter.__file__, sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib"), "/proc/self")
CANARY = "canary"


def hostile(scale: float, only: Sequence[str]) -> Iterator[Figure]:
    """Each file, in at most 2 s and 256 MB."""
    for row in formats.FORMATS:
        if row.name != "orbax":
            row.load()
    figures = {rule: Figure(f"hostile: {rule}") for rule in RULES}
    worst = (0.0, "")
    for case in CASES[:: max(1, round(1 / scale))]:
        with folder() as place:
            (place / "in").mkdir()
            target = case.make(place / "in")
            seconds, outcome = _child(target, place)
            worst = max(worst, (seconds, case.name))
            wrong = "" if outcome.startswith(case.outcome) else f"expected {case.outcome}"
            if (place / CANARY).exists() or (place / "in" / CANARY).exists():
                wrong = "code was run"
            if seconds > SECONDS:
                wrong = f"{seconds:.1f} s"
            figures[case.rule].check(wrong and f"{case.name}: {wrong}: {outcome}")
    yield from figures.values()
    slowest = Figure("hostile: the slowest")
    slowest.facts = f"{worst[0]:.2f} s, {worst[1]}; none may take more than {NBYTES >> 20} MiB"
    yield slowest


def _child(target: Path, place: Path) -> tuple[float, str]:
    """Seconds of the processor, and what came of it."""
    out, into = os.pipe()
    number = os.fork()
    if not number:
        os.close(out)
        try:
            os.chdir(place / "in")
            outcome = _read(target)
            os.write(into, outcome.encode()[:2000])
        finally:
            os._exit(0)
    os.close(into)
    with os.fdopen(out) as stream:
        outcome = stream.read()
    _, status, used = os.wait4(number, 0)
    code = os.waitstatus_to_exitcode(status)
    return used.ru_utime + used.ru_stime, outcome or f"ended with {code}"


def _read(target: Path) -> str:
    seen: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(RUN):
            seen.append(f"{event} {arguments[:1]}")
        elif event == "open" and isinstance(arguments[0], str | bytes):
            path = os.path.abspath(os.fsdecode(arguments[0]))  # noqa: PTH100 - links as they are
            inside = path.startswith((str(target.parent), "/tmp", "/dev/shm"))  # noqa: S108
            root = str(Path(converter.__file__).parents[1])
            if not inside and not path.startswith((*OURS, root)):
                seen.append(f"open {path}")

    def late(*_: object) -> None:
        raise Late

    sys.addaudithook(hook)
    signal.signal(signal.SIGALRM, late)
    memory = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (memory + NBYTES, memory + NBYTES))
    signal.setitimer(signal.ITIMER_REAL, HANG)
    try:
        read_all(target)
        outcome = "read"
    except ConverterError as error:
        outcome = f"refused: {error}"
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is told
        outcome = f"{type(error).__name__}: {error}"
    return f"{seen}: {outcome}" if seen else outcome
