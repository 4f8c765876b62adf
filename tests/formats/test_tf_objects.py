"""Object-based checkpoints and SavedModel folders, against live models and graphs by hand."""

from __future__ import annotations

import functools
import json
import re
import shutil
import time

import numpy as np
import pytest

from converter import cli, formats
from converter.engine import save
from converter.errors import (
    CorruptFileError,
    LimitError,
    UnrepresentableError,
    UnsupportedError,
)
from converter.formats import _tf_objects, tf_v2
from converter.formats._protobuf import message, number
from converter.formats._tf_objects import GRAPH, GRAPH_METADATA, TEXTS_METADATA, Objects
from converter.tensors import from_arrays
from tests.formats.conformance import differences, make, read
from tests.oracles.tf_objects import keras

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


def node(children=(), attributes=(), slots=()):
    """A TrackableObject, with every field written out."""
    parts = [message(1, number(1, place) + message(2, edge.encode())) for edge, place in children]
    parts += [
        message(2, message(1, name.encode()) + message(2, full.encode()) + message(3, key.encode()))
        for name, full, key in attributes
    ]
    parts += [
        message(3, number(1, variable) + message(2, name.encode()) + number(3, slot))
        for variable, name, slot in slots
    ]
    return message(1, b"".join(parts))


def variable(full, path):
    return node(attributes=[("VARIABLE_VALUE", full, path + VALUE)])


# A layer that hangs on two edges, a cycle, a name with both characters that are escaped.
SMALL = b"".join(
    [
        node([("layer-1", 1), ("layer_with_weights-0", 1), ("variables", 2), ("root", 0)]),
        node([("kernel", 3), ("up", 0), ("a.b/c", 4)]),
        node([("0", 3)]),
        variable("conv/kernel", "layer_with_weights-0/kernel"),
        variable("conv/odd", "layer_with_weights-0/a..b.Sc"),
    ]
)
KERNEL = "layer_with_weights-0/kernel" + VALUE
ODD = "layer_with_weights-0/a..b.Sc" + VALUE


def write(path, arrays, graph=None, **metadata):
    if graph is not None:
        metadata |= _tf_objects.packed(graph, {})
    return save(from_arrays(arrays, metadata=metadata), path, format="tf-v2")


@pytest.fixture
def small(tmp_path):
    """A checkpoint with the graph `SMALL`: its prefix."""
    arrays = {KERNEL: make("float32", (2, 3)), ODD: make("int64", ())}
    write(tmp_path / "small", arrays, SMALL)
    return tmp_path / "small"


def with_graph(path, graph, arrays=None):
    """A checkpoint whose graph is any string: written as the tensor that it is."""
    text = np.empty((), object)
    text[()] = graph
    save(from_arrays({GRAPH: text, **(arrays or {"w": make("int8", (2,))})}), path, format="tf-v2")
    return path


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


def test_the_graph_is_no_tensor(small):
    with formats.open_checkpoint(small) as checkpoint:
        assert list(checkpoint) == [ODD, KERNEL]
        assert checkpoint.unsupported == {
            GRAPH: "the graph of TensorFlow's objects; kept as metadata"
        }
        assert checkpoint.metadata == _tf_objects.packed(SMALL, {})


def test_aliases(small):
    with formats.open_checkpoint(small) as checkpoint:
        assert dict(checkpoint.aliases) == {
            KERNEL: (
                "conv/kernel",
                "layer_with_weights-0/kernel",
                "layer-1/kernel",
                "variables/0",
            ),
            ODD: ("conv/odd", "layer_with_weights-0/a..b.Sc", "layer-1/a..b.Sc"),
        }
        assert len(checkpoint.aliases) == 2
        below = checkpoint.under("layer_with_weights-0")
        assert below.aliases["kernel" + VALUE][0] == "conv/kernel"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("key", [ODD, KERNEL]),
        ("full_name", ["conv/odd", "conv/kernel"]),
        ("object", ["layer_with_weights-0/a..b.Sc", "layer_with_weights-0/kernel"]),
    ],
)
def test_other_names(small, names, expected):
    with formats.open_checkpoint(small, names=names) as checkpoint:
        assert list(checkpoint) == expected
        assert checkpoint[expected[1]].spec.shape == (2, 3)
        assert names == "key" or checkpoint.aliases[expected[1]][0] == KERNEL


