"""Revision 0003 numbers the points that have no seq, in order of time, before everything else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest
from sqlalchemy import Engine, text

from repo import PointRepository, Settings, Store
from repo.engines.registry import traits_of
from repo.models import Point
from repo.queries.rows import Row
from repo.schema import runner
from repo.schema.upgrade import migrate_store
from tests.migrations.legacy_store import make_legacy_store, wrong_seqs

OpenEngine = Callable[[Path], Engine]
QUIET = Settings(background=False)


def _points(count: int, numbered: int = 0) -> list[tuple[Any, ...]]:
    """Return points in no order, with ties and extreme times; the last `numbered` ones have seqs from 1."""
    chance = Random(7)
    times = [
        -(2**63),
        2**63 - 1,
        0,
        *(chance.choice((1, 10**6, 10**15)) * (row // 4) for row in range(count - 3)),
    ]
    points = [
        (f"s{row % 4}", "m", time + row % 2 - (time == 2**63 - 1) * 2) for row, time in enumerate(times)
    ]
    points = list(dict.fromkeys(points))
    chance.shuffle(points)
    first = len(points) - numbered
    return [
        (*point, 1.5, None, 100, "x" * 90, None if row < first else row - first + 1)
        for row, point in enumerate(points)
    ]


def _fill(engine: Engine, points: list[tuple[Any, ...]]) -> None:
    with engine.begin() as connection:
        traits_of(connection).load(connection, Point.__table__, [Row(*point) for point in points])
        connection.execute(
            text(
                "INSERT INTO series SELECT sensor_id, metric_name, count(*), min(timestamp_us), max(timestamp_us), "
                "1.5, NULL, 100, NULL, NULL FROM time_series_data GROUP BY 1, 2"
            )
        )


def _asked(engine: Engine, query: str) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


@pytest.fixture
def small_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the revision sort only a few points at once, in few steps of time."""
    folder = Path(shutil.copytree(runner._scripts(), tmp_path / "scripts"))
    [script] = (folder / "versions").glob("0003_*.py")
    code = script.read_text()
    for line, smaller in (
        ("WINDOW_BYTES = 8_000_000", "WINDOW_BYTES = 1_000"),
        ("STEPS = 1_000", "STEPS = 3"),
    ):
        assert line in code
        code = code.replace(line, smaller)
    script.write_text(code)
    monkeypatch.setattr(runner, "_scripts", lambda: folder)


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize(("numbered", "lowest"), [(0, 0), (60, 0), (60, -40)])
def test_points_without_a_seq_get_negative_ones_in_order_of_time(
    numbered: int, lowest: int, timeseries_file: Path, open_engine: OpenEngine
) -> None:
    engine, points = open_engine(timeseries_file), _points(200, numbered)
    points = [(*point[:7], point[7] and point[7] + lowest) for point in points]
    runner.upgrade(engine, "timeseries", "0002")
    _fill(engine, points)
    runner.upgrade(engine, "timeseries")
    assert runner.check(engine, "timeseries") == []
    new = sorted((point[2], point[0], point[1]) for point in points if point[7] is None)
    first = min(0, lowest + 1) - len(new)
    expected = {(s, m, us): first + rank for rank, (us, s, m) in enumerate(new)}
    expected |= {point[:3]: point[7] for point in points if point[7] is not None}
    found = _asked(engine, "SELECT sensor_id, metric_name, timestamp_us, seq FROM time_series_data")
    assert {tuple(point[:3]): point[3] for point in found} == expected
    newest = _asked(engine, "SELECT sensor_id, metric_name, last_us, last_seq FROM series")
    assert {tuple(one[:3]): one[3] for one in newest}.items() <= expected.items()
    assert len(newest) == 4
    runner.downgrade(engine, "timeseries", "0002")
    runner.upgrade(engine, "timeseries")
    assert _asked(
        engine, "SELECT sensor_id, metric_name, timestamp_us, seq FROM time_series_data ORDER BY seq"
    ) == sorted(found, key=lambda point: point[3])


def test_numbered_points_of_duckdb_are_not_rewritten_and_keep_the_indexes_of_a_user(
    tmp_path: Path, open_engine: OpenEngine
) -> None:
    engine = open_engine(tmp_path / "timeseries.duckdb")
    runner.upgrade(engine, "timeseries", "0002")
    _fill(engine, _points(3_000, 3_000))
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE series SET last_seq = 1")
        connection.exec_driver_sql("ALTER TABLE time_series_data ADD COLUMN place VARCHAR DEFAULT 'here'")
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE INDEX mine ON time_series_data (quality)")
    with engine.connect() as connection:
        traits_of(connection).checkpoint_ddl(connection)
    blocks = (
        "SELECT column_name, segment_id, block_id, block_offset FROM pragma_storage_info('time_series_data') "
        "WHERE segment_type <> 'VALIDITY' ORDER BY ALL"
    )
    before, names = _asked(engine, blocks), "SELECT index_name FROM duckdb_indexes()"
    [step] = [step for step in _steps(engine) if step.revision == "0003"]
    assert step.rewrites == ()
    for revision in ("0003", "0002", "0003"):
        (runner.upgrade if revision == "0003" else runner.downgrade)(engine, "timeseries", revision)
        assert _asked(engine, blocks) == before
        assert _asked(engine, names) == [("mine",)]
    assert _asked(engine, "SELECT DISTINCT place FROM time_series_data") == [("here",)]


