"""Everything this package raises, in one tree.

    ConverterError                 code    what went wrong
    ├── SourceError                SRC300  a checkpoint could not be read
    │   ├── NotFoundError          SRC301  no such file, folder or tensor
    │   ├── UnknownFormatError     SRC302  no format recognises the content
    │   ├── CorruptFileError       SRC303  truncated, inconsistent or otherwise broken bytes
    │   │   └── ChecksumError      SRC304  bytes differ from the checksum stored beside them
    │   ├── UnsupportedError       SRC305  sound, but holds something that is not handled
    │   └── MissingExtraError      SRC306  needs a library that is not installed
    ├── TargetError                DST400  a checkpoint could not be written
    │   ├── UnrepresentableError   DST401  the target format cannot hold this tensor
    │   └── NoSpaceError           DST402  the disk is, or would become, full
    ├── RefusedError               SEC600  stopped for safety; nothing was changed
    │   ├── TargetExistsError      SEC601  the target is there and was not to be replaced
    │   ├── UnsafeContentError     SEC602  the file wants code run or other files read
    │   └── LimitError             SEC603  a size, a depth or the memory is out of bounds
    ├── MappingError               MAP000  a mapping, or its plan, has problems (see `.diagnostics`)
    ├── OpError                    PLN220  an op does not fit the tensors it is given
    ├── IrreversibleError          MAP120  a mapping has no way back, or not all of it
    └── VerificationError          VER500  two things that must be equal are not

Errors raised deep inside know the bare fact; `context` adds the file and the tensor on the way up.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

Severity = Literal["error", "warning", "note"]


class Diagnostic(NamedTuple):
    """One finding about a mapping or a plan, where it is and what to do about it.

    `line` and `column` count from 1; `end_column` is exclusive; 0 means that the place is unknown.
    `fix` is the text that should stand at the place instead, where only one is meant.
    """

    code: str
    message: str
    severity: Severity = "error"
    path: Path | None = None
    line: int = 0
    column: int = 0
    end_column: int = 0
    expected: str = ""
    found: str = ""
    hint: str = ""
    tensor: str = ""
    fix: str | None = None

    @property
    def position(self) -> str:
        """`file:line:col`, or as much of it as is known."""
        parts = [_near(self.path)] if self.path else []
        if self.line:
            parts += [str(self.line), str(self.column)]
        return ":".join(parts)

    def __str__(self) -> str:
        where = f"{self.position}: " if self.position else ""
        text = f"{where}{self.severity}[{self.code}]: {self.message}"
        return text + "".join(
            f"\n  {label}: {value}"
            for label, value in (
                ("expected", self.expected),
                ("found", self.found),
                ("help", self.hint),
            )
            if value
        )


def _near(path: Path) -> str:
    """The path as seen from the working folder, where it lies below it."""
    folder = Path.cwd()
    return (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()


class ConverterError(Exception):
    """Base of all errors of this package."""

    code: ClassVar[str] = "CVT000"

    def __init__(  # noqa: PLR0913 - the facts that a message can carry, each named at the call
        self,
        message: str,
        *,
        path: Path | str | None = None,
        tensor: str = "",
        offset: int | None = None,
        expected: object = "",
        found: object = "",
        hint: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.path = Path(path) if path is not None else None
        self.tensor = tensor
        self.offset = offset
        self.expected = str(expected)
        self.found = str(found)
        self.hint = hint

    def __str__(self) -> str:
        where = [f"tensor '{self.tensor}'"] if self.tensor else []
        if self.offset is not None:
            where.append(f"byte offset {self.offset}")
        text = f"{self.path}: {self.message}" if self.path else self.message
        if where:
            text += f" ({', '.join(where)})"
        facts = (("expected", self.expected), ("found", self.found), ("help", self.hint))
        return text + "".join(f"\n  {label}: {value}" for label, value in facts if value)


class SourceError(ConverterError):
    """A checkpoint could not be read."""

    code = "SRC300"


class NotFoundError(SourceError):
    """There is no such file, folder or tensor."""

    code = "SRC301"


class UnknownFormatError(SourceError):
    """No format recognises the content."""

    code = "SRC302"


class CorruptFileError(SourceError):
    """The bytes are truncated, contradict each other or break the format's rules."""

    code = "SRC303"


class ChecksumError(CorruptFileError):
    """The bytes differ from the checksum that is stored beside them."""

    code = "SRC304"


class UnsupportedError(SourceError):
    """The file is sound but holds something that is not handled."""

    code = "SRC305"


class MissingExtraError(SourceError):
    """What was asked for needs a library that is not installed; an extra of this package does."""

    code = "SRC306"


class TargetError(ConverterError):
    """A checkpoint could not be written."""

    code = "DST400"


class UnrepresentableError(TargetError):
    """The target format cannot hold this tensor, dtype or name."""

    code = "DST401"


class NoSpaceError(TargetError):
    """The disk is full, or would become so."""

    code = "DST402"


class RefusedError(ConverterError):
    """Stopped for safety; nothing was changed."""

    code = "SEC600"


class TargetExistsError(RefusedError):
    """The target is there already and was not to be replaced."""

    code = "SEC601"


class UnsafeContentError(RefusedError):
    """The file asks for code to be run or for other files to be read."""

    code = "SEC602"


class LimitError(RefusedError):
    """A declared size, depth or count is out of bounds, or memory would be."""

    code = "SEC603"


class MappingError(ConverterError):
    """A mapping file, or the plan made from it, has problems: all of them, in `diagnostics`."""

    code = "MAP000"

    def __init__(self, diagnostics: Sequence[Diagnostic]) -> None:
        self.diagnostics = tuple(diagnostics)
        super().__init__("\n".join(map(str, self.diagnostics)))


class OpError(ConverterError):
    """An op does not fit the shapes or dtypes of the tensors that it is given."""

    code = "PLN220"


class IrreversibleError(ConverterError):
    """An op, and so a rule, has no way back."""

    code = "MAP120"


class VerificationError(ConverterError):
    """Two checkpoints that must be equal are not."""

    code = "VER500"


class context:  # noqa: N801 - a function in all but speed: there may be one per tensor
    """Add the file and the tensor to an error that passes by and does not know them yet."""

    def __init__(self, *, path: Path | None = None, tensor: str = "") -> None:
        self._path = path
        self._tensor = tensor

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, ConverterError):
            error.path = error.path or self._path
            error.tensor = error.tensor or self._tensor
