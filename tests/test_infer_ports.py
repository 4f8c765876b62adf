"""`infer` on ports of real models: exact by values, mostly right by names, readable either way.

Names, shapes and order of all tensors are those of the real models: the slow tests let slim, Keras
and the language models' own code write the source with random values, statistics among them; the
quick ones fill the headers of real models.  Targets come from shipped mappings, each proved with
both frameworks elsewhere.  `-s` prints the tables.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

import converter
from converter.inference import Inferred, infer
from converter.plan import Port, port
from converter.tensors import Checkpoint, TensorSpec
from tests import manifests, oracles
from tests import test_keras_applications as keras
from tests import test_text_oracles as text
from tests import test_vision_oracles as vision
from tests.conversions import conversions

REAL = Path(__file__).resolve().parents[2] / "shared" / "real"
QUICK = (  # rows of the table of conversions, small and unlike each other
    "keras-MobileNet to timm-mobilenetv1_100",
    "keras-bidirectional-lstm-2 to torch-bidirectional-lstm-2",
    "torch-lstm-3 to keras-lstm-3",
    "google-bert-tiny to transformers-bert-tiny",
)
RIGHT = 0.9  # of all tensors, by names and shapes alone
READABLE = 2  # rules for each that a person wrote


def filled(name: str, spec: TensorSpec) -> NDArray[Any]:
    """A random value; variances and scales are positive, counters zero."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if spec.dtype.kind != "f":
        return np.zeros(spec.shape, spec.dtype)
    values = rng.standard_normal(spec.shape)
    return np.asarray(np.abs(values) if "var" in name else values).astype(spec.dtype)


def rules(mapping: Port | Inferred) -> int:
    """How many rules and constants a mapping has, with what it includes."""
    return len(mapping.rules.rules) + len(mapping.rules.makes)


def check(name: str, source: Checkpoint, mapping: Port) -> None:
    """Exact, complete and readable; the row of the table is printed."""
    target = converter.from_arrays({n: t.numpy() for n, t in mapping(source).items()})
    size = sum(spec.nbytes for spec in source.specs.values()) / 1e6
    start = time.perf_counter()
    found = infer(source, target)
    seconds = time.perf_counter() - start
    print(  # noqa: T201 - the table
        f"\n{name:60} {size:6.1f} MB {seconds:5.1f} s  {rules(found):3} rules found, "
        f"{rules(mapping):3} written, exact {found.exact}"
    )
    assert found.open == {}
    assert found.exact, found.yaml
    rows = list(converter.diff(found.port(source), target))
    assert all(row.equal for row in rows)
    assert {row.name for row in rows} == set(target)
    assert rules(found) <= READABLE * rules(mapping), found.yaml
    assert all(drop.because or drop.group for drop in found.rules.drops)
    assert all(make.because for make in found.rules.makes)


@pytest.mark.parametrize("name", QUICK)
def test_a_port_is_found_by_its_values(name):
    row = next(row for row in conversions() if str(row) == name)
    arrays = {n: filled(n, spec) for n, spec in manifests.load(row.source).items()}
    check(name, converter.from_arrays(arrays), port(row.mapping, sizes=row.sizes))


# Written by the real frameworks.


class Written(NamedTuple):
    """A job that writes the file of a source, and the mapping that ports it."""

    write: Callable[[Path], Path]
    mapping: Callable[[], Port]


