"""Convert: moves the columns of an open store to the other engine, and records which one is active.

Everything runs alone, under the lease: the new file is built beside the old one, read back and compared, made
durable and named, and then one transaction of the metadata switches. So a kill at any moment leaves one engine
active with everything in it; a file that is not the active one's is renamed at the next opening, never used.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from sqlalchemy import Engine, inspect

from repo.core.handle import Access
from repo.disk import refuse_full_disk
from repo.engines.base import COMPANIONS, Backend, typed_errors
from repo.engines.duckdb import checkpoint
from repo.errors import HoldfastError, system_typed
from repo.files import ENGINES, StoreFiles
from repo.models import TimeSeriesState
from repo.repositories.state import ColumnsState, ColumnsStateRepository, State, StateRepository
from repo.upkeep.rewrite import building_path, built, most_bytes, remove

__all__ = ["Converted", "convert", "moved_since", "set_inactive_aside"]

log = logging.getLogger("holdfast.converting")


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
    target = build(to, building_path(path))
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
        with typed_errors(opened.backend):
            needed_bytes = most_bytes(to, opened, access.flusher.known)
        refuse_full_disk([(path.parent, needed_bytes)], f"moving the columns to {to}")
        remove(target.path)
        with opened.flush_connection.begin():
            held = ColumnsStateRepository(opened.flush_connection).get()
        assert held is not None
        state = held._replace(file_id=uuid4().hex, generation=facts.generation + 1)
        try:
            with typed_errors(opened.backend, target):
                built(opened, target, state, bring_to_head, lambda done: progress(done, points))
            set_inactive_aside([path], facts.generation)
            with system_typed(path, "the columns are where they were; try again"):
                target.path.rename(path)
            checkpoint.sync_folder(path.parent)
        finally:
            remove(target.path)
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
        with system_typed(path):
            for companion in reversed(COMPANIONS):
                old = path.with_name(path.name + companion)
                if old.exists():
                    old.rename(path.with_name(name + companion))
        log.info("%s is not the active column file any more; kept as %s", path, name)
        renamed.append(path.with_name(name))
        checkpoint.sync_folder(path.parent)
    return renamed


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
            with typed_errors(backend), opened.connect() as connection, connection.begin():
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
            remove(path)
        raise
