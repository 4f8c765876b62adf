"""What each command does when all is well, option by option."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import click
import numpy as np
import pytest

from converter import cli, formats, language
from tests import oracles, vgg16
from tests.cli import checkpoints
from tests.cli.checkpoints import DATA, FC6, MAPPING

FASTER = "vgg16/slim-fasterrcnn"


def names(result):
    return [row["name"] for row in json.loads(result.out)["tensors"]]


# ── inspect ──────────────────────────────────────────────────────────────────────────────────


def test_inspect_lists_names_dtypes_shapes_and_bytes(converter):
    lines = converter("inspect", "slim.ckpt").out.splitlines()
    assert lines[0].split() == ["name", "dtype", "shape", "bytes"]
    row = next(line for line in lines if line.startswith(FC6))
    assert row.split() == [FC6, "float32", "[7,", "7,", "16,", "128]", "401.4", "kB"]
    assert lines[-1] == "tf-v1: 34 tensors, 542.2 kB"


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["vgg_16/fc6/*"], ["vgg_16/fc6/biases", FC6]),
        (["vgg_16/fc{n}/biases"], [f"vgg_16/fc{n}/biases" for n in (6, 7, 8)]),
        (["**conv5_3/**"], ["vgg_16/conv5/conv5_3/biases", "vgg_16/conv5/conv5_3/weights"]),
        (["global_step", "*/mean_rgb"], ["global_step", "vgg_16/mean_rgb"]),
        (["*"], ["global_step"]),
    ],
    ids=str,
)
def test_inspect_match(patterns, expected, converter):
    options = [word for pattern in patterns for word in ("--match", pattern)]
    result = converter("inspect", "slim.ckpt", *options, "--format", "json")
    assert sorted(names(result)) == expected


def test_inspect_match_that_fits_nothing_says_so(converter):
    result = converter("inspect", "slim.ckpt", "--match", "fc6")
    assert result.err == "no name fits\n"


def test_inspect_tree(converter):
    lines = converter("inspect", "slim.ckpt", "--tree", "--match", "vgg_16/fc{n}/*").out.split("\n")
    assert [line.split("  ")[0].rstrip() or line.strip().split()[0] for line in lines[1:3]] == [
        "vgg_16/",
        "fc6/",
    ]
    assert lines[3].startswith("    biases   float32  [128]")
    assert sum(line.strip() == "vgg_16/" for line in lines) == 1


def test_inspect_stats(converter, folder):
    values = np.array([[1, 2], [3, 6]], np.float16)
    arrays = {"a": values, "empty": values[:0], "flag": np.array([True, False])}
    checkpoints.write(folder / "few.pt", arrays)
    lines = converter("inspect", "few.pt", "--stats").out.splitlines()
    assert lines[0].split()[-4:] == ["min", "max", "mean", "std"]
    assert lines[1].split()[-4:] == ["1", "6", "3", "1.871"]
    assert lines[2].split()[-2:] == ["0", "B"]
    assert lines[3].split()[-4:] == ["0", "1", "0.5", "0.5"]


def test_inspect_stats_in_pieces_are_those_of_the_whole(converter, monkeypatch):
    # The command has the name of its module.
    monkeypatch.setattr(sys.modules["converter.cli.inspect"], "PIECE", 1000)
    rows = json.loads(converter("inspect", "slim.pt", "--stats", "--format", "json").out)["tensors"]
    arrays = checkpoints.slim()
    for row in rows:
        values = arrays[row["name"]].astype(np.float64)
        assert row["min"] == values.min()
        assert row["max"] == values.max()
        assert row["mean"] == pytest.approx(values.mean(), rel=1e-9, abs=1e-12)
        assert row["std"] == pytest.approx(values.std(), rel=1e-9)


@pytest.mark.parametrize(
    "given", ["slim-v2.ckpt", "slim-v2.ckpt.index", f"slim-v2.ckpt{DATA}", "checkpoint", "."]
)
def test_a_tensorflow_checkpoint_by_any_of_its_names(given, converter, folder):
    for path in folder.iterdir():
        if not path.name.startswith("slim-v2"):
            path.unlink()
    (folder / "checkpoint").write_text('model_checkpoint_path: "slim-v2.ckpt"\n')
    assert len(names(converter("inspect", given, "--format", "json"))) == 34


# ── show ─────────────────────────────────────────────────────────────────────────────────────


def test_show_prints_the_spec_statistics_and_a_corner(converter):
    lines = converter("show", "slim.ckpt", "vgg_16/fc7/weights").out.splitlines()
    assert lines[0] == "vgg_16/fc7/weights  float32 [1, 1, 128, 128]  65.5 kB"
    assert lines[1].startswith("min ")
    assert len(lines) < 12


def test_show_writes_npy(converter, folder):
    result = converter("show", "slim.ckpt", FC6, "-o", "fc6.npy")
    assert result.err == "wrote fc6.npy\n"
    assert np.array_equal(np.load(folder / "fc6.npy"), checkpoints.slim()[FC6])
    before = checkpoints.listing(folder)
    assert converter("show", "slim.ckpt", "global_step", "-o", "fc6.npy").code == 4
    assert checkpoints.listing(folder) == before
    assert converter("show", "slim.ckpt", "global_step", "-o", "fc6.npy", "--overwrite").code == 0
    assert np.load(folder / "fc6.npy") == checkpoints.slim()["global_step"]


def test_show_prints_strings(converter, folder):
    checkpoints.write(folder / "text.ckpt", {"words": np.array([b"some", b"words"], object)})
    assert "some" in converter("show", "text.ckpt", "words").out


# ── plan ─────────────────────────────────────────────────────────────────────────────────────


def test_plan_is_a_ledger(converter, folder):
    before = checkpoints.listing(folder)
    result = converter("plan", "slim.ckpt", "-m", MAPPING)
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0] == "vgg16/slim-torchvision: tf-slim vgg_16 → torchvision vgg16"
    assert lines[1] == "source: 34 tensors, 542.2 kB    target: 32 tensors, 542.2 kB"
    assert lines[2] == "mapped 32  dropped 2  made 0"
    assert "  global_step      a training counter" in lines
    assert checkpoints.listing(folder) == before


def test_plan_all_lists_every_step_with_its_ops(converter):
    lines = converter("plan", "slim.ckpt", "-m", MAPPING, "--all").out.splitlines()
    step = next(line for line in lines if line.startswith("  vgg_16/conv1/conv1_1/weights"))
    assert "→  features.0.weight" in step
    assert "float32 [2, 3, 3, 3]" in step
    assert step.endswith("rearrange h w i o -> o i h w")
    assert "… and" not in "".join(lines)


def test_plan_reads_no_values(converter, folder):
    checkpoints.flip(folder / "slim-v2.ckpt.data-00000-of-00001", checkpoints.slim()[FC6])
    assert converter("plan", "slim-v2.ckpt", "-m", MAPPING).code == 0


def test_plan_states_the_memory(converter):
    first = converter("plan", "slim.ckpt", "-m", MAPPING)
    assert "memory: about " in first.out
    found = converter("plan", "slim.ckpt", "--max-memory", "128MiB", "--format", "json")
    assert json.loads(found.out)["peak_memory"] <= 128 << 20


# ── convert ──────────────────────────────────────────────────────────────────────────────────


def by_hand(arrays):
    """Slim's tensors as torchvision's, in plain NumPy: the two tables are in the same order."""
    ours = [name for name in arrays if name.endswith(("/weights", "/biases"))]
    table = vgg16.torchvision(vgg16.TINY)
    return {
        theirs: arrays[name].transpose(3, 2, 0, 1).reshape(shape)
        if arrays[name].ndim == 4
        else arrays[name]
        for name, (theirs, (shape, _)) in zip(ours, table.items(), strict=True)
    }


@pytest.mark.parametrize("source", ["slim.ckpt", "slim-v2.ckpt", "slim.pt", "slim.safetensors"])
@pytest.mark.parametrize("target", ["out.pt", "out.safetensors", "out.ckpt"])
def test_convert_through_a_mapping(source, target, converter, folder):
    result = converter("convert", source, target, "-m", MAPPING)
    assert (result.code, result.out) == (0, "")
    assert result.err.startswith(f"wrote {target}: 32 tensors, 542.2 kB, ")
    assert checkpoints.equal(checkpoints.read(folder / target), by_hand(checkpoints.slim()))


@pytest.mark.parametrize("style", ["tf-v1", "tf-v2", "torch", "safetensors"])
def test_convert_without_a_mapping_changes_the_format_only(style, converter, folder):
    assert converter("convert", "slim.ckpt", "plain", "--to", style).code == 0
    assert checkpoints.equal(checkpoints.read(folder / "plain"), checkpoints.slim())


def test_reverse_is_the_way_back(converter, folder):
    assert converter("convert", "slim.ckpt", "there.pt", "-m", MAPPING).code == 0
    assert converter("convert", "there.pt", "back.ckpt", "-m", MAPPING, "--reverse").code == 0
    dropped = {"global_step", "vgg_16/mean_rgb"}
    expected = {name: a for name, a in checkpoints.slim().items() if name not in dropped}
    assert checkpoints.equal(checkpoints.read(folder / "back.ckpt"), expected)
    assert converter("verify", "there.pt", "back.ckpt", "-m", MAPPING, "--reverse").code == 0


def test_only_converts_a_part(converter, folder):
    arguments = "-m", MAPPING, "--only", "vgg_16/fc{n}/weights", "--only", "features.0.*"
    assert converter("convert", "slim.ckpt", "part.pt", *arguments).code == 0
    found = checkpoints.read(folder / "part.pt")
    kept = {f"classifier.{k}.weight" for k in (0, 3, 6)} | {"features.0.weight", "features.0.bias"}
    expected = {name: a for name, a in by_hand(checkpoints.slim()).items() if name in kept}
    assert checkpoints.equal(found, expected)


def test_drop_leaves_out_even_all_that_a_rule_matches(converter, folder):
    arguments = "-m", MAPPING, "--drop", "vgg_16/fc6/*"
    result = converter("convert", "slim.ckpt", "part.pt", *arguments)
    assert result.code == 0, result.err
    found = checkpoints.read(folder / "part.pt")
    assert {"classifier.0.weight", "classifier.0.bias"}.isdisjoint(found)
    assert len(found) == 30
    plan = converter("plan", "slim.ckpt", *arguments)
    assert "  vgg_16/fc6/weights  --drop" in plan.out


def test_a_drop_that_fits_nothing_says_so(converter):
    result = converter("plan", "slim.ckpt", "-m", MAPPING, "--drop", "vgg_16/fc9/*")
    assert result.code == 0
    assert "--drop 'vgg_16/fc9/*': no name fits" in result.err


def test_scopes_are_prefixes_of_either_side(converter, folder):
    scoped = "convert", "slim.ckpt", "my.ckpt", "--target-scope", "my/"
    assert converter(*scoped).code == 0
    found = checkpoints.read(folder / "my.ckpt")
    assert set(found) == {f"my/{name}" for name in checkpoints.slim()}
    scope = "--source-scope", "my/", "-m", MAPPING
    assert converter("convert", "my.ckpt", "out.pt", *scope).code == 0
    assert checkpoints.equal(checkpoints.read(folder / "out.pt"), by_hand(checkpoints.slim()))


def test_names_outside_the_source_scope_are_left_alone(converter, folder):
    arrays = {f"my/{name}": array for name, array in checkpoints.slim().items()}
    arrays["other"] = np.zeros(3, np.float32)
    checkpoints.write(folder / "both.pt", arrays)
    arguments = "-m", MAPPING, "--source-scope", "my/", "--target-scope", "net."
    assert converter("convert", "both.pt", "out.safetensors", *arguments).code == 0
    found = checkpoints.read(folder / "out.safetensors")
    expected = {f"net.{name}": a for name, a in by_hand(checkpoints.slim()).items()}
    assert checkpoints.equal(found, expected)
    assert converter("verify", "both.pt", "out.safetensors", *arguments).code == 0


FLAT = """\
mapping: 1
name: test/flat
rules:
  - {source: "vgg_16/conv{b}/conv{b}_{k}/{part:word}", target: "conv{b}_{k}.{part}"}
  - source: vgg_16/fc{n}/weights
    target: fc{n}.weights
    ops: [rearrange: i o -> o i]
  - {source: "vgg_16/fc{n}/biases", target: "fc{n}.biases"}
