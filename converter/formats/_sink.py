"""One target of one file, or of several that are published together.

A `Body` is the content of a file whose every offset is known before there is a file: what a
format lays out.  The sink gives it one to write to.

    specs ─► body: order, nbytes ─► file ─► begin: headers ─► write: tensors ─► finish: the rest
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from converter.files import Publication, StagedFile


class Body(Protocol):
    """What goes into a file; `names` are taken, those of `order` are enough."""

    order: Sequence[str]
    names: Iterable[str]
    nbytes: int

    def begin(self, staged: StagedFile) -> None:
        """Take the file, and write what comes before the tensors."""
        ...

    def place(self, name: str) -> int | None:
        """The offset of a tensor's elements, where they may be written in any order."""
        ...

    def write(self, name: str, chunks: Iterable[NDArray[Any]], *, placed: bool) -> None:
        """Take a tensor as `Sink.write` does."""
        ...

    def finish(self) -> None:
        """Write what comes after the tensors; `TargetError` when one is missing."""
        ...


class FileSink:
    """A `Sink` of bodies, each in its file; `extra` are files that a subclass fills."""

    def __init__(
        self, bodies: Mapping[Path, Body], *, overwrite: bool, extra: Sequence[Path] = ()
    ) -> None:
        self.files: Sequence[Path] = (*bodies, *extra)
        self.order = [name for body in bodies.values() for name in body.order]
        self._bodies = list(bodies.values())
        nbytes = sum(body.nbytes for body in self._bodies)
        self._publication = Publication(self.files, overwrite=overwrite, nbytes=nbytes)
        self._homes: dict[str, tuple[Body, StagedFile]] = {}
        try:
            for body, staged in zip(self._bodies, self._publication.files, strict=False):
                self._homes |= dict.fromkeys(body.names, (body, staged))
                body.begin(staged)
        except BaseException:
            self.abort()
            raise

    def place(self, name: str) -> tuple[StagedFile, int] | None:
        """The file and offset of a tensor's elements, where they may be written in any order."""
        body, staged = self._homes[name]
        offset = body.place(name)
        return None if offset is None else (staged, offset)

    def write(self, name: str, chunks: Iterable[NDArray[Any]], *, placed: bool = False) -> None:
        """Take a tensor as consecutive 1-D C-order pieces."""
        self._homes[name][0].write(name, chunks, placed=placed)

    def commit(self) -> None:
        """Publish: afterwards the target is complete and durable."""
        try:
            for body in self._bodies:
                body.finish()
            self._publish()
        finally:
            self.abort()

    def _publish(self) -> None:
        self._publication.commit()

    def abort(self) -> None:
        """Leave nothing behind; harmless after `commit`."""
        self._publication.abort()
