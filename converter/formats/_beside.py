"""Files that a file names: beside it, or below its folder, and nowhere else."""

from __future__ import annotations

import re
from pathlib import Path

from converter.errors import NotFoundError, UnsafeContentError
from converter.formats._names import shown

MAX_PARTS = 32  # folders on the way


def beside(owner: Path, location: str, *, below: bool = False) -> Path:
    """The path of a file in the owner's folder, or `below` it, with all links followed.

    A link may only lead where the owner's own link leads: a download cache has a model and its
    data as links into one folder.  Raises `UnsafeContentError` or `NotFoundError`.
    """
    parts = location.split("/")
    plain = len(parts) <= (MAX_PARTS if below else 1) and all(
        re.fullmatch(r"[^\\\0-\x1f\x7f:]{1,255}", part) and part not in {".", ".."}
        for part in parts
    )
    if not plain:
        raise UnsafeContentError(
            "the file leads to something else than a file in its folder",
            expected="a relative path without '..'" if below else "the name of a file beside it",
            found=shown(location),
        )
    path = owner.parent.joinpath(*parts)
    try:
        real, home = path.resolve(strict=True), owner.parent.resolve(strict=True)
        cache = owner.resolve(strict=True).parent
    except (OSError, RuntimeError) as error:
        raise NotFoundError(
            "a file that belongs to it is missing",
            path=path,
            hint="the download may not be complete",
        ) from error
    if real != home.joinpath(*parts) and real.parent != cache:
        raise UnsafeContentError("a link leads out of the folder", path=path, found=real)
    return real
