"""`converter show`: one variable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from converter.cli.inspect import described, statistics
from converter.cli.options import SOURCE, names_option
from converter.cli.output import format_option, hint, say, say_json, size

CORNER = 3  # elements shown at either end of each axis


@click.command()
@click.argument("source", type=SOURCE)
@click.argument("name")
@names_option
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write it as .npy."
)
@click.option("--overwrite", is_flag=True, help="Replace the .npy file if it exists.")
@format_option
def show(  # noqa: PLR0913 - one parameter an option
    source: Path,
    name: str,
    names: str | None,
    output: Path | None,
    overwrite: bool,
    style: str,
) -> None:
    """Show one variable of SOURCE: its spec, statistics and a corner of its values."""
    import difflib

    import numpy as np

    from converter.errors import NotFoundError
    from converter.formats import open_checkpoint

    with open_checkpoint(source, names=names) as checkpoint:
        if name not in checkpoint:
            near = difflib.get_close_matches(name, list(checkpoint), 3)
            known = f"did you mean {' or '.join(near)}?" if near else "see `converter inspect`"
            raise NotFoundError("no such tensor", path=source, tensor=name, hint=known)
        (row,) = described(checkpoint, [name])
        row |= statistics(checkpoint[name].view)
        values = checkpoint[name].numpy()
    if output:
        write_npy(output, values, overwrite=overwrite)
        hint(f"wrote {output}")
    if style == "json":
        say_json(row)
        return
    say(f"{row['name']}  {row['dtype']} {row['shape']}  {size(row['nbytes'])}")
    if "min" in row:
        say("  ".join(f"{key} {row[key]:.6g}" for key in ("min", "max", "mean", "std")))
    with np.printoptions(threshold=2 * CORNER, edgeitems=CORNER, linewidth=100):
        say(str(values))


def write_npy(path: Path, values: Any, *, overwrite: bool) -> None:
    """Write an array as NumPy's own file; dtypes that NumPy lacks become bytes of their size."""
    import io

    import numpy as np

    from converter.errors import UnrepresentableError
    from converter.files import Publication
    from converter.tensors import STRING

    if values.dtype == STRING:
        raise UnrepresentableError("an .npy file cannot hold strings", path=path)
    content = io.BytesIO()
    np.lib.format.write_array(content, values, allow_pickle=False)
    staged = Publication([path], overwrite=overwrite)
    try:
        staged.files[0].append(content.getvalue())
        staged.commit()
    finally:
        staged.abort()
