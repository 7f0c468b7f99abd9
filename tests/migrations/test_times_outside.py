"""Points of a legacy store whose times no datetime can show: the upgrade counts them, and every query returns them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from repo import Settings, Store
from repo.commands import holdfast
from repo.delivery.forwarder import Forwarder
from repo.schema.upgrade import migrate_store
from tests.delivery.memory_sink import MemorySink
from tests.migrations.legacy_store import make_legacy_store

pytestmark = pytest.mark.duckdb

USUAL_US, MILLISECONDS_US = 1_767_225_600_000_000, 1_767_225_600_000_000_000
TIMES_US = (-(2**62), USUAL_US, MILLISECONDS_US, 2**63 - 1)
REFUSED = {"duckdb": "f*", "sqlite": "fa?"}
"""A series for each engine, whose name is also a glob that selects the series `far`."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import duckdb

    path = make_legacy_store(tmp_path_factory.mktemp("outside") / "store", 20, 2)
    columns = duckdb.connect(str(path / "timeseries.duckdb"))
    columns.executemany(
        "INSERT INTO time_series_data VALUES (?, 'far', 'm', 1.5, 100, NULL)", [[us] for us in TIMES_US]
    )
    columns.executemany(
        "INSERT INTO time_series_data VALUES (?, ?, 'm', 2.5, 100, NULL)",
        [[TIMES_US[-1], name] for name in REFUSED.values()],
    )
    columns.close()
    assert migrate_store(path).outside_points == 5
    return path


@pytest.fixture(scope="module", params=["duckdb", "sqlite"])
def store(request: pytest.FixtureRequest, folder: Path) -> Any:
    with Store(folder, Settings(background=False)) as store:
        if request.param == "sqlite":
            store.demote()
        yield store


def test_points_come_with_their_times_in_microseconds(store: Store) -> None:
    points = store.points.range("far", "m").all()
    assert [point["timestamp_us"] for point in points] == list(TIMES_US)
    assert [point["timestamp"].year for point in points] == [1, 2026, 9999, 9999]
    assert store.points.latest("far")[0]["timestamp_us"] == TIMES_US[-1]
    assert [point["timestamp_us"] for point in store.points.latest("far", limit=2)] == [*TIMES_US[:1:-1]]


def test_numpy_and_arrow_take_them_as_they_are(store: Store) -> None:
    numpy = pytest.importorskip("numpy")
    pyarrow = pytest.importorskip("pyarrow")
    times = store.points.range("far", "m").to_numpy()["timestamp"]
    assert times.astype("int64").tolist() == list(TIMES_US)
    assert numpy.datetime64(int(MILLISECONDS_US), "us") in times
    table = store.points.range("far", "m").to_arrow()
    assert table["timestamp"].cast(pyarrow.int64()).to_pylist() == list(TIMES_US)


@pytest.mark.parametrize(
    ("every", "zone"),
    [
        ("1h", "UTC"),
        ("1d", "Pacific/Kiritimati"),
        ("1w", "UTC"),
        ("6mo", "Pacific/Kiritimati"),
        ("1y", "UTC"),
    ],
)
def test_aggregates_count_them_in_the_first_and_the_last_bucket(store: Store, every: str, zone: str) -> None:
    rows = store.points.aggregate("far", "m", agg="count", every=every, tz=zone)
    assert [row["count"] for row in rows] == [1, 1, 2]
    assert [row["bucket"].year for row in rows[1:]] in ([2026, 2099], [2026, 2100], [2025, 2099])
    assert store.points.aggregate("far", "m", agg="count")[0]["count"] == 4


def test_a_series_with_such_times_has_states_and_is_listed(store: Store) -> None:
    assert [row["state"] for row in store.points.states("far", "m")] == [1.5]
    assert [series.points for series in store.series.list("far")] == [4]


def test_a_refused_point_that_was_deleted_stays_in_quarantine(store: Store) -> None:
    name = REFUSED[store.status().engine]
    sink = MemorySink(name=f"to {name}", refuses=lambda row: "too late" if row[0] == name else None)
    forwarder = Forwarder(store, sink)
    assert forwarder.drain()[sink.name].refused == 1
    [item] = store.quarantine.list(sink.name)
    store.points.delete([name])
    assert item.id is not None
    store.quarantine.retry(item.id)
    assert forwarder.drain()[sink.name].is_empty
    [kept] = store.quarantine.list(sink.name)
    assert (kept.timestamp_us, kept.value, kept.retry) == (TIMES_US[-1], 2.5, False)
    assert kept.reason.startswith("it is no longer stored")


@pytest.mark.parametrize(
    "command",
    [
        "status",
        "latest far",
        "--json latest far",
        "series far",
        "query far m",
        "--json query far m",
        "query far m --every 1d",
        "cleanup --sensor far --dry-run",
        "export out.parquet",
    ],
)
def test_every_command_shows_them(
    folder: Path, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(holdfast, ["--store", str(folder), *command.split()])
    assert done.exit_code == 0, done.output
    assert done.exception is None
