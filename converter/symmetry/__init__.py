"""Why two tensors differ: the symmetry that a port got wrong, found without trying all of them.

Every element is hashed, and the hashes are summed for each index of each axis.  Such sums do not
depend on the order of the other axes, so

    equal sums of two tensors           they hold the same values, in some order
    equal sorted sums of two axes       the axes belong together, wherever they stand
    the order of the sums on an axis    reversed, in blocks, interleaved, flattened the other way

and only what the sums confirm is applied and compared, bit for bit, before it is said.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from converter.compare import Difference, same
from converter.layout import Array, View
from converter.symmetry.arrange import Arrangement, Atom, arrange, axis_names
from converter.symmetry.changes import (
    Change,
    Op,
    cast,
    marked,
    negate,
    roundings,
    swapped_bytes,
)
from converter.symmetry.numbers import change_of
from converter.symmetry.prints import Prints, prints
from converter.tensors import STRING, Checkpoint

__all__ = ["Explanation", "Op", "Search", "explained"]

AXES = 5  # of a tensor whose axes are tried in every order
READ = 1 << 24  # elements of a tensor whose values are looked at all at once


@dataclass(frozen=True, slots=True)
class Explanation:
    """What would make two tensors equal.

    `ops` are those of the mapping language, to be applied to the first; `exact` says that the
    result was compared and is equal bit for bit, else it is equal but for rounding.  `others` are
    names of the second checkpoint that hold what the first's name holds.
    """

    text: str
    ops: tuple[Op, ...] = ()
    exact: bool = True
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.text


@dataclass
class Search:
    """What is known of two checkpoints while their differences are explained; prints are kept."""

    known: dict[int, tuple[View, Prints]] = field(default_factory=dict)

    def prints(self, view: View) -> Prints:
        """The fingerprints of a view, once."""
        if id(view) not in self.known:
            self.known[id(view)] = view, prints(view)  # the view is kept, so its id is
        return self.known[id(view)][1]

    def explain(self, first: View, second: View, name: str = "") -> Explanation | None:
        """What would make the first equal to the second."""
        if STRING in (first.dtype, second.dtype) or 0 in (first.size, second.size):
            return None
        if first.size != second.size:
            return self.sized(first, second, name)
        if first.dtype != second.dtype:
            return self.cast(first, second, name)
        return self.layout(first, second, name) or self.values(first, second, name)

    def layout(
        self, first: View, second: View, name: str, tail: Sequence[Change] = ()
    ) -> Explanation | None:
        """The same values in another order, once the changes of `tail` were made."""
        changed = _changed(first, tail)
        ours = self.prints(first) if not tail else prints(changed)
        theirs = self.prints(second)
        if ours.total != theirs.total:
            return None
        found = arrange(ours, theirs)
        if found is None or not same(found.apply(changed), second):
            return _reshaped(changed, second, tail)
        ops = [*found.ops(name), *(op for change in tail if (op := change.op(())))]
        texts = [*(change.text for change in found.before)]
        texts += [] if found.plain else [_said(found, name)]
        texts += [change.text for change in tail]
        return Explanation(f"equal after {' and '.join(texts)}", tuple(ops))

    def cast(self, first: View, second: View, name: str) -> Explanation | None:
        """Another dtype: the same numbers, rounded or not."""
        if second.dtype.kind != "c" and first.dtype.kind == "c":
            return None
        return self.layout(first, second, name, [cast(second.dtype)])

    def values(self, first: View, second: View, name: str) -> Explanation | None:
        """Other values: negated, rounded, scaled, with something added."""
        if first.dtype.kind in "fV" and first.dtype.itemsize > 1:
            for tail in ([negate()], *([change] for change in roundings(first.dtype))):
                found = self.layout(first, second, name, tail)
                if found:
                    return found
        if first.dtype.itemsize > 1:
            found = self.layout(first, second, name, [swapped_bytes(first.dtype)])
            if found:
                return found
        return _numeric(first, second, name)

    def sized(self, first: View, second: View, name: str) -> Explanation | None:
        """One has more along an axis: a slice of the other."""
        large, small = (first, second) if first.size > second.size else (second, first)
        more, less = self.prints(large), self.prints(small)
        for k, j in itertools.product(range(large.ndim), range(small.ndim)):
            n, m = large.shape[k], small.shape[j]
            if n <= m or large.size // n != small.size // m:
                continue
            for start in _inside(less.axes[j], more.axes[k]):
                part = large.take(k, start, start + m)
                pair = (part, small) if large is first else (small, part)
                if found := self.part(*pair, name, (k, start, m, n), large is first):
                    return found
        return None

    def part(
        self, first: View, second: View, name: str, where: tuple[int, int, int, int], cut: bool
    ) -> Explanation | None:
        """Explain the part that both have; `where` is axis, start, length and whole length."""
        axis, start, length, whole = where
        alike = first.shape == second.shape and same(first, second)
        rest = None if alike else self.layout(first, second, name)
        if not alike and rest is None:
            return None
        after = f", {rest.text.removeprefix('equal ')}" if rest else ""
        if not cut:
            text = f"[{start}, {start + length}) of its axis {axis} ({whole}) is the other{after}"
            return Explanation(text, (), exact=True)
        names = axis_names([whole if k == axis else n for k, n in enumerate(first.shape)], name)
        op = {"slice": {"axis": marked(names, axis), "start": start, "stop": start + length}}
        text = f"equal to [{start}, {start + length}) of axis {axis} ({whole}){after}"
        return Explanation(text, (op, *(rest.ops if rest else ())))


def _reshaped(first: View, second: View, tail: Sequence[Change]) -> Explanation | None:
    """The same elements in C order, as another shape: a transposition that was none."""
    if first.shape == second.shape or not same(first.reshape(second.shape), second):
        return None
    ours, theirs = list(first.shape), list(second.shape)
    ops = (
        {"reshape": {"from": ours, "to": theirs}},
        *(op for change in tail if (op := change.op(()))),
    )
    after = "".join(f" and {change.text}" for change in tail)
    return Explanation(f"equal after reshaping {ours} to {theirs}{after}", ops)


def _said(found: Arrangement, name: str) -> str:
    """A rearrangement in words."""
    value = found.rearrange(name)["rearrange"]
    pattern = value if isinstance(value, str) else value["pattern"]
    sizes = "" if isinstance(value, str) else f" ({_listed(value['sizes'])})"
    return f"`{pattern}`{sizes}"


def _listed(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} = {size}" for name, size in sizes.items())


def _inside(short: Array, long: Array) -> Iterator[int]:
    """Where one row of sums stands within another."""
    for start in np.flatnonzero(long[: len(long) - len(short) + 1] == short[0]):
        if np.array_equal(long[start : start + len(short)], short):
            yield int(start)


def _changed(view: View, changes: Sequence[Change]) -> View:
    for change in changes:
        view = change.apply(view)
    return view


def _numeric(first: View, second: View, name: str) -> Explanation | None:
    """A change of numbers, with the axes as they are or permuted."""
    if first.size > READ or first.dtype.kind not in "fiuV":
        return None
    ours, theirs = first.numpy(), second.numpy()
    for order in sorted(
        itertools.permutations(range(first.ndim)) if first.ndim <= AXES else [range(first.ndim)],
        key=lambda order: list(order) != sorted(order),
    ):
        if tuple(first.shape[k] for k in order) != second.shape:
            continue
        found = change_of(ours.transpose(order), theirs)
        if found is None:
            continue
        change, exact = found
        left = [[Atom(k, 0, n)] for k, n in enumerate(first.shape)]
        moved = Arrangement(left, [left[k] for k in order])
        ops = (
            *moved.ops(name),
            *([op] if (op := change.op(axis_names(second.shape, name))) else []),
        )
        texts = [*([] if moved.plain else [_said(moved, name)]), *filter(None, [change.text])]
        after = f" after {' and '.join(texts)}" if texts else ""
        return Explanation(f"equal{'' if exact else ' but for rounding'}{after}", ops, exact)
    return None


# ── across names ─────────────────────────────────────────────────────────────────────────────────


def explained(
    rows: Sequence[Difference], first: Checkpoint, second: Checkpoint
) -> Iterator[Difference]:
    """The differences, each with what explains it, where something does."""
    search = Search()
    wrong = [row for row in rows if not row.equal]
    theirs = {r.name: second[r.name].view for r in wrong if r.status != "missing"}
    ours = {r.name: first[r.name].view for r in wrong if r.status != "extra"}
    for row in rows:
        if row.equal or row.name not in ours:
            yield row
            continue
        view, other = ours[row.name], theirs.get(row.name)
        found = (
            search.layout(view, other, row.name)
            if other is not None and _alike(view, other)
            else None
        )
        found = found or _elsewhere(search, row.name, view, theirs)
        if found is None and other is not None:
            found = search.explain(view, other, row.name) or _rows_of(
                search, row.name, ours, theirs
            )
        yield replace(row, explanation=found)


def _alike(first: View, second: View) -> bool:
    return first.dtype == second.dtype and first.size == second.size and first.dtype != STRING


def _elsewhere(
    search: Search, name: str, view: View, theirs: Mapping[str, View]
) -> Explanation | None:
    """Is it under another name of the second checkpoint?"""
    for other, candidate in theirs.items():
        if other == name or not _alike(view, candidate) or view.size == 0:
            continue
        if search.prints(view).total != search.prints(candidate).total:
            continue
        if view.shape == candidate.shape and same(view, candidate):
            return Explanation(f"equal to the second's '{other}'", others=(other,))
        found = search.layout(view, candidate, name)
        if found:
            after = found.text.removeprefix("equal ")
            return Explanation(
                f"equal to the second's '{other}', {after}", found.ops, others=(other,)
            )
    return None


def _rows_of(
    search: Search, name: str, ours: Mapping[str, View], theirs: Mapping[str, View]
) -> Explanation | None:
    """Are parts of it those of another tensor?  Rows are looked up by their sums."""
    view, other = ours[name], theirs[name]
    if view.shape != other.shape or not _alike(view, other):
        return None
    for axis in range(other.ndim):
        found = search.prints(other).axes[axis]
        run = np.flatnonzero(search.prints(view).axes[axis] != found)
        if not len(run) or len(run) == len(found) or run[-1] - run[0] + 1 != len(run):
            continue
        alike = {n: v for n, v in ours.items() if v.size == view.size and v.dtype == view.dtype}
        place = next(_places(search, found[run], alike), None)
        if place:
            source, k, start = place
            where = f"'{source}'" if source != name else "the same tensor"
            text = (
                f"equal but for [{run[0]}, {run[-1] + 1}) of axis {axis}, which holds "
                f"[{start}, {start + len(run)}) of axis {k} of {where}"
            )
            return Explanation(text, exact=False, others=(source,))
    return None


def _places(
    search: Search, sought: Array, views: Mapping[str, View]
) -> Iterator[tuple[str, int, int]]:
    """Where a run of sums stands: (name, axis, start)."""
    for name, view in views.items():
        for axis, sums in enumerate(search.prints(view).axes):
            if len(sums) >= len(sought):
                yield from ((name, axis, start) for start in _inside(sought, sums))
