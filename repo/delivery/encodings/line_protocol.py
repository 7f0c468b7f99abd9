"""Points as InfluxDB line protocol. Pure.

    flow,sensor_id=W-1 value=1.5,quality=100i 1714521600000000

The measurement is the metric and the sensor is a tag; or, with a measurement of its own, both are tags. A number is the
field `value`; a text is the field `value_text`, because a field has one type for all sensors. `quality` is an integer
field. Metadata that is not null is the text field `metadata`. A point without a reading has its quality only, so an
older value of the same time stays at the destination.

The protocol has no infinity. It cannot express a measurement that starts with `#`, nor a name with a backslash at its
end or before a comma, a space or an equals sign, which databases read differently. Such points are refused, each with
its reason.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import isinf
from typing import Any

from repo.delivery.encodings.encoded import Encoded, Names, plain
from repo.delivery.protocol import Columns, Item

__all__ = ["LineProtocol"]

_IN_MEASUREMENT = re.compile(r"([, ])")
_IN_TAG = re.compile(r"([,= ])")
_AMBIGUOUS = re.compile(r"\\(?:[,= ]|$)")
_IN_TEXT = re.compile(r'(["\\])')


class LineProtocol:
    """An encoder with a cache of names. For one thread.

    `measurement` replaces the metric as the measurement; the metric is a tag then. With `nanoseconds`, times end in
    three zeros more; they are in microseconds otherwise.
    """

    def __init__(self, *, measurement: str | None = None, nanoseconds: bool = False) -> None:
        self._measurement = measurement
        self._zeros = "000" if nanoseconds else ""
        self._names = Names(self._head)

    def encode(self, columns: Columns) -> Encoded:
        """Return a line per point that the protocol can express."""
        sensors, metrics, times_us, numbers, texts, qualities, metadata, _ = map(plain, columns)
        heads = self._names.of(sensors, metrics)
        zeros = self._zeros
        size = len(heads)
        alike = size and qualities[0] is not None and qualities.count(qualities[0]) == size
        if alike and metadata.count(None) == size and "" not in heads and _all_finite(numbers):
            end = f",quality={qualities[0]}i"
            return Encoded(
                [
                    f"{head} value={number}{end} {us}{zeros}"
                    for head, number, us in zip(heads, numbers, times_us, strict=True)
                ]
            )
        lines: list[str] = []
        rows: list[int] = []
        refused: list[Item] = []
        points = zip(heads, numbers, texts, qualities, metadata, times_us, strict=True)
        for row, (head, number, text, quality, extra, us) in enumerate(points):
            fields = _fields(number, text, quality, extra)
            if head and fields:
                lines.append(f"{head} {fields} {us}{zeros}")
                rows.append(row)
            elif not head:
                refused.append(Item(row, self._why_nameless(sensors[row], metrics[row])))
            elif number is not None and isinf(number):
                refused.append(Item(row, "line protocol has no infinity"))
            else:
                refused.append(Item(row, "the point has neither a reading nor a quality"))
        return Encoded(lines, rows, tuple(refused))

    def _head(self, sensor: str, metric: str) -> str:
        """Return measurement and tags; empty if they cannot be expressed."""
        if self._why_nameless(sensor, metric):
            return ""
        tag = f"sensor_id={_IN_TAG.sub(_escaped, sensor)}"
        if self._measurement is None:
            return f"{_IN_MEASUREMENT.sub(_escaped, metric)},{tag}"
        measurement = _IN_MEASUREMENT.sub(_escaped, self._measurement)
        return f"{measurement},metric_name={_IN_TAG.sub(_escaped, metric)},{tag}"

    def _why_nameless(self, sensor: str, metric: str) -> str:
        if _AMBIGUOUS.search(sensor) or _AMBIGUOUS.search(metric):
            return "line protocol cannot express a name with a backslash at its end or before a comma, space or ="
        if self._measurement is None and metric.startswith("#"):
            return "line protocol takes a measurement that starts with # for a comment"
        return ""


_escaped = r"\\\1"


def _all_finite(numbers: Sequence[Any]) -> bool:
    try:
        total = sum(numbers, 0.0)
    except TypeError:  # a None
        return False
    return total - total == 0.0


def _fields(number: float | None, text: str | None, quality: int | None, metadata: str | None) -> str:
    """Return the fields of a point; empty if there are none, or the number is infinite."""
    fields = []
    if text is not None:
        fields.append(f'value_text="{_IN_TEXT.sub(_escaped, text)}"')
    elif number is not None and number == number:  # NaN is no reading
        if isinf(number):
            return ""
        fields.append(f"value={float(number)!r}")
    if quality is not None:
        fields.append(f"quality={quality}i")
    if metadata is not None:
        fields.append(f'metadata="{_IN_TEXT.sub(_escaped, metadata)}"')
    return ",".join(fields)
