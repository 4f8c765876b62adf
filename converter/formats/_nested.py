"""Arrays in nested containers, as pickles hold them: named by the keys on the way to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from converter.errors import LimitError
from converter.formats._names import shown

MAX_NESTING = 200  # containers inside each other, on the way to an array
ONLY = "array"  # the name of an array that has none


@dataclass(slots=True)
class Nested:
    """Finds what is in containers.

    `inside` gives a container's keys and values, None for what is none; `leaf` takes that in under
    its name, and says whether it is an array.
    """

    most_names: int
    inside: Callable[[Any], Iterable[tuple[str, Any]] | None]
    leaf: Callable[[Any, str], bool]
    names: dict[int, list[str]] = field(default_factory=dict)  # by id of an array

    def find(self, value: Any, name: str = "", depth: int = 0) -> None:
        """Take a value in, under its name."""
        if depth > MAX_NESTING:
            raise LimitError(f"containers are nested more than {MAX_NESTING} deep")
        self.most_names -= 1  # few bytes must not make many names, by way of shared containers
        if self.most_names < 0:
            raise LimitError("more entries than a file of this size can mean", tensor=shown(name))
        inner = self.inside(value)
        if inner is not None:
            for key, child in inner:
                self.find(child, f"{name}/{key}" if name else key, depth + 1)
        elif self.leaf(value, name or ONLY):
            self.names.setdefault(id(value), []).append(name or ONLY)

    @property
    def ties(self) -> tuple[tuple[str, ...], ...]:
        """Names of one and the same array."""
        return tuple(tuple(names) for names in self.names.values() if len(names) > 1)
