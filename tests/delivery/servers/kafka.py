"""librdkafka's mock cluster in a process of its own, and a consumer of all that it holds."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.delivery.servers.process import Server

__all__ = ["MockKafka"]

HOLDER = """
import sys, time
from confluent_kafka import Producer
holder = Producer({"bootstrap.servers": "mock", "test.mock.num.brokers": 1, "log_level": 0})
for broker in holder.list_topics(timeout=300).brokers.values():
    print(broker.host, broker.port, flush=True)
time.sleep(1e6)
"""


class MockKafka(Server):
    """A broker whose topics have four partitions. It forgets them when it ends; freeze it for an outage."""

    def __init__(self, folder: Path) -> None:
        pytest.importorskip("confluent_kafka", reason="confluent-kafka is not installed")
        super().__init__(folder, [sys.executable, "-c", HOLDER], 0, self._listens)

    def _listens(self) -> bool:
        words = (self.folder / "output").read_text().split()
        if len(words) >= 2:
            self.port = int(words[-1])
        return len(words) >= 2

    @property
    def servers(self) -> str:
        """The address for clients."""
        return f"127.0.0.1:{self.port}"

    def messages(self, topic: str) -> list[tuple[str, bytes, dict[str, str]]]:
        """Return the key, value and headers of all messages, in the order of each partition."""
        from confluent_kafka import Consumer, TopicPartition

        consumer: Any = Consumer(
            {"bootstrap.servers": self.servers, "group.id": "watcher", "enable.auto.commit": False}
        )
        found: list[tuple[str, bytes, dict[str, str]]] = []
        try:
            partitions = consumer.list_topics(topic, timeout=300).topics[topic].partitions
            ends = {
                one: consumer.get_watermark_offsets(TopicPartition(topic, one), timeout=300)[1]
                for one in partitions
            }
            starts = [TopicPartition(topic, one, 0) for one, end in ends.items() if end]
            consumer.assign(starts)
            missing = sum(ends.values())
            limit = time.monotonic() + 300
            while missing:
                assert time.monotonic() < limit, f"{missing} messages did not come"
                for message in consumer.consume(missing, timeout=1):
                    assert message.error() is None, message.error()
                    headers = {name: value.decode() for name, value in message.headers() or []}
                    found.append((message.key().decode(), message.value(), headers))
                    missing -= 1
        finally:
            consumer.close()
        return found
