"""What an exact destination holds: a token, by which it recognizes a repeat or a fork, and ranges of seqs. Pure."""

from __future__ import annotations

from typing import Final, NamedTuple

from repo.cursors import Cursor
from repo.delivery.protocol import Tokens
from repo.errors import StoreForked

__all__ = ["REMEDIES", "Held", "forked", "is_repeat"]


REMEDIES: Final = (
    "If this store is a copy of another one, run `holdfast --store FOLDER sinks rekey` on it. If a copy of it has "
    "delivered in its name, run that on the copy, and `sinks rekey --restored` on this one. If this store or the "
    "destination was put back to an earlier state, or the sink was removed and added again, run `sinks rekey "
    "--restored` on this one, and `sinks replay` for what the destination lacks"
)
"""What an operator does about a fork, by its cause, which no program can know."""


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
        f"{destination} and this store do not agree on which batch was the last; nothing was stored there. {REMEDIES}"
    )
