"""What each command answers to each class of failure; a script reads nothing else.

0 fine · 1 judged and rejected · 2 usage · 3 reading or writing failed · 4 refused for safety
70 a bug · 130 interrupted · 143 terminated
"""

from __future__ import annotations

import numpy as np
import pytest

import converter as package
from converter import cli, errors
from tests.cli import checkpoints
from tests.cli.checkpoints import FC6, MAPPING

OTHER = "vgg16/fasterrcnn-pytorch"  # does not fit slim's checkpoint
MODELS = ("--source-model", "slim:vgg_16", "--target-model", "torchvision.models:vgg16")

ROWS = [
    # 0
    (0, "--help"),
    (0, "--version"),
    (0, "formats"),
    (0, "mappings", "ls"),
    (0, "mappings", "ls", "--match", "slim", "--match", "torchvision"),
    (0, "mappings", "show", MAPPING),
    (0, "mappings", "for", "slim.ckpt"),
    (0, "mappings", "for", "slim.pt", "--format", "json"),
    (0, "inspect", "slim.ckpt"),
    (0, "inspect", "slim.ckpt", "--match", "nothing"),
    (0, "inspect", "slim-v2.ckpt", "--names", "full_name", "--aliases"),
    (0, "convert", "slim.pt", "out.ckpt", "--template", "slim-v2.ckpt"),
    (0, "show", "slim.ckpt", FC6),
    (0, "show", "slim.ckpt", FC6, "-o", "fc6.npy"),
    (0, "plan", "slim.ckpt", "-m", MAPPING),
    (0, "plan", "slim.ckpt", "--to", "torch"),
    (0, "convert", "slim.ckpt", "out.pt", "-m", MAPPING),
    (0, "convert", "slim.ckpt", "slim.pt", "--overwrite"),
    (0, "convert", "slim.ckpt", "no-suffix", "--to", "tf-v1"),
    (0, "convert", "slim.ckpt", "out.pt", "--report", "r.json", "--report", "r.html"),
    (0, "verify", "slim.ckpt", "slim.pt"),
    (0, "verify", "slim.ckpt", "slim.pt", "--report", "r.json"),
    (0, "diff", "slim.ckpt", "slim.pt"),
    (0, "roundtrip", "slim.ckpt", "-m", MAPPING),
    (0, "infer", "slim.ckpt", "slim.pt"),
    (0, "why", FC6, "slim.ckpt", "-m", MAPPING),
    (0, "lint", MAPPING),
    (0, "ops"),
    (0, "explain", "PLN202"),
    (0, "schema"),
    (0, "schema", "--of", "manifest"),
    (0, "batch", "ports.yaml"),
    (0, "batch", "ports.yaml", "--plan"),
    # 1: judged and rejected
    (1, "plan", "slim.ckpt", "-m", OTHER),
    (1, "plan", "slim.ckpt", "-m", OTHER, "--format", "json"),
    (1, "plan", "slim.ckpt", "--only", "nothing"),
    (1, "plan", "strings.ckpt", "--to", "safetensors"),
    (1, "plan", "slim.ckpt", "-m", "broken.yaml"),
    (1, "plan", "slim.ckpt", "-m", "lossy.yaml", "--reverse"),
    (1, "plan", "slim.ckpt", "-m", "slim.pt"),
    (1, "convert", "slim.ckpt", "out.pt", "-m", OTHER),
    (1, "convert", "strings.ckpt", "out.safetensors"),
    (1, "convert", "slim.ckpt", "out.pt", "-m", MAPPING, "--size", "heads=12"),
    (1, "verify", "slim.ckpt", "trained.ckpt"),
    (1, "verify", "slim.ckpt", "slim.pt", "-m", OTHER),
    (1, "parity", "slim.ckpt", "slim.pt", "-m", "broken.yaml", *MODELS),
    (1, "show", "strings.ckpt", "words", "-o", "words.npy"),
    (1, "diff", "slim.ckpt", "trained.ckpt"),
    (1, "diff", "slim.ckpt", "slim.pt", "-m", OTHER),
    (1, "roundtrip", "slim.ckpt", "-m", "lossy.yaml"),
    (1, "infer", "slim.ckpt", "strings.ckpt"),
    (1, "why", FC6, "slim.ckpt", "-m", "broken.yaml"),
    (1, "lint", "broken.yaml"),
    (1, "mappings", "for", "strings.ckpt"),
    (1, "batch", "broken.yaml"),
    (1, "batch", "failing.yaml"),
    (1, "batch", "failing.yaml", "--plan"),
    (1, "batch", "ports.yaml", "--locked"),
    # 2: usage
    (2, "no-such-command"),
    (2, "--no-such-option"),
    (2, "inspect"),
    (2, "inspect", "slim.ckpt", "--format", "xml"),
    (2, "inspect", "slim.ckpt", "--match", "*" * 99),
    (2, "show", "slim.ckpt"),
    (2, "plan", "slim.ckpt", "--to", "caffe"),
    (2, "plan", "slim.ckpt", "--max-memory", "plenty"),
    (2, "plan", "slim.ckpt", "--only", "*" * 99),
    (2, "convert", "slim.ckpt"),
    (2, "convert", "slim.ckpt", "out.unknown"),
    (2, "convert", "slim.ckpt", "out.pt", "--to", "caffe"),
    (2, "convert", "slim.ckpt", "out.pt", "--template", "slim-v2.ckpt"),
    (2, "inspect", "slim-v2.ckpt", "--names", "short"),
    (2, "convert", "slim.ckpt", "out.pt", "--size", "heads=many"),
    (2, "convert", "slim.ckpt", "out.pt", "--report", "slim.ckpt"),
    (2, "convert", "slim.ckpt", "out.pt", "--report", "out.pt"),
    (2, "verify", "slim.ckpt", "slim.pt", "--with", "caffe"),
    (2, "verify", "slim.pt"),
    (2, "verify", "slim.pt", "slim.pt", "slim.pt"),
    (2, "verify", "slim.pt", "--report", "r.json", "-m", MAPPING),
    (2, "parity", "slim.ckpt", "slim.pt"),
    (2, "parity", "slim.ckpt", "slim.pt", *MODELS[:2], "--target-model", "no-callable"),
    (2, "parity", "slim.ckpt", "slim.pt", "--source-model", "caffe", *MODELS[2:]),
    (2, "parity", "slim.ckpt", "slim.pt", *MODELS, "--input", "missing.npy"),
    (2, "mappings", "delete"),
    (2, "mappings", "for"),
    (2, "mappings", "show", "slim.pt"),
    (2, "formats", "extra"),
    (2, "diff", "slim.ckpt"),
    (2, "diff", "slim.ckpt", "slim.pt", "--rtol", "-1"),
    (2, "roundtrip", "slim.ckpt"),
    (2, "infer", "slim.ckpt"),
    (2, "why", FC6),
    (2, "lint"),
    (2, "batch"),
    (2, "batch", "ports.yaml", "--jobs", "0"),
    (2, "batch", "ports.yaml", "--entry", "missing"),
    (2, "ops", "no-such-op"),
    (2, "explain", "no-such-code"),
    (2, "schema", "extra"),
    # 3: reading or writing failed
    (3, "inspect", "missing.ckpt"),
    (3, "inspect", "empty"),
    (3, "inspect", "slim.pt", "--names", "full_name"),
    (3, "inspect", "a" * 300),
    (3, "show", "missing.ckpt", FC6),
    (3, "show", "slim.ckpt", "missing"),
    (3, "show", "slim.ckpt", FC6, "-o", "missing/fc6.npy"),
    (3, "plan", "missing.ckpt"),
    (3, "plan", "slim.ckpt", "-m", "vgg16/missing"),
    (3, "convert", "missing.ckpt", "out.pt"),
    (3, "convert", "damaged.ckpt", "out.pt"),
    (3, "convert", "slim.ckpt", "missing/out.pt"),
    (3, "convert", "slim.ckpt", "out.pt", "--report", "missing/report.json"),
    (3, "verify", "missing.ckpt", "slim.pt"),
    (3, "verify", "slim.ckpt", "missing.pt"),
    (3, "verify", "slim.ckpt", "damaged.ckpt"),
    (3, "verify", "slim.pt", "--report", "missing.json"),
    (3, "verify", "slim.pt", "--report", "broken.yaml"),
    (3, "parity", "missing.ckpt", "slim.pt", *MODELS),
    (3, "mappings", "show", "vgg16/missing"),
    (3, "mappings", "for", "missing.ckpt"),
    (3, "diff", "slim.ckpt", "missing.pt"),
    (3, "diff", "slim.ckpt", "damaged.ckpt"),
    (3, "roundtrip", "missing.ckpt", "-m", MAPPING),
    (3, "infer", "slim.ckpt", "missing.pt"),
    (3, "why", FC6, "missing.ckpt", "-m", MAPPING),
    (3, "why", "missing", "slim.ckpt", "-m", MAPPING),
    (3, "lint", "missing.yaml"),
    (3, "batch", "missing.yaml"),
    (3, "batch", "odd.yaml"),
    # 4: refused for safety
    (4, "inspect", "evil.pt"),
    (4, "mappings", "for", "evil.pt"),
    (4, "show", "evil.pt", FC6),
    (4, "show", "slim.ckpt", FC6, "-o", "slim.pt"),
    (4, "plan", "evil.pt"),
    (4, "plan", "slim.ckpt", "--max-memory", "1MB"),
    (4, "convert", "evil.pt", "out.safetensors"),
    (4, "convert", "slim.ckpt", "slim.pt"),
    (4, "convert", "slim.ckpt", "slim-v2.ckpt"),
    (4, "convert", "slim.ckpt", "empty", "--to", "torch", "--overwrite"),
    (4, "convert", "slim.ckpt", "out.pt", "--max-memory", "1MB"),
    (4, "convert", "slim.ckpt", "out.pt", "--report", "slim-v2.ckpt.index"),
    (4, "verify", "slim.ckpt", "evil.pt"),
    (4, "verify", "slim.ckpt", "slim.pt", "--report", "slim-v2.ckpt.index"),
    (4, "parity", "slim.ckpt", "evil.pt", *MODELS),
    (4, "diff", "slim.ckpt", "evil.pt"),
    (4, "roundtrip", "evil.pt", "-m", MAPPING),
    (4, "infer", "slim.ckpt", "evil.pt"),
    (4, "infer", "slim.ckpt", "slim.pt", "-o", "broken.yaml"),
    (4, "why", FC6, "evil.pt", "-m", MAPPING),
    (4, "batch", "ports.yaml", "--max-memory", "64MiB"),
]


