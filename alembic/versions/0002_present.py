"""Journal, series, sinks and ledger; the points rebuilt.

Revision 0002, after 0001. In DuckDB the points lose their key and indexes. Definitions here are frozen: never those of
the models. The one-row tables `store_state` and `timeseries_state` are created empty: the store fills them when it
first opens. Existing points have no seq (NULL): there are no cursors yet that could miss them.
"""

import logging

import sqlalchemy as sa
from alembic import context, op
from alembic.util import CommandError

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# The tables that it rewrites, by database, for the estimate of disk space.
REWRITES = {"timeseries": ("time_series_data",)}

# By how many rows it changes the length of a table, filled while it runs; the runner compares.
row_differences: dict[str, int] = {}

log = logging.getLogger("holdfast.migrating")

FIRST_US, LAST_US = -9_214_560_000_000_000, 9_214_646_399_999_999

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

LEDGER = """
    entry_id {text} NOT NULL,
    what {text} NOT NULL,
    reason {text} NOT NULL,
    detail {text},
    dropped {int64},
    first_us {int64},
    last_us {int64},
    recorded_us {int64} NOT NULL"""

POINTS = """
    sensor_id {text} NOT NULL,
    metric_name {text} NOT NULL,
    timestamp_us {int64} NOT NULL,
    value {number},
    value_text {text},
    quality INTEGER,
    metadata {text},
    seq {int64}"""

STATE = """
    id INTEGER NOT NULL,
    store_id {text} NOT NULL,
    file_id {text} NOT NULL,
    generation INTEGER NOT NULL,
    watermark {int64} NOT NULL,
    flushed_from {int64} NOT NULL,
    flush_digest {int64} NOT NULL"""

LEGACY_POINTS = """
    timestamp_us BIGINT NOT NULL,
    sensor_id VARCHAR NOT NULL,
    metric_name VARCHAR NOT NULL,
    value DOUBLE NOT NULL,
    quality INTEGER DEFAULT 100,
    metadata VARCHAR,
    PRIMARY KEY (timestamp_us, sensor_id, metric_name)"""

LEGACY_NAMES = ("timestamp_us", "sensor_id", "metric_name", "value", "quality", "metadata")
LEGACY_METADATA = {
    "buffered_records": (
        *("id", "record_id", "source", "data", "timestamp", "retry_count", "last_retry", "created_at"),
    ),
    "buffer_metadata": ("key", "value"),
}
NEW_NAMES = ("value_text", "seq")
OUR_INDEXES = ("idx_time_sensor", "idx_metric", "idx_seq")

TYPES = {
    "duckdb": {"text": "VARCHAR", "int64": "BIGINT", "number": "DOUBLE"},
    "sqlite": {"text": "TEXT", "int64": "INTEGER", "number": "REAL"},
}

METADATA = (
    """CREATE TABLE journal (
        seq INTEGER NOT NULL PRIMARY KEY,
        count INTEGER NOT NULL,
        kind TEXT NOT NULL,
        payload BLOB NOT NULL,
        created_us INTEGER NOT NULL
    ) STRICT""",
    """CREATE TABLE store_state (
        id INTEGER NOT NULL PRIMARY KEY,
        store_id TEXT NOT NULL,
        last_seq INTEGER NOT NULL,
        copied_through INTEGER NOT NULL,
        pruned_through INTEGER NOT NULL,
        engine TEXT,
        file_id TEXT,
        generation INTEGER NOT NULL,
        created_us INTEGER NOT NULL
    ) STRICT""",
    """CREATE TABLE series (
        sensor_id TEXT NOT NULL,
        metric_name TEXT NOT NULL,
        kind TEXT,
        unit TEXT,
        description TEXT,
        labels TEXT,
        PRIMARY KEY (sensor_id, metric_name)
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE sinks (
        name TEXT NOT NULL PRIMARY KEY,
        confirmed_seq INTEGER NOT NULL,
        created_us INTEGER NOT NULL,
        updated_us INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID""",
)


POINTER = """substr(data, 1, 20) = '{"storage": "duckdb"'"""
MARKED = "key = 'holdfast.pointers'"


def upgrade(database: str) -> None:
    """Run this revision on one database."""
    globals()[f"upgrade_{database}"]()


def downgrade(database: str) -> None:
    """Revert this revision on one database; raises before anything is lost."""
    if context.is_offline_mode():
        raise CommandError("revision 0002 can only be downgraded online: its downgrade reads the rows")
    globals()[f"downgrade_{database}"]()


# --- metadata ------------------------------------------------------------------------------------------


