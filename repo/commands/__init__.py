"""The `holdfast` command: owns the list of commands, each imported on demand, and turns errors into exit codes.

Light to import: no engine, no SQLAlchemy, so that `--help` is fast.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from keyword import iskeyword
from pathlib import Path
from shlex import quote
from typing import Any

import click

from repo.commands.exits import Exit, failure, show
from repo.commands.global_options import group_options
from repo.commands.groups import suggestion
from repo.commands.session import Session
from repo.engines.interrupts import is_interrupt
from repo.errors import HoldfastError

__all__ = ["holdfast", "main"]

# Name: module, and the first line of its help, so that listing the commands imports none of them.
_COMMANDS = {
    "init": ("store", "Create a store, or confirm that it exists."),
    "status": ("store", "Show what the store holds, its backlog, its files and its warnings."),
    "losses": ("losses", "List what was dropped: how much, when, why, and of which series and times."),
    "migrate": ("migrate", "Upgrade the store's schema to this program's version."),
    "adopt": ("adopt", "Create the store NEW from a copy of the store OLD."),
    "promote": ("engines", "Move the columns from SQLite to DuckDB."),
    "demote": ("engines", "Move the columns from DuckDB to SQLite."),
    "query": (
        "query",
        "Print points of SENSOR and METRIC, or aggregates of them.",
    ),
    "latest": ("query", "Print the newest points of each series."),
    "series": ("query", "List the series of the store."),
    "sql": ("sql", "Run one SELECT on the store and print its rows."),
    "ingest": ("ingest", "Read CSV, NDJSON and Parquet files into the store."),
    "export": (
        "transfer",
        "Write points to Parquet, CSV or NDJSON: one file, a folder of days, or - for standard output.",
    ),
    "import": ("transfer", "Read Parquet and exported NDJSON into the store: files, folders, bundles."),
    "cleanup": ("cleanup", "Delete points and pending records, and return free space to the disk."),
    "compact": ("compact", "Sort the points on disk by series and time, which makes queries faster."),
    "sinks": (
        "sinks",
        "Manage the destinations of the store.",
    ),
    "quarantine": ("quarantine", "Handle the points and records that destinations refused."),
    "drain": (
        "deliver",
        "Deliver everything that waits, and exit: to all destinations, or to the named ones.",
    ),
    "run": ("deliver", "Deliver to the destinations until SIGTERM or Ctrl-C: to all, or to the named ones."),
    "reconcile": ("deliver", "Compare what SINK confirmed with what its destination holds."),
    "demo": ("demo", "Run a site through an outage and two kills, and verify the delivery."),
}

_ALIASES = {"recover": "import"}
"""Aliases, which the list of commands omits."""

_MEANT = {
    **dict.fromkeys(("check", "doctor", "fsck", "health", "repair", "verify"), "status --check"),
    **dict.fromkeys(("info", "list", "show", "stats"), "status"),
    **dict.fromkeys(("deliver", "flush", "push", "send", "sync"), "drain"),
    **dict.fromkeys(("delete", "prune", "vacuum"), "cleanup"),
    **dict.fromkeys(("insert", "load", "write"), "ingest"),
    **dict.fromkeys(("backup", "dump"), "export"),
    **dict.fromkeys(("restore", "rollback"), "migrate --restore"),
    "upgrade": "migrate",
    "help": "--help",
    "version": "--version",
}
"""What may be meant by commands of other programs. It is suggested, not accepted."""


class _Commands(click.Group):
    """Imports a command when it is called, and turns errors into messages and exit codes."""

    def list_commands(self, _context: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        name = _ALIASES.get(name, name)
        if name not in _COMMANDS:
            return None
        module, _ = _COMMANDS[name]
        attribute = f"{name}_" if iskeyword(name) else name
        command: click.Command = getattr(import_module(f"repo.commands.{module}"), attribute)
        return command

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; an unknown one is an error with a suggestion."""
        name = arguments[0]
        if name.startswith("-") or self.get_command(context, name) is not None:
            return super().resolve_command(context, arguments)
        if os.sep in name or Path(name).is_dir():
            reason = (
                f"{name!r} is a path, not a command; write the command first: holdfast status {quote(name)}"
            )
        else:
            meant = _MEANT.get(name)
            hint = f"did you mean {meant!r}?" if meant else suggestion(name, [*_COMMANDS, *_ALIASES])
            reason = f"there is no command {name!r}; {hint}"
        raise click.UsageError(reason, context)

    def main(self, args: Sequence[str] | None = None, **extra: Any) -> Any:  # type: ignore[override]
        """Run the command and exit; an error is printed as the command line asks, with --json as JSON."""
        arguments = list(sys.argv[1:] if args is None else args)
        if not extra.pop("standalone_mode", True):
            return super().main(arguments, standalone_mode=False, **extra)
        try:
            code = super().main(arguments, standalone_mode=False, **extra)
        except (click.ClickException, click.Abort) as error:
            code = show(error, as_json=_wants_json(arguments))
        sys.exit(code if isinstance(code, int) else Exit.DONE)

    def format_commands(self, _context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in _COMMANDS.items()])

    def invoke(self, context: click.Context) -> Any:
        try:
            result = super().invoke(context)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader closed the pipe, as `head` does
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            context.exit(Exit.PIPE)
        except KeyboardInterrupt:
            context.exit(Exit.INTERRUPTED)
        except RuntimeError as error:
            if not is_interrupt(error):
                raise
            context.exit(Exit.INTERRUPTED)
        except (HoldfastError, OSError) as error:
            raise failure(error) from error
        return result


def _wants_json(arguments: Sequence[str]) -> bool:
    """Return whether errors are to be JSON, even if the command line could not be parsed."""
    named = arguments[: arguments.index("--")] if "--" in arguments else arguments
    by_default = os.environ.get("HOLDFAST_JSON", "").strip().lower()
    return "--json" in named or by_default in ("1", "true", "t", "yes", "y", "on")


def _print_version(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if not wanted or context.resilient_parsing:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        click.echo(f"holdfast {version('holdfast-edge')}")
    except PackageNotFoundError:
        click.echo("holdfast (not installed: running from a checkout)")
    context.exit()


@click.group(
    cls=_Commands,
    context_settings={"auto_envvar_prefix": "HOLDFAST", "help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 failed, 2 usage error, 3 problems found (rows rejected, warnings of "
    "status --check), 4 busy, "
    "5 schema outdated or too new. Data goes to stdout, messages to stderr. Environment variables can set every "
    "option (HOLDFAST_STORE, HOLDFAST_QUERY_LIMIT) and every setting (HOLDFAST_LEASE_TIMEOUT_S).",
)
@group_options
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version.",
)
@click.pass_context
def holdfast(context: click.Context) -> None:
    """Store-and-forward time-series buffer: write, query and forward readings at the edge.

    The global options can be written before or after the command.
    """
    context.ensure_object(Session).log_level()


def main() -> None:
    """Run the command given by this process's arguments, and exit."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # a character that the terminal cannot show must not end the command
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    holdfast(prog_name="holdfast")
