"""Options that several commands share, and what they stand for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from converter.cli.output import hint

if TYPE_CHECKING:
    from converter.language.names import Selector
    from converter.language.rules import Rules
    from converter.plan import Plan, Port
    from converter.tensors import Checkpoint, Templated

Command = TypeVar("Command", bound=Callable[..., Any])

SOURCE = click.Path(path_type=Path)
NAMES = click.Choice(["key", "full_name", "object"])  # of `converter.formats.tf_v2`
CALLED = "What tensors of {} are called, where they have several names."

names_option = click.option("--names", type=NAMES, help=CALLED.format("SOURCE"))
target_names_option = click.option(
    "--target-names", type=NAMES, help=CALLED.format("the second checkpoint")
)
template_option = click.option(
    "--template",
    type=SOURCE,
    help="A checkpoint of TensorFlow 2 whose objects the target has, and what else SOURCE lacks.",
)


class Bytes(click.ParamType):  # type: ignore[type-arg] # generic in new releases only
    """A number of bytes: `128MiB`, `2GB`, `4096`."""

    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        """Read the text."""
        if isinstance(value, int):
            return value
        from converter.files import size_of

        try:
            return size_of(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Assignment(click.ParamType):  # type: ignore[type-arg] # likewise
    """`NAME=N`."""

    name = "name=n"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, int]:
        """Read the text."""
        if isinstance(value, tuple):
            return value
        name, equals, number = str(value).partition("=")
        if not name or not equals or not number.isdecimal():
            self.fail(f"'{value}' is not NAME=N", param, ctx)
        return name, int(number)


class FormatName(click.ParamType):  # type: ignore[type-arg] # likewise
    """The name of a format."""

    name = "format"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        """Check it; the table of formats is only imported when there is a name."""
        from converter.formats import FORMATS

        known = [row.name for row in FORMATS if row.writes]
        if value not in known:
            self.fail(f"'{value}' is none of {', '.join(known)}", param, ctx)
        return str(value)


def mapping_options(command: Command) -> Command:
    """What says how a source becomes a target."""
    for option in reversed(
        (
            click.option(
                "-m",
                "--mapping",
                "mappings",
                multiple=True,
                metavar="MAPPING",
                help="A shipped name (`converter mappings ls`) or a file; several are chained.",
            ),
            names_option,
            click.option("--reverse", is_flag=True, help="Go the way back."),
            click.option("--source-scope", default="", metavar="P", help="Prefix of source names."),
            click.option("--target-scope", default="", metavar="P", help="Prefix of target names."),
            click.option(
                "--only",
                multiple=True,
                metavar="PATTERN",
                help="Only tensors whose name fits, before or after the (first) mapping; "
                "`*` is a segment, `**` anything.",
            ),
            click.option(
                "--drop",
                multiple=True,
                metavar="PATTERN",
                help="Leave out source tensors whose name fits.",
            ),
            click.option(
                "--size",
                "sizes",
                multiple=True,
                type=Assignment(),
                help="Set a size that the mapping names.",
            ),
            click.option(
                "--dtype",
                default="",
                metavar="DTYPE",
                help="Cast floating-point numbers to it at the end, e.g. float16.",
            ),
        )
    ):
        command = option(command)
    return command


def check_template(template: Path | str | None, name: str) -> None:
    """A usage error when a target of this format takes no template."""
    if template and name != "tf-v2":
        raise click.UsageError(f"--template is for a target of the format tf-v2, and not {name}")


def templated(source: Checkpoint, template: Path | None) -> Templated:
    """A checkpoint in the form of `--template`; as it is when there is none."""
    from converter.tensors import Templated

    if not template:
        return Templated(source)
    from converter.formats.tf_v2 import with_template

    return with_template(source, template)


@dataclass(frozen=True)
class Request:
    """The mapping options of one call."""

    mappings: Sequence[str] = ()
    names: str | None = None
    reverse: bool = False
    source_scope: str = ""
    target_scope: str = ""
    only: Sequence[str] = ()
    drop: Sequence[str] = ()
    sizes: Sequence[tuple[str, int]] = ()
    dtype: str = ""

    def given(self) -> dict[str, Any]:
        """The options that were given, for a record."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {key: value for key, value in values.items() if value}

    def open(self, source: Path) -> Checkpoint:
        """The source; its tensors are called what `--names` says."""
        from converter.formats import open_checkpoint

        return open_checkpoint(source, names=self.names)

    def ports(self, source: Checkpoint) -> list[Port]:
        """The mappings to apply to a checkpoint, in this order."""
        from converter.plan import Port, casting, identity, port

        sizes = dict(self.sizes)
        found = [port(name, sizes=sizes) for name in self.mappings] or [identity()]
        if self.reverse:
            found = [one.inverse() for one in reversed(found)]
        found[0] = found[0].scoped(source=self.source_scope)
        found[-1] = found[-1].scoped(target=self.target_scope)
        if (
            self.chosen
        ):  # the first mapping chooses; the others take whatever they get of their rules
            found = [found[0].only(self.chooses), *(one.only(lambda _: True) for one in found[1:])]
        if self.drop:
            found[0] = Port(self.dropping(found[0].rules, source))
        if self.dtype:
            try:
                found.append(casting(self.dtype))
            except ValueError as error:
                raise click.UsageError(f"--dtype {self.dtype}: no dtype of floats") from error
        return found

    @cached_property
    def chosen(self) -> list[Selector]:
        """The patterns of `--only`."""
        return self.selectors(self.only)

    def chooses(self, name: str) -> bool:
        """Does `--only` choose this name?  Without `--only`, every name is chosen."""
        return not self.chosen or any(fits(name) for fits in self.chosen)

    def leaves(self, name: str) -> bool:
        """Is a target name none of this call's business?"""
        return not (name.startswith(self.target_scope) and self.chooses(name))

    @staticmethod
    def selectors(texts: Sequence[str]) -> list[Selector]:
        """The patterns of an option; a usage error when one cannot be read."""
        if not texts:
            return []
        from converter.language.names import TemplateError, parse_selector

        try:
            return [parse_selector(text) for text in texts]
        except TemplateError as error:
            raise click.UsageError(f"{', '.join(texts)}: {error}") from error

    def dropping(self, rules: Rules, source: Checkpoint) -> Rules:
        """Rules that leave the names of `--drop` out."""
        from converter.language.rules import Drop

        selectors = tuple(self.selectors(self.drop))
        dropped = [name for name in source if any(fits(name) for fits in selectors)]
        for fits in selectors:
            if not any(map(fits, dropped)):
                hint(f"--drop '{fits.text}': no name fits")
        changed = tuple(
            replace(
                rule,
                source_except=rule.source_except + selectors,
                # All that it matches may be gone now, which is no error of the mapping.
                optional=rule.optional
                or any(fits(name) for fits in rule.sources for name in dropped),
            )
            for rule in rules.rules
        )
        drops = tuple(Drop(fits, "--drop") for fits in selectors)
        return replace(rules, rules=changed, drops=rules.drops + drops, undone=None)

    def apply(self, source: Checkpoint, *, strict: bool = True) -> tuple[Checkpoint, list[Plan]]:
        """The mapped checkpoint, and every plan up to the first with errors.

        Raises `MappingError` for that one; unless `strict`, what was mapped so far is returned.
        """
        plans = []
        for port in self.ports(source):
            plans.append(port.plan(source))
            if plans[-1].errors and not strict:
                break
            source = plans[-1].apply(source)
        return source, plans
