"""Probes: what shapes cannot confirm is proved, and a block with one mistake is caught."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import yaml

from converter.errors import ConverterError
from converter.language import load, loads, shipped_names
from converter.language.load import find
from converter.language.rules import Probe, Rule, Rules
from converter.layers import LAYERS, weights_of
from converter.ops import OPS, Op
from converter.ops.base import On
from converter.plan import Port, plan
from converter.probes import findings, outcomes, proofs, run
from converter.tensors import TensorSpec, from_arrays

BLOCKS = [  # one layer, or a stack of equal ones
    name for name in shipped_names() if name.startswith(("layers/", "recurrent/"))
]
TWO = dict.fromkeys("cdhinotuvw", 2) | {"heads": 2, "groups": 2, "multiplier": 2, "parts": 4}
SIZES = {  # of the layers: all different, square matrices, nothing but twos
    "different": {"heads": 2, "groups": 2, "d": 3, "h": 2, "w": 3, "i": 4, "multiplier": 2},
    "square": TWO | {"c": 4, "i": 4, "o": 4, "u": 4},
    "two": TWO,
}


def probes_of(name: str, sizes: dict[str, int]) -> list[Probe]:
    """The probes of a mapping whose layers have these sizes."""
    declared = yaml.safe_load(find(name).read_text()).get("sizes") or {}
    rules = load(name, {size: sizes[size] for size in declared if size in sizes})
    small = {} if sizes == SIZES["different"] else sizes
    return [p._replace(sizes={**p.sizes, **small}) for p in rules.probes if p.place.via is None]


# ── one mistake ──────────────────────────────────────────────────────────────────────────────


def op(word: str, value: object) -> Op:
    return OPS[word].read(value)


def extra(shape: Sequence[int]) -> Iterator[Op]:
    """Ops that are one too many for a tensor."""
    n = len(shape)
    for a, b in itertools.combinations(range(n), 2):
        order = [*range(n)]
        order[a], order[b] = b, a
        yield op("transpose", order)
    for axis, size in enumerate(shape):
        if size > 1:
            yield op("reverse", axis)
        for count in (2, 3, 4):
            for k in range(count - 1) if size > 1 and size % count == 0 else ():
                order = [*range(count)]
                order[k : k + 2] = k + 1, k
                yield op("reorder", {"axis": axis, "order": order})
        for factor in (2, 3, 4):
            if size % factor == 0 and 1 < factor < size:
                axes = [f"a{k}" for k in range(n)]
                there, back = ([*axes] for _ in "lr")
                there[axis], back[axis] = "(b c)", "(c b)"
                pattern = f"{' '.join(there)} -> {' '.join(back)}"
                yield op("rearrange", {"pattern": pattern, "sizes": {"b": factor}})


def others(one: Op) -> Iterator[Op]:
    """The same op with its axes or blocks in another order."""
    if one.name == "rearrange":
        sides = one.pattern.split(" -> ")
        for k, side in enumerate(sides):
            for text in reordered(side):
                pattern = " -> ".join([*sides[:k], text, *sides[k + 1 :]])
                yield op("rearrange", {"pattern": pattern, "sizes": one.sizes})
    if one.name == "reorder":
        for order in itertools.permutations(range(len(one.places))):
            yield op("reorder", {"axis": one.axis, "order": list(order)})


def reordered(side: str) -> Iterator[str]:
    """One side of a pattern with its axes, or those in a parenthesis, in another order."""
    groups = re.findall(r"\([^)]*\)|\S+", side)
    yield from map(" ".join, itertools.permutations(groups))
    for k, group in enumerate(groups):
        for words in itertools.permutations(group.strip("()").split()):
            if group.startswith("("):
                yield " ".join([*groups[:k], f"({' '.join(words)})", *groups[k + 1 :]])


def exchanged(items: Sequence[object]) -> Iterator[tuple[object, ...]]:
    for a, b in itertools.combinations(range(len(items)), 2):
        found = [*items]
        found[a], found[b] = found[b], found[a]
        yield tuple(found)


def on(branch: int, many: int, one: Op) -> Op:
    return On(branch=branch, op=one) if many > 1 else one


def with_ops(rule: Rule, *ops: Op) -> Rule:
    return replace(rule, ops=ops, op_places=(rule.place,) * len(ops))


def mistaken(
    rule: Rule, before: Sequence[TensorSpec], after: Sequence[TensorSpec]
) -> Iterator[Rule]:
    """The rule with one op too many, too few or other, or with two names exchanged."""
    ops = rule.ops
    for k, one in enumerate(ops):
        yield with_ops(rule, *ops[:k], *ops[k + 1 :])
        yield from (with_ops(rule, *ops[:k], other, *ops[k + 1 :]) for other in others(one))
    for k, spec in enumerate(before):
        yield from (with_ops(rule, on(k, len(before), one), *ops) for one in extra(spec.shape))
    for k, spec in enumerate(after):
        yield from (with_ops(rule, *ops, on(k, len(after), one)) for one in extra(spec.shape))
    yield from (replace(rule, sources=each) for each in exchanged(rule.sources))
    yield from (replace(rule, targets=each) for each in exchanged(rule.targets))


def mutants(rules: Rules, weights: dict[str, TensorSpec]) -> Iterator[Rules]:
    """The rules with one mistake each, of those that this layer's weights go through."""
    steps = plan(_patient(rules), weights).steps
    for index, rule in enumerate(rules.rules):
        own = [step for step in steps if step.rule.place == rule.place]
        own = [step for step in own if step.sources == own[0].sources]
        if own:
            before = [weights[name] for name in own[0].sources]
            for wrong in mistaken(rule, before, [step.spec for step in own]):
                yield replace(rules, rules=(*rules.rules[:index], wrong, *rules.rules[index + 1 :]))
    single = [k for k, rule in enumerate(rules.rules) if len(rule.targets) == 1]
    for a, b in itertools.combinations(single, 2):
        both = [*rules.rules]
        both[a] = replace(both[a], targets=rules.rules[b].targets)
        both[b] = replace(both[b], targets=rules.rules[a].targets)
        yield replace(rules, rules=tuple(both))


