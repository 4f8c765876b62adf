"""The sample repository: ten ports over five formats, and nothing twice."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from converter import cli, digests, formats
from converter.batch import lock
from converter.batch.pool import Pool
from converter.cli.worker import _digested, _prove
from converter.engine import Saved
from converter.errors import SourceError, VerificationError
from converter.tensors import from_arrays
from tests.batch.conftest import files

TEN = 10
HEAD = "ported/head.safetensors"


def edit(path: str, before: str, after: str) -> None:
    text = Path(path).read_text()
    assert before in text
    Path(path).write_text(text.replace(before, after))


@pytest.fixture
def counted(monkeypatch):
    """How many files were hashed here, and workers started."""
    found: Counter[str] = Counter()
    digest_of, start = lock.digest_of, Pool._start

    def hashing(path):
        found["hashed"] += 1
        return digest_of(path)

    def starting(pool):
        found["workers"] += 1
        return start(pool)

    monkeypatch.setattr(lock, "digest_of", hashing)
    monkeypatch.setattr(Pool, "_start", starting)
    return found


def test_first_all_then_none(sample, batch, counted):
    """The second run reads headers of no checkpoint, hashes no file and starts no worker."""
    first = batch("--jobs", 2)
    assert first.code == 0, first.err
    assert list(first.statuses.values()) == ["converted"] * TEN
    assert counted["workers"] in (1, 2)
    before = files(sample)
    counted.clear()
    second = batch()
    assert second.code == 0
    assert list(second.statuses.values()) == ["up-to-date"] * TEN
    assert not counted
    assert files(sample) == before


def test_with_nothing_to_do_nothing_heavy_is_imported(sample, batch):
    """So the second run takes about as long as `--help`; `benchmarks/batch.py` has the times."""
    assert batch().code == 0
    child = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "converter", "batch", "ports.yaml"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in child.stderr.splitlines()}
    assert "converter" in loaded
    assert not {"numpy", "pydantic", "h5py", "yaml"} & loaded
    assert f"{TEN} entries: {TEN} up to date" in child.stderr


def test_what_a_quick_look_must_not_miss(sample, batch):
    """A new file for a glob; a file under a shipped mapping's name; another lock."""
    assert batch().code == 0
    shutil.copy("checkpoints/embedding-en.npz", "checkpoints/embedding-fr.npz")
    assert batch().statuses["ported/embedding-fr.pt"] == "converted"
    Path("vgg16").mkdir()
    Path("vgg16/slim-torchvision").write_text("mapping: 1\nrules: []\n")
    assert batch().code == 1
    shutil.rmtree("vgg16")
    assert set(batch().statuses.values()) == {"up-to-date"}
    data = json.loads(Path("ports.lock.json").read_text())
    del data["entries"]["head"]
    Path("ports.lock.json").write_text(json.dumps(data))
    assert batch("--locked").code == 1
    assert batch("--overwrite").statuses["head"] == "converted"  # no lock says that it is ours


def test_the_sample_covers_five_formats(done):
    made = (path for path in (done / "ported").iterdir() if ".data-" not in path.name)
    found = {formats.recognise(path).name for path in (*(done / "checkpoints").iterdir(), *made)}
    assert {"tf-v1", "tf-v2", "torch", "safetensors", "npz", "sharded"} <= found


def test_the_values_are_those_of_the_source(done):
    """By NumPy alone: the tables as they were, the head transposed in another format's bytes."""
    source = np.load(done / "checkpoints" / "embedding-en.npz")
    backbone = np.load(done / "ported" / "backbone.npz")
    assert all(name.startswith("backbone.") for name in backbone)
    assert source["table"].tobytes() in (done / "ported" / "embedding-en.pt").read_bytes()
    kernel = np.load(done / "checkpoints" / "head.npz")["head/kernel"]
    assert np.ascontiguousarray(kernel.T).tobytes() in (done / HEAD).read_bytes()


def test_an_edited_mapping_converts_one(ported, batch):
    edit("mappings/head.yaml", "target: head.bias", "target: head.offset")
    result = batch()
    kinds = Counter(result.statuses.values())
    assert kinds == {"converted": 1, "up-to-date": TEN - 1}
    assert result.statuses["head"] == "converted"
    assert b"head.offset" in Path(HEAD).read_bytes()


def test_an_edited_option_converts_one(ported, batch):
    edit("ports.yaml", '["vgg_16/fc8/**"]', '["vgg_16/fc7/**"]')
    assert [name for name, s in batch().statuses.items() if s == "converted"] == ["backbone"]


def test_an_edited_source_converts_what_is_made_of_it(ported, batch):
    shutil.copy("checkpoints/embedding-en.npz", "checkpoints/embedding-de.npz")
    assert [n for n, s in batch().statuses.items() if s == "converted"] == [
        "ported/embedding-de.pt"
    ]


