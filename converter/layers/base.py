"""What a layer is here: weights under the names of a framework, and what they make of an input."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from random import Random  # NumPy's own takes longer to import than most probes to run
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]
Weights = Mapping[str, Array]
Sizes = Mapping[str, int]
Compute = Callable[[Weights, Array, Sizes], Array]


def shape_of(axes: str, sizes: Sizes) -> tuple[int, ...]:
    """The shape that axes in words have: `(4 u) i+u` is [20, 11] for u = 5 and i = 6."""
    groups = re.findall(r"\(([^)]*)\)|(\S+)", axes)
    return tuple(
        math.prod(
            sum(int(word) if word.isdecimal() else sizes[word] for word in words.split("+"))
            for words in (many or one).split()
        )
        for many, one in groups
    )


class Convention(NamedTuple):
    """How one framework holds a layer's weights (name → axes in words), and computes with them.

    `defaults` are the weights that a layer may be without, and the number that then stands for
    every element of them.
    """

    weights: Mapping[str, str]
    compute: Compute
    defaults: Mapping[str, float] = MappingProxyType({})

    def shapes(self, sizes: Sizes) -> dict[str, tuple[int, ...]]:
        """The shape of each weight."""
        return {name: shape_of(axes, sizes) for name, axes in self.weights.items()}

    def __call__(self, weights: Weights, x: Array, sizes: Sizes) -> Array:
        """The layer's output, in float64."""
        shapes = self.shapes(sizes)
        wide = {
            name: np.full(shapes[name], value)
            for name, value in self.defaults.items()
            if name not in weights
        } | {name: array.astype(np.float64) for name, array in weights.items()}
        with np.errstate(all="ignore"):  # of wrong weights: a NaN equals nothing
            return self.compute(wide, x, sizes)


def normal(random: Random, shape: tuple[int, ...], _: Sizes) -> Array:
    """An input of numbers around 0."""
    values = [random.gauss(0.0, 1.0) for _ in range(math.prod(shape))]
    return np.array(values).reshape(shape)


class Layer(NamedTuple):
    """What is computed, whoever holds the weights: inputs and outputs have their channels last.

    `sizes` are small and differ, so that no two axes are taken for each other.
    """

    about: str
    sizes: Sizes
    axes: str  # of the input
    conventions: Mapping[str, Convention]
    draw: Callable[[Random, tuple[int, ...], Sizes], Array] = normal

    def input(self, random: Random, sizes: Sizes) -> Array:
        """An input at random."""
        return self.draw(random, shape_of(self.axes, sizes), sizes)


def weights_of(convention: Convention, random: Random, sizes: Sizes) -> dict[str, Array]:
    """Weights at random, float32; variances are positive."""
    found = {}
    for name, shape in convention.shapes(sizes).items():
        values = normal(random, shape, sizes).astype(np.float32)
        found[name] = np.abs(values) + np.float32(0.5) if "var" in name else values
    return found
