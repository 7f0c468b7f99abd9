"""`store.sinks`: the destinations of a store, what each gets, and how far each has confirmed delivery."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from sqlalchemy import Connection

from repo.core.handle import Handle
from repo.errors import InvalidQuery
from repo.inputs.arguments import LARGEST, check_count, check_flag
from repo.queries.selection import Selection, check_selection
from repo.repositories.journal import JournalRepository
from repo.repositories.ledger import LedgerRepository
from repo.repositories.quarantine import QuarantineRepository
from repo.repositories.series import SeriesRepository
from repo.repositories.sinks import NewSink, SinkInfo, SinkRepository, SinkState
from repo.repositories.state import StateRepository
from repo.store.claims import forget_claim
from repo.store.deliveries import Delivery, Identity
from repo.store.quarantine import drop_losses
from repo.store.sink_cursors import (
    Moved,
    Start,
    check_sink_name,
    confirm,
    known_sink,
    reading_or_writing,
    replay,
    seq_before,
    skip,
)
from repo.store.sink_options import check_options
from repo.store.sink_settings import (
    BacklogArgument,
    LanesArgument,
    RateArgument,
    check_filter,
    check_lanes,
    check_max_backlog,
    check_rate,
)
from repo.store.targets import SinkTarget, parse_target
from repo.upkeep.rekey import Rekeyed, new_epoch, new_store_id

__all__ = ["Rekeyed", "Removed", "Sinks"]

log = logging.getLogger("holdfast.delivery")

_KEPT: Final[Any] = object()
"""The default of `change`: the setting stays as it is."""


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
        max_backlog: BacklogArgument | None = None,
        rate: RateArgument | None = None,
        lanes: LanesArgument = True,
        **options: object,
    ) -> SinkInfo:
        """Add a destination, and return it; a forwarder delivers to it.

        - `target`: its URL, whose scheme gives the kind: `https://`, `https+holdfast://`, `postgresql://`, `mqtts://`,
          `kafka://`, `file:///folder` ...; "" for a sink that your program implements.
        - `start`: "now", "beginning" (everything that the store has), or a time: then the first seq that has a point at
          or after it, and everything that was written later. "beginning" and times read the columns.
        - `filter`: `{"sensor_id": names, "metric_name": names}`, each a name, a glob or a list; None for all series. A
          text with glob characters is a name if a series has this name now; that does not change later.
        - `records`: whether it gets the pending records, too; only one sink of a store may.
        - `hold`: whether cleanup keeps what it has not confirmed, of all series whatever the filter selects, up to
          `max_backlog`: an age (`timedelta`, seconds, "30d"), or `{"age": ..., "points": ..., "bytes": ...}`.
        - `rate`: bytes per second, as a number, "500kB/s", or a `repo.inputs.rates.Rate` with windows of the day.
        - `lanes`: True sends new readings before a long backlog; False sends everything in order;
          `{"share": 0.2, "order": "newest"}` gives the backlog's share of the bytes, and which part of it goes first.
        - `options`: those of the kind. A secret is `env:NAME` or `file:PATH`, never the value.

        Raises `InvalidQuery` for an invalid name, start or filter, or if the name is taken; `InvalidSettings` for
        anything else that is invalid, such as a secret in the target. With `start`, `StoreBusy` and `EngineMissing`.
        Nothing was added then.
        """
        check_sink_name(name)
        where = SinkTarget("own", "") if isinstance(target, str) and not target else parse_target(target)
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
        confirmed = seq_before(self._handle, start)
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
        filter: Mapping[str, Any] | None = _KEPT,  # noqa: A002
        records: bool = _KEPT,
        hold: bool = _KEPT,
        max_backlog: BacklogArgument | None = _KEPT,
        rate: RateArgument | None = _KEPT,
        lanes: LanesArgument = _KEPT,
        **options: object,
    ) -> SinkInfo:
        """Change settings of a sink, and return it. The arguments are those of `add`; None removes an option.

        A running forwarder uses the new rate, filter and lanes from the next batch on, and new options when it opens
        the sink again. Raises as `add` does; nothing was changed then.
        """
        given: dict[str, object] = {"filter": filter, "records": records, "hold": hold}
        given |= {"max_backlog": max_backlog, "rate": rate, "lanes": lanes}
        changes = {setting: _CHECKS[setting](value) for setting, value in given.items() if value is not _KEPT}
        if "filter" in changes:
            changes["filter"] = self._resolved(changes["filter"])
        with self._handle.metadata.write() as connection:
            sinks = SinkRepository(connection)
            before = known_sink(self._handle, connection, name)
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
            return known_sink(self._handle, connection, name)

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
        with reading_or_writing(self._handle, dry_run) as connection:
            info = known_sink(self._handle, connection, name)
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

        The loss ledger gets an entry with the number of points and their times, or without them if the columns cannot
        be read now. The points stay in the store.
        """
        return skip(self._handle, name, to, dry_run=check_flag(dry_run, "dry_run"))

    def replay(
        self, name: str, start: Start | None = None, *, seq: int | None = None, dry_run: bool = False
    ) -> Moved:
        """Send again everything from `start` on: "beginning", or a time as in `add`; or from a `seq` on.

        Receivers that have the points already drop them, or store the same values again. The report says which points
        of that time were dropped before, and cannot be sent. Times read the columns. Raises `InvalidQuery` if nothing
        was written since.
        """
        return replay(self._handle, name, start, seq, dry_run=check_flag(dry_run, "dry_run"))

    def confirm(
        self, name: str, first_seq: int, last_seq: int | None = None, *, dry_run: bool = False
    ) -> None:
        """Confirm by hand that a destination has the seqs from `first_seq` to `last_seq`, both inclusive.

        With one seq, everything up to it is confirmed. Confirmed seqs stay confirmed. Raises `InvalidQuery` for seqs
        that are not in use yet: a point that gets one later would never be delivered. With `dry_run`, it only checks,
        and changes nothing.
        """
        confirm(self._handle, name, first_seq, last_seq, dry_run=check_flag(dry_run, "dry_run"))

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
        """Return the epoch and the id of the store, which together with a seq identify a point to receivers."""
        with self._handle.metadata.read() as connection:
            state = StateRepository(connection).get()
        assert state is not None
        return Identity(state.epoch, state.store_id)

    def delivery(self, name: str) -> Delivery:
        """Return what a forwarder needs to deliver to a sink; for forwarders."""
        check_sink_name(name)
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

    def _set_state(self, name: str, state: SinkState) -> SinkInfo:
        with self._handle.metadata.write() as connection:
            if known_sink(self._handle, connection, name).state != state:
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


def _refuse_records(sinks: SinkRepository, name: str) -> None:
    other = next((sink.name for sink in sinks.list() if sink.records and sink.name != name), None)
    if other is not None:
        raise InvalidQuery(f"the sink {other!r} already gets the records, and only one sink of a store may")


_CHECKS: dict[str, Any] = {
    "filter": check_filter,
    "records": lambda value: check_flag(value, "records"),
    "hold": lambda value: check_flag(value, "hold"),
    "max_backlog": check_max_backlog,
    "rate": check_rate,
    "lanes": check_lanes,
}
