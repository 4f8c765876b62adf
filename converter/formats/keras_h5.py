"""Keras' HDF5 files of weights by layer: Keras 1 and 2, tf_keras, and `.h5` of Keras 3.

https://github.com/keras-team/keras (keras/src/legacy/saving/legacy_h5_format.py)

    /                          layer_names = [conv, bn, …]   backend   keras_version
    ├── conv                   weight_names = [conv/kernel:0, conv/bias:0]
    │   └── conv
    │       ├── kernel:0       a dataset: the tensor `conv/conv/kernel:0`
    │       └── bias:0
    └── top_level_model_weights             weights of the model itself, not of a layer
    a file of a whole model has all this in /model_weights, and in the root
        model_config   training_config      JSON, kept as metadata, never looked into
        optimizer_weights                   weight_names = […], and datasets below

A tensor's name is the path of its dataset as it is stored, without `model_weights/`; nothing is
guessed, so that writing finds back.  Its alias is what Keras 3 calls the variable, `conv/kernel`,
or `block/conv/kernel` of a layer within a layer, whichever Keras wrote the file.  Order comes from
the two lists, and is kept as the metadata `weight_order`: Keras itself loads by order and not by
name.  A long list is in several attributes (`layer_names0`, `layer_names1`, …).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from converter.errors import (
    ConverterError,
    CorruptFileError,
    UnrepresentableError,
    UnsupportedError,
    context,
)
from converter.files import File, Place, Publication, StagedFile
from converter.formats import Probe, _hdf5
from converter.formats._hdf5 import Dataset, Group
from converter.formats._names import name_problem, shown
from converter.layout import View
from converter.tensors import Checkpoint, LazyTensors, TensorSpec

MODEL, OPTIMIZER, TOP = "model_weights", "optimizer_weights", "top_level_model_weights"
CONFIG, ORDER = "model_config", "weight_order"  # keys of metadata
DEFAULTS = MappingProxyType({"backend": "tensorflow", "keras_version": "2.15.0"})

# ── reading ──────────────────────────────────────────────────────────────────────────────────────


def recognise(probe: Probe) -> bool:
    """Whether this is an HDF5 file that lists layers."""
    if not probe.head.startswith(_hdf5.SIGNATURE):
        return False
    try:
        file = File(probe.path)
        try:
            layers = {"layer_names", "layer_names0"}
            listed = not layers.isdisjoint(_hdf5.root_attributes(file))
            return listed or MODEL in _hdf5.root_names(file)
        finally:
            file.close()
    except ConverterError:  # broken: the format after this one takes any HDF5 file, and says how
        return False


def open(path: Path) -> Checkpoint:  # noqa: A001 - the name every format has
    """The weights in one file, in the order of its lists; reads headers only.

    Raises `CorruptFileError`, `UnsupportedError`, `UnsafeContentError` or `LimitError`.
    """
    file = File(path)
    try:
        with context(path=path):
            root = _hdf5.open_tree(file)
            weights = root.members.get(MODEL)
            weights = weights if isinstance(weights, Group) else root
            order = [*_order(root, weights)]
            found = dict(_datasets(root, weights, order))
            aliases = unique(_aliases(order))
    except BaseException:
        file.close()
        raise
    metadata = _metadata(weights) | _metadata(root)
    if order:
        metadata[ORDER] = json.dumps(order)
    return checkpoint(
        found,
        format="keras-h5",
        path=path,
        metadata=metadata,
        aliases=aliases,
        on_close=file.close,
    )


def _aliases(order: Iterable[tuple[str, list[str]]]) -> Iterator[tuple[str, str]]:
    """The names of stored weights with the paths of their variables."""
    for layer, weights in order:
        numbers: dict[str, int] = {}
        separable = any("pointwise_kernel" in weight for weight in weights)
        for weight in () if layer in {TOP, OPTIMIZER} else weights:
            path = weight.removesuffix(":0")
            path = path if path.startswith(f"{layer}/") else f"{layer}/{path}"
            parent, _, name = path.rpartition("/")
            if _UNNAMED.fullmatch(name):
                name = unnamed(numbers.setdefault(parent, 0))
                numbers[parent] += 1
            if name == "depthwise_kernel" and not separable:  # of Keras 2
                name = "kernel"
            yield f"{layer}/{weight}", f"{parent}/{name}"


_UNNAMED = re.compile("variable(_[0-9]+)?")  # Keras counts these through all layers


def unnamed(number: int) -> str:
    """What the variables of a layer are called that have no name of their own."""
    return f"variable_{number}" if number else "variable"


def unique(pairs: Iterable[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    """Aliases by name, without those that are a tensor's name already, or several tensors'."""
    found = dict(pairs)
    times = Counter((*found, *found.values()))
    return {name: (alias,) for name, alias in found.items() if times[alias] == 1}


def checkpoint(found: Mapping[str, Dataset], **facts: Any) -> Checkpoint:
    """A checkpoint of datasets; `facts` are other fields of it."""
    specs = {name: data.spec for name, data in found.items() if data.spec}
    views = {name: data.view for name, data in found.items() if data.view}
    problems = {name: data.problem for name, data in found.items() if data.problem}
    names: dict[int, list[str]] = {}
    for name in specs:
        names.setdefault(id(found[name]), []).append(name)
    ties = tuple(tuple(group) for group in names.values() if len(group) > 1)
    made: Callable[[Callable[[], View]], View] = cache(lambda view: view())  # one for tied names
    tensors = LazyTensors(specs, lambda name: made(views[name]))
    return Checkpoint(tensors, unsupported=problems, ties=ties, **facts)


def _metadata(group: Group) -> dict[str, str]:
    return {key: text for key, text in group.attributes.items() if isinstance(text, str)}


def _order(root: Group, weights: Group) -> Iterator[tuple[str, list[str]]]:
    """Each group that lists weights, with the list."""
    for layer in weights.texts("layer_names"):
        group = weights.find(layer)
        if not isinstance(group, Group):
            raise CorruptFileError("a layer is listed, but is not there", tensor=shown(layer))
        yield layer, group.texts("weight_names")
    for parent, name in ((weights, TOP), (root, OPTIMIZER)):
        group = parent.members.get(name)
        if isinstance(group, Group) and group.texts("weight_names"):
            yield name, group.texts("weight_names")


def _datasets(
    root: Group, weights: Group, order: Iterable[tuple[str, list[str]]]
) -> Iterator[tuple[str, Dataset]]:
    """Every dataset with its name: those that are listed, then the others."""
    found = _named(weights.datasets())
    if weights is not root:
        others = (pair for pair in root.datasets() if not pair[0].startswith(f"{MODEL}/"))
        for name, data in _named(others).items():
            if name in found:
                raise UnsupportedError("two datasets get this name", tensor=shown(name))
            found[name] = data
    for group, names in order:
        for name in (f"{group}/{weight}" for weight in names):
            if name not in found:
                raise CorruptFileError(
                    "a weight is listed, but is not there, or is listed twice", tensor=shown(name)
                )
            yield name, found.pop(name)
    yield from found.items()


def _named(datasets: Iterable[tuple[str, Dataset]]) -> dict[str, Dataset]:
    found = dict(datasets)
    for name in found:
        if trouble := name_problem(name):
            raise CorruptFileError(f"its name {trouble}", tensor=shown(name))
    return found


# ── writing ──────────────────────────────────────────────────────────────────────────────────────

_LATE = {"moving_mean", "moving_variance", "mean", "variance"}  # not trained, so after the others
_RANKS = {
    name: rank
    for rank, name in enumerate(
        (
            *("depthwise_kernel", "pointwise_kernel", "kernel", "embeddings", "recurrent_kernel"),
            *("gamma", "beta", "bias", "moving_mean", "moving_variance", "mean", "variance"),
        )
    )
}


def problem(name: str, spec: TensorSpec) -> str:
    """Why there cannot be such a dataset, "" when there can."""
    if spec.dtype == _hdf5.BFLOAT16:
        return "Keras writes bfloat16 into .weights.h5 and .keras, and cannot read it from .h5"
    return _hdf5.problem(name, spec)


def create(
    path: Path,
    specs: Mapping[str, TensorSpec],
    *,
    metadata: Mapping[str, str],
    ties: Sequence[Sequence[str]],  # noqa: ARG001 - tied names are each written in full
    overwrite: bool,
) -> Sink:
    """A sink for one file.

    A name's first part is its layer, unless `weight_order` in the metadata says otherwise; weights
    come in its order, or else as Keras' own layers have them.  With `model_config` in the
    metadata, and every weight of `weight_order`, it is the file of a model.  Names of one part are
    datasets of the root, which Keras does not look at.
    """
    with context(path=path):
        for name, spec in specs.items():
            if trouble := problem(name, spec):
                raise UnrepresentableError(trouble, tensor=shown(name), found=spec)
        _hdf5.check(specs)
        known = _known_order(metadata)
        listed = {f"{group}/{weight}" for group, names in known for weight in names}
        model = CONFIG in metadata and bool(listed) and listed <= specs.keys()
        order = _complete(known, list(specs))
        # Keras converts weights by the version that wrote them, and those without one as Keras 1.
        same = bool(listed) and not listed.isdisjoint(specs)
        kept = metadata.keys() - {ORDER, CONFIG} - (set() if same else {*DEFAULTS})
        facts = {} if same else dict(DEFAULTS)
        facts |= {key: text for key, text in metadata.items() if key in kept}
        if model:
            facts[CONFIG] = metadata[CONFIG]
        return Sink(path, specs, _Plan(order, facts, model=model), overwrite=overwrite)


def _known_order(metadata: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    try:
        found = json.loads(metadata.get(ORDER, "[]"))
        return [(str(group), [str(name) for name in names]) for group, names in found]
    except (ValueError, TypeError, RecursionError):
        return []  # somebody else's metadata


def _complete(known: Iterable[tuple[str, list[str]]], names: Sequence[str]) -> dict[str, list[str]]:
    """The weights of each group, in order: as known, then what is new."""
    left = dict.fromkeys(names)
    order: dict[str, list[str]] = {}
    for group, listed in known:
        kept = [weight for weight in listed if f"{group}/{weight}" in left]
        if kept or not listed:
            order[group] = kept
        for weight in kept:
            del left[f"{group}/{weight}"]
    if not any(order.values()):
        order = {}
    new: dict[str, list[str]] = {}
    for name in left:
        group, _, weight = name.partition("/")
        if weight:
            new.setdefault(group, []).append(weight)
    for group, weights in new.items():
        order[group] = order.get(group, []) + sorted(weights, key=_Usual(weights))
    return order


class _Usual:
    """The place of a weight among those of its layer, as Keras' own layers have them."""

    def __init__(self, weights: Iterable[str]) -> None:
        parents = dict.fromkeys(weight.rpartition("/")[0] for weight in weights)
        self._parents = {parent: number for number, parent in enumerate(parents)}

    def __call__(self, weight: str) -> tuple[bool, int, int]:
        parent, _, leaf = weight.rpartition("/")
        leaf = leaf.partition(":")[0]
        return leaf in _LATE, self._parents[parent], _RANKS.get(leaf, len(_RANKS))


