"""Four entries at once against one after the other; the memory of all processes; nothing twice.

python -m benchmarks.batch [DIVISOR]        of VGG-16's widths; 2 is 140 MB an entry
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
LIMIT = 512 * MIB
ROUNDS = 3
PAGE = os.sysconf("SC_PAGE_SIZE")
SAMPLE = Path(__file__).parents[1] / "examples" / "batch" / "make_checkpoints.py"


def resident(group: int) -> int:
    """Bytes resident of all processes of a group: what they share counts for each."""
    total = 0
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            facts = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(facts[2]) == group:
            total += int(facts[21]) * PAGE
    return total


def measured(folder: Path, *words: str) -> tuple[float, int]:
    """Seconds and the largest sum of resident bytes, as seen from outside, of one run."""
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
        code = running.wait()
        seconds = time.perf_counter() - begun
        ended.set()
        watcher.join()
    assert code == 0, f"exit code {code}"
    return seconds, peak


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
    divisor = sys.argv[1] if len(sys.argv) > 1 else "2"
    with tempfile.TemporaryDirectory(prefix="converter-batch-") as name:
        folder = Path(name)
        first = folder / "in" / "0"
        subprocess.run([sys.executable, SAMPLE, first, divisor], check=True)
        for number in range(1, ENTRIES):
            shutil.copytree(first, folder / "in" / str(number))
        (folder / "ports.yaml").write_text(manifest())
        rows: dict[str, list[tuple[float, int]]] = {"one after the other": [], "at once": []}
        again = []
        memory = f"--max-memory={LIMIT}"
        for _ in range(ROUNDS):  # in turn, so that a busy machine is busy for both
            for jobs, row in (("1", "one after the other"), (str(ENTRIES), "at once")):
                clean(folder)
                rows[row].append(measured(folder, "--jobs", jobs, memory))
            again.append(measured(folder)[0])
        size = (first / "vgg_16.ckpt").stat().st_size
    print(
        f"{ENTRIES} entries of {size / 1e6:.0f} MB, --max-memory {LIMIT // MIB}MiB, {ROUNDS} rounds"
    )
    for row, results in rows.items():
        seconds, peaks = zip(*results, strict=True)
        print(f"{row:20} {min(seconds):6.2f} s at best   {max(peaks) / MIB:4.0f} MiB at most")
    best = min(seconds for seconds, _ in rows["at once"])
    print(
        f"{'nothing to do':20} {min(again):6.2f} s at best   1/{best / min(again):.0f} of the first run"
    )


if __name__ == "__main__":
    main()
