"""Destinations, what they have confirmed and refused, and the epoch.

Revision 0004, after 0003. It changes the metadata only. Existing sinks become destinations of the kind `own`, which a
program adds with a sink of its own. Their failures move from `buffer_metadata` into their rows. Definitions here are
frozen: never those of the models.
"""

import json

import sqlalchemy as sa
from alembic import context, op
from alembic.util import CommandError

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

REWRITES: dict[str, tuple[str, ...]] = {}

# By how many rows it changes the length of a table, filled while it runs; the runner compares.
row_differences: dict[str, int] = {}

FAILURE = "holdfast.sink-failure:"
IS_FAILURE = f"substr(key, 1, {len(FAILURE)}) = '{FAILURE}'"
STATES = {"unreachable": "failing", "refused": "halted"}

SINK_COLUMNS = (
    ("kind", "TEXT NOT NULL DEFAULT 'own'"),
    ("target", "TEXT NOT NULL DEFAULT ''"),
    ("options", "TEXT NOT NULL DEFAULT '{}'"),
    ("filter", "TEXT"),
    ("records", "INTEGER NOT NULL DEFAULT 0"),
    ("lanes", "TEXT NOT NULL DEFAULT '{}'"),
    ("rate", "TEXT"),
    ("hold", "INTEGER NOT NULL DEFAULT 1"),
    ("max_backlog", "TEXT"),
    ("state", "TEXT NOT NULL DEFAULT 'running'"),
    ("since_us", "INTEGER"),
    ("last_error", "TEXT"),
    ("failures", "INTEGER NOT NULL DEFAULT 0"),
    ("token", "TEXT"),
    ("sent_points", "INTEGER NOT NULL DEFAULT 0"),
    ("sent_records", "INTEGER NOT NULL DEFAULT 0"),
    ("sent_bytes", "INTEGER NOT NULL DEFAULT 0"),
    ("repeats", "INTEGER NOT NULL DEFAULT 0"),
    ("refused", "INTEGER NOT NULL DEFAULT 0"),
    ("confirmed_us", "INTEGER"),
    ("points_per_s", "REAL"),
)

STATE_COLUMNS = (
    ("epoch", "INTEGER NOT NULL DEFAULT 1"),
    ("former_store_id", "TEXT"),
)

TABLES = (
    """CREATE TABLE sink_ranges (
        sink TEXT NOT NULL,
        first_seq INTEGER NOT NULL,
        last_seq INTEGER NOT NULL,
        PRIMARY KEY (sink, first_seq)
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE attempts (
        sink TEXT NOT NULL,
        first_seq INTEGER NOT NULL,
        last_seq INTEGER NOT NULL,
        points INTEGER NOT NULL,
        checksum TEXT NOT NULL,
        token TEXT NOT NULL,
        lane TEXT NOT NULL,
        tries INTEGER NOT NULL,
        begun_us INTEGER NOT NULL,
        PRIMARY KEY (sink)
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE quarantine (
        id INTEGER NOT NULL,
        sink TEXT NOT NULL,
        seq INTEGER,
        sensor_id TEXT,
        metric_name TEXT,
        timestamp_us INTEGER NOT NULL,
        value REAL,
        value_text TEXT,
        quality INTEGER,
        metadata TEXT,
        record_id TEXT,
        source TEXT,
        data TEXT,
        kind TEXT NOT NULL,
        reason TEXT NOT NULL,
        retry INTEGER NOT NULL,
        recorded_us INTEGER NOT NULL,
        PRIMARY KEY (id)
    ) STRICT""",
    "CREATE INDEX idx_quarantine_sink ON quarantine (sink, seq)",
    """CREATE TABLE positions (
        store_id TEXT NOT NULL,
        epoch INTEGER NOT NULL,
        sink TEXT NOT NULL,
        token TEXT NOT NULL,
        low INTEGER NOT NULL,
        ranges TEXT NOT NULL,
        points INTEGER NOT NULL,
        updated_us INTEGER NOT NULL,
        PRIMARY KEY (store_id, epoch, sink)
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE senders (
        token_sha256 TEXT NOT NULL,
        store_id TEXT NOT NULL,
        created_us INTEGER NOT NULL,
        PRIMARY KEY (token_sha256)
    ) STRICT, WITHOUT ROWID""",
)


def upgrade(database: str) -> None:
    """Run this revision on one database."""
    globals()[f"upgrade_{database}"]()


def downgrade(database: str) -> None:
    """Revert this revision on one database; raises before anything is lost but why deliveries fail at the moment."""
    if context.is_offline_mode():
        raise CommandError("revision 0004 can only be downgraded online: its downgrade reads the rows")
    globals()[f"downgrade_{database}"]()


def upgrade_metadata() -> None:
    for table, columns in (("sinks", SINK_COLUMNS), ("store_state", STATE_COLUMNS)):
        for name, kind in columns:
            op.execute(f"ALTER TABLE {table} ADD COLUMN {name} {kind}")
    for statement in TABLES:
        op.execute(statement)
    if not context.is_offline_mode():
        move_failures()
    op.execute(f"DELETE FROM buffer_metadata WHERE {IS_FAILURE}")  # the next attempt records it again


def move_failures() -> None:
    failures = op.get_bind().execute(sa.text(f"SELECT key, value FROM buffer_metadata WHERE {IS_FAILURE}")).all()
    row_differences["buffer_metadata"] = -len(failures)
    for key, value in failures:
        kind, reason, since_us = json.loads(value)
        op.get_bind().execute(
            sa.text(
                "UPDATE sinks SET state = :state, last_error = :reason, since_us = :since_us, failures = 1 "
                "WHERE name = :name"
            ),
            {"state": STATES[kind], "reason": reason, "since_us": since_us, "name": key.removeprefix(FAILURE)},
        )


def downgrade_metadata() -> None:
    set_by_hand = "coalesce(filter, rate, max_backlog, token) IS NOT NULL OR records OR NOT hold OR state = 'paused'"
    refuse_if_any("destinations", "sinks", f"kind <> 'own' OR {set_by_hand}")
    refuse_if_any("confirmed ranges of sinks", "sink_ranges")
    refuse_if_any("batches in delivery", "attempts")
    refuse_if_any("refused items", "quarantine")
    refuse_if_any("positions of senders", "positions")
    refuse_if_any("tokens of senders", "senders")
    refuse_if_any("an epoch after a restore", "store_state", "epoch > 1")
    refuse_if_any("a change of the store's id that is incomplete", "store_state", "former_store_id IS NOT NULL")
    for table in ("sink_ranges", "attempts", "quarantine", "positions", "senders"):
        op.execute(f"DROP TABLE {table}")
    for table, columns in (("sinks", SINK_COLUMNS), ("store_state", STATE_COLUMNS)):
        for name, _ in reversed(columns):
            op.execute(f"ALTER TABLE {table} DROP COLUMN {name}")


def upgrade_timeseries() -> None:
    """Change nothing: delivery is a matter of the metadata."""


def downgrade_timeseries() -> None:
    """Change nothing."""


def refuse_if_any(what: str, table: str, condition: str = "true") -> None:
    rows = op.get_bind().execute(sa.text(f"SELECT count(*) FROM {table} WHERE {condition}")).scalar_one()
    if rows:
        raise CommandError(
            f"revision 0003 has no place for {what} ({rows:,} in {table}); nothing was changed. "
            "Remove the sinks and what waits for them first"
        )
