"""Pictures as SVG text: bars of ratios, and curves of costs, both on logarithmic axes. Needs no plotting library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import ceil, floor, log10

__all__ = ["bars", "curves"]

_COLOURS = (
    "#0b6e99",
    "#c4622d",
    "#5b8c3a",
    "#8a4f9e",
    "#b5942b",
    "#3a3a3a",
    "#c13c5c",
    "#4aa3a2",
    "#7a6a58",
    "#1f77ff",
    "#e0a3c4",
)
_FONT = "font-family='sans-serif' font-size='12'"
_WIDTH = 820


def bars(
    groups: Mapping[str, Mapping[str, float]], *, title: str, marks: Mapping[str, tuple[float, float]]
) -> str:
    """Draw ratios as horizontal bars from 1; a bar to the left of it is a ratio below 1.

    `groups` has a mapping of bars for each label, `marks` a shaded span of ratios for some labels.
    """
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    low = floor(log10(min(0.1, *(ratio for group in groups.values() for ratio in group.values()))))
    high = ceil(log10(max(10.0, *(ratio for group in groups.values() for ratio in group.values()))))
    left, right, top, bar, gap = 250, _WIDTH - 60, 70, 14, 12

    def across(ratio: float) -> float:
        return left + (log10(ratio) - low) / (high - low) * (right - left)

    bottom = top + sum(len(group) * bar + gap for group in groups.values())
    parts = [_text(10, 22, title, bold=True)]
    parts += _legend(names, 44)
    for power in range(low, high + 1):
        at = across(10.0**power)
        colour = "#333" if power == 0 else "#ddd"
        parts.append(f"<line x1='{at:.1f}' y1='{top - 6}' x2='{at:.1f}' y2='{bottom}' stroke='{colour}'/>")
        parts.append(_text(at, bottom + 16, f"{10.0**power:,g} ×", anchor="middle"))
    y = float(top)
    for label, group in groups.items():
        height = len(group) * bar
        parts.append(_text(left - 10, y + height / 2 + 4, label, anchor="end"))
        if label in marks:
            start, end = (across(ratio) for ratio in marks[label])
            parts.append(
                f"<rect x='{start:.1f}' y='{y - 3:.1f}' width='{end - start:.1f}' height='{height + 5}' "
                "fill='#f3e3a0'/>"
            )
        for name, ratio in group.items():
            start, end = sorted((across(1.0), across(ratio)))
            parts.append(
                f"<rect x='{start:.1f}' y='{y:.1f}' width='{max(1.0, end - start):.1f}' height='{bar - 3}' "
                f"fill='{_COLOURS[names.index(name)]}'/>"
            )
            parts.append(_text(end + 4, y + 10, f"{ratio:,.{2 if ratio < 10 else 0}f}", size=10))
            y += bar
        y += gap
    return _svg(bottom + 30, parts)


def curves(
    lines: Mapping[str, Sequence[tuple[float, float]]], *, title: str, across: str, upwards: str
) -> str:
    """Draw lines of (x, y), both above 0."""
    left, right, top, bottom = 70, _WIDTH - 50, 96, 420
    xs = [x for line in lines.values() for x, _ in line]
    ys = [y for line in lines.values() for _, y in line]
    low_x, high_x = log10(min(xs)), max(log10(max(xs)), log10(min(xs)) + 0.1)
    low_y, high_y = floor(log10(min(ys))), ceil(log10(max(ys)))

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            left + (log10(x) - low_x) / (high_x - low_x) * (right - left),
            bottom - (log10(y) - low_y) / (high_y - low_y) * (bottom - top),
        )

    parts = [_text(10, 22, title, bold=True)]
    parts += _legend(list(lines), 44)
    for power in range(low_y, high_y + 1):
        _, y = at(min(xs), 10.0**power)
        parts.append(f"<line x1='{left}' y1='{y:.1f}' x2='{right}' y2='{y:.1f}' stroke='#ddd'/>")
        parts.append(_text(left - 6, y + 4, f"{10.0**power:g}", anchor="end"))
    for x in sorted(set(xs)):
        px, _ = at(x, 10.0**low_y)
        parts.append(f"<line x1='{px:.1f}' y1='{top}' x2='{px:.1f}' y2='{bottom}' stroke='#eee'/>")
        parts.append(_text(px, bottom + 18, f"{x:,.0f}", anchor="middle"))
    parts.append(_text((left + right) / 2, bottom + 38, across, anchor="middle"))
    parts.append(_text(left - 6, top - 8, upwards, anchor="end"))
    for colour, line in zip(_COLOURS, lines.values(), strict=False):
        places = [at(x, y) for x, y in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='2'/>")
        parts += [f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3' fill='{colour}'/>" for x, y in places]
    return _svg(bottom + 50, parts)


def _legend(names: Sequence[str], y: float) -> list[str]:
    parts, x = [], 10.0
    for colour, name in zip(_COLOURS, names, strict=False):
        width = 24 + 6.6 * len(name)
        if x + width > _WIDTH:
            x, y = 10.0, y + 18
        parts.append(f"<rect x='{x:.1f}' y='{y - 10:.1f}' width='12' height='12' fill='{colour}'/>")
        parts.append(_text(x + 16, y, name))
        x += width
    return parts


def _text(x: float, y: float, text: str, *, anchor: str = "start", bold: bool = False, size: int = 12) -> str:
    weight = " font-weight='bold'" if bold else ""
    font = _FONT.replace("12", str(size))
    return f"<text x='{x:.1f}' y='{y:.1f}' {font} text-anchor='{anchor}'{weight}>{escape(text)}</text>"


def _svg(height: float, parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{_WIDTH}' height='{height:.0f}' "
        f"viewBox='0 0 {_WIDTH} {height:.0f}'>\n<rect width='100%' height='100%' fill='white'/>\n{body}\n</svg>\n"
    )
