"""`converter explain`: every code is explained, and every example is one."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import numpy as np
import pytest

from converter import errors
from converter.errors import MappingError
from converter.language import loads
from converter.language.codes import CODES
from converter.language.examples import run
from converter.language.lint import lint
from converter.language.schema import TITLE
from converter.plan import Port
from converter.probes import findings
from converter.tensors import TensorSpec

ROOT = Path(__file__).parents[2]


def in_the_code() -> set[str]:
    """Every text in the package that is a code."""
    found = set()
    for path in (ROOT / "converter").rglob("*.py"):
        if path.name == "codes.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= set(re.findall(r"^[A-Z]{3}[0-9]{3}$", node.value))
    return found


def classes(kind=errors.ConverterError):
    return [kind, *(each for sub in kind.__subclasses__() for each in classes(sub))]


def test_every_code_of_the_package_has_an_entry():
    assert in_the_code() == set(CODES)


def test_every_error_has_an_entry():
    assert {kind.code for kind in classes() if kind.__module__ == "converter.errors"} <= set(CODES)


def test_the_table_is_sorted_by_family_and_number():
    families = [code[:3] for code in CODES]
    assert [f for n, f in enumerate(families) if f not in families[:n]] == list(
        dict.fromkeys(families)
    )
    for family in set(families):
        codes = [code for code in CODES if code.startswith(family)]
        assert codes == sorted(codes)


def mapping(text: str) -> str:
    """An example of the table as a file: it is one, or the rules of one."""
    if not text.startswith("- "):
        return text
    return "mapping: 1\nrules:\n" + "".join(f"  {line}\n" for line in text.splitlines())


def found(code: str, text: str, folder: Path) -> set[str]:
    """The codes of what is said about an example."""
    text, tensors = mapping(text), CODES[code].tensors
    if code in ("MAP140", "MAP141"):
        return {each.code for each in run(text, folder / "m.yaml")[1]}
    if code == "MAP142":
        return {each.code for each in findings(text, folder / "m.yaml")[1]}
    if not tensors:
        return {each.code for each in lint(text, folder / "m.yaml")} - ({"MAP130"} - {code})
    specs = {}
    for line in tensors.splitlines():
        name, dtype, shape = line.split(" ", 2)
        specs[name] = TensorSpec(tuple(json.loads(shape)), np.dtype(dtype))
    try:
        return {each.code for each in Port(loads(text)).plan(specs).problems}
    except MappingError as error:
        return {each.code for each in error.diagnostics}


SHOWN = [code for code in CODES if code.startswith("MAP") or CODES[code].tensors]


@pytest.mark.parametrize("code", sorted(set(SHOWN) - {"MAP000", "MAP109"}))
def test_the_examples(code, tmp_path):
    if code == "MAP134":
        (tmp_path / "schema.json").write_text(json.dumps({"title": TITLE}))
    assert found(code, CODES[code].bad, tmp_path) - {"MAP002"} == {code} - {"MAP002"}
    assert code in found(code, CODES[code].bad, tmp_path)
    assert code not in found(code, CODES[code].good, tmp_path)
    assert not found(code, CODES[code].good, tmp_path) - {"MAP002"}


def test_explain_shows_an_example_and_what_is_right(converter):
    result = converter("explain", "MAP102")
    assert result.code == 0
    assert result.out.startswith("MAP102: unknown op\n")
    assert "Wrong:\n\n    - source: a\n" in result.out
    assert "        - transpoze: [1, 0]\n\nRight:" in result.out


def test_explain_takes_the_code_as_it_is_printed(converter):
    assert converter("explain", "[map102]").out == converter("explain", "MAP102").out


def test_explain_lists_all(converter):
    lines = converter("explain").out.splitlines()
    assert [line.split("  ")[0] for line in lines] == list(CODES)


@pytest.mark.parametrize("code", CODES)
def test_explain_every_code(code, converter):
    assert converter("explain", code).code == 0
    document = json.loads(converter("explain", code, "--format", "json").out)
    assert document == {"code": code} | CODES[code]._asdict()


def test_explain_what_is_no_code(converter):
    result = converter("explain", "MAP12")
    assert result.code == 2
    assert "did you mean MAP1" in result.err


def test_the_document_has_the_titles():
    text = (ROOT / "docs" / "language.md").read_text(encoding="utf-8")
    for code, entry in CODES.items():
        if code != "CVT000":
            assert f"| `{code}` | {entry.title} |" in text
