"""The page of a report: complete, readable by a parser, and deaf to what names try to be."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import converter as package
from tests.cli import checkpoints
from tests.cli.checkpoints import FC6, MAPPING

VOID = {"meta"}
HOSTILE = (
    "<script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    "&lt;b&gt;",
    "--><!-- \"quoted\" 'name'",
    "javascript:alert(1)",
    "evil\u202egnp.exe",
    "{x}</code></td>",
)


class Page(HTMLParser):
    """Checks that every element is closed in its turn; keeps the texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def test_the_review_of_a_conversion(converter, folder):
    done = converter(
        *("convert", "slim.ckpt", "out.pt", "-m", MAPPING),
        *("--report", "r.html", "--report", "r.json"),
    )
    assert done.code == 0
    page = Page((folder / "r.html").read_text("utf-8"))
    record = json.loads((folder / "r.json").read_text())
    for row in (*record["inputs"], *record["outputs"], *record["lineage"]):
        assert row["name"] in page.text
        assert row["sha256"] in page.text
    for step in record["plans"][0]["steps"]:
        assert step["rule"] in page.text
        assert all(name in page.text for name in (step["target"], *step["sources"]))
        assert all(doubt in page.text for doubt in step["unconfirmed"])
    assert "float32 [7, 7, 16, 128] → rearrange: " in page.text
    assert "h w i o -> o (i h w)" in page.text
    assert "kept in the contract" in page.text
    assert "123.68" in page.text


def test_it_needs_nothing_from_elsewhere(converter, folder):
    assert converter("plan", "slim.ckpt", "-m", MAPPING, "--report", "r.html").code == 0
    text = (folder / "r.html").read_text("utf-8")
    page = Page(text)
    assert not {tag for tag, _ in page.seen} & {"script", "link", "img", "iframe", "a", "form"}
    assert not {key for _, given in page.seen for key in given} & {"src", "href", "style"}
    assert not re.search(r"https?:|url\(|@import", text)
    assert "prefers-color-scheme: dark" in text
    assert "default-src 'none'" in text


def test_what_is_wrong_with_a_plan(converter, folder):
    other = "vgg16/fasterrcnn-pytorch"
    result = converter("plan", "slim.ckpt", "-m", other, "--report", "r.html")
    assert result.code == 1
    page = Page((folder / "r.html").read_text("utf-8"))
    assert "status rejected" in page.text
    for line in result.err.splitlines():
        found = re.search(r"error\[(\w+)\]: (.*)", line)
        if found:
            assert f"error {found[1]}" in page.text
            assert " ".join(found[2].split()) in page.text


def test_values_that_differ(converter, folder):
    for command, first in (("diff", "first"), ("verify", "expected")):
        path = f"{command}.html"
        assert converter(command, "slim.ckpt", "trained.ckpt", "--report", path).code == 1
        page = Page((folder / path).read_text("utf-8"))
        assert f"tensor differs in {first}" in page.text
        assert "34 tensors differ" in page.text or "equal" in page.text
        assert FC6 in page.text
    assert converter("diff", "slim.ckpt", "slim.pt", "--report", "same.html").code == 0
    page = Page((folder / "same.html").read_text("utf-8"))
    assert "34 tensors, all equal" in page.text
    assert "status equal" in page.text


def test_a_failure_has_a_page_too(converter, folder):
    assert converter("convert", "slim.ckpt", "slim.pt", "--report", "r.html").code == 4
    page = Page((folder / "r.html").read_text("utf-8"))
    assert "status failed" in page.text
    assert "the target exists" in page.text


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_hostile_names_are_only_text(suffix, converter, folder):
    arrays = {name: np.ones((2, 2), np.float32) for name in HOSTILE}
    source = Path(f"a{suffix}")
    try:
        package.save(package.from_arrays(arrays), source)
    except package.ConverterError:  # a format may refuse such names
        pytest.skip(f"{suffix} does not hold these names")
    plain = folder / "plain.npz"
    package.save(package.from_arrays({"plain": np.ones(2, np.float32)}), plain)
    hostile = "<b onclick=alert(1)>.npz"
    assert converter("convert", source, hostile, "--report", "r.html").code == 0
    assert converter("diff", source, plain, "--report", "d.html").code == 1
    known = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "table", "tr"}
    known |= {"th", "td", "div", "span", "code", "p", "b", "details", "summary"}
    for path in ("r.html", "d.html"):
        page = Page((folder / path).read_text("utf-8"))
        assert {tag for tag, _ in page.seen} <= known
        assert {key for _, given in page.seen for key in given} <= {
            *("class", "lang", "charset", "name", "content", "http-equiv"),
        }
        for name in HOSTILE:
            shown = name.replace("\u202e", "\\u202e")
            assert " ".join(shown.split()) in page.text
        assert "\u202e" not in page.text
    assert hostile in Page((folder / "r.html").read_text("utf-8")).text


def test_a_page_replaces_its_own_kind_alone(converter, folder):
    page = folder / "r.html"
    for _ in range(2):
        assert converter("plan", "slim.ckpt", "--report", page).code == 0
    before = page.read_bytes()
    result = converter("diff", "slim.ckpt", "slim.pt", "--report", page)
    assert result.code == 4
    assert "this is no report of `converter diff`" in result.err
    assert page.read_bytes() == before
    page.write_text("<!doctype html>\n<p>mine")
    assert converter("plan", "slim.ckpt", "--report", page).code == 4


def test_numbers_that_json_does_not_know(converter, folder):
    one = np.array([np.nan, 1], np.float32)
    checkpoints.write(folder / "a.npz", {"w": one})
    checkpoints.write(folder / "b.npz", {"w": np.array([np.inf, 1], np.float32)})
    arguments = "diff", "a.npz", "b.npz", "--report", "r.html", "--report", "r.json"
    assert converter(*arguments).code == 1
    assert "by Infinity at most" in Page((folder / "r.html").read_text("utf-8")).text
    assert json.loads((folder / "r.json").read_text())["tensors"][0]["max_abs"] == "Infinity"
