"""`store.sinks`: the destinations of a store, what each gets, and how far each has confirmed delivery."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, func, select

from repo.arguments import LARGEST, check_choice, check_count, check_flag
from repo.core.handle import Handle
from repo.cursors import Cursor
from repo.errors import InvalidQuery
from repo.fields import name_of
from repo.models import Point
from repo.queries.selection import Selection, check_selection
from repo.repositories.attempts import AttemptRepository
from repo.repositories.journal import JournalRepository
from repo.repositories.ledger import LedgerRepository, Loss
from repo.repositories.quarantine import QuarantineRepository
from repo.repositories.series import SeriesRepository
from repo.repositories.sinks import (
    NewSink,
    SinkInfo,
    SinkRepository,
)
from repo.repositories.state import StateRepository
from repo.store.claims import forget_claim
from repo.store.deliveries import Delivery, Identity
from repo.store.given_up import count_given_up
from repo.store.quarantine import drop_losses
from repo.store.sink_options import check_options
from repo.store.sink_settings import check_filter, check_lanes, check_max_backlog, check_rate
from repo.store.targets import Target, parse_target
from repo.times import Unfit, bound_us, to_datetime
from repo.upkeep.rekey import Rekeyed, new_epoch, new_store_id

__all__ = ["Moved", "Rekeyed", "Removed", "Sinks"]

log = logging.getLogger("holdfast.delivery")

Start = float | datetime | str

_EXACT: Final = ("holdfast", "postgresql", "folder", "own")
"""The kinds whose destination may hold the token of an attempt."""

_KEPT: Final = object()
"""The default of `change`: the setting stays as it is."""


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


@dataclass(frozen=True, slots=True)
class Removed:
    """A sink that was removed, or would be (dry run)."""

    name: str
    dry_run: bool
    behind: int
    """How many seqs it had not confirmed; they stay in the store."""
    quarantined_points: int
    """Points that it refused; they stay in the store."""
    quarantined_records: int
    """Records that it refused; they are dropped, and the loss ledger counts them."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values; `holdfast --json sinks remove` prints it."""
        return asdict(self)


