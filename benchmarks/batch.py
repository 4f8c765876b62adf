"""Four entries at once against one after the other; the memory of all processes; nothing twice.

python -m benchmarks.batch [DIVISOR [MIB]]        of VGG-16's widths: 2 is 140 MB an entry
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

MIB = 1 << 20
ENTRIES = 4
ROUNDS = 3
PAGE = os.sysconf("SC_PAGE_SIZE")
SAMPLE = Path(__file__).parents[1] / "examples" / "batch" / "make_checkpoints.py"


def resident(group: int) -> int:
    """Bytes resident of all processes of a group: what they share counts for each."""
    total = 0
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            facts = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(facts[2]) == group:
            total += int(facts[21]) * PAGE
    return total


def measured(folder: Path, *words: str) -> tuple[float, int, float]:
    """Seconds, the largest sum of resident bytes as seen from outside, and seconds of CPU."""
    command = [sys.executable, "-m", "converter", "batch", "ports.yaml", *words]
    begun, peak, ended = time.perf_counter(), 0, threading.Event()
    with subprocess.Popen(
        command, cwd=folder, stderr=subprocess.DEVNULL, start_new_session=True
    ) as running:

        def watch() -> None:
            nonlocal peak
            while not ended.wait(0.003):
                peak = max(peak, resident(running.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        _, status, usage = os.wait4(running.pid, 0)
        running.returncode = code = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - begun
        ended.set()
        watcher.join()
    assert code == 0, f"exit code {code}"
    return seconds, peak, usage.ru_utime + usage.ru_stime


def manifest() -> str:
    entries = [
        {
            "name": str(number),
            "source": f"in/{number}/vgg_16.ckpt",
            "mapping": "vgg16/slim-torchvision",
            "target": f"out/{number}.safetensors",
        }
        for number in range(ENTRIES)
    ]
    return json.dumps({"batch": 1, "entries": entries})


def clean(folder: Path) -> None:
    """As it was before the first run."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    shutil.rmtree(folder / ".converter_cache", ignore_errors=True)
    (folder / "ports.lock.json").unlink(missing_ok=True)
    os.sync()


def main() -> None:
    divisor, limit = (*sys.argv[1:], *("2", "512")[len(sys.argv) - 1 :])
    with tempfile.TemporaryDirectory(prefix="converter-batch-") as name:
        folder = Path(name)
        first = folder / "in" / "0"
        subprocess.run([sys.executable, SAMPLE, first, divisor], check=True)
        for number in range(1, ENTRIES):
            shutil.copytree(first, folder / "in" / str(number))
        (folder / "ports.yaml").write_text(manifest())
        rows: dict[str, list[tuple[float, int, float]]] = {"one after the other": [], "at once": []}
        again = []
        memory = f"--max-memory={limit}MiB"
        for _ in range(ROUNDS):  # in turn, so that a busy machine is busy for both
            for jobs, row in (("1", "one after the other"), (str(ENTRIES), "at once")):
                clean(folder)
                rows[row].append(measured(folder, "--jobs", jobs, memory))
            again.append(measured(folder)[0])
        size = (first / "vgg_16.ckpt").stat().st_size
    print(f"{ENTRIES} entries of {size / 1e6:.0f} MB, --max-memory {limit}MiB, {ROUNDS} rounds")
    for row, results in rows.items():
        seconds, peaks, cpu = zip(*results, strict=True)
        most = f"{max(peaks) / MIB:4.0f} MiB at most"
        print(f"{row:20} {min(seconds):6.2f} s at best   {min(cpu):6.2f} s of CPU   {most}")
    best = min(seconds for seconds, *_ in rows["at once"])
    share = f"1/{best / min(again):.0f} of the first run"
    print(f"{'nothing to do':20} {min(again):6.2f} s at best   {share}")


if __name__ == "__main__":
    main()
