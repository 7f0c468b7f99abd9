"""The delivery to one sink: records an attempt, sends it, and confirms it. Owns the order of these, never a thread.

The attempt, a range of seqs and a new token, is committed before anything is sent. The range stays the same until the
sink has answered, also across restarts, and its points are read again for each try, unless nothing was written since.
So a batch that was stored without an answer is recognized by its token. Confirming a batch and recording the next one
is one commit. After a crash or an interrupt at any point, the row of the attempt says what may have been sent.
"""

from __future__ import annotations

import hashlib
import logging
import struct
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from repo.cursors import Cursor, Span
from repo.delivery.chain import REMEDIES
from repo.delivery.lanes import BATCH_ROWS, Turns, Work, split
from repo.delivery.protocol import Batch, Item, Lane, Outcome, RecordItem, Sink, Tokens
from repo.delivery.rate import Bucket, Speed, batch_bytes
from repo.delivery.reading import BATCH_BYTES, Cut, Reader
from repo.delivery.refusals import Refusals, check_rows, quarantined
from repo.delivery.steps import Backoff, Progress, Step
from repo.errors import (
    EngineMissing,
    FlushFailed,
    HoldfastError,
    InvalidSettings,
    MissingExtra,
    SinkHalted,
    SinkRefused,
    SinkUnreachable,
    StoreBusy,
    StoreForked,
    StoreFull,
    counted,
)
from repo.repositories.attempts import Attempt
from repo.repositories.quarantine import Quarantined
from repo.repositories.sinks import SinkInfo, SinkState, Totals
from repo.store.deliveries import Identity
from repo.store.store import Store
from repo.times import to_datetime

__all__ = ["Worker"]

log = logging.getLogger("holdfast.delivery")

PROBE_S = 60.0
"""How often a sink that rejects everything is tried again."""

PAUSE_S = 1.0
"""How often a paused sink is looked at, and how long a limit is waited for at a time."""

RECORDS = 1_000
"""The most records of a batch."""

_PROBE_ROWS = 100
"""The rows of a batch to an exact sink that refused too many items: those that it refuses go into quarantine, too."""

EMPTY_S = 10.0
"""How often a range without points is confirmed at the end of the backlog: a sink whose filter leaves much out would
otherwise do so, and an exact one be asked, with every poll."""

_EMPTY_PAGES = 8
"""How many pages without points of the sink are read for one batch."""

_GONE = "it is no longer stored, so it cannot be sent again"

_NO_COLUMNS: Sequence[Sequence[Any]] = ((),) * 8

_STORE_ERRORS = (StoreBusy, StoreFull, EngineMissing, FlushFailed)
"""Errors of the store that may pass."""


@dataclass(slots=True)
class _Sending:
    """An attempt that is recorded and not confirmed yet."""

    attempt: Attempt
    cut: Cut | None
    """Its points, as they were at `last_seq`; None after a restart."""
    last_seq: int
    records: Sequence[RecordItem] = ()
    """Empty for points, and after a restart."""
    emptied: bool = False
    """Whether its lane had nothing else when it was cut."""

    @property
    def lane(self) -> Lane:
        return Lane(self.attempt.lane)

    @property
    def span(self) -> Span:
        return Span(self.attempt.first_seq, self.attempt.last_seq)


@dataclass(slots=True)
class _Answered:
    """A batch that the sink has stored, but that is not confirmed in the store."""

    sending: _Sending
    totals: Totals
    refused: Sequence[Quarantined] = ()
    records: Sequence[tuple[str, str]] = ()
    """The ids and data of the records that it has stored."""

    @property
    def facts(self) -> tuple[Attempt, Totals, Sequence[Quarantined], Sequence[tuple[str, str]]]:
        """The arguments of the confirmation."""
        return self.sending.attempt, self.totals, self.refused, self.records


