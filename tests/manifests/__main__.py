"""`python -m tests.manifests NAME...` or `--all`: one process a framework, for they quarrel."""

from __future__ import annotations

import os
import subprocess
import sys

from tests import manifests
from tests.oracles import QUIET


def main(names: list[str]) -> None:
    known = {module.__name__: list(module.MODELS) for module in manifests.modules()}
    if names == ["--all"]:
        names = [name for models in known.values() for name in models]
    unknown = set(names).difference(*known.values())
    if unknown or not names:
        sys.exit(f"not known: {', '.join(sorted(unknown))}\n{__doc__}")
    parts = [[name for name in models if name in names] for models in known.values()]
    parts = [part for part in parts if part]
    if len(parts) == 1:
        for name in parts[0]:
            manifests.make(name)
        return
    for part in parts:
        command = [sys.executable, "-m", "tests.manifests", *part]
        subprocess.run(command, env=os.environ | QUIET, check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
