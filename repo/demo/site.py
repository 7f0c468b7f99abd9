"""The simulated site: the readings of its sensors, minute by minute, determined by a seed. Accesses no store.

Each well has pressure (bar), temperature (°C) and flow (m³/h), which drift, follow the time of day and depend on each
other: a closed valve stops the flow, and the pressure rises. The valve is a state series, reported on change and once
an hour. Sensors stop for a while (gaps), fail to read (None or NaN, quality 0) and report uncertain values (lower
quality).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["STEP_US", "WELLS", "Reading", "ticks"]

WELLS = tuple(f"WELL-{number:02d}" for number in range(1, 13))

START_US = 1_767_225_600_000_000
"""2026-01-01 00:00 UTC: fixed, so that the seed determines everything."""

STEP_US = 60_000_000
"""A tick is a minute of the site's time; the demo runs faster."""

_DAY = 24 * 60
_HEARTBEAT = 60

Reading = tuple[str, str, float, float | str | None, int, dict[str, str] | None]
"""A row for `insert_many`: sensor, metric, Unix seconds, value, quality, metadata."""


def ticks(seed: int) -> Iterator[list[Reading]]:
    """Yield the readings of all sensors of the site, one minute at a time, without end."""
    chance = random.Random(seed)  # noqa: S311  a simulation, not a secret
    wells = [_Well(name, chance, chance.uniform(150, 210), chance.uniform(20, 60)) for name in WELLS]
    minute = 0
    while True:
        at_s = (START_US + minute * STEP_US) / 1e6
        yield [reading for well in wells for reading in well.readings(minute, at_s)]
        minute += 1


@dataclass(slots=True)
class _Well:
    """One well, and the state of its random walks."""

    name: str
    chance: random.Random
    usual_pressure: float
    usual_flow: float
    drift: float = 0.0
    built_up: float = 0.0
    is_open: bool = True
    silent_until: int = 0

    def readings(self, minute: int, at_s: float) -> Iterator[Reading]:
        chance = self.chance
        day = math.sin(2 * math.pi * (minute % _DAY) / _DAY - 2)
        self.drift += -0.01 * self.drift + chance.gauss(0, 0.25)
        turned = chance.random() < (0.002 if self.is_open else 0.02)
        if turned:
            self.is_open = not self.is_open
        # A shut-in well builds up pressure within hours, and loses it as quickly when it flows.
        self.built_up += ((0.0 if self.is_open else 25.0) - self.built_up) * 0.03
        if chance.random() < 0.001:
            self.silent_until = minute + chance.randint(5, 45)
        if minute < self.silent_until:
            return

        flow = max(0.0, self.usual_flow * (1 + 0.15 * day) + self.drift) if self.is_open else 0.0
        numbers = (
            ("pressure", self.usual_pressure - 6 * day + self.drift + self.built_up),
            ("temperature", 58 + 4 * day + 0.1 * self.drift),
            ("flow", flow),
        )
        for metric, number in numbers:
            luck = chance.random()
            if luck < 0.003:
                missing = None if luck < 0.0015 else math.nan
                yield self.name, metric, at_s, missing, 0, {"reason": "sensor fault"}
            elif luck < 0.013:
                yield self.name, metric, at_s, round(number + chance.gauss(0, 5), 3), 40, None
            else:
                yield self.name, metric, at_s, round(number + chance.gauss(0, 0.05), 3), 100, None
        if turned or minute % _HEARTBEAT == 0:
            yield self.name, "valve", at_s, "OPEN" if self.is_open else "CLOSED", 100, None
