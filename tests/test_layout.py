"""The algebra of views and the copy kernel, with NumPy as the oracle."""

import itertools
import math
import tracemalloc
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converter import layout
from converter.layout import Computed, Elementwise, Joined, Memory, View, concatenate


class Reads:
    """A storage that only reads: it checks every request, and remembers it."""

    def __init__(self, array):
        self.array = np.ascontiguousarray(array).reshape(-1)
        self.dtype = self.array.dtype
        self.size = self.array.size
        self.requests = []

    def read(self, start, out):
        assert type(start) is int
        assert out.ndim == 1
        assert out.flags.c_contiguous
        assert out.flags.writeable
        assert out.dtype == self.dtype
        assert 0 <= start < start + out.size <= self.size
        self.requests.append((start, out.size))
        out[...] = self.array[start : start + out.size]


class Rows(Reads):
    """A storage that reads rows at one distance, too."""

    def read_rows(self, start, rows, pitch):
        assert rows.ndim == 2
        assert rows.flags.c_contiguous
        assert rows.dtype == self.dtype
        count, length = rows.shape
        assert 0 <= start <= start + (count - 1) * pitch + length <= self.size
        self.requests.append((start, rows.shape, pitch))
        for number, row in enumerate(rows):
            row[...] = self.array[start + number * pitch :][:length]


@pytest.fixture(params=["real", "tiny"])
def tiles(request, monkeypatch):
    """The kernel with its own sizes, and with ones that make a tile of a handful of elements."""
    if request.param == "tiny":
        sizes = {"READ_RUN": 24, "READ_MOST": 32, "GAP": 8, "TILE": 48, "RUN": 12}
        for name, value in {**sizes, "ROW": 3, "PADDING": 1}.items():
            monkeypatch.setattr(layout, name, value)


def negated(block):
    return np.asarray(np.negative(block), block.dtype)  # NumPy's own result is in native byte order


def storages(array):
    """The same elements in every kind of storage."""
    flat = array.reshape(-1)
    half = flat.size // 2
    return {
        "memory": Memory(flat),
        "reads": Reads(flat),
        "rows": Rows(flat),
        "computed": Computed(flat.size, flat.dtype, lambda: flat),
        "joined": Joined(
            [View.of(flat[:half]), View.over(Reads(flat[half:]), (flat.size - half,))]
        ),
        "elementwise": Elementwise(View.over(Reads(flat), flat.shape), negated, flat.dtype),
        "view": View.over(Reads(flat[::-1]), flat.shape).flip(0),
    }


def bottoms(view):
    """The storages that a view reads in the end."""
    storage = view.storage
    if isinstance(storage, Joined):
        return [bottom for part in storage.views for bottom in bottoms(part)]
    inner = storage.view if isinstance(storage, Elementwise) else storage
    return bottoms(inner) if isinstance(inner, View) else [inner]


KINDS = list(storages(np.zeros(2)))
DTYPES = ["f4", "f2", "f8", ">f4", "i1", "u8", "c16", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]


def same(actual, expected):
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    assert actual.flags.c_contiguous
    assert actual.tobytes() == np.ascontiguousarray(expected).tobytes()


@st.composite
def tensors(draw):
    """(view, the array that it must equal, the storage, its elements)."""
    shape = draw(st.lists(st.integers(0, 5) | st.just(1), max_size=5).map(tuple))
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    array = (np.arange(math.prod(shape)) % 101).astype(dtype).reshape(shape)
    kind = draw(st.sampled_from(KINDS))
    storage = storages(array)[kind]
    expected = negated(array) if kind == "elementwise" else array
    view = View.over(storage, shape)
    for _ in range(draw(st.integers(0, 6))):
        view, expected = draw(step(view, expected))
    return view, expected


def factorings(size):
    """Shapes of a size, with ones strewn in."""
    if size == 0:
        return st.lists(st.integers(0, 3), min_size=1, max_size=4).map(
            lambda shape: tuple(shape) if 0 in shape else (*shape, 0)
        )
    divisors = [n for n in range(1, size + 1) if size % n == 0]
    cuts = st.lists(st.sampled_from(divisors), max_size=3).map(sorted)
    return cuts.map(lambda cuts: _chain([1, *cuts, size]))


