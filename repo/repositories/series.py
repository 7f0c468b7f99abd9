"""The series: their kinds and descriptions, their summaries, and the copy of the summaries. Never commits."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection, Select, and_, delete, func, select, update

from repo.engines.base import rows_of_query
from repo.engines.registry import traits_of
from repo.models import Series, SeriesLatest, SeriesSummary
from repo.queries.selection import Selection, Summary
from repo.queries.summaries import Summaries

__all__ = ["LatestRepository", "SeriesInfo", "SeriesRepository", "SummaryRepository", "SummaryTotals"]


class SeriesInfo(NamedTuple):
    """A series as an application sees it; times in µs since 1970 UTC, None if it has no points."""

    sensor_id: str
    metric_name: str
    kind: str | None
    unit: str | None
    description: str | None
    labels: dict[str, Any]
    points: int
    first_us: int | None
    last_us: int | None


class SummaryTotals(NamedTuple):
    """The summary of all series together; the times are None if there are no points."""

    points: int
    first_us: int | None
    last_us: int | None


class SeriesRepository:
    """Kinds and descriptions (metadata database)."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def kinds(self, pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str | None]:
        """Return the kinds of the registered ones of `pairs`."""
        driver: Any = self._connection.connection.driver_connection
        found: dict[tuple[str, str], str | None] = {}
        for pair in pairs:
            row = driver.execute(
                "SELECT kind FROM series WHERE sensor_id = ? AND metric_name = ?", pair
            ).fetchone()
            if row is not None:
                found[pair] = row[0]
        return found

    def register(self, kinds: Mapping[tuple[str, str], str | None]) -> None:
        """Add series, and set the kind of those without one; an existing kind is never changed."""
        driver: Any = self._connection.connection.driver_connection
        driver.executemany(
            "INSERT INTO series (sensor_id, metric_name, kind) VALUES (?, ?, ?) ON CONFLICT "
            "(sensor_id, metric_name) DO UPDATE SET kind = excluded.kind WHERE kind IS NULL",
            [(*pair, kind) for pair, kind in kinds.items()],
        )

    def change_kind(self, pair: tuple[str, str], kind: str) -> None:
        """Change the kind of a series without points, and invalidate what other processes have cached."""
        driver: Any = self._connection.connection.driver_connection
        driver.execute("UPDATE series SET kind = ? WHERE sensor_id = ? AND metric_name = ?", (kind, *pair))
        driver.execute(f"PRAGMA user_version = {self.changes() + 1:d}")

    def changes(self) -> int:
        """Return how often a kind was changed in this database; kinds read before a change may be outdated."""
        driver: Any = self._connection.connection.driver_connection
        return int(driver.execute("PRAGMA user_version").fetchone()[0])

    def has_name(self, column: Literal["sensor_id", "metric_name"], name: str) -> bool:
        """Return whether a series has this name, as its sensor or as its metric."""
        driver: Any = self._connection.connection.driver_connection
        query = {
            "sensor_id": "SELECT EXISTS (SELECT 1 FROM series WHERE sensor_id = ?)",
            "metric_name": "SELECT EXISTS (SELECT 1 FROM series WHERE metric_name = ?)",
        }[column]
        return bool(driver.execute(query, (name,)).fetchone()[0])

    def pairs(self) -> list[tuple[str, str]]:
        """Return the names of all series."""
        return [(s, m) for s, m in self._connection.execute(select(Series.sensor_id, Series.metric_name))]

    def count(self) -> int:
        """Return the number of series."""
        return self._connection.execute(select(func.count()).select_from(Series)).scalar_one()

    def list(self, selection: Selection | None = None) -> list[SeriesInfo]:
        """Return the selected series in order of their names, with the counts of the last flush."""
        latest = SeriesLatest
        is_exact = selection is not None and not selection.has_glob
        query: Any = (
            select(
                Series.sensor_id,
                Series.metric_name,
                Series.kind,
                Series.unit,
                Series.description,
                Series.labels,
                latest.count,
                latest.first_us,
                latest.last_us,
            )
            .outerjoin(
                latest,
                and_(Series.sensor_id == latest.sensor_id, Series.metric_name == latest.metric_name),
            )
            .order_by(Series.sensor_id, Series.metric_name)
        )
        if selection is not None and is_exact:
            query = query.where(selection.where(Series, ()))
        return [
            SeriesInfo(s, m, kind, unit, text, json.loads(labels) if labels else {}, points or 0, first, last)
            for s, m, kind, unit, text, labels, points, first, last in rows_of_query(
                self._connection, query, -1
            )
            if selection is None or is_exact or selection.names(s, m)
        ]

    def describe(self, pair: tuple[str, str], changes: Mapping[str, str | None]) -> bool:
        """Set unit, description or labels (JSON); False if there is no such series."""
        return bool(
            self._connection.execute(
                update(Series)
                .where(Series.sensor_id == pair[0], Series.metric_name == pair[1])
                .values(**changes)
            ).rowcount
        )


class _Summaries:
    """Reads and replaces summaries, in either of the two tables that hold them."""

    _table: Any
    _all: Select[Any]

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def all(self, most: int = -1) -> Summaries:
        """Return the summaries of all series, or of at most `most` of them."""
        return Summaries(rows_of_query(self._connection, self._all, most))

    def replace(
        self, summaries: Mapping[tuple[str, str], Summary], gone: Iterable[tuple[str, str]] = ()
    ) -> None:
        """Insert or replace these summaries, and remove those of series without points."""
        traits = traits_of(self._connection)
        if doomed := list(gone):
            traits.delete_series(self._connection, self._table, doomed)
        if summaries:
            rows = [(*pair, *summary) for pair, summary in summaries.items()]
            traits.replace_series(self._connection, self._table, rows)


class SummaryRepository(_Summaries):
    """The summaries that flush maintains next to the points (time-series database)."""

    _table = SeriesSummary.__table__
    _all = select(_table)


_LATEST_OF_ONE = "SELECT {} FROM latest WHERE sensor_id = ? AND metric_name = ?".format(
    ", ".join(SeriesLatest.__table__.c.keys()[2:])
)

_NEWEST_TIMES = "SELECT sensor_id, metric_name, last_us FROM latest LIMIT ?"


class LatestRepository(_Summaries):
    """Their copy in the metadata database, readable without the lease."""

    _table = SeriesLatest.__table__
    _all = select(_table)

    def of(self, pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Summary]:
        """Return the summaries of some series, as far as they have points; each is found by its key."""
        driver: Any = self._connection.connection.driver_connection
        found: dict[tuple[str, str], Summary] = {}
        for pair in pairs:
            for row in driver.execute(_LATEST_OF_ONE, pair):
                found[pair] = Summary._make(row)
        return found

    def newest_times(self, most: int) -> dict[tuple[str, str], int]:
        """Return the newest time of each series that has points, of at most `most` of them."""
        driver: Any = self._connection.connection.driver_connection
        return {(s, m): us for s, m, us in driver.execute(_NEWEST_TIMES, (most,))}

    def totals(self) -> SummaryTotals:
        """Return the number of points of all series, and their first and last time."""
        table = SeriesLatest
        row = self._connection.execute(
            select(func.coalesce(func.sum(table.count), 0), func.min(table.first_us), func.max(table.last_us))
        ).one()
        return SummaryTotals(*row)

    def clear(self) -> None:
        """Remove all summaries, before a full copy."""
        self._connection.execute(delete(SeriesLatest))
