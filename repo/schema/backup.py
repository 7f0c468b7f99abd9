"""Backups made before a migration: one folder each, with both databases, that exists complete or not at all.

The caller holds the lease, has closed the databases and checkpointed DuckDB. Never decides when a backup is made.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from repo.disk import durable, ownership
from repo.engines.registry import ENGINES, companions_of, engine_named
from repo.engines.sqlite import driver as sqlite
from repo.errors import StoreCorrupt, system_error, system_typed
from repo.files import StoreFiles
from repo.schema.databases import DATABASES

__all__ = [
    "Backup",
    "Kept",
    "Saved",
    "begin_restore",
    "discard_unfinished",
    "finish_restore",
    "is_restoring",
    "keep",
    "kept_by_restores",
    "list_backups",
    "make",
    "prepare_restore",
    "restored_file",
]

log = logging.getLogger("holdfast.migrating")

_MANIFEST = "manifest.json"
_UNFINISHED = ".part"
_RESTORING = "restoring"
_EPOCH = "epoch"
_PREPARED = ".restoring"


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
    found = [_read(manifest) for manifest in manifests if manifest.parent.suffix != _UNFINISHED]
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
    now_us = max([now_us, *(standing.made_us + 1 for standing in list_backups(files))])
    stamp = datetime.fromtimestamp(now_us // 1_000_000, UTC).strftime("%Y%m%dT%H%M%SZ")
    place = files.backups
    final, number = place / stamp, 1
    while final.exists():
        number += 1
        final = place / f"{stamp}-{number}"
    part = final.with_name(final.name + _UNFINISHED)
    try:
        with _typed(
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


def discard_unfinished(files: StoreFiles) -> None:
    """Remove what an interrupted backup left, and what a restore left that was interrupted before it began."""
    for part in files.backups.glob(f"*{_UNFINISHED}"):
        if part.is_dir():
            shutil.rmtree(part)
        else:  # a partly written marker of a restore
            part.unlink()
    if not is_restoring(files):
        for target in (files.metadata, *(files.columns(engine) for engine in ENGINES)):
            _discard_prepared(target)


def keep(files: StoreFiles, count: int) -> list[Path]:
    """Remove all backups except the newest `count`; returns the removed folders."""
    old = [backup.folder for backup in list_backups(files)[count:]]
    for folder in old:
        # Renamed first, so that a crash does not leave a partial backup under its name.
        part = folder.with_name(folder.name + _UNFINISHED)
        durable.replace(folder, part)
        shutil.rmtree(part)
    return old


def is_restoring(files: StoreFiles) -> bool:
    """Return whether a restore is in progress or was interrupted; raises a typed error if that cannot be read."""
    try:
        os.stat(files.backups / _RESTORING)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise system_error(
            error, files.backups, "it is unknown whether a restore was interrupted; nothing was changed"
        ) from error
    return True


def restored_file(files: StoreFiles, saved: Saved) -> Path:
    """Return the file that a database of a backup replaces."""
    return files.metadata if saved.database == "metadata" else files.columns(saved.engine)


def prepare_restore(files: StoreFiles, backup: Backup, progress: Callable[[int], object]) -> None:
    """Copy the backup's files durably next to those that they will replace, and compare them with its manifest.

    Nothing is replaced yet. Raises `StoreCorrupt` for a damaged or missing file, `StoreFull` and typed errors, and
    then leaves nothing behind.
    """
    for saved in backup.saved:
        _refuse_damaged(backup, saved)
    try:
        for saved in backup.saved:
            _prepare(files, backup, saved, progress)
    except BaseException:  # an interrupt, too, leaves no copies next to the store's files
        for saved in backup.saved:
            _discard_prepared(restored_file(files, saved))
        raise


class Kept(NamedTuple):
    """What a restore keeps of the identity of a store."""

    epoch: int = 0
    """The minimum epoch, which each restore raises; 0 if there was none."""
    store_id: str | None = None
    """The id that it had before the last restore, if that was known; a backup may be older than a `rekey`."""


def begin_restore(files: StoreFiles, backup: Backup, before: Kept) -> None:
    """Note durably that this prepared backup is to be restored. From then on a kill only delays the restore.

    `before` is the identity of the store now. Its epoch after the restore is above that, and above those of all earlier
    restores.
    """
    with _typed(files.backups, "the databases are unchanged; free some space and try again"):
        earlier = kept_by_restores(files)
        after = max(before.epoch, earlier.epoch) + 1
        note = {"epoch": after, "store_id": before.store_id or earlier.store_id}
        durable.put(files.backups / _EPOCH, json.dumps(note).encode())
        ownership.give(files.backups / _EPOCH)
        durable.put(files.backups / _RESTORING, json.dumps({"folder": backup.folder.name}).encode())


def kept_by_restores(files: StoreFiles) -> Kept:
    """Return the identity of the store that restores keep.

    It is in a file of its own, because a restored database may be of a revision that has no epoch.
    """
    try:
        note = json.loads((files.backups / _EPOCH).read_text())
        store_id = note.get("store_id")
        return Kept(int(note["epoch"]), None if store_id is None else UUID(store_id).hex)
    except (FileNotFoundError, NotADirectoryError):
        return Kept()
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        log.warning(
            "%s cannot be read (%s). If a backup was restored after the store was last opened, run `%s` before it "
            "delivers to sinks, then remove the file",
            *(files.backups / _EPOCH, error, files.command("sinks rekey --restored")),
        )
        return Kept()


def finish_restore(files: StoreFiles, now_us: int) -> Backup:
    """Restore the noted backup. This can be repeated after a kill at any point.

    Databases that did not exist when it was made are renamed, because nothing else has their content.
    """
    backup = _noted(files)
    with _typed(
        files.backups,
        f"the restore is incomplete; fix the cause, then `{files.command('migrate --restore -y')}` completes it",
    ):
        targets = set()
        for saved in backup.saved:
            target = restored_file(files, saved)
            targets.add(target)
            part = _prepared(target)
            if not part.exists():  # it was restored before the kill; repeating that is harmless
                _refuse_damaged(backup, saved)
                _prepare(files, backup, saved, lambda _piece: None)
            for companion in companions_of(target):
                companion.unlink(missing_ok=True)
            durable.replace(part, target)
        for path in {files.metadata, *(files.columns(engine) for engine in ENGINES)} - targets:
            _set_aside(path, now_us)
        (files.backups / _RESTORING).unlink()
        durable.sync(files.backups)
    return backup


def _noted(files: StoreFiles) -> Backup:
    marker = files.backups / _RESTORING
    try:
        folder = files.backups / str(json.loads(marker.read_text())["folder"])
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no {folder}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreCorrupt(
            f"{marker} does not name the backup to restore ({error}); remove {marker} and start the restore again: "
            f"`{files.command('migrate --restore')}`",
            path=marker,
        ) from error
    return _read(folder / _MANIFEST)


def _prepared(target: Path) -> Path:
    return target.with_name(target.name + _PREPARED)


def _discard_prepared(target: Path) -> None:
    for suffix in ("", _UNFINISHED):
        path = _prepared(target)
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _prepare(files: StoreFiles, backup: Backup, saved: Saved, progress: Callable[[int], object]) -> None:
    target = restored_file(files, saved)
    whole = _prepared(target)
    part = whole.with_name(whole.name + _UNFINISHED)
    _discard_prepared(target)
    with _typed(target.parent, f"{backup.folder} was not restored. Fix the cause and try again"):
        found = durable.copy(backup.folder / saved.name, part, progress)
        if saved.sha256 not in (None, found):
            raise _damaged(backup, saved, f"its SHA-256 is {found}, not {saved.sha256}")
        durable.replace(part, whole)


def _refuse_damaged(backup: Backup, saved: Saved) -> None:
    source = backup.folder / saved.name
    if not source.is_file():
        raise _damaged(backup, saved, "it is missing")
    size_bytes = source.stat().st_size
    if size_bytes != saved.size_bytes:
        raise _damaged(backup, saved, f"it has {size_bytes:,} bytes, not {saved.size_bytes:,}")


def _damaged(backup: Backup, saved: Saved, why: str) -> StoreCorrupt:
    source = backup.folder / saved.name
    return StoreCorrupt(
        f"{source} has changed since the backup was made ({why}) and was not restored; move {backup.folder} away "
        "to restore the previous backup, if there is one",
        path=source,
    )


def _set_aside(path: Path, now_us: int) -> None:
    if not path.exists():
        return
    aside = f"{path.name}.inactive-{now_us}"
    durable.rename_all(
        (old, old.with_name(aside + old.name.removeprefix(path.name))) for old in (*companions_of(path), path)
    )
    log.warning("%s is not in the backup, and is kept as %s", path, aside)


def _read(manifest: Path) -> Backup:
    try:
        manifest_content = json.loads(manifest.read_text())
        saved = _named(manifest_content["databases"])
        return Backup(manifest.parent, int(manifest_content["made_us"]), saved, manifest_content.get("goal"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreCorrupt(
            f"{manifest} cannot be read ({error}); move {manifest.parent} away to continue without that backup",
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
def _typed(place: Path, then: str) -> Iterator[None]:
    """Translate errors of the system, as `system_typed` does, and of SQLite."""
    try:
        with system_typed(place, then):
            yield
    except sqlite.DriverError as error:
        raise sqlite.typed_error(error, place) from error