def by_keras(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        keras.run(folder, "keras_applications", {name: keras.MODELS[name].keras}, "write")
        return folder / f"{name}.h5"

    return write


def by_slim(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        vision.children(folder, "tf_vision", {name: vision.QUICK[name].source})
        return folder / f"{name}.ckpt"

    return write


def by_google(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        ids = np.ones((2, 7), np.int32)
        names = ("ids", "mask", "segments", "decoder_ids")
        oracles.save_arrays(folder / "inputs.npz", dict.fromkeys(names, ids))
        source = text.SOURCES[name]
        job = {
            "family": source.family,
            "config": {**source.config, "inputs": str(folder / "inputs.npz")},
            "checkpoint": str(folder / f"{name}.ckpt"),
            "out": str(folder / f"{name}.npz"),
        }
        text.run("google_text", folder, [job])
        return folder / f"{name}.ckpt"

    return write


WRITTEN = {
    **{f"keras {n}": Written(by_keras(n), lambda m=m: m.port) for n, m in keras.MODELS.items()},
    **{
        f"slim {n}": Written(by_slim(c.of or n), lambda c=c: c.port)
        for n, c in vision.QUICK.items()
    },
    **{
        f"google {n}": Written(by_google(c.source), lambda c=c: port(c.mapping))
        for n, c in text.CASES.items()
    },
}
needs_frameworks = pytest.mark.skipif(
    bool(vision.MISSING or text.MISSING), reason="needs TensorFlow, TF-Slim, Keras and PyTorch"
)


@pytest.mark.slow
@needs_frameworks
@pytest.mark.parametrize("name", WRITTEN)
def test_a_port_of_a_real_model_is_found_by_its_values(name, tmp_path):
    write, mapping = WRITTEN[name]
    with converter.open(write(tmp_path)) as source:
        check(name, source, mapping())


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the folder ../shared with real checkpoints")
@pytest.mark.parametrize(
    ("mapping", "file"),
    [
        ("dtln/keras-torch", "dtln/keras/model.h5"),
        ("dtln/savedmodel-keras", "dtln/savedmodel/variables/variables"),
    ],
)
def test_dtln_is_found_by_its_values(mapping, file):
    with converter.open(REAL / file) as source:
        check(mapping, source, port(mapping))


# By names and shapes alone.


def headers(rows: Iterable[Any]) -> Iterator[tuple[str, Mapping[str, TensorSpec], Port]]:
    for row in rows:
        if manifests.path(row.source).exists():
            yield str(row), manifests.load(row.source), port(row.mapping, sizes=row.sizes)


def guessed(source: Mapping[str, TensorSpec], mapping: Port) -> tuple[int, int, Inferred]:
    """How many targets get their real sources, of how many, and the guess."""
    planned = mapping.plan(source)
    expected = {step.target: step.sources for step in planned.steps}
    found = infer(source, dict(sorted(planned.specs.items())))  # as a file sorts them
    steps = {step.target: step for step in found.port.plan(source).steps}
    right = sum(n in steps and steps[n].sources == s for n, s in expected.items())
    for name in expected:  # whatever it is, it does not pass as certain
        assert (name in steps) != (name in found.open)
    return right, len(expected), found


RIGHT_OF_ALL = 0.8  # moving averages and the branches of Inception are guessed wrong
MANY = [str(row) for row in conversions()]
FEW = [name for name in MANY if name.startswith(("google-bert", "openai", "keras-DenseNet121"))]


@pytest.mark.parametrize(
    ("names", "least"),
    [(FEW, RIGHT), pytest.param(MANY, RIGHT_OF_ALL, marks=pytest.mark.slow)],
    ids=["few", "all"],
)
def test_names_alone_give_most_sources_and_never_pass_as_certain(names, least):
    """Conversions whose headers are here, at full size; the last line is the sum."""
    right = tensors = 0
    for name, source, mapping in headers(row for row in conversions() if str(row) in names):
        good, count, found = guessed(source, mapping)
        print(f"{name:70} {good:4} of {count:4} right, {rules(found):3} rules")  # noqa: T201
        right, tensors = right + good, tensors + count
        assert found.guessed
        assert not found.exact
        lines = found.yaml.splitlines()
        starts = [k for k, line in enumerate(lines) if line.startswith("  - source:")]
        assert all(lines[k - 1].startswith("  # guessed") for k in starts)
    print(f"{right} of {tensors}: {right / tensors:.1%}")  # noqa: T201
    assert right >= least * tensors
