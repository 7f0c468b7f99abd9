"""The connection monitor: online if any target accepts a connection, callbacks at changes, settings."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from repo import ConnectionMonitor, InvalidSettings
from tests.delivery.servers.process import closed_port


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield server


def address(server: socket.socket) -> str:
    return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def closed() -> Iterator[str]:
    with closed_port() as port:
        yield f"127.0.0.1:{port}"


@pytest.fixture
def monitoring() -> Callable[[], list[threading.Thread]]:
    """Return the threads of the monitors that this test has started."""
    before = set(threading.enumerate())
    return lambda: [t for t in threading.enumerate() if t.name == "holdfast-monitor" and t not in before]


def test_the_link_is_online_if_any_target_accepts_a_connection(listener: socket.socket, closed: str) -> None:
    monitor = ConnectionMonitor(check_hosts=[closed, address(listener)], timeout=60)
    assert monitor.is_online
    assert monitor.get_status()["last_check_time"] is None
    assert monitor.check_connection()
    assert ConnectionMonitor(check_urls=[f"http://{address(listener)}/health"]).check_connection()
    status = monitor.get_status()
    assert status["is_online"]
    assert status["consecutive_failures"] == 0
    assert status["last_success_time"] == status["last_check_time"] is not None


def test_callbacks_hear_of_changes_only_and_may_use_the_monitor(
    listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    monitor = ConnectionMonitor(check_hosts=[address(listener)], timeout=60)
    heard: list[tuple[bool, int]] = []

    def fails(_online: bool) -> None:
        raise ZeroDivisionError

    def listens(online: bool) -> None:
        heard.append((online, monitor.get_status()["consecutive_failures"]))
        monitor.remove_callback(fails)  # no lock is held here

    monitor.add_callback(fails)
    monitor.add_callback(listens)
    assert monitor.check_connection()
    assert heard == []
    listener.close()
    with caplog.at_level(logging.CRITICAL, "holdfast.monitor"):
        assert not monitor.check_connection()
        assert not monitor.check_connection()
    assert heard == [(False, 1)]
    assert monitor.get_status()["consecutive_failures"] == 2
    assert not monitor.is_online


def test_a_thread_checks_until_it_is_stopped(
    listener: socket.socket, monitoring: Callable[[], list[threading.Thread]]
) -> None:
    monitor = ConnectionMonitor(check_interval=0.001, timeout=60, check_hosts=[address(listener)])
    offline = threading.Event()

    def stops_when_offline(online: bool) -> None:
        if not online:
            monitor.stop_monitoring()  # from its own thread
            offline.set()

    monitor.add_callback(stops_when_offline)
    monitor.start_monitoring()
    monitor.start_monitoring()
    [thread] = monitoring()
    listener.close()
    assert offline.wait(300)
    thread.join(300)
    assert monitoring() == []
    monitor.stop_monitoring()
    monitor.start_monitoring()
    monitor.stop_monitoring()
    assert not monitor.is_online


def test_arguments_that_are_omitted_come_from_the_environment(
    listener: socket.socket,
    closed: str,
    monitoring: Callable[[], list[threading.Thread]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CONNECTION_CHECK_INTERVAL", "7")
    monkeypatch.setenv("CONNECTION_CHECK_HOSTS", f" {closed}, {address(listener)} ")
    monkeypatch.setenv("CONNECTION_MONITOR_ENABLED", "false")
    monitor = ConnectionMonitor()
    assert monitor.get_status()["check_interval"] == 7
    assert ConnectionMonitor(check_interval=9).get_status()["check_interval"] == 9
    assert monitor.check_connection()
    monitor.start_monitoring()
    assert monitoring() == []
    monkeypatch.delenv("CONNECTION_CHECK_HOSTS")
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", address(listener))
    assert ConnectionMonitor().check_connection()
    monkeypatch.setenv("CONNECTION_CHECK_TIMEOUT", "soon")
    with pytest.raises(InvalidSettings, match="CONNECTION_CHECK_TIMEOUT = 'soon'"):
        ConnectionMonitor()


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"check_hosts": []},
        {"check_hosts": "host:80"},
        {"check_hosts": [7]},
        {"check_hosts": ["host:many"]},
        {"check_hosts": ["host:99999"]},
        {"check_hosts": [":80"]},
        {"check_urls": ["ftp://host"]},
        {"check_urls": ["http://[::1"]},
        {"check_hosts": ["host"], "check_interval": 0},
        {"check_hosts": ["host"], "timeout": "3"},
        {"check_hosts": {"host": 80}},
    ],
    ids=str,
)
def test_invalid_arguments_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidSettings):
        ConnectionMonitor(**arguments)
    monitor = ConnectionMonitor(check_hosts=["127.0.0.1:9"])
    with pytest.raises(InvalidSettings):
        monitor.add_callback("print")  # type: ignore[arg-type]


def test_a_host_name_that_cannot_exist_counts_as_unreachable() -> None:
    monitor = ConnectionMonitor(check_hosts=[f"{'x' * 70}.invalid:80", "a..b:80"], timeout=5)
    assert not monitor.check_connection()
