"""The power cut for real: a file system on a loop device is stopped, mounted again, and judged.

`EXT4_IOC_SHUTDOWN` without a flush of the journal is what a cut leaves on the disk: what was not
synced is gone.  Needs root, `mkfs.ext4` and loop devices.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from converter.formats import FORMATS
from tests.faults import Figure, chance
from tests.faults.writers import Writer, child, chosen, ended, prepare

SHUTDOWN, NO_FLUSH = 0x8004587D, 2
CUTS = 30  # of each writer: two thirds at random moments, one third after a reported success
MIB = 64


def power(scale: float, only: Sequence[str]) -> Iterator[Figure]:
    """Each writer: a complete checkpoint or the old one; after a reported success, the new one."""
    if os.geteuid() or not shutil.which("mkfs.ext4"):
        print("power: skipped, it needs root and mkfs.ext4")  # noqa: T201
        return
    for row in FORMATS:
        row.load()
    for writer in chosen(only):
        with tempfile.TemporaryDirectory(prefix="faults-") as name:
            figure = Figure(f"power cuts, {writer.target}")
            for number in range(max(3, int(CUTS * scale))):
                try:
                    figure.check(_cut(writer, Path(name) / str(number), number))
                except subprocess.CalledProcessError as error:
                    print(f"power: skipped, {error}")  # noqa: T201
                    return
            yield figure


def _cut(writer: Writer, home: Path, number: int) -> str:
    image, place = home / "disk", home / "mounted"
    place.mkdir(parents=True)
    image.write_bytes(b"")
    os.truncate(image, MIB << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    try:
        ready = prepare(place / "work", writer, 20_000)
        before = "absent"
        if number % 2:
            assert ended(child(place / "work", ready.command("old"))) == 0
            before = "old"
        subprocess.run(["sync", "-f", place], check=True)
        running = child(place / "work", ready.command("new"))
        done = number % 3 == 0
        if done:
            assert ended(running) == 0
        else:
            time.sleep(chance(writer.target, number).uniform(0, 0.1))
        _shut_down(place)
        if not done:
            done = ended(running) == 0
    finally:
        subprocess.run(["umount", "-l", place], check=True)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    try:
        found = ready.judge(place / "work")
    finally:
        subprocess.run(["umount", "-l", place], check=True)
        image.unlink()
    if done:
        return "" if found == "new" else f"reported as done, and then {found}"
    return "" if found in (before, "new") else f"{before} became {found}"


def _shut_down(place: Path) -> None:
    fd = os.open(place, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", NO_FLUSH))
    finally:
        os.close(fd)
