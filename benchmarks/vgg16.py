"""A full-size VGG-16 through the command: time and memory of whole processes, against `cp`.

python -m benchmarks.vgg16 [--repetitions N] [--frameworks PYTHON] [--json] [--only TEXT]

The files lie in memory where there is room.  The machine is noisy, so the repetitions are
interleaved (each case once, then all again, `cp` before each of ours); medians and minima are
reported, and ratios are of medians.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import Case, measure

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - files in memory: the disk is not what is measured
ROOM = 4 << 30
MAPPING = "vgg16/slim-torchvision"
SMALL = ("--max-memory", "128MiB")
HEAVY = ("h5py", "keras", "numpy", "tensorflow", "torch")
CONVERTER = (str(Path(sys.executable).with_name("converter")),)  # what people run
QUIET = {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}


def sources(folder: Path) -> dict[str, str]:
    """The checkpoint in V1 and in V2."""
    paths = {}
    for version in ("v1", "v2"):
        paths[version] = str(folder / f"{version}.ckpt")
        maker = "benchmarks.make_vgg16"
        measure([sys.executable, "-m", maker, paths[version], "--format", f"tf-{version}"], {})
    return paths


def ours(folder: Path, paths: dict[str, str]) -> list[Case]:
    """Both versions to both targets, with the default memory and with little."""
    cases = []
    for version, source in paths.items():
        for suffix in (".safetensors", ".pt"):
            target = str(folder / f"target{suffix}")
            command = [*CONVERTER, "convert", source, target, "-m", MAPPING]
            name = f"{version} -> {suffix}"
            cases.append(Case(name, command, target, times=3, mib=600))
            name = f"{name} {' '.join(SMALL)}"
            cases.append(Case(name, [*command, *SMALL], target, times=5, mib=300))
    return cases


def peers(folder: Path, paths: dict[str, str], frameworks: Path | None) -> list[Case]:
    """What people do without this package."""
    module = ("-m", "benchmarks.peers")
    extents, target = folder / "extents.json", str(folder / "peer.safetensors")
    save_extents(paths["v2"], extents)
    command = [sys.executable, *module, "numpy", str(extents), target]
    cases = [Case("plain NumPy, V2, no framework", command, target)]
    if frameworks is None or not frameworks.exists():
        note("the usual script is left out: it needs TensorFlow and PyTorch (--frameworks PYTHON)")
        return cases
    target = str(folder / "peer.pt")
    command = [str(frameworks), *module, "frameworks", paths["v2"], target]
    usual = Case("TF reader, transpose, torch.save", command, target, environment=QUIET)
    usual.repetitions = 2
    return [*cases, usual]


def save_extents(checkpoint: str, out: Path) -> None:
    """Where the values lie in a V2 checkpoint's data file; in a child, to stay small."""
    code = (
        "import json, sys\n"
        "from converter.formats import open_checkpoint\n"
        "c = open_checkpoint(sys.argv[1])\n"
        "print(json.dumps({n: [str(t.extent.path), t.extent.offset, t.spec.shape]\n"
        "                  for n, t in c.items()}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, checkpoint], check=True, capture_output=True, text=True
    )
    out.write_text(done.stdout, "utf-8")


def measured(floor: Case, cases: Sequence[Case], repetitions: int) -> None:
    """All cases in turn, several times, the floor before each."""
    floor.run()  # the first one warms the cache
    floor.seconds.clear()
    for turn in range(repetitions):
        for case in cases:
            if case.repetitions is None or turn < case.repetitions:
                note(f"{turn + 1}/{repetitions}: {case.name}")
                floor.run()
                case.run()


def loaded_by_help() -> list[str]:
    """Which of the heavy packages `converter --help` imports."""
    command = [sys.executable, "-X", "importtime", "-m", "converter", "--help"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    modules = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    return sorted(modules & set(HEAVY))


def table(rows: Sequence[dict[str, object]]) -> str:
    """Of the floor, which comes first, and of what is compared with it."""
    times = f"x {rows[0]['case']}"
    head = f"{'':56} {'median':>8} {'min':>8} {times:>6} {'peak':>9}   goal"
    return "\n".join([head, *map(line, rows)])


def line(row: dict[str, object]) -> str:
    verdict = {True: "met", False: "MISSED", None: ""}[row["met"]]
    return (
        f"{row['case']:56} {row['median_s']:6.2f} s {row['min_s']:6.2f} s {row['times']:6.1f} "
        f"{row['peak_mib']:5} MiB   {row['goal']}  {verdict}".rstrip()
    )


def note(text: str) -> None:
    print(text, file=sys.stderr)


def bench(folder: Path, options: argparse.Namespace) -> list[dict[str, object]]:
    note(f"writing the checkpoints to {folder}")
    paths = sources(folder)
    target = str(folder / "copy")
    copy = Case("cp", ["cp", paths["v1"], target], target)
    start = Case("converter --help", [*CONVERTER, "--help"], seconds_at_most=0.3)
    cases = [start, *ours(folder, paths), *peers(folder, paths, options.frameworks)]
    cases = [case for case in cases if options.only in case.name]
    if not cases:
        raise SystemExit(f"no case is called like '{options.only}'")
    measured(copy, cases, options.repetitions)
    return [case.facts(copy) for case in (copy, *cases)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--frameworks", type=Path, help="a Python with TensorFlow and PyTorch")
    parser.add_argument("--only", default="", help="only the cases with this text in their name")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    roomy = SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > ROOM
    with tempfile.TemporaryDirectory(prefix="bench-", dir=SHARED_MEMORY if roomy else None) as name:
        rows = bench(Path(name), options)
    loaded = loaded_by_help()
    if options.json:
        print(json.dumps({"cases": rows, "loaded_by_help": loaded}, indent=2))
    else:
        print(table(rows))
        print(f"converter --help loads, of {', '.join(HEAVY)}: {', '.join(loaded) or 'none'}")


if __name__ == "__main__":
    main()
