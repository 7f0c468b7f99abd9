"""Every field, through every entry point, with every fault: stored as promised, or refused with nothing written.

`pytest tests/badinput -s` prints the grid. The cells are data (`cases.py`); an entry point is one function here.
"""

from __future__ import annotations

import csv
import io
import math
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from repo import Settings, Store
from repo.commands import holdfast
from repo.errors import InvalidFile, InvalidPoint
from repo.formats.text.csv import read_csv
from repo.formats.text.layout import Layout
from tests.badinput.cases import CASES, NOW_US, Case, Expectation, NoPoint, Refused, Stored

Fields = dict[str, Any]
Row = make_dataclass(
    "Row", ["sensor_id", "metric_name", "value", "timestamp", ("quality", Any, 100), ("metadata", Any, None)]
)


class Turned(Exception):
    """An entry point refused what was given, with this message; or had nothing to bring in."""


def positions(fields: Fields) -> tuple[Any, ...]:
    return tuple(
        fields[name] for name in ("sensor_id", "metric_name", "timestamp", "value", "quality", "metadata")
    )


def by_insert(store: Store, fields: Fields) -> None:
    store.points.insert(**fields)


def by_tuple(store: Store, fields: Fields) -> None:
    store.points.insert_many([positions(fields)])


def by_tuple_among_others(store: Store, fields: Fields) -> None:
    store.points.insert_many([positions(fields), ("other", "m", 1, 1.0, 100, None)])


def by_dict(store: Store, fields: Fields) -> None:
    store.points.insert_many([fields])


def by_dict_among_others(store: Store, fields: Fields) -> None:
    other = {"sensor_id": "other", "metric_name": "m", "value": 1.0, "timestamp": 1}
    store.points.insert_many([other, fields, other])


def by_dataclass(store: Store, fields: Fields) -> None:
    store.points.insert_many([Row(**fields)])


def by_submit(store: Store, fields: Fields) -> None:
    store.points.submit([positions(fields)]).result(timeout=300)


def by_transaction(store: Store, fields: Fields) -> None:
    with store.transaction() as transaction:
        transaction.points.insert(**fields)


def by_csv_long(store: Store, fields: Fields) -> None:
    names = ("sensor_id", "metric_name", "timestamp", "value", "quality")
    bring_csv(store, [names, [fields[name] for name in names]], Layout(time_formats=("unix", "iso")))


def by_csv_wide(store: Store, fields: Fields) -> None:
    names = ("sensor_id", "timestamp", "quality")
    rows = [(*names, fields["metric_name"]), [*(fields[name] for name in names), fields["value"]]]
    bring_csv(store, rows, Layout(time_formats=("unix", "iso"), shape="wide"))


def bring_csv(store: Store, rows: list[Any], layout: Layout) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    text.seek(0)
    rejected = []
    for chunk in read_csv(text, layout):
        rejected += chunk.rejected
        store.points.insert_many(chunk.rows)
    if rejected:
        raise Turned("; ".join(map(str, rejected)))


def by_command(store: Store, fields: Fields) -> None:
    file = store.path.parent / "command.csv"
    file.write_text(f"timestamp,value\n{fields['timestamp']},{fields['value']}\n", encoding="utf-8")
    arguments = ["--store", str(store.path), "ingest", str(file), "--time-format=unix", "--time-format=iso"]
    arguments += [f"--sensor={fields['sensor_id']}", f"--metric={fields['metric_name']}"]
    done = CliRunner().invoke(holdfast, arguments)
    if done.exit_code:
        raise Turned(done.stderr)


ENTRIES: dict[str, Callable[[Store, Fields], None]] = {
    "insert": by_insert,
    "tuple": by_tuple,
    "tuple among others": by_tuple_among_others,
    "dict": by_dict,
    "dict among others": by_dict_among_others,
    "dataclass": by_dataclass,
    "submit": by_submit,
    "transaction": by_transaction,
    "CSV long": by_csv_long,
    "CSV wide": by_csv_wide,
    "command": by_command,
}