class _Failed(Exception):
    """A sink raised an error."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class Worker:
    """Delivers to one sink. For one thread; the store may be used by others.

    `make_sink` returns the sink for a row of the store; it is called again when the row's target or options change.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        make_sink: Callable[[SinkInfo], Sink],
        *,
        backoff: Backoff,
        poll_s: float,
        batch_points: int = BATCH_ROWS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._store = store
        self._delivery = store.sinks.delivery(name)
        self._make_sink = make_sink
        self._backoff = backoff
        self._poll_s = poll_s
        self._most_rows = batch_points
        self._clock = clock
        self._bucket = Bucket(clock())
        self._speed = Speed()
        self._turns = Turns()
        self._settings: tuple[object, ...] = ()
        self._identity = ("", 0)
        self._sink: Sink | None = None
        self._reader = Reader(store)
        self._refusals = Refusals(name)
        self._failures = 0
        self._trouble = ""
        self._empty_s = -EMPTY_S
        self.is_draining = False
        """Whether the caller waits for everything to be confirmed, so that nothing is put off."""
        self._forget()

    def _forget(self) -> None:
        """Forget everything but what the store has committed, as a restart does."""
        self._is_open = False
        self._sending: _Sending | None = None
        self._answered: _Answered | None = None
        self._suspects: tuple[Lane, Span] | None = None
        self._was_retry = False
        self._expected: tuple[Cursor, ...] = ()
        self._rows = self._most_rows
        self._records = RECORDS
        self._reader.drop()

    # --- what the owner calls --------------------------------------------------------------------------

    def step(self) -> Step:
        """Send the next batch, or the last one again; never waits between attempts.

        Errors of the sink, and those of the store that may pass, are in the step. Others are raised, and leave the
        committed state as it was: the next step continues from there. Raises `InvalidQuery` if the sink was removed.
        """
        try:
            return self._step()
        except _STORE_ERRORS as error:
            return self._busy(error)
        except SinkUnreachable as error:  # of the store: its identity was changed just now
            self._forget()
            return Step(Progress.BUSY, 0.0, error=error)
        except BaseException:  # also an interrupt: only the store knows what was committed
            self._forget()
            raise

    def settle(self) -> None:
        """Confirm the batch that the sink has answered, if there is one. Call it before waiting."""
        answered = self._answered
        if answered is None:
            return
        attempt, totals, refused, records = answered.facts
        try:
            self._delivery.confirm(attempt, refused, totals, records)
        except _STORE_ERRORS:
            raise
        except BaseException:  # also an interrupt: only the store knows what was committed
            self._forget()
            raise
        self._answered = None

    def close(self) -> None:
        """Confirm what was answered, and disconnect. The next step connects again."""
        try:
            self.settle()
        finally:
            self._disconnect()

    # --- a step ----------------------------------------------------------------------------------------

    def _step(self) -> Step:
        info, identity = self._delivery.position_and_identity()
        if info.state in ("paused", "forked"):
            self.close()
            self._forget()
            if info.state == "paused":
                return Step(Progress.PAUSED, PAUSE_S)
            return Step(Progress.FORKED, PAUSE_S, error=StoreForked(info.last_error or ""))
        if not self._follow(info, identity):
            return self._step()
        limit = None if info.rate is None else info.rate.at(self._store.now_us())
        wait_s = self._bucket.wait_s(self._clock(), limit)
        if wait_s > 0:
            self.settle()
            return Step(Progress.LIMITED, min(wait_s, PAUSE_S))
        try:
            if not self._is_open and not self._open(info):
                return self._step()
            assert self._sink is not None
            sink, sending = self._sink, self._sending
            committed = self._answered.sending.attempt.token if self._answered else info.token
            if sending is None:
                sending = self._next(info, sink, batch_bytes(BATCH_BYTES, limit))
            else:
                self._again(sending)
            if sending is None:
                self.settle()
                self._worked(info)
                return Step(Progress.IDLE, self._poll_s)
            return self._sent(sink, sending, committed)
        except _Failed as failed:
            return self._failed(failed.error)

    def _follow(self, info: SinkInfo, identity: Identity) -> bool:
        """Take over what was changed in the store: settings, identity, and the cursor by hand.

        Returns False if it confirmed a batch before that, so that `info` is outdated.
        """
        settings = (info.target, info.options, info.filter, info.lanes)
        epoch, store_id = identity
        if settings != self._settings or (store_id, epoch) != self._identity:
            if self._answered is not None:
                self.settle()
                return False
            self._disconnect()
            self._forget()
            self._sink = None
            self._settings, self._identity = settings, (store_id, epoch)
            self._reader = Reader(self._store, info.filter, self._clock)
            self._turns = Turns(info.lanes.share)
        kept = self._sending or (self._answered.sending if self._answered else None)
        if (kept.attempt.token if kept else None) != (info.attempt.token if info.attempt else None):
            self._sending = self._answered = None
            if info.attempt is not None:
                self._sending = _Sending(info.attempt, None, -1)
        return True

    def _open(self, info: SinkInfo) -> bool:
        """Open the sink; False if what it holds changed the state of the delivery."""
        with _errors_of_the_sink():
            if self._sink is None:
                self._sink = self._make_sink(info)
            held = self._sink.open(*self._identity)
            exact = self._sink.exact
            if exact:
                _refuse_forks(info, held)
        self._is_open = True
        sending = self._sending
        if sending is None or sending.lane is not Lane.RECORDS or sending.records:
            return True
        # Records of before a restart. They may have been replaced since, so they are sent as a new batch. An exact
        # destination may still be storing the old one, so it first gets the old token again, without records.
        if exact:
            return True
        self._delivery.drop_attempt()
        self._sending = None
        return False

    def _next(self, info: SinkInfo, sink: Sink, most_bytes: int) -> _Sending | None:
        """Cut the next batch, and record it in the commit that confirms the last one; None if nothing is left."""
        cursor = info.cursor
        if self._answered is not None and self._answered.sending.lane is not Lane.RECORDS:
            cursor = cursor.confirm(*self._answered.sending.span)
        if info.cursor not in self._expected:  # moved by hand, perhaps over newer values of what is in a page
            self._reader.drop()
        self._expected = (info.cursor, cursor)
        last_seq = self._store.sinks.last_seq()
        was_retry = self._was_retry
        found = self._suspected(cursor, last_seq, most_bytes)
        self._was_retry = False
        if found is None and not was_retry:
            found = self._retried(last_seq)
        if found is None:
            found = self._by_turn(info, sink, cursor, last_seq, most_bytes)
        if found is None and was_retry:
            found = self._retried(last_seq)
        if found is None:
            return None
        self._delivery.begin(found.attempt, *(self._answered.facts if self._answered else ()))
        self._answered, self._sending = None, found
        if found.lane is not Lane.RECORDS:
            self._expected = (*self._expected, cursor.confirm(*found.span))
        return found

    def _by_turn(
        self, info: SinkInfo, sink: Sink, cursor: Cursor, last_seq: int, most_bytes: int
    ) -> _Sending | None:
        works = split(cursor, last_seq, batch=self._most_rows, two=info.lanes.two, order=info.lanes.order)
        records: list[RecordItem] = []
        if info.records and sink.takes_records:
            if self._answered is not None and self._answered.records:
                self.settle()  # or they would be read as pending
            found = self._delivery.records(self._records, most_bytes)
            records = [RecordItem(*record) for record in found]
        waiting = [*works, Lane.RECORDS] if records else list(works)
        if not waiting:
            return None
        lane = self._turns.next(waiting)
        if len(waiting) > 1 or lane is Lane.BACKFILL:
            most_bytes = self._speed.limit(most_bytes)
        if lane is Lane.RECORDS:
            attempt = self._new_attempt(Span(0, 0), len(records), "", lane)
            return _Sending(attempt, None, last_seq, records, emptied=len(records) < self._records)
        sending = self._of_cut(lane, works[lane], last_seq, self._rows, most_bytes)
        if len(waiting) == 1 and not sending.attempt.points and sending.span.last == last_seq:
            if not self.is_draining and self._clock() - self._empty_s < EMPTY_S:
                return None
            self._empty_s = self._clock()
        return sending

    def _suspected(self, cursor: Cursor, last_seq: int, most_bytes: int) -> _Sending | None:
        """Return the next part of a batch that was refused as a whole."""
        if self._suspects is None:
            return None
        lane, span = self._suspects
        for gap in cursor.gaps(span.last):
            if gap.last >= span.first:
                part = Span(max(gap.first, span.first), gap.last)
                return self._of_cut(lane, Work(part), last_seq, self._rows, most_bytes)
        self._suspects, self._rows = None, self._most_rows
        return None

    def _retried(self, last_seq: int) -> _Sending | None:
        """Return the next point that an operator wants to be sent again; every other batch, beside new readings."""
        seq = self._delivery.next_retry()
        if seq is not None and self._answered is not None:
            self.settle()  # it may be the one that was sent just now
            seq = self._delivery.next_retry()
        while seq is not None:
            cut = self._reader.again(Span(seq, seq), last_seq)
            if cut.points or not self._is_gone(seq):
                self._was_retry = True
                attempt = self._new_attempt(cut.span, cut.points, _checksum(cut), Lane.BACKFILL)
                return _Sending(attempt, cut, last_seq)
            self._delivery.keep_retry(seq, _GONE)
            seq = self._delivery.next_retry()
        return None

    def _is_gone(self, seq: int) -> bool:
        """Return whether the store has the identity of a point in quarantine no more, so it has the only value."""
        item = self._delivery.quarantined_point(seq)
        if item is None:
            return False
        start, end = to_datetime(item.timestamp_us), to_datetime(item.timestamp_us + 1)
        return not self._store.points.range(item.sensor_id, item.metric_name, start, end, limit=1).all()

    def _is_retry(self, sending: _Sending) -> bool:
        """Return whether a batch is a point that is in quarantine already."""
        first, last = sending.span
        return first == last and sending.lane is not Lane.RECORDS and first == self._delivery.next_retry()

    def _of_cut(self, lane: Lane, work: Work, last_seq: int, rows: int, most_bytes: int) -> _Sending:
        cut = self._reader.cut(lane, work, last_seq, rows, most_bytes)
        for _ in range(_EMPTY_PAGES):
            rest = _rest(work, cut.span)
            if cut.points or rest.seqs < 1:
                break
            more = self._reader.cut(lane, Work(rest, work.from_end), last_seq, rows, most_bytes)
            both = Span(min(cut.span.first, more.span.first), max(cut.span.last, more.span.last))
            cut = more._replace(span=both)
        attempt = self._new_attempt(cut.span, cut.points, _checksum(cut), lane)
        return _Sending(attempt, cut, last_seq, emptied=cut.span == work.gap)

    def _new_attempt(self, span: Span, points: int, checksum: str, lane: Lane) -> Attempt:
        token = uuid.uuid4().hex
        return Attempt(span.first, span.last, points, checksum, token, lane.value, 1, self._store.now_us())

    def _again(self, sending: _Sending) -> None:
        """Record that a batch is sent once more, with the points that its range has now."""
        last_seq, cut = self._store.sinks.last_seq(), sending.cut
        attempt = sending.attempt._replace(tries=sending.attempt.tries + 1)
        if sending.lane is not Lane.RECORDS and (cut is None or last_seq != sending.last_seq):
            cut = self._reader.again(sending.span, last_seq)
            attempt = attempt._replace(points=cut.points, checksum=_checksum(cut))
        self._delivery.begin(attempt)
        sending.attempt, sending.cut, sending.last_seq = attempt, cut, last_seq

    # --- sending ---------------------------------------------------------------------------------------

    def _sent(self, sink: Sink, sending: _Sending, committed: str | None) -> Step:
        store_id, epoch = self._identity
        batch = Batch(
            store_id,
            epoch,
            self.name,
            *sending.span,
            sending.lane,
            Tokens(committed, sending.attempt.token),
            _NO_COLUMNS if sending.cut is None else sending.cut.columns,
            sending.records,
            sending.attempt.tries,
        )
        if not len(batch) and not sink.exact:
            return self._stored(sink, batch, sending, Outcome())
        began_s = self._clock()
        try:
            with _errors_of_the_sink(but=SinkRefused):
                outcome = sink.send(batch)
                check_rows(outcome, batch)
        except SinkRefused as error:
            return self._refused(sink, batch, sending, error)
        self._speed.note(0 if sending.cut is None else sending.cut.bytes, self._clock() - began_s)
        return self._stored(sink, batch, sending, outcome)

    def _stored(self, sink: Sink, batch: Batch, sending: _Sending, outcome: Outcome) -> Step:
        refused = [quarantined(batch, item) for item in outcome.refused]
        counts = not refused or not self._is_retry(sending)
        too_many = self._too_many(len(batch), len(refused)) if counts else None
        if too_many is not None and not sink.exact:
            return self._failed(too_many)
        estimate = sum(len(record.data) for record in sending.records) + (
            sending.cut.bytes if sending.cut else 0
        )
        rows = {item.row for item in outcome.refused}
        totals = Totals(
            points=0 if sending.records else len(batch) - len(rows),
            records=len(batch) - len(rows) if sending.records else 0,
            bytes=outcome.sent_bytes or (estimate if len(batch) else 0),
            repeats=int(outcome.repeat),
        )
        delivered = [(item.record_id, item.data) for at, item in enumerate(sending.records) if at not in rows]
        self._sending, self._answered = None, _Answered(sending, totals, refused, delivered)
        if counts:
            self._refusals.add(len(batch), len(rows))
        self._bucket.take(totals.bytes)
        self._turns.sent(sending.lane, estimate, emptied=sending.emptied)
        if sending.records:
            self._records = min(RECORDS, 2 * self._records)
        elif self._suspects is not None or self._rows < self._most_rows:
            self._rows = min(self._most_rows, 2 * self._rows)
        if (
            too_many is not None
        ):  # an exact sink has stored the rest, and would not store these if it were sent again
            self.settle()
            self._rows = min(self._most_rows, _PROBE_ROWS)
            return self._failed(too_many)
        self._note_success()
        return Step(
            *(Progress.DELIVERED, 0.0, sending.lane, *sending.span, len(batch) - len(rows), len(rows)),
            repeat=outcome.repeat,
        )

    def _refused(self, sink: Sink, batch: Batch, sending: _Sending, error: SinkRefused) -> Step:
        """Split a batch that was refused as a whole, or put its only item into quarantine."""
        size = len(batch)
        if size == 0:
            return self._failed(error)
        if size > 1:
            if sending.records:
                self._records = size // 2
            else:
                self._suspects, self._rows = (sending.lane, sending.span), size // 2
            self._sending = None
            self._delivery.drop_attempt()
            return Step(Progress.SPLIT, 0.0, sending.lane, *sending.span, error=error)
        counts = not self._is_retry(sending)
        too_many = self._too_many(1, 1) if counts else None
        if too_many is not None:
            return self._failed(too_many)
        log.warning("%s refused an item, which is in quarantine now: %s", self.name, error)
        if sink.exact:  # it has stored nothing, so it still holds the token of the last batch
            sending.attempt = sending.attempt._replace(token=batch.tokens.committed)  # type: ignore[arg-type]
        self._sending = None
        self._answered = _Answered(sending, Totals(), [quarantined(batch, Item(0, str(error)))])
        self.settle()
        if counts:
            self._refusals.add(1, 1)
        self._note_success()
        return Step(Progress.DELIVERED, 0.0, sending.lane, *sending.span, 0, 1)

    def _too_many(self, items: int, refused: int) -> SinkHalted | None:
        held = self._delivery.quarantined() if refused else 0
        return self._refusals.too_many(items, refused, held)

    # --- failures --------------------------------------------------------------------------------------

    def _failed(self, error: Exception) -> Step:
        """Record why the sink does not take the batch, which stays the next one."""
        self._disconnect()
        self._failures += 1
        state, progress, wait_s = _meaning(error)
        if state == "failing":
            wait_s = self._backoff.delay_s(self._failures)
            after_s = error.retry_after_s if isinstance(error, SinkUnreachable) else None
            if after_s is not None:
                wait_s = max(wait_s, min(after_s, self._backoff.longest_s))
        self._note(state, error)
        return self._unsent(progress, wait_s, error)

    def _busy(self, error: HoldfastError) -> Step:
        self._failures += 1
        if isinstance(error, StoreBusy):
            if self._failures == 1:
                log.warning("the store is busy, so the delivery to %s waits: %s", self.name, error)
        else:
            self._note("failing", error)
        return self._unsent(Progress.BUSY, self._backoff.delay_s(self._failures), error)

    def _unsent(self, progress: Progress, wait_s: float, error: Exception) -> Step:
        sending = self._sending
        if sending is None:
            return Step(progress, wait_s, error=error)
        return Step(progress, wait_s, sending.lane, *sending.span, error=error)

    def _note(self, state: SinkState, error: Exception) -> None:
        text = str(error) or type(error).__name__
        if state == "stopped":
            text = f"{type(error).__name__}: {text}"
        if text != self._trouble:
            self._trouble = text
            match state:
                case "failing":
                    log.warning("%s cannot be reached; the points stay in the store: %s", self.name, text)
                case "stopped":
                    log.error(
                        "the delivery to %s failed; it is tried again: %s", self.name, text, exc_info=error
                    )
                case _:
                    log.error("%s takes nothing for now; nothing is skipped: %s", self.name, text)
        try:
            self._delivery.failed(state, text)
        except _STORE_ERRORS as failed:  # a full disk, for example, which deliveries may survive
            log.warning("`status` will not show why %s fails: %s", self.name, failed)

    def _worked(self, info: SinkInfo) -> None:
        """Record that the sink can be reached, though there was nothing to send."""
        if info.state != "running":
            self._delivery.running()
        self._note_success()

    def _note_success(self) -> None:
        if self._failures:
            log.info("the delivery to %s works again after %s", self.name, counted(self._failures, "failure"))
        self._failures, self._trouble = 0, ""

    def _disconnect(self) -> None:
        self._is_open = False
        if self._sink is not None:
            try:
                self._sink.close()
            except Exception as error:  # noqa: BLE001  it is opened again, which reports what lasts
                log.debug("%s did not close: %s", self.name, error)


