"""A page of points in a DuckDB connection, checked and stored from there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from repo.formats.arrays.memory import KeptStream
from repo.formats.arrays.scan import ScannedSeries, scan
from repo.formats.arrays.tables import HeldPage
from repo.formats.files.interfaces import Group
from repo.inputs.batch import KIND_NUMBER, KIND_TEXT
from repo.inputs.times import MAX_TIMESTAMP_US, MIN_TIMESTAMP_US

__all__ = ["DuckDBPage"]


class DuckDBPage:
    """See `ReadPage`; the rows are the view `page` of a connection, on the file or on a copy in memory.

    With `in_place` the file is read again for each query of the scan, which is faster than a copy in DuckDB, as that
    loses the dictionaries. What is then stored is kept as Arrow, outside of DuckDB's memory.
    """

    def __init__(self, base: Any, select: str, *, in_place: bool) -> None:
        self._base = base
        self._kept: KeptStream | None = None
        base.execute(f"CREATE OR REPLACE TEMPORARY VIEW page AS {select}")
        self.is_copy = False
        if not in_place:
            self._copy()
        self._scan = scan(base, None, "FROM page")
        if self._scan is not None:
            # Read once more here, beside the storing of the page before.
            self._kept = KeptStream(base.sql("FROM page")) if in_place else None
            self.rows, self.nulls = self._scan.rows, 0
            self.groups = [_group(one) for one in self._scan.groups]
        else:
            self.rows, self.nulls = self._without_nameless()
            self.groups = self._groups()

    def _copy(self) -> None:
        self._forget()
        if not self.is_copy:
            self._base.execute("CREATE TEMPORARY TABLE copied AS FROM page")
            self._base.execute("CREATE OR REPLACE TEMPORARY VIEW page AS FROM copied")
            self.is_copy = True

    def _forget(self) -> None:
        if self._kept is not None:
            self._kept.drop()
            self._kept = None

    def drop(self) -> None:
        """Free the memory; the page is no longer valid."""
        self._forget()
        if self.is_copy:
            self._base.execute("DROP VIEW page")
            self._base.execute("DROP TABLE copied")

    def _without_nameless(self) -> tuple[int, int]:
        """Drop the rows without a series or time; returns the numbers of all rows and of dropped rows."""
        nameless = "sensor_id IS NULL OR metric_name IS NULL OR timestamp_us IS NULL"
        [(rows, nulls)] = self._base.execute(
            f"SELECT count(*), count(*) FILTER ({nameless}) FROM page"
        ).fetchall()
        if nulls:
            self._copy()
            self._base.execute(f"DELETE FROM copied WHERE {nameless}")
            self._scan = scan(self._base, None, "FROM page")
        return rows, nulls

    def _groups(self) -> list[Group]:
        return [
            Group((sensor, metric), *counts)
            for sensor, metric, *counts in self._base.execute(
                "SELECT sensor_id, metric_name, count(*), count(value), count(value_text), "
                "count(*) FILTER (NOT isnan(value::DOUBLE) OR value_text IS NOT NULL), "
                "min(timestamp_us), max(timestamp_us) FROM page GROUP BY ALL"
            ).fetchall()
        ]

    def leave_out(self, doomed: Sequence[tuple[tuple[str, str], bool]]) -> int:
        """See `ReadPage`."""
        self._copy()
        dropped = 0
        for pair, texts in doomed:
            column = "value_text" if texts else "value"
            [(count,)] = self._base.execute(
                f"DELETE FROM copied WHERE sensor_id = ? AND metric_name = ? AND {column} IS NOT NULL", pair
            ).fetchall()
            dropped += count
        self._scan = scan(self._base, None, "FROM page")
        return dropped

    def table(self) -> Any:
        """See `ReadPage`."""
        return HeldPage(self._base, "page", self._scan, self._kept)

    def duplicates(self) -> int:
        """See `ReadPage`."""
        if self._scan is not None and self._scan.unique:
            return 0
        [(rows, distinct)] = self._base.execute(
            "SELECT count(*), count(DISTINCT hash(sensor_id, metric_name, timestamp_us)) FROM page "
            f"WHERE timestamp_us BETWEEN {MIN_TIMESTAMP_US} AND {MAX_TIMESTAMP_US}"  # others are refused
        ).fetchall()
        return int(rows - distinct)

    def identities(self) -> Sequence[tuple[str, str, int]]:
        """See `ReadPage`."""
        found: list[tuple[str, str, int]] = self._base.execute(
            "SELECT DISTINCT sensor_id, metric_name, timestamp_us FROM page"
        ).fetchall()
        return found


def _group(found: ScannedSeries) -> Group:
    """Return the scan result for a series without anything unusual, which therefore has one kind."""
    numbers = found.readings if found.kind == KIND_NUMBER else 0
    texts = found.readings if found.kind == KIND_TEXT else 0
    return Group(found.pair, found.rows, numbers, texts, found.readings, found.first_us, found.last_us)
