"""`converter mappings`: the shipped mappings, and the examples in a mapping."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from converter.cli.output import count, format_option, hint, say, say_json, table
from converter.cli.reports import output_format_option, report


@click.group()
def mappings() -> None:
    """List, show, copy and test mappings."""


@mappings.command("ls")
@format_option
def list_(style: str) -> None:
    """List the shipped mappings."""
    from converter.language import load, shipped_names

    rows = [load(name) for name in shipped_names()]
    if style == "json":
        say_json(
            [
                {
                    "name": rules.name,
                    "about": rules.about,
                    "source": rules.source_model,
                    "target": rules.target_model,
                }
                for rules in rows
            ]
        )
        return
    table([(rules.name, rules.about) for rules in rows])


@mappings.command()
@click.argument("name")
def show(name: str) -> None:
    """Print a mapping file, to read or to start one's own from."""
    say(text_of(name).rstrip("\n"))


@mappings.command("cp")
@click.argument("name")
@click.argument("target", type=click.Path(path_type=Path), required=False)
@click.option("--overwrite", is_flag=True, help="Replace the target if it exists.")
def copy(name: str, target: Path | None, overwrite: bool) -> None:
    """Copy a mapping file to TARGET, or into this folder, to change it."""
    from converter.errors import TargetError, TargetExistsError
    from converter.language.lint import MODELINE

    text = text_of(name)
    target = target or Path(f"{Path(name).stem}.yaml")
    if target.is_dir():
        target /= f"{Path(name).stem}.yaml"
    if text.startswith(MODELINE):  # it leads to a schema that is not beside the copy
        text = text.split("\n", 1)[1]
    try:
        with target.open("w" if overwrite else "x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError as error:
        raise TargetExistsError(
            "the target exists", path=target, hint="choose another name, or --overwrite"
        ) from error
    except OSError as error:
        raise TargetError(f"cannot be written: {error.strerror}", path=target) from error
    hint(f"wrote {target}")


@mappings.command()
@click.argument("names", nargs=-1, required=True, metavar="MAPPING...")
@output_format_option
def test(names: Sequence[str], output: str) -> int:
    """Run the examples under `tests:`, forward and, where it goes, back; and the `probes:`."""
    from converter.errors import Diagnostic
    from converter.language.examples import run
    from converter.language.load import find
    from converter.probes import findings

    paths = [find(name) for name in names]
    problems: list[Diagnostic] = []
    examples = probes = 0
    for path, name in zip(paths, names, strict=True):
        text = text_of(name)
        some, found = run(text, path)
        more, wrong = findings(text, path)
        if not (some or more or found):
            message = "there are no `tests:` and no `probes:`"
            found = [Diagnostic("MAP141", message, path=path, line=1, column=1)]
        problems += found + [each for each in wrong if each not in found]
        examples, probes = examples + some, probes + more
    report(problems, output, paths)
    if not problems:
        ran = ((examples, "example", "right"), (probes, "probe", "agreed"))
        hint(", ".join(f"{count(n, word)} {how}" for n, word, how in ran if n))
    return int(bool(problems))


def text_of(name: str) -> str:
    """The text of a mapping; a usage error when it is none."""
    from converter.language.load import find

    try:
        return find(name).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{name} is not a mapping: it is not text") from error
