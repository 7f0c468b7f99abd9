"""The comparison of tokens with which an exact destination recognizes a repeat and a fork. Pure."""

from __future__ import annotations

from repo.delivery.protocol import Tokens
from repo.errors import StoreForked

__all__ = ["forked", "is_repeat"]


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
