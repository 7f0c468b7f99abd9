"""The legacy program's schema.

Revision 0001, the first. It reproduces that schema exactly: a legacy database is accepted unchanged, an empty one gets
its tables. Definitions here are frozen: never those of the models. A SQLite time-series database, which the legacy
program did not have, gets the same columns.
"""

import sqlalchemy as sa
from alembic import context, op
from alembic.util import CommandError

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

REWRITES: dict[str, tuple[str, ...]] = {}

METADATA = {
    "buffered_records": """
        CREATE TABLE IF NOT EXISTS buffered_records (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            record_id TEXT UNIQUE NOT NULL,
            source TEXT NOT NULL,
            data TEXT NOT NULL,
            timestamp REAL NOT NULL,
            retry_count INTEGER DEFAULT 0,
            last_retry REAL,
            created_at REAL NOT NULL
        )""",
    "buffer_metadata": """
        CREATE TABLE IF NOT EXISTS buffer_metadata (
            key TEXT PRIMARY KEY,
            value TEXT NOT NULL
        )""",
}
METADATA_INDEXES = (
    "CREATE INDEX IF NOT EXISTS idx_timestamp ON buffered_records (timestamp)",
    "CREATE INDEX IF NOT EXISTS idx_source ON buffered_records (source)",
    "CREATE INDEX IF NOT EXISTS idx_retry_count ON buffered_records (retry_count)",
)

TIMESERIES = {
    "time_series_data": """
        CREATE TABLE IF NOT EXISTS time_series_data (
            timestamp_us BIGINT NOT NULL,
            sensor_id VARCHAR NOT NULL,
            metric_name VARCHAR NOT NULL,
            value DOUBLE NOT NULL,
            quality INTEGER DEFAULT 100,
            metadata VARCHAR,
            PRIMARY KEY (timestamp_us, sensor_id, metric_name)
        )""",
    "storage_metadata": """
        CREATE TABLE IF NOT EXISTS storage_metadata (
            key {text} NOT NULL PRIMARY KEY,
            value {text} NOT NULL,
            updated_at {time}
        )""",
}
TIMESERIES_INDEXES = (
    "CREATE INDEX IF NOT EXISTS idx_time_sensor ON time_series_data (timestamp_us, sensor_id)",
    "CREATE INDEX IF NOT EXISTS idx_metric ON time_series_data (metric_name, timestamp_us)",
)
TYPES = {
    "duckdb": {"text": "VARCHAR", "time": "TIMESTAMP"},
    "sqlite": {"text": "TEXT", "time": "DATETIME"},
}

COLUMNS = {
    "buffered_records": "id record_id source data timestamp retry_count last_retry created_at",
    "buffer_metadata": "key value",
    "time_series_data": "timestamp_us sensor_id metric_name value quality metadata",
    "storage_metadata": "key value updated_at",
}


def upgrade(database: str) -> None:
    """Run this revision on one database."""
    globals()[f"upgrade_{database}"]()


def downgrade(database: str) -> None:
    """Refuse: the tables may hold rows that no migration created."""
    raise CommandError(
        f"the {database} database cannot go below revision 0001: that would drop the legacy program's tables, "
        "with rows that no migration created. Nothing was changed; to remove a store, delete its folder"
    )


def upgrade_metadata() -> None:
    make(METADATA, METADATA_INDEXES)


def upgrade_timeseries() -> None:
    make(TIMESERIES, TIMESERIES_INDEXES)


def make(tables: dict[str, str], indexes: tuple[str, ...]) -> None:
    for table, statement in tables.items():
        op.execute(statement.format_map(TYPES[op.get_context().dialect.name]))
        refuse_another_shape(table)
    for statement in indexes:
        op.execute(statement)


def refuse_another_shape(table: str) -> None:
    """Refuse a table of this name with other columns: it is not from the legacy program, so its content is unknown."""
    if context.is_offline_mode():
        return
    if difference := other_shape(sa.inspect(op.get_bind()), table):
        raise CommandError(difference)


def other_shape(inspector: sa.Inspector, table: str) -> str | None:
    """Describe what an existing table lacks of the legacy program's; None if nothing. Also used before a run.

    It may have more columns: those of a user's own are kept.
    """
    found = [column["name"] for column in inspector.get_columns(table)]
    if set(COLUMNS[table].split()).issubset(found):
        return None
    return (
        f"the table {table} has the columns {', '.join(found)}, where the legacy schema has "
        f"{', '.join(COLUMNS[table].split())}; this is not a store's database. Nothing was changed"
    )
