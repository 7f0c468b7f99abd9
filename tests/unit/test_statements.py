"""Compiled statements: kept for each dialect, and not without end."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Integer, bindparam, column, create_engine, literal, select
from sqlalchemy.dialects import postgresql, sqlite

from repo.engines.statements import _MOST, Statement, Template, _CompiledStatements, compiled


def test_an_engine_uses_the_statements_of_another_engine_of_its_dialect_alone() -> None:
    cache = _CompiledStatements()
    one, same = (create_engine("sqlite://", execution_options={"compiled_cache": cache}) for _ in range(2))
    for engine, number in ((one, 1), (same, 2)):
        with engine.connect() as connection:
            assert connection.execute(select(literal(number))).scalar() == number
        engine.dispose()
    assert len(cache) == 1
    key = next(iter(cache))
    assert isinstance(key, tuple)
    assert key[0] is type(one.dialect)
    assert cache.get((postgresql.dialect(), *key[1:])) is None  # type: ignore[no-untyped-call]
    assert cache.get((same.dialect, *key[1:])) is not None


def test_the_cache_has_a_limit() -> None:
    cache = _CompiledStatements()
    engine = create_engine("sqlite://", execution_options={"compiled_cache": cache})
    with engine.connect() as connection:
        for number in range(3):
            connection.execute(select(column("1", Integer).label(f"n{number}")))
    engine.dispose()
    assert len(cache) == 3
    for number in range(_MOST - 3):
        cache[number] = None
    assert len(cache) == _MOST
    cache["one more"] = None
    assert len(cache) == 1


def test_a_template_is_filled_with_values_in_the_order_of_the_driver() -> None:
    query: Any = select(column("a")).where(
        column("b") > bindparam("low"), column("a") != literal(3), column("c") < bindparam("high")
    )
    template, dialect = Template(query), sqlite.dialect()
    filled = template.filled(dialect, high=2, low=1)
    assert filled == Statement(filled.sql, (1, 3, 2), ("a",))
    assert filled.sql.count("?") == 3
    assert template.filled(dialect, high=20, low=10) == Statement(filled.sql, (10, 3, 20), ("a",))


def test_a_query_with_lists_is_compiled_with_each_of_their_values() -> None:
    query: Any = select(column("a")).where(column("a").in_(["x", "y"]), column("b") == 1)
    found = compiled(query, sqlite.dialect())
    assert (found.sql.count("?"), found.parameters) == (3, ("x", "y", 1))
