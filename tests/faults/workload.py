"""The workload: what the writers of a child do, and the states that are valid afterwards. Never opens a store.

Each writer owns its series and its records, and does one operation after the other. An operation depends only on
(seed, writer, index), so a parent that knows which ones were acknowledged knows every point that must be stored: the
state after them or, because an operation that was not acknowledged may have been committed, the state after one of the
few operations that may have been running.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from random import Random
from typing import Any, NamedTuple

MOST_UNDER_WAY = 3
"""Operations of one writer that may run at once: a burst of `submit`."""

_EPOCH_US = 1_700_000_000_000_000
_SLOT_US = 97_000_000
_SLOTS = 400
_STATES = ("OPEN", "CLOSED", "FAULT: valve", "läuft")

Identity = tuple[str, str, int]
"""sensor_id, metric_name, timestamp_us."""


class Content(NamedTuple):
    """The fields of a point that are not part of its identity."""

    value: float | None
    text: str | None
    quality: int
    metadata: str | None


class Insert(NamedTuple):
    """Points to write, in order."""

    rows: tuple[tuple[Identity, Content], ...]


class Delete(NamedTuple):
    """Points to delete; names exact or globs, times in µs."""

    sensor_id: str
    metric_name: str | None
    start_us: int | None
    end_us: int | None

    def covers(self, identity: Identity) -> bool:
        """Return whether a point is deleted."""
        sensor, metric, at = identity
        return (
            fnmatchcase(sensor, self.sensor_id)
            and (self.metric_name is None or fnmatchcase(metric, self.metric_name))
            and (self.start_us is None or at >= self.start_us)
            and (self.end_us is None or at < self.end_us)
        )


class AddRecord(NamedTuple):
    """A record with two readings, which are points of the writer's well."""

    record_id: str
    source: str
    data: dict[str, Any]
    timestamp_us: int


class MarkSent(NamedTuple):
    """Records that were delivered."""

    record_ids: tuple[str, ...]


Part = Insert | Delete | AddRecord | MarkSent


class Operation(NamedTuple):
    """One call that is acknowledged as a whole: `insert`, `many`, `submit`, `table`, `delete`, `record`, `sent`,
    `together`."""

    kind: str
    parts: tuple[Part, ...]


class Drop(NamedTuple):
    """The expected ledger entry of one delete."""

    detail: str
    dropped: int
    first_us: int
    last_us: int


@dataclass(slots=True)
class State:
    """The expected state of one writer."""

    points: dict[Identity, Content] = field(default_factory=dict)
    records: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    drops: list[Drop] = field(default_factory=list)

    def copy(self) -> State:
        """Return an independent copy; contents are never changed in place."""
        return State(dict(self.points), dict(self.records), list(self.drops))

    def apply(self, operation: Operation) -> None:
        """Apply the operation to this state as to a store."""
        for part in operation.parts:
            match part:
                case Insert(rows):
                    self.points.update(rows)
                case Delete():
                    self._delete(part)
                case AddRecord(record_id, source, data, _):
                    self.records[record_id] = (source, data)
                    self.points.update(_readings(data))
                case MarkSent(record_ids):
                    for record_id in record_ids:
                        self.records.pop(record_id, None)

    def _delete(self, part: Delete) -> None:
        doomed = [identity for identity in self.points if part.covers(identity)]
        for identity in doomed:
            del self.points[identity]
        if doomed:
            times = [at for _, _, at in doomed]
            self.drops.append(Drop(json.dumps(list(part)), len(doomed), min(times), max(times)))


def owner_of(name: str) -> int:
    """Return the writer that owns a sensor or a record."""
    return int(name.partition("-")[0].lstrip("abcdefghijklmnopqrstuvwxyz"))


