"""Denied access is reported with the file, the reason and what to check; never as a bare error of the system."""

from __future__ import annotations

import difflib  # noqa: F401  Click imports it late, which the user that the test becomes may not
import os
import pickle
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Any

import pytest

import repo
from repo import OfflineBufferManager, Settings, Store, StoreDenied
from repo.engines.duckdb import checkpoint
from repo.errors import HoldfastError, StoreMissing
from repo.schema import runner
from repo.schema.restore import restore_store
from repo.schema.upgrade import migrate_store
from tests.conftest import RunPython
from tests.migrations.legacy_store import make_legacy_store
from tests.migrations.stores import digest

NOBODY = 65534
QUIET = Settings(background=False)
CALLS: list[Callable[[Path], object]] = [
    lambda folder: _read(folder),
    lambda folder: OfflineBufferManager(folder).shutdown(),
    lambda folder: migrate_store(folder, check=True),
    lambda folder: migrate_store(folder),
    lambda folder: restore_store(folder),
]


def _look(folder: Path) -> int:
    with Store(folder, read_only=True) as store:
        return len(store.points.range("s", "m").all())


def _read(folder: Path) -> None:
    with Store(folder, Settings.load(folder, background=False)) as store:
        store.points.range("s", "m").all()


def _files(folder: Path, mode: int, pattern: str = "*") -> None:
    for path in folder.glob(pattern):
        path.chmod(mode)


def _seal(folder: Path) -> None:
    _files(folder, 0o444)
    folder.chmod(0o555)


DENIALS: dict[str, Callable[[Path], None]] = {
    "the folder is not to be entered": lambda folder: folder.chmod(0o000),
    "the folder and its files are not to be written": lambda folder: _seal(folder),
    "the files are not to be read": lambda folder: _files(folder, 0o000),
    "the locks are not to be written": lambda folder: _files(folder, 0o444, "*.lock"),
    "the settings are not to be read": lambda folder: _files(folder, 0o000, "*.toml"),
}


