"""`converter ops`: what an op takes, does and undoes, from its class."""

from __future__ import annotations

import contextlib
import re
import textwrap
from typing import TYPE_CHECKING, Any

import click

from converter.cli.output import say, say_json, table

if TYPE_CHECKING:
    from converter.ops import Op

_TYPES = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
}
HEAD = """# Ops

Written by `converter ops --format markdown` from the classes in `converter/ops/`.
[language.md](language.md#ops) says how they work together.
"""


@click.command()
@click.argument("name", required=False)
@click.option(
    "--format",
    "style",
    type=click.Choice(["human", "json", "markdown"]),
    default="human",
    show_default=True,
    help="What is printed on stdout.",
)
def ops(name: str | None, style: str) -> None:
    """List the ops, or show one: its fields, an example, the way back."""
    import difflib

    from converter.ops import OPS

    if name is not None and name not in OPS:
        near = difflib.get_close_matches(name, OPS, 1)
        tip = f"did you mean {near[0]}?" if near else f"there are {', '.join(OPS)}"
        raise click.UsageError(f"there is no op '{name}'; {tip}")
    found = [describe(OPS[each]) for each in ([name] if name else OPS)]
    if style == "json":
        say_json(found[0] if name else found)
    elif style == "markdown":
        say(markdown(found).rstrip("\n"))
    elif name:
        say(human(found[0]).rstrip("\n"))
    else:
        table([(each["name"], each["exactness"], each["about"]) for each in found])


def describe(kind: type[Op]) -> dict[str, Any]:
    """Everything that an op's class says of it."""
    import inspect

    summary, _, more = inspect.cleandoc(kind.__doc__ or "").partition("\n\n")
    examples = [example(kind, value) for value in values(kind)]
    return {
        "name": kind.name,
        "about": kind.about,
        "summary": " ".join(summary.split()),
        "details": more,
        "exactness": " or ".join(dict.fromkeys(each["exactness"] for each in examples))
        or "as it is used",
        "fields": fields(kind),
        "examples": examples,
    }


def fields(kind: type[Op]) -> list[dict[str, Any]]:
    """The keys of the long form."""
    from converter import record

    described = record.schema(kind)
    return [
        {
            "name": name,
            "type": _type(field),
            "required": name in described.get("required", ()),
            "description": field.get("description", ""),
        }
        for name, field in described["properties"].items()
    ]


def _type(node: dict[str, Any]) -> str:
    """A JSON Schema in words."""
    if "anyOf" in node:
        found = [_type(each) for each in node["anyOf"] if each.get("type") != "null"]
        return " or ".join(dict.fromkeys(found))
    if "enum" in node:
        return " or ".join(f"`{each}`" for each in node["enum"])
    if node.get("type") == "array":
        return f"list of {_type(node.get('items', {}))}"
    if node.get("type") == "object":
        return f"names, each with a {_type(node.get('additionalProperties', {}))}"
    return _TYPES.get(node.get("type", ""), "any value")


def values(kind: type[Op]) -> list[Any]:
    """The example values of an op: what stands in backticks in its one sentence."""
    from converter.language import yaml

    found = []
    for text in re.findall(r"`([^`]+)`", kind.about):
        for read in (lambda text: yaml.load(text).data, str):  # as `o i h w`, not as YAML
            with contextlib.suppress(ValueError):
                kind.read(value := read(text))
                found.append(value)
                break
    return found


def example(kind: type[Op], value: Any) -> dict[str, Any]:
    """A value, how it is written, and the op of the way back or why there is none."""
    from converter.errors import IrreversibleError

    op = kind.read(value)
    try:
        back = op.inverse()
        undone = {"inverse": written(back.name, back.to_file()), "no_way_back": ""}
    except IrreversibleError as error:
        undone = {"inverse": "", "no_way_back": error.message}
    return {"op": written(kind.name, value), "exactness": op.exactness} | undone


def written(name: str, value: Any) -> str:
    """An op as a line of a mapping file."""
    return f"{name}: {_flow(value, top=True)}"


def _flow(value: Any, *, top: bool = False) -> str:
    """A value in YAML, in one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return _quoted(value, top=top) if isinstance(value, str) else str(value)


def _quoted(text: str, *, top: bool) -> str:
    """A text, in quotes where it would not be read as this text."""
    from converter.language import yaml

    with contextlib.suppress(ValueError):
        plain = yaml.load(f"x: {text}" if top else f"x: [{text}]").data
        if plain == {"x": text if top else [text]}:
            return text
    return f'"{text}"'


def human(op: dict[str, Any]) -> str:
    """One op for a terminal."""
    lines = [f"{op['name']} ({op['exactness']})", "", textwrap.fill(op["summary"], 88)]
    if op["details"]:
        lines += ["", _filled(op["details"], 88).rstrip("\n")]
    lines += ["", "fields:"]
    for row in op["fields"]:
        needed = "" if row["required"] else ", optional"
        lines.append(f"  {row['name']}: {row['description']} ({row['type']}{needed})")
    lines += ["", "examples:"]
    for each in op["examples"]:
        lines.append(f"  - {each['op']}")
        back = each["inverse"] or f"none: {each['no_way_back']}"
        lines.append(f"      way back: {back}")
    return "\n".join(lines) + "\n"


def markdown(found: list[dict[str, Any]]) -> str:
    """The reference of these ops."""
    parts = [HEAD]
    for op in found:
        parts.append(f"\n## {op['name']}\n\n{_filled(op['summary'])}")
        parts += [f"\n{_filled(op['details'])}"] * bool(op["details"])
        parts.append(f"\nExactness: {op['exactness']}.\n")
        parts += ["\n| key | value | |\n|---|---|---|\n"] * bool(op["fields"])
        for row in op["fields"]:
            needed = "" if row["required"] else "; optional"
            kind = f"{row['type']}{needed}".replace("|", "\\|")
            parts.append(f"| `{row['name']}` | {kind} | {row['description']} |\n")
        parts.append("\n| example | way back |\n|---|---|\n")
        for each in op["examples"]:
            back = f"`{each['inverse']}`" if each["inverse"] else f"none: {each['no_way_back']}"
            parts.append(f"| `{each['op']}` | {back} |\n")
    return "".join(parts)


def _filled(text: str, width: int = 100) -> str:
    """Paragraphs of this width; what is indented stays as it is."""
    parts = (
        part
        if part.startswith("    ")
        else textwrap.fill(part, width, break_long_words=False, break_on_hyphens=False)
        for part in text.split("\n\n")
    )
    return "\n\n".join(parts) + "\n"
