"""Writing tables: every form gives the same points as rows, straight to the columns or through the journal."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from repo import InvalidPoint, InvalidQuery, Store
from tests.conftest import RunPython

pytestmark = pytest.mark.shared_stores

START_US = 1_714_521_600_000_000
Columns = dict[str, Any]


class StreamOnly:
    """An object that only has a stream."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._table.__arrow_c_stream__(requested_schema)


FORMS: dict[str, Callable[[pa.Table], Any]] = {
    "a pyarrow table": lambda table: table,
    "a record batch": lambda table: table.combine_chunks().to_batches()[0],
    "a reader of batches": lambda table: pa.RecordBatchReader.from_batches(table.schema, table.to_batches(7)),
    "a stream": StreamOnly,
    "a polars frame": pl.from_arrow,
    "a pandas frame": lambda table: table.to_pandas(),
    "a DuckDB relation": lambda table: pytest.importorskip("duckdb").connect().from_arrow(table),
    "a dict of lists": lambda table: table.to_pydict(),
    "a dict of arrays": lambda table: {
        name: table[name].to_numpy(zero_copy_only=False) for name in table.schema.names
    },
}


@pytest.fixture(params=[1, 100_000], ids=["straight", "journal"])
def bulk_rows(request: pytest.FixtureRequest) -> int:
    """The number of rows from which a table goes straight to the columns (only with DuckDB)."""
    return int(request.param)


def a_table(rows: int = 300) -> tuple[pa.Table, list[tuple[Any, ...]]]:
    rng = random.Random(rows)
    listed = [
        (
            f"s{at % 3}",
            ("pressure", "flow")[at % 2],
            START_US + at * 250_000,
            rng.choice([rng.gauss(0, 1e6), float(at), -0.0, float("inf"), None]),
            rng.choice([100, 0, -5]),
        )
        for at in range(rows)
    ]
    names = ("sensor_id", "metric_name", "timestamp_us", "value", "quality")
    return pa.table(dict(zip(names, zip(*listed, strict=True), strict=True))), listed


def read(store: Store) -> list[tuple[Any, ...]]:
    return [
        (r["sensor_id"], r["metric_name"], r["timestamp_us"], r["value"], r["quality"], r["metadata"])
        for r in store.points.range(None, None)
    ]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_table_gives_the_same_points(open_store: Any, form: str, bulk_rows: int) -> None:
    store = open_store(bulk_rows=bulk_rows)
    table, rows = a_table()
    written = store.points.insert_table(FORMS[form](table))
    assert (written.accepted, written.rejected) == (300, 0)
    assert written.last_seq - written.first_seq == 299
    wanted = [(s, m, us, value if value is None else value + 0.0, q, None) for s, m, us, value, q in rows]
    assert read(store) == sorted(wanted, key=lambda row: (row[2], row[0], row[1]))
    assert str(read(store)).count("-0.0") == 0
    assert sum(series.points for series in store.series.list()) == 300
    assert [row["seq"] for row in store.points.after(0)] == list(
        range(written.first_seq, written.last_seq + 1)
    )


@pytest.mark.fresh_stores
def test_a_table_is_still_there_when_the_store_is_opened_again(open_store: Any, bulk_rows: int) -> None:
    store = open_store(bulk_rows=bulk_rows)
    store.points.insert_table(a_table()[0])
    store.close()
    assert len(read(open_store())) == 300


TIMES: dict[str, Any] = {
    "seconds as floats": [0.0000015, 1714521600.123456, -1.25],
    "seconds as integers": [0, 1714521600, -1],
    "far seconds": [5e9 + 0.25, 9e9, -9e9],
    "aware datetimes": [
        datetime(2024, 5, 1, 12, 0, 0, n, tzinfo=timezone(timedelta(hours=5.5))) for n in (1, 2, 3)
    ],
    "Arrow seconds": pa.array([1, 2, 3], pa.timestamp("s", "UTC")),
    "Arrow milliseconds": pa.array([1, 2, 3], pa.timestamp("ms", "+02:00")),
    "Arrow microseconds": pa.array([1, 2, -3], pa.timestamp("us", "UTC")),
    "Arrow nanoseconds": pa.array([1_000, 2_000, 3_000], pa.timestamp("ns", "UTC")),
    "NumPy's": np.array(["2024-05-01T00:00:00.000001", "1969-12-31", "2024-05-02"], "datetime64[us]"),
    "NumPy's nanoseconds": np.array([1_000, 2_000, 3_000], "datetime64[ns]"),
}


