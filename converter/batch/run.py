"""A run of a manifest: which entries are to be made, in which order, and what became of each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from converter.batch.lock import Done, Lock, Seen, asked
from converter.batch.manifest import Entry, Manifest
from converter.batch.pool import Message, Pool
from converter.batch.quick import Outcome, whole
from converter.errors import ConverterError, Diagnostic, NotFoundError, TargetExistsError
from converter.language.load import SUFFIXES, find

_ENDS = ("", ".index", ".index.json")  # of what stands where a target is to be


@dataclass
class Run:
    """The entries of a manifest that are to be brought up to date.

    `task` turns an entry into what a worker is told, which works in the manifest's folder: what is
    written down there does not depend on where the run was started.  With `locked`, the lock is
    only compared.
    """

    manifest: Manifest
    lock: Lock
    seen: Seen
    task: Callable[[Entry], Message]
    entries: Sequence[Entry]
    fail_fast: bool = False
    locked: bool = False
    overwrite: bool = False
    incomplete: Callable[[Entry], str] = lambda _: ""  # what else is missing, besides outputs
    ended: dict[str, Outcome] = field(default_factory=dict)

    def go(self, pool: Pool) -> Iterator[Outcome]:
        """Bring everything up to date; each outcome as soon as it is known."""
        waiting = {entry.name: entry for entry in self.entries}
        running: dict[str, tuple[Entry, str]] = {}
        self.mark()
        while waiting or running:
            for entry in [
                each for each in waiting.values() if self.is_ready(each, waiting, running)
            ]:
                del waiting[entry.name]
                outcome, why = self.begin(entry)
                if outcome:
                    yield self.end(outcome)
                else:
                    running[entry.name] = entry, why
                    pool.submit(entry.name, self.task(entry) | {"replace": self.replaces(entry)})
            if running and not any(
                self.is_ready(each, waiting, running) for each in waiting.values()
            ):
                name, answer = pool.wait()
                yield self.end(self.outcome(*running.pop(name), answer))
        self.seen.started.clear()
        self.seen.whole = self.remembered()

    def remembered(self) -> dict[str, Any] | None:
        """What is remembered of a run that left everything up to date; None of any other."""
        right = all(each.status in ("converted", "up to date") for each in self.ended.values())
        if not right or len(self.entries) != len(self.manifest.entries):
            return None
        names = {n for done in self.lock.entries.values() for n in (*done.files, *done.outputs)}
        stamps = self.seen.stamps(self.lock.resolve(name) for name in sorted(names))
        if stamps is None:
            return None
        self.lock.write()
        absent = [each.source for each in self.entries if not each.source.is_file()]
        beside = [self.manifest.folder / n for each in self.entries for n in each.mappings]
        absent += [path for path in beside if path.suffix not in SUFFIXES]
        gone = [str(path.absolute()) for path in dict.fromkeys(absent) if not path.exists()]
        return whole(self.manifest.path, self.entries, stamps, self.manifest.globs, gone)

    def is_ready(
        self, entry: Entry, waiting: Mapping[str, Any], running: Mapping[str, Any]
    ) -> bool:
        """Are all entries that it needs done, in one way or another?"""
        return not any(name in waiting or name in running for name in entry.needs)

    def begin(self, entry: Entry) -> tuple[Outcome | None, str]:
        """The outcome, if there is nothing to be done; or why there is."""
        if self.fail_fast and any(each.status == "failed" for each in self.ended.values()):
            return Outcome(entry, "skipped", "another entry failed"), ""
        missing = [
            n
            for n in entry.needs
            if n in self.ended and self.ended[n].status in ("failed", "skipped")
        ]
        if missing:
            return Outcome(entry, "skipped", f"needs '{missing[0]}'"), ""
        try:
            why, found = self.reason(entry)
        except ConverterError as error:
            return Outcome(entry, "failed", "", (finding(entry, error_json(error)),)), ""
        if found:
            return Outcome(entry, "failed", "", (found,)), ""
        return (None, why) if why else (Outcome(entry, "up to date"), "")

    def reason(self, entry: Entry) -> tuple[str, Diagnostic | None]:
        """Why an entry is to be made, "" when it is not; or what is wrong with that."""
        wrong = unfound(entry)
        if wrong:
            return "", wrong
        why = self.lock.changed(entry, self.manifest, self.seen)
        if why and self.locked:
            return "", self.unlocked(entry, why)
        return why or self.lock.damaged(entry, self.seen) or self.incomplete(entry), None

    def unlocked(self, entry: Entry, why: str) -> Diagnostic:
        """The finding that the lock would change."""
        hint = "run `converter batch` without --locked, and check the lock in"
        return entry.place.diagnostic(
            "BAT201", f"the lock would change: {entry.name}: {why}", hint=hint
        )

    def mark(self) -> None:
        """Note the targets that are not there yet: what stands there later is ours."""
        for entry in self.entries:
            if self.replaces(entry) or not exists(entry.target):
                self.seen.started.add(self.lock.name(entry.target))
        self.seen.write()

    def replaces(self, entry: Entry) -> bool:
        """May the target be replaced?  It may when it was made here, or when that was asked for."""
        name = self.lock.name(entry.target)
        made = {done.target for done in self.lock.entries.values()}
        return self.overwrite or name in made or name in self.seen.started

    def outcome(self, entry: Entry, why: str, answer: Message) -> Outcome:
        """What a worker's answer means."""
        folder = self.manifest.folder
        if "done" not in answer:
            failed = answer.get("failed") or [
                {"code": "CVT000", "message": f"the worker was {answer.get('died', 'confused')}"}
            ]
            return Outcome(
                entry, "failed", why, tuple(finding(entry, each, folder) for each in failed)
            )
        facts = answer["done"]
        for path, (*stamp, digest) in facts["known"].items():
            self.seen.note(folder / path, tuple(stamp), digest)
        known = {path: row[-1] for path, row in facts["known"].items()}
        done = Done(
            **asked(entry, self.manifest),
            files={self.lock.name(folder / path): known[path] for path in facts["read"]},
            outputs={self.lock.name(folder / path): known[path] for path in facts["outputs"]},
        )
        before = self.lock.entries.get(entry.name)
        if self.locked and done != before:
            return Outcome(entry, "failed", why, (self.unlocked(entry, "other bytes came out"),))
        self.lock.entries[entry.name] = done
        kept = {key: facts[key] for key in ("tensors", "nbytes", "seconds", "format", "outputs")}
        return Outcome(entry, "converted", why, facts=kept)

    def end(self, outcome: Outcome) -> Outcome:
        """Note an outcome, in the lock too: a run that is killed now goes on from here."""
        self.ended[outcome.entry.name] = outcome
        if outcome.status == "converted" and not self.locked:
            self.lock.write()
        return outcome

    def is_planned(self, name: str) -> bool:
        """Would this entry be made?"""
        return name in self.ended and self.ended[name].status == "planned"

    def check_target(self, entry: Entry) -> None:
        """Raise `TargetExistsError` when what stands at the target is none of ours."""
        if exists(entry.target) and not self.replaces(entry):
            raise TargetExistsError("the target exists", path=entry.target, hint="--overwrite")


