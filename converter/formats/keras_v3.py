"""Keras 3: `.weights.h5`, also in shards, and `.keras`, which is a zip (or a folder) around one.

https://github.com/keras-team/keras (keras/src/saving/saving_lib.py)

    w.weights.h5    layers/conv2d/vars/0, 1, …            datasets: kernel, bias
                    layers/conv2d_1/vars                  attribute `name`: the layer's
                    optimizer/vars/0, …   vars/0          the optimizer's; the model's own
    m.keras         metadata.json │ config.json │ model.weights.h5 │ assets/…    all stored
    w.weights.json  {"metadata": …, "weight_map": {"/layers/conv2d/vars": ["w_00000.weights.h5"]}}

A tensor's name is the path of its dataset.  The path tells a layer's class and the order in which
it was made, not its name: those are in the metadata, `layer_names`, where the file has them.  Then
a tensor's alias is what Keras calls the variable, as in `keras_h5`: `conv1/kernel`.
bfloat16 is stored as two opaque bytes, with an attribute.  The two JSON files of a `.keras` are
metadata, too, and never looked into: nothing of Keras is run.

Any other HDF5 file is read like this, too.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.errors import (
    ConverterError,
    CorruptFileError,
    LimitError,
    TargetError,
    UnrepresentableError,
    UnsafeContentError,
    UnsupportedError,
    context,
)
from converter.files import BLOCK, Checksum, File, StagedFile
from converter.formats import Probe, _hdf5, keras_h5
from converter.formats._hdf5 import Dataset, Group
from converter.formats._names import name_problem, shown
from converter.formats._zip import STORED, Member, ZipLayout, ZipWriter, first_name, members, read
from converter.tensors import Checkpoint, TensorSpec

MAX_JSON = 100_000_000  # bytes
MAX_SHARDS = 65_536
CONFIG, ABOUT, NAMES = "config.json", "metadata.json", "layer_names"  # keys of metadata
WEIGHTS = "model.weights.h5"
_DEFAULT_ABOUT = '{"keras_version": "3.0.0", "date_saved": "1980-01-01@00:00:00"}'

# ── reading ──────────────────────────────────────────────────────────────────────────────────────


def recognise(probe: Probe) -> bool:
    """Whether this is HDF5 that does not list layers, an index of such files, or a `.keras`."""
    if probe.head.startswith(_hdf5.SIGNATURE):
        return not keras_h5.recognise(probe)
    if probe.head.lstrip().startswith(b"{"):
        return b'"weight_map"' in probe.head and b".weights.h5" in probe.head
    if not probe.head:
        return (probe.path / WEIGHTS).is_file() and (probe.path / CONFIG).is_file()
    first = first_name(probe.head)
    return bool(first) and not first.endswith(b".npy") and _is_archive(probe)


def _is_archive(probe: Probe) -> bool:
    seen = probe.head + probe.tail
    if CONFIG.encode() in seen and WEIGHTS.encode() in seen:
        return True
    try:
        file = File(probe.path)
        try:
            names = members(file).keys()
        finally:
            file.close()
    except ConverterError:  # broken: `open` says how, if it was one of ours
        return CONFIG.encode() in seen
    return CONFIG in names and any(name.startswith("model.weights.") for name in names)


def open(path: Path) -> Checkpoint:  # noqa: A001 - the name every format has
    """The weights of a file, a folder or all shards of an index; reads headers only.

    Raises `CorruptFileError`, `UnsupportedError`, `UnsafeContentError` or `LimitError`.
    """
    with contextlib.ExitStack() as files, context(path=path):
        found = _Found()
        if path.is_dir():
            for name in (CONFIG, ABOUT):
                if (path / name).is_file():
                    found.metadata[name] = _text(found.file(files, path / name))
            found.take(_hdf5.open_tree(found.file(files, path / WEIGHTS)))
        else:
            file = found.file(files, path)
            head = file.read(0, min(file.size, 8))
            if head == _hdf5.SIGNATURE:
                found.take(_hdf5.open_tree(file))
            elif head.startswith(b"PK"):
                _open_zip(file, found)
            else:
                _open_shards(file, found, files)
        return found.checkpoint(path, files.pop_all())
    raise AssertionError("nothing is suppressed")


def _text(file: File) -> str:
    if file.size > MAX_JSON:
        raise LimitError("the JSON file is too large", path=file.path, found=file.size)
    return _decoded(file.read(0, file.size), file.path.name)


def _decoded(data: bytes, name: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise CorruptFileError(f"{name} is not UTF-8") from error


class _Found:
    """What was found so far, in one file or several."""

    def __init__(self) -> None:
        self.datasets: dict[str, Dataset] = {}
        self.metadata: dict[str, str] = {}
        self.layers: dict[str, str] = {}
        self.others: dict[str, str] = {}  # entries that are not datasets, with a reason
        self.files: list[Path] = []

    def file(self, files: contextlib.ExitStack, path: Path) -> File:
        """Open a file, which is closed with the others."""
        file = File(path)
        files.callback(file.close)
        self.files.append(path)
        return file

    def take(self, root: Group) -> None:
        """Take in the tree of a file."""
        self.metadata |= {k: text for k, text in root.attributes.items() if isinstance(text, str)}
        self.layers |= _layer_names(root)
        for name, dataset in root.datasets():
            if trouble := name_problem(name):
                raise CorruptFileError(f"its name {trouble}", tensor=shown(name))
            if name in self.datasets:
                raise CorruptFileError("two shards have this tensor", tensor=shown(name))
            self.datasets[name] = dataset

    def checkpoint(self, path: Path, files: contextlib.ExitStack) -> Checkpoint:
        """All of it, in order: numbers in names count."""
        if self.layers:
            self.metadata[NAMES] = json.dumps(self.layers)
        for name, reason in self.others.items():
            self.datasets.setdefault(name, Dataset({}, problem=reason))
        ordered = {name: self.datasets[name] for name in sorted(self.datasets, key=_by_number)}
        return keras_h5.checkpoint(
            ordered,
            format="keras-v3",
            path=path,
            metadata=self.metadata,
            files=tuple(self.files),
            aliases=keras_h5.unique(_aliases(ordered, self.layers)),
            on_close=files.close,
        )


_KERNEL, _SCALED = ("kernel", "bias"), ("gamma", "beta")
_COUNTED = ("moving_mean", "moving_variance")
VARIABLES = {  # of Keras' layers by their class, in the order in which they are stored
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "dense", "depthwise_conv2d"), _KERNEL),
    "separable_conv2d": ("depthwise_kernel", "pointwise_kernel", "bias"),
    "layer_normalization": _SCALED,
    "normalization": ("mean", "variance", "count"),
    "embedding": ("embeddings",),
    "cell": ("kernel", "recurrent_kernel", "bias"),  # of recurrent layers
}
BATCH_NORM = {4: (*_SCALED, *_COUNTED), 3: ("beta", *_COUNTED), 2: _COUNTED}  # 3: scale=False


def _aliases(names: Iterable[str], layers: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The names of tensors in layers that have a name, with the paths of their variables."""
    counts = Counter(name.rpartition("/")[0] for name in names)
    for name in names:
        group, _, number = name.rpartition("/")
        place = group.removesuffix("/vars")
        if place not in layers or not place or not number.isdecimal():
            continue
        kind = re.sub("_[0-9]+$", "", place.rpartition("/")[2])
        known = VARIABLES.get(kind, ())
        if kind == "batch_normalization":
            known = BATCH_NORM.get(counts[group], ())
        at = int(number)
        variable = known[at] if at < len(known) else keras_h5.unnamed(at)
        yield name, "/".join((*_named(place, layers), variable))


