"""Shared stores: one open store per real path in this process, for any number of objects."""

from __future__ import annotations

import os
import threading
import weakref
from pathlib import Path
from typing import Any

from repo.errors import StoreClosed
from repo.files import StoreFiles
from repo.settings import Settings
from repo.store.store import Store

__all__ = ["SharedStore", "StoreReference", "acquire"]


class SharedStore:
    """An open store and the number of its users. In the child of a fork it is opened again on first use."""

    def __init__(self, key: Path, files: StoreFiles, settings: Settings) -> None:
        self.key = key
        self.files = files
        self.users = 0
        self.buffers: weakref.WeakSet[Any] = weakref.WeakSet()
        """The buffers on this store."""
        self.moved: dict[str, object] = {}
        """Records that a buffer of one kind took over from the other: see `OfflineBufferManager._was_moved`."""
        self._settings = settings
        self._pid = os.getpid()
        self._store = Store(files.folder, settings, files=files)

    @property
    def store(self) -> Store:
        """The store, open in this process."""
        if self._pid != os.getpid():
            with _lock:
                if self._pid != os.getpid():
                    self._store = Store(self.files.folder, self._settings, files=self.files)
                    self._pid = os.getpid()
        return self._store

    def close(self) -> None:
        """Close it, if this process has it open."""
        self._store.close()


class StoreReference:
    """One use of a shared store. The store is closed when the last use ends."""

    def __init__(self, shared: SharedStore) -> None:
        self.shared = shared
        self._release = weakref.finalize(self, _release, shared)

    @property
    def store(self) -> Store:
        """The store; raises `StoreClosed` after `release`."""
        if not self._release.alive:
            path = self.shared.files.folder
            raise StoreClosed(f"this object on the store {path} was shut down; create a new one", path=path)
        return self.shared.store

    def release(self) -> None:
        """End the use. Safe to call again."""
        self._release()


def acquire(files: StoreFiles, **settings: Any) -> StoreReference:
    """Open the store with these files, or share the one that is open in this process. Thread-safe.

    Bools are accepted as the numbers 0 and 1, as the documented methods always took them. The `settings` of the first
    caller apply. References made before a fork also work in the child.
    """
    key = Path(os.path.realpath(files.metadata))
    with _lock:
        shared = _shared.get(key)
        if shared is None:
            shared = _shared[key] = SharedStore(
                key, files, Settings.load(files.folder, accept_bool=True, **settings)
            )
        shared.users += 1
        return StoreReference(shared)


def _release(shared: SharedStore) -> None:
    with _lock:
        shared.users -= 1
        if shared.users or _shared.get(shared.key) is not shared:
            return
        del _shared[shared.key]
    shared.close()


def _renew_in_child() -> None:
    global _lock
    _lock = threading.RLock()  # a thread of the parent may have held the old one


_shared: dict[Path, SharedStore] = {}
_lock = threading.RLock()  # reentrant: the garbage collector may release a reference while another is made

os.register_at_fork(after_in_child=_renew_in_child)
