"""What one conversion was, as data: what went in, by which rules, and what came out.

A record holds no time, and no path but those that were given: the same inputs give the same bytes,
which may be signed.  `check` holds a target against its record, long after the source is gone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from converter import digests
from converter.errors import (
    ConverterError,
    CorruptFileError,
    Diagnostic,
    SourceError,
    context,
)
from converter.files import File
from converter.formats import open_checkpoint
from converter.language.include import shipped
from converter.language.rules import Make, Place, Probe, Rule, Rules
from converter.plan import Plan, Step, trace
from converter.probes import outcomes, proofs
from converter.tensors import Checkpoint, TensorSpec, dtype_name

SCHEMA_VERSION = 1
THREADS = 2  # that hash: both cores of a small machine, and no more memory than two pieces
MAX_RECORD = 1 << 30  # bytes of a record that is read
WORST = ("lossy", "rounding", "exact")

Record = dict[str, Any]


# ── files ────────────────────────────────────────────────────────────────────────────────────


class Stamp(NamedTuple):
    """What a file is known by without reading it."""

    nbytes: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """The stamp of a file as it is now."""
        try:
            facts = path.stat()
        except OSError as error:
            raise SourceError(f"cannot be read: {error.strerror}", path=path) from error
        return cls(facts.st_size, facts.st_mtime_ns, facts.st_ino)


@dataclass(frozen=True)
class Files:
    """Some files as they were at one moment, such as those behind a checkpoint when it was opened.

    The first one leads to the others: their names are those below its folder.
    """

    stamps: Mapping[Path, Stamp]

    @classmethod
    def of(cls, paths: Iterable[Path]) -> Files:
        """The files of these paths, now."""
        return cls({path: Stamp.of(path) for path in paths})

    def also(self, paths: Iterable[Path]) -> Files:
        """These files, and others as they are now."""
        return Files({**self.stamps, **Files.of(p for p in paths if p not in self.stamps).stamps})

    def listed(self) -> list[Record]:
        """Name and size of each; nothing is read."""
        return [
            {"name": self._name(path), "nbytes": stamp.nbytes}
            for path, stamp in self.stamps.items()
        ]

    def digested(self) -> list[Record]:
        """Name, size and SHA-256 of each; `SourceError` when one is not what it was."""
        found = in_parallel([_digest_of(path, stamp) for path, stamp in self.stamps.items()])
        return [row | {"sha256": digest} for row, digest in zip(self.listed(), found, strict=True)]

    def _name(self, path: Path) -> str:
        folder = next(iter(self.stamps)).parent
        for home in (folder, folder.resolve()):
            if path.is_relative_to(home):
                return path.relative_to(home).as_posix()
        return path.name  # it was a link in the folder, and leads to a cache


def _digest_of(path: Path, stamp: Stamp) -> Callable[[], str]:
    def work() -> str:
        digest = digests.of_file(path)
        if Stamp.of(path) != stamp:
            raise SourceError("the file changed since it was opened", path=path)
        return digest

    return work


def in_parallel(work: Sequence[Callable[[], str]]) -> list[str]:
    """What each of these gives, in order; hashing lets other threads run."""
    with ThreadPoolExecutor(THREADS, "converter-digest") as pool:
        return list(pool.map(lambda each: each(), work))


# ── mappings ─────────────────────────────────────────────────────────────────────────────────


def mapping(rules: Rules) -> Record:
    """A mapping's name, and digests of its file and of all that it includes.

    `sha256` is that of all together: it changes with their content, not with where they lie.
    """
    return {
        "name": rules.name,
        "sha256": digests.of_texts(rules.texts.values()),
        "files": [
            {"name": _label(path, rules), "sha256": digests.of_text(text)}
            for path, text in rules.texts.items()
        ],
    }


def _label(path: Path, rules: Rules) -> str:
    """A mapping file as it was named, or as seen from the file that includes it."""
    own = rules.path or Path()
    if path.is_relative_to(shipped()):
        return path.relative_to(shipped()).as_posix()
    if path == own:
        return own.as_posix()
    if path.is_relative_to(shipped().resolve()):
        return path.relative_to(shipped().resolve()).as_posix()
    return Path(own.parent, os.path.relpath(path, own.parent.resolve())).as_posix()


def _at(place: Place, rules: Rules) -> str:
    """`file:line`, and where that is included; "" for what stands in no file."""
    if not place.path or not place.line:
        return ""
    here = f"{_label(place.path, rules)}:{place.line}"
    return f"{here}, included at {_at(place.via, rules)}" if place.via else here


# ── plans ────────────────────────────────────────────────────────────────────────────────────


def ledger(plan: Plan) -> Record:
    """One mapping's plan: every step with the specs after each op, every drop, and the rules."""
    rules, ran = plan.rules, outcomes(plan.rules)
    proved = proofs(plan, ran)
    traced: dict[Any, list[list[str]]] = {}
    told = [
        *(_rule(rule, str(rule), rule.about, rules) for rule in rules.rules),
        *(_rule(make, make.target.text, make.because, rules) for make in rules.makes),
    ]
    order = {id(rule): nth for nth, rule in enumerate((*rules.rules, *rules.makes))}
    return {
        "mapping": rules.name,
        "source_nbytes": plan.source_nbytes,
        "target_nbytes": plan.target_nbytes,
        "contracts": {"source": dict(rules.source_contract), "target": dict(rules.target_contract)},
        "rules": told,
        "steps": [
            _step(step, plan, traced)
            | {"rule": told[nth]["at"], "nth": nth, "proved_by": _named(proved.get(step.target))}
            for step in plan.steps
            for nth in [order[id(step.rule)]]
        ],
        "dropped": [{"name": name, "because": why} for name, why in plan.dropped.items()],
        "left": list(plan.left),
        "probes": [
            {"probe": str(each.probe), "at": _at(each.probe.place, rules), "agrees": each.agrees}
            for each in ran
        ],
    }


