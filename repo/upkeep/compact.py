"""Compact: sorts the points on disk by series and time, slice by slice, and reports what it did."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from repo.core.compaction import LARGEST_SPAN, Compaction, Piece, is_sorted_by_key
from repo.core.handle import Handle
from repo.core.keep_open import kept_open
from repo.errors import counted
from repo.repositories import sorting
from repo.upkeep.usage import sizes_of

__all__ = ["Compacted", "compact"]

log = logging.getLogger("holdfast.compaction")


@dataclass(frozen=True, slots=True)
class Compacted:
    """What a compaction did, or would do (dry run). A slice is a span of about a million seqs."""

    dry_run: bool
    engine: str
    sorted_by_key: bool
    """Whether the engine keeps the points sorted by their key, as SQLite does, so that there is nothing to do."""
    through: int
    """The seq up to which points were considered."""
    sorted_slices: int
    """Slices whose points were sorted."""
    sorted_points: int
    noted_slices: int
    """Slices whose points arrived in order, which is only recorded."""
    noted_points: int
    skipped_slices: int
    """Slices that stay as they are, because their texts are too large to be sorted within DuckDB's memory limit."""
    skipped_points: int
    columns_before_bytes: int
    """The size of the column file and its log."""
    columns_after_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values; `holdfast --json compact` prints it."""
        return asdict(self)


def compact(
    handle: Handle, *, until: int | None, dry_run: bool, progress: Callable[[int, int], object]
) -> Compacted:
    """See `Store.compact`."""
    before = _bytes(handle)
    pieces: list[Piece] = []
    watermark = handle.flush("compacting")
    through = watermark if until is None else min(until, watermark)
    engine = handle.columns.backend.name
    sorted_by_key = is_sorted_by_key(handle)
    if not sorted_by_key:
        run = Compaction(handle)
        with kept_open(handle.columns):
            done, total = 0, _points_to_do(handle, through)
            progress(0, total)
            while (piece := _step(handle, run, through, dry_run=dry_run)) is not None:
                pieces.append(piece)
                done += piece.weight.rows
                progress(min(done, total), total)
    chosen = {action: [one for one in pieces if one.action == action] for action in ("sort", "note", "skip")}
    slices = {action: len(found) for action, found in chosen.items()}
    points = {action: sum(one.weight.rows for one in found) for action, found in chosen.items()}
    if slices["sort"] and not dry_run:
        log.info("sorted %s in %s", counted(points["sort"], "point"), counted(slices["sort"], "slice"))
    return Compacted(
        dry_run=dry_run,
        engine=engine,
        sorted_by_key=sorted_by_key,
        through=through,
        sorted_slices=slices["sort"],
        sorted_points=points["sort"],
        noted_slices=slices["note"],
        noted_points=points["note"],
        skipped_slices=slices["skip"],
        skipped_points=points["skip"],
        columns_before_bytes=before,
        columns_after_bytes=_bytes(handle),
    )


def _step(handle: Handle, run: Compaction, through: int, *, dry_run: bool) -> Piece | None:
    with handle.columns.alone("compacting") as opened:
        if is_sorted_by_key(handle):  # another process converted the columns
            return None
        return run.step(opened, through, dry_run=dry_run)


def _points_to_do(handle: Handle, through: int) -> int:
    """Return the points that belong to no sorted slice, for the progress."""
    with handle.reading("counting the points to compact") as (connection, _):
        gaps = handle.flusher.order.gaps(LARGEST_SPAN.first, through, skipped=True)
        return sum(sorting.count(connection, gap) for gap in gaps)


def _bytes(handle: Handle) -> int:
    return sum(sizes_of(handle.files.column_files()).values())
