"""Which sources make which targets, by values: fingerprints first, then proof bit for bit."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from converter.compare import same
from converter.errors import OpError
from converter.language.names import split
from converter.layout import View
from converter.ops import OPS
from converter.symmetry import Op, Search
from converter.symmetry.arrange import axis_names
from converter.symmetry.changes import marked
from converter.symmetry.prints import Prints, hashes, prints
from converter.tensors import STRING, dtype_name

THREADS = 2
WRAP = 1 << 64  # sums of hashes are taken modulo this
FOLDER = 10  # what neighbours count in names, against a segment in common
PIECES = 64  # sources of one target
TRIED = 8  # sources whose numbers are compared with a target's
EPSILONS = (1e-3, 1e-4, 1.001e-5, 1e-5, 1e-6)  # of batch norms: slim's, Keras' and torch's
MOST_SUMMED = 1 << 20  # elements of what may be a sum


@dataclass(frozen=True)
class Match:
    """Sources that become targets through ops, as they were found; `note` is for the reader.

    `negated` are places of sources that get the other sign before they are added.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    ops: tuple[Op, ...] = ()
    note: str = ""
    negated: tuple[int, ...] = ()

    @property
    def key(self) -> str:
        """What matches of one rule have in common besides their names."""
        counts = len(self.sources), len(self.targets)
        return json.dumps([self.ops, self.note, counts, self.negated])


@dataclass
class Found:
    """All that is known: matches, constants to make (target → value), and what is open."""

    matches: list[Match] = field(default_factory=list)
    constants: dict[str, float | int] = field(default_factory=dict)
    open: dict[str, str] = field(default_factory=dict)  # target → why
    uncertain: set[str] = field(default_factory=set)  # targets that may have other sources


def by_values(sources: Mapping[str, View], targets: Mapping[str, View]) -> Found:
    """Match every target whose values the sources hold."""
    return _Matcher(sources, targets).run()


