"""`infer` on ports of real models: exact by values, mostly right by names, readable either way.

Names, shapes and order of all tensors are those of the real models: the slow tests let slim, Keras
and the language models' own code write the source with random values, statistics among them; the
quick ones fill the headers of real models.  Targets come from shipped mappings, each proved with
both frameworks elsewhere.  `-s` prints the tables.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

import converter
from converter.inference import Inferred, infer
from converter.inference.guess import by_names
from converter.language.rules import Make
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


class Guess(NamedTuple):
    """How many of the tensors got their real sources, and how many of those pass as certain."""

    tensors: int
    right: int
    certain: int

    def __add__(self, other: object) -> Guess:
        """The sum of two."""
        assert isinstance(other, Guess)
        return Guess(*map(sum, zip(self, other, strict=True)))


Sources = Mapping[str, tuple[str, ...]]  # of each target
Specs = Mapping[str, TensorSpec]


def headers(names: Collection[str]) -> dict[str, tuple[str, str, Specs, Specs, Sources]]:
    """Conversions whose headers are here: models, tensors of both, and the real sources."""
    found = {}
    for row in conversions():
        name = f"{row} by {row.mapping}"
        if name in names and manifests.path(row.source).exists():
            source = manifests.load(row.source)
            planned = port(row.mapping, sizes=row.sizes).plan(source)
            sources = {step.target: step.sources for step in planned.steps}
            found[name] = row.source, row.target, source, planned.specs, sources
    return found


def guessed(name: str, source: Specs, target: Specs, real: Sources) -> Guess:
    """The mapping that is guessed makes each target, or says that it does not, and why."""
    found = infer(source, dict(sorted(target.items())))  # as a file sorts them
    assert found.guessed
    assert not found.exact
    lines = found.yaml.splitlines()
    right, certain = set(), set()
    for step in found.port.plan(source).steps:
        rule = step.rule
        said = rule.because if isinstance(rule, Make) else lines[rule.place.line - 2]
        assert isinstance(rule, Make) or said.startswith("  # guessed")
        assert ("uncertain" in said) == (step.target in found.uncertain), said
        assert step.target not in found.open
        if "uncertain" not in said:
            certain.add(step.target)
        if step.sources == real.get(step.target):
            right.add(step.target)
    assert certain & real.keys() <= right, f"{name}: {sorted(certain & real.keys() - right)}"
    guess = Guess(len(real), len(right), len(certain & right))
    print(f"{name:90} {guess}, {rules(found):3} rules")  # noqa: T201 - the table
    return guess


MANY = [f"{row} by {row.mapping}" for row in conversions()]
FEW = [
    name
    for name in MANY
    if name.startswith(("google-bert-t", "openai-gpt2-s", "keras-DenseNet121"))
]
RIGHT = 0.99  # of all tensors; the issue wants 0.9
CERTAIN = 0.7  # of those that are right


@pytest.mark.parametrize(
    "names", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "all"]
)
def test_names_alone_give_nearly_all_sources_and_no_wrong_one_passes_as_certain(names):
    """Conversions whose headers are here, at full size; the last line is the sum."""
    rows = headers(names).items()
    every = sum((guessed(name, *row[2:]) for name, row in rows), Guess(0, 0, 0))
    print(every)  # noqa: T201 - the table
    assert every.right >= RIGHT * every.tensors
    assert every.certain >= CERTAIN * every.right


def siblings() -> Iterator[tuple[str, Specs, Specs, Sources]]:
    """Ports that nobody wrote a mapping for: between two models that have one source or target."""
    rows = headers(MANY).values()
    for (a, b, theirs, ours, real), (c, d, others, others_made, others_real) in permutations(
        rows, 2
    ):
        if a == c and b != d:
            one = {s[0]: t for t, s in real.items() if len(s) == 1}
            same = {t: (one[s[0]],) for t, s in others_real.items() if len(s) == 1 and s[0] in one}
            yield f"{b} to {d}", ours, {t: others_made[t] for t in same}, same
        if b == d and a != c:
            pairs = ((others_real.get(t, ()), s) for t, s in real.items())
            same = {s[0]: r for s, r in pairs if len(s) == len(r) == 1}
            if same.keys() == {n for n, spec in theirs.items() if spec.shape}:  # all of a model
                yield f"{c} to {a}", others, {t: theirs[t] for t in same}, same


@pytest.mark.slow
def test_names_give_the_sources_of_ports_that_no_mapping_was_written_for():
    """The guess was not made with these in mind: they are held out."""
    every = sum((guessed(*sibling) for sibling in siblings()), Guess(0, 0, 0))
    print(every)  # noqa: T201 - the table
    assert every.tensors > 10_000
    assert every.right >= RIGHT * every.tensors
    assert every.certain >= every.right // 2


@pytest.mark.parametrize("seed", range(3))
def test_where_layers_are_missing_wrong_guesses_do_not_pass_as_certain(seed):
    """A tenth of the folders is taken from the source: much is guessed wrong, and is marked."""
    wrong = tensors = 0
    for name, (_, _, whole, target, real) in headers(FEW).items():
        folders = sorted({n.rpartition("/")[0] for n in whole})
        gone = {f for f in folders if zlib.crc32(f"{seed} {name} {f}".encode()) % 10 == 0}
        source = {n: s for n, s in whole.items() if n.rpartition("/")[0] not in gone}
        found = by_names(source, dict(sorted(target.items())))
        made = {t: m.sources for m in found.matches for t in m.targets}
        made |= dict.fromkeys(found.constants, ())
        assert made.keys() | found.open.keys() == target.keys()
        wrong += sum(s != real[t] and t not in found.uncertain for t, s in made.items())
        tensors += len(target)
    assert wrong <= tensors / 1000
