"""`store.points`: writes, reads and deletes points."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from datetime import datetime, tzinfo
from typing import Any, Literal

from repo.core.bulk import Bulk
from repo.core.changes import DeleteChange, PointsChange, Submission
from repo.core.deleting import delete_points
from repo.core.handle import Handle
from repo.core.journal_pages import JournalPages
from repo.core.latest import Newest
from repo.cursors import Span
from repo.engines.interrupts import KeyboardInterrupts
from repo.errors import InvalidQuery
from repo.formats.arrays.columns import fetch_columns
from repo.inputs.arguments import LARGEST, check_choice, check_count, check_flag, check_text
from repo.inputs.batch import KIND_TEXT
from repo.inputs.values import check_point
from repo.queries import point_sql
from repo.queries.aggregate import Aggregates, Every
from repo.queries.aggregate_sql import is_numeric
from repo.queries.durations import States
from repo.queries.pages import SeqPages, TimePages
from repo.queries.rows import PointDict, dicts_of_rows
from repo.queries.selection import Known, Names, Selection, check_selection, select_deleted
from repo.queries.seq_page import SeqPage, read_seq_page
from repo.repositories.points import Written, next_points
from repo.store.results import Result

__all__ = ["PointWriter", "Points"]

Time = float | datetime | None

_FIRST_SEQ = -LARGEST
"""Points of a legacy store may have negative seqs."""

_LATEST_TRIES = 3
"""How often `latest` flushes and retries, if other writers keep deleting, before it reads the columns."""


class PointWriter:
    """The write methods, shared by the store and its transactions."""

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
        *,
        accept_bool: bool | None = None,
    ) -> Written:
        """Write one point and return when it is durable.

        `timestamp` is Unix seconds, an aware datetime, or a NumPy datetime64, which counts as UTC; None means now.
        `value` is a number, a text (a state), or None or pandas' NA for "no reading"; True and False are refused, or
        with `accept_bool` stored as 1 and 0 (None: as the setting `accept_bool` says). `metadata` is a dict of JSON
        values; datetimes in it become ISO texts. Overwrites a point of the same sensor, metric and time. Raises
        `InvalidPoint`, `StoreBusy` or `StoreFull`; nothing was written.
        """
        handle = self._handle
        point = check_point(
            sensor_id,
            metric_name,
            value,
            timestamp,
            quality,
            metadata,
            accept_bool=handle.settings.accept_bool
            if accept_bool is None
            else check_flag(accept_bool, "accept_bool"),
            now_us=handle.clock() if timestamp is None else 0,
        )
        return self._send(Submission((PointsChange.of_point(point),)))

    def insert_many(
        self,
        rows: Iterable[Any],
        on_error: Literal["raise", "skip"] = "raise",
        *,
        accept_bool: bool | None = None,
    ) -> Written:
        """Write many points in one commit and return when they are durable.

        Rows are dicts (`sensor_id, metric_name, value`, and optionally `timestamp` or `timestamp_us`, `quality`,
        `metadata`), tuples `(sensor_id, metric_name, timestamp, value[, quality[, metadata]])`, or dataclasses.
        With `on_error="raise"`, a bad row raises `InvalidPoint`, which lists every bad row, and nothing is written.
        With `on_error="skip"`, the good rows are written and `refusals` lists the others. `accept_bool` is as in
        `insert`.
        """
        submission = self._submission(rows, on_error, accept_bool)
        return self._send(submission)

    def delete(
        self,
        sensor_id: Names = None,
        metric_name: Names = None,
        start: Time = None,
        end: Time = None,
        *,
        everything: bool = False,
    ) -> Written:
        """Delete the points in [start, end) that were written before this call; durable on return, needs no lease.

        Names may be globs, lists or None (all), as in `range`. Without names and times (None or `*`), only
        `everything=True` deletes all points; else `InvalidQuery` is raised and nothing is deleted. What was already
        delivered stays delivered. The deleted points are counted when the journal is applied; the loss ledger records
        the number. On a full disk they are deleted in parts: `StoreFull` means that the oldest may be gone already.
        """
        return self.delete_selected(select_deleted(sensor_id, metric_name, start, end, everything=everything))

    def delete_selected(self, selection: Selection) -> Written:
        """Delete as `delete` does, by a selection that is already checked."""
        return self._send(Submission((DeleteChange(check_selection(selection, "selection")),)))

    def _submission(self, rows: Iterable[Any], on_error: str, accept_bool: bool | None = None) -> Submission:
        check_choice(on_error, "on_error", ("raise", "skip"))
        if accept_bool is None:
            accept_bool = self._handle.settings.accept_bool
        return Submission.of_rows(
            rows,
            accept_bool=check_flag(accept_bool, "accept_bool"),
            now_us=self._handle.clock(),
            skip=on_error == "skip",
            kinds_of=self._handle.kinds_of,
        )


class Points(PointWriter):
    """`store.points`. Thread-safe. A read sees every write that was acknowledged before it began."""

    def delete_selected(self, selection: Selection) -> Written:
        """See `PointWriter`. On a full disk the points are deleted at once, in parts: see `repo.core.deleting`."""
        return delete_points(self._handle, check_selection(selection, "selection"))

    def __init__(self, handle: Handle, send: Callable[[Submission], Written]) -> None:
        super().__init__(handle, send)
        self.bulk = Bulk(handle)
        self._newest = Newest(handle.metadata)

    def close(self) -> None:
        """Close the in-memory database that checks tables."""
        self.bulk.close()

    def submit(
        self,
        rows: Iterable[Any],
        on_error: Literal["raise", "skip"] = "raise",
        *,
        accept_bool: bool | None = None,
    ) -> Future[Written]:
        """Queue many points and return at once; the future completes when they are durable.

        Checks the rows first, and raises `InvalidPoint` as `insert_many` does. Blocks while the queue is full. With
        asyncio, use `AsyncStore`, or `await asyncio.wrap_future(store.points.submit(rows))`.
        """
        return self._handle.writer.submit(self._submission(rows, on_error, accept_bool))

    @KeyboardInterrupts()
    def insert_table(
        self,
        table: Any,
        *,
        on_error: Literal["raise", "skip"] = "raise",
        on_conflict: Literal["overwrite", "keep"] = "overwrite",
    ) -> Written:
        """Write a table of points and return when all of it is durable.

        `table` is a pyarrow, pandas or polars table, a DuckDB relation, any object with `__arrow_c_stream__`, or a dict
        of arrays or lists of equal length, in which a string applies to all rows. The columns, in any order, are
        `sensor_id` and `metric_name`; `timestamp` (with a time zone, or Unix seconds; NumPy's times are UTC) or
        `timestamp_us`; `value` (numbers or texts) or `value_text`, or both, with one of them empty in each row; and
        optionally `quality` and `metadata` (JSON objects as text, structs or dicts). Values are interpreted as in
        `insert_many`, but every row needs a time.

        With `on_error="raise"`, a bad row raises `InvalidPoint` before anything is written; of a stream, which can be
        read only once, the chunks before the bad row are written. With `"skip"`, the good rows are written and
        `refusals` lists the others. With `on_conflict="keep"`, stored points are kept; of several points of one
        identity in the table, the last one counts if they are in the same chunk.

        Tables of `bulk_rows` and more go straight to the columns, in chunks of 245,760 rows, if the columns are
        available at once; otherwise they go through the journal, as smaller tables do. Seqs may have gaps, and a point
        that another point of the same table replaces may have none. An error or a kill leaves whole chunks of the
        table written, or none; writing it again is harmless.
        """
        check_choice(on_error, "on_error", ("raise", "skip"))
        check_choice(on_conflict, "on_conflict", ("overwrite", "keep"))
        return self.bulk.insert(table, on_error, on_conflict)

    def range(
        self,
        sensor_id: Names,
        metric_name: Names,
        start: Time = None,
        end: Time = None,
        *,
        limit: int | None = None,
        newest_first: bool = False,
    ) -> Result:
        """Return the points in [start, end) in order of time; None means no bound.

        A name may be exact, a glob (`*`, `?`, `[`), a list of exact names, or None for all. The name of a series is
        exact even if it contains glob characters.

        `limit` is the largest number of points of all series together: the oldest ones, or with `newest_first`, which
        reverses the order, the newest. Only about as many are read. `latest` has a limit for each series.
        """
        newest_first = check_flag(newest_first, "newest_first")
        selection = self._handle.select(sensor_id, metric_name, start, end)
        return Result(
            lambda: self._handle.reading("range query"),
            lambda rows: TimePages(selection, rows, newest_first=newest_first),
            selection.exact,
            limit=None if limit is None else check_count(limit, "limit"),
            shown=selection,
        )

    def latest(self, sensor_id: Names, metric_name: Names = None, limit: int = 1) -> list[PointDict]:
        """Return the newest `limit` points of each series, newest first within a series.

        With a limit of 1 (the default) the answer comes from memory, which follows the commits of all processes. That
        needs no lease, and a flush only after a delete. The caller may modify the dicts.
        """
        if type(sensor_id) is str and type(metric_name) is str and type(limit) is int and limit == 1:
            cached = self._newest.cached((sensor_id, metric_name))
            if cached is not None:
                return cached
        limit = check_count(limit, "limit")
        selection = self._handle.select(sensor_id, metric_name)
        for _ in range(_LATEST_TRIES if limit == 1 else 0):
            if (found := self._newest.points(selection)) is not None:
                return found
            self._handle.flush("latest query")
        with self._handle.reading("latest query") as (connection, known):
            return dicts_of_rows(point_sql.newest(connection, selection, known, limit))

    def aggregate(
        self,
        sensor_id: Names,
        metric_name: Names,
        start: Time = None,
        end: Time = None,
        *,
        agg: str | Sequence[str] = "avg",
        every: Every = None,
        tz: str | tzinfo = "UTC",
        fill: Literal["none", "null", "previous", "linear"] | None = None,
    ) -> list[dict[str, Any]]:
        """Return aggregates over [start, end): one row per series, or per series and bucket, sorted in this order.

        `agg` is one or several of `avg`, `min`, `max`, `sum`, `count`, `first`, `last` (by time), `stddev` (of a
        sample, with n - 1: None for a single reading), `median`, and the percentiles `p0` to `p100` (`p95`, `p99.9`;
        interpolated linearly, as NumPy does by default). These names are the keys of a row. Points without a reading
        are skipped. An aggregate without a value (no readings, inf - inf) is None. A text series has only count, first
        and last: other aggregates raise `InvalidQuery` if the series is selected by name, and are None in a glob.

        `every` is the width of the buckets: `10s`, `1m` (a minute), `6h`, `1d`, `1w`, `1mo`, `3mo`, `1y`; or seconds as
        a number, or a `timedelta`. `bucket` is the start of a bucket, in the zone `tz`: a name, an offset (`-07:00`) or
        a `tzinfo`. Widths up to an hour follow elapsed time, larger ones the wall clock of
        the zone: days start at local midnight, weeks on Monday, months and years with the calendar (counted from
        January 1970, so that `3mo` is a quarter).

        `fill` controls buckets without readings. None or "none" returns only buckets that have points. The other
        modes return every bucket of [start, end) for all selected series in the store; a bound of None means the first
        or the last point of each series. The `count` of an empty bucket is 0. Its other aggregates are, with "null",
        None; with "previous", those of the last bucket that has readings, or, before the first one, the series' last
        reading before `start`, if any; with "linear", on a straight line between the neighbouring buckets with
        readings, by their start times, or None outside of them and for texts. A result of more than 10,000,000 rows
        raises `InvalidQuery`.
        """
        question = Aggregates.of(
            self._handle.select(sensor_id, metric_name, start, end), agg, every, tz, fill
        )
        with self._handle.reading("aggregate query") as (connection, known):
            self._refuse_numbers_of_texts(question, known)
            answer = question.ask(connection, known)
        return question.dicts(*answer)

    def states(
        self,
        sensor_id: Names,
        metric_name: Names,
        start: Time = None,
        end: Time = None,
        *,
        every: Every = None,
        tz: str | tzinfo = "UTC",
    ) -> list[dict[str, Any]]:
        """Return how long each series was in each state over [start, end): one row per series and state.

        The keys are `sensor_id`, `metric_name`, `state` (the reading), `seconds`, and `share` (0 to 1) of the time
        requested. With `every`, as in `aggregate`, there is one row per series, bucket and state, with the key
        `bucket`. The longest state comes first. States of zero duration have no row, and the shares of a series, or of
        one of its buckets, add up to 1.

        A state lasts until the next point. The state before `start` counts from `start`, and the last one until `end`.
        A `start` of None is the first point of a series; an `end` of None is its last point, which then adds nothing.
        A point without a reading begins a period of unknown state, whose `state` is None, like the time before the
        first point. Number series have states, too (0 and 1, for example), if they are selected by name; a glob, or
        None, selects text series only. A result of more than 10,000,000 rows raises `InvalidQuery`.
        """
        question = States.of(self._handle.select(sensor_id, metric_name, start, end), every, tz)
        with self._handle.reading("states query") as (connection, known):
            return question.ask(connection, known)

    def after(self, seq: int, limit: int = 100_000) -> list[PointDict]:
        """Return at most `limit` points after `seq`, in order of seq, each with its `seq`.

        For delivery: call it again with the last seq until the list is empty. Overwritten and deleted points leave
        gaps. Points of the legacy program have negative seqs.
        """
        seq, limit = check_count(seq, "seq", _FIRST_SEQ), check_count(limit, "limit")
        with self._handle.reading("delivery") as (connection, known):
            return next_points(connection, seq, self._handle.flusher.watermark, limit, known)

    def since(self, seq: int) -> Result:
        """Return all points after `seq`, in order of seq, each with its `seq`, to be read as columns.

        For bulk delivery: `for batch in store.points.since(seq).batches(): ...`, then continue from the last seq. The
        result ends with the points acknowledged when reading began. Overwritten and deleted points leave gaps.
        """
        seq = check_count(seq, "seq", _FIRST_SEQ)
        return Result(
            lambda: self._handle.reading("delivery"),
            lambda rows: SeqPages(seq, rows, self._handle.flusher.watermark, self._handle.flusher.order),
            with_seq=True,
            shown=f"the points after seq {seq}",
        )

    def page(self, first_seq: int, last_seq: int, *, backwards: bool = False) -> SeqPage:
        """Return the first points of a range of seqs, both ends inclusive, as columns; for forwarders.

        The columns are sequences: arrays of machine numbers where the engine fills them, lists otherwise. The page
        covers about 122,880 seqs: fewer where texts are long, more where there are no points; `span` says which. It may
        be empty. With `backwards` it covers the end of the range. It shows every write acknowledged before the call,
        and the lease is released before it returns. Seqs that are not in use yet count as read.
        """
        span = Span(
            check_count(first_seq, "first_seq", _FIRST_SEQ), check_count(last_seq, "last_seq", _FIRST_SEQ)
        )
        backwards = check_flag(backwards, "backwards")
        if span.seqs < 1:
            raise InvalidQuery(f"first_seq = {first_seq} is above last_seq = {last_seq}")
        with self._handle.reading("delivery") as (connection, known):
            return read_seq_page(
                connection, known, span, self._handle.flusher.watermark, fetch_columns, backwards=backwards
            )

    def has(self, sensor_id: str, metric_name: str, timestamp_us: int) -> bool:
        """Return whether a point is stored; for forwarders. Takes the names and times of legacy points, too."""
        sensor_id, metric_name = check_text(sensor_id, "sensor_id"), check_text(metric_name, "metric_name")
        timestamp_us = check_count(timestamp_us, "timestamp_us", -LARGEST - 1)
        with self._handle.reading("delivery") as (connection, _):
            return point_sql.has(connection, sensor_id, metric_name, timestamp_us)

    def journal_pages(self) -> JournalPages:
        """Return a reader of pages of the newest points that never waits for the columns; for forwarders."""
        return JournalPages(self._handle.metadata)

    def _refuse_numbers_of_texts(self, question: Aggregates, known: Known) -> None:
        exact = question.selection.exact
        wanted = [name for name in question.names if is_numeric(name)]
        if exact is None or not (wanted or question.fill == "linear"):
            return
        kind = known[exact].kind if exact in known else None
        if kind is None:  # no points, or the newest one has no reading
            kind = self._handle.kinds_of([exact]).get(exact)
        if kind != KIND_TEXT:
            return
        series = f"the series {exact[0]!r} {exact[1]!r} has text readings, which have no"
        if wanted:
            raise InvalidQuery(f"{series} {', '.join(wanted)}; ask for count, first or last")
        raise InvalidQuery(f'{series} line between them; fill="previous" repeats the last one')