def test_names_that_a_format_does_not_have(small, tmp_path):
    with pytest.raises(UnsupportedError, match=r"no such names: 'short'(?s:.*)full_name, object"):
        formats.open_checkpoint(small, names="short")
    save(from_arrays({"w": make("int8", (2,))}), tmp_path / "x.npz")
    with pytest.raises(UnsupportedError, match=r"a tensor has one name"):
        formats.open_checkpoint(tmp_path / "x.npz", names="key")


def test_a_checkpoint_without_a_graph_has_one_name_for_each(tmp_path):
    write(tmp_path / "x", {"conv/kernel": make("float32", (2,))})
    with formats.open_checkpoint(tmp_path / "x", names="full_name") as checkpoint:
        assert list(checkpoint) == ["conv/kernel"]
        assert (dict(checkpoint.aliases), checkpoint.metadata) == ({}, {})


def test_a_name_of_two_is_nobodys(tmp_path):
    graph = node([("a", 1), ("b", 2), ("c", 3)]) + b"".join(
        variable(full, path) for full, path in (("Variable", "a"), ("Variable", "b"), ("w", "c"))
    )
    arrays = {path + VALUE: make("float32", (2,)) for path in "abc"}  # all the same values
    write(tmp_path / "x", {**arrays, "w": make("int8", ())}, graph)
    with formats.open_checkpoint(tmp_path / "x", names="full_name") as checkpoint:
        assert sorted(checkpoint) == ["a" + VALUE, "b" + VALUE, "c" + VALUE, "w"]


def test_names_that_act_on_a_terminal_are_not_offered(tmp_path):
    graph = node([("a", 1), ("\x1b[2J", 1)]) + variable("\x1b[2J", "a")
    write(tmp_path / "x", {"a" + VALUE: make("float32", (2,))}, graph)
    with formats.open_checkpoint(tmp_path / "x") as checkpoint:
        assert dict(checkpoint.aliases) == {"a" + VALUE: ("a",)}


def test_what_keras_3_exports_twice_is_there_once(tmp_path):
    graph = node([("variables", 1), ("_all_variables", 2)])
    graph += node([("0", 3), ("1", 4)]) + node([("0", 5), ("1", 6)])
    paths = ["variables/0", "variables/1", "_all_variables/0", "_all_variables/1"]
    names = ["conv/kernel", "conv/bias", "conv/bias", "conv/kernel"]
    graph += b"".join(map(variable, names, paths))
    kernel, bias = make("float32", (2, 3)), make("float32", (3,))
    arrays = {path + VALUE: kernel if "kernel" in n else bias for path, n in zip(paths, names)}  # noqa: B905
    write(tmp_path / "same", arrays, graph)
    with formats.open_checkpoint(tmp_path / "same", names="full_name") as checkpoint:
        assert sorted(checkpoint) == ["conv/bias", "conv/kernel"]
        assert checkpoint.unsupported["_all_variables/1" + VALUE] == (
            f"stored a second time; the first is 'variables/0{VALUE}'"
        )
    arrays["_all_variables/1" + VALUE] = kernel + 1
    write(tmp_path / "differ", arrays, graph)
    with formats.open_checkpoint(tmp_path / "differ", names="full_name") as checkpoint:
        assert sorted(checkpoint) == [
            "_all_variables/1" + VALUE,
            "conv/bias",
            "variables/0" + VALUE,
        ]


def test_texts_about_objects_are_metadata_and_go_back(tmp_path):
    texts = {"layer/.ATTRIBUTES/OBJECT_CONFIG_JSON": b'{"n": 1}', "w/.ATTRIBUTES/odd": b"\xff"}
    arrays = {name: np.array(None) for name in texts}
    for name, text in texts.items():
        arrays[name][()] = text
    arrays["w" + VALUE] = make("float32", (2,))
    arrays["text" + VALUE] = np.array(b"a variable", object)
    arrays["table/.ATTRIBUTES/table-keys"] = np.array([b"p", b"q"], object)
    graph = node([("w", 1), ("layer", 2)]) + variable("w", "w")
    graph += node(attributes=[("OBJECT_CONFIG_JSON", "", "layer/.ATTRIBUTES/OBJECT_CONFIG_JSON")])
    with_graph(tmp_path / "x", graph, arrays)
    with formats.open_checkpoint(tmp_path / "x") as checkpoint:
        assert sorted(checkpoint) == [
            "table/.ATTRIBUTES/table-keys",
            "text" + VALUE,
            "w" + VALUE,
        ]
        assert dict(checkpoint.unsupported) == {
            GRAPH: "the graph of TensorFlow's objects; kept as metadata",
            "layer/.ATTRIBUTES/OBJECT_CONFIG_JSON": "a text that describes an object; kept as"
            " metadata",
            "w/.ATTRIBUTES/odd": "a text that describes an object; not kept, since it is not valid"
            " UTF-8",
        }
        part = from_arrays({"w" + VALUE: arrays["w" + VALUE]}, metadata=checkpoint.metadata)
        save(part, tmp_path / "again", format="tf-v2")
        first = checkpoint.metadata
    with formats.open_checkpoint(tmp_path / "again") as checkpoint:
        assert checkpoint.metadata == first


