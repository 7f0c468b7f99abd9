"""Plots in the terminal. The only module here that uses plotext."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import tzinfo
from typing import Any

from repo.commands import terminal
from repo.commands.texts import printable
from repo.errors import InvalidQuery
from repo.extras import missing_extra
from repo.inputs.times import to_datetime

__all__ = ["MOST_LINES", "draw", "plot_columns"]

MOST_LINES = 6
"""More lines than this cannot be distinguished."""

_ROWS = 24
_NARROWEST = 40
_WIDEST = 160
_IN_A_PIPE = 80
_TICKS = 4
_ASCII_MARKERS = "*o+x#@"
_ASCII_FRAME = str.maketrans("─│┌┐└┘┬┴├┤┼", "-|+++++++++")


def plot_columns() -> int:
    """Return the width of a plot, in characters."""
    return max(_NARROWEST, min(_WIDEST, terminal.width() if terminal.is_terminal() else _IN_A_PIPE))


def draw(lines: Mapping[str, Sequence[tuple[int, float]]], zone: tzinfo) -> str:
    """Return a plot of named lines, each a sequence of (µs since 1970 UTC, value) in order of time.

    It is ASCII without colours if NO_COLOR or the locale asks for it, and has no colours in a pipe. Raises
    `MissingExtra` without plotext, and `InvalidQuery` for more than `MOST_LINES` lines.
    """
    plotext = _plotext()
    if len(lines) > MOST_LINES:
        raise InvalidQuery(
            f"a plot shows at most {MOST_LINES} series, and these are {len(lines)}; select fewer"
        )
    figure = plotext.figure
    figure.clear()
    figure.plot_size(plot_columns(), _ROWS)
    if not terminal.has_colours():
        figure.theme("colorless")
    if len(lines) == 1:
        figure.title(printable(next(iter(lines))))
    is_ascii = terminal.is_plain()
    has_markers = is_ascii or (len(lines) > 1 and not terminal.has_colours())  # to distinguish the lines
    for number, (name, points) in enumerate(lines.items()):
        # In seconds: plotext draws floats, which have 15 digits, and a time in µs needs 16.
        signal = figure.signal(
            [us / 1e6 for us, _ in points],
            [value for _, value in points],
            marker=_ASCII_MARKERS[number] if has_markers else "braille",
        )
        signal.lines()
        if len(lines) > 1:
            signal.label(printable(name))
        figure.draw(signal)
    times = [us for points in lines.values() for us, _ in (points[0], points[-1])]
    marks = _marks(min(times), max(times))
    figure.ruler("x").ticks([us / 1e6 for us in marks], _named(marks, zone))
    drawn = str(figure.build())
    figure.clear()
    if is_ascii:
        drawn = drawn.translate(_ASCII_FRAME)
    return drawn if terminal.has_colours() else _plain(plotext.uncolorize(drawn))


def _plotext() -> Any:
    try:
        import plotext
    except ImportError as error:
        raise missing_extra("a plot needs plotext", "terminal", "or choose another --format") from error
    return plotext


def _marks(first_us: int, last_us: int) -> list[int]:
    step = (last_us - first_us) // _TICKS
    return [first_us + step * number for number in range(_TICKS)] + [last_us] if step else [first_us]


def _named(marks: Sequence[int], zone: tzinfo) -> list[str]:
    """Format the times as briefly as their range allows."""
    span_s = (marks[-1] - marks[0]) / 1e6
    days = 86_400
    pattern = "%Y-%m-%d" if span_s > 10 * days else "%m-%d %H:%M" if span_s > days / 2 else "%H:%M:%S"
    return [to_datetime(us).astimezone(zone).strftime(pattern) for us in marks]


def _plain(drawn: str) -> str:
    return "\n".join(line.rstrip() for line in drawn.splitlines())
