"""Counting: a migration that loses or doubles rows is taken back, in its own transaction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, func, inspect, select, table

from repo.errors import MigrationFailed

__all__ = ["compared", "rows_of"]


def rows_of(connection: Connection) -> dict[str, int]:
    """Return how many rows each table has, Alembic's own left out; in the connection's transaction."""
    names = [name for name in inspect(connection).get_table_names() if name != "alembic_version"]
    return {
        name: connection.execute(select(func.count()).select_from(table(name))).scalar_one() for name in names
    }


def compared(connection: Connection) -> Callable[..., None]:
    """Count the rows now, and return what Alembic is to call at the end of each migration's transaction.

    That raises `MigrationFailed` unless each table that stood before has as many rows as then, or as many more or
    less as the revision says: it fills its `row_differences`, a dict by table, as it goes. A table that
    is gone counts as empty.
    """
    before = rows_of(connection)
    connection.rollback()
    is_new = not before

    def compare(*, step: Any, **_: Any) -> None:
        nonlocal before
        said: dict[str, int] = {}
        for script in step.up_revisions if step.is_upgrade else ():
            filled = getattr(script.module, "row_differences", {})
            said |= filled
            filled.clear()  # the same module may run on the other database next
        if is_new:
            return  # it has nothing to lose, and is to be there soon
        after = rows_of(connection)
        for name, rows in before.items():
            if after.get(name, 0) != rows + said.get(name, 0):
                raise MigrationFailed(
                    f"revision {step.up_revision_id} would make {after.get(name, 0):,} rows of the {rows:,} in {name}"
                    f", and it does not say that; nothing of it was kept. Another program may be writing there: stop "
                    "it and try again; else keep the files and report this"
                )
        before = after

    return compare
