"""The documents are true: every command runs, every example loads, every link leads somewhere.

In a document, from top to bottom and in one folder:

* a ```console block holds commands after `$ ` and what they print; `...` stands for anything, and
  `$ echo $?` for the exit code, which is 0 where it is not asked for;
* a ```python block runs by itself;
* a ```yaml block is a mapping, a ```yaml rules block rules of one, a ```yaml manifest block one of
  `converter batch`; a first line `# name.yaml` makes a file of it, for the commands that follow.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import pytest

from converter import cli, formats
from converter.batch import manifest
from converter.errors import IrreversibleError
from converter.language import loads
from converter.language import yaml as our_yaml
from converter.layout import View
from converter.ops import OPS
from converter.tensors import dtype_of
from tests.cli import checkpoints

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))
)
REAL = ROOT.parent / "shared" / "real"
REAL_FILES = [
    REAL / "srcnn-v1/SRCNN.model-2550000",
    REAL / "dtln/keras/model.h5",
    REAL / "dtln/torch/model.pth",
    REAL / "dtln/onnx/model_1.onnx",
]


class Block(NamedTuple):
    kind: str
    text: str
    line: int


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: str) -> Iterator[Block]:
    found = re.finditer(r"^```([^\n`]*)\n(.*?)^```$", read(document), re.MULTILINE | re.DOTALL)
    for match in found:
        line = read(document).count("\n", 0, match.start()) + 1
        yield Block(match[1], match[2], line)


class Command(NamedTuple):
    text: str
    output: str
    line: int


def commands(block: Block) -> Iterator[Command]:
    """The commands of a console block, each with what is shown below it."""
    parts = re.split(r"^\$ (.*)\n", block.text, flags=re.MULTILINE)
    line = block.line + 1
    for text, output in zip(parts[1::2], parts[2::2], strict=True):
        yield Command(text, output, line)
        line += 1 + output.count("\n")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    checkpoints.write(folder / "vgg_16.ckpt", checkpoints.slim(), "tf-v1")
    checkpoints.write(folder / "trained.ckpt", checkpoints.trained())
    layer = {"kernel": np.ones((2, 3), "f4"), "bias": np.ones(3, "f4")}
    objects = {f"dense/{name}/.ATTRIBUTES/VARIABLE_VALUE": each for name, each in layer.items()}
    checkpoints.write(folder / "objects.ckpt", objects)
    (folder / "typo.yaml").write_text(
        "mapping: 1\nrules:\n  - source: a\n    target: b\n    ops:\n      - transpoze: [1, 0]\n"
    )
    return folder


def shown(expected: str) -> re.Pattern[str]:
    """What an output looks like, from what the document shows of it.

    A line `...` stands for any lines, `...` within a line for any text.
    """
    parts = [
        r"(?:[^\n]*\n)*?"
        if line == "..."
        else re.escape(line.rstrip()).replace(re.escape("..."), r"[^\n]*?") + r"\n"
        for line in plain(expected).rstrip("\n").split("\n")
    ]
    return re.compile("".join(parts))


def plain(text: str) -> str:
    """Without the spaces by which columns are aligned: they depend on the widths of numbers."""
    return re.sub(r" {2,}", "  ", text)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_the_document_shows_is_what_happens(document, prepared, tmp_path, monkeypatch, capsys):
    for path in prepared.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for path in REAL_FILES if document == "docs/ports.md" else ():
        if not path.is_file():
            pytest.skip(f"the real weights are not here: {path.name}")
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    for block in blocks(document):
        where = f"{document}:{block.line}"
        if block.kind == "python":
            exec(compile(block.text, where, "exec"), {"__name__": "example"})  # noqa: S102
        elif block.kind.startswith("yaml"):
            save_mapping(block)
        elif block.kind == "console":
            run_console(document, block, capsys)


def save_mapping(block: Block) -> None:
    name = re.match(r"# (\S+\.yaml)\n", block.text)
    if name:
        Path(name[1]).write_text(block.text, encoding="utf-8")


def run_console(document: str, block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    listed = list(commands(block))
    assert listed, f"{document}:{block.line}: no command"
    code, answered = 0, True
    for command in listed:
        where = f"{document}:{command.line}: {command.text}"
        if command.text == "echo $?":
            assert command.output.strip() == str(code), where
            answered = True
            continue
        assert answered or code == 0, f"{where}: the command before it ended with {code}"
        program, *arguments = shlex.split(command.text)
        assert program == "converter", f"{where}: only the command itself is run here"
        capsys.readouterr()
        code, answered = cli.run(arguments), False
        out, err = capsys.readouterr()
        if command.output:
            fits = shown(command.output).fullmatch(plain(out + err))
            assert fits, f"{where}\nshown:\n{command.output}\nprinted:\n{out}{err}"
    assert answered or code == 0, f"{document}:{block.line}: ended with {code}"


MAPPINGS = [
    pytest.param(block, id=f"{document}:{block.line}")
    for document in DOCUMENTS
    for block in blocks(document)
    if block.kind.startswith("yaml")
]


@pytest.mark.parametrize("block", MAPPINGS)
def test_every_mapping_loads(block):
    assert block.kind in ("yaml", "yaml rules", "yaml manifest")
    text = block.text
    if block.kind == "yaml manifest":
        assert manifest.loads(text, Path("ports.yaml")).entries
        return
    if block.kind == "yaml rules":
        text = "mapping: 1\nrules:\n" + textwrap.indent(text, "  ")
    assert loads(text).rules


def test_every_block_says_what_it_is():
    kinds = {"console", "python", "yaml", "yaml rules", "yaml manifest", "sh", ""}
    kinds |= {"text"}  # not run
    for document in DOCUMENTS:
        for block in blocks(document):
            assert block.kind in kinds, f"{document}:{block.line}"
            assert block.kind or document == "ARCHITECTURE.md", f"{document}:{block.line}"


# ── tables ───────────────────────────────────────────────────────────────────────────────────


def rows(document: str, heading: str) -> list[list[str]]:
    """The cells of the table under its first row."""
    _, _, rest = read(document).partition(heading + "\n")
    assert rest, f"{document} has no table {heading}"
    lines = rest.split("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_the_formats_are_those_that_there_are():
    """Add a row to the README for a new format."""
    table = rows("README.md", "| name | format | reads | writes | suffixes of targets |")
    assert [[name.strip("`"), title, reads, writes] for name, title, reads, writes, _ in table] == [
        [row.name, row.title, "yes", "yes" if row.writes else "no"] for row in formats.FORMATS
    ]
    for row, cells in zip(formats.FORMATS, table, strict=True):
        suffixes = re.findall(r"`(\.[^`]*)`", cells[-1])
        assert suffixes == list(row.suffixes)
    assert {
        cells[0].strip("`") for cells in rows("docs/formats.md", "| format | read | written |")
    } == {row.name for row in formats.FORMATS}


OPS_TABLE = rows("docs/language.md", "| op | source | target | way back |")


def example(text: str):
    """An op from a cell: `rearrange: h w -> w h`."""
    ((word, value),) = our_yaml.load(text.strip("`")).data.items()
    return OPS[word].read(value)


def views(cell: str) -> list[View]:
    """Tensors without values from a cell: `float32 [2, 3]` `[4]`."""
    found = []
    for text in re.findall(r"`([^`]*)`", cell):
        dtype, _, shape = text.rpartition(" [")
        sizes = [int(n) for n in shape.strip("[]").split(",")]
        empty = np.lib.stride_tricks.as_strided(
            np.zeros((), dtype_of(dtype or "float32")), sizes, [0] * len(sizes)
        )
        found.append(View.over(Ghost(empty), tuple(sizes)))
    return found


class Ghost:
    """A storage of this many elements without any."""

    def __init__(self, values) -> None:
        self.dtype, self.size = values.dtype, values.size

    def read(self, start, out) -> None:
        raise AssertionError


@pytest.mark.parametrize("row", OPS_TABLE, ids=lambda row: row[0].strip("`"))
def test_every_op_does_what_its_row_says(row):
    text, source, target, back = row
    op = example(text)
    expected = views(target)
    found = op.apply(views(source), len(expected))
    assert [(v.shape, v.dtype) for v in found] == [(v.shape, v.dtype) for v in expected]
    if back.startswith("`"):
        assert op.inverse() == example(back)
        returned = op.inverse().apply(found, len(views(source)))
        assert [v.shape for v in returned] == [v.shape for v in views(source)]
    else:
        assert back.startswith(("needs ", "none: "))
        with pytest.raises(IrreversibleError, match=r"known|know|keeps"):
            op.inverse()


def test_every_op_has_a_row():
    assert {example(row[0]).name for row in OPS_TABLE} == set(OPS)


def test_every_code_has_a_row():
    found = set()
    for path in (ROOT / "converter").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        found |= set(re.findall(r'"((?:MAP|PLN|SRC|DST|SEC|VER|BAT)\d{3})"', text))
    listed = [cells[0].strip("`") for cells in rows("docs/language.md", "| code | meaning |")]
    assert sorted(found) == sorted(listed)


def test_the_exit_codes_are_those_of_the_command():
    listed = {
        int(code)
        for codes, _ in rows("README.md", "| code | meaning |")
        for code in codes.split(",")
    }
    given = {code for _, code in cli.EXIT_CODES}
    assert listed == given | {0, 2, cli.BUG, cli.INTERRUPTED, cli.TERMINATED}


# ── commands, targets, links ─────────────────────────────────────────────────────────────────


def walk(group: click.Group, path: str = "converter") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from walk(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


@pytest.mark.parametrize(
    ("path", "command"), [pytest.param(*row, id=row[0]) for row in walk(cli.cli)]
)
def test_the_guide_knows_every_command_and_option(path, command):
    guide = read("docs/guide.md")
    assert re.search(rf"`{path}[ `]", guide), f"{path} is not in the table of commands"
    for option in command.params:
        if isinstance(option, click.Option):
            for word in option.opts:
                assert re.search(rf"`{word}[ `]", guide), f"{path} {word}"


def test_the_guide_knows_no_other_option():
    known = {
        word
        for _, command in walk(cli.cli)
        for option in command.params
        for word in option.opts + option.secondary_opts
    }
    known |= {"--help", "-h", "--version"}
    for document in ("README.md", "docs/guide.md", "docs/language.md"):
        for text in re.findall(r"`([^`\n]*)`|^\$ (converter .*)$", read(document), re.MULTILINE):
            for word in re.findall(r"(?<![\w-])--?[a-z][a-z-]*", " ".join(text)):
                assert word in known, f"{document}: {word}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_targets_of_make_exist(document):
    makefile = read("Makefile")
    for target in re.findall(r"(?:`|^)make (?:-C \S+ )?([a-z-]+)", read(document), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{document}: make {target}"


def test_the_extras_exist():
    extras = set(re.findall(r"checkpoint-converter\[(\w+)\]", read("README.md")))
    pyproject = read("pyproject.toml")
    listed = pyproject.partition("[project.optional-dependencies]\n")[2].partition("\n\n")[0]
    assert extras == {line.split(" ")[0] for line in listed.splitlines()}


def anchors(document: str) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", read(document), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_leads_somewhere(document):
    folder = (ROOT / document).parent
    for target in re.findall(r"\]\(([^)]+)\)", read(document)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        place = (folder / path).resolve() if path else ROOT / document
        assert place.is_file(), f"{document}: {target}"
        if anchor:
            assert anchor in anchors(place.relative_to(ROOT).as_posix()), f"{document}: {target}"


@pytest.mark.parametrize("document", ["ARCHITECTURE.md", "CONTRIBUTING.md", "docs/formats.md"])
def test_every_path_that_is_named_exists(document):
    for path in re.findall(
        r"`((?:converter|tests|docs|mappings|benchmarks)/[\w./]*)`", read(document)
    ):
        assert (ROOT / path).exists(), f"{document}: {path}"


def test_the_tree_is_the_folder():
    """ARCHITECTURE.md draws everything that is there."""
    drawn = re.findall(r"^[├└]── (\w+(?:\.py|/))", read("ARCHITECTURE.md"), re.MULTILINE)
    folder = ROOT / "converter"
    there = {p.name for p in folder.glob("*.py")} | {
        f"{p.parent.name}/" for p in folder.glob("*/__init__.py")
    }
    assert there - {"__main__.py"} <= set(drawn)
