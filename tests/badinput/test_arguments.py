"""Every argument of the public API, with every wrong value: accepted, or refused with an error of ours.

The slow tests try all values, the fast one a random part of them.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from repo import (
    DuckDBTimeSeriesStorage,
    EngineMissing,
    Forwarder,
    HoldfastError,
    HttpSink,
    OfflineBufferManager,
    PointRepository,
    RecordRepository,
    Result,
    Settings,
    Store,
    models,
)
from repo.delivery.forwarder import Backoff
from repo.engines.sqlite import driver as sqlite
from repo.queries.selection import Selection
from repo.store.points import Points
from repo.store.quarantine import Quarantine
from repo.store.records import Records
from repo.store.series import SeriesApi
from repo.store.sinks import Sinks
from repo.transfer.ingest_input import Input
from tests.badinput.wrong_values import WRONG

TRIED = 1
"""How many wrong values the fast test tries for each argument."""

Function = Callable[..., Any]
Calls = dict[str, tuple[Function, dict[str, Any]]]
"""By name: a function, and the arguments with which it succeeds. Each of its parameters is tried."""

CALLBACKS = {"progress", "on_rejected", "on_receipt"}

PLACES: dict[str, list[Callable[[Any], Any]]] = {
    "": [lambda wrong: wrong],
    "rows": [
        lambda wrong: wrong,
        lambda wrong: [wrong],
        lambda wrong: [("s", "m", wrong, 1.0)],
        lambda wrong: [("s", "m", 5.0, wrong)],
    ],
    "data_points": [
        lambda wrong: wrong,
        lambda wrong: [{"sensor_id": "s", "metric_name": "m", "value": wrong}],
    ],
    "table": [
        lambda wrong: wrong,
        lambda wrong: {"sensor_id": "s", "metric_name": "m", "timestamp": [5.0], "value": [wrong]},
        lambda wrong: {"sensor_id": wrong, "metric_name": ["m"], "timestamp": [5.0], "value": [1.0]},
    ],
    "sensor_id": [lambda wrong: wrong, lambda wrong: [wrong]],
    "params": [lambda wrong: wrong, lambda wrong: [wrong], lambda wrong: [[wrong]]],
    "record_ids": [lambda wrong: wrong, lambda wrong: [wrong]],
    "paths": [lambda wrong: wrong, lambda wrong: [wrong]],
    "files": [lambda wrong: wrong, lambda wrong: [wrong]],
    "columns": [lambda wrong: wrong, lambda wrong: {"sensor_id": wrong}],
    "data": [
        lambda wrong: wrong,
        lambda wrong: {"value": wrong},
        lambda wrong: {"sensor_id": wrong, "value": 1},
    ],
    "metadata": [lambda wrong: wrong, lambda wrong: {"a": wrong}],
    "labels": [lambda wrong: wrong, lambda wrong: {"a": wrong}],
    "headers": [lambda wrong: wrong, lambda wrong: {"a": wrong}],
    "agg": [lambda wrong: wrong, lambda wrong: [wrong]],
}
"""By parameter: how it may contain a wrong value, besides being one."""

INTERNAL = {
    "Store": {"clock", "files"},
    "PointRepository": {"connection", "clock"},
    "RecordRepository": {"connection", "clock"},
    "Forwarder": {"store"},
}
"""Parameters that take an object of the library's, or a connection or sink of the caller's own."""

NO_API = {
    "RecordRepository.put",
    "RecordRepository.skip_ids_through",
    "RecordRepository.extents", "RecordRepository.drop", "RecordRepository.texts", "RecordRepository.settle",
}  # fmt: skip
"""Methods that the library calls with values that are checked already."""


@contextmanager
def connected(database: Path, tables: Any) -> Iterator[Any]:
    """A connection of the caller's own, to a database with these tables."""
    engine = sqlite.open_engine(database, busy_timeout_s=5)
    try:
        with engine.connect() as connection:
            tables.metadata.create_all(connection)
            connection.commit()
            yield connection
    finally:
        engine.dispose()


def refused_or(function: Function) -> Function:
    """The function where its right argument is refused, too: the quarantine is empty."""

    def call(item_id: int) -> object:
        return None if type(item_id) is int and item_id == 1 else function(item_id)

    return call


