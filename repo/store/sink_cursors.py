"""The cursor of a sink, moved by hand: where a delivery starts, and `skip`, `replay` and `confirm` of `store.sinks`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, func, or_, select

from repo.core.handle import Handle
from repo.cursors import Cursor, Span
from repo.errors import EngineMissing, FlushFailed, InvalidQuery, StoreBusy, StoreFull
from repo.inputs.arguments import LARGEST, check_choice, check_count
from repo.inputs.fields import name_of
from repo.inputs.times import Unfit, bound_us, to_datetime
from repo.models import Point
from repo.queries.selection import Selection
from repo.repositories.attempts import AttemptRepository
from repo.repositories.journal import JournalRepository
from repo.repositories.ledger import LedgerRepository, Loss
from repo.repositories.sinks import SinkInfo, SinkRepository
from repo.repositories.state import StateRepository

__all__ = [
    "Moved",
    "Start",
    "check_sink_name",
    "confirm",
    "known_sink",
    "reading_or_writing",
    "replay",
    "seq_before",
    "skip",
]

Start = float | datetime | str
"""Where a delivery starts: "now", "beginning", or a time."""

_EXACT: Final = ("holdfast", "postgresql", "folder", "own")
"""The kinds whose destination may hold the token of an attempt."""

_c: Any = Point.__table__.c


@dataclass(frozen=True, slots=True)
class Moved:
    """What `skip` or `replay` did to a sink, or would do (dry run)."""

    name: str
    dry_run: bool
    first_seq: int
    """The first seq that the sink gets next."""
    behind_before: int
    behind: int
    """How many seqs are not confirmed, before and after."""
    lost: int | None = 0
    """Points of the replayed time that were dropped before, by the loss ledger; None if some have no number."""
    lost_first_us: int | None = None
    """The time of the first of them, in µs since 1970 UTC."""
    lost_last_us: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values; `holdfast --json sinks skip` and `replay` print it."""
        return asdict(self)


def seq_before(handle: Handle, start: Start | None) -> int | None:
    """Return the seq before the first one that `start` means; None for "now"."""
    if isinstance(start, str):
        if check_choice(start, "start", ("now", "beginning")) == "now":
            return None
        query = select(func.min(Point.seq))
    else:
        query = select(func.min(Point.seq)).where(Point.timestamp_us >= bound_us(start, "start"))
    with handle.reading("finding where a sink starts") as (connection, _):
        first = connection.execute(query).scalar_one()
    if first is None:
        return handle.journal_end()
    return int(first) - 1


def skip(handle: Handle, name: str, to: int | None, *, dry_run: bool) -> Moved:
    """Confirm what a sink has not, and record it as a loss: see `Sinks.skip`."""
    through = None if to is None else check_count(to, "to", -LARGEST)
    with reading_or_writing(handle, dry_run) as connection:
        info = known_sink(handle, connection, name)
        last_seq = JournalRepository(connection).last_seq()
        through = last_seq if through is None else min(through, last_seq)
        gaps = info.cursor.gaps(through)
        moved = info.cursor if not gaps else info.cursor.confirm(gaps[0].first, through)
        if gaps and not dry_run:
            now_us = handle.clock()
            SinkRepository(connection).move(name, moved, now_us)
            if info.attempt is not None and info.kind not in _EXACT and moved.low >= info.attempt.last_seq:
                AttemptRepository(connection).remove(name)
            loss = _skipped(StateRepository(connection), name, gaps[0].first, through, now_us)
            LedgerRepository(connection).add([loss])
    if gaps and not dry_run and (given_up := _count_given_up(handle, gaps, info.filter)) is not None:
        with handle.metadata.write() as connection:
            LedgerRepository(connection).set_count(loss.entry_id, *given_up)
    return Moved(name, dry_run, moved.low + 1, info.behind, moved.behind(last_seq))


def replay(handle: Handle, name: str, start: Start | None, seq: int | None, *, dry_run: bool) -> Moved:
    """Move the cursor of a sink back: see `Sinks.replay`."""
    if (start is None) == (seq is None):
        raise InvalidQuery("say where to begin: either start or seq is needed")
    with handle.metadata.read() as connection:
        known_sink(handle, connection, name)  # before the columns are read
    start_us = None
    if seq is not None:
        before: int | None = check_count(seq, "seq", -LARGEST) - 1
    else:
        before = seq_before(handle, start)
        start_us = None if isinstance(start, str) else bound_us(start, "start")
        if before is None:
            raise InvalidQuery('start = "now": nothing would be sent again; name a time, or "beginning"')
    with reading_or_writing(handle, dry_run) as connection:
        info = known_sink(handle, connection, name)
        last_seq = JournalRepository(connection).last_seq()
        assert before is not None
        ranges = [(first, min(last, before)) for first, last in info.ranges if first <= before]
        moved = Cursor.of(min(info.confirmed_seq, before), ranges)
        if moved == info.cursor and before >= last_seq:
            moment = start if start_us is None else to_datetime(start_us)
            raise InvalidQuery(f"nothing was written since {moment if seq is None else f'seq {seq}'}")
        lost = [] if seq is not None else _lost_since(LedgerRepository(connection), start_us)
        if not dry_run:
            SinkRepository(connection).move(name, moved, handle.clock())
    return Moved(name, dry_run, moved.low + 1, info.behind, moved.behind(last_seq), *_extent(lost))


