"""A receiver that accepts smaller requests than before, between a batch and its repeat: no fork, nothing missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from repo import Receiver, Settings, Store
from repo.delivery.forwarder import Backoff, Forwarder, Progress
from repo.errors import SinkUnreachable
from tests.conftest import Templates
from tests.delivery.servers.proxy import Proxy


@pytest.mark.parametrize("is_stored", [True, False])
def test_a_receiver_that_accepts_less_than_before_is_not_a_fork(
    tmp_path: Path, templates: Templates, is_stored: bool
) -> None:
    """Between a batch, whose answer was lost, and its repeat; and between batches."""
    templates.copy("sqlite", 2, tmp_path / "edge")
    with (
        Store(tmp_path / "there", Settings(engine="sqlite", background=False)) as there,
        Store(tmp_path / "edge", Settings(background=False)) as store,
    ):
        there.points.insert("W-0", "flow", "a text", timestamp=1)
        receiver = Receiver(there).start()
        with Proxy(receiver.port) as proxy:
            url = f"http+holdfast://127.0.0.1:{proxy.port}"
            store.sinks.add("there", url, start="beginning", records=True)
            forwarder = Forwarder(store, backoff=Backoff(first_s=0.001, longest_s=0.002))
            store.points.insert("W-9", "flow", 1.0, timestamp=1)
            assert next(iter(forwarder.step().values())).items
            store.points.insert_many([(f"W-{at % 3}", "flow", float(at), at * 1.5) for at in range(90)])
            if is_stored:
                proxy.drop_answers(9)
                [step] = forwarder.step().values()
                assert isinstance(step.error, SinkUnreachable)
                proxy.drop_answers(0)
                assert len(there.points.range(None, None).all()) == 62
            receiver.stop()
            with Receiver(there, body_bytes=700) as receiver:
                proxy.target_port = receiver.port
                store.records.add("R-1", "till", {"n": 1})
                assert forwarder.drain(timeout_s=300)["there"].is_empty
                info = store.sinks.show("there")
                assert (info.state, info.behind, info.refused, info.sent_points) == ("running", 0, 30, 61)
                assert len(store.quarantine.list()) == 30
                assert len(there.points.range(None, None).all()) == 62
                [position] = there.receiving.positions()
                assert position.points == 61
                assert len(there.records.pending()) == 1
                store.points.insert("W-1", "flow", 1.0, timestamp=1000, metadata={"long": "x" * 2_000})
                assert forwarder.drain(timeout_s=300)["there"].is_empty
                assert "413" in store.quarantine.list()[-1].reason


def test_a_point_that_a_receiver_has_and_rejects_when_it_comes_again_halts_the_sink(
    tmp_path: Path, templates: Templates
) -> None:
    templates.copy("sqlite", 2, tmp_path / "edge")
    with (
        Store(tmp_path / "there", Settings(engine="sqlite", background=False)) as there,
        Store(tmp_path / "edge", Settings(background=False)) as store,
    ):
        store.points.insert("W-1", "flow", 1.0, timestamp=1)
        receiver = Receiver(there).start()
        with Proxy(receiver.port) as proxy:
            url = f"http+holdfast://127.0.0.1:{proxy.port}"
            store.sinks.add("there", url, start="beginning", compression="none")
            forwarder = Forwarder(store, backoff=Backoff(first_s=0.001, longest_s=0.002))
            forwarder.step()
            store.points.insert("W-1", "flow", 1.0, timestamp=2, metadata={"long": "x" * 2_000})
            proxy.drop_answers(9)
            forwarder.step()
            proxy.drop_answers(0)
            receiver.stop()
            for body_bytes, progress in ((300, Progress.HALTED), (3_000, Progress.DELIVERED)):
                with Receiver(there, body_bytes=body_bytes) as receiver:
                    proxy.target_port = receiver.port
                    [step] = forwarder.step().values()
                    assert step.progress is progress, step
                    assert progress is Progress.DELIVERED or "raise its limit again" in str(step.error)
            assert store.sinks.show("there").behind == 0
            assert store.quarantine.count() == 0
            forwarder.stop()
