"""The record of a conversion: what it says is so, the same every time, and it finds any flip."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pytest

import converter
from converter import digests, report
from converter.errors import CorruptFileError, SourceError
from converter.formats import FORMATS
from tests.cli import checkpoints

TARGETS = {  # every format that is written
    "safetensors": "out.safetensors",
    "torch": "out.pt",
    "tf-v2": "out.ckpt",
    "tf-v1": "out.v1",
    "sharded": "out.bin",
    "keras-v3": "out.weights.h5",
    "keras": "out.keras",
    "keras-h5": "out.h5",
    "flax": "out.msgpack",
    "npz": "out.npz",
}
FLIPS = 30  # of each format, and in the slow test
MANY_FLIPS = 110

MAPPING = """\
mapping: 1
name: test
source: {contract: {range: 0..255}}
target: {contract: {range: 0..1}}
rules:
  - {source: 'l{i}.w', target: 'layer{i}.weight', ops: [transpose: [1, 0], cast: float16]}
  - {source: ['q', 'k'], target: 'qk', ops: [concat: 0]}
  - {source: 'both', target: ['one', 'two'], ops: [split: {axis: 0, sizes: [1, 2]}]}
drop:
  - {source: step, because: a counter}
make:
  - {target: zeros, dtype: float32, shape: [2], fill: 0, because: the target wants it}