def expectation(case: Case, entry: str) -> Expectation:
    if entry == "command":  # its arguments are names; the file beside them is the matter of the CSV entries
        led = (
            case.field in ("sensor_id", "metric_name")
            and isinstance(case.given, str)
            and case.csv is not None
        )
        return case.expect if led else None
    if entry.startswith("CSV"):
        return case.csv if entry == "CSV long" or case.wide == "as long" else case.wide
    return case.expect if case.entries is None or entry in case.entries else None


CELLS = [(case, entry) for case in CASES for entry in ENTRIES if expectation(case, entry) is not None]


@dataclass
class Outcome:
    """What happened at an entry point: the refusal's message or None, and the points that are in the store for it."""

    message: str | None
    seqs_used: int
    points: list[dict[str, Any]]


def mark(index: int) -> str:
    return f"cell {index}"


def brought(index: int) -> Fields:
    """The fields of a cell: all good but one, and marked so that its point is found again."""
    case, entry = CELLS[index]
    through_csv = entry.startswith(("CSV", "command"))
    fields: Fields = {
        "sensor_id": mark(index) if case.field != "sensor_id" else None,
        "metric_name": mark(index) if case.field == "sensor_id" else "m",
        "value": 1.5,
        "timestamp": 7,
        "quality": 100,
    }
    if not through_csv:
        fields["metadata"] = None
    if case.field == "timestamp_us":
        del fields["timestamp"]
    fields[case.field] = case.cell if through_csv else case.given
    return fields


@contextmanager
def opened(folder: Path, engine: Any) -> Iterator[tuple[Store, Callable[[], int]]]:
    """A new store, and a function that returns the last seq that its journal has given out."""
    last = "SELECT max(last_seq, coalesce((SELECT max(seq) FROM journal), 0)) FROM store_state"
    with (
        Store(folder, Settings(engine=engine, background=False), clock=lambda: NOW_US) as store,
        closing(sqlite3.connect(folder / "offline_buffer.db")) as metadata,
    ):
        yield store, lambda: int(metadata.execute(last).fetchone()[0])


@pytest.fixture(scope="module", params=["duckdb", pytest.param("sqlite", marks=pytest.mark.slow)])
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    """Bring every cell to its entry point of one store, then read the whole store once.

    The commands have a store on SQLite: each opens and closes the columns, and their engine sees no argument.
    """
    if request.param == "duckdb":
        pytest.importorskip("duckdb")
    folder: Path = tmp_path_factory.mktemp(request.param)
    messages: list[str | None] = []
    used: list[int] = []
    with (
        opened(folder / "entries", request.param) as entries,
        opened(folder / "commands", "sqlite") as commands,
    ):
        for index, (_, entry) in enumerate(CELLS):
            store, last_seq = commands if entry == "command" else entries
            before = last_seq()
            try:
                ENTRIES[entry](store, brought(index))
            except (InvalidPoint, InvalidFile, Turned) as refusal:
                messages.append(str(refusal))
            else:
                messages.append(None)
            used.append(last_seq() - before)
        found: dict[str, list[dict[str, Any]]] = {}
        for store, last_seq in (entries, commands):
            assert last_seq() == store.status().last_seq
            for point in store.points.range(None, None):
                for name in (point["sensor_id"], point["metric_name"]):
                    if name.startswith("cell "):
                        found.setdefault(name, []).append(dict(point))
    return [Outcome(messages[index], used[index], found.get(mark(index), [])) for index in range(len(CELLS))]


