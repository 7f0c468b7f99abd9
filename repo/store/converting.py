"""Converting: moves the columns of an open store to the other engine, and switches the fact of which is active.

Everything runs alone, under the lease: the new file is built beside the old one, read back and compared, made
durable and named, and then one transaction of the metadata switches. So a kill at any moment leaves one engine
active with everything in it; a file that is not the active one's is renamed at the next opening, never used.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from sqlalchemy import Connection, Engine, func, inspect, select
from sqlalchemy.exc import DBAPIError

from repo.engines import sqlite, torn
from repo.errors import FlushFailed, HoldfastError, StoreFull
from repo.files import ENGINES, StoreFiles
from repo.models import Point, TimeSeriesState
from repo.repositories.series import Summary
from repo.repositories.state import ColumnsState, ColumnsStateRepository, State, StateRepository
from repo.store.access import Access
from repo.store.backends import Backend
from repo.store.columns import OpenColumns
from repo.store.copying import copy_tables, sums_of

__all__ = ["Converted", "convert", "discard_unfinished", "moved_since", "set_inactive_aside"]

log = logging.getLogger("holdfast.converting")

BYTES_A_POINT = {"duckdb": 40, "sqlite": 96}
"""What a point may take in a new file beside its texts and, in SQLite, its names; generously: 5 and 62 were
measured."""

HEADROOM_BYTES = 16_000_000
"""What is left to the journal meanwhile, and to the few blocks of an almost empty file."""

_BUILDING = ".building"
_COMPANIONS = ("", ".wal", "-wal", "-shm", ".checkpoint")
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
    target = build(to, path.with_name(path.name + _BUILDING))
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
        with _typed_errors(opened.backend):
            _refuse_full_disk(target.path, to, opened, access.flusher.known)
        _remove(target.path)
        with opened.flush_connection.begin():
            held = ColumnsStateRepository(opened.flush_connection).get()
        assert held is not None
        state = held._replace(file_id=uuid4().hex, generation=facts.generation + 1)
        try:
            with _typed_errors(opened.backend, target):
                _built(opened, target, state, bring_to_head, lambda done: progress(done, points))
            set_inactive_aside([path], facts.generation)
            target.path.rename(path)
            torn.sync_folder(path.parent)
        finally:
            _remove(target.path)
        _switch(access, path, to, state)
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
        # The file itself last: while it has its name, its log is looked for.
        for companion in reversed(_COMPANIONS):
            old = path.with_name(path.name + companion)
            if old.exists():
                old.rename(path.with_name(name + companion))
        log.info("%s is not the active column file any more; kept as %s", path, name)
        renamed.append(path.with_name(name))
        torn.sync_folder(path.parent)
    return renamed


def discard_unfinished(paths: Iterable[Path]) -> None:
    """Remove what a conversion that died was building for these column files; the caller holds the lease."""
    for path in paths:
        _remove(path.with_name(path.name + _BUILDING))


def moved_since(facts: State, files: StoreFiles, build: Callable[[str], Backend]) -> str | None:
    """Return the engine that holds the columns if they moved after these facts were noted; the caller has the lease.

    So it is in a metadata database that was restored from a backup: its own column file is not there any more, and
    the other one is of this store and of a later generation. Raises `EngineMissing` where that cannot be asked.
    """
    for engine in ENGINES:
        if engine == facts.engine or not files.columns(engine).exists():
            continue
        backend = build(engine)
        opened = backend.open()
        try:
            with _typed_errors(backend), opened.connect() as connection, connection.begin():
                if not inspect(connection).has_table(TimeSeriesState.__tablename__):
                    continue
                owner = ColumnsStateRepository(connection).owner()
        finally:
            backend.close(opened)
        if owner is not None and owner[0] == facts.store_id and owner[1] > facts.generation:
            log.error("the metadata is older than %s, to which the columns moved since", backend.path)
            return engine
    return None


def _switch(access: Access, path: Path, to: str, state: ColumnsState) -> None:
    """Make the new file the active one, by one transaction; if it did not happen, the file goes again."""
    try:
        with access.metadata.write() as connection:
            StateRepository(connection).set(engine=to, file_id=state.file_id, generation=state.generation)
    except HoldfastError:
        with access.metadata.read() as connection:
            facts = StateRepository(connection).get()
        if facts is not None and facts.generation != state.generation:
            _remove(path)
        raise


@contextmanager
def _typed_errors(*backends: Backend) -> Iterator[None]:
    """Translate what either engine raises; what the caller's own function raises passes as it is."""
    kinds: tuple[type[Exception], ...] = (DBAPIError, *chain(*(backend.errors for backend in backends)))
    try:
        yield
    except kinds as error:
        original = error.orig if isinstance(error, DBAPIError) else error
        for backend in backends:
            if isinstance(original, backend.errors):
                raise backend.typed_error(error) from error
        raise


def _refuse_full_disk(
    path: Path, to: str, opened: OpenColumns, known: Mapping[tuple[str, str], Summary]
) -> None:
    """Raise `StoreFull` unless the new file has room beside the old one."""
    needed_bytes = HEADROOM_BYTES + 2 * _text_bytes(opened.flush_connection)
    for pair, summary in known.items():
        # SQLite keeps the names with each row, and once more in the index on seq.
        names_bytes = 3 * sum(len(name.encode()) for name in pair) if to == "sqlite" else 0
        needed_bytes += summary.points * (BYTES_A_POINT[to] + names_bytes)
    free_bytes = shutil.disk_usage(path.parent).free
    if free_bytes < needed_bytes:
        raise StoreFull(
            f"moving the columns to {path.parent} may take {needed_bytes:,} bytes, and {free_bytes:,} are free; "
            "nothing was changed. Free some space and try again",
            path=path.parent,
        )


def _text_bytes(connection: Connection) -> int:
    texts = [func.coalesce(func.sum(func.length(c)), 0) for c in (_points.c.value_text, _points.c.metadata)]
    with connection.begin():
        return int(sum(connection.execute(select(*texts)).one()))


def _built(
    opened: OpenColumns,
    target: Backend,
    state: ColumnsState,
    bring_to_head: Callable[[Engine, Path], None],
    progress: Callable[[int], object],
) -> None:
    """Make the target file: filled, closed, opened again and read back, and durable."""
    engine = target.open_new()
    try:
        bring_to_head(engine, target.path)
        with engine.connect() as connection:
            copied = copy_tables(
                opened.flush_connection, connection, progress, lambda: target.checkpoint(engine)
            )
            with connection.begin():
                ColumnsStateRepository(connection).create(state)
        target.checkpoint(engine)
    finally:
        target.close(engine)
    engine = target.open()
    try:
        with engine.execution_options(**sqlite.READ).connect() as connection:
            found = sums_of(connection)
        target.checkpoint(engine)
    finally:
        target.close(engine)
    if found != copied:
        wrong = [name for name in copied if found[name] != copied[name]]
        raise FlushFailed(
            f"{target.path} does not read back what was written to it ({', '.join(wrong)}); it was removed, and "
            "the engine is the one that it was",
            path=target.path,
        )
    torn.sync_file(target.path)


def _remove(path: Path) -> None:
    for companion in _COMPANIONS:
        path.with_name(path.name + companion).unlink(missing_ok=True)
