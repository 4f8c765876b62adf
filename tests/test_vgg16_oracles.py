"""The promises about VGG-16, each held against the real frameworks.

TensorFlow writes the checkpoints, the command converts them, and TensorFlow, TF-Slim, PyTorch and
torchvision say what they see.  What the result should be is worked out here, with NumPy and without
any mapping.  The full-size files exist once for the whole module and are removed as it goes.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests import oracles, vgg16

MISSING = oracles.missing(
    "safetensors", "tensorflow", "tf_keras", "tf_slim", "torch", "torchvision"
)
pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a gigabyte at a time, kept off the disk
ROOM = 8 << 30
IMAGES = 2
TOLERANCE = 1e-4
VERSIONS = {"v1": "1", "v2": "2"}
TARGETS = [(version, suffix) for version in VERSIONS for suffix in (".pt", ".safetensors")]

SLIM_ONLY = {"vgg_16/mean_rgb", "global_step"}
FC8 = {"vgg_16/fc8/weights", "vgg_16/fc8/biases"}
LEFTOVERS = set(vgg16.training_leftovers())
# Every shipped mapping: the tiny checkpoint to start from, and what the mapping drops of it.
BACKWARD = {
    "vgg16/slim-torchvision": ("slim", SLIM_ONLY),
    "vgg16/slim-fasterrcnn": ("slim", SLIM_ONLY | FC8),
    "vgg16/fasterrcnn-pytorch": ("snapshot", LEFTOVERS),
}
THERE_AND_BACK = [
    (mapping, version, suffix, back)
    for mapping in BACKWARD
    for version, suffix, back in (
        ("v1", ".safetensors", "tf-v1"),
        ("v2", ".pt", "tf-v2"),
        ("v1", ".ckpt", "tf-v2"),
    )
]


def converter(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "converter", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def convert(source: Path, target: Path, mapping: str, *options: str) -> None:
    done = converter("convert", source, target, "-m", mapping, *options)
    assert done.returncode == 0, done.stderr


def pair(source: Path, out: Path) -> str:
    return f"{source}={out}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    """A place for gigabytes, in memory when there is enough, gone afterwards."""
    roomy = SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > ROOM
    parent = SHARED_MEMORY if roomy else tmp_path_factory.mktemp("vgg16")
    with tempfile.TemporaryDirectory(prefix="vgg16-", dir=parent) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def checkpoints(folder) -> dict[str, Path]:
    """Full-size slim checkpoints, V1 and V2, written by TensorFlow's Saver; and its readings."""
    paths = {version: folder / f"{version}.ckpt" for version in VERSIONS}
    written = [f"{number}={paths[version]}" for version, number in VERSIONS.items()]
    read = [pair(paths["v1"], folder / "v1.npz"), pair(paths["v2"], folder / "v2.json")]
    oracles.run("tf_saver", "--slim", vgg16.FULL, "--write", *written, "--read", *read)
    return paths


@pytest.fixture(scope="module")
def expected(folder, checkpoints) -> dict[str, str]:
    """Digests of TensorFlow's own reading of both files, transposed with NumPy."""
    reading = folder / "v1.npz"
    with np.load(reading) as values:
        digests = {name: oracles.digest(values[name]) for name in values.files}
        by_hand = torchvision_by_hand(values, vgg16.FULL)
        transposed = {name: oracles.digest(array) for name, array in by_hand}
    reading.unlink()
    assert oracles.load_digests(folder / "v2.json") == digests
    return transposed


def torchvision_by_hand(values: Mapping[str, Any], shrink: int) -> Iterator[tuple[str, Any]]:
    """Slim's tensors as torchvision's, in plain NumPy: the two tables are in the same order."""
    table = vgg16.torchvision(shrink)
    ours = [name for name in vgg16.slim(shrink) if name.endswith(("/weights", "/biases"))]
    for name, (theirs, (shape, _)) in zip(ours, table.items(), strict=True):
        array = values[name]
        yield theirs, array.transpose(3, 2, 0, 1).reshape(shape) if array.ndim == 4 else array


@pytest.fixture(scope="module")
def batch(folder) -> Path:
    path = folder / "images.npz"
    oracles.save_arrays(path, {"images": vgg16.images(IMAGES)})
    return path


