"""Repositories on the caller's own connection: for every method, the caller commits."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, select

from repo import InvalidPoint, InvalidQuery, PointRepository, RecordRepository, TransactionRule, models
from repo.cursors import Cursor
from repo.engines.sqlite import driver as sqlite
from repo.queries.selection import Summary
from repo.repositories.attempts import Attempt, AttemptRepository
from repo.repositories.journal import BULK, POINTS, JournalRepository
from repo.repositories.ledger import ColumnsLedgerRepository, LedgerRepository, Loss
from repo.repositories.positions import Position, PositionRepository, SenderRepository
from repo.repositories.quarantine import Quarantined, QuarantineRepository
from repo.repositories.records import NewRecord, RecordScope
from repo.repositories.series import LatestRepository, SeriesRepository, SummaryRepository
from repo.repositories.sinks import Lanes, NewSink, SinkRepository, Totals
from repo.repositories.state import ColumnsState, ColumnsStateRepository, State, StateRepository
from repo.schema import runner
from tests.conftest import close_engine

Write = Callable[[Connection], Any]

LOSS = Loss("x", "points", "delete", None, 1, 0, 0, 0)
SUMMARY = Summary(1, 0, 0, 1.0, None, 100, None, 1)
PAIR = ("a", "m")
ATTEMPT = Attempt(1, 5, 5, "c", "t", "live", 1, 0)
REFUSED = Quarantined("old", "no", 5, seq=7, sensor_id="a", metric_name="m")
SINK = NewSink("s", "http", "https://h", {}, None, False, True, None, None, Lanes())


def with_point(connection: Connection) -> None:
    PointRepository(connection).insert("old", "m", 1.0, timestamp=1)


def with_facts(connection: Connection) -> None:
    StateRepository(connection).create(State("id", 0, 0, 0, "duckdb", None, 1, 0))
    JournalRepository(connection).append(1, 1, POINTS, b"", 0)
    JournalRepository(connection).append(7, 6, BULK, b"", 0)
    RecordRepository(connection).add("old", "s", {})
    SeriesRepository(connection).register({("old", "m"): "number"})
    LatestRepository(connection).replace({("old", "m"): SUMMARY})
    LedgerRepository(connection).add([LOSS._replace(entry_id="old", dropped=None)])
    SinkRepository(connection).add(replace(SINK, name="old"), 0, 0)
    SinkRepository(connection).failed("old", "failing", "no", 0)
    AttemptRepository(connection).put("old", ATTEMPT)
    QuarantineRepository(connection).add([REFUSED, REFUSED._replace(seq=8)], 0)
    QuarantineRepository(connection).mark_retry([2])


def with_columns_facts(connection: Connection) -> None:
    ColumnsStateRepository(connection).create(ColumnsState("id", "file", 1, 0))
    ColumnsLedgerRepository(connection).add(LOSS._replace(entry_id="old"))
    SummaryRepository(connection).replace({("old", "m"): SUMMARY})


POINT_WRITES: dict[str, Write] = {
    "insert": lambda c: PointRepository(c).insert("a", "m", 2.0, timestamp=1),
    "insert_many": lambda c: PointRepository(c).insert_many([("a", "m", at, 1.0) for at in range(50)]),
    "insert_many, overwriting": lambda c: PointRepository(c).insert_many([("old", "m", 1, 2.0)]),
    "delete": lambda c: PointRepository(c).delete("old"),
}
COLUMNS_WRITES: dict[str, Write] = {
    "summaries.replace": lambda c: SummaryRepository(c).replace({PAIR: SUMMARY}, [("old", "m")]),
    "ledger.add": lambda c: ColumnsLedgerRepository(c).add(LOSS),
    "ledger.remove": lambda c: ColumnsLedgerRepository(c).remove(["old"]),
    "state.set_store_id": lambda c: ColumnsStateRepository(c).set_store_id("other"),
    "state.set_watermark": lambda c: ColumnsStateRepository(c).set_watermark(7),
}
METADATA_WRITES: dict[str, Write] = {
    "records.add": lambda c: RecordRepository(c).add("r", "s", {}),
    "records.add, replacing": lambda c: RecordRepository(c).add("old", "s", {"a": 1}),
    "records.put": lambda c: RecordRepository(c).put(NewRecord("r", "s", "{}", 0.0, 0.0)),
    "records.mark_sent": lambda c: RecordRepository(c).mark_sent(["old"]),
    "records.drop": lambda c: RecordRepository(c).drop(RecordScope(("s",))),
    "records.skip_ids_through": lambda c: RecordRepository(c).skip_ids_through(70),
    "records.mark_failed": lambda c: RecordRepository(c).mark_failed(["old"]),
    "journal.append": lambda c: JournalRepository(c).append(9, 1, POINTS, b"", 0),
    "journal.append_lost": lambda c: JournalRepository(c).append_lost(9, 12, 0),
    "journal.void": lambda c: JournalRepository(c).void([7]),
    "journal.prune": lambda c: JournalRepository(c).prune(5),
    "journal.renumber_past": lambda c: JournalRepository(c).renumber_past(50, 0),
    "series.register": lambda c: SeriesRepository(c).register({PAIR: "number"}),
    "series.change_kind": lambda c: SeriesRepository(c).change_kind(("old", "m"), "text"),
    "series.describe": lambda c: SeriesRepository(c).describe(("old", "m"), {"unit": "bar"}),
    "latest.replace": lambda c: LatestRepository(c).replace({PAIR: SUMMARY}),
    "latest.clear": lambda c: LatestRepository(c).clear(),
    "ledger.add": lambda c: LedgerRepository(c).add([LOSS]),
    "ledger.merge": lambda c: LedgerRepository(c).merge(LOSS),
    "ledger.set_count": lambda c: LedgerRepository(c).set_count("old", 3, 0, 9),
    "sinks.confirm": lambda c: SinkRepository(c).confirm("old", 5, 1),
    "sinks.add": lambda c: SinkRepository(c).add(SINK, 5, 0),
    "sinks.change": lambda c: SinkRepository(c).change("old", {"hold": False}, 1),
    "sinks.remove": lambda c: SinkRepository(c).remove("old"),
    "sinks.move": lambda c: SinkRepository(c).move("old", Cursor.of(3, [(6, 9)]), 1),
    "sinks.sent": lambda c: SinkRepository(c).sent("old", "t", Totals(points=1), 0, 1),
    "sinks.failed": lambda c: SinkRepository(c).failed("old", "failing", "no", 1),
    "sinks.set_state": lambda c: SinkRepository(c).set_state("old", "paused", 1),
    "sinks.forget_tokens": lambda c: SinkRepository(c).forget_tokens(),
    "sinks.running": lambda c: SinkRepository(c).running("old"),
    "attempts.put": lambda c: AttemptRepository(c).put("old", ATTEMPT._replace(tries=2)),
    "attempts.remove": lambda c: AttemptRepository(c).remove("old"),
    "quarantine.add": lambda c: QuarantineRepository(c).add([REFUSED._replace(seq=9)], 1),
    "quarantine.mark_retry": lambda c: QuarantineRepository(c).mark_retry([1]),
    "quarantine.settle": lambda c: QuarantineRepository(c).settle("old", 8, 8),
    "quarantine.remove": lambda c: QuarantineRepository(c).remove([1]),
    "quarantine.clear": lambda c: QuarantineRepository(c).clear("old"),
    "positions.put": lambda c: PositionRepository(c).put(Position("i", 1, "s", "t", Cursor(5), 3, 0)),
    "senders.bind": lambda c: SenderRepository(c).bind("0f", "i", 0),
    "records.settle": lambda c: RecordRepository(c).settle([("old", "{}")]),
    "state.set": lambda c: StateRepository(c).set(copied_through=5),
}
DRIVEN = {
    *("ledger.add", "journal.append", "journal.append_lost", "series.register", "series.change_kind"),
    *("sinks.move", "sinks.sent", "sinks.running", "sinks.confirm"),
    *("attempts.put", "attempts.remove", "quarantine.settle", "positions.put", "senders.bind"),
}
"""Writes that go straight to the driver, for speed: the caller has begun a transaction, always."""


def cases() -> Iterator[Any]:
    columns = [(kind, "points.", with_point, POINT_WRITES) for kind in ("duckdb", "sqlite")]
    columns += [(kind, "columns ", with_columns_facts, COLUMNS_WRITES) for kind in ("duckdb", "sqlite")]
    for kind, prefix, prepare, writes in [*columns, ("metadata", "", with_facts, METADATA_WRITES)]:
        for name, write in writes.items():
            yield pytest.param(kind, prepare, write, name in DRIVEN, id=f"{kind} {prefix}{name}")


def open_database(path: Path, kind: str) -> Engine:
    if kind == "duckdb":
        from repo.engines.duckdb import driver as duckdb

        found = duckdb.open_engine(
            path, memory_limit_bytes=64_000_000, threads=2, temp_folder=path.with_suffix(".tmp")
        )
    else:
        found = sqlite.open_engine(path)
    return found


@pytest.fixture(scope="module")
def empty_databases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an empty database of each requested kind, at the head of the schema."""
    return tmp_path_factory.mktemp("databases")


