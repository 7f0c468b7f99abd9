"""Patience for the tests of forks: on a busy machine, calls take long, and so does a fork that waits for them."""

from __future__ import annotations

import gc

import pytest

from repo.processes import forks
from tests.forks.children import PATIENT


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    gc.collect()  # an interrupt of an earlier test may have left an open file in a cycle: a fork would wait for it
    monkeypatch.setattr(forks, "WAIT_S", 60.0)
    for name, seconds in PATIENT.items():  # which the documented classes read
        monkeypatch.setenv(f"HOLDFAST_{name.upper()}", str(seconds))
