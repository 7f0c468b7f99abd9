"""The order of steps in a flush. With another order, DuckDB 2.0.0 doubles rows.

Read or delete rows of a table in a transaction that has appended to it, and DuckDB doubles rows, raises
"Conflict on tuple deletion" or crashes.
"""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, select

from repo import Store
from repo.core.flush import cut_to_row_groups
from repo.engines.sqlite import driver as sqlite
from repo.models import Point
from repo.queries.rows import Row
from repo.queries.selection import Selection
from repo.repositories.apply import apply
from repo.repositories.journal import Entry
from repo.repositories.series import SummaryRepository
from repo.schema.creation import create_time_series
from tests.conftest import ROOT, OpenStore, close_engine


@pytest.fixture
def columns(tmp_path: Path, engine: str) -> Iterator[Engine]:
    """A bare time-series database at the head of the schema."""
    path = tmp_path / f"columns.{engine}"
    if engine == "duckdb":
        from repo.engines.duckdb import driver as duckdb

        opened = duckdb.open_engine(
            path, memory_limit_bytes=64_000_000, threads=2, temp_folder=tmp_path / "temporary"
        )
    else:
        opened = sqlite.open_engine(path)
    create_time_series(opened, path)
    yield opened
    close_engine(opened)


def stored(connection: Connection) -> list[tuple[Any, ...]]:
    return sorted(tuple(row) for row in connection.execute(select(Point.__table__)))


def row(key: int, value: float, seq: int) -> Row:
    return Row(f"s{key % 5}", "m", key * 60_000_000, value, None, 100, None, seq)


@pytest.mark.parametrize(
    "deletes",
    [pytest.param(False, marks=pytest.mark.slow), True],
    ids=["overwrites", "deletes and overwrites"],
)
def test_thousands_of_overwrites_of_random_keys_leave_each_key_once(
    columns: Engine, seed: int, deletes: bool
) -> None:
    rng = random.Random(seed)
    model: dict[int, tuple[float, int]] = {}
    seq = 0
    with columns.connect() as connection:
        for number in range(10):
            deletion = None
            if deletes and rng.random() < 0.5:
                start, sensor = rng.randrange(9000), rng.randrange(5)
                deletion = Selection(f"s{sensor}", None, start * 60_000_000, (start + 2000) * 60_000_000)
                model = {k: v for k, v in model.items() if k % 5 != sensor or not start <= k < start + 2000}
            rows = []
            for key in {rng.randrange(9000) for _ in range(rng.choice([1, 5, 50, 400, 2000]))}:
                seq += 1
                value = float(rng.randrange(3))
                rows.append(row(key, value, seq))
                if model.get(key, (None,))[0] != value:
                    model[key] = (value, seq)
            with connection.begin():
                known = SummaryRepository(connection).all()
                before = dict(known)
                after = apply(connection, rows, deletion, known).known
                assert known == before
            with connection.begin():
                wanted = sorted(tuple(row(key, *found)) for key, found in model.items())
                assert stored(connection) == wanted, f"transaction {number}"
                counts = {
                    pair: summary.points for pair, summary in SummaryRepository(connection).all().items()
                }
                assert sum(counts.values()) == len(model)
                assert SummaryRepository(connection).all() == after