@pytest.fixture
def database(tmp_path: Path, empty_databases: Path) -> Iterator[Callable[[str], Engine]]:
    """Create a database at the head of the schema; the kind is duckdb, sqlite or metadata."""
    opened: list[Engine] = []

    def open_(kind: str) -> Engine:
        empty = empty_databases / f"my.{kind}"
        if not empty.exists():
            made = open_database(empty, kind)
            runner.upgrade(made, "metadata" if kind == "metadata" else "timeseries")
            close_engine(made)
        path = Path(shutil.copyfile(empty, tmp_path / empty.name))
        opened.append(open_database(path, kind))
        return opened[-1]

    yield open_
    for found in opened:
        close_engine(found)


@pytest.fixture
def columns(database: Callable[[str], Engine], engine: str) -> Engine:
    """A separate time-series database."""
    return database(engine)


def everything(database: Engine) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of all tables, read by the driver on a second connection."""
    base = models.MetadataBase if "my.metadata" in str(database.url.database) else models.TimeSeriesBase
    raw = database.raw_connection()
    try:
        found = {}
        own = ["sqlite_sequence"] if base is models.MetadataBase else []
        for table in [*sorted(base.metadata.tables), *own]:
            cursor = raw.cursor()
            cursor.execute(f"SELECT * FROM {table}")
            found[table] = sorted(map(tuple, cursor.fetchall()), key=repr)
        return found
    finally:
        raw.close()


@pytest.mark.parametrize(("kind", "prepare", "write", "is_driven"), list(cases()))
def test_a_write_is_stored_when_the_caller_commits_and_only_then(
    database: Callable[[str], Engine], kind: str, prepare: Write, write: Write, is_driven: bool
) -> None:
    opened = database(kind)
    with opened.begin() as connection:
        prepare(connection)
    before = everything(opened)
    for ending in ("left", "rolled back", "committed"):
        if ending == "left" and is_driven:
            continue
        with opened.connect() as connection:
            transaction = None if ending == "left" else connection.begin()
            write(connection)
            assert connection.in_transaction(), "it must not commit"
            if kind != "metadata":
                assert everything(opened) == before, "not visible to others yet"
            if transaction is not None:
                transaction.commit() if ending == "committed" else transaction.rollback()
        assert (everything(opened) != before) == (ending == "committed"), ending


def test_every_write_method_of_every_repository_is_among_the_cases() -> None:
    named = {name.split(",")[0].split(".")[-1] for name in (*POINT_WRITES, *COLUMNS_WRITES, *METADATA_WRITES)}
    reads = {
        "range",
        "latest",
        "aggregate",
        "states",
        "after",
        "pending",
        "extents",
        "count",
        "kinds",
        "pairs",
        "list",
        "all",
    }
    reads |= {
        "owner",
        "totals",
        "backlog",
        "last_seq",
        "of_sink",
        "last_entry",
        "get",
        "has",
        "counts",
        "of",
        "changes",
        "data_version",
        "extent",
        "has_name",
        "waiting",
        "texts",
        "written_us",
        "may_have_deleted_after",
        "before_newest",
        "newest_times",
        "exist",
        "created_us",
        "highest",
        "cursor",
        "next_retry",
        "point",
    }
    found = {
        name
        for repository in (
            PointRepository,
            RecordRepository,
            JournalRepository,
            SeriesRepository,
            SummaryRepository,
            LatestRepository,
            LedgerRepository,
            ColumnsLedgerRepository,
            SinkRepository,
            AttemptRepository,
            QuarantineRepository,
            PositionRepository,
            SenderRepository,
            StateRepository,
            ColumnsStateRepository,
        )
        for kind in repository.__mro__
        for name in vars(kind)
        if not name.startswith("_")
    }
    assert found - reads - named == {"create"}, "`create` is what the cases are prepared with"


def test_points_on_the_callers_connection_behave_like_those_of_a_store(columns: Engine) -> None:
    with columns.begin() as connection:
        written = PointRepository(connection).insert_many(
            [("a", "m", 2, 2.0), ("a", "m", 1, 1.0), ("a", "m", 2, 3.0), ("v", "s", 1, "OPEN")]
        )
        assert (written.first_seq, written.last_seq, written.accepted) == (1, 4, 4)
    with columns.begin() as connection:
        points = PointRepository(connection)
        assert [row["value"] for row in points.range("a", "m")] == [1.0, 3.0]
        assert [row["value"] for row in points.latest(None)] == [3.0, "OPEN"]
        [row] = points.aggregate("a", "m", agg=["sum", "count"], every="1h", tz="Europe/Oslo")
        assert (row["sum"], row["count"]) == (4.0, 2)
        assert [row["seq"] for row in points.after(0)] == [2, 3, 4]
    with columns.begin() as connection:
        assert PointRepository(connection).delete("a", "m", 2, None) == 1
    with columns.begin() as connection:
        assert [row["value"] for row in PointRepository(connection).range(None, None)] == [1.0, "OPEN"]


def test_a_name_that_a_series_has_is_not_a_glob_to_a_repository(columns: Engine) -> None:
    with columns.begin() as connection:
        PointRepository(connection).insert_many([("a[1]", "m", 1, 1.0), ("a1", "m", 1, 2.0)])
    with columns.begin() as connection:
        points = PointRepository(connection)
        assert [row["value"] for row in points.range("a[1]", "m")] == [1.0]
        assert [row["value"] for row in points.latest("a[1]")] == [1.0]
        assert [row["sensor_id"] for row in points.aggregate("a[1]", "m")] == ["a[1]"]
        assert points.delete("a[1]", "m") == 1
    with columns.begin() as connection:
        points = PointRepository(connection)
        assert [row["sensor_id"] for row in points.range("a[1]", None)] == ["a1"]
        with pytest.raises(InvalidQuery, match="everything=True"):
            points.delete()
        assert points.delete(everything=True) == 1


def test_one_bad_row_writes_nothing(columns: Engine) -> None:
    with columns.begin() as connection:
        with pytest.raises(InvalidPoint):
            PointRepository(connection).insert_many([("a", "m", 1, 1.0), ("", "m", 1, 1.0)])
        written = PointRepository(connection).insert_many(
            [("a", "m", 1, 1.0), ("", "m", 1, 1.0)], on_error="skip"
        )
        assert (written.accepted, written.rejected) == (1, 1)
    with columns.begin() as connection, pytest.raises(InvalidQuery):
        PointRepository(connection).insert_many([], on_error="ignore")  # type: ignore[arg-type]
    with columns.connect() as connection:
        assert len(connection.execute(select(models.Point.seq)).all()) == 1


@pytest.mark.duckdb
def test_duckdb_allows_one_write_per_transaction_and_no_read_after_it(
    database: Callable[[str], Engine],
) -> None:
    opened = database("duckdb")
    with opened.begin() as connection:
        points = PointRepository(connection)
        list(points.range("a", "m"))
        points.insert("a", "m", 1.0, timestamp=1)
        for call in (
            lambda: points.insert("a", "m", 2.0, timestamp=2),
            lambda: PointRepository(connection).insert_many([("a", "m", 3, 1.0)]),
            lambda: points.delete("a"),
            lambda: list(points.range("a", "m")),
            lambda: points.latest("a", "m"),
            lambda: points.aggregate("a", "m"),
            lambda: points.after(0),
        ):
            with pytest.raises(TransactionRule):
                call()
    with opened.begin() as connection:
        assert [row["value"] for row in PointRepository(connection).range("a", "m")] == [1.0]
        PointRepository(connection).insert("a", "m", 2.0, timestamp=2)


def test_sqlite_allows_many_writes_and_reads_per_transaction(database: Callable[[str], Engine]) -> None:
    with database("sqlite").begin() as connection:
        points = PointRepository(connection)
        for value in (1.0, 2.0):
            points.insert_many([("a", "m", at, value) for at in range(10)])
            points.delete("a", "m", 5, None)
            assert [row["value"] for row in points.range("a", "m")] == [value] * 5