class Plan:
    """What a file has besides values: attributes of groups, and where names go."""

    def __init__(self, groups: Mapping[str, _hdf5.Attributes]) -> None:
        self.groups = groups

    def path(self, name: str) -> str:
        """Where a tensor is in the file."""
        return name


class _Plan(Plan):
    """Attributes of layers, with `model` those of a whole model."""

    def __init__(
        self, order: Mapping[str, list[str]], facts: Mapping[str, str], *, model: bool
    ) -> None:
        self._model = model
        groups: dict[str, _hdf5.Attributes] = {
            self.path(group): {"weight_names": names} for group, names in order.items()
        }
        special = {TOP, OPTIMIZER} if model else {TOP}
        layers = {"layer_names": [group for group in order if group not in special]}
        if model:
            groups[MODEL] = {**{key: facts[key] for key in DEFAULTS if key in facts}, **layers}
            layers = {}
        super().__init__({"": {**facts, **layers}, **groups})

    def path(self, name: str) -> str:
        """Where a tensor, or a group, is in the file."""
        if not self._model or name.partition("/")[0] == OPTIMIZER:
            return name
        return f"{MODEL}/{name}"


class Body:
    """The content of an HDF5 file, which is laid out when it begins."""

    def __init__(self, specs: Mapping[str, TensorSpec], plan: Plan) -> None:
        self.names = self.order = tuple(specs)
        self.nbytes = sum(spec.nbytes for spec in specs.values())
        self._specs, self._plan = specs, plan

    def begin(self, staged: StagedFile) -> None:
        """Take the file, and write all of it but the values."""
        stored = {self._plan.path(name): spec for name, spec in self._specs.items()}
        offsets = _hdf5.lay_out(staged, stored, self._plan.groups)
        offsets = {name: offsets[self._plan.path(name)] for name in self._specs}
        self._values = _hdf5.Values(staged, self._specs, offsets)
        self.order = self._values.order

    def place(self, name: str) -> Place:
        """Where a tensor's elements lie."""
        return self._values.place(name)

    def placed(self, name: str, crc: int) -> None:
        """Take it that a tensor is at its place."""
        self._values.placed(name)

    def write(self, name: str, chunks: Iterable[NDArray[Any]]) -> None:
        """Take a tensor as consecutive 1-D pieces, at its place in the file."""
        self._values.write(name, chunks)

    def finish(self) -> None:
        """Raise `TargetError` when a tensor was never written."""
        self._values.finish()


