"""Tests for sinks of your own: subclass `SinkContract` and describe your `Destination`. Needs pytest."""

from __future__ import annotations

from repo.testing.batches import Batches
from repo.testing.sink_contract import Destination, SinkContract

__all__ = ["Batches", "Destination", "SinkContract"]
