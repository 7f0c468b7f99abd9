"""The files of a restore: copies those of a backup beside the store's, and replaces these. Holds no lease.

Each step can be repeated after a kill. The marker `restoring` in the folder of backups exists from the time that a
restore has begun until it is complete.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from repo.disk import durable, ownership
from repo.engines.registry import ENGINES, companions_of
from repo.errors import StoreCorrupt, system_error
from repo.files import StoreFiles
from repo.schema.backup import UNFINISHED, Backup, Saved, read_backup, typed_at

__all__ = [
    "Kept",
    "begin_restore",
    "discard_unfinished",
    "is_restoring",
    "kept_by_restores",
    "prepare_restore",
    "replace_files",
    "restored_file",
]

log = logging.getLogger("holdfast.migrating")

_RESTORING = "restoring"
_EPOCH = "epoch"
_PREPARED = ".restoring"


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
    with typed_at(files.backups, "the databases are unchanged; free some space and try again"):
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


def replace_files(files: StoreFiles, now_us: int) -> Backup:
    """Restore the noted backup. This can be repeated after a kill at any point.

    Databases that did not exist when it was made are renamed, because nothing else has their content.
    """
    backup = _noted(files)
    with typed_at(
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


def discard_unfinished(files: StoreFiles) -> None:
    """Remove what an interrupted backup left, and what a restore left that was interrupted before it began."""
    for part in files.backups.glob(f"*{UNFINISHED}"):
        if part.is_dir():
            shutil.rmtree(part)
        else:  # a partly written marker of a restore
            part.unlink()
    if not is_restoring(files):
        for target in (files.metadata, *(files.columns(engine) for engine in ENGINES)):
            _discard_prepared(target)


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
    return read_backup(folder)


def _prepared(target: Path) -> Path:
    return target.with_name(target.name + _PREPARED)


def _discard_prepared(target: Path) -> None:
    for suffix in ("", UNFINISHED):
        path = _prepared(target)
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _prepare(files: StoreFiles, backup: Backup, saved: Saved, progress: Callable[[int], object]) -> None:
    target = restored_file(files, saved)
    whole = _prepared(target)
    part = whole.with_name(whole.name + UNFINISHED)
    _discard_prepared(target)
    with typed_at(target.parent, f"{backup.folder} was not restored. Fix the cause and try again"):
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
