"""A sink that waits less in one block only: before and after it, the machine may take as long as it needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["PATIENT_S", "impatient"]

PATIENT_S = 60
"""The `timeout_s` of sinks whose server answers: no test waits for its end."""


@contextmanager
def impatient(sink: Any, timeout_s: float) -> Iterator[None]:
    """Let the sink wait `timeout_s` for each answer in the block, where the server is silent."""
    options = sink._options
    patient_s = options["timeout_s"]
    options["timeout_s"] = timeout_s
    try:
        yield
    finally:
        options["timeout_s"] = patient_s
