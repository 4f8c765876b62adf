"""The models of Keras 2's `applications`: files of their weights.

python -m tests.oracles.keras2_applications FOLDER APP...

saves FOLDER/APP.h5 of each, at full size.
"""

from __future__ import annotations

import sys
from pathlib import Path

import tf_keras


def main() -> None:
    folder, *apps = sys.argv[1:]
    for app in apps:
        tf_keras.backend.clear_session()  # numbers in names start again
        model = getattr(tf_keras.applications, app)(weights=None)
        model.save_weights(Path(folder) / f"{app}.h5")


if __name__ == "__main__":
    main()
