"""The active column file: which engine holds the columns of a store, and what becomes of the files of the other.

The metadata say which engine is active. A file of the other engine is set aside when the active one is opened; one
that is still being built has a name of its own, which nothing ever opens as a store's.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from sqlalchemy import Engine, inspect

from repo import durable
from repo.clock import Clock
from repo.core.metadata import MetadataDatabase
from repo.engines.base import Backend, typed_errors
from repo.engines.registry import ENGINES, companions_of, engine_named, first_usable
from repo.engines.sqlite import driver as sqlite
from repo.errors import SchemaOutdated, system_typed
from repo.files import StoreFiles
from repo.models import TimeSeriesState
from repo.repositories.state import ColumnsStateRepository, State, StateRepository
from repo.schema import version
from repo.settings import Settings

__all__ = [
    "ActiveColumns",
    "building_path",
    "first_engine",
    "refuse_unless_allowed",
    "remove",
    "set_aside",
]

log = logging.getLogger("holdfast.store")

_BUILDING = ".building"


class ActiveColumns:
    """What one open store knows of its column files. Thread-safe; it holds nothing open."""

    def __init__(
        self, files: StoreFiles, metadata: MetadataDatabase, settings: Settings, clock: Clock
    ) -> None:
        self._files = files
        self._metadata = metadata
        self._settings = settings
        self._clock = clock

    def choose(self, *, leased: bool) -> Backend:
        """Return the backend that is active now; raises `EngineMissing` where it cannot be used here.

        The answer is final only where the lease is held: without it another process may be moving the columns.
        """
        with self._metadata.read() as connection:
            state = StateRepository(connection).get()
        assert state is not None
        engine = state.engine or first_engine(self._files, self._settings)
        if leased and not self._files.columns(engine).exists():
            engine = self._moved_since(state) or engine
        backend = self.backend_of(engine)
        backend.may_begin = state.file_id is None and state.pruned_through == 0
        return backend

    def backend_of(self, engine: str, path: Path | None = None) -> Backend:
        """Return the backend of an engine, for its column file or another one; raises `EngineMissing`."""
        path = path or self._files.columns(engine)
        return engine_named(engine).open(path, self._files.scratch, self._settings, self._clock)

    def bring_to_head(self, engine: Engine, path: Path) -> None:
        """Make the tables of a new column file that is open; raises `SchemaOutdated` for an old one."""
        with engine.execution_options(**sqlite.READ).connect() as connection:
            found = version.version_of(connection, path)
            standing = version.compare(found)
            is_new = standing is version.Standing.UNVERSIONED and not inspect(connection).get_table_names()
        if standing is version.Standing.HEAD:
            return
        if standing is version.Standing.TOO_NEW:
            raise version.too_new(found, path)
        if not is_new:
            refuse_unless_allowed(found, path, self._files, self._settings)
            raise SchemaOutdated(f"{path} has the schema {found or 'of the legacy program'}", path=path)
        from repo.schema import runner

        runner.upgrade(engine, "timeseries", path=path)

    def migrate(self) -> None:
        """Bring a column file that was found outdated to the present schema; it is closed, and the lease held."""
        from repo.schema.upgrade import run

        run(self._files, self._settings, self._clock, without_columns=False)

    def set_others_aside(self, active: str, generation: int) -> None:
        """Set aside column files that are not the active engine's, and remove what a killed job was building.

        The caller holds the lease.
        """
        set_aside([self._files.columns(name) for name in ENGINES if name != active], generation)
        for name in ENGINES:
            remove(building_path(self._files.columns(name)))

    def _moved_since(self, facts: State) -> str | None:
        """Return the engine that holds the columns if they moved after these facts were noted; under the lease.

        So it is in a metadata database that was restored from a backup: its own column file is not there any more, and
        the other one is of this store and of a later generation. Raises `EngineMissing` where that cannot be asked.
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
            if owner is not None and owner[0] == facts.store_id and owner[1] > facts.generation:
                log.error("the metadata is older than %s, to which the columns moved since", backend.path)
                return engine
        return None


def set_aside(paths: Iterable[Path], generation: int) -> list[Path]:
    """Rename column files that are not the active engine's, with their logs; returns their new names.

    The caller holds the lease and has read the fact under it.
    """
    renamed = []
    for path in paths:
        if not path.exists():
            continue
        name = f"{path.name}.inactive-{generation}"
        number = 1
        while path.with_name(name).exists():
            number += 1
            name = f"{path.name}.inactive-{generation}-{number}"
        # The file itself last: while it has its name, its log is looked for.
        with system_typed(path):
            durable.rename_all(
                (old, old.with_name(name + old.name.removeprefix(path.name)))
                for old in (*companions_of(path), path)
            )
        log.info("%s is not the active column file any more; kept as %s", path, name)
        renamed.append(path.with_name(name))
    return renamed


def building_path(path: Path) -> Path:
    """Return the name of a column file while it is being built."""
    return path.with_name(path.name + _BUILDING)


def remove(path: Path) -> None:
    """Remove a column file and what belongs to it."""
    with system_typed(path, "remove it once that is possible"):
        for file in (path, *companions_of(path)):
            file.unlink(missing_ok=True)


def first_engine(files: StoreFiles, settings: Settings) -> str:
    """Choose the engine of a store that has none yet."""
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
    """Raise `SchemaOutdated` where `auto_migrate` is off."""
    if not settings.auto_migrate:
        raise SchemaOutdated(
            f"{path} has the schema {found or 'of the legacy program'}, and {version.HEAD} is needed; run "
            f"`{files.command('migrate')}`",
            path=path,
        )
