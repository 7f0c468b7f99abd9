"""Fixtures for all tests: stores in real folders, on both engines, with a clock that the test moves."""

from __future__ import annotations

import gc
import importlib.util
import inspect
import logging
import os
import random
import re
import resource
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from sqlalchemy import Engine

from repo import Settings, Store
from tests.starter import PipedProcess, Process, Starter, spent_us_of
from tests.without_duckdb.environment import starting_there

ROOT = Path(__file__).resolve().parents[1]
HAS_DUCKDB = importlib.util.find_spec("duckdb") is not None
"""Not where `make test-sqlite` runs the tests."""

ENGINES = ("duckdb", "sqlite") if HAS_DUCKDB else ("sqlite",)
COLUMN_FILES = {"duckdb": "timeseries.duckdb", "sqlite": "timeseries.sqlite"}
BUDGET_S = {
    "contract": 165,
    "migrations": 86,
    "cli": 58,
    "faults": 55,
    "delivery": 41,
    "compat": 19,
    "forks": 13,
    "property": 10,
    "formats": 10,
    "packaging": 9,
    "demo": 9,
    "unit": 7,
    "readme": 7,
    "badinput": 5,
    "work": 5,
    "without_duckdb": 4,
    "architecture": 3,
}
"""The CPU seconds that the tests of a folder may take, with the processes that they start.

As measured beside other work; alone, the same tests take about a fifth less.
"""

WAITING = (
    "tests/faults/",
    "tests/packaging/",
    "tests/readme/",
    "tests/demo/",
    "tests/without_duckdb/",
    "tests/forks/",
)
"""Folders whose modules are few and long, and wait for processes."""

LONGEST = (
    "tests/faults/test_rewriting_kills.py",
    "tests/faults/test_interrupts.py",
    "tests/cli/test_wrong_options.py",
    "tests/faults/test_delivery_kills.py",
    "tests/faults/test_refused_calls.py",
    "tests/delivery/test_delivery_model.py",
    "tests/faults/test_upgrade_kills.py",
    "tests/faults/test_transfer_kills.py",
    "tests/delivery/test_journal_pages.py",
    "tests/faults/test_kills.py",
    "tests/delivery/test_outages.py",
    "tests/cli/test_adopt.py",
    "tests/forks/test_campaign.py",
    "tests/delivery/test_exact_kills.py",
    "tests/migrations/test_pointers.py",
)
"""Modules whose slow tests take minutes, the longest first."""

OTHER_PROCESSES = {"spawn", "run_python", "run_without_duckdb", "starter", "starter_without_duckdb"}
"""The fixtures with which a test has another process open its store."""

SEED_VARIABLE = "HOLDFAST_TEST_SEED"
STARTER_VARIABLE = "HOLDFAST_TEST_STARTER"
WITHOUT_DUCKDB_VARIABLE = "HOLDFAST_TEST_STARTER_WITHOUT_DUCKDB"
"""The addresses of the starters that the processes of pytest-xdist share."""

OpenStore = Callable[..., Store]
RunPython = Callable[..., subprocess.CompletedProcess[str]]

