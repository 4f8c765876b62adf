"""The plan is a ledger: every source and every target is accounted for, before a value is read."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import converter
from converter import plan as planning
from converter.errors import MappingError
from converter.language.load import examine, read
from converter.language.names import parse_selector
from converter.layout import View
from converter.plan import CONTRACT, Plan, Port, identity, port, trace
from converter.tensors import Checkpoint, Tensor, TensorSpec, from_arrays
from tests import vgg16

MAPPINGS = Path(__file__).parents[1] / "mappings"


def mapping(text: str) -> Port:
    """A port of rules that stand from line 3 on, even of those that loading refuses."""
    path = Path("m.yaml")
    return Port(examine(read(f"mapping: 1\nrules:\n{text}", path), path)[0])


def rules(*lines: str) -> Port:
    return mapping("".join(f"  - {line}\n" for line in lines))


def specs(names: Mapping[str, tuple[int, ...]] | str, dtype: str = "float32") -> dict[str, Any]:
    shapes = dict.fromkeys(names.split(), (2, 3)) if isinstance(names, str) else names
    return {name: TensorSpec(shape, np.dtype(dtype)) for name, shape in shapes.items()}


def counted(names: Mapping[str, tuple[int, ...]] | str) -> Checkpoint:
    """Tensors of different values."""
    found = specs(names)
    return from_arrays(
        {
            n: np.arange(s.size, dtype="f4").reshape(s.shape) + k
            for k, (n, s) in enumerate(found.items())
        }
    )


def made(plan: Plan) -> dict[str, tuple[str, ...]]:
    return {step.target: step.sources for step in plan.check().steps}


def back_and_forth(port: Port, source: Checkpoint) -> None:
    """The way back must give every bit back."""
    again = port.inverse()(port(source))
    assert set(again) == set(source)
    for name, tensor in source.items():
        np.testing.assert_array_equal(again[name].numpy(), tensor.numpy(), strict=True)


# Every problem: rules, sources, (code, line, tensor, message, hint).

PROBLEMS = {
    "a source that nobody takes": (
        "  - {source: 'conv{i}/w', target: 'c.{i}'}",
        "conv1/w conv1/ww",
        ("PLN201", 0, "conv1/ww", "no rule takes 'conv1/ww' (float32 [2, 3])", "`conv{i}/w` at"),
    ),
    "a rule for nothing": (
        "  - {source: a, target: b}\n  - {source: conv1/weigths, target: c}",
        "a conv1/weights",
        ("PLN202", 4, "", "no tensor is called `conv1/weigths`", "near names: conv1/weights"),
    ),
    "a constant for nothing": (
        "  - {source: a, target: b}\nmake: [{target: 'n{i}', each: 'bn{i}'}]",
        "a bm0",
        ("PLN202", 4, "", "the constant matches nothing: no tensor is called `bn{i}`", "optional"),
    ),
    "two rules for one source": (
        "  - {source: 'a{i}', target: 'b{i}'}\n  - {source: a1, target: c}",
        "a0 a1",
        ("PLN203", 4, "a1", "by the rule `a{i} -> b{i}` (m.yaml:3) and the rule `a1 -> c`", "exc"),
    ),
    "a rule and a drop for one source": (
        "  - {source: 'a{i}', target: 'b{i}'}\ndrop: [{source: 'a*', because: x}]",
        "a0",
        ("PLN203", 4, "a0", "the drop `a*` (m.yaml:4)", "`except`"),
    ),
    "two sources of one rule for one source": (
        "  - {source: ['a{i}', 'a{i}'], target: b, ops: [concat: 0]}",
        "a0",
        ("PLN203", 3, "a0", "claimed more than once", "`except`"),
    ),
    "two rules for one target": (
        "  - {source: a, target: c}\n  - {source: b, target: c}",
        "a b",
        ("PLN204", 4, "c", "'c' is made twice: here from b, and by m.yaml:3 (from a)", ""),
    ),
    "a rule and a constant for one target": (
        "  - {source: a, target: c}\nmake: [{target: c}]",
        "a",
        ("PLN204", 4, "c", "here from a constant, and by m.yaml:3 (from a)", ""),
    ),
    "a source that is missing beside another": (
        "  - {source: ['{x:word}/q', '{x}/k'], target: '{x}/qk', ops: [concat: 0]}",
        "one/q one/k two/q",
        ("PLN205", 3, "two/k", "'two/k' is missing, which the rule needs beside 'two/q'", "one/k"),
    ),
    "a number that is missing": (
        "  - {source: 'e{i}', target: e, ops: [stack: 0]}",
        "e0 e1 e3",
        ("PLN205", 3, "e3", "`e{i}`: number 2 is missing", "numbers gather from 0"),
    ),
    "numbers that do not begin": (
        "  - {source: 'e{i}', target: e, ops: [stack: 0]}",
        "e1 e2",
        ("PLN205", 3, "e2", "`e{i}`: number 0 is missing before 1", "write {i+1}"),
    ),
    "a table without the entry": (
        "  - {source: 'a{i}', target: 'b{t[i]}'}\ntables: {t: {1: x}}",
        "a1 a2",
        ("PLN206", 3, "a2", "`b{t[i]}` has no name for i=2", ""),
    ),
    "a number below zero": (
        "  - {source: 'a{i}', target: 'b{i-1}'}",
        "a0 a1",
        ("PLN206", 3, "a0", "`b{i-1}` has no name for i=0", ""),
    ),
    "a constant that has no name": (
        "  - {source: 'a{i}', target: 'b{i}'}\nmake: [{target: 'c{i-1}', each: 'a{i}'}]",
        "a0 a1",
        ("PLN206", 4, "a0", "`c{i-1}` has no name for i=0", ""),
    ),
    "nothing at all": ("  []", "", ("PLN211", 0, "", "nothing would be converted", "")),
    "an op that does not fit": (
        "  - source: a\n    target: b\n    ops: [reverse: 0,\n      rearrange: x y z -> y x z]",
        "a",
        ("PLN220", 6, "a", "`x y z -> y x z` does not fit the number of axes (a)", ""),
    ),
    "pieces that are more than targets": (
        "  - {source: a, target: [b, c], ops: [split: {axis: 1, sizes: [1, 1, 1]}]}",
        "a",
        ("PLN220", 3, "a", "the rule's ops do not give one tensor for each target (a)", ""),
    ),
    "a target too few": (
        "  - {source: a, target: [b], ops: [unstack: 0]}",
        "a",
        ("PLN220", 3, "a", "do not give one tensor for each target", ""),
    ),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_problem_has_its_code_place_and_tensor(name):
    text, names, (code, line, tensor, message, hint) = PROBLEMS[name]
    plan = mapping(text).plan(specs(names))
    (problem,) = [found for found in plan.problems if found.code != "PLN201" or code == "PLN201"]
    assert (problem.code, problem.line, problem.tensor) == (code, line, tensor)
    assert message in problem.message
    assert hint in problem.hint
    with pytest.raises(MappingError, match=code):
        plan.check()


def test_every_code_has_a_case():
    codes = set(re.findall('"(PLN[0-9]+)"', Path(planning.__file__).read_text("utf-8")))
    assert codes | {"PLN220"} == {row[2][0] for row in PROBLEMS.values()} | {"PLN210"}


def test_all_problems_come_at_once():
    plan = rules(
        "{source: 'a{i}', target: b}".replace("target: b", "target: 'b{i}'"),
        "{source: 'e{i}', target: e, ops: [stack: 0]}",
        "{source: none, target: x}",
        "{source: m, target: n, ops: [transpose: [0]]}",
    ).plan(specs("a1 e1 m zzz yyy"))
    assert [p.code for p in plan.problems] == ["PLN205", "PLN202", "PLN220", "PLN201", "PLN201"]
    with pytest.raises(MappingError, match=r"(?s)PLN205.*PLN202.*PLN220.*PLN201.*PLN201"):
        plan.check()


# What a rule may do.


def test_a_rename_needs_no_more():
    plan = rules("{source: 'conv{b}_{k}/{part:w|b}', target: 'c.{b}.{k}.{part:weight|bias}'}").plan(
        specs("conv1_1/w conv1_1/b conv12_3/w")
    )
    assert made(plan) == {
        "c.1.1.weight": ("conv1_1/w",),
        "c.1.1.bias": ("conv1_1/b",),
        "c.12.3.weight": ("conv12_3/w",),
    }
    assert all(step.doubts == () and step.exactness == "exact" for step in plan.steps)


@pytest.mark.parametrize("op", ["stack", "concat"])
def test_numbers_gather_in_their_order(op):
    names = [f"layer_{k}/w" for k in range(12)]
    random.Random(0).shuffle(names)
    source = counted(" ".join(names))
    value = "0" if op == "stack" else "{axis: 0, sizes: [" + ", ".join(["2"] * 12) + "]}"
    port = rules(f"{{source: 'layer_{{k}}/w', target: all, ops: [{op}: {value}]}}")
    (step,) = port.plan(source).check().steps
    assert step.sources == tuple(f"layer_{k}/w" for k in range(12))
    join = np.stack if op == "stack" else np.concatenate
    expected = join([source[name].numpy() for name in step.sources])
    np.testing.assert_array_equal(port(source)["all"].numpy(), expected, strict=True)
    back_and_forth(port, source)


def test_numbers_that_count_from_one_gather_with_an_offset():
    source = counted("l1 l2 l3")
    port = rules("{source: 'l{i+1}', target: all, ops: [stack: 0]}")
    assert made(port.plan(source)) == {"all": ("l1", "l2", "l3")}
    back_and_forth(port, source)


def test_groups_gather_each_for_itself():
    source = counted("a/e0 a/e1 b/e0 b/e1 b/e2")
    port = rules("{source: '{x:word}/e{i}', target: '{x}/e', ops: [stack: 0]}")
    assert made(port.plan(source)) == {"a/e": ("a/e0", "a/e1"), "b/e": ("b/e0", "b/e1", "b/e2")}
    back_and_forth(port, source)


def test_alternatives_gather_in_their_order():
    source = counted("a/v a/q a/k")
    port = rules("{source: 'a/{p:q|k|v}', target: 'a/qkv', ops: [stack: 0]}")
    assert made(port.plan(source)) == {"a/qkv": ("a/q", "a/k", "a/v")}
    back_and_forth(port, source)


def test_one_source_scatters():
    source = counted({"all": (3, 2)})
    port = rules("{source: all, target: 'e{i+1}', ops: [unstack: 0]}")
    assert set(made(port.plan(source))) == {"e1", "e2", "e3"}
    np.testing.assert_array_equal(port(source)["e2"].numpy(), source["all"].numpy()[1])
    back_and_forth(port, source)


def test_one_source_scatters_into_pieces_of_given_sizes():
    source = counted({"all": (6, 2)})
    port = rules("{source: all, target: 'e{i}', ops: [split: {axis: 0, sizes: [1, 2, 3]}]}")
    assert [s.spec.shape for s in port.plan(source).check().steps] == [(1, 2), (2, 2), (3, 2)]
    back_and_forth(port, source)


def test_many_become_one_and_back():
    source = counted({"q": (2, 3), "k": (2, 3), "v": (1, 3)})
    port = rules("{source: [q, k, v], target: qkv, ops: [concat: {axis: 0, sizes: [2, 2, 1]}]}")
    assert made(port.plan(source)) == {"qkv": ("q", "k", "v")}
    back_and_forth(port, source)


def test_one_becomes_many_in_the_order_of_the_rule():
    source = counted({"qkv": (6, 3)})
    port = rules("{source: qkv, target: [q, k, v], ops: [split: '[o] i', transpose: [1, 0]]}")
    np.testing.assert_array_equal(port(source)["k"].numpy(), source["qkv"].numpy()[2:4].T)
    back_and_forth(port, source)


def test_several_become_several_others():
    source = counted({"a": (2, 2), "b": (2, 2)})
    port = rules("{source: [a, b], target: [c, d], ops: [concat: 0, split: 1]}")
    assert {n: t.spec.shape for n, t in port(source).items()} == {"c": (4, 1), "d": (4, 1)}
    back_and_forth(port, source)


def test_a_rule_leaves_what_it_excepts():
    port = rules(
        "{source: 'a{i}', target: 'b{i}', except: [a1]}",
        "{source: a1, target: c, ops: [reverse: 0]}",
    )
    source = counted("a0 a1 a2")
    assert made(port.plan(source)) == {"b0": ("a0",), "b2": ("a2",), "c": ("a1",)}
    back_and_forth(port, source)


def test_what_is_excepted_holds_on_the_way_back():
    port = mapping(
        "  - {source: 'fc{n}', target: 'c.{t[n]}', except: [fc6]}\n"
        "  - {source: fc6, target: c.0, ops: [reverse: 0]}\n"
        "tables: {t: {6: 0, 7: 3}}"
    )
    back_and_forth(port, counted("fc6 fc7"))


def test_an_optional_rule_may_match_nothing():
    port = rules("{source: a, target: b}", "{source: c, target: d, optional: true}")
    assert made(port.plan(specs("a"))) == {"b": ("a",)}


def test_an_optional_constant_may_match_nothing():
    port = mapping(
        "  - {source: a, target: b}\nmake: [{target: 'n{i}', each: 'bn{i}', optional: true}]"
    )
    assert made(port.plan(specs("a"))) == {"b": ("a",)}


def test_what_is_dropped_has_a_reason():
    port = mapping(
        "  - {source: w, target: v}\n"
        "drop: [{source: 'fc8/*', because: own heads}, {group: optimizer_slots}, {group: counters}]"
    )
    plan = port.plan(specs("w w/Momentum w/Adam_1 beta1_power fc8/a global_step"))
    assert made(plan) == {"v": ("w",)}
    assert plan.dropped == {
        "w/Momentum": "an optimizer's state",
        "w/Adam_1": "an optimizer's state",
        "beta1_power": "an optimizer's state",
        "fc8/a": "own heads",
        "global_step": "a training counter",
    }


def test_a_group_comes_before_the_rules():
    port = mapping(
        "  - {source: '{r:path}', target: 'net/{r}'}\n"
        "drop: [{group: optimizer_slots}, {group: counters}]"
    )
    plan = port.plan(specs("fc/w fc/w/Momentum global_step"))
    assert made(plan) == {"net/fc/w": ("fc/w",)}
    assert plan.dropped == {
        "fc/w/Momentum": "an optimizer's state",
        "global_step": "a training counter",
    }
    assert made(port.inverse().plan(plan.specs)) == {"fc/w": ("net/fc/w",)}


def test_targets_that_are_dropped_are_left_out_on_the_way_back():
    port = mapping("  - {source: a, target: b}\ndrop: [{target: 'n*', because: torch counts}]")
    plan = port.inverse().plan(specs("b num"))
    assert made(plan) == {"a": ("b",)}
    assert plan.dropped == {"num": "torch counts"}


# Constants.


def test_a_constant_is_made_once():
    port = mapping(
        "  - {source: a, target: b}\n"
        "make:\n"
        "  - {target: count, dtype: int64, because: torch counts}\n"
        "  - {target: '{{scale}}', shape: [2, 3], fill: 0.5}\n"
        "  - {target: flag, dtype: bool, fill: true}\n"
    )
    found = port(counted("a"))
    np.testing.assert_array_equal(found["count"].numpy(), np.zeros((), "i8"), strict=True)
    np.testing.assert_array_equal(found["{scale}"].numpy(), np.full((2, 3), 0.5, "f4"), strict=True)
    np.testing.assert_array_equal(found["flag"].numpy(), np.True_, strict=True)
    plan = port.plan(specs("a"))
    assert [step.target for step in plan.made] == ["count", "{scale}", "flag"]
    assert plan.made[0].exactness == "exact"


def test_a_constant_is_made_for_each_source():
    port = mapping(
        "  - {source: '{x:word}/w', target: '{x}.w'}\n"
        "make:\n"
        "  - {target: '{x}.gamma', each: '{x:word}/w', fill: 1}\n"
        "  - {target: '{x}.n', each: '{x:word}/w', shape: [], dtype: int64}\n"
    )
    found = port(from_arrays({"a/w": np.zeros((4,), "f4"), "b/w": np.zeros((2, 2), "f4")}))
    assert {n: t.spec.shape for n, t in found.items() if "w" not in n} == {
        "a.gamma": (4,),
        "b.gamma": (2, 2),
        "a.n": (),
        "b.n": (),
    }
    np.testing.assert_array_equal(found["b.gamma"].numpy(), np.ones((2, 2), "f4"), strict=True)


def test_constants_are_dropped_on_the_way_back():
    port = mapping(
        "  - {source: 'a{i}', target: 'b{i}'}\nmake: [{target: 'n{i}', each: 'a{i}', because: x}]"
    )
    source = counted("a0 a1")
    back_and_forth(port, source)
    assert port.inverse().plan(port(source)).dropped == {"n0": "x", "n1": "x"}


def test_a_constant_beside_a_rule_of_the_same_names_is_told_apart_on_the_way_back():
    port = mapping("  - {source: 'a{i}', target: 'b{i}'}\nmake: [{target: b0, because: missing}]")
    source = counted("a1 a2")
    back_and_forth(port, source)
    back_and_forth(port.scoped("my/"), counted("my/a1"))


# Scopes and selections.


def test_names_outside_a_scope_are_left():
    port = rules("{source: 'a{i}', target: 'b{i}'}").scoped("my/", "our.")
    plan = port.plan(specs("my/a0 a1 other/a2"))
    assert made(plan) == {"our.b0": ("my/a0",)}
    assert plan.left == ("a1", "other/a2")
    assert made(port.inverse().plan(specs("our.b0 b1"))) == {"my/a0": ("our.b0",)}


def test_scopes_nest_and_hold_for_everything():
    port = mapping(
        "  - {source: 'a{i}', target: 'b{i}', except: [a9]}\n"
        "drop: [{source: a9, because: x}, {target: 'z*', because: y}]\n"
        "make: [{target: 'm{i}', each: 'a{i}'}]\n"
    )
    inner = port.scoped("in/", "out/").scoped("my/", "our/")
    plan = inner.plan(specs("my/in/a0 my/in/a9 in/a1 a2"))
    assert set(made(plan)) == {"our/out/b0", "our/out/m0", "our/out/m9"}
    assert plan.dropped == {"my/in/a9": "x"}
    assert inner.inverse().plan(specs("our/out/b0 our/out/zz")).dropped == {"our/out/zz": "y"}


@pytest.mark.parametrize(("chosen", "targets"), [("b0", {"b0"}), ("a1", {"b1"}), ("c*", {"c"})])
def test_a_selection_is_of_sources_or_targets(chosen, targets):
    port = rules("{source: 'a{i}', target: 'b{i}'}", "{source: x, target: c}")
    plan = port.only(parse_selector(chosen)).plan(specs("a0 a1 x unknown"))
    assert set(made(plan)) == targets
    used = {name for step in plan.steps for name in step.sources}
    assert {*plan.left, *used} == {"a0", "a1", "x", "unknown"}


def test_a_selection_of_nothing_is_a_problem():
    plan = rules("{source: a, target: b}").only(parse_selector("z")).plan(specs("a"))
    assert [problem.code for problem in plan.problems] == ["PLN211"]


# Contracts and metadata.


def test_a_reversal_applied_twice_is_caught():
    port = converter.mapping("vgg16/slim-fasterrcnn")
    slim = from_arrays(dict(vgg16.arrays(vgg16.slim(vgg16.TINY))))
    once = port(slim)
    assert json.loads(once.metadata[CONTRACT])["channels"] == "BGR"
    renamed = [problem for problem in port.plan(once).problems if problem.code == "PLN210"]
    assert [problem.expected for problem in renamed] == [
        "channels: RGB",
        "mean: [123.68, 116.779, 103.939]",
    ]
    assert "applied twice" in renamed[0].hint
    assert not port.inverse().plan(once).errors
    assert json.loads(port.inverse()(once).metadata[CONTRACT])["channels"] == "RGB"


def test_a_remark_may_be_worded_anew():
    contract = {"channels": "RGB", "architecture": "as it was"}
    one = rules("{source: a, target: b}").rules
    port = converter.Port(replace(one, source_contract=contract))
    carried = json.dumps({"channels": "RGB", "architecture": "in other words"})
    source = from_arrays({"a": np.zeros(2)}, metadata={CONTRACT: carried})
    assert not port.plan(source).problems
    other = json.dumps({"channels": "BGR", "architecture": "as it was"})
    found = port.plan(from_arrays({"a": np.zeros(2)}, metadata={CONTRACT: other})).problems
    assert [problem.code for problem in found] == ["PLN210"]


@pytest.mark.parametrize("carried", ["no json", "[]", "1", '"RGB"', "[" * 100_000, "9" * 10_000])
def test_a_contract_that_cannot_be_read_is_a_problem(carried):
    port = rules("{source: a, target: b}")
    plan = port.plan(from_arrays({"a": np.zeros(2)}, metadata={CONTRACT: carried}))
    assert [(p.code, p.message) for p in plan.problems] == [
        ("PLN210", "the source's contract cannot be read")
    ]


def test_a_mapping_without_a_contract_keeps_what_the_source_says():
    metadata = {CONTRACT: '{"channels": "BGR"}', "format": "pt"}
    source = from_arrays({"a": np.zeros(2)}, metadata=metadata)
    assert identity()(source).metadata == metadata
    assert rules("{source: a, target: b}")(source).metadata == metadata


def test_ties_are_renamed_and_end_where_values_change():
    source = from_arrays(
        {"a": np.zeros(2), "b": np.zeros(2), "c": np.zeros(2), "d": np.zeros(2)},
        ties=(("a", "b"), ("c", "d")),
    )
    port = rules(
        "{source: '{x:a|b|c}', target: 'new.{x}'}", "{source: d, target: d, ops: [reverse: 0]}"
    )
    assert port(source).ties == (("new.a", "new.b"),)


def test_the_identity_keeps_every_name():
    source = counted("a/b.c é {x}")
    assert set(identity()(source)) == set(source)
    back_and_forth(identity(), source)


# What a plan knows without reading.


class Unreadable:
    dtype = np.dtype("f4")
    size = 6

    def read(self, start, out):
        raise AssertionError("values were read")


def test_a_plan_never_reads_values():
    source = Checkpoint(
        {n: Tensor(View.over(Unreadable(), (2, 3))) for n in ("a0", "a1", "q", "x")}
    )
    port = rules(
        "{source: 'a{i}', target: a, ops: [stack: 0, rearrange: n x y -> (n y) x, cast: float16]}",
        "{source: q, target: ['r', 's', t], ops: [split: 1]}",
        "{source: x, target: x, ops: [reshape: [6], reverse: 0]}",
    )
    plan = port.plan(source).check()
    assert {n: str(s) for n, s in plan.specs.items()} == {
        "a": "float16 [6, 2]",
        **dict.fromkeys("rst", "float32 [2, 1]"),
        "x": "float32 [6]",
    }
    assert {n: t.spec for n, t in port(source).items()} == plan.specs
    assert (plan.source_nbytes, plan.target_nbytes) == (4 * 24, 24 + 24 + 24)


@pytest.mark.parametrize(
    ("ops", "shape", "doubts"),
    [
        ("[]", (3, 3), 0),
        ("[transpose: [1, 0]]", (3, 3), 1),
        ("[transpose: [1, 0]]", (3, 4), 0),
        ("[rearrange: h w i o -> o i h w]", (3, 3, 8, 8), 1),
        ("[rearrange: h w i o -> o i h w]", (3, 3, 3, 8), 2),
        ("[rearrange: h w i o -> o i h w]", (1, 1, 2, 8), 0),
        ("[rearrange: h w i o -> o (i h w)]", (7, 7, 2, 8), 1),
        ("[rearrange: h w i o -> (h w i) o]", (7, 7, 2, 8), 0),
        ("[reverse: 'h w [i] o']", (3, 3, 3, 8), 1),
        ("[reverse: 0, reverse: 1]", (2, 3), 2),
        ("[cast: float16]", (3, 3), 0),
    ],
)
def test_doubts_are_the_steps_that_shapes_cannot_confirm(ops, shape, doubts):
    (step,) = rules(f"{{source: a, target: b, ops: {ops}}}").plan(specs({"a": shape})).steps
    assert len(step.doubts) == doubts


@pytest.mark.parametrize(
    ("ops", "exactness"),
    [
        ("[]", "exact"),
        ("[cast: float16]", "rounding"),
        ("[cast: float16, part: {axis: 0, index: 0, of: 2}]", "lossy"),
    ],
)
def test_a_step_is_as_exact_as_its_worst_op(ops, exactness):
    (step,) = rules(f"{{source: a, target: b, ops: {ops}}}").plan(specs("a")).steps
    assert step.exactness == exactness


def test_the_specs_after_each_op_can_be_traced():
    rule = rules("{source: a, target: b, ops: [transpose: [1, 0], cast: float16]}").rules.rules[0]
    traced = list(trace(rule, [TensorSpec((2, 3), np.dtype("f4"))], 1))
    assert [[str(spec) for spec in row] for row in traced] == [
        ["float32 [3, 2]"],
        ["float16 [3, 2]"],
    ]


def test_a_port_is_found_by_name_and_by_path():
    path = MAPPINGS / "vgg16" / "slim-torchvision.yaml"
    assert port(path).rules == port("vgg16/slim-torchvision").rules


# Laws of the ledger, on generated mappings.

NAMES = ["a0", "a1", "a2", "b0", "b1", "q", "k", "x/w", "x/b", "y/w", "g", "zz", "zz/Momentum"]
RULES = [
    "{source: 'a{i}', target: 'A{i}'}",
    "{source: 'a{i}', target: A, ops: [stack: 0]}",
    "{source: 'a{i}', target: 'b{i}', except: [a1]}",
    "{source: a1, target: A1}",
    "{source: 'b{i}', target: 'B{i-1}'}",
    "{source: 'b{i}', target: 'B{t[i]}'}",
    "{source: [q, k], target: qk, ops: [concat: 0]}",
    "{source: q, target: [qa, qb], ops: [split: 0]}",
    "{source: '{s:word}/{p:w|b}', target: '{s}.{p:weight|bias}'}",
    "{source: ['{s:word}/w', '{s}/b'], target: '{s}', ops: [stack: 0]}",
    "{source: '{s:word}/w', target: '{s}.weight', ops: [transpose: [1, 0]], optional: true}",
    "{source: g, target: 'G{i}', ops: [unstack: 0]}",
    "{source: '{any:path}', target: 'all/{any}', except: ['a*', '*/*']}",
]
DROPS = ["{source: 'z*', because: x}", "{group: optimizer_slots}", "{source: 'a{i}', because: y}"]
MAKES = [
    "{target: A0}",
    "{target: '{s}.n', each: '{s:word}/w'}",
    "{target: 'M{i-1}', each: 'b{i}'}",
]

some = st.sampled_from
entries = st.tuples(
    st.lists(some(RULES), min_size=1, max_size=5, unique=True),
    st.lists(some(DROPS), max_size=2, unique=True),
    st.lists(some(MAKES), max_size=2, unique=True),
)
sources = st.dictionaries(some(NAMES), some([(2, 3), (4, 2), (2, 2)]), max_size=8)


def compiled(found: tuple[list[str], list[str], list[str]]) -> Port:
    lines = ["mapping: 1", "tables: {t: {0: x}}"]
    for key, entries in zip(("rules", "drop", "make"), found, strict=True):
        lines += [f"{key}:", *(f"  - {entry}" for entry in entries)] if entries else []
    return Port(examine(read("\n".join(lines), None), None)[0])


def outcome(plan: Plan) -> tuple[Any, ...]:
    """What a plan says, without the order in which it says it."""
    return (
        {
            (step.target, str(step.spec), step.sources, step.piece, step.doubts)
            for step in plan.steps
        },
        plan.dropped,
        set(plan.left),
        sorted((p.code, p.tensor) for p in plan.problems if p.code != "PLN202"),
        sorted(p.message for p in plan.problems if p.code == "PLN202"),
    )


@given(entries, sources)
@settings(deadline=None, max_examples=200)
def test_every_source_and_target_is_accounted_for(found, shapes):
    port = compiled(found)
    plan = port.plan(specs(shapes))
    mapped = {name for step in plan.steps for name in step.sources}
    troubled = {p.line for p in plan.problems}
    in_trouble = {
        name
        for name in shapes
        for rule in port.rules.rules
        if rule.place.line in troubled and any(template(name) for template in rule.sources)
    }
    told = {name for name in shapes for p in plan.problems if name in f"{p.message} {p.tensor}"}
    assert set(shapes) == mapped | set(plan.dropped) | set(plan.left) | in_trouble | told
    if not plan.errors:
        assert len(plan.specs) == len(plan.steps)
        assert not mapped & set(plan.dropped)
        assert set(shapes) == mapped | set(plan.dropped)
        assert {n: t.spec for n, t in plan.apply(counted(shapes)).items()} == plan.specs


@given(entries, sources, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=150)
def test_the_order_of_rules_and_names_means_nothing(found, shapes, shuffle):
    plan = compiled(found).plan(specs(shapes))
    assert outcome(plan) == outcome(compiled(found).plan(specs(shapes)))
    shuffled = tuple(shuffle.sample(part, len(part)) for part in found)
    names = shuffle.sample(list(shapes), len(shapes))
    other = compiled(shuffled).plan(specs({name: shapes[name] for name in names}))
    assert outcome(other) == outcome(plan)


@given(entries, sources)
@settings(deadline=None, max_examples=150)
def test_the_way_back_of_what_is_planned_is_planned(found, shapes):
    port = compiled((found[0], [], found[2]))
    plan = port.plan(specs(shapes))
    try:
        back = port.inverse()
    except MappingError as error:
        assert all(d.code == "MAP120" for d in error.diagnostics)  # noqa: PT017 - either is right
        return
    if shapes and not plan.errors:
        again = back.plan(plan.specs).check()
        assert again.specs == specs(shapes)
        back_and_forth(port, counted(shapes))


# Aliases: other names of a tensor, where its file has them.


def known_as(aliases: Mapping[str, tuple[str, ...]]) -> Checkpoint:
    return replace(counted(" ".join(aliases)), aliases=aliases)


def test_a_tensor_is_taken_by_an_alias_when_nothing_takes_its_name():
    source = known_as({"v/0": ("conv/1", "conv/kernel"), "v/1": ("conv/bias",), "conv/x": ("y",)})
    port = mapping(
        "  - {source: 'conv/{p:kernel|bias|x}', target: 'c.{p:weight|bias|x}'}\n"
        "make: [{target: 'c.count', each: conv/bias, shape: []}]\n"
    )
    plan = port.plan(source)
    expected = {"c.weight": ("v/0",), "c.bias": ("v/1",), "c.x": ("conv/x",), "c.count": ()}
    assert made(plan) == expected
    assert plan.apply(source)["c.bias"].numpy().tolist() == source["v/1"].numpy().tolist()


def test_an_alias_is_dropped_and_left_alone_like_a_name():
    source = known_as({"v/0": ("my/a",), "v/1": ("my/b",), "v/2": ("other",)})
    port = mapping(
        "  - {source: a, target: t}\ndrop: [{source: b, because: nobody needs it}]\n"
    ).scoped("my/")
    plan = port.plan(source)
    assert made(plan) == {"t": ("v/0",)}
    assert dict(plan.dropped) == {"v/1": "nobody needs it"}
    assert plan.left == ("v/2",)


def test_aliases_are_not_worked_out_where_names_are_enough():
    class Unread(dict):
        def get(self, *_):
            raise AssertionError("not needed")

    source = replace(counted("a"), aliases=Unread())
    assert made(rules("{source: a, target: b}").plan(source)) == {"b": ("a",)}


def test_two_tensors_with_one_alias_are_found():
    source = known_as({"v/0": ("a",), "v/1": ("a",)})
    (problem,) = rules("{source: a, target: b}").plan(source).problems
    assert problem.code == "PLN204"
    assert "here from v/1" in problem.message
