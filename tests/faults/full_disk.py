"""The acts of the full-disk tests, run by processes on a tiny disk. Judges nothing.

    python -m tests.faults.full_disk SIZE FOLDER ENGINE NOTES "ACT ..." ...

Each "ACT ..." has a process of its own; all see the same disk, of SIZE, at FOLDER. An act writes its findings to NOTES,
on another disk, before the process ends or is killed. Exits with `NO_TINY_DISK` where there can be none.
"""

from __future__ import annotations

import functools
import os
import pickle
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from repo.core import background, compaction
from repo.delivery.forwarder import Backoff, Forwarder
from repo.delivery.reconcile import reconcile
from repo.disk import space
from repo.engines.registry import ENGINES
from repo.errors import HoldfastError, StoreFull
from repo.files import RESERVE_FILE
from repo.schema.upgrade import migrate_store
from repo.schema.version import HEAD
from repo.settings import Settings
from repo.store.store import Store
from tests.faults.child import Census, Counted, perform, take_census
from tests.faults.tiny_disk import mount_tiny_disk
from tests.faults.workload import State, operation
from tests.migrations.legacy_store import contents
from tests.starter import without_pandas

SEED = "full disk"
FILLER_BYTES = 6_000_000
OPERATIONS_A_STEP = 10
STEP_BYTES = 32_768
"""What another program adds to the disk now and then. Alone, a store might never fill it where flushes, which free the
journal, keep up with slow writes."""
OLD_POINTS = 16_000
NO_TINY_DISK = 77


@dataclass(slots=True)
class Notes:
    """The findings so far."""

    state: State = field(default_factory=State)
    next_index: int = 0
    acknowledged: int = 0
    refused: list[str] = field(default_factory=list)
    """The types of the errors of writes."""
    while_full: list[str] = field(default_factory=list)
    """The types of the errors of flushes and reads on the full disk; `ok` if there was none."""
    after: int = 0
    """Operations that were acknowledged after there was space again."""
    unflushed: int = -1
    """What the background thread left in the journal, given time."""
    moved: list[str] = field(default_factory=list)
    """The engine after each attempt to move the columns."""
    left: list[str] = field(default_factory=list)
    """Files that these attempts left behind."""
    read: list[bool] = field(default_factory=list)
    """Whether a reader found everything acknowledged, after each attempt."""
    dropped: list[int | None] = field(default_factory=list)
    """What deletes on the full disk have returned."""
    counted: Counted | None = None

    def read_back(self, store: Store) -> None:
        """Record whether everything acknowledged can be read."""
        try:
            found = {
                (r["sensor_id"], r["metric_name"], r["timestamp_us"]) for r in store.points.range(None, None)
            }
        except HoldfastError as error:
            self.while_full.append(f"reading: {type(error).__name__}")
        else:
            self.read.append(found == set(self.state.points))

    def write(self, store: Store) -> bool:
        """Run the next operation; False if it was refused, in which case nothing of it may be stored."""
        act = operation(SEED, 0, self.next_index)
        self.next_index += 1
        try:
            perform(store, act)
        except HoldfastError as error:
            self.refused.append(type(error).__name__)
            return False
        self.state.apply(act)
        self.acknowledged += 1
        return True

    def save(self, path: Path) -> None:
        """Save them for the next act."""
        path.write_bytes(pickle.dumps(self))


def open_store(folder: Path, engine: str) -> Store:
    """Open the store on the tiny disk, with small and frequent operations."""
    settings = Settings(
        engine=engine,  # type: ignore[arg-type]
        flush_interval_s=0.2,
        checkpoint_interval_s=0.2,
        checkpoint_log_bytes=100_000,
        wal_checkpoint_bytes=200_000,
        lease_timeout_s=120.0,
    )
    return Store(folder / "store", settings)


def fill(folder: Path, engine: str, notes: Notes) -> Store:
    """Write until the disk is full, and then try every operation for a while."""
    (folder / "filler").write_bytes(bytes(FILLER_BYTES))
    store = open_store(folder, engine)
    while len(notes.refused) < 3:
        notes.write(store)
        if notes.next_index % OPERATIONS_A_STEP == 0:
            with suppress(OSError), (folder / "filler").open("ab", buffering=0) as filler:
                filler.write(bytes(STEP_BYTES))
    # The last free blocks are taken, too, so that not even a small write succeeds by chance.
    with (folder / "rest").open("wb", buffering=0) as rest:
        try:
            while rest.write(bytes(4096)):
                pass
        except OSError:
            pass
    try_all(store, notes)
    return store


def try_all(store: Store, notes: Notes) -> None:
    """Write, flush, checkpoint and read on the full disk, alternating with the background thread."""
    for _ in range(5):
        notes.write(store)
        for act in (store.flush, store.checkpoint, lambda: list(store.points.range(None, None))):
            notes.while_full.append(_tried(act))
        time.sleep(0.1)