def _chain(cuts):
    kept = [cuts[0]]
    kept.extend(cut for cut in cuts[1:] if cut % kept[-1] == 0)
    return tuple(b // a for a, b in pairwise(kept))


@st.composite
def step(draw, view, array):
    """One more operation, on the view and on its oracle."""
    name = draw(st.sampled_from(["transpose", "reshape", "flip", "take", "astype", "concatenate"]))
    if name == "reshape":
        shape = draw(factorings(array.size))
        return view.reshape(shape), array.reshape(shape)
    if name == "astype":
        real = ["f4", "f2", "f8", ml_dtypes.bfloat16]
        dtype = np.dtype(draw(st.sampled_from(["c8"] if array.dtype.kind == "c" else real)))
        with np.errstate(over="ignore"):
            return view.astype(dtype), array.astype(dtype)
    if name == "transpose" or array.ndim == 0:
        order = draw(st.permutations(range(array.ndim)))
        return view.transpose(order), array.transpose(order)
    axis = draw(st.integers(0, array.ndim - 1))
    if name == "flip":
        return view.flip(axis), np.flip(array, axis)
    start, stop = sorted(draw(st.tuples(*[st.integers(0, array.shape[axis])] * 2)))
    part, expected = view.take(axis, start, stop), array.take(range(start, stop), axis)
    if name == "take" or array.size > 2000:
        return part, expected
    whole = np.concatenate([expected, array, expected], axis).astype(array.dtype)
    return concatenate([part, view, part], axis), whole


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # it sets constants only
)
@given(st.data())
def test_any_chain_of_operations_reads_as_in_numpy(tiles, data):
    view, expected = data.draw(tensors())
    assert (view.shape, view.dtype) == (expected.shape, expected.dtype)
    assert (view.size, view.ndim, view.nbytes) == (expected.size, expected.ndim, expected.nbytes)
    same(view.numpy(), expected)
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, expected.size)] * 2)))
    out = np.empty(stop - start, view.dtype)
    view.read(start, out)
    same(out, np.ascontiguousarray(expected).reshape(-1)[start:stop])