@pytest.mark.parametrize("form", TIMES)
def test_times_mean_what_they_mean_in_rows(open_store: Any, form: str, bulk_rows: int) -> None:
    store = open_store(bulk_rows=bulk_rows)
    given = TIMES[form]
    columns = {"sensor_id": "a", "metric_name": "m", "timestamp": given, "value": [0.0, 1.0, 2.0]}
    store.points.insert_table(columns)
    found = {row[3]: row[2] for row in read(store)}
    if isinstance(given, list):
        other = open_store("rows")
        other.points.insert_many([("a", "m", at, float(n)) for n, at in enumerate(given)])
        wanted = {row[3]: row[2] for row in read(other)}
    elif isinstance(given, np.ndarray):
        wanted = dict(enumerate(given.astype("datetime64[us]").astype(int).tolist()))
    else:
        wanted = dict(enumerate(given.cast(pa.timestamp("us", given.type.tz)).cast(pa.int64()).to_pylist()))
    assert found == wanted


@pytest.mark.fresh_stores
def test_texts_come_as_values_or_beside_the_numbers(open_store: Any, bulk_rows: int) -> None:
    store = open_store(bulk_rows=bulk_rows)
    store.points.insert_table(
        {"sensor_id": "v", "metric_name": "state", "timestamp": [1, 2, 3], "value": ["OPEN", None, "läuft"]}
    )
    store.points.insert_table(
        {
            "sensor_id": ["v", "v", "w"],
            "metric_name": ["state", "flow", "flow"],
            "timestamp": [4, 4, 4],
            "value": [None, 2.5, None],
            "value_text": ["SHUT", None, None],
        }
    )
    assert [row[3] for row in read(store)] == ["OPEN", None, "läuft", 2.5, "SHUT", None]
    kinds = {(series.sensor_id, series.metric_name): series.kind for series in store.series.list()}
    assert kinds == {("v", "state"): "text", ("v", "flow"): "number", ("w", "flow"): None}


def test_metadata_comes_as_json_structs_or_dicts_and_is_stored_alike(open_store: Any, bulk_rows: int) -> None:
    store = open_store(bulk_rows=bulk_rows)
    for at, metadata in enumerate(
        (
            ['{"a":1}'],
            ['{ "a": 1 }'],
            [{"a": 1}],
            pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
            [None],
        )
    ):
        table = {
            "sensor_id": "a",
            "metric_name": "m",
            "timestamp": [at],
            "value": [1.0],
            "metadata": metadata,
        }
        store.points.insert_table(
            table
            if isinstance(metadata, list)
            else pa.table(table | {"sensor_id": ["a"], "metric_name": ["m"]})
        )
    assert [row[5] for row in read(store)] == [{"a": 1}] * 4 + [None]
    texts = {row["metadata"] for row in store.sql("SELECT metadata FROM time_series_data")}
    assert texts == {'{"a":1}', None}