@pytest.fixture
def scene(folder, tmp_path):
    """The files that the rows name beside the prepared ones; the folder."""
    checkpoints.evil_pickle(folder / "evil.pt", f"touch {tmp_path}/canary")
    damaged = folder / "damaged.ckpt"
    damaged.write_bytes((folder / "slim.ckpt").read_bytes())
    checkpoints.flip(damaged, checkpoints.slim()[FC6])
    checkpoints.write(folder / "strings.ckpt", {"words": np.array([b"a", b"b"], object)})
    (folder / "empty").mkdir()
    (folder / "broken.yaml").write_text("mapping: 1\nruels: []\n")
    entry = "batch: 1\nentries:\n  - {source: slim.ckpt, target: "
    (folder / "ports.yaml").write_text(f"{entry}out.npz}}\n")
    (folder / "failing.yaml").write_text(f"{entry}slim.pt}}\n")  # it is there, and none of ours
    (folder / "odd.yaml").write_text(f"{entry}out.npz}}\n")
    (folder / "odd.lock.json").write_text("{}")
    (folder / "lossy.yaml").write_text(
        "mapping: 1\nrules:\n  - {source: '{x:path}', target: '{x}', ops: [cast: float16]}\n"
    )
    yield folder
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: " ".join(row[1:])[:60])
def test_exit_code(row, scene, converter):
    expected, *arguments = row
    result = converter(*arguments)
    assert result.code == expected, result
    assert "Traceback" not in result.err
    if expected not in (0, 1):
        assert result.err
        assert result.out == "" or "--report" not in arguments


