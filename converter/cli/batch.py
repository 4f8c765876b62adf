"""`converter batch`: many conversions, none of them twice."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli.options import Bytes
from converter.cli.output import count, hint, size
from converter.cli.reports import judging
from converter.cli.summary import conclude
from converter.errors import Diagnostic

if TYPE_CHECKING:
    from converter.batch.lock import Lock
    from converter.batch.manifest import Entry, Manifest
    from converter.batch.quick import Outcome
    from converter.batch.run import Run
    from converter.tensors import Checkpoint


@click.command()
@click.argument("manifest", type=click.Path(path_type=Path))
@click.option(
    "--entry",
    "chosen",
    multiple=True,
    metavar="NAME",
    help="Only these, and what they need; `*` fits.",
)
@click.option("--plan", "only_plan", is_flag=True, help="Judge everything, and write nothing.")
@click.option("--fail-fast", is_flag=True, help="Begin no other entry when one has failed.")
@click.option("--locked", is_flag=True, help="Fail when the lock would change.")
@click.option("--overwrite", is_flag=True, help="Replace targets that were not made by this.")
@click.option("--verify", is_flag=True, help="Compute every tensor again, and compare.")
@click.option("--rehash", is_flag=True, help="Read every file again, whatever its times say.")
@click.option(
    "-j",
    "--jobs",
    type=click.IntRange(1, 256),
    help="Entries at once, at most as many as cores; default: cores.",
)
@click.option("--max-memory", type=Bytes(), help="Of all processes together, e.g. 1GiB.")
@click.option(
    "--reports",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write a record and a page for each entry that is converted.",
)
@judging
def batch(  # noqa: PLR0913 - one parameter an option
    manifest: Path,
    chosen: Sequence[str],
    only_plan: bool,
    fail_fast: bool,
    locked: bool,
    overwrite: bool,
    verify: bool,
    rehash: bool,
    jobs: int | None,
    max_memory: int | None,
    reports: Path | None,
    output: str,
) -> int:
    """Bring the targets of MANIFEST up to date: convert what changed, and nothing else."""
    from converter.batch.quick import unchanged

    if not (chosen or only_plan or rehash or reports):
        known = unchanged(manifest)
        if known is not None:
            return conclude(manifest, [told(outcome) for outcome in known], [], output)
    from converter.batch.lock import Lock, Seen
    from converter.batch.manifest import load
    from converter.batch.pool import Budget, Pool
    from converter.batch.run import Run
    from converter.cli.worker import COMMAND
    from converter.errors import NotFoundError

    if not manifest.is_file():
        raise NotFoundError("no such manifest", path=manifest)
    lock = Lock(manifest)
    loaded = load(manifest, lock.made())
    entries = selected(loaded, chosen)
    seen = Seen(manifest, trust=not rehash)
    findings = [] if chosen else left_over(lock, loaded, locked=locked)
    run = Run(
        loaded,
        lock,
        seen,
        lambda entry: task(entry, loaded, reports, verify=verify),
        entries,
        fail_fast=fail_fast,
        locked=locked,
        overwrite=overwrite,
        incomplete=lambda entry: unreported(entry, reports),
    )
    budget = Budget(max_memory, min(jobs or cores(), cores()))
    if only_plan:
        outcomes = [told(outcome) for outcome in planned(run, max_memory)]
    else:
        if reports:
            reports.mkdir(parents=True, exist_ok=True)
        with seen.held():
            with Pool(COMMAND, budget, loaded.folder) as pool:
                outcomes = [told(outcome) for outcome in run.go(pool)]
            if not locked:
                lock.write()
            seen.write()
    rank = {entry.name: index for index, entry in enumerate(loaded.entries)}
    outcomes.sort(key=lambda outcome: rank[outcome.entry.name])
    return conclude(manifest, outcomes, findings, output)


def cores() -> int:
    """The cores that this process may use."""
    known = getattr(os, "sched_getaffinity", None)
    return len(known(0)) if known else os.cpu_count() or 1


def selected(manifest: Manifest, chosen: Sequence[str]) -> list[Entry]:
    """The entries that are wanted, and what they need."""
    names = {entry.name: entry for entry in manifest.entries}
    if not chosen:
        return list(names.values())
    wanted = [name for name in names if any(fnmatch.fnmatchcase(name, each) for each in chosen)]
    for each in chosen:
        if not fnmatch.filter(names, each):
            raise click.UsageError(f"--entry {each}: there is none; there are {', '.join(names)}")
    kept: set[str] = set()
    while wanted:
        name = wanted.pop()
        wanted += [need for need in names[name].needs if need not in kept]
        kept.add(name)
    return [entry for name, entry in names.items() if name in kept]


def left_over(lock: Lock, manifest: Manifest, *, locked: bool) -> list[Diagnostic]:
    """Forget entries that the manifest does not have any more; a finding when they are locked."""
    names = {entry.name for entry in manifest.entries}
    gone = sorted(set(lock.entries) - names)
    for name in gone:
        del lock.entries[name]
    if not (gone and locked):
        return []
    text = f"the lock would change: no entry is called '{gone[0]}' any more"
    return [Diagnostic("BAT201", text, path=manifest.path, line=1, column=1, end_column=2)]


def task(entry: Entry, manifest: Manifest, reports: Path | None, *, verify: bool) -> dict[str, Any]:
    """What a worker is told, whose working folder is the manifest's."""
    part = f"#{entry.part}" if entry.part else ""
    return {
        "source": manifest.near(entry.source) + part,
        "target": manifest.near(entry.target),
        "mappings": [manifest.near_mapping(name) for name in entry.mappings],
        "options": entry.options.model_dump(exclude_defaults=True),
        "reports": [str(path.resolve()) for path in pages(entry, reports)],
        "verify": verify,
    }