@contextmanager
def _errors_of_the_sink(but: type[Exception] | tuple[()] = ()) -> Iterator[None]:
    """Tell the errors of a sink from those of the store."""
    try:
        yield
    except but:
        raise
    except Exception as error:  # a sink is anybody's code: `_meaning` says what becomes of each error
        raise _Failed(error) from error


def _meaning(error: Exception) -> tuple[SinkState, Progress, float]:
    """Return what an error of a sink says about its state, and the seconds until it is tried again."""
    match error:
        case StoreForked():
            return "forked", Progress.FORKED, PAUSE_S
        case SinkUnreachable() | OSError():
            return "failing", Progress.UNREACHABLE, 0.0
        case SinkHalted() | SinkRefused() | MissingExtra() | InvalidSettings():
            return "halted", Progress.HALTED, PROBE_S
        case _:
            return "stopped", Progress.HALTED, PROBE_S


def _refuse_forks(info: SinkInfo, held: str | None) -> None:
    """Raise `StoreForked` if an exact destination holds neither the last token nor the one on its way."""
    if held == info.token or (info.attempt is not None and held == info.attempt.token):
        return
    state = "has another batch of this store than the last one sent" if held else "has lost what it had"
    raise StoreForked(f"the destination of {info.name} {state}; nothing was sent. {REMEDIES}")


def _rest(work: Work, span: Span) -> Span:
    if work.from_end:
        return Span(work.gap.first, span.first - 1)
    return Span(span.last + 1, work.gap.last)


def _checksum(cut: Cut) -> str:
    """Return the SHA-256 of the seqs, which identify the points and their values."""
    seqs = cut.columns[-1]
    return hashlib.sha256(struct.pack(f"<{len(seqs)}q", *seqs)).hexdigest()
