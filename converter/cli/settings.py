"""Options from a file and from the environment: command line > environment > file > default.

    converter.toml              pyproject.toml              environment
    max-memory = "1GiB"         [tool.converter]            CONVERTER_CONVERT_MAX_MEMORY=1GiB
    [batch]                     max-memory = "1GiB"         CONVERTER_BATCH_JOBS=4
    jobs = 4                    [tool.converter.batch]
                                jobs = 4

The nearest of the two files counts, from the working folder up to that of the repository.  What
stands in no table is for every command that has the option.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

PREFIX = "CONVERTER"
MAX_BYTES = 1 << 20

Table = dict[str, Any]


def apply(ctx: click.Context, name: str, command: click.Command, group: click.Group) -> None:
    """Tell a command, and those below it, the names of their variables and the file's values."""
    _name_variables(command, f"{PREFIX}_{name}")
    path, table = _nearest(Path.cwd())
    if not table:
        return
    common = {key: value for key, value in table.items() if not isinstance(value, dict)}
    commands = group.list_commands(ctx)
    for key in table.keys() - common.keys() - set(commands):
        raise click.UsageError(f"{path}: no command is called '{key}'{_near(key, commands)}")
    _check_common(path, common.keys() - _words(command), ctx, group)
    values = _values(path, name, command, table.get(name, {}), common)
    ctx.default_map = {**(ctx.default_map or {}), name: values}


def _check_common(path: Path, words: set[str], ctx: click.Context, group: click.Group) -> None:
    """What this command does not know is another's option, or a mistake."""
    if words:
        found = (group.get_command(ctx, name) for name in group.list_commands(ctx))
        known = {word for command in found if command for word in _words(command)}
        for word in sorted(words - known):
            raise click.UsageError(f"{path}: no command has an option '{word}'{_near(word, known)}")


def _words(command: click.Command) -> set[str]:
    """The options of a command and of those below it."""
    below = command.commands.values() if isinstance(command, click.Group) else ()
    return {*_options(command), *(word for each in below for word in _words(each))}


def _nearest(folder: Path) -> tuple[Path, Table]:
    """The file that counts, and its table; an empty one when there is none."""
    for each in (folder, *folder.parents):
        own, shared = each / "converter.toml", each / "pyproject.toml"
        if own.is_file():
            return own, _read(own)
        if shared.is_file():
            tool = _read(shared, "converter").get("tool", {})
            table = tool.get("converter") if isinstance(tool, dict) else None
            if isinstance(table, dict):
                return shared, table
        if (each / ".git").exists():
            break
    return folder, {}


def _read(path: Path, word: str = "") -> Table:
    """The file's data; nothing when it is without the word, which takes less time to see."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise click.UsageError(f"{path}: longer than {MAX_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
        if word not in text:
            return {}
        import tomllib

        return tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise click.UsageError(f"{path}: cannot be read: {error}") from error


def _values(path: Path, name: str, command: click.Command, table: Any, common: Table) -> Table:
    """The values for a command by the names of its parameters, as click wants them."""
    if not isinstance(table, dict):
        raise click.UsageError(f"{path}: '{name}' is no table of options")
    options, values = _options(command), {}
    below = command.commands if isinstance(command, click.Group) else {}
    for key, value in {**{k: v for k, v in common.items() if k in options}, **table}.items():
        if key in below:
            continue
        if key not in options:
            near = _near(key, [*options, *below])
            raise click.UsageError(f"{path}: {name} has no option '{key}'{near}")
        values[str(options[key].name)] = _checked(path, f"{name}: {key}", options[key], value)
    for key, each in below.items():
        values[key] = _values(path, f"{name} {key}", each, table.get(key, {}), common)
    return values


def _checked(path: Path, what: str, option: click.Option, value: Any) -> Any:
    if option.is_flag and not isinstance(value, bool):
        raise click.UsageError(f"{path}: {what} is true or false")
    if option.multiple and not isinstance(value, list):
        value = [value]
    for each in value if option.multiple else [value]:
        if not isinstance(each, str | int | float):
            raise click.UsageError(f"{path}: {what} is no {'list' if option.multiple else 'value'}")
    return value


def _options(command: click.Command) -> dict[str, click.Option]:
    """The options of a command by the word that people write, without the dashes."""
    return {
        _word(each): each
        for each in command.params
        if isinstance(each, click.Option) and not each.is_eager
    }


def _word(option: click.Option) -> str:
    return max(option.opts, key=len).lstrip("-")


def _name_variables(command: click.Command, prefix: str) -> None:
    for word, option in _options(command).items():
        option.envvar = f"{prefix}_{word}".replace("-", "_").upper()
    below: Mapping[str, click.Command] = (
        command.commands if isinstance(command, click.Group) else {}
    )
    for name, each in below.items():
        _name_variables(each, f"{prefix}_{name}")


def _near(word: str, known: Any) -> str:
    near = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean '{near[0]}'?" if near else ""
