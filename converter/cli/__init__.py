"""The command line: one file a command.  Only this folder prints, and only it knows exit codes.

0 fine · 1 judged and rejected · 2 usage · 3 reading or writing failed · 4 refused for safety
70 a bug · 130 interrupted · 143 terminated
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import sys
from typing import cast

import click

from converter import __version__, errors
from converter.cli.output import hint, print_diagnostics

EXIT_CODES = (  # the first class that fits
    (errors.MissingExtraError, 2),
    (errors.MappingError, 1),
    (errors.OpError, 1),
    (errors.IrreversibleError, 1),
    (errors.VerificationError, 1),
    (errors.UnrepresentableError, 1),
    (errors.RefusedError, 4),
    (errors.SourceError, 3),
    (errors.TargetError, 3),
)
BUG = 70
INTERRUPTED = 130
TERMINATED = 143
COLLECTED = 50_000  # objects between two collections: a start makes as many, and drops few


COMMANDS = (
    *("inspect", "show", "diff", "plan", "why"),
    *("convert", "verify", "parity", "infer", "roundtrip"),
    *("batch", "lint", "mappings", "formats", "ops", "explain", "schema"),
)


class Commands(click.Group):
    """The commands, each imported when it is called: `converter convert` waits for no other."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every name, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command of that name, from the module of that name."""
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"converter.cli.{name}")
        return cast("click.Command", getattr(module, name))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is called, knowing its settings."""
        from converter.cli.settings import apply

        name, command, rest = super().resolve_command(ctx, args)
        if name and command and not ctx.resilient_parsing:
            apply(ctx, name, command, self)
        return name, command, rest


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="converter")
def cli() -> None:
    """Move trained weights between frameworks by declarative mapping files."""


def main() -> None:
    """Run the command line and exit.

    Whole-process time counts when a build converts many files: no thread pool is started for
    linear algebra that is never done, nothing is looked for that could be collected while modules
    are imported, and nothing is torn down that the system frees anyway.
    """
    gc.set_threshold(COLLECTED)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    signal.signal(signal.SIGTERM, _terminate)
    code = run(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, AttributeError):  # closed, or a pipe that nobody reads
            stream.flush()
    os._exit(code)


class _Terminated(BaseException):
    """SIGTERM: what is half done is to be taken back, as for Ctrl-C."""


def _terminate(*_: object) -> None:
    raise _Terminated


def run(arguments: list[str]) -> int:  # noqa: PLR0911 - one return for each way to end
    """Run one command; the exit code."""
    try:
        return int(cli.main(arguments, prog_name="converter", standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        hint("interrupted; nothing was left behind")
        return INTERRUPTED
    except _Terminated:
        hint("terminated; nothing was left behind")
        return TERMINATED
    except SystemExit:  # click ends so when nobody reads the help any more
        return 0
    except errors.ConverterError as error:
        return _report(error)
    except OSError as error:  # the system refuses something that has no better words
        return _report(errors.SourceError(error.strerror or str(error), path=error.filename))
    except Exception as error:  # noqa: BLE001 - whatever is left is our bug, and is said to be
        return _bug(error)


def _report(error: errors.ConverterError) -> int:
    if os.environ.get("CONVERTER_DEBUG"):
        raise error
    if isinstance(error, errors.MappingError):
        print_diagnostics(error.diagnostics)
    else:
        hint(f"error[{error.code}]: {error}")
    return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), BUG)


def _bug(error: Exception) -> int:
    if os.environ.get("CONVERTER_DEBUG"):
        raise error
    hint(
        f"internal error: {type(error).__name__}: {error}\n"
        "  this is a bug in converter; CONVERTER_DEBUG=1 shows where"
    )
    return BUG
