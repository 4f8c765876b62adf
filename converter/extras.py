"""Libraries that not everybody needs, each with the extra that installs it."""

from __future__ import annotations

import re
from importlib.util import find_spec
from types import MappingProxyType

from converter.errors import MissingExtraError

EXTRAS = MappingProxyType(
    {
        "gguf": "gguf",
        "keras": "keras",
        "lz4": "lz4",
        "safetensors": "safetensors",
        "tensorflow": "tensorflow",
        "tensorstore": "orbax",
        "torch": "torch",
    }
)
_ABSENT = re.compile(r"ModuleNotFoundError: No module named '(\w+)")


def require(library: str) -> None:
    """Raise `MissingExtraError` when the library of an extra is not installed."""
    if find_spec(library) is None:
        raise _missing(library)


def check_child(last: str) -> None:
    """Raise `MissingExtraError` when this last line of a child's says that such a library is."""
    found = _ABSENT.search(last)
    if found and found[1] in EXTRAS:
        raise _missing(found[1])


def _missing(library: str) -> MissingExtraError:
    return MissingExtraError(
        f"this needs the library {library}, which is not installed here",
        hint=f"pip install 'checkpoint-converter[{EXTRAS[library]}]'",
    )