def check(view, expected):
    """A view equals its oracle, as a whole and in ragged pieces."""
    same(view.numpy(), expected)
    flat = np.ascontiguousarray(expected).reshape(-1)
    for count in (1, 7, max(1, flat.size // 3)):
        for start in range(0, min(flat.size, 5 * count), count):
            out = np.empty(min(count, flat.size - start), view.dtype)
            view.read(start, out)
            same(out, flat[start : start + out.size])


# ── the algebra ──────────────────────────────────────────────────────────────────────────────────


def test_a_merge_of_permuted_axes_is_strides():
    array = np.arange(3 * 3 * 4 * 5, dtype="f4").reshape(3, 3, 4, 5)
    source = Reads(array)
    view = View.over(source, array.shape).transpose((3, 2, 0, 1)).reshape((5, 36))
    assert view.storage is source
    assert view.axes == (((5, 1),), ((4, 5), (9, 20)))
    check(view, array.transpose(3, 2, 0, 1).reshape(5, 36))
    back = view.reshape((5, 4, 3, 3)).transpose((2, 3, 1, 0))
    assert back == View.over(source, array.shape)
    assert back.contiguous


def test_a_reshape_across_permuted_axes_reads_lazily():
    array = np.arange(6, dtype="i4").reshape(2, 3)
    view = View.over(Reads(array), (2, 3)).transpose((1, 0)).reshape((3, 2)).reshape((2, 3))
    assert view.storage.storage.requests == []
    check(view, array.T.reshape(2, 3))
    check(view.transpose((1, 0)).flip(0), array.T.reshape(2, 3).T[::-1])


def test_a_range_across_a_merged_axis():
    array = np.arange(60, dtype="i2").reshape(3, 4, 5)
    merged = View.over(Reads(array), (3, 4, 5)).transpose((2, 1, 0)).reshape((5, 12))
    for start, stop in itertools.combinations(range(13), 2):
        same(merged.take(1, start, stop).numpy(), array.T.reshape(5, 12)[:, start:stop])


@pytest.mark.parametrize("axes", [((2, 0), (3, 4)), ((3, 4), (2, 0)), ((2, 0), (3, 0)), ((4, 0),)])
@pytest.mark.parametrize("kind", KINDS)
def test_an_expanded_axis_repeats(tiles, kind, axes):
    array = np.arange(20, dtype="f4")
    storage = storages(array)[kind]
    source = np.negative(array) if kind == "elementwise" else array
    view = View(storage, 5, tuple((factor,) for factor in axes), storage.dtype)
    strides = [4 * stride for _, stride in axes]
    expected = np.lib.stride_tricks.as_strided(source[5:], [n for n, _ in axes], strides)
    check(view, expected)
    check(view.flip(0).astype("f8"), expected[::-1].astype("f8"))
    check(view.reshape((view.size, 1)), expected.reshape(-1, 1))


def test_operations_read_nothing():
    source = Reads(np.arange(24, dtype="f4"))
    view = View.over(source, (2, 3, 4)).transpose((2, 0, 1)).flip(1).take(0, 1, 3)
    concatenate([view.astype("f8"), view.astype("f8")], 2).reshape((2, 12))
    assert source.requests == []


def test_casts_of_casts_round_every_time():
    array = np.array([1 + 2**-12, 70000, 1e-9])
    view = View.over(Reads(array), (3,)).astype("f2").astype("f4")
    same(view.numpy(), np.array([1, np.inf, 0], "f4"))
    reverse = view.flip(0).astype(ml_dtypes.bfloat16)
    same(reverse.numpy(), np.array([0, np.inf, 1], ml_dtypes.bfloat16))


def test_a_cast_without_a_right_result_warns():
    view = View.of(np.array([np.nan], "f4")).astype("i4")
    with pytest.warns(RuntimeWarning, match="invalid value"):
        view.numpy()
    assert np.isnan(View.of(np.array([np.nan], "f4")).astype("f2").numpy()).all()


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1), (0,), (3, 0, 2)])
def test_shapes_of_one_element_and_of_none(tiles, shape):
    array = np.full(shape, 7, "f4")
    for storage in storages(array).values():
        view = View.over(storage, shape)
        expected = -array if isinstance(storage, Elementwise) else array
        check(view.reshape((*shape, 1)).transpose((len(shape), *range(len(shape)))), expected[None])
        assert view.chunk(1000) == 1
        assert view.contiguous


@pytest.mark.parametrize(
    ("operation", "error", "message"),
    [
        (lambda view: view.transpose((0, 0)), ValueError, r"\(0, 0\) is not an order of 2 axes"),
        (lambda view: view.reshape((7,)), ValueError, r"cannot reshape \(2, 3\) to \(7,\)"),
        (lambda view: view.reshape((-1, 3)), ValueError, r"cannot reshape \(2, 3\) to \(-1, 3\)"),
        (lambda view: view.reshape((-2, -3)), ValueError, "cannot reshape"),
        (lambda view: view.flip(2), IndexError, r"no axis 2 in shape \(2, 3\)"),
        (lambda view: view.flip(-1), IndexError, "no axis -1"),
        (lambda view: view.take(1, 2, 4), IndexError, r"\[2, 4\) is outside of axis 1"),
        (lambda view: view.take(1, 2, 1), IndexError, r"\[2, 1\) is outside of axis 1"),
        (lambda view: view.read(5, np.empty(2, "f4")), IndexError, "outside of 6 elements"),
        (lambda view: view.read(0, np.empty(2, "f8")), ValueError, "array of float32"),
        (lambda view: view.read(0, np.empty((2, 1), "f4")), ValueError, "one-dimensional"),
        (lambda view: view.read(0, np.empty(4, "f4")[::2]), ValueError, "contiguous"),
        (lambda view: View.over(view, (5,)), ValueError, r"6 elements as shape \(5,\)"),
        (lambda view: View.over(view, (-2, -3)), ValueError, r"shape \(-2, -3\)"),
        (lambda view: concatenate([], 0), ValueError, "no views"),
        (lambda view: concatenate([view, view.astype("i4")], 0), ValueError, "float32, int32"),
        (
            lambda view: concatenate([view, view.transpose((1, 0))], 0),
            ValueError,
            r"cannot concatenate shapes \(2, 3\), \(3, 2\) along axis 0",
        ),
    ],
)
def test_mistakes_say_what_is_wrong(operation, error, message):
    view = View.of(np.zeros((2, 3), "f4"))
    with pytest.raises(error, match=message):
        operation(view)


