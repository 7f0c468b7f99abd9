"""Generates the readings for every side of a comparison. Owns shapes and seeds, never a database.

`regular` is the typical case: series with the same rate, a little jitter, and random walks with two decimals.
`irregular` is a shape that nothing was tuned for: long names, rates that differ by series, late and uneven times, wild
values, and qualities and metadata that vary from row to row. `tick` is `regular` without jitter.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from heapq import heapify, heapreplace
from itertools import islice
from random import Random
from typing import Any, Literal

__all__ = ["SHAPES", "START_US", "Readings", "Shape", "Source"]

Shape = Literal["regular", "irregular", "tick"]
SHAPES: tuple[Shape, ...] = ("regular", "irregular")
"""The shapes of the passes; `tick` is for sizes only."""

START_US = 1_700_000_000_000_000
"""Time of the first reading."""

JITTER_US = 20_000

_STATES = ('{"unit":"bar"}', '{"by":"shift 2","calibrated":true}')
"""Metadata in the form that the store gives them, so that every side has the same texts."""

_Reading = tuple[int, int, float, int, str | None]


@dataclass(frozen=True, slots=True)
class Readings:
    """Readings as columns; `codes` are indexes into `series`. Every side converts them to its own rows."""

    series: list[tuple[str, str]]
    codes: array[int]
    times_us: array[int]
    values: array[float]
    qualities: array[int] | None
    metadata: dict[int, str]

    def __len__(self) -> int:
        return len(self.codes)

    def named_tuples(self) -> list[tuple[Any, ...]]:
        """Return the rows of an application: (sensor, metric, Unix seconds, value[, quality, metadata])."""
        from json import loads

        if self.qualities is None:
            return [
                (*self.series[code], us / 1e6, value)
                for code, us, value in zip(self.codes, self.times_us, self.values, strict=True)
            ]
        extra = {row: loads(text) for row, text in self.metadata.items()}
        return [
            (*self.series[code], us / 1e6, value, quality, extra.get(row))
            for row, (code, us, value, quality) in enumerate(
                zip(self.codes, self.times_us, self.values, self.qualities, strict=True)
            )
        ]

    def named_dicts(self) -> list[dict[str, Any]]:
        """Return the same rows as dicts with the keys of a point."""
        keys = ("sensor_id", "metric_name", "timestamp", "value", "quality", "metadata")
        return [dict(zip(keys, row, strict=False)) for row in self.named_tuples()]

    def keyed_tuples(self) -> list[tuple[int, int, float, int, str | None]]:
        """Return rows for a table keyed by (series, time): (series, µs, value, quality, metadata text)."""
        qualities = self.qualities or [100] * len(self)
        return [
            (code, us, value, quality, self.metadata.get(row))
            for row, (code, us, value, quality) in enumerate(
                zip(self.codes, self.times_us, self.values, qualities, strict=True)
            )
        ]


class Source:
    """An endless stream of readings in order of arrival; the same seed gives the same stream."""

    def __init__(self, shape: Shape, seed: int, rate_hz: float = 1.0, start_us: int = START_US) -> None:
        self.shape, self.seed = shape, seed
        random = Random(f"{shape}:{seed}")
        make: dict[
            Shape, Callable[[Random, float, int], tuple[list[tuple[str, str]], Iterator[_Reading]]]
        ] = {
            "regular": _regular,
            "irregular": _irregular,
            "tick": partial(_regular, jitter_us=1),
        }
        self.series, self._stream = make[shape](random, rate_hz, start_us)

    def take(self, count: int) -> Readings:
        """Return the next `count` readings."""
        codes, times_us, values, qualities = array("I"), array("q"), array("d"), array("i")
        metadata: dict[int, str] = {}
        for row, (code, us, value, quality, extra) in enumerate(islice(self._stream, count)):
            codes.append(code)
            times_us.append(us)
            values.append(value)
            qualities.append(quality)
            if extra is not None:
                metadata[row] = extra
        plain = self.shape != "irregular"
        return Readings(self.series, codes, times_us, values, None if plain else qualities, metadata)


def _regular(
    random: Random, rate_hz: float, start_us: int, jitter_us: int = JITTER_US
) -> tuple[list[tuple[str, str]], Iterator[_Reading]]:
    series = [(f"SENSOR-{number:03}", "pressure") for number in range(100)]
    step_us = round(1_000_000 / rate_hz)

    def stream() -> Iterator[_Reading]:
        values = [random.uniform(0, 1000) for _ in series]
        uniform = random.random
        tick_us = start_us
        while True:
            for code in range(len(series)):
                values[code] = value = round(values[code] + uniform() - 0.5, 2)
                yield code, tick_us + int(uniform() * jitter_us), value, 100, None
            tick_us += step_us

    return series, stream()


def _irregular(
    random: Random, rate_hz: float, start_us: int
) -> tuple[list[tuple[str, str]], Iterator[_Reading]]:
    count = random.randint(60, 140)
    series = [
        (
            f"plant-{random.randint(1, 4)}/line {number % 9}/Pumpe-Süd.{number}",
            random.choice(("p", "flow_rate", "t.°C")),
        )
        for number in range(count)
    ]
    gaps_us = [1_000_000 / rate_hz * random.lognormvariate(0, 1.2) for _ in series]

    def stream() -> Iterator[_Reading]:
        due = [(start_us + int(random.uniform(0, gap)), code) for code, gap in enumerate(gaps_us)]
        heapify(due)
        last = dict.fromkeys(range(count), 0)
        while True:
            us, code = due[0]
            heapreplace(due, (us + 1 + int(random.expovariate(1 / gaps_us[code])), code))
            # Some arrive late, but no identity is repeated: otherwise each side would have to overwrite.
            us = max(last[code] + 1, us - (random.randint(0, 300_000) if random.random() < 0.05 else 0))
            last[code] = us
            quality = 100 if random.random() < 0.8 else random.choice((0, 50, 192))
            extra = random.choice(_STATES) if random.random() < 0.01 else None
            yield code, us, random.gauss(0, 1) * 10 ** random.randint(-3, 6), quality, extra

    return series, stream()
