"""Losses: what the entries of the loss ledger say, in words and fields. Reads SQLite only."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection

from repo.core.acknowledged import LOST_END
from repo.errors import counted
from repo.inputs.arguments import check_count
from repo.queries.selection import Selection
from repo.repositories.ledger import LedgerRepository, Loss

__all__ = ["COLUMNS_OLDER", "LossEntry", "read_losses"]

COLUMNS_OLDER = "columns-older-than-journal"
"""The reason in ledger entries for points that were lost with a replaced column file."""

Chosen = str | tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class LossEntry:
    """One entry of the loss ledger; times in µs since 1970 UTC, None if they are unknown or do not apply.

    `sensor_id`, `metric_name`, `source`, `start_us` and `end_us` are what a deletion selected: a name, a glob, several
    names, or None for all.
    """

    entry_id: str
    what: str
    """`points` or `records`."""
    dropped: int | None
    """How many; None if the number is unknown. See `given_up`."""
    reason: str
    """A word for programs: delete, cleanup, age, retries, clear, ..."""
    why: str
    """The same in words."""
    first_us: int | None
    """The time of the first dropped point or record."""
    last_us: int | None
    recorded_us: int
    """When the loss was recorded; equal drops of records on one day are one entry, with the time of the last."""
    sensor_id: Chosen = None
    metric_name: Chosen = None
    source: Chosen = None
    start_us: int | None = None
    end_us: int | None = None
    detail: str | None = None
    """JSON: everything that the ledger knows, such as the seqs that are missing."""
    given_up: bool = False
    """Whether the points stay in the store: an operator dropped them for a sink only."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values; `holdfast --json losses` prints a list of them."""
        return asdict(self)


def read_losses(
    connection: Connection, limit: int | None = None, reasons: Sequence[str] | None = None
) -> list[LossEntry]:
    """Return the entries of the ledger, all or those with the given reasons, newest first; see `Store.losses`."""
    most = None if limit is None else check_count(limit, "limit")
    return [_entry(loss) for loss in LedgerRepository(connection).list(most, reasons)]


def _entry(loss: Loss) -> LossEntry:
    same = loss._asdict()
    if loss.what == "points" and loss.reason in ("delete", "delete-not-applied"):
        chosen = Selection.from_json((loss.detail or "[null,null,null,null]").encode())
        if loss.reason == "delete":
            same["reason"] = chosen.reason or loss.reason
        same |= {
            "sensor_id": chosen.sensor_id,
            "metric_name": chosen.metric_name,
            "start_us": chosen.start_us,
            "end_us": chosen.end_us,
        }
    same["given_up"] = loss.given_up
    facts = json.loads(loss.detail or "{}")
    if not isinstance(facts, dict):
        facts = {}
    source = facts.get("source")
    same["source"] = tuple(source) if isinstance(source, list) else source
    for edge in ("start", "end"):
        if (seconds := facts.get(f"{edge}_s")) is not None:
            same[f"{edge}_us"] = round(seconds * 1e6)
    say = _WHY.get(same["reason"])
    return LossEntry(**same, why=same["reason"] if say is None else say(facts))


_WHY: dict[str, Callable[[dict[str, Any]], str]] = {
    "delete": lambda _: "deleted by the application",
    "clear": lambda _: "deleted by the application",
    "drop": lambda _: "deleted by the application",
    "cleanup": lambda facts: (
        f"deleted by cleanup: failed {_times(facts['min_retries'])} or more"
        if "min_retries" in facts
        else "deleted by cleanup"
    ),
    "size": lambda _: "the columns exceeded their limit in bytes; the oldest points were deleted",
    "age": lambda facts: f"older than {_age(facts['max_age_s'])}" if "max_age_s" in facts else "too old",
    "retries": lambda facts: f"failed {_times(facts.get('max_retries', 1))} or more",
    "skipped": lambda facts: (
        f"an operator skipped {_seqs(facts)} for the sink {facts.get('sink')}; the points are still stored"
    ),
    "quarantine": lambda facts: (
        f"refused by the sink {facts.get('sink')} and dropped from quarantine: {facts.get('last_reason')}"
        + ("; the points are still stored" if "seqs" in facts else "")
    ),
    "max-backlog": lambda facts: (
        f"the backlog of the sink {facts.get('sink')} exceeded its max_backlog, so a cleanup dropped "
        f"{counted(facts.get('undelivered', 0), 'point')} that it had not confirmed"
    ),
    COLUMNS_OLDER: lambda facts: (
        f"the column file was replaced by an older one; {_seqs(facts)} may be missing"
    ),
    LOST_END: lambda facts: (
        "the metadata database lost its last writes, or was replaced by an older one; "
        f"{_seqs(facts)} may be missing if they were not flushed"
    ),
    "delete-not-applied": lambda _: (
        "this delete was not applied, because the metadata database was replaced by an older one"
    ),
}
"""Why an entry was made, by its reason; receives the facts of its `detail`."""


def _times(count: int) -> str:
    return counted(count, "time")


def _age(seconds: float) -> str:
    days = seconds / 86_400
    return f"{days:,.10g} days" if days >= 2 else f"{seconds:,.10g} s"


def _seqs(facts: dict[str, Any]) -> str:
    for unit, noun in (("seq", "seqs"), ("id", "record ids")):
        if f"first_{unit}" in facts:
            return f"{noun} {facts[f'first_{unit}']:,} to {facts[f'last_{unit}']:,}"
    return "some seqs"