GOOD: Columns = {
    "sensor_id": ["a", "b", "c"],
    "metric_name": ["m", "m", "m"],
    "timestamp": [1.0, 2.0, 3.0],
    "value": [1.0, 2.0, 3.0],
}
BAD_ROWS: dict[str, tuple[Columns, str]] = {
    "an empty name": ({"sensor_id": ["a", "", "c"]}, "sensor_id"),
    "a name with a control character": ({"metric_name": ["m", "a\nb", "m"]}, "metric_name"),
    "no name": ({"sensor_id": ["a", None, "c"]}, "sensor_id"),
    "a number for a name": ({"sensor_id": [1, 2, 3]}, "sensor_id"),
    "no time": ({"timestamp": [1.0, None, 3.0]}, "timestamp"),
    "NaN for a time": ({"timestamp": [1.0, float("nan"), 3.0]}, "timestamp"),
    "milliseconds": ({"timestamp": [1.0, 1.7e12, 3.0]}, "timestamp"),
    "a naive datetime": ({"timestamp": [datetime(2024, 1, n) for n in (1, 2, 3)]}, "timestamp"),  # noqa: DTZ001
    "a text for a time": ({"timestamp": ["1", "2", "3"]}, "timestamp"),
    "a bool": ({"value": [True, False, True]}, "value"),
    "a number given as text": ({"value": ["OPEN", "1.5", "SHUT"]}, "value"),
    "an integer that would be rounded": ({"value": [1, 2**53 + 1, 3]}, "value"),
    "a mixture": ({"value": [1.0, [2], 3.0]}, "value"),
    "too large a quality": ({"quality": [1, 2**31, 3]}, "quality"),
    "a quality with a fraction": ({"quality": [1.0, 1.5, 3.0]}, "quality"),
    "metadata that is no object": ({"metadata": [None, "[1]", None]}, "metadata"),
    "metadata that is not JSON": ({"metadata": [None, "{", None]}, "metadata"),
    "a number and a text": ({"value_text": [None, "OPEN", None]}, "value"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_refuses_the_table_and_is_named(open_store: Any, case: str, bulk_rows: int) -> None:
    store = open_store(bulk_rows=bulk_rows)
    last_seq = store.sinks.last_seq()
    changed, field = BAD_ROWS[case]
    with pytest.raises(InvalidPoint) as refused:
        store.points.insert_table(GOOD | changed)
    assert {refusal.field for refusal in refused.value.refusals} <= {field, "timestamp_us"}
    assert 1 in {refusal.row for refusal in refused.value.refusals}
    assert read(store) == []
    assert store.sinks.last_seq() == last_seq
    written = store.points.insert_table(GOOD | changed, on_error="skip")
    assert written.refusals == refused.value.refusals
    assert written.accepted == len(read(store)) == 3 - written.rejected


BAD_TABLES: dict[str, Any] = {
    "no table": 5,
    "rows": [("a", "m", 1, 1.0)],
    "no sensor": {name: GOOD[name] for name in GOOD if name != "sensor_id"},
    "no time": {name: GOOD[name] for name in GOOD if name != "timestamp"},
    "no value": {name: GOOD[name] for name in GOOD if name != "value"},
    "two times": GOOD | {"timestamp_us": [1, 2, 3]},
    "a column that no point has": GOOD | {"colour": ["red"] * 3},
    "columns of different lengths": GOOD | {"value": [1.0]},
    "a column that is none": GOOD | {"value": 5},
    "texts alone": {"sensor_id": "a", "metric_name": "m", "timestamp": "x", "value": "y"},
    "two columns of one name": pa.table(
        [["a"], ["a"], ["m"], [1.0], [1.0]], ["sensor_id", "sensor_id", "metric_name", "timestamp", "value"]
    ),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_anything_but_a_table_of_points_is_refused(unwritten: Store, case: str) -> None:
    with pytest.raises(InvalidPoint):
        unwritten.points.insert_table(BAD_TABLES[case])
    assert unwritten.sinks.last_seq() == 0


def test_choices_that_do_not_exist_are_refused(store: Store) -> None:
    for options in ({"on_error": "ignore"}, {"on_conflict": "newest"}):
        with pytest.raises(InvalidQuery):
            store.points.insert_table(GOOD, **options)  # type: ignore[arg-type]


def test_a_table_never_mixes_kinds_in_a_series(open_store: Any, bulk_rows: int) -> None:
    store = open_store(bulk_rows=bulk_rows)
    store.points.insert("a", "m", "OPEN", timestamp=1)
    with pytest.raises(InvalidPoint, match="holds text values"):
        store.points.insert_table(GOOD)
    assert [row[3] for row in read(store)] == ["OPEN"]
    store.points.insert_table({name: column[1:] for name, column in GOOD.items()})
    assert len(read(store)) == 3


def test_an_empty_table_writes_nothing(store: Store) -> None:
    table, _ = a_table()
    written = store.points.insert_table(table.slice(0, 0))
    assert (written.first_seq, written.accepted) == (None, 0)
    assert store.points.insert_table({name: [] for name in GOOD}).accepted == 0


def test_decimals_and_bools_are_handled_like_in_rows(open_store: Any, bulk_rows: int) -> None:
    store = open_store(bulk_rows=bulk_rows, accept_bool=True)
    store.points.insert_table(GOOD | {"value": [Decimal("1.5"), Decimal("2"), None]})
    store.points.insert_table(GOOD | {"timestamp": [4, 5, 6], "value": [True, False, None]})
    assert [row[3] for row in read(store)] == [1.5, 2.0, None, 1.0, 0.0, None]


def test_a_stream_that_breaks_leaves_whole_chunks_and_says_how_many(
    open_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("repo.core.bulk.CHUNK_ROWS", 100)
    store = open_store(bulk_rows=1)
    table, _ = a_table()

    def batches() -> Iterator[pa.RecordBatch]:
        yield from table.slice(0, 200).to_batches(max_chunksize=100)
        raise pa.ArrowInvalid("the line is dead")

    with pytest.raises(pa.ArrowInvalid, match="the line is dead") as broken:
        store.points.insert_table(pa.RecordBatchReader.from_batches(table.schema, batches()))
    assert "200 rows of this table were already written" in broken.value.__notes__[0]
    assert len(read(store)) == 200
    assert store.points.insert_table(table).accepted == 300
    assert len(read(store)) == 300


@pytest.mark.fresh_stores
def test_a_long_table_is_written_in_chunks_and_bad_rows_keep_their_numbers(
    open_store: Any, monkeypatch: pytest.MonkeyPatch, bulk_rows: int
) -> None:
    monkeypatch.setattr("repo.core.bulk.CHUNK_ROWS", 100)
    monkeypatch.setattr("repo.core.bulk.JOURNAL_ROWS", 30)
    store = open_store(bulk_rows=bulk_rows)
    table, _ = a_table()
    bad = table.set_column(
        0, "sensor_id", pa.array(["" if n in (7, 155, 299) else f"s{n % 3}" for n in range(300)])
    )
    with pytest.raises(InvalidPoint) as refused:
        store.points.insert_table(bad)
    assert refused.value.refusals[0].row == 7
    assert store.sinks.last_seq() == 0
    written = store.points.insert_table(bad, on_error="skip")
    assert [refusal.row for refusal in written.refusals] == [7, 155, 299]
    assert written.accepted == len(read(store)) == 297


@pytest.mark.parametrize("way", ["rows", "table"])
def test_keep_preserves_stored_points_and_overwrite_does_not(
    open_store: Any, way: str, bulk_rows: int
) -> None:
    store = open_store(bulk_rows=bulk_rows)
    table, rows = a_table()
    half = [(s, m, us / 1e6, -1.0) for s, m, us, _, _ in rows[:150]]
    if way == "rows":
        store.points.insert_many(half)
    else:
        store.points.insert_table(
            {
                n: list(c)
                for n, c in zip(
                    ("sensor_id", "metric_name", "timestamp", "value"), zip(*half, strict=True), strict=True
                )
            }
        )
    store.points.insert_table(table, on_conflict="keep")
    assert sum(row[3] == -1.0 for row in read(store)) == 150
    assert len(read(store)) == 300
    before = {row["seq"] for row in store.points.after(0)}
    store.points.insert_table(table, on_conflict="keep")
    assert {row["seq"] for row in store.points.after(0)} == before, "nothing is sent again"
    store.points.insert_table(table)
    store.points.insert_table(table)
    assert sum(row[3] == -1.0 for row in read(store)) == 0
    assert len({row["seq"] for row in store.points.after(0)} & before) == 150


def test_with_keep_the_first_table_wins_even_before_it_is_in_the_columns(open_store: Any) -> None:
    store = open_store()
    for values in ([1.0, 2.0], [3.0, 4.0]):
        written = store.points.insert_table(
            {"sensor_id": ["a", "a"], "metric_name": "m", "timestamp": [7, 7], "value": values},
            on_conflict="keep",
        )
        assert written.accepted == 2
    assert store.status().unflushed > 0, "both are in the journal"
    assert [row["value"] for row in store.points.latest("a")] == [2.0], "the last of its own table"
    assert [row[3] for row in read(store)] == [2.0]
    assert [series.points for series in store.series.list()] == [1]


def test_any_mixture_of_tables_rows_and_deletes_equals_a_dict(open_store: Any, seed: int) -> None:
    rng = random.Random(seed)
    store = open_store(bulk_rows=40, flush_batch_points=100)
    model: dict[tuple[str, int], float] = {}
    for _ in range(30):
        rows = [
            (f"s{rng.randrange(4)}", rng.randrange(200), float(rng.randrange(5)))
            for _ in range(rng.choice([3, 30, 90]))
        ]
        act = rng.choice(["rows", "table", "table", "keep", "delete", "flush"])
        columns = {
            "sensor_id": [r[0] for r in rows],
            "metric_name": "m",
            "timestamp": [r[1] for r in rows],
            "value": [r[2] for r in rows],
        }
        if act == "rows":
            store.points.insert_many([(s, "m", at, value) for s, at, value in rows])
        elif act in ("table", "keep"):
            store.points.insert_table(columns, on_conflict="keep" if act == "keep" else "overwrite")
        if act in ("rows", "table", "keep"):
            new = {(s, at): value for s, at, value in rows}
            model = new | model if act == "keep" else model | new
        elif act == "delete":
            start, sensor = rng.randrange(200), f"s{rng.randrange(4)}"
            store.points.delete(sensor, "m", start, start + 30)
            model = {k: v for k, v in model.items() if k[0] != sensor or not start <= k[1] < start + 30}
        else:
            store.flush()
        newest = {s: max(at for sensor, at in model if sensor == s) for s in {s for s, _ in model}}
        latest = {
            row["sensor_id"]: (row["timestamp_us"] // 10**6, row["value"])
            for row in store.points.latest(None)
        }
        assert latest == {s: (at, model[s, at]) for s, at in newest.items()}
    assert {(row[0], row[2] // 10**6): row[3] for row in read(store)} == model
    assert sum(series.points for series in store.series.list()) == len(model)
    seqs = [row["seq"] for row in store.points.after(0)]
    assert len(set(seqs)) == len(seqs) == len(model)


def test_a_table_does_not_wait_for_another_process_and_goes_through_the_journal(
    open_store: Any, spawn: Any, engine: str
) -> None:
    store = open_store(bulk_rows=1, lease_timeout_s=20.0)
    path = store.path
    store.close()
    other = spawn(
        "import sys; from repo import Settings, Store\n"
        f"store = Store(sys.argv[1], Settings(background=False, engine={engine!r}))\n"
        "with store._handle.columns.alone('standing still'):\n"
        "    print('held', flush=True); sys.stdin.readline()\n"
        "store.close()",
        path,
    )
    assert other.stdout.readline() == "held\n"
    store = open_store(bulk_rows=1, lease_timeout_s=20.0)
    table, _ = a_table()
    written = store.points.insert_table(table)
    assert written.accepted == 300
    assert store.status().unflushed == 300, "it is in the journal alone"
    other.communicate("go on\n")
    assert len(read(store)) == 300


def test_a_table_behind_a_long_backlog_goes_through_the_journal(
    open_store: Any, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "sqlite":
        pytest.skip("tables go through SQLite's journal always")
    monkeypatch.setattr("repo.core.bulk.FLUSH_S", -1.0)  # so it flushes only one batch
    store = open_store(bulk_rows=1, flush_batch_points=1)
    table, _ = a_table()
    store.points.insert_table(table)
    assert store.status().unflushed == 0, "without a backlog it goes straight"
    for at in range(3):
        store.points.insert("late", "m", float(at), timestamp=at)
    assert store.points.insert_table(table).accepted == 300
    assert store.status().unflushed == 302, "two of the backlog, and the table"
    assert len(read(store)) == 303


def test_a_load_that_died_leaves_void_seqs_and_all_other_points(
    open_store: Any, engine: str, spawn: Any
) -> None:
    if engine == "sqlite":
        pytest.skip("tables go through SQLite's journal whole")
    store = open_store(bulk_rows=1)
    path = store.path
    store.points.insert("a", "m", 1.0, timestamp=1)
    store.close()
    died = spawn(
        "import os, sys; from repo import Settings, Store\n"
        "from repo.core import bulk\n"
        "bulk.merge = lambda *a, **k: os._exit(9)\n"
        "store = Store(sys.argv[1], Settings(background=False, bulk_rows=1))\n"
        "store.points.insert_table({'sensor_id': 'b', 'metric_name': 'm', 'timestamp': [1, 2], 'value': [1.0, 2.0]})",
        path,
    )
    died.communicate()
    assert died.returncode == 9
    store = open_store(bulk_rows=1)
    assert store.points.latest("b", "m") == []
    assert store.sinks.last_seq() == 3
    store.points.insert("a", "m", 2.0, timestamp=2)
    assert [row[3] for row in read(store)] == [1.0, 2.0]
    assert [row["seq"] for row in store.points.after(0)] == [1, 4]
    store.checkpoint()
    assert store.status().journal_rows == 0
    table, _ = a_table()
    assert store.points.insert_table(table).first_seq == 5


WITHOUT_PYARROW = """
import sys
for name in ("pyarrow", "numpy", "pandas", "polars", "pytz"):
    sys.modules[name] = None
import duckdb
from repo import Settings, Store
table = duckdb.connect().sql(
    "SELECT 's' AS sensor_id, 'm' AS metric_name, i AS timestamp_us, i / 2 AS value FROM range(5000) AS r(i)"
)
with Store(sys.argv[1], Settings(engine=sys.argv[2], background=False, bulk_rows=int(sys.argv[3]))) as store:
    assert store.points.insert_table(table).accepted == 5000
    assert sum(row["value"] for row in store.points.range("s", "m")) == 4999 * 5000 / 4
"""


@pytest.mark.duckdb
@pytest.mark.parametrize("bulk_rows", [1, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_relation_needs_no_pyarrow(
    tmp_path: Path, engine: str, bulk_rows: int, run_python: RunPython
) -> None:
    done = run_python(WITHOUT_PYARROW, tmp_path / "store", engine, bulk_rows)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_large_table_over_as_many_stored_points_fits_into_the_default_memory(
    open_store: Any, engine: str
) -> None:
    if engine == "sqlite":
        pytest.skip("SQLite has no such limit")
    store = open_store(background=True)
    rows = np.arange(1_000_000)
    names = pa.DictionaryArray.from_arrays(
        pa.array(rows % 50, pa.int32()), pa.array([f"sensor-{n}" for n in range(50)])
    )

    def table(value: float) -> pa.Table:
        return pa.table(
            {
                "sensor_id": names.cast(pa.string()),
                "metric_name": pa.array(["m"] * len(rows)),
                "timestamp_us": START_US + rows * 1000,
                "value": rows + value,
            }
        )

    for value, conflict in ((0.0, "overwrite"), (0.0, "overwrite"), (1.0, "keep"), (2.0, "overwrite")):
        store.points.insert_table(table(value), on_conflict=conflict)
        assert store.points.range("sensor-7", "m").to_arrow()["value"][0].as_py() == 7 + (value == 2.0) * 2
    assert sum(series.points for series in store.series.list()) == 1_000_000
