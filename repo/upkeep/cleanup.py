"""Cleanup: deletes points and records on request, and reports them before and after."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from repo.core.deleting import delete_points, delete_records
from repo.core.handle import Handle
from repo.core.reserve import Reserve
from repo.errors import EngineMissing, HoldfastError, InvalidQuery, StoreBusy
from repo.inputs.arguments import LARGEST, check_count
from repo.queries.counts import SeriesExtent, extents
from repo.queries.selection import MOST_NAMES, Names, Selection, Time, chosen_names
from repo.repositories.records import RecordExtent, RecordRepository, RecordScope
from repo.repositories.sinks import SinkRepository
from repo.upkeep.holds import Holds, holds_of
from repo.upkeep.usage import measure

__all__ = ["Cleaned", "CleanupScope", "cleanup"]

log = logging.getLogger("holdfast.cleaning")

_LEDGER_NAMES = 20


@dataclass(frozen=True, slots=True)
class Cleaned:
    """The data that a cleanup deleted, or would delete (dry run)."""

    dry_run: bool
    points: int | None = 0
    """None if the columns were unavailable. The delete is durable; the ledger counts its points when it is applied."""
    unsent_points: int | None = 0
    """How many of the points were not confirmed by every sink; None if there is no sink, or if it is unknown."""
    records: int = 0
    """The records. All of them are unsent, because a sent record is removed at once."""
    held_points: int | None = 0
    """Selected points that are kept, because sinks that hold have not confirmed them; None if it is unknown."""
    held_by: tuple[str, ...] = ()
    """The sinks that hold, if any points are kept for them."""
    bytes: int | None = 0
    """An estimate of their size in the files; None if it is unknown."""
    first_us: int | None = None
    last_us: int | None = None
    series: tuple[SeriesExtent, ...] = ()
    """The points by series, counted before the deletion."""
    sources: tuple[RecordExtent, ...] = ()
    """The records by source."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values; `holdfast --json cleanup` prints it, with `shrunk`."""
        series, sources = ([row._asdict() for row in rows] for rows in (self.series, self.sources))
        return {**asdict(self), "series": series, "sources": sources}


@dataclass(frozen=True, slots=True)
class CleanupScope:
    """The selected points and records; None for no points, or no records."""

    points: Selection | None
    records: RecordScope | None
    why: Mapping[str, Any]
    """The caller's arguments that select the records; for the ledger."""
    even_unsent: bool = False
    """Whether points that a sink holds are deleted, too."""

    @classmethod
    def of(
        cls,
        handle: Handle,
        *,
        points: bool,
        records: bool,
        sensor_id: Names,
        metric_name: Names,
        source: Names,
        start: Time,
        end: Time,
        min_retries: int | None,
        everything: bool,
        even_unsent: bool,
    ) -> CleanupScope:
        """Check a caller's arguments; raises `InvalidQuery` for a selection that contradicts itself or is missing."""
        if not points and not records:
            raise InvalidQuery("neither points nor records are selected; set points or records")
        if not points and (sensor_id is not None or metric_name is not None):
            raise InvalidQuery("sensor_id and metric_name select points; set points, or leave them out")
        if not records and (source is not None or min_retries is not None):
            raise InvalidQuery("source and min_retries select records; set records, or leave them out")
        if min_retries is not None:
            min_retries = check_count(min_retries, "min_retries", -LARGEST)
        source = Selection.of(source, None).sensor_id
        in_time = start is not None or end is not None
        for what, wanted, chosen in (
            ("points", points, in_time or sensor_id is not None or metric_name is not None),
            ("records", records, in_time or source is not None or min_retries is not None),
        ):
            if wanted and not chosen and not everything:
                raise InvalidQuery(
                    f"this would delete all {what}; select some, or confirm with everything=True (--all)"
                )
        selection = replace(handle.select(sensor_id, metric_name, start, end), reason="cleanup")
        if not records:
            return cls(selection, None, {}, even_unsent)
        start_s, end_s = (None if us is None else us / 1e6 for us in (selection.start_us, selection.end_us))
        sources = _sources(handle, source)
        named: object = source if source is None or isinstance(source, str) else list(source)
        if isinstance(named, list) and len(named) > _LEDGER_NAMES:
            named = "a list"
        why = {"source": named, "start_s": start_s, "end_s": end_s, "min_retries": min_retries}
        return cls(
            selection if points else None,
            RecordScope(sources, start_s, end_s, min_retries),
            {name: value for name, value in why.items() if value is not None},
            even_unsent,
        )


def cleanup(handle: Handle, scope: CleanupScope, *, dry_run: bool) -> Cleaned:
    """See `Store.cleanup`."""
    holds = Holds(()) if scope.even_unsent or scope.points is None else holds_of(handle)
    parts = [] if scope.points is None else holds.released(scope.points)
    with Reserve(handle.files, read_only=handle.columns.read_only).released():
        if dry_run:
            return _counted(handle, scope, parts, holds)[0]
        return _dropped(handle, scope, parts, holds)


