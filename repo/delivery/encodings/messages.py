"""Messages: the items of a batch as payloads for brokers, one per item or many of one series together. Pure.

With `json`, each item is a message. With `ndjson` and `influx`, the items of one series that follow each other in the
batch share messages of up to 120,000 bytes, which most brokers accept. The messages of a series keep its order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from repo.delivery.encodings import ndjson
from repo.delivery.encodings.encoded import Encoded, Names, plain
from repo.delivery.encodings.line_protocol import LineProtocol
from repo.delivery.protocol import Batch, Item, Lane

__all__ = ["Message", "Messages", "Packer", "labels_of"]

_MOST_BYTES = 120_000


Message = tuple[str, bytes, Sequence[int]]
"""One message: its topic or key, its payload, and its items as rows of the batch. A plain tuple, because there are
many."""


@dataclass(frozen=True, slots=True)
class Messages:
    """The messages of a batch, and the items that the format cannot express."""

    messages: Sequence[Message]
    refused: tuple[Item, ...]

    @property
    def size_bytes(self) -> int:
        """The bytes of all topics or keys and payloads."""
        return sum(len(place) + len(payload) for place, payload, _ in self.messages)


def labels_of(batch: Batch) -> dict[str, str]:
    """Return the metadata of each message of a batch: the range that it belongs to, and the lane."""
    return {
        "holdfast-batch": f"{batch.store_id}.{batch.epoch}.{batch.first_seq}.{batch.last_seq}",
        "holdfast-lane": str(batch.lane),
    }


class Packer:
    """Makes the messages of batches. `point_place` and `record_place` name the topic or key of an item. One thread."""

    def __init__(
        self,
        options: Mapping[str, Any],
        point_place: Callable[[str, str], str],
        record_place: Callable[[str], str],
    ) -> None:
        self._format: str = options["format"]
        self._places = Names(point_place)
        self._record_place = record_place
        self._lines = (
            LineProtocol(measurement=options["measurement"], nanoseconds=options["precision"] == "ns")
            if self._format == "influx"
            else None
        )

    @property
    def takes_records(self) -> bool:
        """Whether the format can express records."""
        return self._lines is None

    def messages(self, batch: Batch) -> Messages:
        """Return the messages of a batch, in its order."""
        if batch.lane is Lane.RECORDS:
            encoded = ndjson.encode(batch)
            places = [self._record_place(record.source) for record in batch.records]
        else:
            encoded = self._lines.encode(batch.columns) if self._lines else ndjson.encode(batch)
            places = self._places.of(plain(batch.columns[0]), plain(batch.columns[1]))
            if encoded.rows is not None:
                places = [places[row] for row in encoded.rows]
        made: Sequence[Message]
        if self._format == "json":
            rows = zip(range(len(encoded.texts)))
            made = list(zip(places, map(str.encode, encoded.texts), rows, strict=True))
        else:
            made = list(_gathered(places, encoded))
        return Messages(made, encoded.refused)


def _gathered(places: Sequence[str], encoded: Encoded) -> Iterator[Message]:
    """Yield the texts of each place together, in messages of bounded size."""
    by_place: dict[str, list[int]] = {}
    for at, place in enumerate(places):
        by_place.setdefault(place, []).append(at)
    for place, positions in by_place.items():
        texts: list[bytes] = []
        rows: list[int] = []
        size = 0
        for at in positions:
            text = encoded.texts[at].encode()
            if texts and size + len(text) > _MOST_BYTES:
                yield place, b"\n".join(texts), rows
                texts, rows, size = [], [], 0
            texts.append(text)
            rows.append(encoded.row(at))
            size += len(text) + 1
        yield place, b"\n".join(texts), rows
