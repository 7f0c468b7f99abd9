"""Names with glob characters: the name of an existing series is an exact name, wherever names are given."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from typing import Any

import pytest

from repo import InvalidQuery, Store

pytestmark = pytest.mark.shared_stores

NAMES = ("Motor[3].Speed", "Motor3.Speed", "Temp [deg C]", "*", "who?")
METRIC = "Motor[3].Speed"

READS: dict[str, Callable[[Store, str], set[str]]] = {
    "range": lambda store, name: {point["metric_name"] for point in store.points.range("plc", name)},
    "latest": lambda store, name: {point["metric_name"] for point in store.points.latest("plc", name)},
    "two latest": lambda store, name: {point["metric_name"] for point in store.points.latest("plc", name, 2)},
    "aggregate": lambda store, name: {row["metric_name"] for row in store.points.aggregate("plc", name)},
    "states": lambda store, name: {row["metric_name"] for row in store.points.states("plc", name)},
    "series": lambda store, name: {series.metric_name for series in store.series.list("plc", name)},
    "export": lambda store, name: exported(store, name),
    "cleanup": lambda store, name: {
        extent.metric_name for extent in store.cleanup(points=True, metric_name=name, dry_run=True).series
    },
}


def exported(store: Store, name: str) -> set[str]:
    file = store.path.parent / "out.ndjson.gz"
    store.export_ndjson(file, metric_name=name)
    with gzip.open(file, "rt") as lines:
        return {json.loads(line)["metric_name"] for line in lines}


def fill(store: Store) -> None:
    store.points.insert_many([("plc", name, at, float(at)) for name in NAMES for at in (1, 2)])


@pytest.fixture
def plc(store: Store) -> Store:
    fill(store)
    return store


@pytest.fixture
def read_plc(shared_store: Store) -> Store:
    """The same points, flushed, of all tests that only read them."""
    if shared_store.sinks.last_seq() == 0:
        fill(shared_store)
        shared_store.flush()
    return shared_store


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("read", READS)
def test_a_name_that_a_series_has_is_not_a_glob(read_plc: Store, read: str, name: str) -> None:
    assert READS[read](read_plc, name) == {name}


def test_a_text_that_no_series_has_is_a_glob(read_plc: Store) -> None:
    found = {point["metric_name"] for point in read_plc.points.range("p*", "Motor*.Speed")}
    assert found == {"Motor[3].Speed", "Motor3.Speed"}


@pytest.mark.parametrize("flushed", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_delete_takes_the_series_of_that_name_alone(plc: Store, name: str, *, flushed: bool) -> None:
    if flushed:
        plc.flush()
    plc.points.delete("plc", name)
    plc.flush()
    assert {series.metric_name for series in plc.series.list() if series.points} == {*NAMES} - {name}


def test_a_delete_in_a_transaction_knows_the_names_written_before_it(store: Store) -> None:
    store.points.insert("plc", "Motor3.Speed", 1.0)
    with store.transaction() as transaction:
        transaction.points.insert("plc", METRIC, 1.0)
        transaction.points.delete("plc", METRIC)
    store.flush()
    assert [series.metric_name for series in store.series.list() if series.points] == ["Motor3.Speed"]


@pytest.mark.parametrize(
    "given", [{}, {"sensor_id": "*"}, {"sensor_id": None, "metric_name": "*"}, {"metric_name": "**"}], ids=str
)
def test_only_everything_deletes_everything(plc: Store, given: dict[str, Any]) -> None:
    plc.points.delete("plc", "*")  # the series of that name
    with pytest.raises(InvalidQuery, match="everything=True"):
        plc.points.delete(**given)
    with pytest.raises(InvalidQuery, match="everything=True"), plc.transaction() as transaction:
        transaction.points.delete(**given)
    plc.flush()
    assert sum(series.points for series in plc.series.list()) == 8
    plc.points.delete(**given, everything=True)
    plc.flush()
    assert sum(series.points for series in plc.series.list()) == 0
