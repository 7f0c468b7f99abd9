"""The writer: puts changes into the journal, many threads' changes in one commit. Never touches the columns."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Self

from sqlalchemy import Connection

from repo.clock import Clock
from repo.errors import HoldfastError, InvalidPoint, Refusal, StoreClosed
from repo.repositories.journal import BULK, DELETE, KEEP, POINTS, JournalRepository
from repo.repositories.points import Written
from repo.repositories.records import NewRecord, RecordRepository
from repo.repositories.selection import Selection
from repo.repositories.series import SeriesRepository
from repo.store.metadata import MetadataDatabase
from repo.store.packing import BLOCK_BYTES, BLOCK_POINTS, pack
from repo.values import Batch, check_rows

__all__ = [
    "BulkChange",
    "DeleteChange",
    "PointsChange",
    "RecordChange",
    "SettleChange",
    "Submission",
    "Writer",
]

LINGER_SHARE = 0.25
"""How much of the last commit's time a leader waits for threads that are about to write again."""

LINGER_LIMIT_S = 0.002

RECORD_LOG_BYTES = 500
"""What adding or settling one record of many writes, in the table and its four indexes."""

_PAUSE_S = 0.000_05


@dataclass(slots=True)
class PointsChange:
    """Points to write, packed by the thread that brings them: (count, block) in order.

    Those of a `record`, which stands before them in the submission, are written if it changed anything.
    """

    kinds: dict[tuple[str, str], str | None]
    blocks: list[tuple[int, bytes]]
    count: int
    """How many the caller gave; the blocks hold fewer where one of them replaces others of the same table."""
    keep: bool = False
    """Whether they give way to points already stored."""
    record: RecordChange | None = None

    @classmethod
    def of(cls, batch: Batch, *, keep: bool = False, record: RecordChange | None = None) -> PointsChange:
        """Pack a batch, in blocks that a journal row can hold."""
        kinds = dict(zip(batch.series, batch.kinds, strict=True))
        return cls(kinds, [(len(part), pack(part)) for part in _parts(batch)], len(batch), keep, record)


@dataclass(frozen=True, slots=True)
class BulkChange:
    """Seqs to reserve for a chunk of a table that goes straight to the columns; `token` tells it from others."""

    kinds: dict[tuple[str, str], str | None]
    count: int
    token: bytes


@dataclass(frozen=True, slots=True)
class DeleteChange:
    """Points to delete: all that are selected and written before."""

    selection: Selection


@dataclass(slots=True)
class RecordChange:
    """A record to add; its points are a change of their own in the same submission."""

    record: NewRecord
    changed: bool = False
    """Whether it was new, or other data than stood there; set by the commit."""


@dataclass(slots=True)
class SettleChange:
    """Records that were sent, and go, or that failed once more."""

    record_ids: Sequence[str]
    sent: bool
    increment_retry: bool = True
    found: int = 0
    """How many of them there were; set by the commit."""


Change = PointsChange | BulkChange | DeleteChange | RecordChange | SettleChange


@dataclass(slots=True, eq=False)
class Submission:
    """Changes that are acknowledged together or not at all."""

    changes: Sequence[Change]
    refusals: tuple[Refusal, ...] = ()
    written: Written | None = None
    error: BaseException | None = None
    future: Future[Written] | None = None
    points: int = 0

    @classmethod
    def of_rows(cls, rows: Iterable[Any], *, accept_bool: bool, now_us: int, skip: bool = False) -> Self:
        """Check rows as `Points.insert_many` describes them, and pack the good ones.

        Raises `InvalidPoint` listing every bad row, or with `skip` lists them in `refusals`.
        """
        batch, refusals = check_rows(rows, accept_bool=accept_bool, now_us=now_us, skip=skip)
        return cls((PointsChange.of(batch),) if len(batch) else (), refusals=refusals)


@dataclass(slots=True, eq=False)
class _Party:
    """Submissions of one thread, waiting for a commit."""

    submissions: Sequence[Submission]
    wake: threading.Lock = field(default_factory=threading.Lock)
    done: bool = False
    leads: bool = False

    def __post_init__(self) -> None:
        self.wake.acquire()


