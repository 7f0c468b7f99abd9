"""`store.series`: lists and describes the series."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from repo.core.handle import Handle
from repo.errors import InvalidQuery
from repo.inputs.arguments import check_text
from repo.inputs.fields import json_plain
from repo.queries.selection import Names
from repo.repositories.series import SeriesInfo, SeriesRepository

__all__ = ["SeriesApi"]


class SeriesApi:
    """`store.series`. Thread-safe."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    def list(self, sensor_id: Names = None, metric_name: Names = None) -> list[SeriesInfo]:
        """Return the series sorted by name; names may be globs, lists or None (all).

        Counts and times are as of the last flush; a series that was never flushed has a count of 0.
        """
        selection = self._handle.select(sensor_id, metric_name)
        with self._handle.metadata.read() as connection:
            return SeriesRepository(connection).list(selection)

    def describe(
        self,
        sensor_id: str,
        metric_name: str,
        *,
        unit: str | None = None,
        description: str | None = None,
        labels: Mapping[str, Any] | None = None,
    ) -> SeriesInfo:
        """Set the given properties of a series (unit, description, labels), and return the series.

        Raises `InvalidQuery` if there is no such series.
        """
        check_text(sensor_id, "sensor_id"), check_text(metric_name, "metric_name")
        changes: dict[str, str] = {}
        if unit is not None:
            changes["unit"] = check_text(unit, "unit")
        if description is not None:
            changes["description"] = check_text(description, "description")
        if labels is not None:
            try:
                changes["labels"] = json.dumps(
                    dict(labels), ensure_ascii=False, allow_nan=False, default=json_plain
                )
                changes["labels"].encode()
            except (TypeError, ValueError, RecursionError) as error:
                raise InvalidQuery(f"labels: cannot be written as JSON: {error}") from error
        if changes:
            with self._handle.metadata.write() as connection:
                SeriesRepository(connection).describe((sensor_id, metric_name), changes)
        found = self.list([sensor_id], [metric_name])
        if not found:
            raise InvalidQuery(
                f"there is no series {sensor_id!r} {metric_name!r}; `store.series.list()` lists them"
            )
        return found[0]
