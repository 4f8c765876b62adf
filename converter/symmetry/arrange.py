"""How the axes of one tensor became those of another, as far as fingerprints tell."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from converter.layout import Array, View
from converter.symmetry.changes import Change, Op, reorder, reverse, shuffle
from converter.symmetry.prints import Prints, sums

WHOLE = 1 << 22  # elements of a tensor that are sorted out one by one
BLOCKS = 16  # blocks of an axis that may be in another order
SPLITS = 3000  # ways to split an axis that are tried
MATRIX = 2  # axes of a dense layer's weights
GATES = 4  # blocks that are gates or heads rather than a flatten order
RUNS = 1 << 16  # pieces that an axis without any order is put together from
FEW = 4  # elements that a way to split is tried on first


@dataclass(frozen=True, slots=True)
class Atom:
    """A factor of an axis: which axis of the first it is cut from, and its size."""

    axis: int
    nth: int
    size: int


@dataclass
class Arrangement:
    """How the axes of one tensor become those of another: `left` cut up, `right` put together."""

    left: list[list[Atom]]
    right: list[list[Atom]]
    before: list[Change] = field(default_factory=list)  # reversals and blocks, on the first's axes

    @property
    def plain(self) -> bool:
        """Does nothing but keep the axes as they are?"""
        return [a for g in self.left for a in g] == [a for g in self.right for a in g] and [
            math.prod(a.size for a in g) for g in self.left
        ] == [math.prod(a.size for a in g) for g in self.right]

    def apply(self, view: View) -> View:
        """The view arranged so."""
        for change in self.before:
            view = change.apply(view)
        atoms = [atom for group in self.left for atom in group]
        order = [atoms.index(atom) for group in self.right for atom in group]
        merged = [math.prod(atom.size for atom in group) for group in self.right]
        return view.reshape([atom.size for atom in atoms]).transpose(order).reshape(merged)

    def ops(self, name: str) -> list[Op]:
        """The ops of the mapping language."""
        ops = [change.op(self.names(name)) for change in self.before]
        return ops if self.plain else [*ops, self.rearrange(name)]

    def names(self, name: str) -> list[str]:
        """A word for each axis of the first."""
        return axis_names([math.prod(a.size for a in g) for g in self.left], name)

    def rearrange(self, name: str) -> Op:
        """The op that moves the axes."""
        words = self.words(name)
        left, right = (_side(side, words) for side in (self.left, self.right))
        sizes: dict[str, int] = {}
        for group in (*self.left, *self.right):
            real = [atom for atom in group if atom.size > 1]
            if len(real) > 1:
                free = max(real, key=lambda atom: (" " not in words[atom], atom.size))
                sizes |= _sizes({words[atom]: atom.size for atom in real if atom is not free})
        sizes |= _sizes({word: a.size for a, word in words.items() if " " in word})
        pattern = f"{left} -> {right}"
        if not sizes:
            return {"rearrange": pattern}
        return {"rearrange": {"pattern": pattern, "sizes": dict(sorted(sizes.items()))}}

    def words(self, name: str) -> dict[Atom, str]:
        """What each atom is called; a square window within an axis is `h w`."""
        words: dict[Atom, str] = {}
        if all(len(group) == 1 for group in self.right) and len(self.right) > len(self.left):
            shape = [group[0].size for group in self.right]  # the finer side names the axes
            torch = "" if name.endswith("weight") else "weight"
            names = axis_names(shape, torch)
            return {group[0]: word for group, word in zip(self.right, names, strict=True)}
        for group, axis in zip(self.left, self.names(name), strict=True):
            if len(group) == 1:
                words[group[0]] = axis
                continue
            window = [atom for atom in group if math.isqrt(atom.size) ** 2 == atom.size > 1]
            window = sorted(window, key=lambda atom: (atom.size % 2 == 0, atom.size))[:1]
            rest = [atom for atom in group if atom not in window]
            if len(window) == len(rest) == 1 and axis == "i" and len(self.left) == MATRIX:
                words |= {window[0]: "h w", rest[0]: axis}
            else:
                words |= {atom: f"{axis}{k + 1}" for k, atom in enumerate(group)}
        return words


def _sizes(words: Mapping[str, int]) -> dict[str, int]:
    """The size of each word; a window's is a square."""
    return {
        word: math.isqrt(size) if " " in text else size
        for text, size in words.items()
        for word in text.split()
    }


def _side(groups: Sequence[Sequence[Atom]], words: Mapping[Atom, str]) -> str:
    texts = []
    for group in groups:
        real = [words[a] for a in group if a.size > 1]
        text = " ".join(real)
        texts.append(f"({text})" if " " in text else text or "1")
    return " ".join(texts)


