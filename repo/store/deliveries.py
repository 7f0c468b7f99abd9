"""`store.sinks.delivery(name)`: what a forwarder reads and records of one sink. Uses SQLite only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from sqlalchemy import Connection

from repo.core.handle import Handle
from repo.errors import InvalidQuery, SinkUnreachable
from repo.repositories.attempts import Attempt, AttemptRepository
from repo.repositories.journal import JournalRepository
from repo.repositories.quarantine import Quarantined, QuarantineRepository
from repo.repositories.records import RecordRepository, RecordText
from repo.repositories.sinks import SinkInfo, SinkRepository, SinkState, Totals
from repo.repositories.state import StateRepository

__all__ = ["Delivery", "Identity"]


NOTHING = Totals()


class Identity(NamedTuple):
    """What identifies the seqs of this store to receivers."""

    epoch: int
    store_id: str


class Delivery:
    """The delivery to one sink, for one forwarder at a time. Each call is one transaction, with full durability.

    Thread-safe. Every call raises `InvalidQuery` if the sink was removed, also if one of the same name was added since.
    """

    def __init__(self, handle: Handle, name: str) -> None:
        self._handle = handle
        self.name = name
        self._created_us: int | None = None
        self._created_us = self.position().created_us
        self._identity = self.epoch_and_id()

    def epoch_and_id(self) -> Identity:
        """Return the epoch and the store id. Call it each time before a sink is opened: a rekey changes them."""
        with self._handle.metadata.read() as connection:
            self._identity = self._read_identity(connection)
        return self._identity

    def position(self) -> SinkInfo:
        """Return the sink as it is now: its settings, its cursor, its attempt, and how much it is behind."""
        return self.position_and_identity()[0]

    def position_and_identity(self) -> tuple[SinkInfo, Identity]:
        """Return `position` and `epoch_and_id` of the same moment, so that the token belongs to this identity."""
        with self._handle.metadata.read() as connection:
            found = SinkRepository(connection).get(
                self.name, self._handle.clock(), JournalRepository(connection).last_seq()
            )
            identity = self._read_identity(connection)
        if found is None or self._created_us not in (None, found.created_us):
            raise self._removed()
        self._identity = identity
        return found, identity

    def begin(
        self,
        attempt: Attempt,
        confirm: Attempt | None = None,
        totals: Totals = NOTHING,
        refused: Sequence[Quarantined] = (),
        records: Sequence[tuple[str, str]] = (),
        sent: Sequence[int] = (),
    ) -> None:
        """Record an attempt before it is sent, in place of the last one; with `confirm`, first confirm that one.

        Both are one commit. The other arguments are those of `confirm`. Raises `SinkUnreachable`, with nothing changed,
        if the store got another id or epoch since the sink was opened: open it again.
        """
        with self._changing() as connection:
            if confirm is not None:
                self._confirm(connection, confirm, refused, totals, records, sent)
            AttemptRepository(connection).put(self.name, attempt)

    def confirm(
        self,
        attempt: Attempt,
        refused: Sequence[Quarantined] = (),
        totals: Totals = NOTHING,
        records: Sequence[tuple[str, str]] = (),
        sent: Sequence[int] = (),
    ) -> None:
        """Confirm the range of an attempt: the destination has it, except the `refused` items.

        The cursor moves, the sink's token becomes the one of the attempt, the refused items go into quarantine, and the
        attempt is removed, all in one commit. `records` are the record ids and data of the delivered records; these and
        the refused ones are no longer pending, unless their data was replaced since. `sent` are the seqs of the points
        that it was sent: those that were in quarantine, and are not refused again, leave it. Raises as `begin` does.
        """
        with self._changing() as connection:
            self._confirm(connection, attempt, refused, totals, records, sent)

    def confirm_part(
        self,
        part: Attempt,
        rest: Attempt,
        refused: Sequence[Quarantined] = (),
        totals: Totals = NOTHING,
        records: Sequence[tuple[str, str]] = (),
        sent: Sequence[int] = (),
    ) -> None:
        """Confirm a part of an attempt, and record its `rest`, which has the same token; see `repo.delivery.chain`.

        Both are one commit. The sink keeps its token, because the rest is not confirmed. The other arguments are those
        of `confirm`. Raises as `begin` does.
        """
        with self._changing() as connection:
            self._confirm(connection, part, refused, totals, records, sent, moves_token=False)
            AttemptRepository(connection).put(self.name, rest)

    def drop_attempt(self) -> None:
        """Remove the attempt, which the destination certainly does not have."""
        with self._changing() as connection:
            AttemptRepository(connection).remove(self.name)

    def failed(self, state: SinkState, error: str) -> None:
        """Record a failed attempt and why. A paused sink stays paused. Of a fork, raises as `begin` does."""
        with self._changing(same_identity=state == "forked") as connection:
            SinkRepository(connection).failed(self.name, state, error, self._handle.clock())

    def running(self) -> None:
        """End a failure. A paused or forked sink keeps its state."""
        with self._changing(same_identity=False) as connection:
            SinkRepository(connection).running(self.name)

    def next_retry(self) -> int | None:
        """Return a seq in quarantine that an operator wants to be sent again, alone, as a range of one seq.

        Its confirmation removes it from the quarantine, unless it is refused again, also if the point is no longer
        stored under this seq, because it was overwritten.
        """
        with self._handle.metadata.read() as connection:
            return QuarantineRepository(connection).next_retry(self.name)

    def quarantined_point(self, seq: int) -> Quarantined | None:
        """Return the point with a seq that is in the quarantine of the sink."""
        with self._handle.metadata.read() as connection:
            return QuarantineRepository(connection).point(self.name, seq)

    def keep_retry(self, seq: int, reason: str) -> None:
        """Keep a point in quarantine instead of sending it again; this reason is put before that of the refusal."""
        with self._changing() as connection:
            quarantine = QuarantineRepository(connection)
            item = quarantine.point(self.name, seq)
            if item is not None:
                before = "" if item.reason.startswith(reason) else f"{reason}; it was refused: "
                quarantine.add([item._replace(reason=before + item.reason)], self._handle.clock())

    def quarantined(self) -> int:
        """Return how many items are in the quarantine of the sink."""
        with self._handle.metadata.read() as connection:
            return QuarantineRepository(connection).count(self.name)

    def records(self, limit: int = 1000, max_bytes: int = 1_000_000) -> list[RecordText]:
        """Return the oldest pending records, at least one if there is any, up to about `max_bytes` of data."""
        with self._handle.metadata.read() as connection:
            found = RecordRepository(connection).texts(limit)
        chosen: list[RecordText] = []
        for record in found:
            max_bytes -= len(record.data) + len(record.record_id) + len(record.source)
            if chosen and max_bytes < 0:
                break
            chosen.append(record)
        return chosen

    # --- inside ----------------------------------------------------------------------------------------

    def _confirm(
        self,
        connection: Connection,
        attempt: Attempt,
        refused: Sequence[Quarantined],
        totals: Totals,
        records: Sequence[tuple[str, str]],
        sent: Sequence[int],
        *,
        moves_token: bool = True,
    ) -> None:
        sinks, quarantine = SinkRepository(connection), QuarantineRepository(connection)
        now_us = self._handle.clock()
        if attempt.confirms_seqs:
            cursor = sinks.cursor(self.name)
            assert cursor is not None
            sinks.move(self.name, cursor.confirm(attempt.first_seq, attempt.last_seq), now_us)
            quarantine.settle(self.name, attempt.first_seq, attempt.last_seq, sent)
        quarantine.add([item._replace(sink=self.name) for item in refused], now_us)
        gone = [
            (one.record_id, one.data) for one in refused if one.record_id is not None and one.data is not None
        ]
        RecordRepository(connection).settle([*records, *gone])
        sinks.sent(self.name, attempt.token if moves_token else None, totals, len(refused), now_us)
        sinks.running(self.name)
        AttemptRepository(connection).remove(self.name)

    @contextmanager
    def _changing(self, *, same_identity: bool = True) -> Iterator[Connection]:
        with self._handle.metadata.write() as connection:
            if self._created_us != SinkRepository(connection).created_us(self.name):
                raise self._removed()
            if same_identity and self._read_identity(connection) != self._identity:
                raise SinkUnreachable(
                    "the store got another id or epoch; the batch is sent again with it, and is new to the destination"
                )
            yield connection

    def _read_identity(self, connection: Connection) -> Identity:
        state = StateRepository(connection).get()
        assert state is not None
        return Identity(state.epoch, state.store_id)

    def _removed(self) -> InvalidQuery:
        return InvalidQuery(f"there is no sink {self.name!r}; store.sinks.list() lists the existing ones")
