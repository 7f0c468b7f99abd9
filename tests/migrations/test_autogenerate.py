"""Differences between a database and the models are seen, and become the right operations."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from repo.schema import migrate

OpenEngine = Callable[[Path], Engine]
Alembic = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).resolve().parents[2]

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
    (["ALTER TABLE time_series_data ALTER COLUMN seq SET NOT NULL"], ["modify_nullable", "seq"]),
]


@pytest.mark.parametrize(("statements", "told"), CHANGES)
def test_a_column_index_or_table_too_many_or_too_few_is_told(
    statements: list[str], told: list[str], timeseries_file: Path, open_engine: OpenEngine
) -> None:
    _assert_told(open_engine(timeseries_file), statements, told)


@pytest.mark.parametrize(("statements", "told"), DUCKDB_CHANGES)
def test_a_changed_column_of_duckdb_is_told(
    statements: list[str], told: list[str], tmp_path: Path, open_engine: OpenEngine
) -> None:
    _assert_told(open_engine(tmp_path / "timeseries.duckdb"), statements, told)


def test_the_index_on_seq_is_wanted_on_sqlite_alone(timeseries_file: Path, open_engine: OpenEngine) -> None:
    engine = open_engine(timeseries_file)
    if timeseries_file.suffix == ".sqlite":
        _assert_told(engine, ["DROP INDEX idx_seq"], ["add_index", "'idx_seq'"])
    else:
        migrate.upgrade(engine, "timeseries")
        assert migrate.check(engine, "timeseries") == []


def _assert_told(engine: Engine, statements: list[str], told: list[str]) -> None:
    migrate.upgrade(engine, "timeseries")
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
    differences = migrate.check(engine, "timeseries")
    assert len(differences) == 1, differences
    assert all(word in differences[0] for word in told), differences


def test_a_change_of_the_models_becomes_one_revision_for_both_databases_that_runs_up_and_down(
    tmp_path: Path, alembic: Alembic
) -> None:
    for folder in ("repo", "alembic"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "alembic.ini", tmp_path)

    def run(*arguments: str) -> str:
        return alembic(*arguments, cwd=tmp_path).stdout

    run("upgrade", "head")
    models = tmp_path / "repo" / "models.py"
    changed = models.read_text()
    for old, new in (
        (
            "    name: Mapped[str] =",
            "    note: Mapped[str | None] = mapped_column(_Text)\n    name: Mapped[str] =",
        ),
        (
            "    file_id: Mapped[str] =",
            "    noted_us: Mapped[int | None] = mapped_column(_Integer64)\n    file_id: Mapped[str] =",
        ),
    ):
        assert changed.count(old) == 1
        changed = changed.replace(old, new)
    models.write_text(changed)
    run("revision", "--autogenerate", "-m", "Notes")
    script = (tmp_path / "alembic" / "versions" / "0003_notes.py").read_text()
    metadata, timeseries = script.split("def upgrade_timeseries")
    assert "op.add_column('sinks', sa.Column('note'" in metadata
    assert "op.drop_column('sinks', 'note')" in metadata
    assert "op.add_column('timeseries_state', sa.Column('noted_us'" in timeseries
    assert script.count("_column(") == 4
    run("upgrade", "head")
    run("downgrade", "-1")
    run("upgrade", "head")
    assert "No new upgrade operations" in run("check")
