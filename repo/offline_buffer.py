"""`OfflineBufferManager`: the documented class for records that wait for delivery, a thin layer over a store."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from repo.compat.capacity import Capacity
from repo.compat.environment import filled_from_environment, from_environment
from repo.compat.shared import acquire
from repo.compat.trim import Trim
from repo.core.stop import Stop
from repo.duckdb_storage import DEFAULT_MAX_SIZE_MB, MAX_SIZE_MB, MB, DuckDBTimeSeriesStorage
from repo.engines.registry import duckdb_is_installed
from repo.errors import HoldfastError, InvalidRecord, InvalidSettings, counted
from repo.files import METADATA_FILE, StoreFiles, check_store_path, place_columns
from repo.inputs.arguments import check_flag, check_number, check_seconds, check_text
from repo.processes import forks
from repo.repositories.records import data_text
from repo.store.store import Store

__all__ = ["OfflineBufferManager"]

log = logging.getLogger("holdfast.offline_buffer")

TIME_SERIES_FIELDS = frozenset(
    (
        "sensor_id",
        "metric_name",
        "value",
        "pressure",
        "temperature",
        "flow_rate",
        "flowRate",
        "timestamp",
        "well_name",
    )
)

LONGEST_S = 1e9
"""A thread cannot wait longer than this at once (31 years)."""

RECORD_BYTES = 1000
"""The approximate size of a small record, in its table, the indexes and the journal."""


class OfflineBufferManager:
    """Keeps records in `offline_buffer.db` until they are sent, and their points as history. Thread-safe.

    With `use_duckdb`, points are stored in `timeseries.duckdb` in the same folder, or in the file that
    `DUCKDB_STORAGE_PATH` names. Without it, or if DuckDB cannot be imported when the buffer is created, they are
    stored in SQLite. A folder is one store with one engine; the attribute `use_duckdb` says whether that is DuckDB.
    All objects on one folder in a process share one open store.

    `max_buffer_size` and `max_buffer_size_mb` limit what waits: the records, and the points in the journal. The history
    of points is in the columns, whose limit is `DUCKDB_MAX_SIZE_MB`: beyond it the oldest points are deleted, and the
    loss ledger records them.

    Omitted arguments are taken from `OFFLINE_BUFFER_PATH`, `OFFLINE_BUFFER_MAX_SIZE`, `OFFLINE_BUFFER_MAX_SIZE_MB`,
    `OFFLINE_BUFFER_CLEANUP_INTERVAL` and `USE_DUCKDB`, if set. A thread runs `cleanup_old_records` every
    `cleanup_interval` seconds. Errors are raised, as by `Store`. After a fork a buffer keeps working in the child,
    which opens the store again; `Store` describes what a fork waits for.
    """

    @filled_from_environment(
        {
            "buffer_path": ("OFFLINE_BUFFER_PATH", str),
            "max_buffer_size": ("OFFLINE_BUFFER_MAX_SIZE", int),
            "max_buffer_size_mb": ("OFFLINE_BUFFER_MAX_SIZE_MB", float),
            "cleanup_interval": ("OFFLINE_BUFFER_CLEANUP_INTERVAL", float),
            "use_duckdb": ("USE_DUCKDB", bool),
        }
    )
    def __init__(
        self,
        buffer_path: str | os.PathLike[str] = "./data/buffer",
        max_buffer_size: int = 100000,
        max_buffer_size_mb: float = 500,
        cleanup_interval: float = 3600,
        use_duckdb: bool = True,
    ) -> None:
        folder = check_store_path(buffer_path)
        check_number(max_buffer_size, "max_buffer_size", error=InvalidSettings)
        check_number(max_buffer_size_mb, "max_buffer_size_mb", error=InvalidSettings)
        cleanup_interval = check_seconds(cleanup_interval, "cleanup_interval", error=InvalidSettings)
        if not 0 < cleanup_interval < LONGEST_S:
            raise InvalidSettings(
                f"cleanup_interval = {cleanup_interval!r} must be positive, below {LONGEST_S:g}"
            )
        use_duckdb = check_flag(use_duckdb, "use_duckdb", error=InvalidSettings)
        self.buffer_path = Path(buffer_path)
        self.db_path = self.buffer_path / METADATA_FILE
        self.max_buffer_size = max_buffer_size
        self.max_buffer_size_mb = max_buffer_size_mb
        self.cleanup_interval = cleanup_interval
        self.duckdb_storage: DuckDBTimeSeriesStorage | None = None
        self._kind = use_duckdb
        if use_duckdb and (elsewhere := from_environment("DUCKDB_STORAGE_PATH", str)) is not None:
            place_columns(folder, Path(elsewhere))
        files = StoreFiles.of(folder)
        self._reference = acquire(
            files,
            engine=None if use_duckdb else "sqlite",
            # The log counts towards the limit, so a small buffer needs a small log.
            wal_checkpoint_bytes=max(65_536, round(min(4_194_304, max_buffer_size_mb * MB / 16))),
        )
        try:
            self.use_duckdb = use_duckdb and self._has_duckdb()
            if self.use_duckdb:
                self.duckdb_storage = DuckDBTimeSeriesStorage(files.duckdb)
            self._join_the_others()
        except BaseException:  # nobody else can release the reference
            self._reference.release()
            raise
        reference = self._reference  # a closure over `self` would keep this object from being collected
        self._capacity = Capacity(
            lambda: reference.store,
            lambda size: size.metadata_bytes - size.metadata_free_bytes,
            max_bytes=max_buffer_size_mb * MB,
            count=lambda: reference.store.records.count(),
            max_count=max_buffer_size,
        )
        self._trim = Trim(lambda: reference.store, _columns_limit_mb() * MB, MAX_SIZE_MB)
        self._starting = threading.Lock()
        self._stop = Stop()
        self._cleaner: threading.Thread | None = None
        self._start_cleaner()
        forks.after_fork(self, OfflineBufferManager._reset_in_child)

    def add_record(
        self, record_id: str, source: str, data: Mapping[str, Any], timestamp: float | None = None
    ) -> bool:
        """Add a record with its points, durable on return; False if the buffer is full, and nothing was written.

        The numbers of a time-series record are stored as points: see `Store.records.add`. An existing `record_id`
        replaces the data and keeps the retry count; identical data changes nothing. Raises `InvalidRecord` or
        `InvalidPoint` for a record that cannot be stored as given; nothing was written.
        """
        records = self._store.records
        with self._capacity.place(RECORD_BYTES + 4 * len(data_text(data))) as granted:
            if not granted and not records.has(record_id):
                return False
            if self._shared_by_both_kinds and records.has(record_id):
                self._reference.shared.moved[record_id] = self._kind
            records.add(record_id, source, data, timestamp)
        self._trim.apply()
        return True

    def get_pending_records(
        self, source: str | None = None, limit: int = 1000, max_retries: int = 10
    ) -> list[dict[str, Any]]:
        """Return the pending records, oldest first, except those that failed `max_retries` times or more.

        Each has `id, record_id, source, data` (as given), `timestamp, retry_count, last_retry, created_at`.
        """
        return self._store.records.pending(source, limit, max_retries=max_retries)

    def mark_sent(self, record_id: str) -> bool:
        """Remove a delivered record; False if it is not pending. Its points stay as history."""
        records = self._store.records
        record_id = check_text(record_id, "record_id", error=InvalidRecord)
        if self._was_moved(record_id):
            return records.has(record_id)
        return records.mark_sent(record_id) > 0

    def mark_failed(self, record_id: str, increment_retry: bool = True) -> bool:
        """Record a failed attempt, and count it if `increment_retry`; False if the record is not pending."""
        return self._store.records.mark_failed(record_id, increment_retry=increment_retry) > 0

    def get_buffer_stats(self) -> dict[str, Any]:
        """Return the number of pending records, and how full the buffer is.

        Keys: `total_records, by_source, by_retry_count, oldest_record_age_seconds, buffer_size_mb` (all files
        including logs), `max_buffer_size, max_buffer_size_mb, buffer_usage_percent` (by number of records),
        `duckdb_enabled`; if that is True, also `duckdb`, the dict of `DuckDBTimeSeriesStorage.get_storage_stats`.
        """
        store = self._store
        counts = store.records.counts()
        size = store.size()
        now_s = store.now_us() / 1e6
        stats: dict[str, Any] = {
            "total_records": counts.total,
            "by_source": counts.by_source,
            "by_retry_count": counts.by_retry_count,
            "oldest_record_age_seconds": 0.0 if counts.oldest_s is None else now_s - counts.oldest_s,
            "buffer_size_mb": (size.metadata_bytes + size.columns_bytes) / MB,
            "max_buffer_size": self.max_buffer_size,
            "max_buffer_size_mb": self.max_buffer_size_mb,
            "buffer_usage_percent": 100 * counts.total / self.max_buffer_size
            if self.max_buffer_size
            else 100.0,
            "duckdb_enabled": self.use_duckdb,
        }
        if self.duckdb_storage is not None:
            stats["duckdb"] = self.duckdb_storage.get_storage_stats()
        return stats

    def cleanup_old_records(self, max_age_seconds: float = 604800, max_retries: int = 20) -> int:
        """Drop unsent records that are older than `max_age_seconds` or have failed `max_retries` times.

        Returns how many were dropped; the loss ledger records the number, the time span and the reason. Their points
        stay.
        """
        return self._store.records.drop_old(max_age_s=max_age_seconds, max_retries=max_retries)

    def clear_buffer(self, source: str | None = None) -> int:
        """Drop all unsent records, or those of one source; returns how many. The loss ledger records it."""
        return self._store.records.clear(source)

    def shutdown(self) -> None:
        """Stop the cleanup thread and release the store. Loses no data. Safe to call again."""
        self._stop.ask()
        if self._cleaner is not None and threading.current_thread() is not self._cleaner:
            self._cleaner.join()
        if self.duckdb_storage is not None:
            self.duckdb_storage.close()
        self._reference.release()

    def _is_time_series_data(self, data: Mapping[str, Any]) -> bool:
        """Return whether a record's data has any of the fields of a reading."""
        return isinstance(data, Mapping) and not TIME_SERIES_FIELDS.isdisjoint(data)

    # --- the cleanup thread, which a fork does not copy ------------------------------------------------

    @property
    def _store(self) -> Store:
        store = self._reference.store
        if self._cleaner is None:
            self._start_cleaner()
        return store

    def _start_cleaner(self) -> None:
        with self._starting:
            if self._cleaner is None:
                self._cleaner = threading.Thread(
                    target=_clean_periodically,
                    args=(weakref.ref(self), self._stop, self.cleanup_interval),
                    name="holdfast-cleanup",
                    daemon=True,
                )
                self._cleaner.start()

    def _reset_in_child(self) -> None:
        """Forget the parent's thread after a fork; the first use in the child starts a new one."""
        self._starting, self._stop, self._cleaner = threading.Lock(), Stop(), None

    # --- one folder, one store ------------------------------------------------------------------------

    def _has_duckdb(self) -> bool:
        """Return whether the points are in DuckDB, and DuckDB can be used. Converts them if the settings allow it.

        If DuckDB cannot be imported, the store has already logged a warning.
        """
        store = self._reference.store
        if not duckdb_is_installed():
            return False
        if store.status().engine == "duckdb":
            return True
        if store.settings.convert_at_open:
            store.promote()
            return True
        log.warning(
            "Failed to initialize DuckDB, falling back to SQLite: the store in %s has its points there; "
            "`%s` or the setting convert_at_open moves them to DuckDB",
            self.buffer_path,
            store.files.command("promote"),
        )
        return False

    @property
    def _shared_by_both_kinds(self) -> bool:
        return any(other._kind is not self._kind for other in list(self._reference.shared.buffers))

    def _join_the_others(self) -> None:
        self._reference.shared.buffers.add(self)
        if self._shared_by_both_kinds:
            log.warning(
                "buffers with and without use_duckdb on %s share one store: there is nothing to move between them",
                self.buffer_path,
            )

    def _was_moved(self, record_id: str) -> bool:
        """Return whether a buffer of the other kind on this store has taken over the record; True only once.

        Programs that move records from an SQLite buffer to a DuckDB buffer on the same folder add each record there,
        then mark it as sent here. Both buffers hold the same record: it was not sent, so it stays.
        """
        moved = self._reference.shared.moved
        if moved.get(record_id, self._kind) is self._kind:
            return False
        del moved[record_id]
        return True


def _columns_limit_mb() -> float:
    limit_mb = from_environment(MAX_SIZE_MB, float)
    return DEFAULT_MAX_SIZE_MB if limit_mb is None else float(limit_mb)


def _clean_periodically(buffer: weakref.ref[OfflineBufferManager], stop: Stop, interval_s: float) -> None:
    while not stop.wait(interval_s):
        manager = buffer()
        if manager is None:
            return
        try:
            dropped = manager.cleanup_old_records()
            if dropped:
                log.warning("dropped %s: too old, or failed too often", counted(dropped, "unsent record"))
        except HoldfastError as error:
            # Nothing was dropped; the next round tries again.
            log.error("the cleanup of %s failed and will be retried: %s", manager.buffer_path, error)
        del manager
