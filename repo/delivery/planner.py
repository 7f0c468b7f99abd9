"""The next batch to one sink: a part of a refused one, a point to send again, or what the lane whose turn it is has.

It reads the store, but commits and sends nothing. What it remembers makes the next batch a better one; if it forgets
all of that, the batches are still right.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from array import array
from collections.abc import Callable

from repo.cursors import Cursor, Span
from repo.delivery.doubts import Doubts
from repo.delivery.lanes import BATCH_ROWS, LaneWork, Turns, split
from repo.delivery.limits import AS_COLUMNS, AS_TEXT, BatchLimits
from repo.delivery.protocol import Lane, RecordItem
from repo.delivery.rate import Speed, batch_bytes
from repo.delivery.reading import Cut, Reader
from repo.delivery.sending import Sending
from repo.repositories.attempts import Attempt
from repo.repositories.sinks import SinkInfo
from repo.store.deliveries import Delivery
from repo.store.store import Store

__all__ = ["Planner"]

RECORDS = 1_000
"""The maximum number of records in a batch."""

EMPTY_S = 10.0
"""How often a range without points is confirmed at the end of the backlog. Otherwise a sink whose filter leaves out
much would do so at every poll, and each time send an exact destination an empty batch."""

_PROBE_ROWS = 100
"""The rows of a batch to an exact sink that refused too many items: the items that it refuses go into quarantine,
too."""

_EMPTY_PAGES = 8
"""How many pages without points of the sink are read for one batch."""

_GONE = "it is no longer stored, so it cannot be sent again"
_FILTERED = "the filter of the sink no longer selects its series, so it is not sent again"


class Planner:
    """Plans for one sink, in one thread."""

    def __init__(
        self,
        store: Store,
        delivery: Delivery,
        *,
        batch_points: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._delivery = delivery
        self._batch_points = batch_points
        self._limits = AS_TEXT
        self._clock = clock
        self._speed = Speed()
        self._turns = Turns()
        self._reader = Reader(store)
        self._empty_s = -EMPTY_S
        self.is_draining = False
        """Whether the caller waits for everything to be confirmed, so nothing may be deferred."""
        self.forget()

    def limit(self, limits: BatchLimits) -> None:
        """Plan batches for another sink, with at most `batch_points` points if the caller has set that."""
        points = limits.points if self._batch_points is None else self._batch_points
        self._limits = limits._replace(points=points)
        self._rows = points

    def follow(self, info: SinkInfo) -> None:
        """Plan for a sink with other settings from now on."""
        self._reader = Reader(self._store, info.filter, self._clock)
        self._turns = Turns(info.lanes.share)
        self.forget()

    def forget(self) -> None:
        """Forget everything except the speed and the turns, as a restart does."""
        self._suspects: tuple[Lane, Span] | None = None
        self.was_retry = False
        """Whether the last batch was a point that an operator wanted to be sent again."""
        self._expected: tuple[Cursor, ...] = ()
        self._rows = self._limits.points
        self._records = RECORDS
        self._reader.drop()

    # --- the next batch --------------------------------------------------------------------------------

    def next(
        self,
        info: SinkInfo,
        cursor: Cursor,
        *,
        takes_records: bool,
        bytes_per_s: int | None,
        doubts: Doubts,
    ) -> Sending | None:
        """Return the next batch, with an attempt that is not recorded yet; None if nothing is left.

        `cursor` is the sink's, with the batch that it has answered. That one is confirmed in the store already if it
        had records or was a retry, or what it had would be found once more. While items are in doubt
        (`repo.delivery.doubts`), the next batch is another item, alone.
        """
        if info.cursor not in self._expected:  # moved by hand, perhaps over newer values of what is in a page
            self._reader.drop()
        most_bytes = batch_bytes(self._limits.bytes, bytes_per_s)
        last_seq = self._store.sinks.last_seq()
        if doubts:
            found = self._alone(info, cursor, last_seq, takes_records, doubts)
        else:
            found = self._regular(info, cursor, last_seq, takes_records, most_bytes)
        self._expected = (info.cursor, cursor)
        if found is not None and found.lane is not Lane.RECORDS:
            self._expected = (*self._expected, cursor.confirm(*found.span))
        return found

    def again(self, sending: Sending, *, stored: bool) -> Sending:
        """Return the same batch for one more try, with the points that its range has now.

        If the filter was widened since it was cut, these may be far more points, and the batch ends sooner. Its attempt
        then ends there, too, unless the destination has `stored` all of it.
        """
        last_seq, cut = self._store.sinks.last_seq(), sending.cut
        attempt = sending.attempt._replace(tries=sending.attempt.tries + 1)
        if attempt.confirms_seqs:
            if cut is None or last_seq != sending.last_seq:
                cut = self._reader.again(
                    Span(attempt.first_seq, attempt.last_seq), last_seq, self._roomy(attempt)
                )
            if not stored:
                attempt = attempt._replace(last_seq=cut.span.last, points=cut.points, checksum=_checksum(cut))
        return Sending(attempt, cut, last_seq, sending.records, sending.emptied)

    def _roomy(self, attempt: Attempt) -> BatchLimits:
        """Return limits that a batch which was sent before does not exceed, unless the filter was widened.

        Its bytes were counted roughly, perhaps under other limits.
        """
        most_bytes = 4 * max(self._limits.bytes, AS_COLUMNS.bytes)
        return self._limits._replace(points=max(attempt.points, self._limits.points), bytes=most_bytes)

    def _regular(
        self, info: SinkInfo, cursor: Cursor, last_seq: int, takes_records: bool, most_bytes: int
    ) -> Sending | None:
        was_retry, self.was_retry = self.was_retry, False
        found = self._suspected(cursor, last_seq, most_bytes)
        if found is None and not was_retry:
            found = self._retried(last_seq)
        if found is None:
            found = self._by_turn(info, cursor, last_seq, takes_records, most_bytes)
        if found is None and was_retry:
            found = self._retried(last_seq)
        return found

    def _alone(
        self, info: SinkInfo, cursor: Cursor, last_seq: int, takes_records: bool, doubts: Doubts
    ) -> Sending | None:
        """Return a single item that is not in doubt."""
        gap = doubts.gap(cursor, last_seq)
        if gap is not None:
            self._rows = 1
            return self._of_cut(Lane.LIVE, LaneWork(gap), last_seq, AS_TEXT.bytes)
        if not info.records or not takes_records:
            return None
        known = doubts.record_ids
        for record in self._delivery.records(len(known) + 1, AS_TEXT.bytes):
            if record.record_id not in known:
                attempt = self._new_attempt(Span(0, 0), 1, "", Lane.RECORDS)
                return Sending(attempt, None, last_seq, [RecordItem(*record)])
        return None

    def _suspected(self, cursor: Cursor, last_seq: int, most_bytes: int) -> Sending | None:
        """Return the next part of a batch that was refused as a whole."""
        if self._suspects is None:
            return None
        lane, span = self._suspects
        for gap in cursor.gaps(span.last):
            if gap.last >= span.first:
                part = Span(max(gap.first, span.first), gap.last)
                return self._of_cut(lane, LaneWork(part), last_seq, most_bytes)
        self._suspects, self._rows = None, self._limits.points
        return None

    def _retried(self, last_seq: int) -> Sending | None:
        """Return the next point that an operator wants to be sent again. Every second batch is one, between new
        readings."""
        while (seq := self._delivery.next_retry()) is not None:
            cut = self._reader.again(Span(seq, seq), last_seq, self._limits)
            kept = None if cut.points else self._why_kept(seq)
            if kept is None:
                self.was_retry = True
                attempt = self._new_attempt(cut.span, cut.points, _checksum(cut), Lane.BACKFILL)
                return Sending(attempt, cut, last_seq)
            self._delivery.keep_retry(seq, kept)
        return None

    def _why_kept(self, seq: int) -> str | None:
        """Return why a point that is not read under its seq stays in quarantine; None if it was overwritten."""
        item = self._delivery.quarantined_point(seq)
        if item is None or item.sensor_id is None or item.metric_name is None:
            return None
        if not self._reader.selects(item.sensor_id, item.metric_name):
            return _FILTERED
        is_stored = self._store.points.has(item.sensor_id, item.metric_name, item.timestamp_us)
        return None if is_stored else _GONE

    def _by_turn(
        self, info: SinkInfo, cursor: Cursor, last_seq: int, takes_records: bool, most_bytes: int
    ) -> Sending | None:
        batch = min(self._limits.points, BATCH_ROWS)
        works = split(cursor, last_seq, batch=batch, two=info.lanes.two, order=info.lanes.order)
        records: list[RecordItem] = []
        if info.records and takes_records:
            most = min(most_bytes, AS_TEXT.bytes)
            records = [RecordItem(*record) for record in self._delivery.records(self._records, most)]
        waiting = [*works, Lane.RECORDS] if records else list(works)
        if not waiting:
            return None
        lane = self._turns.next(waiting)
        if len(waiting) > 1 or lane is Lane.BACKFILL:
            most_bytes = self._speed.limit(most_bytes)
        if lane is Lane.RECORDS:
            attempt = self._new_attempt(Span(0, 0), len(records), "", lane)
            return Sending(attempt, None, last_seq, records, emptied=len(records) < self._records)
        sending = self._of_cut(lane, works[lane], last_seq, most_bytes)
        if len(waiting) == 1 and not sending.attempt.points and sending.span.last == last_seq:
            if not self.is_draining and self._clock() - self._empty_s < EMPTY_S:
                return None
            self._empty_s = self._clock()
        return sending

    def _of_cut(self, lane: Lane, work: LaneWork, last_seq: int, most_bytes: int) -> Sending:
        limits = self._limits._replace(points=self._rows, bytes=most_bytes)
        cut = self._reader.cut(lane, work, last_seq, limits)
        for _ in range(_EMPTY_PAGES):
            rest = _rest(work, cut.span)
            if cut.points or rest.seqs < 1:
                break
            more = self._reader.cut(lane, LaneWork(rest, work.from_end), last_seq, limits)
            both = Span(min(cut.span.first, more.span.first), max(cut.span.last, more.span.last))
            cut = more._replace(span=both)
        attempt = self._new_attempt(cut.span, cut.points, _checksum(cut), lane)
        return Sending(attempt, cut, last_seq, emptied=cut.span == work.gap)

    def _new_attempt(self, span: Span, points: int, checksum: str, lane: Lane) -> Attempt:
        token = uuid.uuid4().hex
        return Attempt(span.first, span.last, points, checksum, token, lane.value, 1, self._store.now_us())

    # --- what became of it -----------------------------------------------------------------------------

    def sent(self, sending: Sending) -> None:
        """Count a batch that the sink has stored."""
        if not sending.attempt.confirms_seqs and not sending.records:
            return  # it had nothing, so it says nothing about what the sink takes
        self._turns.sent(sending.lane, sending.bytes, emptied=sending.emptied)
        if sending.records:
            self._records = min(RECORDS, 2 * self._records)
        elif self._suspects is not None or self._rows < self._limits.points:
            self._rows = min(self._limits.points, 2 * self._rows)

    def took(self, sending: Sending, seconds: float) -> None:
        """Measure the link by a batch of points."""
        self._speed.note(0 if sending.cut is None else sending.cut.bytes, seconds)

    def halve(self, sending: Sending, items: int) -> Sending:
        """Send a batch of at least two items, which was refused as a whole, in halves; returns the first of them.

        The half keeps the token of the batch: an exact destination that stores the whole batch late then recognizes
        the half as stored.
        """
        half = items // 2
        if sending.records:
            self._records = half
            attempt = sending.attempt._replace(points=half)
            return Sending(attempt, None, sending.last_seq, sending.records[:half])
        assert sending.cut is not None
        self._suspects, self._rows = (sending.lane, sending.span), half
        cut = sending.cut.first(half)
        attempt = sending.attempt._replace(last_seq=cut.span.last, points=cut.points, checksum=_checksum(cut))
        return Sending(attempt, cut, sending.last_seq)

    def probe(self) -> None:
        """Make the next batch small."""
        self._rows = min(self._limits.points, _PROBE_ROWS)


def _rest(work: LaneWork, span: Span) -> Span:
    if work.from_end:
        return Span(work.gap.first, span.first - 1)
    return Span(span.last + 1, work.gap.last)


def _checksum(cut: Cut) -> str:
    """Return the SHA-256 of the seqs, which identify the points and their values."""
    return hashlib.sha256(array("q", cut.columns[-1])).hexdigest()
