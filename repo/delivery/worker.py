"""The delivery to one sink: records an attempt, sends it, and confirms it. Owns the order of these, never a thread.

The attempt, a range of seqs and a new token, is committed before anything is sent. The range stays the same until the
sink has answered, also across restarts; it ends sooner if the sink refuses the batch as too large, or the filter was
widened. Its points are read again for each try, unless nothing was written since. So a batch that was stored without an
answer is recognized by its token (`repo.delivery.chain`). Confirming a batch and recording the next one is one commit.
After a crash or an interrupt at any point, the row of the attempt says what may have been sent.
"""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from repo.delivery.chain import refuse_forks
from repo.delivery.doubts import Doubts, has_accepted
from repo.delivery.health import STORE_ERRORS, Health
from repo.delivery.limits import limits_of
from repo.delivery.planner import Planner
from repo.delivery.protocol import Batch, Item, Lane, Outcome, Sink, Tokens
from repo.delivery.rate import Bucket
from repo.delivery.refusals import Refusals, check_rows, named_again, quarantined
from repo.delivery.sending import Answered, Sending
from repo.delivery.steps import Backoff, Progress, Step
from repo.errors import (
    HoldfastError,
    InvalidQuery,
    SinkHalted,
    SinkRefused,
    SinkUnreachable,
    StoreForked,
)
from repo.inputs.rates import Rate
from repo.repositories.sinks import SinkInfo, Totals
from repo.store.deliveries import Identity
from repo.store.store import Store

__all__ = ["Worker"]

log = logging.getLogger("holdfast.delivery")

PAUSE_S = 1.0
"""How often a paused sink is checked, and the longest single wait for a limit."""

_NO_COLUMNS: Sequence[Sequence[Any]] = ((),) * 8