def _named(place: str, layers: Mapping[str, str]) -> Iterator[str]:
    """The names of a layer and of those around it, the outermost first."""
    parts = place.split("/")
    paths = ("/".join(parts[:end]) for end in range(1, len(parts) + 1))
    return (layers[path] for path in paths if path in layers)


def _by_number(name: str) -> list[tuple[int, int, str]]:
    parts = re.split("([0-9]{1,9})", name)
    return [(0, int(part), "") if n % 2 else (1, 0, part) for n, part in enumerate(parts)]


def _layer_names(group: Group, path: str = "") -> dict[str, str]:
    """The names of layers by the paths of their groups; the model's own path is ""."""
    found = {}
    for name, member in group.members.items():
        if not isinstance(member, Group):
            continue
        layer = member.attributes.get("name")
        if name == "vars" and isinstance(layer, str):
            found[path.rstrip("/")] = layer
        found |= _layer_names(member, f"{path}{name}/")
    return found


def _open_zip(file: File, found: _Found) -> None:
    inside = members(file)
    for name, member in inside.items():
        if name in {CONFIG, ABOUT}:
            found.metadata[name] = _decoded(read(file, member, MAX_JSON), name)
        elif name != WEIGHTS and not name.endswith("/"):
            if trouble := name_problem(name):
                raise CorruptFileError(f"its name {trouble}", tensor=shown(name))
            found.others[name] = "a file of the model, not a tensor"
    weights = inside.get(WEIGHTS)
    if weights is None:
        raise UnsupportedError(f"a .keras archive without {WEIGHTS}", found=", ".join(inside)[:200])
    if weights.method != STORED:
        raise UnsupportedError(
            f"{WEIGHTS} is compressed inside of the .keras archive", hint="unpack it: open a folder"
        )
    end = weights.offset + weights.size
    found.take(_hdf5.open_tree(file, weights.offset, end, checksum=_once(weights)))


