"""Counting: a migration that loses or doubles rows is rolled back, in its own transaction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, func, inspect, select, table

from repo.errors import MigrationFailed

__all__ = ["compared", "rows_of"]


def rows_of(connection: Connection) -> dict[str, int]:
    """Return the number of rows of each table except Alembic's, by one statement in the connection's transaction."""
    names = [name for name in inspect(connection).get_table_names() if name != "alembic_version"]
    if not names:
        return {}
    counts = (select(func.count()).select_from(table(name)).scalar_subquery() for name in names)
    return dict(zip(names, connection.execute(select(*counts)).one(), strict=True))


def compared(connection: Connection) -> Callable[..., None]:
    """Count the rows now, and return the function that Alembic calls at the end of each migration's transaction.

    It raises `MigrationFailed` unless each earlier table has as many rows as before, plus or minus the number that the
    revision declares in its `row_differences`, a dict by table that it fills while it runs. A removed table counts as
    empty.
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
            return  # a new database has nothing to lose, and is wanted soon
        after = rows_of(connection)
        for name, rows in before.items():
            if after.get(name, 0) != rows + said.get(name, 0):
                raise MigrationFailed(
                    f"revision {step.up_revision_id} would change {name} from {rows:,} rows to {after.get(name, 0):,}"
                    f", which it does not declare; it was rolled back. If another program writes there, stop it and "
                    "try again; otherwise keep the files and report this"
                )
        before = after

    return compare
