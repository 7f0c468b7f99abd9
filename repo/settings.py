"""Settings: names, units and defaults with their reasons, and how the sources are merged."""

from __future__ import annotations

import logging
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Self

from repo.errors import InvalidSettings, system_error
from repo.inputs.arguments import LARGEST, check_fields, check_path, shown

__all__ = ["BOOLEANS", "CONFIG_FILE", "ENVIRONMENT_PREFIX", "Settings"]

CONFIG_FILE = "holdfast.toml"

ENVIRONMENT_PREFIX = "HOLDFAST_"

_OTHER_VARIABLES = (
    *("store", "json", "quiet", "verbose", "test", "metadata_url", "timeseries_url"),
    *(
        "adopt_",
        "check_",
        "cleanup_",
        "compact_",
        "demo_",
        "demote_",
        "export_",
        "import_",
        "ingest_",
        "init_",
    ),
    *("latest_", "losses_", "migrate_", "promote_", "query_", "series_", "sql_", "status_"),
    *("drain_", "quarantine_", "reconcile_", "run_", "sinks_"),
)
"""The beginnings of variable names that are not settings: options of the command, and URLs for Alembic."""

log = logging.getLogger("holdfast.settings")

BOOLEANS = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}
"""The texts that an environment variable may have for True and False."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of one store. Immutable; `Settings.load` merges the sources.

    Precedence: argument, environment (`HOLDFAST_` + the upper-case name), `holdfast.toml` in the store's
    folder, default. The unit of a setting is the end of its name (`_s` are seconds), and the defaults are in brackets:

    - durability (full): What an acknowledged write survives: a power loss (`full`) or only a killed process
      (`normal`).
    - engine (auto): The engine of a NEW store: `auto` is DuckDB if it can be imported. An existing store keeps its
      engine (see `convert_at_open`).
    - convert_at_open (False): Convert the columns of an existing store to `engine` at open, if they are in the
      other one. Ten million points take a minute or two, during which nobody can read them. If the conversion
      needs DuckDB and it is not installed, the store opens unconverted, with a warning.
    - auto_migrate (True): Upgrade an outdated schema at open; otherwise raise `SchemaOutdated`.
    - migration_backups (1): How many backups of both databases to keep; each migration makes one first. 0 makes
      none.
    - background (True): Run a daemon thread that flushes, checkpoints and hands the lease over when another
      process waits for it.
    - compact_background (True): Let the background thread sort the points on disk by series and time, about a
      million at a time (see `Store.compact`). Only DuckDB needs it.
    - flush_interval_s (1.0): How long acknowledged points may wait in the journal before the background thread
      applies them.
    - flush_batch_points (245_760): The largest number of points that one flush transaction holds in memory (about
      50 bytes each). Two row groups of DuckDB: a transaction that fills none is compressed several times. SQLite gets
      at most 65,536 at a time.
    - bulk_rows (122_880): Tables of this many rows and more go straight to the columns; smaller ones, which fill no
      row group of DuckDB, are cheaper through the journal.
    - lease_timeout_s (10.0): How long a call waits for another process to hand over the columns before it raises
      `StoreBusy`.
    - lease_idle_s (1.0): How long an unused lease is kept, which saves the next call from reopening the file
      (20-50 ms).
    - busy_timeout_s (10.0): How long to wait for another writer's transaction in SQLite; at least 5 (SQLite's lock
      is not fair).
    - submit_queue_points (100_000): The largest number of points that `submit` queues before it blocks its caller.
    - checkpoint_log_bytes (1_000_000): DuckDB's log is checkpointed past this size: small enough to replay
      quickly, large enough that flash is not rewritten at every flush.
    - checkpoint_interval_s (60.0): The longest time that applied points wait for a checkpoint, and so stay in the
      journal.
    - wal_checkpoint_bytes (4_194_304): SQLite's WAL is checkpointed after about this many bytes were written
      (SQLite's own default).
    - duckdb_memory_limit_bytes (64_000_000): DuckDB's buffer memory; the process peaks at about 2.5 times as much.
    - duckdb_threads (2): DuckDB's worker threads; gateways have few cores and other work to do.
    - compress (True): Compress new data: columns as DuckDB chooses for each, Parquet files with zstd.
    - accept_bool (False): Accept True and False as the values 1 and 0 instead of refusing them.
    """

    durability: Literal["full", "normal"] = "full"
    engine: Literal["auto", "duckdb", "sqlite"] = "auto"
    convert_at_open: bool = False
    auto_migrate: bool = True
    migration_backups: int = 1
    background: bool = True
    compact_background: bool = True
    flush_interval_s: float = 1.0
    flush_batch_points: int = 245_760
    bulk_rows: int = 122_880
    lease_timeout_s: float = 10.0
    lease_idle_s: float = 1.0
    busy_timeout_s: float = 10.0
    submit_queue_points: int = 100_000
    checkpoint_log_bytes: int = 1_000_000
    checkpoint_interval_s: float = 60.0
    wal_checkpoint_bytes: int = 4_194_304
    duckdb_memory_limit_bytes: int = 64_000_000
    duckdb_threads: int = 2
    compress: bool = True
    accept_bool: bool = False

    def __post_init__(self) -> None:
        check_fields(self, error=InvalidSettings)
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise InvalidSettings(
                    f"{name} = {getattr(self, name)!r} is too small; the minimum is {least}"
                )
        for name, most in _MOST.items():
            if getattr(self, name) > most:
                raise InvalidSettings(f"{name} = {getattr(self, name)!r} is too large; the maximum is {most}")

    @classmethod
    def load(
        cls, folder: str | Path | None = None, environment: Mapping[str, str] | None = None, **arguments: Any
    ) -> Self:
        """Merge the arguments, the environment, the folder's `holdfast.toml` and the defaults, in this precedence.

        An argument that is None counts as not given. Raises `InvalidSettings` for an unknown name, a wrong type or a
        value out of range.
        """
        merged: dict[str, Any] = {}
        if folder is not None:
            merged |= _from_file(check_path(folder, "folder", error=InvalidSettings) / CONFIG_FILE)
        if environment is not None and not isinstance(environment, Mapping):
            raise InvalidSettings(f"environment = {shown(environment)}: a mapping of texts is expected")
        merged |= _from_environment(os.environ if environment is None else environment)
        for name, value in arguments.items():
            if value is not None:
                known = _known(name, "argument")  # first: an unknown one has no type
                merged[known] = _typed(known, value, "argument")
        return replace(cls(), **merged)


