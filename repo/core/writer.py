"""The writer: appends changes to the journal, those of many threads in one commit. Never touches the columns."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlalchemy import Connection

from repo.clock import Clock
from repo.core.changes import BulkChange, DeleteChange, PointsChange, RecordChange, SettleChange, Submission
from repo.core.codec import BLOCK_BYTES, BLOCK_POINTS
from repo.core.inbox import Inbox
from repo.core.kinds import is_empty_series
from repo.core.metadata import MetadataDatabase
from repo.core.positions import forked, move_position
from repo.engines.sqlite.driver import CommitOutcome
from repo.errors import HoldfastError, InvalidPoint, Refusal
from repo.repositories.journal import BULK, DELETE, KEEP, POINTS, JournalRepository
from repo.repositories.points import Written
from repo.repositories.records import RecordRepository
from repo.repositories.series import SeriesRepository

__all__ = ["Writer"]

LINGER_SHARE = 0.25
"""The share of the last commit's duration that a leader waits for threads that may write again."""

LINGER_LIMIT_S = 0.002

_PAUSE_S = 0.000_05

_Pair = tuple[str, str]

_RESCUE_S = 0.25
"""After this time a waiting thread tries to become the leader itself."""


@dataclass(slots=True, eq=False)
class _Party:
    """Submissions of one thread that wait for a commit."""

    submissions: Sequence[Submission]
    wake: threading.Lock = field(default_factory=threading.Lock)
    done: bool = False
    """Whether each submission has its result or its error."""
    gone: bool = False
    """Whether its thread was interrupted and no longer waits; what has not begun is then not written."""

    def __post_init__(self) -> None:
        self.wake.acquire()


@dataclass(slots=True, eq=False)
class _CommitGroup:
    """The parties of one commit; `outcome` and `failed` say how it ended."""

    parties: Sequence[_Party]
    outcome: CommitOutcome = field(default_factory=CommitOutcome)
    failed: bool = False


class _Tail(NamedTuple):
    """The end of the journal after a commit of this writer; it is still the end while `version` is the same."""

    journal: JournalRepository
    version: int
    last_seq: int