class Writer:
    """Group commit into the journal. Thread-safe.

    The first thread that comes leads: it commits for itself and for all who queued meanwhile, wakes them, and
    hands the lead to the first of those who came during the commit. So a lone thread never waits for
    another, and many share each fsync. A submission returns when its journal rows are committed, or raises
    with nothing of it written.
    """

    def __init__(self, metadata: MetadataDatabase, clock: Clock, queue_points: int) -> None:
        self._metadata = metadata
        self._clock = clock
        self._mutex = threading.Lock()
        self._queue: list[_Party] = []
        self._led = False
        self._last_party = 1
        self._last_commit_s = 0.0
        self._kinds: dict[tuple[str, str], str] = {}
        self._inbox = _Inbox(self, queue_points)

    def commit(self, submission: Submission) -> Written:
        """Make one submission durable; blocks until it is."""
        self.commit_all((submission,))
        if submission.error is not None:
            raise submission.error
        assert submission.written is not None
        return submission.written

    def commit_all(self, submissions: Sequence[Submission]) -> None:
        """Make several durable in one commit; each then has `written` or `error`."""
        self._metadata.refuse_after_fork()
        party = _Party(submissions)
        with self._mutex:
            self._queue.append(party)
            follows = self._led
            self._led = True
            party.leads = not follows
        try:
            if follows:
                party.wake.acquire()  # until a leader lets go of it: committed, or called to lead
                if party.done:
                    return
            self._lead()
        except BaseException:  # Ctrl-C, too: who is gone must not be called to lead the others
            self._withdraw(party)
            raise

    def submit(self, submission: Submission) -> Future[Written]:
        """Queue one submission for the writer's own thread; waits only while the queue is full."""
        self._metadata.refuse_after_fork()
        return self._inbox.put(submission)

    def close(self) -> None:
        """Commit what was submitted, then stop the writer's thread."""
        self._inbox.close()

    def _lead(self) -> None:
        self._linger()
        with self._mutex:
            group, self._queue = self._queue, []
        started = time.perf_counter()
        try:
            self._commit_group([submission for party in group for submission in party.submissions])
        finally:
            self._last_commit_s = time.perf_counter() - started
            self._last_party = len(group)
            with self._mutex:
                self._hand_over()
            for party in group:
                party.done = True
                party.wake.release()
        self._metadata.fold_if_due()

    def _hand_over(self) -> None:
        """Call the first who waits to lead; inside the mutex."""
        self._led = bool(self._queue)
        if self._queue:
            self._queue[0].leads = True
            self._queue[0].wake.release()

    def _withdraw(self, party: _Party) -> None:
        """Take a party out whose thread was interrupted, so that nobody waits for it."""
        with self._mutex:
            if party not in self._queue:
                return
            self._queue.remove(party)
            if party.leads:
                self._hand_over()

    def _linger(self) -> None:
        """Wait a little for those who were in the last commit: they are likely to write again at once."""
        if self._last_party < 2:
            return
        until = time.perf_counter() + min(self._last_commit_s * LINGER_SHARE, LINGER_LIMIT_S)
        while len(self._queue) < self._last_party and time.perf_counter() < until:
            time.sleep(_PAUSE_S)

    def _commit_group(self, submissions: Sequence[Submission]) -> None:
        size = sum(_size(change) for submission in submissions for change in submission.changes)
        registered: dict[tuple[str, str], str] = {}
        try:
            with self._metadata.journal_write(size) as connection:
                accepted = [s for s in submissions if self._kinds_fit(connection, s, registered)]
                if accepted:
                    self._append(connection, accepted)
            self._kinds |= registered
        except BaseException as error:
            for submission in submissions:
                if submission.error is None:
                    submission.error = error
                    submission.written = None
            if not isinstance(error, HoldfastError):
                raise

    def _append(self, connection: Connection, submissions: Sequence[Submission]) -> None:
        journal = JournalRepository(connection)
        records = RecordRepository(connection, clock=self._clock)
        now_us = self._clock()
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
                    journal.append(seq, 1, DELETE, change.selection.to_json(), now_us)
                elif isinstance(change, RecordChange):
                    change.changed = records.put(change.record)
                elif change.sent:
                    change.found = records.mark_sent(change.record_ids)
                else:
                    change.found = records.mark_failed(
                        change.record_ids, increment_retry=change.increment_retry
                    )
            first_seq, last_seq = (before + 1, seq) if seq > before else (None, None)
            submission.written = Written(
                first_seq, last_seq, points, len(submission.refusals), submission.refusals
            )
        row.end()

    def _kinds_fit(
        self, connection: Connection, submission: Submission, registered: dict[tuple[str, str], str]
    ) -> bool:
        """Register new series; on a series of another kind the submission fails alone."""
        wanted: dict[tuple[str, str], str | None] = {}
        for change in submission.changes:
            if isinstance(change, (PointsChange, BulkChange)):
                for pair, kind in change.kinds.items():
                    known = self._kinds.get(pair) or registered.get(pair) or wanted.get(pair)
                    if known is None:
                        wanted[pair] = kind
                    elif kind is not None and kind != known:
                        submission.error = _mismatch(pair, known, kind)
                        return False
        if not wanted:
            return True
        series = SeriesRepository(connection)
        stored = series.kinds(wanted)
        for pair, kind in wanted.items():
            known = stored.get(pair)
            if known is not None and kind is not None and kind != known:
                submission.error = _mismatch(pair, known, kind)
                return False
        new = {pair: kind for pair, kind in wanted.items() if stored.get(pair) is None}
        new = {pair: kind for pair, kind in new.items() if kind is not None or pair not in stored}
        if new:
            series.register(new)
        for pair, kind in wanted.items():
            settled = stored.get(pair) or kind
            if settled is not None:
                registered[pair] = settled
        return True