def test_what_is_too_large_to_be_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(tf_v2, "MAX_GRAPH", 100)
    with_graph(tmp_path / "x", SMALL)
    with formats.open_checkpoint(tmp_path / "x", names="object") as checkpoint:
        assert list(checkpoint) == ["w"]
        assert "too large to be kept" in checkpoint.unsupported[GRAPH]
        assert (dict(checkpoint.metadata), dict(checkpoint.aliases)) == ({}, {})


def test_a_graph_that_is_no_string_is_a_tensor(tmp_path):
    save(from_arrays({GRAPH: make("int8", (2,))}), tmp_path / "x", format="tf-v2")
    assert list(read(tmp_path / "x")) == [GRAPH]


# ── hostile graphs ───────────────────────────────────────────────────────────────────────────────

CHAIN = b"".join(node([("next", n + 1)]) for n in range(20_000)) + variable("w", "w")
MESH = b"".join(node([(f"e{n}", n) for n in range(300)]) for _ in range(300))
LONG = b"".join(node([("x" * 5000, n + 1)]) for n in range(40)) + variable("w", "w")


@pytest.mark.parametrize(
    ("graph", "error", "message"),
    [
        (node([("a", 7)]), CorruptFileError, "an object that it does not have"),
        (node([("a", 2**63)]), CorruptFileError, "an object that it does not have"),
        (node(slots=[(2**40, "m", 0)]), CorruptFileError, "an object that it does not have"),
        (node(slots=[(0, "m", 1)]), CorruptFileError, "an object that it does not have"),
        (SMALL[:-3], CorruptFileError, "does not fit"),
        (b"\x0a\x05\x0a\x03\x0a", CorruptFileError, "does not fit|cut off"),
        (b"\x07\x07", CorruptFileError, "wire type"),
        (b"\x18\x00" * 1_100_000, LimitError, "object graph is too large"),
        (message(1, b"\x0a\x00" * 1_100_000), LimitError, "object graph is too large"),
    ],
)
def test_hostile_graphs(graph, error, message, tmp_path):
    path = with_graph(tmp_path / "x", graph)
    started = time.process_time()
    with formats.open_checkpoint(path) as checkpoint:  # the tensors are sound
        assert list(checkpoint) == ["w"]
        with pytest.raises(error, match=message):
            list(checkpoint.aliases)
    with pytest.raises(error, match=message):
        formats.open_checkpoint(path, names="full_name")
    assert time.process_time() - started < 8  # seconds, for both


@pytest.mark.parametrize("graph", [CHAIN, MESH, LONG, b"", node([("self", 0)]), b"\x50\x01"])
def test_graphs_without_an_end_have_few_aliases(graph, tmp_path):
    path = with_graph(tmp_path / "x", graph)
    started = time.process_time()
    with formats.open_checkpoint(path) as checkpoint:
        assert dict(checkpoint.aliases) == {}
    assert time.process_time() - started < 2


def test_paths_are_few_and_short():
    levels = [node([(f"{edge}{n}", n + 1) for edge in "abc"]) for n in range(10)]
    key = "w" + VALUE
    objects = Objects(b"".join([*levels, variable("w", "w")]), [key], lambda _: None)
    assert len(objects.aliases[key]) == 1 + _tf_objects.MAX_PATHS
    deep = b"".join(node([("d", n + 1)]) for n in range(40)) + variable("w", "w")
    assert Objects(deep, [key], lambda _: None).aliases == {key: ("w",)}


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


def opened(path):
    with formats.open_checkpoint(path) as checkpoint:
        return checkpoint, dict(checkpoint.aliases)


