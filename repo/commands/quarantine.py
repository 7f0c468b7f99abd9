"""`quarantine`: lists, retries, exports and drops the items that destinations refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from repo.commands.asking import asked, asking_options, check_asking
from repo.commands.global_options import global_options
from repo.commands.groups import SuggestingGroup
from repo.commands.options import iso_second
from repo.commands.output import print_json, write_rows
from repo.commands.session import Session
from repo.commands.terminal import is_terminal
from repo.errors import counted

if TYPE_CHECKING:
    from repo import Store
    from repo.repositories.quarantine import Quarantined

__all__ = ["quarantine"]

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

sink_option = click.option("--sink", metavar="NAME", help="The items of this sink.")


@click.group(cls=SuggestingGroup, no_args_is_help=True)
def quarantine() -> None:
    """Handle the points and records that destinations refused.

    If a destination refuses an item, the item waits here with the reason, and the others are delivered.
    Points also stay in the store; records are only here.
    """


def _chosen_items(function: Decorated) -> Decorated:
    """Choose items by their ids, by their sink, or all."""
    for option in (
        click.argument("ids", metavar="[ID]...", type=click.IntRange(min=1), nargs=-1),
        sink_option,
        click.option("--all", "everything", is_flag=True, help="All items of all sinks."),
    )[::-1]:
        function = option(function)
    return function


@quarantine.command("list")
@click.argument("sink", metavar="[SINK]", required=False)
@click.option("--limit", metavar="ITEMS", type=click.IntRange(min=1), default=1000, show_default=True)
@global_options
@click.pass_obj
def list_(session: Session, sink: str | None, limit: int) -> None:
    """List items, in the order in which they were refused.

    \b
    JSON: [{"id", "sink", "kind": refused or too_late, "reason", "seq",
    "sensor_id", "metric_name", "value" or "value_text", "quality", "metadata":
    JSON text, "retry": whether it is sent again; or "record_id", "source",
    "data": JSON text; "timestamp_us", "timestamp", "recorded_us", "recorded"}];
    what an item does not have is left out
    """
    from repo.store.quarantine import plain_item

    with session.opened(read_only=True) as store:
        if sink is not None:
            store.sinks.show(sink)
        items = store.quarantine.list(sink, limit)
        count = store.quarantine.count(sink)
    if session.as_json:
        print_json([plain_item(item) for item in items])
        return
    write_rows(
        "table",
        ("id", "sink", "item", "time", "value", "reason"),
        map(_row, items),
        cuttable=("item", "reason") if is_terminal() else (),
    )
    session.say(f"{counted(count, 'item')} in quarantine" + (f", of {sink}" if sink else ""))


@quarantine.command()
@click.argument("item_id", metavar="ID", type=click.IntRange(min=1))
@global_options
@click.pass_obj
def show(session: Session, item_id: int) -> None:
    """Show an item.

    \b
    JSON: as an item of `quarantine list`
    """
    from repo.store.quarantine import plain_item

    with session.opened(read_only=True) as store:
        plain = plain_item(store.quarantine.show(item_id))
    if session.as_json:
        print_json(plain)
        return
    for name, value in plain.items():
        if not name.endswith("_us"):
            session.say(f"{name:<12}{value}")


@quarantine.command()
@_chosen_items
@global_options
@click.pass_obj
def retry(session: Session, ids: tuple[int, ...], sink: str | None, everything: bool) -> None:
    """Send items again, after the cause was fixed.

    The next delivery sends the points one by one; a point leaves the quarantine once it is accepted, or if it
    was overwritten in the meantime. It stays if the store no longer has it, or the filter of the sink no
    longer selects it. Records are pending again at once.

    \b
    JSON: {"points": to be sent again, "records": pending again, "replaced":
    dropped, because a newer record with the same id is pending}
    """
    with session.opened() as store:
        done = store.quarantine.retry(_ids(store, ids, sink, everything))
    if session.as_json:
        print_json({"points": done.points, "records": done.records, "replaced": done.replaced})
        return
    session.say(
        f"{counted(done.points, 'point')} to be sent again, {counted(done.records, 'record')} pending again"
        + (f", {counted(done.replaced, 'record')} dropped in favour of newer ones" if done.replaced else "")
    )


@quarantine.command()
@_chosen_items
@asking_options
@global_options
@click.pass_obj
def drop(
    session: Session, ids: tuple[int, ...], sink: str | None, everything: bool, dry_run: bool, yes: bool
) -> None:
    """Drop items: they are never delivered. Points stay in the store; the loss ledger counts both.

    \b
    JSON (with -y or --dry-run): {"dry_run", "dropped": items}
    """
    check_asking(session, dry_run=dry_run, yes=yes)
    with session.opened(read_only=dry_run) as store:
        chosen = _ids(store, ids, sink, everything)
        if chosen and not dry_run:
            if not yes:
                asked(f"Drop {counted(len(chosen), 'item')} for good?")
            store.quarantine.drop(chosen)
    if session.as_json:
        print_json({"dry_run": dry_run, "dropped": len(chosen)})
    else:
        session.say(f"{counted(len(chosen), 'item')} {'would be ' if dry_run else ''}dropped")


@quarantine.command()
@click.argument("target", metavar="FILE", type=click.Path(path_type=Path))
@sink_option
@global_options
@click.pass_obj
def export(session: Session, target: Path, sink: str | None) -> None:
    """Write items to FILE as NDJSON: one object per line, as in `quarantine list --json`. An existing file is replaced.

    \b
    JSON: {"path", "items": written}
    """
    with session.opened(read_only=True) as store:
        if sink is not None:
            store.sinks.show(sink)
        written = store.quarantine.export(target, sink)
    if session.as_json:
        print_json({"path": str(target), "items": written})
    else:
        session.say(f"{counted(written, 'item')} written to {target}")


def _ids(store: Store, ids: tuple[int, ...], sink: str | None, everything: bool) -> list[int]:
    if (bool(ids), sink is not None, everything).count(True) != 1:
        raise click.UsageError("choose items by their ids, with --sink NAME, or with --all")
    if ids:
        for item_id in ids:
            store.quarantine.show(item_id)
        return list(dict.fromkeys(ids))
    if sink is not None:
        store.sinks.show(sink)
    return [item.id for item in store.quarantine.list(sink, None) if item.id is not None]


def _row(item: Quarantined) -> dict[str, Any]:
    name = (
        f"record {item.record_id}" if item.record_id is not None else f"{item.sensor_id} {item.metric_name}"
    )
    waits = " (is sent again)" if item.retry else ""
    return {
        "id": item.id,
        "sink": item.sink,
        "item": name,
        "time": iso_second(item.timestamp_us),
        "value": item.value_text if item.value is None else item.value,
        "reason": item.reason + waits,
    }