# ── storages ─────────────────────────────────────────────────────────────────────────────────────


def test_memory_is_neither_copied_nor_written():
    array = np.arange(12, dtype="f4").reshape(3, 4)
    view = View.of(array)
    assert np.shares_memory(view.take(0, 1, 3).numpy(), array)
    with pytest.raises(ValueError, match="read-only"):
        view.numpy()[0] = 1
    array.flags.writeable = False
    same(View.of(array).transpose((1, 0)).flip(0).numpy(), array.T[::-1])
    same(View.of(array.T).numpy(), array.T)


def test_computed_once_and_only_when_read():
    calls = []
    storage = Computed(3, "f4", lambda: calls.append(1) or np.arange(3, dtype="f4"))
    view = View.over(storage, (3,)).flip(0)
    assert calls == []
    for _ in range(2):
        same(view.numpy(), np.array([2, 1, 0], "f4"))
    assert calls == [1]


@pytest.mark.parametrize("wrong", [np.zeros(2, "f4"), np.zeros(3, "f8")])
def test_results_are_held_to_their_promise(wrong):
    with pytest.raises(ValueError, match="expected 3 elements of float32, computed"):
        View.over(Computed(3, "f4", lambda: wrong), (3,)).numpy()
    storage = Elementwise(View.of(np.zeros(3, "f4")), lambda block: wrong, "f4")
    with pytest.raises(ValueError, match="expected 3 elements of float32, computed"):
        View.over(storage, (3,)).numpy()


def test_a_function_between_layouts_sees_small_flat_blocks_of_the_cast(tiles):
    array = np.arange(40 * 50, dtype="f4").reshape(40, 50)
    seen = set()

    def half(block):
        seen.add((block.ndim, block.dtype, block.flags.c_contiguous))
        assert block.nbytes <= layout.TILE * 2
        return (block / 2).astype("f4")

    inner = View.over(Reads(array), (40, 50)).transpose((1, 0)).astype("f8")
    view = View.over(Elementwise(inner, half, "f4"), (50, 40)).transpose((1, 0)).flip(1)
    check(view, (array / 2)[:, ::-1].astype("f4"))
    assert seen == {(1, np.dtype("f8"), True)}


def test_pieces_are_read_where_they_are_needed_only(tiles):
    array = np.arange(600, dtype="f4").reshape(20, 30)
    first, second = Reads(array), Reads(array)
    views = [View.over(source, (20, 30)).transpose((1, 0)) for source in (first, second)]
    view = concatenate(views, 1)
    check(view.take(1, 25, 40), np.concatenate([array.T, array.T], 1)[:, 25:40])
    assert first.requests == []
    assert sum(count for _, count in second.requests) < 20 * 600


# ── the kernel ───────────────────────────────────────────────────────────────────────────────────


