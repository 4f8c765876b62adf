"""Every shipped conversion against the headers of both real models, and there and back by value.

What the values should be is the business of each row's `proof`; here is what holds for all: the
plan is clean, names cover both sides completely, and the way back returns every bit.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from converter.language import shipped_names
from converter.layout import Computed, View
from converter.ops.arithmetic import Epsilon, Scale
from converter.ops.base import UnaryOp
from converter.plan import Plan, Port, port
from converter.tensors import Checkpoint, LazyTensors, TensorSpec
from tests import manifests
from tests.conversions import Conversion, conversions, without
from tests.conversions.__main__ import catalogue

ROOT = Path(__file__).resolve().parents[1]
ROWS = conversions()
QUICK = 1 << 22  # elements that the normal suite moves for a row
FULL = 1 << 31  # those that the slow one does: all, but for the largest language models


@pytest.fixture(params=ROWS, ids=str)
def row(request) -> Conversion:
    return request.param


@pytest.fixture
def mapping(row) -> Port:
    return port(row.mapping, sizes=row.sizes)


@pytest.fixture
def source(row) -> Mapping[str, TensorSpec]:
    return manifests.load(row.source)


@pytest.fixture
def target(row) -> Mapping[str, TensorSpec]:
    return manifests.load(row.target)


def test_the_plan_is_clean_and_makes_the_whole_target(row, mapping, source, target):
    plan = mapping.plan(source)
    assert plan.problems == ()
    assert plan.left == ()
    assert plan.specs == without(target, row.stays)
    assert all(plan.dropped.values())  # each for a reason


def test_the_way_back_makes_the_whole_source(row, mapping, source, target):
    if row.one_way:
        with pytest.raises(Exception, match="no way back"):
            mapping.inverse()
        return
    plan = mapping.inverse().plan(without(target, row.stays))
    assert plan.problems == ()
    assert plan.left == ()
    dropped = mapping.plan(source).dropped
    assert plan.specs == {n: spec for n, spec in source.items() if n not in dropped}
    assert plan.dropped.keys() <= {step.target for step in mapping.plan(source).made}


def coded(name: str, spec: TensorSpec, *, numbers: bool) -> NDArray[Any]:
    """A tensor that differs in every place and from others; `numbers` where they are computed."""
    seed = zlib.crc32(name.encode())
    if numbers:
        return np.random.default_rng(seed).uniform(0.5, 2, spec.shape).astype(spec.dtype)
    codes = np.arange(seed, seed + spec.size, dtype=np.uint64)
    return codes.astype(f"u{spec.dtype.itemsize}").view(spec.dtype).reshape(spec.shape)


def samples(plan: Plan) -> Iterator[tuple[str, ...]]:
    """The sources of one step for each rule and shape; what goes with them by another is added."""
    seen = set()
    for step in plan.steps:
        key = (id(step.rule), *(plan.sources[name] for name in step.sources))
        if key not in seen and step.sources:
            seen.add(key)
            yield step.sources


def returns(mapping: Port, specs: Mapping[str, TensorSpec], most: int) -> int:
    """Compare what comes back with what went, for tensors of `most` elements at most in all."""
    plan = mapping.plan(specs)
    inexact = {n for step in plan.steps if step.exactness != "exact" for n in step.sources}
    chosen = dict.fromkeys(name for names in samples(plan) for name in names)
    if most == FULL:
        chosen = dict.fromkeys(name for step in plan.steps for name in step.sources)

    def value(name: str) -> NDArray[Any]:
        return coded(name, specs[name], numbers=name in inexact)

    def view(name: str) -> View:
        spec = specs[name]
        return View.over(Computed(spec.size, spec.dtype, lambda: value(name)), spec.shape)

    before = Checkpoint(LazyTensors(specs, view))
    after = mapping.inverse()(mapping(before))
    compared = 0
    for name in sorted(chosen, key=lambda name: specs[name].size):
        most -= specs[name].size
        if most < 0:
            break
        compared += 1
        found, expected = after[name].numpy(), value(name)
        assert found.dtype == expected.dtype
        assert found.tobytes() == expected.tobytes(), name
    return compared


def test_there_and_back_every_bit_is_where_it_was(row, mapping, source):
    """One tensor for each rule and shape, the smaller ones; `slow` takes all of them."""
    if not row.one_way:
        assert returns(mapping, source, QUICK)


def written(checkpoint: Checkpoint) -> Checkpoint:
    """The same values as from a file: what computed them is forgotten."""
    specs = checkpoint.specs
    return Checkpoint(LazyTensors(specs, lambda name: View.of(checkpoint[name].numpy())))


def near(found: NDArray[Any], expected: NDArray[Any], target: NDArray[Any]) -> bool:
    """Within a unit in the last place of the larger of both sides?"""
    both = np.abs(expected), np.abs(target)
    return bool((np.abs(found - expected) <= np.spacing(np.maximum(*both))).all())


def test_through_files_what_is_rounded_is_rounded_once(row, mapping, source):
    """It comes back within a unit in the last place of the larger side, and goes there again as it
    was; without files, every bit does.
    """
    rounded = [step for step in mapping.plan(source).steps if step.exactness == "rounding"]
    if row.one_way or not rounded:
        return
    before = Checkpoint(LazyTensors(source, lambda n: View.of(coded(n, source[n], numbers=True))))
    there = mapping(before)
    back = mapping.inverse()(written(there))
    again = mapping(written(back))
    for step in rounded:
        assert again[step.target].numpy().tobytes() == there[step.target].numpy().tobytes()
        for name in step.sources:
            assert near(back[name].numpy(), before[name].numpy(), there[step.target].numpy())


DIVISION = Scale(divisor=127.5)
EPSILON = Epsilon(source=1e-3, to=1e-5)


@pytest.mark.parametrize(
    ("op", "exponents", "every"),
    [(DIVISION, range(1), 1), (EPSILON, range(-20, 10), 11)],  # a quotient is alike for each
    ids=["division", "epsilon"],
)
def test_rounding_twice_is_rounding_once(op, exponents, every):
    """What the shipped mappings do and undo, for significands of float32 that are not chosen."""
    for exponent in exponents:
        bits = np.arange(0, 1 << 23, every, dtype=np.uint32) + np.uint32((127 + exponent) << 23)
        before = bits.view(np.float32)
        there = applied(op, before)
        back = applied(op.inverse(), there)
        assert near(back, before, there)
        assert (applied(op, back) == there).all()


def applied(op: UnaryOp, array: NDArray[Any]) -> NDArray[Any]:
    (view,) = op.apply([View.of(array)], 1)
    return view.numpy()


@pytest.mark.parametrize("row", [row for row in ROWS if row.one_way], ids=str)
def test_what_loses_values_is_the_way_back_of_another_mapping(row, mapping, source, target):
    """Two biases are summed, or one goes into a mean: it is the other way that keeps every bit."""
    (other,) = (o for o in ROWS if (o.source, o.target) == (row.target, row.source))
    there = port(other.mapping, sizes=other.sizes)
    before = Checkpoint(LazyTensors(target, lambda n: View.of(coded(n, target[n], numbers=True))))
    after = mapping(written(there(before)))
    assert set(after) == set(without(target, row.stays))
    for name in {step.target for step in mapping.plan(source).steps[:40]}:
        assert after[name].numpy().tobytes() == before[name].numpy().tobytes()


@pytest.mark.slow
def test_there_and_back_at_full_size(row, mapping, source):
    if not row.one_way:
        assert returns(mapping, source, FULL)


# What holds for the table.


def test_every_shipped_mapping_has_a_conversion():
    """Blocks of layers have tests of their own, in `test_blocks`."""
    whole = {name for name in shipped_names() if not name.startswith("layers/")}
    assert {row.mapping for row in ROWS} == whole


def test_conversions_differ():
    assert len({str(row) for row in ROWS}) == len(ROWS)


def test_manifests_are_made_and_used():
    known = {name for module in manifests.modules() for name in module.MODELS}
    files = {file.stem for file in manifests.FOLDER.glob("*.json")}
    assert files == known
    assert files == {name for row in ROWS for name in (row.source, row.target)}


@pytest.mark.parametrize("proof", sorted({row.proof for row in ROWS}))
def test_a_proof_is_a_test(proof):
    file, _, name = proof.partition("::")
    text = (ROOT / file).read_text("utf-8")
    assert f"\ndef {name}(" in text, proof


def test_the_catalogue_is_current():
    """`python -m tests.conversions > docs/catalogue.md`"""
    assert (ROOT / "docs/catalogue.md").read_text("utf-8") == catalogue()
