"""The quarantine: points and records that a sink refused, with the reason, on a connection that the caller provides.

Never commits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from sqlalchemy import ColumnElement, Connection, delete, func, insert, select, true, update

from repo.models import QuarantineRow

__all__ = ["QuarantineRepository", "Quarantined", "RefusalKind"]

RefusalKind = Literal["refused", "too_late"]

_CHUNK = 500
"""How many ids a statement lists."""


class Quarantined(NamedTuple):
    """An item that a sink refused. A point has a seq and a series; a record has an id, a source and its data."""

    sink: str
    reason: str
    timestamp_us: int
    kind: RefusalKind = "refused"
    """`too_late` if it is only too old for the destination."""
    seq: int | None = None
    sensor_id: str | None = None
    metric_name: str | None = None
    value: float | None = None
    value_text: str | None = None
    quality: int | None = None
    metadata: str | None = None
    """JSON text."""
    record_id: str | None = None
    source: str | None = None
    data: str | None = None
    """JSON text, as it was added."""
    retry: bool = False
    """Whether the point waits to be sent again."""
    recorded_us: int = 0
    id: int | None = None
    """Assigned when it is stored."""


_COLUMN = {"metadata": "metadata_json"}
_ALL = select(*(getattr(QuarantineRow, _COLUMN.get(name, name)) for name in Quarantined._fields))


class QuarantineRepository:
    """Keeps refused items until they are sent again or dropped."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._driver: Any = connection.connection.driver_connection

    def add(self, items: Sequence[Quarantined], now_us: int) -> None:
        """Add items; a point that is there already gets the new reason, and no longer waits to be sent again."""
        for item in items:
            if item.seq is not None:
                self._connection.execute(
                    delete(QuarantineRow).where(
                        QuarantineRow.sink == item.sink, QuarantineRow.seq == item.seq
                    )
                )
        if items:
            rows = [item._replace(recorded_us=now_us, retry=False)._asdict() for item in items]
            self._connection.execute(insert(QuarantineRow), [_row(row) for row in rows])

    def list(
        self,
        sink: str | None = None,
        *,
        after_id: int = 0,
        ids: Sequence[int] | None = None,
        limit: int | None = None,
    ) -> list[Quarantined]:
        """Return items in order of their ids: of a sink or of all, above `after_id`, with some of the `ids`."""
        where = [QuarantineRow.id > after_id, _of(sink)]
        if ids is None:
            query = _ALL.where(*where).order_by(QuarantineRow.id).limit(limit)
            return [_item(row) for row in self._connection.execute(query)]
        found: list[Quarantined] = []
        for part in _chunks(sorted(set(ids))):
            query = _ALL.where(*where, QuarantineRow.id.in_(part)).order_by(QuarantineRow.id)
            found += (_item(row) for row in self._connection.execute(query))
        return found[:limit]

    def count(self, sink: str | None = None) -> int:
        """Return the number of items."""
        query = select(func.count()).select_from(QuarantineRow).where(_of(sink))
        return int(self._connection.scalar(query) or 0)

    def counts(self) -> dict[str, int]:
        """Return the number of items by sink."""
        query = select(QuarantineRow.sink, func.count()).group_by(QuarantineRow.sink)
        return {sink: int(count) for sink, count in self._connection.execute(query)}

    def mark_retry(self, ids: Sequence[int]) -> int:
        """Mark points to be sent again; returns how many."""
        marked = 0
        for part in _chunks(ids):
            marked += self._connection.execute(
                update(QuarantineRow)
                .where(QuarantineRow.id.in_(part), QuarantineRow.seq.is_not(None))
                .values(retry=1)
            ).rowcount
        return marked

    def next_retry(self, sink: str) -> int | None:
        """Return the lowest seq that waits to be sent to a sink again."""
        found = self._driver.execute(
            "SELECT min(seq) FROM quarantine WHERE sink = ? AND retry = 1", (sink,)
        ).fetchone()[0]
        return None if found is None else int(found)

    def point(self, sink: str, seq: int) -> Quarantined | None:
        """Return the point of a sink that has a seq."""
        query = _ALL.where(QuarantineRow.sink == sink, QuarantineRow.seq == seq)
        row = self._connection.execute(query).first()
        return None if row is None else _item(row)

    def settle(self, sink: str, first_seq: int, last_seq: int, sent: Sequence[int] = ()) -> int:
        """Remove points of a range that was confirmed; returns how many.

        These are the ones of the seqs that were `sent`, which a replay also sends, and one that waited to be sent again
        if it is the whole range. Others may have been deleted from the store. Through the driver, because a delivery
        does it for each batch: the caller has begun a transaction.
        """
        rows = self._driver.execute(
            "SELECT id, seq, retry FROM quarantine WHERE sink = ? AND seq BETWEEN ? AND ?",
            (sink, first_seq, last_seq),
        ).fetchall()
        arrived = set(sent) if rows else ()
        alone = first_seq == last_seq
        return self.remove([number for number, seq, retry in rows if seq in arrived or (retry and alone)])

    def remove(self, ids: Sequence[int]) -> int:
        """Remove items; returns how many."""
        return sum(
            self._connection.execute(delete(QuarantineRow).where(QuarantineRow.id.in_(part))).rowcount
            for part in _chunks(ids)
        )

    def clear(self, sink: str) -> int:
        """Remove all items of a sink; returns how many."""
        return self._connection.execute(delete(QuarantineRow).where(QuarantineRow.sink == sink)).rowcount


def _of(sink: str | None) -> ColumnElement[bool]:
    return true() if sink is None else QuarantineRow.sink == sink


def _chunks(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    return (ids[start : start + _CHUNK] for start in range(0, len(ids), _CHUNK))


def _row(item: dict[str, Any]) -> dict[str, Any]:
    row = {_COLUMN.get(name, name): value for name, value in item.items() if name != "id"}
    return row | {"retry": int(row["retry"])}


def _item(row: Any) -> Quarantined:
    item = Quarantined(*row)
    return item._replace(retry=bool(item.retry))
