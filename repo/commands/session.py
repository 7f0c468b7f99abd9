"""A session: the options that all commands share; opens the store, and prints messages and progress."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repo.commands.output import printable
from repo.errors import EngineMissing, HoldfastError

if TYPE_CHECKING:
    from repo import Store
    from repo.files import StoreFiles

__all__ = ["DEFAULT_STORE", "Session", "json_option", "log_to_stderr"]

DEFAULT_STORE = "./data/buffer"


@dataclass(slots=True)
class Session:
    """The store's folder and the form of the output."""

    folder: Path
    as_json: bool = False
    quiet: bool = False

    @contextmanager
    def opened(self, *, create: bool = False, read_only: bool = False, **settings: Any) -> Iterator[Store]:
        """Open the store without a background thread: a command is short, and flushes what it needs.

        With `read_only` an outdated store is never upgraded, whatever the settings are; it raises `SchemaOutdated`.
        """
        from repo import Settings, Store

        if read_only:
            settings["auto_migrate"] = False
        files = self.files(read_only=read_only)
        loaded = Settings.load(files.folder, background=False, **settings)
        with Store(self.folder, loaded, create=create, files=files) as store:
            yield store

    def files(self, *, read_only: bool = True) -> StoreFiles:
        """Find the files of the store. Unless `read_only`, create the symlink to columns outside the folder.

        The file that the environment variable names is checked before the symlink is created, and raises the errors of
        a migration.
        """
        from repo.compat.environment import from_environment
        from repo.files import StoreFiles, find_files, place_columns
        from repo.schema.upgrade import migrate_store

        files = find_files(self.folder, from_environment("DUCKDB_STORAGE_PATH", str))
        if read_only or files == StoreFiles.of(self.folder.resolve()):
            return files
        try:
            with suppress(EngineMissing):
                migrate_store(files, check=True)
        except HoldfastError as error:
            error.add_note(
                f"DUCKDB_STORAGE_PATH names {files.duckdb} for the columns of this store; if that is the wrong file, "
                "correct the variable. Nothing was changed"
            )
            raise
        place_columns(files.folder, files.duckdb)
        return files

    @contextmanager
    def progress(self, label: str) -> Iterator[Callable[[int, int], object]]:
        """Show a progress bar on stderr; yields a function to be called with the amount done and the total."""
        if self.as_json or self.quiet:
            yield lambda _done, _total: None
            return
        with click.progressbar(length=1, label=label, file=sys.stderr) as bar:

            def show(done: int, total: int) -> None:
                bar.length = max(1, total)
                bar.update(done - bar.pos)

            yield show

    def say(self, text: str) -> None:
        """Print a report for people to stdout."""
        if not self.quiet:
            click.echo(printable(text))

    def note(self, text: str) -> None:
        """Print a message to stderr."""
        if not self.quiet:
            click.echo(printable(text), err=True)


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Accept `--json` after the command's name too."""

    def switch(context: click.Context, _parameter: click.Parameter, given: bool) -> None:
        if given:
            context.find_object(Session).as_json = True  # type: ignore[union-attr]

    option = click.option("--json", is_flag=True, expose_value=False, callback=switch, help="Print JSON.")
    return option(command)


def log_to_stderr(*, quiet: bool, verbose: int) -> None:
    """Show the library's log on stderr: warnings by default, only errors if `quiet`, more with `verbose`."""
    logger = logging.getLogger("holdfast")
    for handler in [found for found in logger.handlers if isinstance(found, _Stderr)]:
        logger.removeHandler(handler)
    level = logging.ERROR if quiet else (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    handler = _Stderr(level)
    logger.addHandler(handler)
    logger.setLevel(level)


class _Stderr(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        click.echo(f"{record.levelname.lower()}: {printable(record.getMessage())}", err=True)
