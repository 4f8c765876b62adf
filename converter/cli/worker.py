"""A worker of `converter batch`: tasks on stdin, answers on stdout, one JSON object a line.

    ← a task                      → {"peak": bytes it would use}, or {"failed": [...]}
    ← {"max_memory": bytes}       → {"done": {...}}, or {"failed": [...]}

Conversions are what they are elsewhere: open, apply the mappings, save.  The worker ends when its
input does, in the middle of whatever it does: that is how it notices that its parent was killed.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TextIO

import click

import converter
from converter import digests
from converter.batch import lock
from converter.batch.quick import Stamp
from converter.batch.run import error_json
from converter.cli.options import Request, check_template, templated
from converter.cli.plan import as_json, unrepresentable
from converter.cli.record import recorded
from converter.cli.reports import diagnostic_json
from converter.engine import Saved, peak_memory, save
from converter.errors import (
    ConverterError,
    MappingError,
    SourceError,
    TargetError,
    VerificationError,
)
from converter.formats import for_target, named, open_checkpoint
from converter.plan import Plan
from converter.probes import checked
from converter.report import Files, converted
from converter.tensors import Checkpoint, Templated

_START = "import sys; sys.path.append(sys.argv[1]); from converter.cli.worker import main; main()"
COMMAND = (sys.executable, "-P", "-c", _START, str(Path(converter.__file__).parents[1]))

_OF_REQUEST = {field.name for field in fields(Request)} - {"mappings"}

Message = dict[str, Any]


def main() -> None:
    """Answer until there is no more input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, too, and decides
    signal.signal(signal.SIGTERM, _terminate)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # whatever prints, prints no answer
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    while True:
        with _answering(answers):
            _work(json.loads(lines.get()), answers, lines)


def _listen(lines: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)


def _terminate(*_: object) -> None:
    raise SystemExit(143)


@contextmanager
def _answering(answers: TextIO) -> Iterator[None]:
    """Say what goes wrong inside; the worker lives on."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - the parent is told
        _say(answers, {"failed": failures(error)})


def failures(error: Exception) -> list[Message]:
    """What went wrong, as findings."""
    if isinstance(error, MappingError):
        return [diagnostic_json(each) for each in error.diagnostics]
    if isinstance(error, ConverterError):
        return [error_json(error)]
    if isinstance(error, click.ClickException):
        return [{"code": "MAP002", "message": error.format_message()}]
    if isinstance(error, OSError):
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return [{"code": "SRC300", "message": text}]
    return [{"code": "CVT000", "message": f"internal error: {type(error).__name__}: {error}"}]


def _say(answers: TextIO, message: Message) -> None:
    answers.write(json.dumps(message) + "\n")


def request_of(task: Mapping[str, Any]) -> Request:
    """The mapping options of a task."""
    options = {key: value for key, value in task["options"].items() if key in _OF_REQUEST}
    sizes = tuple(options.pop("sizes", {}).items())
    return Request(mappings=tuple(task["mappings"]), sizes=sizes, **options)


def prepared(task: Message, source: Checkpoint) -> tuple[str, Templated, list[Plan]]:
    """The target's format, and what it is to hold; raises what is wrong with that."""
    template = task["options"].get("template")
    name = task["options"].get("to") or for_target(Path(task["target"])).name
    if not named(name).writes:
        raise TargetError(f"{name} is only read, not written", path=task["target"])
    check_template(template, name)
    mapped, plans = request_of(task).apply(source)
    checked(plans)
    filled = templated(mapped, template and Path(template))
    problems = unrepresentable(filled.checkpoint.specs, name)
    if problems:
        raise MappingError(problems)
    return name, filled, plans


def _work(task: Message, answers: TextIO, lines: queue.SimpleQueue[str]) -> None:
    """One conversion, from planning to digests; raises what goes wrong."""
    started = time.monotonic()
    options, target = task["options"], Path(task["target"])
    reports = [Path(path) for path in task["reports"]]
    record = {"command": "batch", **{key: task[key] for key in ("source", "target", "options")}}
    with (
        recorded(record, reports),
        open_checkpoint(task["source"], names=options.get("names")) as checkpoint,
        ExitStack() as stack,
    ):
        inputs = Files.of(checkpoint.files)
        stamps = {path: lock.stamp_of(path) for path in checkpoint.files}
        name, filled, plans = prepared(task, checkpoint)
        mapped = stack.enter_context(filled.checkpoint)
        inputs = inputs.also(mapped.files)
        stamps |= {path: lock.stamp_of(path) for path in mapped.files if path not in stamps}
        peak = peak_memory(mapped.specs)
        _say(answers, {"peak": peak})
        memory = json.loads(lines.get())["max_memory"]
        target.parent.mkdir(parents=True, exist_ok=True)
        saved = save(
            mapped,
            target,
            format=name,
            overwrite=task["replace"],
            max_memory=memory,
            shard_nbytes=options.get("shard_size"),
        )
        if reports or task["verify"]:
            notes = [note for plan in plans for note in plan.problems]
            record |= as_json(plans, notes, peak)
            record |= converted(inputs, plans, saved.files, filled.keys)
            record |= {"status": "converted", "format": saved.format, "kept": list(filled.kept)}
        if task["verify"]:
            _prove(mapped, record["lineage"], target)
        done = _digested(stamps, plans, saved)
    facts = {"tensors": saved.tensors, "nbytes": saved.nbytes, "format": saved.format}
    seconds = round(time.monotonic() - started, 3)
    _say(answers, {"done": done | facts | {"seconds": seconds}})


def _prove(mapped: Checkpoint, written: Sequence[Mapping[str, Any]], target: Path) -> None:
    """Compute every tensor again and compare it with what stands in the target, by digest."""
    for row in written:
        if digests.of_tensor(mapped[row["name"]]) != row["sha256"]:
            raise VerificationError(
                "the target does not hold what the mapping makes of the source",
                path=target,
                tensor=row["name"],
            )


def _digested(stamps: Mapping[Path, Stamp], plans: Sequence[Plan], saved: Saved) -> Message:
    """Every file that was read or written, with what it is known by and its digest."""
    texts = [path for plan in plans for path in plan.rules.texts]
    known = {}
    for path in dict.fromkeys((*stamps, *texts, *saved.files)):
        digest = lock.digest_of(path)
        stamp = lock.stamp_of(path)
        if stamps.get(path, stamp) != stamp:
            raise SourceError("the file changed while it was read", path=path)
        known[str(path)] = [*stamp, digest]
    read = [str(path) for path in (*stamps, *texts)]
    return {"known": known, "read": read, "outputs": [str(path) for path in saved.files]}
