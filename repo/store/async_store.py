"""`AsyncStore`: the store for asyncio. The same methods, awaited; each call runs in a thread, not in the event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from functools import wraps
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar, cast

from repo.core.changes import Submission
from repo.errors import InvalidSettings, StoreClosed
from repo.inputs.arguments import check_count, shown
from repo.queries.rows import PointDict
from repo.repositories.points import Written
from repo.settings import Settings
from repo.store.async_calls import AsyncCalls
from repo.store.points import Points, PointWriter
from repo.store.quarantine import Quarantine
from repo.store.records import Records, RecordWriter
from repo.store.results import PAGE_ROWS, Result
from repo.store.series import SeriesApi
from repo.store.sinks import Sinks
from repo.store.store import Store
from repo.store.transaction import Transaction

if TYPE_CHECKING:
    from repo.store.status import Status
    from repo.upkeep.compact import Compacted

__all__ = ["AsyncPoints", "AsyncRecords", "AsyncResult", "AsyncSeries", "AsyncStore"]

P = ParamSpec("P")
T = TypeVar("T")

Method = Callable[Concatenate[Any, P], T]
Awaited = Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]

_END: Any = object()


def _reading(method: Method[P, T]) -> Awaited[P, T]:
    """Return the method as a coroutine that reads."""

    @wraps(method)
    async def call(self: Any, *args: P.args, **kwargs: P.kwargs) -> T:
        found: T = await self.calls.read(lambda: method(self.part, *args, **kwargs))
        return found

    return cast("Awaited[P, T]", call)


def _writing(method: Method[P, T]) -> Awaited[P, T]:
    """Return the method as a coroutine that writes, in a thread of its own until it is done."""

    @wraps(method)
    async def call(self: Any, *args: P.args, **kwargs: P.kwargs) -> T:
        done: T = await self.calls.write(lambda: method(self.part, *args, **kwargs))
        return done

    return cast("Awaited[P, T]", call)


def _queueing(method: Method[P, Written]) -> Awaited[P, Written]:
    """Return the method as a coroutine that queues a write, and shares a commit with those of other tasks."""

    @wraps(method)
    async def call(self: Any, *args: P.args, **kwargs: P.kwargs) -> Written:
        # The method of `queueing` returns what its writer returns: the future of the write.
        queued = cast("Callable[[], Future[Written]]", lambda: method(self.queueing, *args, **kwargs))
        written: Written = await self.calls.queue(queued)
        return written

    return cast("Awaited[P, Written]", call)


class _Part:
    """A part of an open store: `part` runs calls, `queueing` returns the futures of writes."""

    def __init__(self, calls: AsyncCalls, part: Any, queueing: Any = None) -> None:
        self.calls = calls
        self.part = part
        self.queueing = queueing


class AsyncResult:
    """The points that a query selects: await it for a list of dicts, or iterate it with `async for`, page by page.

    Like `Result`, it runs the query each time that it is read. No lease is held between pages.
    """

    def __init__(self, calls: AsyncCalls, begin: Callable[[], Result]) -> None:
        self._calls = calls
        self._begin = begin

    def __await__(self) -> Generator[Any, None, list[PointDict]]:
        return self.all().__await__()

    async def __aiter__(self) -> AsyncIterator[PointDict]:
        async for page in self.pages():
            for point in page:
                yield point

    async def pages(self, rows: int = PAGE_ROWS) -> AsyncIterator[list[PointDict]]:
        """Yield the points as dicts, in lists of at most `rows`."""
        pages = await self._calls.read(lambda: self._begin().pages(rows))
        while (page := await self._calls.read(lambda: next(pages, _END))) is not _END:
            yield page

    async def all(self) -> list[PointDict]:
        """Return all points in one list."""
        return await self._calls.read(lambda: self._begin().all())

    async def to_arrow(self) -> Any:
        """Return a `pyarrow.Table`; see `Result`."""
        return await self._calls.read(lambda: self._begin().to_arrow())

    async def to_pandas(self) -> Any:
        """Return a `pandas.DataFrame`; see `Result`."""
        return await self._calls.read(lambda: self._begin().to_pandas())

    async def to_polars(self) -> Any:
        """Return a `polars.DataFrame`; see `Result`."""
        return await self._calls.read(lambda: self._begin().to_polars())

    async def to_numpy(self) -> dict[str, Any]:
        """Return a dict of NumPy arrays; see `Result`."""
        return await self._calls.read(lambda: self._begin().to_numpy())


def _resulting(method: Method[P, Result]) -> Callable[Concatenate[Any, P], AsyncResult]:
    @wraps(method)
    def call(self: Any, *args: P.args, **kwargs: P.kwargs) -> AsyncResult:
        return AsyncResult(self.calls, lambda: method(self.part, *args, **kwargs))

    return cast("Callable[Concatenate[Any, P], AsyncResult]", call)


class AsyncPoints(_Part):
    """`points` of an `AsyncStore`; the methods are those of `Points`. Await `range` and `since`, or iterate them."""

    insert = _queueing(PointWriter.insert)
    insert_many = _queueing(PointWriter.insert_many)
    delete = _queueing(PointWriter.delete)
    insert_table = _writing(Points.insert_table)
    range = _resulting(Points.range)
    since = _resulting(Points.since)
    latest = _reading(Points.latest)
    aggregate = _reading(Points.aggregate)
    states = _reading(Points.states)
    after = _reading(Points.after)


class AsyncRecords(_Part):
    """`records` of an `AsyncStore`; the methods are those of `Records`."""

    add = _queueing(RecordWriter.add)
    pending = _reading(Records.pending)
    has = _reading(Records.has)
    count = _reading(Records.count)
    counts = _reading(Records.counts)
    mark_sent = _writing(Records.mark_sent)
    mark_failed = _writing(Records.mark_failed)
    drop_old = _writing(Records.drop_old)
    clear = _writing(Records.clear)


class AsyncSeries(_Part):
    """`series` of an `AsyncStore`; the methods are those of `SeriesApi`."""

    list = _reading(SeriesApi.list)
    describe = _writing(SeriesApi.describe)


class AsyncSinks(_Part):
    """`sinks` of an `AsyncStore`; the methods are those of `Sinks`."""

    list = _reading(Sinks.list)
    show = _reading(Sinks.show)
    add = _writing(Sinks.add)
    change = _writing(Sinks.change)
    pause = _writing(Sinks.pause)
    resume = _writing(Sinks.resume)
    skip = _writing(Sinks.skip)
    replay = _writing(Sinks.replay)
    confirm = _writing(Sinks.confirm)
    remove = _writing(Sinks.remove)
    rekey = _writing(Sinks.rekey)


class AsyncQuarantine(_Part):
    """`quarantine` of an `AsyncStore`; the methods are those of `Quarantine`."""

    list = _reading(Quarantine.list)
    count = _reading(Quarantine.count)
    show = _reading(Quarantine.show)
    retry = _writing(Quarantine.retry)
    drop = _writing(Quarantine.drop)
    export = _writing(Quarantine.export)


class AsyncStore:
    """A `Store` for asyncio: `async with AsyncStore("./data") as store: await store.points.insert(...)`.

    The arguments are those of `Store`; `workers` is the number of threads that run reads. Nothing is opened before
    `async with` or `await store.open()`. The event loop never waits: every call runs in a thread. Many tasks, and event
    loops in several threads, may use one store. Writes of tasks that wait at the same time share commits.

    Calls of `points.insert`, `insert_many`, `delete` and `records.add` are written in the order in which their awaits
    begin. If the task of a write is cancelled, also by a timeout, the write is either durable or not done at all: the
    CancelledError is raised once that is known, and its attribute `written` is the result of the write, or None if
    nothing was written; a note says the same. For a table this applies to each chunk, not to the whole table; see
    `Points.insert_table`. A cancelled read ends at once for its task.

    Raises what `Store` raises, and `StoreClosed` before it is opened and after it is closed. `close` waits for the
    calls that run. After a fork, open another one in the child.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        settings: Settings | None = None,
        *,
        create: bool = True,
        read_only: bool = False,
        workers: int = 8,
    ) -> None:
        self._open_store = lambda: Store(path, settings, create=create, read_only=read_only)
        self._workers = check_count(workers, "workers", error=InvalidSettings)
        self._shown = f"AsyncStore({shown(os.fspath(path) if isinstance(path, os.PathLike) else path)})"
        self._opening = asyncio.Lock()
        self._calls: AsyncCalls | None = None
        self._store: Store | None = None

    def __repr__(self) -> str:
        return self._shown

    async def open(self) -> Self:
        """Open the store unless it is open; a closed store may be opened again."""
        async with self._opening:
            if self._store is None:
                calls = AsyncCalls(self._workers)
                opening = calls.start(self._open_store)
                try:
                    store = await asyncio.wrap_future(opening)
                except asyncio.CancelledError:
                    # If nobody takes the opened store, the thread closes it, because the event loop may end first.
                    opening.add_done_callback(_close_opened)
                    raise
                self._calls, self._store = calls, store
                writer = store._handle.writer
                send = cast("Callable[[Submission], Written]", writer.submit)
                self._points = AsyncPoints(calls, store.points, PointWriter(store._handle, send))
                self._records = AsyncRecords(calls, store.records, RecordWriter(store._handle, send))
                self._series = AsyncSeries(calls, store.series)
                self._sinks = AsyncSinks(calls, store.sinks)
                self._quarantine = AsyncQuarantine(calls, store.quarantine)
        return self

    async def close(self) -> None:
        """Wait for the calls that run, commit what was queued, and close the files. Safe to call again."""
        calls, store = self._calls, self._store
        self._calls = self._store = None
        if calls is not None and store is not None:
            await asyncio.shield(asyncio.to_thread(_close, calls, store))

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def sync(self) -> Store:
        """The store itself, for calls from threads."""
        if self._store is None:
            raise StoreClosed(f"{self._shown} is not open: use `async with`, or `await store.open()`")
        return self._store

    @property
    def points(self) -> AsyncPoints:
        """Write, read, aggregate and delete points."""
        _ = self.sync
        return self._points

    @property
    def records(self) -> AsyncRecords:
        """Add, list and settle messages to deliver."""
        _ = self.sync
        return self._records

    @property
    def series(self) -> AsyncSeries:
        """List and describe the series."""
        _ = self.sync
        return self._series

    @property
    def sinks(self) -> AsyncSinks:
        """Add, change and remove destinations, and move their cursors."""
        _ = self.sync
        return self._sinks

    @property
    def quarantine(self) -> AsyncQuarantine:
        """List, retry, export and drop what destinations refused."""
        _ = self.sync
        return self._quarantine

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Collect writes, whose methods are not awaited, and commit them together when the block ends without error.

        The methods only check their arguments, in the event loop. After an error in the block, or if the commit is
        cancelled or fails, nothing was written, or all of it: `tx.written` is the result.
        """
        store = self.sync
        transaction = Transaction(store._handle, store.points.bulk)
        try:
            yield transaction
        finally:
            submission = transaction.end()
        transaction.written = await self._open_calls().queue(lambda: store._handle.writer.submit(submission))

    async def run(self, call: Callable[[Store], T]) -> T:
        """Run any call of the store in a thread: `await store.run(lambda s: s.export_parquet("./out.parquet"))`.

        If the task is cancelled, the outcome is awaited, as for a write.
        """
        store = self.sync
        return await self._open_calls().write(lambda: call(store))

    async def sql(self, query: str, params: Sequence[Any] | Mapping[str, Any] = ()) -> list[dict[str, Any]]:
        """Run one SELECT; see `Store.sql`."""
        store = self.sync
        return await self._open_calls().read(lambda: store.sql(query, params))

    async def status(self) -> Status:
        """Return the status; see `Store.status`."""
        return await self._open_calls().read(self.sync.status)

    async def flush(self) -> int:
        """Apply everything acknowledged so far to the columns; see `Store.flush`."""
        return await self._open_calls().read(self.sync.flush)

    async def compact(
        self,
        *,
        progress: Callable[[int, int], object] = lambda _done, _total: None,
        until: int | None = None,
        dry_run: bool = False,
    ) -> Compacted:
        """Sort the points on disk by series and time; see `Store.compact`. A cancelled call is finished by a thread."""
        store = self.sync
        return await self._open_calls().read(
            lambda: store.compact(progress=progress, until=until, dry_run=dry_run)
        )

    def _open_calls(self) -> AsyncCalls:
        _ = self.sync
        assert self._calls is not None
        return self._calls


def _close(calls: AsyncCalls, store: Store) -> None:
    try:
        calls.close()
    finally:
        store.close()


def _close_opened(opening: Future[Store]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
