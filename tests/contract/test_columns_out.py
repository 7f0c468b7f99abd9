"""Results as columns: the same points, names and types in every package, on both engines, whatever the page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repo import InvalidQuery, Settings, Store
from repo.extras import FEW_ROWS
from repo.inputs.times import to_datetime, to_datetimes
from repo.queries import point_sql
from tests.conftest import RunPython, Templates

pytestmark = pytest.mark.shared_stores

OpenStore = Callable[..., Store]
pa: Any = pyarrow

ROWS: list[Any] = [
    ("b", "m", 3, 1.5),
    ("a", "m", 2, None, 7, {"k": [1, "ø"]}),
    ("a", "t", 2, "OPEN"),
    ("a", "m", 1.000001, float("inf")),
    ("b", "m", 1, -2.5, -(2**31)),
    ("a", "t", -3, "SHUT 'ø'"),
]
NAME = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    {
        "sensor_id": NAME,
        "metric_name": NAME,
        "timestamp": pa.timestamp("us", tz="UTC"),
        "value": pa.float64(),
        "value_text": pa.string(),
        "quality": pa.int32(),
        "metadata": pa.string(),
    }
)
SEQ_SCHEMA = SCHEMA.append(pa.field("seq", pa.int64()))
SELECTIONS = [(None, None), ("a", "m"), ("a", "t"), ("a", "*"), (["b"], None), ("nobody", "m"), ("no*", None)]


def plain(rows: Any) -> list[tuple[Any, ...]]:
    """The dicts of a result, as rows of its columns."""
    return [
        (
            row["sensor_id"],
            row["metric_name"],
            row["timestamp"],
            None if isinstance(row["value"], str) else row["value"],
            row["value"] if isinstance(row["value"], str) else None,
            row["quality"],
            row["metadata"],
            *([row["seq"]] if "seq" in row else []),
        )
        for row in (
            dict(row, metadata=row["metadata"] and json.loads(json.dumps(row["metadata"]))) for row in rows
        )
    ]


def rows_of(table: Any) -> list[tuple[Any, ...]]:
    return [
        (*row[:6], row[6] and json.loads(row[6]), *row[7:])
        for row in (tuple(row.values()) for row in table.to_pylist())
    ]


@pytest.fixture
def full(shared_store: Store) -> Store:
    """A store that tests only read; its points are partly flushed and partly in the journal.

    One has no quality, like old points.
    """
    store = shared_store
    if store.sinks.last_seq():
        return store
    store.points.insert_many(ROWS[:3])
    store.flush()
    columns, _ = store._handle.columns, store._handle.flusher
    with columns.alone("test") as opened, opened.flush_connection.begin():
        opened.flush_connection.exec_driver_sql("UPDATE time_series_data SET quality = NULL WHERE seq = 3")
    store.points.insert_many(ROWS[3:])
    return store


@pytest.mark.parametrize("names", SELECTIONS, ids=str)
def test_every_format_has_the_same_points_as_the_dicts(full: Store, names: Any) -> None:
    result = full.points.range(*names)
    wanted = plain(result)
    table = result.to_arrow()
    assert table.schema == SCHEMA
    assert rows_of(table) == wanted

    frame = result.to_polars()
    assert dict(frame.schema) == {
        "sensor_id": pl.Categorical,
        "metric_name": pl.Categorical,
        "timestamp": pl.Datetime("us", "UTC"),
        "value": pl.Float64,
        "value_text": pl.String,
        "quality": pl.Int32,
        "metadata": pl.String,
    }
    assert rows_of(frame.to_arrow()) == wanted

    data = result.to_pandas()
    assert {name: str(kind) for name, kind in data.dtypes.items()} == {
        "sensor_id": "category",
        "metric_name": "category",
        "timestamp": "datetime64[us, UTC]",
        "value": "float64",
        "value_text": "object",
        "quality": "Int32",
        "metadata": "object",
    }
    assert rows_of(pa.Table.from_pandas(data, SCHEMA, preserve_index=False)) == wanted

    arrays = result.to_numpy()
    assert {name: str(array.dtype) for name, array in arrays.items()} == {
        "sensor_id": "object",
        "metric_name": "object",
        "timestamp": "datetime64[us]",
        "value": "float64",
        "value_text": "object",
        "quality": "int32",
        "metadata": "object",
    }
    assert isinstance(arrays["quality"], np.ma.MaskedArray)
    assert arrays["quality"].tolist() == [row[5] for row in wanted]
    assert [None if v != v else v for v in arrays["value"].tolist()] == [row[3] for row in wanted]
    assert [t.tolist() for t in arrays["timestamp"]] == [row[2].replace(tzinfo=None) for row in wanted]
    for at, name in ((0, "sensor_id"), (1, "metric_name"), (4, "value_text")):
        assert arrays[name].tolist() == [row[at] for row in wanted]


def test_points_for_delivery_come_in_order_of_seq_and_with_their_seq(full: Store) -> None:
    wanted = plain(full.points.after(0))
    assert [row[-1] for row in wanted] == [1, 2, 3, 4, 5, 6]
    result = full.points.since(0)
    assert list(result) == full.points.after(0)
    assert [point for page in result.pages(2) for point in page] == full.points.after(0)
    assert result.to_arrow().schema == SEQ_SCHEMA
    assert rows_of(result.to_arrow()) == wanted
    assert result.to_polars()["seq"].to_list() == [1, 2, 3, 4, 5, 6]
    assert result.to_numpy()["seq"].tolist() == [1, 2, 3, 4, 5, 6]
    assert str(result.to_pandas()["seq"].dtype) == "int64"
    assert plain(full.points.since(4)) == wanted[4:]
    nothing = full.points.since(6)
    assert list(nothing.batches()) == []
    assert nothing.to_arrow().schema == SEQ_SCHEMA


def test_tuples_are_the_rows_as_they_are_stored(full: Store) -> None:
    (page,) = full.points.since(1).tuples()
    assert page[0] == ("a", "m", 2_000_000, None, None, 7, '{"k":[1,"ø"]}', 2)
    assert page[1] == ("a", "t", 2_000_000, None, "OPEN", None, None, 3)
    assert [row[7] for row in page] == [2, 3, 4, 5, 6]
    pages = list(full.points.range("a", "t").tuples(1))
    assert pages == [[("a", "t", -3_000_000, None, "SHUT 'ø'", 100, None, None)], [(*page[1][:7], None)]]


@pytest.mark.slow_on("sqlite")
def test_batches_have_one_schema_and_are_no_larger_than_requested(open_store: OpenStore) -> None:
    store = open_store(background=True)
    # Four series at the same times: a page cannot end inside one of them.
    store.points.insert_many([(s, m, at, float(at)) for at in range(6) for s in "ab" for m in "pt"])
    store.points.insert_many([(s, "p", 10**6 + at, 1.0) for at in range(4) for s in "cd"])
    store.points.delete("a", "p", 3, 5)
    for result in (store.points.range(None, None), store.points.range("b", "p"), store.points.since(0)):
        whole = result.to_arrow()
        for rows in (3, 1000):
            batches = list(result.batches(rows))
            assert all(0 < batch.num_rows <= rows for batch in batches)
            assert pa.Table.from_batches(batches, whole.schema).to_pylist() == whole.to_pylist()
    for call in (result.batches, result.pages, result.tuples):
        with pytest.raises(InvalidQuery, match="rows = 0"):
            next(call(0))


def test_gaps_and_dense_times_are_paged_correctly(open_store: OpenStore) -> None:
    store = open_store(background=True)
    crowded = [("a", "m", at / 1000, float(at)) for at in range(60)]
    sparse = [("a", "m", 10.0 ** (at + 1), float(at)) for at in range(8)]
    store.points.insert_many(crowded + sparse)
    for seq in range(8):  # overwritten repeatedly: the seqs have a wide gap before the last one
        store.points.insert_many([("z", "m", 1, float(seq))] * 40)
    wanted = [row["timestamp_us"] for row in store.points.range("a", "m")]
    for rows in (7, 64):
        assert [
            row["timestamp_us"] for page in store.points.range("a", "m").pages(rows) for row in page
        ] == wanted
        found = [row for page in store.points.since(0).tuples(rows) for row in page]
        assert found == [row for page in store.points.since(0).tuples() for row in page]
        assert len(found) == 69


def test_rows_out_of_order_on_disk_come_out_in_order(store: Store) -> None:
    times = [5, 3, 9, 1, 7]
    for at in times:
        store.points.insert("a", "m", float(at), timestamp=at)
        store.flush()
    result = store.points.range("a", "m")
    wanted = sorted(map(float, times))
    assert [row["value"] for row in result] == wanted
    assert result.to_arrow()["value"].to_pylist() == wanted
    assert result.to_polars()["value"].to_list() == wanted
    assert result.to_numpy()["value"].tolist() == wanted
    # A flush with the same key twice may store the later seq before an earlier one.
    store.points.insert_many([("b", "m", 1, 1.0), ("b", "m", 2, 1.0), ("b", "m", 1, 2.0)])
    seqs = store.points.since(0).to_arrow()["seq"].to_pylist()
    assert seqs == sorted(seqs) == store.points.since(0).to_numpy()["seq"].tolist()
    assert seqs == [row[7] for page in store.points.since(0).tuples() for row in page]
    # The first seq is searched for from far below, which leaves no result open.
    before = store.points.since(-(2**62))
    assert seqs == before.to_arrow()["seq"].to_pylist() == before.to_numpy()["seq"].tolist()


def test_names_beyond_the_dictionary_limit_come_as_texts(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.points.insert_many([(f"s{number}", "m", number % 3, 1.0) for number in range(20)])
    result = store.points.range(None, None)
    numbered = [result.to_arrow().to_pylist(), result.to_numpy()["sensor_id"].tolist(), list(result)]
    monkeypatch.setattr(point_sql, "MOST_NUMBERED", 5)
    assert result.to_arrow().schema == SCHEMA
    assert [result.to_arrow().to_pylist(), result.to_numpy()["sensor_id"].tolist(), list(result)] == numbered
    assert result.to_polars()["sensor_id"].to_list() == numbered[1]
    assert [row[0] for page in store.points.since(0).tuples() for row in page] == [f"s{n}" for n in range(20)]


def test_arrow_consumers_accept_a_result_itself(full: Store) -> None:
    result = full.points.range(None, None)
    wanted = rows_of(result.to_arrow())
    assert rows_of(pa.table(result)) == wanted
    assert rows_of(pl.DataFrame(result).to_arrow()) == wanted
    assert len(pd.DataFrame.from_arrow(result)) == len(wanted)
    duckdb = pytest.importorskip("duckdb")
    with duckdb.connect() as other:
        other.register("points", result)
        assert other.execute("SELECT count(*), sum(quality) FROM points").fetchall() == [
            (6, sum(row[5] or 0 for row in wanted))
        ]


@pytest.mark.closes_columns
def test_nothing_is_held_between_batches(open_store: OpenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = open_store(), open_store()
    first.points.insert_many([("a", "m", at, float(at)) for at in range(40)])
    batches = first.points.range("a", "m").batches(10)
    next(batches)
    assert not first._handle.columns.is_open
    second.points.insert("a", "m", 1.0, timestamp=1000)
    second.checkpoint()
    assert sum(batch.num_rows for batch in batches) >= 30


ONLY = {
    "numpy": "to_numpy",
    "polars": "to_polars",
    "numpy pandas dateutil pytz six": "to_pandas",
    "pyarrow numpy": "to_arrow",
    "": "",
}
"""Installed packages, and the method that needs no other."""

SHAPES = """
import os, sys
from repo import MissingExtra, Settings, Store