def calls_of_store(store: Store, folder: Path) -> Calls:
    """The methods of an open store and its parts."""
    series = {"sensor_id": "s", "metric_name": "m"}
    span = {"start": 1.0, "end": 1e9}
    rows = [("s", "m", 5.0, 1.0)]
    (folder / "in.csv").write_text("sensor_id,metric_name,timestamp,value\ns,m,2024-05-01T00:00:00Z,1\n")
    store.export_parquet(folder / "in.parquet")
    store.sinks.add("sink", "", start="now")

    def in_transaction(write: str, part: str) -> Function:
        def call(**arguments: Any) -> Any:
            with store.transaction() as transaction:
                return getattr(getattr(transaction, part), write)(**arguments)

        call.__signature__ = inspect.signature(getattr(getattr(store, part), write))  # type: ignore[attr-defined]
        return call

    def result(form: str) -> Function:
        return lambda rows: list(getattr(store.points.range("s", "m"), form)(rows))

    def added(**given: Any) -> Any:
        if any(sink.name == "new" for sink in store.sinks.list()):
            store.sinks.remove("new")
        return store.sinks.add(given.pop("name"), given.pop("target"), **given)

    return {
        "Store.sql": (
            store.sql,
            {"query": "SELECT count(*) FROM time_series_data WHERE value > ?", "params": [1]},
        ),
        "Store.promote": (store.promote, {}),
        "Store.demote": (store.demote, {}),
        "Store.export": (
            store.export,
            {"target": folder / "out.csv", **series, **span, "format": "csv", "compression": "none"},
        ),
        "Store.export_parquet": (store.export_parquet, {"path": folder / "out.parquet", **series, **span}),
        "Store.export_ndjson": (store.export_ndjson, {"path": folder / "out.ndjson.gz", **series, **span}),
        "Store.import_parquet": (store.import_parquet, {"paths": folder / "in.parquet"}),
        "Store.ingest": (store.ingest, {"files": folder / "in.csv"}),
        "Store.cleanup": (store.cleanup, {**series, "end": 3.0, "records": True, "source": "none"}),
        "Store.compact": (store.compact, {"until": 1, "dry_run": True, "progress": lambda done, total: None}),
        "Store.shrink": (store.shrink, {"dry_run": True}),
        "Store.size": (store.size, {}),
        "Store.losses": (store.losses, {}),
        "Store.dropped_by": (store.dropped_by, {"seq": 1}),
        "Points.insert": (store.points.insert, {**series, "value": 1.0, "timestamp": 7.0}),
        "Points.insert_many": (store.points.insert_many, {"rows": rows}),
        "Points.submit": (lambda **a: store.points.submit(**a).result(60), {"rows": rows}),
        "Points.insert_table": (
            store.points.insert_table,
            {"table": {**series, "timestamp": [5.0], "value": [1.0]}},
        ),
        "Points.delete": (store.points.delete, {**series, "start": 1.0, "end": 2.0}),
        "Points.range": (store.points.range, {**series, **span}),
        "Points.latest": (store.points.latest, series),
        "Points.aggregate": (store.points.aggregate, {**series, **span, "every": "1h"}),
        "Points.states": (store.points.states, {**series, **span}),
        "Points.after": (store.points.after, {"seq": 0}),
        "Points.since": (store.points.since, {"seq": 0}),
        "Points.has": (store.points.has, {**series, "timestamp_us": 5}),
        "Points.delete_selected": (store.points.delete_selected, {"selection": Selection("gone", "gone")}),
        "Points.page": (store.points.page, {"first_seq": 1, "last_seq": 5}),
        "Transaction.points.insert": (in_transaction("insert", "points"), {**series, "value": 1.0}),
        "Transaction.points.insert_many": (in_transaction("insert_many", "points"), {"rows": rows}),
        "Transaction.points.insert_table": (
            in_transaction("insert_table", "points"),
            {"table": {**series, "timestamp": [5.0], "value": [1.0]}},
        ),
        "Transaction.points.delete": (in_transaction("delete", "points"), {**series, "end": 2.0}),
        "Transaction.records.add": (
            in_transaction("add", "records"),
            {"record_id": "r", "source": "src", "data": {"value": 1}},
        ),
        "Result.pages": (result("pages"), {"rows": 10}),
        "Result.tuples": (result("tuples"), {"rows": 10}),
        "Result.batches": (result("batches"), {"rows": 10}),
        "Records.add": (store.records.add, {"record_id": "r", "source": "src", "data": {"value": 1}}),
        "Records.pending": (store.records.pending, {}),
        "Records.has": (store.records.has, {"record_id": "r"}),
        "Records.mark_sent": (store.records.mark_sent, {"record_ids": ["gone"]}),
        "Records.mark_failed": (store.records.mark_failed, {"record_ids": ["gone"]}),
        "Records.drop_old": (store.records.drop_old, {"max_age_s": 1e9}),
        "Records.clear": (store.records.clear, {"source": "gone"}),
        "SeriesApi.list": (store.series.list, series),
        "SeriesApi.describe": (store.series.describe, {**series, "unit": "bar"}),
        "Sinks.confirm": (store.sinks.confirm, {"name": "sink", "first_seq": 0}),
        "Sinks.add": (
            added,
            {"name": "new", "target": "", "start": 1.0, "filter": None, "records": False, "hold": True}
            | {"max_backlog": "1d", "rate": None, "lanes": True},
        ),
        "Sinks.change": (
            lambda **given: store.sinks.change(given.pop("name"), **given),
            {"name": "sink", "filter": None, "records": False, "hold": True}
            | {"max_backlog": "1d", "rate": None, "lanes": True},
        ),
        "Sinks.selects": (store.sinks.selects, {"chosen": None}),
        "Sinks.may_have_deleted_after": (store.sinks.may_have_deleted_after, {"seq": 1}),
        "Sinks.delivery": (store.sinks.delivery, {"name": "sink"}),
        "Sinks.show": (store.sinks.show, {"name": "sink"}),
        "Sinks.pause": (store.sinks.pause, {"name": "sink"}),
        "Sinks.resume": (store.sinks.resume, {"name": "sink"}),
        "Sinks.skip": (store.sinks.skip, {"name": "sink", "to": 0, "dry_run": True}),
        "Sinks.replay": (store.sinks.replay, {"name": "sink", "start": "beginning", "dry_run": True}),
        "Sinks.remove": (store.sinks.remove, {"name": "sink", "dry_run": True}),
        "Sinks.rekey": (store.sinks.rekey, {"restored": True}),
        "Quarantine.list": (store.quarantine.list, {}),
        "Quarantine.count": (store.quarantine.count, {"sink": "sink"}),
        "Quarantine.show": (refused_or(store.quarantine.show), {"item_id": 1}),
        "Quarantine.export": (store.quarantine.export, {"path": folder / "refused.ndjson", "sink": "sink"}),
        "Quarantine.retry": (store.quarantine.retry, {"ids": []}),
        "Quarantine.drop": (store.quarantine.drop, {"ids": []}),
    }


