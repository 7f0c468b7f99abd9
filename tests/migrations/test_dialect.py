"""DuckDB through SQLAlchemy: what reflection says, and which files the guard refuses."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest
from sqlalchemy import Engine, MetaData, Table, bindparam, create_engine, inspect, select

import repo.engines.duckdb.dialect
from repo.errors import StoreCorrupt
from tests.starter import Starter

OpenEngine = Callable[[Path], Engine]
OLD_LOG = bytes.fromhex("64000165000164000165001d") + b"timeseries"


@pytest.fixture
def engine(tmp_path: Path, open_engine: OpenEngine) -> Engine:
    return open_engine(tmp_path / "a b%.duckdb")


def test_reflection_returns_columns_types_keys_constraints_and_indexes(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE parent (id BIGINT PRIMARY KEY, a VARCHAR UNIQUE, t TIMESTAMPTZ, n DECIMAL(9,3))"
        )
        connection.exec_driver_sql(
            'CREATE TABLE child (x INTEGER NOT NULL CHECK (x > 0), "q""uoted, name" DOUBLE DEFAULT 1.5, '
            "p BIGINT REFERENCES parent (id), b BLOB, j JSON)"
        )
        connection.exec_driver_sql('CREATE UNIQUE INDEX by_two ON child ("q""uoted, name", x)')
    tables = MetaData()
    tables.reflect(engine)
    assert {
        name: [str(column.type) for column in table.columns] for name, table in tables.tables.items()
    } == {
        "parent": ["BIGINT", "VARCHAR", "TIMESTAMP", "NUMERIC(9, 3)"],
        "child": ["INTEGER", "DOUBLE", "BIGINT", "BLOB", "JSON"],
    }
    child, seen = tables.tables["child"], inspect(engine)
    assert [column.name for column in tables.tables["parent"].primary_key] == ["id"]
    assert [column.nullable for column in child.columns] == [False, True, True, True, True]
    assert [key.target_fullname for key in child.foreign_keys] == ["parent.id"]
    assert [(index.name, index.unique, index.columns.keys()) for index in child.indexes] == [
        ("by_two", True, ['q"uoted, name', "x"])
    ]
    assert [found["column_names"] for found in seen.get_unique_constraints("parent")] == [["a"]]
    assert [found["sqltext"] for found in seen.get_check_constraints("child")] == ["(x > 0)"]


def test_a_table_of_an_attached_database_is_not_listed() -> None:
    with create_engine("duckdb+holdfast:///:memory:").connect() as connection:
        connection.exec_driver_sql("ATTACH ':memory:' AS other")
        connection.exec_driver_sql("CREATE TABLE other.main.elsewhere (i INTEGER)")
        assert inspect(connection).get_table_names() == []
        assert not inspect(connection).has_table("elsewhere")


def test_a_cached_statement_uses_the_values_of_each_call(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (k VARCHAR, n BIGINT)")
        table = Table("t", MetaData(), autoload_with=connection)
        connection.execute(table.insert(), [{"k": key, "n": n} for n, key in enumerate("abcd")])
        one = select(table.c.n).where(table.c.k == bindparam("k"))
        some = select(table.c.n).where(table.c.k.in_(bindparam("keys", expanding=True))).order_by("n")
        for n, key in enumerate("abcd"):
            assert connection.execute(one, {"k": key}).scalar_one() == n
        for keys in (["a"], ["b", "d"], [], ["a", "b", "c"]):
            found = connection.execute(some, {"keys": keys}).scalars().all()
            assert found == ["abcd".index(key) for key in keys]


def test_every_reserved_word_of_duckdb_is_quoted(engine: Engine) -> None:
    quoted = engine.dialect.identifier_preparer.reserved_words
    with duckdb.connect() as connection:
        for (word,) in connection.execute("SELECT keyword_name FROM duckdb_keywords()").fetchall():
            if word not in quoted:
                connection.execute(f"CREATE OR REPLACE TABLE t ({word} INTEGER)")
                connection.execute(f"CREATE OR REPLACE TABLE {word} (i INTEGER); SELECT i FROM {word}")


def test_the_dialect_of_a_host_application_is_unchanged() -> None:
    theirs = create_engine("duckdb:///:memory:").dialect
    assert type(theirs).__module__ == "duckdb_engine"
    assert type(create_engine("duckdb+holdfast:///:memory:").dialect) is repo.engines.duckdb.dialect.Dialect


def _digests(*paths: Path) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def _with_rows(path: Path, log: bytes) -> Path:
    with duckdb.connect(path) as connection:
        connection.execute("CREATE TABLE t AS SELECT 42 AS n")
    beside = path.with_name(path.name + ".wal")
    beside.write_bytes(log)
    return beside


def test_a_file_with_an_old_log_is_refused_and_left_byte_identical(
    tmp_path: Path, open_engine: OpenEngine
) -> None:
    path = tmp_path / "timeseries.duckdb"
    log = _with_rows(path, OLD_LOG)
    before = _digests(path, log)
    with pytest.raises(StoreCorrupt, match=r"0\.9\.2.*DROP INDEX IF EXISTS idx_time_sensor"):
        open_engine(path)
    link = tmp_path / "link.duckdb"
    link.symlink_to(path)
    with pytest.raises(StoreCorrupt):
        create_engine(f"duckdb+holdfast:///{link}").connect()
    assert _digests(path, log) == before


def test_the_never_checkpointed_sample_is_refused_and_left_byte_identical(
    sample: Callable[[str], Path], open_engine: OpenEngine
) -> None:
    path = sample("timeseries_never_checkpointed.duckdb")
    log = path.with_name(path.name + ".wal")
    before = _digests(path, log)
    with pytest.raises(StoreCorrupt, match=r"log of DuckDB 0\.9"):
        open_engine(path)
    assert _digests(path, log) == before


def test_an_empty_indexed_table_of_an_old_file_is_refused_with_a_remedy(
    sample: Callable[[str], Path], open_engine: OpenEngine
) -> None:
    path = sample("timeseries_empty.duckdb")
    before = _digests(path)
    with pytest.raises(StoreCorrupt, match=r"cannot open.*duckdb==0\.9\.2"):
        open_engine(path)
    assert _digests(path) == before


@pytest.mark.parametrize("torn", [b"", b"\x64", b"\x64\x00\x62", bytes(3), bytes(4096)])
def test_the_torn_start_of_a_new_log_holds_nothing_and_does_not_stop_the_opening(
    torn: bytes, tmp_path: Path, open_engine: OpenEngine
) -> None:
    path = tmp_path / "timeseries.duckdb"
    _with_rows(path, torn)
    with open_engine(path).connect() as connection:
        assert connection.exec_driver_sql("SELECT n FROM t").scalar_one() == 42


def test_the_guard_does_not_drop_the_lock_of_a_file_that_is_open(
    tmp_path: Path, open_engine: OpenEngine, starter: Starter
) -> None:
    path = tmp_path / "timeseries.duckdb"
    with open_engine(path).begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (i INTEGER)")
    assert path.with_name(path.name + ".wal").stat().st_size > 0
    with repo.engines.duckdb.dialect.guarded(str(path)):
        pass
    other = f"import duckdb; duckdb.connect({str(path)!r})"
    assert "Could not set lock on file" in starter.run(["-c", other]).stderr
    # Its log is a file of its own, and is locked too.
    taken = (
        "import fcntl, sys; f = open(sys.argv[1], 'rb+')\n"
        "try: fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "except OSError: print('locked')"
    )
    assert starter.run(["-c", taken, f"{path}.wal"]).stdout == "locked\n"
