"""`store.points`: writing, reading and deleting points."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from datetime import datetime
from typing import Any, Literal

from repo.core.bulk import Bulk
from repo.core.changes import DeleteChange, PointsChange, Submission
from repo.core.handle import Handle
from repo.core.latest import Newest
from repo.engines.interrupts import KeyboardInterrupts
from repo.errors import InvalidQuery
from repo.queries import point_sql
from repo.queries.aggregate import Aggregates
from repo.queries.aggregate_sql import is_numeric
from repo.queries.durations import States
from repo.queries.pages import SeqPages, TimePages
from repo.queries.rows import PointDict, point_dicts
from repo.queries.selection import Names, Selection, select_points
from repo.repositories.points import Written, next_points
from repo.repositories.series import SeriesRepository
from repo.store.results import Result
from repo.values import check_point

__all__ = ["PointWriter", "Points"]

Time = float | datetime | None

_LATEST_TRIES = 3
"""How often `latest` flushes and looks again, where others go on deleting, before it asks the columns."""


class PointWriter:
    """The writing half, shared by the store and its transactions."""

    def __init__(self, handle: Handle, send: Callable[[Submission], Written]) -> None:
        self._handle = handle
        self._send = send

    def insert(
        self,
        sensor_id: str,
        metric_name: str,
        value: Any,
        timestamp: Time = None,
        quality: int | None = 100,
        metadata: Mapping[str, Any] | None = None,
    ) -> Written:
        """Write one point and return when it is durable.

        `timestamp`: Unix seconds or an aware datetime, None is now. `value`: a number, a text (a state), or
        None for "no reading". A point of the same sensor, metric and time is overwritten. Raises
        `InvalidPoint`, `StoreBusy` or `StoreFull`; then nothing was written.
        """
        batch = check_point(
            sensor_id,
            metric_name,
            value,
            timestamp,
            quality,
            metadata,
            accept_bool=self._handle.settings.accept_bool,
            now_us=self._handle.clock(),
        )
        return self._send(Submission((PointsChange.of(batch),)))

    def insert_many(self, rows: Iterable[Any], on_error: Literal["raise", "skip"] = "raise") -> Written:
        """Write many points in one commit and return when they are durable.

        Rows are dicts (`sensor_id, metric_name, value`, and perhaps `timestamp` or `timestamp_us`, `quality`,
        `metadata`), tuples `(sensor_id, metric_name, timestamp, value[, quality[, metadata]])`, or dataclasses.
        `on_error="raise"`: all are written or, with `InvalidPoint` listing every bad row, none.
        `on_error="skip"`: good rows are written, the others are in `refusals`.
        """
        submission = self._submission(rows, on_error)
        return self._send(submission)

    def delete(
        self, sensor_id: Names = None, metric_name: Names = None, start: Time = None, end: Time = None
    ) -> Written:
        """Delete the points in [start, end) that were written before; durable on return, needs no lease.

        Names may be globs, lists or None (all). What was delivered already stays delivered; how many points
        fell is counted when the journal is applied, and kept in the loss ledger.
        """
        return self.delete_selected(select_points(sensor_id, metric_name, start, end))

    def delete_selected(self, selection: Selection) -> Written:
        """Do what `delete` does with a selection that was checked before."""
        return self._send(Submission((DeleteChange(selection),)))

    def _submission(self, rows: Iterable[Any], on_error: str) -> Submission:
        if on_error not in ("raise", "skip"):
            raise InvalidQuery(f"on_error = {on_error!r}: 'raise' or 'skip'")
        return Submission.of_rows(
            rows,
            accept_bool=self._handle.settings.accept_bool,
            now_us=self._handle.clock(),
            skip=on_error == "skip",
        )


class Points(PointWriter):
    """`store.points`. Thread-safe. Reads see every write acknowledged before they began."""

    def __init__(self, handle: Handle, send: Callable[[Submission], Written]) -> None:
        super().__init__(handle, send)
        self._bulk = Bulk(handle)
        self._newest = Newest(handle.metadata)

    def close(self) -> None:
        """Let go of what tables were looked at with."""
        self._bulk.close()

    def submit(self, rows: Iterable[Any], on_error: Literal["raise", "skip"] = "raise") -> Future[Written]:
        """Queue many points and return at once; the future is done when they are durable.

        Checks the rows first and raises `InvalidPoint` as `insert_many` does. Waits while the queue is full.
        With asyncio, `await asyncio.wrap_future(store.points.submit(rows))`.
        """
        return self._handle.writer.submit(self._submission(rows, on_error))

    @KeyboardInterrupts()
    def insert_table(
        self,
        table: Any,
        *,
        on_error: Literal["raise", "skip"] = "raise",
        on_conflict: Literal["overwrite", "keep"] = "overwrite",
    ) -> Written:
        """Write a table of points and return when all of it is durable.

        `table`: a pyarrow, pandas or polars table, a DuckDB relation, anything else with `__arrow_c_stream__`,
        or a dict of arrays or lists of equal length, in which a text stands for a whole column. Columns, in any
        order: `sensor_id`, `metric_name`; `timestamp` (with a time zone, or Unix seconds; NumPy's times are
        UTC) or `timestamp_us`; `value` (numbers or texts) or `value_text` or both, one of them empty in each
        row; and perhaps `quality` and `metadata` (JSON objects as text, structs or dicts). Values mean what they
        mean in `insert_many`, but each row needs its time.

        `on_error="raise"`: a bad row refuses the table with `InvalidPoint`, before anything is written; of a
        stream, which can be read once only, the chunks before it are written. `"skip"`: good rows are written,
        the others are in `refusals`. `on_conflict="keep"`: a point stored before stands; in a table with
        several points of one identity the last counts, if they stand within 200,000 rows.

        Tables of `bulk_rows` and more go straight to the columns, some 200,000 rows at a time, if these are to be
        had at once, else, as small ones do, through the journal. Seqs may have gaps, and what another point of the
        same table replaces may have none. An error or a kill while it runs leaves whole chunks of the table, or
        none; writing it again is harmless.
        """
        return self._bulk.insert(table, on_error, on_conflict)

    def range(self, sensor_id: Names, metric_name: Names, start: Time = None, end: Time = None) -> Result:
        """Return the points in [start, end) in order of time; None leaves a side open.

        A name may be exact, a glob (`*`, `?`, `[`), a list of exact names, or None for all.
        """
        selection = select_points(sensor_id, metric_name, start, end)
        return Result(
            lambda: self._handle.reading("range query"),
            lambda rows: TimePages(selection, rows),
            selection.exact,
        )

    def latest(self, sensor_id: Names, metric_name: Names = None, limit: int = 1) -> list[PointDict]:
        """Return the newest `limit` points of each series, newest first within a series.

        One a series (the default) is answered from memory, which follows every commit of every process; it needs
        neither the lease nor, unless a delete was just acknowledged, a flush. The dicts are the caller's own.
        """
        if limit < 1:
            raise InvalidQuery(f"limit = {limit}: at least 1")
        if limit == 1 and type(sensor_id) is str and type(metric_name) is str:
            at_hand = self._newest.at_hand((sensor_id, metric_name))
            if at_hand is not None:
                return at_hand
        selection = Selection.of(sensor_id, metric_name)
        for _ in range(_LATEST_TRIES if limit == 1 else 0):
            if (found := self._newest.points(selection)) is not None:
                return found
            self._handle.flush("latest query")
        with self._handle.reading("latest query") as (connection, known):
            return point_dicts(point_sql.newest(connection, selection, known, limit))

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
        fill: Literal["none", "null", "previous", "linear"] | None = None,
    ) -> list[dict[str, Any]]:
        """Return aggregates over [start, end): a row per series, or per series and bucket, in this order.

        `agg`, one or several, whose names are the row's keys: `avg`, `min`, `max`, `sum`, `count`, `first`, `last`
        (by time), `stddev` (of a sample, by n - 1: None for one reading), `median`, and percentiles `p0` to `p100`
        (`p95`, `p99.9`; between two readings by a straight line, NumPy's default). Points without a reading
        are skipped; where there is no such number (none read, inf - inf) it is None. A text series has only
        count, first and last: `InvalidQuery` when it is asked for others by its name, None in a glob.

        `every`: `10s`, `1m` (a minute), `6h`, `1d`, `1w`, `1mo`, `3mo`, `1y`. `bucket` is the moment at which it
        begins, in the zone `tz`. Widths up to an hour follow real time, wider ones the zone's wall clock:
        days from local midnight, weeks from Monday, months and years of the calendar (counted from January
        1970, so that `3mo` are its quarters).

        `fill`: None or "none" gives the buckets that have points. The others give every bucket of [start, end),
        or where one is None from the first, to the last, point of each series, for all selected series that
        the store has; its `count` is then 0, and the other aggregates are
        "null": None; "previous": those of the last bucket that has readings, and before the first one those of
        the series' last reading before `start`, if there is any; "linear": on a straight line between the
        buckets with readings to both sides, by the times at which they begin; None outside of them, and for
        texts. `InvalidQuery` if that made more than 10,000,000 rows.
        """
        question = Aggregates.of(select_points(sensor_id, metric_name, start, end), agg, every, tz, fill)
        self._refuse_numbers_of_texts(question)
        with self._handle.reading("aggregate query") as (connection, known):
            answer = question.ask(connection, known)
        return question.dicts(*answer)

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
        """Return how long each series was in each state over [start, end): a row per series and state.

        Keys: `sensor_id`, `metric_name`, `state` (the reading), `seconds`, and `share` (0 to 1) of the time that
        is asked for; with `every`, as in `aggregate`, `bucket` too, and a row per bucket and state. The longest
        comes first; states that took no time have no row, and the shares of a series, or of its bucket, sum to 1.

        A state lasts until the next point. The one that held before `start` counts from `start`, and the last one
        until `end`; None for `start` is the first point of a series, and for `end` its last one, which then
        adds nothing. A point without a reading begins a time whose state is not known: `state` is None, as it
        is before the first point. Series of numbers have states too (0 and 1, say) where they are given by name;
        a glob, or None, selects series of texts only. `InvalidQuery` for more than 10,000,000 rows.
        """
        question = States.of(select_points(sensor_id, metric_name, start, end), every, tz)
        with self._handle.reading("states query") as (connection, known):
            return question.ask(connection, known)

    def after(self, seq: int, limit: int = 100_000) -> list[PointDict]:
        """Return the next points past `seq` in the order of their seqs, at most `limit`, each with its `seq`.

        For delivery: ask again with the last seq, until the list is empty. Overwritten and deleted points
        leave gaps.
        """
        if limit < 1:
            raise InvalidQuery(f"limit = {limit}: at least 1")
        with self._handle.reading("delivery") as (connection, known):
            return next_points(connection, seq, self._handle.flusher.watermark, limit, known)

    def since(self, seq: int) -> Result:
        """Return all points past `seq` in the order of their seqs, each with its `seq`, to be read as columns.

        For delivery in bulk: `for batch in store.points.since(seq).batches(): ...`, then go on from the last seq.
        It ends at what was acknowledged when reading it began. Overwritten and deleted points leave gaps.
        """
        return Result(
            lambda: self._handle.reading("delivery"),
            lambda rows: SeqPages(seq, rows, self._handle.flusher.watermark),
            with_seq=True,
        )

    def _refuse_numbers_of_texts(self, question: Aggregates) -> None:
        exact = question.selection.exact
        wanted = [name for name in question.names if is_numeric(name)]
        if exact is None or not (wanted or question.fill == "linear"):
            return
        with self._handle.metadata.read() as connection:
            kind = SeriesRepository(connection).kinds([exact]).get(exact)
        if kind != "text":
            return
        series = f"the series {exact[0]!r} {exact[1]!r} holds texts, which have no"
        if wanted:
            raise InvalidQuery(f"{series} {', '.join(wanted)}; ask for count, first or last")
        raise InvalidQuery(f'{series} line between them; fill="previous" holds the last one')