def graph_of(path):
    return tf_v2._open(path)[1]


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_the_graph_travels_with_the_metadata(suffix, small, tmp_path):
    for source, target in ((small, f"x{suffix}"), (tmp_path / f"x{suffix}", "back.ckpt")):
        with formats.open_checkpoint(source) as checkpoint:
            save(checkpoint, tmp_path / target)
    for part in (".index", ".data-00000-of-00001"):
        assert (tmp_path / f"small{part}").read_bytes() == (
            tmp_path / f"back.ckpt{part}"
        ).read_bytes()


def test_names_without_objects_get_no_graph(tmp_path):
    write(tmp_path / "x", {"conv/kernel": make("float32", (2,))}, SMALL)
    assert opened(tmp_path / "x")[0].unsupported == {}


def test_a_graph_is_made_of_keys_alone(tmp_path):
    slot = "layer_with_weights-0/kernel/.OPTIMIZER_SLOT/optimizer/m"
    arrays = {name: make("float32", (2,)) for name in (KERNEL, ODD, slot + VALUE, "plain")}
    write(tmp_path / "x", arrays)
    nodes = graph_of(tmp_path / "x")._graph
    assert [edge for _, edge in nodes[0].children] == ["layer_with_weights-0", "optimizer"]
    assert [edge for _, edge in nodes[1].children] == ["a.b/c", "kernel"]
    (found,) = [slot for each in nodes for slot in each.slots]
    assert nodes[found.variable].attributes[0].key == KERNEL
    assert nodes[found.node].attributes[0].key == slot + VALUE
    assert found.name == "m"
    assert differences(read(tmp_path / "x"), arrays) == []


@pytest.mark.parametrize(
    "metadata",
    [
        {GRAPH_METADATA: "%"},
        {GRAPH_METADATA: "AAAA"},
        {GRAPH_METADATA: "ä"},
        {TEXTS_METADATA: "["},
        {TEXTS_METADATA: '{"a": 1}'},
        {GRAPH_METADATA: ""},
        _tf_objects.packed(variable("other", "other"), {}),
    ],
)
def test_metadata_of_somebody_else(metadata, tmp_path):
    write(tmp_path / "plain", {KERNEL: make("float32", (2,))})
    write(tmp_path / "x", {KERNEL: make("float32", (2,))}, **metadata)
    assert (tmp_path / "x.index").read_bytes() == (tmp_path / "plain.index").read_bytes()


def test_attributes_without_tensors_are_taken_out(tmp_path):
    graph = b"".join(
        [
            node([("w", 1), ("optimizer", 2), ("table", 4)]),
            variable("w", "w"),
            node(slots=[(1, "m", 3)]) + message(9, b"unknown"),
            node(attributes=[("VARIABLE_VALUE", "m", "w/.OPTIMIZER_SLOT/optimizer/m" + VALUE)]),
            node(attributes=[("table", "", "table/.ATTRIBUTES/table")]),
        ]
    )
    keys = np.array([b"p"], object)
    arrays = {"w" + VALUE: make("float32", (2,))}
    arrays |= {f"table/.ATTRIBUTES/table-{part}": keys for part in ("keys", "values")}
    write(tmp_path / "x", arrays, graph)
    nodes = graph_of(tmp_path / "x")._graph
    assert [len(each.attributes) for each in nodes] == [0, 1, 0, 0, 1]
    assert nodes[2].slots == []
    assert nodes[0].children == [(1, "w"), (2, "optimizer"), (4, "table")]
    assert message(9, b"unknown") in graph_of(tmp_path / "x")._data


def test_half_a_table_is_not_restored(tmp_path):
    graph = node([("w", 1), ("table", 2)]) + variable("w", "w")
    graph += node(attributes=[("table", "", "table/.ATTRIBUTES/table")])
    values = make("int64", (2,))
    arrays = {"w" + VALUE: make("int8", ()), "table/.ATTRIBUTES/table-values": values}
    write(tmp_path / "x", arrays, graph)
    assert [len(each.attributes) for each in graph_of(tmp_path / "x")._graph] == [0, 1, 0]
    assert differences(read(tmp_path / "x"), arrays) == []


# ── templates ────────────────────────────────────────────────────────────────────────────────────


