"""Keeps Alembic's own log out of the application's.

A module of its own, because it has to be in force before Alembic is imported.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet_alembic"]


@contextmanager
def quiet_alembic() -> Iterator[None]:
    """Hide what Alembic logs below a warning, in the whole process, for the duration of the block.

    An application that set the level of the logger `alembic` itself keeps that level.
    """
    logger = logging.getLogger("alembic")
    if logger.level != logging.NOTSET:
        yield
        return
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(logging.NOTSET)
