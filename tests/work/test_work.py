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

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the bytes written are counted by Linux alone"
)

EXPECTED = {
    "duckdb": """
    create                            |   <14   <36   <14 |    <2    <2    <2    <4 |    <2   <12    <2  <402
    bulk table                        |   <30   <30   <20 |   <76   <54   <24    <6 |    <6   <10   <16 <6908
    100 inserts                       |  <202  <202  <202 |    <2    <2    <2    <2 |    <2    <2    <2 <1018
    10 batches of 1,000               |   <22   <22   <22 |    <2    <2    <2    <2 |    <2    <2    <2  <584
    flush of 10,101                   |    <8    <8    <8 |    <4   <10    <6    <2 |    <6    <2    <2 <1170
    flush of nothing                  |    <4    <2    <4 |    <2    <2    <2    <2 |    <2    <2    <2    <2
    range of an hour                  |    <4    <2    <4 |    <4    <2    <4    <2 |  <256    <2    <2    <2
    range of a series, in pages       |   <12    <2   <12 |   <12    <2   <12    <2 | <1096    <2    <2    <2
    range of a series, as columns     |    <4    <2    <4 |    <4    <2    <4    <2 |  <320    <2    <2    <2
    average of a series               |    <6    <2    <6 |    <4    <2    <4    <2 |  <320    <2    <2    <2
    buckets of a series               |    <4    <2    <4 |    <4    <2    <4    <2 |  <320    <2    <2    <2
    latest of one                     |   <10    <2    <4 |    <2    <2    <2    <2 |    <2    <2    <2    <2
    latest of one, again              |    <2    <2    <2 |    <2    <2    <2    <2 |    <2    <2    <2    <2
    latest of all                     |    <6    <2    <6 |    <2    <2    <2    <2 |    <2    <2    <2    <2
    insert, then read                 |    <8    <8    <8 |    <6   <10    <8    <2 |   <24    <4    <2   <28
    status                            |   <30    <2    <4 |    <2    <2    <2    <2 |    <2    <2    <2    <2
    list of series                    |    <4    <2    <4 |    <2    <2    <2    <2 |    <2    <2    <2    <2
    3 pages to deliver                |    <8    <2    <8 |    <8    <2    <8    <2 |  <888    <2    <2    <2
    confirmation of a sink            |    <4    <8    <6 |    <2    <2    <2    <2 |    <2    <2    <2   <24
    record with points                |    <6    <8    <4 |    <2    <2    <2    <2 |    <2    <2    <2   <82
    records pending                   |    <4    <2    <4 |    <2    <2    <2    <2 |    <2    <2    <2    <2
    record sent                       |    <4    <4    <4 |    <2    <2    <2    <2 |    <2    <2    <2   <54
    export of a series                |   <14   <10   <14 |   <16   <22   <12    <2 |  <982    <4   <10   <32
    delete of an hour, applied        |   <10   <12   <10 |    <8   <12    <6    <2 | <1028    <2    <2  <142
    import of a series, an hour is new|   <10    <4   <10 |   <28   <10    <4    <2 |  <322    <6    <2 <1686
    checkpoint                        |   <10   <14   <12 |   <10   <22    <8    <4 |  <560    <2    <6 <4396
    close                             |    <4    <2    <4 |    <2    <2    <2    <2 |    <2    <2    <2 <2214
    open                              |   <14    <2    <8 |    <2    <2    <2    <2 |    <2    <6    <2    <6
    first latest                      |   <10    <2    <4 |    <2    <2    <2    <2 |    <2    <2    <2    <2
    first range of an hour            |   <14    <2   <10 |   <16    <2   <10    <2 |  <300    <6    <2    <6
""",
    "sqlite": """
    create                            |   <14   <36   <14 |    <2    <2    <2    <4 |    <2   <12    <2  <402
    bulk table                        |   <26   <14   <14 |   <38   <42   <20    <2 |    <2    <8    <2 <1704
    100 inserts                       |  <202  <202  <202 |    <2    <2    <2    <2 |    <2    <2    <2 <1018
    10 batches of 1,000               |   <22   <22   <22 |    <2    <2    <2    <2 |    <2    <2    <2  <584
    flush of 10,101                   |    <8   <20   <10 |    <6 <80216    <8    <4 | <3658    <4    <2 <12372
    flush of nothing                  |    <4    <2    <4 |    <2    <2    <2    <2 |    <2    <2    <2    <2
    range of an hour                  |    <4    <2    <4 |    <4    <2    <4    <2 |   <80    <2    <2    <2
    range of a series, in pages       |   <12    <2   <12 |   <12    <2   <12    <2 |  <216    <2    <2    <2
    range of a series, as columns     |    <4    <2    <4 |    <4    <2    <4    <2 |  <220    <2    <2    <2
    average of a series               |    <6    <2    <6 |    <4    <2    <4    <2 |  <148    <2    <2    <2
    buckets of a series               |    <4    <2    <4 |    <4    <2    <4    <2 |  <636    <2    <2    <2
    latest of one                     |   <10    <2    <4 |    <2    <2    <2    <2 |    <2    <2    <2    <2
    latest of one, again              |    <2    <2    <2 |    <2    <2    <2    <2 |    <2    <2    <2    <2
    latest of all                     |    <6    <2    <6 |    <2    <2    <2    <2 |    <2    <2    <2    <2
    insert, then read                 |    <8   <14   <10 |    <6   <10    <8    <2 |    <2    <4    <2   <82
    status                            |   <30    <2    <4 |    <2    <2    <2    <2 |    <2    <2    <2    <2
    list of series                    |    <4    <2    <4 |    <2    <2    <2    <2 |    <2    <2    <2    <2
    3 pages to deliver                |    <8    <2    <8 |    <8    <2    <8    <2 | <1156    <2    <2    <2
    confirmation of a sink            |    <4    <8    <6 |    <2    <2    <2    <2 |    <2    <2    <2   <24
    record with points                |    <6    <8    <4 |    <2    <2    <2    <2 |    <2    <2    <2   <82
    records pending                   |    <4    <2    <4 |    <2    <2    <2    <2 |    <2    <2    <2    <2
    record sent                       |    <4    <4    <4 |    <2    <2    <2    <2 |    <2    <2    <2   <54
    export of a series                |   <14   <16   <16 |   <18   <30   <12    <2 |  <436    <6   <10  <126
    delete of an hour, applied        |   <10   <18   <12 |    <8   <12    <6    <2 |  <252    <2    <2 <1028
    import of a series, an hour is new|   <10    <4   <10 | <12822    <6    <4    <2 |  <234    <6    <2  <408
    checkpoint                        |   <10   <14   <12 |    <8 <27218    <8    <4 | <1544    <2    <2 <2352
    close                             |    <4    <2    <4 |    <2    <2    <2    <2 |    <2    <2    <2 <1954
    open                              |   <14    <2    <8 |    <2    <2    <2    <2 |    <2    <6    <2    <6
    first latest                      |   <10    <2    <4 |    <2    <2    <2    <2 |    <2    <2    <2    <2
    first range of an hour            |   <14    <2   <10 |   <14    <2   <10    <2 |   <80    <8    <2    <6
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
    return f"    {step:34}| " + " ".join(f"{cell:>1}" if cell == "|" else f"{cell:>5}" for cell in cells)
