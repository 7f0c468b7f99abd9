"""Points on a SQLAlchemy connection of your own, DuckDB or SQLite; never commits, never opens anything."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, cast
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, RootTransaction, func, select

from repo.clock import Clock, system_clock
from repo.engines.traits import traits_of
from repo.errors import InvalidQuery, Refusal, TransactionRule
from repo.models import Point
from repo.moments import bound_us, to_datetime, to_datetimes
from repo.repositories import reading
from repo.repositories.answers import Aggregates
from repo.repositories.applying import Row, apply
from repo.repositories.paging import Rows, SeqPages, TimePages
from repo.repositories.selection import Names, Selection
from repo.repositories.series import Summary, SummaryRepository
from repo.repositories.states import States
from repo.values import Batch, check_point, check_rows

__all__ = [
    "PointDict",
    "PointRepository",
    "Written",
    "next_points",
    "parsed_metadata",
    "point_dict",
    "point_dicts",
    "range_dicts",
    "rows_of",
    "select_points",
    "seq_dicts",
]

Time = float | datetime | None
PointDict = dict[str, Any]
"""Keys: sensor_id, metric_name, timestamp (aware UTC datetime), timestamp_us, value (number, text or None),
quality, metadata (dict or None)."""

_PAGE_ROWS = 65_536


@dataclass(frozen=True, slots=True)
class Written:
    """What a write did: its seqs (None when nothing was accepted), and how many rows."""

    first_seq: int | None
    last_seq: int | None
    accepted: int
    rejected: int = 0
    refusals: tuple[Refusal, ...] = ()
    """What `on_error="skip"` left out, in row order; `rejected` counts them."""


class PointRepository:
    """Write and read points in the transaction of a connection that you opened.

    The database has the tables of `repo.models.TimeSeriesBase`. Identity is (sensor_id, metric_name,
    timestamp); a later write wins. On DuckDB a transaction may write points once, and reads must come before
    it: `TransactionRule` otherwise, with nothing changed. Not thread-safe, as its connection is not.
    """

    def __init__(self, connection: Connection, *, clock: Clock = system_clock) -> None:
        self._connection = connection
        self._clock = clock

    def insert(
        self,
        sensor_id: str,
        metric_name: str,
        value: Any,
        timestamp: Time = None,
        quality: int | None = 100,
        metadata: dict[str, Any] | None = None,
    ) -> Written:
        """Write one point; raises `InvalidPoint`. Times are Unix seconds or aware datetimes; None is now."""
        return self._write(
            check_point(
                sensor_id,
                metric_name,
                value,
                timestamp,
                quality,
                metadata,
                accept_bool=False,
                now_us=self._clock(),
            )
        )

    def insert_many(self, rows: Iterable[Any], on_error: Literal["raise", "skip"] = "raise") -> Written:
        """Write many points in one go: dicts, tuples or dataclasses.

        `on_error="raise"` writes all or, raising `InvalidPoint` with every bad row, none; `"skip"` writes the
        good ones and counts the others.
        """
        batch, refusals = check_rows(rows, accept_bool=False, now_us=self._clock(), skip=_skips(on_error))
        return self._write(batch, refusals)

    def delete(
        self, sensor_id: Names = None, metric_name: Names = None, start: Time = None, end: Time = None
    ) -> int:
        """Delete points in [start, end); None leaves a side or a name open. Returns how many there were."""
        selection = select_points(sensor_id, metric_name, start, end)
        self._begin_write()
        return apply(self._connection, (), selection, self._summaries().all()).dropped.count

    def range(
        self, sensor_id: Names, metric_name: Names, start: Time = None, end: Time = None
    ) -> Iterator[PointDict]:
        """Yield points in [start, end) in order of time, a page at a time."""
        selection = select_points(sensor_id, metric_name, start, end)
        pages = TimePages(selection, _PAGE_ROWS)
        while not pages.done:
            rows = pages.step(self._reading(), self._known(), Rows())
            yield from range_dicts(rows or [], selection.exact)

    def latest(self, sensor_id: Names, metric_name: Names = None, limit: int = 1) -> list[PointDict]:
        """Return the newest `limit` points of each series, newest first."""
        rows = reading.newest(
            self._reading(), select_points(sensor_id, metric_name, None, None), self._known(), limit
        )
        return point_dicts(rows)

    def aggregate(
        self,
        sensor_id: Names,
        metric_name: Names,
        start: Time = None,
        end: Time = None,
        *,
        agg: str | Sequence[str] = "avg",
        every: str | None = None,
        tz: str = "UTC",
        fill: str | None = None,
    ) -> list[dict[str, Any]]:
        """Return aggregates per series and, with `every`, per bucket; see `Store.points.aggregate`."""
        question = Aggregates.of(select_points(sensor_id, metric_name, start, end), agg, every, tz, fill)
        return question.dicts(*question.ask(self._reading(), self._summaries().all()))

    def states(
        self,
        sensor_id: Names,
        metric_name: Names,
        start: Time = None,
        end: Time = None,
        *,
        every: str | None = None,
        tz: str = "UTC",
    ) -> list[dict[str, Any]]:
        """Return how long each series was in each state; see `Store.points.states`."""
        question = States.of(select_points(sensor_id, metric_name, start, end), every, tz)
        return question.ask(self._reading(), self._summaries().all())

    def after(self, seq: int, limit: int = 100_000) -> list[PointDict]:
        """Return up to `limit` points past `seq` in the order of their seqs, each with its `seq`."""
        connection = self._reading()
        last, known = self._last_seq(), self._known()
        return next_points(connection, seq, last, limit, known)

    def _write(self, batch: Batch, refusals: tuple[Refusal, ...] = ()) -> Written:
        if not len(batch):
            return Written(None, None, 0, len(refusals), refusals)
        self._begin_write()
        first = self._last_seq() + 1
        unique: dict[tuple[str, str, int], Row] = {}
        for row in rows_of(batch, first):
            unique[row[:3]] = row
        apply(self._connection, list(unique.values()), None, self._summaries().all())
        return Written(first, first + len(batch) - 1, len(batch), len(refusals), refusals)

    def _last_seq(self) -> int:
        return int(self._connection.scalar(select(func.max(Point.seq))) or 0)

    def _summaries(self) -> SummaryRepository:
        return SummaryRepository(self._connection)

    def _known(self) -> Mapping[tuple[str, str], Summary]:
        return self._summaries().all()

    def _reading(self) -> Connection:
        if self._connection.get_transaction() in _written:
            raise TransactionRule(
                "this DuckDB transaction has written points and must not read them again (DuckDB 2.0 gives wrong "
                "rows then); commit first, or read before writing"
            )
        return self._connection

    def _begin_write(self) -> None:
        if not traits_of(self._connection).one_write_per_transaction:
            return
        self._reading()
        if not self._connection.in_transaction():
            self._connection.begin()
        transaction = self._connection.get_transaction()
        assert transaction is not None
        _written[transaction] = True


_written: WeakKeyDictionary[RootTransaction | None, bool] = WeakKeyDictionary()


def rows_of(batch: Batch, first_seq: int) -> Iterator[Row]:
    """Yield the rows of a batch as they are stored, numbered from `first_seq`.

    They are plain tuples in the order of `Row`: making the named ones would cost more than all the rest.
    """
    sensors = [sensor for sensor, _ in batch.series]
    metrics = [metric for _, metric in batch.series]
    texts, metadata = batch.texts, batch.metadata
    rows = range(len(batch))
    columns = zip(
        map(sensors.__getitem__, batch.codes),
        map(metrics.__getitem__, batch.codes),
        batch.timestamps_us,
        [None if value != value else value for value in batch.values],
        map(texts.get, rows) if texts else [None] * len(batch),
        [batch.qualities] * len(batch) if isinstance(batch.qualities, int) else batch.qualities,
        map(metadata.get, rows) if metadata else [None] * len(batch),
        range(first_seq, first_seq + len(batch)),
        strict=True,
    )
    return cast("Iterator[Row]", columns)


def point_dict(row: Any) -> PointDict:
    """Return a stored row as an application sees it."""
    sensor_id, metric_name, timestamp_us, value, text, quality, metadata = row[:7]
    return {
        "sensor_id": sensor_id,
        "metric_name": metric_name,
        "timestamp": to_datetime(timestamp_us),
        "timestamp_us": timestamp_us,
        "value": value if text is None else text,
        "quality": quality,
        "metadata": None if metadata is None else parsed_metadata(metadata),
    }


def point_dicts(rows: Sequence[Sequence[Any]]) -> list[PointDict]:
    """Return many stored rows, all columns of the table, as `point_dict` does, but quicker."""
    moments = to_datetimes([row[2] for row in rows])
    return [
        {
            "sensor_id": sensor_id,
            "metric_name": metric_name,
            "timestamp": moment,
            "timestamp_us": timestamp_us,
            "value": value if text is None else text,
            "quality": quality,
            "metadata": None if metadata is None else parsed_metadata(metadata),
        }
        for (sensor_id, metric_name, timestamp_us, value, text, quality, metadata, _), moment in zip(
            rows, moments, strict=True
        )
    ]


def range_dicts(rows: Sequence[Sequence[Any]], series: tuple[str, str] | None) -> list[PointDict]:
    """Return the rows of a range as applications see them; those of one `series` are without names and seq."""
    if series is None:
        return point_dicts(rows)
    sensor_id, metric_name = series
    moments = to_datetimes([row[0] for row in rows])
    return [
        {
            "sensor_id": sensor_id,
            "metric_name": metric_name,
            "timestamp": moment,
            "timestamp_us": timestamp_us,
            "value": value if text is None else text,
            "quality": quality,
            "metadata": None if metadata is None else parsed_metadata(metadata),
        }
        for (timestamp_us, value, text, quality, metadata), moment in zip(rows, moments, strict=True)
    ]


def seq_dicts(rows: Sequence[Sequence[Any]]) -> list[PointDict]:
    """Return rows as applications see them, each with its seq."""
    points = point_dicts(rows)
    for point, row in zip(points, rows, strict=True):
        point["seq"] = row[7]
    return points


def next_points(
    connection: Connection, seq: int, through: int, limit: int, known: Mapping[tuple[str, str], Summary]
) -> list[PointDict]:
    """Return the next points past `seq` and up to `through`, at most `limit`."""
    pages = SeqPages(seq, limit, through)
    while not pages.done:
        rows = pages.step(connection, known, Rows())
        if rows is not None:
            return seq_dicts(rows)
    return []


def select_points(sensor_id: Names, metric_name: Names, start: Time, end: Time) -> Selection:
    """Return the selection that a caller's names and times mean; raises `InvalidQuery`.

    A start after the end is a mistake, and most likely both were swapped; equal ones are an empty span.
    """
    start_us = None if start is None else bound_us(start, "start")
    end_us = None if end is None else bound_us(end, "end")
    if start_us is not None and end_us is not None and start_us > end_us:
        first, last = (to_datetime(us).isoformat() for us in (start_us, end_us))
        raise InvalidQuery(f"start, {first}, lies after end, {last}: nothing is in between; swap them?")
    return Selection.of(sensor_id, metric_name, start_us, end_us)


def _skips(on_error: str) -> bool:
    if on_error not in ("raise", "skip"):
        raise InvalidQuery(f"on_error = {on_error!r}: 'raise' or 'skip'")
    return on_error == "skip"


def parsed_metadata(metadata: str) -> Any:
    """Return the metadata of a stored row as it was given."""
    try:
        return json.loads(metadata)
    except ValueError:
        return metadata  # legacy rows hold any text
