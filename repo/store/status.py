"""Status: a report about a store from SQLite and the folder only, so it never waits for another process."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection

from repo.core.acknowledged import LOST_END
from repo.errors import counted
from repo.files import StoreFiles
from repo.lease import Holder, read_holder
from repo.repositories.journal import JournalRepository
from repo.repositories.ledger import LedgerRepository
from repo.repositories.pointers import PointerRepository
from repo.repositories.records import RecordRepository
from repo.repositories.series import LatestRepository, SeriesRepository
from repo.repositories.sinks import SinkRepository
from repo.repositories.state import State, StateRepository
from repo.store.losses import COLUMNS_OLDER, read_losses
from repo.times import to_datetime
from repo.upkeep.usage import sizes_of

__all__ = ["WARNING_CODES", "SinkStatus", "Status", "StatusWarning", "read_status"]


@dataclass(frozen=True, slots=True)
class SinkStatus:
    """A sink, the seq through which it has confirmed everything, and how many seqs it is behind."""

    name: str
    confirmed_seq: int
    behind: int
    failure: dict[str, Any] | None = None
    """Why deliveries fail at the moment: `kind` ("unreachable" or "refused"), `reason`, `since_us`."""


@dataclass(frozen=True, slots=True)
class StatusWarning:
    """Something that needs attention; `code` never changes, so that monitoring can refer to it."""

    code: str
    message: str

    def __str__(self) -> str:
        return self.message


WARNING_CODES = ("columns-missing", "columns-older", "metadata-lost-end", "records-held-back", "sink-refuses")


@dataclass(frozen=True, slots=True)
class Status:
    """A snapshot. Seqs count points and operations, times are µs since 1970 UTC, sizes are in bytes."""

    path: str
    store_id: str
    engine: str
    generation: int
    schema: str
    last_seq: int
    flushed_seq: int
    pruned_seq: int
    journal_rows: int
    journal_seqs: int
    unflushed: int
    points_waiting: int
    """Acknowledged points in the journal that the next flush applies; `points` does not count them yet."""
    deletions_waiting: int
    points: int
    series: int
    oldest_us: int | None
    newest_us: int | None
    records_pending: int
    ledger_entries: int
    ledger_dropped: int
    lost_points: int
    lost_records: int
    sinks: tuple[SinkStatus, ...]
    bytes_by_file: dict[str, int]
    bytes_by_kept_file: dict[str, int]
    bytes_total: int
    bytes_free_on_disk: int
    holder: Holder | None
    warnings: tuple[StatusWarning, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain dicts, lists and numbers, as `holdfast --json status` prints it."""
        return asdict(self)


def read_status(connection: Connection, files: StoreFiles, schema: str) -> Status:
    """Read the status in one snapshot of the metadata; takes no lease and opens no column file."""
    state = StateRepository(connection).get()
    assert state is not None
    journal = JournalRepository(connection)
    rows, seqs = journal.backlog()
    points_waiting, deletions_waiting = journal.waiting(state.copied_through)
    total = LatestRepository(connection).totals()
    lost = LedgerRepository(connection).totals()
    sizes = sizes_of([*files.metadata_files(), *files.column_files(), files.reserve])
    kept = sizes_of(files.kept()) | sizes_of(files.backups.glob("*/*"), below=files.folder)
    return Status(
        path=str(files.path),
        store_id=state.store_id,
        engine=state.engine or "none yet",
        generation=state.generation,
        schema=schema,
        last_seq=state.last_seq,
        flushed_seq=state.copied_through,
        pruned_seq=state.pruned_through,
        journal_rows=rows,
        journal_seqs=seqs,
        unflushed=max(0, state.last_seq - state.copied_through),
        points_waiting=points_waiting,
        deletions_waiting=deletions_waiting,
        points=total.points,
        series=SeriesRepository(connection).count(),
        oldest_us=total.first_us,
        newest_us=total.last_us,
        records_pending=RecordRepository(connection).count(),
        ledger_entries=lost.entries,
        ledger_dropped=lost.points + lost.records,
        lost_points=lost.points,
        lost_records=lost.records,
        sinks=tuple(
            SinkStatus(
                sink.name,
                sink.confirmed_seq,
                max(0, state.last_seq - sink.confirmed_seq),
                None if sink.failure is None else sink.failure._asdict(),
            )
            for sink in SinkRepository(connection).list()
        ),
        bytes_by_file=sizes,
        bytes_by_kept_file=kept,
        bytes_total=sum(sizes.values()) + sum(kept.values()),
        bytes_free_on_disk=shutil.disk_usage(files.folder).free,
        holder=read_holder(files.folder, files.prefix),
        warnings=(*_missing_columns(state, files), *_warnings(connection, files)),
    )


def _missing_columns(state: State, files: StoreFiles) -> tuple[StatusWarning, ...]:
    if state.engine is None or not state.pruned_through or files.columns(state.engine).exists():
        return ()
    message = (
        f"the column file {files.columns(state.engine)} is missing; points through seq {state.pruned_through:,} are "
        "only there. Mount its disk or restore it now: the next flush or read creates an empty file"
    )
    return (StatusWarning("columns-missing", message),)


def _warnings(connection: Connection, files: StoreFiles) -> tuple[StatusWarning, ...]:
    codes = {COLUMNS_OLDER: "columns-older", LOST_END: "metadata-lost-end"}
    warnings = [
        StatusWarning(codes[loss.reason], f"{loss.why}. `{files.command('losses')}` lists all losses")
        for loss in read_losses(connection, reasons=list(codes))
    ]
    pointers = PointerRepository(connection)
    if pointers.noted() and (waiting := pointers.count()):
        warnings.append(
            StatusWarning(
                "records-held-back",
                f"{counted(waiting, 'pending record')} of the legacy program held back until the data is restored "
                f"from the columns. `{files.command('migrate')}` restores it if the columns can be read",
            )
        )
    for sink in SinkRepository(connection).list():
        if sink.failure is not None and sink.failure.kind == "refused":
            since = to_datetime(sink.failure.since_us).strftime("%Y-%m-%d %H:%M:%S UTC")
            warnings.append(
                StatusWarning(
                    "sink-refuses",
                    f"the sink {sink.name} has refused a batch since {since}: {sink.failure.reason}. It is sent again "
                    "until it is accepted; nothing is skipped",
                )
            )
    return tuple(warnings)
