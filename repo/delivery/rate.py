"""The token bucket that limits the bytes per second of a sink. The caller gives the time; nothing here waits."""

from __future__ import annotations

__all__ = ["BURST_S", "Bucket", "Speed", "batch_bytes"]

BURST_S = 1.0
"""How many seconds of the limit may be sent at once after a pause."""

_LEAST_BESIDE = 16_384
"""The smallest full batch beside another lane; below it, the delay of each answer would cost more than the bytes."""

_FIRST_BESIDE = 131_072
"""The first batch beside another lane, while nothing is known about the link."""

_LEAST_MEASURED = _LEAST_BESIDE // 2

_LEAST_BYTES = 4_096
"""The smallest batch: a lower limit makes longer pauses, not smaller batches."""


class Bucket:
    """Counts the bytes that may be sent. A batch may take more than it holds; the next one then waits.

    The limit is passed to each call, because it may change between two batches.
    """

    def __init__(self, now_s: float) -> None:
        self._at_s = now_s
        self._held: float | None = None

    def wait_s(self, now_s: float, bytes_per_s: int | None) -> float:
        """Return the seconds until the next batch may be sent; infinity if the limit is 0."""
        if bytes_per_s is None:
            self._held = None
            return 0.0
        if self._held is None:  # there was no limit before
            self._at_s, self._held = now_s, bytes_per_s * BURST_S
        self._held = min(bytes_per_s * BURST_S, self._held + (now_s - self._at_s) * bytes_per_s)
        self._at_s = now_s
        if bytes_per_s == 0:
            return float("inf")
        return max(0.0, -self._held / bytes_per_s)

    def take(self, sent_bytes: int) -> None:
        """Count a batch that was sent."""
        if self._held is not None:
            self._held -= sent_bytes


class Speed:
    """How fast a sink takes batches, so that one of back-fill keeps live readings waiting for about a second."""

    def __init__(self) -> None:
        self._bytes_per_s: float | None = None

    def note(self, sent_bytes: int, took_s: float) -> None:
        """Count a batch; small ones measure the delay of the link, not its speed."""
        if sent_bytes < _LEAST_MEASURED:
            return
        new = sent_bytes / max(took_s, 1e-6)
        self._bytes_per_s = new if self._bytes_per_s is None else (self._bytes_per_s + new) / 2

    def limit(self, most: int) -> int:
        """Return how large a batch may be beside another lane."""
        if self._bytes_per_s is None:
            return min(most, _FIRST_BESIDE)
        return max(min(most, _LEAST_BESIDE), min(most, int(self._bytes_per_s)))


def batch_bytes(most: int, bytes_per_s: int | None) -> int:
    """Return how large a batch may be: about a second of the limit, so that live readings wait no longer for one."""
    return most if bytes_per_s is None else max(_LEAST_BYTES, min(most, bytes_per_s))
