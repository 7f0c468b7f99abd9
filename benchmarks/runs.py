"""The file of a run: its results so far, saved after each figure, so that a run that was stopped can be continued."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.jobs import KEYS, SHAPED
from benchmarks.measure import Figure, Plan
from benchmarks.report import LOAD

__all__ = ["Run", "newest_file"]

_OUT = Path(__file__).parent / "out"


@dataclass(slots=True)
class Run:
    """A run and its results so far; each change is saved at once."""

    path: Path
    level: str
    plans: list[Plan]
    conditions: dict[str, Any] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    done: list[list[str]] = field(default_factory=list)
    """The jobs that have ended, with the shape of their data."""

    @classmethod
    def new(cls, level: str, plans: list[Plan]) -> Run:
        """Return a run with a file of its own."""
        _OUT.mkdir(exist_ok=True)
        return cls(_OUT / time.strftime("%Y%m%dT%H%M%S.json"), level, plans)

    @classmethod
    def read(cls, path: Path, cache: Path) -> Run:
        """Return a run that was stopped; `cache` is the folder of its databases."""
        stored = json.loads(path.read_text())
        plans = [Plan(**plan, cache=cache) for plan in stored["plans"]]
        figures = [Figure.of(row) for row in stored["figures"]]
        return cls(path, stored["level"], plans, stored["conditions"], figures, stored["done"])

    def add_conditions(self, conditions: dict[str, Any]) -> None:
        """Take in the conditions of the beginning, or of a continuation, as far as they differ."""
        for name, text in conditions.items():
            known = self.conditions.get(name)
            if known is None or (name == LOAD and float(text) > float(known)):
                self.conditions[name] = text
            elif name == "commit" and text not in known.split("; "):
                self.conditions[name] = f"{known}; {text}"

    def has(self, job: str, plan: Plan) -> bool:
        """Return whether a job has ended."""
        return [job, plan.shape] in self.done

    def begin(self, job: str, plan: Plan) -> None:
        """Forget the figures that a stopped job had yielded."""
        shape = plan.shape if job in SHAPED else ""
        self.figures = [one for one in self.figures if one.key not in KEYS[job] or one.shape != shape]

    def add(self, figure: Figure) -> None:
        """Save a figure."""
        self.figures.append(figure)
        self._save()

    def end(self, job: str, plan: Plan) -> None:
        """Save that a job has ended."""
        self.done.append([job, plan.shape])
        self._save()

    def _save(self) -> None:
        plans = [{k: v for k, v in asdict(plan).items() if k != "cache"} for plan in self.plans]
        content = {
            "level": self.level,
            "conditions": self.conditions,
            "plans": plans,
            "done": self.done,
            "figures": [asdict(figure) for figure in self.figures],
        }
        part = self.path.with_suffix(".part")  # the file is whole at any time
        part.write_text(json.dumps(content, indent=1))
        part.replace(self.path)


def newest_file(level: str) -> Path | None:
    """Return the file of the newest run of a level."""
    for path in sorted(_OUT.glob("*.json"), reverse=True):
        stored = json.loads(path.read_text())
        if stored["level"] == level and "plans" in stored:
            return path
    return None
