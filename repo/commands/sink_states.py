"""What the state of a sink means for an operator, in words."""

from __future__ import annotations

__all__ = ["WHAT_FOLLOWS", "state_text"]

WHAT_FOLLOWS = {
    "paused": "`sinks resume` lets it go on",
    "failing": "a running forwarder tries it again, and so does `drain`",
    "halted": "nothing is delivered until the cause is fixed; tried every minute by a running forwarder",
    "forked": "nothing is sent until you end that; the error says how",
    "stopped": "the delivery ends with an error, and is tried again every minute; nothing is skipped",
}
"""What happens next in a state, or what ends it; a running sink has none."""


def state_text(state: str, since: str | None) -> str:
    """Return a state, since when, and what follows."""
    shown = "unreachable" if state == "failing" else state
    then = WHAT_FOLLOWS.get(state)
    return shown + (f" since {since}" if since else "") + (f": {then}" if then else "")
