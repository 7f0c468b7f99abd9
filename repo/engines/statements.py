"""Compiled statements: shared by all engines of this process, so that only the first use of a statement compiles it.

SQLAlchemy keeps them for each engine. Each opening of a file makes an engine, and compiling the statements of an
opening again takes longer than running them.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from sqlalchemy import Dialect

__all__ = ["COMPILED"]

_MOST = 2_000
"""How many statements are kept; a store uses about 200."""


class _CompiledStatements(dict[Hashable, Any]):
    """A cache for the execution option `compiled_cache`. Thread-safe, without a lock that an interrupt could leave.

    A key of SQLAlchemy holds the dialect object, of which each engine has its own. Here its class takes that place: in
    one process, all objects of a class have the same driver and the same configuration.
    """

    def get(self, key: Hashable, default: Any = None) -> Any:
        """Return a compiled statement."""
        return super().get(_shared(key), default)

    def __setitem__(self, key: Hashable, compiled: Any) -> None:
        if len(self) >= _MOST:
            self.clear()
        super().__setitem__(_shared(key), compiled)


def _shared(key: Hashable) -> Hashable:
    if not isinstance(key, tuple):
        return key
    return tuple(type(part) if isinstance(part, Dialect) else part for part in key)


COMPILED = _CompiledStatements()
"""The value of the execution option `compiled_cache` of every engine."""
