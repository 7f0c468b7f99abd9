"""The one-row tables of facts: of the store, in SQLite, and of the time-series database. Never commits."""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import Connection, insert, inspect, select, update

from repo.models import StoreState, TimeSeriesState

__all__ = ["ColumnsState", "ColumnsStateRepository", "Extent", "State", "StateRepository"]


class State(NamedTuple):
    """The facts of a store; seqs as defined in `StoreState`."""

    store_id: str
    last_seq: int
    copied_through: int
    pruned_through: int
    engine: str | None
    file_id: str | None
    generation: int
    created_us: int
    epoch: int = 1
    former_store_id: str | None = None

    def owns(self, store_id: str) -> bool:
        """Return whether a column file with this id belongs to the store: its id, or the one before, see `rekey`."""
        return store_id in (self.store_id, self.former_store_id)


class ColumnsState(NamedTuple):
    """What ties a time-series file to its store, and its watermark."""

    store_id: str
    file_id: str
    generation: int
    watermark: int
    flushed_from: int = 0
    flush_digest: int = 0


class Extent(NamedTuple):
    """How far a store was acknowledged: the last seq, and the highest record id ever assigned."""

    store_id: str
    last_seq: int
    last_record: int


_LAST_SEQ = "max(last_seq, coalesce((SELECT max(seq) FROM journal), 0))"
_STATE = "SELECT {} FROM store_state".format(", ".join(State._fields).replace("last_seq", _LAST_SEQ))

# A query that is built once is looked up and read back faster.
_COLUMNS_STATE = select(*(getattr(TimeSeriesState, name) for name in ColumnsState._fields))

_EXTENT = f"""
    SELECT store_id, {_LAST_SEQ}, coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'buffered_records'), 0)
    FROM store_state
"""


class StateRepository:
    """Facts of the metadata database. Read through the driver, because each flush and each `latest` reads them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._driver: Any = connection.connection.driver_connection

    def get(self) -> State | None:
        """Return the facts, or None if the database does not belong to a store yet."""
        row = self._driver.execute(_STATE).fetchone()
        return None if row is None else State(*row)

    def extent(self) -> Extent | None:
        """Return how far the metadata reach, as this transaction sees them; None if they belong to no store yet."""
        row = self._driver.execute(_EXTENT).fetchone()
        return None if row is None else Extent(*row)

    def create(self, state: State) -> None:
        """Write the facts of a new store."""
        self._connection.execute(insert(StoreState).values(id=1, **state._asdict()))

    def set(self, **facts: Any) -> None:
        """Change some facts."""
        self._connection.execute(update(StoreState).where(StoreState.id == 1).values(**facts))


class ColumnsStateRepository:
    """Facts of the time-series database."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get(self) -> ColumnsState | None:
        """Return the facts, or None if the file does not belong to a store yet."""
        row = self._connection.execute(_COLUMNS_STATE).one_or_none()
        return None if row is None else ColumnsState(*row)

    def owner(self) -> tuple[str, int] | None:
        """Return the store and the generation of a file, whatever its revision; None if it belongs to no store."""
        if not inspect(self._connection).has_table(TimeSeriesState.__tablename__):
            return None
        row = self._connection.execute(
            select(TimeSeriesState.store_id, TimeSeriesState.generation)
        ).one_or_none()
        return None if row is None else (row[0], row[1])

    def create(self, state: ColumnsState) -> None:
        """Bind a new file to its store."""
        self._connection.execute(insert(TimeSeriesState).values(id=1, **state._asdict()))

    def set_store_id(self, store_id: str) -> None:
        """Bind the file to its store under another id."""
        self._connection.execute(update(TimeSeriesState).values(store_id=store_id))

    def set_watermark(self, watermark: int, flushed_from: int = 0, flush_digest: int = 0) -> None:
        """Set the seq through which this database holds everything, and the journal rows that brought it there."""
        self._connection.execute(
            update(TimeSeriesState).values(
                watermark=watermark, flushed_from=flushed_from, flush_digest=flush_digest
            )
        )