READABLE = {"the folder and its files are not to be written"}
"""What a user who may only read can look at."""


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that every user may enter, as those of pytest are not, with migrations that every user may read.

    The other user may be shut out of the checkout, too, as below the home of root. Readers write temporary files,
    so `TMPDIR` becomes a folder that every user may write.
    """
    folders = [Path(folder).resolve() for folder in (tempfile.gettempdir(), "/tmp", "/var/tmp")]
    writable_by_all = [one for one in folders if _is_writable_by_all(one)]
    if not writable_by_all:
        pytest.skip(f"no temporary folder here can be written by every user: {', '.join(map(str, folders))}")
    monkeypatch.setenv("TMPDIR", str(writable_by_all[0]))
    monkeypatch.setattr(tempfile, "tempdir", None)
    mask = os.umask(0o022)
    top = Path(tempfile.mkdtemp(prefix="holdfast-test-"))
    top.chmod(0o755)
    scripts = shutil.copytree(
        runner._scripts(), top / "scripts", ignore=shutil.ignore_patterns("__pycache__")
    )
    for path in (scripts, *scripts.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    monkeypatch.setattr(runner, "_scripts", lambda: scripts)
    yield top
    os.umask(mask)
    subprocess.run(["chmod", "-R", "u+rwX", top], check=False)
    shutil.rmtree(top)


def _is_writable_by_all(folder: Path) -> bool:
    if not folder.is_dir() or not folder.stat().st_mode & 0o002:
        return False
    return all(each.stat().st_mode & 0o001 for each in (folder, *folder.parents))


@contextmanager
def _as_nobody() -> Iterator[None]:
    """Be a user without rights, where this is root, for whom everything is allowed.

    What the library imports late is imported before: that user may not be allowed to read the checkout.
    """
    if os.geteuid() != 0:
        yield
        return
    for module in walk_packages(repo.__path__, "repo."):
        with suppress(ImportError):  # what needs DuckDB, where there is none
            import_module(module.name)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def _make(folder: Path, engine: Any = "sqlite") -> None:
    with Store(folder, Settings(background=False, engine=engine)) as store:
        store.points.insert("s", "m", 1.0)
        store.flush()
    (folder / "holdfast.toml").write_text("background = false\n")


def _give_away(folder: Path) -> None:
    if os.geteuid() == 0:
        for path in (folder, *folder.iterdir()):
            os.chown(path, NOBODY, NOBODY)


@pytest.mark.parametrize("denial", DENIALS)
def test_denied_access_to_a_store_names_the_cause_and_exits_with_1(
    denial: str, place: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (
        os.access in os.supports_effective_ids
    ):  # as a process of that user has it, which is nobody else besides
        monkeypatch.setattr(os, "access", partial(os.access, effective_ids=True))
    folder = command.folder = place / "store"
    _make(folder)
    command("status")
    command("latest")
    _give_away(folder)
    DENIALS[denial](folder)
    with _as_nobody():
        for call in CALLS:
            with pytest.raises(StoreDenied, match="check its owner and mode"):
                call(folder)
        lines = ["query s m", "migrate --check", "ingest -"]
        if denial in READABLE:
            assert " 1.0 " in command(*lines.pop(0).split()).stdout
            with Store(folder, QUIET, read_only=True) as store:
                assert store.points.latest("s", "m")[0]["value"] == 1.0
        for line in lines:
            message = command(*line.split(), code=1, stdin="sensor_id,metric_name,timestamp,value\n").stderr
            assert "check its owner and mode" in message
            assert str(folder) in message


@pytest.mark.parametrize("has_shared_memory", [True, False])
def test_a_store_that_was_killed_can_be_read_by_a_user_who_may_not_write(
    has_shared_memory: bool, place: Path, engine: str, run_python: RunPython, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.access in os.supports_effective_ids:
        monkeypatch.setattr(os, "access", partial(os.access, effective_ids=True))
    folder = place / "store"
    script = f"""
