"""Tables: what is cut where a line does not fit, on a real terminal and in a pipe."""

from __future__ import annotations

import io
import os
import pty
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from repo.commands import terminal
from repo.commands.output import write_rows

END = "(end)"
TIME = "2026-11-29T17:42:09.289482Z"
COLUMNS = ("sensor_id", "metric_name", "timestamp", "value", "quality", "metadata")
POINT = {
    "sensor_id": "PLANT/AREA-7/LINE-3/PUMP-0007",
    "metric_name": "discharge_pressure_filtered",
    "timestamp": TIME,
    "value": 1234567.890123,
    "quality": 192,
    "metadata": {"serial": "x" * 300},
}


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[], Any]], str]]:
    """Run something with stdout on a terminal of 80 columns; returns what it printed."""
    master, slave = pty.openpty()
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("NO_COLOR", "LC_ALL", "LC_CTYPE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LANG", "en_US.UTF-8")
    monkeypatch.setenv("TERM", "xterm")
    with open(slave, "w", encoding="utf-8") as stream:

        def run(do: Callable[[], Any]) -> str:
            monkeypatch.setattr(
                sys, "stdout", stream
            )  # here: pytest sets it again before each phase of a test
            do()
            stream.write(END)
            stream.flush()
            printed = b""
            while not printed.endswith(END.encode()):
                printed += os.read(master, 65_536)
            return printed.decode().removesuffix(END).replace("\r\n", "\n")

        yield run
    os.close(master)


def shown(*rows: dict[str, Any], columns: tuple[str, ...] = COLUMNS) -> Callable[[], int]:
    texts = ("sensor_id", "metric_name", "metadata")
    note = partial(print, file=sys.stderr)
    return lambda: write_rows(
        "table", columns, rows, cuttable=texts, optional=("metadata", "quality"), note=note
    )


def test_a_table_fits_the_terminal_by_cutting_names_and_metadata_only(
    on_terminal: Callable[[Callable[[], Any]], str],
) -> None:
    header, line = on_terminal(shown(POINT)).splitlines()
    assert len(header) <= 80
    assert len(line) <= 80
    assert TIME in line
    assert "1234568" in line
    assert line.startswith("PLAN…")
    assert "0007" in line, "the end of a name, where similar names differ"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2500.0, "2500"),
        (0.1 + 0.2, "0.3"),
        (25.123456789, "25.1235"),
        (-1234567890.123, "-1234567890"),
        (99999.96, "100000"),
        (1.23456789e-7, "1.23457e-07"),
        (1.5e300, "1.5e+300"),
        (float("inf"), "inf"),
        (12345678901234567, "12345678901234567"),
        ({}, ""),
    ],
)
def test_fractions_have_six_digits_on_a_terminal_and_no_digit_before_the_point_is_cut(
    on_terminal: Callable[[Callable[[], Any]], str], value: Any, text: str
) -> None:
    row = {"sensor_id": "s", "value": value}
    assert on_terminal(shown(row, columns=("sensor_id", "value"))).splitlines()[1].split()[1:] == text.split()


def test_a_pipe_gets_all_digits_and_no_endless_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    shown(POINT)()
    for line in capsys.readouterr().out.splitlines()[1:]:
        assert "1234567.890123" in line
        assert "PLANT/AREA-7/LINE-3/PUMP-0007" in line
        assert len(line) <= 160


def test_columns_without_room_are_left_out_and_named(
    on_terminal: Callable[[Callable[[], Any]], str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "64")
    assert on_terminal(shown(POINT)).splitlines()[0].split()[-1] == "value"
    assert "no room for metadata, quality" in capsys.readouterr().err


def test_the_locale_and_no_color_are_respected(
    on_terminal: Callable[[Callable[[], Any]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "…" in on_terminal(shown(POINT))
    assert terminal.has_colours()
    monkeypatch.setenv("NO_COLOR", "1")
    assert (terminal.has_colours(), terminal.is_plain(), terminal.has_unicode()) == (False, True, True)
    for variable, locale, is_wide in (
        ("LC_CTYPE", "C.UTF-8", True),
        ("LC_ALL", "C", False),
        ("LC_ALL", "POSIX", False),
        ("LC_ALL", "de_DE.ISO-8859-1", False),
        ("LC_ALL", "de_DE.utf8@euro", True),
    ):
        monkeypatch.setenv(variable, locale)
        assert terminal.has_unicode() is is_wide, locale
    monkeypatch.setenv("LC_ALL", "C")
    assert on_terminal(shown(POINT)).isascii()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="latin-1"))
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    assert not terminal.has_unicode()


def test_a_column_is_left_out_where_another_one_would_be_cut_to_nothing(
    on_terminal: Callable[[Callable[[], Any]], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    sink = {
        "name": "central",
        "kind": "postgresql",
        "behind": 1234567,
        "target": "postgresql://hub.plant-7.example/site",
    }
    notes: list[str] = []

    def listed() -> int:
        columns = ("name", "kind", "behind", "target")
        return write_rows(
            *("table", columns, [sink]),
            cuttable=("target", "name"),
            optional=("kind", "behind"),
            narrowest={"target": 36},
            note=notes.append,
        )

    header, line = on_terminal(listed).splitlines()
    assert len(line) <= 60
    assert header.split() == ["name", "behind", "target"]
    assert "hub.plant" in line
    assert notes == ["no room for kind; --json has all columns"]