class Sink:
    """Takes the values of an HDF5 file that is laid out already."""

    def __init__(
        self, path: Path, specs: Mapping[str, TensorSpec], plan: Plan, *, overwrite: bool
    ) -> None:
        self.files = (path,)
        self._body = Body(specs, plan)
        self._publication = Publication([path], overwrite=overwrite, nbytes=self._body.nbytes)
        try:
            self._staged = self._stage()
            self._body.begin(self._staged)
            self.order = self._body.order
        except BaseException:
            self.abort()
            raise

    def _stage(self) -> StagedFile:
        """The file that is laid out: the target itself."""
        return self._publication.files[0]

    def _finish(self) -> None:
        """What is left to do when all values are there."""

    def place(self, name: str) -> Place:
        """Where a tensor's elements lie."""
        return self._body.place(name)

    def placed(self, name: str, crc: int) -> None:
        """Take it that a tensor is at its place."""
        self._body.placed(name, crc)

    def write(self, name: str, chunks: Iterable[NDArray[Any]]) -> None:
        """Take a tensor as consecutive 1-D pieces, at its place in the file."""
        with context(path=self.files[0]):
            self._body.write(name, chunks)

    def commit(self) -> None:
        """Publish; raises `TargetError` when a tensor was never written."""
        try:
            with context(path=self.files[0]):
                self._body.finish()
                self._finish()
            self._publication.commit()
        finally:
            self.abort()

    def abort(self) -> None:
        """Leave nothing behind; harmless after `commit`."""
        self._publication.abort()
