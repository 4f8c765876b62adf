"""Which shipped mapping fits a checkpoint: what the table of conversions says, found again."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from converter.language.catalogue import entries
from converter.suggest import Fit, suggest
from converter.tensors import Checkpoint, LazyTensors, TensorSpec, from_arrays
from tests import manifests
from tests.conversions import Conversion, conversions, without

ROWS = conversions()
FIRST = list({row.mapping: row for row in reversed(ROWS)}.values())  # one for each mapping


def headers(specs: Mapping[str, TensorSpec]) -> Checkpoint:
    """A checkpoint whose values cannot be read."""

    def read(name: str) -> None:
        raise AssertionError(f"the value of {name} was read")

    return Checkpoint(LazyTensors(specs, read))


def wanted(fits: list[Fit], row: Conversion, *, reverse: bool) -> Fit:
    found = [fit for fit in fits if (fit.name, fit.reverse) == (row.mapping, reverse)]
    assert found, [fit.name for fit in fits]
    return found[0]


def check_found(row: Conversion) -> None:
    fits = suggest(headers(manifests.load(row.source)))
    assert fits == sorted(fits, key=lambda fit: fit.rank)
    fit = wanted(fits, row, reverse=False)
    assert not fit.plan.errors
    told = {size: number for size, number in fit.sizes.items() if size not in fit.assumed}
    assert told.items() <= {**told, **row.sizes}.items()
    assert not fits[0].plan.errors  # so the first one fits, too


def check_found_backward(row: Conversion) -> None:
    fits = suggest(headers(without(manifests.load(row.target), row.stays)))
    fit = wanted(fits, row, reverse=True)
    assert not fit.plan.errors
    told = {size: number for size, number in fit.sizes.items() if size not in fit.assumed}
    assert told.items() <= {**told, **row.sizes}.items()


@pytest.mark.parametrize("row", FIRST, ids=str)
def test_the_mapping_is_found_by_the_source(row):
    check_found(row)


@pytest.mark.parametrize("row", [row for row in FIRST if not row.one_way], ids=str)
def test_the_mapping_is_found_by_the_target(row):
    check_found_backward(row)


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_every_size_is_found(row):
    check_found(row)
    if not row.one_way:
        check_found_backward(row)


def test_nothing_fits_what_nobody_knows():
    assert suggest(from_arrays({"a/strange/name": [1.0], "another": [2.0]})) == []
    assert suggest(from_arrays({})) == []


def test_a_mapping_that_nearly_fits_comes_after_one_that_does():
    specs = manifests.load("slim-vgg_16")
    fits = suggest(headers(specs))
    assert [fit.name for fit in fits][:2] == ["vgg16/slim-torchvision", "vgg16/slim-fasterrcnn"]
    assert [bool(fit.plan.errors) for fit in fits] == sorted(bool(f.plan.errors) for f in fits)


def test_a_size_that_names_tell_is_known_and_another_is_assumed():
    """torchvision's names say nothing of the depth that slim's names will have."""
    source, target = manifests.load("slim-resnet_v1_101"), manifests.load("torchvision-resnet101")
    there, back = (
        next(fit for fit in suggest(headers(specs)) if fit.name == "resnet/slim-torchvision")
        for specs in (source, target)
    )
    assert (there.sizes, there.assumed) == ({"depth": 101}, ())
    assert (back.reverse, back.sizes, back.assumed) == (True, {"depth": 50}, ("depth",))


def test_some_names_of_its_own_are_problems_and_no_obstacle():
    specs = dict(manifests.load("slim-vgg_16"))
    specs["vgg_16/mine/weights"] = specs["vgg_16/fc8/weights"]
    first = suggest(headers(specs))[0]
    assert first.name == "vgg16/slim-torchvision"
    assert [problem.tensor for problem in first.plan.errors] == ["vgg_16/mine/weights"]


def test_the_list_is_that_of_the_compiled_mappings():
    for entry in entries():
        rules = entry.rules({})
        if rules is not None:  # all but those whose sizes must be given
            models = entry.model("source"), entry.model("target")
            assert (entry.name, entry.about) == (rules.name, rules.about)
            assert models == (rules.source_model, rules.target_model)
