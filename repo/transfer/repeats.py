"""Repeats: counts the readings of a run that replace an earlier one of the same run.

The last million times or so are remembered, most of them in 8 bytes each.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left

from repo.inputs.batch import Batch

__all__ = ["Repeats"]

_REMEMBERED = 1_000_000
_OTHER_WEIGHT = 8
"""A time out of order takes as much memory as this many in order."""


class Repeats:
    """The times of each series that were written in a run."""

    def __init__(self, remembered: int = _REMEMBERED) -> None:
        self._most = remembered
        self._weight = 0
        self._times: dict[tuple[str, str], _Times] = {}

    def add(self, batch: Batch) -> int:
        """Remember the readings of a batch; return how many have the series and time of an earlier one."""
        known = [self._times.setdefault(series, _Times()) for series in batch.series]
        before = sum(times.weight for times in known)
        ascending = [times.ascending for times in known]
        repeated = 0
        for code, us in zip(batch.codes, batch.timestamps_us, strict=True):
            newest = ascending[code]
            if newest and us > newest[-1]:  # nearly always
                newest.append(us)
            else:
                repeated += known[code].add(us)
        self._weight += sum(times.weight for times in known) - before
        if self._weight > self._most:
            self._weight = sum(times.forget() for times in self._times.values())
        return repeated


class _Times:
    """The times of one series; mostly they ascend, or descend."""

    __slots__ = ("_descending", "_others", "ascending")

    def __init__(self) -> None:
        self.ascending = array("q")
        self._descending = array("q")
        """Negated, and before all in `ascending`."""
        self._others: set[int] = set()

    @property
    def weight(self) -> int:
        return len(self.ascending) + len(self._descending) + _OTHER_WEIGHT * len(self._others)

    def add(self, us: int) -> bool:
        """Remember a time; return whether it was known."""
        up, down = self.ascending, self._descending
        if not up or us > up[-1]:
            up.append(us)
            return False
        if us < (-down[-1] if down else up[0]):
            down.append(-us)
            return False
        if us in self._others or _holds(up, us) or _holds(down, -us):
            return True
        self._others.add(us)
        return False

    def forget(self) -> int:
        """Forget about half of the times, the older ones; return the weight of the rest."""
        del self.ascending[: len(self.ascending) // 2]
        del self._descending[: len(self._descending) // 2]
        self._others.clear()
        return self.weight


def _holds(ordered: array[int], number: int) -> bool:
    at = bisect_left(ordered, number)
    return at < len(ordered) and ordered[at] == number