def _steps(engine: Engine) -> list[runner.MigrationStep]:
    with engine.connect() as connection:
        return runner.steps(connection, "timeseries", "0002")


def test_a_rewrite_keeps_the_columns_and_indexes_of_a_user(
    timeseries_file: Path, open_engine: OpenEngine
) -> None:
    engine = open_engine(timeseries_file)
    runner.upgrade(engine, "timeseries", "0002")
    _fill(engine, _points(50))
    assert _steps(engine)[0].rewrites == ("time_series_data",)
    with engine.begin() as connection:
        kind = "VARCHAR" if engine.dialect.name == "duckdb" else "TEXT"
        connection.exec_driver_sql(f"ALTER TABLE time_series_data ADD COLUMN \"a b\" {kind} DEFAULT 'x:y'")
        connection.exec_driver_sql("ALTER TABLE series ADD COLUMN mine INTEGER DEFAULT 7")
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE UNIQUE INDEX mine ON time_series_data (sensor_id, timestamp_us)")
    runner.upgrade(engine, "timeseries")
    for _ in range(2):
        assert _asked(engine, 'SELECT DISTINCT "a b" FROM time_series_data') == [("x:y",)]
        assert _asked(engine, "SELECT DISTINCT mine FROM series") == [(7,)]
        with engine.connect() as connection:
            indexes = connection.dialect.get_indexes(connection, "time_series_data")
        assert "mine" in {index["name"] for index in indexes}
        if engine.dialect.name == "sqlite":
            runner.downgrade(engine, "timeseries", "0002")


@pytest.mark.duckdb
def test_a_store_of_the_legacy_program_has_seqs_below_those_of_new_points(legacy: Path) -> None:
    migrate_store(legacy, to="0002")
    migrate_store(legacy)
    assert wrong_seqs(legacy) == 0
    with Store(legacy, QUIET) as store:
        assert store.sinks.add("cloud", "", start="now").confirmed_seq == 0
        assert store.points.insert("new", "m", 1.0, 5).last_seq == 1
        assert [point["seq"] for point in store.points.after(0)] == [1]
        last, seqs, times = -(2**63) + 1, list[int](), list[int]()
        while page := store.points.after(last, 700):
            seqs += [point["seq"] for point in page]
            times += [point["timestamp_us"] for point in page]
            last = seqs[-1]
        assert seqs == [*range(-3_000, 0), 1]
        assert times[:-1] == sorted(times[:-1])
        assert len(store.points.since(-11).all()) == 11
        assert store.export(legacy / "out", format="parquet", partition="day").first_seq == -3_000


@pytest.mark.duckdb
def test_the_copy_of_the_summaries_gets_the_seqs_at_the_next_opening(legacy: Path) -> None:
    import sqlite3

    def seqs() -> list[int]:
        with closing(sqlite3.connect(legacy / "offline_buffer.db")) as metadata, metadata:
            found = [seq for (seq,) in metadata.execute("SELECT last_seq FROM latest")]
        metadata.close()
        return found

    with Store(legacy, QUIET) as store:
        store.points.insert("new", "m", 1.0, 5)
        store.flush()
    expected = seqs()
    assert min(expected) < 0 < max(expected)
    _downgrade(legacy)
    with closing(sqlite3.connect(legacy / "offline_buffer.db")) as metadata, metadata:
        metadata.execute("UPDATE latest SET last_seq = NULL WHERE last_seq < 0")
    metadata.close()
    migrate_store(legacy)
    with Store(legacy, QUIET) as store:
        assert store.points.latest("new", "m")[0]["value"] == 1.0
    assert sorted(seqs()) == sorted(expected)


def _downgrade(folder: Path) -> None:
    from repo.engines.duckdb import driver as duckdb
    from repo.engines.sqlite import driver as sqlite

    columns = duckdb.open_engine(
        folder / "timeseries.duckdb", memory_limit_bytes=64_000_000, threads=2, temp_folder=folder / "tmp"
    )
    runner.downgrade(columns, "timeseries", "0002")
    duckdb.close_engine(columns)
    metadata = sqlite.open_engine(folder / "offline_buffer.db")
    runner.downgrade(metadata, "metadata", "0002")
    metadata.dispose()


def test_points_written_on_a_connection_get_positive_seqs(
    timeseries_file: Path, open_engine: OpenEngine
) -> None:
    engine = open_engine(timeseries_file)
    runner.upgrade(engine, "timeseries", "0002")
    _fill(engine, _points(20))
    runner.upgrade(engine, "timeseries")
    with engine.begin() as connection:
        assert PointRepository(connection).insert("new", "m", 1.0, 5).first_seq == 1


@pytest.mark.slow
@pytest.mark.duckdb
def test_an_upgrade_of_many_points_stays_within_the_memory_limit(tmp_path: Path) -> None:
    folder = make_legacy_store(tmp_path / "store", 2_000_000)
    migrate_store(folder)
    assert wrong_seqs(folder) == 0