import os, sys
from repo import Settings, Store
store = Store(sys.argv[1], Settings(background=False, engine={engine!r}))
store.points.insert_many([("a", "m", float(t), 1.0) for t in range(100)])
store.flush()
store.points.insert_many([("a", "m", float(t), 2.0) for t in range(50, 150)])
os._exit(0)
"""
    run_python(script, folder)
    if not has_shared_memory:  # as in a copy
        (folder / "offline_buffer.db-shm").unlink()
    with Store(place / "other", Settings(background=False, engine=engine)):  # type: ignore[arg-type]
        pass
    with Store(place / "other", read_only=True) as other:
        _readable(other)  # imports what the user may not read
    _give_away(folder)
    _seal(folder)
    before = digest(folder)
    with _as_nobody(), Store(folder, read_only=True) as store:
        assert _readable(store) == 50 * 1.0 + 100 * 2.0
    assert digest(folder) == before


def _readable(store: Store) -> float:
    store.points.latest("a")
    store.status()
    return sum(float(point["value"]) for point in store.points.range("a", "m"))


def test_denied_access_to_the_columns_is_reported(place: Path, engine: str, columns_file: str) -> None:
    with Store(place / "store", Settings(background=False, engine=engine)) as store:  # type: ignore[arg-type]
        store.points.insert("s", "m", 1.0)
        store.flush()
    _give_away(place / "store")
    (place / "store" / columns_file).chmod(0o000)
    with _as_nobody(), pytest.raises(StoreDenied, match=columns_file):
        _read(place / "store")


@pytest.mark.duckdb
def test_denied_access_to_the_checkpoint_file_is_reported(place: Path) -> None:
    _make(place / "store", "duckdb")
    note = checkpoint.note_path(place / "store" / "timeseries.duckdb")
    note.touch()
    _give_away(place / "store")
    note.chmod(0o000)
    with _as_nobody(), pytest.raises(StoreDenied, match=r"timeseries\.duckdb\.checkpoint"):
        _read(place / "store")


@pytest.mark.duckdb
def test_denied_access_to_backups_is_reported_with_the_next_step(place: Path) -> None:
    migrate_store(make_legacy_store(place / "another", 10, records=1))  # imports what the user may not read
    folder = make_legacy_store(place / "old", 10, records=1)
    (folder / "backups").mkdir()
    _give_away(folder)
    (folder / "backups").chmod(0o555)
    before = digest(folder)
    with (
        _as_nobody(),
        pytest.raises(StoreDenied, match=r"unchanged\. Fix the cause, or continue without a backup"),
    ):
        migrate_store(folder)
    assert digest(folder) == before


@pytest.mark.duckdb
def test_nothing_is_opened_if_an_interrupted_restore_cannot_be_ruled_out(place: Path) -> None:
    folder = make_legacy_store(place / "old", 10, records=1)
    (folder / "backups").mkdir()
    _give_away(folder)
    (folder / "backups").chmod(0o000)
    before = digest(folder)
    for use in (
        lambda: Store(folder, create=False),
        lambda: migrate_store(folder, check=True),
        lambda: migrate_store(folder, backup=False),
    ):
        with (
            _as_nobody(),
            pytest.raises(StoreDenied, match="it is unknown whether a restore was interrupted"),
        ):
            use()
    assert digest(folder) == before


def test_no_store_is_created_without_permission(place: Path, command: Any) -> None:
    place.chmod(0o555)
    command.folder = place / "new" / "store"
    with _as_nobody():
        with pytest.raises(StoreDenied, match="no store was created; name another folder"):
            Store(command.folder)
        assert "no store was created" in command("init", code=1).stderr


def test_a_store_cannot_be_created_below_a_file(tmp_path: Path, command: Any) -> None:
    (tmp_path / "file").write_text("a text")
    command.folder = tmp_path / "file" / "store"
    for call in (lambda: migrate_store(command.folder), lambda: Store(command.folder, create=False)):
        with pytest.raises(StoreMissing):
            call()
    with pytest.raises(HoldfastError, match=r"Not a directory.*no store was created; name another folder"):
        Store(command.folder)
    assert f"--store {shlex.quote(str(command.folder))} init`" in command("status", code=1).stderr
    assert "no store was created" in command("init", code=1).stderr


@pytest.mark.slow
def test_a_read_only_mount_is_reported(tmp_path: Path) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("a disk of its own needs unshare, of Linux")
    disk, said = tmp_path / "disk", tmp_path / "said"
    disk.mkdir()
    script = """
import pickle, sys
from pathlib import Path
from tests.cli.test_denied import CALLS, _look, _make
folder = Path(sys.argv[1]) / "store"
if sys.argv[2] == "make":
    _make(folder)
else:
    said = []
    for call in CALLS:
        try:
            said.append(call(folder))
        except Exception as error:
            said.append((type(error).__name__, str(error)))
    said.append(_look(folder))
    Path(sys.argv[2]).write_bytes(pickle.dumps(said))
"""
    python = [sys.executable, "-c", script, str(disk)]
    line = " && ".join(
        [
            f"mount -t tmpfs -o size=32m tmpfs {shlex.quote(str(disk))}",
            shlex.join([*python, "make"]),
            f"mount -o remount,ro {shlex.quote(str(disk))}",
            shlex.join([*python, str(said)]),
        ]
    )
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c", line],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    if "mount" in done.stderr and "permi" in done.stderr.lower():
        pytest.skip("a disk of its own needs user and mount namespaces, which are not permitted here")
    assert done.returncode == 0, done.stderr
    *refused, looked = pickle.loads(said.read_bytes())
    assert looked == 1
    for kind, message in refused:
        assert (kind, "mounted read-only" in message) == ("StoreDenied", True)