def _patient(rules: Rules) -> Rules:
    return replace(rules, rules=tuple(replace(rule, optional=True) for rule in rules.rules))


def made(rules: Rules, weights: dict[str, np.ndarray]) -> dict[str, object] | None:
    """What rules make of weights; None when they fit nothing."""
    try:
        found = Port(_patient(rules))(from_arrays(weights))
        return {name: (t.spec.shape, t.numpy().tobytes()) for name, t in found.items()}
    except ConverterError:
        return None


def survivors(probe: Probe, every: int) -> tuple[int, list[str]]:
    """How many of every so many mistakes change what is made; and those the probe does not see."""
    layer = LAYERS[probe.layer]
    sizes = {name: probe.sizes.get(name, size) for name, size in layer.sizes.items()}
    convention = layer.conventions[probe.source]
    drawn = weights_of(convention, Random(1), sizes)
    arrays = {probe.source_scope + name: array for name, array in drawn.items()}
    known = plan(_patient(probe.rules), from_arrays(arrays).specs)
    idle = {p.tensor for p in known.problems if p.code == "PLN201"}
    arrays = {name: array for name, array in arrays.items() if name not in idle}
    right = made(probe.rules, arrays)
    assert right
    count, missed = 0, []
    for rules in itertools.islice(mutants(probe.rules, from_arrays(arrays).specs), 0, None, every):
        if made(rules, arrays) == right:
            continue
        count += 1
        if run(probe._replace(rules=rules)).problem is None:
            changed = [r for r, old in zip(rules.rules, probe.rules.rules, strict=True) if r != old]
            missed += [f"{r}: {[(o.name, o.to_file()) for o in r.ops]}" for r in changed]
    return count, missed


# The only mistakes that a probe does not see, since no output changes: PyTorch adds the two biases
# of an LSTM, and a key's bias shifts all scores of a query alike, which softmax takes out again.
# The values differ all the same, so `converter diff` tells them.
UNSEEN = {
    "layers/lstm-flax-torch": "-> bias_ih_l0 + bias_hh_l0",
    "layers/bidirectional-lstm-flax-torch": "-> bias_",
    "layers/lstm-tf-torch": "-> bias_hh_l0 + bias_ih_l0",
    "layers/bidirectional-lstm-tf-torch": "-> bias_",
    "layers/attention-fused-tf-torch": "self/value/bias -> in_proj_bias",
    "layers/attention-fused-flax-torch": "query/bias + key/bias + value/bias -> in_proj_bias",
    "layers/attention-fused-keras-torch": "query/bias + key/bias + value/bias -> in_proj_bias",
    "layers/attention-grouped-megatron-torch": "linear_qkv.bias -> q_proj.bias",
}


