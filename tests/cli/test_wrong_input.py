"""Wrong input gets one clear error and leaves nothing behind.

Each test says what the error must name: the file, the tensor, the byte or the line, what was
expected and what was found.  After each the folder holds what it held before, bit for bit.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from converter import files, formats
from tests import vgg16
from tests.cli import checkpoints
from tests.cli.checkpoints import DATA, FC6, MAPPING


@pytest.fixture
def refused(converter, folder):
    """Run a command that must fail; its stderr, after checking that nothing changed."""

    def run(code, *arguments, errors=1):
        before = checkpoints.listing(folder)
        result = converter(*arguments)
        assert result.code == code, result
        assert checkpoints.listing(folder) == before
        assert "Traceback" not in result.err
        assert "internal error" not in result.err
        assert result.err.count("error[") + result.err.count("Error: ") == errors, result.err
        return result.err

    return run


def says(text, *facts):
    for fact in facts:
        assert fact in text, f"{fact!r} is not in:\n{text}"


# ── damaged files ────────────────────────────────────────────────────────────────────────────


def test_a_missing_data_shard(refused, folder):
    (folder / f"slim-v2.ckpt{DATA}").unlink()
    text = refused(3, "convert", "slim-v2.ckpt", "out.pt", "-m", MAPPING)
    says(text, "error[SRC301]", f"slim-v2.ckpt{DATA}")


@pytest.mark.parametrize("cut", [1, 100, 100_000])
@pytest.mark.parametrize(
    ("source", "file"),
    [
        ("slim.ckpt", "slim.ckpt"),
        ("slim-v2.ckpt", f"slim-v2.ckpt{DATA}"),
        ("slim-v2.ckpt", "slim-v2.ckpt.index"),
        ("slim.pt", "slim.pt"),
        ("slim.safetensors", "slim.safetensors"),
    ],
)
def test_a_truncated_file(source, file, cut, refused, folder):
    path = folder / file
    size = path.stat().st_size
    os.truncate(path, max(size - cut, 10))
    text = refused(3, "convert", source, "out.pt", "--to", "torch")
    says(text, "error[SRC30", file)
    if file != "slim.pt":  # a zip without its end has no sizes to compare
        says(text, "expected: ", "found: ")


@pytest.mark.parametrize(
    ("source", "file"),
    [
        ("slim.ckpt", "slim.ckpt"),
        ("slim-v2.ckpt", f"slim-v2.ckpt{DATA}"),
        ("slim.pt", "slim.pt"),
    ],
)
def test_a_flipped_bit(source, file, refused, folder):
    offset = checkpoints.flip(folder / file, checkpoints.slim()[FC6])
    text = refused(3, "convert", source, "out.safetensors", "-m", MAPPING)
    says(text, "error[SRC304]", file, "expected: 0x", "found: 0x")
    found = int(text.split("byte offset ")[1].split(")")[0])
    if source == "slim.ckpt":  # the checksum covers a block, which many tensors may share
        assert 0 <= found < offset
    else:
        says(text, f"'{FC6}'")
        assert found == offset


def test_a_flipped_bit_is_no_error_of_the_headers(converter, folder):
    checkpoints.flip(folder / "slim.pt", checkpoints.slim()[FC6])
    assert converter("inspect", "slim.pt").code == 0
    assert converter("show", "slim.pt", "vgg_16/fc7/weights").code == 0
    assert converter("show", "slim.pt", FC6).code == 3


# ── what does not go through the mapping ─────────────────────────────────────────────────────


def test_an_unknown_tensor_in_the_source(refused, folder):
    arrays = checkpoints.slim()
    arrays["vgg_16/fc6/weight"] = np.zeros(3, np.float32)
    arrays["unheard/of"] = np.zeros(3, np.float32)
    checkpoints.write(folder / "more.pt", arrays)
    text = refused(1, "convert", "more.pt", "out.safetensors", "-m", MAPPING, errors=2)
    says(
        text,
        "error[PLN201]: no rule takes 'vgg_16/fc6/weight' (float32 [3])",
        "nearest rule is `vgg_16/fc6/weights` at ",
        "slim-torchvision.yaml:",
        "error[PLN201]: no rule takes 'unheard/of'",
        "2 errors",
    )


def test_a_rule_that_matches_nothing(refused, folder):
    arrays = checkpoints.slim()
    del arrays[FC6]
    checkpoints.write(folder / "less.pt", arrays)
    text = refused(1, "convert", "less.pt", "out.safetensors", "-m", MAPPING)
    says(
        text,
        "slim-torchvision.yaml:46:13: error[PLN202]: the rule matches nothing",
        f"no tensor is called `{FC6}`",
        "near names: vgg_16/fc8/weights, vgg_16/fc7/weights",
        "^" * len(FC6),
    )


def test_two_rules_for_one_target(refused, folder):
    (folder / "twice.yaml").write_text(
        "mapping: 1\n"
        "rules:\n"
        "  - {source: vgg_16/fc6/biases, target: bias}\n"
        "  - {source: vgg_16/fc7/biases, target: bias}\n"
        "drop:\n"
        "  - {source: 'vgg_16/**/weights', because: a test}\n"
        "  - {source: 'vgg_16/c**/biases', because: a test}\n"
        "  - {source: 'vgg_16/fc8/biases', because: a test}\n"
        "  - {source: vgg_16/mean_rgb, because: a test}\n"
        "  - {group: counters}\n"
    )
    text = refused(1, "convert", "slim.ckpt", "out.pt", "-m", "twice.yaml")
    says(
        text,
        "twice.yaml:4:41: error[MAP111]: this rule and the one at twice.yaml:3 make one name",
        "e.g. 'bias'",
        "`except`",
    )


def test_two_rules_for_one_source(refused, folder):
    (folder / "twice.yaml").write_text(
        "mapping: 1\n"
        "rules:\n"
        "  - {source: global_step, target: step}\n"
        "  - {source: '{name:path}', target: '{name}'}\n"
    )
    text = refused(1, "convert", "slim.ckpt", "out.pt", "-m", "twice.yaml")
    says(
        text,
        "twice.yaml:4:14: error[MAP111]: this rule and the one at twice.yaml:3 take one name",
        "found: `global_step` and `{name:path}`",
        "`except`",
    )


def test_shapes_that_do_not_fit(refused, folder):
    arrays = checkpoints.slim()
    arrays[FC6] = arrays[FC6].reshape(-1, 128)
    checkpoints.write(folder / "flat.pt", arrays)
    text = refused(1, "convert", "flat.pt", "out.safetensors", "-m", MAPPING)
    says(
        text,
        "slim-torchvision.yaml:51:9: error[PLN220]",
        f"({FC6})",
        "expected: 4 axes (h w i o)",
        "found: 2 axes: [784, 128]",
    )


def test_a_size_that_does_not_divide(refused, folder):
    arrays = dict(vgg16.arrays(vgg16.faster_rcnn(vgg16.TINY)))
    arrays[FC6] = arrays[FC6][:-1]
    checkpoints.write(folder / "odd.pt", arrays)
    text = refused(1, "convert", "odd.pt", "out.safetensors", "-m", "vgg16/fasterrcnn-pytorch")
    says(text, "error[PLN220]", f"({FC6})", "expected: a multiple of 49", "found: [783, 128]")


def test_a_square_matrix_is_a_note_and_no_error(converter):
    result = converter("plan", "slim.ckpt", "-m", MAPPING, "--all")
    assert (result.code, result.err) == (0, "")
    _, _, doubts = result.out.partition("shapes cannot confirm")
    says(doubts, "classifier.3.weight", "i and o are both 128: no shape shows")
    result = converter("convert", "slim.ckpt", "out.pt", "-m", MAPPING)
    assert result.code == 0
    assert "`converter verify`" not in result.err  # its probes confirm what shapes cannot


TURNED = """
mapping: 1
rules:
  - {source: kernel, target: weight, ops: [rearrange: i o -> o i]}
