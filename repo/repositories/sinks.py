"""Sinks: where destinations are, what they have confirmed, and how their deliveries go.

On a connection that the caller provides. Never commits.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from math import exp
from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection, case, delete, exists, func, insert, select, update

from repo.cursors import Cursor
from repo.inputs.rates import Rate
from repo.models import AttemptRow, SinkCursor, SinkRange
from repo.queries.selection import Selection
from repo.repositories.attempts import Attempt, AttemptRepository

__all__ = [
    "KEPT_STATES",
    "RATE_SPAN_S",
    "Lanes",
    "MaxBacklog",
    "NewSink",
    "SinkInfo",
    "SinkRepository",
    "SinkState",
    "Totals",
]

SinkState = Literal["running", "paused", "failing", "halted", "forked", "stopped"]
"""`running` also if no forwarder runs; `failing`: unreachable; `halted`: the destination rejects everything for now;
`forked`: see `StoreForked`; `stopped`: an unexpected error."""

KEPT_STATES = ("paused", "forked")
"""The states that only an operator can end."""

RATE_SPAN_S = 30.0
"""Over how many seconds `points_per_s` is averaged: older batches count less and less."""


class Lanes(NamedTuple):
    """How a sink sends its backlog."""

    two: bool = True
    """Whether the newest readings go before a long backlog, which is sent beside them."""
    share: float = 0.2
    """The share of the bytes that the backlog gets."""
    order: Literal["oldest", "newest"] = "oldest"
    """Which end of the backlog is sent first."""


class MaxBacklog(NamedTuple):
    """The limits of a hold: what is older, or more, than this is not kept for the sink. None is no limit."""

    age_us: int | None = None
    points: int | None = None
    bytes: int | None = None


class Totals(NamedTuple):
    """What a confirmed batch adds to the counts of a sink."""

    points: int = 0
    records: int = 0
    bytes: int = 0
    repeats: int = 0
    """1 if the destination had the batch already."""


@dataclass(frozen=True, slots=True)
class NewSink:
    """A sink to add: its name and its settings."""

    name: str
    kind: str
    """http, holdfast, postgresql, mqtt, kafka, folder, or own for a sink that a program implements."""
    target: str
    """The URL; "" for an own sink."""
    options: dict[str, Any]
    """Secrets are the names of environment variables or files."""
    filter: Selection | None
    """Which series it gets; None for all."""
    records: bool
    """Whether it gets the pending records."""
    hold: bool
    """Whether cleanup keeps what it has not confirmed."""
    max_backlog: MaxBacklog | None
    rate: Rate | None
    lanes: Lanes


@dataclass(frozen=True, slots=True)
class SinkInfo(NewSink):
    """A sink, as of one moment. Times are µs since 1970 UTC."""

    state: SinkState
    since_us: int | None
    """Since when it is in this state, unless it is running."""
    last_error: str | None
    failures: int
    """Failed attempts since the last confirmed batch."""
    token: str | None = field(repr=False)
    confirmed_seq: int
    """Every seq up to here is confirmed."""
    ranges: tuple[tuple[int, int], ...]
    """Confirmed ranges above it."""
    behind: int
    """How many seqs are not confirmed. Seqs count operations and points, and points of other series, too."""
    attempt: Attempt | None
    sent_points: int
    sent_records: int
    sent_bytes: int
    repeats: int
    refused: int
    points_per_s: float
    """Confirmed points per second, averaged over about half a minute."""
    confirmed_us: int | None
    """When it last confirmed a batch."""
    created_us: int
    updated_us: int

    @property
    def cursor(self) -> Cursor:
        """What it has confirmed."""
        return Cursor.of(self.confirmed_seq, self.ranges)

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values; the documented form of `holdfast --json sinks show`."""
        plain = {name: value for name, value in asdict(self).items() if name != "token"}
        plain["filter"] = None if self.filter is None else _plain_filter(self.filter)
        plain["rate"] = None if self.rate is None else {**self.rate._asdict(), "text": str(self.rate)}
        for name in ("max_backlog", "lanes", "attempt"):
            value = getattr(self, name)
            plain[name] = None if value is None else value._asdict()
        if self.attempt is not None:
            del plain["attempt"]["token"]
        return plain


