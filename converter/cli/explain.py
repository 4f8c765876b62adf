"""`converter explain`: what a code means."""

from __future__ import annotations

import textwrap

import click

from converter.cli.output import format_option, say, say_json, table


@click.command()
@click.argument("code", required=False)
@format_option
def explain(code: str | None, style: str) -> None:
    """Explain CODE with an example and what is right; without one, list all codes."""
    import difflib

    from converter.language.codes import CODES

    if code is None:
        if style == "json":
            say_json([{"code": name} | entry._asdict() for name, entry in CODES.items()])
        else:
            table([(name, entry.title) for name, entry in CODES.items()])
        return
    name = code.strip("[]").upper()
    if name not in CODES:
        near = difflib.get_close_matches(name, CODES, 3)
        tip = f"did you mean {' or '.join(near)}?" if near else "`converter explain` lists them"
        raise click.UsageError(f"there is no code '{code}'; {tip}")
    entry = CODES[name]
    if style == "json":
        say_json({"code": name} | entry._asdict())
        return
    say(f"{name}: {entry.title}\n")
    say(textwrap.fill(entry.about, 88))
    if entry.tensors:
        say("\nThe source holds:\n\n" + textwrap.indent(entry.tensors.rstrip("\n"), "    "))
    say("\nWrong:\n\n" + textwrap.indent(entry.bad.rstrip("\n"), "    "))
    say("\nRight:\n\n" + textwrap.indent(entry.good.rstrip("\n"), "    "))
