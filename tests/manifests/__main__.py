"""`python -m tests.manifests NAME...` or `--all`: one process a framework, for they quarrel."""

from __future__ import annotations

import os
import subprocess
import sys

from tests import manifests
from tests.oracles import QUIET


def main(names: list[str]) -> None:
    if names[:1] == ["--here"]:
        for name in names[1:]:
            manifests.make(name)
        return
    known = {module.__name__: list(module.MODELS) for module in manifests.modules()}
    if names == ["--all"]:
        names = [name for models in known.values() for name in models]
    unknown = set(names).difference(*known.values())
    if unknown or not names:
        sys.exit(f"not known: {', '.join(sorted(unknown))}\n{__doc__}")
    for models in known.values():
        if part := [name for name in models if name in names]:
            command = [sys.executable, "-m", "tests.manifests", "--here", *part]
            subprocess.run(command, env=os.environ | QUIET, check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
