"""Importing: readings of CSV files into an open store, checked, a batch at a time. Never reads a cell itself."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from repo.errors import EngineMissing, HoldfastError, InvalidPoint, Refusal, StoreBusy
from repo.exchange.csvfile import Chunk, CsvLayout, Rejected, read_csv
from repo.exchange.csvsource import CsvSource
from repo.repositories.points import Written
from repo.store.store import Store
from repo.values import KIND_NUMBER, KIND_TEXT, check_rows

__all__ = ["Imported", "import_csv"]

log = logging.getLogger("holdfast.importing")

APPLY_POINTS = 1_000_000
"""After so many points the journal is applied to the columns, so that it does not hold a whole long import."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of one file."""

    file: str
    points: int
    """Acknowledged: durable, whatever happens next."""
    rejected: int
    """Lines and cells that gave no point; `on_rejected` was told each."""
    no_reading: int
    """Cells marked as missing: no point in a wide file, a point without a reading in a long one."""


def import_csv(
    store: Store,
    sources: Sequence[CsvSource],
    layout: CsvLayout,
    *,
    strict: bool = False,
    on_progress: Callable[[CsvSource, int], None] = lambda _source, _readings: None,
    on_rejected: Callable[[CsvSource, Rejected], None] = lambda _source, _rejected: None,
) -> list[Imported]:
    """Write the readings of CSV files, in their order, and return what became of each, when all are durable.

    What cannot be stored is rejected and the rest written; with `strict` every file is checked first, and
    nothing is written if anything is rejected (`points` is 0 everywhere). In memory there are a few batches
    of 10,000 readings. `on_progress` is told how many readings of a source were taken so far.

    Afterwards the journal is applied to the columns, unless another process keeps them. An error leaves what
    was acknowledged, and has a note that says how many points those are; importing the same files again is
    harmless, for equal points change nothing.
    """
    passes = _Passes(store, layout, on_progress, on_rejected)
    if strict:
        checked = [passes.run(source, passes.check, again=True) for source in sources]
        if any(file.rejected for file in checked):
            return checked
    try:
        written = [passes.run(source, passes.write, again=False) for source in sources]
    except HoldfastError as error:
        passes.abandon()
        error.add_note(
            f"{passes.acknowledged:,} points of this import were acknowledged before that, and stay; importing "
            "again from the start is harmless"
        )
        raise
    passes.apply()
    return written


class _Passes:
    """Passes over files with the store's checks; holds the writes that are under way."""

    def __init__(
        self,
        store: Store,
        layout: CsvLayout,
        on_progress: Callable[[CsvSource, int], None],
        on_rejected: Callable[[CsvSource, Rejected], None],
    ) -> None:
        self._store = store
        self._layout = layout
        self._on_progress = on_progress
        self._on_rejected = on_rejected
        self._texts = frozenset(layout.text_metrics)
        self._other_kind = {
            (info.sensor_id, info.metric_name): info.kind
            for info in store.series.list()
            if info.kind not in (None, self._kind_of(info.metric_name))
        }
        self._under_way: deque[Future[Written]] = deque()
        self._unapplied = 0
        self._columns_to_be_had = True
        self.acknowledged = 0

    def run(self, source: CsvSource, take: Callable[[list[Any]], None], *, again: bool) -> Imported:
        """Pass over one file; `take` gets rows that it may refuse with `InvalidPoint`, listing all bad ones."""
        before, taken, rejected, no_reading = self.acknowledged, 0, 0, 0
        with source.opened(again=again) as stream:
            for chunk in read_csv(stream, self._layout):
                self._sift(chunk, self._mismatches(chunk.rows))
                try:
                    take(chunk.rows)
                except InvalidPoint as refused:
                    self._sift(chunk, refused.refusals)
                    take(chunk.rows)
                for one in sorted(chunk.rejected, key=lambda rejected: rejected.line):
                    self._on_rejected(source, one)
                taken += len(chunk.rows)
                rejected += len(chunk.rejected)
                no_reading += chunk.missing + sum(row[3] is None for row in chunk.rows)
                self._on_progress(source, taken)
        self._settle(0)
        return Imported(source.name, self.acknowledged - before, rejected, no_reading)

    def check(self, rows: list[Any]) -> None:
        """Refuse what the store would refuse, and write nothing."""
        check_rows(rows, accept_bool=self._store.settings.accept_bool, now_us=0)

    def write(self, rows: list[Any]) -> None:
        """Send rows on their way into the journal."""
        if rows:
            self._under_way.append(self._store.points.submit(rows))
            self._settle(_UNDER_WAY)
        if self._unapplied >= APPLY_POINTS:
            self.apply()

    def apply(self) -> None:
        """Apply the journal to the columns, if they are to be had."""
        self._settle(0)
        self._unapplied = 0
        if not self._columns_to_be_had:
            return
        try:
            self._store.checkpoint()
        except (StoreBusy, EngineMissing) as error:
            self._columns_to_be_had = False
            log.warning("the points are safe in the journal, and not yet in the columns: %s", error)

    def abandon(self) -> None:
        """Wait for what is under way, after an error, so that the count is right."""
        for future in self._under_way:
            if future.exception() is None:
                self.acknowledged += future.result().accepted
        self._under_way.clear()

    def _settle(self, left: int) -> None:
        """Wait until at most `left` writes are under way; raises the error of the first that failed."""
        while len(self._under_way) > left:
            written = self._under_way.popleft().result()
            self.acknowledged += written.accepted
            self._unapplied += written.accepted

    def _mismatches(self, rows: list[Any]) -> list[Refusal]:
        """Return what does not fit the kind of its series; the store would refuse the whole batch for it."""
        if not self._other_kind:
            return []
        return [
            Refusal(index, "value", f"the series holds {kind} values, and this is a {self._kind_of(row[1])}")
            for index, row in enumerate(rows)
            if row[3] is not None and (kind := self._other_kind.get((row[0], row[1]))) is not None
        ]

    def _kind_of(self, metric: str) -> str:
        return KIND_TEXT if metric in self._texts else KIND_NUMBER

    @staticmethod
    def _sift(chunk: Chunk, refusals: Iterable[Refusal]) -> None:
        """Move rows from the good ones to the rejected ones."""
        refusals = list(refusals)
        if not refusals:
            return
        chunk.rejected += chunk.rejections(refusals)
        bad = {refusal.row for refusal in refusals}
        good = [index for index in range(len(chunk.rows)) if index not in bad]
        chunk.rows = [chunk.rows[index] for index in good]
        chunk.lines = [chunk.lines[index] for index in good]


_UNDER_WAY = 8
"""Batches that wait for their commit, so that reading and committing overlap."""