def go_on(folder: Path, store: Store, notes: Notes) -> None:
    """Free space, and check that everything works again."""
    (folder / "rest").unlink()
    (folder / "filler").unlink()
    for _ in range(20):
        notes.after += notes.write(store)
    deadline = time.monotonic() + 300.0
    while store.status().unflushed and time.monotonic() < deadline:
        time.sleep(0.05)
    notes.unflushed = store.status().unflushed
    store.checkpoint()
    store.close()


def move_on_a_full_disk(folder: Path, engine: str, notes: Notes) -> None:
    """Move the columns without enough room: refused up front, or, with a wrong estimate, during the move."""
    store = open_store(folder, engine)
    while notes.acknowledged < 60:
        notes.write(store)
    store.checkpoint()
    move = store.demote if engine == "duckdb" else store.promote
    notes.while_full.append(_tried(move))
    space.HEADROOM_BYTES = 0
    for name, record in ENGINES.items():
        ENGINES[name] = replace(record, bytes_a_point=0, names_a_point=0)
    for left_bytes in (150_000, 90_000, 50_000, 20_000):
        with (folder / "rest").open("ab", buffering=0) as rest:
            while shutil.disk_usage(folder).free > left_bytes:
                rest.write(bytes(4096))
        notes.while_full.append(_tried(move))
        notes.moved.append(store.status().engine)
        notes.left += [file.name for file in store.path.glob("*.building*")]
        notes.read_back(store)
    (folder / "rest").unlink()
    notes.write(store)
    move()
    notes.moved.append(store.status().engine)
    notes.read_back(store)
    store.close()


def compact_on_a_full_disk(folder: Path, notes: Notes) -> None:
    """Compact without enough room: refused before anything is done or, with a wrong estimate, in the middle of it."""
    background.FIRST_COMPACTION_S = 3_600.0
    store = open_store(folder, "duckdb")
    while notes.acknowledged < 30:
        notes.write(store)
    store.checkpoint()
    notes.while_full.append(_tried(store.compact))
    space.HEADROOM_BYTES = compaction._DISK_BYTES_A_ROW = compaction._DISK_COPIES_OF_TEXTS = 0
    compaction.SLICE_ROWS = 500
    for left_bytes in (100_000, 20_000):
        with (folder / "rest").open("ab", buffering=0) as rest:
            while shutil.disk_usage(folder).free > left_bytes:
                rest.write(bytes(4096))
        notes.while_full.append(_tried(store.compact))
        notes.read_back(store)
    (folder / "rest").unlink()
    notes.write(store)
    store.compact()
    with store._handle.reading("test"):
        notes.read.append(store._handle.flusher.order.is_sorted(1, store.sinks.last_seq()))
    notes.read_back(store)
    store.close()


def delete_on_a_full_disk(folder: Path, engine: str, notes: Notes) -> None:
    """Fill the disk to the last byte, and delete points and records in a store that is opened after that."""
    settings = Settings(engine=engine, background=False)  # type: ignore[arg-type]
    with Store(folder / "store", settings) as store:
        for sensor in ("A", "B"):
            times = [float(at) for at in range(OLD_POINTS)]
            store.points.insert_table(
                {
                    "sensor_id": [sensor] * OLD_POINTS,
                    "metric_name": ["m"] * OLD_POINTS,
                    "timestamp": times,
                    "value": times,
                }
            )
        with store.transaction() as transaction:
            for at in range(120):
                transaction.records.add(f"R{at}", "gw", {"text": "x" * 3_000}, float(at))
        store.checkpoint()
    Store(folder / "store", settings).close()  # its size counts now
    _fill_up(folder)
    reserve = folder / "store" / RESERVE_FILE
    acts: tuple[Callable[[Store], int | None], ...] = (
        lambda store: store.cleanup(end=OLD_POINTS / 2).points,
        lambda store: store.records.clear("gw"),
        lambda store: store.points.delete("A").first_seq and len(store.points.range("B", None).all()),
    )
    for act in acts:
        _fill_up(folder)
        with Store(folder / "store", settings) as store:
            notes.dropped += [act(store), store.status().ledger_dropped]
            assert reserve.stat().st_size
    with Store(folder / "store", settings) as store:
        store.points.insert("C", "m", 1.0)
        notes.read.append(len(store.points.range("C", None).all()) == 1)
        (folder / "rest").unlink()
    with Store(folder / "store", settings) as store:
        notes.read.append(reserve.stat().st_size >= store.status().bytes_by_file[reserve.name] > 500_000)


