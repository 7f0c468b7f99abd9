"""The claim of a forwarder on a sink, so that no other one delivers to it. Owns the lock files of sinks."""

from __future__ import annotations

import hashlib

from repo.errors import StoreBusy
from repo.lease import Lease
from repo.store.store import Store

__all__ = ["Claim"]


class Claim:
    """The right to deliver to one sink of a store, in all processes. The kernel ends it when the process ends.

    Not thread-safe.
    """

    def __init__(self, store: Store, sink: str) -> None:
        files = store.files
        self._sink = sink
        # The name of a sink may have characters that the name of a file must not have.
        place = hashlib.sha256(sink.encode()).hexdigest()[:16]
        self._lease = Lease(files.folder, store.now_us, prefix=f"{files.prefix}sink-{place}-")

    @property
    def held(self) -> bool:
        """Whether it is held."""
        return self._lease.held

    def take(self) -> None:
        """Take it at once, unless it is held; raises `StoreBusy`, which names the process that has it."""
        try:
            self._lease.acquire(0.0, f"delivery to {self._sink}")
        except StoreBusy as busy:
            holder = "" if busy.holder is None else f" in process {busy.holder}"
            raise StoreBusy(
                f"another forwarder{holder} delivers to {self._sink!r}; stop it first, or leave it to that one",
                path=busy.path,
                holder=busy.holder,
            ) from busy

    def close(self) -> None:
        """Give it up. Safe to call again."""
        self._lease.close()
