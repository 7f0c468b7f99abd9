"""The work of a session does not grow: what each step asks of the engines, as numbers that a fast machine cannot hide.

A row of a table is a step of `session.py`, with a number for each of `counting.FIELDS`. `<9` allows 9 and less, other
numbers are exact. If a change makes a step do less, or more for a good reason, copy the row that the test prints.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.starter import Starter
from tests.work.counting import FIELDS, Work

pytestmark = [
    pytest.mark.duckdb,  # on SQLite, too, it reads tables and files
    pytest.mark.skipif(sys.platform != "linux", reason="the bytes written are counted by Linux alone"),
]

EXPECTED = {
    "duckdb": """
    create                             |     2    20     1 |     0     0     0     1 |     0     3     0  <257
    bulk table                         |    14    13     4 |    20    18    10     2 |    <2     3     7 <3454
    100 inserts                        |     0   100   100 |     0     0     0     0 |     0     0     0  <508
    10 batches of 1,000                |     0    10    10 |     0     0     0     0 |     0     0     0  <291
    flush of 10,101                    |     3     2     1 |     3     8     2     0 |    <2     0     0  <584
    flush of nothing                   |     1     0     0 |     0     0     0     0 |     0     0     0     0
    range of an hour                   |     1     0     0 |     1     0     0     0 |  <127     0     0     0
    range of a series, in pages        |     5     0     0 |     5     0     0     0 |  <547     0     0     0
    range of a series, as columns      |     1     0     0 |     1     0     0     0 |  <159     0     0     0
    average of a series                |     1     0     0 |     1     0     0     0 |  <159     0     0     0
    buckets of a series                |     1     0     0 |     1     0     0     0 |  <159     0     0     0
    latest of one                      |     7     0     2 |     0     0     0     0 |     0     0     0     0
    latest of one, again               |     0     0     0 |     0     0     0     0 |     0     0     0     0
    latest of all                      |     0     0     0 |     0     0     0     0 |     0     0     0     0
    insert, then read                  |     3     2     1 |     2     4     2     0 |   <11     1     0   <13
    status                             |    15     0     0 |     0     0     0     0 |     0     0     0     0
    list of series                     |     1     0     0 |     0     0     0     0 |     0     0     0     0
    3 pages to deliver                 |     3     0     0 |     3     0     0     0 |  <443     0     0     0
    confirmation of a sink             |     8     2     1 |     0     0     0     0 |     0     0     0    <7
    record with points                 |     2     3     1 |     0     0     0     0 |     0     0     0   <40
    records pending                    |     1     0     0 |     0     0     0     0 |     0     0     0     0
    record sent                        |     0     1     1 |     0     0     0     0 |     0     0     0   <26
    export of a series                 |     6     3     1 |     7    10     2     0 |  <490     1     4   <15
    delete of an hour, applied         |     4     4     2 |     3     5     2     0 |  <513     0     0   <70
    import of a series, an hour is new |     4     1     1 |    15     4     0     0 |  <160     1     0  <842
    checkpoint                         |     4     5     2 |     8    15     3     1 |  <407     0     2 <2197
    compact                            |     2     0     0 |    11     9     6     1 | <1339     0     2 <2267
    compact, nothing to do             |     2     0     0 |     1     0     1     0 |     0     0     0     0
    range of an hour, compacted        |     1     0     0 |     1     0     0     0 |  <148     0     0     0
    average of a series, compacted     |     1     0     0 |     1     0     0     0 |  <148     0     0     0
    close                              |     1     0     0 |     0     0     0     0 |     0     0     0 <1106
    open                               |     6     0     0 |     0     0     0     0 |     0     2     0    <2
    first latest                       |     7     0     2 |     0     0     0     0 |     0     1     0     0
    first range of an hour             |     6     0     0 |     8     0     3     0 |  <148     1     0    <2