hypothesis.settings.register_profile(
    "holdfast",
    deadline=None,
    max_examples=50,
    print_blob=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.load_profile("holdfast")


_shared_starters = pytest.StashKey[ExitStack]()


def pytest_configure(config: pytest.Config) -> None:
    """Choose one seed for all random tests, and start their starters; workers inherit all."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        config.stash[_shared_starters] = starters = ExitStack()
        os.environ[STARTER_VARIABLE] = starters.enter_context(Starter()).address
        os.environ[WITHOUT_DUCKDB_VARIABLE] = starters.enter_context(starting_there()).address
    if hasattr(config, "workerinput") and config.args_source is pytest.Config.ArgsSource.TESTPATHS:
        config.args = _folders_from(config.workerinput)
    os.environ.setdefault(SEED_VARIABLE, str(random.SystemRandom().randrange(2**32)))
    if config.getoption("hypothesis_seed", None) is None:
        hypothesis.core.global_force_seed = int(os.environ[SEED_VARIABLE])  # type: ignore[assignment]


def _folders_from(worker: dict[str, Any]) -> list[str]:
    """Return the folders of tests, from another one for each process.

    Where nothing is compiled yet, one process then compiles what the others read.
    """
    folders = sorted({str(module.parent) for module in ROOT.glob("tests/*/test_*.py")})
    first = len(folders) * int(worker["workerid"].removeprefix("gw")) // worker["workercount"]
    return folders[first:] + folders[:first]


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the starters."""
    if _shared_starters in config.stash:
        config.stash[_shared_starters].close()


def pytest_report_header() -> str | None:
    """Say on which engines the tests run, if not on all."""
    return (
        None
        if HAS_DUCKDB
        else "DuckDB is not installed here: SQLite alone, tests that need DuckDB are skipped"
    )


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """Mark what is slow on its engine and what needs DuckDB where there is none; order the modules that are chosen."""
    _mark(items)
    yield
    items[:] = _ordered(items)


def _mark(items: list[pytest.Item]) -> None:
    """Mark what is slow on its engine, and skip what needs DuckDB where there is none."""
    for item in items:
        parameters = getattr(item, "callspec", None)
        slow_on = item.get_closest_marker("slow_on")
        if slow_on and HAS_DUCKDB and parameters and parameters.params.get("engine") in slow_on.args:
            item.add_marker(pytest.mark.slow)
    if HAS_DUCKDB:
        return
    for item in items:
        parameters = getattr(item, "callspec", None)
        values = [] if parameters is None else [v for v in parameters.params.values() if isinstance(v, str)]
        fixtures: Sequence[str] = getattr(item, "fixturenames", ())
        if (
            item.get_closest_marker("duckdb")
            or {"on_duckdb", "duckdb_campaign", "own_campaign"}.intersection(fixtures)
            or any(value == "duckdb" or value.endswith(".duckdb") for value in values)
        ):
            item.add_marker(pytest.mark.skip(reason="needs DuckDB, which is not installed here"))


def _ordered(items: list[pytest.Item]) -> list[pytest.Item]:
    """Return the tests by modules: those with the longest slow tests, then those that wait, each before two others.

    Together, those that wait would leave the processors without work. Last, a long one would keep one process busy
    after all others have ended.
    """
    modules: defaultdict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        modules[item.nodeid.partition("::")[0]].append(item)
    longest = [
        name for name in LONGEST if any(item.get_closest_marker("slow") for item in modules.get(name, ()))
    ]
    rest = [name for name in modules if name not in longest]
    waiting = sorted(
        (at, name) for name in rest for at, folder in enumerate(WAITING) if name.startswith(folder)
    )
    others = iter(sorted(name for name in rest if not name.startswith(WAITING)))
    order = [each for _, name in waiting for each in (name, *islice(others, 2))]
    return [item for name in (*longest, *order, *others) for item in modules[name]]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collect no garbage while the modules are imported, a quarter of the time that this takes: they stay."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Keep the modules and the collected tests, some 600,000 objects, out of each collection of garbage."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(30_000, 10, 100)


_begun_s = pytest.StashKey[float]()


def _spent_s() -> float:
    """Return the CPU time of this process, and of those that it started and that have ended."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return (sum(map(spent_us_of, usages)) + Process.spent_us) / 1e6


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Note the CPU time before the test, and end what a command of a former test has set in this process: its log."""
    item.stash[_begun_s] = _spent_s()
    log = logging.getLogger("holdfast")
    log.setLevel(logging.NOTSET)
    log.handlers[:] = [handler for handler in log.handlers if isinstance(handler, logging.NullHandler)]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the CPU time that the test took, which other load does not change much, and escape lone surrogates.

    Logged names of files may have them, and pytest-xdist ends a process whose report it cannot encode.
    """
    if call.when == "teardown":
        now_s = _spent_s()
        took_s = now_s - item.stash.get(_begun_s, now_s)
        item.user_properties.append(("cpu_s", took_s))
    report = yield
    report.sections = [
        (title, text.encode("utf-8", "backslashreplace").decode()) for title, text in report.sections
    ]
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how to run the same random cases again, and what each folder of tests took of its budget."""
    terminalreporter.write_line(f"random tests: {SEED_VARIABLE}={os.environ[SEED_VARIABLE]}")
    took_s: defaultdict[str, float] = defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport) and report.when == "teardown":
                properties: dict[str, Any] = dict(report.user_properties)
                took_s[report.nodeid.split("/")[1]] += properties.get("cpu_s", 0.0)
    reported = [f"{name} {seconds:.0f}/{BUDGET_S.get(name, 0)}" for name, seconds in sorted(took_s.items())]
    terminalreporter.write_line(f"CPU seconds, of the budget: {', '.join(reported)}")
    if missing := left_out(terminalreporter.stats.get("skipped", ())):
        terminalreporter.write_line(missing)