def pages(entry: Entry, reports: Path | None) -> list[Path]:
    """The record and the page of an entry: named after it, in letters that every system takes."""
    if reports is None:
        return []
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", entry.name).strip("-.")[:100]
    if plain != entry.name:
        plain += f"-{hashlib.sha256(entry.name.encode()).hexdigest()[:8]}"
    return [reports / f"{plain}.json", reports / f"{plain}.html"]


def unreported(entry: Entry, reports: Path | None) -> str:
    """Why an entry has no report; "" when it has, or when none is wanted."""
    return "" if all(path.is_file() for path in pages(entry, reports)) else "it has no report here"


def told(outcome: Outcome) -> Outcome:
    """Say one line about an outcome in the log."""
    facts, why = outcome.facts, f" ({outcome.why})" if outcome.why else ""
    detail = ""
    if facts:
        detail = f": {count(facts['tensors'], 'tensor')}, {size(facts['nbytes'])}"
        detail += f", {facts['seconds']:.2f} s" if "seconds" in facts else ""
    hint(f"{outcome.status:10}  {outcome.entry.name}{detail}{why}")
    return outcome


def planned(run: Run, max_memory: int | None) -> Iterator[Outcome]:
    """Judge entries from headers; what one would make is the source of those that need it."""
    from converter.batch.quick import Outcome
    from converter.batch.run import finding
    from converter.cli.worker import failures

    made: dict[Path, Checkpoint] = {}
    with ExitStack() as stack:
        for entry in run.entries:
            needed = [name for name in entry.needs if run.is_planned(name)]
            outcome, why = (None, f"needs '{needed[0]}'") if needed else run.begin(entry)
            if outcome is None:
                try:
                    facts = judge(entry, made, stack, run.manifest.folder, max_memory)
                    run.check_target(entry)
                except Exception as error:  # noqa: BLE001 - said of the entry; the others go on
                    wrong = tuple(finding(entry, each) for each in failures(error))
                    outcome = Outcome(entry, "failed", why, wrong)
                else:
                    outcome = Outcome(entry, "planned", why, facts=facts)
            yield run.end(outcome)


def judge(
    entry: Entry,
    made: dict[Path, Checkpoint],
    stack: ExitStack,
    folder: Path,
    max_memory: int | None,
) -> dict[str, Any]:
    """What an entry would make, which is then in `made`; raises what is wrong with it."""
    from converter.cli.worker import prepared
    from converter.engine import peak_memory
    from converter.formats import open_checkpoint

    names, template = entry.options.names, entry.options.template
    source = None if names else made.get(entry.source)
    if source is None:
        source = stack.enter_context(open_checkpoint(entry.opens, names=names))
    elif entry.part:
        source = source.under(entry.part)
    options = entry.options.model_dump(exclude_defaults=True)
    if template:
        options["template"] = folder / template
    asked = {"target": entry.target, "mappings": entry.mappings, "options": options}
    name, filled, _ = prepared(asked, source)
    mapped = stack.enter_context(filled.checkpoint)
    made |= {Path(f"{entry.target}{end}"): mapped for end in ("", ".index", ".index.json")}
    specs = mapped.specs
    return {
        "tensors": len(specs),
        "nbytes": mapped.nbytes,
        "peak": peak_memory(specs, max_memory),
        "format": name,
    }