def fault_of(index: int, outcome: Outcome) -> str | None:
    """What is wrong with the outcome of a cell; None if it is as promised."""
    case, entry = CELLS[index]
    wanted = expectation(case, entry)
    if isinstance(wanted, Stored):
        if outcome.message is not None:
            return f"refused: {outcome.message}"
        if len(outcome.points) != 1:
            return f"{len(outcome.points)} points are in the store"
        field = "timestamp_us" if case.field == "timestamp" else case.field
        got = outcome.points[0][field]
        same = type(got) is type(wanted.value) and got == wanted.value
        if same and isinstance(got, float):
            same = math.copysign(1.0, got) == math.copysign(1.0, wanted.value)
        return None if same else f"stored as {got!r}, not {wanted.value!r}"
    if outcome.seqs_used or outcome.points:
        return f"{outcome.seqs_used} seqs were used and {outcome.points!r} written"
    if isinstance(wanted, NoPoint):
        return None if outcome.message is None else f"refused: {outcome.message}"
    assert isinstance(wanted, Refused)
    if outcome.message is None:
        return "nothing was written, but no error was raised"
    return (
        None
        if wanted.text in outcome.message
        else f"the message is {outcome.message!r}, without {wanted.text!r}"
    )


def grid(marks: dict[tuple[int, str], str]) -> str:
    """The matrix as text: S stored, R refused, - no point, ! not as promised, a dot where the fault cannot be given."""
    width = max(len(f"{case.field}: {case.fault}") for case in CASES)
    lines = [f"{'':{width}}  " + "  ".join(f"{number:x}" for number in range(len(ENTRIES)))]
    lines += [f"{'':{width}}  {number:x} {entry}" for number, entry in enumerate(ENTRIES)]
    for row, case in enumerate(CASES):
        cells = "  ".join(marks.get((row, entry), "·") for entry in ENTRIES)
        lines.append(f"{case.field + ': ' + case.fault:{width}}  {cells}")
    return "\n".join(lines)


def test_the_matrix_is_as_promised_and_printed(outcomes: list[Outcome]) -> None:
    letters = {Stored: "S", Refused: "R", NoPoint: "-"}
    row_of = {id(case): row for row, case in enumerate(CASES)}
    marks, faults = {}, []
    for index, outcome in enumerate(outcomes):
        case, entry = CELLS[index]
        fault = fault_of(index, outcome)
        marks[row_of[id(case)], entry] = letters[type(expectation(case, entry))] if fault is None else "!"
        if fault is not None:
            faults.append(f"{case.field}, {case.fault}, by {entry}: {fault}")
    empty = len(CASES) * len(ENTRIES) - len(CELLS)
    picture = (
        f"{grid(marks)}\n{len(CELLS)} cells, {len(faults)} not as promised, {empty} empty (·: no such way in)"
    )
    print(f"\n{picture}")
    assert not faults, "\n".join([picture, *faults])


def test_what_is_refused_names_its_field_and_what_is_good_beside_it_is_not_written(
    outcomes: list[Outcome],
) -> None:
    for index, outcome in enumerate(outcomes):
        case, entry = CELLS[index]
        if isinstance(expectation(case, entry), Refused) and not entry.startswith(("CSV", "command")):
            assert outcome.message is not None
            assert f"{case.field}: " in outcome.message
            if "among others" in entry:
                assert "row " in outcome.message


def test_only_ways_that_cannot_be_are_empty_in_the_matrix() -> None:
    """CSV has neither metadata nor Python's types; timestamp_us is a key of dicts; some faults are CSV's own."""
    python_entries = {entry for entry in ENTRIES if not entry.startswith(("CSV", "command"))}
    for case in CASES:
        led = {entry for entry in ENTRIES if expectation(case, entry) is not None}
        if case.expect is not None:
            assert python_entries <= led or case.field == "timestamp_us", case
        if case.cell is not None:
            assert "CSV long" in led, case
            assert "CSV wide" in led or (case.field, case.fault) in {
                ("metric_name", "empty"),
                ("metric_name", "blank"),
            }, case
        if case.cell is None and case.field not in {"metadata", "timestamp_us"}:
            assert not isinstance(case.given, str) or case.fault in {"'nan' as text", "longest text"}, case
