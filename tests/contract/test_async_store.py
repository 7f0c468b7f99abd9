"""`AsyncStore`: the same promises, awaited; the event loop never waits, and a cancelled write is never in doubt."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from repo import (
    AsyncStore,
    InvalidPoint,
    InvalidQuery,
    InvalidSettings,
    Settings,
    Store,
    StoreClosed,
    StoreMissing,
)

Body = Callable[[AsyncStore], Coroutine[Any, Any, None]]


@pytest.fixture
def path(tmp_path: Path, engine: str, templates: Any) -> Path:
    """A store that no handle has open."""
    templates.copy(engine, 1, tmp_path / "store")
    return tmp_path / "store"


def run(path: Path, body: Body, **settings: Any) -> None:
    """Run the body with an open store; in an event loop that complains about what is left behind."""

    async def opened() -> None:
        async with AsyncStore(path, Settings(background=False, **settings)) as store:
            await body(store)

    asyncio.run(opened(), debug=False)


@contextmanager
def no_commits(store: AsyncStore) -> Iterator[None]:
    """Let no write be committed in the block."""
    with store.sync._handle.writer._leading:
        yield


async def begun(store: AsyncStore, points: int) -> None:
    """Wait until so many points are queued to be committed."""
    while store.sync._handle.writer._inbox._points < points:
        await asyncio.sleep(0.001)


def values(points: Any) -> list[Any]:
    return [point["value"] for point in points]


@pytest.mark.parametrize("engine", ["sqlite"])
def test_sinks_and_quarantine_are_awaited_too(path: Path) -> None:
    async def body(store: AsyncStore) -> None:
        await store.points.insert("s", "m", 1.0, 1)
        assert (await store.sinks.add("mine", "", start="beginning")).behind == 1
        assert (await store.sinks.change("mine", hold=False)).hold is False
        assert (await store.sinks.pause("mine")).state == "paused"
        assert (await store.sinks.rekey(restored=True)).epoch == 2
        assert [one.name for one in await store.sinks.list()] == ["mine"]
        assert await store.quarantine.count() == 0
        with pytest.raises(InvalidQuery):
            await store.sinks.show("other")

    run(path, body)


def test_the_methods_are_those_of_the_store_awaited(path: Path) -> None:
    async def body(store: AsyncStore) -> None:
        assert (await store.points.insert("s", "m", 1.0, 1)).accepted == 1
        await store.points.insert_many([("s", "m", second, float(second)) for second in range(2, 10)])
        await store.points.insert_table(
            {"sensor_id": "s", "metric_name": "t", "timestamp": [1.0], "value": [5.0]}
        )
        assert values(await store.points.range("s", "m", limit=2, newest_first=True)) == [9.0, 8.0]
        assert [point["value"] async for point in store.points.range("s", "m")] == [
            float(n) for n in range(1, 10)
        ]
        assert [len(page) async for page in store.points.since(0).pages(4)] == [4, 4, 2]
        assert len(await store.points.range("s", None).to_pandas()) == 10
        assert values(await store.points.latest("s", "m")) == [9.0]
        assert (await store.points.aggregate("s", "m"))[0]["avg"] == 5.0
        await store.points.delete("s", "t")
        await store.records.add("r", "src", {"value": 1})
        assert [record["record_id"] for record in await store.records.pending()] == ["r"]
        assert await store.records.mark_sent("r") == 1
        async with store.transaction() as tx:
            tx.points.insert("s", "m", 11.0, 11)
            tx.records.add("r2", "src", {})
        assert tx.written is not None
        assert await store.records.count() == 1
        await store.flush()
        assert {info.metric_name for info in await store.series.list("s") if info.points} == {"m"}
        assert await store.sql("SELECT count(*) AS n FROM time_series_data WHERE sensor_id = ?", ["s"]) == [
            {"n": 10}
        ]
        assert await store.run(lambda sync: sync.size().columns_bytes) > 0
        assert (await store.status()).store_id
        with pytest.raises(InvalidPoint, match="sensor_id"):
            await store.points.insert("", "m", 1.0)
        with pytest.raises(InvalidPoint, match="row 1: value"):
            await store.points.insert_many([("s", "m", 1, 1.0), ("s", "m", 2, object())])
        with pytest.raises(InvalidQuery, match="limit"):
            await store.points.range("s", "m", limit=0)

    run(path, body)


def test_many_tasks_share_commits_and_are_written_in_the_order_of_their_calls(path: Path) -> None:
    async def body(store: AsyncStore) -> None:
        with no_commits(store):
            tasks = [asyncio.ensure_future(store.points.insert("s", "m", float(n), 7)) for n in range(300)]
            await begun(store, 300)
        written = await asyncio.gather(*tasks)
        seqs = [one.first_seq for one in written]
        assert None not in seqs
        assert seqs == sorted(seqs)  # type: ignore[type-var]
        assert values(await store.points.latest("s", "m")) == [299.0]
        rows = await store.run(lambda sync: _journal_rows(sync))
        assert rows < 100

    run(path, body)


def _journal_rows(store: Any) -> int:
    with store._handle.metadata.read() as connection:
        return int(connection.exec_driver_sql("SELECT count(*) FROM journal").scalar())


def test_the_event_loop_runs_on_while_calls_wait(path: Path) -> None:
    async def body(store: AsyncStore) -> None:
        ticks = 0
        with no_commits(store):
            writes = [asyncio.ensure_future(store.points.insert("s", "m", 1.0, n)) for n in range(50)]
            for _ in range(20):
                await asyncio.sleep(0.001)
                ticks += 1
            assert not any(write.done() for write in writes)
        await asyncio.gather(*writes)
        assert ticks == 20

    run(path, body, submit_queue_points=10)


def test_a_write_cancelled_after_it_began_is_durable_and_says_so(path: Path) -> None:
    async def body(store: AsyncStore) -> None:
        with no_commits(store):
            write = asyncio.ensure_future(store.points.insert("s", "m", 1.0, 1))
            await begun(store, 1)
            write.cancel()
            await asyncio.sleep(0.02)
            write.cancel()  # impatience changes nothing
            await asyncio.sleep(0.02)
            assert not write.done()
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await write
        assert cancelled.value.written.accepted == 1  # type: ignore[attr-defined]
        assert "is durable: Written(" in cancelled.value.__notes__[0]
        assert values(await store.points.range("s", "m")) == [1.0]

    run(path, body)


def test_a_write_cancelled_before_it_began_is_not_done_and_says_so(path: Path) -> None:
    async def body(store: AsyncStore) -> None:
        with no_commits(store):
            tasks = [asyncio.ensure_future(store.points.insert("s", "m", 1.0, n)) for n in range(40)]
            await asyncio.sleep(0.05)  # the queue is full, so the last ones wait for a thread
            tasks[-1].cancel()
            with pytest.raises(asyncio.CancelledError) as cancelled:
                await tasks[-1]
            assert cancelled.value.written is None  # type: ignore[attr-defined]
            assert "nothing was written" in cancelled.value.__notes__[0]
        await asyncio.gather(*tasks[:-1])
        assert len(await store.points.range("s", "m")) == 39

    run(path, body, submit_queue_points=5)


def test_a_write_that_failed_while_it_was_cancelled_says_so(path: Path) -> None:
    async def body(store: AsyncStore) -> None:
        await store.points.insert("s", "m", 1.0, 1)
        with no_commits(store):
            write = asyncio.ensure_future(store.points.insert("s", "m", "a text", 2))
            await begun(store, 1)
            write.cancel()
            await asyncio.sleep(0.01)
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await write
        assert cancelled.value.written is None  # type: ignore[attr-defined]
        assert "failed: value: is a text" in cancelled.value.__notes__[0]

    run(path, body)


def test_a_timeout_carries_the_outcome_of_the_write(path: Path) -> None:
    async def body(store: AsyncStore) -> None:
        blocked = threading.Lock()
        blocked.acquire()

        loop = asyncio.get_running_loop()

        def slowly(sync: Any) -> int:
            loop.call_soon_threadsafe(end)
            with blocked:
                return int(sync.records.mark_sent("none"))

        def end() -> None:
            limit.reschedule(loop.time())
            loop.call_later(0.05, blocked.release)

        with pytest.raises(TimeoutError) as late:
            async with asyncio.timeout(None) as limit:
                await store.run(slowly)
        # Not `__cause__`, which Python 3.11.2 does not set.
        assert late.value.__context__ is not None
        assert late.value.__context__.written == 0  # type: ignore[attr-defined]

    run(path, body)


def test_a_cancelled_read_ends_at_once(path: Path) -> None:
    async def body(store: AsyncStore) -> None:
        await store.points.insert("s", "m", 1.0, 1)
        with store.sync._handle.columns.alone("a test"):
            read = asyncio.ensure_future(store.points.range("s", "m").all())
            await asyncio.sleep(0.02)
            read.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(asyncio.shield(read), 60)
        assert values(await store.points.range("s", "m")) == [1.0]

    run(path, body)


def test_it_is_opened_and_closed_once_and_refuses_in_between(path: Path) -> None:
    async def body() -> None:
        store = AsyncStore(path, Settings(background=False))
        with pytest.raises(StoreClosed, match="is not open"):
            store.points.range("s", "m")
        assert await store.open() is await store.open() is store
        writes = [asyncio.ensure_future(store.points.insert("s", "m", 1.0, n)) for n in range(20)]
        await asyncio.sleep(0)
        points = store.points
        await asyncio.gather(store.close(), store.close())
        assert [one.accepted for one in await asyncio.gather(*writes)] == [1] * 20
        with pytest.raises(StoreClosed):
            await store.status()
        with pytest.raises(StoreClosed, match="nothing of this call was done"):
            await points.insert("s", "m", 1.0)
        await store.open()
        assert len(await store.points.range("s", "m")) == 20
        await store.close()
        with pytest.raises(StoreMissing):
            await AsyncStore(path.parent / "none", create=False).open()
        with pytest.raises(InvalidSettings, match="workers"):
            AsyncStore(path, workers=0)
        for wrong in (None, 10**5_000, "", ":memory:", b"x"):
            with pytest.raises(InvalidSettings, match=r"path|TemporaryDirectory"):
                await AsyncStore(wrong).open()  # type: ignore[arg-type]

    asyncio.run(body())


@pytest.mark.parametrize("waits", [True, False], ids=["the loop continues", "the loop ends"])
def test_an_opening_that_is_cancelled_leaves_no_open_store(
    path: Path, monkeypatch: pytest.MonkeyPatch, *, waits: bool
) -> None:
    began, may_open, closed = (threading.Event() for _ in range(3))

    async def body() -> None:
        from repo.store import async_store

        class Slow(Store):
            def __init__(self, *arguments: Any, **options: Any) -> None:
                began.set()
                assert may_open.wait(300)
                super().__init__(*arguments, **options)

            def close(self) -> None:
                super().close()
                closed.set()

        monkeypatch.setattr(async_store, "Store", Slow)
        opening = asyncio.ensure_future(AsyncStore(path, Settings(background=False)).open())
        while not began.is_set():
            await asyncio.sleep(0.001)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        if waits:
            may_open.set()
            assert await asyncio.to_thread(closed.wait, 300)

    asyncio.run(body())
    may_open.set()
    assert closed.wait(300)
