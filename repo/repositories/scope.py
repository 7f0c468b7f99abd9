"""Scopes: the known series that a query means, and the least SQL that says so. Reads no table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import ColumnElement

from repo.engines.traits import Traits
from repo.models import Point
from repo.repositories.selection import MOST_NAMES, Selection
from repo.repositories.series import Summary

__all__ = ["Known", "Scope"]

Pair = tuple[str, str]
Known = Mapping[Pair, Summary]
"""The summaries of all series that have points."""

_c: Any = Point.__table__.c


class Scope:
    """Some of the known series, as names to compare and to group by.

    DuckDB reads a column for each name that is compared or grouped by, so it gets no more of them than tell
    these series from the others. Tables that are keyed by series get every name, and find the rows by it.
    """

    def __init__(self, traits: Traits, known: Known, pairs: Iterable[Pair]) -> None:
        self.pairs = list(pairs)
        sensors, metrics = ({pair[at] for pair in self.pairs} for at in (0, 1))
        chosen = set(self.pairs)
        others = [pair for pair in known if pair not in chosen]
        by_metric = any(sensor in sensors for sensor, _ in others)
        by_sensor = any(metric in metrics for _, metric in others) or (bool(others) and not by_metric)
        few = traits.keyed_by_series and len(sensors) + len(metrics) <= MOST_NAMES
        self._sensors = tuple(sorted(sensors)) if by_sensor or few else None
        self._metrics = tuple(sorted(metrics)) if by_metric or few else None
        self.sensor = next(iter(sensors)) if len(sensors) == 1 else None
        self.metric = next(iter(metrics)) if len(metrics) == 1 else None

    @property
    def keys(self) -> list[ColumnElement[Any]]:
        """The names that differ among these series, as columns."""
        return [
            column
            for column, same in ((_c.sensor_id, self.sensor), (_c.metric_name, self.metric))
            if same is None
        ]

    def where(self, start_us: int | None, end_us: int | None) -> ColumnElement[bool]:
        """Return the condition that a point is of these series and in [start_us, end_us)."""
        return Selection(self._sensors, self._metrics, start_us, end_us).where(Point, ())
