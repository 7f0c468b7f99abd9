"""Differences between a database and the models are seen, and become the right operations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import produce_migrations
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import BigInteger, Column, Connection, Engine, Index, MetaData, Table, text

from repo.models import MetadataBase, TimeSeriesBase
from repo.schema import runner

OpenEngine = Callable[[Path], Engine]

CHANGES = [
    (["ALTER TABLE loss_ledger ADD COLUMN extra INTEGER"], ["remove_column", "loss_ledger.extra"]),
    (["ALTER TABLE loss_ledger DROP COLUMN detail"], ["add_column", "loss_ledger.detail"]),
    (["CREATE INDEX extra ON loss_ledger (reason)"], ["remove_index", "'extra'"]),
    (["CREATE TABLE extra (i INTEGER)"], ["remove_table", "extra"]),
    (["DROP TABLE loss_ledger"], ["add_table", "loss_ledger"]),
]
DUCKDB_CHANGES = [
    (
        ["ALTER TABLE loss_ledger ALTER COLUMN dropped TYPE INTEGER"],
        ["modify_type", "dropped", "INTEGER BIGINT"],
    ),
    (
        ["ALTER TABLE time_series_data ALTER COLUMN value TYPE FLOAT"],
        ["modify_type", "value", "FLOAT DOUBLE"],
    ),
    (["ALTER TABLE time_series_data ALTER COLUMN sensor_id DROP NOT NULL"], ["modify_nullable", "sensor_id"]),
    (["ALTER TABLE time_series_data ALTER COLUMN seq DROP NOT NULL"], ["modify_nullable", "seq"]),
]


@pytest.mark.parametrize(("statements", "words"), CHANGES)
def test_an_extra_or_missing_column_index_or_table_is_reported(
    statements: list[str], words: list[str], timeseries_file: Path, open_at_head: OpenEngine
) -> None:
    _assert_reported(open_at_head(timeseries_file), statements, words)


@pytest.mark.parametrize(("statements", "words"), DUCKDB_CHANGES)
def test_a_changed_column_of_duckdb_is_reported(
    statements: list[str], words: list[str], tmp_path: Path, open_at_head: OpenEngine
) -> None:
    _assert_reported(open_at_head(tmp_path / "timeseries.duckdb"), statements, words)


def test_the_index_on_seq_is_wanted_on_sqlite_alone(timeseries_file: Path, open_at_head: OpenEngine) -> None:
    engine = open_at_head(timeseries_file)
    if timeseries_file.suffix == ".sqlite":
        _assert_reported(engine, ["DROP INDEX idx_seq"], ["add_index", "'idx_seq'"])
    else:
        assert runner.check(engine, "timeseries") == []


SENDERS = """CREATE TABLE senders (
    token_sha256 TEXT NOT NULL PRIMARY KEY, store_id TEXT NOT NULL, created_us {}
) STRICT, WITHOUT ROWID"""
METADATA_CHANGES = [
    (["ALTER TABLE sinks ADD COLUMN extra INTEGER"], ["remove_column", "sinks.extra"]),
    (["ALTER TABLE sinks DROP COLUMN updated_us"], ["add_column", "sinks.updated_us"]),
    (["CREATE INDEX extra ON sinks (updated_us)"], ["remove_index", "'extra'"]),
    (["DROP INDEX idx_source"], ["add_index", "'idx_source'"]),
    (["CREATE TABLE extra (i INTEGER)"], ["remove_table", "extra"]),
    (["DROP TABLE sinks"], ["add_table", "sinks"]),
    (["DROP TABLE senders", SENDERS.format("REAL NOT NULL")], ["modify_type", "created_us", "REAL BIGINT"]),
    (["DROP TABLE senders", SENDERS.format("INTEGER")], ["modify_nullable", "created_us"]),
]


@pytest.mark.parametrize(("statements", "words"), METADATA_CHANGES)
def test_a_difference_in_the_metadata_is_reported(
    statements: list[str], words: list[str], tmp_path: Path, open_at_head: OpenEngine
) -> None:
    _assert_reported(open_at_head(tmp_path / "offline_buffer.db"), statements, words, "metadata")


def test_a_changed_index_is_dropped_and_created_again(
    database_file: Path, open_at_head: OpenEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_at_head(database_file)
    database: runner.Database = "metadata" if database_file.suffix == ".db" else "timeseries"
    base = MetadataBase if database == "metadata" else TimeSeriesBase
    wanted = _copied(base.metadata)
    monkeypatch.setattr(base, "metadata", wanted)
    ledger = wanted.tables["loss_ledger"]
    index = Index("idx_reason", ledger.c.reason)
    [difference] = runner.check(engine, database)
    assert difference.startswith("add_index")
    with engine.begin() as connection:
        connection.execute(text("CREATE INDEX idx_reason ON loss_ledger (reason)"))
    assert runner.check(engine, database) == []
    for another in (("what", "reason"), ("what",)):
        ledger.indexes.remove(index)
        index = Index("idx_reason", *(ledger.c[name] for name in another))
        assert [line.split()[0] for line in runner.check(engine, database)] == ["remove_index", "add_index"]
    ledger.indexes.remove(index)
    Index("idx_reason", ledger.c.reason, unique=True)
    assert [line.split()[0] for line in runner.check(engine, database)] == ["remove_index", "add_index"]


def test_what_is_generated_for_duckdb_makes_the_difference_go_away(
    tmp_path: Path, open_at_head: OpenEngine
) -> None:
    engine = open_at_head(tmp_path / "timeseries.duckdb")
    wanted = _copied(TimeSeriesBase.metadata)
    for table in wanted.tables.values():
        for index in [index for index in table.indexes if index._ddl_if is not None]:
            table.indexes.remove(index)
    wanted.remove(wanted.tables["storage_metadata"])
    ledger, points = wanted.tables["loss_ledger"], wanted.tables["time_series_data"]
    ledger._columns.remove(ledger.c.detail)
    ledger.append_column(Column("noted_us", BigInteger))
    ledger.c.what.nullable = True
    points.c.quality.type = BigInteger()
    Index("idx_count", wanted.tables["series"].c.count)
    Table(
        "notes",
        wanted,
        Column("id", BigInteger, primary_key=True, autoincrement=False),
        Column("at", BigInteger),
    )

    def differences(connection: Connection) -> list[Any]:
        context = MigrationContext.configure(connection)
        found = produce_migrations(context, wanted).upgrade_ops
        assert found is not None
        return [step for one in found.ops for step in getattr(one, "ops", [one])]

    with engine.begin() as connection:
        steps = differences(connection)
        assert sorted(type(step).__name__ for step in steps) == [
            *("AddColumnOp", "AlterColumnOp", "AlterColumnOp", "CreateIndexOp"),
            *("CreateTableOp", "DropColumnOp", "DropTableOp"),
        ]
        for step in steps:
            Operations(MigrationContext.configure(connection)).invoke(step)
        assert differences(connection) == []


def _copied(models: MetaData) -> MetaData:
    copied = MetaData()
    for table in models.tables.values():
        for index in table.to_metadata(copied).indexes:
            [original] = [one for one in table.indexes if one.name == index.name]
            index._ddl_if = original._ddl_if  # which SQLAlchemy leaves behind
    return copied


def _assert_reported(
    engine: Engine, statements: list[str], words: list[str], database: runner.Database = "timeseries"
) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
    differences = runner.check(engine, database)
    assert len(differences) == 1, differences
    assert all(word in differences[0] for word in words), differences
