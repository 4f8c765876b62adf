"""Which sources make which targets, by names and shapes alone: guesses, and said to be."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, permutations, product
from math import log2, prod

from converter.inference.match import Found, Match, folder, leaf, similarity, words
from converter.language.groups import GROUPS
from converter.language.names import parse_selector
from converter.symmetry import Op
from converter.symmetry.arrange import Arrangement, Atom, axis_names, place_ones
from converter.tensors import TensorSpec

SURE = "guessed from names and shapes"
SQUARE = "guessed; no shape shows the order of equal axes"


def by_names(sources: Mapping[str, TensorSpec], targets: Mapping[str, TensorSpec]) -> Found:
    """Match targets with sources by their words, the order of layers and their shapes."""
    found = Found()
    selectors = [parse_selector(p) for _, patterns in GROUPS.values() for p in patterns]
    usable = {n: s for n, s in sources.items() if not any(fit(n) for fit in selectors)}
    pairs = _alike(usable, targets)
    ours, theirs = (
        {n: s for n, s in side.items() if n not in done}
        for side, done in (
            (usable, {source for source, _ in pairs}),
            (targets, {target for _, target in pairs}),
        )
    )
    for source, target in (*pairs, *_paired(ours, theirs)):
        found.matches.append(_match(source, target, sources, targets))
    _leave(found, targets)
    return found


def _leave(found: Found, targets: Mapping[str, TensorSpec]) -> None:
    """Note what nothing was found for; a norm's scale is one, its offset and counter are zero."""
    done = {t for m in found.matches for t in m.targets}
    normed = _normed(targets)
    for name, spec in targets.items():
        if name not in done and leaf(name) == "num_batches_tracked":
            found.constants[name] = 0
        elif name not in done and folder(name) in normed and _role(name, 1) in ("weight", "bias"):
            found.constants[name] = float(_role(name, 1) == "weight")
        elif name not in done:
            found.open[name] = f"no source of its name and size ({spec})"


def _normed(specs: Mapping[str, TensorSpec]) -> set[str]:
    """Folders of batch norms: they have statistics."""
    return {folder(name) for name in specs if _role(name, 1) in ("mean", "variance")}


