"""Ownership: files that root creates in a store belong to the folder's owner; a new file is like the one it replaces.

Operators run commands with `sudo`. Files that root left in a store would lock out the service that writes to it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

__all__ = ["create", "give", "make_like"]


def give(path: Path) -> None:
    """Give a file or folder that root has created to the owner of its parent folder; do nothing for other users."""
    if os.geteuid() != 0:
        return
    owner = path.parent.stat()
    if owner.st_uid != 0:
        _change_owner(path, owner)


def create(path: Path) -> None:
    """Create an empty database file as root, so that all files of the database get the right owner."""
    if os.geteuid() != 0 or os.path.lexists(path):
        return
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644))
    give(path)


def make_like(new: Path, old: Path) -> None:
    """Give a new file the mode and, as root, the owner of an existing one; if there is none, do what `give` does."""
    try:
        found = old.stat()
    except FileNotFoundError:
        give(new)
        return
    if os.geteuid() == 0:
        _change_owner(new, found)
    new.chmod(stat.S_IMODE(found.st_mode))


def _change_owner(path: Path, like: os.stat_result) -> None:
    """Change the owner of what root owns, but neither follow a link nor change a file that has other names.

    The owner of the folder could have put a link there to take over a file of root elsewhere.
    """
    found = path.lstat()
    is_folder = stat.S_ISDIR(found.st_mode)
    if found.st_uid == 0 and (is_folder or (stat.S_ISREG(found.st_mode) and found.st_nlink == 1)):
        os.chown(path, like.st_uid, like.st_gid, follow_symlinks=False)