"""


def test_a_chain_is_one_mapping_after_the_other(converter, folder):
    (folder / "flat.yaml").write_text(FLAT)
    chain = "-m", FASTER, "-m", "flat.yaml"
    assert converter("convert", "slim.ckpt", "chained.pt", *chain).code == 0
    assert converter("convert", "slim.ckpt", "first.ckpt", "-m", FASTER).code == 0
    assert converter("convert", "first.ckpt", "second.pt", "-m", "flat.yaml").code == 0
    first, second = (checkpoints.read(folder / name) for name in ("chained.pt", "second.pt"))
    assert checkpoints.equal(first, second)
    assert converter("verify", "slim.ckpt", "second.pt", *chain).code == 0
    assert converter("convert", "second.pt", "back.ckpt", *chain, "--reverse").code == 0
    dropped = "global_step", "vgg_16/mean_rgb", "vgg_16/fc8/*"
    drops = [word for name in dropped for word in ("--drop", name)]
    assert converter("verify", "slim.ckpt", "back.ckpt", *drops).code == 0


def test_only_in_a_chain_chooses_by_the_first_mapping(converter, folder):
    (folder / "flat.yaml").write_text(FLAT)
    arguments = "-m", FASTER, "-m", "flat.yaml", "--only", "vgg_16/fc{n}/*"
    assert converter("convert", "slim.ckpt", "part.pt", *arguments).code == 0
    found = checkpoints.read(folder / "part.pt")
    assert set(found) == {f"fc{n}.{part}" for n in (6, 7) for part in ("weights", "biases")}


def test_a_chain_stops_at_the_first_mapping_that_does_not_fit(converter):
    result = converter("plan", "slim.ckpt", "-m", MAPPING, "-m", MAPPING)
    assert result.code == 1
    assert result.out.count("vgg16/slim-torchvision:") == 2
    assert "no rule takes 'features.0.weight'" in result.err


def test_sizes_can_be_set(converter, folder):
    (folder / "heads.yaml").write_text(
        "mapping: 1\n"
        "sizes: {heads: 2}\n"
        "rules:\n"
        "  - {source: w, target: w, ops: [rearrange: (heads d) i -> heads d i]}\n"
    )
    checkpoints.write(folder / "w.pt", {"w": np.arange(24, dtype=np.float32).reshape(12, 2)})
    for size, shape in (([], (2, 6, 2)), (["--size", "heads=4"], (4, 3, 2))):
        done = converter("convert", "w.pt", "o.pt", "-m", "heads.yaml", *size, "--overwrite")
        assert done.code == 0
        assert checkpoints.read(folder / "o.pt")["w"].shape == shape


def test_convert_names_what_it_cannot_convert(converter, folder, monkeypatch):
    opened = formats.open_checkpoint

    def with_more(path, **options):
        return dataclasses.replace(opened(path, **options), unsupported={"epoch": "an int"})

    monkeypatch.setattr(formats, "open_checkpoint", with_more)
    result = converter("convert", "slim.pt", "out.safetensors")
    assert "not a tensor, not converted: epoch: an int" in result.err
    assert "not a tensor: epoch: an int" in converter("inspect", "slim.pt").out


def test_overwrite_replaces_the_whole_checkpoint(converter, folder):
    assert converter("convert", "slim.ckpt", "trained.ckpt", "--overwrite").code == 0
    assert checkpoints.equal(checkpoints.read(folder / "trained.ckpt"), checkpoints.slim())


def test_the_same_source_gives_the_same_bytes(converter, folder):
    for suffix in (".pt", ".safetensors"):
        for stem in ("a", "b"):
            assert converter("convert", "slim.ckpt", f"{stem}{suffix}", "-m", MAPPING).code == 0
        assert (folder / f"a{suffix}").read_bytes() == (folder / f"b{suffix}").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "status"),
    [
        (("slim.ckpt", "out.pt", "-m", MAPPING), 0, "converted"),
        (("slim.ckpt", "slim.pt"), 4, "failed"),
        (("missing.ckpt", "out.pt"), 3, "failed"),
        (("slim.ckpt", "out.pt", "-m", "vgg16/fasterrcnn-pytorch"), 1, "failed"),
        (("slim.ckpt", "out.pt", "-m", "no-such-mapping"), 3, "failed"),
    ],
    ids=str,
)
def test_the_report_is_written_on_success_and_on_failure(
    arguments, code, status, converter, folder
):
    assert converter("convert", *arguments, "--report", "report.json").code == code
    report = json.loads((folder / "report.json").read_text())
    assert report["status"] == status
    assert report["source"] == arguments[0]
    assert report["target"] == arguments[1]
    assert report["schema_version"] == 1
    if status == "converted":
        assert len(report["plans"][0]["steps"]) == report["tensors"] == 32
    else:
        assert report["error"]
        assert report["code"]
    if code == 1:
        assert len(report["diagnostics"]) == 9


def test_a_report_replaces_a_report_and_nothing_else(converter, folder):
    for _ in range(2):
        done = converter("convert", "slim.ckpt", "o.pt", "--overwrite", "--report", "r.json")
        assert done.code == 0
    before = checkpoints.listing(folder)
    assert converter("convert", "slim.ckpt", "p.pt", "--report", "slim.pt").code == 4
    assert checkpoints.listing(folder) == before


# ── verify ───────────────────────────────────────────────────────────────────────────────────


def test_verify_finds_one_changed_value(converter, folder):
    assert converter("convert", "slim.ckpt", "port.pt", "-m", MAPPING).code == 0
    right = converter("verify", "slim.ckpt", "port.pt", "-m", MAPPING)
    assert right.err == "port.pt is right: 32 tensors, 542.2 kB, equal bit for bit\n"
    arrays = checkpoints.read(folder / "port.pt")
    arrays["classifier.3.weight"][17, 5] += np.float32(0.25)
    checkpoints.write(folder / "port.pt", arrays)
    result = converter("verify", "slim.ckpt", "port.pt", "-m", MAPPING)
    assert result.code == 1
    assert "classifier.3.weight  values  1 of 16384 values differ, by 0.25 at most" in result.out
    assert "first at [17, 5]" in result.out
    assert result.out.endswith("1 of 32 tensors differ\n")


def test_verify_finds_a_transposition_that_no_shape_shows(converter, folder):
    assert converter("convert", "slim.ckpt", "port.pt", "-m", MAPPING).code == 0
    arrays = checkpoints.read(folder / "port.pt")
    arrays["classifier.3.weight"] = arrays["classifier.3.weight"].T
    checkpoints.write(folder / "port.pt", arrays)
    result = converter("verify", "slim.ckpt", "port.pt", "-m", MAPPING)
    assert result.code == 1
    assert "classifier.3.weight  values" in result.out


def test_verify_with_only_compares_a_part_of_a_larger_checkpoint(converter, folder):
    result = converter("verify", "slim.ckpt", "trained.ckpt", "-m", FASTER)
    assert ", only in the target" in result.out
    only = "-m", FASTER, "--only", "vgg_16/fc{n}/weights"
    result = converter("verify", "slim.ckpt", "trained.ckpt", *only)
    rows = [line.split()[0] for line in result.out.splitlines()[:-1]]
    assert sorted(rows) == [FC6, "vgg_16/fc7/weights"]
    arrays = checkpoints.trained()
    slim = checkpoints.slim()
    arrays[FC6] = slim[FC6].reshape(-1, 128)
    arrays["vgg_16/fc7/weights"] = slim["vgg_16/fc7/weights"][0, 0]
    checkpoints.write(folder / "trained.ckpt", arrays)
    assert converter("verify", "slim.ckpt", "trained.ckpt", *only).code == 0


def test_verify_under_a_scope_leaves_the_rest_of_the_target_alone(converter, folder):
    arrays = {f"my/{name}": array for name, array in checkpoints.slim().items()}
    checkpoints.write(folder / "both.pt", arrays | {"other": np.zeros(3, np.float32)})
    scope = "--target-scope", "my/"
    assert converter("verify", "slim.ckpt", "both.pt", *scope).code == 0
    checkpoints.write(folder / "both.pt", arrays | {"my/other": np.zeros(3, np.float32)})
    assert converter("verify", "slim.ckpt", "both.pt", *scope).code == 1


ORACLES = [
    ("torch", "port.pt", "torch"),
    ("torch", "port.safetensors", "torch"),
    ("safetensors", "port.safetensors", "safetensors"),
    ("tensorflow", "port.ckpt", "tensorflow"),
    ("keras", "port.weights.h5", "keras"),
]


@pytest.mark.oracle
@pytest.mark.parametrize(("framework", "target", "package"), ORACLES)
def test_verify_with_a_framework(framework, target, package, converter):
    if oracles.missing(package, "safetensors"):
        pytest.skip(f"{package} is not installed")
    assert converter("convert", "slim.ckpt", target, "-m", MAPPING).code == 0
    arguments = "verify", "slim.ckpt", target, "-m", MAPPING, "--with", framework
    result = converter(*arguments)
    assert result.code == 0, result
    assert result.err.endswith(f", equal bit for bit, and as {framework} reads it\n")


KERAS = """
import keras, numpy
L = keras.layers
inside = keras.Sequential([L.Input((4,)), L.Dense(3, name="a")], name="inside")
model = keras.Sequential([L.Input((6, 6, 2)), L.Conv2D(4, 3), L.BatchNormalization(),
    L.GlobalAveragePooling2D(), inside], name="m")
