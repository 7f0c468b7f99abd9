"""`store.sinks`: the destinations of a store, and how far each has confirmed delivery."""

from __future__ import annotations

from repo.arguments import check_choice, check_count, check_text
from repo.core.handle import Handle
from repo.errors import InvalidQuery
from repo.fields import name_of
from repo.repositories.sinks import Cursor, FailureKind, SinkRepository
from repo.times import Unfit

__all__ = ["Sinks"]


class Sinks:
    """`store.sinks`. Uses SQLite only, so it never waits for the columns. Thread-safe."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    def register(self, name: str) -> int:
        """Add a sink if it is new, and return the seq through which it has confirmed everything.

        Raises `InvalidQuery` for an invalid name; the rules are those for sensor names.
        """
        _check_name(name)
        with self._handle.metadata.write() as connection:
            return SinkRepository(connection).register(name, self._handle.clock())

    def confirm(self, name: str, seq: int) -> None:
        """Move a sink's cursor forward to `seq`, durably; it never moves back.

        Raises `InvalidQuery` for an unregistered sink or an invalid seq.
        """
        _check_name(name)
        seq = check_count(seq, "seq", 0)
        with self._handle.metadata.write() as connection:
            if not SinkRepository(connection).confirm(name, seq, self._handle.clock()):
                raise InvalidQuery(f"there is no sink {name!r}; store.sinks.register({name!r}) adds it")

    def note_failure(self, name: str, kind: FailureKind, reason: str) -> None:
        """Record why deliveries to a sink fail, for `status`, until it confirms something; for forwarders.

        `kind` is "unreachable" or "refused". Raises `InvalidQuery` for another kind, or an invalid name.
        """
        _check_name(name)
        check_choice(kind, "kind", ("unreachable", "refused"))
        reason = check_text(reason, "reason")
        with self._handle.metadata.write() as connection:
            SinkRepository(connection).note_failure(name, kind, reason, self._handle.clock())

    def list(self) -> list[Cursor]:
        """Return all sinks with their cursors, sorted by name."""
        with self._handle.metadata.read() as connection:
            return SinkRepository(connection).list()

    def last_seq(self) -> int:
        """Return the seq of the newest acknowledged change, the position of an up-to-date cursor; 0 in a new store."""
        return self._handle.journal_end()


def _check_name(name: object) -> None:
    try:
        name_of(name)
    except Unfit as fault:
        raise InvalidQuery(f"the name of a sink {fault}") from fault