_NAMES = tuple(field.name for field in fields(Settings))
_LEAST: dict[str, float] = {
    "migration_backups": 0,
    "flush_interval_s": 0.01,
    "flush_batch_points": 1,
    "bulk_rows": 1,
    "lease_timeout_s": 0,
    "lease_idle_s": 0,
    "busy_timeout_s": 5,
    "submit_queue_points": 1,
    "checkpoint_log_bytes": 0,
    "checkpoint_interval_s": 0,
    "wal_checkpoint_bytes": 65_536,
    "duckdb_memory_limit_bytes": 16_000_000,
    "duckdb_threads": 1,
}
_MOST: dict[str, float] = {
    "migration_backups": 1_000,
    **dict.fromkeys(
        ("flush_interval_s", "lease_timeout_s", "lease_idle_s", "busy_timeout_s", "checkpoint_interval_s"),
        2_000_000,  # SQLite counts the milliseconds of its timeout in 32 bits
    ),
    "duckdb_threads": 1_024,
}


def _from_file(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise system_error(error, path) from error
    try:
        table = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSettings(f"{path} is not valid TOML: {error}", path=path) from error
    return {_known(name, str(path)): _typed(name, value, str(path)) for name, value in table.items()}


def _warn_of_unknown(environment: Mapping[str, str]) -> None:
    """Log each variable that looks like a setting but is not one, once per process."""
    for variable in environment:
        if (
            not isinstance(variable, str)
            or not variable.startswith(ENVIRONMENT_PREFIX)
            or variable in _warned
        ):
            continue
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        if name in _NAMES:
            continue
        similar = get_close_matches(name, _NAMES, 1, 0.8)
        if not similar and name.startswith(_OTHER_VARIABLES):
            continue  # of the command, the demo or the tests
        _warned.add(variable)
        hint = (
            f"did you mean {ENVIRONMENT_PREFIX}{similar[0].upper()}?"
            if similar
            else f"the settings are {', '.join(_NAMES)}"
        )
        log.warning("the environment variable %s names no setting and is ignored; %s", variable, hint)


_warned: set[str] = set()


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    _warn_of_unknown(environment)
    return {
        name: _parsed(name, environment[key], key)
        for name in _NAMES
        if (key := ENVIRONMENT_PREFIX + name.upper()) in environment
    }


def _known(name: str, origin: str) -> str:
    if name not in _NAMES:
        similar = get_close_matches(name, _NAMES, 1, 0.6) if isinstance(name, str) else []
        hint = f"did you mean {similar[0]}?" if similar else f"the settings are {', '.join(_NAMES)}"
        raise InvalidSettings(f"{origin}: unknown setting {shown(name)}; {hint}")
    return name


def _typed(name: str, value: Any, origin: str) -> Any:
    kind = type(getattr(Settings(), name))
    if kind is float and type(value) is int and abs(value) <= LARGEST:
        return float(value)
    if type(value) is not kind:
        raise InvalidSettings(f"{origin}: {name} = {shown(value)} must be of type {kind.__name__}")
    return value


def _parsed(name: str, text: str, origin: str) -> Any:
    kind = type(getattr(Settings(), name))
    try:
        return BOOLEANS[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise InvalidSettings(f"{origin} = {shown(text)} is not a valid {kind.__name__}") from error
