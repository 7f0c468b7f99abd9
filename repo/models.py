"""The tables of the metadata database and of the time-series database, each declared once.

The metadata database is always SQLite. The time-series database is DuckDB or, where that does not exist, SQLite. The
same classes serve both; `ddl_if` marks the differences. A new store has these tables (`repo.schema.creation`), and the
revisions bring older stores to them; tests verify that both give the same schema.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    DateTime,
    Double,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    String,
    text,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.orm import DeclarativeBase, Mapped, declared_attr, mapped_column
from sqlalchemy.types import TypeEngine

__all__ = [
    "AttemptRow",
    "BufferMetadata",
    "BufferedRecord",
    "JournalRow",
    "LedgerEntry",
    "MetadataBase",
    "Point",
    "PositionRow",
    "QuarantineRow",
    "SenderRow",
    "Series",
    "SeriesLatest",
    "SeriesSummary",
    "SinkCursor",
    "SinkRange",
    "Slice",
    "StorageMetadata",
    "StoreState",
    "TimeSeriesBase",
    "TimeSeriesLedgerEntry",
    "TimeSeriesState",
]

# STRICT tables in SQLite accept only their own type names.
_Integer64 = BigInteger().with_variant(sqlite.INTEGER(), "sqlite")
_Number: TypeEngine[float] = Double().with_variant(sqlite.REAL(), "sqlite")
_Text = String().with_variant(sqlite.TEXT(), "sqlite")
_Blob = LargeBinary().with_variant(sqlite.BLOB(), "sqlite")

_STRICT: dict[str, Any] = {"sqlite_strict": True}
_STRICT_KEYED: dict[str, Any] = {"sqlite_strict": True, "sqlite_with_rowid": False}


class MetadataBase(DeclarativeBase):
    """Base of the tables of `offline_buffer.db` (SQLite)."""

    database: ClassVar[str] = "metadata"


class TimeSeriesBase(DeclarativeBase):
    """Base of the tables of the time-series database (DuckDB or SQLite)."""

    database: ClassVar[str] = "timeseries"


class SeriesKey:
    """The key of a series: sensor and metric."""

    sensor_id: Mapped[str] = mapped_column(_Text, nullable=False, sort_order=-2)
    metric_name: Mapped[str] = mapped_column(_Text, nullable=False, sort_order=-1)


class SummaryColumns(SeriesKey):
    """A summary of a series, known without reading its points: their number, the first time, the newest point."""

    count: Mapped[int] = mapped_column(_Integer64, nullable=False)
    first_us: Mapped[int] = mapped_column(_Integer64, nullable=False)
    last_us: Mapped[int] = mapped_column(_Integer64, nullable=False)
    last_value: Mapped[float | None] = mapped_column(_Number)
    last_value_text: Mapped[str | None] = mapped_column(_Text)
    last_quality: Mapped[int | None] = mapped_column(Integer)
    last_metadata: Mapped[str | None] = mapped_column(_Text)
    last_seq: Mapped[int] = mapped_column(_Integer64, nullable=False)


class LedgerColumns:
    """One loss: what was dropped, how many, which time span, and why."""

    entry_id: Mapped[str] = mapped_column(_Text, nullable=False)
    what: Mapped[str] = mapped_column(_Text, nullable=False)
    reason: Mapped[str] = mapped_column(_Text, nullable=False)
    detail: Mapped[str | None] = mapped_column(_Text)
    dropped: Mapped[int | None] = mapped_column(_Integer64)
    first_us: Mapped[int | None] = mapped_column(_Integer64)
    last_us: Mapped[int | None] = mapped_column(_Integer64)
    recorded_us: Mapped[int] = mapped_column(_Integer64, nullable=False)


# --- the metadata database -----------------------------------------------------------------------------


class BufferedRecord(MetadataBase):
    """A record that waits for delivery. The table is exactly that of the legacy program."""

    __tablename__ = "buffered_records"
    __table_args__ = (
        Index("idx_timestamp", "timestamp"),
        Index("idx_source", "source"),
        Index("idx_retry_count", "retry_count"),
        {"sqlite_autoincrement": True},
    )

    # The keys of the legacy tables are not declared NOT NULL.
    id: Mapped[int] = mapped_column(Integer, primary_key=True, nullable=True)
    record_id: Mapped[str] = mapped_column(_Text, nullable=False, unique=True)
    source: Mapped[str] = mapped_column(_Text, nullable=False)
    data: Mapped[str] = mapped_column(_Text, nullable=False)
    timestamp: Mapped[float] = mapped_column(_Number, nullable=False)
    retry_count: Mapped[int | None] = mapped_column(Integer, server_default=text("0"))
    last_retry: Mapped[float | None] = mapped_column(_Number)
    created_at: Mapped[float] = mapped_column(_Number, nullable=False)


class BufferMetadata(MetadataBase):
    """Metadata of the legacy program, kept unchanged."""

    __tablename__ = "buffer_metadata"

    key: Mapped[str] = mapped_column(_Text, primary_key=True, nullable=True)
    value: Mapped[str] = mapped_column(_Text, nullable=False)


class JournalRow(MetadataBase):
    """A batch of changes to the columns, acknowledged and not yet pruned; `seq` is its last seq."""

    __tablename__ = "journal"
    __table_args__ = _STRICT

    seq: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    count: Mapped[int] = mapped_column(Integer, nullable=False)
    kind: Mapped[str] = mapped_column(_Text, nullable=False)
    payload: Mapped[bytes] = mapped_column(_Blob, nullable=False)
    created_us: Mapped[int] = mapped_column(_Integer64, nullable=False)


class StoreState(MetadataBase):
    """The state of the store, one row: identity, progress of flush and prune, and the last seq that was pruned."""

    __tablename__ = "store_state"
    __table_args__ = _STRICT

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    store_id: Mapped[str] = mapped_column(_Text, nullable=False)
    last_seq: Mapped[int] = mapped_column(_Integer64, nullable=False)
    copied_through: Mapped[int] = mapped_column(_Integer64, nullable=False)
    pruned_through: Mapped[int] = mapped_column(_Integer64, nullable=False)
    engine: Mapped[str | None] = mapped_column(_Text)
    file_id: Mapped[str | None] = mapped_column(_Text)
    generation: Mapped[int] = mapped_column(Integer, nullable=False)
    created_us: Mapped[int] = mapped_column(_Integer64, nullable=False)
    epoch: Mapped[int] = mapped_column(_Integer64, nullable=False, server_default=text("1"))
    """Raised by each restore. To receivers, (store_id, epoch, seq) identifies a point."""
    former_store_id: Mapped[str | None] = mapped_column(_Text)
    """The id before a change that the column file may not have adopted yet; NULL once it has."""


class Series(SeriesKey, MetadataBase):
    """The kind of a series (`number` or `text`), set by its first reading (NULL before), and its description."""

    __tablename__ = "series"
    __table_args__ = (PrimaryKeyConstraint("sensor_id", "metric_name"), _STRICT_KEYED)

    kind: Mapped[str | None] = mapped_column(_Text)
    unit: Mapped[str | None] = mapped_column(_Text)
    description: Mapped[str | None] = mapped_column(_Text)
    labels: Mapped[str | None] = mapped_column(_Text)


class SeriesLatest(SummaryColumns, MetadataBase):
    """The copy of `SeriesSummary` as of `store_state.copied_through`, readable without the lease."""

    __tablename__ = "latest"
    __table_args__ = (PrimaryKeyConstraint("sensor_id", "metric_name"), _STRICT_KEYED)


class SinkCursor(MetadataBase):
    """A destination: where it is, what it gets, what it has confirmed, and how its deliveries go.

    `options`, `filter`, `lanes`, `rate` and `max_backlog` are JSON objects; see `repo.store.sinks`. It has
    confirmed the seqs up to `confirmed_seq` and those of its `sink_ranges`.
    """

    __tablename__ = "sinks"
    __table_args__ = _STRICT_KEYED

    name: Mapped[str] = mapped_column(_Text, primary_key=True)
    confirmed_seq: Mapped[int] = mapped_column(_Integer64, nullable=False)
    created_us: Mapped[int] = mapped_column(_Integer64, nullable=False)
    updated_us: Mapped[int] = mapped_column(_Integer64, nullable=False)
    kind: Mapped[str] = mapped_column(_Text, nullable=False, server_default="own")
    target: Mapped[str] = mapped_column(_Text, nullable=False, server_default="")
    options: Mapped[str] = mapped_column(_Text, nullable=False, server_default="{}")
    filter: Mapped[str | None] = mapped_column(_Text)
    records: Mapped[int] = mapped_column(Integer, nullable=False, server_default=text("0"))
    lanes: Mapped[str] = mapped_column(_Text, nullable=False, server_default="{}")
    rate: Mapped[str | None] = mapped_column(_Text)
    hold: Mapped[int] = mapped_column(Integer, nullable=False, server_default=text("1"))
    max_backlog: Mapped[str | None] = mapped_column(_Text)
    state: Mapped[str] = mapped_column(_Text, nullable=False, server_default="running")
    since_us: Mapped[int | None] = mapped_column(_Integer64)
    last_error: Mapped[str | None] = mapped_column(_Text)
    failures: Mapped[int] = mapped_column(_Integer64, nullable=False, server_default=text("0"))
    """Failed attempts since the last batch that was confirmed."""
    token: Mapped[str | None] = mapped_column(_Text)
    sent_points: Mapped[int] = mapped_column(_Integer64, nullable=False, server_default=text("0"))
    sent_records: Mapped[int] = mapped_column(_Integer64, nullable=False, server_default=text("0"))
    sent_bytes: Mapped[int] = mapped_column(_Integer64, nullable=False, server_default=text("0"))
    repeats: Mapped[int] = mapped_column(_Integer64, nullable=False, server_default=text("0"))
    refused: Mapped[int] = mapped_column(_Integer64, nullable=False, server_default=text("0"))
    confirmed_us: Mapped[int | None] = mapped_column(_Integer64)
    """When it last confirmed a batch."""
    points_per_s: Mapped[float | None] = mapped_column(_Number)
    """A moving average over the last batches, from the attempt to the confirmation."""


class SinkRange(MetadataBase):
    """Seqs above its low mark that a sink has confirmed, both inclusive; at most 16 a sink, disjoint."""

    __tablename__ = "sink_ranges"
    __table_args__ = (PrimaryKeyConstraint("sink", "first_seq"), _STRICT_KEYED)

    sink: Mapped[str] = mapped_column(_Text, nullable=False)
    first_seq: Mapped[int] = mapped_column(_Integer64, nullable=False, autoincrement=False)
    last_seq: Mapped[int] = mapped_column(_Integer64, nullable=False)


class AttemptRow(MetadataBase):
    """The batch that a sink was sent and has not answered; recorded before it is sent, one a sink."""

    __tablename__ = "attempts"
    __table_args__ = (PrimaryKeyConstraint("sink"), _STRICT_KEYED)

    sink: Mapped[str] = mapped_column(_Text, nullable=False)
    first_seq: Mapped[int] = mapped_column(_Integer64, nullable=False)
    last_seq: Mapped[int] = mapped_column(_Integer64, nullable=False)
    points: Mapped[int] = mapped_column(_Integer64, nullable=False)
    checksum: Mapped[str] = mapped_column(_Text, nullable=False)
    token: Mapped[str] = mapped_column(_Text, nullable=False)
    lane: Mapped[str] = mapped_column(_Text, nullable=False)
    tries: Mapped[int] = mapped_column(_Integer64, nullable=False)
    begun_us: Mapped[int] = mapped_column(_Integer64, nullable=False)


class QuarantineRow(MetadataBase):
    """A point or a record that a sink refused, with the reason. The point also stays in the columns.

    `kind` is `refused` or `too_late`. `retry` is 1 while the point is waiting to be sent again.
    """

    __tablename__ = "quarantine"
    __table_args__ = (PrimaryKeyConstraint("id"), Index("idx_quarantine_sink", "sink", "seq"), _STRICT)

    id: Mapped[int] = mapped_column(Integer, nullable=False)
    sink: Mapped[str] = mapped_column(_Text, nullable=False)
    seq: Mapped[int | None] = mapped_column(_Integer64)
    sensor_id: Mapped[str | None] = mapped_column(_Text)
    metric_name: Mapped[str | None] = mapped_column(_Text)
    timestamp_us: Mapped[int] = mapped_column(_Integer64, nullable=False)
    value: Mapped[float | None] = mapped_column(_Number)
    value_text: Mapped[str | None] = mapped_column(_Text)
    quality: Mapped[int | None] = mapped_column(Integer)
    metadata_json: Mapped[str | None] = mapped_column("metadata", _Text)
    record_id: Mapped[str | None] = mapped_column(_Text)
    source: Mapped[str | None] = mapped_column(_Text)
    data: Mapped[str | None] = mapped_column(_Text)
    kind: Mapped[str] = mapped_column(_Text, nullable=False)
    reason: Mapped[str] = mapped_column(_Text, nullable=False)
    retry: Mapped[int] = mapped_column(Integer, nullable=False)
    recorded_us: Mapped[int] = mapped_column(_Integer64, nullable=False)


class PositionRow(MetadataBase):
    """What this store, as a receiver, has taken from a sink of another store.

    That is all seqs up to `low`, and the pairs of `ranges`, a JSON list. `token` is the one of the last batch.
    """

    __tablename__ = "positions"
    __table_args__ = (PrimaryKeyConstraint("store_id", "epoch", "sink"), _STRICT_KEYED)

    store_id: Mapped[str] = mapped_column(_Text, nullable=False)
    epoch: Mapped[int] = mapped_column(_Integer64, nullable=False, autoincrement=False)
    sink: Mapped[str] = mapped_column(_Text, nullable=False)
    token: Mapped[str] = mapped_column(_Text, nullable=False)
    low: Mapped[int] = mapped_column(_Integer64, nullable=False)
    ranges: Mapped[str] = mapped_column(_Text, nullable=False)
    points: Mapped[int] = mapped_column(_Integer64, nullable=False)
    updated_us: Mapped[int] = mapped_column(_Integer64, nullable=False)


class SenderRow(MetadataBase):
    """The store that a bearer token belongs to, as the SHA-256 of the token: the first one that used it."""

    __tablename__ = "senders"
    __table_args__ = (PrimaryKeyConstraint("token_sha256"), _STRICT_KEYED)

    token_sha256: Mapped[str] = mapped_column(_Text, nullable=False)
    store_id: Mapped[str] = mapped_column(_Text, nullable=False)
    created_us: Mapped[int] = mapped_column(_Integer64, nullable=False)


class LedgerEntry(LedgerColumns, MetadataBase):
    """The loss ledger."""

    __tablename__ = "loss_ledger"
    __table_args__ = (PrimaryKeyConstraint("entry_id"), _STRICT)


# --- the time-series database --------------------------------------------------------------------------


class Point(SeriesKey, TimeSeriesBase):
    """One reading.

    In DuckDB the table has no key and no index (they cost space and time and make no query faster; flush
    keeps identities unique). In SQLite it is keyed by series and time, with an index on seq.
    """

    __tablename__ = "time_series_data"

    timestamp_us: Mapped[int] = mapped_column(_Integer64, nullable=False)
    value: Mapped[float | None] = mapped_column(_Number)
    value_text: Mapped[str | None] = mapped_column(_Text)
    quality: Mapped[int | None] = mapped_column(Integer)
    metadata_json: Mapped[str | None] = mapped_column("metadata", _Text)
    seq: Mapped[int] = mapped_column(_Integer64, nullable=False)

    @declared_attr.directive
    @classmethod
    def __table_args__(cls) -> Any:
        return (
            PrimaryKeyConstraint("sensor_id", "metric_name", "timestamp_us").ddl_if(dialect="sqlite"),
            Index("idx_seq", "seq").ddl_if(dialect="sqlite"),
            _STRICT_KEYED,
        )


class SeriesSummary(SummaryColumns, TimeSeriesBase):
    """The summary that flush maintains for each series with points."""

    __tablename__ = "series"
    __table_args__ = (
        PrimaryKeyConstraint("sensor_id", "metric_name").ddl_if(dialect="sqlite"),
        _STRICT_KEYED,
    )


class Slice(TimeSeriesBase):
    """A span of seqs, both inclusive, to which no point is added any more; slices do not overlap.

    `sorted_through` is `last_seq` if its points are in order of sensor, metric and time in the table, as a SELECT
    without ORDER BY returns them, and less than `first_seq` if they are not, because they are too large to be sorted.
    `rows` is the number of points when that was recorded; deletes and overwrites leave the row as it is. Only DuckDB
    has slices, because in SQLite the key keeps the points in order.
    """

    __tablename__ = "slices"
    __table_args__ = (PrimaryKeyConstraint("first_seq").ddl_if(dialect="sqlite"), _STRICT_KEYED)

    first_seq: Mapped[int] = mapped_column(_Integer64, nullable=False, autoincrement=False)
    last_seq: Mapped[int] = mapped_column(_Integer64, nullable=False)
    rows: Mapped[int] = mapped_column(_Integer64, nullable=False)
    sorted_through: Mapped[int] = mapped_column(_Integer64, nullable=False)


class TimeSeriesState(TimeSeriesBase):
    """The row that ties the file to its store, with the watermark.

    `flushed_from` and `flush_digest` identify the journal rows that the last flush applied: those with a seq above
    `flushed_from`, whose CRC-32 is `flush_digest`. They distinguish a crash after a flush from a metadata database
    that was restored.
    """

    __tablename__ = "timeseries_state"
    __table_args__ = (PrimaryKeyConstraint("id").ddl_if(dialect="sqlite"), _STRICT)

    id: Mapped[int] = mapped_column(Integer, nullable=False, autoincrement=False)
    store_id: Mapped[str] = mapped_column(_Text, nullable=False)
    file_id: Mapped[str] = mapped_column(_Text, nullable=False)
    generation: Mapped[int] = mapped_column(Integer, nullable=False)
    watermark: Mapped[int] = mapped_column(_Integer64, nullable=False)
    flushed_from: Mapped[int] = mapped_column(_Integer64, nullable=False)
    flush_digest: Mapped[int] = mapped_column(_Integer64, nullable=False)


class TimeSeriesLedgerEntry(LedgerColumns, TimeSeriesBase):
    """Ledger entries written in the transaction of the drop; flush copies them to SQLite and then removes them."""

    __tablename__ = "loss_ledger"
    __table_args__ = (PrimaryKeyConstraint("entry_id").ddl_if(dialect="sqlite"), _STRICT)


class StorageMetadata(TimeSeriesBase):
    """Metadata of the legacy program, kept unchanged."""

    __tablename__ = "storage_metadata"

    key: Mapped[str] = mapped_column(_Text, primary_key=True)
    value: Mapped[str] = mapped_column(_Text, nullable=False)
    updated_at: Mapped[datetime | None] = mapped_column(DateTime)