def test_a_template_with_other_values(small, tmp_path):
    kernel = make("float32", (2, 3), seed=1)
    source = from_arrays({"layer-1/kernel": kernel}, metadata={"contract": "{}"})
    checkpoint, keys, kept = tf_v2.with_template(source, small)
    assert (keys, kept) == ({"layer-1/kernel": KERNEL}, (ODD,))
    with checkpoint:
        save(checkpoint, tmp_path / "new.ckpt")
    expected = {KERNEL: kernel, ODD: read(small)[ODD]}
    assert differences(read(tmp_path / "new.ckpt"), expected) == []
    assert graph_of(tmp_path / "new.ckpt")._data == SMALL


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"nothing": make("int8", ())}, "the template has no such tensor"),
        ({"conv/kernel": make("float32", (3, 2))}, "the template has another tensor as"),
        ({"conv/kernel": make("float16", (2, 3))}, "the template has another tensor as"),
        (
            {"conv/kernel": make("float32", (2, 3)), KERNEL: make("float32", (2, 3))},
            "two tensors are one of the template",
        ),
    ],
)
def test_what_is_none_of_the_template(arrays, message, small):
    with pytest.raises(UnrepresentableError, match=message):
        tf_v2.with_template(from_arrays(arrays), small)


# ── real and live ────────────────────────────────────────────────────────────────────────────────


def test_a_real_saved_model(shared, tmp_path):
    folder = shared / "real" / "basic-pitch"
    with formats.open_checkpoint(folder, names="full_name") as checkpoint:
        assert {"conv2d_2/bias", "Adam/conv2d_1/bias/v"} <= {*checkpoint}
        assert len([name for name in checkpoint if VALUE in name]) == 8  # `count`s and `total`s
        assert {*checkpoint.aliases} == {*checkpoint}
        save(checkpoint, tmp_path / "x.safetensors")
    program = tmp_path / "saved_model.pb"
    program.touch()
    (tmp_path / "variables").symlink_to(folder / "variables")
    assert differences(read(program), read(folder)) == []


def test_full_names_tell_what_variables_n_are(shared):
    """Layers that are only reached as `variables/N` have the names of the `.h5` of the same net."""
    known = shared / "real" / "expected" / "dtln_savedmodel__keras-h5.json"
    with formats.open_checkpoint(shared / "real" / "dtln" / "savedmodel") as checkpoint:
        for target, facts in json.loads(known.read_text("utf-8")).items():
            full_name, *_ = checkpoint.aliases[facts["src"][0] + VALUE]
            layer, *_, weight = full_name.split("/")
            assert (layer, f"{weight}:0") == (target.split("/")[0], target.split("/")[-1])


