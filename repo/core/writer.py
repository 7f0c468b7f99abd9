"""The writer: appends changes to the journal, those of many threads in one commit. Never touches the columns."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from sqlalchemy import Connection

from repo.clock import Clock
from repo.core.changes import BulkChange, DeleteChange, PointsChange, RecordChange, SettleChange, Submission
from repo.core.codec import BLOCK_BYTES, BLOCK_POINTS
from repo.core.kinds import is_empty_series
from repo.core.metadata import MetadataDatabase
from repo.engines.sqlite.driver import Attempt
from repo.errors import HoldfastError, InvalidPoint, Refusal, StoreClosed
from repo.repositories.journal import BULK, DELETE, KEEP, POINTS, JournalRepository
from repo.repositories.points import Written
from repo.repositories.records import RecordRepository
from repo.repositories.series import SeriesRepository

__all__ = ["Writer"]

LINGER_SHARE = 0.25
"""The share of the last commit's duration that a leader waits for threads that may write again."""

LINGER_LIMIT_S = 0.002

_PAUSE_S = 0.000_05

_ROOM_PAUSE_S = 0.001
"""How often `submit` checks for room in a full queue."""

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
    """The parties of one commit; `attempt` and `failed` hold its outcome."""

    parties: Sequence[_Party]
    attempt: Attempt = field(default_factory=Attempt)
    failed: bool = False


