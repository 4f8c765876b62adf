"""What holds for every shipped mapping, on the key sets of real models and layers.

Planning again changes nothing, the order in a file means nothing, and the way back composed with
the way forth is the identity, bit for bit.  For whole models the last is in `test_conversions`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import yaml

from converter.language import load, loads, shipped_names
from converter.language.load import find
from converter.language.rules import Rules
from converter.layers import LAYERS, weights_of
from converter.plan import Plan, Port, port
from converter.tensors import TensorSpec, from_arrays
from tests import manifests
from tests.conversions import Conversion, conversions
from tests.test_plan import outcome

BLOCKS = [name for name in shipped_names() if name.startswith("layers/")]
PARTS = {  # of a layer: another block takes the rest
    "layers/batchnorm-flax-torch": ("scale", "bias"),
    "layers/batchnorm-stats-flax-torch": ("mean", "var"),
}


class Case:
    """A shipped mapping, its sizes, and the headers of a source."""

    def __init__(self, of: Conversion | str) -> None:
        self.name = of if isinstance(of, str) else of.mapping
        self.sizes = sizes_of(of) if isinstance(of, str) else of.sizes
        self.of = of

    def __str__(self) -> str:
        return str(self.of)

    def specs(self) -> dict[str, TensorSpec]:
        if not isinstance(self.of, str):
            return dict(manifests.load(self.of.source))
        return {n: TensorSpec(a.shape, a.dtype) for n, a in layer_weights(self.of).items()}


def sizes_of(block: str) -> dict[str, int]:
    """The sizes that a block asks for, of the layer that its probe is."""
    declared = yaml.safe_load(find(block).read_text("utf-8")).get("sizes") or {}
    layer = LAYERS[load(block).probes[0].layer]
    return {name: layer.sizes[name] for name in declared if name in layer.sizes}


def layer_weights(block: str) -> dict[str, Any]:
    """The weights of the layer that a block is for, as its source holds them."""
    rules = load(block, sizes_of(block))
    (probe, *_) = (each for each in rules.probes if each.place.via is None)
    layer = LAYERS[probe.layer]
    convention, sizes = layer.conventions[probe.source], {**layer.sizes, **probe.sizes}
    weights = weights_of(convention, random.Random(0), sizes)
    taken = PARTS.get(block, weights.keys() - ({"gamma"} if "-noscale-" in block else set()))
    return {probe.source_scope + n: array for n, array in weights.items() if n in taken}


@pytest.fixture(params=[Case(of) for of in (*conversions(), *BLOCKS)], ids=str)
def case(request) -> Case:
    return request.param


def planned(rules: Rules, specs: Mapping[str, TensorSpec]) -> Plan:
    plan = Port(rules).plan(specs)
    assert plan.problems == ()
    return plan


def test_planning_again_changes_nothing(case):
    rules, specs = load(case.name, case.sizes), case.specs()
    plan = planned(rules, specs)
    assert plan.steps
    assert outcome(planned(load(case.name, case.sizes), specs)) == outcome(plan)


def test_the_order_in_the_file_means_nothing(case):
    order = random.Random(case.name)
    document = yaml.safe_load(find(case.name).read_text("utf-8"))
    for key in ("rules", "drop", "make", "include"):
        order.shuffle(document.get(key, []))
    document.pop("tests", None)  # they name rules by number
    shuffled = loads(json.dumps(document), find(case.name), case.sizes)
    parts = {key: list(getattr(shuffled, key)) for key in ("rules", "drops", "makes")}
    for part in parts.values():
        order.shuffle(part)  # those of includes, too
    specs = case.specs()
    names = order.sample(list(specs), len(specs))
    mixed = replace(shuffled, **{key: tuple(part) for key, part in parts.items()})
    found = planned(mixed, {name: specs[name] for name in names})
    assert outcome(found) == outcome(planned(load(case.name, case.sizes), specs))


@pytest.mark.parametrize("block", BLOCKS)
def test_the_way_back_of_a_block_is_the_identity(block):
    mapping, weights = port(block, sizes=sizes_of(block)), layer_weights(block)
    if any(op.exactness == "lossy" for rule in mapping.rules.rules for op in rule.ops):
        with pytest.raises(Exception, match="no way back"):
            mapping.inverse()
        return
    again = mapping.inverse()(mapping(from_arrays(weights)))
    assert set(again) == set(weights)
    for name, array in weights.items():
        assert again[name].numpy().tobytes() == array.tobytes()
        assert again[name].spec.shape == array.shape
