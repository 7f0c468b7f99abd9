"""Delivery batches: their canonical content, checksum and idempotency key. Never reads or sends.

The content, which is also the body of a request: UTF-8, one line of JSON per point, in ascending order of seq. Each
line ends with a line feed, has no spaces, and has its keys in this order:

    {"seq":7,"sensor_id":"W-1","metric_name":"flow","timestamp_us":0,"value":1.5,"quality":100,"metadata":null}

A number has Python's shortest form that reads back as the same double. ±infinity is `±1e999`, which is valid JSON and
parsed as infinity. A text is a JSON string; a missing reading is `null`. Metadata has sorted keys. The checksum is the
SHA-256 of these bytes, so a receiver can verify them before parsing.

The key is `holdfast-1.STORE_ID.FIRST.LAST.COUNT.SHA256`. FIRST and LAST are the range of seqs that the batch covers,
both inclusive. Seqs whose points were overwritten or deleted are in the range, but not in the content.

To get the last value of each point once and in order, a receiver follows two rules:

1. If it knows the key, it returns the receipt again and stores nothing.
2. Otherwise it skips the points with a seq at or below the last LAST that it stored from this store.

The second rule is needed because a killed sender reads its batch again. By then the last, incomplete range may have
grown and points may have been overwritten, so the key differs. Skipping by seq loses nothing, because an overwritten
point is sent again with its new, higher seq.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple, Self

__all__ = ["BatchKey", "DeliveryBatch", "canonical", "checksum", "checksum_of"]

_KEY = re.compile(r"holdfast-1\.([0-9a-f]{32})\.(\d{1,19})\.(\d{1,19})\.(\d{1,19})\.([0-9a-f]{64})", re.ASCII)

_INFINITE = {"inf": "1e999", "-inf": "-1e999"}


class BatchKey(NamedTuple):
    """The parts of an idempotency key."""

    store_id: str
    first_seq: int
    last_seq: int
    points: int
    checksum: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a key; raises `ValueError` if the text is not a key."""
        match = _KEY.fullmatch(text)
        if match is None:
            raise ValueError(
                f"{text[:120]!r} is not a key of the form holdfast-1.STORE_ID.FIRST.LAST.COUNT.SHA256"
            )
        store_id, first, last, count, digest = match.groups()
        return cls(store_id, int(first), int(last), int(count), digest)

    def __str__(self) -> str:
        return f"holdfast-1.{self.store_id}.{self.first_seq}.{self.last_seq}.{self.points}.{self.checksum}"


@dataclass(frozen=True, slots=True)
class DeliveryBatch:
    """The points of one range of seqs, ready to be sent, with the key that identifies the batch."""

    identity: BatchKey
    body: bytes = field(repr=False)

    @classmethod
    def of(cls, store_id: str, first_seq: int, points: Sequence[Mapping[str, Any]]) -> Self:
        """Encode points, which are in ascending order of seq; `first_seq` is the start of the range."""
        body = canonical(points)
        return cls(BatchKey(store_id, first_seq, points[-1]["seq"], len(points), checksum(body)), body)

    @property
    def key(self) -> str:
        """The idempotency key as text."""
        return str(self.identity)

    @property
    def first_seq(self) -> int:
        """The first seq that the batch covers."""
        return self.identity.first_seq

    @property
    def last_seq(self) -> int:
        """The last seq that the batch covers; the cursor moves there after the receipt."""
        return self.identity.last_seq

    def __len__(self) -> int:
        return self.identity.points


def canonical(points: Iterable[Mapping[str, Any]]) -> bytes:
    """Return the canonical content of points as returned by `Store.points.after`."""
    names: dict[tuple[str, str], str] = {}
    lines = []
    for point in points:
        pair = point["sensor_id"], point["metric_name"]
        series = names.get(pair)
        if series is None:
            series = names[pair] = f'"sensor_id":{_json(pair[0])},"metric_name":{_json(pair[1])}'
        quality, metadata = point["quality"], point["metadata"]
        lines.append(
            f'{{"seq":{point["seq"]},{series},"timestamp_us":{point["timestamp_us"]},'
            f'"value":{_value(point["value"])},"quality":{"null" if quality is None else quality},'
            f'"metadata":{"null" if metadata is None else _json(metadata)}}}\n'
        )
    return "".join(lines).encode()


def checksum(content: bytes) -> str:
    """Return the SHA-256 of canonical content, as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def checksum_of(points: Iterable[Mapping[str, Any]]) -> str:
    """Return the checksum of the canonical content of any number of points, in bounded memory."""
    digest, rest = hashlib.sha256(), iter(points)
    while piece := list(islice(rest, 10_000)):
        digest.update(canonical(piece))
    return digest.hexdigest()


def _value(value: float | str | None) -> str:
    if value is None:
        return "null"
    if isinstance(value, str):
        return _json(value)
    number = repr(float(value))
    return _INFINITE.get(number, number)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
