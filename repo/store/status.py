"""Status: a report about a store from SQLite and the folder only, so it never waits for another process."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection

from repo.core.acknowledged import LOST_END
from repo.disk.space import FLUSH_BYTES, by_disk
from repo.errors import counted
from repo.files import StoreFiles
from repo.inputs.times import to_datetime
from repo.processes.lease import Holder, read_holder
from repo.repositories.journal import JournalRepository
from repo.repositories.ledger import LedgerRepository
from repo.repositories.pointers import PointerRepository
from repo.repositories.positions import PositionRepository
from repo.repositories.quarantine import QuarantineRepository
from repo.repositories.records import RecordRepository
from repo.repositories.series import LatestRepository, SeriesRepository
from repo.repositories.sinks import SinkInfo, SinkRepository
from repo.repositories.state import State, StateRepository
from repo.store.losses import COLUMNS_OLDER, read_losses
from repo.upkeep.usage import sizes_of

__all__ = [
    "WARNING_CODES",
    "HoldStatus",
    "SenderStatus",
    "SinkStatus",
    "Status",
    "StatusWarning",
    "read_status",
]


@dataclass(frozen=True, slots=True)
class SinkStatus:
    """A sink: how far it is, and how its deliveries go."""

    name: str
    kind: str
    state: str
    """running, paused, failing (unreachable), halted (the destination rejects everything), forked or stopped."""
    since_us: int | None
    """Since when it is in this state, unless it is running."""
    confirmed_seq: int
    """Every seq up to here is confirmed."""
    behind: int
    """How many seqs are not confirmed."""
    oldest_unsent_us: int | None
    """When the oldest of them was written; None if there is none, or its row is no longer in the journal."""
    confirmed_us: int | None
    """When it last confirmed a batch."""
    points_per_s: float
    """Confirmed points per second, averaged over about half a minute."""
    limit_bytes_per_s: int | None
    """The limit of its rate at this time; None if it has none."""
    quarantined: int
    """Items that it refused, and that are kept."""
    failures: int
    """Failed attempts since the last confirmed batch."""
    last_error: str | None


@dataclass(frozen=True, slots=True)
class SenderStatus:
    """A sink of another store that delivers to this one."""

    store_id: str
    epoch: int
    sink: str
    points: int
    """How many it has delivered, in this epoch."""
    updated_us: int
    """When its last batch came."""


@dataclass(frozen=True, slots=True)
class HoldStatus:
    """What cleanup keeps for a sink; if several hold data back, for the one that has confirmed the least."""

    sink: str
    seqs: int
    """How many seqs it has not confirmed."""
    since_us: int
    """Since when: it last confirmed a batch then, or was added."""


@dataclass(frozen=True, slots=True)
class StatusWarning:
    """Something that needs attention; `code` never changes, so that monitoring can refer to it."""

    code: str
    message: str

    def __str__(self) -> str:
        return self.message


WARNING_CODES = (
    *("columns-missing", "columns-older", "disk-almost-full", "metadata-lost-end", "records-held-back"),
    *("sink-forked", "sink-refuses", "sink-stalled", "sink-stopped"),
)

STALLED_US = 600_000_000
"""A running sink that is behind for longer than this without a confirmation is stalled. An outage shows as failing."""


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
    """`lost_points` and `lost_records`."""
    lost_points: int
    """How many are gone, where the ledger knows the number."""
    lost_records: int
    lost_uncounted: int
    """How many entries say that something may be gone, but not how much."""
    given_up_points: int
    """Points that an operator skipped for a sink or dropped from its quarantine; they are stored."""
    given_up_entries: int
    given_up_uncounted: int
    sinks: tuple[SinkStatus, ...]
    hold: HoldStatus | None
    senders: tuple[SenderStatus, ...]
    bytes_by_file: dict[str, int]
    bytes_by_kept_file: dict[str, int]
    bytes_total: int
    bytes_free_on_disk: int
    holder: Holder | None
    warnings: tuple[StatusWarning, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain dicts, lists and numbers, as `holdfast --json status` prints it."""
        return asdict(self)


def read_status(connection: Connection, files: StoreFiles, schema: str, now_us: int) -> Status:
    """Read the status in one snapshot of the metadata; takes no lease and opens no column file."""
    state = StateRepository(connection).get()
    assert state is not None
    journal = JournalRepository(connection)
    rows, seqs = journal.backlog()
    points_waiting, deletions_waiting = journal.waiting(state.copied_through)
    total = LatestRepository(connection).totals()
    lost = LedgerRepository(connection).totals()
    infos = SinkRepository(connection).list(now_us, state.last_seq)
    sinks = _sinks(connection, infos, now_us)
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
        lost_uncounted=lost.uncounted,
        given_up_points=lost.given_up,
        given_up_entries=lost.given_up_entries,
        given_up_uncounted=lost.given_up_uncounted,
        sinks=sinks,
        hold=_hold(infos),
        senders=tuple(
            SenderStatus(one.store_id, one.epoch, one.sink, one.points, one.updated_us)
            for one in PositionRepository(connection).list()
        ),
        bytes_by_file=sizes,
        bytes_by_kept_file=kept,
        bytes_total=sum(sizes.values()) + sum(kept.values()),
        bytes_free_on_disk=shutil.disk_usage(files.folder).free,
        holder=read_holder(files.folder, files.prefix),
        warnings=(
            *_missing_columns(state, files),
            *_almost_full(files),
            *_warnings(connection, files),
            *(
                warning
                for sink in zip(infos, sinks, strict=True)
                for warning in _of_sink(*sink, files, now_us)
            ),
        ),
    )


