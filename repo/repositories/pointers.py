"""Pointers: records whose data the legacy program kept with a point only, and the note that some are still so.

The note is a row of the legacy key-value table. Revision 0002 writes it where such records stand, and the transaction
that gives them their data back removes it. While it stands they are no data, and are not handed out. Never commits.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, delete, func, select, text

from repo.models import BufferedRecord, BufferMetadata

__all__ = ["HANDED_OUT", "MARKER", "POINTER_START", "PointerRepository", "is_pointer"]

MARKER = "holdfast.pointers"
"""The note's key; its value is how many there were when it was written."""

POINTER_START = '{"storage": "duckdb"'
"""How the legacy program wrote it: the first of three keys. This program's own texts have no space there."""


def is_pointer() -> ColumnElement[bool]:
    """Build the condition on `buffered_records`: the data looks like a pointer."""
    return func.substr(BufferedRecord.data, 1, len(POINTER_START)) == POINTER_START


HANDED_OUT = text(
    f"NOT (EXISTS (SELECT 1 FROM buffer_metadata WHERE key = '{MARKER}') "
    f"AND substr(data, 1, {len(POINTER_START)}) = '{POINTER_START}')"
)
"""The condition on `buffered_records`: no pointer, or none is noted. A text, for it is in a message's way."""


class PointerRepository:
    """Pointers in the metadata database, in the transaction of a connection that you opened."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def noted(self) -> bool:
        """Say whether pointers may still be to be resolved."""
        query = select(BufferMetadata.key).where(BufferMetadata.key == MARKER)
        return self._connection.scalar(query) is not None

    def count(self) -> int:
        """Return how many records look like pointers."""
        return int(self._connection.scalar(select(func.count()).where(is_pointer())) or 0)

    def texts(self) -> list[tuple[str, str]]:
        """Return the record_id and data of each; about 300 bytes of memory for each."""
        table = BufferedRecord
        rows = self._connection.execute(select(table.record_id, table.data).where(is_pointer()))
        return [(record_id, data) for record_id, data in rows]

    def resolve(self, data_by_id: dict[str, str]) -> None:
        """Give records their data; nothing else of them is changed."""
        driver = self._connection.connection.driver_connection
        assert driver is not None
        driver.executemany(
            "UPDATE buffered_records SET data = ? WHERE record_id = ?",
            [(data, record_id) for record_id, data in data_by_id.items()],
        )

    def forget(self) -> None:
        """Remove the note."""
        self._connection.execute(delete(BufferMetadata).where(BufferMetadata.key == MARKER))