def _counted(
    handle: Handle, scope: CleanupScope, parts: list[Selection], holds: Holds
) -> tuple[Cleaned, dict[str, int]]:
    """Count the selected points and records, and the points that limits of holds release, by sink.

    Raises `StoreBusy`, `EngineMissing`.
    """
    series: list[SeriesExtent] = []
    undelivered: dict[str, int] = {}
    point_bytes = held = 0
    if scope.points is not None:
        with handle.metadata.read() as connection:
            sinks = SinkRepository(connection).list()
        sent_through = min((sink.confirmed_seq for sink in sinks), default=None)
        with handle.reading("counting what a cleanup drops") as (connection, known):
            series = _merged(extents(connection, part, known, sent_through) for part in parts)
            if holds.holds:
                chosen = extents(connection, scope.points, known, sent_through)
                held = sum(one.points for one in chosen) - sum(one.points for one in series)
                undelivered = holds.undelivered(connection, parts, known)
            stored = sum(summary.points for summary in known.values())
        if series:
            used_bytes = measure(handle, inside=True).columns_used_bytes
            point_bytes = used_bytes * sum(one.points for one in series) // max(1, stored)
    sources = _record_extents(handle, scope.records)
    spans = [(one.first_us, one.last_us) for one in series] + [(one.first_us, one.last_us) for one in sources]
    times = [us for span in spans for us in span if us is not None]
    counted = Cleaned(
        points=sum(one.points for one in series),
        unsent_points=None
        if any(one.unsent is None for one in series)
        else sum(one.unsent or 0 for one in series),
        records=sum(one.records for one in sources),
        held_points=held,
        held_by=holds.sinks if held else (),
        bytes=point_bytes + sum(one.bytes for one in sources),
        first_us=min(times, default=None),
        last_us=max(times, default=None),
        series=tuple(series),
        sources=tuple(sources),
        dry_run=True,
    )
    return counted, undelivered


def _merged(parts: Iterable[list[SeriesExtent]]) -> list[SeriesExtent]:
    """Add the counts of the parts of a selection, by series, in order of names."""
    found: dict[tuple[str, str], SeriesExtent] = {}
    for one in (extent for part in parts for extent in part):
        pair = (one.sensor_id, one.metric_name)
        other = found.get(pair)
        if other is None:
            found[pair] = one
            continue
        found[pair] = SeriesExtent(
            *pair,
            one.points + other.points,
            None if one.unsent is None or other.unsent is None else one.unsent + other.unsent,
            min(one.first_us, other.first_us),
            max(one.last_us, other.last_us),
        )
    return [found[pair] for pair in sorted(found)]


def _dropped(handle: Handle, scope: CleanupScope, parts: list[Selection], holds: Holds) -> Cleaned:
    """Delete the selected points and records."""
    before = None
    undelivered: dict[str, int] = {}
    uncounted: HoldfastError | None = None
    try:
        before, undelivered = _counted(handle, scope, parts, holds)
    except (StoreBusy, EngineMissing) as error:
        uncounted = error
    times: list[int | None] = []
    dropped = 0
    if scope.records is not None:
        fallen = delete_records(handle, [(scope.records, "cleanup", scope.why)])
        dropped = fallen.records
        times += [fallen.first_us, fallen.last_us]
    lost: int | None = 0
    if parts:
        holds.note(handle, undelivered)
        deletes = [delete_points(handle, part) for part in parts]
        lost = None
        try:
            handle.flush("cleanup")
        except (StoreBusy, EngineMissing) as error:
            log.warning("the deletion is recorded, and is applied at the next flush: %s", error)
            uncounted = None  # for the same reason
        else:
            losses = [loss for written in deletes for loss in handle.losses_by(written)]
            lost = sum(loss.dropped or 0 for loss in losses)
            times += [us for loss in losses for us in (loss.first_us, loss.last_us)]
    if uncounted is not None:
        log.warning("the selected data could not be counted before it was deleted: %s", uncounted)
    known = [us for us in times if us is not None]
    return Cleaned(
        points=lost,
        unsent_points=None if before is None else before.unsent_points,
        records=dropped,
        held_points=before.held_points if before is not None else None if holds.holds else 0,
        held_by=() if before is None else before.held_by,
        bytes=None if before is None else before.bytes,
        first_us=min(known, default=None),
        last_us=max(known, default=None),
        series=() if before is None else before.series,
        sources=() if before is None else before.sources,
        dry_run=False,
    )


def _record_extents(handle: Handle, scope: RecordScope | None) -> list[RecordExtent]:
    if scope is None:
        return []
    with handle.metadata.read() as connection:
        return RecordRepository(connection).extents(scope)


def _sources(handle: Handle, wanted: Names) -> tuple[str, ...] | None:
    """Return the sources that a name, a glob or a list selects."""
    if wanted is None:
        return None
    with handle.metadata.read() as connection:
        found = RecordRepository(connection).counts().by_source
    chosen = tuple(sorted(chosen_names(wanted, set(found))))
    if len(chosen) > MOST_NAMES:
        raise InvalidQuery(
            f"{len(chosen):,} sources are selected, and one call takes at most {MOST_NAMES:,}; select fewer"
        )
    return chosen
