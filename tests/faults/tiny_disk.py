"""A tiny disk: a tmpfs of a few megabytes that only this process and its children see. Needs Linux, no privileges."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

__all__ = ["mount_tiny_disk"]

CLONE_NEWNS, CLONE_NEWUSER = 0x0002_0000, 0x1000_0000
MS_REC, MS_PRIVATE = 0x4000, 0x4_0000


def mount_tiny_disk(folder: Path, size: str) -> None:
    """Mount one in user and mount namespaces of this process, which must have one thread.

    Raises `OSError` where such namespaces are not permitted, or unknown.
    """
    if sys.platform != "linux":
        raise OSError("a tiny disk needs the namespaces of Linux")
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    _checked(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS))
    for name, line in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
        Path("/proc/self", name).write_text(line)
    _checked(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
    _checked(libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={size}".encode()))


def _checked(code: int) -> None:
    if code:
        raise OSError(number := ctypes.get_errno(), os.strerror(number))
