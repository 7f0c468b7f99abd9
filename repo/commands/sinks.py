"""`sinks`: the destinations of the store: adds, changes, shows, tests, pauses and removes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from repo.clock import system_clock
from repo.commands.asking import asked, asking_options, check_asking
from repo.commands.exits import Exit
from repo.commands.global_options import global_options, output_options
from repo.commands.groups import SuggestingGroup
from repo.commands.options import iso_second, zone_of
from repo.commands.output import print_json, write_rows
from repo.commands.session import Session
from repo.commands.sink_cursors import confirm, rekey, replay, skip
from repo.commands.sink_settings import lanes_of, options_of, settings_of, settings_options
from repo.commands.sink_texts import sink_lines
from repo.errors import counted
from repo.inputs.time_texts import parse_time
from repo.inputs.times import to_datetime

if TYPE_CHECKING:
    from datetime import datetime

    from repo.repositories.sinks import SinkInfo

__all__ = ["sinks"]

_name = click.argument("name", metavar="NAME")


@click.group(cls=SuggestingGroup, no_args_is_help=True)
def sinks() -> None:
    """Manage the destinations of the store.

    `holdfast run` and `holdfast drain` deliver to them, and so does `Forwarder(store).start()` in an application.
    """


for _command in (skip, replay, confirm, rekey):
    sinks.add_command(_command)


@sinks.command()
@_name
@click.argument("url", metavar="URL")
@click.option(
    "--from",
    "start",
    metavar="TIME",
    help="Where to begin: a time, 'now', or 'beginning' for everything.  [required]",
)
@click.option(
    "--records", is_flag=True, help="Deliver pending records, too. Only one sink of a store may get them."
)
@click.option("--no-hold", is_flag=True, help="Let a cleanup delete what this sink has not confirmed.")
@settings_options
@global_options
@click.pass_obj
def add(
    session: Session, /, name: str, url: str, start: str | None, records: bool, no_hold: bool, **given: Any
) -> None:
    """Add a destination.

    \b
    The scheme of URL is the kind of sink:
      https://HOST/PATH            HTTP: NDJSON, JSON, InfluxDB line protocol
      https+holdfast://HOST:PORT   another Holdfast store (`run --receive`)
      postgresql://HOST/DATABASE   tables for many stores in PostgreSQL
      mqtts://HOST/TOPIC           MQTT; mqtt:// without TLS
      kafka+ssl://HOST:PORT/TOPIC  Kafka; kafka:// without TLS
      file:///PATH                 files in a folder, such as on a stick
    `sinks kinds KIND` lists the options of a kind. A URL never contains a password or
    a token: the store keeps and shows it. Name the place of a secret with --secret.

    --from says where the deliveries begin. A time means the first point with that time or a later one, and
    everything that was written after that point; times are written as for `query`. 'now' leaves out what is
    in the store. 'beginning' and times have to wait for the columns.

    A cleanup keeps what a sink has not confirmed, up to its --max-backlog. It keeps the points of all series,
    even if --sensor or --metric selects only some.

    \b
    JSON: as `sinks show`
    """
    from repo.delivery.sinks.registry import check_sink
    from repo.errors import InvalidQuery

    if start is None:
        raise click.UsageError(
            "Missing option '--from': how much of the stored data the sink gets: 'beginning' for everything, 'now' for "
            "nothing, or a time"
        )
    now_us = system_clock()
    begin: str | datetime = start
    if start not in ("now", "beginning"):
        zone = zone_of(given["tz"])
        try:
            begin = to_datetime(parse_time(start, now_us=now_us, zone=zone))
        except InvalidQuery as error:
            raise InvalidQuery(f"--from: {error}, or beginning") from error
    with session.opened() as store:
        settings, options = settings_of(store, given), options_of(given)
        check_sink(name, url, options)
        info = store.sinks.add(
            name, url, start=begin, records=records, hold=not no_hold, **settings, **options
        )
    _show(session, info)


@sinks.command()
@_name
@click.option(
    "--hold/--no-hold", default=None, help="Whether a cleanup keeps what this sink has not confirmed."
)
@click.option("--records/--no-records", default=None, help="Whether the sink gets the pending records.")
@click.option("--all-series", is_flag=True, help="Deliver every sensor and metric again.")
@click.option("--no-rate", is_flag=True, help="Remove the limit of bytes per second.")
@click.option("--no-max-backlog", is_flag=True, help="Remove the limits of the hold.")
@click.option("--two-lanes", is_flag=True, help="Send new readings before a backlog again.")
@settings_options
@global_options
@click.pass_obj
def change(
    session: Session,
    /,
    name: str,
    hold: bool | None,
    records: bool | None,
    all_series: bool,
    no_rate: bool,
    no_max_backlog: bool,
    two_lanes: bool,
    **given: Any,
) -> None:
    """Change settings of a destination; the others stay as they are.

    A running forwarder uses the changes from the next batch on. `--option KEY=` removes an option. The URL
    cannot be changed: remove the sink, and add one with the new URL.

    \b
    JSON: as `sinks show`
    """
    with session.opened() as store:
        before = store.sinks.show(name)
        settings = settings_of(store, given)
        if two_lanes or given["share"] or given["newest_first"] or given["one_lane"]:
            settings["lanes"] = lanes_of(given, before.lanes._asdict() | ({"two": True} if two_lanes else {}))
        for wanted, key, option, others in (
            (all_series, "filter", "--all-series", "--sensor and --metric"),
            (no_rate, "rate", "--no-rate", "--rate and --window"),
            (no_max_backlog, "max_backlog", "--no-max-backlog", "the other --max-backlog options"),
        ):
            if wanted and key in settings:
                raise click.UsageError(f"{option} contradicts {others}")
            if wanted:
                settings[key] = None
        for key, value in (("hold", hold), ("records", records)):
            if value is not None:
                settings[key] = value
        info = store.sinks.change(name, **settings, **options_of(given))
    _show(session, info)


@sinks.command("list")
@global_options
@click.pass_obj
def list_(session: Session) -> None:
    """List the destinations.

    \b
    JSON: [as `sinks show`]
    """
    with session.opened(read_only=True) as store:
        found = store.sinks.list()
    if session.as_json:
        print_json([info.as_dict() for info in found])
        return
    if not found:
        session.note(f"the store has no sinks; `{session.command('sinks add --help')}` says how to add one")
        return
    write_rows(
        "table",
        ("name", "kind", "state", "behind", "points/s", "confirmed", "target"),
        [
            {
                "name": info.name,
                "kind": info.kind,
                "state": info.state,
                "behind": info.behind,
                "points/s": round(info.points_per_s),
                "confirmed": iso_second(info.confirmed_us),
                "target": info.target,
            }
            for info in found
        ],
        cuttable=("target", "name"),
        optional=("points/s", "kind", "confirmed"),
        narrowest={"target": 24},
        hides_empty=False,
        note=session.note,
    )


@sinks.command()
@click.argument("kind", metavar="[KIND]", required=False)
@output_options
@click.pass_obj
def kinds(session: Session, kind: str | None) -> None:
    """List the kinds of sinks, or the options of one, for `--option` and `--secret`.

    \b
    JSON: {kind: {"schemes": of its URLs, "prefix": any option that begins with it
    is passed on, or null, "options": {name: {"about", "type": text, user, secret,
    choice, flag, count or seconds, "default": or null, "choices": []}}}}
    """
    from repo.store.sink_options import OPTIONS, PREFIXES
    from repo.store.targets import KINDS

    known = sorted(set(KINDS.values()))
    if kind is not None and kind not in known:
        raise click.UsageError(f"there is no kind {kind!r}; the kinds are {', '.join(known)}")
    found: dict[str, Any] = {
        name: {
            "schemes": [scheme for scheme, of in KINDS.items() if of == name],
            "prefix": PREFIXES.get(name),
            "options": {
                key: {
                    "about": one.about,
                    "type": one.type,
                    "default": one.default,
                    "choices": list(one.choices),
                }
                for key, one in OPTIONS.get(name, {}).items()
            },
        }
        for name in known
        if kind in (None, name)
    }
    if session.as_json:
        print_json(found)
    elif kind is None:
        for name in known:
            session.say(f"{name:<12}{', '.join(f'{scheme}://' for scheme in found[name]['schemes'])}")
        session.say("`holdfast sinks kinds KIND` lists the options of a kind")
    else:
        for key, one in OPTIONS.get(kind, {}).items():
            what = {"choice": " | ".join(one.choices), "flag": "true | false"}.get(one.type, one.type)
            default = "" if one.default is None else f"; default {str(one.default).replace('True', 'true')}"
            default = default.replace("False", "false")
            session.say(f"{key:<18}{one.about} ({what}{default})")
        if kind in PREFIXES:
            session.say(f"{PREFIXES[kind] + 'NAME':<18}passed on")


@sinks.command()
@_name
@global_options
@click.pass_obj
def show(session: Session, name: str) -> None:
    """Show a destination: its settings, what it has confirmed, and how its deliveries go.

    \b
    JSON: {"name", "kind", "target", "options": {name: value, or the place of a
    secret}, "filter": {"sensor_id", "metric_name"} or null, "records", "hold",
    "max_backlog": {"age_us", "points", "bytes"} or null, "rate": {"bytes_per_s",
    "windows", "zone", "text"} or null, "lanes": {"two", "share", "order"},
    "state": running, paused, failing, halted, forked or stopped, "since_us",
    "last_error", "failures": since the last confirmation, "confirmed_seq",
    "ranges": [[first, last]] confirmed above it, "behind": seqs, "attempt":
    {"first_seq", "last_seq", "points", "checksum", "lane", "tries", "begun_us"}
    or null, "sent_points", "sent_records", "sent_bytes", "repeats", "refused",
    "points_per_s", "confirmed_us", "created_us", "updated_us"}
    """
    with session.opened(read_only=True) as store:
        info = store.sinks.show(name)
        quarantined = store.quarantine.count(name)
    _show(session, info, quarantined)


@sinks.command("test")
@_name
@global_options
@click.pass_obj
def test_(session: Session, name: str) -> None:
    """Connect to a destination and report what was found; send no points.

    PostgreSQL, InfluxDB, brokers and Holdfast stores check the login, too. HTTP receivers of JSON do so only when they
    get points.

    Exits 1 if the destination cannot be reached, 3 if it rejects the connection or does not match this store,
    4 while a forwarder delivers to it.

    \b
    JSON: {"name", "outcome": ok, unreachable, halted or forked, "exact": whether
    it keeps the position, or null if unknown, "found": text}
    """
    from repo.delivery.probe import probe

    with session.opened() as store:
        found = probe(store, name)
    if session.as_json:
        print_json(found.as_dict())
    else:
        session.say(f"{name}: {found.outcome}: {found.found}")
    if found.outcome != "ok":
        raise click.exceptions.Exit(Exit.FAILED if found.outcome == "unreachable" else Exit.PROBLEMS)


@sinks.command()
@_name
@global_options
@click.pass_obj
def pause(session: Session, name: str) -> None:
    """Stop the deliveries to a destination until `resume`. The batch in hand is finished, and the hold stays.

    \b
    JSON: as `sinks show`
    """
    with session.opened() as store:
        _show(session, store.sinks.pause(name))


@sinks.command()
@_name
@global_options
@click.pass_obj
def resume(session: Session, name: str) -> None:
    """Resume the deliveries to a paused, stopped or forked destination.

    \b
    JSON: as `sinks show`
    """
    with session.opened() as store:
        _show(session, store.sinks.resume(name))


@sinks.command()
@_name
@asking_options
@global_options
@click.pass_obj
def remove(session: Session, name: str, dry_run: bool, yes: bool) -> None:
    """Remove a destination, and its hold.

    The points stay in the store, including those that the destination refused. Records that it refused are
    dropped, and the loss ledger counts them; export them first (`quarantine export`).

    \b
    JSON (with -y or --dry-run): {"name", "dry_run", "behind", "quarantined_points",
    "quarantined_records"}
    """
    check_asking(session, dry_run=dry_run, yes=yes)
    with session.opened(read_only=dry_run) as store:
        meant = store.sinks.remove(name, dry_run=True)
        if not dry_run and not yes:
            if meant.quarantined_records:
                session.note(
                    f"{counted(meant.quarantined_records, 'refused record')} in quarantine will be dropped with it"
                )
            asked(f"Remove {name}, which is {counted(meant.behind, 'seq')} behind?")
        done = meant if dry_run else store.sinks.remove(name)
    if session.as_json:
        print_json(done.as_dict())
    else:
        session.say(
            f"{name} {'would be removed' if dry_run else 'was removed'}; {counted(done.behind, 'seq')} not delivered"
        )


def _show(session: Session, info: SinkInfo, quarantined: int = 0) -> None:
    if session.as_json:
        print_json(info.as_dict())
        return
    for label, text in sink_lines(info, quarantined):
        session.say(f"{label:<12}{text}")
