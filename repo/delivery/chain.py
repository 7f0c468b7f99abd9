"""What an exact destination holds: a token, by which it recognizes a repeat or a fork, and ranges of seqs. Pure."""

from __future__ import annotations

from typing import NamedTuple

from repo.cursors import Cursor
from repo.delivery.protocol import Tokens
from repo.errors import StoreForked

__all__ = ["Held", "forked", "is_repeat"]


class Held(NamedTuple):
    """What a destination has taken from one sink of one store in one epoch."""

    epoch: int
    taken: Cursor


def is_repeat(held: str | None, tokens: Tokens, destination: str) -> bool:
    """Return whether a destination that holds the token `held` has the batch already; raises `StoreForked`."""
    if held == tokens.next:
        return True
    if held == tokens.committed:
        return False
    raise forked(destination)


def forked(destination: str) -> StoreForked:
    """Return the error for a destination whose token is none that this store knows."""
    return StoreForked(
        f"{destination} and this store do not agree on which batch was the last; nothing was stored there. If this "
        "store is a copy of another one, run `holdfast sinks rekey`, which gives it an id of its own. If it was "
        "restored from a backup, or the destination was, or the sink was removed and added again, run `holdfast sinks "
        "rekey --restored`, and `holdfast sinks replay` for what the destination lacks"
    )
