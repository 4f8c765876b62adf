"""Mappings that include others: names under scopes, sizes, and findings that name both places."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from converter.errors import MappingError
from converter.language import load, loads
from converter.language.names import TemplateError, parse_scopes
from converter.plan import Port
from converter.tensors import TensorSpec

BLOCK = """
mapping: 1
sizes: {heads: 2}
source: {contract: {channels: RGB, range: 0..1}}
rules:
  - {source: "conv{i}/kernel", target: "conv{i}.weight", except: [conv9/kernel]}
  - {source: bias, target: bias, optional: true}
  - {source: q, target: q, optional: true, ops: [rearrange: (heads d) -> heads d]}
drop:
  - {source: "*/step", because: a counter}
make:
  - {target: "conv{i}.n", each: "conv{i}/kernel", shape: []}
"""


@pytest.fixture
def block(tmp_path) -> Path:
    (tmp_path / "parts").mkdir()
    path = tmp_path / "parts" / "block.yaml"
    path.write_text(BLOCK, "utf-8")
    return path


def including(folder: Path, *lines: str, head: str = "") -> Path:
    """A mapping of includes, which stand from line 3 on (without a head)."""
    path = folder / "net.yaml"
    entries = "".join(f"  - {line}\n" for line in lines)
    path.write_text(f"mapping: 1\n{head}include:\n{entries}", "utf-8")
    return path


def planned(path: Path, *names: str, shape: tuple[int, ...] = (4,), **sizes: int):
    specs = {name: TensorSpec(shape, np.dtype("f4")) for name in names}
    return Port(load(path, sizes)).plan(specs)


def made(path: Path, *names: str, **kwargs) -> dict[str, tuple[str, ...]]:
    return {step.target: step.sources for step in planned(path, *names, **kwargs).check().steps}


def problems(path: Path) -> list[tuple[str, int, str]]:
    with pytest.raises(MappingError, match="MAP") as caught:
        load(path)
    return [(d.code, d.line, d.message) for d in caught.value.diagnostics]


def test_names_stand_under_scopes_with_holes(tmp_path, block):
    path = including(
        tmp_path, '{mapping: parts/block.yaml, source: "net/block{i}/", target: "blocks.{i}."}'
    )
    assert made(path, "net/block2/conv7/kernel", "net/block2/bias", "net/block2/x/step") == {
        "blocks.2.conv7.weight": ("net/block2/conv7/kernel",),
        "blocks.2.conv7.n": (),
        "blocks.2.bias": ("net/block2/bias",),
    }
    back = (
        Port(load(path))
        .inverse()
        .plan(planned(path, "net/block2/conv7/kernel", "net/block10/conv7/kernel").specs)
    )
    assert set(back.check().specs) == {"net/block2/conv7/kernel", "net/block10/conv7/kernel"}
    assert set(back.dropped) == {"blocks.2.conv7.n", "blocks.10.conv7.n"}


def test_a_scope_may_stand_around_names(tmp_path, block):
    line = '{mapping: parts/block.yaml, source: "{x:a|b}/{}:0", target: "{x:one|two}.{}_l0"}'
    assert made(including(tmp_path, line), "b/bias:0", "b/conv0/kernel:0") == {
        "two.bias_l0": ("b/bias:0",),
        "two.conv0.weight_l0": ("b/conv0/kernel:0",),
        "two.conv0.n_l0": (),
    }


def test_what_an_included_mapping_leaves_to_others_is_left(tmp_path, block):
    path = including(
        tmp_path,
        '{mapping: parts/block.yaml, source: "a{i}/", target: "a{i}.", except: [a2/conv1/kernel]}',
    )
    plan = planned(path, "a0/conv1/kernel", "a0/conv9/kernel", "a2/conv1/kernel")
    assert {p.tensor for p in plan.problems} == {"a0/conv9/kernel", "a2/conv1/kernel"}


def test_an_optional_include_need_not_match(tmp_path, block):
    lines = [
        "{mapping: parts/block.yaml, source: a/, target: a.}",
        "{mapping: parts/block.yaml, source: b/, target: b.%s}",
    ]
    names = ["a/conv0/kernel"]
    strict = planned(including(tmp_path, lines[0], lines[1] % ""), *names)
    assert [p.code for p in strict.problems] == ["PLN202"]
    assert "(included at" in strict.problems[0].message
    assert strict.problems[0].path == block
    assert not planned(
        including(tmp_path, lines[0], lines[1] % ", optional: true"), *names
    ).problems


def test_sizes_are_given_by_number_or_by_name(tmp_path, block):
    line = "{mapping: parts/block.yaml, source: a/, target: a., sizes: {heads: %s}, optional: true}"
    for given, head, sizes, shape in (
        ("4", "", {}, (4, 2)),
        ("n", "sizes: {n: 1}\n", {}, (1, 8)),
        ("n", "sizes: {n: }\n", {"n": 8}, (8, 1)),
    ):
        path = including(tmp_path, line % given, head=head)
        plan = planned(path, "a/q", shape=(8,), **sizes)
        assert plan.check().specs["a.q"].shape == shape


def test_a_size_that_is_not_known_yet_is_handed_on(tmp_path, block):
    block.write_text(block.read_text("utf-8").replace("{heads: 2}", "{heads: }"), "utf-8")
    path = including(
        tmp_path, "{mapping: parts/block.yaml, sizes: {heads: many}}", head="sizes: {many: }\n"
    )
    plan = planned(path, "conv0/kernel", "q", many=2)
    assert plan.check().specs["q"].shape == (2, 2)
    (problem,) = planned(path, "conv0/kernel", "q").problems
    assert problem.code == "PLN220"


def test_a_mapping_is_included_backward(tmp_path, block):
    path = including(tmp_path, "{mapping: parts/block.yaml, source: a., target: a/, reverse: true}")
    assert made(path, "a.conv0.weight", "a.conv0.n") == {"a/conv0/kernel": ("a.conv0.weight",)}


def test_contracts_of_parts_hold_where_the_whole_does_not_speak(tmp_path, block):
    line = "{mapping: parts/block.yaml}"
    assert load(including(tmp_path, line)).source_contract == {"channels": "RGB", "range": "0..1"}
    head = "source: {contract: {channels: BGR}}\n"
    rules = load(including(tmp_path, line, head=head))
    assert rules.source_contract == {"channels": "BGR", "range": "0..1"}


def test_contracts_of_parts_that_contradict_each_other_are_found(tmp_path, block):
    other = tmp_path / "parts" / "other.yaml"
    text = "mapping: 1\nname: other\nsource: {contract: {channels: BGR, range: 0..1}}\nrules: []\n"
    other.write_text(text, "utf-8")
    lines = "{mapping: parts/block.yaml}", "{mapping: parts/other.yaml}"
    with pytest.raises(
        MappingError, match="contradict each other: the source's channels"
    ) as caught:
        load(including(tmp_path, *lines))
    (found,) = caught.value.diagnostics
    assert (found.code, found.line, found.column) == ("MAP112", 4, 15)
    assert (found.expected, found.found) == ("channels: RGB", "channels: BGR")
    head = "source: {contract: {channels: BGR}}\n"
    rules = load(including(tmp_path, *lines, head=head))
    assert rules.source_contract == {"channels": "BGR", "range": "0..1"}


def test_drops_of_one_part_and_rules_of_another_are_compared(tmp_path, block):
    """The place is that of the drop, in its file; the include that brought it is said."""
    found = problems(
        including(
            tmp_path,
            "{mapping: parts/block.yaml, source: a/, target: a.}",
            "{mapping: parts/block.yaml, source: a/conv1/, target: b.}",
            head="rules: [{source: a/step/step, target: x}]\n",
        )
    )
    assert [(code, line) for code, line, _ in found] == [("MAP111", 10)]
    assert "claim one name, e.g. 'a/step/step'" in found[0][2]
    assert "included at" in found[0][2]


def test_parts_include_parts(tmp_path, block):
    middle = tmp_path / "parts" / "stage.yaml"
    middle.write_text(
        'mapping: 1\ninclude: [{mapping: block.yaml, source: "u{i}/", target: "{i}."}]', "utf-8"
    )
    path = including(tmp_path, '{mapping: parts/stage.yaml, source: "s{i}/", target: "stage.{i}."}')
    assert made(path, "s1/u2/conv3/kernel") == {
        "stage.1.2.conv3.weight": ("s1/u2/conv3/kernel",),
        "stage.1.2.conv3.n": (),
    }
    rule = load(path).rules[0]
    assert str(rule.place) == f"{block}:6, included at {middle}:2, included at {path}:3"


def test_problems_of_an_included_mapping_name_both_places(tmp_path, block):
    block.write_text("mapping: 1\nrules:\n  - {source: a, target: b, ops: [nope: 1]}\n", "utf-8")
    path = including(tmp_path, "{mapping: parts/block.yaml}")
    with pytest.raises(MappingError, match="unknown op 'nope'") as caught:
        load(path)
    (found,) = caught.value.diagnostics
    assert (found.path, found.line, found.column) == (block, 3, 34)
    assert found.message.endswith(f"(included at {path}:3)")


def test_two_includes_of_one_name_are_found(tmp_path, block):
    line = "{mapping: parts/block.yaml, source: a/, target: %s.}"
    found = problems(including(tmp_path, line % "a", line % "b"))
    assert {code for code, _, _ in found} == {"MAP111"}
    assert any("'a/bias'" in message for _, _, message in found)


WRONG = {
    "a shipped name that is none": ("{mapping: layers/none}", "MAP110", "no mapping 'layers/none'"),
    "no file": ("{mapping: none.yaml}", "MAP110", "there is no mapping 'none.yaml'"),
    "no mapping": ("{mapping: net}", "MAP110", "no shipped name and no path of a .yaml file"),
    "a folder above": ("{mapping: ../x.yaml}", "MAP110", "outside of the mapping's folder"),
    "the root": ("{mapping: /etc/x.yaml}", "MAP110", "outside of the mapping's folder"),
    "itself": ("{mapping: net.yaml}", "MAP110", "net.yaml includes itself"),
    "a hole of one side": (
        '{mapping: parts/block.yaml, source: "a{i}/"}',
        "MAP104",
        "hole 'i' stands on one side only",
    ),
    "a scope that is none": (
        '{mapping: parts/block.yaml, source: "a{!}/"}',
        "MAP101",
        "`{!}` is not a hole",
    ),
    "a size that is none": (
        "{mapping: parts/block.yaml, sizes: {head: 3}}",
        "MAP107",
        "there is no size 'head' (included at",
    ),
    "a size that is not known": (
        "{mapping: parts/block.yaml, sizes: {heads: n}}",
        "MAP107",
        "a size 'n' is not known",
    ),
    "a way back that is none": (
        "{mapping: layers/lstm-torch-keras, reverse: true}",
        "MAP120",
        "sum cannot be undone",
    ),
    "a pattern of except": (
        "{mapping: parts/block.yaml, except: ['a{!}']}",
        "MAP101",
        "`{!}` is not a hole",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_included_is_said(tmp_path, block, name):
    line, code, message = WRONG[name]
    found = problems(including(tmp_path, line))
    assert any(code == each and message in text for each, _, text in found), found


def test_a_scope_does_not_run_into_names(tmp_path, block):
    block.write_text("mapping: 1\nrules: [{source: '{i}/w', target: 'w{i}'}]\n", "utf-8")
    path = including(tmp_path, '{mapping: parts/block.yaml, source: "{x:word}", target: "{x}/"}')
    assert problems(path)[0][:2] == ("MAP101", 3)


def test_a_constant_is_not_made_for_every_hole(tmp_path, block):
    block.write_text("mapping: 1\nrules: []\nmake: [{target: v}]\n", "utf-8")
    assert not planned(including(tmp_path, "{mapping: parts/block.yaml, target: a.}")).problems
    line = '{mapping: parts/block.yaml, source: "a{i}/", target: "a{i}."}'
    assert problems(including(tmp_path, line))[0][0] == "MAP104"


def test_a_link_out_of_the_folder_is_not_followed(tmp_path, block):
    (tmp_path / "parts" / "link.yaml").symlink_to(block)
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "link.yaml").symlink_to(block)
    assert load(including(tmp_path, "{mapping: parts/link.yaml}")).rules
    found = problems(including(inner, "{mapping: link.yaml}"))
    assert "outside of the mapping's folder" in found[0][2]


def test_a_text_without_a_file_includes_what_is_shipped_only():
    assert loads("mapping: 1\ninclude: [{mapping: layers/dense-keras-torch}]").rules
    with pytest.raises(MappingError, match=r"MAP110.*no shipped name"):
        loads("mapping: 1\ninclude: [{mapping: net.yaml}]")


def test_circles_end(tmp_path):
    for one, other in ("ab", "ba"):
        text = f"mapping: 1\ninclude: [{{mapping: {other}.yaml}}]"
        (tmp_path / f"{one}.yaml").write_text(text, "utf-8")
    assert "a.yaml includes itself" in problems(tmp_path / "a.yaml")[0][2]


def test_depths_and_numbers_have_a_bound(tmp_path, monkeypatch):
    for k in range(12):
        text = f"mapping: 1\ninclude: [{{mapping: m{k + 1}.yaml}}]"
        (tmp_path / f"m{k}.yaml").write_text(text, "utf-8")
    (tmp_path / "m12.yaml").write_text("mapping: 1\nrules: [{source: a, target: b}]", "utf-8")
    assert "at most 8 includes within each other" in problems(tmp_path / "m0.yaml")[0][2]
    assert len(load(tmp_path / "m5.yaml").rules) == 1
    monkeypatch.setattr("converter.language.include.MAX_INCLUDES", 2)
    assert "and 2 in all" in problems(tmp_path / "m5.yaml")[0][2]


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("a/", "x", "a/x"),
        ("", "x", "x"),
        ("a/{}:0", "x", "a/x:0"),
        ("{{}}{}", "x", "{{}}x"),
        ("{{{}}}", "x", "{{x}}"),
    ],
)
def test_a_scope_has_one_place_for_the_name(text, name, expected):
    (scope,) = parse_scopes([text], {})
    assert scope.around(name) == expected


def test_a_scope_that_cannot_be_read_says_where():
    with pytest.raises(TemplateError, match="is not a hole") as caught:
        parse_scopes(["ab", "a/{}/b{!}"], {})
    assert (caught.value.offset, caught.value.template) == (7, 1)
