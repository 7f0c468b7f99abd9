"""The active column file: which engine holds the columns of a store, and how files of other engines are handled.

The metadata database records the active engine. A file of another engine is set aside when the active one is opened. A
file that is being built has a separate name, which is never opened as a store's column file.
"""

from __future__ import annotations

import logging
from pathlib import Path

from sqlalchemy import Engine, inspect

from repo.clock import Clock
from repo.core.metadata import MetadataDatabase
from repo.disk import durable
from repo.engines.base import READ, Backend, typed_errors
from repo.engines.registry import ENGINES, companions_of, engine_named, first_usable
from repo.errors import SchemaOutdated, system_typed
from repo.files import StoreFiles
from repo.models import TimeSeriesState
from repo.repositories.state import ColumnsStateRepository, State, StateRepository
from repo.schema import version
from repo.schema.creation import create_time_series, is_empty
from repo.settings import Settings

__all__ = [
    "ActiveColumns",
    "building_path",
    "first_engine",
    "refuse_unless_allowed",
    "remove",
]

log = logging.getLogger("holdfast.store")

_BUILDING = ".building"


class ActiveColumns:
    """The column files of one open store. Thread-safe; holds no file open."""

    def __init__(
        self, files: StoreFiles, metadata: MetadataDatabase, settings: Settings, clock: Clock
    ) -> None:
        self._files = files
        self._metadata = metadata
        self._settings = settings
        self._clock = clock

    def choose(self, *, leased: bool) -> Backend:
        """Return the backend of the active engine; raises `EngineMissing` if it cannot be used here.

        The result is reliable only under the lease; without it another process may be moving the columns.
        """
        with self._metadata.read() as connection:
            state = StateRepository(connection).get()
        assert state is not None
        engine = state.engine or first_engine(self._files, self._settings)
        if leased and not self._files.columns(engine).exists():
            engine = self._moved_since(state) or engine
        backend = self.backend_of(engine)
        backend.may_create = state.file_id is None and state.pruned_through == 0
        return backend

    def backend_of(self, engine: str, path: Path | None = None) -> Backend:
        """Return the backend of an engine, for its column file or another one; raises `EngineMissing`."""
        path = path or self._files.columns(engine)
        return engine_named(engine).open(path, self._files.scratch, self._settings, self._clock)

    def bring_to_head(self, engine: Engine, path: Path) -> None:
        """Create the tables of a new column file that is open; raises `SchemaOutdated` for an outdated one."""
        with engine.execution_options(**READ).connect() as connection:
            found = version.version_of(connection, path)
            is_new = found is None and is_empty(connection)
        if is_new:
            create_time_series(engine, path)
        else:
            self.refuse_schema(found, path)

    def refuse_schema(self, found: str | None, path: Path) -> None:
        """Raise `SchemaTooNew` or `SchemaOutdated` unless the schema is this program's."""
        status = version.compare(found)
        if status is version.VersionStatus.TOO_NEW:
            raise version.too_new(found, path)
        if status is not version.VersionStatus.HEAD:
            refuse_unless_allowed(found, path, self._files, self._settings)
            raise SchemaOutdated(f"{path} has the schema {found or 'of the legacy program'}", path=path)

    def migrate(self) -> None:
        """Upgrade the schema of an outdated column file. The file is closed, and the caller holds the lease."""
        from repo.schema.upgrade import run

        run(self._files, self._settings, self._clock, without_columns=False)

    def set_others_aside(self, active: str, generation: int) -> None:
        """Set aside column files of inactive engines, and remove files that a killed job was building.

        The caller holds the lease.
        """
        for name in ENGINES:
            if name != active:
                self.set_aside(name, generation)
        for name in ENGINES:
            remove(building_path(self._files.columns(name)))

    def set_aside(self, engine: str, generation: int) -> None:
        """Rename the column file of an inactive engine, if there is one, with its log.

        The caller holds the lease, under which it has read the active engine.
        """
        path = self._files.columns(engine)
        if path.exists():
            self.confirm()
            log.info("%s is no longer the active column file; kept as %s", path, _set_aside(path, generation))

    def confirm(self) -> State:
        """Commit the facts as they are, and return them, before a file that they do not name is renamed or removed.

        If a process is killed while it commits a move, or if the sync of that commit fails, SQLite's log may have the
        whole commit although no process sees it. Once all processes have closed the database or died, SQLite would
        recover it, and the store would look for the new file. The next commit, this one, overwrites it.
        """
        with self._metadata.write() as connection:
            repository = StateRepository(connection)
            state = repository.get()
            assert state is not None
            # In two steps, because SQLite writes nothing for an update that changes nothing.
            repository.set(copied_through=state.copied_through + 1)
            repository.set(copied_through=state.copied_through)
        return state

    def _moved_since(self, facts: State) -> str | None:
        """Return the engine that holds the columns if they moved after `facts` were recorded; under the lease.

        That is the case for a metadata database that was restored from a backup: its column file no longer exists, and
        another one belongs to this store and has a later generation. Raises `EngineMissing` if it cannot be opened.
        """
        for engine in ENGINES:
            if engine == facts.engine or not self._files.columns(engine).exists():
                continue
            backend = self.backend_of(engine)
            opened = backend.open()
            try:
                with typed_errors(backend), opened.connect() as connection, connection.begin():
                    if not inspect(connection).has_table(TimeSeriesState.__tablename__):
                        continue
                    owner = ColumnsStateRepository(connection).owner()
            finally:
                backend.close(opened)
            if owner is not None and facts.owns(owner[0]) and owner[1] > facts.generation:
                log.error(
                    "the metadata is older than the columns, which have since moved to %s", backend.path
                )
                return engine
        return None


def _set_aside(path: Path, generation: int) -> Path:
    """Rename a column file and its companions; returns its new name."""
    name = f"{path.name}.inactive-{generation}"
    number = 1
    while path.with_name(name).exists():
        number += 1
        name = f"{path.name}.inactive-{generation}-{number}"
    # The file itself comes last: as long as it has its name, its log must be found.
    with system_typed(path):
        durable.rename_all(
            (old, old.with_name(name + old.name.removeprefix(path.name)))
            for old in (*companions_of(path), path)
        )
    return path.with_name(name)


def building_path(path: Path) -> Path:
    """Return the name of a column file that is being built."""
    return path.with_name(path.name + _BUILDING)


def remove(path: Path) -> None:
    """Remove a column file and its companions."""
    with system_typed(path, "remove the file once that is possible"):
        for file in (path, *companions_of(path)):
            file.unlink(missing_ok=True)


def first_engine(files: StoreFiles, settings: Settings) -> str:
    """Choose the engine of a store without columns."""
    for engine in ENGINES:
        if files.columns(engine).exists():
            return engine
    if settings.engine != "auto":
        return settings.engine
    preferred, chosen = next(iter(ENGINES.values())), first_usable()
    if chosen is not preferred:
        log.warning(
            "Failed to initialize %s, falling back to %s: %s; the columns of %s are kept in %s, with the same features",
            preferred.title,
            chosen.title,
            preferred.why_missing(),
            files.folder,
            chosen.title,
        )
    return chosen.name


def refuse_unless_allowed(found: str | None, path: Path, files: StoreFiles, settings: Settings) -> None:
    """Raise `SchemaOutdated` if `auto_migrate` is off."""
    if not settings.auto_migrate:
        raise SchemaOutdated(
            f"{path} has the schema {found or 'of the legacy program'}, but {version.HEAD} is required; run "
            f"`{files.command('migrate')}`",
            path=path,
        )
