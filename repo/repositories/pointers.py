"""Pointers: records that the legacy program stored as a reference to a point, and the note that some remain.

The note is a row of the legacy key-value table. Revision 0002 writes it if there are such records, and the transaction
that restores their data removes it. While it exists, these records are not returned to callers. Never commits.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, delete, func, select, text

from repo.models import BufferedRecord, BufferMetadata

__all__ = ["HANDED_OUT", "MARKER", "NOTING", "POINTER_START", "PointerRepository", "is_pointer"]

MARKER = "holdfast.pointers"
"""The note's key; its value is the number of pointers when it was written."""

NOTING = "0002"
"""The revision that writes the note."""

POINTER_START = '{"storage": "duckdb"'
"""The start of a pointer as the legacy program wrote it. JSON that this program writes has no space there."""


def is_pointer() -> ColumnElement[bool]:
    """Return the condition on `buffered_records` that the data looks like a pointer."""
    return func.substr(BufferedRecord.data, 1, len(POINTER_START)) == POINTER_START


HANDED_OUT = text(
    f"NOT (EXISTS (SELECT 1 FROM buffer_metadata WHERE key = '{MARKER}') "
    f"AND substr(data, 1, {len(POINTER_START)}) = '{POINTER_START}')"
)
"""The condition on `buffered_records` that the row is not a pointer, or that no pointers are noted. It is text,
because each message is read through it."""


# A query that is built once is looked up faster: each opening runs it.
_NOTED = select(BufferMetadata.key).where(BufferMetadata.key == MARKER)


class PointerRepository:
    """Pointers in the metadata database, in the transaction of a connection that the caller opened."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def noted(self) -> bool:
        """Return whether there may still be pointers to resolve."""
        return self._connection.scalar(_NOTED) is not None

    def count(self) -> int:
        """Return how many records look like pointers."""
        return int(self._connection.scalar(select(func.count()).where(is_pointer())) or 0)

    def texts(self) -> list[tuple[str, str]]:
        """Return record_id and data of each pointer; each takes about 300 bytes of memory."""
        table = BufferedRecord
        rows = self._connection.execute(select(table.record_id, table.data).where(is_pointer()))
        return [(record_id, data) for record_id, data in rows]

    def resolve(self, data_by_id: dict[str, str]) -> None:
        """Set the data of records and leave their other columns unchanged."""
        driver = self._connection.connection.driver_connection
        assert driver is not None
        driver.executemany(
            "UPDATE buffered_records SET data = ? WHERE record_id = ?",
            [(data, record_id) for record_id, data in data_by_id.items()],
        )

    def forget(self) -> None:
        """Remove the note."""
        self._connection.execute(delete(BufferMetadata).where(BufferMetadata.key == MARKER))