def calls_of_points(connection: Any) -> Calls:
    """The repository of points, on a connection of the caller's own."""
    series = {"sensor_id": "s", "metric_name": "m"}
    points = PointRepository(connection)
    return {
        "PointRepository.insert": (points.insert, {**series, "value": 1.0}),
        "PointRepository.insert_many": (points.insert_many, {"rows": [("s", "m", 5.0, 1.0)]}),
        "PointRepository.delete": (points.delete, series),
        "PointRepository.range": (points.range, series),
        "PointRepository.latest": (points.latest, series),
        "PointRepository.aggregate": (points.aggregate, series),
        "PointRepository.states": (points.states, series),
        "PointRepository.after": (points.after, {"seq": 0}),
    }


def calls_of_records(connection: Any) -> Calls:
    """The repository of records, on a connection of the caller's own."""
    records = RecordRepository(connection)
    return {
        "RecordRepository.add": (records.add, {"record_id": "r", "source": "src", "data": {"value": 1}}),
        "RecordRepository.has": (records.has, {"record_id": "r"}),
        "RecordRepository.pending": (records.pending, {}),
        "RecordRepository.mark_sent": (records.mark_sent, {"record_ids": ["gone"]}),
        "RecordRepository.mark_failed": (records.mark_failed, {"record_ids": ["gone"]}),
    }