"""


def test_a_layout_that_nothing_confirms_is_said(converter, folder):
    checkpoints.write(folder / "square.pt", {"kernel": np.zeros((4, 4), "f4")})
    (folder / "turned.yaml").write_text(TURNED)
    result = converter("convert", "square.pt", "out.safetensors", "-m", "turned.yaml")
    assert result.code == 0
    says(result.err, "nothing confirms the layout of 1", "`converter verify`")


def test_a_layer_that_comes_out_wrong_is_not_converted(refused, folder):
    checkpoints.write(folder / "square.pt", {"kernel": np.zeros((4, 4), "f4")})
    wrong = TURNED.replace("o i", "i o")
    probe = "probes:\n  - {layer: dense, source: keras, target: torch}\n"
    (folder / "wrong.yaml").write_text(wrong + probe)
    text = refused(1, "convert", "square.pt", "out.safetensors", "-m", "wrong.yaml")
    says(text, "error[MAP142]", "dense, keras to torch")


def test_a_mapping_that_does_not_exist(refused):
    text = refused(3, "convert", "slim.ckpt", "out.pt", "-m", "vgg16/slim-torchvison")
    says(text, "error[SRC301]: no mapping 'vgg16/slim-torchvison'", "did you mean", MAPPING)


def test_a_mapping_with_errors_names_all_of_them(refused, folder):
    (folder / "bad.yaml").write_text(
        "mapping: 1\n"
        "rules:\n"
        "  - source: vgg_16/{x:path}\n"
        "    target: '{x}'\n"
        "    ops:\n"
        "      - transpoze: [1, 0]\n"
        "  - source: a/{x:word}\n"
        "    target: b\n"
    )
    text = refused(1, "convert", "slim.ckpt", "out.pt", "-m", "bad.yaml", errors=2)
    says(
        text,
        "bad.yaml:6:9: error[MAP102]: unknown op 'transpoze'",
        "help: did you mean 'transpose'?",
        "6 |       - transpoze: [1, 0]",
        "  |         ^^^^^^^^^",
        "bad.yaml:8:13: error[MAP104]: hole 'x' of the source is not in the target",
        "2 errors",
    )


def test_a_mapping_without_a_way_back(refused, folder):
    (folder / "lossy.yaml").write_text(
        "mapping: 1\nrules:\n  - source: '{x:path}'\n    target: '{x}'\n    ops: [cast: float16]\n"
    )
    text = refused(1, "convert", "slim.ckpt", "out.pt", "-m", "lossy.yaml", "--reverse")
    says(text, "lossy.yaml:3:13: error[MAP120]: no way back: cast does not know the dtype before")


def test_a_reversal_that_was_already_applied(converter, folder):
    """The contract that the first conversion wrote says so."""
    arguments = "-m", "vgg16/slim-fasterrcnn", "--only", "vgg_16/conv1/**"
    assert converter("convert", "slim.ckpt", "once.safetensors", *arguments).code == 0
    result = converter("convert", "once.safetensors", "twice.safetensors", *arguments)
    assert result.code == 1
    says(result.err, "error[PLN210]", "channels: RGB", "channels: BGR", "applied twice")
    assert not (folder / "twice.safetensors").exists()


# ── files that are no checkpoints ────────────────────────────────────────────────────────────


def test_a_pickle_that_wants_to_run_code(refused, folder, tmp_path):
    canary = tmp_path / "canary"
    checkpoints.evil_pickle(folder / "evil.pt", f"touch {canary}")
    for command in (
        ("convert", "evil.pt", "out.safetensors"),
        ("inspect", "evil.pt"),
        ("verify", "slim.pt", "evil.pt"),
    ):
        text = refused(4, *command)
        says(text, "error[SEC602]", "evil.pt", "posix.system")
    assert not canary.exists()


def test_a_folder_without_a_checkpoint(refused, folder):
    (folder / "empty").mkdir()
    text = refused(3, "convert", "empty", "out.pt")
    says(text, "error[SRC302]: empty: ", "found: a folder without a known checkpoint")
    says(text, "expected: safetensors, PyTorch")


def test_a_web_page_instead_of_a_file(refused, folder):
    (folder / "page.pt").write_text("<!DOCTYPE html>\n<html><body>Sign in</body></html>\n")
    text = refused(3, "convert", "page.pt", "out.safetensors")
    says(text, "error[SRC302]: page.pt", "found: an HTML page")


def test_a_git_lfs_pointer(refused, folder):
    (folder / "pointer.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 553433881\n"
    )
    text = refused(3, "convert", "pointer.safetensors", "out.pt")
    says(text, "error[SRC302]: pointer.safetensors", "found: a git-lfs pointer", "git lfs pull")


def test_an_empty_file(refused, folder):
    (folder / "nothing.pt").touch()
    says(refused(3, "inspect", "nothing.pt"), "nothing.pt", "found: an empty file")


def test_no_such_file(refused):
    says(refused(3, "inspect", "missing.ckpt"), "error[SRC301]: missing.ckpt: no such file")


# ── targets ──────────────────────────────────────────────────────────────────────────────────


def test_an_unknown_suffix(refused):
    text = refused(2, "convert", "slim.ckpt", "out.weights")
    suffixes = [suffix for row in formats.FORMATS for suffix in row.suffixes]
    says(text, "out.weights", f"expected: {', '.join(suffixes)}", "--to")


def test_an_unknown_format(refused):
    text = refused(2, "convert", "slim.ckpt", "out", "--to", "caffe")
    names = [row.name for row in formats.FORMATS if row.writes]
    says(text, "--to", f"'caffe' is none of {', '.join(names)}")


@pytest.mark.parametrize("target", ["slim.pt", "slim.safetensors", "slim-v2.ckpt", "trained.ckpt"])
def test_a_target_that_exists(target, refused):
    text = refused(4, "convert", "slim.ckpt", target, "-m", MAPPING)
    says(text, f"error[SEC601]: {target}", "the target exists", "--overwrite")


def test_a_folder_that_does_not_exist(refused):
    text = refused(3, "convert", "slim.ckpt", "missing/out.pt")
    says(text, "error[DST400]: missing/out.pt: cannot be created: No such file or directory")


def test_a_tensor_that_the_target_cannot_hold(refused, folder):
    checkpoints.write(folder / "text.ckpt", {"words": np.array([b"a", b"b"], object)})
    text = refused(1, "convert", "text.ckpt", "out.safetensors")
    says(text, "error[PLN230]", "'words'", "found: string [2]", "--drop")


def test_a_disk_that_is_too_small(refused, folder, monkeypatch):
    class Full(files.System):
        def free(self, folder):
            return 1000

    monkeypatch.setattr(files, "system", Full())
    text = refused(3, "convert", "slim.ckpt", "out.safetensors")
    says(text, "error[DST402]: out.safetensors", "expected: ", "found: 1000 bytes")


@pytest.mark.parametrize("target", ["out.safetensors", "out.pt", "out.ckpt"])
@pytest.mark.parametrize("call", ["write", "sync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_becomes_full(target, number, call, refused, monkeypatch):
    class Full(files.System):
        written = 0

        def write(self, fd, data, offset):
            self.written += len(data)
            if call == "write" and self.written > 200_000:
                raise OSError(number, os.strerror(number))
            return super().write(fd, data, offset)

        def sync(self, fd):
            if call == "sync":
                raise OSError(number, os.strerror(number))
            super().sync(fd)

    monkeypatch.setattr(files, "system", Full())
    text = refused(3, "convert", "slim.ckpt", target)
    code = "DST400" if number == errno.EIO else "DST402"
    says(text, f"error[{code}]: {target}", os.strerror(number))


def test_a_file_system_that_is_full(refused, folder):
    place = folder.parent / "small"
    place.mkdir()
    mount = shutil.which("mount")
    command = [mount or "", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if not mount or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        text = refused(3, "convert", "slim.ckpt", place / "out.pt")
        says(text, "error[DST402]", "out.pt", "expected: ", "found: ")
        assert list(place.iterdir()) == []
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("target", ["out.safetensors", "out.pt", "out.ckpt"])
def test_a_limit_of_the_shell_on_file_sizes(target, folder):
    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    before = checkpoints.listing(folder)
    command = [sys.executable, "-m", "converter", "convert", "slim.ckpt", target]
    done = subprocess.run(
        command,
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    says(done.stderr, "error[DST400]", target, "File too large")
    assert "Traceback" not in done.stderr
    assert checkpoints.listing(folder) == before


def test_a_failed_overwrite_keeps_the_old_target(refused, folder):
    checkpoints.flip(folder / "slim.ckpt", checkpoints.slim()[FC6])
    for target in ("slim.pt", "slim.safetensors", "trained.ckpt"):
        refused(3, "convert", "slim.ckpt", target, "--overwrite")


def test_a_name_that_is_not_in_the_checkpoint(refused):
    text = refused(3, "show", "slim.ckpt", "vgg_16/fc7/weight")
    says(text, "error[SRC301]: slim.ckpt: no such tensor (tensor 'vgg_16/fc7/weight')")
    says(text, "did you mean vgg_16/fc7/weights")
