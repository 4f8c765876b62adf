"""The rules that `infer` writes: few, with holes and choices, and for no other names."""

from __future__ import annotations

import numpy as np

import converter
from converter.inference import infer


def found(pairs, others=()):
    """What is inferred for sources and targets of these names, one for one."""
    rng = np.random.default_rng(0)
    values = [rng.standard_normal(3) for _ in pairs]
    ours = dict(zip(pairs, values, strict=True)) | {n: rng.standard_normal(3) for n in others}
    theirs = dict(zip(pairs.values(), values, strict=True))
    result = infer(converter.from_arrays(ours), converter.from_arrays(theirs))
    assert result.exact, result.yaml
    assert result.complete
    return result


def texts(result):
    return {(rule.sources[0].text, rule.targets[0].text) for rule in result.rules.rules}


def test_what_is_followed_by_the_same_is_one_choice():
    units = {
        f"Mixed_{block}/Branch_{branch}/{ours}": f"features.{at}.branch{branch}.{theirs}"
        for block, at in (("5b", 6), ("5c", 7), ("6b", 11), ("6c", 12))
        for branch, layers in enumerate((("0a_1x1",), ("0a_1x1", "0b_3x3", "0c_5x5")))
        for theirs, ours in enumerate(layers)
        if block[0] == "5" or branch
    }
    pairs = {
        f"{ours}/{a}": f"{theirs}.{b}"
        for ours, theirs in units.items()
        for a, b in (("beta", "bias"), ("mean", "running_mean"))
    }
    assert texts(found(pairs)) == {
        (
            "Mixed_{m:5b|5c}/Branch_0/0a_1x1/{part:beta|mean}",
            "features.{m:6|7}.branch0.0.{part:bias|running_mean}",
        ),
        (
            "Mixed_{m:5b|5c|6b|6c}/Branch_1/{layer:0a_1x1|0b_3x3|0c_5x5}/{part:beta|mean}",
            "features.{m:6|7|11|12}.branch1.{layer:0|1|2}.{part:bias|running_mean}",
        ),
    }


def test_segments_that_stand_twice_have_their_choices_once():
    pairs = {
        f"block{b}_conv{c}/block{b}_conv{c}/kernel": f"{name}.rep.{3 * c}.weight"
        for b, name in ((1, "first"), (7, "last"))
        for c in (1, 2, 3)
    }
    (rule,) = texts(found(pairs))
    assert rule == (
        "block{b:1|7}_conv{c:1|2|3}/block{b}_conv{c}/kernel",
        "{b:first|last}.rep.{c:3|6|9}.weight",
    )


def test_numbers_padded_with_zeros_become_a_hole():
    pairs = {f"enc/block_{i:03}/{w}": f"enc.{i}.{w}" for i in range(11) for w in ("k", "q")}
    assert texts(found(pairs)) == {("enc/block_{b:03}/{part:k|q}", "enc.{b}.{part}")}


def test_only_the_numbers_that_would_take_others_are_listed():
    pairs = {f"conv{c}_{i}/w": f"layer{c - 1}.conv{i}.w" for c in (2, 3, 4, 5) for i in (1, 2)}
    others = [f"conv{c}_0/w" for c in (2, 3, 4)]
    assert texts(found(pairs, others)) == {("conv{c}_{i:1|2}/w", "layer{c-1}.conv{i}.w")}


def test_a_folder_of_which_nothing_is_used_is_dropped_as_one():
    others = ["net/aux/conv/w", "net/aux/conv/b", "net/aux/w", "net/conv/unused"]
    result = found({"net/conv/w": "conv.weight"}, others)
    dropped = [line for line in result.yaml.splitlines() if "nothing in the target" in line]
    assert [line.split('"')[1] for line in dropped] == ["net/aux/**", "net/conv/unused"]


def test_constants_of_several_shapes_are_made_by_shape():
    rng = np.random.default_rng(0)
    ours, theirs = {}, {}
    for block, width in ((1, 4), (2, 6)):
        for i in range(3):
            value = rng.standard_normal((2, width))
            ours[f"block{block}/conv_{i}/kernel"] = value
            theirs[f"stages.{block}.{i}.weight"] = value.T
            theirs[f"stages.{block}.{i}.bias"] = np.zeros(width)
    result = infer(converter.from_arrays(ours), converter.from_arrays(theirs))
    assert result.exact, result.yaml
    made = [(make.each.text, make.target.text, make.shape) for make in result.rules.makes]
    assert made == [
        ("block1/conv_{c}/kernel", "stages.1.{c}.bias", (4,)),
        ("block2/conv_{c}/kernel", "stages.2.{c}.bias", (6,)),
    ]
