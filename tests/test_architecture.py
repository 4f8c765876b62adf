"""The picture of the architecture, read from the imports: who may know whom."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import converter

ROOT = Path(converter.__file__).parent
MODULES = {path.relative_to(ROOT).as_posix(): path for path in sorted(ROOT.rglob("*.py"))}

# What each part may import; a new part is drawn here first.
ARROWS = {
    "errors": set(),
    "extras": {"errors"},
    "record": set(),
    "layout": set(),
    "files": {"errors"},
    "journal": {"files"},
    "tensors": {"errors", "files", "layout"},
    "formats": {"errors", "extras", "files", "journal", "layout", "tensors"},
    "ops": {"errors", "layout", "record", "tensors"},
    "layers": set(),
    "language": {"errors", "layers", "layout", "ops", "record", "tensors"},
    "plan": {"errors", "language", "layout", "ops", "tensors"},
    "suggest": {"errors", "language", "plan", "tensors"},
    "digests": {"files", "tensors"},
    "report": {"digests", "errors", "files", "formats", "language", "plan", "probes", "tensors"},
    "probes": {"errors", "language", "layers", "layout", "plan", "tensors"},
    "engine": {"errors", "files", "formats", "layout", "tensors"},
    "compare": {"errors", "layout", "tensors"},
    "symmetry": {"compare", "layout", "tensors"},
    "roundtrip": {"compare", "errors", "language", "layout", "ops", "plan", "tensors"},
    "inference": {"compare", "errors", "language", "layout", "ops", "plan", "symmetry", "tensors"},
    "models": {"digests", "formats", "layout", "tensors"},
    "parity": {"digests", "errors", "extras", "layout", "tensors"},
    "oracles": {"compare", "digests", "errors", "extras", "formats", "layout", "tensors"},
    "batch": {"digests", "engine", "errors", "files", "formats", "language", "ops", "report"},
    "__main__": {"cli"},
}
FRAMEWORKS = {
    "jax",
    "keras",
    "safetensors",
    "tensorflow",
    "tf_keras",
    "tf_slim",
    "torch",
    "torchvision",
}
CODE = {"code", "dill", "joblib", "marshal", "pickle", "runpy", "shelve"}  # run what a file says
SLOW = {"h5py", "keras", "numpy", "pydantic", "tensorflow", "torch"}


def part_of(module: str) -> str:
    """`formats` of `formats/_zip.py` and of `converter.formats._zip`."""
    return module.removeprefix("converter.").replace("/", ".").removesuffix(".py").split(".")[0]


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes, but not what is there for the type checker alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from nodes(node)


@cache
def parsed(path: Path) -> list[ast.AST]:
    return list(nodes(ast.parse(path.read_text("utf-8"))))


def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it."""
    found: set[str] = set()
    for node in parsed(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            module = node.module or ""
            inside = {f"converter.{alias.name}" for alias in node.names}
            found |= inside - {"converter.__version__"} if module == "converter" else {module}
    return found


def calls(path: Path) -> list[str]:
    return [ast.unparse(node.func) for node in parsed(path) if isinstance(node, ast.Call)]


def test_the_arrows_run_one_way():
    graphlib.TopologicalSorter(ARROWS).prepare()


@pytest.mark.parametrize("module", [name for name in MODULES if part_of(name) != "cli"])
def test_a_part_knows_only_those_below_it(module):
    part = part_of(module)
    ours = {part_of(name) for name in imports(MODULES[module]) if name.startswith("converter")}
    assert ours - {part} <= ARROWS.get(part, set())
    assert part in ARROWS or module == "__init__.py"


@pytest.mark.parametrize("module", MODULES)
def test_frameworks_are_only_imported_by_the_child_that_asks_them(module):
    found = {name.split(".")[0] for name in imports(MODULES[module])}
    assert not found & FRAMEWORKS or module in ("models.py", "oracles.py")


@pytest.mark.parametrize("module", MODULES)
def test_nothing_runs_what_a_file_says(module):
    found = {name.split(".")[0] for name in imports(MODULES[module])}
    assert not found & CODE
    assert not {"eval", "exec", "compile", "__import__"} & set(calls(MODULES[module]))


@pytest.mark.parametrize("module", [name for name in MODULES if part_of(name) != "cli"])
def test_only_the_command_line_talks(module):
    path = MODULES[module]
    assert calls(path).count("print") == (module == "oracles.py")  # the child's answer
    assert not {"sys.exit", "exit", "input"} & set(calls(path))
    assert not {name for name in imports(path) if name.split(".")[0] in ("click", "logging")}
    text = path.read_text("utf-8")
    assert "sys.stdout" not in text
    assert "sys.stderr" not in text


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_is(module):
    text = MODULES[module].read_text("utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree) or not text.strip() or module == "__main__.py"


def test_what_is_public_is_little_and_there():
    assert len(converter.__all__) <= 20
    assert sorted(converter.__all__) == converter.__all__
    assert all(getattr(converter, name) is not None for name in converter.__all__)
    assert set(converter._HOMES) == set(converter.__all__)
    with pytest.raises(AttributeError, match="module 'converter' has no attribute 'nothing'"):
        _ = converter.nothing


def test_the_type_checker_sees_what_is_public():
    tree = ast.parse(MODULES["__init__.py"].read_text("utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname or alias.name
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == set(converter.__all__)


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (["-m", "converter", "--help"], SLOW | {"yaml"}),
        (["-m", "converter", "--version"], SLOW | {"yaml"}),
        (["-c", "import converter"], SLOW | {"click", "yaml"}),
        (["-c", "import converter.language"], FRAMEWORKS | {"h5py"}),
        (
            ["-c", "import converter.plan, converter.engine, converter.compare"],
            FRAMEWORKS | {"h5py"},
        ),
        (["-m", "converter", "lint", "vgg16/slim-torchvision"], FRAMEWORKS | {"h5py", "pydantic"}),
    ],
)
def test_a_start_loads_only_what_it_needs(arguments, absent):
    loaded = {name.split(".")[0] for name in imported(*arguments)}
    assert "converter" in loaded
    assert not absent & loaded


@pytest.mark.parametrize("command", ["convert {0} {0}.pt", "diff {0} {0}", "inspect {0}"])
def test_what_needs_no_mapping_does_not_wait_for_the_language(command, tmp_path):
    path = tmp_path / "a.safetensors"
    converter.save(converter.from_arrays({"a": np.zeros(3)}), path)
    loaded = imported("-m", "converter", *command.format(path).split())
    assert "converter.formats" in loaded
    assert not {"pydantic", "converter.language", "converter.symmetry"} & loaded


def imported(*arguments):
    """The modules that a Python with these arguments imports."""
    child = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, check=True
    )
    lines = child.stderr.splitlines()  # import time: microseconds | cumulative | name
    return {line.rpartition("|")[2].strip() for line in lines}
