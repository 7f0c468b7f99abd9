"""Probe: opens a sink and reports what was found. Sends no points and records nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

from repo.delivery.chain import refuse_forks
from repo.delivery.protocol import Sink
from repo.delivery.sinks.registry import sink_of
from repo.errors import InvalidQuery, SinkHalted, SinkUnreachable, StoreForked
from repo.repositories.sinks import SinkInfo
from repo.store.claims import Claim
from repo.store.store import Store

__all__ = ["Probe", "probe"]


@runtime_checkable
class Checks(Protocol):
    """A sink that knows more about the next delivery than `open` shows."""

    def check(self) -> str:
        """Return in words what else was found, or what cannot be known; raises as `Sink.send` does."""
        ...


@dataclass(frozen=True, slots=True)
class Probe:
    """What was found."""

    name: str
    outcome: Literal["ok", "unreachable", "halted", "forked"]
    found: str
    """In words."""
    exact: bool | None = None
    """Whether the destination keeps the position, so that each point arrives once; None if it is unknown."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values; `holdfast --json sinks test` prints it."""
        return asdict(self)


def probe(store: Store, name: str) -> Probe:
    """Connect to a sink as a delivery would, and disconnect.

    Raises `StoreBusy` while a forwarder delivers to it, `InvalidQuery` for an unknown sink or one of a program, and
    `MissingExtra` if the sink needs a package that is not installed.
    """
    info = store.sinks.show(name)
    if info.kind == "own":
        raise InvalidQuery(
            f"the sink {name!r} is implemented by a program, and only that program can connect to it"
        )
    claim = Claim(store.files, store.now_us, name)
    claim.take()
    try:
        sink = sink_of(info.name, info.kind, info.target, info.options)
        epoch, store_id = store.sinks.identity()
        try:
            held = sink.open(store_id, epoch)
            return _checked(_judged(info, held, exact=sink.exact), sink)
        except StoreForked as error:
            return Probe(name, "forked", str(error), True)
        except (SinkUnreachable, OSError) as error:
            return Probe(name, "unreachable", str(error) or type(error).__name__)
        except SinkHalted as error:
            return Probe(name, "halted", str(error))
        finally:
            sink.close()
    finally:
        claim.close()


def _checked(found: Probe, sink: Sink) -> Probe:
    if found.outcome == "ok" and isinstance(sink, Checks) and (more := sink.check()):
        return replace(found, found=f"{found.found}; {more}")
    return found


def _judged(info: SinkInfo, held: str | None, *, exact: bool) -> Probe:
    if not exact:
        return Probe(info.name, "ok", "connected; it keeps no position, so a batch may arrive twice", False)
    if held == info.token:
        state = "it has the last batch" if held else "it has nothing of this store yet"
        return Probe(info.name, "ok", f"connected; {state}", True)
    refuse_forks(info, held)
    return Probe(info.name, "ok", "connected; it has the batch that was sent and not answered", True)
