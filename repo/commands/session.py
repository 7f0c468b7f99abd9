"""A session: what the global options say; opens the store, and prints messages and progress."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repo.commands.texts import json_text, printable
from repo.errors import EngineMissing, HoldfastError

if TYPE_CHECKING:
    from repo import Store
    from repo.files import StoreFiles

__all__ = ["DEFAULT_STORE", "Session"]

DEFAULT_STORE = "./data/buffer"


@dataclass(slots=True)
class Session:
    """The store's folder and the form of the output.

    With `as_json`, every line on stderr is a JSON object with `level` and `message`.
    """

    folder: Path = Path(DEFAULT_STORE)
    is_named: bool = False
    """Whether the command line names the store, so that messages have to repeat it."""
    as_json: bool = False
    quiet: bool = False
    verbose: int = 0

    def name_store(self, path: Path, *, is_typed: bool) -> None:
        """Set the store's folder; what was typed replaces the environment's and the default."""
        if self.is_named and is_typed and path != self.folder:
            raise click.UsageError(f"two stores are given, {self.folder} and {path}; name one")
        if is_typed or not self.is_named:
            self.folder, self.is_named = path, is_typed

    def log_level(self, *, quiet: bool = False, verbose: int = 0) -> None:
        """Show the library's log on stderr: warnings by default, only errors if `quiet`, more with `verbose`."""
        self.quiet, self.verbose = self.quiet or quiet, max(self.verbose, verbose)
        if self.quiet and self.verbose:
            raise click.UsageError("-q and -v cannot be combined")
        logger = logging.getLogger("holdfast")
        for handler in [found for found in logger.handlers if isinstance(found, _Stderr)]:
            logger.removeHandler(handler)
        detail = (logging.WARNING, logging.INFO, logging.DEBUG)[min(self.verbose, 2)]
        level = logging.ERROR if self.quiet else detail
        logger.addHandler(_Stderr(self, level))
        logger.setLevel(level)

    @contextmanager
    def without_log(self, name: str) -> Iterator[None]:
        """Keep a part of the library's log, by the name of its logger, from stderr, unless details are wanted."""
        logger = logging.getLogger(name)
        logger.disabled = not self.verbose
        try:
            yield
        finally:
            logger.disabled = False

    def command(self, what: str) -> str:
        """Return a command line for this store that a user can paste, for messages."""
        store = f"--store {shlex.quote(str(self.folder))} " if self.is_named else ""
        return f"holdfast {store}{what}"

    @contextmanager
    def opened(
        self, *, create: bool = False, read_only: bool = False, background: bool = False, **settings: Any
    ) -> Iterator[Store]:
        """Open the store without a `background` thread: a command is short, and flushes what it needs.

        With `read_only` an outdated store is never upgraded, whatever the settings are; it raises `SchemaOutdated`. The
        files are then opened for reading only if this user may not write to them.
        """
        from repo import Settings, Store

        if read_only:
            settings["auto_migrate"] = False
        files = self.files(read_only=read_only)
        loaded = Settings.load(files.folder, background=background, **settings)
        only = read_only and files.metadata.exists() and not files.is_writable()
        with Store(self.folder, loaded, create=create, read_only=only, files=files) as store:
            yield store

    def files(self, *, read_only: bool = True) -> StoreFiles:
        """Find the files of the store. Unless `read_only`, create the symlink to columns outside the folder.

        The file that the environment variable names is checked before the symlink is created, and raises the errors of
        a migration.
        """
        from repo.compat.environment import from_environment
        from repo.files import StoreFiles, find_files, place_columns

        files = find_files(self.folder, from_environment("DUCKDB_STORAGE_PATH", str))
        if read_only or files == StoreFiles.of(self.folder.resolve()):
            return files
        from repo.schema.upgrade import migrate_store  # loads Alembic, which few commands need

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
        """Show a progress bar on stderr, if that is a terminal; yields a function for the amount done and the total."""
        if self.as_json or self.quiet or not sys.stderr.isatty():
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
            click.echo(_as_line("info", text) if self.as_json else printable(text), err=True)

    def log(self, level: str, text: str) -> None:
        """Print a line of the library's log to stderr."""
        click.echo(_as_line(level, text) if self.as_json else printable(f"{level}: {text}"), err=True)


def _as_line(level: str, text: str) -> str:
    return json_text({"level": level, "message": text})


class _Stderr(logging.Handler):
    def __init__(self, session: Session, level: int) -> None:
        super().__init__(level)
        self._session = session

    def emit(self, record: logging.LogRecord) -> None:
        self._session.log(record.levelname.lower(), record.getMessage())
