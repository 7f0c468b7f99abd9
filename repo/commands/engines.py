"""`promote` and `demote`: move the columns to the other engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from repo.commands.global_options import global_options, store_argument
from repo.commands.output import print_json
from repo.commands.session import Session
from repo.errors import counted

if TYPE_CHECKING:
    from repo import Store
    from repo.upkeep.convert import Converted

    Progress = Callable[[int, int], object]

__all__ = ["demote", "promote"]


@click.command()
@store_argument
@global_options
@click.pass_obj
def promote(session: Session) -> None:
    """Move the columns from SQLite to DuckDB.

    DuckDB reads them faster and takes about a fifth of the space. Applications can keep writing; their reads wait. The
    old file is kept as timeseries.sqlite.inactive-N; remove it by hand. If the command is killed, the store is either
    unchanged or fully moved. It does nothing if the columns are already in DuckDB.

    \b
    JSON: {"path", "before": engine, "after": engine, "points", "generation"}
    """
    _move(session, "duckdb", lambda store, show: store.promote(progress=show))


@click.command()
@store_argument
@global_options
@click.pass_obj
def demote(session: Session) -> None:
    """Move the columns from DuckDB to SQLite.

    Use this for a device that cannot run DuckDB. It works like promote; the old file is kept as
    timeseries.duckdb.inactive-N.

    \b
    JSON: {"path", "before": engine, "after": engine, "points", "generation"}
    """
    _move(session, "sqlite", lambda store, show: store.demote(progress=show))


def _move(session: Session, engine: str, move: Callable[[Store, Progress], Converted]) -> None:
    with session.opened() as store:
        with session.progress(f"to {engine}") as show:
            done = move(store, show)
        kept = [
            name
            for name in store.status().bytes_by_kept_file
            if name.endswith(f".inactive-{done.generation}")
        ]
    if session.as_json:
        print_json(done.as_dict())
    elif done.before == done.after:
        session.say(f"the columns of {done.path} are already in {done.after}")
    else:
        session.say(
            f"moved {counted(done.points, 'point')} of {done.path} from {done.before} to {done.after}"
        )
        for name in kept:
            session.say(f"the old file is kept as {name}; delete it when you need the space")
