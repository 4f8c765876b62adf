"""Mappings that write themselves: exact where there are values, honest where there are names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import converter
from converter.inference import infer
from converter.ops import OPS
from converter.tensors import TensorSpec
from tests.cli import checkpoints

REAL = Path(__file__).resolve().parents[2] / "shared" / "real"
TRAINED = {"vgg16/fasterrcnn-pytorch", "vgg16/default-fasterrcnn"}


def vgg16(mapping):
    arrays = checkpoints.trained() if mapping in TRAINED else checkpoints.slim()
    if mapping == "vgg16/default-fasterrcnn":  # older names of what is trained
        weights = {n: a for n, a in arrays.items() if not n.endswith(("Momentum", "Variable"))}
        source = converter.mapping(mapping).inverse()(converter.from_arrays(weights))
    else:
        source = converter.from_arrays(arrays)
    return source, converter.mapping(mapping)(source)


def check(source, target, most_rules):
    """The mapping is exact, complete, planned clean, and short."""
    found = infer(source, target)
    assert found.open == {}
    assert found.exact, found.yaml
    made = found.port(source)
    rows = list(converter.diff(made, target))
    assert all(row.equal for row in rows)
    assert {row.name for row in rows} == set(target)
    assert len(found.rules.rules) <= most_rules, found.yaml
    return found


SHIPPED = ("fasterrcnn-pytorch", "slim-fasterrcnn", "slim-torchvision")


@pytest.mark.parametrize("name", [f"vgg16/{name}" for name in SHIPPED])
def test_the_shipped_mappings_are_found_again(name):
    source, target = vgg16(name)
    written = len(converter.mapping(name).rules.rules)
    found = check(source, target, 2 * written)
    back = converter.Checkpoint({n: source[n] for n in source if n in used(found.port, source)})
    check(target, back, 2 * written + 2)


def used(port, source):
    return {name for step in port.plan(source).steps for name in step.sources}


def resnet(rng):  # noqa: C901 - as the model is
    """TF-Slim's names of a small ResNet, and torchvision's."""
    tf, torch = {}, {}

    def conv(ours, theirs, shape):
        value = rng.standard_normal(shape, dtype="f4")
        tf[f"{ours}/weights"] = value
        torch[f"{theirs}.weight"] = value.transpose(3, 2, 0, 1)

    def norm(ours, theirs, width):
        for a, b in (
            ("gamma", "weight"),
            ("beta", "bias"),
            ("moving_mean", "running_mean"),
            ("moving_variance", "running_var"),
        ):
            value = rng.standard_normal(width, dtype="f4")
            tf[f"{ours}/BatchNorm/{a}"] = torch[f"{theirs}.{b}"] = value
        torch[f"{theirs}.num_batches_tracked"] = np.zeros((), "i8")

    conv("resnet/conv1", "conv1", (7, 7, 3, 8))
    norm("resnet/conv1", "bn1", 8)
    width = 8
    for block in (1, 2, 3):
        for unit in (1, 2):
            ours, theirs = f"resnet/block{block}/unit_{unit}", f"layer{block}.{unit - 1}"
            for nth, kernel in enumerate((1, 3, 1), 1):
                out = 4 * block if nth < 3 else 8 * block
                conv(f"{ours}/conv{nth}", f"{theirs}.conv{nth}", (kernel, kernel, width, out))
                norm(f"{ours}/conv{nth}", f"{theirs}.bn{nth}", out)
                width = out
            if unit == 1:
                conv(f"{ours}/shortcut", f"{theirs}.downsample.0", (1, 1, 8, 8 * block))
                norm(f"{ours}/shortcut", f"{theirs}.downsample.1", 8 * block)
    tf["resnet/logits/weights"] = rng.standard_normal((1, 1, width, 5), dtype="f4")
    torch["fc.weight"] = tf["resnet/logits/weights"][0, 0].T
    tf["global_step"] = np.array(7, "i8")
    for name in [name for name in tf if name.endswith(("weights", "gamma", "beta"))]:
        tf[f"{name}/Momentum"] = rng.standard_normal(tf[name].shape, dtype="f4")
    return converter.from_arrays(tf), converter.from_arrays(torch)


def test_a_resnet_becomes_a_dozen_rules():
    source, target = resnet(np.random.default_rng(0))
    found = check(source, target, 16)
    assert "{unit" in found.yaml or "{u" in found.yaml
    assert "group: optimizer_slots" in found.yaml
    assert "group: counters" in found.yaml
    assert "num_batches_tracked" in found.yaml
    assert found.yaml.count("each: ") <= 4


def test_a_resnet_by_names_alone():
    source, target = resnet(np.random.default_rng(0))
    found = infer(source, target.specs)
    assert found.guessed
    assert not found.exact
    made = {s.target: s for s in found.port.plan(source).steps}
    right = infer(source, target).port.plan(source)
    good = sum(
        made[step.target].sources == step.sources for step in right.steps if step.target in made
    )
    assert good >= 0.9 * len(right.steps)
    assert "guessed" in found.yaml


def specs(*shapes):
    """Float tensors, by name and shape."""
    return {name: TensorSpec(shape, np.dtype("f4")) for name, shape in shapes}


def test_a_guess_takes_moving_averages_and_says_so():
    source = specs(
        ("a/kernel", (4, 6)),
        ("a/kernel/ExponentialMovingAverage", (4, 6)),
        ("b/kernel", (6, 2)),
    )
    found = infer(source, specs(("x.weight", (6, 4)), ("y.weight", (2, 6))))
    steps = {step.target: step.sources for step in found.port.plan(source).steps}
    assert steps["x.weight"] == ("a/kernel/ExponentialMovingAverage",)
    assert found.uncertain == {"x.weight"}
    assert "# guessed, uncertain: the moving average" in found.yaml


@pytest.mark.parametrize("lost", ["first", "last", "both"])
def test_a_guess_is_not_certain_where_one_side_has_more(lost):
    """Three layers alike and a head; nothing says which of them the other side lacks."""
    blocks = [(f"enc/layer_{i}/{word}", (8, 8)) for i in range(3) for word in ("att", "mlp")]
    target = specs(*((name.replace("/", "."), shape) for name, shape in blocks), ("head", (8, 3)))
    gone = {"first": blocks[:1], "last": blocks[-1:], "both": blocks[:2]}[lost]
    source = specs(*(block for block in blocks if block not in gone), ("out", (8, 3)))
    found = infer(source, target)
    steps = {step.target: step.sources for step in found.port.plan(source).steps}
    assert steps["head"] == ("out",)
    assert "head" not in found.uncertain
    assert steps.keys() - {"head"} <= found.uncertain


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("conv1.weight", (8, 3, 5, 5)),  # colours
        ("rnn.weight_hh_l0", (32, 8)),  # gates
        ("square.weight", (8, 8)),
    ],
)
def test_what_no_shape_shows_is_uncertain(name, shape):
    source = specs((f"net/{name.split('.')[0]}/kernel", (*shape[2:], *shape[1::-1])))
    found = infer(source, specs((name, shape)))
    assert found.uncertain == {name}
    assert "uncertain: no shape shows the order of the axes" in found.yaml


def test_a_bias_before_a_batch_norm_moves_into_its_mean():
    vectors = "gamma", "beta", "moving_mean", "moving_variance"
    source = specs(
        ("c1_conv/kernel", (3, 3, 4, 8)),
        ("c1_conv/bias", (8,)),
        *((f"c1_bn/{word}", (8,)) for word in vectors),
    )
    words = "weight", "bias", "running_mean", "running_var"
    target = specs(("conv1.weight", (8, 4, 3, 3)), *((f"bn1.{word}", (8,)) for word in words))
    found = infer(source, target)
    steps = {step.target: step for step in found.port.plan(source).steps}
    assert steps["bn1.running_mean"].sources == ("c1_bn/moving_mean", "c1_conv/bias")
    assert found.uncertain == {"bn1.running_mean"}
    values = {name: np.full(spec.shape, 2.0, "f4") for name, spec in source.items()}
    values["c1_conv/bias"] += 1
    made = found.port(converter.from_arrays(values))
    assert made["bn1.running_mean"].numpy().tolist() == [-1.0] * 8


def bert(rng, layers=3, d=8):
    ours, theirs = {}, {}
    for i in range(layers):
        qkv = [rng.standard_normal((d, d), dtype="f4") for _ in "qkv"]
        for word, value in zip(("query", "key", "value"), qkv, strict=True):
            ours[f"bert/encoder/layer_{i}/attention/self/{word}/kernel"] = value
            ours[f"bert/encoder/layer_{i}/attention/self/{word}/bias"] = np.zeros(d, "f4")
        theirs[f"h.{i}.attn.in_proj_weight"] = np.concatenate([v.T for v in qkv])
        ln = f"bert/encoder/layer_{i}/output/LayerNorm"
        ours[f"{ln}/gamma"] = theirs[f"h.{i}.ln.weight"] = np.ones(d, "f4")
        ours[f"{ln}/beta"] = theirs[f"h.{i}.ln.bias"] = np.zeros(d, "f4")
    ours["bert/embeddings/word_embeddings"] = rng.standard_normal((30, d), dtype="f4")
    theirs["wte.weight"] = ours["bert/embeddings/word_embeddings"]
    return converter.from_arrays(ours), converter.from_arrays(theirs)


def test_query_key_and_value_are_joined_and_cut():
    source, target = bert(np.random.default_rng(1))
    found = infer(source, target)
    assert found.exact
    assert "concat:" in found.yaml
    back = infer(target, source)
    assert back.exact
    assert "split:" in back.yaml


def test_equal_tensors_are_told_apart_by_names():
    source, target = bert(np.random.default_rng(1))
    found = infer(source, target)
    sources = {step.target: step.sources for step in found.port.plan(source).steps}
    for i in range(3):
        ln = f"bert/encoder/layer_{i}/output/LayerNorm"
        assert sources[f"h.{i}.ln.weight"] == (f"{ln}/gamma",)
        assert sources[f"h.{i}.ln.bias"] == (f"{ln}/beta",)
    assert "the names decide" in found.yaml


@pytest.mark.skipif("reorder" not in OPS, reason="the language cannot say it")
def test_gates_in_another_order_negation_and_a_forget_bias():
    rng = np.random.default_rng(0)
    ours, theirs = {}, {}
    for i in range(3):
        kernel = rng.standard_normal((5, 4 * 6), dtype="f4")
        bias = rng.standard_normal(4 * 6, dtype="f4")
        gates = kernel.reshape(5, 4, 6)[:, [0, 2, 1, 3]].reshape(5, 24)
        shifted = bias.copy()
        shifted[12:18] += np.float32(1)
        ours |= {f"rnn/cell_{i}/kernel": kernel, f"rnn/cell_{i}/bias": bias}
        theirs |= {f"lstm.{i}.weight_ih": gates.T, f"lstm.{i}.bias_ih": shifted}
    ours["sign"] = rng.standard_normal(7)
    theirs["minus"] = -ours["sign"]
    source, target = converter.from_arrays(ours), converter.from_arrays(theirs)
    found = infer(source, target)
    assert found.open == {}, found.yaml
    assert found.exact, found.yaml
    assert "reorder" in found.yaml
    assert "negate" in found.yaml
    assert "add" in found.yaml
    assert len(found.rules.rules) == 3, found.yaml


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize(("ours", "theirs"), [(1e-3, 1e-5), (1e-6, 1e-3)])
@pytest.mark.parametrize(("shifted", "op"), [("running_var", "epsilon"), ("running_mean", "add")])
def test_what_is_added_to_a_variance_is_said_as_epsilons(shifted, op, ours, theirs, dtype):
    scale, bias, mean, variance = np.abs(
        np.random.default_rng(0).standard_normal((4, 9)).astype(dtype)
    )
    source = {"gamma": scale, "beta": bias, "moving_mean": mean, "moving_variance": variance}
    target = {"weight": scale, "bias": bias, "running_mean": mean, "running_var": variance}
    target[shifted] = target[shifted] + np.asarray(ours - theirs, dtype)
    found = infer(
        converter.from_arrays({f"bn/{name}": array for name, array in source.items()}),
        converter.from_arrays({f"bn.{name}": array for name, array in target.items()}),
    )
    assert found.exact, found.yaml
    (moved,) = (op for rule in found.rules.rules for op in rule.ops)
    assert moved.name == op
    if op == "epsilon":
        assert (moved.source, moved.to) == (ours, theirs)


def test_what_is_not_there_is_said():
    source = converter.from_arrays({"a": np.arange(6.0), "b": np.arange(3.0)})
    target = converter.from_arrays({"x": np.arange(6.0), "y": np.array([5.0, 1.0, 9.0])})
    found = infer(source, target)
    assert not found.complete
    assert list(found.open) == ["y"]
    assert "# Not found" in found.yaml
    assert found.exact  # as far as it goes


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_renaming_and_permuting_is_found(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    count = data.draw(st.integers(1, 6))
    order = data.draw(st.permutations(range(3)))
    ours = {f"net/block_{i}/w": rng.standard_normal((2, 3, 4)) for i in range(count)}
    start = data.draw(st.integers(0, 3))
    theirs = {
        f"m.{i + start}.weight": value.transpose(order) for i, value in enumerate(ours.values())
    }
    check(converter.from_arrays(ours), converter.from_arrays(theirs), 1)


@pytest.mark.skipif(not (REAL / "dtln").is_dir(), reason="the real weights are not here")
def test_dtln_from_keras_to_torch():
    expected = json.loads((REAL / "expected/dtln_keras-h5__lhwcv-pth.json").read_text())
    with (
        converter.open(REAL / "dtln/keras/model.h5") as keras,
        converter.open(REAL / "dtln/torch/model.pth") as torch,
    ):
        found = infer(keras, torch)
        assert found.exact, found.yaml
        steps = {step.target: step for step in found.port.plan(keras).steps}
        assert set(expected) <= set(steps)
        for name, entry in expected.items():
            if "zeros_like" not in entry["expr"]:
                assert steps[name].sources == tuple(entry["src"])
        assert len(found.rules.rules) <= 16, found.yaml


@pytest.mark.skipif(not (REAL / "dtln").is_dir(), reason="the real weights are not here")
def test_dtln_from_a_saved_model_to_keras():
    expected = json.loads((REAL / "expected/dtln_savedmodel__keras-h5.json").read_text())
    with (
        converter.open(REAL / "dtln/savedmodel/variables/variables") as saved,
        converter.open(REAL / "dtln/keras/model.h5") as keras,
    ):
        found = infer(saved, keras)
        assert found.exact, found.yaml
        steps = {step.target: step for step in found.port.plan(saved).steps}
        assert set(expected) <= set(steps)
        for name, entry in expected.items():
            (source,) = steps[name].sources
            assert source == entry["src"][0] + "/.ATTRIBUTES/VARIABLE_VALUE"
