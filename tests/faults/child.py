"""The code of the processes that are killed, and of those that count afterwards. Judges nothing."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from repo.core import background, compaction, flush
from repo.engines.duckdb.backend import DuckDBBackend
from repo.settings import Settings
from repo.store.store import Store
from tests.faults import steps
from tests.faults.workload import (
    MOST_UNDER_WAY,
    AddRecord,
    Delete,
    Insert,
    MarkSent,
    Operation,
    State,
    operation,
)

__all__ = [
    "App",
    "Census",
    "Counted",
    "count_as_found",
    "count_columns",
    "count_metadata",
    "count_through",
    "perform",
    "run_app",
    "take_census",
]

SLICE_ROWS = 300
"""The points of a slice in a child."""

KEPT_US = 300_000
"""How long a child with a sink keeps the newest rows in the journal."""

PRUNE_INTERVAL_S = 0.05
"""How often such a child looks for rows that are old enough to be pruned."""

LIFE_S = 280.0
"""A child that is not killed ends by itself after this time."""


@dataclass(slots=True)
class App:
    """An application: its store, its writers with their initial states, and where to stop."""

    folder: Path
    seed: str
    settings: dict[str, Any]
    writers: dict[int, tuple[int, State]]
    """Writer -> (index of its next operation, its state)."""
    place: steps.Place | None = None
    nth: int = 1
    prune_at_commit: bool = False
    """The negative control: prune the journal after a flush has committed, before any CHECKPOINT."""
    sink: bool = False
    """Whether the store has a destination, so that the newest rows stay in the journal after they were flushed."""
    rebuilds: str = ""
    """What is done to the columns in parallel: `moves` between the engines, `shrinks`, `compacts`, or nothing."""
    only_writes: bool = False
    """Whether nothing else uses the columns, so that tables go straight to them: a load waits only briefly."""

    def live(self, say: Callable[[str], None]) -> None:
        """Run until killed."""
        run_app(self, say)


@dataclass(slots=True)
class Census:
    """A count: its store, and whether to checkpoint it while counting."""

    folder: Path
    checkpoint: bool
    create: str | None = None
    """The engine with which to create the store, if the kill came before anything was there."""


@dataclass(slots=True)
class Counted:
    """The findings of another process: first in SQLite as the kill left it, then through the store, then raw."""

    found_state: dict[str, Any] | None = None
    found_journal: list[tuple[int, int]] = field(default_factory=list)
    latest: list[Any] = field(default_factory=list)
    range: list[Any] = field(default_factory=list)
    after: list[Any] = field(default_factory=list)
    records: list[Any] = field(default_factory=list)
    watermark: int = -1
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    series: list[tuple[Any, ...]] = field(default_factory=list)
    columns_state: list[tuple[Any, ...]] = field(default_factory=list)
    columns_ledger: list[str] = field(default_factory=list)
    columns_revision: list[Any] = field(default_factory=list)
    slices: list[tuple[int, int, int, int]] = field(default_factory=list)
    latest_copy: list[tuple[Any, ...]] = field(default_factory=list)
    state: dict[str, Any] | None = None
    journal: list[tuple[int, int]] = field(default_factory=list)
    ledger: list[tuple[Any, ...]] = field(default_factory=list)
    revision: list[Any] = field(default_factory=list)
    integrity: list[Any] = field(default_factory=list)
    kinds: list[tuple[Any, ...]] = field(default_factory=list)
    column_files: list[str] = field(default_factory=list)
    """The engines whose column files have their own names, and what a conversion left unfinished."""


# --- the application ------------------------------------------------------------------------------------


def run_app(app: App, say: Callable[[str], None]) -> None:
    """Write, flush and read until killed; report each acknowledgement after its call has returned."""
    if app.prune_at_commit:
        DuckDBBackend.durable_at_commit = True
    if app.place is not None:
        steps.install(app.place, app.nth, say)
    # Slices that a child fills in a moment; they are compacted in the background as well.
    compaction.SLICE_ROWS = SLICE_ROWS
    background.FIRST_COMPACTION_S = 0.0
    vars(flush).update(KEPT_US=KEPT_US, PRUNE_INTERVAL_S=PRUNE_INTERVAL_S)
    store = Store(app.folder, Settings(**app.settings))
    if app.sink and not store.sinks.list():
        store.sinks.add("kept", "", start="now")
    say("READY")
    rng = Random(f"{app.seed}/app")
    threads = [
        threading.Thread(target=_guard, args=(say, _write, store, app, writer, say), name=f"writer-{writer}")
        for writer in app.writers
    ]
    if not app.only_writes:
        threads.append(threading.Thread(target=_guard, args=(say, _flush, store, rng, say), name="flusher"))
        threads.append(threading.Thread(target=_guard, args=(say, _read, store, app, rng), name=steps.READER))
    if app.rebuilds:
        rebuild = {"moves": _move, "shrinks": _shrink, "compacts": _compact}[app.rebuilds]
        threads.append(
            threading.Thread(target=_guard, args=(say, rebuild, store, rng, say), name="rebuilder")
        )
    for thread in threads:
        thread.daemon = True
        thread.start()
    time.sleep(LIFE_S)
    os._exit(4)


def _guard(say: Callable[[str], None], work: Callable[..., None], *arguments: Any) -> None:
    try:
        work(*arguments)
    except BaseException as error:  # noqa: BLE001  the parent must hear of anything
        traceback.print_exc()
        say(f"ERROR {threading.current_thread().name}: {error!r}".replace("\n", " ")[:1000])


def _write(store: Store, app: App, writer: int, say: Callable[[str], None]) -> None:
    index, state = app.writers[writer]
    rng = Random(f"{app.seed}/{writer}/reads")
    under_way: list[tuple[int, Future[Any]]] = []
    while True:
        act = operation(app.seed, writer, index)
        if act.kind != "submit" or len(under_way) == MOST_UNDER_WAY:
            for at, future in under_way:
                future.result()
                say(f"ACK {writer} {at}")
            under_way.clear()
        if act.kind == "submit":
            under_way.append((index, store.points.submit(dicts(act.parts[0]))))
        else:
            perform(store, act)
            say(f"ACK {writer} {index}")
        state.apply(act)
        index += 1
        if not under_way and rng.random() < 0.05:
            _read_back(store, writer, state)
        time.sleep(rng.random() * 0.004)


def perform(store: Store, act: Operation) -> None:
    """Do one operation, and return when it is acknowledged."""
    if act.kind == "together":
        with store.transaction() as tx:
            for part in act.parts:
                _do_part(tx, part)
    elif act.kind == "insert":
        (identity, content), *_ = act.parts[0].rows  # type: ignore[union-attr]
        sensor, metric, at = identity
        value = content.value if content.text is None else content.text
        metadata = None if content.metadata is None else json.loads(content.metadata)
        store.points.insert(sensor, metric, value, at / 1_000_000, content.quality, metadata)
    elif act.kind == "table":
        store.points.insert_table(_columns(act.parts[0]))
    else:
        _do_part(store, act.parts[0])


def _columns(part: Any) -> dict[str, list[Any]]:
    return {
        "sensor_id": [sensor for (sensor, _, _), _ in part.rows],
        "metric_name": [metric for (_, metric, _), _ in part.rows],
        "timestamp_us": [at for (_, _, at), _ in part.rows],
        "value": [content.value for _, content in part.rows],
        "value_text": [content.text for _, content in part.rows],
        "quality": [content.quality for _, content in part.rows],
        "metadata": [content.metadata for _, content in part.rows],
    }


def _do_part(target: Any, part: Any) -> None:
    match part:
        case Insert():
            target.points.insert_many(dicts(part))
        case Delete(sensor, metric, start_us, end_us):
            start, end = (None if us is None else us / 1_000_000 for us in (start_us, end_us))
            target.points.delete(sensor, metric, start, end)
        case AddRecord(record_id, source, data, timestamp_us):
            target.records.add(record_id, source, data, timestamp_us / 1_000_000)
        case MarkSent(record_ids):
            target.records.mark_sent(record_ids)


def dicts(part: Any) -> list[dict[str, Any]]:
    return [
        {
            "sensor_id": sensor,
            "metric_name": metric,
            "timestamp_us": at,
            "value": content.value if content.text is None else content.text,
            "quality": content.quality,
            "metadata": None if content.metadata is None else json.loads(content.metadata),
        }
        for (sensor, metric, at), content in part.rows
    ]


def _read_back(store: Store, writer: int, state: State) -> None:
    """Check that a writer reads exactly what it has written."""
    found = {
        (row["sensor_id"], row["metric_name"], row["timestamp_us"]): row["value"]
        for row in store.points.range([f"site{writer}", f"well{writer}"], None)
    }
    expected = {
        identity: content.value if content.text is None else content.text
        for identity, content in state.points.items()
    }
    if found != expected:
        wrong = sorted(set(found.items()) ^ set(expected.items()), key=repr)
        raise AssertionError(f"writer {writer} does not read what it wrote: {wrong[:4]}, {len(wrong)} in all")


def _flush(store: Store, rng: Random, say: Callable[[str], None]) -> None:
    while True:
        store.checkpoint() if rng.random() < 0.25 else store.flush()
        say("FLUSHED")
        time.sleep(rng.random() * 0.04)


def _read(store: Store, app: App, rng: Random) -> None:
    writers = sorted(app.writers)
    while True:
        sensor = f"site{rng.choice(writers)}"
        match rng.randrange(5):
            case 0:
                list(store.points.range(sensor, "pressure"))
            case 1:
                store.points.latest(None)
            case 2:
                store.points.aggregate(sensor, ["pressure", "flow"], agg=["avg", "count"], every="1h")
            case 3:
                store.points.after(0, limit=500)
            case 4:
                store.points.latest(sensor, "flow", limit=3)
        time.sleep(rng.random() * 0.01)


def _move(store: Store, rng: Random, say: Callable[[str], None]) -> None:
    """Move the columns to the other engine and back, and remove the leftovers as an operator would."""
    while True:
        time.sleep(rng.random() * 0.1)
        done = store.demote() if store.status().engine == "duckdb" else store.promote()
        say(f"MOVED {done.after}")
        for file in store.files.kept():
            file.unlink(missing_ok=True)


def _shrink(store: Store, rng: Random, say: Callable[[str], None]) -> None:
    while True:
        time.sleep(rng.random() * 0.1)
        store.shrink()
        say("SHRUNK")


def _compact(store: Store, rng: Random, say: Callable[[str], None]) -> None:
    while True:
        time.sleep(rng.random() * 0.1)
        store.compact()
        say("COMPACTED")


_JOURNAL = (
    "SELECT seq, count FROM journal "
    "WHERE kind <> 'void' OR seq > (SELECT pruned_through FROM store_state) ORDER BY seq"
)


# --- the count ------------------------------------------------------------------------------------------


def take_census(census: Census) -> Counted:
    """Open the store again, read everything through it, close it, and read both files raw."""
    counted = Counted()
    if not census.create:
        count_as_found(counted, census.folder)
    waits: dict[str, Any] = {"lease_timeout_s": 120.0, "busy_timeout_s": 120.0}
    options: dict[str, Any] = waits | {"flush_interval_s": 60.0, "lease_idle_s": 30.0}
    settings = Settings(**options, engine=census.create or "auto")  # type: ignore[arg-type]
    with Store(census.folder, settings, create=census.create is not None) as store:
        count_through(counted, store, checkpoint=census.checkpoint)
    count_metadata(counted, census.folder)
    with _asking_columns(census.folder) as ask:
        count_columns(counted, ask)
    return counted


def count_as_found(counted: Counted, folder: Path) -> None:
    """Read SQLite raw, before anything else is done to the store."""
    with _raw(folder / "offline_buffer.db") as raw:
        raw.execute("BEGIN")
        counted.found_state = _facts(raw)
        counted.found_journal = raw.execute(_JOURNAL).fetchall()


def count_through(counted: Counted, store: Store, *, checkpoint: bool) -> None:
    """Read everything through the store; the latest first, because that needs no flush."""
    counted.latest = store.points.latest(None)
    counted.watermark = store.checkpoint() if checkpoint else store.flush()
    counted.range = list(store.points.range(None, None))
    while page := store.points.after(counted.after[-1]["seq"] if counted.after else 0, limit=2000):
        counted.after += page
    counted.records = store.records.pending(limit=1_000_000)


def count_metadata(counted: Counted, folder: Path) -> None:
    """Read SQLite raw, and the names of the column files."""
    with _raw(folder / "offline_buffer.db") as raw:
        raw.execute("BEGIN")
        counted.state = _facts(raw)
        counted.journal = raw.execute(_JOURNAL).fetchall()
        counted.latest_copy = raw.execute("SELECT * FROM latest").fetchall()
        counted.ledger = raw.execute(
            "SELECT reason, detail, dropped, first_us, last_us FROM loss_ledger"
        ).fetchall()
        counted.revision = raw.execute("SELECT version_num FROM alembic_version").fetchall()
        counted.kinds = raw.execute("SELECT sensor_id, metric_name, kind FROM series").fetchall()
        counted.integrity = raw.execute("PRAGMA integrity_check").fetchall()
    for file in folder.glob("timeseries.*"):
        if file.suffix in (".duckdb", ".sqlite", ".building"):
            counted.column_files.append(file.suffix[1:])


def count_columns(counted: Counted, ask: Callable[[str], list[Any]]) -> None:
    """Read the columns with a function that runs queries."""
    counted.rows = ask(
        "SELECT sensor_id, metric_name, timestamp_us, value, value_text, quality, metadata, seq FROM time_series_data"
    )
    counted.series = ask("SELECT * FROM series")
    counted.columns_state = ask("SELECT store_id, file_id, generation, watermark FROM timeseries_state")
    counted.columns_ledger = [row[0] for row in ask("SELECT entry_id FROM loss_ledger")]
    counted.slices = ask("SELECT first_seq, last_seq, rows, sorted_through FROM slices ORDER BY first_seq")
    counted.columns_revision = ask("SELECT version_num FROM alembic_version")


class _raw:
    """A plain connection of the standard library, closed at the end of the block."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, timeout=30)

    def __enter__(self) -> sqlite3.Connection:
        return self._connection

    def __exit__(self, *_: object) -> None:
        self._connection.close()


def _facts(raw: sqlite3.Connection) -> dict[str, Any] | None:
    cursor = raw.execute("SELECT * FROM store_state")
    rows = cursor.fetchall()
    if len(rows) != 1:
        return None
    return dict(zip([column[0] for column in cursor.description], rows[0], strict=True))


@contextmanager
def _asking_columns(folder: Path) -> Iterator[Callable[[str], list[Any]]]:
    fallback = folder / "timeseries.sqlite"
    if fallback.exists():
        with _raw(fallback) as raw:
            yield lambda query: raw.execute(query).fetchall()
        return
    import duckdb

    with duckdb.connect(str(folder / "timeseries.duckdb"), read_only=True) as base:
        yield lambda query: base.execute(query).fetchall()
