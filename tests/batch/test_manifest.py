"""Manifests: matrices, globs, what comes after what, and mistakes with their places."""

from __future__ import annotations

from pathlib import Path

import pytest

from converter.batch.manifest import load, loads, stem
from converter.errors import MappingError
from converter.language.codes import CODES
from tests.batch.conftest import manifest_of

HEAD = "batch: 1\nentries:\n"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(text: str):
    return loads(text, Path("ports.yaml")).entries


def found(text: str) -> list[tuple[str, int, int]]:
    with pytest.raises(MappingError, match="error") as caught:
        read(text)
    return [(each.code, each.line, each.column) for each in caught.value.diagnostics]


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


# ── matrices and variables ───────────────────────────────────────────────────────────────────


def test_a_matrix_is_every_combination():
    text = """
  - source: a.ckpt
    target: out/a-${heads}-${dtype}-${shard}.safetensors
    matrix: {heads: [8, 12], dtype: [float16, float32], shard: [1MB]}
    options: {sizes: {heads: "${heads}"}, dtype: "${dtype}", shard_size: "${shard}"}
"""
    entries = read(HEAD + text)
    assert [entry.name for entry in entries] == [
        f"out/a-{h}-{d}-1MB.safetensors" for h in (8, 12) for d in ("float16", "float32")
    ]
    options = entries[3].options
    assert (options.sizes, options.dtype, options.shard_size) == ({"heads": 12}, "float32", 10**6)


def test_a_name_is_told_apart_by_its_axes():
    text = "  - {name: x, source: a, target: 'b${n}.pt', matrix: {n: [1, 2]}}\n"
    after = "  - {source: c, target: d.pt, needs: [x]}\n"
    entries = {entry.name: entry for entry in read(HEAD + text + after)}
    assert list(entries) == ["x (1)", "x (2)", "d.pt"]
    assert entries["d.pt"].needs == ("x (1)", "x (2)")


def test_defaults_are_for_who_does_not_say_otherwise():
    text = manifest_of(
        {"source": "a", "target": "b"},
        {"source": "a", "target": "c", "options": {"dtype": "float32"}},
        defaults={"dtype": "float16", "reverse": True},
    )
    assert [(e.options.dtype, e.options.reverse) for e in read(text)] == [
        ("float16", True),
        ("float32", True),
    ]


def test_patterns_keep_their_holes():
    entry = {"source": "a", "target": "b", "options": {"only": ["fc{n}/*", "$x", "{{y}}"[1:-1]]}}
    assert read(manifest_of(entry))[0].options.only[:2] == ["fc{n}/*", "$x"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.ckpt", "a"),
        ("a.b.safetensors", "a.b"),
        ("a.safetensors.index.json", "a"),
        ("a.weights.h5", "a"),
        ("a.tar.xyz", "a.tar"),
        ("model", "model"),
    ],
)
def test_the_stem_is_without_the_suffix_of_the_format(name, expected):
    assert stem(Path(name)) == expected


# ── globs and order ──────────────────────────────────────────────────────────────────────────


def test_a_glob_is_an_entry_for_each_file():
    touch("in/b.pt", "in/a.pt", "in/deep/c.pt", "in/note.txt")
    entries = read(manifest_of({"source": "in/**/*.pt", "target": "out/${folder}/${file}.npz"}))
    assert [(str(e.source), str(e.target)) for e in entries] == [
        ("in/a.pt", "out/in/a.pt.npz"),
        ("in/b.pt", "out/in/b.pt.npz"),
        ("in/deep/c.pt", "out/deep/c.pt.npz"),
    ]


def test_a_glob_sees_targets_above_and_none_of_its_own():
    touch("m/a.pt", "m/a-half.pt", "m/a-half-half.pt")
    text = manifest_of(
        {"source": "x.ckpt", "target": "m/new.pt"},
        {"source": "m/*.pt", "target": "m/${stem}-half.pt"},
    )
    assert [str(entry.source) for entry in read(text)][1:] == ["m/a.pt", "m/new.pt"]


def test_a_glob_does_not_see_what_was_made_before():
    touch("m/a.pt", "m/made-00001-of-00002.pt")
    text = manifest_of({"source": "m/*.pt", "target": "out/${stem}.npz"})
    entries = loads(text, Path("ports.yaml"), [Path("m/made-00001-of-00002.pt")]).entries
    assert [str(entry.source) for entry in entries] == ["m/a.pt"]


def test_a_name_with_a_star_in_it_is_a_file():
    touch("a[1].pt")
    assert str(read(manifest_of({"source": "a[1].pt", "target": "b.npz"}))[0].source) == "a[1].pt"


def test_what_makes_a_source_comes_first():
    text = manifest_of(
        {"source": "b.safetensors.index.json", "target": "c.pt"},
        {"source": "a.ckpt", "target": "b.safetensors", "options": {"shard_size": "1MB"}},
        {"source": "c.pt#model", "target": "d.pt"},
        {"source": "z.pt", "target": "y.pt"},
    )
    entries = read(text)
    assert [str(entry.target) for entry in entries] == ["b.safetensors", "y.pt", "c.pt", "d.pt"]
    assert entries[3].needs == ("c.pt",)
    assert (str(entries[3].source), entries[3].part) == ("c.pt", "model")


