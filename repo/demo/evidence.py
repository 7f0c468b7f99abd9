"""The evidence of the demo: what the stores of both sides hold. Judges nothing."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path
from typing import Any, NamedTuple

from repo.demo.receiver import DISPUTED
from repo.demo.sender import SINK
from repo.demo.site import Reading, ticks
from repo.settings import Settings
from repo.store.status import Status
from repo.store.store import Store

__all__ = ["Received", "Stored", "attempt", "compare", "opened", "read_receiver", "read_store"]

WELLS = "WELL-*"


class Stored(NamedTuple):
    """What the store of the site holds at the end."""

    status: Status
    points: int
    sha256: str
    """Of the points of the wells."""
    wire_bytes: int
    """The bytes that were sent to the receiver."""
    quarantined: int
    """The points that the receiver refused."""


class Received(NamedTuple):
    """What the store of the receiver holds at the end."""

    bytes: int
    """The size of its files."""
    points: int
    sha256: str
    disputed: int
    """How many of the points that it should have refused it has."""


def opened(path: Path, *, create: bool = False) -> Store:
    """Open a store of the demo, without a background thread."""
    return Store(path, Settings.load(path, background=False), create=create)


def attempt(path: Path) -> tuple[int, int]:
    """Return the range of seqs that the store has recorded as on its way; (0, 0) if there is none."""
    with opened(path) as store:
        sent = store.sinks.show(SINK).attempt
        return (0, 0) if sent is None else (sent.first_seq, sent.last_seq)


def read_store(path: Path) -> Stored:
    """Checkpoint the store of the site, and return what it holds."""
    with opened(path) as store:
        store.checkpoint()
        count, sha256 = _checksum(store)
        sent_bytes = store.sinks.show(SINK).sent_bytes
        return Stored(store.status(), count, sha256, sent_bytes, len(store.quarantine.list(SINK)))


def read_receiver(path: Path) -> Received:
    """Checkpoint the store of the receiver, and return what it holds."""
    with opened(path) as store:
        store.checkpoint()
        count, sha256 = _checksum(store)
        disputed = sum(isinstance(row["value"], str) for row in store.points.range(*DISPUTED))
        return Received(store.status().bytes_total, count, sha256, disputed)


def compare(path: Path, seed: int, end: int) -> tuple[int, int]:
    """Compare the receiver's points with the first ticks of the site; return how many are missing, and different."""
    missing = different = 0
    with opened(path) as store:
        arrived = itertools.groupby(store.points.range(WELLS, None), lambda point: int(point["timestamp_us"]))
        at_us, group = next(arrived, (None, iter(())))
        for readings in itertools.islice(ticks(seed), end):
            expected = {_identity(reading): _content(reading) for reading in readings}
            if expected and at_us == next(iter(expected))[2]:
                for point in group:
                    identity = point["sensor_id"], point["metric_name"], point["timestamp_us"]
                    content = point["value"], point["quality"], point["metadata"]
                    different += expected.pop(identity, None) != content
                at_us, group = next(arrived, (None, iter(())))
            missing += len(expected)
    return missing, different


def _checksum(store: Store) -> tuple[int, str]:
    """Return the number of points of the wells, and the SHA-256 of their content in order of time and names."""
    digest, count = hashlib.sha256(), 0
    for page in store.points.range(WELLS, None).tuples(20_000):
        count += len(page)
        digest.update(repr([row[:7] for row in page]).encode())
    return count, digest.hexdigest()


def _identity(reading: Reading) -> tuple[str, str, int]:
    return reading[0], reading[1], round(reading[2] * 1e6)


def _content(reading: Reading) -> tuple[Any, ...]:
    value = reading[3]
    return None if value != value else value, reading[4], reading[5]
