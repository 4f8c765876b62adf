"""`converter mappings`: the shipped mappings, which of them fit, and the examples in one."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from converter.cli.options import SOURCE, names_option
from converter.cli.output import count, format_option, hint, say, say_json, table
from converter.cli.reports import judging, report

if TYPE_CHECKING:
    from converter.suggest import Fit


@click.group()
def mappings() -> None:
    """List, find, show, copy and test mappings."""


@mappings.command("ls")
@click.option(
    "--match",
    "texts",
    multiple=True,
    metavar="TEXT",
    help="Only those with this in their name, sentence or models; repeatable, all must be there.",
)
@format_option
def list_(texts: Sequence[str], style: str) -> None:
    """List the shipped mappings."""
    from converter.language.catalogue import entries

    found = [entry for entry in entries() if all(map(entry.says, texts))]
    if style == "json":
        say_json(
            [
                {
                    "name": entry.name,
                    "about": entry.about,
                    "source": entry.model("source"),
                    "target": entry.model("target"),
                }
                for entry in found
            ]
        )
        return
    table([(entry.name, entry.about) for entry in found])


@mappings.command("for")
@click.argument("source", type=SOURCE, metavar="CHECKPOINT")
@names_option
@format_option
def for_(source: Path, names: str | None, style: str) -> int:
    """Suggest the shipped mappings that fit CHECKPOINT, best first; reads headers only."""
    from converter.formats import open_checkpoint
    from converter.suggest import suggest

    with open_checkpoint(source, names=names) as checkpoint:
        fits = suggest(checkpoint)
        if style == "json":
            say_json([fit_json(fit) for fit in fits])
        else:
            table([fit_row(fit) for fit in fits])
    if not fits:
        hint("no shipped mapping takes these names; see `converter mappings ls` and `infer`")
        return 1
    if style == "human":
        say(f"converter convert {shlex.quote(str(source))} TARGET {options_of(fits[0])}")
    for size in fits[0].assumed:
        hint(f"nothing in the checkpoint tells --size {size}: is {fits[0].sizes[size]} right?")
    return int(bool(fits[0].plan.errors))


def options_of(fit: Fit) -> str:
    """What `plan` and `convert` are to be told."""
    sizes = (f"--size {size}={number}" for size, number in fit.sizes.items())
    return " ".join(["-m", fit.name, *(["--reverse"] if fit.reverse else []), *sizes])


def fit_row(fit: Fit) -> tuple[str, ...]:
    """A suggestion for people."""
    rules = fit.plan.rules
    does = f"maps {fit.mapped} of {len(fit.plan.sources)}"
    if fit.plan.dropped:
        does += f", drops {len(fit.plan.dropped)}"
    if fit.plan.errors:
        does += f", {count(len(fit.plan.errors), 'problem')}"
    return options_of(fit), does, f"{rules.source_model} → {rules.target_model}"


def fit_json(fit: Fit) -> dict[str, Any]:
    """A suggestion for machines."""
    return {
        "name": fit.name,
        "reverse": fit.reverse,
        "sizes": dict(fit.sizes),
        "assumed": list(fit.assumed),
        "source": fit.plan.rules.source_model,
        "target": fit.plan.rules.target_model,
        "tensors": len(fit.plan.sources),
        "mapped": fit.mapped,
        "dropped": len(fit.plan.dropped),
        "problems": len(fit.plan.errors),
        "options": options_of(fit),
    }


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
@judging
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
