"""Ctrl-C while DuckDB loads, reads or exports a table raises KeyboardInterrupt, and the store keeps working."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from repo import Store
from repo.core import bulk
from repo.engines.interrupts import is_interrupt
from repo.formats.arrays import frames, scan
from tests.conftest import OpenStore, RunPython
from tests.interrupts import interrupted

ROWS = 40_000
ROUNDS = 3

CALLBACKS = {
    "a callback of the merge": "failed: RuntimeError: Query interrupted",
    "the reading of its schema": "reading the schema of the object 'holdfast_table' failed: KeyboardInterrupt: ",
}
"""Where DuckDB calls Python, and what its error says after Ctrl-C there."""

INTERRUPTED = """
import os, signal, sys, threading, time
from pathlib import Path
import pyarrow as pa
from repo import Settings, Store
from tests.starter import without_pandas

without_pandas()
folder, what, rows, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
inside = False

def on_signal(*_):
    if inside:
        raise KeyboardInterrupt

signal.signal(signal.SIGINT, on_signal)

def table(value):
    return pa.table({
        "sensor_id": [f"s{n % 9}" for n in range(rows)],
        "metric_name": ["m"] * rows,
        "timestamp_us": list(range(rows)),
        "value": [value] * rows,
    })

def is_interrupted(call, after_s):
    '''Call with one Ctrl-C after this time; any other error than KeyboardInterrupt ends the process.'''
    global inside
    timer = threading.Timer(after_s, os.kill, (os.getpid(), signal.SIGINT))
    try:
        try:
            inside = True
            timer.start()
            call()
        finally:
            inside = False
    except KeyboardInterrupt:
        return True
    finally:
        timer.join()
    return False

tables = [table(1.0), table(2.0)]
with Store(folder / "store", Settings(engine="duckdb", background=False, bulk_rows=1)) as store:
    file = folder / "points.parquet"
    calls = {
        "load": lambda at: store.points.insert_table(tables[at % 2]),
        "export": lambda at: store.export_parquet(file),
    }
    store.points.insert_table(tables[1])
    started = time.monotonic()
    calls[what](0)
    lasted_s = time.monotonic() - started
    interrupted = at = 0
    while at < rounds or not interrupted:
        file.unlink(missing_ok=True)
        interrupted += is_interrupted(lambda: calls[what](at + 1), lasted_s * (at % rounds + 0.5) / rounds)
        at += 1
        if at % rounds == 0:
            lasted_s /= 2  # the first call may have been slower than those after it
        [found] = store.sql("SELECT count(*) AS points, count(DISTINCT timestamp_us) AS times FROM time_series_data")
        assert found == {"points": rows, "times": rows}, found
        assert sum(series.points for series in store.series.list()) == rows
        if file.exists():
            assert store.import_parquet(file, dry_run=True).read == rows
    calls[what](0)
    assert what != "load" or store.points.aggregate("s0", "m", agg="max")[0]["max"] == 1.0
    assert what != "export" or store.import_parquet(file).present == rows
    assert [path.name for path in folder.iterdir() if "building" in path.name] == []
print(interrupted)
"""


@pytest.mark.duckdb
@pytest.mark.parametrize("what", ["load", "export"])
def test_ctrl_c_at_any_time_is_a_keyboard_interrupt_and_the_store_keeps_working(
    tmp_path: Path, run_python: RunPython, what: str
) -> None:
    done = run_python(INTERRUPTED, tmp_path, what, ROWS, ROUNDS)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


@pytest.mark.parametrize("engine", ["duckdb"])
@pytest.mark.parametrize("place", ["the look at the table", "the merge", *CALLBACKS])
def test_what_duckdb_raises_for_ctrl_c_in_a_load_is_a_keyboard_interrupt(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    import duckdb

    store = open_store(bulk_rows=1)
    table = {"sensor_id": "a", "metric_name": "m", "timestamp_us": [1, 2, 3], "value": [1.0, 2.0, 3.0]}

    def cut_off(*_arguments: Any, **_options: Any) -> Any:
        if place in CALLBACKS:
            raise duckdb.InvalidInputException(f"Invalid Input Error: {CALLBACKS[place]}")
        raise RuntimeError("Query interrupted")

    owner, name = (scan, "_scanned") if place == "the look at the table" else (bulk, "merge")
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, cut_off)
        with pytest.raises(KeyboardInterrupt):
            store.points.insert_table(table)
    assert store.points.range("a", "m").all() == []
    store.points.insert_table(table)
    assert [series.points for series in store.series.list()] == [3]


@pytest.mark.parametrize("engine", ["duckdb"])
def test_ctrl_c_between_two_chunks_of_a_result_leaves_no_open_result(open_store: OpenStore) -> None:
    store = open_store(bulk_rows=1)
    rows = 5_000
    store.points.insert_table(
        {"sensor_id": "a", "metric_name": "m", "timestamp_us": list(range(rows)), "value": [1.0] * rows}
    )
    place = 1
    while interrupted({frames.__file__}, place, lambda: store.points.range("a", "m").to_arrow()):
        place += 3
        assert store.points.aggregate("a", "m", agg="count")[0]["count"] == rows
    assert place > 10


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Give SIGINT its default meaning, whatever runs the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class StreamOnly:
    """An object that only has a stream."""

    def __init__(self, reader: pa.RecordBatchReader) -> None:
        self._reader = reader

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._reader.__arrow_c_stream__(requested_schema)


@pytest.mark.slow_on("sqlite")
@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("form", [lambda reader: reader, StreamOnly], ids=["a reader", "a stream"])
@pytest.mark.parametrize("batch", [0, 5], ids=["at its beginning", "later"])
def test_ctrl_c_in_a_stream_that_the_caller_makes_is_a_keyboard_interrupt(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch, form: type[StreamOnly], batch: int
) -> None:
    monkeypatch.setattr("repo.core.bulk.CHUNK_ROWS", 20)
    store: Store = open_store(bulk_rows=1)
    columns = {"sensor_id": "a", "metric_name": "m", "value": 1.0}
    batches = [
        pa.RecordBatch.from_pylist([{**columns, "timestamp_us": at * 10 + n} for n in range(10)])
        for at in range(9)
    ]

    def made(interrupted_at: int) -> Iterator[pa.RecordBatch]:
        for at, one in enumerate(batches):
            if at == interrupted_at:
                os.kill(os.getpid(), signal.SIGINT)
            yield one

    def reader(interrupted_at: int) -> pa.RecordBatchReader:
        return pa.RecordBatchReader.from_batches(batches[0].schema, made(interrupted_at))

    with pytest.raises(KeyboardInterrupt) as interrupt:
        store.points.insert_table(form(reader(batch)))
    written = len(store.points.range("a", "m").all())
    assert written in ({0} if batch == 0 else {20, 40})
    assert [note.startswith(f"{written} rows") for note in getattr(interrupt.value, "__notes__", [])] == (
        [True] if written else []
    )
    store.points.insert_table(form(reader(-1)))
    store.flush()
    assert [series.points for series in store.series.list()] == [90]


def test_an_error_that_only_quotes_an_interrupt_is_not_an_interrupt() -> None:
    quoted = pa.ArrowInvalid("the name 'KeyboardInterrupt' is no number")
    assert not is_interrupt(quoted)
    assert not is_interrupt(ValueError("stopped by: KeyboardInterrupt"))
    assert is_interrupt(pa.ArrowInvalid("Unknown error: . Detail: Python exception: \nKeyboardInterrupt\n"))