def test_an_include_is_part_of_a_mapping(ported, batch):
    rules = Path("mappings/embedding.yaml").read_text()
    Path("mappings/inner.yaml").write_text(rules)
    Path("mappings/embedding.yaml").write_text("mapping: 1\ninclude: [{mapping: ./inner.yaml}]\n")
    assert Counter(batch().statuses.values())["converted"] == 2
    edit("mappings/inner.yaml", "embedding.weight", "table.weight")
    assert Counter(batch().statuses.values())["converted"] == 2
    assert Counter(batch().statuses.values())["converted"] == 0


@pytest.mark.parametrize("trusted", [True, False], ids=["same machine", "fresh clone"])
@pytest.mark.parametrize("how", ["flip", "flip, old times", "cut", "removed"])
def test_a_damaged_output_is_made_again(how, trusted, done, ported, batch):
    if trusted:
        batch()
    path, before = Path(HEAD), Path(HEAD).read_bytes()
    facts = path.stat()
    damaged = bytearray(before)
    damaged[-1] ^= 1
    path.unlink() if how == "removed" else path.write_bytes(
        before[:-1] if how == "cut" else damaged
    )
    if how == "flip, old times":
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    result = batch()
    assert [name for name, status in result.statuses.items() if status == "converted"] == ["head"]
    assert path.read_bytes() == before


def test_rehash_trusts_no_times(ported, batch, counted):
    batch()
    counted.clear()
    assert batch("--rehash").code == 0
    assert counted["hashed"] > TEN
    assert not counted["workers"]


def test_a_broken_mapping_fails_with_its_line_and_nine_are_done(sample, batch):
    edit("mappings/head.yaml", "rearrange:", "rearrenge:")
    result = batch(style="github")
    assert result.code == 1
    (line,) = result.out.splitlines()
    assert line.startswith("::error title=converter MAP102,file=mappings/head.yaml,line=8,col=11,")
    assert "failed      head" in result.err
    assert "10 entries: 9 converted, 1 failed" in result.err
    edit("mappings/head.yaml", "rearrenge:", "rearrange:")
    assert Counter(batch().statuses.values()) == {"converted": 1, "up-to-date": TEN - 1}


def test_the_same_inputs_give_the_same_bytes_elsewhere(done, fresh, tmp_path, monkeypatch):
    """In another folder, from another working folder, one after the other, in little memory."""
    other = tmp_path / "deep" / "er"
    shutil.copytree(fresh, other)
    monkeypatch.chdir(tmp_path)
    command = ["batch", "deep/er/ports.yaml", "--jobs", "1", "--max-memory", "256MiB"]
    assert cli.run(command) == 0
    assert files(other) == files(done)


def test_a_fresh_clone_with_its_outputs_converts_nothing(ported, batch, counted):
    result = batch()
    assert set(result.statuses.values()) == {"up-to-date"}
    assert counted["hashed"] > TEN
    assert not counted["workers"]


def test_the_plan_judges_everything_and_writes_nothing(sample, batch):
    before = sorted(sample.rglob("*"))
    result = batch("--plan")
    assert result.code == 0
    assert set(result.statuses.values()) == {"planned"}
    assert sorted(sample.rglob("*")) == before
    edit("mappings/head.yaml", "source: head/bias", "source: head/biases")
    result = batch("--plan", style="full")
    assert result.code == 1
    assert "mappings/head.yaml:9:13: error[PLN202]" in result.out
    assert sorted(sample.rglob("*")) == before


def test_the_plan_knows_what_is_up_to_date(ported, batch):
    edit("mappings/head.yaml", "target: head.bias", "target: head.offset")
    assert Counter(batch("--plan").statuses.values()) == {"planned": 1, "up-to-date": TEN - 1}


# ── the lock ─────────────────────────────────────────────────────────────────────────────────


def test_locked_accepts_what_is_checked_in(ported, batch):
    assert batch("--locked").code == 0
    shutil.rmtree("ported")
    before = Path("ports.lock.json").read_bytes()
    result = batch("--locked")  # a build server that has the lock, and no outputs
    assert result.code == 0
    assert set(result.statuses.values()) == {"converted"}
    assert Path("ports.lock.json").read_bytes() == before


@pytest.mark.parametrize("what", ["mapping", "option", "entry", "no lock", "bytes"])
def test_locked_fails_when_the_lock_would_change(what, ported, batch):
    if what == "mapping":
        edit("mappings/head.yaml", "target: head.bias", "target: head.offset")
    elif what == "option":
        edit("ports.yaml", '["vgg_16/fc8/**"]', '["vgg_16/fc7/**"]')
    elif what == "entry":
        edit("ports.yaml", "name: head", "name: dense")
    elif what == "no lock":
        Path("ports.lock.json").unlink()
    else:
        data = json.loads(Path("ports.lock.json").read_text())
        data["entries"]["head"]["outputs"][HEAD] = "0" * 64
        Path("ports.lock.json").write_text(json.dumps(data))
    before = files(ported) if what != "no lock" else {}
    for words in (["--locked", "--plan"], ["--locked"]):
        result = batch(*words)
        if what == "bytes" and "--plan" in words:
            continue  # only a conversion shows that
        assert result.code == 1, result
        found = json.loads(result.out)["diagnostics"]
        assert "BAT201" in {each["code"] for each in found}
    if before:
        assert files(ported) == before


