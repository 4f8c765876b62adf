"""Where included mappings lie, and that they end: no circles, no depths, no foreign folders."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from converter.errors import Diagnostic
from converter.language.names import Sizes
from converter.language.rules import Rules

MAX_DEPTH = 8  # of includes within includes
MAX_INCLUDES = 4096  # of one mapping, all together

_NAME = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)+")  # of a shipped mapping


class IncludeError(ValueError):
    """A mapping that cannot be included."""


def shipped() -> Path:
    """The folder of the mappings that come with the package."""
    package = Path(__file__).parents[1]
    inside = package / "_mappings"  # in a wheel; in a checkout they lie beside the package
    return inside if inside.is_dir() else package.parent / "mappings"


class Chain:
    """The files that include each other on the way to the one that is read now."""

    def __init__(self, path: Path | None) -> None:
        self.files = [path.resolve()] if path else []
        self.count = 0
        self.texts: dict[Path, str] = {}  # of all files that were read
        self.known: dict[object, tuple[Rules, tuple[Diagnostic, ...]]] = {}

    def find(self, name: str) -> Path:
        """The file of a shipped name, or of a path beside the file that is read now."""
        if _NAME.fullmatch(name):
            path = shipped() / f"{name}.yaml"
        elif not name.endswith((".yaml", ".yml")) or not self.files:
            raise IncludeError(f"'{name}' is no shipped name and no path of a .yaml file")
        else:
            path = self.files[-1].parent / name
        path = path.resolve()
        roots = [shipped().resolve(), *(file.parent for file in self.files[:1])]
        if not any(path.is_relative_to(root) for root in roots):
            raise IncludeError(f"'{name}' lies outside of the mapping's folder")
        if not path.is_file():
            raise IncludeError(f"there is no mapping '{name}'")
        return path

    @contextmanager
    def enter(self, path: Path) -> Iterator[None]:
        """Read this file now; `IncludeError` in a circle, or when there is no end of it."""
        if path in self.files:
            raise IncludeError(f"{path.name} includes itself")
        self.count += 1
        if len(self.files) > MAX_DEPTH or self.count > MAX_INCLUDES:
            raise IncludeError(
                f"at most {MAX_DEPTH} includes within each other, and {MAX_INCLUDES} in all"
            )
        self.files.append(path)
        try:
            yield
        finally:
            self.files.pop()

    def compiled(
        self,
        path: Path,
        sizes: Sizes,
        compile_: Callable[[Path, Sizes, Chain], tuple[Rules, tuple[Diagnostic, ...]]],
    ) -> tuple[Rules, tuple[Diagnostic, ...]]:
        """What compiling gives; done once for a file and its sizes."""
        key = (path, tuple(sorted(sizes.items())))
        if key not in self.known:
            self.known[key] = compile_(path, sizes, self)
        return self.known[key]