class _Row(NamedTuple):
    """The columns of a sink, in the order in which they are read."""

    name: str
    kind: str
    target: str
    options: str
    filter: str | None
    records: int
    hold: int
    max_backlog: str | None
    rate: str | None
    lanes: str
    state: SinkState
    since_us: int | None
    last_error: str | None
    failures: int
    token: str | None
    confirmed_seq: int
    sent_points: int
    sent_records: int
    sent_bytes: int
    repeats: int
    refused: int
    points_per_s: float | None
    confirmed_us: int | None
    created_us: int
    updated_us: int


# SQL text for the driver: a delivery runs these for each batch, and building them takes longer than running them.
_ALL = f"SELECT {', '.join(_Row._fields)} FROM sinks"
_RANGES = "SELECT first_seq, last_seq FROM sink_ranges WHERE sink = ? ORDER BY first_seq"
_SENT = """
    UPDATE sinks SET token = coalesce(?, token), sent_points = sent_points + ?, sent_records = sent_records + ?,
        sent_bytes = sent_bytes + ?, repeats = repeats + ?, refused = refused + ?, points_per_s = ?, confirmed_us = ?
    WHERE name = ?
"""
_RUNNING = f"""
    UPDATE sinks SET
        state = CASE WHEN state IN {KEPT_STATES} THEN state ELSE 'running' END,
        since_us = CASE WHEN state IN {KEPT_STATES} THEN since_us END,
        last_error = CASE WHEN state IN {KEPT_STATES} THEN last_error END,
        failures = 0
    WHERE name = ? AND (state <> 'running' OR failures <> 0)
"""