def upgrade_metadata() -> None:
    for table, names in LEGACY_METADATA.items():
        own_columns(table, names)
    for statement in METADATA:
        op.execute(statement)
    make("latest", SUMMARY, key="sensor_id, metric_name", rowid=False)
    make("loss_ledger", LEDGER, key="entry_id")
    # Records that the legacy program stored only as pointers are resolved when the columns can be read.
    row_differences["buffer_metadata"] = -count("buffer_metadata", MARKED)
    op.execute(f"DELETE FROM buffer_metadata WHERE {MARKED}")
    op.execute(f"""
        INSERT INTO buffer_metadata (key, value)
        SELECT 'holdfast.pointers', count(*) FROM buffered_records WHERE {POINTER} GROUP BY {POINTER}""")
    row_differences["buffer_metadata"] += count("buffer_metadata", MARKED)


def downgrade_metadata() -> None:
    refuse_if_any("journal entries that may not be in the columns yet", "journal")
    refuse_if_any("sinks with their cursors", "sinks")
    refuse_if_any("entries of the loss ledger", "loss_ledger")
    refuse_if_any("series descriptions", "series", "coalesce(unit, description, labels) IS NOT NULL")
    for table in ("journal", "store_state", "series", "latest", "sinks", "loss_ledger"):
        op.execute(f"DROP TABLE {table}")
    op.execute(f"DELETE FROM buffer_metadata WHERE {MARKED}")  # pointers are what the legacy schema has


# --- time series ---------------------------------------------------------------------------------------


def upgrade_timeseries() -> None:
    make("series", SUMMARY, key="sensor_id, metric_name", rowid=False)
    make("timeseries_state", STATE, key="id")
    make("loss_ledger", LEDGER, key="entry_id")
    own = own_columns("time_series_data", LEGACY_NAMES, NEW_NAMES)
    points = POINTS + "".join(f",\n    {quoted(after)} {kind}" for _, after, kind in own)
    make("time_series_data_0002", points, key="sensor_id, metric_name, timestamp_us", rowid=False)
    # NaN was how the legacy program stored "no reading"; SQLite cannot hold one.
    if on_duckdb() and (empty := count("time_series_data", "isnan(value)")):
        log.warning("%s contained NaN and now have no reading (NULL)", points_of(empty))
        context.config.attributes.setdefault("counts", {})["nan_points"] = empty
    # Times in a wrong unit: writes refuse them now, and a datetime may not be able to hold them. The points are kept.
    if outside := count("time_series_data", f"timestamp_us NOT BETWEEN {FIRST_US} AND {LAST_US}"):
        log.warning("%s outside the years 1678 to 2261, kept unchanged", points_of(outside))
        context.config.attributes.setdefault("counts", {})["outside_points"] = outside
    value = "CASE WHEN isnan(p.value) THEN NULL ELSE p.value END" if on_duckdb() else "p.value"
    op.execute(f"""
        INSERT INTO series
        SELECT p.sensor_id, p.metric_name, s.points, s.first_us, s.last_us, {value}, NULL, p.quality, p.metadata, NULL
        FROM time_series_data AS p
        JOIN (
            SELECT sensor_id, metric_name, count(*) AS points,
                min(timestamp_us) AS first_us, max(timestamp_us) AS last_us
            FROM time_series_data GROUP BY sensor_id, metric_name
        ) AS s ON p.sensor_id = s.sensor_id AND p.metric_name = s.metric_name AND p.timestamp_us = s.last_us""")
    # In stored order, which is roughly that of time: this needs no sort, whatever the size.
    move_points(
        "time_series_data_0002",
        f"SELECT p.sensor_id, p.metric_name, p.timestamp_us, {value}, NULL, p.quality, p.metadata, NULL"
        f"{''.join(f', p.{quoted(name)}' for name, _, _ in own)} FROM time_series_data AS p",
    )
    if on_duckdb():
        # Some files of the legacy program have a default here, others do not.
        op.execute("ALTER TABLE storage_metadata ALTER COLUMN updated_at DROP DEFAULT")
    else:
        op.execute("CREATE INDEX idx_seq ON time_series_data (seq)")