class Sinks:
    """`store.sinks`. Uses SQLite only, so it never waits for the columns, unless a method says so. Thread-safe.

    Every method raises `InvalidQuery` for an unknown sink.
    """

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    # --- sinks -----------------------------------------------------------------------------------------

    def add(
        self,
        name: str,
        target: str,
        /,
        *,
        start: Start,
        filter: Mapping[str, Any] | None = None,  # noqa: A002
        records: bool = False,
        hold: bool = True,
        max_backlog: Any = None,
        rate: Any = None,
        lanes: Any = True,
        **options: object,
    ) -> SinkInfo:
        """Add a destination, and return it; a forwarder delivers to it.

        - `target`: its URL, whose scheme gives the kind: `https://`, `https+holdfast://`, `postgresql://`, `mqtts://`,
          `kafka://`, `file:///folder` ...; "" for a sink that your program implements.
        - `start`: "now", "beginning" (everything that the store has), or a time: then the first seq that has a point at
          or after it, and everything that was written later. "beginning" and times read the columns.
        - `filter`: `{"sensor_id": names, "metric_name": names}`, each a name, a glob or a list; None for all series. A
          text with glob characters is a name if a series has this name now; that does not change later.
        - `records`: whether it gets the pending records, too; one sink of a store may.
        - `hold`: whether cleanup keeps what it has not confirmed, of all series whatever the filter selects, up to
          `max_backlog`: an age (`timedelta`, seconds, "30d"), or `{"age": ..., "points": ..., "bytes": ...}`.
        - `rate`: bytes per second, as a number, "500kB/s", or a `repo.rates.Rate` with windows of the day.
        - `lanes`: True sends new readings before a long backlog; False sends everything in order;
          `{"share": 0.2, "order": "newest"}` gives the backlog's share of the bytes, and which part of it goes first.
        - `options`: those of the kind. A secret is `env:NAME` or `file:PATH`, never the value.

        Raises `InvalidQuery` for an invalid name, start or filter, or if the name is taken; `InvalidSettings` for
        anything else that is invalid, such as a secret in the target. With `start`, `StoreBusy` and `EngineMissing`.
        Nothing was added then.
        """
        _check_name(name)
        where = Target("own", "") if isinstance(target, str) and not target else parse_target(target)
        sink = NewSink(
            name,
            where.kind,
            where.url,
            check_options(where.kind, options, stored=True),
            self._resolved(check_filter(filter)),
            check_flag(records, "records"),
            check_flag(hold, "hold"),
            check_max_backlog(max_backlog),
            check_rate(rate),
            check_lanes(lanes),
        )
        self._refuse_taken(sink)  # before the columns are read
        confirmed = self._before(start)
        with self._handle.metadata.write() as connection:
            self._refuse_in(connection, sink)
            if confirmed is None:
                confirmed = JournalRepository(connection).last_seq()
            SinkRepository(connection).add(sink, confirmed, self._handle.clock())
        return self._with_warning(self.show(name))

    def change(
        self,
        name: str,
        /,
        *,
        filter: Any = _KEPT,  # noqa: A002
        records: Any = _KEPT,
        hold: Any = _KEPT,
        max_backlog: Any = _KEPT,
        rate: Any = _KEPT,
        lanes: Any = _KEPT,
        **options: object,
    ) -> SinkInfo:
        """Change settings of a sink, and return it. The arguments are those of `add`; None removes an option.

        A running forwarder uses the new rate, filter and lanes from the next batch on, and new options when it opens
        the sink again. Raises as `add` does; nothing was changed then.
        """
        given = {"filter": filter, "records": records, "hold": hold, "max_backlog": max_backlog}
        given |= {"rate": rate, "lanes": lanes}
        changes = {setting: _CHECKS[setting](value) for setting, value in given.items() if value is not _KEPT}
        if "filter" in changes:
            changes["filter"] = self._resolved(changes["filter"])
        with self._handle.metadata.write() as connection:
            sinks = SinkRepository(connection)
            before = self._known(connection, name)
            if options:
                kept = {key: value for key, value in before.options.items() if key not in options}
                wanted = {key: value for key, value in options.items() if value is not None}
                changes["options"] = kept | check_options(before.kind, wanted, stored=True)
            if changes.get("records"):
                _refuse_records(sinks, name)
            sinks.change(name, changes, self._handle.clock())
        info = self.show(name)
        return self._with_warning(info) if "filter" in changes else info

    def list(self) -> list[SinkInfo]:
        """Return all sinks, sorted by name."""
        with self._handle.metadata.read() as connection:
            last_seq = JournalRepository(connection).last_seq()
            return SinkRepository(connection).list(self._handle.clock(), last_seq)

    def show(self, name: str) -> SinkInfo:
        """Return one sink."""
        with self._handle.metadata.read() as connection:
            return self._known(connection, name)

    def selects(self, chosen: Selection | None) -> int:
        """Return how many of the present series the filter of a sink selects."""
        selection = Selection() if chosen is None else check_selection(chosen, "chosen")
        with self._handle.metadata.read() as connection:
            return len(SeriesRepository(connection).list(selection))

    def remove(self, name: str, *, dry_run: bool = False) -> Removed:
        """Remove a sink, its hold and its quarantine; a forwarder stops delivering to it.

        Its points stay in the store. The records that it refused are dropped, and counted in the loss ledger.
        """
        dry_run = check_flag(dry_run, "dry_run")
        with self._reading_or_writing(dry_run) as connection:
            info = self._known(connection, name)
            quarantine = QuarantineRepository(connection)
            items = quarantine.list(name)
            held = [item for item in items if item.record_id is not None]
            if not dry_run:
                LedgerRepository(connection).add(
                    drop_losses(StateRepository(connection), held, self._handle.clock())
                )
                quarantine.clear(name)
                SinkRepository(connection).remove(name)
        if not dry_run:
            forget_claim(self._handle.files, self._handle.clock, name)
        return Removed(name, dry_run, info.behind, len(items) - len(held), len(held))

    # --- running ---------------------------------------------------------------------------------------

    def pause(self, name: str) -> SinkInfo:
        """Stop deliveries to a sink until `resume`; the batch in hand is finished. Its hold stays."""
        return self._set_state(name, "paused")

    def resume(self, name: str) -> SinkInfo:
        """Resume deliveries to a paused, stopped or forked sink.

        A running forwarder that waits after an error makes its next attempt when that wait ends, within a minute.
        """
        return self._set_state(name, "running")

    def skip(self, name: str, to: int | None = None, *, dry_run: bool = False) -> Moved:
        """Give up what a sink has not confirmed: everything that is written, or the seqs up to `to`.

        The loss ledger gets an entry with the number of points and their times; without, if the columns cannot be read
        now. The points stay in the store.
        """
        through = None if to is None else check_count(to, "to", -LARGEST)
        dry_run = check_flag(dry_run, "dry_run")
        with self._reading_or_writing(dry_run) as connection:
            info = self._known(connection, name)
            last_seq = JournalRepository(connection).last_seq()
            through = last_seq if through is None else min(through, last_seq)
            gaps = info.cursor.gaps(through)
            moved = info.cursor if not gaps else info.cursor.confirm(gaps[0].first, through)
            if gaps and not dry_run:
                now_us = self._handle.clock()
                SinkRepository(connection).move(name, moved, now_us)
                if (
                    info.attempt is not None
                    and info.kind not in _EXACT
                    and moved.low >= info.attempt.last_seq
                ):
                    AttemptRepository(connection).remove(name)
                loss = _skipped(StateRepository(connection), name, gaps[0].first, through, now_us)
                LedgerRepository(connection).add([loss])
        if gaps and not dry_run and (given_up := count_given_up(self._handle, gaps, info.filter)) is not None:
            with self._handle.metadata.write() as connection:
                LedgerRepository(connection).set_count(loss.entry_id, *given_up)
        return Moved(name, dry_run, moved.low + 1, info.behind, moved.behind(last_seq))

    def replay(
        self, name: str, start: Start | None = None, *, seq: int | None = None, dry_run: bool = False
    ) -> Moved:
        """Send again everything from `start` on: "beginning", or a time as in `add`; or from a `seq` on.

        Receivers that have the points already drop them, or store the same values again. The report says which points
        of that time were dropped before, and cannot be sent. Times read the columns. Raises `InvalidQuery` if nothing
        was written since.
        """
        dry_run = check_flag(dry_run, "dry_run")
        if (start is None) == (seq is None):
            raise InvalidQuery("say where to begin: either start or seq is needed")
        self.show(name)  # before the columns are read
        start_us = None
        if seq is not None:
            before: int | None = check_count(seq, "seq", -LARGEST) - 1
        else:
            before = self._before(start)
            start_us = None if isinstance(start, str) else bound_us(start, "start")
            if before is None:
                raise InvalidQuery('start = "now": nothing would be sent again; name a time, or "beginning"')
        with self._reading_or_writing(dry_run) as connection:
            info = self._known(connection, name)
            last_seq = JournalRepository(connection).last_seq()
            assert before is not None
            ranges = [(first, min(last, before)) for first, last in info.ranges if first <= before]
            moved = Cursor.of(min(info.confirmed_seq, before), ranges)
            if moved == info.cursor and before >= last_seq:
                moment = start if start_us is None else to_datetime(start_us)
                raise InvalidQuery(f"nothing was written since {moment if seq is None else f'seq {seq}'}")
            lost = [] if seq is not None else _lost_since(LedgerRepository(connection), start_us)
            if not dry_run:
                SinkRepository(connection).move(name, moved, self._handle.clock())
        return Moved(name, dry_run, moved.low + 1, info.behind, moved.behind(last_seq), *_extent(lost))

    def confirm(
        self, name: str, first_seq: int, last_seq: int | None = None, *, dry_run: bool = False
    ) -> None:
        """Confirm by hand that a destination has the seqs from `first_seq` to `last_seq`, both inclusive.

        With one seq, everything up to it is confirmed. Confirmed seqs stay confirmed. Raises `InvalidQuery` for seqs
        that are not in use yet: a point that gets one later would never be delivered. With `dry_run`, it only checks,
        and changes nothing.
        """
        _check_name(name)
        first_seq = check_count(first_seq, "first_seq", 0 if last_seq is None else -LARGEST)
        last_seq = None if last_seq is None else check_count(last_seq, "last_seq", first_seq)
        dry_run = check_flag(dry_run, "dry_run")
        with self._reading_or_writing(dry_run) as connection:
            cursor = self._known(connection, name).cursor
            through = first_seq if last_seq is None else last_seq
            written = JournalRepository(connection).last_seq()
            if through > written:
                raise InvalidQuery(
                    f"seq {through} is not in use yet, the last one is {written}: a point that gets it later would "
                    f"never be delivered to {name}; nothing was changed"
                )
            if dry_run:
                return
            sinks, now_us = SinkRepository(connection), self._handle.clock()
            if last_seq is None:
                sinks.confirm(name, first_seq, now_us)
            else:
                sinks.move(name, cursor.confirm(first_seq, last_seq), now_us)

    def rekey(self, *, restored: bool = False) -> Rekeyed:
        """Make the store new to every receiver, after `StoreForked`; what was not confirmed is delivered again.

        A copy of another store needs a new id: receivers would otherwise take both for one store. The id is in both
        databases, so this waits for the columns, and raises `StoreBusy` and `EngineMissing` with nothing changed. After
        a crash, the store has either id, and the next opening of the columns completes the change.

        With `restored`, the store keeps its id, and its epoch is raised. That is for a store that was restored from a
        copy, or whose receiver was. Use `replay` for what the receiver may lack.

        The cursors of the sinks stay where they are. A running forwarder opens its sinks again.
        """
        return new_epoch(self._handle) if check_flag(restored, "restored") else new_store_id(self._handle)

    def identity(self) -> Identity:
        """Return the epoch and the id of the store, which with a seq identify a point towards receivers."""
        with self._handle.metadata.read() as connection:
            state = StateRepository(connection).get()
        assert state is not None
        return Identity(state.epoch, state.store_id)

    def delivery(self, name: str) -> Delivery:
        """Return what a forwarder needs to deliver to a sink; for forwarders."""
        _check_name(name)
        return Delivery(self._handle, name)

    def last_seq(self) -> int:
        """Return the seq of the newest acknowledged change, the position of an up-to-date cursor; 0 in a new store."""
        return self._handle.journal_end()

    def may_have_deleted_after(self, seq: int) -> bool:
        """Return whether points may have been deleted by a change after `seq`; for forwarders."""
        seq = check_count(seq, "seq", -LARGEST)
        with self._handle.metadata.read() as connection:
            return JournalRepository(connection).may_have_deleted_after(seq)

    # --- inside ----------------------------------------------------------------------------------------

    def _resolved(self, chosen: Selection | None) -> Selection | None:
        """Make a text of a filter an exact name if a series has this name now; otherwise a glob stays one for good.

        Decided once: a later series with the name of the glob must not end the delivery of the others.
        """
        if chosen is None or not chosen.has_glob:
            return chosen
        with self._handle.metadata.read() as connection:
            return chosen.as_names(SeriesRepository(connection).has_name)

    def _with_warning(self, info: SinkInfo) -> SinkInfo:
        if info.filter is not None and not self.selects(info.filter):
            log.warning("the sink %s gets nothing yet: its filter selects none of the series", info.name)
        return info

    def _known(self, connection: Connection, name: str) -> SinkInfo:
        _check_name(name)
        last_seq = JournalRepository(connection).last_seq()
        found = SinkRepository(connection).get(name, self._handle.clock(), last_seq)
        if found is None:
            raise InvalidQuery(
                f"there is no sink {name!r}; `{self._handle.files.command('sinks list')}` lists the existing ones"
            )
        return found

    def _reading_or_writing(self, dry_run: bool) -> Any:
        return self._handle.metadata.read() if dry_run else self._handle.metadata.write()

    def _set_state(self, name: str, state: Any) -> SinkInfo:
        with self._handle.metadata.write() as connection:
            if self._known(connection, name).state != state:
                SinkRepository(connection).set_state(name, state, self._handle.clock())
        return self.show(name)

    def _refuse_taken(self, sink: NewSink) -> None:
        with self._handle.metadata.read() as connection:
            self._refuse_in(connection, sink)

    def _refuse_in(self, connection: Connection, sink: NewSink) -> None:
        sinks = SinkRepository(connection)
        if sinks.created_us(sink.name) is not None:
            raise InvalidQuery(
                f"there is a sink {sink.name!r} already; remove it, change it, or choose another name"
            )
        if sink.records:
            _refuse_records(sinks, sink.name)

    def _before(self, start: Start | None) -> int | None:
        """Return the seq before the first one that `start` means; None for "now"."""
        if isinstance(start, str):
            if check_choice(start, "start", ("now", "beginning")) == "now":
                return None
            query = select(func.min(Point.seq))
        else:
            query = select(func.min(Point.seq)).where(Point.timestamp_us >= bound_us(start, "start"))
        with self._handle.reading("finding where a sink starts") as (connection, _):
            first = connection.execute(query).scalar_one()
        if first is None:
            return self._handle.journal_end()
        return int(first) - 1


def _check_name(name: object) -> None:
    try:
        name_of(name)
    except Unfit as fault:
        raise InvalidQuery(f"the name of a sink {fault}") from fault


def _refuse_records(sinks: SinkRepository, name: str) -> None:
    other = next((sink.name for sink in sinks.list() if sink.records and sink.name != name), None)
    if other is not None:
        raise InvalidQuery(f"the sink {other!r} gets the records already, and one sink of a store may")


_CHECKS: dict[str, Any] = {
    "filter": check_filter,
    "records": lambda value: check_flag(value, "records"),
    "hold": lambda value: check_flag(value, "hold"),
    "max_backlog": check_max_backlog,
    "rate": check_rate,
    "lanes": check_lanes,
}


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