def test_the_lock_forgets_what_the_manifest_does(ported, batch):
    text = Path("ports.yaml").read_text()
    head, _, rest = text.partition("  - name: head\n")
    Path("ports.yaml").write_text(head + "  - source" + rest.partition("\n  - source")[2])
    assert batch().code == 0
    assert "head" not in json.loads(Path("ports.lock.json").read_text())["entries"]


def test_another_version_converts_again(ported, batch):
    data = json.loads(Path("ports.lock.json").read_text())
    data["entries"]["head"]["converter"] = "0.0.1"
    Path("ports.lock.json").write_text(json.dumps(data))
    result = batch()
    assert result.statuses["head"] == "converted"
    assert "(another converter)" in result.err


# ── entries ──────────────────────────────────────────────────────────────────────────────────


def test_chosen_entries_bring_what_they_need(sample, batch):
    assert batch("--entry", "shards").statuses == {
        "safetensors": "converted",
        "shards": "converted",
    }
    assert batch("--entry", "ported/embedding-*").statuses.keys() == {
        "ported/embedding-de.pt",
        "ported/embedding-en.pt",
    }


def test_what_needs_a_failed_entry_is_skipped(sample, batch):
    Path("checkpoints/vgg_16.ckpt").unlink()
    result = batch()
    assert result.code == 1
    assert Counter(result.statuses.values()) == {"converted": 3, "failed": 5, "skipped": 2}
    assert "skipped     shards (needs 'safetensors')" in result.err


def test_fail_fast_begins_no_other(sample, batch):
    Path("checkpoints/vgg_16.ckpt").unlink()
    kinds = Counter(batch("--fail-fast", "--jobs", 1).statuses.values())
    assert kinds["failed"] >= 1
    assert kinds["skipped"] == TEN - kinds["failed"] - kinds["converted"]
    assert kinds["skipped"] >= 2


def test_what_somebody_else_made_is_not_replaced(sample, batch):
    Path("ported").mkdir()
    Path(HEAD).write_text("precious")
    for words in (["--plan"], [], []):
        result = batch(*words)
        assert result.statuses["head"] == "failed"
        assert "SEC601" in result.out
        assert Path(HEAD).read_text() == "precious"
    assert batch("--overwrite").statuses["head"] == "converted"


def test_reports_are_made_once_and_say_the_same_again(ported, batch):
    assert batch("--reports", "pages").code == 0
    names = {path.name for path in Path("pages").iterdir()}
    assert {"head.json", "head.html"} <= names
    assert len(names) == 2 * TEN
    record = json.loads(Path("pages/head.json").read_text())
    assert record["status"] == "converted"
    assert [row["sources"] for row in record["lineage"]] == [["head/kernel"], ["head/bias"]]
    assert (
        record["outputs"][0]["sha256"]
        == json.loads(Path("ports.lock.json").read_text())["entries"]["head"]["outputs"][HEAD]
    )
    before = {name: (Path("pages") / name).read_bytes() for name in names}
    assert set(batch("--reports", "pages").statuses.values()) == {"up-to-date"}
    shutil.rmtree("pages")
    batch("--reports", "pages", "--jobs", 1)
    assert {name: (Path("pages") / name).read_bytes() for name in names} == before


def test_verify_computes_everything_again(sample, batch):
    assert batch("--verify", "--entry", "head").code == 0


def test_the_sample_is_small(fresh):
    """It is built from generated checkpoints: the rest of it is text."""
    for path in fresh.rglob("*"):
        if path.is_file() and path.parent.name != "checkpoints":
            assert len(path.read_text(encoding="utf-8")) < 50_000


def test_a_target_that_is_not_what_the_mapping_makes_is_found():
    mapped = from_arrays({"a": np.arange(3)})
    right = [{"name": "a", "sha256": digests.of_tensor(mapped["a"])}]
    _prove(mapped, right, Path("t.npz"))
    with pytest.raises(VerificationError, match="does not hold what the mapping makes"):
        _prove(mapped, [{"name": "a", "sha256": "0" * 64}], Path("t.npz"))


def test_a_source_that_changes_meanwhile_is_noticed(sample):
    path = Path("checkpoints/head.npz")
    before = lock.stamp_of(path)
    path.write_bytes(path.read_bytes())
    with pytest.raises(SourceError, match="the file changed while it was read"):
        _digested({path: before}, [], Saved((), "npz", 0, 0))