@pytest.fixture(scope="module")
def slim_logits(folder, checkpoints, batch) -> dict[str, Any]:
    """TF-Slim's own network, restored from each checkpoint."""
    outs = {version: folder / f"slim-{version}.npz" for version in checkpoints}
    pairs = [pair(path, outs[version]) for version, path in checkpoints.items()]
    oracles.run("tf_slim_vgg16", batch, *pairs)
    return {version: oracles.load_arrays(out)["logits"] for version, out in outs.items()}


@pytest.fixture(scope="module")
def in_torch(folder, checkpoints, batch) -> dict[tuple[str, str], SimpleNamespace]:
    """What PyTorch and torchvision see of the four converted files."""
    files = {(version, suffix): folder / f"{version}{suffix}" for version, suffix in TARGETS}
    for (version, _), file in files.items():
        convert(checkpoints[version], file, "vgg16/slim-torchvision")
    outs = {key: file.with_name(f"{file.name}.npz") for key, file in files.items()}
    oracles.run("torch_vgg16", "logits", batch, *(pair(files[key], outs[key]) for key in files))
    for file in files.values():
        file.unlink()
    return {
        key: SimpleNamespace(
            digests=oracles.load_digests(out.with_suffix(".json")),
            logits=oracles.load_arrays(out)["logits"],
        )
        for key, out in outs.items()
    }


@pytest.mark.parametrize("key", TARGETS, ids="-".join)
def test_every_value_equals_tensorflows_own_reading(key, in_torch, expected):
    assert in_torch[key].digests == expected


@pytest.mark.parametrize("key", TARGETS, ids="-".join)
def test_torchvision_gives_the_logits_of_tf_slim(key, in_torch, slim_logits):
    theirs, ours = slim_logits[key[0]], in_torch[key].logits
    assert theirs.shape == ours.shape == (IMAGES, vgg16.CLASSES)
    difference, size = np.abs(theirs - ours).max(axis=1), np.abs(theirs).max(axis=1)
    assert (size > 1).all()  # sane, so that a relative difference means something
    assert (difference <= TOLERANCE * size).all()


def restored(folder: Path, source: Path, shrink: int) -> tuple[dict[str, str], dict[str, str]]:
    """Digests of tf-faster-rcnn's variables: filled by its own steps, and from our file."""
    ours, outs = folder / "faster-rcnn.ckpt", [folder / "fixed.json", folder / "restored.json"]
    convert(source, ours, "vgg16/slim-fasterrcnn")
    oracles.run("tf_faster_rcnn", shrink, "fix", source, outs[0], "restore", ours, outs[1])
    for file in folder.glob(f"{ours.name}.*"):
        file.unlink()
    fixed, from_ours = map(oracles.load_digests, outs)
    return fixed, from_ours


def test_tf_faster_rcnn_restores_what_its_own_steps_give(folder, checkpoints):
    fixed, from_ours = restored(folder, checkpoints["v1"], vgg16.FULL)
    assert len(fixed) == 30
    assert from_ours == fixed


def test_tiny_tf_faster_rcnn_restores_what_its_own_steps_give(tmp_path, tiny):
    fixed, from_ours = restored(tmp_path, tiny.paths["slim", "v2"], vgg16.TINY)
    assert from_ours == fixed


@pytest.fixture(scope="module")
def tiny(folder) -> SimpleNamespace:
    """Small checkpoints with awkward values, in both versions, and the digests of their values."""
    tables = {
        "slim": vgg16.slim(vgg16.TINY),
        "snapshot": vgg16.faster_rcnn(vgg16.TINY) | vgg16.training_leftovers(vgg16.TINY),
    }
    paths, digests = {}, {}
    for kind, table in tables.items():
        arrays = {name: awkward(array) for name, array in vgg16.arrays(table)}
        oracles.save_arrays(folder / f"{kind}.npz", arrays)
        pairs = [f"{number}={folder}/tiny-{kind}-{v}.ckpt" for v, number in VERSIONS.items()]
        oracles.run("tf_saver", "--arrays", folder / f"{kind}.npz", "--write", *pairs)
        paths |= {(kind, v): folder / f"tiny-{kind}-{v}.ckpt" for v in VERSIONS}
        digests[kind] = {name: oracles.digest(array) for name, array in arrays.items()}
    return SimpleNamespace(paths=paths, digests=digests)


def awkward(array: Any) -> Any:
    """The same with NaNs that carry a payload, a negative zero, infinity and a denormal."""
    if array.dtype == np.float32 and array.size > 100:
        bits = [0x7FC00001, 0xFFC12345, 0x7F800001, 0x80000000, 0xFF800000, 0x00000001]
        array.reshape(-1).view(np.uint32)[-len(bits) :] = bits
    return array


