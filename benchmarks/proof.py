"""`diff` of two full-size VGG-16 against `cmp`, and `infer` of models that people port.

python -m benchmarks.proof [--repetitions N] [--only TEXT] [--json]

As in benchmarks/vgg16.py the files lie in memory, cases take turns with `cmp` of 553 MB, and
medians are reported.  `infer` may take 10 s for each 100 MB of the source.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Case, measure
from benchmarks.vgg16 import CONVERTER, MAPPING, SHARED_MEMORY, measured, note, sources, table

SECONDS_PER_BYTE = 10 / 100e6
PORTS = (
    "keras-MobileNet to timm-mobilenetv1_100",
    "keras-EfficientNetB0 to timm-tf_efficientnet_b0",
    "keras-DenseNet201 to torchvision-densenet201",
    "slim-resnet_v1_50 to torchvision-resnet50",
    "slim-inception_v4 to timm-inception_v4-1001",
    "google-bert-base to transformers-bert-base",
)


def differences(folder: Path) -> Iterator[Case]:
    """Equal files: nothing ends early, and every value is read and compared."""
    v1 = sources(folder)["v1"]
    for target, options in (("same", ()), ("ported", ("-m", MAPPING))):
        path = str(folder / f"{target}.safetensors")
        measure([*CONVERTER, "convert", v1, path, *options], {})
    same = folder / "same.safetensors"
    shutil.copy(same, folder / "again.safetensors")
    diff = (*CONVERTER, "diff")
    again, ported = str(folder / "again.safetensors"), str(folder / "ported.safetensors")
    yield Case("diff, layouts agree", [*diff, str(same), again], times=3, mib=300)
    yield Case("diff, a mapping", [*diff, v1, ported, "-m", MAPPING], times=6, mib=300)


def inferences(folder: Path, only: str) -> Iterator[Case]:
    """Each port from the values of both sides; `only` spares the files of the others."""
    for number, port in enumerate(name for name in PORTS if only in f"infer {name}"):
        one, other = (str(folder / f"{number}-{side}.safetensors") for side in ("from", "to"))
        measure([sys.executable, "-m", "benchmarks.make_proof", port, one, other], {})
        target = str(folder / "inferred.yaml")
        seconds = Path(one).stat().st_size * SECONDS_PER_BYTE
        command = [*CONVERTER, "infer", one, other, "-o", target]
        yield Case(f"infer {port}", command, target, seconds_at_most=round(seconds, 1))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--only", default="", metavar="TEXT")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    place = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="converter-proof-", dir=place) as name:
        folder = Path(name)
        note(f"writing the files to {folder}")
        cases = [*differences(folder), *inferences(folder, options.only)]
        same, again = (str(folder / f"{copy}.safetensors") for copy in ("same", "again"))
        compare = Case("cmp", ["cmp", same, again])
        measured(compare, [c for c in cases if options.only in c.name], options.repetitions)
        rows = [case.facts(compare) for case in (compare, *cases) if case.seconds]
    print(json.dumps(rows, indent=2) if options.json else table(rows))


if __name__ == "__main__":
    main()