def left_out(skipped: Sequence[Any]) -> str:
    """Say which tests were skipped because something is not installed, and what to do; nothing if there are none."""
    reasons = [str(report.longrepr[2]) for report in skipped if isinstance(report.longrepr, tuple)]
    found = [re.match(r"(?:Skipped: )?(\S+) is not installed", reason) for reason in reasons]
    missing = Counter(one[1] for one in found if one)
    if not missing:
        return ""
    listed = ", ".join(f"{name} ({count})" for name, count in sorted(missing.items()))
    return f"NOT PROVED HERE, tests skipped for lack of: {listed}; `make servers` installs the servers"


class Clock:
    """A clock that stops until the test moves it; starts at 2024-05-01T00:00:00Z."""

    def __init__(self) -> None:
        self.now_us = 1_714_521_600_000_000

    def __call__(self) -> int:
        return self.now_us

    def advance(self, seconds: float) -> None:
        """Move on."""
        self.now_us += round(seconds * 1e6)


@pytest.fixture
def seed() -> int:
    """The seed of this run, for tests that make random data themselves."""
    return int(os.environ[SEED_VARIABLE])


@pytest.fixture
def clock() -> Clock:
    """The clock of the test's stores."""
    return Clock()


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """Each engine."""
    return str(request.param)


class Templates:
    """Empty stores, made when they are first needed and copied from then on, which is faster than making them.

    The stores of one test have different ids: each is the copy of another template.
    """

    def __init__(self, home: Path) -> None:
        self._home = home

    def copy(self, engine: str, number: int, folder: Path) -> None:
        """Put an empty store where none is; `number` says which of the test, from 1."""
        template = self._home / f"{engine}-{number}"
        if not template.exists():
            settings: dict[str, Any] = {"background": False, "engine": engine}
            with Store(template, Settings(**settings), clock=Clock()) as store:
                store.checkpoint()
        shutil.copytree(template, folder, ignore=shutil.ignore_patterns("*.lock"))


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Templates:
    """The templates of this test process."""
    return Templates(tmp_path_factory.mktemp("templates"))


class SharedStores:
    """Stores that the tests of a module share, by name and settings. Each test finds them without points and records.

    What else a test leaves is still there, and the seqs continue.
    """

    def __init__(self, home: Path, templates: Templates) -> None:
        self._home = home
        self._templates = templates
        self._stores: dict[tuple[Any, ...], Store] = {}
        self._empty_at: dict[tuple[Any, ...], int] = {}
        self._names: list[str] = []
        self.clock: Callable[[], int] = Clock()

    def store(self, name: str, settings: dict[str, Any]) -> Store:
        """Return it, empty."""
        key = (name, *sorted(settings.items()))
        store = self._stores.get(key)
        if store is not None and not store._handle.columns._closed:
            if store.sinks.last_seq() != self._empty_at[key]:
                store.points.delete(everything=True)
                store.flush()
                self._empty_at[key] = store.sinks.last_seq()
            store.records.clear()
            return store
        if name not in self._names:
            self._names.append(name)
        folder = self._home / str(len([*self._home.iterdir()]))
        self._templates.copy(settings["engine"], 1 + self._names.index(name), folder)
        self._stores[key] = store = Store(folder, Settings(**settings), clock=lambda: self.clock())
        self._empty_at[key] = store.sinks.last_seq()
        store._handle.columns.stays_open = True
        return store

    def close(self) -> None:
        """Close them; later tests get others."""
        for store in self._stores.values():
            store.close()
        self._stores.clear()


@pytest.fixture(scope="module")
def _shared_stores(tmp_path_factory: pytest.TempPathFactory, templates: Templates) -> Iterator[SharedStores]:
    shared = SharedStores(tmp_path_factory.mktemp("shared"), templates)
    yield shared
    shared.close()


@pytest.fixture
def open_store(engine: str, clock: Clock, request: pytest.FixtureRequest) -> Iterator[OpenStore]:
    """Open stores by name, with settings to change; without a background thread. All are closed at the end.

    A new one is a copy of a template, but in tests that are marked `own_store`. In modules that are marked
    `shared_stores`, tests get stores that other tests have used, unless they are marked `fresh_stores`, or care about
    the opening or other processes.
    """
    marks = {mark.name for mark in request.node.iter_markers()}
    if (
        "shared_stores" not in marks
        or not marks.isdisjoint({"fresh_stores", "own_store", "closes_columns"})
        or not OTHER_PROCESSES.isdisjoint(inspect.signature(request.function).parameters)
    ):
        yield request.getfixturevalue("_open_fresh")
        return
    shared: SharedStores = request.getfixturevalue("_shared_stores")
    shared.clock = clock
    failed = request.session.testsfailed
    options: dict[str, Any] = {"background": False, "engine": engine}
    yield lambda name="store", **settings: shared.store(name, options | settings)
    if request.session.testsfailed > failed:
        shared.close()