""",
    "sqlite": """
    create                             |     2    20     1 |     0     0     0     1 |     0     3     0  <257
    bulk table                         |    12     6     2 |    15    15     8     0 |     0     3     0  <904
    100 inserts                        |     0   100   100 |     0     0     0     0 |     0     0     0  <508
    10 batches of 1,000                |     0    10    10 |     0     0     0     0 |     0     0     0  <291
    flush of 10,101                    |     4     8     2 |     2 40106     3     1 | <1876     0     0 <6190
    flush of nothing                   |     1     0     0 |     0     0     0     0 |     0     0     0     0
    range of an hour                   |     1     0     0 |     1     0     0     0 |   <39     0     0     0
    range of a series, in pages        |     5     0     0 |     5     0     0     0 |  <107     0     0     0
    range of a series, as columns      |     1     0     0 |     1     0     0     0 |  <109     0     0     0
    average of a series                |     1     0     0 |     1     0     0     0 |   <73     0     0     0
    buckets of a series                |     1     0     0 |     1     0     0     0 |  <317     0     0     0
    latest of one                      |     7     0     2 |     0     0     0     0 |     0     0     0     0
    latest of one, again               |     0     0     0 |     0     0     0     0 |     0     0     0     0
    latest of all                      |     0     0     0 |     0     0     0     0 |     0     0     0     0
    insert, then read                  |     4     5     2 |     2     3     2     0 |     0     1     0   <40
    status                             |    15     0     0 |     0     0     0     0 |     0     0     0     0
    list of series                     |     1     0     0 |     0     0     0     0 |     0     0     0     0
    3 pages to deliver                 |     3     0     0 |     3     0     0     0 |  <577     0     0     0
    confirmation of a sink             |     8     2     1 |     0     0     0     0 |     0     0     0    <7
    record with points                 |     2     3     1 |     0     0     0     0 |     0     0     0   <40
    records pending                    |     1     0     0 |     0     0     0     0 |     0     0     0     0
    record sent                        |     0     1     1 |     0     0     0     0 |     0     0     0   <26
    export of a series                 |     8     3     1 |     8    13     2     0 |  <218     2     4   <52
    delete of an hour, applied         |     5     4     2 |     3     4     2     0 |  <125     0     0  <503
    import of a series, an hour is new |     4     1     1 |  6412     2     0     0 |  <116     1     0  <203
    checkpoint                         |     5     5     2 |     3 13607     3     1 |  <775     1     0 <1175
    compact                            |     1     0     0 |     0     0     0     0 |     0     0     0     0
    compact, nothing to do             |     1     0     0 |     0     0     0     0 |     0     0     0     0
    range of an hour, compacted        |     1     0     0 |     1     0     0     0 |   <40     0     0     0
    average of a series, compacted     |     1     0     0 |     1     0     0     0 |   <73     0     0     0
    close                              |     1     0     0 |     0     0     0     0 |     0     0     0  <976
    open                               |     6     0     0 |     0     0     0     0 |     0     2     0    <2
    first latest                       |     7     0     2 |     0     0     0     0 |     0     1     0     0
    first range of an hour             |     6     0     0 |     7     0     3     0 |   <39     2     0    <2
""",
}
"""Columns: metadata reads, writes, commits | columns reads, writes, commits, checkpoints | thousands scanned, opened,
fsyncs, KiB written."""

GROUPS = (3, 7)
"""Where a row is divided, to be read more easily."""


def test_each_step_of_a_session_does_no_more_work_than_is_written_down(
    engine: str, tmp_path: Path, starter: Starter
) -> None:
    done = starter.run(["-m", "tests.work.session", engine, tmp_path])
    assert done.returncode == 0, done.stderr
    works: dict[str, Work] = json.loads(done.stdout)
    expected = dict(_parsed(line) for line in EXPECTED[engine].strip().splitlines())
    wrong = [
        f"{step}: {field}: {work[field]}, expected {cell}"
        for step, work in works.items()
        for field, cell in zip(FIELDS, expected.get(step, ["no row"] * len(FIELDS)), strict=True)
        if not _matches(work[field], cell)
    ]
    wrong += [f"{step}: is no step of the session" for step in expected.keys() - works.keys()]
    assert not wrong, "\n".join([f"on {engine}:", *wrong, "", "measured:", *map(_row, works.items())])


def _parsed(line: str) -> tuple[str, list[str]]:
    step, _, cells = line.partition("|")
    return step.strip(), cells.replace("|", " ").split()


def _matches(number: int, cell: str) -> bool:
    return number <= int(cell[1:]) if cell.startswith("<") else str(number) == cell


def _row(measured: tuple[str, Work]) -> str:
    """Return the row of the table; where the numbers may vary a little, with a bound a fifth above."""
    step, work = measured
    cells = [
        f"<{number + number // 5 + 1}" if field in ("scanned", "KiB written") and number else str(number)
        for field, number in work.items()
    ]
    for at in reversed(GROUPS):
        cells.insert(at, "|")
    return f"    {step:35}| " + " ".join(f"{cell:>1}" if cell == "|" else f"{cell:>5}" for cell in cells)
