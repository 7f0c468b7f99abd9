"""Hours that occur twice, because clocks are set back: selects the pass of a reading by the order of the file.

Each series is followed on its own, so that a file may hold one after the other, or all of them line by line. Its times
may ascend or descend.
"""

from __future__ import annotations

from collections.abc import Hashable
from datetime import datetime, tzinfo

from repo.inputs.times import Unfit, local_choices

__all__ = ["RepeatedHours"]

_SURE = 3
"""This many steps in one direction outweigh as many single readings out of order."""


class RepeatedHours:
    """The order of the times of one file, by series."""

    def __init__(self, zone: tzinfo) -> None:
        self._zone = zone
        self._orders: dict[Hashable, _Order] = {}
        self.single: list[datetime] = []
        """For each time that a series has only one pass of an hour, a local time in it; see `finish`."""

    def us(self, local: datetime, series: Hashable) -> int:
        """Return the microseconds UTC of a naive local time; raises `Unfit` if the order does not determine it."""
        choices = local_choices(local, self._zone)
        if len(choices) == 1:
            return self.follow(choices[0], series)
        order = self._order(series)
        us = order.choose(*choices)
        if us is None:
            raise Unfit(
                f"{local} occurs twice in {self._zone}: the clock was set back, and the order of the readings does not "
                "show which is meant; give the time with its UTC offset"
            )
        order.passes.add(us == choices[1])
        order.local = local
        return us

    def follow(self, us: int, series: Hashable) -> int:
        """Note and return a time that occurs once."""
        order = self._order(series)
        if order.passes:
            self._leave(order)
        return order.step(us)

    def _order(self, series: Hashable) -> _Order:
        order = self._orders.get(series)
        if order is None:
            order = self._orders[series] = _Order()
        return order

    def finish(self) -> None:
        """Call this at the end of the file: `single` is then complete."""
        for order in self._orders.values():
            if order.passes:
                self._leave(order)

    def _leave(self, order: _Order) -> None:
        if len(order.passes) == 1:
            assert order.local is not None
            self.single.append(order.local)
        order.passes.clear()


class _Order:
    """The last time of a series, and whether its times ascend."""

    __slots__ = ("last_us", "local", "passes", "steps")

    def __init__(self) -> None:
        self.last_us: int | None = None
        self.steps = 0
        """Steps forward less steps back, at most `_SURE`."""
        self.passes: set[bool] = set()
        """The passes of the present hour that were seen: False the first, True the second."""
        self.local: datetime | None = None

    def step(self, us: int) -> int:
        if self.last_us is not None and us != self.last_us:
            self.steps = min(self.steps + 1, _SURE) if us > self.last_us else max(self.steps - 1, -_SURE)
        self.last_us = us
        return us

    def choose(self, earlier_us: int, later_us: int) -> int | None:
        last_us = self.last_us
        if last_us is None:
            chosen: int | None = earlier_us
        elif self.steps >= 0:
            chosen = next((us for us in (earlier_us, later_us) if us > last_us), None)
        else:
            chosen = next((us for us in (later_us, earlier_us) if us < last_us), None)
        if chosen is not None:
            self.last_us = chosen
        return chosen
