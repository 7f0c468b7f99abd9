"""The steps at which a child is killed, and how it is stopped there. Judges nothing.

The code under test is unchanged. The stops come from outside, in the child only: from SQLAlchemy's events
around each statement, from SQLite's own trace of statements, and from wrappers around public functions
(`DefaultDialect.do_commit` of SQLAlchemy; `bare_transaction`, `checkpoint_wal` and `truncate_wal` of
`repo.engines.sqlite.driver`; `fetched` of `repo.engines.base`; `append` of the journal; `acquire` and `release` of the
lease; what a promotion calls, and `Path.replace`). At the chosen step the child reports it on its pipe and then
- waits there until it is killed (a stop), or
- goes on, and is killed while the engine is at it (a race: COMMIT, CHECKPOINT, WAL checkpoint, query). Whether the
  kill came in time is known: the child says when it has passed the step, so a late kill is not counted.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.pool import Pool

from repo.core.columns import OpenColumns
from repo.core.compaction import Compaction, Piece
from repo.disk import durable
from repo.engines import base
from repo.engines.bare import BareConnection
from repo.engines.duckdb.backend import DuckDBBackend
from repo.engines.sqlite import driver as sqlite
from repo.engines.sqlite.backend import SQLiteBackend
from repo.processes.lease import Lease
from repo.repositories.journal import JournalRepository
from repo.upkeep import convert as converting
from repo.upkeep import copying, rewrite
from repo.upkeep import shrink as shrinking

__all__ = [
    "BULK",
    "COMPACTIONS",
    "DUCKDB_ALONE",
    "MOVES",
    "MOVES_BESIDE",
    "READER",
    "SHRINKS",
    "STEPS",
    "Place",
    "Stopper",
    "install",
    "watch",
]


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the code: its name, and whether the child races on instead of stopping."""

    name: str
    race: bool = False


_OF_A_MOVE = (
    Place("move: before the new file"),
    Place("move: before the copy"),
    Place("move: copy", race=True),
    Place("move: a table copied"),
    Place("move: before the reading back"),
    Place("move: durable"),
    Place("move: before the naming"),
    Place("move: named"),
    Place("before move: switch"),
    Place("after move: switch"),
    Place("move: switch COMMIT", race=True),
    Place("move: switch committed"),
    Place("move: before the setting aside"),
    Place("move: log set aside"),
    Place("move: set aside"),
)

STEPS: dict[str, tuple[Place, ...]] = {
    "before a journal commit": (Place("journal filled"),),
    "in a journal commit": (Place("journal COMMIT", race=True),),
    "after a journal commit": (Place("journal committed"),),
    "in flush's transaction": (
        Place("before incoming"),
        Place("before delete"),
        Place("after delete"),
        Place("before append"),
        Place("after append"),
        Place("before summaries"),
        Place("after watermark"),
    ),
    "in a bulk load": (
        Place("bulk reserved"),
        Place("before bulk"),
        Place("bulk", race=True),
        Place("after bulk"),
    ),
    "in a promotion or demotion": _OF_A_MOVE,
    "in a move, another process going on": _OF_A_MOVE,
    "at a random time of a promotion or demotion": (Place("move", race=True),),
    "in a shrink": (
        Place("move: before the new file"),
        Place("move: a table copied"),
        Place("move: before the reading back"),
        Place("move: durable"),
        Place("shrink: before the naming"),
        Place("shrink: named"),
        Place("shrink: vacuum", race=True),
    ),
    "at a random time of a shrink": (Place("shrink", race=True),),
    "in a compaction": (
        Place("before compact: copy"),
        Place("before compact: delete"),
        Place("after compact: delete"),
        Place("before compact: append"),
        Place("after compact: append"),
        Place("after compact: slice"),
        Place("compact committed"),
        Place("compact: before CHECKPOINT"),
        Place("compact: durable"),
    ),
    "in a statement of a compaction": (
        Place("compact: copy", race=True),
        Place("compact: append", race=True),
        Place("compact COMMIT", race=True),
        Place("compact: CHECKPOINT", race=True),
    ),
    "at a random time of a compaction": (Place("compact", race=True),),
    "in flush's COMMIT": (Place("flush COMMIT", race=True),),
    "between flush's COMMIT and the copy": (
        Place("flush committed"),
        Place("before copy"),
        Place("after copied_through"),
    ),
    "between the copy and the CHECKPOINT": (Place("before CHECKPOINT"),),
    "in the CHECKPOINT": (Place("CHECKPOINT", race=True),),
    "between the CHECKPOINT and the prune": (Place("after CHECKPOINT"), Place("before pruned_through")),
    "in the prune": (
        Place("after pruned_through"),
        Place("after prune"),
        Place("prune COMMIT", race=True),
    ),
    "in a checkpoint of SQLite's WAL": (Place("WAL checkpoint", race=True),),
    "in a query": (Place("after query"), Place("query", race=True)),
    "in the hand-over of the lease": (
        Place("lease released"),
        Place("before release"),
        Place("lease taken"),
        Place("lease wanted", race=True),
    ),
    "in the creation of the store": (Place("creation"),),
    "at a random time": (),
}

