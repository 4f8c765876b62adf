"""`converter mappings`: the shipped mappings."""

from __future__ import annotations

import click

from converter.cli.output import format_option, say, say_json, table


@click.group()
def mappings() -> None:
    """List and show the shipped mappings."""


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
    from converter.language.load import find

    try:
        text = find(name).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{name} is not a mapping: it is not text") from error
    say(text.rstrip("\n"))