def _named(probe: Probe | None) -> str | None:
    return None if probe is None else str(probe)


def _rule(rule: Rule | Make, text: str, about: str, rules: Rules) -> Record:
    return {"at": _at(rule.place, rules), "text": text, "about": about}


def _step(step: Step, plan: Plan, traced: dict[Any, list[list[str]]]) -> Record:
    specs = [plan.sources[name] for name in step.sources]
    return {
        "target": step.target,
        **_spec(step.spec),
        "sources": list(step.sources),
        "source_specs": [str(spec) for spec in specs],
        "ops": [{op.name: op.to_file()} for op in getattr(step.rule, "ops", ())],
        "after": _after(step, specs, traced),
        "line": step.rule.place.line,
        "exactness": step.exactness,
        "unconfirmed": list(step.doubts),
    }


def _spec(spec: TensorSpec) -> Record:
    return {"dtype": dtype_name(spec.dtype), "shape": list(spec.shape), "nbytes": spec.nbytes}


def _after(
    step: Step, specs: Sequence[TensorSpec], traced: dict[Any, list[list[str]]]
) -> list[list[str]]:
    """The specs after each op of a step; layers repeat, so it is kept."""
    if isinstance(step.rule, Make):
        return []
    key = (id(step.rule), *specs)
    if key not in traced:
        found = trace(step.rule, specs, step.pieces)
        traced[key] = [[str(spec) for spec in row] for row in found]
    return traced[key]


def lineage(plans: Sequence[Plan]) -> list[Record]:
    """Every target of a chain of mappings with the source tensors that it is made of: 0, 1 or N."""
    origins: dict[str, tuple[str, ...]] = {name: (name,) for name in plans[0].sources}
    worst = dict.fromkeys(origins, "exact")
    for plan in plans:
        steps = plan.steps
        worst = {s.target: _worst([s.exactness, *(worst[n] for n in s.sources)]) for s in steps}
        origins = {
            s.target: tuple(dict.fromkeys(name for n in s.sources for name in origins[n]))
            for s in steps
        }
    return [
        {
            "name": name,
            **_spec(spec),
            "sources": list(origins[name]),
            "exactness": worst[name],
        }
        for name, spec in plans[-1].specs.items()
    ]


def _worst(kinds: Iterable[str]) -> str:
    known = set(kinds)
    return next(kind for kind in WORST if kind in known)


def planned(plans: Sequence[Plan]) -> Record:
    """What a conversion will be: mappings, ledgers; nothing is hashed but the mappings."""
    return {
        "mappings": [mapping(plan.rules) for plan in plans if plan.rules.texts],
        "plans": [ledger(plan) for plan in plans],
    }


def converted(
    source: Files, plans: Sequence[Plan], files: Sequence[Path], keys: Mapping[str, str]
) -> Record:
    """What a conversion was, beside `planned`: digests of inputs, outputs and each tensor.

    `keys` are what tensors are called in the target, where that is not what the plan calls them.
    `files` are those that were written, the last of which leads to the others.  The target is read
    again: what is digested is what stands there.  Raises `SourceError`.
    """
    outputs = Files.of(reversed(files)).digested()
    with open_checkpoint(files[-1]) as target:
        rows = [row | {"name": keys.get(row["name"], row["name"])} for row in lineage(plans)]
        found = in_parallel([_tensor_digest(target, row["name"]) for row in rows])
    return {
        "inputs": source.digested(),
        "outputs": outputs[::-1],
        "lineage": [row | {"sha256": digest} for row, digest in zip(rows, found, strict=True)],
    }


