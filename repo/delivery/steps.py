"""What a step of a delivery reports, and how long a failed one waits. Sends nothing."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from enum import StrEnum

from repo.delivery.protocol import Lane
from repo.errors import InvalidSettings, counted
from repo.inputs.arguments import check_fields

__all__ = ["Backoff", "Progress", "Step"]


class Progress(StrEnum):
    """What a step did."""

    DELIVERED = "delivered"
    """A batch was answered, and is confirmed with the next step, or by `settle`."""
    SPLIT = "split"
    """The sink refused a batch of several items, which is sent in halves, or its first item: another one is tried."""
    IDLE = "idle"
    """Everything is delivered and confirmed."""
    LIMITED = "limited"
    """The limit of bytes per second is used up for now; with an `error`, it is 0."""
    PAUSED = "paused"
    """The sink is paused."""
    UNREACHABLE = "unreachable"
    """No answer; the same range is sent again."""
    HALTED = "halted"
    """The sink rejects everything for now; the same range is tried again every minute."""
    FORKED = "forked"
    """The sink and the store do not match; see `StoreForked`."""
    BUSY = "busy"
    """The store could not be read or written. With `items`, the sink has stored a batch that the next step confirms."""


@dataclass(frozen=True, slots=True)
class Step:
    """The result of one step, and the seconds to wait before the next one."""

    progress: Progress
    wait_s: float = 0.0
    lane: Lane | None = None
    first_seq: int = 0
    last_seq: int = 0
    items: int = 0
    """The points or records that the sink has stored."""
    refused: int = 0
    """Those that it has refused; they are in quarantine."""
    repeat: bool = False
    """Whether the sink had the batch already."""
    error: Exception | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        parts = [self.progress.value]
        if self.lane is not None:
            parts.append(
                f"{self.lane}: {counted(self.items, 'item')}, seqs {self.first_seq} to {self.last_seq}"
            )
        if self.refused:
            parts.append(f"{self.refused:,} refused")
        if self.wait_s:
            parts.append(f"wait {self.wait_s:.3g} s")
        if self.error is not None:
            parts.append(f"{type(self.error).__name__}: {self.error}")
        return f"<Step: {'; '.join(parts)}>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """The delay after consecutive failures: it doubles with each one, up to `longest_s`.

    Each delay is randomly shortened by up to a half, so that a fleet does not reconnect all at once.
    """

    first_s: float = 0.5
    longest_s: float = 60.0

    def __post_init__(self) -> None:
        check_fields(self, error=InvalidSettings)
        if not 0 < self.first_s <= self.longest_s:
            raise InvalidSettings(
                f"backoff: first_s = {self.first_s!r} must be above 0 and at most longest_s = {self.longest_s!r}"
            )

    def delay_s(self, failures: int) -> float:
        """Return the seconds to wait after `failures` (at least 1) consecutive failures."""
        full = min(self.longest_s, self.first_s * 2.0 ** min(failures - 1, 60))
        return full * random.uniform(0.5, 1.0)  # noqa: S311  spreads load; nothing is secret
