"""Convert: moves the columns of an open store to the other engine, and records which one is active.

The whole job holds the lease exclusively. It builds the new file beside the old one, reads it back and compares it,
makes it durable, and renames it. Then one transaction of the metadata switches engines. So a kill at any time leaves
one engine active with all the data; the next opening renames a file of the inactive engine, and never uses it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from repo.core.active import building_path, remove
from repo.core.handle import Handle
from repo.disk import durable, ownership
from repo.disk.space import refuse_full_disk
from repo.engines.base import typed_errors
from repo.engines.registry import engine_named
from repo.errors import HoldfastError, system_typed
from repo.repositories.state import ColumnsState, ColumnsStateRepository, StateRepository
from repo.upkeep.rewrite import built, most_bytes

__all__ = ["Converted", "convert"]

log = logging.getLogger("holdfast.converting")


@dataclass(frozen=True, slots=True)
class Converted:
    """The result of a conversion. If the engines are the same, nothing was done."""

    path: str
    """The store."""
    before: str
    after: str
    points: int
    generation: int

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values; the documented form of `holdfast --json promote` and `demote`."""
        return asdict(self)


def convert(
    handle: Handle,
    to: str,
    *,
    progress: Callable[[int, int], object],
) -> Converted:
    """Move the columns to the engine `to` and return when they are durable there and it is active.

    Writers continue; readers wait. Raises `EngineMissing`, `StoreFull` if the disk may not have space for both files,
    or the engine's typed error; the active engine is then unchanged.
    """
    path = handle.files.columns(to)
    engine_named(to).require(path)
    target = handle.active.backend_of(to, building_path(path))
    handle.flush(f"moving the columns to {to}")  # yields to other processes, which the move itself cannot
    goal = handle.journal_end()
    with handle.columns.alone(f"moving the columns to {to}") as opened:
        opened = handle.flusher.through(opened, goal)
        before = opened.backend.name
        with handle.metadata.read() as connection:
            facts = StateRepository(connection).get()
        assert facts is not None
        if before == to:
            return Converted(str(handle.files.path), before, to, handle.flusher.points, facts.generation)
        points = handle.flusher.points
        with typed_errors(opened.backend):
            needed_bytes = most_bytes(to, opened, handle.flusher.known)
        refuse_full_disk([(path.parent, needed_bytes)], f"moving the columns to {to}")
        remove(target.path)
        with opened.flush_connection.begin():
            held = ColumnsStateRepository(opened.flush_connection).get()
        assert held is not None
        state = held._replace(file_id=uuid4().hex, generation=facts.generation + 1)
        try:
            with typed_errors(opened.backend, target):
                built(opened, target, state, handle.active.bring_to_head, lambda done: progress(done, points))
            handle.active.set_aside(to, facts.generation)
            with system_typed(path, "the columns were not moved; try again"):
                ownership.make_like(target.path, opened.backend.path)
                durable.replace(target.path, path)
        finally:
            remove(target.path)
        _switch(handle, path, to, state)
        log.info("the columns are now in %s", path)
        handle.columns.reopen()
    return Converted(str(handle.files.path), before, to, points, state.generation)


def _switch(handle: Handle, path: Path, to: str, state: ColumnsState) -> None:
    """Make the new file the active one in one transaction; if the transaction failed, remove the file."""
    try:
        with handle.metadata.write() as connection:
            StateRepository(connection).set(engine=to, file_id=state.file_id, generation=state.generation)
    except HoldfastError:
        with suppress(HoldfastError):  # the next opening sets the file aside
            if handle.active.confirm().generation != state.generation:
                remove(path)
        raise
