"""Short reads that are many and close together, such as headers, a page of the file at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from converter.files import File

PAGE = 4096  # bytes, which cost about as much to read as one
KEPT = 16  # pages


def paged(file: File, start: int, stop: int) -> Callable[[int, int], bytes]:
    """A function that reads (offset, nbytes), counted from `start`, in [start, stop) of a file.

    What lies across two pages is read by itself. Raises what `File.read` does.
    """

    @lru_cache(KEPT)
    def page(number: int) -> bytes:
        begin = start + number * PAGE
        return file.read(begin, min(PAGE, stop - begin))

    def read(offset: int, nbytes: int) -> bytes:
        number, at = divmod(offset, PAGE)
        if at + nbytes > PAGE or start + offset + nbytes > stop:
            return file.read(start + offset, nbytes)
        return page(number)[at : at + nbytes]

    return read