def test_nothing_reads_or_deletes_points_after_the_append(columns: Engine) -> None:
    with columns.connect() as connection:
        with connection.begin():
            apply(connection, [row(key, 1.0, key + 1) for key in range(500)], None, {})
        said: list[str] = []

        def listen(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
            said.append(" ".join(statement.split()))

        event.listen(columns, "before_cursor_execute", listen)
        with connection.begin():
            known = SummaryRepository(connection).all()
            changed = [row(key, 2.0, 1000 + key) for key in range(400, 600)]
            equal = [row(key, 1.0, 2000 + key) for key in range(300, 400)]
            apply(connection, equal + changed, Selection("s1", None, 0, 60_000_000 * 100), known)
    touching = [statement for statement in said if "time_series_data" in statement]
    appends = [
        at for at, statement in enumerate(touching) if statement.startswith("INSERT INTO time_series_data")
    ]
    assert appends == [len(touching) - 1], touching
    assert sum(statement.startswith("DELETE FROM time_series_data") for statement in touching) == 2


def test_a_flush_of_many_kinds_of_work_is_right_at_any_size_of_its_transactions(
    open_store: Any, seed: int
) -> None:
    rng = random.Random(seed)
    model: dict[int, float] = {}
    stores: list[Store] = [open_store(f"s{size}", flush_batch_points=size) for size in (1, 20, 65_536)]
    for _ in range(4):
        times = rng.choice([8, 150])  # with few of them, values return
        rows = [(rng.randrange(times), float(rng.randrange(4))) for _ in range(rng.choice([1, 10, 40]))]
        start = rng.randrange(150)
        for store in stores:
            for some in (rows[at : at + 8] for at in range(0, len(rows), 8)):
                store.points.insert_many([("a", "m", at, value) for at, value in some])
            store.points.delete("a", "m", start, start + 10)
        model.update(rows)
        model = {at: value for at, value in model.items() if not start <= at < start + 10}
    for store in stores:
        found = {r["timestamp_us"] // 10**6: r["value"] for r in store.points.range("a", "m")}
        assert found == model
        assert store.series.list()[0].points == len(model)
    first, *others = ([(r["seq"], r["timestamp_us"]) for r in store.points.after(0)] for store in stores)
    assert all(other == first for other in others), "which write counts depends on where a flush ended"


def test_a_flush_that_is_asked_to_stop_ends_after_a_whole_batch_and_continues_later(
    open_store: OpenStore,
) -> None:
    store = open_store(flush_batch_points=100)
    for start in range(0, 500, 100):
        store.points.insert_many([("a", "m", start + at, 1.0) for at in range(100)])
    handle = store._handle
    with handle.columns.alone("a flush in slices") as opened:
        opened = handle.flusher.through(opened, 500, lambda: True)
        assert not handle.flusher.reached(500)
        assert handle.flusher.watermark == handle.flusher.points == 100
        handle.flusher.through(opened, 500)
        assert handle.flusher.reached(500)
    assert len(store.points.range("a", "m").all()) == 500


def test_only_duckdb_versions_after_2_0_0_may_be_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [wanted] = [one for one in project["dependencies"] if re.match(r"duckdb\W", one) and "engine" not in one]
    assert wanted.partition(";")[0] == "duckdb>=2.0.1,<2.1", (
        "2.0.0 doubles rows; what comes after 2.0 is unknown"
    )


def test_a_flush_of_a_long_backlog_fills_row_groups_of_duckdb() -> None:
    def taken(*sizes: int) -> list[int]:
        entries, seq = [], 0
        for size in sizes:
            seq += size
            entries.append(Entry(seq, size, "points", b""))
        return [entry.seqs for entry in cut_to_row_groups(entries)]

    assert taken(*[10_000] * 24) == [10_000] * 24
    assert taken(*[61_440] * 4) == [61_440] * 4
    assert taken(*[65_536] * 3) == [65_536] * 3
    assert taken(*[25_000] * 6) == [25_000] * 4
    assert taken(100) == [100]


def test_late_points_that_meet_no_stored_point_are_added(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("repo.core.work.MERGED_FROM", 1)
    store, day = open_store(), 86_400
    for late in ([0, 10, 5 * day], [5], [1, day, 3 * day, 5 * day - 1], [2, 5 * day, 6 * day]):
        store.points.insert_many([("a", "m", at, 1.0) for at in late])
        store.flush()
    stored = [0, 1, 2, 5, 10, day, 3 * day, 5 * day - 1, 5 * day, 6 * day]
    assert [row["timestamp_us"] for row in store.points.range("a", "m")] == [at * 10**6 for at in stored]
    [row] = [row for row in store.points.after(0) if row["timestamp_us"] == 5 * day * 10**6]
    assert row["seq"] == 3
    assert store.series.list()[0].points == len(stored)
