"""`losses`: prints the loss ledger, one paragraph for each entry."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from repo.commands.global_options import global_options, store_argument
from repo.commands.options import iso
from repo.commands.output import print_json
from repo.commands.session import Session
from repo.errors import counted
from repo.inputs.times import to_datetime

if TYPE_CHECKING:
    from repo import Status
    from repo.store.losses import LossEntry

__all__ = ["given_up", "losses", "lost"]

_SHOWN_NAMES = 5


@click.command()
@click.option("--limit", metavar="ENTRIES", type=click.IntRange(min=1), help="Print the newest entries only.")
@store_argument
@global_options
@click.pass_obj
def losses(session: Session, limit: int | None) -> None:
    """List what was dropped: how much, when, why, and of which series and times.

    The loss ledger records every deletion and every loss, and this prints it, newest first. A deletion of points is
    listed once it is applied; until then, it is counted below the list. Points that an operator skipped for a sink or
    dropped from its quarantine are listed, too, but not counted as lost: they are still stored. Reads only SQLite, so
    it never waits for another process.

    \b
    JSON: [{"entry_id", "what": "points" or "records", "dropped": number, or null
    if unknown, "reason": a word, "why": the same in words, "first_us", "last_us":
    of what was dropped, "recorded_us", "sensor_id", "metric_name", "source":
    name, glob, list, or null for all, "start_us", "end_us": as selected,
    "detail": JSON text, "given_up": true if the points are still stored, and only
    a sink does not get them}]
    """
    with session.opened(read_only=True) as store:
        entries = store.losses(limit)
        status = store.status()
    if session.as_json:
        print_json([entry.as_dict() for entry in entries])
        return
    for entry in entries:
        when = iso(to_datetime(entry.recorded_us).replace(microsecond=0))
        for number, line in enumerate(_lines(entry)):
            session.say(f"{when if number == 0 else '':<22}{line}")
    session.say(f"lost {lost(status)}")
    if status.given_up_entries:
        session.say(f"given up for sinks, but still stored: {given_up(status)}")
    if status.deletions_waiting:
        session.note(
            f"{counted(status.deletions_waiting, 'deletion')} of points not applied yet; the next flush or read "
            "applies and lists it"
        )


def lost(status: Status) -> str:
    """Return how much is gone: `12 points, in 1 entry`."""
    entries = status.ledger_entries - status.given_up_entries
    if not entries:
        return "nothing"
    return _amount(entries, status.lost_points, status.lost_records, status.lost_uncounted)


def given_up(status: Status) -> str:
    """Return how many points sinks do not get, though they are stored."""
    return _amount(status.given_up_entries, status.given_up_points, 0, status.given_up_uncounted)


def _amount(entries: int, points: int, records: int, uncounted: int) -> str:
    parts = []
    if points or not (records or uncounted):
        parts.append(counted(points, "point"))
    if records:
        parts.append(counted(records, "record"))
    if uncounted:
        parts.append("an unknown number" + (" more" if parts else ""))
    return f"{' and '.join(parts)}, in {counted(entries, 'entry', 'entries')}"


def _lines(entry: LossEntry) -> list[str]:
    if entry.dropped is None:
        amount = f"an unknown number of {entry.what}"
    else:
        amount = counted(entry.dropped, entry.what.removesuffix("s"))
    lines = [f"{amount}: {entry.why}"]
    if entry.what == "points":
        names = [
            f"{what} {_named(chosen)}"
            for what, chosen in (("sensor", entry.sensor_id), ("metric", entry.metric_name))
            if chosen is not None
        ]
        if names or entry.dropped is not None:
            lines.append(", ".join(names) or "all series")
    elif entry.source is not None:
        lines.append(f"source {_named(entry.source)}")
    if entry.first_us is not None and entry.last_us is not None:
        lines.append(f"{iso(to_datetime(entry.first_us))} to {iso(to_datetime(entry.last_us))}")
    return lines


def _named(chosen: str | tuple[str, ...]) -> str:
    if isinstance(chosen, str):
        return chosen
    more = len(chosen) - _SHOWN_NAMES
    return ", ".join(chosen[:_SHOWN_NAMES]) + (f" and {more:,} more" if more > 0 else "")