def seen(name: str, sizes: dict[str, int], every: int) -> int:
    """How many mistakes were tried; those that a probe does not see are of the kinds above."""
    count = 0
    for probe in probes_of(name, sizes):
        assert run(probe).agrees, run(probe).problem
        tried, missed = survivors(probe, every)
        assert all(UNSEEN.get(name, "none") in each for each in missed), missed
        assert all(
            "branch': 1" in each for each in missed if "bias" in each and "ih_l0" not in each
        )
        count += tried
    return count


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_with_one_mistake_is_caught(name):
    assert seen(name, SIZES["square"], 5) > 1


@pytest.mark.slow
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_with_any_one_mistake_is_caught(name, sizes):
    assert seen(name, SIZES[sizes], 1) > 8


# ── what a plan says ─────────────────────────────────────────────────────────────────────────


def spec(*shape: int) -> TensorSpec:
    return TensorSpec(shape, np.dtype("f4"))


def proved(rules: Rules, specs: dict[str, TensorSpec]) -> dict[str, str | None]:
    """Each doubtful target of a plan, and by what it is proved."""
    made = plan(rules, specs)
    assert not made.errors
    found = proofs(made, outcomes(rules))
    return {
        s.target: str(found[s.target]) if s.target in found else None
        for s in made.steps
        if s.doubts
    }


FLAT = """
mapping: 1
rules:
  - {source: "conv{n}/kernel", target: "conv.{n}.weight", ops: [rearrange: ... i o -> o i ...]}
  - {source: "fc{n}/kernel", target: "fc.{n}.weight", ops: [rearrange: i o -> o i]}
probes:
  - {layer: conv2d, source: keras, target: torch, source_scope: conv7/, target_scope: conv.7.}
"""


def test_a_probe_proves_every_step_of_its_rule_and_of_no_other():
    specs = {"conv1/kernel": spec(3, 3, 8, 8), "conv2/kernel": spec(5, 4, 4)}
    found = proved(loads(FLAT), specs | {"fc1/kernel": spec(8, 8)})
    assert found == {
        "conv.1.weight": "conv2d, keras to torch",
        "conv.2.weight": None,  # of other axes than the probe's
        "fc.1.weight": None,
    }


def test_the_way_back_is_proved_too():
    specs = {"conv.1.weight": spec(8, 8, 3, 3), "fc.1.weight": spec(8, 8)}
    found = proved(loads(FLAT).inverse(), specs)
    assert found == {"conv1/kernel": "conv2d, keras to torch", "fc1/kernel": None}


def test_an_include_inherits_what_its_blocks_prove():
    rules = loads(
        """
mapping: 1
include:
  - {mapping: layers/conv-keras-torch, source: "block{i}/", target: "b.{i}."}
  - {mapping: layers/dense-flatten-keras-torch, source: top/, target: top., sizes: {h: 4, w: 4}}
rules:
  - {source: extra, target: extra, ops: [rearrange: i o -> o i]}
"""
    )
    specs = {"block3/kernel": spec(3, 3, 8, 8), "top/kernel": spec(32, 4), "extra": spec(3, 3)}
    assert proved(rules, specs) == {
        "b.3.weight": "conv2d, keras to torch",
        "top.weight": "dense-flatten, keras to torch",
        "extra": None,
    }
    under = {f"net/{name}": each for name, each in specs.items()}
    assert set(proved(rules.scoped("net/", "m."), under)) == {
        "m.b.3.weight",
        "m.top.weight",
        "m.extra",
    }


def test_an_include_through_an_include_inherits_it_too(tmp_path):
    (tmp_path / "inner.yaml").write_text(
        "mapping: 1\ninclude: [{mapping: layers/dense-keras-torch, source: fc/, target: fc.}]\n"
    )
    (tmp_path / "outer.yaml").write_text(
        "mapping: 1\ninclude:\n"
        "  - {mapping: ./inner.yaml, source: 'a{n}/', target: 'a.{n}.'}\n"
        "  - {mapping: ./inner.yaml, source: b/, target: b., reverse: false}\n"
    )
    rules = load(tmp_path / "outer.yaml")
    assert proved(rules, {"a1/fc/kernel": spec(4, 4), "b/fc/kernel": spec(4, 4)}) == {
        "a.1.fc.weight": "dense, keras to torch",
        "b.fc.weight": "dense, keras to torch",
    }
    assert len(rules.probes) == 2


