"""The table of slices: which spans of the columns are sorted. Never commits."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, delete, insert, select

from repo import models
from repo.queries.order import Order, Slice

__all__ = ["SliceRepository"]

_ALL = select(*(getattr(models.Slice, name) for name in Slice._fields))


class SliceRepository:
    """The slices of the time-series database."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def order(self) -> Order:
        """Return all slices."""
        return Order(Slice(*row) for row in self._connection.execute(_ALL))

    def replace(self, old: Iterable[Slice], new: Slice) -> None:
        """Add a slice in place of those that it covers."""
        for one in old:
            self._connection.execute(delete(models.Slice).where(models.Slice.first_seq == one.first_seq))
        self._connection.execute(insert(models.Slice).values(**new._asdict()))
