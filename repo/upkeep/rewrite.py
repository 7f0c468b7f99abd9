"""Rewrite: builds a durable copy of the active column file beside it, reads it back and compares it.

The caller holds the lease and renames the file when it is complete. Until then its name ends in `.building`. No store
opens such a file; the next opening removes one that a killed process left behind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, func, select

from repo.core.columns import OpenColumns
from repo.disk import durable, space
from repo.engines.base import READ, Backend
from repo.engines.registry import engine_named, traits_of
from repo.errors import FlushFailed, HoldfastError, system_typed
from repo.models import Point, TimeSeriesBase
from repo.queries.selection import Summary
from repo.repositories.state import ColumnsState, ColumnsStateRepository
from repo.upkeep.copying import copy_tables, sums_of

__all__ = [
    "built",
    "most_bytes",
    "refuse_foreign_objects",
]

_VERSION_TABLE = "alembic_version"

_points: Any = Point.__table__


def most_bytes(to: str, opened: OpenColumns, known: Mapping[tuple[str, str], Summary]) -> int:
    """Return the maximum size in bytes of a new file of the engine `to`."""
    engine = engine_named(to)
    needed_bytes = space.HEADROOM_BYTES + 2 * _text_bytes(opened.flush_connection)
    for pair, summary in known.items():
        names_bytes = engine.names_a_point * sum(len(name.encode()) for name in pair)
        needed_bytes += summary.points * (engine.bytes_a_point + names_bytes)
    return needed_bytes


def _text_bytes(connection: Connection) -> int:
    texts = [func.coalesce(func.sum(func.length(c)), 0) for c in (_points.c.value_text, _points.c.metadata)]
    with connection.begin():
        return int(sum(connection.execute(select(*texts)).one()))


def refuse_foreign_objects(opened: OpenColumns) -> None:
    """Raise `HoldfastError`, naming them, for objects that Holdfast did not create: a rewrite would drop them."""
    tables = TimeSeriesBase.metadata.sorted_tables
    own = {("table", _VERSION_TABLE), ("column", f"{_VERSION_TABLE}.version_num")}
    for table in tables:
        own |= {("table", table.name), *(("index", str(index.name)) for index in table.indexes)}
        own |= {("column", f"{table.name}.{column.name}") for column in table.columns}
    with opened.flush_connection.begin():
        catalog = traits_of(opened.flush_connection).catalog
        found = {(kind, name) for kind, name in opened.flush_connection.exec_driver_sql(catalog)}
    foreign = found - own
    tables_named = {name for kind, name in foreign if kind == "table"}  # their columns are not listed
    named = sorted(
        f"{kind} {name}"
        for kind, name in foreign
        if kind != "column" or name.partition(".")[0] not in tables_named
    )
    if named:
        raise HoldfastError(
            f"{opened.backend.path} has objects that Holdfast did not create, and a rewrite would drop them: "
            f"{', '.join(named)}. The file is unchanged; move them to another file, drop them here, and try again",
            path=opened.backend.path,
        )


def built(
    opened: OpenColumns,
    target: Backend,
    state: ColumnsState,
    bring_to_head: Callable[[Engine, Path], None],
    progress: Callable[[int], object],
) -> None:
    """Create and fill the target file, close it, open it again, read it back, and make it durable."""
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
        with engine.execution_options(**READ).connect() as connection:
            found = sums_of(connection)
        target.checkpoint(engine)
    finally:
        target.close(engine)
    if found != copied:
        wrong = [name for name in copied if found[name] != copied[name]]
        raise FlushFailed(
            f"{target.path} does not read back as it was written ({', '.join(wrong)}); it was removed, and the old "
            "column file stays in use",
            path=target.path,
        )
    with system_typed(target.path, "the old column file stays in use; try again"):
        durable.sync(target.path)