class Writer:
    """Group commit into the journal. Thread-safe.

    A thread that finds nobody else commits at once. Threads that arrive during a commit queue up. The first of them
    becomes the next leader: it commits its own submissions and those of all queued threads, wakes these threads, and
    passes the lead to the first thread that arrived during its commit. So a single thread never waits for another, and
    many threads share each fsync. A submission returns when its journal rows are committed, or raises with nothing
    written.

    An interrupt such as KeyboardInterrupt may arrive at any time, and is raised only in its own thread, whose
    submission is then written completely or not at all. The thread that holds the lock `_leading` is the leader,
    whatever the other fields say. Parties stay in the queue until they are done, so the next leader commits what an
    interrupted one did not. First it settles, by `_group`, what the interrupted leader had committed.
    """

    def __init__(self, metadata: MetadataDatabase, clock: Clock, queue_points: int) -> None:
        self._metadata = metadata
        self._clock = clock
        self._mutex = threading.Lock()
        self._leading = threading.Lock()
        self._queue: list[_Party] = []
        self._led = False
        self._group: _CommitGroup | None = None
        self._last_party = 1
        self._last_commit_s = 0.0
        self._tail: _Tail | None = None
        """None during each commit, until its outcome is known."""
        self._kinds: dict[_Pair, str] = {}
        self._kinds_as_of = -1
        self._inbox = Inbox(self.commit_all, queue_points)

    def commit(self, submission: Submission) -> Written:
        """Make one submission durable; blocks until then."""
        self.commit_all((submission,))
        if submission.error is not None:
            raise submission.error
        assert submission.written is not None
        return submission.written

    def commit_all(self, submissions: Sequence[Submission]) -> None:
        """Make several submissions durable in one commit; each then has `written` or `error`."""
        self._metadata.refuse_after_fork()
        led = False
        if not (self._last_party > 1 or self._queue or self._leading.locked()):
            with self._leading:
                if not self._queue:  # nobody waits, so nobody has to be woken
                    self._commit(submissions, CommitOutcome())
                    led = True
        if led or self._commit_in_group(submissions):
            self._metadata.checkpoint_if_due()

    def _commit_in_group(self, submissions: Sequence[Submission]) -> bool:
        """Commit together with the threads that are waiting; returns whether this thread led a commit."""
        party = _Party(submissions)
        led = False
        try:
            with self._mutex:
                self._queue.append(party)
                follows, self._led = self._led, True
            if follows:
                party.wake.acquire(
                    timeout=_RESCUE_S
                )  # a leader releases it: the party is done, or has to lead
            while not party.done:
                with self._leading:
                    if not party.done:
                        led = True
                        self._lead()
        except BaseException:  # including an interrupt: nobody may wait for a thread that has left
            party.gone = True
            self._call_next()
            raise
        return led

    def submit(self, submission: Submission) -> Future[Written]:
        """Queue one submission for the writer's own thread; blocks only while the queue is full.

        A callback of a future runs in that thread and does not block, because no other thread would make room.
        """
        self._metadata.refuse_after_fork()
        return self._inbox.put(submission)

    def close(self) -> None:
        """Commit what was submitted, then stop the writer's thread."""
        self._inbox.close()

    def _lead(self) -> None:
        """Commit for all waiting threads. The caller holds `_leading`."""
        self._settle()  # what an interrupted leader left
        self._linger()
        with self._mutex:
            self._group = group = _CommitGroup([party for party in self._queue if not party.gone])
        started = time.perf_counter()
        try:
            submissions = [submission for party in group.parties for submission in party.submissions]
            group.failed = not self._commit(submissions, group.outcome)
        finally:
            self._settle()
        self._last_commit_s = time.perf_counter() - started
        self._last_party = len(group.parties)

    def _settle(self) -> None:
        """Wake the threads of a group that was committed or failed, and appoint the next leader. Safe to repeat."""
        group = self._group
        if group is not None:
            decided = group.outcome.committed or group.failed
            done = set(map(id, group.parties)) if decided else set()
            with self._mutex:
                self._queue = [p for p in self._queue if not (p.gone or id(p) in done)]
                for party in group.parties if decided else ():
                    party.done = True
                    if party.wake.locked():
                        party.wake.release()
                self._group = None
        self._call_next()

    def _call_next(self) -> None:
        """Wake the first waiting thread, which becomes the leader."""
        with self._mutex:
            self._queue = [party for party in self._queue if not party.gone]
            self._led = bool(self._queue)
            if self._queue and self._queue[0].wake.locked():
                self._queue[0].wake.release()

    def _linger(self) -> None:
        """Wait briefly for the threads of the last commit, which are likely to write again at once."""
        if self._last_party < 2:
            return
        until = time.perf_counter() + min(self._last_commit_s * LINGER_SHARE, LINGER_LIMIT_S)
        while len(self._queue) < self._last_party and time.perf_counter() < until:
            time.sleep(_PAUSE_S)

    def _commit(self, submissions: Sequence[Submission], outcome: CommitOutcome) -> bool:
        """Commit submissions in one transaction, and return whether it succeeded; if not, each has its error."""
        registered: dict[_Pair, str] = {}
        tail, self._tail = self._tail, None

        def write(connection: Connection) -> None:
            nonlocal tail
            now_us = self._clock()
            known = None if tail is None or tail.journal.connection is not connection else tail
            journal = JournalRepository(connection) if known is None else known.journal
            version = journal.data_version()
            if known is None or known.version != version:  # others have written
                self._forget_changed_kinds(connection)
                last_seq = journal.last_seq()
            else:
                last_seq = known.last_seq
            accepted: list[Submission] = []
            for submission in submissions:
                submission.error = submission.written = None  # this may be the second attempt
                if submission.position is not None:
                    submission.error = forked(connection, submission.position)
                if submission.error is None and self._kinds_fit(connection, submission, registered, accepted):
                    if submission.position is not None:
                        move_position(connection, submission, now_us)
                    accepted.append(submission)
            tail = _Tail(journal, version, self._append(journal, last_seq, accepted, now_us))

        try:
            self._metadata.journal(write, outcome)
        except HoldfastError as error:
            if outcome.committed:
                return True
            for submission in submissions:
                submission.error = submission.error or error
                submission.written = None
            return False
        if registered:
            self._kinds.update(registered)
        self._tail = tail
        return True

    def _append(
        self, journal: JournalRepository, seq: int, submissions: Sequence[Submission], now_us: int
    ) -> int:
        """Append the changes after `seq`, and return the new last seq."""
        connection = journal.connection
        row = _PointsRow(journal, now_us)
        for submission in submissions:
            before, points = seq, 0
            for change in submission.changes:
                if isinstance(change, PointsChange):
                    if change.record is not None and not change.record.changed:
                        continue
                    kind = KEEP if change.keep else POINTS
                    for count, block in change.blocks:
                        seq += count
                        row.add(seq, count, block, kind)
                    points += change.count
                elif isinstance(change, BulkChange):
                    row.end()
                    seq += change.count
                    journal.append(seq, change.count, BULK, change.token, now_us)
                elif isinstance(change, DeleteChange):
                    row.end()
                    seq += 1
                    selection = change.selection
                    if selection.has_glob:
                        selection = selection.as_names(SeriesRepository(connection).has_name)
                    journal.append(seq, 1, DELETE, selection.to_json(), now_us)
                else:
                    _change_record(RecordRepository(connection, clock=self._clock), change)
            first_seq, last_seq = (before + 1, seq) if seq > before else (None, None)
            submission.written = Written(
                first_seq, last_seq, points, len(submission.refusals), submission.refusals
            )
        row.end()
        return seq

    def _kinds_fit(
        self,
        connection: Connection,
        submission: Submission,
        registered: dict[_Pair, str],
        accepted: Sequence[Submission],
    ) -> bool:
        """Register new series, and check the kinds of the others.

        On a mismatch only this submission fails, or only its wrong rows if they may be skipped. An empty series takes
        the new kind, unless an `accepted` submission of the same commit writes to it.
        """
        if not registered:
            for change in submission.changes:
                if isinstance(change, (PointsChange, BulkChange)) and not (
                    change.kinds.items() <= self._kinds.items()
                ):
                    break
            else:
                return True
        wanted: dict[_Pair, str | None] = {}
        others: dict[_Pair, tuple[str, str]] = {}
        own: dict[_Pair, str] = {}
        mixed: set[_Pair] = set()
        for change in submission.changes:
            if isinstance(change, (PointsChange, BulkChange)):
                for pair, kind in change.kinds.items():
                    known = registered.get(pair) or self._kinds.get(pair)
                    if known is None:
                        wanted[pair] = wanted.get(pair) or kind
                    elif kind is not None and kind != known:
                        others[pair] = (known, kind)
                    if kind is not None and (first := own.setdefault(pair, kind)) != kind:
                        others[pair] = (first, kind)
                        mixed.add(pair)
        if not (wanted or others):
            return True
        series = SeriesRepository(connection)
        stored = series.kinds(wanted)
        for pair, kind in wanted.items():
            known = stored.get(pair)
            if known is not None and kind is not None and kind != known:
                others.setdefault(pair, (known, kind))
        for pair, (_, kind) in list(others.items()):
            is_used = pair in mixed or any(_reads(other, pair) for other in accepted)
            if not is_used and is_empty_series(connection, pair):
                series.change_kind(pair, kind)
                stored[pair] = registered[pair] = kind
                del others[pair]
        if others:
            if submission.skippable is None:
                pair, (known, kind) = next(iter(others.items()))
                submission.error = _mismatch(pair, known, kind)
                return False
            submission.leave_out({pair: known for pair, (known, _) in others.items()})
            return self._kinds_fit(connection, submission, registered, accepted)
        new = {pair: kind for pair, kind in wanted.items() if stored.get(pair) is None}
        new = {pair: kind for pair, kind in new.items() if kind is not None or pair not in stored}
        if new:
            series.register(new)
        for pair, kind in wanted.items():
            found = stored.get(pair) or kind
            if found is not None:
                registered[pair] = found
        return True

    def _forget_changed_kinds(self, connection: Connection) -> None:
        """Forget the cached kinds if any process has changed the kind of a series."""
        changes = SeriesRepository(connection).changes()
        if changes != self._kinds_as_of:
            self._kinds = {}
            self._kinds_as_of = changes


