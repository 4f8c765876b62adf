"""Manifests and locks from strangers: typed errors, soon, and nothing else."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from converter import cli
from converter.batch.lock import Lock, Seen
from converter.batch.manifest import load
from converter.errors import ConverterError
from tests.batch.conftest import EXAMPLE, manifest_of

MUTANTS = 400
SECONDS = 20  # of all that one hostile file may cost; it is bounded by sizes, not by time


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def nested(depth: int, kind: str) -> str:
    if kind == "json":
        return '{"a":' * depth + "1" + "}" * depth
    return "batch: 1\nentries: " + "[" * depth + "]" * depth


def entry(**more: object) -> str:
    return manifest_of({"source": "a", "target": "b"} | more)


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nbatch: 1\nentries: *c\n"
MANIFESTS = {
    "a YAML bomb": BOMB,
    "a merge key": "batch: 1\nentries: [{<<: {source: a}, target: b}]\n",
    "a tag": "batch: 1\nentries: [!!python/object/apply:os.system ['touch canary']]\n",
    "deep nesting": nested(100_000, "yaml"),
    "too long": "batch: 1\nentries: []\n" + "#" * (1 << 20),
    "a huge number": "batch: " + "9" * 5000,
    "a huge version": "batch: 1e400\nentries: []\n",
    "a huge size": entry(options={"shard_size": "9" * 15 + "TB"}),
    "a long digit string": entry(options={"shard_size": "9" * 4000}),
    "a huge dimension": entry(options={"sizes": {"h": 10**18}}),
    "a matrix of matrices": entry(matrix={f"a{n}": [1, 2] for n in range(64)}),
    "a NUL in a path": entry(source="a\0b"),
    "a NUL in a glob": entry(source="*\0"),
    "half a character": '{"batch": 1, "entries": [{"source": "\\ud800", "target": "b"}]}',
    "a long path": entry(source="a" * 4097),
    "a long name of a file": entry(source="a" * 300 + "/b", target="c" * 3000),
    "a long name of a mapping": entry(mapping="m" * 3000),
    "a glob of everything": entry(source="**/" * 1000 + "*"),
    "a bad glob": entry(source="[[[*"),
    "only dots": entry(source="../" * 1000 + "*", target="../" * 1000),
    "a variable in a variable": entry(target="${${stem}}"),
    "a variable that is itself": entry(target="${a}", matrix={"a": ["${a}"]}),
    "an empty name": entry(name=""),
    "a name with lines": entry(name="a\nb\r::error::x"),
    "an escape code": entry(name="\x1b[2J"),
    "needs itself": entry(name="x", needs=["x"]),
    "null everywhere": "batch: 1\nentries: [null, {source: null, target: null, matrix: null}]\n",
    "options of a null": entry(options=None),
    "numbers for words": "batch: 1\nentries: [{source: 1, target: 2, mapping: 3, needs: 4}]\n",
    "nan": "batch: 1\nentries: [{source: a, target: b, matrix: {x: [.nan, .inf]}}]\n",
}
DONE = {"converter": "1", "source": "a", "target": "b", "files": {}, "outputs": {}}
LOCKS = {
    "no JSON": "lock: 1",
    "an empty file": "",
    "a list": "[]",
    "deep nesting": nested(100_000, "json"),
    "another version": '{"lock": 2, "entries": {}}',
    "a huge number": '{"lock": 1' + "0" * 5000 + ', "entries": {}}',
    "no digest": json.dumps({"lock": 1, "entries": {"b": DONE | {"outputs": {"b": "00"}}}}),
    "an unknown key": json.dumps({"lock": 1, "entries": {"b": DONE | {"run": "rm"}}}),
    "nulls": '{"lock": null, "entries": null}',
    "half a character": '{"lock": 1, "entries": {"\\ud800": 1}}',
    "a NUL in a path": json.dumps(
        {"lock": 1, "entries": {"b": DONE | {"files": {"\0": "0" * 64}}}}
    ),
    "a path of a device": json.dumps(
        {"lock": 1, "entries": {"b": DONE | {"outputs": {"/dev/zero": "0" * 64}}}}
    ),
    "a long path": json.dumps(
        {"lock": 1, "entries": {"b": DONE | {"files": {"a" * 9999: "0" * 64}}}}
    ),
    "deep options": json.dumps(
        {"lock": 1, "entries": {"b": DONE | {"options": json.loads(nested(50, "json"))}}}
    ),
}


def judged(*words: str) -> int:
    """Run the command; the exit code, which must not be that of a bug."""
    begun = time.monotonic()
    code = cli.run(["batch", "ports.yaml", *words])
    assert time.monotonic() - begun < SECONDS
    assert code in (0, 1, 2, 3, 4)
    assert not Path("canary").exists()
    return code


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_hostile_manifest_is_refused_or_harmless(name, capfd):
    Path("ports.yaml").write_text(MANIFESTS[name], encoding="utf-8")
    assert judged("--plan") != 0
    out, err = capfd.readouterr()
    assert "internal error" not in out + err
    assert "\x1b" not in out + err
    assert "\n::error::" not in out + err


@pytest.mark.parametrize("name", LOCKS)
def test_a_hostile_lock_is_refused_or_harmless(name, capfd):
    Path("ports.yaml").write_text(entry())
    Path("ports.lock.json").write_text(LOCKS[name], encoding="utf-8")
    assert judged("--plan") != 0
    assert judged("--plan", "--locked") != 0
    assert "internal error" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("name", LOCKS)
def test_a_hostile_memory_is_forgotten(name):
    Path(".converter_cache").mkdir()
    Path(".converter_cache/ports.json").write_text(LOCKS[name], encoding="utf-8")
    seen = Seen(Path("ports.yaml"))
    assert (seen.known, seen.started) == ({}, set())


def mutant(text: bytes, moments: random.Random) -> bytes:
    """The text with some bytes flipped, cut out, repeated or exchanged."""
    data = bytearray(text)
    for _ in range(moments.randint(1, 4)):
        at = moments.randrange(len(data) or 1)
        end = at + moments.randint(0, 12)
        kind = moments.randrange(4)
        if kind == 0 and data:
            data[at % len(data)] = moments.randrange(256)
        elif kind == 1:
            del data[at:end]
        elif kind == 2:
            data[at:at] = data[at:end] * moments.randint(1, 3)
        else:
            data[at:end] = moments.choice(
                [b"{", b"}", b"[", b": ", b"\n", b"${x}", b"*", b"'", b"9" * 30]
            )
    return bytes(data)


@pytest.mark.parametrize("seed", range(4))
def test_mutants_of_a_manifest_give_typed_errors_only(seed):
    moments = random.Random(seed)
    whole, refused = (EXAMPLE / "ports.yaml").read_bytes(), 0
    path = Path("ports.yaml")
    for _ in range(MUTANTS // 4):
        path.write_bytes(mutant(whole, moments))
        try:
            load(path)
        except ConverterError:
            refused += 1
    assert refused


def test_mutants_of_a_lock_give_typed_errors_only(done):
    moments = random.Random(0)
    whole, refused = (done / "ports.lock.json").read_bytes(), 0
    for _ in range(MUTANTS):
        Path("ports.lock.json").write_bytes(mutant(whole, moments))
        try:
            Lock(Path("ports.yaml")).made()
        except ConverterError:
            refused += 1
    assert refused


def test_a_target_never_leaves_what_it_replaces_half(sample, batch):
    """A lock that claims somebody's file lets it be replaced only by a whole one."""
    Path("ported").mkdir()
    Path("ported/head.safetensors").write_text("precious")
    Path("checkpoints/head.npz").write_bytes(Path("checkpoints/head.npz").read_bytes()[:-100])
    assert batch("--overwrite", "--entry", "head").code == 1
    assert Path("ported/head.safetensors").read_text() == "precious"