def operation(seed: str, writer: int, index: int) -> Operation:
    """Return the operation of a writer at this index."""
    rng = Random(f"{seed}/{writer}/{index}")
    kind = rng.choices(
        ("insert", "many", "big", "submit", "table", "delete", "record", "sent", "together"),
        (30, 25, 5, 12, 8, 8, 12, 4, 8),
    )[0]
    match kind:
        case "insert":
            return Operation("insert", (Insert((_row(rng, writer),)),))
        case "many" | "submit":
            return Operation(kind, (_rows(rng, writer, rng.randint(5, 120)),))
        case "big":
            return Operation("many", (_rows(rng, writer, rng.randint(800, 3000)),))
        case "table":
            return Operation("table", (_rows(rng, writer, rng.randint(1, 3000)),))
        case "delete":
            return Operation("delete", (_delete(rng, writer),))
        case "record":
            return Operation("record", (_record(rng, writer, f"rec{writer}-{index}"),))
        case "sent":
            ids = {f"rec{writer}-{rng.randint(max(0, index - 60), index)}" for _ in range(20)}
            return Operation("sent", (MarkSent(tuple(sorted(ids))),))
    parts: list[Part] = [_rows(rng, writer, rng.randint(1, 30)), _delete(rng, writer)]
    parts += [_record(rng, writer, f"rec{writer}-{index}"), _rows(rng, writer, rng.randint(1, 30))]
    return Operation("together", tuple(parts))


def may_stand(state: State, seed: str, writer: int, next_index: int) -> Iterator[tuple[int, State]]:
    """Yield the states that are valid if everything before `next_index` was acknowledged and nothing after it."""
    state = state.copy()
    yield next_index, state
    for index in range(next_index, next_index + MOST_UNDER_WAY):
        state = state.copy()
        state.apply(operation(seed, writer, index))
        yield index + 1, state


def _identity(rng: Random, writer: int) -> Identity:
    # Late and repeated times are usual here: most rows overwrite earlier ones.
    metric = rng.choices(("pressure", "flow", "state"), (5, 4, 1))[0]
    return f"site{writer}", metric, _EPOCH_US + rng.randrange(_SLOTS) * _SLOT_US + writer


def _row(rng: Random, writer: int) -> tuple[Identity, Content]:
    identity = _identity(rng, writer)
    quality = rng.choice((100, 100, 100, 0, 50))
    metadata = f'{{"n":{rng.randint(0, 9)}}}' if rng.random() < 0.1 else None
    if identity[1] == "state":
        return identity, Content(None, rng.choice(_STATES), quality, metadata)
    value = None if rng.random() < 0.05 else round(rng.gauss(100, 20), 1)
    return identity, Content(value, None, quality, metadata)


def _rows(rng: Random, writer: int, count: int) -> Insert:
    return Insert(tuple(_row(rng, writer) for _ in range(count)))


def _delete(rng: Random, writer: int) -> Delete:
    start = rng.randrange(_SLOTS)
    end = start + rng.randint(1, 80)
    sensor = rng.choice((f"site{writer}", f"site{writer}", f"s?te{writer}", f"well{writer}"))
    metric = rng.choice((None, "pressure", "flow", "p*", "state"))
    start_us, end_us = (_EPOCH_US + slot * _SLOT_US for slot in (start, end))
    sides = rng.random()
    return Delete(sensor, metric, None if sides < 0.05 else start_us, None if sides > 0.95 else end_us)


def _record(rng: Random, writer: int, record_id: str) -> AddRecord:
    timestamp_us = _EPOCH_US + rng.randrange(_SLOTS) * _SLOT_US
    data = {
        "sensor_id": f"well{writer}",
        "pressure": round(rng.gauss(200, 5), 2),
        "temperature": round(rng.gauss(60, 5), 2),
        "timestamp": timestamp_us // 1_000_000,
        "note": "ü" * rng.randint(0, 40),
    }
    return AddRecord(record_id, f"gateway{writer}", data, timestamp_us)


def _readings(data: dict[str, Any]) -> Iterator[tuple[Identity, Content]]:
    for metric in ("pressure", "temperature"):
        at = data["timestamp"] * 1_000_000
        yield (data["sensor_id"], metric, at), Content(float(data[metric]), None, 100, None)
