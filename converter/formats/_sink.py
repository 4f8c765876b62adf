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

from converter.files import Place, Publication, StagedFile
from converter.journal import Journal


class Body(Protocol):
    """What goes into a file; `names` are taken, those of `order` are enough."""

    order: Sequence[str]
    names: Iterable[str]
    nbytes: int

    def begin(self, staged: StagedFile) -> None:
        """Take the file, and write what comes before the tensors."""
        ...

    def place(self, name: str) -> Place | None:
        """Where a tensor's elements may be written, as of `Sink.place`."""
        ...

    def placed(self, name: str, crc: int) -> None:
        """Take it that a tensor is there, as `Sink.placed` does."""
        ...

    def write(self, name: str, chunks: Iterable[NDArray[Any]]) -> None:
        """Take a tensor as `Sink.write` does."""
        ...

    def finish(self) -> None:
        """Write what comes after the tensors; `TargetError` when one is missing."""
        ...


class FileSink:
    """A `Sink` of bodies, each in its file; `extra` are files that a subclass fills.

    With a journal, what a run before finished is taken over, and what this one finishes is kept
    when it fails.  `related` are targets whose temporary files are of no use any more.
    """

    def __init__(
        self,
        bodies: Mapping[Path, Body],
        *,
        overwrite: bool,
        extra: Sequence[Path] = (),
        related: Sequence[Path] = (),
        journal: Journal | None = None,
    ) -> None:
        self._journal = journal
        adopted = journal.adopted if journal else {}
        missing = {path: body for path, body in bodies.items() if path not in adopted}
        self.files: Sequence[Path] = (*bodies, *extra)
        self.order: Sequence[str] = [name for body in missing.values() for name in body.order]
        self.resumed = sum(len(list(bodies[path].names)) for path in adopted)
        self._bodies = dict(missing)
        self._left = {path: len(body.order) for path, body in missing.items()}
        self._homes: dict[str, tuple[Body, StagedFile]] = {}
        try:
            self._publication = Publication(
                self.files,
                overwrite=overwrite,
                nbytes=sum(body.nbytes for body in missing.values()),
                adopted=adopted,
                related=related,
            )
        except BaseException:
            if journal:
                journal.close(keep=True)
            raise
        try:
            for staged in self._publication.files:
                if body := missing.get(staged.target):
                    self._homes |= dict.fromkeys(body.names, (body, staged))
                    body.begin(staged)
        except BaseException:
            self.abort()
            raise

    def place(self, name: str) -> Place | None:
        """Where anybody may write a tensor's elements, in any order."""
        body, _ = self._homes[name]
        return body.place(name)

    def placed(self, name: str, crc: int) -> None:
        """Take it that all of a tensor is at its place."""
        body, staged = self._homes[name]
        body.placed(name, crc)
        self._count(staged)

    def write(self, name: str, chunks: Iterable[NDArray[Any]]) -> None:
        """Take a tensor as consecutive 1-D C-order pieces."""
        body, staged = self._homes[name]
        body.write(name, chunks)
        self._count(staged)

    def _count(self, staged: StagedFile) -> None:
        self._left[staged.target] -= 1
        if self._journal and not self._left[staged.target]:
            self._bodies.pop(staged.target).finish()
            self._journal.prove(staged)

    def commit(self) -> None:
        """Publish: afterwards the target is complete and durable."""
        try:
            for body in self._bodies.values():
                body.finish()
            self._publish()
            if self._journal:
                self._journal.close(keep=False)
        finally:
            self.abort()

    def _publish(self) -> None:
        self._publication.commit()

    def abort(self) -> None:
        """Leave nothing behind but what can be resumed; harmless after `commit`."""
        self._publication.abort()
        if self._journal:
            self._journal.close(keep=True)