model.compile("adam", "mse")
model.optimizer.build(model.trainable_variables)
for variable in (*model.weights, *model.optimizer.variables):
    variable.assign(numpy.random.default_rng(0).integers(0, 100, variable.shape))
for name in ("m.h5", "m.keras"):
    model.save(name)
"""


@pytest.mark.oracle
def test_keras_loads_what_we_wrote(converter, folder):
    """A model with one inside and an optimizer, through ours and back to Keras."""
    if oracles.missing("keras", "jax"):
        pytest.skip("keras, or jax for its quickest backend, is not installed")
    quiet = os.environ | {"KERAS_BACKEND": "numpy"}
    subprocess.run([sys.executable, "-c", KERAS], check=True, env=quiet, capture_output=True)
    for name in ("m.h5", "m.keras"):
        target = f"out-{name}"
        assert converter("convert", name, target).code == 0
        result = converter("verify", name, target, "--with", "keras")
        assert result.code == 0, result
        assert result.err.endswith(", and as keras reads it\n")


@pytest.mark.oracle
def test_keras_finds_no_layers_in_the_names_of_torch(converter):
    if oracles.missing("keras"):
        pytest.skip("keras is not installed")
    assert converter("convert", "slim.ckpt", "port.h5", "-m", MAPPING).code == 0
    result = converter("verify", "slim.ckpt", "port.h5", "-m", MAPPING, "--with", "keras")
    assert result.code == 1
    assert "classifier.0.bias (as keras reads it)  missing" in result.out


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("framework", "target"), [("torch", "slim.safetensors"), ("safetensors", "slim.pt")]
)
def test_a_file_that_the_framework_does_not_accept(framework, target, converter):
    """Ours is content with it, the framework is not: that is what it is asked for."""
    if oracles.missing("torch", "safetensors"):
        pytest.skip("torch or safetensors is not installed")
    if framework == "torch":  # a safetensors file under torch's suffix
        shutil.move(target, "other.pt")
        target = "other.pt"
    result = converter("verify", "slim.ckpt", target, "--with", framework)
    assert result.code == 3
    assert f"error[SRC300]: {target}: {framework} cannot load it: " in result.err
    assert "Traceback" not in result.err


def test_a_framework_that_sees_something_else(converter, folder, monkeypatch):
    """A witness that lies stands for a framework that reads other values than we do."""
    witness = folder / "witness.py"
    witness.write_text(
        "import json\n"
        "print(json.dumps({'global_step': "
        "{'shape': [], 'dtype': 'int64', 'digest': 'x'}, 'more': {}}))\n"
    )
    run = subprocess.run

    def lying(command, **options):
        return run([sys.executable, str(witness)], **options)

    monkeypatch.setattr("converter.oracles.subprocess.run", lying)
    if oracles.missing("safetensors"):
        monkeypatch.setattr("importlib.util.find_spec", lambda _: True)
    arguments = "verify", "slim.ckpt", "slim.safetensors", "--with", "safetensors"
    result = converter(*arguments)
    assert result.code == 1
    assert "global_step (as safetensors reads it)" in result.out
    assert "more (as safetensors reads it)" in result.out
    assert f"{FC6} (as safetensors reads it)" in result.out


# ── mappings, formats, help ──────────────────────────────────────────────────────────────────


def test_mappings_ls_names_every_file(converter):
    result = converter("mappings", "ls")
    assert [line.split()[0] for line in result.out.splitlines()] == language.shipped_names()


@pytest.mark.parametrize("name", language.shipped_names())
def test_mappings_show_prints_a_file_to_start_from(name, converter, folder):
    text = converter("mappings", "show", name).out
    (folder / "mine.yaml").write_text(text)
    assert language.load(folder / "mine.yaml").name == name


def test_formats_lists_what_is_written(converter):
    rows = json.loads(converter("formats", "--format", "json").out)
    assert {row["name"] for row in rows} >= {"tf-v1", "tf-v2", "torch", "safetensors"}
    shown = converter("formats").out
    assert all(row["name"] in shown and row["title"] in shown for row in rows)


def commands(group, path=()):
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


@pytest.mark.parametrize("path", [path for path, _ in commands(cli.cli)], ids=" ".join)
def test_every_command_and_option_has_help(path, converter):
    command = dict(commands(cli.cli))[path]
    assert command.help
    for option in command.params:
        assert isinstance(option, click.Argument) or option.help, option.name
    result = converter(*path, "--help")
    assert result.code == 0
    assert result.out.startswith(f"Usage: converter {' '.join(path)}")
    assert converter(*path, "-h").out == result.out


def test_the_module_is_the_command(folder):
    done = subprocess.run(
        [sys.executable, "-m", "converter", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("converter, version ")
