"""Mosquitto on loopback, and a subscriber that keeps every message."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import pytest

from tests.delivery.servers.process import Server, free_port, program

__all__ = ["Mosquitto", "Subscriber"]


class Mosquitto(Server):
    """A broker that keeps its sessions on disk. `more` are further lines of its configuration."""

    def __init__(self, folder: Path, *more: str, anonymous: bool = True) -> None:
        port = free_port()
        config = folder / "mosquitto.conf"
        lines = [
            f"listener {port} 127.0.0.1",
            f"allow_anonymous {'true' if anonymous else 'false'}",
            "persistence true",
            f"persistence_location {folder}/",
            "max_queued_messages 0",
            "user root",
            *more,
        ]
        config.write_text("\n".join(lines) + "\n")
        super().__init__(folder, [program("mosquitto"), "-c", str(config)], port, self._listens)

    def _listens(self) -> bool:
        socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
        return True


def password_file(folder: Path, user: str, password: str) -> Path:
    """Make a file with one user."""
    path = folder / "passwords"
    command = [program("mosquitto_passwd", "mosquitto"), "-c", "-b", str(path), user, password]
    subprocess.run(command, check=True, capture_output=True)
    return path


class Subscriber:
    """Subscribes with a lasting session, and keeps what arrives, in order."""

    def __init__(
        self, port: int, topic: str = "holdfast/#", *, client_id: str = "watcher", **login: str
    ) -> None:
        mqtt = pytest.importorskip("paho.mqtt.client", reason="paho-mqtt is not installed")
        self.messages: list[tuple[str, bytes, list[tuple[str, str]]]] = []
        self._changed = threading.Condition()
        self._client: Any = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id, protocol=mqtt.MQTTv5)
        self._client.on_message = self._on_message
        self._subscribed = threading.Event()
        topics = (topic, "holdfast-marker/#")
        self._client.on_connect = lambda client, *_: client.subscribe([(topic, 2) for topic in topics])
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.reconnect_delay_set(1, 1)
        if login:
            self._client.username_pw_set(**login)
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties

        lasting: Any = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        lasting.SessionExpiryInterval = 3600
        self._client.connect("127.0.0.1", port, clean_start=False, properties=lasting)

    def _on_message(self, _client: Any, _data: Any, message: Any) -> None:
        with self._changed:
            known = getattr(message.properties, "UserProperty", [])
            self.messages.append((message.topic, message.payload, known))
            self._changed.notify_all()

    def wait(self, enough: Callable[[], bool], timeout_s: float = 300) -> None:
        """Wait until `enough` of what has arrived."""
        with self._changed:
            assert self._changed.wait_for(enough, timeout_s), f"only {len(self.messages)} messages arrived"

    def settled(self) -> list[tuple[str, bytes, list[tuple[str, str]]]]:
        """Return all messages that the broker has accepted so far."""
        marker = f"holdfast-marker/{uuid4().hex}"
        self._client.publish(marker, b"", qos=2)
        self.wait(lambda: any(topic == marker for topic, *_ in self.messages))
        with self._changed:
            self.messages = [one for one in self.messages if not one[0].startswith("holdfast-marker/")]
            return [*self.messages]

    def __enter__(self) -> Self:
        self._client.loop_start()
        assert self._subscribed.wait(300)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()
