"""The tables of a hub as a sink finds them: checks their revision and its rights, and creates or upgrades them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from repo.delivery.hub import HUB_HEAD, HUB_VERSION_TABLE, create_schema, enter_schema
from repo.delivery.sinks.postgresql_server import PostgresqlServer, line_of
from repo.errors import SchemaTooNew, SinkHalted

__all__ = ["check_tables"]

_TABLES = ("points", "records", "positions", HUB_VERSION_TABLE)

_MAY_USE = "SELECT has_schema_privilege(oid, 'USAGE') FROM pg_namespace WHERE nspname = %s"
_LACKING_RIGHTS = """
    SELECT format(
        'GRANT %%s ON %%I.%%I TO %%I', string_agg(needed, ', ' ORDER BY needed), %(schema)s::text, name, current_user
    )
    FROM unnest(%(tables)s::text[], %(rights)s::text[]) AS one (name, needed)
    WHERE NOT has_table_privilege(format('%%I.%%I', %(schema)s::text, name), needed) GROUP BY name ORDER BY name
"""
_RIGHTS = [
    *(
        (table, right)
        for table in ("points", "positions", "records")
        for right in ("SELECT", "INSERT", "UPDATE")
    ),
    (HUB_VERSION_TABLE, "SELECT"),
]
_OLDEST = 140_000
_HOW = "docs/formats.md has the commands with which their owner creates and upgrades them, and grants rights"


def check_tables(server: PostgresqlServer, connection: Any, schema: str, *, create: bool) -> None:
    """Create or upgrade the tables if necessary and allowed; raises `SinkHalted` if they cannot be used."""
    if connection.info.server_version < _OLDEST:
        raise SinkHalted(f"{server.place}: a hub needs PostgreSQL 14 or later")
    usable = connection.execute(_MAY_USE, (schema,)).fetchone()
    if usable == (False,):
        raise SinkHalted(f"{server.place}: the role may not use the schema {schema!r}; {_HOW}")
    missing = _missing(connection, schema)
    if not missing:
        _check_rights(server, connection, schema)
        if _revision(connection) == HUB_HEAD:
            return
    if missing and len(missing) < len(_TABLES):
        raise SinkHalted(
            f"{server.place}: the schema {schema!r} has tables of a hub, but lacks the table {missing[0]}; restore "
            "it, or name another schema in the option `schema`"
        )
    if not create:
        raise SinkHalted(f"{server.place}: the schema {schema!r} {_lacks(missing)}; {_HOW}")
    try:
        _upgrade(server, schema)
    except server.errors.InsufficientPrivilege as error:
        raise SinkHalted(
            f"{server.place}: the schema {schema!r} {_lacks(missing)}, and the role may not create them "
            f"({line_of(error)}); {_HOW}"
        ) from error
    except SchemaTooNew as error:
        raise SinkHalted(
            f"{server.place}: the tables were made by a newer version of this program; update the package here"
        ) from error


def _check_rights(server: PostgresqlServer, connection: Any, schema: str) -> None:
    tables, rights = zip(*_RIGHTS, strict=True)
    given = {"schema": schema, "tables": list(tables), "rights": list(rights)}
    grants = [grant for (grant,) in connection.execute(_LACKING_RIGHTS, given)]
    if grants:
        raise SinkHalted(
            f"{server.place}: the role may not do all that a delivery needs; the owner of the tables grants it: "
            + "; ".join(grants)
        )


def _lacks(missing: Sequence[str]) -> str:
    return "has no tables of a hub" if missing else "has tables of an older version"


def _missing(connection: Any, schema: str) -> list[str]:
    found = connection.execute(
        "SELECT tablename FROM pg_tables WHERE schemaname = %s AND tablename = ANY (%s)",
        (schema, list(_TABLES)),
    ).fetchall()
    return [table for table in _TABLES if (table,) not in found]


def _revision(connection: Any) -> str | None:
    found = connection.execute(f"SELECT version_num FROM {HUB_VERSION_TABLE}").fetchone()
    return None if found is None else found[0]


def _upgrade(server: PostgresqlServer, schema: str) -> None:
    """Create or upgrade the tables on a connection of its own; sinks that do so at the same time wait."""
    from sqlalchemy import create_engine
    from sqlalchemy.exc import DBAPIError
    from sqlalchemy.pool import NullPool

    from repo.schema.runner import upgrade_hub

    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: server.connect(autocommit=False), poolclass=NullPool
    )
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql(
                "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (f"holdfast hub {schema}",)
            )
            connection.exec_driver_sql(create_schema(schema))
            connection.exec_driver_sql(enter_schema(schema))
            upgrade_hub(connection)
    except DBAPIError as wrapped:
        raise wrapped.orig or wrapped from wrapped
