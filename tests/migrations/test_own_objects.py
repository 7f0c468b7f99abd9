"""Columns and indexes that a user added to our tables are kept and named; revisions have one numbering."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from repo import Settings, Store
from tests.migrations.conftest import Alembic
from tests.migrations.legacy_store import make_legacy_store

ROOT = Path(__file__).resolve().parents[2]
LOGGER = "holdfast.migrating"


def _own(folder: Path, *statements: str) -> None:
    import duckdb

    with duckdb.connect(folder / "timeseries.duckdb") as connection:
        for statement in statements:
            connection.execute(statement)
        connection.execute("CHECKPOINT")


@pytest.mark.duckdb
def test_an_upgrade_keeps_and_names_what_a_user_added_to_the_points(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_legacy_store(tmp_path / "store", 300)
    _own(
        folder,
        "ALTER TABLE time_series_data ADD COLUMN place VARCHAR",
        'ALTER TABLE time_series_data ADD COLUMN "a b" DECIMAL(9, 2)',
        "UPDATE time_series_data SET place = 'p' || quality, \"a b\" = 1.25",
        "CREATE INDEX mine ON time_series_data (quality)",
    )
    with closing(sqlite3.connect(folder / "offline_buffer.db")) as metadata, metadata:
        metadata.execute("ALTER TABLE buffered_records ADD COLUMN mine TEXT DEFAULT 'x'")
        metadata.execute("CREATE INDEX mine ON buffered_records (created_at)")
    metadata.close()
    with caplog.at_level(logging.WARNING, LOGGER), Store(folder, Settings(background=False)) as store:
        store.points.insert("new", "m", 1.0, 5)
        rows = store.sql(
            'SELECT place, "a b" AS ab, quality, count(*) AS n FROM time_series_data GROUP BY ALL'
        )
        assert sum(row["n"] for row in rows) == 301
        assert all(
            row["place"] == f"p{row['quality']}" and float(row["ab"]) == 1.25 for row in rows if row["place"]
        )
        assert sum(row["n"] for row in rows if row["place"]) == 300
        assert store.records.pending()
    said = caplog.text
    assert "columns of buffered_records that Holdfast did not create were kept: mine" in said
    assert "columns of time_series_data that Holdfast did not create were kept: place, a b" in said
    assert "the index mine, which Holdfast did not create, was kept" in said
    with closing(sqlite3.connect(folder / "offline_buffer.db")) as metadata, metadata:
        assert metadata.execute("SELECT DISTINCT mine FROM buffered_records").fetchall() == [("x",)]
    metadata.close()


@pytest.mark.duckdb
def test_a_column_of_a_name_that_the_upgrade_needs_gets_another(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_legacy_store(tmp_path / "store", 30)
    _own(
        folder,
        "ALTER TABLE time_series_data ADD COLUMN seq VARCHAR",
        "UPDATE time_series_data SET seq = 'mine'",
    )
    with caplog.at_level(logging.WARNING, LOGGER), Store(folder, Settings(background=False)) as store:
        assert store.sql("SELECT DISTINCT own_seq FROM time_series_data") == [{"own_seq": "mine"}]
        assert len(store.points.range(None, None).all()) == 30
    assert "were kept: seq (now own_seq)" in caplog.text


def test_a_check_and_a_generated_revision_leave_what_a_user_added(alembic: Alembic, tmp_path: Path) -> None:
    at = ("-x", f"path={tmp_path / 'store'}")
    alembic(*at, "upgrade", "head")
    with closing(sqlite3.connect(tmp_path / "store" / "offline_buffer.db")) as metadata, metadata:
        metadata.execute("ALTER TABLE sinks ADD COLUMN mine TEXT")
        metadata.execute("CREATE INDEX mine ON sinks (updated_us)")
        metadata.execute("CREATE TABLE notes (id INTEGER)")
    metadata.close()
    done = alembic(*at, "check")
    for own in ("column mine of sinks", "index mine of sinks", "table notes"):
        assert f"The {own} is in no model and stays" in done.stderr
    refused = alembic(*at, "-x", "remove=true", "check", ok=False)
    assert "mine" in refused.stdout + refused.stderr


def test_revisions_have_one_numbering_and_the_configuration_works_from_elsewhere(tmp_path: Path) -> None:
    import subprocess
    import sys

    root = tmp_path / "a checkout"
    for name in ("alembic", "repo"):
        shutil.copytree(ROOT / name, root / name)
    shutil.copy(ROOT / "alembic.ini", root)
    environment = {**os.environ, "PYTHONPATH": str(root)}

    commands = (
        "-x path=store upgrade head",
        "history",
        "-x path=store revision --autogenerate -m one",
        "revision -m two",
        "revision -m three --rev-id x",
    )
    script = (
        "import sys; from alembic.config import main\n"
        "for command in sys.argv[2:]: main(['-c', sys.argv[1], *command.split()], 'alembic')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(root / "alembic.ini"), *commands],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "store" / "offline_buffer.db").exists()
    assert "0001 -> 0002" in done.stdout
    made = sorted(path.name for path in (root / "alembic" / "versions").glob("*.py"))
    assert made[4:] == ["0005_one.py", "0006_two.py", "x_three.py"]