@pytest.fixture(scope="module")
def there_and_back(folder, tiny) -> dict[tuple[str, ...], SimpleNamespace]:
    """Each shipped mapping forward and backward, and the digests of what TensorFlow reads then."""
    results = {}
    for number, key in enumerate(THERE_AND_BACK):
        mapping, version, suffix, back_format = key
        source = tiny.paths[BACKWARD[mapping][0], version]
        there, back = folder / f"there-{number}{suffix}", folder / f"back-{number}.ckpt"
        results[key] = SimpleNamespace(
            forward=converter("convert", source, there, "-m", mapping),
            backward=converter(
                "convert", there, back, "-m", mapping, "--reverse", "--to", back_format
            ),
            back=back,
            digests=folder / f"back-{number}.json",
        )
    arrived = [each for each in results.values() if each.backward.returncode == 0]
    if arrived:
        oracles.run("tf_saver", "--read", *(pair(each.back, each.digests) for each in arrived))
    return results


@pytest.mark.parametrize("key", THERE_AND_BACK, ids="-".join)
def test_backward_returns_the_source_bit_for_bit(key, there_and_back, tiny):
    result, (kind, dropped) = there_and_back[key], BACKWARD[key[0]]
    assert result.forward.returncode == 0, result.forward.stderr
    assert result.backward.returncode == 0, result.backward.stderr
    kept = {name: text for name, text in tiny.digests[kind].items() if name not in dropped}
    assert oracles.load_digests(result.digests) == kept


def test_a_snapshot_becomes_what_pytorch_faster_rcnns_own_arithmetic_gives(tmp_path, folder, tiny):
    files = [tmp_path / "snapshot.pt", tmp_path / "snapshot.safetensors"]
    outs = [file.with_suffix(f"{file.suffix}.json") for file in files]
    for file in files:
        convert(tiny.paths["snapshot", "v2"], file, "vgg16/fasterrcnn-pytorch")
    oracles.run("torch_vgg16", "digests", *map(pair, files, outs))
    by_hand = pytorch_faster_rcnn_by_hand(oracles.load_arrays(folder / "snapshot.npz"))
    expected = {name: oracles.digest(array) for name, array in by_hand}
    assert [oracles.load_digests(out) for out in outs] == [expected, expected]


def pytorch_faster_rcnn_by_hand(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """A snapshot's tensors as pytorch-faster-rcnn's, in plain NumPy."""
    theirs = vgg16.pytorch_faster_rcnn(vgg16.TINY)
    for name, their_name in zip(vgg16.faster_rcnn(vgg16.TINY), theirs, strict=True):
        array = values[name]
        if name == "vgg_16/fc6/weights":
            inputs, outputs = array.shape
            window = array.reshape(7, 7, inputs // 49, outputs)
            array = window.transpose(3, 2, 0, 1).reshape(outputs, inputs)
        elif array.ndim > 1:
            array = array.transpose((3, 2, 0, 1) if array.ndim == 4 else (1, 0))
        yield their_name, array


def test_every_shipped_vgg16_mapping_is_tried_backward():
    shipped = {path.stem for path in (oracles.ROOT / "mappings" / "vgg16").glob("*.yaml")}
    shipped -= {"default-fasterrcnn"}  # in test_vision_oracles
    assert shipped == {name.removeprefix("vgg16/") for name in BACKWARD}


def test_the_table_of_torchvision_is_that_of_the_real_class(tmp_path):
    out = tmp_path / "shapes.json"
    oracles.run("torch_vgg16", "shapes", out)
    ours = {name: list(shape) for name, (shape, _) in vgg16.torchvision().items()}
    assert json.loads(out.read_text("utf-8")) == ours


@pytest.mark.slow
@pytest.mark.parametrize("mapping", ["vgg16/slim-torchvision", "vgg16/slim-fasterrcnn"])
def test_full_size_backward_returns_the_source_bit_for_bit(mapping, folder, checkpoints):
    there, back = folder / "there.safetensors", folder / "back.ckpt"
    convert(checkpoints["v1"], there, mapping, "--overwrite")
    convert(there, back, mapping, "--reverse", "--overwrite")
    out = folder / "full-back.json"
    oracles.run("tf_saver", "--read", pair(back, out))
    seeded = vgg16.arrays(vgg16.slim())
    kept = {n: oracles.digest(a) for n, a in seeded if n not in BACKWARD[mapping][1]}
    assert oracles.load_digests(out) == kept