KINDS = [
    (2, "weights"),
    (2, "slots"),
    (2, "compiled"),
    (2, "module"),
    (2, "folder"),
    (3, "bare"),
    (3, "compiled"),
    (3, "folder"),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A function that saves a model of a kind, once."""

    @functools.cache
    def model(version, kind):
        path = tmp_path_factory.mktemp("live") / kind
        return version, kind, path, keras(version).save(kind, path)

    return model


def identity(kind):
    return f"keras{kind[0]}-{kind[1]}"


@pytest.fixture(params=KINDS, ids=identity)
def live(request, saved):
    """A model that was saved: version, kind, path of the checkpoint, values by variable."""
    return saved(*request.param)


def prefix(kind, path):
    return path / "variables" / "variables" if kind == "folder" else path


@pytest.mark.oracle
def test_every_number_is_there(live):
    version, kind, path, _ = live
    numbers = {name: array for name, array in read(path).items() if array.dtype != object}
    assert differences(numbers, keras(version).read(prefix(kind, path))) == []


@pytest.mark.oracle
@pytest.mark.parametrize(
    "live", [kind for kind in KINDS if kind[1] != "module"], ids=identity, indirect=True
)
def test_full_names_are_those_of_the_variables(live):
    version, _, path, values = live
    with formats.open_checkpoint(path, names="full_name") as checkpoint:
        found = {name: tensor.numpy() for name, tensor in checkpoint.items()}
    if version == 2:  # no names there for the parts of an optimizer
        found = {name: array for name, array in found.items() if name in values}
        assert len(found) >= 8
        values = {name: array for name, array in values.items() if name in found}
    assert differences({name: found.get(name) for name in values}, values) == []


def changed(path, target, names="key"):
    """Convert to a file that knows nothing of TensorFlow, every float replaced."""
    with formats.open_checkpoint(path, names=names) as checkpoint:
        arrays = {
            name: array * np.float32(0.5) if array.dtype == np.float32 else array
            for name, tensor in checkpoint.items()
            if (array := tensor.numpy()).dtype != object
        }
        save(from_arrays(arrays, metadata=checkpoint.metadata), target)


def halved(values):
    return {
        name: array * np.float32(0.5) if array.dtype == np.float32 else array
        for name, array in values.items()
    }


def by_model(values):
    """Values by names that do not count the optimizers of the process; strings are left out."""
    found = {re.sub(r"^adam(_\d+)?/", "adam/", name): array for name, array in values.items()}
    found.pop("table", None)
    return found


@pytest.mark.oracle
def test_a_live_model_takes_what_went_through_safetensors(live, tmp_path):
    version, kind, path, values = live
    changed(path, tmp_path / "x.safetensors")
    place = tmp_path / "back"
    if kind == "folder":
        shutil.copytree(path, place)
    with formats.open_checkpoint(tmp_path / "x.safetensors") as checkpoint:
        save(checkpoint, prefix(kind, place), format="tf-v2", overwrite=True)
    found = by_model(keras(version).restore(kind, place))
    expected = by_model(halved(values))
    if kind == "folder":  # which has fewer names for what it restored
        assert len(found) >= 8
        expected = {name: array for name, array in expected.items() if name in found}
    assert differences(found, expected) == []


@pytest.mark.oracle
@pytest.mark.parametrize(
    "live",
    [kind for kind in KINDS if kind[1] not in {"folder", "module"}],
    ids=identity,
    indirect=True,
)
def test_a_live_model_takes_a_graph_that_is_made_of_the_keys(live, tmp_path):
    version, kind, path, values = live
    arrays = halved(read(path))
    save(from_arrays(arrays), tmp_path / "made", format="tf-v2")
    found = keras(version).restore(kind, tmp_path / "made")
    assert differences(by_model(found), by_model(halved(values))) == []


@pytest.mark.oracle
def test_a_table_goes_where_strings_do(saved, tmp_path):
    version, kind, path, values = saved(2, "module")
    with formats.open_checkpoint(path) as checkpoint:
        assert checkpoint.unsupported == {
            GRAPH: "the graph of TensorFlow's objects; kept as metadata",
            "iterator/.ATTRIBUTES/ITERATOR_STATE": "variant values are not tensors of numbers",
        }
        save(checkpoint, tmp_path / "x.ckpt")
    found = keras(version).restore(kind, tmp_path / "x.ckpt")
    assert found.pop("table").tolist() == [5, 6, -1]
    assert differences(found, values) == []


@pytest.mark.oracle
def test_keras_2_takes_layers_that_are_counted(tmp_path):
    values = keras(2).save("weights", tmp_path / "live")
    order = ["conv", "norm", "dense"]
    arrays = {}
    for name, array in halved(values).items():
        layer, _, weight = name.partition("/")
        arrays[f"layer_with_weights-{order.index(layer)}/{weight}{VALUE}"] = array
    save(from_arrays(arrays), tmp_path / "made.ckpt")
    found = keras(2).restore("weights", tmp_path / "made.ckpt")
    assert differences(found, halved(values)) == []


@pytest.mark.oracle
@pytest.mark.parametrize(
    "live", [(2, "compiled"), (3, "compiled"), (3, "folder")], ids=identity, indirect=True
)
def test_a_live_model_takes_a_template_with_other_values(live, tmp_path, capsys):
    version, kind, path, values = live
    model = {name: array for name, array in values.items() if not re.match("adam|Adam", name)}
    model = {n: v for n, v in model.items() if n not in {"iteration", "learning_rate"}}
    save(from_arrays(halved(model)), tmp_path / "ported.safetensors")
    place = tmp_path / "back"
    if kind == "folder":
        shutil.copytree(path, place)
    paths = map(str, (tmp_path / "ported.safetensors", prefix(kind, place)))
    options = "--to", "tf-v2", "--overwrite", "--format", "json", "--template", str(path)
    assert cli.run(["convert", *paths, *options]) == 0
    kept = json.loads(capsys.readouterr().out)["kept"]
    assert all("optimizer" in name for name in kept)
    found = by_model(keras(version).restore(kind, place))
    expected = by_model(values | halved(model))
    if kind == "folder":
        expected = {name: array for name, array in expected.items() if name in found}
    assert differences(found, expected) == []
    assert len(found) >= 8
