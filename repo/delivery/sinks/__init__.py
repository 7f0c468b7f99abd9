"""Sinks: what a destination has to do, and one module for each kind of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from repo.delivery.batch import DeliveryBatch

__all__ = ["Receipt", "Sink"]


@dataclass(frozen=True, slots=True)
class Receipt:
    """A receiver's word that it keeps a batch durably: the batch's own key, and whether it had it before."""

    key: str
    repeat: bool = False


class Sink(Protocol):
    """A destination of batches. One thread uses it.

    `name` names the cursor in the store: another name begins at the first point again.
    """

    @property
    def name(self) -> str:
        """The name under which the store keeps this destination's cursor."""
        ...

    def send(self, batch: DeliveryBatch) -> Receipt:
        """Send one batch and return the receiver's receipt for it.

        Raises `SinkUnreachable` when nothing is known of the batch's fate (it is sent again, with the same
        key), and `SinkRefused` when the receiver answered that it will not take it.
        """
        ...