@pytest.fixture
def _open_fresh(
    tmp_path: Path, engine: str, clock: Clock, templates: Templates, request: pytest.FixtureRequest
) -> Iterator[OpenStore]:
    """Open stores for one test.

    Where nobody waits for the columns of a store, it keeps them open between uses, which is faster, as with a
    background thread: while it is the only handle that the test opened, and the test can start no other process.
    """
    opened: list[Store] = []
    is_own = request.node.get_closest_marker("own_store") is not None
    is_closing = is_own or request.node.get_closest_marker("closes_columns") is not None
    is_alone = not is_closing and OTHER_PROCESSES.isdisjoint(inspect.signature(request.function).parameters)
    copied = 0

    def open_(name: str = "store", **settings: Any) -> Store:
        nonlocal copied
        options: dict[str, Any] = {"background": False, "engine": engine} | settings
        folder = (tmp_path / name).resolve()
        if not is_own and not (tmp_path / name).exists() and options["engine"] in ENGINES:
            copied += 1
            templates.copy(options["engine"], copied, tmp_path / name)
        others = [
            other for other in opened if other.path.resolve() == folder and not other._handle.columns._closed
        ]
        for other in others:
            other._handle.columns.stays_open = other.settings.background
            other._handle.columns.release_if_due(at_once=True)
        store = Store(tmp_path / name, Settings(**options), clock=clock)
        opened.append(store)
        store._handle.columns.stays_open |= is_alone and not others
        return store

    yield open_
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: OpenStore) -> Store:
    """One fresh store."""
    return open_store()


@pytest.fixture
def columns_file(engine: str) -> str:
    """The name of the file that holds the columns."""
    return COLUMN_FILES[engine]


def move_columns(store: Store) -> None:
    """Move the columns of a store to the other engine."""
    (store.demote if store.status().engine == "duckdb" else store.promote)()


def close_engine(engine: Engine) -> None:
    """Close a database that was opened by `repo.engines`."""
    if engine.dialect.name == "duckdb":
        from repo.engines.duckdb import driver as duckdb

        duckdb.close_engine(engine)
    else:
        engine.dispose()


def start_python(script: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Start a Python process on the script; warnings are errors in it too."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.fixture(scope="session")
def starter() -> Iterator[Starter]:
    """Starts processes that have imported the library already."""
    with Starter(shared=os.environ.get(STARTER_VARIABLE)) as ready:
        yield ready


@pytest.fixture(scope="session")
def starter_without_duckdb() -> Iterator[Starter]:
    """Starts such processes in an environment in which DuckDB is not installed."""
    with starting_there(shared=os.environ.get(WITHOUT_DUCKDB_VARIABLE)) as ready:
        yield ready


@pytest.fixture
def run_python(starter: Starter) -> RunPython:
    """Run a script in a process of its own and return what it said; it is stopped after 300 s, when it hangs.

    The process has imported the library already. With `fresh` it is a new interpreter: for scripts that hide packages
    or measure the memory of the process.
    """

    def run(script: str, *arguments: object, fresh: bool = False) -> subprocess.CompletedProcess[str]:
        if fresh:
            return _completed(start_python(script, *arguments), script)
        return _completed(starter.open(["-c", script, *arguments]), script)

    return run


@pytest.fixture
def run_without_duckdb(starter_without_duckdb: Starter) -> RunPython:
    """Run a script like `run_python`, in an environment in which DuckDB is not installed."""
    return lambda script, *arguments: _completed(
        starter_without_duckdb.open(["-c", script, *arguments]), script
    )


def _completed(
    process: subprocess.Popen[str] | PipedProcess, script: str
) -> subprocess.CompletedProcess[str]:
    try:
        out, err = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        pytest.fail(f"the process hung\n{out}\n{err}")
    except TimeoutError as late:
        assert isinstance(process, PipedProcess)
        process.close()
        pytest.fail(f"the process hung\n{late}")
    if isinstance(process, PipedProcess):
        process.close()
    return subprocess.CompletedProcess(script, process.wait(), out, err)


@pytest.fixture
def spawn(starter: Starter) -> Iterator[Callable[..., PipedProcess]]:
    """Start scripts that live beside the test, in forked processes; those still there at its end are killed."""
    started: list[PipedProcess] = []

    def start(script: str, *arguments: object) -> PipedProcess:
        process = starter.open(["-c", script, *arguments])
        started.append(process)
        return process

    yield start
    for process in started:
        process.close()
