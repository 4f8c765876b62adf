"""Two real models on the same inputs: where their layers first make something else of them.

A layer of the source is paired with the module of the target that the mapping gives its weights
to.  The two may end at different points: one layer has its activation inside, in the other it
follows, or is a function between two modules.  So everything is compared that is seen from a layer
on and before the next one that is paired, and a layer agrees when something of that does.

    source   conv ──────── relu, pool ── conv2 …       window of conv: conv, relu, pool
    target   conv.out ── relu.in … pool.out ── conv2.in      of conv: up to what conv2 takes
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from converter import extras
from converter.digests import of_tensor
from converter.errors import SourceError
from converter.layout import Array
from converter.tensors import Checkpoint

RTOL = 1e-3  # of the largest value: float32 through a hundred layers, in another order of sums
KINDS = ("keras", "savedmodel", "slim")
ENVIRONMENT = {  # plain float32 kernels, the ones to compare with, and no chatter
    "CUDA_VISIBLE_DEVICES": "",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_ENABLE_ONEDNN_OPTS": "0",
}


@dataclass(frozen=True, slots=True)
class Pair:
    """A layer of the source and a module of the target, and how far apart their outputs are.

    `departure` is the largest difference relative to the largest value; infinite where no two
    outputs have a shape in common.  A name of "" is the whole model.
    """

    source: str
    target: str
    departure: float
    agrees: bool


class Event(NamedTuple):
    """What a layer took or gave."""

    layer: str
    kind: str
    path: Path
    weights: frozenset[str]

    def array(self) -> Array:
        """The values."""
        found: Array = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return found


class Run(NamedTuple):
    """Everything that a model was seen to do, in order."""

    inputs: dict[str, str]
    events: list[Event]
    outputs: list[Event]


def parity(  # noqa: PLR0913 - what is run, and how, each by name
    source: Checkpoint,
    models: tuple[str, str, str],
    target: Path,
    lineage: Sequence[Mapping[str, Any]],
    *,
    inputs: Mapping[str, Path],
    seed: int = 0,
    rtol: float = RTOL,
) -> list[Pair]:
    """Run both models, and compare layer by layer; the last rows are the models' outputs.

    `models` are the kind of the source's model, the model itself, and `package.module:callable`
    for the target's.  `lineage` says which tensors each tensor of the target is made of.
    Raises `SourceError` when a model cannot be run.
    """
    kind, model, module = models
    with tempfile.TemporaryDirectory(prefix="converter-") as folder:
        request = {"kind": kind, "model": model, "weights": str(source.path), "seed": seed}
        names = _names_of(source, {name for row in lineage for name in row["sources"]})
        given = {name: str(path.resolve()) for name, path in inputs.items()}
        first = _run(Path(folder, "source"), request | {"inputs": given}, names)
        request = {"kind": "torch", "model": module, "weights": str(target), "seed": seed}
        second = _run(Path(folder, "target"), request | {"inputs": first.inputs}, {})
        return list(_compared(first, second, lineage, rtol))


def _names_of(checkpoint: Checkpoint, used: Iterable[str]) -> dict[str, str]:
    """The names of tensors that are used, by digest, of those that no other of these equals."""
    found: dict[str, list[str]] = {}
    for name in used:
        found.setdefault(of_tensor(checkpoint[name]), []).append(name)
    return {digest: names[0] for digest, names in found.items() if len(names) == 1}


def _run(folder: Path, request: Mapping[str, Any], names: Mapping[str, str]) -> Run:
    """Run a model in a process of its own."""
    folder.mkdir()
    (folder / "request.json").write_text(json.dumps(request))
    command = [sys.executable, "-P", "-m", "converter.models", str(folder)]
    child = subprocess.run(  # noqa: S603
        command, capture_output=True, text=True, check=False, env=ENVIRONMENT | os.environ
    )
    if child.returncode:
        last = (child.stderr.strip().splitlines() or ["no message"])[-1]
        extras.check_child(last)
        raise SourceError(f"the model '{request['model']}' cannot be run: {last}")
    answer = json.loads((folder / "answer.json").read_text())
    events = [
        Event(
            row["layer"],
            row["kind"],
            folder / row["file"],
            frozenset(row.get("weights", ()))
            | {names[digest] for digest in row.get("digests", ()) if digest in names},
        )
        for row in answer["events"]
    ]
    return Run(
        {row["name"]: str(folder / row["file"]) for row in answer["inputs"]},
        [event for event in events if event.layer],
        [event for event in events if not event.layer],
    )


def _compared(
    first: Run, second: Run, lineage: Sequence[Mapping[str, Any]], rtol: float
) -> Iterator[Pair]:
    outputs = []
    for ours, theirs in itertools.zip_longest(first.outputs, second.outputs):
        gap = _nearest([ours], [theirs], rtol) if ours and theirs else float("inf")
        outputs.append(Pair("", "", gap, gap <= rtol))
    pairs = _by_mapping(first.events, second.events, lineage)
    for window in _windows(pairs, first.events, second.events):
        gap = _nearest(*window, rtol)
        yield Pair(window[0][0].layer, window[1][0].layer, gap, gap <= rtol)
    if not pairs:
        agree = all(pair.agrees for pair in outputs)
        yield from _by_order(first.events, second.events, rtol, agree=agree)
    yield from outputs


def _by_mapping(
    first: Sequence[Event], second: Sequence[Event], lineage: Sequence[Mapping[str, Any]]
) -> list[tuple[int, int]]:
    """Which event of the source goes with which of the target: by the weights of the layers.

    Of several layers whose weights become those of one module, the last counts: the others are
    folded into it.
    """
    modules: dict[str, set[str]] = {}
    for row in lineage:
        for name in row["sources"]:
            modules.setdefault(name, set()).add(row["name"].rpartition(".")[0])
    last = {event.layer: nth for nth, event in enumerate(second) if event.kind == "out"}
    found: dict[int, int] = {}
    for nth, event in enumerate(first):
        owners = set[str]().union(*(modules.get(name, set()) for name in event.weights))
        places = [last[owner] for owner in owners if owner in last]
        if places:
            found[max(places)] = nth
    return sorted((ours, theirs) for theirs, ours in found.items())


def _windows(
    pairs: Sequence[tuple[int, int]], first: Sequence[Event], second: Sequence[Event]
) -> Iterator[tuple[Sequence[Event], Sequence[Event]]]:
    """What is seen from each pair on and before the next, of either side."""
    starts = sorted(theirs for _, theirs in pairs)
    layers = {second[theirs].layer for theirs in starts}
    for nth, (ours, theirs) in enumerate(pairs):
        end = pairs[nth + 1][0] if nth + 1 < len(pairs) else len(first)
        following = (
            at + 1
            for at, event in enumerate(second)
            if at > theirs and event.kind == "in" and event.layer in layers
        )
        yield first[ours:end], second[theirs : next(following, len(second))]


def _by_order(
    first: Sequence[Event], second: Sequence[Event], rtol: float, *, agree: bool
) -> Iterator[Pair]:
    """What is equal in the order in which it is seen; then the next layer, unless outputs agree."""
    start, rest = 0, list(first)
    for nth, event in enumerate(first):
        array = event.array()
        for at in range(start, len(second)):
            gap = departure(array, second[at].array())
            if gap <= rtol:
                yield Pair(event.layer, second[at].layer, gap, agrees=True)
                start, rest = at, list(first[nth + 1 :])
                break
    if rest and not agree:
        array = rest[0].array()
        gaps = ((departure(array, each.array()), each.layer) for each in second[start:])
        gap, layer = min(gaps, default=(float("inf"), ""))
        yield Pair(rest[0].layer, layer, gap, agrees=False)


def _nearest(first: Sequence[Event], second: Sequence[Event], rtol: float) -> float:
    """How far apart the two events are that are nearest."""
    best = float("inf")
    arrays: dict[Path, Array] = {}
    for ours, theirs in itertools.product(first, second):
        for event in (ours, theirs):
            if event.path not in arrays:
                arrays[event.path] = event.array()
        best = min(best, departure(arrays[ours.path], arrays[theirs.path]))
        if best <= rtol:
            break
    return best


def departure(first: Array, second: Array) -> float:
    """The largest difference of two outputs, relative to the largest value of the first.

    Axes of one element do not count.  The first may have its channels last where the second has
    them first: of the two readings the nearer counts.  Infinite where no reading fits.
    """
    a, b = np.squeeze(first), np.squeeze(second)
    readings = [a]
    if a.ndim > 1:
        readings += [np.moveaxis(a, -1, axis) for axis in (0, 1) if axis < a.ndim - 1]
    gaps = [_gap(reading, b) for reading in readings if reading.shape == b.shape]
    return min(gaps, default=float("inf"))


def _gap(a: Array, b: Array) -> float:
    with np.errstate(all="ignore"):
        gap = np.max(np.abs(a.astype(np.float64) - b), initial=0.0)
        scale = np.max(np.abs(a), initial=0.0)
    if np.isnan(gap):
        return float("inf")
    return float(gap / scale) if scale else float(gap)