def downgrade_timeseries() -> None:
    refuse_if_any("text points", "time_series_data", "value_text IS NOT NULL")
    refuse_if_any("points without a number", "time_series_data", "value IS NULL AND value_text IS NULL")
    refuse_if_any("entries of the loss ledger", "loss_ledger")
    own = own_columns("time_series_data", (*LEGACY_NAMES, *NEW_NAMES))
    columns, _, key = LEGACY_POINTS.rpartition(",\n    PRIMARY KEY")
    points = columns + "".join(f",\n    {quoted(after)} {kind}" for _, after, kind in own)
    op.execute(f"CREATE TABLE time_series_data_0001 ({points},\n    PRIMARY KEY{key})")
    names = [*LEGACY_NAMES, *(quoted(name) for name, _, _ in own)]
    move_points("time_series_data_0001", f"SELECT {', '.join(names)} FROM time_series_data")
    op.execute("CREATE INDEX idx_time_sensor ON time_series_data (timestamp_us, sensor_id)")
    op.execute("CREATE INDEX idx_metric ON time_series_data (metric_name, timestamp_us)")
    for table in ("series", "timeseries_state", "loss_ledger"):
        op.execute(f"DROP TABLE {table}")


def move_points(target: str, selection: str) -> None:
    """Fill the new table, compare the counts, and replace the old table with it. Keeps the indexes of a user's own."""
    before = count("time_series_data")
    indexes = own_indexes()
    op.execute(f"INSERT INTO {target} {selection}")
    after = count(target)
    if before != after:
        raise CommandError(f"{points_of(before)} became {after:,} when copied to {target}; nothing was changed")
    op.execute("DROP TABLE time_series_data")
    op.execute(f"ALTER TABLE {target} RENAME TO time_series_data")
    for name, statement in indexes:
        if "UNIQUE" in statement.upper().split():  # it would refuse overwrites
            log.warning("the unique index %s, which Holdfast did not create, was dropped: %s", name, statement)
        else:
            op.execute(sa.text(statement.replace(":", "\\:")))
            log.warning("the index %s, which Holdfast did not create, was kept", name)


def own_columns(
    table: str, ours: tuple[str, ...], needed: tuple[str, ...] = ()
) -> list[tuple[str, str, str]]:
    """Return the columns of a table that no revision made: name, name from now on, type; rebuilt ones may be NULL.

    One that has a name that this revision `needed` gets another.
    """
    if context.is_offline_mode():
        return []
    columns = sa.inspect(op.get_bind()).get_columns(table)
    taken = {column["name"].lower() for column in columns}.union(needed)
    found = []
    for column in columns:
        name = after = column["name"]
        if name in ours:
            continue
        while name.lower() in needed and after.lower() in taken:
            after = f"own_{after}"
        taken.add(after.lower())
        kind = column["type"].compile(op.get_bind().dialect) if on_duckdb() else "ANY"
        found.append((name, after, kind))
    if found:
        shown = ", ".join(name if name == after else f"{name} (now {after})" for name, after, _ in found)
        log.warning("columns of %s that Holdfast did not create were kept: %s", table, shown)
    return found


def own_indexes() -> list[tuple[str, str]]:
    """Return the name and the SQL of each index on the points that no revision made."""
    if context.is_offline_mode():
        return []
    found = op.get_bind().execute(
        sa.text(
            "SELECT index_name, sql FROM duckdb_indexes() WHERE table_name = 'time_series_data'"
            if on_duckdb()
            else "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = 'time_series_data'"
        )
    )
    return [(name, statement) for name, statement in found if statement and name not in OUR_INDEXES]


# --- tools ---------------------------------------------------------------------------------------------


def on_duckdb() -> bool:
    return op.get_context().dialect.name == "duckdb"


def make(table: str, columns: str, *, key: str, rowid: bool = True) -> None:
    """Create a table. SQLite's are STRICT and keyed; DuckDB's have no key, which is expensive and speeds up nothing."""
    body = columns.format_map(TYPES[op.get_context().dialect.name])
    if on_duckdb():
        op.execute(f"CREATE TABLE {table} ({body})")
    else:
        tail = "STRICT" if rowid else "STRICT, WITHOUT ROWID"
        op.execute(f"CREATE TABLE {table} ({body}, PRIMARY KEY ({key})) {tail}")


def quoted(name: str) -> str:
    return op.get_bind().dialect.identifier_preparer.quote(name)


def count(table: str, condition: str = "true") -> int:
    if context.is_offline_mode():
        return 0
    return op.get_bind().execute(sa.text(f"SELECT count(*) FROM {table} WHERE {condition}")).scalar_one()


def points_of(number: int) -> str:
    return f"{number:,} point{'' if number == 1 else 's'}"


def refuse_if_any(what: str, table: str, condition: str = "true") -> None:
    rows = count(table, condition)
    if rows:
        raise CommandError(
            f"revision 0001 has no place for {what} ({rows:,} in {table}); nothing was changed. "
            "Deliver or export them, then remove them"
        )