class SinkRepository:
    """Adds and reads sinks, moves their cursors, and records how their deliveries go.

    What a delivery does for each batch goes through the driver: the caller has begun a transaction then.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._driver: Any = connection.connection.driver_connection

    # --- sinks -----------------------------------------------------------------------------------------

    def add(self, sink: NewSink, confirmed_seq: int, now_us: int) -> None:
        """Add a sink that does not exist."""
        self._connection.execute(
            insert(SinkCursor).values(
                name=sink.name,
                confirmed_seq=confirmed_seq,
                created_us=now_us,
                updated_us=now_us,
                kind=sink.kind,
                target=sink.target,
                **_settings({setting.name: getattr(sink, setting.name) for setting in fields(NewSink)}),
            )
        )

    def change(self, name: str, changes: dict[str, Any], now_us: int) -> None:
        """Change some of `options`, `filter`, `records`, `hold`, `max_backlog`, `rate` and `lanes`."""
        self._set(name, **_settings(changes), updated_us=now_us)

    def remove(self, name: str) -> None:
        """Remove a sink, its ranges and its attempt."""
        self._connection.execute(delete(SinkCursor).where(SinkCursor.name == name))
        self._connection.execute(delete(SinkRange).where(SinkRange.sink == name))
        AttemptRepository(self._connection).remove(name)

    def list(self, now_us: int | None = None, last_seq: int = 0) -> list[SinkInfo]:
        """Return all sinks in order of their names; `last_seq` is the end of the journal."""
        ranges: dict[str, list[tuple[int, int]]] = {}
        for sink, first, last in self._connection.execute(
            select(SinkRange.sink, SinkRange.first_seq, SinkRange.last_seq).order_by(SinkRange.first_seq)
        ):
            ranges.setdefault(sink, []).append((first, last))
        attempts = AttemptRepository(self._connection).all()
        return [
            _info(row, tuple(ranges.get(row[0], ())), attempts.get(row[0]), now_us, last_seq)
            for row in map(_Row._make, self._driver.execute(f"{_ALL} ORDER BY name"))
        ]

    def get(self, name: str, now_us: int | None = None, last_seq: int = 0) -> SinkInfo | None:
        """Return one sink, if it exists."""
        row = self._driver.execute(f"{_ALL} WHERE name = ?", (name,)).fetchone()
        if row is None:
            return None
        attempt = AttemptRepository(self._connection).get(name)
        return _info(_Row(*row), self._ranges(name), attempt, now_us, last_seq)

    def created_us(self, name: str) -> int | None:
        """Return when a sink was added; None for an unknown one."""
        row = self._driver.execute("SELECT created_us FROM sinks WHERE name = ?", (name,)).fetchone()
        return None if row is None else int(row[0])

    def exist(self) -> bool:
        """Return whether there is any sink."""
        return bool(self._connection.execute(select(exists().select_from(SinkCursor))).scalar_one())

    def highest(self) -> int:
        """Return the highest seq that any sink was sent; 0 if there is none."""
        [found] = self._driver.execute(
            "SELECT max(coalesce((SELECT max(confirmed_seq) FROM sinks), 0),"
            " coalesce((SELECT max(last_seq) FROM sink_ranges), 0))"
        ).fetchone()
        sent = AttemptRepository(self._connection).all().values()
        return max(int(found), *(attempt.last_seq for attempt in sent if not attempt.is_damaged), 0)

    # --- cursors ---------------------------------------------------------------------------------------

    def cursor(self, name: str) -> Cursor | None:
        """Return what a sink has confirmed; None for an unknown sink."""
        row = self._driver.execute("SELECT confirmed_seq FROM sinks WHERE name = ?", (name,)).fetchone()
        return None if row is None else Cursor.of(row[0], self._ranges(name))

    def move(self, name: str, cursor: Cursor, now_us: int) -> None:
        """Set what a sink has confirmed."""
        before, after = set(self._ranges(name)), set(cursor.ranges)
        if gone := before - after:
            self._driver.executemany(
                "DELETE FROM sink_ranges WHERE sink = ? AND first_seq = ?",
                [(name, first) for first, _ in gone],
            )
        if added := sorted(after - before):
            self._driver.executemany(
                "INSERT INTO sink_ranges VALUES (?, ?, ?)", [(name, *span) for span in added]
            )
        self._driver.execute(
            "UPDATE sinks SET confirmed_seq = ?, updated_us = ? WHERE name = ?", (cursor.low, now_us, name)
        )

    def confirm(self, name: str, seq: int, now_us: int) -> bool:
        """Confirm all seqs up to `seq`, and end a failure; returns False if the sink is unknown."""
        cursor = self.cursor(name)
        if cursor is None:
            return False
        if seq > cursor.low:
            cursor = Cursor.of(max(seq, cursor.low), cursor.ranges)
        self.move(name, cursor, now_us)
        self.running(name)
        return True

    def _ranges(self, name: str) -> tuple[tuple[int, int], ...]:
        return tuple(self._driver.execute(_RANGES, (name,)))

    # --- deliveries ------------------------------------------------------------------------------------

    def sent(self, name: str, token: str | None, totals: Totals, refused: int, now_us: int) -> None:
        """Count a confirmed batch, whose token the destination now holds; None if it may still hold the previous
        one."""
        rate, before_us = self._driver.execute(
            "SELECT points_per_s, confirmed_us FROM sinks WHERE name = ?", (name,)
        ).fetchone()
        rate = _faded(rate, before_us, now_us) + totals.points / RATE_SPAN_S
        self._driver.execute(_SENT, (token, *totals, refused, rate, now_us, name))

    def running(self, name: str) -> None:
        """End a failure; a state that only an operator can end stays."""
        self._driver.execute(_RUNNING, (name,))

    def failed(self, name: str, state: SinkState, reason: str, now_us: int) -> None:
        """Record a failed attempt; an unchanged state keeps its start time, and a paused sink stays paused."""
        table = SinkCursor
        same = table.state.in_((state, "paused"))
        self._connection.execute(
            update(table)
            .where(table.name == name)
            .values(
                state=case((table.state == "paused", table.state), else_=state),
                last_error=reason,
                since_us=case((same, func.coalesce(table.since_us, now_us)), else_=now_us),
                failures=table.failures + 1,
            )
        )

    def set_state(self, name: str, state: SinkState, now_us: int) -> None:
        """Pause a sink, or let it run."""
        self._set(
            name, state=state, since_us=None if state == "running" else now_us, failures=0, last_error=None
        )

    def forget_tokens(self) -> None:
        """Begin the token chains of all sinks again, after the store got another id or epoch; ends their forks."""
        self._connection.execute(delete(AttemptRow))
        self._connection.execute(update(SinkCursor).values(token=None))
        forked = update(SinkCursor).where(SinkCursor.state == "forked")
        self._connection.execute(forked.values(state="running", since_us=None, last_error=None, failures=0))

    def _set(self, name: str, **values: Any) -> None:
        self._connection.execute(update(SinkCursor).where(SinkCursor.name == name).values(**values))


def _plain_filter(chosen: Selection) -> dict[str, Any]:
    """Return the series that a filter selects as plain values."""
    plain = chosen.as_dict()
    return {name: plain[name] for name in ("sensor_id", "metric_name")}


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    """Return the columns of the settings of a sink."""
    columns: dict[str, Any] = {}
    for name, value in given.items():
        match name:
            case "options":
                columns[name] = json.dumps(value, ensure_ascii=False)
            case "filter":
                columns[name] = (
                    None if value is None else json.dumps(_plain_filter(value), ensure_ascii=False)
                )
            case "records" | "hold":
                columns[name] = int(value)
            case "max_backlog":
                columns[name] = None if value is None else json.dumps(value._asdict())
            case "rate":
                columns[name] = None if value is None else value.to_json()
            case "lanes":
                columns[name] = json.dumps(value._asdict())
    return columns


def _info(
    row: _Row,
    ranges: tuple[tuple[int, int], ...],
    attempt: Attempt | None,
    now_us: int | None,
    last_seq: int,
) -> SinkInfo:
    return SinkInfo(
        name=row.name,
        kind=row.kind,
        target=row.target,
        options=json.loads(row.options),
        filter=None if row.filter is None else _filter(json.loads(row.filter)),
        records=bool(row.records),
        hold=bool(row.hold),
        max_backlog=None if row.max_backlog is None else MaxBacklog(**json.loads(row.max_backlog)),
        rate=None if row.rate is None else Rate.from_json(row.rate),
        lanes=Lanes(**json.loads(row.lanes)),
        state=row.state,
        since_us=row.since_us,
        last_error=row.last_error,
        failures=row.failures,
        token=row.token,
        confirmed_seq=row.confirmed_seq,
        ranges=ranges,
        behind=Cursor.of(row.confirmed_seq, ranges).behind(last_seq),
        attempt=attempt,
        sent_points=row.sent_points,
        sent_records=row.sent_records,
        sent_bytes=row.sent_bytes,
        repeats=row.repeats,
        refused=row.refused,
        points_per_s=_faded(row.points_per_s, row.confirmed_us, now_us),
        confirmed_us=row.confirmed_us,
        created_us=row.created_us,
        updated_us=row.updated_us,
    )


def _filter(names: dict[str, Any]) -> Selection:
    return Selection.of(_listed(names["sensor_id"]), _listed(names["metric_name"]))


def _listed(names: str | Iterable[str] | None) -> Any:
    return names if names is None or isinstance(names, str) else tuple(names)


def _faded(rate: float | None, since_us: int | None, now_us: int | None) -> float:
    """Return a rate after a time without new batches: the longer ago a batch was, the less it counts."""
    if rate is None or since_us is None:
        return 0.0
    if now_us is None:
        return rate
    return rate * exp(-max(0, now_us - since_us) / 1e6 / RATE_SPAN_S)
