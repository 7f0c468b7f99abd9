"""Legacy records: restores the data of records that the legacy program stored only as pointers to points.

Works on two connections that the caller provides, both at the head. Commits nothing, and changes only the data of
records that are still pointers. The metadata of a point may be any text; points that name no record are skipped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterator
from typing import Any, NamedTuple

from sqlalchemy import Connection, func, select

from repo.models import Point
from repo.repositories.pointers import PointerRepository
from repo.repositories.records import data_text

__all__ = ["Restored", "restore_records"]

PAGE_POINTS = 10_000
_TEXT_START = '{"record_id": "'
_POINTER_KEYS = {"storage", "sensor_id", "metric"}
_points: Any = Point.__table__


class Restored(NamedTuple):
    """The outcome for the pointers."""

    records: int
    """The number of records whose data was restored."""
    orphans: int
    """The number that stay unchanged, because no point has their data."""


def restore_records(
    metadata: Connection, columns: Connection, progress: Callable[[int, int], object] = lambda _d, _t: None
) -> Restored:
    """Set the data of the pointers from the points that name them, and remove the note that there are pointers.

    Reads and writes in the connections' transactions, which have begun. A record that several points name gets the
    data of the latest one. Memory holds one page of points and an entry per pointer. `progress` receives the number of
    points read that may name a record, and the number of all points.
    """
    pointers = PointerRepository(metadata)
    # For each record, the time of the point that its data came from.
    resolved: dict[str, int | None] = {
        record_id: None for record_id, data in pointers.texts() if _is_pointer(data)
    }
    if resolved:
        total = int(columns.scalar(select(func.count()).select_from(_points)) or 0)
        done = 0
        for page in _pages(columns):
            found: dict[str, str] = {}
            for timestamp_us, text in page:
                if _names_another(text, resolved):
                    continue
                original = _original(text)
                if original is None or original[0] not in resolved:
                    continue
                record_id, data = original
                before = resolved[record_id]
                if before is None or before <= timestamp_us:
                    resolved[record_id] = timestamp_us
                    found[record_id] = data
            pointers.resolve(found)
            done += len(page)
            progress(done, total)
    pointers.forget()
    orphans = sum(1 for timestamp_us in resolved.values() if timestamp_us is None)
    return Restored(len(resolved) - orphans, orphans)


def _may_name() -> Any:
    """Return the condition on points that the metadata contain the two necessary words."""
    text = _points.c.metadata
    return text.contains('"record_id"') & text.contains('"original_data"')


def _pages(columns: Connection) -> Iterator[list[tuple[int, str]]]:
    query = select(_points.c.timestamp_us, _points.c.metadata).where(_may_name())
    result = columns.execute(query)
    cursor: Any = result.cursor  # past SQLAlchemy's rows
    while page := cursor.fetchmany(PAGE_POINTS):
        yield page
    result.close()


def _is_pointer(data: str) -> bool:
    pointer = _parsed(data)
    return (
        isinstance(pointer, dict) and pointer.keys() == _POINTER_KEYS and pointer.get("storage") == "duckdb"
    )


def _names_another(text: str, wanted: Container[str]) -> bool:
    """Return whether the text, if the legacy program wrote it, names a record that is not wanted.

    This takes a tenth of the time of parsing, and most points belong to records that were sent long ago.
    """
    if not text.startswith(_TEXT_START):
        return False
    end = text.find('"', len(_TEXT_START))
    record_id = text[len(_TEXT_START) : end]
    return "\\" not in record_id and record_id not in wanted


def _original(text: str) -> tuple[str, str] | None:
    """Return the record that the metadata of a point names, and its data in stored form; None for any other text."""
    pointer = _parsed(text)
    if not isinstance(pointer, dict):
        return None
    record_id, data = pointer.get("record_id"), pointer.get("original_data")
    if type(record_id) is int:  # a text column has converted it
        record_id = str(record_id)
    if not isinstance(record_id, str) or not isinstance(data, dict):
        return None
    try:
        return record_id, _text(data)
    except RecursionError:
        return None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _text(data: dict[str, Any]) -> str:
    """Encode the data as `records.add` does or, if that refuses it, keep the legacy program's encoding."""
    try:
        return data_text(data)
    except ValueError:  # NaN, or a lone surrogate: it is returned as it was written
        return json.dumps(data, separators=(",", ":"))
