"""Wrong ports by the hundred: equal is equal, different is different, and the mistake is named."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import pytest

from converter.compare import bits, diff
from converter.layout import View
from converter.symmetry import Explanation, explained
from converter.tensors import Checkpoint, Tensor, from_arrays
from tests.wrong_ports import Port, apply, ports, values

DTYPES = ("float32", "float64", "float16", "bfloat16")
ENOUGH = 0.95  # of all mistakes are named
TUNED = range(500), ("float32",)
MORE = range(2000, 2500), DTYPES
HELD_OUT = range(30000, 30500), DTYPES  # and kinds of mistakes that nothing was tuned for


def explain(port: Port) -> Explanation | None:
    """What `diff` says of the right tensor and the wrong one; it must find them different."""
    first, second = from_arrays({port.name: port.right}), from_arrays({port.name: port.wrong})
    (row,) = explained(list(diff(first, second)), first, second)
    assert not row.equal
    return row.explanation


def names(found: Explanation | None, port: Port) -> bool:
    """Is it the very mistake: do its ops do the same to other values, or do its words say so?"""
    mistake = port.mistake
    if found is None:
        return False
    if mistake.function is not None:
        return re.search(mistake.says, found.text) is not None
    if not all(found.ops):
        return False
    dtype = str(port.right.dtype)
    other = values(np.random.default_rng(10**6), port.name, port.right.shape, dtype)
    made, wanted = (apply(ops, other).astype("f8") for ops in (found.ops, mistake.ops))
    close = 1e-7 if port.right.itemsize >= 4 else 1e-2
    return made.shape == wanted.shape and np.allclose(made, wanted, rtol=1e-5, atol=close)


def unnamed(some: Iterable[Port]) -> tuple[int, list[str]]:
    """How many there are, and those whose mistake is not named."""
    count, missed = 0, []
    for port in some:
        found = explain(port)
        count += 1
        if not names(found, port):
            missed.append(f"{port.layer}, {port.kind} {port.right.shape}: {found}")
        if found and found.exact and found.ops and port.mistake.function is None:
            np.testing.assert_array_equal(apply(found.ops, port.right), port.wrong)
    return count, missed


@pytest.mark.parametrize(("seeds", "dtypes"), [TUNED, MORE])
def test_the_mistakes_of_some_ports_are_named(seeds, dtypes):
    count, missed = unnamed(ports(seeds[:90], dtypes))
    assert len(missed) <= (1 - ENOUGH) * count, missed


def test_mistakes_of_kinds_that_were_held_out_are_named():
    count, missed = unnamed(ports(HELD_OUT[0][:60], DTYPES, held_out=True))
    assert len(missed) <= (1 - ENOUGH) * count, missed


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "dtypes"), [TUNED, MORE])
def test_the_mistakes_of_five_hundred_ports_are_named(seeds, dtypes):
    count, missed = unnamed(ports(seeds, dtypes))
    assert count == 500
    assert len(missed) <= (1 - ENOUGH) * count, missed


@pytest.mark.slow
def test_five_hundred_mistakes_of_which_some_kinds_were_held_out_are_named():
    count, missed = unnamed(ports(*HELD_OUT, held_out=True))
    assert count == 500
    assert len(missed) <= (1 - ENOUGH) * count, missed


def laid_out(array: np.ndarray, random: np.random.Generator) -> Tensor:
    """The same tensor, whose elements lie in another order, some of them reversed."""
    order = [int(k) for k in random.permutation(array.ndim)]
    axis = int(random.integers(array.ndim))
    stored = np.ascontiguousarray(np.flip(array, axis).transpose(order))
    back = View.of(stored).transpose([order.index(k) for k in range(array.ndim)])
    return Tensor(back.flip(axis))


def test_equal_is_equal_however_it_lies():
    for port in ports(range(40000, 40250), DTYPES, held_out=True):
        random = np.random.default_rng(len(port.name))
        second = Checkpoint({port.name: laid_out(port.right, random)})
        pair = from_arrays({port.name: port.right}), second
        (row,) = explained(list(diff(*pair)), *pair)
        assert row.equal
        assert row.explanation is None
        if port.wrong.shape == port.right.shape:
            (row,) = diff(from_arrays({port.name: port.wrong}), pair[1])
            assert row.status == "values"
            assert row.count == np.count_nonzero(bits(port.wrong) != bits(port.right))