def test_paths_start_at_the_manifest():
    touch("deep/in/a.pt", "deep/m.yaml")
    Path("deep/ports.yaml").write_text(
        manifest_of({"source": "in/*.pt", "target": "../out.npz", "mapping": ["m.yaml", "a/b"]})
    )
    (entry,) = load(Path("deep/ports.yaml")).entries
    assert (str(entry.source), str(entry.target)) == ("deep/in/a.pt", "out.npz")
    assert entry.mappings == ("deep/m.yaml", "a/b")


# ── mistakes ─────────────────────────────────────────────────────────────────────────────────

MISTAKES = {
    "unknown key": ("  - source: a\n    target: b\n    mappping: m\n", "MAP002", 5, 5),
    "unknown option": ("  - source: a\n    target: b\n    options: {dtipe: x}\n", "MAP002", 5, 15),
    "no target": ("  - source: a\n", "MAP002", 3, 5),
    "twice": ("  - source: a\n    source: b\n    target: c\n", "MAP001", 4, 5),
    "no dtype": ("  - source: a\n    target: b\n    options: {dtype: int8}\n", "MAP002", 5, 22),
    "no size": ("  - source: a\n    target: b\n    options: {shard_size: lots}\n", "MAP002", 5, 27),
    "a word for a number": (
        "  - source: a\n    target: b\n    options:\n      sizes: {h: many}\n", "MAP002", 6, 18,
    ),
    "yes is no boolean": ("  - source: a\n    target: b\n    optional: yes\n", "MAP002", 5, 15),
    "no pattern": ("  - source: a\n    target: b\n    options: {only: ['{']}\n", "MAP002", 5, 22),
    "unknown variable": ("  - source: a\n    target: b${x}\n", "BAT104", 4, 13),
    "empty axis": ("  - source: a\n    target: b\n    matrix: {x: []}\n", "MAP002", 5, 17),
    "axis with a taken name": (
        "  - source: a\n    target: b\n    matrix: {stem: [1]}\n", "BAT104", 5, 14,
    ),
    "matrix of another type": ("  - source: a\n    target: b\n    matrix: []\n", "MAP002", 5, 13),
    "no file": ("  - source: 'in/*.pt'\n    target: '${stem}'\n", "BAT103", 3, 13),
    "no entry": ("  - source: a\n    target: b\n    needs: [c]\n", "BAT103", 5, 12),
    "one target twice": (
        "  - {source: a, target: b}\n  - {source: c, target: b, name: d}\n", "BAT101", 4, 25,
    ),
    "one name twice": (
        "  - {source: a, target: b}\n  - {source: c, target: d, name: b}\n", "BAT101", 4, 5,
    ),
    "circle": ("  - {source: a, target: b}\n  - {source: b, target: a}\n", "BAT102", 3, 5),
    "the source": ("  - {source: a, target: x/../a}\n", "BAT105", 3, 25),
    "the manifest": ("  - {source: a, target: ports.yaml}\n", "BAT105", 3, 25),
    "a folder": ("  - {source: a, target: .}\n", "BAT105", 3, 25),
}  # fmt: skip


@pytest.mark.parametrize("text", MISTAKES, ids=str)
def test_a_mistake_is_named_where_it_is(text):
    body, code, line, column = MISTAKES[text]
    assert (code, line, column) in found(HEAD + body)


def test_all_mistakes_come_at_once():
    text = HEAD + "  - {source: a}\n  - {target: b}\n  - {source: c, target: 'd${e}'}\n"
    assert [line for _, line, _ in found(text)] == [3, 4, 5]


@pytest.mark.parametrize(
    ("text", "code"),
    [("", "MAP002"), ("batch: 2\nentries: [{source: a, target: b}]\n", "MAP002"),
     ("batch: 1\nentries: []\n", "MAP002"), ("batch: 1\nentries: {a: b}\n", "MAP002"),
     ("[]", "MAP002"), ("a: &b c\n", "MAP001"), ("{", "MAP001")],
)  # fmt: skip
def test_what_is_no_manifest(text, code):
    assert found(text)[0][0] == code


def test_a_matrix_has_its_bounds(monkeypatch):
    many = {"matrix": {f"a{n}": list(range(100)) for n in range(9)}, "source": "a", "target": "b"}
    assert found(manifest_of(many))[0][0] == "BAT104"
    monkeypatch.setattr("converter.batch.manifest.MAX_ENTRIES", 200)
    wrong = {"matrix": {"x": list(range(199))}, "source": "a"}
    assert len(found(manifest_of(*[wrong] * 500))) < 400


@pytest.mark.parametrize("code", [code for code in CODES if code.startswith("BAT1")])
def test_the_examples_of_codes_are_right(code):
    assert code in {each for each, _, _ in found(CODES[code].bad)}
    read(CODES[code].good)
