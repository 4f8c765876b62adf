"""The two sides of a port, full size, without a framework; a process of its own.

python -m benchmarks.make_proof CONVERSION SOURCE TARGET

The source has the names and shapes of a row of tests/conversions and seeded random values; the
target is what the row's mapping makes of it.
"""

from __future__ import annotations

import sys

import numpy as np

import converter
from tests import manifests
from tests.conversions import conversions


def main() -> None:
    name, *paths = sys.argv[1:]
    row = next(row for row in conversions() if str(row) == name)
    rng = np.random.default_rng(0)
    arrays = {}
    for key, spec in manifests.load(row.source).items():
        values = np.abs(rng.standard_normal(spec.shape)) + 0.1  # may be a variance
        arrays[key] = np.asarray(values).astype(spec.dtype)
    source = converter.from_arrays(arrays)
    port = converter.mapping(row.mapping, sizes=row.sizes)
    for checkpoint, path in zip((source, port(source)), paths, strict=True):
        converter.save(checkpoint, path)


if __name__ == "__main__":
    main()
