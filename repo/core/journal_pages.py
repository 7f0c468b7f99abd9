"""Pages of the newest points from the journal alone, for deliveries: no lease, and so no waiting for other processes.

A page has the same points as one of the columns would have, or there is none. What becomes of a point in the columns
depends on what is stored, unless the point is newer than all others of its series. So a reader follows the journal and
knows the newest time of each series. It starts from the copy of the summaries that flush maintains. Everything else is
left to the columns: late and overwritten points, deletes, and loads that bypass the journal.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from math import isnan
from typing import Any

from sqlalchemy import Connection

from repo.core.codec import unpack
from repo.core.incoming import Incoming
from repo.core.metadata import MetadataDatabase
from repo.cursors import Span
from repo.formats.arrays.columns import Coded
from repo.inputs.batch import Batch
from repo.queries.seq_page import PAGE_CHARS, SeqPage
from repo.repositories.journal import DELETE, KEEP, POINTS, VOID, Entry, JournalRepository
from repo.repositories.series import LatestRepository
from repo.repositories.state import StateRepository

__all__ = ["JournalPages"]

MOST_SEQS = 65_536
"""The maximum number of seqs in a page, and in the rows that stay in the journal for pages."""

MOST_BYTES = MOST_SEQS * 28 + PAGE_CHARS
"""The maximum size of these rows. A point without texts takes up to 24 bytes."""

MOST_SERIES = 50_000
"""The maximum number of series whose newest times are kept, in about 15 MB. A store with more is read from the
columns."""

KEPT_US = 5_000_000
"""How long a row stays in the journal after it was written, if there are sinks, although it is in the columns."""

_Pair = tuple[str, str]


class JournalPages:
    """Follows the journal for one delivery. For one thread; takes a few hundred bytes per series.

    No transaction outlives a call.
    """

    def __init__(self, metadata: MetadataDatabase) -> None:
        self._metadata = metadata
        self._newest: dict[_Pair, int] | None = None
        """The newest time of each series in all writes through `_through`; None if it is unknown."""
        self._through = 0
        self._is_large = False

    def page(self, span: Span) -> SeqPage | None:
        """Return the points of a range of seqs; None if only the columns have them, or can say which they are.

        The range has to end where the journal ends, or ended a moment ago, and nothing past that end may have been
        delivered: writes past it do not change the page. Call it for each new end, because a range that it has
        passed is left to the columns.
        """
        if self._is_large:
            return None
        newest, self._newest = self._newest, None  # an interrupt may come before it is up to date
        with self._metadata.read() as connection:
            rows = None if newest is None else _rows(connection, Span(self._through + 1, span.last))
            if rows is None:
                state = StateRepository(connection).get()
                assert state is not None
                self._through = state.copied_through
                rows = _rows(connection, Span(self._through + 1, span.last))
                newest = None if rows is None else LatestRepository(connection).newest_times(MOST_SERIES + 1)
        if rows is None or newest is None:
            return None
        passed = self._through >= span.first
        incoming = _Incoming(newest, span)
        for row in rows:
            incoming.add(row)
        newest.update(incoming.newest)
        if len(newest) > MOST_SERIES:
            self._is_large = True
            return None
        self._newest, self._through = newest, max(self._through, span.last)
        points = None if passed else incoming.settled()
        return None if points is None else SeqPage(span, _columns(points), span.last)


class _Incoming:
    """The points of a range, and whether they are stored as they are, whatever is in the columns."""

    def __init__(self, newest: dict[_Pair, int], span: Span) -> None:
        self._before = newest
        self._span = span
        self._points = Incoming()
        self._is_certain = True
        self._keeps = False
        self.newest: dict[_Pair, int] = {}
        """The newest time of each series that the rows have."""

    def add(self, row: Entry) -> None:
        if row.kind in (POINTS, KEEP):
            first_seq = row.first_seq
            for batch in unpack(row.payload):
                self._add(batch, first_seq)
                first_seq += len(batch)
            self._keeps |= row.kind == KEEP
        elif row.kind == DELETE and row.seq >= self._span.first:
            self._is_certain = False

    def settled(self) -> Incoming | None:
        """Return the points with the values and seqs that every flush gives them; None if that depends."""
        if not self._is_certain:
            return None
        points = self._points
        writes = Counter(zip(points.batch.codes, points.batch.timestamps_us, strict=True))
        if max(writes.values(), default=0) <= 1:
            return points
        return None if self._keeps else points.netted(keep=False)

    def _add(self, batch: Batch, first_seq: int) -> None:
        skipped = self._span.first - first_seq
        if skipped > 0:
            self._note(batch.part(0, min(skipped, len(batch))), self._before)
            batch, first_seq = batch.part(min(skipped, len(batch)), len(batch)), self._span.first
        if len(batch):
            self._is_certain &= self._note(batch, self.newest)
            self._points.add(batch, first_seq)

    def _note(self, batch: Batch, newest: dict[_Pair, int]) -> bool:
        """Note the newest times, and return whether all points are newer than those before the range."""
        firsts: dict[int, int] = {}
        lasts: dict[int, int] = {}
        for code, us in zip(batch.codes, batch.timestamps_us, strict=True):
            if us < firsts.setdefault(code, us):
                firsts[code] = us
            if us > lasts.setdefault(code, us):
                lasts[code] = us
        is_newer = True
        for code, us in firsts.items():
            pair = batch.series[code]
            before = self._before.get(pair)
            is_newer &= before is None or us > before
            newest[pair] = max(lasts[code], newest.get(pair, lasts[code]))
        return is_newer


def _rows(connection: Connection, span: Span) -> list[Entry] | None:
    """Return the journal rows of a range; None if some are missing, there are too many, or some have no points."""
    if span.seqs > MOST_SEQS:
        return None
    rows: list[Entry] = []
    after, size = span.first - 1, 0
    for row in JournalRepository(connection).after(after, span.last):
        size += len(row.payload)
        known = row.kind in (POINTS, KEEP, DELETE) or (row.kind == VOID and not row.is_lost)
        if row.first_seq != after + 1 or not known or size > MOST_BYTES:
            return None
        after = row.seq
        rows.append(row)
    return rows if after >= span.last else None


def _columns(points: Incoming) -> list[Sequence[Any]]:
    """Return the points in the form in which the columns have them."""
    batch, size = points.batch, len(points)
    values = batch.values
    return [
        _coded([sensor for sensor, _ in batch.series], batch.codes),
        _coded([metric for _, metric in batch.series], batch.codes),
        batch.timestamps_us,
        [None if value != value else value for value in values] if any(map(isnan, values)) else values,
        list(map(batch.texts.get, range(size))),
        array("i", (batch.qualities,)) * size if isinstance(batch.qualities, int) else batch.qualities,
        list(map(batch.metadata.get, range(size))),
        points.seqs,
    ]


def _coded(names: Sequence[str], codes: Iterable[int]) -> Coded:
    """Return the names of rows, whose codes are places in `names`; a name may have several there."""
    places: dict[str, int] = {}
    of_code = [places.setdefault(name, len(places)) for name in names]
    return Coded(list(places), array("i", map(of_code.__getitem__, codes)))