def _tensor_digest(checkpoint: Checkpoint, name: str) -> Callable[[], str]:
    def work() -> str:
        with context(path=checkpoint.path, tensor=name):
            return digests.of_tensor(checkpoint[name])

    return work


# ── a target against its record ──────────────────────────────────────────────────────────────


def read(path: Path) -> Record:
    """The record of a conversion in a file; `CorruptFileError` when there is none in it."""
    file = File(path)
    try:
        if file.size > MAX_RECORD:
            raise CorruptFileError("this is no report of a conversion: too long", path=path)
        record = json.loads(file.read(0, file.size))
        sound = record["schema_version"] == SCHEMA_VERSION and record["status"] == "converted"
        for row in (*record["outputs"], *record["lineage"]):
            sound &= all(isinstance(row[key], str) for key in ("name", "sha256"))
            sound &= isinstance(row["nbytes"], int)
        sound &= all(_is_plain(row["name"]) for row in record["outputs"])
        sound &= bool(record["outputs"]) and isinstance(record["target"], str)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _no_record(path) from error
    finally:
        file.close()
    if not sound:
        raise _no_record(path)
    return dict(record)


def _is_plain(name: str) -> bool:
    """Whether a name is that of a file in the target's folder."""
    return bool(name) and Path(name).name == name and "\0" not in name


def _no_record(path: Path) -> CorruptFileError:
    return CorruptFileError(
        "this is no report of a conversion that succeeded",
        path=path,
        expected="what `converter convert --report FILE.json` writes",
    )


def check(record: Record, target: Path) -> list[Diagnostic]:
    """Every file of a target that is not what was written, and every tensor that is not.

    The source is not needed.  The tensors are only looked at when a file is wrong.
    """
    paths = _paths(record, target)
    wrong = [
        problem
        for row, path in zip(record["outputs"], paths, strict=True)
        if (problem := _wrong_file(row, path))
    ]
    return wrong + list(_wrong_tensors(record, paths[-1])) if wrong else []


def _paths(record: Record, target: Path) -> list[Path]:
    """Where the outputs of a record are now, of which the target may have got another name."""
    names = [row["name"] for row in record["outputs"]]
    old, new = Path(record["target"]).name, target.name
    if new not in names:
        names = [new + n.removeprefix(old) if n.startswith(old) else n for n in names]
    return [target.parent / name for name in names]


def _wrong_file(row: Record, path: Path) -> Diagnostic | None:
    try:
        nbytes, digest = Stamp.of(path).nbytes, digests.of_file(path)
    except SourceError as error:
        return Diagnostic("VER500", error.message, path=path, expected=f"{row['nbytes']} bytes")
    if nbytes != row["nbytes"]:
        text = "the file is not of the size that was written"
        facts = f"{row['nbytes']} bytes", f"{nbytes} bytes"
    elif digest != row["sha256"]:
        text = "the file is not what was written"
        facts = f"sha256 {row['sha256']}", f"sha256 {digest}"
    else:
        return None
    return Diagnostic("VER500", text, path=path, expected=facts[0], found=facts[1])


def _wrong_tensors(record: Record, path: Path) -> Iterator[Diagnostic]:
    """The tensors that are not what was written, or that cannot be read any more."""
    try:
        with open_checkpoint(path) as target:
            named = [
                problem for row in record["lineage"] if (problem := _wrong_tensor(row, target))
            ]
    except ConverterError as error:
        yield _finding(f"it cannot be opened any more: {error.message}", path)
        return
    yield from named
    if not named:
        yield _finding(
            "no tensor's values differ: what does is between them", path, severity="note"
        )


def _wrong_tensor(row: Record, target: Checkpoint) -> Diagnostic | None:
    name = row["name"]
    try:
        found = digests.of_tensor(target[name])
    except ConverterError as error:
        return _finding(f"'{name}': {error.message}", target.path, tensor=name)
    if found == row["sha256"]:
        return None
    return _finding(f"'{name}': its values are not those that were written", target.path, name)


def _finding(text: str, path: Path | None, tensor: str = "", severity: Any = "error") -> Diagnostic:
    return Diagnostic("VER500", text, severity, path=path, tensor=tensor)
