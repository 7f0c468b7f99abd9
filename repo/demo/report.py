"""The report: a result as plain text, 80 columns wide. Measures and decides nothing."""

from __future__ import annotations

import textwrap

from repo.demo.chart import chart
from repo.demo.result import DemoResult

__all__ = ["WIDTH", "event_line", "heading", "plot", "table"]

WIDTH = 80
_PLOT_ROWS = 12
_WHAT, _CELL = 40, 15


def heading(seed: int, rate: float) -> str:
    """Describe what the demo will do."""
    return "\n".join(
        (
            f"Holdfast demo, seed {seed}",
            "",
            *textwrap.wrap(
                f"A site of 12 wells writes {rate:,.0f} points/s while its link is down. The demo kills the writer, "
                "and later the sender. The receiver is a third process with a store of its own. It refuses one "
                "reading. When the link is up, new readings arrive before the backlog.",
                WIDTH,
            ),
            "",
        )
    )


def event_line(at_s: float, what: str) -> str:
    """Print an event with its time."""
    lead = f"{at_s:6.1f} s  "
    return textwrap.fill(what, WIDTH, initial_indent=lead, subsequent_indent=" " * len(lead))


def table(result: DemoResult) -> str:
    """Print the checks, then the figures."""
    rule = "-" * WIDTH
    lines = [
        "",
        f"{'check':<{_WHAT}}{'site and store':>{_CELL}}{'receiver':>{_CELL}}    passed",
        rule,
    ]
    lines += [
        f"{check.what:<{_WHAT}}{check.store:>{_CELL}}{check.receiver:>{_CELL}}{'yes' if check.holds else 'NO':>10}"
        for check in result.checks
    ]
    figures = result.figures
    points = max(1, figures.arrived_points)
    lines += [
        rule,
        f"written   {figures.written_points_per_s:,.0f} of {result.rate:,.0f} points/s, "
        "durable when the call returned",
        f"drained   {figures.drained_points_per_s:,.0f} points/s: read, sent, stored and confirmed",
        f"backlog   {figures.backlog_points:,} points in {figures.backlog_cleared_s:.1f} s, "
        "including the restart of the sender",
        f"size      bytes/point: {figures.store_bytes / points:.0f} stored ({result.engine}), "
        f"{figures.wire_bytes / points:.0f} on the wire, {figures.receiver_bytes / points:.0f} at the receiver",
        f"total     {figures.wall_s:.1f} s",
    ]
    if result.ok:
        verdict = "All checks passed."
    else:
        failed = [check.what for check in result.checks if not check.holds]
        verdict = textwrap.fill(f"FAILED: {'; '.join(failed)}.", WIDTH)
    return "\n".join([*lines, "", verdict])


def plot(result: DemoResult) -> str:
    """Draw the numbers of acknowledged and of arrived points over time."""
    title = f"{'points':<{WIDTH - 30}}.  acknowledged   #  arrived"
    return chart({".": result.acknowledged, "#": result.arrived}, title=title, width=WIDTH, rows=_PLOT_ROWS)
