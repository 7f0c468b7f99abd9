"""The token chain: how an exact destination, and the store, recognize a batch, a repeat and a fork. Pure.

Each attempt has two tokens: that of the last confirmed batch, and its own. The destination stores the second one in the
transaction of the batch, and compares first (`is_repeat`).

A request may be stored late: after its sender was killed or gave up waiting. So several requests of an
attempt may be on their way at once. The destination stores the one that comes first. The others are then
repeats; after the next attempt they look like forks, but nothing waits for those answers. Therefore the
content that is sent with a token only ever shrinks: the whole batch; after a refusal its first half; then a
single item; finally nothing. A destination with the token has stored one of these requests, so it has at
least what was sent last. Only that is confirmed. What was left out gets another attempt.

An item that is refused alone goes into quarantine in the commit that empties the attempt, which keeps its token
(`Attempt.without_items`). Then a batch without items moves the destination to that token, unless a late request has
done so. Its confirmation confirms no seq. Whenever the sender is killed, the store has one of these attempts, and the
destination one of its two tokens. If a late request was stored, the destination has the item although it is in
quarantine, and gets the rest of that request once more. It recognizes points by their seqs and records by their ids.

A destination with the token of an attempt has the whole range of the attempt. If the filter was widened
since, the range may have too many points to be sent at once. Then parts of the range are sent, only to learn
which items were refused. They are confirmed one by one, and the rest of the range keeps the token.
"""

from __future__ import annotations

import shlex
from typing import Final, NamedTuple

from repo.cursors import Cursor
from repo.delivery.protocol import Tokens
from repo.errors import StoreForked
from repo.repositories.sinks import SinkInfo

__all__ = ["HeldSeqs", "forked", "is_repeat", "refuse_forks"]


_REMEDIES: Final = (
    "If this store is a copy of another one, run `holdfast --store FOLDER sinks rekey` on it. If a copy of it has "
    "delivered in its name, run that on the copy, and `sinks rekey --restored` on this one. If this store or the "
    "destination was restored, or the sink was removed and added again, run `sinks rekey "
    "--restored` on this one, and `sinks replay` for what the destination lacks"
)
"""What an operator does about a fork, by its cause, which no program can know."""


class HeldSeqs(NamedTuple):
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
    """Return the error for a destination whose token this store does not know."""
    return StoreForked(
        f"{destination} and this store do not agree on which batch was the last; nothing was stored there. {_REMEDIES}"
    )


def refuse_forks(info: SinkInfo, held: str | None) -> None:
    """Raise `StoreForked` if an exact destination holds neither the last token nor the one on its way."""
    if held == info.token or (info.attempt is not None and held == info.attempt.token):
        return
    if held is None and info.kind == "folder":
        raise StoreForked(
            f"the folder of {info.name}, {info.target}, has nothing of this store: another stick or disk is there, or "
            "its files were deleted; nothing was written. Either put the original one back and run `holdfast sinks "
            f"resume {shlex.quote(info.name)}`, or continue with this one under a new name: `holdfast sinks add`, and "
            f"`sinks replay --from-seq {info.confirmed_seq + 1}` of it; then `sinks remove {shlex.quote(info.name)}`"
        )
    state = "has another batch of this store than the last one sent" if held else "has lost what it had"
    raise StoreForked(f"the destination of {info.name} {state}; nothing was sent. {_REMEDIES}")
