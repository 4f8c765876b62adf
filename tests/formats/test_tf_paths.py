"""What people pass when they mean a TensorFlow checkpoint."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from converter import formats
from converter.errors import (
    CorruptFileError,
    NotFoundError,
    TargetError,
    UnknownFormatError,
)
from converter.tensors import TensorSpec

VALUES = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "step": np.array(7)}


def write(path, version=2, value=0.0):
    specs = {name: TensorSpec(array.shape, array.dtype) for name, array in VALUES.items()}
    sink = formats.create(path, formats.named(f"tf-v{version}"), specs)
    for name in sink.order:
        sink.write(name, [(VALUES[name] + VALUES[name].dtype.type(value)).reshape(-1)])
    sink.commit()
    return path


def value(path):
    """What was written as `value`; the format, too."""
    with formats.open_checkpoint(path) as checkpoint:
        return checkpoint["w"].numpy()[0, 0], checkpoint.format


def state(folder, path):
    text = f'model_checkpoint_path: "{path}"\nall_model_checkpoint_paths: "{path}"\n'
    (folder / "checkpoint").write_text(text)


@pytest.mark.parametrize(
    "name",
    ["model.ckpt", "model.ckpt.index", "model.ckpt.data-00000-of-00001", "model.ckpt.meta", ""],
)
def test_any_name_of_a_v2_checkpoint(tmp_path, name):
    write(tmp_path / "model.ckpt")
    (tmp_path / "model.ckpt.meta").write_bytes(b"\x0a\x00")
    assert value(tmp_path / name) == (0, "tf-v2")


@pytest.mark.parametrize("name", ["model.ckpt", "model.ckpt.meta", ""])
def test_any_name_of_a_v1_checkpoint(tmp_path, name):
    write(tmp_path / "model.ckpt", 1)
    (tmp_path / "model.ckpt.meta").write_bytes(b"\x0a\x00")
    (tmp_path / "README").write_text("weights\n")
    assert value(tmp_path / name) == (0, "tf-v1")


@pytest.mark.parametrize("name", ["m-00000-of-00001", "m-?????-of-00001", "m", "m.meta", ""])
def test_any_name_of_a_set_of_v1_shards(tmp_path, name):
    write(tmp_path / "m-00000-of-00001", 1)
    (tmp_path / "m.meta").write_bytes(b"\x0a\x00")
    assert value(tmp_path / name) == (0, "tf-v1")


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    "name", ["b", "./b", "/on/another/machine/b", "sub/b", "C:\\\\models\\\\b"]
)
def test_the_state_file_names_the_latest(tmp_path, name, version):
    write(tmp_path / "a", version, 1)
    write(tmp_path / "b", version, 2)
    state(tmp_path, name)
    for path in (tmp_path, tmp_path / "checkpoint"):
        assert value(path) == (2, f"tf-v{version}")


def test_the_state_file_may_name_a_glob_of_shards(tmp_path):
    write(tmp_path / "m-00000-of-00001", 1)
    write(tmp_path / "n-00000-of-00001", 1, 5)
    state(tmp_path, "/elsewhere/n-?????-of-00001")
    assert value(tmp_path) == (5, "tf-v1")


def test_the_state_file_may_escape(tmp_path):
    write(tmp_path / 'gr"ö')
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "gr\\"\\303\\266"\n')
    assert value(tmp_path)[0] == 0


def test_the_state_file_does_not_lead_out_of_its_folder(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    write(tmp_path / "secret")
    for name in ("../secret", str(tmp_path / "secret")):
        state(inside, name)
        with pytest.raises(NotFoundError, match="not beside it"):
            formats.open_checkpoint(inside)


def test_a_state_file_of_nothing(tmp_path):
    state(tmp_path, "model.ckpt-9")
    with pytest.raises(NotFoundError, match=r"(?s)state file names is not beside it.*model.ckpt-9"):
        formats.open_checkpoint(tmp_path)
    (tmp_path / "checkpoint").write_text("something else")
    with pytest.raises(UnknownFormatError, match="folder without a known"):
        formats.open_checkpoint(tmp_path)
    write(tmp_path / "model.ckpt")
    assert value(tmp_path)[0] == 0
    (tmp_path / "checkpoint").write_bytes(b"\0" * (1 << 20) + b"!")
    assert value(tmp_path)[0] == 0


def test_a_checkpoint_named_checkpoint(tmp_path):
    write(tmp_path / "checkpoint", 1, 3)
    assert value(tmp_path / "checkpoint") == (3, "tf-v1")


def test_a_saved_model(tmp_path):
    (tmp_path / "model" / "variables").mkdir(parents=True)
    write(tmp_path / "model" / "variables" / "variables")
    for name in ("model", "model/variables", "model/variables/variables"):
        assert value(tmp_path / name) == (0, "tf-v2")


def test_several_checkpoints_in_a_folder(tmp_path):
    write(tmp_path / "b")
    write(tmp_path / "a", 1)
    assert value(tmp_path) == (0, "tf-v2")
    write(tmp_path / "c")
    with pytest.raises(NotFoundError, match=r"(?s)several checkpoints.*b\.index, c\.index"):
        formats.open_checkpoint(tmp_path)


def test_several_v1_checkpoints_in_a_folder(tmp_path):
    write(tmp_path / "a", 1)
    write(tmp_path / "b-00000-of-00001", 1)
    with pytest.raises(NotFoundError, match=r"(?s)several checkpoints.*a, b-00000-of-00001"):
        formats.open_checkpoint(tmp_path)


def test_v2_wins_where_both_have_a_name(tmp_path):
    write(tmp_path / "m", 1)
    write(tmp_path / "m", 2, 4)
    assert value(tmp_path / "m") == (4, "tf-v2")


@pytest.mark.parametrize("name", ["m", "m.data-00000-of-00001", "m.meta", "m.index"])
def test_an_index_is_missing(tmp_path, name):
    write(tmp_path / "m")
    (tmp_path / "m.meta").write_bytes(b"\x0a\x00")
    (tmp_path / "m.index").unlink()
    with pytest.raises(NotFoundError, match=r"m\.index: the checkpoint's index is missing"):
        formats.open_checkpoint(tmp_path / name)


def test_a_part_that_is_not_there_but_its_checkpoint_is(tmp_path):
    write(tmp_path / "m")
    assert value(tmp_path / "m.meta")[0] == 0
    assert value(tmp_path / "m.data-00001-of-00002")[0] == 0
    with pytest.raises(NotFoundError, match="no such file"):
        formats.open_checkpoint(tmp_path / "n.meta")


def test_a_data_file_is_missing(tmp_path):
    write(tmp_path / "m")
    (tmp_path / "m.data-00000-of-00001").unlink()
    with pytest.raises(NotFoundError, match=r"m\.data-00000-of-00001: a data file .* is missing"):
        formats.open_checkpoint(tmp_path / "m")


def test_an_index_of_another_name(tmp_path):
    write(tmp_path / "m")
    shutil.move(tmp_path / "m.index", tmp_path / "weights")
    with pytest.raises(NotFoundError, match=r"(?s)index of a V2 checkpoint.*must end in '\.index'"):
        formats.open_checkpoint(tmp_path / "weights")


def test_a_v1_shard_is_missing(tmp_path):
    write(tmp_path / "m-00001-of-00003", 1)
    for name in ("m", "m-00001-of-00003", "m-?????-of-00003"):
        with pytest.raises(NotFoundError, match="m-00000-of-00003: a shard is missing: one of 3"):
            formats.open_checkpoint(tmp_path / name)


def test_two_sets_of_v1_shards_under_a_prefix(tmp_path):
    write(tmp_path / "m-00000-of-00001", 1)
    write(tmp_path / "m-00001-of-00002", 1)
    with pytest.raises(NotFoundError, match="several checkpoints have this prefix"):
        formats.open_checkpoint(tmp_path / "m")


@pytest.mark.parametrize(("version", "name"), [(2, "m.index"), (1, "m")])
def test_a_truncated_table_is_still_recognised(tmp_path, version, name):
    write(tmp_path / "m", version)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[:-20])
    with pytest.raises(CorruptFileError, match="footer is missing"):
        formats.open_checkpoint(tmp_path / "m")


def test_a_damaged_index_is_still_recognised(tmp_path):
    write(tmp_path / "m")
    data = bytearray((tmp_path / "m.index").read_bytes())
    data[5] ^= 1
    for name in ("m.index", "other.index"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CorruptFileError, match="checksum"):
            formats.open_checkpoint(tmp_path / name)


@pytest.mark.parametrize("name", ["absent", "absent.index", "absent-00000-of-00002", "no/folder"])
def test_nothing_there(tmp_path, name):
    with pytest.raises(NotFoundError, match="no such file"):
        formats.open_checkpoint(tmp_path / name)


@pytest.mark.parametrize(
    "data", [b"", b"text", b"\0\0\x05\x0a\x04abcd", b"\0\0\xff\xff", b"\0" * 60]
)
@pytest.mark.parametrize("name", ["m", "m.index", "m.ckpt", "checkpoint"])
def test_files_of_others(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises((UnknownFormatError, CorruptFileError), match=r"recognises|footer"):
        formats.open_checkpoint(tmp_path / name)


def test_the_root_and_the_dots_are_no_prefixes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (".", "..", "/"):
        with pytest.raises(UnknownFormatError, match="folder"):
            formats.open_checkpoint(name)


@pytest.mark.parametrize("name", ["x.ckpt", "x.ckpt.index"])
def test_a_target_may_be_named_by_its_index(tmp_path, name):
    write(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "x.ckpt.data-00000-of-00001",
        "x.ckpt.index",
    ]


def test_a_v1_target_has_no_suffix_of_its_own(tmp_path):
    with pytest.raises(TargetError, match="suffix"):
        formats.for_target(tmp_path / "vgg_16")
    assert formats.for_target(tmp_path / "vgg_16.ckpt").name == "tf-v2"
