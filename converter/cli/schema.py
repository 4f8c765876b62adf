"""`converter schema`: the JSON Schema of mapping files, for editors."""

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
@click.option("--overwrite", is_flag=True, help="Replace the file if it exists.")
def schema(output: Path | None, overwrite: bool) -> None:
    """Print the JSON Schema of mapping files; editors complete and check with it."""
    from converter.errors import TargetError, TargetExistsError
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
