"""Rekey: makes the store new to every receiver, under another id, or under its id in the next epoch.

The id is in both databases. The metadata gets the new one first, and remembers the old one until the column file has
the new one durably. A crash in between leaves a store that can be opened; the next opening completes the change.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any
from uuid import uuid4

from repo.core.handle import Handle
from repo.repositories.sinks import SinkRepository
from repo.repositories.state import ColumnsStateRepository, StateRepository

__all__ = ["Rekeyed", "new_epoch", "new_store_id"]

log = logging.getLogger("holdfast.delivery")


@dataclass(frozen=True, slots=True)
class Rekeyed:
    """The identity of a store after a rekey."""

    store_id: str
    former_store_id: str
    """The id before; the same if only the epoch was raised."""
    epoch: int

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values; `holdfast --json sinks rekey` prints it."""
        return asdict(self)


def new_epoch(handle: Handle) -> Rekeyed:
    """Raise the epoch, and begin the token chains of all sinks again, in one transaction of the metadata."""
    with handle.metadata.write() as connection:
        repository = StateRepository(connection)
        facts = repository.get()
        assert facts is not None
        repository.set(epoch=facts.epoch + 1)
        SinkRepository(connection).forget_tokens()
    log.warning(
        "the store %s is now in epoch %d, and new to every receiver", handle.files.path, facts.epoch + 1
    )
    return Rekeyed(facts.store_id, facts.store_id, facts.epoch + 1)


def new_store_id(handle: Handle) -> Rekeyed:
    """Give the store a new id, in both databases, and begin the token chains of all sinks again.

    Waits for the columns. Raises `StoreBusy` and `EngineMissing` with nothing changed. After any other error the change
    may be complete or not begun, or the column file gets the id when it is opened next.
    """
    store_id = uuid4().hex
    with handle.columns.alone("changing the store's id") as opened:
        try:
            with handle.metadata.write() as connection:
                repository = StateRepository(connection)
                facts = repository.get()
                assert facts is not None
                repository.set(store_id=store_id, former_store_id=facts.store_id)
                SinkRepository(connection).forget_tokens()
            with opened.flush_connection.begin():
                ColumnsStateRepository(opened.flush_connection).set_store_id(store_id)
        finally:
            handle.columns.drop()  # what is known of the file has the old id
    handle.checkpoint()
    with handle.metadata.write() as connection:
        StateRepository(connection).set(former_store_id=None)
    handle.metadata.note_acknowledged()
    log.warning("the id of the store %s was %s, and is now %s", handle.files.path, facts.store_id, store_id)
    return Rekeyed(store_id, facts.store_id, facts.epoch)