def exists(target: Path) -> bool:
    """Does a checkpoint, or anything else, stand where a target is to be?"""
    return any(os.path.lexists(f"{target}{end}") for end in _ENDS)


def unfound(entry: Entry) -> Diagnostic | None:
    """The finding that a mapping of an entry is not there."""
    for name in entry.mappings:
        try:
            find(name)
        except NotFoundError as error:
            return entry.at["mapping"].diagnostic("BAT103", error.message, hint=error.hint)
    return None


def error_json(error: ConverterError) -> Message:
    """An error as a worker says it."""
    facts = {key: getattr(error, key) for key in ("expected", "found", "hint", "tensor")}
    text = f"{error.path}: {error.message}" if error.path else error.message
    return {"code": error.code, "message": text, **facts}


def finding(entry: Entry, found: Message, folder: Path = Path()) -> Diagnostic:
    """What was found about an entry, where it is: in a mapping, or else at the entry itself."""
    facts = {key: value for key, value in found.items() if key in Diagnostic._fields}
    if found.get("file"):
        return Diagnostic(**facts, path=folder / found["file"])
    home = {"SRC": "source", "DST": "target", "SEC": "target", "MAP": "options", "PLN": "mapping"}
    key = home.get(found["code"][:3], "")
    place = entry.at.get(key, entry.place)
    told = {
        key: value for key, value in facts.items() if key in ("expected", "found", "hint", "tensor")
    }
    text = f"{entry.name}: {facts['message']}"
    return place.diagnostic(facts["code"], text, severity=facts.get("severity", "error"), **told)