BULK = "in a bulk load"
"""Only with DuckDB: with SQLite, tables go through the journal."""

MOVES_BESIDE = "in a move, another process going on"
"""It finds the columns in either engine, and continues with them there."""

MOVES = ("in a promotion or demotion", MOVES_BESIDE, "at a random time of a promotion or demotion")
"""The columns move back and forth between the engines."""

SHRINKS = ("in a shrink", "at a random time of a shrink")
"""The files are rewritten continuously."""

COMPACTIONS = ("in a compaction", "in a statement of a compaction", "at a random time of a compaction")
"""Everything that is stored is compacted continuously."""

DUCKDB_ALONE = (BULK, *COMPACTIONS)
"""Steps that SQLite does not take."""

_STATEMENTS = {
    "compact: copy": re.compile(r"\s*CREATE TEMPORARY TABLE holdfast_sorted"),
    "compact: names": re.compile(r"\s*CREATE TEMPORARY TABLE holdfast_names"),
    "compact: delete": re.compile(r"\s*DELETE FROM time_series_data WHERE seq BETWEEN"),
    "compact: append": re.compile(r"\s*INSERT INTO time_series_data\b.*holdfast_lists", re.DOTALL),
    "compact: slice": re.compile(r"\s*INSERT INTO slices"),
    "bulk": re.compile(r"\s*INSERT INTO (time_series_data|holdfast_incoming)\b.*OVER \(\) AS seq", re.DOTALL),
    "incoming": re.compile(r"\s*CREATE TEMPORARY TABLE"),
    "delete": re.compile(r"\s*DELETE FROM time_series_data"),
    "append": re.compile(r"\s*INSERT INTO time_series_data"),
    "summaries": re.compile(r"\s*(DELETE FROM|INSERT OR REPLACE INTO) series\b"),
    "watermark": re.compile(r"\s*UPDATE timeseries_state SET watermark"),
    "copy": re.compile(r"\s*(DELETE FROM|INSERT OR REPLACE INTO) latest"),
    "copied_through": re.compile(r"\s*UPDATE store_state SET copied_through"),
    "pruned_through": re.compile(r"\s*UPDATE store_state SET pruned_through"),
    "prune": re.compile(r"\s*DELETE FROM journal"),
    "move: switch": re.compile(r"\s*UPDATE store_state SET engine="),
    "CHECKPOINT": re.compile(r"\s*CHECKPOINT"),
}
_COMMITS = {
    "compact: slice": "compact",
    "watermark": "flush",
    "prune": "prune",
    "move: switch": "move: switch",
}
READER = "reader"
"""The thread whose queries are a step; flush reads the same table."""


class Stopper(Protocol):
    """The callbacks for every place."""

    def reach(self, name: str) -> None:
        """Called by the thread that reaches a place."""

    def passed(self, name: str) -> None:
        """Called by the thread that has passed a place of a race."""


class _Killed:
    """Counts how often the chosen place is reached, and stops the child there."""

    def __init__(self, place: Place, nth: int, say: Callable[[str], None]) -> None:
        self._place = place
        self._left = nth
        self._say = say
        self._lock = threading.Lock()
        self._racing = threading.local()

    def reach(self, name: str) -> None:
        """Stop here if this is the chosen place and time."""
        if name != self._place.name:
            return
        with self._lock:
            self._left -= 1
            if self._left != 0:
                return
        self._say("STEP")
        if self._place.race:
            self._racing.on = True
            return
        time.sleep(120)
        os._exit(3)

    def passed(self, name: str) -> None:
        """Report that a race is over, if this thread was in one."""
        if name == self._place.name and getattr(self._racing, "on", False):
            self._racing.on = False
            self._say("PASSED")


def install(place: Place, nth: int, say: Callable[[str], None]) -> None:
    """Stop this process the `nth` time it reaches `place`; stays installed for the rest of its life."""
    watch(
        _Killed(place, nth, say),
        trace_sqlite=place.name in ("journal COMMIT", "WAL checkpoint", "before CHECKPOINT", "CHECKPOINT"),
    )


