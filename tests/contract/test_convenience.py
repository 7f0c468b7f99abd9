"""What makes the API pleasant to use: limits, order, tables in transactions, bools, JSON, short texts, help."""

from __future__ import annotations

import json
import pydoc
from dataclasses import fields
from typing import Any

import numpy as np
import pandas as pd
import pytest

import repo
from repo import DuckDBTimeSeriesStorage, InvalidPoint, InvalidQuery, OfflineBufferManager, Settings, Store

pytestmark = pytest.mark.shared_stores


def times(found: Any) -> list[int]:
    return [point["timestamp_us"] // 1_000_000 for point in found]


@pytest.mark.slow_on("sqlite")
def test_a_range_is_limited_and_turned_in_every_form(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [n if n < 600 else 50_000 + 40 * n for n in range(1_200)]  # dense, then a hole, then sparse
    store.points.insert_many([("s", metric, second, float(second)) for second in seconds for metric in "ab"])
    ask = store.points.range
    for metric, each in (("a", 1), ("*", 2), (None, 2)):
        wanted = [second for second in seconds for _ in range(each)]
        for limit in (7, 1_030, None):
            assert times(ask("s", metric, limit=limit)) == wanted[:limit]
            newest = ask("s", metric, limit=limit, newest_first=True)
            assert times(newest.all()) == wanted[::-1][:limit]
            assert [time for page in newest.pages(401) for time in times(page)] == wanted[::-1][:limit]
            assert sum(map(len, newest.tuples(399))) == len(wanted[:limit])
    found = ask("s", None, 100, 80_000, limit=5, newest_first=True)
    whole = ask("s", None, 100, 80_000).all()[::-1][:5]
    assert found.all() == whole
    expected = [point["timestamp_us"] for point in whole]
    assert found.to_numpy()["timestamp"].astype("int64").tolist() == expected
    assert found.to_pandas()["metric_name"].tolist() == [point["metric_name"] for point in whole]
    assert found.to_arrow()["timestamp"].cast("int64").to_pylist() == expected
    assert [batch.num_rows for batch in found.batches()] == [5]
    assert found.to_polars()["value"].to_list() == [point["value"] for point in whole]
    assert ask("s", None, 49_000, 49_001, limit=5).all() == ask("no", None, limit=5).all() == []
    for wrong in (0, -1, 1.5, "5"):
        with pytest.raises(InvalidQuery, match="limit"):
            ask("s", None, limit=wrong)  # type: ignore[arg-type]


def test_a_table_in_a_transaction_is_written_with_the_rest_or_not_at_all(store: Store) -> None:
    table = pd.DataFrame(
        {"sensor_id": "s", "metric_name": "m", "timestamp": [1.0, 2.0, 2.0], "value": [1.0, np.nan, 3.0]}
    )
    with pytest.raises(RuntimeError), store.transaction() as failed:  # noqa: PT012  the block is the transaction
        failed.points.insert_table(table)
        raise RuntimeError
    assert store.points.range("s", "m").all() == []
    with pytest.raises(InvalidPoint, match="row 1: timestamp"), store.transaction() as refused:  # noqa: PT012
        refused.records.add("r", "src", {})
        refused.points.insert_table({**table.to_dict("list"), "timestamp": [1.0, None, 2.0]})
    assert store.records.pending() == []
    with store.transaction() as tx:
        tx.records.add("r", "src", {})
        assert tx.points.insert_table(table).accepted == 3
        bad = {"sensor_id": "s", "metric_name": "t", "timestamp": [1.0, 2.0], "value": [2.0, "text"]}
        assert tx.points.insert_table(bad, on_error="skip").rejected == 1
        tx.points.insert("s", "m", 9.0, 3.0)
    assert tx.written is not None
    assert [point["value"] for point in store.points.range("s", "m")] == [1.0, 3.0, 9.0]
    assert len(store.records.pending()) == 1
    with store.transaction() as keeping:
        keeping.points.insert_table(table.assign(value=7.0), on_conflict="keep")
    assert [point["value"] for point in store.points.range("s", "m")] == [1.0, 3.0, 9.0]


@pytest.mark.slow_on("sqlite")
def test_bools_are_accepted_with_accept_bool(store: Store, tmp_path: Any) -> None:
    with pytest.raises(InvalidPoint, match="accept_bool"):
        store.points.insert("s", "on", True)
    store.points.insert("s", "on", True, 1, accept_bool=True)
    store.points.insert_many([("s", "on", 2, False)], accept_bool=True)
    store.points.submit([("s", "on", 3, True)], accept_bool=True).result(60)
    assert [point["value"] for point in store.points.range("s", "on")] == [1.0, 0.0, 1.0]
    with pytest.raises(InvalidQuery, match="accept_bool = 'yes'"):
        store.points.insert("s", "on", True, accept_bool="yes")  # type: ignore[arg-type]
    storage = DuckDBTimeSeriesStorage(tmp_path / "edge" / "timeseries.duckdb")
    storage.insert_data_point("s", "on", True, 1.0)
    assert storage.insert_batch([("s", "on", 2.0, False)]) == 1
    assert [row["value"] for row in storage.query_time_range("s", "on", 0, 5)] == [1.0, 0.0]
    storage.close()
    buffer = OfflineBufferManager(tmp_path / "buffer")
    buffer.add_record("r", "src", {"sensor_id": "s", "value": True})
    assert buffer._reference.store.points.latest("s")[0]["value"] == 1.0
    buffer.shutdown()


def test_results_become_json(store: Store, tmp_path: Any) -> None:
    store.points.insert("s", "m", float("inf"), 1.5, metadata={"a": [1]})
    written = store.points.insert("s", "t", "OPEN", 2)
    point = {"sensor_id": "s", "metric_name": "m", "timestamp": "1970-01-01T00:00:01.500000+00:00"}
    plain = json.loads(json.dumps(repo.jsonable(store.points.latest("s")), allow_nan=False))
    assert plain[0] == {
        **point, "timestamp_us": 1_500_000, "value": "Infinity", "quality": 100, "metadata": {"a": [1]}
    }  # fmt: skip
    assert repo.jsonable(store.points.range("s", None)) == plain
    for result in (
        store.points.aggregate("s", "*", every="1h"),
        store.series.list(),
        store.status(),
        store.size(),
        store.export_ndjson(tmp_path / "out.ndjson.gz"),
        store.records.counts(),
        written,
    ):
        json.dumps(repo.jsonable(result), allow_nan=False)


def test_a_result_says_what_it_is_in_a_line(store: Store) -> None:
    rows = [("s", "m", 1.0, "bad")] * 500
    store.points.insert("s", "m", 1.0, 0)
    for shown, wanted in (
        (
            store.points.range("s", "m", 0, 60),
            "'s' 'm' from 1970-01-01T00:00:00+00:00 to 1970-01-01T00:01:00+00:00",
        ),
        (store.points.range(["a", "b"], None), "2 names all"),
        (store.points.since(7), "after seq 7"),
        (store.points.insert_many(rows, on_error="skip"), "rejected=500"),
    ):
        assert wanted in repr(shown)
        assert len(repr(shown)) < 150


def test_the_version_and_the_help_are_there() -> None:
    assert repo.__version__[0].isdigit()
    settings, store = (pydoc.plain(pydoc.render_doc(kind)) for kind in (Settings, Store))
    for field in fields(Settings):
        assert f"- {field.name} (" in settings
    for name in ("points", "records", "series", "sinks"):
        assert (Store.__dict__[name].__doc__ or "").split(":")[0] in store


def test_the_data_of_a_record_and_labels_take_what_metadata_takes(store: Store) -> None:
    data = {
        "sensor_id": "s",
        "value": np.float32(1.5),
        "timestamp": np.datetime64("2024-05-01"),
        "x": pd.NA,
        "well_name": pd.NA,
    }
    store.records.add("r", "src", data)
    [record] = store.records.pending()
    assert record["data"] == {
        "sensor_id": "s", "value": 1.5, "timestamp": "2024-05-01T00:00:00+00:00", "x": None, "well_name": None
    }  # fmt: skip
    [point] = store.points.latest("s")
    assert (point["value"], point["timestamp"].isoformat()) == (1.5, "2024-05-01T00:00:00+00:00")
    store.records.add("r2", "src", {"sensor_id": pd.NA, "value": 2, "quality": pd.NA, "timestamp": pd.NaT})
    assert [point["quality"] for point in store.points.latest("src")] == [100]
    labels = store.series.describe("s", "unknown", labels={"range": np.int64(5)}).labels
    assert labels == {"range": 5}