def _change_record(records: RecordRepository, change: RecordChange | SettleChange) -> None:
    if isinstance(change, RecordChange):
        change.changed = records.put(change.record)
    elif change.sent:
        change.found = records.mark_sent(change.record_ids)
    else:
        change.found = records.mark_failed(change.record_ids, increment_retry=change.increment_retry)


def _reads(submission: Submission, pair: _Pair) -> bool:
    """Return whether a submission has readings of a series."""
    return any(
        change.kinds.get(pair) is not None
        for change in submission.changes
        if isinstance(change, (PointsChange, BulkChange))
    )


class _PointsRow:
    """Collects blocks for a journal row, until it is full or a change of another sort follows."""

    def __init__(self, journal: JournalRepository, now_us: int) -> None:
        self._journal = journal
        self._now_us = now_us
        self._blocks: list[bytes] = []
        self._kind = POINTS
        self._seq = self._count = self._bytes = 0

    def add(self, seq: int, count: int, block: bytes, kind: str) -> None:
        """Add a block whose last seq is `seq`."""
        full = self._count + count > BLOCK_POINTS or self._bytes + len(block) > BLOCK_BYTES
        if self._blocks and (full or kind != self._kind):
            self.end()
        self._kind = kind
        self._blocks.append(block)
        self._seq, self._count, self._bytes = seq, self._count + count, self._bytes + len(block)

    def end(self) -> None:
        """Write the row, unless it is empty."""
        if self._blocks:
            payload = self._blocks[0] if len(self._blocks) == 1 else b"".join(self._blocks)
            self._journal.append(self._seq, self._count, self._kind, payload, self._now_us)
            self._blocks, self._count, self._bytes = [], 0, 0


def _mismatch(pair: _Pair, known: str, kind: str) -> InvalidPoint:
    sensor, metric = pair
    return InvalidPoint(
        [Refusal(None, "value", f"is a {kind}, but the series {sensor!r} {metric!r} holds {known} values")]
    )