PERMUTED = [
    ((7, 7, 8, 64), (3, 2, 0, 1)),
    ((3, 3, 16, 32), (3, 2, 0, 1)),
    ((32, 16, 3, 3), (2, 3, 1, 0)),
    ((16, 8, 5, 5), (0, 2, 3, 1)),
    ((64, 48), (1, 0)),
    ((61, 53), (1, 0)),
    ((20, 30, 3), (1, 0, 2)),
    ((2, 3, 4, 5, 6), (4, 2, 0, 3, 1)),
]
STORED = [
    *("?", "i1", "f2", "f4", "f8", "c8", "c16", "g", ">f4", ">i2"),
    *("S3", "U2", "M8[s]", "V3", "V2", "i4,f8", object),
    *(ml_dtypes.bfloat16, ml_dtypes.float8_e5m2, ml_dtypes.float8_e4m3fn, ml_dtypes.int4),
]


def elements(size, dtype):
    if dtype is object:
        return np.array([b"%d" % i for i in range(size)], object)
    if np.dtype(dtype).kind == "V" and np.dtype(dtype).type is np.void:
        raw = np.arange(size * np.dtype(dtype).itemsize) % 251
        return raw.astype("u1").view(dtype)
    small = (np.arange(size) % 8).astype("i8")
    return small.astype(dtype)


@pytest.mark.parametrize("dtype", STORED, ids=str)
@pytest.mark.parametrize("storage", [Memory, Reads])
def test_every_dtype_is_permuted_and_reversed(tiles, storage, dtype):
    array = elements(7 * 5 * 6, dtype).reshape(7, 5, 6)
    view = View.over(storage(array), array.shape).transpose((2, 0, 1)).flip(1)
    expected = np.ascontiguousarray(array.transpose(2, 0, 1)[:, ::-1])
    actual = view.numpy()
    assert actual.dtype == expected.dtype
    assert actual.tolist() == expected.tolist()


@pytest.mark.parametrize("cast", [None, "f8", "f2"])
@pytest.mark.parametrize(("shape", "order"), PERMUTED)
@pytest.mark.parametrize("storage", [Memory, Reads])
def test_permutations_of_weights(tiles, storage, shape, order, cast):
    array = np.arange(math.prod(shape), dtype="f4").reshape(shape)
    view = View.over(storage(array), shape).transpose(order)
    expected = array.transpose(order)
    with np.errstate(over="ignore"):
        expected = expected.astype(cast or "f4")
    check(view.astype(cast or "f4"), expected)
    check(view.flip(0).flip(1).astype(cast or "f4"), expected[::-1, ::-1])


def test_a_plain_run_is_one_read():
    source = Reads(np.arange(1_000_000, dtype="f4"))
    out = np.empty(900_000, "f4")
    View.over(source, (1000, 1000)).read(50_000, out)
    assert source.requests == [(50_000, 900_000)]
    same(out, source.array[50_000:950_000])


def test_rows_are_asked_for_together():
    source = Rows(np.arange(40 * 90_000, dtype="i4"))
    view = View.over(source, (40, 90_000)).take(1, 100, 3_000)
    same(view.numpy(), source.array.reshape(40, 90_000)[:, 100:3_000])
    assert source.requests == [(100, (40, 2_900), 90_000)]


def test_a_permuted_tensor_is_read_once_in_long_runs():
    source = Reads(np.arange(9 * 256 * 512, dtype="f4"))
    view = View.over(source, (3, 3, 256, 512)).transpose((3, 2, 0, 1))
    same(view.numpy(), source.array.reshape(3, 3, 256, 512).transpose(3, 2, 0, 1))
    assert sum(count for _, count in source.requests) == source.size
    assert min(count for _, count in source.requests) * 4 >= layout.READ_RUN