def axis_names(shape: Sequence[int], name: str) -> list[str]:
    """Words for the axes of a tensor: convolutions and matrices have their own."""
    rank, torch = len(shape), name.endswith(("weight", "weight_ih_l0", "weight_hh_l0"))
    if rank == 4:  # noqa: PLR2004
        last = max(shape[2:]) < max(shape[:2]) or (torch and max(shape[2:]) <= max(shape[:2]))
        return list("oihw" if last else "hwio")
    if rank == 3:  # noqa: PLR2004
        last = shape[2] < min(shape[:2]) or torch
        return list("oik" if last else "kio")
    if rank == 2:  # noqa: PLR2004
        return ["o", "i"] if torch or "weight_" in name else ["i", "o"]
    return ["n"] if rank == 1 else [f"a{k}" for k in range(rank)]


def arrange(first: Prints, second: Prints) -> Arrangement | None:
    """How the first's axes become the second's, as far as the fingerprints tell."""
    if first.total != second.total or first.view.size != second.view.size:
        return None
    ours, theirs = first.view.shape, second.view.shape
    left = [[Atom(k, 0, n)] for k, n in enumerate(ours)]
    right: list[list[Atom]] = [[] for _ in theirs]
    before: list[Change] = []
    matched = _matched(first, second)
    for j, k in matched.items():
        found = _along(first.axes[k], second.axes[j], k)
        if found is None:
            return None
        change, order, sizes = found
        before += change
        left[k] = [Atom(k, nth, n) for nth, n in enumerate(sizes)]
        right[j] = [left[k][nth] for nth in order]
    free = [k for k, n in enumerate(ours) if n > 1 and k not in matched.values()]
    wanted = [j for j, n in enumerate(theirs) if n > 1 and j not in matched]
    if (free or wanted) and not _regroup(first, second, free, wanted, left, right):
        return None
    ones = [atom for k, n in enumerate(ours) if n == 1 for atom in left[k]]
    if ones and not right:
        return None  # a scalar has no place for them
    place_ones(ones, right)
    return Arrangement(left, right, before)


def place_ones(ones: Sequence[Atom], right: list[list[Atom]]) -> None:
    """Axes of one element have no place of their own; they go with any group."""
    for atom in ones:
        empty = next((group for group in right if not group), None)
        if empty is not None:
            empty.append(atom)
        elif right:
            right[0].insert(0, atom)


def _matched(first: Prints, second: Prints) -> dict[int, int]:
    """Which axis of the second is which of the first: those with the same sums."""
    matched: dict[int, int] = {}
    pairs = [
        (not np.array_equal(first.axes[k], second.axes[j]), k != j, j, k)
        for j, theirs in enumerate(second.ordered)
        for k, ours in enumerate(first.ordered)
        if ours == theirs and len(first.axes[k]) > 1
    ]
    for _, _, j, k in sorted(pairs):
        if j not in matched and k not in matched.values():
            matched[j] = k
    return matched


Along = tuple[list[Change], tuple[int, ...], tuple[int, ...]]  # changes before, order, sizes


def _along(ours: Array, theirs: Array, axis: int) -> Along | None:
    """What turns the sums along one axis into others: nothing, a reversal, blocks, a split."""
    n = len(ours)
    if np.array_equal(ours, theirs):
        return [], (0,), (n,)
    if np.array_equal(ours[::-1], theirs):
        return [reverse(axis)], (0,), (n,)
    blocks = _blocks(ours, theirs)
    if blocks and len(blocks) <= GATES:
        return [reorder(axis, blocks)], (0,), (n,)
    found = next(_splits(ours, theirs), None)
    if found:
        return [], *found
    within = _within(ours, theirs)
    if within:
        return [reorder(axis, *within)], (0,), (n,)
    change = reorder(axis, blocks) if blocks else _shuffled(ours, theirs, axis)
    return ([change], (0,), (n,)) if change else None


def _shuffled(ours: Array, theirs: Array, axis: int) -> Change | None:
    """The order in which the first's sums are the second's: there is one, whatever it is."""
    order = np.empty(len(ours), np.int64)
    order[np.argsort(theirs, kind="stable")] = np.argsort(ours, kind="stable")
    runs = 1 + int(np.count_nonzero(np.diff(order) != 1))
    return shuffle(axis, tuple(order.tolist())) if runs <= RUNS else None


def _blocks(ours: Array, theirs: Array) -> tuple[int, ...] | None:
    """The order of equal blocks, the fewest that explain it."""
    for count in range(2, min(BLOCKS, len(ours)) + 1):
        if len(ours) % count:
            continue
        places: dict[bytes, list[int]] = {}
        for k, block in enumerate(ours.reshape(count, -1)):
            places.setdefault(block.tobytes(), []).append(k)
        rows = [block.tobytes() for block in theirs.reshape(count, -1)]
        if all(row in places for row in rows):
            order = tuple(places[row].pop(0) if places[row] else -1 for row in rows)
            if -1 not in order:
                return order
    return None


