"""The `holdfast` command: owns the list of commands, each imported on demand, and turns errors into exit codes.

Light to import: no engine, no SQLAlchemy, so that `--help` is fast.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from importlib import import_module
from keyword import iskeyword
from pathlib import Path
from typing import Any

import click

from repo.commands.exits import Exit, failure
from repo.commands.session import DEFAULT_STORE, Session, log_to_stderr
from repo.engines.interrupts import is_interrupt
from repo.errors import HoldfastError

__all__ = ["holdfast", "main"]

# Name: module, and the first line of its help, so that listing the commands imports none of them.
_COMMANDS = {
    "init": ("store", "Create a store, or confirm that it exists."),
    "status": ("store", "Show what the store holds, its backlog, its files and who has it open."),
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
    "ingest": ("ingest", "Read CSV, NDJSON and Parquet files into the store."),
    "export": ("transfer", "Write points to Parquet or NDJSON: one file, or a folder of days."),
    "import": ("transfer", "Read Parquet and exported NDJSON into the store: files, folders, bundles."),
    "cleanup": ("cleanup", "Delete points and pending records, and return free space to the disk."),
    "demo": ("demo", "Run a site through an outage and two kills, and verify the delivery."),
}

_ALIASES = {"recover": "import"}
"""Aliases, which the list of commands omits."""


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
    epilog="Exit codes: 0 done, 1 failed, 2 usage error, 3 problems found (rows rejected), 4 busy, "
    "5 schema outdated or too new. Data goes to stdout, messages to stderr. Environment variables can set every "
    "option (HOLDFAST_STORE, HOLDFAST_QUERY_LIMIT) and every setting (HOLDFAST_LEASE_TIMEOUT_S).",
)
@click.option(
    "--store",
    metavar="PATH",
    default=DEFAULT_STORE,
    show_default=True,
    show_envvar=True,
    type=click.Path(readable=False, path_type=Path),  # the store itself reports permission errors
    help="The store's folder, or its column file.",
)
@click.option("--json", "as_json", is_flag=True, envvar="HOLDFAST_JSON", help="Print JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print data and errors only.")
@click.option("-v", "--verbose", count=True, help="Log what the store does; repeat for more detail.")
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version.",
)
@click.pass_context
def holdfast(context: click.Context, store: Path, as_json: bool, quiet: bool, verbose: int) -> None:
    """Store-and-forward time-series buffer: write, query and forward readings at the edge."""
    if quiet and verbose:
        raise click.UsageError("-q and -v cannot be combined")
    log_to_stderr(quiet=quiet, verbose=verbose)
    context.obj = Session(store, as_json=as_json, quiet=quiet)


def main() -> None:
    """Run the command given by this process's arguments, and exit."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # a character that the terminal cannot show must not end the command
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    holdfast(prog_name="holdfast")
