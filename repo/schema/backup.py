"""Backups made before a migration: one folder each, with both databases, that exists complete or not at all.

The caller holds the lease, has closed the databases and checkpointed DuckDB. Never decides when a backup is made.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from repo.disk import durable, ownership
from repo.engines.registry import ENGINES, engine_named
from repo.engines.sqlite import driver as sqlite
from repo.errors import StoreCorrupt, system_typed
from repo.files import StoreFiles
from repo.schema.databases import DATABASES

__all__ = ["UNFINISHED", "Backup", "Saved", "keep", "list_backups", "make", "read_backup", "typed_at"]

_MANIFEST = "manifest.json"
UNFINISHED = ".part"
"""The suffix of a folder or a file that is not complete."""


class Saved(NamedTuple):
    """One database of a backup; `revision` is None if no migration had run on it."""

    database: str
    engine: str
    name: str
    revision: str | None
    size_bytes: int
    sha256: str | None = None
    """Of the file; None if it was not recorded."""


@dataclass(frozen=True, slots=True)
class Backup:
    """One complete backup."""

    folder: Path
    made_us: int
    saved: tuple[Saved, ...]
    goal: str | None = None
    """The target revision of the migration that it was made for; None if it was not recorded."""

    @property
    def size_bytes(self) -> int:
        """The size of its files."""
        return sum(saved.size_bytes for saved in self.saved)

    def began(self, revisions: dict[str, str | None]) -> bool:
        """Return whether a migration that began with this backup was interrupted.

        `revisions` has the current revision of each database by name. After an interruption some differ from the
        backup, and not all are at the target. A database created later, without any migration, is in no backup.
        """
        kept = {saved.database: saved.revision for saved in self.saved}
        if not kept.keys() <= revisions.keys() or None in (
            revisions[n] for n in revisions.keys() - kept.keys()
        ):
            return False
        now = {name: revisions[name] for name in kept}
        return kept != now and set(now.values()) != {self.goal}


def list_backups(files: StoreFiles) -> list[Backup]:
    """Return the backups of a store, newest first."""
    manifests = files.backups.glob(f"*/{_MANIFEST}")
    found = [read_backup(manifest.parent) for manifest in manifests if manifest.parent.suffix != UNFINISHED]
    return sorted(found, key=lambda backup: (backup.made_us, backup.folder.name), reverse=True)


def make(
    files: StoreFiles,
    databases: list[tuple[str, str, Path, str | None]],
    goal: str,
    now_us: int,
    progress: Callable[[int], object],
) -> Backup:
    """Copy the databases (name, engine, file, revision) durably into a new folder, which gets its name last.

    The backup precedes a migration to the revision `goal`. If the clock was set back, its time is right after that of
    the newest backup, so that the order of backups does not depend on the clock.

    `progress` receives the bytes of each piece. Raises `StoreFull` and typed errors, and then leaves nothing behind.
    """
    now_us = max([now_us, *(existing.made_us + 1 for existing in list_backups(files))])
    stamp = datetime.fromtimestamp(now_us // 1_000_000, UTC).strftime("%Y%m%dT%H%M%SZ")
    place = files.backups
    final, number = place / stamp, 1
    while final.exists():
        number += 1
        final = place / f"{stamp}-{number}"
    part = final.with_name(final.name + UNFINISHED)
    try:
        with typed_at(
            place,
            "the databases are unchanged. Fix the cause, or continue without a backup: "
            f"`{files.command('migrate --no-backup')}`",
        ):
            place.mkdir(parents=True, exist_ok=True)
            part.mkdir()
            for folder in (place, part):
                ownership.give(folder)
            saved = []
            for database, engine, path, revision in databases:
                copy = part / path.name
                (engine_named(engine).copy or durable.copy)(path, copy, progress)
                size_bytes = copy.stat().st_size
                saved.append(Saved(database, engine, path.name, revision, size_bytes, _sha256(copy)))
            backup = Backup(final, now_us, tuple(saved), goal)
            manifest_content = {
                "made_us": now_us,
                "goal": goal,
                "databases": [kept._asdict() for kept in saved],
            }
            durable.put(part / _MANIFEST, json.dumps(manifest_content, indent=2).encode() + b"\n")
            ownership.give(part / _MANIFEST)
            durable.replace(part, final)
            durable.sync(place.parent)
    except BaseException:  # an interrupt, too, leaves no partial backup
        shutil.rmtree(part, ignore_errors=True)
        raise
    return backup


def keep(files: StoreFiles, count: int) -> list[Path]:
    """Remove all backups except the newest `count`; returns the removed folders."""
    old = [backup.folder for backup in list_backups(files)[count:]]
    for folder in old:
        # Renamed first, so that a crash does not leave a partial backup under its name.
        part = folder.with_name(folder.name + UNFINISHED)
        durable.replace(folder, part)
        shutil.rmtree(part)
    return old


def read_backup(folder: Path) -> Backup:
    """Return the backup in a folder; raises `StoreCorrupt` if its manifest cannot be read."""
    manifest = folder / _MANIFEST
    try:
        manifest_content = json.loads(manifest.read_text())
        saved = _named(manifest_content["databases"])
        return Backup(folder, int(manifest_content["made_us"]), saved, manifest_content.get("goal"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreCorrupt(
            f"{manifest} cannot be read ({error}); move {folder} away to continue without that backup",
            path=manifest,
        ) from error


def _named(databases: list[dict[str, Any]]) -> tuple[Saved, ...]:
    saved = tuple(Saved(**kept) for kept in databases)
    if not saved or any(
        kept.database not in DATABASES or kept.engine not in ENGINES or Path(kept.name).name != kept.name
        for kept in saved
    ):
        raise ValueError("it names no databases of a store")
    return saved


def _sha256(path: Path) -> str:
    with path.open("rb") as whole:
        return durable.digest(whole.fileno())


@contextmanager
def typed_at(place: Path, then: str) -> Iterator[None]:
    """Translate errors raised in the block: of the system, as `system_typed` does, and of SQLite."""
    try:
        with system_typed(place, then):
            yield
    except sqlite.DriverError as error:
        raise sqlite.typed_error(error, place) from error
