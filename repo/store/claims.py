"""The claim of a forwarder on a sink, so that no other one delivers to it. Owns the lock files of sinks."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Callable

from repo.errors import StoreBusy
from repo.files import StoreFiles
from repo.processes.lease import Lease

__all__ = ["Claim", "forget_claim"]


class Claim:
    """The right to deliver to one sink of a store, in all processes. The kernel ends it when the process ends.

    Not thread-safe.
    """

    def __init__(self, files: StoreFiles, now_us: Callable[[], int], sink: str) -> None:
        self._files = files
        self._now_us = now_us
        self._sink = sink
        self._prefix = _prefix(files, sink)
        self._lease = self._new_lease()

    @property
    def held(self) -> bool:
        """Whether it is held."""
        return self._lease.held

    def take(self) -> None:
        """Take it at once, unless it is held; raises `StoreBusy`, which names the process that has it."""
        try:
            self._lease.acquire(0.0, f"delivery to {self._sink}")
            while not self._lease.is_current():  # the sink was removed, with the files, and added again
                self._lease.close()
                self._lease = self._new_lease()
                self._lease.acquire(0.0, f"delivery to {self._sink}")
        except StoreBusy as busy:
            holder = "" if busy.holder is None else f" in process {busy.holder}"
            raise StoreBusy(
                f"another forwarder{holder} delivers to {self._sink!r}; stop it first, or leave it to that one",
                path=busy.path,
                holder=busy.holder,
            ) from busy

    def close(self, *, forget: bool = False) -> None:
        """Release the claim; with `forget`, remove its files, if it is held. Safe to call again."""
        if forget and self.held:
            self._lease.remove()
        self._lease.close()

    def _new_lease(self) -> Lease:
        return Lease(self._files.folder, self._now_us, prefix=self._prefix)


def forget_claim(files: StoreFiles, now_us: Callable[[], int], sink: str) -> None:
    """Remove the lock files of a sink that was removed, unless a forwarder still runs, which does so when it ends."""
    if not any(files.folder.glob(f"{glob.escape(_prefix(files, sink))}*")):
        return  # nothing was ever delivered, and the disk may be full
    claim = Claim(files, now_us, sink)
    try:
        claim.take()
    except StoreBusy:
        claim.close()
    else:
        claim.close(forget=True)


def _prefix(files: StoreFiles, sink: str) -> str:
    """Return the prefix of both file names. A sink's name may have characters that file names cannot have."""
    return f"{files.prefix}sink-{hashlib.sha256(sink.encode()).hexdigest()[:16]}-"