def _within(ours: Array, theirs: Array) -> tuple[tuple[int, ...], int] | None:
    """The order of blocks within each of several equal parts, and how many parts."""
    found = []
    for parts in divisors(len(ours))[1:-1]:
        width = len(ours) // parts
        order = _blocks(ours[:width], theirs[:width])
        if order and len(order) <= GATES:
            cut = ours.reshape(parts, len(order), -1)
            if np.array_equal(cut[:, order].reshape(-1), theirs):
                found.append((len(order), order, parts))
    return min(found)[1:] if found else None


def _splits(
    ours: Array, theirs: Array, hints: Sequence[tuple[int, ...]] = ()
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Ways to cut one axis and join it in another order that turn sums into others."""
    n = len(ours)
    probes = [n // 7, 1, n // 2, n - 2][:FEW]
    for sizes in itertools.islice(itertools.chain(hints, _factorings(n)), SPLITS):
        for order in itertools.permutations(range(len(sizes))):
            if order == tuple(range(len(sizes))):
                continue
            if all(ours[_origin(p, sizes, order)] == theirs[p] for p in probes) and np.array_equal(
                ours.reshape(sizes).transpose(order).reshape(-1), theirs
            ):
                yield order, sizes


def _origin(position: int, sizes: Sequence[int], order: Sequence[int]) -> int:
    """Where the element at a position came from when axes of `sizes` were put in `order`."""
    index = [0] * len(sizes)
    for axis in reversed(order):
        position, index[axis] = divmod(position, sizes[axis])
    flat = 0
    for i, size in zip(index, sizes, strict=True):
        flat = flat * size + i
    return flat


def _factorings(n: int) -> Iterator[tuple[int, ...]]:
    """Ways to write a size as two factors, then as three."""
    yield from ((d, n // d) for d in divisors(n)[1:-1])
    for a in divisors(n)[1:-1]:
        yield from ((a, b, n // a // b) for b in divisors(n // a)[1:-1])


def divisors(n: int) -> list[int]:
    """All divisors, ascending."""
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return small + [n // d for d in reversed(small) if d * d != n]


def _regroup(  # noqa: PLR0913 - two sides, what is left of each, and where to note it
    first: Prints,
    second: Prints,
    free: Sequence[int],
    wanted: Sequence[int],
    left: list[list[Atom]],
    right: list[list[Atom]],
) -> bool:
    """Match axes of the first that were merged or split, as one."""
    ours, theirs = ([p.view.shape[k] for k in ks] for p, ks in ((first, free), (second, wanted)))
    if math.prod(ours) != math.prod(theirs) or math.prod(ours) > WHOLE:
        return False
    (a,), (b,) = sums(first.view, [tuple(free)]), sums(second.view, [tuple(wanted)])
    for sizes, order in _regroupings(a, b, ours, theirs):
        cuts, joins = _assign(sizes, ours), _assign([sizes[k] for k in order], theirs)
        if cuts is None or joins is None:
            continue
        atoms: list[Atom] = []
        for axis, group in zip(free, cuts, strict=True):
            left[axis] = [Atom(axis, nth, sizes[f]) for nth, f in enumerate(group)]
            atoms += left[axis]
        for axis, group in zip(wanted, joins, strict=True):
            right[axis] = [atoms[order[f]] for f in group]
        return True
    return False


def _regroupings(
    a: Array, b: Array, ours: Sequence[int], theirs: Sequence[int]
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(factors of the first's axes, their order in the second) that turn sums into others."""
    fine = _refined(ours, theirs)
    if np.array_equal(a, b) and fine:
        yield fine, tuple(range(len(fine)))
    hints = [tuple(ours), *itertools.permutations(theirs), *([fine] if fine else [])]
    for _, n in sorted(((n, k) for k, n in enumerate(ours)), reverse=True):
        # one axis is cut, the others stay: (h w i) or heads within an axis
        hints += [(*ours[:n], d, ours[n] // d, *ours[n + 1 :]) for d in divisors(ours[n])[1:-1]]
    for order, sizes in _splits(a, b, [hint for hint in hints if len(hint) <= 5]):  # noqa: PLR2004
        yield sizes, order


def _refined(ours: Sequence[int], theirs: Sequence[int]) -> tuple[int, ...] | None:
    """Factors by which both shapes can be had in one order; None when the cuts cross."""
    ends = {math.prod(shape[k:]) for shape in (ours, theirs) for k in range(len(shape) + 1)}
    chain = sorted(ends)
    parts = [divmod(wide, narrow) for narrow, wide in itertools.pairwise(chain)]
    return None if any(rest for _, rest in parts) else tuple(n for n, _ in reversed(parts))


def _assign(factors: Sequence[int], sizes: Sequence[int]) -> list[list[int]] | None:
    """Neighbouring factors that make up each size; None where a factor crosses a size."""
    groups: list[list[int]] = []
    at = 0
    for size in sizes:
        group: list[int] = []
        while math.prod(factors[f] for f in group) < size and at < len(factors):
            group.append(at)
            at += 1
        if math.prod(factors[f] for f in group) != size:
            return None
        groups.append(group)
    return groups if at == len(factors) else None
