"""Sinks: the protocol of a destination, and one module per kind of destination."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from repo.delivery.batch import DeliveryBatch

__all__ = ["Receipt", "Sink"]


@dataclass(frozen=True, slots=True)
class Receipt:
    """A receiver's confirmation that a batch is durable: the key of the batch, and whether it is a repeat."""

    key: str
    repeat: bool = False


class Sink(Protocol):
    """A destination of batches. One thread uses it.

    `name` identifies the cursor in the store. A new name starts at the first point.
    """

    @property
    def name(self) -> str:
        """The name under which the store keeps this destination's cursor."""
        ...

    def send(self, batch: DeliveryBatch) -> Receipt:
        """Send one batch and return the receiver's receipt for it.

        Raises `SinkUnreachable` if it is unknown whether the receiver has the batch, which is then sent again with the
        same key, and `SinkRefused` if the receiver rejects it.
        """
        ...
