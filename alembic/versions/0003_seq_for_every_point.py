"""A seq for every point; the table of slices.

Revision 0003, after 0002. Points without a seq, which are those of the legacy program, get negative ones in order of
time: the newest gets -1, or the number before the lowest negative one that exists. So they come before everything that
the journal has numbered. Definitions here are frozen: never those of the models.
"""

import logging
from collections.abc import Iterator

import sqlalchemy as sa
from alembic import context, op
from alembic.util import CommandError

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

log = logging.getLogger("holdfast.migrating")

KEY = "sensor_id, metric_name"
POINT_KEY = f"{KEY}, timestamp_us"
IN_TIME = "timestamp_us, sensor_id, metric_name"

POINTS = """
    sensor_id {text} NOT NULL,
    metric_name {text} NOT NULL,
    timestamp_us {int64} NOT NULL,
    value {number},
    value_text {text},
    quality INTEGER,
    metadata {text},
    seq {int64}"""

SUMMARY = """
    sensor_id {text} NOT NULL,
    metric_name {text} NOT NULL,
    count {int64} NOT NULL,
    first_us {int64} NOT NULL,
    last_us {int64} NOT NULL,
    last_value {number},
    last_value_text {text},
    last_quality INTEGER,
    last_metadata {text},
    last_seq {int64}"""

SLICES = """
    first_seq {int64} NOT NULL,
    last_seq {int64} NOT NULL,
    rows {int64} NOT NULL,
    sorted_through {int64} NOT NULL"""

SLICE_KEY = "first_seq"

TYPES = {
    "duckdb": {"text": "VARCHAR", "int64": "BIGINT", "number": "DOUBLE"},
    "sqlite": {"text": "TEXT", "int64": "INTEGER", "number": "REAL"},
}
OUR_INDEXES = ("idx_seq",)

# What is sorted at once stays far below DuckDB's memory limit: an estimate of bytes, and steps of time to choose from.
WINDOW_BYTES = 8_000_000
ROW_BYTES = 64
STEPS = 1_000


def points_to_rewrite(connection: sa.Connection) -> tuple[str, ...]:
    """Return the tables that it rewrites in this time-series database. DuckDB adds a NOT NULL without a rewrite."""
    if not sa.inspect(connection).has_table("time_series_data"):
        return ()
    names = {column["name"] for column in sa.inspect(connection).get_columns("time_series_data")}
    if connection.dialect.name == "duckdb" and {"value_text", "seq"} <= names:
        lacks = "SELECT 1 FROM time_series_data WHERE seq IS NULL LIMIT 1"
        return ("time_series_data",) if connection.execute(sa.text(lacks)).first() else ()
    return ("time_series_data",)


# The tables that it rewrites, by database, for the estimate of disk space. The summaries are small.
REWRITES = {"timeseries": points_to_rewrite}


def upgrade(database: str) -> None:
    """Run this revision on one database."""
    globals()[f"upgrade_{database}"]()


def downgrade(database: str) -> None:
    """Revert this revision on one database. The seqs stay, which loses nothing; slices can be noted again."""
    if context.is_offline_mode():
        raise CommandError("revision 0003 can only be downgraded online: its downgrade reads the tables")
    globals()[f"downgrade_{database}"]()


# --- metadata ------------------------------------------------------------------------------------------


def upgrade_metadata() -> None:
    # Only the columns know these seqs. Metadata without a file id make the next opening copy all summaries.
    op.execute("UPDATE store_state SET file_id = NULL WHERE EXISTS (SELECT 1 FROM latest WHERE last_seq IS NULL)")
    rebuild("latest", SUMMARY + " NOT NULL", KEY, "coalesce(last_seq, 0)")


def downgrade_metadata() -> None:
    rebuild("latest", SUMMARY, KEY, "last_seq")


# --- time series ---------------------------------------------------------------------------------------


