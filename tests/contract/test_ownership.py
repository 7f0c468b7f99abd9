"""Owners and modes: what root does in a store of another user never locks that user out."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest

from repo import Settings, Store
from tests.conftest import OpenStore, move_columns

OTHER = 54_321


def gives_files_away() -> bool:
    """Whether this process can; root cannot where it has only its own user, as in some containers."""
    with tempfile.TemporaryFile() as file:
        try:
            os.chown(file.fileno(), OTHER, OTHER)
        except OSError:
            return False
    return os.geteuid() == 0


needs_root = pytest.mark.skipif(not gives_files_away(), reason="only root can give files away")


def not_owned(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.stat().st_uid != OTHER]


@needs_root
def test_every_file_that_root_makes_in_a_store_belongs_to_the_owner_of_its_folder(
    tmp_path: Path, engine: str
) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    os.chown(folder, OTHER, OTHER)
    settings: dict[str, Any] = {"background": False, "engine": engine}
    with Store(folder, Settings(**settings)) as store:
        store.points.insert("a", "m", 1.0, timestamp=1)
        store.checkpoint()
        store.points.insert("a", "m", 2.0, timestamp=2)
        assert not_owned(folder) == []
        store.shrink()
        assert not_owned(folder) == []


@needs_root
@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
@pytest.mark.parametrize("name", ["write.lock", "acknowledged.mark"])
def test_a_link_to_a_file_of_root_elsewhere_does_not_give_that_file_away(
    tmp_path: Path, name: str, link: Any
) -> None:
    folder, elsewhere = tmp_path / "store", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.touch()
    link(folder / name, elsewhere)
    os.chown(folder, OTHER, OTHER)
    with Store(folder, Settings(background=False, engine="sqlite")) as store:
        store.points.insert("a", "m", 1.0, timestamp=1)
        store.checkpoint()
    assert elsewhere.stat().st_uid == 0


@needs_root
@pytest.mark.duckdb
def test_moved_columns_belong_to_who_had_them(open_store: OpenStore, engine: str) -> None:
    store = open_store()
    store.points.insert("a", "m", 1.0, timestamp=1)
    store.flush()
    for path in (store.path, *store.path.iterdir()):
        os.chown(path, OTHER, OTHER)
    move_columns(store)
    store.checkpoint()
    assert not_owned(store.path) == []


@pytest.mark.duckdb
@pytest.mark.parametrize("job", ["shrink", "move"])
def test_a_rewritten_column_file_keeps_its_mode(
    open_store: OpenStore, engine: str, columns_file: str, job: str
) -> None:
    store = open_store()
    store.points.insert("a", "m", 1.0, timestamp=1)
    store.checkpoint()
    (store.path / columns_file).chmod(0o600)
    if job == "shrink":
        store.shrink()
    else:
        move_columns(store)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in store.path.glob("timeseries.*[eb]")}
    assert modes == {0o600}
