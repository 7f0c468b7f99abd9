"""`store.sql` reads the columns and nothing else, and no caller's value is ever part of a statement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from repo import InvalidQuery, Store

pytestmark = pytest.mark.shared_stores

INJECTIONS = (
    "'; DROP TABLE time_series_data; --",
    '"; DELETE FROM journal; --',
    "a' OR '1'='1",
    "%s %(x)s :name $1 ? {} ${x}",
    "a\\'b",
    "SELECT 1",
    "ünï\u202e😀",
)


@pytest.fixture
def five(shared_store: Store) -> Store:
    """A store with five points, shared by all tests that change nothing."""
    if shared_store.sinks.last_seq() == 0:
        shared_store.points.insert_many([("a", "m", at, float(at)) for at in range(5)])
    return shared_store


def snapshot(store: Store) -> tuple[Any, ...]:
    rows = store.points.range(None, None).all()
    return (rows, [tuple(series) for series in store.series.list()], store.status().last_seq)


def test_it_returns_rows_as_dicts_for_bound_values(store: Store, engine: str) -> None:
    store.points.insert_many([("a", "m", at, float(at)) for at in range(5)])
    query = "SELECT count(*) AS n, max(value) AS top FROM time_series_data WHERE sensor_id = ? AND value > ?"
    assert store.sql(query, ["a", 1.5]) == [{"n": 3, "top": 4.0}]
    name = "$least" if engine == "duckdb" else ":least"
    named = f"SELECT count(*) AS n FROM time_series_data WHERE value >= {name}"
    assert store.sql(named, {"least": 4}) == [{"n": 1}]
    assert store.sql("WITH x AS (SELECT 1 AS a) SELECT a FROM x") == [{"a": 1}]
    assert store.sql("SELECT points FROM (SELECT count AS points FROM series)") == [{"points": 5}]


@pytest.mark.fresh_stores
def test_it_reads_the_metadata_beside_the_columns_and_leaves_nothing_behind(store: Store) -> None:
    store.points.insert_many([(s, "m", at, 1.0) for s in ("a", "b") for at in range(5)])
    store.series.describe("a", "m", unit="bar", labels={"site": "x"})
    store.records.add("r-1", source="gw", data={"note": "x"}, timestamp=7.5)
    store.sinks.add("cloud", "", start="beginning")
    store.points.delete("b", "m", 0, 2)  # waits in the journal: the query applies it first
    joined = (
        "SELECT i.unit, count(*) AS n FROM time_series_data AS p JOIN series_info AS i ON p.sensor_id = i.sensor_id "
        "AND p.metric_name = i.metric_name GROUP BY i.unit ORDER BY n DESC"
    )
    assert store.sql("SELECT dropped FROM losses") == [{"dropped": 2}]
    assert store.sql(joined) == [{"unit": "bar", "n": 5}, {"unit": None, "n": 3}]
    assert store.sql("SELECT record_id, timestamp FROM records") == [{"record_id": "r-1", "timestamp": 7.5}]
    assert store.sql("SELECT name FROM sinks WHERE confirmed_seq = 0") == [{"name": "cloud"}]
    with pytest.raises(InvalidQuery):
        store.sql("SELECT * FROM records WHERE nothing = 1")
    with pytest.raises(InvalidQuery):  # fails at the first row
        store.sql("SELECT json(source || '{') FROM records")
    for query in ("DELETE FROM records", "WITH x AS (DELETE FROM records RETURNING *) SELECT * FROM x"):
        with pytest.raises(InvalidQuery):
            store.sql(query)
    assert len(store.records.pending()) == 1
    with pytest.raises(InvalidQuery) as refused:
        store.sql("SELECT * FROM nowhere")
    assert "series_info, records, sinks, losses" in refused.value.__notes__[0]
    assert len(store.points.range(None, None).all()) == 8
    with pytest.raises(InvalidQuery, match="a text is expected"):
        store.sql(5)  # type: ignore[arg-type]


REFUSED = (
    "",
    ";",
    "-- nothing",
    "nonsense",
    "SELECT 1; SELECT 2",
    "SELECT 1; DELETE FROM time_series_data",
    "DELETE FROM time_series_data",
    "INSERT INTO time_series_data (sensor_id) VALUES ('x')",
    "UPDATE time_series_data SET value = 0",
    "UPDATE timeseries_state SET watermark = 0",
    "DROP TABLE time_series_data",
    "CREATE TABLE mine (x INTEGER)",
    "CREATE TEMPORARY TABLE mine (x INTEGER)",
    "EXPLAIN ANALYZE DELETE FROM time_series_data",
    "WITH gone AS (DELETE FROM time_series_data RETURNING *) SELECT * FROM gone",
    "WITH more AS (INSERT INTO series SELECT * FROM series RETURNING *) SELECT * FROM more",
    "ATTACH 'other.db' AS other",
    "PRAGMA user_version = 5",
    "PRAGMA journal_mode = DELETE",
    "SET memory_limit = '1GB'",
    "RESET memory_limit",
    "CHECKPOINT",
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "VACUUM",
    "LOAD httpfs",
    "INSTALL httpfs",
    "COPY time_series_data TO 'out.csv'",
    "EXPORT DATABASE 'out'",
    "CALL force_checkpoint()",
    "SELECT * FROM nowhere",
    "SELECT load_extension('x')",
    "SELECT ?",
)


def test_whatever_is_not_one_select_is_refused_and_changes_nothing(
    five: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = snapshot(five)
    for query in REFUSED:
        with pytest.raises(InvalidQuery):
            pytest.fail(f"{query} was answered: {five.sql(query)}")
    assert snapshot(five) == before
    assert list(tmp_path.iterdir()) == []


def test_it_cannot_reach_files_or_python(store: Store, tmp_path: Path) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("a,b\n1,2\n")
    columns = next(store.path.glob("offline_buffer.db"))
    frame = {"a": [1]}  # noqa: F841  DuckDB may look for tables among Python's variables
    for query in (
        f"SELECT * FROM '{secret}'",
        f"SELECT * FROM read_csv('{secret}')",
        f"SELECT * FROM read_text('{secret}')",
        f"SELECT * FROM read_blob('{columns}')",
        f"SELECT * FROM glob('{tmp_path}/*')",
        f"SELECT * FROM sqlite_scan('{columns}', 'journal')",
        "SELECT * FROM frame",
        "SELECT * FROM statements",
        f"SELECT readfile('{secret}')",
        "SELECT * FROM duckdb_secrets()",
        "SELECT getenv('HOME')",
    ):
        with pytest.raises(InvalidQuery):
            store.sql(query)


@pytest.mark.slow_on("sqlite")
@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM checkpoint()",
        'SELECT 1 FROM system.main."Force_Checkpoint"()',
        "SELECT (SELECT count(*) FROM checkpoint())",
        "WITH x AS MATERIALIZED (FROM checkpoint()) SELECT 1",
        "SELECT * FROM query('SELECT * FROM checkpoint()')",
        "SELECT * FROM json_execute_serialized_sql(json_serialize_sql('FROM checkpoint()'))",
        "SELECT * FROM enable_logging()",
        "SELECT * FROM enable_profiling()",
        "SELECT * FROM truncate_duckdb_logs()",
        "SELECT write_log('x')",
        "SELECT sleep_ms(1)",
        "SELECT setseed(0.5)",
        "SELECT * FROM pragma_wal_checkpoint('TRUNCATE')",
    ],
)
def test_a_select_whose_functions_do_more_than_read_is_refused(five: Store, query: str) -> None:
    five.flush()
    logs = {path.name: path.stat().st_size for path in five.path.glob("timeseries.*")}
    with pytest.raises(InvalidQuery):
        five.sql(query)
    assert {path.name: path.stat().st_size for path in five.path.glob("timeseries.*")} == logs


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM range(3) AS t(n)",
        "SELECT unnest([1, 2]) AS n, random() AS x, uuid() AS y",
        "SELECT * FROM generate_series(1, 3) AS t(n), LATERAL (SELECT n + 1)",
        "SELECT function_name FROM duckdb_functions() WHERE function_name = 'checkpoint'",
        "SELECT database_size FROM pragma_database_size()",
        "SELECT * FROM (PIVOT time_series_data ON metric_name IN ('m') USING sum(value))",
        "DESCRIBE time_series_data",
        "SUMMARIZE time_series_data",
        """SELECT '"function_name":"checkpoint"' AS checkpoint""",
    ],
)
def test_a_select_on_duckdb_may_use_anything_that_only_reads(five: Store, engine: str, query: str) -> None:
    if engine != "duckdb":
        pytest.skip("these are DuckDB's")
    assert five.sql(query)


@pytest.mark.parametrize("params", [[object()], ["\ud800"], [1, 2], [{1: 2}.keys()], {"x": 1}])
def test_parameters_that_do_not_match_are_refused(five: Store, params: Any) -> None:
    with pytest.raises(InvalidQuery):
        five.sql("SELECT ? AS x", params)


@pytest.mark.parametrize("text", INJECTIONS)
def test_texts_that_look_like_sql_are_only_texts(store: Store, text: str) -> None:
    metadata = {text: [text]}
    store.points.insert(text, text, text, 1, 100, metadata)
    store.points.insert("other", "m", 1.0, timestamp=1)
    store.records.add(text, text, {"note": text, "metric_name": text, "value": 1.0, "well_name": f"{text}2"})
    store.checkpoint()
    store.series.describe(text, text, unit=text, description=text, labels=metadata)

    [row] = store.points.range([text], [text]).all()
    assert (row["sensor_id"], row["metric_name"], row["value"], row["metadata"]) == (
        text,
        text,
        text,
        metadata,
    )
    assert [row["value"] for row in store.points.latest([text], [text])] == [text]
    [aggregate] = store.points.aggregate([text], [text], agg=["first", "count"], every="1h")
    assert (aggregate["first"], aggregate["count"]) == (text, 1)
    [series] = store.series.list([text], [text])
    assert (series.unit, series.description, series.labels) == (text, text, metadata)
    [record] = store.records.pending(source=text)
    assert record["data"]["note"] == text
    assert store.sql("SELECT sensor_id FROM time_series_data WHERE sensor_id = ?", [text]) == [
        {"sensor_id": text}
    ]
    assert store.records.mark_sent([text]) == 1
    store.points.delete([text], [text])
    assert len(store.points.range(None, None).all()) == 2
    assert len(store.points.range("other", "m").all()) == 1


def test_a_query_sees_what_was_written_just_before(store: Store) -> None:
    for at in range(3):
        store.points.insert("a", "m", float(at), timestamp=at)
        assert store.sql("SELECT count(*) AS n FROM time_series_data") == [{"n": at + 1}]
