"""Functions for SQLite: the statistical aggregates that DuckDB has and SQLite lacks, under the same names."""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from math import sqrt
from typing import Any

from sqlalchemy import Connection

__all__ = ["add_statistics", "between"]

_MARK = "holdfast_statistics"


def add_statistics(connection: Connection) -> None:
    """Add `stddev_samp(x)` and `quantile_cont(x, fraction, ...)` to a SQLite connection. Safe to call again.

    The latter returns a JSON array. Both skip NULLs, and return NULL if there are too few values.
    """
    if _MARK in connection.info:
        return
    driver: Any = connection.connection.driver_connection
    driver.create_aggregate("stddev_samp", 1, _Deviation)
    driver.create_aggregate("quantile_cont", -1, _Percentiles)
    connection.info[_MARK] = True


def between(readings: Sequence[float], share: float) -> float:
    """Interpolate linearly between the first two readings, at a `share` from 0 to 1.

    Percentiles are calculated this way, as in NumPy by default. Between a finite and an infinite reading the result is
    infinite.
    """
    low, high = readings[0], readings[-1]
    return low if not share or low == high else low * (1 - share) + high * share


class _Deviation:
    """The sample standard deviation, by Welford's algorithm, which avoids differences of large sums."""

    def __init__(self) -> None:
        self._count = 0
        self._mean = self._squares = 0.0

    def step(self, value: float | None) -> None:
        if value is not None:
            self._count += 1
            off = value - self._mean
            self._mean += off / self._count
            self._squares += off * (value - self._mean)

    def finalize(self) -> float | None:
        return sqrt(self._squares / (self._count - 1)) if self._count > 1 else None


class _Percentiles:
    def __init__(self) -> None:
        self._readings = array("d")
        self._fractions: tuple[float, ...] = ()

    def step(self, value: float | None, *fractions: float) -> None:
        if value is not None:
            self._readings.append(value)
            self._fractions = fractions

    def finalize(self) -> str | None:
        if not self._readings:
            return None
        ordered = sorted(self._readings)
        places = [(len(ordered) - 1) * fraction for fraction in self._fractions]
        return json.dumps(
            [between(ordered[int(place) : int(place) + 2], place - int(place)) for place in places]
        )