def shapes(only, folder):
    class Absent:
        def find_spec(self, name, path=None, target=None):
            if name in {"pyarrow", "numpy", "pandas", "polars", "pytz"} - set(only.split()):
                raise ModuleNotFoundError(name)
    sys.meta_path.insert(0, Absent())
    made = set()
    with Store(folder, Settings(engine=sys.argv[2], background=False)) as store:
        store._handle.columns.stays_open = True
        store.points.insert_many([("a", "m", at, 1.0) for at in range(3)])
        for result in (store.points.range("a", "m"), store.points.range(None, None), store.points.since(0)):
            for shape in ("to_arrow", "to_polars", "to_pandas", "to_numpy", "batches", "__arrow_c_stream__"):
                try:
                    found = getattr(result, shape)()
                    if shape == "batches":
                        found = next(found)
                    made.add(f"{shape}={len(found['value']) if hasattr(found, '__getitem__') else ''}")
                except MissingExtra as error:
                    package = {"to_polars": "polars", "to_pandas": "pandas", "to_numpy": "numpy"}.get(shape, "arrow")
                    assert f"[{package}]'" in str(error), error
    print(only, *sorted(made), sep="|", flush=True)

assert not {"pyarrow", "numpy", "pandas", "polars"} & set(sys.modules)
for number, only in enumerate(sys.argv[3:]):  # each in a process that has imported none of them
    child = os.fork()
    if child == 0:
        try:
            shapes(only, f"{sys.argv[1]}-{number}")
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, only
"""


@pytest.mark.slow_on("sqlite")
def test_each_format_needs_only_its_own_package(
    tmp_path: Path, engine: str, templates: Templates, run_python: RunPython
) -> None:
    for number in range(len(ONLY)):
        templates.copy(engine, 1, tmp_path / f"store-{number}")
    done = run_python(SHAPES, tmp_path / "store", engine, *ONLY)
    assert done.returncode == 0, done.stderr
    reported = {only: set(made) for only, *made in (line.split("|") for line in done.stdout.splitlines())}
    assert reported.keys() == ONLY.keys()
    for only, works in ONLY.items():
        assert f"{works}=3" in reported[only] if works else not reported[only], reported


MOMENTS = st.integers(-9_214_560_000_000_000, 9_214_646_399_999_999)


@given(moments=st.lists(MOMENTS, max_size=20))
def test_many_times_become_datetimes_exact_to_the_microsecond(moments: list[int]) -> None:
    assert to_datetimes(moments) == [to_datetime(moment) for moment in moments]
    near = [moment % 2**52 for moment in moments]
    assert to_datetimes(near * FEW_ROWS) == [to_datetime(moment) for moment in near] * FEW_ROWS


POINTS = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from("ab"), st.just("m"), st.integers(-5, 40), st.sampled_from([None, 1.0, 2.0])
        ),
        st.tuples(st.sampled_from("ab"), st.just("t"), st.integers(-5, 40), st.sampled_from([None, "x"])),
    ),
    max_size=40,
)


@settings(max_examples=6)
@given(
    parts=st.lists(POINTS, min_size=1, max_size=3),
    bounds=st.tuples(*[st.none() | st.integers(-6, 41)] * 2).filter(
        lambda bounds: None in bounds or bounds[0] <= bounds[1]
    ),
    rows=st.integers(1, 12),
    names=st.sampled_from([(None, None), ("a", "m"), ("b", None), ("[ab]", "t")]),
)
def test_any_cut_of_any_range_equals_a_plain_dict(
    tmp_path_factory: pytest.TempPathFactory,
    templates: Templates,
    engine: Any,
    parts: Any,
    bounds: Any,
    rows: int,
    names: Any,
) -> None:
    folder = tmp_path_factory.mktemp("range") / "store"
    templates.copy(engine, 1, folder)
    model: dict[tuple[int, str, str], Any] = {}
    with Store(folder, Settings(engine=engine)) as store:
        for part in parts:
            store.points.insert_many(part)
            store.flush()
            model |= {(at, sensor, metric): value for sensor, metric, at, value in part}
        low, high = bounds
        wanted = [
            (*key, value)
            for key, value in sorted(model.items(), key=lambda item: item[0])
            if (low is None or key[0] >= low)
            and (high is None or key[0] < high)
            and (names[0] is None or key[1] in names[0])
            and (names[1] is None or key[2] == names[1])
        ]
        result = store.points.range(names[0], names[1], low, high)

        def dicts() -> Iterator[tuple[Any, ...]]:
            for page in result.pages(rows):
                for row in page:
                    yield row["timestamp_us"] // 10**6, row["sensor_id"], row["metric_name"], row["value"]

        assert list(dicts()) == wanted
        columns = [row for batch in result.batches(rows) for row in batch.to_pylist()]
        assert [
            (
                int(row["timestamp"].timestamp()),
                row["sensor_id"],
                row["metric_name"],
                row["value"] if row["value_text"] is None else row["value_text"],
            )
            for row in columns
        ] == wanted
