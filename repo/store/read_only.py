"""Opens a store for reading only, and refuses everything else. Nothing on the disk is created or changed."""

from __future__ import annotations

from dataclasses import replace

from repo.clock import Clock
from repo.core.active import ActiveColumns
from repo.core.handle import Handle
from repo.core.metadata import MetadataDatabase
from repo.core.overlay import Tail
from repo.core.read_only import ReadOnlyColumns, ReadOnlyMetadata
from repo.core.writer import Writer
from repo.errors import StoreMissing, StoreReadOnly
from repo.files import StoreFiles
from repo.repositories.state import StateRepository
from repo.schema import version
from repo.schema.restore_files import is_restoring
from repo.settings import Settings

__all__ = ["open_read_only"]


def open_read_only(files: StoreFiles, settings: Settings, clock: Clock) -> Handle:
    """Open the metadata; the columns stay closed until they are read.

    Raises `StoreMissing`, `SchemaOutdated`, `SchemaTooNew`, `StoreDenied`, or `StoreReadOnly` if the store has to be
    repaired first.
    """
    settings = replace(settings, auto_migrate=False, background=False)
    if is_restoring(files):
        raise StoreReadOnly(
            f"a restore of {files.path} was interrupted; open the store once where it can be written, which completes "
            "it",
            path=files.path,
        )
    if not files.metadata.exists():
        raise StoreMissing(f"there is no store in {files.path}", path=files.path)
    metadata = ReadOnlyMetadata(files, settings)
    try:
        active = ActiveColumns(files, metadata, settings, clock)
        _refuse_unfinished(metadata, active, files)
        columns = ReadOnlyColumns(files, active, settings, clock)
        flusher = Tail(metadata, columns, active, settings, clock)
        writer = Writer(metadata, clock, settings.submit_queue_points)
        return Handle(files, metadata, writer, settings, clock, active, columns, flusher)
    except BaseException:  # the caller gets no store that could be closed
        metadata.close()
        raise


def _refuse_unfinished(metadata: MetadataDatabase, active: ActiveColumns, files: StoreFiles) -> None:
    with metadata.read() as connection:
        active.refuse_schema(version.version_of(connection, metadata.path), metadata.path)
        if StateRepository(connection).get() is None:
            raise StoreMissing(f"the store in {files.path} was never completely created", path=files.path)
