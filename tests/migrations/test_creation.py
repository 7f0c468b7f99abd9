"""A new store has the schema that the revisions give an older one, without running them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from repo import Settings, Store
from repo.errors import HoldfastError
from repo.models import MetadataBase, TimeSeriesBase
from repo.schema import runner
from repo.schema.creation import create_tables, create_time_series, is_empty
from repo.schema.version import HEAD, REVISIONS
from tests.conftest import RunPython
from tests.migrations.structure import rows_of, structure_of

OpenEngine = Callable[[Path], Engine]


def _database(path: Path) -> runner.Database:
    return "metadata" if path.name == "offline_buffer.db" else "timeseries"


def _created(engine: Engine, database: runner.Database) -> Engine:
    with engine.begin() as connection:
        create_tables(connection, MetadataBase if database == "metadata" else TimeSeriesBase)
    return engine


def test_it_has_the_structure_that_the_revisions_give(database_file: Path, open_engine: OpenEngine) -> None:
    database = _database(database_file)
    created = _created(open_engine(database_file), database)
    upgraded = open_engine(database_file.with_name(f"upgraded-{database_file.name}"))
    runner.upgrade(upgraded, database)
    assert structure_of(created) == structure_of(upgraded)
    assert rows_of(created) == rows_of(upgraded)
    assert runner.current(created) == runner.current(upgraded) == HEAD
    assert runner.check(created, database) == []


def test_every_revision_can_be_undone_and_run_again_on_it(
    database_file: Path, open_engine: OpenEngine
) -> None:
    database = _database(database_file)
    engine = _created(open_engine(database_file), database)
    wanted = structure_of(engine)
    runner.downgrade(engine, database, REVISIONS[0])
    runner.upgrade(engine, database)
    assert structure_of(engine) == wanted


def test_an_error_leaves_an_empty_file_where_it_can_be_created(
    timeseries_file: Path, open_engine: OpenEngine
) -> None:
    engine = open_engine(timeseries_file)

    def misspell(_c: object, _cursor: object, statement: str, parameters: Any, *_: object) -> tuple[str, Any]:
        return statement.replace("INSERT INTO alembic_version", "INSERT INTO no_such_table"), parameters

    event.listen(engine, "before_cursor_execute", misspell, retval=True)
    with pytest.raises(HoldfastError, match="no_such_table"):
        create_time_series(engine, timeseries_file)
    event.remove(engine, "before_cursor_execute", misspell)
    with engine.connect() as connection:
        assert is_empty(connection)
    create_time_series(engine, timeseries_file)
    assert runner.check(engine, "timeseries") == []


WATCHED = """
import duckdb
connect = duckdb.connect
def watched(path, **given):
    opened.append(path)
    return connect(path, **given)
duckdb.connect = watched
"""


@pytest.mark.slow_on("sqlite")
def test_a_new_store_is_created_and_written_to_without_alembic_and_without_a_database_in_memory(
    engine: str, tmp_path: Path, run_python: RunPython
) -> None:
    script = (
        f"opened = []{WATCHED if engine == 'duckdb' else ''}\n"
        "import sys; from repo import Settings, Store\n"
        "with Store(sys.argv[1], Settings(engine=sys.argv[2], background=False)) as store:\n"
        "    store.points.insert('s', 'm', 1.0); store.flush()\n"
        "print('alembic' in sys.modules, {path for path in opened if not path.startswith(sys.argv[1])})"
    )
    done = run_python(script, tmp_path / "store", engine, fresh=True)
    assert (done.stdout, done.stderr) == ("False set()\n", "")
    with Store(tmp_path / "store", Settings(background=False)) as store:
        assert [row["value"] for row in store.points.range("s", "m")] == [1.0]


def test_its_tables_and_its_id_are_in_the_file_itself(tmp_path: Path, open_engine: OpenEngine) -> None:
    with Store(tmp_path / "store", Settings(background=False)) as store:
        copy = tmp_path / "offline_buffer.db"
        copy.write_bytes((store.path / "offline_buffer.db").read_bytes())  # without its log
        with open_engine(copy).connect() as connection:
            [store_id] = connection.execute(text("SELECT store_id FROM store_state")).scalars()
        assert store_id == store.status().store_id
