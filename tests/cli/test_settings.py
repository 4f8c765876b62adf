"""Options from files and variables: command line > environment > file > default."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest

from converter import cli
from converter.cli import settings


@pytest.fixture
def said(monkeypatch, capsys, tmp_path):
    """What `converter try` and `converter group try` would be called with."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".git").mkdir()

    def options(command):
        command = click.option("--much", is_flag=True)(command)
        command = click.option("--name", "names", multiple=True)(command)
        return click.option("-s", "--max-size", "nbytes", type=int, default=1)(command)

    @click.command("try")
    @options
    def tried(**values):
        click.echo(json.dumps(values))

    @click.group()
    def group():
        pass

    group.add_command(tried)
    known = {"try": tried, "group": group}
    monkeypatch.setattr(cli.Commands, "list_commands", lambda *_: list(known))
    monkeypatch.setattr(cli.Commands, "get_command", lambda _, __, name: known.get(name))

    def run(*words: str):
        code = cli.run(list(words))
        out, err = capsys.readouterr()
        return json.loads(out) if code == 0 else (code, err)

    return run


DEFAULT = {"nbytes": 1, "names": [], "much": False}


def test_the_order_of_what_counts(said, monkeypatch):
    assert said("try") == DEFAULT
    Path("pyproject.toml").write_text("[tool.converter]\nmax-size = 2\n")
    assert said("try")["nbytes"] == 2
    Path("pyproject.toml").write_text(
        "[tool.converter]\nmax-size = 2\n[tool.converter.try]\nmax-size = 3\n"
    )
    assert said("try")["nbytes"] == 3
    assert said("group", "try")["nbytes"] == 2
    monkeypatch.setenv("CONVERTER_TRY_MAX_SIZE", "4")
    assert said("try")["nbytes"] == 4
    assert said("try", "--max-size", "5")["nbytes"] == 5


def test_converter_toml_is_the_table_itself_and_comes_first(said):
    Path("pyproject.toml").write_text("[tool.converter.try]\nmax-size = 2\n")
    Path("converter.toml").write_text('[try]\nname = ["a", "b"]\nmuch = true\n')
    assert said("try") == {"nbytes": 1, "names": ["a", "b"], "much": True}


def test_the_nearest_file_counts_up_to_the_repository(said, monkeypatch, tmp_path):
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    (tmp_path / "converter.toml").write_text("max-size = 2\n")
    (tmp_path / "a" / "pyproject.toml").write_text("[project]\nname = 'other'\n")
    monkeypatch.chdir(deep)
    assert said("try")["nbytes"] == 2
    (tmp_path / "a" / ".git").mkdir()
    assert said("try") == DEFAULT


def test_groups_have_tables_in_tables(said, monkeypatch):
    Path("converter.toml").write_text("[group.try]\nmax-size = 2\n")
    assert said("group", "try")["nbytes"] == 2
    monkeypatch.setenv("CONVERTER_GROUP_TRY_NAME", "x y")
    monkeypatch.setenv("CONVERTER_GROUP_TRY_MUCH", "true")
    assert said("group", "try") == {"nbytes": 2, "names": ["x", "y"], "much": True}
    assert said("try") == DEFAULT


def test_a_value_is_no_table(said):
    Path("converter.toml").write_text("[group]\ntry = 1\n")
    code, err = said("group", "try")
    assert code == 2
    assert "'group try' is no table of options" in err


def test_an_empty_variable_says_nothing(said, monkeypatch):
    monkeypatch.setenv("CONVERTER_TRY_MAX_SIZE", "")
    monkeypatch.setenv("CONVERTER_TRY_MUCH", "")
    assert said("try") == DEFAULT


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[try]\nmax_size = 1", "try has no option 'max_size'; did you mean 'max-size'?"),
        ("max-sise = 1", "no command has an option 'max-sise'; did you mean 'max-size'?"),
        ("[tri]\nmuch = true", "no command is called 'tri'; did you mean 'try'?"),
        ("[try]\nmuch = 'yes'", "try: much is true or false"),
        ("[try]\nmax-size = [1]", "try: max-size is no value"),
        ("[try]\nname = [[1]]", "try: name is no list"),
        ("[try]\nmax-size = 1979-05-27", "try: max-size is no value"),
        ("try = 1", "no command has an option 'try'"),
        ("[try\n", "cannot be read"),
        ("a" * (settings.MAX_BYTES + 1), "longer than"),
        ("x = " + "[" * 5000, "cannot be read"),
        ("[try]\nmax-size = 'many'", "'many' is not a valid integer"),
    ],
)
def test_a_mistake_is_a_usage_error(text, says, said):
    Path("converter.toml").write_text(text)
    code, err = said("try")
    assert code == 2
    assert says in err


def test_bytes_that_are_no_text_are_a_usage_error(said):
    Path("converter.toml").write_bytes(b"\xff\xfe")
    assert said("try")[0] == 2


def walk(command, name):
    yield name, command
    for below, each in getattr(command, "commands", {}).items():
        yield from walk(each, f"{name} {below}")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_option_has_a_variable(name):
    command = cli.Commands().get_command(click.Context(cli.cli), name)
    settings.apply(click.Context(cli.cli), name, command, cli.cli)
    for path, each in walk(command, name):
        for option in each.params:
            if isinstance(option, click.Option):
                word = max(option.opts, key=len).removeprefix("--")
                expected = f"CONVERTER_{path}_{word}".replace(" ", "_").replace("-", "_").upper()
                assert option.envvar == expected
