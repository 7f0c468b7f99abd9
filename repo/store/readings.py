"""Readings: the points in the data of a record. Devices write times and qualities in many forms; this reads them."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC
from numbers import Real
from typing import Any

from repo.inputs.fields import QUALITY_RANGE, is_missing, number_in
from repo.inputs.times import Unfit, is_time, iso_datetime, moment_us, to_us

__all__ = ["BAD", "GOOD", "UNCERTAIN", "readings_of"]

log = logging.getLogger("holdfast.records")

NAMES = ("pressure", "temperature", "flow_rate", "flowRate")
"""Fields of a record's data that are readings of the metric of that name, in addition to `value`."""

GOOD, UNCERTAIN, BAD = 100, 64, 0
"""The qualities of the words; 64 and 0 are those of OPC."""

_WORDS = {"good": GOOD, "uncertain": UNCERTAIN, "bad": BAD}
_WORD = re.compile(r"\s*((?i:good|uncertain|bad))(?![a-z])")
"""In the status codes of OPC UA more follows, beginning with an upper-case letter: `GoodClamped`,
`Bad_NoCommunication`."""

_MOST_SAID = 1_000
_said: set[tuple[str, str]] = set()


def readings_of(
    data: Mapping[str, Any], source: str, timestamp_us: int, *, accept_bool: bool
) -> list[dict[str, Any]]:
    """Return the numbers in a record's data, also those given as text, as rows of points.

    `timestamp_us` is the time of the record. The data's `timestamp` is Unix seconds or ISO 8601 (UTC if it has no
    offset); its `quality` is an integer, or a word that begins with good, uncertain or bad. A time that cannot be read
    leaves the record's time, a quality that cannot be read is stored as uncertain, and the log names the field once for
    each source. A number that is not a valid time raises `InvalidPoint`.
    """

    def number(given: object) -> Any:
        if isinstance(given, str):
            return number_in(given)
        is_number = isinstance(given, Real) and (accept_bool or not isinstance(given, bool))
        return given if is_number else None

    data = {name: given for name, given in data.items() if not is_missing(given)}
    numbers = [(name, number(data.get(name))) for name in NAMES]
    numbers.append((data.get("metric_name") or data.get("metric") or "unknown", number(data.get("value"))))
    numbers = [(metric, value) for metric, value in numbers if value is not None]
    if not numbers:
        return []
    sensor = data.get("sensor_id") or data.get("well_name") or source
    time_us = _time_of(data.get("timestamp"), source, timestamp_us)
    quality = _quality_of(data.get("quality"), source)
    return [
        {
            "sensor_id": sensor,
            "metric_name": metric,
            "timestamp_us": time_us,
            "value": value,
            "quality": quality,
        }
        for metric, value in numbers
    ]


def _time_of(given: object, source: str, otherwise_us: int) -> int:
    if given is None:
        return otherwise_us
    if (isinstance(given, Real) and not isinstance(given, bool)) or is_time(given):
        return to_us(given, "data.timestamp")
    if isinstance(given, str):
        try:
            found = iso_datetime(given.strip())
            if found is not None:
                return moment_us(found if found.tzinfo is not None else found.replace(tzinfo=UTC))
            return moment_us(float(given))
        except (Unfit, ValueError):
            pass
    _say(
        source,
        "timestamp",
        given,
        "is neither Unix seconds nor ISO 8601, so its points have the record's time",
    )
    return otherwise_us


def _quality_of(given: object, source: str) -> int | None:
    if given is None:
        return None
    if isinstance(given, str):
        if word := _WORD.match(given):
            return _WORDS[word[1].lower()]
        with suppress(ValueError):
            given = float(given)
    is_number = isinstance(given, (int, float)) and not isinstance(given, bool)
    if is_number and given == given // 1 and QUALITY_RANGE[0] <= given <= QUALITY_RANGE[1]:  # type: ignore[operator]
        return int(given)
    _say(
        source,
        "quality",
        given,
        f"is neither an integer nor one of good, uncertain, bad; it is stored as {UNCERTAIN}",
    )
    return UNCERTAIN


def _say(source: str, field: str, given: object, what: str) -> None:
    """Log a field that cannot be read, once for each source in this process."""
    if (source, field) in _said or len(_said) >= _MOST_SAID:
        return
    _said.add((source, field))
    kind = type(given).__name__
    log.warning(
        "a record of %r: its %s, of type %s, %s. Further ones are not logged", source, field, kind, what
    )
