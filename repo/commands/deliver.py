"""`drain`, `run` and `reconcile`: deliver to the destinations of the store, and compare what they have."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repo.commands.exits import Exit
from repo.commands.global_options import global_options
from repo.commands.options import naming
from repo.commands.output import print_json
from repo.commands.session import Session
from repo.commands.sink_texts import WHAT_FOLLOWS
from repo.errors import InvalidSettings, counted

if TYPE_CHECKING:
    from repo import Store
    from repo.delivery.forwarder import Drained
    from repo.delivery.receiver import Receiver
    from repo.delivery.steps import Step

__all__ = ["drain", "reconcile", "run"]

_REJECTING = ("halted", "forked")


@click.command()
@click.argument("sinks", metavar="[SINK]...", nargs=-1)
@click.option(
    "--timeout",
    metavar="SPAN",
    help="Keep trying for this long (5m) if a sink is unreachable; by default, give up at once.",
)
@global_options
@click.pass_obj
def drain(session: Session, sinks: tuple[str, ...], timeout: str | None) -> None:
    """Deliver everything that waits, and exit: to all destinations, or to the named ones.

    Run it from a timer, or before a device is switched off. Exits 0 if everything was delivered; 1 if a
    destination could not be reached, its rate is 0 now, or the time was up; 3 if a destination refused
    something, rejects everything or is paused; 4 if another process delivers to it. An interrupt loses
    nothing; the next delivery continues.

    \b
    JSON: [{"name", "delivered": points and records, "refused": put into
    quarantine, "progress": idle if everything was delivered, unreachable, halted,
    forked, paused, limited or busy, "behind": seqs, "error": text or null}]
    """
    from repo.delivery.forwarder import Forwarder
    from repo.inputs.time_texts import parse_duration_us

    with naming("--timeout"):
        timeout_s = None if timeout is None else parse_duration_us(timeout) / 1e6
    with session.opened() as store:
        _check_names(store, sinks)
        behind = sum(info.behind for info in store.sinks.list() if not sinks or info.name in sinks)
        with session.progress("delivering") as show:
            done = 0

            def on_step(_name: str, step: Step) -> None:
                nonlocal done
                done += step.items
                show(min(done, behind), behind)

            forwarder = Forwarder(store, list(sinks) or None, on_step=on_step)
            # The result, which comes at once without a timeout, says the same.
            shown_once = (
                session.without_log("holdfast.delivery.state") if timeout_s is None else nullcontext()
            )
            with _stopping(forwarder.stop), shown_once:
                found = forwarder.drain(timeout_s)
            forwarder.stop()
        left = {info.name: info.behind for info in store.sinks.list()}
    if session.as_json:
        print_json([_plain(name, drained, left.get(name, 0)) for name, drained in found.items()])
    else:
        if not found:
            session.note(
                f"there is nothing to deliver to; `{session.command('sinks add --help')}` says how to add a sink"
            )
        for name, drained in found.items():
            session.say(f"{name}: {_text(drained, left.get(name, 0))}")
    code = max((_code(drained, left.get(name, 0)) for name, drained in found.items()), default=Exit.DONE)
    if code:
        raise click.exceptions.Exit(code)


@click.command()
@click.argument("sinks", metavar="[SINK]...", nargs=-1)
@click.option("--receive", metavar="HOST:PORT", help="Also take batches of other stores, at this address.")
@click.option(
    "--token",
    "tokens",
    metavar="PLACE",
    multiple=True,
    help="With --receive: where a bearer token is, env:NAME or file:PATH. The first store that uses it owns it.",
)
@click.option(
    "--certificate",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="With --receive: certificate for TLS (PEM).",
)
@click.option("--key", metavar="FILE", type=click.Path(path_type=Path), help="With --receive: its key (PEM).")
@global_options
@click.pass_obj
def run(
    session: Session,
    sinks: tuple[str, ...],
    receive: str | None,
    tokens: tuple[str, ...],
    certificate: Path | None,
    key: Path | None,
) -> None:
    """Deliver to the destinations until SIGTERM or Ctrl-C: to all, or to the named ones.

    Use it if no application delivers for the store with `Forwarder(store).start()`. It notices sinks that are
    added, changed, paused or removed while it runs. At SIGTERM, it finishes the batch in hand. `status` and
    `sinks list` show the progress. The log is on stderr.

    With --receive, the store takes what the sinks https+holdfast://HOST:PORT of other stores send, each point exactly
    once. That needs a --token for each sender, unless only this machine can connect (127.0.0.1), and --certificate and
    --key, unless the network is trusted.

    Exits 0 after SIGTERM, 4 if another process delivers to one of the sinks.
    """
    if receive is None and (tokens or certificate or key):
        raise click.UsageError("--token, --certificate and --key are for --receive")
    from repo.delivery.forwarder import Forwarder

    if not session.quiet:
        session.log_level(verbose=1)
    ended = threading.Event()
    with ExitStack() as stack:
        stack.enter_context(_stopping(ended.set))
        store = stack.enter_context(session.opened(background=True))
        _check_names(store, sinks)
        if receive is not None:
            receiver = stack.enter_context(_receiver(store, receive, tokens, certificate, key))
            session.note(f"receiving at {receiver.url}")
        forwarder = stack.enter_context(Forwarder(store, list(sinks) or None))
        names = [
            info.name
            for info in store.sinks.list()
            if info.kind != "own" and (not sinks or info.name in sinks)
        ]
        if names:
            session.note(f"delivering to {', '.join(names)}")
        elif receive is None:
            session.note(
                f"there is nothing to deliver to yet; `{session.command('sinks add --help')}` says how to add a sink"
            )
        while not ended.wait(1.0):  # with a timeout, because an endless wait on a lock delays signals
            pass
        session.note("stopping after the batch in hand")
        del forwarder


@click.command()
@click.argument("sink", metavar="SINK")
@global_options
@click.pass_obj
def reconcile(session: Session, sink: str) -> None:
    """Compare what SINK confirmed with what its destination holds.

    Exits 3 if points are missing, and prints the ranges of their seqs; `sinks replay SINK --from-seq FIRST`
    delivers them again. Sinks of the kinds http, mqtt and kafka keep no position: count the points at the
    destination.

    \b
    JSON: {"sink", "store_id", "epoch", "checked": points, "missing": points,
    "ranges": [[first, last]] of their seqs, the first 1,000, "quarantined",
    "skipped", "behind"}
    """
    from repo.delivery.reconcile import reconcile as compare

    with session.opened() as store:
        _check_names(store, (sink,))
        found = compare(store, sink)
    if session.as_json:
        print_json(found.as_dict())
    else:
        what = "nothing is missing" if not found.missing else f"{counted(found.missing, 'point')} missing"
        session.say(f"{sink}: {counted(found.checked, 'confirmed point')} compared, {what}")
        for first, last in found.ranges:
            session.say(f"  seqs {first:,} to {last:,}")
        if found.missing:
            session.note(
                f"`{session.command(f'sinks replay {sink} --from-seq {found.ranges[0][0]}')}` delivers them again"
            )
    if found.missing:
        raise click.exceptions.Exit(Exit.PROBLEMS)


def _check_names(store: Store, names: tuple[str, ...]) -> None:
    for name in names:
        if store.sinks.show(name).kind == "own":
            raise InvalidSettings(f"the sink {name!r} is implemented by a program, which delivers to it")


def _code(drained: Drained, behind: int) -> Exit:
    if drained.refused or drained.last.progress in _REJECTING:
        return Exit.PROBLEMS
    if drained.last.progress == "paused":
        return Exit.PROBLEMS if behind else Exit.DONE
    return Exit.DONE if drained.is_empty else Exit.FAILED


def _plain(name: str, drained: Drained, behind: int) -> dict[str, Any]:
    error = drained.last.error
    return {
        "name": name,
        "delivered": drained.delivered,
        "refused": drained.refused,
        "progress": drained.last.progress.value,
        "behind": behind,
        "error": None if error is None else str(error),
    }


def _text(drained: Drained, behind: int) -> str:
    parts = [f"{counted(drained.delivered, 'item')} delivered"]
    if drained.refused:
        parts.append(f"{drained.refused:,} refused and put into quarantine")
    if not drained.is_empty:
        parts.append(f"{counted(behind, 'seq')} behind: {drained.last.progress.value}")
        if drained.last.error is not None:
            parts[-1] += f": {drained.last.error}"
        elif drained.last.progress == "paused":
            parts[-1] += f": {WHAT_FOLLOWS['paused']}"
    return "; ".join(parts)


def _receiver(
    store: Store, address: str, tokens: tuple[str, ...], certificate: Path | None, key: Path | None
) -> Receiver:
    from repo.delivery.receiver import Receiver
    from repo.delivery.secrets import Secret
    from repo.store.sink_options import is_reference

    host, separator, port = address.rpartition(":")
    if not separator or not port.isdecimal() or not host:
        raise click.UsageError("--receive is HOST:PORT: 0.0.0.0:8443, [::]:8443, 127.0.0.1:0")
    if not all(map(is_reference, tokens)):  # the value is not shown: it may be the token
        raise click.UsageError("--token names the place of a token: env:NAME or file:PATH")
    return Receiver(
        store,
        host.removeprefix("[").removesuffix("]"),
        int(port),
        tokens=[Secret("token", place).reveal() for place in tokens],
        certificate=certificate,
        key=key,
    )


@contextmanager
def _stopping(stop: Callable[[], object]) -> Iterator[None]:
    """Call `stop` at SIGTERM and at the first Ctrl-C; the second one interrupts. Only the main thread can do that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        threading.Thread(target=stop, name="holdfast-stop", daemon=True).start()

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
