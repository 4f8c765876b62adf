"""What goes to stdout and what to stderr; that both can be read by programs and by any terminal."""

from __future__ import annotations

import json
import os
import pty
import signal
import struct
import subprocess
import sys

import numpy as np
import pytest

from tests.cli import checkpoints
from tests.cli.checkpoints import FC6, MAPPING

COMMAND = [sys.executable, "-m", "converter"]

HUMAN = [
    ("formats",),
    ("mappings", "ls"),
    ("mappings", "show", MAPPING),
    ("inspect", "slim.ckpt", "--stats"),
    ("inspect", "slim.ckpt", "--tree"),
    ("show", "slim.ckpt", FC6),
    ("plan", "slim.ckpt", "-m", MAPPING, "--all"),
    ("plan", "slim.ckpt", "-m", "vgg16/fasterrcnn-pytorch"),
    ("convert", "slim.ckpt", "out.pt", "-m", MAPPING),
    ("verify", "slim.ckpt", "slim.pt"),
    ("verify", "slim.ckpt", "trained.ckpt"),
    ("inspect", "missing"),
]


@pytest.mark.parametrize("arguments", HUMAN, ids=" ".join)
def test_no_escape_codes_where_there_is_no_terminal(arguments, converter, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    result = converter(*arguments)
    assert "\x1b" not in result.out + result.err
    assert "\r" not in result.out + result.err


@pytest.mark.parametrize(
    ("arguments", "out"),
    [
        (("convert", "slim.ckpt", "out.pt"), False),
        (("verify", "slim.ckpt", "slim.pt"), False),
        (("show", "slim.ckpt", "global_step", "-o", "step.npy"), True),
        (("inspect", "slim.ckpt"), True),
        (("inspect", "missing"), False),
        (("plan", "slim.ckpt", "-m", "nothing"), False),
    ],
    ids=str,
)
def test_stdout_is_data_only(arguments, out, converter):
    result = converter(*arguments)
    assert bool(result.out) == out
    assert "wrote" not in result.out
    assert "error" not in result.out


# JSON: one valid document, with the documented keys.


def document(result):
    return json.loads(result.out, parse_constant=pytest.fail)


def test_json_of_inspect(converter):
    found = document(converter("inspect", "slim.ckpt", "--format", "json"))
    assert found.keys() == {"format", "metadata", "tensors", "ties", "unsupported"}
    assert found["format"] == "tf-v1"
    expected = [
        {
            "name": name,
            "dtype": value.dtype.name,
            "shape": list(value.shape),
            "nbytes": value.nbytes,
        }
        for name, value in sorted(checkpoints.slim().items())
    ]
    assert sorted(found["tensors"], key=lambda row: row["name"]) == expected


@pytest.mark.parametrize("file", ["slim.ckpt", "slim-v2.ckpt", "slim.pt", "slim.safetensors"])
def test_json_of_inspect_is_the_same_for_every_format(file, converter):
    found = document(converter("inspect", file, "--format", "json"))
    first = document(converter("inspect", "slim.ckpt", "--format", "json"))
    assert found.keys() == first.keys()
    by_name = {row["name"]: row for row in first["tensors"]}
    assert {row["name"]: row for row in found["tensors"]} == by_name


def test_json_of_show(converter):
    found = document(converter("show", "slim.ckpt", FC6, "--format", "json"))
    values = checkpoints.slim()[FC6].astype(np.float64)
    assert (found["name"], found["dtype"], found["shape"]) == (FC6, "float32", [7, 7, 16, 128])
    assert found["min"] == values.min()
    assert found["max"] == values.max()
    assert found["mean"] == pytest.approx(values.mean())
    assert found["std"] == pytest.approx(values.std())


def test_json_of_plan(converter):
    found = document(converter("plan", "slim.ckpt", "-m", MAPPING, "--format", "json"))
    assert found.keys() == {"schema_version", "peak_memory", "mappings", "plans", "diagnostics"}
    (plan,) = found["plans"]
    assert plan["mapping"] == MAPPING
    assert len(plan["steps"]) == 32
    fc6 = next(step for step in plan["steps"] if step["sources"] == [FC6])
    assert fc6["target"] == "classifier.0.weight"
    assert fc6["shape"] == [128, 784]
    assert fc6["line"] > 1
    assert fc6["unconfirmed"]
    assert {"name": "global_step", "because": "a training counter"} in plan["dropped"]


def test_json_of_a_plan_with_errors(converter):
    arguments = "plan", "slim.ckpt", "-m", "vgg16/fasterrcnn-pytorch", "--format", "json"
    result = converter(*arguments)
    problems = document(result)["diagnostics"]
    assert result.code == 1
    assert {problem["code"] for problem in problems} == {"PLN201", "PLN202", "PLN220"}
    keys = {"file", "code", "severity", "message", "line", "column", "end_column"}
    facts = {"expected", "found", "hint", "tensor", "fix"}
    assert all(problem.keys() == keys | facts for problem in problems)


def test_json_of_convert(converter):
    arguments = "convert", "slim.ckpt", "out.pt", "-m", MAPPING, "--format", "json"
    found = document(converter(*arguments))
    assert found["status"] == "converted"
    assert found["files"] == ["out.pt"]
    assert (found["format"], found["tensors"]) == ("torch", 32)
    assert found["schema_version"] == 1


def test_json_of_a_convert_that_fails(converter):
    result = converter("convert", "slim.ckpt", "slim.pt", "--format", "json")
    found = document(result)
    assert (result.code, found["status"], found["code"]) == (4, "failed", "SEC601")
    assert "the target exists" in result.err


def test_json_of_verify(converter):
    assert (
        document(converter("verify", "slim.ckpt", "slim.pt", "--format", "json"))["equal"] is True
    )
    arguments = "verify", "slim.ckpt", "trained.ckpt", "--format", "json"
    result = converter(*arguments)
    found = document(result)
    assert (result.code, found["equal"]) == (1, False)
    rows = {row["name"]: row for row in found["tensors"]}
    keys = {"name", "status", "expected", "found", "count", "max_abs", "max_rel", "index"}
    assert all(row.keys() == keys | {"explanation"} for row in rows.values())
    assert rows["vgg_16/mean_rgb"]["status"] == "missing"
    assert rows["Variable"]["status"] == "extra"
    assert rows[FC6]["status"] == "shape"
    assert rows[FC6]["expected"] == "float32 [7, 7, 16, 128]"
    assert rows[FC6]["found"] == "float32 [784, 128]"
    assert rows["vgg_16/fc6/biases"]["status"] == "values"
    assert rows["vgg_16/fc6/biases"]["index"] == [0]


def test_json_of_mappings_and_formats(converter):
    rows = document(converter("mappings", "ls", "--format", "json"))
    assert all(row.keys() == {"name", "about", "source", "target"} for row in rows)
    assert MAPPING in [row["name"] for row in rows]
    rows = document(converter("formats", "--format", "json"))
    keys = {"name", "title", "suffixes", "reads", "writes"}
    assert all(row.keys() == keys for row in rows)


def test_json_has_words_for_numbers_that_json_lacks(converter, folder):
    values = np.array([np.nan, np.inf, -np.inf, 1], np.float32)
    checkpoints.write(folder / "odd.pt", {"nan": values, "inf": values[1:2], "-inf": values[2:3]})
    found = document(converter("inspect", "odd.pt", "--stats", "--format", "json"))
    rows = {row["name"]: row for row in found["tensors"]}
    assert rows["nan"]["min"] == rows["nan"]["mean"] == "NaN"
    assert rows["inf"]["max"] == "Infinity"
    assert rows["-inf"]["min"] == "-Infinity"
    checkpoints.write(folder / "one.pt", {"nan": np.ones(4, np.float32)})
    found = document(converter("verify", "odd.pt", "one.pt", "--format", "json"))
    assert "Infinity" in [row["max_abs"] for row in found["tensors"]]


# Consoles.


def child(*arguments, env=None, **options):
    environment = {**os.environ, **(env or {})}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run([*COMMAND, *arguments], env=environment, check=False, **options)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_every_encoding_can_print_everything(encoding, folder):
    name = "häuser/→/権重"
    checkpoints.write(folder / "names.safetensors", {name: np.ones(2, np.float32)})
    for arguments in (
        ("inspect", "names.safetensors"),
        ("inspect", "names.safetensors", "--tree"),
        ("show", "names.safetensors", name),
        ("plan", "names.safetensors", "-m", MAPPING),
    ):
        done = child(*arguments, env={"PYTHONIOENCODING": encoding})
        assert done.returncode in (0, 1)
        assert b"UnicodeEncodeError" not in done.stderr
        assert b"internal error" not in done.stderr
        (done.stdout + done.stderr).decode(encoding)


def test_control_characters_of_a_file_do_not_reach_the_console(converter, folder):
    metadata = {"note": "\x1b[2J\x1b]0;owned\x07", "c1": "\x9b31m"}
    entry = {"weight": ("F32", [1], struct.pack("<f", 1))}
    checkpoints.safetensors_by_hand(folder / "odd.safetensors", entry, metadata)
    result = converter("inspect", "odd.safetensors")
    assert result.code == 0
    assert r"metadata note: \x1b[2J\x1b]0;owned\x07" in result.out
    assert r"metadata c1: \x9b31m" in result.out
    assert not set(result.out) & {"\x1b", "\x07", "\x9b"}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("inspect", "slim.ckpt"), 0),
        (("inspect", "slim.ckpt", "--format", "json"), 0),
        (("verify", "slim.ckpt", "trained.ckpt"), 1),
        (("convert", "slim.ckpt", "out.pt", "--format", "json"), 0),
    ],
    ids=str,
)
def test_a_reader_that_leaves_changes_no_verdict(arguments, code, folder):
    reading, writing = os.pipe()
    os.close(reading)  # nobody reads, from the first byte on
    done = child(*arguments, stdout=writing)
    os.close(writing)
    assert (done.returncode, b"Traceback" in done.stderr) == (code, False)
    assert b"BrokenPipe" not in done.stderr


