"""`store.receiving`: takes batches of other stores' sinks, each exactly once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from repo.core.changes import Change, PointsChange, PositionChange, RecordChange, Submission
from repo.core.handle import Handle
from repo.errors import InvalidPoint, InvalidRecord, InvalidSettings
from repo.inputs.times import to_datetime
from repo.inputs.values import check_columns
from repo.repositories.positions import Position, PositionRepository, SenderRepository
from repo.repositories.records import NewRecord

__all__ = ["Receiving", "Taken"]


@dataclass(frozen=True, slots=True)
class Taken:
    """The result for a batch, which is durable: the refused items with the reason, and whether it was a repeat."""

    refused: Sequence[tuple[int, str]]
    repeat: bool


class Receiving:
    """Takes batches with their position, both in one durable commit. Thread-safe. Used by `repo.delivery.receiver`.

    A batch is taken only if it follows the last one of its sink (see `repo.core.positions`); otherwise `StoreForked` is
    raised. Items that cannot be stored, such as a text for a series of numbers, are refused, and the rest is taken. For
    a repeat nothing is written, but the refused items are named again. Raises `StoreBusy`, `StoreFull` and other errors
    of a write; nothing was written.
    """

    def __init__(self, handle: Handle) -> None:
        if handle.settings.durability != "full":
            raise InvalidSettings(
                "a receiver confirms only what survives a power loss; set durability to full"
            )
        self._handle = handle

    def take_points(self, position: PositionChange, columns: Mapping[str, Sequence[Any]]) -> Taken:
        """Take points, as columns for `repo.inputs.values.check_columns`. A later batch overwrites earlier values."""
        batch, refusals = check_columns(columns, accept_bool=False, skip=True, kinds_of=self._handle.kinds_of)
        changes = (PointsChange.of(batch),) if len(batch) else ()
        skippable = batch if len(batch) else None
        submission = Submission(changes, refusals=refusals, skippable=skippable, position=position)
        written = self._handle.writer.commit(submission)
        refused = [(refusal.row or 0, f"{refusal.field} {refusal.reason}") for refusal in written.refusals]
        return Taken(refused, position.repeat)

    def take_records(self, position: PositionChange, records: Sequence[Sequence[Any]]) -> Taken:
        """Take records (record_id, source, data as JSON text, timestamp_us); they are pending in this store.

        Their points are not derived again: they arrive as points.
        """
        changes: list[Change] = []
        refused: list[tuple[int, str]] = []
        now_us = self._handle.clock()
        for row, (record_id, source, data, time_us) in enumerate(records):
            try:
                record = NewRecord.of(record_id, source, json.loads(data), to_datetime(time_us), now_us)
            except (InvalidRecord, InvalidPoint) as error:
                refused.append((row, str(error)))
            except (ValueError, TypeError, OverflowError, RecursionError) as error:
                refused.append((row, f"it is not a record: {error}"))
            else:
                changes.append(RecordChange(record))
        self._handle.writer.commit(Submission(changes, position=position))
        return Taken(refused, position.repeat)

    def position(self, store_id: str, epoch: int, sink: str) -> Position | None:
        """Return what was taken from a sink; None before its first batch."""
        with self._handle.metadata.read() as connection:
            return PositionRepository(connection).get(store_id, epoch, sink)

    def positions_of(self, store_id: str, sink: str) -> list[Position]:
        """Return what was taken from a sink in each epoch of its store. Reads no position of another store."""
        with self._handle.metadata.read() as connection:
            return PositionRepository(connection).of_sink(store_id, sink)

    def positions(self) -> list[Position]:
        """Return what was taken from each sink of each store, in every epoch."""
        with self._handle.metadata.read() as connection:
            return PositionRepository(connection).list()

    def owner_of(self, token_sha256: str, store_id: str) -> str:
        """Return the store that a token belongs to: `store_id`, durably from now on, if it belongs to none yet."""
        with self._handle.metadata.read() as connection:
            owner = SenderRepository(connection).owner(token_sha256)
        if owner is not None:
            return owner
        with self._handle.metadata.write() as connection:
            return SenderRepository(connection).bind(token_sha256, store_id, self._handle.clock())