OWN_CONNECTIONS = (
    ("points.db", models.TimeSeriesBase, calls_of_points),
    ("records.db", models.MetadataBase, calls_of_records),
)


def calls_that_construct(store: Store, folder: Path) -> Calls:
    """What is made of arguments: settings, layouts, stores, sinks."""

    class Nowhere:
        name = "nowhere"

        exact = takes_records = False

        def open(self, store_id: str, epoch: int) -> str | None:
            raise NotImplementedError

        def send(self, batch: Any) -> Any:
            raise NotImplementedError

        def close(self) -> None:
            pass

    def opened(**arguments: Any) -> None:
        Store(**arguments).close()

    opened.__signature__ = inspect.signature(Store)  # type: ignore[attr-defined]
    return {
        "Store": (opened, {"path": store.path, "create": False}),
        "Settings": (Settings, {}),
        "Settings.load": (Settings.load, {}),
        "Input": (Input, {"file": folder / "in.csv"}),
        "HttpSink": (HttpSink, {"url": "http://localhost:9/", "name": "a"}),
        "Backoff": (Backoff, {}),
        "Forwarder": (Forwarder, {"store": store, "sinks": Nowhere()}),
    }


def calls_of_documented_classes(folder: Path, engine: str) -> tuple[Calls, list[Callable[[], None]]]:
    """The documented classes, on stores of their own, and how to close them."""
    buffer = OfflineBufferManager(folder / "buffer", use_duckdb=engine == "duckdb")
    storage = DuckDBTimeSeriesStorage(folder / "edge" / "timeseries.duckdb")
    series = {"sensor_id": "s", "metric_name": "m"}
    one = {"record_id": "r", "source": "src", "data": {"value": 1}}
    storage.insert_data_point("s", "m", 1.0, 5.0)
    storage.export_to_parquet(folder / "old.parquet")

    def buffered(**arguments: Any) -> None:
        OfflineBufferManager(**arguments).shutdown()

    def stored(**arguments: Any) -> None:
        DuckDBTimeSeriesStorage(**arguments).close()

    buffered.__signature__ = inspect.signature(OfflineBufferManager)  # type: ignore[attr-defined]
    stored.__signature__ = inspect.signature(DuckDBTimeSeriesStorage)  # type: ignore[attr-defined]
    calls: Calls = {
        "OfflineBufferManager": (
            buffered,
            {"buffer_path": folder / "buffer", "use_duckdb": buffer.use_duckdb},
        ),
        "OfflineBufferManager.add_record": (buffer.add_record, one),
        "OfflineBufferManager.get_pending_records": (buffer.get_pending_records, {}),
        "OfflineBufferManager.mark_sent": (buffer.mark_sent, {"record_id": "gone"}),
        "OfflineBufferManager.mark_failed": (buffer.mark_failed, {"record_id": "gone"}),
        "OfflineBufferManager.cleanup_old_records": (buffer.cleanup_old_records, {}),
        "OfflineBufferManager.clear_buffer": (buffer.clear_buffer, {"source": "gone"}),
        "DuckDBTimeSeriesStorage": (stored, {"db_path": folder / "edge" / "timeseries.duckdb"}),
        "DuckDBTimeSeriesStorage.insert_data_point": (storage.insert_data_point, {**series, "value": 1.0}),
        "DuckDBTimeSeriesStorage.insert_batch": (storage.insert_batch, {"data_points": [("s", "m", 1, 1.0)]}),
        "DuckDBTimeSeriesStorage.query_time_range": (
            storage.query_time_range,
            {**series, "start_time": 1, "end_time": 9},
        ),
        "DuckDBTimeSeriesStorage.query_latest": (storage.query_latest, series),
        "DuckDBTimeSeriesStorage.cleanup_old_data": (storage.cleanup_old_data, {"max_age_seconds": 6e9}),
        "DuckDBTimeSeriesStorage.export_to_parquet": (
            storage.export_to_parquet,
            {"output_path": folder / "old-out.parquet"},
        ),
        "DuckDBTimeSeriesStorage.import_from_parquet": (
            storage.import_from_parquet,
            {"input_path": folder / "old.parquet"},
        ),
    }
    return calls, [buffer.shutdown, storage.close]


