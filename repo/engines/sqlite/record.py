"""The record of SQLite: its names, its files and their space. It is part of Python, so it is never missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from repo.engines.record import EngineRecord
from repo.engines.sqlite.companions import COMPANIONS, SHARED_MEMORY

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from repo.clock import Clock
    from repo.engines.base import Backend, Traits
    from repo.settings import Settings

__all__ = ["SQLITE"]


def _backend(path: Path, _scratch: Path, settings: Settings, _clock: Clock) -> Backend:
    from repo.engines.sqlite.backend import SQLiteBackend

    return SQLiteBackend(path, settings)


def _traits() -> Traits:
    from repo.engines.sqlite.traits import TRAITS

    return TRAITS


def _copy(path: Path, target: Path, progress: Callable[[int], object]) -> None:
    from repo.engines.sqlite import copies

    copies.copy_to(path, target, progress)


def _wait_until_unused(path: Path, timeout_s: float, is_needless: Callable[[Connection], bool]) -> None:
    from repo.engines.sqlite import driver

    with driver.reading(path) as connection:
        needless = is_needless(connection)
    if not needless:
        driver.wait_until_unused(path, timeout_s)


SQLITE = EngineRecord(
    name="sqlite",
    title="SQLite",
    file_name="timeseries.sqlite",
    companions=COMPANIONS,
    disposable=frozenset({SHARED_MEMORY}),
    signature=(0, b"SQLite format 3\0"),
    bytes_a_point=96,  # 62 were measured
    names_a_point=3,  # in each row, and again in the index on seq; generous
    rewrite_factor=3.5,  # a rewritten table also goes through the log
    deleted_row_bytes=80,  # 65 were measured
    why_missing=lambda: None,
    remedy="Use a Python that has the module sqlite3",
    make_backend=_backend,
    traits=_traits,
    copy=_copy,
    wait_until_unused=_wait_until_unused,
)
