"""Shared stores: one open store for each real path in this process, however many objects use it."""

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

__all__ = ["Loan", "SharedStore", "borrow"]


class SharedStore:
    """An open store, and who uses it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.users = 0
        self.buffers: weakref.WeakSet[Any] = weakref.WeakSet()
        """The buffers on this store."""
        self.moved: dict[str, object] = {}
        """Records that one kind of buffer holds back from being settled by the other: see `OfflineBufferManager`."""


class Loan:
    """One user's hold on a shared store. The store closes when the last is given back."""

    def __init__(self, key: Path, shared: SharedStore) -> None:
        self.shared = shared
        self._give_back = weakref.finalize(self, _give_back, key, shared)

    @property
    def store(self) -> Store:
        """The store; `StoreClosed` once the loan was given back."""
        if not self._give_back.alive:
            path = self.shared.store.files.folder
            raise StoreClosed(f"this object on the store {path} was shut down; make another", path=path)
        return self.shared.store

    def give_back(self) -> None:
        """End the use. Safe to call again."""
        self._give_back()


def borrow(files: StoreFiles, **settings: Any) -> Loan:
    """Open the store with these files, or share the one that is open in this process. Thread-safe.

    `settings` are those of whoever opens it first. After fork() the child opens it anew.
    """
    key = Path(os.path.realpath(files.metadata))
    with _lock:
        shared = _shared.get(key)
        if shared is None:
            loaded = Settings.load(files.folder, **settings)
            shared = _shared[key] = SharedStore(Store(files.folder, loaded, files=files))
        shared.users += 1
        return Loan(key, shared)


def _give_back(key: Path, shared: SharedStore) -> None:
    with _lock:
        shared.users -= 1
        if shared.users or _shared.get(key) is not shared:
            return
        del _shared[key]
    shared.store.close()


def _forget_in_child() -> None:
    global _lock
    _lock = threading.RLock()
    _shared.clear()


_shared: dict[Path, SharedStore] = {}
_lock = threading.RLock()  # reentrant: a loan may be collected, and given back, while another is made

os.register_at_fork(after_in_child=_forget_in_child)
