"""Counts the work of this process: what the engines and the system say that they did, not how long it took.

SQLite reports each statement, and each thousand steps of its virtual machine. DuckDB logs each statement, with the rows
that it scanned. The system counts the bytes that the process writes. Nothing is replaced: hooks of the interpreter and
of the engines observe the real calls. Hooks stay until the process ends, so count in a process that ends then.
"""

from __future__ import annotations

import csv
import math
import os
import re
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event

__all__ = ["FIELDS", "Counting", "Work"]

STEPS = 1_000
"""After how many steps of its virtual machine SQLite calls back."""

FIELDS = (
    *("metadata reads", "metadata writes", "metadata commits"),
    *("columns reads", "columns writes", "columns commits", "checkpoints"),
    *("scanned", "opened", "fsyncs", "KiB written"),
)
"""What is counted. Columns include the instances of DuckDB that scan tables and files. `scanned`: thousands of rows in
DuckDB's columns, or of steps of the virtual machine in SQLite's. `opened`: connections of SQLite and instances of
DuckDB. `fsyncs`: those of the library; the engines sync at commits and checkpoints, which are counted. `KiB written`:
to any file."""

Work = dict[str, int]
"""A number for each of `FIELDS`."""

_KINDS = {"SELECT": "reads", "WITH": "reads", "FROM": "reads", "COMMIT": "commits", "END": "commits"}
_KINDS |= dict.fromkeys(
    ("INSERT", "REPLACE", "UPDATE", "DELETE", "CREATE", "DROP", "ALTER", "COPY"), "writes"
)
_SCANNED = re.compile(r"'metric': query.total_rows_scanned, 'value': (\d+)")
_LOGGED = "'QueryLog', 'Metrics'"
_PROFILING = {"enable_profiling": "'no_output'", "profiling_coverage": "'ALL'"}
_PROFILING |= {"tracked_metrics": "['query.total_rows_scanned']"}


class Counting:
    """Counts from its creation to the end of the process; `logs` is an empty folder for what DuckDB logs."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._counts: Counter[str] = Counter()
        self._logged: Counter[str] = Counter()
        self._read: dict[Path, int] = {}
        sys.addaudithook(self._heard)
        event.listen(Engine, "connect", self._follow)
        real_fsync = os.fsync

        def fsync(fd: Any) -> None:
            self._counts["fsyncs"] += 1
            real_fsync(fd)

        os.fsync = fsync
        try:
            import duckdb
            import duckdb_engine  # noqa: F401  opens an instance when it is imported
        except ModuleNotFoundError:
            return
        real_connect = duckdb.connect

        def connect(*arguments: Any, **options: Any) -> Any:
            return _Instance(real_connect(*arguments, **options), self._new_log())

        duckdb.connect = connect

    @contextmanager
    def step(self, into: Callable[[Work], object]) -> Iterator[None]:
        """Pass on the work of the block."""
        before = self._now()
        yield
        after = self._now()
        done = {name: after[name] - before[name] for name in {*FIELDS, *after}}
        done["scanned"] = math.ceil(done["scanned"] / 1_000)
        done["KiB written"] = math.ceil(done["bytes"] / 1_024)
        into({name: done[name] for name in FIELDS})

    def _now(self) -> Counter[str]:
        for log in self._logs.glob("*/duckdb_log_entries.csv"):
            with log.open(newline="") as lines:
                lines.seek(self._read.get(log, 0))
                for entry in csv.reader(iter(lines.readline, "")):
                    if entry:
                        self._logged.update(_logged(entry[2], entry[4]))
                self._read[log] = lines.tell()
        [written] = re.findall(r"wchar: (\d+)", Path("/proc/self/io").read_text())
        logged = sum(file.stat().st_size for file in self._logs.glob("*/*"))
        return (
            Counter(dict.fromkeys(FIELDS, 0))
            + self._counts
            + self._logged
            + Counter(bytes=int(written) - logged)
        )

    def _new_log(self) -> Path:
        self._counts["opened"] += 1
        return self._logs / str(self._counts["opened"])

    def _heard(self, name: str, _arguments: object) -> None:
        if name == "sqlite3.connect":
            self._counts["opened"] += 1

    def _follow(self, connection: Any, _record: object) -> None:
        if not isinstance(connection, sqlite3.Connection):
            return
        [file] = [row[2] for row in connection.execute("PRAGMA database_list") if row[1] == "main"]
        database = "metadata" if file.endswith(".db") else "columns"

        def stated(statement: str) -> None:
            self._counts.update(_counted(database, statement))

        def stepped() -> int:
            self._counts["scanned"] += STEPS
            return 0

        connection.set_trace_callback(stated)
        if database == "columns":
            connection.set_progress_handler(stepped, STEPS)


class _Instance:
    """An instance of DuckDB that logs to a folder. Its cursors are DuckDB's own, and profile their statements."""

    def __init__(self, connection: Any, log: Path) -> None:
        self._connection = connection
        self._may_profile = False
        connection.execute(f"CALL enable_logging([{_LOGGED}], storage = 'file', storage_path = '{log}')")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, statement: Any, *arguments: Any) -> Any:
        """Run it. Where the library allows some settings to be changed later, those for profiling are among them."""
        if isinstance(statement, str) and statement.startswith("SET allowed_configs = ["):
            statement = statement.replace("]", "".join(f", '{name}'" for name in _PROFILING) + "]")
            self._may_profile = True
        return self._connection.execute(statement, *arguments)

    def cursor(self) -> Any:
        """Return another connection to the instance."""
        cursor = self._connection.cursor()
        for name, value in _PROFILING.items() if self._may_profile else ():
            cursor.execute(f"SET {name} = {value}")
        return cursor


def _logged(kind: str, message: str) -> dict[str, int]:
    if kind == "QueryLog":
        return _counted("columns", message)
    found = _SCANNED.search(message)
    return {"scanned": int(found[1])} if found else {}


def _counted(database: str, statement: str) -> dict[str, int]:
    word = statement.lstrip(" \n(").partition(" ")[0].upper().rstrip(";")
    if word == "CHECKPOINT" or "wal_checkpoint(" in statement:
        return {"checkpoints": 1}
    kind = _KINDS.get(word)
    return {} if kind is None else {f"{database} {kind}": 1}
