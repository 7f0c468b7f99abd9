"""`sinks skip`, `replay`, `confirm` and `rekey`: change by hand what a sink has confirmed, and end a fork."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from repo.clock import system_clock
from repo.commands.asking import asked, asking_options, check_asking
from repo.commands.global_options import global_options
from repo.commands.options import iso_second, naming, zone_of
from repo.commands.output import print_json
from repo.commands.session import Session
from repo.errors import counted
from repo.inputs.time_texts import parse_time
from repo.inputs.times import to_datetime

if TYPE_CHECKING:
    from datetime import datetime

    from repo.store.sink_cursors import Moved

__all__ = ["confirm", "rekey", "replay", "skip"]

_name = click.argument("name", metavar="NAME")


@click.command()
@_name
@click.option("--to", metavar="SEQ", type=int, help="Skip up to this seq only.")
@asking_options
@global_options
@click.pass_obj
def skip(session: Session, name: str, to: int | None, dry_run: bool, yes: bool) -> None:
    """Give up what a destination has not confirmed, and deliver only what is written from now on.

    The points stay in the store, and the loss ledger gets an entry. `replay` can still deliver them.

    \b
    JSON (with -y or --dry-run): {"name", "dry_run", "first_seq": the seq that it
    gets next, "behind_before", "behind", "lost", "lost_first_us", "lost_last_us"}
    """
    check_asking(session, dry_run=dry_run, yes=yes)
    with session.opened(read_only=dry_run) as store:
        meant = store.sinks.skip(name, to, dry_run=True)
        if not dry_run and not yes and meant.behind != meant.behind_before:
            asked(f"Never deliver {counted(meant.behind_before - meant.behind, 'seq')} to {name}?")
        done = meant if dry_run else store.sinks.skip(name, to)
    _show_moved(session, done, "skipped")


@click.command()
@_name
@click.option("--from", "start", metavar="TIME", help="A time, or 'beginning' for everything.")
@click.option("--from-seq", "seq", metavar="SEQ", type=int, help="A seq instead of a time.")
@click.option("--tz", metavar="ZONE", default="UTC", show_default=True, help="Time zone of --from.")
@asking_options
@global_options
@click.pass_obj
def replay(
    session: Session, name: str, start: str | None, seq: int | None, tz: str, dry_run: bool, yes: bool
) -> None:
    """Deliver again what was written since a time.

    The delivery begins with the first point with that time or a later one, and continues with everything that
    was written after it. Receivers that have the points already drop them or store them once more. Points
    that have been deleted are gone; the command says how many.

    \b
    JSON (with -y or --dry-run): {"name", "dry_run", "first_seq": the seq that it
    gets next, "behind_before", "behind", "lost": points of that time that were
    dropped, null if unknown, "lost_first_us", "lost_last_us"}
    """
    from repo.errors import InvalidQuery

    check_asking(session, dry_run=dry_run, yes=yes)
    if (start is None) == (seq is None):
        raise click.UsageError("say where to begin: either --from or --from-seq is needed")
    begin: str | datetime | None = start
    if start is not None and start != "beginning":
        if start == "now":
            raise InvalidQuery("--from now: nothing would be delivered again; name a time, or beginning")
        zone = zone_of(tz)
        with naming("--from"):
            begin = to_datetime(parse_time(start, now_us=system_clock(), zone=zone))
    with session.opened(read_only=dry_run) as store:
        meant = store.sinks.replay(name, begin, seq=seq, dry_run=True)
        if not dry_run and not yes and meant.behind != meant.behind_before:
            _say_lost(session, meant)
            asked(f"Deliver {counted(meant.behind - meant.behind_before, 'seq')} to {name} again?")
        done = meant if dry_run else store.sinks.replay(name, begin, seq=seq)
    _show_moved(session, done, "replayed")


@click.command()
@_name
@click.argument("first_seq", metavar="FIRST", type=int)
@click.argument("last_seq", metavar="[LAST]", type=int, required=False)
@asking_options
@global_options
@click.pass_obj
def confirm(
    session: Session, name: str, first_seq: int, last_seq: int | None, dry_run: bool, yes: bool
) -> None:
    """Confirm by hand that a destination has the seqs FIRST to LAST; with FIRST alone, everything up to it.

    These seqs are not delivered any more.

    \b
    JSON (with -y or --dry-run): {"name", "dry_run", "first_seq", "last_seq"}
    """
    check_asking(session, dry_run=dry_run, yes=yes)
    with session.opened(read_only=dry_run) as store:
        store.sinks.confirm(name, first_seq, last_seq, dry_run=True)
        what = f"everything up to seq {first_seq:,}"
        if last_seq is not None:
            what = f"the seqs {first_seq:,} to {last_seq:,}"
        if not dry_run:
            if not yes:
                asked(f"Count {what} as delivered to {name}?")
            store.sinks.confirm(name, first_seq, last_seq)
    if session.as_json:
        print_json({"name": name, "dry_run": dry_run, "first_seq": first_seq, "last_seq": last_seq})
    else:
        session.say(f"{name}: {what} {'would count' if dry_run else 'counts'} as delivered")


@click.command()
@click.option("--restored", is_flag=True, help="Keep the store's id and raise its epoch, after a restore.")
@asking_options
@global_options
@click.pass_obj
def rekey(session: Session, restored: bool, dry_run: bool, yes: bool) -> None:
    """Give this store a new identity at every destination, after a delivery stopped as forked.

    If a destination and a store disagree on the last batch, one of them is a copy, or was put back to an
    earlier state. Nothing is delivered then, because one reading could replace another.

    \b
    This store is a copy of another one, which is still in use:
      holdfast sinks rekey             a new id; waits for the columns
    This store, or the destination, was restored from a copy:
      holdfast sinks rekey --restored  the same id in the next epoch
    Afterwards, `sinks replay` delivers again what the destination may lack.

    What was confirmed stays confirmed. `migrate --restore` raises the epoch by itself.

    \b
    JSON (with -y or --dry-run): {"store_id", "former_store_id": the same if only
    the epoch was raised, "epoch"}; with --dry-run as they are now
    """
    check_asking(session, dry_run=dry_run, yes=yes)
    with session.opened(read_only=dry_run) as store:
        if dry_run:
            from repo.store.sinks import Rekeyed

            epoch, store_id = store.sinks.identity()
            done = Rekeyed(store_id, store_id, epoch)
        else:
            if not yes:
                asked(
                    "Raise the epoch of this store?"
                    if restored
                    else "Give this store a new id for its destinations?"
                )
            done = store.sinks.rekey(restored=restored)
    if session.as_json:
        print_json(done.as_dict())
    elif dry_run:
        session.say(f"the store has the id {done.store_id} and the epoch {done.epoch}; nothing was changed")
    else:
        session.say(f"the store now has the id {done.store_id} and the epoch {done.epoch}")


def _show_moved(session: Session, moved: Moved, done: str) -> None:
    if session.as_json:
        print_json(moved.as_dict())
        return
    seqs = counted(abs(moved.behind_before - moved.behind), "seq")
    session.say(
        f"{seqs} {'would be ' if moved.dry_run else ''}{done}; {moved.name} gets seq {moved.first_seq:,} next, and is "
        f"{counted(moved.behind, 'seq')} behind"
    )
    _say_lost(session, moved)


def _say_lost(session: Session, moved: Moved) -> None:
    if moved.lost == 0:
        return
    amount = "points" if moved.lost is None else counted(moved.lost, "point")
    span = ""
    if moved.lost_first_us is not None and moved.lost_last_us is not None:
        span = f" of {iso_second(moved.lost_first_us)} to {iso_second(moved.lost_last_us)}"
    session.note(
        f"{amount}{span} cannot be delivered: they were dropped; `{session.command('losses')}` lists them"
    )