class _Matcher:
    """The state of one search."""

    def __init__(self, sources: Mapping[str, View], targets: Mapping[str, View]) -> None:
        self.sources = {n: v for n, v in sources.items() if v.dtype != STRING}
        self.targets = {n: v for n, v in targets.items() if v.dtype != STRING}
        self.search = Search()
        self.found = Found(open=dict.fromkeys(targets.keys() - self.targets.keys(), "strings"))
        self.used: set[str] = set()
        self.ties: list[tuple[list[str], list[str]]] = []
        self.folders: tuple[dict[str, set[str]], dict[str, set[str]]] = (
            defaultdict(set),
            defaultdict(set),
        )

    def run(self) -> Found:
        """Direct matches, then pieces, then what names must decide, then constants."""
        views = [*self.sources.values(), *self.targets.values()]
        with ThreadPoolExecutor(THREADS, "converter-prints") as pool:
            for view, each in zip(views, pool.map(prints, views), strict=True):
                self.search.known[id(view)] = view, each
        left = self.direct(self.targets)
        left = [name for name in left if not self.joined(name)]
        left = self.cut(left)
        self.settle()
        left = [n for n in left if n not in self.made()]
        for name in left:
            if name in self.found.open:
                continue
            near = self.near(name)
            if not (self.changed(name, near) or self.summed(name, near)):
                self.found.open[name] = "no source holds these values"
        self.found.matches = self.unified()
        return self.found

    def prints(self, view: View) -> Prints:
        """A tensor's fingerprints."""
        return self.search.prints(view)

    def made(self) -> set[str]:
        """Targets that something makes by now."""
        return {t for m in self.found.matches for t in m.targets} | self.found.constants.keys()

    def direct(self, targets: Mapping[str, View]) -> list[str]:
        """Match targets that hold what one source holds; those left are returned."""
        totals: dict[tuple[int, int, str], tuple[list[str], list[str]]] = defaultdict(
            lambda: ([], [])
        )
        for side, views in enumerate((self.sources, targets)):
            for name, view in views.items():
                key = (self.prints(view).total, view.size, dtype_name(view.dtype))
                totals[key][side].append(name)
        left: list[str] = []
        for ours, theirs in totals.values():
            if not theirs:
                continue
            if len(ours) == len(theirs) == 1 and not self.constant(self.targets[theirs[0]]):
                left += [] if self.pair(ours[0], theirs[0]) else theirs
            elif ours:
                self.ties.append((ours, theirs))
            else:
                left += theirs
        rest = [name for name in left if not self.constant_made(name)]
        return [name for name in rest if not self.cast(name)]

    def pair(self, source: str, target: str, note: str = "") -> bool:
        """Note a match if the source can be brought to the target's form."""
        ours, theirs = self.sources[source], self.targets[target]
        if ours.shape == theirs.shape and ours.dtype == theirs.dtype and same(ours, theirs):
            ops: tuple[Op, ...] = ()
        else:
            found = self.search.explain(ours, theirs, source)
            if found is None or not found.exact or not known(found.ops):
                words = f"{source}, {found}" if found else f"{source}'s values in another order"
                self.found.open.setdefault(target, words)
                return False
            for ops in (_with_epsilons(found.ops, target), found.ops):
                made = applied(ops, ours)
                if made is not None and made.shape == theirs.shape and same(made, theirs):
                    break
            else:
                self.found.open.setdefault(target, f"{source}, {found}")
                return False
        self.found.open.pop(target, None)
        self.found.matches.append(Match((source,), (target,), ops, note))
        self.used.add(source)
        return True

    def constant(self, view: View) -> bool:
        """Is one value everywhere?"""
        return view.size > 0 and self.prints(view).total == (
            int(hashes(_first(view))[0]) * view.size % WRAP
        )

    def constant_made(self, name: str) -> bool:
        """Note a target that holds one value everywhere, which no source holds."""
        view = self.targets[name]
        if view.size and not self.constant(view):
            return False
        value = _first(view)[0].item() if view.size else 0
        if not isinstance(value, float | int):
            return False
        self.found.constants[name] = value
        return True

    def cast(self, name: str) -> bool:
        """Match a target of another dtype with the one source that casts to it."""
        target = self.targets[name]
        for source, view in self.sources.items():
            if view.size == target.size and view.dtype != target.dtype and source not in self.used:
                cast = prints(view.astype(target.dtype))
                if cast.total == self.prints(target).total and self.pair(source, name):
                    return True
        return False

    def joined(self, name: str) -> bool:
        """Match a target that several sources make, one after the other along an axis."""
        target = self.targets[name]
        for axis in range(target.ndim):
            pieces = list(self.runs(target, axis, self.sources))
            if not 1 < len(pieces) <= PIECES:
                continue
            lengths = [stop - start for _, start, stop in pieces]
            parts = [target.take(axis, start, stop) for _, start, stop in pieces]
            sources = [piece for piece, _, _ in pieces]
            for stacked in (True, False):
                if stacked and set(lengths) != {1}:
                    continue
                shape = target.shape[:axis] + target.shape[axis + 1 :]
                views = [part.reshape(shape) for part in parts] if stacked else parts
                ops = self.common(
                    (self.sources[s], v, s) for s, v in zip(sources, views, strict=True)
                )
                if ops is not None:
                    word = "stack" if stacked else "concat"
                    last = _axis_op(word, target, name, axis, lengths)
                    self.found.matches.append(Match(tuple(sources), (name,), (*ops, last)))
                    self.used |= set(sources)
                    return True
        return False

    def cut(self, left: Sequence[str]) -> list[str]:
        """Match sources that are cut into several of the targets that are left."""
        wanted = {name: self.targets[name] for name in left}
        for source in [n for n in self.sources if n not in self.used]:
            view = self.sources[source]
            for axis in range(view.ndim):
                pieces = list(self.runs(view, axis, wanted))
                if not 1 < len(pieces) <= PIECES:
                    continue
                parts = [view.take(axis, start, stop) for _, start, stop in pieces]
                ops = self.common(
                    (part, wanted[t], source) for (t, _, _), part in zip(pieces, parts, strict=True)
                )
                if ops is not None:
                    lengths = [stop - start for _, start, stop in pieces]
                    first = _axis_op("split", view, source, axis, lengths)
                    targets = tuple(t for t, _, _ in pieces)
                    self.found.matches.append(Match((source,), targets, (first, *ops)))
                    self.used.add(source)
                    for target in targets:
                        del wanted[target]
                    break
        return list(wanted)

    def runs(
        self, whole: View, axis: int, parts: Mapping[str, View]
    ) -> Iterator[tuple[str, int, int]]:
        """Which parts stand one after the other along an axis: (name, start, stop); all or none."""
        sums = self.prints(whole).axes[axis]
        ends = [0, *np.cumsum(sums, dtype=np.uint64).tolist()]
        row = whole.size // max(1, len(sums))
        known: dict[int, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
        for name, view in parts.items():
            if view.dtype == whole.dtype and view.size < whole.size and row and not view.size % row:
                known[view.size // row][self.prints(view).total].append(name)
        at, found, taken = 0, [], set()
        while at < len(sums):
            step = next(
                (
                    (name, length)
                    for length, totals in known.items()
                    if at + length <= len(sums)
                    for name in totals.get((ends[at + length] - ends[at]) % WRAP, ())
                    if name not in taken
                ),
                None,
            )
            if step is None:
                return
            taken.add(step[0])
            found.append((step[0], at, at + step[1]))
            at += step[1]
        yield from found

    def common(self, pairs: Iterable[tuple[View, View, str]]) -> tuple[Op, ...] | None:
        """The ops that bring every first to its second, if they are the same for all."""
        found: set[str] = set()
        for ours, theirs, name in pairs:
            explanation = self.search.layout(ours, theirs, name)
            if explanation is None or not known(explanation.ops):
                return None
            found.add(json.dumps(explanation.ops))
        return tuple(json.loads(found.pop())) if len(found) == 1 else None

    def near(self, name: str) -> list[str]:
        """Sources of a target's size that nothing takes, those whose names speak for it first."""
        size = self.targets[name].size
        beside = self.folders[1].get(folder(name), ())
        found = [n for n, v in self.sources.items() if n not in self.used and v.size == size]
        return sorted(found, key=lambda n: (folder(n) not in beside, -similarity(n, name)))

    def changed(self, name: str, near: Sequence[str]) -> bool:
        """Match a target with a source whose numbers were changed: negated, added to, scaled."""
        return any(self.pair(source, name) for source in near[:TRIED])

    def summed(self, name: str, near: Sequence[str]) -> bool:
        """Match a target that is the sum of two sources, or their difference."""
        target = self.targets[name]
        alike = [
            n
            for n in near
            if self.sources[n].shape == target.shape and self.sources[n].dtype == target.dtype
        ]
        if target.dtype.kind != "f" or not 1 < target.size <= MOST_SUMMED:
            return False
        wanted = target.numpy()
        values = {n: self.sources[n].numpy() for n in alike}
        for one, other in itertools.product(alike[:TRIED], alike):
            for sign, function in enumerate((np.add, np.subtract)):
                a, b = values[one], values[other]
                if one == other or function(a.flat[0], b.flat[0]) != wanted.flat[0]:
                    continue  # one number tells nearly all of them apart
                if np.array_equal(function(a, b), wanted):
                    sources, negated = (one, other), (1,) * sign
                    self.found.open.pop(name, None)
                    match = Match(sources, (name,), ({"sum": {}},), negated=negated)
                    self.found.matches.append(match)
                    self.used |= set(sources)
                    return True
        return False

    def settle(self) -> None:
        """Names decide between tensors that hold the same values."""
        beside: set[tuple[str, str]] = set()
        for match in self.found.matches:
            for source, target in itertools.product(match.sources, match.targets):
                beside |= set(itertools.product(ancestors(source), ancestors(target)))
                self.folders[0][folder(source)].add(folder(target))
                self.folders[1][folder(target)].add(folder(source))
        leaves = Counter((leaf(m.sources[0]), leaf(m.targets[0])) for m in self.found.matches)
        for ours, theirs in self.ties:
            scored = sorted(
                (-self.affinity(s, t, beside, leaves), abs(i / len(ours) - j / len(theirs)), i, j)
                for i, s in enumerate(ours)
                for j, t in enumerate(theirs)
            )
            paired = self.paired(ours, theirs, scored)
            for target in theirs:
                if target not in paired and not self.constant_made(target):
                    best = max(ours, key=lambda s: self.affinity(s, target, beside, leaves))
                    why = f"it holds what '{best}' holds, which makes another target"
                    self.found.open[target] = why

    def paired(
        self,
        ours: Sequence[str],
        theirs: Sequence[str],
        scored: Sequence[tuple[float, float, int, int]],
    ) -> set[str]:
        """Take pairs in the order of their scores; the targets that got a source."""
        rows: set[int] = set()
        done: set[str] = set()
        for score, _, i, j in scored:
            if i in rows or theirs[j] in done:
                continue
            if self.constant(self.targets[theirs[j]]) and score > -1:
                continue  # nothing but the value speaks for it
            if self.pair(ours[i], theirs[j], "equal values: the names decide"):
                rows.add(i)
                done.add(theirs[j])
        return done

    def affinity(
        self, source: str, target: str, beside: set[tuple[str, str]], leaves: Counter[Any]
    ) -> float:
        """How much the names, and those of their neighbours, speak for a pair."""
        depth = max(
            (
                (a.count("/") + a.count(".") + 1) + (b.count("/") + b.count(".") + 1)
                for a, b in itertools.product(ancestors(source), ancestors(target))
                if (a, b) in beside
            ),
            default=0,
        )
        here, there = folder(source), folder(target)
        ours, theirs = self.folders[0].get(here), self.folders[1].get(there)
        if ours and there in ours:
            depth += FOLDER
        elif ours or theirs:  # one of the folders belongs to another
            depth -= FOLDER
        return depth + (leaves[leaf(source), leaf(target)] > 0) + similarity(source, target)

    def unified(self) -> list[Match]:
        """Matches with as few different ops as will do: `h w i o` also fits a 1x1 kernel."""
        often = Counter(json.dumps(m.ops) for m in self.found.matches if len(m.sources) == 1)
        result = []
        for match in self.found.matches:
            if len(match.sources) == len(match.targets) == 1 and match.ops:
                match = self.unify(match, often)  # noqa: PLW2901
            result.append(match)
        return result

    def unify(self, match: Match, often: Counter[str]) -> Match:
        """The match with more usual ops, where they do the same."""
        ours, theirs = self.sources[match.sources[0]], self.targets[match.targets[0]]
        for text in sorted(often, key=lambda text: (" 1 " in text or '"1 ' in text, -often[text])):
            ops = tuple(json.loads(text))
            if ops == match.ops:
                return match
            view = applied(ops, ours) if ops else None
            if view is None or view.shape != theirs.shape or view.dtype != theirs.dtype:
                continue
            if same(view, theirs):
                return Match(match.sources, match.targets, ops, match.note)
        return match


def _first(view: View) -> Any:
    out = np.empty(1, view.dtype)
    view.read(0, out)
    return out


def _axis_op(word: str, view: View, name: str, axis: int, lengths: Sequence[int]) -> Op:
    mark = marked(axis_names(view.shape, name), axis)
    if word == "stack" or len(set(lengths)) == 1:
        return {word: mark}
    return {word: {"axis": mark, "sizes": list(lengths)}}


def known(ops: Sequence[Op]) -> bool:
    """Does the language have all of these ops?"""
    try:
        for op in ops:
            for word, value in op.items():
                OPS[word].read(value)
    except (KeyError, ValueError):
        return False
    return True


def _with_epsilons(ops: Sequence[Op], target: str) -> tuple[Op, ...]:
    """The ops, where what is added to a variance is said as the epsilons of both layers."""
    said = {_rounded(a - b): {"from": a, "to": b} for a, b in itertools.permutations(EPSILONS, 2)}
    added = [op.get("add") if "var" in target else None for op in ops]
    return tuple(
        {"epsilon": said[_rounded(value)]}
        if isinstance(value, float) and _rounded(value) in said
        else op
        for op, value in zip(ops, added, strict=True)
    )


def _rounded(number: float) -> str:
    return f"{number:.6g}"


def applied(ops: Sequence[Op], view: View) -> View | None:
    """A view after ops; None when they do not fit."""
    views = [view]
    try:
        for op in ops:
            for word, value in op.items():
                views = OPS[word].read(value).apply(views, 1)
    except (OpError, KeyError, ValueError):
        return None
    return views[0]


# ── names ────────────────────────────────────────────────────────────────────────────────────────

SYNONYMS = {
    word: words[0]
    for words in (
        ("weight", "weights", "kernel", "gamma", "depthwise_weights", "depthwise_kernel", "w"),
        ("bias", "biases", "beta", "b"),
        ("mean", "moving_mean", "running_mean"),
        ("variance", "moving_variance", "running_var", "var"),
        ("norm", "batchnorm", "bn", "batch_normalization", "layernorm", "layer_norm", "ln"),
        ("embedding", "embeddings", "embed", "wte", "word_embeddings"),
        ("downsample", "shortcut"),
        ("recurrent", "hh"),
        ("reverse", "backward"),
        ("layer", "layers", "block", "blocks"),
        ("query", "q"),
        ("key", "k"),
        ("value", "v"),
        ("conv", "conv2d", "convolution"),
        ("dense", "fc", "linear", "classifier"),
    )
    for word in words
}


def words(name: str) -> list[str]:
    """The words and numbers of a name, with one word for all that mean the same."""
    found = []
    for segment in split(name.lower().removesuffix(":0")):
        if segment in SYNONYMS:
            found.append(SYNONYMS[segment])
            continue
        found += [SYNONYMS.get(w, w) for w in re.findall(r"[a-z]+|[0-9]+", segment)]
    return found


def similarity(first: str, second: str) -> float:
    """How alike two names are, from 0 to 1."""
    ours, theirs = Counter(words(first)), Counter(words(second))
    return 2 * sum((ours & theirs).values()) / max(1, sum(ours.values()) + sum(theirs.values()))


def leaf(name: str) -> str:
    """The last segment."""
    return split(name)[-1]


def folder(name: str) -> str:
    """All but the last segment."""
    return (ancestors(name) or [""])[-1]


def ancestors(name: str) -> list[str]:
    """The folders that a name stands in, the nearest last."""
    return [name[: found.start()] for found in re.finditer("[/.]", name)]
