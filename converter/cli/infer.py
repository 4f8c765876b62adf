"""`converter infer`: two checkpoints in, a mapping file out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from converter.cli.options import SOURCE, names_option, target_names_option
from converter.cli.output import count, format_option, hint, say, say_json

if TYPE_CHECKING:
    from converter.inference import Inferred
    from converter.tensors import Checkpoint, TensorSpec


@click.command()
@click.argument("first", type=SOURCE, metavar="A")
@click.argument("second", type=SOURCE, metavar="B")
@names_option
@target_names_option
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the mapping there instead of printing it.",
)
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
@format_option
def infer(  # noqa: PLR0913 - one parameter an option
    first: Path,
    second: Path,
    names: str | None,
    target_names: str | None,
    output: Path | None,
    overwrite: bool,
    style: str,
) -> int:
    """Find the mapping from A to B by their values, and prove it.

    One of them may be a listing of names and shapes (`converter inspect --format json`, in a
    .json file): the mapping is then a guess, and says so.
    """
    from converter.errors import TargetExistsError
    from converter.inference import infer as search

    if output and output.exists() and not overwrite:
        raise TargetExistsError("exists already", path=output, hint="--overwrite")
    found = search(opened(first, names), opened(second, target_names))
    if output:
        write(output, found.to_yaml())
    if style == "json":
        say_json(
            {
                "complete": found.complete,
                "exact": found.exact,
                "guessed": found.guessed,
                "open": dict(found.open),
                "uncertain": sorted(found.uncertain),
                "mapping": found.to_yaml(),
            }
        )
    elif not output:
        say(found.to_yaml().rstrip())
    hint(verdict(found))
    return 0 if found.complete and (found.exact or found.guessed) else 1


def verdict(found: Inferred) -> str:
    """How sure the mapping is."""
    rules = count(len(found.rules.rules), "rule")
    if not found.complete:
        return f"{rules}; {count(len(found.open), 'target tensor')} not found"
    if found.guessed:
        doubts = f"{count(len(found.uncertain), 'target tensor')} uncertain"
        return f"{rules}, guessed ({doubts}): try them on values, with `converter diff`"
    return f"{rules}; they make the target, bit for bit" if found.exact else f"{rules}; not exact"


def opened(path: Path, names: str | None) -> Checkpoint | dict[str, TensorSpec]:
    """A checkpoint, or the specs of a listing."""
    from converter.errors import SourceError
    from converter.formats import open_checkpoint
    from converter.tensors import TensorSpec, dtype_of

    if path.suffix != ".json" or not path.is_file():
        return open_checkpoint(path, names=names)
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["tensors"]
        return {r["name"]: TensorSpec(tuple(r["shape"]), dtype_of(r["dtype"])) for r in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(
            "this is no listing of tensors", path=path, hint="converter inspect --format json"
        ) from error


def write(path: Path, text: str) -> None:
    """Write the mapping."""
    from converter.errors import TargetError

    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise TargetError(f"cannot be written: {error.strerror}", path=path) from error
