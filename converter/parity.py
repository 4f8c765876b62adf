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
        found: Array = np.load(self.path, allow_pickle=False)
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
        given = {name: str(path.resolve()) for name, path in inputs.items()}
        first = _run(Path(folder, "source"), request | {"inputs": given}, _names_of(source))
        request = {"kind": "torch", "model": module, "weights": str(target), "seed": seed}
        second = _run(Path(folder, "target"), request | {"inputs": first.inputs}, {})
        return list(_compared(first, second, lineage, rtol))


def _names_of(checkpoint: Checkpoint) -> dict[str, str]:
    """The names of tensors by digest, of those that no other tensor equals."""
    found: dict[str, list[str]] = {}
    for name, tensor in checkpoint.items():
        found.setdefault(of_tensor(tensor), []).append(name)
    return {digest: names[0] for digest, names in found.items() if len(names) == 1}


def _run(folder: Path, request: Mapping[str, Any], names: Mapping[str, str]) -> Run:
    """Run a model in a process of its own."""
    folder.mkdir()
    (folder / "request.json").write_text(json.dumps(request))
    command = [sys.executable, "-m", "converter.models", str(folder)]
    child = subprocess.run(  # noqa: S603
        command, capture_output=True, text=True, check=False, env=ENVIRONMENT | os.environ
    )
    if child.returncode:
        last = (child.stderr.strip().splitlines() or ["no message"])[-1]
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
    pairs = _by_mapping(first.events, second.events, lineage)
    if pairs:
        windows = _windows(pairs, first.events, second.events)
    else:
        windows = _by_order(first.events, second.events)
    for ours, theirs in windows:
        gap = _nearest(ours, theirs, rtol)
        yield Pair(ours[0].layer, theirs[0].layer, gap, gap <= rtol)
    for ours_, theirs_ in itertools.zip_longest(first.outputs, second.outputs):
        gap = _nearest([ours_], [theirs_], rtol) if ours_ and theirs_ else float("inf")
        yield Pair("", "", gap, gap <= rtol)


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
    first: Iterable[Event], second: Sequence[Event]
) -> Iterator[tuple[Sequence[Event], Sequence[Event]]]:
    """Each layer with the next module whose output has its shape."""
    start = 0
    for event in first:
        sizes = sorted(n for n in event.array().shape if n > 1)
        for at in range(start, len(second)):
            shape = second[at].array().shape
            if second[at].kind == "out" and sorted(n for n in shape if n > 1) == sizes:
                yield [event], [second[at]]
                start = at + 1
                break


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
