"""Deleting: commits the delete of points or records, on a full disk in parts that the reserve has room for."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from repo.core.changes import DeleteChange, Submission
from repo.core.handle import Handle
from repo.core.reserve import Reserve, size_of
from repo.engines.registry import engine_named
from repo.errors import EngineMissing, StoreBusy, StoreFull
from repo.queries.export_spans import span_of, span_reader
from repo.queries.selection import Selection, Summary
from repo.repositories.points import Written
from repo.repositories.records import DroppedRecords, RecordRepository, RecordScope
from repo.repositories.series import LatestRepository

__all__ = ["RecordDrop", "delete_points", "delete_records"]

log = logging.getLogger("holdfast.cleaning")

RecordDrop = tuple[RecordScope, str, Mapping[str, Any]]
"""The scope, the reason, and the caller's arguments for the ledger."""

_PART_RECORDS = 50
"""The records that one commit deletes on a full disk. A record is usually smaller than a page of 4 KiB."""

_MOST_SEEKS = 1_000
"""Up to this many series are looked up one by one; more are found by a scan of all points."""

_LEAST_ROWS = 1_000
_ROOM_SHARE = 4
"""A part may take a quarter of the room for its log, because a checkpoint needs the rest."""


def delete_points(handle: Handle, selection: Selection) -> Written:
    """Delete the selected points, durably, and return the seqs of the delete.

    Normally this is one journal row, which the next flush applies. If the disk has too little room for its log, the
    reserve is released, and the points are deleted in parts, the oldest first. Each part is applied and checkpointed,
    so the next one can use its room. `StoreFull` then means that the room was too small: the parts before it are
    deleted, and a repeated call continues.
    """
    reserve = Reserve(handle.files)
    if _fits(handle, selection, reserve.room()):
        try:
            return _committed(handle, selection)
        except StoreFull as full:
            log.info("the reserve is used to delete points on a full disk: %s", full)
    with reserve.released():
        return _in_parts(handle, selection, reserve)


def delete_records(handle: Handle, drops: Sequence[RecordDrop]) -> DroppedRecords:
    """Delete the unsent records in these scopes, and note them in the loss ledger; in one commit if there is room.

    On a full disk the reserve is released, and they are deleted in several commits, the oldest first. An error then
    leaves the earlier ones done.
    """
    fallen = DroppedRecords()
    try:
        with handle.metadata.write() as connection:
            records = RecordRepository(connection, clock=handle.clock)
            for scope, reason, why in drops:
                fallen = fallen.plus(records.drop(scope, reason, why))
    except StoreFull as full:
        log.info("the reserve is used to delete records on a full disk: %s", full)
    else:
        handle.metadata.checkpoint_if_due()
        return fallen
    fallen = DroppedRecords()
    with Reserve(handle.files).released():
        for scope, reason, why in drops:
            while True:
                with handle.metadata.write() as connection:
                    records = RecordRepository(connection, clock=handle.clock)
                    part = records.drop(scope, reason, why, limit=_PART_RECORDS)
                handle.metadata.checkpoint()
                fallen = fallen.plus(part)
                if part.records < _PART_RECORDS:
                    break
    return fallen


def _in_parts(handle: Handle, selection: Selection, reserve: Reserve) -> Written:
    first_seq = None
    try:
        for part in _parts(handle, selection, reserve):
            written = _committed(handle, part)
            first_seq = first_seq or written.first_seq
            handle.checkpoint()
            handle.metadata.checkpoint()
    except (StoreBusy, EngineMissing) as error:
        # The delete of what is left needs no columns; the process that has them applies it.
        log.warning("the deletion is recorded, and is applied at the next flush: %s", error)
        written = _committed(handle, selection)
    return replace(written, first_seq=first_seq or written.first_seq)


def _fits(handle: Handle, selection: Selection, room: int) -> bool:
    """Return whether there is room for the delete in one piece, if the points of a series are evenly distributed."""
    try:
        backend = handle.columns.backend
    except EngineMissing:
        return True  # the process that has the engine applies it
    if 2 * size_of(backend.path) <= room:
        return True  # the log of a delete is not larger than the file
    with handle.metadata.read() as connection:
        known = LatestRepository(connection).all()
    points = sum(_share(selection, one) * one.points for pair, one in known.items() if selection.names(*pair))
    return points * engine_named(backend.name).deleted_row_bytes * _ROOM_SHARE <= room


def _share(selection: Selection, summary: Summary) -> float:
    """Return the share of the time of a series that is selected."""
    whole_us = summary.last_us + 1 - summary.first_us
    first_us = summary.first_us if selection.start_us is None else max(summary.first_us, selection.start_us)
    end_us = summary.last_us + 1 if selection.end_us is None else min(summary.last_us + 1, selection.end_us)
    return max(0, end_us - first_us) / whole_us


def _committed(handle: Handle, selection: Selection) -> Written:
    return handle.writer.commit(Submission((DeleteChange(selection),)))


def _named(selection: Selection, chosen: Sequence[tuple[str, str]]) -> Selection:
    """Return the selection with the names of its series, by which SQLite seeks the rows of a span."""
    sensors, metrics = (tuple(sorted({pair[at] for pair in chosen})) for at in (0, 1))
    if not chosen or len(sensors) * len(metrics) > _MOST_SEEKS:
        return selection
    return replace(selection, sensor_id=sensors, metric_name=metrics)


def _parts(handle: Handle, selection: Selection, reserve: Reserve) -> Iterator[Selection]:
    """Yield spans of the selection that together equal it, each with as many points as there is room to delete."""
    with handle.reading("deleting on a full disk") as (_, known):
        chosen = sorted(pair for pair in known if selection.names(*pair))
        first_us = min((known[pair].first_us for pair in chosen), default=0)
        end_us = max((known[pair].last_us + 1 for pair in chosen), default=0)
    if selection.start_us is not None:
        first_us = max(first_us, selection.start_us)
    if selection.end_us is not None:
        end_us = min(end_us, selection.end_us)
    whole, selection = selection, _named(selection, chosen)
    row_bytes = engine_named(handle.columns.backend.name).deleted_row_bytes
    start_us, width_us = selection.start_us, max(1, end_us - first_us)
    at_us = first_us
    while at_us < end_us:
        most = max(_LEAST_ROWS, reserve.room() // _ROOM_SHARE // row_bytes)
        with handle.reading("deleting on a full disk") as (connection, _):
            reader = span_reader(connection, chosen)
            width_us = min(width_us, end_us - at_us)
            while (
                count := reader.count(span_of(selection, at_us, at_us + width_us))
            ) > most and width_us > 1:
                width_us = max(1, width_us // 2)
        at_us += width_us
        if at_us >= end_us:
            break
        if count:
            yield replace(selection, start_us=start_us, end_us=at_us)
            start_us = at_us
        width_us *= 2
    yield whole if start_us == whole.start_us else replace(selection, start_us=start_us)
