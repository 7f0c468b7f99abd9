"""The databases that a migration or a run of `alembic` covers, and how each is opened. Never runs a migration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine, inspect, make_url, select
from sqlalchemy.exc import ArgumentError

from repo.clock import Clock, system_clock
from repo.engines.base import Backend
from repo.engines.registry import ENGINES, METADATA, engine_named, first_usable
from repo.engines.sqlite import driver as sqlite
from repo.errors import HoldfastError, StoreMissing
from repo.files import StoreFiles
from repo.models import StoreState
from repo.processes.lease import Lease
from repo.schema.version import version_of
from repo.settings import Settings

__all__ = [
    "DATABASES",
    "Target",
    "backend_of",
    "find_targets",
    "held",
    "in_pieces",
    "in_store",
    "opened",
    "typed",
]

DATABASES = ("timeseries", "metadata")
"""The order of a run. The columns come first: a service that has them open is noticed before anything is changed, and
metadata at the head, which a store checks first, mean that the columns are at the head too."""

DEFAULT_STORE = "./data/buffer"

_SETTINGS = ("store", "path", *(f"{database}.url" for database in DATABASES), "remove")


@dataclass(frozen=True, slots=True)
class Target:
    """One database of a run: its name, engine and file."""

    database: str
    engine: str
    path: Path
    files: StoreFiles | None = None
    """The files of its store, if the store was given."""

    def require(self, *, create: bool) -> None:
        """Raise `StoreMissing` if the file does not exist, or create its folder if the run creates the file."""
        if create:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise HoldfastError(
                    f"the folder of {self.path} cannot be created ({error.strerror}); name another one",
                    path=self.path,
                ) from error
        elif not self.path.exists():
            raise StoreMissing(
                f"there is no {self.database} database at {self.path}; `alembic upgrade head` creates it, "
                "`-x path=FOLDER` names another store",
                path=self.path,
            )

    def wait_until_unused(self, head: str | None) -> None:
        """Wait until no other process has the file open; return at once if it is at `head` or missing.

        Raises `StoreBusy` after the `lease_timeout_s` of its folder. Where only one process can open the file, returns
        at once: opening checks the same.
        """
        wait = engine_named(self.engine).wait_until_unused
        if wait is not None and self.path.exists():
            wait(
                self.path,
                Settings.load(self.path.parent).lease_timeout_s,
                lambda connection: head is not None and version_of(connection) == head,
            )

    @contextmanager
    def opened(self) -> Iterator[Engine]:
        """Open the database for the block, creating the file if necessary; the caller holds the lease.

        Columns are opened by their backend, as a store opens them, which also repairs a torn checkpoint.
        """
        settings = Settings.load(self.path.parent)
        with opened(self, backend_of(self, settings, system_clock), settings) as engine:
            yield engine


def find_targets(
    arguments: Mapping[str, str], environment: Mapping[str, str], in_file: Mapping[str, str] | None = None
) -> list[Target]:
    """Resolve the databases of a run, in the order in which they are migrated.

    `arguments` are Alembic's `-x` pairs: `store=metadata|timeseries` limits the run; `metadata.url=`,
    `timeseries.url=` and `path=` (a store's folder) give the location; `remove=true` is for `env.py`. The environment
    comes next (`HOLDFAST_METADATA_URL`, `HOLDFAST_TIMESERIES_URL`, `HOLDFAST_STORE`), then `in_file`, the same names
    in alembic.ini, then ./data/buffer. In each of these, the URL of a database takes precedence over the folder. Opens
    only the metadata of a store. Raises `HoldfastError` for an unknown name or a URL of another engine.
    """
    for name, value in arguments.items():
        if name not in _SETTINGS:
            raise HoldfastError(f"there is no -x {name}=; there are {', '.join(_SETTINGS)}")
        if not value:
            raise HoldfastError(f"-x {name} has no value; write -x {name}=VALUE")
    only = arguments.get("store")
    if only is not None and only not in DATABASES:
        raise HoldfastError(f"-x store={only}: must be one of {', '.join(DATABASES)}")
    surroundings = {
        "path": environment.get("HOLDFAST_STORE", ""),
        **{f"{name}.url": environment.get(f"HOLDFAST_{name.upper()}_URL", "") for name in DATABASES},
    }
    places = (arguments, surroundings, in_file or {}, {"path": DEFAULT_STORE})
    return [_found(database, places) for database in DATABASES if only in (None, database)]


def _found(database: str, places: Iterable[Mapping[str, str]]) -> Target:
    for said in places:
        if url := said.get(f"{database}.url"):
            return _from_url(database, url)
        if folder := said.get("path"):
            return _in_folder(database, Path(folder).expanduser())
    raise AssertionError("the default store is the last place")


@contextmanager
def held(targets: list[Target]) -> Iterator[None]:
    """Hold the lease of each store for the block, so that no other process opens its columns.

    Raises `StoreBusy` if one is not handed over within the store's `lease_timeout_s`.
    """
    places = {
        (target.files.folder, target.files.prefix) if target.files else (target.path.parent, "")
        for target in targets
    }
    with ExitStack() as stack:
        for folder, prefix in sorted(place for place in places if place[0].is_dir()):
            lease = Lease(folder, system_clock, prefix=prefix)
            stack.callback(lease.close)
            lease.acquire(Settings.load(folder).lease_timeout_s, "alembic")
        yield


def _from_url(database: str, text: str) -> Target:
    try:
        url = make_url(text)
    except ArgumentError as error:
        raise HoldfastError(f"{text!r} is not a URL of a {database} database: {error}") from error
    engine = url.get_backend_name()
    if not url.database or url.database.startswith((":memory:", "file:")):
        raise HoldfastError(f"{text!r} has no file; use {engine}:///PATH")
    if engine in (ENGINES if database == "timeseries" else (METADATA.name,)):
        return Target(database, engine, Path(url.database))
    raise HoldfastError(f"{text!r}: the {database} database cannot be in {engine}")


def _active_engine(metadata: Path) -> str | None:
    """Return the engine of a store's columns as its metadata name it; None if they do not."""
    if not metadata.exists():
        return None
    with sqlite.reading(metadata) as connection:
        if not inspect(connection).has_table(StoreState.__tablename__):
            return None
        found = connection.scalar(select(StoreState.engine))
    return found if found in ENGINES else None


def _in_folder(database: str, folder: Path) -> Target:
    return in_store(database, StoreFiles.of(folder))


def in_store(database: str, files: StoreFiles) -> Target:
    """Resolve one database of a store. Its columns are those of the active engine, or the only file that exists.

    Raises `HoldfastError` if the engine cannot be determined.
    """
    if database == "metadata":
        return Target(database, METADATA.name, files.metadata, files)
    active = _active_engine(files.metadata)
    if active is not None:
        return Target(database, active, files.columns(active), files)
    there = [engine for engine in ENGINES if files.columns(engine).exists()]
    if len(there) > 1:
        names = " and ".join(files.columns(engine).name for engine in there)
        raise HoldfastError(
            f"{files.folder} has both {names}, and its metadata do not say which file is "
            "active; move the other one away, or name the right one to `alembic` with -x timeseries.url=",
            path=files.folder,
        )
    engine = there[0] if there else first_usable().name
    return Target(database, engine, files.columns(engine), files)


def backend_of(target: Target, settings: Settings, clock: Clock) -> Backend | None:
    """Return a backend of columns that does not set a damaged log aside; None for the metadata."""
    if target.database == "metadata":
        return None
    files = target.files or StoreFiles.beside(target.path)
    backend = engine_named(target.engine).open(target.path, files.scratch, settings, clock)
    backend.is_log_disposable = False  # no journal has what the legacy program's log holds
    return backend


@contextmanager
def opened(
    target: Target, backend: Backend | None, settings: Settings, *, read_only: bool = False
) -> Iterator[Engine]:
    """Open the database for the block; the caller holds the lease. Only columns have a backend."""
    if backend is None:
        engine = sqlite.open_engine(
            target.path, busy_timeout_s=max(30.0, settings.busy_timeout_s), read_only=read_only
        )
        try:
            yield engine
        finally:
            sqlite.close_idle(engine)
    else:
        engine = backend.open()
        try:
            yield engine
        finally:
            backend.close(engine)


@contextmanager
def typed(target: Target, backend: Backend | None) -> Iterator[None]:
    """Translate errors of its engine."""
    try:
        yield
    except HoldfastError:
        raise
    except Exception as error:
        if backend is None:
            raise sqlite.typed_error(error, target.path) from error
        raise backend.typed_error(error) from error


def in_pieces(total_bytes: int, progress: Callable[[int, int], object]) -> Callable[[int], None]:
    """Return a function that takes the bytes of each piece and passes (bytes done, bytes in total) to `progress`."""
    done_bytes = 0

    def report(piece_bytes: int) -> None:
        nonlocal done_bytes
        done_bytes = min(total_bytes, done_bytes + piece_bytes)
        progress(done_bytes, total_bytes)

    return report