class _Once:
    """A checksum over all tensors: whoever is read first pays, for all."""

    def __init__(self, checksum: Checksum) -> None:
        self._checksum: Checksum | None = checksum
        self.offset, self.nbytes = checksum.offset, -1  # never that of a single tensor

    def verify(self, file: File, tensor: str) -> None:
        """Verify it if that was not done."""
        if self._checksum is not None:
            self._checksum.verify(file, tensor)
            self._checksum = None


def _once(member: Member) -> Any:
    return _Once(member.checksum) if member.checksum else None


def _open_shards(file: File, found: _Found, files: contextlib.ExitStack) -> None:
    try:
        index = json.loads(_text(file))
        groups = {
            str(group): [names] if isinstance(names, str) else [*map(str, names)]
            for group, names in index["weight_map"].items()
        }
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise CorruptFileError(
            "not the index of sharded weights", found=str(error)[:200]
        ) from error
    shards = dict.fromkeys(name for names in groups.values() for name in names)
    if len(shards) > MAX_SHARDS:
        raise LimitError("too many shards", expected=f"<= {MAX_SHARDS}", found=len(shards))
    for name in shards:
        path = file.path.with_name(_sibling(file.path, name))
        if path.is_symlink():
            raise UnsafeContentError("a shard is a link, which may lead anywhere", found=name)
        root = _hdf5.open_tree(found.file(files, path))
        for group, names in groups.items():
            if name in names and not isinstance(root.find(group.strip("/")), Group):
                raise CorruptFileError(f"{shown(group)} is not in {name}, as the index says")
        found.take(root)


def _sibling(index: Path, name: str) -> str:
    """The name of a file beside the index; an index must not lead elsewhere."""
    plain = "/" not in name and "\\" not in name and not name_problem(name)
    if not plain or not name.endswith(".weights.h5") or name.startswith("."):
        raise UnsafeContentError(
            "the index names a file that is not one beside it", path=index, found=shown(name)
        )
    return name


# ── writing ──────────────────────────────────────────────────────────────────────────────────────

problem = _hdf5.problem


def stored_nbytes(spec: TensorSpec) -> int:
    """Bytes of a tensor in a file."""
    return spec.nbytes


def body(
    path: Path,
    specs: Mapping[str, TensorSpec],
    metadata: Mapping[str, str],
    ties: Sequence[Sequence[str]],  # noqa: ARG001 - tied names are each written in full
) -> keras_h5.Body:
    """What goes into the shard `path`; raises `UnrepresentableError`."""
    with context(path=path):
        _hdf5.check(specs)
    groups = {name.rpartition("/")[0] for name in specs}
    known = _known_layers(metadata).items()
    layers = {layer: name for layer, name in known if f"{layer}/vars".lstrip("/") in groups}
    return keras_h5.Body(specs, _Plan(specs, {**metadata, NAMES: json.dumps(layers)}))


