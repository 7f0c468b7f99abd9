"""Compiled statements: kept for each dialect, and not without end."""

from __future__ import annotations

from sqlalchemy import Integer, column, create_engine, literal, select
from sqlalchemy.dialects import postgresql

from repo.engines.statements import _MOST, _CompiledStatements


def test_an_engine_uses_the_statements_of_another_engine_of_its_dialect_alone() -> None:
    cache = _CompiledStatements()
    one, same = (create_engine("sqlite://", execution_options={"compiled_cache": cache}) for _ in range(2))
    for engine, number in ((one, 1), (same, 2)):
        with engine.connect() as connection:
            assert connection.execute(select(literal(number))).scalar() == number
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
    assert len(cache) == 3
    for number in range(_MOST - 3):
        cache[number] = None
    assert len(cache) == _MOST
    cache["one more"] = None
    assert len(cache) == 1
