"""Every conversion that is shipped: a mapping, the real models on both sides, and its proof.

Each module here is a family and exports `CONVERSIONS`.  `tests/test_conversions.py` holds every row
against the manifests of both models, and `docs/catalogue.md` is made of the rows.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from converter.tensors import TensorSpec

NO_SIZES: Mapping[str, int] = MappingProxyType({})


class Conversion(NamedTuple):
    """A mapping with the sizes of one model; `source` and `target` are names of manifests.

    `proof` is the pytest node that runs both real models.  `one_way` says why there is no way
    back.  `stays` are names of the target that the conversion leaves to others, with a `*` for
    anything: the heads of a detector that an ImageNet model does not have.
    """

    mapping: str
    source: str
    target: str
    proof: str
    sizes: Mapping[str, int] = NO_SIZES
    one_way: str = ""
    stays: tuple[str, ...] = ()
    note: str = ""

    def __str__(self) -> str:
        return f"{self.source} to {self.target}"


def conversions() -> list[Conversion]:
    """The rows of all families."""
    found = pkgutil.iter_modules([str(Path(__file__).parent)])
    names = sorted(module.name for module in found if module.name != "__main__")
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return [row for module in modules for row in module.CONVERSIONS]


def without(specs: Mapping[str, TensorSpec], patterns: tuple[str, ...]) -> dict[str, TensorSpec]:
    """The tensors that no pattern fits."""
    return {n: s for n, s in specs.items() if not any(fnmatchcase(n, p) for p in patterns)}
