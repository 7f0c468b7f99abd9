"""`init` and `status`: create a store, and show its state."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from repo.commands.exits import Exit
from repo.commands.global_options import global_options, store_argument
from repo.commands.losses import given_up, lost
from repo.commands.output import print_json
from repo.commands.session import Session
from repo.commands.sink_texts import state_text
from repo.commands.texts import size_text
from repo.engines.registry import ENGINES
from repo.errors import EngineMissing, SchemaOutdated, StoreBusy, counted

if TYPE_CHECKING:
    from repo import Status
    from repo.store.status import SinkStatus

__all__ = ["init", "status"]

_SHOWN_SENDERS = 20


@click.command()
@click.option(
    "--engine",
    type=click.Choice(["auto", *ENGINES]),
    help="Engine of a new store; auto (the default) uses DuckDB if it is installed.",
)
@store_argument
@global_options
@click.pass_obj
def init(session: Session, engine: str | None) -> None:
    """Create a store, or confirm that it exists.

    An existing store is not modified and keeps its engine.

    \b
    JSON: {"path", "created": false if it existed, "engine", "schema", "store_id"}
    """
    from repo import StoreMissing
    from repo.errors import InvalidSettings

    created = False
    try:
        with session.opened(read_only=True) as store:
            found = store.status()
    except StoreMissing:
        created = True
        with session.opened(create=True, engine=engine) as store:
            found = store.status()
    if engine not in (None, "auto", found.engine):
        raise InvalidSettings(
            f"{found.path} exists and keeps its engine, {found.engine}; "
            f"`{session.command('promote')}` or `demote` changes it",
            path=found.path,
        )
    if session.as_json:
        print_json(
            {
                "path": found.path,
                "created": created,
                "engine": found.engine,
                "schema": found.schema,
                "store_id": found.store_id,
            }
        )
    else:
        what = "created a store in" if created else "a store exists in"
        session.say(f"{what} {found.path} ({found.engine}, schema {found.schema})")


@click.command()
@click.option("--check", is_flag=True, help="Exit 3 if there are warnings; for monitoring.")
@click.option(
    "--ignore",
    "ignored",
    metavar="CODE",
    multiple=True,
    help="Leave out warnings with this code. Repeatable.",
)
@store_argument
@global_options
@click.pass_obj
def status(session: Session, check: bool, ignored: tuple[str, ...]) -> None:
    """Show what the store holds, its backlog, its files and its warnings.

    If another process holds the columns, it names that process and says what it does. It reads only SQLite, so it never
    waits for another process. Counts and times of points are those of the last flush; points that the journal still
    holds are counted as waiting. It never upgrades a store: if the schema is outdated, it shows the revisions and the
    command to run, and exits 5.

    \b
    JSON: {"path", "store_id", "engine", "generation", "schema", "last_seq",
    "flushed_seq", "pruned_seq", "journal_rows", "journal_seqs", "unflushed",
    "points_waiting", "deletions_waiting", "points", "series", "oldest_us",
    "newest_us", "records_pending", "ledger_entries", "ledger_dropped",
    "lost_points", "lost_records", "lost_uncounted": entries whose number is
    unknown, "given_up_points": stored, but not for a sink, "given_up_entries",
    "given_up_uncounted", "sinks": [{"name", "kind", "state":
    running, paused, failing, halted, forked or stopped, "since_us",
    "confirmed_seq", "behind", "oldest_unsent_us": null if unknown, "confirmed_us",
    "points_per_s", "limit_bytes_per_s": null for none, "quarantined", "failures",
    "last_error"}], "hold": {"sink", "seqs", "since_us"} or null,
    "senders": [{"store_id", "epoch", "sink", "points", "updated_us"}] that deliver
    to this store,
    "bytes_by_file": {file: bytes}, "bytes_by_kept_file": {retired or backup file:
    bytes}, "bytes_total", "bytes_free_on_disk", "holder": {"pid", "since_us",
    "doing"} or null, "warnings": [{"code", "message"}]}; for an outdated store,
    the output of `migrate --check`
    """
    from repo.engines.sqlite.driver import has_wal_reset_bug

    _refuse_unknown(ignored)
    try:
        with session.opened(read_only=True) as store:
            found = store.status()
    except SchemaOutdated as outdated:
        _show_outdated(session, outdated)
        raise
    found = replace(found, warnings=tuple(one for one in found.warnings if one.code not in ignored))
    if session.as_json:
        print_json(found.as_dict())
    else:
        lines = _lines(found)
        width = max(12, *(len(name) + 2 for name, _ in lines))
        for name, text in lines:
            session.say(f"{name:<{width}}{text}")
        for warning in found.warnings:
            session.note(f"warning: {warning} [{warning.code}]")
    if not check:
        return
    if has_wal_reset_bug():
        session.note(
            "note: this SQLite version has the WAL-reset bug (sqlite.org/wal.html). Holdfast avoids it; do not write "
            "to offline_buffer.db with other programs"
        )
    if found.warnings:
        raise click.exceptions.Exit(Exit.PROBLEMS)


def _refuse_unknown(ignored: tuple[str, ...]) -> None:
    from repo.store.status import WARNING_CODES

    for code in ignored:
        if code not in WARNING_CODES:
            raise click.BadParameter(
                f"there is no code {code!r}; the codes are {', '.join(WARNING_CODES)}", param_hint="--ignore"
            )


def _show_outdated(session: Session, outdated: SchemaOutdated) -> None:
    """Print the revisions of both databases, without waiting for columns that another process holds."""
    from repo.commands.migrate import show
    from repo.processes.lease import read_holder
    from repo.schema.upgrade import migrate_store
    from repo.schema.version import HEAD

    files = session.files()
    try:
        holder = read_holder(files.folder, files.prefix)
        if holder is None:
            show(session, migrate_store(files, check=True), HEAD, steps=False)
        else:
            outdated.add_note(
                f"the columns are held by process {holder.pid}, doing: {holder.doing}; their revision was not read"
            )
    except (StoreBusy, EngineMissing) as error:
        outdated.add_note(f"the revision of the columns could not be read: {error}")


def _lines(found: Status) -> list[tuple[str, str]]:
    """Return the labelled lines that describe the store."""
    lines = [
        ("store", found.path),
        ("", f"{found.engine}, schema {found.schema}, id {found.store_id}"),
        ("points", _points(found)),
    ]
    if found.oldest_us is not None and found.newest_us is not None:
        lines.append(("", f"{_second(found.oldest_us)} to {_second(found.newest_us)} UTC"))
    deletions = f"; {counted(found.deletions_waiting, 'deletion')} waiting to be applied"
    lines += [
        ("journal", counted(found.journal_rows, "row") + (deletions if found.deletions_waiting else "")),
        ("records", f"{found.records_pending:,} pending"),
    ]
    lines += [(f"sink {s.name}", _sink(s)) for s in found.sinks]
    if found.hold is not None:
        kept = f"{counted(found.hold.seqs, 'seq')} kept for {found.hold.sink}"
        lines.append(("hold", f"{kept} since {_second(found.hold.since_us)} UTC"))
    for sender in found.senders[:_SHOWN_SENDERS]:
        at = _second(sender.updated_us)
        sent = f"{counted(sender.points, 'point')} from store {sender.store_id}, the last at {at} UTC"
        lines.append((f"from {sender.sink}", sent))
    if len(found.senders) > _SHOWN_SENDERS:
        lines.append(("", f"and from {len(found.senders) - _SHOWN_SENDERS:,} more; --json has all"))
    lines.append(("lost", lost(found)))
    if found.given_up_entries:
        lines.append(("given up", f"{given_up(found)}; still stored, but not for a sink"))
    lines += [("file", f"{size_text(size):>10}  {name}") for name, size in found.bytes_by_file.items()]
    lines += [("kept", f"{size_text(size):>10}  {name}") for name, size in found.bytes_by_kept_file.items()]
    lines.append(("disk", f"{size_text(found.bytes_free_on_disk):>10}  free"))
    if found.holder is not None:
        lines.append(("columns", f"held by process {found.holder.pid}, doing: {found.holder.doing}"))
    return lines


def _second(us: int) -> str:
    """Return a time in UTC, in whole seconds, for a summary."""
    from repo.inputs.times import to_datetime

    return to_datetime(us).replace(tzinfo=None).isoformat(" ", "seconds")


def _sink(sink: SinkStatus) -> str:
    parts = []
    if sink.state != "running":  # first, because it matters most; a warning has the error of the other states
        since = None if sink.since_us is None else f"{_second(sink.since_us)} UTC"
        error = f" ({sink.last_error})" if sink.state == "failing" and sink.last_error else ""
        parts.append(state_text(sink.state, since) + error)
    parts += [f"confirmed seq {sink.confirmed_seq:,}", f"{sink.behind:,} behind"]
    if sink.behind and sink.oldest_unsent_us is not None:
        parts.append(f"the oldest since {_second(sink.oldest_unsent_us)} UTC")
    if sink.points_per_s >= 1:
        parts.append(f"{sink.points_per_s:,.0f} points/s")
    if sink.limit_bytes_per_s == 0:
        parts.append("its rate is 0 now, so nothing is sent")
    if sink.quarantined:
        parts.append(f"{sink.quarantined:,} in quarantine")
    return ", ".join(parts)


def _points(found: Status) -> str:
    """Return how many points there are; those in the journal may overwrite others, so the two are not added."""
    series = counted(found.series, "series", "series")
    waiting = f"{found.points_waiting:,} waiting to be applied"
    if not found.points_waiting:
        return f"{found.points:,} in {series}"
    return f"{found.points:,} in {series}, and {waiting}" if found.points else f"{waiting}, in {series}"
