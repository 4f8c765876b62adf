"""Many tensors, many rules, large files: what is to stay quick, whatever the size.

python -m benchmarks.scale [--repetitions N] [--only TEXT] [--json]

Large files are sparse: only their headers are read.  As in benchmarks/vgg16.py, cases take turns
with `cp` of 553 MB, and medians are reported.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import Case, measure
from benchmarks.vgg16 import CONVERTER, SHARED_MEMORY, measured, note, table

SECONDS = 2.0
MAKER = (sys.executable, "-m", "benchmarks.make_scale")


def cases(folder: Path) -> list[Case]:
    """The commands, each on its file."""

    def quick(name: str, *command: str) -> Case:
        return Case(name, [*CONVERTER, *command], seconds_at_most=SECONDS)

    found = [quick("lint 100 mappings", "lint", str(folder / "mappings"))]
    for suffix in (".safetensors", ".pt"):
        path = str(folder / f"many{suffix}")
        found.append(quick(f"inspect 100,000 tensors, {suffix}", "inspect", path))
    index = str(folder / "shards" / "model.safetensors.index.json")
    found.append(quick("inspect 10 GB in 20 shards", "inspect", index))
    found.append(quick("inspect 1.5 GB, .pt", "inspect", str(folder / "large.pt")))
    for one, other in ((".pt", ".safetensors"), (".safetensors", ".pt")):
        source, target = str(folder / f"553{one}"), str(folder / f"target{other}")
        command = [*CONVERTER, "convert", source, target]
        found.append(Case(f"553 MB, {one} -> {other}", command, target, times=2, mib=200))
    return found


def planning(repetitions: int) -> Case:
    """Planning alone, without a process's start."""
    command = [*MAKER, "--plan", str(repetitions)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    case = Case("plan 100,000 tensors, 200 rules", command, seconds_at_most=SECONDS)
    case.seconds += map(float, done.stdout.split())
    case.peaks.append(0)
    return case


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--only", default="", metavar="TEXT")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    place = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="converter-scale-", dir=place) as name:
        folder = Path(name)
        note(f"writing the files to {folder}")
        measure([*MAKER, str(folder)], {})
        chosen = [case for case in cases(folder) if options.only in case.name]
        target = str(folder / "copy")
        copy = Case("cp", ["cp", str(folder / "553.pt"), target], target)
        measured(copy, chosen, options.repetitions)
        if options.only in "plan":
            chosen.append(planning(options.repetitions))
        rows = [case.facts(copy) for case in (copy, *chosen)]
        print(json.dumps(rows, indent=2) if options.json else table(rows))


if __name__ == "__main__":
    main()