def parameters(name: str, function: Function, arguments: dict[str, Any]) -> list[str]:
    """The parameters to try: those of the signature, those of the arguments if a wrapper hides it."""
    found = inspect.signature(function).parameters.values()
    if name == "Settings.load":
        return ["folder", "environment", *(field.name for field in fields(Settings))]
    names = [p.name for p in found if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    return [one for one in names or list(arguments) if one not in INTERNAL.get(name, set())]


def use(result: Any) -> None:
    """Read the result to its end, as a caller would."""
    repr(result)
    if isinstance(result, Result):
        result.all()
    elif inspect.isgenerator(result):
        list(result)


def faults_of(calls: Calls, tries: Callable[[], list[str]], after: Callable[[], object] = bool) -> list[str]:
    """Call each function with each of its arguments wrong; returns what was raised that is no error of ours."""
    faults = []
    for name, (function, arguments) in calls.items():
        with suppress(EngineMissing):  # of a conversion, where DuckDB is not installed
            use(function(**arguments))
        after()
        for parameter in parameters(name, function, arguments):
            for wrong in tries():
                if parameter in CALLBACKS and wrong in ("a function", "a class"):
                    continue  # what a function of the caller's raises is passed on
                for place, put in enumerate(PLACES.get(parameter, PLACES[""])):
                    try:
                        use(function(**(arguments | {parameter: put(WRONG[wrong]())})))
                    except HoldfastError:
                        pass
                    except Exception as fault:  # noqa: BLE001  whatever it is, it is what is looked for
                        said = str(fault).splitlines() or [""]
                        where = f"{parameter}, place {place}: {wrong}" if place else f"{parameter}={wrong}"
                        faults.append(f"{name}({where}): {type(fault).__name__}: {said[0][:90]}")
                    after()
    return faults


def try_all(store: Store, folder: Path, tries: Callable[[], list[str]]) -> list[str]:
    """Try everything on one store."""
    store.points.insert_many([("s", "m", 5.0, 1.0), ("s", "state", 5.0, "OPEN")])
    store.records.add("first", "src", {"value": 1})
    engine = store.status().engine
    faults = faults_of(calls_of_store(store, folder) | calls_that_construct(store, folder), tries)
    for name, tables, calls_of in OWN_CONNECTIONS:
        with connected(folder / name, tables) as connection:
            faults += faults_of(calls_of(connection), tries, connection.rollback)
    calls, closers = calls_of_documented_classes(folder, engine)
    try:
        faults += faults_of(calls, tries)
    finally:
        for close in closers:
            close()
    assert [row["value"] for row in store.points.latest("s", "state")] == ["OPEN"]
    return faults


@pytest.mark.slow_on("duckdb")
def test_a_wrong_argument_is_refused_with_an_error_of_ours(
    store: Store, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    chance = random.Random(seed)
    faults = try_all(store, tmp_path, lambda: chance.sample(list(WRONG), TRIED))
    assert not faults, "\n".join(faults)


@pytest.mark.slow
def test_no_wrong_argument_reaches_the_caller_as_another_error(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    faults = try_all(store, tmp_path, lambda: list(WRONG))
    assert not faults, "\n".join(faults)


def test_every_public_method_with_an_argument_is_tried(store: Store, tmp_path: Path) -> None:
    tried = {*calls_of_store(store, tmp_path), *calls_that_construct(store, tmp_path)}
    for name, tables, calls_of in OWN_CONNECTIONS:
        with connected(tmp_path / name, tables) as connection:
            tried |= set(calls_of(connection))
    missing = []
    for kind in (
        Store,
        Points,
        Records,
        SeriesApi,
        Sinks,
        Quarantine,
        Result,
        PointRepository,
        RecordRepository,
    ):
        for name, method in inspect.getmembers(kind, inspect.isfunction):
            takes = [p for p in inspect.signature(method).parameters if p != "self"]
            if not name.startswith("_") and takes and f"{kind.__name__}.{name}" not in tried | NO_API:
                missing.append(f"{kind.__name__}.{name}")
    assert not missing
