"""Print the figures: see the package."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module

from tests.faults import Figure

PARTS = {
    "kills": "tests.faults.kills",
    "space": "tests.faults.calls",
    "calls": "tests.faults.calls",
    "crashes": "tests.faults.calls",
    "flips": "tests.faults.damage",
    "outputs": "tests.faults.damage",
    "cuts": "tests.faults.damage",
    "together": "tests.faults.together",
    "changes": "tests.faults.together",
    "fuzz": "tests.faults.fuzz",
    "hostile": "tests.faults.hostile",
    "power": "tests.faults.power",
}


def main() -> None:
    warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--scale", type=float, default=1.0, help="of all numbers of trials")
    parser.add_argument("--only", action="append", default=[], help="a writer or a reader")
    options = parser.parse_args()
    wrong = tried = 0
    for part in options.parts or PARTS:
        started = time.monotonic()
        run: Callable[[float, Sequence[str]], Iterator[Figure]]
        run = getattr(import_module(PARTS[part]), part)
        for figure in run(options.scale, options.only):
            print(figure, flush=True)  # noqa: T201 - what it is for
            wrong += len(figure.wrong)
            tried += figure.tried
        print(f"{part}: {time.monotonic() - started:.0f} s", flush=True)  # noqa: T201
    print(f"{tried} tried, {wrong} wrong")  # noqa: T201
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