class _PointsRow:
    """A journal row that takes blocks until it is full, or until something else comes between."""

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
        """Write the row, if it holds anything."""
        if self._blocks:
            payload = self._blocks[0] if len(self._blocks) == 1 else b"".join(self._blocks)
            self._journal.append(self._seq, self._count, self._kind, payload, self._now_us)
            self._blocks, self._count, self._bytes = [], 0, 0


class _Inbox:
    """The bounded queue of `submit`, and the thread that empties it."""

    def __init__(self, writer: Writer, limit_points: int) -> None:
        self._writer = writer
        self._limit = limit_points
        self._changed = threading.Condition()
        self._waiting: deque[Submission] = deque()
        self._points = 0
        self._thread: threading.Thread | None = None
        self._closed = False

    def put(self, submission: Submission) -> Future[Written]:
        future: Future[Written] = Future()
        submission.future = future
        future.set_running_or_notify_cancel()  # once queued it will be written: it cannot be taken back
        submission.points = sum(c.count for c in submission.changes if isinstance(c, PointsChange))
        with self._changed:
            # A submission larger than the whole queue is let in alone.
            self._changed.wait_for(
                lambda: self._closed or not self._points or self._points + submission.points <= self._limit
            )
            if self._closed:
                raise StoreClosed("the store is closed; nothing of this call was written")
            if self._thread is None:
                self._thread = self._started()
            self._waiting.append(submission)
            self._points += submission.points
            self._changed.notify_all()
        return future

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _started(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, name="holdfast-writer", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise HoldfastError(
                f"no thread could be started to write what is submitted ({error}); nothing of this call was written. "
                "Raise the limit of threads, or end some, and try again"
            ) from error
        return thread

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                group = list(self._waiting)
                self._waiting.clear()
                if not group:
                    return
            self._settle(group)
            with self._changed:
                self._points -= sum(submission.points for submission in group)
                self._changed.notify_all()

    def _settle(self, group: Sequence[Submission]) -> None:
        try:
            self._writer.commit_all(group)
        except BaseException as error:  # noqa: BLE001  it belongs to the callers, whose futures carry it
            for submission in group:
                submission.error = submission.error or error
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
        [
            Refusal(
                None, "value", f"the series {sensor!r} {metric!r} holds {known} values, and this is a {kind}"
            )
        ]
    )


def _size(change: Change) -> int:
    """Return about how many bytes of log a change makes, beside those of its commit."""
    if isinstance(change, PointsChange):
        return sum(len(block) for _, block in change.blocks)
    if isinstance(change, RecordChange):
        return len(change.record.data_json) + RECORD_LOG_BYTES
    return RECORD_LOG_BYTES * len(change.record_ids) if isinstance(change, SettleChange) else 0


def _parts(batch: Batch) -> list[Batch]:
    """Cut a batch into blocks of at most `BLOCK_POINTS` points, and about `BLOCK_BYTES` bytes."""
    wide = sum(map(len, batch.texts.values())) + sum(map(len, batch.metadata.values()))
    rows = len(batch)
    step = min(BLOCK_POINTS, max(1, rows * BLOCK_BYTES // (rows * 24 + 3 * wide + 1)))
    if rows <= step:
        return [batch]
    return [batch.part(start, min(start + step, rows)) for start in range(0, rows, step)]
