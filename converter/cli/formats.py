"""`converter formats`: what is read and written."""

from __future__ import annotations

import click

from converter.cli.output import format_option, say_json, table


@click.command()
@format_option
def formats(style: str) -> None:
    """List the formats that are read and written."""
    from converter.formats import FORMATS

    if style == "json":
        say_json(
            [
                {
                    "name": row.name,
                    "title": row.title,
                    "suffixes": list(row.suffixes),
                    "reads": True,
                    "writes": row.writes,
                }
                for row in FORMATS
            ]
        )
        return
    heads = ("name", "format", "read", "write", "suffixes")
    table(
        [
            heads,
            *(
                (row.name, row.title, "yes", "yes" if row.writes else "no", " ".join(row.suffixes))
                for row in FORMATS
            ),
        ]
    )
