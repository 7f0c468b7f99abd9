"""What the processes of the demo have reported so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from repo.demo.process import Message

__all__ = ["Events"]


@dataclass(slots=True)
class Events:
    """The events of the processes so far. Points count as acknowledged when their writer has reported it."""

    ready: dict[str, dict[str, Any]] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)
    tick: int = 0
    points: int = 0
    arrived: int = 0
    repeats: int = 0
    failed_tries: int = 0
    delivered: int = 0
    delivering_s: float = 0.0
    batches: dict[str, int] = field(default_factory=lambda: {"live": 0, "backfill": 0})
    is_overtaken: bool = False
    """Whether a batch of newer readings arrived before one of older readings."""
    highest: int = 0
    held: dict[str, Any] | None = None
    acknowledgements: list[tuple[float, int]] = field(default_factory=list)
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    lives: dict[str, list[float]] = field(default_factory=dict)

    def note(self, message: Message) -> None:
        """Process one message; raises `DemoFailed` for a process that ended unexpectedly."""
        facts = message.facts
        match message.event:
            case "ready":
                self.ready[message.child.name] = facts
                self.lives[message.child.name] = [message.at_s, message.at_s]
            case "acknowledged":
                self.tick = facts["tick"]
                self.points += facts["points"]
                self.acknowledgements.append((message.at_s, self.points))
                self.lives[message.child.name][1] = message.at_s
            case "retry":
                self.failed_tries += 1
            case "delivered" | "held":
                self._note_batch(message, facts)
            case "finished":
                self.finished.add(message.child.name)
                message.child.expect_end()
            case "ended":
                message.child.check()

    def _note_batch(self, message: Message, facts: dict[str, Any]) -> None:
        if message.event == "held":
            self.held = facts
        self.batches[facts["lane"]] += 1
        self.is_overtaken |= facts["first"] < self.highest
        self.highest = max(self.highest, facts["last"])
        if facts["repeat"]:
            self.repeats += 1
            return
        self.arrived += facts["points"]
        self.arrivals.append((message.at_s, self.arrived))
        if facts["took_s"] is not None:
            self.delivered += facts["points"]
            self.delivering_s += facts["took_s"]

    def writing_rate(self) -> float:
        """Return the points per second over the time in which a writer was running."""
        alive_s = sum(last - first for name, (first, last) in self.lives.items() if "writer" in name)
        return self.points / alive_s if alive_s else 0.0
