"""The loss ledger: everything that was ever dropped, on a connection that the caller provides. Never commits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Integer, and_, case, delete, func, insert, literal_column, select, update

from repo.engines.registry import traits_of
from repo.models import LedgerEntry, TimeSeriesLedgerEntry

__all__ = ["ColumnsLedgerRepository", "LedgerRepository", "Loss", "LossTotals"]

_GIVEN_UP = ("skipped", "quarantine")
"""The reasons of entries for points that a sink never gets, and that the drop left in the store."""


_ROWID = literal_column("rowid", Integer)
"""The position of an entry in the ledger, in the order of adding."""


class Loss(NamedTuple):
    """One drop. `entry_id` is unique, so copying an entry twice adds nothing.

    `what` is `points` or `records`; `dropped` is None if the number is unknown; times in µs.
    """

    entry_id: str
    what: str
    reason: str
    detail: str | None
    dropped: int | None
    first_us: int | None
    last_us: int | None
    recorded_us: int

    @property
    def given_up(self) -> bool:
        """Whether the points stay in the store: only a sink does not get them."""
        return self.what == "points" and self.reason in _GIVEN_UP


class LossTotals(NamedTuple):
    """What the ledger counts: entries, points and records that are gone, and points that were given up for a sink."""

    entries: int
    """All of them."""
    points: int
    records: int
    uncounted: int
    """How many entries say that something is gone, but not how much."""
    given_up: int
    """Points that are stored, counted once for each sink that does not get them."""
    given_up_entries: int
    given_up_uncounted: int


class LedgerRepository:
    """The ledger itself (metadata database)."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, losses: Sequence[Loss]) -> None:
        """Add entries; an entry whose id exists is left unchanged."""
        if losses:
            self._connection.execute(
                insert(LedgerEntry).prefix_with("OR IGNORE"), [loss._asdict() for loss in losses]
            )

    def merge(self, loss: Loss) -> None:
        """Add an entry, or add its count to the entry with the same id, so that the ledger stays bounded."""
        stored = self._connection.execute(
            select(LedgerEntry.dropped, LedgerEntry.first_us, LedgerEntry.last_us).where(
                LedgerEntry.entry_id == loss.entry_id
            )
        ).one_or_none()
        if stored is None:
            self._connection.execute(insert(LedgerEntry).values(**loss._asdict()))
            return
        firsts = [us for us in (stored.first_us, loss.first_us) if us is not None]
        lasts = [us for us in (stored.last_us, loss.last_us) if us is not None]
        self._connection.execute(
            update(LedgerEntry)
            .where(LedgerEntry.entry_id == loss.entry_id)
            .values(
                dropped=(stored.dropped or 0) + (loss.dropped or 0),
                first_us=min(firsts, default=None),
                last_us=max(lasts, default=None),
                recorded_us=loss.recorded_us,
            )
        )

    def set_count(self, entry_id: str, dropped: int, first_us: int | None, last_us: int | None) -> None:
        """Set the number and the times of an entry that was added without."""
        self._connection.execute(
            update(LedgerEntry)
            .where(LedgerEntry.entry_id == entry_id, LedgerEntry.dropped.is_(None))
            .values(dropped=dropped, first_us=first_us, last_us=last_us)
        )

    def get(self, entry_id: str) -> Loss | None:
        """Return the entry with this id, if there is one."""
        columns = [getattr(LedgerEntry, name) for name in Loss._fields]
        row = self._connection.execute(select(*columns).where(LedgerEntry.entry_id == entry_id)).one_or_none()
        return None if row is None else Loss(*row)

    def list(self, limit: int | None = 1000, reasons: Sequence[str] | None = None) -> list[Loss]:
        """Return the newest entries first: all if `limit` is None, only those with a reason if `reasons` are given."""
        columns = [getattr(LedgerEntry, name) for name in Loss._fields]
        query = select(*columns)
        if reasons is not None:
            query = query.where(LedgerEntry.reason.in_(reasons))
        query = query.order_by(LedgerEntry.recorded_us.desc(), _ROWID.desc()).limit(limit)
        return [Loss(*row) for row in self._connection.execute(query)]

    def last_entry(self) -> int:
        """Return the position of the newest entry, 0 if there is none. It grows with each added entry."""
        driver: Any = self._connection.connection.driver_connection  # see `JournalRepository.after`
        return int(driver.execute("SELECT coalesce(max(rowid), 0) FROM loss_ledger").fetchone()[0])

    def totals(self) -> LossTotals:
        """Return the number of entries, and what they count."""
        table = LedgerEntry
        kept = and_(table.what == "points", table.reason.in_(_GIVEN_UP))
        unknown = table.dropped.is_(None)

        def total(of: Any, condition: Any) -> Any:
            return func.coalesce(func.sum(case((condition, func.coalesce(of, 0)), else_=0)), 0)

        row = self._connection.execute(
            select(
                func.count(),
                *(total(table.dropped, and_(table.what == what, ~kept)) for what in ("points", "records")),
                total(1, and_(unknown, ~kept)),
                total(table.dropped, kept),
                total(1, kept),
                total(1, and_(unknown, kept)),
            ).select_from(table)
        ).one()
        return LossTotals(*map(int, row))


_UNCOPIED = select(*(getattr(TimeSeriesLedgerEntry, name) for name in Loss._fields))


class ColumnsLedgerRepository:
    """Entries in the time-series database that are still to be copied into the ledger."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, loss: Loss) -> None:
        """Add an entry in the transaction of the drop itself."""
        table = TimeSeriesLedgerEntry.__table__
        traits_of(self._connection).load(self._connection, table, [tuple(loss)])

    def all(self) -> list[Loss]:
        """Return the entries that are still to be copied."""
        return [Loss(*row) for row in self._connection.execute(_UNCOPIED)]

    def remove(self, entry_ids: Sequence[str]) -> None:
        """Remove copied entries."""
        if entry_ids:
            self._connection.execute(
                delete(TimeSeriesLedgerEntry).where(TimeSeriesLedgerEntry.entry_id.in_(entry_ids))
            )