def confirm(handle: Handle, name: str, first_seq: int, last_seq: int | None, *, dry_run: bool) -> None:
    """Confirm seqs of a sink: see `Sinks.confirm`."""
    check_sink_name(name)
    first_seq = check_count(first_seq, "first_seq", 0 if last_seq is None else -LARGEST)
    last_seq = None if last_seq is None else check_count(last_seq, "last_seq", first_seq)
    with reading_or_writing(handle, dry_run) as connection:
        cursor = known_sink(handle, connection, name).cursor
        through = first_seq if last_seq is None else last_seq
        written = JournalRepository(connection).last_seq()
        if through > written:
            raise InvalidQuery(
                f"seq {through} is not in use yet, the last one is {written}: a point that gets it later would "
                f"never be delivered to {name}; nothing was changed"
            )
        if dry_run:
            return
        sinks, now_us = SinkRepository(connection), handle.clock()
        if last_seq is None:
            sinks.confirm(name, first_seq, now_us)
        else:
            sinks.move(name, cursor.confirm(first_seq, last_seq), now_us)


def known_sink(handle: Handle, connection: Connection, name: str) -> SinkInfo:
    """Return a sink as it is in this transaction; raises `InvalidQuery` if there is none of this name."""
    check_sink_name(name)
    last_seq = JournalRepository(connection).last_seq()
    found = SinkRepository(connection).get(name, handle.clock(), last_seq)
    if found is None:
        raise InvalidQuery(
            f"there is no sink {name!r}; `{handle.files.command('sinks list')}` lists the existing ones"
        )
    return found


def reading_or_writing(handle: Handle, dry_run: bool) -> AbstractContextManager[Connection]:
    """Begin a transaction, which writes unless it is a dry run."""
    return handle.metadata.read() if dry_run else handle.metadata.write()


def check_sink_name(name: object) -> None:
    """Raise `InvalidQuery` for a text that no sink can have as its name."""
    try:
        name_of(name)
    except Unfit as fault:
        raise InvalidQuery(f"the name of a sink {fault}") from fault


def _skipped(state: StateRepository, name: str, first_seq: int, last_seq: int, now_us: int) -> Loss:
    facts = state.get()
    assert facts is not None
    return Loss(
        entry_id=f"{facts.store_id}:skipped:{name}:{first_seq}-{last_seq}:{now_us}",
        what="points",
        reason="skipped",
        detail=json.dumps({"sink": name, "first_seq": first_seq, "last_seq": last_seq}, ensure_ascii=False),
        dropped=None,
        first_us=None,
        last_us=None,
        recorded_us=now_us,
    )


def _lost_since(ledger: LedgerRepository, start_us: int | None) -> list[Loss]:
    """Return the losses of points that may have times at or after a time."""
    return [
        loss
        for loss in ledger.list(None)
        if loss.what == "points"
        and not loss.given_up
        and loss.dropped != 0
        and (start_us is None or loss.last_us is None or loss.last_us >= start_us)
    ]


def _extent(losses: list[Loss]) -> tuple[int | None, int | None, int | None]:
    numbers = [loss.dropped for loss in losses]
    firsts = [loss.first_us for loss in losses if loss.first_us is not None]
    lasts = [loss.last_us for loss in losses if loss.last_us is not None]
    total = None if None in numbers else sum(number or 0 for number in numbers)
    return total, min(firsts, default=None), max(lasts, default=None)


class _GivenUp(NamedTuple):
    """How many points, and their first and last time in µs since 1970 UTC."""

    points: int
    first_us: int | None
    last_us: int | None


def _count_given_up(handle: Handle, gaps: Sequence[Span], chosen: Selection | None) -> _GivenUp | None:
    """Count the points that `skip` gives up, of the filter's series; None if the columns cannot be read now."""
    in_gaps = or_(*(_c.seq.between(*gap) for gap in gaps))
    query = select(
        func.count().label("points"),
        func.min(_c.timestamp_us).label("first_us"),
        func.max(_c.timestamp_us).label("last_us"),
    ).where(in_gaps)
    try:
        with handle.reading("counting what a sink skips") as (connection, known):
            pieces = (chosen or Selection()).pieces(known)
            found = [connection.execute(query.where(piece.where(Point, known))).one() for piece in pieces]
    except (StoreBusy, EngineMissing, FlushFailed, StoreFull):
        return None
    counts = [count for count in found if count.points]
    return _GivenUp(
        sum(count.points for count in counts),
        min((count.first_us for count in counts), default=None),
        max((count.last_us for count in counts), default=None),
    )