def upgrade_timeseries() -> None:
    make("slices", SLICES, SLICE_KEY)
    unnumbered = count("time_series_data", "seq IS NULL")
    if unnumbered or context.is_offline_mode() or not on_duckdb():
        number_points(unnumbered)
    else:
        alter("time_series_data", "seq", "SET NOT NULL")
    # A summary that does not match its points has no such point; the next opening of the store corrects it.
    newest = """coalesce(last_seq, (
        SELECT max(p.seq) FROM time_series_data AS p WHERE p.sensor_id = t.sensor_id
            AND p.metric_name = t.metric_name AND p.timestamp_us = t.last_us), 0)"""
    if on_duckdb() and not context.is_offline_mode() and not count("series", "last_seq IS NULL"):
        alter("series", "last_seq", "SET NOT NULL")
    else:
        rebuild("series", SUMMARY + " NOT NULL", KEY, newest)


def downgrade_timeseries() -> None:
    op.execute("DROP TABLE slices")
    if on_duckdb():
        alter("time_series_data", "seq", "DROP NOT NULL")
        alter("series", "last_seq", "DROP NOT NULL")
    else:
        rebuild("time_series_data", POINTS, POINT_KEY, "seq")
        rebuild("series", SUMMARY, KEY, "last_seq")


def number_points(unnumbered: int) -> None:
    """Rewrite the points, with a seq for each."""
    target, names, indexes = begin("time_series_data", POINTS + " NOT NULL", POINT_KEY)
    names = names.removeprefix("seq, ")
    lowest = "(SELECT CASE WHEN min(seq) < 0 THEN min(seq) ELSE 0 END FROM time_series_data)"
    if on_duckdb() and not context.is_offline_mode():
        seq = scalar(f"SELECT {lowest}") - unnumbered
        log.info("%s without a seq: they get those from %d to %d", points_of(unnumbered), seq, seq + unnumbered - 1)
        for start_us, end_us, points in windows():
            # Numbering rows that are already sorted takes half the time of a window function with an order of its own.
            op.execute(f"""
                INSERT INTO {target} (seq, {names})
                SELECT {seq - 1} + row_number() OVER (), {names} FROM (
                    SELECT {names} FROM time_series_data
                    WHERE seq IS NULL AND timestamp_us BETWEEN {start_us} AND {end_us - 1} ORDER BY {IN_TIME})""")
            seq += points
        by_key = ""
    else:
        backwards = ", ".join(f"{name} DESC" for name in IN_TIME.split(", "))
        by_key = f" ORDER BY {POINT_KEY}"
        op.execute(f"""
            INSERT INTO {target} (seq, {names})
            SELECT {lowest} - row_number() OVER (ORDER BY {backwards}), {names} FROM time_series_data
            WHERE seq IS NULL{by_key}""")
    op.execute(f"""
        INSERT INTO {target} (seq, {names})
        SELECT seq, {names} FROM time_series_data WHERE seq IS NOT NULL{by_key}""")
    finish("time_series_data", target, indexes)


def windows() -> Iterator[tuple[int, int, int]]:
    """Return spans of time in order: start and end in µs, and their points without a seq, few enough to sort at once.

    A span of 1 µs may have more.
    """
    times = "SELECT min(timestamp_us), max(timestamp_us) FROM time_series_data WHERE seq IS NULL"
    first_us, last_us = op.get_bind().execute(sa.text(times)).one()
    return divided(first_us, last_us + 1)