def test_memory_beside_the_result_is_bounded():
    source = Reads(np.ones((1024, 8192), "f4"))
    view = View.over(source, (1024, 8192)).transpose((1, 0)).astype("f8").astype("f4")
    out = np.empty(view.chunk(4 << 20), "f4")
    view.read(0, out)
    tracemalloc.start()
    view.read(out.size, out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20


@pytest.mark.parametrize("nbytes", [1, 100, 1000, 5000, 10**6])
@pytest.mark.parametrize("shape", [(7, 5, 11), (16, 64), (1000,), (3, 1, 997)])
def test_chunks_are_whole_rows_of_at_most_so_many_bytes(shape, nbytes):
    view = View.of(np.zeros(shape, "f4")).transpose(range(len(shape)))
    chunk = view.chunk(nbytes)
    assert chunk >= 1
    assert chunk * 4 <= max(nbytes, 4)


def test_a_chunk_is_a_number_of_leading_rows():
    view = View.of(np.zeros((49, 64, 4096), "f4")).transpose((2, 1, 0))
    assert view.chunk(1 << 20) % (64 * 49) == 0
    assert view.chunk(1 << 20) * 4 > (1 << 20) // 2


def test_expanded_views(tiles):
    array = np.arange(6.0)
    joined = concatenate([View.of(array[:4]), View.of(array[4:])], 0)
    for storage in (Memory(array), Reads(array), joined.storage):
        rows = View(storage, 1, (((500, 0),), ((5, 1),)), array.dtype)
        cube = View(storage, 0, (((3, 2),), ((7, 0),), ((2, 1),), ((4, 0),)), array.dtype)
        one = View(storage, 5, (((9, 0),),), array.dtype)
        for view, wanted in (
            (rows, np.broadcast_to(array[1:], (500, 5))),
            (cube, np.broadcast_to(array.reshape(3, 1, 2, 1), (3, 7, 2, 4))),
            (one, np.full(9, 5.0)),
        ):
            assert np.array_equal(view.numpy(), wanted)
            order = range(view.ndim)[::-1]
            assert np.array_equal(view.transpose(order).numpy(), wanted.transpose(order))
            twice = concatenate([view, view.flip(0)], 0)
            assert np.array_equal(twice.numpy(), np.concatenate([wanted, wanted[::-1]]))
            assert np.array_equal(
                View.over(Elementwise(view, np.negative, "f8"), view.shape).numpy(), -wanted
            )


@settings(max_examples=150, deadline=None)
@given(tensors(), st.integers(1, 4096), st.booleans())
def test_boxes_cover_a_view_once_and_hold_its_elements(case, nbytes, ordered):
    view, expected = case
    flat = expected.reshape(-1)
    found = np.zeros(flat.size, bool)
    for box in view.boxes(nbytes, ordered=ordered):
        out = np.empty(box.size, view.dtype)
        box.read(out)
        rows = box.start + box.pitch * np.arange(box.rows)[:, None] + np.arange(box.length)
        assert not found[rows].any()
        found[rows] = True
        assert out.tobytes() == flat[rows].tobytes()
        assert not (ordered and box.pitch)
    assert found.all()


@settings(max_examples=150, deadline=None)
@given(tensors())
def test_a_loaded_view_has_the_same_elements_in_memory(case):
    view, expected = case
    loaded = view.loaded()
    assert loaded.dtype == view.dtype
    assert loaded.numpy().tobytes() == expected.tobytes()
    assert not [each for each in bottoms(loaded) if isinstance(each, Reads) and each.size]


def test_a_view_is_loaded_by_reading_each_storage_once_and_in_order():
    one, other = (Reads(np.arange(24, dtype="f4")) for _ in range(2))
    halves = [View.over(storage, (4, 6)).transpose((1, 0)) for storage in (one, other)]
    view = concatenate(halves, 1)
    assert not view.in_order
    assert not view.in_memory
    found = view.loaded()
    assert np.array_equal(found.numpy(), np.hstack([np.arange(24.0).reshape(4, 6).T] * 2))
    for storage in (one, other):
        starts = [start for start, _ in storage.requests]
        assert starts == sorted(starts)
        assert sum(size for _, size in storage.requests) == 24
    assert found.in_memory


@settings(max_examples=150, deadline=None)
@given(tensors(), st.integers(1, 512), st.randoms(use_true_random=False))
def test_a_view_is_loaded_in_parts_of_any_size_and_order(case, nbytes, random):
    view, expected = case
    memory = np.full(view.load_nbytes + 16, 0xA5, np.uint8)
    found, loads = view.loading(memory[: view.load_nbytes], nbytes)
    random.shuffle(loads)
    for load in loads:
        load()
    assert found.numpy().tobytes() == expected.tobytes()
    assert (memory[view.load_nbytes :] == 0xA5).all()


def test_parts_of_a_view_read_each_element_once():
    storage = Reads(np.arange(6 * 40 * 100, dtype="f4"))
    view = View.over(storage, (6, 40, 100)).transpose((2, 1, 0))
    _, loads = view.loading(np.empty(view.load_nbytes, np.uint8), 20 * 100 * 4)
    assert len(loads) == 12
    for load in reversed(loads):
        load()
    assert sorted(storage.requests) == [(start, 2000) for start in range(0, 24_000, 2000)]


@pytest.mark.parametrize("columns", [512, 100, 32])
def test_rows_of_a_loaded_view_are_an_odd_number_of_cache_lines_apart(columns):
    view = View.over(Reads(np.arange(64 * columns, dtype="f4")), (64, columns)).transpose((1, 0))
    (_, across), (_, down) = view.loaded().factors
    assert across == 1
    assert down == {512: 528, 100: 112, 32: 32}[columns]  # short ones are not worth it
    assert view.load_nbytes == 64 * down * 4


def test_only_what_a_view_has_is_loaded():
    storage = Reads(np.arange(1000 * 100, dtype="f4"))
    view = View.over(storage, (1000, 100)).take(0, 400, 410).transpose((1, 0))
    assert view.load_nbytes < 2 * view.nbytes
    assert view.loaded().numpy().tobytes() == view.numpy().tobytes()
    assert all(start >= 40_000 and start + size <= 41_000 for start, size in storage.requests)


@settings(max_examples=150, deadline=None)
@given(tensors(), st.integers(1, 4096), st.integers(1, 512))
def test_parts_of_boxes_cover_a_view_once_and_are_read_from_memory(case, nbytes, part):
    view, expected = case
    flat = expected.reshape(-1)
    found = np.zeros(flat.size, bool)
    for box in view.boxes(nbytes):
        loaded = box.view.loaded() if box.size == box.view.size else box.view
        for piece in box.cut(part):
            out = np.empty(piece.size, view.dtype)
            piece._replace(view=loaded).read(out)
            rows = piece.start + piece.pitch * np.arange(piece.rows)[:, None]
            rows = rows + np.arange(piece.length)
            assert out.nbytes <= max(part, view.dtype.itemsize)
            assert not found[rows].any()
            found[rows] = True
            assert out.tobytes() == flat[rows].tobytes()
    assert found.all()


def test_what_is_computed_on_the_way_does_not_change_the_order():
    plain = View.over(Reads(np.arange(24, dtype="f4")), (4, 6))
    negative = View.over(Elementwise(plain, np.negative, "f4"), (24,))
    assert plain.in_order
    assert negative.in_order
    assert negative.astype("f2").in_order
    turned = View.over(Elementwise(plain.transpose((1, 0)), np.negative, "f4"), (24,))
    assert not turned.in_order
    assert not plain.flip(0).in_order


def test_a_permuted_view_is_cut_so_that_its_storage_is_read_once():
    storage = Reads(np.arange(7 * 7 * 64 * 512, dtype="f4"))
    view = View.over(storage, (7, 7, 64, 512)).transpose((3, 2, 0, 1)).reshape((512, 64 * 49))
    boxes = view.boxes(view.nbytes // 8)
    assert len(boxes) == 8
    for box in boxes:
        box.read(np.empty(box.size, "f4"))
    assert sum(size for _, size in storage.requests) == view.size
    assert len(view.boxes(view.nbytes // 8, ordered=True)) >= 8


def test_a_view_in_the_order_of_its_storage_is_cut_into_ranges():
    view = View.of(np.zeros((64, 64), "f4"))
    assert [(box.rows, box.pitch) for box in view.boxes(1024)] == [(1, 0)] * 16
