"""Files that survive a crash: what is synced and renamed, in which order, and what an error leaves."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from repo import InvalidFile, StoreBusy, StoreFull
from repo.disk.durable import atomic_write, copy, digest, put, rename_all, replace
from repo.errors import file_typed


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The syncs and renames from now on, by file name."""
    done: list[str] = []
    fsync, rename = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        fsync(descriptor)
        done.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")

    def noted_rename(self: Path, target: Path) -> Path:
        done.append(f"rename {self.name} {target.name}")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_rename)
    return done


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder with a fixed name."""
    made = tmp_path / "folder"
    made.mkdir()
    return made


proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")


@proc
def test_a_file_is_synced_before_it_gets_its_name_and_its_folder_after_it(
    folder: Path, steps: list[str]
) -> None:
    put(folder / "file", b"content")
    assert steps == ["sync .file.part", "rename .file.part file", "sync folder"]
    assert os.listdir(folder) == ["file"]
    assert (folder / "file").read_bytes() == b"content"


@proc
def test_the_folder_is_synced_after_a_replacement_and_after_the_last_of_several_renames(
    folder: Path, steps: list[str]
) -> None:
    for name in ("new", "old", "a", "b"):
        (folder / name).write_text(name)
    replace(folder / "new", folder / "old")
    rename_all((folder / name, folder / f"{name}2") for name in ("a", "missing", "b"))
    rename_all([(folder / "missing", folder / "other")])
    assert steps == ["rename new old", "sync folder", "rename a a2", "rename b b2", "sync folder"]
    assert (folder / "old").read_text() == "new"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "no space"), KeyboardInterrupt()])
def test_an_error_in_the_block_leaves_the_file_as_it_was(folder: Path, error: BaseException) -> None:
    put(folder / "file", b"before")

    def interrupted() -> None:
        with atomic_write(folder / "file") as descriptor:
            os.write(descriptor, b"after")
            raise error

    with pytest.raises(type(error)):
        interrupted()
    assert os.listdir(folder) == ["file"]
    assert (folder / "file").read_bytes() == b"before"


def test_a_file_that_is_being_written_is_busy_and_what_a_killed_process_left_is_reused(folder: Path) -> None:
    (folder / ".file.part").write_bytes(b"left by a killed process, longer than the new content")
    with atomic_write(folder / "file") as descriptor:
        with pytest.raises(StoreBusy), atomic_write(folder / "file"):
            pass
        os.write(descriptor, b"content")
    assert (folder / "file").read_bytes() == b"content"


@pytest.mark.parametrize("path", ["/dev/null", "pipe"])
def test_a_device_or_a_pipe_is_never_replaced(folder: Path, path: str) -> None:
    os.mkfifo(folder / "pipe")
    with pytest.raises(InvalidFile, match="not a regular file"):
        put(folder / path, b"content")


@proc
def test_a_copy_is_synced_has_the_sum_of_its_source_and_never_replaces_a_file(
    folder: Path, steps: list[str]
) -> None:
    content = os.urandom(5_000_000)
    (folder / "source").write_bytes(content)
    (folder / "source").chmod(0o440)
    pieces: list[int] = []
    found = copy(folder / "source", folder / "target", pieces.append)
    assert steps == ["sync target"]
    assert found == hashlib.sha256(content).hexdigest()
    assert (folder / "target").read_bytes() == content
    assert (folder / "target").stat().st_mode & 0o777 == 0o640
    assert len(pieces) > 1
    assert sum(pieces) == len(content)
    with (folder / "target").open("rb") as stream:
        stream.seek(3)
        assert digest(stream.fileno()) == found
        assert stream.tell() == 3
    with pytest.raises(FileExistsError):
        copy(folder / "source", folder / "target", pieces.append)


def test_errors_on_a_file_that_a_user_named_are_typed(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "file"
    with (
        pytest.raises(InvalidFile, match=r"missing/file cannot be written: No such file"),
        file_typed(path, "written"),
    ):
        put(path, b"content")
    with pytest.raises(StoreFull, match="no space left"), file_typed(path, "written"):
        raise OSError(errno.ENOSPC, "No space left on device")