def watch(stopper: Stopper, *, trace_sqlite: bool) -> None:
    """Call `stopper` at every place, for the rest of this process's life.

    Places inside SQLite's own statements need `trace_sqlite`. They are reached in a callback, which swallows any
    exception.
    """
    _watch_statements(stopper)
    _watch_queries(stopper)
    _watch_commits(stopper)
    _watch_journal(stopper)
    _watch_wal_checkpoints(stopper)
    _watch_lease(stopper)
    _watch_moves(stopper)
    _watch_shrinks(stopper)
    _watch_compactions(stopper)
    if trace_sqlite:
        _trace_sqlite(stopper)


_here = threading.local()


def _watch_statements(stopper: Stopper) -> None:
    def name_of(statement: str) -> str | None:
        for name, pattern in _STATEMENTS.items():
            if pattern.match(statement):
                return name
        return None

    @event.listens_for(Engine, "before_cursor_execute")
    def _before(_connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        stopper.reach("creation")
        if name := name_of(statement):
            stopper.reach(f"before {name}")
            if name == "CHECKPOINT" and getattr(_here, "compacting", False):
                stopper.reach("compact: before CHECKPOINT")
                stopper.reach("compact: CHECKPOINT")
            stopper.reach(name)

    @event.listens_for(Engine, "after_cursor_execute")
    def _after(_connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        if name := name_of(statement):
            stopper.passed(name)
            if name in _COMMITS:
                _here.committing = _COMMITS[name]
            if name == "CHECKPOINT" and getattr(_here, "compacting", False):
                stopper.passed("compact: CHECKPOINT")
                stopper.reach("compact: durable")
            stopper.reach(f"after {name}")


def _watch_queries(stopper: Stopper) -> None:
    original = base.fetched

    def fetched(connection: Connection, query: base.Query, fetch: Callable[[Any], Any]) -> Any:
        if threading.current_thread().name != READER:
            return original(connection, query, fetch)
        stopper.reach("query")
        found = original(connection, query, fetch)
        stopper.passed("query")
        stopper.reach("after query")
        return found

    base.fetched = fetched


def _watch_commits(stopper: Stopper) -> None:
    original = DefaultDialect.do_commit

    def do_commit(self: DefaultDialect, connection: Any) -> None:
        what, _here.committing = getattr(_here, "committing", None), None
        stopper.reach("creation")
        if what is not None:
            stopper.reach(f"{what} COMMIT")
        original(self, connection)  # type: ignore[no-untyped-call]
        if what is not None:
            stopper.passed(f"{what} COMMIT")
            stopper.reach(f"{what} committed")

    DefaultDialect.do_commit = do_commit  # type: ignore[method-assign]


def _watch_journal(stopper: Stopper) -> None:
    original, append = sqlite.bare_transaction, JournalRepository.append

    def watched_append(
        self: JournalRepository, seq: int, count: int, kind: str, payload: bytes, created_us: int
    ) -> None:
        append(self, seq, count, kind, payload, created_us)
        _here.bulk = kind == "bulk"

    JournalRepository.append = watched_append  # type: ignore[method-assign]

    def bare_transaction(
        bare: BareConnection, outcome: sqlite.CommitOutcome, work: Callable[[Connection], object]
    ) -> None:
        def watched(connection: Connection) -> None:
            work(connection)
            stopper.reach("journal filled")
            _here.journal = True

        original(bare, outcome, watched)
        _here.journal = False
        stopper.passed("journal COMMIT")
        stopper.reach("journal committed")
        if getattr(_here, "bulk", False):
            _here.bulk = False
            stopper.reach("bulk reserved")

    sqlite.bare_transaction = bare_transaction


def _watch_wal_checkpoints(stopper: Stopper) -> None:
    original, empty = sqlite.checkpoint_wal, sqlite.truncate_wal

    def checkpoint_wal(engine: Engine) -> sqlite.WalCheckpoint:
        checkpointed = original(engine)
        stopper.passed("WAL checkpoint")
        return checkpointed

    def truncate_wal(engine: Engine) -> sqlite.WalCheckpoint:
        checkpointed = empty(engine)
        stopper.passed("CHECKPOINT")
        stopper.reach("after CHECKPOINT")
        return checkpointed

    sqlite.checkpoint_wal, sqlite.truncate_wal = checkpoint_wal, truncate_wal


def _trace_sqlite(stopper: Stopper) -> None:
    def trace(statement: str) -> None:
        if statement == "COMMIT" and getattr(_here, "journal", False):
            stopper.reach("journal COMMIT")
        elif statement.startswith("PRAGMA wal_checkpoint(PASSIVE)"):
            stopper.reach("WAL checkpoint")
        elif statement.startswith("PRAGMA wal_checkpoint(TRUNCATE)"):
            stopper.reach("before CHECKPOINT")
            stopper.reach("CHECKPOINT")

    @event.listens_for(Pool, "connect")
    def _connected(connection: Any, _record: object) -> None:
        if hasattr(connection, "set_trace_callback"):
            connection.set_trace_callback(trace)


def _watch_lease(stopper: Stopper) -> None:
    acquire, release = Lease.acquire, Lease.release

    def watched_acquire(self: Lease, *given: Any) -> None:
        if self.held:
            return
        stopper.reach("lease wanted")
        acquire(self, *given)
        stopper.passed("lease wanted")
        stopper.reach("lease taken")

    def watched_release(self: Lease) -> None:
        held = self.held
        if held:
            stopper.reach("before release")
        release(self)
        if held:
            stopper.reach("lease released")

    Lease.acquire = watched_acquire  # type: ignore[method-assign, assignment]
    Lease.release = watched_release  # type: ignore[method-assign]


def _watch_moves(stopper: Stopper) -> None:
    convert, copy_tables, sums_of = converting.convert, copying.copy_tables, copying.sums_of
    sync, replace = durable.sync, Path.replace

    def watched_convert(*arguments: Any, **options: Any) -> Any:
        stopper.reach("move")
        _here.moving = True
        done = convert(*arguments, **options)
        _here.moving = False
        stopper.passed("move")
        return done

    def watched_copy(source: Any, target: Any, progress: Any, committed: Callable[[], object]) -> Any:
        def committed_too() -> None:
            committed()
            stopper.reach("move: a table copied")

        stopper.reach("move: before the copy")
        stopper.reach("move: copy")
        sums = copy_tables(source, target, progress, committed_too)
        stopper.passed("move: copy")
        return sums

    def watched_sums(connection: Connection) -> Any:
        stopper.reach("move: before the reading back")
        return sums_of(connection)

    def watched_sync(target: Path | int) -> None:
        sync(target)
        if isinstance(target, Path) and target.suffix == ".building":
            stopper.reach("move: durable")

    def watched_replace(self: Path, target: Path) -> Path:
        aside = ".inactive-" in target.name
        log = aside and not self.name.endswith(("duckdb", "sqlite"))
        named = self.suffix == ".building" and getattr(_here, "moving", False)
        if named or (aside and not log):
            stopper.reach("move: before the naming" if named else "move: before the setting aside")
        replaced = replace(self, target)
        if named or aside:
            stopper.reach("move: named" if named else "move: log set aside" if log else "move: set aside")
        return replaced

    for engine in (DuckDBBackend, SQLiteBackend):
        _watch_new(stopper, engine)
    for module, name, watched in (
        (converting, "convert", watched_convert),
        (rewrite, "copy_tables", watched_copy),
        (rewrite, "sums_of", watched_sums),
    ):
        setattr(module, name, watched)
    durable.sync = watched_sync
    Path.replace = watched_replace  # type: ignore[method-assign, assignment]


def _watch_shrinks(stopper: Stopper) -> None:
    shrink, replace, vacuum = shrinking.shrink, Path.replace, sqlite.vacuum

    def watched_shrink(*arguments: Any, **options: Any) -> Any:
        stopper.reach("shrink")
        _here.shrinking = True
        done = shrink(*arguments, **options)
        _here.shrinking = False
        stopper.passed("shrink")
        return done

    def watched_replace(self: Path, target: Path) -> Path:
        built = self.suffix == ".building" and getattr(_here, "shrinking", False)
        if built:
            stopper.reach("shrink: before the naming")
        replaced = replace(self, target)
        if built:
            stopper.reach("shrink: named")
        return replaced

    def watched_vacuum(engine: Engine) -> None:
        stopper.reach("shrink: vacuum")
        vacuum(engine)
        stopper.passed("shrink: vacuum")

    shrinking.shrink = watched_shrink
    Path.replace = watched_replace  # type: ignore[method-assign, assignment]
    sqlite.vacuum = watched_vacuum


def _watch_compactions(stopper: Stopper) -> None:
    original = Compaction.step

    def step(self: Compaction, opened: OpenColumns, through: int, *, dry_run: bool = False) -> Piece | None:
        stopper.reach("compact")
        _here.compacting = True
        piece = original(self, opened, through, dry_run=dry_run)
        _here.compacting = False
        stopper.passed("compact")
        return piece

    Compaction.step = step  # type: ignore[method-assign]


def _watch_new(stopper: Stopper, engine: Any) -> None:
    open_new = engine.open_new

    def watched(self: Any) -> Engine:
        stopper.reach("move: before the new file")
        made: Engine = open_new(self)
        return made

    engine.open_new = watched