@pytest.mark.parametrize("name", sorted(set(shipped_names())))
def test_the_probes_of_every_shipped_mapping_agree(name):
    count, problems = findings(find(name).read_text(), find(name))
    assert not problems
    assert count or name not in BLOCKS


# ── what is wrong ────────────────────────────────────────────────────────────────────────────

DENSE = """
mapping: 1
sizes: {h: 2}
rules:
  - {source: kernel, target: weight, ops: [rearrange: i o -> o i]}
  - {source: bias, target: bias, optional: true}
probes:
  - %s
"""
RIGHT = "{layer: dense, source: keras, target: torch}"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("i o -> o i", "i o -> i o", "has another shape"),
        ("target: weight", "target: weights", "no rule makes 'weight'"),
        ("source: kernel", "source: kernels", "no rule takes 'kernel'"),
        ("i o -> o i", "i o a -> o i a", "does not fit the number of axes"),
        ("target: bias", "target: shift", "outputs of up to"),  # the bias is lost
    ],
)
def test_a_probe_that_does_not_come_out_is_a_finding(tmp_path, old, new, said):
    text = DENSE % RIGHT
    assert findings(text, tmp_path / "m.yaml") == (1, [])
    count, problems = findings(text.replace(old, new, 1), tmp_path / "m.yaml")
    assert count == 1
    (problem,) = problems
    assert problem.code == "MAP142"
    assert problem.line == 8  # where the probe stands
    assert said in str(problem)


@pytest.mark.parametrize(
    ("probe", "said"),
    [
        ("{layer: dense3, source: keras, target: torch}", "no layer is called 'dense3'"),
        ("{layer: dense, source: kers, target: torch}", "'kers' is no convention of dense"),
        ("{layer: dense, source: keras, target: torch, sizes: {h: 2}}", "'h' is no size of dense"),
        ("{layer: dense, source: keras}", "'target' is missing"),
        ("{layer: dense, source: keras, target: torch, under: a}", "unknown key 'under'"),
    ],
)
def test_a_probe_that_cannot_be_read(tmp_path, probe, said):
    _, (problem, *_) = findings(DENSE % probe, tmp_path / "m.yaml")
    assert problem.code == "MAP002"
    assert said in problem.message


def test_the_reference_lists_every_layer_and_convention():
    text = (Path(__file__).parents[1] / "docs" / "language.md").read_text(encoding="utf-8")
    for name, layer in LAYERS.items():
        sizes, conventions = ", ".join(layer.sizes), ", ".join(layer.conventions)
        assert f"| `{name}` | {layer.about} | {sizes} | {conventions} |" in text


def test_a_size_of_the_file_stands_for_its_number_in_a_scope():
    text = """
mapping: 1
sizes: {depth: 50}
rules:
  - {source: "net{depth}/{p:word}", target: "n{depth}.{p}", ops: [rearrange: ... -> ...]}
probes:
  - layer: dense
    source: keras
    target: keras
    source_scope: net{depth}/
    target_scope: n{depth}.
"""
    wrong = loads(text.replace("... -> ...", "i o -> o i"), sizes={"depth": 101})
    (probe,) = wrong.probes
    assert (probe.source_scope, probe.target_scope) == ("net101/", "n101.")
    assert not run(probe).agrees


@pytest.mark.oracle
def test_the_convention_of_onnx_is_that_of_its_reference():
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    layer, random = LAYERS["lstm"], Random(0)
    convention, sizes = layer.conventions["onnx"], layer.sizes
    weights = weights_of(convention, random, sizes)
    x = layer.input(random, sizes).astype("f4")
    given = {"X": x.transpose(1, 0, 2), **weights}
    node = onnx.helper.make_node("LSTM", [*given], ["Y"], hidden_size=sizes["u"])
    kind = onnx.TensorProto.FLOAT
    inputs = [onnx.helper.make_tensor_value_info(n, kind, a.shape) for n, a in given.items()]
    output = onnx.helper.make_tensor_value_info("Y", kind, None)
    graph = onnx.helper.make_graph([node], "lstm", inputs, [output])
    (y,) = ReferenceEvaluator(onnx.helper.make_model(graph)).run(None, given)
    found = convention(weights, x, sizes)
    np.testing.assert_allclose(y[:, 0].transpose(1, 0, 2), found, atol=1e-6)
