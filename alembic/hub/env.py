"""Runs the revisions of the hub, the PostgreSQL database of `repo.delivery.hub`: a history of its own.

Called by `repo.schema.runner`, which passes an open connection, and from the command line, for an administrator:

    alembic -n hub -x url=postgresql+psycopg://admin@host/db upgrade head
    alembic -n hub upgrade head --sql                              prints the SQL instead
"""

from typing import Any

from alembic import context
from sqlalchemy import Connection, create_engine

from repo.delivery.hub import HUB_SCHEMA, HUB_VERSION_TABLE, HubBase, create_schema, enter_schema

config = context.config
arguments = context.get_x_argument(as_dictionary=True)
schema = arguments.get("schema", HUB_SCHEMA)


def include_object(_thing: Any, _name: str | None, kind: str, reflected: bool, other: Any) -> bool:
    """Leave tables out of the comparison that no model declares: partitions, and those of other programs."""
    return not (kind == "table" and reflected and other is None)


def configure(**given: Any) -> None:
    """Configure Alembic: the models, and the table for the revision."""
    context.configure(
        target_metadata=HubBase.metadata,
        version_table=HUB_VERSION_TABLE,
        include_object=include_object,
        **given,
    )


def run(connection: Connection) -> None:
    """Run the command on the hub."""
    configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()


if "connection" in config.attributes:
    run(config.attributes["connection"])
elif context.is_offline_mode():
    configure(url="postgresql+psycopg://", literal_binds=True)
    with context.begin_transaction():
        context.execute(create_schema(schema))
        context.execute(enter_schema(schema))
        context.run_migrations()
else:
    with create_engine(arguments["url"]).begin() as opened:
        opened.exec_driver_sql(create_schema(schema))
        opened.exec_driver_sql(enter_schema(schema))
        run(opened)