def create(
    path: Path,
    specs: Mapping[str, TensorSpec],
    *,
    metadata: Mapping[str, str],
    ties: Sequence[Sequence[str]],  # noqa: ARG001 - tied names are each written in full
    overwrite: bool,
) -> keras_h5.Sink:
    """A sink for one `.weights.h5`, or for a `.keras` when that is the suffix.

    A `.keras` needs `config.json` in the metadata: Keras builds the model from it.
    """
    with context(path=path):
        for name, spec in specs.items():
            if trouble := problem(name, spec):
                raise UnrepresentableError(trouble, tensor=shown(name), found=spec)
        _hdf5.check(specs)
        if path.suffix != ".keras":
            return keras_h5.Sink(path, specs, _Plan(specs, metadata), overwrite=overwrite)
        if CONFIG not in metadata:
            raise UnrepresentableError(
                f"a .keras file needs the model's {CONFIG}, and the source has none",
                hint="write .weights.h5 and load it into the model, or start from a .keras file",
            )
        facts = {key: text for key, text in metadata.items() if key not in {CONFIG, ABOUT}}
        about = {ABOUT: metadata.get(ABOUT, _DEFAULT_ABOUT), CONFIG: metadata[CONFIG]}
        return _KerasSink(path, specs, _Plan(specs, facts), about, overwrite=overwrite)


class _Plan(keras_h5.Plan):
    """Attributes: the metadata in the root, and the names of layers."""

    def __init__(self, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str]) -> None:
        layers = _known_layers(metadata)
        groups = {name.rpartition("/")[0] for name in specs}
        paths = {layer: f"{layer}/vars".lstrip("/") for layer in layers}
        if groups.isdisjoint(paths.values()) or not specs.keys().isdisjoint(paths.values()):
            layers = {}  # of another model
        named: dict[str, _hdf5.Attributes] = {
            paths[layer]: {"name": name} for layer, name in layers.items()
        }
        facts = {key: text for key, text in metadata.items() if key != NAMES}
        super().__init__({"": facts, **named})


def _known_layers(metadata: Mapping[str, str]) -> dict[str, str]:
    try:
        found = json.loads(metadata.get(NAMES, "{}"))
        return {str(path): str(name) for path, name in found.items()}
    except (ValueError, AttributeError, RecursionError):
        return {}  # somebody else's metadata


class _KerasSink(keras_h5.Sink):
    """Writes the weights beside the target, and then the archive with a copy of them."""

    def __init__(
        self,
        path: Path,
        specs: Mapping[str, TensorSpec],
        plan: keras_h5.Plan,
        about: Mapping[str, str],
        *,
        overwrite: bool,
    ) -> None:
        self._about = {name: text.encode() for name, text in about.items()}
        self._weights: StagedFile | None = None
        super().__init__(path, specs, plan, overwrite=overwrite)

    def _stage(self) -> StagedFile:
        self._weights = StagedFile(self.files[0])
        return self._weights

    def _finish(self) -> None:
        weights = File(self._weights.path) if self._weights else None
        if weights is None:
            raise TargetError("nothing was written")
        try:
            sizes = {name: len(data) for name, data in self._about.items()}
            layout = ZipLayout({**sizes, WEIGHTS: weights.size})
            archive = ZipWriter(self._publication.files[0], layout)
            for name, data in self._about.items():
                archive.write(name, [data])
            archive.write(WEIGHTS, _blocks(weights))
            archive.finish()
        finally:
            weights.close()

    def abort(self) -> None:
        """Leave nothing behind; harmless after `commit`."""
        if self._weights is not None:
            self._weights.discard()
        super().abort()


def _blocks(file: File) -> Iterator[NDArray[Any]]:
    buffer = np.empty(BLOCK, np.uint8)
    for start in range(0, file.size, BLOCK):
        block = buffer[: min(BLOCK, file.size - start)]
        file.read_into(start, block)
        yield block
