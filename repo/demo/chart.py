"""A text chart of counts that grow over time; small enough to need no plotting library."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence

__all__ = ["Samples", "chart"]

Samples = Sequence[tuple[float, int]]
"""(time in seconds, count), in order; both increase."""


def chart(series: Mapping[str, Samples], *, title: str, width: int, rows: int) -> str:
    """Draw each series with the letter that is its key; later series cover earlier ones.

    A count stays constant until its next sample. The vertical axis is in thousands, the horizontal axis in seconds
    from 0.
    """
    end_s = max(at_s for samples in series.values() for at_s, _ in samples)
    most = max(count for samples in series.values() for _, count in samples)
    top = max(1, -(-most // rows)) * rows
    left = len(_thousands(top)) + 2
    columns = width - left - 1
    canvas = [[" "] * columns for _ in range(rows)]
    for letter, samples in series.items():
        times = [at_s for at_s, _ in samples]
        before = 0
        for column in range(columns):
            passed = bisect_right(times, end_s * (column + 1) / columns)
            row = min(rows - 1, samples[passed - 1][1] * rows // top) if passed else 0
            for filled in range(min(before + 1, row), row + 1):
                canvas[filled][column] = letter
            before = row
    lines = [title]
    for row in reversed(range(rows)):
        label = _thousands(top * (row + 1) // rows) if (row + 1) % 4 == 0 or row + 1 == rows else ""
        lines.append(f"{label:>{left - 1}} |{''.join(canvas[row])}".rstrip())
    lines += [f"{'0':>{left - 1}} +{'-' * columns}", " " * (left + 1) + _time_axis(end_s, columns)]
    return "\n".join(lines)


def _thousands(count: int) -> str:
    return f"{count / 1_000:,.1f}k" if count < 10_000 else f"{count / 1_000:,.0f}k"


def _time_axis(end_s: float, columns: int) -> str:
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 10**9) if end_s / step <= 8)
    axis = [" "] * columns
    for mark in range(0, int(end_s) + 1, step):
        text = f"{mark} s"
        at = round(columns * mark / end_s)
        if at + len(text) <= columns:
            axis[at : at + len(text)] = text
    return "".join(axis).rstrip()