"""


def arrays() -> dict[str, np.ndarray]:
    random_ = np.random.default_rng(0)
    shapes = {"l0.w": (4, 4), "l1.w": (4, 6), "q": (2, 3), "k": (2, 3), "both": (3, 2), "step": ()}
    return {name: random_.random(shape, np.float32) for name, shape in shapes.items()}


def source(name: str) -> None:
    """The source; its metadata are what a `.keras` file cannot do without."""
    metadata = {"config.json": '{"class_name": "Sequential"}'}
    converter.save(converter.from_arrays(arrays(), metadata=metadata), name)


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """A conversion with its record, as the command line writes it."""
    monkeypatch.chdir(tmp_path)
    Path("m.yaml").write_text(MAPPING)
    source("in.safetensors")
    return run("convert", "in.safetensors", "out.ckpt", "-m", "m.yaml")


def run(*arguments: str, path: str = "r.json", code: int = 0) -> dict:
    from converter import cli

    assert cli.run([*arguments, "--report", path]) == code
    return json.loads(Path(path).read_text())


def sha256(path: Path | str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


# ── what it says ─────────────────────────────────────────────────────────────────────────────


def test_every_target_has_its_sources_ops_and_rule(recorded):
    lineage = {row["name"]: row for row in recorded["lineage"]}
    assert {name: row["sources"] for name, row in lineage.items()} == {
        "layer0.weight": ["l0.w"],
        "layer1.weight": ["l1.w"],
        "qk": ["q", "k"],
        "one": ["both"],
        "two": ["both"],
        "zeros": [],
    }
    assert lineage["layer1.weight"]["exactness"] == "rounding"
    assert lineage["qk"]["exactness"] == "exact"
    (plan,) = recorded["plans"]
    step = {step["target"]: step for step in plan["steps"]}["layer1.weight"]
    assert step["rule"] == "m.yaml:6"
    assert step["source_specs"] == ["float32 [4, 6]"]
    assert step["after"] == [["float32 [6, 4]"], ["float16 [6, 4]"]]
    doubtful = {step["target"]: step for step in plan["steps"]}["layer0.weight"]
    assert doubtful["unconfirmed"]
    assert plan["dropped"] == [{"name": "step", "because": "a counter"}]
    assert plan["contracts"] == {"source": {"range": "0..255"}, "target": {"range": "0..1"}}


def test_the_digests_are_those_of_the_bytes(recorded):
    assert recorded["inputs"] == [
        {
            "name": "in.safetensors",
            "nbytes": Path("in.safetensors").stat().st_size,
            "sha256": sha256("in.safetensors"),
        }
    ]
    names = [row["name"] for row in recorded["outputs"]]
    assert names == ["out.ckpt.data-00000-of-00001", "out.ckpt.index"]
    assert all(row["sha256"] == sha256(row["name"]) for row in recorded["outputs"])
    (mapping,) = recorded["mappings"]
    assert mapping["files"] == [{"name": "m.yaml", "sha256": sha256("m.yaml")}]
    digest = {row["name"]: row["sha256"] for row in recorded["lineage"]}
    values = arrays()["l1.w"].T.astype(np.float16)
    assert digest["layer1.weight"] == hashlib.sha256(values.tobytes()).hexdigest()
    assert digest["zeros"] == hashlib.sha256(bytes(8)).hexdigest()


def test_strings_have_digests_that_know_their_ends():
    one, two = (
        digests.of_tensor(converter.from_arrays({"s": np.array(texts, object)})["s"])
        for texts in ([b"ab", b"c"], [b"a", b"bc"])
    )
    assert one != two


def test_a_chain_is_traced_to_the_first_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rules = "mapping: 1\nrules:\n  - {{source: {}, target: {}, ops: [{}]}}\n"
    Path("one.yaml").write_text(rules.format("[a, b]", "ab", "concat: 0"))
    Path("two.yaml").write_text(rules.format("ab", "c", "cast: float16"))
    two = np.ones(2, np.float32)
    converter.save(converter.from_arrays({"a": two, "b": two}), "in.npz")
    record = run("convert", "in.npz", "out.npz", "-m", "one.yaml", "-m", "two.yaml")
    (row,) = record["lineage"]
    assert (row["name"], row["sources"], row["exactness"]) == ("c", ["a", "b"], "rounding")
    assert [plan["steps"][0]["rule"] for plan in record["plans"]] == ["one.yaml:3", "two.yaml:3"]


# ── it is the same ───────────────────────────────────────────────────────────────────────────


def test_the_same_inputs_give_the_same_report(recorded, tmp_path, monkeypatch):
    first = Path("r.json").read_bytes()
    other = tmp_path / "elsewhere"
    other.mkdir()
    for name in ("in.safetensors", "m.yaml"):
        (other / name).write_bytes(Path(name).read_bytes())
    monkeypatch.chdir(other)
    run("convert", "in.safetensors", "out.ckpt", "-m", "m.yaml")
    assert Path("r.json").read_bytes() == first
    assert str(tmp_path).encode() not in first


def digest_of(path: Path) -> str:
    return str(report.mapping(converter.mapping(path).rules)["sha256"])


def test_a_mappings_digest_is_that_of_its_content_and_includes(tmp_path):
    own = "mapping: 1\ninclude:\n  - {mapping: part.yaml, source: a/, target: b.}\n"
    part = "mapping: 1\nrules:\n  - {source: w, target: w}\n"
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "m.yaml").write_text(own)
        (tmp_path / folder / "part.yaml").write_text(part)
    one, two = tmp_path / "one" / "m.yaml", tmp_path / "two" / "m.yaml"
    assert digest_of(one) == digest_of(two)
    named = report.mapping(converter.mapping(one).rules)["files"]
    assert [Path(row["name"]).name for row in named] == ["m.yaml", "part.yaml"]
    two.with_name("part.yaml").write_text(part + "# more\n")
    assert digest_of(one) != digest_of(two)
    two.with_name("part.yaml").write_bytes(part.replace("\n", "\r\n").encode())
    assert digest_of(one) == digest_of(two)  # as a checkout on Windows has it
    two.write_text(own + "# more\n")
    assert digest_of(one) != digest_of(two)


def test_a_shipped_mapping_is_known_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoints.write(Path("slim.ckpt"), checkpoints.slim())
    record = run("plan", "slim.ckpt", "-m", checkpoints.MAPPING)
    (mapping,) = record["mappings"]
    assert mapping["files"][0]["name"] == f"{checkpoints.MAPPING}.yaml"
    assert record["plans"][0]["steps"][0]["rule"].startswith(f"{checkpoints.MAPPING}.yaml:")
    assert record["status"] == "planned"
    assert all("sha256" not in row for row in record["inputs"])  # a plan reads headers alone


def test_a_source_that_changed_is_noticed(tmp_path):
    path = checkpoints.write(tmp_path / "a.npz", arrays())
    with converter.open(path) as checkpoint:
        known = report.Files.of(checkpoint.files)
    checkpoints.write(path, arrays() | {"more": np.zeros(3, np.float32)})
    with pytest.raises(SourceError, match="the file changed since it was opened"):
        known.digested()


# ── a target against its record ──────────────────────────────────────────────────────────────


@pytest.fixture(scope="module", params=sorted(TARGETS))
def written(request, tmp_path_factory):
    """A target of each format that is written, and its record."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "m.yaml").write_text(MAPPING)
        source("in.safetensors")
        to = ["--to", "tf-v1"] if request.param == "tf-v1" else []
        to += ["--shard-size", "64"] if request.param == "sharded" else []
        target = TARGETS[request.param]
        run("convert", "in.safetensors", target, "-m", "m.yaml", *to)
    return folder / target, report.read(folder / "r.json")