def _sizes(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(sorted(n for n in spec.shape if n > 1))


def _role(name: str, rank: int) -> str:
    """What kind of parameter a name says it is; a weight of one axis is a norm's."""
    said = next((w for w in words(leaf(name)) if w in ("bias", "mean", "variance")), "")
    return said or ("weight" if rank else "")


# ── families ─────────────────────────────────────────────────────────────────────────────────────

_INDEX = re.compile(r"[0-9]+|(?<=[0-9])[a-m](?![A-Za-z])")  # a letter after a number counts, too
INDICES = 5  # of a name, that families are told apart by
MOST_ALIKE = 100  # families that look the same
MIDDLE = 1  # the place of a layer whose words say none
SHORTEST = 3  # part of a family that says something

# Words that say where in a block, or in a network, a layer stands.
PLACES = {
    word: place
    for place, words in enumerate(
        (
            ("stem",),
            ("expand",),
            ("depthwise", "dw", "dwconv"),
            ("squeeze", "reduce"),
            ("excite",),
            ("project", "pointwise", "pwl"),
            ("top", "head", "logits", "predictions", "classifier", "fc"),
        ),
        start=-1,
    )
    for word in words
}


@dataclass(frozen=True)
class _Family:
    """Names that differ in some of their numbers only, in the order of these."""

    text: str
    names: tuple[str, ...]
    numbers: tuple[int, ...]  # of the first
    place: tuple[int, ...]  # in a block, as its words say


Shapes = tuple[tuple[str, tuple[int, ...]], ...]  # role and sizes of one after the other


def _alike(
    ours: Mapping[str, TensorSpec], theirs: Mapping[str, TensorSpec]
) -> list[tuple[str, str]]:
    """Pairs of whole families whose tensors have the same shapes in the same order.

    Large families first, for chance hardly makes them alike; then those whose words are.
    """
    sides = [_by_shapes(side) for side in (ours, theirs)]
    _add_runs(*sides)
    scored = sorted(
        (
            _order(one, other)
            for shapes in sides[0].keys() & sides[1].keys()
            for one in sides[0][shapes][:MOST_ALIKE]
            for other in sides[1][shapes][:MOST_ALIKE]
        ),
        key=lambda row: row[0],
    )
    taken: set[str] = set()
    made: set[str] = set()
    pairs: list[tuple[str, str]] = []
    for _, one, other in scored:
        if taken.isdisjoint(one.names) and made.isdisjoint(other.names):
            pairs += zip(one.names, other.names, strict=True)
            taken |= set(one.names)
            made |= set(other.names)
    return pairs


def _order(one: _Family, other: _Family) -> tuple[tuple[object, ...], _Family, _Family]:
    """How early a pair is taken: by its size, then what its words share, then by their places."""
    ours, theirs = Counter(words(one.text)), Counter(words(other.text))
    shared = (ours & theirs).total() / max(1, min(ours.total(), theirs.total()))
    alike = -similarity(one.text, other.text)
    places = one.place, other.place
    firsts = one.numbers, other.numbers, one.names, other.names
    size = round(2 * log2(len(one.names)))  # one more or less is no reason
    return (-size, -shared, *places, alike, *firsts), one, other


def _add_runs(ours: dict[Shapes, list[_Family]], theirs: dict[Shapes, list[_Family]]) -> None:
    """Add parts of families that look like whole ones of the other side: without a first block."""
    sides = (ours, [*theirs]), (theirs, [*ours])
    for side, others in sides:
        starts: dict[object, list[Shapes]] = defaultdict(list)
        for shapes in others:
            if len(shapes) >= SHORTEST:
                starts[shapes[0]].append(shapes)
        for shapes, families in list(side.items()):
            for part, start in _runs(shapes, starts):
                cut = slice(start, start + len(part))
                side.setdefault(part, []).extend(replace(f, names=f.names[cut]) for f in families)


def _runs(
    shapes: Shapes, starts: Mapping[object, Sequence[Shapes]]
) -> Iterator[tuple[Shapes, int]]:
    """Shorter sequences with which another begins or ends, and where."""
    for part in starts.get(shapes[0], ()):
        if len(part) < len(shapes) and shapes[: len(part)] == part:
            yield part, 0
    for k in range(1, len(shapes)):
        yield from ((part, k) for part in starts.get(shapes[k], ()) if shapes[k:] == part)


def _by_shapes(specs: Mapping[str, TensorSpec]) -> dict[Shapes, list[_Family]]:
    """Every family, by what its tensors look like; one name may be in several."""
    normed = _normed(specs)
    skeletons: dict[tuple[str, ...], list[tuple[tuple[int, ...], str]]] = defaultdict(list)
    for name in specs:
        texts, found_numbers = _indexed(name)
        skeletons[texts].append((found_numbers, name))
    found: dict[Shapes, list[_Family]] = defaultdict(list)
    for texts, rows in skeletons.items():
        count = len(texts) - 1
        masks = product((False, True), repeat=count) if count <= INDICES else [(False,) * count]
        kept: dict[tuple[str, ...], tuple[int, ...]] = {}
        for mask in masks:
            parts: dict[tuple[int, ...], list[tuple[tuple[int, ...], str]]] = defaultdict(list)
            for numbers, name in rows:
                parts[tuple(n for n, keep in zip(numbers, mask, strict=True) if keep)].append(
                    (numbers, name)
                )
            kept |= {tuple(n for _, n in sorted(part)): min(part)[0] for part in parts.values()}
        for names, first in kept.items():
            place = tuple(PLACES[w] for w in words(names[0]) if w in PLACES)
            shapes = tuple(_looks(name, specs[name], folder(name) in normed) for name in names)
            found[shapes].append(_Family("#".join(texts), names, first, place or (MIDDLE,)))
    return found


def _indexed(name: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """A name's texts and the numbers between them; what HDF5 files of Keras say twice, once."""
    plain = "/".join(part for part, _ in groupby(name.split("/")))
    numbers = (int(n) if n.isdecimal() else ord(n) for n in _INDEX.findall(plain))
    return tuple(_INDEX.split(plain)), tuple(numbers)


def _looks(name: str, spec: TensorSpec, normed: bool) -> tuple[str, tuple[int, ...]]:
    """What a port leaves as it is: the role, whether a norm's, and the sizes."""
    return f"{_role(name, len(spec.shape))}{'-norm' * normed}", _sizes(spec)


def _paired(
    ours: Mapping[str, TensorSpec], theirs: Mapping[str, TensorSpec]
) -> list[tuple[str, str]]:
    """Pairs: families of names that are most alike first, in each the layers in their order."""
    families = [_families(side) for side in (ours, theirs)]
    scored = sorted(
        (-similarity(" ".join(s[1]), " ".join(t[1])) - (len(a) == len(b)) / 5, i, j, s, t)
        for i, (s, a) in enumerate(families[0].items())
        for j, (t, b) in enumerate(families[1].items())
        if s[0] == t[0]
    )
    pairs = []
    for _, _, _, s, t in scored:
        left, wanted = families[0][s], families[1][t]
        for target in list(wanted):
            sizes = _sizes(theirs[target])
            source = next((name for name in left if _sizes(ours[name]) == sizes), None)
            source = source or next((n for n in left if ours[n].size == theirs[target].size), None)
            if source is not None:
                pairs.append((source, target))
                left.remove(source)
                wanted.remove(target)
    return pairs


Family = tuple[str, tuple[str, ...]]  # the role, and the words without their numbers


def _families(specs: Mapping[str, TensorSpec]) -> dict[Family, list[str]]:
    """Names that differ in their numbers only, in the order of these."""
    found: dict[Family, list[str]] = defaultdict(list)
    for name, spec in specs.items():
        texts = tuple(word for word in words(name) if not word.isdecimal())
        found[_role(name, len(spec.shape)), texts].append(name)
    for names in found.values():
        names.sort(key=lambda name: [int(word) for word in words(name) if word.isdecimal()])
    return found


def _match(
    source: str, target: str, sources: Mapping[str, TensorSpec], targets: Mapping[str, TensorSpec]
) -> Match:
    ops, sure = _ops(source, sources[source], target, targets[target])
    return Match((source,), (target,), ops, SURE if sure else SQUARE)


def _ops(
    source: str, ours: TensorSpec, target: str, theirs: TensorSpec
) -> tuple[tuple[Op, ...], bool]:
    """The ops that the names of the axes suggest, and whether the shapes leave no other."""
    cast: tuple[Op, ...] = () if ours.dtype == theirs.dtype else ({"cast": str(theirs.dtype)},)
    if len(_sizes(ours)) < 2 and prod(ours.shape) == prod(theirs.shape):  # noqa: PLR2004
        same = ours.shape == theirs.shape
        shape: Op = {"reshape": {"from": list(ours.shape), "to": list(theirs.shape)}}
        return (*([] if same else [shape]), *cast), True
    flat = _flattened(ours.shape, theirs.shape)
    if flat:
        return (flat, *cast), False
    arranged = _arranged(source, ours.shape, target, theirs.shape)
    if arranged:
        return (*arranged[0].ops(source), *cast), arranged[1]
    if ours.size != theirs.size:
        return cast, False
    shapes: Op = {"reshape": {"from": list(ours.shape), "to": list(theirs.shape)}}
    return (shapes, *cast), False


def _flattened(ours: tuple[int, ...], theirs: tuple[int, ...]) -> Op | None:
    """A convolution over the whole input that became a dense layer."""
    if len(ours) != 4 or len(theirs) != 2 or prod(ours[:2]) == 1:  # noqa: PLR2004
        return None
    h, w, i, o = ours
    sizes = {"h": h, "w": w}
    if theirs == (o, i * h * w):
        return {"rearrange": {"pattern": "h w i o -> o (i h w)", "sizes": sizes}}
    if theirs == (h * w * i, o):
        return {"rearrange": {"pattern": "h w i o -> (h w i) o", "sizes": sizes}}
    return None


def _arranged(
    source: str, ours: tuple[int, ...], target: str, theirs: tuple[int, ...]
) -> tuple[Arrangement, bool] | None:
    """The permutation that the axes' names suggest, and whether it is the only one that fits."""
    names = axis_names(ours, source), axis_names(theirs, target)
    left, right = ([k for k, n in enumerate(shape) if n > 1] for shape in (ours, theirs))
    wanted = [theirs[k] for k in right]
    fits = [list(p) for p in permutations(left) if [ours[k] for k in p] == wanted]
    if not fits:
        return None
    words = [names[1][k] for k in right]
    usual = [names[0].index(word) for word in words if word in names[0]]
    order = usual if usual in fits else fits[0]
    atoms = [Atom(k, 0, n) for k, n in enumerate(ours)]
    groups: list[list[Atom]] = [[] for _ in theirs]
    for k, axis in zip(right, order, strict=True):
        groups[k] = [atoms[axis]]
    place_ones([atom for atom in atoms if atom.size == 1], groups)
    return Arrangement([[atom] for atom in atoms], groups), len(fits) == 1
