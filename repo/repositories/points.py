"""Points on a SQLAlchemy connection of your own, DuckDB or SQLite; never commits, never opens anything."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import tzinfo
from typing import Any, Literal
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, RootTransaction, func, select

from repo.clock import Clock, system_clock
from repo.engines.registry import traits_of
from repo.errors import Refusal, TransactionRule
from repo.inputs.arguments import LARGEST, check_choice, check_count, check_flag
from repo.inputs.batch import Batch
from repo.inputs.values import check_point, check_rows
from repo.models import Point
from repo.queries import point_sql
from repo.queries.aggregate import Aggregates, Every
from repo.queries.durations import States
from repo.queries.pages import LISTS, SeqPages, TimePages
from repo.queries.rows import PointDict, Row, dicts_of_rows, point_dicts, rows_of
from repo.queries.selection import Names, Selection, Summary, Time, select_deleted, select_points
from repo.repositories.apply import apply
from repo.repositories.series import SummaryRepository

__all__ = [
    "PointRepository",
    "Written",
    "next_points",
]

_PAGE_ROWS = 65_536
_FEWEST_ROWS = 1_024


@dataclass(frozen=True, slots=True)
class Written:
    """What a write did: its seqs (None if no row was accepted), and the numbers of rows."""

    first_seq: int | None
    last_seq: int | None
    accepted: int
    rejected: int = 0
    refusals: tuple[Refusal, ...] = field(default=(), repr=False)
    """The rows that `on_error="skip"` left out, in row order; `rejected` is their number."""


class PointRepository:
    """Write and read points in the transaction of a connection that you opened.

    The database has the tables of `repo.models.TimeSeriesBase`. Identity is (sensor_id, metric_name,
    timestamp); a later write wins. On DuckDB a transaction may write points once, and must read before that:
    otherwise `TransactionRule` is raised and nothing is changed. Not thread-safe, like its connection.
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
        *,
        accept_bool: bool = False,
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
                accept_bool=check_flag(accept_bool, "accept_bool"),
                now_us=self._clock(),
            ).batch()
        )

    def insert_many(
        self, rows: Iterable[Any], on_error: Literal["raise", "skip"] = "raise", *, accept_bool: bool = False
    ) -> Written:
        """Write many points at once: dicts, tuples or dataclasses.

        `on_error="raise"` writes all of them, or none and raises `InvalidPoint` with every bad row. `"skip"` writes
        the good rows and counts the others.
        """
        batch, refusals = check_rows(
            rows,
            accept_bool=check_flag(accept_bool, "accept_bool"),
            now_us=self._clock(),
            skip=_skips(on_error),
        )
        return self._write(batch, refusals)

    def delete(
        self,
        sensor_id: Names = None,
        metric_name: Names = None,
        start: Time = None,
        end: Time = None,
        *,
        everything: bool = False,
    ) -> int:
        """Delete points in [start, end) and return their number. None leaves a side or a name open.

        Without names and times, only `everything=True` deletes all points; else `InvalidQuery` is raised.
        """
        selection = self._as_names(select_deleted(sensor_id, metric_name, start, end, everything=everything))
        self._begin_write()
        return apply(self._connection, (), selection, self._summaries().all()).dropped.count

    def range(
        self,
        sensor_id: Names,
        metric_name: Names,
        start: Time = None,
        end: Time = None,
        *,
        limit: int | None = None,
        newest_first: bool = False,
    ) -> Iterator[PointDict]:
        """Return the points in [start, end) in order of time, read a page at a time; see `Store.points.range`."""
        left = LARGEST if limit is None else check_count(limit, "limit")
        newest_first = check_flag(newest_first, "newest_first")
        return self._in_range(self._select(sensor_id, metric_name, start, end), left, newest_first)

    def _in_range(self, selection: Selection, left: int, newest_first: bool) -> Iterator[PointDict]:
        pages = TimePages(selection, min(max(left, _FEWEST_ROWS), _PAGE_ROWS), newest_first=newest_first)
        while left and not pages.done:
            page = pages.step(self._reading(), self._known(), LISTS)
            if page is not None:
                page = LISTS.first(page, left)
                left -= LISTS.size(page)
                yield from point_dicts(page, selection.exact)

    def latest(self, sensor_id: Names, metric_name: Names = None, limit: int = 1) -> list[PointDict]:
        """Return the newest `limit` points of each series, newest first."""
        limit = check_count(limit, "limit")
        selection = self._select(sensor_id, metric_name)
        return dicts_of_rows(point_sql.newest(self._reading(), selection, self._known(), limit))

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
        fill: str | None = None,
    ) -> list[dict[str, Any]]:
        """Return aggregates per series and, with `every`, per bucket; see `Store.points.aggregate`."""
        question = Aggregates.of(self._select(sensor_id, metric_name, start, end), agg, every, tz, fill)
        return question.dicts(*question.ask(self._reading(), self._summaries().all()))

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
        """Return the time that each series spent in each state; see `Store.points.states`."""
        question = States.of(self._select(sensor_id, metric_name, start, end), every, tz)
        return question.ask(self._reading(), self._summaries().all())

    def after(self, seq: int, limit: int = 100_000) -> list[PointDict]:
        """Return up to `limit` points after `seq` in the order of their seqs, each with its `seq`."""
        seq, limit = check_count(seq, "seq", -LARGEST), check_count(limit, "limit")
        connection = self._reading()
        last, known = self._last_seq(), self._known()
        return next_points(connection, seq, last, limit, known)

    def _write(self, batch: Batch, refusals: tuple[Refusal, ...] = ()) -> Written:
        if not len(batch):
            return Written(None, None, 0, len(refusals), refusals)
        self._begin_write()
        first = self._last_seq() + 1
        unique: dict[tuple[str, str, int], Row] = {}
        for row in rows_of(batch, range(first, first + len(batch))):
            unique[row[:3]] = row
        apply(self._connection, list(unique.values()), None, self._summaries().all())
        return Written(first, first + len(batch) - 1, len(batch), len(refusals), refusals)

    def _select(
        self, sensor_id: Names, metric_name: Names, start: Time = None, end: Time = None
    ) -> Selection:
        return self._as_names(select_points(sensor_id, metric_name, start, end))

    def _as_names(self, selection: Selection) -> Selection:
        if not selection.has_glob:
            return selection
        known = self._summaries().all()
        return selection.as_names(
            lambda column, name: any(pair[column == "metric_name"] == name for pair in known)
        )

    def _last_seq(self) -> int:
        # Points of the legacy program have negative seqs; new ones begin at 1.
        return max(0, self._connection.execute(select(func.max(Point.seq))).scalar_one() or 0)

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


def next_points(
    connection: Connection, seq: int, through: int, limit: int, known: Mapping[tuple[str, str], Summary]
) -> list[PointDict]:
    """Return the next points after `seq` and up to `through`, at most `limit`."""
    pages = SeqPages(seq, limit, through)
    while not pages.done:
        page = pages.step(connection, known, LISTS)
        if page is not None:
            return point_dicts(page, with_seq=True)
    return []


def _skips(on_error: str) -> bool:
    return check_choice(on_error, "on_error", ("raise", "skip")) == "skip"
