"""A sink in words: its settings, its deliveries, and what its state means for an operator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from repo.commands.options import iso_second
from repo.errors import counted

if TYPE_CHECKING:
    from repo.repositories.sinks import SinkInfo

__all__ = ["WHAT_FOLLOWS", "sink_lines", "state_text"]

WHAT_FOLLOWS = {
    "paused": "`sinks resume` ends the pause",
    "failing": "a running forwarder tries again, and so does `drain`",
    "halted": "nothing is delivered until the cause is fixed; a running forwarder tries every minute",
    "forked": "nothing is sent until you resolve the fork; the error says how",
    "stopped": "an error ended the delivery; a running forwarder tries again every minute and skips nothing",
}
"""What happens next in a state, or what ends it; a running sink has none."""


def state_text(state: str, since: str | None) -> str:
    """Return a state, since when, and what follows."""
    shown = "unreachable" if state == "failing" else state
    then = WHAT_FOLLOWS.get(state)
    return shown + (f" since {since}" if since else "") + (f": {then}" if then else "")


def sink_lines(info: SinkInfo, quarantined: int) -> list[tuple[str, str]]:
    """Return the settings, the state and the deliveries of a sink, as labels with texts."""
    state = info.state if info.since_us is None else f"{info.state} since {iso_second(info.since_us)}"
    lines = [
        ("sink", f"{info.name} ({info.kind})"),
        ("target", info.target or "a sink of the application"),
        ("state", state),
    ]
    if info.state in WHAT_FOLLOWS:
        lines.append(("", WHAT_FOLLOWS[info.state]))
    if info.last_error:
        lines.append(("error", f"{info.last_error} ({counted(info.failures, 'failed attempt')})"))
    lines += [("option", f"{key} = {value}") for key, value in sorted(info.options.items())]
    lines.append(("gets", _gets(info)))
    if info.rate is not None:
        lines.append(("rate", str(info.rate)))
    order = f", {info.lanes.share:.0%} for a backlog, {info.lanes.order} first" if info.lanes.two else ""
    lines.append(("lanes", ("two" if info.lanes.two else "one") + order))
    lines.append(("hold", _hold(info)))
    confirmed = "" if info.confirmed_us is None else f", last at {iso_second(info.confirmed_us)}"
    lines.append(("confirmed", f"through seq {info.confirmed_seq:,}{confirmed}"))
    lines += [("", f"and seqs {first:,} to {last:,}") for first, last in info.ranges]
    lines.append(("behind", counted(info.behind, "seq")))
    if info.attempt is not None:
        lines.append(("sending", _attempt(info)))
    sent = f"{counted(info.sent_points, 'point')}, {counted(info.sent_records, 'record')}"
    lines.append(("sent", f"{sent}, {info.sent_bytes:,} bytes; {info.points_per_s:,.0f} points/s now"))
    if info.refused or quarantined:
        lines.append(("refused", f"{info.refused:,}, {quarantined:,} of them in quarantine"))
    return lines


def _gets(info: SinkInfo) -> str:
    text = "all points"
    if info.filter is not None:
        names = (("sensor", info.filter.sensor_id), ("metric", info.filter.metric_name))
        text = "points of " + ", ".join(
            f"{what} {chosen if isinstance(chosen, str) else ', '.join(chosen)}"
            for what, chosen in names
            if chosen is not None
        )
    return text + (" and the records" if info.records else "")


def _hold(info: SinkInfo) -> str:
    if not info.hold:
        return "none"
    limits = info.max_backlog
    if limits is None:
        return "until confirmed"
    parts = [
        None if limits.age_us is None else f"{limits.age_us / 86_400_000_000:,.6g} days",
        None if limits.points is None else counted(limits.points, "point"),
        None if limits.bytes is None else f"{limits.bytes:,} bytes",
    ]
    return "until confirmed, at most " + ", ".join(part for part in parts if part)


def _attempt(info: SinkInfo) -> str:
    attempt = info.attempt
    assert attempt is not None
    if not attempt.points and not attempt.confirms_seqs:
        what = f"a batch without items, after a refused one ({attempt.lane})"
    elif attempt.lane == "records":
        what = counted(attempt.points, "record")
    else:
        seqs = f"seqs {attempt.first_seq:,} to {attempt.last_seq:,}"
        what = f"{counted(attempt.points, 'point')}, {seqs} ({attempt.lane})"
    return f"{what}, {counted(attempt.tries, 'try', 'tries')} since {iso_second(attempt.begun_us)}"
