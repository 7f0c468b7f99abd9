"""Migrating a store: brings the databases that it has to the head, under its lease. Never makes a database."""

from __future__ import annotations

import os
from typing import NamedTuple, cast

from repo.clock import system_clock
from repo.engines.lease import Lease
from repo.errors import StoreMissing
from repo.files import StoreFiles
from repo.schema import migrate
from repo.schema.targets import find_targets
from repo.schema.version import Standing, compare, too_new
from repo.settings import Settings

__all__ = ["DatabaseVersion", "migrate_store"]


class DatabaseVersion(NamedTuple):
    """One database of a store, and its revision before and after; None where no migration ever ran."""

    database: str
    engine: str
    file: str
    before: str | None
    after: str | None


def migrate_store(path: str | os.PathLike[str], *, check: bool = False) -> list[DatabaseVersion]:
    """Bring the databases of the store to the head; with `check` only say where they stand.

    No other process can have the columns open meanwhile: `StoreBusy` if one does not hand them over. A file
    that is not there yet is made, at the head, when it is first needed. Raises `StoreMissing`,
    `SchemaTooNew`; a database is then at the last revision that was completed.
    """
    files = StoreFiles.of(os.path.realpath(path))
    folder = files.folder
    targets = [
        target for target in find_targets({"path": os.path.realpath(path)}, {}) if target.path.exists()
    ]
    if not any(target.database == "metadata" for target in targets):
        raise StoreMissing(f"there is no store in {folder}; `holdfast init` makes one", path=folder)
    lease = Lease(folder, system_clock, prefix=files.prefix)
    try:
        lease.acquire(Settings.load(folder).lease_timeout_s, "migrate")
        found = []
        for target in targets:
            with target.opened() as engine:
                before = after = migrate.current(engine)
                if compare(before) is Standing.TOO_NEW:
                    raise too_new(before, target.path)
                if not check:
                    database = cast("migrate.Database", target.database)
                    after = migrate.upgrade(engine, database, path=target.path).after
            found.append(DatabaseVersion(target.database, target.engine, str(target.path), before, after))
        return found
    finally:
        lease.close()