def divided(start_us: int, end_us: int) -> Iterator[tuple[int, int, int]]:
    width = -(-(end_us - start_us) // STEPS)
    steps = op.get_bind().execute(
        sa.text(f"""
            SELECT CAST((CAST(timestamp_us AS HUGEINT) - {start_us}) // {width} AS INTEGER) AS step, count(*),
                CAST(sum({ROW_BYTES} + coalesce(strlen(metadata), 0)) AS BIGINT)
            FROM time_series_data WHERE seq IS NULL AND timestamp_us BETWEEN {start_us} AND {end_us - 1}
            GROUP BY step ORDER BY step""")
    )
    begun_us, points, size = start_us, 0, 0
    for step, count_, bytes_ in steps.all():
        step_us = start_us + step * width
        if points and size + bytes_ > WINDOW_BYTES:
            yield begun_us, step_us, points
            begun_us, points, size = step_us, 0, 0
        if bytes_ > WINDOW_BYTES and width > 1:
            begun_us = min(step_us + width, end_us)
            yield from divided(step_us, begun_us)
        else:
            points, size = points + count_, size + bytes_
    if points:
        yield begun_us, end_us, points


# --- tools ---------------------------------------------------------------------------------------------


def on_duckdb() -> bool:
    return op.get_context().dialect.name == "duckdb"


def make(table: str, columns: str, key: str) -> None:
    """Create a table. SQLite's are STRICT and keyed; DuckDB's have no key."""
    body = columns.format_map(TYPES[op.get_context().dialect.name])
    if on_duckdb():
        op.execute(f"CREATE TABLE {table} ({body})")
    else:
        op.execute(f"CREATE TABLE {table} ({body}, PRIMARY KEY ({key})) STRICT, WITHOUT ROWID")


def rebuild(table: str, columns: str, key: str, last: str) -> None:
    """Rewrite a table; `last` is the new value of the last of its columns."""
    target, names, indexes = begin(table, columns, key)
    first, _, others = names.partition(", ")
    op.execute(f"INSERT INTO {target} ({first}, {others}) SELECT {last}, {others} FROM {table} AS t ORDER BY {key}")
    finish(table, target, indexes)


def begin(table: str, columns: str, key: str) -> tuple[str, str, list[tuple[str, str]]]:
    """Create the table that replaces another one.

    Returns its name, the names of its columns with the last of `columns` first, and the indexes to create at the end.
    Columns of a user's own are kept, and may then be NULL.
    """
    ours = [line.split()[0] for line in columns.strip().split(",\n")]
    own = own_columns(table, ours)
    body = columns + "".join(f",\n    {name} {kind}" for name, kind in own)
    indexes = own_indexes(table)
    make(f"{table}_0003", body, key)
    return f"{table}_0003", ", ".join([ours[-1], *ours[:-1], *(name for name, _ in own)]), indexes


def finish(table: str, target: str, indexes: list[tuple[str, str]]) -> None:
    """Compare the counts, replace the old table with the new one, and create the indexes."""
    before, after = count(table), count(target)
    if before != after:
        raise CommandError(f"{before:,} rows became {after:,} when copied to {target}; nothing was changed")
    op.execute(f"DROP TABLE {table}")
    op.execute(f"ALTER TABLE {target} RENAME TO {table}")
    if table == "time_series_data" and not on_duckdb():
        op.execute("CREATE INDEX idx_seq ON time_series_data (seq)")
    create(indexes)


def alter(table: str, column: str, change: str) -> None:
    """Alter a column of a DuckDB table. An index blocks that, so those of a user's own are created again."""
    indexes = own_indexes(table)
    for name, _ in indexes:
        op.execute(f"DROP INDEX {quoted(name)}")
    op.execute(f"ALTER TABLE {table} ALTER {column} {change}")
    create(indexes)


def create(indexes: list[tuple[str, str]]) -> None:
    for _, statement in indexes:
        op.execute(sa.text(statement.replace(":", "\\:")))


def own_columns(table: str, ours: list[str]) -> list[tuple[str, str]]:
    """Return name and type of the columns of a user's own."""
    if context.is_offline_mode():
        return []
    dialect = op.get_bind().dialect
    return [
        (quoted(column["name"]), column["type"].compile(dialect) if on_duckdb() else "ANY")
        for column in sa.inspect(op.get_bind()).get_columns(table)
        if column["name"] not in ours
    ]


def own_indexes(table: str) -> list[tuple[str, str]]:
    """Return name and SQL of the indexes of a user's own."""
    if context.is_offline_mode():
        return []
    found = op.get_bind().execute(
        sa.text(
            "SELECT index_name, sql FROM duckdb_indexes() WHERE table_name = :table"
            if on_duckdb()
            else "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = :table"
        ),
        {"table": table},
    )
    return [(name, statement) for name, statement in found if statement and name not in OUR_INDEXES]


def quoted(name: str) -> str:
    return op.get_bind().dialect.identifier_preparer.quote(name)


def scalar(query: str) -> int:
    return op.get_bind().execute(sa.text(query)).scalar_one()


def count(table: str, condition: str = "true") -> int:
    return 0 if context.is_offline_mode() else scalar(f"SELECT count(*) FROM {table} WHERE {condition}")


def points_of(number: int) -> str:
    return f"{number:,} point{'' if number == 1 else 's'}"
