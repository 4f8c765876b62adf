"""`converter schema`: the JSON Schemas of mapping files and manifests, for editors."""

from __future__ import annotations

from pathlib import Path

import click

from converter.cli.output import hint, json_text, say


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write it to a file, whose place `converter lint --fix` then tells your mappings.",
)
@click.option(
    "--of",
    "kind",
    type=click.Choice(["mapping", "manifest"]),
    default="mapping",
    show_default=True,
    help="Which files it is for.",
)
@click.option("--overwrite", is_flag=True, help="Replace the file if it exists.")
def schema(output: Path | None, kind: str, overwrite: bool) -> None:
    """Print a JSON Schema, with which editors complete and check mapping files or manifests."""
    from converter.errors import TargetError, TargetExistsError

    if kind == "manifest":
        from converter.batch.model import schema as described
    else:
        from converter.language.schema import schema as described
    text = json_text(described()) + "\n"
    if output is None:
        say(text.rstrip("\n"))
        return
    try:
        with output.open("w" if overwrite else "x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError as error:
        raise TargetExistsError("the target exists", path=output, hint="--overwrite") from error
    except OSError as error:
        raise TargetError(f"cannot be written: {error.strerror}", path=output) from error
    hint(f"wrote {output}")
