"""Durable files: writes, copies, renames and syncs that survive a crash. Never knows what is in a file.

Everything here raises `OSError` as it comes: only the caller knows what the file is for and in which state an error
leaves it. `repo.errors.system_typed` translates it for files of a store, `file_typed` for files that a user named.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from repo.errors import InvalidFile, StoreBusy

__all__ = ["atomic_write", "copy", "digest", "put", "rename_all", "replace", "sync"]

_DIGEST_BYTES = 1_048_576
_COPY_BYTES = 4_194_304


def sync(target: Path | int) -> None:
    """Sync a file or a folder, by its path or an open descriptor.

    Syncing a folder makes the names in it durable: a file that was created, renamed or removed there.
    """
    if isinstance(target, int):
        os.fsync(target)
        return
    descriptor = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(new: Path, path: Path) -> None:
    """Rename `new`, which is synced already, to `path` and sync the folder. An existing file is replaced atomically."""
    new.replace(path)
    sync(path.parent)


def rename_all(renames: Iterable[tuple[Path, Path]]) -> None:
    """Rename those files of one folder that exist, in this order, then sync the folder.

    A crash leaves the first of them renamed and the rest as they were, so the order decides what a later run finds.
    """
    folder = None
    for old, new in renames:
        if old.exists():
            old.replace(new)
            folder = new.parent
    if folder is not None:
        sync(folder)


@contextmanager
def atomic_write(path: Path) -> Iterator[int]:
    """Give the descriptor of a new file, which becomes `path`, durably, when the block ends without an error.

    The content goes to `.NAME.part` in the same folder. That file is synced and renamed to `path`, and the folder is
    synced. A symbolic link at `path` is replaced, not followed. An error leaves `path` unchanged; a part file left by
    a killed process is reused. Raises `StoreBusy` while another process writes the same file, `InvalidFile` if `path`
    is not a regular file.
    """
    part = path.with_name(f".{path.name}.part")
    _check_replaceable(path)
    descriptor = _opened(part, path)
    try:
        yield descriptor
        sync(descriptor)
        part.replace(path)
    except BaseException:  # an interrupt, too, leaves no part file
        with suppress(OSError):
            part.unlink()
        raise
    finally:
        os.close(descriptor)
    sync(path.parent)


def _check_replaceable(path: Path) -> None:
    """Refuse a pipe or a device, or a link to one: a rename would remove it instead of writing to it."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # nothing there, or the write reports it
    if not stat.S_ISREG(mode) or path.parent.resolve() == Path("/dev"):
        raise InvalidFile(f"{path} is not a regular file; name another file, new or existing", path=path)


def _opened(part: Path, path: Path) -> int:
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        if not _is_ours(descriptor, part):
            raise StoreBusy(f"another process is writing {path}; wait for it", path=path)  # noqa: TRY301
        os.ftruncate(descriptor, 0)
    except BaseException:  # nobody else closes it before it is returned
        os.close(descriptor)
        raise
    return descriptor


def _is_ours(descriptor: int, part: Path) -> bool:
    """Lock the file; False if another process holds the lock, or renamed the file in between: then it is complete."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), os.lstat(part))
    except (BlockingIOError, FileNotFoundError):
        return False


def put(path: Path, content: bytes) -> None:
    """Write a small file, as `atomic_write` does."""
    with atomic_write(path) as descriptor, open(descriptor, "wb", closefd=False) as stream:
        stream.write(content)


def copy(source: Path, target: Path, progress: Callable[[int], object], *, keep_mode: bool = False) -> str:
    """Copy a file to `target`, which must not exist, and sync it; return the SHA-256 of what was read.

    `progress` receives the bytes of each piece. With `keep_mode` the copy has the mode of the source, and its owner
    can read and write it. The caller syncs the folder. An error leaves a part of the copy.
    """
    summed = hashlib.sha256()
    with source.open("rb") as original, target.open("xb") as written:
        if keep_mode:
            mode = stat.S_IMODE(os.fstat(original.fileno()).st_mode)
            os.fchmod(written.fileno(), mode | stat.S_IRUSR | stat.S_IWUSR)
        while piece := original.read(_COPY_BYTES):
            written.write(piece)
            summed.update(piece)
            progress(len(piece))
        written.flush()
        sync(written.fileno())
    return summed.hexdigest()


def digest(descriptor: int) -> str:
    """Return the SHA-256 of a whole file in hexadecimal; its offset is neither used nor moved."""
    summed = hashlib.sha256()
    at = 0
    while piece := os.pread(descriptor, _DIGEST_BYTES, at):
        summed.update(piece)
        at += len(piece)
    return summed.hexdigest()
