"""The ops between two shapes: what axes mean, by their names and by what other tensors show.

Not certain is what frameworks are free in and no shape shows: the order of colours and of the gates
of recurrent layers, how an image was flattened, and which axis of a square matrix is which.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import permutations
from math import isqrt, prod

from converter.inference.layers import plain
from converter.inference.match import leaf, words
from converter.symmetry import Op
from converter.symmetry.arrange import Arrangement, Atom, axis_names, place_ones
from converter.tensors import TensorSpec

Shape = tuple[int, ...]
Order = tuple[int, ...]  # axes of a source, as the target has them; none of one element
KERNEL = {"h", "w"}  # axes that stand one after the other in every framework
KERNEL_RANK = 4
COLOURS = 3  # red, green, blue, or the other way round
GATED = {"lstm", "gru", "rnn", "ih", "hh"}


class Axes:
    """The ops of many pairs: of axes of one size, the order is that of its kind's other tensors."""

    def __init__(
        self,
        specs: tuple[Mapping[str, TensorSpec], Mapping[str, TensorSpec]],
        pairs: Iterable[tuple[str, str]],
    ) -> None:
        self.specs = specs
        kernels = (
            s.shape[axis_names(s.shape, n).index("o")]
            for n, s in specs[0].items()
            if len(s.shape) == KERNEL_RANK
        )
        self.channels = max(kernels, default=0)  # of an image inside the network
        self.known: dict[tuple[str, int, int], Counter[Order]] = defaultdict(Counter)
        for source, target in pairs:
            fits = self.fits(source, target)
            if fits and _one(fits, axis_names(specs[0][source].shape, source)):
                self.known[self.kind(source, target)][self.usual(source, target, fits)] += 1

    def ops(self, source: str, target: str) -> tuple[tuple[Op, ...], bool]:
        """The ops that bring a source to its target's form, and whether there are no others."""
        ops, sure = self.shown(source, target)
        return ops, sure and not self.free(source, target)

    def free(self, source: str, target: str) -> bool:
        """May elements stand in another order along an axis?"""
        shape = self.specs[0][source].shape
        if GATED & {*words(plain(source)), *words(plain(target))}:
            return True
        if len(shape) not in (2, KERNEL_RANK):
            return False
        inputs = shape[axis_names(shape, source).index("i")]
        if len(shape) == KERNEL_RANK:
            return inputs == COLOURS
        pixels, rest = divmod(inputs, self.channels or inputs)
        return not rest and pixels > 1 and isqrt(pixels) ** 2 == pixels

    def shown(self, source: str, target: str) -> tuple[tuple[Op, ...], bool]:
        """The ops, and whether the order of the axes is shown."""
        ours, theirs = self.specs[0][source], self.specs[1][target]
        cast: tuple[Op, ...] = () if ours.dtype == theirs.dtype else ({"cast": str(theirs.dtype)},)
        reshape: Op = {"reshape": {"from": list(ours.shape), "to": list(theirs.shape)}}
        if ours.size != theirs.size:
            return cast, False
        if sum(n > 1 for n in ours.shape) < 2:  # noqa: PLR2004 - no order
            return (*(() if ours.shape == theirs.shape else (reshape,)), *cast), True
        flat = _flattened(ours.shape, theirs.shape)
        if flat:
            return (flat, *cast), False
        fits = self.fits(source, target)
        if not fits:
            return (reshape, *cast), False
        order, sure = self.order(source, target, fits)
        return (*_arranged(ours.shape, theirs.shape, order).ops(source), *cast), sure

    def order(self, source: str, target: str, fits: list[Order]) -> tuple[Order, bool]:
        """The order of the axes, and whether shapes show it: its own or those of its kind."""
        names = axis_names(self.specs[0][source].shape, source)
        usual = self.usual(source, target, fits)
        shown = {
            tuple(k for k in order if k in usual)
            for order in self.known.get(self.kind(source, target), ())
            if len(order) >= len(usual)
        } & set(fits)
        if len(shown) == 1:
            return shown.pop(), True
        return usual, not shown and _one(fits, names)

    def kind(self, source: str, target: str) -> tuple[str, int, int]:
        """Tensors that frameworks lay out alike."""
        ours, theirs = self.specs[0][source].shape, self.specs[1][target].shape
        return leaf(plain(source)), len(ours), len(theirs)

    def fits(self, source: str, target: str) -> list[Order]:
        """All the orders that give the target's shape."""
        ours, theirs = self.specs[0][source].shape, self.specs[1][target].shape
        wanted = [n for n in theirs if n > 1]
        left = [k for k, n in enumerate(ours) if n > 1]
        if len(left) != len(wanted):
            return []
        return [p for p in permutations(left) if [ours[k] for k in p] == wanted]

    def usual(self, source: str, target: str, fits: list[Order]) -> Order:
        """The order that the names of the axes suggest, if it fits."""
        ours, theirs = self.specs[0][source].shape, self.specs[1][target].shape
        names, others = axis_names(ours, source), axis_names(theirs, target)
        wanted = [word for word, n in zip(others, theirs, strict=True) if n > 1]
        usual = tuple(names.index(word) for word in wanted if word in names)
        return usual if usual in fits else fits[0]


def _one(fits: list[Order], names: list[str]) -> bool:
    """Is there one order, but for the sides of a kernel?"""
    return len({tuple(-1 if names[k] in KERNEL else k for k in order) for order in fits}) == 1


def _flattened(ours: Shape, theirs: Shape) -> Op | None:
    """A convolution over the whole input that became a dense layer."""
    if len(ours) != KERNEL_RANK or len(theirs) != 2 or prod(ours[:2]) == 1:  # noqa: PLR2004
        return None
    h, w, i, o = ours
    sizes = {"h": h, "w": w}
    if theirs == (o, i * h * w):
        return {"rearrange": {"pattern": "h w i o -> o (i h w)", "sizes": sizes}}
    if theirs == (h * w * i, o):
        return {"rearrange": {"pattern": "h w i o -> (h w i) o", "sizes": sizes}}
    return None


def _arranged(ours: Shape, theirs: Shape, order: Order) -> Arrangement:
    """The permutation, with axes of one element anywhere."""
    atoms = [Atom(k, 0, n) for k, n in enumerate(ours)]
    groups: list[list[Atom]] = [[] for _ in theirs]
    for k, axis in zip((k for k, n in enumerate(theirs) if n > 1), order, strict=True):
        groups[k] = [atoms[axis]]
    place_ones([atom for atom in atoms if atom.size == 1], groups)
    return Arrangement([[atom] for atom in atoms], groups)