def test_every_format_that_is_written_is_here():
    assert {row.name for row in FORMATS if row.writes} == TARGETS.keys() - {"keras"}


def flips(target: Path, record: dict, count: int) -> None:
    """Flip single bits anywhere in the files of a target; each must be found."""
    paths = [target.with_name(row["name"]) for row in record["outputs"]]
    random_ = random.Random(target.name)
    assert report.check(record, target) == []
    for number in range(count):
        path = paths[number % len(paths)]
        content = bytearray(path.read_bytes())
        at, bit = random_.randrange(len(content)), random_.randrange(8)
        content[at] ^= 1 << bit
        path.write_bytes(content)
        found = report.check(record, target)
        content[at] ^= 1 << bit
        path.write_bytes(content)
        assert found, f"bit {bit} of byte {at} of {path.name}"
        assert found[0].path == path
        assert found[0].message == "the file is not what was written"
    assert report.check(record, target) == []


def test_any_flipped_bit_is_found_without_the_source(written):
    flips(*written, FLIPS)


@pytest.mark.slow
def test_a_thousand_flips(written):
    """A thousand over all formats; the figure is printed by `-s`."""
    flips(*written, MANY_FLIPS)


def test_a_flip_in_its_values_names_the_tensor(written):
    target, record = written
    values = np.concatenate([arrays()["q"], arrays()["k"]]).tobytes()
    paths = [target.with_name(row["name"]) for row in record["outputs"]]
    (path,) = (path for path in paths if values in path.read_bytes())
    before = path.read_bytes()
    path.write_bytes(before.replace(values, values[:5] + bytes([values[5] ^ 4]) + values[6:]))
    found = report.check(record, target)
    path.write_bytes(before)
    if target.name == TARGETS["tf-v1"]:  # all of this small file is one block of a table
        assert found[-1].message.startswith("it cannot be opened any more: ")
        return
    named = [each.tensor for each in found if each.tensor]
    whole = target.name == TARGETS["keras"]  # one checksum for all
    assert "qk" in named
    assert whole or named == ["qk"]


def test_what_is_missing_short_or_renamed(written, tmp_path):
    target, record = written
    names = [row["name"] for row in record["outputs"]]
    for name in names:
        (tmp_path / name).write_bytes(target.with_name(name).read_bytes())
    here = tmp_path / target.name
    assert report.check(record, here) == []
    last = tmp_path / names[-1]
    content = last.read_bytes()
    last.write_bytes(content[:-1])
    (problem, *_) = report.check(record, here)
    assert problem.message == "the file is not of the size that was written"
    assert problem.found == f"{len(content) - 1} bytes"
    last.unlink()
    (problem, *_) = report.check(record, here)
    assert problem.message == "cannot be read: No such file or directory"
    last.write_bytes(content)
    if len(names) == 1:
        last.rename(tmp_path / "other")
        assert report.check(record, tmp_path / "other") == []


def test_verify_by_report_as_a_command(recorded, capsys):
    from converter import cli

    command = ["verify", "out.ckpt", "--report", "r.json"]
    assert cli.run(command) == 0
    assert capsys.readouterr().err.endswith("2 files, 437 B, equal bit for bit\n")
    Path("in.safetensors").unlink()
    assert cli.run(command) == 0
    checkpoints.flip(Path("out.ckpt.data-00000-of-00001"), arrays()["both"][1:])
    before = Path("r.json").read_bytes()
    capsys.readouterr()
    assert cli.run(command) == 1
    said = capsys.readouterr().out
    assert "error[VER500]: the file is not what was written" in said
    assert "'two': the tensor checksum does not match" in said
    assert cli.run([*command, "--output-format", "json"]) == 1
    found = json.loads(capsys.readouterr().out)["diagnostics"]
    assert [row["tensor"] for row in found if row["tensor"]] == ["two"]
    assert Path("r.json").read_bytes() == before


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "[" * 100_000, '{"schema_version": 1, "status": "running"}', "\xff", "1e999"],
)
def test_what_is_no_record(text, tmp_path):
    path = tmp_path / "r.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(CorruptFileError, match="no report of a conversion that succeeded"):
        report.read(path)


@pytest.mark.parametrize("name", ["../in.safetensors", "/etc/passwd", "a/../../b", "\0", ""])
def test_a_record_names_files_beside_the_target_only(name, recorded, tmp_path):
    recorded["outputs"][0]["name"] = name
    path = tmp_path / "r.json"
    path.write_text(json.dumps(recorded))
    with pytest.raises(CorruptFileError, match="no report of a conversion that succeeded"):
        report.read(path)
