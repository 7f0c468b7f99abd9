"""Local times: the times of a file that have no zone, as microseconds UTC. Converts many at once, in any engine."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, tzinfo
from itertools import pairwise
from typing import NamedTuple

from repo.inputs.times import (
    MAX_TIMESTAMP_US,
    MIN_TIMESTAMP_US,
    Unfit,
    iso_datetime,
    local_us,
    moment_us,
    to_datetime,
)

__all__ = ["UNREADABLE", "OffsetSpan", "spans_of", "text_times"]

UNREADABLE = 2**63 - 1
"""Represents a time that cannot be read; a store refuses it."""

_STEP_US = 43_200_000_000
"""Half a day: no zone changes its offset twice within it."""

_DAY_US = 86_400_000_000


class OffsetSpan(NamedTuple):
    """Local times up to `end_us`, exclusive, and their offset from UTC; None if they occur twice or never."""

    end_us: int
    offset_us: int | None


def spans_of(zone: tzinfo, first_us: int, last_us: int) -> list[OffsetSpan]:
    """Return the spans of local time that begin with `first_us` and reach beyond `last_us`, in order."""
    first_us = min(max(first_us, MIN_TIMESTAMP_US), MAX_TIMESTAMP_US) - _DAY_US
    last_us = min(max(last_us, MIN_TIMESTAMP_US), MAX_TIMESTAMP_US) + _DAY_US
    steps = [*range(first_us, last_us, _STEP_US), last_us]
    offsets = [_offset(zone, us) for us in steps]
    spans: list[OffsetSpan] = []
    for (low, high), (before, after) in zip(pairwise(steps), pairwise(offsets), strict=True):
        if before == after:
            continue
        change = _change(zone, low, high, before)
        spans += [
            OffsetSpan(change + min(before, after), before),
            OffsetSpan(change + max(before, after), None),
        ]
    return [*spans, OffsetSpan(UNREADABLE, offsets[-1])]


def _change(zone: tzinfo, low: int, high: int, before: int) -> int:
    """Return the moment UTC at which the offset changes."""
    while high - low > 1:
        middle = (low + high) // 2
        if _offset(zone, middle) == before:
            low = middle
        else:
            high = middle
    return high


def _offset(zone: tzinfo, us: int) -> int:
    found = to_datetime(us).astimezone(zone).utcoffset()
    assert found is not None
    return found.days * _DAY_US + found.seconds * 1_000_000 + found.microseconds


def text_times(texts: Sequence[str | None], zone: tzinfo) -> list[int | None]:
    """Return the times of ISO 8601 texts; those without an offset are local times of the zone."""
    return [None if text is None else _text_us(text, zone) for text in texts]


def _text_us(text: str, zone: tzinfo) -> int:
    found = iso_datetime(text.strip())
    try:
        if found is None:
            return UNREADABLE
        if found.tzinfo is not None:
            return moment_us(found)
        return moment_us(found.replace(tzinfo=UTC)) if zone is UTC else local_us(found, zone)
    except Unfit:
        return UNREADABLE