def deliver_on_a_full_disk(folder: Path, engine: str, notes: Notes, stick: Path) -> None:
    """Fill the disk to the last byte while a backlog is delivered to another disk, and make room after a while."""
    stick.mkdir()
    (stick / "holdfast-folder.json").touch()
    with Store(folder / "store", Settings(engine=engine, background=False)) as store:  # type: ignore[arg-type]
        store.points.insert_many([("A", "m", float(at), float(at)) for at in range(OLD_POINTS)])
        store.sinks.add("stick", stick.as_uri(), start="beginning")
        forwarder = Forwarder(
            store, "stick", batch_points=100, backoff=Backoff(first_s=0.001, longest_s=0.001)
        )
        for number in range(60):
            if number == 3:
                _fill_up(folder)
            step = forwarder.step()["stick"]
            notes.while_full.append("ok" if step.error is None else type(step.error).__name__)
        (folder / "rest").unlink()
        drained = forwarder.drain()["stick"]
        notes.read.append(drained.is_empty)
        notes.dropped += [store.sinks.show("stick").sent_points, reconcile(store, "stick").missing]


def _fill_up(folder: Path) -> None:
    with (folder / "rest").open("ab", buffering=0) as rest:
        while free := shutil.disk_usage(folder).free:
            rest.write(bytes(min(free, 65_536)))


def upgrade_on_a_full_disk(folder: Path, notes: Notes, legacy: Path) -> None:
    """Upgrade copies of a legacy store with less and less room: refused up front or, if forced, during the upgrade."""
    store = folder / "store"
    for left_bytes in (12_000_000, 3_000_000, 300_000, 0):
        shutil.copytree(legacy, store)
        before = contents(store)
        standing = {path: path.read_bytes() for path in store.glob("*.d*b")}
        with (folder / "rest").open("ab", buffering=0) as rest:
            while shutil.disk_usage(folder).free > left_bytes:
                rest.write(bytes(4096))
        try:
            migrate_store(store)
        except StoreFull as error:
            notes.refused.append(str(error))
        notes.read.append(standing == {path: path.read_bytes() for path in store.glob("*.d*b")})
        for backup in (True, False):
            notes.while_full.append(
                _tried(functools.partial(migrate_store, store, force=True, backup=backup))
            )
        (folder / "rest").unlink()
        after = contents(store)
        notes.read.append(all(after[name] == before[name] for name in ("points", "records", "sequence")))
        notes.moved.append(f"{after['columns']} {after['metadata']}")
        migrate_store(store, backup=False)
        after = contents(store)
        notes.read.append(all(after[name] == before[name] for name in ("points", "records", "sequence")))
        notes.read.append((after["columns"], after["metadata"]) == (HEAD, HEAD))
        shutil.rmtree(store)


def _tried(act: Callable[[], object]) -> str:
    try:
        act()
    except HoldfastError as error:
        return type(error).__name__
    return "ok"


def act_out(act: str, folder: Path, engine: str, path: Path) -> None:
    """Run one act."""
    notes: Notes = pickle.loads(path.read_bytes()) if path.exists() else Notes()
    match act:
        case "fill-and-go-on":
            go_on(folder, fill(folder, engine, notes), notes)
        case "fill-and-die":
            fill(folder, engine, notes)
            notes.save(path)
            os.kill(os.getpid(), signal.SIGKILL)
        case "open-on-the-full-disk":
            try:
                store = open_store(folder, engine)
            except HoldfastError as error:
                notes.while_full.append(type(error).__name__)
                for name in ("rest", "filler"):
                    os.truncate(folder / name, 0)
                store = open_store(folder, engine)
            else:
                try_all(store, notes)
            go_on(folder, store, notes)
        case "move":
            move_on_a_full_disk(folder, engine, notes)
        case "compact":
            compact_on_a_full_disk(folder, notes)
        case "delete":
            delete_on_a_full_disk(folder, engine, notes)
        case "deliver":
            deliver_on_a_full_disk(folder, engine, notes, path.with_name("stick"))
        case "upgrade":
            upgrade_on_a_full_disk(folder, notes, path.with_name("legacy"))
        case "count":
            notes.counted = take_census(Census(folder / "store", checkpoint=True))
    notes.save(path)


def main(size: str, folder: Path, engine: str, path: Path, processes: Sequence[str]) -> int:
    """Mount the disk and run the processes one after another, until one fails."""
    try:
        mount_tiny_disk(folder, size)
    except OSError as error:
        print(error, file=sys.stderr)
        return NO_TINY_DISK
    without_pandas()
    for acts in processes:
        child = os.fork()
        if child == 0:
            try:
                for act in acts.split():
                    act_out(act, folder, engine, path)
            except BaseException:  # noqa: BLE001  the test reads it
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) != (-signal.SIGKILL if "fill-and-die" in acts else 0):
            return 1
    return 0


if __name__ == "__main__":
    # `-m` calls this module __main__; what is pickled must bear its name.
    from tests.faults import full_disk

    size, folder, engine, path, *processes = sys.argv[1:]
    sys.exit(full_disk.main(size, Path(folder), engine, Path(path), processes))
