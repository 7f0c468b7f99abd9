"""Kinds: a series holds numbers or texts, as its first reading, until it is empty; by rows and tables alike."""

from __future__ import annotations

from typing import Any

import pytest

from repo import InvalidPoint, Store
from repo.core.changes import PositionChange
from tests.conftest import OpenStore, RunPython

pytestmark = pytest.mark.shared_stores

pa = pytest.importorskip("pyarrow")

ROWS = 1_000
"""Enough to go straight to the columns of DuckDB, in these tests."""


@pytest.fixture
def store(open_store: OpenStore) -> Store:
    return open_store(bulk_rows=ROWS)


def table(sensors: list[str], values: list[float]) -> Any:
    rows = len(sensors)
    return pa.table(
        {
            "sensor_id": sensors,
            "metric_name": ["m"] * rows,
            "timestamp_us": [*range(rows)],
            "value": values,
        }
    )


def values(store: Store, sensor: str = "a") -> list[Any]:
    return [row["value"] for row in store.points.range(sensor, "m")]


@pytest.fixture
def mixed() -> Any:
    """A table whose last row does not fit the series `valve`."""
    return table(["a"] * (ROWS - 1) + ["valve"], [1.0] * ROWS)


def test_a_table_with_a_row_of_another_kind_than_its_series_is_refused_before_anything_is_written(
    store: Store, mixed: Any
) -> None:
    store.points.insert("valve", "m", "OPEN", timestamp=-1)
    with pytest.raises(InvalidPoint, match="holds text values") as refused:
        store.points.insert_table(mixed)
    assert [refusal.row for refusal in refused.value.refusals] == [ROWS - 1]
    assert store.points.aggregate("a", "m", agg="count") == []
    assert store.sinks.last_seq() == 1


def test_with_skip_only_that_row_is_left_out(store: Store, mixed: Any) -> None:
    store.points.insert("valve", "m", "OPEN", timestamp=-1)
    written = store.points.insert_table(mixed, on_error="skip")
    assert (written.accepted, [refusal.row for refusal in written.refusals]) == (ROWS - 1, [ROWS - 1])
    assert store.points.aggregate("a", "m", agg="count")[0]["count"] == ROWS - 1
    assert values(store, "valve") == ["OPEN"]


@pytest.mark.parametrize("flushed", ["flushed", "not flushed"])
def test_a_series_whose_points_are_all_gone_may_be_of_another_kind(store: Store, flushed: str) -> None:
    store.points.insert("a", "m", "n/a", timestamp=1)
    store.points.delete("a", "m")
    if flushed == "flushed":
        store.flush()
    store.points.insert("a", "m", 1.0, timestamp=2)
    with pytest.raises(InvalidPoint, match="holds number values"):
        store.points.insert("a", "m", "n/a", timestamp=3)
    assert values(store) == [1.0]


@pytest.mark.parametrize("engine", ["sqlite"])
def test_of_numbers_and_texts_in_one_batch_those_of_the_kind_of_the_series_are_written(store: Store) -> None:
    """Those of the kind of the first reading, where the series is new. A receiver refuses the same ones."""
    store.points.insert("texts", "m", "open", timestamp=0)
    rows = [
        (name, "m", float(at), value)
        for name in ("texts", "new")
        for at, value in enumerate((1.5, "on", 2.5), 1)
    ]
    written = store.points.insert_many(rows, on_error="skip")
    assert [(one.row, one.field) for one in written.refusals] == [(0, "value"), (2, "value"), (4, "value")]
    taken = store.receiving.take_points(
        PositionChange("ab" * 16, 1, "edge", None, "cd" * 16, (1, 6)),
        {
            "sensor_id": [row[0] for row in rows],
            "metric_name": [row[1] for row in rows],
            "timestamp_us": [int(row[2] * 1e6) + 10 for row in rows],
            "value": [row[3] for row in rows],
        },
    )
    assert [row for row, _ in taken.refused] == [0, 2, 4]
    found = [(row["sensor_id"], row["value"]) for row in store.points.range(None, "m")]
    assert sorted(found, key=repr) == [
        *[("new", value) for value in (1.5, 1.5, 2.5, 2.5)],
        *[("texts", value) for value in ("on", "on", "open")],
    ]


def test_a_series_that_still_holds_a_point_keeps_its_kind(store: Store) -> None:
    store.points.insert_many([("a", "m", 1, "n/a"), ("a", "m", 5, "n/a")])
    store.points.delete("a", "m", 0, 3)
    for _ in range(2):
        with pytest.raises(InvalidPoint, match="holds text values"):
            store.points.insert("a", "m", 1.0, timestamp=2)
        store.flush()
    store.points.delete("a", "m")
    store.points.insert("a", "m", "again", timestamp=9)
    with pytest.raises(InvalidPoint, match="holds text values"):
        store.points.insert("a", "m", 1.0, timestamp=2)
    assert values(store) == ["again"]


def test_what_an_empty_series_becomes_is_one_kind_within_a_commit(store: Store) -> None:
    store.points.insert("a", "m", "n/a", timestamp=1)
    store.points.delete("a", "m")
    store.flush()

    def write_both() -> None:
        with store.transaction() as transaction:
            transaction.points.insert("a", "m", 1.0, timestamp=2)
            transaction.points.insert("a", "m", "n/a", timestamp=3)

    with pytest.raises(InvalidPoint):
        write_both()
    assert values(store) == []


def test_a_table_may_give_an_empty_series_another_kind(store: Store) -> None:
    store.points.insert("a", "m", "n/a", timestamp=1)
    store.points.delete("a", "m")
    store.flush()
    assert store.points.insert_table(table(["a"] * ROWS, [1.0] * ROWS)).accepted == ROWS
    assert store.points.aggregate("a", "m", agg="sum")[0]["sum"] == ROWS


def test_another_process_learns_that_a_series_has_another_kind(
    open_store: OpenStore, run_python: RunPython
) -> None:
    store = open_store("site")
    store.points.insert("a", "m", "n/a", timestamp=1)
    other = """
import sys
from repo import Settings, Store
with Store(sys.argv[1], Settings(background=False)) as store:
    store.points.delete("a", "m")
    store.flush()
    store.points.insert("a", "m", 1.0, timestamp=2)
"""
    done = run_python(other, store.path)
    assert done.returncode == 0, done.stderr
    with pytest.raises(InvalidPoint, match="holds number values"):
        store.points.insert("a", "m", "n/a", timestamp=3)
    store.points.insert("a", "m", 2.0, timestamp=4)
    assert values(store) == [1.0, 2.0]