_DAMAGED = (
    "the record of the last batch to {0} is damaged, so nothing is sent: a wrong range would count as delivered. Check "
    "the disk; then run `{1}`, and {0} gets again what it has not confirmed"
)
_REKEY = "sinks rekey --restored"


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
        batch_points: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._store = store
        self._delivery = store.sinks.delivery(name)
        self._make_sink = make_sink
        self._health = Health(self._delivery, backoff)
        self._poll_s = poll_s
        self._clock = clock
        self._bucket = Bucket(clock())
        self._planner = Planner(store, self._delivery, batch_points=batch_points, clock=clock)
        self._settings: tuple[object, ...] = ()
        self._identity = ("", 0)
        self._sink: Sink | None = None
        self._refusals = Refusals(name)
        self._has_accepted = False
        self._forget()

    def _forget(self) -> None:
        """Forget everything except what the store has committed, as a restart does."""
        self._is_open = False
        self._held: str | None = None
        self._sending: Sending | None = None
        self._answered: Answered | None = None
        self._doubts = Doubts(self.name)
        self._planner.forget()

    # --- what the owner calls --------------------------------------------------------------------------

    def drain(self) -> None:
        """Defer nothing from now on: the caller waits until everything is confirmed."""
        self._planner.is_draining = True

    def step(self) -> Step:
        """Send the next batch, or the last one again; never waits between attempts.

        Errors of the sink, and those of the store that may pass, are in the step. Others are raised, and leave the
        committed state as it was: the next step continues from there. Raises `InvalidQuery` if the sink was removed.
        """
        try:
            return self._step()
        except STORE_ERRORS as error:
            return self._busy(error)
        except SinkUnreachable as error:  # of the store: its identity was changed just now
            self._forget()
            return Step(Progress.BUSY, 0.0, error=error)
        except BaseException:  # also an interrupt: only the store knows what was committed
            self._forget()
            raise

    def settle(self, step: Step) -> Step:
        """Confirm the batch that the sink has answered, if there is one; returns the step. Call it before waiting.

        If the store cannot be written for now, the step is busy instead, and the next one confirms the batch. It is not
        confirmed, and is sent again, if the store got another id or epoch since it was sent.
        """
        if step.progress is not Progress.BUSY:
            try:
                with suppress(SinkUnreachable):
                    self._settle()
            except STORE_ERRORS as error:
                return replace(step, progress=Progress.BUSY, wait_s=self._health.busy(error), error=error)
        return step

    def _settle(self) -> None:
        """Confirm it; raises `SinkUnreachable` if the store got another id or epoch."""
        answered = self._answered
        if answered is None:
            return
        attempt, totals, refused, records, sent = answered.facts
        try:
            self._delivery.confirm(attempt, refused, totals, records, sent)
        except STORE_ERRORS:
            raise
        except BaseException:  # also an interrupt: only the store knows what was committed
            self._forget()
            raise
        self._answered = None

    def is_removed(self) -> bool:
        """Return whether the sink was removed; False if the store cannot say."""
        try:
            self._delivery.position()
        except InvalidQuery:
            return True
        except HoldfastError:
            return False
        return False

    def close(self) -> None:
        """Confirm what was answered, or else forget it, and disconnect. The next step connects again."""
        try:
            with suppress(SinkUnreachable):
                self._settle()
        except STORE_ERRORS as error:
            log.warning("the last batch to %s is not confirmed, so it is sent again: %s", self.name, error)
            self._forget()  # another forwarder may deliver from now on
        finally:
            self._disconnect()

    # --- a step ----------------------------------------------------------------------------------------

    def _step(self) -> Step:
        info, identity = self._delivery.position_and_identity()
        if info.state in ("paused", "forked"):
            self._settle()
            self._disconnect()
            self._forget()
            if info.state == "paused":
                return Step(Progress.PAUSED, PAUSE_S)
            return Step(Progress.FORKED, PAUSE_S, error=StoreForked(info.last_error or ""))
        if info.attempt is not None and info.attempt.is_damaged:
            self._forget()
            return self._failed(SinkHalted(_DAMAGED.format(self.name, self._store.files.command(_REKEY))))
        if not self._follow(info, identity):
            return self._step()
        self._has_accepted = has_accepted(info, self._answered)
        if self._doubts and self._has_accepted:
            self._settle()
            return self._quarantine(self._doubts.take())
        limit = None if info.rate is None else info.rate.at(self._store.now_us())
        wait_s = self._bucket.wait_s(self._clock(), limit)
        if wait_s > 0:
            self._settle()
            return Step(
                Progress.LIMITED, min(wait_s, PAUSE_S), error=None if limit else self._stopped_by(info.rate)
            )
        try:
            if not self._is_open and not self._open(info):
                return self._step()
            assert self._sink is not None
            sink, sending = self._sink, self._sending
            committed = self._answered.sending.attempt.token if self._answered else info.token
            sending = self._next(info, sink, limit) if sending is None else self._again(sending)
            if sending is None:
                self._settle()
                if self._doubts:
                    return self._failed(self._doubts.halt())
                self._health.reached(info)
                return Step(Progress.IDLE, self._poll_s)
            return self._sent(sink, sending, committed)
        except _Failed as failed:
            return self._failed(failed.error)

    def _stopped_by(self, rate: Rate | None) -> HoldfastError:
        """Return why nothing is sent while the limit is 0."""
        assert rate is not None
        command = f"{self._store.files.command('sinks change')} {shlex.quote(self.name)} --no-rate"
        return HoldfastError(
            f"its rate is {rate.zero(self._store.now_us())}, so nothing is sent; `{command}` removes the limit"
        )

    def _follow(self, info: SinkInfo, identity: Identity) -> bool:
        """Take over what was changed in the store: settings, identity, and the cursor by hand.

        Returns False if it confirmed a batch before that, so that `info` is outdated.
        """
        settings = (info.target, info.options, info.filter, info.lanes)
        epoch, store_id = identity
        if settings != self._settings or (store_id, epoch) != self._identity:
            if self._answered is not None:
                self._settle()
                return False
            self._disconnect()
            self._forget()
            self._sink = None
            self._settings, self._identity = settings, (store_id, epoch)
            self._planner.follow(info)
        kept = self._sending or (self._answered.sending if self._answered else None)
        if (kept.attempt.token if kept else None) != (info.attempt.token if info.attempt else None):
            self._sending = self._answered = None
            if info.attempt is not None:
                self._sending = Sending(info.attempt, None, -1)
        return True

    def _open(self, info: SinkInfo) -> bool:
        """Open the sink; False if what it holds changed the state of the delivery."""
        with _errors_of_the_sink():
            if self._sink is None:
                made = self._make_sink(info)
                self._planner.limit(limits_of(made))
                self._sink = made
            held = self._sink.open(*self._identity)
            exact = self._sink.exact
            if exact:
                refuse_forks(info, held)
        self._is_open, self._held = True, held if exact else None
        sending = self._sending
        if sending is None or sending.lane is not Lane.RECORDS or sending.records:
            return True
        # These records were read before a restart. They may have been replaced since, so they are sent as a
        # new batch. An exact destination may still be storing the old one, so it first gets the old token
        # again, without records.
        if exact:
            return True
        self._delivery.drop_attempt()
        self._sending = None
        return False

    def _next(self, info: SinkInfo, sink: Sink, bytes_per_s: int | None) -> Sending | None:
        """Record the next batch, in the commit that confirms the last one; None if nothing is left."""
        cursor, answered = info.cursor, self._answered
        if answered is not None:
            if answered.sending.attempt.confirms_seqs:
                cursor = cursor.confirm(*answered.sending.span)
            if answered.records or self._planner.was_retry:
                self._settle()  # or the planner would find them again
        planned = self._planner.next(
            info, cursor, takes_records=sink.takes_records, bytes_per_s=bytes_per_s, doubts=self._doubts
        )
        if planned is None:
            return None
        self._delivery.begin(planned.attempt, *(self._answered.facts if self._answered else ()))
        self._answered, self._sending = None, planned
        return planned

    def _again(self, sending: Sending) -> Sending:
        """Record that a batch is sent once more."""
        again = self._planner.again(sending, stored=self._held == sending.attempt.token)
        self._delivery.begin(again.attempt)
        self._sending = again
        return again

    def _is_retry(self, sending: Sending) -> bool:
        """Return whether a batch is a point that is in quarantine already."""
        first, last = sending.span
        return first == last and sending.lane is not Lane.RECORDS and first == self._delivery.next_retry()

    # --- sending ---------------------------------------------------------------------------------------

    def _sent(self, sink: Sink, sending: Sending, committed: str | None) -> Step:
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
        self._planner.took(sending, self._clock() - began_s)
        return self._stored(sink, batch, sending, outcome)

    def _stored(self, sink: Sink, batch: Batch, sending: Sending, outcome: Outcome) -> Step:
        refused = [quarantined(batch, item) for item in outcome.refused]
        counts = not refused or not self._is_retry(sending)
        too_many = self._too_many(len(batch), len(refused)) if counts else None
        if too_many is not None and not sink.exact:
            return self._failed(too_many)
        rows = {item.row for item in outcome.refused}
        rest = sending.rest if outcome.repeat else None
        totals = Totals(
            points=0 if sending.records else len(batch) - len(rows),
            records=len(batch) - len(rows) if sending.records else 0,
            bytes=outcome.sent_bytes or (sending.bytes if len(batch) else 0),
            repeats=int(outcome.repeat and rest is None),
        )
        delivered = [(item.record_id, item.data) for at, item in enumerate(sending.records) if at not in rows]
        if rest is None:
            self._sending, self._answered = None, Answered(sending, totals, refused, delivered)
        else:  # it has the rest, too, but did not say yet what it refused of it
            self._delivery.confirm_part(sending.part, rest.attempt, refused, totals, sent=sending.seqs)
            self._sending = rest
        if counts:
            self._refusals.add(len(batch), len(rows))
        self._bucket.take(totals.bytes)
        self._planner.sent(sending)
        if too_many is not None:  # an exact sink has stored the rest, and would not store these if sent again
            self._settle()
            self._planner.probe()
            return self._failed(too_many)
        self._health.succeeded()
        return Step(
            *(Progress.DELIVERED, 0.0, sending.lane, *sending.span, len(batch) - len(rows), len(rows)),
            repeat=outcome.repeat,
        )

    def _refused(self, sink: Sink, batch: Batch, sending: Sending, error: SinkRefused) -> Step:
        """Split a batch that was refused as a whole, or put its only item into quarantine."""
        size = len(batch)
        if sink.exact:
            with _errors_of_the_sink():
                stored = sink.open(*self._identity) == batch.tokens.next
                outcome = named_again(sink, batch, error) if stored else None
            if outcome is not None:
                return self._stored(sink, batch, sending, outcome)
        if size == 0:
            return self._failed(error)
        if size > 1:
            half = self._planner.halve(sending, size)
            if sink.exact:  # the token stays: see `repo.delivery.chain`
                self._sending = half
            else:
                self._sending = None
                self._delivery.drop_attempt()
            return Step(Progress.SPLIT, 0.0, sending.lane, *sending.span, error=error)
        counts = not self._is_retry(sending)
        too_many = self._too_many(1, 1) if counts else None
        if too_many is not None:
            return self._failed(too_many)
        answered = Answered(sending, Totals(), [quarantined(batch, Item(0, str(error)))])
        if counts and not sink.exact and not self._has_accepted:
            return self._doubt(answered, error)
        return self._quarantine(answered, exact=sink.exact, counts=counts)

    def _doubt(self, answered: Answered, error: SinkRefused) -> Step:
        """Keep an item that may be refused only because everything is."""
        self._delivery.drop_attempt()
        self._sending = None
        self._doubts.add(answered)
        if self._doubts.are_enough:
            return self._failed(self._doubts.halt())
        return Step(Progress.SPLIT, 0.0, answered.sending.lane, *answered.sending.span, error=error)

    def _quarantine(self, answered: Answered, *, exact: bool = False, counts: bool = True) -> Step:
        """Confirm a batch whose only item was refused."""
        sending, [item] = answered.sending, answered.refused
        log.warning("%s refused an item, which is in quarantine now: %s", self.name, item.reason)
        if exact:
            nothing = sending.nothing
            self._delivery.confirm_part(sending.part, nothing.attempt, answered.refused, sent=sending.seqs)
            self._sending = nothing
        else:
            self._sending, self._answered = None, answered
            self._settle()
        if counts:
            self._refusals.add(1, 1)
        self._health.succeeded()
        return Step(Progress.DELIVERED, 0.0, sending.lane, *sending.span, 0, 1)

    def _too_many(self, items: int, refused: int) -> SinkHalted | None:
        held = self._delivery.quarantined() if refused else 0
        return self._refusals.too_many(items, refused, held)

    # --- failures --------------------------------------------------------------------------------------

    def _failed(self, error: Exception) -> Step:
        """Record why the sink does not take the batch, which will be tried again."""
        self._disconnect()
        return self._unsent(*self._health.failed(error), error)

    def _busy(self, error: HoldfastError) -> Step:
        return self._unsent(Progress.BUSY, self._health.busy(error), error)

    def _unsent(self, progress: Progress, wait_s: float, error: Exception) -> Step:
        sending = self._sending
        if sending is None:
            return Step(progress, wait_s, error=error)
        return Step(progress, wait_s, sending.lane, *sending.span, error=error)

    def _disconnect(self) -> None:
        self._is_open, self._held = False, None
        if self._sink is not None:
            try:
                self._sink.close()
            except Exception as error:  # noqa: BLE001  it is opened again, which reports what lasts
                log.debug("%s could not be closed: %s", self.name, error)


@contextmanager
def _errors_of_the_sink(but: type[Exception] | tuple[()] = ()) -> Iterator[None]:
    """Distinguish the errors of a sink from those of the store."""
    try:
        yield
    except but:
        raise
    except Exception as error:  # a sink is anybody's code: `Health` says what becomes of each error
        raise _Failed(error) from error
