"""Names and shapes → layers, and which layers of two checkpoints are the same.

    tensors ─► layers       what differs only in the word that says its role
    layers  ─► blocks       what shares the beginning of its name, at any length
    blocks  ─► pairs        the largest first: blocks whose layers look the same, one for one

Within a pair of blocks only their own parts can become pairs, and in the end only their own layers.
Each tensor is looked at once for each part of its name, and nothing is tried pair by pair but the
few that look the same.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from itertools import groupby, product
from math import prod
from operator import and_
from typing import Any

from converter.inference.match import words
from converter.language.groups import GROUPS
from converter.language.names import split
from converter.symmetry.arrange import axis_names
from converter.tensors import TensorSpec

MOST_ALIKE = 100  # families of names that are compared word by word
STATE = {pattern.rpartition("/")[2] for _, patterns in GROUPS.values() for pattern in patterns}
_ROLE = re.compile(
    r"(?<![a-z])(?:(?P<weight>weights?|kernel|gamma|scale$|[wg]$)|(?P<bias>bias(?:es)?|beta|b$)"
    r"|(?P<mean>(?:moving_|running_)?mean)|(?P<variance>(?:moving_|running_)?var(?:iance)?)"
    r"|(?P<counter>num_batches_tracked))(?![a-z])"
)
_TOKEN = re.compile(r"(?P<number>[0-9]+)|(?<=[0-9])(?P<letter>[a-m])(?![A-Za-z])|[A-Za-z]+")
_DIMENSIONS = re.compile(r"(?<=conv)[123]d", re.IGNORECASE)  # no number of a layer
_PART = re.compile(r"[A-Za-z]+|[0-9]+")
MIDDLE = 1  # the place of a word that says none

# Words that say where in a block, or in a network, a layer stands.
PLACES = {
    word: place
    for place, texts in enumerate(
        (
            ("stem", "preact"),
            ("expand",),
            ("depthwise", "dw", "dwconv"),
            ("squeeze", "reduce"),
            ("excite",),
            ("project", "pointwise", "pwl"),
            ("top", "head", "logits", "predictions", "classifier", "fc"),
        ),
        start=-1,
    )
    for word in texts
}


@dataclass(eq=False)
class Layer:
    """Tensors that belong together, by their roles: weight, bias, mean, variance, counter."""

    name: str
    tensors: dict[str, str] = field(default_factory=dict)
    specs: dict[str, TensorSpec] = field(default_factory=dict)

    @cached_property
    def main(self) -> str:
        """The role that tells layers apart: a batch norm may have neither weight nor bias."""
        return next(
            (role for role in ("mean", "weight") if role in self.tensors), min(self.tensors)
        )

    @property
    def looks(self) -> tuple[str, tuple[int, ...]]:
        """What every port leaves as it is: a batch norm or not, and sizes in any order."""
        return self.main, tuple(sorted(n for n in self.specs[self.main].shape if n > 1))

    @property
    def width(self) -> int | None:
        """How many outputs the layer has, where its bias says so."""
        return prod(self.specs["bias"].shape) if "bias" in self.specs else None

    @property
    def axes(self) -> tuple[int, ...]:
        """The sizes in one order for all frameworks, as names tell them."""
        shape = self.specs[self.main].shape
        named = sorted(zip(axis_names(shape, self.tensors[self.main]), shape, strict=True))
        return tuple(n for _, n in named if n > 1)

    @property
    def size(self) -> int:
        """How many elements the main tensor has."""
        return prod(self.specs[self.main].shape)


def plain(name: str) -> str:
    """A name without what a format adds to it, and what Keras says twice once."""
    name = _DIMENSIONS.sub("", name.removesuffix(":0").removesuffix("/.ATTRIBUTES/VARIABLE_VALUE"))
    return "/".join(part for part, _ in groupby(name.split("/")))


def said(name: str, rank: int) -> tuple[str, str]:
    """A layer's name and the role that a tensor's name says; no role where it says none."""
    text, state = plain(name), ""
    if split(text)[-1] in STATE and len(split(text)) > 1:
        text, state = text[: -len(split(text)[-1]) - 1], "/" + split(text)[-1]
    start = len(text) - len(split(text)[-1])
    found = _ROLE.search(text, start)
    role = (found and found.lastgroup) or ""
    if not found or (role != "weight" and rank > 1):  # a matrix is no bias, whatever it is called
        return text, "weight" + state if rank else ""
    return (text[: found.start()] + text[found.end() :]).strip("/._"), role + state


def layers(specs: Mapping[str, TensorSpec]) -> list[Layer]:
    """The layers, in the order of the names."""
    found: dict[str, Layer] = {}
    for name, spec in specs.items():
        text, role = said(name, sum(n > 1 for n in spec.shape))
        if text in found and role in found[text].tensors:
            text = name
        layer = found.setdefault(text, Layer(text))
        layer.tensors[role], layer.specs[role] = name, spec
    return sorted(found.values(), key=lambda layer: natural(layer.name))


def natural(name: str) -> tuple[Any, ...]:
    """A key that sorts numbers as such, and words by the places that they say."""
    return tuple(tuple(map(_rank, _TOKEN.finditer(part))) for part in split(name))


def _rank(token: re.Match[str]) -> tuple[int, bool, int, str]:
    """Numbers first, and the letters that count on: `5b` comes before `5c`."""
    if token["number"]:
        return MIDDLE, False, int(token[0]), ""
    if token["letter"]:
        return MIDDLE, False, ord(token[0]), ""
    word = token[0].lower()
    return PLACES.get(word, MIDDLE), True, 0, word


# ── pairs ────────────────────────────────────────────────────────────────────────────────────────

Pair = tuple[Layer, Layer, bool]  # of each side, and whether nothing else speaks for another


def pairs(ours: Sequence[Layer], theirs: Sequence[Layer]) -> list[Pair]:
    """Layers of both sides that are the same, each once."""
    return _Pairing(ours, theirs).run()


@dataclass(frozen=True)
class _Named:
    """Something with a name: a layer, or the layers of a block."""

    name: str
    layers: tuple[Layer, ...]

    @property
    def axes(self) -> tuple[tuple[int, ...], ...]:
        """The sizes of its layers, as names of axes order them."""
        return tuple(sorted(layer.axes for layer in self.layers))


class _Pairing:
    """The state of one search: what each layer looks like, which grows finer."""

    def __init__(self, ours: Sequence[Layer], theirs: Sequence[Layer]) -> None:
        self.sides = [list(ours), list(theirs)]
        self.looks: dict[Layer, Hashable] = {}
        self.doubts: set[Layer] = set()

    def run(self) -> list[Pair]:
        """Blocks, then layers of the same sizes, then of the same number of elements."""
        found: list[Pair] = []
        whole = self.sides
        for looks in (lambda layer: layer.looks, lambda layer: (layer.main, layer.size)):
            done = {layer for pair in found for layer in pair[:2]}
            self.sides = [[layer for layer in side if layer not in done] for side in whole]
            self.start(looks)
            self.blocks()
            self.refine(lambda layer: layer.width)
            found += self.alike()
        return found

    def start(self, looks: Callable[[Layer], Hashable]) -> None:
        """Note what layers look like; what only one side has says nothing of blocks."""
        self.looks = {layer: looks(layer) for side in self.sides for layer in side}
        common = set.intersection(*({self.looks[layer] for layer in s} for s in self.sides))
        self.sides = [[layer for layer in s if self.looks[layer] in common] for s in self.sides]

    def blocks(self) -> None:
        """Pair blocks, the largest first; their layers then look like no others."""
        sizes: list[dict[int, list[_Named]]] = [_blocks(side) for side in self.sides]
        number = 0
        for size in sorted(sizes[0].keys() & sizes[1].keys(), reverse=True):
            rows = [self.classes(side[size]) for side in sizes]
            for key in rows[0]:
                ours, theirs = rows[0][key], rows[1].get(key, [])
                if theirs and len(ours) != len(theirs):
                    self.doubts |= {layer for each in (*ours, *theirs) for layer in each.layers}
                for one, other, sure in _paired(ours, theirs):
                    number += 1
                    for layer in (*one.layers, *other.layers):
                        self.looks[layer] = self.looks[layer], number
                        if not sure:
                            self.doubts.add(layer)

    def classes(self, blocks: Iterable[_Named]) -> dict[Hashable, list[_Named]]:
        """Blocks by what their layers look like."""
        found: dict[Hashable, list[_Named]] = defaultdict(list)
        for block in blocks:
            looks = Counter(self.looks[layer] for layer in block.layers)
            found[frozenset(looks.items())].append(block)
        return found

    def by_looks(self) -> Iterator[tuple[list[Layer], list[Layer]]]:
        """Layers of both sides that look the same."""
        found: dict[Hashable, tuple[list[Layer], list[Layer]]] = defaultdict(lambda: ([], []))
        for place, side in enumerate(self.sides):
            for layer in side:
                found[self.looks[layer]][place].append(layer)
        yield from (row for row in found.values() if row[0] and row[1])

    def refine(self, key: Callable[[Layer], Hashable]) -> None:
        """Tell layers apart by something else where both sides have it equally often."""
        for row in list(self.by_looks()):
            keys = [Counter(map(key, side)) for side in row]
            if keys[0] == keys[1]:
                for layer in (*row[0], *row[1]):
                    self.looks[layer] = self.looks[layer], key(layer)

    def alike(self) -> Iterator[Pair]:
        """Pairs of layers that look the same."""
        for row in self.by_looks():
            if len(row[0]) != len(row[1]):
                self.doubts |= {*row[0], *row[1]}
            for one, other, sure in _paired(*([_Named(x.name, (x,)) for x in s] for s in row)):
                (ours,), (theirs,) = one.layers, other.layers
                yield ours, theirs, sure and not {ours, theirs} & self.doubts


def _blocks(side: Sequence[Layer]) -> dict[int, list[_Named]]:
    """Layers that share the beginning of their names, by how many; each set once."""
    members: dict[str, list[Layer]] = defaultdict(list)
    for layer in side:
        for part in _PART.finditer(layer.name):
            members[layer.name[: part.end()]].append(layer)
    names: dict[tuple[Layer, ...], str] = {}
    for name, inside in (*members.items(), *_numbered(side).items()):
        names.setdefault(tuple(inside), name)
    found: dict[int, list[_Named]] = defaultdict(list)
    for block, name in names.items():
        if len(block) > 1:
            found[len(block)].append(_Named(name, block))
    return found


def _numbered(side: Sequence[Layer]) -> dict[str, list[Layer]]:
    """Layers with the same number, where names have no other: those of one block."""
    found: dict[str, list[Layer]] = defaultdict(list)
    for layer in side:
        numbers = re.findall("[0-9]+", layer.name)
        if len(numbers) == len(split(layer.name)) == 1:
            found[numbers[0]].append(layer)
    return found


def _paired(
    ours: Sequence[_Named], theirs: Sequence[_Named]
) -> Iterator[tuple[_Named, _Named, bool]]:
    """Pair what looks the same: families by their words, and in each by the order of numbers."""
    if not (ours and theirs):
        return
    sides = [_families(side) for side in (ours, theirs)]
    for one, other, sure in list(_by_words(*sides)):
        yield from (
            (s, t, sure) for s, t in zip(sides[0].pop(one), sides[1].pop(other), strict=True)
        )
    left = [[each for family in side.values() for each in family] for side in sides]
    alone = max(map(len, sides)) == 1  # the shorter is the beginning of the longer
    even = len(left[0]) == len(left[1])
    if alone or even:
        axes = [Counter(each.axes for each in side) for side in left]
        for side in left:
            side.sort(key=lambda x: (x.axes if axes[0] == axes[1] else (), natural(x.name)))
        yield from ((s, t, alone and even) for s, t in zip(*left, strict=False))


Families = dict[tuple[str, ...], list[_Named]]  # by their words


def _families(side: Sequence[_Named]) -> Families:
    """What differs in numbers only, in their order."""
    found: Families = defaultdict(list)
    for each in sorted(side, key=lambda x: natural(x.name)):
        tokens = _TOKEN.finditer(each.name)
        found[tuple(token[0].lower() for token in tokens if not token.lastgroup)].append(each)
    return found


def _by_words(
    ours: Families, theirs: Families
) -> Iterator[tuple[tuple[str, ...], tuple[str, ...], bool]]:
    """Families of one length whose words are most alike, but for what all of them say."""
    if max(len(ours), len(theirs)) > MOST_ALIKE:
        return
    texts = [_distinct({k: x[0].name for k, x in side.items()}) for side in (ours, theirs)]
    scores = {
        (i, j): 2 * (a & b).total() / max(1, a.total() + b.total())
        for (i, a), (j, b) in product(texts[0].items(), texts[1].items())
        if len(ours[i]) == len(theirs[j])
    }
    taken: tuple[set[Any], set[Any]] = set(), set()
    for (i, j), score in sorted(scores.items(), key=lambda row: -row[1]):
        if score and i not in taken[0] and j not in taken[1]:
            rivals = [s for (a, b), s in scores.items() if (a == i) != (b == j)]
            taken[0].add(i)
            taken[1].add(j)
            yield i, j, score > max(rivals, default=0)


def _distinct(names: Mapping[Any, str]) -> dict[Any, Counter[str]]:
    """The words of each name that not all of them have; no numbers."""
    found = {k: Counter(w for w in words(n) if not w.isdecimal()) for k, n in names.items()}
    common = reduce(and_, found.values()) if len(found) > 1 else Counter()
    return {key: each - common for key, each in found.items()}
