"""Converting: moves the columns of an open store to the other engine, and switches the fact of which is active.

Everything runs alone, under the lease: the new file is built beside the old one, read back and compared, made
durable and named, and then one transaction of the metadata switches. So a kill at any moment leaves one engine
active with everything in it; a file that is not the active one's is renamed at the next opening, never used.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from sqlalchemy import Connection, Engine, insert, select

from repo.engines import torn
from repo.engines.traits import traits_of
from repo.errors import FlushFailed, StoreFull
from repo.files import StoreFiles
from repo.models import Point, TimeSeriesBase, TimeSeriesState
from repo.repositories.state import ColumnsState, ColumnsStateRepository, StateRepository
from repo.store.access import Access
from repo.store.backends import Backend
from repo.store.columns import OpenColumns

__all__ = ["Converted", "convert", "set_inactive_aside"]

log = logging.getLogger("holdfast.converting")

PAGE_ROWS = 65_536

BYTES_A_POINT = {"duckdb": 40, "sqlite": 150}
"""What a point may take in a new file, generously: 12 and 95 were measured with names of 10 letters, the SQLite
one with its WAL at its longest."""

_COMPANIONS = ("", ".wal", "-wal", "-shm", ".checkpoint")
_HASHES = 2**64
_points: Any = Point.__table__


class Converted(NamedTuple):
    """What a conversion did; nothing, if the engines are the same."""

    before: str
    after: str
    points: int
    generation: int


def convert(
    access: Access,
    build: Callable[[str, Path], Backend],
    files: StoreFiles,
    bring_to_head: Callable[[Engine, Path], None],
    to: str,
    progress: Callable[[int, int], object],
) -> Converted:
    """Move the columns to the engine `to` and return when they are durable there and it is active.

    `build` makes a backend for an engine and a file, and raises `EngineMissing`. Writers go on meanwhile; readers
    wait. Raises `StoreFull` beforehand if the disk may not hold both files, and typed errors later; the engine is
    then the one that it was.
    """
    path = files.columns(to)
    target = build(to, path.with_name(path.name + ".building"))
    goal = access.journal_end()
    with access.columns.alone(f"moving the columns to {to}") as opened:
        opened = access.flusher.through(opened, goal)
        before = opened.backend.name
        with access.metadata.read() as connection:
            facts = StateRepository(connection).get()
        assert facts is not None
        if before == to:
            return Converted(before, to, access.flusher.points, facts.generation)
        points = access.flusher.points
        _refuse_full_disk(target.path, points * BYTES_A_POINT[to])
        _remove(target.path)
        state = ColumnsState(facts.store_id, uuid4().hex, facts.generation + 1, access.flusher.watermark)
        try:
            _built(opened, target, state, bring_to_head, lambda done: progress(done, points))
            set_inactive_aside([path], facts.generation)
            target.path.rename(path)
            torn.sync_folder(path.parent)
        finally:
            _remove(target.path)
        with access.metadata.write() as connection:
            StateRepository(connection).set(engine=to, file_id=state.file_id, generation=state.generation)
        log.info("the columns are in %s now", path)
        access.columns.reopen()
    return Converted(before, to, points, state.generation)


def set_inactive_aside(paths: Iterable[Path], generation: int) -> list[Path]:
    """Rename column files that are not the active engine's, with their logs; returns their new names.

    The caller holds the lease and has read the fact under it.
    """
    renamed = []
    for path in paths:
        if not path.exists():
            continue
        name = f"{path.name}.inactive-{generation}"
        number = 1
        while path.with_name(name).exists():
            number += 1
            name = f"{path.name}.inactive-{generation}-{number}"
        for companion in reversed(
            _COMPANIONS
        ):  # the file itself last: while it has its name, its log is looked for
            old = path.with_name(path.name + companion)
            if old.exists():
                old.rename(path.with_name(name + companion))
        log.warning("%s is not the active column file any more; kept as %s", path, name)
        renamed.append(path.with_name(name))
        torn.sync_folder(path.parent)
    return renamed


def _refuse_full_disk(path: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(path.parent).free
    if free_bytes < needed_bytes:
        raise StoreFull(
            f"moving the columns to {path.parent} may take {needed_bytes:,} bytes, and {free_bytes:,} are free; "
            "nothing was changed. Free some space and try again",
            path=path.parent,
        )


def _built(
    opened: OpenColumns,
    target: Backend,
    state: ColumnsState,
    bring_to_head: Callable[[Engine, Path], None],
    progress: Callable[[int], object],
) -> None:
    """Make the target file, durable and closed; everything in it was read back."""
    engine = target.open()
    try:
        bring_to_head(engine, target.path)
        with engine.connect() as connection:
            try:
                copied = _copied(opened.flush_connection, connection, progress)
                with connection.begin():
                    ColumnsStateRepository(connection).create(state)
                found = {name: _summed(_pages(connection, name)) for name in copied}
            except Exception as error:
                raise target.typed_error(error) from error
        if found != copied:
            wrong = [name for name in copied if found[name] != copied[name]]
            raise FlushFailed(
                f"{target.path} does not read back what was written to it ({', '.join(wrong)}); it was removed, and "
                "the engine is the one that it was",
                path=target.path,
            )
        target.checkpoint(engine)
    finally:
        target.close(engine)
    descriptor = os.open(target.path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _copied(
    source: Connection, target: Connection, progress: Callable[[int], object]
) -> dict[str, tuple[int, int]]:
    """Copy every table, a page a transaction; returns rows and a checksum of each, by name."""
    sums = {}
    for name in _tables():
        table = TimeSeriesBase.metadata.tables[name]
        rows = total = 0
        with source.begin():
            for page in _pages(source, name):
                with target.begin():
                    if table is _points:
                        traits_of(target).load(target, table, page)
                    else:
                        target.execute(
                            insert(table), [dict(zip(table.c.keys(), row, strict=True)) for row in page]
                        )
                rows, total = rows + len(page), (total + sum(map(hash, page))) % _HASHES
                if table is _points:
                    progress(rows)
        sums[name] = (rows, total)
    return sums


def _tables() -> list[str]:
    return [name for name in TimeSeriesBase.metadata.tables if name != TimeSeriesState.__tablename__]


def _pages(connection: Connection, name: str) -> Iterator[list[tuple[Any, ...]]]:
    table = TimeSeriesBase.metadata.tables[name]
    query = select(table)
    if table is _points and not traits_of(connection).has_rowid:
        query = query.order_by(
            _points.c.seq
        )  # as they arrived, so that time is narrow in each part of the file
    for page in connection.execute(query.execution_options(yield_per=PAGE_ROWS)).partitions():
        yield [tuple(row) for row in page]


def _summed(pages: Iterable[list[tuple[Any, ...]]]) -> tuple[int, int]:
    """Return the number of rows, and a checksum that does not depend on their order."""
    rows = total = 0
    for page in pages:
        rows, total = rows + len(page), (total + sum(map(hash, page))) % _HASHES
    return rows, total


def _remove(path: Path) -> None:
    for companion in _COMPANIONS:
        path.with_name(path.name + companion).unlink(missing_ok=True)
