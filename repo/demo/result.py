"""The result of the demo: its checks, its measurements, and the counts over time. Computes none of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from repo.demo.chart import Samples

__all__ = ["Check", "DemoResult", "Figures"]


@dataclass(frozen=True, slots=True)
class Check:
    """One check: the value on the store's side, and the value on the receiver's."""

    what: str
    store: str
    receiver: str
    holds: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """The measurements. Rates are points per second; drained covers reading, sending, storing and confirming."""

    acknowledged_points: int
    arrived_points: int
    backlog_points: int
    backlog_cleared_s: float
    failed_tries: int
    written_points_per_s: float
    drained_points_per_s: float
    store_bytes: int
    receiver_bytes: int
    wire_bytes: int
    wall_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """The result. `acknowledged` and `arrived` are counts over time, for the plot."""

    seed: int
    rate: float
    engine: str
    checks: tuple[Check, ...]
    figures: Figures
    events: tuple[tuple[float, str], ...]
    acknowledged: Samples = field(repr=False)
    arrived: Samples = field(repr=False)

    @property
    def ok(self) -> bool:
        """Whether all checks hold."""
        return all(check.holds for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain dicts, lists and numbers; the documented form of `holdfast --json demo`."""
        result = {"ok": self.ok, **asdict(self)}
        result["events"] = [{"at_s": round(at_s, 3), "what": what} for at_s, what in self.events]
        del result["acknowledged"], result["arrived"]
        return result