def test_a_listener_that_leaves_does_not_stop_the_work(folder):
    reading, writing = os.pipe()
    os.close(reading)
    done = child("convert", "slim.ckpt", "out.safetensors", stderr=writing)
    os.close(writing)
    assert done.returncode == 0
    assert checkpoints.equal(checkpoints.read(folder / "out.safetensors"), checkpoints.slim())


def test_the_bar_on_a_terminal_goes_away(folder):
    leader, follower = pty.openpty()
    env = {"PYTHONIOENCODING": "ascii"}
    done = child("convert", "slim.ckpt", "out.pt", "-m", MAPPING, stderr=follower, env=env)
    os.close(follower)
    shown = os.read(leader, 1 << 16).decode("ascii")
    os.close(leader)
    assert done.returncode == 0
    assert done.stdout == b""
    assert "\x1b" not in shown
    last = shown.replace("\r\n", "\n").rstrip("\n").rsplit("\r", 1)[-1]
    assert last.startswith("wrote out.pt: 32 tensors")


def test_progress_without_a_terminal_is_a_line_now_and_then(converter, monkeypatch):
    monkeypatch.setattr("converter.cli.output.PLAIN_SECONDS", 0.0)
    result = converter("convert", "slim.ckpt", "out.pt", "-m", MAPPING)
    lines = result.err.splitlines()
    assert lines[0].startswith("converting ")
    assert any("100 %" in line for line in lines)
    assert "\r" not in result.err


# Starting and stopping.


def test_the_start_imports_nothing_heavy():
    code = (
        "import sys; from converter.cli import run; run(['--help']); "
        "print([m for m in ('numpy', 'h5py', 'torch', 'tensorflow', 'keras', 'yaml', 'pydantic') "
        "if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stderr.strip() == b"[]"


@pytest.mark.parametrize(
    ("number", "code", "says"),
    [(signal.SIGINT, 130, b"interrupted"), (signal.SIGTERM, 143, b"terminated")],
)
def test_signals_leave_nothing_behind(number, code, says, folder):
    script = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in the background
        "from converter import cli, files\n"
        "class Slow(files.System):\n"
        "    def sync(self, fd):\n"
        "        print('writing', flush=True)\n"
        "        import time; time.sleep(30)\n"
        "files.system = Slow()\n"
        "sys.argv = ['converter', 'convert', 'slim.ckpt', 'out.pt']\n"
        "cli.main()\n"
    )
    before = checkpoints.listing(folder)
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        assert running.stdout.readline() == b"writing\n"
        running.send_signal(number)
        _, err = running.communicate(timeout=20)
    assert running.returncode == code
    assert says in err
    assert b"Traceback" not in err
    assert checkpoints.listing(folder) == before