def test_every_command_has_each_code_that_it_can_give():
    """The table is complete: a new command must be added to it."""
    given = {name: {row[0] for row in ROWS if row[1] == name} for name in cli.COMMANDS}
    assert given == {
        "inspect": {0, 2, 3, 4},
        "show": {0, 1, 2, 3, 4},
        "plan": {0, 1, 2, 3, 4},
        "convert": {0, 1, 2, 3, 4},
        "verify": {0, 1, 2, 3, 4},
        "parity": {1, 2, 3, 4},  # 0, with models that are run, in tests/test_parity.py
        "diff": {0, 1, 2, 3, 4},
        "roundtrip": {0, 1, 2, 3, 4},
        "infer": {0, 1, 2, 3, 4},
        "why": {0, 1, 2, 3, 4},
        "batch": {0, 1, 2, 3, 4},
        "lint": {0, 1, 2, 3},
        "ops": {0, 2},
        "explain": {0, 2},
        "schema": {0, 2},
        "mappings": {0, 1, 2, 3, 4},
        "formats": {0, 2},
    }


def kinds(base):
    return [base, *(each for kind in base.__subclasses__() for each in kinds(kind))]


@pytest.mark.parametrize("kind", kinds(errors.ConverterError)[1:], ids=lambda kind: kind.__name__)
def test_every_error_has_an_exit_code(kind, converter, monkeypatch):
    problem = [errors.Diagnostic("MAP001", "wrong")]
    error = kind(problem) if kind is errors.MappingError else kind("wrong", path="some.file")

    def fail(*_, **__):
        raise error

    monkeypatch.setattr("converter.formats.open_checkpoint", fail)
    result = converter("inspect", "slim.ckpt")
    families = {"SEC": 4, "SRC": 3, "DST": 3}
    judged = {errors.UnrepresentableError: 1, errors.MissingExtraError: 2}
    assert result.code == judged.get(kind, families.get(kind.code[:3], 1))
    assert "wrong" in result.err


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (RuntimeError("unexpected"), 70, "internal error: RuntimeError: unexpected"),
        (MemoryError(), 70, "internal error: MemoryError"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (cli._Terminated(), 143, "terminated"),
        (PermissionError(13, "Permission denied", "x"), 3, "error[SRC300]: x: Permission denied"),
    ],
    ids=lambda value: getattr(type(value), "__name__", ""),
)
def test_what_is_no_error_of_ours(error, code, says, converter, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("converter.formats.open_checkpoint", fail)
    result = converter("inspect", "slim.ckpt")
    assert result.code == code
    assert says in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("error", [RuntimeError("wrong"), errors.SourceError("wrong")])
def test_debug_shows_the_place(error, converter, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("converter.formats.open_checkpoint", fail)
    monkeypatch.setenv("CONVERTER_DEBUG", "1")
    with pytest.raises(type(error), match="wrong"):
        converter("inspect", "slim.ckpt")


def test_the_version(converter):
    assert converter("--version").out == f"converter, version {package.__version__}\n"
