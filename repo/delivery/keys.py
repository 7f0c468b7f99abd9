"""Keys of batches, by which a destination that keeps no position recognizes what it already has. Pure.

A key is `holdfast-2.STORE_ID.EPOCH.FIRST.LAST.COUNT.SHA256`. FIRST and LAST are the range of seqs that the batch
covers, both inclusive; they are 0 for records. COUNT is the number of items, which may be smaller than the
range. SHA256 is the checksum of the content as it was encoded, before any compression.

A batch that is sent again has the same key, unless points of its range were overwritten in between. Then the
range is the same, but COUNT and SHA256 differ.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import NamedTuple, Self

from repo.delivery.protocol import Batch

__all__ = ["BatchKey"]

_KEY = re.compile(
    r"holdfast-2\.([0-9a-f]{32})\.(\d{1,19})\.(-?\d{1,19})\.(-?\d{1,19})\.(\d{1,19})\.([0-9a-f]{64})",
    re.ASCII,
)


class BatchKey(NamedTuple):
    """The parts of a key."""

    store_id: str
    epoch: int
    first_seq: int
    last_seq: int
    items: int
    checksum: str

    @classmethod
    def of(cls, batch: Batch, content: bytes) -> Self:
        """Return the key of a batch with this encoded content."""
        return cls(
            batch.store_id,
            batch.epoch,
            batch.first_seq,
            batch.last_seq,
            len(batch),
            sha256(content).hexdigest(),
        )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a key; raises `ValueError` if the text is not a key."""
        match = _KEY.fullmatch(text)
        if match is None:
            raise ValueError(
                f"{text[:120]!r} is not a key of the form holdfast-2.STORE_ID.EPOCH.FIRST.LAST.COUNT.SHA256"
            )
        store_id, *numbers, digest = match.groups()
        epoch, first, last, items = map(int, numbers)
        return cls(store_id, epoch, first, last, items, digest)

    def __str__(self) -> str:
        return "holdfast-2." + ".".join(map(str, self))
