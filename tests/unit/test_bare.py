"""Readers stay open between uses, unless their use failed, there are many of them, or their database is closed."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from repo.engines.bare import BareConnection, Readers
from repo.engines.sqlite import driver as sqlite


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = sqlite.open_engine(tmp_path / "file.db")
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE t (a INTEGER)")
        connection.exec_driver_sql("INSERT INTO t VALUES (1), (2)")
    yield engine
    engine.dispose()


def is_open(reader: BareConnection) -> bool:
    try:
        reader.driver.execute("SELECT 1")
    except sqlite3.ProgrammingError:
        return False
    return True


def test_a_connection_is_used_again_without_what_was_begun_on_it(engine: Engine) -> None:
    readers = Readers(engine, (sqlite.DriverError,))
    reader = readers.take()
    reader.driver.execute("BEGIN")
    assert reader.driver.execute("SELECT a FROM t").fetchall() == [(1,), (2,)]
    readers.give_back(reader)
    again = readers.take()
    assert again is reader
    assert not again.driver.in_transaction
    again.connection.exec_driver_sql("SELECT a FROM t").all()
    readers.give_back(again)
    assert not again.connection.in_transaction()
    readers.close()
    assert not is_open(reader)


def test_threads_that_read_at_once_have_a_connection_each_and_some_stay_open(engine: Engine) -> None:
    readers = Readers(engine, (sqlite.DriverError,))
    taken = [readers.take() for _ in range(9)]
    assert len({id(reader.driver) for reader in taken}) == 9
    for reader in taken:
        readers.give_back(reader)
    assert sum(map(is_open, taken)) == 5
    readers.close()
    assert not any(map(is_open, taken))


def test_a_connection_that_is_given_back_after_the_end_is_closed(engine: Engine) -> None:
    readers = Readers(engine, (sqlite.DriverError,))
    late = readers.take()
    readers.close()
    assert is_open(late)
    readers.give_back(late)
    assert not is_open(late)


def test_what_is_closed_between_uses_is_opened_again(engine: Engine) -> None:
    readers = Readers(engine, (sqlite.DriverError,))
    before = readers.take()
    readers.give_back(before)
    readers.close_idle()
    assert not is_open(before)
    after = readers.take()
    assert is_open(after)
    readers.give_back(after)
    readers.close()


def test_a_connection_that_cannot_be_given_back_is_not_used_again(engine: Engine) -> None:
    readers = Readers(engine, (sqlite.DriverError,))
    broken = readers.take()
    broken.driver.close()
    with pytest.raises(sqlite.DriverError, match="closed"):
        readers.give_back(broken)
    other = readers.take()
    assert other is not broken
    assert is_open(other)
    readers.discard(other)
    assert not is_open(other)
    readers.close()
