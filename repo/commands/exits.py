"""Exit codes: the one place that maps errors to messages and exit codes, and prints them."""

from __future__ import annotations

from enum import IntEnum

import click

from repo.commands.texts import json_text, printable
from repo.errors import InvalidQuery, InvalidSettings, SchemaOutdated, SchemaTooNew, StoreBusy

__all__ = ["Exit", "failure", "show"]


class Exit(IntEnum):
    """The exit codes of the command."""

    DONE = 0
    """Done, or nothing to do."""
    FAILED = 1
    USAGE = 2
    """An argument, an option or a setting is wrong; nothing was done."""
    PROBLEMS = 3
    """The command ran and found problems: rejected rows, a failed check, an export that matches no point."""
    BUSY = 4
    """Another process held the columns until the deadline; retrying is safe."""
    SCHEMA = 5
    """The schema is older than this program (run `holdfast migrate`) or newer (update it)."""
    INTERRUPTED = 130
    """Ctrl-C: 128 plus the number of SIGINT, as in shells."""
    PIPE = 141
    """The reader of stdout closed it: 128 plus the number of SIGPIPE."""


_CODES: tuple[tuple[type[Exception], Exit], ...] = (
    (StoreBusy, Exit.BUSY),
    (SchemaOutdated, Exit.SCHEMA),
    (SchemaTooNew, Exit.SCHEMA),
    (InvalidQuery, Exit.USAGE),
    (InvalidSettings, Exit.USAGE),
)


def failure(error: Exception) -> click.ClickException:
    """Return the exception for Click, with the message, its notes and the exit code of the error's type."""
    lines = [str(error) or type(error).__name__, *getattr(error, "__notes__", ())]
    code = next((code for kind, code in _CODES if isinstance(error, kind)), Exit.FAILED)
    return _Failure("\n".join(map(printable, lines)), code, type(error).__name__)


def show(error: click.ClickException | click.Abort, *, as_json: bool) -> int:
    """Print an error to stderr, as Click does or as one line of JSON, and return the exit code.

    JSON: {"level": "error", "error": its type, "message", "exit_code"}.
    """
    if isinstance(error, click.Abort):
        name, message, code = "Aborted", "Aborted!", int(Exit.FAILED)
    else:
        name = error.error if isinstance(error, _Failure) else type(error).__name__
        message, code = error.format_message(), int(error.exit_code)
    if as_json:
        click.echo(
            json_text({"level": "error", "error": name, "message": message, "exit_code": code}), err=True
        )
    elif isinstance(error, click.ClickException):
        error.show()
    else:
        click.echo(message, err=True)
    return code


class _Failure(click.ClickException):
    def __init__(self, message: str, code: Exit, error: str) -> None:
        super().__init__(message)
        self.exit_code = code  # type: ignore[misc]  # Click reads it from the instance
        self.error = error
