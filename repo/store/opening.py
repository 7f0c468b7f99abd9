"""Opening: finds or creates the databases of a store, upgrades their schema, and builds the handle.

Everything that would prevent opening is reported before anything is changed.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from uuid import uuid4

from repo.clock import Clock
from repo.core.acknowledged import account_for_lost_end
from repo.core.active import ActiveColumns, first_engine, refuse_unless_allowed
from repo.core.columns import Columns
from repo.core.flush import Flusher
from repo.core.handle import Handle
from repo.core.metadata import MetadataDatabase
from repo.core.turnstile import Turnstile
from repo.core.writer import Writer
from repo.engines.base import READ
from repo.engines.registry import ENGINES, LEGACY, METADATA
from repo.engines.sqlite import driver as sqlite
from repo.errors import (
    EngineMissing,
    InvalidFile,
    StoreBusy,
    StoreCorrupt,
    StoreMissing,
    system_error,
    system_typed,
)
from repo.files import StoreFiles
from repo.models import MetadataBase
from repo.processes import forks
from repo.processes.inuse import is_open_here, refuse_own
from repo.processes.lease import LEASE_FILE, leased
from repo.repositories.pointers import PointerRepository
from repo.repositories.sinks import SinkRepository
from repo.repositories.state import ColumnsStateRepository, Extent, State, StateRepository
from repo.schema import version
from repo.schema.creation import create_tables, is_empty
from repo.schema.databases import Target
from repo.schema.restore_files import Kept, is_restoring, kept_by_restores
from repo.settings import Settings

__all__ = ["Opening"]

log = logging.getLogger("holdfast.store")


class Opening:
    """The steps that open one store; `path` is the caller's name for it."""

    def __init__(self, path: Path, files: StoreFiles, settings: Settings, clock: Clock) -> None:
        self._path = path
        self._files = files
        self._settings = settings
        self._clock = clock
        self._was_at_head = False
        """Whether the metadata had this program's schema when `upgrade` read it."""

    def find(self, create: bool) -> None:
        """Check that a store exists or may be created."""
        self._refuse_foreign()
        forks.refuse_inherited(self._files.metadata, *map(self._files.columns, ENGINES))
        if is_restoring(self._files):
            from repo.schema.restore import finish_restore

            finish_restore(self._files, self._settings, self._clock)
        database = self._files.metadata
        has_metadata = database.exists() and (
            database.stat().st_size > 0 or METADATA.log_of(database).exists()
        )
        if not has_metadata:
            self._refuse_columns_alone()
        if not has_metadata and not create:
            raise StoreMissing(
                f"there is no store in {self._path}; check the path, or create one: `{self._files.command('init')}`",
                path=self._path,
            )
        try:
            self._files.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise system_error(
                error, self._files.folder, "no store was created; name another folder"
            ) from error

    def _refuse_foreign(self) -> None:
        """Refuse a path that is a file of another program, before any file is created next to it."""
        file = self._files.duckdb
        if not self._files.prefix or self._files.metadata.exists() or not file.is_file():
            return
        with system_typed(file):
            if is_open_here(file):  # closing another descriptor of an open database would drop its locks
                refuse_own(file)
                return
        with system_typed(file), file.open("rb") as opened:
            head = opened.read(64)
        if not head or LEGACY.recognizes(head):
            return
        if METADATA.recognizes(head):
            inside = f"an SQLite database; if it belongs to a store, name its folder: {file.parent}"
        else:
            inside = "a file of another program; name the folder of a store"
        raise InvalidFile(f"{file} is {inside}. Nothing was changed", path=file)

    def _refuse_columns_alone(self) -> None:
        for engine in ENGINES:
            columns = self._files.columns(engine)
            if columns.exists():
                name = self._files.metadata.name
                if self._is_unowned(engine, columns):
                    if self._files.apart:
                        continue
                    raise StoreMissing(
                        f"{columns} is a column file of the legacy program, and {name} is missing. Restore {name} if "
                        "there was one; otherwise name the column file as the store: "
                        f"`holdfast --store {shlex.quote(str(columns))} init`",
                        path=self._path,
                    )
                raise StoreCorrupt(
                    f"{columns} exists, but {name}, which holds the journal, is missing or empty: this is a damaged "
                    f"store, not a new one. Restore {name}, or move {columns.name} away to start a new store",
                    path=self._path,
                )

    def _is_unowned(self, engine: str, columns: Path) -> bool:
        """Return whether the file belongs to no store yet, so no journal can be missing.

        The file then comes from the legacy program, and may be partly upgraded.
        """
        lock = self._files.folder / f"{self._files.prefix}{LEASE_FILE}"
        with (
            # Without a lock file, no Holdfast process has the columns open. None is created where there is no store.
            self._leased("checking a file of the legacy program") if lock.exists() else nullcontext(),
            Target("timeseries", engine, columns, self._files).opened() as opened,
            opened.execution_options(**READ).connect() as connection,
        ):
            return ColumnsStateRepository(connection).owner() is None

    def _leased(self, doing: str) -> AbstractContextManager[None]:
        return leased(
            self._files.folder, self._settings.lease_timeout_s, self._clock, doing, prefix=self._files.prefix
        )

    def upgrade(self) -> None:
        """Upgrade the schema of an existing store, before this handle opens any of its files.

        Raises `SchemaTooNew`, `SchemaOutdated` if `auto_migrate` is off, and what `repo.schema.upgrade` raises.
        """
        database = self._files.metadata
        if not database.exists():
            return
        found, is_new, noted = self._found()
        status = version.compare(found)
        if not is_new and status is not version.VersionStatus.HEAD:
            with self._writers_kept_out():  # another process may be creating the store right now
                found, is_new, noted = self._found()
            status = version.compare(found)
        if status is version.VersionStatus.TOO_NEW:
            raise version.too_new(found, database)
        self._was_at_head = status is version.VersionStatus.HEAD
        if noted and self._settings.auto_migrate:
            self._restore_records()
        if status is version.VersionStatus.HEAD or is_new:
            return
        refuse_unless_allowed(found, database, self._files, self._settings)
        with self._leased("migrating the store"):
            self._migrate()

    def _found(self) -> tuple[str | None, bool, bool]:
        """Return the metadata's schema, whether it has no tables yet, and whether records still lack their data."""
        database = self._files.metadata
        with sqlite.reading(database, busy_timeout_s=self._settings.busy_timeout_s) as connection:
            found = version.version_of(connection, database)
            is_new = found is None and is_empty(connection)
            return found, is_new, found == version.HEAD and PointerRepository(connection).noted()

    @contextmanager
    def _writers_kept_out(self) -> Iterator[None]:
        turnstile = Turnstile(self._files)
        try:
            turnstile.take(self._settings.busy_timeout_s)
            yield
        finally:
            turnstile.close()

    def _restore_records(self) -> None:
        """Restore the data of records of the legacy program. `StoreBusy` is logged and does not prevent opening."""
        there = [engine for engine in ENGINES if self._files.columns(engine).exists()]
        if not there or any(ENGINES[engine].why_missing() for engine in there):
            return
        try:
            with self._leased("restoring records of the legacy program"):
                self._migrate()
        except StoreBusy as busy:
            log.warning("records of the legacy program are held back until their data is restored: %s", busy)

    def prepare(self, metadata: MetadataDatabase) -> State:
        """Return the state of the store. Creates a new store, also next to columns of the legacy program.

        If several processes open a new store at once, one of them creates it and the others wait.
        """
        kept = kept_by_restores(self._files)
        if sqlite.is_begun(metadata.path):
            acknowledged = metadata.mark.read()  # first: others may be writing to the store
            state = self._state(metadata)
            if state is not None:
                state = self._identified(metadata, state, kept)
                return (
                    state if acknowledged is None else self._account_for_losses(metadata, state, acknowledged)
                )
        columns = any(self._files.columns(engine).exists() for engine in ENGINES)
        with self._leased("preparing the store") if columns else nullcontext(), metadata.alone():
            state = self._state(metadata)
            if state is None:
                with metadata.read() as connection:
                    found = version.version_of(connection)
                    is_new = found is None and not columns and is_empty(connection)
                # If the metadata is at the head, the columns may still be outdated, with `auto_migrate` off.
                is_head = version.compare(found) is version.VersionStatus.HEAD
                if not is_new and (not is_head or self._settings.auto_migrate):
                    self._migrate()
                state = State(
                    uuid4().hex, 0, 0, 0, first_engine(self._files, self._settings), None, 1, self._clock()
                )
                with metadata.write() as connection:
                    if is_new:
                        create_tables(connection, MetadataBase)
                    StateRepository(connection).create(state)
                if is_new:
                    metadata.checkpoint()  # a store whose log is lost still has its tables and its id
        return self._identified(metadata, state, kept)

    def _identified(self, metadata: MetadataDatabase, state: State, kept: Kept) -> State:
        """Give a store that was restored its next epoch, and the id that it had before, as after a rekey."""
        if state.epoch >= kept.epoch:
            return state
        state = state._replace(epoch=kept.epoch)
        if kept.store_id not in (None, state.store_id) and state.former_store_id is None:
            state = state._replace(store_id=kept.store_id, former_store_id=state.store_id)
        with metadata.write() as connection:
            StateRepository(connection).set(
                epoch=state.epoch, store_id=state.store_id, former_store_id=state.former_store_id
            )
            SinkRepository(connection).forget_tokens()
        log.warning(
            "%s was restored: it has the id %s, and in epoch %d it is new to every receiver",
            *(self._path, state.store_id, state.epoch),
        )
        return state

    def _account_for_losses(self, metadata: MetadataDatabase, state: State, acknowledged: Extent) -> State:
        """Return the state of the store, after recording in the ledger any acknowledged data that the metadata lost."""
        with metadata.read() as connection:
            found = StateRepository(connection).extent()
        assert found is not None
        if found.store_id != acknowledged.store_id:  # the mark belongs to an earlier store in this folder
            return state
        if found.last_seq >= acknowledged.last_seq and found.last_record >= acknowledged.last_record:
            return state
        with metadata.write() as connection:
            losses = account_for_lost_end(connection, acknowledged, self._clock())
            state = StateRepository(connection).get() or state
        for loss in losses:
            log.error(
                "%s lacks acknowledged data: its log was damaged, or it was replaced by an older file. %s that were "
                "not flushed may be missing: %s; see the loss ledger",
                metadata.path,
                loss.what,
                loss.detail,
            )
        return state

    def _state(self, metadata: MetadataDatabase) -> State | None:
        """Return the state of a store that is completely created, or None; raises `SchemaTooNew`."""
        with metadata.read() as connection:
            found = version.version_of(connection, is_versioned=self._was_at_head)
            status = version.compare(found)
            if status is version.VersionStatus.TOO_NEW:
                raise version.too_new(found, metadata.path)
            return StateRepository(connection).get() if status is version.VersionStatus.HEAD else None

    def build_handle(self, metadata: MetadataDatabase) -> Handle:
        """Build the handle. The columns stay closed until they are needed."""
        clock = self._clock
        writer = Writer(metadata, clock, self._settings.submit_queue_points)

        active = ActiveColumns(self._files, metadata, self._settings, clock)
        columns = Columns(self._files, active, self._settings, clock)
        flusher = Flusher(metadata, columns, active, self._settings, clock)
        try:
            _ = columns.backend
        except EngineMissing as missing:
            log.warning("%s", missing)
        return Handle(self._files, metadata, writer, self._settings, clock, active, columns, flusher)

    def open_existing_columns(self, handle: Handle) -> None:
        """Open columns that this store has never opened, such as those of the legacy program, to copy their summaries.

        Raises `StoreBusy` if another process holds them. If they cannot be read, the store opens without them.
        """
        try:
            if handle.columns.backend.path.exists():
                with handle.reading("reading existing columns for the first time"):
                    pass
        except EngineMissing:
            return  # `build_handle` has logged it
        except StoreCorrupt as damaged:
            log.warning("the existing columns cannot be read: %s", damaged)

    def _migrate(self) -> None:
        from repo.schema.upgrade import run

        run(self._files, self._settings, self._clock, without_columns=True)
