"""Writes the figures into docs/benchmarks.md and the README: `python -m benchmarks.document [RUN.json ...]`.

The results of the given runs replace those of earlier runs in docs/benchmarks/results.json, job by job. The tables and
the pictures are made from that file alone, so that they cannot differ from what was measured.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import Figure, Samples
from benchmarks.pictures import bars, curves
from benchmarks.report import LOAD, Target, load_targets

__all__ = ["PAGES", "RESULTS", "pages", "pictures", "write"]

_ROOT = Path(__file__).resolve().parents[1]
RESULTS = _ROOT / "docs" / "benchmarks" / "results.json"
PAGES = (_ROOT / "docs" / "benchmarks.md", _ROOT / "README.md")

_BLOCK = re.compile(r"(<!-- figures: ([\w-]+) -->\n).*?(<!-- end of figures -->)", re.DOTALL)
_UNEVEN = 4.0
"""The README quotes no figure whose largest round is more than this many times its smallest."""

_BUSY = 2.0
_WARNING = (
    "**{} of {} runs started on a busy machine.** All sides of a comparison bore that load alternately, but the times "
    "are too long, and what waits for syncs varies most. Measure again on an idle machine before you quote a figure."
)
_MAIN = ("", "regular")
"""The shapes of data whose figures are in the main tables."""

_CLAIMS = {
    "time ranges": ("5-10 ×", ("claim-range-1h", "claim-range-24h")),
    "aggregates": ("10-20 ×", ("claim-aggregate-24h", "claim-buckets-one", "claim-buckets-all")),
    "latest": ("3-5 ×", ("claim-latest-one", "claim-latest-all")),
    "Parquet import": ("10-50 ×", ("claim-import",)),
    "files": ("70-90 % smaller", ("claim-size",)),
}
_CLAIMED = ("legacy-sqlite", "legacy-sqlite-filtered", "tuned-sqlite", "legacy-duckdb")
_HEADS = {
    "legacy-sqlite": "legacy SQLite buffer",
    "legacy-sqlite-filtered": "the same, filtered in SQL",
    "tuned-sqlite": "tuned SQLite",
    "legacy-duckdb": "legacy DuckDB storage",
}
_ENGINE = {
    ("range-1h", "tuned-sqlite"): ("range-1h", "duckdb-sorted"),
    ("aggregate-24h", "tuned-sqlite"): ("aggregate-24h", "duckdb-sorted"),
    ("buckets-all", "tuned-sqlite"): ("buckets-all", "duckdb-sorted"),
    ("drain-arrow", "tuned-sqlite"): ("drain-arrow", "duckdb-sorted"),
    ("export-sqlite", ""): ("export-duckdb", ""),
    ("import-sqlite", ""): ("import-duckdb", ""),
    ("tables-sqlite", ""): ("tables-duckdb", ""),
    ("tables-1m-sqlite", ""): ("tables-1m-duckdb", ""),
}
"""For figures against SQLite: the figures of the same job against DuckDB by hand."""

_README = (
    ("batch-1000-tuples", ""),
    ("batch-10000-dicts", ""),
    ("tables-sqlite", ""),
    ("range-1h", "tuned-sqlite"),
    ("aggregate-24h", "tuned-sqlite"),
    ("buckets-all", "tuned-sqlite"),
    ("latest-one", "tuned-sqlite"),
    ("latest-all", "tuned-sqlite"),
    ("import-sqlite", ""),
    ("insert-one-sqlite", ""),
)


class _Results:
    """All figures, with their targets and the conditions of their runs."""

    def __init__(self, stored: Mapping[str, Any]) -> None:
        self.runs: list[dict[str, Any]] = stored["runs"]
        self.targets = load_targets()
        self.figures = [Figure.of(row) for row in stored["figures"] if row["key"] in self.targets]
        self.main = [figure for figure in self.figures if figure.shape in _MAIN and not figure.skipped]

    def find(self, key: str, peer: str = "") -> Figure | None:
        """Return a figure of the main data."""
        return next((one for one in self.main if one.key == key and one.peer == peer), None)

    def target(self, figure: Figure) -> Target:
        """Return the target of a figure."""
        return self.targets[figure.key]


def write(runs: Iterable[Path] = ()) -> None:
    """Take in the results of runs, and write pages and pictures."""
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"runs": [], "figures": []}
    for path in runs:
        stored = _merged(stored, json.loads(path.read_text()))
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, picture in pictures(stored).items():
        (RESULTS.parent / name).write_text(picture, encoding="utf-8")
    for path, text in pages(stored).items():
        path.write_text(text, encoding="utf-8")


def pages(stored: Mapping[str, Any]) -> dict[Path, str]:
    """Return the pages with their blocks of figures replaced."""
    results = _Results(stored)

    def block(found: re.Match[str]) -> str:
        return f"{found[1]}{_BLOCKS[found[2]](results)}\n{found[3]}"

    return {path: _BLOCK.sub(block, path.read_text(encoding="utf-8")) for path in PAGES}


def pictures(stored: Mapping[str, Any]) -> dict[str, str]:
    """Return the pictures by the names of their files."""
    results = _Results(stored)
    found = {}
    groups = {
        results.targets[key].what: {
            _HEADS[peer]: figure.median for peer in _CLAIMED if (figure := results.find(key, peer))
        }
        for _, keys in _CLAIMS.values()
        for key in keys
        if key != "claim-size" and results.find(key, _CLAIMED[0])
    }
    if groups:
        promised = {
            results.targets[key].what: (float(low), float(high))
            for span, keys in _CLAIMS.values()
            if span.endswith("×")
            for low, high in (span.rstrip(" ×").split("-"),)
            for key in keys
        }
        title = "Speed of Holdfast as a multiple of each peer's (shaded: the founding document's claims)"
        found["claims.svg"] = bars(groups, title=title, marks=promised)
    for unit in ("points", "series", "days"):
        figure = results.find(f"growth-{unit}")
        if figure is not None:
            sizes = figure.details["sizes"]
            lines = {
                name: list(zip(sizes, costs, strict=True)) for name, costs in figure.details["ms"].items()
            }
            title = f"Cost as the {unit} grow ({figure.note})"
            found[f"growth-{unit}.svg"] = curves(lines, title=title, across=unit, upwards="ms")
    return found


# --- the blocks -----------------------------------------------------------------------------------------


def _claims(results: _Results) -> str:
    rows = []
    for claim, (promise, keys) in _CLAIMS.items():
        for key in keys:
            figures = {peer: results.find(key, peer) for peer in _CLAIMED}
            if any(figures.values()):
                what = f"{claim}: {results.targets[key].what}"
                rows.append((what, promise, *(_cell(results, figures[peer]) for peer in _CLAIMED)))
    return _table(("claim", "promised", *(_HEADS[peer] for peer in _CLAIMED)), rows)


def _times(results: _Results) -> str:
    """Return the median time of each query on each side."""
    sides: dict[str, dict[str, Samples]] = {}
    for figure in results.main:
        if figure.per == "queries/s" and not figure.key.startswith("other-"):
            what = results.target(figure).what
            found = sides.setdefault(what, {})
            for side in figure.sides:
                found.setdefault(side.name, side)
    names = (
        "holdfast",
        "tuned SQLite",
        "DuckDB by hand, sorted",
        "legacy SQLite buffer",
        "legacy SQLite buffer, filtered in SQL",
        "legacy DuckDB storage",
    )
    rows = [
        (what, *(_ms(found[name]) if name in found else "-" for name in names))
        for what, found in sides.items()
    ]
    return _table(("query", *("Holdfast" if name == "holdfast" else name for name in names)), rows)


def _targets(results: _Results) -> str:
    rows = []
    for figure in results.main:
        target = results.target(figure)
        met = target.met(figure)
        if met is not None:
            wanted = f"{'≥' if target.unit in ('x', '% saved') else '≤'} {target.wanted(figure.peer):g}"
            verdict = "met" if met else "**missed**"
            rows.append((target.what, target.against(figure), _spread(figure, target), wanted, verdict))
    return _table(("job", "against", "measured (spread)", "target", ""), rows)


def _missed(results: _Results) -> str:
    """Return the missed targets against SQLite, with what DuckDB by hand reaches against it in the same job."""
    rows = []
    for figure in results.main:
        target = results.target(figure)
        engine = results.find(*_ENGINE.get((figure.key, figure.peer), ("", "")))
        if engine is not None and target.met(figure) is False:
            bare = f"{_number(figure.median / engine.median)} ×"
            wanted = f"{target.wanted(figure.peer):g} ×"
            rows.append((target.what, f"{_number(figure.median)} ×", wanted, bare))
    return _table(("job", "Holdfast", "target", "DuckDB by hand"), rows) if rows else "None."


def _reported(results: _Results) -> str:
    rows = [
        (target.what, target.against(figure), _spread(figure, target))
        for figure in results.main
        if not figure.key.startswith(("other-", "claim-"))
        for target in (results.target(figure),)
        if target.met(figure) is None
    ]
    return _table(("job", "against", "measured (spread)"), rows)


def _slower(results: _Results) -> str:
    """Return what is slower than a peer, the worst first."""
    found = [
        (figure.median, target.what, target.against(figure))
        for figure in results.main
        for target in (results.target(figure),)
        if target.unit == "x" and figure.median < 1 and figure.key != "sustained-decay"
        # The job of the claims measures the same against tuned SQLite as other jobs do.
        if not (figure.key.startswith("claim-") and figure.peer == "tuned-sqlite")
    ]
    rows = dict.fromkeys((what, against, f"{ratio:.2f} ×") for ratio, what, against in sorted(found))
    return _table(("job", "against", "Holdfast's speed"), list(rows)) if rows else "None."


def _others(results: _Results) -> str:
    keys = list(dict.fromkeys(f.key for f in results.main if f.key.startswith("other-")))
    peers = list(dict.fromkeys((f.peer, f.sides[1].name) for f in results.main if f.key in keys))
    rows = []
    for key in keys:
        target = results.targets[key]
        figures = [results.find(key, peer) for peer, _ in peers]
        ours = next(figure for figure in figures if figure)
        shown = ours.sides[0]
        mine = (
            _ms(shown)
            if ours.per == "queries/s"
            else f"{shown.median:,.{1 if shown.median < 100 else 0}f} {ours.per}"
        )
        rows.append((target.what, mine, *(_cell(results, figure) for figure in figures)))
    return _table(("job", "Holdfast", *(f"against {name}" for _, name in peers)), rows)


def _sides(key: str) -> Callable[[_Results], str]:
    """Return a block with all sides of a figure."""

    def block(results: _Results) -> str:
        figure = results.find(key)
        if figure is None:
            return "Not measured yet."
        unit = figure.per or results.target(figure).unit
        rows = [
            (side.name, f"{side.median:,.{3 if side.median < 1 else 1}f} {unit}") for side in figure.sides
        ]
        return _table(("", figure.note), rows)

    return block


def _beside(results: _Results) -> str:
    """Return the times of reads as median / 99th percentile / longest, alone and beside a forwarder."""
    figures = [figure for figure in results.main if figure.key.startswith("beside-")]
    if not figures:
        return "Not measured yet."
    places = dict.fromkeys(side.name.rpartition(", ")[0] for side in figures[0].sides)
    rows = []
    for figure in figures:
        times = [f"{side.median:,.1f}" for side in figure.sides]
        triples = [" / ".join(times[at : at + 3]) for at in range(0, len(times), 3)]
        rows.append((results.target(figure).what.partition(",")[0], *triples))
    return f"{_table(('', *places), rows)}\n\n{figures[0].note}."


def _growth(results: _Results) -> str:
    pieces = []
    for unit in ("points", "series", "days"):
        figure = results.find(f"growth-{unit}")
        if figure is None:
            continue
        rows = [
            (name, *(f"{cost:,.{0 if cost >= 100 else 2}f}" for cost in costs))
            for name, costs in figure.details["ms"].items()
        ]
        heads = [f"{size:,}" for size in figure.details["sizes"]]
        pieces.append(
            f"![Cost as the {unit} grow](benchmarks/growth-{unit}.svg)\n\n"
            + _table((f"ms, by {unit} ({figure.note})", *heads), rows)
        )
    return "\n\n".join(pieces) or "Not measured yet."


def _deliveries(results: _Results) -> str:
    """Return the rate of each kind of sink, against its destination's own loader and SQLite's rows."""
    rows = []
    for key in dict.fromkeys(figure.key for figure in results.main if figure.key.startswith("deliver-")):
        figures = {figure.peer: figure for figure in results.main if figure.key == key}
        one, loader = next(iter(figures.values())), figures.get(f"{key}-loader")
        if "with_engine_mb" in one.details:
            own_mb = one.details.get("own_mb")
            rows.append(
                (
                    results.target(one).what,
                    f"{one.details['points']:,}",
                    f"{one.sides[0].median:,.0f}",
                    "-" if loader is None else f"{_number(loader.median)} × ({loader.sides[1].name})",
                    _cell(results, figures.get("tuned-sqlite")),
                    "-" if own_mb is None else f"+{own_mb:.0f} MB",
                    f"+{one.details['with_engine_mb']:.0f} MB",
                )
            )
    heads = (
        "",
        "points",
        "points/s",
        "of its own loader",
        "of reading rows from SQLite",
        "memory",
        "with DuckDB's",
    )
    return _table(heads, rows) if rows else "Not measured yet."


def _unseen(results: _Results) -> str:
    rows = [
        (target.what, target.against(figure), _spread(figure, target))
        for figure in results.figures
        if figure.shape not in _MAIN and not figure.skipped
        for target in (results.target(figure),)
    ]
    return _table(("job", "against", "measured (spread)"), rows) if rows else "Not measured yet."


def _conditions(results: _Results) -> str:
    texts: dict[str, list[str]] = {}
    for run in results.runs:
        for name, text in run["conditions"].items():
            if text not in texts.setdefault(name, []):
                texts[name].append(text)
    listed = "\n".join(f"- {name}: {_joined(found)}" for name, found in texts.items())
    busy = [run for run in results.runs if float(run["conditions"][LOAD]) > _BUSY]
    return f"{_WARNING.format(len(busy), len(results.runs))}\n\n{listed}" if busy else listed


def _joined(texts: Sequence[str]) -> str:
    """Return different texts one after the other, and different numbers as a range."""
    try:
        numbers = sorted(texts, key=float)
    except ValueError:
        return "; ".join(texts)
    return numbers[0] if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"


def _readme(results: _Results) -> str:
    rows = []
    for key, peer in _README:
        figure = results.find(key, peer)
        if figure is not None and max(figure.values) <= _UNEVEN * min(figure.values):
            target = results.target(figure)
            rows.append((target.what, target.against(figure), f"**{_number(figure.median)} ×**"))
    asked = results.find("range-1h", "tuned-sqlite")
    held = f"\n\nThe queries are on a store of {asked.note.split(';')[0]}." if asked else ""
    if any(float(run["conditions"][LOAD]) > _BUSY for run in results.runs):
        held += " The machine was busy with other work, so the figures are rough."
    return _table(("job", "compared with", "Holdfast's speed"), rows) + held


_BLOCKS: dict[str, Callable[[_Results], str]] = {
    "claims": _claims,
    "times": _times,
    "targets": _targets,
    "missed": _missed,
    "reported": _reported,
    "slower": _slower,
    "others": _others,
    "memory": _sides("job-memory"),
    "latency": _sides("compact-latency"),
    "beside": _beside,
    "growth": _growth,
    "deliveries": _deliveries,
    "unseen": _unseen,
    "conditions": _conditions,
    "readme": _readme,
}


# --- cells ----------------------------------------------------------------------------------------------


def _cell(results: _Results, figure: Figure | None) -> str:
    if figure is None:
        return "-"
    if results.target(figure).unit == "% saved":
        ours, theirs = (side.median for side in figure.sides[:2])
        size = f"{figure.median:.0f} % smaller" if ours <= theirs else f"{ours / theirs:.1f} × as large"
        return f"{size} ({ours:.1f} and {theirs:.1f} bytes a point)"
    return f"{_number(figure.median)} ×" if figure.median >= 1 else f"*{_number(figure.median)} ×*"


def _number(value: float) -> str:
    return f"{value:,.{2 if value < 1 else 1 if value < 20 else 0}f}"


def _spread(figure: Figure, target: Target) -> str:
    unit = "×" if target.unit == "x" else target.unit
    if len(figure.values) == 1:
        return f"{_number(figure.median)} {unit}"
    return f"{_number(figure.median)} {unit} ({_number(min(figure.values))}-{_number(max(figure.values))})"


def _ms(side: Samples) -> str:
    ms = 1000 / side.median
    return f"{ms:,.{0 if ms >= 100 else 1 if ms >= 10 else 2 if ms >= 0.1 else 3}f} ms"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return "Not measured yet."
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# --- results --------------------------------------------------------------------------------------------


def _merged(stored: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """Replace the figures that the run measured again; the runs that are left without figures go."""

    def identity(row: Mapping[str, Any]) -> tuple[str, str, str]:
        return row["key"], row["peer"], row["shape"]

    new = {identity(row) for row in run["figures"]}
    kept = [row for row in stored["figures"] if identity(row) not in new]
    runs = [*stored["runs"], {"level": run["level"], "conditions": run["conditions"]}]
    rows = [*kept, *({**row, "run": len(runs) - 1} for row in run["figures"])]
    used = sorted({row["run"] for row in rows})
    order = {key: place for place, key in enumerate(load_targets())}
    rows.sort(key=lambda row: order.get(row["key"], len(order)))
    return {
        "runs": [runs[number] for number in used],
        "figures": [{**row, "run": used.index(row["run"])} for row in rows],
    }


if __name__ == "__main__":
    write(map(Path, sys.argv[1:]))