class Writer:
    """Group commit into the journal. Thread-safe.

    The first thread to arrive becomes the leader: it commits its own submissions and those of all queued threads, wakes
    these threads, and passes the lead to the first thread that arrived during the commit. So a single thread never
    waits for another, and many threads share each fsync. A submission returns when its journal rows are committed, or
    raises with nothing written.

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
        self._kinds: dict[tuple[str, str], str] = {}
        self._kinds_as_of = -1
        self._inbox = _Inbox(self, queue_points)

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
        if led:
            self._metadata.checkpoint_if_due()

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
            self._commit_group(group)
        finally:
            self._settle()
        self._last_commit_s = time.perf_counter() - started
        self._last_party = len(group.parties)

    def _settle(self) -> None:
        """Wake the threads of a group that was committed or failed, and appoint the next leader. Safe to repeat."""
        group = self._group
        if group is not None:
            decided = group.attempt.committed or group.failed
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

    def _commit_group(self, group: _CommitGroup) -> None:
        submissions = [submission for party in group.parties for submission in party.submissions]
        kinds = _CommitKinds()

        def write(connection: Connection) -> None:
            self._forget_changed_kinds(connection)
            for submission in submissions:  # this may be the second attempt
                submission.error = submission.written = None
            accepted = [s for s in submissions if self._kinds_fit(connection, s, kinds)]
            if accepted:
                self._append(connection, accepted)

        try:
            self._metadata.journal(write, group.attempt)
            self._kinds |= kinds.registered
        except HoldfastError as error:
            if not group.attempt.committed:
                for submission in submissions:
                    submission.error = submission.error or error
                    submission.written = None
                group.failed = True

    def _append(self, connection: Connection, submissions: Sequence[Submission]) -> None:
        now_us = self._clock()
        journal = JournalRepository(connection)
        seq = journal.last_seq()
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

    def _kinds_fit(self, connection: Connection, submission: Submission, group: _CommitKinds) -> bool:
        """Register new series, and check the kinds of the others.

        On a mismatch only this submission fails, or only its wrong rows if they may be skipped. An empty series takes
        the new kind.
        """
        wanted: dict[tuple[str, str], str | None] = {}
        others: dict[tuple[str, str], tuple[str, str]] = {}
        own: dict[tuple[str, str], str] = {}
        mixed: set[tuple[str, str]] = set()
        for change in submission.changes:
            if isinstance(change, (PointsChange, BulkChange)):
                for pair, kind in change.kinds.items():
                    known = group.registered.get(pair) or self._kinds.get(pair)
                    if known is None:
                        wanted[pair] = wanted.get(pair) or kind
                    elif kind is not None and kind != known:
                        others[pair] = (known, kind)
                    if kind is not None and (first := own.setdefault(pair, kind)) != kind:
                        others[pair] = (first, kind)
                        mixed.add(pair)
        if not (wanted or others):
            group.use(submission)
            return True
        series = SeriesRepository(connection)
        stored = series.kinds(wanted)
        for pair, kind in wanted.items():
            known = stored.get(pair)
            if known is not None and kind is not None and kind != known:
                others.setdefault(pair, (known, kind))
        for pair, (_, kind) in list(others.items()):
            if pair not in mixed and pair not in group.used and is_empty_series(connection, pair):
                series.change_kind(pair, kind)
                stored[pair] = group.registered[pair] = kind
                del others[pair]
        if others:
            if submission.skippable is None:
                pair, (known, kind) = next(iter(others.items()))
                submission.error = _mismatch(pair, known, kind)
                return False
            submission.leave_out({pair: known for pair, (known, _) in others.items()})
            return self._kinds_fit(connection, submission, group)
        new = {pair: kind for pair, kind in wanted.items() if stored.get(pair) is None}
        new = {pair: kind for pair, kind in new.items() if kind is not None or pair not in stored}
        if new:
            series.register(new)
        for pair, kind in wanted.items():
            found = stored.get(pair) or kind
            if found is not None:
                group.registered[pair] = found
        group.use(submission)
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


@dataclass(slots=True)
class _CommitKinds:
    """The kinds that one commit has found or set; not visible to others before the commit."""

    registered: dict[tuple[str, str], str] = field(default_factory=dict)
    used: set[tuple[str, str]] = field(default_factory=set)
    """Series to which an earlier submission of the commit writes readings."""

    def use(self, submission: Submission) -> None:
        """Add the series of an accepted submission."""
        for change in submission.changes:
            if isinstance(change, (PointsChange, BulkChange)):
                self.used.update(pair for pair, kind in change.kinds.items() if kind is not None)


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


class _Inbox:
    """The bounded queue of `submit`, and the thread that empties it.

    Callers poll for room every millisecond, because an interrupt could leave a blocking primitive in an undefined
    state. The thread waits for `_bell`, a lock that is released before anything is queued.
    """

    def __init__(self, writer: Writer, limit_points: int) -> None:
        self._writer = writer
        self._limit = limit_points
        self._mutex = threading.Lock()
        self._bell = threading.Lock()
        self._running = threading.Lock()
        self._waiting: deque[Submission] = deque()
        self._points = 0
        self._thread: threading.Thread | None = None
        self._runner = 0
        self._closed = False

    def put(self, submission: Submission) -> Future[Written]:
        future: Future[Written] = Future()
        submission.future = future
        future.set_running_or_notify_cancel()  # once queued, it will be written and cannot be cancelled
        submission.points = sum(c.count for c in submission.changes if isinstance(c, PointsChange))
        from_callback = threading.get_ident() == self._runner
        while True:
            with self._mutex:
                if self._closed:
                    raise StoreClosed("the store is closed; nothing of this call was written")
                # A submission larger than the queue is accepted when the queue is empty.
                if from_callback or not self._points or self._points + submission.points <= self._limit:
                    if self._thread is None or not self._thread.is_alive():
                        self._thread = self._started()
                    self._ring()
                    self._points += submission.points
                    self._waiting.append(submission)
                    return future
            time.sleep(_ROOM_PAUSE_S)

    def close(self) -> None:
        with self._mutex:
            self._closed = True
            self._ring()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _started(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, name="holdfast-writer", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise HoldfastError(
                f"the thread that writes submitted points could not be started ({error}); nothing of this call was "
                "written. Raise the limit of threads, or end some, and try again"
            ) from error
        return thread

    def _ring(self) -> None:
        if self._bell.locked():
            self._bell.release()

    def _run(self) -> None:
        with self._running:  # an interrupted start may have left two threads
            self._runner = threading.get_ident()
            while True:
                self._bell.acquire()
                with self._mutex:
                    group = list(self._waiting)
                    self._waiting.clear()
                    closed = self._closed
                if group:
                    self._settle(group)
                elif closed:
                    self._runner = 0
                    with self._mutex:
                        self._ring()  # for another thread that may be waiting
                    return
                with self._mutex:
                    if self._waiting or self._closed:
                        self._ring()

    def _settle(self, group: Sequence[Submission]) -> None:
        try:
            self._writer.commit_all(group)
        except BaseException as error:  # noqa: BLE001  the futures raise it in the callers
            for submission in group:
                submission.error = submission.error or error
        with self._mutex:
            self._points -= sum(submission.points for submission in group)
        for submission in group:
            assert submission.future is not None
            if submission.error is not None:
                submission.future.set_exception(submission.error)
            else:
                assert submission.written is not None
                submission.future.set_result(submission.written)


def _mismatch(pair: tuple[str, str], known: str, kind: str) -> InvalidPoint:
    sensor, metric = pair
    return InvalidPoint(
        [Refusal(None, "value", f"is a {kind}, but the series {sensor!r} {metric!r} holds {known} values")]
    )