def _sinks(connection: Connection, infos: list[SinkInfo], now_us: int) -> tuple[SinkStatus, ...]:
    journal, quarantined = JournalRepository(connection), QuarantineRepository(connection).counts()
    return tuple(
        SinkStatus(
            name=info.name,
            kind=info.kind,
            state=info.state,
            since_us=info.since_us,
            confirmed_seq=info.confirmed_seq,
            behind=info.behind,
            oldest_unsent_us=journal.written_us(info.confirmed_seq + 1) if info.behind else None,
            confirmed_us=info.confirmed_us,
            points_per_s=info.points_per_s,
            limit_bytes_per_s=None if info.rate is None else info.rate.at(now_us),
            quarantined=quarantined.get(info.name, 0),
            failures=info.failures,
            last_error=info.last_error,
        )
        for info in infos
    )


def _hold(infos: list[SinkInfo]) -> HoldStatus | None:
    holding = [info for info in infos if info.hold and info.behind]
    if not holding:
        return None
    last = min(holding, key=lambda info: info.confirmed_seq)
    return HoldStatus(last.name, last.behind, last.confirmed_us or last.created_us)


def _missing_columns(state: State, files: StoreFiles) -> tuple[StatusWarning, ...]:
    if state.engine is None or not state.pruned_through or files.columns(state.engine).exists():
        return ()
    message = (
        f"the column file {files.columns(state.engine)} is missing; points through seq {state.pruned_through:,} are "
        "only there. Mount its disk or restore it now: the next flush or read creates an empty file"
    )
    return (StatusWarning("columns-missing", message),)


def _almost_full(files: StoreFiles) -> tuple[StatusWarning, ...]:
    """Warn of each disk that may soon be too full to write to; one that is mounted read-only is always full."""
    room = {
        folder: shutil.disk_usage(folder).free
        for folder in by_disk((folder, 0) for folder in files.folders())
        if not os.statvfs(folder).f_flag & os.ST_RDONLY
    }
    return tuple(
        StatusWarning(
            "disk-almost-full",
            f"the disk of {folder} has {free_bytes:,} bytes free, and a flush may need {FLUSH_BYTES:,}; "
            "writes are refused once it is full. Free some space there, or delete old points now: "
            f"`{files.command('cleanup --older-than 90d')}`",
        )
        for folder, free_bytes in room.items()
        if free_bytes < FLUSH_BYTES
    )


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
    return tuple(warnings)


def _of_sink(info: SinkInfo, sink: SinkStatus, files: StoreFiles, now_us: int) -> tuple[StatusWarning, ...]:
    since = _time(info.since_us or now_us)
    error = info.last_error or "no reason was recorded"
    match info.state:
        case "halted":
            return (
                StatusWarning(
                    "sink-refuses",
                    f"nothing has been delivered to the sink {info.name} since {since}: {error}. A running forwarder "
                    "tries again every minute, and skips nothing",
                ),
            )
        case "forked":
            return (
                StatusWarning(
                    "sink-forked",
                    f"nothing has been sent to the sink {info.name} since {since}: {error}"
                    + ("" if "`holdfast " in error else f". See `{files.command('sinks rekey --help')}`"),
                ),
            )
        case "stopped":
            return (
                StatusWarning(
                    "sink-stopped",
                    f"the delivery to the sink {info.name} has failed since {since} with an unexpected error: {error}. "
                    "A running forwarder tries again every minute, and skips nothing; its log has the traceback",
                ),
            )
    last_us = max(sink.confirmed_us or info.created_us, sink.oldest_unsent_us or 0)
    if (
        info.state == "running"
        and info.behind
        and now_us - last_us > STALLED_US
        and sink.limit_bytes_per_s != 0
    ):
        return (
            StatusWarning(
                "sink-stalled",
                f"the sink {info.name} is {counted(info.behind, 'seq')} behind and has confirmed nothing since "
                f"{_time(sink.confirmed_us or info.created_us)}, without an error: no forwarder may be running",
            ),
        )
    return ()


def _time(us: int) -> str:
    return to_datetime(us).strftime("%Y-%m-%d %H:%M:%S UTC")
